"""Draws regions and codes as pictures, and writes pages of results."""

from .page import Page, Query, Result, Table, frame_strip, render_page, write_page
from .regions import (
    draw_clusters,
    draw_heat_maps,
    draw_region_grid,
    draw_regions,
    frames_from_pixel_values,
    frames_of_height,
    region_colors,
)

__all__ = [
    "Page",
    "Query",
    "Result",
    "Table",
    "draw_clusters",
    "draw_heat_maps",
    "draw_region_grid",
    "draw_regions",
    "frame_strip",
    "frames_from_pixel_values",
    "frames_of_height",
    "region_colors",
    "render_page",
    "write_page",
]

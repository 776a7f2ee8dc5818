"""Region masks and clusters as pictures."""

from .regions import (
    draw_clusters,
    draw_region_grid,
    draw_regions,
    frames_from_pixel_values,
    region_colors,
    standardize_masks,
)

__all__ = [
    "draw_clusters",
    "draw_region_grid",
    "draw_regions",
    "frames_from_pixel_values",
    "region_colors",
    "standardize_masks",
]

"""Search: pages to look at."""

from .page import Page, Query, Result, Table, frame_strip, render_page, write_page

__all__ = ["Page", "Query", "Result", "Table", "frame_strip", "render_page", "write_page"]

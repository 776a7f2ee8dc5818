"""Search your own videos by text, image or video."""

from .index import LIKELY, MODEL, NO_MATCH, Hit, VideoIndex
from .jobs import embed_videos
from .sources import find_videos
from .spans import STRIDE, WINDOW, clock, percent
from .updating import UpdateReport

__all__ = [
    "LIKELY",
    "MODEL",
    "NO_MATCH",
    "STRIDE",
    "WINDOW",
    "Hit",
    "UpdateReport",
    "VideoIndex",
    "clock",
    "embed_videos",
    "find_videos",
    "percent",
]

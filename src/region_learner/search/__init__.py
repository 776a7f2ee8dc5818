"""Searching one's own videos by words, pictures and videos."""

from .index import LIKELY, MODEL, Hit, VideoIndex
from .sources import find_videos
from .spans import STRIDE, WINDOW, clock
from .updating import UpdateReport

__all__ = ["LIKELY", "MODEL", "STRIDE", "WINDOW", "Hit", "UpdateReport", "VideoIndex", "clock", "find_videos"]

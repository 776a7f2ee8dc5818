"""
Small pictures and videos that show a hit, for pages and for the app.

A preview is an H.264 video in an MP4 file, which every browser can play, whatever the format of the original. It is
silent. Only the frames that are shown are decoded.
"""

import math
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from ..corpora.encoding import add_video_stream
from ..files import naming, partial_of
from ..video_decoding_region_learner import Scale, iterate_parts, read_clip
from ..visualization import frame_strip

LONGEST_PREVIEW = 60.0  # seconds
_MAX_RATE = 15  # frames per second: enough to see what happens
_MIN_RATE = Fraction(1, 2)  # so that even a slow time-lapse has a frame at the beginning of the span
_WIDEST = 4  # maximum width, as a multiple of the height of a strip, or of the short side of a preview
_CRF = "27"  # with 240 lines, 10 seconds take about 0.15 MB
_FRAMES_AT_ONCE = 64
_MICROSECOND = 1e-6


def write_preview(
    source: Any,
    start: float,
    end: float,
    output: str | os.PathLike[str],
    context: float = 5.0,
    short_side: int = 240,
) -> float:
    """
    Writes a small MP4 file that shows a span of a video, and a few seconds before and after it.

    The file is written atomically. A preview is at most `LONGEST_PREVIEW` seconds long. For a longer span, it shows
    the beginning.

    Args:
        source: a video as for `read_clip`, of any format.
        start, end: the span, in seconds from the first frame.
        output: path of the MP4 file.
        context: seconds that are shown before and after the span, as far as the video has them.
        short_side: short side of the frames in pixels. Smaller videos keep their size.

    Returns:
        The time in the preview, in seconds, at which the span begins.

    Raises:
        ImportError: PyAV was built without x264.
        VideoDecodeError: the video cannot be read.
        ValueError: the span is empty, or begins after the end of the video.
        OSError: the file cannot be written.

    Example:

        begin = write_preview("holidays.mkv", 42.0, 52.0, "preview.mp4")  # 5.0
    """
    if "libx264" not in av.codecs_available:
        raise ImportError("Previews need PyAV with x264, as in its PyPI wheels: pip install --force-reinstall av")
    grid = _Grid(start, end, context)
    partial = partial_of(Path(output))
    scale = Scale(lambda height, width: _preview_size(height, width, short_side))
    file, read = None, None
    try:
        with naming(output):
            partial.touch()  # unlike errors of FFmpeg, errors of Python name the file
            for metadata, indices, frames in iterate_parts(source, grid.select, scale, _FRAMES_AT_ONCE):
                if metadata is not read:  # the first part, or reading has started over
                    if file is not None:
                        file.close()
                    file, read = _File(partial, grid.rate, *frames.shape[1:3]), metadata
                for index, frame in zip(indices.tolist(), frames):
                    file.add(frame, grid.shown.count(index))
            file.close()
            os.replace(partial, output)
    finally:
        if file is not None:
            file.close()
        partial.unlink(missing_ok=True)
    return start - grid.begin


def strip_of(source: Any, start: float, end: float, frames: int = 4, height: int = 112) -> Image.Image:
    """
    Returns a picture of frames of a span side by side. Each frame is from the middle of an equal part of the span.

    Args:
        source: a video as for `read_clip`.
        start, end: the span, in seconds from the first frame.
        frames: number of frames.
        height: height of the strip in pixels.

    Raises:
        VideoDecodeError: the video cannot be read.
        ValueError: the span is empty, or begins after the end of the video.

    Example:

        strip_of("lecture.mkv", 62.5, 75).save("definition.png")
    """

    def select(metadata: Any, **_: Any) -> list[int]:
        middles = start + (np.arange(frames) + 0.5) * ((end - start) / frames)
        return _frames_at(metadata, middles, start)

    _check_span(start, end)
    clip, _ = read_clip(source, select, Scale(lambda *size: _strip_size(size, height)))
    return frame_strip([_on_black(Image.fromarray(frame), height) for frame in clip], height)


class _Grid:
    """
    The times of the frames of a preview, which are evenly spaced even if those of the video are not.

    Attributes:
        begin: seconds from the first frame of the video to the first frame of the preview.
        rate: frames per second.
        shown: indices of the frames that are shown, one for each time, in order.
    """

    def __init__(self, start: float, end: float, context: float):
        _check_span(start, end)
        self.start, self.stop, self.begin = start, end + context, max(0.0, start - context)
        self.rate, self.shown = Fraction(_MAX_RATE), list[int]()

    def select(self, metadata: Any, **_: Any) -> list[int]:
        interval = metadata.frame_interval or 1 / _MAX_RATE
        # Show every n-th frame, for an integer n, so that movements stay smooth. (Time stamps are rounded.)
        one_of = max(1, math.ceil(1 / (interval * _MAX_RATE) - 0.05))
        self.rate = max(_MIN_RATE, Fraction(1 / (interval * one_of)).limit_denominator(1001))
        length = min(self.stop, _end(metadata)) - self.begin
        times = self.begin + np.arange(max(1, round(min(length, LONGEST_PREVIEW) * self.rate))) / float(self.rate)
        self.shown = _frames_at(metadata, times, self.start)
        return self.shown


def _check_span(start: float, end: float) -> None:
    if not 0 <= start < end < float("inf"):
        raise ValueError(f"A span must begin at 0 s or later and end after it begins, not {start:g}-{end:g} s.")


def _frames_at(metadata: Any, times: np.ndarray, start: float) -> list[int]:
    """Returns the indices of the frames that are shown at `times`: the last frame at or before each time."""
    if start >= _end(metadata):
        raise ValueError(
            f"the span begins at {start:g} s, but the video ends at {_end(metadata):g} s. If the file has changed, "
            "`region-learner index` brings the index up to date."
        )
    return (_times(metadata).searchsorted(times + _MICROSECOND, "right") - 1).tolist()


def _times(metadata: Any) -> np.ndarray:
    return np.arange(metadata.total_num_frames) / _MAX_RATE if metadata.times is None else metadata.times


def _end(metadata: Any) -> float:
    return float(metadata.end or metadata.total_num_frames / _MAX_RATE)


# --- Sizes --------------------------------------------------------------------------------------------------------


def _preview_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Rounds a size to an even number, as H.264 with subsampled colors requires."""
    scale = min(1.0, short_side / min(height, width), _WIDEST * short_side / max(height, width))
    return max(16, round(height * scale / 2) * 2), max(16, round(width * scale / 2) * 2)


def _strip_size(size: tuple[int, ...], strip_height: int) -> tuple[int, int]:
    height, width = size
    scale = min(strip_height / height, _WIDEST * strip_height / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _on_black(image: Image.Image, height: int) -> Image.Image:
    """Adds black bars above and below a very wide picture."""
    if image.height >= height:
        return image
    sheet = Image.new("RGB", (image.width, height))
    sheet.paste(image, (0, (height - image.height) // 2))
    return sheet


# --- Files --------------------------------------------------------------------------------------------------------


class _File:
    """An MP4 file with one H.264 stream. Its tables come first, so that browsers can play it while it loads."""

    def __init__(self, path: Path, rate: Fraction, height: int, width: int):
        self.container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        options = {"crf": _CRF, "preset": "veryfast", "g": str(max(1, round(2 * rate)))}
        self.stream = add_video_stream(self.container, "libx264", rate, options)
        self.stream.height, self.stream.width, self.stream.pix_fmt = height, width, "yuv420p"
        self.is_open = True

    def add(self, frame: np.ndarray, count: int) -> None:
        """Adds a frame, uint8 (H, W, 3), which is shown for `count` times of the grid."""
        for _ in range(count):
            self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.container.mux(self.stream.encode())
            self.container.close()

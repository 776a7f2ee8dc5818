"""
Small pictures and videos of what a search found, for pages and for the app.

A preview is H.264 in an MP4 file, which every browser plays, whatever the format of the video; it has no sound. Only
the frames that are shown are decoded.
"""

import os
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

from ..corpora.encoding import add_video_stream
from ..files import naming, partial_of
from ..video_decoding_region_learner import Scale, read_clip
from ..visualization import frame_strip

LONGEST_PREVIEW = 60.0  # seconds
_MAX_RATE = 15  # frames per second: enough to see what happens, and a third of the bytes of 50
_SLOWEST_RATE = Fraction(1, 2)  # so that a slow time-lapse still has frames to start at
_WIDEST = 4  # times the short side
_CRF = "27"  # quality of x264: clips of 240 lines and 20 seconds take about 0.3 MB


def write_preview(
    source: Any,
    start: float,
    end: float,
    output: str | os.PathLike[str],
    context: float = 5.0,
    short_side: int = 240,
) -> float:
    """
    Writes a small MP4 of a span of a video, with what happens before and after it.

    The file is written atomically. A preview is at most `LONGEST_PREVIEW` seconds long: of a longer span it shows the
    beginning.

    Args:
        source: a video as `read_clip` takes it, of any format.
        start, end: the span in seconds.
        output: path of the MP4 file.
        context: seconds that are shown before and after the span, where the video has them.
        short_side: of the frames, in pixels. Smaller videos keep their size.

    Returns:
        The time in the preview, in seconds, at which the span begins.

    Raises:
        VideoDecodeError: the video cannot be read.
        ValueError: the span is empty, or begins after the end of the video.
        OSError: the file cannot be written.

    Example:

        begin = write_preview("holidays.mkv", 42.0, 52.0, "preview.mp4")  # 5.0
    """
    if not 0 <= start < end:
        raise ValueError(f"A span begins at 0 or later and ends after it begins, got {start:g}-{end:g} s.")
    grid = _Grid(start, end, context)
    frames, _ = read_clip(source, grid.frames, Scale(lambda *size: _preview_size(*size, short_side)), exact=True)
    with naming(output):
        _write_mp4(frames, grid.rate, output)
    return start - grid.begin


def strip_of(source: Any, start: float, end: float, frames: int = 4, height: int = 112) -> Image.Image:
    """
    Returns frames of a span side by side, each from the middle of an equal part of it.

    Args:
        source: a video as `read_clip` takes it.
        start, end: the span in seconds.
        frames: how many.
        height: of the strip in pixels.

    Raises:
        VideoDecodeError: the video cannot be read.
        ValueError: the span is empty, or begins after the end of the video.
    """
    clip, _ = read_clip(source, middles_of(start, end, frames), Scale(lambda *size: _strip_size(*size, height)))
    return frame_strip([_on_black(Image.fromarray(frame), height) for frame in clip], height)


def middles_of(start: float, end: float, count: int) -> Callable[..., list[int]]:
    """
    Returns a function that selects, as `read_clip` calls it, the frames that are shown in the middle of each of
    `count` equal parts of a span.
    """

    def select(metadata: Any, **_: Any) -> list[int]:
        step = (end - start) / count
        return _frames_at(metadata, start + step * (np.arange(count) + 0.5), start)

    return select


class _Grid:
    """
    The times of the frames of a preview: evenly spaced, from `context` before the span until `context` after it.

    Attributes:
        begin: seconds from the start of the video to the first frame of the preview.
        rate: frames per second.
    """

    def __init__(self, start: float, end: float, context: float):
        self.start, self.end, self.context = start, end, context
        self.begin, self.rate = start, Fraction(_MAX_RATE)

    def frames(self, metadata: Any, **_: Any) -> list[int]:
        """Selects the frame that is shown at each time of the grid."""
        fps = metadata.fps or _MAX_RATE
        slower = int(np.ceil(fps / _MAX_RATE - 0.01))  # a whole number, so that movements stay smooth
        self.rate = max(Fraction(fps / max(slower, 1)).limit_denominator(1001), _SLOWEST_RATE)
        self.begin = max(0.0, self.start - self.context)
        length = min(self.end + self.context, _duration(metadata)) - self.begin
        count = max(1, round(min(length, LONGEST_PREVIEW) * self.rate))
        return _frames_at(metadata, self.begin + np.arange(count) / float(self.rate), self.start)


def _frames_at(metadata: Any, times: np.ndarray, start: float) -> list[int]:
    """Returns the indices of the frames that are shown at `times`: the last ones with a time stamp at or before."""
    shown = _times(metadata)
    if start >= _duration(metadata):
        raise ValueError(
            f"the span begins at {start:g} s, but the video ends at {_duration(metadata):g} s: if the file has "
            "changed, run `region-learner index` again."
        )
    indices = np.searchsorted(shown, times + 1e-6, side="right") - 1
    return [int(index) for index in indices.clip(0, len(shown) - 1)]


def _times(metadata: Any) -> np.ndarray:
    """Time stamps of the frames in seconds."""
    times = getattr(metadata, "times", None)
    if times is None:
        times = np.arange(metadata.total_num_frames) / (metadata.fps or _MAX_RATE)
    return np.asarray(times)


def _duration(metadata: Any) -> float:
    """Seconds until the last frame ends. A file may state a duration that its frames do not reach."""
    last = float(_times(metadata)[-1])
    return max(last + 1 / (metadata.fps or _MAX_RATE), min(metadata.duration or 0.0, last + 1))


# --- Sizes --------------------------------------------------------------------------------------------------------


def _preview_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Even, as H.264 with halved colours needs it."""
    scale = min(1.0, short_side / min(height, width), _WIDEST * short_side / max(height, width))
    return max(16, round(height * scale / 2) * 2), max(16, round(width * scale / 2) * 2)


def _strip_size(height: int, width: int, strip_height: int) -> tuple[int, int]:
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


def _write_mp4(frames: np.ndarray, rate: Fraction, output: str | os.PathLike[str]) -> None:
    """Writes frames, uint8 (T, H, W, 3), with the index in front, so that browsers play before they have it all."""
    import av

    if "libx264" not in av.codecs_available:
        raise ImportError("Previews need PyAV with x264, which browsers play: pip install --force-reinstall av")
    from pathlib import Path

    partial = partial_of(Path(output))
    try:
        with av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            options = {"crf": _CRF, "preset": "veryfast", "g": str(max(1, round(2 * rate)))}
            stream = add_video_stream(container, "libx264", rate, options)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)

"""Encodes videos so that equal frames give equal bytes. All code of this package that writes videos uses it."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

# On processors with AVX-512, x264's macroblock tree reads past the end of each row of macroblocks, eight at a time, so
# the bytes of a frame whose width is not a multiple of 128 depend on what happens to be in memory there.
_WITHOUT_MACROBLOCK_TREE = "mbtree=0"


def add_video_stream(
    container: OutputContainer,
    codec: str = "libx264",
    rate: Fraction | int | None = None,
    options: Mapping[str, str] | None = None,
) -> VideoStream:
    """Adds a stream that encodes equal frames as equal bytes, in any process and on any number of cores.

    Args:
        codec: name of the encoder.
        rate: frames per second; None if every frame has its own time stamp.
        options: options of the encoder.
    """
    options = dict(options or {})
    if codec == "libx264":
        given = options.get("x264-params")
        options["x264-params"] = f"{given}:{_WITHOUT_MACROBLOCK_TREE}" if given else _WITHOUT_MACROBLOCK_TREE
    stream = cast("VideoStream", container.add_stream(codec, rate=rate, options=options))
    stream.codec_context.thread_count = 1  # the bytes depend on the number of threads
    return stream


def available_codec() -> str:
    """Returns the encoder that `write_video` uses: H.264, or MPEG-4 if this build of FFmpeg has no x264."""
    import av

    return "libx264" if "libx264" in av.codecs_available else "mpeg4"


def write_video(path: Path, frames: np.ndarray, fps: float) -> None:
    """Writes frames, (T, H, W, 3) uint8, as an MP4 file."""
    import av

    codec = available_codec()
    options = {"crf": "18", "preset": "veryfast"} if codec == "libx264" else {"qmin": "2", "qmax": "4"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = add_video_stream(container, codec, Fraction(fps).limit_denominator(1001), options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())

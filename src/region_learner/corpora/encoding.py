"""How the package encodes videos: all that writes one takes its stream from here."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

# On processors with AVX-512, x264's macroblock tree reads past the end of each row of macroblocks, eight at a time: a
# frame whose width is not a multiple of 128 is encoded by what happens to be in memory there.
_WITHOUT_MACROBLOCK_TREE = "mbtree=0"


def add_video_stream(
    container: OutputContainer,
    codec: str = "libx264",
    rate: Fraction | int | None = None,
    options: Mapping[str, str] | None = None,
) -> VideoStream:
    """
    Adds a stream to which equal frames are encoded as equal bytes, in any process and on any number of cores.

    Args:
        codec: name of the encoder.
        rate: frames per second; None where every frame has a time stamp of its own.
        options: of the encoder.
    """
    options = dict(options or {})
    if codec == "libx264":
        given = options.get("x264-params")
        options["x264-params"] = f"{given}:{_WITHOUT_MACROBLOCK_TREE}" if given else _WITHOUT_MACROBLOCK_TREE
    stream = cast("VideoStream", container.add_stream(codec, rate=rate, options=options))
    stream.codec_context.thread_count = 1  # the number of threads decides on the bytes
    return stream

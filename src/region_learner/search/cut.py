"""Cuts spans out of videos, without re-encoding them if that gives the right frames."""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..corpora.encoding import add_video_stream, available_codec
from ..files import naming, partial_of
from ..video_decoding_region_learner import (
    ClipMetadata,
    PacketList,
    Scale,
    VideoDecodeError,
    iterate_parts,
    list_packets,
    open_video,
)
from ..video_processing_region_learner import check_span, frames_in_span

if TYPE_CHECKING:
    from av.container import OutputContainer

logger = logging.getLogger(__name__)

# The containers that can be written. MP4 and MOV can hide the frames before a span with an edit list.
_CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
_HIDING = {"mp4", "mov"}
# FFmpeg's demuxers of containers that store a time stamp for every packet. Others, such as that of AVI, may guess
# them.
_WITH_TIMES = ("mov,", "matroska,", "mpegts", "flv")
_LEAD_IN = 60  # seconds that a copy may hide before the span
_BEFORE = 10  # seconds before the first packet, and _AFTER the last one, in which sound of the span may be stored
_AFTER = 2
_PART = 32  # number of frames that are decoded before they are encoded
_TICKS = 60_000  # time stamps per second of encoded videos
_BT601, _LIMITED = 6, 1  # as FFmpeg numbers them
_QUALITY = {"libx264": {"crf": "18", "preset": "fast"}, "mpeg4": {"qmin": "2", "qmax": "4"}}


class _OutsideError(Exception):
    """Carries an error with a complete message through `open_video`, which would report an unreadable source."""

    def __init__(self, cause: Exception):
        self.cause = cause


class _NotCopiedError(Exception):
    """Raised if a container does not accept the packets of a video."""


def cut_span(source: Any, start: float | None, end: float | None, output: str | os.PathLike) -> Path:
    """
    Writes a span of a video to a new file, with its sound.

    The file contains the frames that are shown in the span, and the first of them is at 0 seconds. The packets of the
    video are copied, together with packets before and after the span that its frames depend on. In MP4 and MOV files,
    an edit list hides these additional frames. Other containers cannot hide frames: they are used if there is nothing
    to hide, and an MP4 file is written otherwise. If the packets cannot be copied because of their codec, because they
    are damaged, or because they do not have time stamps, the frames are re-encoded with H.264, and the sound is
    copied.

    Args:
        source: a path, the bytes of a file, or a dictionary `{"path": ..., "bytes": ...}`, as in `read_clip`.
        start, end: seconds from the first frame, as in calls of the processor; None for the start and the end.
        output: the path of the file. A suffix of a video file is dropped. The suffix of `source` is then appended if
            its container can hold the span, and `.mp4` or `.mkv` otherwise.

    Returns:
        The path of the file, which is written atomically and replaces an existing file.

    Raises:
        VideoDecodeError: the video, or a frame of the span, cannot be read.
        ValueError: the video does not have the span.
        OSError: the file cannot be written.

    Example:

    ```python
    >>> cut_span("lecture.mkv", 62.5, 75, "cuts/definition")
    PosixPath('cuts/definition.mp4')
    ```
    """
    output = Path(output)
    if output.suffix.lower() in _CONTAINERS:
        output = output.with_suffix("")
    try:
        return _cut(source, start, end, output)
    except _OutsideError as error:
        raise error.cause from None


def _cut(source: Any, start: float | None, end: float | None, output: Path) -> Path:
    with open_video(source) as stream:
        listed = list_packets(stream)
        span = None if listed is None else _choose_packets(stream, *listed, start, end)
    if span is not None:
        for suffix in _suffixes(source, span.has_hidden):
            try:
                with open_video(source) as stream:  # opened again: not every container can seek to its beginning
                    return _write(output, suffix, partial(_copy, stream, span))
            except _NotCopiedError as error:
                logger.debug("%s is not copied to %s: %s", _name(source), suffix, error)
    return _encode(source, start, end, output)


def _name(source: Any) -> str:
    name = source.get("path") if isinstance(source, Mapping) else source
    return os.fspath(name) if isinstance(name, str | os.PathLike) else "<bytes>"


def _suffixes(source: Any, has_hidden: bool) -> list[str]:
    """Returns the suffixes of files to which a span may be copied, best first."""
    own = os.path.splitext(_name(source))[1].lower()
    suffixes = dict.fromkeys([own, ".mp4", ".mkv"] if own in _CONTAINERS else [".mp4", ".mkv"])
    return [suffix for suffix in suffixes if not has_hidden or _CONTAINERS[suffix] in _HIDING]


def _is_sound(stream: Any) -> bool:
    return stream.type == "audio" and stream.codec_context is not None


def _is_other_video(stream: Any, first: Any) -> bool:
    import av

    cover = av.stream.Disposition.attached_pic
    return stream.type == "video" and stream != first and stream.codec_context and not stream.disposition & cover


def _write(output: Path, suffix: str, write: Callable[[BinaryIO, str], None]) -> Path:
    """Writes a file atomically with `write(file, container)`, and returns its path."""
    import av

    path = output.with_name(output.name + suffix)
    unfinished = partial_of(path)
    try:
        with naming(path):
            with open(unfinished, "w+b") as file:  # FFmpeg might mistake a name for an address or a pattern
                try:
                    write(file, _CONTAINERS[suffix])
                except av.error.FFmpegError as error:
                    raise _NotCopiedError(f"{error}") from error
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
    except (OSError, ValueError) as error:
        raise _OutsideError(error) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return path


# --- Copying --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Span:
    """
    The packets of a span.

    Args:
        stamps: the decoding time stamp of each copied packet of the first video stream, by time stamp.
        start, end: time stamps of the first frame and of the end of the span, in seconds.
        length: seconds from the first frame to the end of the last frame.
        has_hidden: whether the packets include frames before or after the span, on which its frames depend.
    """

    stamps: dict[int, int]
    start: Fraction
    end: Fraction
    length: float
    has_hidden: bool


def _choose_packets(
    stream: Any, packets: PacketList, metadata: ClipMetadata, start: float | None, end: float | None
) -> _Span | None:
    """Returns the packets of a span, from the key frame before it on; None if the container does not store times."""
    times, start, end = check_span(metadata, start, end)
    if not stream.container.format.name.startswith(_WITH_TIMES):
        return None
    first, stop = frames_in_span(times, start, end)
    shown = packets.shown_times[first:stop]
    key = packets.keys[packets.times[packets.keys].searchsorted(shown[0], "right") - 1]
    if (shown[0] - packets.times[key]) * stream.time_base > _LEAD_IN:
        return None
    last = packets.shown[first:stop].max()
    # Frames that are shown before the key frame, but follow it in the file, depend on frames that are cut off.
    stamps = packets.times[key : last + 1]
    stamps = stamps[stamps >= packets.times[key]]
    within = stamps[(stamps >= shown[0]) & (stamps <= shown[-1])]
    if len(within) != len(shown):  # an edit list cuts frames out of the span, but a copy would show them
        return None
    origin = int(packets.shown_times[0]) * stream.time_base
    beginning = int(shown[0]) * stream.time_base
    length = (times[stop] if stop < len(times) else metadata.end) - times[first]
    return _Span(_decoding_times(stamps), beginning, origin + Fraction(end), length, len(stamps) > len(shown))


def _decoding_times(stamps: np.ndarray) -> dict[int, int]:
    """
    Returns the decoding time stamp for each of `stamps`, which are in decoding order. (Files may lack decoding time
    stamps.) They are the sorted time stamps, shifted earlier by the smallest number of frames with which no frame is
    decoded later than it is shown.
    """
    ordered = np.sort(stamps)
    delay = int(np.max(np.arange(len(stamps)) - ordered.searchsorted(stamps)))
    step = max(1, int(ordered[-1] - ordered[0]) // max(1, len(stamps) - 1))
    before = ordered[0] - step * np.arange(delay, 0, -1)
    return dict(zip(stamps.tolist(), np.concatenate([before, ordered]).tolist()))


def _is_entry(stream: Any, packet: Any) -> bool:
    """
    Returns whether a file may start with a key frame. In H.264, it must be an IDR frame (NAL type 5): frames that
    follow any other key frame may refer to frames before it, even if they do not need them.
    """
    context = stream.codec_context
    if context.codec.canonical_name != "h264":
        return True
    data, extra = bytes(packet), context.extradata or b""
    if not extra.startswith(b"\1") or len(extra) < 5:  # start codes, instead of lengths
        return any(part[:1] and part[0] & 31 == 5 for part in data.split(b"\0\0\1")[1:])
    size, at = (extra[4] & 3) + 1, 0
    while at + size < len(data):
        if data[at + size] & 31 == 5:
            return True
        at += size + int.from_bytes(data[at : at + size], "big")
    return False


def _copy(stream: Any, span: _Span, file: BinaryIO, name: str) -> None:
    """Copies a span to a container. Raises `_NotCopiedError` or an FFmpeg error if that is not possible."""
    others = [other for other in stream.container.streams if _is_sound(other) or _is_other_video(other, stream)]
    missing = set(span.stamps)
    with _open_output(file, name) as container:
        if wrong := {source.codec.canonical_name for source in (stream, *others)} - container.supported_codecs:
            raise _NotCopiedError(f"{name} does not support {', '.join(sorted(wrong))}")
        targets = {source.index: _add_copy(container, source) for source in (stream, *others)}
        begun = set()  # other video streams must also begin with a key frame
        for packet in _packets_around(stream, [stream, *others], min(span.stamps), span.end):
            source = packet.stream
            if source == stream:
                if packet.pts not in missing:
                    continue
                if len(missing) == len(span.stamps) and not _is_entry(stream, packet):
                    raise _NotCopiedError("no IDR frame before the span")
                missing.remove(packet.pts)
                packet.dts = span.stamps[packet.pts]
            elif packet.dts is None or packet.pts is None:
                raise _NotCopiedError("packets have no time stamps")
            elif source.type == "video":
                begun |= {source.index} if packet.is_keyframe else set()
                if source.index not in begun or packet.dts * packet.time_base >= span.end:
                    continue
            elif not _is_in(packet, span.start, span.end):
                continue
            _move(packet, span.start, targets[source.index])
            container.mux(packet)
        if missing:
            raise _NotCopiedError(f"{len(missing)} packets were not found")
    if span.has_hidden:
        _end_edit(file, span.length)


def _open_output(file: BinaryIO, name: str) -> OutputContainer:
    """Opens a container for writing. Where possible, negative time stamps hide frames instead of being shifted."""
    import av

    options = {"avoid_negative_ts": "disabled"} if name in _HIDING else {}
    return av.open(file, "w", format=name, container_options=options)


def _end_edit(file: BinaryIO, seconds: float) -> None:
    """Ends the edit list of the first track of an MP4 file, so that frames after the span are hidden."""
    file.seek(0, io.SEEK_END)
    moov = _find_box(file, b"moov", 0, file.tell())
    header, edits = _find_box(file, b"mvhd", *moov), moov
    for name in (b"trak", b"edts", b"elst"):
        edits = _find_box(file, name, *edits)
    file.seek(header[0])
    version, rest = file.read(1)[0], file.read(31)
    scale = int.from_bytes(rest[19:23] if version else rest[11:15], "big")  # units per second
    file.seek(edits[0])
    size = 8 if file.read(1)[0] else 4
    # The last edit shows the frames. Its duration is rounded down, because the next frame must not begin in it.
    file.seek(edits[1] - 2 * size - 4)
    file.write(math.floor(seconds * scale + 1e-6).to_bytes(size, "big"))


def _find_box(file: BinaryIO, name: bytes, start: int, end: int) -> tuple[int, int]:
    """Returns the start and end of the content of the first box with a name, among the boxes of an MP4 file."""
    while start < end:
        file.seek(start)
        header = file.read(16)
        size, first = int.from_bytes(header[:4], "big"), 8
        if size == 1:  # a size of 64 bits follows
            size, first = int.from_bytes(header[8:16], "big"), 16
        if header[4:8] == name:
            return start + first, start + size
        start += max(size, first)
    raise _NotCopiedError(f"the file has no box {name.decode()}")


def _add_copy(container: OutputContainer, source: Any) -> Any:
    return container.add_stream_from_template(source, opaque=True)  # without looking for an encoder


def _packets_around(stream: Any, streams: Sequence[Any], first: int, end: Fraction) -> Iterator[Any]:
    """Yields the packets of `streams`, from before the time stamp `first` of `stream` until after `end` in seconds."""
    container = stream.container
    before = first - round(_BEFORE / stream.time_base)
    if before > (stream.start_time or 0):
        container.seek(before, stream=stream)
    try:
        for packet in container.demux(streams):
            if not packet.size:
                continue
            at = None if packet.dts is None else packet.dts * packet.time_base
            decides = packet.stream == stream or stream not in streams
            yield packet
            if decides and at is not None and at > end + _AFTER:
                return
    except IndexError as error:  # raised by PyAV if streams appear later on
        raise _NotCopiedError("new streams appear in the middle of the file") from error


def _is_in(packet: Any, start: Fraction, end: Fraction) -> bool:
    return start <= packet.pts * packet.time_base < end


def _move(packet: Any, start: Fraction, target: Any) -> None:
    """Shifts a packet so that `start` becomes 0, and assigns it to a stream of the output."""
    shift = round(start / packet.time_base)
    packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
    packet.stream = target


# --- Encoding -------------------------------------------------------------------------------------------------------


def _encode(source: Any, start: float | None, end: float | None, output: Path) -> Path:
    """Encodes the frames of a span and copies its sound, to a Matroska file if MP4 does not support the sound."""
    with open_video(source) as stream:
        sounds = [sound for sound in stream.container.streams if _is_sound(sound)]
        suffix = ".mkv" if _refused(sounds, "mp4") else ".mp4"
        for sound in _refused(sounds, _CONTAINERS[suffix]):
            name = sound.codec_context.name
            logger.warning("%s: its sound (%s) is left out because no container supports it", _name(source), name)
            sounds.remove(sound)

        indices = {sound.index for sound in sounds}

        def encode(file: BinaryIO, name: str) -> None:
            _encode_frames(source, start, end, partial(_Encoder, source, indices, file, name))

        try:
            return _write(output, suffix, encode)
        except _NotCopiedError as error:
            raise VideoDecodeError(f"the span can be neither copied nor encoded ({error})") from error


def _encode_frames(source: Any, start: float | None, end: float | None, encoder_for: Callable[..., _Encoder]) -> None:
    def choose(metadata: ClipMetadata) -> range:
        return range(*frames_in_span(*check_span(metadata, start, end)))

    current, encoder = None, None
    try:
        for metadata, indices, frames in iterate_parts(source, choose, Scale(_even), _PART, exact=True):
            times, _, stop = check_span(metadata, start, end)
            if metadata is not current:
                if encoder is not None:
                    encoder.close()
                current, first = metadata, float(times[indices[0]])
                encoder = encoder_for(frames[0].shape[:2], metadata.origin, first, stop)
            for frame, at in zip(frames, times[indices].tolist()):
                encoder.add(frame, at - first)
        encoder.finish()
    finally:
        if encoder is not None:
            encoder.close()


def _even(height: int, width: int) -> tuple[int, int]:
    """Returns the size of an encoded frame. It is even: H.264 stores colors for blocks of two by two pixels."""
    return max(2, height // 2 * 2), max(2, width // 2 * 2)


class _Encoder:
    """
    Encodes frames, and writes them with the sound of their span to a file, from its beginning.

    Args:
        source: the video, which is opened again to read its sound from the beginning.
        sounds: indices of the sound streams that are copied.
        file, name: the file to write, and the name of its container.
        size: height and width of the frames.
        origin: the time stamp of the first frame of the source in seconds; None if unknown.
        start, end: the span in seconds from the first frame of the source.
    """

    def __init__(
        self,
        source: Any,
        sounds: Collection[int],
        file: BinaryIO,
        name: str,
        size: tuple[int, int],
        origin: Fraction | None,
        start: float,
        end: float,
    ):
        file.seek(0)
        file.truncate()  # encoding starts over if the source contradicts its list of packets
        self.opened = ExitStack()
        stream = self.opened.enter_context(open_video(source))
        copied = [sound for sound in stream.container.streams if sound.index in sounds]
        self.container = _open_output(file, name)
        codec = available_codec()
        self.video = add_video_stream(self.container, codec, options=_QUALITY[codec])
        self.video.height, self.video.width = size
        self.video.pix_fmt = "yuv420p"
        self.video.codec_context.sample_aspect_ratio = _shape_of_pixels(source)
        # How PyAV converts RGB: by the matrix of BT.601, to a limited range. Players would assume BT.709 for HD.
        self.video.codec_context.colorspace, self.video.codec_context.color_range = _BT601, _LIMITED
        self.video.codec_context.time_base = self.video.time_base = Fraction(1, _TICKS)
        self.targets = {sound.index: _add_copy(self.container, sound) for sound in copied}
        if origin is None:
            origin = (stream.start_time or 0) * stream.time_base
        self.start, self.end = origin + Fraction(start), origin + Fraction(end)
        self.sound = self._sound_packets(stream, copied) if copied else iter(())
        self.waiting = next(self.sound, None)

    def _sound_packets(self, stream: Any, sounds: Sequence[Any]) -> Iterator[Any]:
        first = round(self.start / stream.time_base)
        for packet in _packets_around(stream, sounds, first, self.end):
            if packet.pts is not None and packet.dts is not None and _is_in(packet, self.start, self.end):
                _move(packet, self.start, self.targets[packet.stream.index])
                yield packet

    def _mux_sound(self, until: float) -> None:
        while self.waiting is not None and self.waiting.pts * self.waiting.time_base <= until:
            self.container.mux(self.waiting)
            self.waiting = next(self.sound, None)

    def add(self, image: np.ndarray, at: float) -> None:
        """Encodes a frame that is shown `at` seconds after the first frame, and writes the sound until then."""
        import av

        self._mux_sound(at)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = round(at * _TICKS), self.video.time_base
        self.container.mux(self.video.encode(frame))

    def finish(self) -> None:
        """Writes the remaining frames and sound."""
        self._mux_sound(math.inf)
        self.container.mux(self.video.encode())

    def close(self) -> None:
        self.container.close()
        self.opened.close()


def _shape_of_pixels(source: Any) -> Fraction:
    """Returns the width of a pixel of a video divided by its height, in upright frames."""
    with open_video(source) as stream:
        frames = (frame for packet in stream.container.demux(stream) for frame in packet.decode())
        first = next(frames, None)  # some codecs tell the shape only when they have been decoded
        shape = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
        is_turned = first is not None and first.rotation % 180 == 90
    return 1 / shape if is_turned else shape


def _refused(sounds: Sequence[Any], name: str) -> list[Any]:
    """Returns the streams whose codecs a container does not support."""
    with _open_output(io.BytesIO(), name) as container:
        return [sound for sound in sounds if sound.codec.canonical_name not in container.supported_codecs]

# Copyright 2026 The RegionLearner authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in
# compliance with the License. You may obtain a copy at http://www.apache.org/licenses/LICENSE-2.0
"""Reads frames of videos with PyAV, and pictures with Pillow, from local files, bytes and file objects.

Selected frames are exactly those that decoding the whole file would give. Files may come from untrusted sources, so
size, memory and time are bounded, and it is an error if a decoder reports damage.
"""

import dataclasses
import errno
import io
import os
import re
import threading
import time
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from fractions import Fraction
from functools import cached_property
from itertools import dropwhile, groupby, islice
from operator import itemgetter
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.video_utils import VideoMetadata

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]


# Maximum pixels of a frame, as in H.264, H.265 and AV1 (level 6.2), which includes 8K. Decoders hold up to 16 frames.
_MAX_PIXELS = 35_651_584
_MAX_PICTURE_PIXELS = 2**26
_MAX_JPEG = 2**28  # bytes, which are read at once
_MAX_SCANS = 1000  # of a JPEG file
_MAX_FRAMES = 2**24  # per video: 38 hours at 120 frames per second
_MAX_CLIP = 2**31  # bytes of the selected frames
_MAX_KEPT = 2**25  # bytes of packets that are kept in memory
_PACKET = 1500  # bytes that PyAV and FFmpeg use for a packet, in addition to its data
_SECONDS = 600  # for one clip, or one part: a few bytes can encode very many frames
_PICTURE_FPS = 25  # FFmpeg's frame rate for a picture

# The demuxers of FFmpeg that may be used: for videos, for pictures that Pillow does not read, and for sound, whose
# pictures are covers. Demuxers that open other files and addresses, run scripts, or draw text are left out.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,mxf,nut,ivf,obu,rm,wtv,dv,"
    "swf,yuv4mpegpipe,h264,hevc,vvc,m4v,h261,h263,vc1,mjpeg,mjpeg_2000,gif,apng,jpegls_pipe,jpegxl_pipe,jpegxl_anim,"
    "pam_pipe,mp3,wav,flac,aac"
)
# Pillow reads these formats, so that a path and a picture that the user opened give equal pixels.
_PICTURES = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "JPEG2000", "BMP", "PPM")
_HEIF_BRANDS = {"heic", "heix", "heim", "heis", "mif1"}
# Codecs in which every packet shows a frame, except for some of VP8. In others, such as MPEG-4, a packet smaller than
# `_SHOWS_NOTHING` bytes may only say that nothing has changed.
_ALWAYS_SHOW = {"h264", "hevc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mjpeg", "gif", "prores", "dnxhd"}
_SHOWS_NOTHING = 32
# Codecs in which FFmpeg can skip non-reference frames without changing other frames. These do not include H.265, whose
# flag refers to a temporal layer only, nor VP8, where a non-reference frame may define the segments of the next one.
_SKIPS_NON_REFERENCE = {"h264", "mpeg1video", "mpeg2video", "mpeg4"}
# Outer boxes of MP4 (ISO/IEC 14496-12) and QuickTime: another format has none of them.
_MP4_BOXES = {
    b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pnot", b"sidx", b"uuid", b"udta",
}  # fmt: skip
# Those whose content FFmpeg does not parse, unless it begins like the content of `moov`.
_OPAQUE_BOXES = {b"mdat", b"free", b"skip", b"wide"}
_IN_MOOV = {b"mvhd", b"trak", b"cmov"}
# Tables of samples, anywhere in a box: FFmpeg finds them in any box that may contain others.
_TABLE = re.compile(rb"stsz|trun")
_SCANNED_AT_ONCE = 2**24
_MAX_BOXES = 2**20
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262


class VideoDecodeError(ValueError):
    """Raised if a video, or a selected frame of it, cannot be read. Its message is one line: which video, and why."""


@dataclasses.dataclass
class ClipMetadata(VideoMetadata):
    """
    The metadata of a video, from which frames are sampled.

    Args:
        keyframes: sorted indices of the frames that can be decoded without any other frame; None if unknown.
        times: when each frame is shown, in seconds from the first frame: float64 of shape (total_num_frames,),
            increasing from 0. They are read from the file, so that a variable frame rate is respected, or computed by
            means of `fps` if the file does not specify them in order. None if both are unknown.
        origin: the time stamp of the first frame in seconds, from which `times` are counted; None if unknown.
    """

    keyframes: list[int] | None = None
    frames_indices: list[int] = dataclasses.field(default_factory=list)
    times: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    origin: Fraction | None = dataclasses.field(default=None, compare=False, repr=False)

    @cached_property
    def frame_interval(self) -> float | None:
        """The median time between two frames in seconds; None if `times` is None."""
        if self.times is None:
            return None
        if len(self.times) > 1:
            return float(np.median(np.diff(self.times)))
        return 1 / self.fps if self.fps else 0.0

    @property
    def end(self) -> float | None:
        """
        The time in seconds until which the last frame is shown, if it is shown for the usual `frame_interval`; None if
        `times` is None. Unlike `duration`, which the file states, it is counted from the first frame, and ignores
        sound.
        """
        interval = self.frame_interval
        return None if self.times is None or interval is None else float(self.times[-1]) + interval

    @property
    def timestamps(self) -> list[float]:
        """The times of the selected frames in seconds."""
        return super().timestamps if self.times is None else self.times[self.frames_indices].tolist()


class Scale(NamedTuple):
    """
    Specifies how frames are scaled while they are decoded.

    Args:
        size_for: called with the height and width of an upright frame, returns the height and width to scale it to.
        interpolation: name of a member of PyAV's `Interpolation`. All of them antialias when shrinking.
        of_pictures: whether picture files are scaled as well. Otherwise they remain equal to opened pictures.
    """

    size_for: Callable[[int, int], tuple[int, int]]
    interpolation: str = "BICUBIC"
    of_pictures: bool = True


# --- Reading clips --------------------------------------------------------------------------------------------------


def read_clip(
    source: Any, sample_indices_fn: Callable[..., Iterable[int]], scale: Scale | None = None, exact: bool = False
) -> tuple[np.ndarray, VideoMetadata]:
    """
    Decodes selected frames of one video: exactly those that decoding the whole file would give at these indices.

    The packets of the file are listed without being decoded. Decoding then starts at the key frame before each
    selected frame, and time stamps identify the frames. The whole file is decoded if time stamps are missing, repeated
    or out of order, if packets do not show a frame, or if decoding contradicts the list. `stream.frames` is not used,
    because it is 0 for Matroska and may be wrong for other formats.

    Args:
        source: a path, the bytes of a file, a binary file object, or a dictionary `{"path": ..., "bytes": ...}` of
            `datasets.Video(decode=False)`. It may be a URL if `register_url_reader` was called.
        sample_indices_fn: called as `sample_indices_fn(metadata=ClipMetadata)`, returns the indices of the selected
            frames, in any order and with repetitions. It is called again if decoding finds other frames.
        scale: what frames are scaled to while their colors are converted. By default they keep their size.
        exact: whether to convert colors without bias, which is slow. FFmpeg's usual conversion, which all readers of
            videos use, is one level too dark on average. Set it for frames that will be encoded again.

    Returns:
        The frames, uint8 of shape (T, height, width, 3): RGB, upright, with transparent parts over black; and the
        metadata that `sample_indices_fn` was given, with the size of the video and the indices (`frames_indices`)
        added.

    Raises:
        VideoDecodeError: the video, or a selected frame, cannot be read.
        ValueError: `sample_indices_fn` selects no frames, or indices that the video does not have.
        TypeError: `source` is not a video in one of these forms.
        ImportError: PyAV is not installed.

    Example:

    ```python
    >>> frames, metadata = read_clip("video.mp4", lambda metadata: [0, metadata.total_num_frames - 1])
    ```
    """
    with _open_source(source) as file:
        ((metadata, frames),) = _read_parts(file, sample_indices_fn, scale, exact, _Clock())
    return np.stack([frames[index] for index in metadata.frames_indices]), metadata


def iterate_parts(
    source: Any,
    sample_indices_fn: Callable[..., Iterable[int]],
    scale: Scale | None = None,
    max_frames: int = 256,
    exact: bool = False,
) -> Iterator[tuple[ClipMetadata, np.ndarray, np.ndarray]]:
    """
    Decodes selected frames of one video in parts, for selections that are too large to be held in memory.

    The frames are those of `read_clip`, and the file is read in the same way, once and from start to end. The time
    and memory limits apply to each part instead of the whole video. Listing the packets belongs to the first part.

    Args:
        source, scale, exact: as in `read_clip`.
        sample_indices_fn: as in `read_clip`; repetitions are ignored.
        max_frames: the maximum number of frames of a part. Parts of very large frames have fewer.

    Yields:
        The metadata, the indices of a part, int64 of shape (n,), and its frames, uint8 of shape (n, height, width, 3).
        Indices ascend over all parts. The metadata is the same object for all of them, unless a later part of the file
        contradicts its list of packets. Then reading starts over by decoding the whole file, with a **new** metadata
        object. Discard everything that came with an earlier one.

    Raises:
        VideoDecodeError: the video, or a selected frame, cannot be read. This may happen after some parts.
        ImportError: PyAV is not installed.

    Example:

    ```python
    >>> def two_per_second(metadata):
    ...     return metadata.times.searchsorted(np.arange(0, metadata.times[-1], 0.5))
    >>> current = None
    >>> for metadata, indices, frames in iterate_parts("lecture.mp4", two_per_second):
    ...     if metadata is not current:
    ...         current, features = metadata, {}
    ...     features.update(zip(indices, embed(frames)))
    ```
    """
    if max_frames < 1:
        raise ValueError(f"max_frames must be at least 1; got {max_frames}.")
    with _open_source(source) as file:
        clock = _Clock()
        for metadata, part in _read_parts(file, sample_indices_fn, scale, exact, clock, max_frames):
            # Keep no reference to these frames while the next ones are decoded.
            yield metadata, np.array(list(part)), np.stack([part.pop(index) for index in list(part)])
            clock.restart()


def iterate_frames(source: Any, scale: Scale | None = None) -> Iterator[tuple[np.ndarray, float | None]]:
    """
    Decodes all frames of one video, one after another. The time limit applies to each frame. The number of frames is
    not limited.

    Args:
        source: as in `read_clip`.
        scale: as in `read_clip`.

    Yields:
        A frame, uint8 of shape (height, width, 3) as from `read_clip` with `exact=True`, and its time in seconds, or
        None if the file does not specify it.

    Raises:
        VideoDecodeError: the video cannot be read to its end, or a frame is damaged.
        ImportError: PyAV is not installed.

    Example:

    ```python
    >>> for frame, time in iterate_frames("video.mp4"):
    ...     shape = frame.shape
    ```
    """
    with _open_source(source) as file:
        picture, count = _open_picture(file)
        if picture is not None:
            for index in range(count):
                start, _ = _load_picture(picture, index)
                yield _scale_image(picture_levels(picture), scale), start
            return
        with _open_video(file) as stream:
            to_rgb, clock = _RGBConverter(scale, exact=True), _Clock()
            index = -1
            for index, (frame, damage) in enumerate(_decode_all(stream, clock)):
                if damage:
                    raise VideoDecodeError(f"frame {index} is damaged ({damage})")
                yield to_rgb(frame), frame.time
                clock.restart()
            if index < 0:
                raise VideoDecodeError("no frames")


@contextmanager
def open_video(source: Any) -> Iterator[Any]:
    """
    Opens a video with the limits of `read_clip`, for copying its packets.

    Args:
        source: as in `read_clip`; not a picture.

    Yields:
        The first video stream, an `av.VideoStream`. Within the context, errors from FFmpeg become `VideoDecodeError`s
        that name the video.
    """
    with _open_source(source) as file:
        if _open_picture(file)[0] is not None:
            raise VideoDecodeError("a picture, not a video")
        with _open_video(file) as stream:
            yield stream


def list_packets(stream: Any) -> "tuple[PacketList, ClipMetadata] | None":
    """
    Lists the packets of a stream from `open_video`, from its beginning, without decoding them.

    Returns:
        The list, and the metadata of the video; or None if the packets do not correspond to one frame each.
    """
    packets = _index_packets(stream, _Clock())
    if packets is None:
        return None
    return packets, _describe(stream, packets.shown_times, packets.keyframes)


class _ContradictionError(Exception):
    """Decoding contradicts the list of packets, or a frame is damaged: the whole file has to be decoded."""


def _read_parts(
    file: BinaryIO,
    sample_indices_fn: Callable,
    scale: Scale | None,
    exact: bool,
    clock: "_Clock",
    max_frames: int | None = None,
) -> Iterator[tuple[ClipMetadata, dict[int, np.ndarray]]]:
    """
    Yields the metadata of a video or picture and the selected frames by their indices, in parts of `max_frames` frames
    or, by default, in one part. If the metadata is a new object, the frames start over.
    """
    picture, count = _open_picture(file)
    if picture is not None:
        metadata = _sample_picture(picture, count, sample_indices_fn, clock)
        for part in _in_parts(_decode_picture(picture, metadata, scale, clock, max_frames), max_frames):
            yield metadata, part
        return
    listed = None
    with _open_video(file) as stream:
        packets = _index_packets(stream, clock)
        if packets is not None:
            listed = _sample(stream, packets.shown_times, sample_indices_fn, packets.keyframes)
            to_rgb = _RGBConverter(scale, exact, listed, max_frames is not None)
            frames = _decode_by_time(stream, packets, listed.frames_indices, to_rgb, clock)
            with suppress(_ContradictionError, av.error.FFmpegError):
                for part in _in_parts(frames, max_frames, _capture_errors):
                    yield listed, part
                return
    with _open_video(file) as stream:
        stamps = _list_frames(stream, clock)
    with _open_video(file) as stream:
        metadata = _sample_again(stream, stamps, sample_indices_fn, listed)
        to_rgb = _RGBConverter(scale, exact, metadata, max_frames is not None)
        for part in _in_parts(_decode_by_count(stream, metadata.frames_indices, to_rgb, clock), max_frames):
            yield metadata, part


def _in_parts(
    frames: Iterator[tuple[int, np.ndarray]],
    max_frames: int | None,
    while_decoding: Callable[[], AbstractContextManager] = nullcontext,
) -> Iterator[dict[int, np.ndarray]]:
    """Collects frames by their indices, in parts of at most `max_frames` (None: all) frames and `_MAX_CLIP` bytes."""
    while True:
        part: dict[int, np.ndarray] = {}
        with while_decoding():
            for index, frame in frames:
                part[index] = frame
                if max_frames and (len(part) == max_frames or (len(part) + 1) * frame.nbytes > _MAX_CLIP):
                    break
        if not part:
            return
        yield part


def _sample(
    stream: Any, stamps: list[int | None] | np.ndarray, sample_indices_fn: Callable, keyframes: list[int] | None = None
) -> ClipMetadata:
    """Returns the metadata of a stream whose frames have these time stamps, with the indices selected from them."""
    metadata = _describe(stream, stamps, keyframes)
    _select(metadata, sample_indices_fn)
    return metadata


def _describe(stream: Any, stamps: list[int | None] | np.ndarray, keyframes: list[int] | None = None) -> ClipMetadata:
    """Returns the metadata of a stream whose frames have these time stamps."""
    num_frames = len(stamps)
    if num_frames == 0:
        raise VideoDecodeError("no frames")
    fps = float(stream.average_rate) if stream.average_rate else None
    duration: float | None
    if stream.duration:
        duration = float(stream.duration * stream.time_base)
    elif stream.container.duration:
        duration = stream.container.duration / av.time_base
    else:
        duration = num_frames / fps if fps else None
    metadata = ClipMetadata(num_frames, fps=fps, duration=duration, video_backend="pyav", keyframes=keyframes)
    metadata.times = _frame_times(stamps, stream.time_base, fps)
    metadata.origin = None if stamps[0] is None else int(stamps[0]) * Fraction(stream.time_base)
    return metadata


def _sample_again(
    stream: Any, stamps: list[int | None], sample_indices_fn: Callable, listed: ClipMetadata | None
) -> ClipMetadata:
    """Returns new metadata of a stream that was decoded, with the same selection if its frames are as listed."""
    if listed is not None and listed.times is not None:
        times = _frame_times(stamps, stream.time_base, listed.fps)
        if times is not None and np.array_equal(times, listed.times):
            return dataclasses.replace(listed)
    return _sample(stream, stamps, sample_indices_fn)


def _frame_times(
    stamps: Sequence[int | None] | np.ndarray, time_base: Fraction, fps: float | None
) -> np.ndarray | None:
    """Returns the times in seconds of frames from their time stamps or their rate; None if both are unknown."""
    if len(stamps) == 1:
        return np.zeros(1)
    stamps = np.asarray(stamps, np.float64)  # None becomes NaN
    times = (stamps - stamps[0]) * time_base.numerator / time_base.denominator
    if (np.diff(times) > 0).all():
        return times
    return np.arange(len(stamps)) / fps if fps else None


def _select(metadata: ClipMetadata, sample_indices_fn: Callable) -> None:
    metadata.frames_indices = [int(index) for index in sample_indices_fn(metadata=metadata)]
    if not metadata.frames_indices:
        raise ValueError("no frames were selected")
    if wrong := [index for index in metadata.frames_indices if not 0 <= index < metadata.total_num_frames]:
        raise ValueError(f"frames {wrong} were selected from a video of {metadata.total_num_frames} frames")


class _Clock:
    """The remaining time for reading a clip, or a part of it."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.deadline = time.monotonic() + _SECONDS

    def check(self) -> None:
        if time.monotonic() > self.deadline:
            raise VideoDecodeError(f"reading it takes more than {_SECONDS} seconds")


def check_clip_size(count: int, height: int, width: int) -> None:
    if 3 * count * height * width > _MAX_CLIP:
        raise VideoDecodeError(
            f"{count} frames of {width}x{height} pixels take more than {_MAX_CLIP} bytes: ask for fewer (num_frames)"
        )


# --- Files ----------------------------------------------------------------------------------------------------------

_url_reader: Callable[[str], bytes | str] | None = None


def register_url_reader(reader: Callable[[str], bytes | str]) -> None:
    """
    Sets the function that reads URLs. This file does not contain an HTTP client; the region-learner package registers
    its own.

    Args:
        reader: called with a URL, returns the bytes of the file, or its path if it is local. It raises an `OSError` if
            the URL cannot or must not be read.
    """
    global _url_reader
    _url_reader = reader


@contextmanager
def _open_source(source: Any) -> Iterator[BinaryIO]:
    """Opens a video or picture. Errors within the context become `VideoDecodeError`s of one line that name it."""
    if av is None:
        raise ImportError("Decoding videos needs PyAV: pip install av")
    name, content = _name_and_content(source)
    file: BinaryIO | None = None
    try:
        file = _open_content(content)
        if file.seek(0, io.SEEK_END) == 0:
            raise VideoDecodeError("empty file")
        yield file
    except VideoDecodeError as error:
        raise VideoDecodeError(f"{name}: {error}") from None
    except av.error.FFmpegError as error:
        reason = (file and _describe_text(file)) or error.strerror
        if error.errno in (errno.EINVAL, errno.ENOMEM):  # FFmpeg refuses to allocate more than 2 GiB at once
            reason = f"damaged, or its frames have more than {_MAX_PIXELS} pixels"
        raise VideoDecodeError(f"{name}: {reason}") from error
    except OSError as error:
        raise VideoDecodeError(f"{name}: {error.strerror or error}") from error
    except ValueError as error:  # raised by `sample_indices_fn`, which does not know the name
        if type(error) is ValueError:
            raise ValueError(f"{name}: {error}") from error
        error.add_note(f"The video is {name}")
        raise
    finally:
        if file is not None:
            file.close()


def _name_and_content(source: Any) -> tuple[str, str | bytes | bytearray | memoryview]:
    """Returns the name of a video for messages, and its path, URL or bytes."""
    name = "<bytes>"
    if isinstance(source, Mapping):
        name = source.get("path") or name
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    elif hasattr(source, "read"):
        name = getattr(source, "name", "<file>")
        if source.seekable():
            source.seek(0)
        source = source.read()
        if isinstance(source, str):
            raise TypeError(f"{name} was opened as text: open videos in binary mode, open(path, 'rb').")
    if isinstance(source, bytes | bytearray | memoryview):
        return str(name), source
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            "A video must be a path, URL, bytes, binary file, or a dictionary with its path or bytes, not "
            f"{type(source).__name__}."
        )
    return os.fspath(source), os.fspath(source)


def _open_content(content: str | bytes | bytearray | memoryview) -> BinaryIO:
    """Opens a path, URL or bytes, as a file without a name: FFmpeg interprets names as patterns or protocols."""
    if isinstance(content, str) and content.startswith(("http://", "https://", "file://")):
        if _url_reader is None:
            raise VideoDecodeError(
                "URLs are only read with the region-learner package (import region_learner before loading the "
                "processor); without it, give a path, bytes or a file object"
            )
        content = _url_reader(content)
    if not isinstance(content, str):
        return io.BytesIO(content)
    if not os.path.isfile(content):
        raise VideoDecodeError("not a file" if os.path.exists(content) else "no such file")
    file: Any = open(content, "rb")  # noqa: SIM115 # closed by the caller
    del file.raw.name
    return file


def _describe_text(file: BinaryIO) -> str | None:
    """Describes a text file, often an error page saved instead of the video. Returns None if it is not text."""
    file.seek(0)
    head = file.read(60)
    if head.startswith(b"version https://git-lfs."):
        return "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
    if head.isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return f"text, not a video or picture: it begins with {' '.join(head[:40].decode().split())!r}"
    return None


def any_metadata() -> dict[str, Any]:
    """Returns arguments for `av.open` that accept metadata in any encoding. PyAV 19 does so without arguments."""
    return {"metadata_errors": "ignore"} if hasattr(av.container.Container, "metadata_errors") else {}


@contextmanager
def _open_video(file: BinaryIO) -> Iterator[Any]:
    """Opens the first video stream of a file, ready to be decoded."""
    size = file.seek(0, io.SEEK_END)
    if _count_samples(file, size) > max(size, 2**20):  # FFmpeg would allocate 50 bytes for each
        raise VideoDecodeError(f"damaged: its tables list more frames than its {size} bytes can hold")
    file.seek(0)
    # FFmpeg would decode some frames to find out what is in the file, but headers are enough for that.
    options = {"format_whitelist": _FORMATS, "max_pixels": str(_MAX_PIXELS), "skip_frame": "all"}
    try:
        container = av.open(file, options=options, **any_metadata())
    except av.error.ArgumentError as error:
        raise VideoDecodeError(_describe_text(file) or "not a video or picture of a supported format") from error
    with container:
        cover = av.stream.Disposition.attached_pic  # the picture in a sound file is not a video
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise VideoDecodeError("no video stream")
        if len(streams) > 1 and container.metadata.get("major_brand") in _HEIF_BRANDS:
            raise VideoDecodeError("a HEIF picture in several parts, which cannot be read: save it as JPEG or PNG")
        context = streams[0].codec_context
        if context is None:
            raise VideoDecodeError("no decoder for this video codec")
        if context.width * context.height > _MAX_PIXELS:
            raise VideoDecodeError(f"frames of {context.width}x{context.height} pixels, more than {_MAX_PIXELS}")
        # The size may change later on, and the decoder must not make up a picture if data is damaged.
        context.options = {"max_pixels": str(_MAX_PIXELS), "err_detect": "explode"}
        context.thread_count = 1  # threads gain little on a few frames, and data loaders have many processes
        yield streams[0]


def _count_samples(file: BinaryIO, end: int) -> int:
    """
    Counts the samples that are listed by short tables in the boxes of an MP4 file of `end` bytes.

    Raises:
        VideoDecodeError: its boxes are compressed, so that the samples cannot be counted.
    """
    parsed: list[tuple[int, int]] = []  # where the contents of boxes start and end
    start, is_mp4 = 0, False
    while start + 8 <= end and len(parsed) < _MAX_BOXES:
        file.seek(start)
        header = file.read(24)
        size, name, first = int.from_bytes(header[:4], "big"), header[4:8], 8
        if size == 1:  # a size of 64 bits follows
            size, first = int.from_bytes(header[8:16], "big"), 16
        stop = min(start + size, end) if size else end
        if stop < start + 8:
            break
        is_mp4 = is_mp4 or name in _MP4_BOXES
        if name not in _OPAQUE_BOXES or (name != b"mdat" and header[first + 4 : first + 8] in _IN_MOOV):
            parsed.append((start + first, stop))
        start = stop
    return sum(_count_listed(file, *place) for place in parsed) if is_mp4 else 0


def _count_listed(file: BinaryIO, start: int, end: int) -> int:
    """Counts the samples that are listed by short tables in the bytes of a file from `start` to `end`."""
    count = 0
    while start < end:
        file.seek(start)
        content = file.read(min(_SCANNED_AT_ONCE + 16, end - start))
        if b"cmov" in content and b"dcom" in content:
            raise VideoDecodeError(
                "its headers are compressed, which is not supported: write them without compression"
            )
        for found in _TABLE.finditer(content):
            if found.start() >= _SCANNED_AT_ONCE:  # found again in the next part
                continue
            table = content[found.end() : found.end() + 12]
            if found.group() == b"stsz" and table[4:8] != bytes(4):  # all samples have one size
                count += int.from_bytes(table[8:12], "big")
            elif found.group() == b"trun" and len(table) >= 8 and not table[2] & 0xF:  # no entries for single samples
                count += int.from_bytes(table[4:8], "big")
        start += _SCANNED_AT_ONCE
    return count


# --- Packets --------------------------------------------------------------------------------------------------------


class PacketList:
    """
    The packets of a video. They are stored in arrays, because long recordings have millions of them. The position of a
    packet is its place in decoding order; the index of a frame is its place among those that are shown, in display
    order.

    Attributes:
        times: time stamps by position.
        shown: positions of the frames that are shown, in display order.
        shown_times: their time stamps.
        keys: positions of the key frames, in display order.
        keyframes: indices of the key frames that are shown.
        is_reordered: whether display order differs from decoding order.
        packets: PyAV's packets, and None for the end, unless they are too large to be kept in memory. Keeping them
            saves a second read.
    """

    def __init__(self, times: np.ndarray, is_key: np.ndarray, is_shown: np.ndarray, packets: list[Any] | None):
        order = np.argsort(times, kind="stable")
        self.times, self.packets = times, packets
        self.shown = order[is_shown[order]]
        self.shown_times = times[self.shown]
        self.keys = order[is_key[order]]
        self.keyframes: list[int] = np.flatnonzero(is_key[self.shown]).tolist()
        self.is_reordered = bool((np.diff(order) < 0).any())

    def frame_index(self, time: int) -> int:
        """Returns the index of the frame that is shown at a time, or of the next one after it."""
        return int(self.shown_times.searchsorted(time))

    def read_from(self, stream: Any, position: int) -> Iterator[Any]:
        """Yields packets from a position on, then None. Yields nothing if the container cannot seek there."""
        if self.packets is not None:
            return iter(self.packets[position:])
        time = int(self.times[position])
        stream.container.seek(time, stream=stream)
        packets = dropwhile(lambda packet: packet.pts != time, _demux(stream))
        return (packet if packet.size else None for packet in packets)


def _identifies_frames(times: np.ndarray, is_key: np.ndarray) -> bool:
    """
    Returns whether time stamps, in decoding order, are unique and in an order that encoders write.

    A key frame is shown after all frames that precede it in the file. Frames that follow it but are shown before it
    come immediately after it. Otherwise time starts again, as in joined recordings. (Decoding time stamps do not help:
    those of Matroska are guesses.) Frames shown before the first key frame may or may not be decoded, because the
    frames that they depend on were cut off.
    """
    if not is_key[0] or times[0] > times.min() or len(np.unique(times)) < len(times):
        return False
    if (times[is_key] < np.maximum.accumulate(times)[is_key]).any():
        return False
    is_later = times > times[is_key][np.cumsum(is_key) - 1]  # than the last key frame before it in the file
    return not (is_later[:-1] & ~is_later[1:] & ~is_key[1:]).any()


def _index_packets(stream: Any, clock: _Clock) -> PacketList | None:
    """Lists the packets of a stream without decoding them; None if they do not correspond to one frame each."""
    times, is_key, is_shown = array("q"), bytearray(), bytearray()
    packets: list[Any] | None = []
    size = 0
    codec = stream.codec_context.codec.canonical_name  # the same for all decoders of a codec
    for packet in _demux(stream):
        if not packet.size:  # the end of the stream
            continue
        if packet.pts is None or packet.is_corrupt or not _shows_frame(packet, codec):
            return None
        times.append(packet.pts)
        is_key.append(packet.is_keyframe)
        is_shown.append(not packet.is_discard)  # an edit list may cut it out
        size += packet.size + _PACKET
        if packets is not None:
            packets.append(packet)
            packets = packets if size <= _MAX_KEPT else None
        if len(times) > _MAX_FRAMES:
            raise VideoDecodeError(f"more than {_MAX_FRAMES} frames")
        clock.check()
    arrays = np.frombuffer(times, np.int64), np.frombuffer(is_key, bool), np.frombuffer(is_shown, bool)
    if not times or not _identifies_frames(*arrays[:2]):
        return None
    return PacketList(*arrays, packets and [*packets, None])


def _shows_frame(packet: Any, codec: str) -> bool:
    """Returns whether a packet certainly shows a frame."""
    if codec == "vp8":
        return bool(memoryview(packet)[0] & 0x10)  # `show_frame`, RFC 6386 section 9.1
    return codec in _ALWAYS_SHOW or packet.size >= _SHOWS_NOTHING


def _demux(stream: Any) -> Iterator[Any]:
    """Yields the packets of a stream, and at its end an empty one."""
    try:
        yield from stream.container.demux(stream)
    except IndexError as error:  # raised by PyAV if streams appear later on
        raise VideoDecodeError("damaged: new streams appear in the middle of the file") from error


# --- Decoding -------------------------------------------------------------------------------------------------------


def _decode_by_time(
    stream: Any, packets: PacketList, wanted: Iterable[int], to_rgb: "_RGBConverter", clock: _Clock
) -> Iterator[tuple[int, np.ndarray]]:
    """
    Decodes the wanted frames, each from the key frame before it. Yields their indices, in ascending order, and the
    frames. `_capture_errors` must have been entered.

    Raises:
        _ContradictionError: a frame is damaged, or decoding contradicts the packets: it does not begin with a key
            frame, or a frame is not where its time stamp says.
    """
    positions = packets.shown[sorted(set(wanted))]
    times = packets.times[positions]
    keys = packets.keys[packets.times[packets.keys].searchsorted(times, "right") - 1]
    missing = len(positions)
    for key, rows in groupby(zip(keys.tolist(), times.tolist(), positions.tolist()), key=itemgetter(0)):
        group = {at: position for _, at, position in rows}  # the positions of wanted frames by their times
        start = int(packets.times[key])
        expected = packets.frame_index(start)
        # Containers may mark any frame as a key frame, and some decoders make up missing references.
        is_entered = key == 0
        for frame in _decode_from(stream, packets, key, group, clock):
            if frame.pts is None:
                raise _ContradictionError
            if frame.pts < start:
                continue  # incomplete without the frames that precede the key frame
            is_intra = frame.key_frame or frame.pict_type == av.video.frame.PictureType.I
            is_entered = is_entered or (frame.pts == start and is_intra)
            index = packets.frame_index(frame.pts)
            # If time stamps are in decoding order, the container may have made them up (AVI). They are trusted if the
            # frames come one after another. Time stamps in another order come from the encoder.
            is_expected = index >= expected if packets.is_reordered else index == expected
            if frame.is_corrupt or not is_entered or not is_expected:
                raise _ContradictionError
            if frame.pts in group:
                missing -= 1
                yield index, to_rgb(frame)
            expected = index + 1
    if missing:
        raise _ContradictionError


def _decode_from(
    stream: Any, packets: PacketList, key: int, wanted: Mapping[int, int], clock: _Clock
) -> Iterator[Any]:
    """
    Decodes from the key frame at position `key` until the decoder has returned all wanted frames, or reports damage.
    `wanted` maps the times of the frames to their positions.

    If frames are reordered, some are skipped: those that are neither wanted nor used as references by others, and
    those that would be decoded only to put the wanted ones in order, that is, all after the last wanted packet.
    """
    context = stream.codec_context
    if context.is_open:
        context.flush_buffers()
    can_skip = packets.is_reordered and context.name in _SKIPS_NON_REFERENCE
    start = latest = int(packets.times[key])
    last = int(packets.times[max(wanted.values())])
    missing = set(wanted)
    for packet in packets.read_from(stream, key):
        if packet is not None:
            # The damage of a skipped frame would not be noticed. So frames in display order are decoded, which are
            # hardly ever non-reference frames, and so are those with a run of zeros, which encoders do not write.
            skip = can_skip and packet.pts < latest and packet.pts not in wanted and bytes(4) not in bytes(packet)
            context.skip_frame = "NONREF" if skip else "DEFAULT"
            latest = max(latest, packet.pts)
        clock.check()
        frames, damage = _decode(context, packet)
        if damage and (packet is None or packet.pts >= start):  # earlier ones lack the frames that they depend on
            return
        is_last = packet is None or (packets.is_reordered and packet.pts == last)
        if packet is not None and is_last:
            held_back, damage = _decode(context, None)  # held back to put frames in order
            if damage:
                return
            frames += held_back
        yield from frames
        missing.difference_update(frame.pts for frame in frames)
        if is_last or not missing:
            return


def _decode_all(stream: Any, clock: _Clock) -> Iterator[tuple[Any, str | None]]:
    """
    Yields all frames, each with a description of its damage, or None. After damage, all frames up to the next key
    frame count as damaged.
    """
    damage, since = None, None
    for packet in _demux(stream):
        with _capture_errors():  # once per packet, because others may log while the caller waits for the next frame
            frames, reported = _decode(stream.codec_context, packet)
        if reported:
            damage, since = reported, packet.pts
        for frame in frames:
            if frame.is_corrupt:
                damage, since = damage or "incomplete", frame.pts
            elif damage and frame.key_frame:
                is_later = not reported if frame.pts is None or since is None else frame.pts > since
                damage = None if is_later else damage
            yield frame, damage
        clock.check()


def _list_frames(stream: Any, clock: _Clock) -> list[int | None]:
    """Returns the time stamps of all frames, by decoding them."""
    stamps: list[int | None] = []
    for frame, _ in _decode_all(stream, clock):
        stamps.append(frame.pts)
        if len(stamps) > _MAX_FRAMES:
            raise VideoDecodeError(f"more than {_MAX_FRAMES} frames")
    return stamps


def _decode_by_count(
    stream: Any, wanted: Iterable[int], to_rgb: "_RGBConverter", clock: _Clock
) -> Iterator[tuple[int, np.ndarray]]:
    """Decodes the wanted frames and all before them. Yields the ascending indices and the frames that are wanted."""
    wanted = set(wanted)
    for index, (frame, damage) in enumerate(islice(_decode_all(stream, clock), max(wanted) + 1)):
        if index in wanted:
            if damage:
                raise VideoDecodeError(f"frame {index} is damaged ({damage})")
            yield index, to_rgb(frame)


def _decode(context: Any, packet: Any) -> tuple[list[Any], str | None]:
    """
    Returns the frames of a packet, and the damage that the decoder concealed but logged, if any. `_capture_errors`
    must have been entered in this thread.
    """
    lines = _captured.lines
    lines.clear()
    frames = context.decode(packet)
    errors = [message for level, _, message in lines if level <= av.logging.ERROR]
    return frames, " ".join(errors[0].split()) if errors else None


_captured = threading.local()
_log_lock = threading.Lock()
_log_users = 0
_log_before: tuple[int | None, bool] = (None, True)


@contextmanager
def _capture_errors() -> Iterator[list[tuple[int, str, str]]]:
    """
    Captures the errors that decoders log in this thread. The log level belongs to the process, and is restored when
    the last thread leaves the context.
    """
    global _log_users, _log_before
    with _log_lock:
        if _log_users == 0:
            _log_before = av.logging.get_level(), av.logging.get_skip_repeated()
            av.logging.set_level(max(_log_before[0] or 0, av.logging.ERROR))
            av.logging.set_skip_repeated(False)
        _log_users += 1
    try:
        before = getattr(_captured, "lines", None)
        with av.logging.Capture(local=True) as lines:
            _captured.lines = lines
            yield lines
    finally:
        _captured.lines = before
        with _log_lock:
            _log_users -= 1
            if _log_users == 0:
                av.logging.set_level(_log_before[0])
                av.logging.set_skip_repeated(_log_before[1])


# --- Colors, orientation and size ----------------------------------------------------------------------------------


class _RGBConverter:
    """
    Converts the frames of one clip to upright RGB (height, width, 3). All get the size of the first frame, because the
    size may change within a stream. They share one converter, because its setup takes longer than converting a small
    frame.

    Args:
        scale, exact: see `read_clip`.
        metadata: the metadata of the clip, to which the height and width of the first frame are added.
        in_parts: whether a single frame has to fit into memory, instead of all selected frames.
    """

    def __init__(
        self,
        scale: Scale | None,
        exact: bool,
        metadata: ClipMetadata | None = None,
        in_parts: bool = False,
    ):
        is_picture = metadata is not None and metadata.total_num_frames == 1
        self.scale = None if is_picture and scale is not None and not scale.of_pictures else scale
        self.metadata, self.in_parts = metadata, in_parts
        self.converter = av.video.reformatter.VideoReformatter()
        flags = av.video.reformatter.Interpolation
        self.interpolation = flags[self.scale.interpolation] if self.scale else flags.BILINEAR
        if exact:
            self.interpolation |= flags.ACCURATE_RND | flags.FULL_CHR_H_INT
        self.size: tuple[int, int] | None = None

    def __call__(self, frame: Any) -> np.ndarray:
        is_transposed, flips_rows, flips_columns = _orientation(frame)
        if self.size is None:
            upright = (frame.width, frame.height) if is_transposed else (frame.height, frame.width)
            self.size = self.scale.size_for(*upright) if self.scale else upright
            if self.metadata is not None:
                self.metadata.height, self.metadata.width = upright
                check_clip_size(1 if self.in_parts else len(self.metadata.frames_indices), *self.size)
        height, width = self.size[::-1] if is_transposed else self.size
        has_alpha = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
        converted = self.converter.reformat(
            frame,
            format="rgba" if has_alpha else "rgb24",
            height=height,
            width=width,
            interpolation=self.interpolation,
            threads=1,
        )
        image = converted.to_ndarray()
        image = _over_black(Image.fromarray(image)) if has_alpha else image
        image = image.swapaxes(0, 1) if is_transposed else image
        return image[:: -1 if flips_rows else 1, :: -1 if flips_columns else 1]


def _orientation(frame: Any) -> tuple[bool, bool, bool]:
    """Returns how to turn a frame upright: whether to transpose it, and then to flip its rows and its columns."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know all side data, such as EXIF
        quarter_turns = round(frame.rotation / 90) % 4  # counterclockwise
        return quarter_turns % 2 == 1, quarter_turns in (1, 2), quarter_turns in (2, 3)
    if matrix is None:
        return False, False, False
    # Column p and row q are moved to p' = a p + c q, q' = b p + d q (libavutil/display.h). Any remaining rotation of
    # less than a right angle, or shearing, is ignored.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    is_transposed = min(abs(b), abs(c)) > max(abs(a), abs(d))
    return (True, b < 0, c < 0) if is_transposed else (False, d < 0, a < 0)


def _over_black(image: Image.Image) -> np.ndarray:
    """Blends an image of mode RGBA over black: uint8 (height, width, 3)."""
    return np.ascontiguousarray(np.asarray(image.convert("RGBa"))[..., :3])


def _scale_image(image: np.ndarray, scale: Scale | None) -> np.ndarray:
    size = scale.size_for(*image.shape[:2]) if scale is not None and scale.of_pictures else image.shape[:2]
    if scale is None or size == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling[scale.interpolation]))


# --- Pictures -------------------------------------------------------------------------------------------------------


def _open_picture(file: BinaryIO) -> tuple[Image.Image | None, int]:
    """
    Opens a picture. Returns it and the number of its frames, which may be more than 1 for WebP and AVIF. Returns None
    in its place for files that FFmpeg reads: videos, GIF and animated PNG.
    """
    Image.init()
    known = [name for name in _PICTURES if name in Image.OPEN]
    with _pillow_errors():
        try:
            image = Image.open(file, formats=known)
        except UnidentifiedImageError:
            file.seek(0)
            if _begins_as_picture(file.read(16), known):
                raise VideoDecodeError("damaged: its header cannot be read") from None
            return None, 0
        count: int = getattr(image, "n_frames", 1)
        if image.format == "PNG":
            if count > 1:
                return None, 0
            image.verify()  # because decoding ignores the checksums
            image = Image.open(file, formats=["PNG"])
    width, height = image.size
    if width * height > _MAX_PICTURE_PIXELS:
        raise VideoDecodeError(f"a picture of {width}x{height} pixels, more than {_MAX_PICTURE_PIXELS} pixels")
    if image.format in ("JPEG", "MPO"):
        if file.seek(0, io.SEEK_END) > _MAX_JPEG:
            raise VideoDecodeError(f"a JPEG file of more than {_MAX_JPEG} bytes")
        file.seek(0)
        _check_jpeg(file.read())
    return image, count if image.format in ("WEBP", "AVIF") else 1


def _begins_as_picture(head: bytes, formats: list[str]) -> bool:
    """Returns whether a file begins like a picture. In a damaged one, FFmpeg might find another picture."""
    if head[4:8] == b"ftyp":  # Pillow also claims HEIF, which FFmpeg reads
        return head[8:12] in (b"avif", b"avis")
    if head[:4] == b"\xff\xd8\xff\xf7":  # JPEG-LS, which FFmpeg reads
        return False
    accepts = [accept for _, accept in map(Image.OPEN.__getitem__, formats) if accept is not None]
    return any(accept(head) for accept in accepts)


def _load_picture(image: Image.Image, index: int) -> tuple[float, float]:
    """Decodes one frame of a picture or animation. Returns its start and end in seconds."""
    with _pillow_errors():
        image.seek(index)
        image.load()
    start = image.info.get("timestamp", 0) / 1000
    return start, start + image.info.get("duration", 0) / 1000


def _sample_picture(image: Image.Image, count: int, sample_indices_fn: Callable, clock: _Clock) -> ClipMetadata:
    """Returns the metadata of a picture or animation, with the indices that are selected from it."""
    end = 1 / _PICTURE_FPS
    stamps = [0] * count  # milliseconds
    for index in range(count if count > 1 else 0):
        start, end = _load_picture(image, index)
        stamps[index] = round(1000 * start)
        clock.check()
    fps = count / end if end else None
    metadata = ClipMetadata(count, fps=fps, duration=end, video_backend="pillow", keyframes=[0])
    metadata.times = _frame_times(stamps, Fraction(1, 1000), fps)
    _select(metadata, sample_indices_fn)
    return metadata


def _decode_picture(
    image: Image.Image, metadata: ClipMetadata, scale: Scale | None, clock: _Clock, max_frames: int | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the ascending indices of the selected frames of a picture or animation, and the frames."""
    for index in sorted(set(metadata.frames_indices)):  # frames of an animation need those before them
        _load_picture(image, index)
        levels = picture_levels(image)
        metadata.height, metadata.width = levels.shape[:2]
        frame = _scale_image(levels, scale)
        check_clip_size(1 if max_frames else len(metadata.frames_indices), *frame.shape[:2])
        clock.check()
        yield index, frame


def _check_jpeg(data: bytes) -> None:
    """
    Raises an error for a JPEG file in which FFmpeg notices damage, because Pillow decodes damaged files without a
    warning. Decoding at an eighth of the size takes a third of the time that Pillow takes.
    """
    if (scans := data.count(b"\xff\xda")) > _MAX_SCANS:  # each takes time in proportion to the whole picture
        raise VideoDecodeError(f"a JPEG file of {scans} scans, more than {_MAX_SCANS}")
    context = av.CodecContext.create("mjpeg", "r")
    context.thread_count = 1
    context.options = {"err_detect": "explode", "lowres": "3", "max_pixels": str(2**31 - 1)}
    try:
        with _capture_errors():
            for packet in (av.Packet(data), None):
                if damage := _decode(context, packet)[1]:
                    raise VideoDecodeError(f"damaged ({damage})")
    except av.error.PatchWelcomeError:  # such as arithmetic coding, which Pillow supports
        return


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """Turns the various errors of Pillow's plugins for damaged files into a `VideoDecodeError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged metadata, and about sizes, which are checked here
            yield
    except VideoDecodeError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise VideoDecodeError(f"damaged, or of a kind that cannot be read ({reason})") from error


def picture_levels(image: Image.Image, do_convert_rgb: bool = True) -> np.ndarray:
    """
    Converts a PIL image to uint8 (height, width, C), upright.

    Args:
        image: an image of any mode with an unambiguous range. 16-bit gray is reduced to 8 bits.
        do_convert_rgb: whether C is 3 for every mode, with transparent parts over black. Otherwise gray and RGB images
            keep their channels, including alpha.

    Raises:
        VideoDecodeError: the image has 32-bit integers or floats, or another mode whose range is unknown.
    """
    mode, format, tags = image.mode, image.format, getattr(image, "tag_v2", {})
    image.load()
    with suppress(Exception):  # damaged metadata does not matter
        image = ImageOps.exif_transpose(image)
    if mode.startswith("I;16") or (mode == "I" and format in ("PNG", "PPM")):  # 16-bit gray
        if tags.get(_TIFF_BITS, (16,)) != (16,) or tags.get(_TIFF_PHOTOMETRIC, 1) != 1:
            raise VideoDecodeError(
                "a TIFF image with fewer than 16 bits, or in which 0 is white: save it as 8-bit RGB"
            )
        values = np.array(image).astype(np.int64)
        levels = (values * 255 + 32767) // 65535
        levels[values == image.info.get("transparency")] = 0
        gray = levels.astype(np.uint8)[..., None]
        return gray.repeat(3, axis=-1) if do_convert_rgb else gray
    if mode in ("I", "F"):
        raise VideoDecodeError(
            f"a PIL image of mode {mode!r}, whose range is unknown: scale it to 0..255 and convert it to uint8"
        )
    if not do_convert_rgb and mode in ("L", "LA", "RGB", "RGBA"):
        return np.atleast_3d(np.array(image))
    try:
        if image.has_transparency_data:
            image = image.convert("LA") if mode == "La" else image
            return _over_black(image.convert("RGBA"))
        return np.array(image.convert("RGB"))
    except ValueError as error:
        raise VideoDecodeError(f"a PIL image of mode {mode!r}, which Pillow does not convert to RGB") from error

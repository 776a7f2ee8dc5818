# Copyright 2026 The RegionLearner authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in
# compliance with the License. You may obtain a copy at http://www.apache.org/licenses/LICENSE-2.0
"""Reads frames of videos with PyAV, and pictures with Pillow, from local files, bytes and file objects.

Selected frames are exactly those that decoding the whole file would give. Files may come from strangers: size, memory
and time are bounded, and what a decoder reports as damaged is an error.
"""

import dataclasses
import errno
import io
import logging
import math
import os
import re
import struct
import threading
import time
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features
from transformers.video_utils import VideoMetadata

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]


# Pixels of a frame: the maximum of H.264, H.265 and AV1 (level 6.2), 8K included. Decoders hold up to 16 frames.
_MAX_PIXELS = 35_651_584
_MAX_PICTURE_PIXELS = 2**26
_MAX_FRAMES = 2**24  # of a video: 38 hours at 120 frames per second
_MAX_CLIP = 2**31  # bytes of the selected frames
_MAX_KEPT = 2**25  # bytes of packets that are kept in memory
_PACKET = 1500  # bytes that PyAV and FFmpeg use for a packet, beside its data
_SECONDS = 600  # for one clip: a few bytes can stand for very many frames
_PICTURE_FPS = 25  # FFmpeg's frame rate for a picture

# The demuxers of FFmpeg that may be used: videos, pictures, and sound, whose pictures are covers. Left out are those
# that open other files and addresses, run scripts, or draw text.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,mxf,nut,ivf,obu,rm,wtv,dv,"
    "swf,yuv4mpegpipe,h264,hevc,vvc,m4v,h261,h263,vc1,mjpeg,mjpeg_2000,gif,apng,webp,webp_pipe,jpeg_pipe,jpegls_pipe,"
    "jpegxl_pipe,jpegxl_anim,j2k_pipe,png_pipe,bmp_pipe,tiff_pipe,pbm_pipe,pgm_pipe,ppm_pipe,pam_pipe,mp3,wav,flac,aac"
)
_HEIF_BRANDS = {"heic", "heix", "heim", "heis", "mif1"}
# Codecs in which every packet shows a frame, except for some of VP8. In others, such as MPEG-4, a packet smaller than
# `_SHOWS_NOTHING` bytes may only say that nothing has changed.
_ALWAYS_SHOW = {"h264", "hevc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mjpeg", "gif", "prores", "dnxhd"}
_SHOWS_NOTHING = 32
# Codecs in which FFmpeg can skip non-reference frames without changing other frames. Not H.265, whose flag refers to a
# temporal layer only, nor VP8, where a non-reference frame may define the segments of the next one.
_SKIPS_NON_REFERENCE = {"h264", "mpeg1video", "mpeg2video", "mpeg4"}
# The boxes of MP4 (ISO/IEC 14496-12) that contain the tables of samples.
_OUTER_BOXES = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"}

# Pillow's name of the format of a picture, by its first bytes.
_PICTURE_HEADS = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "AVIF": rb"....ftyp(....)*avi[fs]",
    "TIFF": rb"II\*\0|MM\0\*",
    "JPEG2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "BMP": rb"BM....\0\0\0\0",
    "PPM": rb"P[1-6]\s",
}
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262


class VideoDecodeError(ValueError):
    """A video, or a selected frame of it, cannot be read. The message says in one line which video, and why."""


class PictureError(ValueError):
    """A picture cannot be read, or its values cannot be interpreted as levels within 0..255."""


@dataclasses.dataclass
class ClipMetadata(VideoMetadata):
    """
    The metadata of a video, from which frames are sampled.

    Args:
        keyframes: sorted indices of the frames that can be decoded without any other frame; None if unknown.
    """

    keyframes: list[int] | None = None
    frames_indices: list[int] = dataclasses.field(default_factory=list)


class Scale(NamedTuple):
    """
    How frames are scaled while they are decoded.

    Args:
        size_for: called with the height and width of an upright frame, returns the height and width to scale it to.
        interpolation: name of a member of PyAV's `Interpolation`. All of them antialias when shrinking.
        of_pictures: whether picture files are scaled as well. If not, they remain equal to opened pictures.
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
    selected frame, and time stamps identify frames. If time stamps are missing, repeated or not in order, if packets
    show no frame, or if decoding contradicts the list, the whole file is decoded. `stream.frames` is not used: it is 0
    for Matroska and may be wrong elsewhere.

    Args:
        source: a path, the bytes of a file, a binary file object, or a dictionary `{"path": ..., "bytes": ...}` as
            of `datasets.Video(decode=False)`. Also a URL, if `register_url_reader` was called.
        sample_indices_fn: called as `sample_indices_fn(metadata=ClipMetadata)`, returns the indices of the selected
            frames, in any order and with repetitions. It is called again if decoding finds another number of frames.
        scale: what frames are scaled to while their colours are converted; they keep their size by default.
        exact: whether to convert colours without bias, which is slow. FFmpeg's usual conversion, which all readers of
            videos use, is one level too dark on average. Use it for frames that will be encoded again.

    Returns:
        The frames, uint8 of shape (T, height, width, 3): RGB, upright, transparent parts over black; and the metadata
        that `sample_indices_fn` was given, with the size of the video and the indices (`frames_indices`) added.

    Raises:
        VideoDecodeError: if the video, or a selected frame, cannot be read.
        ImportError: if PyAV is not installed.

    Example:

    ```python
    >>> frames, metadata = read_clip("video.mp4", lambda metadata: [0, metadata.total_num_frames - 1])
    ```
    """
    with _open_source(source) as file:
        deadline = time.monotonic() + _SECONDS
        if format := picture_format(file):
            frames, metadata = _read_picture(file, format, sample_indices_fn, scale, deadline)
        else:
            frames, metadata = _read_video(file, sample_indices_fn, scale, exact, deadline)
    return np.stack([frames[index] for index in metadata.frames_indices]), metadata


def iterate_frames(source: Any, scale: Scale | None = None) -> Iterator[tuple[np.ndarray, float | None]]:
    """
    Decodes all frames of one video, one after another.

    Args:
        source: as in `read_clip`.
        scale: as in `read_clip`.

    Yields:
        A frame, uint8 of shape (height, width, 3) as from `read_clip` with `exact=True`, and its time in seconds, or
        None if the file does not specify it.

    Raises:
        VideoDecodeError: if the video cannot be read to its end, or a frame is damaged.
        ImportError: if PyAV is not installed.
    """
    with _open_source(source) as file:
        if format := picture_format(file):
            picture = _Picture(file, format)
            for index in range(picture.num_frames):
                image, start, _ = picture.read_frame(index)
                yield _scale_image(image, scale), start
            return
        with _open_video(file) as stream:
            to_rgb = _RGBConverter(scale, exact=True)
            index = -1
            for index, (frame, damage) in enumerate(_decode_all(stream)):
                if damage:
                    raise VideoDecodeError(f"frame {index} is damaged ({damage})")
                yield to_rgb(frame), frame.time
            if index < 0:
                raise VideoDecodeError("no frames")


def _read_video(
    file: BinaryIO, sample_indices_fn: Callable, scale: Scale | None, exact: bool, deadline: float
) -> tuple[dict[int, np.ndarray], ClipMetadata]:
    """Returns the selected frames of a video by their indices, and its metadata."""
    metadata = None
    with _open_video(file) as stream:
        packets = _index_packets(stream, deadline)
        if packets is not None:
            metadata = _sample(stream, len(packets.shown), sample_indices_fn, packets.keyframes)
            to_rgb = _RGBConverter(scale, exact, metadata)
            frames = _decode_by_time(stream, packets, set(metadata.frames_indices), to_rgb, deadline)
            if frames is not None:
                return frames, metadata
    num_frames = _count_frames(file, deadline)
    with _open_video(file) as stream:
        if metadata is None or num_frames != metadata.total_num_frames:
            metadata = _sample(stream, num_frames, sample_indices_fn)
        to_rgb = _RGBConverter(scale, exact, metadata)
        return _decode_by_count(stream, set(metadata.frames_indices), to_rgb, deadline), metadata


def _sample(
    stream: Any, num_frames: int, sample_indices_fn: Callable, keyframes: list[int] | None = None
) -> ClipMetadata:
    """Returns the metadata of a stream, with the indices that are selected from it."""
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
    metadata.frames_indices = [int(index) for index in sample_indices_fn(metadata=metadata)]
    return metadata


def _check_deadline(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise VideoDecodeError(f"reading it takes more than {_SECONDS} seconds")


def _check_clip_size(count: int, image: np.ndarray) -> None:
    if count * image.nbytes > _MAX_CLIP:
        raise VideoDecodeError(
            f"{count} frames of {image.shape[1]}x{image.shape[0]} pixels take more than {_MAX_CLIP} bytes: ask for "
            "fewer with num_frames"
        )


# --- Files ----------------------------------------------------------------------------------------------------------

_url_reader: Callable[[str], bytes | str] | None = None


def register_url_reader(reader: Callable[[str], bytes | str]) -> None:
    """
    Sets the function that reads URLs. This file contains no HTTP client; the region-learner package registers its own.

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
        yield file
    except (VideoDecodeError, PictureError) as error:
        raise VideoDecodeError(f"{name}: {error}") from None
    except av.error.FFmpegError as error:
        reason = (file and _describe_text(file)) or error.strerror
        if error.errno == errno.ENOMEM:  # FFmpeg refuses to allocate more than 2 GiB at once
            reason = "damaged: it asks for more memory than any video needs"
        elif error.errno == errno.EINVAL:
            reason = f"damaged, or its frames have more than {_MAX_PIXELS} pixels"
        raise VideoDecodeError(f"{name}: {reason}") from error
    except OSError as error:
        raise VideoDecodeError(f"{name}: {error.strerror or error}") from error
    except ValueError as error:  # raised by `sample_indices_fn`, which does not know the name
        error.add_note(f"The video is {name}")
        raise
    finally:
        if file is not None:
            file.close()


def _name_and_content(source: Any) -> tuple[str, str | bytes | bytearray | memoryview]:
    """Returns the name of a video for messages, and its path, URL or bytes."""
    name = None
    if isinstance(source, Mapping):
        name, data = source.get("path"), source.get("bytes")
        if name is None and data is None:
            raise TypeError('A video given as a dictionary needs a "path" or "bytes".')
        source = name if data is None else data
    if hasattr(source, "read"):
        name = getattr(source, "name", "<file>")
        if source.seekable():
            source.seek(0)
        source = source.read()
        if isinstance(source, str):
            raise TypeError(f"{name} was opened as text: open videos in binary mode, open(path, 'rb').")
    if isinstance(source, bytes | bytearray | memoryview):
        return str(name or "<bytes>"), source
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"A video file is given as a path, URL, bytes or binary file, not {type(source).__name__}.")
    return os.fspath(source), os.fspath(source)


def _open_content(content: str | bytes | bytearray | memoryview) -> BinaryIO:
    """Opens a path, URL or bytes. The file has no name, because FFmpeg interprets names as patterns or protocols."""
    if isinstance(content, str) and content.startswith(("http://", "https://", "file://")):
        if _url_reader is None:
            raise VideoDecodeError(
                "URLs are only read with the region-learner package (import region_learner before loading the "
                "processor); without it, give a path, bytes or a file object"
            )
        content = _url_reader(content)
    if not isinstance(content, str):
        file: Any = io.BytesIO(content)
    elif os.path.isfile(content):
        file = open(content, "rb")  # noqa: SIM115 # closed by the caller
        del file.raw.name
    else:
        raise VideoDecodeError("not a file" if os.path.exists(content) else "no such file")
    if file.seek(0, io.SEEK_END) == 0:
        file.close()
        raise VideoDecodeError("empty file")
    return file


def _describe_text(file: BinaryIO) -> str | None:
    """Says what a text file is, often an error page saved in place of the video. None if it is not text."""
    file.seek(0)
    head = file.read(60)
    if head.startswith(b"version https://git-lfs."):
        return "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
    if head.isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return f"text, not a video or picture: it begins with {' '.join(head[:40].decode().split())!r}"
    return None


@contextmanager
def _open_video(file: BinaryIO) -> Iterator[Any]:
    """Opens the first video stream of a file, ready to be decoded."""
    size = file.seek(0, io.SEEK_END)
    if _count_samples(file, 0, size) > max(size, 2**20):  # FFmpeg would allocate 50 bytes for each
        raise VideoDecodeError(f"damaged: its tables list more frames than its {size} bytes can hold")
    file.seek(0)
    # FFmpeg decodes some frames to find out what is in the file. Headers are enough for that.
    options = {"format_whitelist": _FORMATS, "max_pixels": str(_MAX_PIXELS), "skip_frame": "all"}
    try:
        container = av.open(file, metadata_errors="ignore", options=options)
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
        # The size may change later on. And where data is damaged, the decoder must not make up a picture.
        context.options = {"max_pixels": str(_MAX_PIXELS), "err_detect": "explode"}
        context.thread_count = 1  # threads gain little on a few frames, and data loaders have many processes
        yield streams[0]


def _count_samples(file: BinaryIO, start: int, end: int, depth: int = 0) -> int:
    """Counts the samples that short tables stand for, in the boxes of an MP4 file from `start` to `end`."""
    count = 0
    while start + 8 <= end:
        file.seek(start)
        header = file.read(28)
        size, name, first = int.from_bytes(header[:4], "big"), header[4:8], 8
        if size == 1:  # a size of 64 bits follows
            size, first = int.from_bytes(header[8:16], "big"), 16
        stop = min(start + size, end) if size else end
        if stop < start + 8:
            break
        if name in _OUTER_BOXES and depth < len(_OUTER_BOXES):
            count += _count_samples(file, start + first, stop, depth + 1)
        elif name == b"stsz" and header[first + 4 : first + 8] != bytes(4):  # all samples have one size
            count += int.from_bytes(header[first + 8 : first + 12], "big")
        elif name == b"trun" and not header[first + 2] & 0xF:  # no entries for single samples
            count += int.from_bytes(header[first + 4 : first + 8], "big")
        start = stop
    return count


# --- Packets --------------------------------------------------------------------------------------------------------


class _PacketIndex:
    """
    The time stamps of a video's packets, in arrays because long recordings have millions of them.

    Attributes:
        times: in decoding order.
        shown: of the frames that are shown, in display order. Positions in it are the indices of frames.
        keys: of the key frames, in display order.
        keyframes: indices of the key frames that are shown.
        is_reordered: whether display order differs from decoding order.
        packets: PyAV's packets, or None if they are too large to be kept in memory. Keeping them saves a second read.
    """

    def __init__(self, times: array, is_key: bytearray, is_shown: bytearray, packets: list[Any] | None):
        self.times, self.packets = np.frombuffer(times, np.int64), packets
        self._is_key = np.frombuffer(is_key, bool)
        self._order = np.argsort(self.times, kind="stable")
        self._sorted = self.times[self._order]
        self.shown = np.sort(self.times[np.frombuffer(is_shown, bool)])
        self.keys = np.sort(self.times[self._is_key])
        self.keyframes: list[int] = np.flatnonzero(np.isin(self.shown, self.keys)).tolist()
        self.is_reordered = not (np.diff(self._order) > 0).all()

    def position(self, time: Any) -> int:
        """Returns the position, in decoding order, of the packet with a time stamp; -1 if there is none."""
        if time is None:
            return -1
        at = self._sorted.searchsorted(time)
        return int(self._order[at]) if at < len(self._sorted) and self._sorted[at] == time else -1

    def frame_index(self, time: Any) -> int:
        """Returns the index of the frame that is shown at a time, or next after it; -1 if no packet has this time."""
        return int(self.shown.searchsorted(time)) if self.position(time) >= 0 else -1

    def identifies_frames(self) -> bool:
        """
        Returns whether time stamps are unique and in an order that encoders write.

        A key frame is shown after all frames that precede it in the file. Frames that follow it but are shown before
        it follow at once. Otherwise time starts again, as in joined recordings. (Decoding time stamps do not help:
        those of Matroska are guesses.)
        Frames shown before the first key frame may or may not be decoded, as what they need was cut off.
        """
        times, is_key = self.times, self._is_key
        if not is_key[0] or times[0] > self._sorted[0] or (np.diff(self._sorted) == 0).any():
            return False
        if (times[is_key] < np.maximum.accumulate(times)[is_key]).any():
            return False
        is_later = times > times[is_key][np.cumsum(is_key) - 1]  # than the last key frame before it in the file
        return not (is_later[:-1] & ~is_later[1:] & ~is_key[1:]).any()

    def read_from(self, stream: Any, first: int) -> Iterator[Any]:
        """Yields packets from position `first` on, then None; nothing if the container cannot seek there."""
        if self.packets is not None:
            yield from self.packets[first:]
            yield None
            return
        stream.container.seek(int(self.times[first]), stream=stream)
        is_reached = False
        for packet in _demux(stream):
            here = self.position(packet.pts) if packet.size else -1
            if not is_reached and here != first:
                if here > first or (here < 0 and packet.size):
                    return
                continue
            is_reached = True
            yield packet if packet.size else None


def _index_packets(stream: Any, deadline: float) -> _PacketIndex | None:
    """Lists the packets of a stream without decoding them; None if they do not stand for one frame each."""
    times, is_key, is_shown = array("q"), bytearray(), bytearray()
    packets: list[Any] | None = []
    size = 0
    codec = stream.codec_context.codec.canonical_name  # whichever decoder
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
        _check_deadline(deadline)
    if not times:
        return None
    index = _PacketIndex(times, is_key, is_shown, packets)
    return index if index.identifies_frames() else None


def _shows_frame(packet: Any, codec: str) -> bool:
    """Returns whether a packet certainly shows a frame."""
    if codec == "vp8":
        return bool(memoryview(packet)[0] & 0x10)  # `show_frame`, RFC 6386 section 9.1
    return codec in _ALWAYS_SHOW or packet.size >= _SHOWS_NOTHING


def _demux(stream: Any) -> Iterator[Any]:
    try:
        yield from stream.container.demux(stream)
    except IndexError as error:  # raised by PyAV if streams appear later on
        raise VideoDecodeError("damaged: its streams are not those that it begins with") from error


# --- Decoding -------------------------------------------------------------------------------------------------------


def _decode_by_time(
    stream: Any, packets: _PacketIndex, wanted: set[int], to_rgb: "_RGBConverter", deadline: float
) -> dict[int, np.ndarray] | None:
    """
    Decodes the wanted frames, each from the key frame before it. Returns None if a frame is damaged, or if decoding
    contradicts the packets: it does not begin with a key frame, or a frame is not where its time stamp says.
    """
    times_by_key: dict[int, set[int]] = {}
    for index in sorted(wanted):
        time = int(packets.shown[index])
        key = int(packets.keys[packets.keys.searchsorted(time, "right") - 1])
        times_by_key.setdefault(key, set()).add(time)

    frames: dict[int, np.ndarray] = {}
    try:
        with _capture_errors() as lines:
            for key, times in times_by_key.items():
                expected = packets.frame_index(key)
                # Containers may call any frame a key frame, and some decoders make up the references that are missing.
                is_entered = packets.position(key) == 0
                for frame in _decode_from(stream, packets, key, times, lines, deadline):
                    if frame.pts is not None and frame.pts < key:
                        continue  # incomplete without what precedes the key frame
                    is_intra = frame.key_frame or frame.pict_type == av.video.frame.PictureType.I
                    is_entered = is_entered or (frame.pts == key and is_intra)
                    index = packets.frame_index(frame.pts)
                    # If time stamps are in decoding order, the container may have made them up (AVI). They are
                    # believed if the frames come one after another. Those out of order come from the encoder.
                    is_expected = index >= expected if packets.is_reordered else index == expected
                    if frame.is_corrupt or not is_entered or not is_expected:
                        return None
                    if frame.pts in times:
                        frames[index] = to_rgb(frame)
                    expected = index + 1
    except av.error.FFmpegError:
        return None
    return frames if len(frames) == len(wanted) else None


def _decode_from(
    stream: Any,
    packets: _PacketIndex,
    key: int,
    wanted: set[int],
    lines: list[tuple[int, str, str]],
    deadline: float,
) -> Iterator[Any]:
    """
    Decodes from the key frame at time `key` until the frames of all `wanted` times have come, or the decoder reports
    damage in `lines`.

    If frames are reordered, some are skipped: those that are neither wanted nor referred to by others, and those that
    would be decoded only to put the wanted ones in order, that is, all after the last wanted packet.
    """
    context = stream.codec_context
    if context.is_open:
        context.flush_buffers()
    can_skip = packets.is_reordered and context.name in _SKIPS_NON_REFERENCE
    length_size = _length_size(context)
    last = max(wanted, key=packets.position)
    missing, latest = set(wanted), key
    for packet in packets.read_from(stream, packets.position(key)):
        if packet is not None:
            # What is skipped cannot show that it is damaged. So frames in display order are decoded, which are hardly
            # ever non-reference frames, and those with bytes that encoders do not write.
            skip = can_skip and packet.pts < latest and packet.pts not in wanted
            context.skip_frame = "NONREF" if skip and _looks_sound(bytes(packet), length_size) else "DEFAULT"
            latest = max(latest, packet.pts)
        _check_deadline(deadline)
        frames, damage = _decode(lines, context.decode, packet)
        if damage and (packet is None or packet.pts >= key):  # what is shown before the key frame is incomplete anyway
            return
        is_last = packet is None or (packets.is_reordered and packet.pts == last)
        if packet is not None and is_last:
            held_back, damage = _decode(lines, context.decode, None)  # to put frames in order
            if damage:
                return
            frames += held_back
        for frame in frames:
            missing.discard(frame.pts)
            yield frame
        if is_last or not missing:
            return


def _length_size(context: Any) -> int:
    """Returns how many bytes before each H.264 unit hold its length (ISO/IEC 14496-15), which may be 0."""
    extradata = context.extradata or b""
    return (extradata[4] & 3) + 1 if context.name == "h264" and len(extradata) > 4 and extradata[0] == 1 else 0


def _looks_sound(data: bytes, length_size: int) -> bool:
    """
    Returns whether the lengths of units add up, and three zero bytes occur in lengths and start codes only. Encoders
    avoid them elsewhere, so that start codes are unique.
    """
    start = 0
    while length_size and start < len(data):
        end = start + length_size + int.from_bytes(data[start : start + length_size], "big")
        if end > len(data) or data.find(bytes(3), start + length_size, end) >= 0:
            return False
        start = end
    return bool(length_size) or re.search(rb"\0\0\0(?!\x01)", data) is None


def _decode_all(stream: Any, deadline: float = math.inf) -> Iterator[tuple[Any, str | None]]:
    """
    Yields all frames, each with the reason if it is damaged, or None. After damage, all frames up to the next key
    frame are damaged.
    """
    damage, since = None, None
    for packet in _demux(stream):
        with _capture_errors() as lines:  # for each packet, as others may log while the next frame is awaited
            frames, reported = _decode(lines, packet.decode)
        if reported:
            damage, since = reported, packet.pts
        for frame in frames:
            if frame.is_corrupt:
                damage, since = damage or "incomplete", frame.pts
            elif damage and frame.key_frame:
                is_later = not reported if frame.pts is None or since is None else frame.pts > since
                damage = None if is_later else damage
            yield frame, damage
        _check_deadline(deadline)


def _decode_by_count(stream: Any, wanted: set[int], to_rgb: "_RGBConverter", deadline: float) -> dict[int, np.ndarray]:
    """Decodes the wanted frames, and all frames before them."""
    frames: dict[int, np.ndarray] = {}
    for index, (frame, damage) in enumerate(_decode_all(stream, deadline)):
        if index in wanted:
            if damage:
                raise VideoDecodeError(f"frame {index} is damaged ({damage})")
            frames[index] = to_rgb(frame)
            if len(frames) == len(wanted):
                break
    if missing := sorted(wanted - frames.keys()):
        raise VideoDecodeError(f"frames {missing} cannot be decoded")
    return frames


def _count_frames(file: BinaryIO, deadline: float) -> int:
    with _open_video(file) as stream:
        return sum(1 for _ in _decode_all(stream, deadline))


def _decode(
    lines: list[tuple[int, str, str]], decode: Callable[..., list[Any]], *packet: Any
) -> tuple[list[Any], str | None]:
    """Returns the frames of a packet, and the damage that the decoder conceals but logs in `lines`, if any."""
    before = len(lines)
    frames = decode(*packet)
    errors = (line for level, _, line in lines[before:] if level <= av.logging.ERROR)
    return frames, next((" ".join(line.split()) for line in errors), None)


_log_lock = threading.Lock()
_log_users = 0
_log_before: tuple[int | None, bool] = (None, True)


@contextmanager
def _capture_errors() -> Iterator[list[tuple[int, str, str]]]:
    """
    Captures what decoders log as errors in this thread. The log level belongs to the process: it is restored when the
    last thread leaves the context.
    """
    global _log_users, _log_before
    with _log_lock:
        if _log_users == 0:
            _log_before = av.logging.get_level(), av.logging.get_skip_repeated()
            av.logging.set_level(max(_log_before[0] or 0, av.logging.ERROR))
            av.logging.set_skip_repeated(False)
        _log_users += 1
    lines: list[tuple[int, str, str]] = []
    try:
        with av.logging.Capture(local=True) as lines:
            yield lines
    finally:
        with _log_lock:
            _log_users -= 1
            level, skip_repeated = _log_before
            if _log_users == 0:
                av.logging.set_level(level)
                av.logging.set_skip_repeated(skip_repeated)
        for its_level, name, message in lines:
            if level is not None and its_level <= level:  # the application wants to see them
                logging.getLogger(f"libav.{name}").log(av.logging.adapt_level(its_level), message.strip())


# --- Colours, orientation and size ----------------------------------------------------------------------------------


class _RGBConverter:
    """
    Converts the frames of one clip to upright RGB (height, width, 3). All get the size of the first frame, as the size
    may change within a stream. They share one converter, whose setup takes longer than converting a small frame.

    Args:
        scale, exact: see `read_clip`.
        metadata: the metadata of the clip, to which the height and width of the first frame are added.
    """

    def __init__(self, scale: Scale | None, exact: bool, metadata: ClipMetadata | None = None):
        is_picture = metadata is not None and metadata.total_num_frames == 1
        self.scale = None if is_picture and scale is not None and not scale.of_pictures else scale
        self.metadata = metadata
        self.converter = av.video.reformatter.VideoReformatter()
        flags = av.video.reformatter.Interpolation
        self.interpolation = flags[self.scale.interpolation] if self.scale else flags.BILINEAR
        if exact:
            self.interpolation |= flags.ACCURATE_RND | flags.FULL_CHR_H_INT
        self.shape: tuple[int, ...] | None = None

    def __call__(self, frame: Any) -> np.ndarray:
        is_transposed, flips_rows, flips_columns = _orientation(frame)
        upright = (frame.width, frame.height) if is_transposed else (frame.height, frame.width)
        height, width = self.scale.size_for(*upright) if self.scale else upright
        if is_transposed:
            height, width = width, height
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
        image = image[:: -1 if flips_rows else 1, :: -1 if flips_columns else 1]
        if self.shape is None:
            self.shape = image.shape
            if self.metadata is not None:
                self.metadata.height, self.metadata.width = upright
                _check_clip_size(len(self.metadata.frames_indices), image)
        if image.shape != self.shape:
            height, width = self.shape[:2]
            image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        return image


def _orientation(frame: Any) -> tuple[bool, bool, bool]:
    """Returns how a frame becomes upright: whether it is transposed, and then has its rows and columns flipped."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know all side data, such as EXIF
        quarter_turns = round(frame.rotation / 90) % 4  # to the left
        return quarter_turns % 2 == 1, quarter_turns in (1, 2), quarter_turns in (2, 3)
    if matrix is not None:
        # Column p and row q are moved to p' = a p + c q, q' = b p + d q (libavutil/display.h).
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
        if min(abs(a), abs(d)) > max(abs(b), abs(c)):
            return False, d < 0, a < 0
        if min(abs(b), abs(c)) > max(abs(a), abs(d)):
            return True, b < 0, c < 0
    return False, False, False  # also if sheared, or rotated by less than a right angle


def _over_black(image: Image.Image) -> np.ndarray:
    """Blends an image of mode RGBA over black: uint8 (height, width, 3)."""
    return np.ascontiguousarray(np.asarray(image.convert("RGBa"))[..., :3])


def _scale_image(image: np.ndarray, scale: Scale | None) -> np.ndarray:
    size = scale.size_for(*image.shape[:2]) if scale is not None and scale.of_pictures else image.shape[:2]
    if scale is None or size == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling[scale.interpolation]))


# --- Pictures. Pillow reads them, so that a path and a picture opened by the user give equal pixels -----------------


def picture_format(file: BinaryIO) -> str | None:
    """
    Returns Pillow's name of the format of a picture, by its first bytes; None for files that FFmpeg reads. Those
    include GIF and animated PNG, which are videos to FFmpeg.
    """
    file.seek(0)
    head = file.read(64)
    for name, pattern in _PICTURE_HEADS.items():
        if re.match(pattern, head, re.DOTALL):
            return None if name == "PNG" and _is_animated_png(file) else name
    return None


def _is_animated_png(file: BinaryIO) -> bool:
    """Returns whether there is a chunk `acTL`, which comes before the pixels."""
    file.seek(8)
    while len(header := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", header)
        if name in (b"acTL", b"IDAT", b"IEND"):
            return name == b"acTL"
        file.seek(length + 4, io.SEEK_CUR)
    return False


def _read_picture(
    file: BinaryIO, format: str, sample_indices_fn: Callable, scale: Scale | None, deadline: float
) -> tuple[dict[int, np.ndarray], ClipMetadata]:
    """Returns the selected frames of a picture or animation by their indices, and its metadata."""
    picture = _Picture(file, format)
    count, end = picture.num_frames, 1 / _PICTURE_FPS
    for index in range(count if count > 1 else 0):
        *_, end = picture.read_frame(index)
        _check_deadline(deadline)
    fps = count / end if end else None
    metadata = ClipMetadata(count, fps=fps, duration=end, video_backend="pillow", keyframes=[0])
    metadata.frames_indices = [int(index) for index in sample_indices_fn(metadata=metadata)]
    frames: dict[int, np.ndarray] = {}
    for index in sorted(set(metadata.frames_indices)):  # frames of an animation need those before them
        image = picture.read_frame(index)[0]
        metadata.height, metadata.width = image.shape[:2]
        frames[index] = _scale_image(image, scale)
        _check_clip_size(len(metadata.frames_indices), frames[index])
        _check_deadline(deadline)
    return frames, metadata


class _Picture:
    """A picture file, or an animated WebP or AVIF file."""

    def __init__(self, file: BinaryIO, format: str):
        if format == "AVIF" and not features.check("avif"):
            raise PictureError("AVIF pictures need Pillow 11.3 or newer: pip install -U pillow")
        file.seek(0)
        if format == "JPEG":
            _check_jpeg(file.read())
        if format == "PNG":  # decoding ignores the checksums
            with _pillow_errors(), Image.open(file, formats=["PNG"]) as image:
                image.verify()
        file.seek(0)
        with _pillow_errors():
            self.image = Image.open(file, formats=[format])
            width, height = self.image.size
            if width * height > _MAX_PICTURE_PIXELS:
                raise PictureError(f"a picture of {width}x{height} pixels, more than {_MAX_PICTURE_PIXELS} pixels")
            self.num_frames: int = getattr(self.image, "n_frames", 1) if format in ("WEBP", "AVIF") else 1

    def read_frame(self, index: int) -> tuple[np.ndarray, float, float]:
        """Returns a frame as `picture_levels` does, and its start and end in seconds."""
        with _pillow_errors():
            if self.num_frames > 1:
                self.image.seek(index)
            self.image.load()
        start = self.image.info.get("timestamp", 0) / 1000
        duration = self.image.info.get("duration", 0) / 1000 if self.num_frames > 1 else 1 / _PICTURE_FPS
        return picture_levels(self.image), start, start + duration


def _check_jpeg(data: bytes) -> None:
    """
    Refuses a JPEG file in which FFmpeg notices damage, as Pillow decodes damaged files without a warning. Decoding at
    an eighth of the size takes a third of the time that Pillow takes.
    """
    context = av.CodecContext.create("mjpeg", "r")
    context.thread_count = 1
    context.options = {"err_detect": "explode", "lowres": "3", "max_pixels": str(2**31 - 1)}
    try:
        with _capture_errors() as lines:
            for packet in (av.Packet(data), None):
                if damage := _decode(lines, context.decode, packet)[1]:
                    raise PictureError(f"damaged ({damage})")
    except av.error.PatchWelcomeError:  # such as arithmetic coding, which Pillow knows
        return


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """Turns whatever Pillow's plugins raise for damaged files into a `PictureError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged metadata, and sizes, which are checked here
            yield
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(f"more than {_MAX_PICTURE_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise PictureError("damaged: its header cannot be read") from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise PictureError(f"damaged, or of a kind that cannot be read ({reason})") from error


def picture_levels(image: Image.Image, do_convert_rgb: bool = True) -> np.ndarray:
    """
    Converts a PIL image to uint8 (height, width, C), upright.

    Args:
        image: of any mode with an unambiguous range. 16-bit grey is reduced to 8 bits.
        do_convert_rgb: whether C is 3 for every mode, transparent parts over black. Otherwise grey and RGB images keep
            their channels, including alpha.

    Raises:
        PictureError: for images of 32-bit integers or floats, or other modes whose range is unknown.
    """
    mode, format, tags = image.mode, image.format, getattr(image, "tag_v2", {})
    image.load()
    with suppress(Exception):  # damaged metadata does not matter
        image = ImageOps.exif_transpose(image)
    # 16-bit grey, which older versions of Pillow read as 32 bits.
    if mode.startswith("I;16") or (mode == "I" and format in ("PNG", "PPM")):
        if tags.get(_TIFF_BITS, (16,)) != (16,) or tags.get(_TIFF_PHOTOMETRIC, 1) != 1:
            raise PictureError("a TIFF picture of fewer than 16 bits, or of white as 0: save it as 8-bit RGB")
        values = np.array(image).astype(np.int64)
        levels = (values * 255 + 32767) // 65535
        levels[values == image.info.get("transparency")] = 0
        grey = levels.astype(np.uint8)[..., None]
        return grey.repeat(3, axis=-1) if do_convert_rgb else grey
    if mode in ("I", "F"):
        raise PictureError(
            f"a PIL image of mode {mode!r}, whose range is unknown: scale it to 0..255, convert to uint8"
        )
    if not do_convert_rgb and mode in ("L", "LA", "RGB", "RGBA"):
        return np.atleast_3d(np.array(image))
    try:
        if mode.lower() in ("rgba", "la", "pa") or "transparency" in image.info:
            image = image.convert("LA") if mode == "La" else image
            return _over_black(image.convert("RGBA"))
        return np.array(image.convert("RGB"))
    except ValueError as error:
        raise PictureError(f"a PIL image of mode {mode!r}, which Pillow does not convert to RGB") from error

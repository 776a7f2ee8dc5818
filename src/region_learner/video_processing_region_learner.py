# Copyright 2026 The RegionLearner authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in
# compliance with the License. You may obtain a copy at http://www.apache.org/licenses/LICENSE-2.0
"""Video processor of RegionLearner: from video files, or frames, to `pixel_values_videos`.

In the order of this file:

1. decoding, with PyAV, of the wanted frames of a file and no more than they need (of pictures, with Pillow);
2. reading the many forms in which clips are given;
3. the processor: which frames are wanted (segment sampling), and their transforms.

Sampling and transforms are those of the paper (arXiv 2112.01194), which it has from Frozen in Time
(arXiv 2104.00650). On purpose different from the authors' code: training draws from every frame of a segment (there
the last one is never drawn), short clips repeat their last frame (there black frames are added after
normalisation), an unreadable video is an error (there a black clip), and resizing is antialiased.
"""

import dataclasses
import errno
import http.client
import io
import ipaddress
import logging
import math
import os
import socket
import ssl
import threading
import time
import urllib.request
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple, Unpack
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import get_size_dict
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import VideosKwargs
from transformers.utils.type_validators import image_size_validator
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata, make_batched_metadata

from .pictures_region_learner import (
    PictureError,
    PictureFile,
    frames_as_tensor,
    is_array,
    is_frame,
    kind_of_picture,
    opened,
    over_black,
    to_rgb,
)

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]

try:
    import torchvision.transforms.v2.functional as tvf
except ImportError:
    tvf = None  # type: ignore[assignment]


# ---------------------------------------------------------------------------------------------------------
# Decoding
# ---------------------------------------------------------------------------------------------------------

# Of one frame: the most that H.264, H.265 and AV1 allow (level 6.2), 8K included. Decoders hold up to 16 of them.
_MAX_PIXELS = 35_651_584
_MAX_FRAMES = 2**24  # of one video: 38 hours of 120 frames per second
_MAX_CLIP = 2**31  # bytes of all wanted frames
# Codecs of which FFmpeg can leave out frames that no other frame refers to, and everything else is as before. (Not
# among them: H.265, whose flag is about frames of the same temporal layer only, and VP8, where a frame that is not
# referred to may hold the segments of the next one.)
_SKIPS_UNREFERRED = {"h264", "mpeg1video", "mpeg2video", "mpeg4"}
_ZEROS = bytes(3)
# Codecs of which each packet shows a frame, but for VP8 (see `_list_packets`). Others, such as MPEG-4, have some that
# show none.
_ALWAYS_SHOW = {"h264", "hevc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mjpeg", "gif", "prores", "dnxhd"}
_SHOWS_NOTHING = 32  # bytes: a packet of other codecs that is smaller may say no more than that nothing changes
# What is read, by FFmpeg's names: videos and pictures, each alone in its file, and sound, whose pictures are covers.
# FFmpeg takes more for video: lists that make it open other files and addresses, scripts, drawings made of text.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,mxf,nut,ivf,obu,rm,wtv,dv,"
    "swf,yuv4mpegpipe,h264,hevc,vvc,m4v,h261,h263,vc1,mjpeg,mjpeg_2000,gif,apng,webp,webp_pipe,jpeg_pipe,jpegls_pipe,"
    "jpegxl_pipe,jpegxl_anim,j2k_pipe,png_pipe,bmp_pipe,tiff_pipe,pbm_pipe,pgm_pipe,ppm_pipe,pam_pipe,mp3,wav,flac,aac"
)
_KEPT = 2**25  # bytes of packets that are held in memory
_PACKET = 1500  # bytes that PyAV and FFmpeg need for a packet, beside its data
_SECONDS = 600  # for one clip: a few bytes can stand for very many frames
_DOWNLOAD_LIMIT = 2**30  # bytes
_DOWNLOAD_TIMEOUT = 30  # seconds without an answer
_DOWNLOAD_SECONDS = 600  # in all


class VideoDecodeError(ValueError):
    """A video whose wanted frames cannot be read. The message is one line: which video, and why."""


@dataclasses.dataclass
class ClipMetadata(VideoMetadata):
    """
    What is known of a video when frames are chosen.

    Args:
        keyframes: sorted indices of the frames that can be decoded without any other; None if not known.
    """

    keyframes: list[int] | None = None


class _Packets:
    """
    The packets of a video in decoding order, in few bytes each: a long recording has millions.

    Args:
        times: their time stamps.
        is_key: decoding can start here.
        is_shown: False where an edit list cuts it out.
        data: PyAV's packets, if there is room for them.
    """

    def __init__(self, times: array, is_key: bytearray, is_shown: bytearray, data: list[Any] | None):
        self.times, self.data = times, data
        stamps, keys = np.asarray(times), np.frombuffer(is_key, bool)
        order = np.argsort(stamps, kind="stable")
        self._sorted, self._order = _integers(stamps[order]), _integers(order)
        self.shown = _integers(np.sort(stamps[np.frombuffer(is_shown, bool)]))  # in order of display
        self.keys = _integers(np.sort(stamps[keys]))  # in order of display
        self.keyframes: list[int] = np.flatnonzero(np.isin(self.shown, self.keys)).tolist()
        self.in_order = bool((order[1:] > order[:-1]).all())
        self.repeats = bool((stamps[order[1:]] == stamps[order[:-1]]).any())

    def position(self, time: int | None) -> int:
        """The number of the packet with this time stamp; -1 if there is none."""
        if time is None:
            return -1
        at = bisect_left(self._sorted, time)
        return self._order[at] if at < len(self._sorted) and self._sorted[at] == time else -1


def _integers(values: np.ndarray) -> array:
    """As Python looks them up fast."""
    return array("q", values.astype(np.int64).tobytes())


def read_clip(
    source: Any, choose: Callable[..., Iterable[int]], scale: "Scale | None" = None, exact: bool = False
) -> tuple[np.ndarray, VideoMetadata]:
    """
    Decodes some frames of one video: exactly those that decoding the whole file would give at their indices.

    Packets are listed without being decoded; decoding then starts at the key frame before each wanted frame, and
    frames are known by their time stamps. `stream.frames` is not asked: it is 0 for Matroska and may be wrong
    elsewhere. Where packets do not tell which frame is which (time stamps missing, repeated or going back, packets
    that show nothing), or decoding contradicts them, the whole file is decoded instead.

    Args:
        source: a path, an https URL (others with REGION_LEARNER_URLS=any in the environment), the bytes of a file,
            a binary file object, or a `{"path": ..., "bytes": ...}` dict as of `datasets.Video(decode=False)`.
        choose: called as `choose(metadata=ClipMetadata)`, gives the indices of the wanted frames in any order,
            repetitions included. Called again if decoding finds another number of frames.
        scale: what frames are scaled to while their colours are converted; by default they stay as they are.
        exact: convert colours without a bias, slowly; see `_ToRGB`.

    Returns:
        Frames, uint8 of shape (T, height, width, 3): RGB, upright, transparent parts over black. And the metadata
        that was given to `choose`, with the size and, in `frames_indices`, the indices.

    Raises:
        VideoDecodeError: the video, or a wanted frame, cannot be read.
        ImportError: PyAV is not installed.
    """
    with _located(source) as media:
        if kind := kind_of_picture(media):
            return _read_pictures(media, kind, choose, scale)
        frames, to_rgb = None, _ToRGB(scale, exact)
        ends_at = time.monotonic() + _SECONDS
        with _open_video(media) as stream:
            packets = _list_packets(stream, ends_at)
            if packets:
                metadata, indices = _choose_frames(stream, len(packets.shown), choose, packets.keyframes)
                to_rgb.expects(len(indices), len(packets.shown))
                frames = _decode_by_time(stream, packets, set(indices), to_rgb, ends_at)
        if frames is None:
            num_frames, to_rgb = _count_frames(media, ends_at), _ToRGB(scale, exact)
            with _open_video(media) as stream:
                if not packets or num_frames != len(packets.shown):
                    metadata, indices = _choose_frames(stream, num_frames, choose)
                to_rgb.expects(len(indices), metadata.total_num_frames)
                frames = _decode_by_count(stream, set(indices), to_rgb, ends_at)

    clip = np.stack([frames[index] for index in indices])
    metadata.height, metadata.width = to_rgb.original
    return clip, metadata


def iterate_frames(source: Any, scale: "Scale | None" = None) -> Iterator[tuple[np.ndarray, float | None]]:
    """
    All frames of one video, one after another.

    Args:
        source: as in [`read_clip`].
        scale: as in [`read_clip`].

    Yields:
        A frame, uint8 (height, width, 3) as of [`read_clip`] with `exact`, and its time in seconds, None where the
        file does not tell.

    Raises:
        VideoDecodeError: the video cannot be read to its end, or a frame of it is damaged.
        ImportError: PyAV is not installed.
    """
    with _located(source) as media:
        if kind := kind_of_picture(media):
            with _open_pictures(media, kind) as picture:
                for index in range(picture.num_frames):
                    image, begins, _ = picture.frame(index)
                    yield _scale_picture(image, scale), begins
            return
        with _open_video(media) as stream:
            to_rgb = _ToRGB(scale, exact=True)
            index = -1
            for index, (frame, damage) in enumerate(_decode_all(stream)):
                if damage:
                    raise VideoDecodeError(f"frame {index} is damaged ({damage})")
                yield to_rgb(frame), frame.time
            if index < 0:
                raise VideoDecodeError("no frames")


@contextmanager
def _open_pictures(media: str | BinaryIO, kind: str) -> Iterator[PictureFile]:
    with opened(media) as file:
        if kind == "JPEG":
            _check_jpeg(file.read())
            file.seek(0)
        yield PictureFile(file, kind)


def _check_jpeg(data: bytes) -> None:
    """
    Refuses a JPEG in which FFmpeg notices damage: Pillow decodes on without a word. (At an eighth of its size, which
    takes a third of the time that Pillow does.)
    """
    context = av.CodecContext.create("mjpeg", "r")
    context.thread_count = 1
    context.options = {"err_detect": "explode", "lowres": "3", "max_pixels": str(2**31 - 1)}
    try:
        with _ErrorLines() as lines:
            for packet in (av.Packet(data), None):
                if damage := _decode(lines, context.decode, packet)[1]:
                    raise PictureError(f"damaged ({damage})")
    except av.error.PatchWelcomeError:  # such as arithmetic coding, which Pillow knows
        return


def _read_pictures(
    media: str | BinaryIO, kind: str, choose: Callable, scale: "Scale | None"
) -> tuple[np.ndarray, VideoMetadata]:
    """[`read_clip`] for what Pillow reads: a picture, or an animation of which frames need those before them."""
    ends_at = time.monotonic() + _SECONDS
    with _open_pictures(media, kind) as picture:
        end = 1 / 25
        for index in range(picture.num_frames if picture.num_frames > 1 else 0):
            *_, end = picture.frame(index)
            _check_time(ends_at)
        count = picture.num_frames
        metadata = ClipMetadata(
            count, fps=count / end if end else None, duration=end, video_backend="pillow", keyframes=[0]
        )
        metadata.frames_indices = [int(index) for index in choose(metadata=metadata)]
        wanted: dict[int, np.ndarray] = {}
        for index in sorted(set(metadata.frames_indices)):
            image = picture.frame(index)[0]
            metadata.height, metadata.width = image.shape[:2]
            wanted[index] = _scale_picture(image, scale)
            _check_clip(len(metadata.frames_indices), wanted[index])
            _check_time(ends_at)
    return np.stack([wanted[index] for index in metadata.frames_indices]), metadata


def _scale_picture(image: np.ndarray, scale: "Scale | None") -> np.ndarray:
    size = scale.size_for(*image.shape[:2]) if scale is not None and scale.of_pictures else image.shape[:2]
    if size == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling[scale.interpolation]))


def _check_clip(count: int, image: np.ndarray) -> None:
    if count * image.nbytes > _MAX_CLIP:
        raise VideoDecodeError(
            f"{count} frames of {image.shape[1]}x{image.shape[0]} pixels take more than {_MAX_CLIP} bytes: ask for "
            "fewer with num_frames"
        )


@contextmanager
def _located(source: Any) -> Iterator[str | BinaryIO]:
    """What PyAV opens, and errors that name it."""
    if av is None:
        raise ImportError("Decoding videos needs PyAV: pip install av")
    name, media = _locate(source)
    try:
        yield media
    except (VideoDecodeError, PictureError) as error:
        raise VideoDecodeError(f"{name}: {error}") from None
    except av.error.FFmpegError as error:
        reason = _unlike_a_video(media) or error.strerror
        if error.errno == errno.ENOMEM:  # (FFmpeg refuses to allocate more than 2 GiB at once.)
            reason = "damaged: it asks for more memory than any video needs"
        elif error.errno == errno.EINVAL:
            reason = f"damaged, or its frames have more than {_MAX_PIXELS} pixels"
        raise VideoDecodeError(f"{name}: {reason}") from error
    except OSError as error:
        raise VideoDecodeError(f"{name}: {error.strerror or error}") from error
    except ValueError as error:  # of `choose`, which does not know what it chooses from
        error.add_note(f"The video is {name}")
        raise
    finally:
        if not isinstance(media, str):
            media.close()


def _unlike_a_video(media: str | BinaryIO) -> str | None:
    """What a file that FFmpeg does not know is instead, where its beginning tells: it often is a page of an error."""
    head = b"\0"
    with suppress(OSError), opened(media) as file:
        head = file.read(60)
    if head.startswith(b"version https://git-lfs."):
        return "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
    if head.isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return f"text, not a video or picture: it begins with {' '.join(head[:40].decode().split())!r}"
    return None


def _locate(source: Any) -> tuple[str, str | BinaryIO]:
    """The name of a video for messages, and what PyAV opens: a file name, or a buffer of ours."""
    name = None
    if isinstance(source, Mapping):
        name = source.get("path")
        if name is None and source.get("bytes") is None:
            raise TypeError("A video that is given as a dict needs a path or bytes in it.")
        source = name if source.get("bytes") is None else source["bytes"]
    if hasattr(source, "read"):
        name = getattr(source, "name", "<file>")
        if source.seekable():
            source.seek(0)
        source = source.read()
        if isinstance(source, str):
            raise TypeError(f"{name} was opened as text: open videos in binary mode, open(path, 'rb').")
    if isinstance(source, bytes | bytearray | memoryview):
        name = str(name or "<bytes>")
        if not len(source):
            raise VideoDecodeError(f"{name}: empty file")
        return name, io.BytesIO(source)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"A video file is given as a path, URL, bytes or binary file, not {type(source).__name__}.")

    name = os.fspath(source)
    if name.startswith(("http://", "https://")):
        return name, _download(name)
    path = name
    if name.startswith("file://"):
        if os.environ.get("REGION_LEARNER_URLS") != "any":
            raise VideoDecodeError(f"{name}: a URL of a local file; give its path, or {_ASK}")
        path = urllib.request.url2pathname(urlsplit(name).path)
    if not os.path.isfile(path):
        raise VideoDecodeError(f"{name}: {'not a file' if os.path.exists(path) else 'no such file'}")
    if os.path.getsize(path) == 0:
        raise VideoDecodeError(f"{name}: empty file")
    return name, f"file:{path}"  # or FFmpeg would look for a protocol in names such as `concat: a|b.mp4`


def _download(url: str) -> BinaryIO:
    """
    The file at an https URL of a public address, in memory. Others are refused, redirections included, as names of
    videos come with data sets of strangers, and what this machine may reach is nobody else's business; unless
    REGION_LEARNER_URLS=any is set.
    """
    any_url = os.environ.get("REGION_LEARNER_URLS") == "any"
    proxies = urllib.request.getproxies()
    opener = urllib.request.OpenerDirector()
    watch = _Watch()
    handlers = [
        # (A proxy for http is none for what is refused: its handler would come before that which refuses.)
        urllib.request.ProxyHandler(proxies if any_url else {"https": proxies["https"]} if "https" in proxies else {}),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _HTTPSHandler(_HTTPSConnection if any_url else _PublicConnection, watch),
        _HTTPHandler(watch) if any_url else _RefusingHTTPHandler(),
    ]
    for handler in handlers:
        opener.add_handler(handler)
    file = io.BytesIO()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "region-learner"})
        with watch, opener.open(request, timeout=_DOWNLOAD_TIMEOUT) as response:
            length = response.headers.get("Content-Length", "")
            announced = int(length) if length.isascii() and length.isdecimal() else None
            if announced is not None and announced > _DOWNLOAD_LIMIT:
                raise VideoDecodeError(f"{url}: larger than {_DOWNLOAD_LIMIT} bytes")
            while chunk := response.read1(2**20):
                file.write(chunk)
                if file.tell() > _DOWNLOAD_LIMIT:
                    raise VideoDecodeError(f"{url}: larger than {_DOWNLOAD_LIMIT} bytes")
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, VideoDecodeError):
            raise
        if not watch.is_over:
            raise VideoDecodeError(f"{url}: {getattr(error, 'reason', None) or error}") from error
    if watch.is_over:
        raise VideoDecodeError(f"{url}: not there after {_DOWNLOAD_SECONDS} seconds")
    if announced is not None and file.tell() != announced:
        raise VideoDecodeError(f"{url}: {file.tell()} of {announced} bytes arrived")
    if file.tell() == 0:
        raise VideoDecodeError(f"{url}: empty file")
    return file


_ASK = "set REGION_LEARNER_URLS=any to allow it"


class _Watch:
    """
    Ends connections after `_DOWNLOAD_SECONDS`. (The timeout of a socket is for each of its answers, and a server may
    go on to send a byte of a header now and then.)
    """

    def __init__(self):
        self.is_over = False
        self.sockets: list[socket.socket] = []
        self.timer = threading.Timer(_DOWNLOAD_SECONDS, self._end)
        self.timer.daemon = True

    def __enter__(self):
        self.timer.start()

    def __exit__(self, *exception):
        self.timer.cancel()

    def add(self, connection: socket.socket):
        self.sockets.append(connection)
        if self.is_over:
            self._end()

    def _end(self):
        self.is_over = True
        for connection in self.sockets:
            with suppress(OSError):  # it has ended already
                connection.shutdown(socket.SHUT_RDWR)


class _HTTPConnection(http.client.HTTPConnection):
    """Ends with the watch."""

    def __init__(self, *args, watch: _Watch, **kwargs):
        self.watch = watch
        super().__init__(*args, **kwargs)

    def connect(self):
        super().connect()
        self.watch.add(self.sock)


class _HTTPSConnection(_HTTPConnection, http.client.HTTPSConnection):
    pass


class _PublicConnection(http.client.HTTPSConnection):
    """
    Connects to public addresses only, and to those that were looked at: a name may have others a moment later. (Behind
    a proxy it is for the proxy to find the address; those that are known here are looked at.)
    """

    def __init__(self, host: str, watch: _Watch, **kwargs):
        self.watch, self.tls = watch, ssl.create_default_context()
        self.behind_proxy: str | None = None
        super().__init__(host, context=self.tls, **kwargs)

    def set_tunnel(self, host: str, port: int | None = None, headers: Any = None):
        self.behind_proxy = host
        super().set_tunnel(host, port, headers)

    def connect(self):
        host = self.behind_proxy or self.host
        try:
            found = socket.getaddrinfo(host, self.port, type=socket.SOCK_STREAM)
        except socket.gaierror:
            if self.behind_proxy is None:
                raise
            found = []  # a name that the proxy knows alone
        addresses = [str(address[0]) for *_, address in found]
        for address in addresses:
            if not _is_public(address):
                raise OSError(f"{host} is {address}, no public address; {_ASK}")
        if self.behind_proxy is not None:
            super().connect()
            self.watch.add(self.sock)
            return
        for address in addresses:
            try:
                connection = socket.create_connection((address, self.port), self.timeout)
                break
            except OSError as error:
                failure = error
        else:
            raise failure
        self.watch.add(connection)
        self.sock = self.tls.wrap_socket(connection, server_hostname=host)
        self.watch.add(self.sock)


# Addresses of version 6 that lead to one of version 4, or to networks of a site.
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
_NOT_PUBLIC = [ipaddress.ip_network(name) for name in ("::/96", "64:ff9b:1::/48", "fec0::/10")]


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    leads_to: list[Any] = []
    if isinstance(found, ipaddress.IPv6Address):
        if any(found in network for network in _NOT_PUBLIC):
            return False
        leads_to = [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
        if found in _TRANSLATED:
            leads_to.append(ipaddress.IPv4Address(found.packed[-4:]))
    return all(one.is_global and not one.is_multicast for one in (found, *leads_to) if one is not None)


class _HTTPHandler(urllib.request.HTTPHandler):
    def __init__(self, watch: _Watch):
        super().__init__()
        self.watch = watch

    def http_open(self, request):
        return self.do_open(partial(_HTTPConnection, watch=self.watch), request)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def __init__(self, connection: Callable[..., Any], watch: _Watch):
        super().__init__()
        self.connection, self.watch = connection, watch

    def https_open(self, request):
        return self.do_open(partial(self.connection, watch=self.watch), request)


class _RefusingHTTPHandler(urllib.request.BaseHandler):
    def http_open(self, request):
        raise OSError(f"http is not encrypted: use https, or {_ASK}")


@contextmanager
def _open_video(media: str | BinaryIO) -> Iterator[Any]:
    """The first video stream of an opened file."""
    _check_tables(media)
    if not isinstance(media, str):
        media.seek(0)
    with ExitStack() as stack:
        try:
            try:
                container = _open_container(media)
            except av.error.ArgumentError:
                if not isinstance(media, str):
                    raise
                # By its name FFmpeg takes it for one of numbered pictures, or for text: so it has no name.
                file = stack.enter_context(io.FileIO(media.removeprefix("file:")))
                del file.name
                container = _open_container(file)
        except av.error.ArgumentError as error:
            raise VideoDecodeError(
                _unlike_a_video(media) or "neither a video nor a picture of a kind that is read"
            ) from error
        stack.enter_context(container)
        cover = av.stream.Disposition.attached_pic  # the picture in a sound file is no video
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise VideoDecodeError("no video stream")
        if len(streams) > 1 and container.metadata.get("major_brand") in _HEIF_BRANDS:
            raise VideoDecodeError("a HEIF picture in several parts, which cannot be read: save it as JPEG or PNG")
        stream = streams[0]
        context = stream.codec_context
        if context is None:
            raise VideoDecodeError("no decoder for this video codec")
        if context.width * context.height > _MAX_PIXELS:
            raise VideoDecodeError(f"frames of {context.width}x{context.height} pixels, more than {_MAX_PIXELS}")
        # Their size may change later on. And where data is damaged, no picture is made up in its place.
        context.options = {"max_pixels": str(_MAX_PIXELS), "err_detect": "explode"}
        context.thread_count = 1  # threads gain little on a few frames, and data loaders have many processes
        yield stream


def _open_container(media: str | BinaryIO) -> Any:
    options = {
        "format_whitelist": _FORMATS,
        # Of pictures that are decoded to find out what is in the file. Nobody looks at them: what H.264 says before
        # the picture itself is enough.
        "max_pixels": str(_MAX_PIXELS),
        "skip_frame": "all",
    }
    return av.open(media, metadata_errors="ignore", options=options)


_HEIF_BRANDS = {"heic", "heix", "heim", "heis", "mif1"}
_BOXES = {b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pnot", b"sidx", b"uuid"}
_INSIDE = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"}


def _check_tables(media: str | BinaryIO) -> None:
    """
    Refuses an MP4 file (ISO/IEC 14496-12) whose tables stand for more frames than it has bytes: FFmpeg would make a
    list of all of them, of some 50 bytes each, before anybody is asked.
    """
    with opened(media) as file:
        size = file.seek(0, io.SEEK_END)
        if _count_samples(file, 0, size) > max(size, 2**20):
            raise VideoDecodeError(f"damaged: its tables tell of more frames than its {size} bytes can hold")


def _count_samples(file: BinaryIO, start: int, end: int, depth: int = 0) -> int:
    """The samples that tables of a few bytes stand for, in the boxes from `start` to `end`."""
    count = 0
    while start + 8 <= end:
        file.seek(start)
        header = file.read(28)
        size, name, first = int.from_bytes(header[:4], "big"), header[4:8], 8
        if size == 1:  # a size of 64 bits follows
            size, first = int.from_bytes(header[8:16], "big"), 16
        if start == 0 and name not in _BOXES:
            break  # no MP4
        stop = min(start + size, end) if size else end
        if stop < start + 8:
            break
        if name in _INSIDE and depth < len(_INSIDE):
            count += _count_samples(file, start + first, stop, depth + 1)
        elif name == b"stsz" and header[first + 4 : first + 8] != bytes(4):  # all samples of one size
            count += int.from_bytes(header[first + 8 : first + 12], "big")
        elif name == b"trun" and not header[first + 2] & 0xF:  # nothing is said of each sample
            count += int.from_bytes(header[first + 4 : first + 8], "big")
        start = stop
    return count


def _demux(stream: Any) -> Iterator[Any]:
    try:
        yield from stream.container.demux(stream)
    except IndexError as error:  # of PyAV, where streams come and go
        raise VideoDecodeError("damaged: its streams are not those that it begins with") from error


class _ErrorLines:
    """
    What decoders of this thread log as errors while the context lasts. (They all have one thread. The level is that of
    the process, so it is put back after the last of the threads.)
    """

    lock = threading.Lock()
    listening = 0
    before: tuple[int | None, bool] = (None, True)

    def __enter__(self) -> list[tuple[int, str, str]]:
        kind = type(self)
        with self.lock:
            if kind.listening == 0:
                level = av.logging.get_level()
                kind.before = (level, av.logging.get_skip_repeated())
                if level is None or level < av.logging.ERROR:
                    av.logging.set_level(av.logging.ERROR)
                av.logging.set_skip_repeated(False)
            kind.listening += 1
        self.capture = av.logging.Capture(local=True)
        self.lines = self.capture.__enter__()
        return self.lines

    def __exit__(self, *exception):
        kind = type(self)
        self.capture.__exit__(*exception)
        with self.lock:
            kind.listening -= 1
            level = kind.before[0]
            if kind.listening == 0:
                av.logging.set_level(level)
                av.logging.set_skip_repeated(kind.before[1])
        for its_level, name, message in self.lines:
            if level is not None and its_level <= level:  # somebody wants to see them
                logging.getLogger(f"libav.{name}").log(av.logging.adapt_level(its_level), message.strip())


def _decode(lines: list[tuple[int, str, str]], decode: Callable, *packet: Any) -> tuple[list[Any], str | None]:
    """The frames of a packet, and what the decoder logs into `lines` of damage that it covers up."""
    before = len(lines)
    frames = decode(*packet)
    if len(lines) == before:
        return frames, None
    damage = (" ".join(line.split()) for level, _, line in lines[before:] if level <= av.logging.ERROR)
    return frames, next(damage, None)


def _decode_all(stream: Any, ends_at: float = math.inf) -> Iterator[tuple[Any, str | None]]:
    """All frames, and with each the reason if it is damaged: after damage all are, up to the next key frame."""
    damage, since = None, None
    for packet in _demux(stream):
        with _ErrorLines() as lines:  # (each time, as others may listen until the next frame is asked for)
            frames, logged = _decode(lines, packet.decode)
        if logged:
            damage, since = logged, packet.pts
        for frame in frames:
            if frame.is_corrupt:
                damage, since = damage or "incomplete", frame.pts
            elif damage and frame.key_frame:
                is_later = not logged if frame.pts is None or since is None else frame.pts > since
                damage = None if is_later else damage
            yield frame, damage
        _check_time(ends_at)


def _check_time(ends_at: float) -> None:
    if time.monotonic() > ends_at:
        raise VideoDecodeError(f"reading it takes more than {_SECONDS} seconds")


def _list_packets(stream: Any, ends_at: float = math.inf) -> _Packets | None:
    """
    The packets, or None if they do not stand for one frame each. The `data` of a small file is kept, which saves
    reading it twice.
    """
    times, is_key, is_shown = array("q"), bytearray(), bytearray()
    kept: list[Any] | None = []
    size = 0
    name = stream.codec_context.codec.canonical_name  # whichever decoder
    latest = None
    key, key_is_past = None, False  # the last key frame, and whether frames after it have come
    for packet in _demux(stream):
        if not packet.size:  # ends the stream
            continue
        if packet.pts is None or packet.is_corrupt:
            return None
        if name == "vp8" and not memoryview(packet)[0] & 0x10:
            return None  # a frame for reference only (`show_frame`, RFC 6386 section 9.1)
        if name not in _ALWAYS_SHOW and packet.size < _SHOWS_NOTHING:
            return None
        # A key frame is shown after all that precede it; what is shown before it, though it follows, follows at once.
        # Or time begins anew. (Decoding times do not tell: those of Matroska are guesses, and go back.)
        if packet.is_keyframe:
            if latest is not None and packet.pts < latest:
                return None
            key, key_is_past = packet.pts, False
        elif key is not None and packet.pts > key:
            key_is_past = True
        elif key_is_past:
            return None
        latest = packet.pts if latest is None else max(latest, packet.pts)
        if kept is not None:
            size += packet.size + _PACKET
            kept.append(packet)
            if size > _KEPT:
                kept = None
        times.append(packet.pts)
        is_key.append(packet.is_keyframe)
        is_shown.append(not packet.is_discard)
        if len(times) > _MAX_FRAMES:
            raise VideoDecodeError(f"more than {_MAX_FRAMES} frames")
        _check_time(ends_at)
    # What is shown before the first key frame was cut off from what it needs, and may or may not be decoded.
    if not times or not is_key[0] or times[0] > min(times):
        return None
    packets = _Packets(times, is_key, is_shown, kept)
    return None if packets.repeats else packets


def _choose_frames(
    stream: Any, num_frames: int, choose: Callable, keyframes: list[int] | None = None
) -> tuple[VideoMetadata, list[int]]:
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
    metadata.frames_indices = [int(index) for index in choose(metadata=metadata)]
    return metadata, metadata.frames_indices


def _decode_by_time(
    stream: Any, packets: _Packets, wanted: set[int], to_rgb: "_ToRGB", ends_at: float
) -> dict[int, np.ndarray] | None:
    """
    The wanted frames, each decoded from the key frame before it on; None if what comes out is not what the time
    stamps foretell.
    """
    times, keys = packets.shown, packets.keys
    from_key: dict[int, set[int]] = {}  # key frame: the wanted times that are decoded from it on
    for index in sorted(wanted):
        from_key.setdefault(keys[bisect_right(keys, times[index]) - 1], set()).add(times[index])

    # Time stamps out of decoding order are those of the encoder, and tell which frame is which. Those in order may be
    # made up by the container (AVI): then frames have to come out one after another, as foretold, to be believed.
    leave_out = not packets.in_order
    frames: dict[int, np.ndarray] = {}
    with suppress(av.error.FFmpegError), _ErrorLines() as lines:
        for key, its_times in from_key.items():
            upcoming = bisect_left(times, key)
            first = packets.position(key)
            last = max(packets.position(time) for time in its_times)
            following = _packets_from(stream, packets, first)
            # Some decoders make up what a frame refers to, if it is not there: containers may call any frame a key.
            entered = first == 0
            for frame in _decode_from(stream, following, its_times, key, packets.times[last], leave_out, lines):
                _check_time(ends_at)
                if frame.pts is not None and frame.pts < key:
                    continue  # not whole without what precedes `key`
                entered = entered or (
                    frame.pts == key and (frame.key_frame or frame.pict_type == av.video.frame.PictureType.I)
                )
                if not entered:
                    return None
                index = bisect_left(times, frame.pts) if packets.position(frame.pts) >= 0 else -1
                if index < upcoming or (index > upcoming and not leave_out) or frame.is_corrupt:
                    return None
                if frame.pts in its_times:
                    frames[index] = to_rgb(frame)
                upcoming = index + 1
    return frames if len(frames) == len(wanted) else None


def _packets_from(stream: Any, packets: _Packets, first: int) -> Iterator[Any]:
    """PyAV's packets from number `first` on; none if the container cannot be entered there or before."""
    if packets.data is not None:
        yield from packets.data[first:]
        yield None  # no more, so that the decoder gives what it holds
        return
    stream.container.seek(packets.times[first], stream=stream)
    reached = False
    for packet in _demux(stream):
        here = packets.position(packet.pts) if packet.size else -1
        if not reached and here != first:
            if here > first or (here < 0 and packet.size):
                return
            continue
        reached = True
        yield packet if packet.size else None


def _decode_from(
    stream: Any, packets: Iterable[Any], wanted: set[int], key: int, last: int, leave_out: bool, lines: list
) -> Iterator[Any]:
    """
    Frames from the key frame of the time `key` on, until all `wanted` times have come, or the decoder tells of damage.
    With `leave_out`, without frames that neither are wanted nor are referred to by others, and without those that
    would be decoded only to put the wanted ones in order: nothing after the packet of the time `last`.
    """
    context = stream.codec_context
    if context.is_open:
        context.flush_buffers()
    skip = "NONREF" if leave_out and context.name in _SKIPS_UNREFERRED else "DEFAULT"
    length_size = _length_size(context)
    missing, latest = set(wanted), None
    for packet in packets:
        if packet is not None:
            # What is left out cannot show that it is damaged. So what may be is decoded: frames in order of display,
            # which are hardly ever unreferred, and what has bytes that these codecs do not write.
            reordered = latest is not None and packet.pts < latest
            left_out = reordered and packet.pts not in wanted and _looks_sound(bytes(packet), length_size)
            context.skip_frame = skip if left_out else "DEFAULT"
            latest = packet.pts if latest is None else max(latest, packet.pts)
        frames, damage = _decode(lines, context.decode, packet)
        if damage and (packet is None or packet.pts >= key):  # (what is shown before `key` is not whole without more)
            return
        ends = packet is None or (leave_out and packet.pts == last)
        if packet is not None and ends:
            held, damage = _decode(lines, context.decode, None)  # all that it has held back to put in order
            if damage:
                return
            frames += held
        for frame in frames:
            missing.discard(frame.pts)
            yield frame
        if ends or not missing:
            return


def _length_size(context: Any) -> int:
    """Bytes of the lengths before units of H.264 in MP4 and others (ISO/IEC 14496-15); 0 where there are none."""
    extradata = context.extradata or b""
    return (extradata[4] & 3) + 1 if context.name == "h264" and len(extradata) > 4 and extradata[0] == 1 else 0


def _looks_sound(data: bytes, length_size: int) -> bool:
    """
    Whether lengths add up, and there are no three zero bytes but in them or before a one: encoders see to it, so that
    the codes stand out that pictures begin with.
    """
    start = 0
    while length_size and start < len(data):
        end = start + length_size + int.from_bytes(data[start : start + length_size], "big")
        if end > len(data) or data.find(_ZEROS, start + length_size, end) >= 0:
            return False
        start = end
    at = data.find(_ZEROS) if not length_size else -1
    while at >= 0:
        if data[at + 3 : at + 4] != b"\1":
            return False
        at = data.find(_ZEROS, at + 1)
    return True


def _decode_by_count(stream: Any, wanted: set[int], to_rgb: "_ToRGB", ends_at: float) -> dict[int, np.ndarray]:
    """The wanted frames, all before them decoded too."""
    frames: dict[int, np.ndarray] = {}
    for index, (frame, damage) in enumerate(_decode_all(stream, ends_at)):
        if index in wanted:
            if damage:
                raise VideoDecodeError(f"frame {index} is damaged ({damage})")
            frames[index] = to_rgb(frame)
            if len(frames) == len(wanted):
                break
    if missing := sorted(wanted - frames.keys()):
        raise VideoDecodeError(f"frames {missing} cannot be decoded")
    return frames


def _count_frames(media: str | BinaryIO, ends_at: float) -> int:
    with _open_video(media) as stream:
        return sum(1 for _ in _decode_all(stream, ends_at))


class Scale(NamedTuple):
    """
    A size to scale frames to.

    Args:
        size_for: called with the height and width of an upright frame, gives those wanted.
        interpolation: a name in PyAV's `Interpolation`. All of them smooth while they shrink.
        of_pictures: whether picture files are scaled, too. (Without it they stay equal to opened pictures.)
    """

    size_for: Callable[[int, int], tuple[int, int]]
    interpolation: str = "BICUBIC"
    of_pictures: bool = True


class _ToRGB:
    """
    Turns frames of one clip into upright RGB (height, width, 3), all of the size of the first, as the size may change
    within a stream; scaled, if wanted. (One converter for all: to set one up takes longer than to convert a small
    frame.)

    FFmpeg's usual conversion, which all readers of videos use, is a level too dark in the mean; the `exact` one is
    not, and slower. What is encoded again should be converted exactly: it then is as dark as its original when read.
    """

    def __init__(self, scale: Scale | None = None, exact: bool = False):
        self.scale = scale
        self.converter = av.video.reformatter.VideoReformatter()
        flags = av.video.reformatter.Interpolation
        self.interpolation = flags[scale.interpolation] if scale else flags.BILINEAR
        if exact:
            self.interpolation |= flags.ACCURATE_RND | flags.FULL_CHR_H_INT
        self.shape: Any = None
        self.original = (0, 0)  # height and width of the first frame, upright
        self.count = 1

    def expects(self, count: int, total: int) -> None:
        """So many frames are to be held at once, of a file of `total`."""
        self.count = count
        if total == 1 and self.scale is not None and not self.scale.of_pictures:
            self.scale = None

    def __call__(self, frame: Any) -> np.ndarray:
        orientation = _orientation(frame)
        upright = (frame.width, frame.height) if orientation.transpose else (frame.height, frame.width)
        size = self.scale.size_for(*upright) if self.scale else upright
        if orientation.transpose:
            size = size[::-1]
        if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
            image = over_black(self._convert(frame, "rgba", size))
        else:
            image = self._convert(frame, "rgb24", size)
        image = orientation.apply(image)
        if self.shape is None:
            self.shape, self.original = image.shape, upright
            _check_clip(self.count, image)
        if image.shape != self.shape:
            image = np.asarray(Image.fromarray(image).resize(self.shape[1::-1], Image.Resampling.BILINEAR))
        return image

    def _convert(self, frame: Any, form: str, size: tuple[int, int]) -> np.ndarray:
        height, width = size
        return self.converter.reformat(
            frame, format=form, height=height, width=width, interpolation=self.interpolation, threads=1
        ).to_ndarray()


class _Orientation(NamedTuple):
    """How an image as it is stored becomes upright: rows for columns, and then what is turned over."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, image: np.ndarray) -> np.ndarray:
        if self.transpose:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


# By quarter turns to the left.
_BY_TURNS = {
    1: _Orientation(True, True, False),
    2: _Orientation(False, True, True),
    3: _Orientation(True, False, True),
}


def _orientation(frame: Any) -> _Orientation:
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # of PyAV, which does not know all side data, such as EXIF
        return _BY_TURNS.get(round(frame.rotation / 90) % 4, _Orientation())
    if matrix is None:
        return _Orientation()
    # Where columns and rows go: p' = a p + c q, q' = b p + d q, for column p and row q (libavutil/display.h).
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if min(abs(a), abs(d)) > max(abs(b), abs(c)):
        return _Orientation(False, d < 0, a < 0)
    if min(abs(b), abs(c)) > max(abs(a), abs(d)):
        return _Orientation(True, b < 0, c < 0)
    return _Orientation()  # sheared, or turned half-way


# ---------------------------------------------------------------------------------------------------------
# The forms in which clips are given
# ---------------------------------------------------------------------------------------------------------


def _is_encoded(clip: Any) -> bool:
    return isinstance(clip, str | bytes | bytearray | memoryview | os.PathLike | Mapping) or hasattr(clip, "read")


class _Encoded(NamedTuple):
    """A clip that is to be decoded, or a list of frames some of which are; and how they are scaled and read then."""

    source: Any
    scale: Scale | None = None
    do_convert_rgb: bool = True
    do_rescale: bool = True


def _read_or_encoded(clip: _Encoded, data_format: str | ChannelDimension | None = None) -> "_Encoded | torch.Tensor":
    """The frames of a clip that is given as frames; one that is to be decoded, wholly or in part, as it is."""
    source = clip.source
    if _is_encoded(source) or (isinstance(source, list) and any(map(_is_encoded, source))):
        return clip
    return frames_as_tensor(source, data_format, clip.do_convert_rgb, clip.do_rescale)


def _as_clips(videos: Any) -> list[Any]:
    """
    A flat list of clips, each of them an encoded video, an array of four dimensions, or a list of frames.

    A list of frames (PIL images or arrays) is one clip; any other list is a batch, in which a lone frame is a clip of
    its own, and a list is a clip whose frames may be files, too.
    """
    if is_frame(videos):
        return [[videos]]
    if _is_encoded(videos) or (is_array(videos) and videos.ndim == 4):
        return [videos]
    if is_array(videos) and videos.ndim == 5:
        return list(videos)
    if isinstance(videos, list | tuple):
        if videos and all(is_frame(item) for item in videos):
            return [list(videos)]
        return [clip for item in videos for clip in _clips_of_item(item)]
    if isinstance(videos, int | float):
        raise TypeError("A video is not a list of numbers: turn it into an array, np.asarray(frames, np.uint8).")
    form = f"an array of {videos.ndim} dimensions" if is_array(videos) else type(videos).__name__
    raise TypeError(
        f"A video is a path, URL, bytes, a binary file, an array of 4 dimensions or a list of frames, not {form}."
    )


def _clips_of_item(item: Any) -> list[Any]:
    if not isinstance(item, list | tuple):
        return _as_clips(item)
    if all(is_frame(part) or _is_encoded(part) for part in item):
        if not item:
            raise ValueError("A clip has no frames: expected at least one.")
        return [item[0]] if len(item) == 1 and _is_encoded(item[0]) else [list(item)]
    return [clip for part in item for clip in _clips_of_item(part)]


def _read_frames(frames: list[Any], do_convert_rgb: bool, do_rescale: bool) -> torch.Tensor:
    """Frames that are given as files, or some of them, as a tensor (T, C, height, width)."""
    read = [read_clip(frame, _only_frame)[0][0] if _is_encoded(frame) else frame for frame in frames]
    return frames_as_tensor(read, None, do_convert_rgb, do_rescale)


def _only_frame(metadata: VideoMetadata) -> list[int]:
    if metadata.total_num_frames != 1:
        raise ValueError(
            f"A video of {metadata.total_num_frames} frames was given as one frame of a clip: a list within the list "
            "of videos is one clip, of pictures. Give videos in one flat list."
        )
    return [0]


# ---------------------------------------------------------------------------------------------------------
# The processor
# ---------------------------------------------------------------------------------------------------------


class RegionLearnerVideoProcessorKwargs(VideosKwargs, total=False):
    """
    output_size (`int` or `dict[str, int]`, *optional*, defaults to `{"height": 224, "width": 224}`):
        The size of the frames that come out, and so the `image_size` of the model. `None`: frames stay as cropped;
        that is also what giving `crop_size` without `output_size` means.
    antialias (`bool`, *optional*, defaults to `True`):
        Whether to smooth while shrinking. `False` is the evaluation of the original implementation.
    short_clips (`"repeat"` or `"error"`, *optional*, defaults to `"repeat"`):
        What to do with a video of fewer frames than `num_frames`: repeat its last frame, which
        `VideoMetadata.frames_indices` shows, or raise a `ValueError`.
    sampling (`"segments"` or `"keyframes"`, *optional*, defaults to `"segments"`):
        Which frame of a segment training draws: any, or, where there is one in the segment, a key frame, which needs
        no other frame to be decoded. That is faster the more key frames a video has, and frames are less varied.
    crop_scale (`tuple[float, float]`, *optional*, defaults to `(0.5, 1.0)`):
        In training, the share of a frame's area that the random crop keeps.
    flip_probability (`float`, *optional*, defaults to 0.5):
        In training, how often a clip is mirrored. 0 where captions tell left from right.
    training (`bool`, *optional*, defaults to `False`):
        Random frames, crops and flips instead of fixed ones. Not saved.
    generator (`torch.Generator`, *optional*):
        The source of that randomness; without it, torch's global one. Not saved.
    """

    output_size: Annotated[int | list[int] | tuple[int, ...] | dict[str, int] | None, image_size_validator()]
    antialias: bool | None
    short_clips: Literal["repeat", "error"] | None
    sampling: Literal["segments", "keyframes"] | None
    crop_scale: list[int | float] | tuple[int | float, int | float] | None
    flip_probability: int | float | None
    training: bool | None
    generator: torch.Generator | None


class RegionLearnerVideoProcessor(BaseVideoProcessor):
    r"""
    Turns videos into `pixel_values_videos` (B, T, 3, height, width), float32.

    Frames: the video is split into `num_frames` equal segments, of each of which the middle frame is taken, or in
    training a random one. With `fps` there are that many segments a second. `do_sample_frames=False` takes all.

    Evaluation: resize the short side to `size`, crop the centre to `crop_size`, resize to `output_size`, rescale and
    normalise. Training: one random crop, resized to `output_size`, and one flip for all frames of a clip, instead of
    the first three. Frames of uint8 are resized as such, unless `antialias=False`: that is 5 to 15 times as fast as in
    floating point, and each resizing rounds. Those of large videos are scaled down as they are decoded, which is as
    near to that as rounding. `do_resize=False` leaves out all resizing, and with it the random crop.

    `videos` is one clip or a list of them, of any mixture of kinds: a path, an https URL, the bytes of a
    file, a binary file object, a `{"path": ..., "bytes": ...}` dict, an array or tensor of 4 dimensions, or a list of
    frames (PIL images or arrays). A list within the list is one clip, too, and its frames may be files:
    `[["1.png", "2.png"], ["3.png", "4.png"]]` are two clips. Transparent parts are put over black.

    Frames of `uint8` are levels within 0..255. Frames of floats must lie within 0..1 and are levels divided by 255;
    with `do_rescale=False` they are used as they are, whatever their range. Other integers, booleans and PIL images of
    32 bits have no single reading and are refused. Where channels may be first or last, `input_data_format` must say
    which. Picture files are read with Pillow and turned as their EXIF orientation says, as opened pictures are.

    Raises `VideoDecodeError`, a `ValueError`, for videos that cannot be read.

    Example:

    ```python
    >>> processor = RegionLearnerVideoProcessor(num_frames=4)
    >>> processor(["a.mp4", "b.webm"], return_tensors="pt").pixel_values_videos.shape
    torch.Size([2, 4, 3, 224, 224])
    ```
    """

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 256}
    default_to_square = False
    crop_size = {"height": 256, "width": 256}
    output_size = {"height": 224, "width": 224}
    antialias = True
    do_resize = True
    do_center_crop = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = True
    num_frames = 4
    fps = None
    short_clips = "repeat"
    sampling = "segments"
    crop_scale = (0.5, 1.0)
    flip_probability = 0.5
    training = False
    generator = None
    valid_kwargs = RegionLearnerVideoProcessorKwargs  # type: ignore[assignment]
    model_input_names = ["pixel_values_videos"]

    def __init__(self, **kwargs: Unpack[RegionLearnerVideoProcessorKwargs]):
        if tvf is None:
            raise ImportError("RegionLearnerVideoProcessor needs torchvision: pip install torchvision")
        super().__init__(**_settle(kwargs))

    @classmethod
    def for_image_size(cls, image_size: int, **kwargs: Unpack[RegionLearnerVideoProcessorKwargs]):
        """The default transforms scaled to frames of `image_size` pixels, e.g. for 112: to 128, crop 128, to 112."""
        edge = round(image_size * cls.size["shortest_edge"] / cls.output_size["height"])
        return cls(size={"shortest_edge": edge}, crop_size=edge, output_size=image_size, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        for key in ("training", "generator"):  # of one call, not of the processor
            output.pop(key, None)
        return output

    def preprocess(self, videos: Any, **kwargs: Unpack[RegionLearnerVideoProcessorKwargs]) -> BatchFeature:
        settled = _settle(kwargs)
        data_format = settled.get("input_data_format")
        do_convert_rgb, do_rescale = (bool(self._option(settled, name)) for name in ("do_convert_rgb", "do_rescale"))
        scale = self.scale_while_decoding(settled)
        clips = [
            _read_or_encoded(_Encoded(clip, scale, do_convert_rgb, do_rescale), data_format)
            for clip in _as_clips(videos)
        ]
        if not clips:
            raise ValueError("No videos were given.")
        if do_rescale or any(isinstance(clip, _Encoded) or clip.dtype == torch.uint8 for clip in clips):
            self._check_normalization(settled)
        return super().preprocess(clips, **{**settled, "input_data_format": ChannelDimension.FIRST})

    def _option(self, kwargs: Mapping[str, Any], name: str) -> Any:
        """An option of a call with `kwargs`."""
        return kwargs[name] if kwargs.get(name) is not None else getattr(self, name)

    def _check_normalization(self, kwargs: Mapping[str, Any]):
        """Refuses to normalise levels within 0..255, which were not rescaled, as if they were within 0..1."""
        option = partial(self._option, kwargs)
        highest = 255 * (option("rescale_factor") if option("do_rescale") else 1)
        if option("do_normalize") and highest > 2 and np.max(option("image_std")) < 1:
            raise ValueError(
                f"Frames of 0..{highest:g} would be normalised with an image_std of {option('image_std')}, which is "
                "for 0..1: leave do_rescale=True and rescale_factor=1/255, or set do_normalize=False, too."
            )

    def scale_while_decoding(self, kwargs: Mapping[str, Any]) -> Scale | None:
        """
        How frames of videos are scaled while their colours are converted, which is much faster than afterwards: as
        far down as a call with `kwargs` does it first of all; in training, so that no random crop has to be enlarged.
        """

        option = partial(self._option, kwargs)
        interpolation = {Image.Resampling.BILINEAR: "BILINEAR", Image.Resampling.BICUBIC: "BICUBIC"}.get(
            option("resample")
        )
        if not (option("do_resize") and option("antialias")) or interpolation is None:
            return None
        output = kwargs.get("output_size", self.output_size) or option("crop_size")
        training = bool(option("training"))
        size = SizeDict(**get_size_dict(output if training else option("size"), default_to_square=training))
        if training:
            if not size.height or not size.width or not min(option("crop_scale")) > 0:  # which is an error later on
                return None
            # The smallest crop is so long and so wide a part of the frame.
            edge = math.ceil(max(size.height, size.width) / math.sqrt(min(option("crop_scale")) * 3 / 4))
        elif size.shortest_edge and not size.longest_edge:
            edge = size.shortest_edge
        else:
            return None
        return Scale(partial(_to_short_edge, edge), interpolation, of_pictures=False)

    def decode(
        self,
        source: Any,
        training: bool = False,
        generator: torch.Generator | None = None,
        num_frames: int | None = None,
        choose: Callable[..., np.ndarray] | None = None,
        scale: Scale | None = None,
    ) -> tuple[torch.Tensor, VideoMetadata]:
        """
        Reads and samples one video, without transforming it.

        Args:
            source: anything that is one clip in a list of videos.
            training, generator, num_frames: as in a call of the processor.
            choose: called as `choose(metadata=VideoMetadata)`, gives the indices of the wanted frames, instead of
                those of [`sample_frames`].
            scale: what the frames of encoded videos are scaled to; see [`scale_while_decoding`].

        Returns:
            Frames (T, 3, height, width), uint8 of encoded videos, and their metadata.

        Raises:
            VideoDecodeError: the video cannot be read.
        """
        clips = _as_clips([source])
        if len(clips) != 1:
            raise ValueError(f"decode() reads one video at a time; got {len(clips)}.")
        clip = _Encoded(clips[0], scale, bool(self.do_convert_rgb), do_rescale=False)
        (frames,), (metadata,) = self._decode_and_sample_videos(
            [_read_or_encoded(clip)],
            do_sample_frames=self.do_sample_frames or num_frames is not None or choose is not None,
            sample_indices_fn=choose
            or partial(self.sample_frames, num_frames=num_frames, training=training, generator=generator),
        )
        return frames, metadata

    def normalize_clips(self, clips: torch.Tensor) -> torch.Tensor:
        """
        Rescales and normalises, as a call does last, what a call with `rescale_factor=1.0, do_normalize=False` left
        out: four times less to move to a GPU than if it was done before.

        Args:
            clips: (..., 3, height, width), on any device; levels within 0..255, of uint8 or floats.

        Returns:
            float32 of the same shape.

        Raises:
            ValueError: the processor normalises as within 0..1 what it does not rescale.
        """
        if self.do_rescale or clips.dtype == torch.uint8:
            self._check_normalization({})
        return self.rescale_and_normalize(
            clips.to(torch.float32),
            self.do_rescale,
            self.rescale_factor,
            self.do_normalize,
            self.image_mean,
            self.image_std,
        )

    def fetch_videos(
        self, video_url_or_urls: Any, sample_indices_fn: Callable | None = None, scale: Scale | None = None
    ):
        """Decodes videos with PyAV: `(frames, metadata)`, frames (T, 3, height, width); of a list, lists of both."""
        if isinstance(video_url_or_urls, list):
            return list(zip(*[self.fetch_videos(video, sample_indices_fn, scale) for video in video_url_or_urls]))
        frames, metadata = read_clip(video_url_or_urls, sample_indices_fn or _all_frames, scale)
        return torch.from_numpy(frames).permute(0, 3, 1, 2), metadata

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: int | float | None = None,
        training: bool = False,
        generator: torch.Generator | None = None,
        short_clips: str | None = None,
        sampling: str | None = None,
        **kwargs,
    ) -> np.ndarray:
        """
        Segment sampling: indices of `num_frames` frames, one from each of as many equal segments of the video.

        Args:
            metadata: `total_num_frames`, for `fps` its `fps`, and for key frames its `keyframes`, if it has them.
            num_frames: defaults to that of the processor.
            fps: segments a second, instead of `num_frames`.
            training: a random frame of each segment (any of them, the last included) instead of the middle one.
            generator: for `training`.
            short_clips, sampling: default to those of the processor.

        Raises:
            ValueError: more frames are asked for than there are and `short_clips` is "error"; or `fps` is asked for
                and that of the video is unknown or lower.
        """
        total = metadata.total_num_frames
        if num_frames is None and fps is None:
            num_frames, fps = self.num_frames, self.fps
        if fps is not None:
            if num_frames is not None:
                raise ValueError("num_frames and fps exclude each other; give one of them.")
            if metadata.fps is None:
                raise ValueError(
                    f"Sampling {fps} frames a second needs the video's own frame rate: give `video_metadata` with "
                    "`fps`, or use `num_frames`."
                )
            if fps > metadata.fps:
                raise ValueError(f"Cannot sample {fps} frames a second from a video of {metadata.fps:g}.")
            num_frames = max(1, int(total / metadata.fps * fps + 1e-6))  # its own rate gives all
        if num_frames is None:
            return np.arange(total)
        short_clips = short_clips or self.short_clips
        if total < num_frames and short_clips == "error":
            raise ValueError(
                f"The video has {total} frames, num_frames={num_frames} are wanted: lower num_frames, or repeat the "
                'last frame with short_clips="repeat".'
            )

        borders = np.floor(np.linspace(0, total, min(num_frames, total) + 1)).astype(int).tolist()
        if training:
            keyframes = getattr(metadata, "keyframes", None) if (sampling or self.sampling) == "keyframes" else None
            indices = [_draw(start, end, keyframes or [], generator) for start, end in pairwise(borders)]
        else:
            indices = [(start + end - 1) // 2 for start, end in pairwise(borders)]
        return np.array(indices + indices[-1:] * (num_frames - total))

    def _decode_and_sample_videos(
        self,
        videos: list[Any],
        video_metadata: Any = None,
        do_sample_frames: bool | None = None,
        sample_indices_fn: Callable | None = None,
    ) -> tuple[list[torch.Tensor], list[VideoMetadata]]:
        """Encoded videos and tensors (T, C, height, width), in one list, to tensors of the sampled frames."""
        given: Sequence[VideoMetadata | None] = [None] * len(videos)
        if video_metadata is not None:
            given = make_batched_metadata(videos, video_metadata)
            if len(given) != len(videos):
                raise ValueError(f"{len(videos)} videos came with {len(given)} video_metadata; give one for each.")

        clips, metadata = [], []
        for video, its_metadata in zip(videos, given):
            if isinstance(video, _Encoded) and not isinstance(video.source, list):
                choose = sample_indices_fn if do_sample_frames else None
                clip, its_metadata = self.fetch_videos(video.source, choose, video.scale)
            else:
                frames = video.source if isinstance(video, _Encoded) else video
                total = len(frames)
                is_known = its_metadata is not None
                if its_metadata is None:
                    its_metadata = VideoMetadata(total, frames_indices=list(range(total)))
                indices = list(range(total))
                if do_sample_frames:
                    if its_metadata.total_num_frames != total:
                        raise ValueError(
                            f"The metadata tells of {its_metadata.total_num_frames} frames, the video has {total}. "
                            "Are they sampled already? Then set do_sample_frames=False."
                        )
                    indices = sample_indices_fn(metadata=its_metadata).tolist()
                    its_metadata = dataclasses.replace(its_metadata, frames_indices=indices)
                if isinstance(video, _Encoded):
                    clip = _read_frames([frames[i] for i in indices], video.do_convert_rgb, video.do_rescale)
                else:
                    clip = video[indices] if do_sample_frames else video
                if not is_known:
                    its_metadata.height, its_metadata.width = clip.shape[-2:]
            clips.append(clip)
            metadata.append(its_metadata)
        return clips, metadata

    def convert_to_rgb(self, video: torch.Tensor) -> torch.Tensor:
        """
        (..., C, height, width) with C of 1, 3 or 4 to C = 3. Transparent parts are put over black; the alpha of floats
        is within 0..1.
        """
        return to_rgb(video, highest=1)

    def center_crop(self, image: torch.Tensor, size: SizeDict, **kwargs) -> torch.Tensor:
        """As torchvision, and so the original, does it; transformers rounds half pixels the other way."""
        return tvf.center_crop(image, [size.height, size.width])

    def random_crop(
        self, video: torch.Tensor, scale: tuple[float, float], generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """
        Crops a random part of (..., height, width): a share within `scale` of the area, an aspect ratio between
        3/4 and 4/3. This corresponds to `RandomResizedCrop` of torchvision, before its resizing.
        """
        height, width = video.shape[-2:]
        for _ in range(10):
            draw = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
            area = height * width * (scale[0] + draw[0] * (scale[1] - scale[0]))
            ratio = (4 / 3) ** (2 * draw[1] - 1)  # of width to height; wide as often as tall
            crop_height, crop_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < crop_height <= height and 0 < crop_width <= width:
                top, left = int(draw[2] * (height - crop_height + 1)), int(draw[3] * (width - crop_width + 1))
                return video[..., top : top + crop_height, left : left + crop_width]
        # So long or so flat a frame has no such part: its centre, as near to those ratios as can be.
        return tvf.center_crop(video, [min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))])

    def _standardize_kwargs(self, **kwargs) -> dict:
        kwargs = super()._standardize_kwargs(**kwargs)
        output_size, crop_scale = kwargs.get("output_size"), kwargs.get("crop_scale")
        if output_size is not None and not isinstance(output_size, SizeDict):
            kwargs["output_size"] = SizeDict(**get_size_dict(output_size, param_name="output_size"))
        if crop_scale is not None:
            kwargs["crop_scale"] = crop_scale = tuple(crop_scale)
            if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
                raise ValueError(f"crop_scale is two shares of the area, 0 < low <= high <= 1; got {crop_scale}.")
        if not 0 <= (kwargs.get("flip_probability") or 0) <= 1:
            raise ValueError(f"flip_probability is between 0 and 1; got {kwargs['flip_probability']}.")
        if kwargs.get("short_clips") not in (None, "repeat", "error"):
            raise ValueError(f'short_clips is "repeat" or "error"; got {kwargs["short_clips"]!r}.')
        if kwargs.get("sampling") not in (None, "segments", "keyframes"):
            raise ValueError(f'sampling is "segments" or "keyframes"; got {kwargs["sampling"]!r}.')
        if kwargs.get("num_frames") is not None and kwargs["num_frames"] < 1:
            raise ValueError(f"num_frames is at least 1; got {kwargs['num_frames']}.")
        return kwargs

    def _preprocess(
        self,
        videos: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | int | None,
        do_center_crop: bool,
        crop_size: SizeDict,
        output_size: SizeDict | None,
        antialias: bool,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        training: bool,
        generator: torch.Generator | None,
        crop_scale: tuple[float, float],
        flip_probability: float,
        do_convert_rgb: bool = False,
        return_tensors: str | None = None,
        **kwargs,
    ) -> BatchFeature:
        resize = partial(self.resize, resample=resample, antialias=antialias)
        clips = []
        for video in videos:
            if do_convert_rgb:  # done before by transformers >= 5.23, left to this method by earlier ones
                video = self.convert_to_rgb(video)
            if not (antialias and video.dtype == torch.uint8):
                # (In memory channels last, as decoded, floating point takes twice as long.)
                video = video.to(torch.float32, memory_format=torch.contiguous_format)
            if training:
                if do_resize:
                    video = resize(self.random_crop(video, crop_scale, generator), size=output_size or crop_size)
                if torch.rand((), generator=generator) < flip_probability:
                    video = video.flip(-1)
            else:
                if do_resize:
                    video = resize(video, size=size)
                if do_center_crop:
                    video = self.center_crop(video, crop_size)
                if do_resize and output_size is not None:
                    video = resize(video, size=output_size)
            video = video.contiguous()
            if (do_rescale and rescale_factor != 1) or do_normalize:
                video = video.to(torch.float32)
                video = self.rescale_and_normalize(
                    video, do_rescale, rescale_factor, do_normalize, image_mean, image_std
                )
            clips.append(video)
        if return_tensors is not None and len({clip.shape for clip in clips}) > 1:
            raise ValueError(
                f"Clips of different shapes make no batch: {sorted({tuple(clip.shape) for clip in clips})}. Sample as "
                "many frames of each with num_frames, and leave resizing and cropping on."
            )
        return BatchFeature(data={"pixel_values_videos": clips}, tensor_type=return_tensors)


def _settle(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Where one given argument makes the default of another meaningless, sets that to None."""
    kwargs = dict(kwargs)
    if kwargs.get("fps") is not None:
        if kwargs.setdefault("num_frames", None) is not None:
            raise ValueError("num_frames and fps exclude each other; give one of them.")
    elif kwargs.get("num_frames") is not None:
        kwargs["fps"] = None
    if kwargs.get("crop_size") is not None:
        kwargs.setdefault("output_size", None)
    return kwargs


def _to_short_edge(edge: int, height: int, width: int) -> tuple[int, int]:
    """
    Height and width with a short edge of `edge`, as transformers rounds them. Frames less than twice as large stay as
    they are: there is little to be gained.
    """
    if min(height, width) < 2 * edge:
        return height, width
    long_edge = int(edge * max(height, width) / min(height, width))
    return (edge, long_edge) if height <= width else (long_edge, edge)


def _draw(start: int, end: int, keyframes: list[int], generator: torch.Generator | None) -> int:
    """A random frame from `start` to `end`, excluded: one of the `keyframes` (sorted), if any lies there."""
    there = keyframes[bisect_left(keyframes, start) : bisect_left(keyframes, end)] or range(start, end)
    return there[int(torch.randint(len(there), (), generator=generator))]


def _all_frames(metadata: VideoMetadata) -> range:
    return range(metadata.total_num_frames)


__all__ = ["RegionLearnerVideoProcessor", "RegionLearnerVideoProcessorKwargs", "VideoDecodeError"]

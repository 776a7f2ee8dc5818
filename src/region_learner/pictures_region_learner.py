# Copyright 2026 The RegionLearner authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in
# compliance with the License. You may obtain a copy at http://www.apache.org/licenses/LICENSE-2.0
"""Pictures and frames of RegionLearner: picture files, PIL pictures and arrays become levels of 0 to 255, or an error.

Picture files are read with Pillow, as people open them themselves, so that a path and an opened picture give equal
pixels. What has more than one reading (integers other than uint8, floats outside 0 to 1, pictures of 32 bits) is
refused.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, features
from transformers.image_utils import ChannelDimension

MAX_PIXELS = 2**26  # of one picture. What claims to be larger is damaged or hostile.
_ROUNDING = 1 / 510  # by which floats may pass 0 and 1, as resizing and half precision do: half a level
_RATE = 25  # frames per second, as which FFmpeg counts a picture
_HEAD = 64  # bytes by which a file is known
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_ORIENTATION = 0x0112  # of EXIF
# What sets a picture upright, by the value of this tag.
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow raises for damaged files, by whichever of its plugins.
_DAMAGED = (
    *(OSError, SyntaxError, EOFError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError),
    *(AttributeError, AssertionError, MemoryError, struct.error, zlib.error),
)


# ---------------------------------------------------------------------------------------------------------
# Picture files
# ---------------------------------------------------------------------------------------------------------


class PictureError(ValueError):
    """A picture that cannot be read, or that has no single reading as levels. The message is one line."""


def kind_of_picture(media: str | BinaryIO) -> str | None:
    """
    Which picture a file is (Pillow's name of its format), by its first bytes; None if it is left to FFmpeg.

    GIF and animated PNG are not among them: FFmpeg reads them as the videos that they are.
    """
    with opened(media) as file:
        head = file.read(_HEAD)
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return None if _is_animated_png(media) else "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and any(
        brand in head[8 : int.from_bytes(head[:4], "big")] for brand in (b"avif", b"avis")
    ):
        return "AVIF"
    if head.startswith((b"II*\0", b"MM\0*")):
        return "TIFF"
    if head.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "JPEG2000"
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "BMP"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PPM"
    return None


@contextmanager
def opened(media: str | BinaryIO) -> Iterator[BinaryIO]:
    """The file, at its beginning; a buffer stays open."""
    if isinstance(media, str):
        with open(media.removeprefix("file:"), "rb") as file:
            yield file
    else:
        media.seek(0)
        yield media


def _is_animated_png(media: str | BinaryIO) -> bool:
    """Whether there is a chunk `acTL`, which comes before the pixels."""
    with opened(media) as file:
        file.seek(8)
        while len(header := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", header)
            if name in (b"acTL", b"IDAT", b"IEND"):
                return name == b"acTL"
            file.seek(length + 4, 1)
    return False


class PictureFile:
    """
    A picture, or an animated WebP or AVIF.

    Raises:
        PictureError: the file is damaged, too large, or of a kind that cannot be read.
    """

    def __init__(self, file: BinaryIO, kind: str):
        if kind == "AVIF" and not features.check("avif"):
            raise PictureError("AVIF pictures need Pillow 11.3 or newer: pip install -U pillow")
        if kind == "PNG":  # the sums over its chunks, which decoding does not look at
            with _pillow_errors(), Image.open(file, formats=["PNG"]) as image:
                image.verify()
            file.seek(0)
        with _pillow_errors():
            self.image = Image.open(file, formats=[kind])
            width, height = self.image.size
            if width * height > MAX_PIXELS:
                raise PictureError(f"a picture of {width}x{height} pixels, more than {MAX_PIXELS} pixels")
            is_animation = kind in ("WEBP", "AVIF")
            self.num_frames: int = getattr(self.image, "n_frames", 1) if is_animation else 1

    def frame(self, index: int) -> tuple[np.ndarray, float, float]:
        """
        Frame `index`, uint8 (height, width, 3): RGB, upright, transparent parts over black; and when it begins and
        ends, in seconds.
        """
        with _pillow_errors():
            if self.num_frames > 1:
                self.image.seek(index)
            self.image.load()
        begins = self.image.info.get("timestamp", 0) / 1000
        lasts = self.image.info.get("duration", 0) / 1000 if self.num_frames > 1 else 1 / _RATE
        return picture_levels(self.image), begins, begins + lasts


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """All that Pillow raises for damaged files, as a PictureError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged notes on the picture, and of sizes, which are checked here
            yield
    except PictureError:
        raise
    except _DAMAGED as error:
        raise PictureError(f"damaged, or of a kind that cannot be read ({' '.join(str(error).split())})") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"more than {MAX_PIXELS} pixels") from error


# ---------------------------------------------------------------------------------------------------------
# PIL pictures
# ---------------------------------------------------------------------------------------------------------


def picture_levels(image: Image.Image, do_convert_rgb: bool = True) -> np.ndarray:
    """
    A PIL picture as uint8 (height, width, C), upright.

    Args:
        image: of any mode that has one reading as levels. 16 bits of grey are brought to 8.
        do_convert_rgb: C = 3 whatever the mode, transparent parts over black; else pictures of grey or RGB, with or
            without alpha, keep their channels.

    Raises:
        PictureError: a picture of 32-bit integers or floats, or another mode without one reading.
    """
    mode, kind, tags = image.mode, image.format, getattr(image, "tag_v2", {})
    image.load()
    try:
        turn = _TO_UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGED:  # damaged notes on the picture do not matter
        turn = None
    if turn is not None:
        image = image.transpose(turn)
    # 16 bits of grey, which older versions of Pillow read as 32.
    if mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM")):
        if tags.get(_TIFF_BITS, (16,)) != (16,) or tags.get(_TIFF_PHOTOMETRIC, 1) != 1:
            raise PictureError("a TIFF picture of fewer than 16 bits, or of white as 0: save it as 8-bit RGB")
        values = np.array(image).astype(np.int64)
        levels = (values * 255 + 32767) // 65535
        levels[values == image.info.get("transparency")] = 0
        grey = levels.astype(np.uint8)[..., None]
        return grey.repeat(3, axis=-1) if do_convert_rgb else grey
    if mode in ("I", "F"):
        raise PictureError(
            f"a PIL picture of mode {mode!r}, whose range is not known: scale it to 0..255 and convert it to uint8"
        )
    if not do_convert_rgb and mode in ("L", "LA", "RGB", "RGBA"):
        return np.atleast_3d(np.array(image))
    try:
        if mode.lower() in ("rgba", "la", "pa") or "transparency" in image.info:
            image = image.convert("LA") if mode == "La" else image
            return over_black(np.array(image.convert("RGBA")))
        return np.array(image.convert("RGB"))
    except ValueError as error:
        raise PictureError(f"a PIL picture of mode {mode!r}, which Pillow does not convert to RGB") from error


def over_black(rgba: np.ndarray) -> np.ndarray:
    """Blends uint8 (height, width, 4) over black: (height, width, 3)."""
    rgb = np.empty((*rgba.shape[:2], 3), np.uint8)
    step = max(1, 2**20 // max(1, rgba.shape[1]))  # rows: so that 16 bits of a large frame are not all there at once
    for start in range(0, len(rgba), step):
        part = rgba[start : start + step]
        rgb[start : start + step] = (part[..., :3].astype(np.uint16) * part[..., 3:] + 127) // 255
    return rgb


# ---------------------------------------------------------------------------------------------------------
# Frames that are given as PIL pictures and arrays
# ---------------------------------------------------------------------------------------------------------


def is_array(item: Any) -> bool:
    return isinstance(item, np.ndarray | torch.Tensor)


def is_frame(item: Any) -> bool:
    return isinstance(item, Image.Image) or (is_array(item) and item.ndim in (2, 3))


def frames_as_tensor(
    clip: Any, data_format: str | ChannelDimension | None, do_convert_rgb: bool, do_rescale: bool
) -> torch.Tensor:
    """
    A clip given as frames, as a tensor (T, C, height, width): uint8, or floats.

    Args:
        clip: an array of 4 dimensions, or a list of frames.
        data_format: where the channels of arrays are; None to infer it.
        do_convert_rgb: C = 3, transparent parts over black.
        do_rescale: floats are within 0..1, and become levels within 0..255. Else they stay as they are.

    Raises:
        ValueError: there are no frames, or they are of several sizes, or have no single reading.
    """
    if not isinstance(clip, list):
        return _array_as_tensor(clip, data_format, do_convert_rgb, do_rescale)
    if not clip:
        raise ValueError("A clip has no frames: expected at least one.")
    frames = [_frame_as_tensor(frame, data_format, do_convert_rgb, do_rescale) for frame in clip]
    for name, of in (
        ("size", lambda frame: tuple(frame.shape[-2:])),
        ("number of channels", lambda frame: len(frame)),
    ):
        if len(different := sorted({of(frame) for frame in frames})) > 1:
            raise ValueError(f"The frames of a clip must be of one {name}; got {different}.")
    if len(types := {str(frame.dtype).removeprefix("torch.") for frame in frames}) > 1:
        raise ValueError(f"The frames of a clip must be of one type; got {sorted(types)}.")
    return torch.stack(frames)


def _frame_as_tensor(frame: Any, data_format: Any, do_convert_rgb: bool, do_rescale: bool) -> torch.Tensor:
    if not isinstance(frame, Image.Image):
        if frame.ndim == 2:  # grey
            frame, data_format = frame[None], ChannelDimension.FIRST
        return _array_as_tensor(frame[None], data_format, do_convert_rgb, do_rescale)[0]
    if frame.format in ("GIF", "WEBP", "PNG", "AVIF") and (count := getattr(frame, "n_frames", 1)) > 1:
        raise ValueError(
            f"An opened {frame.format} of {count} frames was given as one frame: give its path to use all of them, or "
            "image.copy() to use the current one."
        )
    try:
        levels = picture_levels(frame, do_convert_rgb)
    except PictureError as error:
        raise ValueError(f"A frame cannot be read: {error}.") from error
    return torch.from_numpy(levels).permute(2, 0, 1)


def _array_as_tensor(clip: Any, data_format: Any, do_convert_rgb: bool, do_rescale: bool) -> torch.Tensor:
    """An array (T, ...) of one layout."""
    if 0 in clip.shape:
        raise ValueError(f"A clip is empty: an array of shape {tuple(clip.shape)}; expected at least one frame.")
    _check_type(clip)
    if isinstance(clip, np.ndarray):
        # torch takes neither what runs backwards, such as BGR turned, nor another order of bytes, nor 80-bit floats;
        # and it warns of what may not be written to.
        dtype = np.dtype(np.float64) if clip.dtype.itemsize > 8 else clip.dtype.newbyteorder("=")
        clip = torch.from_numpy(np.require(clip, dtype, ["C", "W", "E"]))
    clip = clip if _channels_are_first(tuple(clip.shape), data_format) else clip.permute(0, 3, 1, 2)
    if clip.is_floating_point() and do_rescale:
        low, high = (value.item() for value in clip.aminmax())
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
            raise ValueError(
                f"Frames of floats must lie within 0..1; got values from {low:.4g} to {high:.4g}. Convert frames of "
                "0..255 to uint8, clip what overshoots, or set do_rescale=False to use the values as they are."
            )
        clip = clip.float().clamp(0, 1) * 255
    return to_rgb(clip, 255 if do_rescale else 1) if do_convert_rgb else clip


def _check_type(clip: Any) -> None:
    is_float = clip.is_floating_point() if isinstance(clip, torch.Tensor) else clip.dtype.kind == "f"
    name = str(clip.dtype).removeprefix("torch.")
    if not (is_float or name == "uint8"):
        cure = "frames.astype(np.uint8) * 255" if name == "bool" else "convert frames of 0..255 to uint8"
        if name in ("uint16", "int16"):
            cure = "for 16 bits, (frames / 65535).astype(np.float32); for 0..255, frames.astype(np.uint8)"
        raise ValueError(
            f"Frames of {name} have no single reading; expected uint8 within 0..255 or floats within 0..1 ({cure})."
        )


def _channels_are_first(shape: tuple[int, ...], data_format: Any) -> bool:
    first, last = shape[1] in (1, 3, 4), shape[-1] in (1, 3, 4)
    if data_format is not None:
        is_first = ChannelDimension(data_format) == ChannelDimension.FIRST
        if not (first if is_first else last):
            raise ValueError(
                f"input_data_format={ChannelDimension(data_format).value!r} does not fit frames of shape {shape[1:]}, "
                "which would not have 1, 3 or 4 channels."
            )
        return is_first
    if first == last:
        problem = "may have their channels first or last" if first else "have no axis of 1, 3 or 4 channels"
        raise ValueError(
            f"Frames of shape {shape[1:]} {problem}: "
            + (
                'say which with input_data_format="channels_first" or "channels_last".'
                if first
                else "expected (height, width, channels) or (channels, height, width)."
            )
        )
    return first


def to_rgb(clip: torch.Tensor, highest: float) -> torch.Tensor:
    """(..., C, height, width) with C of 1, 3 or 4 to C = 3, transparent parts over black; alpha ends at `highest`."""
    if clip.shape[-3] == 1:
        return clip.expand(*clip.shape[:-3], 3, *clip.shape[-2:])
    if clip.shape[-3] != 4:
        return clip
    color, alpha = clip[..., :3, :, :], clip[..., 3:, :, :]
    if not clip.is_floating_point():
        return (color * (alpha / 255)).round().to(clip.dtype)
    if not (alpha.min() >= 0 and alpha.max() <= highest):
        raise ValueError(f"The alpha of frames of floats must lie within 0..{highest:g}; remove it, or scale it.")
    return color * (alpha / highest)

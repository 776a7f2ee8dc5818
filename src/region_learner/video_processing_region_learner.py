# Copyright 2026 The RegionLearner authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in
# compliance with the License. You may obtain a copy at http://www.apache.org/licenses/LICENSE-2.0
"""Video processor of RegionLearner: turns video files or frames into `pixel_values_videos`.

Sampling and transforms are those of the paper (arXiv 2112.01194), which follows Frozen in Time (arXiv 2104.00650).
It differs from the reference implementation on purpose: training samples from all frames of a segment, including the
last; short clips repeat their last frame, instead of adding black frames after normalization; an unreadable video is
an error, not a black clip; and resizing is antialiased.
"""

import dataclasses
import difflib
import math
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, Unpack

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

from .configuration_region_learner import did_you_mean
from .video_decoding_region_learner import Scale, VideoDecodeError, check_clip_size, picture_levels, read_clip

try:
    import torchvision.transforms.v2.functional as tvf
except ImportError:
    tvf = None  # type: ignore[assignment]

_MOST_FRAMES = 2**20  # of a span, for a given fps
_MICROSECOND = 1e-6  # the tolerance within which two times are equal
_ROUNDING = 1 / 510  # half a level: floats may be this far outside of 0..1, after resizing or in half precision


class RegionLearnerVideoProcessorKwargs(VideosKwargs, total=False):
    """
    output_size (`int` or `dict[str, int]`, *optional*, defaults to `{"height": 224, "width": 224}`):
        The size of the output frames, which is the `image_size` of the model. `None` keeps the size of the cropped
        frames, and so does `crop_size` without `output_size`.
    antialias (`bool`, *optional*, defaults to `True`):
        Whether to antialias when shrinking. The reference implementation evaluates with `False`.
    short_clips (`"repeat"` or `"error"`, *optional*, defaults to `"repeat"`):
        What to do with a video of fewer frames than `num_frames`: repeat its last frame, which is visible in
        `VideoMetadata.frames_indices`, or raise a `ValueError`.
    sampling (`"segments"` or `"keyframes"`, *optional*, defaults to `"segments"`):
        Which frame of a segment training samples: any frame, or a key frame if there is one in the segment. Key frames
        are decoded faster, because they do not depend on other frames, but the sampled frames vary less.
    crop_scale (`tuple[float, float]`, *optional*, defaults to `(0.5, 1.0)`):
        The range of the share of a frame's area that the random crop keeps in training.
    flip_probability (`float`, *optional*, defaults to 0.5):
        The probability that a clip is flipped horizontally in training. Set it to 0 if captions distinguish left from
        right.
    training (`bool`, *optional*, defaults to `False`):
        Whether to use random frames, crops and flips. Not saved.
    generator (`torch.Generator`, *optional*):
        The source of randomness in training; torch's global generator by default. Not saved.
    start, end (`float` or `list[float | None]`, *optional*):
        The span to read, in seconds from the first frame: one number for all videos, or one per video. `None` stands
        for the start or the end of the video. Not saved.
    """

    output_size: Annotated[int | list[int] | tuple[int, ...] | dict[str, int] | None, image_size_validator()]
    antialias: bool | None
    short_clips: Literal["repeat", "error"] | None
    sampling: Literal["segments", "keyframes"] | None
    crop_scale: list[int | float] | tuple[int | float, int | float] | None
    flip_probability: int | float | None
    training: bool | None
    generator: torch.Generator | None
    start: Any  # checked against the number of videos and the length of each
    end: Any


class RegionLearnerVideoProcessor(BaseVideoProcessor):
    r"""
    Turns videos into `pixel_values_videos` (B, T, 3, height, width), float32. If they are neither rescaled nor
    normalized, frames of uint8 remain uint8 (unless `antialias=False`).

    The video is split into `num_frames` equal segments. Evaluation takes the middle frame of each segment, and
    training takes a random one. With `fps`, there are that many segments per second. `do_sample_frames=False` takes
    all frames. `start=` and `end=` read a span of each video, selected by the times of its frames; see `span_frames`.

    Evaluation resizes the short side to `size`, crops the center to `crop_size`, resizes to `output_size`, rescales
    and normalizes. Training replaces the first three steps by one random crop, resized to `output_size`, and one
    random flip for all frames of a clip. Unless `antialias=False`, frames of uint8 are resized without converting them
    to floating point, which is 5 to 15 times as fast, but each resizing rounds. Large videos are scaled down while
    they are decoded, which differs only by rounding. `do_resize=False` omits all resizing, and with it the random
    crop.

    `videos` is one clip or a list of clips, which may be of different kinds: a path, the bytes of a file, a binary
    file object, a dictionary `{"path": ..., "bytes": ...}`, an array or tensor of 4 dimensions, a list of frames (PIL
    images or arrays), or a `VideoDecoder` of torchcodec, as in rows of `datasets.Video()`; with the region-learner
    package also an https URL. A list within the list is also one clip, and its frames may be files:
    `[["1.png", "2.png"], ["3.png", "4.png"]]` are two clips. Transparent parts are blended over black.

    Frames of `uint8` contain levels within 0..255. Frames of floats contain levels divided by 255, and must lie within
    0..1; with `do_rescale=False` they are used as they are, whatever their range. Other integers, booleans and PIL
    images of 32 bits are ambiguous and refused. If channels may be first or last, `input_data_format` must say which.
    Picture files are read with Pillow and rotated according to their EXIF orientation, like opened pictures.

    Raises:
        VideoDecodeError: a video cannot be read. It is a `ValueError`.

    Example:

    ```python
    >>> processor = RegionLearnerVideoProcessor(num_frames=4)
    >>> processor(["a.mp4", "b.webm"], return_tensors="pt").pixel_values_videos.shape
    torch.Size([2, 4, 3, 224, 224])
    >>> processor(["a.mp4", "b.webm"], start=[12.5, None], end=20, return_tensors="pt").pixel_values_videos.shape
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
    start = None
    end = None
    valid_kwargs = RegionLearnerVideoProcessorKwargs  # type: ignore[assignment]
    model_input_names = ["pixel_values_videos"]

    def __init__(self, **kwargs: Unpack[RegionLearnerVideoProcessorKwargs]):
        if tvf is None:
            raise ImportError("RegionLearnerVideoProcessor needs torchvision: pip install torchvision")
        _refuse_misspelled(kwargs)
        super().__init__(**_disable_overridden_defaults(kwargs))

    @classmethod
    def from_dict(cls, video_processor_dict: dict[str, Any], **kwargs):
        _refuse_misspelled(kwargs)
        return super().from_dict(video_processor_dict, **_disable_overridden_defaults(kwargs))

    @classmethod
    def for_image_size(cls, image_size: int, **kwargs: Unpack[RegionLearnerVideoProcessorKwargs]):
        """Returns a processor with the default transforms scaled to frames of `image_size` pixels."""
        edge = round(image_size * cls.size["shortest_edge"] / cls.output_size["height"])
        return cls(size={"shortest_edge": edge}, crop_size=edge, output_size=image_size, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        of_a_call = ("training", "generator", "start", "end")
        found = {key: value for key, value in super().to_dict().items() if key not in of_a_call}
        # Without this, AutoProcessor finds no class for a video tower, or one that is not saved with it: a processor
        # that has saved or loaded this video processor adds its own.
        if "AutoVideoProcessor" in found.get("auto_map", {}):
            found["auto_map"] = found["auto_map"] | {"AutoProcessor": found["auto_map"]["AutoVideoProcessor"]}
        return found

    def preprocess(self, videos: Any, **kwargs: Unpack[RegionLearnerVideoProcessorKwargs]) -> BatchFeature:
        for name in kwargs:
            if name not in RegionLearnerVideoProcessorKwargs.__annotations__:
                hint = did_you_mean(name, RegionLearnerVideoProcessorKwargs.__annotations__)
                raise ValueError(f"{name!r} is not an option of {type(self).__name__}{hint}")
        if kwargs.get("do_pad") or kwargs.get("data_format") not in (None, ChannelDimension.FIRST):
            raise ValueError("do_pad and data_format are not supported: clips are (T, C, height, width), not padded.")
        options = _disable_overridden_defaults(kwargs)
        do_convert_rgb, do_rescale = (bool(self._option(options, name)) for name in ("do_convert_rgb", "do_rescale"))
        scale, data_format = self.scale_while_decoding(options), options.get("input_data_format")
        clips = [_prepare(clip, scale, data_format, do_convert_rgb, do_rescale) for clip in _as_clips(videos)]
        if not clips:
            raise ValueError("No videos were given.")
        spans = _as_spans(options.pop("start", self.start), options.pop("end", self.end), len(clips))
        if spans and not self._option(options, "do_sample_frames"):
            raise ValueError("start and end select frames by their times: they need do_sample_frames=True.")
        for name in ("num_frames", "fps"):  # transformers expects no error if do_sample_frames=False is a saved value
            if options.get("do_sample_frames") is False and options.get(name) is not None:
                raise ValueError(f"do_sample_frames=False takes all frames: leave it out, or {name}={options[name]}.")
        if do_rescale or any(isinstance(clip, _EncodedClip) or clip.dtype == torch.uint8 for clip in clips):
            self._check_normalization(options)
        clips = [_Span(*clip_and_span) for clip_and_span in zip(clips, *spans)] if spans else clips
        return super().preprocess(clips, **{**options, "input_data_format": ChannelDimension.FIRST})

    def _option(self, kwargs: Mapping[str, Any], name: str) -> Any:
        """Returns an option of a call with `kwargs`, which by default is that of the processor."""
        return kwargs[name] if kwargs.get(name) is not None else getattr(self, name)

    def _check_normalization(self, kwargs: Mapping[str, Any]):
        """Refuses to normalize levels within 0..255 with a mean and standard deviation for 0..1."""
        option = partial(self._option, kwargs)
        highest = 255 * (option("rescale_factor") if option("do_rescale") else 1)
        if option("do_normalize") and highest > 2 and np.max(option("image_std")) < 1:
            raise ValueError(
                f"Frames of 0..{highest:g} would be normalized with an image_std of {option('image_std')}, which is "
                "for 0..1: leave do_rescale=True and rescale_factor=1/255, or set do_normalize=False, too."
            )

    def scale_while_decoding(self, kwargs: Mapping[str, Any]) -> Scale | None:
        """
        Returns how a call with `kwargs` scales frames while decoding them, which is much faster than doing so later.

        In evaluation this is the first resizing. In training, frames are only scaled down so far that no random crop
        has to be enlarged.
        """
        option = partial(self._option, kwargs)
        filters = {Image.Resampling.BILINEAR: "BILINEAR", Image.Resampling.BICUBIC: "BICUBIC"}
        if not (option("do_resize") and option("antialias")) or option("resample") not in filters:
            return None
        training = bool(option("training"))
        target = (kwargs.get("output_size", self.output_size) or option("crop_size")) if training else option("size")
        size = SizeDict(**get_size_dict(target, default_to_square=training))
        if training:
            if not size.height or not size.width or not min(option("crop_scale")) > 0:  # reported later
                return None
            # The smallest crop has this share of the area of the frame, and an aspect ratio of 3/4.
            edge = math.ceil(max(size.height, size.width) / math.sqrt(min(option("crop_scale")) * 3 / 4))
        elif size.shortest_edge and not size.longest_edge:
            edge = size.shortest_edge
        else:
            return None
        return Scale(partial(_size_for_short_edge, edge), filters[option("resample")], of_pictures=False)

    def decode(
        self,
        source: Any,
        training: bool = False,
        generator: torch.Generator | None = None,
        num_frames: int | None = None,
        sample_indices_fn: Callable[..., np.ndarray] | None = None,
        scale: Scale | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> tuple[torch.Tensor, VideoMetadata]:
        """
        Reads and samples one video, without transforming it.

        Args:
            source: one clip, in any form that a call of the processor accepts.
            training, generator, num_frames: as in a call of the processor.
            sample_indices_fn: called as `sample_indices_fn(metadata=VideoMetadata)`, returns the indices of the frames
                to read, in place of `sample_frames`.
            scale: what the frames of encoded videos are scaled to; see `scale_while_decoding`.
            start, end: the span to read, in seconds, as in a call of the processor.

        Returns:
            Frames (T, 3, height, width), uint8 if the video is encoded, and their metadata.

        Raises:
            VideoDecodeError: the video cannot be read.
        """
        clips = _as_clips([source])
        if len(clips) != 1:
            raise ValueError(f"decode() reads one video at a time; got {len(clips)}.")
        clip = _prepare(clips[0], scale, None, bool(self.do_convert_rgb), do_rescale=False)
        if spans := _as_spans(start, end, 1):
            if sample_indices_fn is not None:
                raise ValueError("Give either start and end or sample_indices_fn, not both.")
            clip = _Span(clip, start, end)
        do_sample_frames = self.do_sample_frames or num_frames is not None or sample_indices_fn or spans
        choose = partial(self.sample_frames, num_frames=num_frames, training=training, generator=generator)
        (frames,), (metadata,) = self._decode_and_sample_videos(
            [clip], do_sample_frames=bool(do_sample_frames), sample_indices_fn=sample_indices_fn or choose
        )
        return frames, metadata

    def normalize_clips(self, clips: torch.Tensor) -> torch.Tensor:
        """
        Rescales and normalizes clips from a call with `rescale_factor=1.0, do_normalize=False`. If this is done on the
        GPU, only a quarter of the bytes have to be moved there.

        Args:
            clips: (..., 3, height, width), on any device; levels within 0..255, uint8 or floats.

        Returns:
            float32 of the same shape.

        Raises:
            ValueError: the processor would normalize levels within 0..255 as if they were within 0..1.
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
        """
        Decodes a video. Returns its frames (T, 3, height, width) and its metadata, or for a list of videos, a list of
        each.
        """
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
        start: float | None = None,
        end: float | None = None,
        **kwargs,
    ) -> np.ndarray:
        """
        Returns the indices of `num_frames` frames, one from each of as many equal segments of the video or a span.

        Args:
            metadata: metadata of the video. Sampling uses its `total_num_frames`, with `fps` its `fps`, for key frames
                its `keyframes`, if any, and for a span its `times`, or its `fps` if it has no `times`.
            num_frames: number of frames. The default is that of the processor.
            fps: segments per second, instead of `num_frames`.
            training: whether to take a random frame of each segment instead of the middle one.
            generator: the source of randomness in training.
            short_clips, sampling: options as in a call. The defaults are those of the processor.
            start, end: the span in seconds, which is split into segments of equal duration; see `span_frames`. If both
                are None, the whole video is split into segments with equal numbers of frames.

        Returns:
            Indices of shape (num_frames,).

        Raises:
            ValueError: the video has fewer frames than requested and `short_clips` is "error"; `fps` is given and the
                frame rate of the video is unknown or lower; or the video does not have the span.
        """
        keyframes = getattr(metadata, "keyframes", None) if (sampling or self.sampling) == "keyframes" else None
        draw = partial(_draw_frame, keyframes=keyframes or [], generator=generator)
        is_strict = (short_clips or self.short_clips) == "error"
        if start is not None or end is not None:
            times, start, end = check_span(metadata, start, end)
            first, stop = frames_in_span(times, start, end)
            num_frames = self._count_frames(metadata, num_frames, fps, seconds=end - start)
            if is_strict and num_frames is not None:
                _check_enough(stop - first, num_frames, f"The span of {start:g}-{end:g} s")
            if num_frames is None:
                return np.arange(first, stop)
            if not training:
                return self.span_frames(metadata, start, end, num_frames)
            parts = pairwise(np.linspace(start, end, num_frames + 1).tolist())
            return np.array([draw(*frames_in_span(times, *part, begun=True)) for part in parts])
        total = metadata.total_num_frames
        num_frames = self._count_frames(metadata, num_frames, fps)
        if num_frames is None:
            return np.arange(total)
        if is_strict:
            _check_enough(total, num_frames, "The video")
        borders = np.floor(np.linspace(0, total, min(num_frames, total) + 1)).astype(int).tolist()
        indices = [draw(*part) if training else (part[0] + part[1] - 1) // 2 for part in pairwise(borders)]
        return np.array(indices + indices[-1:] * (num_frames - total))

    def span_frames(
        self, metadata: VideoMetadata, start: float | None, end: float | None, num_frames: int | None = None
    ) -> np.ndarray:
        """
        Returns the indices of the frames that represent a span in evaluation.

        Frame j of N is the one that is shown at `start + (j + 1/2) * (end - start) / N`: the last frame whose time is
        at or before this, within a microsecond. If the video has fewer frames than that, frames are repeated.

        Args:
            metadata: metadata of a video, as returned by `read_clip` or passed to its `sample_indices_fn`; or any
                metadata with `total_num_frames` and `fps`.
            start, end: seconds from the first frame; None for the start and the end of the video. `end` may be up to
                one frame interval after the end of the last frame.
            num_frames: N. The default is that of the processor.

        Returns:
            int64 of shape (N,), in ascending order.

        Raises:
            ValueError: the video does not have the span, or the times of its frames are unknown.

        Example:

        ```python
        >>> processor.span_frames(VideoMetadata(total_num_frames=250, fps=25), start=2.0, end=4.0, num_frames=4)
        array([56, 68, 81, 93])
        ```
        """
        times, start, end = check_span(metadata, start, end)
        num_frames = self._count_frames(metadata, num_frames, None, seconds=end - start)
        if num_frames is None:
            return np.arange(*frames_in_span(times, start, end))
        middles = start + (np.arange(num_frames) + 0.5) * ((end - start) / num_frames)
        return times.searchsorted(middles + _MICROSECOND, "right") - 1

    def _count_frames(
        self, metadata: VideoMetadata, num_frames: int | None, fps: float | None, seconds: float | None = None
    ) -> int | None:
        """Returns how many frames to sample from the video, or from a span of some seconds; None for all."""
        if num_frames is None and fps is None:
            num_frames, fps = self.num_frames, self.fps
        _check_counts(num_frames, fps)
        if fps is None:
            return num_frames
        if num_frames is not None:
            raise ValueError("Give only one of num_frames and fps.")
        if metadata.fps is None:
            raise ValueError(
                f"Sampling {fps} frames per second needs the frame rate of the video: give `video_metadata` with "
                "`fps`, or use `num_frames`."
            )
        if fps > metadata.fps:
            raise ValueError(f"Cannot sample {fps} frames per second from a video with {metadata.fps:g}: lower fps.")
        seconds = metadata.total_num_frames / metadata.fps if seconds is None else seconds
        count = max(1, int(seconds * fps + 1e-6))  # the video's own rate gives all frames
        if count > _MOST_FRAMES:  # time stamps may be wrong
            raise ValueError(
                f"{fps} frames per second of {seconds:g} seconds are {count} frames, more than {_MOST_FRAMES}: lower "
                "fps, or use num_frames."
            )
        return count

    def _decode_and_sample_videos(
        self,
        videos: list[Any],
        video_metadata: Any = None,
        do_sample_frames: bool | None = None,
        sample_indices_fn: Callable | None = None,
    ) -> tuple[list[torch.Tensor], list[VideoMetadata]]:
        """Turns a list of encoded clips and tensors (T, C, height, width) into tensors of the sampled frames."""
        given: Sequence[VideoMetadata | None] = [None] * len(videos)
        if video_metadata is not None:
            given = make_batched_metadata(videos, video_metadata)
            if len(given) != len(videos):
                raise ValueError(f"{len(videos)} videos came with {len(given)} video_metadata; give one for each.")
        read = []
        for position, (video, metadata) in enumerate(zip(videos, given)):
            choose = sample_indices_fn if do_sample_frames else None
            if isinstance(video, _Span) and sample_indices_fn is not None:
                choose = partial(video.sample, sample_indices_fn, position)
                video = video.clip
            if isinstance(video, _EncodedClip) and not isinstance(video.source, list | _DecoderFrames):
                read.append(self.fetch_videos(video.source, choose, video.scale))
            else:
                read.append(_sample_given_frames(video, metadata, choose))
        return [clip for clip, _ in read], [metadata for _, metadata in read]

    def center_crop(self, image: torch.Tensor, size: SizeDict, **kwargs) -> torch.Tensor:
        """Crops as torchvision and the reference implementation do; transformers rounds half pixels the other way."""
        height, width = image.shape[-2:]
        crop = size.height or 0, size.width or 0
        if height < crop[0] or width < crop[1]:  # torchvision would add black borders
            raise ValueError(
                f"Frames of {height} x {width} pixels are smaller than crop_size, {crop[0]} x {crop[1]}: give "
                "a larger size or a smaller crop_size, or set do_center_crop=False."
            )
        return tvf.center_crop(image, list(crop))

    def random_crop(
        self, video: torch.Tensor, scale: tuple[float, float], generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """
        Crops a random part of (..., height, width): a share within `scale` of its area, with an aspect ratio between
        3/4 and 4/3. This corresponds to `RandomResizedCrop` of torchvision, before its resizing.
        """
        height, width = video.shape[-2:]
        for _ in range(10):
            draw = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
            area = height * width * (scale[0] + draw[0] * (scale[1] - scale[0]))
            ratio = (4 / 3) ** (2 * draw[1] - 1)  # of width to height, wide as often as tall
            crop_height, crop_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < crop_height <= height and 0 < crop_width <= width:
                top, left = int(draw[2] * (height - crop_height + 1)), int(draw[3] * (width - crop_width + 1))
                return video[..., top : top + crop_height, left : left + crop_width]
        # Very long or flat frames have no such part: take their center, as close to these aspect ratios as possible.
        return tvf.center_crop(video, [min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))])

    def _standardize_kwargs(self, **kwargs) -> dict:
        kwargs = super()._standardize_kwargs(**kwargs)
        output_size, crop_scale = kwargs.get("output_size"), kwargs.get("crop_scale")
        if output_size is not None and not isinstance(output_size, SizeDict):
            kwargs["output_size"] = SizeDict(**get_size_dict(output_size, param_name="output_size"))
        if crop_scale is not None:
            kwargs["crop_scale"] = crop_scale = tuple(crop_scale)
            if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
                raise ValueError(f"crop_scale must be two shares of the area, 0 < low <= high <= 1; got {crop_scale}.")
        if not 0 <= (kwargs.get("flip_probability") or 0) <= 1:
            raise ValueError(f"flip_probability must be between 0 and 1; got {kwargs['flip_probability']}.")
        for name, allowed in (("short_clips", ("repeat", "error")), ("sampling", ("segments", "keyframes"))):
            if kwargs.get(name) not in (None, *allowed):
                raise ValueError(f'{name} must be "{allowed[0]}" or "{allowed[1]}"; got {kwargs[name]!r}.')
        return kwargs

    def _preprocess(
        self, videos: list[torch.Tensor], return_tensors: str | None = None, **options: Any
    ) -> BatchFeature:
        clips = [self._transform(video, **options) for video in videos]
        if return_tensors is not None and len({clip.shape for clip in clips}) > 1:
            raise ValueError(
                f"Clips of different shapes cannot be batched: {sorted({tuple(clip.shape) for clip in clips})}. "
                "Sample the same number of frames from each with num_frames, and leave resizing and cropping on."
            )
        return BatchFeature(data={"pixel_values_videos": clips}, tensor_type=return_tensors)

    def _transform(
        self,
        video: torch.Tensor,
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
        **kwargs,
    ) -> torch.Tensor:
        """Transforms one clip (T, C, height, width)."""
        resize = partial(self.resize, resample=resample, antialias=antialias)
        if not (antialias and video.dtype == torch.uint8):
            # In the channels-last format of decoded frames, floating point takes twice as long.
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
            video = self.rescale_and_normalize(
                video.to(torch.float32), do_rescale, rescale_factor, do_normalize, image_mean, image_std
            )
        return video


def _refuse_misspelled(names: Iterable[str]) -> None:
    """Raises ValueError for a name that resembles an option; saved files and Auto classes also pass other names."""
    options = RegionLearnerVideoProcessorKwargs.__annotations__
    for name in names:
        if name not in options and difflib.get_close_matches(name, options, n=1, cutoff=0.8):
            raise ValueError(f"{name!r} is not an option of a video processor{did_you_mean(name, options)}")


def _check_counts(num_frames: int | None, fps: float | None) -> None:
    if num_frames is not None and not num_frames >= 1:
        raise ValueError(f"num_frames must be at least 1; got {num_frames}.")
    if fps is not None and not fps > 0:
        raise ValueError(f"fps must be greater than 0; got {fps}.")


def _disable_overridden_defaults(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Sets options to None if their defaults are overridden by another option in `kwargs`."""
    kwargs = dict(kwargs)
    _check_counts(kwargs.get("num_frames"), kwargs.get("fps"))
    if kwargs.get("fps") is not None:
        if kwargs.setdefault("num_frames", None) is not None:
            raise ValueError("Give only one of num_frames and fps.")
    elif kwargs.get("num_frames") is not None:
        kwargs["fps"] = None
    if kwargs.get("crop_size") is not None:
        kwargs.setdefault("output_size", None)
    return kwargs


def _size_for_short_edge(edge: int, height: int, width: int) -> tuple[int, int]:
    """
    Returns the height and width of a frame scaled to a short edge of `edge`, rounded as in transformers. Frames less
    than twice as large keep their size, because scaling them while decoding would gain little.
    """
    if min(height, width) < 2 * edge:
        return height, width
    long_edge = int(edge * max(height, width) / min(height, width))
    return (edge, long_edge) if height <= width else (long_edge, edge)


def _draw_frame(start: int, end: int, keyframes: list[int], generator: torch.Generator | None) -> int:
    """Returns a random frame in [start, end): one of the sorted `keyframes` if there are any in this interval."""
    candidates = keyframes[bisect_left(keyframes, start) : bisect_left(keyframes, end)] or range(start, end)
    return candidates[int(torch.randint(len(candidates), (), generator=generator))]


def _check_enough(count: int, num_frames: int, whole: str) -> None:
    if count < num_frames:
        raise ValueError(
            f"{whole} has {count} frames, but num_frames={num_frames}: lower num_frames, or repeat the last "
            'frame with short_clips="repeat".'
        )


def _all_frames(metadata: VideoMetadata) -> range:
    return range(metadata.total_num_frames)


# --- Spans ----------------------------------------------------------------------------------------------------------


class _Span(NamedTuple):
    """A span in seconds of a clip that `_prepare` returned."""

    clip: Any
    start: Any
    end: Any

    def sample(self, sample_indices_fn: Callable, position: int, metadata: VideoMetadata) -> np.ndarray:
        """Samples the span. For a clip without a name, errors give its position among the videos."""
        try:
            return sample_indices_fn(metadata=metadata, start=self.start, end=self.end)
        except ValueError as error:
            if isinstance(self.clip, _EncodedClip) and not isinstance(self.clip.source, list | _DecoderFrames):
                raise
            raise ValueError(f"videos[{position}]: {error}") from error


def _as_spans(start: Any, end: Any, count: int) -> tuple[list[Any], list[Any]] | None:
    """Returns the starts and ends of spans of `count` videos, or None if all videos are read as a whole."""
    starts, ends = _one_per_video("start", start, count), _one_per_video("end", end, count)
    return None if all(value is None for value in starts + ends) else (starts, ends)


def _one_per_video(name: str, given: Any, count: int) -> list[Any]:
    if not (isinstance(given, list | tuple) or (_is_array(given) and given.ndim > 0)):
        return [given] * count
    if len(given) != count:
        raise ValueError(
            f"{len(given)} values of {name} were given for {count} videos: give one number for all, or one per video."
        )
    return list(given)


def check_span(metadata: VideoMetadata, start: float | None, end: float | None) -> tuple[np.ndarray, float, float]:
    """Checks that a video has a span. Returns the times of all its frames, and start and end, in seconds."""
    start = 0.0 if start is None else _as_seconds("start", start)
    end = None if end is None else _as_seconds("end", end)
    if end is not None and start >= end:
        raise ValueError(f"start={start:g} must be less than end={end:g}.")
    times, interval = getattr(metadata, "times", None), getattr(metadata, "frame_interval", None)
    if times is None or interval is None:
        if not (metadata.fps and metadata.fps > 0):
            raise ValueError(
                "start and end need the times of the frames, which are unknown: give frames with their frame rate, "
                "video_metadata=[VideoMetadata(total_num_frames=..., fps=...)]."
            )
        times, interval = np.arange(metadata.total_num_frames) / metadata.fps, 1 / metadata.fps
    length = float(times[-1]) + interval
    if start >= length or (end is not None and end > length + interval + _MICROSECOND):
        span = f"{start:g} s to the end" if end is None else f"{start:g}-{end:g} s"
        raise ValueError(
            f"The span of {span} is not in the video, which ends at {length:.6g} s: give start and end within it, or "
            "leave out end to read to its end."
        )
    return times, start, length if end is None else end


def _as_seconds(name: str, value: Any) -> float:
    number: Any = value.item() if isinstance(value, torch.Tensor | np.ndarray | np.generic) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
        raise ValueError(f"{name}={number!r} must be a number of seconds, finite and not negative.")
    return float(number)


def frames_in_span(times: np.ndarray, start: float, end: float, begun: bool = False) -> tuple[int, int]:
    """
    Returns the index of the first frame that is shown in a span, and the index after the last one. With `begun`, only
    frames whose time is in the span count, if there are any.
    """
    stop = max(1, int(times.searchsorted(end - _MICROSECOND)))
    first = (
        times.searchsorted(start - _MICROSECOND) if begun else times.searchsorted(start + _MICROSECOND, "right") - 1
    )
    return min(int(first), stop - 1), stop


# --- The forms in which clips are given -----------------------------------------------------------------------------


class _EncodedClip(NamedTuple):
    """An encoded video, or a list of frames of which some are files, and how to decode it."""

    source: Any
    scale: Scale | None
    do_convert_rgb: bool
    do_rescale: bool


def _is_encoded(clip: Any) -> bool:
    return isinstance(clip, str | bytes | bytearray | memoryview | os.PathLike | Mapping) or hasattr(clip, "read")


def _is_array(item: Any) -> bool:
    return isinstance(item, np.ndarray | torch.Tensor)


def _is_frame(item: Any) -> bool:
    return isinstance(item, Image.Image) or (_is_array(item) and item.ndim in (2, 3))


def _prepare(clip: Any, scale: Scale | None, data_format: Any, do_convert_rgb: bool, do_rescale: bool) -> Any:
    """Returns a clip from `_as_clips` as a tensor, or as an `_EncodedClip` if it, or any of its frames, is encoded."""
    is_encoded = any(map(_is_encoded, clip)) if isinstance(clip, list) else _is_encoded(clip)
    if is_encoded or isinstance(clip, _DecoderFrames):
        return _EncodedClip(clip, scale, do_convert_rgb, do_rescale)
    return _frames_to_tensor(clip, data_format, do_convert_rgb, do_rescale)


def _is_decoder(item: Any) -> bool:
    """Returns whether an item is a `VideoDecoder` of torchcodec, as in rows of `datasets.Video()`."""
    return hasattr(item, "get_frames_at") and hasattr(item, "metadata")


class _DecoderFrames:
    """The frames of a `VideoDecoder`, of which only those that are sampled are decoded."""

    def __init__(self, decoder: Any):
        self.decoder = decoder

    def __len__(self) -> int:
        return len(self.decoder)

    def __getitem__(self, index: int) -> torch.Tensor:
        try:
            return self.decoder[index].cpu()
        except RuntimeError as error:
            raise VideoDecodeError(f"frame {index} of a VideoDecoder: {error}") from error

    def about(self) -> VideoMetadata:
        fps = getattr(self.decoder.metadata, "average_fps", None)
        return VideoMetadata(len(self), fps=fps, frames_indices=list(range(len(self))))


def _undecoded(decoder: Any) -> Any:
    """
    Returns the file of a `VideoDecoder` that `datasets` created, so that it is read like any other file: as exactly,
    and with the same errors. For other decoders, returns the decoder's frames.
    """
    encoded = getattr(decoder, "_hf_encoded", None) or {}
    if encoded.get("bytes") is not None or os.path.isfile(encoded.get("path") or ""):
        return encoded
    return _DecoderFrames(decoder)


def _as_clips(videos: Any) -> list[Any]:
    """
    Returns a flat list of clips. Each is an encoded video, an array of 4 dimensions, or a list of frames.

    A list of frames (PIL images or arrays) is one clip. Any other list is a batch, in which a single frame is a clip
    of its own, and a list is a clip whose frames may be files.
    """
    if _is_frame(videos):
        return [[videos]]
    if _is_decoder(videos):
        return [_undecoded(videos)]
    if _is_encoded(videos) or (_is_array(videos) and videos.ndim == 4):
        return [videos]
    if _is_array(videos) and videos.ndim == 5:
        return list(videos)
    if isinstance(videos, list | tuple):
        if videos and all(_is_frame(item) for item in videos):
            return [list(videos)]
        return [clip for item in videos for clip in _clips_of_item(item)]
    if isinstance(videos, int | float):
        raise TypeError("A video cannot be a list of numbers: turn it into an array, np.asarray(frames, np.uint8).")
    form = f"an array of {videos.ndim} dimensions" if _is_array(videos) else type(videos).__name__
    raise TypeError(
        f"A video must be a path, URL, bytes, a binary file, an array of 4 dimensions or a list of frames, not {form}."
    )


def _clips_of_item(item: Any) -> list[Any]:
    if not isinstance(item, list | tuple):
        return _as_clips(item)
    if not item:
        raise ValueError("A clip has no frames: give at least one.")
    if all(_is_frame(part) or _is_encoded(part) for part in item):
        return [item[0]] if len(item) == 1 and _is_encoded(item[0]) else [list(item)]
    return [clip for part in item for clip in _clips_of_item(part)]


def _sample_given_frames(
    video: _EncodedClip | torch.Tensor, metadata: VideoMetadata | None, sample_indices_fn: Callable | None
) -> tuple[torch.Tensor, VideoMetadata]:
    """Samples a clip that is given as frames. If they are files, only the sampled ones are read."""
    frames = video.source if isinstance(video, _EncodedClip) else video
    total = len(frames)
    indices = list(range(total))
    if metadata is None and isinstance(frames, _DecoderFrames):
        metadata = frames.about()
    is_known, metadata = metadata is not None, metadata or VideoMetadata(total, frames_indices=indices)
    if sample_indices_fn is not None:
        if metadata.total_num_frames != total:
            raise ValueError(
                f"The metadata says {metadata.total_num_frames} frames, but the video has {total}: if they are "
                "already sampled, set do_sample_frames=False."
            )
        indices = [int(index) for index in sample_indices_fn(metadata=metadata)]
        metadata = dataclasses.replace(metadata, frames_indices=indices)
    if isinstance(video, _EncodedClip):
        read: list[Any] = []
        for frame in (frames[index] for index in indices):
            read.append(read_clip(frame, _only_frame)[0][0] if _is_encoded(frame) else frame)
            if isinstance(read[-1], np.ndarray):
                check_clip_size(len(indices), *read[-1].shape[:2])
        clip = _frames_to_tensor(read, None, video.do_convert_rgb, video.do_rescale)
    else:
        clip = video if sample_indices_fn is None else video[indices]
    if not is_known:
        metadata.height, metadata.width = clip.shape[-2:]
    return clip, metadata


def _only_frame(metadata: VideoMetadata) -> list[int]:
    if metadata.total_num_frames != 1:
        raise ValueError(
            f"A video of {metadata.total_num_frames} frames was given as one frame of a clip: a list within the list "
            "of videos is one clip, made of pictures. Give videos in one flat list."
        )
    return [0]


# --- Frames that are given as PIL images and arrays -----------------------------------------------------------------


def _frames_to_tensor(
    clip: Any, data_format: str | ChannelDimension | None, do_convert_rgb: bool, do_rescale: bool
) -> torch.Tensor:
    """
    Converts an array of 4 dimensions, or a list of frames, to a tensor (T, C, height, width) of uint8 or floats.

    Args:
        clip: at least one frame; all frames have the same size and type.
        data_format: where the channels of arrays are; None to infer it.
        do_convert_rgb: whether to convert to C = 3, with transparent parts over black.
        do_rescale: whether floats are within 0..1 and are converted to 0..255. Otherwise they stay as they are.
    """
    if not isinstance(clip, list):
        return _array_to_tensor(clip, data_format, do_convert_rgb, do_rescale)
    frames = [_frame_to_tensor(frame, data_format, do_convert_rgb, do_rescale) for frame in clip]
    for name, values in (
        ("size", {tuple(frame.shape[-2:]) for frame in frames}),
        ("number of channels", {len(frame) for frame in frames}),
        ("type", {str(frame.dtype).removeprefix("torch.") for frame in frames}),
    ):
        if len(values) > 1:
            raise ValueError(f"The frames of a clip must all have the same {name}; got {sorted(values)}.")
    return torch.stack(frames)


def _frame_to_tensor(frame: Any, data_format: Any, do_convert_rgb: bool, do_rescale: bool) -> torch.Tensor:
    if not isinstance(frame, Image.Image):
        if frame.ndim == 2:  # gray
            frame, data_format = frame[None], ChannelDimension.FIRST
        return _array_to_tensor(frame[None], data_format, do_convert_rgb, do_rescale)[0]
    if frame.format in ("GIF", "WEBP", "PNG", "AVIF") and (count := getattr(frame, "n_frames", 1)) > 1:
        raise ValueError(
            f"An opened {frame.format} of {count} frames was given as one frame: give its path to use all of them, or "
            "image.copy() to use the current one."
        )
    return torch.from_numpy(picture_levels(frame, do_convert_rgb)).permute(2, 0, 1)


def _array_to_tensor(clip: Any, data_format: Any, do_convert_rgb: bool, do_rescale: bool) -> torch.Tensor:
    if 0 in clip.shape:
        raise ValueError(f"A clip is empty: an array of shape {tuple(clip.shape)}; expected at least one frame.")
    is_float = clip.is_floating_point() if isinstance(clip, torch.Tensor) else clip.dtype.kind == "f"
    name = str(clip.dtype).removeprefix("torch.")
    if not (is_float or name == "uint8"):
        cures = {"bool": "frames.astype(np.uint8) * 255", "uint16": "(frames / 65535).astype(np.float32) for 16 bits"}
        raise ValueError(
            f"Frames of {name} are ambiguous; expected uint8 within 0..255 or floats within 0..1 "
            f"({cures.get(name, 'convert frames of 0..255 to uint8')})."
        )
    if isinstance(clip, np.ndarray):
        # torch rejects negative strides, foreign byte orders and 80-bit floats, and warns about read-only arrays.
        dtype = np.dtype(np.float64) if clip.dtype.itemsize > 8 else clip.dtype.newbyteorder("=")
        clip = torch.from_numpy(np.require(clip, dtype, ["C", "W", "E"]))
    clip = clip if _has_channels_first(tuple(clip.shape), data_format) else clip.permute(0, 3, 1, 2)
    if is_float and do_rescale:
        low, high = (value.item() for value in clip.aminmax())
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
            raise ValueError(
                f"Frames of floats must lie within 0..1; got values from {low:.4g} to {high:.4g}. Convert frames of "
                "0..255 to uint8, clip values outside of 0..1, or set do_rescale=False to use the values as they are."
            )
        clip = clip.float().clamp(0, 1) * 255
    return _to_rgb(clip, 255 if do_rescale else 1) if do_convert_rgb else clip


def _has_channels_first(shape: tuple[int, ...], data_format: Any) -> bool:
    fits = {ChannelDimension.FIRST: shape[1] in (1, 3, 4), ChannelDimension.LAST: shape[-1] in (1, 3, 4)}
    if data_format is not None:
        data_format = ChannelDimension(data_format)
        if not fits[data_format]:
            raise ValueError(
                f"input_data_format={data_format.value!r} does not fit frames of shape {shape[1:]}, which would not "
                "have 1, 3 or 4 channels."
            )
        return data_format == ChannelDimension.FIRST
    if all(fits.values()):
        raise ValueError(
            f"Frames of shape {shape[1:]} may have their channels first or last: specify which with "
            'input_data_format="channels_first" or "channels_last".'
        )
    if not any(fits.values()):
        raise ValueError(
            f"Frames of shape {shape[1:]} have no axis of 1, 3 or 4 channels: expected (height, width, channels) or "
            "(channels, height, width)."
        )
    return fits[ChannelDimension.FIRST]


def _to_rgb(clip: torch.Tensor, highest: float) -> torch.Tensor:
    """Converts C = 1, 3 or 4 in (..., C, height, width) to 3, over black. The alpha of floats is 0..highest."""
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


__all__ = ["RegionLearnerVideoProcessor", "RegionLearnerVideoProcessorKwargs"]

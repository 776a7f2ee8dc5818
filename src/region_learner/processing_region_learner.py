# Copyright 2026 The RegionLearner authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in
# compliance with the License. You may obtain a copy at http://www.apache.org/licenses/LICENSE-2.0
"""Processor of RegionLearner: turns captions into `input_ids`, and videos and images into `pixel_values_videos`."""

import os
from collections.abc import Mapping
from typing import Any

from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from .configuration_region_learner import did_you_mean

LONGEST_TEXT = 512  # tokens, for tokenizers that do not know the maximum length of their model
UNKNOWN_LENGTH = 10**20  # to transformers, a `model_max_length` of at least this means "not set"


class RegionLearnerProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {
        # Some tokenizers, such as SigLIP's, do not return the mask by default.
        "text_kwargs": {"padding": True, "truncation": True, "return_attention_mask": True, "return_tensors": "pt"},
        "videos_kwargs": {"return_tensors": "pt"},
    }


class RegionLearnerProcessor(ProcessorMixin):
    r"""
    Combines a video processor and a tokenizer into one processor.

    Args:
        video_processor (`RegionLearnerVideoProcessor`): prepares videos and images.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer of the text encoder.

    Example:

    ```python
    >>> processor = RegionLearnerProcessor.from_pretrained(checkpoint)
    >>> inputs = processor(text=["a dog runs", "a cat sleeps"], videos=["dog.mp4", "cat.mp4"])
    >>> outputs = model(**inputs)
    >>> spans = processor(videos=["dog.mp4", "cat.mp4"], start=[12.5, 0], end=[20, 7.5])  # seconds
    ```
    """

    valid_processor_kwargs = RegionLearnerProcessorKwargs

    def __init__(self, video_processor=None, tokenizer=None):
        super().__init__(video_processor, tokenizer)

    def __call__(
        self,
        text: str | list[str] | None = None,
        videos: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Prepares text, videos or images for the model. Text can be given together with videos or with images.

        Args:
            text: a caption or a list of captions. They are padded to the longest and truncated to `max_length`, which
                is the tokenizer's limit by default.
            videos: one clip or a list of clips, as for `RegionLearnerVideoProcessor`.
            images: one image or a list of images, each of which becomes a clip of one frame: a PIL image, an array, or
                an encoded picture or video. They cannot be combined with `videos`, because all clips of a batch have
                the same length.
            kwargs: options of the tokenizer and the video processor, such as `max_length`, `training`, `generator`,
                `num_frames`, `short_clips`, or `start` and `end`, which read a span of each video (in seconds, one
                number for all videos or one per video). `return_tensors` is "pt" by default.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` (B, length) for text, and with `pixel_values_videos`
            (B, T, 3, height, width) for videos or images, where T = 1 for images.

        Raises:
            ValueError: no input was given, an option is unknown, there are both videos and images, `max_length` is
                too large, or a video does not have the span.
            VideoDecodeError: a video or an image cannot be read.
        """
        self._check_names(kwargs)
        # Not in the signature: generic callers, such as transformers' common tests, pass all named inputs in one call.
        images = kwargs.pop("images", None)
        if text is None and videos is None and images is None:
            raise ValueError("Nothing to process: give text, videos or images.")
        if videos is not None and images is not None:
            raise ValueError(
                "videos and images cannot be batched, as images are clips of one frame: process them in two calls."
            )
        spans = {**kwargs.get("videos_kwargs", {}), **kwargs}
        if kwargs.get("audio") is not None:
            raise ValueError("This processor takes texts, videos and images, not audio: leave out audio.")
        if videos is None and (spans.get("start") is not None or spans.get("end") is not None):
            raise ValueError("start and end select a span of videos: give videos, or leave start and end out.")
        # Merging copies its arguments, and a copied generator would draw the same numbers in every call.
        generator = kwargs.pop("generator", None) or kwargs.get("videos_kwargs", {}).get("generator")
        merged = self._merge_kwargs(
            self.valid_processor_kwargs,  # type: ignore[arg-type]
            tokenizer_init_kwargs=self.tokenizer.init_kwargs,
            **kwargs,
        )
        text_kwargs, videos_kwargs = merged["text_kwargs"], merged["videos_kwargs"]
        if generator is not None:
            videos_kwargs["generator"] = generator

        data: dict[str, Any] = {}
        if text is not None:
            _check_text(text, is_split=bool(text_kwargs.get("is_split_into_words")))
            self._check_max_length(kwargs, text_kwargs)
            limited = text_kwargs.get("max_length") is not None or self.tokenizer.model_max_length < UNKNOWN_LENGTH
            if text_kwargs.get("truncation") and not limited:
                text_kwargs["max_length"] = LONGEST_TEXT
            data.update(self.tokenizer(text, **text_kwargs))
        if images is not None:
            videos_kwargs.update(kwargs.get("images_kwargs") or {})
            clips = [[image] for image in _flatten(images)]
            one_frame = {"num_frames": 1, "fps": None, "do_sample_frames": True}
            data.update(self.video_processor(clips, **{**videos_kwargs, **one_frame}))
        elif videos is not None:
            data.update(self.video_processor(videos, **videos_kwargs))
        return BatchFeature(data)

    def _check_names(self, given: Mapping[str, Any]):
        """Raises a `ValueError` for names that are not options of any part, which transformers would ignore."""
        kinds = {
            kind: set(getattr(options, "__annotations__", ()))
            for kind, options in self.valid_processor_kwargs.__annotations__.items()  # texts, images, videos and audio
        }
        known = {"images", "audio", "common_kwargs", *kinds, *self.video_processor.valid_kwargs.__annotations__}
        known = known.union(*kinds.values())
        of_text = kinds["text_kwargs"] | {"return_tensors"}
        checked: list[tuple[Mapping[str, Any], set[str]]] = [(given, known), (given.get("text_kwargs") or {}, of_text)]
        checked += [(given.get(kind) or {}, known) for kind in ("images_kwargs", "videos_kwargs")]
        for names, allowed in checked:
            for name in names:
                if name not in allowed:
                    raise ValueError(
                        f"{name!r} is not an option of {type(self).__name__}{did_you_mean(name, allowed)}"
                    )

    def _check_max_length(self, given: dict[str, Any], text_kwargs: dict[str, Any]):
        """
        Lowers a saved `max_length` to the limit of the text tower, `tokenizer.model_max_length`.

        Raises:
            ValueError: a `max_length` given in the call is above the limit, or too small.
        """
        limit, length = self.tokenizer.model_max_length, text_kwargs.get("max_length")
        if length is None:
            return
        least = self.tokenizer.num_special_tokens_to_add(pair=False) + 1  # below it, tokenizers do not truncate
        if not isinstance(length, int) or length < least:
            raise ValueError(
                f"max_length={length!r} must be an integer of at least {least}, as special tokens are counted."
            )
        if length <= limit:
            return
        if "max_length" in given or "max_length" in (given.get("text_kwargs") or {}):
            raise ValueError(
                f"max_length={length} is more than the {limit} tokens that the text tower takes "
                "(tokenizer.model_max_length): lower it, or leave it out."
            )
        text_kwargs["max_length"] = limit  # the tokenizer's file may contain a larger one

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        # A tokenizer also saves what loading and calls left on it: the `max_length` of the last call would become the
        # default.
        for key in ("is_local", "local_files_only"):
            self.tokenizer.init_kwargs.pop(key, None)
        if self.tokenizer.is_fast:
            self.tokenizer.backend_tokenizer.no_truncation()
            self.tokenizer.backend_tokenizer.no_padding()
        files = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        # Saving sets `auto_map` on the object, but loading does not read it: the two processors would differ.
        self.__dict__.pop("auto_map", None)
        return files


def _check_text(text: Any, is_split: bool):
    """Raises a `ValueError` unless `text` is a string or a list of strings (with `is_split`, of lists of words)."""
    if isinstance(text, str):
        return
    if not isinstance(text, list | tuple):
        raise ValueError(f"text must be a string or a list of strings, not {type(text).__name__}.")
    if not text:
        raise ValueError("No text was given: the list of texts is empty.")
    if not is_split and (wrong := [item for item in text if not isinstance(item, str)]):
        raise ValueError(f"text must be a string or a list of strings; one of them is {wrong[0]!r:.80}.")


def _flatten(images: Any) -> list[Any]:
    if isinstance(images, list | tuple):
        if not images:
            raise ValueError("No images were given: the list of images is empty.")
        return [image for item in images for image in _flatten(item)]
    dimensions = getattr(images, "ndim", 0)
    if dimensions > 4:
        raise ValueError(f"Images must be arrays of at most 4 dimensions; got {dimensions}.")
    if dimensions == 4:
        return _flatten(list(images))
    return [images]


__all__ = ["RegionLearnerProcessor", "RegionLearnerProcessorKwargs"]

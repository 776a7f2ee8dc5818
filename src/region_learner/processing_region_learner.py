# Copyright 2026 The RegionLearner authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in
# compliance with the License. You may obtain a copy at http://www.apache.org/licenses/LICENSE-2.0
"""Processor of RegionLearner: captions to `input_ids`, videos and images to `pixel_values_videos`."""

import os
from typing import Any

from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

LONGEST_TEXT = 512  # tokens, for tokenizers that do not know how many their model can take
UNKNOWN_LENGTH = 10**20  # where transformers, too, takes `model_max_length` for "not set"


class RegionLearnerProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {
        # Not all tokenizers, SigLIP's say, give the mask of themselves.
        "text_kwargs": {"padding": True, "truncation": True, "return_attention_mask": True, "return_tensors": "pt"},
        "videos_kwargs": {"return_tensors": "pt"},
    }


class RegionLearnerProcessor(ProcessorMixin):
    r"""
    A video processor and a tokenizer in one.

    Args:
        video_processor (`RegionLearnerVideoProcessor`): makes `pixel_values_videos`.
        tokenizer (`PreTrainedTokenizerBase`): that of the text encoder.
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
        Any subset of text and either videos or images.

        Args:
            text: a caption or a list of them; padded to the longest, and truncated to `max_length`, by default and
                at most the tokenizer's own limit.
            videos: as for `RegionLearnerVideoProcessor`: one clip, or a list of them.
            images: one image or a list of them, each a clip of one frame; anything that is a frame or an encoded
                video. Not together with `videos`, as clips of one batch have as many frames each.
            kwargs: options of the tokenizer and of the video processor, such as `max_length`, `training`,
                `generator`, `num_frames`, `short_clips`; tensors are PyTorch's unless `return_tensors` says otherwise.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` (B, length) for text, `pixel_values_videos`
            (B, T, 3, height, width) for videos, T = 1 for images.

        Raises:
            ValueError: there is no input, or videos and images together; `max_length` is too large.
            VideoDecodeError: a video or an image cannot be read.
        """
        # Not in the signature: generic callers, transformers' common tests too, give all it names in one call.
        images = kwargs.pop("images", None)
        if text is None and videos is None and images is None:
            raise ValueError("Nothing to process: give text, videos or images.")
        if videos is not None and images is not None:
            raise ValueError(
                "videos and images make no batch, as images are clips of one frame: process them in two calls."
            )
        # Merging copies what it is given, and a copied generator would give the same numbers in every call.
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
            clips = [[image] for image in _flatten(images)]
            one_frame = {"num_frames": 1, "fps": None, "do_sample_frames": True}
            data.update(self.video_processor(clips, **{**videos_kwargs, **one_frame}))
        elif videos is not None:
            data.update(self.video_processor(videos, **videos_kwargs))
        return BatchFeature(data)

    def _check_max_length(self, given: dict[str, Any], text_kwargs: dict[str, Any]):
        """
        Keeps texts within what the text tower takes, for which its tokenizer stands.

        Raises:
            ValueError: a `max_length` that is given in the call is larger.
        """
        limit, length = self.tokenizer.model_max_length, text_kwargs.get("max_length")
        if length is None:
            return
        least = self.tokenizer.num_special_tokens_to_add(pair=False) + 1  # below, tokenizers do not truncate at all
        if not isinstance(length, int) or length < least:
            raise ValueError(f"max_length={length!r} must be a whole number, at least {least}: special tokens count.")
        if length <= limit:
            return
        if "max_length" in given or "max_length" in (given.get("text_kwargs") or {}):
            raise ValueError(
                f"max_length={length} is more than the {limit} tokens that the text tower takes "
                "(tokenizer.model_max_length): lower it, or leave it out."
            )
        text_kwargs["max_length"] = limit  # of the tokenizer's file, which may know less of the tower

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        # What loading and calls leave on a tokenizer is saved with it, and read back: the `max_length` of the last
        # call would become that of all.
        for key in ("is_local", "local_files_only"):
            self.tokenizer.init_kwargs.pop(key, None)
        if self.tokenizer.is_fast:
            self.tokenizer.backend_tokenizer.no_truncation()
            self.tokenizer.backend_tokenizer.no_padding()
        files = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        # Saving leaves on the object what it writes for remote code, loading does not read it back: without this, a
        # processor that was saved would differ from the one loaded.
        self.__dict__.pop("auto_map", None)
        return files


def _check_text(text: Any, is_split: bool):
    """
    Raises:
        ValueError: it is neither a string nor a list of strings (with `is_split`, a list of lists of words, too).
    """
    if isinstance(text, str):
        return
    if not isinstance(text, list | tuple):
        raise ValueError(f"text must be a string or a list of strings, not {type(text).__name__}.")
    if not text:
        raise ValueError("No text was given: a list of texts is empty.")
    if not is_split and (wrong := [item for item in text if not isinstance(item, str)]):
        raise ValueError(f"text must be a string or a list of strings; one of them is {wrong[0]!r:.80}.")


def _flatten(images: Any) -> list[Any]:
    if isinstance(images, list | tuple):
        if not images:
            raise ValueError("No images were given: a list of images is empty.")
        return [image for item in images for image in _flatten(item)]
    dimensions = getattr(images, "ndim", 0)
    if dimensions > 4:
        raise ValueError(f"Images are arrays of at most 4 dimensions; got {dimensions}.")
    if dimensions == 4:
        return _flatten(list(images))
    return [images]


__all__ = ["RegionLearnerProcessor", "RegionLearnerProcessorKwargs"]

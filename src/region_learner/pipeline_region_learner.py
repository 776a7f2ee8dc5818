# Copyright 2026 The RegionLearner authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in
# compliance with the License. You may obtain a copy at http://www.apache.org/licenses/LICENSE-2.0
"""The pipeline "video-text-retrieval": ranks texts for a video, or videos for a text, and classifies zero-shot."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Pipeline

_CANDIDATES = ("texts", "videos", "candidate_labels")


class VideoTextRetrievalPipeline(Pipeline):
    """
    Ranks texts for a video, or videos for a text, by the cosine similarity of their embeddings, and classifies videos
    by any labels, without training. The model is a [`RegionLearnerModel`].

    Texts and videos to choose from are embedded once for all inputs of a call.

    Example:

    ```python
    >>> from transformers import pipeline

    >>> retrieve = pipeline("video-text-retrieval", model="checkpoint")
    >>> retrieve("clip.mp4", texts=["a red square moves left", "a blue circle"])  # the best text first
    [{'score': 0.71, 'text': 'a red square moves left'}, {'score': 0.12, 'text': 'a blue circle'}]
    >>> retrieve("a blue circle", videos=["1.mp4", "2.mp4"], top_k=1)
    [{'score': 0.68, 'video': '2.mp4'}]
    >>> retrieve("clip.mp4", candidate_labels=["juggling", "archery"], prompt="a video of {}.")  # probabilities
    [{'score': 0.93, 'label': 'juggling'}, {'score': 0.07, 'label': 'archery'}]
    ```
    """

    _load_processor = True  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_video_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(
                "The pipeline needs a processor: give processor=RegionLearnerProcessor.from_pretrained(...)."
            )
        if not all(hasattr(self.model, name) for name in ("get_text_features", "get_video_features")):
            raise ValueError(
                f"{type(self.model).__name__} does not embed texts and videos: give a checkpoint of a "
                "RegionLearnerModel."
            )

    def __call__(self, inputs: Any, **kwargs: Any) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """
        Ranks texts for each video or videos for each text, or classifies each video.

        Args:
            inputs: a video, or with `videos` a text; or a list of them. A video is anything that the processor takes
                as one clip, such as a path. Put frames of one clip into a list of their own, within the list of
                inputs.
            texts (`list[str]`, *optional*): texts to rank for each video.
            videos (`list`, *optional*): videos to rank for each text, in the same forms as `inputs`.
            candidate_labels (`list[str]`, *optional*): names of classes, of which one is to be chosen for each video.
                Give one of `texts`, `videos` and `candidate_labels`.
            prompt (`str`, *optional*, defaults to `"{}"`): with `candidate_labels`, a text in which `{}` stands for
                the label.
            top_k (`int`, *optional*): how many results to return; by default all.
            batch_size (`int`, *optional*, defaults to 1): how many inputs, and how many candidates, are embedded at a
                time. Clips of one batch must have the same number of frames.

        Returns:
            A list of results, the best one first, or for a list of inputs a list of such lists. A result has a "score"
            and a "text", "video" or "label". The score of a text or video is its cosine similarity. That of a label
            is its probability: a softmax over labels of similarities divided by the temperature of the model, or, if
            it was trained with the sigmoid loss, a sigmoid for each label.

        Raises:
            ValueError: there are no candidates, or of several kinds; an input or a candidate is not one text or one
                clip; or the clips of a batch differ in their number of frames.
            VideoDecodeError: a video cannot be read.
        """
        given = [name for name in _CANDIDATES if kwargs.get(name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"Give one of {', '.join(_CANDIDATES)} to choose from; got {found}.")
        kind = given[0]
        candidates = _checked(kind, kwargs.pop(kind))
        prompt = kwargs.pop("prompt", None)
        if prompt is not None and kind != "candidate_labels":
            raise ValueError(f"prompt={prompt!r} is for candidate_labels, not for {kind}.")
        if "{}" not in (prompt := "{}" if prompt is None else prompt):
            raise ValueError(f"prompt={prompt!r} must contain {{}}, which stands for the label.")
        batch_size = kwargs.pop("batch_size", None)
        batch_size = next((value for value in (batch_size, self._batch_size) if value is not None), 1)
        _check_count("batch_size", batch_size)
        _check_count("top_k", kwargs.get("top_k"))
        if isinstance(inputs, tuple):
            inputs = list(inputs)
        if isinstance(inputs, list) and not inputs:
            return []
        texts = [prompt.replace("{}", label) for label in candidates] if kind == "candidate_labels" else candidates
        embeds = self._embed_all(texts, kind == "videos", batch_size)
        return super().__call__(
            inputs, batch_size=batch_size, kind=kind, candidates=candidates, embeds=embeds, **kwargs
        )

    def _sanitize_parameters(self, kind=None, candidates=None, embeds=None, top_k=None, **kwargs):
        for name in (*_CANDIDATES, "prompt"):
            if kwargs.pop(name, None) is not None:  # `__call__` does not pass them on
                raise ValueError(f"{name} belongs in the call of the pipeline: retrieve(inputs, {name}=...).")
        _check_count("top_k", top_k)
        if unknown := [name for name, value in kwargs.items() if value is not None]:
            raise ValueError(
                f"{unknown[0]!r} is not an argument of the pipeline 'video-text-retrieval': expected one of "
                f"{', '.join(_CANDIDATES)}, prompt, top_k and batch_size."
            )
        ranking = {"kind": kind, "candidates": candidates, "embeds": embeds}
        ranking = {name: value for name, value in ranking.items() if value is not None}
        preprocess = {"are_texts": kind == "videos"} if kind is not None else {}
        return preprocess, {}, ranking | ({} if top_k is None else {"top_k": top_k})

    def _embed_all(self, candidates: list[Any], are_videos: bool, batch_size: int) -> torch.Tensor:
        """Returns the embeddings of candidates, (n, projection_dim)."""
        embeds = []
        for start in range(0, len(candidates), batch_size):
            batch = self._prepare(candidates[start : start + batch_size], are_texts=not are_videos)
            embeds.append(self.forward(batch)["embeds"])
        return torch.cat(embeds)

    def preprocess(self, inputs: Any, are_texts: bool = False) -> dict[str, torch.Tensor]:
        return self._prepare([inputs], are_texts)

    def _prepare(self, items: list[Any], are_texts: bool) -> dict[str, torch.Tensor]:
        """Returns the inputs of the model for texts, or for clips, each of which may be a list of frames."""
        if are_texts:
            return self.processor(text=items)
        # In a list, a picture would be a frame of the clip that the list is.
        clips = [list(item) if isinstance(item, list | tuple) else [item] for item in items]
        prepared = self.processor(videos=clips)
        found, frames = prepared["pixel_values_videos"].shape[:2]
        if found != len(items):
            raise ValueError(
                f"{len(items)} videos contain {found} clips: give each clip as a video of its own, in one flat list."
            )
        # transformers pads the shorter clips of a batch with zeros, and does not say so.
        return {**prepared, "frames": torch.full((found,), frames)}

    def _forward(self, model_inputs: Any) -> dict[str, torch.Tensor]:
        is_video = "pixel_values_videos" in model_inputs
        if is_video and len(frames := set(model_inputs.pop("frames").tolist())) > 1:
            raise ValueError(
                f"Clips of {' and '.join(map(str, sorted(frames)))} frames cannot be batched: use batch_size=1, or "
                "sample the same number of frames from each (processor.video_processor.num_frames)."
            )
        model: Any = self.model
        features = model.get_video_features if is_video else model.get_text_features
        pooled = features(**model_inputs).pooler_output
        return {"embeds": F.normalize(pooled.float(), dim=-1)}

    def postprocess(
        self,
        model_outputs: dict[str, torch.Tensor],
        kind: str,
        candidates: Sequence[Any],
        embeds: torch.Tensor,
        top_k: int | None = None,
    ) -> list[dict[str, Any]]:
        scores = model_outputs["embeds"][0] @ embeds.T
        if kind == "candidate_labels":
            model: Any = self.model
            temperature = model.temperature
            logits = scores / (temperature.float().cpu() if torch.is_tensor(temperature) else temperature)
            if model.logit_bias is not None:
                scores = (logits + model.logit_bias.float().cpu()).sigmoid()
            else:
                scores = logits.softmax(-1)
        best = scores.argsort(descending=True, stable=True)[:top_k].tolist()
        name = {"texts": "text", "videos": "video", "candidate_labels": "label"}[kind]
        return [{"score": scores[index].item(), name: candidates[index]} for index in best]

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


def _checked(kind: str, candidates: Any) -> list[Any]:
    """Returns candidates as a list. Raises a `ValueError` unless they are a sequence, of strings unless videos."""
    if not isinstance(candidates, Sequence) or isinstance(candidates, str | bytes) or not candidates:
        given = f"{candidates!r:.80}" if isinstance(candidates, Sequence) else f"a {type(candidates).__name__}"
        raise ValueError(f"{kind} must be a list of at least one candidate, not {given}.")
    wrong = [] if kind == "videos" else [item for item in candidates if not isinstance(item, str)]
    if wrong:
        raise ValueError(f"{kind} must be a list of strings; one of them is {wrong[0]!r:.80}.")
    return list(candidates)


def _check_count(name: str, value: Any) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{name}={value!r} must be an integer of at least 1.")


__all__ = ["VideoTextRetrievalPipeline"]

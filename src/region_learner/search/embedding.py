"""Embeds windows of videos and queries with the same model."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..corpora.features import preprocessing_of
from ..evaluation.provenance import commit_of
from ..inference import evaluation_mode
from ..loading import check_checkpoint, load_checkpoint
from ..phrase_maps import find_phrases, find_words
from .reading import Begin, End, Event, Failed, Known, Part
from .sources import Video
from .spans import Plan
from .windows import MOST_TOKENS, Windows, are_tokens, are_units, is_token_shape, pack_tokens

# Batches never mix videos, so that the embeddings of a video do not depend on which other videos are new.
_FRAMES = 32
_WINDOWS = 8

_SAMPLED = 1024  # number of values per tensor that the hash of the weights covers


class Query(NamedTuple):
    """
    The embeddings of a query.

    Args:
        vector: the L2-normalized embedding, float32 (D,).
        words: L2-normalized embeddings of the tokens of a text, float32 (1, L, d), and their weights, (1, L); None for
            images, videos, and models without tokens.
    """

    vector: np.ndarray
    words: tuple[torch.Tensor, torch.Tensor] | None = None


class Embedder:
    """
    A model and its processor.

    Args:
        name: directory or Hub name of a RegionLearner, CLIP, MetaCLIP 2, SigLIP or SigLIP 2 checkpoint.
        num_frames: frames per window. The default is that of the processor.

    Raises:
        ValueError: the checkpoint cannot embed texts and videos, or does not support this number of frames.
        OSError: the checkpoint does not exist.
    """

    def __init__(self, name: str, num_frames: int | None = None):
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"num_frames={num_frames} must be at least 1.")
        check_checkpoint(name)
        self.name = os.path.abspath(name) if Path(name).is_dir() else name
        self.model, self.processor = load_checkpoint(name, "retrieval")
        video_processor = self.processor.video_processor
        if num_frames is not None:
            video_processor.num_frames, video_processor.fps = num_frames, None
        if video_processor.num_frames is None:
            raise ValueError(f"{name} samples frames by frame rate: set the frames per window with --num-frames.")
        most = self.model.video_model.max_frames
        if most is not None and video_processor.num_frames > most:
            raise ValueError(f"{name} supports at most {most} frames per window, not {video_processor.num_frames}.")
        self.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def about(self) -> dict[str, Any]:
        """Returns the settings that an index must match, as JSON values."""
        return {
            "model": self.name,
            "revision": commit_of(self.name),
            "weights": _hash_of_weights(self.model),
            "preprocessing": preprocessing_of(self.processor.video_processor),
            "num_frames": self.processor.video_processor.num_frames,
            "dim": self.model.config.projection_dim,
        }

    @property
    def logit_scale(self) -> float:
        with torch.no_grad():
            return 1 / float(self.model.temperature)

    @property
    def token_logit_scale(self) -> float:
        with torch.no_grad():
            return 1 / float(self.model.token_temperature)

    def token_shape(self, wanted: bool | None) -> list[int] | None:
        """
        Returns the number of tokens per window and their number of dimensions, or None if tokens should
        not be kept. Both numbers are the same for all windows, because all windows have the same number of frames.

        Args:
            wanted: whether to keep tokens; None keeps them if the model has any.

        Raises:
            ValueError: tokens are wanted but the model does not have any, or they have too many dimensions.
        """
        dim = self.model.config.token_dim
        if wanted and not self.has_tokens:
            raise ValueError(
                f"{self.name} does not have word-region tokens (token_dim=0): leave out --tokens, or use a model that "
                "was trained with token_dim."
            )
        if not dim or wanted is False:
            return None
        side = self.processor.video_processor.crop_size or self.processor.video_processor.output_size
        black = np.zeros((side["height"], side["width"], 3), np.uint8)
        frames = [black] * self.processor.video_processor.num_frames
        with self._running():
            found = self.model(**self.processor(videos=[frames]).to(self.model.device)).video_token_embeds
        shape = [min(found.shape[1], MOST_TOKENS), dim]
        if not is_token_shape(shape):
            raise ValueError(f"{self.name} has token_dim={dim}, which is too large for an index: add --no-tokens.")
        return shape

    @contextmanager
    def _running(self) -> Iterator[None]:
        on_gpu = self.model.device.type == "cuda"
        with evaluation_mode(self.model), torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext():
            yield

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the L2-normalized embeddings of texts, float32 (n, D)."""
        return np.stack([query.vector for query in self.queries(texts)])

    def queries(self, texts: Sequence[str]) -> list[Query]:
        """Returns the embeddings of texts, and of their words if the model has them."""
        found = []
        for start in range(0, len(texts), _FRAMES):
            inputs = self.processor(text=list(texts[start : start + _FRAMES])).to(self.model.device)
            with self._running():
                outputs = self.model(**inputs)
            vectors = _as_array(outputs.text_embeds)
            if outputs.text_token_embeds is None:
                found += [Query(vector) for vector in vectors]
            else:
                words, weights = outputs.text_token_embeds.float().cpu(), outputs.text_token_weights.float().cpu()
                found += [Query(vector, pair) for vector, pair in zip(vectors, zip(words.split(1), weights.split(1)))]
        return found

    def clip(self, **given: Any) -> np.ndarray:
        """Returns the L2-normalized embedding, float32 (D,), of one image or video, given as to the processor."""
        inputs = self.processor(**given).to(self.model.device)
        with self._running():
            return _as_array(self.model(**inputs).video_embeds)[0]

    @property
    def has_regions(self) -> bool:
        return bool(self.model.config.video_config.num_regions)

    def regions(self, source: Any, start: float | None, end: float | None) -> np.ndarray:
        """Returns the masks of the regions of a span, float32 (T, S, h, w), of a model with regions."""
        inputs = self.processor(videos=[source], start=start, end=end).to(self.model.device)
        with self._running():
            return self.model.video_model(**inputs).region_masks[0].float().cpu().numpy()

    @property
    def has_tokens(self) -> bool:
        """Whether the model compares words with regions."""
        return bool(self.model.config.token_dim)

    def phrases(
        self, source: Any, text: str, start: float | None, end: float | None
    ) -> tuple[tuple[str, ...], np.ndarray]:
        """Returns a text and its phrases, P in total, and their heat maps over a span, float32 (T, P, h, w)."""
        clip = self.processor(videos=[source], start=start, end=end)["pixel_values_videos"]
        find = find_words if re.search(r"\w", text) else find_phrases
        whole, *parts = find(self.model, self.processor, clip, text)
        found = [whole, *(part for part in parts if part.text != text.strip())]
        heat_maps = torch.stack([match.heat_map for match in found], 1)
        return tuple(match.text for match in found), heat_maps.float().numpy()

    def encode(self, frames: np.ndarray) -> torch.Tensor:
        """
        Returns the frames in the form that windows are assembled from: features (n, 1 + N, D) if the model has a
        backbone, which encodes each frame separately, and pixels otherwise.

        Args:
            frames: frames (n, 3, H, W), not normalized.
        """
        found = []
        for part in torch.from_numpy(frames).split(_FRAMES):
            part = self.processor.video_processor.normalize_clips(part.to(self.model.device))
            if self.model.video_model.backbone is not None:
                with self._running():
                    part = self.model.video_model.encode_frames(part[:, None])[:, 0]
            found.append(part)
        return torch.cat(found)

    def join(self, clips: torch.Tensor) -> Windows:
        """Returns the embeddings of clips (B, T, ...) of frames in the form that `encode` returns."""
        with self._running():
            outputs = self.model(pixel_values_videos=clips)
        tokens = None
        if outputs.video_token_embeds is not None:
            tokens = pack_tokens(outputs.video_token_embeds, outputs.video_token_weights)
        return Windows(_as_array(outputs.video_embeds), tokens)


def _as_array(embeds: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(embeds.float(), dim=-1).cpu().numpy()


def _hash_of_weights(model: torch.nn.Module) -> str:
    """Returns a hash of the names and shapes of all weights, and of evenly spaced values of each."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.reshape(-1)
        flat = flat[:: max(1, len(flat) // _SAMPLED)]
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(flat.cpu().double().numpy().tobytes())
    return digest.hexdigest()


class WindowEmbeddings:
    """
    Embeds the windows of one video, whose frames arrive in parts. Each frame is encoded once, and is kept until no
    window needs it anymore.
    """

    def __init__(self, embedder: Embedder, plan: Plan):
        self.embedder, self.plan = embedder, plan
        self.kept: dict[int, torch.Tensor] = {}
        self.found: list[Windows] = []
        self.done = 0

    def add(self, part: Part) -> None:
        """Adds frames and embeds the windows that are now complete."""
        self.kept.update(zip(part.indices.tolist(), self.embedder.encode(part.frames)))
        ready = int(self.plan.frames.max(1).searchsorted(part.indices[-1], "right"))
        while self.done < ready:
            windows = self.plan.frames[self.done : min(self.done + _WINDOWS, ready)].tolist()
            clips = torch.stack([torch.stack([self.kept[index] for index in window]) for window in windows])
            self.found.append(self.embedder.join(clips))
            self.done += len(windows)
        first = self.plan.frames[self.done].min() if self.done < len(self.plan.frames) else np.inf
        self.kept = {index: frame for index, frame in self.kept.items() if index >= first}

    def windows(self) -> Windows:
        """Returns the embeddings of all windows."""
        return Windows.concatenate(self.found)


class Embedded(NamedTuple):
    """A video that was embedded: the hash of its content, its windows, and their embeddings."""

    sha256: str
    plan: Plan
    windows: Windows


def embed_events(
    events: Iterable[tuple[Video, Event]], embedder: Embedder
) -> Iterator[tuple[Video, Embedded | Known | Failed]]:
    """Embeds videos while they are read. Yields each with its embeddings, or with the reason why it has none."""
    open_videos: dict[str, tuple[str, WindowEmbeddings]] = {}
    for video, event in events:
        if isinstance(event, Begin):
            open_videos[video.path] = event.sha256, WindowEmbeddings(embedder, event.plan)
        elif isinstance(event, Part):
            open_videos[video.path][1].add(event)
        elif isinstance(event, End):
            sha256, embeddings = open_videos.pop(video.path)
            windows = embeddings.windows()
            if are_units(windows.vectors) and (windows.tokens is None or are_tokens(windows.tokens)):
                yield video, Embedded(sha256, embeddings.plan, windows)
            else:  # an index or a part with it would count as damaged
                yield video, Failed("its embeddings are not of length 1: the model may have overflowed")
        else:
            open_videos.pop(video.path, None)
            yield video, event

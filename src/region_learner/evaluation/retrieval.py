"""Embeds texts and the videos of a corpus with a model, each video once."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..corpora.folder import CorpusError
from ..corpora.webdataset import video_source
from ..video_processing_region_learner import VideoDecodeError
from .metrics import retrieval_metrics

logger = logging.getLogger(__name__)


@dataclass
class Embeddings:
    """
    The videos of a corpus, and their captions, in the embedding space; all of length 1.

    `video_embeds`: (videos, dim); `text_embeds`: (texts, dim); `text_video_ids`: which video each text describes;
    `unreadable`: message by video id, of videos that are in none of these.
    """

    video_ids: list[str]
    video_embeds: torch.Tensor
    texts: list[str]
    text_embeds: torch.Tensor
    text_video_ids: list[str]
    unreadable: dict[str, str] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        return retrieval_metrics(self.text_embeds, self.video_embeds, self.text_video_ids, self.video_ids)


class _Clips(torch.utils.data.Dataset):
    """
    Decoded and transformed clips (T, C, H, W) of a corpus; the message of the error for one that cannot be read.
    References of a lazy corpus are read here, in the loader's workers.
    """

    def __init__(self, videos: Sequence[Any], video_processor):
        self.videos, self.video_processor = videos, video_processor

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> torch.Tensor | str:
        try:
            clip = self.video_processor([video_source(self.videos[index])], return_tensors="pt")
        except (CorpusError, VideoDecodeError) as error:
            return str(error)
        return clip["pixel_values_videos"][0]


@torch.inference_mode()
def embed_texts(model, processor, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
    """Embeddings of length 1 for `texts`, (texts, dim), on the CPU."""
    embeds = []
    for start in range(0, len(texts), batch_size):
        inputs = processor(text=list(texts[start : start + batch_size]), return_tensors="pt").to(model.device)
        embeds.append(F.normalize(model.get_text_features(**inputs).pooler_output.float(), dim=-1).cpu())
    return torch.cat(embeds)


def read_clips(
    processor,
    videos: Sequence[Any],
    unreadable: dict[int, str],
    batch_size: int = 16,
    num_workers: int = 0,
    progress: bool = True,
    description: str = "embedding videos",
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """
    Batches of the readable ones of `videos`: their indices, and clips (B, T, C, H, W) with middle frames and centre
    crop. Of the others, the message of the error goes into `unreadable`, by index.

    Raises:
        ValueError: if no video can be read.
    """
    loader = torch.utils.data.DataLoader(
        _Clips(videos, getattr(processor, "video_processor", processor)),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=list,
    )
    seen, any_readable = 0, False
    for clips in tqdm(loader, desc=description, unit="batch", disable=None if progress else True):
        indices = [seen + i for i, clip in enumerate(clips) if not isinstance(clip, str)]
        unreadable |= {seen + i: clip for i, clip in enumerate(clips) if isinstance(clip, str)}
        seen += len(clips)
        if indices:
            any_readable = True
            yield indices, torch.stack([clip for clip in clips if not isinstance(clip, str)])
    if not any_readable:
        raise ValueError(f"None of the {seen} videos can be read; the first: {next(iter(unreadable.values()), None)}")


@torch.inference_mode()
def embed_videos(
    model, processor, videos: Sequence[Any], batch_size: int = 16, num_workers: int = 0, progress: bool = True
) -> tuple[torch.Tensor, dict[int, str]]:
    """
    Embeddings of length 1 for the readable ones of `videos`, in order, (readable, dim), on the CPU; and the message
    of the error for each other, by its index.
    """
    embeds: list[torch.Tensor] = []
    unreadable: dict[int, str] = {}
    for _, clips in read_clips(processor, videos, unreadable, batch_size, num_workers, progress):
        features = model.get_video_features(clips.to(model.device)).pooler_output
        embeds.append(F.normalize(features.float(), dim=-1).cpu())
    return torch.cat(embeds), unreadable


def warn_of_unreadable(unreadable: Mapping[int, str], video_ids: Sequence[str]) -> None:
    """Names the first of the videos that were left out; `unreadable` holds a message for each, by its index."""
    if unreadable:
        names = "; ".join(f"{video_ids[i]} ({message})" for i, message in list(unreadable.items())[:5])
        logger.warning("%d of %d videos cannot be read and are left out: %s", len(unreadable), len(video_ids), names)


def embed_corpus(
    model,
    processor,
    dataset: Iterable[dict[str, Any]],
    batch_size: int = 16,
    num_workers: int = 0,
    progress: bool = True,
) -> Embeddings:
    """
    Embeds a corpus with the columns of `load_corpus`: each video once (middle frames, centre crop), and all of its
    captions. Videos that cannot be read are left out, named in a warning and in `unreadable`.

    Raises:
        ValueError: if no video can be read.
    """
    was_training = model.training
    model.eval()
    columns = [(row["video"], row["video_id"], row["captions"]) for row in dataset]
    videos, ids, captions = (list(column) for column in zip(*columns))
    try:
        video_embeds, failures = embed_videos(model, processor, videos, batch_size, num_workers, progress)
        kept = [i for i in range(len(videos)) if i not in failures]
        pairs = [(caption, ids[i]) for i in kept for caption in captions[i]]
        text_embeds = embed_texts(model, processor, [caption for caption, _ in pairs])
    finally:
        model.train(was_training)
    warn_of_unreadable(failures, ids)
    return Embeddings(
        video_ids=[ids[i] for i in kept],
        video_embeds=video_embeds,
        texts=[caption for caption, _ in pairs],
        text_embeds=text_embeds,
        text_video_ids=[video_id for _, video_id in pairs],
        unreadable={ids[i]: message for i, message in failures.items()},
    )

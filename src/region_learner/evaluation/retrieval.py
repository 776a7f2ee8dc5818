"""Embeds texts and the videos of a corpus with a model, each video once."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..corpora import CorpusError
from ..corpora.rows import check_shapes, only_clip
from ..corpora.webdataset import is_reference, video_source
from ..loader_processes import load_in_order
from ..video_decoding_region_learner import VideoDecodeError
from .metrics import retrieval_metrics
from .rows import CorpusRows

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


@dataclass(frozen=True)
class Views:
    """
    Test-time views: the clips of a video that are embedded and averaged. All of them span the whole video, as the
    clips of training do, and differ in the frame that they take of each segment.

    Args:
        clips: so many. Each of the `num_frames` segments is divided into `clips` equal parts, and clip k has the
            middle frame of each k-th part: with one clip, the middle frame of each segment.
        window_stride: sliding windows instead (Frozen in Time, arXiv 2104.00650, and its option
            `sliding_window_stride`): a clip has frame i of each segment, for i = 0, stride, 2 * stride, ... as long
            as all segments have one. So the number of clips grows with the length of the video.

    Raises:
        ValueError: either is less than 1, or both are given.
    """

    clips: int = 1
    window_stride: int | None = None

    def __post_init__(self):
        for name in ("clips", "window_stride"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r} must be a whole number, at least 1.")
        if self.clips > 1 and self.window_stride is not None:
            raise ValueError("clips and window_stride exclude each other: the stride decides how many there are.")

    @property
    def single(self) -> bool:
        """Whether every video has one clip, that of the video processor."""
        return self.clips == 1 and self.window_stride is None

    def frames(self, total: int, num_frames: int) -> np.ndarray:
        """
        Indices of the frames of each clip, (clips, num_frames), in a video of `total` frames. Where there are fewer
        than `num_frames`, the last one is repeated, as the video processor does.
        """
        used = min(total, num_frames)
        borders = np.floor(np.linspace(0, total, used + 1)).astype(int)
        starts, lengths = borders[:-1], np.diff(borders)
        if self.window_stride is None:
            # The frame at or before the middle of part k, that is at (k + 1/2) / clips of the segment.
            middles = (2 * np.arange(self.clips)[:, None] + 1) * lengths - self.clips
            offsets = np.maximum(middles // (2 * self.clips), 0)
        else:
            # The authors' code stops at a share 1 / (num_frames + 1) of the video, short of the segments' end.
            offsets = np.arange(0, lengths.min(), self.window_stride)[:, None]
        return np.pad(starts + offsets, ((0, 0), (0, num_frames - used)), mode="edge")


ONE_VIEW = Views()


class _Clips(torch.utils.data.Dataset):
    """
    Decoded and transformed clips (views, T, C, H, W) of each video of a corpus; the message of the error for one
    that cannot be read. References of a lazy corpus are read here, in the loader's workers.
    """

    def __init__(self, videos: Sequence[Any], video_processor, views: Views):
        self.videos, self.video_processor, self.views = videos, video_processor, views
        if not views.single and video_processor.num_frames is None:
            raise ValueError("Several clips a video need a video processor with num_frames instead of fps.")

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> torch.Tensor | str:
        try:
            video = video_source(self.videos[index])
            if not self.views.single:
                return self._views(video)["pixel_values_videos"]
            return only_clip(self.video_processor([video], return_tensors="pt")["pixel_values_videos"])[None]
        except (CorpusError, VideoDecodeError) as error:
            return str(error)
        except (TypeError, ValueError) as error:  # frames that are not what is expected
            raise ValueError(f"{_name(self.videos[index], index)}: {error}") from error

    def _views(self, video: Any):
        """The clips of a video, which is decoded once."""
        processor = self.video_processor

        def choose(metadata):
            processor.sample_frames(metadata)  # refuses the videos that it refuses with one clip
            return self.views.frames(metadata.total_num_frames, processor.num_frames).ravel()

        frames, _ = processor.decode(video, sample_indices_fn=choose, scale=processor.scale_while_decoding({}))
        clips = list(frames.unflatten(0, (-1, processor.num_frames)))
        return processor(clips, do_sample_frames=False, input_data_format="channels_first", return_tensors="pt")


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
    views: Views = ONE_VIEW,
    max_unreadable: float = 1.0,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """
    Batches of the readable ones of `videos`: clips (B, T, C, H, W) with centre crop, and the index of the video of
    each. All clips of a video are in one batch, which has more than `batch_size` only if a video has. Of the videos
    that cannot be read, the message of the error goes into `unreadable`, by index.

    Args:
        max_unreadable: share of the videos that may be unreadable; 0 for none.

    Raises:
        ValueError: if more of them are, or all.
        ChildProcessError: a process that decodes was killed, crashed or hangs.
    """
    allowed = max_unreadable * len(videos)
    per_batch = max(1, batch_size // views.clips) if views.window_stride is None else 1
    batches = load_in_order(
        _Clips(videos, getattr(processor, "video_processor", processor), views),
        per_batch,
        num_workers,
        lambda index: _name(videos[index], index),
    )
    seen, any_readable = 0, False
    total = math.ceil(len(videos) / per_batch)
    for batch in tqdm(batches, desc=description, unit="batch", total=total, disable=None if progress else True):
        indices, clips = [], []
        for index, of_video in enumerate(batch, start=seen):
            if isinstance(of_video, str):
                unreadable[index] = of_video
                if len(unreadable) > allowed:
                    raise ValueError(
                        f"{len(unreadable)} of {len(videos)} videos cannot be read, more than max_unreadable="
                        f"{max_unreadable}; the last: {of_video}"
                    )
            else:
                indices += [index] * len(of_video)
                clips.append(of_video)
        seen += len(batch)
        if clips:
            any_readable = True
            check_shapes(clips)
            yield indices, torch.cat(clips)
    if not any_readable:
        raise ValueError(f"None of the {seen} videos can be read; the first: {next(iter(unreadable.values()), None)}")


def _name(video: Any, index: int) -> str:
    """What to call a video in messages."""
    if is_reference(video):
        return f"{video['path']} at byte {video['offset']}"
    path = video.get("path") if isinstance(video, Mapping) else video
    return path if isinstance(path, str) else f"video {index}"


def mean_of_views(values: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
    """The mean over the clips of each video: (clips, dim), with the index of the video of each, to (videos, dim)."""
    counts = torch.unique_consecutive(torch.tensor(indices), return_counts=True)[1].tolist()
    return torch.stack([of_video.mean(0) for of_video in values.split(counts)])


@torch.inference_mode()
def embed_videos(
    model,
    processor,
    videos: Sequence[Any],
    batch_size: int = 16,
    num_workers: int = 0,
    progress: bool = True,
    views: Views = ONE_VIEW,
    max_unreadable: float = 1.0,
) -> tuple[torch.Tensor, dict[int, str]]:
    """
    Embeddings of length 1 for the readable ones of `videos`, in order, (readable, dim), on the CPU; and the message
    of the error for each other, by its index. With several clips a video, the normalised mean of their embeddings,
    which are normalised before, too, so that each clip counts the same.
    """
    embeds: list[torch.Tensor] = []
    owners: list[int] = []
    unreadable: dict[int, str] = {}
    for indices, clips in read_clips(
        processor, videos, unreadable, batch_size, num_workers, progress, views=views, max_unreadable=max_unreadable
    ):
        for part in clips.split(batch_size):
            features = model.get_video_features(part.to(model.device)).pooler_output
            embeds.append(F.normalize(features.float(), dim=-1).cpu())
        owners += indices
    if views.single:
        return torch.cat(embeds), unreadable
    return F.normalize(mean_of_views(torch.cat(embeds), owners), dim=-1), unreadable


def warn_of_unreadable(unreadable: Mapping[int, str], video_ids: Sequence[str]) -> list[str]:
    """
    Names the first of the videos that were left out, in a warning, and returns the ids of all; `unreadable` holds a
    message for each, by its index.
    """
    if unreadable:
        names = "; ".join(f"{video_ids[i]} ({message})" for i, message in list(unreadable.items())[:5])
        logger.warning("%d of %d videos cannot be read and are left out: %s", len(unreadable), len(video_ids), names)
    return [video_ids[i] for i in unreadable]


def embed_corpus(
    model,
    processor,
    dataset: Iterable[dict[str, Any]],
    batch_size: int = 16,
    num_workers: int = 0,
    progress: bool = True,
    views: Views = ONE_VIEW,
    max_unreadable: float = 1.0,
) -> Embeddings:
    """
    Embeds a corpus with the columns of `load_corpus`: each video once (middle frames and centre crop, or the mean
    over several `views`), and all of its captions. Videos that cannot be read are left out, named in a warning and
    in `unreadable`. Rows of one `video_id` are captions of one video.

    Raises:
        ValueError: no rows or captions, a column is missing, no video can be read, or a larger share than
            `max_unreadable` cannot.
    """
    rows = CorpusRows(dataset, ("captions",))
    ids, captions = rows.ids, rows.column("captions")
    if not any(len(some) for some in captions):
        raise ValueError("No row has a caption: there is nothing to retrieve by. Is the corpus of another task?")
    was_training = model.training
    model.eval()
    try:
        video_embeds, failures = embed_videos(
            model, processor, rows.videos, batch_size, num_workers, progress, views, max_unreadable
        )
        kept = [i for i in range(len(ids)) if i not in failures]
        owners = rows.owners.tolist()
        pairs = [
            (caption, ids[owner]) for owner, some in zip(owners, captions) if owner not in failures for caption in some
        ]
        if not pairs:
            raise ValueError("No video with a caption can be read.")
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

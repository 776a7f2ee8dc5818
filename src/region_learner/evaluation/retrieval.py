"""Reads and embeds the videos and texts of a corpus, each video once; and evaluates retrieval by the embeddings."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..corpora import CorpusError
from ..corpora.rows import check_shapes, only_clip
from ..corpora.webdataset import is_reference, video_source
from ..inference import evaluation_mode, progress_bar
from ..loader_processes import load_in_order
from ..video_decoding_region_learner import VideoDecodeError
from .dual_softmax import dual_softmax_metrics
from .metrics import retrieval_metrics
from .rows import CorpusRows

logger = logging.getLogger(__name__)


@dataclass
class Embeddings:
    """
    The videos of a corpus and their captions as embeddings of length 1.

    Args:
        video_ids: ids of the videos.
        video_embeds: (videos, dim).
        texts: the captions.
        text_embeds: (texts, dim).
        text_video_ids: id of the video that each text describes.
        unreadable: error messages by id, of videos that could not be read and are in none of the above.
    """

    video_ids: list[str]
    video_embeds: torch.Tensor
    texts: list[str]
    text_embeds: torch.Tensor
    text_video_ids: list[str]
    unreadable: dict[str, str] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of [`retrieval_metrics`]."""
        return retrieval_metrics(self.text_embeds, self.video_embeds, self.text_video_ids, self.video_ids)

    def rescored_metrics(self, temperature: float) -> dict[str, float]:
        """Returns the metrics of [`dual_softmax_metrics`] at a temperature."""
        return dual_softmax_metrics(
            self.text_embeds, self.video_embeds, self.text_video_ids, self.video_ids, temperature
        )


@dataclass(frozen=True)
class Views:
    """
    Test-time views: the clips of a video that are embedded and averaged. All of them span the whole video, as clips
    in training do, and differ in the frame that they take from each segment.

    Args:
        clips: number of clips. Each of the `num_frames` segments is divided into `clips` equal parts, and clip k has
            the middle frame of each k-th part: with one clip, the middle frame of each segment.
        window_stride: sliding windows instead (Frozen in Time, arXiv 2104.00650, option `sliding_window_stride`): a
            clip has frame i of each segment, for i = 0, stride, 2 * stride, ... as long as all segments have one. The
            number of clips grows with the length of the video.

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
        """Whether every video has one clip, the one that the video processor samples."""
        return self.clips == 1 and self.window_stride is None

    def frames(self, total: int, num_frames: int) -> np.ndarray:
        """
        Returns the indices of the frames of each clip, (clips, num_frames), in a video of `total` frames. If there are
        fewer than `num_frames`, the last one is repeated, as by the video processor.
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
    Decoded and transformed clips (views, T, C, H, W) of each video of a corpus, or the error message of a video that
    cannot be read. References of a lazy corpus are resolved here, in the loader's workers.
    """

    def __init__(self, videos: Sequence[Any], video_processor, views: Views):
        self.videos, self.video_processor, self.views = videos, video_processor, views
        if not views.single and video_processor.num_frames is None:
            raise ValueError("Several clips per video need a video processor with num_frames instead of fps.")

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
        except (TypeError, ValueError) as error:  # frames of a wrong type or shape
            raise ValueError(f"{_name(self.videos[index], index)}: {error}") from error

    def _views(self, video: Any):
        """The clips of a video, decoded once."""
        processor = self.video_processor

        def choose(metadata):
            processor.sample_frames(metadata)  # refuses what it refuses with one clip
            return self.views.frames(metadata.total_num_frames, processor.num_frames).ravel()

        frames, _ = processor.decode(video, sample_indices_fn=choose, scale=processor.scale_while_decoding({}))
        clips = list(frames.unflatten(0, (-1, processor.num_frames)))
        return processor(clips, do_sample_frames=False, input_data_format="channels_first", return_tensors="pt")


def embed_texts(
    model, processor, texts: Sequence[str], *, batch_size: int = 256, progress: bool = True
) -> torch.Tensor:
    """Returns embeddings of length 1 of `texts`, (texts, dim), on the CPU."""
    embeds = []
    with evaluation_mode(model):
        for start in progress_bar(range(0, len(texts), batch_size), "embedding texts", show=progress):
            inputs = processor(text=list(texts[start : start + batch_size]), return_tensors="pt").to(model.device)
            embeds.append(F.normalize(model.get_text_features(**inputs).pooler_output.float(), dim=-1).cpu())
    return torch.cat(embeds)


def read_clips(
    processor,
    videos: Sequence[Any],
    unreadable: dict[int, str],
    *,
    batch_size: int = 16,
    num_workers: int = 0,
    progress: bool = True,
    views: Views = ONE_VIEW,
    max_unreadable: float = 1.0,
    description: str = "embedding videos",
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """
    Yields batches of the readable ones of `videos`: the index of the video of each clip, and center-cropped clips
    (B, T, C, H, W). All clips of a video are in one batch, which has more than `batch_size` only if a video has.

    Args:
        processor: a processor, or its video processor.
        videos: anything that the processor reads, and references of a lazy corpus.
        unreadable: filled with the error message of each video that cannot be read, by its index.
        batch_size: clips per batch.
        num_workers: decoding processes.
        progress: whether to show a progress bar.
        views: the clips of each video.
        max_unreadable: the share of the videos that may be unreadable; 0 for none.
        description: of the progress bar.

    Raises:
        ValueError: more of the videos are unreadable, or all.
        ChildProcessError: a decoding process was killed, crashed or hangs.
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
    for batch in progress_bar(batches, description, math.ceil(len(videos) / per_batch), progress):
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
    """Averages the clips of each video: (clips, dim), with the index of the video of each, to (videos, dim)."""
    counts = torch.unique_consecutive(torch.tensor(indices), return_counts=True)[1].tolist()
    return torch.stack([of_video.mean(0) for of_video in values.split(counts)])


def embed_videos(
    model, processor, videos: Sequence[Any], *, batch_size: int = 16, views: Views = ONE_VIEW, **reading
) -> tuple[torch.Tensor, dict[int, str]]:
    """
    Returns embeddings of length 1 of the readable ones of `videos`, in order, (readable, dim), on the CPU; and the
    error message of each other one, by its index. With several clips per video, its embedding is the normalized mean
    of their normalized embeddings, so that each clip counts the same.

    Args:
        model: the dual encoder.
        processor, videos, batch_size, views, reading: as in [`read_clips`].
    """
    embeds: list[torch.Tensor] = []
    owners: list[int] = []
    unreadable: dict[int, str] = {}
    with evaluation_mode(model):
        for indices, clips in read_clips(processor, videos, unreadable, batch_size=batch_size, views=views, **reading):
            for part in clips.split(batch_size):
                features = model.get_video_features(part.to(model.device)).pooler_output
                embeds.append(F.normalize(features.float(), dim=-1).cpu())
            owners += indices
    if views.single:
        return torch.cat(embeds), unreadable
    return F.normalize(mean_of_views(torch.cat(embeds), owners), dim=-1), unreadable


def warn_of_unreadable(unreadable: Mapping[int, str], video_ids: Sequence[str]) -> list[str]:
    """
    Logs a warning that names the first of the videos that were left out, and returns the ids of all; `unreadable`
    holds an error message for each, by its index.
    """
    if unreadable:
        names = "; ".join(f"{video_ids[i]} ({message})" for i, message in list(unreadable.items())[:5])
        logger.warning("%d of %d videos cannot be read and are left out: %s", len(unreadable), len(video_ids), names)
    return [video_ids[i] for i in unreadable]


def embed_corpus(
    model,
    processor,
    dataset: Iterable[dict[str, Any]],
    *,
    batch_size: int = 16,
    num_workers: int = 0,
    progress: bool = True,
    views: Views = ONE_VIEW,
    max_unreadable: float = 1.0,
) -> Embeddings:
    """
    Embeds the videos of a corpus, each once, and all of their captions. Videos that cannot be read are left out, named
    in a warning and listed in `unreadable`. Rows with the same `video_id` hold captions of one video.

    Args:
        model: the dual encoder.
        processor: its processor.
        dataset: rows with `video`, `video_id` and `captions`, as of `load_corpus`.
        batch_size: clips per batch.
        num_workers: decoding processes.
        progress: whether to show progress bars.
        views: the clips of each video, whose embeddings are averaged; by default its middle frames.
        max_unreadable: the share of the videos that may be unreadable, and left out.

    Raises:
        ValueError: the rows are empty or without captions, a column is missing, too many videos cannot be read, or
            none can.

    Example:

        embed_corpus(model, processor, load_corpus("msvd", "data/MSVD", split="test")).metrics()["t2v_R@1"]
    """
    rows = CorpusRows(dataset, ("captions",))
    ids, captions = rows.ids, rows.column("captions")
    if not any(len(some) for some in captions):
        raise ValueError("No row has a caption, so nothing can be retrieved. Is the corpus for another task?")
    video_embeds, failures = embed_videos(
        model,
        processor,
        rows.videos,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=progress,
        views=views,
        max_unreadable=max_unreadable,
    )
    readable = [video_id for i, video_id in enumerate(ids) if i not in failures]
    pairs = [
        (caption, ids[owner])
        for owner, some in zip(rows.owners.tolist(), captions)
        if owner not in failures
        for caption in some
    ]
    if not pairs:
        raise ValueError("No video with a caption can be read.")
    text_embeds = embed_texts(model, processor, [caption for caption, _ in pairs], progress=progress)
    warn_of_unreadable(failures, ids)
    return Embeddings(
        video_ids=readable,
        video_embeds=video_embeds,
        texts=[caption for caption, _ in pairs],
        text_embeds=text_embeds,
        text_video_ids=[video_id for _, video_id in pairs],
        unreadable={ids[i]: message for i, message in failures.items()},
    )


def retrieval_accuracy(
    model,
    processor,
    dataset: Iterable[dict[str, Any]],
    *,
    batch_size: int = 16,
    num_workers: int = 0,
    progress: bool = True,
    views: Views = ONE_VIEW,
    max_unreadable: float = 1.0,
    dual_softmax_temperature: float | None = None,
) -> dict[str, Any]:
    """
    Evaluates text-to-video and video-to-text retrieval.

    Args:
        model, processor, dataset, batch_size, num_workers, progress, views, max_unreadable: as in [`embed_corpus`].
        dual_softmax_temperature: where given, the metrics of dual-softmax re-scoring are added.

    Returns:
        The metrics of [`retrieval_metrics`], `videos` and `texts` (their numbers), `unreadable` (ids of videos), and
        with a temperature `rescored`, a dict of the metrics of [`dual_softmax_metrics`].
    """
    embeddings = embed_corpus(
        model,
        processor,
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=progress,
        views=views,
        max_unreadable=max_unreadable,
    )
    result: dict[str, Any] = {
        **embeddings.metrics(),
        "videos": len(embeddings.video_ids),
        "texts": len(embeddings.texts),
        "unreadable": list(embeddings.unreadable),
    }
    if dual_softmax_temperature is not None:
        result["rescored"] = embeddings.rescored_metrics(dual_softmax_temperature)
    return result

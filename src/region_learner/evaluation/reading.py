"""Reads the rows of a corpus and the clips of its videos. Each video is read once."""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch

from ..corpora import CorpusError
from ..corpora.features import is_features, read_features
from ..corpora.rows import check_dataset, check_shapes, only_clip, read_row
from ..corpora.webdataset import is_reference, video_source
from ..inference import progress_bar
from ..loader_processes import load_in_order
from ..video_decoding_region_learner import VideoDecodeError

logger = logging.getLogger(__name__)

BATCH_SIZE = 16


class _Videos(Sequence):
    """The videos of some rows, read when needed, because the encoded videos of a corpus do not fit in memory."""

    def __init__(self, rows: Any, indices: Sequence[int]):
        self.rows, self.indices = rows, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return _Videos(self.rows, self.indices[index])
        row = self.rows[self.indices[index]]
        return read_row(row, (), f"row {self.indices[index]}")["video"]


class CorpusRows:
    """
    The rows of a corpus.

    Args:
        dataset: the rows.
        columns: columns that are needed in addition to `video` and `video_id`.
        optional: further columns, which are None in rows that lack them.

    Attributes:
        columns: the columns of each row, without the video.
        videos: the videos, one for each id.
        ids: ids of the videos.
        owners: index of the video of each row.

    Raises:
        ValueError: there are no rows, a column is missing, or a row is wrong.
    """

    def __init__(self, dataset: Iterable[dict[str, Any]], columns: Sequence[str], optional: Sequence[str] = ()):
        check_dataset(dataset, columns, "the dataset", first_rows=0)
        rows: Any = dataset if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") else list(dataset)
        if not len(rows):
            raise ValueError("The dataset has no rows.")
        without_videos = rows
        if hasattr(rows, "select_columns"):  # a `datasets.Dataset`: leave out the column that may be large
            given = [name for name in optional if name in rows.column_names]
            without_videos = rows.select_columns(["video_id", *columns, *given])
        self.columns: list[dict[str, Any]] = []
        owners: list[int] = []
        first: dict[Any, tuple[int, int]] = {}  # number and first row of each video
        for i, row in enumerate(without_videos):
            row = read_row(row, columns, f"row {i}", bare=True, with_video=without_videos is rows, optional=optional)
            self.columns.append({name: row[name] for name in (*columns, *optional)})
            number, _ = first.setdefault(row["video_id"], (len(first), i))
            owners.append(number)
        self.ids: list[Any] = list(first)
        self.videos = _Videos(rows, [i for _, i in first.values()])
        self.owners = torch.tensor(owners)

    def __len__(self) -> int:
        return len(self.columns)

    def column(self, name: str) -> list[Any]:
        """Returns the values of a column, one per row."""
        return [row[name] for row in self.columns]

    def of_readable(self, unreadable: Collection[int]) -> torch.Tensor:
        """Returns which rows have a readable video, as booleans (rows,), from the indices of unreadable videos."""
        return torch.tensor([owner not in unreadable for owner in self.owners.tolist()])


@dataclass(frozen=True)
class Views:
    """
    Test-time views: the clips of a video whose embeddings are averaged. Each clip spans the whole video, as clips do
    in training; they differ in the frame that they take from each segment.

    Args:
        clips: number of clips. Each of the `num_frames` segments is divided into `clips` equal parts, and clip k has
            the middle frame of each k-th part. A single clip has the middle frame of each segment.
        window_stride: stride of sliding windows, which replace `clips` (Frozen in Time, arXiv 2104.00650, option
            `sliding_window_stride`). There is a clip with frame i of each segment for i = 0, stride, 2 * stride, ...
            as long as all segments have such a frame. Longer videos have more clips.

    Raises:
        ValueError: either is less than 1, or both are given.
    """

    clips: int = 1
    window_stride: int | None = None

    def __post_init__(self):
        for name in ("clips", "window_stride"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r} must be an integer of at least 1.")
        if self.clips > 1 and self.window_stride is not None:
            raise ValueError("Give only one of clips and window_stride: the stride determines the number of clips.")

    @property
    def single(self) -> bool:
        """Whether every video has a single clip, which is the one that the video processor samples."""
        return self.clips == 1 and self.window_stride is None

    def frames(self, total: int, num_frames: int) -> np.ndarray:
        """
        Returns the indices of the frames of each clip, (clips, num_frames), in a video of `total` frames. If there are
        fewer than `num_frames`, the last one is repeated, as the video processor does.
        """
        used = min(total, num_frames)
        borders = np.floor(np.linspace(0, total, used + 1)).astype(int)
        starts, lengths = borders[:-1], np.diff(borders)
        if self.window_stride is None:
            # The frame at or before the middle of part k, which is at (k + 1/2) / clips of the segment.
            middles = (2 * np.arange(self.clips)[:, None] + 1) * lengths - self.clips
            offsets = np.maximum(middles // (2 * self.clips), 0)
        else:
            # The authors' code stops at a share 1 / (num_frames + 1) of the video, before the end of the segments.
            offsets = np.arange(0, lengths.min(), self.window_stride)[:, None]
        return np.pad(starts + offsets, ((0, 0), (0, num_frames - used)), mode="edge")


ONE_VIEW = Views()


class ReadingOptions(TypedDict, total=False):
    """
    Options of how an evaluation reads the videos of a corpus. All evaluations take these keyword arguments.

    Args:
        batch_size: clips per batch, by default 16.
        num_workers: number of processes that decode. With 0, the default, this process decodes.
        progress: whether to show progress bars if standard error is a terminal, by default True.
        views: the clips of each video, by default one clip of the middle frames.
        max_unreadable: share of the videos that may be unreadable, by default 1.0. Unreadable videos are left out.
    """

    batch_size: int
    num_workers: int
    progress: bool
    views: Views
    max_unreadable: float


class _Clips(torch.utils.data.Dataset):
    """
    Decoded and transformed clips (views, T, C, H, W) of each video of a corpus, or the error message of a video that
    cannot be read. References of a lazy corpus are resolved here, in the worker processes of the data loader.
    """

    def __init__(self, videos: Sequence[Any], video_processor, views: Views):
        self.videos, self.video_processor, self.views = videos, video_processor, views
        if not views.single and video_processor.num_frames is None:
            raise ValueError("Several clips per video need a video processor with num_frames set instead of fps.")
        if not views.single and len(videos) and is_features(videos[0]):
            raise ValueError("Cached features have one clip per video: leave out --clips and --window-stride.")

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> torch.Tensor | str:
        try:
            video = video_source(self.videos[index])
            if is_features(video):
                return read_features(video)[None]
            if not self.views.single:
                return self._views(video)["pixel_values_videos"]
            return only_clip(self.video_processor([video], return_tensors="pt")["pixel_values_videos"])[None]
        except (CorpusError, VideoDecodeError) as error:
            return str(error)
        except (TypeError, ValueError) as error:  # frames of a wrong type or shape
            raise ValueError(f"{_name(self.videos[index], index)}: {error}") from error

    def _views(self, video: Any):
        """Decodes a video once and returns its clips."""
        processor = self.video_processor

        def choose(metadata):
            processor.sample_frames(metadata)  # raises the same errors as for a single clip
            return self.views.frames(metadata.total_num_frames, processor.num_frames).ravel()

        frames, _ = processor.decode(video, sample_indices_fn=choose, scale=processor.scale_while_decoding({}))
        clips = list(frames.unflatten(0, (-1, processor.num_frames)))
        return processor(clips, do_sample_frames=False, input_data_format="channels_first", return_tensors="pt")


def read_clips(
    processor,
    videos: Sequence[Any],
    unreadable: dict[int, str],
    description: str = "embedding videos",
    *,
    batch_size: int = BATCH_SIZE,
    num_workers: int = 0,
    progress: bool = True,
    views: Views = ONE_VIEW,
    max_unreadable: float = 1.0,
) -> Iterator[tuple[list[int], Sequence[torch.Tensor]]]:
    """
    Yields batches of readable videos: the index of the video of each clip, and the center-cropped clips in parts of at
    most `batch_size`, (B, T, C, H, W). All clips of a video are in the same batch, which only has several parts if a
    video has more than `batch_size` clips.

    Args:
        processor: a processor, or its video processor.
        videos: anything that the processor reads, and references of a lazy corpus.
        unreadable: filled with the error message of each video that cannot be read, by the index of the video.
        description: description of the progress bar.
        batch_size, num_workers, progress, views, max_unreadable: see [`ReadingOptions`].

    Raises:
        ValueError: more videos than `max_unreadable` allows are unreadable, or all of them.
        ChildProcessError: a decoding process was killed, crashed or hangs.
    """
    batches = read_items(
        _Clips(videos, getattr(processor, "video_processor", processor), views),
        lambda index: _name(videos[index], index),
        unreadable,
        description,
        batch_size=max(1, batch_size // views.clips) if views.window_stride is None else 1,
        num_workers=num_workers,
        progress=progress,
        max_unreadable=max_unreadable,
    )
    for indices, clips in batches:
        check_shapes(clips)
        of_clip = [index for index, of_video in zip(indices, clips) for _ in of_video]
        yield of_clip, torch.cat(clips).split(batch_size)


def read_items(
    dataset: Any,
    name: Callable[[int], str],
    unreadable: dict[int, str],
    description: str,
    *,
    batch_size: int,
    num_workers: int,
    progress: bool,
    max_unreadable: float = 1.0,
) -> Iterator[tuple[list[int], list[Any]]]:
    """
    Yields batches of the readable items of a dataset, with their indices. An item that is a string is an error
    message, and is added to `unreadable`. `name` returns the name of an item, for the message if its process dies.

    Raises:
        ValueError: more than a share `max_unreadable` of the items are unreadable, or all of them.
    """
    total, seen = len(dataset), 0
    batches = load_in_order(dataset, batch_size, num_workers, name)
    for batch in progress_bar(batches, description, math.ceil(total / batch_size), progress):
        items = dict(enumerate(batch, start=seen))
        seen += len(batch)
        messages = {index: item for index, item in items.items() if isinstance(item, str)}
        unreadable.update(messages)
        if len(unreadable) > max_unreadable * total:
            raise ValueError(
                f"{len(unreadable)} of {total} videos cannot be read, more than max_unreadable={max_unreadable} "
                f"allows; the last one: {list(unreadable.values())[-1]}"
            )
        if readable := {index: item for index, item in items.items() if index not in messages}:
            yield list(readable), list(readable.values())
    if len(unreadable) == seen:
        raise ValueError(f"None of the {seen} videos can be read; the first: {next(iter(unreadable.values()), None)}")


def _name(video: Any, index: int) -> str:
    """Returns the name of a video for messages."""
    if is_reference(video):
        return f"{video['path']} at byte {video['offset']}"
    path = video.get("path") if isinstance(video, Mapping) else video
    return path if isinstance(path, str) else f"video {index}"


def mean_of_views(values: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
    """Returns the mean of the clips' `values` (clips, dim) for each video, (videos, dim); `indices` are the videos."""
    counts = torch.unique_consecutive(torch.tensor(indices), return_counts=True)[1].tolist()
    return torch.stack([of_video.mean(0) for of_video in values.split(counts)])


def warn_of_unreadable(unreadable: Mapping[int, str], video_ids: Sequence[str]) -> list[str]:
    """
    Logs a warning that names the first videos that were left out, and returns the ids of all of them. `unreadable`
    maps the index of each to its error message.
    """
    if unreadable:
        names = "; ".join(f"{video_ids[i]} ({message})" for i, message in list(unreadable.items())[:5])
        logger.warning("%d of %d videos cannot be read and are left out: %s", len(unreadable), len(video_ids), names)
    return [video_ids[i] for i in unreadable]

"""Makes batches from rows of a corpus, in loader processes: decodes clips and chooses captions."""

import hashlib
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..corpora import CorpusError
from ..corpora.features import is_features, read_features
from ..corpora.rows import check_dataset, check_negative_captions, check_shapes, only_clip, plain, read_row, shown
from ..corpora.videos import IMAGE_EXTENSIONS
from ..corpora.webdataset import video_source
from ..labels import IGNORED_ID, IGNORED_LABEL
from ..loader_processes import now_reading
from ..video_decoding_region_learner import VideoDecodeError
from .arguments import TASKS, UNLABELED_TASKS
from .data import DRAWN, CorpusPart, Draw

# For rows without drawn numbers, whose random choices come from torch's own generator.
_NOT_DRAWN = Draw(part=0, row=0, seed=None)


def needed_columns(task: str, training: bool) -> tuple[str, ...]:
    """Returns the columns that batches are made of, except `video`, `video_id` and the column of the label."""
    if task == "multiple_choice" and not training:
        return ("options", "answer")
    return {"question_answering": ("question",), "classification": ()}.get(task, ("captions",))


def optional_columns(task: str, training: bool) -> tuple[str, ...]:
    """Returns the optional columns that batches are made of."""
    return ("negative_captions",) if training and task in UNLABELED_TASKS else ()


def check_given(parts: Sequence[CorpusPart], eval_dataset: Any, task: str) -> None:
    """
    Checks the first rows of the datasets of a Trainer.

    Raises:
        CorpusError: a column is missing, or its values do not fit the task.
    """
    for number, part in enumerate(parts, start=1):
        of = f"corpus {number} of the training data" if len(parts) > 1 else "the training data"
        check_dataset(part.dataset, needed_columns(task, True), of, optional=optional_columns(task, True))
        if optional_columns(task, True):
            check_negative_captions(part.dataset, of)
    several = isinstance(eval_dataset, dict)
    for name, dataset in eval_dataset.items() if several else [("", eval_dataset)]:
        if dataset is not None:
            of = f"eval_dataset[{name!r}]" if several else "eval_dataset"
            check_dataset(dataset, needed_columns(task, training=False), of)


def stable_id(video_id: str) -> int:
    """Returns a number for a video's id that is the same in every process: 62 bits of its BLAKE2 digest."""
    return int.from_bytes(hashlib.blake2b(video_id.encode(), digest_size=8).digest()) >> 2


class RegionLearnerCollator:
    """
    Makes batches from rows of `load_corpus`. All batches have `pixel_values_videos`: clips (B, T, C, H, W), or
    features of a backbone, (B, T, 1 + N, D), from the corpus `features`. The rest depends on the task:

    - "retrieval": `input_ids` and `attention_mask` of a caption, `video_ids` (B,), and `return_loss=True`. Training
      rows may have `negative_captions`, texts that do not describe the video (a list, or None). One of them per row
      becomes a row of `negative_input_ids` and `negative_attention_mask`.
    - "multiple_choice": for training, the same as "retrieval". For evaluation, `input_ids` and `attention_mask` of the
      distinct options of all rows, `options` (B, O), the indices of the options of each row (-1 where it has fewer),
      and `labels` (B,), the index of the right one.
    - "question_answering": `input_ids` and `attention_mask` of the question, and `labels` (B,).
    - "classification": `labels` (B,).

    In training, frames, crop and caption are random. For rows of the Trainer, they depend on the seed in the column
    `DRAWN`, so that a resumed run draws the same numbers as an uninterrupted one; otherwise they come from torch's
    generator. In evaluation, they are the middle frames, the center crop and the first caption.

    Cached features are always those of middle frames and center crops, even in training.

    Each row is checked; see `region_learner.corpora.rows.read_row`. Columns that are not needed are ignored.

    In training, another row of the same corpus is substituted for an unreadable video, never black frames. In
    evaluation, another row of the batch is substituted, or a black clip if all rows are unreadable. It has the id -1
    or the label -100, so that it does not count. The batch lists unreadable videos in `unreadable`, as pairs of video
    id and reason. `videos` is the number of clips that are not images.

    Args:
        processor (`RegionLearnerProcessor`): decodes, transforms and tokenizes.
        training: whether choices are random.
        datasets: the datasets that substitutes come from, indexed by the `part` of a row. By default, they come from
            the batch itself.
        task: the task, as above.
        label: function that returns the label of a row, for tasks that have one; -1 for an unknown label.
        normalize: False leaves uint8 clips as they are, so that the video processor's `normalize_clips` can run on the
            device, as in [`RegionLearnerTrainer`].

    Raises:
        ValueError: the task is unknown, `label` is given for a task without labels, or is missing for one with labels.
    """

    MAX_REPLACEMENTS = 20  # attempts to find a readable video before the corpus is considered broken

    def __init__(
        self,
        processor,
        training: bool,
        datasets: Sequence[Any] = (),
        task: str = "retrieval",
        label: Callable[[dict[str, Any]], int] | None = None,
        normalize: bool = True,
    ):
        if task not in TASKS:
            raise ValueError(f"task={task!r} is not known; choose one of {', '.join(map(repr, TASKS))}.")
        if label is not None and task in UNLABELED_TASKS:
            raise ValueError(f"label= is only for tasks that have labels, not for task={task!r}: leave it out.")
        if label is None and task not in UNLABELED_TASKS:
            raise ValueError(f"task={task!r} needs label=, a function that returns the label of a row.")
        self.processor = processor
        self.training = training
        self.datasets = datasets
        self.task = task
        self.label = label
        self.normalize = normalize

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        rows = [self._read(row, number) for number, row in enumerate(rows)]
        unreadable: list[tuple[str, str]] = []
        generators = [_generator(row) for row in rows]
        decoded = [(row, self._decode(row, generator, unreadable)) for row, generator in zip(rows, generators)]
        good = [(row, clip) for row, clip in decoded if clip is not None]
        pairs: list[tuple[dict[str, Any], torch.Tensor, bool]] = []  # row, clip, whether it counts
        for (row, clip), generator in zip(decoded, generators):
            counts = clip is not None or self.training
            if clip is None and self.training:
                row, clip = self._replacement(row, good, generator, unreadable)
            elif clip is None:
                row, clip = good[0] if good else (row, self._substitute(row))
            pairs.append((row, clip, counts))
        batch: dict[str, Any] = {"pixel_values_videos": self._stack([clip for _, clip, _ in pairs])}
        chooses = self.task == "multiple_choice" and not self.training
        if chooses:
            texts, batch["options"] = _options([row for row, _, _ in pairs])
            batch |= dict(self.processor(text=texts, return_tensors="pt"))
        elif self.task != "classification":
            drawn = [self._texts(row, generator) for (row, _, _), generator in zip(pairs, generators)]
            texts, negatives = [text for text, _ in drawn], [text for _, text in drawn if text is not None]
            tokens = dict(self.processor(text=texts + negatives, return_tensors="pt"))
            batch |= {name: value[: len(texts)] for name, value in tokens.items()}
            if negatives:
                batch |= {f"negative_{name}": value[len(texts) :] for name, value in tokens.items()}
        if self.task in UNLABELED_TASKS and not chooses:
            ids = [stable_id(row["video_id"]) if counts else IGNORED_ID for row, _, counts in pairs]
            batch |= {"video_ids": torch.tensor(ids), "return_loss": True}
        else:
            label = self.label or (lambda row: row["answer"])
            labels = [_number(label(row), row) if counts else IGNORED_LABEL for row, _, counts in pairs]
            batch["labels"] = torch.tensor(labels)
        now_reading("")
        return batch | {"unreadable": unreadable, "videos": sum(_is_video(row) for row, _, _ in pairs)}

    def _stack(self, clips: list[torch.Tensor]) -> torch.Tensor:
        """Stacks clips. If some are normalized, such as those that were given as floats, all are normalized."""
        if len({clip.dtype for clip in clips}) > 1:
            normalize = self.processor.video_processor.normalize_clips
            clips = [normalize(clip) if clip.dtype == torch.uint8 else clip for clip in clips]
        check_shapes(clips)
        return torch.stack(clips)

    def _read(self, row: Any, number: int) -> dict[str, Any]:
        drawn = row.get(DRAWN) if isinstance(row, Mapping) else None
        where = f"row {number} of a batch" if drawn is None else f"row {drawn.row} of the training data"
        if drawn is not None and len(self.datasets) > 1:
            where += f" (corpus {drawn.part + 1})"
        optional = optional_columns(self.task, self.training)
        return read_row(row, needed_columns(self.task, self.training), where, optional=optional)

    def _decode(self, row: dict[str, Any], generator, unreadable: list[tuple[str, str]]) -> torch.Tensor | None:
        now_reading(row["video_id"])
        try:
            return self._clip(video_source(row["video"]), row, generator)
        except (CorpusError, VideoDecodeError) as error:
            unreadable.append((row["video_id"], str(error)))
            return None
        except (TypeError, ValueError) as error:  # frames of an unexpected kind
            raise ValueError(f"video_id {row['video_id']!r}: {error}") from error

    def _substitute(self, row: dict[str, Any]) -> torch.Tensor:
        """
        Returns a black clip in the shape of the others, for an evaluation batch without readable videos. (If clips
        keep the size of their videos, that size is unknown, and the processor's crop size is used.)
        """
        processor = self.processor.video_processor
        size = processor.crop_size if processor.output_size is None else processor.output_size
        return self._clip(np.zeros((1, size["height"], size["width"], 3), np.uint8), row, None)

    def _clip(self, source: Any, row: dict[str, Any], generator) -> torch.Tensor:
        if is_features(source):
            return read_features(source)
        processor = self.processor.video_processor
        num_frames = row.get(DRAWN, _NOT_DRAWN).num_frames
        frames = {} if num_frames is None else {"num_frames": num_frames}
        clips = processor(
            [source],
            training=self.training,
            generator=generator,
            rescale_factor=1.0,  # keeps values of 0 to 255, also for frames that are given as floats
            do_normalize=False,
            return_tensors="pt",
            **frames,
        )["pixel_values_videos"]
        clip = only_clip(clips)
        return clip if clip.dtype == torch.uint8 and not self.normalize else processor.normalize_clips(clip)

    def _replacement(self, row, good, generator, unreadable) -> tuple[dict[str, Any], torch.Tensor]:
        drawn = row.get(DRAWN, _NOT_DRAWN)
        part = drawn.part
        source: Any = [other for other, _ in good]
        if part < len(self.datasets) and hasattr(self.datasets[part], "__len__"):
            source = self.datasets[part]
        for _ in range(self.MAX_REPLACEMENTS if len(source) else 0):
            index = int(torch.randint(len(source), (), generator=generator))
            other = self._read(dict(source[index]) | {DRAWN: drawn._replace(row=index, seed=None)}, index)
            clip = self._decode(other, generator, unreadable)
            if clip is not None:
                return other, clip
        raise VideoDecodeError(
            f"No readable video was found to substitute for an unreadable one; the last error: {unreadable[-1][1]}. "
            "`region-learner corpus check` lists the unreadable videos of a corpus."
        )

    def _texts(self, row: dict[str, Any], generator) -> tuple[str, str | None]:
        """Returns the text of a row, and a negative text if it has any."""
        if self.task == "question_answering":
            return row["question"], None
        if not self.training:
            return row["captions"][0], None
        caption, *negative = [
            some[int(torch.randint(len(some), (), generator=generator))]
            for some in (row["captions"], row["negative_captions"])
            if some
        ]
        return caption, negative[0] if negative else None


def _options(rows: Sequence[dict[str, Any]]) -> tuple[list[str], torch.Tensor]:
    """Returns the distinct options of some rows, and their indices for each row (B, O), -1 where it has fewer."""
    numbers: dict[str, int] = {}
    chosen = [[numbers.setdefault(option, len(numbers)) for option in row["options"]] for row in rows]
    most = max(map(len, chosen))
    return list(numbers), torch.tensor([some + [-1] * (most - len(some)) for some in chosen])


def _is_video(row: dict[str, Any]) -> bool:
    """Returns whether a row's clip is a video and not an image, judging by its file name."""
    return not (isinstance(row["video"], str) and row["video"].lower().endswith(IMAGE_EXTENSIONS))


def _generator(row: dict[str, Any]) -> torch.Generator | None:
    seed = row.get(DRAWN, _NOT_DRAWN).seed
    return None if seed is None else torch.Generator().manual_seed(seed)


def _number(label: Any, row: dict[str, Any]) -> int:
    label = plain(label)
    if isinstance(label, bool) or not isinstance(label, numbers.Integral):
        raise CorpusError(f"label= must return a class index, not {shown(label)} (video_id {row['video_id']!r})")
    return int(label)

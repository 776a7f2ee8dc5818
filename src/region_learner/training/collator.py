"""From rows of a corpus to a batch of the model: decodes clips, chooses captions. Runs in the loader's workers."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..corpora.folder import IMAGE_EXTENSIONS, CorpusError
from ..corpora.webdataset import video_source
from ..evaluation.metrics import IGNORED_ID
from ..evaluation.tasks import IGNORED_LABEL, check_answer
from ..video_processing_region_learner import VideoDecodeError

TASKS = ("retrieval", "multiple_choice", "question_answering", "classification")
UNLABELLED_TASKS = ("retrieval", "multiple_choice")  # which train on pairs of video and text


def stable_id(video_id: str) -> int:
    """A number for a video's id that is the same in every process: 62 bits of its BLAKE2 digest."""
    return int.from_bytes(hashlib.blake2b(video_id.encode(), digest_size=8).digest()) >> 2


class RegionLearnerCollator:
    """
    Makes batches from rows of `load_corpus`. All have `pixel_values_videos` (B, T, C, H, W); further, by the task,

    - "retrieval": `input_ids`, `attention_mask` of a caption, `video_ids` (B,), and `return_loss=True`;
    - "multiple_choice": for training the same; for evaluation `input_ids`, `attention_mask` of the different options
      of all rows, `options` (B, O), the numbers of those of each row (-1 where it has fewer), and `labels` (B,), which
      of them is right;
    - "question_answering": `input_ids`, `attention_mask` of the question, and `labels` (B,);
    - "classification": `labels` (B,).

    For training, frames, crop and caption are drawn at random, from the `seed` of the row if it has one (rows of the
    Trainer do: so a resumed run draws what an uninterrupted one does), else from torch's generator; for evaluation,
    middle frames, centre crop and the first caption.

    A video that cannot be read never becomes black frames that count. In training another row of its corpus takes its
    place; in evaluation another row of the batch, or a black clip if none is good, but with the id -1 or the label
    -100, so that it counts for nothing. The batch tells of it in `unreadable`, pairs of video id and reason; `videos`
    is the number of its clips that are no images.

    Args:
        processor (`RegionLearnerProcessor`): decodes, transforms and tokenizes.
        training (`bool`): random or fixed choices.
        datasets (sequence of data sets, *optional*): where replacements come from, by the `part` of a row; by
            default the batch itself.
        task (`str`): as above.
        label (callable, *optional*): the label of a row, for tasks that have one; -1 for an unknown one.
        normalize (`bool`): False leaves clips of uint8 as they are, for `normalize_clips` of the video processor on
            the device, as [`RegionLearnerTrainer`] does it.
    """

    MAX_REPLACEMENTS = 20  # in a row, before the corpus is taken to be broken

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
        if (label is None) != (task in UNLABELLED_TASKS):
            raise ValueError(f"label= goes with the tasks that have labels; task={task!r}.")
        self.processor = processor
        self.training = training
        self.datasets = datasets
        self.task = task
        self.label = label
        self.normalize = normalize

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
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
                row, clip = good[0] if good else (row, self._filler(row))
            pairs.append((row, clip, counts))
        batch: dict[str, Any] = {"pixel_values_videos": torch.stack([clip for _, clip, _ in pairs])}
        chooses = self.task == "multiple_choice" and not self.training
        if chooses:
            texts, batch["options"] = _options([row for row, _, _ in pairs])
            batch |= dict(self.processor(text=texts, return_tensors="pt"))
        elif self.task != "classification":
            texts = [self._text(row, generator) for (row, _, _), generator in zip(pairs, generators)]
            batch |= dict(self.processor(text=texts, return_tensors="pt"))
        if self.task in UNLABELLED_TASKS and not chooses:
            ids = [stable_id(row["video_id"]) if counts else IGNORED_ID for row, _, counts in pairs]
            batch |= {"video_ids": torch.tensor(ids), "return_loss": True}
        else:
            label = self.label or (lambda row: row["answer"])
            labels = [label(row) if counts else IGNORED_LABEL for row, _, counts in pairs]
            batch["labels"] = torch.tensor(labels)
        return batch | {"unreadable": unreadable, "videos": sum(_is_video(row) for row, _, _ in pairs)}

    def _decode(self, row: dict[str, Any], generator, unreadable: list[tuple[str, str]]) -> torch.Tensor | None:
        try:
            return self._clip(video_source(row["video"]), row, generator)
        except (CorpusError, VideoDecodeError) as error:
            unreadable.append((row["video_id"], str(error)))
            return None

    def _filler(self, row: dict[str, Any]) -> torch.Tensor:
        """
        A clip of the shape of others, for a batch of evaluation of which no video can be read. (Of videos that are
        taken in their own size nobody knows it: as large as others usually are.)
        """
        processor = self.processor.video_processor
        size = processor.crop_size if processor.output_size is None else processor.output_size
        return self._clip(np.zeros((1, size["height"], size["width"], 3), np.uint8), row, None)

    def _clip(self, source: Any, row: dict[str, Any], generator) -> torch.Tensor:
        processor = self.processor.video_processor
        frames = {} if row.get("num_frames") is None else {"num_frames": row["num_frames"]}
        clips = processor(
            [source],
            training=self.training,
            generator=generator,
            rescale_factor=1.0,  # levels, of frames that are given as floats, too
            do_normalize=False,
            return_tensors="pt",
            **frames,
        )["pixel_values_videos"]
        left_to_the_device = clips.dtype == torch.uint8 and not self.normalize
        return clips[0] if left_to_the_device else processor.normalize_clips(clips[0])

    def _replacement(self, row, good, generator, unreadable) -> tuple[dict[str, Any], torch.Tensor]:
        part = row.get("part", 0)
        source: Any = [other for other, _ in good]
        if part < len(self.datasets) and hasattr(self.datasets[part], "__len__"):
            source = self.datasets[part]
        for _ in range(self.MAX_REPLACEMENTS if len(source) else 0):
            other = dict(source[int(torch.randint(len(source), (), generator=generator))])
            other |= {name: row[name] for name in ("part", "num_frames") if name in row}
            clip = self._decode(other, generator, unreadable)
            if clip is not None:
                return other, clip
        raise VideoDecodeError(f"no readable video found in place of unreadable ones, the last: {unreadable[-1][1]}")

    def _text(self, row: dict[str, Any], generator) -> str:
        if self.task == "question_answering":
            return row["question"]
        captions = row["captions"]
        return captions[int(torch.randint(len(captions), (), generator=generator))] if self.training else captions[0]


def _options(rows: Sequence[dict[str, Any]]) -> tuple[list[str], torch.Tensor]:
    """The different options of some rows, and (B, O) which of them each row has; -1 where it has fewer."""
    for row in rows:
        check_answer(row["video_id"], row.get("options"), row.get("answer"))
    numbers: dict[str, int] = {}
    chosen = [[numbers.setdefault(option, len(numbers)) for option in row["options"]] for row in rows]
    most = max(map(len, chosen))
    return list(numbers), torch.tensor([some + [-1] * (most - len(some)) for some in chosen])


def _is_video(row: dict[str, Any]) -> bool:
    """Whether a row's clip is of a video, as far as its name tells, and not of an image."""
    return not (isinstance(row["video"], str) and row["video"].lower().endswith(IMAGE_EXTENSIONS))


def _generator(row: dict[str, Any]) -> torch.Generator | None:
    return torch.Generator().manual_seed(row["seed"]) if row.get("seed") is not None else None

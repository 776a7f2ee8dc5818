"""Checks that batches have negatives, and finds the largest batch size that fits in memory."""

import copy
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import find_executable_batch_size

from .checkpoints import checkpoints_in
from .data import CorpusPart
from .training_arguments import RegionLearnerTrainingArguments

logger = logging.getLogger(__name__)

T = TypeVar("T")


# Negatives


def check_batch_size(size: int, processes: int) -> None:
    """
    Checks that the global batch has negatives.

    Raises:
        ValueError: a batch has one pair in all processes together.
    """
    if size * processes == 1:
        raise ValueError(
            "A batch of 1 pair has no negatives, so a contrastive loss learns nothing from it: set "
            "--per-device-train-batch-size (batch_size in corpora) to 2 or more. Gradient accumulation does not help, "
            "but with --gradient-cache-chunk 1 a larger batch takes the memory of one pair."
        )


def check_negatives(parts: Sequence[CorpusPart], args: RegionLearnerTrainingArguments) -> None:
    """
    Checks that batches of the corpora have negatives.

    Raises:
        ValueError: training batches, or batches of an evaluation whose loss selects the checkpoint, have no negatives.
    """
    for part in parts:
        check_batch_size(part.batch_size, args.world_size)
        if not part.streamed and len(part.dataset) == 1:
            raise ValueError("A corpus of 1 row has no negatives: a contrastive loss needs at least 2 videos.")
        if _all_of_one_video(part.dataset):
            raise ValueError(
                f"All {len(part.dataset)} rows of a corpus have the video_id {part.dataset[0]['video_id']!r}, so "
                "there are no negatives: a contrastive loss needs at least 2 videos."
            )
    # In evaluation, each process computes its own loss.
    if args.eval_strategy == "no" or args.per_device_eval_batch_size > 1:
        return
    without = "per_device_eval_batch_size=1: a batch of 1 pair has no negatives, and therefore no contrastive loss"
    if args.metric_for_best_model in ("loss", "eval_loss"):
        raise ValueError(
            f"{without}. Set it to 2 or more, or choose a metric_for_best_model other than "
            f"{args.metric_for_best_model!r}."
        )
    logger.info("%s. Evaluation does not report a loss.", without)


def _all_of_one_video(dataset: Any) -> bool:
    """Returns whether all ids are equal. False if the ids cannot be read without the rest of the rows."""
    if not hasattr(dataset, "__len__") or "video_id" not in (getattr(dataset, "column_names", None) or ()):
        return False
    ids = iter(dataset["video_id"])
    first = next(ids, None)
    return all(other == first for other in ids)


# auto_find_batch_size


def with_batch_size(parts: Sequence[CorpusPart], size: int, of: int) -> list[CorpusPart]:
    """Returns `parts` with batch size `size` in place of `of`. Other batch sizes change in proportion."""
    return [replace(part, batch_size=part.batch_size * size // of) for part in parts]


class InitialState:
    """The weights, optimizer state and random numbers at the start of a run, from which each attempt starts."""

    def __init__(self, model: torch.nn.Module, optimizer: Any):
        self.weights = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
        self.optimizer = None if optimizer is None else copy.deepcopy(optimizer.state_dict())
        self.random = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore(self, model: torch.nn.Module, optimizer: Any) -> Any:
        """Returns the optimizer to start with, or None if there was none."""
        model.load_state_dict(self.weights)
        torch.set_rng_state(self.random[0])
        if self.random[1]:
            torch.cuda.set_rng_state_all(self.random[1])
        if self.optimizer is None:
            return None
        optimizer.load_state_dict(self.optimizer)
        return optimizer


def train_with_largest_batch(trainer: Any, train: Callable[..., T], size: int, *args, **kwargs) -> T:
    """
    Calls `train(size, *args, **kwargs)`, a training loop of `trainer`, with smaller and smaller batches until they fit
    in memory. Each attempt starts with the same weights, optimizer state and random numbers, and without the
    checkpoints of the attempts before.
    """
    start = InitialState(trainer.model, trainer.optimizer)
    output_dir = Path(str(trainer.args.output_dir))
    earlier = set(checkpoints_in(output_dir))

    def attempt(size: int) -> T:
        for checkpoint in set(checkpoints_in(output_dir)) - earlier:  # of a larger batch that did not fit
            shutil.rmtree(checkpoint)
        trainer.use_batch_size(size)
        trainer.optimizer = start.restore(trainer.model, trainer.optimizer)
        return train(size, *args, **kwargs)

    # The corpora may have different batch sizes.
    per_pair = trainer.batch_size_as_given / min(part.batch_size for part in trainer.parts_as_given)
    smallest = math.ceil((2 if trainer.contrastive else 1) * per_pair)
    return halve_until_it_fits(attempt, size, smallest, kwargs.get("resume_from_checkpoint") is not None)


def halve_until_it_fits(train: Callable[[int], T], size: int, smallest: int, resumed: bool = False) -> T:
    """
    Calls `train(size)`, and again with half the size whenever it runs out of memory.

    Args:
        train: trains with a batch size, from the beginning each time it is called.
        size: the largest batch size.
        smallest: the smallest batch size.
        resumed: whether the run was resumed from a checkpoint, whose batch size must not change.

    Raises:
        ValueError: even the smallest batch does not fit, or a batch of the checkpoint's size does not fit.
    """

    def half() -> int:
        nonlocal size
        if resumed:
            raise ValueError(
                f"Batches of {size}, with which this checkpoint was trained, no longer fit in memory: add "
                "--gradient-cache-chunk or --gradient-checkpointing true, or train from the beginning."
            )
        if size // 2 < smallest:
            raise ValueError(
                f"auto_find_batch_size: even batches of {size} do not fit in memory. Use fewer or smaller frames, or "
                "--gradient-checkpointing true."
            )
        logger.warning("Batches of %d do not fit in memory: restarting training with %d.", size, size // 2)
        size //= 2
        return size

    return find_executable_batch_size(train, starting_batch_size=size, reduce_batch_size_fn=half)()

"""Batches of a contrastive loss need negatives: at least two pairs."""

import logging
from collections.abc import Sequence
from typing import Any

from .arguments import RegionLearnerTrainingArguments
from .data import CorpusPart

logger = logging.getLogger(__name__)


def check_batch_size(size: int, processes: int) -> None:
    """
    Raises:
        ValueError: all processes together have one pair in a batch.
    """
    if size * processes == 1:
        raise ValueError(
            "A batch of 1 pair has no negatives, so that a contrastive loss learns nothing from it: set "
            "--per_device_train_batch_size (of corpora, batch_size) to 2 or more. Accumulated batches are not each "
            "other's negatives; with --gradient_cache_chunk 1 a larger batch takes the memory of one pair."
        )


def check_negatives(parts: Sequence[CorpusPart], args: RegionLearnerTrainingArguments) -> None:
    """
    Raises:
        ValueError: batches of training, or those whose loss chooses the checkpoint, cannot have negatives.
    """
    for part in parts:
        check_batch_size(part.batch_size, args.world_size)
        if not part.streamed and len(part.dataset) == 1:
            raise ValueError("A corpus of 1 row has no negatives: a contrastive loss needs at least 2 videos.")
        if _of_one_video(part.dataset):
            raise ValueError(
                f"All {len(part.dataset)} rows of a corpus have the video_id {part.dataset[0]['video_id']!r}, so that "
                "they are not each other's negatives: a contrastive loss needs at least 2 videos."
            )
    # (In an evaluation each process has a loss of its own.)
    if args.eval_strategy == "no" or args.per_device_eval_batch_size > 1:
        return
    without = "per_device_eval_batch_size=1: a batch of 1 pair has no negatives, and so no contrastive loss"
    if args.metric_for_best_model in ("loss", "eval_loss"):
        raise ValueError(
            f"{without}. Take 2 or more, or another metric_for_best_model than {args.metric_for_best_model!r}."
        )
    logger.info("%s: evaluation reports none.", without)


def _of_one_video(dataset: Any) -> bool:
    """Whether all rows are of one video, as far as the ids can be read without the rest of the rows."""
    if not hasattr(dataset, "__len__") or "video_id" not in (getattr(dataset, "column_names", None) or ()):
        return False
    ids = iter(dataset["video_id"])
    first = next(ids, None)
    return all(other == first for other in ids)

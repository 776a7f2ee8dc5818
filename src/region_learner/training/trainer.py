"""The Trainer of transformers for video-text pairs."""

import json
import logging
from collections.abc import Sized
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import Trainer

from ..evaluation.metrics import compute_retrieval_metrics
from ..video_processing_region_learner import VideoDecodeError
from .arguments import RegionLearnerTrainingArguments
from .collator import RegionLearnerCollator

logger = logging.getLogger(__name__)


class RegionLearnerTrainer(Trainer):
    """
    [`~transformers.Trainer`] for [`RegionLearnerModel`] on rows of `load_corpus`.

    Beyond the Trainer it has collators that decode, one for training and one for evaluation; retrieval metrics as
    its `compute_metrics`; and an account of videos that cannot be read: each is reported once by name, listed in
    `unreadable_videos.json`, and above the share `args.max_unreadable` of the corpus training ends with an error.
    """

    args: RegionLearnerTrainingArguments

    def __init__(self, model=None, args=None, *, processing_class=None, **kwargs):
        if processing_class is None:
            raise ValueError("RegionLearnerTrainer needs the processor: pass processing_class=RegionLearnerProcessor.")
        self.unreadable: dict[str, str] = {}  # message by video id, of this process
        self.unreadable_in_evaluation: dict[str, str] = {}
        train_dataset = kwargs.get("train_dataset")
        rows = train_dataset if hasattr(train_dataset, "__len__") else None
        kwargs.setdefault("data_collator", RegionLearnerCollator(processing_class, training=True, dataset=rows))
        kwargs.setdefault("compute_metrics", compute_retrieval_metrics)
        self.eval_collator = RegionLearnerCollator(processing_class, training=False)
        super().__init__(
            model=model, args=args or RegionLearnerTrainingArguments(), processing_class=processing_class, **kwargs
        )

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        return self._with_eval_collator(super().get_eval_dataloader, eval_dataset)

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        return self._with_eval_collator(super().get_test_dataloader, test_dataset)

    def _with_eval_collator(self, make_dataloader, dataset) -> DataLoader:
        training_collator, self.data_collator = self.data_collator, self.eval_collator
        try:
            return make_dataloader(dataset)
        finally:
            self.data_collator = training_collator

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        for video_id, reason in inputs.pop("unreadable", ()):
            self._report_unreadable(video_id, reason, in_training=self.model.training)
        return super()._prepare_inputs(inputs)

    def _report_unreadable(self, video_id: str, reason: str, in_training: bool):
        if video_id in self.unreadable or video_id in self.unreadable_in_evaluation:
            return
        if not in_training:
            self.unreadable_in_evaluation[video_id] = reason
            logger.warning("unreadable video, left out of the evaluation: %s", reason)
            return
        self.unreadable[video_id] = reason
        logger.warning("unreadable video, another takes its place: %s", reason)
        total = len(self.train_dataset) if isinstance(self.train_dataset, Sized) else None
        # Each process sees its own part of the corpus.
        if total and len(self.unreadable) > self.args.max_unreadable * total / self.args.world_size:
            self._write_unreadable(self.unreadable)
            raise VideoDecodeError(
                f"{len(self.unreadable)} of {total} videos are unreadable, more than max_unreadable="
                f"{self.args.max_unreadable}: see unreadable_videos.json in {self.args.output_dir}; mend or remove "
                "them, or raise the limit."
            )

    def _write_unreadable(self, unreadable: dict[str, str]):
        path = Path(str(self.args.output_dir)) / "unreadable_videos.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(unreadable, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def train(self, *args, **kwargs):
        result = super().train(*args, **kwargs)
        unreadable = dict(gather_object(list(self.unreadable.items())))
        result.metrics["unreadable_videos"] = len(unreadable)
        if unreadable and self.is_world_process_zero():
            self._write_unreadable(unreadable)
            logger.warning("%d videos could not be read; unreadable_videos.json names them.", len(unreadable))
        return result

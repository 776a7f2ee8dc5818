"""The Trainer of transformers for video-text pairs."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from accelerate.utils.memory import clear_device_cache
from torch.utils.data import DataLoader
from transformers import SchedulerType, Trainer, TrainerCallback
from transformers.trainer_utils import has_length, rotate_checkpoints

from ..evaluation.metrics import compute_retrieval_metrics
from ..evaluation.tasks import (
    compute_answer_metrics,
    compute_classification_metrics,
    compute_multiple_choice_metrics,
    option_scores,
)
from ..files import write_json
from ..loading import first_non_finite, refuse_non_finite
from ..loss_region_learner import classification_loss, contrastive_loss
from ..video_processing_region_learner import VideoDecodeError
from .adapters import ADAPTER, has_adapters, load_adapters, load_beside_adapters, merged, save_adapters
from .arguments import RegionLearnerTrainingArguments
from .checkpoints import COMPLETE, incompleteness, last_complete, mark_complete, moved_when_whole, saving
from .choice import settle_choice
from .collator import UNLABELLED_TASKS, RegionLearnerCollator, check_given
from .data import CorpusPart, StreamLoader, TrainingBatchSampler, TrainingRows, TrainingStream
from .data_order import (
    check_data_order,
    check_optimization,
    data_order,
    optimization,
    write_data_order,
    write_optimization,
)
from .finite import SkipNonFiniteSteps, contagious
from .gradient_cache import cached_backward
from .halving import Start, halve_until_it_fits
from .negatives import check_negatives
from .optimization import freeze, milestones, parameter_groups
from .progress import Progress
from .reading import Reading, naming_the_video

logger = logging.getLogger(__name__)


_METRICS = {
    "retrieval": compute_retrieval_metrics,
    "multiple_choice": compute_multiple_choice_metrics,
    "question_answering": compute_answer_metrics,
    "classification": compute_classification_metrics,
}


class RegionLearnerTrainer(Trainer):
    """
    [`~transformers.Trainer`] for RegionLearner models on rows of `load_corpus`.

    Beyond the Trainer: batches that are a function of the seed and the step, from one corpus or several
    ([`CorpusPart`]), so that a resumed run equals an uninterrupted one; cached contrastive gradients
    (`args.gradient_cache_chunk`); learning rates by tower and layer, and frozen parts; checkpoints that are known to
    be complete; metrics of the task as its `compute_metrics`; throughput and the state of the codebook in its logs;
    and an account of videos that cannot be read: each is reported once by name, listed in `unreadable_videos.json`,
    and above the share `args.max_unreadable` of the corpus training ends with an error.

    Args:
        train_dataset: rows, or a list of [`CorpusPart`].
        task: "retrieval", "multiple_choice" (which trains as retrieval does), "question_answering" or
            "classification".
        label: the label of a row, for the tasks that have one; see [`RegionLearnerCollator`].
    """

    args: RegionLearnerTrainingArguments

    def __init__(
        self,
        model=None,
        args: RegionLearnerTrainingArguments | None = None,
        *,
        processing_class=None,
        train_dataset=None,
        task: str = "retrieval",
        label=None,
        callbacks: list | None = None,
        **kwargs,
    ):
        if processing_class is None:
            raise ValueError("RegionLearnerTrainer needs the processor: pass processing_class=RegionLearnerProcessor.")
        args = args or RegionLearnerTrainingArguments()
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs in one process would train {args.n_gpu} codebooks: start one process a GPU with "
                "`accelerate launch -m region_learner.training ...`, or set CUDA_VISIBLE_DEVICES to one of them."
            )
        if args.device.type == "cpu":
            # Not "cpu:0", as it is called in one of several processes: torch.load, when resuming, does not know it.
            args.__dict__["_setup_devices"] = torch.device("cpu")
        self.unreadable: dict[str, str] = {}  # message by video id, of this process
        self.unreadable_in_evaluation: dict[str, str] = {}
        self._number_of_videos: int | None = None
        self._saving = False
        self.finite_steps = SkipNonFiniteSteps(self)
        self._reading = Reading(0)
        in_parts = isinstance(train_dataset, list | tuple) and any(isinstance(p, CorpusPart) for p in train_dataset)
        if train_dataset is not None and not in_parts:
            train_dataset = [CorpusPart(train_dataset, args.per_device_train_batch_size)]
        self.parts: Sequence[CorpusPart] = train_dataset or []
        if other := [part for part in self.parts if not isinstance(part, CorpusPart)]:
            raise ValueError(
                f"train_dataset: of several corpora each is a CorpusPart, not a {type(other[0]).__name__}."
            )
        datasets = [part.dataset for part in self.parts]
        if "data_collator" not in kwargs:  # which would need other columns
            check_given(self.parts, kwargs.get("eval_dataset"), task)
        kwargs.setdefault(
            "data_collator", RegionLearnerCollator(processing_class, True, datasets, task, label, normalize=False)
        )
        kwargs.setdefault("compute_metrics", _METRICS[task])
        self.eval_collator = RegionLearnerCollator(
            processing_class, training=False, task=task, label=label, normalize=False
        )
        eval_dataset = kwargs.get("eval_dataset")
        data_sets = eval_dataset if isinstance(eval_dataset, dict) else ()
        settle_choice(args, task, eval_dataset is not None, data_sets, kwargs["compute_metrics"] is not _METRICS[task])
        self.contrastive = task in UNLABELLED_TASKS
        if self.contrastive:
            check_negatives(self.parts, args)
        else:
            if args.gradient_cache_chunk is not None:
                raise ValueError(f"gradient_cache_chunk is for contrastive losses, not for task={task!r}.")
            if task == "classification" and args.neftune_noise_alpha is not None:
                raise ValueError("neftune_noise_alpha is for the embeddings of words, and a classifier has no text.")
        if args.gradient_cache_chunk is not None and kwargs.get("compute_loss_func") is not None:
            raise ValueError("gradient_cache_chunk computes the model's own loss: leave out compute_loss_func.")
        _refuse_beside_own_optimizer(args, kwargs.get("optimizers") or (None, None))
        self.sampler: TrainingBatchSampler | None = None
        self._parts_as_given = self.parts  # auto_find_batch_size takes smaller batches of them
        self.batches_to_skip = 0  # of a stream, when resuming
        if args.ddp_find_unused_parameters is None and model is not None:
            # All parameters have a gradient in every step, but motion needs two frames.
            args.ddp_find_unused_parameters = getattr(_video_config(model), "motion_excitation", False)
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            train_dataset=self._train_rows() if self.parts else None,
            callbacks=[_EpochOfSampler(self), _CodebookUpdates(), self.finite_steps, *(callbacks or [])],
            **kwargs,
        )
        if has_adapters(self.model) and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("lora is not supported with FSDP or DeepSpeed: adapters take little memory; use DDP.")
        self.label_names = ["video_ids"] if self.contrastive else ["labels"]
        whole: Any = self.model  # there is one, or the Trainer has complained; nothing has sharded it yet
        freeze(whole, args.freeze)
        self.optimization = optimization(whole, args)
        self.progress = self._new_progress()

    def call_model_init(self, trial=None):
        model = super().call_model_init(trial)
        freeze(model, self.args.freeze)
        return model

    def _new_progress(self) -> Progress:
        return Progress(getattr(_video_config(self.model), "codebook_size", 0))

    # Batches

    @property
    def streamed(self) -> bool:
        return any(part.streamed for part in self.parts)

    def _train_rows(self) -> TrainingRows | TrainingStream:
        return TrainingStream(self.parts) if self.streamed else TrainingRows(self.parts)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process alone: what each process reads is decided here, not by `accelerate`."""
        args = self.args
        self._reading = Reading(args.dataloader_num_workers)
        seed = args.seed if args.data_seed is None else args.data_seed
        share = {"mix": args.mix, "seed": seed, "rank": args.process_index, "world_size": args.world_size}
        options: dict[str, Any] = {
            "collate_fn": self.data_collator,
            "num_workers": args.dataloader_num_workers,
            **self._reading.options,
            "pin_memory": args.dataloader_pin_memory and args.device.type == "cuda",
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
            "multiprocessing_context": getattr(args, "dataloader_multiprocessing_context", None),
            "generator": torch.Generator().manual_seed(seed),  # not the global one, which the model draws from
        }
        if self.streamed:
            return StreamLoader(TrainingStream(self.parts, skip=self.batches_to_skip, **share), **options)
        self.sampler = TrainingBatchSampler(
            self.parts, samples_per_epoch=args.samples_per_epoch, drop_last=args.dataloader_drop_last, **share
        )
        return DataLoader(TrainingRows(self.parts), batch_sampler=self.sampler, **options)

    def num_examples(self, dataloader: DataLoader) -> int:
        if self.sampler is not None and getattr(dataloader, "batch_sampler", None) is self.sampler:
            return self.sampler.num_samples
        return super().num_examples(dataloader)

    def get_batch_samples(self, epoch_iterator, *args, **kwargs):
        start = time.perf_counter()
        with self._reading.waiting():
            batches = super().get_batch_samples(epoch_iterator, *args, **kwargs)
        self.progress.waited += time.perf_counter() - start
        return batches

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        return self._with_eval_collator(super().get_eval_dataloader, eval_dataset)

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        return self._with_eval_collator(super().get_test_dataloader, test_dataset)

    def _with_eval_collator(self, make_dataloader, dataset) -> DataLoader:
        """All rows count in an evaluation: `dataloader_drop_last` is for training."""
        training_collator, self.data_collator = self.data_collator, self.eval_collator
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            dataloader = make_dataloader(dataset)
        finally:
            self.data_collator, self.args.dataloader_drop_last = training_collator, drop_last
        if not hasattr(dataloader, "reading"):  # or its processes persist
            reading = Reading(dataloader.num_workers)
            for name, value in (reading.options | {"reading": reading}).items():
                setattr(dataloader, name, value)
        if self.args.world_size > 1 and not has_length(dataloader.dataset):
            # Nobody knows which rows of the last batches are repeated, or whether processes have as many batches.
            raise ValueError(
                "In several processes a stream cannot be evaluated on without repeating or losing rows: load the "
                "corpus with streaming=False."
            )
        return dataloader

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        unreadable = inputs.pop("unreadable", ())
        if (videos := inputs.pop("videos", None)) is not None and self.model.training:
            self.progress.videos += videos
        if self.model.training and "pixel_values_videos" in inputs:
            self.progress.samples += len(inputs["pixel_values_videos"])
        for video_id, reason in unreadable:
            self._report_unreadable(video_id, reason, in_training=self.model.training)
        inputs = super()._prepare_inputs(inputs)
        clips = inputs.get("pixel_values_videos")
        if clips is not None and clips.dtype == torch.uint8:  # as decoded: a quarter of what there is to move
            inputs["pixel_values_videos"] = self.processing_class.video_processor.normalize_clips(clips)
        return inputs

    # Steps

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            model = self.model if model is None else model
            groups = parameter_groups(model, self.args, self.get_decay_parameter_names(model))
            given = self.optimizer_cls_and_kwargs
            optimizer_class, options = given or self.get_optimizer_cls_and_kwargs(self.args, model)
            if options.keys() & {"params", "model", "optimizer_dict"} or not isinstance(optimizer_class, type):
                raise ValueError(f"{optimizer_class} chooses parameters itself: it is not supported here.")
            if given and options.get("lr", self.args.learning_rate) != self.args.learning_rate:
                raise ValueError("optimizer_cls_and_kwargs: give the learning rate as learning_rate of the arguments.")
            self.optimizer_cls_and_kwargs = optimizer_class, {**options, "params": groups}
            try:
                super().create_optimizer(model)
            finally:
                self.optimizer_cls_and_kwargs = given
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.args.lr_milestones and self.lr_scheduler is None:
            self.lr_scheduler = milestones(
                self.optimizer if optimizer is None else optimizer,  # type: ignore[arg-type]
                [round(share * num_training_steps) for share in self.args.lr_milestones],
                self.args.lr_gamma,
                self.args.get_warmup_steps(num_training_steps),
            )
            self._created_lr_scheduler = True
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        except TypeError as error:
            if not self.args.lr_scheduler_kwargs:
                raise
            raise ValueError(
                f"lr_scheduler_kwargs={self.args.lr_scheduler_kwargs} do not fit lr_scheduler_type="
                f"{SchedulerType(self.args.lr_scheduler_type).value}: {error}"
            ) from error

    def compute_loss(self, model, inputs, return_outputs: bool = False, **kwargs):
        """As that of the Trainer; in training, the loss is that of the global batch of all processes."""
        if not model.training or self.compute_loss_func is not None:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        else:
            inputs, loss_function = self._split_targets(inputs)
            outputs = model(**inputs)
            loss = loss_function(outputs)
        if model.training:
            self.progress.observe(outputs)
            loss = contagious(loss)
        return (loss, outputs) if return_outputs else loss

    def _split_targets(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], Callable[[Any], torch.Tensor]]:
        """The inputs of the model without those of the loss, and the loss as a function of the model's outputs."""
        inputs = {name: value for name, value in inputs.items() if name != "return_loss"}
        if self.contrastive:
            function, targets = contrastive_loss, {"video_ids": inputs.pop("video_ids", None)}
        else:
            function, targets = classification_loss, {"labels": inputs.pop("labels")}
        return inputs, partial(function, self.model.config, gather=True, **targets)

    def prediction_step(self, model, inputs, prediction_loss_only: bool, ignore_keys: list[str] | None = None):
        """
        As that of the Trainer; of multiple choice the cosines of all options, without a loss. Nor is there a loss of a
        batch whose clips are all of one video, such as a last one of one row: it has no negatives.
        """
        if "options" not in inputs:
            ids = inputs.get("video_ids") if self.contrastive and self.args.world_size == 1 else None
            alone = ids is not None and len(ids[ids >= 0].unique()) < 2
            loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
            return None if alone else loss, logits, labels
        inputs = self._prepare_inputs(inputs)
        options, labels = inputs.pop("options"), inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        return None, option_scores(outputs.video_embeds, outputs.text_embeds, options), labels

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        if self.args.gradient_cache_chunk is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = self._cached_training_step(model, inputs, self.args.gradient_cache_chunk)
        self.finite_steps.observe(loss)
        return loss

    def _cached_training_step(self, model, inputs, chunk: int) -> torch.Tensor:
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                "Cached gradients do not work with DeepSpeed: use DDP or FSDP, or no gradient_cache_chunk."
            )
        quantizer = self.model.quantizer
        if quantizer is not None and quantizer.mode == "original" and not quantizer.frozen:
            raise ValueError(
                'codebook_mode="original" looks codes up after their update by the whole batch, which cached '
                'gradients do not see at once: set codebook_mode="ema", or leave out gradient_cache_chunk.'
            )
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        inputs = self._prepare_inputs(inputs)
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        inputs, loss_function = self._split_targets(inputs)
        return cached_backward(
            self.accelerator,
            model,
            inputs,
            chunk,
            self.compute_loss_context_manager,
            loss_function,
            scale=1 / self.current_gradient_accumulation_steps,
            observe=self.progress.observe,
        )

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self.finite_steps.check(model, grad_norm)
        return grad_norm

    def non_finite_weight(self, agreed: bool = True) -> str | None:
        """
        The name of a weight that is NaN or infinite, or None.

        Args:
            agreed: ask all processes, each of which has to call this; else those of this one.
        """
        weights = dict(self.model.named_parameters()) if self.is_fsdp_enabled else self.model.state_dict()
        names = [first_non_finite(weights)]
        return next((name for name in (gather_object(names) if agreed else names) if name is not None), None)

    # Logs

    def log(self, logs: dict[str, float], start_time: float | None = None):
        if "loss" in logs and self.is_in_train:
            self.finite_steps.correct(logs)
            logs |= self.progress.summary(self.accelerator, len(self.unreadable))
            temperature = getattr(self.accelerator.unwrap_model(self.model), "temperature", None)
            if temperature is not None:
                temperature = torch.as_tensor(temperature).detach()
                if hasattr(temperature, "full_tensor"):  # of a sharded model
                    temperature = temperature.full_tensor()
                logs["temperature"] = float(temperature)
        super().log(logs, start_time)

    def _report_unreadable(self, video_id: str, reason: str, in_training: bool):
        if video_id in self.unreadable or video_id in self.unreadable_in_evaluation:
            return
        if not in_training:
            self.unreadable_in_evaluation[video_id] = reason
            logger.warning("unreadable video, left out of the evaluation: %s", reason)
            return
        self.unreadable[video_id] = reason
        logger.warning("unreadable video, another takes its place: %s", reason)
        total = self._videos()
        if total and len(self.unreadable) > self.args.max_unreadable * total:
            self._write_unreadable(self.unreadable)
            raise VideoDecodeError(
                f"{len(self.unreadable)} of {total} videos are unreadable, more than max_unreadable="
                f"{self.args.max_unreadable}: see unreadable_videos.json in {self.args.output_dir}; mend or remove "
                "them, or raise the limit."
            )

    def _videos(self) -> int:
        """Videos that a process may meet: of the corpora, as it draws from all of them; of a stream, those so far."""
        if self.streamed:
            return max(self.progress.total_samples + self.progress.samples, 100)
        if self._number_of_videos is None:
            ids = (part.dataset["video_id"] if hasattr(part.dataset, "column_names") else () for part in self.parts)
            distinct = sum(len(set(column)) for column in ids)  # of questions there are several a video
            self._number_of_videos = distinct or sum(len(part.dataset) for part in self.parts)
        return self._number_of_videos

    def _write_unreadable(self, unreadable: dict[str, str]):
        path = Path(str(self.args.output_dir)) / "unreadable_videos.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, unreadable, indent=2)
            logger.warning("%s names the unreadable videos.", path)
        except OSError as error:  # hours of training are worth more than the list
            logger.warning("The list of unreadable videos could not be written: %s", error)

    # Interruptions

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As that of the Trainer; True resumes from the last complete checkpoint in `output_dir`, if there is one."""
        checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        skip_data = self.args.ignore_data_skip
        self.progress = self._new_progress()
        if checkpoint is not None:
            if self.args.auto_find_batch_size:
                found = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
                self._take_batches_of(found["train_batch_size"])
            self._restore(Path(checkpoint))
        if self.streamed and checkpoint is not None and not skip_data:
            # The Trainer would decode, and throw away, all it was trained on; the stream knows how to skip.
            state = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
            self.batches_to_skip = state["global_step"] * self.args.gradient_accumulation_steps
            self.args.ignore_data_skip = True
        try:
            with naming_the_video():
                result = super().train(checkpoint, *args, **kwargs)
        finally:
            self.args.ignore_data_skip, self.batches_to_skip = skip_data, 0
        if self.args.auto_find_batch_size:
            result.metrics["per_device_train_batch_size"] = self._train_batch_size
        unreadable = dict(gather_object(list(self.unreadable.items())))
        result.metrics["unreadable_videos"] = len(unreadable)
        result.metrics["skipped_steps"] = self.finite_steps.skipped
        if unreadable and self.is_world_process_zero():
            logger.warning("%d videos could not be read.", len(unreadable))
            self._write_unreadable(unreadable)
        return result

    def _inner_training_loop(self, batch_size=None, *args, **kwargs):
        if not self.args.auto_find_batch_size:
            return super()._inner_training_loop(batch_size, *args, **kwargs)
        model: Any = self.model
        start = Start(model, self.optimizer)
        begin = super()._inner_training_loop

        def train(size: int):
            self._take_batches_of(size)
            self.optimizer = start.restore(model, self.optimizer)
            self.progress = self._new_progress()
            return begin(size, *args, **kwargs)

        # (A corpus may have smaller batches than others.)
        per_pair = self.args.per_device_train_batch_size / min(part.batch_size for part in self._parts_as_given)
        smallest = math.ceil((2 if self.contrastive else 1) * per_pair)
        return halve_until_it_fits(train, batch_size, smallest, kwargs.get("resume_from_checkpoint") is not None)

    def _run_epoch(self, **kwargs):
        """As that of the Trainer, which would train a step more of a run that is resumed when it has finished."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def _take_batches_of(self, size: int):
        """Batches of `size` instead of `per_device_train_batch_size`; those of corpora with other sizes likewise."""
        of = self.args.per_device_train_batch_size
        self.parts = [replace(part, batch_size=part.batch_size * size // of) for part in self._parts_as_given]

    def _checkpoint_to_resume(self, resume: str | bool | None) -> str | None:
        if resume is None or resume is False:
            return None
        if self.args.world_size == 1:
            return self._choose_checkpoint(resume)
        # The first process chooses for all; a refusal is every process' own.
        chosen: list[Any] = [None, None]
        if self.args.process_index == 0:
            try:
                chosen[0] = self._choose_checkpoint(resume)
            except ValueError as error:
                chosen[1] = str(error)
        broadcast_object_list(chosen)
        if chosen[1] is not None:
            raise ValueError(chosen[1])
        lacking = [process for process, there in enumerate(gather_object([self._sees(chosen[0])])) if not there]
        if lacking:
            raise ValueError(
                f"Processes {lacking} do not see {chosen[0]} whole: output_dir must be on a disk that all machines "
                "share."
            )
        return chosen[0]

    @staticmethod
    def _sees(checkpoint: str | None) -> bool:
        return checkpoint is None or incompleteness(checkpoint, contents=False) is None

    def _choose_checkpoint(self, resume: Any) -> str | None:
        output_dir = str(self.args.output_dir)
        if resume is True:
            last, problems = last_complete(output_dir)
            for path, lack in problems.items():
                logger.warning("%s is passed over: %s", path, lack)
            if last is None:
                logger.warning(
                    "There is no complete checkpoint in %s: training starts from the beginning.", output_dir
                )
                return None
            return self._with_optimizer(last)
        if not os.path.isdir(resume):
            raise ValueError(f"There is no checkpoint {resume}.")
        if (problem := incompleteness(resume)) is not None:
            raise ValueError(
                f"{resume} cannot be resumed from: {problem}. `--resume_from_checkpoint true` takes the last complete "
                "one."
            )
        return self._with_optimizer(resume)

    def _with_optimizer(self, checkpoint: str) -> str:
        """The checkpoint, if it holds more than a model: else the Trainer would begin a schedule anew in mid-run."""
        # FSDP writes a directory optimizer_0, DeepSpeed one of its own, which `latest` names.
        if any(Path(checkpoint).glob("optimizer*")) or (Path(checkpoint) / "latest").is_file():
            return checkpoint
        raise ValueError(
            f"{checkpoint} cannot be resumed from: it was saved with save_only_model, without optimiser and schedule. "
            f"To begin another run with its weights, give --model {checkpoint} and another --output_dir."
        )

    def _save_checkpoint(self, model, trial):
        with self.progress.paused():
            self._save_complete_checkpoint(model, trial)

    def _save_complete_checkpoint(self, model, trial):
        if (weight := self.non_finite_weight()) is not None:
            raise self.finite_steps.error(
                f"Step {self.state.global_step}: the weights are not finite (the first: {weight}), and are not saved"
            )
        run_dir = self._get_output_dir(trial=trial)
        folder = Path(run_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:  # a checkpoint of an earlier run is not complete while it is written over
            (folder / COMPLETE).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        # Older checkpoints may go, and this one may be pushed, only when it is known to be complete.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        self._saving = True
        with saving(folder, Path(run_dir), remove=self.args.should_save):
            try:
                super()._save_checkpoint(model, trial)
                self._save_state_of_process(folder)
            finally:
                self.args.save_total_limit, self._saving = limit, False
            self.accelerator.wait_for_everyone()  # each process writes its random state
            if self.args.should_save:
                mark_complete(folder, self.state.global_step)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        if self.args.should_save and not self.finite_steps.in_trouble:
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _save_state_of_process(self, folder: Path):
        """What the Trainer does not save: unreadable videos so far, and what the order of the data depends on."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"unreadable_{self.args.process_index}.json").write_text(json.dumps(self.unreadable))
        if not self.args.should_save:
            return
        write_data_order(folder, data_order(self.parts, self.args))
        write_optimization(folder, self.optimization)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """As that of the Trainer; the files of an earlier model are replaced when all of the new ones are written."""
        if self._saving or self.is_deepspeed_enabled:  # a checkpoint is complete when it says so
            super().save_model(output_dir, _internal_call)
            return
        target = Path(output_dir or str(self.args.output_dir))
        if (weight := self.non_finite_weight(agreed=self.is_fsdp_enabled)) is not None:
            raise self.finite_steps.error(f"The weights are not finite (the first: {weight}), and are not saved")
        with moved_when_whole(target) if self.args.should_save else nullcontext(target) as folder:
            super().save_model(str(folder), _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _restore(self, checkpoint: Path):
        unreadable = checkpoint / f"unreadable_{self.args.process_index}.json"
        if unreadable.is_file():
            self.unreadable = json.loads(unreadable.read_text())
        check_optimization(checkpoint, self.optimization)
        if not self.args.ignore_data_skip:
            check_data_order(checkpoint, data_order(self.parts, self.args))

    def _save(self, output_dir: str | None = None, state_dict=None):
        """As that of the Trainer; of a model with adapters a plain model, and beside it the adapters."""
        model = self.model
        if not has_adapters(model):
            super()._save(output_dir, state_dict)
            return
        folder = Path(str(self.args.output_dir) if output_dir is None else output_dir)
        self.model = merged(model)
        try:
            super()._save(str(folder))
        finally:
            self.model = model
        save_adapters(model, folder / ADAPTER)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if not self._load_adapters(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            load_beside_adapters(self.model, Path(resume_from_checkpoint))
        if not self.is_fsdp_enabled:
            refuse_non_finite(model or self.model, resume_from_checkpoint)  # type: ignore[arg-type]

    def _load_best_model(self):
        best = Path(str(self.state.best_model_checkpoint))
        if not self._load_adapters(best):
            super()._load_best_model()
            load_beside_adapters(self.model, best)

    def _load_adapters(self, checkpoint: Path) -> bool:
        """Whether it is a checkpoint of adapters; they are loaded if it is one."""
        if not has_adapters(self.model) or not (checkpoint / ADAPTER).is_dir():
            return False
        load_adapters(self.model, checkpoint / ADAPTER)
        return True

    def _push_from_checkpoint(self, checkpoint_folder: str):
        if self._saving:  # it is not complete yet
            return
        # The Trainer copies weights and configuration; without the source files nobody could load them.
        if self.is_world_process_zero():
            for source in Path(checkpoint_folder).glob("*.py"):
                target = Path(str(self.args.output_dir)) / source.name
                target.write_bytes(source.read_bytes())
        super()._push_from_checkpoint(checkpoint_folder)

    def evaluate(self, *args, **kwargs):
        with self.progress.paused():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, dataloader, *args, **kwargs):
        with naming_the_video():
            return super().evaluation_loop(_Watched(dataloader), *args, **kwargs)  # type: ignore[arg-type]


def _refuse_beside_own_optimizer(args: RegionLearnerTrainingArguments, given: tuple):
    """
    Raises:
        ValueError: for arguments that an optimiser or a schedule of the user's own would not know.
    """
    optimizer, schedule = given
    of_optimizer = ("video_learning_rate", "text_learning_rate", "layer_decay") if optimizer is not None else ()
    of_schedule = ("lr_milestones",) if schedule is not None else ()
    for name in of_optimizer + of_schedule:
        if getattr(args, name):
            raise ValueError(f"{name} does nothing beside optimizers= of your own: leave out one of the two.")


def _video_config(model):
    return getattr(model.config, "video_config", model.config)


class _Watched:
    """A loader of [`RegionLearnerTrainer`] for evaluation, whose processes are ended when they hang."""

    def __init__(self, loader: Any):
        self.loader = loader

    def __getattr__(self, name: str):
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        reading = getattr(self.loader, "reading", None)  # which one of somebody else's does not have
        return iter(self.loader) if reading is None else reading.watched(self.loader)


class _CodebookUpdates(TrainerCallback):
    """Moves the codebook once per step of the optimizer, whatever the number of forward passes in it."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if model.quantizer is not None:
            model.quantizer.auto_update = False
            model.quantizer.discard_pending()  # of a run that was interrupted

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.update_codebook()

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if model.quantizer is not None:
            model.quantizer.auto_update = True


class _EpochOfSampler(TrainerCallback):
    """Tells the sampler which epoch begins; the Trainer finds samplers of its own alone."""

    def __init__(self, trainer: RegionLearnerTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.streamed:  # whose epochs the Trainer counts from where it resumed
            state.epoch = state.global_step / state.max_steps

    def on_epoch_begin(self, args, state, control, **kwargs):
        if self.trainer.sampler is not None:
            self.trainer.sampler.set_epoch(int(state.epoch or 0))

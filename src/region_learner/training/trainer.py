"""The Trainer of transformers for video-text pairs."""

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from accelerate.utils.memory import clear_device_cache
from torch.utils.data import DataLoader
from transformers import SchedulerType, Trainer, TrainerCallback
from transformers.trainer_utils import has_length, rotate_checkpoints

from ..evaluation.tasks import option_scores
from ..loader_processes import LoaderWatch, WatchedLoader, naming_the_video
from ..loading import first_non_finite, refuse_non_finite
from ..loss_region_learner import classification_loss, contrastive_loss
from . import checkpoints
from .adapters import ADAPTER, has_adapters, load_adapters, load_beside_adapters, merged, save_adapters
from .arguments import UNLABELLED_TASKS
from .batch_size import InitialState, check_negatives, halve_until_it_fits, with_batch_size
from .collator import RegionLearnerCollator, check_given
from .data import TrainingRows, TrainingStream, as_parts, make_train_dataloader
from .finite import SkipNonFiniteSteps, contagious
from .gradient_cache import cached_backward
from .logs import Progress, print_lines
from .optimization import freeze, milestones, parameter_groups
from .training_arguments import METRICS, RegionLearnerTrainingArguments, check_for_trainer, set_best_model_metric
from .unreadable import UnreadableVideos

logger = logging.getLogger(__name__)


class RegionLearnerTrainer(Trainer):
    """
    [`~transformers.Trainer`] for RegionLearner models on rows of `load_corpus`.

    Beyond the Trainer, it has batches that are a function of the seed and the step, from one corpus or several
    ([`~region_learner.training.CorpusPart`]), so that a run resumes bit-for-bit; cached contrastive gradients
    (`args.gradient_cache_chunk`); learning rates by tower and layer, and frozen parts; checkpoints that are known to
    be complete; the metrics of the task as its `compute_metrics`; throughput and the state of the codebook in its
    logs. Videos that cannot be read are reported once each and listed in `unreadable_videos.json`; more than the share
    `args.max_unreadable` end the run.

    Args:
        model: a model of the task.
        args: the arguments.
        processing_class (`RegionLearnerProcessor`): makes batches, and is saved with the model.
        train_dataset: rows, or a list of `CorpusPart`.
        task: "retrieval", "multiple_choice" (which trains as retrieval does), "question_answering" or
            "classification".
        label: returns the label of a row, for the tasks that have one; see [`RegionLearnerCollator`].
        callbacks: more callbacks.
        kwargs: other arguments of [`~transformers.Trainer`].

    Raises:
        ValueError: for arguments or data that do not fit together.

    Example:

        trainer = RegionLearnerTrainer(
            model, RegionLearnerTrainingArguments("runs/mine"), processing_class=processor, train_dataset=rows
        )
        trainer.train()
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
        self.parts = as_parts(train_dataset, args.per_device_train_batch_size)
        self.parts_as_given = self.parts  # auto_find_batch_size makes their batches smaller
        self.contrastive = task in UNLABELLED_TASKS
        set_best_model_metric(args, task)
        check_for_trainer(args, task, kwargs)
        if "data_collator" not in kwargs:  # another collator may need other columns
            check_given(self.parts, kwargs.get("eval_dataset"), task)
        if self.contrastive:
            check_negatives(self.parts, args)
        self.unreadable = UnreadableVideos(Path(str(args.output_dir)), args.max_unreadable, self.parts)
        self.finite_steps = SkipNonFiniteSteps(self)
        self.progress = Progress()
        self._watch = LoaderWatch(0)
        self._is_saving_checkpoint = False
        self._batches_to_skip = 0  # of a stream, when resuming
        datasets = [part.dataset for part in self.parts]
        kwargs.setdefault(
            "data_collator", RegionLearnerCollator(processing_class, True, datasets, task, label, normalize=False)
        )
        kwargs.setdefault("compute_metrics", METRICS[task])
        self.eval_collator = RegionLearnerCollator(
            processing_class, training=False, task=task, label=label, normalize=False
        )
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            train_dataset=self._train_rows() if self.parts else None,
            callbacks=[
                _EpochOfStream(self),
                _CodebookUpdates(),
                self.progress,
                self.finite_steps,
                *(callbacks or []),
            ],
            **kwargs,
        )
        if has_adapters(self.model) and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("lora is not supported with FSDP or DeepSpeed: adapters take little memory; use DDP.")
        self.label_names = ["video_ids"] if self.contrastive else ["labels"]
        whole: Any = self.model  # nothing has sharded it yet
        freeze(whole, args.freeze)
        self.optimization = checkpoints.optimization(whole, args)
        self.progress.codebook_size = getattr(_video_config(whole), "codebook_size", 0)
        print_lines(self)

    def _build_accelerator_args(self, **kwargs) -> dict[str, Any]:
        find_unused = self.args.ddp_find_unused_parameters
        if find_unused is None and self.model is not None:
            # All parameters have a gradient in every step, but those of motion, which needs two frames.
            find_unused = getattr(_video_config(self.model), "motion_excitation", False)
        with _temporarily(self.args, ddp_find_unused_parameters=find_unused):
            return super()._build_accelerator_args(**kwargs)

    def call_model_init(self, trial=None):
        model = super().call_model_init(trial)
        freeze(model, self.args.freeze)
        return model

    # Batches

    @property
    def streamed(self) -> bool:
        return any(part.streamed for part in self.parts)

    def _train_rows(self) -> TrainingRows | TrainingStream:
        return TrainingStream(self.parts) if self.streamed else TrainingRows(self.parts)

    def get_train_dataloader(self) -> DataLoader:
        self._watch = LoaderWatch(self.args.dataloader_num_workers)
        return make_train_dataloader(
            self.parts, self.args, self.data_collator, self._watch.options, skip=self._batches_to_skip
        )

    def get_batch_samples(self, epoch_iterator, *args, **kwargs):
        with self._watch.waiting(), self.progress.waiting():
            return super().get_batch_samples(epoch_iterator, *args, **kwargs)

    def _get_dataloader(self, dataset, *args, **kwargs) -> DataLoader:
        """The loader of an evaluation, in which all rows count: `dataloader_drop_last` is for training."""
        if self.args.world_size > 1 and not has_length(dataset):
            # Nobody knows which rows of the last batches are repeated, or whether processes have as many batches.
            raise ValueError(
                "In several processes a stream cannot be evaluated on without repeating or losing rows: load the "
                "corpus with streaming=False."
            )
        with (
            _temporarily(self, data_collator=self.eval_collator),
            _temporarily(self.args, dataloader_drop_last=False),
        ):
            loader = super()._get_dataloader(dataset, *args, **kwargs)
        watched: Any = WatchedLoader(loader)
        kept = getattr(self, "_eval_dataloaders", {})  # with persistent processes, for the next evaluation
        kept.update({name: watched for name, other in kept.items() if other is loader})
        return watched

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        unreadable, videos = inputs.pop("unreadable", ()), inputs.pop("videos", 0)
        is_training = self.model.training
        if is_training:
            self.progress.videos += videos
            self.progress.samples += len(inputs.get("pixel_values_videos", ()))
        for video_id, reason in unreadable:
            self.unreadable.report(video_id, reason, is_training, self.progress.samples_seen)
        inputs = super()._prepare_inputs(inputs)
        clips = inputs.get("pixel_values_videos")
        if clips is not None and clips.dtype == torch.uint8:  # as decoded: a quarter of the bytes to move
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
            with _temporarily(self, optimizer_cls_and_kwargs=(optimizer_class, {**options, "params": groups})):
                super().create_optimizer(model)
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
            logs |= self.progress.summary(self.accelerator, len(self.unreadable.in_training))
            temperature = getattr(self.accelerator.unwrap_model(self.model), "temperature", None)
            if temperature is not None:
                temperature = torch.as_tensor(temperature).detach()
                if hasattr(temperature, "full_tensor"):  # of a sharded model
                    temperature = temperature.full_tensor()
                logs["temperature"] = float(temperature)
        super().log(logs, start_time)

    # Training and resuming

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Like that of the Trainer. True resumes from the last complete checkpoint in `output_dir`, if any."""
        checkpoint = checkpoints.checkpoint_to_resume(self.args, resume_from_checkpoint)
        skip_data = self.args.ignore_data_skip
        if checkpoint is not None:
            self._prepare_to_resume(Path(checkpoint))
            # The Trainer would decode, and drop, all that a stream has yielded; the stream knows how to skip.
            skip_data = skip_data or self.streamed
        try:
            with naming_the_video(), _temporarily(self.args, ignore_data_skip=skip_data):
                result = super().train(checkpoint, *args, **kwargs)
        finally:
            self._batches_to_skip = 0
        if self.args.auto_find_batch_size:
            result.metrics["per_device_train_batch_size"] = self._train_batch_size
        result.metrics["unreadable_videos"] = self.unreadable.finish(self.is_world_process_zero())
        result.metrics["skipped_steps"] = self.finite_steps.skipped
        return result

    def _prepare_to_resume(self, checkpoint: Path):
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        if self.args.auto_find_batch_size:
            self._use_batch_size(state["train_batch_size"])
        self.unreadable.load(checkpoint, self.args.process_index)
        checkpoints.check_optimization(checkpoint, self.optimization)
        if not self.args.ignore_data_skip:
            checkpoints.check_data_order(checkpoint, checkpoints.data_order(self.parts, self.args))
            if self.streamed:
                self._batches_to_skip = state["global_step"] * self.args.gradient_accumulation_steps
        logger.info("Resuming from %s.", checkpoint)

    def _inner_training_loop(self, batch_size=None, *args, **kwargs):
        if not self.args.auto_find_batch_size:
            return super()._inner_training_loop(batch_size, *args, **kwargs)
        model: Any = self.model
        start = InitialState(model, self.optimizer)
        begin = super()._inner_training_loop

        def train(size: int):
            self._use_batch_size(size)
            self.optimizer = start.restore(model, self.optimizer)
            return begin(size, *args, **kwargs)

        # A corpus may have smaller batches than the others.
        per_pair = self.args.per_device_train_batch_size / min(part.batch_size for part in self.parts_as_given)
        smallest = math.ceil((2 if self.contrastive else 1) * per_pair)
        return halve_until_it_fits(train, batch_size, smallest, kwargs.get("resume_from_checkpoint") is not None)

    def _use_batch_size(self, size: int):
        self.parts = with_batch_size(self.parts_as_given, size, of=self.args.per_device_train_batch_size)

    def _run_epoch(self, **kwargs):
        """Like that of the Trainer, which trains one step more when a run is resumed that has finished."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def evaluation_loop(self, *args, **kwargs):
        with naming_the_video():
            return super().evaluation_loop(*args, **kwargs)

    # Checkpoints

    def _save_checkpoint(self, model, trial):
        if (weight := self.non_finite_weight()) is not None:
            raise self.finite_steps.error(
                f"Step {self.state.global_step}: the weights are not finite (the first: {weight}), and are not saved"
            )
        run_dir, should_save = self._get_output_dir(trial=trial), self.args.should_save
        folder = Path(run_dir) / f"checkpoint-{self.state.global_step}"
        if should_save:  # one of an earlier run is not complete while it is overwritten
            (folder / checkpoints.COMPLETE).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        with checkpoints.naming_write_failures(folder, Path(run_dir), remove=should_save):
            # Older checkpoints are removed, and this one is pushed, only when it is known to be complete.
            with _temporarily(self.args, save_total_limit=None), _temporarily(self, _is_saving_checkpoint=True):
                super()._save_checkpoint(model, trial)
                folder.mkdir(parents=True, exist_ok=True)
                self.unreadable.save(folder, self.args.process_index)
                if should_save:
                    order = checkpoints.data_order(self.parts, self.args)
                    checkpoints.write_settings(folder, order, self.optimization)
            self.accelerator.wait_for_everyone()  # each process writes its random state
            if should_save:
                checkpoints.mark_complete(folder, self.state.global_step)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        if should_save and not self.finite_steps.skipped_last_step:
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _push_from_checkpoint(self, checkpoint_folder: str):
        if self._is_saving_checkpoint:  # it is not complete yet
            return
        # The Trainer copies weights and configuration; without the source files nobody could load them.
        if self.is_world_process_zero():
            for source in Path(checkpoint_folder).glob("*.py"):
                target = Path(str(self.args.output_dir)) / source.name
                target.write_bytes(source.read_bytes())
        super()._push_from_checkpoint(checkpoint_folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Like that of the Trainer. The files of an earlier model are replaced when all new ones are written."""
        if self._is_saving_checkpoint or self.is_deepspeed_enabled:  # a checkpoint has a mark of its own
            super().save_model(output_dir, _internal_call)
            return
        target = Path(output_dir or str(self.args.output_dir))
        if (weight := self.non_finite_weight(agreed=self.is_fsdp_enabled)) is not None:
            raise self.finite_steps.error(f"The weights are not finite (the first: {weight}), and are not saved")
        moved = checkpoints.moved_when_complete(target) if self.args.should_save else nullcontext(target)
        with moved as folder:
            super().save_model(str(folder), _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    # Adapters

    def _save(self, output_dir: str | None = None, state_dict=None):
        """Like that of the Trainer. A model with adapters is saved as a plain model, and its adapters beside it."""
        model = self.model
        if not has_adapters(model):
            super()._save(output_dir, state_dict)
            return
        folder = Path(str(self.args.output_dir) if output_dir is None else output_dir)
        with _temporarily(self, model=merged(model)):
            super()._save(str(folder))
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
        """Loads the adapters of a checkpoint. Returns whether it has any."""
        if not has_adapters(self.model) or not (checkpoint / ADAPTER).is_dir():
            return False
        load_adapters(self.model, checkpoint / ADAPTER)
        return True


def _video_config(model: Any) -> Any:
    return getattr(model.config, "video_config", model.config)


@contextmanager
def _temporarily(owner: Any, **values: Any) -> Iterator[None]:
    """Sets attributes for a block. The Trainer reads them where it has no other way to be told."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


class _CodebookUpdates(TrainerCallback):
    """Updates the codebook once per optimizer step, whatever the number of forward passes in it."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if model.quantizer is not None:
            model.quantizer.auto_update = False
            model.quantizer.discard_pending()  # left over from an interrupted run

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.update_codebook()

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if model.quantizer is not None:
            model.quantizer.auto_update = True


class _EpochOfStream(TrainerCallback):
    """Counts the epoch of a stream from the start of the run; the Trainer counts it from where it resumed."""

    def __init__(self, trainer: RegionLearnerTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.streamed:
            state.epoch = state.global_step / state.max_steps

"""A Trainer of transformers for video-text pairs."""

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from ..configuration_region_learner import POOLINGS_WITHOUT_REGIONS, RegionLearnerVideoConfig
from ..corpora.features import check_features
from ..evaluation.tasks import option_scores
from ..loader_processes import LoaderWatch, WatchedLoader, naming_the_video
from ..loss_region_learner import classification_loss, contrastive_loss
from . import checkpoints
from .adapters import active_adapter, has_adapters
from .arguments import UNLABELED_TASKS
from .batch_size import check_negatives, train_with_largest_batch, with_batch_size
from .collator import RegionLearnerCollator, check_given
from .data import TrainingRows, TrainingStream, as_parts, make_train_dataloader
from .finite import contagious
from .gradient_cache import cached_backward
from .logs import Progress, print_lines, temperatures_of
from .optimization import freeze, milestones, optimizer_with_groups, parameter_groups
from .safe_trainer import SafeTrainer, temporarily
from .training_arguments import (
    METRICS,
    RegionLearnerTrainingArguments,
    check_for_model,
    check_for_trainer,
    set_best_model_metric,
)
from .unreadable import UnreadableVideos

logger = logging.getLogger(__name__)


class RegionLearnerTrainer(SafeTrainer):
    """
    A [`~transformers.Trainer`] for RegionLearner models on rows of `load_corpus`.

    It differs from the Trainer in these ways:

    - Batches are a function of the seed and the step, from one corpus or several
      ([`~region_learner.training.CorpusPart`]), so that a run resumes bit-for-bit.
    - The loss is that of the global batch of all processes, optionally with cached gradients
      (`args.gradient_cache_chunk`), and the codebook is updated once per step.
    - Learning rates can differ by tower and layer, and parts can be frozen.
    - A checkpoint counts only when all of its files are on disk, and weights that are NaN or infinite are never saved.
    - Evaluation computes the metrics of the task, and logs contain the throughput and the state of the codebook.
    - Each unreadable training video is reported once and listed in `unreadable_videos.json`; if their share exceeds
      `args.max_unreadable`, training ends.

    Args:
        model: a model of the task.
        args: the training arguments.
        processing_class (`RegionLearnerProcessor`): the processor, which makes batches and is saved with the model.
        train_dataset: rows, or a list of `CorpusPart`.
        task: "retrieval", "multiple_choice" (which trains as retrieval does), "question_answering" or
            "classification".
        label: function that returns the label of a row, for tasks that have one; see [`RegionLearnerCollator`].
        callbacks: more callbacks.
        kwargs: other arguments of [`~transformers.Trainer`].

    Raises:
        ValueError: arguments or data do not fit together.

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
            raise ValueError("RegionLearnerTrainer needs a RegionLearnerProcessor: pass it as processing_class.")
        args = args or RegionLearnerTrainingArguments()
        self.parts = as_parts(train_dataset, args.per_device_train_batch_size)
        # Before `auto_find_batch_size` or a trial of `hyperparameter_search` changes them.
        self.parts_as_given, self.batch_size_as_given = self.parts, args.per_device_train_batch_size
        self.contrastive = task in UNLABELED_TASKS
        set_best_model_metric(args, task)
        check_for_trainer(args, task, kwargs)
        if "data_collator" not in kwargs:  # another collator may need other columns
            check_given(self.parts, kwargs.get("eval_dataset"), task)
        if self.contrastive:
            check_negatives(self.parts, args)
        self.unreadable = UnreadableVideos(Path(str(args.output_dir)), args.max_unreadable, self.parts)
        self.progress = Progress()
        self._watch = LoaderWatch(0)
        self._batches_to_skip = 0  # of a stream, when resuming
        self._first_data_step = 0  # the step at which the data began, or began again with `ignore_data_skip`
        datasets = [part.dataset for part in self.parts]
        collator = partial(RegionLearnerCollator, processing_class, task=task, label=label, normalize=False)
        kwargs.setdefault("data_collator", collator(training=True, datasets=datasets))
        kwargs.setdefault("compute_metrics", METRICS[task])
        self.eval_collator = collator(training=False)
        rows = TrainingStream(self.parts) if self.streamed else TrainingRows(self.parts)
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            train_dataset=rows if self.parts else None,
            callbacks=[_EpochOfStream(self), _CodebookUpdates(), self.progress, *(callbacks or [])],
            **kwargs,
        )
        self.label_names = ["video_ids"] if self.contrastive else ["labels"]
        whole: Any = self.model  # nothing has sharded it yet
        freeze(whole, args.freeze)
        self._check_features(whole)
        check_for_model(args, whole, self.is_fsdp_enabled, self.is_deepspeed_enabled)
        self.optimization = checkpoints.optimization(whole, args)
        self.progress.codebook_size = getattr(_video_config(whole), "codebook_size", 0)
        print_lines(self)

    def _check_features(self, model: Any):
        given = self.eval_dataset
        evaluated = given.values() if isinstance(given, dict) else [given]
        checked = partial(check_features, model, self.processing_class, trains=True)
        if checked([(part.dataset, part.num_frames) for part in self.parts]):
            logger.info("Training on cached features uses middle frames and center crops, not random ones.")
        checked([(dataset, None) for dataset in evaluated])

    def _build_accelerator_args(self, **kwargs) -> dict[str, Any]:
        """Lets DDP look for unused parameters only if there can be any."""
        find_unused = self.args.ddp_find_unused_parameters
        if find_unused is None and self.model is not None:
            find_unused = _may_leave_out_parameters(self.model)
        with temporarily(self.args, ddp_find_unused_parameters=find_unused):
            return super()._build_accelerator_args(**kwargs)

    def call_model_init(self, trial=None):
        """Returns a new model, with the parts of `args.freeze` frozen; in a trial, `_hp_search_setup` freezes them."""
        model = super().call_model_init(trial)
        if trial is None:
            freeze(model, self.args.freeze)
        return model

    # Batches

    @property
    def streamed(self) -> bool:
        return any(part.streamed for part in self.parts)

    def get_train_dataloader(self) -> DataLoader:
        """
        Returns the training batches of this process. They are a function of the seed and the step, so `accelerate`
        does not need to prepare them.
        """
        self._watch = LoaderWatch(self.args.dataloader_num_workers)
        if self._batches_to_skip:  # each process replays what the stream has yielded, which may take long
            self._watch.unlimited = self.args.dataloader_num_workers
        return make_train_dataloader(
            self.parts, self.args, self.data_collator, self._watch.options, skip=self._batches_to_skip
        )

    def get_batch_samples(self, epoch_iterator, *args, **kwargs):
        """Measures the time spent waiting for data, and stops waiting for loader processes that hang."""
        with self.progress.waiting():
            return super().get_batch_samples(self._watch.batches(epoch_iterator), *args, **kwargs)

    def _get_dataloader(self, dataset, *args, **kwargs) -> DataLoader:
        """
        Returns a data loader for evaluation. It keeps all rows (`dataloader_drop_last` is for training), and has its
        own collator.

        Raises:
            ValueError: the dataset is a stream and there are several processes.
        """
        if self.args.world_size > 1 and not has_length(dataset):
            # Processes may have different numbers of batches, and it is unknown which rows are repeated as padding.
            raise ValueError(
                "Several processes cannot evaluate a stream without repeating or losing rows: load the corpus with "
                "streaming=False."
            )
        with (
            temporarily(self, data_collator=self.eval_collator),
            temporarily(self.args, dataloader_drop_last=False),
        ):
            loader = super()._get_dataloader(dataset, *args, **kwargs)
        watched: Any = WatchedLoader(loader)
        kept = getattr(self, "_eval_dataloaders", {})  # with persistent processes, for the next evaluation
        kept.update({name: watched for name, other in kept.items() if other is loader})
        return watched

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Removes entries that are not inputs of the model from a batch, and normalizes clips on the device."""
        unreadable, videos = inputs.pop("unreadable", ()), inputs.pop("videos", 0)
        is_training = self.model.training
        if is_training:
            self.progress.videos += videos
            self.progress.samples += len(inputs.get("pixel_values_videos", ()))
        for video_id, reason in unreadable:
            self.unreadable.report(video_id, reason, is_training, self.progress.samples_seen)
        inputs = super()._prepare_inputs(inputs)
        clips = inputs.get("pixel_values_videos")
        if clips is not None and clips.dtype == torch.uint8:  # as decoded, which is a quarter of the bytes to move
            inputs["pixel_values_videos"] = self.processing_class.video_processor.normalize_clips(clips)
        return inputs

    # Steps

    def create_optimizer(self, model=None):
        """Creates the optimizer, with learning rates by tower and layer."""
        if self.optimizer is None:
            model = self.model if model is None else model
            chosen = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = parameter_groups(model, self.args, self.get_decay_parameter_names(model))
            with temporarily(self, optimizer_cls_and_kwargs=optimizer_with_groups(chosen, groups)):
                super().create_optimizer(model)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Creates the schedule, including that of `lr_milestones`, which transformers does not have."""
        if self.args.lr_milestones and self.lr_scheduler is None:
            self.lr_scheduler = milestones(
                self.optimizer if optimizer is None else optimizer,  # type: ignore[arg-type]
                [round(share * num_training_steps) for share in self.args.lr_milestones],
                self.args.lr_gamma,
                self.args.get_warmup_steps(num_training_steps),
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(self, model, inputs, return_outputs: bool = False, **kwargs):
        """Returns the loss. In training, it is that of the global batch of all processes."""
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
        """Returns the inputs without targets, and the loss of these targets as a function of the model's outputs."""
        inputs = {name: value for name, value in inputs.items() if name != "return_loss"}
        config: Any = self.model.config
        if self.contrastive:
            return inputs, partial(contrastive_loss, config, video_ids=inputs.pop("video_ids", None), gather=True)
        return inputs, partial(classification_loss, config, labels=inputs.pop("labels"), gather=True)

    def prediction_step(self, model, inputs, prediction_loss_only: bool, ignore_keys: list[str] | None = None):
        """
        Returns the loss, predictions and labels of a batch. For multiple choice, the predictions are the cosine
        similarities of the options, and there is no loss. A batch of one video, which the last
        batch may be, has no negatives, and therefore no loss.
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
        """
        Computes the gradients of a batch, and returns its loss. With cached gradients, forward and backward passes
        alternate within a step.
        """
        chunk = self.args.gradient_cache_chunk
        if chunk is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        inputs = self._prepare_inputs(inputs)
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        inputs, loss_function = self._split_targets(inputs)
        loss = cached_backward(
            self.accelerator,
            model,
            inputs,
            chunk,
            self.compute_loss_context_manager,
            loss_function,
            scale=1 / self.current_gradient_accumulation_steps,
            observe=self.progress.observe,
        )
        self.finite_steps.observe(loss)
        return loss

    # Logs

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Logs values. In training, also logs the throughput, the state of the codebook and the temperature."""
        if "loss" in logs and self.is_in_train:
            self.finite_steps.correct(logs)
            logs |= self.progress.summary(self.accelerator, len(self.unreadable.in_training))
            self.unreadable.check_all_processes(int(logs["unreadable_videos"]))
            logs |= temperatures_of(self.accelerator.unwrap_model(self.model))
        super().log(logs, start_time)

    # Training, resuming, evaluation

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        Trains the model.

        Args:
            resume_from_checkpoint: a checkpoint; True for the last *complete* one in `output_dir`, if any.
            args, kwargs: those of [`~transformers.Trainer.train`].

        Returns:
            The output of the Trainer. Its `metrics` also contain `unreadable_videos` and `skipped_steps`, and with
            `auto_find_batch_size` the `per_device_train_batch_size` that was found.

        Raises:
            ValueError: the checkpoint does not fit the data or the arguments, or several adapters are active.
        """
        if has_adapters(self.model):
            active_adapter(self.model)
        checkpoint = checkpoints.checkpoint_to_resume(self.args, resume_from_checkpoint)
        skip_data, self._first_data_step = self.args.ignore_data_skip, 0
        if checkpoint is not None:
            self._prepare_to_resume(Path(checkpoint))
            # The Trainer would decode and drop everything that a stream has yielded, but the stream can skip it.
            skip_data = skip_data or self.streamed
        try:
            with naming_the_video(), temporarily(self.args, ignore_data_skip=skip_data):
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
            self.use_batch_size(state["train_batch_size"])
        self.unreadable.load(checkpoint, self.args.process_index)
        checkpoints.check_optimization(checkpoint, self.optimization)
        first = checkpoints.first_data_step(checkpoint)
        if self.args.ignore_data_skip:
            at_epoch = not self.streamed and first == 0 and float(state["epoch"]).is_integer()
            self._first_data_step = 0 if at_epoch else state["global_step"]
        else:
            checkpoints.check_data_order(checkpoint, checkpoints.data_order(self.parts, self.args))
            if first and not self.streamed:  # the Trainer derives the place from the number of steps
                raise ValueError(
                    f"{checkpoint} belongs to a run whose data were restarted within an epoch, after step {first}, so "
                    "its place in the data is not known: add --ignore-data-skip true again."
                )
            self._first_data_step = first
            if self.streamed:
                steps = state["global_step"] - self._first_data_step
                self._batches_to_skip = steps * self.args.gradient_accumulation_steps
        if self.is_world_process_zero():
            logger.info("Resuming from %s.", checkpoint)

    def _inner_training_loop(self, batch_size=None, *args, **kwargs):
        """
        Trains with a given batch size. `auto_find_batch_size` starts each attempt over, whereas the Trainer would
        continue from the state of the last one.
        """
        if not self.args.auto_find_batch_size:
            return super()._inner_training_loop(batch_size, *args, **kwargs)
        return train_with_largest_batch(self, super()._inner_training_loop, batch_size, *args, **kwargs)

    def use_batch_size(self, size: int):
        """Trains with batch size `size`. Batch sizes of single corpora change in proportion."""
        self.parts = with_batch_size(self.parts_as_given, size, of=self.batch_size_as_given)

    def _hp_search_setup(self, trial):
        """
        Sets the arguments of a trial of `hyperparameter_search`, and everything that was derived from them.

        Raises:
            ValueError: the arguments do not fit together.
        """
        super()._hp_search_setup(trial)
        if trial is None:
            return
        model: Any = self.model
        freeze(model, self.args.freeze)
        self.use_batch_size(self.args.per_device_train_batch_size)
        if self.contrastive:
            check_negatives(self.parts, self.args)
        check_for_model(self.args, model, self.is_fsdp_enabled, self.is_deepspeed_enabled)
        self.optimization = checkpoints.optimization(model, self.args)

    def evaluation_loop(self, *args, **kwargs):
        """Evaluates the model. Errors in loader processes name the video."""
        with naming_the_video():
            return super().evaluation_loop(*args, **kwargs)

    def write_to_checkpoint(self, folder: Path):
        """Writes the settings that are compared when resuming, and the unreadable videos so far."""
        self.unreadable.save(folder, self.args.process_index, self.progress.samples_seen)
        if self.args.should_save:
            order = checkpoints.data_order(self.parts, self.args)
            checkpoints.write_settings(folder, order, self.optimization, self._first_data_step)


def _video_config(model: Any) -> Any:
    return getattr(model.config, "video_config", model.config)


def _may_leave_out_parameters(model: Any) -> bool:
    """Returns whether there can be steps in which a parameter has no gradient."""
    video = _video_config(model)
    if not isinstance(video, RegionLearnerVideoConfig):
        return False
    pools_regions = video.resolved.video_pooling not in POOLINGS_WITHOUT_REGIONS
    uses_regions = pools_regions or getattr(model, "video_tokens", None) is not None
    return video.motion_excitation or bool(video.num_regions and not uses_regions)  # motion needs two frames


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
    """Counts the epochs of a stream from the start of the run. The Trainer would count them from where it resumed."""

    def __init__(self, trainer: RegionLearnerTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.streamed:
            state.epoch = state.global_step / state.max_steps

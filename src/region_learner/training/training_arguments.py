"""
[`RegionLearnerTrainingArguments`]: `transformers.TrainingArguments` with other defaults, more checks, and more fields.

Most arguments of transformers are handled by its own code, some by this package, and those in [`REFUSED`] are an
error. `tests/test_argument_rules.py` lists all of them, and fails if a new version of transformers adds an argument.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from importlib.util import find_spec
from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.integrations import integration_utils
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.training_args import OptimizerNames

from ..configuration_region_learner import did_you_mean
from ..errors import nearest_or_all
from ..evaluation.metrics import GREATER_IS_BETTER, compute_retrieval_metrics, greater_is_better
from ..evaluation.tasks import (
    compute_answer_metrics,
    compute_classification_metrics,
    compute_multiple_choice_metrics,
)
from .adapters import has_adapters
from .arguments import MIXES, UNLABELED_TASKS, JsonMapping, OwnTrainingArguments, mapping_from_json

logger = logging.getLogger(__name__)

# The metrics of each task during training.
METRICS = {
    "retrieval": compute_retrieval_metrics,
    "multiple_choice": compute_multiple_choice_metrics,
    "question_answering": compute_answer_metrics,
    "classification": compute_classification_metrics,
}

# Arguments that would have no effect, or a wrong one, with any value other than the default, and the reason.
REFUSED = {
    "train_sampling_strategy": "rows are shuffled by the seed, so that a run can be resumed",
    "length_column_name": "rows are shuffled by the seed, not grouped by length",
    "dataloader_in_order": "batches come in the order of the seed, so that a run can be resumed",
    "remove_unused_columns": "the collator reads columns that the model does not know",
    "label_names": "the task decides what evaluation keeps of a batch",
    "label_smoothing_factor": "the Trainer would compute a loss of its own",
    "average_tokens_across_devices": "the losses of this package are not means over tokens",
    "include_num_input_tokens_seen": "pixels would count as tokens; samples_per_second is logged instead",
    "eval_do_concat_batches": "the metrics need all rows at once",
    "batch_eval_metrics": "the metrics need all rows at once",
    "eval_use_gather_object": "embeddings of several processes would be mixed up",
    "bf16_full_eval": "evaluation during training does not use it; --bf16 applies to training and evaluation",
    "fp16_full_eval": "evaluation during training does not use it; --fp16 applies to training and evaluation",
    "use_cache": "no text is generated",
    "use_liger_kernel": "it has no kernels for this model",
    "liger_kernel_config": "it has no kernels for this model",
    "optim_target_modules": "optimizers that choose parameters themselves ignore learning rates by tower",
    "debug": "the search for overflows in transformers fails on boolean masks",
    "parallelism_config": "each process reads its own batches; use DDP, FSDP or DeepSpeed instead",
}

# The same for `accelerator_config`. Each process makes its own batches, which accelerate does not touch.
_REFUSED_BY_ACCELERATOR = {
    "split_batches": False,
    "dispatch_batches": False,
    "even_batches": True,
    "use_seedable_sampler": True,
    "non_blocking": False,
}

_OPTIMIZERS_THAT_CHOOSE_PARAMETERS = ("galore", "apollo", "lomo", "adalomo")

# Lower bounds that neither transformers nor torch check before a run has begun.
_MINIMUM = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "gradient_cache_chunk": 1,
    "dataloader_num_workers": 0,
    "learning_rate": 0,
    "video_learning_rate": 0,
    "text_learning_rate": 0,
    "weight_decay": 0,
    "lr_gamma": 0,
    "samples_per_epoch": 1,
    "seed": 0,
    "data_seed": 0,
}

# The modules of trackers that transformers does not list as available, although they may be installed.
_MODULES = {"azure_ml": "azureml", "flyte": "flytekit"}
_PACKAGES = {"comet_ml": "comet-ml", "azure_ml": "azureml-mlflow", "flyte": "flytekit"}


@dataclass
class RegionLearnerTrainingArguments(OwnTrainingArguments, TrainingArguments):
    """[`~transformers.TrainingArguments`] with defaults and further fields for contrastive training on videos."""

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Not supported: the collator reads columns that the model does not know."}
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["video_ids"], metadata={"help": "Not supported: the task decides."}
    )
    hub_private_repo: bool | None = field(
        default=True,
        metadata={"help": "Whether a repository that is created for --push-to-hub is private (the default)."},
    )
    accelerator_config: JsonMapping = field(
        default_factory=lambda: {"dispatch_batches": False},
        metadata={"help": "As in transformers, but each process reads its own part of a stream."},
    )

    def __post_init__(self):
        greater_is_better_given = self.greater_is_better
        if isinstance(self.accelerator_config, str) and self.accelerator_config.startswith("{"):
            self.accelerator_config = mapping_from_json("accelerator_config", self.accelerator_config)
        self.lr_scheduler_kwargs = mapping_from_json("lr_scheduler_kwargs", self.lr_scheduler_kwargs)
        _check_accelerator_config(self.accelerator_config)
        try:
            super().__post_init__()
        except TypeError as error:  # for mappings with unknown keys
            raise ValueError(f"A training argument is not valid: {error}") from error
        _check_ranges(self)
        _check_supported(self)
        _check_schedule(self)
        _check_trackers(self.report_to or ())
        _check_direction(self, greater_is_better_given)

    @property
    def device(self) -> torch.device:
        """The device of this process. On the CPU it is "cpu", as `torch.load` does not understand "cpu:0"."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device


def _check_ranges(args: RegionLearnerTrainingArguments) -> None:
    for name, minimum in _MINIMUM.items():
        value = getattr(args, name)
        if value is not None and not (value >= minimum and math.isfinite(value)):
            finite = ", and finite" if isinstance(value, float) else ""
            raise ValueError(f"{name}={value} must be at least {minimum}{finite}.")
    if args.max_steps == 0:
        raise ValueError("max_steps=0 must be at least 1, or -1 to train for num_train_epochs.")
    if args.layer_decay is not None and not 0.0 < args.layer_decay <= 1.0:
        raise ValueError(f"layer_decay={args.layer_decay} must be above 0 and at most 1.")
    if not 0.0 <= args.max_unreadable <= 1.0:
        raise ValueError(f"max_unreadable={args.max_unreadable} is a share: it must be between 0 and 1.")
    if args.mix not in MIXES:
        raise ValueError(f"mix={args.mix!r} is not known; choose one of {', '.join(map(repr, MIXES))}.")


def _check_supported(args: RegionLearnerTrainingArguments) -> None:
    """
    Checks that all arguments are supported.

    Raises:
        ValueError: an argument would not have its documented effect.
    """
    for item in fields(args):
        value = getattr(args, item.name)
        if item.name in REFUSED and value is not None and (value or None) != (_default(item) or None):
            raise ValueError(f"{item.name}={value!r} is not supported: {REFUSED[item.name]}. Leave it out.")
    optim = OptimizerNames(args.optim).value
    if optim.startswith(_OPTIMIZERS_THAT_CHOOSE_PARAMETERS):
        raise ValueError(
            f"optim={optim} is not supported: it chooses parameters itself, and would ignore learning "
            "rates by tower and layer. Use another optimizer, such as adamw_torch."
        )
    modes = _compile_modes() if args.torch_compile_mode is not None else ()
    if modes and args.torch_compile_backend == "inductor" and args.torch_compile_mode not in modes:
        raise ValueError(
            f"torch_compile_mode={args.torch_compile_mode!r} is not known; choose one of {', '.join(modes)}."
        )
    given: Any = args.accelerator_config
    for name, only in _REFUSED_BY_ACCELERATOR.items():
        # None leaves the choice to accelerate, which then uses the same value for rows with a length.
        if getattr(given, name) not in (only, None):
            raise ValueError(
                f"accelerator_config: {name}={getattr(given, name)} is not supported: each process makes batches of "
                "its own. Leave it out."
            )
    if args.auto_find_batch_size and args.world_size > 1:
        raise ValueError(
            "auto_find_batch_size is not supported with several processes, as they would find different sizes: set "
            "per_device_train_batch_size instead."
        )


def _default(item: Field) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _compile_modes() -> list[str]:
    from torch._inductor import list_mode_options

    return list(list_mode_options())


def _check_accelerator_config(given: Any) -> None:
    known = [item.name for item in fields(AcceleratorConfig)]
    for key in given if isinstance(given, dict) else ():
        if key not in known:
            raise ValueError(f"accelerator_config: unknown key {key!r}{nearest_or_all(str(key), known)}")


def _check_schedule(args: RegionLearnerTrainingArguments) -> None:
    schedule = SchedulerType(args.lr_scheduler_type)
    is_constant = schedule in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP)
    if any(not 0.0 < share < 1.0 for share in args.lr_milestones):
        raise ValueError(f"lr_milestones={args.lr_milestones} must be fractions of training, between 0 and 1.")
    if args.lr_milestones and not is_constant:
        raise ValueError("lr_milestones need lr_scheduler_type constant or constant_with_warmup.")
    if args.lr_milestones and args.lr_scheduler_kwargs:
        raise ValueError("lr_milestones take lr_gamma instead of lr_scheduler_kwargs: leave lr_scheduler_kwargs out.")
    if args.lr_scheduler_kwargs and is_constant:
        raise ValueError(f"lr_scheduler_type={schedule.value} takes no lr_scheduler_kwargs: leave them out.")
    if options := _scheduler_options(args):
        try:
            get_scheduler(schedule, torch.optim.SGD([torch.zeros(1)]), 0, 1, scheduler_specific_kwargs=options)
        except TypeError as error:
            raise ValueError(
                f"lr_scheduler_kwargs={args.lr_scheduler_kwargs} do not fit lr_scheduler_type={schedule.value}: "
                f"{error}"
            ) from error


def _check_trackers(names: Sequence[str]) -> None:
    """
    Checks that the trackers of `report_to` are installed, before everything else is loaded.

    Raises:
        ValueError: a tracker is not known, or not installed.
    """
    known = list(integration_utils.INTEGRATION_TO_CALLBACK)
    missing = [name for name in names if name not in integration_utils.get_available_reporting_integrations()]
    for name in missing:
        if name not in known:
            raise ValueError(f"report_to={name!r} is not known{nearest_or_all(str(name), ['none', 'all', *known])}")
        if name not in _MODULES or find_spec(_MODULES[name]) is None:
            raise ValueError(
                f"report_to={name!r} is not installed: install it with `pip install {_PACKAGES.get(name, name)}`, or "
                "set --report-to none."
            )


def check_for_trainer(args: RegionLearnerTrainingArguments, task: str, options: dict[str, Any]) -> None:
    """
    Checks that arguments fit the task and the other arguments of the Trainer.

    Args:
        args: arguments of the run.
        task: task of the model.
        options: other arguments of the Trainer, by name.

    Raises:
        ValueError: they do not fit together.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process would train {args.n_gpu} codebooks: start one process per GPU, with "
            "`accelerate launch -m region_learner.training ...`, or set CUDA_VISIBLE_DEVICES to one GPU."
        )
    data = options.get("eval_dataset")
    own_metrics = options.get("compute_metrics", METRICS[task]) is not METRICS[task]
    check_evaluation(args, task, data is not None, data if isinstance(data, dict) else (), own_metrics)
    if args.gradient_cache_chunk is not None:
        if task not in UNLABELED_TASKS:
            raise ValueError(f"gradient_cache_chunk is for contrastive losses, not for task={task!r}: leave it out.")
        if options.get("compute_loss_func") is not None:
            raise ValueError("gradient_cache_chunk computes the model's own loss: leave out compute_loss_func.")
    if task == "classification" and args.neftune_noise_alpha is not None:
        raise ValueError("neftune_noise_alpha is for word embeddings, which a classifier does not have: leave it out.")
    optimizer, schedule = options.get("optimizers") or (None, None)
    of_optimizer = ("video_learning_rate", "text_learning_rate", "layer_decay") if optimizer is not None else ()
    of_schedule = ("lr_milestones",) if schedule is not None else ()
    for name in of_optimizer + of_schedule:
        if getattr(args, name):
            raise ValueError(f"{name} has no effect if optimizers= is given to the Trainer: leave out one of the two.")
    chosen: Any = options.get("optimizer_cls_and_kwargs")
    if chosen is not None and chosen[1].get("lr", args.learning_rate) != args.learning_rate:
        raise ValueError("optimizer_cls_and_kwargs must not set the learning rate: use learning_rate instead.")


def check_for_model(args: RegionLearnerTrainingArguments, model: Any, is_fsdp: bool, is_deepspeed: bool) -> None:
    """
    Checks that arguments fit the model, after parts of it were frozen, and the way in which it is sharded.

    Raises:
        ValueError: they do not fit together.
    """
    if has_adapters(model) and (is_fsdp or is_deepspeed):
        raise ValueError("lora is not supported with FSDP or DeepSpeed: use DDP, as adapters take little memory.")
    if args.gradient_cache_chunk is None:
        return
    if is_deepspeed:
        raise ValueError("gradient_cache_chunk is not supported with DeepSpeed: use DDP or FSDP, or leave it out.")
    quantizer = model.quantizer
    if quantizer is not None and quantizer.mode == "original" and not (quantizer.frozen or quantizer.is_unsaved):
        raise ValueError(
            'codebook_mode="original" assigns codes after updating them with the whole batch, which cached gradients '
            'never have at once: set codebook_mode="ema", or leave out gradient_cache_chunk.'
        )


# The metric that chooses the best checkpoint

_SCHEDULES_BY_METRIC = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)


def _check_direction(args: TrainingArguments, given: bool | None) -> None:
    """
    Sets `greater_is_better`, and the mode of a schedule that follows a metric, according to the metric. For custom
    metrics, transformers decides.

    Args:
        args: arguments whose `__post_init__` has run.
        given: `greater_is_better` as the user set it.

    Raises:
        ValueError: the given value contradicts the metric.
    """
    name = args.metric_for_best_model
    if name is None:
        return
    better = greater_is_better(name)
    if better is not None and given is not None and given != better:
        raise ValueError(
            f"greater_is_better={given} contradicts metric_for_best_model={name!r}, of which "
            f"{'greater' if better else 'smaller'} values are better: leave out greater_is_better."
        )
    mode = _scheduler_options(args).get("mode")
    _set_metric_and_direction(args, name)
    if args.lr_scheduler_type in _SCHEDULES_BY_METRIC and mode not in (None, _scheduler_options(args)["mode"]):
        raise ValueError(
            f"lr_scheduler_kwargs: mode={mode!r} contradicts metric_for_best_model={name!r}: leave out mode."
        )


def _set_metric_and_direction(args: TrainingArguments, name: str) -> None:
    better = greater_is_better(name)
    args.metric_for_best_model = name
    args.greater_is_better = args.greater_is_better if better is None else better
    if args.lr_scheduler_type in _SCHEDULES_BY_METRIC:
        mode = "max" if args.greater_is_better else "min"
        args.lr_scheduler_kwargs = _scheduler_options(args) | {"mode": mode}


def _scheduler_options(args: TrainingArguments) -> dict[str, Any]:
    return dict(args.lr_scheduler_kwargs or {})  # type: ignore[arg-type] # a mapping, after `__post_init__`


def set_best_model_metric(args: TrainingArguments, task: str) -> None:
    """
    Selects the best checkpoint by accuracy in multiple choice. transformers would use the loss, but multiple choice is
    evaluated without one.
    """
    if task == "multiple_choice" and args.metric_for_best_model in ("loss", "eval_loss"):
        logger.info("Multiple choice is evaluated without a loss, so accuracy selects the best checkpoint.")
        _set_metric_and_direction(args, "accuracy")


def check_evaluation(
    args: TrainingArguments, task: str, has_data: bool, data_sets: Iterable[str] = (), own_metrics: bool = False
) -> None:
    """
    Checks that evaluation during training will run and will report the metric that selects the best checkpoint.

    Args:
        args: arguments of the run.
        task: task of the model.
        has_data: whether there is data to evaluate on.
        data_sets: names of the evaluation datasets, if there are several.
        own_metrics: whether the metrics are custom ones instead of those of the task.

    Raises:
        ValueError: training would end at the first evaluation, or would not save a checkpoint.
    """
    evaluates = args.eval_strategy != IntervalStrategy.NO
    saves_best = args.save_strategy == SaveStrategy.BEST
    name = args.metric_for_best_model
    if evaluates and not has_data:
        raise ValueError(
            f"eval_strategy={IntervalStrategy(args.eval_strategy).value} needs data to evaluate on: set --eval-split "
            "(in Python, eval_dataset), or leave out eval_strategy."
        )
    if saves_best and not evaluates:
        raise ValueError("save_strategy=best saves after an evaluation: set --eval-split and --eval-strategy.")
    if saves_best and name is None:
        raise ValueError(
            f"save_strategy=best needs metric_for_best_model: one of {', '.join(GREATER_IS_BETTER[task])}."
        )
    if args.prediction_loss_only and task == "multiple_choice":
        raise ValueError("prediction_loss_only: multiple choice is evaluated without a loss. Leave it out.")
    if name is None or own_metrics:
        return
    metrics = ["loss"] if args.prediction_loss_only else list(GREATER_IS_BETTER[task])
    known = [f"{data_set}_{metric}" for data_set in data_sets for metric in metrics] or metrics
    if name.removeprefix("eval_") not in known:
        raise ValueError(
            f"metric_for_best_model={name!r} is not a metric of task={task!r}{_nearest_metrics(name, known)} "
            f"(metrics: {', '.join(known)})"
        )


def _nearest_metrics(name: str, known: list[str]) -> str:
    """Works like `did_you_mean`, but treats `R@1` as close to all metrics that end in it."""
    bare = name.removeprefix("eval_").lower()
    near = [one for one in known if one.lower() == bare or one.lower().endswith(f"_{bare}")]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else did_you_mean(bare, known)

"""By which metric a checkpoint is chosen, and in which direction."""

import difflib
import logging
from collections.abc import Iterable
from typing import Any

from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..evaluation.directions import GREATER_IS_BETTER, greater_is_better

logger = logging.getLogger(__name__)

_BY_METRIC = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)


def set_direction(args: TrainingArguments, given: bool | None) -> None:
    """
    Sets `greater_is_better`, and the mode of a learning rate that depends on a metric, as `metric_for_best_model`
    says. Metrics of one's own have the direction that transformers gives them.

    Args:
        args: whose `__post_init__` has run.
        given: `greater_is_better` as the user gave it, None if not.

    Raises:
        ValueError: what was given contradicts the metric.
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
    choose_by(args, name)
    if args.lr_scheduler_type in _BY_METRIC and mode not in (None, _scheduler_options(args)["mode"]):
        raise ValueError(
            f"lr_scheduler_kwargs: mode={mode!r} contradicts metric_for_best_model={name!r}: leave out mode."
        )


def choose_by(args: TrainingArguments, name: str) -> None:
    """Lets a metric choose the checkpoint, and the learning rate where that depends on one."""
    better = greater_is_better(name)
    args.metric_for_best_model = name
    args.greater_is_better = args.greater_is_better if better is None else better
    if args.lr_scheduler_type in _BY_METRIC:
        mode = "max" if args.greater_is_better else "min"
        args.lr_scheduler_kwargs = _scheduler_options(args) | {"mode": mode}


def _scheduler_options(args: TrainingArguments) -> dict[str, Any]:
    return dict(args.lr_scheduler_kwargs or {})  # type: ignore[arg-type] # a mapping, after `__post_init__`


def settle_choice(
    args: TrainingArguments, task: str, evaluates: bool, data_sets: Iterable[str] = (), own_metrics: bool = False
) -> None:
    """
    Makes sure that evaluation during training will report what chooses the checkpoint.

    Args:
        args: of the run.
        task: of the model.
        evaluates: whether there is something to evaluate on.
        data_sets: names of the evaluation data sets, if there are several.
        own_metrics: whether metrics are computed that are not those of the task.

    Raises:
        ValueError: it will not, so that training would end at the first evaluation, or no checkpoint would be saved.
    """
    if args.eval_strategy != IntervalStrategy.NO and not evaluates:
        raise ValueError(
            f"eval_strategy={IntervalStrategy(args.eval_strategy).value} needs data to evaluate on: give --eval_split "
            "(in Python eval_dataset), or leave out eval_strategy."
        )
    best = args.save_strategy == SaveStrategy.BEST
    if best and args.eval_strategy == IntervalStrategy.NO:
        raise ValueError(
            "save_strategy=best saves after an evaluation, and there is none: give --eval_split and --eval_strategy."
        )
    if task == "multiple_choice" and args.metric_for_best_model in ("loss", "eval_loss"):
        logger.info("Multiple choice is evaluated without a loss: accuracy chooses the checkpoint.")
        choose_by(args, "accuracy")
    name = args.metric_for_best_model
    if best and name is None:
        raise ValueError(
            f"save_strategy=best needs metric_for_best_model: one of {', '.join(GREATER_IS_BETTER[task])}."
        )
    if args.prediction_loss_only and task == "multiple_choice":
        raise ValueError("prediction_loss_only: multiple choice is evaluated without a loss; leave it out.")
    if name is None or own_metrics:
        return
    metrics = ["loss"] if args.prediction_loss_only else list(GREATER_IS_BETTER[task])
    known = [f"{data_set}_{metric}" for data_set in data_sets for metric in metrics] or metrics
    if name.removeprefix("eval_") not in known:
        raise ValueError(
            f"metric_for_best_model={name!r} is not a metric of task={task!r}{_nearest(name, known)} "
            f"(metrics: {', '.join(known)})"
        )


def _nearest(name: str, known: list[str]) -> str:
    bare = name.removeprefix("eval_").lower()
    near = [one for one in known if one.lower() == bare or one.lower().endswith(f"_{bare}")]
    near = near or difflib.get_close_matches(bare, known, n=2)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""

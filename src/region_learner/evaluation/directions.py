"""Which metrics can choose a checkpoint, and whether greater is better, for each task that can be trained."""

from .metrics import RECALL_AT

_RANKING = {f"R@{k}": True for k in RECALL_AT} | {"MedR": False, "MeanR": False, "gmean": True}

# The metrics of evaluation during training that say how good the model is, and whether greater is better.
GREATER_IS_BETTER: dict[str, dict[str, bool]] = {
    "retrieval": {f"{side}_{name}": better for side in ("t2v", "v2t") for name, better in _RANKING.items()}
    | {"loss": False},
    "multiple_choice": {"accuracy": True},
    "question_answering": {"accuracy": True, "loss": False},
    "classification": {"top1": True, "top5": True, "loss": False},
}

_OF_ANY_TASK = {name: better for metrics in GREATER_IS_BETTER.values() for name, better in metrics.items()}


def greater_is_better(name: str) -> bool | None:
    """
    Returns whether a greater value of a metric is better, or None for a metric that no task has.

    Args:
        name: as in `metric_for_best_model`: with or without "eval_", and after the name of an evaluation data set if
            there are several ("eval_unseen_t2v_MeanR").
    """
    for known in sorted(_OF_ANY_TASK, key=len, reverse=True):
        if name == known or name.endswith(f"_{known}"):
            return _OF_ANY_TASK[known]
    return None

"""Metrics as modules of the library `evaluate`: each a directory that `evaluate.load` takes, needing this package."""

from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


def list_metrics() -> list[str]:
    """The names that [`load_metric`] knows."""
    return sorted(path.stem for path in _FOLDER.glob("*/*.py") if path.stem == path.parent.name)


def load_metric(name: str, **options: Any):
    """
    Loads one of the `evaluate` modules of this package, without the network; the same as `evaluate.load` with its
    directory in `region_learner/evaluation/modules`.

    Args:
        name: "video_text_retrieval", "multiple_choice_accuracy", "answer_accuracy" or "action_accuracy".
        options: of `evaluate.load`: in several processes `num_process`, `process_id` and `experiment_id`, and a
            `cache_dir` that they share. Each process then adds rows of its own, and at least one; `compute` returns
            the result in process 0 and None in others. What a sampler repeats to fill batches is not recognised.

    Returns:
        the `evaluate.EvaluationModule`: `compute(predictions=..., references=..., ...)`, or `add_batch(...)` as
        often as needed and then `compute()`. What they take and return is told by its `inputs_description`.

    Raises:
        ValueError: for another name.
    """
    import evaluate  # takes a second

    if name not in list_metrics():
        raise ValueError(f"There is no metric {name!r}; choose one of {', '.join(list_metrics())}.")
    return evaluate.load(str(_FOLDER / name), **options)

"""Metrics as modules of the library `evaluate`. Each is a directory for `evaluate.load`, and needs this package."""

from pathlib import Path
from typing import Any

from ...errors import install_hint

_FOLDER = Path(__file__).parent


def list_metrics() -> list[str]:
    """Returns the names that [`load_metric`] knows.

    Example:

    ```python
    >>> "video_text_retrieval" in list_metrics()
    True
    ```
    """
    return sorted(path.stem for path in _FOLDER.glob("*/*.py") if path.stem == path.parent.name)


def load_metric(name: str, **options: Any):
    """
    Loads one of the `evaluate` modules of this package, without network access. It is the same as `evaluate.load` with
    the directory of the module in `region_learner/evaluation/modules`.

    Args:
        name: "video_text_retrieval", "multiple_choice_accuracy", "answer_accuracy" or "action_accuracy".
        options: options of `evaluate.load`. With several processes, these are `num_process`, `process_id`,
            `experiment_id`, and a shared `cache_dir`. Each process then adds at least one row of its own, and
            `compute` returns the result in process 0 and None in the others. Rows that a sampler repeats to fill
            batches are not recognized.

    Returns:
        The `evaluate.EvaluationModule`. Call `compute(predictions=..., references=..., ...)`, or `add_batch(...)` as
        often as needed and then `compute()`. Its `inputs_description` says what they take and return.

    Raises:
        ValueError: the name is not known.
        ImportError: the package `evaluate` is not installed.

    Example:

        metric = load_metric("multiple_choice_accuracy")
        metric.compute(predictions=[[0.9, 0.1], [0.2, 0.7]], references=[0, 0])["accuracy"]  # 50.0
    """
    try:
        import evaluate  # slow to import
    except ImportError as error:
        raise ImportError(f"load_metric needs the package evaluate: {install_hint('evaluate')}") from error
    if name not in list_metrics():
        raise ValueError(f"The metric {name!r} is not known; choose one of {', '.join(list_metrics())}.")
    return evaluate.load(str(_FOLDER / name), **options)

"""The rows that a module collects. They are checked when added, stored as Arrow columns, and read as arrays."""

import numbers
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from region_learner.corpora.rows import plain, shown
from region_learner.evaluation.metrics import checked_ids


def info(
    description: str, inputs: str, features: datasets.Features | Sequence[datasets.Features]
) -> evaluate.MetricInfo:
    """Returns the description of a module. Rows are stored as Arrow: Python lists would take 8 times the memory."""
    result = evaluate.MetricInfo(description=description, citation="", inputs_description=inputs, features=features)
    result.format = "arrow"  # the constructor does not accept it for sequences
    return result


def scores_and_labels(dtype: str) -> datasets.Features:
    """Returns the features of rows with scores, `predictions`, and the index of the right one, `references`."""
    scores = datasets.Sequence(datasets.Value(dtype))
    return datasets.Features({"predictions": scores, "references": datasets.Value("int64")})


class RowsMetric(evaluate.Metric):
    """A metric that checks rows when they are added: `evaluate` would turn 1.5 into the label 1, and "7" into 7."""

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Adds rows. Both arguments, and `video_ids`, have one entry per row."""
        given = {"predictions": predictions, "references": references, **kwargs}
        for name in self._feature_names():
            if given.get(name) is None:
                raise ValueError(f"{name} are missing: each row needs {', '.join(self._feature_names())}.")
        if not len(given["predictions"]):
            raise ValueError("predictions are empty: there is nothing to measure.")
        self._check(references, kwargs.get("video_ids"))
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Adds a row."""
        self._check([reference], [kwargs["video_ids"]] if "video_ids" in kwargs else None)
        super().add(prediction=prediction, reference=reference, **kwargs)

    def _check(self, references: Any, video_ids: Any) -> None:
        if video_ids is not None:
            ids = checked_ids("video_ids", video_ids.tolist() if hasattr(video_ids, "tolist") else list(video_ids))
            kept = self.selected_feature_format and self.selected_feature_format["video_ids"].dtype
            if ids and self.writer is not None and isinstance(ids[0], str) != (kept == "string"):
                raise ValueError(
                    f"video_ids such as {ids[0]!r} are of another type than earlier ones: make all of them "
                    "strings or all of them integers."
                )
        elif isinstance(self.features, datasets.Features):
            for row, label in enumerate(references):
                label = plain(label)
                if isinstance(label, bool) or not isinstance(label, numbers.Real) or label % 1:
                    raise ValueError(f"references[{row}] must be the index of a class, not {shown(label)}.")


def list_lengths(column: pa.ChunkedArray) -> np.ndarray:
    """Returns the length of each list of a column, (rows,)."""
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy()


def flat(column: pa.ChunkedArray) -> np.ndarray:
    """Returns the numbers of a column, or of all lists of a column of lists, as one array."""
    if pa.types.is_nested(column.type):
        column = pc.list_flatten(column)
    return np.require(column.to_numpy(), requirements="W")


def vectors(name: str, column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """
    Returns the lists of a column that are not empty, (n, dim), and their rows, (n,).

    Raises:
        ValueError: all lists are empty, or their lengths differ.
    """
    lengths = list_lengths(column)
    rows = np.flatnonzero(lengths)
    dims = np.unique(lengths[rows])
    if len(dims) != 1:
        found = f"have lengths {dims.tolist()}" if len(dims) else "are empty"
        raise ValueError(f"{name} must be sequences of the same length, but they {found}.")
    return flat(column).reshape(-1, dims[0]), rows


def matrix(name: str, column: pa.ChunkedArray) -> np.ndarray:
    """
    Returns the lists of a column, (rows, dim).

    Raises:
        ValueError: their lengths differ, or are 0.
    """
    result, rows = vectors(name, column)
    if len(rows) != len(column):
        raise ValueError(f"{name} must be sequences of the same length, but {len(column) - len(rows)} are empty.")
    return result

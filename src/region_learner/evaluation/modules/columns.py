"""What modules keep, as columns of an Arrow table, and these columns as arrays that torch may write to."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def info(
    description: str, inputs: str, features: datasets.Features | Sequence[datasets.Features]
) -> evaluate.MetricInfo:
    """What a module says of itself. Rows are kept as Arrow: Python lists would take eight times as much memory."""
    result = evaluate.MetricInfo(description=description, citation="", inputs_description=inputs, features=features)
    result.format = "arrow"  # not above, where it is refused for sequences
    return result


def scores_and_labels(dtype: str) -> datasets.Features:
    """Rows of scores, `predictions`, each with the number of the right one, `references`."""
    scores = datasets.Sequence(datasets.Value(dtype))
    return datasets.Features({"predictions": scores, "references": datasets.Value("int64")})


def list_lengths(column: pa.ChunkedArray) -> np.ndarray:
    """How long each list of a column is, (rows,)."""
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy()


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers, or all numbers of a column of lists, one after the other."""
    if pa.types.is_nested(column.type):
        column = pc.list_flatten(column)
    return np.require(column.to_numpy(), requirements="W")


def vectors(name: str, column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """
    The lists of a column that are not empty, (n, dim), and the rows that they are of, (n,).

    Raises:
        ValueError: if there are none, or their lengths differ.
    """
    lengths = list_lengths(column)
    rows = np.flatnonzero(lengths)
    dims = np.unique(lengths[rows])
    if len(dims) != 1:
        raise ValueError(f"{name} must be sequences of one length; they have {dims.tolist() or 'none that is not 0'}.")
    return numbers(column).reshape(-1, dims[0]), rows


def matrix(name: str, column: pa.ChunkedArray) -> np.ndarray:
    """
    The lists of a column, (rows, dim).

    Raises:
        ValueError: if their lengths differ, or are 0.
    """
    result, rows = vectors(name, column)
    if len(rows) != len(column):
        raise ValueError(f"{name} must be sequences of one length; {len(column) - len(rows)} of them are empty.")
    return result

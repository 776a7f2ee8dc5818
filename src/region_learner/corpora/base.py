"""Code that all corpora share: their error, checks of arguments, and building a dataset from rows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configuration_region_learner import did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset


Row = dict[str, Any]
PathLike = str | os.PathLike[str]

# Two common names for the same split.
SPLIT_ALIASES = {"val": "validation", "validation": "val"}


class CorpusError(ValueError):
    """A corpus cannot be loaded or made as asked. The message is one line: what is wrong, where, and what to do."""


def check_split(split: str, splits: Sequence[str], where: str) -> None:
    """Checks that `split` is one of `splits`."""
    if split not in splits:
        raise CorpusError(
            f"{where} has no split {split!r} (splits: {', '.join(splits)}){did_you_mean(str(split), splits)}"
        )


def check_options(corpus: str, options: Iterable[str], allowed: Iterable[str]) -> None:
    """Checks that a corpus has all of `options`."""
    allowed = sorted(allowed)
    for option in options:
        if option not in allowed:
            raise CorpusError(
                f"unknown option {option!r} for corpus {corpus!r} (options: {', '.join(allowed)})"
                f"{did_you_mean(option, allowed)}"
            )


def check_data_dir(corpus: str, data_dir: PathLike | None) -> Path:
    """Returns the directory as an absolute path."""
    if data_dir is None:
        raise CorpusError(f"corpus {corpus!r} needs data_dir= (--data-dir), the directory that contains it")
    path = Path(os.path.abspath(os.path.expanduser(data_dir)))
    if not path.is_dir():
        raise CorpusError(f"{path} is not a directory: check data_dir= (--data-dir) of corpus {corpus!r}")
    return path


def read_record(path: Path) -> dict[str, Any]:
    """Returns the content of `corpus.json` or `prepare.json`; empty if it is missing, or not one of our files."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def build_dataset(rows: Sequence[Row], features: Mapping[str, Any] | None = None) -> Dataset:
    """Builds a dataset of rows. Columns that a row lacks are None. Paths remain strings: nothing is decoded.

    Args:
        features: types of columns that cannot be inferred from their values, such as lists that are all empty.
    """
    # Imported here: `datasets` takes seconds to import, and processes that only write clips do not need it.
    import pyarrow as pa
    from datasets import Dataset, Features

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    types = []
    for name, values in columns.items():
        try:
            kind = pa.array(values).type
            types.append((name, kind))
            Features.from_arrow_schema(pa.schema([(name, kind)]))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise CorpusError(f"column {name!r} has values of different types: {error}") from error
        except (pa.ArrowNotImplementedError, ValueError) as error:
            raise CorpusError(f"column {name!r} cannot be stored in a dataset: {error}; remove it") from error
    schema = Features({**Features.from_arrow_schema(pa.schema(types)), **(features or {})})
    return Dataset.from_dict(columns, features=schema)

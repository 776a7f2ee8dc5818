"""Reads and checks the rows of a dataset: single values, such as captions and ids, and whole rows.

A value has the same meaning in files, in shards and in rows from Python. A dataset is checked when it is passed in,
and each of its rows when it is read. Readers of a value raise an `UnfitValueError`, readers of a row a `CorpusError`.
"""

from __future__ import annotations

import ast
import itertools
import json
import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from .base import CorpusError

# --- Values ----------------------------------------------------------------------------------------------------------

# Strings that pandas writes for a missing value. "NA" and "null" are ordinary words.
MISSING_WORDS = frozenset({"nan", "NaN", "None", "<NA>", "NaT"})

# The beginning of a list of strings that was written as JSON, Python or NumPy.
_LIST_BEGINS = re.compile(r"""\[\s*(["']|\]|None\b|nan\b|null\b)|array\(\[""")
_PYTHON_STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|None"""
_PYTHON_LIST = re.compile(rf"\[(?:(?:{_PYTHON_STRING})(?:, (?:{_PYTHON_STRING}))*)?\]", re.DOTALL)

_MAX_DEPTH = 32  # of nested lists and mappings


class UnfitValueError(ValueError):
    """A value is not valid for its column. The message continues a sentence that begins with the column."""


def shown(value: Any, length: int = 80) -> str:
    """Returns the `repr` of a value in one short line, for messages."""
    text = " ".join((ascii(value) if isinstance(value, str) and not _is_text(value) else repr(value)).split())
    return text if len(text) <= length else text[: length - 3] + "..."


def plain(value: Any) -> Any:
    """Turns a scalar of NumPy or torch into a Python value. Other values are returned as they are."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def is_missing(value: Any) -> bool:
    """Returns whether a value is None, NaN, or pandas' NA or NaT."""
    if isinstance(value, str):
        return False
    if isinstance(value, numbers.Real):
        return bool(value != value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def read_captions(value: Any) -> list[str]:
    """Returns the captions in a value, stripped. Blank and missing captions are "", so that callers can count them.

    A string is one caption, or several if it is a list of strings written as JSON or Python: pandas and `datasets`
    write "['a', 'b']" to CSV files. A missing value has no captions.
    """
    if is_missing(value):
        return []
    if isinstance(value, str):
        parsed = _parse_list(value.strip())
        value = [value] if parsed is None else parsed
    if hasattr(value, "tolist") and not isinstance(value, list | tuple):  # an array
        value = value.tolist()
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) or is_missing(item) for item in value):
        raise UnfitValueError(f"must be a string or a list of strings, not {shown(value)}")
    captions = ["" if is_missing(item) else item.strip() for item in value]
    for caption in captions:
        if not _is_text(caption):
            raise UnfitValueError(f"has an unpaired surrogate, which is not text: {shown(caption)}")
    return ["" if caption in MISSING_WORDS else caption for caption in captions]


def _parse_list(text: str) -> list[Any] | None:
    """Parses the text of a list. Returns None for any other text, such as "[music]"."""
    if not _LIST_BEGINS.match(text) or text[-1] not in "])":
        return None
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
        if _PYTHON_LIST.fullmatch(text):
            with suppress(SyntaxError, ValueError):  # such as a line break or "\\U" in a string
                parsed = [ast.literal_eval(string) for string in re.findall(_PYTHON_STRING, text, re.DOTALL)]
    if not isinstance(parsed, list):
        raise UnfitValueError(
            f'looks like a list but is not a JSON list, such as ["a", "b"]: {shown(text)}; write a JSON list, or one '
            "row per caption"
        )
    return parsed


def read_text(value: Any) -> str:
    """Returns `value`, a string that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise UnfitValueError(f"must be a string that is not blank, not {shown(value)}")
    if not _is_text(value):
        raise UnfitValueError(f"has an unpaired surrogate, which is not text: {shown(value)}")
    return value


def read_id(value: Any) -> str | None:
    """Returns an id as a string: the digits of an integer, and None if it is missing or blank."""
    value = plain(value)
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        if value in MISSING_WORDS:
            raise UnfitValueError(f"is {value!r}, which means a missing value: fill it in")
        return read_text(value)
    if _is_integer(value):
        return str(int(value))
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        raise UnfitValueError(
            f"is the float {value}; integers in a column with missing values become floats: write ids as strings"
        )
    raise UnfitValueError(f"must be a string or an integer, not {shown(value)}")


def _is_integer(value: Any) -> bool:
    """Returns whether a value is an integer of Python or NumPy, but not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def read_answer(value: Any, options: Any) -> int:
    """Returns the index of the right option."""
    value = plain(value)
    if not _is_integer(value) or not 0 <= int(value) < len(options):
        raise UnfitValueError(
            f"must be the index of the right one of {len(options)} options, counted from 0, not {shown(value)}"
        )
    return int(value)


def read_options(value: Any) -> list[str]:
    """Returns the options of a multiple-choice question."""
    options = _parse_list(value.strip()) if isinstance(value, str) else value
    if hasattr(options, "tolist"):
        options = options.tolist()
    if not isinstance(options, list | tuple) or not options or not all(isinstance(text, str) for text in options):
        raise UnfitValueError(f"must be a list of strings, not {shown(value)}")
    return [read_text(text) for text in options]


def read_label(value: Any) -> int | str:
    """Returns a label: the name of a class, or its number."""
    value = plain(value)
    if isinstance(value, str):
        return read_text(value)
    if not _is_integer(value):
        raise UnfitValueError(f"must be the number or the name of a class, not {shown(value)}")
    return int(value)


def read_aspect(value: Any) -> str | None:
    """Returns what a question is about, or None."""
    return None if is_missing(value) else read_text(value)


def _is_text(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def unstorable(value: Any, depth: int = 0) -> str | None:
    """Returns why a dataset cannot store a value, or None: JSON allows some values that Arrow does not."""
    if isinstance(value, str):
        return None if _is_text(value) else "an unpaired surrogate"
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**63 else "an integer of more than 64 bits"
    if isinstance(value, list | tuple | Mapping):
        if depth == _MAX_DEPTH:
            return f"lists or objects nested more than {_MAX_DEPTH} deep"
        parts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        return next((what for part in parts if (what := unstorable(part, depth + 1))), None)
    return None


# --- Rows ------------------------------------------------------------------------------------------------------------

_FIRST_ROWS = 4  # checked when a dataset is given: enough to notice a wrong column


def check_dataset(
    dataset: Any, columns: Sequence[str], name: str, first_rows: int = _FIRST_ROWS, optional: Sequence[str] = ()
) -> None:
    """Checks the columns and the first rows of a dataset.

    Args:
        dataset: a `datasets.Dataset` or `IterableDataset`, a list of mappings, or a torch dataset. Rows of other
            iterables are not checked, as they may allow only one iteration.
        columns: the columns that are needed in addition to `video` and `video_id`.
        name: name of the dataset in messages.
        first_rows: number of rows to check.
        optional: columns that rows may have.
    """
    check_kind(dataset, name)
    known = getattr(dataset, "column_names", None)
    if known and (absent := [column for column in ("video", "video_id", *columns) if column not in known]):
        fix = _how_to_map(absent, known, dataset)
        raise CorpusError(f"{name} has no column {absent[0]!r} (columns: {', '.join(sorted(known))}): {fix}")
    rows: Iterable[Any] = ()
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        if first_rows and not len(dataset):
            raise CorpusError(f"{name} has no rows")
        rows = (dataset[number] for number in range(min(len(dataset), first_rows)))
    elif hasattr(dataset, "column_names"):  # an IterableDataset of `datasets` starts over each time
        rows = itertools.islice(dataset, first_rows)
    for number, row in enumerate(rows):
        read_row(row, columns, f"{name}, row {number}", optional=optional)


# Names of these columns in other datasets.
_OTHER_NAMES = {
    "video": ("clip", "file", "filename", "file_name", "image", "media", "mp4", "path", "video_path", "videos"),
    "video_id": ("clip_id", "id", "name", "uid", "vid", "video_name", "videoid"),
    "captions": ("caption", "description", "descriptions", "sentence", "sentences", "text", "texts", "title"),
}


def _how_to_map(absent: Sequence[str], known: Iterable[Any], dataset: Any = None) -> str:
    """
    Returns how to provide the columns `absent`, which may be among the columns `known` under other names. `dataset` is
    a `datasets.Dataset` or `IterableDataset`, or None for single rows.
    """
    renamed = {}
    for column in absent:
        if names := [name for name in known if str(name).lower() in (column, *_OTHER_NAMES.get(column, ()))]:
            renamed[names[0]] = column
    missing = [column for column in absent if column not in renamed.values()]
    steps = []
    if renamed and dataset is None:
        steps.append("rename " + ", ".join(f"{old!r} to {new!r}" for old, new in renamed.items()))
    elif renamed:
        steps.append(f"rename columns, `dataset.rename_columns({renamed})`")
    if "video_id" in missing:
        steps.append(
            "add 'video_id', such as the path of the video: the same in all rows of a video, and in no others"
        )
    if others := [column for column in missing if column != "video_id"]:
        steps.append(f"add {' and '.join(map(repr, others))}, or use another dataset")
    return "; ".join(steps) + "."


def check_negative_captions(dataset: Any, name: str) -> None:
    """Checks the column `negative_captions` of all rows of a `datasets.Dataset` that has it."""
    columns = getattr(dataset, "column_names", None) or ()
    if "negative_captions" in columns and hasattr(dataset, "select_columns") and hasattr(dataset, "__len__"):
        for number, row in enumerate(dataset.select_columns(["video_id", "captions", "negative_captions"])):
            read_row(row, ("captions", "negative_captions"), f"{name}, row {number}", with_video=False)


def check_kind(dataset: Any, name: str) -> None:
    """Checks that an object can be a dataset of rows."""
    if hasattr(dataset, "iloc"):
        raise CorpusError(
            f"{name} is a pandas {type(dataset).__name__}: convert it with datasets.Dataset.from_pandas(...)"
        )
    if isinstance(dataset, Mapping):
        raise CorpusError(f"{name} is a mapping of {', '.join(map(repr, dataset))}: pass one split of it")
    if isinstance(dataset, str | bytes) or not (hasattr(dataset, "__getitem__") or hasattr(dataset, "__iter__")):
        raise CorpusError(f"{name} must be a dataset or a list of rows, not {shown(dataset)}: see load_corpus")


def check_ids(dataset: Any, name: str) -> None:
    """Checks that every row of a `datasets.Dataset` has an id, a string or an integer."""
    check_dataset(dataset, (), name, first_rows=0)
    for number, value in enumerate(dataset["video_id"][:]):
        try:
            _read_id(value)
        except UnfitValueError as problem:
            raise CorpusError(f"{name}, row {number}: video_id {problem}") from problem


def read_row(
    row: Any,
    columns: Sequence[str],
    where: str,
    bare: bool = False,
    with_video: bool = True,
    optional: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns a row with normalized values: an id as a string, captions as a list.

    Args:
        columns: the columns that are needed in addition to `video` and `video_id`.
        where: description of the row for messages.
        bare: whether the row may lack captions.
        with_video: whether the row must have a video.
        optional: further columns, which are None if the row does not have them.
    """
    if not isinstance(row, Mapping):
        raise CorpusError(f"{where} must be a mapping of columns such as 'video' and 'video_id', not {shown(row)}")
    result = dict.fromkeys(optional) | dict(row)
    for name in ("video_id", *["video"] * with_video, *columns, *optional):
        if name not in result:
            needed = (*["video"] * with_video, "video_id", *columns)
            fix = _how_to_map([column for column in needed if column not in result], row)
            raise CorpusError(f"{where} has no column {name!r} (columns: {', '.join(sorted(map(str, row)))}): {fix}")
        try:
            if name == "answer" and "options" in columns:
                result[name] = read_answer(result[name], result["options"])
            elif name in _READERS:
                result[name] = _READERS[name](result[name])
            if name == "captions" and not (result[name] or bare):
                raise UnfitValueError("has no caption")
            if name == "negative_captions" and (own := _own_captions(result.get("captions") or (), result[name])):
                raise UnfitValueError(f"contains a caption of the video itself: {shown(own[0])}")
        except UnfitValueError as problem:
            of = "" if name == "video_id" else f" (video_id {result['video_id']!r})"
            raise CorpusError(f"{where}{of}: {name} {problem}") from problem
    return result


def _own_captions(captions: Sequence[str], negatives: Sequence[str]) -> list[str]:
    """Returns the negative captions that are also captions, apart from case and spaces."""
    known = {" ".join(caption.casefold().split()) for caption in captions}
    return [text for text in negatives if " ".join(text.casefold().split()) in known]


def only_clip(clips: Any) -> Any:
    """
    Returns the only clip that a processor made of a row's video.

    Raises:
        ValueError: there are several clips, because the video was a nested list.
    """
    if len(clips) != 1:
        raise ValueError(f"the video of a row must be one clip, not {len(clips)}: use one row per clip")
    return clips[0]


def check_shapes(clips: Sequence[Any]) -> None:
    """
    Checks that clips can be stacked into a batch.

    Raises:
        ValueError: their shapes differ, or some are videos and others cached features.
    """
    if len({clip.ndim for clip in clips}) > 1:
        raise ValueError("A batch cannot have both videos and cached features: use two corpora.")
    if len(shapes := {tuple(clip.shape[-4:]) for clip in clips}) > 1:
        raise ValueError(
            f"Clips of different shapes cannot be batched: {sorted(shapes)}. Sample the same number of frames from "
            "each video with num_frames of the video processor instead of fps, and leave resizing and cropping on."
        )


def _read_id(value: Any) -> str:
    video_id = read_id(value)
    if video_id is None:
        raise UnfitValueError("is missing or blank")
    return video_id


def _read_captions(value: Any) -> list[str]:
    captions = read_captions(value)
    if not all(captions):
        raise UnfitValueError(f"has a caption that is blank or missing: {shown(value)}")
    return captions


def read_negative_captions(value: Any) -> list[str]:
    """Returns the negative captions in a value. None, and a string that is blank or missing, have none."""
    blank = isinstance(value, str) and (not value.strip() or value.strip() in MISSING_WORDS)
    return [] if blank else _read_captions(value)


def _read_video(value: Any) -> Any:
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        raise UnfitValueError("is missing or blank")
    if isinstance(value, Mapping) and all(value.get(name) is None for name in ("path", "bytes")):
        raise UnfitValueError(f"has neither a path nor bytes: {shown(value)}")
    if isinstance(value, numbers.Number):
        raise UnfitValueError(f"must be a path, encoded bytes or frames, not {shown(value)}")
    return value


_READERS: dict[str, Callable[[Any], Any]] = {
    "video_id": _read_id,
    "video": _read_video,
    "captions": _read_captions,
    "negative_captions": read_negative_captions,
    "question": read_text,
    "answer": read_text,
    "options": read_options,
    "label": read_label,
    "aspect": read_aspect,
}

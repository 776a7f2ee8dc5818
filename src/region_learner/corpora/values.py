"""What single values of metadata mean: captions, ids, and columns of the user's own.

Shared by files, shards and rows given from Python, so that the same value means the same in all of them.
"""

from __future__ import annotations

import ast
import json
import numbers
import re
from collections.abc import Mapping
from typing import Any

# What pandas makes of a missing value as a string. "NA" and "null" are words like any other.
MISSING_WORDS = frozenset({"nan", "NaN", "None", "<NA>", "NaT"})

# How the text of a list of strings begins, as JSON, Python or NumPy write it.
_LIST_BEGINS = re.compile(r"""\[\s*(["']|\]|None\b|nan\b|null\b)|array\(\[""")
_PYTHON_STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|None"""
_PYTHON_LIST = re.compile(rf"\[(?:(?:{_PYTHON_STRING})(?:, (?:{_PYTHON_STRING}))*)?\]", re.DOTALL)

_MAX_DEPTH = 32  # of lists and mappings within each other

_BREAKS_OFF = re.compile(r"\s+")


class UnfitValueError(ValueError):
    """What is wrong with a value and what was expected, to be put after the name of its column."""


def shown(value: Any, length: int = 80) -> str:
    """A value in one short line, for messages."""
    text = _BREAKS_OFF.sub(" ", ascii(value) if isinstance(value, str) and not _is_text(value) else repr(value))
    return text if len(text) <= length else text[: length - 3] + "..."


def plain(value: Any) -> Any:
    """A value of Python for a scalar of NumPy or torch; any other as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def is_missing(value: Any) -> bool:
    """Whether a value is None, NaN, or pandas' NA or NaT."""
    if isinstance(value, str):
        return False
    if isinstance(value, numbers.Real):
        return bool(value != value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def read_captions(value: Any) -> list[str]:
    """The captions that a value holds, stripped; blank and missing ones are "", so that callers can count them.

    A string is one caption, or several if it is the text of a list of strings, as JSON or Python write it: "['a',
    'b']" is what pandas and `datasets` leave in a CSV file. No caption at all is an empty list.

    Raises:
        UnfitValueError: it is neither a string nor a list of strings.
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
            raise UnfitValueError(f"has half a surrogate pair, which is not text: {shown(caption)}")
    return ["" if caption in MISSING_WORDS else caption for caption in captions]


def _parse_list(text: str) -> list[Any] | None:
    """The list that a string is the text of; None for any other text, such as "[music]"."""
    if not _LIST_BEGINS.match(text) or text[-1] not in "])":
        return None
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
        if _PYTHON_LIST.fullmatch(text):
            parsed = [ast.literal_eval(string) for string in re.findall(_PYTHON_STRING, text, re.DOTALL)]
    if not isinstance(parsed, list):
        raise UnfitValueError(
            f'looks like a list but is not one in JSON, such as ["a", "b"]: {shown(text)}; write it so, or each '
            "caption in a row of its own"
        )
    return parsed


def read_text(value: Any) -> str:
    """
    Raises:
        UnfitValueError: it is not a string, or blank.
    """
    if not isinstance(value, str) or not value.strip():
        raise UnfitValueError(f"must be a string that is not blank, not {shown(value)}")
    if not _is_text(value):
        raise UnfitValueError(f"has half a surrogate pair, which is not text: {shown(value)}")
    return value


def read_id(value: Any) -> str | None:
    """An id as a string: of an integer its digits, None where it is missing or blank.

    Raises:
        UnfitValueError: it is neither a string nor an integer, or a word that stands for a missing value.
    """
    value = plain(value)
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        if value in MISSING_WORDS:
            raise UnfitValueError(f"is {value!r}, which is how a missing value looks as a string: fill it in")
        return read_text(value)
    if _is_integer(value):
        return str(int(value))
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        raise UnfitValueError(
            f"is the number {value}, which it became in a column with missing values: write ids as strings"
        )
    raise UnfitValueError(f"must be a string or an integer, not {shown(value)}")


def _is_integer(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy, but not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def read_answer(value: Any, options: Any) -> int:
    """The index of the right one of some options.

    Raises:
        UnfitValueError: it is not an integer, or is out of range.
    """
    value = plain(value)
    if not _is_integer(value) or not 0 <= int(value) < len(options):
        raise UnfitValueError(
            f"must be the index of the right one of {len(options)} options, from 0, not {shown(value)}"
        )
    return int(value)


def read_options(value: Any) -> list[str]:
    """
    Raises:
        UnfitValueError: it is not a list of texts.
    """
    options = _parse_list(value.strip()) if isinstance(value, str) else value
    if hasattr(options, "tolist"):
        options = options.tolist()
    if not isinstance(options, list | tuple) or not options or not all(isinstance(text, str) for text in options):
        raise UnfitValueError(f"must be a list of texts, not {shown(value)}")
    return [read_text(text) for text in options]


def read_label(value: Any) -> int | str:
    """A label: the name of a class, or its number.

    Raises:
        UnfitValueError: it is neither.
    """
    value = plain(value)
    if isinstance(value, str):
        return read_text(value)
    if not _is_integer(value):
        raise UnfitValueError(f"must be the number or the name of a class, not {shown(value)}")
    return int(value)


def _is_text(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def unstorable(value: Any, depth: int = 0) -> str | None:
    """What keeps a value out of a column of a data set, in words: JSON may have in it what Arrow may not."""
    if isinstance(value, str):
        return None if _is_text(value) else "half a surrogate pair"
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**63 else "an integer of more than 64 bits"
    if isinstance(value, list | tuple | Mapping):
        if depth == _MAX_DEPTH:
            return f"lists or objects nested more than {_MAX_DEPTH} deep"
        parts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        return next((what for part in parts if (what := unstorable(part, depth + 1))), None)
    return None

"""Finds where the caption of a clip speaks of each of its objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..base import CorpusError
from .compositional import Span
from .letters import LETTERS_WORDING
from .shapes_captions import SHAPES_WORDING


def object_phrases(row: Mapping[str, Any]) -> list[Span]:
    """Returns where the first caption of a clip describes each object, in the order of the row's `objects`.

    The pixels of the n-th object, counted from 0, have the value n + 1 in the label maps (see `load_masks`): together
    they tell whether a model looks at what a phrase means.

    Args:
        row: a row of "moving_shapes" or "drifting_letters", of any task that has captions of all objects: retrieval,
            multiple choice and compositional pairs.

    Returns:
        For each object the index of the first character of its clause, and of the one after the last.

    Raises:
        CorpusError: the row has no such objects, or its first caption does not describe all of them completely.

    Example:
        >>> row = load_corpus("moving_shapes")[0]
        >>> [row["captions"][0][start:end] for start, end in object_phrases(row)]
        ['a large spotted white star drifting to the right', 'a big red dotted triangle resting in place', ...]
    """
    objects, captions = row.get("objects"), row.get("captions")
    if not objects or not captions:
        raise CorpusError(
            f"a row needs 'objects' and 'captions' that are not empty (columns: {', '.join(row)}): use a row of "
            "moving_shapes or drifting_letters"
        )
    for wording in (SHAPES_WORDING, LETTERS_WORDING):
        if {field.name for field in dataclasses.fields(wording.thing)} == set(objects[0]):
            return wording.clauses(wording.scene(row), captions[0])
    raise CorpusError(f"the objects are neither shapes nor letters: {', '.join(objects[0])}")

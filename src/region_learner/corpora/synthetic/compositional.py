"""Compositional pairs: the full caption of a clip, and the same caption with an attribute swapped between two objects.

The stored caption is parsed instead of being rewritten: the words of the two objects change places, so that both
captions have the same words, apart from "a" and "an". They differ only in which words belong together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from ..base import CorpusError, Row
from .base import pick

logger = logging.getLogger(__name__)

Span = tuple[int, int]  # the first character, and the one after the last


def any_of(phrases: Iterable[str]) -> str:
    """Returns a regular expression of any of some phrases."""
    return f"(?:{'|'.join(map(re.escape, phrases))})"


@dataclass(frozen=True)
class Wording:
    """The wording of the first caption of a clip. It describes each object completely, in the order of the scene.

    Args:
        thing: the dataclass of an object.
        aspects: what can be swapped between objects, each with the attributes that belong to it.
        phrases: an object and an aspect -> all phrases for it.
        clause: an object -> a regular expression of all that a caption may say of it.
        opening, link: regular expressions of what is before the first clause and between two of them.
        article: a word -> "a" or "an".
    """

    thing: type[Any]
    aspects: Mapping[str, tuple[str, ...]]
    phrases: Callable[[Any, str], Sequence[str]]
    clause: Callable[[Any], str]
    opening: str
    link: str
    article: Callable[[str], str]

    def scene(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """Returns the objects of a row."""
        return tuple(self.thing(**attributes) for attributes in row["objects"])

    def clauses(self, scene: Sequence[Any], caption: str) -> list[Span]:
        """Returns where the caption describes each object.

        Raises:
            CorpusError: it is not a full caption of the scene.
        """
        pattern = f"(?:{self.opening}){f'(?:{self.link})'.join(f'({self.clause(thing)})' for thing in scene)}"
        match = re.fullmatch(pattern, caption)
        if match is None:
            raise CorpusError(f"the caption {caption!r} does not describe all objects of the clip in full")
        return [match.span(number) for number in range(1, len(scene) + 1)]

    def swap_words(self, scene: Sequence[Any], caption: str, aspect: str, pair: tuple[int, int]) -> str:
        """Returns the caption with the words for an aspect swapped between two objects."""
        spans = self.clauses(scene, caption)
        (start, end), (other_start, other_end) = (
            self._find(caption, spans[number], self.phrases(scene[number], aspect)) for number in sorted(pair)
        )
        swapped = (
            caption[:start]
            + caption[other_start:other_end]
            + caption[end:other_start]
            + caption[start:end]
            + caption[other_end:]
        )
        return re.sub(r"\ban? (?=(\w+))", lambda match: f"{self.article(match[1])} ", swapped)

    def _find(self, caption: str, clause: Span, phrases: Sequence[str]) -> Span:
        (match,) = re.compile(rf"\b{any_of(phrases)}\b").finditer(caption, *clause)
        return match.span()

    def swaps(
        self, scene: tuple[Any, ...], is_possible: Callable[[tuple[Any, ...]], bool]
    ) -> dict[str, list[tuple[int, int]]]:
        """Returns the pairs of objects between which swapping an aspect gives another possible scene, by aspect."""
        found: dict[str, list[tuple[int, int]]] = {}
        for aspect, names in self.aspects.items():
            for i, j in combinations(range(len(scene)), 2):
                other = list(scene)
                for here, there in ((i, j), (j, i)):
                    other[here] = dataclasses.replace(
                        scene[here], **{name: getattr(scene[there], name) for name in names}
                    )
                # Objects that are otherwise alike only change places.
                if sorted(other) != sorted(scene) and is_possible(tuple(other)):
                    found.setdefault(aspect, []).append((i, j))
        return found


def task_rng(task: str, row: Mapping[str, Any]) -> np.random.Generator:
    """Returns the random generator of a task on a clip. It depends on the clip's description, not on its corpus."""
    seed = json.dumps([task, row["video_id"], row["objects"]])
    return np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big"))


def add_negative_captions(
    rows: Sequence[Row], wording: Wording, is_possible: Callable[[tuple[Any, ...]], bool]
) -> tuple[list[Row], dict[str, Any]]:
    """
    Returns the rows with the column `negative_captions`, and its type. These are the first caption, once for each
    attribute that can be swapped between two objects, with that attribute swapped.
    """
    from datasets import List, Value

    negatives = {one["video_id"]: one["negative_captions"] for one in _questions(rows, wording, is_possible)}
    new_rows = [{**row, "negative_captions": negatives.get(row["video_id"], [])} for row in rows]
    return new_rows, {"negative_captions": List(Value("string"))}


def compositional_rows(
    rows: Sequence[Row], wording: Wording, is_possible: Callable[[tuple[Any, ...]], bool], split: str
) -> list[Row]:
    """Returns a question of two options for each clip in which an attribute can be swapped.

    The columns are those of multiple choice, `options` and `answer`; `aspect`, which says what was swapped; and for
    training `negative_captions`, the wrong option and one more for each other aspect that is possible. Each aspect
    that is possible is equally likely, and so is each position of the right caption.

    Raises:
        CorpusError: nothing can be swapped in any clip.
    """
    new_rows = _questions(rows, wording, is_possible)
    if not new_rows:
        raise CorpusError(
            f"no clip of split {split!r} has two objects between which an attribute can be swapped: make clips with "
            "more objects"
        )
    if len(new_rows) < len(rows):
        logger.info("leaving out %d of %d clips: nothing can be swapped in them", len(rows) - len(new_rows), len(rows))
    return new_rows


def _questions(rows: Sequence[Row], wording: Wording, is_possible: Callable[[tuple[Any, ...]], bool]) -> list[Row]:
    """Returns the rows of [`compositional_rows`], of clips in which something can be swapped."""
    new_rows = []
    for row in rows:
        scene, rng = wording.scene(row), task_rng("compositional", row)
        swaps = wording.swaps(scene, is_possible)
        if swaps:
            aspect, right = pick(rng, sorted(swaps)), row["captions"][0]
            wrong = wording.swap_words(scene, right, aspect, pick(rng, swaps[aspect]))
            answer = int(rng.integers(2))
            others = [(name, pick(rng, swaps[name])) for name in sorted(swaps) if name != aspect]
            negatives = [wrong, *(wording.swap_words(scene, right, name, pair) for name, pair in others)]
            question = {"options": [wrong, right] if answer else [right, wrong], "answer": answer, "aspect": aspect}
            new_rows.append({**row, "captions": [right], "negative_captions": negatives, **question})
    return new_rows

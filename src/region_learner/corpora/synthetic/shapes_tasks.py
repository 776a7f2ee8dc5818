"""Tasks on moving shapes: questions, choices and actions about clips that are already written."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ..base import CorpusError, Row
from .base import pick
from .compositional import add_negative_captions, compositional_rows, task_rng
from .shapes_captions import SHAPES_WORDING, tell_everything
from .shapes_scenes import (
    COLOURS,
    HELD_OUT_PAIRS,
    MOTIONS,
    RADIUS,
    ROUND_SHAPES,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    ShapeObject,
)

logger = logging.getLogger(__name__)

TASKS = ("retrieval", "question_answering", "multiple_choice", "compositional", "action_recognition")

# Class names of action recognition.
ACTIONS = tuple(phrases[0][0] for phrases in MOTIONS.values())

_CHOICES = 5
_NUMBERS = ("no", "one", "two", "three", "four", "five")
_WAYS = {"left": "left", "right": "right", "up": "up", "down": "down", "diagonal": "diagonally"}


def rows_of_task(
    rows: Sequence[Row], task: str, split: str, negative_captions: bool = False
) -> tuple[list[Row], dict[str, Any]]:
    """Returns the rows of a task, made from the rows of clips, and the types of its columns.

    They depend only on the stored description of a clip: the same clip gives the same rows in every corpus.
    """
    if task == "compositional":
        return compositional_rows(rows, SHAPES_WORDING, lambda scene: _is_possible(scene, split), split), {}
    if negative_captions:
        return add_negative_captions(rows, SHAPES_WORDING, lambda scene: _is_possible(scene, split))
    from datasets import ClassLabel, List, Value

    new_rows: list[Row] = []
    for row in rows:
        scene, rng = SHAPES_WORDING.scene(row), task_rng(task, row)
        match task:
            case "question_answering":
                for question, answer in _ask(scene, rng):
                    new_rows.append({**row, "captions": [], "question": question, "answer": answer})
            case "multiple_choice":
                options, answer_index = _choices(scene, split, rng)
                new_rows.append(
                    {**row, "captions": [options[answer_index]], "options": options, "answer": answer_index}
                )
            case "action_recognition":
                largest = _largest(scene)
                if largest is not None:
                    label = list(MOTIONS).index(largest.motion)
                    new_rows.append({**row, "captions": [ACTIONS[label]], "label": label})
            case _:
                new_rows.append(row)
    if not new_rows:
        raise CorpusError(
            f"no clip of split {split!r} has one object larger than the others: make clips with objects=1"
        )
    if len(new_rows) < len(rows):
        logger.info(
            "leaving out %d of %d clips: none of their objects is the largest", len(rows) - len(new_rows), len(rows)
        )
    features: dict[str, Any] = {}
    if task == "question_answering":
        features["captions"] = List(Value("string"))  # all empty
    elif task == "action_recognition":
        features["label"] = ClassLabel(names=list(ACTIONS))
    return new_rows, features


def _ask(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Asks a question of each kind that has exactly one answer; returns (question, answer) pairs.

    Questions name an object by a shape or a colour that only one object has, or by both, which always name one.
    """

    def alone(name: str) -> list[ShapeObject]:
        values = [getattr(shape_object, name) for shape_object in scene]
        return [shape_object for shape_object, value in zip(scene, values) if values.count(value) == 1]

    def named(shape_object: ShapeObject) -> str:
        return f"the {shape_object.colour} {shape_object.shape}"

    # Clutter is gray, so it does not count.
    questions = [("how many objects are not gray?", _NUMBERS[len(scene)])]
    if some := alone("shape"):
        chosen = pick(rng, some)
        questions.append((f"what color is the {chosen.shape}?", chosen.colour))
    if some := alone("colour"):
        chosen = pick(rng, some)
        questions.append((f"what shape is {chosen.colour}?", chosen.shape))
    if some := [shape_object for shape_object in scene if shape_object.motion in _WAYS]:
        chosen = pick(rng, some)
        questions.append((f"which way does {named(chosen)} move?", _WAYS[chosen.motion]))
    chosen = pick(rng, scene)
    questions.append((f"what does {named(chosen)} do?", MOTIONS[chosen.motion][0][0]))
    chosen = pick(rng, scene)
    questions.append((f"what pattern does {named(chosen)} have?", chosen.texture))
    if some := [shape_object for shape_object in scene if SIZES[shape_object.size]]:
        chosen = pick(rng, some)
        questions.append((f"is {named(chosen)} small or large?", chosen.size))
    return questions


def _choices(scene: Scene, split: str, rng: np.random.Generator) -> tuple[list[str], int]:
    """Returns full captions of the scene and of altered scenes, and the index of the true one.

    If all wrong captions were altered from the right one, it could be found without looking at the clip, as the one
    most similar to all others. Instead, captions are the nodes of a random tree, neighbors differ in one attribute,
    and each node is equally likely to be the right one.
    """
    neighbors: list[list[int]] = [[] for _ in range(_CHOICES)]
    for node in range(1, _CHOICES):
        other = int(rng.integers(node))
        neighbors[node].append(other)
        neighbors[other].append(node)
    answer = int(rng.integers(_CHOICES))
    scenes = {answer: scene}
    to_visit = [answer]
    for node in to_visit:
        for other in neighbors[node]:
            if other not in scenes:
                scenes[other] = _alter(scenes[node], scenes.values(), split, rng)
                to_visit.append(other)
    return [tell_everything(scenes[node], [], rng) for node in range(_CHOICES)], answer


def _alter(scene: Scene, taken: Collection[Scene], split: str, rng: np.random.Generator) -> Scene:
    """Changes one attribute of one object, giving a scene that the split could contain."""
    altered = []
    for i, shape_object in enumerate(scene):
        for name, values in _ATTRIBUTES.items():
            for value in values:
                other = (*scene[:i], dataclasses.replace(shape_object, **{name: value}), *scene[i + 1 :])
                if _is_possible(other, split) and sorted(other) not in [sorted(known) for known in taken]:
                    altered.append((name, other))
    # Each attribute is equally likely, however many values it has.
    name = pick(rng, sorted({name for name, _ in altered}))
    return pick(rng, [other for attribute, other in altered if attribute == name])


_ATTRIBUTES: dict[str, Collection[str]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "texture": TEXTURES,
    "size": SIZES,
    "motion": MOTIONS,
}


def _is_possible(scene: Scene, split: str) -> bool:
    """Returns whether a scene could have been drawn. Otherwise its caption alone would show that it is wrong."""
    pairs = [(shape_object.shape, shape_object.colour) for shape_object in scene]
    return (
        len(set(pairs)) == len(pairs)
        and any(pair in HELD_OUT_PAIRS for pair in pairs) == (split == "test_unseen")
        and all((thing.size == "medium") == (thing.motion in ("growing", "shrinking")) for thing in scene)
        and not any(thing.motion == "spinning" and thing.shape in ROUND_SHAPES for thing in scene)
    )


def _largest(scene: Scene) -> ShapeObject | None:
    """Returns the object of the largest size, or None if there are several."""
    radius = max(RADIUS[shape_object.size] for shape_object in scene)
    largest = [shape_object for shape_object in scene if RADIUS[shape_object.size] == radius]
    return largest[0] if len(largest) == 1 else None

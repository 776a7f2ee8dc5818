"""Captions of moving shapes. Every caption is true of its clip."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from .base import different_captions, pick
from .compositional import Wording, any_of
from .shapes_scenes import COLOURS, MOTIONS, RELATIONS, SHAPES, SIZES, TEXTURES, Scene, ShapeObject, Track

_OPENINGS = ("", "", "a video of ", "we see ")


def write_captions(scene: Scene, tracks: Sequence[Track], count: int, rng: np.random.Generator) -> list[str]:
    """Returns `count` different captions. The first one says everything, naming the objects in the scene's order."""
    writers = (tell_everything, _tell_motions, _tell_relation, _tell_some)
    return different_captions([partial(writer, scene, tracks, rng) for writer in writers], count)


def tell_everything(scene: Scene, tracks: Sequence[Track], rng: np.random.Generator) -> str:
    return _tell(scene, ("size", "texture"), rng)


def _tell_motions(scene: Scene, tracks: Sequence[Track], rng: np.random.Generator) -> str:
    """Describes shape, colour and motion of all objects."""
    return _tell([scene[i] for i in rng.permutation(len(scene))], (), rng)


def _tell_some(scene: Scene, tracks: Sequence[Track], rng: np.random.Generator) -> str:
    """Describes two of the objects, with their sizes or their textures."""
    chosen = [scene[i] for i in rng.permutation(len(scene))[:2]]
    return _tell(chosen, (pick(rng, ("size", "texture")),), rng)


def _tell_relation(scene: Scene, tracks: Sequence[Track], rng: np.random.Generator) -> str:
    """Describes where an object is relative to another one, if that is true for the whole clip."""
    relations = _true_relations(tracks)
    if not relations:
        return _tell_some(scene, tracks, rng)
    subject, relation, landmark = pick(rng, relations)
    first, second = (
        f"{_noun_phrase(scene[i], (), rng)} that {pick(rng, MOTIONS[scene[i].motion])[0]}" for i in (subject, landmark)
    )
    return f"{first} is {pick(rng, RELATIONS[relation])} {second}"


def _true_relations(tracks: Sequence[Track], clearance: float = 0.12) -> list[tuple[int, str, int]]:
    """Returns (a, relation, b) for every relation that holds in all frames by `clearance` of the side of the frame."""
    relations = []
    for a, first in enumerate(tracks):
        for b, second in enumerate(tracks):
            ahead = (second.center - first.center).min(axis=0)  # (2,): how far left of and above b a stays
            for axis, (relation, inverse) in enumerate((("left of", "right of"), ("above", "below"))):
                if ahead[axis] > clearance:
                    relations += [(a, relation, b), (b, inverse, a)]
    return relations


def _tell(objects: Sequence[ShapeObject], extras: tuple[str, ...], rng: np.random.Generator) -> str:
    opening = pick(rng, _OPENINGS)
    form = 1 if opening else 0  # "a star spins", but "we see a star spinning"
    clauses = [
        f"{_noun_phrase(shape_object, extras, rng)} {pick(rng, MOTIONS[shape_object.motion])[form]}"
        for shape_object in objects
    ]
    link = pick(rng, (" and ", " while ")) if form == 0 else " and "
    return opening + link.join(filter(None, (", ".join(clauses[:-1]), clauses[-1])))


def _noun_phrase(shape_object: ShapeObject, extras: tuple[str, ...], rng: np.random.Generator) -> str:
    words = []
    if "size" in extras and SIZES[shape_object.size]:
        words.append(pick(rng, SIZES[shape_object.size]))
    look = [pick(rng, COLOURS[shape_object.colour])]
    if "texture" in extras:
        look.append(pick(rng, TEXTURES[shape_object.texture]))
        if rng.random() < 0.5:
            look.reverse()
    phrase = " ".join([*words, *look, pick(rng, SHAPES[shape_object.shape])])
    return f"{_article(phrase)} {phrase}"


def _article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


# --- Full captions, to be read again -------------------------------------------------------------------------


def _phrases(shape_object: ShapeObject, aspect: str) -> Sequence[str]:
    if aspect == "motion":
        return [form for phrase in MOTIONS[shape_object.motion] for form in phrase]
    return COLOURS[shape_object.colour] if aspect == "colour" else TEXTURES[shape_object.texture]


def _clause(shape_object: ShapeObject) -> str:
    colour, texture, motion = (any_of(_phrases(shape_object, aspect)) for aspect in ("colour", "texture", "motion"))
    size = f"{any_of(SIZES[shape_object.size])} " if SIZES[shape_object.size] else ""
    look = f"(?:{colour} {texture}|{texture} {colour})"
    return f"an? {size}{look} {any_of(SHAPES[shape_object.shape])} {motion}"


SHAPES_WORDING = Wording(
    thing=ShapeObject,
    aspects={"colour": ("colour",), "texture": ("texture",), "motion": ("motion",)},
    phrases=_phrases,
    clause=_clause,
    opening="|".join(_OPENINGS),
    link=", | and | while ",
    article=_article,
)

"""Scenes of moving shapes: the vocabulary, which objects a clip shows, and where they are in every frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .base import pick

if TYPE_CHECKING:
    from .shapes import MovingShapesOptions


# --- Vocabulary: every value of an attribute with the words that captions use for it -------------------------

SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "heart": ("heart",),
    "crescent": ("crescent", "moon"),
}
COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "white": ("white",),
}
TEXTURES: dict[str, tuple[str, ...]] = {
    "plain": ("plain",),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered", "chequered"),
}
# A growing or shrinking object has no fixed size: it is "medium", which captions never say.
SIZES: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": (),
    "large": ("large", "big", "huge"),
}
# Each phrase as (third person, gerund).
MOTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "left": (
        ("moves left", "moving left"),
        ("drifts to the left", "drifting to the left"),
        ("slides leftwards", "sliding leftwards"),
    ),
    "right": (
        ("moves right", "moving right"),
        ("drifts to the right", "drifting to the right"),
        ("slides rightwards", "sliding rightwards"),
    ),
    "up": (("moves up", "moving up"), ("rises", "rising"), ("floats upwards", "floating upwards")),
    "down": (("moves down", "moving down"), ("sinks", "sinking"), ("falls down", "falling down")),
    "diagonal": (("moves diagonally", "moving diagonally"), ("glides diagonally", "gliding diagonally")),
    "circling": (("moves in a circle", "moving in a circle"), ("loops around", "looping around")),
    "bouncing": (("bounces", "bouncing"), ("hops up and down", "hopping up and down")),
    "growing": (("grows", "growing"), ("gets bigger", "getting bigger")),
    "shrinking": (("shrinks", "shrinking"), ("gets smaller", "getting smaller")),
    "spinning": (("spins", "spinning"), ("rotates", "rotating")),
    "still": (("stays still", "staying still"), ("rests in place", "resting in place")),
}
RELATIONS: dict[str, tuple[str, ...]] = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "higher than"),
    "below": ("below", "lower than"),
}

# The diagonal of the shape-colour table: every shape and every colour is seen in training, and each is part of
# exactly one unseen pair.
HELD_OUT_PAIRS = tuple(zip(SHAPES, COLOURS))
_SEEN_PAIRS = tuple((shape, colour) for shape in SHAPES for colour in COLOURS if (shape, colour) not in HELD_OUT_PAIRS)

# Spinning is invisible on these.
ROUND_SHAPES = ("circle", "ring")


# --- Scenes: what a clip shows -------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class ShapeObject:
    """One main object as captions describe it; each attribute is a key of the vocabulary above."""

    shape: str
    colour: str
    texture: str
    size: str
    motion: str


Scene = tuple[ShapeObject, ...]


def draw_scene(options: MovingShapesOptions, split: str, rng: np.random.Generator) -> Scene:
    """Draws objects, no two of which have both the same shape and the same colour."""
    count = options.draw("objects", rng)
    if split == "test_unseen":
        unseen = pick(rng, HELD_OUT_PAIRS)
        others = [pair for pair in (*_SEEN_PAIRS, *HELD_OUT_PAIRS) if pair != unseen]
        pairs = [unseen, *(others[i] for i in rng.choice(len(others), count - 1, replace=False))]
        pairs = [pairs[i] for i in rng.permutation(count)]
    else:
        pairs = [_SEEN_PAIRS[i] for i in rng.choice(len(_SEEN_PAIRS), count, replace=False)]
    return tuple(_draw_object(rng, shape, colour) for shape, colour in pairs)


def _draw_object(rng: np.random.Generator, shape: str, colour: str) -> ShapeObject:
    motions = [name for name in MOTIONS if not (name == "spinning" and shape in ROUND_SHAPES)]
    motion = pick(rng, motions)
    size = "medium" if motion in ("growing", "shrinking") else pick(rng, ("small", "large"))
    return ShapeObject(shape, colour, texture=pick(rng, list(TEXTURES)), size=size, motion=motion)


# --- Layout: where everything is in every frame --------------------------------------------------------------


@dataclass
class Track:
    """Where an object is in every frame. Lengths are fractions of the side of the frame; y points down."""

    center: np.ndarray  # (T, 2): x, y
    radius: np.ndarray  # (T,)
    angle: np.ndarray  # (T,) in radians


RADIUS = {"small": 0.105, "medium": 0.13, "large": 0.185}
REACH = 1.23  # no shape extends further from its center than this many radii
_MARGIN = 0.01  # between an object and the border of the frame
_CANDIDATES = 32  # places that are tried for each object


def lay_out(scene: Scene, frames: int, rng: np.random.Generator, scale: float = 1.0) -> list[Track]:
    """Finds tracks that stay in the frame and hide little of each other. `scale` multiplies their size."""
    time = (np.arange(frames) + 0.5) / frames
    best, best_gap = [], -math.inf
    for _ in range(4):
        tracks: list[Track] = []
        gap = math.inf
        for shape_object in scene:
            track, own_gap = _place(shape_object, tracks, time, scale, rng)
            tracks.append(track)
            gap = min(gap, own_gap)
        if gap > best_gap:
            best, best_gap = tracks, gap
        if best_gap > -0.02:
            break
    return best


def _place(
    shape_object: ShapeObject, others: Sequence[Track], time: np.ndarray, scale: float, rng: np.random.Generator
) -> tuple[Track, float]:
    """Returns the candidate that stays furthest from the other tracks, and its smallest gap to any of them."""
    radius, angle = _radius_and_angle(shape_object, time, rng)
    radius = radius * scale
    centers = _candidate_centers(shape_object.motion, float(radius.max()), time, rng)  # (K, T, 2)
    gaps = np.full(len(centers), 1.0)
    for other in others:
        distance = np.linalg.norm(centers - other.center, axis=-1)  # (K, T)
        gaps = np.minimum(gaps, (distance - radius - other.radius).min(axis=1))
    # Beyond a small gap all places are equally good: objects should not be pushed into the corners.
    chosen = int(np.argmax(np.minimum(gaps, 0.03)))
    return Track(centers[chosen], radius, angle), float(gaps[chosen])


def _radius_and_angle(
    shape_object: ShapeObject, time: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    radius = np.full(len(time), RADIUS[shape_object.size] * rng.uniform(0.94, 1.06))
    angle = np.full(len(time), rng.uniform(-0.2, 0.2))
    if shape_object.motion == "growing":
        radius = radius * (0.5 + time)
    elif shape_object.motion == "shrinking":
        radius = radius * (1.5 - time)
    elif shape_object.motion == "spinning":
        # About 0.6 turns: in four frames spread over the clip, 54 degrees apart, no shape (with symmetries of 72, 90,
        # 120 and 360 degrees) looks the same as in the frame before.
        angle = angle + rng.choice([-1.0, 1.0]) * 2 * np.pi * rng.uniform(0.57, 0.63) * time
    return radius, angle


def _candidate_centers(motion: str, radius: float, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws places for a motion, with the whole track within the frame: (K, T, 2)."""
    offsets = _motion_offsets(motion, time, rng)  # (K, T, 2), each around or from (0, 0)
    border = radius * REACH + _MARGIN
    least = border - offsets.min(axis=1)  # (K, 2): places whose track touches the left or upper border
    most = 1 - border - offsets.max(axis=1)
    start = least + rng.random(least.shape) * (most - least)
    return start[:, None] + offsets


def _motion_offsets(motion: str, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    offsets = np.zeros((_CANDIDATES, len(time), 2))
    if motion in ("left", "right", "up", "down"):
        axis = 0 if motion in ("left", "right") else 1
        sign = -1 if motion in ("left", "up") else 1
        offsets[..., axis] = sign * rng.uniform(0.34, 0.5, (_CANDIDATES, 1)) * time
    elif motion == "diagonal":
        signs = rng.choice([-1.0, 1.0], (_CANDIDATES, 1, 2))
        offsets[:] = signs * rng.uniform(0.32, 0.48, (_CANDIDATES, 1, 1)) * time[:, None]
    elif motion == "circling":
        turn = rng.choice([-1.0, 1.0], (_CANDIDATES, 1)) * 2 * np.pi * time + rng.uniform(
            0, 2 * np.pi, (_CANDIDATES, 1)
        )
        orbit = rng.uniform(0.12, 0.17, (_CANDIDATES, 1))
        offsets[..., 0], offsets[..., 1] = orbit * np.cos(turn), orbit * np.sin(turn)
    elif motion == "bouncing":
        # Two and a half bounces: evenly spread frames, however few, are not all at the same height.
        phase = 2.5 * np.pi * time + rng.uniform(0, 0.3, (_CANDIDATES, 1))
        offsets[..., 1] = -rng.uniform(0.2, 0.28, (_CANDIDATES, 1)) * np.abs(np.sin(phase))
    return offsets

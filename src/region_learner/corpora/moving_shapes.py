"""Moving shapes: the built-in corpus, small real videos that the package writes itself.

A clip shows a few main objects, each with a shape, a colour, a texture, a size and a motion of its own, over a
muted background with grey clutter. Several captions a clip say what the main objects look like and do; every
caption is true of its clip. Label maps of the main objects lie beside the videos.

- Scenes, splits and what is on disk: see `generated.py`.
- `HELD_OUT_PAIRS` of shape and colour occur in every clip of the split `test_unseen` and in no other split.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from . import generated
from .folder import CorpusError, Row, build_dataset, suggestion
from .generated import HORIZONTAL_FLIP as HORIZONTAL_FLIP
from .generated import Clip, GeneratedCorpus, GeneratedOptions, choose, different_captions, load_rows, make
from .generated import load_masks as load_masks

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test", "test_unseen")

# Part of `corpus.json` and of the cache directory's name; to be raised with every change of what is drawn or said.
FORMAT = 1

# --- Vocabulary: every attribute with the words that captions use for it -------------------------------------

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
# A growing or shrinking object has no size worth naming: it is "medium", which captions never say.
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

_RGB = {
    "red": (224, 45, 45),
    "orange": (250, 140, 30),
    "yellow": (250, 220, 50),
    "green": (60, 175, 75),
    "blue": (45, 100, 225),
    "purple": (135, 60, 190),
    "pink": (250, 130, 190),
    "white": (246, 246, 246),
}
# Turning these about their centre cannot be seen.
_ROUND_SHAPES = ("circle", "ring")


# --- Options -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MovingShapesOptions(GeneratedOptions):
    """What a corpus holds. Two corpora with equal options are equal.

    Ranges are given as (least, most), both included, or as one number, and drawn anew for every clip. More
    `objects` and `distractors` make retrieval harder to learn; so do fewer `train` clips.

    Raises:
        CorpusError: a value is out of its range.
    """

    splits: ClassVar = SPLITS

    train: int = 2000  # clips in the split; 0 leaves the split out
    val: int = 200
    test: int = 200
    test_unseen: int = 200
    seed: int = 0
    size: int = 96  # width and height in pixels; even, as H.264 with 4:2:0 colour needs it
    frames: int = 16
    fps: float = 8.0
    objects: tuple[int, int] = (2, 4)  # main objects a clip, 1 to 5
    distractors: tuple[int, int] = (2, 5)  # grey clutter that no caption mentions, 0 to 20
    captions: int = 4  # a clip, 1 to 10

    def __post_init__(self) -> None:
        self.check()
        self.check_range("objects", 1, 5)
        self.check_range("distractors", 0, 20)


# --- Scenes: what is in a clip -------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class ShapeObject:
    """One main object as captions describe it; each attribute is a key of the vocabulary above."""

    shape: str
    colour: str
    texture: str
    size: str
    motion: str


Scene = tuple[ShapeObject, ...]


def _draw_scene(options: MovingShapesOptions, split: str, rng: np.random.Generator) -> Scene:
    """Objects no two of which have both shape and colour in common."""
    count = options.draw("objects", rng)
    if split == "test_unseen":
        unseen = choose(rng, HELD_OUT_PAIRS)
        others = [pair for pair in (*_SEEN_PAIRS, *HELD_OUT_PAIRS) if pair != unseen]
        pairs = [unseen, *(others[i] for i in rng.choice(len(others), count - 1, replace=False))]
        pairs = [pairs[i] for i in rng.permutation(count)]
    else:
        pairs = [_SEEN_PAIRS[i] for i in rng.choice(len(_SEEN_PAIRS), count, replace=False)]
    return tuple(_draw_object(rng, shape, colour) for shape, colour in pairs)


def _draw_object(rng: np.random.Generator, shape: str, colour: str) -> ShapeObject:
    motions = [name for name in MOTIONS if not (name == "spinning" and shape in _ROUND_SHAPES)]
    motion = choose(rng, motions)
    size = "medium" if motion in ("growing", "shrinking") else choose(rng, ("small", "large"))
    return ShapeObject(shape, colour, texture=choose(rng, list(TEXTURES)), size=size, motion=motion)


def plan_scenes(options: MovingShapesOptions, split: str) -> list[Scene]:
    """The scenes of a split, all different, objects in the order in which the first caption names them.

    Raises:
        CorpusError: there are not that many different scenes.
    """
    return generated.plan_scenes(_CORPUS, options, split)


# --- Layout: where everything is in every frame --------------------------------------------------------------


@dataclass
class Track:
    """Where an object is. Lengths are fractions of the frame's side, y points down."""

    centre: np.ndarray  # (T, 2): x, y
    radius: np.ndarray  # (T,)
    angle: np.ndarray  # (T,) in radians


_RADIUS = {"small": 0.105, "medium": 0.13, "large": 0.185}
_REACH = 1.23  # no shape goes further from its centre than this many radii
_MARGIN = 0.01  # between an object and the frame's border
_CANDIDATES = 32  # places tried for each object


def _lay_out(scene: Scene, frames: int, rng: np.random.Generator) -> list[Track]:
    """Tracks that stay in the frame and hide as little of each other as can be found."""
    time = (np.arange(frames) + 0.5) / frames
    best, best_gap = [], -math.inf
    for _ in range(4):
        tracks: list[Track] = []
        gap = math.inf
        for shape_object in scene:
            track, own_gap = _place(shape_object, tracks, time, rng)
            tracks.append(track)
            gap = min(gap, own_gap)
        if gap > best_gap:
            best, best_gap = tracks, gap
        if best_gap > -0.02:
            break
    return best


def _place(
    shape_object: ShapeObject, others: Sequence[Track], time: np.ndarray, rng: np.random.Generator
) -> tuple[Track, float]:
    """The candidate that keeps furthest from the tracks already there, and its smallest gap to any of them."""
    radius, angle = _radius_and_angle(shape_object, time, rng)
    centres = _candidate_centres(shape_object.motion, float(radius.max()), time, rng)  # (K, T, 2)
    gaps = np.full(len(centres), 1.0)
    for other in others:
        distance = np.linalg.norm(centres - other.centre, axis=-1)  # (K, T)
        gaps = np.minimum(gaps, (distance - radius - other.radius).min(axis=1))
    # Beyond a small gap any place is as good as another: objects should not be pushed into the corners.
    chosen = int(np.argmax(np.minimum(gaps, 0.03)))
    return Track(centres[chosen], radius, angle), float(gaps[chosen])


def _radius_and_angle(
    shape_object: ShapeObject, time: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    radius = np.full(len(time), _RADIUS[shape_object.size] * rng.uniform(0.94, 1.06))
    angle = np.full(len(time), rng.uniform(-0.2, 0.2))
    if shape_object.motion == "growing":
        radius = radius * (0.5 + time)
    elif shape_object.motion == "shrinking":
        radius = radius * (1.5 - time)
    elif shape_object.motion == "spinning":
        # About 0.6 turns: four frames spread over the clip are 54 degrees apart, at which no shape here (with
        # symmetries of 72, 90, 120 and 360 degrees) looks as it did in the frame before.
        angle = angle + rng.choice([-1.0, 1.0]) * 2 * np.pi * rng.uniform(0.57, 0.63) * time
    return radius, angle


def _candidate_centres(motion: str, radius: float, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random places for a motion, the whole track within the frame: (K, T, 2)."""
    offsets = _motion_offsets(motion, time, rng)  # (K, T, 2), each around or from (0, 0)
    border = radius * _REACH + _MARGIN
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
        # Two and a half bounces: evenly spread frames, however few, do not all fall on the same height.
        phase = 2.5 * np.pi * time + rng.uniform(0, 0.3, (_CANDIDATES, 1))
        offsets[..., 1] = -rng.uniform(0.2, 0.28, (_CANDIDATES, 1)) * np.abs(np.sin(phase))
    return offsets


# --- Captions ------------------------------------------------------------------------------------------------


def _write_captions(scene: Scene, tracks: Sequence[Track], count: int, rng: np.random.Generator) -> list[str]:
    """`count` different captions. The first one tells everything and names the objects in the scene's order."""
    writers = (_tell_everything, _tell_motions, _tell_relation, _tell_some)
    return different_captions([partial(writer, scene, tracks, rng) for writer in writers], count)


def _tell_everything(scene: Scene, tracks: Sequence[Track], rng: np.random.Generator) -> str:
    return _tell(scene, ("size", "texture"), rng)


def _tell_motions(scene: Scene, tracks: Sequence[Track], rng: np.random.Generator) -> str:
    """Shape, colour and motion of all objects."""
    return _tell([scene[i] for i in rng.permutation(len(scene))], (), rng)


def _tell_some(scene: Scene, tracks: Sequence[Track], rng: np.random.Generator) -> str:
    """Two of the objects, with their sizes or their textures."""
    chosen = [scene[i] for i in rng.permutation(len(scene))[:2]]
    return _tell(chosen, (choose(rng, ("size", "texture")),), rng)


def _tell_relation(scene: Scene, tracks: Sequence[Track], rng: np.random.Generator) -> str:
    """Where an object is relative to another one, if that stays so for the whole clip."""
    relations = _true_relations(tracks)
    if not relations:
        return _tell_some(scene, tracks, rng)
    subject, relation, landmark = choose(rng, relations)
    first, second = (
        f"{_noun_phrase(scene[i], (), rng)} that {choose(rng, MOTIONS[scene[i].motion])[0]}"
        for i in (subject, landmark)
    )
    return f"{first} is {choose(rng, RELATIONS[relation])} {second}"


def _true_relations(tracks: Sequence[Track], clearance: float = 0.12) -> list[tuple[int, str, int]]:
    """(a, relation, b) for every relation that holds in all frames by at least `clearance` of the frame's side."""
    relations = []
    for a, first in enumerate(tracks):
        for b, second in enumerate(tracks):
            ahead = (second.centre - first.centre).min(axis=0)  # (2,): how far left of and above b a stays
            for axis, (relation, inverse) in enumerate((("left of", "right of"), ("above", "below"))):
                if ahead[axis] > clearance:
                    relations += [(a, relation, b), (b, inverse, a)]
    return relations


def _tell(objects: Sequence[ShapeObject], extras: tuple[str, ...], rng: np.random.Generator) -> str:
    opening = choose(rng, ("", "", "a video of ", "we see "))
    form = 1 if opening else 0  # "a star spins", but "we see a star spinning"
    clauses = [
        f"{_noun_phrase(shape_object, extras, rng)} {choose(rng, MOTIONS[shape_object.motion])[form]}"
        for shape_object in objects
    ]
    link = choose(rng, (" and ", " while ")) if form == 0 else " and "
    return opening + link.join(filter(None, (", ".join(clauses[:-1]), clauses[-1])))


def _noun_phrase(shape_object: ShapeObject, extras: tuple[str, ...], rng: np.random.Generator) -> str:
    words = []
    if "size" in extras and SIZES[shape_object.size]:
        words.append(choose(rng, SIZES[shape_object.size]))
    look = [choose(rng, COLOURS[shape_object.colour])]
    if "texture" in extras:
        look.append(choose(rng, TEXTURES[shape_object.texture]))
        if rng.random() < 0.5:
            look.reverse()
    phrase = " ".join([*words, *look, choose(rng, SHAPES[shape_object.shape])])
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


# --- Drawing -------------------------------------------------------------------------------------------------


@dataclass
class _Paint:
    """How an object is filled: its colour, and a second one (both (3,), 0 to 255) for texture and outline."""

    texture: str
    colour: np.ndarray
    second: np.ndarray


def _draw(
    scene: Scene, tracks: Sequence[Track], options: MovingShapesOptions, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W, 3) and label maps (T, H, W), both uint8; label n is the n-th object of the scene."""
    canvas = _background(options, rng)
    masks = np.zeros(canvas.shape[:3], dtype=np.uint8)
    for _ in range(options.draw("distractors", rng)):
        shape, track, paint = _distractor(options.frames, rng)
        _paint_shape(canvas, shape, track, paint)
    # Large objects first, so that small ones pass in front of them.
    for i in sorted(range(len(scene)), key=lambda i: -float(tracks[i].radius.mean())):
        paint = _object_paint(scene[i], rng)
        _paint_shape(canvas, scene[i].shape, tracks[i], paint, masks, label=i + 1)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8), masks


def _object_paint(shape_object: ShapeObject, rng: np.random.Generator) -> _Paint:
    colour = np.clip(np.array(_RGB[shape_object.colour]) + rng.uniform(-7, 7, 3), 0, 255)
    return _Paint(shape_object.texture, colour, colour * 0.32)


def _distractor(frames: int, rng: np.random.Generator) -> tuple[str, Track, _Paint]:
    """A small grey shape that rests or drifts slowly."""
    time = (np.arange(frames) + 0.5)[:, None] / frames
    start, end = rng.uniform(0.06, 0.94, (2, 2))
    centre = start + (end - start) * time * rng.choice([0.0, 0.3])
    track = Track(centre, np.full(frames, rng.uniform(0.03, 0.05)), np.full(frames, rng.uniform(0, 2 * np.pi)))
    grey = np.full(3, rng.uniform(70, 190))
    return choose(rng, list(SHAPES)), track, _Paint("plain", grey, grey)


def _paint_shape(
    canvas: np.ndarray, shape: str, track: Track, paint: _Paint, masks: np.ndarray | None = None, label: int = 0
) -> None:
    """Draws a shape with soft edges and a dark outline into `canvas`, and its `label` into `masks`.

    Only a window around the shape is computed, the same size in all frames: (T, k, k).
    """
    frames, size = canvas.shape[:2]
    radius = track.radius * size
    k = min(size, 2 * math.ceil(float(radius.max()) * _REACH) + 3)
    corner = np.clip(np.rint(track.centre * size).astype(int) - k // 2, 0, size - k)  # (T, 2)
    columns = corner[:, 0, None] + np.arange(k)  # (T, k)
    rows = corner[:, 1, None] + np.arange(k)

    x = ((columns + 0.5 - track.centre[:, 0, None] * size) / radius[:, None])[:, None, :]
    y = ((rows + 0.5 - track.centre[:, 1, None] * size) / radius[:, None])[:, :, None]
    cos, sin = np.cos(track.angle)[:, None, None], np.sin(track.angle)[:, None, None]
    # In the shape's own frame, in radii: (T, k, k). Single precision is plenty for pixels and twice as fast.
    u, v = (x * cos + y * sin).astype(np.float32), (y * cos - x * sin).astype(np.float32)

    scale = radius[:, None, None].astype(np.float32)
    inside = -_signed_distance(shape, u, v) * scale  # pixels to the edge
    coverage = np.clip(inside + 0.5, 0, 1)
    within_outline = np.clip(inside - 0.6, 0, 1)
    share = _texture_share(paint.texture, u, v, scale)
    # How much of each pixel is of the first colour, of the second, and of the background behind.
    first = coverage * within_outline * share
    second = coverage - first
    behind = 1 - coverage

    window = np.arange(frames)[:, None, None], rows[:, :, None], columns[:, None, :]
    for channel in range(3):
        plane = canvas[..., channel]
        plane[window] = plane[window] * behind + first * paint.colour[channel] + second * paint.second[channel]
    if masks is not None:
        masks[window] = np.where(coverage > 0.5, label, masks[window])


def _signed_distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance to the outline in radii, negative inside; exact near the outline, which is all that is drawn."""
    match shape:
        case "circle":
            return np.hypot(u, v) - 0.95
        case "ring":
            return np.abs(np.hypot(u, v) - 0.72) - 0.27
        case "square":
            return _box(u, v, 0.85, 0.85)
        case "triangle":
            return _half_planes(u, v, directions=(90, 210, 330), distance=0.6)
        case "star":
            return _star(u, v)
        case "cross":
            return np.minimum(_box(u, v, 1.0, 0.34), _box(u, v, 0.34, 1.0))
        case "heart":
            # A square on its corner, and on each of its upper sides a disc as wide as the side.
            half = 0.41
            u, v = np.abs(u), v - 0.25
            lobes = np.hypot(u - half, v + half) - half * math.sqrt(2)
            return np.minimum(lobes, _half_planes(u, v, directions=(45, -45), distance=half * math.sqrt(2)))
        case "crescent":
            u = u - 0.35
            return np.maximum(np.hypot(u, v) - 0.95, 0.74 - np.hypot(u - 0.475, v))
    raise ValueError(f"no shape {shape!r}")


def _box(u: np.ndarray, v: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


def _half_planes(u: np.ndarray, v: np.ndarray, directions: Sequence[float], distance: float) -> np.ndarray:
    """The convex shape with one side at `distance` from the centre in each direction (degrees, 90 is down)."""
    sides = [u * math.cos(math.radians(d)) + v * math.sin(math.radians(d)) - distance for d in directions]
    return np.maximum.reduce(sides)


def _star(u: np.ndarray, v: np.ndarray, tip: float = 1.12, dent: float = 0.5) -> np.ndarray:
    """A five-pointed star, one tip up: folded into the tenth between a tip and a dent, it has a single edge."""
    fold = 2 * np.pi / 5
    turned = np.abs((np.arctan2(u, -v) + fold / 2) % fold - fold / 2)
    distance = np.hypot(u, v)
    along, across = distance * np.cos(turned), distance * np.sin(turned)
    edge = np.array([dent * math.cos(fold / 2) - tip, dent * math.sin(fold / 2)])
    edge /= np.linalg.norm(edge)
    return (along - tip) * edge[1] - across * edge[0]


def _texture_share(texture: str, u: np.ndarray, v: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Share of the first colour, 0 to 1. The pattern turns and grows with its object; edges are a pixel soft."""
    match texture:
        case "plain":
            return np.ones_like(u)
        case "striped":
            wave, period = np.sin(2 * np.pi * (u + v) / 0.78), 0.78 / math.sqrt(2)
        case "checkered":
            period = 0.92
            wave = np.sin(2 * np.pi * u / period) * np.sin(2 * np.pi * v / period) * 1.5
        case "dotted":
            period = 0.66
            du, dv = ((w + period / 2) % period - period / 2 for w in (u, v))
            return np.clip((np.hypot(du, dv) - 0.2) * scale + 0.5, 0, 1)
        case _:
            raise ValueError(f"no texture {texture!r}")
    return np.clip(wave * scale * period / (2 * np.pi) + 0.5, 0, 1)


def _background(options: MovingShapesOptions, rng: np.random.Generator) -> np.ndarray:
    """A muted background, (T, H, W, 3) float32, of one of four kinds."""
    first, second = _muted_colour(rng), _muted_colour(rng)
    kind = choose(rng, (_gradient, _noise, _tiles, _blobs))
    share = kind(options.frames, options.size, rng)[..., None]  # (T or 1, H, W, 1)
    picture = (first * share + second * (1 - share)).astype(np.float32)
    return np.repeat(picture, options.frames, axis=0) if len(picture) == 1 else picture


def _muted_colour(rng: np.random.Generator) -> np.ndarray:
    """A colour, (3,), far less saturated and darker than any object's."""
    hue = rng.uniform(0, 2 * np.pi)
    tint = 0.5 + 0.5 * np.cos(hue + np.array([0, 2, 4]) * np.pi / 3)
    return rng.uniform(85, 175) * (1 - rng.uniform(0.05, 0.3) * tint)


def _grid(size: int) -> np.ndarray:
    return (np.arange(size) + 0.5) / size


def _gradient(frames: int, size: int, rng: np.random.Generator) -> np.ndarray:
    direction = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(direction) * (_grid(size) - 0.5) + np.sin(direction) * (_grid(size)[:, None] - 0.5)
    return np.clip(0.5 + ramp, 0, 1)[None]


def _noise(frames: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Clouds: random grids of three finenesses, smoothly enlarged."""
    share = np.zeros((size, size))
    for cells, weight in ((3, 0.5), (6, 0.3), (14, 0.2)):
        grid = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        share += weight * np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))
    return np.clip(1.6 * share - 0.3, 0, 1)[None]


def _tiles(frames: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """A board of tiles, each a little different."""
    tile = rng.uniform(0.12, 0.3)
    column, row = (np.floor((_grid(size) + rng.uniform(0, tile)) / tile).astype(int) for _ in range(2))
    board = (column[None, :] + row[:, None]) % 2 * 0.7
    tones = rng.uniform(0, 0.3, (row.max() + 1, column.max() + 1))
    return (board + tones[row[:, None], column[None, :]])[None]


def _blobs(frames: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Soft blobs that drift slowly."""
    time = (np.arange(frames) / frames)[:, None]
    share = np.zeros((frames, size, size))
    for _ in range(5):
        start, velocity = rng.uniform(0, 1, 2), rng.uniform(-0.3, 0.3, 2)
        x, y = (np.exp(-0.5 * ((_grid(size) - start[axis] - velocity[axis] * time) / 0.16) ** 2) for axis in (0, 1))
        share += x[:, None, :] * y[:, :, None]
    return np.clip(share, 0, 1)


# --- Making --------------------------------------------------------------------------------------------------


def _make_clip(scene: Scene, options: MovingShapesOptions, rng: np.random.Generator) -> Clip:
    tracks = _lay_out(scene, options.frames, rng)
    captions = _write_captions(scene, tracks, options.captions, rng)
    return Clip(captions, *_draw(scene, tracks, options, rng))


_CORPUS = GeneratedCorpus(
    "moving_shapes",
    FORMAT,
    MovingShapesOptions,
    "objects",
    _draw_scene,
    _make_clip,
    info={"held_out_pairs": [list(pair) for pair in HELD_OUT_PAIRS]},
)


def make_moving_shapes(
    output_dir: str | os.PathLike[str],
    *,
    workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Writes the corpus and returns its directory.

    Args:
        workers, progress, overwrite: see `generated.make`.
        options: see `MovingShapesOptions`.

    Raises:
        CorpusError: unknown or impossible options; the directory holds something else.
    """
    return make(_CORPUS, output_dir, options, workers=workers, progress=progress, overwrite=overwrite)


# --- Tasks: questions, choices and actions of clips that are already written -----------------------------------

TASKS = ("retrieval", "question_answering", "multiple_choice", "action_recognition")

# Class names of action recognition.
ACTIONS = tuple(phrases[0][0] for phrases in MOTIONS.values())

_CHOICES = 5
_NUMBERS = ("no", "one", "two", "three", "four", "five")
_WAYS = {"left": "left", "right": "right", "up": "up", "down": "down", "diagonal": "diagonally"}


def _rows_of_task(rows: Sequence[Row], task: str, split: str) -> tuple[list[Row], dict[str, Any]]:
    """What a task makes of the rows of clips, and the types of its columns.

    All is drawn from the stored descriptions of a clip alone: the same clip gives the same rows in every corpus.

    Raises:
        CorpusError: there is nothing for this task.
    """
    from datasets import ClassLabel, List, Value

    new_rows: list[Row] = []
    for row in rows:
        scene = tuple(ShapeObject(**attributes) for attributes in row["objects"])
        seed = json.dumps([task, row["video_id"], row["objects"]])
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big"))
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
            "%d of %d clips left out: none of their objects is the largest", len(rows) - len(new_rows), len(rows)
        )
    features: dict[str, Any] = {}
    if task == "question_answering":
        features["captions"] = List(Value("string"))  # all empty
    elif task == "action_recognition":
        features["label"] = ClassLabel(names=list(ACTIONS))
    return new_rows, features


def _ask(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """A question of each kind that the clip answers in one way only, with its answer.

    Shapes are asked for by colours, and colours by shapes, that only one object has; shape and colour together are
    of one object in every scene.
    """

    def alone(name: str) -> list[ShapeObject]:
        values = [getattr(shape_object, name) for shape_object in scene]
        return [shape_object for shape_object, value in zip(scene, values) if values.count(value) == 1]

    def named(shape_object: ShapeObject) -> str:
        return f"the {shape_object.colour} {shape_object.shape}"

    # Clutter is grey, so that it does not count.
    questions = [("how many objects are not gray?", _NUMBERS[len(scene)])]
    if some := alone("shape"):
        chosen = choose(rng, some)
        questions.append((f"what color is the {chosen.shape}?", chosen.colour))
    if some := alone("colour"):
        chosen = choose(rng, some)
        questions.append((f"what shape is {chosen.colour}?", chosen.shape))
    if some := [shape_object for shape_object in scene if shape_object.motion in _WAYS]:
        chosen = choose(rng, some)
        questions.append((f"which way does {named(chosen)} move?", _WAYS[chosen.motion]))
    chosen = choose(rng, scene)
    questions.append((f"what does {named(chosen)} do?", MOTIONS[chosen.motion][0][0]))
    chosen = choose(rng, scene)
    questions.append((f"what pattern does {named(chosen)} have?", chosen.texture))
    if some := [shape_object for shape_object in scene if SIZES[shape_object.size]]:
        chosen = choose(rng, some)
        questions.append((f"is {named(chosen)} small or large?", chosen.size))
    return questions


def _choices(scene: Scene, split: str, rng: np.random.Generator) -> tuple[list[str], int]:
    """Captions that tell everything, one of the scene and the others of altered scenes; and the index of the true one.

    Were all wrong ones altered from the right one, it could be found without looking at the clip: it would be the
    one that is most like all others. So captions are the nodes of a random tree, neighbours differ in one attribute,
    and any node is as likely as another to be the right one.
    """
    neighbours: list[list[int]] = [[] for _ in range(_CHOICES)]
    for node in range(1, _CHOICES):
        other = int(rng.integers(node))
        neighbours[node].append(other)
        neighbours[other].append(node)
    answer = int(rng.integers(_CHOICES))
    scenes = {answer: scene}
    to_visit = [answer]
    for node in to_visit:
        for other in neighbours[node]:
            if other not in scenes:
                scenes[other] = _alter(scenes[node], scenes.values(), split, rng)
                to_visit.append(other)
    return [_tell_everything(scenes[node], [], rng) for node in range(_CHOICES)], answer


def _alter(scene: Scene, taken: Collection[Scene], split: str, rng: np.random.Generator) -> Scene:
    """The scene with another value of one attribute of one object, such as the split could have."""
    altered = []
    for i, shape_object in enumerate(scene):
        for name, values in _ATTRIBUTES.items():
            for value in values:
                other = (*scene[:i], dataclasses.replace(shape_object, **{name: value}), *scene[i + 1 :])
                if _is_possible(other, split) and sorted(other) not in [sorted(known) for known in taken]:
                    altered.append((name, other))
    # Attributes alike, however many values they have.
    name = choose(rng, sorted({name for name, _ in altered}))
    return choose(rng, [other for attribute, other in altered if attribute == name])


_ATTRIBUTES: dict[str, Collection[str]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "texture": TEXTURES,
    "size": SIZES,
    "motion": MOTIONS,
}


def _is_possible(scene: Scene, split: str) -> bool:
    """Whether a scene could have been drawn: else its caption alone would give it away as wrong."""
    pairs = [(shape_object.shape, shape_object.colour) for shape_object in scene]
    return (
        len(set(pairs)) == len(pairs)
        and any(pair in HELD_OUT_PAIRS for pair in pairs) == (split == "test_unseen")
        and all((thing.size == "medium") == (thing.motion in ("growing", "shrinking")) for thing in scene)
        and not any(thing.motion == "spinning" and thing.shape in _ROUND_SHAPES for thing in scene)
    )


def _largest(scene: Scene) -> ShapeObject | None:
    """The one object of the largest size; None if there are several."""
    radius = max(_RADIUS[shape_object.size] for shape_object in scene)
    largest = [shape_object for shape_object in scene if _RADIUS[shape_object.size] == radius]
    return largest[0] if len(largest) == 1 else None


# --- Loading -------------------------------------------------------------------------------------------------


def load_moving_shapes(
    data_dir: str | os.PathLike[str] | None,
    split: str,
    streaming: bool,
    *,
    task: str = "retrieval",
    workers: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Dataset | IterableDataset:
    """Built in, made on first use: MP4 clips of moving shapes, true captions, object masks, unseen combinations.

    Columns beside the common ones: `objects`, a list of {shape, colour, texture, size, motion}, and `masks`, the
    path of the label maps (see `load_masks`).

    Args:
        data_dir: a directory written by `make_moving_shapes`. Without one the corpus is made on first use in the
            cache directory `$HF_HOME/region_learner`.
        split: "train", "val", "test" or "test_unseen".
        task: "retrieval"; or, from the same clips, "question_answering" (columns `question` and `answer`, both str;
            one row a question, several a clip; no captions), "multiple_choice" (`options`, five captions that differ
            in single attributes, and `answer`, the index of the only true one), "action_recognition" (`label`: how
            the largest object moves; clips in which no object is the largest are left out: `objects=1` keeps all).
        workers, progress: see `generated.make`.
        options: see `MovingShapesOptions`. With `data_dir` they must be those the corpus was made with.

    Raises:
        CorpusError: unknown option or split; `data_dir` holds no whole corpus, or one with other options.
    """
    if task not in TASKS:
        raise CorpusError(
            f"unknown task {task!r} of moving_shapes{suggestion(task, TASKS)} (tasks: {', '.join(TASKS)})"
        )
    rows = load_rows(_CORPUS, data_dir, split, options, workers=workers, progress=progress, also=["task"])
    rows, features = _rows_of_task(rows, task, split)
    return build_dataset(rows, streaming, _CORPUS.description, features)

"""Frames and label maps of moving shapes: objects with textures, gray clutter and a muted background."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .base import pick
from .shapes_scenes import REACH, SHAPES, Scene, ShapeObject, Track

if TYPE_CHECKING:
    from .shapes import MovingShapesOptions


_RGB = {
    "red": (224, 45, 45), "orange": (250, 140, 30), "yellow": (250, 220, 50), "green": (60, 175, 75),
    "blue": (45, 100, 225), "purple": (135, 60, 190), "pink": (250, 130, 190), "white": (246, 246, 246),
}  # fmt: skip


@dataclass
class _Paint:
    """How an object is filled: its colour, and a second one (both (3,), 0 to 255) for texture and outline."""

    texture: str
    colour: np.ndarray
    second: np.ndarray


def draw(
    scene: Scene, tracks: Sequence[Track], options: MovingShapesOptions, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns frames (T, H, W, 3) and label maps (T, H, W), both uint8; label n is the n-th object of the scene."""
    canvas = _background(options, rng)
    masks = np.zeros(canvas.shape[:3], dtype=np.uint8)
    for _ in range(options.draw("distractors", rng)):
        shape, track, paint = _distractor(options, rng)
        _paint_shape(canvas, shape, track, paint)
    # Large objects first, so that small ones pass in front of them.
    for i in sorted(range(len(scene)), key=lambda i: -float(tracks[i].radius.mean())):
        paint = _object_paint(scene[i], rng)
        _paint_shape(canvas, scene[i].shape, tracks[i], paint, masks, label=i + 1)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8), masks


def _object_paint(shape_object: ShapeObject, rng: np.random.Generator) -> _Paint:
    colour = np.clip(np.array(_RGB[shape_object.colour]) + rng.uniform(-7, 7, 3), 0, 255)
    return _Paint(shape_object.texture, colour, colour * 0.32)


def _distractor(options: MovingShapesOptions, rng: np.random.Generator) -> tuple[str, Track, _Paint]:
    """Draws a small gray shape that rests or drifts slowly."""
    time = (np.arange(options.frames) + 0.5)[:, None] / options.frames
    start, end = rng.uniform(0.06, 0.94, (2, 2))
    center = start + (end - start) * time * rng.choice([0.0, 0.3])
    radius, angle = options.scale * rng.uniform(0.03, 0.05), rng.uniform(0, 2 * np.pi)
    track = Track(center, np.full(options.frames, radius), np.full(options.frames, angle))
    gray = np.full(3, rng.uniform(70, 190))
    return pick(rng, list(SHAPES)), track, _Paint("plain", gray, gray)


def _paint_shape(
    canvas: np.ndarray, shape: str, track: Track, paint: _Paint, masks: np.ndarray | None = None, label: int = 0
) -> None:
    """Paints a shape with soft edges and a dark outline into `canvas`, and its `label` into `masks`.

    Only a window around the shape is computed, of the same size in all frames: (T, k, k).
    """
    frames, size = canvas.shape[:2]
    radius = track.radius * size
    k = min(size, 2 * math.ceil(float(radius.max()) * REACH) + 3)
    corner = np.clip(np.rint(track.center * size).astype(int) - k // 2, 0, size - k)  # (T, 2)
    columns = corner[:, 0, None] + np.arange(k)  # (T, k)
    rows = corner[:, 1, None] + np.arange(k)

    x = ((columns + 0.5 - track.center[:, 0, None] * size) / radius[:, None])[:, None, :]
    y = ((rows + 0.5 - track.center[:, 1, None] * size) / radius[:, None])[:, :, None]
    cos, sin = np.cos(track.angle)[:, None, None], np.sin(track.angle)[:, None, None]
    # Coordinates of the shape itself, in radii: (T, k, k). Single precision is twice as fast.
    u, v = (x * cos + y * sin).astype(np.float32), (y * cos - x * sin).astype(np.float32)

    scale = radius[:, None, None].astype(np.float32)
    inside = -_signed_distance(shape, u, v) * scale  # pixels to the edge
    coverage = np.clip(inside + 0.5, 0, 1)
    within_outline = np.clip(inside - 0.6, 0, 1)
    share = _texture_share(paint.texture, u, v, scale)
    # Shares of the first colour, of the second, and of the background in each pixel.
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
    """Returns the distance to the outline in radii, negative inside. It is exact near the outline."""
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
            # A square on its corner, with a disc as wide as a side on each of its upper sides.
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
    """Returns the distance to a convex shape, with one side `distance` from the center per direction (90 is down)."""
    sides = [u * math.cos(math.radians(d)) + v * math.sin(math.radians(d)) - distance for d in directions]
    return np.maximum.reduce(sides)


def _star(u: np.ndarray, v: np.ndarray, tip: float = 1.12, dent: float = 0.5) -> np.ndarray:
    """Returns the distance to a five-pointed star with one tip up, computed in the tenth between a tip and a dent."""
    fold = 2 * np.pi / 5
    turned = np.abs((np.arctan2(u, -v) + fold / 2) % fold - fold / 2)
    distance = np.hypot(u, v)
    along, across = distance * np.cos(turned), distance * np.sin(turned)
    edge = np.array([dent * math.cos(fold / 2) - tip, dent * math.sin(fold / 2)])
    edge /= np.linalg.norm(edge)
    return (along - tip) * edge[1] - across * edge[0]


def _texture_share(texture: str, u: np.ndarray, v: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Returns the share of the first colour, 0 to 1. The pattern turns and grows with its object."""
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
    """Returns a muted background of one of four kinds, (T, H, W, 3) float32."""
    first, second = _muted_colour(rng), _muted_colour(rng)
    kind = pick(rng, (_gradient, _noise, _tiles, _blobs))
    share = kind(options.frames, options.size, rng)[..., None]  # (T or 1, H, W, 1)
    picture = (first * share + second * (1 - share)).astype(np.float32)
    return np.repeat(picture, options.frames, axis=0) if len(picture) == 1 else picture


def _muted_colour(rng: np.random.Generator) -> np.ndarray:
    """Returns a colour, (3,), that is much darker and less saturated than those of objects."""
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
    """Clouds: random grids of three resolutions, smoothly enlarged."""
    share = np.zeros((size, size))
    for cells, weight in ((3, 0.5), (6, 0.3), (14, 0.2)):
        grid = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        share += weight * np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))
    return np.clip(1.6 * share - 0.3, 0, 1)[None]


def _tiles(frames: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a board of tiles, each slightly different."""
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

"""Drifting letters: a second synthetic corpus, which looks and reads differently from moving shapes.

A clip shows a few letters and digits of a real font, each with its own colour, over a textured background that a
camera pans over and zooms into. Letters stay in their place or travel, or something happens to them at some moment:
they appear, disappear, blink, turn into another letter or change their colour. Faint gray pieces of letters lie around
them. Captions are true lists of what is visible. The label maps of the letters lie beside the videos.

A result on moving shapes can be checked here, because the two corpora have little in common: there, objects differ in
shape and texture and never change, captions are sentences, nearly everything that moves is an object, and objects
hardly overlap.

Scenes, splits and files on disk: see `base.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..base import PathLike, build_dataset
from .base import (
    Clip,
    SyntheticCorpus,
    SyntheticOptions,
    check_task,
    different_captions,
    load_synthetic_rows,
    pick,
)
from .compositional import Wording, add_negative_captions, any_of, compositional_rows

if TYPE_CHECKING:
    from datasets import Dataset


# Part of `corpus.json` and of the cache directory's name; increase it whenever drawings or captions change.
FORMAT = 1

TASKS = ("retrieval", "compositional")

# --- Vocabulary ----------------------------------------------------------------------------------------------

# Glyphs that differ even at a dozen pixels, with the words for each. There is no A, as text encoders that lower-case
# their input cannot tell it from the article.
GLYPHS: dict[str, tuple[str, ...]] = {
    **{letter: (letter,) for letter in "CEHJKLMRTUVW"},
    **{"2": ("2", "two"), "3": ("3", "three"), "4": ("4", "four"), "7": ("7", "seven")},
}
COLOURS = {
    "red": (222, 30, 38), "orange": (252, 140, 20), "yellow": (250, 232, 50), "green": (40, 185, 70),
    "blue": (40, 90, 235), "pink": (250, 120, 215), "white": (248, 248, 248), "black": (16, 16, 18),
}  # fmt: skip
# Each phrase as (third person, gerund); {} is what a letter turns into.
EVENTS: dict[str, tuple[tuple[str, str], ...]] = {
    "stays": (("stays put", "staying put"), ("keeps its place", "keeping its place")),
    "left": (("goes left", "going left"), ("travels to the left", "travelling to the left")),
    "right": (("goes right", "going right"), ("travels to the right", "travelling to the right")),
    "up": (("goes up", "going up"), ("climbs", "climbing")),
    "down": (("goes down", "going down"), ("descends", "descending")),
    "appears": (("shows up", "showing up"), ("appears", "appearing"), ("comes in", "coming in")),
    "disappears": (("vanishes", "vanishing"), ("disappears", "disappearing"), ("drops out", "dropping out")),
    "blinks": (("blinks", "blinking"), ("goes on and off", "going on and off")),
    "becomes": (("turns into {}", "turning into {}"), ("is replaced by {}", "being replaced by {}")),
    "recolours": (("turns {}", "turning {}"), ("changes to {}", "changing to {}")),
}
# How captions begin, what separates letters, and what is said of each; see `_words`.
FORMS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "list": (("letters on screen: ", "on screen: ", "overlay of ", ""), (", ",), "{colour} {name} {doing}"),
    "clauses": (("",), ("; ",), "{a} {colour} {name} {does}"),
    "looks": (("text overlay: ", "characters: ", ""), (", ",), "{names} in {colours}"),
    "events": (("",), (" / ", ", ", " + "), "{name} {doing}"),
    "order": (("",), (" before ",), "the {colour} {name} {does}"),
    "reverse": (("",), (" after ",), "the {colour} {name} {does}"),
}

# --- Options and scenes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DriftingLettersOptions(SyntheticOptions):
    """The options of all synthetic corpora, with other defaults, and those of this one."""

    least_frames: ClassVar = 4  # so that blinking is visible

    frames: int = 8
    fps: float = 4.0
    letters: tuple[int, int] = (2, 4)  # per clip, 1 to 4; captions can say little about one letter
    distractors: tuple[int, int] = (2, 4)  # pieces of letters that no caption mentions, 0 to 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("letters", 1, 4)
        self.check_range("distractors", 0, 20)


@dataclass(frozen=True, order=True)
class Letter:
    """A letter or digit as captions describe it."""

    glyph: str
    colour: str
    event: str
    into: str = ""  # the glyph or colour that it changes to


Scene = tuple[Letter, ...]  # in the order in which the first caption names them


def _draw_scene(options: DriftingLettersOptions, split: str, rng: np.random.Generator) -> Scene:
    """Draws letters. No glyph occurs twice, not even one that another turns into: captions can name each uniquely."""
    count = options.draw("letters", rng)
    glyphs = [list(GLYPHS)[i] for i in rng.choice(len(GLYPHS), 2 * count, replace=False)]
    letters = []
    for glyph, other_glyph in zip(glyphs[:count], glyphs[count:]):
        colour, other_colour = (list(COLOURS)[i] for i in rng.choice(len(COLOURS), 2, replace=False))
        event = pick(rng, list(EVENTS))
        into = {"becomes": other_glyph, "recolours": other_colour}.get(event, "")
        letters.append(Letter(glyph, colour, event, into))
    return tuple(letters)


# --- Layout: where letters are, and when ---------------------------------------------------------------------

_EM = (0.38, 0.48)  # least and largest size of the font; letters are 0.71 of it high
_MARGIN = 0.02  # between a letter and the border of the frame
_OVERLAP = 0.12  # share of the smaller of two bounding boxes that may be hidden without looking further
_ARRANGEMENTS = 800  # tried for each clip

# The earliest and the latest moment of an event, as fractions of the clip. What is before and after it lasts for at
# least a quarter of the clip, so that a few frames spread over the clip show both.
_SPANS = {"disappears": (0.25, 0.5), "appears": (0.5, 0.75), "becomes": (0.375, 0.625), "recolours": (0.375, 0.625)}


@dataclass
class _Track:
    """How a letter looks, and where and when. Lengths are fractions of the side of the frame; y points down."""

    sprites: tuple[_Sprite, _Sprite]  # before and after `moment`
    colours: tuple[str, str]  # before and after `moment`
    em: float
    center: np.ndarray  # (T, 2): x, y
    visible: np.ndarray  # (T,) bool
    moment: int | None  # the first frame after the event

    @property
    def half(self) -> np.ndarray:
        """Half of the width and height that both glyphs fit in, (2,)."""
        return self.em * np.max([sprite.half for sprite in self.sprites], axis=0)


def _lay_out(scene: Scene, options: DriftingLettersOptions, rng: np.random.Generator) -> list[_Track]:
    tracks = []
    for letter in scene:
        stroke, angle = pick(rng, _STROKES), pick(rng, (0, 0, -1, 1)) * rng.uniform(5, 14)
        first = _sprite(letter.glyph, options.size, stroke, angle)
        last = _sprite(letter.into, options.size, stroke, angle) if letter.event == "becomes" else first
        colours = letter.colour, letter.into if letter.event == "recolours" else letter.colour
        direction = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.get(letter.event, (0, 0))
        path = np.linspace(0, rng.uniform(0.35, 0.5), options.frames)[:, None] * direction
        moment, visible = _timing(letter.event, options.frames, rng)
        tracks.append(_Track((first, last), colours, rng.uniform(*_EM), path, visible, moment))
    _arrange(tracks, rng)
    return tracks


def _timing(event: str, frames: int, rng: np.random.Generator) -> tuple[int | None, np.ndarray]:
    """Returns the moment of an event, and in which frames its letter is visible, (T,)."""
    time = np.arange(frames)
    always = np.ones(frames, dtype=bool)
    if event == "blinks":
        return None, (4 * time // frames + rng.integers(2)) % 2 == 0
    if event not in _SPANS:
        return None, always
    first, last = _SPANS[event]
    moment = int(rng.integers(math.ceil(first * frames), math.floor(last * frames) + 1))
    return moment, {"disappears": time < moment, "appears": time >= moment}.get(event, always)


def _arrange(tracks: Sequence[_Track], rng: np.random.Generator) -> None:
    """Moves tracks, within the frame, to places where letters hide little of each other."""
    candidates = []
    for track in tracks:
        border = track.half + _MARGIN
        least, most = border - track.center.min(axis=0), 1 - border - track.center.max(axis=0)
        candidates.append((least + rng.random((_ARRANGEMENTS, 2)) * (most - least))[:, None] + track.center)
    hidden = np.full(_ARRANGEMENTS, _OVERLAP)
    for (a, a_centers), (b, b_centers) in combinations(zip(tracks, candidates), 2):
        smaller = 2 * np.minimum(a.half, b.half)
        sides = np.clip(a.half + b.half - np.abs(a_centers - b_centers), 0, smaller)  # (K, T, 2)
        overlap = (sides / smaller).prod(axis=-1) * (a.visible & b.visible)  # (K, T)
        hidden = np.maximum(hidden, overlap.max(axis=1))
    for track, centers in zip(tracks, candidates):
        track.center = centers[int(np.argmin(hidden))]


# --- Captions ------------------------------------------------------------------------------------------------


def _write_captions(scene: Scene, tracks: Sequence[_Track], count: int, rng: np.random.Generator) -> list[str]:
    """Returns `count` different captions. The first one says everything, naming the letters in the scene's order."""
    writers = (
        lambda: _tell(pick(rng, ("list", "clauses")), scene, rng),
        lambda: _tell("looks", _shuffled(scene, rng), rng),
        lambda: _tell_order(scene, tracks, rng),
        lambda: _tell("events", _shuffled(scene, rng), rng),
    )
    return different_captions(writers, count)


def _tell(form: str, letters: Sequence[Letter], rng: np.random.Generator) -> str:
    openings, links, clause = FORMS[form]
    return pick(rng, openings) + pick(rng, links).join(clause.format(**_words(letter, rng)) for letter in letters)


def _tell_order(scene: Scene, tracks: Sequence[_Track], rng: np.random.Generator) -> str:
    """Describes what happens first and what later, or two letters if no two events are far enough apart in time."""
    moments = [(track.moment, letter) for track, letter in zip(tracks, scene) if track.moment is not None]
    enough = len(tracks[0].visible) / 4
    pairs = [[first, second] for at, first in moments for later, second in moments if later - at >= enough]
    if not pairs:
        return _tell(pick(rng, ("list", "clauses")), _shuffled(scene, rng)[:2], rng)
    form, pair = pick(rng, ("order", "reverse")), pick(rng, pairs)
    return _tell(form, pair if form == "order" else pair[::-1], rng)


def _shuffled(scene: Scene, rng: np.random.Generator) -> list[Letter]:
    return [scene[i] for i in rng.permutation(len(scene))]


def _words(letter: Letter, rng: np.random.Generator) -> dict[str, str]:
    """Returns words for a letter, such as "four", "4 then L", "red", "red then blue", "goes up" and "going up"."""
    name = names = pick(rng, GLYPHS[letter.glyph])
    colour, colours, into = letter.colour, letter.colour, letter.into
    if letter.event == "becomes":
        new_name = pick(rng, GLYPHS[letter.into])
        names, into = f"{name} then {new_name}", f"{_article(new_name)} {new_name}"
    elif letter.event == "recolours":
        colours = f"{colour} then {into}"
    does, doing = (phrase.format(into) for phrase in pick(rng, EVENTS[letter.event]))
    return {
        "a": _article(colour), "name": name, "names": names, "colour": colour, "colours": colours,
        "does": does, "doing": doing,
    }  # fmt: skip


def _article(word: str) -> str:
    """Returns "a" or "an". Before a letter, the sound of its name counts."""
    return "an" if word in (*"EHLMR", "orange") else "a"


# --- Full captions, to be read again -------------------------------------------------------------------------


def _phrases(letter: Letter, aspect: str) -> Sequence[str]:
    if aspect == "colour":
        return [letter.colour]
    into = [letter.into]
    if letter.event == "becomes":
        into = [f"{_article(name)} {name}" for name in GLYPHS[letter.into]]
    return [form.format(new) for phrase in EVENTS[letter.event] for form in phrase for new in into]


def _clause(letter: Letter) -> str:
    name, event = any_of(GLYPHS[letter.glyph]), any_of(_phrases(letter, "event"))
    return f"(?:an? )?{letter.colour} {name} {event}"


LETTERS_WORDING = Wording(
    thing=Letter,
    aspects={"colour": ("colour",), "event": ("event", "into")},
    phrases=_phrases,
    clause=_clause,
    opening="|".join(opening for form in ("list", "clauses") for opening in FORMS[form][0]),
    link="|".join(link for form in ("list", "clauses") for link in FORMS[form][1]),
    article=_article,
)


def _is_possible(scene: Scene) -> bool:
    """Returns whether a scene could have been drawn: no letter changes to the colour that it has."""
    return not any(letter.event == "recolours" and letter.into == letter.colour for letter in scene)


# --- Drawing letters -----------------------------------------------------------------------------------------

# Lengths here are in ems, the size of the font.
_STROKES = (0.025, 0.05)  # added to each side of a stroke of the font: two weights
_RIM = 0.04  # width of the outline
_CANVAS = 1.7  # side of the pictures of glyphs, with room for turning and for sampling


@dataclass
class _Sprite:
    """A glyph, larger than in the frame, in the middle of two square pictures of mode L."""

    rim: Image.Image  # with the outline
    fill: Image.Image
    half: np.ndarray  # (2,): half of its width and height


def _sprite(glyph: str, size: int, stroke: float, angle: float) -> _Sprite:
    em = min(2 * size, 768)
    rim, fill = (
        _glyph(glyph, em, round(width * em)).rotate(angle, Image.Resampling.BILINEAR)
        for width in (stroke + _RIM, stroke)
    )
    corners = np.reshape(rim.getbbox() or (0, 0, 0, 0), (2, 2)) - rim.width / 2
    return _Sprite(rim, fill, np.abs(corners).max(axis=0) / em)


@lru_cache(maxsize=128)
def _glyph(glyph: str, em: int, stroke: int) -> Image.Image:
    """Draws a glyph in the middle of a square, with `stroke` pixels added to each side of its strokes."""
    # Each call loads the font: threads must not share one.
    font = ImageFont.load_default(em)
    side = round(_CANVAS * em)
    picture = Image.new("L", (side, side))
    ImageDraw.Draw(picture).text((side // 2, side // 2), glyph, fill=255, font=font, stroke_width=stroke, anchor="mm")
    # Centered by its pixels: the font leaves more room on one side of a glyph than on the other.
    left, top, right, bottom = picture.getbbox() or (0, 0, side, side)
    x, y = (left + right - side) // 2, (top + bottom - side) // 2
    return picture.crop((x, y, x + side, y + side))


def _draw(
    tracks: Sequence[_Track], options: DriftingLettersOptions, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns frames (T, H, W, 3) and label maps (T, H, W), both uint8; label n is the n-th letter of the scene."""
    canvas = _background(options, rng)
    masks = np.zeros(canvas.shape[:3], dtype=np.uint8)
    for _ in range(options.draw("distractors", rng)):
        _paint_distractor(canvas, rng)
    for label, track in enumerate(tracks, start=1):
        for t in np.flatnonzero(track.visible):
            changed = int(track.moment is not None and t >= track.moment)
            colour = track.colours[changed]
            window, rim, fill = _sample(track.sprites[changed], track.em, track.center[t], options.size)
            _blend(canvas[t][window], 240 if colour == "black" else 20, rim)
            _blend(canvas[t][window], COLOURS[colour], fill)
            masks[t][window][rim > 127] = label
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8), masks


def _sample(
    sprite: _Sprite, em: float, center: np.ndarray, size: int
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """Returns the window of a frame that a sprite covers, and how much rim and fill cover its pixels, (h, w) uint8."""
    middle, half = center * size, sprite.half * em * size
    start = np.maximum(np.floor(middle - half) - 1, 0).astype(int)
    stop = np.minimum(np.ceil(middle + half) + 1, size).astype(int)
    side = sprite.rim.width
    scale = side / (_CANVAS * em * size)  # pixels of the sprite per pixel of the frame
    left, top, right, bottom = np.concatenate([start - middle, stop - middle]) * scale + side / 2
    width, height = stop - start
    rim, fill = (
        np.asarray(picture.resize((width, height), Image.Resampling.HAMMING, box=(left, top, right, bottom)))
        for picture in (sprite.rim, sprite.fill)
    )
    return (slice(start[1], stop[1]), slice(start[0], stop[0])), rim, fill


def _blend(window: np.ndarray, colour: float | Sequence[float], cover: np.ndarray, opacity: float = 1.0) -> None:
    """Paints a gray or a colour over `window`, (h, w, 3), with the coverage `cover`, (h, w) uint8."""
    window += (np.array(colour, dtype=np.float32) - window) * (cover[..., None] * np.float32(opacity / 255))


def _paint_distractor(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Paints half a letter in faint gray, without an outline, that drifts slowly."""
    frames, size = canvas.shape[:2]
    sprite = _sprite(pick(rng, list(GLYPHS)), size, pick(rng, _STROKES), rng.uniform(0, 360))
    sprite.fill.paste(0, (0, 0, sprite.fill.width // 2, sprite.fill.width))
    start, end = rng.uniform(0.1, 0.9, (2, 2))
    em, gray, opacity = rng.uniform(0.3, 0.5), rng.uniform(60, 200), rng.uniform(0.45, 0.65)
    for t, time in enumerate(np.linspace(0, 0.2, frames)):
        window, _, fill = _sample(sprite, em, start + (end - start) * time, size)
        _blend(canvas[t][window], gray, fill, opacity)


# --- Drawing backgrounds -------------------------------------------------------------------------------------


def _background(options: DriftingLettersOptions, rng: np.random.Generator) -> np.ndarray:
    """Returns the view of a camera that moves over a picture and zooms in or out, (T, H, W, 3) float32."""
    size = options.size
    picture = _picture(math.ceil(1.7 * size), rng)
    sides = size * rng.uniform(0.9, 1.2) * np.array([1, rng.uniform(0.85, 1.15)])  # of the first and the last view
    way: Any = 0
    while not 0.15 * size < way < 0.4 * size:
        corners = rng.random((2, 2)) * (picture.width - sides[:, None])
        way = np.linalg.norm(np.diff(corners + sides[:, None] / 2, axis=0))
    views = []
    for time in np.linspace(0, 1, options.frames):
        (left, top), side = (first + (last - first) * time for first, last in (corners, sides))
        box = (left, top, left + side, top + side)
        views.append(np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=box), dtype=np.float32))
    return np.stack(views)


def _picture(side: int, rng: np.random.Generator) -> Image.Image:
    """Draws noise with the spectrum of photographs, about 1/f, over a gradient: more of light than of colour."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf  # no mean
    waves = rng.standard_normal((2, 3, *frequency.shape))
    noise = np.fft.irfft2((waves[0] + 1j * waves[1]) / frequency ** rng.uniform(1.1, 1.6), s=(side, side))
    light, warm, green = noise / noise.std(axis=(1, 2), keepdims=True)

    ramp = np.linspace(-1, 1, side)
    direction = rng.uniform(0, 2 * np.pi)
    gradient = (np.cos(direction) * ramp + np.sin(direction) * ramp[:, None])[..., None] * rng.uniform(-28, 28, 3)
    chroma = rng.uniform(5, 16)
    picture = (
        rng.uniform(75, 165)
        + gradient
        + (light * rng.uniform(18, 38))[..., None]
        + chroma * (warm[..., None] * np.array([1.0, 0.1, -1.0]) + green[..., None] * np.array([-0.5, 0.6, -0.5]))
    )
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


# --- Making and loading --------------------------------------------------------------------------------------


def _make_clip(scene: Scene, options: DriftingLettersOptions, rng: np.random.Generator) -> Clip:
    tracks = _lay_out(scene, options, rng)
    captions = _write_captions(scene, tracks, options.captions, rng)
    return Clip(captions, *_draw(tracks, options, rng))


DRIFTING_LETTERS = SyntheticCorpus(
    "drifting_letters", FORMAT, DriftingLettersOptions, "letters", _draw_scene, _make_clip
)


def load_drifting_letters(
    data_dir: PathLike | None,
    split: str,
    *,
    task: str = "retrieval",
    negative_captions: bool = False,
    workers: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Dataset:
    """Built in, made on first use: MP4 clips of letters over a moving background, true captions, letter masks.

    Columns beside the common ones: `objects`, a list of {glyph, colour, event, into}, and `masks`, the path of the
    label maps (see `load_masks`).

    Args:
        data_dir: a directory written by `make_corpus`. Without one, the corpus is made on first use in the
            cache directory `$HF_HOME/region_learner`.
        split: "train", "val" or "test".
        task: "retrieval", or "compositional": multiple choice between the first caption of a clip and the same with
            the colours or the events swapped between two letters (columns `options`, `answer`, the index of the true
            one, and `aspect`: "colour" or "event"). Clips in which nothing can be swapped are left out.
        negative_captions: for retrieval, also the column `negative_captions`: the first caption with the colours or
            the events swapped between two letters.
        workers, progress: see `make_corpus`.
        options: see `DriftingLettersOptions`. With `data_dir`, they must be those that the corpus was made with.
    """
    check_task(DRIFTING_LETTERS, task, TASKS, negative_captions)
    rows = load_synthetic_rows(DRIFTING_LETTERS, data_dir, split, options, workers=workers, progress=progress)
    features = None
    if task == "compositional":
        rows = compositional_rows(rows, LETTERS_WORDING, _is_possible, split)
    elif negative_captions:
        rows, features = add_negative_captions(rows, LETTERS_WORDING, _is_possible)
    return build_dataset(rows, features)

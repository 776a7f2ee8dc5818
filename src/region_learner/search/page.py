"""
A page of what a search found: one self-contained HTML file, with a player for every hit.

The page loads nothing: frames and previews are inlined, and a content security policy allows only its own script, by
its hash. Paths and queries may come from strangers; the template escapes all of them.
"""

import base64
import hashlib
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ..files import write_text
from ..inference import evaluation_mode
from ..video_decoding_region_learner import Scale, VideoDecodeError, read_clip
from ..visualization import draw_regions, frame_strip, frames_of_height, region_colors
from ..visualization.page import html_environment
from .preview import middles_of, strip_of, write_preview

STRIP_FRAMES = 4
STRIP_HEIGHT = 112  # pixels
# Below this probability of the best hit, the answer is that nothing matches.
NOTHING_MATCHES = 0.3
_LIKELY = 0.7
# The most previews of a page, with about 0.2 MB each.
_PREVIEWS = 100
# Frames for the model are decoded with at most this short side, as those of a long 4K clip would not fit into memory.
_SHORT_SIDE = 512


@dataclass(frozen=True)
class ShownHit:
    """
    A hit, ready to be shown.

    Args:
        hit: what was found.
        strip: frames of the span side by side; None if they cannot be read.
        regions: the same frames with the regions of the model over them; None without regions.
        preview: the URI of a video, from `begin` on the span, until `stop` (both in seconds); empty without one.
        problem: why something is missing, in one sentence.
    """

    hit: Any
    strip: Image.Image | None = None
    regions: Image.Image | None = None
    preview: str = ""
    begin: float = 0.0
    stop: float = 0.0
    problem: str = ""


def write_search_page(path: str | os.PathLike[str], index: Any, results: Sequence[tuple[str, Sequence[Any]]]) -> Path:
    """
    Writes what queries found as one HTML file, atomically, and returns its path. Missing directories are created.

    Every hit has frames of its span, its probability, and a preview that plays the span. Videos that cannot be read
    any more are named as such. If the model has regions, they are drawn over the frames.

    Args:
        path: of the HTML file.
        index: the `VideoIndex` that was searched.
        results: pairs of a query, as text, and its hits, the best ones first.

    Raises:
        OSError: the file cannot be written.

    Example:

        write_search_page("found.html", index, [(words, index.search(words)) for words in ("a dog", "rain")])
    """
    path = Path(path)
    shown: dict[Any, ShownHit] = {}  # a span that several queries find is decoded once
    queries = []
    for query, hits in results:
        for hit in hits:
            if hit not in shown:
                shown[hit] = show_hit(index, hit, with_preview=len(shown) < _PREVIEWS)
        queries.append((query, [shown[hit] for hit in hits]))
    text = _render(queries)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def show_hit(index: Any, hit: Any, with_preview: bool = True, with_regions: bool = True) -> ShownHit:
    """
    Decodes what is shown of a hit of an index.

    Args:
        index: a `VideoIndex`.
        hit: one of its hits.
        with_preview: whether to encode a preview.
        with_regions: whether to draw regions, where the model has them.
    """
    try:
        source = index.source(hit.path)
        strips = region_strips(index, source, hit) if with_regions else None
        strip, regions = strips or (strip_of(source, hit.start, hit.end, STRIP_FRAMES, STRIP_HEIGHT), None)
        if not with_preview:
            return ShownHit(hit, strip, regions, problem=f"Only the first {_PREVIEWS} hits of a page have a preview.")
        preview, begin = preview_uri(source, hit.start, hit.end)
        return ShownHit(hit, strip, regions, preview, begin, begin + hit.end - hit.start)
    except (VideoDecodeError, OSError, KeyError, ValueError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        return ShownHit(hit, problem=f"This video cannot be shown: {message}")


def preview_uri(source: Any, start: float, end: float) -> tuple[str, float]:
    """Returns a preview of a span as a data URI, and the time in seconds at which the span begins in it."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "preview.mp4")
        begin = write_preview(source, start, end, file)
        return "data:video/mp4;base64," + base64.b64encode(file.read_bytes()).decode("ascii"), begin


def has_regions(model: Any) -> bool:
    """Returns whether a model has regions that can be drawn."""
    return bool(getattr(model.config.video_config, "num_regions", 0))


def region_strips(index: Any, source: Any, hit: Any) -> tuple[Image.Image, Image.Image] | None:
    """
    Returns frames of a hit side by side, and the same ones with all regions of the model over them; None if the model
    of the index has no regions.
    """
    if not has_regions(index.model):
        return None
    model, video_processor = index.model, getattr(index.processor, "video_processor", index.processor)
    count = model.config.video_config.num_frames
    clip, _ = read_clip(source, middles_of(hit.start, hit.end, count), Scale(_size_for_model))
    pixel_values = video_processor([list(clip)], return_tensors="pt")["pixel_values_videos"]
    with evaluation_mode(model):
        masks = model.video_model(pixel_values.to(model.device)).region_masks[0]
    frames = frames_of_height(video_processor, list(clip), STRIP_HEIGHT, pixel_values.shape[-2])
    drawn = draw_regions(frames, masks.float())
    chosen = [(2 * part + 1) * count // (2 * STRIP_FRAMES) for part in range(STRIP_FRAMES)]
    chosen = sorted(set(chosen))
    return (
        frame_strip([Image.fromarray(frames[index]) for index in chosen], STRIP_HEIGHT),
        frame_strip([drawn[index] for index in chosen], STRIP_HEIGHT),
    )


def _size_for_model(height: int, width: int) -> tuple[int, int]:
    scale = min(1.0, _SHORT_SIDE / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


# --- Words --------------------------------------------------------------------------------------------------------


def clock(seconds: float) -> str:
    """Returns a time as minutes and seconds, `00:42`, with hours from one hour on, `1:00:42`."""
    whole = math.floor(seconds + 1e-6)
    minutes = f"{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{whole // 3600}:{minutes}" if whole >= 3600 else minutes


def span(hit: Any) -> str:
    """Returns the times of a hit, such as `00:42–00:52`."""
    return f"{clock(hit.start)}\N{EN DASH}{clock(hit.end)}"


def percent(probability: float) -> str:
    """Returns a probability in whole percent, and never claims certainty."""
    if probability < 0.01:
        return "under 1%"
    return "over 99%" if probability > 0.99 else f"{round(100 * probability)}%"


def likelihood(probability: float) -> str:
    """Returns a probability in words: `likely`, `possible` or `unlikely`."""
    return "likely" if probability >= _LIKELY else "possible" if probability >= NOTHING_MATCHES else "unlikely"


def matches(hits: Sequence[Any]) -> bool:
    """Returns whether any hit is at all probable. If not, the answer to the query is that nothing matches."""
    return any(hit.probability >= NOTHING_MATCHES for hit in hits)


# --- HTML ---------------------------------------------------------------------------------------------------------


def environment() -> Any:
    """Returns the Jinja environment of the templates of this package."""
    made = html_environment(__package__)
    made.filters |= {"span": span, "percent": percent, "likelihood": likelihood, "sha256": _sha256}
    made.filters |= {"folder": _folder, "name": lambda path: PurePosixPath(path).name}
    made.tests["matching"] = matches
    return made


def _folder(path: str) -> str:
    """The path up to its last name, with the slash."""
    return path[: len(path) - len(PurePosixPath(path).name)] if PurePosixPath(path).name else path


def _sha256(script: str) -> str:
    """How a content security policy names a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _render(queries: Sequence[tuple[str, Sequence[ShownHit]]]) -> str:
    regions = any(shown.regions for _, hits in queries for shown in hits)
    return environment().get_template("search_page.html.jinja").render(
        queries=[(query, hits, matches([shown.hit for shown in hits])) for query, hits in queries],
        has_regions=regions,
    )

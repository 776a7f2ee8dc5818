"""
A page that shows the results of a search: one self-contained HTML file that shows and plays the hits.

The page does not load anything else: frames and previews are inlined, and a content security policy allows only its
own script, by its hash. Paths and queries may be untrusted, so the template escapes all of them.
"""

import base64
import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..files import readable, write_text
from ..inference import progress_bar
from ..visualization import draw_heat_maps, draw_regions, frame_strip, frames_of_height
from ..visualization.page import html_environment
from .index import LIKELY, NO_MATCH, UNREADABLE, Hit, VideoIndex
from .preview import strip_of, write_preview
from .spans import clock, percent

STRIP_FRAMES = 4
STRIP_HEIGHT = 112  # pixels
_PREVIEWS = 100  # maximum number of previews in a page; each takes about 0.2 MB


@dataclass(frozen=True)
class ShownHit:
    """
    A hit, ready to be shown.

    Args:
        hit: the hit.
        strip: frames of the span side by side; None if they cannot be read.
        regions: pairs of a phrase and a picture of frames side by side. For a phrase of the query, the picture shows
            its heat map over the frames; for the empty phrase, it shows all regions of the model over the frames of
            `strip`.
        preview: URI of a video that shows the span from `begin` to `stop` (both in seconds); empty if there is none.
        problem: one sentence that says why something is missing.
    """

    hit: Hit
    strip: Image.Image | None = None
    regions: tuple[tuple[str, Image.Image], ...] = ()
    preview: str = ""
    begin: float = 0.0
    stop: float = 0.0
    problem: str = ""


def write_search_page(
    path: str | os.PathLike[str], index: VideoIndex, results: Sequence[tuple[str, Sequence[Hit]]]
) -> Path:
    """
    Writes the hits of queries as one HTML file, atomically, and returns its path. Missing directories are created.

    Every hit is shown with its probability and with frames of its span. The first 100 spans also have a preview that
    plays them. If the video of a hit can no longer be read, the page says so. The regions of a hit, if it has any, are
    drawn over its frames.

    Args:
        path: path of the HTML file.
        index: the `VideoIndex` that was searched.
        results: pairs of a query, as text, and its hits, best first.

    Raises:
        OSError: the file cannot be written.

    Example:

        hits = index.search(["a dog", "rain"], regions=True)
        write_search_page("found.html", index, list(zip(["a dog", "rain"], hits)))
    """
    path = Path(path)
    previews: dict[tuple, ShownHit] = {}  # by span, because several queries may find the same one
    queries: list[tuple[str, list[ShownHit]]] = []
    for query, hits in results:
        queries.append((query, []))
        for hit in progress_bar(hits, f"Page: {readable(query)[:40]}", unit="hit"):
            key = hit.path, hit.start, hit.end
            shown = show_hit(index, hit, with_preview=key not in previews and len(previews) < _PREVIEWS)
            known = previews.setdefault(key, shown) if shown.preview or key in previews else shown
            queries[-1][1].append(replace(shown, preview=known.preview, begin=known.begin, stop=known.stop))
    text = _render(queries)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def show_hit(index: VideoIndex, hit: Hit, with_preview: bool = True) -> ShownHit:
    """
    Decodes the frames and the preview that show a hit of an index.

    Args:
        index: the index.
        hit: one of its hits, with `regions` if they should be drawn.
        with_preview: whether to encode a preview.
    """
    try:
        source = index.source(hit.path)
        strip, regions = _strips(index, source, hit)
        if not with_preview:
            return ShownHit(hit, strip, regions)
        preview, begin = preview_uri(source, hit.start, hit.end)
        return ShownHit(hit, strip, regions, preview, begin, begin + hit.end - hit.start)
    except UNREADABLE as error:
        return ShownHit(hit, problem=f"This video cannot be shown: {message_of(error)}")


def preview_uri(source: Any, start: float, end: float) -> tuple[str, float]:
    """Returns a preview of a span as a data URI, and the time in seconds at which the span begins in it."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "preview.mp4")
        begin = write_preview(source, start, end, file)
        return "data:video/mp4;base64," + base64.b64encode(file.read_bytes()).decode("ascii"), begin


def _strips(index: VideoIndex, source: Any, hit: Hit) -> tuple[Image.Image, tuple[tuple[str, Image.Image], ...]]:
    """Returns frames of a hit side by side, and the pictures with its regions, in the form of `ShownHit`."""
    if hit.regions is None:
        return strip_of(source, hit.start, hit.end, STRIP_FRAMES, STRIP_HEIGHT), ()
    span = index.span_of(hit)
    seen = index.processor(videos=[source], **span)["pixel_values_videos"].shape[-2]
    frames = frames_of_height(index.processor.video_processor, source, STRIP_HEIGHT, seen, **span)
    chosen = sorted({(2 * part + 1) * len(frames) // (2 * STRIP_FRAMES) for part in range(STRIP_FRAMES)})
    strip = frame_strip([Image.fromarray(frames[index]) for index in chosen], STRIP_HEIGHT)
    if not hit.phrases:
        drawn = draw_regions(frames[chosen], torch.from_numpy(hit.regions[chosen]), height=STRIP_HEIGHT)
        return strip, (("", frame_strip(drawn, STRIP_HEIGHT)),)
    maps = torch.from_numpy(hit.regions).transpose(0, 1)  # (P, T, h, w)
    return strip, tuple(
        (phrase, frame_strip([drawn[index] for index in _with_peak(chosen, heat)], STRIP_HEIGHT))
        for phrase, heat, drawn in zip(hit.phrases, maps, draw_heat_maps(frames, maps, height=STRIP_HEIGHT))
    )


def _with_peak(chosen: list[int], heat: torch.Tensor) -> list[int]:
    """Returns the chosen frames, with the nearest one replaced by the frame of the peak of a heat map (T, h, w)."""
    peak = int(heat.flatten(1).amax(1).argmax())
    nearest = min(chosen, key=lambda frame: abs(frame - peak))
    return [peak if frame == nearest else frame for frame in chosen]


# --- Words --------------------------------------------------------------------------------------------------------


def span(hit: Hit) -> str:
    """Returns the times of a hit, such as `00:42-00:52`."""
    return clock(hit.start, hit.end)


def likelihood(probability: float) -> str:
    """Returns a word for a probability: `likely`, `possible` or `unlikely`."""
    return "likely" if probability >= LIKELY else "possible" if probability >= NO_MATCH else "unlikely"


def message_of(error: Exception) -> str:
    """Returns the message of an error in one line."""
    message = error.args[0] if isinstance(error, KeyError) and error.args else error  # `str` would add quotes
    return readable(" ".join(str(message).split()))


# --- HTML ---------------------------------------------------------------------------------------------------------


def environment() -> Any:
    """Returns the Jinja environment of the templates of this package."""
    made = html_environment(__package__)
    made.filters |= {"span": span, "percent": percent, "likelihood": likelihood, "readable": readable}
    made.filters |= {"folder": _folder, "name": _name, "sha256": _sha256}
    return made


def _render(queries: Sequence[tuple[str, Sequence[ShownHit]]]) -> str:
    template = environment().get_template("search_page.html.jinja")
    labels = {label for _, hits in queries for shown in hits for label, _ in shown.regions}
    has = {"has_phrases": bool(labels - {""}), "has_regions": "" in labels}
    return template.render(queries=queries, **has, likely=NO_MATCH, most_previews=_PREVIEWS)


def _folder(path: str) -> str:
    """Returns the path up to its last component, with the slash."""
    return readable(path[: path.rfind("/") + 1])


def _name(path: str) -> str:
    return readable(path[path.rfind("/") + 1 :])


def _sha256(script: str) -> str:
    """Returns the hash with which a content security policy allows a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")

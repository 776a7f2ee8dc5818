"""A page to look at: what a search found and what the regions saw, with metrics and the loss of training.

`write_page` writes one HTML file that needs nothing else: pictures are inlined, styles are inline, there is no
script, and a content security policy keeps the browser from loading anything. Titles, queries, captions and paths
are strangers' text; the template escapes everything it is given.
"""

import base64
import io
import math
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeVar

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from ..visualization import region_colors

# Captions of one result that are shown at once; the others can be unfolded.
CAPTIONS_SHOWN = 2
_WEBP_QUALITY = 80
# Raw losses in the picture at most: more could not be told apart, and only make the file large.
_LOSS_POINTS = 600
_Item = TypeVar("_Item")
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Result:
    """
    One clip that a query found.

    Args:
        title: what the clip is called, say its id or path.
        score: similarity of clip and query, see `Page.score_name`.
        strip: its frames side by side, see `frame_strip`.
        regions: the same frames with regions drawn over them, of the same size.
        captions: what the clip's owners say about it.
        correct: whether it is the clip that was looked for; None where that is not known.
        note: one line more, say a time span.
    """

    title: str
    score: float
    strip: Image.Image | None = None
    regions: Image.Image | None = None
    captions: Sequence[str] = ()
    correct: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Query:
    """What was searched for, the best clips first, and one optional line, say the rank of the right clip."""

    text: str
    results: Sequence[Result] = ()
    note: str = ""


@dataclass(frozen=True)
class Table:
    """
    Measured results.

    Args:
        header: one heading a column; the first column names the rows.
        rows: cells; numbers are shown with one digit after the point, strings as they are.
        caption: what was measured, on what.
        muted: indices of rows that are only there to compare with, like chance.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    caption: str = ""
    muted: Collection[int] = ()


@dataclass(frozen=True)
class Page:
    """
    All that a page shows. Sections without content are left out.

    Args:
        title, subtitle: the headline, and one sentence below it.
        facts: pairs of a name and a value, say ("parameters", "3.1 M").
        metrics: the table of results.
        loss: (step, training loss), in any order.
        eval_loss: (step, evaluation loss).
        queries: searches with what they found.
        num_regions: how many regions the pictures show, for the legend; 0 leaves it out.
        score_name: what the scores are.
    """

    title: str
    subtitle: str = ""
    facts: Sequence[tuple[str, str]] = ()
    metrics: Table | None = None
    loss: Sequence[tuple[float, float]] = ()
    eval_loss: Sequence[tuple[float, float]] = ()
    queries: Sequence[Query] = ()
    num_regions: int = 0
    score_name: str = "cosine similarity"


def frame_strip(images: Sequence[Image.Image], height: int) -> Image.Image:
    """
    Joins the frames of one clip to one picture, `height` pixels high, with small transparent gaps (RGBA).

    Raises:
        ValueError: without images, or with a height below 1.
    """
    if not images:
        raise ValueError("A strip needs at least one frame.")
    if height < 1:
        raise ValueError(f"height must be at least 1 pixel, got {height}.")
    widths = [max(1, round(image.width * height / image.height)) for image in images]
    gap = max(1, height // 40)
    strip = Image.new("RGBA", (sum(widths) + gap * (len(images) - 1), height), (0, 0, 0, 0))
    left = 0
    for image, width in zip(images, widths):
        image = image.convert("RGB")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        strip.paste(image, (left, 0))
        left += width + gap
    return strip


def write_page(path: str | os.PathLike[str], page: Page) -> Path:
    """
    Writes `page` as one self-contained HTML file and returns its path. Missing folders are made; what is at `path`
    is replaced only when the page is complete.

    Raises:
        ValueError: if a row of the metrics has another length than their header.
    """
    path = Path(path)
    text = render_page(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    # File names that are not valid text reach Python as lone surrogates, which no encoding of HTML can hold.
    unfinished.write_bytes(text.encode("utf-8", errors="replace"))
    os.replace(unfinished, path)
    return path


def render_page(page: Page) -> str:
    """The HTML of `page`; see `write_page`."""
    if page.metrics is not None:
        for row in page.metrics.rows:
            if len(row) != len(page.metrics.header):
                raise ValueError(
                    f"A row of the metrics has {len(row)} cells under a header of {len(page.metrics.header)}: {row}."
                )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cell": _format_cell, "data_uri": _data_uri, "score": _format_score}
    template = environment.from_string(resources.files(__package__).joinpath("page.html.jinja").read_text("utf-8"))
    has_regions = any(result.regions for query in page.queries for result in query.results)
    return template.render(
        page=page,
        loss=_loss_chart(page.loss, page.eval_loss),
        colors=["#" + bytes(color).hex() for color in region_colors(page.num_regions if has_regions else 0)],
        captions_shown=CAPTIONS_SHOWN,
    )


# --- Formats ---------------------------------------------------------------------------------------------------


def _format_cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.1f}".replace("-", _MINUS)


def _format_score(value: float) -> str:
    return f"{value:.3f}".replace("-", _MINUS)


def _data_uri(image: Image.Image) -> str:
    """The picture as WebP inside a URI; WebP because it keeps the gaps of a strip transparent."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_WEBP_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# --- The curve of the loss -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tick:
    """A label on an axis; `position` in percent of the plot, from the left or from the top."""

    position: float
    label: str


@dataclass(frozen=True)
class _LossChart:
    """Lines as `points` of SVG polylines, and dots as pairs; the plot is 100 x 100 with its origin at the top left."""

    raw: str
    smooth: str
    evaluation: str
    evaluation_dots: Sequence[tuple[float, float]]
    x_ticks: Sequence[_Tick]
    y_ticks: Sequence[_Tick]
    summary: str


def _loss_chart(loss: Iterable[tuple[float, float]], eval_loss: Iterable[tuple[float, float]]) -> _LossChart | None:
    """What the template draws; None where there are no two finite points to draw a line between."""
    recorded = sorted((float(step), float(value)) for step, value in loss)
    points = [point for point in recorded if all(map(math.isfinite, point))]
    evaluation = sorted((float(s), float(v)) for s, v in eval_loss if math.isfinite(s) and math.isfinite(v))
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return None
    smooth = _smooth(points)
    shown = [*points, *smooth, *evaluation]
    x_low, x_high = min(step for step, _ in shown), max(step for step, _ in shown)
    y_ticks = _ticks(min(value for _, value in shown), max(value for _, value in shown), 5)
    y_low = min(y_ticks[0], min(value for _, value in shown))
    y_high = max(y_ticks[-1], max(value for _, value in shown))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = point
        return round(100 * (x - x_low) / (x_high - x_low), 2), round(100 * (y_high - y) / (y_high - y_low), 2)

    def line(points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x:g},{y:g}" for x, y in map(place, points))

    (_, first), (last_step, last) = smooth[0], smooth[-1]
    summary = f"Smoothed training loss from {first:.3g} to {last:.3g} at step {last_step:,.10g}"
    if evaluation:
        summary += f"; evaluation loss at the end {evaluation[-1][1]:.3g}"
    if len(points) < len(recorded):
        summary += f"; {len(recorded) - len(points)} losses were not finite and are left out"
    return _LossChart(
        raw=line(_thin(points)),
        smooth=line(smooth),
        evaluation=line(evaluation),
        evaluation_dots=[place(point) for point in evaluation],
        x_ticks=[_Tick(place((x, y_low))[0], f"{x:,.10g}") for x in _ticks(x_low, x_high, 6) if x_low <= x <= x_high],
        y_ticks=[_Tick(place((x_low, y))[1], f"{y:.10g}".replace("-", _MINUS)) for y in y_ticks],
        summary=summary + ".",
    )


def _thin(items: Sequence[_Item]) -> Sequence[_Item]:
    """Every so-manyth of many items, at most `_LOSS_POINTS` and the last."""
    return [*items[: -1 : math.ceil(len(items) / _LOSS_POINTS)], items[-1]]


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """
    Replaces each value by that of a straight line fitted to its neighbours, a 25th of all on either side. Unlike a
    running average this does not lag behind a falling curve, nor does it hang on single points at the ends. Of many
    points only those that `_thin` leaves are returned.
    """
    values = np.array([value for _, value in points])
    reach = max(2, len(values) // 25)
    smooth = []
    for index in _thin(range(len(values))):
        near = values[max(0, index - reach) : index + reach + 1]
        offset = np.arange(len(near)) - min(index, reach)
        centred = offset - offset.mean()
        slope = centred @ near / (centred @ centred)
        smooth.append((points[index][0], float(near.mean() - slope * offset.mean())))
    return smooth


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers that span [low, high]; the outermost may lie just outside."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]

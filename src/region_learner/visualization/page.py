"""
Writes pages of results: the hits of searches and their regions, with metrics and the training loss.

`write_page` writes one self-contained HTML file: pictures and styles are inlined, there are no scripts, and a content
security policy keeps the browser from loading anything. Titles, queries, captions and paths may come from strangers;
the template escapes all of them.
"""

import base64
import io
import math
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from ..files import write_text
from .regions import region_colors

if TYPE_CHECKING:
    from jinja2 import Environment

# Number of captions of a result that are always visible; the others can be expanded.
CAPTIONS_SHOWN = 2
_WEBP_QUALITY = 80
# Maximum number of raw losses in the chart: more would be indistinguishable and make the file large.
_LOSS_POINTS = 600
_Item = TypeVar("_Item")
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Result:
    """
    One clip that was found for a query.

    Args:
        title: name of the clip, for example its id or path.
        score: similarity of clip and query, see `Page.score_name`; a string is shown as it is.
        strip: its frames side by side, see `frame_strip`.
        regions: the same frames with regions drawn over them, of the same size.
        captions: captions of the clip in its corpus.
        correct: whether it is the clip that was searched for; None if this is not known.
        note: one more line, for example a time span.
        phrases: phrases of the query, each with frames over which a heat map shows what matches it.
    """

    title: str
    score: float | str
    strip: Image.Image | None = None
    regions: Image.Image | None = None
    captions: Sequence[str] = ()
    correct: bool | None = None
    note: str = ""
    phrases: Sequence[tuple[str, Image.Image]] = ()


@dataclass(frozen=True)
class Query:
    """A query and its results, the best ones first; `note` is an optional line, such as the rank of the right clip."""

    text: str
    results: Sequence[Result] = ()
    note: str = ""


@dataclass(frozen=True)
class Table:
    """
    Measured results.

    Args:
        header: one heading per column; the first column names the rows.
        rows: cells; numbers are shown with one decimal, strings as they are.
        caption: what was measured on which data.
        muted: indices of rows to compare with, such as chance.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    caption: str = ""
    muted: Collection[int] = ()


@dataclass(frozen=True)
class Page:
    """
    The contents of a page. Sections without content are left out.

    Args:
        title, subtitle: the headline, and one sentence below it.
        facts: pairs of a name and a value, such as ("parameters", "3.1 M").
        metrics: the table of results.
        loss: (step, training loss), in any order.
        queries: searches with their hits.
        queries_note: a sentence about the queries, such as how they were chosen.
        num_regions: number of regions in the pictures, for the legend; 0 leaves it out.
        score_name: description of the scores, which completes the sentence "Scores are ...".
    """

    title: str
    subtitle: str = ""
    facts: Sequence[tuple[str, str]] = ()
    metrics: Table | None = None
    loss: Sequence[tuple[float, float]] = ()
    queries: Sequence[Query] = ()
    queries_note: str = ""
    num_regions: int = 0
    score_name: str = "cosine similarities"


def frame_strip(images: Sequence[Image.Image], height: int) -> Image.Image:
    """
    Joins the frames of one clip into one picture, `height` pixels high, with small transparent gaps (RGBA).

    Raises:
        ValueError: there are no images, or the height is below 1.

    Example:

    ```python
    >>> frame_strip([Image.new("RGB", (64, 48))] * 4, height=24).height
    24
    ```
    """
    if not images:
        raise ValueError("A strip needs at least one frame.")
    if height < 1:
        raise ValueError(f"height must be at least 1 pixel, not {height}.")
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
    Writes `page` as one self-contained HTML file, atomically, and returns its path. Missing directories are created.

    Raises:
        ValueError: a row of the metrics has another length than their header.

    Example:

        write_page("results.html", Page("Search", queries=[Query("a red circle", [Result("clip.mp4", 0.71)])]))
    """
    path = Path(path)
    text = render_page(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def render_page(page: Page) -> str:
    """Returns the HTML of `page`; see `write_page`."""
    if page.metrics is not None:
        for row in page.metrics.rows:
            if len(row) != len(page.metrics.header):
                raise ValueError(
                    f"A row of the metrics has {len(row)} cells, but the header has {len(page.metrics.header)}: {row}."
                )
    template = html_environment().get_template("page.html.jinja")
    results = [result for query in page.queries for result in query.results]
    has_regions = any(result.regions for result in results)
    return template.render(
        page=page,
        loss=_loss_chart(page.loss),
        colors=["#" + bytes(color).hex() for color in region_colors(page.num_regions if has_regions else 0)],
        has_phrases=any(result.phrases for result in results),
        captions_shown=CAPTIONS_SHOWN,
    )


def html_environment(package: str | None = None) -> "Environment":
    """
    Returns the Jinja environment of all pages. It escapes every value.

    Args:
        package: package whose templates take precedence over those of this package.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loaders = [PackageLoader(name, "") for name in (package, __package__) if name]
    environment = Environment(
        loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"cell": _format_cell, "data_uri": data_uri, "score": _format_score}
    return environment


# --- Formats ---------------------------------------------------------------------------------------------------


def _format_cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.1f}".replace("-", _MINUS)


def _format_score(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.3f}".replace("-", _MINUS)


def data_uri(image: Image.Image) -> str:
    """Returns a picture as WebP in a URI. WebP keeps the gaps of a strip transparent."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_WEBP_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# --- The loss curve -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tick:
    """A label on an axis; `position` in percent of the plot, from the left or from the top."""

    position: float
    label: str


@dataclass(frozen=True)
class _LossChart:
    """Lines as `points` of SVG polylines; the plot is 100 x 100 with its origin at the top left."""

    raw: str
    smooth: str
    x_ticks: Sequence[_Tick]
    y_ticks: Sequence[_Tick]
    summary: str


def _loss_chart(loss: Iterable[tuple[float, float]]) -> _LossChart | None:
    """Returns the curve for the template; None if there are not at least two finite points."""
    recorded = sorted((float(step), float(value)) for step, value in loss)
    points = [point for point in recorded if all(map(math.isfinite, point))]
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return None
    smooth = _smooth(points)
    shown = [*points, *smooth]
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
    if len(points) < len(recorded):
        summary += f"; {len(recorded) - len(points)} losses were not finite and are left out"
    return _LossChart(
        raw=line(_thin(points)),
        smooth=line(smooth),
        x_ticks=[_Tick(place((x, y_low))[0], f"{x:,.10g}") for x in _ticks(x_low, x_high, 6) if x_low <= x <= x_high],
        y_ticks=[_Tick(place((x_low, y))[1], f"{y:.10g}".replace("-", _MINUS)) for y in y_ticks],
        summary=summary + ".",
    )


def _thin(items: Sequence[_Item]) -> Sequence[_Item]:
    """Returns at most `_LOSS_POINTS` evenly spaced items, and the last item."""
    return [*items[: -1 : math.ceil(len(items) / _LOSS_POINTS)], items[-1]]


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """
    Replaces each value with that of a straight line fitted to its neighbors, a 25th of all values on either side.
    Unlike a running average, this does not lag behind a falling curve or depend on single points at the ends. Only the
    points that `_thin` keeps are returned.
    """
    values = np.array([value for _, value in points])
    reach = max(2, len(values) // 25)
    smooth = []
    for index in _thin(range(len(values))):
        near = values[max(0, index - reach) : index + reach + 1]
        offset = np.arange(len(near)) - min(index, reach)
        centered = offset - offset.mean()
        slope = centered @ near / (centered @ centered)
        smooth.append((points[index][0], float(near.mean() - slope * offset.mean())))
    return smooth


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Returns about `count` round numbers that span [low, high]; the outermost may be just outside."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]

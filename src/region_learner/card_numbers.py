"""Checks that the numbers in a model card come from results files."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from huggingface_hub import ModelCard
from markdown_it import MarkdownIt  # comes with rich

from .evaluation.results import EvaluationResults

# A number by itself, with a unit that scales it, but not a number in a name such as R@1 or SHA-256.
_NUMBER = re.compile(r"(?<![\w.@#$-])-?\d[\d,]*(?:\.\d+)?(?![\w@]|\.\d)(\s?[kMB]\b)?")
_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9}
_DIGEST = re.compile(r"\b[0-9a-f]{12,64}\b")
_DATE = re.compile(r"\b\d{4}-\d\d-\d\d\b")


class _Cell(NamedTuple):
    """A cell of a table with the names of its row and column."""

    text: str
    row: str
    column: str


def unbacked_numbers(
    text: str, results: Mapping[str, EvaluationResults], weights: Mapping[str, str], facts: Iterable[Any] = ()
) -> list[str]:
    """
    Returns a description of each number in a card that is not in a results file. Numbers in the metadata
    (`model-index`) and in tables are checked, at the precision that they are written with; other text is not.

    Args:
        text: text of the card.
        results: results by file name, all of the weights that the card describes.
        weights: the SHA-256 of these weights by file.
        facts: other mappings and lists whose numbers may occur in tables: the configuration, the training run.
    """
    card = ModelCard(text)
    metrics = _metrics(results.values())
    known = [number for values in metrics.values() for number in values]
    known += [number for one in results.values() for number in _numbers([one.model, one.data, one.protocol])]
    known += [number for one in results.values() for part in one.folds or [] for number in _numbers(part)]
    known += list(_numbers(facts))
    return [*_of_model_index(card, results), *_of_tables(card.text, metrics, known, weights)]


def _of_model_index(card: ModelCard, results: Mapping[str, EvaluationResults]) -> list[str]:
    measured: dict[tuple[str, str | None, str], list[float]] = {}
    for one in results.values():
        for metric, value in one.metrics.items():
            for split in (one.data["split"], None):  # a card need not name the split
                measured.setdefault((one.data["corpus"], split, metric), []).append(value)
    problems = []
    data: Any = card.data
    for entry in data.eval_results or []:
        values = measured.get((entry.dataset_type, entry.dataset_split, entry.metric_type), [])
        claim = f"{entry.metric_type} = {entry.metric_value} on {entry.dataset_type}"
        if not any(_is(str(entry.metric_value), 1.0, value) for value in values):
            problems.append(f"its model-index claims {claim}{_instead(values)}")
    return problems


def _of_tables(
    text: str, metrics: Mapping[str, list[float]], known: list[float], weights: Mapping[str, str]
) -> list[str]:
    problems = []
    for cell in _cells(text):
        if digests := _DIGEST.findall(cell.text):
            if "sha-256" in f"{cell.row} {cell.column}".lower():
                wrong = [one for one in digests if not any(digest.startswith(one) for digest in weights.values())]
                problems += [f"a table has the SHA-256 {one[:16]} of other weights" for one in wrong]
            continue
        name = next((name for name in (cell.column, cell.row) if name in metrics), None)
        for match in _NUMBER.finditer(_DATE.sub("", cell.text)):
            number, scale = match.group().removesuffix(match[1] or "").replace(",", ""), (match[1] or "").strip()
            values = known if name is None else metrics[name]
            if not any(_is(number, _UNITS[scale], value) for value in values):
                where = " of ".join(filter(None, (cell.column, cell.row))) or "its cell"
                instead = _instead(values) if name else ""
                problems.append(f"a table claims {match.group().strip()} for {where!r}{instead}")
    return problems


def _instead(values: list[float]) -> str:
    return f" (measured: {', '.join(f'{value:.2f}' for value in dict.fromkeys(values))})" if values else ""


def _is(text: str, scale: float, value: float) -> bool:
    """Returns whether a number as it is written is a value, rounded."""
    try:
        written = float(text)
    except ValueError:
        return False
    decimals = len(text.partition(".")[2])
    return abs(written * scale - value) <= (0.5 * 10**-decimals + 1e-9) * scale


def _metrics(results: Iterable[EvaluationResults]) -> dict[str, list[float]]:
    """Returns the values of each metric in all results, those of single folds among them."""
    found: dict[str, list[float]] = {}
    for one in results:
        parts = [one.metrics, one.rescored or {}, one.reranked or {}, *(part["metrics"] for part in one.folds or [])]
        for name, value in (item for part in parts for item in part.items()):
            found.setdefault(name, []).append(value)
    return found


def _numbers(content: Any) -> Iterator[float]:
    """Yields the numbers in mappings and lists at any depth, and the lengths of lists of names."""
    if isinstance(content, Mapping):
        content = list(content.values())
    if isinstance(content, list | tuple):
        yield float(len(content))
        for entry in content:
            yield from _numbers(entry)
    elif isinstance(content, int | float) and not isinstance(content, bool) and math.isfinite(content):
        yield float(content)


def _cells(text: str) -> Iterator[_Cell]:
    """Yields the cells of the tables in a Markdown text, except headers and the names of rows."""
    header: list[str] = []
    cells: list[str] = []
    for before, token in pairwise(MarkdownIt("commonmark").enable("table").parse(text)):
        if token.type == "html_block" and "<t" in token.content:
            yield _Cell(re.sub(r"<[^>]*>", " ", token.content), "", "a table in HTML")
        elif token.type == "tr_open":
            cells = []
        elif token.type == "inline" and before.type in ("th_open", "td_open"):
            cells.append("".join(child.content or " " for child in token.children or []).strip())
        elif token.type == "thead_close":
            header = cells
        elif token.type == "tr_close" and before.type == "td_close":
            is_named = header[0] == "" or bool(re.search(r"[^\W\d_]{2}", cells[0]))
            for column, cell in list(zip(header, cells))[is_named:]:
                yield _Cell(cell, cells[0] if is_named else "", column)

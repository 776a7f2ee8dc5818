"""Checks that the numbers in a model card come from results files."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from huggingface_hub import ModelCard
from markdown_it import MarkdownIt  # comes with rich

from .evaluation.results import EvaluationResults

# A number, with the letters that follow it, but not a number within a name such as R@1, SHA-256 or 2.14.0.
_NUMBER = re.compile(
    r"(?<![\w.@#$-])(?P<digits>-?\d++(?:,\d++)*+(?:\.\d++)?+(?:[eE][-+]?\d++)?+)(?!\.\d)(?P<suffix>\s?[kMB]\b|\w*+)"
)
_UNITS = {"k": 1e3, "M": 1e6, "B": 1e9}
_DIGEST = re.compile(r"\b[0-9a-f]{12,64}\b")
_DATE = re.compile(r"\b\d{4}-\d\d-\d\d\b")

# Words for metrics, and the names in results files that each of them may mean; both are patterns.
_WORDS = {
    r"recalls?|hit[\s-]?rates?": "R@",
    r"accurac(?:y|ies)|acc": "accuracy|^top1$",
    r"MedR|MdR|median\s(?:retrieval\s)?ranks?": "MedR",
    r"MeanR|MnR|(?:mean|average)\s(?:retrieval\s)?ranks?": "MeanR",
    r"gmean|geometric\smean": "gmean",
    r"m?IoU|intersection[\s-]over[\s-]union|Jaccard": "iou$",
    r"pointing(?:\s(?:game|accuracy))?": "pointing$",
    r"(?<!mixed[\s-])(?<!half[\s-])(?<!full[\s-])(?<!bit[\s-])(?<!\d\s)precision|P@\d+": "precision$",
    r"(?-i:mAP)|(?:mean\s)?average\sprecision": "mAP",
    r"nDCG": "nDCG",
    r"F1(?:[\s-]?score)?|F[\s-]?score": "F1",
    r"MRR|mean\sreciprocal\srank": "MRR",
}
# The same with a number of entries (R@1, recall at 1, R@1/5/10, hit@5, top-1, Acc@1), not "the top 5 hits".
_METRIC = re.compile(
    r"(?<![A-Za-z])(?:"
    r"(?:(?<!-)R(?=(?:1|5|10)\s?(?:[:=/,]|of\b|is\b|$))|(?:R|HR|recall|hits?|hit[\s-]?rate)\s?(?:@|at(?:\srank)?)\s?)"
    r"\{?(?P<k>\d+(?:/\d+|,\s?\d+(?=[\d,\s]*\}))*)\}?"
    r"|(?:top[\s@-]?|rank-(?=(?:1|5|10)\b)|acc(?:uracy)?\s?@)(?P<top>\d++(?:/\d++)*+)(?:\saccurac(?:y|ies))?+"
    r"(?!\s?%|\s(?:results?|candidates?|entries|hits?|matches|videos?|clips?|texts?|captions?|classes)\b)"
    rf"|(?P<word>{'|'.join(_WORDS)})(?![a-z])(?:@\d++(?:\.\d++)?(?::\d++(?:\.\d++)?)?)?)",
    re.IGNORECASE,
)
# Claims without a metric: "63.1 on MSR-VTT", "t2v 63.1", "in 63% of cases".
_DECIMAL, _INTEGER = r"(?<![\w.@$-])\d++\.\d++", r"(?<![\w.@$-])\d++"
_MEASURE = rf"{_DECIMAL}|{_INTEGER}(?=\s?%)"
_CLAIM = re.compile(
    rf"(?P<on>{_MEASURE})[\s%*_]*\son\s(?:the\s)?"
    r"(?:MSR-?VTT|MSVD|DiDeMo|LSMDC|VATEX|ActivityNet|HMDB-?51|UCF-?101|VITATECS)\b"
    rf"|\b(?:t2v|v2t|SOTA|state[\s-]of[\s-]the[\s-]art)\b[^\w.]{{0,3}}(?:(?:of|is|at)\s)?(?P<of>{_MEASURE})"
    rf"|(?P<share>{_DECIMAL}|{_INTEGER})\s?(?:%|percent)\s(?:of|in)\s(?:the\s|all\s)?"
    r"(?:cases|queries|captions|searches)\b",
    re.IGNORECASE,
)
# In a sentence with a metric (§), the numbers that are its values: those that are written like a measurement, and
# integers that only a few words separate from the metric ("R@1 of 64"). Numbers with a unit are of something else.
_MEASURED = re.compile(r"[.%]|e[-+\d]|per\s?cent", re.IGNORECASE)
_BEFORE = re.compile(
    r"§[^\w(\[,;.§]*(?:(?:of|is|was|are|at|to|by|about|only|just|nearly|over|above|below|than|reaches)\b[^\w(\[]*)*$"
)
_AFTER = re.compile(r"[^\w)\],:;.]*(?:(?:in|for|as)\b\W*)?§")
_UNIT = re.compile(
    r"\s?(?:m?s|seconds?|minutes?|hours?|[kMGT]i?B|fps|epochs?|steps?|videos?|clips?|frames?|texts?|captions?|queries"
    r"|objects)\b"
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[^\W\d_])(?![a-z])")


class _Cell(NamedTuple):
    """A cell of a table with the names of its row and column."""

    text: str
    row: str
    column: str


class _Known(NamedTuple):
    """The numbers that a card may contain: values by metric, and all numbers of results, configuration and so on."""

    metrics: dict[str, list[float]]
    all: list[float]

    def named_in(self, text: str) -> list[float] | None:
        """Returns the values of the metrics that a text names; None if it does not name a metric."""
        if text in self.metrics:
            return self.metrics[text]
        names: set[str] = set()
        rest = text
        for name in (name for name in self.metrics if not _METRIC.fullmatch(name)):
            rest, found = re.subn(rf"(?<![\w@]){re.escape(name)}(?![\w@])", "", rest)  # t2v_R@1 is not any R@1
            names |= {name} if found else set()
        words = [_pattern_of(match) for match in _METRIC.finditer(rest)]
        names |= {name for name in self.metrics if any(re.search(word, name, re.IGNORECASE) for word in words)}
        if not names and not words:
            return None
        return [value for name in self.metrics if name in names for value in self.metrics[name]]


def _pattern_of(metric: re.Match) -> str:
    """Returns a pattern of the names in results files that a word for a metric may mean."""
    if metric["word"]:
        return next(names for word, names in _WORDS.items() if re.fullmatch(word, metric["word"], re.IGNORECASE))
    numbers = re.findall("[0-9]+", metric["k"] or metric["top"])
    names = f"({'R@' if metric['k'] else 'R@|top'})({'|'.join(numbers)})$"
    return f"{names}|accuracy" if metric["top"] and "1" in numbers else names


def unbacked_numbers(
    text: str,
    results: Mapping[str, EvaluationResults],
    weights: Mapping[str, str],
    facts: Iterable[Any] = (),
    regions: Iterable[Mapping[str, Any]] = (),
) -> list[str]:
    """
    Returns a description of each number in a card that is not in a results file, at the precision that it is written
    with. Checked are the numbers in the metadata (`model-index`) and in tables, those that other text states as the
    value of a metric, such as "R@1 of 45.7", and a few other forms of claims, such as "63.1 on MSR-VTT"; see
    docs/publish.md. Numbers of a metric are compared with metrics only.

    Args:
        text: text of the card.
        results: results by file name, all of the weights that the card describes.
        weights: the SHA-256 of these weights by file.
        facts: other mappings and lists whose numbers may occur in tables: the configuration, the training run.
        regions: what `region-learner regions MODEL --corpus NAME --json` printed for this model.
    """
    card = ModelCard(text)
    regions = list(regions)
    metrics = _metrics(results.values(), regions)
    numbers = [number for values in metrics.values() for number in values]
    numbers += [number for one in results.values() for number in _numbers([one.model, one.data, one.protocol])]
    numbers += [number for one in results.values() for part in one.folds or [] for number in _numbers(part)]
    numbers += list(_numbers([*facts, *regions]))
    known = _Known(metrics, numbers)
    folds = [part for one in results.values() for part in one.folds or []]  # each fold may have its own model
    digests = {*weights.values()}.union(*((part["model"]["weights"] or {}).values() for part in folds))
    problems = _of_model_index(card, results)
    metadata = {key: value for key, value in card.data.to_dict().items() if key != "model-index"}
    for one in _texts(metadata):
        problems += _of_sentences(one, known)
    for part in _parts(card.text):
        problems += _of_cell(part, known, digests) if isinstance(part, _Cell) else _of_sentences(part, known)
    return problems


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


def _of_cell(cell: _Cell, known: _Known, digests: Iterable[str]) -> list[str]:
    problems = []
    if "sha-256" in f"{cell.row} {cell.column}".lower():
        wrong = [one for one in _DIGEST.findall(cell.text) if not any(digest.startswith(one) for digest in digests)]
        problems += [f"a table has the SHA-256 {one[:16]} of other weights" for one in wrong]
    text = _without_names(cell.text)
    named = (known.named_in(name) for name in (cell.column, cell.row, cell.text))
    values = next((values for values in named if values is not None), None)
    for match in _NUMBER.finditer(text):
        if values is None and match["suffix"].strip() not in ("", *_UNITS):
            continue  # a name, such as 3d
        if not _is_one_of(match, known.all if values is None else values):
            where = " of ".join(filter(None, (cell.column, cell.row))) or "its cell"
            problems.append(f"a table claims {match.group().strip()} for {where!r}{_instead(values or [])}")
    return problems


def _of_sentences(text: str, known: _Known) -> list[str]:
    problems = []
    for sentence in _SENTENCE.split(text):
        values = known.named_in(sentence)
        if values is None:
            problems += _of_claims(sentence, known)
            continue
        counts = [number for number in known.all if number > 100]  # "on 1,000 videos", and not a percentage
        masked = re.sub(r"\(([^\w()]*[\d.,]+\s*%?)\)", r" \1 ", _METRIC.sub("§", _without_names(sentence)))
        for match in _NUMBER.finditer(masked):
            rest = masked[match.end() :]
            is_value = (
                _MEASURED.match(rest.lstrip())
                or _MEASURED.search(match["digits"])
                or _BEFORE.search(masked[: match.start()])
                or _AFTER.match(rest)
            )
            has_unit = _UNIT.match(masked, match.end("digits"))
            if is_value and not has_unit and not _is_one_of(match, [*values, *counts]):
                shown = " ".join(sentence.split())
                problems.append(f"its text claims {match.group().strip()} in {shown[:80]!r}{_instead(values)}")
    return problems


def _of_claims(sentence: str, known: _Known) -> list[str]:
    """Returns the claims of a sentence without a metric whose numbers are not the value of any metric."""
    values = [value for of_metric in known.metrics.values() for value in of_metric]
    claimed = [next(filter(None, match.groups())) for match in _CLAIM.finditer(sentence)]
    shown = " ".join(sentence.split())[:80]
    return [
        f"its text claims {number} in {shown!r}"
        for number in claimed
        if not any(_is(number, 1.0, value) for value in values)
    ]


def _without_names(text: str) -> str:
    return _DIGEST.sub("", _DATE.sub("", text))


def _instead(values: list[float]) -> str:
    return f" (measured: {', '.join(f'{value:.2f}' for value in dict.fromkeys(values))})" if values else ""


def _is_one_of(number: re.Match, values: Iterable[float]) -> bool:
    scale = _UNITS.get(number["suffix"].strip(), 1.0)
    return any(_is(number["digits"].replace(",", ""), scale, value) for value in values)


def _is(text: str, scale: float, value: float) -> bool:
    """Returns whether a number as it is written is a value, rounded."""
    mantissa, _, exponent = text.lower().partition("e")
    try:
        written = float(mantissa)
        scale *= 10.0 ** int(exponent or 0)
    except (ValueError, OverflowError):
        return False
    decimals = len(mantissa.partition(".")[2])
    return abs(written * scale - value) <= (0.5 * 10**-decimals + 1e-9) * scale


def _metrics(results: Iterable[EvaluationResults], regions: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Returns the values of each metric in all results: those of single folds and of all kinds of masks, too."""
    found: dict[str, list[float]] = {}
    parts: list[Mapping[str, Any]] = []
    for one in results:
        parts += [one.metrics, one.rescored or {}, one.reranked or {}, *(part["metrics"] for part in one.folds or [])]
    for masks in regions:
        parts += [row for name, row in masks.items() if isinstance(row, dict) and name != "model"]
    for name, value in (item for part in parts for item in part.items()):
        if isinstance(value, int | float) and name != "masks":  # their number
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


def _texts(content: Any) -> Iterator[str]:
    """Yields the texts in mappings and lists at any depth."""
    if isinstance(content, Mapping):
        content = list(content.values())
    if isinstance(content, list | tuple):
        for entry in content:
            yield from _texts(entry)
    elif isinstance(content, str):
        yield content


def _parts(text: str) -> Iterator[_Cell | str]:
    """Yields the parts of a Markdown text: the cells of its tables, and as text all else, such as names of rows."""
    header: list[str] = []
    cells: list[str] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for before, token in zip([None, *tokens], tokens):
        previous = before.type if before is not None else ""
        seen = _seen(token)
        if token.type == "tr_open":
            cells = []
        elif token.type == "inline" and previous in ("th_open", "td_open"):
            cells.append(seen)
        elif token.type in ("fence", "code_block"):
            yield from seen.splitlines()
        elif token.type in ("html_block", "inline"):
            if re.search(r"<t[dhr]\b", token.content):
                yield _Cell(seen, "", "a table in HTML")
            yield seen
        elif token.type == "thead_close":
            header = cells
            yield from header
        elif token.type == "tr_close" and previous == "td_close":
            is_named = header[0] == "" or bool(re.search(r"[^\W\d_]{2}", cells[0]) and not _METRIC.search(header[0]))
            if is_named:
                yield cells[0]
            for column, cell in list(zip(header, cells))[is_named:]:
                yield _Cell(cell, cells[0] if is_named else "", column)


def _seen(token: Any) -> str:
    """Returns the text of a token as a reader sees it, without HTML tags."""
    children = token.children or []
    text = "".join(child.content or " " for child in children) if children else token.content
    return (re.sub(r"<[^>]*>", " ", text) if "html" in token.type or children else text).strip()

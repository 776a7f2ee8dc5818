"""
The results of an evaluation as a JSON file, from which model cards are generated.

A file records everything that its numbers depend on, with SHA-256 hashes of the weights, configuration, preprocessing
and tokenizer, and of the ids and texts that were evaluated, but not of the videos. It does not contain paths of the
machine. Its keys are the fields of [`EvaluationResults`] and `schema`, which increases when their meaning changes.
"""

import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NotRequired, TypedDict, get_type_hints

from huggingface_hub.dataclasses import strict, type_validator
from huggingface_hub.errors import StrictDataclassFieldValidationError

from ..files import partial_of, write_text
from .provenance import shown_path, versions

SCHEMA = 2

Metrics = dict[str, int | float]

# Defined by a call because "class", one of the keys, is a keyword of Python.
ModelRecord = TypedDict(
    "ModelRecord",
    {
        "name": str,  # as given; the last part of an absolute path
        "class": str,
        "revision": str | None,  # commit of a Hub model
        "weights": dict[str, str],  # SHA-256 by file; empty if there is no such file
        "files": dict[str, str],  # SHA-256 of the files of configuration, preprocessing and tokenizer
        "parameters": int,
        "config": dict,  # sizes of the towers
        "trained_on": NotRequired[list | None],  # corpora, as far as the training run recorded them
    },
)


class DataRecord(TypedDict):
    """The data of an evaluation. It contains only the numbers that apply to the task."""

    corpus: str
    data_dir: str | None  # only the name of the directory
    split: str
    options: dict
    sha256: NotRequired[str]  # hash of the ids and texts
    trained_on: NotRequired[bool]  # whether the model was trained on this split, according to the training run
    videos: NotRequired[int | None]
    texts: NotRequired[int | None]
    questions: NotRequired[int | None]
    classes: NotRequired[int | None]
    out_of_vocabulary: NotRequired[int | None]
    objects: NotRequired[int | None]
    cut_off: NotRequired[int | None]
    unreadable: NotRequired[list | None]  # ids of videos that were left out


class ProtocolRecord(TypedDict):
    """The protocol of an evaluation."""

    name: str | None  # None if corpus and task were chosen freely
    task: str
    zero_shot: bool
    captions: str | None
    source: NotRequired[str]
    primary_metric: str
    frames: int | None  # per clip
    clips: int | None  # per video
    window_stride: int | None
    templates: NotRequired[list | None]  # prompts
    dual_softmax_temperature: NotRequired[int | float | None]
    rerank: NotRequired[int | None]  # candidates per query in retrieval


class FoldRecord(TypedDict):
    """The results of one fold."""

    fold: int
    model: dict
    data: dict
    metrics: Metrics


class _NamedRecord(TypedDict):
    """The common properties of the models of several folds."""

    name: str


class _VersionsRecord(TypedDict):
    torch: str
    transformers: str
    region_learner: str


@strict
@dataclass
class EvaluationResults:
    """
    The results of an evaluation, and everything that they depend on.

    Args:
        model: a [`ModelRecord`]; for several folds, the common properties of their models, and the `name`.
        data: a [`DataRecord`]; for several folds, only `corpus`, `data_dir`, `split` and `options`, without `fold`.
        protocol: a [`ProtocolRecord`].
        metrics: the plain metrics, in percent, or ranks from 1. For several folds, their means.
        rescored: metrics after dual-softmax re-scoring, with the prefix `dsl_`, or None. They are not comparable with
            the others, because re-scoring uses all queries at once.
        reranked: metrics after re-ranking by words and regions, with the prefix `rr_`, or None. They are not
            comparable with those of embeddings alone.
        notes: remarks for the reader, above all if the gallery does not have the published size.
        folds: a [`FoldRecord`] for each fold if several were evaluated; otherwise None.
        dtype, device: dtype of the model, and device of the evaluation.
        versions: versions of Python and of the packages that numbers depend on, and the platform.
        date: the time when it ended, in UTC (ISO 8601).
        seconds: how long it took, including the time to load corpus and model.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    protocol: dict[str, Any]
    metrics: Metrics
    rescored: Metrics | None = None
    reranked: Metrics | None = None
    notes: list[str] = field(default_factory=list)
    folds: list[dict[str, Any]] | None = None
    dtype: str = "float32"
    device: str = "cpu"
    versions: dict[str, str | None] = field(default_factory=versions)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    seconds: int | float = 0.0

    @property
    def primary(self) -> tuple[str, float]:
        """The name and value of the protocol's primary metric."""
        name = self.protocol["primary_metric"]
        return name, self.metrics[name]

    @property
    def trained_on(self) -> bool:
        """Whether the model, or that of a fold, is known to have been trained on the split that was evaluated."""
        return any(part["data"].get("trained_on", False) for part in self.folds or [{"data": self.data}])

    @property
    def mean_of(self) -> str:
        """A phrase that says which folds the metrics are means of; empty without folds."""
        numbers = [part["fold"] for part in self.folds or []]
        if not numbers:
            return ""
        consecutive = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1))
        return f"mean of folds {f'{numbers[0]} to {numbers[-1]}' if consecutive else ', '.join(map(str, numbers))}"

    def check(self) -> None:
        """
        Checks that the results are complete.

        Raises:
            ValueError: a field of one of the records is missing or has another type, or a metric is not finite. The
                message names the field.
        """
        _check_record("protocol", ProtocolRecord, self.protocol)
        _check_record("data", DataRecord, self.data)
        _check_record("versions", _VersionsRecord, self.versions)
        _check_record("model", _NamedRecord if self.folds else ModelRecord, self.model)
        _check_finite("metrics", self.metrics)
        _check_finite("rescored", self.rescored or {})
        _check_finite("reranked", self.reranked or {})
        if self.protocol["primary_metric"] not in self.metrics:
            raise ValueError(f"metrics: the primary metric, {self.protocol['primary_metric']!r}, is missing")
        for number, fold in enumerate(self.folds or []):
            where = f"folds[{number}]"
            _check_record(where, FoldRecord, fold)
            _check_record(f"{where}.model", ModelRecord, fold["model"])
            _check_record(f"{where}.data", DataRecord, fold["data"])
            _check_finite(f"{where}.metrics", fold["metrics"])
            if fold["metrics"].keys() != self.metrics.keys():
                raise ValueError(f"{where}.metrics: expected the same metrics as those of the mean")


def _check_record(where: str, kind: Any, record: Mapping[str, Any]) -> None:
    types = get_type_hints(kind, include_extras=True)
    for name, expected in types.items():
        if name in record:
            # Older versions of huggingface-hub accept True as an int.
            if expected is int and isinstance(record[name], bool):
                raise ValueError(f"Field '{where}.{name}' expected int, got bool")
            try:
                type_validator(f"{where}.{name}", record[name], expected)
            except TypeError as error:
                raise ValueError(_in_one_line(error)) from error
        elif name in kind.__required_keys__:
            raise ValueError(f"{where}: {name!r} is missing")


def _check_finite(where: str, metrics: Mapping[str, int | float]) -> None:
    for name, value in metrics.items():
        if isinstance(value, bool):
            raise ValueError(f"{where}: {name!r} is {value}, which is not a number")
        if not abs(value) <= sys.float_info.max:  # an integer may be beyond any float
            raise ValueError(f"{where}: {name!r} is {value!r:.80}, which is not finite: check the model for NaN.")


def _in_one_line(error: BaseException) -> str:
    """Returns the innermost cause of an error, which names the field, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()).split(" Errors: ")[0]
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    return text if len(text) <= 200 else f"{text[:200]}..."


def write_results(results: EvaluationResults, path: str | os.PathLike[str]) -> None:
    """
    Writes results to a JSON file, atomically.

    Raises:
        ValueError: `path` is a directory or another kind of file (results are replaced; see [`check_output`]), or the
            results are incomplete or not finite.

    Example:

        results = evaluate_checkpoint(Protocol(corpus="folder"), "CHECKPOINT", "my_videos")
        write_results(results, "mine.json")
    """
    path = Path(path)
    check_output(path)
    try:
        results.check()
        content = {"schema": SCHEMA} | dataclasses.asdict(results)
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"The results cannot be written to {path}: {error}") from error
    write_text(path, text + "\n")


def check_output(path: str | os.PathLike[str]) -> None:
    """
    Checks before an evaluation that its results can be written to `path`, and creates its directory.

    Raises:
        ValueError: `path` is a directory, is a file of another kind, such as the results.json of a training run, or
            cannot be written to.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ValueError(f"{path} is a directory: name a file, such as {path / 'evaluation.json'}.")
        if path.exists():
            try:
                read_results(path)
            except ValueError as error:
                raise ValueError(f"{path} exists and would be overwritten ({error}): name another file.") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_of(path).touch()
        partial_of(path).unlink()
    except OSError as error:
        raise ValueError(f"Results cannot be written to {path} ({error}): name another file.") from error


def results_in(directory: str | os.PathLike[str]) -> list[Path]:
    """
    Returns the files in a directory that look like those of [`write_results`], whether intact or damaged: those with
    a 'schema'.

    Raises:
        ValueError: there are no such files.
    """
    found = []
    for path in sorted(Path(directory).glob("*.json")):
        text = path.read_bytes()
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):  # `read_results` will report it
            content = {"schema": None} if b'"schema"' in text else {}
        if isinstance(content, dict) and "schema" in content:
            found.append(path)
    if not found:
        raise ValueError(
            f"{directory} has no results: write some with `region-learner evaluate {directory} --protocol NAME "
            f"--output {Path(directory) / 'NAME.json'}`."
        )
    return found


def region_results_in(directory: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Returns the results of `region-learner regions MODEL --corpus NAME --json` in a directory, by file name."""
    found = {}
    for path in sorted(Path(directory).glob("*.json")):
        with suppress(ValueError, RecursionError):
            content = json.loads(path.read_bytes())
            if isinstance(content, dict) and {"learned", "objects"} <= content.keys():
                found[path.name] = content
    return found


def read_results(path: str | os.PathLike[str]) -> EvaluationResults:
    """
    Returns the results in a file that [`write_results`] has written.

    Raises:
        OSError: the file does not exist.
        ValueError: the file is not JSON, does not contain the results of an evaluation, or has another schema.

    Example:

        read_results("results.json").metrics["t2v_R@1"]
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    try:
        return _parse(content)
    except ValueError as error:
        raise ValueError(f"{path} does not contain results of `region-learner evaluate`: {error}") from error


def _parse(content: Any) -> EvaluationResults:
    if not isinstance(content, dict) or "schema" not in content:
        raise ValueError("'schema' is missing")
    content.pop("seed", None)  # earlier versions wrote a seed, although nothing was drawn at random
    content.setdefault("reranked", None)  # earlier versions did not re-rank
    if (schema := content.pop("schema")) != SCHEMA:
        raise ValueError(f"the schema is {schema!r:.80}, expected {SCHEMA}: read it with the version that wrote it")
    names = {item.name for item in dataclasses.fields(EvaluationResults)}
    if different := names ^ content.keys():
        raise ValueError(f"missing or unknown: {', '.join(sorted(different))}")
    try:
        results = EvaluationResults(**content)
    except StrictDataclassFieldValidationError as error:
        raise ValueError(_in_one_line(error)) from error
    results.check()
    return results


def mean_of_folds(results: Sequence[EvaluationResults], folds: Sequence[int], name: str) -> EvaluationResults:
    """
    Returns one result for several folds: the mean of each metric, the sum of the seconds, all notes, and the results
    of each fold under `folds`. Values that belong to one fold, such as numbers of videos, are only given there.

    Args:
        results: the results of each fold, for the same protocol.
        folds: numbers of the folds.
        name: name of the model, with "{fold}" if there is one model for each fold.

    Raises:
        ValueError: the results are for different protocols, or have different metrics.
    """
    first = results[0]
    for other in results[1:]:
        if other.protocol != first.protocol or other.metrics.keys() != first.metrics.keys():
            raise ValueError("Folds are averaged over one protocol, but these results are of different ones.")
    parts = [
        {"fold": fold, "model": one.model, "data": one.data, "metrics": one.metrics}
        for fold, one in zip(folds, results, strict=True)
    ]
    in_common = {
        key: value for key, value in first.model.items() if all(one.model.get(key) == value for one in results)
    }
    noted: dict[str, list[str]] = {}
    for fold, one in zip(folds, results):
        for note in one.notes:
            noted.setdefault(note, []).append(str(fold))
    return dataclasses.replace(
        first,
        model=in_common | {"name": shown_path(name)},
        data={key: first.data[key] for key in ("corpus", "data_dir", "split")}
        | {"options": {key: value for key, value in first.data["options"].items() if key != "fold"}},
        metrics=_mean([one.metrics for one in results]),
        rescored=None if first.rescored is None else _mean([one.rescored or {} for one in results]),
        reranked=None if first.reranked is None else _mean([one.reranked or {} for one in results]),
        notes=[f"fold{'s' * (len(those) > 1)} {', '.join(those)}: {note}" for note, those in noted.items()],
        folds=parts,
        date=results[-1].date,
        seconds=math.fsum(one.seconds for one in results),
    )


def _mean(metrics: Sequence[Mapping[str, float]]) -> dict[str, int | float]:
    return {name: math.fsum(each[name] for each in metrics) / len(metrics) for name in metrics[0]}

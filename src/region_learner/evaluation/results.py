"""
Results of an evaluation as one JSON file, from which model cards are made.

A file says what its numbers depend on, with a SHA-256 of weights, configuration, preprocessing and tokenizer, and of
the ids and texts that were evaluated; not of the videos themselves. It holds no path of the machine. Its keys are the
fields of [`EvaluationResults`], and `schema`, which is raised when their meaning changes.
"""

import dataclasses
import hashlib
import json
import math
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ..files import partial_of, write_text

SCHEMA = 2

_VIDEO_CONFIG = (
    "num_frames", "image_size", "patch_size", "hidden_size", "num_hidden_layers", "codebook_size", "num_regions",
    "interaction_layers", "motion_excitation", "temporal_fusion",
)  # fmt: skip

# What numbers depend on beside the weights, as far as a checkpoint has it.
_FILES = (
    "config.json", "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip

# Of the columns of a corpus, what is evaluated.
_COLUMNS = ("video_id", "captions", "question", "options", "answer", "label")

# What not every result has; all the rest is there, if only as None.
_COUNTS = ("videos", "texts", "questions", "classes", "out_of_vocabulary")
_OPTIONAL = (*_COUNTS, "unreadable", "trained_on", "templates")

# The kinds of what a file holds.
_KINDS: dict[str, dict[str, Any]] = {
    "results": {
        "model": dict, "data": dict, "protocol": dict, "metrics": dict, "rescored": dict | None, "notes": list,
        "folds": list | None, "dtype": str, "device": str, "versions": dict, "date": str,
        "seconds": int | float,
    },
    "model": {
        "name": str, "class": str, "revision": str | None, "weights": dict, "files": dict, "parameters": int,
        "config": dict, "trained_on": list | None,
    },
    "data": {
        "corpus": str, "data_dir": str | None, "split": str, "options": dict, "unreadable": list | None,
        "trained_on": bool,
        **dict.fromkeys(_COUNTS, int | None),
    },
    "protocol": {
        "name": str | None, "task": str, "zero_shot": bool, "captions": str | None, "primary_metric": str,
        "frames": int | None, "clips": int | None, "window_stride": int | None, "templates": list | None,
    },
    "fold": {"fold": int, "model": dict, "data": dict, "metrics": dict},
}  # fmt: skip


@dataclass
class EvaluationResults:
    """
    Args:
        model: `name` as given (of an absolute path, its last part), `class`, `revision` (commit, of a Hub model),
            `weights` (SHA-256 by name of file; empty if there is no such file), `files` (the same for configuration,
            preprocessing and tokenizer), `parameters` (number), `config` (sizes of the towers), `trained_on` (corpora,
            as far as its training run says). Of several folds, what their models have in common, and the `name`.
        data: `corpus`, `data_dir` (its name alone), `split`, `options`, `trained_on` (whether the model's training run
            says that this split was trained on), `sha256` (of the ids and texts), the numbers
            of what was evaluated as far as the task has them (`videos`, `texts`, `questions`, `classes`,
            `out_of_vocabulary`), and `unreadable`, the ids of videos that were left out. Of several folds,
            `corpus`, `data_dir`, `split` and `options` alone, and no option `fold`.
        protocol: `name` (None if corpus and task were chosen freely), `task`, `zero_shot`, `captions`, `source`,
            `primary_metric`, `frames` a clip, `clips` a video or `window_stride`, and where it applies `templates`
            and `dual_softmax_temperature`.
        metrics: the plain ones: in percent, or ranks from 1. Of several folds, their means.
        rescored: metrics after dual-softmax re-scoring, with the prefix `dsl_`, or None. Never to be mixed with the
            others: it uses all queries at once.
        notes: what a reader has to know, above all a gallery of another size than published.
        folds: where several were evaluated, for each its `fold`, `model`, `data` and `metrics`; else None.
        dtype, device: of the evaluation.
        versions: of Python, the packages that decide on numbers, and the platform.
        date: when it ended, ISO 8601 in UTC.
        seconds: how long it took, loading of corpus and model included.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    protocol: dict[str, Any]
    metrics: dict[str, float]
    rescored: dict[str, float] | None = None
    notes: list[str] = field(default_factory=list)
    folds: list[dict[str, Any]] | None = None
    dtype: str = "float32"
    device: str = "cpu"
    versions: dict[str, str | None] = field(default_factory=lambda: versions())
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    seconds: float = 0.0

    @property
    def primary(self) -> tuple[str, float]:
        """Name and value of the protocol's primary metric."""
        name = self.protocol["primary_metric"]
        return name, self.metrics[name]

    @property
    def trained_on(self) -> bool:
        """Whether the model, or that of a fold, is known to have been trained on the split it was evaluated on."""
        return any(part["data"].get("trained_on", False) for part in self.folds or [{"data": self.data}])

    @property
    def mean_of(self) -> str:
        """Which folds the metrics are means of, in words; empty if there are none."""
        numbers = [part["fold"] for part in self.folds or []]
        if not numbers:
            return ""
        in_a_row = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1))
        return f"mean of folds {f'{numbers[0]} to {numbers[-1]}' if in_a_row else ', '.join(map(str, numbers))}"


def write_results(results: EvaluationResults, path: str | os.PathLike[str]) -> None:
    """
    Writes the file, whole or not at all.

    Raises:
        ValueError: something else lies there (see [`check_output`]), or metrics are no finite numbers.
    """
    path = Path(path)
    check_output(path)
    content = dataclasses.asdict(results)
    try:
        _check(content)
        text = json.dumps({"schema": SCHEMA} | content, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"The results cannot be written to {path}: {error}") from error
    write_text(path, text + "\n")


def check_output(path: str | os.PathLike[str]) -> None:
    """
    Whether results can be written to `path`: to be asked before the evaluation. Makes its directory.

    Raises:
        ValueError: it is a directory, a file that is no evaluation's, such as the results.json of a training run, or
            nothing can be written there.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ValueError(
                f"{path} is a directory: give a file for the results, such as {path / 'evaluation.json'}."
            )
        if path.exists():
            try:
                read_results(path)
            except ValueError as error:
                raise ValueError(f"{path} is there already and would be lost ({error}): give another file.") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_of(path).touch()
        partial_of(path).unlink()
    except OSError as error:
        raise ValueError(f"Results cannot be written to {path} ({error}): give another file.") from error


def results_in(directory: str | os.PathLike[str]) -> list[Path]:
    """
    The files right in a directory that [`write_results`] wrote, as it seems, whole or damaged: those with a 'schema'.

    Raises:
        ValueError: there is none.
    """
    found = []
    for path in sorted(Path(directory).glob("*.json")):
        text = path.read_bytes()
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):  # `read_results` will tell
            content = {"schema": None} if b'"schema"' in text else {}
        if isinstance(content, dict) and "schema" in content:
            found.append(path)
    if not found:
        raise ValueError(
            f"{directory} holds no results: make some by `region-learner evaluate {directory} --protocol NAME "
            f"--output {Path(directory) / 'NAME.json'}`."
        )
    return found


def read_results(path: str | os.PathLike[str]) -> EvaluationResults:
    """
    Reads what [`write_results`] wrote.

    Raises:
        OSError: there is no such file.
        ValueError: it is no JSON, no results of an evaluation, or of another version.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict) or "schema" not in content:
        raise ValueError(f"{path} holds no results of `region-learner evaluate`: it has no 'schema'")
    content.pop("seed", None)  # of earlier versions, which drew nothing at random either
    if content.pop("schema") != SCHEMA:
        raise ValueError(f"{path} has another schema than {SCHEMA}: read it with the version that wrote it")
    names = {item.name for item in dataclasses.fields(EvaluationResults)}
    if names != content.keys():
        different = ", ".join(sorted(names ^ content.keys()))
        raise ValueError(f"{path} holds no results of `region-learner evaluate`: missing or unknown: {different}")
    try:
        _check(content)
    except ValueError as error:
        raise ValueError(f"{path} holds no results of `region-learner evaluate`: {error}") from error
    return EvaluationResults(**content)


def _check(content: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: something is missing, or of another kind than `EvaluationResults` has it.
    """
    _check_kinds("results", content, _KINDS["results"])
    protocol, folds = content["protocol"], content["folds"]
    _check_kinds("protocol", protocol, _KINDS["protocol"])
    _check_kinds("data", content["data"], _KINDS["data"])
    _check_kinds("versions", content["versions"], dict.fromkeys(("torch", "transformers", "region_learner"), str))
    _check_metrics("rescored", content["rescored"] or {})
    _check_metrics("metrics", content["metrics"])
    if protocol["primary_metric"] not in content["metrics"]:
        raise ValueError(f"metrics: {protocol['primary_metric']!r} is missing")
    if not folds:
        _check_model("model", content["model"])
        return
    _check_kinds("model", content["model"], {"name": str})
    for number, fold in enumerate(folds):
        _check_kinds(f"folds[{number}]", fold, _KINDS["fold"])
        _check_model(f"folds[{number}].model", fold["model"])
        _check_kinds(f"folds[{number}].data", fold["data"], _KINDS["data"])
        _check_metrics(f"folds[{number}].metrics", fold["metrics"])
        if fold["metrics"].keys() != content["metrics"].keys():
            raise ValueError(f"folds[{number}].metrics: they are others than those of the mean")


def _check_model(where: str, model: Any) -> None:
    _check_kinds(where, model, _KINDS["model"])
    for key in ("weights", "files"):
        _check_kinds(f"{where}.{key}", model[key], dict.fromkeys(model[key], str))


def _check_kinds(where: str, values: Any, kinds: Mapping[Any, Any]) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{where} is {values!r:.80}, expected a mapping")
    for key, kind in kinds.items():
        if key not in values:
            if key in _OPTIONAL:
                continue
            raise ValueError(f"{where}: {key!r} is missing")
        # To Python, true is a number.
        if not isinstance(values[key], kind) or (kind is not bool and isinstance(values[key], bool)):
            expected = getattr(kind, "__name__", kind)
            raise ValueError(f"{where}: {key!r} is {values[key]!r:.80}, expected {expected}")


def _check_metrics(where: str, metrics: Mapping[str, Any]) -> None:
    _check_kinds(where, metrics, dict.fromkeys(metrics, int | float))
    for name, value in metrics.items():
        if not abs(value) <= sys.float_info.max:  # an integer may be beyond any float
            raise ValueError(
                f"{where}: {name!r} is {value!r:.80}, which is no result: does the model give finite numbers?"
            )


def mean_of_folds(results: Sequence[EvaluationResults], folds: Sequence[int], name: str) -> EvaluationResults:
    """
    One result of several folds: the mean of each metric, the sum of the seconds, all notes, and under `folds` what
    each gave. What is true of one fold alone, such as numbers of videos, is only there.

    Args:
        results: one for each fold, of one protocol.
        folds: their numbers.
        name: of the model, with "{fold}" if there is one for each.

    Raises:
        ValueError: they are of different protocols or have different metrics.
    """
    first = results[0]
    for other in results[1:]:
        if other.protocol != first.protocol or other.metrics.keys() != first.metrics.keys():
            raise ValueError("Folds are averaged over one protocol: these results are of different ones.")
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
        notes=[f"fold{'s' * (len(those) > 1)} {', '.join(those)}: {note}" for note, those in noted.items()],
        folds=parts,
        date=results[-1].date,
        seconds=math.fsum(one.seconds for one in results),
    )


def _mean(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: math.fsum(each[name] for each in metrics) / len(metrics) for name in metrics[0]}


# --- What is described ---------------------------------------------------------------------------------------


def versions() -> dict[str, str | None]:
    """Of Python, of the packages that numbers depend on (None where one is not installed), and the platform."""
    from .. import __version__

    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "transformers", "av"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found | {"region_learner": __version__, "platform": platform.platform()}


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path or Hub name as it may be published: `name` and `directory/name` as they are, else the last part."""
    text = os.fspath(path)
    parts = re.split(r"[/\\]+", text.rstrip("/\\"))
    of_this_machine = parts[0] in ("", ".", "..") or parts[0].startswith("~") or parts[0].endswith(":")
    return parts[-1] if of_this_machine or len(parts) > 2 else text


def shown_options(value: Any) -> Any:
    """Options as they may be published: paths shortened by [`shown_path`], at any depth, and no `data_dir`."""
    if isinstance(value, Mapping):
        return {key: shown_options(entry) for key, entry in value.items() if key not in ("data_dir", "data_dirs")}
    if isinstance(value, list | tuple):
        return [shown_options(entry) for entry in value]
    return shown_path(value) if isinstance(value, str | os.PathLike) else value


def describe_model(model, name: str) -> dict[str, Any]:
    """
    What `EvaluationResults.model` holds.

    Args:
        model: loaded by `from_pretrained`.
        name: the directory or Hub name it was loaded from.
    """
    revision = None if os.path.isdir(name) else getattr(model.config, "_commit_hash", None)
    video = model.config.video_config
    config = {key: getattr(video, key, None) for key in _VIDEO_CONFIG}
    config["projection_dim"] = model.config.projection_dim
    config["text_model_type"] = model.config.text_config.model_type
    return {
        "name": shown_path(name),
        "class": type(model).__name__,
        "revision": revision,
        "weights": weights_of(name, revision),
        "files": {file: _sha256(path) for file in _FILES if (path := _find(name, file, revision)) is not None},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "config": config,
    }


def describe_data(
    corpus: str, data_dir: str | os.PathLike[str] | None, split: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What `EvaluationResults.data` holds beside what comes from the rows: no path but by its name."""
    directory = None if data_dir is None else Path(data_dir).resolve().name
    return {"corpus": corpus, "data_dir": directory, "split": split, "options": shown_options(options)}


def digest_of_rows(dataset) -> str:
    """SHA-256 of what is evaluated of a data set, but for the videos: ids, texts, labels and their names."""
    label = (dataset.features or {}).get("label")  # a stream may not know its features before it is read
    digest = hashlib.sha256(json.dumps(getattr(label, "names", None)).encode())
    if dataset.column_names:
        dataset = dataset.select_columns([name for name in _COLUMNS if name in dataset.column_names])
    for row in dataset:
        digest.update(json.dumps({name: row[name] for name in _COLUMNS if name in row}, sort_keys=True).encode())
    return digest.hexdigest()


def weights_of(name: str | os.PathLike[str], revision: str | None = None) -> dict[str, str]:
    """SHA-256 of the files of a checkpoint that hold its weights, one or the shards that its index names, by name."""
    index = _find(name, "model.safetensors.index.json", revision)
    files = ["model.safetensors"]
    if index is not None:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return {file: _sha256(path) for file in files if (path := _find(name, file, revision)) is not None}


def _find(name: str | os.PathLike[str], file: str, revision: str | None) -> Path | None:
    """A file of a directory, or of a Hub model in the cache."""
    if os.path.isdir(name):
        path = Path(name) / file
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(os.fspath(name), file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

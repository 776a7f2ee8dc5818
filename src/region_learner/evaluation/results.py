"""
Results of an evaluation as one JSON file, from which model cards are made.

A file holds everything that its numbers depend on, and no path of the machine. Its keys are the fields of
[`EvaluationResults`], and `schema`, which is raised when their meaning changes.
"""

import dataclasses
import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

SCHEMA = 1

_VIDEO_CONFIG = (
    "num_frames", "image_size", "patch_size", "hidden_size", "num_hidden_layers", "codebook_size", "num_regions",
    "interaction_layers", "motion_excitation", "temporal_fusion",
)  # fmt: skip


@dataclass
class EvaluationResults:
    """
    Args:
        model: `name` as given (of an absolute path, its last part), `class`, `revision` (commit, of a Hub model),
            `weights` (SHA-256 by name of file), `parameters` (number), `config` (sizes of the towers).
        data: `corpus`, `data_dir` (its name alone), `split`, `options`, the numbers of what was evaluated as far as
            the task has them (`videos`, `texts`, `questions`, `classes`, `out_of_vocabulary`), and `unreadable`, the
            ids of videos that were left out.
        protocol: `name` (None if corpus and task were chosen freely), `task`, `zero_shot`, `captions`, `source`,
            `primary_metric`, `frames` a clip, `clips` a video or `window_stride`, and where it applies `templates`
            and `dual_softmax_temperature`.
        metrics: the plain ones: in percent, or ranks from 1. Of several folds, their means.
        rescored: metrics after dual-softmax re-scoring, with the prefix `dsl_`, or None. Never to be mixed with the
            others: it uses all queries at once.
        notes: what a reader has to know, above all a gallery of another size than published.
        folds: where several were evaluated, for each its `fold`, `model`, `data` and `metrics`; else None.
        seed, dtype, device: of the evaluation.
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
    seed: int = 0
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


def write_results(results: EvaluationResults, path: str | os.PathLike[str]) -> None:
    """
    Writes the file, whole or not at all.

    Raises:
        ValueError: something else lies there (see [`check_output`]).
    """
    path = Path(path)
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    content = {"schema": SCHEMA} | dataclasses.asdict(results)
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def check_output(path: str | os.PathLike[str]) -> None:
    """
    Whether results may be written to `path`: to be asked before the evaluation.

    Raises:
        ValueError: it is a directory, or a file that is no evaluation's, such as the results.json of a training run.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a directory: give a file for the results, such as {path / 'evaluation.json'}.")
    if path.exists():
        try:
            read_results(path)
        except ValueError as error:
            raise ValueError(f"{path} is there already and would be lost ({error}): give another file.") from error


def read_results(path: str | os.PathLike[str]) -> EvaluationResults:
    """
    Reads what [`write_results`] wrote.

    Raises:
        OSError: there is no such file.
        ValueError: it is no JSON, no results of an evaluation, or of a later version.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict) or "schema" not in content:
        raise ValueError(f"{path} holds no results of `region-learner evaluate`: it has no 'schema'")
    if content.pop("schema") != SCHEMA:
        raise ValueError(f"{path} has another schema than {SCHEMA}: read it with the version that wrote it")
    names = {item.name for item in dataclasses.fields(EvaluationResults)}
    if names != content.keys():
        different = ", ".join(sorted(names ^ content.keys()))
        raise ValueError(f"{path} holds no results of `region-learner evaluate`: missing or unknown: {different}")
    return EvaluationResults(**content)


def mean_of_folds(results: Sequence[EvaluationResults], folds: Sequence[int]) -> EvaluationResults:
    """
    One result of several folds: the mean of each metric, the sum of the seconds, all notes, and under `folds` what
    each gave. `model` and `data` are those of the first.

    Args:
        results: one for each fold, of one protocol.
        folds: their numbers.

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
    return dataclasses.replace(
        first,
        metrics={name: math.fsum(one.metrics[name] for one in results) / len(results) for name in first.metrics},
        notes=[f"fold {fold}: {note}" for fold, one in zip(folds, results) for note in one.notes],
        folds=parts,
        date=results[-1].date,
        seconds=math.fsum(one.seconds for one in results),
    )


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
    """A path or Hub name as it may be published: of an absolute path, its last part."""
    text = os.fspath(path)
    return Path(text).name if os.path.isabs(os.path.expanduser(text)) else text


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
        "weights": {path.name: _sha256(path) for path in _weight_files(name, revision)},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "config": config,
    }


def describe_data(
    corpus: str, data_dir: str | os.PathLike[str] | None, split: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What `EvaluationResults.data` holds beside numbers and unreadable videos: no path but by its name."""
    shown = {key: shown_path(value) if isinstance(value, str | Path) else value for key, value in options.items()}
    directory = None if data_dir is None else Path(data_dir).resolve().name
    return {"corpus": corpus, "data_dir": directory, "split": split, "options": shown}


def _weight_files(name: str, revision: str | None) -> list[Path]:
    """The files of a checkpoint that hold its weights: one, or the shards that its index names."""

    def find(file: str) -> Path | None:
        if os.path.isdir(name):
            path = Path(name) / file
            return path if path.is_file() else None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, file, revision=revision)
        return Path(found) if isinstance(found, str) else None

    index = find("model.safetensors.index.json")
    files = ["model.safetensors"]
    if index is not None:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return [path for path in map(find, files) if path is not None]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

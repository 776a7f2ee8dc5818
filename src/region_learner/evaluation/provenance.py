"""Describes where numbers come from: the model, data and software, and the corpora that a model was trained on."""

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from ..corpora.base import SPLIT_ALIASES
from ..corpora.msrvtt import PROTOCOLS
from ..files import shards_of

_VIDEO_CONFIG = (
    "num_frames", "image_size", "patch_size", "hidden_size", "num_hidden_layers", "codebook_size", "num_regions",
    "interaction_layers", "motion_excitation",
)  # fmt: skip

# Files that numbers depend on in addition to the weights, if a checkpoint has them.
_FILES = (
    "config.json", "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip

# The columns of a corpus that are evaluated.
_COLUMNS = ("video_id", "captions", "question", "options", "answer", "aspect", "label")

# Corpora whose name does not say what they contain.
ANY_VIDEOS = {"features", "folder", "webdataset"}


def versions() -> dict[str, str | None]:
    """Returns the versions of Python and of the packages that numbers depend on, if installed, and the platform."""
    from .. import __version__

    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "transformers", "av"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found | {"region_learner": __version__, "platform": platform.platform()}


def shown_path(path: str | os.PathLike[str]) -> str:
    """Returns a path or Hub name for publication: `name` and `directory/name` unchanged, otherwise the last part."""
    text = os.fspath(path)
    parts = re.split(r"[/\\]+", text.rstrip("/\\"))
    of_this_machine = parts[0] in ("", ".", "..") or parts[0].startswith("~") or parts[0].endswith(":")
    return parts[-1] if of_this_machine or len(parts) > 2 else text


def shown_options(value: Any) -> Any:
    """Returns options for publication: paths shortened by [`shown_path`], at any depth, and without `data_dir`."""
    if isinstance(value, Mapping):
        return {key: shown_options(entry) for key, entry in value.items() if key not in ("data_dir", "data_dirs")}
    if isinstance(value, list | tuple):
        return [shown_options(entry) for entry in value]
    return shown_path(value) if isinstance(value, str | os.PathLike) else value


def describe_model(model, name: str) -> dict[str, Any]:
    """
    Returns the content of `EvaluationResults.model`, except for `trained_on`.

    Args:
        model: a model that was loaded with `from_pretrained`.
        name: the directory or Hub name that it was loaded from.
    """
    revision = commit_of(name)
    video = model.config.video_config
    config = {key: getattr(video, key, None) for key in _VIDEO_CONFIG}
    config["temporal_fusion"] = video.resolved.temporal_fusion
    if video.backbone_config is not None:
        config["backbone"] = getattr(video.backbone_config, "architecture", None) or video.backbone_config.model_type
    config["projection_dim"] = model.config.projection_dim
    config["text_model_type"] = model.config.text_config.model_type
    return {
        "name": shown_path(name),
        "class": type(model).__name__,
        "revision": revision,
        "weights": weights_of(name, revision),
        "files": {file: digest_of_file(path) for file in _FILES if (path := _find(name, file, revision)) is not None},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "config": config,
    }


def describe_data(
    corpus: str, data_dir: str | os.PathLike[str] | None, split: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the entries of `EvaluationResults.data` that do not come from the rows. Paths are shortened."""
    directory = None if data_dir is None else Path(data_dir).resolve().name
    return {"corpus": corpus, "data_dir": directory, "split": split, "options": shown_options(options)}


def digest_of_rows(dataset) -> str:
    """Returns the SHA-256 of the ids, texts and labels (with their names) of a dataset, without the videos."""
    label = (dataset.features or {}).get("label")  # a stream may not know its features before it is read
    digest = hashlib.sha256(json.dumps(getattr(label, "names", None)).encode())
    if dataset.column_names:
        dataset = dataset.select_columns([name for name in _COLUMNS if name in dataset.column_names])
    for row in dataset:
        digest.update(json.dumps({name: row[name] for name in _COLUMNS if name in row}, sort_keys=True).encode())
    return digest.hexdigest()


def commit_of(name: str | os.PathLike[str]) -> str | None:
    """Returns the commit of a Hub model in the cache that was loaded last; None for a directory."""
    path = None if os.path.isdir(name) else _find(name, "config.json", None)
    return path.parent.name if path is not None and re.fullmatch("[0-9a-f]{40}", path.parent.name) else None


def weights_of(name: str | os.PathLike[str], revision: str | None = None) -> dict[str, str]:
    """
    Returns the SHA-256 of each weights file of a checkpoint: one file, or the shards that its index names.

    Raises:
        ValueError: the index of the shards is damaged.
    """
    files = ["model.safetensors"]
    index = _find(name, "model.safetensors.index.json", revision)
    if index is not None and _find(name, files[0], revision) is None:  # transformers prefers the single file, too
        # An index must not point outside the checkpoint.
        files = [file for file in sorted(shards_of(index)) if Path(file).name == file]
    return {file: digest_of_file(path) for file in files if (path := _find(name, file, revision)) is not None}


def _find(name: str | os.PathLike[str], file: str, revision: str | None) -> Path | None:
    """Returns the path of a file in a directory, or of a Hub model in the cache."""
    if os.path.isdir(name):
        path = Path(name) / file
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(os.fspath(name), file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def digest_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- What a model was trained on --------------------------------------------------------------------------------


def videos_of(corpus: str) -> str:
    """Returns the corpus that provides the videos of a corpus: "msrvtt" for "msrvtt_qa" and, in part, "vitatecs"."""
    return "msrvtt" if corpus == "vitatecs" else corpus.removesuffix("_qa").removesuffix("_mc")


def lists_of(corpus: str, options: Mapping[str, Any]) -> str | None:
    """
    Returns which of several published lists divide the videos of a corpus into splits: "protocol 1k-A" or "fold 2".
    Returns None if there is only one division.
    """
    if corpus == "msrvtt":
        return f"protocol {PROTOCOLS.get(str(options.get('protocol', '1k-A')).lower())}"
    if corpus in ("msrvtt_qa", "msrvtt_mc"):
        return "protocol full"
    return f"fold {options.get('fold', 1)}" if corpus in ("hmdb51", "ucf101") else None


class TrainingCorpus(NamedTuple):
    """A corpus that a model was trained on. `lists` are those of [`lists_of`]."""

    corpus: str
    data_dir: str | None
    split: str
    lists: str | None

    def is_split(self, corpus: str, data_dir: str | Path | None, split: str, lists: str | None) -> bool:
        """
        Returns whether this split has videos of the given split of a corpus. For a folder, the directory must also be
        the same.
        """
        if (videos_of(self.corpus), self.lists) != (videos_of(corpus), lists):
            return False
        if "all" not in (self.split, split) and split not in (self.split, SPLIT_ALIASES.get(self.split)):
            return False
        return corpus not in ANY_VIDEOS or Path(self.data_dir or "").resolve() == Path(data_dir or "").resolve()


class TrainingHistory(NamedTuple):
    """
    The corpora that a model was trained on, according to the results.json of its training run and of the runs that it
    started from.

    `corpora` are the known corpora; `unknown` is the checkpoint whose training is not known, or None.
    """

    corpora: set[TrainingCorpus]
    unknown: str | None

    @property
    def names(self) -> list[str]:
        """The names of the corpora, sorted."""
        return sorted({entry.corpus for entry in self.corpora})

    def includes(self, corpus: str) -> bool:
        """Returns whether the model was trained on videos of a corpus."""
        return videos_of(corpus) in map(videos_of, self.names)

    def includes_split(self, corpus: str, data_dir: str | Path | None, split: str, lists: str | None = None) -> bool:
        """Returns whether the model was trained on this split of a corpus."""
        return any(entry.is_split(corpus, data_dir, split, lists) for entry in self.corpora)

    def other_lists(self, corpus: str, lists: str | None) -> list[str]:
        """
        Returns the other lists that the model was trained with on the same videos. Its training videos may then be in
        any split of `lists`.
        """
        same = (entry for entry in self.corpora if videos_of(entry.corpus) == videos_of(corpus))
        return sorted({entry.lists for entry in same if entry.lists and lists and entry.lists != lists})

    def doubts(self) -> list[str]:
        """Returns the reasons, if any, why the model may also have been trained on other corpora."""
        reasons = [f"its corpus {name!r} may contain any videos" for name in self.names if name in ANY_VIDEOS]
        if self.unknown is not None:
            reasons.append(f"no results.json says how {shown_path(self.unknown)!r} was trained")
        return reasons


def training_corpora(arguments: Mapping[str, Any]) -> set[TrainingCorpus]:
    """
    Returns the corpora that a run with these arguments trains on.

    Raises:
        KeyError, TypeError, AttributeError: they are not those of a run.
    """
    found = set()
    for entry in arguments.get("corpora") or [{}]:
        corpus = str(entry.get("corpus", arguments["corpus"]))
        data_dir = entry.get("data_dir", None if "corpus" in entry else arguments.get("data_dir"))
        split = entry.get("split", arguments.get("train_split", "train"))
        options = {} if "corpus" in entry else arguments.get("corpus_options") or {}
        found.add(TrainingCorpus(corpus, data_dir, str(split), lists_of(corpus, options | entry.get("options", {}))))
    return found


def record_of_run(model: str) -> Path:
    """Returns the path of the results.json of the run that has trained a model, which may be a checkpoint in it."""
    path = Path(model).absolute() / "results.json"
    if not path.is_file() and path.parent.name.startswith("checkpoint-"):
        path = path.parent.parent / path.name
    return path


def training_history(model: str) -> TrainingHistory:
    """Returns the corpora that a model was trained on. `model` is a directory or a Hub name."""
    corpora: set[TrainingCorpus] = set()
    seen: set[Path] = set()
    name: str | None = model
    while name is not None:
        path = record_of_run(name)
        try:
            arguments = json.loads(path.read_bytes())["arguments"]
            corpora |= training_corpora(arguments)
            start = arguments.get("model")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return TrainingHistory(corpora, name)
        if path in seen:  # the run has overwritten the one that it started from
            return TrainingHistory(corpora, name)
        seen.add(path)
        name = None if start is None else str(start)
    return TrainingHistory(corpora, None)

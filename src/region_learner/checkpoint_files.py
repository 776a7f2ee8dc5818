"""Tells which files in a directory belong to the checkpoint, and which only to the run that made it."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from markdown_it import MarkdownIt  # comes with rich

from .evaluation.provenance import shown_options

# Weights of a model, in one file or several.
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")

CARD = "README.md"
RESULTS = "results.json"  # of the training run

_CONFIGS = ("config.json", "processor_config.json", "tokenizer_config.json", "video_preprocessor_config.json")
# Files that transformers and sentence-transformers load models, processors and tokenizers from, except weights.
_OF_PROCESSOR = {
    "processor_config.json", "tokenizer_config.json", "video_preprocessor_config.json", "preprocessor_config.json",
    "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
}  # fmt: skip
_OF_MODEL = {
    "config.json", "generation_config.json", "modules.json", "config_sentence_transformers.json",
    "sentence_bert_config.json",
}  # fmt: skip
LOADED = _OF_PROCESSOR | _OF_MODEL
# Weights that `from_pretrained` may load, but that are not published: in other formats, and adapters.
_OTHER_WEIGHTS = re.compile(r"(pytorch_model|tf_model|flax_model|adapter_model)\b.*|adapter_config\.json")
_READ_BY_PEOPLE = re.compile(r"README\.md|(LICENSE|NOTICE)(\.\w+)?", re.IGNORECASE)
_IMPORT = re.compile(r"^\s*from\s+\.(\w+)\s+import\b", re.MULTILINE)
_METADATA = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_SOURCE = re.compile(r"""\bsrc=(?:"([^"]+)"|'([^']+)')""")
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".mp4")

# Files that are not published: a pattern of their names, and the reason.
_LEFT_OUT = (
    (r"checkpoint-\d+", "checkpoint within a training run"),
    (
        r"(optimizer|scheduler|scaler)(_\d+)?(\.\w+)?|rng_state.*|trainer_state\.json|training_args\.bin|complete\.json"
        r"|data_order\.json|optimization\.json|stream\.json|latest|global_step\d+|zero_to_fp32\.py|runs|adapter",
        "state of a training run",
    ),
    (r"emissions\.csv|unreadable_videos\.json|.*\.log", "record of a training run"),
    (
        r".*\.(bin|pth?|ckpt|h5|msgpack|onnx)|pytorch_model.*\.index\.json",
        "weights in another format than safetensors",
    ),
    (r"\..*", "hidden file"),
)


class CheckpointFiles(NamedTuple):
    """The files in a directory by name: those that belong to the checkpoint, and for others why they do not."""

    belong: dict[str, Path]
    left_out: dict[str, str]


def checkpoint_files(directory: Path, also: Iterable[str] = ()) -> CheckpointFiles:
    """
    Separates the files of a checkpoint from the other files in its directory.

    The checkpoint is what `from_pretrained` and sentence-transformers load (weights as safetensors, configuration,
    tokenizer, source files that a configuration names), its card with the pictures that it shows, and its license.

    Args:
        directory: directory of the checkpoint.
        also: names of other files that belong to it, such as results files.
    """
    wanted = set(also) | _pictures(directory) | _sources(directory)
    folders = {f"{folder}/" for folder in _folders_of_modules(directory)}
    belong: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    for path in sorted(directory.iterdir()):
        name = path.name
        if path.is_dir():
            inside = {
                file.relative_to(directory).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()
            }
            kept = {
                inner: file
                for inner, file in inside.items()
                if inner in wanted or (f"{name}/" in folders and file.suffix in (".json", ".safetensors", ".txt"))
            }
            belong |= kept
            if not kept:
                left_out[f"{name}/"] = _why(name)
            else:
                left_out |= {inner: _why(file.name) for inner, file in inside.items() if inner not in kept}
        elif name in LOADED or name in wanted or WEIGHTS.fullmatch(name) or _READ_BY_PEOPLE.fullmatch(name):
            belong[name] = path
        else:
            left_out[name] = _why(name)
    return CheckpointFiles(belong, left_out)


def replaced_files(present: Iterable[str], files: Iterable[str]) -> set[str]:
    """
    Returns the files of a repository that a push replaces without having them itself: `from_pretrained` would load
    them together with the new model. If the push has no processor or tokenizer, those of the repository are kept.

    Args:
        present: names of the files in the repository.
        files: names of the files that are pushed.
    """
    names = set(files)
    if not any(WEIGHTS.fullmatch(name) for name in names):
        return set()
    loaded = LOADED if names & _OF_PROCESSOR else _OF_MODEL
    return {
        name
        for name in set(present) - names
        if name in loaded or WEIGHTS.fullmatch(name) or _OTHER_WEIGHTS.fullmatch(name)
    }


def is_results(content: bytes, of_training: bool = True) -> bool:
    """
    Returns whether a file has results of an evaluation or of regions, or, with `of_training`, is the results.json of a
    training run.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return False
    kinds = [{"schema", "model", "protocol", "metrics"}, {"model", "learned", "objects"}]
    kinds += [{"train", "arguments"}] * of_training
    return isinstance(found, dict) and any(kind <= found.keys() for kind in kinds)


def _why(name: str) -> str:
    return next((reason for pattern, reason in _LEFT_OUT if re.fullmatch(pattern, name)), "not part of a checkpoint")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):  # the checks of a checkpoint report this
        return None


def _sources(directory: Path) -> set[str]:
    """Returns the source files that the configurations name, and those that these import."""
    modules: set[str] = set()
    for name in _CONFIGS:
        config = _read(directory / name)
        if isinstance(config, dict):
            _collect(config, modules)
    listed = _read(directory / "modules.json")
    for module in listed if isinstance(listed, list) else []:
        modules.add(str(module.get("type", "")).rpartition(".")[0])
    found: set[str] = set()
    while modules:
        path = directory / f"{modules.pop()}.py"
        if path.name not in found and path.is_file():
            found.add(path.name)
            modules |= set(_IMPORT.findall(path.read_text(encoding="utf-8", errors="replace")))
    return found


def _collect(config: dict[str, Any], modules: set[str]) -> None:
    """Adds the modules of `auto_map`, at any depth, and of `custom_pipelines`."""
    for key, value in config.items():
        if key == "auto_map" and isinstance(value, dict):
            for names in value.values():
                for name in names if isinstance(names, list) else [names]:
                    modules.add(str(name).partition(".")[0])
        elif key == "custom_pipelines" and isinstance(value, dict):
            modules |= {str(pipeline.get("impl", "")).partition(".")[0] for pipeline in value.values()}
        elif isinstance(value, dict):
            _collect(value, modules)


def _folders_of_modules(directory: Path) -> list[str]:
    """Returns the directories of the modules of sentence-transformers."""
    modules = _read(directory / "modules.json")
    paths = [str(module.get("path", "")) for module in modules] if isinstance(modules, list) else []
    return [path.partition("/")[0] for path in paths if path]


def _pictures(directory: Path) -> set[str]:
    """Returns the pictures and videos in the directory that the card shows."""
    card = directory / CARD
    if not card.is_file():
        return set()
    names = set()
    for token in MarkdownIt("commonmark").enable("table").parse(_METADATA.sub("", card.read_text("utf-8", "replace"))):
        for part in (token, *(token.children or ())):
            linked = [part.attrs.get("src"), part.attrs.get("href")]
            if part.type.startswith("html"):
                linked += [one or other for one, other in _SOURCE.findall(part.content)]
            names |= {unquote(str(name)).removeprefix("./") for name in linked if name}
    return {
        name
        for name in names
        if name.lower().endswith(_PICTURES) and (directory / name).is_file() and ".." not in Path(name).parts
    }


def published_run(directory: Path) -> bytes | None:
    """
    Returns the results.json of a training run for publication, without data directories and with paths cut to their
    last part; None if the file does not exist.
    """
    path = directory / RESULTS
    try:
        run = json.loads(path.read_bytes())
        arguments = run["arguments"]
        is_of_training = "train" in run
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not is_of_training:
        return None
    if (shown := shown_options(arguments)) == arguments:
        return path.read_bytes()
    return (json.dumps(run | {"arguments": shown}, indent=2, ensure_ascii=False) + "\n").encode()

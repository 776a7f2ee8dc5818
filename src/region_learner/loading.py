"""Checkpoints by name: whether there is one, and its processor."""

import os
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, PreTrainedConfig
from transformers.utils import cached_file

from .corpora.folder import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from .files import near_file
from .text_tower import check_text_tower

_CONFIGS = ("config.json", "adapter_config.json")


def check_checkpoint(name: str):
    """
    Looks whether a name can be that of a checkpoint, before anything is loaded.

    Raises:
        OSError: it is that of a local directory which does not exist, or is not a checkpoint.
    """
    path = Path(name)
    if path.is_file():
        cure = "give its directory, or a Hub name such as owner/name"
        if path.suffix in (".pth", ".pt"):
            cure = f"convert it first, by `region-learner convert {name} DIRECTORY`"
        elif path.suffix.lower() in VIDEO_EXTENSIONS + IMAGE_EXTENSIONS:
            cure = "the checkpoint comes first, and videos after it"
        raise NotADirectoryError(f"{name} is a file, not a checkpoint: {cure}.")
    if path.is_dir():
        if not any((path / config).is_file() for config in _CONFIGS):
            inside = sorted(found.parent for config in _CONFIGS for found in path.glob(f"*/{config}"))
            near = f"; did you mean {str(inside[-1])!r}?" if inside else "."
            raise FileNotFoundError(f"{name} is not a checkpoint: there is no config.json in it{near}")
    elif name.startswith((".", "~")) or path.is_absolute() or name.count("/") > 1 or name.endswith("/"):
        near = near_file(path) or "."
        raise FileNotFoundError(
            f"There is no directory {name}{near} A checkpoint is a directory, or a Hub name such as owner/name."
        )


def check_video(name: str):
    """
    Raises:
        OSError: it names a local file that does not exist, or a directory.
    """
    if os.path.isdir(name):
        raise IsADirectoryError(f"{name} is a directory: name its videos, such as {os.path.join(name, '*.mp4')}.")
    if "://" not in name and not os.path.exists(name):
        raise FileNotFoundError(f"There is no file {name}{near_file(name) or '.'}")


def _has(name: str | os.PathLike, file: str) -> bool:
    try:
        return cached_file(name, file) is not None
    except OSError:  # as transformers says that there is none
        return False


def load_processor(name: str | os.PathLike, text_config: PreTrainedConfig | None) -> Any:
    """
    Returns the processor of a checkpoint, after a look whether its tokenizer fits the text tower; or, for those who
    read no texts, its video processor alone.

    Args:
        name: a directory or Hub name.
        text_config: of the text tower; None for the video processor alone.

    Raises:
        OSError: the checkpoint has no such files.
        ValueError: it has no tokenizer, or one that does not fit.
    """
    if text_config is None:
        from transformers import AutoVideoProcessor

        return AutoVideoProcessor.from_pretrained(name)
    try:
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        files = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
        if any(_has(name, file) for file in files):
            raise
        raise ValueError(
            f"{name} has no tokenizer, so texts cannot be read: convert it again with --tokenizer, or save the "
            "tokenizer of its text encoder there, such as AutoTokenizer.from_pretrained('distilbert-base-uncased')"
            f".save_pretrained({os.fspath(name)!r})."
        ) from error
    check_text_tower(text_config, processor.tokenizer)
    return processor

"""Reads the configurations and weights of other checkpoints, with one-line errors for damaged ones."""

import os
import pickle
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, Siglip2Tokenizer

from ..errors import install_hint
from ..loading import check_files, check_name
from ..text_tower import check_text_tower


def start_of(error: Exception) -> str:
    """Returns the first two lines of an error's message in one line."""
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:2])[:300]


def load_config(name: str | os.PathLike) -> PreTrainedConfig:
    """
    Returns the configuration of a checkpoint, given by its directory or Hub name.

    Raises:
        OSError: the checkpoint does not exist, or cannot be downloaded.
    """
    check_name(str(name), "a model")
    try:
        return AutoConfig.from_pretrained(name)
    except OSError as error:
        if os.path.isdir(name):
            raise
        raise OSError(
            f"{str(name)!r} is not a local directory, and downloading it from the Hub failed: {start_of(error)}"
        ) from error


def load_weights(model_class: Any, name: str | os.PathLike, **options) -> tuple[PreTrainedModel, list[str]]:
    """
    Returns a model in float32, and the names of weights that its checkpoint lacks. Those weights are random.

    Raises:
        ValueError: the files of the checkpoint are damaged, or contain more than tensors.
    """
    check_files(str(name))
    try:
        model, info = model_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **options)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"The weights of {name} contain more than tensors and were not read, as that would run code: use a "
            "checkpoint with safetensors."
        ) from error
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"The weights of {name} cannot be read: {start_of(error)}") from error
    return model, sorted(info["missing_keys"])


def load_tokenizer(name: str | os.PathLike, text_config: Any) -> Any:
    """
    Returns the tokenizer of a checkpoint. For SigLIP, the padding token in `text_config` is set to that of the
    tokenizer, because the checkpoints of SigLIP 2 do not name it and the default of transformers is another token.

    Args:
        name: directory or Hub name of the checkpoint.
        text_config: the configuration of its text encoder.

    Raises:
        OSError: the tokenizer does not exist, or cannot be downloaded.
        ImportError: the tokenizer needs sentencepiece, which is not installed.
        ValueError: the tokenizer does not fit the text encoder.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
    except ImportError as error:
        raise ImportError(f"The tokenizer of {name} needs two packages: {install_hint('siglip')}") from error
    if text_config.model_type.startswith("siglip") and "Gemma" in type(tokenizer).__name__:
        tokenizer = Siglip2Tokenizer.from_pretrained(name)  # SigLIP 2 was trained with lower-case texts
    check_text_tower(text_config, tokenizer)
    return tokenizer


def rename_weights(target: torch.nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the weights of a part of a model, renamed for a model of this part alone, which may have a prefix."""
    prefixes = ("vision_model.", "text_model.")

    def plain(key: str) -> str:
        return next((key.removeprefix(prefix) for prefix in prefixes if key.startswith(prefix)), key)

    own = {plain(key): key for key in target.state_dict()}
    return {own.get(plain(key), key): tensor for key, tensor in state.items()}


def copy_weights(target: Any, source: torch.nn.Module, name: str | os.PathLike):
    """
    Moves all weights from a part of a model to a model of this part alone.

    Raises:
        ValueError: the weights do not fit.
    """
    try:
        target.load_state_dict(rename_weights(target, source.state_dict()), assign=True)  # without copies in memory
    except RuntimeError as error:
        raise ValueError(f"The weights of {name} do not fit: {start_of(error)}") from error

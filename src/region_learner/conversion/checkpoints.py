"""Reads the configurations and weights of other people's checkpoints, and says in one line what is wrong with one."""

import os
import pickle
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ..loading import check_files, check_name


def start_of(error: Exception) -> str:
    """Returns the first two lines of an error's message in one line."""
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:2])[:300]


def load_config(name: str | os.PathLike) -> PreTrainedConfig:
    """
    Returns the configuration of a directory or Hub name.

    Raises:
        OSError: there is no such checkpoint.
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
    Returns the model in float32, and the names of weights that its checkpoint lacks, which are random.

    Raises:
        ValueError: its files are damaged, or contain more than tensors.
    """
    check_files(str(name))
    try:
        model, info = model_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **options)
    except pickle.UnpicklingError as error:
        raise ValueError(f"The weights of {name} hold more than tensors, and were not read.") from error
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"The weights of {name} cannot be read: {start_of(error)}") from error
    return model, sorted(info["missing_keys"])


def copy_weights(target: Any, source: torch.nn.Module, name: str | os.PathLike):
    """
    Copies all weights from a part of a model to a model of this part alone, whose names may have a prefix.

    Raises:
        ValueError: they do not fit.
    """
    prefixes = ("vision_model.", "text_model.")

    def plain(key: str) -> str:
        return next((key.removeprefix(prefix) for prefix in prefixes if key.startswith(prefix)), key)

    own = {plain(key): key for key in target.state_dict()}
    state = {own.get(plain(key), key): tensor for key, tensor in source.state_dict().items()}
    try:
        target.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"The weights of {name} do not fit: {start_of(error)}") from error

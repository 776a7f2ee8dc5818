"""
Checkpoints of a model with low-rank adapters (PEFT). Each is a plain model, with the adapters merged into it, that
anything loads whole; beside it, in the directory `adapter`, is what training resumes from.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..files import BESIDE_ADAPTERS

ADAPTER = "adapter"

_WEIGHTS = "adapter_model.safetensors"


def has_adapters(model: Any) -> bool:
    return hasattr(model, "merge_and_unload")


def merged(model: Any) -> Any:
    """A plain copy of a model with adapters, which are merged into its weights."""
    return copy.deepcopy(model).merge_and_unload()


def save_adapters(model: Any, folder: Path) -> None:
    """Writes all that training changes in a directory that `PeftModel.from_pretrained(base, folder)` reads whole."""
    model.save_pretrained(folder)
    rest = {name: value.detach().cpu().contiguous() for name, value in _beside_adapters(model).items()}
    save_file(load_file(folder / _WEIGHTS) | rest, folder / _WEIGHTS, metadata={"format": "pt"})


def load_adapters(model: Any, folder: Path) -> None:
    """
    Reads what [`save_adapters`] wrote into a model that has such adapters.

    Raises:
        ValueError: the model lacks some of it, or has more.
    """
    from peft import set_peft_model_state_dict

    values = load_file(folder / _WEIGHTS)
    saved = {name for name in values if name in _beside_adapters(model)}
    if lacking := sorted(_beside_adapters(model).keys() - saved):
        raise ValueError(f"{folder} lacks {', '.join(lacking[:3])}: it is of another model.")
    found: Any = set_peft_model_state_dict(model, values)
    if found.unexpected_keys:
        raise ValueError(f"{folder} has {', '.join(sorted(found.unexpected_keys)[:3])}, which this model has not.")


def load_beside_adapters(model: Any, checkpoint: Path) -> None:
    """Reads what checkpoints of earlier versions have in a file of its own, if this is one."""
    if (checkpoint / BESIDE_ADAPTERS).is_file():
        parameters = dict(model.named_parameters())
        for name, value in load_file(checkpoint / BESIDE_ADAPTERS).items():
            parameters[name].data.copy_(value)


def _beside_adapters(model: Any) -> dict[str, torch.Tensor]:
    """What training changes and PEFT does not save: single parameters that are trained whole, and buffers."""
    of_peft = ("lora_", ".modules_to_save.", ".original_module.")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = {name for name, _ in model.named_parameters()} - trained
    return {
        name: value
        for name, value in model.state_dict().items()
        if name not in frozen and not any(part in name for part in of_peft)
    }

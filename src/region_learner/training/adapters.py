"""
Low-rank adapters (PEFT). A checkpoint is a plain model with the adapters merged into its weights, so that it loads
without PEFT. Its directory `adapter` contains the adapters themselves, from which training resumes.
"""

import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..configuration_region_learner import did_you_mean
from ..errors import install_hint
from ..loading import BESIDE_ADAPTERS

ADAPTER = "adapter"

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # the prefix of parameter names in the adapter file


def _import_peft():
    try:
        import peft
    except ImportError as error:
        raise ImportError(f"lora needs the package `peft`: {install_hint('peft')}") from error
    return peft


def check_lora(options: dict[str, Any]):
    """
    Checks the options of LoRA.

    Raises:
        ImportError: `peft` is not installed.
        ValueError: an option does not exist, or its value is not valid.
    """
    known = {item.name for item in fields(_import_peft().LoraConfig) if item.init} | {"towers"}
    for name in options:
        if name not in known:
            raise ValueError(f"lora: {name!r} is not a field of peft.LoraConfig{did_you_mean(name, known)}")
    rank, towers = options.get("r", 8), options.get("towers", [])
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"lora: r={rank!r} must be an integer of at least 1.")
    if not isinstance(towers, list | tuple) or not all(isinstance(tower, str) for tower in towers):
        raise ValueError(f'lora: towers must be a list such as ["text_model"], not {towers!r}.')


def with_lora(model: Any, options: dict[str, Any]):
    """
    Returns a model with LoRA adapters (PEFT) in the blocks of its towers. Everything that is not part of a pre-trained
    tower (region module, temporal fusion and positions, projections, heads, a learned temperature) is trained in full.

    Args:
        model: a model of any task.
        options: fields of `peft.LoraConfig`, and `towers`, by default ["video_model", "text_model"].

    Raises:
        ImportError: `peft` is not installed.
        ValueError: an option or a tower does not exist.
    """
    check_lora(options)
    peft = _import_peft()
    options = dict(options)
    towers = options.pop("towers", ["video_model", "text_model"])
    known = [name for name in ("video_model", "text_model") if hasattr(model, name)]
    if unknown := set(towers) - set(known):
        raise ValueError(
            f"lora: {', '.join(sorted(unknown))} is not a tower of this model; choose from {', '.join(known)}."
        )
    # torch's attention, as in the pooling head of SigLIP, reads the weight of its layer without calling the layer.
    is_called = {
        name: not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    in_blocks = [
        name
        for name, called in is_called.items()
        if called and name.split(".")[0] in towers and not name.startswith("video_model.region_")
    ]
    trained_in_full = [name for name, _ in model.named_children() if name not in known]
    if "video_model" in towers:
        parts = ("region_module", "region_projection", "temporal_fusion")
        trained_in_full += [name for name in parts if getattr(model.video_model, name) is not None]
    for module in options.get("modules_to_save") or ():
        if not any(name == module or name.endswith(f".{module}") for name, _ in model.named_modules()):
            raise ValueError(f"lora: modules_to_save names {module!r}, which is not a module of the model.")
    if "video_model" not in towers and model.quantizer is not None:
        model.quantizer.frozen = True
    defaults = {"target_modules": in_blocks, "modules_to_save": trained_in_full}
    try:
        adapted = peft.get_peft_model(model, peft.LoraConfig(**defaults | options))
    except TypeError as error:  # PEFT does not check the types of values
        raise ValueError(f"lora: {options} are not valid for peft.LoraConfig: {error}") from error
    for name, parameter in adapted.named_parameters():
        # PEFT freezes parameters outside of modules: the scale and bias of the loss, and the temporal positions, which
        # may still be all zeros.
        is_temporal = name.endswith("temporal_embeddings") and "video_model" in towers
        if name.endswith(("logit_scale", "logit_bias")) or is_temporal:
            parameter.requires_grad_(True)
    return adapted


# Checkpoints


def has_adapters(model: Any) -> bool:
    """Returns whether a model has adapters, from `peft.get_peft_model` or from its own `add_adapter`."""
    return hasattr(model, "merge_and_unload") or getattr(model, "_hf_peft_config_loaded", False)


def merged(model: Any) -> Any:
    """Returns a copy of a model with its adapters merged into its weights."""
    model = copy.deepcopy(model)
    if hasattr(model, "merge_and_unload"):
        return model.merge_and_unload()
    for name, module in list(model.named_modules()):  # `add_adapter` has no counterpart that merges
        if hasattr(module, "unload_and_optionally_merge_module"):
            plain = module.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
            model.set_submodule(name, plain)
        elif hasattr(module, "base_layer"):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    model._hf_peft_config_loaded = False
    del model.peft_config
    return model


def save_adapters(model: Any, folder: Path) -> None:
    """
    Writes everything that training changes to a directory that `PeftModel.from_pretrained(base, folder)` reads.

    Raises:
        ValueError: several adapters are active, or none.
    """
    from peft import get_peft_model_state_dict

    adapter = active_adapter(model)
    values = get_peft_model_state_dict(model, adapter_name=adapter) | _beside_adapters(model)
    named = {_PREFIX + name.removeprefix(_PREFIX): value.detach().cpu() for name, value in values.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in named.items()}, folder / _WEIGHTS, metadata={"format": "pt"}
    )
    model.peft_config[adapter].save_pretrained(folder)


def load_adapters(model: Any, folder: Path) -> None:
    """
    Loads the files from [`save_adapters`] into a model with the same adapters.

    Raises:
        ValueError: the files belong to another model.
    """
    from peft import set_peft_model_state_dict

    prefix = _PREFIX if hasattr(model, "merge_and_unload") else ""
    values = {prefix + name.removeprefix(_PREFIX): value for name, value in load_file(folder / _WEIGHTS).items()}
    if lacking := sorted(_beside_adapters(model).keys() - values.keys()):
        raise ValueError(f"{folder} belongs to another model: it lacks {', '.join(lacking[:3])}.")
    found: Any = set_peft_model_state_dict(model, values, adapter_name=active_adapter(model))
    if found.unexpected_keys:
        raise ValueError(f"{folder} belongs to another model: it has {', '.join(sorted(found.unexpected_keys)[:3])}.")


def active_adapter(model: Any) -> str:
    """
    Returns the name of the adapter that is active.

    Raises:
        ValueError: several adapters are active, or none.
    """
    names = model.active_adapters
    names = names() if callable(names) else names
    if len(names) != 1:
        found = f"{len(names)} adapters are active ({', '.join(names)})" if names else "no adapter is active"
        raise ValueError(f"A checkpoint stores one adapter, but {found}: activate one with `model.set_adapter(NAME)`.")
    return names[0]


def load_beside_adapters(model: Any, checkpoint: Path) -> None:
    """Loads the weights that checkpoints of version 0.1 keep in a separate file, if there is one."""
    if (checkpoint / BESIDE_ADAPTERS).is_file():
        parameters = dict(model.named_parameters())
        for name, value in load_file(checkpoint / BESIDE_ADAPTERS).items():
            parameters[name].data.copy_(value)


def _beside_adapters(model: Any) -> dict[str, torch.Tensor]:
    """Returns everything that training changes but PEFT does not save: fully trained parameters, and buffers."""
    of_peft = tuple(
        f"{name}.{part}."
        for name, module in model.named_modules()
        for part in (*getattr(module, "adapter_layer_names", ()), "original_module")
    )
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {
        name: value
        for name, value in model.state_dict().items()
        if name not in frozen and not name.startswith(of_peft)
    }

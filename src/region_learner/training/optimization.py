"""Determines which parameters are trained, at which learning rate, and with or without weight decay."""

import bisect
import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .training_arguments import RegionLearnerTrainingArguments

# Parameters without weight decay, in addition to norms and biases, which the Trainer exempts: positions, class tokens,
# scales of logits and of weight norms, and places of queries.
_NO_DECAY = re.compile(
    r"position|pos_embed|temporal_embeddings|cls_token|class_embedding|reg(ister)?_token|logit_|\.scale$"
    r"|\.anchors$|\.nearness$"
)

_TOWERS = ("video_model", "text_model")


def _plain(name: str) -> str:
    """Returns a parameter's name in the model itself, without prefixes of wrappers (compilation, PEFT, FSDP)."""
    return re.sub(r"^(?:module\.|_orig_mod\.|base_model\.model\.|_fsdp_wrapped_module\.)+", "", name)


def freeze(model: nn.Module, prefixes: Sequence[str]):
    """
    Freezes the parameters whose names begin with one of `prefixes`, such as "text_model" or "video_model.layers.0.",
    including a codebook.

    Raises:
        ValueError: a prefix does not match any parameter.
    """
    for prefix in prefixes:
        matching = [p for name, p in model.named_parameters() if _plain(name).startswith(prefix)]
        if not matching:
            parts = ", ".join(dict.fromkeys(_plain(name).split(".")[0] for name, _ in model.named_parameters()))
            raise ValueError(f"freeze={prefix!r} is not the beginning of any parameter's name (parts: {parts}).")
        for parameter in matching:
            parameter.requires_grad_(False)
        for name, module in model.named_modules():
            if hasattr(module, "cluster_size") and f"{_plain(name)}.".startswith(prefix):
                module.frozen = True


def milestones(optimizer: Optimizer, steps: Sequence[int], gamma: float, warmup: int = 0) -> LambdaLR:
    """Returns a schedule that warms up for `warmup` steps and multiplies the rate by `gamma` at each of `steps`."""
    ordered = sorted(steps)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / (warmup + 1)) * gamma ** bisect.bisect_right(ordered, step)

    return LambdaLR(optimizer, factor)


def _depths(model: nn.Module) -> dict[str, int]:
    """
    Returns the number of blocks in each tower.

    Raises:
        ValueError: a tower has several sequences of blocks, like convolutional models.
    """
    depths = {}
    for tower in _TOWERS:
        sequences = {
            _plain(name): len(module)
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList | nn.Sequential)
            and re.fullmatch(rf"{tower}\.(?:.*\.)?(?:layers?|h|blocks?)", _plain(name))
        }
        if len(sequences) > 1:
            raise ValueError(
                f"layer_decay needs towers with one sequence of blocks, but {tower} has several: leave it out."
            )
        depths[tower] = sum(sequences.values())
    return depths


def _height(name: str, depths: dict[str, int]) -> int:
    """
    Returns the number of blocks between a parameter and the output of its tower: 0 after the last block, one more than
    all blocks in the embeddings.
    """
    tower = next((tower for tower in _TOWERS if name.startswith(f"{tower}.")), None)
    if tower is None:
        return 0
    block = re.search(r"\.(?:layers?|h|blocks?)\.(\d+)\.", name)
    if block:
        return depths[tower] - int(block.group(1))
    if name == "video_model.temporal_embeddings":  # those of the regions, in a model with a backbone
        return 0
    return depths[tower] + 1 if re.search(r"embed|pre_layr?norm|norm_pre|(?:cls|reg)_token", name) else 0


def parameter_groups(
    model: nn.Module, args: RegionLearnerTrainingArguments, decayed: Sequence[str]
) -> list[dict[str, Any]]:
    """
    Returns parameter groups for an optimizer. The learning rate of a parameter is that of its tower, multiplied by
    `args.layer_decay` for each block between it and the output of the tower. In a video tower with a backbone, only
    the backbone has the rate of the tower; the rest is new and has `args.learning_rate`. In a model with a backbone, a
    projection without bias comes from a checkpoint such as CLIP and has the rate of its tower. Weight decay is applied
    to the parameters named in `decayed`, except for positions, class tokens and scales.
    """
    depths = {} if args.layer_decay is None else _depths(model)
    names = {_plain(name).replace(".original_module.", ".") for name, _ in model.named_parameters()}
    has_backbone = any(name.startswith("video_model.backbone.") for name in names)
    rates = {"video_model": args.video_learning_rate, "text_model": args.text_learning_rate}
    with_decay = {name for name in decayed if not _NO_DECAY.search(name)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = _plain(name)
        part = plain.split(".")[0]
        if has_backbone and part in ("video_projection", "text_projection") and f"{part}.bias" not in names:
            part = part.replace("projection", "model")
        elif has_backbone and part == "video_model" and not plain.startswith("video_model.backbone."):
            part = "region_module"
        rate = rates.get(part)
        rate = args.learning_rate if rate is None else rate
        if args.layer_decay is not None:
            rate *= args.layer_decay ** _height(plain, depths)
        decay = args.weight_decay if name in with_decay else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    if not groups:
        raise ValueError("All parameters are frozen, so there is nothing to train: freeze fewer of them.")
    # Logs show the learning rate of the first group.
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] != args.learning_rate, -item[0][0], -item[0][1]))
    return [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in ordered]


def optimizer_with_groups(
    chosen: tuple[Any, dict[str, Any]], groups: list[dict[str, Any]]
) -> tuple[type[Optimizer], dict[str, Any]]:
    """
    Returns an optimizer class and its options, including the parameter groups, in the form that the Trainer expects.

    Raises:
        ValueError: the optimizer chooses parameters itself.
    """
    optimizer_class, options = chosen
    if options.keys() & {"params", "model", "optimizer_dict"} or not isinstance(optimizer_class, type):
        raise ValueError(f"{optimizer_class} is not supported, as it chooses parameters itself: use another one.")
    return optimizer_class, {**options, "params": groups}

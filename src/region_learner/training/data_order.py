"""
Settings that each checkpoint records, and that are compared on resume: those that the order of the training data
depends on, as with others some rows would be repeated and others left out; and those of the optimiser, which it takes
from the checkpoint whatever is given.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.training_args import OptimizerNames

from .arguments import RegionLearnerTrainingArguments
from .data import CorpusPart

DATA_ORDER = "data_order.json"
OPTIMIZATION = "optimization.json"

_OF_STREAMS = "stream.json"  # of earlier versions, which recorded streams alone


def data_order(parts: Sequence[CorpusPart], args: RegionLearnerTrainingArguments) -> dict[str, Any]:
    """The settings, by name. Corpora that are not streamed do not depend on how processes share a batch."""
    settings: dict[str, Any] = {
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "seed": args.seed if args.data_seed is None else args.data_seed,
        "mix": args.mix,
        "weights": [part.weight for part in parts],
        "streaming": [part.streamed for part in parts],
        "rows": [None if part.streamed else len(part.dataset) for part in parts],
        "video ids (a digest)": [_some_ids(part) for part in parts],
    }
    if any(part.streamed for part in parts):
        return settings | {
            "processes": args.world_size,
            "dataloader_num_workers": args.dataloader_num_workers,
            "batch_sizes": [part.batch_size for part in parts],
            "shuffle_buffers": [part.shuffle_buffer for part in parts],
            "shards": [getattr(part.dataset, "num_shards", None) for part in parts],
        }
    return settings | {
        "batch size times processes": [part.batch_size * args.world_size for part in parts],
        "samples_per_epoch": args.samples_per_epoch,
        "dataloader_drop_last": args.dataloader_drop_last,
    }


def _some_ids(part: CorpusPart) -> str | None:
    """
    Tells a corpus from another with as many rows, by 16 ids spread over it. (Their digest, as ids may be private.)
    """
    dataset: Any = part.dataset
    if part.streamed:
        return None
    if hasattr(dataset, "select_columns") and "video_id" in dataset.column_names:
        dataset = dataset.select_columns("video_id")
    elif not isinstance(dataset, list | tuple):  # whose rows may take long to read
        return None
    last = len(dataset) - 1
    ids = [str(dataset[last * number // 15]["video_id"]) for number in range(16)]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:8]


def write_data_order(checkpoint: Path, settings: dict[str, Any]) -> None:
    (checkpoint / DATA_ORDER).write_text(json.dumps(settings), encoding="utf-8")


def check_data_order(checkpoint: Path, now: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: the checkpoint was trained with other settings; those that it does not record may be any.
    """
    record = next((path for name in (DATA_ORDER, _OF_STREAMS) if (path := checkpoint / name).is_file()), None)
    if changed := _changed(record, now):
        raise ValueError(
            f"{checkpoint} was trained with {', '.join(changed)}: with other settings rows would be repeated or left "
            "out. Take those it had, or begin the data anew with --ignore_data_skip true."
        )


def optimization(model: torch.nn.Module, args: RegionLearnerTrainingArguments) -> dict[str, Any]:
    """What the state of the optimiser in a checkpoint holds, or has to fit."""
    names = (
        "optim", "optim_args", "learning_rate", "video_learning_rate", "text_learning_rate", "layer_decay",
        "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    )  # fmt: skip
    settings = {name: getattr(args, name) for name in names} | {"optim": str(OptimizerNames(args.optim).value)}
    return settings | {"trainable parameters": sum(one.numel() for one in model.parameters() if one.requires_grad)}


def write_optimization(checkpoint: Path, settings: dict[str, Any]) -> None:
    (checkpoint / OPTIMIZATION).write_text(json.dumps(settings), encoding="utf-8")


def check_optimization(checkpoint: Path, now: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: the optimiser of the checkpoint has other settings, or is of other weights.
    """
    record = checkpoint / OPTIMIZATION
    if changed := _changed(record if record.is_file() else None, now):
        raise ValueError(
            f"{checkpoint} has the optimiser of a run with {', '.join(changed)}, and resuming goes on with it. Take "
            f"those it had, or begin another run with its weights: --model {checkpoint} and another --output_dir."
        )


def _changed(record: Path | None, now: dict[str, Any]) -> list[str]:
    """What is not as in a record, in words; settings that it does not have may be any."""
    before = {} if record is None else json.loads(record.read_text(encoding="utf-8"))
    return [
        f"{name} {_shown(before[name])} (now {_shown(value)})"
        for name, value in now.items()
        if before.get(name, value) != value
    ]


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

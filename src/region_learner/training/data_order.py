"""
What the order of the training data depends on: recorded in each checkpoint, and compared on resume, as with other
settings some rows would be repeated and others left out.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .arguments import RegionLearnerTrainingArguments
from .data import CorpusPart

DATA_ORDER = "data_order.json"

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


def write_data_order(checkpoint: Path, settings: dict[str, Any]) -> None:
    (checkpoint / DATA_ORDER).write_text(json.dumps(settings), encoding="utf-8")


def check_data_order(checkpoint: Path, now: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: the checkpoint was trained with other settings; those that it does not record may be any.
    """
    record = next((path for name in (DATA_ORDER, _OF_STREAMS) if (path := checkpoint / name).is_file()), None)
    if record is None:
        return
    before = json.loads(record.read_text(encoding="utf-8"))
    changed = [
        f"{name} {_shown(before[name])} (now {_shown(value)})"
        for name, value in now.items()
        if before.get(name, value) != value
    ]
    if changed:
        raise ValueError(
            f"{checkpoint} was trained with {', '.join(changed)}: with other settings rows would be repeated or left "
            "out. Take those it had, or begin the data anew with --ignore_data_skip true."
        )


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

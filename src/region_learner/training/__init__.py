"""Training with transformers' Trainer: arguments, recipes, collator and Trainer."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .arguments import DataArguments, ModelArguments
    from .collator import RegionLearnerCollator
    from .data import CorpusPart
    from .model import build_model
    from .parsing import parse_arguments, parse_stages
    from .run import train, train_stages
    from .trainer import RegionLearnerTrainer
    from .training_arguments import RegionLearnerTrainingArguments

# Imported when first used, so that arguments and recipes can be listed without torch.
_MODULES = {
    "CorpusPart": "data",
    "DataArguments": "arguments",
    "ModelArguments": "arguments",
    "RegionLearnerCollator": "collator",
    "RegionLearnerTrainer": "trainer",
    "RegionLearnerTrainingArguments": "training_arguments",
    "build_model": "model",
    "parse_arguments": "parsing",
    "parse_stages": "parsing",
    "train": "run",
    "train_stages": "run",
}


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "CorpusPart",
    "DataArguments",
    "ModelArguments",
    "RegionLearnerCollator",
    "RegionLearnerTrainer",
    "RegionLearnerTrainingArguments",
    "build_model",
    "parse_arguments",
    "parse_stages",
    "train",
    "train_stages",
]

"""Training with the Trainer of transformers: arguments, collator, Trainer, recipes."""

from .arguments import (
    DataArguments,
    ModelArguments,
    RegionLearnerTrainingArguments,
    parse_arguments,
    parse_stages,
)
from .collator import RegionLearnerCollator
from .data import CorpusPart
from .model import build_model
from .run import train, train_stages
from .trainer import RegionLearnerTrainer

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

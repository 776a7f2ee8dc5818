"""Training with the Trainer of transformers: arguments, collator, Trainer, recipes."""

from .arguments import DataArguments, ModelArguments, RegionLearnerTrainingArguments, parse_arguments
from .collator import RegionLearnerCollator
from .run import build_model, train
from .trainer import RegionLearnerTrainer

__all__ = [
    "DataArguments",
    "ModelArguments",
    "RegionLearnerCollator",
    "RegionLearnerTrainer",
    "RegionLearnerTrainingArguments",
    "build_model",
    "parse_arguments",
    "train",
]

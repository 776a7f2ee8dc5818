"""RegionLearner for Hugging Face: video-text dual encoders that learn regions by themselves."""

import importlib
from typing import TYPE_CHECKING

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForVideoClassification,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
)

from .configuration_region_learner import RegionLearnerConfig, RegionLearnerVideoConfig
from .modeling_region_learner import (
    RegionLearnerForVideoClassification,
    RegionLearnerForVideoQuestionAnswering,
    RegionLearnerModel,
    RegionLearnerVideoModel,
)
from .processing_region_learner import RegionLearnerProcessor
from .remote_videos import read_url
from .video_decoding_region_learner import register_url_reader
from .video_processing_region_learner import RegionLearnerVideoProcessor

if TYPE_CHECKING:
    from .corpora import list_corpora, load_corpus
    from .training import RegionLearnerTrainer, RegionLearnerTrainingArguments

__version__ = "0.2.0.dev0"

# Imported when first used: training pulls in the Trainer, corpora pull in `datasets`.
_LAZY = {
    "RegionLearnerTrainer": "training",
    "RegionLearnerTrainingArguments": "training",
    "list_corpora": "corpora",
    "load_corpus": "corpora",
}


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _register():
    """Registers our classes with the Auto classes, the source files that checkpoints carry, and the reader of URLs."""
    register_url_reader(read_url)
    for config, model in (
        (RegionLearnerConfig, RegionLearnerModel),
        (RegionLearnerVideoConfig, RegionLearnerVideoModel),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        config.register_for_auto_class()
        model.register_for_auto_class("AutoModel")
        AutoProcessor.register(config, RegionLearnerProcessor, exist_ok=True)
    # Of these configurations AutoModel makes a dual encoder; heads have Auto classes of their own.
    for auto_class, head in (
        (AutoModelForVideoClassification, RegionLearnerForVideoClassification),
        (AutoModelForVisualQuestionAnswering, RegionLearnerForVideoQuestionAnswering),
    ):
        auto_class.register(RegionLearnerConfig, head, exist_ok=True)
        head.register_for_auto_class(auto_class)
    RegionLearnerProcessor.register_for_auto_class()
    try:
        from transformers import AutoVideoProcessor

        for config in (RegionLearnerConfig, RegionLearnerVideoConfig):
            AutoVideoProcessor.register(config, RegionLearnerVideoProcessor, exist_ok=True)
        RegionLearnerVideoProcessor.register_for_auto_class()
    except ImportError:  # no torchvision: the video processor says so when it is used
        pass


_register()

__all__ = [
    "RegionLearnerConfig",
    "RegionLearnerForVideoClassification",
    "RegionLearnerForVideoQuestionAnswering",
    "RegionLearnerModel",
    "RegionLearnerProcessor",
    "RegionLearnerTrainer",
    "RegionLearnerTrainingArguments",
    "RegionLearnerVideoConfig",
    "RegionLearnerVideoModel",
    "RegionLearnerVideoProcessor",
    "list_corpora",
    "load_corpus",
]

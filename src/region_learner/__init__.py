"""RegionLearner for Hugging Face: video-text dual encoders that learn regions without region labels."""

import importlib.util
from typing import TYPE_CHECKING

from .auto_classes import register_when_transformers_is_imported

if TYPE_CHECKING:
    from .configuration_region_learner import RegionLearnerConfig, RegionLearnerVideoConfig
    from .corpora import list_corpora, load_corpus, register_corpus
    from .modeling_region_learner import (
        RegionLearnerForVideoClassification,
        RegionLearnerForVideoQuestionAnswering,
        RegionLearnerModel,
        RegionLearnerOutput,
        RegionLearnerQuestionAnsweringOutput,
        RegionLearnerTextOutput,
        RegionLearnerVideoClassifierOutput,
        RegionLearnerVideoModel,
        RegionLearnerVideoOutput,
    )
    from .processing_region_learner import RegionLearnerProcessor
    from .search import VideoIndex
    from .training import RegionLearnerTrainer, RegionLearnerTrainingArguments
    from .video_processing_region_learner import RegionLearnerVideoProcessor

__version__ = "0.2.0.dev0"

# The public names of each module. A module is imported when one of its names is first used.
_NAMES = {
    "configuration_region_learner": ["RegionLearnerConfig", "RegionLearnerVideoConfig"],
    "corpora": ["list_corpora", "load_corpus", "register_corpus"],
    "modeling_region_learner": [
        "RegionLearnerForVideoClassification",
        "RegionLearnerForVideoQuestionAnswering",
        "RegionLearnerModel",
        "RegionLearnerOutput",
        "RegionLearnerQuestionAnsweringOutput",
        "RegionLearnerTextOutput",
        "RegionLearnerVideoClassifierOutput",
        "RegionLearnerVideoModel",
        "RegionLearnerVideoOutput",
    ],
    "processing_region_learner": ["RegionLearnerProcessor"],
    "search": ["VideoIndex"],
    "training": ["RegionLearnerTrainer", "RegionLearnerTrainingArguments"],
    "video_processing_region_learner": ["RegionLearnerVideoProcessor"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
# Modules with more names, as in the API reference. They, too, are imported when they are first used.
_SUBMODULES = (
    "configuration_region_learner",
    "conversion",
    "corpora",
    "evaluation",
    "export",
    "features",
    "loss_region_learner",
    "model_card",
    "modeling_region_learner",
    "multi_vector",
    "phrase_maps",
    "pipeline_region_learner",
    "processing_region_learner",
    "publishing",
    "search",
    "training",
    "video_decoding_region_learner",
    "video_processing_region_learner",
    "visualization",
)

__all__ = [
    "RegionLearnerConfig",
    "RegionLearnerForVideoClassification",
    "RegionLearnerForVideoQuestionAnswering",
    "RegionLearnerModel",
    "RegionLearnerOutput",
    "RegionLearnerProcessor",
    "RegionLearnerQuestionAnsweringOutput",
    "RegionLearnerTextOutput",
    "RegionLearnerTrainer",
    "RegionLearnerTrainingArguments",
    "RegionLearnerVideoClassifierOutput",
    "RegionLearnerVideoConfig",
    "RegionLearnerVideoModel",
    "RegionLearnerVideoOutput",
    "RegionLearnerVideoProcessor",
    "VideoIndex",
    "list_corpora",
    "load_corpus",
    "register_corpus",
]


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    if name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    names = {*globals(), *__all__, *_SUBMODULES}
    if importlib.util.find_spec("sentence_transformers") is None:  # `multi_vector` cannot be imported without it
        names.discard("multi_vector")
    return sorted(names)


register_when_transformers_is_imported()

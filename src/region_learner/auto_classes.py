"""
Registers the classes of this package with the Auto classes of transformers.

`import region_learner` must not import transformers, which takes seconds: the command line prints `--help` without it,
and processes that decode videos never need it. A post-import hook, as in wandb and OpenTelemetry, therefore registers
the classes when any code imports transformers.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def register_auto_classes() -> None:
    """
    Registers the classes, their source files (which are saved with checkpoints, so that those load without this
    package), and the reader of URLs, which these files do not contain.
    """
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForVideoClassification,
        AutoModelForVisualQuestionAnswering,
        AutoProcessor,
    )
    from transformers.pipelines import PIPELINE_REGISTRY

    from .configuration_region_learner import RegionLearnerConfig, RegionLearnerVideoConfig
    from .modeling_region_learner import (
        RegionLearnerForVideoClassification,
        RegionLearnerForVideoQuestionAnswering,
        RegionLearnerModel,
        RegionLearnerVideoModel,
    )
    from .pipeline_region_learner import VideoTextRetrievalPipeline
    from .processing_region_learner import RegionLearnerProcessor
    from .remote_videos import read_url
    from .video_decoding_region_learner import register_url_reader
    from .video_processing_region_learner import RegionLearnerVideoProcessor

    register_url_reader(read_url)
    for config, model in (
        (RegionLearnerConfig, RegionLearnerModel),
        (RegionLearnerVideoConfig, RegionLearnerVideoModel),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        config.register_for_auto_class()
        model.register_for_auto_class("AutoModel")
    AutoProcessor.register(RegionLearnerConfig, RegionLearnerProcessor, exist_ok=True)
    # AutoModel builds a dual encoder from these configurations; models with heads have Auto classes of their own.
    for auto_class, head in (
        (AutoModelForVideoClassification, RegionLearnerForVideoClassification),
        (AutoModelForVisualQuestionAnswering, RegionLearnerForVideoQuestionAnswering),
    ):
        auto_class.register(RegionLearnerConfig, head, exist_ok=True)
        head.register_for_auto_class(auto_class)
    RegionLearnerProcessor.register_for_auto_class()
    PIPELINE_REGISTRY.register_pipeline(
        "video-text-retrieval", VideoTextRetrievalPipeline, pt_model=AutoModel, type="multimodal"
    )
    RegionLearnerConfig._has_pipelines = True
    try:
        from transformers import AutoVideoProcessor

        for config in (RegionLearnerConfig, RegionLearnerVideoConfig):
            AutoVideoProcessor.register(config, RegionLearnerVideoProcessor, exist_ok=True)
        AutoProcessor.register(RegionLearnerVideoConfig, RegionLearnerVideoProcessor, exist_ok=True)
        RegionLearnerVideoProcessor.register_for_auto_class()
    except ImportError:  # without torchvision; the video processor says so when it is used
        pass


class _AfterTransformers:
    """
    An import hook that registers the classes after the import of transformers, or of the module of this package that
    imports it. While that module is being imported, its classes do not exist yet: the outermost import must finish
    first.
    """

    depth = 0  # of nested imports

    # No base class: importlib.abc takes as long to import as the rest of this package.
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        ours = fullname.startswith(f"{__package__}.") and fullname.endswith("_region_learner")
        if not ours and fullname != "transformers":
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)) is not None:
                loader: Any = spec.loader
                loader.exec_module = partial(self._execute, loader.exec_module)
                return spec
        return None

    def _execute(self, exec_module: Callable[[ModuleType], None], module: ModuleType) -> None:
        self.depth += 1
        try:
            exec_module(module)
        finally:
            self.depth -= 1
        if self.depth == 0 and "transformers" in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            register_auto_classes()


def register_when_transformers_is_imported() -> None:
    """Registers the classes now if transformers has been imported, and otherwise as soon as it is."""
    if "transformers" in sys.modules:
        register_auto_classes()
    else:
        sys.meta_path.insert(0, _AfterTransformers())

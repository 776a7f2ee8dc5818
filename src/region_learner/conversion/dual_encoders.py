"""Loads dual encoders of images and texts, such as CLIP and SigLIP, as RegionLearner models with late fusion."""

import logging
import math
import os
from typing import Any

import torch
from transformers import AutoConfig, AutoModel
from transformers.initialization import no_init_weights

from ..configuration_region_learner import RegionLearnerConfig, nest_overrides
from ..loading import check_files
from ..modeling_region_learner import RegionLearnerModel
from ..processing_region_learner import RegionLearnerProcessor
from .checkpoints import copy_weights, load_config, load_tokenizer, load_weights
from .image_processors import video_processor_of

logger = logging.getLogger(__name__)

DUAL_ENCODERS = ("clip", "metaclip_2", "siglip", "siglip2")

# Frames per clip of CLIP4Clip (arXiv 2104.08860).
NUM_FRAMES = 12

_NO_REGIONS = {"codebook_size": 0, "num_regions": 0, "interaction_layers": 0}


def is_dual_encoder(name: str | os.PathLike) -> bool:
    """
    Returns whether a directory or Hub name is that of a CLIP, MetaCLIP 2, SigLIP or SigLIP 2 checkpoint.

    Raises:
        OSError: the checkpoint does not exist, or cannot be downloaded.
        ValueError: its files are damaged, or its `model_type` is not known to transformers.
    """
    check_files(str(name))
    return AutoConfig.from_pretrained(name).model_type in DUAL_ENCODERS


def _wants_regions(video: dict[str, Any]) -> bool:
    return any(video.get(name) for name in ("region_form", "region_options", "num_regions", "codebook_size"))


def dual_encoder_config(name: str | os.PathLike, **config_overrides: Any) -> RegionLearnerConfig:
    """Returns the configuration of [`load_dual_encoder`] with the same arguments, without loading weights."""
    original = load_config(name)
    if original.model_type not in DUAL_ENCODERS:
        raise ValueError(
            f"{name} is a {original.model_type!r} model; expected one of {', '.join(map(repr, DUAL_ENCODERS))}."
        )
    overrides = nest_overrides(config_overrides)
    video = {"backbone_config": original.vision_config, "num_frames": NUM_FRAMES}
    if not _wants_regions(overrides.get("video_config") or {}):
        video |= _NO_REGIONS
    is_siglip = original.model_type.startswith("siglip")
    if is_siglip:
        load_tokenizer(name, original.text_config)  # sets the padding token
    found: dict[str, Any] = {
        "video_config": video,
        "text_config": original.text_config,
        "projection_dim": _projection_dim(original),
        "projection_bias": False,
        "text_projection_relu": False,
        "learn_temperature": overrides.get("loss") != "max_margin",
        "loss": "sigmoid" if is_siglip else "infonce",
    }
    return RegionLearnerConfig.from_dict(found, **overrides)


def _projection_dim(original: Any) -> int:
    """Returns the size of the embeddings. SigLIP does not have projections."""
    is_siglip = original.model_type.startswith("siglip")
    return original.vision_config.hidden_size if is_siglip else original.projection_dim


def load_dual_encoder(name: str | os.PathLike, **config_overrides: Any) -> RegionLearnerModel:
    """
    Returns a dual encoder of images and texts as a model for videos: each frame is encoded on its own, and the
    embedding of a clip is computed from the mean of its frames' features. Images and texts have the same embeddings as
    in the original model. `region_form`, `num_regions` or `codebook_size` add regions, `phrase_window` adds phrases,
    and `tube_mlp` adds tubes. All of these have no influence at first.

    Args:
        name: directory or Hub name of a CLIP, MetaCLIP 2, SigLIP or SigLIP 2 checkpoint.
        config_overrides: fields of the video configuration, or top-level fields.

    Raises:
        OSError: the checkpoint does not exist, or cannot be downloaded.
        ValueError: the checkpoint is of another kind, its weights are incomplete, or an override does not fit.
    """
    config = dual_encoder_config(name, **config_overrides)
    original: Any
    original, missing = load_weights(AutoModel, name)
    if missing:
        raise ValueError(f"The weights of {name} are incomplete: missing {', '.join(missing[:5])}.")
    state = original.state_dict()
    if "temperature" not in config_overrides:
        config.temperature = math.exp(-state["logit_scale"].item())
    with no_init_weights():  # most weights are copied, and drawing random ones first would take most of the time
        model = RegionLearnerModel(config)
    for ours, theirs in ((model.video_model.backbone, original.vision_model), (model.text_model, original.text_model)):
        copy_weights(ours, theirs, name)
        ours.apply(lambda module: setattr(module, "_is_hf_initialized", True))
    model.initialize_weights()  # the remaining ones, those of the projections and regions
    for part in model.added_parts().values():
        part.start_as_zero()
    with torch.no_grad():
        if config.projection_dim == _projection_dim(original.config):
            identity = torch.eye(config.projection_dim)
            model.video_projection.weight.copy_(state.get("visual_projection.weight", identity))
            model.text_projection.weight.copy_(state.get("text_projection.weight", identity))
        else:
            message = "projection_dim=%d replaces the projections of %s by untrained ones."
            logger.warning(message, config.projection_dim, name)
        if model.logit_bias is not None and "logit_bias" in state and "sigmoid_bias" not in config_overrides:
            model.logit_bias.copy_(state["logit_bias"].reshape(1))
    return model.eval()


def processor_of_dual_encoder(name: str | os.PathLike, num_frames: int | None = None) -> RegionLearnerProcessor:
    """
    Returns the processor for [`load_dual_encoder`], with the size, crop, interpolation, mean and standard deviation of
    the image processor of the original model, and its tokenizer.

    Args:
        name: directory or Hub name of the checkpoint.
        num_frames: frames per clip. The default is 12.

    Raises:
        OSError: the checkpoint does not exist, or has no image processor or tokenizer.
        ImportError: its tokenizer needs sentencepiece, which is not installed.
        ValueError: the tokenizer does not fit the text encoder.
    """
    tokenizer = load_tokenizer(name, load_config(name).text_config)
    return RegionLearnerProcessor(video_processor_of(name, None, num_frames or NUM_FRAMES), tokenizer)

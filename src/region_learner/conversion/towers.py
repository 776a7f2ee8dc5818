"""Dual encoders from a pre-trained image model and text model, which may be the two sides of a CLIP."""

import json
import logging
import math
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPModel,
    CLIPTextModel,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..configuration_region_learner import RegionLearnerConfig, nest_overrides
from ..loading import check_files
from ..modeling_region_learner import RegionLearnerModel
from ..text_tower import check_text_tower
from .original import VIT_NAMES, rename, split_qkv

logger = logging.getLogger(__name__)

# Parts of the video tower that an image model lacks. They keep their initial values.
_VIDEO_ONLY = ("embeddings.temporal_embeddings", ".time_attention.", ".time_norm.", "region_module.")

_HF_NAMES = {
    # transformers' CLIP
    r"^embeddings\.class_embedding$": "embeddings.cls_token",
    r"^embeddings\.patch_embedding\.": "embeddings.patch_embedding.",
    r"^embeddings\.position_embedding\.weight$": "embeddings.position_embeddings",
    r"^pre_layrnorm\.": "pre_layernorm.",  # sic
    r"^encoder\.layers\.(\d+)\.self_attn\.(q|k|v|out)_proj\.": r"layers.\1.space_attention.\2_proj.",
    r"^encoder\.layers\.(\d+)\.layer_norm1\.": r"layers.\1.space_norm.",
    r"^encoder\.layers\.(\d+)\.layer_norm2\.": r"layers.\1.mlp_norm.",
    r"^encoder\.layers\.(\d+)\.mlp\.": r"layers.\1.mlp.",
    r"^post_layernorm\.": "layernorm.",
    # transformers' ViT
    r"^embeddings\.cls_token$": "embeddings.cls_token",
    r"^embeddings\.position_embeddings$": "embeddings.position_embeddings",
    r"^embeddings\.patch_embeddings\.projection\.": "embeddings.patch_embedding.",
    r"^layers\.(\d+)\.attention\.(q|k|v)_proj\.": r"layers.\1.space_attention.\2_proj.",
    r"^layers\.(\d+)\.attention\.o_proj\.": r"layers.\1.space_attention.out_proj.",
    r"^layers\.(\d+)\.layernorm_before\.": r"layers.\1.space_norm.",
    r"^layers\.(\d+)\.layernorm_after\.": r"layers.\1.mlp_norm.",
    r"^layers\.(\d+)\.mlp\.": r"layers.\1.mlp.",
    r"^layernorm\.": "layernorm.",
}


@dataclass
class _ImageTower:
    """The weights of an image model, by the names of the video tower."""

    sizes: dict[str, Any]
    state: dict[str, torch.Tensor]
    mean: list[float] | None  # None where the weights come without
    std: list[float] | None


def _local_config(name: str | os.PathLike) -> dict[str, Any] | None:
    """Returns the config.json of a model directory; None for a name on the Hub or in timm."""
    path = Path(name)
    if not path.is_dir():
        if isinstance(name, os.PathLike) or path.is_absolute() or str(name).startswith((".", "~")):
            raise FileNotFoundError(f"There is no model directory {name}.")
        return None
    try:
        config = json.loads((path / "config.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"{name} has no config.json: it is not a model directory of timm or transformers.") from None
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or not {"architecture", "model_type"} & set(config):
        raise ValueError(
            f"{path / 'config.json'} names neither an `architecture` of timm nor a `model_type` of transformers."
        )
    return config


def _load_image_tower(name: str | os.PathLike) -> _ImageTower:
    config, name = _local_config(name), str(name)
    if config is not None:
        return _load_timm(f"local-dir:{name}") if "architecture" in config else _load_transformers(name)
    if "/" in name and not name.startswith(("timm/", "hf-hub:", "local-dir:")):
        return _load_transformers(name)
    return _load_timm(f"hf-hub:{name}" if name.startswith("timm/") else name)


def _load_timm(name: str) -> _ImageTower:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"Loading {name!r} needs timm: pip install 'region-learner[timm]'") from error
    try:
        model: Any = timm.create_model(name, pretrained=True, num_classes=0)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"timm cannot load {name!r}: {_start_of(error)} (Give a timm model that has pre-trained weights, "
            '"owner/name" on the Hub, or a directory.)'
        ) from error
    weights, unknown = {}, []
    for key, tensor in model.state_dict().items():
        new_key = rename(key, VIT_NAMES)
        if new_key is None:
            unknown.append(key)
        else:
            weights[new_key] = tensor
    if unknown or not hasattr(model, "blocks"):
        raise ValueError(
            f"timm's {name!r} is not a plain vision transformer with a class token: it has "
            f"{', '.join(unknown[:5]) or type(model).__name__}."
        )
    cfg, block = model.pretrained_cfg, model.blocks[0]
    sizes = {
        "num_attention_heads": block.attn.num_heads,
        "layer_norm_eps": model.norm.eps,
        "hidden_act": _activation_of(block.mlp.act, name),
        "image_size": _square(model.patch_embed.img_size, name),
        "patch_size": _square(model.patch_embed.patch_size, name),
    }
    return _ImageTower(sizes | _sizes_of(weights), split_qkv(weights), list(cfg["mean"]), list(cfg["std"]))


def _start_of(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:2])[:300]


def _activation_of(module: torch.nn.Module, name: str) -> str:
    known = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_pytorch_tanh"}
    try:
        return known[type(module).__name__]
    except KeyError:
        kind = type(module).__name__
        raise ValueError(f"timm's {name!r} has the activation {kind}, which is not supported.") from None


def _square(size: tuple[int, int] | int, name: str) -> int:
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    if height != width:
        raise ValueError(f"{name!r} takes images or patches of {height} x {width} pixels, but they must be square.")
    return int(height)


def _load_transformers(name: str) -> _ImageTower:
    config = _config_of(name)
    if config.model_type == "vit":
        model, missing = _load_weights(AutoModel, name, add_pooling_layer=False)
    elif config.model_type in ("clip", "clip_vision_model"):
        model, missing = _load_weights(CLIPVisionModel, name)
    else:
        raise ValueError(f"{name!r} is a {config.model_type!r} model; the video tower takes 'vit' and 'clip'.")
    if missing:
        raise ValueError(f"The weights of {name} are incomplete: missing {', '.join(missing[:5])}.")
    config, weights = model.config, {}
    for key, tensor in model.state_dict().items():
        key = key.removeprefix("vision_model.")
        new_key = rename(key, _HF_NAMES)
        if new_key is not None:
            weights[new_key] = tensor
        elif key not in ("embeddings.position_ids", "embeddings.mask_token"):
            raise ValueError(f"{name!r} is not a plain vision transformer: it has {key}.")
    weights["embeddings.cls_token"] = weights["embeddings.cls_token"].view(1, 1, -1)
    positions = weights["embeddings.position_embeddings"]
    weights["embeddings.position_embeddings"] = positions.view(1, *positions.shape[-2:])
    sizes = {
        "num_attention_heads": config.num_attention_heads,
        "layer_norm_eps": config.layer_norm_eps,
        "hidden_act": config.hidden_act,
        "image_size": _square(config.image_size, name),
        "patch_size": _square(config.patch_size, name),
    }
    mean, std = _normalisation_of(name)
    return _ImageTower(sizes | _sizes_of(weights), weights, mean, std)


def _config_of(name: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(name)
    except OSError as error:
        raise OSError(
            f"{name!r} is not a local directory, and downloading it from the Hub failed: {_start_of(error)}"
        ) from error


def _load_weights(model_class: Any, name: str, **options) -> tuple[PreTrainedModel, list[str]]:
    """Returns the model in float32, and the names of weights that its checkpoint lacks, which are random."""
    check_files(name)
    try:
        model, info = model_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **options)
    except pickle.UnpicklingError as error:
        raise ValueError(f"The weights of {name} hold more than tensors, and were not read.") from error
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"The weights of {name} cannot be read: {_start_of(error)}") from error
    return model, sorted(info["missing_keys"])


def _normalisation_of(name: str) -> tuple[list[float] | None, list[float] | None]:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        settings = {}
    if "image_mean" not in settings:
        return None, None
    return list(settings["image_mean"]), list(settings["image_std"])


def _sizes_of(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    patches = weights["embeddings.patch_embedding.weight"]
    return {
        "hidden_size": patches.shape[0],
        "num_channels": patches.shape[1],
        "num_hidden_layers": 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("layers.")),
        "intermediate_size": weights["layers.0.mlp.fc1.weight"].shape[0],
        "pre_layernorm": "pre_layernorm.weight" in weights,
    }


def _load_text_tower(name: str | os.PathLike) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    _local_config(name)
    config, name = _config_of(str(name)), str(name)
    if config.model_type != "clip" and not hasattr(config, "vocab_size"):
        raise ValueError(f"{name!r} is a {config.model_type!r} model, which is not a text encoder.")
    model, missing = _load_weights(CLIPTextModel if config.model_type == "clip" else AutoModel, name)
    state = {key: value for key, value in model.state_dict().items() if key not in missing}
    return model.config, state


@dataclass
class _ClipHead:
    """The projections of a CLIP, and its temperature."""

    settings: dict[str, Any]  # fields of our configuration, with which the projections compute what they do in CLIP
    weights: dict[str, torch.Tensor]


def _is_same_clip(video: str | os.PathLike, text: str | os.PathLike) -> bool:
    """Returns whether both names are those of the same CLIP checkpoint."""
    if str(video) != str(text) and not (Path(video).is_dir() and Path(video).resolve() == Path(text).resolve()):
        return False
    return _config_of(str(text)).model_type == "clip"


def _load_clip_head(name: str | os.PathLike) -> _ClipHead:
    model, missing = _load_weights(CLIPModel, str(name))
    if missing:
        raise ValueError(f"The weights of {name} are incomplete: missing {', '.join(missing[:5])}.")
    state = model.state_dict()
    weights = {
        "video_projection.weight": state["visual_projection.weight"],
        "text_projection.weight": state["text_projection.weight"],
    }
    settings = {
        "projection_dim": model.config.projection_dim,
        "projection_bias": False,
        "text_projection_relu": False,
        "temperature": math.exp(-state["logit_scale"].item()),
        "learn_temperature": True,
    }
    return _ClipHead(settings, weights)


def from_pretrained_towers(
    video: str | os.PathLike = "vit_base_patch16_224.orig_in21k_ft_in1k",
    text: str | os.PathLike = "distilbert-base-uncased",
    **config_overrides,
) -> RegionLearnerModel:
    """
    Returns a dual encoder whose towers have pre-trained weights. The attention over time starts as zero, so a clip of
    one frame has the same CLS state as in the image model. Region module and projections are new.

    If both names are the same CLIP, its projections are used as well (with its `projection_dim`,
    `projection_bias=False` and `text_projection_relu=False`), and its temperature (with `learn_temperature=True`,
    unless the loss has none). Without region module, one frame then has the same embedding and logits as in CLIP. All
    of these settings can be overridden; projections of another `projection_dim` are new.

    Args:
        video: the image model: a name in timm (the paper's by default), a ViT or CLIP by its Hub name
            ("owner/name"), or a directory with one of these.
        text: the text encoder: a Hub name or directory; of a CLIP, its text tower is used.
        config_overrides: fields of the video configuration, or top-level ones such as `projection_dim`.

    Raises:
        OSError: the model does not exist, or cannot be downloaded.
        ValueError: the image model is not a plain vision transformer with a class token; weights are incomplete;
            overrides are unknown, or do not fit the weights.

    Example:

        model = from_pretrained_towers("vit_base_patch16_224.orig_in21k_ft_in1k", "distilbert-base-uncased")
    """
    overrides = nest_overrides(config_overrides)
    tower, (text_config, text_state) = _load_image_tower(video), _load_text_tower(text)
    head = _load_clip_head(text) if _is_same_clip(video, text) else _ClipHead({}, {})
    if config_overrides.get("loss") == "max_margin":
        head.settings.pop("learn_temperature", None)
    found = {"video_config": tower.sizes, "text_config": text_config} | head.settings
    config = RegionLearnerConfig.from_dict(found, **overrides)
    changed = [key for key in tower.sizes if getattr(config.video_config, key) != tower.sizes[key]]
    if changed:
        raise ValueError(
            f"The weights of {video} have {', '.join(f'{key}={tower.sizes[key]!r}' for key in changed)}; these cannot "
            "be overridden. (Any model takes frames of another size with `interpolate_pos_encoding=True`.)"
        )
    model = RegionLearnerModel(config)
    _load_tower(model.video_model, tower.state, allowed_missing=_VIDEO_ONLY, name=video)
    own = set(model.text_model.state_dict())
    text_state = {key: value for key, value in text_state.items() if key in own or not key.startswith("pooler.")}
    _load_tower(model.text_model, text_state, allowed_missing=(), name=text)
    if head.settings.get("projection_dim") == config.projection_dim:  # a bias, if asked for, starts as zero
        model.load_state_dict(head.weights, strict=False)  # the towers are loaded already
    return model.eval()


def _load_tower(module: torch.nn.Module, state: dict[str, torch.Tensor], allowed_missing: tuple[str, ...], name):
    try:
        result = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # for another shape, such as positions without one for the class token
        details = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise ValueError(f"The weights of {name} do not fit: {details}") from error
    missing = [key for key in result.missing_keys if not any(part in key for part in allowed_missing)]
    if missing or result.unexpected_keys:
        pooler = any(key.startswith("pooler.") for key in missing)
        raise ValueError(
            f"The weights of {name} do not fit: missing {missing[:5]}, unexpected {result.unexpected_keys[:5]}."
            + (' Pass text_pooling="first" or "mean".' if pooler else "")
        )


def processor_from_towers(
    video: str | os.PathLike = "vit_base_patch16_224.orig_in21k_ft_in1k",
    text: str | os.PathLike = "distilbert-base-uncased",
    num_frames: int = 4,
):
    """
    Returns the processor for [`from_pretrained_towers`] of the same arguments: with frame size, mean and standard
    deviation of the image model (those of ImageNet and a warning, if it has none), and the tokenizer of the text
    encoder.

    Raises:
        OSError: the model does not exist, or cannot be downloaded.
        ValueError: the tokenizer does not fit the text encoder.
    """
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    from ..processing_region_learner import RegionLearnerProcessor
    from ..video_processing_region_learner import RegionLearnerVideoProcessor

    tower = _load_image_tower(video)
    mean, std = tower.mean, tower.std
    if mean is None or std is None:
        logger.warning("%s does not say how its images are normalized: using the mean and std of ImageNet.", video)
        mean, std = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
    video_processor = RegionLearnerVideoProcessor.for_image_size(
        tower.sizes["image_size"], num_frames=num_frames, image_mean=mean, image_std=std
    )
    tokenizer, text_config = AutoTokenizer.from_pretrained(text), _config_of(str(text))
    check_text_tower(text_config.text_config if text_config.model_type == "clip" else text_config, tokenizer)
    return RegionLearnerProcessor(video_processor, tokenizer)

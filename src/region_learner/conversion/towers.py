"""A dual encoder from an image model and a text model that were trained apart, or together as CLIP's."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPTextModel,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..modeling_region_learner import RegionLearnerModel
from .original import VIT_NAMES, config_with_overrides, rename

logger = logging.getLogger(__name__)

# What an image model cannot have: these parts of the video tower keep their initial values.
_VIDEO_ONLY = ("embeddings.temporal_embeddings", ".time_attention.", ".time_norm.", "region_module.")

_HF_NAMES = {
    # transformers' CLIP
    r"^embeddings\.class_embedding$": "embeddings.cls_token",
    r"^embeddings\.patch_embedding\.": "embeddings.patch_embedding.",
    r"^embeddings\.position_embedding\.weight$": "embeddings.position_embeddings",
    r"^pre_layrnorm\.": "pre_layernorm.",  # sic
    r"^encoder\.layers\.(\d+)\.self_attn\.(q|k|v)_proj\.": r"layers.\1.space_attention.\2.",
    r"^encoder\.layers\.(\d+)\.self_attn\.out_proj\.": r"layers.\1.space_attention.out_proj.",
    r"^encoder\.layers\.(\d+)\.layer_norm1\.": r"layers.\1.space_norm.",
    r"^encoder\.layers\.(\d+)\.layer_norm2\.": r"layers.\1.mlp_norm.",
    r"^encoder\.layers\.(\d+)\.mlp\.": r"layers.\1.mlp.",
    r"^post_layernorm\.": "layernorm.",
    # transformers' ViT
    r"^embeddings\.cls_token$": "embeddings.cls_token",
    r"^embeddings\.position_embeddings$": "embeddings.position_embeddings",
    r"^embeddings\.patch_embeddings\.projection\.": "embeddings.patch_embedding.",
    r"^layers\.(\d+)\.attention\.(q|k|v)_proj\.": r"layers.\1.space_attention.\2.",
    r"^layers\.(\d+)\.attention\.o_proj\.": r"layers.\1.space_attention.out_proj.",
    r"^layers\.(\d+)\.layernorm_before\.": r"layers.\1.space_norm.",
    r"^layers\.(\d+)\.layernorm_after\.": r"layers.\1.mlp_norm.",
    r"^layers\.(\d+)\.mlp\.": r"layers.\1.mlp.",
    r"^layernorm\.": "layernorm.",
}


@dataclass
class _ImageTower:
    """An image model as a video tower takes it."""

    sizes: dict[str, Any]
    state: dict[str, torch.Tensor]
    mean: list[float]
    std: list[float]


def _load_image_tower(name: str | os.PathLike) -> _ImageTower:
    name, config_file = str(name), Path(name) / "config.json"
    if Path(name).is_dir():
        if not config_file.is_file():
            raise ValueError(f"{name} has no config.json: it is no model directory of timm or transformers.")
        if "architecture" in json.loads(config_file.read_text()):
            return _load_timm(f"local-dir:{name}")
        return _load_transformers(name)
    if "/" in name and not name.startswith(("timm/", "hf-hub:", "local-dir:")):
        return _load_transformers(name)
    return _load_timm(f"hf-hub:{name}" if name.startswith("timm/") else name)


def _load_timm(name: str) -> _ImageTower:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"Loading {name!r} needs timm: `pip install timm`.") from error
    model = timm.create_model(name, pretrained=True, num_classes=0)
    weights, unknown = {}, []
    for key, tensor in model.state_dict().items():
        new_key = rename(key, VIT_NAMES)
        if new_key is None:
            unknown.append(key)
        else:
            weights[new_key] = tensor
    if unknown or not hasattr(model, "blocks"):
        raise ValueError(
            f"timm's {name!r} is no plain vision transformer with a class token: there is no place for "
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
    return _ImageTower(sizes | _sizes_of(weights), weights, list(cfg["mean"]), list(cfg["std"]))


def _activation_of(module: torch.nn.Module, name: str) -> str:
    known = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_pytorch_tanh"}
    try:
        return known[type(module).__name__]
    except KeyError:
        raise ValueError(f"timm's {name!r} has the activation {type(module).__name__}, which is not known.") from None


def _square(size: tuple[int, int] | int, name: str) -> int:
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    if height != width:
        raise ValueError(f"{name!r} takes images or patches of {height} x {width} pixels, but they must be square.")
    return int(height)


def _load_transformers(name: str) -> _ImageTower:
    config = AutoConfig.from_pretrained(name)
    if config.model_type == "vit":
        model = AutoModel.from_pretrained(name, add_pooling_layer=False)
    elif config.model_type in ("clip", "clip_vision_model"):
        model = CLIPVisionModel.from_pretrained(name)
    else:
        raise ValueError(f"{name!r} is a {config.model_type!r} model; the video tower takes 'vit' and 'clip'.")
    config, weights = model.config, {}
    for key, tensor in model.state_dict().items():
        key = key.removeprefix("vision_model.")
        new_key = rename(key, _HF_NAMES)
        if new_key is not None:
            weights[new_key] = tensor
        elif key not in ("embeddings.position_ids", "embeddings.mask_token"):
            raise ValueError(f"{name!r} is no plain vision transformer: there is no place for {key}.")
    _fuse_qkv(weights)
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


def _fuse_qkv(weights: dict[str, torch.Tensor]):
    """Joins the separate queries, keys and values of transformers' layers into our one projection."""
    for key in [key for key in weights if ".space_attention.q." in key]:
        parts = [weights.pop(key.replace(".q.", f".{part}.")) for part in "qkv"]
        weights[key.replace(".q.", ".qkv.")] = torch.cat(parts)


def _normalisation_of(name: str) -> tuple[list[float], list[float]]:
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        settings = {}
    if "image_mean" not in settings:
        logger.warning("%s does not say how its images are normalised: taking ImageNet's mean and std.", name)
        return list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
    return list(settings["image_mean"]), list(settings["image_std"])


def _sizes_of(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    patches = weights["embeddings.patch_embedding.weight"]
    return {
        "hidden_size": patches.shape[0],
        "num_channels": patches.shape[1],
        "num_hidden_layers": 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("layers.")),
        "intermediate_size": weights["layers.0.mlp.fc1.weight"].shape[0],
        "patch_bias": "embeddings.patch_embedding.bias" in weights,
        "pre_layernorm": "pre_layernorm.weight" in weights,
    }


def _load_text_tower(name: str | os.PathLike) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(name)
    return (CLIPTextModel if config.model_type == "clip" else AutoModel).from_pretrained(name)


def from_pretrained_towers(
    video: str | os.PathLike = "vit_base_patch16_224.orig_in21k_ft_in1k",
    text: str | os.PathLike = "distilbert-base-uncased",
    **config_overrides,
) -> RegionLearnerModel:
    """
    A dual encoder whose towers start from pre-trained weights. The image model inflates exactly: as its attention
    over time starts as zero, a clip of one frame has the image's CLS state. Region module and projections are new.

    Args:
        video: of the image model: a name of timm (the paper's by default), a ViT or CLIP by its Hub name
            ("owner/name"), or a directory with one of these.
        text: of the text encoder: a Hub name or directory; of a CLIP, its text tower.
        config_overrides: fields of the video configuration, or top-level ones such as `projection_dim`.

    Raises:
        ValueError: for an image model that is no plain vision transformer with a class token, for sizes that do not
            fit the weights, or an unknown override.
    """
    tower, text_model = _load_image_tower(video), _load_text_tower(text)
    text_config: PreTrainedConfig = text_model.config
    config = config_with_overrides(config_overrides, video=tower.sizes, text_config=text_config.to_dict())
    changed = [key for key in tower.sizes if getattr(config.video_config, key) != tower.sizes[key]]
    if changed:
        raise ValueError(
            f"The weights of {video} have {', '.join(f'{key}={tower.sizes[key]!r}' for key in changed)}; these cannot "
            "be overridden. (Frames of another size than `image_size` can be given to any model.)"
        )
    model = RegionLearnerModel(config)
    _load_tower(model.video_model, tower.state, allowed_missing=_VIDEO_ONLY, name=video)
    text_state = text_model.state_dict()
    own = set(model.text_model.state_dict())
    text_state = {key: value for key, value in text_state.items() if key in own or not key.startswith("pooler.")}
    _load_tower(model.text_model, text_state, allowed_missing=(), name=text)
    return model.eval()


def _load_tower(module: torch.nn.Module, state: dict[str, torch.Tensor], allowed_missing: tuple[str, ...], name):
    result = module.load_state_dict(state, strict=False)
    missing = [key for key in result.missing_keys if not any(part in key for part in allowed_missing)]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"The weights of {name} do not fit: missing {missing[:5]}, without a place {result.unexpected_keys[:5]}."
        )


def processor_from_towers(
    video: str | os.PathLike = "vit_base_patch16_224.orig_in21k_ft_in1k",
    text: str | os.PathLike = "distilbert-base-uncased",
    num_frames: int = 4,
):
    """
    The processor for [`from_pretrained_towers`] of the same arguments: frame size, mean and standard deviation of
    the image model, and the tokenizer of the text encoder.
    """
    from ..processing_region_learner import RegionLearnerProcessor
    from ..video_processing_region_learner import RegionLearnerVideoProcessor

    tower = _load_image_tower(video)
    video_processor = RegionLearnerVideoProcessor.for_image_size(
        tower.sizes["image_size"], num_frames=num_frames, image_mean=tower.mean, image_std=tower.std
    )
    return RegionLearnerProcessor(video_processor, AutoTokenizer.from_pretrained(text))

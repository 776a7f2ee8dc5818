"""Creates dual encoders from pre-trained image and text models: one checkpoint with both towers, or one for each."""

import json
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModel, CLIPModel, CLIPTextModel, CLIPVisionModel, PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..configuration_region_learner import RegionLearnerConfig, nest_overrides
from ..errors import install_hint
from ..modeling_region_learner import WITHOUT_POOLER, RegionLearnerModel, has_mean_pooler
from ..processing_region_learner import RegionLearnerProcessor
from ..video_processing_region_learner import RegionLearnerVideoProcessor
from .checkpoints import copy_weights, load_config, load_tokenizer, load_weights, rename_weights, start_of
from .dual_encoders import DUAL_ENCODERS, is_dual_encoder, load_dual_encoder, processor_of_dual_encoder
from .image_processors import video_processor_of
from .original import VIT_NAMES, rename, split_qkv

logger = logging.getLogger(__name__)

# Parts of the video tower that an image model lacks. They keep their initial values.
_VIDEO_ONLY = (
    "embeddings.temporal_embeddings", ".time_attention.", ".time_norm.", "region_module.", "temporal_fusion."
)  # fmt: skip

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


DEFAULT_VIDEO = "vit_base_patch16_224.orig_in21k_ft_in1k"
DEFAULT_TEXT = "distilbert-base-uncased"


@dataclass
class _ImageTower:
    """
    A pre-trained image model: `fields` of the video configuration, and the weights. These are either the `state` of
    the divided space-time ViT, with the `normalization` (mean, std) of its images if it is known, or the model itself,
    as `backbone`.
    """

    fields: dict[str, Any]
    state: dict[str, torch.Tensor]
    normalization: tuple[list[float], list[float]] | None = None
    backbone: torch.nn.Module | None = None


def _local_config(name: str | os.PathLike) -> dict[str, Any] | None:
    """Returns the config.json of a model directory; None for a name from the Hub or timm."""
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


def _is_of_timm(name: str | os.PathLike) -> bool:
    """Returns whether an image model is a timm model: a directory with `architecture`, or a name without an owner."""
    if (config := _local_config(name)) is not None:
        return "architecture" in config
    return "/" not in str(name) or str(name).startswith(("timm/", "hf-hub:", "local-dir:"))


def _has_both_sides(name: str | os.PathLike) -> bool:
    """
    Returns whether both towers come from a checkpoint, if only this one is given.

    Raises:
        ValueError: the checkpoint also has a text encoder, but does not belong to a supported family.
    """
    if _is_of_timm(name):
        return False
    if is_dual_encoder(name):
        return True
    config = load_config(name)
    if hasattr(config, "text_config"):
        raise ValueError(
            f"{name} is a {config.model_type!r} model, but both towers can only come from "
            f"{', '.join(DUAL_ENCODERS)}: to use only its image model, name a text encoder as well."
        )
    return False


def _load_image_tower(name: str | os.PathLike, as_backbone: bool) -> _ImageTower:
    if not _is_of_timm(name):
        return _load_transformers(str(name), as_backbone)
    return _load_timm(str(name), as_backbone)


def _timm_name(name: str) -> str:
    if os.path.isdir(name):
        return f"local-dir:{name}"
    return f"hf-hub:{name}" if name.startswith("timm/") else name


def _load_timm(name: str, as_backbone: bool) -> _ImageTower:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"Loading {name!r} needs timm: {install_hint('timm')}") from error
    try:
        model: Any = timm.create_model(_timm_name(name), pretrained=True, num_classes=0)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"timm cannot load {name!r}: {start_of(error)} (Use a timm model that has pre-trained weights, "
            '"owner/name" on the Hub, or a directory.)'
        ) from error
    weights = {new: tensor for key, tensor in model.state_dict().items() if (new := rename(key, VIT_NAMES))}
    is_plain = (
        len(weights) == len(model.state_dict())
        and hasattr(model, "blocks")
        and model.blocks[0].attn.qkv.bias is not None
        and weights["embeddings.position_embeddings"].shape[1] == 1 + model.patch_embed.num_patches
    )
    if as_backbone or not is_plain:
        return _timm_backbone(name, model)
    block = model.blocks[0]
    fields = {
        "num_attention_heads": block.attn.num_heads,
        "layer_norm_eps": model.norm.eps,
        "hidden_act": _activation_of(block.mlp.act, name),
        "image_size": _square(model.patch_embed.img_size, name),
        "patch_size": _square(model.patch_embed.patch_size, name),
    }
    normalization = list(model.pretrained_cfg["mean"]), list(model.pretrained_cfg["std"])
    return _ImageTower(fields | _sizes_of(weights), split_qkv(weights), normalization)


def _timm_backbone(name: str, model: Any) -> _ImageTower:
    from timm.models import load_model_config_from_hf
    from transformers import TimmWrapperConfig  # imports timm

    source = _timm_name(name)
    arguments: dict[str, Any] = {}
    if source.startswith("local-dir:"):
        arguments = (_local_config(source.removeprefix("local-dir:")) or {}).get("model_args") or {}
    elif source.startswith("hf-hub:"):
        arguments = load_model_config_from_hf(source.removeprefix("hf-hub:"))[2] or {}
    arguments = {key: value for key, value in arguments.items() if key != "num_classes"}  # the wrapper sets it to 0
    config = TimmWrapperConfig(architecture=model.pretrained_cfg["architecture"], model_args=arguments or None)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or model.pretrained_cfg["input_size"][1:]
    height, width = size
    fields = {
        "backbone_config": config,
        "hidden_size": model.num_features,
        "image_size": height if height == width else [height, width],
    }
    return _ImageTower(fields, {}, backbone=model)


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
        raise ValueError(f"{name!r} uses images or patches of {height} x {width} pixels, but they must be square.")
    return int(height)


def _load_transformers(name: str, as_backbone: bool) -> _ImageTower:
    config = load_config(name)
    is_plain = config.model_type in ("vit", "clip", "clip_vision_model")
    if as_backbone or not is_plain:
        return _transformers_backbone(name, config)
    if config.model_type == "vit":
        model, missing = load_weights(AutoModel, name, add_pooling_layer=False)
    else:
        model, missing = load_weights(CLIPVisionModel, name)
    _refuse_missing(missing, name)
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
    fields = {
        "num_attention_heads": config.num_attention_heads,
        "layer_norm_eps": config.layer_norm_eps,
        "hidden_act": config.hidden_act,
        "image_size": _square(config.image_size, name),
        "patch_size": _square(config.patch_size, name),
    }
    return _ImageTower(fields | _sizes_of(weights), weights, _normalization_of(name))


def _transformers_backbone(name: str, config: PreTrainedConfig) -> _ImageTower:
    if hasattr(config, "vocab_size") and not hasattr(config, "patch_size"):  # BEiT has a vocabulary of patches
        raise ValueError(f"{name!r} is a {config.model_type!r} model, which is not an image model.")
    try:
        model, missing = load_weights(AutoModel, name, add_pooling_layer=has_mean_pooler(config))
    except TypeError:  # most classes do not have this argument
        model, missing = load_weights(AutoModel, name)
    if has_mean_pooler(config) and missing and all(key.startswith("pooler.") for key in missing):
        model, missing = load_weights(AutoModel, name, add_pooling_layer=False)
        setattr(model.config, WITHOUT_POOLER, True)
    model = getattr(model, "vision_model", model)
    _refuse_missing([key for key in missing if not key.startswith("text_model.")], name)
    return _ImageTower({"backbone_config": model.config}, {}, backbone=model)


def _normalization_of(name: str) -> tuple[list[float], list[float]] | None:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        return None
    return (list(settings["image_mean"]), list(settings["image_std"])) if "image_mean" in settings else None


def _refuse_missing(missing: list[str], name: str | os.PathLike):
    if missing:
        raise ValueError(f"The weights of {name} are incomplete: missing {', '.join(missing[:5])}.")


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
    config, name = load_config(str(name)), str(name)
    if config.model_type in DUAL_ENCODERS and config.model_type != "clip":
        model, missing = load_weights(AutoModel, name)
        _refuse_missing([key for key in missing if key.startswith("text_model.")], name)
        load_tokenizer(name, model.config.text_config)  # which sets the padding token
        return model.config.text_config, model.text_model.state_dict()
    if config.model_type != "clip" and not hasattr(config, "vocab_size"):
        raise ValueError(f"{name!r} is a {config.model_type!r} model, which is not a text encoder.")
    model, missing = load_weights(CLIPTextModel if config.model_type == "clip" else AutoModel, name)
    state = {key: value for key, value in model.state_dict().items() if key not in missing}
    return model.config, state


@dataclass
class _ClipHead:
    """The projections and the temperature of a CLIP."""

    settings: dict[str, Any]  # configuration fields with which the projections give the same results as in CLIP
    weights: dict[str, torch.Tensor]


def _is_same(video: str | os.PathLike, text: str | os.PathLike) -> bool:
    """Returns whether both names are those of the same checkpoint."""
    return str(video) == str(text) or (Path(video).is_dir() and Path(video).resolve() == Path(text).resolve())


def _is_same_clip(video: str | os.PathLike, text: str | os.PathLike) -> bool:
    """Returns whether both names are those of the same CLIP checkpoint."""
    return _is_same(video, text) and load_config(text).model_type == "clip"


def _load_clip_head(name: str | os.PathLike) -> _ClipHead:
    model, missing = load_weights(CLIPModel, str(name))
    _refuse_missing(missing, name)
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


def _comes_from_one_checkpoint(video: str | os.PathLike, text: str | os.PathLike | None, as_backbone: bool) -> bool:
    """Returns whether both towers are those of one CLIP-like checkpoint, with its projections."""
    if text is None:
        return _has_both_sides(video)
    if not _is_same(video, text) or not _has_both_sides(video):
        return False
    return as_backbone or not _is_same_clip(video, text)


def from_pretrained_towers(
    video: str | os.PathLike = DEFAULT_VIDEO,
    text: str | os.PathLike | None = None,
    as_backbone: bool = False,
    **config_overrides,
) -> RegionLearnerModel:
    """
    Returns a dual encoder whose towers have pre-trained weights.

    With the name of one CLIP, MetaCLIP 2, SigLIP or SigLIP 2 checkpoint, both towers, the projections and the
    temperature come from this checkpoint. Frames are encoded one by one, and their features are averaged; an image has
    the same embedding as in the original model. A region module is only added if `region_form`, `num_regions` or
    `codebook_size` is given. Regions, phrases (`phrase_window`) and tubes (`tube_mlp`) have no influence at first.

    The same name twice is the same as one name, except for CLIP, which then initializes the divided space-time ViT
    unless `as_backbone=True`.

    With two names, the region module and the projections are new. A plain ViT or CLIP initializes the divided
    space-time ViT. Its attention over time is initialized with zeros, so that a clip of one frame has the same CLS
    state as in the image model. Any other image model becomes the backbone, which encodes each frame.
    If both names are the same CLIP, its projections are used as well (with its `projection_dim`,
    `projection_bias=False` and `text_projection_relu=False`), and so is its temperature (with
    `learn_temperature=True`, unless the loss has no temperature). All of these settings can be overridden. Projections
    with another `projection_dim` are new.

    Args:
        video: the image model: a timm name (the default is that of the paper), a Hub name ("owner/name"), or a
            directory.
        text: the text encoder: a Hub name or directory. If it is a CLIP, its text tower is used. The default is the
            text tower of `video`, if it has both sides, and otherwise DistilBERT.
        as_backbone: whether a plain ViT or CLIP also becomes the backbone, instead of the divided space-time ViT.
        config_overrides: fields of the video configuration, or top-level fields such as `projection_dim`.

    Raises:
        OSError: the model does not exist, or cannot be downloaded.
        ValueError: weights are incomplete, or overrides are unknown or do not fit the weights.

    Example:

        model = from_pretrained_towers("google/siglip2-base-patch16-224")  # zero-shot
        model = from_pretrained_towers("google/siglip2-base-patch16-224", region_form="decoupled")
        model = from_pretrained_towers("vit_base_patch16_224.orig_in21k_ft_in1k", "distilbert-base-uncased")
    """
    if _comes_from_one_checkpoint(video, text, as_backbone):
        return load_dual_encoder(video, **config_overrides)
    text = DEFAULT_TEXT if text is None else text
    overrides = nest_overrides(config_overrides)
    tower, (text_config, text_state) = _load_image_tower(video, as_backbone), _load_text_tower(text)
    is_clip = tower.backbone is None and _is_same_clip(video, text)
    head = _load_clip_head(text) if is_clip else _ClipHead({}, {})
    if config_overrides.get("loss") == "max_margin":
        head.settings.pop("learn_temperature", None)
    found = {"video_config": tower.fields, "text_config": text_config} | head.settings
    config = RegionLearnerConfig.from_dict(found, **overrides)
    sizes = {key: value for key, value in tower.fields.items() if key != "backbone_config"}
    changed = [key for key in sizes if getattr(config.video_config, key) != sizes[key]]
    if changed:
        raise ValueError(
            f"The weights of {video} have {', '.join(f'{key}={sizes[key]!r}' for key in changed)}, which cannot be "
            "overridden: leave them out. (For frames of another size, use `interpolate_pos_encoding=True`.)"
        )
    model = RegionLearnerModel(config)
    if tower.backbone is not None:
        own = model.video_model.backbone
        copy_weights(getattr(own, "timm_model", own), tower.backbone, video)
    else:
        _load_tower(model.video_model, tower.state, allowed_missing=_VIDEO_ONLY, name=video)
    text_state = rename_weights(model.text_model, text_state)
    own = set(model.text_model.state_dict())
    text_state = {key: value for key, value in text_state.items() if key in own or not key.startswith("pooler.")}
    _load_tower(model.text_model, text_state, allowed_missing=(), name=text)
    if head.settings.get("projection_dim") == config.projection_dim:  # a bias, if requested, is initialized with zero
        model.load_state_dict(head.weights, strict=False)  # the towers are already loaded
        for part in model.added_parts().values():
            part.start_as_zero()
    return model.eval()


def _load_tower(module: torch.nn.Module, state: dict[str, torch.Tensor], allowed_missing: tuple[str, ...], name):
    try:
        result = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # another shape, such as positions without one for the class token
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
    video: str | os.PathLike = DEFAULT_VIDEO,
    text: str | os.PathLike | None = None,
    num_frames: int | None = None,
    as_backbone: bool = False,
) -> RegionLearnerProcessor:
    """
    Returns the processor for [`from_pretrained_towers`] with the same arguments. It has the tokenizer of the text
    encoder. A backbone gets the frame size, the crop, the interpolation, the mean and the standard deviation of its
    image processor. The divided space-time ViT gets the paper's transforms at its size, with the mean and standard
    deviation of the image model (or those of ImageNet, with a warning, if it has none).

    Args:
        video, text, as_backbone: as for [`from_pretrained_towers`].
        num_frames: frames per clip. The default is 12 if both towers come from one checkpoint, and 4 otherwise.

    Raises:
        OSError: the model does not exist, or cannot be downloaded.
        ValueError: the tokenizer does not fit the text encoder.

    Example:

        processor = processor_from_towers("openai/clip-vit-base-patch16")
        inputs = processor(text=["a dog catches a frisbee"], videos=["clip.mp4"])
    """
    if _comes_from_one_checkpoint(video, text, as_backbone):
        return processor_of_dual_encoder(video, num_frames)
    text, num_frames = DEFAULT_TEXT if text is None else text, num_frames or 4
    tower = _load_image_tower(video, as_backbone)
    if tower.backbone is not None:
        video_processor = video_processor_of(video, tower.backbone, num_frames)
    else:
        mean, std = tower.normalization or (None, None)
        if mean is None or std is None:
            logger.warning("%s does not say how its images are normalized. Using the mean and std of ImageNet.", video)
            mean, std = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
        video_processor = RegionLearnerVideoProcessor.for_image_size(
            tower.fields["image_size"], num_frames=num_frames, image_mean=mean, image_std=std
        )
    text_config = load_config(text)
    tokenizer = load_tokenizer(text, getattr(text_config, "text_config", text_config))
    return RegionLearnerProcessor(video_processor, tokenizer)

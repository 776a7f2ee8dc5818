"""Checkpoints of the authors' code, of RegionLearner and of Frozen in Time, as models of this package."""

import logging
import math
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from ..configuration_region_learner import RegionLearnerConfig, nest_overrides, text_config_from_dict
from ..modeling_region_learner import RegionLearnerModel

logger = logging.getLogger(__name__)

# The original's names, as regular expressions, and ours. Those of the space-time ViT are timm's too.
VIT_NAMES = {
    r"^cls_token$": "embeddings.cls_token",
    r"^pos_embed$": "embeddings.position_embeddings",
    r"^temporal_embed$": "embeddings.temporal_embeddings",
    r"^patch_embed\.proj\.": "embeddings.patch_embedding.",
    r"^blocks\.(\d+)\.norm1\.": r"layers.\1.space_norm.",
    r"^blocks\.(\d+)\.norm2\.": r"layers.\1.mlp_norm.",
    r"^blocks\.(\d+)\.norm3\.": r"layers.\1.time_norm.",
    r"^blocks\.(\d+)\.attn\.qkv\.": r"layers.\1.space_attention.qkv.",
    r"^blocks\.(\d+)\.attn\.proj\.": r"layers.\1.space_attention.out_proj.",
    r"^blocks\.(\d+)\.timeattn\.qkv\.": r"layers.\1.time_attention.qkv.",
    r"^blocks\.(\d+)\.timeattn\.proj\.": r"layers.\1.time_attention.out_proj.",
    r"^blocks\.(\d+)\.mlp\.": r"layers.\1.mlp.",
    r"^norm_pre\.": "pre_layernorm.",
    r"^norm\.": "layernorm.",
}
_REGION_NAMES = {
    r"^RegionLearner\.Quantization\.": "region_module.quantizer.",
    r"^RegionLearner\.Motion_Excitation\.ex_proj\.": "region_module.motion_excitation.conv.",
    r"^RegionLearner\.Aggregation\.spatial_att\.": "region_module.aggregation.conv.",
    r"^RegionLearner\.Interaction\.qkv\.": "region_module.interaction.0.qkv.",
    r"^RegionLearner\.Interaction\.proj\.": "region_module.interaction.0.out_proj.",
    r"^late_temporal_fusion\.": "temporal_fusion.",
}
_HEAD_NAMES = {r"^txt_proj\.1\.": "text_projection.", r"^vid_proj\.0\.": "video_projection."}


class _Inert(dict):
    """Stands in for every class and function a pickle names: takes anything, keeps nothing, does nothing."""

    def __init__(self, *args, **kwargs):
        super().__init__()

    def __setitem__(self, key, value):
        pass

    def __setstate__(self, state):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass


def read_checkpoint(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """
    Reads the tensors of a checkpoint saved by the original without running anything the file contains: PyTorch's
    restricted unpickler builds them, and whatever else the file names is replaced by an object that does nothing.

    Returns the entries of its `state_dict`, without the `module.` in front of names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such checkpoint, or asks for something the restricted unpickler refuses.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    try:
        # Files of PyTorch before 1.6 are no archives, and cannot be asked: they may hold nothing but tensors.
        known_format = zipfile.is_zipfile(path)
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path) if known_format else []
        with torch.serialization.safe_globals([(_Inert, name) for name in unknown]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a checkpoint (a file written by `torch.save`, without code to run): {reason}"
        ) from error
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no `state_dict` of tensors: it is no checkpoint of the original's code.")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def rename(name: str, table: dict[str, str]) -> str | None:
    """`name` by the first rule of `table` that fits, or None."""
    for pattern, replacement in table.items():
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return None


def _convert_names(state: dict[str, torch.Tensor], path) -> dict[str, torch.Tensor]:
    converted, unknown = {}, []
    for name, tensor in state.items():
        tower, _, rest = name.partition(".")
        if tower == "text_model":
            # Old releases of transformers saved this constant with the weights.
            new_name = None if rest == "embeddings.position_ids" else name
            if new_name is None:
                continue
        elif tower == "video_model":
            new_name = rename(rest, VIT_NAMES | _REGION_NAMES)
            new_name = new_name and f"video_model.{new_name}"
        else:
            new_name = rename(name, _HEAD_NAMES)
        if new_name is None:
            unknown.append(name)
        else:
            converted[new_name] = tensor
    if unknown:
        raise ValueError(f"{path} holds weights of no model that can be converted: {', '.join(sorted(unknown)[:8])}.")
    for needed in ("video_model.embeddings.cls_token", "text_projection.weight", "video_projection.weight"):
        if needed not in converted:
            raise ValueError(f"{path} lacks {needed} (as the original names it): it is no whole dual encoder.")
    return converted


def _count(state: dict[str, torch.Tensor], pattern: str) -> int:
    return len({match[1] for name in state if (match := re.match(pattern, name))})


def _video_sizes(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What the weights tell of the video configuration."""
    state = {k.removeprefix("video_model."): v for k, v in state.items() if k.startswith("video_model.")}
    hidden_size, num_channels, patch_size, _ = state["embeddings.patch_embedding.weight"].shape
    grid = math.isqrt(state["embeddings.position_embeddings"].shape[1] - 1)
    codes = state.get("region_module.quantizer.embed")
    masks = state.get("region_module.aggregation.conv.weight")
    return {
        "hidden_size": hidden_size,
        "num_channels": num_channels,
        "patch_size": patch_size,
        "image_size": grid * patch_size,
        "num_frames": state["embeddings.temporal_embeddings"].shape[1],
        "num_hidden_layers": _count(state, r"layers\.(\d+)\."),
        "intermediate_size": state["layers.0.mlp.fc1.weight"].shape[0],
        "codebook_size": 0 if codes is None else codes.shape[0],
        "num_regions": 0 if masks is None else masks.shape[0],
        "interaction_layers": _count(state, r"region_module\.interaction\.(\d+)\."),
        "motion_excitation": "region_module.motion_excitation.conv.weight" in state,
        "temporal_fusion": "linear" if "temporal_fusion.weight" in state else "attention",
        "region_form": "paper",
        "codebook_mode": "original",
        "time_attention_init": "original",
    }


def _text_sizes(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What the weights tell of the text configuration: DistilBERT, which the original uses, or BERT."""
    vocab_size, width = state["text_model.embeddings.word_embeddings.weight"].shape
    positions = state["text_model.embeddings.position_embeddings.weight"].shape[0]
    common = {"vocab_size": vocab_size, "max_position_embeddings": positions}
    if layers := _count(state, r"text_model\.transformer\.layer\.(\d+)\."):
        hidden = state["text_model.transformer.layer.0.ffn.lin1.weight"].shape[0]
        return common | {"model_type": "distilbert", "dim": width, "n_layers": layers, "hidden_dim": hidden}
    layers = _count(state, r"text_model\.encoder\.layer\.(\d+)\.")
    hidden = state["text_model.encoder.layer.0.intermediate.dense.weight"].shape[0]
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": hidden}
    return common | {"model_type": "bert"} | sizes


def _text_config(state: dict[str, torch.Tensor], given) -> PreTrainedConfig:
    if isinstance(given, (str, os.PathLike)):
        return AutoConfig.from_pretrained(given)
    if isinstance(given, PreTrainedConfig):
        return given
    try:
        sizes = _text_sizes(state)
    except KeyError as error:
        raise ValueError(f"The text encoder is neither DistilBERT nor BERT (no {error}): pass text_config.") from error
    return text_config_from_dict(sizes | (given or {}), chosen=given or ())


def convert_original_checkpoint(
    path: str | os.PathLike,
    output_dir: str | os.PathLike | None = None,
    *,
    text_config: PreTrainedConfig | dict | str | os.PathLike | None = None,
    tokenizer: Any = None,
    **config_overrides,
) -> RegionLearnerModel:
    """
    Converts a checkpoint of the authors' code, of RegionLearner or of Frozen in Time.

    Sizes come from the weights. What weights cannot tell has the original's value: 12 heads in both towers,
    8 in the interaction, temperature 0.05, fusion over time by attention (or "linear", where there are weights of it;
    `temporal_fusion="pool"` has none). The model has `codebook_mode="original"`.

    Args:
        path: the `.pth` file. Nothing in it is run; see [`read_checkpoint`].
        output_dir: where to save model, source files and, if there is a tokenizer, processor.
        text_config: of the text encoder, if not DistilBERT or BERT with 12 heads: a configuration, a dict (sizes
            that it lacks are taken from the weights), or a directory or name.
        tokenizer: a tokenizer, or a directory or name, to save with the processor; by default that of `text_config`
            where it is a directory or name.
        config_overrides: fields of the video configuration, or `projection_dim` and `temperature`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no such checkpoint, weights that do not fit the configuration, or an unknown
            override.
    """
    state = _convert_names(read_checkpoint(path), path)
    try:
        sizes = _video_sizes(state)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is no whole dual encoder: it lacks {error} (by our name).") from error
    found = {
        "video_config": sizes,
        "text_config": _text_config(state, text_config),
        "projection_dim": state["text_projection.weight"].shape[0],
    }
    config = RegionLearnerConfig.from_dict(found, **nest_overrides(config_overrides))
    model = RegionLearnerModel(config)
    quantizer = "video_model.region_module.quantizer"
    if config.video_config.codebook_size:
        # The original does not count these: its codes have been trained, and have all been in use lately.
        state[f"{quantizer}.num_updates"] = torch.ones((), dtype=torch.int64)
        state[f"{quantizer}.features_unused"] = torch.zeros(config.video_config.codebook_size, dtype=torch.int64)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        details = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise ValueError(f"The weights of {path} do not fit the configuration: {details}") from error
    model.eval()
    if output_dir is not None:
        _save(model, output_dir, text_config if tokenizer is None else tokenizer)
    return model


def _save(model: RegionLearnerModel, output_dir: str | os.PathLike, tokenizer: Any):
    from ..processing_region_learner import RegionLearnerProcessor
    from ..video_processing_region_learner import RegionLearnerVideoProcessor

    model.save_pretrained(output_dir)
    video = model.config.video_config
    video_processor = RegionLearnerVideoProcessor.for_image_size(video.image_size, num_frames=video.num_frames)
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    if tokenizer is None or isinstance(tokenizer, (dict, PreTrainedConfig)):
        video_processor.save_pretrained(output_dir)
        logger.warning(
            "Saved without a tokenizer, so that texts cannot be processed yet: pass `tokenizer=` "
            "(the original's is 'distilbert-base-uncased')."
        )
    else:
        RegionLearnerProcessor(video_processor, tokenizer).save_pretrained(output_dir)

"""Converts checkpoints of the reference implementation and of Frozen in Time to models of this package."""

import logging
import math
import os
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from ..configuration_region_learner import RegionLearnerConfig, nest_overrides
from ..files import naming
from ..modeling_region_learner import RegionLearnerModel
from ..text_tower import check_text_tower
from .torch_files import read_state_dict

logger = logging.getLogger(__name__)

# Names in the reference implementation, as regular expressions, and ours. `split_qkv` is applied afterwards. The names
# of the space-time ViT are also those of timm.
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
    r"^RegionLearner\.Interaction\.qkv\.": "region_module.interaction.0.attention.qkv.",
    r"^RegionLearner\.Interaction\.proj\.": "region_module.interaction.0.attention.out_proj.",
    r"^late_temporal_fusion\.": "temporal_fusion.",
}
_HEAD_NAMES = {r"^txt_proj\.1\.": "text_projection.", r"^vid_proj\.0\.": "video_projection."}


def read_checkpoint(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """
    Returns the weights in a checkpoint of the reference implementation by their names, without the prefix `module.`.
    Code in the file is not run; see [`read_state_dict`].

    Raises:
        OSError: the file does not exist, or cannot be read.
        ValueError: the file is damaged, or is not such a checkpoint.
    """
    saved = read_state_dict(path)
    state = {name.removeprefix("module."): tensor for name, tensor in saved.items()}
    if len(state) < len(saved):
        raise ValueError(f"{path} has weights twice, with and without the prefix `module.` in their names.")
    return state


def rename(name: str, table: dict[str, str]) -> str | None:
    """Returns `name` renamed by the first rule of `table` that matches, or None."""
    for pattern, replacement in table.items():
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return None


def split_qkv(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns `weights` with each fused projection of queries, keys and values, `qkv`, split into three."""
    split = {}
    for name, tensor in weights.items():
        if "attention.qkv." in name and tensor.ndim and len(tensor) % 3 == 0:
            for part, value in zip("qkv", tensor.chunk(3)):
                split[name.replace(".qkv.", f".{part}_proj.")] = value.clone()
        else:
            split[name] = tensor
    return split


def _convert_names(state: dict[str, torch.Tensor], path) -> dict[str, torch.Tensor]:
    converted, unknown = {}, []
    for name, tensor in state.items():
        tower, _, rest = name.partition(".")
        if tower == "text_model":
            if rest == "embeddings.position_ids":  # a constant, which old releases of transformers saved
                continue
            new_name: str | None = name
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
        raise ValueError(
            f"{path} has weights that the reference implementation does not have: {', '.join(sorted(unknown)[:8])}."
        )
    for needed in ("video_model.embeddings.cls_token", "text_projection.weight", "video_projection.weight"):
        if needed not in converted:
            raise ValueError(f"{path} lacks {needed} (its name in this package): it is not a complete dual encoder.")
    return split_qkv(converted)


def _count(state: dict[str, torch.Tensor], pattern: str) -> int:
    return len({match[1] for name in state if (match := re.match(pattern, name))})


def _shape(state: dict[str, torch.Tensor], name: str, dimensions: int) -> torch.Size:
    """
    Returns the shape of a weight.

    Raises:
        ValueError: the weight is missing, or has another number of dimensions.
    """
    if name not in state:
        raise ValueError(f"it lacks {name!r} (its name in this package)")
    if state[name].ndim != dimensions:
        raise ValueError(
            f"{name!r} (its name in this package) has {state[name].ndim} dimensions instead of {dimensions}"
        )
    return state[name].shape


def _video_sizes(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Returns the fields of the video configuration that the weights determine."""
    state = {k.removeprefix("video_model."): v for k, v in state.items() if k.startswith("video_model.")}
    hidden_size, num_channels, patch_size, _ = _shape(state, "embeddings.patch_embedding.weight", 4)
    grid = math.isqrt(_shape(state, "embeddings.position_embeddings", 3)[1] - 1)
    codes, masks = "region_module.quantizer.embed", "region_module.aggregation.conv.weight"
    return {
        "hidden_size": hidden_size,
        "num_channels": num_channels,
        "patch_size": patch_size,
        "image_size": grid * patch_size,
        "num_frames": _shape(state, "embeddings.temporal_embeddings", 3)[1],
        "num_hidden_layers": _count(state, r"layers\.(\d+)\."),
        "intermediate_size": _shape(state, "layers.0.mlp.fc1.weight", 2)[0],
        "codebook_size": _shape(state, codes, 2)[0] if codes in state else 0,
        "num_regions": _shape(state, masks, 4)[0] if masks in state else 0,
        "interaction_layers": _count(state, r"region_module\.interaction\.(\d+)\."),
        "motion_excitation": "region_module.motion_excitation.conv.weight" in state,
        "temporal_fusion": "linear" if "temporal_fusion.weight" in state else "attention",
        "region_form": "paper",
        "codebook_mode": "original",
    }


def _text_sizes(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Returns the text configuration that the weights determine, of DistilBERT, as in the original, or of BERT."""
    vocab_size, width = _shape(state, "text_model.embeddings.word_embeddings.weight", 2)
    positions = _shape(state, "text_model.embeddings.position_embeddings.weight", 2)[0]
    common = {"vocab_size": vocab_size, "max_position_embeddings": positions}
    if layers := _count(state, r"text_model\.transformer\.layer\.(\d+)\."):
        hidden = _shape(state, "text_model.transformer.layer.0.ffn.lin1.weight", 2)[0]
        return common | {"model_type": "distilbert", "dim": width, "n_layers": layers, "hidden_dim": hidden}
    layers = _count(state, r"text_model\.encoder\.layer\.(\d+)\.")
    hidden = _shape(state, "text_model.encoder.layer.0.intermediate.dense.weight", 2)[0]
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": hidden}
    return common | {"model_type": "bert"} | sizes


def _text_config(state: dict[str, torch.Tensor], given, path: str | os.PathLike) -> PreTrainedConfig | dict[str, Any]:
    """Returns the text configuration if it was given completely, otherwise the sizes that the weights determine."""
    if isinstance(given, (str, os.PathLike)):
        return AutoConfig.from_pretrained(given)
    if isinstance(given, PreTrainedConfig):
        return given
    try:
        return _text_sizes(state)
    except ValueError as error:
        raise ValueError(
            f"The text encoder of {path} is neither DistilBERT nor BERT ({error}): pass its text_config."
        ) from error


def _sizes(state: dict[str, torch.Tensor], text_config, path: str | os.PathLike) -> dict[str, Any]:
    """Returns the configuration that the weights, and a complete `text_config`, determine."""
    try:
        video, projection_dim = _video_sizes(state), _shape(state, "text_projection.weight", 2)[0]
    except ValueError as error:
        raise ValueError(f"{path} is not a complete dual encoder: {error}.") from error
    text = _text_config(state, text_config, path)
    return {"video_config": video, "text_config": text, "projection_dim": projection_dim}


def convert_original_checkpoint(
    path: str | os.PathLike,
    output_dir: str | os.PathLike | None = None,
    *,
    text_config: PreTrainedConfig | dict | str | os.PathLike | None = None,
    tokenizer: Any = None,
    **config_overrides,
) -> RegionLearnerModel:
    """
    Converts a checkpoint of the reference implementation or of Frozen in Time. Returns the model, and optionally saves
    it.

    Sizes come from the weights. Fields that the weights do not determine have the values of the original: 12 heads in
    both towers, 8 heads in the interaction, temperature 0.05, and temporal fusion by attention ("linear" if there are
    weights for it; "pool" has no weights and must be given). The model has `codebook_mode="original"`.

    Args:
        path: the `.pth` file. Code in it is not run; see [`read_checkpoint`].
        output_dir: directory to save the model, source files and processor in. It must not contain a checkpoint yet.
        text_config: configuration of the text encoder, if it is not DistilBERT or BERT with 12 heads: an object, a
            directory or a Hub name. For a DistilBERT or BERT, it can be a dict; the weights provide the sizes that it
            lacks.
        tokenizer: a tokenizer, or a directory or Hub name, to save with the processor. The default is that of
            `text_config`, if it is a directory or name, and otherwise the tokenizer that the authors used with such a
            text encoder ("distilbert-base-uncased" or "bert-base-uncased"). If it cannot be downloaded, or has another
            vocabulary, the checkpoint is saved with a video processor only, and a warning is logged.
        config_overrides: fields of the video configuration, or `projection_dim` and `temperature`.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: the file does not exist.
        FileExistsError: `output_dir` already contains a checkpoint.
        ValueError: the file is damaged, or is not such a checkpoint; the weights or the tokenizer do not fit the
            configuration; or an override is not known.

    Example:

        model = convert_original_checkpoint("region_learner.pth", "converted")
    """
    if output_dir is not None:
        _check_output(Path(output_dir))
    state = _convert_names(read_checkpoint(path), path)
    overrides = nest_overrides(config_overrides)
    if isinstance(text_config, dict):
        overrides["text_config"] = text_config
    config = RegionLearnerConfig.from_dict(_sizes(state, text_config, path), **overrides)
    if config.video_config.codebook_size:
        # The original does not count unused codes. Its codes have been trained, so all of them count as recently used.
        quantizer = "video_model.region_module.quantizer"
        state[f"{quantizer}.num_updates"] = torch.ones((), dtype=torch.int64)
        state[f"{quantizer}.features_unused"] = torch.zeros(config.video_config.codebook_size, dtype=torch.int64)
    _check_weights(state, config, path)
    model = RegionLearnerModel(config)
    model.load_state_dict(state, strict=True)
    model.eval()
    if output_dir is not None:
        _save(model, Path(output_dir), text_config if tokenizer is None else tokenizer)
    return model


def _check_output(output_dir: Path):
    """
    Checks that a checkpoint can be written to a directory.

    Raises:
        FileExistsError: the directory already contains a checkpoint, or is a file.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise FileExistsError(f"{output_dir} is a file: name a directory for the converted checkpoint.")
    for pattern in ("*config.json", "*.safetensors", "*.bin", "*.pt", "*.pth"):
        if found := next(output_dir.glob(pattern), None):
            raise FileExistsError(
                f"{output_dir} already contains a checkpoint ({found.name}): choose another directory, or delete it."
            )


def _check_weights(state: dict[str, torch.Tensor], config: RegionLearnerConfig, path: str | os.PathLike):
    """
    Compares the weights with the configuration, before memory is allocated for the model.

    Raises:
        ValueError: they do not fit, or are not finite.
    """
    try:
        with torch.device("meta"):
            expected = RegionLearnerModel(config).state_dict()
    except ValueError as error:
        raise ValueError(f"The weights of {path} do not form a model: {error}") from error
    faults = [f"{name} is missing" for name in expected.keys() - state.keys()]
    faults += [f"{name} is not part of the model" for name in state.keys() - expected.keys()]
    for name in expected.keys() & state.keys():
        ours, theirs = expected[name], state[name]
        if ours.shape != theirs.shape:
            faults.append(f"{name} has the shape {tuple(theirs.shape)} instead of {tuple(ours.shape)}")
        elif ours.is_floating_point() != theirs.is_floating_point():
            faults.append(f"{name} is of the type {theirs.dtype}".replace("torch.", ""))
        elif not theirs.isfinite().all():
            faults.append(f"{name} has values that are not finite")
    if faults:
        faults.sort()
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"The weights of {path} do not fit the configuration: {'; '.join(faults[:3])}{more}.")


# The tokenizers that the authors used, by type of the text encoder and size of the vocabulary.
_USUAL_TOKENIZERS = {("distilbert", 30522): "distilbert-base-uncased", ("bert", 30522): "bert-base-uncased"}


def _save(model: RegionLearnerModel, output_dir: Path, tokenizer: Any):
    from ..processing_region_learner import RegionLearnerProcessor
    from ..video_processing_region_learner import RegionLearnerVideoProcessor

    text_config: Any = model.config.text_config
    video_config = model.config.video_config
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    elif tokenizer is None or isinstance(tokenizer, (dict, PreTrainedConfig)):
        tokenizer = _usual_tokenizer(text_config)
    if tokenizer is not None:
        check_text_tower(text_config, tokenizer)
    with naming(output_dir):
        model.save_pretrained(output_dir)
    video_processor = RegionLearnerVideoProcessor.for_image_size(
        video_config.image_size, num_frames=video_config.num_frames
    )
    if tokenizer is None:
        video_processor.save_pretrained(output_dir)
        logger.warning(
            "%s was saved without a tokenizer, so `evaluate` and `train` cannot read texts. Convert it again with "
            "--tokenizer and a directory or Hub name (the authors used distilbert-base-uncased).",
            output_dir,
        )
    else:
        RegionLearnerProcessor(video_processor, tokenizer).save_pretrained(output_dir)


def _usual_tokenizer(text_config: PreTrainedConfig) -> Any:
    """Returns the tokenizer that the authors used with such a text encoder; None if it cannot be downloaded."""
    name = _USUAL_TOKENIZERS.get((text_config.model_type, text_config.vocab_size))
    if name is None:
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except OSError as error:
        logger.warning("The tokenizer %s cannot be downloaded (%s).", name, str(error).partition("\n")[0])
        return None
    logger.info("Using the tokenizer %s, which the authors trained with.", name)
    return tokenizer

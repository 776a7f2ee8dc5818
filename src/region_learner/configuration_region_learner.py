# Copyright 2026 The RegionLearner authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in
# compliance with the License. You may obtain a copy at http://www.apache.org/licenses/LICENSE-2.0
"""
Configuration of RegionLearner, "Video-Text Pre-training with Learned Regions" (arXiv 2112.01194).

A configuration holds and saves only the fields that were chosen. Defaults that depend on other fields are computed on
access, by the property `resolved`, so that an override of a saved configuration always takes effect.
"""

import difflib
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

TEXT_POOLINGS = ("first", "last", "eos", "mean", "pooler")
CLIP_TEXT_ENCODERS = ("clip_text_model", "metaclip_2_text_model")
# Text encoders with a trained pooling of their own.
_POOLED_TEXT_ENCODERS = {
    "bert": "pooler",
    "clip_text_model": "eos",
    "metaclip_2_text_model": "eos",
    "siglip_text_model": "pooler",
    "siglip2_text_model": "pooler",
}


def is_causal(text_config: Any) -> bool:
    """Returns whether a token of the text encoder attends only to the tokens before it, as in GPT-2."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    # Two fields of transformers make a decoder bidirectional.
    if getattr(text_config, "is_causal", None) is False or getattr(text_config, "use_bidirectional_attention", False):
        return False
    if getattr(text_config, "is_decoder", False) or text_config.model_type in CLIP_TEXT_ENCODERS:
        return True
    # The list of causal models includes encoders (for `is_decoder=True`) and XLNet, which attends to both sides.
    encoders = {*MODEL_FOR_MASKED_LM_MAPPING_NAMES, "bert-generation", "xlnet"}
    return text_config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - encoders


def default_text_pooling(text_config: Any) -> str:
    """Returns the encoder's own pooling if it has a trained one, otherwise a token that attends to the whole text."""
    own = _POOLED_TEXT_ENCODERS.get(text_config.model_type, "first")
    return "last" if own != "eos" and is_causal(text_config) else own


# Values of `video_pooling` that leave the regions out of the vector of a clip.
POOLINGS_WITHOUT_REGIONS = ("cls", "cls_patch_max")


class RegionOptions(NamedTuple):
    """
    The options of the region module. `region_form` sets all of them; the dictionary `region_options` overrides single
    options by these names.

    Args:
        mask_normalization: "regions": a softmax over the regions at each position, so that the regions compete for
            it; each mask is then scaled to a mean of 1. "positions": a softmax over the positions of a frame in each
            mask. "none": raw masks of any sign.
        pooling: how the values under a mask are pooled into one region. "softmax": in each channel, a mean over
            positions weighted by mask * exp(pooling_sharpness * value), so that large values under the mask count
            most. "max": in each channel, the maximum over positions of value + log(mask). "mean": the mean over
            positions of mask * value. "softmax" and "max" need normalized masks. "attention": learned queries attend
            to the patches of each frame; a region is what a query found over time, and its masks are the attention
            weights. "tracking": the same, but each query prefers patches near its own place in the frame, and in later
            frames those near the center of its mask in the frame before. So queries cover the frame, and follow what
            they have found.
        pooling_sharpness: sharpness of "softmax", in units of the standard deviation of the values over a frame.
            0 is the same as "mean".
        values: what is pooled: the "features" before quantization, or the "quantized" features. The masks are
            computed from the quantized features in both cases.
        detach_masks: whether to stop the gradient from the masks to the encoder, which then learns only through the
            values.
        interaction_residual: whether there is a residual connection around the attention of each interaction layer.
        interaction_norm: whether there is a LayerNorm before the attention of each interaction layer.
        interaction_mlp: whether a LayerNorm and an MLP with a residual connection follow the attention, as in a block
            of the encoder.
        mask_loss_weight: weight of a soft k-means loss on the masks: the share of the variance of a clip's features
            that lies within its regions. It needs `mask_normalization="regions"`. The default is 1 if several masks
            compete for positions, and 0 otherwise.
    """

    mask_normalization: str
    pooling: str
    pooling_sharpness: float
    values: str
    detach_masks: bool
    interaction_residual: bool
    interaction_norm: bool
    interaction_mlp: bool
    mask_loss_weight: float


# The region options of each form.
REGION_FORMS: dict[str, dict[str, Any]] = {
    "decoupled": {
        "mask_normalization": "regions",
        "pooling": "softmax",
        "pooling_sharpness": 3.0,
        "values": "features",
        "detach_masks": True,
        "interaction_residual": True,
        "interaction_norm": True,
        "interaction_mlp": True,
    },
    "paper": {
        "mask_normalization": "none",
        "pooling": "mean",
        "pooling_sharpness": 3.0,
        "values": "quantized",
        "detach_masks": False,
        "interaction_residual": False,
        "interaction_norm": False,
        "interaction_mlp": False,
    },
    "queries": {
        "mask_normalization": "positions",
        "pooling": "attention",
        "pooling_sharpness": 3.0,
        "values": "features",
        "detach_masks": False,
        "interaction_residual": True,
        "interaction_norm": True,
        "interaction_mlp": True,
    },
}
REGION_FORMS["tracks"] = REGION_FORMS["queries"] | {"pooling": "tracking"}

# Values of the option `pooling` with which each region belongs to the whole clip.
CLIP_POOLINGS = ("attention", "tracking")

_REGION_CHOICES = {
    "mask_normalization": ("none", "positions", "regions"),
    "pooling": ("mean", "softmax", "max", *CLIP_POOLINGS),
    "values": ("quantized", "features"),
}


# Names of the contrastive losses; `register_loss` of the loss file adds to them.
LOSSES = ["infonce", "sigmoid", "max_margin"]


# Fields that the configuration of a backbone also has, and whose defaults it sets. Those of the second group may be
# changed, because the region module's own layers use them as well.
_BACKBONE_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "num_channels",
    "intermediate_size", "hidden_act", "layer_norm_eps",
)  # fmt: skip
_OWN_LAYERS = ("intermediate_size", "hidden_act", "layer_norm_eps")


class ResolvedVideoConfig(NamedTuple):
    """The optional fields of a [`RegionLearnerVideoConfig`], with their defaults filled in."""

    codebook_decay: float
    temporal_fusion: str
    video_pooling: str
    region_options: RegionOptions


class ResolvedConfig(NamedTuple):
    """The optional fields of a [`RegionLearnerConfig`], with their defaults filled in."""

    text_pooling: str


# Names that transformers and its tools write into a config.json, or pass to a configuration, besides its own fields.
_OF_TRANSFORMERS = {
    *PreTrainedConfig.__dataclass_fields__,
    *("model_type", "auto_map", "custom_pipelines", "name_or_path", "processor_class", "tokenizer_class"),
    *("attn_implementation", "experts_implementation", "torch_dtype", "quantization_config", "transformers_weights"),
    *("num_labels", "output_attentions", "per_layer_config", "tie_last_hidden_states", "tie_word_embeddings"),
    *("use_cache", "is_decoder", "is_causal", "add_cross_attention", "loss_type", "distributed_config"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
}


# Argument of a constructor: the fields that the user sets in this call, by default all of them. Saved fields are not
# refused for having no effect, because an override may be the reason why they have none.
_GIVEN = "_given"


def _is_of_transformers(name: str) -> bool:
    return name in _OF_TRANSFORMERS or name.startswith("_")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the end of a message about an unknown `name`: "; did you mean 'loss'?", or "." if no name is near."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def _check_choice(name: str, value: Any, allowed: Iterable[str]):
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(map(repr, allowed))}.")


def _check_number(name: str, value: Any, above: float | None = None, at_least: float | None = None):
    """Raises ValueError if `value` is not a finite number within its bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name}={value!r} must be a finite number.")
    if above is not None and not value > above:
        raise ValueError(f"{name}={value} must be greater than {above:g}.")
    if at_least is not None and not value >= at_least:
        raise ValueError(f"{name}={value} must be at least {at_least:g}.")


def _check_effect(given: Mapping[str, Any], name: str, default: Any, has_effect: Any, why: str, cure: str):
    """Raises ValueError if `name` is given with another value than its default, but the model would ignore it."""
    if not has_effect and given.get(name, default) not in (None, default):
        raise ValueError(f"{name}={given[name]!r} has no effect {why}: {cure}, or leave {name} out.")


def merge_fields(values: Mapping[str, Any], changes: Mapping[str, Any], keep_null: bool = False) -> dict[str, Any]:
    """
    Returns `values` updated with `changes`. Mappings merge key by key, unless they are configurations of different
    `model_type`s; a change to None removes the key.

    Args:
        keep_null: keep None for a key that `values` lacks, so that the result can itself be merged as `changes`.
    """
    before, now = values.get("model_type"), changes.get("model_type")
    merged = {} if before and now and before != now else dict(values)
    for name, change in changes.items():
        if change is None:
            if name in merged or not keep_null:
                merged.pop(name, None)
            else:
                merged[name] = None
        elif isinstance(change, Mapping):
            below = merged.get(name)
            merged[name] = merge_fields(below if isinstance(below, Mapping) else {}, change, keep_null)
        else:
            merged[name] = change
    return merged


class _StrictConfig(PreTrainedConfig):
    """A configuration that refuses unknown fields and merges overrides into saved values."""

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """
        Saves the configuration, and the files with which sentence-transformers loads a checkpoint. If these exist,
        they are not changed.
        """
        methods = _EMBEDDING_METHODS.get((self.architectures or [""])[0])
        if methods is not None:
            directory = Path(save_directory)
            directory.mkdir(parents=True, exist_ok=True)
            for name, content in _files_of_sentence_transformers(methods).items():
                if not (directory / name).exists():
                    (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def own_fields(cls) -> set[str]:
        """Returns the names of the fields that this class adds to those of every transformers configuration."""
        return {item.name for item in fields(cls)} - set(PreTrainedConfig.__dataclass_fields__)

    @classmethod
    def _refuse(cls, name: str, value: Any):
        raise ValueError(f"{name!r} is not a field of {cls.__name__}{cls._hint(name, value)}")

    @classmethod
    def _hint(cls, name: str, value: Any) -> str:
        """Returns the end of the message about an unknown field: where `name` belongs, or the nearest field."""
        return did_you_mean(name, cls.own_fields())

    def _check_effects(self, given: Mapping[str, Any]):
        """Raises ValueError for a value in `given` that a model of this configuration would ignore."""

    def __post_init__(self, **kwargs):
        given = kwargs.pop(_GIVEN, None)
        for name, value in kwargs.items():
            if not _is_of_transformers(name):
                self._refuse(name, value)
        super().__post_init__(**kwargs)
        self.validate_architecture()  # `strict` validates, too, but raises an error that is not a ValueError
        self._check_effects(vars(self) if given is None else given)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> Any:
        """
        Builds a configuration from a saved one and overrides. Every `from_pretrained` calls this, including those of
        models and Auto classes.

        Args:
            config_dict: the saved configuration.
            kwargs: fields to override. Mappings (`video_config`, `text_config`, `region_options`) merge key by key
                with what was saved, and None resets a field to its default. None for a tower changes nothing.

        Raises:
            ValueError: a field does not exist, a value is out of range, or an override has no effect. (Saved values
                without an effect are kept; the constructor would refuse them.)
        """
        changes = {name: kwargs.pop(name) for name in list(kwargs) if name in cls.own_fields()}
        # Models and Auto classes pass arguments that may not be meant for the configuration: of these, only the ones
        # that resemble a field are refused.
        for_others = kwargs.get("return_unused_kwargs") or "name_or_path" in kwargs
        for name, value in kwargs.items():
            is_unknown = name != "return_unused_kwargs" and not _is_of_transformers(name)
            if is_unknown and (not for_others or _resembles_a_field(name)):
                cls._refuse(name, value)
        values = cls._read(config_dict)
        values = cls._merge(values, changes) if changes else values
        return super().from_dict({**values, _GIVEN: changes}, **kwargs)

    @classmethod
    def _read(cls, config_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Returns a saved configuration as arguments of the constructor. transformers also saves other attributes that
        were set on a configuration: these are ignored with a warning, so that the checkpoint still loads.
        """
        known = cls.own_fields()
        unknown = [name for name in config_dict if name not in known and not _is_of_transformers(name)]
        if unknown:
            logger.warning("Ignoring unknown fields of %s in config.json: %s.", cls.__name__, ", ".join(unknown))
        return {name: value for name, value in config_dict.items() if name not in unknown}

    @classmethod
    def _merge(cls, values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
        return merge_fields(values, changes)


@strict
class RegionLearnerVideoConfig(_StrictConfig):
    r"""
    Configuration of the video tower [`RegionLearnerVideoModel`]. The default model turns a clip of T <= 4 frames into
    one feature:

    1. A divided space-time ViT-B/16 encodes the frames into N = 14 * 14 patch features of D = 768 channels per frame,
       and one CLS state per clip (the fields from `hidden_size` to `num_frames`).
    2. Each patch feature is quantized to the nearest of K = 2048 codes, which are updated by moving averages instead
       of gradients (`codebook_size`, `codebook_mode`, `codebook_decay`, `codebook_revival_after`).
    3. A 3 x 3 convolution over the quantized features gives S = 8 masks per frame, (T, S, 14, 14), with a softmax over
       the S regions (`num_regions`).
    4. Each mask pools the features before quantization into one region, (T * S, D): in each channel, it takes a mean
       over positions in which large values count most (`region_form`, `region_options`).
    5. The T * S regions attend to each other in one transformer block (`interaction_layers`, `interaction_heads`).
    6. The feature of the clip, (D,), is the CLS state plus the maximum over the regions in each channel
       (`video_pooling`).

    The masks learn from the contrastive loss and a soft k-means loss; the encoder gets no gradient through them.
    `codebook_size=0` leaves out step 2, `num_regions=0` steps 3 and 4, and `interaction_layers=0` step 5. With all
    three set to 0, this is the video encoder of Frozen in Time (arXiv 2104.00650).

    Args:
        pre_layernorm (`bool`, defaults to `False`): whether there is a LayerNorm before the first block and no bias in
            the patch embedding, as in CLIP.
        num_frames (`int`, defaults to 4): number of temporal positions, the maximum number of frames per clip.
        patch_dropout (`float`, defaults to 0.0): share of the patches that training leaves out, as in FLIP. They are
            newly drawn in each step, and are the same in all frames of a clip. Evaluation uses all patches. Not
            available with a backbone.
        codebook_size (`int`, defaults to 2048): number of codes, K.
        codebook_mode (`str`, defaults to `"ema"`): "ema": codes start as features of the first batch, are looked up
            before they are updated, and are revived when unused. "original": as in the reference implementation,
            codes are looked up after their update, and are neither initialized from features nor revived.
        codebook_decay (`float`, *optional*): EMA decay of the codebook statistics. By default 0.99 for "ema" and 0.1
            for "original".
        codebook_revival_after (`int`, defaults to 100): a code unused for the last K times this many features
            is revived near a current feature ("ema" only). 0 never revives codes.
        num_regions (`int`, defaults to 8): number of regions per frame, S.
        region_layer (`int`, *optional*): the regions are computed from the patches after this many blocks. The default
            is after the last block, where every patch has seen the whole clip. Not available with a backbone.
        interaction_layers (`int`, defaults to 1): number of interaction layers.
        interaction_heads (`int`, defaults to 8): number of attention heads in each of them.
        region_form (`str`, defaults to `"decoupled"`): "decoupled", as above. "paper", as in the paper and the
            reference implementation: the masks have any sign, and the regions are means over positions of mask *
            quantized feature, which interact in a single attention layer. "queries": each of S learned queries
            attends to the patches of every frame, and a region is what the query found over time. There are S regions
            per clip instead of per frame. "tracks": the same, but each query starts at a place of its own, a cell of a
            grid, and follows what it has found from frame to frame.
        region_options (`dict`, defaults to `{}`): overrides single options of the form; see [`RegionOptions`].
        motion_excitation (`bool`, defaults to `False`): whether to add the features, weighted by their change between
            frames, to the quantized features.
        video_pooling (`str`, *optional*): "cls_mean", the CLS state plus the mean of the regions; "cls_max", plus
            their maximum in each channel; "cls_patch_max", plus the maximum of the patches of the last block; or
            "cls". The default is "cls" without codes and regions, "cls_mean" for the "paper" form, and "cls_max"
            otherwise. With a backbone, its own pooled state (of a class token, or of an attention pooling head) takes
            the place of the CLS state, and the regions are projected first, by a layer that is initialized with zeros.
        temporal_fusion (`str`, *optional*): how the features of frames are combined into one feature per clip. With
            "attention", the default, the frames attend to each other in every block. With "pool", the default of a
            backbone, and "linear", each frame is encoded on its own, as an image, and the features of the frames are
            averaged ("pool"), or concatenated and projected ("linear"). (Regions interact over all frames in every
            case.)
        backbone_config (`PreTrainedConfig` or `dict` with a `model_type`, *optional*): an image model of transformers,
            such as CLIP, SigLIP or DINOv3, or of timm (`"timm_wrapper"`), which encodes each frame instead of the
            divided space-time ViT. Its sizes replace those of the fields below, and are not saved here. The region
            module's own layers may have another `intermediate_size`, `hidden_act` or `layer_norm_eps`. The
            configurations of timm do not contain sizes: also set `hidden_size` and `image_size`.

    The other fields are common to all vision transformers. Fields that are None get a default that depends on other
    fields; see [`RegionLearnerVideoConfig.resolved`].

    Example:

    ```python
    >>> config = RegionLearnerVideoConfig(codebook_mode="original", region_options={"pooling": "max"})
    >>> config.codebook_decay, config.resolved.codebook_decay
    (None, 0.1)
    >>> config.resolved.region_options.pooling
    'max'
    ```
    """

    model_type = "region_learner_video"
    base_config_key = "video_config"
    sub_configs = {"backbone_config": AutoConfig}

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float | int = 1e-6
    initializer_range: float | int = 0.02
    image_size: int | list | tuple = 224
    patch_size: int | list | tuple = 16
    num_channels: int = 3
    pre_layernorm: bool = False
    num_frames: int = 4
    patch_dropout: float | int = 0.0
    codebook_size: int = 2048
    codebook_mode: str = "ema"
    codebook_decay: float | int | None = None
    codebook_revival_after: int = 100
    num_regions: int = 8
    region_layer: int | None = None
    interaction_layers: int = 1
    interaction_heads: int = 8
    region_form: str = "decoupled"
    region_options: dict = field(default_factory=dict)
    motion_excitation: bool = False
    video_pooling: str | None = None
    temporal_fusion: str | None = None
    backbone_config: dict | PreTrainedConfig | None = None

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        # A field that is given keeps its value even if it is the default of this class, and not that of the backbone.
        if args or kwargs:  # a copy has none
            self.__dict__["_chosen"] = {item.name for item, _ in zip(fields(cls), args)} | kwargs.keys()
        return self

    def __post_init__(self, **kwargs):
        chosen = self.__dict__.pop("_chosen", set())
        self.region_options = {name: value for name, value in self.region_options.items() if value is not None}
        if isinstance(self.backbone_config, dict):
            backbone = self.backbone_config
            self.backbone_config = sub_config_from_dict("backbone_config", backbone, chosen=backbone)
        defaults = {item.name: item.default for item in fields(type(self))}
        for name, value in _sizes_of_backbone(self.backbone_config).items():
            if name not in chosen and getattr(self, name) == defaults[name]:
                setattr(self, name, value)
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        for name, value in _sizes_of_backbone(self.backbone_config).items():
            if values.get(name) == value:
                del values[name]
        return values

    @classmethod
    def _read(cls, config_dict: dict[str, Any]) -> dict[str, Any]:
        values = super()._read(config_dict)
        if isinstance(backbone := values.get("backbone_config"), dict):
            values["backbone_config"] = sub_config_from_dict("backbone_config", backbone)
        return values

    @classmethod
    def _merge(cls, values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
        backbone, saved = changes.get("backbone_config"), values.get("backbone_config")
        if isinstance(backbone, Mapping) and saved is not None:
            merged = merge_fields(saved.to_dict() if isinstance(saved, PreTrainedConfig) else saved, backbone)
            changes = {**changes, "backbone_config": sub_config_from_dict("backbone_config", merged, chosen=backbone)}
        return super()._merge(values, changes)

    @property
    def resolved(self) -> ResolvedVideoConfig:
        """The optional fields and all region options, with their defaults filled in. They are not saved."""
        options: dict[str, Any] = REGION_FORMS[self.region_form] | self.region_options
        masks_compete = options["mask_normalization"] == "regions" and self.num_regions > 1
        options.setdefault("mask_loss_weight", 1.0 if masks_compete else 0.0)
        decay, pooling = self.codebook_decay, self.video_pooling
        if decay is None:
            decay = 0.1 if self.codebook_mode == "original" else 0.99
        if pooling is None and not (self.codebook_size or self.num_regions):
            pooling = "cls"
        elif pooling is None:
            pooling = "cls_mean" if self.region_form == "paper" else "cls_max"
        fusion = self.temporal_fusion or ("attention" if self.backbone_config is None else "pool")
        return ResolvedVideoConfig(decay, fusion, pooling, RegionOptions(**options))

    @classmethod
    def _hint(cls, name: str, value: Any) -> str:
        if name in RegionOptions._fields:
            return f", but a key of its region_options: pass region_options={{{name!r}: {value!r}}}."
        if name in RegionLearnerConfig.own_fields():
            return ", but of RegionLearnerConfig: pass it there."
        return super()._hint(name, value)

    def validate_architecture(self):
        """
        Checks the values of all fields.

        Raises:
            ValueError: a value is out of range or not known, sizes do not fit together, or a part of the model needs
                another part that is left out.
        """
        from transformers.activations import ACT2FN

        for name in ("hidden_size", "intermediate_size", "num_channels", "num_frames", "interaction_heads"):
            _check_number(name, getattr(self, name), at_least=1)
        fusions = ["attention", "pool", "linear"]
        if self.backbone_config is None:
            for name in ("num_attention_heads", "image_size", "patch_size"):
                _check_number(name, getattr(self, name), at_least=1)
        else:
            self._check_backbone()
            fusions.remove("attention")
        counts = ("num_hidden_layers", "codebook_size", "codebook_revival_after", "num_regions", "interaction_layers")
        for name in (*counts, "layer_norm_eps"):
            _check_number(name, getattr(self, name), at_least=0)
        if self.region_layer is not None:
            if self.backbone_config is not None:
                raise ValueError("region_layer is for the divided space-time ViT: leave it out with a backbone.")
            if not 0 <= self.region_layer <= self.num_hidden_layers:
                raise ValueError(
                    f"region_layer={self.region_layer} must be at least 0 and at most num_hidden_layers="
                    f"{self.num_hidden_layers}."
                )
        _check_number("patch_dropout", self.patch_dropout, at_least=0)
        if self.patch_dropout >= 1:
            raise ValueError(f"patch_dropout={self.patch_dropout} must be less than 1.")
        if self.patch_dropout and self.backbone_config is not None:
            raise ValueError("patch_dropout is for the divided space-time ViT: leave it out with a backbone.")
        _check_number("initializer_range", self.initializer_range, above=0)
        _check_choice("hidden_act", self.hidden_act, sorted(ACT2FN))
        _check_choice("codebook_mode", self.codebook_mode, ("ema", "original"))
        _check_choice("region_form", self.region_form, REGION_FORMS)
        self._check_region_options()
        resolved = self.resolved
        _check_choice("temporal_fusion", resolved.temporal_fusion, fusions)
        _check_choice("video_pooling", resolved.video_pooling, ("cls_mean", "cls_max", "cls_patch_max", "cls"))
        if not 0.0 <= resolved.codebook_decay < 1.0:
            raise ValueError(f"codebook_decay={resolved.codebook_decay} must be at least 0 and less than 1.")
        has_queries = self.num_regions and resolved.region_options.pooling in CLIP_POOLINGS
        pairs = [("hidden_size", "interaction_heads")] if self.interaction_layers or has_queries else []
        if self.backbone_config is None:
            pairs += [("image_size", "patch_size"), ("hidden_size", "num_attention_heads")]
        for whole, part in pairs:
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{whole}={getattr(self, whole)} is not a multiple of {part}={getattr(self, part)}: change either."
                )
        if self.interaction_layers and not self.num_regions:
            raise ValueError(
                f"interaction_layers={self.interaction_layers} needs regions to interact, but num_regions=0: "
                "set num_regions, or interaction_layers=0."
            )
        if self.motion_excitation and not self.codebook_size:
            raise ValueError(
                "motion_excitation=True adds to quantized features, but codebook_size=0: "
                "set codebook_size, or motion_excitation=False."
            )

    def _check_effects(self, given: Mapping[str, Any]):
        # A size of 0 leaves out a part, but its other options are accepted: an ablation starts from them.
        form, options = REGION_FORMS[self.region_form], self.resolved.region_options
        _check_effect(
            given, "codebook_revival_after", type(self).codebook_revival_after,
            self.codebook_mode == "ema" or not self.codebook_revival_after,
            f"with codebook_mode={self.codebook_mode!r}", "set codebook_mode='ema'",
        )  # fmt: skip
        _check_effect(
            given.get("region_options") or {}, "pooling_sharpness", form["pooling_sharpness"],
            options.pooling == "softmax",
            f"with the region option pooling={options.pooling!r}", "set pooling='softmax'",
        )  # fmt: skip
        if self.backbone_config is not None:
            sizes = _sizes_of_backbone(self.backbone_config)
            for name in ("num_hidden_layers", "num_attention_heads", "patch_size"):
                _check_effect(
                    given, name, getattr(type(self), name), name in sizes,
                    f"with this backbone, whose configuration does not have a {name}", "choose another backbone",
                )  # fmt: skip
            has_layers = self.interaction_layers or (self.num_regions and options.pooling in CLIP_POOLINGS)
            has_norm = self.codebook_size or self.num_regions
            for name in _OWN_LAYERS:
                _check_effect(
                    given, name, sizes.get(name, getattr(type(self), name)),
                    has_layers or (has_norm and name == "layer_norm_eps"),
                    "with a backbone and no layers of the region module", "set num_regions and interaction_layers",
                )  # fmt: skip

    def _check_backbone(self):
        if not isinstance(self.backbone_config, PreTrainedConfig):
            raise ValueError(f"backbone_config must be a configuration, not {self.backbone_config!r:.60}.")
        for name, value in _sizes_of_backbone(self.backbone_config).items():
            if name not in _OWN_LAYERS and getattr(self, name) != value:
                raise ValueError(
                    f"{name}={getattr(self, name)} differs from that of the backbone, {value}: leave it out, or "
                    "change it in backbone_config."
                )
        if self.pre_layernorm:
            raise ValueError("pre_layernorm=True is for the divided space-time ViT: leave it out with a backbone.")

    def _check_region_options(self):
        for name in self.region_options:
            if name not in RegionOptions._fields:
                hint = did_you_mean(str(name), RegionOptions._fields)
                raise ValueError(f"{name!r} is not a key of region_options{hint}")
        options = self.resolved.region_options
        for name, value in options._asdict().items():
            shown = f"region_options[{name!r}]"
            if name in _REGION_CHOICES:
                _check_choice(shown, value, _REGION_CHOICES[name])
            elif name in ("pooling_sharpness", "mask_loss_weight"):
                _check_number(shown, value, at_least=0)
            elif not isinstance(value, bool):
                raise ValueError(f"{shown}={value!r} must be True or False.")
        masks = f"mask_normalization={options.mask_normalization!r}"
        if options.pooling != "mean" and options.mask_normalization == "none":
            raise ValueError(
                f"region_options: pooling={options.pooling!r} needs positive masks, but {masks} gives masks of any "
                "sign: set mask_normalization to 'positions' or 'regions', or pooling to 'mean'."
            )
        if options.pooling in CLIP_POOLINGS and options.mask_normalization != "positions":
            raise ValueError(
                f"region_options: pooling={options.pooling!r} needs masks that are normalized over positions, but "
                f"{masks}: set mask_normalization to 'positions', or leave out both and use region_form='queries' or "
                "'tracks'."
            )
        if options.mask_loss_weight and options.mask_normalization != "regions":
            raise ValueError(
                f"region_options: mask_loss_weight={options.mask_loss_weight} needs masks that compete for positions, "
                f"but {masks}: set mask_normalization to 'regions', or mask_loss_weight to 0."
            )


@strict
class RegionLearnerConfig(_StrictConfig):
    r"""
    Configuration of the dual encoder [`RegionLearnerModel`]: a video tower and any text encoder of transformers,
    each projected into one embedding space.

    Args:
        video_config (`RegionLearnerVideoConfig` or `dict`, *optional*): the video tower.
        text_config (`PreTrainedConfig` or `dict` with a `model_type`, *optional*): the text encoder. The default is
            DistilBERT.
        projection_dim (`int`, defaults to 256): size of the embeddings.
        temperature (`float`, defaults to 0.05): cosine similarities are divided by it.
        learn_temperature (`bool`, defaults to `False`): whether the temperature is learned, starting from the value of
            `temperature`.
        loss (`str`, defaults to `"infonce"`): "infonce": cross-entropy over all pairs of a batch. "sigmoid": a binary
            loss of each pair on its own, as in SigLIP (arXiv 2303.15343), with a learned bias added to the logits.
            "max_margin": a ranking loss on the cosine similarities, without a temperature.
        sigmoid_bias (`float`, defaults to -10.0): initial bias of the "sigmoid" loss.
        margin (`float`, defaults to 0.2): how much more similar a pair should be than its negatives, for the
            "max_margin" loss.
        text_pooling (`str`, *optional*): the state of the "first" or the "last" token of a text, or of its end-of-text
            token ("eos"), the "mean" of all tokens, or the encoder's own pooled state ("pooler"). Padding is ignored.
            The default is the encoder's own pooling for BERT, CLIP and SigLIP, the last token for causal encoders such
            as GPT-2, and the first token for all others (see [`RegionLearnerConfig.resolved`]).
        text_projection_relu (`bool`, defaults to `True`): whether there is a ReLU before the text projection.
        projection_bias (`bool`, defaults to `True`): whether both projections have a bias.
        phrase_window (`int`, defaults to 0): number of words per phrase, which must be odd. The text embedding then
            also encodes which phrases the text contains: the output of an MLP whose hidden layer takes the maximum
            over the phrases is added to it. 0 disables phrases.
        tube_mlp (`bool`, defaults to `False`): the same for videos. The video embedding then also encodes what happens
            at each patch position over time: the output of an MLP whose hidden layer takes the maximum over the
            positions is added to it. Each position is represented by the cosine moments over time of the patches that
            the regions are computed from. The size of an index does not change.
        token_dim (`int`, defaults to 0): size of the token embeddings that `word_region_similarity` compares: the
            phrases of a text (its words without `phrase_window`), and the regions of a video (its patches without
            regions). 0 disables token embeddings.
        token_temperature (`float`, defaults to 0.05): similarities of words and tokens are divided by it. With
            `learn_temperature`, it is the initial value of a parameter.
        token_loss_weight (`float`, defaults to 1.0): weight of the contrastive loss of these similarities.

    Example:

    ```python
    >>> config = RegionLearnerConfig(video_config={"num_regions": 4}, text_config={"model_type": "bert"})
    >>> config.video_config.num_regions, config.resolved.text_pooling
    (4, 'pooler')
    ```
    """

    model_type = "region_learner"
    sub_configs = {"video_config": RegionLearnerVideoConfig, "text_config": AutoConfig}
    # The Trainer concatenates all other outputs over an evaluation, and only needs the embeddings.
    keys_to_ignore_at_inference = [
        "logits_per_video",
        "logits_per_text",
        "text_model_output",
        "video_model_output",
        "temperature",
        "logit_bias",
        "region_loss",
        "negative_text_embeds",
        "negative_token_embeds",
        "negative_token_weights",
        "text_token_embeds",
        "text_token_weights",
        "video_token_embeds",
        "video_token_weights",
        "token_logits_per_text",
        "token_temperature",
    ]

    video_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 256
    temperature: float | int = 0.05
    learn_temperature: bool = False
    loss: str = "infonce"
    sigmoid_bias: float | int = -10.0
    margin: float | int = 0.2
    text_pooling: str | None = None
    text_projection_relu: bool = True
    projection_bias: bool = True
    phrase_window: int = 0
    tube_mlp: bool = False
    token_dim: int = 0
    token_temperature: float | int = 0.05
    token_loss_weight: float | int = 1.0
    initializer_range: float | int = 0.02

    # Whether the pipelines are registered. If so, the code of a checkpoint is not needed, nor permission to run it.
    _has_pipelines: ClassVar[bool] = False

    def __post_init__(self, **kwargs):
        if self._has_pipelines:
            kwargs.pop("custom_pipelines", None)
        if self.video_config is None or isinstance(self.video_config, dict):
            given = kwargs.get(_GIVEN)
            given = {} if given is None else {_GIVEN: given.get("video_config") or {}}
            self.video_config = RegionLearnerVideoConfig(**self.video_config or {}, **given)
        if self.text_config is None:
            self.text_config = AutoConfig.for_model("distilbert")
        elif isinstance(self.text_config, dict):
            self.text_config = sub_config_from_dict("text_config", self.text_config, chosen=self.text_config)
        super().__post_init__(**kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """
        Saves the configuration, and the files with which sentence-transformers loads a checkpoint. If these exist,
        they are not changed. For a dual encoder, this also saves the pipeline "video-text-retrieval".
        """
        if self.architectures != ["RegionLearnerModel"]:
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        from .pipeline_region_learner import VideoTextRetrievalPipeline  # transformers saves what a file imports

        impl = f"pipeline_region_learner.{VideoTextRetrievalPipeline.__name__}"
        self.custom_pipelines = {"video-text-retrieval": {"impl": impl, "pt": ["AutoModel"], "type": "multimodal"}}
        try:
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        finally:
            if self._has_pipelines:
                del self.custom_pipelines

    @property
    def resolved(self) -> ResolvedConfig:
        """`text_pooling`, with its default filled in. It is not saved."""
        return ResolvedConfig(self.text_pooling or default_text_pooling(self.text_config))

    @property
    def num_frames(self) -> int:
        """The number of temporal positions of the video tower. The pipelines of transformers read it here."""
        return self.video_config.num_frames

    @classmethod
    def _read(cls, config_dict: dict[str, Any]) -> dict[str, Any]:
        values = super()._read(config_dict)
        if isinstance(video := values.get("video_config"), dict):
            values["video_config"] = RegionLearnerVideoConfig._read(video)
        if isinstance(text := values.get("text_config"), dict):
            values["text_config"] = sub_config_from_dict("text_config", text)
        return values

    @classmethod
    def _merge(cls, values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
        # Towers cannot be reset to a default, so None means no change.
        changes = {name: value for name, value in changes.items() if value is not None or name not in cls.sub_configs}
        if isinstance(video := changes.get("video_config"), Mapping):
            saved = values.get("video_config") or {}
            saved = saved.to_dict() if isinstance(saved, PreTrainedConfig) else saved
            changes["video_config"] = RegionLearnerVideoConfig._merge(saved, dict(video))
            values = {name: value for name, value in values.items() if name != "video_config"}
        if isinstance(text := changes.get("text_config"), Mapping):
            saved = values.get("text_config") or AutoConfig.for_model("distilbert")
            merged = merge_fields(saved.to_dict(), text)
            changes["text_config"] = sub_config_from_dict("text_config", merged, chosen=text)
        return super()._merge(values, changes)

    @classmethod
    def _hint(cls, name: str, value: Any) -> str:
        of_video = RegionLearnerVideoConfig.own_fields()
        if name in of_video:
            return f", but of its video_config: pass video_config={{{name!r}: {value!r}}}."
        near = difflib.get_close_matches(name, sorted(cls.own_fields() | of_video), n=1)
        if near and near[0] in of_video:
            return f"; did you mean {near[0]!r}, in video_config?"
        return super()._hint(name, value)

    def validate_architecture(self):
        """
        Checks the values of all fields, including those of both towers.

        Raises:
            ValueError: a value is out of range, here or in one of the towers.
        """
        for name in self.sub_configs:
            if not isinstance(getattr(self, name), PreTrainedConfig):
                raise ValueError(f"{name} must be a configuration, not {getattr(self, name)!r:.60}.")
        if self.video_config.model_type != RegionLearnerVideoConfig.model_type:
            raise ValueError(
                f"video_config is the configuration of a {self.video_config.model_type!r} model: pass a "
                "RegionLearnerVideoConfig, or a dict of its fields."
            )
        self.video_config.validate_architecture()
        _check_text_config(self.text_config)
        _check_number("projection_dim", self.projection_dim, at_least=1)
        _check_number("temperature", self.temperature, above=0)
        _check_number("margin", self.margin, above=0)
        self._check_tokens()
        _check_number("sigmoid_bias", self.sigmoid_bias)
        _check_number("initializer_range", self.initializer_range, above=0)
        if self.loss not in LOSSES:
            raise ValueError(
                f"loss={self.loss!r} is not known; choose one of {', '.join(map(repr, LOSSES))}, or register it with "
                "`register_loss`."
            )
        _check_choice("text_pooling", self.resolved.text_pooling, TEXT_POOLINGS)
        if self.loss == "max_margin" and self.learn_temperature:
            raise ValueError(
                "loss='max_margin' has no temperature to learn: set learn_temperature=False, or another loss."
            )

    def _check_effects(self, given: Mapping[str, Any]):
        with_loss = f"with loss={self.loss!r}"  # a registered loss may read the options of all losses
        for name, has_effect, why, cure in (
            ("token_temperature", self.token_dim, "without tokens", "set token_dim"),
            ("token_loss_weight", self.token_dim, "without tokens", "set token_dim"),
            ("margin", self.loss not in ("infonce", "sigmoid"), with_loss, "set loss='max_margin'"),
            ("sigmoid_bias", self.loss not in ("infonce", "max_margin"), with_loss, "set loss='sigmoid'"),
        ):
            _check_effect(given, name, getattr(type(self), name), has_effect, why, cure)

    def _check_tokens(self):
        _check_number("token_dim", self.token_dim, at_least=0)
        _check_number("token_temperature", self.token_temperature, above=0)
        _check_number("token_loss_weight", self.token_loss_weight, above=0)
        _check_number("phrase_window", self.phrase_window, at_least=0)
        if self.phrase_window and self.phrase_window % 2 == 0:
            raise ValueError(f"phrase_window={self.phrase_window} must be an odd number of words, or 0.")
        video: Any = self.video_config
        pooling, regions = video.resolved.video_pooling, video.num_regions
        if pooling in POOLINGS_WITHOUT_REGIONS and regions and not self.token_dim:
            raise ValueError(
                f"video_pooling={pooling!r} leaves the {regions} regions out of the vector of a clip, and nothing "
                "else uses them: set token_dim, another video_pooling, or num_regions=0."
            )


# The methods that embed each kind of input, for each architecture of a checkpoint. Classifiers and question answering
# embed nothing, so sentence-transformers refuses every input. Without these files, it would return means of patches.
_EMBEDDING_METHODS: dict[str, dict[str, str]] = {
    "RegionLearnerModel": {
        "text": "get_text_features",
        "video": "get_video_features",
        "image": "get_video_features",
    },
    "RegionLearnerVideoModel": {"video": "forward"},
    "RegionLearnerForVideoClassification": {},
    "RegionLearnerForVideoQuestionAnswering": {},
}


def _files_of_sentence_transformers(methods: Mapping[str, str]) -> dict[str, Any]:
    """Returns the files that tell sentence-transformers how to embed each kind of input: their contents, by name."""
    kinds = {kind: {"method": method, "method_output_name": "pooler_output"} for kind, method in methods.items()}
    modules = [("", "transformer.Transformer"), ("1_Normalize", "normalize.Normalize")]
    return {
        "modules.json": [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.base.modules.{name}"}
            for number, (path, name) in enumerate(modules)
        ],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": kinds,
            "module_output_name": "sentence_embedding",
        },
        "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    }


def nest_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """
    Returns flat `overrides` as arguments of [`RegionLearnerConfig.from_dict`], with the fields of the video tower in
    `video_config`. A name that both configurations have sets the top-level field.

    Raises:
        ValueError: a name is not known.
    """
    top, of_video = RegionLearnerConfig.own_fields(), RegionLearnerVideoConfig.own_fields()
    for name in overrides:
        if name not in top | of_video:
            raise ValueError(f"{name!r} is not a field of the configuration{did_you_mean(name, top | of_video)}")
    nested: dict[str, Any] = {name: value for name, value in overrides.items() if name in top}
    if video := {name: value for name, value in overrides.items() if name not in top}:
        nested["video_config"] = merge_fields(nested.get("video_config") or {}, video, keep_null=True)
    return nested


def _sizes_of_backbone(backbone: Any) -> dict[str, Any]:
    """Returns the fields of the video tower that the configuration of an image model specifies; {} for None."""
    if backbone is None:
        return {}
    found = {name: getattr(backbone, name, None) for name in _BACKBONE_FIELDS}
    if found["hidden_size"] is None and getattr(backbone, "hidden_sizes", None):  # a pyramid, such as ConvNeXt
        found["hidden_size"] = backbone.hidden_sizes[-1]
    if found["hidden_size"] is not None and found["intermediate_size"] is None:
        found["intermediate_size"] = 4 * found["hidden_size"]
    return {name: value for name, value in found.items() if value is not None}


def _resembles_a_field(name: str) -> bool:
    known = RegionLearnerConfig.own_fields() | RegionLearnerVideoConfig.own_fields()
    return bool(difflib.get_close_matches(name, known, n=1, cutoff=0.8))


def sub_config_from_dict(field: str, values: Mapping[str, Any], chosen: Iterable[str] = ()) -> PreTrainedConfig:
    """
    Returns the configuration of a text encoder or a backbone.

    Args:
        field: "text_config" or "backbone_config", for messages.
        values: its fields and its `model_type`.
        chosen: the names that a user set, which must be fields of the configuration.

    Raises:
        ValueError: transformers does not know the `model_type`, or the configuration does not have a chosen field.
    """
    values = dict(values)
    model_type = values.pop("model_type", None)
    if model_type is None:
        raise ValueError(
            f"{field} is a dict without `model_type`: add it (for example "
            f"{'distilbert' if field == 'text_config' else 'siglip_vision_model'!r}), or pass a configuration object."
        )
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{field}: model_type={model_type!r} is not known to transformers"
            f"{did_you_mean(str(model_type), CONFIG_MAPPING.keys())}"
        )
    config = AutoConfig.for_model(model_type, **values)
    # transformers accepts unknown arguments of a configuration and keeps them as attributes.
    declared = type(config).__dataclass_fields__
    attributes = [name for name in chosen if name in vars(config) and name not in declared]
    if attributes := [name for name in attributes if not _is_of_transformers(name)]:
        known = vars(type(config)())
        for name in attributes:
            if name not in known:
                hint = did_you_mean(name, {*known, *type(config).attribute_map})
                raise ValueError(f"{field}: {name!r} is not a field of {type(config).__name__}{hint}")
    return config


def _check_text_config(config: Any):
    """Raises ValueError for values that transformers accepts, but no text encoder can have."""
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        value = getattr(config, name, None)
        minimum = 0 if name == "num_hidden_layers" else 1
        if isinstance(value, int) and value < minimum:
            name = type(config).attribute_map.get(name, name)
            raise ValueError(f"text_config: {name}={value} must be at least {minimum}.")
    for name, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"text_config: {name}={value} must be a finite number.")


__all__ = ["RegionLearnerConfig", "RegionLearnerVideoConfig"]

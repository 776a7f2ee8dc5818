# Copyright 2026 The RegionLearner authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in
# compliance with the License. You may obtain a copy at http://www.apache.org/licenses/LICENSE-2.0
"""
Configuration of RegionLearner, "Video-Text Pre-training with Learned Regions" (arXiv 2112.01194).

A configuration holds, and saves, what was chosen. What follows from the choices is derived when it is read, by the
property `resolved`, so that an override always means what it says.
"""

import difflib
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import field, fields
from typing import Any, NamedTuple

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Text encoders with a pooled state of their own that their authors trained.
_POOLED_TEXT_ENCODERS = {
    "bert": "pooler",
    "clip_text_model": "eos",
    "siglip_text_model": "pooler",
    "siglip2_text_model": "pooler",
}
TEXT_POOLINGS = ("first", "last", "eos", "mean", "pooler")


def is_causal(text_config: Any) -> bool:
    """Whether a token of the text encoder sees those before it alone, as in GPT-2, so that the first sees no text."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    # Switches of transformers that make a decoder see all of a text.
    if getattr(text_config, "is_causal", None) is False or getattr(text_config, "use_bidirectional_attention", False):
        return False
    if getattr(text_config, "is_decoder", False) or text_config.model_type == "clip_text_model":
        return True
    # Encoders are in the list of causal models, too, for the sake of `is_decoder`; XLNet sees both sides.
    encoders = {*MODEL_FOR_MASKED_LM_MAPPING_NAMES, "bert-generation", "xlnet"}
    return text_config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - encoders


def default_text_pooling(text_config: Any) -> str:
    """The encoder's own pooled state if it has a trained one; otherwise a token that sees all of the text."""
    own = _POOLED_TEXT_ENCODERS.get(text_config.model_type, "first")
    return "last" if own != "eos" and is_causal(text_config) else own


class RegionOptions(NamedTuple):
    """
    The single choices within the region module. `region_form` names all of them at once, and the dictionary
    `region_options` overrides some, by these names.

    Args:
        mask_normalization: "regions": at each position the masks are a softmax over the regions, which compete for
            it, and then each mask is scaled to a mean of 1. "positions": each mask is a softmax over the positions
            of its frame. "none": masks of any sign.
        pooling: how a region is pooled from the values under its mask. "softmax": in each channel a mean over
            positions with weights mask x exp(pooling_sharpness x value), so that the largest values under the mask
            count most. "max": in each channel the maximum over positions of value + log mask. "mean": the mean over
            positions of mask x value. "softmax" and "max" need normalized masks.
        pooling_sharpness: sharpness of the "softmax", in units of the standard deviation of the values over a frame;
            0 is "mean".
        values: what is pooled. "features": the features before quantization. "quantized": the codes, from which the
            masks are made.
        detach_masks: stop the gradient from the masks to the encoder, so that it learns only through the values.
            The masks themselves learn in any case.
        interaction_residual: a residual connection around each interaction layer.
        interaction_norm: a LayerNorm before each interaction layer.
        interaction_mlp: a LayerNorm and an MLP with a residual connection after each interaction layer, as in a
            block of the encoder.
        mask_loss_weight: weight of a soft k-means loss on the masks: the share of the variance of a clip's features
            that is within regions. It needs `mask_normalization` "regions". Not a part of the forms: the default is
            1 where several masks compete, and 0 otherwise.
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


# What the forms of the region module stand for.
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
}

_REGION_CHOICES = {
    "mask_normalization": ("none", "positions", "regions"),
    "pooling": ("mean", "softmax", "max"),
    "values": ("quantized", "features"),
}

# Older checkpoints have the region options as fields of these names, and what was derived is saved in them.
_OLD_NAMES = {
    "mask_normalization": "mask_normalization",
    "region_gather": "pooling",
    "region_gather_sharpness": "pooling_sharpness",
    "region_content": "values",
    "masks_train_encoder": "detach_masks",
    "interaction_residual": "interaction_residual",
    "interaction_norm": "interaction_norm",
    "interaction_mlp": "interaction_mlp",
    "region_loss_weight": "mask_loss_weight",
}


class ResolvedVideoConfig(NamedTuple):
    """What a [`RegionLearnerVideoConfig`] leaves open, resolved; see [`RegionLearnerVideoConfig.resolved`]."""

    codebook_decay: float
    video_pooling: str
    region_options: RegionOptions


class ResolvedConfig(NamedTuple):
    """What a [`RegionLearnerConfig`] leaves open, resolved; see [`RegionLearnerConfig.resolved`]."""

    text_pooling: str


# What transformers and its tools write into a config.json, or give to a configuration, beside its fields.
_OF_TRANSFORMERS = {
    *PreTrainedConfig.__dataclass_fields__,
    *("model_type", "auto_map", "custom_pipelines", "name_or_path", "processor_class", "tokenizer_class"),
    *("attn_implementation", "experts_implementation", "torch_dtype", "quantization_config", "transformers_weights"),
    *("num_labels", "output_attentions", "per_layer_config", "tie_last_hidden_states", "tie_word_embeddings"),
    *("use_cache", "is_decoder", "is_causal", "add_cross_attention", "loss_type", "distributed_config"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
}


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]):
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(map(repr, allowed))}.")


def _at_least(config: Any, minimum: int, *names: str):
    for name in names:
        if getattr(config, name) < minimum:
            raise ValueError(f"{name}={getattr(config, name)} must be at least {minimum}.")


def _check_number(name: str, value: Any, above: float | None = None, at_least: float | None = None):
    """Raises ValueError for what is not a finite number within its bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name}={value!r} must be a finite number.")
    if above is not None and not value > above:
        raise ValueError(f"{name}={value} must be greater than {above:g}.")
    if at_least is not None and not value >= at_least:
        raise ValueError(f"{name}={value} must be at least {at_least:g}.")


def merge_fields(values: Mapping[str, Any], changes: Mapping[str, Any], keep_null: bool = False) -> dict[str, Any]:
    """
    Returns `values` with `changes` on top. Mappings merge key by key, unless they are configurations of another
    `model_type`, and None takes a key out of `values`.

    Args:
        keep_null: keep the None of a key that `values` does not have, for another layer to be merged over.
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


def rename_old_fields(video_config: Mapping[str, Any]) -> dict[str, Any]:
    """
    Returns `video_config` with the region options of older versions, which were fields, moved into `region_options`
    under their present names.

    Raises:
        ValueError: for an option that is given by both names.
    """
    renamed = {name: value for name, value in video_config.items() if name not in _OLD_NAMES}
    options = dict(renamed.get("region_options") or {})
    for old, new in _OLD_NAMES.items():
        value = video_config.get(old)
        if value is None:  # by default derived
            continue
        if new in options:
            raise ValueError(f"{old!r} is now region_options[{new!r}], and both are given: leave out {old!r}.")
        options[new] = not value if old == "masks_train_encoder" else value
    return renamed | {"region_options": options} if options else renamed


class _StrictConfig(PreTrainedConfig):
    """Knows its fields: unknown ones are refused, and overrides are merged over what was saved."""

    @classmethod
    def own_fields(cls) -> set[str]:
        """Names of the fields that are not of every configuration of transformers."""
        return {item.name for item in fields(cls)} - set(PreTrainedConfig.__dataclass_fields__)

    @classmethod
    def _refuse(cls, name: str, value: Any):
        raise ValueError(f"{name!r} is not a field of {cls.__name__}{cls._where(name, value)}")

    @classmethod
    def _where(cls, name: str, value: Any) -> str:
        """The end of that sentence: where `name` belongs, or the nearest field."""
        return _did_you_mean(name, cls.own_fields())

    def __post_init__(self, **kwargs):
        for name, value in kwargs.items():
            if not _is_of_transformers(name):
                self._refuse(name, value)
        super().__post_init__(**kwargs)
        self.validate_architecture()  # `strict` does so, too, but wraps the error in one that is not a ValueError

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> Any:
        """
        Builds a configuration from what was saved, with the fields in `kwargs` on top. Mappings among them
        (`video_config`, `text_config`, `region_options`) merge key by key over the saved ones, and None takes a field
        back to its default. Every `from_pretrained`, also that of a model or an Auto class, ends here.

        Raises:
            ValueError: for a field that does not exist, or a value out of range.
        """
        changes = {name: kwargs.pop(name) for name in list(kwargs) if name in cls.own_fields() | _OLD_NAMES.keys()}
        # A model or an Auto class also passes on options that are meant for others: there, only what looks like a
        # field is refused.
        for_others = kwargs.get("return_unused_kwargs") or "name_or_path" in kwargs
        for name, value in kwargs.items():
            is_unknown = name != "return_unused_kwargs" and not _is_of_transformers(name)
            if is_unknown and (not for_others or _looks_like_a_field(name)):
                cls._refuse(name, value)
        config_dict = cls._read(config_dict)
        if changes:
            saved = cls(**config_dict)
            config_dict = {name: value for name, value in config_dict.items() if _is_of_transformers(name)}
            config_dict |= saved._with(changes)
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def _read(cls, config_dict: dict[str, Any]) -> dict[str, Any]:
        """
        A saved `config_dict` as the constructor takes it. Attributes that were set on a configuration are saved
        with it: they are left out, with a warning, so that the checkpoint still loads.
        """
        known = cls.own_fields() | _OLD_NAMES.keys()
        unknown = [name for name in config_dict if name not in known and not _is_of_transformers(name)]
        if unknown:
            logger.warning(
                "Saved with a %s, but not fields of it, and left out: %s.", cls.__name__, ", ".join(unknown)
            )
        return {name: value for name, value in config_dict.items() if name not in unknown}

    def _with(self, changes: dict[str, Any]) -> dict[str, Any]:
        """The own fields with `changes` on top, for the constructor."""
        values = self.to_dict()
        return merge_fields({name: values[name] for name in self.own_fields()}, changes)


@strict
class RegionLearnerVideoConfig(_StrictConfig):
    r"""
    Configuration of the video tower: a divided space-time ViT and the region module behind it.

    The default is the paper's ViT-B/16 on clips of 4 frames, with the region module in its "decoupled" form. Each
    patch feature is assigned to the nearest of 2048 codes, which follow the features as moving averages. From the
    codes a convolution makes 8 masks per frame, which compete for the positions. Under each mask the features before
    quantization are pooled into one region, in which large values count most, and the regions of a clip interact in
    one transformer block. The feature of a clip is the CLS state plus the maximum of its regions in each channel.
    The masks learn from the loss of the model and from a soft k-means loss; the encoder gets no gradient through them.

    Each of the three steps can be left out: `codebook_size=0` (quantization), `num_regions=0` (aggregation under
    learned masks), `interaction_layers=0` (attention between regions). All three 0 is the encoder of Frozen in Time
    (arXiv 2104.00650).

    Fields that are None are derived from the others when they are read, by [`RegionLearnerVideoConfig.resolved`].

    Args:
        num_frames (`int`, defaults to 4): number of temporal positions, and with it the longest clip.
        patch_bias (`bool`, defaults to `True`): bias of the patch embedding (CLIP has none).
        pre_layernorm (`bool`, defaults to `False`): LayerNorm before the first block (CLIP has one).
        time_attention_init (`str`, defaults to `"zero_projection"`): both forms start as the identity, so that an
            image model inflates exactly. "zero_projection": queries, keys and values at random, output projection 0.
            "original": queries, keys and values 0, output projection 1; under it queries and keys never get a
            gradient, and every value channel gets the same one.
        codebook_size (`int`, defaults to 2048): K, codes of the quantizer.
        codebook_mode (`str`, defaults to `"ema"`): "ema": codes start as features of the first batch, are looked
            up before they are updated, and unused codes are revived. "original": as in the reference implementation;
            looked up after the update, never initialized or revived.
        codebook_decay (`float`, *optional*): EMA decay of the codebook statistics. By default 0.99 for "ema" and 0.1
            for "original".
        codebook_revival_after (`int`, defaults to 100): a code that is unused for the last so many times K features
            is revived from a current feature ("ema" only); 0 never revives codes.
        num_regions (`int`, defaults to 8): S, learned masks, and with them regions, per frame.
        interaction_layers (`int`, defaults to 1): self-attention layers over all regions of a clip.
        interaction_heads (`int`, defaults to 8): attention heads of each of them.
        region_form (`str`, defaults to `"decoupled"`): form of the region module. "decoupled": see above; the best
            form found so far (docs/evidence.md). "paper": as in the paper and the reference implementation.
        region_options (`dict`, defaults to `{}`): overrides single choices of the form, for ablations; see
            [`RegionOptions`] for the keys.
        motion_excitation (`bool`, defaults to `False`): adds features weighted by their change between frames to
            the quantized ones.
        video_pooling (`str`, *optional*): "cls_mean", the CLS state plus the mean of the regions, "cls_max", plus the
            maximum of the regions in each channel, or "cls". By default "cls" without codes and regions, "cls_mean"
            for the "paper" form, and "cls_max" otherwise.
        temporal_fusion (`str`, defaults to `"attention"`): how frames become one clip. "attention": they attend to
            each other in every block. "pool", "linear": late fusion; each frame is encoded alone, as an image is, and
            the features of the frames are averaged, or concatenated and projected. (Regions interact over all frames
            in every case.)

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

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float | int = 1e-6
    initializer_range: float | int = 0.02
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    num_frames: int = 4
    patch_bias: bool = True
    pre_layernorm: bool = False
    time_attention_init: str = "zero_projection"
    codebook_size: int = 2048
    codebook_mode: str = "ema"
    codebook_decay: float | int | None = None
    codebook_revival_after: int = 100
    num_regions: int = 8
    interaction_layers: int = 1
    interaction_heads: int = 8
    region_form: str = "decoupled"
    region_options: dict = field(default_factory=dict)
    motion_excitation: bool = False
    video_pooling: str | None = None
    temporal_fusion: str = "attention"

    def __post_init__(self, **kwargs):
        old = {name: kwargs.pop(name) for name in _OLD_NAMES if name in kwargs}
        self.region_options = {name: value for name, value in self.region_options.items() if value is not None}
        self.region_options = rename_old_fields(old | {"region_options": self.region_options})["region_options"]
        super().__post_init__(**kwargs)
        if _was_saved_with_old_names(old):
            self._forget_what_was_derived()

    def _forget_what_was_derived(self):
        """Takes what equals its default for what it was in older checkpoints, a derived value that was saved."""
        form, options = REGION_FORMS[self.region_form], self.region_options
        chosen = {name: value for name, value in options.items() if value != form.get(name)}
        weight = chosen.pop("mask_loss_weight", None)
        self.region_options, decay, pooling = chosen, self.codebook_decay, self.video_pooling
        self.codebook_decay = self.video_pooling = None
        derived = self.resolved
        if weight not in (None, derived.region_options.mask_loss_weight):
            self.region_options = chosen | {"mask_loss_weight": weight}
        self.codebook_decay = None if decay == derived.codebook_decay else decay
        self.video_pooling = None if pooling == derived.video_pooling else pooling

    @property
    def resolved(self) -> ResolvedVideoConfig:
        """
        The choices that the fields leave open, each with its value: `codebook_decay`, `video_pooling`, and all
        `region_options`. They are derived anew each time, and are not saved.
        """
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
        return ResolvedVideoConfig(decay, pooling, RegionOptions(**options))

    def _with(self, changes: dict[str, Any]) -> dict[str, Any]:
        return super()._with(rename_old_fields(changes))

    @classmethod
    def _where(cls, name: str, value: Any) -> str:
        if name in RegionOptions._fields:
            return f", but a key of its region_options: give region_options={{{name!r}: {value!r}}}."
        if name in RegionLearnerConfig.own_fields():
            return ", but of RegionLearnerConfig: give it there."
        return super()._where(name, value)

    def validate_architecture(self):
        """
        Raises:
            ValueError: for values out of their range, unknown choices, and parts that need one that is left out.
                (Sizes that do not fit together are refused when the model is built: a configuration may be changed
                field by field.)
        """
        sizes = ("hidden_size", "num_attention_heads", "intermediate_size", "image_size", "patch_size")
        _at_least(self, 1, *sizes, "num_channels", "num_frames", "interaction_heads")
        counts = ("codebook_size", "codebook_revival_after", "num_regions", "interaction_layers")
        _at_least(self, 0, "num_hidden_layers", *counts)
        for name in ("layer_norm_eps", "initializer_range"):
            _check_number(name, getattr(self, name), at_least=0)
        _check_choice("codebook_mode", self.codebook_mode, ("ema", "original"))
        _check_choice("time_attention_init", self.time_attention_init, ("zero_projection", "original"))
        _check_choice("temporal_fusion", self.temporal_fusion, ("attention", "pool", "linear"))
        _check_choice("region_form", self.region_form, tuple(REGION_FORMS))
        self._validate_region_options()
        resolved = self.resolved
        _check_choice("video_pooling", resolved.video_pooling, ("cls_mean", "cls_max", "cls"))
        if not 0.0 <= resolved.codebook_decay < 1.0:
            raise ValueError(f"codebook_decay={resolved.codebook_decay} must be at least 0 and less than 1.")
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

    def _validate_region_options(self):
        for name in self.region_options:
            if name not in RegionOptions._fields:
                hint = _did_you_mean(str(name), RegionOptions._fields)
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
        if options.mask_loss_weight and options.mask_normalization != "regions":
            raise ValueError(
                f"region_options: mask_loss_weight={options.mask_loss_weight} needs masks that compete for positions, "
                f"but {masks}: set it to 'regions', or mask_loss_weight to 0."
            )


@strict
class RegionLearnerConfig(_StrictConfig):
    r"""
    Configuration of the dual encoder [`RegionLearnerModel`]: a video tower and any text encoder of transformers,
    each projected into one embedding space.

    Args:
        video_config (`RegionLearnerVideoConfig` or `dict`, *optional*): the video tower.
        text_config (`PreTrainedConfig` or `dict` with a `model_type`, *optional*): the text encoder, by default
            DistilBERT.
        projection_dim (`int`, defaults to 256): width of the embedding space.
        temperature (`float`, defaults to 0.05): cosine similarities are divided by it.
        learn_temperature (`bool`, defaults to `False`): make it a parameter that starts there.
        loss (`str`, defaults to `"infonce"`): "infonce": cross-entropy among all pairs of a batch. "sigmoid": every
            pair judged on its own, as SigLIP does it (arXiv 2303.15343), with a learned bias added to all logits.
            "max_margin": a ranking loss on the cosine similarities themselves, without a temperature.
        sigmoid_bias (`float`, defaults to -10.0): initial bias of "sigmoid".
        margin (`float`, defaults to 0.2): of "max_margin"; by so much a pair has to be more similar than others are.
        text_pooling (`str`, *optional*): the state of the "first" or the "last" token of a text, of its end-of-text
            token ("eos"), the "mean" of all tokens, or what the encoder itself pools ("pooler"). Padding does not
            count. By default the encoder's own pooled state for BERT, CLIP and SigLIP, the last token for causal
            encoders such as GPT-2, and the first token for all others
            (see [`RegionLearnerConfig.resolved`]).
        text_projection_relu (`bool`, defaults to `True`): a ReLU before the text projection.
        projection_bias (`bool`, defaults to `True`): a bias in both projections.
    """

    model_type = "region_learner"
    sub_configs = {"video_config": RegionLearnerVideoConfig, "text_config": AutoConfig}
    # An evaluation that concatenates outputs keeps the embeddings alone.
    keys_to_ignore_at_inference = [
        "logits_per_video",
        "logits_per_text",
        "text_model_output",
        "video_model_output",
        "temperature",
        "logit_bias",
        "region_loss",
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
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs):
        is_old = isinstance(self.video_config, dict) and _was_saved_with_old_names(self.video_config)
        if self.video_config is None or isinstance(self.video_config, dict):
            self.video_config = RegionLearnerVideoConfig(**self.video_config or {})
        if self.text_config is None:
            self.text_config = AutoConfig.for_model("distilbert")
        elif isinstance(self.text_config, dict):
            self.text_config = text_config_from_dict(self.text_config, chosen=self.text_config)
        if is_old and self.text_pooling == default_text_pooling(self.text_config):
            self.text_pooling = None  # derived, and saved
        super().__post_init__(**kwargs)

    @property
    def resolved(self) -> ResolvedConfig:
        """The choices that the fields leave open, each with its value: `text_pooling`. They are not saved."""
        return ResolvedConfig(self.text_pooling or default_text_pooling(self.text_config))

    @property
    def num_frames(self) -> int:
        """Temporal positions of the video tower, by the name that transformers' pipelines look for."""
        return self.video_config.num_frames

    @classmethod
    def _read(cls, config_dict: dict[str, Any]) -> dict[str, Any]:
        values = super()._read(config_dict)
        video, text = (values.get(name) for name in ("video_config", "text_config"))
        if isinstance(video, dict):
            values["video_config"] = RegionLearnerVideoConfig._read(video)
        if isinstance(text, dict):  # whatever a checkpoint has there, its encoder was loaded with it
            values["text_config"] = text_config_from_dict(text)
        return values

    def _with(self, changes: dict[str, Any]) -> dict[str, Any]:
        # (None for a tower does not mean the default one, but none given.)
        changes = {name: value for name, value in changes.items() if value is not None or name not in self.sub_configs}
        video, text = changes.get("video_config"), changes.get("text_config", self.text_config)
        if isinstance(video, Mapping):
            changes["video_config"] = rename_old_fields(video)
        if isinstance(text, Mapping):
            text = text_config_from_dict(merge_fields(self.text_config.to_dict(), text), chosen=text)
        return super()._with(changes | {"text_config": text})

    @classmethod
    def _where(cls, name: str, value: Any) -> str:
        of_video = RegionLearnerVideoConfig.own_fields()
        if name in of_video:
            return f", but of its video_config: give video_config={{{name!r}: {value!r}}}."
        near = difflib.get_close_matches(name, sorted(cls.own_fields() | of_video), n=1)
        if near and near[0] in of_video:
            return f"; did you mean {near[0]!r}, in video_config?"
        return super()._where(name, value)

    def validate_architecture(self):
        """
        Raises:
            ValueError: for values out of their range, here and in the two towers.
        """
        for name in ("video_config", "text_config"):
            if not isinstance(getattr(self, name), PreTrainedConfig):
                raise ValueError(f"{name} was set to {getattr(self, name)!r:.60}: set it to a configuration.")
        if self.video_config.model_type != RegionLearnerVideoConfig.model_type:
            raise ValueError(
                f"video_config is that of a {self.video_config.model_type!r} model: give a RegionLearnerVideoConfig, "
                "or a dict of its fields."
            )
        self.video_config.validate_architecture()
        _check_text_config(self.text_config)
        _at_least(self, 1, "projection_dim")
        _check_number("temperature", self.temperature, above=0)
        _check_choice("loss", self.loss, ("infonce", "sigmoid", "max_margin"))
        _check_number("sigmoid_bias", self.sigmoid_bias)
        _check_number("margin", self.margin, above=0)
        _check_number("initializer_range", self.initializer_range, at_least=0)
        if self.loss == "max_margin" and self.learn_temperature:
            raise ValueError(
                "loss='max_margin' has no temperature to learn: set learn_temperature=False, or another loss."
            )
        _check_choice("text_pooling", self.resolved.text_pooling, TEXT_POOLINGS)


def nest_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """
    Returns flat `overrides` as [`RegionLearnerConfig.from_dict`] takes them: fields of the top level there, and
    fields of the video tower in `video_config`. (A name that both have is that of the top level.)

    Raises:
        ValueError: for a name that neither has, with the nearest one.
    """
    top, of_video = RegionLearnerConfig.own_fields(), RegionLearnerVideoConfig.own_fields() | _OLD_NAMES.keys()
    nested: dict[str, Any] = {name: value for name, value in overrides.items() if name in top}
    video = {name: value for name, value in overrides.items() if name in of_video - top}
    for name in overrides:
        if name not in top | of_video:
            raise ValueError(f"{name!r} is not a field of the configuration{_did_you_mean(name, top | of_video)}")
    if video:
        nested["video_config"] = merge_fields(nested.get("video_config") or {}, video, keep_null=True)
    return nested


def _is_of_transformers(name: str) -> bool:
    return name in _OF_TRANSFORMERS or name.startswith("_")


def _was_saved_with_old_names(video_config: Mapping[str, Any]) -> bool:
    return _OLD_NAMES.keys() <= video_config.keys()


def _looks_like_a_field(name: str) -> bool:
    known = RegionLearnerConfig.own_fields() | RegionLearnerVideoConfig.own_fields()
    return bool(difflib.get_close_matches(name, known, n=1, cutoff=0.8))


def text_config_from_dict(values: Mapping[str, Any], chosen: Iterable[str] = ()) -> PreTrainedConfig:
    """
    The configuration of a text encoder from its dictionary.

    Raises:
        ValueError: without a `model_type` that transformers knows, or for fields among the `chosen` ones that the
            configuration does not have.
    """
    values = dict(values)
    model_type = values.pop("model_type", None)
    if model_type is None:
        raise ValueError(
            "text_config is a dict without `model_type`: add it (for example 'distilbert'), "
            "or pass a configuration object."
        )
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"text_config: model_type={model_type!r} is not known to transformers"
            f"{_did_you_mean(str(model_type), CONFIG_MAPPING.keys())}"
        )
    config = AutoConfig.for_model(model_type, **values)
    # A configuration of transformers keeps what it does not know as an attribute.
    declared = type(config).__dataclass_fields__
    attributes = [name for name in chosen if name in vars(config) and name not in declared]
    if attributes := [name for name in attributes if not _is_of_transformers(name)]:
        known = vars(type(config)())
        for name in attributes:
            if name not in known:
                hint = _did_you_mean(name, {*known, *type(config).attribute_map})
                raise ValueError(f"text_config: {name!r} is not a field of {type(config).__name__}{hint}")
    return config


def _check_text_config(config: Any):
    """Raises ValueError for sizes and numbers that no encoder can have, and that transformers lets through."""
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

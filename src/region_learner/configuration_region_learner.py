# Copyright 2026 The RegionLearner authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in
# compliance with the License. You may obtain a copy at http://www.apache.org/licenses/LICENSE-2.0
"""Configuration of RegionLearner, "Video-Text Pre-training with Learned Regions" (arXiv 2112.01194)."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

# Text encoders with a pooled state of their own that their authors trained.
_POOLED_TEXT_ENCODERS = {
    "bert": "pooler",
    "clip_text_model": "eos",
    "siglip_text_model": "pooler",
    "siglip2_text_model": "pooler",
}
TEXT_POOLINGS = ("first", "last", "eos", "mean", "pooler")


def is_causal(text_config: PreTrainedConfig) -> bool:
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


def default_text_pooling(text_config: PreTrainedConfig) -> str:
    """The encoder's own pooled state if it has a trained one; otherwise a token that sees all of the text."""
    own = _POOLED_TEXT_ENCODERS.get(text_config.model_type, "first")
    return "last" if own != "eos" and is_causal(text_config) else own


# What the forms of the region module stand for. Configurations hold, and save, the single options.
REGION_FORMS = {
    "decoupled": {
        "mask_normalization": "regions",
        "region_gather": "softmax",
        "region_content": "features",
        "masks_train_encoder": False,
        "interaction_residual": True,
        "interaction_norm": True,
        "interaction_mlp": True,
    },
    "paper": {
        "mask_normalization": "none",
        "region_gather": "mean",
        "region_content": "quantized",
        "masks_train_encoder": True,
        "interaction_residual": False,
        "interaction_norm": False,
        "interaction_mlp": False,
    },
}


def _choose(name: str, value, allowed: tuple):
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(map(repr, allowed))}.")


@strict
class RegionLearnerVideoConfig(PreTrainedConfig):
    r"""
    Configuration of the video tower: a divided space-time ViT and the region module behind it. The defaults are
    the paper's ViT-B/16.

    Each of the three steps of the region module can be left out: `codebook_size=0` (quantization), `num_regions=0`
    (aggregation under learned masks), `interaction_layers=0` (attention between regions). All three 0 is the
    encoder of Frozen in Time (arXiv 2104.00650).

    Args:
        num_frames (`int`, defaults to 4): temporal positions, and with them the longest clip.
        patch_bias (`bool`, defaults to `True`): bias of the patch embedding (CLIP has none).
        pre_layernorm (`bool`, defaults to `False`): LayerNorm before the first block (CLIP has one).
        time_attention_init (`str`, defaults to `"zero_projection"`): both forms start as the identity, so that an
            image model inflates exactly. "zero_projection": queries, keys and values at random, output projection 0.
            "original": queries, keys and values 0, output projection 1; under it queries and keys get no gradient,
            ever, and every value channel the same one.
        codebook_size (`int`, defaults to 2048): K, codes of the quantizer.
        codebook_mode (`str`, defaults to `"ema"`): "ema": codes start as features of the first batch, are looked
            up before they are updated, and codes out of use are revived. "original": as the authors' code does it;
            looked up after the update, nothing initialised or revived.
        codebook_decay (`float`, *optional*): of the moving averages; 0.99 for "ema", 0.1 for "original".
        codebook_revival_after (`int`, defaults to 100): a code that none of the last so many times K features chose
            is revived from a current feature ("ema" only); 0 leaves dead codes dead.
        num_regions (`int`, defaults to 8): S, learned masks, and regions, a frame.
        interaction_layers (`int`, defaults to 1): self-attention layers over all regions of a clip.
        interaction_heads (`int`, defaults to 8): heads of each of them.
        region_form (`str`, defaults to `"decoupled"`): the form of aggregation and interaction, that is of the
            seven options below where they are not given. "decoupled": codes say where a region is and features say
            what it is, regions compete for positions, and interact in a whole transformer block; the best form found
            so far (docs/evidence.md). "paper": as the paper and the authors' code have it.
        mask_normalization (`str`, *optional*): "none" ("paper"): masks of any sign. "positions": each mask is a
            softmax over the positions of its frame. "regions" ("decoupled"): at each position the masks are a softmax
            over regions, which compete for it, and then each is scaled to a mean of 1.
        region_gather (`str`, *optional*): "mean" ("paper"): a region is the mean over positions of mask x content.
            "softmax" ("decoupled"): in each channel a mean over positions with weights of mask x exp(sharpness x
            content), so that what is largest under the mask counts most. "max": in each channel the maximum over
            positions of content + log mask. Both need masks that are normalised.
        region_content (`str`, *optional*): what masks gather. "quantized" ("paper"): the features that they are made
            from. "features" ("decoupled"): the features before quantization.
        masks_train_encoder (`bool`, *optional*): whether the encoder learns through masks (and the codes that they are
            made from), too (True in "paper"), or only through what they gather. Masks themselves learn in any case.
        interaction_residual (`bool`, *optional*): a residual around each interaction layer (False in "paper").
        interaction_norm (`bool`, *optional*): a LayerNorm before each of them (False in "paper").
        interaction_mlp (`bool`, *optional*): a LayerNorm and an MLP, with a residual around both, after each of them,
            as in a block of the encoder (False in "paper").
        region_gather_sharpness (`float`, defaults to 3.0): of the "softmax", in units of the standard deviation of
            content over a frame; at 0 it is "mean".
        region_loss_weight (`float`, *optional*): of a loss that is added to the model's, with which masks learn to
            part a clip as k-means does: the share of the variance of its features that is within regions. By default
            1 where several masks compete (`mask_normalization` "regions", which it needs), and otherwise 0.
        motion_excitation (`bool`, defaults to `False`): adds features weighted by their change between frames to
            the quantized ones.
        video_pooling (`str`, *optional*): "cls_mean", the CLS state plus the mean of the regions, "cls_max", plus the
            maximum of the regions in each channel, or "cls". By default "cls" without a region module, and with one
            "cls_max", or "cls_mean" if `region_form` is "paper".
        temporal_fusion (`str`, defaults to `"attention"`): how frames become one clip. "attention": they attend to
            each other in every block. "pool", "linear": late fusion; each frame is encoded alone, as an image is, and
            has a feature of its own, and these are averaged, or concatenated and projected. (Regions interact over
            all frames in every case.)
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
    mask_normalization: str | None = None
    region_gather: str | None = None
    region_content: str | None = None
    masks_train_encoder: bool | None = None
    interaction_residual: bool | None = None
    interaction_norm: bool | None = None
    interaction_mlp: bool | None = None
    region_gather_sharpness: float | int = 3.0
    region_loss_weight: float | int | None = None
    motion_excitation: bool = False
    video_pooling: str | None = None
    temporal_fusion: str = "attention"

    def __post_init__(self, **kwargs):
        _choose("region_form", self.region_form, tuple(REGION_FORMS))
        for name, value in REGION_FORMS[self.region_form].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.region_loss_weight is None:
            compete = self.mask_normalization == "regions" and self.num_regions > 1
            self.region_loss_weight = 1.0 if compete else 0.0
        if self.codebook_decay is None:
            self.codebook_decay = 0.1 if self.codebook_mode == "original" else 0.99
        if self.video_pooling is None:
            pooling = "cls_mean" if self.region_form == "paper" else "cls_max"
            self.video_pooling = pooling if self.codebook_size or self.num_regions else "cls"
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def validate_architecture(self):
        """
        Raises:
            ValueError: for unknown choices, and for parts that need one that is left out. (Sizes that do not fit
                together are the model's to refuse: a configuration may be changed field by field.)
        """
        for name in ("codebook_size", "codebook_revival_after", "num_regions", "interaction_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 (left out) or more.")
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
        if self.codebook_decay is None or not 0.0 <= self.codebook_decay < 1.0:
            raise ValueError(f"codebook_decay={self.codebook_decay} must be at least 0 and less than 1.")
        _choose("mask_normalization", self.mask_normalization, ("none", "positions", "regions"))
        _choose("region_gather", self.region_gather, ("mean", "softmax", "max"))
        if self.region_gather != "mean" and self.mask_normalization == "none":
            raise ValueError(
                f"region_gather={self.region_gather!r} needs masks that are positive, but mask_normalization='none' "
                "gives masks of any sign: set mask_normalization to 'positions' or 'regions', or region_gather='mean'."
            )
        for name in ("region_gather_sharpness", "region_loss_weight"):
            value = getattr(self, name)
            if value is None or not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value} must be a number of at least 0.")
        if self.region_loss_weight and self.mask_normalization != "regions":
            raise ValueError(
                f"region_loss_weight={self.region_loss_weight} needs masks that compete for positions, but "
                f"mask_normalization={self.mask_normalization!r}: set it to 'regions', or region_loss_weight=0."
            )
        _choose("region_content", self.region_content, ("quantized", "features"))
        _choose("codebook_mode", self.codebook_mode, ("ema", "original"))
        _choose("time_attention_init", self.time_attention_init, ("zero_projection", "original"))
        _choose("video_pooling", self.video_pooling, ("cls_mean", "cls_max", "cls"))
        _choose("temporal_fusion", self.temporal_fusion, ("attention", "pool", "linear"))


@strict
class RegionLearnerConfig(PreTrainedConfig):
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
            "max_margin": a ranking loss on the cosine similarities themselves, which knows no temperature.
        sigmoid_bias (`float`, defaults to -10.0): where the bias of "sigmoid" starts.
        margin (`float`, defaults to 0.2): of "max_margin"; by so much a pair has to be more similar than others are.
        text_pooling (`str`, *optional*): the state of the "first" or the "last" token of a text, of its end-of-text
            token ("eos"), the "mean" of all tokens, or what the encoder itself pools ("pooler"). Padding does not
            count. By default the encoder's own pooled state for BERT, CLIP and SigLIP, the last token for causal
            encoders such as GPT-2, and the first token for all others.
        text_projection_relu (`bool`, defaults to `True`): a ReLU before the text projection.
        projection_bias (`bool`, defaults to `True`): a bias in both projections.
    """

    model_type = "region_learner"
    sub_configs = {"video_config": RegionLearnerVideoConfig, "text_config": AutoConfig}
    # An evaluation that concatenates outputs keeps the embeddings alone.
    keys_to_ignore_at_inference = ["logits_per_video", "logits_per_text", "text_model_output", "video_model_output"]

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
        if self.video_config is None:
            self.video_config = RegionLearnerVideoConfig()
        elif isinstance(self.video_config, dict):
            self.video_config = RegionLearnerVideoConfig(**self.video_config)
        if self.text_config is None:
            self.text_config = AutoConfig.for_model("distilbert")
        elif isinstance(self.text_config, dict):
            text_config = dict(self.text_config)
            model_type = text_config.pop("model_type", None)
            if model_type is None:
                raise ValueError(
                    "text_config is a dict without `model_type`: add it (for example 'distilbert'), "
                    "or pass a configuration object."
                )
            self.text_config = AutoConfig.for_model(model_type, **text_config)
        if self.text_pooling is None:
            self.text_pooling = default_text_pooling(self.text_config)
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def validate_architecture(self):
        """
        Raises:
            ValueError: for values outside their range.
        """
        if self.projection_dim < 1:
            raise ValueError(f"projection_dim={self.projection_dim} must be at least 1.")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be greater than 0.")
        _choose("loss", self.loss, ("infonce", "sigmoid", "max_margin"))
        if not self.margin > 0:
            raise ValueError(f"margin={self.margin} must be greater than 0.")
        if self.loss == "max_margin" and self.learn_temperature:
            raise ValueError(
                "loss='max_margin' has no temperature to learn: set learn_temperature=False, or another loss."
            )
        _choose("text_pooling", self.text_pooling, TEXT_POOLINGS)


__all__ = ["RegionLearnerConfig", "RegionLearnerVideoConfig"]

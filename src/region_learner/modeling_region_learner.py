# Copyright 2026 The RegionLearner authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in
# compliance with the License. You may obtain a copy at http://www.apache.org/licenses/LICENSE-2.0
"""
PyTorch RegionLearner: "Video-Text Pre-training with Learned Regions" (arXiv 2112.01194), a region module on top of the
divided space-time ViT of "Frozen in Time" (arXiv 2104.00650), or on top of any image model from transformers or timm.

"The original" is the reference implementation, github.com/showlab/Region_Learner. The docstring of each class says
what it corresponds to there, and where it differs on purpose. In shapes, B is the number of clips, T of frames,
N = h * w of patches per frame, D of channels, S of regions per frame, K of codes, and H of heads.
"""

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_region_learner import (
    CLIP_POOLINGS,
    CLIP_TEXT_ENCODERS,
    POOLINGS_WITHOUT_REGIONS,
    RegionLearnerConfig,
    RegionLearnerVideoConfig,
    is_causal,
)
from .loss_region_learner import (
    classification_loss,
    contrastive_loss,
    cosine_similarity,
    word_region_similarity,
    world,
)

logger = logging.get_logger(__name__)

# The classes that load a two-tower checkpoint, whichever class saved it: any head can be trained from any other.
_AUTO_CLASSES = {
    "AutoModel": "RegionLearnerModel",
    "AutoModelForVideoClassification": "RegionLearnerForVideoClassification",
    "AutoModelForVisualQuestionAnswering": "RegionLearnerForVideoQuestionAnswering",
}

# How far a revived code lies from the code that it splits, as a fraction of the distance to a feature of that code.
_SPLIT = 0.1
# Number of cosine moments over time that a region of `RegionLearnerQueries`, and a tube of `RegionLearnerTubeMLP`, is
# computed from.
_MOMENTS = 4
# Scale of the path of a query over a frame, whose coordinates are between -1 and 1: most movements are short.
_PATH_SCALE = 4.0

# Queries that follow: how much the squared distance of a patch lowers its score at first (half a side of the frame is
# 1), and the bound of the squared distance: what a query looks for may be far away.
_NEARNESS = 8.0
_MAX_SQUARED_DISTANCE = 2.0

# The maximum number of weights per head with which attention is computed with plain products, on a CPU in bfloat16.
_PLAIN_WEIGHTS = 2**16
# Whether the processor has AMX, with which the fused kernel is fast without gradients.
_HAS_AMX: bool = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
# Queries that follow go through the frames one by one. Exported programs do so for this many frames, and take no more.
_EXPORTED_FRAMES = 64

# Distances are computed for this many (feature, code) pairs at a time: 64 MiB in float32.
_DISTANCES_AT_ONCE = 2**24


@dataclass
class RegionLearnerVideoOutput(BaseModelOutputWithPooling):
    """
    Output of the video tower.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(B, 1 + T * S, D)`):
            CLS state and regions after the final LayerNorm. In the forms "queries" and "tracks", each region belongs
            to the whole clip: `(B, 1 + S, D)`. Without regions (`num_regions=0`), the patches (quantized, if there is
            a codebook) take their place: `(B, 1 + T * N, D)`. With late fusion (`temporal_fusion` "pool" or
            "linear") it begins with the CLS states of all T frames instead of one.
        pooler_output (`torch.FloatTensor` of shape `(B, D)`):
            The video feature. In the output of `get_video_features`, its projection, `(B, projection_dim)`.
        hidden_states (`tuple(torch.FloatTensor)` of shape `(B, 1 + T * N, D)`):
            The input of the first block and the output of every block, with `output_hidden_states=True`. With late
            fusion, the batch has B * T clips of one frame.
        attentions (`tuple(torch.FloatTensor)` of shape `(B, H, 1 + T * N, 1 + T * N)`):
            The weights of the space attention in every block, with `output_attentions=True` and eager attention.
        region_states (`torch.FloatTensor` of shape `(B, T * S, D)`):
            Regions after their interaction, before the final LayerNorm. In the forms "queries" and "tracks", each
            region belongs to the whole clip, `(B, S, D)`. None without regions.
        region_masks (`torch.FloatTensor` of shape `(B, T, S, h, w)`):
            The masks that the regions were pooled with: raw masks of any sign, or masks scaled to a mean of 1 over the
            positions of a frame (region option `mask_normalization`). In the forms "queries" and "tracks", the
            attention of each query, scaled to a mean of 1 over each frame. 0 in masked frames. None without
            regions.
        cluster_ids (`torch.LongTensor` of shape `(B, T, h, w)`):
            Index of the code of each patch. None without quantization.
        region_loss (`torch.FloatTensor` of shape `(B,)`):
            The share of the variance of a clip's features that lies within its regions, between 0 and 1. None without
            regions, or if the region option `mask_loss_weight` is 0.
        patch_states (`torch.FloatTensor` of shape `(B, T, h, w, D)`):
            The patch features that the regions are computed from: those after `region_layer` blocks, or those of the
            backbone. With patch dropout, only the patches that were kept, `(B, T, 1, n, D)`.
    """

    region_states: torch.Tensor | None = None
    region_masks: torch.Tensor | None = None
    cluster_ids: torch.Tensor | None = None
    region_loss: torch.Tensor | None = None
    patch_states: torch.Tensor | None = None


@dataclass
class RegionLearnerOutput(ModelOutput):
    """
    Output of the dual encoder. A field is None if it depends on an input that was not given.

    Args:
        loss (`torch.FloatTensor` of shape `()`, with `return_loss=True`):
            The contrastive loss of this batch plus the weighted losses of the masks (region option
            `mask_loss_weight`) and of the tokens (`token_loss_weight`).
        logits_per_video (`torch.FloatTensor` of shape `(videos, texts)`):
            Cosine similarities divided by the temperature; with the "sigmoid" loss, plus the learned bias.
        logits_per_text (`torch.FloatTensor` of shape `(texts, videos)`): the transpose of `logits_per_video`.
        text_embeds (`torch.FloatTensor` of shape `(texts, projection_dim)`): L2-normalized text embeddings.
        video_embeds (`torch.FloatTensor` of shape `(videos, projection_dim)`): L2-normalized video embeddings.
        text_model_output (`BaseModelOutputWithPooling`): the output of `get_text_features`. Negative texts come last.
        video_model_output (`RegionLearnerVideoOutput`): the output of the video tower.
        temperature (`torch.FloatTensor` of shape `(1,)`): the learned temperature; None if it is fixed.
        logit_bias (`torch.FloatTensor` of shape `(1,)`): the learned bias of the "sigmoid" loss; None for others.
        region_loss (`torch.FloatTensor` of shape `(videos,)`): as in [`RegionLearnerVideoOutput`].
        text_token_embeds (`torch.FloatTensor` of shape `(texts, L, token_dim)`): L2-normalized embeddings of the
            tokens of a text. This field and those below are None without `token_dim`.
        text_token_weights (`torch.FloatTensor` of shape `(texts, L)`): their weights, 0 for padding; the sum is 1.
        video_token_embeds (`torch.FloatTensor` of shape `(videos, n, token_dim)`): L2-normalized embeddings of the
            n = T * S regions of a clip (n = S in the forms "queries" and "tracks"), or of its n = T * N patches
            without regions.
        video_token_weights (`torch.FloatTensor` of shape `(videos, n)`): their weights, 0 in masked frames; the sum
            is 1.
        token_logits_per_text (`torch.FloatTensor` of shape `(texts, videos)`): similarities by
            [`word_region_similarity`], divided by the temperature of the tokens.
        token_temperature (`torch.FloatTensor` of shape `(1,)`): the learned temperature of the tokens; None if it is
            fixed.
        negative_text_embeds (`torch.FloatTensor` of shape `(negatives, projection_dim)`): L2-normalized embeddings of
            `negative_input_ids`. This field and those below are None without them.
        negative_token_embeds (`torch.FloatTensor` of shape `(negatives, L, token_dim)`): embeddings of their tokens.
        negative_token_weights (`torch.FloatTensor` of shape `(negatives, L)`): the weights of their tokens.
    """

    loss: torch.Tensor | None = None
    logits_per_video: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    video_embeds: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    video_model_output: RegionLearnerVideoOutput | None = None
    temperature: torch.Tensor | None = None
    logit_bias: torch.Tensor | None = None
    region_loss: torch.Tensor | None = None
    text_token_embeds: torch.Tensor | None = None
    text_token_weights: torch.Tensor | None = None
    video_token_embeds: torch.Tensor | None = None
    video_token_weights: torch.Tensor | None = None
    token_logits_per_text: torch.Tensor | None = None
    token_temperature: torch.Tensor | None = None
    negative_text_embeds: torch.Tensor | None = None
    negative_token_embeds: torch.Tensor | None = None
    negative_token_weights: torch.Tensor | None = None

    def to_tuple(self) -> tuple:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in super().to_tuple())


@dataclass
class _EncodedClips(BaseModelOutputWithPooling):
    """
    Output of the encoder: the patches after the last block as `last_hidden_state`, the patches that the regions are
    computed from, and with patch dropout the indices (B, n) of the patches that were kept.
    """

    region_patches: torch.Tensor | None = None
    kept: torch.Tensor | None = None


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the output (B, queries, H, D / H) of plain attention, and its weights (B, H, queries, keys)."""
    weights = (query * scaling) @ key.transpose(-1, -2)  # (B, H, queries, keys)
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.softmax(-1).to(query.dtype)  # computed in float32; autocast on a GPU also returns float32
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


def _is_slow_if_fused(query: torch.Tensor, key: torch.Tensor, training: bool) -> bool:
    """
    Returns whether PyTorch's fused attention is slower than plain attention: on a CPU in bfloat16 in training, as its
    backward pass takes several times as long, and otherwise on a CPU without AMX (benchmarks/attention.py). For long
    sequences, it saves memory.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or (_HAS_AMX and not training):
        return False
    if torch.compiler.is_exporting():  # the sizes would become part of the program
        return False
    return query.shape[1] * key.shape[1] <= _PLAIN_WEIGHTS


def _additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns an additive attention mask: 0 where `allowed`, the lowest number of `dtype` elsewhere."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)


class _Grid:
    """
    The positions of the patches that patch dropout has kept, which are the same in all frames of a clip.

    Args:
        kept: indices of the positions (B, n), counted row by row.
        height, width: size of the full grid, in patches.
    """

    def __init__(self, kept: torch.Tensor, height: int, width: int):
        self.kept, self.height, self.width = kept, height, width

    def scatter(self, x: torch.Tensor, fill: int = 0) -> torch.Tensor:
        """Scatters `x` (B, T, 1, n, ...) to its positions on the grid, (B, T, h, w, ...), and fills the others."""
        x = x.squeeze(2)
        full = x.new_full((*x.shape[:2], self.height * self.width, *x.shape[3:]), fill)
        index = self.kept[:, None].expand(x.shape[:3])
        index = index.view(*index.shape, *[1] * (x.ndim - 3)).expand_as(x)
        return full.scatter(2, index, x).unflatten(2, (self.height, self.width))

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the kept positions of `x` (B * T, channels, h, w): (B * T, channels, 1, n)."""
        index = self.kept.repeat_interleave(len(x) // len(self.kept), 0)[:, None].expand(-1, x.shape[1], -1)
        return x.flatten(2).gather(2, index).unsqueeze(2)


class RegionLearnerVideoEmbeddings(nn.Module):
    """Patch, spatial and temporal embeddings of the original's `SpaceTimeTransformer`."""

    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        self.config = config
        patch: Any = config.patch_size
        self.grid: int = config.image_size // patch  # type: ignore[operator]
        self.patch_embedding = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=patch,
            stride=patch,
            bias=not config.pre_layernorm,
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + self.grid**2, config.hidden_size))
        self.temporal_embeddings = nn.Parameter(torch.zeros(1, config.num_frames, config.hidden_size))

    def interpolate_pos_encoding(self, height: int, width: int) -> torch.Tensor:
        """Returns the spatial positions of a grid of `height` x `width` patches, (1, height * width, D)."""
        positions = self.position_embeddings[:, 1:]
        if (height, width) == (self.grid, self.grid):
            return positions
        positions = positions.unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)  # (1, D, grid, grid)
        positions = F.interpolate(positions.float(), size=(height, width), mode="bicubic", align_corners=False)
        return positions.flatten(2).transpose(1, 2).to(self.position_embeddings.dtype)

    def forward(
        self, pixel_values_videos: torch.Tensor, interpolate_pos_encoding: bool = False
    ) -> tuple[torch.Tensor, tuple[int, int, int], torch.Tensor | None]:
        """
        Returns the tokens (B, 1 + T * N, D) of clips (B, T, C, height, width), their grid (T, h, w), and None. With
        late fusion, each frame is a clip of its own: (B * T, 1 + N, D) and (1, h, w). With patch dropout, n patches
        of each frame are kept: (B, 1 + T * n, D), (T, 1, n), and the indices of these patches (B, n).
        """
        batch, frames, channels, height, width = pixel_values_videos.shape
        clips = batch
        patch: Any = self.config.patch_size
        size = self.config.image_size
        if channels != self.config.num_channels:
            raise ValueError(
                f"The clips have {channels} channels, but the model takes {self.config.num_channels}: convert the "
                "frames, as the processor does."
            )
        if not interpolate_pos_encoding and (height, width) != (size, size):
            raise ValueError(
                f"The frames are {height} x {width} pixels, but the model takes {size} x {size}: resize the frames, "
                "or set `interpolate_pos_encoding=True`."
            )
        if height % patch or width % patch:
            raise ValueError(
                f"The frames are {height} x {width} pixels, but must be multiples of the patch size, {patch}: resize "
                "the frames."
            )
        if self.config.resolved.temporal_fusion != "attention":  # each frame is a clip: (B * T, 1, C, height, width)
            pixel_values_videos = pixel_values_videos.flatten(0, 1).unsqueeze(1)
            batch, frames = batch * frames, 1
        pixel_values_videos = pixel_values_videos.to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(pixel_values_videos.flatten(0, 1))  # (B * T, D, h, w)
        grid = (frames, *patches.shape[-2:])
        patches = patches.permute(0, 2, 3, 1).reshape(batch, -1, patches.shape[1])  # (B, T * N, D)
        positions = self.interpolate_pos_encoding(*grid[1:]).unsqueeze(1)
        patches = patches + (positions + self.temporal_embeddings[:, :frames].unsqueeze(2)).flatten(1, 2)
        kept = None
        if self.training and self.config.patch_dropout:
            places = grid[1] * grid[2]
            number = max(1, round((1 - self.config.patch_dropout) * places))
            # Each process draws numbers for the clips of all processes and takes its own. With the same random state,
            # processes therefore keep different patches, the same ones as one process with the global batch.
            rank, size = world()
            drawn = torch.rand(size * clips, places, device=patches.device)[rank * clips : (rank + 1) * clips]
            kept = drawn.argsort(1)[:, :number].sort(1).values
            index = kept.repeat_interleave(batch // clips, 0)[:, None, :, None]
            index = index.expand(-1, frames, -1, patches.shape[2])
            patches = patches.unflatten(1, (frames, places)).gather(2, index).flatten(1, 2)
            grid = (frames, 1, number)
        cls = (self.cls_token + self.position_embeddings[:, :1]).expand(batch, -1, -1)
        return torch.cat([cls, patches], dim=1), grid, kept


class RegionLearnerAttention(nn.Module):
    """Multi-head self-attention, as in the original's `Interaction`."""

    def __init__(self, config: RegionLearnerVideoConfig, num_heads: int, qkv_bias: bool = True):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.head_dim = config.hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=qkv_bias)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns queries, keys and values (batch, length, H, D / H) of `hidden_states` (batch, length, D)."""
        heads = (*hidden_states.shape[:-1], self.num_heads, self.head_dim)
        query, key, value = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
        return query.view(heads), key.view(heads), value.view(heads)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Runs the attention implementation that the configuration names. `attention_mask` is additive and broadcastable
        to (batch, 1, queries, keys). Returns (batch, queries, D), and the weights if the implementation returns them.
        """
        implementation = self.config._attn_implementation
        if implementation == "sdpa" and _is_slow_if_fused(query, key, self.training):
            implementation = "eager"
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        if attention_mask is not None:
            attention_mask = attention_mask.expand(-1, -1, query.shape[1], -1)
        output, weights = attention_interface(
            self,
            query.transpose(1, 2),  # (batch, H, length, D / H)
            key.transpose(1, 2),
            value.transpose(1, 2),
            attention_mask,
            scaling=self.scaling,
            dropout=0.0,  # not configurable: neither the original nor any recipe here uses dropout in this tower
            **kwargs,
        )
        return output.flatten(2), weights

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        output, weights = self.attend(*self.project(hidden_states), attention_mask, **kwargs)
        return self.out_proj(output), weights


class RegionLearnerZeroLinear(nn.Linear):
    """
    A linear layer that is initialized to zero. (It is a separate class because `_init_weights` of custom code is
    called only for modules that have parameters themselves.)
    """


class RegionLearnerLinear(nn.Linear):
    """
    A linear layer with the default initialization of torch, which depends on the number of inputs. The standard
    deviation of 0.02 that transformers uses suits a width of 768, but makes much narrower layers start nearly linear.
    Phrases and queries have to be nonlinear from the beginning to learn which properties belong together.
    """


class RegionLearnerConv1d(nn.Conv1d):
    """A convolution that is initialized like [`RegionLearnerLinear`]."""


class RegionLearnerMaxMLP(nn.Module):
    """
    Reduces a set of tokens to one vector, with an MLP whose hidden layer takes the maximum over the tokens in each
    channel. Each hidden channel can signal that there is a token with certain properties.
    """

    def __init__(self, width: int, out_width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = RegionLearnerLinear(width, 4 * width)
        self.fc2 = RegionLearnerLinear(4 * width, out_width)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Returns a vector (..., out_width) of the `tokens` (..., n, width) where `mask` (..., n) is True."""
        return self.fc2(_masked_max(F.gelu(self.fc1(self.norm(tokens))), mask))

    @torch.no_grad()
    def start_as_zero(self) -> None:
        """Sets the last layer to zero: added to a trained model, this part has no influence at first."""
        self.fc2.weight.zero_()
        self.fc2.bias.zero_()


class RegionLearnerTubeMLP(nn.Module):
    """
    Reduces the patches of a clip to one vector. A tube is one position of the grid in all frames. Its cosine moments
    over time form one state, and [`RegionLearnerMaxMLP`] reduces the states of all tubes to one vector. Each hidden
    channel can signal that something happens somewhere in a certain order. Not in the original.
    """

    def __init__(self, width: int, out_width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.proj = RegionLearnerLinear(_MOMENTS * width, width)
        self.mlp = RegionLearnerMaxMLP(width, out_width)

    def forward(self, patches: torch.Tensor, frame_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Returns a vector (B, out_width) of `patches` (B, T, h, w, width) in the frames of `frame_mask` (B, T)."""
        moments = _moments(self.norm(patches.flatten(2, 3)), frame_mask)  # (B, 4, h * w, width)
        return self.mlp(self.proj(moments.transpose(1, 2).flatten(2)))


class RegionLearnerDividedAttention(RegionLearnerAttention):
    """
    Attention along one axis of a clip, the original's `VarAttention`. The CLS query attends to every token, a patch
    query to CLS and to its group: the same patch in all frames (`"time"`) or all patches of its frame (`"space"`).

    The output of the attention over time is zero at first, so that a new video model encodes each frame exactly as
    its image model does. Here only the output projection is 0. In the original, queries, keys and values are 0 and the
    output projection is 1: queries and keys then never get a gradient.
    """

    def __init__(self, config: RegionLearnerVideoConfig, axis: str):
        super().__init__(config, config.num_attention_heads)
        self.axis = axis
        if axis == "time":
            self.out_proj = RegionLearnerZeroLinear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        grid: tuple[int, int, int],
        frame_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Returns the output, (B, 1 + T * N, D), and with `output_attentions` and eager attention the weights (B, H,
        1 + T * N, 1 + T * N), otherwise None. `hidden_states`: (B, 1 + T * N, D); `grid`: (T, h, w); `frame_mask`:
        (B, T), True for real frames.
        """
        query, key, value = self.project(hidden_states)
        wants_weights = kwargs.get("output_attentions", self.config.output_attentions)
        if wants_weights and self.config._attn_implementation == "eager":  # others do not return them, and warn
            # A single masked attention over all tokens gives the same output, and its weights are one matrix.
            output, weights = self.attend(query, key, value, self._full_mask(grid, frame_mask, query), **kwargs)
            return self.out_proj(output), weights

        frames, patches = grid[0], grid[1] * grid[2]
        cls_mask, group_mask = None, None
        if frame_mask is not None:
            cls_mask = _additive(self._token_mask(frame_mask, patches), query.dtype)[:, None, None]  # (B, 1, 1, keys)
            if self.axis == "time":  # in space, the patches of a masked frame only attend to each other and CLS
                group_mask = F.pad(_additive(frame_mask, query.dtype), (1, 0))  # (B, 1 + T)
                group_mask = group_mask.repeat_interleave(patches, 0)[:, None, None]  # (B * N, 1, 1, 1 + T)
        cls_output, _ = self.attend(query[:, :1], key, value, cls_mask, **kwargs)

        def to_groups(x: torch.Tensor) -> torch.Tensor:  # (B, groups, tokens per group, H, D / H)
            x = x[:, 1:].unflatten(1, (frames, patches))
            return x.transpose(1, 2) if self.axis == "time" else x

        def with_cls(x: torch.Tensor) -> torch.Tensor:  # (B, groups, 1 + tokens per group, H, D / H)
            groups = to_groups(x)
            return torch.cat([x[:, None, :1].expand(-1, groups.shape[1], -1, -1, -1), groups], dim=2)

        query, key, value = to_groups(query), with_cls(key), with_cls(value)
        output, _ = self.attend(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), group_mask, **kwargs)
        output = output.unflatten(0, query.shape[:2])  # (B, groups, tokens per group, D)
        if self.axis == "time":
            output = output.transpose(1, 2)
        return self.out_proj(torch.cat([cls_output, output.flatten(1, 2)], dim=1)), None

    @staticmethod
    def _token_mask(frame_mask: torch.Tensor, patches: int) -> torch.Tensor:
        """Expands a mask of frames (B, T) to tokens (B, 1 + T * N). CLS is always True."""
        return F.pad(frame_mask.repeat_interleave(patches, 1), (1, 0), value=True)

    def _full_mask(
        self, grid: tuple[int, int, int], frame_mask: torch.Tensor | None, query: torch.Tensor
    ) -> torch.Tensor:
        """Returns an additive mask (B or 1, 1, 1 + T * N, 1 + T * N) that restricts attention to CLS and groups."""
        frames, patches = grid[0], grid[1] * grid[2]
        index = torch.arange(frames * patches, device=query.device)
        group = index % patches if self.axis == "time" else index // patches
        allowed = F.pad(group[:, None] == group[None, :], (1, 0, 1, 0), value=True)[None, None]
        if frame_mask is not None:
            real = self._token_mask(frame_mask, patches)[:, None, None, :]  # (B, 1, 1, 1 + T * N)
            if self.axis == "time":
                allowed = allowed & real
            else:  # patches attend only to their own frame, masked or not
                patch_rows = allowed[:, :, 1:].expand(real.shape[0], -1, -1, -1)
                allowed = torch.cat([allowed[:, :, :1] & real, patch_rows], dim=2)
        return _additive(allowed, query.dtype)


class RegionLearnerMLP(nn.Module):
    """The MLP of a transformer block."""

    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class RegionLearnerVideoLayer(GradientCheckpointingLayer):
    """
    One transformer block, the original's `SpaceTimeBlock`. The output of the attention over space is added to the
    input of the block, not to the output of the attention over time.
    """

    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        self.time_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.time_attention = RegionLearnerDividedAttention(config, axis="time")
        self.space_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.space_attention = RegionLearnerDividedAttention(config, axis="space")
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = RegionLearnerMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        grid: tuple[int, int, int],
        frame_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Returns the output of the block, (B, 1 + T * N, D). `grid` is (T, h, w), and `frame_mask` (B, T)."""
        residual = hidden_states
        over_time, _ = self.time_attention(self.time_norm(hidden_states), grid, frame_mask, **kwargs)
        hidden_states = residual + over_time
        over_space, _ = self.space_attention(self.space_norm(hidden_states), grid, frame_mask, **kwargs)
        hidden_states = residual + over_space
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


def _backward_pass() -> int:
    """Returns the number of the backward pass that is running, such as that of a cached loss; -1 if there is none."""
    return -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()


def _hash_uniform(index: torch.Tensor) -> torch.Tensor:
    """
    Returns pseudo-random numbers in (0, 1), float64, that depend only on `index` (integers): they are the same on
    every device and process, and after a resume. (A 32-bit hash of multiplications and shifts.)
    """
    x = (index + 0x9E3779B9) & 0xFFFFFFFF
    for multiplier in (0x7FEB352D, 0x2C1B3C6D):
        x = (((x >> 16) ^ x) * multiplier) & 0xFFFFFFFF
    x = (x >> 16) ^ x
    if x.device.type == "mps":  # which has no float64: the numbers are rounded to float32
        return _hash_uniform(index.cpu()).float().clamp(max=1 - 2**-24).to(x.device)
    return (x.double() + 0.5) / 2**32


def _initial_codebook(codes: int, channels: int) -> torch.Tensor:
    """Returns the codes (K, D) before the first training step: normally distributed, and always the same."""
    uniform = _hash_uniform(torch.arange(codes * channels))
    return (math.sqrt(2) * torch.erfinv(2 * uniform - 1)).float().view(codes, channels)


class RegionLearnerQuantizer(nn.Module):
    """
    Replaces each feature by the nearest of K codes. Codes get no gradient: they are moving averages of the features
    assigned to them. Corresponds to the original's `Quantize`, whose buffer names it keeps: the codes `embed` (K, D),
    the moving averages `cluster_size` (K,) of their counts and `embed_avg` (K, D) of their sums, and `cluster_sum`
    (K,), a count without decay.

    `codebook_mode="original"` computes what the original does: codes are random at first, have an EMA decay of 0.1,
    and are looked up after their update; unused codes shrink towards zero. "ema" differs on purpose: codes have an EMA
    decay of 0.99, are looked up before their update, and start as features of the first batch (which itself is not
    quantized). A code unused for the last `codebook_revival_after` * K features is revived next to a code in use.

    In training mode, forward passes with gradients collect statistics, and [`update`] applies them to the codes. In a
    single process each forward pass calls it, as BatchNorm updates its statistics; forward passes within a backward
    pass, as in cached losses, call it once, at its end. With several processes, it has to be called once per training
    step, and reduces the statistics over all of them. (In the original, every process has
    a codebook of its own until DDP overwrites it with that of rank 0.)

    The statistics stay in float32 whatever the dtype of the model is. Features that are not finite, for example after
    an overflow in half precision, are not counted.

    Attributes:
        frozen (`bool`): whether training leaves the codes unchanged.
        is_unsaved (`bool`): whether the model has adapters (PEFT) that are saved without the codes. Training then
            leaves the codes unchanged, too. The model that the quantizer belongs to sets this.
        auto_update (`bool`): whether forward passes in a single process update the codes. Set it to False and call
            [`update`] once per step with gradient accumulation, with cached losses if the model is compiled or the
            region module is under reentrant activation checkpointing, or if the region module itself is under
            non-reentrant activation checkpointing, whose second forward pass has to find the same codes.
    """

    embed: torch.Tensor
    embed_avg: torch.Tensor
    cluster_size: torch.Tensor
    cluster_sum: torch.Tensor
    features_unused: torch.Tensor
    num_updates: torch.Tensor

    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        self.mode = config.codebook_mode
        self.decay = config.resolved.codebook_decay
        self.revival_after = config.codebook_revival_after * config.codebook_size
        codes, channels = config.codebook_size, config.hidden_size
        self.register_buffer("embed", _initial_codebook(codes, channels))
        self.register_buffer("embed_avg", _initial_codebook(codes, channels))
        self.register_buffer("cluster_size", torch.zeros(codes, dtype=torch.float32))
        self.register_buffer("cluster_sum", torch.zeros(codes, dtype=torch.float32))
        self.register_buffer("features_unused", torch.zeros(codes, dtype=torch.int64))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.frozen = False
        self.is_unsaved = False
        self.auto_update = True
        self._updates_after: int | None = None  # the backward pass at whose end the codes will be updated
        # Statistics since the last update, (K, 2 D + 2): the count and the sum of each code's features, a candidate
        # feature to move the code to, and the number of passes with such a candidate. DDP would overwrite a buffer.
        self._pending: torch.Tensor | None = None
        self._last_graph: int | None = None

    def _apply(self, fn, recurse=True):
        # `model.to(bfloat16)` must not round the statistics: in bfloat16, small updates would be lost. (They follow
        # the device. `_keep_in_fp32_modules_strict` protects them in `from_pretrained` only.)
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, moved in self._buffers.items():
            if moved.dtype != kept[name].dtype:
                self._buffers[name] = kept[name].to(moved.device)
        return self

    def train(self, mode: bool = True) -> Self:
        if not mode:
            self._warn_of_pending("switched to evaluation mode")
        return super().train(mode)

    def _save_to_state_dict(self, *args, **kwargs):
        self._warn_of_pending("saved")
        super()._save_to_state_dict(*args, **kwargs)

    def _warn_of_pending(self, event: str):
        if self._pending is not None:
            logger.warning_once(
                f"The model is {event}, but its codebook has not learned from the last training passes: with several "
                "processes (or `auto_update=False`), call `model.update_codebook()` after each `optimizer.step()`."
            )

    def forward(self, features: torch.Tensor, valid: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Returns the codes (tokens, D) of `features` (tokens, D), with a straight-through gradient, and the indices of
        the codes (tokens,). `valid`: (tokens,), False for tokens that must not be counted.
        """
        learns = self.training and not (self.frozen or self.is_unsaved)
        collects = learns and self._is_first_pass()
        if collects and self._updates_after not in (None, _backward_pass()):  # that backward pass has failed
            self.discard_pending()
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            observed = features.detach().float()
            if learns:
                # A feature that is not finite, or overflows when squared, would make the averages NaN for good.
                finite = observed.square().sum(1).isfinite()
                observed = torch.where(finite[:, None], observed, 0)
                counted = finite if valid is None else valid & finite
            cluster_ids = self.nearest(observed)
            embed = self.embed
            if collects or (learns and self.mode == "original"):
                counts, sums = self._count(observed, cluster_ids, counted)
                if self.mode == "original":  # the codes after an update with the features of this process
                    *_, embed = self._moved(counts, sums)
            codes = F.embedding(cluster_ids, embed).to(features.dtype)
            if learns and self.mode == "ema":
                codes = torch.where(self.num_updates > 0, codes, features.detach())
            if collects:
                self._collect(counts, sums, observed, counted)
                if self.auto_update and world()[1] == 1:
                    self._update_after_backward()
        return codes + (features - features.detach()), cluster_ids

    def _is_first_pass(self) -> bool:
        """
        Returns whether this forward pass should collect statistics, so that each feature counts once. A pass without
        gradients should not: reentrant activation checkpointing and cached gradients repeat it with gradients. Nor
        should a pass that repeats an earlier one within a backward pass, as in non-reentrant checkpointing.
        """
        if torch.compiler.is_compiling():
            return torch.is_grad_enabled()
        if not torch.is_grad_enabled():
            self._last_graph = None
            return False
        graph = _backward_pass()
        if graph != -1 and self._last_graph not in (None, graph):
            return False
        self._last_graph = graph
        return True

    def _update_after_backward(self):
        """
        Calls [`update`] now, or during a backward pass at its end: cached gradients run several forward passes in a
        backward pass, and all of them should find the same codes.
        """
        backward_pass = _backward_pass()
        if backward_pass == -1:
            self.update()
        elif self._updates_after is None:
            self._updates_after = backward_pass
            torch.autograd.Variable._execution_engine.queue_callback(self.update)

    def nearest(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the index of the nearest code for each of `features` (tokens, D), in bounded memory."""
        half_norms = self.embed.square().sum(1) / 2  # |x - c|^2 / 2 = |c|^2 / 2 - x c + a constant
        if torch.compiler.is_exporting():  # the number of chunks would become part of the program
            return torch.addmm(half_norms, features, self.embed.T, alpha=-1).argmin(1)
        chunks = features.split(max(1, _DISTANCES_AT_ONCE // len(self.embed)))
        return torch.cat([torch.addmm(half_norms, chunk, self.embed.T, alpha=-1).argmin(1) for chunk in chunks])

    def _count(
        self, features: torch.Tensor, cluster_ids: torch.Tensor, valid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the number of valid features assigned to each code (K,), and their sums (K, D)."""
        weights = valid.float()
        counts = torch.zeros_like(self.cluster_size).index_add_(0, cluster_ids, weights)
        sums = torch.zeros_like(self.embed_avg).index_add_(0, cluster_ids, features * weights[:, None])
        return counts, sums

    def _collect(self, counts: torch.Tensor, sums: torch.Tensor, features: torch.Tensor, valid: torch.Tensor):
        """Adds a pass to the pending statistics. The candidate of a code is equally likely to come from any pass."""
        codes, channels = self.embed.shape
        pending = self.embed.new_zeros(codes, 2 * channels + 2) if self._pending is None else self._pending
        before, candidates, passes = pending.to(features.device).split([1 + channels, channels, 1], 1)
        step = self.num_updates + 999_983 * passes.squeeze(1).long()  # different in each pass
        draw = step * codes + torch.arange(codes, device=features.device)
        chosen, found = self._draw_candidates(valid, _hash_uniform(draw))
        passes = passes + found[:, None]
        replaced = (found & (_hash_uniform(draw ^ 0x55555555) * passes.squeeze(1) < 1))[:, None]
        candidates = torch.where(replaced, features[chosen], candidates)
        self._pending = torch.cat([before + torch.cat([counts[:, None], sums], 1), candidates, passes], 1)

    def _draw_candidates(self, valid: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Draws one feature of the global batch for each code: the features are evenly spaced, and each is moved within
        its interval by `uniform` (K,). Returns their indices in `valid` (K,), and whether they are on this process
        (K,).

        Processes do not communicate: each draws for the codes of its own share of the batch, as if all processes had
        the same number of features. If they do, their draws are those of one process with the whole batch.
        """
        rank, processes = world()
        order = valid.long().cumsum(0)  # the n-th valid feature is where this first reaches n
        local = order[-1]
        codes, total = len(uniform), local * processes
        jitter = (uniform * (total // codes).clamp(min=1)).long()
        chosen = torch.arange(codes, device=valid.device) * total // codes + jitter
        chosen = torch.minimum(chosen, total - 1) - rank * local  # counted from this process' first feature
        found = (chosen >= 0) & (chosen < local)
        return torch.searchsorted(order, chosen.clamp(min=0) + 1).clamp(max=len(valid) - 1), found

    @torch.no_grad()
    def update(self):
        """
        Updates the codes with the statistics that forward passes have collected since the last call, in all processes.
        Each process has to call this, even if it has no statistics.
        """
        _, processes = world()
        statistics = self._pending
        self.discard_pending()
        if self.frozen or self.is_unsaved or (statistics is None and processes == 1):
            return
        codes, channels = self.embed.shape
        if statistics is None:
            statistics = self.embed.new_zeros(codes, 2 * channels + 2)
        statistics = statistics.to(self.embed.device)
        statistics[:, -1].clamp_(max=1)
        if processes > 1:
            torch.distributed.all_reduce(statistics)
        counts, sums, candidates, found = statistics.split([1, channels, channels, 1], 1)
        # (If processes have different numbers of features, two may have a candidate for a code: take their mean.)
        counts, candidates, found = counts.squeeze(1), candidates / found.clamp(min=1), found > 0
        total = counts.sum()
        size, average, embed = self._moved(counts, sums)
        unused = torch.where(counts > 0, 0, self.features_unused + total.long())
        if self.mode == "ema":
            starts = (total > 0) & (self.num_updates == 0)
            placed = starts | (found.squeeze(1) & (unused >= self.revival_after) & (self.revival_after > 0))
            # A revived code splits the code nearest to its candidate: it is placed one step away from that code,
            # towards the candidate. On the candidate itself it would attract no other feature: in many dimensions,
            # averages are nearer to all features.
            splits = torch.lerp(F.embedding(self.nearest(candidates), self.embed), candidates, _SPLIT)
            target = torch.where(starts, torch.where(found, candidates, self.embed), splits)
            # As if this many features had been assigned to the code in a single step: few enough that the features
            # assigned to it from now on soon determine its position.
            weight = (1 - self.decay) * torch.where(starts, total / codes, size.mean())
            size = torch.where(placed, weight, size)
            average = torch.where(placed[:, None], target * weight, average)
            embed = torch.where(placed[:, None], target, embed)
            unused = torch.where(placed, 0, unused)
            counts = torch.where(starts, 0, counts)  # they belong to codes that no longer exist
        self.cluster_size.copy_(size)
        self.cluster_sum.add_(counts)
        self.embed_avg.copy_(average)
        self.embed.copy_(embed)
        self.features_unused.copy_(unused)
        self.num_updates.add_((total > 0).long())

    def discard_pending(self):
        """Discards the statistics that forward passes have collected since the last [`update`]."""
        self._pending = None
        self._updates_after = None

    def _moved(self, counts: torch.Tensor, sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Returns the moving averages of counts (K,) and sums (K, D), and the codes (K, D), after a batch with these
        `counts` and `sums`. A batch without features changes nothing.
        """
        size = self.cluster_size * self.decay + counts * (1 - self.decay)
        average = self.embed_avg * self.decay + sums * (1 - self.decay)
        total = size.sum()
        smoothed = (size + 1e-5) / (total + len(size) * 1e-5) * total
        after, before = (size, average, average / smoothed[:, None]), (self.cluster_size, self.embed_avg, self.embed)
        size, average, embed = (torch.where(counts.sum() > 0, new, old) for new, old in zip(after, before))
        return size, average, embed


def _upcast(x: torch.Tensor) -> torch.Tensor:
    """Returns `x` in float32, or in float64 if that is its dtype."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _masked_mean(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Returns the mean (..., D) of `states` (..., n, D) where `mask` (..., n) is True; 0 if it is True nowhere."""
    if mask is None:
        return states.mean(-2)
    weights = mask.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(-2) / weights.sum(-2).clamp(min=1)


def _masked_max(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Returns the maximum (..., D) of `states` (..., n, D) where `mask` (..., n) is True; 0 if it is True nowhere."""
    if mask is None:
        return states.amax(-2)
    highest = states.masked_fill(~mask[..., None], -math.inf).amax(-2)
    return torch.where(mask.any(-1, keepdim=True), highest, 0)


class RegionLearnerMotionExcitation(nn.Module):
    """Weights features by their change since the previous frame. The original's `Motion_Excitation`."""

    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        self.conv = nn.Conv2d(config.hidden_size, 1, kernel_size=3, padding=1)

    def forward(
        self, features: torch.Tensor, frame_mask: torch.Tensor | None = None, grid: _Grid | None = None
    ) -> torch.Tensor:
        """
        Returns the weighted features, of the shape of `features`: (B, T, h, w, D), or with patch dropout
        (B, T, 1, n, D), with their `grid`. The previous frame is the last one before it that is not masked.
        """
        if frame_mask is None and not torch.compiler.is_exporting():
            difference = torch.cat([torch.zeros_like(features[:, :1]), features[:, 1:] - features[:, :-1]], dim=1)
        else:  # without slices of T - 1 frames, which cannot be exported with a dynamic T
            frames = torch.arange(features.shape[1], device=features.device)
            real = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
            real = real if frame_mask is None else frame_mask
            earlier = real[:, None] & (frames < frames[:, None])  # (B, T, T)
            previous = torch.where(earlier, frames, -1).amax(-1)
            previous = torch.where(previous < 0, frames, previous)  # without a previous frame the difference is 0
            batch = torch.arange(features.shape[0], device=features.device)[:, None]
            difference = features - features[batch, previous]
        difference = difference if grid is None else grid.scatter(difference)
        logits = self.conv(difference.flatten(0, 1).permute(0, 3, 1, 2))  # (B * T, 1, h, w)
        logits = logits if grid is None else grid.gather(logits)
        weights = logits.flatten(1).softmax(-1).view(*features.shape[:-1], 1)  # (B, T, h, w, 1)
        return weights * features


class RegionLearnerAggregation(GradientCheckpointingLayer):
    """
    Pools each frame into S regions with learned masks. The original's `Aggregation`, in which masks have any sign and
    a region is the mean over positions of mask * feature.

    Beyond the original, there are masks that are normalized over positions or over regions; pooling of other values
    than those that the masks are computed from; pooling by a maximum or a soft maximum, which keeps small objects that
    a mean would dilute; and a loss that makes the masks partition a clip.
    """

    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        options = config.resolved.region_options
        self.normalization = options.mask_normalization
        self.pooling = options.pooling
        self.sharpness = options.pooling_sharpness
        self.has_loss = options.mask_loss_weight > 0
        bias = options.mask_normalization != "positions"  # a softmax over positions cancels a bias
        self.conv = nn.Conv2d(config.hidden_size, config.num_regions, kernel_size=3, padding=1, bias=bias)

    def forward(
        self,
        features: torch.Tensor,
        values: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        grid: _Grid | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """
        Computes masks from `features` (B, T, h, w, D) and pools `values` (B, T, h, w, D) with them. `frame_mask`:
        (B, T). Returns the regions (B, T * S, D), the masks (B, T, S, h, w), and the loss of each clip (B,). With
        patch dropout, h = 1, w = n, and `grid` holds the positions of the n patches. The convolution treats dropped
        patches like padding.
        """
        batch, frames, height, width, _ = features.shape
        features = features if grid is None else grid.scatter(features)
        masks = self.conv(features.flatten(0, 1).permute(0, 3, 1, 2))  # (B * T, S, h, w)
        masks = (masks if grid is None else grid.gather(masks)).flatten(2)
        values = values.flatten(0, 1).flatten(1, 2)  # (B * T, h * w, D)
        if self.normalization == "regions":
            masks = masks.log_softmax(1)  # log of each region's share of a position: the share itself could underflow
        log_masks = masks.log_softmax(-1) if self.normalization == "positions" else masks
        if self.normalization != "none":
            masks = masks.softmax(-1) * (height * width)
        loss = None
        if self.has_loss:
            shares, content = (x.unflatten(0, (batch, frames)) for x in (log_masks.exp(), values))
            loss = self._partition_loss(shares, content, frame_mask)
        if self.pooling == "softmax" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # The five tensors of the size of `values` that its backward pass needs are computed again instead of kept.
            regions = checkpoint(self._softmax_pool, masks, values, use_reentrant=False, preserve_rng_state=False)
        elif self.pooling == "softmax":
            regions = self._softmax_pool(masks, values)
        elif self.pooling == "max":  # one region at a time, so that (B * T, S, h * w, D) is never in memory
            offsets = log_masks.to(values.dtype).unsqueeze(-1).unbind(1)  # S tensors (B * T, h * w, 1)
            regions = torch.stack([(values + offset).max(1).values for offset in offsets], dim=1)  # (B * T, S, D)
        else:
            regions = masks.to(values.dtype) @ values / (height * width)
        masks = masks.unflatten(2, (height, width)).unflatten(0, (batch, frames))
        return regions.unflatten(0, (batch, frames)).flatten(1, 2), masks, loss

    def _softmax_pool(self, masks: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """
        Returns regions (B * T, S, D): in each channel, the mean of `values` (B * T, h * w, D) over positions, weighted
        by mask * exp(sharpness * z). Here z is the values after a LayerNorm, minus the mean of each channel over the
        frame, divided by the standard deviation of the result, so that channels that are large everywhere, as in large
        encoders, do not blur the others.
        """
        with torch.autocast(values.device.type, enabled=False):
            precise = _upcast(values)
            scaled = F.layer_norm(precise, precise.shape[-1:])
            scaled = scaled - scaled.mean(1, keepdim=True)
            scaled = self.sharpness * scaled * torch.rsqrt(scaled.square().mean((1, 2), keepdim=True) + 1e-6)
            # A small constant, because all weights of a channel may underflow within a mask.
            weights = torch.exp(scaled - scaled.amax(1, keepdim=True).detach()) + 1e-30  # (B * T, h * w, D)
            masks = _upcast(masks)  # their scale cancels in the quotient
            regions = (masks @ (weights * precise)) / (masks @ weights)
        return regions.to(values.dtype)

    def _partition_loss(
        self, shares: torch.Tensor, content: torch.Tensor, frame_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """
        Returns a soft k-means loss (B,) of the regions' `shares` (B, T, S, h * w) of each position and the features
        `content` (B, T, h * w, D): the squared distances of features to the mean of their region, divided by their
        squared distances to the mean of the clip. It is 0 if all features of a region are equal, and 1 if all regions
        have the same mean. Features are normalized first, and means are taken over all frames, so that a region
        follows the same content through the clip. `content` gets no gradient, because the encoder would only learn to
        make features more alike.
        """
        with torch.autocast(content.device.type, enabled=False):
            values = _upcast(content.detach())
            values = F.layer_norm(values, values.shape[-1:])
            shares = _upcast(shares)
            if frame_mask is None:
                values = values - values.mean((1, 2), keepdim=True)
            else:
                real = frame_mask[:, :, None, None].to(values.dtype)
                shares, values = shares * real, values * real
                count = real.sum(1, keepdim=True).clamp(min=1) * values.shape[2]
                values = (values - values.sum((1, 2), keepdim=True) / count) * real
            total = values.square().sum((1, 2, 3))
            # sum of share x |value - mean|^2 = sum of share x |value|^2 - |sum of share x value|^2 / sum of share
            between = (shares @ values).sum(1).square().sum(-1) / shares.sum((1, 3)).clamp(min=1e-6)  # (B, S)
            return (total - between.sum(1)).clamp(min=0) / total.clamp(min=1e-6)


def _moments(found: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
    """
    Returns the first four cosine moments over time (as in a discrete cosine transform) of `found` (B, T, ...):
    (B, 4, ...). The first of them is the mean. `frame_mask`: (B, T). Masked frames are skipped, as if the clip did not
    contain them. A clip of fewer than four frames has only as many moments as frames; the others are 0.
    """
    dtype = torch.promote_types(found.dtype, torch.float32)
    real = found.new_ones(found.shape[:2], dtype=dtype) if frame_mask is None else frame_mask.to(dtype)
    count = real.sum(1)[:, None, None].clamp(min=1)
    time = (real.cumsum(1)[:, None] - 0.5) / count  # (B, 1, T), the middle of each frame, from 0 to 1
    order = torch.arange(_MOMENTS, device=found.device)[None, :, None]
    scale = torch.where(order == 0, 1.0, math.sqrt(2))
    basis = torch.where(order < count, scale * torch.cos(math.pi * order * time), 0) * real[:, None] / count
    return torch.einsum("bmt,bt...->bm...", basis.to(found.dtype), found)


def _cell_centers(cells: int) -> torch.Tensor:
    """Returns the row and column of the centers of the cells of a grid that is as square as possible: (cells, 2)."""
    rows = max(divisor for divisor in range(1, math.isqrt(cells) + 1) if cells % divisor == 0)
    sides = [(2 * torch.arange(n) + 1) / n - 1 for n in (rows, cells // rows)]
    return torch.stack(torch.meshgrid(*sides, indexing="ij"), -1).flatten(0, 1)


class RegionLearnerQueries(GradientCheckpointingLayer):
    """
    Pools a clip into S regions. Each of S learned queries attends to the patches of every frame, as in DETR or a
    Perceiver, and can thus follow an object through the clip. Not in the original.

    The results of a query in the T frames are not averaged, because an average loses their order in time. Instead, a
    region is computed from their first four cosine moments over time (as in a discrete cosine transform), the first of
    which is the mean. The moments are defined for any number of frames, and lose nothing for up to four frames. The
    results of a query do not say where its object moves, so a region also depends on the same moments of the centers
    of the query's masks.

    With `pooling="tracking"`, each query starts at a place of its own, the center of a cell of a grid, and follows
    what it finds there. Without places, all queries may miss the same object.
    """

    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.interaction_heads
        self.queries = nn.Parameter(torch.zeros(1, config.num_regions, width))
        self.query_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.key_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.value_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.q_proj = RegionLearnerLinear(width, width, bias=False)
        self.k_proj = RegionLearnerLinear(width, width, bias=False)
        self.v_proj = RegionLearnerLinear(width, width, bias=False)
        self.out_proj = RegionLearnerLinear(_MOMENTS * width, width)
        self.path_proj = RegionLearnerLinear(_MOMENTS * 2, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.fc1 = RegionLearnerLinear(width, config.intermediate_size)
        self.fc2 = RegionLearnerLinear(config.intermediate_size, width)
        self.activation = ACT2FN[config.hidden_act]
        self.follows = config.resolved.region_options.pooling == "tracking"
        if self.follows:
            self.anchors = nn.Parameter(_cell_centers(config.num_regions))  # (S, 2): row and column, from -1 to 1
            self.nearness = nn.Parameter(torch.full((self.num_heads,), _NEARNESS))

    def forward(
        self,
        features: torch.Tensor,
        values: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        grid: _Grid | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """
        Attends to `features` (B, T, h, w, D) and pools `values` (B, T, h, w, D). `frame_mask`: (B, T). Returns the
        regions (B, S, D); the masks (B, T, S, h, w); and None, as there is no loss. The masks are the mean of the
        attention over heads, scaled to a mean of 1 over each frame. With patch dropout, `grid` holds the positions of
        the patches.
        """
        frames, height, width = features.shape[1:4]
        places = self._places(height, width, grid, _upcast(features[:0]))
        weights = self.attend(features, places, frame_mask)
        value = self._heads(self.v_proj(self.value_norm(values.flatten(1, 3)))).unflatten(2, (frames, -1))
        found = weights.to(value.dtype) @ value  # (B, H, T, S, D / H)
        moments = _moments(found.transpose(1, 2), frame_mask)  # (B, 4, H, S, D / H)
        masks = weights.mean(1)  # (B, T, S, h * w)
        path = self.path(weights, masks, places, frame_mask)
        regions = self.queries + self.out_proj(moments.permute(0, 3, 1, 2, 4).flatten(2))
        regions = regions + self.path_proj(path.to(regions.dtype))
        regions = regions + self.fc2(self.activation(self.fc1(self.mlp_norm(regions))))
        return regions, masks.unflatten(3, (height, width)) * (height * width), None

    def path(
        self, weights: torch.Tensor, masks: torch.Tensor, places: torch.Tensor, frame_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """
        Returns the scaled moments (B, S, 4 * 2) of the centers of `masks` (B, T, S, h * w), the mean over heads of
        `weights` (B, H, T, S, h * w).
        """
        centers = masks @ places  # (B, T, S, 2)
        return _PATH_SCALE * _moments(centers, frame_mask).transpose(1, 2).flatten(2)

    def attend(
        self, features: torch.Tensor, places: torch.Tensor, frame_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Returns the weight of each patch for each query, (B, H, T, S, h * w); the weights in a frame sum to 1."""
        query = self._heads(self.q_proj(self.query_norm(self.queries)))  # (1, H, S, D / H)
        key = self._heads(self.k_proj(self.key_norm(features.flatten(1, 3))))  # (B, H, T * h * w, D / H)
        scores = _upcast(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5)
        scores = scores.unflatten(3, (features.shape[1], -1)).transpose(2, 3)
        return self._follow(scores, places, frame_mask) if self.follows else scores.softmax(-1)

    def _follow(self, scores: torch.Tensor, places: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
        """
        Returns the softmax of `scores` (B, H, T, S, h * w) minus nearness * distance^2. The distance is that of a
        patch from the center of the query's mask in the previous frame, or from its anchor in the first frame. Masked
        frames do not move the center.
        """
        frames = scores.shape[2]
        if torch.compiler.is_exporting():  # a loop cannot have a dynamic length
            scores = F.pad(scores, (0, 0, 0, 0, 0, _EXPORTED_FRAMES - frames))
            frame_mask = None if frame_mask is None else F.pad(frame_mask, (0, _EXPORTED_FRAMES - frames))
        centers = _upcast(self.anchors).expand(scores.shape[0], -1, -1)  # (B, S, 2)
        nearness = _upcast(self.nearness)[:, None, None]
        found = []
        for frame, of_frame in enumerate(scores.unbind(2)):
            far = (centers[:, :, None] - places).square().sum(-1).clamp(max=_MAX_SQUARED_DISTANCE)  # (B, S, h * w)
            weights = (of_frame - nearness * far[:, None]).softmax(-1)
            found.append(weights)
            moved = weights.mean(1) @ (places if places.ndim == 2 else places.squeeze(1))
            centers = moved if frame_mask is None else torch.where(frame_mask[:, frame, None, None], moved, centers)
        return torch.stack(found, 2)[:, :, :frames]

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """Splits the last axis of `x` (B, n, D) into heads: (B, H, n, D / H)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _places(self, height: int, width: int, grid: _Grid | None, like: torch.Tensor) -> torch.Tensor:
        """Returns the row and column of the center of each patch, from -1 to 1: (h * w, 2) or (B, 1, n, 2)."""
        if grid is not None:
            height, width = grid.height, grid.width
        rows, columns = (
            (2 * torch.arange(n, device=like.device, dtype=like.dtype) + 1) / n - 1 for n in (height, width)
        )
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
        return places if grid is None else places[grid.kept][:, None]


class RegionLearnerInteractionLayer(nn.Module):
    """
    Self-attention over all regions of a clip, the original's `Interaction`. Beyond the original: several layers (which
    crash there), and optionally a residual connection, a LayerNorm and an MLP.
    """

    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        options = config.resolved.region_options
        self.residual = options.interaction_residual
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm = norm if options.interaction_norm else nn.Identity()
        self.attention = RegionLearnerAttention(config, config.interaction_heads, qkv_bias=False)
        self.mlp = None
        if options.interaction_mlp:
            norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.mlp = nn.Sequential(norm, RegionLearnerMLP(config))

    def forward(self, regions: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Returns regions of the shape of `regions`, (B, T * S, D). `attention_mask`: additive, (B, 1, 1, T * S)."""
        output, _ = self.attention(self.norm(regions), attention_mask)
        if self.residual:
            output = regions + output
        return output if self.mlp is None else output + self.mlp(output)


class RegionLearnerRegionModule(nn.Module):
    """
    The original's `RegionLearner`: quantizes the patches, pools them with learned masks into a few regions per frame,
    and lets the regions of a clip interact. A size of 0 in the configuration leaves out a step; if all are left out,
    the patches pass unchanged. (In the original, leaving out quantization leaves out everything.)
    """

    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        options = config.resolved.region_options
        self.values = options.values
        self.detach_masks = options.detach_masks
        self.quantizer = RegionLearnerQuantizer(config) if config.codebook_size else None
        self.motion_excitation = RegionLearnerMotionExcitation(config) if config.motion_excitation else None
        # Whether a region belongs to the whole clip instead of one frame.
        self.gathers_clips = bool(config.num_regions) and options.pooling in CLIP_POOLINGS
        aggregation = RegionLearnerQueries if self.gathers_clips else RegionLearnerAggregation
        self.aggregation = aggregation(config) if config.num_regions else None
        self.interaction = nn.ModuleList(
            [RegionLearnerInteractionLayer(config) for _ in range(config.interaction_layers)]
        )

    def forward(
        self,
        features: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        temporal_embeddings: torch.Tensor | None = None,
        grid: _Grid | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """
        Returns the regions (B, T * S, D), or without aggregation the patches (B, T * N, D); the masks (B, T, S, h, w);
        the indices of the codes (B, T, h, w); and the loss of the masks, (B,). Masks are 0, and indices -1, where
        patch dropout left out patches; masks are also 0 in masked frames. `features`: (B, T, h, w, D), or with patch
        dropout (B, T, 1, n, D), with their `grid`; `frame_mask`: (B, T); `temporal_embeddings`: (1, at least T, D),
        added to the regions before they interact, or None.
        """
        states, masks, cluster_ids, loss = features, None, None, None
        if self.quantizer is not None:
            valid = None if frame_mask is None else frame_mask[:, :, None, None].expand(features.shape[:-1]).flatten()
            states, cluster_ids = self.quantizer(features.flatten(0, 3), valid)
            states, cluster_ids = states.view_as(features), cluster_ids.view(features.shape[:-1])
            cluster_ids = cluster_ids if grid is None else grid.scatter(cluster_ids, fill=-1)
        values = features if self.values == "features" and self.aggregation is not None else states
        if self.motion_excitation is not None and features.shape[1] > 1:
            motion = self.motion_excitation(features, frame_mask, grid)
            if torch.compiler.is_exporting():  # an exported program also has to accept single frames
                motion = motion * (torch.arange(features.shape[1], device=motion.device)[-1] > 0)
            states, values = states + motion, values + motion
        positions = None if temporal_embeddings is None else temporal_embeddings[:, : features.shape[1]]  # (1, T, D)
        if self.gathers_clips and positions is not None:
            states, values = states + positions[:, :, None, None], values + positions[:, :, None, None]
        if self.aggregation is None:
            states = states.flatten(1, 3)
        else:
            states, masks, loss = self.aggregation(
                states.detach() if self.detach_masks else states, values, frame_mask, grid
            )
            masks = masks if grid is None else grid.scatter(masks.permute(0, 1, 3, 4, 2)).permute(0, 1, 4, 2, 3)
            masks = masks if frame_mask is None else masks.masked_fill(~frame_mask[:, :, None, None, None], 0)
        if not self.gathers_clips and positions is not None:
            states = (states.unflatten(1, (features.shape[1], -1)) + positions[:, :, None]).flatten(1, 2)
        if masks is None:
            return states, masks, cluster_ids, loss
        attention_mask = None
        if frame_mask is not None and not self.gathers_clips:
            attention_mask = _additive(frame_mask.repeat_interleave(masks.shape[2], 1), states.dtype)[:, None, None]
        for layer in self.interaction:
            states = layer(states, attention_mask)
        return states, masks, cluster_ids, loss


class RegionLearnerTemporalFusion(nn.Module):
    """
    Late fusion: the feature of a clip is the mean of the features of its frames ("pool"), or a linear layer of their
    concatenation ("linear"). These are the original's `temporal_type` "late_fusion_pool" and "late_fusion_fc", in
    which, as here, each frame is encoded on its own at the first temporal position, and only regions interact over
    frames.

    "linear" differs on purpose: masked and missing frames are zeros (the original crashes), and the layer starts as
    the mean over frames, which the encoder and the projection were trained with (the original starts at random).
    """

    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        self.num_frames = config.num_frames
        size, linear = config.hidden_size, config.resolved.temporal_fusion == "linear"
        self.weight = nn.Parameter(torch.zeros(size, config.num_frames * size)) if linear else None
        self.bias = nn.Parameter(torch.zeros(size)) if linear else None

    def forward(self, frame_features: torch.Tensor, frame_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Returns clip features (B, D). `frame_features`: (B, T, D); `frame_mask`: (B, T), True for real frames."""
        if frame_mask is not None:
            frame_features = frame_features.masked_fill(~frame_mask[:, :, None], 0)
        if self.weight is not None:
            missing = self.num_frames - frame_features.shape[1]
            return F.linear(F.pad(frame_features, (0, 0, 0, missing)).flatten(1), self.weight, self.bias)
        return _masked_mean(frame_features, frame_mask)

    def resize_(self, num_frames: int, fill: str):
        """
        Resizes the weights to `num_frames` frames. "zeros" appends zeros, so that shorter clips keep their features;
        "nearest" and "bilinear" stretch the weights, and correct them so that a still clip keeps its feature.
        """
        if self.weight is not None:
            old = self.weight.detach().unflatten(1, (self.num_frames, -1))  # (D, T, D)
            new = _resize_frame_axis(old, num_frames, fill)
            if fill != "zeros":
                new = new * (self.num_frames / num_frames)
                new = new + (old.sum(1, keepdim=True) - new.sum(1, keepdim=True)) / num_frames
            self.weight = nn.Parameter(new.flatten(1).contiguous(), requires_grad=self.weight.requires_grad)
        self.num_frames = num_frames


class RegionLearnerPreTrainedModel(PreTrainedModel):
    """
    Base class of all models. It loads and saves them as transformers does, resizes the number of frames, and updates
    the codebook.
    """

    config: RegionLearnerConfig
    base_model_prefix = "region_learner"
    input_modalities = ["video", "text"]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # otherwise the Trainer would not divide the loss by its accumulation steps
    _no_split_modules = ["RegionLearnerVideoEmbeddings", "RegionLearnerVideoLayer", "RegionLearnerRegionModule"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": RegionLearnerVideoLayer,
        "attentions": OutputRecorder(RegionLearnerDividedAttention, index=1, layer_name="space_attention"),
    }

    if TYPE_CHECKING:  # transformers' methods return Any

        def eval(self) -> Self: ...

        def to(self, *args: Any, **kwargs: Any) -> Self: ...

    def __init__(self, config: RegionLearnerConfig | RegionLearnerVideoConfig, *inputs, **kwargs):
        super().__init__(config, *inputs, **kwargs)
        config.validate_architecture()  # fields may have been set since the configuration was made

    @property
    def quantizer(self) -> RegionLearnerQuantizer | None:
        """The quantizer of the video tower; None without a codebook."""
        tower: Any = getattr(self, "video_model", self)
        module = tower.region_module.quantizer
        if hasattr(module, "modules_to_save"):  # PEFT's wrapper, with a copy for each adapter that trains it
            names = [] if module.disable_adapters else module.active_adapters
            copies = [module.modules_to_save[name] for name in names if name in module.modules_to_save]
            return copies[0] if copies else module.original_module
        return module

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any):
        """Saves the model together with the files of its code, so that each of the Auto classes can load it."""
        if self._auto_class is not None and isinstance(self.config, RegionLearnerConfig):
            module = __name__.rpartition(".")[2]
            self.config.auto_map = {name: f"{module}.{found}" for name, found in _AUTO_CLASSES.items()}
            if isinstance(self, RegionLearnerForVideoClassification):  # for AutoProcessor, if no other one is saved
                self.config.processor_class = "RegionLearnerVideoProcessor"
        return super().save_pretrained(save_directory, *args, **kwargs)

    # Adapters (PEFT)

    _has_had_adapters = False

    def __setattr__(self, name: str, value: Any):
        super().__setattr__(name, value)
        if name == "peft_config":  # set by `get_peft_model` and `add_adapter`
            self._has_had_adapters = True
            self._hold_unsaved_codebooks()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self._has_had_adapters:  # they may have been added, merged or deleted since
            self._hold_unsaved_codebooks()
        return self

    def _hold_unsaved_codebooks(self):
        """
        Keeps training from changing a codebook that is not saved with the adapters. The adapters are later loaded into
        the model with the old codes, and would not fit them. PEFT saves only the buffers in its `modules_to_save`.
        """
        modules = dict(self.named_modules())
        # The layers of PEFT remain when the last adapter is deleted.
        is_adapted = any(
            len(getattr(module, name, ())) > 0
            for module in modules.values()
            for name in getattr(module, "adapter_layer_names", ())
        )
        for name, module in modules.items():
            if isinstance(module, RegionLearnerQuantizer):
                module.is_unsaved = is_adapted and ".modules_to_save." not in name
        if self.training and self.quantizer is not None and self.quantizer.is_unsaved and not self.quantizer.frozen:
            logger.warning_once(
                "The codebook is frozen because adapters (PEFT) are saved without it. To train it as well, use "
                'LoraConfig(..., modules_to_save=["quantizer"]).'
            )

    def update_codebook(self):
        """
        Updates the codebook with the features of the training passes since the last call, in all processes. Each
        process has to call this once per training step, after `optimizer.step()`. [`RegionLearnerTrainer`] does this
        itself, and in a single process the forward passes do. Without a codebook, or with a frozen one, this does
        nothing.
        """
        if self.quantizer is not None:
            self.quantizer.update()

    def resize_frames(self, num_frames: int, fill: str = "zeros") -> Self:
        """
        Returns a copy of this model that takes up to `num_frames` frames.

        Args:
            num_frames (`int`): number of temporal positions of the copy.
            fill (`str`, defaults to `"zeros"`): "zeros" keeps the positions and appends zeros, or drops the last
                ones; "nearest" and "bilinear" interpolate them. The weights of a "linear" temporal fusion are resized
                in the same way.

        Raises:
            ValueError: `num_frames` is less than 1, or `fill` is not known.

        Example:

        ```python
        >>> model = model.resize_frames(8)
        >>> model.config.video_config.num_frames
        8
        ```
        """
        if num_frames < 1:
            raise ValueError(f"num_frames={num_frames} must be at least 1.")
        if fill not in ("zeros", "nearest", "bilinear"):
            raise ValueError(f"fill={fill!r} is not known; choose one of 'zeros', 'nearest', 'bilinear'.")
        # Unlike a new model, a deep copy keeps dtypes, devices, frozen and quantized weights, and adapters.
        model = copy.deepcopy(self)
        tower: Any = getattr(model, "video_model", model)
        holder = tower if tower.embeddings is None else tower.embeddings
        old = holder.temporal_embeddings
        if old is not None:
            new = _resize_frame_axis(old.detach(), num_frames, fill).clone()
            holder.temporal_embeddings = nn.Parameter(new, requires_grad=old.requires_grad)
        if tower.temporal_fusion is not None:
            tower.temporal_fusion.resize_(num_frames, fill)
        tower.config.num_frames = num_frames
        if tower is not model:
            model.config.video_config = tower.config
        return model

    def _set_gradient_checkpointing(self, enable: bool = True, **kwargs):
        super()._set_gradient_checkpointing(enable, **kwargs)
        backbone: Any = getattr(getattr(self, "video_model", self), "backbone", None)
        if hasattr(backbone, "timm_model"):  # the line above does not find its layers
            backbone._set_gradient_checkpointing(enable)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, RegionLearnerVideoEmbeddings):
            init.normal_(module.cls_token, std=std)
            init.normal_(module.position_embeddings, std=std)
            init.zeros_(module.temporal_embeddings)
        elif isinstance(module, RegionLearnerZeroLinear):
            init.zeros_(module.weight)
        elif isinstance(module, (RegionLearnerLinear, RegionLearnerConv1d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif isinstance(module, RegionLearnerQueries):
            init.normal_(module.queries, std=0.5)
            if module.follows:
                init.copy_(module.anchors, _cell_centers(len(module.anchors)))
                init.constant_(module.nearness, _NEARNESS)
        elif isinstance(module, RegionLearnerVideoModel) and module.temporal_embeddings is not None:
            # Regions have a variance of about 1. With the usual 0.02, the order of frames is learned half as fast.
            init.normal_(module.temporal_embeddings, std=0.2)
        elif isinstance(module, RegionLearnerTemporalFusion) and module.weight is not None:
            mean = torch.eye(len(module.weight)).repeat(1, module.num_frames) / module.num_frames
            init.copy_(module.weight, mean)
            init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, RegionLearnerWeightNormLinear):  # keeps the scale of its input
            outputs, inputs = module.weight.shape
            init.normal_(module.weight, std=inputs**-0.5)
            init.constant_(module.scale, outputs**0.5)
            init.zeros_(module.bias)
        elif isinstance(module, RegionLearnerQuantizer):
            codebook = _initial_codebook(*module.embed.shape)
            init.copy_(module.embed, codebook)
            init.copy_(module.embed_avg, codebook)
            for name in ("cluster_size", "cluster_sum", "features_unused", "num_updates"):
                init.zeros_(getattr(module, name))
        elif isinstance(module, RegionLearnerModel):
            if module.logit_scale is not None:
                init.constant_(module.logit_scale, -math.log(module.config.temperature))
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, float(module.config.sigmoid_bias))
            if module.token_logit_scale is not None:
                init.constant_(module.token_logit_scale, -math.log(module.config.token_temperature))


def _resize_frame_axis(x: torch.Tensor, num_frames: int, fill: str) -> torch.Tensor:
    """Returns `x` (any, T, any) with `num_frames` frames, (any, num_frames, any)."""
    if fill == "zeros":
        return F.pad(x[:, :num_frames], (0, 0, 0, max(0, num_frames - x.shape[1])))
    options = {"mode": "nearest"} if fill == "nearest" else {"mode": "linear", "align_corners": True}
    return F.interpolate(x.float().transpose(1, 2), size=num_frames, **options).transpose(1, 2).to(x.dtype)


# Classes that `AutoModel` does not know.
_NOT_IN_AUTO_MODEL = {
    "siglip_text_model": "SiglipTextModel",
    "siglip2_text_model": "Siglip2TextModel",
    "metaclip_2_text_model": "MetaClip2TextModel",
    "metaclip_2_vision_model": "MetaClip2VisionModel",
}


def _from_config(config: PreTrainedConfig, pooling_layer: bool) -> PreTrainedModel:
    """Returns a new text or image model, which has its own pooling layer only if `pooling_layer` is True."""
    if name := _NOT_IN_AUTO_MODEL.get(config.model_type):
        return getattr(transformers, name)._from_config(config)
    try:
        return AutoModel.from_config(config, add_pooling_layer=pooling_layer)
    except TypeError:  # most classes do not have this argument
        return AutoModel.from_config(config)


class RegionLearnerVideoModel(RegionLearnerPreTrainedModel):
    """
    The video tower: divided space-time ViT and region module, the original's `SpaceTimeTransformer`.

    With a `backbone_config`, an image model encodes each frame instead. The feature of a clip is then the mean of the
    frames' pooled states, to which a layer that is initialized with zeros adds the regions. Only the regions model
    time: they get temporal positions, and interact over all frames.
    """

    config: RegionLearnerVideoConfig  # type: ignore[assignment]
    base_model_prefix = "video_model"
    main_input_name = "pixel_values_videos"
    input_modalities = ["video"]

    if TYPE_CHECKING:  # torch's `__call__` returns Any

        def __call__(self, *args: Any, **kwargs: Any) -> RegionLearnerVideoOutput: ...

    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__(config)
        if config.codebook_size:
            # By name: "quantizer" would convert its integer counters to float, too.
            statistics = ("embed", "embed_avg", "cluster_size", "cluster_sum")
            self._keep_in_fp32_modules_strict = [f"quantizer.{name}" for name in statistics]
        self.backbone = self.embeddings = self.temporal_embeddings = self.region_projection = None
        self.layernorm: nn.Module = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.backbone_config is None:
            self.embeddings = RegionLearnerVideoEmbeddings(config)
            self.pre_layernorm = (
                nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.pre_layernorm else nn.Identity()
            )
            self.layers = nn.ModuleList([RegionLearnerVideoLayer(config) for _ in range(config.num_hidden_layers)])
        else:
            self.backbone = _build_backbone(config)
            if config.codebook_size or config.num_regions:
                self.temporal_embeddings = nn.Parameter(torch.zeros(1, config.num_frames, config.hidden_size))
                if config.resolved.video_pooling != "cls":
                    self.region_projection = RegionLearnerZeroLinear(config.hidden_size, config.hidden_size)
            else:
                self.layernorm = nn.Identity()
        self.region_module = RegionLearnerRegionModule(config)
        self.pooling = config.resolved.video_pooling
        fusion = config.resolved.temporal_fusion
        self.temporal_fusion = RegionLearnerTemporalFusion(config) if fusion != "attention" else None
        self.post_init()

    @property
    def max_frames(self) -> int | None:
        """The maximum number of frames per clip, one per temporal position; None if frames are only averaged."""
        only_averages = self.backbone is not None and self.temporal_embeddings is None
        return None if only_averages and self.config.resolved.temporal_fusion == "pool" else self.config.num_frames

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding if self.backbone is None else self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        if self.backbone is None:
            self.embeddings.patch_embedding = value  # type: ignore[assignment]
        else:
            self.backbone.set_input_embeddings(value)

    def _pooled_tokens(self, tokens: torch.Tensor, last_patches: torch.Tensor) -> torch.Tensor:
        """Returns the states (B, n, D) that are pooled: `tokens` (B, n, D), or `last_patches` (B, T, h, w, D)."""
        return self.layernorm(last_patches.flatten(1, 3)) if self.pooling == "cls_patch_max" else tokens

    def _pool(
        self, cls: torch.Tensor, tokens: torch.Tensor, frames: int, frame_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """
        Returns the video feature (B, D) of the CLS states (B, 1, D), in late fusion (B, T, D), and the states
        `tokens` (B, n, D) of regions or patches.
        """
        if self.region_module.gathers_clips and self.pooling != "cls_patch_max":
            fused = cls.squeeze(1) if self.temporal_fusion is None else self.temporal_fusion(cls, frame_mask)
            return self._pool_tokens(fused, tokens)
        if self.temporal_fusion is not None:
            return self.temporal_fusion(self._pool_tokens(cls, tokens.unflatten(1, (frames, -1))), frame_mask)
        real = None if frame_mask is None else frame_mask.repeat_interleave(tokens.shape[1] // frames, 1)  # (B, n)
        return self._pool_tokens(cls.squeeze(1), tokens, real)

    def _pool_tokens(self, cls: torch.Tensor, tokens: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
        """Returns one feature (..., D) of the CLS state (..., D) and those `tokens` (..., n, D) that are `real`."""
        if self.pooling == "cls":
            return cls
        if self.pooling == "cls_mean":
            pooled = _masked_mean(tokens, real)
        else:
            pooled = _masked_max(tokens, real)
        return cls + (pooled if self.region_projection is None else self.region_projection(pooled))

    def _check_inputs(self, pixel_values_videos: torch.Tensor | None, frame_mask: torch.Tensor | None):
        if self.backbone is not None and pixel_values_videos is not None and pixel_values_videos.ndim == 4:
            width = self.config.hidden_size
            if pixel_values_videos.shape[-1] != width:
                raise ValueError(
                    f"Features of a backbone must be of shape (batch, frames, 1 + patches, {width}), not "
                    f"{tuple(pixel_values_videos.shape)}; images are clips of one frame: `pixel_values.unsqueeze(1)`."
                )
        elif pixel_values_videos is None or pixel_values_videos.ndim != 5:
            shape = None if pixel_values_videos is None else tuple(pixel_values_videos.shape)
            raise ValueError(
                f"pixel_values_videos must be of shape (batch, frames, channels, height, width), not {shape}; "
                "images are clips of one frame: `pixel_values.unsqueeze(1)`."
            )
        frames, most = pixel_values_videos.shape[1], self.max_frames
        if most is not None and frames > most:
            raise ValueError(
                f"The clips have {frames} frames, but the model has {most} temporal positions: sample fewer "
                f"frames, or use `model = model.resize_frames({frames})`."
            )
        if frame_mask is not None and frame_mask.shape != pixel_values_videos.shape[:2]:
            raise ValueError(
                f"frame_mask must be of shape (batch, frames) = {tuple(pixel_values_videos.shape[:2])}, "
                f"not {tuple(frame_mask.shape)}."
            )
        if frame_mask is not None and "flash" in str(self.config._attn_implementation):
            raise ValueError(
                "Flash attention does not support frame_mask: use `model.set_attn_implementation('sdpa')`, or clips "
                "with the same number of frames."
            )

    @capture_outputs(tie_last_hidden_states=False)
    def _encode_clips(
        self,
        pixel_values_videos: torch.Tensor,
        frame_mask: torch.Tensor | None,
        interpolate_pos_encoding: bool,
        **kwargs: Unpack[TransformersKwargs],
    ) -> _EncodedClips:
        """
        Runs the divided space-time ViT. Returns the CLS states as `pooler_output`, (B, 1, D) or with late fusion
        (B, T, D), and the patches (B, T, h, w, D) after the last block and after `region_layer` blocks.
        """
        hidden_states, grid, kept = self.embeddings(pixel_values_videos, interpolate_pos_encoding)  # type: ignore[misc]
        hidden_states = self.pre_layernorm(hidden_states)
        attention_mask = frame_mask if self.temporal_fusion is None else None  # in late fusion, frames are separate
        region_layer = len(self.layers) if self.config.region_layer is None else self.config.region_layer
        for_regions = hidden_states
        for number, layer in enumerate(self.layers, start=1):
            hidden_states = layer(hidden_states, grid, attention_mask, **kwargs)
            if number <= region_layer:
                for_regions = hidden_states
        batch, frames = pixel_values_videos.shape[:2]
        last, for_regions = (x[:, 1:].reshape(batch, frames, *grid[1:], -1) for x in (hidden_states, for_regions))
        return _EncodedClips(
            last_hidden_state=last,
            pooler_output=hidden_states[:, 0].reshape(batch, -1, hidden_states.shape[-1]),
            region_patches=for_regions,
            kept=kept,
        )

    def _encode_frames(
        self, pixel_values_videos: torch.Tensor, interpolate_pos_encoding: bool, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """
        Runs the backbone on each frame, or splits features that [`encode_frames`] returned. Returns the pooled states
        of frames (B, T, D) as `pooler_output`, and the patches (B, T, h, w, D) as `last_hidden_state`.
        """
        if pixel_values_videos.ndim == 4:
            size = self.config.image_size
            height, width = (size, size) if isinstance(size, int) else size
            patches = pixel_values_videos.shape[2] - 1
            rows = round(math.sqrt(max(patches, 1) * height / width))
            columns = patches // rows
            if rows * columns != patches or rows * width != columns * height:
                raise ValueError(
                    f"pixel_values_videos of shape {tuple(pixel_values_videos.shape)} are not features of a backbone: "
                    f"{patches} patches do not form a grid of the shape of the frames ({height} x {width} pixels). "
                    "Images are clips of one frame: `pixel_values.unsqueeze(1)`."
                )
            features = pixel_values_videos.to(self.dtype)
            states = features[:, :, 1:].unflatten(2, (rows, columns))
            return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=features[:, :, 0])
        outputs = _run_backbone(self.backbone, pixel_values_videos.flatten(0, 1), interpolate_pos_encoding, **kwargs)
        outputs.pooler_output = outputs.pooler_output.unflatten(0, pixel_values_videos.shape[:2])
        outputs.last_hidden_state = outputs.last_hidden_state.unflatten(0, pixel_values_videos.shape[:2])
        return outputs

    def encode_frames(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """
        Returns the backbone's features of each frame, (B, T, 1 + N, hidden_size): first its pooled state, then its
        patches. The model accepts these features in place of `pixel_values_videos`, so that they have to be computed
        only once if the backbone is not trained.

        Args:
            pixel_values_videos: clips (B, T, C, height, width), with frames of the size in the configuration.

        Raises:
            ValueError: the model does not have a backbone.
        """
        if self.backbone is None:
            raise ValueError("encode_frames needs a model with a backbone: the divided space-time ViT mixes frames.")
        self._check_inputs(pixel_values_videos, None)
        outputs = self._encode_frames(pixel_values_videos, interpolate_pos_encoding=False)
        return torch.cat([outputs.pooler_output.unsqueeze(2), outputs.last_hidden_state.flatten(2, 3)], dim=2)

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RegionLearnerVideoOutput:
        """
        Returns the features, the regions and the codes of a batch of clips.

        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(B, T, C, height, width)`):
                Clips of up to `num_frames` frames; images are clips of one frame. With a backbone, these may also be
                the features that [`encode_frames`] returned, `(B, T, 1 + N, D)`.
            frame_mask (`torch.Tensor` of shape `(B, T)`, *optional*):
                1 (or True) for real frames, 0 for padding, which has no influence on the output.
            interpolate_pos_encoding (`bool`, defaults to `False`):
                Whether to interpolate the spatial positions for frames of another size than `image_size`. Height and
                width must be multiples of the patch size.

        Raises:
            ValueError: an input is not of the expected shape.

        Example:

        ```python
        >>> import torch
        >>> from region_learner import RegionLearnerVideoConfig, RegionLearnerVideoModel

        >>> model = RegionLearnerVideoModel(RegionLearnerVideoConfig(num_hidden_layers=2)).eval()
        >>> with torch.no_grad():
        ...     outputs = model(torch.rand(1, 4, 3, 224, 224))
        >>> outputs.pooler_output.shape, outputs.region_masks.shape
        (torch.Size([1, 768]), torch.Size([1, 4, 8, 14, 14]))
        ```
        """
        self._check_inputs(pixel_values_videos, frame_mask)
        assert pixel_values_videos is not None
        if frame_mask is not None:
            frame_mask = frame_mask.bool()
            # A weight of 0 would not remove a NaN.
            real = frame_mask[(..., *[None] * (pixel_values_videos.ndim - 2))]
            pixel_values_videos = pixel_values_videos.masked_fill(~real, 0)
        if self.backbone is None:
            encoded = self._encode_clips(
                pixel_values_videos, frame_mask, interpolate_pos_encoding, return_dict=True, **kwargs
            )
        else:
            encoded = self._encode_frames(pixel_values_videos, interpolate_pos_encoding, **kwargs)
        cls, last_patches = encoded.pooler_output, encoded.last_hidden_state  # (B, 1 or T, D), (B, T, h, w, D)
        patches = last_patches if self.backbone is not None else encoded.region_patches
        if self.temporal_embeddings is not None:  # the scale of features differs between image models
            patches = F.layer_norm(patches, patches.shape[-1:])
        grid = None
        if (kept := encoded.get("kept")) is not None:
            patch: Any = self.config.patch_size
            grid = _Grid(kept, *(side // patch for side in pixel_values_videos.shape[-2:]))
        states, region_masks, cluster_ids, region_loss = self.region_module(
            patches, frame_mask, self.temporal_embeddings, grid
        )
        states = states.to(cls.device)  # several devices may share the model
        if self.backbone is None:
            last_hidden_state = self.layernorm(torch.cat([cls, states], dim=1))
        else:  # its own pooled states are complete
            last_hidden_state = torch.cat([cls, self.layernorm(states)], dim=1)
        cls, tokens = last_hidden_state.split([cls.shape[1], states.shape[1]], dim=1)
        return RegionLearnerVideoOutput(
            last_hidden_state=last_hidden_state,
            pooler_output=self._pool(cls, self._pooled_tokens(tokens, last_patches), patches.shape[1], frame_mask),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            region_states=None if region_masks is None else states,
            region_masks=region_masks,
            cluster_ids=cluster_ids,
            region_loss=region_loss,
            patch_states=patches,
        )


# Set in the configuration of a BEiT that was pre-trained by masking, and therefore does not have a pooling layer.
WITHOUT_POOLER = "without_pooling_layer"


def has_mean_pooler(config: Any) -> bool:
    """
    Returns whether the pooling layer of an image model is pre-trained: in BEiT, it normalizes the mean of the patches.
    In other models that may have one, such as ViT, it is new.
    """
    return bool(getattr(config, "use_mean_pooling", False)) and not getattr(config, WITHOUT_POOLER, False)


def _build_backbone(config: RegionLearnerVideoConfig) -> PreTrainedModel:
    """
    Returns a new image model.

    Raises:
        ValueError: it is a timm model of another width than `config.hidden_size`.
    """
    of_backbone: Any = config.backbone_config
    backbone = _from_config(of_backbone, pooling_layer=has_mean_pooler(of_backbone))
    timm_model = getattr(backbone, "timm_model", None)
    if timm_model is not None and timm_model.num_features != config.hidden_size:
        raise ValueError(
            f"hidden_size={config.hidden_size}, but that of {config.backbone_config.architecture!r} in timm is "
            f"{timm_model.num_features}: set hidden_size={timm_model.num_features} in video_config."
        )
    return backbone


def _run_backbone(
    backbone: Any, pixel_values: torch.Tensor, interpolate_pos_encoding: bool, **kwargs: Unpack[TransformersKwargs]
) -> BaseModelOutputWithPooling:
    """
    Returns the outputs of an image model for images (B, C, height, width): its own pooled state (B, D), or if it does
    not have one, the class token or the mean of the patches; and the patches (B, h, w, D), without class and register
    tokens.
    """
    pixel_values = pixel_values.to(backbone.dtype)
    timm_model: Any = getattr(backbone, "timm_model", None)
    size = (pixel_values.shape[-2], pixel_values.shape[-1])
    options: dict[str, Any] = {**kwargs, "return_dict": True}
    if timm_model is not None:
        options = {name: value for name, value in options.items() if name.startswith(("output_", "return_"))}
    elif interpolate_pos_encoding and "interpolate_pos_encoding" in inspect.signature(backbone.forward).parameters:
        options["interpolate_pos_encoding"] = True  # other models interpolate on their own, or need no positions
    if backbone.config.model_type == "siglip2_vision_model":
        pixel_values, extra = _siglip2_inputs(pixel_values, backbone.config.patch_size)
        options.update(extra)
    outputs = backbone(pixel_values, **options)
    states, pooled = outputs.last_hidden_state, outputs.get("pooler_output")
    if states.ndim == 4:  # convolutional models: (B, D, h, w), some of timm (B, h, w, D)
        states = states if getattr(timm_model, "output_fmt", "NCHW") == "NHWC" else states.permute(0, 2, 3, 1)
        pooled = states.mean((1, 2)) if pooled is None else pooled.flatten(1)
    else:
        grid = _grid_of(backbone, size, states.shape[1])
        patches = states[:, states.shape[1] - grid[0] * grid[1] :]
        if pooled is None:
            pooled = states[:, 0] if patches.shape[1] < states.shape[1] else states.mean(1)
        states = patches.unflatten(1, grid)
    return BaseModelOutputWithPooling(states, pooled, outputs.get("hidden_states"), outputs.get("attentions"))


def _siglip2_inputs(pixel_values: torch.Tensor, patch: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns images (B, C, height, width) as the patches (B, N, patch * patch * C) that SigLIP 2 NaFlex takes."""
    patches = pixel_values.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, C, h, w, patch, patch)
    batch, _, height, width = patches.shape[:4]
    shapes = torch.tensor([[height, width]], device=pixel_values.device).expand(batch, -1)
    mask = torch.ones(batch, height * width, dtype=torch.long, device=pixel_values.device)
    flat = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    return flat, {"spatial_shapes": shapes, "pixel_attention_mask": mask}


def _grid_of(backbone: Any, size: tuple[int, int], tokens: int) -> tuple[int, int]:
    """
    Returns the height and width of the grid of patches among the `tokens` of an image of `size`, which come last.

    Raises:
        ValueError: the tokens are not such a grid after class and register tokens.
    """
    config = backbone.config
    patch = getattr(config, "patch_size", None)
    if patch is not None:
        patch = (patch, patch) if isinstance(patch, int) else patch
        grids = [(size[0] // patch[0], size[1] // patch[1])]
        # Of other numbers of tokens, some may come last, such as those of objects in YOLOS.
        prefixes = {0, 1, 1 + getattr(config, "num_register_tokens", 0), 2 if config.model_type == "deit" else 1}
        prefixes |= {getattr(config, name, 0) for name in ("n_cls_tokens", "num_summary_tokens")}  # Pixio and RADIO
        grids = [grid for grid in grids if tokens - grid[0] * grid[1] in prefixes]
    else:  # a grid of the shape of the image; if the number of other tokens is not known, there is at most one
        prefix = getattr(getattr(backbone, "timm_model", None), "num_prefix_tokens", None)
        counts = [tokens, tokens - 1] if prefix is None else [tokens - prefix]
        heights = [round(math.sqrt(count * size[0] / size[1])) for count in counts]
        grids = [(height, count // max(height, 1)) for height, count in zip(heights, counts)]
        grids = [grid for grid, count in zip(grids, counts) if grid[0] * grid[1] == count]
    if not grids or not 0 < grids[0][0] * grids[0][1] <= tokens:
        raise ValueError(
            f"{type(backbone).__name__} returns {tokens} tokens for frames of {size[0]} x {size[1]} pixels, which are "
            "not a grid of patches after class and register tokens: use another image model, or frames of its own "
            "size."
        )
    return grids[0]


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Returns `x` L2-normalized, in float32 or better: half precision would make ties and lose small differences."""
    return F.normalize(_upcast(x), dim=-1)


# SigLIP pads all texts to full length, attends to the padding, and pools the last position.
FULL_LENGTH_TEXT_TOWERS = ("siglip_text_model", "siglip2_text_model")


def build_text_tower(text_config: PreTrainedConfig, pooling_layer: bool = False) -> PreTrainedModel:
    """
    Returns a new text encoder.

    Args:
        text_config: its configuration.
        pooling_layer: whether it has its own pooling layer; an unused one would have parameters without gradients.

    Raises:
        ValueError: the configuration does not belong to a text encoder.
    """
    if text_config.is_encoder_decoder:
        raise ValueError(f"text_config describes an encoder-decoder ({text_config.model_type}): set it to an encoder.")
    tower = _from_config(text_config, pooling_layer)
    if not pooling_layer and text_config.model_type in FULL_LENGTH_TEXT_TOWERS:
        tower.head.requires_grad_(False)  # it cannot be left out, and DDP refuses parameters without gradients
    if not isinstance(tower.get_input_embeddings(), nn.Embedding):
        raise ValueError(
            f"text_config does not describe a text encoder: {text_config.model_type!r} does not take tokens."
        )
    return tower


def _check_text_pooling(config: RegionLearnerConfig, tower: nn.Module):
    """
    Checks that the pooled token contains the whole text.

    Raises:
        ValueError: the pooled token does not attend to the text, or cannot be found.
    """
    text_config: Any = config.text_config
    pooling = config.resolved.text_pooling
    causal = is_causal(text_config)
    if getattr(text_config, "is_causal", None) is not False:  # encoders that `is_causal` does not know
        causal = causal or any(getattr(module, "is_causal", False) is True for module in tower.modules())
    # The pooler of most encoders takes the first token; that of CLIP takes the end of the text.
    takes_first = pooling == "first" or (pooling == "pooler" and text_config.model_type not in CLIP_TEXT_ENCODERS)
    if takes_first and causal:
        raise ValueError(
            f"text_pooling={pooling!r} takes a token that does not attend to the text: tokens of "
            f"{text_config.model_type!r} attend only to those before them. Set text_pooling='last', 'mean' or None."
        )
    if pooling == "eos" and text_config.eos_token_id is None:
        raise ValueError(
            f"text_pooling='eos' needs an end-of-text token, but eos_token_id of the {text_config.model_type!r} "
            "text_config is None: set it, or another text_pooling."
        )


def _text_width(config: RegionLearnerConfig) -> int:
    """Returns the width of a pooled text. SigLIP's pooled state has a width of its own."""
    text_config: Any = config.text_config
    is_projected = config.resolved.text_pooling == "pooler" and text_config.model_type in FULL_LENGTH_TEXT_TOWERS
    return text_config.projection_size if is_projected else text_config.hidden_size


def _roll(x: torch.Tensor, shifts: torch.Tensor, dim: int = 1, length: int | None = None) -> torch.Tensor:
    """
    Rolls the first `length` positions of `x` along `dim`, by default all of them, and leaves out the others. This is
    `torch.roll` with a shift for each row of the batch, `shifts` (B,), of less than the length. (`%`,
    `torch.take_along_dim` and slices that may be all of `x` cannot be exported with a dynamic length.)
    """
    length = x.shape[dim] if length is None else length
    index = torch.arange(length, device=x.device) - shifts.to(x.device)[:, None]  # (B, length)
    index = index + length * ((index < 0).long() - (index >= length).long())
    index = index.view(-1, *[length if axis == dim else 1 for axis in range(1, x.ndim)])
    return x.gather(dim, index.expand(*x.shape[:dim], length, *x.shape[dim + 1 :]))


def _roll_back(x: torch.Tensor | None, shifts: torch.Tensor | None, length: int, *dims: int) -> torch.Tensor | None:
    """Undoes `_roll(x, -shifts)` along `dims`, and keeps the first `length` positions of each. None stays None."""
    if x is None or shifts is None:
        return x
    for dim in dims:
        x = _roll(x, shifts, dim, length)
    return x


def _pad_to_full_length(
    tokens: torch.Tensor, attention_mask: torch.Tensor, text_config: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Returns `tokens` (B, length) and their mask, padded to the number of positions of the text encoder. (Padding by a
    number of tokens that may be 0 cannot be exported with a dynamic length.)
    """
    positions = text_config.max_position_embeddings
    if tokens.shape[1] > positions:
        raise ValueError(f"The texts have {tokens.shape[1]} tokens, but the text encoder has {positions} positions.")
    tokens = tokens.masked_fill(attention_mask == 0, text_config.pad_token_id)
    padding = tokens.new_full((tokens.shape[0], positions), text_config.pad_token_id)
    mask = torch.cat([attention_mask, attention_mask.new_zeros(padding.shape)], 1)
    return torch.cat([tokens, padding], 1)[:, :positions], mask[:, :positions]


def _end_of_text(tokens: torch.Tensor, attention_mask: torch.Tensor, text_config: Any) -> torch.Tensor:
    """Returns the position (B,) of the first end-of-text token, or of the last token of a text that was cut off."""
    last = attention_mask.long().cumsum(1).argmax(1)
    tokens = tokens.masked_fill(attention_mask == 0, -1)
    eos = text_config.eos_token_id
    if text_config.model_type == "clip_text_model" and eos == 2:
        is_end = tokens == tokens.amax(1, keepdim=True)  # OpenAI's CLIP: its end-of-text token has the highest id
    else:
        ends = [eos] if isinstance(eos, int) else list(eos)
        is_end = torch.isin(tokens, torch.tensor(ends, device=tokens.device))
        if getattr(text_config, "bos_token_id", None) in ends:  # GPT-2 and OPT: it may begin a text, too
            is_end = F.pad(is_end[:, 1:], (1, 0))
    return torch.where(is_end.any(1), is_end.int().argmax(1), last)


@dataclass
class RegionLearnerTextOutput(BaseModelOutputWithPooling):
    """
    Output of `get_text_features`.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(B, L, width)`): the output of the text encoder.
        pooler_output (`torch.FloatTensor` of shape `(B, projection_dim)`): the embedding, before normalization.
        hidden_states, attentions (`tuple(torch.FloatTensor)`): those of the text encoder, if requested.
        phrase_states (`torch.FloatTensor` of shape `(B, L, width)`): the state of the phrase around each word. None
            without `phrase_window`.
    """

    phrase_states: torch.Tensor | None = None


class RegionLearnerPhrases(nn.Module):
    """
    Encodes the phrase around each word: a convolution over a window of words is added to the embedding of the word.
    Not in the original.

    The states of a text encoder that is trained from scratch soon mix the whole text. "A red square and a blue circle"
    then looks the same as "a blue square and a red circle", and nothing in a batch of random pairs separates them.
    """

    def __init__(self, width: int, window: int):
        super().__init__()
        self.conv = RegionLearnerConv1d(width, width, kernel_size=window, padding=window // 2)

    def forward(self, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns phrases (B, L, width) of `words` (B, L, width). Padding (False in `mask` (B, L)) is ignored."""
        words = words * mask.unsqueeze(-1)
        return words + F.gelu(self.conv(words.transpose(1, 2)).transpose(1, 2))


class RegionLearnerTwoTowerModel(RegionLearnerPreTrainedModel):
    """
    The video tower, the text encoder and their projections, which the dual encoder and the question answering model
    share. Their names are the same in both models, so that the weights of one load into the other.
    """

    main_input_name = "input_ids"

    def __init__(self, config: RegionLearnerConfig):
        super().__init__(config)
        self.video_model = RegionLearnerVideoModel._from_config(config.video_config)
        pooling_layer = config.resolved.text_pooling == "pooler"
        self.text_model = build_text_tower(config.text_config, pooling_layer)  # type: ignore[arg-type]
        _check_text_pooling(config, self.text_model)
        dim, bias = config.projection_dim, config.projection_bias
        self.video_projection = nn.Linear(config.video_config.hidden_size, dim, bias=bias)
        self.text_projection = nn.Linear(_text_width(config), dim, bias=bias)
        self.phrases = self.phrase_mlp = self.tube_mlp = None
        if config.phrase_window:
            self.phrases = RegionLearnerPhrases(config.text_config.hidden_size, config.phrase_window)
            self.phrase_mlp = RegionLearnerMaxMLP(config.text_config.hidden_size, dim)
        if config.tube_mlp:
            self.tube_mlp = RegionLearnerTubeMLP(config.video_config.hidden_size, dim)

    def added_parts(self) -> dict[str, RegionLearnerMaxMLP]:
        """Returns the parts, by name, whose outputs are added to an embedding. They are not in the original."""
        parts = {"phrase_mlp": self.phrase_mlp, "tube_mlp.mlp": None if self.tube_mlp is None else self.tube_mlp.mlp}
        return {name: part for name, part in parts.items() if part is not None}

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RegionLearnerVideoOutput:
        """
        Returns the output of the video tower, with the projected embedding `(B, projection_dim)`, before
        normalization, as `pooler_output`.

        Args:
            pixel_values_videos, frame_mask, interpolate_pos_encoding: see [`RegionLearnerVideoModel.forward`].

        Example:

        ```python
        >>> videos = model.get_video_features(**processor(videos=["clip.mp4"])).pooler_output
        >>> videos = torch.nn.functional.normalize(videos, dim=-1)
        ```
        """
        outputs = self.video_model(
            pixel_values_videos, frame_mask, interpolate_pos_encoding, return_dict=True, **kwargs
        )
        outputs.pooler_output = self._project_video(outputs, frame_mask)
        return outputs

    def _project_video(self, outputs: RegionLearnerVideoOutput, frame_mask: torch.Tensor | None) -> torch.Tensor:
        """Returns the embeddings (B, projection_dim) of videos, before normalization."""
        embedding = self.video_projection(outputs.pooler_output)
        if self.tube_mlp is None:
            return embedding
        return embedding + self.tube_mlp(outputs.patch_states, None if frame_mask is None else frame_mask.bool())

    def _tokens(
        self, outputs: Any, frames: int, frame_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the states (B, n, D) of regions, or of patches without regions, and which are real (B, n)."""
        states = outputs.last_hidden_state[:, 1 if self.video_model.temporal_fusion is None else frames :]
        if frame_mask is None or self.video_model.region_module.gathers_clips:  # no region belongs to one frame
            return states, None
        return states, frame_mask.bool().repeat_interleave(states.shape[1] // frames, 1)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Returns the output of the text encoder, with the projected embedding `(B, projection_dim)`, before
        normalization, as `pooler_output`. Texts may be padded on either side.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, length)`): tokens.
            attention_mask (`torch.Tensor` of shape `(B, length)`, *optional*): 1 for tokens, 0 for padding.
            token_type_ids, position_ids (`torch.LongTensor` of shape `(B, length)`, *optional*): for text encoders
                that take them.

        Example:

        ```python
        >>> texts = model.get_text_features(**processor(text=["a red square"])).pooler_output
        >>> texts = torch.nn.functional.normalize(texts, dim=-1)
        ```
        """
        text_config: Any = self.config.text_config
        named = {"input_ids": input_ids, "token_type_ids": token_type_ids, "position_ids": position_ids}
        inputs = {name: x for name, x in named.items() if x is not None}
        full_length = text_config.model_type in FULL_LENGTH_TEXT_TOWERS
        attention_mask = self._text_mask(input_ids, attention_mask)
        start, length = None, 0
        if attention_mask is not None and attention_mask.ndim == 2:
            # Padding moves to the right, so that the positions of a text do not depend on the rest of the batch.
            start, length = attention_mask.ne(0).int().argmax(1), attention_mask.shape[1]  # (B,)
            inputs = {name: _roll(x, -start) for name, x in inputs.items()}
            attention_mask = _roll(attention_mask, -start)
        if full_length:
            assert attention_mask is not None
            inputs["input_ids"], attention_mask = _pad_to_full_length(inputs["input_ids"], attention_mask, text_config)
        # Encoders of full-length texts attend to the padding, too.
        wanted: dict[str, Any] = {**kwargs, "return_dict": True}
        if self.phrases is not None:
            wanted["output_hidden_states"] = True
        outputs = self.text_model(**inputs, attention_mask=None if full_length else attention_mask, **wanted)
        pooled = self._pool_text(outputs, inputs["input_ids"], attention_mask)
        if self.config.text_projection_relu:
            pooled = F.relu(pooled)
        embedding, phrases = self.text_projection(pooled), None
        if self.phrases is not None:
            words = outputs.hidden_states[0]  # the embeddings of the words
            mask = (torch.ones_like(words[..., 0]) if attention_mask is None else attention_mask).bool()
            phrases = self.phrases(words, mask)
            embedding = embedding + self.phrase_mlp(phrases, mask)
        returns_states = kwargs.get("output_hidden_states", self.config.output_hidden_states)
        hidden_states = outputs.hidden_states if returns_states else None
        attentions = outputs.get("attentions")  # Mamba has none
        return RegionLearnerTextOutput(  # with the tokens in the order of the input
            last_hidden_state=_roll_back(outputs.last_hidden_state, start, length, 1),
            pooler_output=embedding,
            hidden_states=hidden_states and tuple(_roll_back(x, start, length, 1) for x in hidden_states),
            attentions=attentions and tuple(_roll_back(x, start, length, 2, 3) for x in attentions),
            phrase_states=_roll_back(phrases, start, length, 1),
        )

    def _text_mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """Returns `attention_mask`; for encoders of full-length texts, whose tokenizers return none, computes it."""
        text_config: Any = self.config.text_config
        if attention_mask is not None or text_config.model_type not in FULL_LENGTH_TEXT_TOWERS:
            return attention_mask
        return (input_ids != text_config.pad_token_id).long()

    def _pool_text(self, outputs, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Returns one state per text, (B, width), of the `outputs` for texts with padding on the right."""
        states, pooling = outputs.last_hidden_state, self.config.resolved.text_pooling
        if pooling == "pooler":
            if getattr(outputs, "pooler_output", None) is None:
                raise ValueError(
                    f"text_pooling='pooler', but {type(self.text_model).__name__} does not pool: set text_pooling to "
                    "another value, or to None."
                )
            return outputs.pooler_output
        if pooling == "first":
            return states[:, 0]
        if attention_mask is None:
            attention_mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        if pooling == "mean":
            return _masked_mean(states, attention_mask.bool())
        if pooling == "last":
            position = attention_mask.long().cumsum(1).argmax(1)
        else:
            position = _end_of_text(input_ids, attention_mask, self.config.text_config)
        return states[torch.arange(states.shape[0], device=states.device), position]


class RegionLearnerTokenProjection(nn.Module):
    """Projects the states of tokens and gives each a weight, as in DRL (arXiv 2203.07111). Not in the original."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.embed = RegionLearnerLinear(width, dim)
        self.weigh = RegionLearnerLinear(width, 1, bias=False)  # a softmax cancels a bias

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Returns L2-normalized embeddings (B, n, dim) of `states` (B, n, width), and their weights (B, n): a softmax
        over the tokens where `mask` (B, n) is True, and 0 for the others.
        """
        states = self.norm(states)
        scores = _upcast(self.weigh(states)).squeeze(-1)
        if mask is None:
            return _unit(self.embed(states)), scores.softmax(-1)
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
        return _unit(self.embed(states)), weights * mask


class RegionLearnerModel(RegionLearnerTwoTowerModel):
    """
    The dual encoder: a video tower and a text encoder that embed videos and texts into one space. The original's
    `FrozenInTime`.
    """

    if TYPE_CHECKING:  # torch's `__call__` returns Any

        def __call__(self, *args: Any, **kwargs: Any) -> RegionLearnerOutput: ...

    def __init__(self, config: RegionLearnerConfig):
        super().__init__(config)
        # Of shape (1,): FSDP cannot shard parameters without a dimension.
        self.logit_scale = (
            nn.Parameter(-torch.tensor([config.temperature]).log()) if config.learn_temperature else None
        )
        self.logit_bias = (
            nn.Parameter(torch.tensor([float(config.sigmoid_bias)])) if config.loss == "sigmoid" else None
        )
        self.video_tokens = self.text_tokens = self.token_logit_scale = None
        if config.token_dim:
            self.video_tokens = RegionLearnerTokenProjection(config.video_config.hidden_size, config.token_dim)
            self.text_tokens = RegionLearnerTokenProjection(config.text_config.hidden_size, config.token_dim)
            if config.learn_temperature:
                self.token_logit_scale = nn.Parameter(-torch.tensor([config.token_temperature]).log())
        self.post_init()

    @property
    def temperature(self) -> torch.Tensor | float:
        """The temperature, learned or fixed: cosine similarities are divided by it."""
        return self.config.temperature if self.logit_scale is None else torch.exp(-self.logit_scale)

    @property
    def token_temperature(self) -> torch.Tensor | float:
        """The temperature of the tokens, learned or fixed: similarities of words and regions are divided by it."""
        return self.config.token_temperature if self.token_logit_scale is None else torch.exp(-self.token_logit_scale)

    def _logits(self, video_embeds: torch.Tensor | None, text_embeds: torch.Tensor | None) -> torch.Tensor | None:
        """Returns the logits (videos, texts) of normalized embeddings; None if either side is None."""
        if video_embeds is None or text_embeds is None:
            return None
        logits = cosine_similarity(video_embeds, text_embeds) / self.temperature
        return logits if self.logit_bias is None else logits + self.logit_bias

    def _embed_words(self, outputs: Any, attention_mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns embeddings (B, L, token_dim) and weights (B, L) of phrases, or of words without phrases."""
        states = outputs.last_hidden_state if outputs.phrase_states is None else outputs.phrase_states
        return self.text_tokens(states, None if attention_mask is None else attention_mask.bool())  # type: ignore[misc]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        video_ids: torch.Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        negative_input_ids: torch.Tensor | None = None,
        negative_attention_mask: torch.Tensor | None = None,
        negative_token_type_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RegionLearnerOutput:
        """
        Returns the embeddings of texts, videos, or both, and their similarities. The loss is that of this batch; for
        the loss of the global batch of several processes, see `contrastive_loss` in `loss_region_learner.py`.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids (of shape `(texts, length)`, *optional*):
                the texts, see [`~RegionLearnerModel.get_text_features`].
            pixel_values_videos, frame_mask, interpolate_pos_encoding: the clips, see
                [`RegionLearnerVideoModel.forward`].
            video_ids (`torch.LongTensor` of shape `(videos,)`, *optional*): pairs with the same id are not each
                other's negatives.
            return_loss (`bool`, *optional*): whether to compute the loss. Text i must describe video i.
            negative_input_ids, negative_attention_mask, negative_token_type_ids (*optional*):
                negative texts, of shape `(negatives, length)`, which describe none of the videos, such as captions
                with two words swapped (NegCLIP, arXiv 2210.01936). Tokenize them together with the texts. In the
                loss, every video is compared with all of them.

        Raises:
            ValueError: neither texts nor videos are given, `return_loss` is set without one text per video, or
                negative texts do not match the texts.

        Example:

        ```python
        >>> import torch
        >>> from region_learner import RegionLearnerModel, RegionLearnerProcessor

        >>> model = RegionLearnerModel.from_pretrained("checkpoint")
        >>> processor = RegionLearnerProcessor.from_pretrained("checkpoint")
        >>> inputs = processor(text=["a red square", "a blue circle"], videos=["clip.mp4"])
        >>> with torch.no_grad():
        ...     outputs = model(**inputs)
        >>> outputs.logits_per_video.softmax(dim=1).shape  # which text describes the video
        torch.Size([1, 2])
        ```
        """
        if input_ids is None and pixel_values_videos is None:
            raise ValueError("There is no input: give input_ids, pixel_values_videos, or both.")
        text_outputs = video_outputs = text_embeds = video_embeds = negative_text_embeds = None
        words: Any = (None, None)
        negative_words: Any = (None, None)
        regions: Any = (None, None)
        if negative_input_ids is not None:  # one pass through the text encoder in every process, as FSDP requires
            if position_ids is not None:
                raise ValueError("position_ids cannot be given together with negative_input_ids.")
            texts = 0 if input_ids is None else input_ids.shape[0]
            input_ids, attention_mask, token_type_ids = (
                _with_negatives(name, of_texts, of_negatives)
                for name, of_texts, of_negatives in (
                    ("input_ids", input_ids, negative_input_ids),
                    ("attention_mask", attention_mask, negative_attention_mask),
                    ("token_type_ids", token_type_ids, negative_token_type_ids),
                )
            )
        if input_ids is not None:
            text_outputs = self.get_text_features(
                input_ids, attention_mask, token_type_ids, position_ids, return_dict=True, **kwargs
            )
            text_embeds = _unit(text_outputs.pooler_output)
            if self.text_tokens is not None:
                words = self._embed_words(text_outputs, self._text_mask(input_ids, attention_mask))
        if negative_input_ids is not None:
            text_embeds, negative_text_embeds = text_embeds[:texts], text_embeds[texts:]  # type: ignore[index]
            if words[0] is not None:
                words, negative_words = [x[:texts] for x in words], [x[texts:] for x in words]
        if pixel_values_videos is not None:
            video_outputs = self.video_model(
                pixel_values_videos, frame_mask, interpolate_pos_encoding, return_dict=True, **kwargs
            )
            video_embeds = _unit(self._project_video(video_outputs, frame_mask))
            if self.video_tokens is not None:
                regions = self.video_tokens(*self._tokens(video_outputs, pixel_values_videos.shape[1], frame_mask))

        if text_embeds is not None and video_embeds is not None:  # the towers may be on different devices
            anchor = self.logit_scale if self.logit_scale is not None else self.logit_bias
            device = video_embeds.device if anchor is None else anchor.device
            video_embeds, text_embeds = video_embeds.to(device), text_embeds.to(device)
            negative_text_embeds = None if negative_text_embeds is None else negative_text_embeds.to(device)
            words, regions, negative_words = (
                [None if x is None else x.to(device) for x in pair] for pair in (words, regions, negative_words)
            )
        logits = self._logits(video_embeds, text_embeds)
        outputs = RegionLearnerOutput(
            logits_per_video=logits,
            logits_per_text=None if logits is None else logits.T,
            text_embeds=text_embeds,
            video_embeds=video_embeds,
            text_model_output=text_outputs,
            video_model_output=video_outputs,
            # DDP and FSDP need the parameters of the loss among the outputs of `forward`.
            temperature=None if self.logit_scale is None else self.temperature,  # type: ignore[arg-type]
            logit_bias=None if self.logit_bias is None else self.logit_bias.clone(),
            region_loss=None if video_outputs is None else video_outputs.region_loss,
            text_token_embeds=words[0],
            text_token_weights=words[1],
            video_token_embeds=regions[0],
            video_token_weights=regions[1],
            token_temperature=None if self.token_logit_scale is None else self.token_temperature,  # type: ignore[arg-type]
            negative_text_embeds=negative_text_embeds,
            negative_token_embeds=negative_words[0],
            negative_token_weights=negative_words[1],
        )
        if words[0] is not None and regions[0] is not None:
            similarity = word_region_similarity(*words, *regions)
            outputs.token_logits_per_text = similarity / self.token_temperature
        if not return_loss:
            return outputs
        return RegionLearnerOutput(loss=contrastive_loss(self.config, outputs, video_ids), **outputs)


def _with_negatives(
    name: str, of_texts: torch.Tensor | None, of_negatives: torch.Tensor | None
) -> torch.Tensor | None:
    """Returns an input of the texts followed by that of the negative texts; None if neither is given."""
    if of_texts is None and of_negatives is None:
        return None
    if of_texts is None or of_negatives is None or of_texts.shape[1:] != of_negatives.shape[1:]:
        lengths = ["none" if x is None else f"length {x.shape[-1]}" for x in (of_texts, of_negatives)]
        raise ValueError(
            f"{name} has {lengths[0]} and negative_{name} {lengths[1]}: tokenize texts and negative texts together, "
            "and split the result."
        )
    return torch.cat([of_texts, of_negatives])


# Weights of a dual encoder that models with a head do not have.
_OF_SIMILARITIES = [r"^logit_(scale|bias)$", r"^token_logit_scale$", r"^(text|video)_tokens\."]


def _check_head(config: RegionLearnerConfig) -> int:
    """Returns the number of classes of a model with a head. Warns if it does not use its regions."""
    if not config.num_labels:
        raise ValueError("The configuration has no classes: set num_labels or id2label.")
    video: Any = config.video_config
    pooling = video.resolved.video_pooling
    if video.num_regions and pooling in POOLINGS_WITHOUT_REGIONS:  # as in some dual encoders with `token_dim`
        logger.warning_once(
            f"The model does not use its {video.num_regions} regions: video_pooling={pooling!r} leaves them out, "
            "and a classifier has no tokens. Set another video_pooling, or num_regions=0 and interaction_layers=0."
        )
    return config.num_labels


@dataclass
class RegionLearnerVideoClassifierOutput(ImageClassifierOutput):
    """
    Output of the video classifier.

    Args:
        loss (`torch.FloatTensor` of shape `()`, with `labels`): the mean cross-entropy of this batch, plus the
            weighted loss of the masks.
        logits (`torch.FloatTensor` of shape `(B, num_labels)`): the score of every class.
        hidden_states, attentions (`tuple(torch.FloatTensor)`): those of the video tower, if requested.
        region_loss (`torch.FloatTensor` of shape `(B,)`): as in [`RegionLearnerVideoOutput`].
    """

    region_loss: torch.Tensor | None = None


class RegionLearnerForVideoClassification(RegionLearnerPreTrainedModel):
    """
    The video tower with a linear classifier on top of the video feature, for example for action recognition.
    `from_pretrained` with a checkpoint of a dual encoder loads its video tower; only the classifier is new.

    Not in the original, which recognizes actions by the similarity of videos and prompts, as [`RegionLearnerModel`]
    can.
    """

    main_input_name = "pixel_values_videos"
    input_modalities = ["video"]
    _keys_to_ignore_on_load_unexpected = [
        r"^text_model\.",
        r"^(text|video)_projection\.",
        r"^phrases\.",
        r"^(phrase|tube)_mlp\.",
        *_OF_SIMILARITIES,
    ]

    if TYPE_CHECKING:  # torch's `__call__` returns Any

        def __call__(self, *args: Any, **kwargs: Any) -> RegionLearnerVideoClassifierOutput: ...

    def __init__(self, config: RegionLearnerConfig):
        super().__init__(config)
        self.num_labels = _check_head(config)
        if config.tube_mlp:
            logger.warning_once("A video classifier has no tube MLP: ignoring tube_mlp=True of the configuration.")
        self.video_model = RegionLearnerVideoModel._from_config(config.video_config)
        self.classifier = nn.Linear(config.video_config.hidden_size, self.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.video_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.video_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RegionLearnerVideoClassifierOutput:
        """
        Returns the score of every class for each clip, and with `labels` the loss.

        Args:
            pixel_values_videos, frame_mask, interpolate_pos_encoding: see [`RegionLearnerVideoModel.forward`].
            labels (`torch.LongTensor` of shape `(B,)`, *optional*): the classes. The loss ignores the labels -100 and
                -1, of which the latter stands for a class that the model does not have.

        Example:

        ```python
        >>> from region_learner import RegionLearnerForVideoClassification, RegionLearnerProcessor

        >>> model = RegionLearnerForVideoClassification.from_pretrained("checkpoint", num_labels=3)
        >>> processor = RegionLearnerProcessor.from_pretrained("checkpoint")
        >>> model(**processor(videos=["clip.mp4"])).logits.shape
        torch.Size([1, 3])
        ```
        """
        video_outputs = self.video_model(
            pixel_values_videos, frame_mask, interpolate_pos_encoding, return_dict=True, **kwargs
        )
        outputs = RegionLearnerVideoClassifierOutput(
            logits=self.classifier(video_outputs.pooler_output),
            hidden_states=video_outputs.hidden_states,
            attentions=video_outputs.attentions,
            region_loss=video_outputs.region_loss,
        )
        if labels is None:
            return outputs
        return RegionLearnerVideoClassifierOutput(loss=classification_loss(self.config, outputs, labels), **outputs)


@dataclass
class RegionLearnerQuestionAnsweringOutput(ModelOutput):
    """
    Output of the question answering model.

    Args:
        loss (`torch.FloatTensor` of shape `()`, with `labels`):
            The mean cross-entropy of this batch plus the weighted loss of the masks (region option
            `mask_loss_weight`).
        logits (`torch.FloatTensor` of shape `(B, num_labels)`): the score of every answer in the vocabulary.
        text_model_output (`BaseModelOutputWithPooling`): the output of `get_text_features`.
        video_model_output (`RegionLearnerVideoOutput`): the output of `get_video_features`.
        region_loss (`torch.FloatTensor` of shape `(B,)`): as in [`RegionLearnerVideoOutput`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    video_model_output: RegionLearnerVideoOutput | None = None
    region_loss: torch.Tensor | None = None

    def to_tuple(self) -> tuple:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in super().to_tuple())


class RegionLearnerWeightNormLinear(nn.Module):
    """
    A linear layer with weight normalization: the whole weight is a direction times one learned `scale`.

    It does not use torch's `parametrizations.weight_norm(linear, dim=None)`: FSDP cannot shard its scale, which has no
    dimension, and the initialization of transformers would write to a computed weight.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight * (self.scale / self.weight.norm()), self.bias)


class RegionLearnerAnswerHead(nn.Module):
    """
    Scores every answer of a vocabulary, (B, num_labels), from the embeddings of question and video before
    normalization, (B, projection_dim) each. It projects both, multiplies them, and applies an MLP with one hidden
    layer. The original's `BUTDQAHead`.
    """

    def __init__(self, width: int, num_labels: int):
        super().__init__()
        self.question_projection = RegionLearnerWeightNormLinear(width, width)
        self.video_projection = RegionLearnerWeightNormLinear(width, width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, num_labels)

    def forward(self, question: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        joint = F.relu(self.question_projection(question)) * F.relu(self.video_projection(video))
        return self.fc2(F.relu(self.fc1(joint)))


class RegionLearnerForVideoQuestionAnswering(RegionLearnerTwoTowerModel):
    """
    Open-ended question answering: the towers of the dual encoder and a classifier over a vocabulary of answers
    (`num_labels`, `id2label`). The original's `FrozenInTime` with its `QA_head`.

    `from_pretrained` with a checkpoint of a dual encoder loads all of its weights except for those of its similarities
    (temperature, bias and token projections); only the classifier is new. Load a saved model with
    `AutoModelForVisualQuestionAnswering`, the Auto class of models that choose from a vocabulary; `AutoModel` would
    load it as a dual encoder.
    """

    _keys_to_ignore_on_load_unexpected = _OF_SIMILARITIES

    if TYPE_CHECKING:  # torch's `__call__` returns Any

        def __call__(self, *args: Any, **kwargs: Any) -> RegionLearnerQuestionAnsweringOutput: ...

    def __init__(self, config: RegionLearnerConfig):
        super().__init__(config)
        self.num_labels = _check_head(config)
        self.classifier = RegionLearnerAnswerHead(config.projection_dim, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RegionLearnerQuestionAnsweringOutput:
        """
        Returns the score of every answer for each question about its clip, and with `labels` the loss.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, length)`): tokens of the questions.
            pixel_values_videos (`torch.FloatTensor` of shape `(B, T, C, height, width)`): one clip per question.
            attention_mask, token_type_ids, position_ids, frame_mask, interpolate_pos_encoding: see
                [`RegionLearnerModel.forward`].
            labels (`torch.LongTensor` of shape `(B,)`, *optional*): the answers. The loss ignores the labels -100 and
                -1, of which the latter stands for an answer that is not in the vocabulary.

        Raises:
            ValueError: the number of clips is not the number of questions.

        Example:

        ```python
        >>> from region_learner import RegionLearnerForVideoQuestionAnswering, RegionLearnerProcessor

        >>> answers = {0: "red", 1: "blue"}
        >>> model = RegionLearnerForVideoQuestionAnswering.from_pretrained("checkpoint", id2label=answers)
        >>> processor = RegionLearnerProcessor.from_pretrained("checkpoint")
        >>> inputs = processor(text=["what color is the square?"], videos=["clip.mp4"])
        >>> model(**inputs).logits.shape
        torch.Size([1, 2])
        ```
        """
        if input_ids is None or pixel_values_videos is None or input_ids.shape[0] != pixel_values_videos.shape[0]:
            questions, videos = (0 if x is None else x.shape[0] for x in (input_ids, pixel_values_videos))
            raise ValueError(f"Give one video for each question: there are {questions} questions and {videos} videos.")
        text_outputs = self.get_text_features(
            input_ids, attention_mask, token_type_ids, position_ids, return_dict=True, **kwargs
        )
        video_outputs = self.get_video_features(
            pixel_values_videos, frame_mask, interpolate_pos_encoding, return_dict=True, **kwargs
        )
        outputs = RegionLearnerQuestionAnsweringOutput(
            logits=self.classifier(text_outputs.pooler_output, video_outputs.pooler_output),
            text_model_output=text_outputs,
            video_model_output=video_outputs,
            region_loss=video_outputs.region_loss,
        )
        if labels is None:
            return outputs
        return RegionLearnerQuestionAnsweringOutput(loss=classification_loss(self.config, outputs, labels), **outputs)


__all__ = [
    "RegionLearnerForVideoClassification",
    "RegionLearnerForVideoQuestionAnswering",
    "RegionLearnerModel",
    "RegionLearnerOutput",
    "RegionLearnerPreTrainedModel",
    "RegionLearnerQuestionAnsweringOutput",
    "RegionLearnerTextOutput",
    "RegionLearnerVideoClassifierOutput",
    "RegionLearnerVideoModel",
    "RegionLearnerVideoOutput",
]

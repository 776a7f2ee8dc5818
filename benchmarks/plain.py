"""
The method in straightforward PyTorch, written from the paper: vectorized, with softmax(QK^T)V written out along each
axis, quantization with the full distance matrix and one-hot assignments, and a loop over regions.

Parameters have the same names as in the package, except for those that `fused` joins, so that weights can be copied.
"""

import re

import torch
import torch.nn.functional as F
from torch import nn

from region_learner import RegionLearnerVideoConfig


def heads_of(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Splits `x` (B, n, D) into heads: (B, heads, n, D / heads)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
    return weights @ value


class PlainDividedAttention(nn.Module):
    def __init__(self, config: RegionLearnerVideoConfig, axis: str):
        super().__init__()
        self.axis, self.heads = axis, config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        query, key, value = (heads_of(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        cls = attention(query[:, :, :1], key, value)

        def groups(x):  # (B, heads, groups, tokens per group, D / heads)
            x = x[:, :, 1:].unflatten(2, (frames, -1))
            return x.transpose(2, 3) if self.axis == "time" else x

        def with_cls(x):
            grouped = groups(x)
            return torch.cat([x[:, :, None, :1].expand(-1, -1, grouped.shape[2], -1, -1), grouped], dim=3)

        patches = attention(groups(query), with_cls(key), with_cls(value))
        if self.axis == "time":
            patches = patches.transpose(2, 3)
        output = torch.cat([cls, patches.flatten(2, 3)], dim=2)
        return self.out_proj(output.transpose(1, 2).flatten(2))


class PlainLayer(nn.Module):
    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.time_norm, self.space_norm, self.mlp_norm = (nn.LayerNorm(width, eps) for _ in range(3))
        self.time_attention = PlainDividedAttention(config, "time")
        self.space_attention = PlainDividedAttention(config, "space")
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, config.intermediate_size), "fc2": nn.Linear(config.intermediate_size, width)}
        )

    def forward(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        over_time = x + self.time_attention(self.time_norm(x), frames)
        x = x + self.space_attention(self.space_norm(over_time), frames)
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.mlp_norm(x))))


class PlainEmbeddings(nn.Module):
    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(config.num_channels, width, kernel_size=patch, stride=patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.empty(1, 1 + (config.image_size // patch) ** 2, width))
        self.temporal_embeddings = nn.Parameter(torch.empty(1, config.num_frames, width))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        batch, frames = clips.shape[:2]
        patches = self.patch_embedding(clips.flatten(0, 1)).flatten(2).transpose(1, 2)  # (B * T, N, D)
        patches = patches.view(batch, frames, *patches.shape[1:])
        patches = patches + self.position_embeddings[:, None, 1:] + self.temporal_embeddings[:, :frames, None]
        cls = (self.cls_token + self.position_embeddings[:, :1]).expand(batch, -1, -1)
        return torch.cat([cls, patches.flatten(1, 2)], dim=1)


class PlainEncoder(nn.Module):
    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        self.embeddings = PlainEmbeddings(config)
        self.layers = nn.ModuleList([PlainLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(clips)
        for layer in self.layers:
            x = layer(x, clips.shape[1])
        return self.layernorm(x)


class PlainQuantizer(nn.Module):
    """VQ with EMA statistics: codes are looked up, then updated. (Ours also finds and revives unused codes.)"""

    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        self.decay = config.resolved.codebook_decay
        codes, width = config.codebook_size, config.hidden_size
        for name, shape in (("embed", (codes, width)), ("embed_avg", (codes, width))):
            self.register_buffer(name, torch.empty(shape))
        self.register_buffer("cluster_size", torch.empty(codes))
        self.register_buffer("cluster_sum", torch.empty(codes))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            x = features.float()
            distances = x.pow(2).sum(1, keepdim=True) - 2 * x @ self.embed.T + self.embed.pow(2).sum(1)
            ids = distances.argmin(1)
            codes = F.embedding(ids, self.embed)
            if self.training:
                one_hot = F.one_hot(ids, len(self.embed)).to(x.dtype)
                counts = one_hot.sum(0)
                self.cluster_sum += counts
                self.cluster_size.mul_(self.decay).add_(counts, alpha=1 - self.decay)
                self.embed_avg.mul_(self.decay).add_(one_hot.T @ x, alpha=1 - self.decay)
                total = self.cluster_size.sum()
                smoothed = (self.cluster_size + 1e-5) / (total + len(counts) * 1e-5) * total
                self.embed.copy_(self.embed_avg / smoothed[:, None])
        return features + (codes.to(features.dtype) - features).detach(), ids


class PlainAggregation(nn.Module):
    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        self.conv = nn.Conv2d(config.hidden_size, config.num_regions, kernel_size=3, padding=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns regions (B * T, S, D) of `features` (B * T, D, h, w)."""
        masks = self.conv(features)
        regions = [(masks[:, s : s + 1] * features).mean((2, 3)) for s in range(masks.shape[1])]
        return torch.stack(regions, dim=1)


class PlainInteraction(nn.Module):
    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        self.heads = config.interaction_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = attention(*(heads_of(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1)))
        return self.out_proj(output.transpose(1, 2).flatten(2))


class PlainRegionModule(nn.Module):
    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        self.quantizer = PlainQuantizer(config)
        self.aggregation = PlainAggregation(config)
        self.interaction = nn.ModuleList([PlainInteraction(config) for _ in range(config.interaction_layers)])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns regions (B, T * S, D) of `features` (B, T, h, w, D)."""
        batch, frames = features.shape[:2]
        quantized, _ = self.quantizer(features.flatten(0, 3))
        quantized = quantized.view_as(features).flatten(0, 1).permute(0, 3, 1, 2)
        regions = self.aggregation(quantized).view(batch, frames, -1, features.shape[-1]).flatten(1, 2)
        for layer in self.interaction:
            regions = layer(regions)
        return regions


class PlainVideoTower(nn.Module):
    """The video tower: encoder, region module, and CLS plus the mean of the regions as the feature of a clip."""

    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        self.grid: int = config.image_size // config.patch_size  # type: ignore[operator]
        self.encoder, self.region_module = PlainEncoder(config), PlainRegionModule(config)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Returns the features (B, D) of `clips` (B, T, C, height, width)."""
        x = self.encoder(clips)
        patches = x[:, 1:].unflatten(1, (clips.shape[1], self.grid, self.grid))
        return x[:, 0] + self.region_module(patches).mean(1)


def fused(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns `state` with the projections of queries, keys and values joined, as in the reference implementation."""
    joined: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        name = re.sub(r"(interaction\.\d+)\.attention\.", r"\1.", name)
        name = re.sub(r"\b[qkv]_proj\b", "qkv", name)
        joined[name] = torch.cat([joined[name], tensor]) if name in joined else tensor
    return joined


def take_weights(plain: nn.Module, ours: nn.Module) -> nn.Module:
    result = plain.load_state_dict(fused(ours.state_dict()), strict=False)
    parameters = fused(dict(ours.named_parameters()))  # ours has more buffers, to find unused codes
    extra = [key for key in result.unexpected_keys if key in parameters]
    if extra or result.missing_keys:
        raise RuntimeError(f"The two differ in weights: {extra}, {result.missing_keys}.")
    return plain

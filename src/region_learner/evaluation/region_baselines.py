"""Baselines: the masks that learned masks are compared with, by the same functions."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from .region_metrics import one_hot

# uniform: constant masks, which amounts to guessing: S random points for pointing, whole frames for the IoU.
# grid: S cells of the frame, the same in all frames.
# random_positions: the learned masks, each moved to a random place in each frame, wrapping around the borders. Their
#     shapes and sizes are kept, but not their places.
# kmeans: clusters of the input features of the region module, over all frames of a clip, with k = S.
# cls_attention: the attention of the CLS token in the last block, one map per head.
# oracle: not a baseline, but the IoU that the resolution allows: one mask per object, its share of each position.
BASELINES = ("uniform", "grid", "random_positions", "kmeans", "cls_attention", "oracle")


def grid_masks(regions: int, height: int, width: int) -> torch.Tensor:
    """
    Returns a grid of `regions` cells over (height, width) positions, as masks (regions, height, width) of 0 and 1. The
    grid is as square as possible, with at most as many rows as columns: 8 cells are 2 x 4, and 7 cells are 1 x 7.
    """
    rows = max(divisor for divisor in range(1, math.isqrt(regions) + 1) if regions % divisor == 0)
    columns = regions // rows
    row, column = torch.arange(height) * rows // height, torch.arange(width) * columns // width
    cell = row[:, None] * columns + column
    return (cell == torch.arange(regions)[:, None, None]).float()


def moved_masks(masks: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """
    Returns masks of one clip, (T, S, h, w), each moved by its own random number of rows and columns, wrapping around
    the borders of the frame.
    """
    *batch, height, width = masks.shape
    down, right = (
        torch.randint(side, (*batch, 1, 1), generator=generator).to(masks.device) for side in (height, width)
    )
    rows = (torch.arange(height, device=masks.device)[:, None] - down) % height
    columns = (torch.arange(width, device=masks.device) - right) % width
    return masks.flatten(-2).gather(-1, (rows * width + columns).flatten(-2)).view_as(masks)


def kmeans(features: torch.Tensor, k: int, iterations: int = 30, seed: int = 0) -> torch.Tensor:
    """
    Runs k-means (Lloyd's iterations from k-means++ centers) on each clip separately.

    Args:
        features: features of the clips (B, n, D).
        k: number of clusters. A cluster without members keeps its center.
        iterations: maximum number of iterations.
        seed: seed of the first centers. Results do not depend on the other clips of the batch.

    Returns:
        The cluster of each feature, (B, n).

    Raises:
        ValueError: there are fewer features than clusters.
    """
    if not 0 < k <= features.shape[1]:
        raise ValueError(f"k={k} clusters need at least as many features, got {features.shape[1]}.")
    features = features.float()
    features = features - features.mean(1, keepdim=True)  # float32 distances are most precise around zero
    centers = _first_centers(features, k, seed)
    clusters = None
    for _ in range(iterations):
        before, clusters = clusters, _nearest(features, centers)
        if before is not None and torch.equal(before, clusters):
            break
        members = F.one_hot(clusters, k).to(features.dtype)  # (B, n, k)
        sizes = members.sum(1)[..., None]
        centers = torch.where(sizes > 0, members.mT @ features / sizes.clamp(min=1), centers)
    return _nearest(features, centers)


def _nearest(features: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """Returns the nearest of `centers` (B, k, D) to each of `features` (B, n, D): (B, n)."""
    return (centers.square().sum(-1)[:, None] - 2 * features @ centers.mT).argmin(-1)


def _first_centers(features: torch.Tensor, k: int, seed: int) -> torch.Tensor:
    """
    Returns the centers (B, k, D) of k-means++ (Arthur and Vassilvitskii, 2007). Each is a feature, drawn with a
    probability proportional to its squared distance to the nearest earlier center.
    """
    batch = torch.arange(len(features), device=features.device)
    distances = torch.ones_like(features[..., 0])  # (B, n)
    centers: list[torch.Tensor] = []
    for draw in torch.rand(k, generator=torch.Generator().manual_seed(seed)).tolist():
        reached = distances.cumsum(1)
        chosen = (reached <= draw * reached[:, -1:]).sum(1).clamp(max=features.shape[1] - 1)
        centers.append(features[batch, chosen])
        to_new = (features - centers[-1][:, None]).square().sum(-1)
        distances = to_new if len(centers) == 1 else torch.minimum(distances, to_new)
    return torch.stack(centers, 1)


@contextmanager
def record_patches(tower) -> Iterator[dict[str, torch.Tensor]]:
    """
    Records, for each forward pass, the patches (B, T, h, w, D) that the regions are computed from as "patches". For
    the divided space-time ViT, it also records the input of the last block's spatial attention as "attended", from
    which the last of `attentions` can be computed. Requesting `attentions` from the model would keep the matrices of
    all blocks.
    """
    record: dict[str, torch.Tensor] = {}
    hooks = [
        tower.region_module.register_forward_pre_hook(lambda module, inputs: record.update(patches=inputs[0])),
    ]
    if tower.backbone is None:
        attention = tower.layers[-1].space_attention
        hooks.append(attention.register_forward_pre_hook(lambda module, inputs: record.update(attended=inputs[0])))
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def _cls_attention(attention, hidden_states: torch.Tensor) -> torch.Tensor:
    """Returns the attention of CLS to each patch, (B, heads, T * N), for `hidden_states` (B, 1 + T * N, D)."""
    query, key, _ = attention.project(hidden_states)
    scores = torch.einsum("bhd,bnhd->bhn", query[:, 0].float(), key.float()) * attention.scaling
    return scores.softmax(-1)[..., 1:]


def baseline_masks(
    name: str, tower, record: Mapping[str, torch.Tensor], masks: torch.Tensor, labels: torch.Tensor, first: int
) -> torch.Tensor:
    """
    Returns the masks (B, T, any, h, w) of one of `BASELINES`.

    Args:
        name: one of `BASELINES`.
        tower: the video tower.
        record: the record from [`record_patches`] of the forward pass that gave `masks`.
        masks: the learned masks (B, T, S, h, w).
        labels: label maps (B, T, H, W).
        first: index of the first clip of the batch, so that results do not depend on how clips are batched.
    """
    batch, frames, regions, height, width = masks.shape
    if name == "uniform":
        return torch.ones_like(masks)
    if name == "grid":
        return grid_masks(regions, height, width).to(masks.device).expand_as(masks)
    if name == "random_positions":
        generators = [torch.Generator().manual_seed(first + i) for i in range(batch)]
        return torch.stack([moved_masks(clip, generator) for clip, generator in zip(masks, generators)])
    if name == "kmeans":
        clusters = kmeans(record["patches"].flatten(1, 3), regions).view(batch, frames, 1, height, width)
        return (clusters == torch.arange(regions, device=masks.device)[:, None, None]).float()
    if name == "cls_attention":
        attention = _cls_attention(tower.layers[-1].space_attention, record["attended"])
        if len(attention) == batch:  # (B, heads, T * N)
            return attention.unflatten(2, (frames, height, width)).transpose(1, 2)
        return attention.unflatten(2, (height, width)).unflatten(0, (batch, frames))  # late fusion: a clip per frame
    if name == "oracle":  # one mask per object, for the clip of the batch with the most objects
        objects = one_hot(labels.flatten(0, 1), max(1, int(labels.max())), torch.float32)
        return F.adaptive_avg_pool2d(objects, (height, width)).unflatten(0, (batch, frames))
    raise ValueError(f"{name!r} is not a baseline (baselines: {', '.join(BASELINES)}).")

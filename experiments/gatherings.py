"""Alternatives to learned regions that pool a clip into the same number of vectors. They are not part of the package.

Each replaces the attention of the queries; the rest, from the projection of the values to the MLP, is the same. (In
[`Grid`], which replaces the masks of the form "decoupled", everything else is the same as there.) All
clips of the experiments have the same number of frames, so none of them uses the `frame_mask`. Patch dropout is not
supported either.
"""

import torch
import torch.nn.functional as F
from torch import nn

from region_learner import RegionLearnerVideoConfig
from region_learner.evaluation.region_baselines import grid_masks, kmeans
from region_learner.modeling_region_learner import (
    _MAX_SQUARED_DISTANCE,
    _MOMENTS,
    _PATH_SCALE,
    RegionLearnerAggregation,
    RegionLearnerLinear,
    RegionLearnerQueries,
    RegionLearnerVideoModel,
    _moments,
)

_ROUNDS = 2  # rounds of slot attention in each frame
_KMEANS_ITERATIONS = 10
_MOST_OBJECTS = 6  # of a clip of the built-in corpora
_CERTAIN = 50.0  # a logit whose softmax is 1


class _Gathering(RegionLearnerQueries):
    """Base class without the layers that match patches and queries."""

    def __init__(self, config):
        super().__init__(config)
        self.q_proj = self.k_proj = self.query_norm = self.key_norm = None  # type: ignore[assignment]


class Cells(_Gathering):
    """Each vector is a cell of the same grid in all frames."""

    def attend(self, features, places, frame_mask):
        batch, frames, height, width, _ = features.shape
        cells = grid_masks(self.queries.shape[1], height, width).flatten(1).to(features.device)  # (cells, h * w)
        return (cells / cells.sum(1, keepdim=True)).expand(batch, 1, frames, -1, -1)


class FrameCells(_Gathering):
    """Each vector is a cell of one frame, the same grid in all frames: fewer and larger cells than [`Cells`]."""

    def attend(self, features, places, frame_mask):
        batch, frames, height, width, _ = features.shape
        per_frame, left = divmod(self.queries.shape[1], frames)
        if left:
            raise ValueError(f"{self.queries.shape[1]} cells cannot be {frames} equal grids.")
        cells = grid_masks(per_frame, height, width).flatten(1).to(features.device)  # (cells, h * w)
        weights = torch.block_diag(*[frames * cells / cells.sum(1, keepdim=True)] * frames)  # (S, T * h * w)
        return weights.unflatten(1, (frames, -1)).transpose(0, 1).expand(batch, 1, -1, -1, -1)


class RandomPatches(_Gathering):
    """
    Each vector is a patch at the same position in all frames. The positions are random for each clip. Training draws
    new ones in each step, and evaluation always draws the same.
    """

    def attend(self, features, places, frame_mask):
        batch, frames, height, width, _ = features.shape
        generator = None if self.training else torch.Generator().manual_seed(0)
        order = torch.rand(batch, height * width, generator=generator).argsort(1)[:, : self.queries.shape[1]]
        places = F.one_hot(order, height * width).float().to(features.device)
        return places[:, None, None].expand(-1, 1, frames, -1, -1)


class Clusters(_Gathering):
    """Each vector is a k-means cluster of the patches of a clip: the mean of its members in each frame."""

    def attend(self, features, places, frame_mask):
        count, frames = self.queries.shape[1], features.shape[1]
        values = F.layer_norm(features.detach().flatten(1, 3).float(), features.shape[-1:])
        clusters = kmeans(values, count, iterations=_KMEANS_ITERATIONS)
        members = F.one_hot(clusters, count).float().unflatten(1, (frames, -1)).transpose(2, 3)  # (B, T, S, h * w)
        return (members / members.sum(-1, keepdim=True).clamp(min=1))[:, None]


class TrueMasks(_Gathering):
    """
    The true masks of the objects, on the patch grid, instead of learned ones: an upper bound for what masks can
    contribute. The first six vectors are objects, in an order that is random for each clip. Training draws a new order
    in each step, and evaluation always draws the same. Vectors without an object pool nothing, also in single frames.
    The other vectors are cells of a grid.
    """

    labels: torch.Tensor  # of the current clips, (B, T, H, W): 0, or n where the n-th object is visible

    def attend(self, features, places, frame_mask):
        batch, frames, height, width, _ = features.shape
        objects = F.one_hot(self.labels.long(), _MOST_OBJECTS + 1)[..., 1:].permute(0, 1, 4, 2, 3).float()
        shares = F.adaptive_avg_pool2d(objects.flatten(0, 1), (height, width))  # of each object in each patch
        generator = None if self.training else torch.Generator().manual_seed(0)
        shares = self.degrade(shares.unflatten(0, (batch, frames)), generator).flatten(3)  # (B, T, objects, h * w)
        order = self.order(batch, frames, generator).to(features.device)
        shares = shares.gather(2, order[..., None].expand_as(shares))
        cells = grid_masks(self.queries.shape[1] - _MOST_OBJECTS, height, width).flatten(1).to(features.device)
        masks = torch.cat([shares, cells.expand(batch, frames, -1, -1)], 2)
        return (masks / masks.sum(-1, keepdim=True).clamp(min=1e-6))[:, None]

    def degrade(self, shares: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Returns the masks that are used in place of `shares` (B, T, objects, h, w)."""
        return shares

    def order(self, batch: int, frames: int, generator: torch.Generator | None) -> torch.Tensor:
        """Returns which object each vector pools, (B, T, objects)."""
        return torch.rand(batch, 1, _MOST_OBJECTS, generator=generator).argsort(2).expand(-1, frames, -1)


class BlurredMasks(TrueMasks):
    """Like [`TrueMasks`], but each mask is the mean of the true mask over 3 x 3 patches."""

    def degrade(self, shares, generator):
        return F.avg_pool2d(shares.flatten(0, 1), 3, stride=1, padding=1).view_as(shares)


class MissingMasks(TrueMasks):
    """Like [`TrueMasks`], but a quarter of the objects, drawn at random, have no mask."""

    def degrade(self, shares, generator):
        is_found = torch.rand(len(shares), _MOST_OBJECTS, generator=generator) >= 0.25
        return shares * is_found.to(shares)[:, None, :, None, None]


class UntrackedMasks(TrueMasks):
    """Like [`TrueMasks`], but the order of the objects is different in each frame."""

    def order(self, batch, frames, generator):
        return torch.rand(batch, frames, _MOST_OBJECTS, generator=generator).argsort(2)


def give_labels(model: RegionLearnerVideoModel) -> None:
    """Makes a video model with [`TrueMasks`] accept clips (B, T, 4, H, W) whose last channel are label maps."""

    def split(module, arguments, options):
        clips, *others = arguments or (options.pop("pixel_values_videos"),)
        module.region_module.aggregation.labels = clips[:, :, 3]
        return (clips[:, :, :3], *others), options

    model.register_forward_pre_hook(split, with_kwargs=True)


class Grid(RegionLearnerAggregation):
    """The masks are the cells of a grid, the same in all frames."""

    def __init__(self, config):
        super().__init__(config)
        self.conv = _GridLogits(config.num_regions)  # type: ignore[assignment]


class _GridLogits(nn.Module):
    def __init__(self, cells: int):
        super().__init__()
        self.cells = cells

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns logits of masks (N, cells, h, w) for `features` (N, D, h, w)."""
        cells = grid_masks(self.cells, *features.shape[2:]).to(features.device)
        return _CERTAIN * cells.float().expand(len(features), -1, -1, -1)


class Convolution(_Gathering):
    """Masks come from a 3 x 3 convolution, as in the paper, with a softmax over the positions of a frame."""

    def __init__(self, config):
        super().__init__(config)
        self.conv = nn.Conv2d(config.hidden_size, config.num_regions, kernel_size=3, padding=1)

    def attend(self, features, places, frame_mask):
        batch, frames = features.shape[:2]
        logits = self.conv(features.flatten(0, 1).permute(0, 3, 1, 2)).float()  # (B * T, S, h, w)
        return logits.flatten(2).unflatten(0, (batch, frames)).softmax(-1)[:, None]


class Slots(RegionLearnerQueries):
    """
    Slot attention (arXiv 2006.15055): slots compete for each patch, and are updated after each round. The slots of a
    frame initialize those of the next frame (arXiv 2111.12594).
    """

    def __init__(self, config):
        super().__init__(config)
        self.num_heads = 1
        self.update = nn.GRUCell(config.hidden_size, config.hidden_size)

    def attend(self, features, places, frame_mask):
        slots, found = self.queries.expand(len(features), -1, -1), []
        for frame in self.key_norm(features.flatten(2, 3)).unbind(1):  # (B, h * w, D)
            keys, values = self.k_proj(frame), self.v_proj(frame)
            for _ in range(_ROUNDS):
                scores = self.q_proj(self.query_norm(slots)) @ keys.transpose(1, 2) * keys.shape[-1] ** -0.5
                shares = scores.float().softmax(1) + 1e-8  # of each patch, over slots
                weights = shares / shares.sum(-1, keepdim=True)
                gathered = weights.to(values.dtype) @ values
                with torch.autocast(features.device.type, enabled=False):
                    slots = self.update(gathered.float().flatten(0, 1), slots.float().flatten(0, 1)).view_as(slots)
            found.append(weights)
        return torch.stack(found, 1)[:, None]


def _scores(queries: RegionLearnerQueries, query: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Returns the scores (B, H, T, S, h * w) of patches for projected queries (B or 1, S, D)."""
    key = queries._heads(queries.k_proj(queries.key_norm(features.flatten(1, 3))))
    scores = (queries._heads(query) @ key.transpose(-1, -2) * key.shape[-1] ** -0.5).float()
    return scores.unflatten(3, (features.shape[1], -1)).transpose(2, 3)


class Competing(RegionLearnerQueries):
    """Learned queries that compete for each patch, as slots do: a softmax over queries instead of positions."""

    competes = True

    def attend(self, features, places, frame_mask):
        return self.weights(self.q_proj(self.query_norm(self.queries)), features)

    def weights(self, query: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Returns the weights (B, H, T, S, h * w) of patches for projected queries (B or 1, S, D)."""
        scores = _scores(self, query, features)
        if not self.competes:
            return scores.softmax(-1)
        shares = scores.softmax(3) + 1e-6  # of each patch, over queries
        return shares / shares.sum(-1, keepdim=True)


class _AttendingTwice(RegionLearnerQueries):
    """
    Base class of queries that attend twice: what a query finds in the first pass, averaged over the frames, is added
    to it for the second pass. So the second pass looks for this particular object in every frame.
    """

    def __init__(self, config):
        super().__init__(config)
        self.refine = RegionLearnerLinear(config.hidden_size, config.hidden_size)
        self.second_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.second_q_proj = RegionLearnerLinear(config.hidden_size, config.hidden_size, bias=False)

    def second_query(self, first: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Returns the projected queries (B, S, D) of the second pass; `first` are the weights of the first pass."""
        value = self._heads(self.v_proj(self.value_norm(features.flatten(1, 3))))
        found = (first.to(value.dtype) @ value.unflatten(2, (features.shape[1], -1))).mean(2)  # (B, H, S, D / H)
        return self.second_q_proj(self.second_norm(self.queries + self.refine(found.transpose(1, 2).flatten(2))))


class RefinedCompeting(_AttendingTwice, Competing):
    """Competing queries that attend twice."""

    def attend(self, features, places, frame_mask):
        first = super().attend(features, places, frame_mask)
        return self.weights(self.second_query(first, features), features)


class Refined(RefinedCompeting):
    """Like [`RefinedCompeting`], but without competition."""

    competes = False


class Tracking(RegionLearnerQueries):
    """The tracks of `region_form="tracks"`, unchanged."""

    def __init__(self, config):
        super().__init__(RegionLearnerVideoConfig.from_dict(config.to_dict() | {"region_form": "tracks"}))


class Anchored(Tracking):
    """Like [`Tracking`], but the places of the queries are the same in all frames."""

    def _follow(self, scores, places, frame_mask):
        far = (self.anchors[:, None].float() - places).square().sum(-1).clamp(max=_MAX_SQUARED_DISTANCE)  # (S, h * w)
        return (scores - self.nearness.float()[:, None, None, None] * far).softmax(-1)


class RefinedTracking(_AttendingTwice, Tracking):
    """Like [`Tracking`], but each track is followed twice."""

    competes = False

    def attend(self, features, places, frame_mask):
        first = super().attend(features, places, frame_mask)
        scores = _scores(self, self.second_query(first, features), features)
        return self._follow(scores, places, frame_mask)

    def _follow(self, scores, places, frame_mask):
        if not self.competes:
            return super()._follow(scores, places, frame_mask)
        centers, nearness = self.anchors.float(), self.nearness.float()[:, None, None]
        found = []
        for of_frame in scores.unbind(2):  # (B, H, S, h * w)
            far = (centers[..., None, :] - places).square().sum(-1).clamp(max=_MAX_SQUARED_DISTANCE)
            shares = (of_frame - nearness * (far if far.ndim == 2 else far[:, None])).softmax(2) + 1e-6
            found.append(shares / shares.sum(-1, keepdim=True))
            centers = found[-1].mean(1) @ places  # (B, S, 2)
        return torch.stack(found, 2)


class RefinedCompetingTracking(RefinedTracking):
    """Like [`RefinedTracking`], but the tracks compete for each patch, as in [`Competing`]."""

    competes = True


class TrackingHeads(Tracking):
    """Like [`Tracking`], but the path of a region has the centers of all heads, not only of their mean."""

    def __init__(self, config):
        super().__init__(config)
        self.path_proj = RegionLearnerLinear(_MOMENTS * 2 * self.num_heads, config.hidden_size, bias=False)

    def path(self, weights, masks, places, frame_mask):
        centers = (weights @ places).permute(0, 2, 3, 1, 4).flatten(3)  # (B, T, S, H * 2)
        return _PATH_SCALE * _moments(centers, frame_mask).transpose(1, 2).flatten(2)


class TracksAndCells(Tracking):
    """
    Like [`Tracking`], but half of the heads pool the cell of the grid in which the track begins. The other half
    follows the mean of all heads of [`Tracking`]. Masks and paths are means of tracks and cells.
    """

    def attend(self, features, places, frame_mask):
        batch, frames, height, width, _ = features.shape
        cells = grid_masks(self.queries.shape[1], height, width).flatten(1).to(features.device)  # (S, h * w)
        cells = (cells / cells.sum(1, keepdim=True)).expand(batch, self.num_heads // 2, frames, -1, -1)
        tracks = super().attend(features, places, frame_mask)
        return torch.cat([tracks[:, self.num_heads // 2 :], cells.to(tracks.dtype)], 1)


GATHERINGS: dict[str, type[RegionLearnerQueries | RegionLearnerAggregation]] = {
    "cells": Cells,
    "frame_cells": FrameCells,
    "random_patches": RandomPatches,
    "clusters": Clusters,
    "true_masks": TrueMasks,
    "blurred_masks": BlurredMasks,
    "missing_masks": MissingMasks,
    "untracked_masks": UntrackedMasks,
    "grid": Grid,
    "convolution": Convolution,
    "slots": Slots,
    "competing": Competing,
    "refined": Refined,
    "refined_competing": RefinedCompeting,
    "anchored": Anchored,
    "tracking": Tracking,
    "refined_tracking": RefinedTracking,
    "refined_competing_tracking": RefinedCompetingTracking,
    "tracking_heads": TrackingHeads,
    "tracks_and_cells": TracksAndCells,
}

"""
Regions, measured: how well they land on objects where label maps of the objects are known, what simpler masks reach
under the same rules, and what can be said of regions without knowing any object.

**What a mask weighs.** Region s of a frame is the mean over positions of mask_s x content. Masks come in two forms.
A *raw* mask has any sign and offset: an offset only adds the frame's mean content, which says nothing about where
the region looks, and what follows is linear first of all, so that a mask and its negative serve equally well. What
it weighs a position by is how far it departs there from its mean over the frame, in either direction (as the
pictures of `visualization` have it). A *normalised* mask is h * w times a distribution over the frame's positions:
neither sign nor offset is free, and it weighs a position by its value as it is. It is known by that contract
(`are_normalized`).

**What belongs to a region.** The positions whose weight is above Otsu's threshold (IEEE Trans. SMC 9, 1979) of the
weights of this mask in this frame: the cut that leaves the least variance on its two sides. One rule for learned
masks and everything that they are compared with. It has no parameter to tune in favour of any of them, does not
depend on scale and offset of the weights (so not on those of a raw mask, nor on its sign), and finds both parts of a
mask of two values, whatever their sizes. To a mask that weighs all positions alike, but for rounding, the whole frame
belongs, and nothing to one that weighs none (a cluster without a member).

**At which resolution.** Masks are enlarged bilinearly to the label maps, and thresholds are those of the masks as
they were. Pooling label maps to the masks' grid would lose small objects, and let every method choose among a few
dozen cells only. "oracle" says how far masks of this resolution go.

All shares are in percent. What cannot be measured (a change over time in clips of one frame, say) is None.
"""

import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

from ..corpora import CorpusError, load_masks
from ..corpora.rows import read_row
from ..corpora.webdataset import video_source
from ..loader_processes import load_in_order
from ..video_decoding_region_learner import VideoDecodeError
from ..visualization import draw_clusters, draw_region_grid, draw_regions, frames_from_pixel_values
from .retrieval import warn_of_unreadable
from .tasks import _evaluating

logger = logging.getLogger(__name__)

# What learned masks are compared with, by the same functions:
# uniform: constant masks, and so guessing: its pointing is that of S points at random, its IoU that of whole frames.
# grid: S cells of the frame, the same in all frames.
# random_positions: the learned masks, each moved to a place at random in each frame, around the frame's borders:
#     their shapes and sizes without their places.
# kmeans: clusters of the features that the region module gets, over all frames of a clip, k = S.
# cls_attention: what the CLS token attends to in the last block, a map a head.
# oracle: no baseline but a mark to aim at: each object's own share of each position, a mask an object.
BASELINES = ("uniform", "grid", "random_positions", "kmeans", "cls_attention", "oracle")

# Label maps are thinned out to this many points a position of the masks, and side: between two positions masks are
# straight lines. All 16 x 16 pixels of a patch are four times the work for the same IoU, to half a percent.
_POINTS = 8

_CLIPS_AT_ONCE = 16  # of a report


# --- Masks -------------------------------------------------------------------------------------------------------


def are_normalized(masks: torch.Tensor) -> bool:
    """
    Whether masks (..., h, w) keep the contract of normalised ones: nowhere negative, and 1 in the mean over a frame.
    (Of most of them: a region that lost all of a frame to others may have a mean of anything.)
    """
    means = masks.float().mean((-2, -1))
    return bool((masks >= 0).all() and ((means - 1).abs() < 0.01).float().mean() > 0.5)


def _prepare(masks: Any, signed: bool | None) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """
    What `_weigh` makes weights of, (..., h, w), between -1 and 1; the threshold (..., 1, 1) of these weights, minus
    infinity where all are equal and infinity where all are zero; and whether the masks are raw.
    """
    masks = torch.as_tensor(masks)
    if masks.ndim < 3 or not masks.is_floating_point() or 0 in masks.shape:
        raise ValueError(
            f"Masks are floating-point numbers of shape (..., S, h, w), not {tuple(masks.shape)} of {masks.dtype}."
        )
    if not masks.isfinite().all():
        raise ValueError("The masks hold values that are not finite.")
    if signed is None:
        signed = not are_normalized(masks)
    if not signed and (masks < 0).any():
        raise ValueError("Masks that are not signed have no negative values.")
    values = masks.to(torch.promote_types(masks.dtype, torch.float32))
    rounding = 8 * torch.finfo(masks.dtype).eps * values.abs().amax((-2, -1), keepdim=True)
    if signed:
        values = values - values.mean((-2, -1), keepdim=True)
        values = torch.where(values.abs().amax((-2, -1), keepdim=True) <= rounding, 1.0, values)
    weights = _weigh(values, signed)
    largest = weights.amax((-2, -1), keepdim=True)
    even = largest - weights.amin((-2, -1), keepdim=True) <= rounding
    largest_or_1 = torch.where(largest > 0, largest, 1.0)
    threshold = _otsu((weights / largest_or_1).flatten(-2))[..., None]
    threshold = torch.where(even, torch.where(largest > 0, -math.inf, math.inf), threshold)
    return values / largest_or_1, threshold, signed


def _weigh(values: torch.Tensor, signed: bool) -> torch.Tensor:
    return values.abs() if signed else values


def _otsu(values: torch.Tensor) -> torch.Tensor:
    """
    Otsu's threshold of each row of `values` (..., n), exactly, without a histogram: (..., 1), halfway between the
    two values that it parts.
    """
    values = values.sort(-1).values
    n = values.shape[-1]
    if n == 1:
        return values
    low = torch.arange(1, n, device=values.device)  # values below the cut
    sums = values.cumsum(-1)
    distance = (sums[..., -1:] - sums[..., :-1]) / (n - low) - sums[..., :-1] / low  # of the means of both sides
    between = low * (n - low) * distance.square()
    between = between.masked_fill(values[..., 1:] == values[..., :-1], -1)
    cut = between.argmax(-1, keepdim=True)
    return (values.gather(-1, cut) + values.gather(-1, cut + 1)) / 2


def region_weights(masks: Any, signed: bool | None = None) -> torch.Tensor:
    """
    How much each region weighs each position, as a distribution over the frame.

    Args:
        masks: floating-point numbers (..., S, h, w), as in `RegionLearnerVideoOutput.region_masks`.
        signed: whether sign and offset mean nothing, as for raw masks; by default unless `are_normalized`.

    Returns:
        (..., S, h, w), none negative, of sum 1 over positions (0 for a mask that is zero).

    Raises:
        ValueError: the masks are of another shape or type, not finite, or negative but not `signed`.
    """
    values, _, signed = _prepare(masks, signed)
    weights = _weigh(values, signed)
    return weights / weights.sum((-2, -1), keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def binarize_masks(masks: Any, signed: bool | None = None, size: Sequence[int] | None = None) -> torch.Tensor:
    """
    Which positions belong to each region, by Otsu's threshold; see the head of this file.

    Args:
        masks, signed: as in [`region_weights`].
        size: height and width of what comes out; by default those of the masks.

    Returns:
        booleans (..., S, h, w), or with that size.
    """
    values, threshold, signed = _prepare(masks, signed)
    return _weigh(_enlarge(values, size or values.shape[-2:]), signed) > threshold


def _enlarge(values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    if tuple(size) == tuple(values.shape[-2:]):
        return values
    large = F.interpolate(values.flatten(0, -3)[None], tuple(size), mode="bilinear", align_corners=False)
    return large.view(*values.shape[:-2], *size)


# --- Masks and objects -------------------------------------------------------------------------------------------


class RegionMetrics:
    """
    How well masks land on objects, over any number of clips.

    An object counts once in every frame in which it is to be seen (on one at least of 8 x 8 points a position of the
    masks); means are over these.

    - `iou`: the best intersection over union of the object and any region's positions.
    - `clip_iou`: the same of one region an object, the one that is best in the mean over the clip's frames.
    - `pointing`: some region's peak, the centre of the position of its largest weight, is on the object.
    - `precision`: share of the peaks, in frames with an object, that are on any.
      Where several positions are equally large, the peak is any of them by chance, and where a centre lies between
      pixels, it is in any of these: both count in part.
    - `owned`: more than half of some region's weight, summed over its own positions, is on the object. A region can
      have a majority on one object only: different objects have different owners, with nothing to be matched.
    - `stability`: the owner of the object owns it in the next frame, too, if the object is still to be seen. (Of
      several owners, the one with the largest IoU.)

    All in percent. What guessing reaches is what uniform masks reach: a point at random hits objects by their share
    of the frame's area. The best of more masks is better, so the number of `masks` is told.

    Args:
        signed: as in [`region_weights`].
    """

    def __init__(self, signed: bool | None = None):
        self.signed = signed
        self.masks = self.clips = self.frames = 0
        self.sums: dict[str, float] = {}

    def update(self, masks: Any, label_maps: Any) -> None:
        """
        Adds clips.

        Args:
            masks: (B, T, S, h, w), or of one clip, (T, S, h, w).
            label_maps: integers (B, T, H, W), or (T, H, W), of the same frames and the same part of them: 0 for the
                background, n for the n-th object. H >= h, W >= w.

        Raises:
            ValueError: for other types, or shapes that do not fit.
        """
        masks = torch.as_tensor(masks)
        labels = torch.as_tensor(label_maps).to(masks.device)
        if masks.ndim == 4 and labels.ndim == 3:
            masks, labels = masks[None], labels[None]
        fit = masks.ndim == 5 and labels.ndim == 4 and masks.shape[:2] == labels.shape[:2]
        if not fit or labels.shape[2] < masks.shape[3] or labels.shape[3] < masks.shape[4]:
            raise ValueError(
                "Masks (B, T, S, h, w) go with label maps (B, T, H, W) of the same clips and frames, no smaller; got "
                f"{tuple(masks.shape)} and {tuple(labels.shape)}."
            )
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"Label maps are integers, not {labels.dtype}.")
        values, threshold, signed = _prepare(masks, self.signed)
        batch, frames, regions = masks.shape[:3]
        self.clips, self.frames = self.clips + batch, self.frames + batch * frames
        self.masks = max(self.masks, regions)
        objects = int(labels.max())
        if not objects:
            return

        # From here on the frames of all clips in one row, F = B * T, and O objects.
        values, threshold = values.flatten(0, 1), threshold.flatten(0, 1)
        full, labels = labels.flatten(0, 1), _thin(labels.flatten(0, 1), masks.shape[-2:])
        of_object = _one_hot(labels, objects, values.dtype).flatten(2).mT  # (F, H * W, O)
        weights = _weigh(_enlarge(values, labels.shape[-2:]), signed)  # (F, S, H, W)
        inside = (weights > threshold).to(values.dtype).flatten(2)  # (F, S, H * W)
        pixels = of_object.sum(1)  # (F, O)
        visible = pixels > 0
        shared = inside @ of_object  # (F, S, O)
        iou = shared / (inside.sum(2, keepdim=True) + pixels[:, None] - shared).clamp(min=1)

        weights = weights.flatten(2).mul_(inside)
        owns = 2 * (weights @ of_object) > weights.sum(2, keepdim=True)  # (F, S, O)
        owner = iou.masked_fill(~owns, -1).argmax(1)  # (F, O); the first region where there is none
        owned = owns.any(1)

        hit, peaks = self._peaks(_weigh(values, signed), threshold, full, objects)  # (F, S, O), (F, S)
        over_time = (batch, frames)
        followed = owned.unflatten(0, over_time)[:, :-1] & visible.unflatten(0, over_time)[:, 1:]  # (B, T - 1, O)
        owners_now = owner.unflatten(0, over_time)[:, :-1, None]
        kept = owns.unflatten(0, over_time)[:, 1:].gather(2, owners_now)[:, :, 0] & followed
        self._add(
            objects=visible.sum(),
            iou=iou.amax(1).sum(),
            clip_iou=iou.unflatten(0, over_time).sum(1).amax(1).sum(),
            pointing=(1 - (1 - hit).prod(1)).sum(),
            owned=owned.sum(),
            hits=hit.sum(),
            peaks=(peaks & visible.any(1, keepdim=True)).sum(),
            kept=kept.sum(),
            followed=followed.sum(),
        )

    @staticmethod
    def _peaks(
        weights: torch.Tensor, threshold: torch.Tensor, labels: torch.Tensor, objects: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Chance that the peak of each region is on each object, (F, S, O), and which regions have one, (F, S); of
        `weights` (F, S, h, w), their `threshold` (F, S, 1, 1) and `labels` (F, H, W).
        """
        centres = _one_hot(_around_centres(labels, weights.shape[-2:]), objects, weights.dtype)
        on_object = F.avg_pool2d(centres, 2)  # (F, O, h, w)
        largest = weights.amax((-2, -1), keepdim=True)
        peak = ((weights == largest) | (threshold == -math.inf)) & (threshold < math.inf)
        peak = peak.flatten(2).to(weights.dtype)
        hit = peak @ on_object.flatten(2).mT
        count = peak.sum(2)
        return hit / count.clamp(min=1)[..., None], count > 0

    def _add(self, **sums: torch.Tensor) -> None:
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.item()

    def compute(self) -> dict[str, Any]:
        """
        The metrics of this class by name.

        Raises:
            ValueError: no object was to be seen.
        """
        if not self.sums.get("objects"):
            raise ValueError(f"No object is to be seen in the label maps of {self.clips} clips.")
        objects = self.sums["objects"]
        shares = {name: _percent(self.sums[name], objects) for name in ("iou", "clip_iou", "pointing")}
        return shares | {
            "precision": _percent(self.sums["hits"], self.sums["peaks"]),
            "owned": _percent(self.sums["owned"], objects),
            "stability": _percent(self.sums["kept"], self.sums["followed"]),
            "masks": self.masks,
        }


def _percent(part: float, whole: float) -> float | None:
    return 100 * part / whole if whole else None


def _thin(labels: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Label maps (F, H, W) with no more than `_POINTS` rows and columns a position of a grid (h, w)."""
    for axis, cells in enumerate(grid, start=1):
        side = labels.shape[axis]
        points = min(side, _POINTS * cells)
        chosen = ((torch.arange(points, device=labels.device) + 0.5) * side / points).long()
        labels = labels.index_select(axis, chosen)
    return labels


def _around_centres(labels: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """
    The pixels of label maps (F, H, W) around the centre of each position of a grid (h, w): (F, 2 * h, 2 * w). They are
    four times the same one where the centre is in a pixel, not between two.
    """
    for axis, cells in enumerate(grid, start=1):
        centres = (torch.arange(cells, device=labels.device) + 0.5) * labels.shape[axis] / cells
        chosen = torch.stack([centres.ceil() - 1, centres.floor()], dim=1)
        labels = labels.index_select(axis, chosen.flatten().long())
    return labels


def _one_hot(labels: torch.Tensor, classes: int, dtype: torch.dtype) -> torch.Tensor:
    """Labels (F, H, W), 0 for the background, to (F, classes, H, W)."""
    numbers = torch.arange(1, classes + 1, device=labels.device)
    return (labels[:, None] == numbers[:, None, None]).to(dtype)


def region_metrics(masks: Any, label_maps: Any, signed: bool | None = None) -> dict[str, Any]:
    """The metrics of [`RegionMetrics`] for the clips of one `update`."""
    metrics = RegionMetrics(signed)
    metrics.update(masks, label_maps)
    return metrics.compute()


# --- Masks to compare with ---------------------------------------------------------------------------------------


def grid_masks(regions: int, height: int, width: int) -> torch.Tensor:
    """
    A grid of `regions` cells over (height, width) positions, as masks (regions, height, width) of 0 and 1. As near
    to a square of cells as the number permits, and no more rows than columns: 8 are 2 x 4, and 7 are 1 x 7.
    """
    rows = max(divisor for divisor in range(1, math.isqrt(regions) + 1) if regions % divisor == 0)
    columns = regions // rows
    row, column = torch.arange(height) * rows // height, torch.arange(width) * columns // width
    cell = row[:, None] * columns + column
    return (cell == torch.arange(regions)[:, None, None]).float()


def moved_masks(masks: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """
    Masks of one clip, (T, S, h, w), each moved by a random number of rows and columns of its own; what leaves the
    frame on one side comes in on the other.
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
    k-means (Lloyd's iterations from k-means++ centres) of each clip on its own.

    Args:
        features: (B, n, D).
        k: clusters; one that no feature is nearest to keeps its centre.
        iterations: at most.
        seed: of the first centres; results do not depend on the other clips of the batch.

    Returns:
        The cluster of each feature, (B, n).

    Raises:
        ValueError: there are fewer features than clusters.
    """
    if not 0 < k <= features.shape[1]:
        raise ValueError(f"{features.shape[1]} features make no {k} clusters.")
    features = features.float()
    features = features - features.mean(1, keepdim=True)  # distances of float32 are best around zero
    centres = _first_centres(features, k, seed)
    clusters = None
    for _ in range(iterations):
        before, clusters = clusters, _nearest(features, centres)
        if before is not None and torch.equal(before, clusters):
            break
        members = F.one_hot(clusters, k).to(features.dtype)  # (B, n, k)
        sizes = members.sum(1)[..., None]
        centres = torch.where(sizes > 0, members.mT @ features / sizes.clamp(min=1), centres)
    return _nearest(features, centres)


def _nearest(features: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """The nearest of `centres` (B, k, D) to each of `features` (B, n, D): (B, n)."""
    return (centres.square().sum(-1)[:, None] - 2 * features @ centres.mT).argmin(-1)


def _first_centres(features: torch.Tensor, k: int, seed: int) -> torch.Tensor:
    """
    k-means++ (Arthur and Vassilvitskii, 2007): each centre (B, k, D) is a feature drawn by its squared distance to
    the centres before it.
    """
    batch = torch.arange(len(features), device=features.device)
    distances = torch.ones_like(features[..., 0])  # (B, n)
    centres: list[torch.Tensor] = []
    for draw in torch.rand(k, generator=torch.Generator().manual_seed(seed)).tolist():
        reached = distances.cumsum(1)
        chosen = (reached <= draw * reached[:, -1:]).sum(1).clamp(max=features.shape[1] - 1)
        centres.append(features[batch, chosen])
        to_new = (features - centres[-1][:, None]).square().sum(-1)
        distances = to_new if len(centres) == 1 else torch.minimum(distances, to_new)
    return torch.stack(centres, 1)


@contextmanager
def _last_block(tower) -> Iterator[dict[str, torch.Tensor]]:
    """
    Records, of each forward pass, the output of the last block as "features" and the input of its attention over
    space as "attended". The same as the last of `hidden_states`, and what the last of `attentions` is made of: those
    take the hidden states of all blocks, and the whole matrix of weights of every one, where one row is wanted.
    """
    record: dict[str, torch.Tensor] = {}
    block = tower.layers[-1]
    hooks = [
        block.register_forward_hook(lambda module, inputs, output: record.update(features=output)),
        block.space_attention.register_forward_pre_hook(lambda module, inputs: record.update(attended=inputs[0])),
    ]
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def _cls_attention(attention, hidden_states: torch.Tensor) -> torch.Tensor:
    """How much the CLS query attends to each patch, (B, heads, T * N), of `hidden_states` (B, 1 + T * N, D)."""
    query, key, _ = attention.project(hidden_states)
    scores = torch.einsum("bhd,bnhd->bhn", query[:, 0].float(), key.float()) * attention.scaling
    return scores.softmax(-1)[..., 1:]


def _baseline_masks(
    name: str, tower, record: Mapping[str, torch.Tensor], masks: torch.Tensor, labels: torch.Tensor, first: int
) -> torch.Tensor:
    """
    Masks (B, T, any, h, w) of one of `BASELINES` beside the learned `masks` (B, T, S, h, w); `first`: the number of
    the first clip of the batch, so that results do not depend on how clips are batched.
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
        patches = record["features"][:, 1:].reshape(batch, frames * height * width, -1)  # also of single frames
        clusters = kmeans(patches, regions).view(batch, frames, 1, height, width)
        return (clusters == torch.arange(regions, device=masks.device)[:, None, None]).float()
    if name == "cls_attention":
        attention = _cls_attention(tower.layers[-1].space_attention, record["attended"])
        if len(attention) == batch:  # (B, heads, T * N)
            return attention.unflatten(2, (frames, height, width)).transpose(1, 2)
        return attention.unflatten(2, (height, width)).unflatten(0, (batch, frames))  # each frame a clip of its own
    if name == "oracle":  # as many masks as there are objects in any clip of the batch
        objects = _one_hot(labels.flatten(0, 1), max(1, int(labels.max())), torch.float32)
        return F.adaptive_avg_pool2d(objects, (height, width)).unflatten(0, (batch, frames))
    raise NotImplementedError(name)


# --- A model and objects -----------------------------------------------------------------------------------------


def _tower_with_regions(model):
    """The video tower of a model, or the tower itself."""
    tower = getattr(model, "video_model", model)
    if not tower.config.num_regions:
        codes = " `codebook_use` says how much of its codebook is in use." if tower.config.codebook_size else ""
        raise ValueError(f"The model has no regions to measure: its num_regions is 0.{codes}")
    return tower


def region_quality_of_batches(
    model, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], baselines: Sequence[str] = BASELINES
) -> dict[str, Any]:
    """
    How well the regions of a model land on objects, and what other masks reach on the same clips.

    Args:
        model: any model with a video tower, or the tower alone.
        batches: pairs of `pixel_values_videos` (B, T, C, height, width) and label maps, integers (B, T, H, W), of
            exactly what the model is given to see; see [`align_label_maps`].
        baselines: of `BASELINES`.

    Returns:
        For "learned" and each of the baselines the metrics of [`RegionMetrics`], a dict; and the numbers of `clips`,
        `frames`, and `objects` (those to be seen in each frame, summed over frames).

    Raises:
        ValueError: the model has no regions, there are no clips or objects, or a baseline is not known.
    """
    tower = _tower_with_regions(model)
    if unknown := [name for name in baselines if name not in BASELINES]:
        raise ValueError(f"{unknown[0]!r} is no baseline; choose of {', '.join(BASELINES)}.")
    metrics = {"learned": RegionMetrics()}
    # What is moved is read as what was learned. All others are weights as they are, though not of mean 1.
    metrics |= {name: RegionMetrics(None if name == "random_positions" else False) for name in baselines}
    with _evaluating(model), _last_block(tower) as record:
        for pixel_values, label_maps in batches:
            masks = tower(pixel_values.to(model.device)).region_masks
            labels = torch.as_tensor(label_maps).to(masks.device)
            first = metrics["learned"].clips
            metrics["learned"].update(masks, labels)
            for name in baselines:
                metrics[name].update(_baseline_masks(name, tower, record, masks, labels, first), labels)
    learned = metrics["learned"]
    counts = {"clips": learned.clips, "frames": learned.frames, "objects": round(learned.sums.get("objects", 0))}
    return counts | {name: its_metrics.compute() for name, its_metrics in metrics.items()}


def align_label_maps(
    video_processor, label_maps: np.ndarray, frames: Sequence[int] | np.ndarray | None = None
) -> np.ndarray:
    """
    Takes label maps through the evaluation transforms of a video processor, so that they match its pixel values.

    The processor itself is asked where each of its pixels comes from, with a picture of coordinates: whatever it is
    set to, its resizing and cropping are applied as they are. Labels are those of the nearest source pixel; what a
    crop adds around the frame is background.

    Args:
        video_processor: a `RegionLearnerVideoProcessor`.
        label_maps: (frames of the video, height, width) of the whole video, in the size that it is decoded to.
        frames: the frames the processor took, as in `VideoMetadata.frames_indices`; by default all.

    Returns:
        Label maps (T, height, width) as large as the frames of `pixel_values_videos`.
    """
    rows, columns, inside = _source_pixels(video_processor, *label_maps.shape[1:])
    label_maps = label_maps if frames is None else label_maps[np.asarray(frames)]
    return np.where(inside, label_maps[:, rows, columns], 0)


def _source_pixels(video_processor, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column, in frames of `height` x `width`, of each pixel that comes out, if it is of the frame."""
    row, column = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    picture = torch.stack([row, column, torch.ones_like(row)])[None]  # (1, 3, height, width)
    options: dict[str, Any] = {
        "do_sample_frames": False,
        "do_rescale": False,
        "do_normalize": False,
        "do_convert_rgb": False,
    }
    # Linear interpolation keeps what is linear as it is, without antialiasing up to the border.
    options |= {"resample": Image.Resampling.BILINEAR, "antialias": False, "training": False}
    row, column, frame = video_processor([picture], return_tensors="pt", **options)["pixel_values_videos"][0, 0]
    inside = frame >= 0.5
    frame = frame.clamp(min=0.5)  # padding, which is zero, has been mixed with the frame at its border
    rows, columns = (
        (coordinate / frame).round().long().clamp(0, side - 1).numpy()
        for coordinate, side in ((row, height), (column, width))
    )
    return rows, columns, inside.numpy()


class _LabelledClips(torch.utils.data.Dataset):
    """Clips (T, C, H, W) and their label maps (T, H, W); the message of the error for one that cannot be read."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], video_processor):
        self.rows, self.video_processor = rows, video_processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor] | str:
        row = self.rows[index]
        try:
            frames, metadata = self.video_processor.decode(video_source(row["video"]))
            label_maps = load_masks(row["masks"])
        except (CorpusError, VideoDecodeError) as error:
            return str(error)
        expected = (metadata.total_num_frames, *frames.shape[-2:])
        if label_maps.shape != expected:
            raise ValueError(
                f"Video {row['video_id']!r} has frames of shape {expected}, but label maps of {label_maps.shape}."
            )
        clip = self.video_processor([frames], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"][0]
        label_maps = align_label_maps(self.video_processor, label_maps, metadata.frames_indices)
        return clip, torch.from_numpy(label_maps)


def region_quality(
    model,
    processor,
    dataset: Iterable[dict[str, Any]],
    batch_size: int = 16,
    num_workers: int = 0,
    progress: bool = True,
    baselines: Sequence[str] = BASELINES,
) -> dict[str, Any]:
    """
    How well the regions of a model land on the objects of a corpus with label maps, and what other masks reach.

    Args:
        model: any model with a video tower, or the tower alone.
        processor: its processor, or video processor alone.
        dataset: rows with `video`, `video_id` and `masks`, as of "moving_shapes". Each video, by its id, counts once.
        batch_size: videos at a time.
        num_workers: processes that decode.
        progress: whether to show a bar.
        baselines: of `BASELINES`.

    Returns:
        As [`region_quality_of_batches`], and `unreadable`, the ids of the videos left out.

    Raises:
        ValueError: the model has no regions, the column `masks` is missing, label maps are not those of their video,
            no video can be read, or no object is to be seen.
    """
    _tower_with_regions(model)
    checked = (read_row(row, (), f"row {number}") for number, row in enumerate(dataset))
    rows = {row["video_id"]: row for row in checked}
    if not rows:
        raise ValueError("The data set has no rows.")
    if "masks" not in next(iter(rows.values())):
        raise ValueError("The data set has no column 'masks': label maps of objects come with the built-in corpora.")
    ids = list(rows)
    clips = _LabelledClips(list(rows.values()), getattr(processor, "video_processor", processor))
    batches = load_in_order(clips, batch_size, num_workers, lambda index: f"video {ids[index]!r}")
    unreadable: dict[int, str] = {}

    def readable() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        seen = 0
        total = math.ceil(len(ids) / batch_size)
        shown = None if progress else True
        for clips in tqdm(batches, desc="measuring regions", unit="batch", total=total, disable=shown):
            unreadable.update({seen + i: clip for i, clip in enumerate(clips) if isinstance(clip, str)})
            seen += len(clips)
            if read := [clip for clip in clips if not isinstance(clip, str)]:
                yield torch.stack([clip for clip, _ in read]), torch.stack([labels for _, labels in read])
        if len(unreadable) == seen:
            raise ValueError(f"None of the {seen} videos can be read; the first: {unreadable[0]}")

    result = region_quality_of_batches(model, readable(), baselines)
    warn_of_unreadable(unreadable, ids)
    return result | {"unreadable": [ids[i] for i in unreadable]}


# --- Regions without objects -------------------------------------------------------------------------------------


def mask_report(masks: Any, cluster_ids: Any = None, signed: bool | None = None) -> dict[str, Any]:
    """
    What can be said of regions without knowing any object; see [`region_report`], which it is the work of.

    Args:
        masks: (B, T, S, h, w).
        cluster_ids: integers (B, T, h, w), *optional*.
        signed: as in [`region_weights`].
    """
    masks = torch.as_tensor(masks)
    if masks.ndim != 5:
        raise ValueError(f"Masks of clips are of shape (B, T, S, h, w), not {tuple(masks.shape)}.")
    if signed is None:
        signed = not are_normalized(masks)
    clips, frames, regions, *grid = masks.shape
    weights = region_weights(masks, signed).flatten(3)  # (B, T, S, N)
    inside = binarize_masks(masks, signed).flatten(3).to(weights.dtype)
    areas = inside.sum(-1)
    shared = inside @ inside.mT  # (B, T, S, S)
    overlap = shared / (areas[..., None] + areas[..., None, :] - shared).clamp(min=1)
    difference = torch.cdist(weights, weights, p=1) / 2
    entropy = -torch.special.xlogy(weights, weights).sum(-1) / math.log(max(2, math.prod(grid)))
    change = (weights[:, 1:] - weights[:, :-1]).abs().sum(-1) / 2  # (B, T - 1, S)

    def to_others(pairs: torch.Tensor) -> torch.Tensor | None:
        """(B, T, S, S) to the mean over all other regions, (B, T, S)."""
        own = pairs.diagonal(dim1=-2, dim2=-1)
        return (pairs.sum(-1) - own) / (regions - 1) if regions > 1 else None

    values = {
        "area": areas / math.prod(grid),
        "overlap": to_others(overlap),
        "entropy": entropy,
        "difference": to_others(difference),
        "change": change if frames > 1 else None,
    }
    of_region = {
        name: [None] * regions if value is None else (100 * value.double().mean((0, 1))).tolist()
        for name, value in values.items()
    }
    per_region = [dict(zip(of_region, row)) for row in zip(*of_region.values())]
    means = {name: None if row[0] is None else sum(row) / regions for name, row in of_region.items()}
    used, perplexity = _codes(cluster_ids)
    return {
        "clips": clips,
        "frames": frames,
        "masks": "raw" if signed else "normalised",
        "coverage": 100 * inside.amax(2).double().mean().item(),
        **means,
        "codes": used,
        "perplexity": perplexity,
        "regions": per_region,
    }


def _codes(cluster_ids: Any) -> tuple[int | None, float | None]:
    """How many different codes there are, and the perplexity of their distribution."""
    if cluster_ids is None:
        return None, None
    counts = torch.as_tensor(cluster_ids).unique(return_counts=True)[1]
    shares = counts.double() / counts.sum()
    return len(counts), math.exp(-torch.special.xlogy(shares, shares).sum())


def region_report(model, pixel_values_videos: torch.Tensor) -> dict[str, Any]:
    """
    What can be said of the regions of a model on any clips, without knowing what is to be seen in them.

    Args:
        model: any model with a video tower, or the tower alone.
        pixel_values_videos: (B, T, C, height, width).

    Returns:
        `clips`, `frames` (of each), and `masks`: "raw" (signed, of any offset) or "normalised". Then, in percent and
        averaged over regions, frames and clips:

        - `coverage`: positions that belong to any region.
        - `area`: positions that belong to a region.
        - `overlap`: intersection over union of the positions of two regions, averaged over all pairs.
        - `entropy`: of a region's weight as a distribution over positions; 100 is even, 0 is one position.
        - `difference`: of the weights of two regions, averaged over all pairs: the share of its weight by which one
          would have to move to become the other. 0 for equal ones, 100 for those that have nothing in common.
        - `change`: the same from one frame to the next of one region.

        `codes`: how many different ones there are in all clips; `perplexity`: of how often each is. And `regions`:
        for each region a dict with its own `area`, `overlap`, `entropy`, `difference` and `change`, to or from all
        other regions where there are two.

        None for what the model (without codes, with one region) or the clips (of one frame) do not have.

    Raises:
        ValueError: the model has no regions.
    """
    masks, cluster_ids = _outputs(model, pixel_values_videos)
    return mask_report(masks, cluster_ids)


def _outputs(model, pixel_values_videos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Masks (B, T, S, h, w) and codes (B, T, h, w) of clips of any number, on the CPU."""
    tower = _tower_with_regions(model)
    with _evaluating(model):
        parts = pixel_values_videos.split(_CLIPS_AT_ONCE)
        outputs = [tower(clips.to(model.device), interpolate_pos_encoding=True) for clips in parts]
    masks = torch.cat([output.region_masks.cpu() for output in outputs])
    if outputs[0].cluster_ids is None:
        return masks, None
    return masks, torch.cat([output.cluster_ids.cpu() for output in outputs])


def draw_report(model, processor, videos: Sequence[Any], height: int = 160) -> Image.Image:
    """
    The regions of videos as one picture: for each video its frames with regions, with codes (if the model has any),
    and the mask of every region.

    Args:
        model: any model with a video tower, or the tower alone.
        processor: its processor, or video processor alone.
        videos: anything that is a list of clips for the processor.
        height: of one frame in pixels.

    Raises:
        VideoDecodeError: a video cannot be read.
        ValueError: the model has no regions.
    """
    video_processor = getattr(processor, "video_processor", processor)
    blocks: list[tuple[str, Image.Image]] = []
    for video in videos:
        seen = video_processor([video], return_tensors="pt")["pixel_values_videos"]
        masks, cluster_ids = _outputs(model, seen)
        finer = _scaled_sizes(video_processor, height / seen.shape[-2])
        fine = video_processor([video], return_tensors="pt", do_normalize=False, **finer)["pixel_values_videos"][0]
        frames = frames_from_pixel_values(fine, mean=[0, 0, 0], std=[1, 1, 1])
        name = f"{os.path.basename(video)}: " if isinstance(video, str | os.PathLike) else ""
        blocks.append((f"{name}where each region looks", _row(draw_regions(frames, masks[0], height=height))))
        if cluster_ids is not None:
            blocks.append(("The code of each patch", _row(draw_clusters(frames, cluster_ids[0], height=height))))
        blocks.append(("Every region's mask", draw_region_grid(frames, masks[0], height=height)))
    return _stack(blocks, text=max(11, height // 8))


def _scaled_sizes(video_processor, factor: float) -> dict[str, dict[str, int]]:
    """Options under which a processor takes the same part of a frame in more, or fewer, pixels."""
    if not video_processor.do_resize:
        return {}
    sizes = {name: getattr(video_processor, name) for name in ("size", "crop_size", "output_size")}
    return {
        name: {side: max(1, round(pixels * factor)) for side, pixels in dict(size).items() if pixels}
        for name, size in sizes.items()
        if size is not None
    }


def _row(pictures: Sequence[Image.Image]) -> Image.Image:
    width, height = pictures[0].size
    gap = max(2, height // 32)
    row = Image.new("RGB", (len(pictures) * (width + gap) - gap, height), "white")
    for i, picture in enumerate(pictures):
        row.paste(picture, (i * (width + gap), 0))
    return row


def _stack(blocks: Sequence[tuple[str, Image.Image]], text: int) -> Image.Image:
    """Pictures below one another, each under its heading."""
    font = ImageFont.load_default(size=text)
    width = max(max(picture.width, math.ceil(font.getlength(heading))) for heading, picture in blocks)
    sheet = Image.new("RGB", (width + 2 * text, sum(picture.height + 3 * text for _, picture in blocks)), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for heading, picture in blocks:
        draw.text((text, top + text), heading, fill=(30, 30, 30), font=font, anchor="lm")
        sheet.paste(picture, (text, top + 2 * text))
        top += picture.height + 3 * text
    return sheet

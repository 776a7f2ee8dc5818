"""
Measures how well region masks match objects whose label maps are known.

`region_masks` defines which positions belong to a region, and at which resolution. Label maps are not pooled to the
grid of the masks, which would lose small objects and leave every method with only a few dozen cells to choose from.

All shares are percentages. Values that cannot be measured, such as the change over time in clips of one frame, are
None.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F

from ..region_masks import RegionFocus, region_focus

# Label maps are subsampled to this many points per position of the masks and side, because masks are linear between
# two positions. Using all 16 x 16 pixels of a patch takes four times as long, for the same IoU to half a percent.
_POINTS = 8


class RegionMetrics:
    """
    Measures how well masks match objects, over any number of clips.

    An object counts once in every frame in which it is visible (on at least one of 8 x 8 points per position of the
    masks). Means are taken over these objects.

    - `iou`: the best intersection over union of the object and the positions of any region.
    - `clip_iou`: the same for one region per object, the one with the best mean over the frames of the clip.
    - `pointing`: the peak of some region, that is, the center of the position of its largest weight, is on the object.
    - `precision`: the share of the peaks, in frames with an object, that are on any object.
      If several positions have the largest weight, each is the peak with equal probability, and if a center lies
      between pixels, it is in each of them with equal probability: both count partially.
    - `owned`: more than half of the weight of some region, summed over its own positions, is on the object. A region
      can only have a majority on one object, so different objects have different owners without any matching.
    - `stability`: the owner of the object also owns it in the next frame, if the object is still visible there. (If
      there are several owners, the one with the largest IoU counts.)

    All metrics are percentages. Uniform masks give the result of guessing: a random point hits an object with a
    probability equal to its share of the frame. With more masks, the best one is better, so the number of `masks` is
    reported as well.

    Args:
        signed: as in [`~region_learner.region_masks.region_focus`].

    Example:

        metrics = RegionMetrics()
        metrics.update(outputs.video_model_output.region_masks, label_maps)  # (B, T, S, h, w) and (B, T, H, W)
        metrics.compute()["iou"]
    """

    def __init__(self, signed: bool | None = None):
        self.signed = signed
        self.masks = self.clips = self.frames = 0
        self.sums: dict[str, float] = {}

    def update(self, masks: Any, label_maps: Any) -> None:
        """
        Adds clips.

        Args:
            masks: region masks (B, T, S, h, w), or (T, S, h, w) for one clip.
            label_maps: integers (B, T, H, W), or (T, H, W), for the same frames and the same part of them: 0 for the
                background, n for the n-th object. H >= h, W >= w.

        Raises:
            ValueError: types or shapes do not fit.
        """
        masks = torch.as_tensor(masks)
        labels = torch.as_tensor(label_maps).to(masks.device)
        if masks.ndim == 4 and labels.ndim == 3:
            masks, labels = masks[None], labels[None]
        _check_shapes(masks, labels)
        # From here on, the frames of all clips are along one axis, F = B * T.
        focus = region_focus(masks.flatten(0, 1), self.signed)
        batch, frames, regions = masks.shape[:3]
        self.clips, self.frames = self.clips + batch, self.frames + batch * frames
        self.masks = max(self.masks, regions)
        if objects := int(labels.max()):
            self._count(focus, labels.flatten(0, 1), objects, (batch, frames))

    def _count(self, focus: RegionFocus, labels: torch.Tensor, objects: int, clips: tuple[int, int]) -> None:
        """Adds the measurements of `focus` (F, S, h, w) and `labels` (F, H, W) for O = `objects` objects."""
        hit, has_peak = peaks_on_objects(focus, labels, objects)  # (F, S, O), (F, S)
        labels = thin_out(labels, focus.values.shape[-2:])
        of_object = one_hot(labels, objects, focus.values.dtype).flatten(2).mT  # (F, H * W, O)
        weights = focus.weights(labels.shape[-2:])  # (F, S, H, W)
        inside = (weights > focus.threshold).to(weights.dtype).flatten(2)  # (F, S, H * W)
        pixels = of_object.sum(1)  # (F, O)
        visible = pixels > 0
        # A small object may cover the center of a position, where peaks are, without covering any of the points above.
        hit = hit * visible[:, None]
        shared = inside @ of_object  # (F, S, O)
        iou = shared / (inside.sum(2, keepdim=True) + pixels[:, None] - shared).clamp(min=1)

        weights = weights.flatten(2) * inside
        owns = 2 * (weights @ of_object) > weights.sum(2, keepdim=True)  # (F, S, O)
        owned = owns.any(1)  # (F, O)
        owner = iou.masked_fill(~owns, -1).argmax(1)  # (F, O); the first region if there is no owner
        followed = owned.unflatten(0, clips)[:, :-1] & visible.unflatten(0, clips)[:, 1:]  # (B, T - 1, O)
        owner_before = owner.unflatten(0, clips)[:, :-1, None]
        kept = owns.unflatten(0, clips)[:, 1:].gather(2, owner_before)[:, :, 0] & followed
        counts = {
            "objects": visible.sum(),
            "iou": iou.amax(1).sum(),
            "clip_iou": iou.unflatten(0, clips).sum(1).amax(1).sum(),
            "pointing": (1 - (1 - hit).prod(1)).sum(),
            "owned": owned.sum(),
            "hits": hit.sum(),
            "peaks": (has_peak & visible.any(1, keepdim=True)).sum(),
            "kept": kept.sum(),
            "followed": followed.sum(),
        }
        for name, value in counts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.item()

    def compute(self) -> dict[str, Any]:
        """
        Returns the metrics of all clips so far, by name.

        Raises:
            ValueError: no object was visible.
        """
        if not self.sums.get("objects"):
            raise ValueError(f"No object is visible in the label maps of {self.clips} clips.")
        objects = self.sums["objects"]
        shares = {name: _percent(self.sums[name], objects) for name in ("iou", "clip_iou", "pointing")}
        return shares | {
            "precision": _percent(self.sums["hits"], self.sums["peaks"]),
            "owned": _percent(self.sums["owned"], objects),
            "stability": _percent(self.sums["kept"], self.sums["followed"]),
            "masks": self.masks,
        }


def region_metrics(masks: Any, label_maps: Any, signed: bool | None = None) -> dict[str, Any]:
    """Returns the metrics of [`RegionMetrics`] for the clips of one `update`."""
    metrics = RegionMetrics(signed)
    metrics.update(masks, label_maps)
    return metrics.compute()


def one_hot(labels: torch.Tensor, classes: int, dtype: torch.dtype) -> torch.Tensor:
    """Returns labels (F, H, W), with 0 for the background, in one-hot form (F, classes, H, W)."""
    numbers = torch.arange(1, classes + 1, device=labels.device)
    return (labels[:, None] == numbers[:, None, None]).to(dtype)


def _check_shapes(masks: torch.Tensor, labels: torch.Tensor) -> None:
    fit = masks.ndim == 5 and labels.ndim == 4 and masks.shape[:2] == labels.shape[:2]
    if not fit or labels.shape[2] < masks.shape[3] or labels.shape[3] < masks.shape[4]:
        raise ValueError(
            "Masks (B, T, S, h, w) need label maps (B, T, H, W) of the same clips and frames, at least as large; got "
            f"{tuple(masks.shape)} and {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"Label maps must be integers, got {labels.dtype}.")


def _percent(part: float, whole: float) -> float | None:
    return 100 * part / whole if whole else None


def peaks_on_objects(focus: RegionFocus, labels: torch.Tensor, objects: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Returns the probability that the peak of each region is on each object, (F, S, O), and which regions have a peak,
    (F, S), for `labels` (F, H, W).
    """
    weights = focus.weights()
    centers = one_hot(_around_centers(labels, weights.shape[-2:]), objects, weights.dtype)
    on_object = F.avg_pool2d(centers, 2)  # (F, O, h, w)
    largest = weights.amax((-2, -1), keepdim=True)
    peak = ((weights == largest) | (focus.threshold == -math.inf)) & (focus.threshold < math.inf)
    peak = peak.flatten(2).to(weights.dtype)
    count = peak.sum(2)
    hit = peak @ on_object.flatten(2).mT
    return hit / count.clamp(min=1)[..., None], count > 0


def thin_out(labels: torch.Tensor, grid: torch.Size) -> torch.Tensor:
    """Returns label maps (F, H, W) with at most `_POINTS` rows and columns per position of a grid (h, w)."""
    for axis, cells in enumerate(grid, start=1):
        side = labels.shape[axis]
        points = min(side, _POINTS * cells)
        chosen = ((torch.arange(points, device=labels.device) + 0.5) * side / points).long()
        labels = labels.index_select(axis, chosen)
    return labels


def _around_centers(labels: torch.Tensor, grid: torch.Size) -> torch.Tensor:
    """
    Returns the four pixels of label maps (F, H, W) around the center of each position of a grid (h, w), as
    (F, 2 * h, 2 * w). If the center is inside a pixel instead of between pixels, all four are this pixel.
    """
    for axis, cells in enumerate(grid, start=1):
        centers = (torch.arange(cells, device=labels.device) + 0.5) * labels.shape[axis] / cells
        chosen = torch.stack([centers.ceil() - 1, centers.floor()], dim=1)
        labels = labels.index_select(axis, chosen.flatten().long())
    return labels

"""
Definition of what a region looks at, for both metrics (`evaluation`) and pictures (`visualization`).

**How much weight a mask gives a position.** Region s of a frame is the mean over positions of mask_s x values. Masks
have one of three normalizations (the region option `mask_normalization`), which are read in two ways:

- "none" gives *raw* masks, of any sign and offset. An offset only adds the mean value of the frame, which does not say
  where the region looks. The next layer is linear, so a mask and its negative are equally useful. Therefore, a raw
  mask weights a position by the distance of its value from its mean over the frame, in either direction.
- "positions" and "regions" give *normalized* masks: a distribution over the positions of a frame, times
  height x width, from a softmax over positions, or from a softmax over regions that was divided by its mean. Neither
  sign nor offset is arbitrary, and a mask weights a position by its value. `are_normalized` recognizes such masks.

**Which positions belong to a region.** A position belongs to a region if its weight is above Otsu's threshold (IEEE
Trans. SMC 9, 1979) of the weights of this mask in this frame, which is the cut with the least variance on its two
sides. The rule has no parameter to tune, does not depend on the scale and offset of the weights (nor on the sign of a
raw mask), and separates a mask of two values correctly, whatever their areas. If a mask weights all positions equally,
except for rounding, the whole frame belongs to its region. If all weights are 0, as in the mask of an empty region,
no position does.

**At which resolution.** Masks are enlarged bilinearly. Their thresholds are those before enlargement.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


def are_normalized(masks: torch.Tensor) -> bool:
    """
    Returns whether masks (..., h, w) are normalized: never negative, with a mean of 1 over each frame or over all
    frames. A region that lost a whole frame to others may have any mean there, so it is enough if most masks have a
    mean of 1.
    """
    means = masks.float().mean((-2, -1))
    most = ((means - 1).abs() < 0.01).float().mean() > 0.5
    return bool((masks >= 0).all() and (most or (means.mean() - 1).abs() < 0.01))


@dataclass(frozen=True)
class RegionFocus:
    """
    What regions look at, as returned by [`region_focus`].

    Args:
        values: (..., S, h, w), the values that the weights are computed from. They are between 0 and 1, or between -1
            and 1 for raw masks, whose sign says in which direction a mask departs from its mean. The largest weight of
            a mask is 1.
        scale: (..., S, 1, 1), the scale that the values were divided by.
        threshold: (..., S, 1, 1), the weight above which a position belongs to the region: minus infinity if a mask
            weights all positions equally, and infinity if all its weights are 0.
        signed: whether the masks are raw.
    """

    values: torch.Tensor
    scale: torch.Tensor
    threshold: torch.Tensor
    signed: bool

    def enlarged(self, size: Sequence[int] | None = None) -> torch.Tensor:
        """Returns the values at the height and width `size`, by default that of the masks: (..., S, height, width)."""
        if size is None or tuple(size) == tuple(self.values.shape[-2:]):
            return self.values
        large = F.interpolate(self.values.flatten(0, -3)[None], tuple(size), mode="bilinear", align_corners=False)
        return large.view(*self.values.shape[:-2], *size)

    def weights(self, size: Sequence[int] | None = None) -> torch.Tensor:
        """Returns the weight of each position in each region, at most 1: (..., S, height, width)."""
        values = self.enlarged(size)
        return values.abs() if self.signed else values

    def distributions(self) -> torch.Tensor:
        """Returns weights (..., S, h, w) that sum to 1 over the positions of a frame (to 0 if the mask is zero)."""
        weights = self.weights()
        return weights / weights.sum((-2, -1), keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)

    def areas(self, size: Sequence[int] | None = None) -> torch.Tensor:
        """Returns which positions belong to each region, as booleans (..., S, height, width)."""
        return self.weights(size) > self.threshold


def region_focus(masks: Any, signed: bool | None = None) -> RegionFocus:
    """
    Returns what the regions look at, as defined at the top of this file.

    Args:
        masks: floating-point numbers (..., S, h, w), as in `RegionLearnerVideoOutput.region_masks`.
        signed: whether the masks are raw, of any sign and offset. The default is `not are_normalized(masks)`.

    Raises:
        ValueError: the masks have another shape or dtype, are not finite, or are negative but not `signed`.

    Example:

    ```python
    >>> focus = region_focus(outputs.video_model_output.region_masks)
    >>> areas = focus.areas((224, 224))  # which pixels belong to each region
    ```
    """
    masks = torch.as_tensor(masks)
    if masks.ndim < 3 or not masks.is_floating_point() or 0 in masks.shape:
        raise ValueError(
            f"Masks must be floating-point numbers of shape (..., S, h, w), got {tuple(masks.shape)} of {masks.dtype}."
        )
    if not masks.isfinite().all():
        raise ValueError("The masks contain values that are not finite.")
    if signed is None:
        signed = not are_normalized(masks)
    if not signed and (masks < 0).any():
        raise ValueError("Masks with signed=False must not have negative values: set signed=True, or leave it out.")
    values = masks.to(torch.promote_types(masks.dtype, torch.float32))
    rounding = 8 * torch.finfo(masks.dtype).eps * values.abs().amax((-2, -1), keepdim=True)
    if signed:
        values = values - values.mean((-2, -1), keepdim=True)
        values = torch.where(values.abs().amax((-2, -1), keepdim=True) <= rounding, 1.0, values)
    weights = values.abs() if signed else values
    largest = weights.amax((-2, -1), keepdim=True)
    even = largest - weights.amin((-2, -1), keepdim=True) <= rounding
    scale = torch.where(largest > 0, largest, 1.0)
    threshold = _otsu((weights / scale).flatten(-2))[..., None]
    threshold = torch.where(even, torch.where(largest > 0, -math.inf, math.inf), threshold)
    return RegionFocus(values / scale, scale, threshold, signed)


def _otsu(values: torch.Tensor) -> torch.Tensor:
    """
    Returns Otsu's threshold (..., 1) of each row of `values` (..., n), halfway between the two values that it
    separates. It is exact, without a histogram.
    """
    values = values.sort(-1).values
    n = values.shape[-1]
    if n == 1:
        return values
    low = torch.arange(1, n, device=values.device)  # number of values below the cut
    sums = values.cumsum(-1)
    distance = (sums[..., -1:] - sums[..., :-1]) / (n - low) - sums[..., :-1] / low  # between the means of both sides
    between = low * (n - low) * distance.square()
    between = between.masked_fill(values[..., 1:] == values[..., :-1], -1)
    cut = between.argmax(-1, keepdim=True)
    return (values.gather(-1, cut) + values.gather(-1, cut + 1)) / 2

"""Regions and clusters as pictures: what the video tower looks at, drawn over the frames it saw.

How raw masks become a picture. A region is the mean over positions of mask x feature, with a mask of any sign and
offset. A constant added to a mask only adds that multiple of the frame's mean feature, which says nothing about
*where* the region looks. What does is how far the mask departs from its mean over the frame, in either direction:
a strongly negative weight reads a position as much as a strongly positive one. So every mask is centred in each
frame and divided by one scale per clip (`standardize_masks`), each position goes to the region whose mask departs
most there, and positions where no mask departs by `_FAINTEST` standard deviations stay uncoloured. Which direction
it is, and where several regions look at the same place, shows in `draw_region_grid`.

Regions are numbered from 1 in pictures: region 1 is `region_masks[:, 0]`.
"""

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

# The colours of Okabe and Ito ("Color Universal Design", 2008), with a violet in place of their black, which would
# vanish over dark frames. Any two are at least 16 apart in CIELAB, also under simulated protanopia, deuteranopia
# and tritanopia.
_PALETTE: tuple[Color, ...] = (
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (0, 158, 115),  # green
    (204, 121, 167),  # pink
    (240, 228, 66),  # yellow
    (0, 114, 178),  # blue
    (213, 94, 0),  # vermilion
    (120, 20, 225),  # violet
)

# In standard deviations of a mask: below the first a position is not coloured, from the second on it is fully.
_FAINTEST, _STRONGEST = 1.25, 3.0
# Opacities. The frame has to stay visible under the strongest colour.
_FILL_FAINT, _FILL_STRONG, _FILL_CLUSTER, _LINE, _HEAT = 0.15, 0.55, 0.4, 0.9, 0.85
_ABOVE: Color = (255, 140, 26)
_BELOW: Color = (56, 150, 255)
# Overlays are drawn this much larger and averaged down, for smooth edges.
_SUPERSAMPLING = 2


def region_colors(num_regions: int) -> list[Color]:
    """
    RGB colours of `num_regions` regions, the same ones in every picture. The first 8 can be told apart with any
    common colour vision deficiency; more are distinct, but without that promise.
    """
    if num_regions < 0:
        raise ValueError(f"num_regions must not be negative, got {num_regions}.")
    more = (_spread_color(index) for index in range(num_regions - len(_PALETTE)))
    return [*_PALETTE[:num_regions], *more]


def frames_from_pixel_values(pixel_values: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """
    Undoes the normalisation of one clip.

    Args:
        pixel_values: what the model was given, (T, C, H, W), from values in [0, 1]. One channel becomes grey.
        mean, std: the C values that the processor subtracted and divided by.

    Returns:
        The frames as the model saw them, uint8 (T, H, W, 3).

    Raises:
        ValueError: if the shapes do not fit.
    """
    if pixel_values.ndim != 4 or pixel_values.shape[1] not in (1, 3):
        raise ValueError(
            f"pixel_values must be one clip, (T, C, H, W) with C 1 or 3, got {tuple(pixel_values.shape)}."
        )
    channels = pixel_values.shape[1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"mean and std must have {channels} values, one a channel, got {len(mean)} and {len(std)}.")
    pixels = pixel_values.detach().cpu().float()
    pixels = pixels * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def standardize_masks(region_masks: torch.Tensor) -> torch.Tensor:
    """
    Raw masks of one clip as departures from their mean, in standard deviations.

    Each mask is centred in each frame, because an offset there only adds that frame's mean feature; its scale is
    the standard deviation over the whole clip, so that frames in which a region picks out little stay pale.

    Args:
        region_masks: (T, S, h, w), raw and signed, as in `RegionLearnerVideoOutput.region_masks[i]`.

    Returns:
        float64 (T, S, h, w) on the CPU; all zero for a mask without structure.

    Raises:
        TypeError, ValueError: if `region_masks` is not a floating-point tensor of one clip, or not finite.
    """
    masks = _check_masks(region_masks)
    centred = masks - masks.mean((2, 3), keepdim=True)
    scale = centred.square().mean((0, 2, 3), keepdim=True).sqrt()
    # A mask that is constant but for rounding must not be blown up into structure.
    rounding = 8 * torch.finfo(region_masks.dtype).eps * masks.abs().amax((0, 2, 3), keepdim=True)
    return centred / torch.maximum(scale, rounding).clamp(min=torch.finfo(masks.dtype).tiny)


def draw_regions(
    frames: np.ndarray | torch.Tensor, region_masks: torch.Tensor, *, height: int | None = None
) -> list[Image.Image]:
    """
    Draws what each region of a clip looks at over its frames.

    Each position takes the colour (`region_colors`) of the region whose mask departs most from its mean there, the
    more opaque the further; thin lines bound the areas. Where no mask departs much the frame is left as it is.

    Args:
        frames: what the model saw, uint8 (T, H, W, 3); see `frames_from_pixel_values`.
        region_masks: (T, S, h, w), raw and signed, of the same clip.
        height: of the pictures in pixels; by default that of the frames.

    Returns:
        One RGB picture a frame.

    Raises:
        TypeError, ValueError: if types or shapes do not fit.
    """
    frames = _check_frames(frames)
    masks = standardize_masks(region_masks)
    _check_same_length(frames, masks, "region_masks")
    frames = _resize(frames, height)
    colors = torch.tensor(region_colors(masks.shape[1]), dtype=torch.float64)  # (S, 3)
    return [_draw_frame_regions(frame, mask, colors) for frame, mask in zip(frames, masks)]


def draw_region_grid(
    frames: np.ndarray | torch.Tensor, region_masks: torch.Tensor, *, height: int | None = None
) -> Image.Image:
    """
    Contact sheet of a clip: the frames in the first row, below them one row a region with its mask over the dimmed
    frames, orange where it is above its mean and blue where it is below. Unlike in `draw_regions` every mask is
    seen whole, with its sign. A mask and its negative may serve a trained model equally well: compare rows by
    where they are strong rather than by which of the two colours they have.

    Args:
        frames: what the model saw, uint8 (T, H, W, 3).
        region_masks: (T, S, h, w), raw and signed, of the same clip.
        height: of one frame in pixels; by default that of the frames.

    Returns:
        One RGB picture.

    Raises:
        TypeError, ValueError: if types or shapes do not fit.
    """
    frames = _check_frames(frames)
    masks = standardize_masks(region_masks)
    _check_same_length(frames, masks, "region_masks")
    frames = _resize(frames, height)
    rows = [[Image.fromarray(frame) for frame in frames]]
    rows += [[_draw_heat(frame, mask) for frame, mask in zip(frames, masks[:, s])] for s in range(masks.shape[1])]
    return _contact_sheet(rows)


def draw_clusters(
    frames: np.ndarray | torch.Tensor, cluster_ids: torch.Tensor, *, height: int | None = None
) -> list[Image.Image]:
    """
    Draws the code of each patch over the frames. A code has the same colour in every picture; with thousands of
    codes some look alike, so compare within a clip.

    Args:
        frames: what the model saw, uint8 (T, H, W, 3).
        cluster_ids: integers (T, h, w), of the same clip, as in `RegionLearnerVideoOutput.cluster_ids[i]`.
        height: of the pictures in pixels; by default that of the frames.

    Returns:
        One RGB picture a frame.

    Raises:
        TypeError, ValueError: if types or shapes do not fit.
    """
    frames = _check_frames(frames)
    codes = _check_codes(cluster_ids)
    _check_same_length(frames, codes, "cluster_ids")
    frames = _resize(frames, height)
    return [_draw_frame_clusters(frame, ids) for frame, ids in zip(frames, codes)]


# --- Checks ----------------------------------------------------------------------------------------------------


def _check_frames(frames: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(frames, torch.Tensor):
        frames = frames.detach().cpu().numpy()
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        kind = frames.dtype if isinstance(frames, np.ndarray) else type(frames).__name__
        raise TypeError(
            f"frames must be a uint8 array or tensor of shape (T, H, W, 3), got {kind}; "
            "`frames_from_pixel_values` makes one of pixel values."
        )
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must have the shape (T, H, W, 3), got {frames.shape}.")
    return frames


def _check_masks(region_masks: torch.Tensor) -> torch.Tensor:
    if not isinstance(region_masks, torch.Tensor) or not region_masks.is_floating_point():
        kind = region_masks.dtype if isinstance(region_masks, torch.Tensor) else type(region_masks).__name__
        raise TypeError(
            f"region_masks must be a floating-point tensor of shape (T, S, h, w), got {kind}"
            + ("; a model without regions (num_regions=0) has none." if region_masks is None else ".")
        )
    if region_masks.ndim != 4 or 0 in region_masks.shape:
        raise ValueError(
            f"region_masks must be those of one clip, (T, S, h, w), got {tuple(region_masks.shape)}"
            + ("; take one clip out of the batch, region_masks[i]." if region_masks.ndim == 5 else ".")
        )
    masks = region_masks.detach().cpu().double()
    if not masks.isfinite().all():
        raise ValueError("region_masks holds values that are not finite.")
    return masks


def _check_codes(cluster_ids: torch.Tensor) -> torch.Tensor:
    integer = isinstance(cluster_ids, torch.Tensor) and not (
        cluster_ids.is_floating_point() or cluster_ids.is_complex() or cluster_ids.dtype == torch.bool
    )
    if not integer:
        kind = cluster_ids.dtype if isinstance(cluster_ids, torch.Tensor) else type(cluster_ids).__name__
        raise TypeError(
            f"cluster_ids must be an integer tensor of shape (T, h, w), got {kind}"
            + ("; a model without quantization (codebook_size=0) has none." if cluster_ids is None else ".")
        )
    if cluster_ids.ndim != 3 or 0 in cluster_ids.shape:
        raise ValueError(
            f"cluster_ids must be those of one clip, (T, h, w), got {tuple(cluster_ids.shape)}"
            + ("; take one clip out of the batch, cluster_ids[i]." if cluster_ids.ndim == 4 else ".")
        )
    return cluster_ids.detach().cpu()


def _check_same_length(frames: np.ndarray, other: torch.Tensor, name: str) -> None:
    if len(frames) != len(other):
        raise ValueError(f"There are {len(frames)} frames, but {name} is of {len(other)}, shape {tuple(other.shape)}.")


# --- Drawing one frame -----------------------------------------------------------------------------------------


def _draw_frame_regions(frame: np.ndarray, masks: torch.Tensor, colors: torch.Tensor) -> Image.Image:
    """`frame`: uint8 (H, W, 3); `masks`: standardised, (S, h, w); `colors`: (S, 3)."""
    size = [_SUPERSAMPLING * side for side in frame.shape[:2]]
    strength, region = _upsample(masks, size).abs().max(0)  # (H, W), supersampled
    region = torch.where(strength < _FAINTEST, -1, region)
    rise = ((strength - _FAINTEST) / (_STRONGEST - _FAINTEST)).clamp(0, 1)
    opacity = _FILL_FAINT + (_FILL_STRONG - _FILL_FAINT) * rise
    opacity = torch.where(_outlines(region), _LINE, opacity)
    return _blend(frame, colors[region], torch.where(region < 0, 0.0, opacity))


def _draw_frame_clusters(frame: np.ndarray, codes: torch.Tensor) -> Image.Image:
    """`frame`: uint8 (H, W, 3); `codes`: (h, w)."""
    size = [_SUPERSAMPLING * side for side in frame.shape[:2]]
    distinct, index = codes.unique(return_inverse=True)
    rows, columns = (torch.arange(side) * cells // side for side, cells in zip(size, codes.shape))
    index = index[rows][:, columns]  # no smoothing: a patch has one code
    colors = torch.tensor([_spread_color(code) for code in distinct.tolist()], dtype=torch.float64)
    opacity = torch.where(_outlines(index), _LINE, _FILL_CLUSTER).double()
    return _blend(frame, colors[index], opacity)


def _draw_heat(frame: np.ndarray, mask: torch.Tensor) -> Image.Image:
    """`frame`: uint8 (H, W, 3); `mask`: one region's, standardised, (h, w)."""
    size = [_SUPERSAMPLING * side for side in frame.shape[:2]]
    departure = _upsample(mask[None], size)[0, ..., None]
    color = torch.where(departure > 0, torch.tensor(_ABOVE).double(), torch.tensor(_BELOW).double())
    grey = frame @ np.array([0.299, 0.587, 0.114])  # luma, so that the only hues are those of the heat
    dimmed = np.repeat((0.6 * grey).astype(np.uint8)[..., None], 3, axis=-1)
    return _blend(dimmed, color, _HEAT * (departure[..., 0].abs() / _STRONGEST).clamp(max=1))


def _upsample(masks: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """
    (S, h, w) to (S, *size), smoothly and without overshoot: bicubic interpolation would draw halos around a sharp
    peak, where the mask has nothing. Bilinear interpolation, then a mean over half a cell against its creases.
    """
    half_cells = [max(1, side // cells // 2) | 1 for side, cells in zip(size, masks.shape[-2:])]  # odd
    masks = F.interpolate(masks[None], size=tuple(size), mode="bilinear", align_corners=False)
    for kernel in ((half_cells[0], 1), (1, half_cells[1])):
        padding = (kernel[0] // 2, kernel[1] // 2)
        masks = F.avg_pool2d(masks, kernel, stride=1, padding=padding, count_include_pad=False)
    return masks[0]


def _outlines(labels: torch.Tensor) -> torch.Tensor:
    """Positions of (H, W) `labels` near one with another label, as booleans; about 1 pixel wide in small pictures."""
    width = max(1, round(labels.shape[0] / 400))
    values = labels.double()[None]
    highest = F.max_pool2d(values, 2 * width + 1, stride=1, padding=width)
    lowest = -F.max_pool2d(-values, 2 * width + 1, stride=1, padding=width)
    return (highest != lowest)[0]


def _blend(frame: np.ndarray, color: torch.Tensor, opacity: torch.Tensor) -> Image.Image:
    """
    Lays a supersampled overlay over a frame, which stays exactly as it is where `opacity` is 0.

    `frame`: uint8 (H, W, 3); `color`: (2 H, 2 W, 3); `opacity`: (2 H, 2 W).
    """
    overlay = torch.cat([color * opacity[..., None], opacity[..., None]], dim=-1).permute(2, 0, 1)
    overlay = F.avg_pool2d(overlay, _SUPERSAMPLING).permute(1, 2, 0)  # (H, W, 4), colours times opacity
    pixels = torch.from_numpy(frame.copy()).double() * (1 - overlay[..., 3:]) + overlay[..., :3]
    return Image.fromarray(pixels.round().clamp(0, 255).to(torch.uint8).numpy())


def _resize(frames: np.ndarray, height: int | None) -> np.ndarray:
    """(T, H, W, 3) to (T, height, W', 3) of the same aspect; unchanged without a height."""
    if height is None or height == frames.shape[1]:
        return frames
    if height < 1:
        raise ValueError(f"height must be at least 1 pixel, got {height}.")
    width = max(1, round(frames.shape[2] * height / frames.shape[1]))
    resized = [Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS) for frame in frames]
    return np.stack([np.asarray(frame) for frame in resized])


def _spread_color(index: int) -> Color:
    """The `index`-th of an endless row of colours: hues a golden section apart, in three lightnesses."""
    hue = (0.35 + index * 0.6180339887498949) % 1
    red, green, blue = colorsys.hls_to_rgb(hue, (0.62, 0.42, 0.78)[index % 3], 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


# --- The contact sheet -----------------------------------------------------------------------------------------


def _contact_sheet(rows: list[list[Image.Image]]) -> Image.Image:
    """Lays out plain frames and one row a region, with labels beside the rows and the scale of the heat below."""
    width, height = rows[0][0].size
    gap = max(2, height // 32)
    text = max(11, height // 9)
    font = ImageFont.load_default(size=text)
    colors = region_colors(len(rows) - 1)
    swatch = text // 2
    left = swatch + gap + round(font.getlength(f"Region {len(colors)}")) + 3 * gap
    least = left + round(font.getlength("Region's weight: below … above its mean")) + 9 * text
    size = (
        max(left + len(rows[0]) * (width + gap), least),
        gap + len(rows) * (height + gap) + 2 * text + gap,
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, pictures in enumerate(rows):
        top = gap + row * (height + gap)
        middle = top + height // 2
        if row:
            draw.rectangle((gap, top, gap + swatch - 1, top + height - 1), fill=colors[row - 1])
        label = f"Region {row}" if row else "Frames"
        draw.text((2 * gap + swatch, middle), label, fill=(30, 30, 30), font=font, anchor="lm")
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (left + column * (width + gap), top))
    _draw_scale(draw, (left, size[1] - gap - text), text, font)
    return sheet


def _draw_scale(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    """A bar from far below to far above the mean, as it looks over black, and what it says."""
    x, y = corner
    length = 8 * text
    for offset in range(length):
        departure = 2 * offset / (length - 1) - 1
        color = _ABOVE if departure > 0 else _BELOW
        shade = tuple(round(_HEAT * abs(departure) * channel) for channel in color)
        draw.line((x + offset, y - text // 2, x + offset, y + text // 2), fill=shade)
    draw.text((x + length + text // 2, y), "Region's weight: below … above its mean", (30, 30, 30), font, anchor="lm")

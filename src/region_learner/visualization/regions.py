"""
Draws regions and codes as pictures, over the frames that the video tower saw.

`region_masks` defines which positions belong to a region, for pictures as well as for metrics: a position of a picture
has the color of a region if and only if it belongs to one. The more weight a region gives to a position, the stronger
the color. A position that belongs to several regions shows the one with the greatest weight above its threshold;
`draw_region_grid` shows every mask separately.

Regions are numbered from 1 in pictures: region 1 is `region_masks[:, 0]`.
"""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from ..phrase_maps import phrase_focus
from ..region_masks import RegionFocus, region_focus

Color = tuple[int, int, int]

# The colors of Okabe and Ito ("Color Universal Design", 2008), with violet instead of black, which would be invisible
# over dark frames. Any two are at least 16 apart in CIELAB, also under simulated protanopia, deuteranopia and
# tritanopia.
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

# Opacities. The frame has to stay visible under the strongest color.
_FILL_FAINT, _FILL_STRONG, _FILL_CLUSTER, _LINE, _HEAT = 0.15, 0.55, 0.4, 0.9, 0.85
_ABOVE: Color = (255, 140, 26)
_BELOW: Color = (56, 150, 255)
_BORDER: Color = (255, 255, 255)
# Overlays are drawn this much larger and averaged down, for smooth edges.
_SUPERSAMPLING = 2
# The legend of `draw_region_grid`, for normalized and for raw masks.
_SCALE = ("Weight of the region: 0 … largest", "Mask of the region: below … above its mean")


def region_colors(num_regions: int) -> list[Color]:
    """
    Returns RGB colors for `num_regions` regions, the same ones in every picture. The first 8 can be told apart with
    any common color vision deficiency; more are distinct, but without that guarantee.

    Example:

    ```python
    >>> len(region_colors(12))
    12
    ```
    """
    if num_regions < 0:
        raise ValueError(f"num_regions must be at least 0, not {num_regions}.")
    more = (_spread_color(index) for index in range(num_regions - len(_PALETTE)))
    return [*_PALETTE[:num_regions], *more]


def frames_from_pixel_values(pixel_values: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """
    Undoes the normalization of one clip.

    Args:
        pixel_values: input of the model, (T, C, H, W), made from values in [0, 1]. A single channel becomes gray.
        mean, std: the C values that the processor subtracted and divided by.

    Returns:
        The frames as the model saw them, uint8 (T, H, W, 3).

    Raises:
        ValueError: the shapes do not fit.

    Example:

    ```python
    >>> mean, std = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
    >>> frames_from_pixel_values(torch.zeros(4, 3, 224, 224), mean, std).shape
    (4, 224, 224, 3)
    ```
    """
    if pixel_values.ndim != 4 or pixel_values.shape[1] not in (1, 3):
        raise ValueError(
            f"pixel_values must be one clip, (T, C, H, W) with C 1 or 3, not {tuple(pixel_values.shape)}."
        )
    channels = pixel_values.shape[1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"mean and std must have {channels} values, one per channel, not {len(mean)} and {len(std)}.")
    pixels = pixel_values.detach().cpu().float()
    pixels = pixels * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def frames_of_height(
    video_processor, video: Any, height: int, seen: int, start: float | None = None, end: float | None = None
) -> np.ndarray:
    """
    Returns the frames that a video processor samples from a video, at another resolution than the model sees.

    Args:
        video_processor: a `RegionLearnerVideoProcessor`. If it does not resize, frames keep their size.
        video: a video that it accepts.
        height: approximate height of the frames in pixels.
        seen: height of the frames that the model sees.
        start, end: a span of the video in seconds.

    Returns:
        The same part of the same frames, uint8 (T, H, W, 3).
    """
    sizes = {name: getattr(video_processor, name) for name in ("size", "crop_size", "output_size")}
    scaled = {
        name: {side: max(1, round(pixels * height / seen)) for side, pixels in dict(size).items() if pixels}
        for name, size in sizes.items()
        if size is not None and video_processor.do_resize
    }
    options = {"start": start, "end": end, "do_normalize": False, **scaled}
    clip = video_processor([video], return_tensors="pt", **options)["pixel_values_videos"][0]
    return frames_from_pixel_values(clip, mean=[0, 0, 0], std=[1, 1, 1])


def draw_regions(
    frames: np.ndarray | torch.Tensor,
    region_masks: torch.Tensor,
    *,
    height: int | None = None,
    signed: bool | None = None,
) -> list[Image.Image]:
    """
    Draws the regions of a clip over its frames.

    Each position that belongs to a region has its color (`region_colors`), which is stronger the more weight the
    region gives to it; thin lines bound the areas. Of several regions, the one with the greatest weight above its
    threshold is shown, or the first of equal ones. Positions that belong to no region are unchanged. In frames where a
    raw mask varies less than in others, its color is paler.

    Args:
        frames: the frames that the model saw, uint8 (T, H, W, 3); see `frames_from_pixel_values`.
        region_masks: (T, S, h, w) of the same clip, as in `RegionLearnerVideoOutput.region_masks[i]`.
        height: height of the pictures in pixels; by default that of the frames.
        signed: as in [`~region_learner.region_masks.region_focus`].

    Returns:
        One RGB picture per frame.

    Raises:
        TypeError, ValueError: types or shapes do not fit, or masks are not finite.

    Example:

        outputs = model.video_model(pixel_values_videos)
        statistics = processor.video_processor.image_mean, processor.video_processor.image_std
        frames = frames_from_pixel_values(pixel_values_videos[0], *statistics)
        draw_regions(frames, outputs.region_masks[0], height=224)[0].save("regions.png")
    """
    frames = _check_frames(frames)
    focus = region_focus(_check_masks(region_masks), signed)
    _check_same_length(frames, region_masks, "region_masks")
    frames = _resize(frames, height)
    size = [_SUPERSAMPLING * side for side in frames.shape[1:3]]
    inside, strength = focus.areas(size), _strength(focus, size)
    strongest, region = strength.masked_fill(~inside, -1).max(1)  # (T, H, W), supersampled
    colors = torch.tensor(region_colors(region_masks.shape[1]), dtype=torch.float64)  # (S, 3)
    pictures = []
    for frame, index, strength in zip(frames, region.where(strongest >= 0, -1), strongest):
        opacity = _FILL_FAINT + (_FILL_STRONG - _FILL_FAINT) * strength.clamp(min=0)
        opacity = torch.where(_outlines(index), _LINE, opacity)
        pictures.append(_blend(frame, colors[index], torch.where(index < 0, 0.0, opacity)))
    return pictures


def draw_region_grid(
    frames: np.ndarray | torch.Tensor,
    region_masks: torch.Tensor,
    *,
    height: int | None = None,
    signed: bool | None = None,
) -> Image.Image:
    """
    Draws a contact sheet of a clip: the frames in the first row, and below them one row per region with its mask over
    the dimmed frames. A white line bounds the positions that belong to the region.

    Raw masks are orange where they are above their mean and blue where they are below it. A mask and its negative can
    be equivalent in a trained model, so compare rows by where they are strong rather than by color. Normalized masks
    are orange according to their weight.

    Args:
        frames: the frames that the model saw, uint8 (T, H, W, 3).
        region_masks: (T, S, h, w) of the same clip.
        height: height of one frame in pixels; by default that of the frames.
        signed: as in [`~region_learner.region_masks.region_focus`].

    Returns:
        One RGB picture.

    Raises:
        TypeError, ValueError: types or shapes do not fit, or masks are not finite.

    Example:

    ```python
    >>> frames = np.zeros((4, 224, 224, 3), np.uint8)
    >>> draw_region_grid(frames, torch.rand(4, 8, 14, 14)).mode
    'RGB'
    ```
    """
    frames = _check_frames(frames)
    focus = region_focus(_check_masks(region_masks), signed)
    _check_same_length(frames, region_masks, "region_masks")
    frames = _resize(frames, height)
    size = [_SUPERSAMPLING * side for side in frames.shape[1:3]]
    inside, heat = focus.areas(size), focus.enlarged(size) * _contrast(focus)
    even = focus.threshold == -torch.inf
    heat = heat.masked_fill(even, 0.0)  # a uniform mask has nothing to show
    rows = [[Image.fromarray(frame) for frame in frames]]
    rows += [
        [_draw_heat(*cell) for cell in zip(frames, heat[:, s], inside[:, s])] for s in range(region_masks.shape[1])
    ]
    return _contact_sheet(rows, focus.signed)


def draw_heat_maps(
    frames: np.ndarray | torch.Tensor, heat_maps: torch.Tensor, *, height: int | None = None
) -> list[list[Image.Image]]:
    """
    Draws which parts of a clip match phrases: each heat map over the dimmed frames, in orange according to its value
    relative to its largest value in the clip. A white line bounds the area of the heat map (see `phrase_maps`).

    Args:
        frames: the frames that the model saw, uint8 (T, H, W, 3).
        heat_maps: (P, T, h, w), at least 0, as in [`~region_learner.phrase_maps.PhraseMatch`].
        height: height of the pictures in pixels; by default that of the frames.

    Returns:
        For each heat map one RGB picture per frame.

    Raises:
        TypeError, ValueError: types or shapes do not fit, or heat maps are negative or not finite.

    Example:

        statistics = processor.video_processor.image_mean, processor.video_processor.image_std
        frames = frames_from_pixel_values(pixel_values_videos[0], *statistics)
        matches = find_words(model, processor, pixel_values_videos[0], "a red square")
        draw_heat_maps(frames, torch.stack([match.heat_map for match in matches]))[0][0].save("text.png")
    """
    frames = _check_frames(frames)
    heat_maps = _check_clip("heat_maps", heat_maps, "a floating-point", ("P", "T", "h", "w"), "token_dim")
    _check_same_length(frames, heat_maps[0], "a heat map")
    frames = _resize(frames, height)
    focus = phrase_focus(heat_maps)
    size = [_SUPERSAMPLING * side for side in frames.shape[1:3]]
    heat, inside = focus.enlarged(size), focus.areas(size)
    return [[_draw_heat(*cell) for cell in zip(frames, *maps)] for maps in zip(heat, inside)]


def draw_clusters(
    frames: np.ndarray | torch.Tensor, cluster_ids: torch.Tensor, *, height: int | None = None
) -> list[Image.Image]:
    """
    Draws the code of each patch over the frames. A code has the same color in every picture. With thousands of codes,
    some colors look alike, so compare codes within a clip.

    Args:
        frames: the frames that the model saw, uint8 (T, H, W, 3).
        cluster_ids: integers (T, h, w), of the same clip, as in `RegionLearnerVideoOutput.cluster_ids[i]`.
        height: height of the pictures in pixels; by default that of the frames.

    Returns:
        One RGB picture per frame.

    Raises:
        TypeError, ValueError: types or shapes do not fit.

    Example:

        outputs = model.video_model(pixel_values_videos)
        statistics = processor.video_processor.image_mean, processor.video_processor.image_std
        frames = frames_from_pixel_values(pixel_values_videos[0], *statistics)
        draw_clusters(frames, outputs.cluster_ids[0], height=224)[0].save("codes.png")
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
            f"frames must be a uint8 array or tensor of shape (T, H, W, 3), not {kind}; "
            "`frames_from_pixel_values` makes one from pixel values."
        )
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must have the shape (T, H, W, 3), not {frames.shape}.")
    return frames


def _check_masks(region_masks: Any) -> torch.Tensor:
    return _check_clip(
        "region_masks", region_masks, "a floating-point", ("T", "S", "h", "w"), "regions (num_regions=0)"
    )


def _check_codes(cluster_ids: Any) -> torch.Tensor:
    return _check_clip("cluster_ids", cluster_ids, "an integer", ("T", "h", "w"), "quantization (codebook_size=0)")


def _check_clip(name: str, values: Any, kind: str, dims: Sequence[str], absent: str) -> torch.Tensor:
    """
    Checks that `values` are a tensor of one clip, and returns it on the CPU. `absent` names the part of a model
    without which the model returns None.
    """
    shape = f"({', '.join(dims)})"
    found = values.dtype if isinstance(values, torch.Tensor) else type(values).__name__
    if not isinstance(found, torch.dtype) or _kind(found) != kind:
        hint = f"; a model without {absent} has none." if values is None else "."
        raise TypeError(f"{name} must be {kind} tensor of shape {shape}, not {found}{hint}")
    if values.ndim != len(dims) or 0 in values.shape:
        hint = f"; take one clip out of the batch, {name}[i]." if values.ndim == len(dims) + 1 else "."
        raise ValueError(f"{name} must be those of one clip, {shape}, not {tuple(values.shape)}{hint}")
    return values.detach().cpu()


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "a floating-point"
    return "no" if dtype.is_complex or dtype == torch.bool else "an integer"


def _check_same_length(frames: np.ndarray, other: torch.Tensor, name: str) -> None:
    if len(frames) != len(other):
        raise ValueError(
            f"There are {len(frames)} frames, but {name} has {len(other)} (shape {tuple(other.shape)}): both must "
            "belong to the same clip."
        )


# --- Drawing one frame -----------------------------------------------------------------------------------------


def _contrast(focus: RegionFocus) -> torch.Tensor:
    """Returns the strength of each mask in a frame, relative to the strongest frame of its clip, (T, S, 1, 1)."""
    if not focus.signed:
        return torch.ones_like(focus.scale)
    scale = focus.scale.masked_fill(focus.threshold == -torch.inf, 0.0)
    return scale / scale.amax(0, keepdim=True).clamp(min=torch.finfo(scale.dtype).tiny)


def _strength(focus: RegionFocus, size: Sequence[int]) -> torch.Tensor:
    """Returns the opacity of each region, (T, S, *size): from 0 at the threshold to 1 at the peak of the mask."""
    threshold = focus.threshold.masked_fill(focus.threshold.isinf(), 1.0)
    rise = (focus.weights(size) - threshold) / (1 - threshold).clamp(min=1e-6)
    return rise.clamp(0, 1) * _contrast(focus)


def _draw_frame_clusters(frame: np.ndarray, codes: torch.Tensor) -> Image.Image:
    """Draws `codes` (h, w) over `frame`, uint8 (H, W, 3)."""
    size = [_SUPERSAMPLING * side for side in frame.shape[:2]]
    distinct, index = codes.unique(return_inverse=True)
    rows, columns = (torch.arange(side) * cells // side for side, cells in zip(size, codes.shape))
    index = index[rows][:, columns]  # no smoothing: a patch has one code
    colors = torch.tensor([_spread_color(code) for code in distinct.tolist()], dtype=torch.float64)
    opacity = torch.where(_outlines(index), _LINE, _FILL_CLUSTER).double()
    return _blend(frame, colors[index], opacity)


def _draw_heat(frame: np.ndarray, values: torch.Tensor, inside: torch.Tensor) -> Image.Image:
    """
    Draws one region over a dimmed frame. `frame` is uint8 (H, W, 3). `values`, from -1 to 1, and `inside`, booleans,
    are supersampled.
    """
    gray = frame @ np.array([0.299, 0.587, 0.114])  # luma, so that the only hues are those of the heat
    dimmed = np.repeat((0.6 * gray).astype(np.uint8)[..., None], 3, axis=-1)
    color = torch.where(values[..., None] > 0, torch.tensor(_ABOVE).double(), torch.tensor(_BELOW).double())
    border = _outlines(inside)
    color = torch.where(border[..., None], torch.tensor(_BORDER).double(), color)
    return _blend(dimmed, color, torch.where(border, _LINE, _HEAT * values.abs().clamp(max=1)))


def _outlines(labels: torch.Tensor) -> torch.Tensor:
    """Returns which positions of `labels` (H, W) border on another label, as booleans; 1 pixel in small pictures."""
    width = max(1, round(labels.shape[0] / 400))
    values = labels.double()[None]
    highest = F.max_pool2d(values, 2 * width + 1, stride=1, padding=width)
    lowest = -F.max_pool2d(-values, 2 * width + 1, stride=1, padding=width)
    return (highest != lowest)[0]


def _blend(frame: np.ndarray, color: torch.Tensor, opacity: torch.Tensor) -> Image.Image:
    """
    Lays an overlay over a frame, which stays exactly as it is where `opacity` is 0.

    `frame`: uint8 (H, W, 3); `color`: (2 H, 2 W, 3); `opacity`: (2 H, 2 W), both supersampled.
    """
    overlay = torch.cat([color * opacity[..., None], opacity[..., None]], dim=-1).permute(2, 0, 1)
    overlay = F.avg_pool2d(overlay, _SUPERSAMPLING).permute(1, 2, 0)  # (H, W, 4), colors times opacity
    pixels = torch.from_numpy(frame.copy()).double() * (1 - overlay[..., 3:]) + overlay[..., :3]
    return Image.fromarray(pixels.round().clamp(0, 255).to(torch.uint8).numpy())


def _resize(frames: np.ndarray, height: int | None) -> np.ndarray:
    """Resizes frames (T, H, W, 3) to `height`, keeping the aspect ratio. If it is None, returns them unchanged."""
    if height is None or height == frames.shape[1]:
        return frames
    if height < 1:
        raise ValueError(f"height must be at least 1 pixel, not {height}.")
    width = max(1, round(frames.shape[2] * height / frames.shape[1]))
    resized = [Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS) for frame in frames]
    return np.stack([np.asarray(frame) for frame in resized])


def _spread_color(index: int) -> Color:
    """Returns the `index`-th color of an endless series: hues a golden ratio apart, in three lightnesses."""
    hue = (0.35 + index * 0.6180339887498949) % 1
    red, green, blue = colorsys.hls_to_rgb(hue, (0.62, 0.42, 0.78)[index % 3], 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


# --- The contact sheet -----------------------------------------------------------------------------------------


def _contact_sheet(rows: list[list[Image.Image]], signed: bool) -> Image.Image:
    """Lays out plain frames and one row per region, with labels beside the rows and the scale of the heat below."""
    width, height = rows[0][0].size
    gap = max(2, height // 32)
    text = max(11, height // 9)
    font = ImageFont.load_default(size=text)
    colors = region_colors(len(rows) - 1)
    swatch = text // 2
    left = swatch + gap + round(font.getlength(f"Region {len(colors)}")) + 3 * gap
    least = left + round(font.getlength(_SCALE[signed])) + 9 * text
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
    _draw_scale(draw, (left, size[1] - gap - text), text, font, signed)
    return sheet


def _draw_scale(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    signed: bool,
) -> None:
    """Draws a legend: a bar of the heat, as it looks over black, and its meaning."""
    x, y = corner
    length = 8 * text
    for offset in range(length):
        value = offset / (length - 1)
        value = 2 * value - 1 if signed else value
        color = _ABOVE if value > 0 else _BELOW
        shade = tuple(round(_HEAT * abs(value) * channel) for channel in color)
        draw.line((x + offset, y - text // 2, x + offset, y + text // 2), fill=shade)
    draw.text((x + length + text // 2, y), _SCALE[signed], (30, 30, 30), font, anchor="lm")

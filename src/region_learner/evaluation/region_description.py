"""Describes the regions of a model on any clips, in numbers and pictures."""

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..inference import evaluation_mode
from ..phrase_maps import PhraseMatch, find_words
from ..region_masks import region_focus
from ..visualization import (
    draw_clusters,
    draw_heat_maps,
    draw_region_grid,
    draw_regions,
    frame_strip,
    frames_of_height,
    region_colors,
)
from .region_evaluation import tower_with_regions

_CLIPS_AT_ONCE = 16
_INK = (30, 30, 30)
_LABEL = 60  # maximum number of characters of a phrase in a picture


def mask_report(masks: Any, cluster_ids: Any = None, signed: bool | None = None) -> dict[str, Any]:
    """
    Describes region masks of any origin. [`region_report`] explains the result.

    Args:
        masks: region masks (B, T, S, h, w).
        cluster_ids: codes, integers (B, T, h, w), *optional*.
        signed: as in [`~region_learner.region_masks.region_focus`].
    """
    masks = torch.as_tensor(masks)
    if masks.ndim != 5:
        raise ValueError(f"Masks must have the shape (B, T, S, h, w), not {tuple(masks.shape)}.")
    clips, frames, regions, *grid = masks.shape
    focus = region_focus(masks, signed)
    weights = focus.distributions().flatten(3)  # (B, T, S, N)
    inside = focus.areas().flatten(3).to(weights.dtype)
    areas = inside.sum(-1)
    shared = inside @ inside.mT  # (B, T, S, S)
    overlap = shared / (areas[..., None] + areas[..., None, :] - shared).clamp(min=1)
    difference = torch.cdist(weights, weights, p=1) / 2
    entropy = -torch.special.xlogy(weights, weights).sum(-1) / math.log(max(2, math.prod(grid)))
    change = (weights[:, 1:] - weights[:, :-1]).abs().sum(-1) / 2  # (B, T - 1, S)
    values = {
        "area": areas / math.prod(grid),
        "overlap": _mean_over_others(overlap),
        "entropy": entropy,
        "difference": _mean_over_others(difference),
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
        "masks": "raw" if focus.signed else "normalized",
        "coverage": 100 * inside.amax(2).double().mean().item(),
        **means,
        "codes": used,
        "perplexity": perplexity,
        "regions": per_region,
    }


def _mean_over_others(pairs: torch.Tensor) -> torch.Tensor | None:
    """Returns the means (..., S) of `pairs` (..., S, S) over all other regions; None for a single region."""
    others = pairs.shape[-1] - 1
    return (pairs.sum(-1) - pairs.diagonal(dim1=-2, dim2=-1)) / others if others else None


def _codes(cluster_ids: Any) -> tuple[int | None, float | None]:
    """Returns the number of different codes, and the perplexity of their distribution."""
    if cluster_ids is None:
        return None, None
    counts = torch.as_tensor(cluster_ids).unique(return_counts=True)[1]
    shares = counts.double() / counts.sum()
    return len(counts), math.exp(-torch.special.xlogy(shares, shares).sum())


def region_report(model, pixel_values_videos: torch.Tensor) -> dict[str, Any]:
    """
    Describes the regions of a model on any clips, without knowing what the clips show.

    Args:
        model: any model with a video tower, or the tower alone.
        pixel_values_videos: clips (B, T, C, height, width).

    Returns:
        `clips`, `frames` (per clip), and `masks`: "raw" (of any sign and offset) or "normalized". Then, in percent and
        averaged over regions, frames and clips:

        - `coverage`: share of the positions that belong to any region.
        - `area`: share of the positions that belong to a region.
        - `overlap`: intersection over union of the positions of two regions, averaged over all pairs.
        - `entropy`: entropy of a region's weights as a distribution over positions. 100 means uniform weights, 0 means
          a single position.
        - `difference`: share of the weight of one region that would have to move to turn it into another region,
          averaged over all pairs. 0 means equal regions, 100 means regions that have nothing in common.
        - `change`: the same between one frame and the next, for one region.

        Also `codes`, the number of different codes in all clips, `perplexity`, the perplexity of their distribution,
        and `regions`, a list with one dict per region that has its own `area`, `overlap`, `entropy`, `difference` and
        `change`; values for pairs are averaged over all other regions.

        Values are None if the model has no codes or only one region, or if the clips have only one frame.

    Raises:
        ValueError: the model has no regions.

    Example:

        region_report(model, processor(videos=["clip.mp4"])["pixel_values_videos"])["coverage"]
    """
    masks, cluster_ids = _outputs(model, pixel_values_videos)
    return mask_report(masks, cluster_ids)


def _outputs(model, pixel_values_videos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns the masks (B, T, S, h, w) and codes (B, T, h, w) of any number of clips, on the CPU."""
    tower = tower_with_regions(model)
    with evaluation_mode(model):
        parts = pixel_values_videos.split(_CLIPS_AT_ONCE)
        outputs = [tower(clips.to(model.device), interpolate_pos_encoding=True) for clips in parts]
    masks = torch.cat([output.region_masks.cpu() for output in outputs])
    if outputs[0].cluster_ids is None:
        return masks, None
    return masks, torch.cat([output.cluster_ids.cpu() for output in outputs])


def codebook_use(model, pixel_values_videos: Iterable[torch.Tensor]) -> float:
    """
    Returns the share of the codes that any patch of the given clips is assigned to, between 0 and 1. The model is in
    evaluation mode.

    Args:
        model: a model with a video tower.
        pixel_values_videos: batches of clips (B, T, C, H, W).

    Raises:
        ValueError: the model has no codebook.

    Example:

    ```python
    >>> 0 < codebook_use(model, [pixel_values_videos]) <= 1
    True
    ```
    """
    config = model.config.video_config
    if not config.codebook_size:
        raise ValueError("The model has no codebook: its codebook_size is 0.")
    used = torch.zeros(config.codebook_size, dtype=torch.bool)
    with evaluation_mode(model):
        for batch in pixel_values_videos:
            ids = model.video_model(batch.to(model.device)).cluster_ids
            used[ids.unique().cpu()] = True
    return used.float().mean().item()


def draw_report(model, processor, video: Any, height: int = 160) -> Image.Image:
    """
    Draws the regions of a video as one picture: its frames with regions and their times, its frames with codes (if the
    model has any), and the mask of every region.

    Args:
        model: any model with a video tower, or the tower alone.
        processor: its processor, or the video processor alone.
        video: a video that the processor accepts.
        height: height of one frame in pixels.

    Raises:
        VideoDecodeError: the video cannot be read.
        ValueError: the model has no regions.

    Example:

        draw_report(model, processor, "clip.mp4").save("regions.png")
    """
    seen, frames, times = _read(getattr(processor, "video_processor", processor), video, height)
    masks, cluster_ids = _outputs(model, seen)
    text = max(11, height // 8)
    name = f"{os.path.basename(video)}: " if isinstance(video, str | os.PathLike) else ""
    strip = _timed_strip(draw_regions(frames, masks[0], height=height), times, height, text)
    blocks = [(f"{name}regions", strip), ("Colors of the regions", _color_legend(masks.shape[2], strip.width, text))]
    if cluster_ids is not None:
        codes = draw_clusters(frames, cluster_ids[0], height=height)
        blocks.append(("Code of each patch (one color per code)", frame_strip(codes, height)))
    blocks.append(("Mask of every region", draw_region_grid(frames, masks[0], height=height)))
    return _stack(blocks, text)


def draw_phrases(model, processor, video: Any, text: str, height: int = 160) -> Image.Image:
    """
    Draws which parts of a video match a text and its phrases (see [`~region_learner.phrase_maps.find_words`]), as one
    picture: the frames with their times, and then one row for each phrase with its heat map over the frames.

    Args:
        model: a dual encoder with `token_dim`.
        processor: its processor.
        video: a video that the processor accepts.
        text: the text.
        height: height of one frame in pixels.

    Raises:
        VideoDecodeError: the video cannot be read.
        ValueError: the model does not compare words with regions, or the text has no words.

    Example:

        draw_phrases(model, processor, "clip.mp4", "a red circle moves left").save("phrases.png")
    """
    seen, frames, times = _read(processor.video_processor, video, height)
    matches = find_words(model, processor, seen, text)
    size = max(11, height // 10)
    name = os.path.basename(video) if isinstance(video, str | os.PathLike) else "Frames"
    blocks = [(name, _timed_strip([Image.fromarray(frame) for frame in frames], times, height, size))]
    rows = draw_heat_maps(frames, torch.stack([match.heat_map for match in matches]), height=height)
    blocks += [(_label(match), frame_strip(row, height)) for match, row in zip(matches, rows)]
    return _stack(blocks, size, footer="Orange: the part that matches the phrase. White line: its border.")


def _read(video_processor, video: Any, height: int) -> tuple[torch.Tensor, np.ndarray, list[float] | None]:
    """
    Returns a video as input of the model (1, T, C, h, w), its frames at another height, uint8 (T, H, W, 3), and the
    times of the frames in seconds. Times are None if the video has none, as for a tensor.
    """
    batch = video_processor([video], return_tensors="pt", return_metadata=True)
    seen, metadata = batch["pixel_values_videos"], batch["video_metadata"][0]
    times = None if metadata.fps is None else [float(time) for time in metadata.timestamps]
    return seen, frames_of_height(video_processor, video, height, seen.shape[-2]), times


def _label(match: PhraseMatch) -> str:
    frame = "" if match.peak is None else f", frame {match.peak[0] + 1}"
    text = match.text if len(match.text) <= _LABEL else f"{match.text[: _LABEL - 1]}…"
    return f"“{text}”  {match.similarity:.2f}{frame}"


def _timed_strip(
    pictures: Sequence[Image.Image], times: Sequence[float] | None, height: int, text: int
) -> Image.Image:
    """Joins the pictures of one clip, with the time of each frame below it."""
    strip = frame_strip(pictures, height)
    if times is None:
        return strip
    sheet = Image.new("RGBA", (strip.width, height + 2 * text), "white")
    sheet.paste(strip, (0, 0), strip)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=text)
    for column, time in enumerate(times):
        middle = (column + 0.5) * strip.width / len(times)
        draw.text((middle, height + text), f"{time:.1f} s", fill=_INK, font=font, anchor="mm")
    return sheet


def _color_legend(regions: int, width: int, text: int) -> Image.Image:
    """Returns a legend of at least `width` pixels with the number of each region on its color."""
    side = 2 * text
    per_row = max(1, width // (side + text // 2))
    rows = math.ceil(regions / per_row)
    font = ImageFont.load_default(size=text)
    legend = Image.new("RGB", (max(width, side), rows * (side + text // 2) - text // 2), "white")
    draw = ImageDraw.Draw(legend)
    for region, color in enumerate(region_colors(regions)):
        row, column = divmod(region, per_row)
        left, top = column * (side + text // 2), row * (side + text // 2)
        draw.rectangle((left, top, left + side - 1, top + side - 1), fill=color)
        bright = sum(color) > 3 * 128
        draw.text(
            (left + side / 2, top + side / 2),
            str(region + 1),
            fill=_INK if bright else "white",
            font=font,
            anchor="mm",
        )
    return legend


def _stack(blocks: Sequence[tuple[str, Image.Image]], text: int, footer: str = "") -> Image.Image:
    """Stacks pictures vertically, each under its heading, with a footer below."""
    font = ImageFont.load_default(size=text)
    lines = [footer, *(heading for heading, _ in blocks)]
    width = max(*(picture.width for _, picture in blocks), *(math.ceil(font.getlength(line)) for line in lines))
    height = sum(picture.height + 3 * text for _, picture in blocks) + (2 * text if footer else 0)
    sheet = Image.new("RGB", (width + 2 * text, height), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for heading, picture in blocks:
        draw.text((text, top + text), heading, fill=_INK, font=font, anchor="lm")
        sheet.paste(picture, (text, top + 2 * text), picture if picture.mode == "RGBA" else None)
        top += picture.height + 3 * text
    draw.text((text, top + text // 2), footer, fill=_INK, font=font, anchor="lm")
    return sheet

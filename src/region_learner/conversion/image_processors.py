"""Creates video processors that prepare frames like the image processor of a pre-trained model."""

import math
import os
from typing import Any

from transformers import AutoImageProcessor
from transformers.image_utils import PILImageResampling

from ..video_processing_region_learner import RegionLearnerVideoProcessor
from .checkpoints import start_of


def video_processor_of(name: str | os.PathLike, model: Any, num_frames: int) -> RegionLearnerVideoProcessor:
    """
    Returns a video processor with the resizing, crop, interpolation, mean and standard deviation of an image model.
    SigLIP 2 NaFlex accepts images of any shape; here, all frames are resized to a square of as many patches.

    Args:
        name: directory or Hub name of a model of transformers.
        model: the image model itself, if it is a timm model.
        num_frames: frames per clip.

    Raises:
        OSError: the model has no image processor.
        ValueError: the image processor does not give all images the same size.
    """
    if hasattr(model, "pretrained_cfg"):
        return _of_timm(model, num_frames)
    try:
        images: Any = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise OSError(f"{name} has no image processor (preprocessor_config.json): {start_of(error)}") from error
    if hasattr(images, "max_num_patches"):
        edge = math.isqrt(images.max_num_patches) * images.patch_size
        size, crop = {"height": edge, "width": edge}, None
    else:
        size, crop = _without_none(images.size), None
        if getattr(images, "do_center_crop", False):
            crop = _without_none(images.crop_size)
        if (share := getattr(images, "crop_pct", None)) is not None and "shortest_edge" in size:
            size, crop = _with_share(size["shortest_edge"], crop, share)
    if not {"height", "width"} <= (crop or size).keys():
        raise ValueError(
            f"{name} resizes images to {crop or size}, but the frames of a clip need a height and a width."
        )
    return _processor(
        size,
        crop,
        num_frames=num_frames,
        do_resize=images.do_resize,
        resample=images.resample,
        do_rescale=images.do_rescale,
        rescale_factor=images.rescale_factor,
        do_normalize=images.do_normalize,
        image_mean=list(images.image_mean),
        image_std=list(images.image_std),
    )


def _with_share(edge: int, crop: dict[str, int] | None, share: float) -> tuple[dict[str, int], dict[str, int] | None]:
    """Returns the size and crop that stand for `crop_pct`: of ConvNeXt without a crop, and of PoolFormer with one."""
    square = {"height": edge, "width": edge}
    if crop is None and edge >= 384:  # ConvNeXt squashes large images
        return square, None
    return {"shortest_edge": int(edge / share)}, crop or square


def _of_timm(model: Any, num_frames: int) -> RegionLearnerVideoProcessor:
    config = model.pretrained_cfg
    height, width = getattr(getattr(model, "patch_embed", None), "img_size", None) or config["input_size"][1:]
    crop = {"height": height, "width": width}
    edge = math.floor(max(height, width) / (config.get("crop_pct") or 0.875))
    is_squashed = config.get("crop_mode") == "squash" or height != width
    return _processor(
        crop if is_squashed else {"shortest_edge": edge},
        None if is_squashed else crop,
        num_frames=num_frames,
        resample=PILImageResampling[(config.get("interpolation") or "bilinear").upper()],
        image_mean=list(config["mean"]),
        image_std=list(config["std"]),
    )


def _processor(size: dict[str, int], crop: dict[str, int] | None, **options: Any) -> RegionLearnerVideoProcessor:
    output = crop or size
    return RegionLearnerVideoProcessor(
        size=size, do_center_crop=crop is not None, crop_size=output, output_size=output, **options
    )


def _without_none(size: Any) -> dict[str, int]:
    return {key: value for key, value in dict(size).items() if value is not None}

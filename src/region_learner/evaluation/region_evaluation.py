"""Measures how well the regions of a model match the objects of a corpus, compared with other masks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..corpora import CorpusError, load_masks
from ..corpora.rows import read_row
from ..corpora.webdataset import video_source
from ..inference import evaluation_mode
from ..video_decoding_region_learner import VideoDecodeError
from .reading import read_items, warn_of_unreadable
from .region_baselines import BASELINES, baseline_masks, record_patches
from .region_metrics import RegionMetrics


def tower_with_regions(model):
    """
    Returns the video tower of a model, or the model itself if it is a video tower.

    Raises:
        ValueError: the model has no regions.
    """
    tower = getattr(model, "video_model", model)
    if not tower.config.num_regions:
        codes = " `codebook_use` measures how much of its codebook is used." if tower.config.codebook_size else ""
        raise ValueError(f"The model has no regions to measure: its num_regions is 0.{codes}")
    return tower


def region_quality_of_batches(
    model, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], baselines: Sequence[str] = BASELINES
) -> dict[str, Any]:
    """
    Measures how well the regions of a model match objects, compared with other masks on the same clips.

    Args:
        model: any model with a video tower, or the tower alone.
        batches: pairs of `pixel_values_videos` (B, T, C, height, width) and label maps, integers (B, T, H, W), of
            exactly what the model sees; see [`align_label_maps`].
        baselines: names from `BASELINES`. With a backbone, "cls_attention" is left out.

    Returns:
        The numbers of `clips`, `frames` and visible `objects` (summed over frames); and for "learned" and each of the
        baselines, a dict of the metrics of [`RegionMetrics`].

    Raises:
        ValueError: the model has no regions, there are no clips or objects, or a baseline is not known.
    """
    tower = tower_with_regions(model)
    if unknown := [name for name in baselines if name not in BASELINES]:
        raise ValueError(f"{unknown[0]!r} is not a baseline (baselines: {', '.join(BASELINES)}).")
    if tower.backbone is not None:  # it has its own attention, or none
        baselines = [name for name in baselines if name != "cls_attention"]
    metrics = {"learned": RegionMetrics()}
    # Moved masks are interpreted like the learned ones. All others are weights, even though their mean is not 1.
    metrics |= {name: RegionMetrics(None if name == "random_positions" else False) for name in baselines}
    with evaluation_mode(model), record_patches(tower) as record:
        for pixel_values, label_maps in batches:
            masks = tower(pixel_values.to(model.device)).region_masks
            labels = torch.as_tensor(label_maps).to(masks.device)
            first = metrics["learned"].clips
            metrics["learned"].update(masks, labels)
            for name in baselines:
                metrics[name].update(baseline_masks(name, tower, record, masks, labels, first), labels)
    learned = metrics["learned"]
    counts = {"clips": learned.clips, "frames": learned.frames, "objects": round(learned.sums.get("objects", 0))}
    return counts | {name: its_metrics.compute() for name, its_metrics in metrics.items()}


def align_label_maps(
    video_processor, label_maps: np.ndarray, frames: Sequence[int] | np.ndarray | None = None
) -> np.ndarray:
    """
    Applies the evaluation transforms of a video processor to label maps, so that they match its pixel values.

    The processor transforms a picture of coordinates, which shows where each pixel comes from, whatever the settings
    are. Each label is that of the nearest source pixel.

    Args:
        video_processor: a `RegionLearnerVideoProcessor`.
        label_maps: label maps (frames, height, width) of the whole video, in the size that it is decoded to.
        frames: indices of the frames that the processor sampled, as in `VideoMetadata.frames_indices`. The default is
            all frames.

    Returns:
        Label maps (T, height, width), of the same size as the frames of `pixel_values_videos`.

    Example:

    ```python
    >>> video_processor = RegionLearnerVideoProcessor.for_image_size(32)
    >>> align_label_maps(video_processor, np.zeros((4, 40, 48), np.uint8)).shape
    (4, 32, 32)
    ```
    """
    rows, columns = _source_pixels(video_processor, *label_maps.shape[1:])
    label_maps = label_maps if frames is None else label_maps[np.asarray(frames)]
    return label_maps[:, rows, columns]


def _source_pixels(video_processor, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row and column of each output pixel in frames of `height` x `width`."""
    row, column = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    picture = torch.stack([row, column, torch.zeros_like(row)])[None]  # (1, 3, height, width)
    options: dict[str, Any] = {
        "do_sample_frames": False,
        "do_rescale": False,
        "do_normalize": False,
        "do_convert_rgb": False,
    }
    # Linear interpolation keeps coordinates linear, but antialiasing would not do so at the border.
    options |= {"resample": Image.Resampling.BILINEAR, "antialias": False, "training": False}
    row, column, _ = video_processor([picture], return_tensors="pt", **options)["pixel_values_videos"][0, 0]
    rows, columns = (
        coordinate.round().long().clamp(0, side - 1).numpy() for coordinate, side in ((row, height), (column, width))
    )
    return rows, columns


class _LabeledClips(torch.utils.data.Dataset):
    """Clips (T, C, H, W) and their label maps (T, H, W), or the error message of a clip that cannot be read."""

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
    *,
    batch_size: int = 16,
    num_workers: int = 0,
    progress: bool = True,
    baselines: Sequence[str] = BASELINES,
) -> dict[str, Any]:
    """
    Measures how well the regions of a model match the objects of a corpus with label maps, compared with other masks.

    Args:
        model: any model with a video tower, or the tower alone.
        processor: its processor, or the video processor alone.
        dataset: rows with `video`, `video_id` and `masks`, such as those of "moving_shapes". Videos with the same id
            count once.
        batch_size: videos per batch.
        num_workers: number of decoding processes.
        progress: whether to show a progress bar.
        baselines: names from `BASELINES`.

    Returns:
        The dict of [`region_quality_of_batches`], and `unreadable`, the ids of the videos that were left out.

    Raises:
        ValueError: the model has no regions, the column `masks` is missing, label maps do not fit their video, no
            video can be read, or no object is visible.

    Example:

        rows = load_corpus("moving_shapes", "data/moving_shapes", "test")
        region_quality(model, processor, rows)["learned"]
    """
    tower_with_regions(model)
    rows = rows_with_masks(dataset)
    unreadable: dict[int, str] = {}
    batches = read_labeled_clips(
        processor,
        rows,
        unreadable,
        "measuring regions",
        batch_size=batch_size,
        num_workers=num_workers,
        progress=progress,
    )
    result = region_quality_of_batches(model, ((clips, labels) for _, clips, labels in batches), baselines)
    ids = [row["video_id"] for row in rows]
    return result | {"unreadable": warn_of_unreadable(unreadable, ids)}


def rows_with_masks(dataset: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Returns the rows of a corpus with label maps: for each video id, the first one.

    Raises:
        ValueError: there are no rows, or the column `masks` is missing.
    """
    checked = (read_row(row, (), f"row {number}") for number, row in enumerate(dataset))
    rows: dict[Any, dict[str, Any]] = {}
    for row in checked:
        rows.setdefault(row["video_id"], row)
    if not rows:
        raise ValueError("The dataset has no rows.")
    if "masks" not in next(iter(rows.values())):
        raise ValueError("The dataset has no column 'masks': use a built-in corpus, which has label maps of objects.")
    return list(rows.values())


def read_labeled_clips(
    processor, rows: Sequence[Mapping[str, Any]], unreadable: dict[int, str], description: str, **options: Any
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """
    Yields batches of readable videos: their indices, the clips (B, T, C, height, width), and the label maps
    (B, T, height, width) for exactly these pixels.

    Args:
        processor: a processor, or its video processor.
        rows: rows from [`rows_with_masks`].
        unreadable, description, options: as in `read_items`.

    Raises:
        ValueError: label maps do not fit their video, or too many videos cannot be read.
    """
    clips = _LabeledClips(rows, getattr(processor, "video_processor", processor))
    batches = read_items(clips, lambda index: f"video {rows[index]['video_id']!r}", unreadable, description, **options)
    for indices, items in batches:
        pixel_values, labels = zip(*items)
        yield indices, torch.stack(pixel_values), torch.stack(labels)

"""Computes the features of a frozen backbone and stores them."""

import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .corpora import CorpusError
from .corpora.features import (
    ABOUT,
    FORMAT,
    ROWS,
    as_stored,
    clip_bytes,
    digest_of_weights,
    preprocessing_of,
    shard_path,
    write_rows,
)
from .corpora.rows import check_ids
from .evaluation.provenance import commit_of, digest_of_rows, shown_path
from .evaluation.reading import CorpusRows, read_clips, warn_of_unreadable
from .files import locked, naming, sync_directory, sync_tree, write_json
from .inference import evaluation_mode
from .loading import check_checkpoint, load_checkpoint

logger = logging.getLogger(__name__)

# The size of files: an interrupted run computes at most this much again.
_SHARD_BYTES = 2**30

_PROGRESS = "progress.json"


def compute_features(
    model: str,
    dataset: Any,
    output_dir: str | os.PathLike[str],
    split: str = "train",
    *,
    num_frames: int | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    max_unreadable: float = 0.1,
    overwrite: bool = False,
) -> dict[str, Any]:
    """
    Computes the features of a model's backbone for each video of a corpus, with the transforms of evaluation, and
    writes them to `output_dir/split`, for `load_corpus("features", output_dir, split)`. That directory appears when it
    is complete. The same call resumes an interrupted one.

    Args:
        model: directory or Hub name of a CLIP-like checkpoint or of a RegionLearner with a backbone.
        dataset: rows of `load_corpus`, not streamed.
        output_dir: directory of the features of all splits.
        split: name of the split.
        num_frames: frames per clip; by default, as many as the model expects.
        batch_size: clips per batch.
        num_workers: processes that decode; with 0, the default, this process decodes.
        max_unreadable: share of the videos that may be unreadable; they are left out.
        overwrite: whether to replace features in `output_dir/split`, and to start an interrupted run over if it could
            not read all videos.

    Returns:
        `videos` and `rows`, the numbers of written videos and rows, `bytes`, and `unreadable`, the ids of the videos
        that were left out.

    Raises:
        ValueError: the model does not have a backbone, its features do not fit in float16, or too many videos are
            unreadable.
        CorpusError: `output_dir/split` already exists, and does not have features or is not to be overwritten.
        BlockingIOError: another run is writing there.

    Example:

        compute_features("openai/clip-vit-base-patch16", load_corpus("msvd", "data/MSVD"), "data/msvd-clip")
    """
    output = Path(output_dir)
    if not split or Path(split).name != split or split.startswith("."):
        raise CorpusError(f"split={split!r} must be the name of a directory")
    if (output / split).exists():
        if not (output / split / ABOUT).is_file():  # it may be the videos themselves
            raise CorpusError(f"{output / split} already exists, and does not have features: choose another --output")
        if not overwrite:
            raise CorpusError(
                f"{output / split} already exists: choose another --output, or replace it with --overwrite"
            )
    if not 0 <= max_unreadable <= 1:
        raise ValueError(f"max_unreadable={max_unreadable} must be a share between 0 and 1.")
    check_checkpoint(model)
    check_ids(dataset, "the corpus")
    rows = CorpusRows(dataset, ())
    encoder = _Encoder(model, num_frames)
    about = encoder.about() | {"classes": _class_names(dataset), "source_sha256": digest_of_rows(dataset)}
    output.mkdir(parents=True, exist_ok=True)
    with locked(output, f".{split}.lock"):
        partial = output / f".{split}.partial"
        unreadable = _write_shards(partial, about, rows, encoder, max_unreadable, batch_size, num_workers, overwrite)
        names = warn_of_unreadable(unreadable, rows.ids)
        numbers = itertools.count()
        clip_of = [None if video in unreadable else next(numbers) for video in range(len(rows.ids))]
        clips = len(rows.ids) - len(unreadable)
        written = write_rows(partial / ROWS, dataset, [clip_of[video] for video in rows.owners.tolist()])
        reasons = {rows.ids[video]: reason for video, reason in unreadable.items()}
        write_json(partial / ABOUT, about | {"clips": clips, "rows": written, "unreadable": reasons})
        sync_tree(partial)
        (partial / _PROGRESS).unlink(missing_ok=True)
        _move(partial, output / split)
    return {"videos": clips, "rows": written, "bytes": clips * clip_bytes(encoder.shape), "unreadable": names}


class _Encoder:
    """
    The backbone of a checkpoint, with its processor.

    Raises:
        ValueError: the model does not have a backbone, or has fewer temporal positions than `num_frames`.
    """

    def __init__(self, name: str, num_frames: int | None):
        model, processor = load_checkpoint(name, None)
        self.name, self.model, self.processor = name, getattr(model, "video_model", model), processor
        if self.model.backbone is None:
            raise ValueError(
                f"{name} does not have a backbone: its divided space-time ViT is trained and mixes frames. Use a "
                "CLIP-like checkpoint, or a RegionLearner with a backbone_config."
            )
        processor.num_frames, processor.fps = num_frames or processor.num_frames or self.model.config.num_frames, None
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        size = processor.crop_size if processor.output_size is None else processor.output_size
        black = np.zeros((1, size["height"], size["width"], 3), np.uint8)
        example = self(processor([black], return_tensors="pt")["pixel_values_videos"])
        with evaluation_mode(self.model):
            self.model(example.to(self.model.device))  # raises an error if the model does not accept the features
        self.shape = tuple(example.shape[1:])

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        """Returns the features of clips (B, T, C, H, W), in float16 (B, T, 1 + N, D)."""
        on_gpu = self.model.device.type == "cuda"
        with evaluation_mode(self.model), torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext():
            return self.model.encode_frames(clips.to(self.model.device)).half().cpu()

    def about(self) -> dict[str, Any]:
        """Returns what features.json says about the features."""
        return {
            "format": FORMAT,
            "model": shown_path(self.name),
            "revision": commit_of(self.name),
            "backbone_sha256": digest_of_weights(self.model.backbone),
            "shape": list(self.shape),
            "dtype": "float16",
            "num_frames": self.processor.num_frames,
            "preprocessing": preprocessing_of(self.processor),
            "clips_per_shard": max(1, _SHARD_BYTES // clip_bytes(self.shape)),
        }


def _class_names(dataset: Any) -> dict[str, list[str]]:
    return {name: kind.names for name, kind in dataset.features.items() if hasattr(kind, "names")}


# --- Writing -------------------------------------------------------------------------------------------------


def _start(partial: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Returns the progress of an interrupted run with the same model and corpus, or makes an empty directory."""
    try:
        done = json.loads((partial / _PROGRESS).read_text(encoding="utf-8"))
        if done["about"] == about:
            logger.info("Resuming after %d clips.", done["clips"])
            return done
    except (OSError, ValueError, KeyError, TypeError):  # there is none
        pass
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    return {"clips": 0, "last": 0, "unreadable": {}}


def _write_shards(
    partial: Path,
    about: dict[str, Any],
    rows: CorpusRows,
    encoder: _Encoder,
    max_unreadable: float,
    batch_size: int,
    num_workers: int,
    overwrite: bool,
) -> dict[int, str]:
    """Writes the features of the videos that are not done yet. Returns why videos cannot be read, by their index."""
    done, total = _start(partial, about), len(rows.ids)
    unreadable = {int(video): reason for video, reason in done["unreadable"].items()}
    if unreadable and overwrite:
        logger.info("Starting over, to try the %d videos again that could not be read.", len(unreadable))
        shutil.rmtree(partial)
        done, unreadable = _start(partial, about), {}
    elif unreadable:
        logger.warning(
            "%d videos could not be read before the interruption, and are left out: to start over and try them again, "
            "use --overwrite.",
            len(unreadable),
        )
    last, clips, per_shard = done["last"], done["clips"], about["clips_per_shard"]

    def note(failures: dict[int, str]) -> None:
        # The features of the last clip are there, even if its video cannot be read any more.
        unreadable.update({last + index: reason for index, reason in failures.items() if index > 0 or not clips})

    def encoded() -> Iterator[tuple[int, np.ndarray]]:
        failures: dict[int, str] = {}
        batches = read_clips(
            encoder.processor,
            rows.videos[last:],
            failures,
            "computing features",
            batch_size=batch_size,
            num_workers=num_workers,
        )
        for indices, parts in batches:
            note(failures)
            if len(unreadable) > max_unreadable * total:
                break
            for index, features in zip(indices, torch.cat([encoder(part) for part in parts])):
                name = rows.ids[last + index]
                if features.shape != encoder.shape:
                    raise ValueError(f"{name!r} has features of shape {tuple(features.shape)}, not {encoder.shape}.")
                if not features.isfinite().all():
                    raise ValueError(f"{name!r} has features that do not fit in float16: use another backbone.")
                yield last + index, as_stored(features)
        note(failures)
        if len(unreadable) > max_unreadable * total:
            raise ValueError(
                f"{len(unreadable)} of {total} videos cannot be read, more than max_unreadable={max_unreadable} "
                f"allows: repair or remove them, or raise the limit. The last one: {list(unreadable.values())[-1]}"
            )

    # A resumed run encodes its last clip again, so that there is a clip that can be read even if all others cannot.
    remaining = (item for item in encoded() if not (clips and item[0] == last))
    for shard, group in itertools.groupby(enumerate(remaining, start=clips), lambda item: item[0] // per_shard):
        path = shard_path(partial, shard)
        with naming(path), open(path, "wb") as file:
            for item in group:
                clip, (video, features) = item
                file.write(features.data)
            file.flush()
            os.fsync(file.fileno())
        if (clip + 1) % per_shard == 0:
            earlier = {index: reason for index, reason in unreadable.items() if index < video}
            state = {"clips": clip + 1, "last": video, "unreadable": earlier, "about": about}
            write_json(partial / _PROGRESS, state)
    return dict(sorted(unreadable.items()))


def _move(partial: Path, directory: Path) -> None:
    """Moves a complete directory to its place, where it replaces an earlier one."""
    replaced = directory.with_name(f".{directory.name}.replaced")
    if replaced.exists():
        shutil.rmtree(replaced)
    if directory.exists():
        directory.rename(replaced)
    partial.rename(directory)
    sync_directory(directory.parent)
    if replaced.exists():
        shutil.rmtree(replaced)

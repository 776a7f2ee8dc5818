"""The clips of a setting, decoded once and kept in memory."""

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.video_utils import VideoMetadata

from region_learner import RegionLearnerVideoProcessor, load_corpus
from region_learner.corpora import load_masks
from region_learner.corpora.synthetic import MOVING_SHAPES
from region_learner.corpora.synthetic.base import make_clip, plan_scenes
from region_learner.corpora.synthetic.shapes_tasks import rows_of_task
from region_learner.training.collator import RegionLearnerCollator

from .settings import Setting

SPLITS = ("train", "val", "test")


def unseen(setting: Setting) -> Setting | None:
    """
    Returns a setting whose split "test_unseen" shows combinations of shape and color that no other split shows, with
    as many clips as the test split of `setting`. Returns None if its corpus has no such split.
    """
    if setting.corpus != "moving_shapes":
        return None
    sizes = {"train": 1, "val": 0, "test": 0, "test_unseen": setting.options["test"]}
    return replace(setting, options=setting.options | sizes)


def prepare(setting: Setting, directory: Path, splits: Sequence[str] = SPLITS, labels: bool = False) -> None:
    """
    Generates the corpus and, unless the setting uses clips as drawn, decodes it, once for all runs. Writes
    `directory/SPLIT.npy`, (clips, frames, height, width, 3) uint8, and `directory/corpus.json`, which describes the
    corpus. With `labels`, writes `directory/SPLIT_labeled.npy` instead, with label maps (see [`load_masks`]) as a
    fourth channel.
    """
    directory.mkdir(parents=True, exist_ok=True)
    described = {"corpus": setting.corpus, "options": setting.options}
    (directory / "corpus.json").write_text(json.dumps(described) + "\n", encoding="utf-8")
    for split in splits:
        target = _file(directory, split, labels)
        if not target.exists():
            unfinished = target.with_suffix(".partial.npy")
            if setting.drawn:
                _draw(setting, directory, split, unfinished, labels)
            else:
                rows = load_corpus(setting.corpus, split=split, **setting.options)
                fetch = RegionLearnerVideoProcessor().fetch_videos
                clips = np.stack([fetch(video)[0].permute(0, 2, 3, 1).numpy() for video in rows["video"]])
                if labels:
                    clips = _with_labels(clips, np.stack([load_masks(path) for path in rows["masks"]]))
                np.save(unfinished, clips)
            unfinished.replace(target)


def _file(directory: Path, split: str, labels: bool) -> Path:
    return directory / (f"{split}_labeled.npy" if labels else f"{split}.npy")


def _with_labels(frames: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Returns frames (..., 3) with label maps (...) as a fourth channel."""
    return np.concatenate([frames, masks[..., None]], -1)


def _draw(setting: Setting, directory: Path, split: str, target: Path, labels: bool) -> None:
    """Draws the clips of a split on all cores. Writes frames to `target`, and rows and label maps beside it."""
    options = MOVING_SHAPES.read_options(setting.options)
    scenes = plan_scenes(MOVING_SHAPES, options, split)
    masks = directory / f"{split}_masks"
    masks.mkdir(exist_ok=True)
    shape = (len(scenes), options.frames, options.size, options.size, 4 if labels else 3)
    frames = np.lib.format.open_memmap(target, "w+", np.uint8, shape)
    rows = []
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        drawn = pool.map(partial(make_clip, MOVING_SHAPES, options, split), range(len(scenes)), scenes, chunksize=32)
        for index, (scene, clip) in enumerate(zip(scenes, drawn)):
            video_id = f"{split}-{index:06d}"
            frames[index] = _with_labels(clip.frames, clip.masks) if labels else clip.frames
            row = {"video_id": video_id, "captions": clip.captions, "objects": [asdict(thing) for thing in scene]}
            if split != "train":
                np.savez_compressed(masks / f"{video_id}.npz", masks=clip.masks)
                row["masks"] = str(masks / f"{video_id}.npz")
            rows.append(json.dumps(row) + "\n")
    frames.flush()
    (directory / f"{split}.jsonl").write_text("".join(rows), encoding="utf-8")


@dataclass
class Split:
    """
    A split of a corpus: its `rows`, each with its `index`, and the `frames` that [`prepare`] decoded, with label maps
    as a fourth channel if `labels` were requested.
    """

    rows: list[dict[str, Any]]
    frames: np.memmap

    @classmethod
    def load(cls, setting: Setting, directory: Path, name: str, labels: bool = False) -> "Split":
        """Returns the split `name` from the `directory` that was given to [`prepare`]."""
        frames = np.load(_file(directory, name, labels), mmap_mode="r")
        if setting.drawn:
            lines = (directory / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) | {"video": frames[index, ..., :3]} for index, line in enumerate(lines)]
        else:
            rows = list(load_corpus(setting.corpus, split=name, **setting.options))
        if len(frames) != len(rows):
            raise ValueError(f"{directory} has {len(frames)} clips of {name}, expected {len(rows)}: remove it.")
        return cls([row | {"index": index} for index, row in enumerate(rows)], frames)

    def pairs(self, setting: Setting, name: str) -> list[dict[str, Any]]:
        """Returns the compositional pairs of this split, whose name is `name`."""
        if setting.drawn:
            return rows_of_task(self.rows, "compositional", name)[0]
        return list(load_corpus(setting.corpus, split=name, task="compositional", **setting.options))

    def captions(self) -> list[tuple[int, str]]:
        """Returns every caption with the index of its clip."""
        return [(row["index"], caption) for row in self.rows for caption in row["captions"]]


class ClipsInMemory:
    """
    Makes model inputs from decoded clips: samples and normalizes frames as the processor does. Frames are never
    cropped, because a crop could remove an object that a caption names.
    """

    def __init__(self, processor: RegionLearnerVideoProcessor):
        self.processor = processor
        self.mean, self.std = (torch.tensor(x).view(3, 1, 1) for x in (processor.image_mean, processor.image_std))

    def indices(self, frames: np.ndarray, training: bool = False, generator=None) -> np.ndarray:
        """Returns the indices of the frames to sample from all `frames` of a clip, (n, height, width, 3)."""
        return self.processor.sample_frames(VideoMetadata(len(frames)), training=training, generator=generator)

    def __call__(self, frames: np.ndarray, training: bool = False, generator=None) -> torch.Tensor:
        """Returns the clip, (T, 3, height, width), or (T, 4, height, width) if `frames` have label maps."""
        clip = torch.from_numpy(frames[self.indices(frames, training, generator)]).permute(0, 3, 1, 2)
        return torch.cat([(clip[:, :3] / 255 - self.mean) / self.std, clip[:, 3:]], 1)


class CollatorInMemory(RegionLearnerCollator):
    """The training collator for decoded clips, which it finds by the `index` of a row in `frames`."""

    def __init__(self, processor, frames: np.memmap):
        super().__init__(processor, training=True)
        self.clip, self.frames = ClipsInMemory(processor.video_processor), frames

    def __getstate__(self) -> dict[str, Any]:
        # Loader processes open the file themselves: pickling the array would copy all clips into each of them.
        return self.__dict__ | {"frames": self.frames.filename}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"frames": np.load(state["frames"], mmap_mode="r")})

    def _decode(self, row, generator, unreadable) -> torch.Tensor:
        return self.clip(self.frames[row["index"]], training=True, generator=generator)

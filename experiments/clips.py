"""The clips of a setting, decoded once and held in memory."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers.video_utils import VideoMetadata

from region_learner import RegionLearnerVideoProcessor, load_corpus
from region_learner.training.collator import RegionLearnerCollator

from .settings import Setting

SPLITS = ("train", "val", "test")


def prepare(setting: Setting, directory: Path) -> None:
    """
    Generates the corpus and decodes it, once for all runs: `directory/SPLIT.npy`, (clips, frames, height, width, 3)
    uint8, and `directory/corpus.json`, which says which corpus it is.

    Raises:
        ValueError: if the directory holds another corpus.
    """
    described = json.loads(json.dumps({"corpus": setting.corpus, "options": setting.options}))
    label = directory / "corpus.json"
    if label.exists():
        if json.loads(label.read_text(encoding="utf-8")) != described:
            raise ValueError(f"{directory} holds the clips of another corpus: choose another output, or remove it.")
    else:
        directory.mkdir(parents=True, exist_ok=True)
        label.write_text(json.dumps(described) + "\n", encoding="utf-8")
    processor = RegionLearnerVideoProcessor()
    for split in SPLITS:
        target = directory / f"{split}.npy"
        if target.exists():
            continue
        videos = load_corpus(setting.corpus, split=split, **setting.options)["video"]
        clips = np.stack([processor.fetch_videos(video)[0].permute(0, 2, 3, 1).numpy() for video in videos])
        partial = target.with_suffix(".partial.npy")
        np.save(partial, clips)
        partial.replace(target)


@dataclass
class Split:
    """A split of a corpus: its `rows`, each with its `index`, and the `frames` that [`prepare`] decoded."""

    rows: Dataset
    frames: np.ndarray

    @classmethod
    def load(cls, setting: Setting, directory: Path, name: str) -> "Split":
        """Reads the split `name` from the `directory` that was given to [`prepare`]."""
        rows = load_corpus(setting.corpus, split=name, **setting.options)
        rows = rows.add_column("index", list(range(len(rows))))
        frames = np.load(directory / f"{name}.npy", mmap_mode="r")
        if len(frames) != len(rows):
            raise ValueError(f"{directory} has {len(frames)} clips of {name}, expected {len(rows)}: remove it.")
        return cls(rows, frames)

    def captions(self) -> list[tuple[int, str]]:
        """Returns every caption with the index of its clip."""
        return [(index, caption) for index, captions in enumerate(self.rows["captions"]) for caption in captions]


class ClipsInMemory:
    """
    Makes model inputs from decoded clips: samples and normalises frames as the processor does. Frames are never
    cropped, because a crop could remove what a caption names.
    """

    def __init__(self, processor: RegionLearnerVideoProcessor):
        self.processor = processor
        self.mean, self.std = (torch.tensor(x).view(3, 1, 1) for x in (processor.image_mean, processor.image_std))

    def indices(self, frames: np.ndarray, training: bool = False, generator=None) -> np.ndarray:
        """Returns the indices of the sampled ones of `frames`, (all frames of a clip, height, width, 3)."""
        return self.processor.sample_frames(VideoMetadata(len(frames)), training=training, generator=generator)

    def __call__(self, frames: np.ndarray, training: bool = False, generator=None) -> torch.Tensor:
        """Returns the clip, (T, 3, height, width)."""
        clip = torch.from_numpy(frames[self.indices(frames, training, generator)]).permute(0, 3, 1, 2)
        return (clip / 255 - self.mean) / self.std


class CollatorInMemory(RegionLearnerCollator):
    """The training collator for clips that are already in memory, decoded."""

    def __init__(self, processor, frames: np.ndarray):
        super().__init__(processor, training=True)
        self.clip, self.frames = ClipsInMemory(processor.video_processor), frames

    def _decode(self, row, generator, unreadable) -> torch.Tensor:
        return self.clip(self.frames[row["index"]], training=True, generator=generator)

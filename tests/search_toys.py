"""Small checkpoints and videos for search tests, and functions that read what these tests compare."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from region_learner import RegionLearnerConfig, RegionLearnerModel, RegionLearnerProcessor, RegionLearnerVideoProcessor
from region_learner.corpora.encoding import write_video
from region_learner.training.tokenizer import train_tokenizer

from .conftest import NO_REGIONS, TINY_VIDEO, randomize, tiny_text_config
from .test_backbones import save_family

WORDS = ["a", "red", "blue", "green", "square", "circle", "moves", "left", "right", "up", "down", "slowly", "quickly"]
QUERIES = ["a red square moves left", "blue circle", "down quickly"]
LENGTHS = {"a.mp4": 3, "b.mp4": 14, "sub/c.mp4": 5, "sub/d.mp4": 11.5, "e.mp4": 1}  # of the videos, in seconds
FPS = 4
FRAMES = 4
_QUERIES = {"region_form": "queries", "num_regions": 5, "region_layer": 1, "codebook_size": 0, "interaction_layers": 0}
_TOKENS = {"token_dim": 8, "phrase_window": 3, "token_temperature": 0.02}
_OPTIONS: dict[str, tuple[dict, dict]] = {
    "space_time": ({}, {}), "words": (_QUERIES, _TOKENS), "patches": (NO_REGIONS, _TOKENS)
}  # fmt: skip


def save_checkpoint(kind: str, folder: Path) -> Path:
    """
    Saves a small random model: "space_time", the divided ViT with regions; "words", with tokens of regions that pool
    whole clips; "patches", with tokens of patches; or a family of `test_backbones`.
    """
    if kind not in _OPTIONS:
        save_family(kind, folder)
        return folder
    video, tokens = _OPTIONS[kind]
    tokenizer = train_tokenizer([WORDS] * 20, 99, 16)
    text = tiny_text_config(vocab_size=len(tokenizer))
    torch.manual_seed(0)
    config = RegionLearnerConfig(video_config=TINY_VIDEO | video, text_config=text, projection_dim=16, **tokens)
    randomize(RegionLearnerModel(config)).save_pretrained(folder)
    video_processor = RegionLearnerVideoProcessor.for_image_size(32, num_frames=FRAMES)
    RegionLearnerProcessor(video_processor, tokenizer).save_pretrained(folder)
    return folder


def make_video(path: Path, seconds: float, seed: int, size: int = 48) -> Path:
    """Writes a video whose picture changes every second."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = []
    for _ in range(round(seconds * FPS)):
        if len(frames) % FPS == 0:
            coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
            picture = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
        frames.append(picture)
    write_video(path, np.stack(frames), FPS)
    return path


def make_videos(folder: Path, lengths: Mapping[str, float] = LENGTHS) -> Path:
    """Writes videos of these `lengths` in seconds, by path within the folder."""
    for seed, (name, seconds) in enumerate(lengths.items()):
        make_video(folder / name, seconds, seed)
    return folder


def counts(report: Any) -> dict[str, int]:
    """Returns how many files a report lists under each of its headings, without empty ones."""
    return {name: len(paths) for name, paths in vars(report).items() if paths}


def content(index: Any) -> dict[str, Any]:
    """Returns everything that an index stores about each video, regardless of the order of the rows."""
    vectors = index._current_view().vectors
    return {
        record.video.path: (
            record._replace(spans=record.spans.tolist(), first_row=None),
            vectors.read(record.first_row, record.first_row + len(record.spans)).tobytes(),
        )
        for record in index.database.records()
    }


def answers(index: Any) -> list:
    return index.search(QUERIES, k=50)

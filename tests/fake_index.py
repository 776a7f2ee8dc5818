"""A small index with the interface of `VideoIndex`, which compares spans by their color; texts are names of colors."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from region_learner.corpora.encoding import write_video
from region_learner.search import Hit
from region_learner.video_decoding_region_learner import read_clip

COLORS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220), "yellow": (230, 220, 20)}
FPS = 10


def write_colors(path: Path, *names: str, seconds: float = 4.0, size: tuple[int, int] = (48, 64)) -> Path:
    """Writes a video that shows one color after another, each for `seconds`, with a moving square."""
    frames = []
    for name in names:
        for number in range(round(seconds * FPS)):
            frame = np.full((*size, 3), COLORS[name], np.uint8)
            left = number % (size[1] - 12)
            frame[10:20, left : left + 10] = 255
            frames.append(frame)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.stack(frames), FPS)
    return path


class FakeIndex:
    """
    Stands in for `VideoIndex`.

    Args:
        folder: the directory of the videos.
        spans: the spans that can be found, by path within the folder.
    """

    def __init__(
        self, folder: Path, spans: Mapping[str, list[tuple[float, float]]], model: Any = None, processor=None
    ):
        self.folder, self.spans = Path(folder), dict(spans)
        self.model = model or SimpleNamespace(
            config=SimpleNamespace(video_config=SimpleNamespace(num_regions=0), token_dim=0)
        )
        self.processor = processor
        self.searches: list[dict] = []

    def __len__(self) -> int:
        return len(self.spans)

    def paths(self) -> list[str]:
        return sorted(self.spans)

    def span_of(self, hit: Hit) -> dict:
        return {"start": hit.start, "end": hit.end}

    def source(self, path: str) -> str:
        if path not in self.spans:
            raise KeyError(f"{path} is not in the index.")
        return str(self.folder / path)

    def search(
        self, text=None, image=None, video=None, k=10, within=None, min_probability=0.0, regions=False, exclude=None
    ) -> list[Hit]:
        searched = {"text": text, "image": image, "video": video, "k": k, "within": within, "exclude": exclude}
        self.searches.append(searched)
        if sum(given is not None for given in (text, image, video)) != 1:
            raise ValueError("Give one of text, image and video.")
        if text is not None:
            wanted = np.array(COLORS.get(text, (128, 128, 128)), float)
        else:
            source, *span = video if isinstance(video, tuple) else (image or video,)
            wanted = self._mean_color(source, *span or (0.0, math.inf))
        hits = []
        for path, spans in self.spans.items():
            if within is not None and not path.startswith(within):
                continue
            for start, end in spans:
                if exclude is not None and path == exclude[0] and start < exclude[2] and exclude[1] < end:
                    continue
                nearness = 1 - np.abs(self._mean_color(self.source(path), start, end) - wanted).max() / 255
                hits.append(Hit(path, start, end, round(float(nearness), 3), 0.95 if nearness > 0.8 else 0.05))
        hits = [hit for hit in hits if hit.probability >= min_probability]
        return sorted(hits, key=lambda hit: -hit.score)[:k]

    @staticmethod
    def _mean_color(source: Any, start: float, end: float) -> np.ndarray:
        def middle(metadata, **_):
            fps = metadata.fps or 1
            last = min(end, metadata.total_num_frames / fps)
            return [min(int((start + last) / 2 * fps), metadata.total_num_frames - 1)]

        frames, _ = read_clip(source, middle)
        return np.median(frames.reshape(-1, 3), axis=0)

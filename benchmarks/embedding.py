"""
Measures embedding a folder of videos from end to end, including decoding: `region-learner index` compared with
transformers and sentence-transformers, in one run.

    python benchmarks/embedding.py [DIRECTORY] [--size base] [--clips 24] [--frames 8] [--repeats 3] [--device cuda]
                                   [--json FILE]

All of them read the same videos (without DIRECTORY, clips of 10 seconds and 256p are generated), take the same evenly
spaced frames of each, and embed them with the same CLIP with random weights. The embedding of a video is the mean over
its frames.

| | |
|---|---|
| ours | `VideoIndex.update` with one window per video, which also hashes the files and writes the index |
| ours, one process | the same, without worker processes for decoding |
| transformers | its `load_video`, `CLIPImageProcessor` and `CLIPModel`, eight videos per batch |
| sentence-transformers | `SentenceTransformer.encode` on the frames, which transformers' `load_video` reads |

All run on the same device, in float32 on a CPU, and in bfloat16 autocast on a GPU. They take turns; times are medians,
and "relative to ours" is the median of the ratios within each turn. The last column is the lowest cosine similarity of
a video's embedding with ours; resizing differs by rounding.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, CLIPProcessor
from transformers.video_utils import load_video

from decoding import make_clips, middle_frames, videos_in
from indexing import SIZES, save_checkpoint
from measuring import about, described
from region_learner import VideoIndex

_VIDEOS_AT_ONCE = 8


def autocast(device: str) -> AbstractContextManager:
    """Returns the precision of all systems: that of `VideoIndex`."""
    return torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext()


class Ours:
    def __init__(self, checkpoint: Path, frames: int, workers: int, device: str):
        self.checkpoint, self.frames, self.workers, self.device = checkpoint, frames, workers, device

    def __call__(self, videos: list[str]) -> tuple[float, np.ndarray]:
        with tempfile.TemporaryDirectory() as folder:
            # Windows are longer than the videos, so that each video is one window.
            index = VideoIndex.create(Path(folder) / "index", str(self.checkpoint), 600, 600, self.frames)
            index.model.to(self.device)  # by default, it is on a GPU if there is one
            start = time.perf_counter()  # the others have already loaded their models, too
            index.update(videos, num_workers=self.workers)
            seconds = time.perf_counter() - start
            return seconds, np.concatenate([index.vectors(video) for video in videos])


class Peer:
    """Embeds frames, eight videos at a time."""

    def __init__(self, frames: int, device: str):
        self.frames, self.device = frames, device

    def embed(self, frames: list[np.ndarray]) -> np.ndarray:
        raise NotImplementedError

    def __call__(self, videos: list[str]) -> tuple[float, np.ndarray]:
        start, found = time.perf_counter(), []
        for first in range(0, len(videos), _VIDEOS_AT_ONCE):
            clips = [frames_of(video, self.frames) for video in videos[first : first + _VIDEOS_AT_ONCE]]
            with autocast(self.device):
                embeds = self.embed([frame for clip in clips for frame in clip])
            embeds = embeds / np.linalg.norm(embeds, axis=-1, keepdims=True)
            found.append(embeds.reshape(len(clips), self.frames, -1).mean(1))
        joined = np.concatenate(found)
        return time.perf_counter() - start, joined / np.linalg.norm(joined, axis=-1, keepdims=True)


def frames_of(video: str, count: int) -> np.ndarray:
    """Returns evenly spaced frames (count, height, width, 3), from the middle of equal parts of the video."""

    def choose(metadata, **kwargs):
        return np.array(middle_frames(metadata.total_num_frames, count))

    return load_video(video, sample_indices_fn=choose, backend="pyav")[0]


class Transformers(Peer):
    def __init__(self, checkpoint: Path, frames: int, device: str):
        super().__init__(frames, device)
        self.model = CLIPModel.from_pretrained(checkpoint).to(device).eval()
        self.processor = CLIPImageProcessor.from_pretrained(checkpoint)

    @torch.inference_mode()
    def embed(self, frames: list[np.ndarray]) -> np.ndarray:
        pixels = self.processor(frames, return_tensors="pt")["pixel_values"].to(self.model.device)
        return self.model.get_image_features(pixels).pooler_output.float().cpu().numpy()


class SentenceTransformers(Peer):
    def __init__(self, checkpoint: Path, frames: int, device: str):
        super().__init__(frames, device)
        self.model = SentenceTransformer(str(checkpoint), device=device)

    def embed(self, frames: list[np.ndarray]) -> np.ndarray:
        pictures = [Image.fromarray(frame) for frame in frames]
        return self.model.encode(pictures, batch_size=len(pictures), show_progress_bar=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        directory, checkpoint = options.directory or root / "clips", root / "model"
        if options.directory is None:
            make_clips(directory, 256, options.clips)
        save_checkpoint(checkpoint, options.size)
        CLIPProcessor(
            CLIPImageProcessor.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
        ).save_pretrained(checkpoint)
        videos = videos_in(directory, options.clips)
        systems: dict[str, Callable[[list[str]], tuple[float, np.ndarray]]] = {
            "ours": Ours(checkpoint, options.frames, options.workers, options.device),
            "ours, one process": Ours(checkpoint, options.frames, 0, options.device),
            "transformers": Transformers(checkpoint, options.frames, options.device),
            "sentence-transformers": SentenceTransformers(checkpoint, options.frames, options.device),
        }
        embeds = {name: run(videos)[1] for name, run in systems.items()}  # warm-up, and the embeddings to compare
        times: dict[str, list[float]] = {name: [] for name in systems}
        for repeat in range(options.repeats):
            for name in systems if repeat % 2 else reversed(systems):
                times[name].append(systems[name](videos)[0])
    where = about(options.device, "sentence-transformers", "av")
    print(f"{described(where)}\n{len(videos)} videos, {options.frames} frames of each\n")
    print("| | seconds | videos/s | relative to ours | lowest cosine |\n|---|---:|---:|---:|---:|")
    rows = []
    for name in systems:
        seconds = statistics.median(times[name])
        ratio = statistics.median(b / a for a, b in zip(times["ours"], times[name]))
        cosine = float((embeds[name] * embeds["ours"]).sum(1).min())
        row = {"system": name, "seconds": seconds, "ratio": ratio, "videos": len(videos), "lowest_cosine": cosine}
        rows.append(row)
        print(f"| {name} | {seconds:.2f} | {len(videos) / seconds:.1f} | {ratio:.2f} | {cosine:.4f} |")
    if options.json:
        options.json.write_text(json.dumps({"about": where, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

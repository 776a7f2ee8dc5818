"""
Measures the spans that a search finds: joins captioned clips into long videos, indexes them, searches each caption,
and compares the best span with the position of its clip.

    python -m experiments.real_spans CHECKPOINT CLIPS --output runs/spans

CLIPS is a folder with metadata (corpus `folder`). The model may have been trained on these clips, because this
measures where a hit is, not whether unseen clips are found.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from region_learner import VideoIndex, load_corpus
from region_learner.corpora.encoding import write_video
from region_learner.files import write_json
from region_learner.video_decoding_region_learner import read_clip

Span = tuple[float, float]
FPS = 8


def join_clips(clips: Sequence[str], output: Path, size: int = 160) -> list[Span]:
    """Writes a video of clips, one after another, with frames of `size` x `size` pixels. Returns their spans."""
    frames: list[np.ndarray] = []
    spans = []
    for clip in clips:

        def at_rate(metadata) -> np.ndarray:
            return metadata.times.searchsorted(np.arange(0, metadata.end, 1 / FPS) + 1e-6, "right") - 1

        pictures, _ = read_clip(clip, at_rate)
        rows, columns = (np.arange(size) * side // size for side in pictures.shape[1:3])
        start = len(frames)
        frames += list(pictures[:, rows][:, :, columns])
        spans.append((start / FPS, len(frames) / FPS))
    write_video(output, np.stack(frames), FPS)
    return spans


def overlap(a: Span, b: Span) -> float:
    """Returns the intersection over union of two spans."""
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / (max(a[1], b[1]) - min(a[0], b[0]))


def measure(
    checkpoint: str, clips: Path, output: Path, videos: int = 3, window: float = 4, stride: float = 2
) -> dict[str, float]:
    """
    Returns, over all captions, the share whose best span is in the right video, the share whose best span overlaps the
    clip, the mean intersection over union, and the same for a span of the length of a window at a random position.
    """
    rows = list(load_corpus("folder", clips, "train"))
    output.mkdir(parents=True, exist_ok=True)
    truth = {}
    for number in range(videos):
        part = rows[number::videos]
        path = output / f"long-{number}.mp4"
        for row, span in zip(part, join_clips([row["video"] for row in part], path)):
            truth[row["captions"][0]] = str(path.absolute()), span
    index = VideoIndex.create(output / "index", checkpoint, window=window, stride=stride)
    index.update([output / f"long-{number}.mp4" for number in range(videos)])
    ious, in_video, chance = [], [], []
    rng = np.random.default_rng(0)
    for caption, (video, span) in truth.items():
        hit = index.search(caption, k=1)[0]
        in_video.append(hit.path == video)
        ious.append(overlap((hit.start, hit.end), span) if hit.path == video else 0.0)
        start = rng.uniform(0, index.duration(video) - window)
        chance.append(overlap((start, start + window), span))
    return {
        "captions": len(truth),
        "minutes": sum(index.duration(path) for path in index.paths()) / 60,
        "right_video": float(np.mean(in_video)),
        "overlaps": float(np.mean(np.array(ious) > 0)),
        "iou_mean": float(np.mean(ious)),
        "iou_above_half": float(np.mean(np.array(ious) >= 0.5)),
        "iou_random_window": float(np.mean(chance)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("clips", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--window", type=float, default=4)
    parser.add_argument("--stride", type=float, default=2)
    args = parser.parse_args()
    result = measure(args.checkpoint, args.clips, args.output, window=args.window, stride=args.stride)
    write_json(args.output / "spans.json", result)
    for name, value in result.items():
        print(f"{name:20} {value:.3f}")


if __name__ == "__main__":
    main()

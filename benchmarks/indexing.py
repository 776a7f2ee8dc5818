"""
Measures where `region-learner index` spends its time, and how long 1,000 hours of video would take.

    python benchmarks/indexing.py [DIRECTORY] [--size base] [--clips 12] [--frames 12] [--window 10] [--stride 5]
                                  [--workers N] [--repeats 3] [--json FILE]

DIRECTORY contains videos; without it, clips of 256p are generated (see benchmarks/decoding.py). Weights are random,
which does not change the time. `--size base` is a CLIP model with the sizes of SigLIP 2 base (ViT-B/16 at 224 pixels),
and `small` has 6 layers of width 384 at 112 pixels. The parts run separately in this process, one video after the
other: hashing, decoding with the transforms, and the model. `VideoIndex.update` does all of this, decoding in other
processes. Both take turns; times are medians.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from decoding import make_clips, videos_in
from measuring import about, described
from region_learner import VideoIndex
from region_learner.search.embedding import WindowEmbeddings
from region_learner.search.reading import Begin, Job, Options, Part, read_video
from region_learner.search.sources import Video, find_videos
from region_learner.training.tokenizer import train_tokenizer

SIZES = {
    "small": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}


def save_checkpoint(directory: Path, size: str) -> None:
    """Saves a CLIP model of the given size with random weights, and its processor."""
    torch.manual_seed(0)
    pixels = 224 if size == "base" else 112
    tokenizer = train_tokenizer(["a dog runs in a park", "a red car"], 200, 64)
    text = SIZES[size] | {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": 0}
    special = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    vision = SIZES[size] | {"image_size": pixels, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text | special, vision_config=vision)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    sizes = {"size": {"shortest_edge": pixels}, "crop_size": {"height": pixels, "width": pixels}}
    CLIPImageProcessor(**sizes).save_pretrained(directory)


def parts_alone(index: VideoIndex, videos: list[Video]) -> dict[str, Any]:
    """Returns the seconds that each part takes in this process, and the amounts that it processed."""
    settings, seconds = index.about(), dict.fromkeys(("hash", "decode", "model"), 0.0)
    options = Options(index.processor.video_processor, settings["window"], settings["stride"])
    duration, frames, windows = 0.0, 0, 0
    for video in videos:
        start = time.perf_counter()
        video.sha256()
        seconds["hash"] += time.perf_counter() - start
        start = time.perf_counter()
        events = list(read_video(Job(video), options))
        seconds["decode"] += time.perf_counter() - start
        start = time.perf_counter()
        for event in events:
            if isinstance(event, Begin):
                embeddings = WindowEmbeddings(index.embedder, event.plan)
            elif isinstance(event, Part):
                embeddings.add(event)
                frames += len(event.frames)
        windows += len(embeddings.windows())
        duration += embeddings.plan.duration
        seconds["model"] += time.perf_counter() - start
    seconds["decode"] -= seconds["hash"]  # reading also hashes the file
    return {"seconds": seconds, "duration": duration, "frames": frames, "windows": windows}


def seconds_of_update(index: VideoIndex, videos: list[Video], workers: int) -> float:
    start = time.perf_counter()
    index.update([video.path for video in videos], num_workers=workers)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--window", type=float, default=10)
    parser.add_argument("--stride", type=float, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        directory = options.directory or root / "clips"
        if options.directory is None:
            make_clips(directory, 256, options.clips)
        save_checkpoint(root / "model", options.size)

        def new_index(name: str) -> VideoIndex:
            return VideoIndex.create(root / name, str(root / "model"), options.window, options.stride, options.frames)

        index = new_index("parts")
        where = about(index.model.device, "av")
        videos = list(find_videos(videos_in(directory, options.clips)).videos.values())
        parts_alone(index, videos[:1])  # warm-up
        times: dict[str, list[float]] = {name: [] for name in ("hash", "decode", "model", "all")}
        for repeat in range(options.repeats):
            whole = new_index(f"index-{repeat}")
            if repeat % 2:
                times["all"].append(seconds_of_update(whole, videos, options.workers))
            found = parts_alone(index, videos)
            for name, seconds in found["seconds"].items():
                times[name].append(seconds)
            if not repeat % 2:
                times["all"].append(seconds_of_update(whole, videos, options.workers))
    found["seconds"] = {name: statistics.median(values) for name, values in times.items()}
    print(described(where))
    print(f"{len(videos)} videos, {found['duration']:.0f} s, {found['windows']} windows, {found['frames']} frames")
    print("\n| part | seconds | of real time | 1,000 hours on one core or device |\n|---|---:|---:|---:|")
    labels = {"all": f"update, {options.workers} workers"}
    for name, seconds in found["seconds"].items():
        share = seconds / found["duration"]
        print(f"| {labels.get(name, name)} | {seconds:.2f} | {share:.4f} | {1000 * share:.1f} h |")
    if options.json:
        options.json.write_text(json.dumps({"about": where, **found, "all_seconds": times}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""
Measures clips per second from files to model inputs, as training reads them, by the number of loader processes, and
where a single process spends its time.

    python benchmarks/feeding.py [DIRECTORY ...] [--workers 0 1 2] [--batch 16] [--frames 8] [--clips N] [--passes 3]
                               [--json FILE]

The directories contain videos; without a directory, clips are generated (see benchmarks/decoding.py). Each directory
is read as it is and, as "prepared", from shards made by `region-learner corpus prepare`, with random frames, crops and
flips. Batches of uint8 are moved to the device and normalized there by the Trainer's own code. The model does not run:
this measures how fast it can be fed. Numbers of loader processes take turns, and speeds are medians over passes. They
are of wall-clock times, so other work on the machine counts.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import DistilBertConfig

from decoding import make_clips, prepare, videos_in
from measuring import about, described
from region_learner import (
    RegionLearnerConfig,
    RegionLearnerModel,
    RegionLearnerProcessor,
    RegionLearnerTrainer,
    RegionLearnerTrainingArguments,
    RegionLearnerVideoProcessor,
    video_decoding_region_learner,
    video_processing_region_learner,
)
from region_learner.training.tokenizer import train_tokenizer


def make_trainer(
    videos: list[Any], workers: int, output_dir: Path, options: argparse.Namespace
) -> RegionLearnerTrainer:
    rows = [{"video": video, "video_id": str(n), "captions": [f"clip {n}"]} for n, video in enumerate(videos)]
    tokenizer = train_tokenizer([row["captions"][0] for row in rows], 200, 32)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = RegionLearnerConfig(
        video_config=small | {"num_frames": options.frames, "codebook_size": 8, "interaction_heads": 2},
        text_config=DistilBertConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=32, vocab_size=len(tokenizer)),
    )
    arguments = RegionLearnerTrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=options.batch,
        dataloader_num_workers=workers,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    return RegionLearnerTrainer(
        model=RegionLearnerModel(config),
        args=arguments,
        processing_class=RegionLearnerProcessor(RegionLearnerVideoProcessor(num_frames=options.frames), tokenizer),
        train_dataset=Dataset.from_list(rows),
    )


def clips_per_second(trainer: RegionLearnerTrainer) -> float:
    """Returns the speed of a pass from its first batch on, so that starting the processes does not count."""
    count, start = 0, None
    for batch in trainer.get_train_dataloader():
        clips = trainer._prepare_inputs(batch)["pixel_values_videos"]
        if clips.is_cuda:
            torch.cuda.synchronize()
        if start is None:
            start = time.perf_counter()
        else:
            count += len(clips)
    assert start is not None
    return count / (time.perf_counter() - start)


def speeds_of(trainers: dict[int, RegionLearnerTrainer], passes: int) -> dict[int, float]:
    """Returns the median speed of each of `trainers`, which take turns."""
    speeds: dict[int, list[float]] = {workers: [] for workers in trainers}
    for number in range(passes):
        for workers in trainers if number % 2 else reversed(trainers):
            speeds[workers].append(clips_per_second(trainers[workers]))
    return {workers: statistics.median(values) for workers, values in speeds.items()}


def where_time_goes(trainer: RegionLearnerTrainer) -> dict[str, float]:
    """Returns the milliseconds per clip in one process, by activity. Each excludes the activities nested in it."""
    seconds: dict[str, float] = defaultdict(float)
    running: list[float] = []

    def timed(holder: Any, name: str, what: str):
        original = getattr(holder, name)

        def wrapper(*args, **kwargs):
            running.append(0.0)
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - start
                seconds[what] += elapsed - running.pop()
                if running:
                    running[-1] += elapsed

        setattr(holder, name, wrapper)
        return holder, name, original

    processor = trainer.processing_class.video_processor
    replaced = [
        timed(video_decoding_region_learner, "_index_packets", "index of packets"),
        timed(video_decoding_region_learner, "_decode", "decoding"),
        timed(video_decoding_region_learner._RGBConverter, "__call__", "colours and scaling"),
        timed(video_processing_region_learner, "read_clip", "opening, and the rest of reading"),
        timed(processor, "_preprocess", "crop, resize, flip"),
        timed(processor, "normalize_clips", "normalizing"),
        timed(trainer.data_collator, "_decode", "calling the processor"),
    ]
    count, start = 0, time.perf_counter()
    for batch in trainer.get_train_dataloader():
        count += len(trainer._prepare_inputs(batch)["pixel_values_videos"])
    whole = time.perf_counter() - start
    for holder, name, original in replaced:
        setattr(holder, name, original)
    seconds["tokens, batches, moving"] = whole - sum(seconds.values())
    return {what: 1000 * value / count for what, value in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="*", type=Path)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--clips", type=int, help="maximum number of clips per directory")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = about("cuda" if torch.cuda.is_available() else "cpu", "av")
    print(described(where))
    results = []
    with tempfile.TemporaryDirectory() as made:
        directories = options.directories
        if not directories:
            print("Making clips ...")
            directories = [Path(made) / "256p"]
            make_clips(directories[0], 256, 12)
        for directory in directories:
            paths = videos_in(directory, options.clips)
            videos, _ = prepare(paths, Path(made) / f"prepared-{directory.name}")
            for kind, these in (("originals", paths), ("prepared", list(videos.values()))):
                these = these * -(-6 * options.batch // len(these))  # at least six batches
                trainers = {n: make_trainer(these, n, Path(made), options) for n in options.workers}
                speeds = speeds_of(trainers, options.passes)
                parts = where_time_goes(make_trainer(these[: 3 * options.batch], 0, Path(made), options))
                print(f"\n{directory.name}, {kind}: {options.frames} frames, clips per second")
                print(", ".join(f"{speed:.1f} with {n} loader processes" for n, speed in speeds.items()))
                print("milliseconds per clip, in one process:")
                for what, value in sorted(parts.items(), key=lambda item: -item[1]):
                    print(f"  {what:34} {value:7.2f}")
                results.append({"directory": directory.name, "kind": kind, "clips_per_second": speeds, "ms": parts})
    if options.json:
        measured = {"about": where, "frames": options.frames, "batch": options.batch, "rows": results}
        options.json.write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()

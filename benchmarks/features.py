"""
Measures the seconds per training step of regions and text encoder on a frozen backbone, from videos and from cached
features.

    python benchmarks/features.py [DIRECTORY] [--size base] [--batch 8] [--frames 4] [--steps 5] [--threads 1]
                                  [--json FILE]

DIRECTORY contains videos; without it, clips of 256p are generated (see benchmarks/decoding.py). Weights are random,
which does not change the time. Features are computed as by `region-learner corpus features`. Then steps of both
alternate in one process; times are medians of wall-clock times. A step reads a batch in the same process (where cores
are idle, loader processes hide reading behind the model) and trains with the Trainer's own code. `--size base` is a
ViT-B/16 at 224 pixels with DistilBERT, `small` 6 layers of width 384 at 112 pixels with 2 layers of text.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import DistilBertConfig

from decoding import make_clips, videos_in
from measuring import about, described
from region_learner import (
    RegionLearnerConfig,
    RegionLearnerModel,
    RegionLearnerProcessor,
    RegionLearnerTrainer,
    RegionLearnerTrainingArguments,
    RegionLearnerVideoProcessor,
)
from region_learner.corpora import load_corpus
from region_learner.features import compute_features
from region_learner.loading import load_checkpoint
from region_learner.training.tokenizer import train_tokenizer

SIZES = {
    "small": (
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536},
        112,
        {"dim": 256, "n_layers": 2, "n_heads": 4, "hidden_dim": 1024},
    ),
    "base": ({}, 224, {}),
}


def save_checkpoint(directory: Path, options: argparse.Namespace, captions: list[str]) -> None:
    backbone, size, text = SIZES[options.size]
    torch.manual_seed(0)
    tokenizer = train_tokenizer(captions, 200, 32)
    config = RegionLearnerConfig(
        video_config={
            "backbone_config": {"model_type": "clip_vision_model", "image_size": size, "patch_size": 16}
            | ({"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12} | backbone),
            "num_frames": options.frames,
        },
        text_config=DistilBertConfig(vocab_size=len(tokenizer), **text),
    )
    RegionLearnerModel(config).save_pretrained(directory)
    processor = RegionLearnerVideoProcessor.for_image_size(size, num_frames=options.frames)
    RegionLearnerProcessor(processor, tokenizer).save_pretrained(directory)


def make_trainer(checkpoint: Path, rows: Dataset, options: argparse.Namespace) -> RegionLearnerTrainer:
    model, processor = load_checkpoint(str(checkpoint), "retrieval")
    arguments = RegionLearnerTrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=options.batch,
        freeze=["video_model.backbone"],
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
    )
    trainer = RegionLearnerTrainer(model, arguments, processing_class=processor, train_dataset=rows)
    trainer.model.to(arguments.device)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # as set by `trainer.train`
    return trainer


def time_step(trainer: RegionLearnerTrainer, batches) -> tuple[float, float]:
    """Returns the seconds of reading a batch, and of training on it."""
    start = time.perf_counter()
    batch = next(batches)
    read = time.perf_counter()
    with torch.autocast(trainer.args.device.type, torch.bfloat16, enabled=trainer.args.bf16):
        trainer.training_step(trainer.model, batch)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return read - start, time.perf_counter() - read


def measure(trainers: dict[str, RegionLearnerTrainer], steps: int) -> dict[str, dict[str, float]]:
    batches = {name: iter(trainer.get_train_dataloader()) for name, trainer in trainers.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in trainers}
    for step in range(steps + 2):  # the first two fill caches and the optimizer
        for name, trainer in trainers.items():
            seconds = time_step(trainer, batches[name])
            if step >= 2:
                times[name].append(seconds)
    result = {}
    for name, measured in times.items():
        read, train = (statistics.median(part) for part in zip(*measured))
        result[name] = {"reading": read, "model": train, "step": statistics.median(map(sum, measured))}
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--batch", type=int, default=8, help="clips per step")
    parser.add_argument("--frames", type=int, default=4, help="frames per clip")
    parser.add_argument("--steps", type=int, default=5, help="number of steps to measure of each")
    parser.add_argument("--threads", type=int, default=1, help="number of PyTorch threads on the CPU")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = about("cuda" if torch.cuda.is_available() else "cpu", "av")
    print(described(where))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if options.directory is None:
            print("Making clips ...")
            make_clips(folder / "256p", 256, max(8, options.batch))
        paths = videos_in(options.directory or folder / "256p")
        rows = Dataset.from_list(
            [{"video": path, "video_id": str(n), "captions": [f"this is clip {n}"]} for n, path in enumerate(paths)]
        )
        save_checkpoint(folder / "model", options, [row["captions"][0] for row in rows])
        start = time.perf_counter()
        written = compute_features(str(folder / "model"), rows, folder / "features", batch_size=options.batch)
        once = (time.perf_counter() - start) / written["videos"]
        print(
            f"{options.size}, {options.frames} frames, {options.batch} clips per step. Features: {once:.3f} s and "
            f"{written['bytes'] / written['videos'] / 1e6:.2f} MB per clip, once."
        )
        repeats = -(-(options.steps + 2) * options.batch // len(paths))
        given = {"videos": rows, "cached features": load_corpus("features", folder / "features")}
        trainers = {
            name: make_trainer(folder / "model", dataset.select(list(range(len(dataset))) * repeats), options)
            for name, dataset in given.items()
        }
        result = measure(trainers, options.steps)
    print(f"{'seconds per step':18}{'reading':>10}{'model':>10}{'step':>10}")
    for name, row in result.items():
        print(f"{name:18}" + "".join(f"{row[part]:10.3f}" for part in ("reading", "model", "step")))
    ratios = {part: result["videos"][part] / result["cached features"][part] for part in ("reading", "model", "step")}
    print(f"{'ratio':18}" + "".join(f"{ratios[part]:10.1f}" for part in ratios))
    if options.json:
        measured = {"about": where, "steps": result, "ratio": ratios, "compute_per_clip": once}
        options.json.write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()

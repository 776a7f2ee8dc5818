"""
Measures the time of a training step (forward, loss, backward, codebook, AdamW), and estimates the time of
pre-training.

    python benchmarks/training.py [--size paper] [--batch 64] [--frames 1 4] [--device cuda] [--dtype bf16] [--gpus 16]
                                  [--price 2.5] [--methods plain checkpointing cached compiled] [--json FILE]

Clips and captions are random tensors in memory: this measures the model, not data loading, which has to keep up
(`data_wait` in the log of a run shows whether it does). Methods alternate in one run; times are medians. The estimate
is for the paper's pre-training, 50 epochs of 1 million pairs, on `--gpus` of the measured device, without
communication between processes. Its cost is computed from `--price`, the price of a GPU hour.

With one method and one number of frames, the peak memory of the whole process is also measured on a CPU.
"""

import argparse
import json
import resource
import statistics
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from transformers import DistilBertConfig

from measuring import about, described
from region_learner import RegionLearnerConfig, RegionLearnerModel
from region_learner.loss_region_learner import contrastive_loss
from region_learner.training.gradient_cache import cached_backward

SIZES = {
    "paper": ({}, {}),
    "small": (
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536},
        {"dim": 384, "n_layers": 3, "n_heads": 6, "hidden_dim": 1536},
    ),
}
PAIRS = 50 * 1_000_000
METHODS = ("plain", "checkpointing", "cached", "compiled")


class OneProcess:
    """The part of an accelerator that `cached_backward` needs, for one process."""

    def __init__(self, device: torch.device):
        self.device = device

    def no_sync(self, model):
        return nullcontext()

    def backward(self, loss):
        loss.backward()


def make_step(method: str, options: argparse.Namespace, frames: int):
    """Returns a function that runs one training step with a method."""
    device = torch.device(options.device)
    video, text = SIZES[options.size]
    torch.manual_seed(0)
    config = RegionLearnerConfig(video_config={"num_frames": frames, **video}, text_config=DistilBertConfig(**text))
    model = RegionLearnerModel(config).to(device).train()
    if method == "checkpointing":
        enable = getattr(model, "activation_checkpointing_enable", None)  # its name since transformers 5.24
        (enable or model.gradient_checkpointing_enable)()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == "cuda")
    size = config.video_config.image_size
    inputs = {
        "input_ids": torch.randint(1, 30000, (options.batch, 20), device=device),
        "attention_mask": torch.ones(options.batch, 20, dtype=torch.long, device=device),
        "pixel_values_videos": torch.randn(options.batch, frames, 3, size, size, device=device),
    }
    called = torch.compile(model) if method == "compiled" else model

    def autocast():
        return torch.autocast(device.type, torch.bfloat16) if options.dtype == "bf16" else nullcontext()

    loss_function = partial(contrastive_loss, config)

    def step():
        if method == "cached":
            cached_backward(OneProcess(device), called, inputs, max(1, options.batch // 4), autocast, loss_function)
        else:
            with autocast():
                loss = called(**inputs, return_loss=True).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def _peak_of_process() -> float:
    """Returns the peak memory of this process in GiB (Linux)."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)


def measure(options: argparse.Namespace, frames: int) -> list[dict]:
    alone = len(options.methods) == len(options.frames) == 1
    steps = {method: make_step(method, options, frames) for method in options.methods}
    memory = {}
    for method, step in steps.items():
        for _ in range(2):  # the first steps compile, and allocate the state of the optimizer
            step()
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            memory[method] = (torch.cuda.max_memory_allocated() - before) / 2**30
    times: dict[str, list[float]] = {method: [] for method in steps}
    for _ in range(options.repeats):
        for method, step in steps.items():
            start = time.perf_counter()
            step()
            times[method].append(time.perf_counter() - start)
    rows = []
    for method in steps:
        seconds = statistics.median(times[method])
        hours = PAIRS / (options.batch / seconds) / 3600 / options.gpus
        rows.append(
            {
                "method": method,
                "frames": frames,
                "seconds": round(seconds, 4),
                "of plain": round(seconds / statistics.median(times[options.methods[0]]), 2),
                "pairs/s": round(options.batch / seconds, 2),
                "activations GiB": round(memory[method], 2) if method in memory else None,
                "peak GiB": _peak_of_process() if options.device == "cpu" and alone else None,
                "days": round(hours / 24, 1),
                "cost": None if options.price is None else round(hours * options.gpus * options.price),
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="paper")
    parser.add_argument("--batch", type=int, default=2, help="pairs per step")
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["plain", "checkpointing", "cached"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--price", type=float, help="price per GPU hour")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    where = about(options.device)
    print(f"{described(where)}\nsize {options.size}, batch {options.batch}, {options.dtype}")
    rows = [row for frames in options.frames for row in measure(options, frames)]
    columns = [column for column in rows[0] if any(row[column] is not None for row in rows)]
    print(" | ".join(f"{column:>14}" for column in columns))
    for row in rows:
        print(" | ".join(f"{row[column]!s:>14}" for column in columns))
    print(f"days: for {PAIRS // 10**6} million pairs on {options.gpus} of these devices, if data loading keeps up")
    if options.json:
        result = {"about": where, "options": vars(options) | {"json": None}, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""
Measures the encoder and the region module, compared with a plain PyTorch implementation of the method, in one run and
on the same weights.

    python benchmarks/model.py [--paper] [--batch 2] [--device cuda] [--dtype bf16] [--json FILE]

`benchmarks/plain.py` is the plain implementation. Before anything is timed, outputs, gradients and updated codebooks
of both are compared. Repetitions of both alternate; times are medians. Memory is the peak that one training step of
the quantizer adds; on a CPU, it is measured in a separate process (Linux only).
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import nn

from plain import PlainEncoder, PlainRegionModule, fused, take_weights
from region_learner import RegionLearnerVideoConfig, RegionLearnerVideoModel

LAPTOP = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
PAPER = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
NO_REGIONS = {"codebook_size": 0, "num_regions": 0, "interaction_layers": 0}
IMPLEMENTATIONS = ("ours", "plain")


# Both implementations of each part, with the same weights


def build_encoders(options: argparse.Namespace) -> dict[str, nn.Module]:
    config = RegionLearnerVideoConfig(**options.sizes, **NO_REGIONS)
    ours = RegionLearnerVideoModel(config)
    with torch.no_grad():
        for parameter in ours.parameters():  # attention over time starts as zero, which would hide a difference
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    plain = take_weights(PlainEncoder(config), ours)
    return {"ours": ours.to(options.device), "plain": plain.to(options.device)}


def build_region_modules(options: argparse.Namespace) -> dict[str, nn.Module]:
    # Only the region module is used, so one layer before it is enough.
    sizes = options.sizes | {"num_hidden_layers": 1, "codebook_size": options.codes}
    config = RegionLearnerVideoConfig(**sizes, region_form="paper")
    ours = RegionLearnerVideoModel(config).region_module.to(options.device).train()
    clips = math.ceil(2 * options.codes / options.tokens_of_clip)
    ours(features(options, clips))  # the first training pass initializes the codes
    plain = take_weights(PlainRegionModule(config), ours)
    return {"ours": ours, "plain": plain.to(options.device)}


def features(options: argparse.Namespace, clips: int) -> torch.Tensor:
    grid = options.sizes["image_size"] // options.sizes["patch_size"]
    shape = (clips, options.sizes["num_frames"], grid, grid, options.sizes["hidden_size"])
    return torch.randn(shape, device=options.device)


def pixels(options: argparse.Namespace, clips: int) -> torch.Tensor:
    size = options.sizes["image_size"]
    return torch.randn(clips, options.sizes["num_frames"], 3, size, size, device=options.device)


class Part:
    """One part of the model in both implementations, with their input and the gradient of their output."""

    def __init__(self, name: str, modules: dict[str, nn.Module], inputs: torch.Tensor, options: argparse.Namespace):
        self.name, self.modules, self.options = name, modules, options
        self.inputs = inputs.requires_grad_()
        self.gradient = torch.randn_like(self.output("plain", training=False))

    def output(self, implementation: str, training: bool) -> torch.Tensor:
        module = self.modules[implementation].train(training)
        bf16 = self.options.dtype == "bf16"
        with torch.autocast(self.inputs.device.type, torch.bfloat16) if bf16 else nullcontext():
            output = module(self.inputs)
        if isinstance(output, tuple):  # the regions, masks and codes of our region module
            return output[0]
        return output if isinstance(output, torch.Tensor) else output.last_hidden_state

    @torch.no_grad()
    def forward(self, implementation: str):
        self.output(implementation, training=False)

    def forward_backward(self, implementation: str):
        self.modules[implementation].zero_grad()
        self.inputs.grad = None
        self.output(implementation, training=True).backward(self.gradient)

    def check(self):
        """Raises an error if outputs, gradients or updated codebooks differ."""
        results = []
        for implementation in IMPLEMENTATIONS:
            with torch.no_grad():
                tensors = {"output": self.output(implementation, training=False)}
            self.forward_backward(implementation)
            tensors["gradient of the input"] = self.inputs.grad
            for name, parameter in self.modules[implementation].named_parameters():
                tensors[f"gradient of {name}"] = parameter.grad
            tensors |= dict(self.modules[implementation].named_buffers())
            results.append(tensors)
        ours, plain = fused(results[0]), results[1]
        # In bfloat16, both round in different places, and a feature between two codes may be assigned to either.
        tolerance = 0.05 if self.options.dtype == "bf16" else 1e-3
        for name, expected in plain.items():
            difference = (ours[name].double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-6)
            if not difference <= tolerance:
                raise RuntimeError(f"{self.name}: {name} differs by {difference:.1e} between the two implementations.")


# Measurement


def seconds(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure_times(part: Part, repetitions: int) -> list[dict]:
    rows = []
    for name, run in (("forward", part.forward), ("forward + backward", part.forward_backward)):
        times: dict[str, list[float]] = {implementation: [] for implementation in IMPLEMENTATIONS}
        warm_up = [
            seconds(partial(run, implementation), part.options.device) for implementation in 2 * IMPLEMENTATIONS
        ]
        for repetition in range(repetitions if warm_up[-1] > 0.2 else 5 * repetitions):
            for implementation in IMPLEMENTATIONS if repetition % 2 else reversed(IMPLEMENTATIONS):
                times[implementation].append(seconds(partial(run, implementation), part.options.device))
        medians = {implementation: statistics.median(values) for implementation, values in times.items()}
        ratio = statistics.median(a / b for a, b in zip(times["ours"], times["plain"]))
        rows.append({"part": part.name, "pass": name, "seconds": medians, "ratio": ratio, "all_seconds": times})
    return rows


def peak_of_process() -> int:
    """Returns the peak memory of this process in bytes (Linux only)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no VmHWM.")


def memory_of_quantizer(implementation: str, clips: int, options: argparse.Namespace) -> int:
    """Returns the peak memory in bytes that one training step of the quantizer adds to its input, with gradients."""
    quantizer = build_region_modules(options)[implementation].quantizer.train()
    inputs = features(options, clips).flatten(0, 3).requires_grad_()

    def step():
        quantizer(inputs)[0].sum().backward()
        inputs.grad = None

    if options.device.type == "cuda":
        step()  # libraries allocate their workspaces
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak_of_process()
    step()
    return peak_of_process() - before


def measure_memory(clips: int, options: argparse.Namespace) -> dict | None:
    bytes_of = {}
    for implementation in IMPLEMENTATIONS:
        if options.device.type == "cuda":
            bytes_of[implementation] = memory_of_quantizer(implementation, clips, options)
        elif Path("/proc/self/clear_refs").exists():
            command = [sys.executable, __file__, *options.arguments, "--memory-of", implementation, str(clips)]
            environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory is returned at once
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
            bytes_of[implementation] = int(output)
        else:
            return None
    tokens = clips * options.tokens_of_clip
    # The size of one float32 matrix of tokens x codes. The plain implementation holds several at once.
    return {"clips": clips, "tokens": tokens, "bytes": bytes_of, "one_matrix": 4 * tokens * options.codes}


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        models = [
            line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores, threads: {torch.get_num_threads()}"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="ViT-B/16 instead of 6 layers of width 384")
    parser.add_argument("--batch", type=int, default=2, help="clips (default 2)")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--codes", type=int, default=2048)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, help="number of CPU threads; 1 gives steadier times on a busy machine")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bf16"), default="float32", help="bf16: by autocast")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)  # for the process that measures memory
    options = parser.parse_args()
    options.arguments = sys.argv[1:]
    if options.threads:
        torch.set_num_threads(options.threads)
    options.device = torch.device(options.device)
    options.sizes = PAPER if options.paper else LAPTOP
    options.sizes = options.sizes | {"image_size": options.image_size, "patch_size": 16, "num_frames": options.frames}
    options.tokens_of_clip = options.frames * (options.image_size // 16) ** 2
    return options


def main():
    options = parse_options()
    torch.manual_seed(0)
    if options.memory_of:
        print(memory_of_quantizer(options.memory_of[0], int(options.memory_of[1]), options))
        return
    parts = [
        Part("encoder", build_encoders(options), pixels(options, options.batch), options),
        Part("region module", build_region_modules(options), features(options, options.batch), options),
    ]
    name, sizes = machine(options.device), options.sizes
    print(f"{name}; torch {torch.__version__}, {options.dtype}")
    print(f"{sizes['num_hidden_layers']} layers of width {sizes['hidden_size']}, {options.codes} codes; ", end="")
    print(f"{options.batch} clips of {options.frames} frames of {options.image_size} px")
    print(f"Medians of {options.repetitions} repetitions or more, the two in turn\n")
    rows = []
    print(f"{'':34} {'ours':>10} {'plain':>10} {'ours / plain':>13}")
    for part in parts:
        part.check()
        for row in measure_times(part, options.repetitions):
            rows.append(row)
            ours, plain = (1000 * row["seconds"][implementation] for implementation in IMPLEMENTATIONS)
            print(f"{part.name:14} {row['pass']:19} {ours:7.1f} ms {plain:7.1f} ms {row['ratio']:13.2f}")
    memory = [measure_memory(clips, options) for clips in sorted({options.batch, 64})]
    memory = [row for row in memory if row is not None]
    for row in memory:
        ours, plain = (row["bytes"][implementation] / 2**20 for implementation in IMPLEMENTATIONS)
        step = f"memory, {row['clips']} clips"
        print(f"{'quantizer':14} {step:19} {ours:6.0f} MiB {plain:6.0f} MiB {ours / plain:13.2f}")
    if options.json:
        result = {
            "machine": name,
            "torch": torch.__version__,
            "dtype": options.dtype,
            "sizes": sizes | {"batch": options.batch, "codebook_size": options.codes},
            "repetitions": options.repetitions,
            "times": rows,
            "memory": memory,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

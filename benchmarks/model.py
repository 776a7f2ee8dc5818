"""
Encoder and region module compared with a plain PyTorch implementation of the method, in one run and on the same
weights.

    python benchmarks/model.py [--paper] [--batch 2] [--device cuda] [--dtype bf16] [--json FILE]

The plain implementation is what one would write from the paper: vectorised, with softmax(QK^T)V written out along
each axis, quantization by the whole matrix of distances and one-hot assignments, and a loop over regions. Before
anything is timed, outputs, gradients and updated codebooks of both are compared. Repetitions of both alternate; times
are medians. Memory is the peak that one training step of the quantizer adds, on CPU that of a separate process (Linux
only).
"""

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from region_learner import RegionLearnerVideoConfig, RegionLearnerVideoModel

LAPTOP = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
PAPER = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
NO_REGIONS = {"codebook_size": 0, "num_regions": 0, "interaction_layers": 0}
IMPLEMENTATIONS = ("ours", "plain")


# The plain implementation. Parameters have our names, up to `fused`, so that the weights of one load into the other.


def heads_of(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, n, D) to (B, heads, n, D / heads)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
    return weights @ value


class PlainDividedAttention(nn.Module):
    def __init__(self, config: RegionLearnerVideoConfig, axis: str):
        super().__init__()
        self.axis, self.heads = axis, config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        query, key, value = (heads_of(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        cls = attention(query[:, :, :1], key, value)

        def groups(x):  # (B, heads, groups, tokens of a group, D / heads)
            x = x[:, :, 1:].unflatten(2, (frames, -1))
            return x.transpose(2, 3) if self.axis == "time" else x

        def with_cls(x):
            grouped = groups(x)
            return torch.cat([x[:, :, None, :1].expand(-1, -1, grouped.shape[2], -1, -1), grouped], dim=3)

        patches = attention(groups(query), with_cls(key), with_cls(value))
        if self.axis == "time":
            patches = patches.transpose(2, 3)
        output = torch.cat([cls, patches.flatten(2, 3)], dim=2)
        return self.out_proj(output.transpose(1, 2).flatten(2))


class PlainLayer(nn.Module):
    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.time_norm, self.space_norm, self.mlp_norm = (nn.LayerNorm(width, eps) for _ in range(3))
        self.time_attention = PlainDividedAttention(config, "time")
        self.space_attention = PlainDividedAttention(config, "space")
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, config.intermediate_size), "fc2": nn.Linear(config.intermediate_size, width)}
        )

    def forward(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        over_time = x + self.time_attention(self.time_norm(x), frames)
        x = x + self.space_attention(self.space_norm(over_time), frames)
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.mlp_norm(x))))


class PlainEmbeddings(nn.Module):
    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(config.num_channels, width, kernel_size=patch, stride=patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.empty(1, 1 + (config.image_size // patch) ** 2, width))
        self.temporal_embeddings = nn.Parameter(torch.empty(1, config.num_frames, width))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        batch, frames = clips.shape[:2]
        patches = self.patch_embedding(clips.flatten(0, 1)).flatten(2).transpose(1, 2)  # (B * T, N, D)
        patches = patches.view(batch, frames, *patches.shape[1:])
        patches = patches + self.position_embeddings[:, None, 1:] + self.temporal_embeddings[:, :frames, None]
        cls = (self.cls_token + self.position_embeddings[:, :1]).expand(batch, -1, -1)
        return torch.cat([cls, patches.flatten(1, 2)], dim=1)


class PlainEncoder(nn.Module):
    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        self.embeddings = PlainEmbeddings(config)
        self.layers = nn.ModuleList([PlainLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(clips)
        for layer in self.layers:
            x = layer(x, clips.shape[1])
        return self.layernorm(x)


class PlainQuantizer(nn.Module):
    """VQ with moving averages: looked up, then updated. (Ours also looks for dead codes and places them anew.)"""

    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        self.decay = config.resolved.codebook_decay
        codes, width = config.codebook_size, config.hidden_size
        for name, shape in (("embed", (codes, width)), ("embed_avg", (codes, width))):
            self.register_buffer(name, torch.empty(shape))
        self.register_buffer("cluster_size", torch.empty(codes))
        self.register_buffer("cluster_sum", torch.empty(codes))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            x = features.float()
            distances = x.pow(2).sum(1, keepdim=True) - 2 * x @ self.embed.T + self.embed.pow(2).sum(1)
            ids = distances.argmin(1)
            codes = F.embedding(ids, self.embed)
            if self.training:
                one_hot = F.one_hot(ids, len(self.embed)).to(x.dtype)
                counts = one_hot.sum(0)
                self.cluster_sum += counts
                self.cluster_size.mul_(self.decay).add_(counts, alpha=1 - self.decay)
                self.embed_avg.mul_(self.decay).add_(one_hot.T @ x, alpha=1 - self.decay)
                total = self.cluster_size.sum()
                smoothed = (self.cluster_size + 1e-5) / (total + len(counts) * 1e-5) * total
                self.embed.copy_(self.embed_avg / smoothed[:, None])
        return features + (codes.to(features.dtype) - features).detach(), ids


class PlainAggregation(nn.Module):
    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        self.conv = nn.Conv2d(config.hidden_size, config.num_regions, kernel_size=3, padding=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B * T, D, h, w) to (B * T, S, D)."""
        masks = self.conv(features)
        regions = [(masks[:, s : s + 1] * features).mean((2, 3)) for s in range(masks.shape[1])]
        return torch.stack(regions, dim=1)


class PlainInteraction(nn.Module):
    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        self.heads = config.interaction_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = attention(*(heads_of(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1)))
        return self.out_proj(output.transpose(1, 2).flatten(2))


class PlainRegionModule(nn.Module):
    def __init__(self, config: RegionLearnerVideoConfig):
        super().__init__()
        self.quantizer = PlainQuantizer(config)
        self.aggregation = PlainAggregation(config)
        self.interaction = nn.ModuleList([PlainInteraction(config) for _ in range(config.interaction_layers)])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, T, h, w, D) to (B, T * S, D)."""
        batch, frames = features.shape[:2]
        quantized, _ = self.quantizer(features.flatten(0, 3))
        quantized = quantized.view_as(features).flatten(0, 1).permute(0, 3, 1, 2)
        regions = self.aggregation(quantized).view(batch, frames, -1, features.shape[-1]).flatten(1, 2)
        for layer in self.interaction:
            regions = layer(regions)
        return regions


# Both of each part, on the same weights


def fused(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns `state` with queries, keys and values projected at once, as in the reference implementation."""
    joined: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        name = re.sub(r"(interaction\.\d+)\.attention\.", r"\1.", name)
        name = re.sub(r"\b[qkv]_proj\b", "qkv", name)
        joined[name] = torch.cat([joined[name], tensor]) if name in joined else tensor
    return joined


def take_weights(plain: nn.Module, ours: nn.Module) -> nn.Module:
    result = plain.load_state_dict(fused(ours.state_dict()), strict=False)
    parameters = fused(dict(ours.named_parameters()))  # of buffers, ours has more: those that find dead codes
    extra = [key for key in result.unexpected_keys if key in parameters]
    if extra or result.missing_keys:
        raise RuntimeError(f"The two differ in weights: {extra}, {result.missing_keys}.")
    return plain


def build_encoders(options: argparse.Namespace) -> dict[str, nn.Module]:
    config = RegionLearnerVideoConfig(**options.sizes, **NO_REGIONS)
    ours = RegionLearnerVideoModel(config)
    with torch.no_grad():
        for parameter in ours.parameters():  # attention over time starts as zero, which would hide a difference
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    plain = take_weights(PlainEncoder(config), ours)
    return {"ours": ours.to(options.device), "plain": plain.to(options.device)}


def build_region_modules(options: argparse.Namespace) -> dict[str, nn.Module]:
    # Only the region module is used: one layer before it will do.
    sizes = options.sizes | {"num_hidden_layers": 1, "codebook_size": options.codes}
    config = RegionLearnerVideoConfig(**sizes, region_form="paper")
    ours = RegionLearnerVideoModel(config).region_module.to(options.device).train()
    clips = math.ceil(2 * options.codes / options.tokens_of_clip)
    ours(features(options, clips))  # the first training pass places the codes
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
    """One part of the model in both implementations, with the input and the gradient of the output they get."""

    def __init__(self, name: str, modules: dict[str, nn.Module], inputs: torch.Tensor, options: argparse.Namespace):
        self.name, self.modules, self.options = name, modules, options
        self.inputs = inputs.requires_grad_()
        self.gradient = torch.randn_like(self.output("plain", training=False))

    def output(self, implementation: str, training: bool) -> torch.Tensor:
        module = self.modules[implementation].train(training)
        bf16 = self.options.dtype == "bf16"
        with torch.autocast(self.inputs.device.type, torch.bfloat16) if bf16 else nullcontext():
            output = module(self.inputs)
        if isinstance(output, tuple):  # of our region module: regions, masks, codes
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
        """Raises if outputs, gradients or updated codebooks differ."""
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
        # In bfloat16 the two round in different places; a feature between two codes may choose either.
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
    """Bytes; Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no VmHWM.")


def memory_of_quantizer(implementation: str, clips: int, options: argparse.Namespace) -> int:
    """Bytes that one training step of the quantizer takes at its peak beyond its input, gradient included."""
    quantizer = build_region_modules(options)[implementation].quantizer.train()
    inputs = features(options, clips).flatten(0, 3).requires_grad_()

    def step():
        quantizer(inputs)[0].sum().backward()
        inputs.grad = None

    if options.device.type == "cuda":
        step()  # libraries take their workspaces
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
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
            environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
            bytes_of[implementation] = int(output)
        else:
            return None
    tokens = clips * options.tokens_of_clip
    # What one float32 matrix of tokens x codes takes; the plain one holds several at once.
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
    parser.add_argument("--threads", type=int, help="of the CPU; 1 gives the steadier times on a busy machine")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bf16"), default="float32", help="bf16: by autocast")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)  # of the process that measures memory
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

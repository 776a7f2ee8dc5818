"""
Measures one block of the space-time ViT in bfloat16 on the CPU, with PyTorch's fused attention and with plain matrix
products. Both take turns, and times are medians. "train" is forward and backward under autocast; "inference" is
forward without gradients, with weights in bfloat16.

    python benchmarks/attention.py [--passes train inference] [--frames 4 8 16] [--repetitions 7] [--json FILE]
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from unittest.mock import patch

import torch

from measuring import about, described
from region_learner import RegionLearnerVideoConfig, modeling_region_learner
from region_learner.modeling_region_learner import RegionLearnerVideoLayer

SIZES = {"base": {}, "tiny": {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32}}
KINDS = ("fused", "plain")


def seconds(layer: RegionLearnerVideoLayer, clip: torch.Tensor, grid: tuple[int, int, int], kind: str) -> float:
    def is_slow_if_fused(query: torch.Tensor, key: torch.Tensor, training: bool) -> bool:
        return kind == "plain" and query.shape[1] * key.shape[1] <= modeling_region_learner._PLAIN_WEIGHTS

    with patch.object(modeling_region_learner, "_is_slow_if_fused", is_slow_if_fused):
        start = time.perf_counter()
        if layer.training:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = layer(clip, grid)
            output.float().square().mean().backward()
        else:
            with torch.inference_mode():
                layer(clip, grid)
        return time.perf_counter() - start


def measure(size: str, training: bool, frames: int, batch: int, repetitions: int) -> dict[str, float]:
    """Returns the median time in milliseconds for each kind of attention, and the median ratio of the two."""
    config = RegionLearnerVideoConfig(**SIZES[size])
    config._attn_implementation = "sdpa"
    layer = RegionLearnerVideoLayer(config).train(training)
    side = config.image_size // config.patch_size
    clip = torch.randn(batch, 1 + frames * side**2, config.hidden_size, requires_grad=training)
    if not training:
        layer, clip = layer.bfloat16(), clip.bfloat16()
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repetition in range(1 + repetitions):  # the first one only warms up
        for kind in KINDS:
            took = seconds(layer, clip, (frames, side, side), kind)
            if repetition:
                times[kind].append(took)
    ratio = statistics.median(plain / fused for fused, plain in zip(*times.values()))
    return {name: 1000 * statistics.median(values) for name, values in times.items()} | {"ratio": ratio}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--passes", nargs="+", choices=("train", "inference"), default=["train", "inference"])
    parser.add_argument("--frames", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--batch", type=int, default=2, help="clips (default 2)")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    where = about()
    print(f"{described(where)}\nOne block, {options.batch} clips; medians of {options.repetitions}, in turn\n")
    print("     pass  frames  fused, ms  plain, ms  plain / fused")
    rows = []
    for name, frames in itertools.product(options.passes, options.frames):
        found = measure(options.size, name == "train", frames, options.batch, options.repetitions)
        rows.append({"pass": name, "frames": frames, **found})
        times = f"{found['fused']:10.1f} {found['plain']:10.1f} {found['ratio']:14.2f}"
        print(f"{name:>9} {frames:7} {times}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"batch": options.batch, "rows": rows, "about": where}, indent=1))


if __name__ == "__main__":
    main()

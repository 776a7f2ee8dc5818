"""
Measures a training pass (forward and backward, in bfloat16 autocast on the CPU) through one block of the space-time
ViT, with PyTorch's fused attention and with plain matrix products. Both take turns, and times are medians.

    python benchmarks/attention.py [--frames 4 8 16] [--repetitions 7] [--json FILE]
"""

import argparse
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
LONGEST = {"fused": 0, "plain": modeling_region_learner._PLAIN_KEYS}  # the maximum number of keys of plain attention


def seconds(layer: RegionLearnerVideoLayer, clip: torch.Tensor, grid: tuple[int, int, int], attention: str) -> float:
    with patch.object(modeling_region_learner, "_PLAIN_KEYS", LONGEST[attention]):
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = layer(clip, grid)
        output.float().square().mean().backward()
        return time.perf_counter() - start


def measure(size: str, frames: int, batch: int, repetitions: int) -> dict[str, float]:
    """Returns the median time in milliseconds for each kind of attention, and the median ratio of the two."""
    config = RegionLearnerVideoConfig(**SIZES[size])
    config._attn_implementation = "sdpa"
    layer = RegionLearnerVideoLayer(config).train()
    side = config.image_size // config.patch_size
    clip = torch.randn(batch, 1 + frames * side**2, config.hidden_size, requires_grad=True)
    times: dict[str, list[float]] = {attention: [] for attention in LONGEST}
    for repetition in range(1 + repetitions):  # the first one only warms up
        for attention in LONGEST:
            took = seconds(layer, clip, (frames, side, side), attention)
            if repetition:
                times[attention].append(took)
    ratio = statistics.median(plain / fused for fused, plain in zip(*times.values()))
    return {name: 1000 * statistics.median(values) for name, values in times.items()} | {"ratio": ratio}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--frames", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--batch", type=int, default=2, help="clips (default 2)")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    where = about()
    print(f"{described(where)}\nOne block, {options.batch} clips; medians of {options.repetitions}, in turn\n")
    print("frames  fused, ms  plain, ms  plain / fused")
    rows = []
    for frames in options.frames:
        found = measure(options.size, frames, options.batch, options.repetitions)
        rows.append({"frames": frames, **found})
        print(f"{frames:6} {found['fused']:10.1f} {found['plain']:10.1f} {found['ratio']:14.2f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"batch": options.batch, "rows": rows, "about": where}, indent=1))


if __name__ == "__main__":
    main()

"""
Measures training steps and inference of whole video-text models, ours and others, in one run on one machine.

    python benchmarks/speed.py [--models ours clip ...] [--batch 2 16] [--frames 1 4 8] [--dtypes fp32 bf16]
                               [--passes train inference] [--device cuda] [--profile] [--json FILE]

All models have a video tower of the size of ViT-B/16, the same text tower (DistilBERT), the same loss, and random
weights, so no downloads are needed. "train" is forward, loss, backward, the update of the codebook, and fused AdamW;
"inference" embeds clips, for which phrases and tokens are not computed. A name with "+compile" is compiled by
`torch.compile`, one with "+graphs" with CUDA graphs. Repetitions alternate between models, and times are medians (on a
GPU, of means over 5 calls). With bf16 on a GPU, the remaining float32 products use TF32.

| model | |
|---|---|
| ours, ours_paper | `region_form="decoupled"` and "paper" |
| ours_queries | `region_form="queries"`, tubes, phrases and tokens, as in the recipe `moving_shapes` |
| ours_patch_dropout | `ours`, with half of the patches in training |
| ours_no_regions | the encoder alone |
| plain | the paper's form in plain PyTorch (`benchmarks/plain.py`) |
| clip | CLIP base/16 of transformers on every frame, mean of frames |
| xclip | X-CLIP base/16 of transformers |
| videoprism | VideoPrism base of transformers, 288 pixels in patches of 18 (256 patches instead of 196) |

Columns: "of peak" is the model's arithmetic (`torch.utils.flop_counter`) per second, relative to a large matrix
product in the same precision, in the same run; "products" is the time that the model's own matrix products and
attention kernels take alone, at their shapes, relative to the whole: the median of this ratio over the repetitions
(not for compiled models). "GiB" is the memory that a call needs at its peak, in addition to the weights and, in
training, the states of AdamW.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    DistilBertConfig,
    DistilBertModel,
    VideoPrismVisionConfig,
    XCLIPConfig,
    XCLIPModel,
    XCLIPTextConfig,
    XCLIPVisionConfig,
)
from transformers.models.videoprism.modeling_videoprism import VideoPrismVideoModel

from measuring import about, added_memory, count_flops, described
from model import FORMS as REGION_FORMS
from model import NO_REGIONS, WORDS, WORDS_AND_REGIONS
from plain import PlainQuantizer, PlainVideoTower
from region_learner import RegionLearnerConfig, RegionLearnerModel, RegionLearnerVideoConfig

# Sizes of the video and text towers, and of frames. "tiny" is for trying out the script.
SIZES = {
    "base": (
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
        {},
        224,
    ),
    "tiny": (
        {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96},
        {"dim": 48, "n_layers": 1, "n_heads": 4, "hidden_dim": 96, "vocab_size": 30000},
        32,
    ),
}
PROJECTION, TEMPERATURE = 256, 0.05
FORMS: dict[str, dict[str, Any]] = {
    "ours": REGION_FORMS["decoupled"],
    "ours_paper": REGION_FORMS["paper"],
    "ours_queries": REGION_FORMS["queries"],
    "ours_patch_dropout": {"patch_dropout": 0.5},
    "ours_no_regions": NO_REGIONS,
}
PEERS = ("plain", "clip", "xclip", "videoprism")


# The models. Each takes token ids, their mask, and clips (B, T, 3, side, side), and returns the loss.


class Frames(nn.Module):
    """CLIP on every frame, and the mean over frames."""

    def __init__(self, sizes: dict[str, int], side: int):
        super().__init__()
        self.model = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=side, patch_size=16))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.model(clips.flatten(0, 1)).pooler_output.unflatten(0, clips.shape[:2]).mean(1)


class XClip(nn.Module):
    """The video side of X-CLIP: frames that exchange messages, and a transformer over frames."""

    def __init__(self, sizes: dict[str, int], side: int, frames: int):
        super().__init__()
        heads = sizes["num_attention_heads"]
        vision = XCLIPVisionConfig(
            **sizes, image_size=side, patch_size=16, num_frames=frames,
            mit_hidden_size=sizes["hidden_size"], mit_num_attention_heads=heads,
            mit_intermediate_size=sizes["intermediate_size"],
        )  # fmt: skip
        text = XCLIPTextConfig(num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=1)
        width = sizes["hidden_size"]
        config = XCLIPConfig(
            text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=width,
            prompt_num_attention_heads=heads,
        )  # fmt: skip
        self.model = XCLIPModel(config)
        del self.model.text_model, self.model.text_projection, self.model.prompts_generator

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.model.get_video_features(clips).pooler_output


class VideoPrism(nn.Module):
    def __init__(self, sizes: dict[str, int], side: int, frames: int):
        super().__init__()
        sizes = dict(sizes)
        layers = sizes.pop("num_hidden_layers")
        self.model = VideoPrismVideoModel(
            VideoPrismVisionConfig(**sizes, num_spatial_layers=layers, image_size=side, num_frames=frames)
        )

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.model(clips).pooler_output.squeeze(1)


class Peer(nn.Module):
    """A video tower with the text tower and the loss that all models share."""

    def __init__(self, tower: nn.Module, width: int, text: DistilBertConfig):
        super().__init__()
        self.video, self.text = tower, DistilBertModel(text)
        self.video_projection, self.text_projection = nn.Linear(width, PROJECTION), nn.Linear(text.dim, PROJECTION)

    def embed(self, clips: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.video_projection(self.video(clips)).float(), dim=-1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
        states = self.text(input_ids, attention_mask).last_hidden_state[:, 0]
        texts = F.normalize(self.text_projection(states).float(), dim=-1)
        logits = self.embed(clips) @ texts.T / TEMPERATURE
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class Ours(nn.Module):
    def __init__(self, model: RegionLearnerModel):
        super().__init__()
        self.model = model

    def embed(self, clips: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.model.get_video_features(clips).pooler_output.float(), dim=-1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, pixel_values_videos=clips, return_loss=True
        ).loss


def side_of(name: str, side: int) -> int:
    """Returns the frame size of a model, which is larger for VideoPrism because its patches have 18 pixels."""
    return {224: 288, 32: 36}[side] if name == "videoprism" else side


def tokens_of(name: str, side: int, frames: int) -> int:
    """Returns the number of patches of a clip."""
    patch = 18 if name == "videoprism" else 16
    return frames * (side_of(name, side) // patch) ** 2


def build(name: str, size: str, frames: int) -> nn.Module:
    """Returns a model by its name, without the suffix after "+"."""
    sizes, text_sizes, side = SIZES[size]
    text = DistilBertConfig(**text_sizes, dropout=0.0, attention_dropout=0.0)
    torch.manual_seed(0)
    if name in FORMS:
        video: dict[str, Any] = {**sizes, "image_size": side, "patch_size": 16, "num_frames": frames, **FORMS[name]}
        extra = WORDS_AND_REGIONS if name == "ours_queries" else {}
        config = RegionLearnerConfig(video_config=video, text_config=text, projection_dim=PROJECTION, **extra)
        return Ours(RegionLearnerModel(config))
    tower: nn.Module
    if name == "plain":
        tower = PlainVideoTower(
            RegionLearnerVideoConfig(**sizes, image_size=side, patch_size=16, num_frames=frames, region_form="paper")
        )
        for parameter in [*tower.parameters(), *tower.buffers()]:  # some of these are left uninitialized
            parameter.data.normal_(std=0.02)
    elif name == "clip":
        tower = Frames(sizes, side)
    elif name == "xclip":
        tower = XClip(sizes, side, frames)
    elif name == "videoprism":
        tower = VideoPrism(sizes, side_of(name, side), frames)
    else:
        raise ValueError(f"{name!r} is not a model; choose one of {', '.join([*FORMS, *PEERS])}.")
    return Peer(tower, sizes["hidden_size"], text)


# Timing


class Runner:
    """
    One model and its inputs.

    Args:
        name: name of the model, with "+compile" or "+graphs".
        train: whether to time a training step instead of inference.
    """

    def __init__(self, name: str, options: argparse.Namespace, train: bool, dtype: str, frames: int, batch: int):
        base, _, suffix = name.partition("+")
        self.name, self.train, self.device, self.dtype = name, train, options.device, dtype
        side = side_of(base, SIZES[options.size][2])
        self.model = build(base, options.size, frames).to(options.device).train(train)
        generator = torch.Generator().manual_seed(1)
        self.clips = torch.randn(batch, frames, 3, side, side, generator=generator).to(options.device)
        self.ids = torch.randint(1, 30000, (batch, WORDS), generator=generator).to(options.device)
        self.mask = torch.ones_like(self.ids)
        if train:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        elif dtype == "bf16":
            self.model, self.clips = self.model.bfloat16(), self.clips.bfloat16()
            for module in self.model.modules():
                if isinstance(module, PlainQuantizer):  # our quantizer keeps its statistics in float32 by itself
                    module.float()
        self.called: Callable[..., torch.Tensor] = self.model if train else self.model.embed  # type: ignore[assignment]
        if suffix:
            self.called = torch.compile(self.called, mode={"compile": None, "graphs": "reduce-overhead"}[suffix])

    def forward_backward(self) -> None:
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self.dtype == "bf16" else nullcontext()
        with autocast:
            loss = self.called(self.ids, self.mask, self.clips)
        loss.backward()

    def __call__(self) -> None:
        if self.train:
            self.forward_backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        else:
            with torch.inference_mode():
                self.called(self.clips)

    def flops(self) -> int:
        """Returns the floating-point operations of one call, without the optimizer."""
        # The hooks of the counter need gradients.
        return count_flops(self.plain_call if self.train else partial(self.called, self.clips))

    def plain_call(self) -> None:
        """Makes one call without the optimizer, to count operators."""
        if self.train:
            self.forward_backward()
            self.optimizer.zero_grad()
        else:
            with torch.no_grad():  # inference mode would hide which operators a matrix product calls
                self.called(self.clips)


def seconds_of(run: Callable[[], Any], device: torch.device, times: int = 1) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / times


# Peak performance


class ProductRecorder(TorchDispatchMode):
    """Counts matrix products, convolutions and attention kernels by operator and shapes."""

    NAMES = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")

    def __init__(self):
        super().__init__()
        self.calls: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.NAMES or "scaled_dot_product" in name:
            self.calls[func, self._describe(args), self._describe(kwargs or {})] += 1
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _describe(arguments: Any) -> tuple:
        leaves, spec = tree_flatten(arguments)
        described = tuple(
            ("tensor", tuple(leaf.shape), leaf.stride(), leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf
            for leaf in leaves
        )
        return described, spec


def _arguments(described: tuple, device: torch.device) -> Any:
    leaves, spec = described

    def tensor(shape, stride, dtype):
        places = 1 + sum((size - 1) * step for size, step in zip(shape, stride))
        made = torch.empty(places, dtype=dtype, device=device)
        if not dtype.is_floating_point:
            made.zero_()
        elif device.type == "cuda":
            made.normal_()  # GPUs are faster with constants
        else:
            made.fill_(0.5)  # random numbers would take longer than the products
        return made.as_strided(shape, stride)

    return tree_unflatten(
        [tensor(*leaf[1:]) if isinstance(leaf, tuple) and leaf[:1] == ("tensor",) else leaf for leaf in leaves], spec
    )


class Products:
    """The matrix products and attention kernels of one call of a model."""

    def __init__(self, runner: Runner):
        with ProductRecorder() as recorder:
            runner.plain_call()
        self.device, self.calls = runner.device, recorder.calls

    def seconds(self) -> float:
        """Returns the time that these calls take alone."""
        times, total = 10 if self.device.type == "cuda" else 1, 0.0
        for (func, args, kwargs), count in self.calls.items():
            # Use other operands each time, as in the model: those of the last call would still be in the cache.
            operands = itertools.cycle([_arguments(args, self.device) for _ in range(3)])
            run = partial(_call, func, operands, _arguments(kwargs, self.device))
            with torch.no_grad():
                run()  # the first call is slower
                total += count * seconds_of(run, self.device, times)
        return total


def _call(func: Callable[..., Any], operands: Iterator[Any], named: dict[str, Any]) -> None:
    func(*next(operands), **named)


def peak_flops(dtype: str, device: torch.device) -> float:
    """Returns the floating-point operations per second of a large matrix product, the best of several sizes."""
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    rates = []
    for side in (4096, 8192) if device.type == "cuda" else (1024, 2048):
        a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
        run = partial(torch.mm, a, b)
        seconds_of(run, device, 3)
        rates.append(2 * side**3 / min(seconds_of(run, device, 10) for _ in range(5)))
    return max(rates)


# The table


def measure(options: argparse.Namespace, train: bool, dtype: str, frames: int, batch: int) -> list[dict[str, Any]]:
    # With bf16 on a GPU, the remaining float32 products use TF32, as with `--tf32` in training.
    torch.set_float32_matmul_precision("high" if dtype == "bf16" and options.device.type == "cuda" else "highest")
    runners = [Runner(name, options, train, dtype, frames, batch) for name in options.models]
    peak = peak_flops(dtype, options.device)
    flops = {runner.name.partition("+")[0]: 0 for runner in runners}
    memory: dict[str, float | None] = {}
    products: dict[str, Products] = {}
    for runner in runners:
        base = runner.name.partition("+")[0]
        if runner.name == base:
            flops[base] = runner.flops()
            products[runner.name] = Products(runner)
        for _ in range(3):  # the first calls compile, allocate, and initialize the codes
            runner()
        added = added_memory(runner, options.device)
        memory[runner.name] = None if added is None else round(added / 2**30, 2)
    times: dict[str, list[float]] = {runner.name: [] for runner in runners}
    shares: dict[str, list[float]] = {name: [] for name in products}
    for repeat in range(options.repeats):
        for runner in runners if repeat % 2 else reversed(runners):
            runner()  # the products of another model have changed what is in the caches
            times[runner.name].append(seconds_of(runner, options.device, 5 if options.device.type == "cuda" else 1))
            if runner.name in products:
                shares[runner.name].append(products[runner.name].seconds() / times[runner.name][-1])
    rows = []
    for runner in runners:
        base = runner.name.partition("+")[0]
        median = statistics.median(times[runner.name])
        tokens = batch * tokens_of(base, SIZES[options.size][2], frames)
        ratio = statistics.median(b / a for a, b in zip(times[options.models[0]], times[runner.name]))
        rows.append(
            {
                "pass": "train" if train else "inference",
                "dtype": dtype,
                "frames": frames,
                "batch": batch,
                "model": runner.name,
                "ms": round(1000 * median, 2),
                "ratio": round(ratio, 2),
                "clips/s": round(batch / median, 2),
                "us/patch": round(1e6 * median / tokens, 2),
                "of peak": f"{100 * flops[base] / median / peak:.0f} %" if flops[base] else None,
                "products": f"{100 * statistics.median(shares[base]):.0f} %" if runner.name in products else None,
                "GiB": memory[runner.name],
            }
        )
    return rows


def print_rows(rows: list[dict[str, Any]], header: bool) -> None:
    columns = {name: max(len(name), 8) for name in rows[0]} | {"model": 24}
    if header:
        print(" ".join(f"{name:>{width}}" for name, width in columns.items()))
    for row in rows:
        print(" ".join(f"{'' if row[name] is None else row[name]!s:>{width}}" for name, width in columns.items()))
    sys.stdout.flush()


def print_profile(options: argparse.Namespace) -> None:
    """Prints where the time of a training step of the first model goes."""
    runner = Runner(options.models[0], options, True, options.dtypes[-1], options.frames[-1], options.batch[-1])
    for _ in range(3):
        runner()
    with torch.profiler.profile() as profile:
        runner()
    by = "self_cuda_time_total" if options.device.type == "cuda" else "self_cpu_time_total"
    print(profile.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60))


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--models", nargs="+", default=["ours", "ours_no_regions", *PEERS])
    parser.add_argument("--batch", type=int, nargs="+", default=[2], help="clips")
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--passes", nargs="+", choices=("train", "inference"), default=["train", "inference"])
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="number of CPU threads")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="print where the time of a training step goes")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    options.device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    where = about(options.device)
    print(f"{described(where)}\nMedians of {options.repeats}, in turn; ratio: time relative to {options.models[0]}\n")
    rows: list[dict[str, Any]] = []
    for train in (name == "train" for name in options.passes):
        for dtype in options.dtypes:
            for frames in options.frames:
                for batch in options.batch:
                    found = measure(options, train, dtype, frames, batch)
                    print_rows(found, header=not rows)
                    rows += found
    if options.profile:
        print_profile(options)
    if options.json:
        options.json.write_text(json.dumps({"about": where, "size": options.size, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""
Measures the encoder and the region module, compared with a plain PyTorch implementation of the method, and the share
of the region module in the time of the whole model.

    python benchmarks/model.py [--paper] [--parts plain forms] [--forms decoupled paper queries] [--batch 2]
                               [--device cuda] [--dtype bf16] [--json FILE]

Repetitions of what is compared alternate; times are medians, and shares and ratios are medians of the ratios within
each repetition.

"plain" compares with the implementation in `benchmarks/plain.py`, on the same weights. Before anything is timed,
outputs, gradients and updated codebooks of both are compared. Memory is the peak that one training step of the
quantizer adds; on a CPU, it is measured in a separate process (Linux only).

"forms" times the region module of each form alone, and the dual encoder around it. Forward is the embedding of clips;
forward + backward is a training step without the optimizer, with a caption for each clip, and includes the update of
the codebook. For `queries`, it also times words and regions alone: phrases, token projections, similarities and loss.
"kept" is the memory of what the forward pass of a part keeps for the backward pass, without weights and inputs.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import DistilBertConfig

from measuring import about, added_memory, described
from plain import PlainEncoder, PlainRegionModule, fused, take_weights
from region_learner import RegionLearnerConfig, RegionLearnerModel, RegionLearnerVideoConfig, RegionLearnerVideoModel
from region_learner.loss_region_learner import word_region_loss, word_region_similarity

LAPTOP = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
PAPER = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
NO_REGIONS = {"codebook_size": 0, "num_regions": 0, "interaction_layers": 0}
IMPLEMENTATIONS = ("ours", "plain")
FORMS: dict[str, dict[str, Any]] = {
    "decoupled": {},
    "paper": {"region_form": "paper"},
    "queries": {  # as in the recipe `moving_shapes`
        "region_form": "queries",
        "num_regions": 12,
        "region_layer": 1,
        "codebook_size": 0,
        "interaction_layers": 0,
        "video_pooling": "cls_patch_max",
    },
}
WORDS_AND_REGIONS = {"token_dim": 64, "phrase_window": 7, "tube_mlp": True}  # of `queries`
WORDS = 20


# Both implementations of each part, with the same weights


def build_encoders(options: argparse.Namespace) -> dict[str, nn.Module]:
    config = RegionLearnerVideoConfig(**options.sizes, **NO_REGIONS)
    ours = RegionLearnerVideoModel(config)
    with torch.no_grad():
        for parameter in ours.parameters():  # attention over time is zero, which would hide a difference
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


def autocast(options: argparse.Namespace) -> AbstractContextManager:
    return torch.autocast(options.device.type, torch.bfloat16) if options.dtype == "bf16" else nullcontext()


class Part:
    """One part of the model in both implementations, with their input and the gradient of their output."""

    def __init__(self, name: str, modules: dict[str, nn.Module], inputs: torch.Tensor, options: argparse.Namespace):
        self.name, self.modules, self.options = name, modules, options
        self.inputs = inputs.requires_grad_()
        self.gradient = torch.randn_like(self.output("plain", training=False))

    def output(self, implementation: str, training: bool) -> torch.Tensor:
        module = self.modules[implementation].train(training)
        with autocast(self.options):
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


class Form:
    """A dual encoder with one form of the region module, and inputs of its parts."""

    def __init__(self, name: str, options: argparse.Namespace):
        torch.manual_seed(0)
        self.options = options
        video = options.sizes | {"codebook_size": options.codes} | FORMS[name]
        text = DistilBertConfig(**options.text, dropout=0.0, attention_dropout=0.0)
        extra = WORDS_AND_REGIONS if name == "queries" else {}
        config = RegionLearnerConfig(video_config=video, text_config=text, **extra)
        self.model = RegionLearnerModel(config).to(options.device).train()
        shape = (options.batch, WORDS)
        self.inputs = {
            "input_ids": torch.randint(1, text.vocab_size, shape, device=options.device),
            "attention_mask": torch.ones(shape, dtype=torch.long, device=options.device),
            "pixel_values_videos": pixels(options, options.batch),
        }
        self.parts: dict[str, Callable[[], torch.Tensor]] = {"whole": self.whole, "region module": self.region_module}
        self.region_inputs: list[Any] = []
        module = self.model.video_model.region_module
        hook = module.register_forward_pre_hook(lambda module, inputs: self.region_inputs.extend(inputs))
        with autocast(options):  # the first training pass also initializes the codes
            regions = self.model(**self.inputs).video_model_output.region_states.detach()
        hook.remove()
        self.region_inputs = [x.detach() if isinstance(x, torch.Tensor) else x for x in self.region_inputs]
        self.region_inputs[0].requires_grad_()
        if self.model.phrases is not None:
            self.parts["words and regions"] = self.words_and_regions
            words = torch.randn(*shape, text.dim, device=options.device)
            self.words, self.regions = words.requires_grad_(), regions.requires_grad_()

    def run(self, part: str, training: bool) -> None:
        self.model.train(training)
        with torch.set_grad_enabled(training):
            loss = self.parts[part]()
        if training:
            loss.backward()
        self.model.zero_grad()

    def kept(self, part: str) -> int:
        """Returns the bytes that the forward pass of a part keeps for its backward pass, except weights and inputs."""
        self.model.train()
        given = [*self.model.parameters(), *self.model.buffers(), *self.inputs.values(), *self.region_inputs]
        given = [x.untyped_storage().data_ptr() for x in given if isinstance(x, torch.Tensor)]
        sizes: dict[int, int] = {}

        def keep(x: torch.Tensor) -> torch.Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in given:
                sizes[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            self.parts[part]().backward()
        self.model.zero_grad()
        return sum(sizes.values())

    def whole(self) -> torch.Tensor:
        with autocast(self.options):
            if self.model.training:
                return self.model(**self.inputs, return_loss=True).loss
            return self.model.get_video_features(self.inputs["pixel_values_videos"]).pooler_output

    def region_module(self) -> torch.Tensor:
        with autocast(self.options):
            states, _, _, loss = self.model.video_model.region_module(*self.region_inputs)
        return states.float().sum() + (0 if loss is None else loss.sum())

    def words_and_regions(self) -> torch.Tensor:
        model, mask = self.model, self.inputs["attention_mask"].bool()
        with autocast(self.options):
            phrases = model.phrases(self.words, mask)
            texts = model.phrase_mlp(phrases, mask)
            words, regions = model.text_tokens(phrases, mask), model.video_tokens(self.regions)
            similarity = word_region_similarity(*words, *regions) / model.token_temperature
            outputs = SimpleNamespace(
                text_embeds=texts, video_embeds=texts, token_logits_per_text=similarity,
                text_token_embeds=words[0], text_token_weights=words[1],
                video_token_embeds=regions[0], video_token_weights=regions[1],
            )  # fmt: skip
            return word_region_loss(outputs, model.token_temperature) + texts.float().sum()


# Measurement


def seconds(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def times_in_turn(
    runs: dict[str, Callable[[], None]], repetitions: int, device: torch.device
) -> dict[str, list[float]]:
    """Returns the times of each of `runs`, which alternate; of quick ones, five times as many as `repetitions`."""
    warm_up = [seconds(run, device) for run in 2 * [*runs.values()]][len(runs) :]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(repetitions if max(warm_up) > 0.2 else 5 * repetitions):
        for name in runs if repetition % 2 else reversed(runs):
            times[name].append(seconds(runs[name], device))
    return times


def measure_form(name: str, options: argparse.Namespace) -> list[dict]:
    form, rows = Form(name, options), []
    for training, title in ((False, "forward"), (True, "forward + backward")):
        runs = {part: partial(form.run, part, training) for part in form.parts}
        times = times_in_turn(runs, options.repetitions, options.device)
        for part, values in times.items():
            share = statistics.median(a / b for a, b in zip(values, times["whole"]))
            row = {"form": name, "part": part, "pass": title, "seconds": statistics.median(values), "share": share}
            rows.append(row | {"all_seconds": values})
    kept = {part: form.kept(part) for part in form.parts}
    rows += [{"form": name, "part": part, "pass": "kept", "bytes": kept[part], "share": kept[part] / kept["whole"]}
             for part in kept]  # fmt: skip
    return rows


def measure_times(part: Part, repetitions: int) -> list[dict]:
    rows = []
    for name, run in (("forward", part.forward), ("forward + backward", part.forward_backward)):
        runs = {implementation: partial(run, implementation) for implementation in IMPLEMENTATIONS}
        times = times_in_turn(runs, repetitions, part.options.device)
        medians = {implementation: statistics.median(values) for implementation, values in times.items()}
        ratio = statistics.median(a / b for a, b in zip(times["ours"], times["plain"]))
        rows.append({"part": part.name, "pass": name, "seconds": medians, "ratio": ratio, "all_seconds": times})
    return rows


def memory_of_quantizer(implementation: str, clips: int, options: argparse.Namespace) -> int | None:
    """Returns the peak memory in bytes that one training step of the quantizer adds to its input, with gradients."""
    quantizer = build_region_modules(options)[implementation].quantizer.train()
    inputs = features(options, clips).flatten(0, 3).requires_grad_()

    def step():
        quantizer(inputs)[0].sum().backward()
        inputs.grad = None

    if options.device.type == "cuda":
        step()  # libraries allocate their workspaces
    return added_memory(step, options.device)


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


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="ViT-B/16 instead of 6 layers of width 384")
    parser.add_argument("--parts", nargs="+", choices=("plain", "forms"), default=["plain", "forms"])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=[*FORMS], help="for --parts forms (default all)")
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
    width, heads = options.sizes["hidden_size"], options.sizes["num_attention_heads"]
    layers = options.sizes["num_hidden_layers"] // 2  # for ViT-B/16, those of DistilBERT
    options.text = {"dim": width, "n_layers": layers, "n_heads": heads, "hidden_dim": 4 * width}
    options.tokens_of_clip = options.frames * (options.image_size // 16) ** 2
    return options


def main():
    options = parse_options()
    torch.manual_seed(0)
    if options.memory_of:
        print(memory_of_quantizer(options.memory_of[0], int(options.memory_of[1]), options))
        return
    where, sizes = about(options.device), options.sizes
    print(f"{described(where)}\n{options.dtype}; ", end="")
    print(f"{sizes['num_hidden_layers']} layers of width {sizes['hidden_size']}, {options.codes} codes; ", end="")
    print(f"{options.batch} clips of {options.frames} frames of {options.image_size} px")
    print(f"Medians of {options.repetitions} repetitions or more, in turn")
    result = {
        "about": where,
        "dtype": options.dtype,
        "sizes": sizes | {"batch": options.batch, "codebook_size": options.codes},
        "repetitions": options.repetitions,
    }
    if "plain" in options.parts:
        result |= compare_with_plain(options)
    if "forms" in options.parts:
        result["forms"] = compare_forms(options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def compare_with_plain(options: argparse.Namespace) -> dict[str, list[dict]]:
    parts = [
        Part("encoder", build_encoders(options), pixels(options, options.batch), options),
        Part("region module", build_region_modules(options), features(options, options.batch), options),
    ]
    rows = []
    print(f"\n{'':34} {'ours':>10} {'plain':>10} {'ours / plain':>13}")
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
    return {"times": rows, "memory": memory}


def compare_forms(options: argparse.Namespace) -> list[dict]:
    print(f"\n{'':48} {'':>10} {'of the whole':>13}")
    rows = []
    for name in options.forms:
        for row in measure_form(name, options):
            rows.append(row)
            title = f"{name:10} {row['part']:18} {row['pass']:18}"
            value = f"{row['bytes'] / 2**20:7.1f} MiB" if row["pass"] == "kept" else f"{1000 * row['seconds']:8.1f} ms"
            print(f"{title} {value} {100 * row['share']:10.1f} %", flush=True)
    return rows


if __name__ == "__main__":
    main()

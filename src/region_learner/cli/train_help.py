"""Formats `region-learner train --help`, whose options are fields of dataclasses, without importing transformers."""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields

from ..training.arguments import ARGUMENT_GROUPS, DataArguments, ModelArguments, OwnTrainingArguments
from ..training.recipes import list_recipes, recipe_description

WIDTH = 100

# Short names of options of transformers, which are the names that the other commands use.
SHORT_NAMES = {
    "output": "output_dir",
    "split": "train_split",
    "batch_size": "per_device_train_batch_size",
    "workers": "dataloader_num_workers",
}

_USAGE = """\
Usage: region-learner train [RECIPE] [OPTIONS]

  Train or fine-tune a model. RECIPE is one of the recipes below or a YAML file of your own that
  sets options; options on the command line override it. To train on several GPUs or machines, use
  accelerate launch -m region_learner.training [RECIPE] [OPTIONS].
"""

_GENERAL = {
    "--json": "Print the result as JSON.",
    "-h, --help": "Show this message and exit.",
    "--help-all": "Also list all options of transformers.TrainingArguments, and exit.",
}

# Placeholder and help of the options of transformers that most runs need.
OF_TRANSFORMERS = {
    "dataloader_num_workers": ("N", "Processes per device that decode videos."),
    "num_train_epochs": ("N", "Number of passes over the corpus."),
    "max_steps": ("N", "Number of optimizer steps, instead of epochs."),
    "per_device_train_batch_size": ("N", "Pairs per device."),
    "gradient_checkpointing": ("", "Recompute activations in the backward pass, to save memory."),
    "gradient_accumulation_steps": ("N", "Mini-batches per optimizer step. Negatives come from the same mini-batch."),
    "auto_find_batch_size": ("", "Halve the batch size until it fits in memory."),
    "bf16": ("", "Train in bfloat16 mixed precision."),
    "fp16": ("", "Train in float16 mixed precision."),
    "torch_compile": ("", "Compile the model."),
    "learning_rate": ("X", "Peak learning rate."),
    "lr_scheduler_type": ("NAME", "Schedule of the learning rate: linear, cosine, constant, ..."),
    "warmup_steps": ("N", "Number of warm-up steps, or their share of all steps if it is below 1."),
    "weight_decay": ("X", "Weight decay."),
    "max_grad_norm": ("X", "Clip gradients to this norm."),
    "optim": ("NAME", "Optimizer: adamw_torch, adafactor, ..."),
    "seed": ("N", "Random seed."),
    "eval_strategy": ("NAME", "When to evaluate on --eval-split: epoch (the default), steps, or no, to turn it off."),
    "eval_steps": ("N", "Steps between evaluations."),
    "per_device_eval_batch_size": ("N", "Clips per device in evaluation."),
    "load_best_model_at_end": ("", "Save the checkpoint that was best on --eval-split as the final model."),
    "metric_for_best_model": ("NAME", "Metric that decides which checkpoint is best."),
    "output_dir": ("DIR", "Directory for the checkpoint and results.json. By default runs/CORPUS."),
    "resume_from_checkpoint": ("true", "Resume from the last checkpoint in the output directory."),
    "save_strategy": ("NAME", "When to save a checkpoint to resume from: epoch, steps or no."),
    "save_steps": ("N", "Steps between checkpoints."),
    "save_total_limit": ("N", "Maximum number of checkpoints to keep."),
    "logging_steps": ("N", "Steps between log lines."),
    "report_to": ("NAME ...", "Trackers: tensorboard, wandb, ..."),
    "push_to_hub": ("", "Upload the model to the Hub."),
    "hub_private_repo": ("", "If the repository is created, make it private.  [default: true]"),
}


# Placeholders of options of this package whose type does not say what their value is.
_VALUES = {
    "corpora": "JSON",
    "data_dir": "DIR",
    "data_dirs": "CORPUS=DIR ...",
    "freeze": "PREFIX ...",
    "max_missing": "N",
    "max_unreadable": "SHARE",
}


def train_help(everything: bool = False) -> str:
    """Returns the help of `train`, with all options of transformers if `everything`."""
    recipes = "".join(f"  {name:22}{recipe_description(path)}\n" for name, path in list_recipes().items())
    described = dict(OF_TRANSFORMERS)
    for cls in (ModelArguments, DataArguments, OwnTrainingArguments):
        described |= {item.name: _value_and_help(item, cls) for item in fields(cls)}
    parts = [_USAGE, f"Recipes:\n{recipes}"]
    for group, names in ARGUMENT_GROUPS.items():
        parts.append(_section(group, dict(_option(name, *described[name]) for name in names)))
    parts.append(_section("General", _GENERAL))
    if everything:
        from transformers import TrainingArguments

        from ..training.training_arguments import REFUSED

        shown = {*OF_TRANSFORMERS, *REFUSED, "do_eval", "do_predict"}  # the latter are refused
        others = [item for item in fields(TrainingArguments) if item.init and item.name not in shown]
        options = dict(_option(item.name, *_value_and_help(item, TrainingArguments)) for item in others)
        parts.append(_section("Other options of transformers.TrainingArguments", options))
    return "\n".join(parts).rstrip("\n")


def _value_and_help(item: Field, cls: type) -> tuple[str, str]:
    """Returns a placeholder for the value of an option, such as `N`, and its help."""
    kind = str(cls.__annotations__[item.name])  # `item.type` is changed by HfArgumentParser
    kinds = {"list": "X ...", "dict": "JSON", "bool": "", "int": "N", "float": "X"}
    value = _VALUES.get(item.name) or next(
        (value for word, value in kinds.items() if re.search(rf"\b{word}\b", kind)), "NAME"
    )
    text = " ".join(str(item.metadata.get("help", "")).split())
    default = item.default_factory() if item.default_factory is not MISSING else item.default
    is_given = default not in (None, MISSING, "", [], {}) and default is not False
    if is_given and "default" not in text:
        text += f"  [default: {default:g}]" if isinstance(default, float) else f"  [default: {default}]"
    return value, text


def _option(name: str, value: str, text: str) -> tuple[str, str]:
    spelt = f"--{name.replace('_', '-')}"
    for short, full in SHORT_NAMES.items():
        if name == full:
            text, default = re.fullmatch(r"(.*?)(  \[default: .*\])?", text).groups("")
            spelt, text = f"--{short.replace('_', '-')}", f"{text} Same as {spelt}.{default}"
    return f"{spelt} {value}".rstrip(), text


def _section(title: str, entries: Mapping[str, str]) -> str:
    column = 32
    lines = [f"{title}:"]
    for name, text in entries.items():
        wrapped = textwrap.wrap(text, WIDTH - column, break_on_hyphens=False)
        first = wrapped.pop(0) if wrapped and len(name) <= column - 4 else ""
        lines.append(f"  {name:{column - 2}}{first}".rstrip())
        lines += [" " * column + line for line in wrapped]
    return "\n".join(lines) + "\n"

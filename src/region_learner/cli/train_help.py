"""
The text of `region-learner train --help`.

The options are fields of dataclasses that subclass transformers' TrainingArguments, which take seconds to import. The
text about them is therefore kept in `train_options.txt`, which a test compares with the dataclasses. After changing
options, write it again with `python -m region_learner.cli.train_help`.
"""

import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

WIDTH = 100
OPTIONS_FILE = Path(__file__).with_name("train_options.txt")
_RECIPES = Path(__file__).parents[1] / "training" / "recipes"

_USAGE = """\
Usage: region-learner train [RECIPE] [OPTIONS]

  Train or fine-tune a model. RECIPE is one of those below, or a YAML file with values of options;
  options on the command line override it. On several GPUs or machines:
  accelerate launch -m region_learner.training [RECIPE] [OPTIONS]. See docs/training.md.
"""

# Options of transformers that a first run needs.
_EVERYDAY = {
    "--output DIR": "Directory for the checkpoint and results.json (also --output-dir).  [default: runs/CORPUS]",
    "--batch-size N": "Pairs per device (also --per-device-train-batch-size).",
    "--workers N": "Processes per device that decode (also --dataloader-num-workers).",
    "--num-train-epochs N": "Passes over the corpus, or --max-steps N.",
    "--learning-rate RATE": "Peak learning rate.",
    "--resume-from-checkpoint true": "Resume from the last checkpoint of the output directory.",
    "--json": "Print the result as JSON.",
    "--help": "Show this message and exit.",
    "--help-all": "Also list all options of transformers.TrainingArguments.",
}


def train_help(everything: bool = False) -> str:
    """The help of `train`, with all options of transformers if `everything`."""
    recipes = {path.stem: _description(path) for path in sorted(_RECIPES.glob("*.yaml"))}
    parts = [
        _USAGE,
        _section("Recipes", recipes, column=24),
        OPTIONS_FILE.read_text(encoding="utf-8").rstrip("\n") + "\n",
    ]
    if everything:
        parts.append(_section("Options of transformers.TrainingArguments", _options_of_transformers()))
    return "\n".join(parts).rstrip("\n")


def _description(recipe: Path) -> str:
    """The first sentence of a recipe, in one line."""
    with recipe.open(encoding="utf-8") as file:
        sentence, _, _ = file.readline().strip("# \n").partition(". ")
    return textwrap.shorten(sentence.rstrip("."), WIDTH - 24, placeholder=" ...")


def train_options() -> str:
    """The options of this package, in sections: what `train_options.txt` holds."""
    from transformers import TrainingArguments

    from ..training.arguments import DataArguments, ModelArguments, RegionLearnerTrainingArguments

    theirs = {item.name for item in fields(TrainingArguments)}
    sections: dict[str, dict[str, str]] = {"Everyday options": _EVERYDAY}
    for section, cls in {
        "Model": ModelArguments,
        "Data": DataArguments,
        "Training": RegionLearnerTrainingArguments,
    }.items():
        for item in fields(cls):
            if item.name not in theirs:
                sections.setdefault(item.metadata.get("group", section), {}).update(_entry(item))
    return "\n".join(_section(name, entries) for name, entries in sections.items())


def _options_of_transformers() -> dict[str, str]:
    from transformers import TrainingArguments

    entries: dict[str, str] = {}
    for item in fields(TrainingArguments):
        if item.init:
            entries |= _entry(item)
    return entries


def _entry(item: Field) -> dict[str, str]:
    """What the user writes for a field, and its help."""
    kind = str(item.type)
    value = "JSON" if "dict" in kind else "X ..." if "list" in kind else _value(kind)
    text = " ".join(str(item.metadata.get("help", "")).split())
    default = item.default_factory() if item.default_factory is not MISSING else item.default
    if default not in (None, MISSING, False, "", [], {}) and "default" not in text:
        text += f"  [default: {default}]"
    return {f"--{item.name.replace('_', '-')} {value}".rstrip(): text}


def _value(kind: str) -> str:
    names = {"bool": "", "int": "N", "float": "X"}
    return next((name for word, name in names.items() if re.search(rf"\b{word}\b", kind)), "NAME")


def _section(title: str, entries: Mapping[str, str], column: int = 32) -> str:
    return f"{title}:\n" + "".join(_lines(entries.items(), column))


def _lines(entries: Iterable[tuple[str, Any]], column: int) -> Iterable[str]:
    for name, text in entries:
        wrapped = textwrap.wrap(text, WIDTH - column) or [""]
        if len(name) > column - 4:
            yield f"  {name}\n"
        else:
            yield f"  {name:{column - 2}}{wrapped.pop(0)}".rstrip() + "\n"
        for line in wrapped:
            yield f"{'':{column}}{line}\n"


if __name__ == "__main__":
    OPTIONS_FILE.write_text(train_options(), encoding="utf-8")

"""Parses the command line and a recipe into the arguments of each stage of a run."""

import argparse
import itertools
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from ..configuration_region_learner import did_you_mean, merge_fields
from .arguments import NONE, DataArguments, ModelArguments, mapping_from_json
from .recipes import read_recipe
from .training_arguments import RegionLearnerTrainingArguments

logger = logging.getLogger(__name__)

Arguments = tuple[ModelArguments, DataArguments, RegionLearnerTrainingArguments]

_CLASSES: Any = [ModelArguments, DataArguments, RegionLearnerTrainingArguments]
_NAMES = [item.name for cls in _CLASSES for item in fields(cls) if item.init]
_MAY_BE_NONE = {
    name
    for cls in _CLASSES
    for base in cls.__mro__
    for name, kind in vars(base).get("__annotations__", {}).items()
    if re.search("None|Optional", str(kind))
}


class _Parser(HfArgumentParser):
    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        is_number = action.type in (int, float)
        if is_number and arg_string in NONE and (action.nargs == "+" or action.dest in _MAY_BE_NONE):
            return None
        return super()._get_value(action, arg_string)

    def error(self, message: str):
        if message.startswith("unrecognized arguments: "):
            unknown = message.split()[2].partition("=")[0]
            if unknown.startswith("-"):
                options = {name for name in self._option_string_actions if "_" not in name}
                message = f"{unknown} is not known{did_you_mean(unknown.replace('_', '-'), options)}"
            else:
                message = f"{unknown!r} is not expected: give only one recipe, before all options."
        # argparse names both spellings: "argument --max_steps/--max-steps: ..."
        message = re.sub(r"^argument (?:--\w+/)?(--[\w-]+)", r"\1", message)
        raise ValueError(f"{message} (`region-learner train --help` lists all options)")


def parse_arguments(argv: Sequence[str] | None = None, **overrides: Any) -> Arguments:
    """
    Returns the arguments of a run from `[RECIPE] [--name value ...]`. The command line overrides the recipe, and
    `overrides` override both. Mappings are merged key by key, and null removes a key of the recipe. If another corpus
    is given than that of the recipe, the recipe's `corpus_options` are removed.

    Args:
        argv: the command line. The default is that of this process.
        overrides: values of arguments, by name.

    Raises:
        ValueError: a recipe, key or option is unknown, a value cannot be parsed, or the recipe has several stages.

    Example:

        arguments = parse_arguments(["moving_shapes", "--output-dir", "runs/moving_shapes"], max_steps=10)
    """
    stages = parse_stages(argv, **overrides)
    if len(stages) > 1:
        raise ValueError("The recipe has several stages: use parse_stages and train_stages.")
    return stages[0]


def parse_stages(argv: Sequence[str] | None = None, **overrides: Any) -> list[Arguments]:
    """
    Returns the arguments of each stage, like [`parse_arguments`]. The `stages` of a recipe are a list of mappings,
    each of which overrides the values that all stages share. Each stage starts from the checkpoint of the stage before
    it. The last checkpoint is saved in `output_dir`, and the others in `output_dir/stage-N`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    recipe: dict[str, Any] = {}
    if argv and not argv[0].startswith("-"):
        name = argv.pop(0)
        recipe = read_recipe(name)
        _check_keys(name, recipe)
    stages = recipe.pop("stages", None) or [{}]
    parsed: list[Any] = []
    changes: dict[str, None] = {}  # an ordered set
    for number, stage in enumerate(stages, start=1):
        parser = _Parser(_CLASSES, prog="region-learner train", allow_abbrev=False)
        of_recipe = _merge_arguments(recipe, stage)
        parser.set_defaults(**of_recipe)
        given = _given(parser, argv) | overrides
        given |= _without_options_of_another_corpus(of_recipe, given)
        given |= _without_evaluation(given)
        merged = _merge_arguments(of_recipe, given)
        values = vars(parser.parse_args(argv)) | {name: merged[name] for name in given}
        changes |= dict.fromkeys(_changes_in_recipe(parser, of_recipe, given, values))
        values |= _check_values(parser, values)
        _set_paths(values, number, is_last=number == len(stages))
        if number > 1:
            # The shared part of the configuration is already in the checkpoint that the stage starts from.
            names = ("config", "video_config")
            own, on_top = ({name: some[name] for name in names if name in some} for some in (stage, given))
            values |= dict.fromkeys(("text_config", *names)) | _merge_arguments(own, on_top)
        parsed.append(parser.parse_dict(values, allow_extra_keys=False))
    if len(parsed) > 1:
        _resume_one_stage([arguments[2] for arguments in parsed])
    for change in changes:
        logger.info("Overriding the recipe: %s", change)
    return parsed  # type: ignore[return-value]


def _check_keys(name: str, recipe: dict[str, Any]) -> None:
    stages = recipe.get("stages", [])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ValueError(f"{name}: stages must be a list of mappings of argument names to values.")
    for key in itertools.chain({key for key in recipe if key != "stages"}, *stages):
        if key not in _NAMES:
            raise ValueError(f"{name}: unknown key {key!r}{did_you_mean(str(key), [*_NAMES, 'stages'])}")


_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    string_to_bool: ((bool,), "true or false"),
}


def _check_values(parser: argparse.ArgumentParser, values: dict[str, Any]) -> dict[str, Any]:
    """
    Returns the values of arguments that are lists, where a recipe may have one item instead.

    Raises:
        ValueError: a value has the wrong type. (`argparse` only checks strings.)
    """
    lists = {}
    for action in parser._actions:
        value = values.get(action.dest)
        if value is None:
            continue
        items = value if isinstance(value, list | tuple) and action.nargs == "+" else [value]
        if action.nargs == "+" and action.type in (str, float):
            lists[action.dest] = list(items)
        types, words = _KINDS.get(action.type, ((object,), ""))
        for item in items:
            if not isinstance(item, types) or (isinstance(item, bool) and bool not in types and words):
                raise ValueError(f"{action.dest}={item!r} must be {words}.")
    return lists


def _given(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """Returns the arguments that were given on the command line."""
    unset = object()
    namespace = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(_NAMES, unset)))
    given = {name: value for name, value in vars(namespace).items() if value is not unset}
    return {name: [] if value == [None] else value for name, value in given.items()}


def _without_options_of_another_corpus(recipe: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Returns the given options of the corpus, with null for those that a recipe sets for another corpus."""
    of_recipe, own = (_as_mapping("corpus_options", some.get("corpus_options")) for some in (recipe, given))
    corpus = recipe.get("corpus", DataArguments.corpus)
    if given.get("corpus", corpus) == corpus or not isinstance(of_recipe, dict) or isinstance(own, str):
        return {}
    return {"corpus_options": dict.fromkeys(of_recipe) | (own or {})}


def _without_evaluation(given: dict[str, Any]) -> dict[str, Any]:
    """
    Returns what else changes if one of the given options turns off the evaluation during training.

    Raises:
        ValueError: there is a split to evaluate on as well.
    """
    split, strategy = (given.get(name, "") for name in ("eval_split", "eval_strategy"))
    without_split, without_strategy = split in (None, *NONE), strategy == "no"
    if without_strategy and split and not without_split:
        raise ValueError(f"--eval-split {split} has no effect with --eval-strategy no: leave one of them out.")
    if not without_split and not without_strategy:
        return {}
    off = {"eval_split": None, "eval_strategy": "no", "load_best_model_at_end": False}
    return {name: value for name, value in off.items() if name not in given}


def _set_paths(values: dict[str, Any], number: int, is_last: bool) -> None:
    """Sets the directory that a stage saves its checkpoint in, and the checkpoint that it starts from."""
    output_dir = values.get("output_dir") or os.path.join("runs", f"{values['corpus']}")
    values["output_dir"] = output_dir if is_last else os.path.join(output_dir, f"stage-{number}")
    if number > 1:
        values |= {"video_tower": None, "text_tower": None, "tokenizer": None}
        values["model"] = os.path.join(output_dir, f"stage-{number - 1}")


def _as_mapping(name: str, value: Any) -> Any:
    """Returns `value`, parsed if it is a JSON object."""
    return mapping_from_json(name, value) if isinstance(value, str) and value.lstrip().startswith("{") else value


def _merge_arguments(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments `below`, overridden by those `above`. Mappings merge key by key."""
    merged = dict(below)
    for name, value in above.items():
        value, base = _as_mapping(name, value), _as_mapping(name, below.get(name))
        both = isinstance(value, dict) and isinstance(base, dict)
        merged[name] = merge_fields(base, value, keep_null=True) if both else value
    return merged


def _changes_in_recipe(
    parser: argparse.ArgumentParser, recipe: dict[str, Any], given: dict[str, Any], values: dict[str, Any]
) -> Iterator[str]:
    defaults = vars(parser.parse_args([]))  # with the values of the recipe
    return _changes({name: defaults[name] for name in recipe if name in given and name != "hub_token"}, values)


def _changes(recipe: dict[str, Any], arguments: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields how the `arguments` differ from a recipe, such as `video_config.num_regions 8 -> 4`."""
    for name, before in recipe.items():
        before, now = (_as_mapping(name, value) for value in (before, arguments.get(name)))
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _changes(dict.fromkeys(now) | before, now, f"{prefix}{name}.")
        elif isinstance(before, dict) and now in NONE:
            yield f"{prefix}{name} {_in_words(before)} -> {_in_words(None)}"
        elif before != now:
            yield f"{prefix}{name} {_in_words(before)} -> {_in_words(now)}"


def _in_words(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():  # given as 2, for an option that also accepts shares
        value = int(value)
    return "default" if value is None else json.dumps(value, default=str)


def _resume_one_stage(stages: list[RegionLearnerTrainingArguments]) -> None:
    """Resumes the stage that a checkpoint belongs to: earlier stages have finished, later ones start over."""
    resume = stages[0].resume_from_checkpoint
    if resume is None or resume.lower() in ("true", "false"):
        return
    folder = os.path.dirname(os.path.abspath(resume))
    folders = [os.path.abspath(str(stage.output_dir)) for stage in stages]
    if folder not in folders:
        raise ValueError(
            f"--resume-from-checkpoint {resume} is not in the directory of any stage ({', '.join(folders)})."
        )
    for number, stage in enumerate(stages):
        if folders[number] != folder:
            stage.resume_from_checkpoint = "true" if number < folders.index(folder) else None

"""Tests of the arguments of a run and their groups in `--help`, which need neither torch nor transformers."""

import dataclasses
import subprocess
import sys

import pytest
from transformers import HfArgumentParser, TrainingArguments

from region_learner.training import parse_arguments
from region_learner.training.arguments import ARGUMENT_GROUPS, DataArguments, ModelArguments, OwnTrainingArguments
from region_learner.training.parsing import _CLASSES


def test_the_groups_contain_each_of_our_arguments_once():
    own = [
        item.name
        for kind in (ModelArguments, DataArguments, OwnTrainingArguments)
        for item in dataclasses.fields(kind)
    ]
    shown = [name for names in ARGUMENT_GROUPS.values() for name in names]
    assert len(shown) == len(set(shown))
    assert set(own) <= set(shown)
    inherited = {item.name for item in dataclasses.fields(TrainingArguments)}
    assert set(shown) - set(own) <= inherited


def test_each_of_our_arguments_has_a_sentence_of_help():
    for kind in (ModelArguments, DataArguments, OwnTrainingArguments):
        for item in dataclasses.fields(kind):
            assert item.metadata["help"].endswith("."), item.name
            assert item.metadata["help"][0].isupper(), item.name
    HfArgumentParser(_CLASSES).format_help()  # scripts of users build such parsers


def test_options_are_spelled_with_dashes_or_underscores():
    dashes = ["--output-dir=there", "--per-device-train-batch-size", "7", "--video-config", '{"num_frames": 2}',
              "--data-dirs", "folder=here", "--max-unreadable=0.5", "--overwrite"]  # fmt: skip
    underscores = [
        word.split("=")[0].replace("-", "_").replace("__", "--", 1) + word[len(word.split("=")[0]) :]
        if word.startswith("--")
        else word
        for word in dashes
    ]
    assert underscores[1] == "--per_device_train_batch_size"
    for argv in (dashes, underscores):
        model, data, training = parse_arguments(argv)
        assert model.video_config == {"num_frames": 2}
        assert data.data_dir == "here"
        assert (training.output_dir, training.per_device_train_batch_size) == ("there", 7)
        assert (training.max_unreadable, training.overwrite) == (0.5, True)
    with pytest.raises(
        ValueError, match="--per-device-train-batchsize is not known; did you mean '--per-device-train-"
    ):
        parse_arguments(["--per-device-train-batchsize=7"])


def test_arguments_and_recipes_are_listed_without_torch():
    """Empty modules replace the parent packages, so that only the two modules and their imports are tested."""
    code = """
import importlib.util, sys, types
spec = importlib.util.find_spec("region_learner")
for name in ("region_learner", "region_learner.training"):
    module = types.ModuleType(name)
    module.__path__ = [spec.submodule_search_locations[0] + ("/training" if "." in name else "")]
    sys.modules[name] = module
for name in ("torch", "transformers"):
    sys.modules[name] = None
from region_learner.training.arguments import ARGUMENT_GROUPS
from region_learner.training.recipes import list_recipes, recipe_description, read_recipe
for name, path in list_recipes().items():
    print(name, recipe_description(path), len(read_recipe(name)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "finetune_msrvtt Fine-tune a pre-trained checkpoint for retrieval on MSR-VTT" in done.stdout

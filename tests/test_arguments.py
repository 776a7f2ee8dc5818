"""Tests of the arguments of a run and their groups in `--help`, which need neither torch nor transformers."""

import dataclasses
import subprocess
import sys

import pytest
import yaml
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


RECIPE = {
    "eval_split": "val", "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True,
    "num_frames": 4, "lr_scheduler_type": "constant", "lr_milestones": [0.5], "test_split": "test",
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


def test_none_removes_options_of_a_recipe(recipe):
    options = ["--num-frames", "none", "--lr-milestones", "none", "--test-split", "none", "--max-unreadable", "0.5"]
    model, data, training = parse_arguments([recipe, *options])
    assert (model.num_frames, data.test_split, training.lr_milestones) == (None, None, [])
    for option in ("--max-unreadable", "--per-device-train-batch-size"):  # these always have a value
        with pytest.raises(ValueError, match=f"{option}: invalid (float|int) value: 'none'"):
            parse_arguments([recipe, option, "none"])


@pytest.mark.parametrize("options", [["--eval-split", "none"], ["--eval-strategy", "no"]])
def test_evaluation_is_turned_off_by_its_split_or_its_strategy(recipe, options, caplog):
    with caplog.at_level("INFO"):
        _, data, training = parse_arguments([recipe, *options])
    assert (data.eval_split, training.eval_strategy, training.load_best_model_at_end) == (None, "no", False)
    assert "Overriding the recipe: load_best_model_at_end true -> false" in caplog.text
    _, data, training = parse_arguments([recipe])
    assert (data.eval_split, training.eval_strategy, training.load_best_model_at_end) == ("val", "epoch", True)


def test_contradictory_options_of_evaluation(recipe):
    with pytest.raises(ValueError, match="--eval-split test has no effect with --eval-strategy no: leave one"):
        parse_arguments([recipe, "--eval-split", "test", "--eval-strategy", "no"])
    _, data, training = parse_arguments(["--eval-split=none", "--eval-strategy=steps"])
    assert (data.eval_split, training.eval_strategy) == (None, "steps")  # an error once the data are known


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

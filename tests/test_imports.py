"""Tests of imports: what works without optional libraries, what is loaded when, and the Auto classes."""

import ast
import importlib.util
import pickle
import re
import subprocess
import sys

import pytest

from region_learner import RegionLearnerProcessor, RegionLearnerVideoProcessor
from region_learner.training.tokenizer import train_tokenizer

from .conftest import ROOT, tiny_model, tiny_text_config
from .fresh_process import run_fresh

PACKAGE = ROOT / "src" / "region_learner"

SCRIPT = """
import sys
missing = ("av", "timm", "torchvision")
for name in [name for name in sys.modules if name.partition(".")[0] in missing]:
    del sys.modules[name]
sys.modules |= dict.fromkeys(missing)

import torch
from region_learner import RegionLearnerConfig, RegionLearnerModel, RegionLearnerVideoProcessor
from region_learner.conversion import from_pretrained_towers

video = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16,
             patch_size=8, codebook_size=4, num_regions=2, interaction_heads=2)
text = dict(model_type="distilbert", vocab_size=9, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
model = RegionLearnerModel(RegionLearnerConfig(video_config=video, text_config=text, projection_dim=8))
outputs = model(torch.ones(2, 3, dtype=torch.long), torch.randn(2, 4, 3, 16, 16), return_loss=True)
assert outputs.loss.isfinite()
for what, call in {
    "torchvision": lambda: RegionLearnerVideoProcessor(),
    "timm": lambda: from_pretrained_towers("vit_tiny_patch16_224", "distilbert-base-uncased"),
}.items():
    try:
        call()
    except ImportError as error:
        message = str(error)
        assert what in message and "pip install" in message and len(message.strip().splitlines()) == 1, message
    else:
        raise AssertionError(what)
print("fine")
"""


def test_model_and_config_work_without_av_timm_and_torchvision():
    done = run_fresh(SCRIPT, isolated=False)
    assert done.stdout.strip() == "fine", done.stderr[-2000:]


def test_decoding_without_av_says_so(monkeypatch, tmp_path):
    from region_learner import RegionLearnerVideoProcessor

    monkeypatch.setattr("region_learner.video_decoding_region_learner.av", None)
    with pytest.raises(ImportError, match="pip install av"):
        RegionLearnerVideoProcessor()(str(tmp_path / "a.mp4"))


def imported(path) -> set[str]:
    """Returns the modules that a file imports. Relative ones start with dots."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def test_importing_the_package_loads_no_large_library():
    script = (
        "import region_learner, sys; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"


def test_using_the_model_loads_neither_trainer_nor_datasets():
    script = (
        "import sys; from region_learner import RegionLearnerModel, VideoIndex; "
        "print([m for m in ('datasets', 'timm', 'transformers.trainer') if m in sys.modules])"
    )
    done = run_fresh(script, isolated=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_public_names():
    import region_learner

    for name in region_learner.__all__:
        assert name in dir(region_learner)
        assert getattr(region_learner, name).__name__ == name
    assert set(region_learner._MODULES) == set(region_learner.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'RegionLearnerOther'"):
        region_learner.RegionLearnerOther  # noqa: B018


def test_all_output_classes_are_public():
    import region_learner
    from region_learner import modeling_region_learner as module

    outputs = {
        name for name, found in vars(module).items() if name.startswith("RegionLearner") and name.endswith("Output")
    }
    assert len(outputs) == 5
    assert outputs <= set(region_learner.__all__)
    assert outputs <= set(module.__all__)


def test_dir_is_complete_before_anything_is_used():
    """`dir` lists all modules of the API reference, and everything in it is accessible before any other import."""
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    documented = set(re.findall(r"^::: region_learner\.(\w+)", pages, re.MULTILINE))
    assert {"export", "multi_vector", "publishing", "search"} < documented
    script = f"""
import region_learner
before = dir(region_learner)
assert {documented} <= set(before), {documented} - set(before)
assert set(region_learner.__all__) <= set(before)
for name in before:
    getattr(region_learner, name)
assert region_learner.conversion.from_pretrained_towers and region_learner.evaluation.retrieval_metrics
print("fine")
"""
    done = run_fresh(script, isolated=False)
    assert done.stdout.strip() == "fine", done.stderr[-2000:]


def test_dir_leaves_out_what_cannot_be_imported(monkeypatch):
    import region_learner

    assert "multi_vector" in dir(region_learner)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert {"export", "search"} < set(dir(region_learner))
    assert "multi_vector" not in dir(region_learner)


# Ways to import this package before the Auto classes are used. Each registers our classes, in any order of imports.
ORDERS = [
    # Looking for a module does not import it.
    "import importlib.util, region_learner; importlib.util.find_spec('transformers'); import transformers",
    "import transformers.models.auto.modeling_auto, region_learner",
    "import region_learner.modeling_region_learner",
    # What a spawned process does with an object that it receives.
    "import pickle; pickle.loads(PICKLED)",
    # If an import of this package fails, the next one registers the classes.
    """
import sys, region_learner
sys.modules["region_learner.configuration_region_learner"] = None
try:
    import region_learner.modeling_region_learner
except ImportError:
    del sys.modules["region_learner.configuration_region_learner"]
from region_learner import RegionLearnerModel
""",
]
MORE_ORDERS = [
    "import region_learner, transformers",
    "import region_learner, transformers.trainer",
    "import transformers, region_learner",
    "from region_learner import RegionLearnerVideoProcessor",
    "from region_learner import load_corpus",
    "from region_learner import *",
    "import region_learner.configuration_region_learner",
    "import region_learner.processing_region_learner",
    "import region_learner.video_processing_region_learner",
    "import region_learner.loading",
    "import region_learner.training",
    # Several threads import at once.
    """
import region_learner, threading, importlib
names = ["transformers", "region_learner.modeling_region_learner", "region_learner.processing_region_learner"]
threads = [threading.Thread(target=importlib.import_module, args=(name,)) for name in names]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
""",
]

REGISTERED = """
from transformers import AutoConfig, AutoModel, AutoProcessor
model = AutoModel.from_pretrained(CHECKPOINT)
assert type(model).__module__ == "region_learner.modeling_region_learner", type(model)
assert type(AutoConfig.from_pretrained(CHECKPOINT)) is type(model.config)
import region_learner
assert type(model) is region_learner.RegionLearnerModel
assert type(AutoProcessor.from_pretrained(CHECKPOINT)) is region_learner.RegionLearnerProcessor
import sys
assert not any(finder.__class__.__module__.startswith("region_learner") for finder in sys.meta_path)
"""


@pytest.mark.parametrize("orders", [ORDERS, pytest.param(MORE_ORDERS, marks=pytest.mark.slow)], ids=["few", "more"])
def test_the_auto_classes_know_our_classes_whatever_is_imported_first(tmp_path, orders):
    model = tiny_model(text=tiny_text_config(vocab_size=200))
    tokenizer = train_tokenizer(["a caption"], 99, 32)
    for part in (model, RegionLearnerProcessor(RegionLearnerVideoProcessor(), tokenizer)):
        part.save_pretrained(tmp_path)
    names = f"CHECKPOINT, PICKLED = {str(tmp_path)!r}, {pickle.dumps(model.config)!r}\n"
    for order in orders:
        done = run_fresh(names + order + REGISTERED, isolated=False)
        assert done.returncode == 0, f"{order}\n{done.stderr[-3000:]}"


def test_files_of_the_model_import_only_each_other():
    for path in PACKAGE.glob("*_region_learner.py"):
        relative = {name for name in imported(path) if name.startswith(".")}
        siblings = {f".{other.stem}" for other in PACKAGE.glob("*_region_learner.py")}
        assert relative <= siblings, path.name

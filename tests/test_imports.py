"""The package where optional libraries are absent, and what it keeps out of itself."""

import ast
import subprocess
import sys

import pytest

from .conftest import ROOT

PACKAGE = ROOT / "src" / "region_learner"

SCRIPT = """
import sys
for name in ("av", "timm", "torchvision"):
    sys.modules[name] = None

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
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.strip() == "fine", done.stderr[-2000:]


def test_decoding_without_av_says_so(monkeypatch, tmp_path):
    from region_learner import RegionLearnerVideoProcessor

    monkeypatch.setattr("region_learner.video_processing_region_learner.av", None)
    with pytest.raises(ImportError, match="pip install av"):
        RegionLearnerVideoProcessor()(str(tmp_path / "a.mp4"))


def imported(path) -> set[str]:
    """The modules a file imports, relative ones with their dots."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def test_importing_the_package_loads_neither_trainer_nor_datasets():
    script = (
        "import sys, region_learner; "
        "print([m for m in ('datasets', 'timm', 'transformers.trainer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"


def test_the_model_knows_nothing_of_training():
    for path in PACKAGE.glob("*_region_learner.py"):
        relative = {name for name in imported(path) if name.startswith(".")}
        siblings = {f".{other.stem}" for other in PACKAGE.glob("*_region_learner.py")}
        assert relative <= siblings, path.name

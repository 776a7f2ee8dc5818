"""Code shared by all tests: the `--slow` tier, tiny models, and the location of the shared data."""

import dataclasses
import gc
import multiprocessing.forkserver
import os
from pathlib import Path

gc.disable()  # see `pytest_collection`

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import DistilBertConfig, TrainingArguments

from region_learner import RegionLearnerConfig, RegionLearnerModel, RegionLearnerVideoConfig, RegionLearnerVideoModel

gc.freeze()
gc.enable()

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "tests" / "fixtures" / "original"
SHARED_DATA = ROOT.parent / "shared" / "data"

torch.set_num_threads(1)  # the fast tier runs in several processes
os.fsync = os.fstat  # fails for the same descriptors but does not wait for the disk; no test cuts the power


def preload_for_all_tests(modules: list[str], **options):
    """
    Replaces `set_forkserver_preload`, so that the fork server imports what the processes of all tests need. A test
    process has one fork server. Each process that it forks would take seconds to import what the server has not.
    """
    needed = ["tests.toy_run", "region_learner.corpora.check", "region_learner.corpora.prepare"]
    needed += ["region_learner.search.reading", "region_learner.video_decoding_region_learner"]
    multiprocessing.forkserver._forkserver.set_forkserver_preload([*needed, *modules], **options)


multiprocessing.forkserver.set_forkserver_preload = preload_for_all_tests
preload_for_all_tests([])


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """
    Freezes the objects of libraries and tests, so that later garbage collections skip them. There are a million, and
    visiting them would take a third of the time, because `accelerate` collects garbage before each training run.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    try:
        return (yield)
    finally:
        if nextitem is not None and nextitem.path != item.path:  # freezes what the tests of this file have imported
            gc.collect()
            gc.freeze()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the slow tier")


def pytest_collection_modifyitems(config, items):
    skipped = {}
    if not config.getoption("--slow"):
        skipped["slow"] = pytest.mark.skip(reason="slow tier: run with --slow")
    if not torch.cuda.is_available():
        skipped["gpu"] = pytest.mark.skip(reason="needs a GPU")
    for item in items:
        for name, skip in skipped.items():
            if item.get_closest_marker(name) is not None:  # keywords would include directories, such as tests/slow
                item.add_marker(skip)


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the data beside the project, {SHARED_DATA.parent.name}/{SHARED_DATA.name}")
    return SHARED_DATA


TINY_VIDEO = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 4,
    "codebook_size": 16,
    "num_regions": 3,
    "interaction_heads": 4,
}
NO_REGIONS = {"codebook_size": 0, "num_regions": 0, "interaction_layers": 0}


def tiny_text_config(**options) -> DistilBertConfig:
    sizes = {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 32}
    return DistilBertConfig(**sizes | {"dropout": 0.0, "attention_dropout": 0.0} | options)


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Sets random weights, large enough that every part matters: no zero-initialized branch hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(
                1 + 0.1 * noise if is_norm else noise / (parameter.shape[-1] if parameter.ndim else 1) ** 0.5
            )
    return model


def tiny_video_model(seed: int = 0, **options) -> RegionLearnerVideoModel:
    torch.manual_seed(seed)
    return randomize(RegionLearnerVideoModel(RegionLearnerVideoConfig(**TINY_VIDEO | options)), seed).eval()


def checkpoint_activations(model) -> None:
    """Turns activation checkpointing on, which transformers called gradient checkpointing before 5.24."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


def checkpointing_argument() -> str:
    """Returns the name of the training argument that turns on activation checkpointing."""
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    return "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"


def tiny_model(seed: int = 0, text=None, **options) -> RegionLearnerModel:
    """Returns a dual encoder. `options` set top-level fields or, under other names, the video configuration."""
    top = {name: options.pop(name) for name in list(options) if name in RegionLearnerConfig.__dataclass_fields__}
    torch.manual_seed(seed)
    config = RegionLearnerConfig(
        video_config=TINY_VIDEO | options, text_config=text or tiny_text_config(), **{"projection_dim": 16} | top
    )
    return randomize(RegionLearnerModel(config), seed).eval()


def clips(batch: int = 2, frames: int = 4, size: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, frames, 3, size, size, generator=torch.Generator().manual_seed(seed))


def texts(batch: int = 2, length: int = 7, seed: int = 2) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 99, (batch, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

"""Tests of the Auto classes of transformers on checkpoints, with and without the package."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForVideoClassification,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    AutoVideoProcessor,
)

from region_learner import (
    RegionLearnerForVideoClassification,
    RegionLearnerForVideoQuestionAnswering,
    RegionLearnerModel,
    RegionLearnerProcessor,
    RegionLearnerVideoModel,
    RegionLearnerVideoProcessor,
)
from region_learner.training.tokenizer import train_tokenizer

from .conftest import clips, tiny_model, tiny_video_model
from .test_hub import run_python

HEADS = {
    AutoModelForVideoClassification: RegionLearnerForVideoClassification,
    AutoModelForVisualQuestionAnswering: RegionLearnerForVideoQuestionAnswering,
}


@pytest.fixture(scope="module")
def dual(tmp_path_factory):
    """Returns a folder with a dual encoder without a processor, and one that has it in the subfolder `inside`."""
    folder = tmp_path_factory.mktemp("dual")
    for place in (folder / "root", folder / "holder" / "inside"):
        tiny_model().save_pretrained(place)
    return folder / "root", folder / "holder"


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower")
    tiny_video_model().save_pretrained(folder)
    RegionLearnerVideoProcessor.for_image_size(32, num_frames=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, dual):
    folder = tmp_path_factory.mktemp("classifier")
    RegionLearnerForVideoClassification.from_pretrained(dual[0], num_labels=3).save_pretrained(folder)
    RegionLearnerVideoProcessor.for_image_size(32, num_frames=2).save_pretrained(folder)
    return folder


def test_a_checkpoint_lists_the_classes_of_all_heads(dual, tmp_path):
    expected = {
        "AutoConfig": "configuration_region_learner.RegionLearnerConfig",
        "AutoModel": "modeling_region_learner.RegionLearnerModel",
        **{auto.__name__: f"modeling_region_learner.{head.__name__}" for auto, head in HEADS.items()},
    }
    assert json.loads((dual[0] / "config.json").read_text())["auto_map"] == expected
    for auto_class, head in HEADS.items():  # with the package; the config of a saved head has the same classes
        model = auto_class.from_pretrained(dual[0], num_labels=3)
        assert type(model) is head
        model.save_pretrained(tmp_path / head.__name__)
        assert AutoConfig.from_pretrained(tmp_path / head.__name__).auto_map == expected
    assert type(AutoModel.from_pretrained(dual[0])) is RegionLearnerModel


def test_a_video_tower_lists_its_own_classes(tower):
    assert json.loads((tower / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_region_learner.RegionLearnerVideoConfig",
        "AutoModel": "modeling_region_learner.RegionLearnerVideoModel",
    }


def test_the_processor_of_a_model_without_texts_is_its_video_processor(tower, classifier, tmp_path):
    assert type(AutoModel.from_pretrained(tower)) is RegionLearnerVideoModel
    for folder in (tower, classifier):
        processor = AutoProcessor.from_pretrained(folder)
        assert type(processor) is RegionLearnerVideoProcessor
        assert processor.to_dict() == AutoVideoProcessor.from_pretrained(folder).to_dict()
        assert processor.num_frames == 2
        # If a processor with a tokenizer was saved with the model, that one is loaded.
        tokenizer = train_tokenizer(["a caption"], 99, 32)
        again = tmp_path / folder.name
        shutil.copytree(folder, again)
        RegionLearnerProcessor(processor, tokenizer).save_pretrained(again)
        assert type(AutoProcessor.from_pretrained(again)) is RegionLearnerProcessor


def test_the_number_of_frames_is_where_pipelines_look(dual, tower):
    for folder in (dual[0], tower):
        assert AutoConfig.from_pretrained(folder).num_frames == 4


WITHOUT_PACKAGE = """
import sys
sys.modules["region_learner"] = None
import json
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForVideoClassification, AutoModelForVisualQuestionAnswering, AutoProcessor

torch.set_num_threads(1)
dual, holder, tower, classifier, output = sys.argv[1:]
options = {"trust_remote_code": True}
state, names, missing = {}, [], []
for auto_class in (AutoModelForVideoClassification, AutoModelForVisualQuestionAnswering):
    model, info = auto_class.from_pretrained(dual, num_labels=3, output_loading_info=True, **options)
    names.append(f"{type(model).__module__}.{type(model).__name__}")
    missing.append(sorted({key.partition(".")[0] for key in info["missing_keys"]}))
    assert not info["unexpected_keys"] and not info["mismatched_keys"], info
    assert model.config.num_labels == 3
    if auto_class is AutoModelForVideoClassification:
        logits = model(torch.ones(2, 4, 3, 32, 32)).logits
        assert logits.shape == (2, 3) and logits.isfinite().all()
    state |= {f"{type(model).__name__}.{key}": value for key, value in model.state_dict().items()}
save_file(state, f"{output}/state.safetensors")
for folder in (tower, classifier):
    processor = AutoProcessor.from_pretrained(folder, **options)
    names.append(f"{type(processor).__module__}.{type(processor).__name__}")
inside = AutoModel.from_pretrained(f"{holder}/inside", **options)  # by the path of the folder
names.append(f"{type(inside).__module__}.{type(inside).__name__}")
try:
    AutoModel.from_pretrained(holder, subfolder="inside", **options)
except OSError as error:
    refusal = str(error)
with open(f"{output}/found.json", "w") as file:
    json.dump({"names": names, "missing": missing, "refusal": refusal}, file)
"""


def test_without_the_package(dual, tower, classifier, tmp_path):
    """Heads of a dual encoder and video processors load as remote code; `subfolder=` does not work."""
    paths = map(str, (*dual, tower, classifier, tmp_path))
    run_python(WITHOUT_PACKAGE, *paths, home=tmp_path / "home", HF_HUB_OFFLINE="1")
    found = json.loads((tmp_path / "found.json").read_text())
    assert all(name.startswith("transformers_modules.") for name in found["names"])
    classes = [*HEADS.values(), *[RegionLearnerVideoProcessor] * 2, RegionLearnerModel]
    assert [name.rpartition(".")[2] for name in found["names"]] == [cls.__name__ for cls in classes]
    assert found["missing"] == [["classifier"]] * 2
    expected = tiny_model().state_dict()
    for name, value in load_file(tmp_path / "state.safetensors").items():
        plain = name.partition(".")[2]
        assert plain.startswith("classifier.") or torch.equal(value, expected[plain]), name
    assert "configuration_region_learner.py" in found["refusal"]  # looked for in the root; see docs/libraries.md


def test_a_subfolder_with_the_package(dual):
    model = AutoModel.from_pretrained(dual[1], subfolder="inside")
    assert torch.equal(
        model.state_dict()["video_projection.weight"], tiny_model().state_dict()["video_projection.weight"]
    )
    assert model(pixel_values_videos=clips(2)).video_embeds.shape == (2, 16)

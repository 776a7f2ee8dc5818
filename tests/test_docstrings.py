"""The examples in the docstrings of models and configurations run."""

import doctest
import inspect

import av
import numpy as np
import pytest

from region_learner import (
    RegionLearnerProcessor,
    RegionLearnerVideoProcessor,
    configuration_region_learner,
    modeling_region_learner,
)
from region_learner.training.tokenizer import train_tokenizer

from .conftest import tiny_model


def examples() -> dict[str, str]:
    """Docstrings with examples, of public classes and their methods."""
    found = {}
    for module in (configuration_region_learner, modeling_region_learner):
        for name in module.__all__:
            owner = getattr(module, name)
            members = {name: owner} | {f"{name}.{key}": value for key, value in vars(owner).items()}
            for key, value in members.items():
                if (callable(value) or key == name) and ">>>" in (inspect.getdoc(value) or ""):
                    found[key] = inspect.getdoc(value).replace("```python", "").replace("```", "")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with the `checkpoint` and the `clip.mp4` that the examples name."""
    path = tmp_path_factory.mktemp("examples")
    tiny_model().save_pretrained(path / "checkpoint")
    tokenizer = train_tokenizer(["a red square", "a blue circle"], 90, 32)
    RegionLearnerProcessor(RegionLearnerVideoProcessor.for_image_size(32, num_frames=4), tokenizer).save_pretrained(
        path / "checkpoint"
    )
    with av.open(str(path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
        for number in range(8):
            frame = np.full((40, 48, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return path


def test_what_people_call_has_an_example():
    forwards = {f"RegionLearner{name}.forward" for name in
                ("Model", "VideoModel", "ForVideoClassification", "ForVideoQuestionAnswering")}  # fmt: skip
    assert forwards | {"RegionLearnerConfig", "RegionLearnerVideoConfig"} <= examples().keys()


@pytest.mark.parametrize("name", examples())
def test_example_runs(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    module = modeling_region_learner if hasattr(modeling_region_learner, name.split(".")[0]) else None
    names = dict(vars(module or configuration_region_learner))
    test = doctest.DocTestParser().get_doctest(examples()[name], names, name, None, 0)
    assert test.examples
    said = []
    doctest.DocTestRunner().run(test, out=said.append)
    assert not said, "".join(said)

"""Tests for running a model without training it: restored modes, special labels, evaluators and progress bars."""

import inspect
import io
from typing import Unpack

import pytest
import torch
from transformers import EvalPrediction

from region_learner import RegionLearnerForVideoClassification
from region_learner.evaluation import (
    EVALUATIONS,
    ReadingOptions,
    Views,
    codebook_use,
    compute_classification_metrics,
    embed_texts,
)
from region_learner.evaluation.reading import read_clips
from region_learner.inference import evaluation_mode, progress_bar
from region_learner.labels import IGNORED_LABEL, UNKNOWN_LABEL

from .conftest import clips, tiny_model


def modes(model: torch.nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def test_the_mode_of_every_module_is_restored():
    model = tiny_model().train()
    model.text_model.eval()  # frozen
    before = modes(model)
    with evaluation_mode(model):
        assert not any(modes(model).values())
        assert torch.is_inference_mode_enabled()
    assert modes(model) == before
    assert not torch.is_inference_mode_enabled()

    def fail():
        with evaluation_mode(model):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert modes(model) == before


def test_codebook_use_and_embeddings_leave_the_mode_as_it_was():
    model = tiny_model()
    expected = codebook_use(model, [clips(3)])
    model.train()
    model.text_model.eval()
    before = modes(model), {name: value.clone() for name, value in model.state_dict().items()}
    assert codebook_use(model, [clips(3)]) == expected
    assert modes(model) == before[0]
    assert all(torch.equal(value, before[1][name]) for name, value in model.state_dict().items())

    class Words:
        def __call__(self, text, return_tensors):
            assert not any(modes(model).values())
            return self

        def to(self, device):
            return {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}

    assert embed_texts(model, Words(), ["a"], progress=False).shape == (1, 16)
    assert modes(model) == before[0]


def test_losses_and_metrics_handle_special_labels():
    config = tiny_model().config
    config.id2label = {0: "a", 1: "b"}
    model = RegionLearnerForVideoClassification(config).eval()
    videos = clips(4)
    labels = torch.tensor([0, IGNORED_LABEL, UNKNOWN_LABEL, 1])
    both = model(pixel_values_videos=videos[[0, 3]], labels=labels[[0, 3]])
    assert torch.allclose(model(pixel_values_videos=videos, labels=labels).loss, both.loss)  # both are left out
    logits = torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 0]]).numpy()
    found = compute_classification_metrics(EvalPrediction(logits, labels.numpy()))
    assert found["top1"] == pytest.approx(100 / 3)  # of three rows, because an unknown answer is wrong


def test_every_evaluation_takes_the_same_arguments():
    for evaluate in EVALUATIONS.values():
        parameters = list(inspect.signature(evaluate).parameters.values())
        assert [parameter.name for parameter in parameters[:3]] == ["model", "processor", "dataset"]
        assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters[3:-1])
        assert parameters[-1].annotation == Unpack[ReadingOptions]
    defaults = {name: parameter.default for name, parameter in inspect.signature(read_clips).parameters.items()}
    found = {name: defaults[name] for name in ReadingOptions.__annotations__}
    assert found == {
        "batch_size": 16, "num_workers": 0, "progress": True, "views": Views(), "max_unreadable": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(("terminal", "show"), [(True, True), (True, False), (False, True)])
def test_a_bar_is_shown_on_a_terminal_only(terminal, show, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return terminal

    errors = Terminal()
    monkeypatch.setattr("sys.stderr", errors)
    bar = progress_bar(range(3), "embedding videos", show=show)
    assert (not bar.disable) == (terminal and show)
    if not bar.disable:
        bar.delay = 0  # otherwise, it would wait for a second
    assert list(bar) == [0, 1, 2]
    assert ("embedding videos" in errors.getvalue()) == (terminal and show)
    assert capsys.readouterr().out == ""

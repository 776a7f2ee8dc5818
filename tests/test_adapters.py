"""Tests of checkpoints with low-rank adapters: whatever loads one gets the trained model, or an error."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModel, TrainerCallback

from region_learner.loading import load_checkpoint
from region_learner.training import CorpusPart, ModelArguments, RegionLearnerTrainer, RegionLearnerTrainingArguments
from region_learner.training.adapters import load_adapters, with_lora
from region_learner.training.model import check_model_arguments

from .conftest import clips, texts, tiny_model
from .toy_run import DEFAULTS, Collator, Processor

peft = pytest.importorskip("peft")


class KeepStates(TrainerCallback):
    """Keeps a copy of the model's weights after each step."""

    def __init__(self):
        self.states: dict[int, dict[str, torch.Tensor]] = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.states[state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}


class Evaluated(RegionLearnerTrainer):
    """Returns preset metric values, one per step."""

    values = (3.0, 1.0, 2.0)

    def evaluate(self, *args, **kwargs):
        return {"eval_t2v_MeanR": self.values[self.state.global_step - 1]}


def adapted(base):
    return with_lora(base, {"r": 2, "init_lora_weights": True})


def trained(folder, **arguments):
    """Returns the Trainer of a three-step run from a saved base, and its states. The second step is the best."""
    base = tiny_model(learn_temperature=True, loss="sigmoid", temporal_fusion="linear")
    base.save_pretrained(folder / "base")
    options = {"max_steps": 3, "learning_rate": 0.02, "save_strategy": "steps", "save_steps": 1, **arguments}
    args = RegionLearnerTrainingArguments(output_dir=str(folder / "run"), **DEFAULTS | options)
    rows = Dataset.from_dict({"video_id": [str(i) for i in range(24)]})
    torch.manual_seed(0)
    trainer = Evaluated(
        model=adapted(AutoModel.from_pretrained(folder / "base")),
        args=args,
        processing_class=Processor(),
        train_dataset=[CorpusPart(rows, 4, num_frames=2)],
        eval_dataset=rows,
        data_collator=Collator(),
        callbacks=[kept := KeepStates()],
    )
    return trainer, kept.states


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    trainer, states = trained(folder)
    trainer.train()
    return folder, trainer, states


def outputs(model):
    with torch.no_grad():
        found = model.eval()(pixel_values_videos=clips(3), **texts(3), return_loss=True)
    return found.text_embeds, found.video_embeds, found.loss


def in_memory(folder, state):
    """Returns the trained model, from its state in memory."""
    model = adapted(AutoModel.from_pretrained(folder / "base"))
    model.load_state_dict(state)
    return model


def assert_same_outputs(model, expected):
    for ours, theirs in zip(outputs(model), outputs(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step", [1, 3])
def test_a_checkpoint_loads_as_a_plain_model(run, step):
    folder, _, states = run
    expected = in_memory(folder, states[step])
    model = AutoModel.from_pretrained(folder / "run" / f"checkpoint-{step}")
    assert_same_outputs(model, expected)
    other = AutoModel.from_pretrained(folder / "run" / f"checkpoint-{4 - step}")
    for name in ("logit_scale", "logit_bias", "video_model.embeddings.temporal_embeddings",
                 "video_model.region_module.quantizer.embed"):  # fmt: skip
        assert torch.equal(model.state_dict()[name], expected.merge_and_unload().state_dict()[name]), name
        assert not torch.equal(model.state_dict()[name], other.state_dict()[name]), name


def test_evaluation_loads_the_whole_checkpoint(run, monkeypatch):
    folder, _, states = run
    monkeypatch.setattr("region_learner.loading.load_processor", lambda name, text_config: None)
    model, _ = load_checkpoint(str(folder / "run" / "checkpoint-2"), "retrieval")
    assert_same_outputs(model, in_memory(folder, states[2]))


def test_peft_loads_all_adapters(run):
    folder, _, states = run
    base = AutoModel.from_pretrained(folder / "base")
    model = peft.PeftModel.from_pretrained(base, folder / "run" / "checkpoint-2" / "adapter")
    assert model.state_dict().keys() == states[2].keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, states[2][name]), name


def test_the_best_checkpoint_is_loaded_whole(tmp_path):
    """Adapters, positions, scale, bias and codebook are all those of the best step."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "t2v_MeanR", "eval_strategy": "steps",
            "eval_steps": 1}  # fmt: skip
    trainer, states = trained(tmp_path, **best)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, states[2][name]), name
    assert not torch.equal(states[2]["base_model.model.logit_scale"], states[3]["base_model.model.logit_scale"])


def test_a_resumed_run_equals_an_uninterrupted_one(run, tmp_path):
    folder, _, states = run
    again, resumed = trained(tmp_path)
    again.train(resume_from_checkpoint=str(folder / "run" / "checkpoint-1"))
    assert resumed.keys() == {2, 3}
    for name, value in resumed[3].items():
        assert torch.equal(value, states[3][name]), name


def as_earlier_versions_saved(trainer, folder):
    """Saves adapters in the checkpoint itself, and what PEFT leaves out in a file beside them."""
    trainer.model.save_pretrained(folder)
    beside = {name: p.detach() for name, p in trainer.model.named_parameters()
              if p.requires_grad and "lora_" not in name and "modules_to_save" not in name}  # fmt: skip
    save_file(beside, folder / "beside_adapters.safetensors")


def test_checkpoints_of_earlier_versions(run, tmp_path):
    _, trainer, states = run
    as_earlier_versions_saved(trainer, tmp_path)
    again, _ = trained(tmp_path / "again")
    again._load_from_checkpoint(str(tmp_path))
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, states[3][name]), name
    for load in (lambda: load_checkpoint(str(tmp_path), "retrieval"),
                 lambda: check_model_arguments(ModelArguments(model=str(tmp_path)))):  # fmt: skip
        with pytest.raises(ValueError, match=r"adapter checkpoint of version 0\.1, which only its own training run"):
            load()


def test_adapters_of_another_model_are_refused(run):
    folder, _, _ = run
    other = adapted(tiny_model(temporal_fusion="linear"))
    with pytest.raises(ValueError, match="belongs to another model: it has"):
        load_adapters(other, folder / "run" / "checkpoint-1" / "adapter")


def test_weights_learned_beside_adapters_change(run):
    """Unless these weights change, the tests above compare initial values."""
    folder, _, states = run
    before = AutoModel.from_pretrained(folder / "base").state_dict()
    for name in ("logit_scale", "logit_bias"):
        assert float(states[3][f"base_model.model.{name}"]) != pytest.approx(float(before[name])), name
    assert json.loads((folder / "run" / "checkpoint-3" / "trainer_state.json").read_text())["global_step"] == 3

"""Tests for `hyperparameter_search` of the Trainer, in which each trial trains a new model with its own arguments."""

import pytest
import torch
from datasets import Dataset

from region_learner.training import CorpusPart, RegionLearnerTrainer, RegionLearnerTrainingArguments

from .conftest import tiny_model
from .toy_run import DEFAULTS, Collator, Processor

optuna = pytest.importorskip("optuna")


class Recording(RegionLearnerTrainer):
    """Records the batch sizes, learning rate, frozen parts and trained weights of each trial."""

    def __init__(self, *args, **kwargs):
        self.trials = []
        super().__init__(*args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.trials[-1]["sizes"].append(len(inputs["pixel_values_videos"]))
        return super().training_step(model, inputs, num_items_in_batch)

    def train(self, *args, **kwargs):
        self.trials.append({"sizes": []})
        result = super().train(*args, **kwargs)
        frozen = {name.split(".")[0] for name, p in self.model.named_parameters() if not p.requires_grad}
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.trials[-1] |= {"frozen": frozen, "state": state, "rate": self.args.learning_rate}
        return result

    def evaluate(self, *args, **kwargs):
        return {"eval_loss": sum(self.trials[-1]["sizes"]) + self.args.learning_rate}


def trainer(folder, parts=(4,), trainer_class=Recording, **options):
    rows = Dataset.from_dict({"video_id": [str(i) for i in range(48)]})
    options = {"output_dir": str(folder), "per_device_train_batch_size": parts[0], "learning_rate": 0.01} | options
    return trainer_class(
        model_init=lambda: tiny_model(),
        args=RegionLearnerTrainingArguments(**DEFAULTS | {"max_steps": 2} | options),
        processing_class=Processor(),
        train_dataset=[CorpusPart(rows, size, num_frames=2) for size in parts],
        data_collator=Collator(),
    )


def search(made, space, **values):
    """Runs one trial for each combination of `values`."""
    sampler = optuna.samplers.GridSampler(values, seed=0)
    trials = len(list(sampler._all_grids))
    return made.hyperparameter_search(space, n_trials=trials, direction="minimize", sampler=sampler, backend="optuna")


def assert_same_weights(found, given):
    for name, value in given.items():
        assert torch.equal(found[name], value), name


def test_trials_have_their_batch_size_and_learning_rate(tmp_path):
    """Each trial equals a single run with its arguments, regardless of the trials before it."""
    values = {"per_device_train_batch_size": [4, 16], "learning_rate": [0.001, 0.02]}
    made = trainer(tmp_path / "search", parts=(4, 2), save_strategy="steps", save_steps=2)
    best = search(made, lambda trial: {name: trial.suggest_categorical(name, of) for name, of in values.items()},
                  **values)  # fmt: skip
    assert best.hyperparameters == {"per_device_train_batch_size": 4, "learning_rate": 0.001}
    assert len(made.trials) == 4
    for found in made.trials:
        large = 16 if max(found["sizes"]) > 4 else 4
        assert set(found["sizes"]) <= {large, large // 2}
        given = trainer(tmp_path / "given", parts=(large, large // 2), learning_rate=found["rate"])
        given.train()
        assert found["sizes"] == given.trials[0]["sizes"]
        assert_same_weights(found["state"], given.trials[0]["state"])
    assert (tmp_path / "search" / "run-3" / "checkpoint-2" / "model.safetensors").is_file()


def test_freeze_under_model_init(tmp_path):
    """`freeze` applies to all trials. If trials set it, each trial freezes only its own parts."""
    rates = {"learning_rate": [0.001, 0.002]}
    made = trainer(tmp_path, freeze=["text_model"])
    search(made, lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", [0.001, 0.002])}, **rates)
    assert [found["frozen"] for found in made.trials] == [{"text_model"}] * 2
    made = trainer(tmp_path)
    frozen = {"none": [], "text": ["text_model"], "both": ["text_model", "video_projection"]}
    search(made, lambda trial: {"freeze": frozen[trial.suggest_categorical("which", list(frozen))]},
           which=list(frozen))  # fmt: skip
    assert sorted(len(found["frozen"]) for found in made.trials) == [0, 1, 2]
    before = tiny_model().state_dict()
    for found in made.trials:
        for part in ("text_model", "video_projection"):
            changed = [
                name for name, value in found["state"].items()
                if name.startswith(part) and not torch.equal(value, before[name])
            ]  # fmt: skip
            assert bool(changed) == (part not in found["frozen"])


def test_a_batch_without_negatives_is_refused(tmp_path):
    with pytest.raises(ValueError, match="A batch of 1 pair has no negatives"):
        search(trainer(tmp_path), lambda trial: {"per_device_train_batch_size": trial.suggest_int("size", 1, 1)},
               size=[1])  # fmt: skip


class LittleMemory(Recording):
    """Runs out of memory with more than 4 clips."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        if len(inputs["pixel_values_videos"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().training_step(model, inputs, num_items_in_batch)


def test_trials_halve_their_batch_until_it_fits(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda *args, **options: None)
    made = trainer(tmp_path, trainer_class=LittleMemory, auto_find_batch_size=True)
    search(made, lambda trial: {"per_device_train_batch_size": trial.suggest_categorical("size", [16, 2])},
           size=[16, 2])  # fmt: skip
    assert sorted(found["sizes"] for found in made.trials) == [[2, 2], [4, 4]]

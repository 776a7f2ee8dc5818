"""Tests that `auto_find_batch_size` halves the batch until it fits, and then trains as if given that batch size."""

import pytest
import torch
from datasets import Dataset

from region_learner import RegionLearnerConfig, RegionLearnerModel
from region_learner.training import CorpusPart, RegionLearnerTrainer, RegionLearnerTrainingArguments

from .conftest import TINY_VIDEO, tiny_text_config
from .toy_run import DEFAULTS, Collator, Processor


class LittleMemory(RegionLearnerTrainer):
    """Runs out of memory on batches larger than `fits`, but only after `from_step` steps."""

    fits, from_step = 4, 2

    def training_step(self, model, inputs, num_items_in_batch=None):
        size = len(inputs["pixel_values_videos"])
        self.tried = [*getattr(self, "tried", []), size]
        if size > self.fits and self.state.global_step >= self.from_step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().training_step(model, inputs, num_items_in_batch)


@pytest.fixture(autouse=True)
def no_garbage_collection(monkeypatch):
    """Skips the garbage collection before each try. After other tests, it would take longer than the runs."""
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda *args, **options: None)


def trainer(tmp_path, parts=(16,), fits=4, **options):
    torch.manual_seed(0)
    config = RegionLearnerConfig(
        text_config=tiny_text_config(dropout=0.1), video_config=TINY_VIDEO, projection_dim=16, learn_temperature=True
    )
    rows = Dataset.from_dict({"video_id": [str(i) for i in range(48)]})
    options = {"output_dir": str(tmp_path), "per_device_train_batch_size": parts[0], "learning_rate": 0.01} | options
    made = LittleMemory(
        model=RegionLearnerModel(config),
        args=RegionLearnerTrainingArguments(**DEFAULTS | options),
        processing_class=Processor(),
        train_dataset=[CorpusPart(rows, size, num_frames=2) for size in parts],
        data_collator=Collator(),
    )
    made.fits = fits
    return made


def assert_same_weights(one, other):
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


def test_a_run_that_found_its_batch_size_equals_one_that_was_given_it(tmp_path, caplog):
    found = trainer(tmp_path, auto_find_batch_size=True)
    result = found.train()
    assert list(dict.fromkeys(found.tried)) == [16, 8, 4]
    assert result.metrics["per_device_train_batch_size"] == 4
    assert "Batches of 16 do not fit in memory: restarting training with 8." in caplog.text
    given = trainer(tmp_path, parts=(4,))
    given.train()
    assert_same_weights(found, given)
    assert found.state.max_steps == given.state.max_steps


def test_corpora_keep_their_proportions(tmp_path):
    found = trainer(tmp_path, parts=(16, 8), auto_find_batch_size=True)
    found.train()
    assert [part.batch_size for part in found.parts] == [4, 2]


def test_it_stops_before_batches_have_no_negatives(tmp_path):
    alone = trainer(tmp_path, fits=1, auto_find_batch_size=True)
    with pytest.raises(ValueError, match="auto_find_batch_size: even batches of 2 do not fit in memory"):
        alone.train()
    assert set(alone.tried) == {16, 8, 4, 2}
    with pytest.raises(ValueError, match="even batches of 4 do not fit in memory"):  # the other corpus has 2
        trainer(tmp_path, parts=(16, 8), fits=1, auto_find_batch_size=True).train()


def test_checkpoints_of_larger_batches_are_removed(tmp_path):
    """Otherwise, a resumed run would continue the highest of them, whose batches do not fit."""
    earlier = tmp_path / "checkpoint-1000"
    earlier.mkdir()
    found = trainer(tmp_path, auto_find_batch_size=True, save_strategy="steps", save_steps=1, max_steps=3)
    left = []
    training_step = found.training_step

    def step(model, inputs, *arguments):
        if found.state.global_step == 0:
            left.append(sorted(path.name for path in tmp_path.glob("checkpoint-*")))
        return training_step(model, inputs, *arguments)

    found.training_step = step
    found.train()
    assert left == [["checkpoint-1000"]] * 3


def test_without_it_the_error_is_raised(tmp_path):
    with pytest.raises(torch.OutOfMemoryError):
        trainer(tmp_path).train()


def test_a_resumed_run_keeps_the_size_that_was_found(tmp_path):
    options = {"auto_find_batch_size": True, "save_strategy": "steps", "save_steps": 3, "max_steps": 4}
    whole = trainer(tmp_path, **options)
    whole.train()
    resumed = trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert set(resumed.tried) == {4}
    assert_same_weights(resumed, whole)
    with pytest.raises(ValueError, match=r"Batches of 4, .* no longer fit in memory"):
        trainer(tmp_path, fits=2, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))

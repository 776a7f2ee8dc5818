"""Tests that a resumed run continues with the data where it stopped, or says why it cannot."""

import json
import shutil

import pytest
import torch

from region_learner.training import CorpusPart, RegionLearnerTrainingArguments
from region_learner.training.checkpoints import check_data_order, data_order, write_settings

from .toy_run import launch, run

OPTIONS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """Returns the folder of an interrupted run in which the first block of the video tower was frozen."""
    folder = tmp_path_factory.mktemp("frozen")
    run(folder, **OPTIONS | {"max_steps": 2, "image_rows": 30, "freeze": ["video_model.layers.0."]})
    return folder


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Returns the folder of a run that was interrupted after 2 of 4 steps."""
    folder = tmp_path_factory.mktemp("plain")
    run(folder, **OPTIONS | {"max_steps": 2, "image_rows": 30})
    return folder


def resume(interrupted, tmp_path, **options):
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    return run(tmp_path, resume=True, **OPTIONS | {"image_rows": 30} | options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gradient_accumulation_steps": 2}, r"gradient_accumulation_steps 1 \(now 2\)"),
        ({"per_device_train_batch_size": 2}, r"batch size times processes 4, 4 \(now 2, 2\)"),
        ({"rows": 23}, r"rows 30, 24 \(now 30, 23\)"),
        ({"seed": 1}, r"seed 42 \(now 1\)"),
        ({"data_seed": 7}, r"seed 42 \(now 7\)"),
        ({"mix": "weighted"}, r"mix alternate \(now weighted\)"),
        ({"samples_per_epoch": 40}, r"samples_per_epoch None \(now 40\)"),
        ({"dataloader_drop_last": True}, r"dataloader_drop_last False \(now True\)"),
        ({"image_rows": 0}, r"rows 30, 24 \(now 24\)"),
        ({"shards": 4}, r"streaming False, False \(now False, True\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_may_not_change_on_resume(interrupted, tmp_path, changed, message):
    with pytest.raises(ValueError, match=message) as error:
        resume(interrupted, tmp_path, **changed)
    assert "rows would be repeated or left out. Use the same settings" in str(error.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 0.5}, r"learning_rate \S+ \(now 0.5\)"),
        ({"weight_decay": 0.5}, r"weight_decay \S+ \(now 0.5\)"),
        ({"optim": "sgd"}, r"optim adamw_\S+ \(now sgd\)"),
        ({"freeze": ["text_model"]}, r"trainable parameters \d+ \(now \d+\)"),
        ({"freeze": ["video_model.layers.1."]}, r"their names \(a digest\) \w{8} \(now \w{8}\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_optimizer_of_a_checkpoint_keeps_its_settings(interrupted, frozen, tmp_path, changed, message):
    before = frozen if "digest" in message else interrupted
    with pytest.raises(ValueError, match=message) as error:
        resume(before, tmp_path, **changed)
    assert "resuming continues with it. Use the same settings, or start a new run" in str(error.value)


def test_a_finished_run_trains_no_further_step(interrupted, tmp_path, caplog):
    caplog.set_level("INFO", logger="region_learner")
    found = resume(interrupted, tmp_path, max_steps=2)
    assert caplog.text.count("Training has already finished (step 2 of 2)") == 1
    assert not found["gradients"]
    assert len(found["log"]) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": 3.0}, r"weights 1.0, 2.0 \(now 1.0, 3.0\)"),
        ({"videos": "abce"}, r"video ids \(a digest\) .* \(now "),
    ],
)
def test_weights_and_videos_may_not_change(tmp_path, changed, message):
    def order(weight=2.0, videos="abcd"):
        parts = [CorpusPart([{"video_id": name} for name in names], 2) for names in ("abcd", videos)]
        parts[1].weight = weight
        return data_order(parts, RegionLearnerTrainingArguments(str(tmp_path), mix="weighted", report_to="none"))

    write_settings(tmp_path, order(), {})
    check_data_order(tmp_path, order())
    with pytest.raises(ValueError, match=message):
        check_data_order(tmp_path, order(**changed))


def test_rows_without_ids(tmp_path):
    parts = [CorpusPart([{"clip": 0}], 2)]  # for a custom data collator
    order = data_order(parts, RegionLearnerTrainingArguments(str(tmp_path), report_to="none"))
    assert order["video ids (a digest)"] == [None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the result of the same run without an interruption."""
    return run(tmp_path_factory.mktemp("whole"), **OPTIONS | {"image_rows": 30})


@pytest.mark.parametrize("changed", [{"dataloader_num_workers": 2}, {"gradient_cache_chunk": 2}, {"max_steps": 3}])
def test_what_may_change_on_resume(interrupted, whole, tmp_path, changed):
    losses = [entry["loss"] for entry in resume(interrupted, tmp_path, **changed)["log"]]
    assert len(losses) == changed.get("max_steps", 4)
    # Later steps differ if unused codes are revived, because cached gradients draw other features for them.
    assert losses[:3] == pytest.approx([entry["loss"] for entry in whole["log"][:3]], rel=1e-4)


@pytest.mark.slow
def test_processes_may_share_the_same_batch(interrupted, tmp_path):
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoint-2" / "unreadable_1.json").write_text("{}")
    whole = run(tmp_path / "whole", **OPTIONS | {"image_rows": 30})
    of_two = launch(tmp_path, 2, resume=True, **OPTIONS | {"image_rows": 30, "per_device_train_batch_size": 2})[0]
    for ours, expected in zip(of_two["log"], whole["log"], strict=True):
        assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_the_data_may_begin_anew(interrupted, tmp_path):
    found = resume(interrupted, tmp_path, ignore_data_skip=True, per_device_train_batch_size=2)
    assert len(found["log"]) == 4


def test_the_place_after_data_began_anew_within_an_epoch_is_not_known(tmp_path):
    """An epoch has 6 steps. The Trainer would derive the place in the data from the number of steps."""
    options = OPTIONS | {"save_total_limit": None}
    run(tmp_path, **options | {"max_steps": 4})
    run(tmp_path, resume=True, ignore_data_skip=True, **options | {"max_steps": 6})
    with pytest.raises(ValueError, match=r"restarted within an epoch, after step 4, .* add --ignore-data-skip true"):
        run(tmp_path, resume=True, **options | {"max_steps": 8})
    run(tmp_path, resume=True, ignore_data_skip=True, **options | {"max_steps": 8})


def test_data_may_begin_anew_between_epochs(tmp_path):
    options = OPTIONS | {"max_steps": 10}
    whole = run(tmp_path / "whole", **options)
    run(tmp_path / "anew", **options | {"max_steps": 6})  # one epoch
    run(tmp_path / "anew", resume=True, ignore_data_skip=True, **options | {"max_steps": 8})
    found = run(tmp_path / "anew", resume=True, **options)
    assert torch.equal(found["state"]["video_projection.weight"], whole["state"]["video_projection.weight"])


def test_a_stream_may_start_over(tmp_path):
    options = OPTIONS | {"shards": 4}
    whole = run(tmp_path, **options)
    shutil.rmtree(tmp_path / "checkpoint-4")
    anew = run(tmp_path, resume=True, ignore_data_skip=True, **options)
    assert not torch.equal(anew["state"]["video_projection.weight"], whole["state"]["video_projection.weight"])
    # When it is resumed again, it continues where the stream that started over has stopped.
    shutil.rmtree(tmp_path / "checkpoint-4")
    run(tmp_path, resume=True, ignore_data_skip=True, **options | {"max_steps": 3, "save_steps": 1})
    again = run(tmp_path, resume=True, **options)
    assert torch.equal(anew["state"]["video_projection.weight"], again["state"]["video_projection.weight"])


def test_checkpoints_of_earlier_versions_resume(interrupted, tmp_path):
    """Earlier checkpoints have no record of the order of the data, or only one of streams."""
    shutil.copytree(interrupted, tmp_path / "old")
    folder = tmp_path / "old" / "checkpoint-2"
    complete = json.loads((folder / "complete.json").read_text())
    del complete["files"]["data_order.json"]
    (folder / "complete.json").write_text(json.dumps(complete))
    (folder / "data_order.json").unlink()
    resume(tmp_path / "old", tmp_path / "plain", seed=1)

    (folder / "stream.json").write_text(json.dumps({"processes": 1, "seed": 42, "mix": "alternate"}))
    resume(tmp_path / "old", tmp_path / "same")
    with pytest.raises(ValueError, match=r"seed 42 \(now 1\)"):
        resume(tmp_path / "old", tmp_path / "other", seed=1)


@pytest.mark.parametrize("explicit", [False, True])
def test_a_model_alone_is_not_resumed_from(tmp_path, explicit):
    options = OPTIONS | {"save_only_model": True}
    run(tmp_path, **options | {"max_steps": 2})
    checkpoint = str(tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match=r"saved with save_only_model, without optimizer and schedule.* use --model"):
        run(tmp_path, resume=checkpoint if explicit else True, **options)

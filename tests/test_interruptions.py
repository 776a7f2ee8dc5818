"""Tests that killed runs resume bit-for-bit: losses, weights and codebook equal those of uninterrupted runs."""

import json
import shutil
import signal

import pytest
import torch

from region_learner.training.checkpoints import COMPLETE, incompleteness

from .toy_run import launch, run

# Eight steps of three epochs. Dropout and the seeds of rows use random numbers.
OPTIONS = {
    "max_steps": 8,
    "rows": 24,
    "dropout": 0.1,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
}


def same(resumed: dict, whole: dict):
    for name, value in whole["state"].items():
        assert torch.equal(resumed["state"][name], value), name
    timed = ("samples_per_second", "videos_per_second", "data_wait")
    logs = [
        {entry["step"]: {k: v for k, v in entry.items() if k not in timed} for entry in r["log"]}
        for r in (resumed, whole)
    ]
    assert logs[0] == logs[1]
    assert len(logs[0]) == OPTIONS["max_steps"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns a function that gives the results of an uninterrupted run, which runs once for the same options."""
    results = {}

    def get(processes, **options):
        key = (processes, json.dumps(options))
        if key not in results:
            folder = tmp_path_factory.mktemp("whole")
            results[key] = launch(folder, processes, **OPTIONS | options)
        return results[key]

    return get


@pytest.mark.parametrize(
    ("processes", "options", "kill"),
    [
        pytest.param(1, {}, {"kill_at": 1}, marks=pytest.mark.slow),  # before the first checkpoint
        (1, {}, {"kill_at": 3}),  # between two checkpoints
        pytest.param(1, {}, {"kill_at": 7}, marks=pytest.mark.slow),  # in the second epoch
        (1, {}, {"kill_while_saving": 4}),  # the run resumes from the previous checkpoint
        (1, {"dataloader_num_workers": 2, "image_rows": 30, "gradient_accumulation_steps": 2}, {"kill_at": 5}),
        (1, {"shards": 4, "dataloader_num_workers": 2, "gradient_accumulation_steps": 2}, {"kill_at": 5}),
        (1, {"gradient_cache_chunk": 2}, {"kill_at": 3}),
        (2, {}, {"kill_at": 5}),
        pytest.param(2, {}, {"kill_while_saving": 6}, marks=pytest.mark.slow),
        (2, {"shards": 4}, {"kill_at": 5}),
    ],
)
def test_a_killed_run_resumes_bit_by_bit(tmp_path, whole, processes, options, kill):
    codes = launch(tmp_path, processes, check=False, **OPTIONS | options | kill)
    assert codes[0] == -signal.SIGKILL
    resumed = launch(tmp_path, processes, resume=True, **OPTIONS | options)
    for ours, expected in zip(resumed, whole(processes, **options), strict=True):
        same(ours, expected)


def test_incomplete_checkpoints_are_skipped(tmp_path, caplog):
    options = OPTIONS | {"save_total_limit": None}
    expected = run(tmp_path / "whole", **options)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    (tmp_path / "run" / "checkpoint-8" / COMPLETE).unlink()
    weights = tmp_path / "run" / "checkpoint-6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert incompleteness(tmp_path / "run" / "checkpoint-4") is None
    same(run(tmp_path / "run", resume=True, **options), expected)
    assert f"checkpoint-8: it has no {COMPLETE}" in caplog.text
    assert "checkpoint-6: its file model.safetensors is missing or does not have the size" in caplog.text


def test_what_cannot_be_resumed_from(tmp_path, caplog):
    with pytest.raises(ValueError, match="The checkpoint nowhere does not exist"):
        run(tmp_path, resume="nowhere")
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    with pytest.raises(ValueError, match=f"cannot be resumed from: it has no {COMPLETE}"):
        run(tmp_path, resume=str(folder))
    run(tmp_path, resume=True, max_steps=1)
    assert "has no complete checkpoint" in caplog.text


def test_old_checkpoints_go_when_the_new_one_is_complete(tmp_path):
    run(tmp_path, **OPTIONS)
    left = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert left == ["checkpoint-6", "checkpoint-8"]
    assert all(incompleteness(tmp_path / name) is None for name in left)


def test_a_partly_overwritten_checkpoint_is_not_complete(tmp_path):
    """A run in a used directory is killed while it saves, which leaves a checkpoint with files of two runs."""
    options = OPTIONS | {"max_steps": 4}
    run(tmp_path, **options)
    codes = launch(tmp_path, 1, check=False, **options | {"seed": 1, "kill_while_saving": 4})
    assert codes[0] == -signal.SIGKILL
    assert incompleteness(tmp_path / "checkpoint-4") is not None
    assert incompleteness(tmp_path / "checkpoint-2") is None


def test_unreadable_videos_are_remembered(tmp_path):
    options = OPTIONS | {"bad": (3, 11), "max_unreadable": 1.0}
    run(tmp_path, **options)
    whole = json.loads((tmp_path / "unreadable_videos.json").read_text())
    assert set(whole) == {"3", "11"}
    shutil.rmtree(tmp_path / "checkpoint-8")
    run(tmp_path, resume=True, **options | {"bad": ()})  # the last steps do not read them
    assert json.loads((tmp_path / "unreadable_videos.json").read_text()) == whole


@pytest.mark.parametrize("changed", [{"dataloader_num_workers": 2}, {"per_device_train_batch_size": 2}])
def test_a_stream_refuses_to_resume_with_other_settings(tmp_path, changed):
    run(tmp_path, **OPTIONS | {"shards": 4, "max_steps": 2})
    with pytest.raises(ValueError, match="rows would be repeated or left out"):
        run(tmp_path, resume=True, **OPTIONS | {"shards": 4} | changed)

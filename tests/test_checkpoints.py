"""Tests of checkpoints with damaged files, and of disks that fill up while checkpoints are saved."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from region_learner import RegionLearnerProcessor, RegionLearnerVideoProcessor
from region_learner.cli import main
from region_learner.files import write_json
from region_learner.loading import load_checkpoint
from region_learner.training import (
    CorpusPart,
    ModelArguments,
    RegionLearnerTrainer,
    RegionLearnerTrainingArguments,
    build_model,
)
from region_learner.training.checkpoints import COMPLETE, incompleteness, last_complete
from region_learner.training.tokenizer import train_tokenizer

from .conftest import tiny_model
from .toy_run import DEFAULTS, Collator, KeepState, Processor, run

OPTIONS = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny_model().save_pretrained(folder)
    tokenizer: PreTrainedTokenizerFast = train_tokenizer(["a red ball", "a blue box"], 99, 32)
    RegionLearnerProcessor(RegionLearnerVideoProcessor.for_image_size(32, num_frames=4), tokenizer).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def checkpoint(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def _empty(path: Path):
    path.write_bytes(b"")


def _cut(path: Path):
    path.write_bytes(path.read_bytes()[:-100])


def _lfs_pointer(path: Path):
    path.write_text(LFS_POINTER)


def _directory(path: Path):  # stands for an unreadable file: even root cannot open it
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_empty, r"{} is empty: .*git lfs pull"),
        (_cut, r"{} is damaged or incomplete \(.*\): .*git lfs pull"),
        (_lfs_pointer, r"{} is a pointer of Git LFS, not the file itself: run `git lfs pull` in {}\."),
        (_directory, r"{} cannot be read: Is a directory\."),
    ],
)
def test_damaged_files_are_refused_by_name(checkpoint, name, damage, message):
    load_checkpoint(str(checkpoint), None)
    damage(checkpoint / name)
    message = "^" + message.format(checkpoint / name, checkpoint)
    for load in (
        lambda: load_checkpoint(str(checkpoint), None),  # used by `regions`
        lambda: load_checkpoint(str(checkpoint), "retrieval"),  # used by `evaluate`
        lambda: build_model(ModelArguments(model=str(checkpoint))),
        lambda: build_model(ModelArguments(model=str(checkpoint), video_config={"num_frames": 2})),
    ):
        with pytest.raises((ValueError, OSError), match=message) as error:
            load()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(checkpoint, value, capsys):
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    name = "text_model.transformer.layer.1.attention.q_lin.bias"
    weights[name][5] = value
    save_file(weights, path, {"format": "pt"})
    message = rf"^{checkpoint} has weights that are NaN or infinite \(the first: {name}\)"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(str(checkpoint), "retrieval")
    with pytest.raises(ValueError, match=message):
        build_model(ModelArguments(model=str(checkpoint)))
    (checkpoint / "clip.mp4").touch()
    with pytest.raises(SystemExit) as end:
        main(["regions", str(checkpoint), str(checkpoint / "clip.mp4")])
    assert end.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()  # after progress bars
    assert last.startswith(f"region-learner: error: {checkpoint} has weights that are NaN or infinite")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns the folder of a run with checkpoints after 2, 4 and 6 steps, and the states after each step."""
    folder, states = tmp_path_factory.mktemp("trained"), KeepState()
    run(folder, callbacks=(states,), **OPTIONS)
    return folder, states.steps


def _zero_the_middle(checkpoint: Path):
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4096] = bytes(4096)
    path.write_bytes(content)


def _zero_what_completes(checkpoint: Path):
    path = checkpoint / COMPLETE
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_zero_the_middle, "its file model.safetensors is damaged: its content is not what was saved"),
        (lambda c: _cut(c / "optimizer.pt"), "its file optimizer.pt is missing or does not have the size"),
        (_zero_what_completes, f"its {COMPLETE} is damaged"),
        (lambda c: (c / COMPLETE).write_text("[]"), f"its {COMPLETE} is damaged"),
        (lambda c: _lfs_pointer(c / "model.safetensors"), "its file model.safetensors is a pointer of Git LFS"),
        (lambda c: (c / "scheduler.pt").unlink(), "its file scheduler.pt is missing"),
    ],
)
def test_a_checkpoint_damaged_by_a_power_failure_is_skipped(trained, tmp_path, caplog, damage, problem):
    folder, states = trained
    shutil.copytree(folder, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoint-6")
    assert problem in incompleteness(tmp_path / "run" / "checkpoint-6")
    resumed = run(tmp_path / "run", resume=True, **OPTIONS)
    assert f"checkpoint-6: {problem}" in caplog.text
    assert [entry["step"] for entry in resumed["log"]] == [1, 2, 3, 4, 5, 6]
    for name, value in resumed["state"].items():
        assert torch.equal(value, states[5][name]), name
    assert incompleteness(tmp_path / "run" / "checkpoint-6") is None
    damage(tmp_path / "run" / "checkpoint-4")
    with pytest.raises(ValueError, match="checkpoint-4 cannot be resumed from: its "):
        run(tmp_path / "run", resume=str(tmp_path / "run" / "checkpoint-4"), **OPTIONS)


def test_copies_of_checkpoints_are_ignored(trained, tmp_path):
    for name in ("checkpoint-2", "checkpoint-4-best", "checkpoint-x"):
        shutil.copytree(trained[0] / "checkpoint-4", tmp_path / name)
    assert last_complete(tmp_path) == (str(tmp_path / "checkpoint-2"), {})


def test_checkpoints_without_checksums_still_count(trained, tmp_path):
    shutil.copytree(trained[0] / "checkpoint-4", tmp_path / "checkpoint-4")
    saved = json.loads((tmp_path / "checkpoint-4" / COMPLETE).read_text())
    assert saved["sha256"].keys() == saved["files"].keys() > {"model.safetensors", "optimizer.pt", "rng_state.pth"}
    del saved["sha256"]
    write_json(tmp_path / "checkpoint-4" / COMPLETE, saved)
    assert incompleteness(tmp_path / "checkpoint-4") is None
    assert run(tmp_path, resume=True, **OPTIONS)["log"][-1]["step"] == 6


def test_a_checkpoint_that_is_not_finite_is_not_resumed_from(trained, tmp_path):
    """An earlier version could save such a checkpoint: it is complete, but without checksums."""
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(trained[0] / "checkpoint-4", folder)
    weights = load_file(folder / "model.safetensors")
    weights["text_projection.weight"][3, 3] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    saved = json.loads((folder / COMPLETE).read_text())
    write_json(folder / COMPLETE, {"step": 4, "files": saved["files"]})
    with pytest.raises(
        ValueError, match=r"checkpoint-4 has weights that are NaN or infinite \(the first: text_projection.weight\)"
    ):
        run(tmp_path, resume=True, **OPTIONS)


def test_everything_is_on_the_disk_before_a_checkpoint_is_complete(tmp_path, monkeypatch):
    """Each file, the directory and its parent are synced before the file that completes the checkpoint."""
    synced: list[str] = []
    fsync = os.fsync

    def recorded(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    run(tmp_path, **OPTIONS | {"max_steps": 2})
    folder = tmp_path / "checkpoint-2"
    completes = synced.index(str(folder / f".{COMPLETE}.partial"))
    assert set(synced[:completes]) == {str(p) for p in folder.iterdir() if p.name != COMPLETE} | {
        str(folder),
        str(tmp_path),
    }
    assert synced[completes + 1] == str(folder)


# --- Full disks --------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """Returns the directory of a file system of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, free: int):
    """Fills the disk except for `free` bytes, rounded down to whole pages."""
    left = os.statvfs(disk)
    with open(disk / "filler", "wb") as file:
        file.write(bytes(left.f_bavail * left.f_frsize - free // 4096 * 4096))


class FillBefore(KeepState):
    def __init__(self, disk: Path, step: int, free: int):
        self.disk, self.step, self.free = disk, step, free

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            fill(self.disk, self.free)


def size(path: Path) -> int:
    return -(-path.stat().st_size // 4096) * 4096


@pytest.mark.parametrize("cut", ["model.safetensors", "optimizer.pt", COMPLETE])
def test_a_full_disk_while_a_checkpoint_is_saved(trained, small_disk, cut):
    folder, states = trained
    written = [
        "config.json",
        "model.safetensors",
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
    ]
    example = folder / "checkpoint-4"
    before = written[: written.index(cut)] if cut in written else [p.name for p in example.iterdir() if p.name != cut]
    sources = [path.name for path in example.glob("*.py")]
    room = sum(size(example / name) for name in {*before, *sources}) + size(example / cut) // 2
    output_dir = small_disk / "run"
    with pytest.raises(OSError, match="No space left on device") as error:
        run(output_dir, callbacks=(FillBefore(small_disk, 4, room),), **OPTIONS)
    message = str(error.value)
    assert message.startswith(f"{output_dir / 'checkpoint-4' / cut} could not be written: No space left on device. ")
    assert "--resume-from-checkpoint true" in message
    assert message.endswith(f"The last complete checkpoint is {output_dir / 'checkpoint-2'}.")
    assert "\n" not in message
    assert [path.name for path in output_dir.glob("checkpoint-*")] == ["checkpoint-2"]
    (small_disk / "filler").unlink()
    resumed = run(output_dir, resume=True, **OPTIONS)
    for name, value in resumed["state"].items():
        assert torch.equal(value, states[5][name]), name


def test_a_full_disk_while_the_final_model_is_saved(small_disk):
    """The earlier model stays intact."""
    output_dir = small_disk / "run"
    options = {"max_steps": 2, "save": True}
    run(output_dir, **options)
    before = {path.name: path.read_bytes() for path in output_dir.iterdir()}
    room = size(output_dir / "model.safetensors") // 2 + 200_000
    with pytest.raises(OSError, match="No space left on device") as error:
        run(output_dir, callbacks=(FillBefore(small_disk, 2, room),), seed=1, **options)
    assert str(error.value).startswith(f"{output_dir / 'model.safetensors'} could not be written: No space left")
    assert {path.name: path.read_bytes() for path in output_dir.iterdir()} == before
    (small_disk / "filler").unlink()
    run(output_dir, seed=1, **options)
    after = {path.name: path.read_bytes() for path in output_dir.iterdir()}
    assert after.keys() == before.keys()
    assert after["model.safetensors"] != before["model.safetensors"]


def test_sharded_weights_are_removed_when_the_new_ones_are_complete(tmp_path):
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")
    for name in (*names, "my_model.safetensors"):
        (tmp_path / name).write_text("{}")
    run(tmp_path, max_steps=1, save=True)
    left = {path.name for path in tmp_path.glob("*safetensors*")}
    assert left == {"model.safetensors", "my_model.safetensors"}


def test_a_full_disk_while_a_report_is_written(small_disk, caplog):
    results = small_disk / "results.json"
    write_json(results, {"of": "before"})
    fill(small_disk, 0)
    with pytest.raises(OSError, match="No space left on device") as error:
        write_json(results, {"of": ["now"] * 10_000})
    assert error.value.filename == str(results)
    assert json.loads(results.read_text()) == {"of": "before"}
    assert {path.name for path in small_disk.iterdir()} == {"results.json", "filler"}
    # A run does not fail because the list of unreadable videos cannot be written.
    result = run(small_disk, bad=(3,), max_unreadable=1.0, max_steps=6, keep_result=False)
    assert len(result["log"]) == 6
    assert (
        f"could not be written: [Errno 28] No space left on device: '{small_disk / 'unreadable_videos.json'}'"
        in caplog.text
    )


def test_without_a_connection_to_the_hub(monkeypatch):
    def offline(name):
        raise OSError("We couldn't connect to the Hub.")

    monkeypatch.setattr("region_learner.conversion.dual_encoders.is_dual_encoder", offline)
    with pytest.raises(OSError, match="`hf download me/mine --local-dir DIR` elsewhere, and give DIR as"):
        load_checkpoint("me/mine", None)


def test_the_checkpoint_at_the_end_of_an_epoch_is_saved_after_its_evaluation(tmp_path):
    """A run that is resumed from this checkpoint continues with the next epoch, and does not evaluate this one."""
    events = []

    class Recorded(RegionLearnerTrainer):
        def evaluate(self, *args, **kwargs):
            events.append(f"evaluate {self.state.global_step}")
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, {})
            return {"eval_t2v_MeanR": 1.0}

        def _save_checkpoint(self, *args, **kwargs):
            events.append(f"save {self.state.global_step}")
            super()._save_checkpoint(*args, **kwargs)

    def train(strategy, max_steps):
        events.clear()
        rows = Dataset.from_dict({"video_id": [str(i) for i in range(24)]})  # an epoch has 6 steps
        options = {"save_strategy": "steps", "save_steps": 3, "max_steps": max_steps, "eval_strategy": strategy}
        Recorded(
            model=tiny_model(),
            args=RegionLearnerTrainingArguments(str(tmp_path), eval_steps=6, **DEFAULTS | options),
            processing_class=Processor(),
            train_dataset=[CorpusPart(rows, 4, num_frames=2)],
            eval_dataset=rows,
            data_collator=Collator(),
        ).train()
        return events

    assert train("epoch", 12) == ["save 3", "evaluate 6", "save 6", "save 9", "evaluate 12", "save 12"]
    assert train("epoch", 9) == ["save 3", "evaluate 6", "save 6", "evaluate 9", "save 9"]
    assert train("steps", 9) == ["save 3", "evaluate 6", "save 6", "evaluate 9", "save 9"]

"""Tests of Ctrl-C during long commands: they end with exit code 130 and one line on how to continue."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from region_learner.cli import main
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .conftest import tiny_model, tiny_text_config
from .test_prepare import processes_of, write_video

pytestmark = pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks for processes as Linux has them")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    write_video(folder / "0.mp4", frames=200)
    for number in range(1, 400):
        os.link(folder / "0.mp4", folder / f"{number}.mp4")
    lines = ["file_name,text", *(f"{number}.mp4,a caption" for number in range(400))]
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


def run_command(command: list[str], folder: Path, log: Path):
    """Runs a command in its own process group."""
    os.setsid()
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    main(command)


def interrupt(command: list[str], started, folder: Path) -> tuple[int, str]:
    """Sends Ctrl-C to all processes of a command once `started` is true. Returns its exit code and messages."""
    log = folder / "messages"
    process = multiprocessing.get_context("forkserver").Process(target=run_command, args=(command, folder, log))
    process.start()
    deadline = time.monotonic() + 300
    while not started() and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    process.join(60)
    ends_by = time.monotonic() + 30
    while processes_of(folder) and time.monotonic() < ends_by:
        time.sleep(0.1)
    assert not processes_of(folder)
    return process.exitcode, log.read_text()


@pytest.fixture
def checkpoint(tmp_path):
    tokenizer = train_tokenizer(["a caption"], 99, 32)
    processor = RegionLearnerProcessor(RegionLearnerVideoProcessor.for_image_size(32, num_frames=2), tokenizer)
    for part in (tiny_model(text=tiny_text_config(vocab_size=len(tokenizer))), processor):
        part.save_pretrained(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


@pytest.mark.slow
def test_interrupted_evaluation(videos, checkpoint, tmp_path):
    """The interruption comes while decoding processes start, or soon after."""
    command = ["evaluate", checkpoint, "--data-dir", str(videos), "--split", "all", "--workers", "2"]
    code, messages = interrupt(command, lambda: len(processes_of(tmp_path)) >= 3, tmp_path)
    assert code == 130
    how = "Nothing was written. Run the same command to start again."
    assert messages.splitlines()[-1] == f"region-learner: interrupted. {how}"
    assert "Traceback" not in messages


@pytest.mark.parametrize("command", ["prepare", "make", pytest.param("check", marks=pytest.mark.slow)])
def test_interrupted(videos, tmp_path, command):
    data = ["--data-dir", str(videos), "--split", "all", "--workers", "2"]
    partial = tmp_path / ".out.partial" / "train" / "clips"
    arguments, started, how = {
        "prepare": (
            [str(tmp_path / "out"), *data, "--clips-per-shard", "2"],
            lambda: list((tmp_path / "out").glob("all/*.tar")),
            "Run the same command again to write the remaining shards.",
        ),
        "check": (
            data,
            lambda: len(processes_of(tmp_path)) >= 4,
            "Nothing was written. Run the same command to start again.",
        ),
        "make": (
            [str(tmp_path / "out"), "--corpus-options", '{"train": 1000}'],
            lambda: partial.is_dir() and any(partial.iterdir()),
            "Nothing was written. Run the same command to start again.",
        ),
    }[command]
    code, messages = interrupt(["corpus", command, *arguments], started, tmp_path)
    assert code == 130
    assert messages.splitlines()[-1] == f"region-learner: interrupted. {how}"
    assert "Traceback" not in messages
    assert not list(tmp_path.rglob("*.partial"))

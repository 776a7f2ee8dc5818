"""Tests of loader processes that are killed, stopped or hang: one line names what was being read."""

import multiprocessing
import os
import signal
import time

import pytest
import torch

from region_learner import loader_processes
from region_learner.evaluation.reading import read_clips
from region_learner.loader_processes import load_in_order


class Clips(torch.utils.data.Dataset):
    def __init__(self, fault: str = "", at: int = 5, length: int = 8):
        self.fault, self.at, self.length = fault, at, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index == self.at:
            if self.fault == "error":
                raise RuntimeError("a fault of the data set")
            if self.fault:
                os.kill(os.getpid(), getattr(signal, self.fault))
        return index


def read(clips, workers=2, step=lambda batch: None):
    batches = []
    for batch in load_in_order(clips, 2, workers, "clip {}".format):
        step(batch)
        batches.append(batch)
    return batches


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_items_come_in_order(workers):
    handler = signal.getsignal(signal.SIGCHLD)
    assert read(Clips(), workers) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    read(Clips(), workers)
    assert workers or signal.getsignal(signal.SIGCHLD) is handler


def test_a_process_that_is_killed():
    with pytest.raises(
        ChildProcessError,
        match=r"(Killed|exited unexpectedly).*, while it was reading 'clip 5'\. .*fewer loader processes",
    ):
        read(Clips("SIGKILL"))


def test_a_process_that_is_killed_while_the_model_works():
    """PyTorch alone would raise an error in the middle of the step."""
    ended = []

    def step(batch):
        if batch == [0, 1]:
            before = signal.getsignal(signal.SIGCHLD)
            signal.signal(signal.SIGCHLD, lambda *arguments: (ended.append(True), before(*arguments)))
            while not ended:
                time.sleep(0.01)
            signal.signal(signal.SIGCHLD, before)

    with pytest.raises(ChildProcessError, match=r"while it was reading 'clip 3'\. "):
        read(Clips("SIGKILL", at=3), workers=2, step=step)
    assert ended


def test_a_process_that_is_stopped(monkeypatch):
    monkeypatch.setattr(loader_processes, "TIMEOUT", 2)
    with pytest.raises(TimeoutError, match=r"^No batch came .* for 2 seconds: .*was reading 'clip 5'") as caught:
        read(Clips("SIGSTOP"))
    assert "\n" not in str(caught.value)


def test_some_batches_may_take_any_time(monkeypatch):
    """A resumed stream first replays what it has yielded."""
    monkeypatch.setattr(loader_processes, "TIMEOUT", 1)
    watch = loader_processes.LoaderWatch(1)
    watch.unlimited = 2

    def slow():
        for number in range(4):
            time.sleep(1.5 if number < 2 else 0)
            yield number

    assert list(watch.batches(slow())) == [0, 1, 2, 3]
    assert watch.hung == {}
    assert watch.unlimited == 0


def test_a_stopped_process_ends_when_another_is_killed():
    def step(batch):
        if batch == [2, 3]:  # both processes have returned a batch
            first, second = multiprocessing.active_children()
            os.kill(first.pid, signal.SIGSTOP)
            os.kill(second.pid, signal.SIGKILL)

    with pytest.raises(ChildProcessError):
        read(Clips(length=1000), step=step)
    assert not multiprocessing.active_children()


def test_errors_of_the_dataset_are_raised_unchanged():
    with pytest.raises(RuntimeError, match="a fault of the data set"):
        read(Clips("error"))


def kill_at_b(videos, return_tensors):
    """Replaces a video processor."""
    if videos == ["b.mp4"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"pixel_values_videos": torch.zeros(1, 1, 3, 2, 2)}


def test_evaluation_names_the_video():
    with pytest.raises(ChildProcessError, match=r"while it was reading 'b\.mp4'"):
        list(read_clips(kill_at_b, ["a.mp4", "b.mp4", "c.mp4"], {}, batch_size=1, num_workers=1, progress=False))


def test_a_hang_without_a_video_is_not_blamed_on_one():
    assert loader_processes._hang_message({0: ""}).endswith("Use smaller batches, or a faster disk.")
    assert "reading 'a.mp4'. Leave that video out" in loader_processes._hang_message({0: "a.mp4", 1: ""})

"""Tests Ctrl-C and SIGTERM during training, and loader processes that are killed or stopped."""

import gc
import multiprocessing
import os
import signal
import sys
from multiprocessing import reduction, resource_sharer
from multiprocessing.connection import Client
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback

from region_learner import interruption, loader_processes
from region_learner.cli import main
from region_learner.interruption import interruptible
from region_learner.training.checkpoints import how_to_resume, incompleteness

from .toy_run import _PROCESSES, run


class StopLoadersAndInterrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGINT)


def _interrupted(log: str, output_dir: str, at_fork: bool, options: dict):
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    multiprocessing.set_start_method("fork", force=True)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    with interruptible(lambda: how_to_resume([output_dir])):
        if at_fork:  # Python cannot raise an exception in this callback and drops it
            os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.SIGINT))
        run(output_dir, **{"save_strategy": "steps", "save_steps": 2, "max_steps": 100_000} | options)


def test_a_second_interruption_while_the_first_is_raised_again(monkeypatch):
    started = []

    class Timer:
        def __init__(self, seconds, function):
            self.function = function

        def start(self):
            started.append(self.function)
            if len(started) < 3:
                raise KeyboardInterrupt

    def twice_interrupted():
        with interruptible("Run the same command to start again."):
            hook = sys.unraisablehook
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt as error:
                hook(SimpleNamespace(exc_type=type(error)))  # as Python does with an exception that it ignores
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(interruption.threading, "Timer", Timer)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # so that the original is restored after the test
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(SystemExit) as exit:
        twice_interrupted()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert exit.value.code == 130
    assert len(started) == 3  # the third one could be started


@pytest.mark.parametrize(
    ("at_fork", "options", "code", "says"),
    [
        (True, {"dataloader_num_workers": 2, "save_strategy": "no"}, 130, "No checkpoint has been saved"),
        (
            False,
            {"dataloader_num_workers": 2, "callbacks": (StopLoadersAndInterrupt(),)},
            130,
            "Resume with the same command and --resume-from-checkpoint true: training continues from {}/checkpoint-2.",
        ),
        (
            False,
            {"kill_while_saving": 4, "kill_signal": signal.SIGTERM},
            143,
            "Resume with the same command and --resume-from-checkpoint true: training continues from {}/checkpoint-2.",
        ),
    ],
    ids=["starting loader processes", "stopped loader processes", "saving"],
)
def test_an_interrupted_run_ends_with_a_line_that_says_how_to_continue(tmp_path, at_fork, options, code, says):
    output_dir, log = tmp_path / "run", tmp_path / "log"
    process = _PROCESSES.Process(target=_interrupted, args=(str(log), str(output_dir), at_fork, options))
    process.start()
    process.join(300)
    text = log.read_text()
    assert process.exitcode == code, text
    assert "Traceback" not in text
    *_, last = text.splitlines()
    assert last.startswith(f"region-learner: interrupted. {says.format(output_dir)}")
    if (output_dir / "checkpoint-4").is_dir():
        assert incompleteness(output_dir / "checkpoint-4") is not None


def _give_out_tensors(pipe):
    loader_processes.LoaderWatch(1).options["worker_init_fn"](0)
    pipe.send(resource_sharer.DupFd(0)._id)
    pipe.recv()


def test_a_loader_process_is_silent_when_the_main_process_leaves(capfd):
    """After Ctrl-C, while the main process takes a tensor from a loader process."""
    processes = multiprocessing.get_context("spawn")  # a fork server would keep the standard error it started with
    ours, theirs = processes.Pipe()
    process = processes.Process(target=_give_out_tensors, args=(theirs,))
    process.start()
    address, key = ours.recv()

    def connect():
        return Client(address, authkey=multiprocessing.current_process().authkey)

    connect().close()
    with connect() as connection:
        connection.send((key + 1, os.getpid()))  # other errors are shown
        with pytest.raises(EOFError):
            connection.recv()
    with connect() as connection:
        connection.send((key, os.getpid()))
        os.close(reduction.recv_handle(connection))  # the thread goes on
    ours.send(None)
    process.join()
    shown = capfd.readouterr().err
    assert f"KeyError: {key + 1}" in shown
    assert "EOFError" not in shown


def test_the_command_line_can_be_interrupted(tmp_path, monkeypatch, capsys):
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(KeyError), interruptible("Start again."):  # other errors pass through
        raise KeyError
    assert [signal.getsignal(number) for number in numbers] == before
    monkeypatch.setattr("region_learner.training.train_stages", lambda stages: signal.raise_signal(signal.SIGINT))
    try:
        with pytest.raises(SystemExit) as end:
            main(["train", "--output_dir", str(tmp_path), "--use_cpu", "true", "--report_to", "none"])
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)
    assert end.value.code == 130
    assert capsys.readouterr().err.startswith("region-learner: interrupted. No checkpoint has been saved")


@pytest.mark.parametrize("shards", [0, 2])
def test_a_killed_loader_process_names_its_video(tmp_path, shards):
    """The system kills loader processes when memory runs out."""
    with pytest.raises(
        ChildProcessError, match=r"(Killed|exited unexpectedly).*, while it was reading '5'\. .*fewer loader processes"
    ) as error:
        run(tmp_path, dataloader_num_workers=2, deadly=(5, signal.SIGKILL), max_steps=50, shards=shards)
    assert "\n" not in str(error.value)
    # On a busy machine the other process may not have started to read yet; then PyTorch ends it with the loader.
    del error
    gc.collect()
    assert not multiprocessing.active_children()


def test_a_stopped_loader_process_names_its_video(tmp_path, monkeypatch):
    monkeypatch.setattr(loader_processes, "TIMEOUT", 3)
    with pytest.raises(TimeoutError, match=r"^No batch came .* for 3 seconds: process \d+ was reading '5'\. "):
        run(tmp_path, dataloader_num_workers=1, deadly=(5, signal.SIGSTOP), max_steps=50)
    assert not multiprocessing.active_children()

"""Tests worker processes that crash, stop, hang or take too much memory: the item is reported, the rest is done."""

import os
import signal
import sys

import pytest

from region_learner import processes
from region_learner.processes import check_memory, map_in_processes

from .hard_work import MEMORY, hard_work

PRELOAD = ("region_learner.processes",)


def numbers(items, workers: int, timeout: float) -> list:
    results = map_in_processes(
        hard_work, items, workers, timeout, lambda item, reason: (item, reason), PRELOAD, memory=MEMORY
    )
    return list(results)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited on Linux")
def test_memory_is_limited():
    reason = "reading it takes more than 0.195312 GiB of memory"
    assert numbers([0, 1, 2, 4, 5], 1, 60) == [0, 1, (2, reason), (4, reason), 5]


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")
def test_a_stopped_process_is_ended(monkeypatch):
    monkeypatch.setattr(processes, "_GRACE", 0.5)
    assert numbers([0, 3, 5, 6, 7], 1, 2) == [
        0,
        (3, "reading it crashes the process, or takes more than 2 seconds"),
        5,
        6,
        7,
    ]


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")
def test_one_process_is_stopped_while_another_crashes(monkeypatch):
    monkeypatch.setattr(processes, "_GRACE", 0.5)
    reason = "reading it crashes the process, or takes more than 2 seconds"
    assert numbers([3, 8, 0, 5, 6, 7], 2, 2) == [(3, reason), (8, reason), 0, 5, 6, 7]


def test_other_errors_are_not_reported_as_lack_of_memory():
    check_memory(ValueError("x"))
    assert numbers([0], 1, 60) == [0]


@pytest.mark.parametrize("value", ["first", "second", None])
def test_environment_variables_are_those_of_this_process(monkeypatch, value):
    """Environment variables may be set after the first processes were started."""
    if value is None:
        monkeypatch.delenv("REGION_LEARNER_TEST", raising=False)
    else:
        monkeypatch.setenv("REGION_LEARNER_TEST", value)
    results = map_in_processes(os.getenv, ["REGION_LEARNER_TEST"], 1, 60, lambda item, reason: reason, PRELOAD)
    assert list(results) == [value]

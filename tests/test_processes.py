"""Work in processes that may crash, stop, hang or take too much memory: each item is named, and the rest is done."""

import os
import signal
import sys

import pytest

from region_learner import processes
from region_learner.processes import check_memory, map_in_processes

MEMORY = 200 * 2**20
PRELOAD = ("region_learner.processes",)


def hard_work(number: int) -> int:
    if number == 1:
        bytearray(MEMORY // 2)
    elif number == 2:
        bytearray(2 * MEMORY)
    elif number == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif number == 4:
        wrapped_lack_of_memory()
    return number


def wrapped_lack_of_memory():
    try:
        bytearray(2 * MEMORY)
    except MemoryError as error:
        try:
            raise ValueError("cannot be decoded") from error
        except ValueError as wrapped:
            check_memory(wrapped)
            raise


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
def test_a_process_that_is_stopped_is_ended(monkeypatch):
    monkeypatch.setattr(processes, "_GRACE", 0.5)
    assert numbers([0, 3, 5, 6, 7], 1, 2) == [
        0,
        (3, "reading it crashes the process, or takes more than 2 seconds"),
        5,
        6,
        7,
    ]


def test_other_errors_are_no_lack_of_memory():
    check_memory(ValueError("x"))
    assert numbers([0], 1, 60) == [0]

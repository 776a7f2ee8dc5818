"""The work of processes in `test_processes.py`. Slow imports are avoided, because they would count as work."""

import os
import signal

MEMORY = 200 * 2**20


def hard_work(number: int) -> int:
    if number == 1:
        bytearray(MEMORY // 2)
    elif number == 2:
        bytearray(2 * MEMORY)
    elif number == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif number == 4:
        wrapped_lack_of_memory()
    elif number == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def wrapped_lack_of_memory():
    from region_learner.processes import check_memory

    try:
        bytearray(2 * MEMORY)
    except MemoryError as error:
        try:
            raise ValueError("cannot be decoded") from error
        except ValueError as wrapped:
            check_memory(wrapped)
            raise

"""Processes that work for another one."""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """
    Initializer for workers of a pool: one whose parent is killed would wait for its next task for ever, as it holds
    both ends of the pipe from which it reads them.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch():
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

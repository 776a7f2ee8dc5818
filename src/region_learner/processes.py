"""Processes that work for another one."""

import collections
import faulthandler
import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def map_in_processes(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    timeout: float,
    failed: Callable[[Item, str], Result],
    preload: tuple[str, ...] = (),
) -> Generator[Result, None, None]:
    """
    `map(function, items)` in processes, for work that may crash or hang where Python cannot help it.

    Args:
        function: picklable, as items and results are.
        items: drawn as they are needed.
        workers: processes.
        timeout: seconds that an item may take.
        failed: gives the result of an item that brings its process down or takes too long, from a reason.
        preload: modules that processes begin with, where there is such a thing.

    Yields:
        Results, in order. Close it where not all are taken: processes are stopped then.
    """
    context: Any = multiprocessing.get_context("spawn")
    if "forkserver" in multiprocessing.get_all_start_methods():  # not Windows
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preload))

    def new_pool(processes: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(processes, context, initializer=end_with_parent)

    def submit(item: Item) -> Future:
        return pool.submit(_within, timeout, function, item)

    def next_result() -> Result:
        nonlocal pool
        item, future = waiting.popleft()
        try:
            return future.result()
        except BrokenProcessPool:
            # Any item under way may be the one: each is tried again alone, this one first.
            with new_pool(1) as alone:
                try:
                    result = alone.submit(_within, timeout, function, item).result()
                except BrokenProcessPool:
                    reason = f"it brings the process that reads it down, or takes more than {timeout:g} seconds"
                    result = failed(item, reason)
            pool = new_pool(workers)
            rest = [other for other, _ in waiting]
            waiting.clear()
            waiting.extend((other, submit(other)) for other in rest)
            return result

    waiting: collections.deque[tuple[Item, Future]] = collections.deque()
    pool = new_pool(workers)
    try:
        for item in items:
            waiting.append((item, submit(item)))
            if len(waiting) > 4 * workers:
                yield next_result()
        while waiting:
            yield next_result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _within(seconds: float, function: Callable[[Item], Result], item: Item) -> Result:
    """Ends the process where it takes too long, also where it hangs in a library."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        return function(item)
    finally:
        faulthandler.cancel_dump_traceback_later()

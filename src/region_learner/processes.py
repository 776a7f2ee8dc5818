"""Processes that work for another one."""

import collections
import faulthandler
import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

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

    Raises:
        RuntimeError: processes do not even start.
    """
    pools = _Pools(workers, timeout, function, preload)
    waiting: collections.deque[tuple[Item, Future]] = collections.deque()

    def next_result() -> Result:
        item, future = waiting.popleft()
        try:
            return future.result()
        except BrokenProcessPool:
            # Any item under way may be the one: each is tried again alone.
            try:
                return pools.alone(item)
            except BrokenProcessPool:
                return failed(
                    item, f"it brings the process that reads it down, or takes more than {timeout:g} seconds"
                )

    try:
        for item in items:
            waiting.append((item, pools.submit(item)))
            if len(waiting) > 4 * workers:
                yield next_result()
        while waiting:
            yield next_result()
    finally:
        pools.shutdown()


class _Pools(Generic[Item, Result]):
    """A pool of processes, and the next one when it breaks."""

    def __init__(self, workers: int, timeout: float, function: Callable[[Item], Result], preload: tuple[str, ...]):
        self.workers, self.timeout, self.function = workers, timeout, function
        self.context: Any = multiprocessing.get_context("spawn")
        if "forkserver" in multiprocessing.get_all_start_methods():  # not Windows
            self.context = multiprocessing.get_context("forkserver")
            self.context.set_forkserver_preload(list(preload))
        self.pool: ProcessPoolExecutor | None = None

    def _new(self, workers: int) -> ProcessPoolExecutor:
        pool = ProcessPoolExecutor(workers, self.context, initializer=end_with_parent)
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "processes do not start: where a script does this, it has to be under `if __name__ == '__main__':`"
            ) from error
        return pool

    def _submit(self, pool: ProcessPoolExecutor, item: Item) -> Future:
        return pool.submit(_within, self.timeout, self.function, item)

    def submit(self, item: Item) -> Future:
        if self.pool is not None:
            with suppress(BrokenProcessPool):
                return self._submit(self.pool, item)
        self.pool = self._new(self.workers)
        return self._submit(self.pool, item)

    def alone(self, item: Item) -> Result:
        with self._new(1) as pool:
            return self._submit(pool, item).result()

    def shutdown(self):
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)


def _within(seconds: float, function: Callable[[Item], Result], item: Item) -> Result:
    """Ends the process where it takes too long, also where it hangs in a library."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        return function(item)
    finally:
        faulthandler.cancel_dump_traceback_later()

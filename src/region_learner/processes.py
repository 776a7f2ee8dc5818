"""Processes that work for another one."""

import collections
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MEMORY = 4 * 2**30  # bytes that one item may take
_ran_out_of_memory = False  # this process, with an earlier item
_GRACE = 5  # seconds after its time in which a process ends by itself, unless it was stopped


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
    memory: int = MEMORY,
) -> Generator[Result, None, None]:
    """
    `map(function, items)` in processes, for work that may crash or hang where Python cannot help it.

    Args:
        function: picklable, as items and results are. It lets [`check_memory`] see the errors that it catches.
        items: drawn as they are needed.
        workers: processes.
        timeout: seconds that an item may take.
        failed: returns the result, from a reason, of an item that crashes its process, or takes too long or too much
            memory.
        preload: modules that processes begin with, where there is such a thing.
        memory: bytes that an item may take, on Linux.

    Yields:
        Results, in order. Close it where not all are taken: processes are stopped then.

    Raises:
        RuntimeError: processes do not even start.
    """
    pools = _Pools(workers, timeout, function, preload, memory)
    waiting: collections.deque[tuple[Item, Future, ProcessPoolExecutor | None]] = collections.deque()

    def next_result() -> Result:
        item, future, pool = waiting.popleft()
        try:
            try:
                return pools.result(future)
            except (BrokenProcessPool, MemoryError):
                # Any item under way may be the one: each is tried again alone, and others go to new processes.
                _kill(pool)
                return pools.alone(item)
        except BrokenProcessPool:
            return failed(item, f"reading it crashes the process, or takes more than {timeout:g} seconds")
        except MemoryError:
            return failed(item, f"reading it takes more than {memory / 2**30:g} GiB of memory")

    try:
        for item in items:
            waiting.append((item, pools.submit(item), pools.pool))
            if len(waiting) > 4 * workers:
                yield next_result()
        while waiting:
            yield next_result()
    finally:
        pools.shutdown()


def check_memory(error: BaseException) -> None:
    """
    For who catches errors in a process of [`map_in_processes`].

    Raises:
        MemoryError: `error` is due to a lack of memory.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            raise MemoryError from None
        cause = cause.__cause__ or cause.__context__


class _Pools(Generic[Item, Result]):
    """A pool of processes, and the next one when it breaks."""

    def __init__(
        self,
        workers: int,
        timeout: float,
        function: Callable[[Item], Result],
        preload: tuple[str, ...],
        memory: int,
    ):
        self.workers, self.timeout, self.function, self.memory = workers, timeout, function, memory
        self.context: Any = multiprocessing.get_context("spawn")
        if "forkserver" in multiprocessing.get_all_start_methods():  # not Windows
            self.context = multiprocessing.get_context("forkserver")
            self.context.set_forkserver_preload(list(preload))
        self.pool: ProcessPoolExecutor | None = None

    def _new(self, workers: int) -> ProcessPoolExecutor:
        pool = ProcessPoolExecutor(workers, self.context, initializer=_begin, initargs=(self.memory,))
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
            try:
                return self._submit(self.pool, item)
            except BrokenProcessPool:
                _kill(self.pool)  # one that was stopped would be waited for at the exit
        self.pool = self._new(self.workers)
        return self._submit(self.pool, item)

    def result(self, future: Future, pool: ProcessPoolExecutor | None = None) -> Result:
        """
        The result of the item that was submitted first: as all before it are done, a process has it in hand.

        Raises:
            BrokenProcessPool: its process ended, or was stopped and is ended here.
            MemoryError: it takes too much memory.
        """
        try:
            return future.result(self.timeout + _GRACE)
        except TimeoutError:
            if future.done():  # what the function raised
                raise
            _kill(pool or self.pool)
            return future.result()

    def alone(self, item: Item) -> Result:
        pool = self._new(1)
        try:
            return self.result(self._submit(pool, item), pool)
        finally:
            _end(pool)

    def shutdown(self):
        if self.pool is not None:
            _end(self.pool)


def _kill(pool: Any) -> None:
    """Ends the processes of a pool, whatever they do, also those that were stopped."""
    for process in list((pool._processes or {}).values()):  # Python 3.14 has kill_workers
        process.kill()


def _end(pool: ProcessPoolExecutor) -> None:
    _kill(pool)
    pool.shutdown(cancel_futures=True)


def _begin(memory: int) -> None:
    """Initializer of processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes: the parent ends the others
    end_with_parent()
    _limit_memory(memory)


def _limit_memory(size: int) -> None:
    """
    Lets the process have `size` bytes more than it has. Only Linux counts what a process can write to; the limit of
    all addresses, which others know, counts what threads and libraries set aside and never use.
    """
    if not sys.platform.startswith("linux"):
        return
    import resource

    with open("/proc/self/status", encoding="ascii") as file:
        used = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used + size if hard == resource.RLIM_INFINITY else min(used + size, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _within(seconds: float, function: Callable[[Item], Result], item: Item) -> Result:
    """Ends the process where it takes too long, also where it hangs in a library."""
    global _ran_out_of_memory
    if _ran_out_of_memory:  # libraries may not have given it back: this item would fail for want of it
        raise MemoryError
    with open(os.devnull, "w") as nowhere:  # one line of the result says it
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            return function(item)
        except MemoryError:
            _ran_out_of_memory = True
            raise MemoryError from None  # that of FFmpeg cannot be sent
        finally:
            faulthandler.cancel_dump_traceback_later()

"""A pool of processes for work that may crash, hang or take too much memory.

It replaces pebble's `ProcessPool`, where all waiting items fail if a worker crashes before the parent has processed
its acknowledgement of the item (seen with pebble 5.2.3 and one worker).
"""

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
_GRACE = 5  # seconds after the timeout in which a process ends by itself, unless it was stopped (SIGSTOP)
_ran_out_of_memory = False  # whether an earlier item exhausted the memory of this process


def end_with_parent() -> None:
    """
    Ends this worker process when its parent ends. Otherwise, a worker whose parent is killed would wait for its next
    task forever, as it holds both ends of the pipe that it reads tasks from.
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
    Runs `map(function, items)` in processes, for work that may crash or hang where Python cannot prevent it.

    Args:
        function: must be picklable, like items and results, and pass the errors that it catches to `check_memory`.
        items: consumed lazily.
        workers: number of processes.
        timeout: seconds that an item may take.
        failed: called with an item and a reason, returns the result of an item that crashes its process, or takes too
            long or too much memory.
        preload: modules that are imported before processes start, where the system can do that.
        memory: bytes that an item may take, on Linux.

    Yields:
        The results, in order. Close the generator if you do not consume all of them, so that the processes end.

    Raises:
        RuntimeError: if processes do not start.

    Example:

    ```python
    >>> results = map_in_processes(check_video, paths, workers=4, timeout=60, failed=lambda path, reason: reason)
    ```
    """
    pools = _Pools(workers, timeout, function, preload, memory)
    waiting: collections.deque[tuple[Item, Future, ProcessPoolExecutor | None]] = collections.deque()

    def next_result() -> Result:
        item, future, pool = waiting.popleft()
        try:
            try:
                return pools.result(future)
            except (BrokenProcessPool, MemoryError):
                # Any item in progress may be the cause: each is tried again alone, and others go to new processes.
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
    Raises a `MemoryError` if `error` was caused by one. Functions of `map_in_processes` call this with each error that
    they catch, as their process must be replaced then.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            raise MemoryError from None
        cause = cause.__cause__ or cause.__context__


class _Pools(Generic[Item, Result]):
    """A pool of processes, which is replaced when it breaks."""

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
        # A fork server keeps the environment variables with which it started; those of this process may be newer.
        arguments = (self.memory, dict(os.environ))
        pool = ProcessPoolExecutor(workers, self.context, initializer=initialize_process, initargs=arguments)
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "Worker processes do not start: in a script, put the call under `if __name__ == '__main__':`."
            ) from error
        return pool

    def _submit(self, pool: ProcessPoolExecutor, item: Item) -> Future:
        return pool.submit(_call_within, self.timeout, self.function, item)

    def submit(self, item: Item) -> Future:
        if self.pool is not None:
            try:
                return self._submit(self.pool, item)
            except BrokenProcessPool:
                _kill(self.pool)  # a stopped process would be waited for at exit
        self.pool = self._new(self.workers)
        return self._submit(self.pool, item)

    def result(self, future: Future, pool: ProcessPoolExecutor | None = None) -> Result:
        """
        Returns the result of the first item that is not done; a process is working on it.

        Raises:
            BrokenProcessPool: if its process ended, or was stopped and is ended here.
            MemoryError: if it takes too much memory.
        """
        try:
            return future.result(self.timeout + _GRACE)
        except TimeoutError:
            if future.done():  # raised by the function
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
    """Kills the processes of a pool, including stopped ones."""
    for process in list((pool._processes or {}).values()):  # Python 3.14 has kill_workers
        process.kill()


def _end(pool: ProcessPoolExecutor) -> None:
    _kill(pool)
    pool.shutdown(cancel_futures=True)


def initialize_process(memory: int, environment: dict[str, str]) -> None:
    """Initializes a process of a pool."""
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the parent ends the others
    end_with_parent()
    _limit_memory(memory)


def _limit_memory(size: int) -> None:
    """
    Limits the memory of this process to `size` bytes more than it uses now, on Linux, which counts writable memory.
    The limit of other systems, on the address space, also counts what libraries reserve and never use.
    """
    if not sys.platform.startswith("linux"):
        return
    import resource

    with open("/proc/self/status", encoding="ascii") as file:
        used = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used + size if hard == resource.RLIM_INFINITY else min(used + size, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _call_within(seconds: float, function: Callable[[Item], Result], item: Item) -> Result:
    """Calls `function`, and ends the process if that takes too long, even if it hangs in a library."""
    global _ran_out_of_memory
    if _ran_out_of_memory:  # libraries may not have released it, and this item would fail in turn
        raise MemoryError
    with open(os.devnull, "w") as nowhere:  # the result says it in one line
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            return function(item)
        except MemoryError:
            _ran_out_of_memory = True
            raise MemoryError from None  # FFmpeg's error cannot be pickled
        finally:
            faulthandler.cancel_dump_traceback_later()

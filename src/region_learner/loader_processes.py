"""Watches the processes of a `DataLoader`. If one is killed, crashes or hangs, the error names the video."""

import multiprocessing
import os
import re
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from .interruption import without_child_signals

# Seconds without a batch after which loader processes are assumed to hang. A batch may hold many long videos on a slow
# disk, but training processes wait only 1800 seconds for one another (`ddp_timeout`).
TIMEOUT = 900

_BYTES = 1024  # of shared memory per process, for its id and the video that it reads


class LoaderWatch:
    """
    Records which video each process of a loader is reading, in memory shared with the main process.

        watch = LoaderWatch(num_workers)
        loader = DataLoader(dataset, num_workers=num_workers, **watch.options)
        for batch in watch.batches(loader):
            ...

    The dataset or the collator calls `now_reading` before it reads a video.

    Args:
        num_workers: as for the `DataLoader`.
        name_of: function that returns the name of a video for messages, called with the argument of `now_reading`.
    """

    def __init__(self, num_workers: int, name_of: Callable[[str], str] = str):
        self.slots = torch.zeros(num_workers, _BYTES, dtype=torch.uint8).share_memory_() if num_workers else None
        self.name_of = name_of
        self.hung: dict[int, str] = {}  # after `TIMEOUT` seconds without a batch: what `videos` returned
        self.unlimited = 0  # number of batches to come that may take any time
        _watches.add(self)

    @property
    def options(self) -> dict[str, Any]:
        """Returns keyword arguments for the `DataLoader`."""
        return {} if self.slots is None else {"worker_init_fn": _TakeSlot(self.slots)}

    def videos(self) -> dict[int, str]:
        """Returns the video that each process is reading, by process id; "" for a process between two videos."""
        slots = [] if self.slots is None else self.slots.numpy()
        texts = [bytes(slot).partition(b"\0")[0].decode(errors="replace") for slot in slots]
        pairs = [text.partition(" ")[::2] for text in texts if text]
        return {int(process): video and self.name_of(video) for process, video in pairs}

    def batches(self, loader: Iterable[Any], next_batch: Callable = next) -> Iterator[Any]:
        """Yields the batches of `loader`, each of which may take `TIMEOUT` seconds."""
        iterator = iter(loader)
        while True:
            try:
                with self.waiting():
                    batch = next_batch(iterator)
            except StopIteration:
                return
            yield batch

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """
        Kills the loader processes if the block takes more than `TIMEOUT` seconds; `naming_the_video` then says so.
        (The `timeout` of a `DataLoader` does not end the wait for a tensor of a stopped process.)
        """
        if self.slots is None or self.unlimited:
            self.unlimited = max(0, self.unlimited - 1)
            yield
            return
        arrived = threading.Event()
        threading.Thread(target=self._kill_after_timeout, args=(arrived,), daemon=True).start()
        try:
            yield
        finally:
            arrived.set()

    def _kill_after_timeout(self, arrived: threading.Event):
        for _ in range(TIMEOUT):  # counts only seconds in which this process itself was running
            if arrived.wait(1):
                return
        self.hung = self.videos()
        for child in multiprocessing.active_children():
            if child.pid in self.hung:
                child.kill()


class WatchedLoader:
    """Watches the processes of an existing `DataLoader`, such as the Trainer's."""

    def __init__(self, loader: Any):
        self.loader, self.watch = loader, LoaderWatch(loader.num_workers)
        for name, value in self.watch.options.items():
            setattr(loader, name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return self.watch.batches(self.loader)


_watches: "weakref.WeakSet[LoaderWatch]" = weakref.WeakSet()
_own_slot: Any = None  # of this process, if it is a loader process


class _TakeSlot:
    """The `worker_init_fn`. It is a class so that spawned processes are not sent the whole `LoaderWatch`."""

    def __init__(self, slots: torch.Tensor):
        self.slots = slots

    def __call__(self, worker: int):
        global _own_slot
        _own_slot = self.slots[worker].numpy()
        now_reading("")
        sys.excepthook = _report_unless_main_left


def _report_unless_main_left(kind: type[BaseException], error: BaseException, trace: Any):
    """
    The `sys.excepthook` of a loader process, called by the thread that hands out its tensors. The main process may
    leave while it takes one, on Ctrl-C for example, and it alone says why. Errors of datasets do not come here.
    """
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def now_reading(video: str):
    """Tells the main process which video this loader process is reading; "" for none. Has no effect elsewhere."""
    if _own_slot is not None:
        text = f"{os.getpid()} {video}".encode(errors="backslashreplace")[: _BYTES - 1]
        _own_slot[: len(text) + 1] = memoryview(text + b"\0")


@contextmanager
def naming_the_video() -> Iterator[None]:
    """
    Makes errors about loader processes within this block name the video that they were reading.

    Raises:
        ChildProcessError: a process was killed, or crashed.
        TimeoutError: no batch came for `TIMEOUT` seconds.
    """
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
        hung = {process: video for watch in _watches for process, video in watch.hung.items()}
        if hung:
            _kill_loader_processes()
            raise TimeoutError(_hang_message(hung)) from error
        text = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and not text.startswith("DataLoader worker (pid"):
            raise
        if isinstance(error, RuntimeError):
            dead = {int(number) for number in re.findall(r"\d+", re.split("exited|is killed", text)[0])}
        else:  # the other end of a connection is gone
            dead = {process for watch in _watches for process, video in watch.videos().items() if video}
            dead -= {child.pid for child in multiprocessing.active_children()}
            if not dead:
                raise
            text = f"Loader process (pid {', '.join(map(str, sorted(dead)))}) ended unexpectedly"
        raise ChildProcessError(_death_message(text, dead, _kill_loader_processes())) from error


def _hang_message(videos: dict[int, str]) -> str:
    reading = [f"process {process} was reading {video!r}" for process, video in videos.items() if video]
    found = "; ".join(reading) or "none of them was reading a video"
    cure = "Leave that video out, or check its disk." if reading else "Use smaller batches, or a faster disk."
    return f"No batch came from the loader processes for {TIMEOUT} seconds: {found}. {cure}"


def _death_message(text: str, dead: set[int], videos: dict[int, str]) -> str:
    reading = [repr(videos[process]) for process in sorted(dead) if videos.get(process)]
    while_reading = f", while it was reading {' and '.join(reading)}" if reading else ""
    cure = "use fewer loader processes" + ", or leave that video out" * bool(reading)
    return f"{text.rstrip('.')}{while_reading}. The system kills processes when memory runs out: {cure}."


def _kill_loader_processes() -> dict[int, str]:
    """
    Kills the remaining loader processes, as PyTorch would wait for a stopped one. Returns the videos that all of them
    were reading, by process id. A process that has not begun to read is left to PyTorch.
    """
    videos = {process: video for watch in _watches for process, video in watch.videos().items()}
    with without_child_signals():
        for child in multiprocessing.active_children():
            if child.pid in videos:
                child.kill()
                child.join()
    for watch in _watches:
        watch.hung = {}
        if watch.slots is not None:
            watch.slots.numpy()[:] = 0  # PyTorch itself refuses to change tensors that inference mode has made
    return videos


def load_in_order(
    dataset: Any, batch_size: int, num_workers: int, name_of: Callable[[int], str]
) -> Iterator[list[Any]]:
    """
    Yields the items of a dataset in order, as lists of `batch_size`.

    Args:
        dataset: indexed from 0.
        batch_size: number of items in a list; the last one may be shorter.
        num_workers: number of loader processes; with 0 this process reads, without a time limit.
        name_of: function that returns the name of an item for error messages, called with its index.

    Raises:
        ChildProcessError: a process was killed or crashed; the message names the item that it was reading.
        TimeoutError: no batch came for `TIMEOUT` seconds.
    """
    watch = LoaderWatch(num_workers, lambda index: name_of(int(index)))
    loader = DataLoader(_Items(dataset), batch_size, num_workers=num_workers, collate_fn=list, **watch.options)
    iterator: Any = iter(loader)
    with _child_errors_on_next() if num_workers else nullcontext(next) as next_batch:
        try:
            with naming_the_video():
                yield from watch.batches(iterator, next_batch)
        finally:
            if num_workers:
                iterator._shutdown_workers()


class _Items(Dataset):
    """A dataset whose loader processes say which item they are reading."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        now_reading(str(index))
        return self.dataset[index]


@contextmanager
def _child_errors_on_next() -> Iterator[Callable[[Iterator[Any]], Any]]:
    """
    Yields a `next` that raises an error if a loader process has ended. PyTorch raises it from a signal handler,
    wherever the main thread is at the time, such as in a step of the model, where the video is not known.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield next
        return
    handler: Any = signal.getsignal(signal.SIGCHLD)
    errors: list[RuntimeError] = []
    waiting = False

    def keep_error(number: int, frame: Any) -> None:
        try:
            if callable(handler):
                handler(number, frame)
        except RuntimeError as error:
            if waiting:
                raise
            errors.append(error)

    def next_batch(iterator: Iterator[Any]) -> Any:
        nonlocal waiting
        waiting = True
        try:
            if errors:
                raise errors[0]
            return next(iterator)
        finally:
            waiting = False

    signal.signal(signal.SIGCHLD, keep_error)
    try:
        yield next_batch
    finally:
        signal.signal(signal.SIGCHLD, handler)

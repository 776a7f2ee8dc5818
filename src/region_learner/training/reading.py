"""Processes of a `DataLoader` that die or hang: a message with the video that they were reading."""

import multiprocessing
import os
import re
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

# Seconds without any batch, after which loader processes are taken to hang. Generous: in a batch there may be many
# long videos, on a slow disk. (Training processes that wait for one another give up after 1800, see `ddp_timeout`.)
TIMEOUT = 900

_BYTES = 1024  # of a process: its id, and the video that it reads


class Reading:
    """
    What each process of a loader is reading, in memory that it shares with the main process.

        reading = Reading(num_workers)
        loader = DataLoader(dataset, num_workers=num_workers, **reading.options)
        for batch in reading.watched(loader):
            ...

    Its data set or collator calls [`note`] before it reads a video.
    """

    def __init__(self, num_workers: int):
        self.slots = torch.zeros(num_workers, _BYTES, dtype=torch.uint8).share_memory_() if num_workers else None
        self.hung: dict[int, str] = {}  # videos by process, when no batch came
        _all.add(self)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the `DataLoader`."""
        return {} if self.slots is None else {"worker_init_fn": _Begin(self.slots)}

    def videos(self) -> dict[int, str]:
        """The video by the id of the process; "" where it was between two."""
        slots = [] if self.slots is None else self.slots.numpy()
        texts = [bytes(slot).partition(b"\0")[0].decode(errors="replace") for slot in slots]
        return {int(text.partition(" ")[0]): text.partition(" ")[2] for text in texts if text}

    def watched(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of `loader`, each of which may take [`TIMEOUT`] seconds."""
        batches = iter(loader)
        while True:
            with self.waiting():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """
        Kills the processes when it takes more than [`TIMEOUT`] seconds to leave it, and has [`naming_the_video`] know.
        (The `timeout` of a `DataLoader` does not end the wait for a tensor of a process that is stopped.)
        """
        if self.slots is None:
            yield
            return
        came = threading.Event()
        threading.Thread(target=self._end_after_timeout, args=(came,), daemon=True).start()
        try:
            yield
        finally:
            came.set()

    def _end_after_timeout(self, came: threading.Event):
        for _ in range(TIMEOUT):  # seconds in which this process itself was not stopped
            if came.wait(1):
                return
        self.hung = self.videos()
        for child in multiprocessing.active_children():
            if child.pid in self.hung:
                child.kill()


_all: "weakref.WeakSet[Reading]" = weakref.WeakSet()
_mine: Any = None  # of this process, if it is one of a loader's: its slot


class _Begin:
    """`worker_init_fn`, which other processes are sent without the rest of [`Reading`]."""

    def __init__(self, slots: torch.Tensor):
        self.slots = slots

    def __call__(self, worker: int):
        global _mine
        _mine = self.slots[worker].numpy()
        note("")


def note(video: str):
    """In a loader process: has the main process know that `video` is read from now on; "" for none."""
    if _mine is not None:
        text = f"{os.getpid()} {video}".encode(errors="backslashreplace")[: _BYTES - 1]
        _mine[: len(text) + 1] = memoryview(text + b"\0")


@contextmanager
def naming_the_video() -> Iterator[None]:
    """
    Within it, or as a decorator, errors about loader processes say which video these were reading.

    Raises:
        ChildProcessError: a process was killed, or crashed.
        TimeoutError: no batch came for [`TIMEOUT`] seconds.
    """
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
        hung = {process: video for reading in _all for process, video in reading.hung.items()}
        if hung:
            _end_processes()
            raise TimeoutError(_hang(hung)) from error
        text = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and not text.startswith("DataLoader worker (pid"):
            raise
        if isinstance(error, RuntimeError):
            dead = {int(number) for number in re.findall(r"\d+", re.split("exited|is killed", text)[0])}
        else:  # the other end of a connection is gone
            dead = {process for reading in _all for process, video in reading.videos().items() if video}
            dead -= {child.pid for child in multiprocessing.active_children()}
            if not dead:
                raise
            text = f"Loader process (pid {', '.join(map(str, sorted(dead)))}) ended unexpectedly"
        raise ChildProcessError(_death(text, dead, _end_processes())) from error


def _hang(videos: dict[int, str]) -> str:
    reading = [f"process {process} was reading the video {video!r}" for process, video in videos.items() if video]
    return (
        f"No batch came from the loader processes for {TIMEOUT} seconds: "
        f"{'; '.join(reading) or 'none of them was reading a video'}. Leave that video out, or mend the disk it is on."
    )


def _death(text: str, dead: set[int], videos: dict[int, str]) -> str:
    reading = [repr(videos[process]) for process in sorted(dead) if videos.get(process)]
    while_reading = f", while it was reading {' and '.join(reading)}" if reading else ""
    cure = "take fewer loader processes" + ", or leave that video out" * bool(reading)
    return f"{text.rstrip('.')}{while_reading}. The system kills processes where memory runs out: {cure}."


def _end_processes() -> dict[int, str]:
    """Kills what is left of loader processes, as one that is stopped would be waited for; what they were reading."""
    videos = {process: video for reading in _all for process, video in reading.videos().items()}
    with children_may_die():
        for child in multiprocessing.active_children():
            if child.pid in videos:
                child.kill()
                child.join()
    for reading in _all:
        reading.hung = {}
        if reading.slots is not None:
            reading.slots.numpy()[:] = 0  # (by torch not outside of inference mode, where that made them)
    return videos


@contextmanager
def children_may_die() -> Iterator[None]:
    """Without the handler of PyTorch, which raises an error wherever the main thread is."""
    previous: Callable | int | None = None
    with suppress(ValueError, AttributeError):  # in another thread; on Windows
        previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        if previous is not None:
            signal.signal(signal.SIGCHLD, previous)

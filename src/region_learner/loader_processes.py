"""A DataLoader whose processes may be killed, stopped or hang: the video that was being read is named."""

import itertools
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

TIMEOUT = 1800  # seconds that a batch may take


def load_in_order(
    dataset: Any,
    batch_size: int,
    num_workers: int,
    name_of: Callable[[int], str],
    timeout: float = TIMEOUT,
) -> Iterator[list[Any]]:
    """
    Yields the items of a data set in order, as lists of `batch_size`.

    Args:
        num_workers: processes that read; with 0 this one does, without a limit of time.
        name_of: returns what to call an item in messages, from its index.
        timeout: seconds that a batch may take.

    Raises:
        ChildProcessError: a process was killed, crashed, or gave nothing in time; the message names the item that it
            was reading.
    """
    if not num_workers:
        yield from DataLoader(dataset, batch_size, collate_fn=list)
        return
    noted = _Noted(dataset, num_workers)
    loader = DataLoader(noted, batch_size, num_workers=num_workers, collate_fn=list, timeout=timeout)
    with _interrupts_afterwards():
        batches: Any = iter(loader)
    with _failures_wait_their_turn() as next_of:
        try:
            for number in itertools.count():
                try:
                    batch = next_of(batches)
                except StopIteration:
                    return
                except RuntimeError as error:
                    worker, what = _what_happened(str(error), batches, number, timeout)
                    if not what:
                        raise  # an error of the data set
                    at = -1 if worker is None else int(noted.current[worker])
                    raise ChildProcessError(
                        f"While {name_of(at) if at >= 0 else 'a video'} was being read, {what}. "
                        "`region-learner corpus check` finds videos that cannot be read."
                    ) from error
                yield batch
        finally:
            batches._shutdown_workers()  # while what it meets is still noted


def _what_happened(message: str, batches: Any, number: int, timeout: float) -> tuple[int | None, str]:
    """Which process failed, and how, from a message of PyTorch; "" where it is not about a process."""
    if message.startswith("DataLoader timed out"):
        worker = number % len(batches._workers)  # they take turns
        batches._workers[worker].kill()  # who was stopped does not end otherwise
        return worker, f"nothing came for {timeout:g} seconds: it hangs, or its process was stopped"
    if message.startswith("DataLoader worker"):
        pids = re.findall(r"\d+", message)
        ended = [i for i, process in enumerate(batches._workers) if str(process.pid) in pids]
        what = "its process was killed or crashed; if memory ran out, use fewer workers"
        return (ended[0] if ended else None), what
    return None, ""


class _Noted(Dataset):
    """A data set whose processes note which item each of them reads."""

    def __init__(self, dataset: Any, num_workers: int):
        self.dataset = dataset
        self.current = torch.full((num_workers,), -1).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        if worker is not None:
            self.current[worker.id] = index
        return self.dataset[index]


@contextmanager
def _interrupts_afterwards() -> Iterator[None]:
    """
    Ctrl-C goes to all processes. Those started here never see it, and this one, which ends them, does afterwards: in
    the midst of their start it would be lost.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    pending: list[bool] = []
    handler = signal.signal(signal.SIGINT, lambda *_: pending.append(True))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which the processes inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if pending:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _failures_wait_their_turn() -> Iterator[Callable[[Iterator[Any]], Any]]:
    """
    Gives a `next` that raises when a loader process has ended. PyTorch raises that from a signal handler, wherever the
    main thread is at the time, such as in a step of the model, from where no video can be named.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield next
        return
    handler: Any = signal.getsignal(signal.SIGCHLD)
    failures: list[RuntimeError] = []
    waiting = False

    def note(signal_number: int, frame: Any) -> None:
        try:
            if callable(handler):
                handler(signal_number, frame)
        except RuntimeError as error:
            if waiting:
                raise
            failures.append(error)

    def next_of(batches: Iterator[Any]) -> Any:
        nonlocal waiting
        waiting = True
        try:
            if failures:
                raise failures[0]
            return next(batches)
        finally:
            waiting = False

    signal.signal(signal.SIGCHLD, note)
    try:
        yield next_of
    finally:
        signal.signal(signal.SIGCHLD, handler)

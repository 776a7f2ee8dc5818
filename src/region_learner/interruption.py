"""Ends a command on Ctrl-C or SIGTERM, without a traceback and with a line that says how to continue."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible(how_to_continue: str | Callable[[], str]) -> Iterator[None]:
    """
    Prints how to continue and exits with status 130 on Ctrl-C, or 143 on SIGTERM, within this block. `finally` blocks
    run first. Does nothing outside of the main thread.

    Args:
        how_to_continue: a sentence, such as "Run the same command to start again.", or a function that returns it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interruption = _Interruption()
    try:
        yield
    except BaseException:
        if interruption.number is None:
            raise
        interruption.ignore_others()
        _kill_children()
        if int(os.environ.get("RANK", 0)) == 0:
            line_so_far = "\n" if sys.stderr.isatty() else ""  # "^C", and a progress bar
            text = how_to_continue if isinstance(how_to_continue, str) else how_to_continue()
            print(f"{line_so_far}region-learner: interrupted. {text}", file=sys.stderr, flush=True)
        sys.exit(128 + interruption.number)
    finally:
        interruption.restore()


class _Interruption:
    """Raises `KeyboardInterrupt` at the first signal, and again if Python dropped the exception."""

    def __init__(self):
        self.number: int | None = None  # of the first signal that was received
        self.handled = False
        self.process, self.main_thread = os.getpid(), threading.get_ident()
        self.previous_hook, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
        self.previous_handlers = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}

    def _on_signal(self, number: int, frame: object):
        if os.getpid() != self.process:  # forked from this one, such as loader processes
            os._exit(0)
        self.number = self.number or number
        raise KeyboardInterrupt

    def _on_unraisable(self, dropped: "sys.UnraisableHookArgs"):
        if self.number is None:
            self.previous_hook(dropped)
        elif issubclass(dropped.exc_type, KeyboardInterrupt):  # in a callback around a fork, or in `__del__`
            is_started = False
            while not is_started:
                with suppress(KeyboardInterrupt):  # from another signal: Python would drop it and print a traceback
                    threading.Timer(0.2, self._raise_again).start()
                    is_started = True

    def _raise_again(self):
        if self.number is not None and not self.handled and hasattr(signal, "pthread_kill"):
            signal.pthread_kill(self.main_thread, self.number)

    def ignore_others(self):
        self.handled = True
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def restore(self):
        if self.number is None:
            sys.unraisablehook = self.previous_hook
        for number, handler in self.previous_handlers.items():
            # After an interruption the process exits. Another signal ends it at once, without a message.
            signal.signal(number, handler if self.number is None else signal.SIG_DFL)


def _kill_children():
    """Kills child processes, including stopped ones, for which Python would wait."""
    with without_child_signals():
        for child in multiprocessing.active_children():
            child.kill()
            child.join()


@contextmanager
def without_child_signals() -> Iterator[None]:
    """Suspends PyTorch's SIGCHLD handler, which can raise an error anywhere in the main thread."""
    previous: Any = None
    with suppress(ValueError, AttributeError):  # in another thread; on Windows
        previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        if previous is not None:
            signal.signal(signal.SIGCHLD, previous)

"""The end of a training run by Ctrl-C or SIGTERM: soon, without a traceback, with a line that says how to go on."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def interruptible(output_dirs: Sequence[str]) -> Iterator[None]:
    """
    Exits with 130 (143 for SIGTERM) when the process is interrupted within it. Elsewhere than in the main thread it
    does nothing.

    Args:
        output_dirs: of the stages of the run; may be filled later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    main_thread = threading.get_ident()
    process, ended = os.getpid(), threading.Event()
    received: list[int] = []

    def insist():
        """An exception is lost where Python cannot raise it, as in what is called around a fork: again, then."""
        while not ended.wait(1):
            signal.pthread_kill(main_thread, received[0])

    def handler(number, frame):
        if os.getpid() != process:  # forked from this one, such as loader processes
            os._exit(0)
        if not received and hasattr(signal, "pthread_kill"):
            threading.Thread(target=insist, daemon=True).start()
        received.append(number)
        raise KeyboardInterrupt

    def unraisable(lost):
        if not received:  # else it is the interruption, or an object that was only half made because of it
            previous_hook(lost)

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous_hook, sys.unraisablehook = sys.unraisablehook, unraisable
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    except BaseException:
        if not received:
            raise
        ended.set()
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        _end(output_dirs)
        for number in numbers:  # what follows may be interrupted again, without any word
            signal.signal(number, signal.SIG_DFL)
        sys.exit(128 + received[0])
    finally:
        ended.set()
        if not received:
            sys.unraisablehook = previous_hook
            for number, handled in previous.items():
                signal.signal(number, handled)


def _end(output_dirs: Sequence[str]):
    from .training.reading import children_may_die

    with children_may_die():
        for child in multiprocessing.active_children():
            child.kill()  # also where it is stopped
            child.join()
    if int(os.environ.get("RANK", 0)) == 0:
        line_so_far = "\n" if sys.stderr.isatty() else ""  # "^C", and a bar
        print(f"{line_so_far}region-learner: interrupted. {how_to_go_on(output_dirs)}", file=sys.stderr, flush=True)


def how_to_go_on(output_dirs: Sequence[str]) -> str:
    """What to do after a run in `output_dirs`, one for each of its stages, was interrupted."""
    from .training.checkpoints import last_complete

    for directory in reversed(output_dirs):
        checkpoint, _ = last_complete(directory, contents=False)
        if checkpoint is not None:
            return (
                "Resume with the same command and --resume_from_checkpoint true: what was trained after "
                f"{checkpoint} is trained again."
            )
    if len(output_dirs) > 1 and (Path(output_dirs[0]) / "results.json").is_file():
        return (
            "Resume with the same command and --resume_from_checkpoint true: stages that have finished are not "
            "trained again."
        )
    return "No checkpoint has been saved (--save_strategy, --save_steps): the same command starts from the beginning."

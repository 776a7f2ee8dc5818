"""One process at a time."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """
    Waits until no other process is in such a block with the same `path`, a file that is there for as long as one is.
    A process that is killed lets the others go on.
    """
    try:
        import fcntl
    except ImportError:  # Windows, where the file cannot be removed while another process waits
        from huggingface_hub.utils import WeakFileLock

        with WeakFileLock(path):
            yield
        return
    while True:
        with open(path, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                logger.warning("%s cannot be locked (%s): start no other run that writes the same.", path, error)
            if not _is_at(path, file.fileno()):
                continue  # the one before removed it, and others wait at a new one
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False

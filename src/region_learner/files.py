"""Atomic writes, indexes of weights, and locks that keep two runs from writing to the same place."""

import errno
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

logger = logging.getLogger(__name__)


def partial_of(path: Path) -> Path:
    """Returns the path of the temporary file that `write_text` renames to `path`."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Adds the path to write errors that do not name it, such as those of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, os.fspath(partial_of(Path(path)))):
            error.filename = os.fspath(path)
        raise
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def near_file(path: str | os.PathLike) -> str:
    """Returns the hint of `did_you_mean` for the names in the same directory."""
    from .configuration_region_learner import did_you_mean  # imports transformers, which takes seconds

    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(Path(path).parent)
    return did_you_mean(Path(path).name, names)


def readable(path: str) -> str:
    """
    Returns a path or another text with escapes in place of characters that are not printable, which could control the
    terminal, or that UTF-8 cannot encode.
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in path)


def shards_of(index: Path) -> set[str]:
    """
    Returns the names of the files in an index of weights, such as model.safetensors.index.json.

    Raises:
        ValueError: it is not such an index.
    """
    try:
        files = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        files = set()
    if not files or not all(isinstance(file, str) for file in files):
        raise ValueError(
            f"{index} does not name the files of the weights (in 'weight_map'): copy or download it again, or save "
            "the model again with save_pretrained."
        )
    return files


def write_text(path: Path, text: str) -> None:
    """
    Writes a file atomically: readers find the old content or all of `text`, even after a power failure. Characters
    that UTF-8 cannot encode, such as parts of file names, are written as escapes.

    Raises:
        OSError: the file cannot be written, for example because the disk is full; the message names `path`.
    """
    partial = partial_of(path)
    try:
        with naming(path):
            with open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Flushes the names in `directory` to the disk, where the file system can do that for directories."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flushes a file to the disk. Raises the `OSError` of `sync_tree`."""
    # Opened for writing only where fsync needs that, as some files are read-only.
    with naming(path), open(path, "rb+" if os.name == "nt" else "rb") as file:
        os.fsync(file.fileno())


def sync_tree(directory: Path) -> None:
    """
    Flushes all files under `directory` to the disk.

    Raises:
        OSError: a file could not be written after all; the message names it.
    """
    for path in sorted(directory.rglob("*")):
        (sync_directory if path.is_dir() else sync_file)(path)
    sync_directory(directory)
    sync_directory(directory.parent)


def write_json(path: Path, content: Any, indent: int = 1) -> None:
    """Writes `content` as JSON, atomically."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


# Errors of file systems without locks, such as some network disks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def locked(directory: Path, name: str = ".lock", wait: bool = False) -> Iterator[None]:
    """
    Keeps other processes out of blocks with the same lock file. The system releases the lock when the process ends,
    for whatever reason. If the file system does not support locks, nothing is locked and a warning is logged.

    Args:
        name: name of the lock file in `directory`. It is not removed, as this could let two waiting processes in.
        wait: whether to wait for the process that holds the lock, instead of raising an error.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    lock = FileLock(directory / name)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if not wait:
            raise BlockingIOError(
                f"{directory} is being written to by another run: wait for it, or stop it."
            ) from None
        logger.info("Waiting for another process that holds %s.", directory / name)
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning(
            "%s cannot be locked (%s): do not start another run that writes there.", directory / name, error
        )
    try:
        yield
    finally:
        lock.release()

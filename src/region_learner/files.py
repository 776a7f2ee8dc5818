"""Atomic writes, and directories that one run writes to at a time."""

import difflib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

logger = logging.getLogger(__name__)


def partial_of(path: Path) -> Path:
    """Returns the path of the temporary file that [`write_text`] renames to `path`."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Adds the path to errors of writing that do not have it, such as those of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, os.fspath(partial_of(Path(path)))):
            error.filename = os.fspath(path)
        raise
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def near_file(path: str | os.PathLike) -> str:
    """Returns `"; did you mean 'x'?"` with the nearest name in the same directory, or "" if none is near."""
    path = Path(path)
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {str(path.with_name(near[0]))!r}?" if near else ""


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


def sync_tree(directory: Path) -> None:
    """
    Flushes all files under `directory` to the disk.

    Raises:
        OSError: a file could not be written after all; the message names it.
    """
    for path in sorted(directory.rglob("*")):
        if path.is_dir():
            sync_directory(path)
            continue
        # Opened for writing only where fsync needs that, as some files are read-only.
        with naming(path), open(path, "rb+" if os.name == "nt" else "rb") as file:
            os.fsync(file.fileno())
    sync_directory(directory)
    sync_directory(directory.parent)


def write_json(path: Path, content: Any, indent: int = 1) -> None:
    """Writes `content` as JSON, atomically."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """
    Two runs at once would write the same files. (The lock goes with its process, however that ends.) Where there are
    no locks, as on Windows and some shared disks, nothing is locked.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(directory / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"{directory} is being written to by another run: wait for it, or stop it."
            ) from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): start no other run on it.", directory, error)
        yield


# In checkpoints of version 0.1: what PEFT does not save, beside adapters in the checkpoint itself.
BESIDE_ADAPTERS = "beside_adapters.safetensors"


def refuse_bare_adapters(name: str) -> None:
    """
    Raises:
        ValueError: `name` is a directory of adapters without their model, or a checkpoint of adapters of version 0.1,
            of which other code would load a part only.
    """
    if (Path(name) / BESIDE_ADAPTERS).is_file():
        raise ValueError(
            f"{name} is a checkpoint of adapters of version 0.1, which only its own run can load: finish that run "
            "with --resume-from-checkpoint, and use the model in its output_dir."
        )
    if (Path(name) / "adapter_config.json").is_file() and not (Path(name) / "config.json").is_file():
        raise ValueError(
            f"{name} holds adapters alone. Give the checkpoint that they are in, {Path(name).parent}: it has the "
            "whole model, with the adapters merged into it."
        )

"""Files that are whole or not there, and directories that one run writes to."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def partial_of(path: Path) -> Path:
    """Where [`write_text`] writes before `path` is what was written."""
    return path.with_name(f".{path.name}.partial")


def write_text(path: Path, text: str) -> None:
    """
    Writes beside `path` and moves it there: who reads it finds what was there before, or all of `text`. What UTF-8
    cannot hold, such as parts of names of files, is written as escapes.
    """
    partial = partial_of(path)
    try:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any, indent: int = 1) -> None:
    """`content` as JSON, by [`write_text`]."""
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


# Of checkpoints of earlier versions: what PEFT did not save, beside adapters that lay in the checkpoint itself.
BESIDE_ADAPTERS = "beside_adapters.safetensors"


def refuse_bare_adapters(name: str) -> None:
    """
    Raises:
        ValueError: `name` is a checkpoint of adapters of an earlier version, of which others load a part.
    """
    if (Path(name) / BESIDE_ADAPTERS).is_file():
        raise ValueError(
            f"{name} is a checkpoint of adapters of an earlier version, which only its own run can load whole: go on "
            "with --resume_from_checkpoint, and take the model in the run's output_dir."
        )

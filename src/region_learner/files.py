"""Files that are whole or not there, and directories that one run writes to."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Writes beside `path` and moves it there: who reads it finds what was there before, or all of `text`."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path, content: Any, indent: int = 1) -> None:
    """`content` as JSON, by [`write_text`]."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """
    Two runs at once would write the same files. (The lock goes with its process, however that ends.)

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
        except OSError:
            raise BlockingIOError(
                f"{directory} is being written to by another run: wait for it, or stop it."
            ) from None
        yield

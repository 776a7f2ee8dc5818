"""Distinguishes user errors from bugs in this package, and formats errors as the single line that is printed."""

import errno
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = str(Path(__file__).parent)
# The cause of these errors is always outside of this package: files, memory, installed packages or values.
_NEVER_BUGS = (OSError, ImportError, MemoryError)
# The same for errors of libraries that some commands do not import: (module, class).
_NEVER_BUGS_OF_LIBRARIES = (
    ("torch", "OutOfMemoryError"),
    ("datasets.exceptions", "DatasetsError"),
    ("huggingface_hub.errors", "StrictDataclassError"),
    ("safetensors", "SafetensorError"),
)
# Libraries that raise a RuntimeError for input that does not fit.
_STRICT_LIBRARIES = ("accelerate/", "datasets/", "huggingface_hub/", "peft/", "timm/", "transformers/")


def is_for_user(error: Exception) -> bool:
    """
    Returns whether the user's input can be the cause of an error. This includes a `ValueError` that a library raises,
    or that this package raises with a `raise` statement, but not one from a bug, such as `int("x")`.
    """
    if isinstance(error, _NEVER_BUGS) or _is_of_library(error):
        return True
    file, _, line = _origin(error)
    if isinstance(error, ValueError):
        return not file.startswith(_PACKAGE) or not line or line.startswith("raise")
    return type(error) is RuntimeError and line.startswith("raise") and _shown(file).startswith(_STRICT_LIBRARIES)


def in_one_line(error: Exception) -> str:
    """
    Returns the message of an error in one line. If a library raised it, the file and line are added, as the message
    alone may not explain enough.
    """
    message = str(error)
    if message.startswith("Caught "):  # in a loader process: PyTorch puts the whole traceback before the message
        message = message.rpartition(f"{type(error).__name__}: ")[2]
    message = " ".join(message.split()) or type(error).__name__
    if isinstance(error, MemoryError) or _is_of_library(error, "OutOfMemoryError"):
        return f"out of memory: use smaller batches, fewer frames or fewer processes. ({message})"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: {message}"
    file, number, _ = _origin(error)
    of_package = file.startswith(_PACKAGE) or type(error).__module__.startswith(f"{__package__}.")
    if isinstance(error, OSError | ImportError) or not file or of_package:
        return message
    return f"{message} (from {_shown(file)}:{number}; REGION_LEARNER_DEBUG=1 shows more)"


def install_hint(extra: str) -> str:
    """
    Returns the command that installs an extra of this package, for messages about packages that are not installed.

    Example:

    ```python
    >>> install_hint("app")
    "pip install 'region-learner[app]' (in a clone: pip install '.[app]')"
    ```
    """
    return f"pip install 'region-learner[{extra}]' (in a clone: pip install '.[{extra}]')"


def nearest_or_all(name: str, known: Iterable[str]) -> str:
    """Returns the end of a message about an unknown `name`: the nearest known one, or all if none is near."""
    from .configuration_region_learner import did_you_mean

    known = list(known)
    hint = did_you_mean(name, known)
    return f"; choose one of {', '.join(known)}." if hint == "." else hint


def _is_of_library(error: Exception, only: str | None = None) -> bool:
    for module, name in _NEVER_BUGS_OF_LIBRARIES:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind) and only in (None, name):
            return True
    return False


def _origin(error: Exception) -> tuple[str, int, str]:
    """Returns the file, line number and line that raised an error, in this process or in a loader process."""
    if str(error).startswith("Caught "):
        frames = re.findall(r'File "(.+)", line (\d+), in .+\n +(.+)', str(error))
        return (frames[-1][0], int(frames[-1][1]), frames[-1][2]) if frames else ("", 0, "")
    frames = traceback.extract_tb(error.__traceback__)
    return (frames[-1].filename, frames[-1].lineno or 0, frames[-1].line or "") if frames else ("", 0, "")


def _shown(file: str) -> str:
    """Returns the path of a file within its installed package, such as torch/nn/functional.py, or its name."""
    _, installed, rest = Path(file).as_posix().rpartition("/site-packages/")
    return rest if installed else Path(file).name

"""Which errors are the user's to mend, and the one line in which the command line tells them."""

import errno
import re
import sys
import traceback
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

_PACKAGE = str(Path(__file__).parent)
# Whatever raised these, files, memory, installed packages or values that were given are at fault.
_ALWAYS = (OSError, ImportError, MemoryError, StrictDataclassError, SafetensorError)
# As above, of libraries that are only imported for some commands: (module, class).
_ALWAYS_OF = (("torch", "OutOfMemoryError"), ("datasets.exceptions", "DatasetsError"))
# Libraries that say in a RuntimeError that what they were given does not fit.
_STRICT_LIBRARIES = ("accelerate/", "datasets/", "huggingface_hub/", "peft/", "timm/", "transformers/")


def is_for_user(error: Exception) -> bool:
    """
    Whether what the user gave can be the cause. A ValueError is taken for it where this package raised it on purpose,
    or a library did, but not where a mistake of this package's own code ended in one, as `int("x")` would.
    """
    if isinstance(error, _ALWAYS) or _is_of_library(error):
        return True
    file, _, line = _origin(error)
    if isinstance(error, ValueError):
        return not file.startswith(_PACKAGE) or not line or line.startswith("raise")
    return type(error) is RuntimeError and line.startswith("raise") and _shown(file).startswith(_STRICT_LIBRARIES)


def in_one_line(error: Exception) -> str:
    """What is wrong. Of a ValueError that a library raised, also where, as its words may tell too little."""
    message = str(error)
    if message.startswith("Caught "):  # in a loader's process: PyTorch puts all of its traceback before the words
        message = message.rpartition(f"{type(error).__name__}: ")[2]
    message = " ".join(message.split()) or type(error).__name__
    if isinstance(error, MemoryError) or _is_of_library(error, "OutOfMemoryError"):
        return f"out of memory: take smaller batches, fewer frames or fewer processes. ({message})"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: {message}"
    file, number, _ = _origin(error)
    of_package = file.startswith(_PACKAGE) or type(error).__module__.startswith(f"{__package__}.")
    if isinstance(error, OSError | ImportError) or not file or of_package:
        return message
    return f"{message} (from {_shown(file)}:{number}; REGION_LEARNER_DEBUG=1 shows more)"


def _is_of_library(error: Exception, only: str | None = None) -> bool:
    for module, name in _ALWAYS_OF:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind) and only in (None, name):
            return True
    return False


def _origin(error: Exception) -> tuple[str, int, str]:
    """File, line number and line where an error was raised, in this process or in that of a loader."""
    if str(error).startswith("Caught "):
        frames = re.findall(r'File "(.+)", line (\d+), in .+\n +(.+)', str(error))
        return (frames[-1][0], int(frames[-1][1]), frames[-1][2]) if frames else ("", 0, "")
    frames = traceback.extract_tb(error.__traceback__)
    return (frames[-1].filename, frames[-1].lineno or 0, frames[-1].line or "") if frames else ("", 0, "")


def _shown(file: str) -> str:
    """A file of an installed package from the package on, such as torch/nn/functional.py; others by their name."""
    _, installed, rest = Path(file).as_posix().rpartition("/site-packages/")
    return rest if installed else Path(file).name

"""Checkpoints that are known to be complete: written last is a file with the sizes and checksums of all others."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers.trainer_utils import sort_checkpoints
from transformers.utils import SAFE_WEIGHTS_NAME

from ..files import partial_of, sync_directory, sync_tree, write_json
from ..loading import is_lfs_pointer

# Written last into a checkpoint: one without it was cut off by the end of the process.
COMPLETE = "complete.json"

# That of `enable_jit_checkpoint`, which removes it after the checkpoint is complete.
_JIT_MARK = "checkpoint-is-incomplete.txt"


def mark_complete(checkpoint: Path, step: int) -> None:
    """Writes [`COMPLETE`], once all other files of `checkpoint` are on the disk."""
    sync_tree(checkpoint)
    sizes, digests = {}, {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and path.name != _JIT_MARK:
            name = str(path.relative_to(checkpoint))
            sizes[name], digests[name] = path.stat().st_size, _sha256(path)
    write_json(checkpoint / COMPLETE, {"step": step, "files": sizes, "sha256": digests})


def incompleteness(checkpoint: str | os.PathLike[str], contents: bool = True) -> str | None:
    """
    What a checkpoint of [`RegionLearnerTrainer`] lacks, in words; None if it is whole.

    Args:
        checkpoint: its directory.
        contents: also read its files, and compare them with their checksums. (Checkpoints of version 0.1 have none.)
    """
    folder = Path(checkpoint)
    try:
        saved = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        sizes, digests = dict(saved["files"]), dict(saved.get("sha256", {}))
    except FileNotFoundError:
        return f"it has no {COMPLETE}, so that saving it was interrupted"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its {COMPLETE} is damaged"
    for name, size in sizes.items():
        path = folder / name
        try:
            if is_lfs_pointer(path):
                return f"its file {name} is a pointer of Git LFS: run `git lfs pull`"
            if not path.is_file() or path.stat().st_size != size:
                return f"its file {name} is missing or has another size than it was saved with"
            if contents and name in digests and _sha256(path) != digests[name]:
                return f"its file {name} is damaged: it does not hold what was saved"
        except OSError as error:
            return f"its file {name} cannot be read ({error.strerror})"
    return None


def last_complete(output_dir: str | os.PathLike[str], contents: bool = True) -> tuple[str | None, dict[str, str]]:
    """
    The complete checkpoint of the highest step in `output_dir`; and what those of higher steps lack, by path.
    `contents` as in [`incompleteness`].
    """
    found = sort_checkpoints(str(output_dir)) if os.path.isdir(output_dir) else []
    problems: dict[str, str] = {}
    for path in sorted(found, key=lambda path: int(path.rsplit("-", 1)[1]), reverse=True):
        if (problem := incompleteness(path, contents)) is None:
            return path, problems
        problems[path] = problem
    return None, problems


def described(output_dir: str | os.PathLike[str]) -> str:
    """Where a run in `output_dir` can go on from, in a sentence."""
    checkpoint, _ = last_complete(output_dir)
    return "No checkpoint has been saved." if checkpoint is None else f"The last complete checkpoint is {checkpoint}."


# Weights of a model, whole or in parts.
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


@contextmanager
def moved_when_whole(target: Path) -> Iterator[Path]:
    """A directory for a model that is to lie in `target`, which has all files of the one before until all are new."""
    folder = partial_of(target / "model")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with saving(folder, target, target):
            yield folder
            sync_tree(folder)
        written = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        for path in sorted(written):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).replace(target / path)
        if any(_WEIGHTS.fullmatch(path.name) for path in written):
            for path in target.iterdir():
                if _WEIGHTS.fullmatch(path.name) and Path(path.name) not in written:  # those before had other parts
                    path.unlink()
        sync_directory(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def saving(
    folder: Path,
    output_dir: Path,
    target: Path | None = None,
    remove: bool = True,
) -> Iterator[None]:
    """
    Says in one line that writing the files of `folder` failed, as on a full disk.

    Args:
        folder: a directory.
        output_dir: of the run.
        target: where the files will be moved to.
        remove: whether to remove `folder` then. What is cut off would take the room that the next attempt needs.

    Raises:
        OSError: naming the file, and where the run can go on from.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if (reason := _write_failure(error, folder)) is None:
            raise
        if isinstance(error, SafetensorError):
            file = folder / SAFE_WEIGHTS_NAME  # which safetensors does not name
        else:
            file = Path(getattr(error, "filename", None) or _written_last(folder) or folder)
        if target is not None and file.is_relative_to(folder):
            file = target / file.relative_to(folder)
        if remove:
            shutil.rmtree(folder, ignore_errors=True)
        cure = "Make room" if re.search("space|quota", reason) else "Mend that"
        raise OSError(
            f"{file} could not be written: {reason}. {cure}, and resume with --resume_from_checkpoint true. "
            f"{described(output_dir)}"
        ) from error


def _write_failure(error: Exception, folder: Path) -> str | None:
    """Why a file could not be written, if that is what `error` says."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and "inline_container" not in text:  # other than from torch.save
        return None
    # Neither torch.save nor safetensors have the error of the system as such.
    if "No space left" in text or shutil.disk_usage(folder if folder.is_dir() else folder.parent).free < 2**20:
        return "No space left on device"
    return text


def _written_last(folder: Path) -> Path | None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_mtime_ns, default=None)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

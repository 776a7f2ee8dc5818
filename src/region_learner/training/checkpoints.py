"""
Writes complete checkpoints and resumes from them. The last file to be written records the sizes and checksums of all
others.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from transformers.training_args import OptimizerNames
from transformers.utils import SAFE_WEIGHTS_NAME

from ..files import partial_of, sync_directory, sync_tree, write_json
from ..loading import is_lfs_pointer
from .data import CorpusPart
from .training_arguments import RegionLearnerTrainingArguments

logger = logging.getLogger(__name__)

# The last file that is written into a checkpoint. If it is missing, saving was interrupted.
COMPLETE = "complete.json"

# The marker of `enable_jit_checkpoint`, which is removed when the checkpoint is complete.
_JIT_MARK = "checkpoint-is-incomplete.txt"


# Writing


def mark_complete(checkpoint: Path, step: int) -> None:
    """Writes [`COMPLETE`] once all other files of `checkpoint` are on disk."""
    sync_tree(checkpoint)
    sizes, digests = {}, {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and path.name != _JIT_MARK:
            name = str(path.relative_to(checkpoint))
            sizes[name], digests[name] = path.stat().st_size, _sha256(path)
    write_json(checkpoint / COMPLETE, {"step": step, "files": sizes, "sha256": digests})


# Weights of a model, in one file or several.
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


@contextmanager
def moved_when_complete(target: Path) -> Iterator[Path]:
    """
    Yields a directory to save a model in, and moves its files to `target` afterwards. Until then, `target` keeps all
    files of the earlier model.
    """
    folder = partial_of(target / "model")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with naming_write_failures(folder, target, target):
            yield folder
            sync_tree(folder)
        written = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        for path in sorted(written):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).replace(target / path)
        if any(_WEIGHTS.fullmatch(path.name) for path in written):
            for path in target.iterdir():
                if _WEIGHTS.fullmatch(path.name) and Path(path.name) not in written:  # shards of the earlier model
                    path.unlink()
        sync_directory(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def naming_write_failures(
    folder: Path,
    output_dir: Path,
    target: Path | None = None,
    remove: bool = True,
) -> Iterator[None]:
    """
    Within this block, errors while writing to `folder`, such as a full disk, become an error of one line.

    Args:
        folder: a directory.
        output_dir: directory of the run.
        target: directory that the files will be moved to.
        remove: whether to remove `folder` after an error, because it takes up the space that the next attempt needs.

    Raises:
        OSError: the message names the file, and the checkpoint to resume from.
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
        cure = "Free some space" if re.search("space|quota", reason) else "Fix this"
        raise OSError(
            f"{file} could not be written: {reason}. {cure}, and resume with --resume-from-checkpoint true. "
            f"{described(output_dir)}"
        ) from error


def _write_failure(error: Exception, folder: Path) -> str | None:
    """Returns why a file could not be written, or None if `error` has another cause."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and "inline_container" not in text:  # not from torch.save
        return None
    # Neither torch.save nor safetensors forwards the error of the operating system.
    if "No space left" in text or shutil.disk_usage(folder if folder.is_dir() else folder.parent).free < 2**20:
        return "No space left on device"
    return text


def _written_last(folder: Path) -> Path | None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_mtime_ns, default=None)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Reading


def incompleteness(checkpoint: str | os.PathLike[str], contents: bool = True) -> str | None:
    """
    Returns a description of what is wrong with a checkpoint of [`RegionLearnerTrainer`], or None if it is complete.

    Args:
        checkpoint: directory of the checkpoint.
        contents: whether to also compare its files with their checksums. (Checkpoints of version 0.1 have none.)
    """
    folder = Path(checkpoint)
    try:
        saved = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        sizes, digests = dict(saved["files"]), dict(saved.get("sha256", {}))
    except FileNotFoundError:
        return f"it has no {COMPLETE} because saving it was interrupted"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its {COMPLETE} is damaged"
    for name, size in sizes.items():
        path = folder / name
        try:
            if is_lfs_pointer(path):
                return f"its file {name} is a pointer of Git LFS: run `git lfs pull`"
            if not path.is_file() or path.stat().st_size != size:
                return f"its file {name} is missing or does not have the size that was saved"
            if contents and name in digests and _sha256(path) != digests[name]:
                return f"its file {name} is damaged: its content is not what was saved"
        except OSError as error:
            return f"its file {name} cannot be read ({error.strerror})"
    return None


def last_complete(output_dir: str | os.PathLike[str], contents: bool = True) -> tuple[str | None, dict[str, str]]:
    """
    Returns the complete checkpoint with the highest step in `output_dir`, and what is wrong with each checkpoint of a
    higher step, by path. `contents` is as in [`incompleteness`].
    """
    problems: dict[str, str] = {}
    for path in reversed(checkpoints_in(Path(output_dir))):
        if (problem := incompleteness(path, contents)) is None:
            return str(path), problems
        problems[str(path)] = problem
    return None, problems


def checkpoints_in(output_dir: Path) -> list[Path]:
    """Returns the checkpoints that a run has written, by their steps, without copies such as "checkpoint-100-best"."""
    found = (path for path in output_dir.glob("checkpoint-*") if path.is_dir())
    own = [path for path in found if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(own, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def described(output_dir: str | os.PathLike[str]) -> str:
    """Returns a sentence that names the checkpoint from which a run in `output_dir` can resume."""
    checkpoint, _ = last_complete(output_dir)
    return "No checkpoint has been saved." if checkpoint is None else f"The last complete checkpoint is {checkpoint}."


def how_to_resume(output_dirs: Sequence[str]) -> str:
    """Returns a sentence that says how to resume an interrupted run, whose stages are in `output_dirs`."""
    for directory in reversed(output_dirs):
        checkpoint, _ = last_complete(directory, contents=False)
        if checkpoint is not None:
            return (
                "Resume with the same command and --resume-from-checkpoint true: training continues from "
                f"{checkpoint}."
            )
    if len(output_dirs) > 1 and (Path(output_dirs[0]) / "results.json").is_file():
        return (
            "Resume with the same command and --resume-from-checkpoint true: stages that have finished are not "
            "trained again."
        )
    return "No checkpoint has been saved (--save-strategy, --save-steps): the same command starts from the beginning."


def checkpoint_to_resume(args: RegionLearnerTrainingArguments, resume: str | bool | None) -> str | None:
    """
    Returns the checkpoint to resume from, which is the same in all processes; None to start from the beginning.

    Args:
        args: arguments of the run.
        resume: a checkpoint, or True for the last complete one in `output_dir`, if there is one.

    Raises:
        ValueError: the checkpoint does not exist, is incomplete, or is not visible to all processes.
    """
    if resume is None or resume is False:
        return None
    if args.world_size == 1:
        return _choose_checkpoint(str(args.output_dir), resume)
    # The first process chooses for all; its error is raised in every process.
    chosen: list[Any] = [None, None]
    if args.process_index == 0:
        try:
            chosen[0] = _choose_checkpoint(str(args.output_dir), resume)
        except ValueError as error:
            chosen[1] = str(error)
    broadcast_object_list(chosen)
    if chosen[1] is not None:
        raise ValueError(chosen[1])
    is_seen = chosen[0] is None or incompleteness(chosen[0], contents=False) is None
    lacking = [process for process, seen in enumerate(gather_object([is_seen])) if not seen]
    if lacking:
        raise ValueError(
            f"Processes {lacking} do not see all files of {chosen[0]}: output_dir must be on a disk that all machines "
            "share."
        )
    return chosen[0]


def _choose_checkpoint(output_dir: str, resume: str | bool) -> str | None:
    if resume is True:
        last, problems = last_complete(output_dir)
        for path, problem in problems.items():
            logger.warning("Skipping %s: %s.", path, problem)
        if last is None:
            logger.warning("%s has no complete checkpoint: training starts from the beginning.", output_dir)
            return None
        checkpoint = last
    else:
        checkpoint = str(resume)
        if not os.path.isdir(checkpoint):
            raise ValueError(f"The checkpoint {checkpoint} does not exist.")
        if (fault := incompleteness(checkpoint)) is not None:
            raise ValueError(
                f"{checkpoint} cannot be resumed from: {fault}. `--resume-from-checkpoint true` uses the last "
                "complete one."
            )
    # FSDP writes a directory optimizer_0. DeepSpeed writes another one, which the file `latest` names.
    if not any(Path(checkpoint).glob("optimizer*")) and not (Path(checkpoint) / "latest").is_file():
        raise ValueError(
            f"{checkpoint} cannot be resumed from: it was saved with save_only_model, without optimizer and schedule. "
            f"To start a new run from its weights, use --model {checkpoint} and another --output-dir."
        )
    return checkpoint


# Settings that must not change on resume

_DATA_ORDER = "data_order.json"
_FIRST_STEP = "first step"
_OPTIMIZATION = "optimization.json"
_STREAM = "stream.json"  # the data order of streams, in checkpoints of version 0.1


def data_order(parts: Sequence[CorpusPart], args: RegionLearnerTrainingArguments) -> dict[str, Any]:
    """
    Returns the settings that determine the order of the training data. Without streams, the order does not depend on
    how processes share a batch.
    """
    settings: dict[str, Any] = {
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "seed": args.seed if args.data_seed is None else args.data_seed,
        "mix": args.mix,
        "weights": [part.weight for part in parts],
        "streaming": [part.streamed for part in parts],
        "rows": [None if part.streamed else len(part.dataset) for part in parts],
        "video ids (a digest)": [_digest_of_ids(part) for part in parts],
    }
    if any(part.streamed for part in parts):
        return settings | {
            "processes": args.world_size,
            "dataloader_num_workers": args.dataloader_num_workers,
            "batch_sizes": [part.batch_size for part in parts],
            "shuffle_buffers": [part.shuffle_buffer for part in parts],
            "shards": [getattr(part.dataset, "num_shards", None) for part in parts],
        }
    return settings | {
        "batch size times processes": [part.batch_size * args.world_size for part in parts],
        "samples_per_epoch": args.samples_per_epoch,
        "dataloader_drop_last": args.dataloader_drop_last,
    }


def _digest_of_ids(part: CorpusPart) -> str | None:
    """Returns a digest of 16 ids, which distinguishes corpora of the same length. (The ids may be private.)"""
    dataset: Any = part.dataset
    if part.streamed:
        return None
    if hasattr(dataset, "select_columns") and "video_id" in dataset.column_names:
        dataset = dataset.select_columns("video_id")
    elif not isinstance(dataset, list | tuple):  # whose rows may be slow to read
        return None
    last = len(dataset) - 1
    rows = [dataset[last * number // 15] for number in range(16)]
    if not all(isinstance(row, Mapping) and "video_id" in row for row in rows):  # of a custom data collator
        return None
    ids = [str(row["video_id"]) for row in rows]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:8]


def optimization(model: torch.nn.Module, args: RegionLearnerTrainingArguments) -> dict[str, Any]:
    """Returns the settings of the optimizer. A resumed run uses those of the checkpoint, not the arguments."""
    names = (
        "optim", "optim_args", "learning_rate", "video_learning_rate", "text_learning_rate", "layer_decay",
        "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    )  # fmt: skip
    settings = {name: getattr(args, name) for name in names} | {"optim": str(OptimizerNames(args.optim).value)}
    trainable = {name: one.numel() for name, one in model.named_parameters() if one.requires_grad}
    return settings | {
        "trainable parameters": sum(trainable.values()),
        "their names (a digest)": hashlib.sha256(json.dumps(sorted(trainable)).encode()).hexdigest()[:8],
    }


def write_settings(
    checkpoint: Path, order: dict[str, Any], optimizer: dict[str, Any], first_data_step: int = 0
) -> None:
    """
    Writes the settings from [`data_order`] and [`optimization`] into a checkpoint, with the step at which the data was
    at its beginning, which is not 0 after `ignore_data_skip`.
    """
    for name, settings in ((_DATA_ORDER, order | {_FIRST_STEP: first_data_step}), (_OPTIMIZATION, optimizer)):
        (checkpoint / name).write_text(json.dumps(settings), encoding="utf-8")


def first_data_step(checkpoint: Path) -> int:
    """Returns the step at which the data was at its beginning; see [`write_settings`]."""
    record = checkpoint / _DATA_ORDER
    return json.loads(record.read_text(encoding="utf-8")).get(_FIRST_STEP, 0) if record.is_file() else 0


def check_data_order(checkpoint: Path, now: dict[str, Any]) -> None:
    """
    Checks that a checkpoint was trained with the current order of the data.

    Raises:
        ValueError: the checkpoint was trained with other data settings. Settings that it does not record are ignored.
    """
    record = checkpoint / _DATA_ORDER
    if changed := _changed(record if record.is_file() else checkpoint / _STREAM, now):
        raise ValueError(
            f"{checkpoint} was trained with {', '.join(changed)}: with other settings, rows would be repeated or left "
            "out. Use the same settings, or restart the data from its beginning with --ignore-data-skip true."
        )


def check_optimization(checkpoint: Path, now: dict[str, Any]) -> None:
    """
    Checks that the optimizer of a checkpoint has the current settings.

    Raises:
        ValueError: the optimizer of the checkpoint has other settings, or other parameters.
    """
    if changed := _changed(checkpoint / _OPTIMIZATION, now):
        raise ValueError(
            f"{checkpoint} has the optimizer of a run with {', '.join(changed)}, and resuming continues with it. Use "
            f"the same settings, or start a new run from its weights: --model {checkpoint} and another --output-dir."
        )


def _changed(record: Path, now: dict[str, Any]) -> list[str]:
    """Returns descriptions of the settings that differ from a record."""
    before = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    return [
        f"{name} {_in_words(before[name])} (now {_in_words(value)})"
        for name, value in now.items()
        if before.get(name, value) != value
    ]


def _in_words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

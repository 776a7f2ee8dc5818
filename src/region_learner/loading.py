"""Loads models and processors from checkpoints, with one-line errors for those that are damaged or do not fit."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModel,
    AutoModelForVideoClassification,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    AutoVideoProcessor,
    PreTrainedConfig,
)
from transformers.utils import cached_file

from .corpora.videos import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from .files import near_file, shards_of
from .text_tower import check_text_tower

# The files that `from_pretrained` of models, processors and tokenizers reads.
_READ = re.compile(
    r".*\.safetensors|pytorch_model.*\.bin|.*\.index\.json|(.*_)?config\.json|tokenizer.*\.json|vocab\.(json|txt)"
    r"|special_tokens_map\.json|added_tokens\.json|merges\.txt|.*\.model"
)

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

# In checkpoints of version 0.1, which contained adapters without their model: the weights that PEFT does not save.
BESIDE_ADAPTERS = "beside_adapters.safetensors"


def refuse_bare_adapters(name: str) -> None:
    """
    Refuses directories that `from_pretrained` would load only partially.

    Args:
        name: a directory or Hub name.

    Raises:
        ValueError: `name` is a directory of adapters without their model, or a checkpoint of adapters of version 0.1.
    """
    if (Path(name) / BESIDE_ADAPTERS).is_file():
        raise ValueError(
            f"{name} is an adapter checkpoint of version 0.1, which only its own training run can load: finish that "
            "run with --resume-from-checkpoint, and use the model in its output_dir."
        )
    if (Path(name) / "adapter_config.json").is_file() and not (Path(name) / "config.json").is_file():
        raise ValueError(
            f"{name} contains only adapters: use the checkpoint that they belong to, {Path(name).parent}, which has "
            "the whole model with the adapters merged."
        )


def check_files(name: str | Path) -> None:
    """
    Checks the files of a checkpoint, without reading the weights.

    Args:
        name: a directory. Hub names are not checked.

    Raises:
        ValueError: a file is a Git LFS pointer, empty, or incomplete.
        OSError: a file cannot be read.
    """
    directory = Path(name)
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        if _READ.fullmatch(path.name):
            _check_file(path)


def is_lfs_pointer(path: Path) -> bool:
    """Returns whether a file is the pointer that a clone without Git LFS contains instead of the file itself."""
    return path.is_file() and _start_of(path) == _LFS_POINTER


def _start_of(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(len(_LFS_POINTER))


def _check_file(path: Path) -> None:
    try:
        start = _start_of(path)
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror}.") from error
    if start == _LFS_POINTER:
        raise ValueError(f"{path} is a pointer of Git LFS, not the file itself: run `git lfs pull` in {path.parent}.")
    again = "copy or download it again (in a Git clone: `git lfs pull`)."
    if not start:
        raise ValueError(f"{path} is empty: {again}")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):  # compares the file's size with its header
                pass
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged or incomplete ({' '.join(str(error).split())}): {again}") from error
    if path.name.endswith(".index.json"):
        shards_of(path)


def load_model(auto_class: Any, name: str, **options) -> Any:
    """
    Returns the model `auto_class.from_pretrained(name, **options)`, whose towers are complete and finite. Phrases and
    tubes that the checkpoint lacks have no influence at first.

    Args:
        auto_class: a model class, or one of the Auto classes.
        name: a directory or Hub name.
        options: arguments of `from_pretrained`.

    Raises:
        ValueError: a file is damaged, a weight of a tower is missing or of another shape, or a weight is not finite.
        OSError: the directory or Hub model does not exist, or a file cannot be read.
    """
    model, info = _load(auto_class, name, **options)
    if missing := sorted(key for key in map(str, info["missing_keys"]) if _is_of_a_tower(key)):
        raise ValueError(
            f"{name} lacks {len(missing)} weights of its towers ({', '.join(missing[:3])}"
            f"{', ...' * (len(missing) > 3)}), which would be random: use a checkpoint of this version of the model, "
            "and do not change the sizes of its towers."
        )
    for part, module in getattr(model, "added_parts", dict)().items():
        if f"{part}.fc2.weight" in info["missing_keys"]:
            module.start_as_zero()
    return model


def _is_of_a_tower(key: str) -> bool:
    """Returns whether every use of a checkpoint needs a weight. Region modules, projections and heads may be new."""
    towers = ("video_model.embeddings.", "video_model.layers.", "video_model.backbone.", "text_model.")
    return key.startswith(towers) and ".pooler." not in key


def _load(auto_class: Any, name: str, **options) -> tuple[Any, dict[str, Any]]:
    """Returns a model, and the loading info of `from_pretrained`. Raises the errors of [`load_model`]."""
    check_files(name)
    try:
        model, info = auto_class.from_pretrained(name, output_loading_info=True, **options)
    except SafetensorError as error:
        raise ValueError(f"The weights of {name} are damaged ({error}): download them again.") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"Weights of {name} do not have the shapes of its configuration (see the table above): do not change "
            "sizes of a checkpoint, such as num_regions."
        ) from error
    refuse_non_finite(model, name)
    return model, info


def refuse_non_finite(model: torch.nn.Module, name: str) -> None:
    """
    Checks the weights of a model that was loaded from the checkpoint `name`.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    if (weight := first_non_finite(model.state_dict())) is not None:
        raise ValueError(
            f"{name} has weights that are NaN or infinite (the first: {weight}): its training diverged. Use an "
            "earlier checkpoint."
        )


def first_non_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """
    Returns the name of the first of `tensors` that has a NaN or infinite value; None if all are finite. It waits for
    the device only once.
    """
    local = {
        name: tensor.to_local() if hasattr(tensor, "to_local") else tensor  # of a sharded model
        for name, tensor in tensors.items()
        if torch.is_tensor(tensor) and tensor.is_floating_point()
    }
    local = {name: tensor.detach() for name, tensor in local.items() if tensor.numel()}
    if not local:
        return None
    device = next(iter(local.values())).device
    # Extremes are NaN if any value is; on a CPU, they take a twentieth of the time of `isfinite`.
    extremes = [torch.stack(tensor.aminmax()).isfinite().all().to(device) for tensor in local.values()]
    finite = torch.stack(extremes).tolist()
    return next((name for name, is_finite in zip(local, finite) if not is_finite), None)


_CONFIGS = ("config.json", "adapter_config.json")


def check_checkpoint(name: str):
    """
    Checks that `name` can be a checkpoint, before anything is loaded. Of Hub names, only the form is checked.

    Args:
        name: a directory or Hub name.

    Raises:
        NotADirectoryError: it is a file.
        FileNotFoundError: it is a directory that does not exist, or has no configuration.
    """
    path = Path(name)
    if path.is_file():
        cure = "name its directory, or use a Hub name such as owner/name"
        if path.suffix in (".pth", ".pt"):
            cure = f"convert it first with `region-learner convert {name} DIRECTORY`"
        elif path.suffix.lower() in VIDEO_EXTENSIONS + IMAGE_EXTENSIONS:
            cure = "give the checkpoint first, and then the videos"
        raise NotADirectoryError(f"{name} is a file, not a checkpoint: {cure}.")
    if path.is_dir():
        if not any((path / config).exists() for config in _CONFIGS):
            inside = sorted(found.parent for config in _CONFIGS for found in path.glob(f"*/{config}"))
            near = f"; did you mean {str(inside[-1])!r}?" if inside else "."
            raise FileNotFoundError(f"{name} is not a checkpoint: it has no config.json{near}")
    else:
        check_name(name, "a checkpoint")


def check_name(name: str, what: str):
    """
    Checks that `name` is a directory that exists, or could be a Hub name.

    Args:
        name: a directory or Hub name.
        what: what it should be, for the message, such as "a checkpoint".

    Raises:
        FileNotFoundError: it is the path of a directory that does not exist.
    """
    path = Path(name)
    local = name.startswith((".", "~")) or path.is_absolute() or name.count("/") > 1 or name.endswith("/")
    if local and not path.exists():
        raise FileNotFoundError(
            f"There is no directory {name}{near_file(path)} {what.capitalize()} is a directory, or a Hub name such as "
            "owner/name."
        )


def check_video(name: str):
    """
    Checks that `name` is a file that exists, or a URL.

    Raises:
        IsADirectoryError: it is a directory.
        FileNotFoundError: the file does not exist.
    """
    if os.path.isdir(name):
        raise IsADirectoryError(f"{name} is a directory: name its videos, such as {os.path.join(name, '*.mp4')}.")
    if "://" not in name and not os.path.exists(name):
        raise FileNotFoundError(f"There is no file {name}{near_file(name)}")


def _has(name: str | os.PathLike, file: str) -> bool:
    try:
        return cached_file(name, file) is not None
    except OSError:  # raised by transformers if the file does not exist
        return False


def load_processor(name: str | os.PathLike, text_config: PreTrainedConfig | None) -> Any:
    """
    Returns the processor of a checkpoint, or only its video processor if no texts are read.

    Args:
        name: a directory or Hub name.
        text_config: configuration of the text tower, which the tokenizer must fit; None for the video processor alone.

    Raises:
        OSError: the checkpoint has no such files.
        ValueError: the checkpoint has no tokenizer, or one that does not fit the text tower.
    """
    if text_config is None:
        return AutoVideoProcessor.from_pretrained(name)
    try:
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        files = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
        if any(_has(name, file) for file in files):
            raise
        raise ValueError(
            f"{name} has no tokenizer, so texts cannot be read: convert it again with --tokenizer, or save the "
            "tokenizer of its text encoder there, such as AutoTokenizer.from_pretrained('distilbert-base-uncased')"
            f".save_pretrained({os.fspath(name)!r})."
        ) from error
    check_text_tower(text_config, processor.tokenizer)
    return processor


def load_checkpoint(name: str, task: str | None) -> tuple[Any, Any]:
    """
    Returns the model of a checkpoint with the head of a task, and its processor.

    Args:
        name: directory or Hub name of a RegionLearner checkpoint, or of a CLIP, MetaCLIP 2, SigLIP or SigLIP 2
            checkpoint. The latter embed a clip as the mean of its frames.
        task: a key of `EVALUATIONS`, or None if a video tower is enough. For None and "classification" the processor
            is a video processor, which cannot read texts.

    Raises:
        ValueError: the checkpoint is not a RegionLearner, is damaged, or lacks weights that the task needs, which
            would be random.
        OSError: the directory or Hub model does not exist.

    Example:

        model, processor = load_checkpoint("CHECKPOINT", "retrieval")
    """
    refuse_bare_adapters(name)
    heads: dict[str | None, Any] = {
        "question_answering": AutoModelForVisualQuestionAnswering,
        "classification": AutoModelForVideoClassification,
    }
    try:
        from .conversion.dual_encoders import is_dual_encoder  # which imports this module

        if is_dual_encoder(name):
            return _load_dual_encoder(name, task)
        model, info = _load(heads.get(task, AutoModel), name, ignore_mismatched_sizes=True)
    except (OSError, ValueError) as error:
        if Path(name).exists():
            raise
        elsewhere = f"hf download {name} --local-dir DIR"
        hint = f" Without a connection to the Hub, run `{elsewhere}` elsewhere, and give DIR as the model."
        raise OSError(
            f"{name} is not a local directory{near_file(name)} Downloading it from the Hub failed: {error}"
            f"{hint if 'connect' in str(error) else ''}"
        ) from error
    is_a = type(model).__name__
    towers = ("region_learner",) if task is not None else ("region_learner", "region_learner_video")
    if model.config.model_type not in towers:
        raise ValueError(
            f"{name} is a {is_a} of the type {model.config.model_type!r}: use a checkpoint of RegionLearner, or of "
            "CLIP, MetaCLIP 2, SigLIP or SigLIP 2 with both towers."
        )
    absent = {str(key) for key in info["missing_keys"]} | {str(key[0]) for key in info["mismatched_keys"]}
    needed = "video_model." if task is None and hasattr(model, "video_model") else ""
    if missing := sorted(key for key in absent if key.startswith(needed)):
        was = ", ".join(model.config.architectures or []) or "of an unknown class"
        use = "the video tower" if task is None else f"the task {task!r}"
        raise ValueError(
            f"{name} ({was}): {len(missing)} weights of {is_a} that {use} needs are missing or of another shape "
            f"({', '.join(missing[:3])}{', ...' * (len(missing) > 3)}) and would be random: use a checkpoint that was "
            "trained for it."
        )
    reads_texts = task not in (None, "classification")
    return model, load_processor(name, model.config.text_config if reads_texts else None)


def _load_dual_encoder(name: str, task: str | None) -> tuple[Any, Any]:
    from .conversion import from_pretrained_towers, processor_from_towers

    if task in ("question_answering", "classification"):
        raise ValueError(f"{name} has no classifier for the task {task!r}: train one with `--model {name}`.")
    model = from_pretrained_towers(name)
    refuse_non_finite(model, name)
    processor = processor_from_towers(name)
    return model, processor.video_processor if task is None else processor

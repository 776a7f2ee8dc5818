"""Stored features of a backbone for each video of a corpus, which replace the videos in training.

DIR/SPLIT/features.json     what computed them, and their shape (T, 1 + N, D) per clip
DIR/SPLIT/rows.jsonl        the rows of the corpus, with the number of the clip as `video`
DIR/SPLIT/000000.bin ...    the features of `clips_per_shard` clips each, float16 (little-endian), without a header
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from .base import SPLIT_ALIASES, CorpusError, PathLike, Row, build_dataset, check_data_dir, check_split
from .readers import parse_json, read_table
from .rows import shown, unstorable

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

ABOUT = "features.json"
ROWS = "rows.jsonl"
FORMAT = 1

_DTYPE = np.dtype("<f2")

# Options that determine the pixels that a backbone sees in evaluation.
_PREPROCESSING = (
    "do_resize", "size", "resample", "antialias", "do_center_crop", "crop_size", "output_size", "do_rescale",
    "rescale_factor", "do_normalize", "image_mean", "image_std",
)  # fmt: skip


def shard_path(directory: Path, number: int) -> Path:
    return directory / f"{number:06}.bin"


def clip_bytes(shape: Sequence[int]) -> int:
    """Returns the size on disk of the features of one clip."""
    return math.prod(shape) * _DTYPE.itemsize


def load_features(data_dir: PathLike | None, split: str) -> Dataset:
    """Features from `region-learner corpus features` for the videos of any corpus, with its rows.

    The rows and columns are those of the source corpus, without unreadable videos. `video` is a reference to the
    features of the clip, which `read_features` reads.

    Args:
        data_dir: the `--output` of the command.
        split: name of a split. "val" and "validation" are the same split.
    """
    from datasets import ClassLabel, List, Value

    directory = check_data_dir("features", data_dir)
    splits = [path.parent.name for path in sorted(directory.glob("[!.]*/" + ABOUT))]
    if not splits:
        raise CorpusError(f"no features in {directory}: compute them with `region-learner corpus features MODEL`")
    split = split if split in splits else SPLIT_ALIASES.get(split, split)
    check_split(split, splits, str(directory))
    directory = directory / split
    about = read_about(directory)
    size, per_shard = clip_bytes(about["shape"]), about["clips_per_shard"]
    for number in range(math.ceil(about["clips"] / per_shard)):
        _check_size(shard_path(directory, number), min(per_shard, about["clips"] - number * per_shard) * size)
    rows = [_with_reference(row, directory, about, where) for where, row in read_table(directory / ROWS)]
    if not rows:
        raise CorpusError(f"{directory / ROWS} has no rows")
    types: dict[str, Any] = {name: ClassLabel(names=names) for name, names in about["classes"].items()}
    if "captions" in rows[0]:  # all of them may be empty
        types["captions"] = List(Value("string"))
    return build_dataset(rows, types)


def read_about(directory: Path) -> dict[str, Any]:
    """
    Returns the content of the features.json of a split.

    Raises:
        CorpusError: it is missing or damaged, or of another version.
    """
    path = directory / ABOUT
    try:
        about = parse_json(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} cannot be read: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise CorpusError(f"{path} is not of format {FORMAT}: compute the features again with this version")
    shape, classes = about.get("shape"), about.get("classes")
    sizes = [about.get("clips"), about.get("clips_per_shard"), *(shape if isinstance(shape, list) else ())]
    if len(sizes) != 5 or not all(type(size) is int and 0 < size < 2**40 for size in sizes):
        raise CorpusError(f"{path} is damaged: clips, clips_per_shard and the 3 sizes of shape must be above 0")
    if not isinstance(classes, dict) or not all(_are_names(names) for names in classes.values()):
        raise CorpusError(f"{path} is damaged: classes must be lists of different names, not {shown(classes)}")
    texts = all(isinstance(about.get(name), str) for name in ("model", "backbone_sha256"))
    if not texts or not isinstance(about.get("preprocessing"), dict):
        raise CorpusError(f"{path} is damaged: it does not say which model computed the features")
    return about


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names) and len({*names}) == len(names)


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        found = "does not exist" if size is None else f"has {size} bytes instead of {expected}"
        raise CorpusError(f"{path} {found}: copy the features again, or compute them with --overwrite")


def _with_reference(row: Row, directory: Path, about: Mapping[str, Any], where: str) -> Row:
    """Replaces the number of a clip with a reference to its features, after checking the row."""
    where = f"{directory / ROWS}, {where}"
    clip, clips, per_shard = row.get("video"), about["clips"], about["clips_per_shard"]
    if type(clip) is not int or not 0 <= clip < clips:
        raise CorpusError(f"{where}: video must be a number below {clips}, not {shown(clip)}")
    reference = {
        "path": str(shard_path(directory, clip // per_shard)),
        "offset": clip % per_shard * clip_bytes(about["shape"]),
        "shape": about["shape"],
    }
    row = row | {"video": reference}
    if what := unstorable(row):
        raise CorpusError(f"{where}: a value is {what}, which a dataset cannot store")
    for name, names in about["classes"].items():
        label = row.get(name, "missing")
        if label is not None and (type(label) is not int or not -1 <= label < len(names)):
            raise CorpusError(f"{where}: {name} must be the number of one of {len(names)} classes, not {shown(label)}")
    return row


def is_features(video: Any) -> TypeGuard[Mapping[str, Any]]:
    """Returns whether the `video` of a row is a reference to features, which `read_features` reads."""
    return isinstance(video, Mapping) and {"path", "offset", "shape"} <= video.keys()


def read_features(reference: Mapping[str, Any]) -> torch.Tensor:
    """Reads the features of a clip, (T, 1 + N, D), float16.

    Args:
        reference: `{"path": file, "offset": int, "shape": [T, 1 + N, D]}`, the `video` of a row.

    Raises:
        CorpusError: the file is missing, or shorter than when the corpus was loaded.
    """
    import torch

    path, shape = reference["path"], list(reference["shape"])
    try:
        values = np.fromfile(path, _DTYPE, math.prod(shape), offset=reference["offset"])
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from error
    if values.size != math.prod(shape):
        raise CorpusError(f"{path} is shorter than when the corpus was loaded: load the corpus again")
    return torch.from_numpy(values).view(shape)


def as_stored(features: torch.Tensor) -> np.ndarray:
    """Returns features as they are written to a file."""
    return features.cpu().numpy().astype(_DTYPE)


def write_rows(path: Path, rows: Dataset, clips: Sequence[int | None]) -> int:
    """Writes rows with the numbers of their clips in place of videos; rows with None are left out.

    Values that JSON does not support, such as dates, become text. Returns the number of rows that were written.
    """
    with open(path, "w", encoding="utf-8") as file:
        for row, clip in zip(rows.remove_columns("video"), clips):
            if clip is not None:
                file.write(json.dumps({"video": clip} | row, ensure_ascii=False, default=str) + "\n")
    return sum(clip is not None for clip in clips)


# --- Checking ------------------------------------------------------------------------------------------------


def check_features(
    model: Any, processor: Any, datasets: Iterable[tuple[Any, int | None]], trains: bool = False
) -> bool:
    """
    Checks that the features that datasets refer to are those of a model's backbone, and that it is frozen.

    Args:
        model: a model of any task.
        processor: its processor, or its video processor.
        datasets: datasets of any corpora, each with its frames per clip, or None for that of the processor.
        trains: whether the model is trained.

    Returns:
        Whether there are features among the datasets.

    Raises:
        ValueError: they belong to another backbone, other frames or other pixels; or the backbone is trained.
    """
    processor = getattr(processor, "video_processor", processor)
    digest, found = "", False
    for dataset, num_frames in datasets:
        if (directory := _directory_of(dataset)) is None:
            continue
        about, found = read_about(directory), True
        backbone = getattr(getattr(model, "video_model", model), "backbone", None)
        if backbone is None:
            raise ValueError(
                f"{directory} has features of a backbone, but the model has none: use a model with a backbone."
            )
        trained = [name for name, weight in backbone.named_parameters() if weight.requires_grad]
        if trains and trained:
            raise ValueError(
                f"{directory} has features of a frozen backbone, but this run trains the backbone: add --freeze "
                "video_model.backbone, without adapters in it, or train on videos."
            )
        frames = num_frames or processor.num_frames
        if about["shape"][0] != frames:
            raise ValueError(
                f"{directory} has features of {about['shape'][0]} frames per clip, but the model reads {frames}: "
                f"pass --num-frames {about['shape'][0]}, or compute features with --num-frames {frames}."
            )
        digest = digest or digest_of_weights(backbone)
        if about["backbone_sha256"] != digest:
            raise ValueError(
                f"{directory} has features of the backbone of {about['model']}, whose weights differ from the "
                "backbone of this model: compute features for this model with `region-learner corpus features`."
            )
        theirs, ours = about["preprocessing"], preprocessing_of(processor)
        if changed := [name for name, value in ours.items() if theirs.get(name) != value]:
            name = changed[0]
            raise ValueError(
                f"{directory} has features of frames that were prepared differently ({name}={theirs.get(name)}, but "
                f"the processor of this model has {ours[name]}): compute features with this model."
            )
    return found


def _directory_of(dataset: Any) -> Path | None:
    """Returns the directory of the features that the first row of a dataset refers to, if it does."""
    row: Any = None
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        row = dataset[0] if len(dataset) else None
    elif hasattr(dataset, "column_names"):  # an IterableDataset of `datasets`, which starts over each time
        row = next(iter(dataset), None)
    video = row.get("video") if isinstance(row, Mapping) else None
    return Path(video["path"]).parent if is_features(video) else None


def digest_of_weights(module: torch.nn.Module) -> str:
    """Returns the SHA-256 of a module's weights and their names, as float32, so that narrower types give the same."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.cpu().reshape(-1).numpy())
    return digest.hexdigest()


def preprocessing_of(processor: Any) -> dict[str, Any]:
    """Returns the options of a video processor that decide on the pixels of evaluation, as JSON has them."""
    options = json.loads(json.dumps(processor.to_dict(), default=str))
    return {name: options.get(name) for name in _PREPROCESSING}

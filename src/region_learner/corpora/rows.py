"""What a row of a data set holds, whoever made it: checked where a data set is given, and row by row as it is read."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .errors import CorpusError
from .values import (
    UnfitValueError,
    is_missing,
    read_answer,
    read_captions,
    read_id,
    read_label,
    read_options,
    read_text,
    shown,
)

# Rows that are looked at when a data set is given: enough to find a column that is not what was meant.
_FIRST_ROWS = 4


def check_dataset(dataset: Any, columns: Sequence[str], name: str, first_rows: int = _FIRST_ROWS) -> None:
    """Checks a data set before anything is done with it: its columns, and its first rows.

    Args:
        dataset: rows, as a `datasets.Dataset` or `IterableDataset`, a list of mappings, or a data set of torch. Rows
            of others that can only be iterated over are not looked at, as that may be possible only once.
        columns: that are needed beside `video` and `video_id`.
        name: of the data set, for messages.

    Raises:
        CorpusError: it is something else, a column is missing, or a row is wrong.
    """
    check_kind(dataset, name)
    known = getattr(dataset, "column_names", None)
    if known and (absent := [column for column in ("video", "video_id", *columns) if column not in known]):
        raise CorpusError(
            f"{name} has no column {absent[0]!r} (columns: {', '.join(sorted(known))}): is it of another task?"
        )
    rows: Iterable[Any] = ()
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        if first_rows and not len(dataset):
            raise CorpusError(f"{name} has no rows")
        rows = (dataset[number] for number in range(min(len(dataset), first_rows)))
    elif hasattr(dataset, "column_names"):  # of `datasets`: it begins anew each time
        rows = itertools.islice(dataset, first_rows)
    for number, row in enumerate(rows):
        read_row(row, columns, f"{name}, row {number}")


def check_kind(dataset: Any, name: str) -> None:
    """
    Raises:
        CorpusError: it cannot be a data set of rows.
    """
    if hasattr(dataset, "iloc"):
        raise CorpusError(
            f"{name} is a {type(dataset).__name__} of pandas: pass datasets.Dataset.from_pandas(...) of it"
        )
    if isinstance(dataset, Mapping):
        raise CorpusError(f"{name} is a mapping of {', '.join(map(repr, dataset))}: pass one split of it")
    if isinstance(dataset, str | bytes) or not (hasattr(dataset, "__getitem__") or hasattr(dataset, "__iter__")):
        raise CorpusError(f"{name} must be a data set or a list of rows, not {shown(dataset)}: see load_corpus")


def check_ids(dataset: Any, name: str) -> None:
    """Checks the ids of all rows of a `datasets.Dataset`.

    Raises:
        CorpusError: an id is missing, or neither a string nor an integer.
    """
    check_dataset(dataset, (), name, first_rows=0)
    for number, value in enumerate(dataset["video_id"][:]):
        try:
            _read_id(value)
        except UnfitValueError as problem:
            raise CorpusError(f"{name}, row {number}: video_id {problem}") from problem


def read_row(
    row: Any, columns: Sequence[str], where: str, bare: bool = False, with_video: bool = True
) -> dict[str, Any]:
    """A row with the columns that are needed as they are meant: an id as a string, captions as a list.

    Args:
        columns: that are needed beside `video` and `video_id`.
        where: which row it is, for messages.
        bare: whether a row may have no captions.
        with_video: whether it is to have a video.

    Raises:
        CorpusError: a column is missing, or its value is not what is expected.
    """
    if not isinstance(row, Mapping):
        raise CorpusError(f"{where} must be a mapping of columns such as 'video' and 'video_id', not {shown(row)}")
    result = dict(row)
    for name in ("video_id", *["video"] * with_video, *columns):
        if name not in result:
            raise CorpusError(f"{where} has no column {name!r} (columns: {', '.join(sorted(map(str, row)))})")
        try:
            if name == "answer" and "options" in columns:
                result[name] = read_answer(result[name], result["options"])
            elif name in _READERS:
                result[name] = _READERS[name](result[name])
            if name == "captions" and not (result[name] or bare):
                raise UnfitValueError("holds no caption")
        except UnfitValueError as problem:
            of = "" if name == "video_id" else f" (video_id {result['video_id']!r})"
            raise CorpusError(f"{where}{of}: {name} {problem}") from problem
    return result


def only_clip(clips: Any) -> Any:
    """The clip that a processor made of a row's video.

    Raises:
        ValueError: it made several, of an array of five dimensions or of lists within lists.
    """
    if len(clips) != 1:
        raise ValueError(f"the video of a row must be one clip, not {len(clips)}: give each a row of its own")
    return clips[0]


def check_shapes(clips: Sequence[Any]) -> None:
    """
    Raises:
        ValueError: clips of several videos are of different shapes, so that they make no batch.
    """
    if len(shapes := {tuple(clip.shape[-4:]) for clip in clips}) > 1:
        raise ValueError(
            f"Clips of different shapes make no batch: {sorted(shapes)}. Sample as many frames of each video with "
            "num_frames of the video processor instead of fps, and leave its resizing and cropping on."
        )


def _read_id(value: Any) -> str:
    video_id = read_id(value)
    if video_id is None:
        raise UnfitValueError("is missing or blank")
    return video_id


def _read_captions(value: Any) -> list[str]:
    captions = read_captions(value)
    if not all(captions):
        raise UnfitValueError(f"holds a caption that is blank or missing: {shown(value)}")
    return captions


def _read_video(value: Any) -> Any:
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        raise UnfitValueError("is missing or blank")
    if isinstance(value, Mapping) and all(value.get(name) is None for name in ("path", "bytes")):
        raise UnfitValueError(f"has neither a path nor bytes: {shown(value)}")
    if isinstance(value, numbers.Number):
        raise UnfitValueError(f"must be a path, encoded bytes or frames, not {shown(value)}")
    return value


_READERS: dict[str, Callable[[Any], Any]] = {
    "video_id": _read_id,
    "video": _read_video,
    "captions": _read_captions,
    "question": read_text,
    "answer": read_text,
    "options": read_options,
    "label": read_label,
}

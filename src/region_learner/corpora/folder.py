"""A folder of videos or images with a metadata file, in the layout of `datasets`.

DIR/[SPLIT/]metadata.csv, metadata.jsonl or metadata.parquet
DIR/[SPLIT/]... videos or images, named by the column `file_name` relative to their metadata file
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .base import SPLIT_ALIASES, CorpusError, PathLike, Row, build_dataset, check_data_dir, check_split
from .readers import read_table
from .rows import UnfitValueError, read_captions, read_id, read_negative_captions, shown, unstorable
from .videos import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    Listings,
    drop_missing,
    resolve_within,
    some_names,
    to_nfc,
)

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CAPTION_COLUMNS = ("captions", "caption", "text")


def load_folder(
    data_dir: PathLike | None,
    split: str,
    *,
    caption_column: str | None = None,
    media: Literal["all", "videos", "images"] = "all",
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset:
    """Videos, images or both beside metadata.csv, .jsonl or .parquet with `file_name` and `text` or `captions`.

    An image is a clip of one frame, and its path is also in the column `video`. Rows of the same file become one row
    with all their captions. Other columns are kept as they are; if a file has several rows, those of the first one are
    used. Whether the files can be decoded is not checked.

    Args:
        data_dir: directory with a metadata file, whose rows are the split "train", or with a subdirectory for each
            split that has one. "val" and "validation" are the same split.
        split: name of a split, or "all".
        caption_column: the column of the captions, if it has another name or several columns qualify. Its values are
            strings or lists of strings. A string may also be a list written as JSON or Python.
        media: keep only "videos" or "images", told apart by their extensions.
        max_missing: how many files may be missing and are left out, with a warning: a number, or a fraction
            (a float below 1). By default a missing file is an error.
        missing_list: text file for the paths of all missing files, one per line; see `report_missing`.

    Raises:
        CorpusError: the directory has no such split or is not in this layout; metadata is damaged, or has a row
            without a file name or caption; two files have the same id; or more files are missing than `max_missing`.
    """
    directory = check_data_dir("folder", data_dir)
    if media not in _MEDIA:
        raise CorpusError(f"media must be one of {', '.join(_MEDIA)}, not {media!r}")
    listings = Listings()
    rows = read_split(directory, split, caption_column, listings)
    if media != "all":
        rows = [row for row in rows if row["video"].lower().endswith(_MEDIA[media])]
        if not rows:
            raise CorpusError(f"no {media} among the rows of split {split!r} in {directory}: leave out media=")
    return build_dataset(drop_missing(rows, directory, max_missing, missing_list, split, listings))


_MEDIA = {"all": ("",), "videos": VIDEO_EXTENSIONS, "images": IMAGE_EXTENSIONS}


def read_split(
    data_dir: Path, split: str, caption_column: str | None = None, listings: Listings | None = None
) -> list[Row]:
    """Returns the rows of a split, one per video: `video` (absolute path), `video_id`, `captions`, other columns."""
    metadata = _find_splits(data_dir)
    if split == "all":
        chosen = list(metadata.values())
    else:
        chosen = [_metadata_of_split(metadata, split, data_dir)]
    listings = listings or Listings()
    videos: dict[str, Row] = {}
    for path in chosen:
        for row in _read_videos(path, data_dir, caption_column, listings):
            known = videos.setdefault(row["video"], row)
            if known is not row:
                known["captions"] += row["captions"]  # in place: a file may have millions of captions
                if "negative_captions" in row:
                    negatives = known.setdefault("negative_captions", [])
                    negatives += [text for text in row["negative_captions"] if text not in negatives]
    _check_ids(videos.values(), data_dir)
    return list(videos.values())


def _find_splits(data_dir: Path) -> dict[str, Path]:
    """Returns the metadata file of every split. A folder without splits has only the split "train"."""
    top = _metadata_file(data_dir)
    directories = sorted(path for path in data_dir.iterdir() if path.is_dir())
    splits = {path.name: found for path in directories if (found := _metadata_file(path))}
    if top and splits:
        first = next(iter(splits.values()))
        raise CorpusError(
            f"{data_dir} has metadata both for the whole folder ({top.name}) and for a split "
            f"({first.relative_to(data_dir)}): keep only one of them"
        )
    if not top and not splits:
        others = sorted(data_dir.glob("metadata.*"))
        other = f" ({others[0].name} has a format that is not supported)" if others else ""
        raise CorpusError(
            f"{data_dir} has no metadata{other}: put {', '.join(METADATA_FILES[:2])} or {METADATA_FILES[2]} into it, "
            f"or into a subdirectory for each split, with columns file_name and one of {', '.join(CAPTION_COLUMNS)}"
        )
    return {"train": top} if top else splits


def _metadata_file(directory: Path) -> Path | None:
    found = [directory / name for name in METADATA_FILES if (directory / name).is_file()]
    if len(found) > 1:
        raise CorpusError(f"{directory} has both {found[0].name} and {found[1].name}: keep one of them")
    return found[0] if found else None


def _metadata_of_split(metadata: dict[str, Path], split: str, data_dir: Path) -> Path:
    name = split if split in metadata else SPLIT_ALIASES.get(split, split)
    if name not in metadata:
        (first, *_) = metadata.values()
        if first.parent == data_dir:
            raise CorpusError(
                f"{data_dir} has no split {split!r}: without a directory for each split, all rows are in 'train'; use "
                f"that, or move rows to {data_dir / split / first.name}"
            )
        check_split(split, [*metadata, "all"], str(data_dir))
    return metadata[name]


def _read_videos(path: Path, data_dir: Path, caption_column: str | None, listings: Listings) -> Iterator[Row]:
    """Yields the rows of one metadata file with the common columns."""
    rows = read_table(path)
    if not rows:
        raise CorpusError(f"{path} has no rows")
    caption_column = _caption_column(rows[0][1], caption_column, path)
    _check_whole_numbers(rows, path)
    for name in ("video", "captions"):
        if name != caption_column and any(name in row for _, row in rows):
            logger.warning("%s: leaving out the column %r, as rows have a column of this name: rename it.", path, name)
    empty = []
    files: dict[str, tuple[str, str]] = {}  # file_name -> path and name; a file may have millions of rows
    for number, row in rows:
        where = f"{path}, {number}"
        file_name = row.get("file_name")
        if not isinstance(file_name, str) or file_name not in files:
            file_name = _file_name(file_name, where)
            plain = to_nfc(os.path.normpath(file_name.replace("\\", "/")))
            found = _find(path.parent, file_name, data_dir, where, listings)
            files[file_name] = found, os.path.splitext(plain)[0]
        try:
            column = "video_id"
            video_id = read_id(row.get(column))
            column = caption_column
            captions = read_captions(row.get(column))
            if "negative_captions" in row:  # always as a list, as the rows of a file are merged
                column = "negative_captions"
                row = row | {column: read_negative_captions(row[column])}
        except UnfitValueError as problem:
            raise CorpusError(f"{where}: {column} {problem}") from problem
        if not captions or not all(captions):
            empty.append(f"{number} ({file_name})")
            continue
        video, name = files[file_name]
        yield {
            "video": video,
            "video_id": name if video_id is None else video_id,
            "captions": captions,
            **_other_columns(row, where, caption_column),
        }
    if empty:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        raise CorpusError(
            f"{path}: no caption in column {caption_column!r} of {', '.join(empty[:3])}{more}: "
            "fill them in, or remove the rows"
        )


def _file_name(value: Any, where: str) -> str:
    if value is None or value == "" or (isinstance(value, str) and not value.strip()):
        raise CorpusError(f"{where}: no file_name")
    if not isinstance(value, str):
        raise CorpusError(f"{where}: file_name must be a string, not {shown(value)}")
    if what := unstorable(value):
        raise CorpusError(f"{where}: file_name has {what}, which file names cannot have")
    return value


def _find(base: Path, file_name: str, data_dir: Path, where: str, listings: Listings) -> str:
    """Returns the path of a file as it is on disk; for a missing file, the path where it should be."""
    if "\\" in file_name and file_name in listings.names(str(base)):
        return os.path.join(base, file_name)  # some programs unpack archives made on Windows like this
    path = resolve_within(base, file_name, data_dir, where)
    return listings.find(path) or to_nfc(path)


def _other_columns(row: Row, where: str, caption_column: str) -> Row:
    others = {key: value for key, value in row.items() if key not in _RESERVED and key != caption_column}
    for key, value in others.items():
        if what := unstorable(key) or unstorable(value):
            raise CorpusError(f"{where}: column {key!a} has {what}, which a dataset cannot store: remove it")
    return others


def _check_whole_numbers(rows: Sequence[tuple[str, Row]], path: Path) -> None:
    """Checks that not all ids look like "12.0", as tables write integers if a value of the column is missing."""
    ids = [(number, row["video_id"]) for number, row in rows if row.get("video_id")]
    if ids and all(isinstance(video_id, str) and _WHOLE_NUMBER.fullmatch(video_id) for _, video_id in ids):
        number, video_id = ids[0]
        raise CorpusError(
            f"{path}, {number}: all video_ids are floats, such as {video_id!r}; integers in a column with "
            "missing values become floats: write ids as strings"
        )


_WHOLE_NUMBER = re.compile(r"\d+\.0")

# Columns that every corpus defines itself.
_RESERVED = ("file_name", "video", "video_id", "captions")


def _caption_column(row: Row, caption_column: str | None, path: Path) -> str:
    if "file_name" not in row:
        one = len(row) == 1 and path.suffix == ".csv" and re.search(r"[;\t|]", next(iter(row)))
        separator = f"; its columns are separated by {one[0]!r} instead of commas" if one else ""
        raise CorpusError(f"{path} has no column file_name (columns: {', '.join(map(str, row))}){separator}")
    if caption_column is not None:
        if caption_column not in row:
            raise CorpusError(f"{path} has no column {caption_column!r} (columns: {', '.join(row)})")
        return caption_column
    found = [name for name in CAPTION_COLUMNS if name in row]
    if not found:
        raise CorpusError(
            f"{path} has none of the columns {', '.join(CAPTION_COLUMNS)} (columns: {', '.join(row)}): "
            "rename one, or name it with caption_column="
        )
    if len(found) > 1:
        raise CorpusError(f"{path} has columns {' and '.join(found)}: choose with caption_column=")
    return found[0]


def _check_ids(rows: Iterable[Row], data_dir: Path) -> None:
    """Checks that ids are unique, as training and evaluation treat videos with the same id as the same video."""
    owners: dict[str, str] = {}
    for row in rows:
        owner = owners.setdefault(row["video_id"], row["video"])
        if owner != row["video"]:
            raise CorpusError(
                f"{some_names([owner, row['video']], data_dir, 2)} both have the id {row['video_id']!r}: give "
                "them different ids in a column video_id"
            )

"""A folder of videos or images with a metadata file, as `datasets` has it; and what all corpora share.

DIR/[SPLIT/]metadata.csv, metadata.jsonl or metadata.parquet
DIR/[SPLIT/]... videos or images, named by the column `file_name` relative to their metadata file
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import CorpusError
from .paths import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    Listings,
    composed,
    drop_missing,
    resolve_within,
    some_names,
    with_slashes,
)
from .tables import Row, read_table
from .values import UnfitValueError, read_captions, read_id, shown, unstorable

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CAPTION_COLUMNS = ("captions", "caption", "text")
# One split, several names in use.
SPLIT_ALIASES = {"val": "validation", "validation": "val"}

# Of a streamed corpus: as many loader processes as this can share the work.
STREAMING_SHARDS = 64


# --- What all corpora share ----------------------------------------------------------------------------------


def suggestion(name: object, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name nearest to `name`, or nothing."""
    nearest = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def check_split(split: str, splits: Sequence[str], where: str) -> None:
    """
    Raises:
        CorpusError: `split` is none of `splits`.
    """
    if split not in splits:
        raise CorpusError(f"no split {split!r} in {where}{suggestion(split, splits)} (splits: {', '.join(splits)})")


def check_options(corpus: str, options: Iterable[str], allowed: Iterable[str]) -> None:
    """
    Raises:
        CorpusError: an option that the corpus does not have.
    """
    allowed = sorted(allowed)
    for option in options:
        if option not in allowed:
            raise CorpusError(
                f"unknown option {option!r} for corpus {corpus!r}{suggestion(option, allowed)} "
                f"(options: {', '.join(allowed)})"
            )


def check_data_dir(corpus: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """The directory as an absolute path.

    Raises:
        CorpusError: it is not given, or is no directory.
    """
    if data_dir is None:
        raise CorpusError(f"corpus {corpus!r} needs data_dir= (--data-dir), the directory that holds it")
    path = Path(os.path.abspath(os.path.expanduser(data_dir)))
    if not path.is_dir():
        raise CorpusError(f"no directory {path} for corpus {corpus!r}: check data_dir=")
    return path


def build_dataset(
    rows: Sequence[Row], streaming: bool, description: str = "", features: Mapping[str, Any] | None = None
) -> Dataset | IterableDataset:
    """Rows as a data set; a column that a row lacks is None there. Paths stay strings: nothing is decoded.

    Args:
        features: of columns whose values do not tell their own type, such as lists that are all empty.

    Raises:
        CorpusError: the values of a column are of different types.
    """
    # Imported here: `datasets` takes seconds, which processes that only write clips need not spend.
    import pyarrow as pa
    from datasets import Dataset, DatasetInfo, Features

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    types = []
    for name, values in columns.items():
        try:
            kind = pa.array(values).type
            types.append((name, kind))
            Features.from_arrow_schema(pa.schema([(name, kind)]))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise CorpusError(f"column {name!r} holds values of different types: {error}") from error
        except (pa.ArrowNotImplementedError, ValueError) as error:
            raise CorpusError(f"column {name!r} cannot be kept in a data set: {error}; take it out") from error
    schema = Features({**Features.from_arrow_schema(pa.schema(types)), **(features or {})})
    info = DatasetInfo(description=description, features=schema)
    dataset = Dataset.from_dict(columns, features=schema, info=info)
    return dataset.to_iterable_dataset(min(STREAMING_SHARDS, len(rows))) if streaming else dataset


# --- The corpus `folder` -------------------------------------------------------------------------------------


def load_folder(
    data_dir: str | os.PathLike[str] | None,
    split: str,
    streaming: bool,
    *,
    caption_column: str | None = None,
    media: Literal["all", "videos", "images"] = "all",
    max_missing: int | float = 0,
    missing_list: str | os.PathLike[str] | None = None,
) -> Dataset | IterableDataset:
    """Videos, images or both beside metadata.csv, .jsonl or .parquet with `file_name` and `text` or `captions`.

    An image is a clip of one frame; its path stands in the column `video` too. Rows of the same file become one row
    with all their captions. Other columns are kept as they are, the first row's where several became one. Whether the
    files can be decoded is not looked at.

    Args:
        data_dir: has a metadata file in it, then every row is of split "train"; or a subdirectory with one for
            each split. "val" and "validation" both mean either.
        split: name of a split, or "all".
        caption_column: column to take captions from, where they have another name or several columns qualify.
            Its values are strings or lists of strings. A string may be the text of a list, in JSON or as Python
            writes it.
        media: keep "videos" or "images" only, told apart by what their names end in.
        max_missing: how many files may be missing and are left out, with a warning: a number, or a fraction
            (a float below 1). By default a missing file is an error.
        missing_list: text file for the paths of all missing files, one a line; see `report_missing`.

    Raises:
        CorpusError: no such directory, metadata, column or split; a row without a caption; a file that is missing
            or named outside of `data_dir`; two files with one id.
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
    return build_dataset(drop_missing(rows, directory, max_missing, missing_list, split, listings), streaming)


_MEDIA = {"all": ("",), "videos": VIDEO_EXTENSIONS, "images": IMAGE_EXTENSIONS}


def read_split(
    data_dir: Path, split: str, caption_column: str | None = None, listings: Listings | None = None
) -> list[Row]:
    """The rows of a split, one for each video: `video` (absolute path), `video_id`, `captions`, other columns."""
    metadata = _find_splits(data_dir)
    if split == "all":
        chosen = list(metadata.values())
    else:
        chosen = [_metadata_of_split(metadata, split, data_dir)]
    listings = listings or Listings()
    videos: dict[str, Row] = {}
    for path in chosen:
        for row in _read_videos(path, data_dir, caption_column, listings):
            _merge(videos, row)
    _check_ids(videos.values(), data_dir)
    return list(videos.values())


def _find_splits(data_dir: Path) -> dict[str, Path]:
    """Metadata file of every split; a folder without splits is all "train"."""
    top = _metadata_file(data_dir)
    directories = sorted(path for path in data_dir.iterdir() if path.is_dir())
    splits = {path.name: found for path in directories if (found := _metadata_file(path))}
    if top and splits:
        first = next(iter(splits.values()))
        raise CorpusError(
            f"metadata both for all of {data_dir} ({top.name}) and for a split "
            f"({first.relative_to(data_dir)}): keep one of the two"
        )
    if not top and not splits:
        others = sorted(data_dir.glob("metadata.*"))
        other = f" ({others[0].name} is not one of the forms that are read)" if others else ""
        raise CorpusError(
            f"no metadata in {data_dir}{other}: it, or a subdirectory for each split, needs "
            f"{', '.join(METADATA_FILES[:2])} or {METADATA_FILES[2]} with columns file_name and one of "
            f"{', '.join(CAPTION_COLUMNS)}"
        )
    return {"train": top} if top else splits


def _metadata_file(directory: Path) -> Path | None:
    found = [directory / name for name in METADATA_FILES if (directory / name).is_file()]
    if len(found) > 1:
        raise CorpusError(f"both {found[0].name} and {found[1].name} in {directory}: keep one")
    return found[0] if found else None


def _metadata_of_split(metadata: dict[str, Path], split: str, data_dir: Path) -> Path:
    name = split if split in metadata else SPLIT_ALIASES.get(split, split)
    if name not in metadata:
        (first, *_) = metadata.values()
        if first.parent == data_dir:
            raise CorpusError(
                f"no split {split!r} in {data_dir}: it has no split directories, so every row is of split 'train'; "
                f"use that, or move rows to {data_dir / split / first.name}"
            )
        check_split(split, [*metadata, "all"], str(data_dir))
    return metadata[name]


def _read_videos(path: Path, data_dir: Path, caption_column: str | None, listings: Listings) -> Iterator[Row]:
    """Rows of one metadata file with the common columns."""
    rows = read_table(path)
    if not rows:
        raise CorpusError(f"{path} has no rows")
    caption_column = _caption_column(rows[0][1], caption_column, path)
    _check_whole_numbers(rows, path)
    empty = []
    files: dict[str, tuple[str, str]] = {}  # path and name of each, as there may be millions of rows of one
    for number, row in rows:
        where = f"{path}, {number}"
        file_name = row.get("file_name")
        if not isinstance(file_name, str) or file_name not in files:
            file_name = _file_name(file_name, where)
            plain = composed(os.path.normpath(with_slashes(file_name)))
            found = _find(path.parent, file_name, data_dir, where, listings)
            files[file_name] = found, os.path.splitext(plain)[0]
        try:
            column = "video_id"
            video_id = read_id(row.get(column))
            column = caption_column
            captions = read_captions(row.get(column))
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
            "fill them in or take the rows out"
        )


def _file_name(value: Any, where: str) -> str:
    if value is None or value == "" or (isinstance(value, str) and not value.strip()):
        raise CorpusError(f"{where}: no file_name")
    if not isinstance(value, str):
        raise CorpusError(f"{where}: file_name must be a string, not {shown(value)}")
    if what := unstorable(value):
        raise CorpusError(f"{where}: file_name has {what}, which no name of a file has")
    return value


def _find(base: Path, file_name: str, data_dir: Path, where: str, listings: Listings) -> str:
    """The path of a file as it is called on disk; of one that is missing, where it should be."""
    if "\\" in file_name and file_name in listings.names(str(base)):
        return os.path.join(base, file_name)  # as some programs unpack archives made on Windows
    path = resolve_within(base, file_name, data_dir, where)
    return listings.find(path) or composed(path)


def _other_columns(row: Row, where: str, caption_column: str) -> Row:
    others = {key: value for key, value in row.items() if key not in _RESERVED and key != caption_column}
    for key, value in others.items():
        if what := unstorable(key) or unstorable(value):
            raise CorpusError(f"{where}: column {key!a} has {what}, which no data set can hold: take it out")
    return others


def _check_whole_numbers(rows: Sequence[tuple[str, Row]], path: Path) -> None:
    """
    Raises:
        CorpusError: all ids are of the form "12.0", as tables write integers beside missing values.
    """
    ids = [(number, row["video_id"]) for number, row in rows if row.get("video_id")]
    if ids and all(isinstance(video_id, str) and _WHOLE_NUMBER.fullmatch(video_id) for _, video_id in ids):
        number, video_id = ids[0]
        raise CorpusError(
            f"{path}, {number}: video_id {video_id!r}, and all others, are numbers that gained a decimal point: write "
            "ids as strings"
        )


_WHOLE_NUMBER = re.compile(r"\d+\.0")

# Columns that a corpus defines itself.
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


def _merge(videos: dict[str, Row], row: Row) -> None:
    known = videos.setdefault(row["video"], row)
    if known is not row:
        known["captions"] += row["captions"]  # in place: a file may have millions of captions


def _check_ids(rows: Iterable[Row], data_dir: Path) -> None:
    """Videos with one id count as the same video in training and evaluation: never by accident."""
    owners: dict[str, str] = {}
    for row in rows:
        owner = owners.setdefault(row["video_id"], row["video"])
        if owner != row["video"]:
            raise CorpusError(
                f"{some_names([owner, row['video']], data_dir, 2)} both have the id {row['video_id']!r}: give "
                "them ids of their own in a column video_id"
            )

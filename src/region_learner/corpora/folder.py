"""A folder of videos or images with a metadata file, as `datasets` has it; and what all corpora share.

DIR/[SPLIT/]metadata.csv, metadata.jsonl or metadata.parquet
DIR/[SPLIT/]... videos or images, named by the column `file_name` relative to their metadata file
"""

from __future__ import annotations

import csv
import difflib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


logger = logging.getLogger(__name__)

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CAPTION_COLUMNS = ("captions", "caption", "text")
# One split, several names in use.
SPLIT_ALIASES = {"val": "validation", "validation": "val"}

# By what their names end in, lower case, and the likelier of two files of one name first.
VIDEO_EXTENSIONS = (
    ".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".3gp", ".3g2", ".3gpp", ".flv", ".ogv",
    ".ts", ".mts", ".m2ts", ".qt", ".asf", ".divx", ".gif",
)  # fmt: skip
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

# Of a streamed corpus: as many loader processes as this can share the work.
STREAMING_SHARDS = 64

Row = dict[str, Any]


class CorpusError(ValueError):
    """A corpus that cannot be loaded or made as asked: one line with what is wrong, where, and the cure."""


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


def resolve_within(base: Path, file_name: str, data_dir: Path, where: str, what: str = "file_name") -> str:
    """The absolute path of a file, which must not lead out of the corpus.

    Checked by name alone: a link inside the directory was put there by whoever owns it.

    Raises:
        CorpusError: it leads out of `data_dir`.
    """
    path = os.path.normpath(base / file_name)
    if "\0" in path or not path.startswith(os.path.join(data_dir, "")):
        raise CorpusError(f"{where}: {what} {file_name!r} leads outside of {data_dir}: name a file within it")
    return path


def drop_missing(
    rows: list[Row],
    data_dir: Path,
    max_missing: int | float,
    missing_list: str | os.PathLike[str] | None = None,
    split: str = "",
) -> list[Row]:
    """Leaves out rows whose file `video` does not exist, and says which in one warning.

    Directories are listed instead of files looked up: millions of lookups take hours on network file systems.

    Args:
        max_missing, missing_list, split: see `report_missing`.

    Raises:
        CorpusError: more are missing.
    """
    listings: dict[str, set[str]] = {}

    def exists(video: str) -> bool:
        directory, name = os.path.split(video)
        if directory not in listings:
            listings[directory] = set(os.listdir(directory)) if os.path.isdir(directory) else set()
        return name in listings[directory]

    present = [row for row in rows if exists(row["video"])]
    files = {row["video"] for row in rows}
    missing = files - {row["video"] for row in present}
    report_missing(missing, len(files), data_dir, max_missing, missing_list, split)
    return present if missing else rows


def report_missing(
    missing: Iterable[str],
    files: int,
    data_dir: Path,
    max_missing: int | float,
    missing_list: str | os.PathLike[str] | None = None,
    split: str = "",
) -> None:
    """Writes down which files are missing, refuses if they are too many, and warns of them otherwise.

    Args:
        missing: absolute paths.
        files: how many there should be.
        max_missing: how many may be missing: a number, or a fraction (a float below 1) of all files.
        missing_list: text file for the paths, one a line; written anew each time, empty if none is missing, and also
            when they are too many. `{split}` in its name stands for `split`, as each split has a list of its own.

    Raises:
        CorpusError: more are missing, or all; the list cannot be written.
    """
    if isinstance(max_missing, bool) or not isinstance(max_missing, int | float) or not max_missing >= 0:
        raise CorpusError(f"max_missing must be a number of files or a fraction below 1, not {max_missing!r}")
    missing = sorted(missing)
    listed = ""
    if missing_list is not None:
        path = os.path.abspath(os.path.expanduser(str(missing_list).replace("{split}", split)))
        _write_lines(Path(path), missing)
        listed = f" (all of them in {path})"
    if not missing:
        return
    allowed = max_missing * files if isinstance(max_missing, float) and max_missing < 1 else max_missing
    report = f"{len(missing)} of {files} video files named by the metadata are missing under {data_dir}"
    if len(missing) > allowed:
        raise CorpusError(
            f"{report}: {_some_names(missing, data_dir, 3)}{listed}; bring them, or pass max_missing={len(missing)} "
            "to leave them out"
        )
    if len(missing) == files:
        raise CorpusError(f"{report}: none is left{listed}; check data_dir=")
    logger.warning("%s and left out: %s%s", report, _some_names(missing, data_dir, 3 if listed else 100), listed)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    """All or nothing: the processes of a distributed run write the same list at the same time."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Names of files need not be text.
        with temporary.open("w", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(f"{line}\n" for line in lines)
        temporary.replace(path)
    except OSError as error:
        raise CorpusError(f"cannot write missing_list={str(path)!r}: {error}") from error


def _some_names(paths: Sequence[str], data_dir: Path, limit: int) -> str:
    inside = os.path.join(data_dir, "")
    names = ", ".join(path.removeprefix(inside) for path in paths[:limit])
    return f"{names} and {len(paths) - limit} more" if len(paths) > limit else names


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
            types.append((name, pa.array(values).type))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise CorpusError(f"column {name!r} holds values of different types: {error}") from error
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
            Its values are strings or lists of strings (in CSV, a list in JSON).
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
    rows = read_split(directory, split, caption_column=caption_column)
    if media != "all":
        rows = [row for row in rows if row["video"].lower().endswith(_MEDIA[media])]
        if not rows:
            raise CorpusError(f"no {media} among the rows of split {split!r} in {directory}: leave out media=")
    return build_dataset(drop_missing(rows, directory, max_missing, missing_list, split), streaming)


_MEDIA = {"all": ("",), "videos": VIDEO_EXTENSIONS, "images": IMAGE_EXTENSIONS}


def read_split(data_dir: Path, split: str, caption_column: str | None = None) -> list[Row]:
    """The rows of a split, one for each video: `video` (absolute path), `video_id`, `captions`, other columns."""
    metadata = _find_splits(data_dir)
    if split == "all":
        chosen = list(metadata.values())
    else:
        chosen = [_metadata_of_split(metadata, split, data_dir)]
    videos: dict[str, Row] = {}
    for path in chosen:
        for row in _read_videos(path, data_dir, caption_column):
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
        raise CorpusError(
            f"no metadata in {data_dir}: it, or a subdirectory for each split, needs {', '.join(METADATA_FILES[:2])} "
            f"or {METADATA_FILES[2]} with columns file_name and one of {', '.join(CAPTION_COLUMNS)}"
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


def _read_videos(path: Path, data_dir: Path, caption_column: str | None) -> Iterator[Row]:
    """Rows of one metadata file with the common columns."""
    rows = _read_table(path)
    if not rows:
        raise CorpusError(f"{path} has no rows")
    caption_column = _caption_column(rows[0][1], caption_column, path)
    empty = []
    for number, row in rows:
        where = f"{path}, {number}"
        file_name = row.get("file_name")
        if not isinstance(file_name, str) or not file_name.strip():
            raise CorpusError(f"{where}: no file_name")
        captions = _captions(row.get(caption_column), where)
        if not captions:
            empty.append(f"{number} ({file_name})")
            continue
        yield {
            "video": resolve_within(path.parent, file_name, data_dir, where),
            "video_id": str(row.get("video_id") or os.path.splitext(file_name)[0]),
            "captions": captions,
            **{key: value for key, value in row.items() if key not in _RESERVED and key != caption_column},
        }
    if empty:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        raise CorpusError(
            f"{path}: no caption in column {caption_column!r} of {', '.join(empty[:3])}{more}: "
            "fill them in or take the rows out"
        )


# Columns that a corpus defines itself.
_RESERVED = ("file_name", "video", "video_id", "captions")


def _caption_column(row: Row, caption_column: str | None, path: Path) -> str:
    if "file_name" not in row:
        raise CorpusError(f"{path} has no column file_name (columns: {', '.join(row)})")
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


def _captions(value: Any, where: str) -> list[str]:
    """A caption or a list of them as a list; empty if there is none or any is blank."""
    values = [value] if isinstance(value, str) or value is None else value
    if not isinstance(values, list) or not all(isinstance(caption, str | None) for caption in values):
        raise CorpusError(f"{where}: a caption must be a string or a list of strings, not {value!r}")
    return values if all(caption and caption.strip() for caption in values) else []


def _merge(videos: dict[str, Row], row: Row) -> None:
    known = videos.setdefault(row["video"], row)
    if known is not row:
        known["captions"] = known["captions"] + row["captions"]


def _check_ids(rows: Iterable[Row], data_dir: Path) -> None:
    """Videos with one id count as the same video in training and evaluation: never by accident."""
    owners: dict[str, str] = {}
    for row in rows:
        owner = owners.setdefault(row["video_id"], row["video"])
        if owner != row["video"]:
            raise CorpusError(
                f"{_some_names([owner, row['video']], data_dir, 2)} both have the id {row['video_id']!r}: give "
                "them ids of their own in a column video_id"
            )


# --- Metadata files ------------------------------------------------------------------------------------------


def _read_table(path: Path) -> list[tuple[str, Row]]:
    """Rows of a metadata file, each with where it stands in it ("line 3", "row 3").

    Raises:
        CorpusError: the file is damaged.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    try:
        return list(readers[path.suffix](path))
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text: {error}") from error


def _read_csv(path: Path) -> Iterator[tuple[str, Row]]:
    """All values are strings; a list of captions is written as a JSON list."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                where = f"line {reader.line_num}"
                if None in row or None in row.values():
                    raise CorpusError(
                        f"{path}, {where}: not as many fields as the {len(reader.fieldnames or ())} columns of the "
                        "header; put quotes around values with commas"
                    )
                yield where, {key: _parse_list(value) if key == "captions" else value for key, value in row.items()}
        except csv.Error as error:
            raise CorpusError(f"{path}, line {reader.line_num}: {error}") from error


def _parse_list(value: str) -> str | list[Any]:
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        return value
    return parsed if isinstance(parsed, list) else value


def _read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise CorpusError(f"{path}, line {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise CorpusError(f"{path}, line {number}: not a JSON object")
            yield f"line {number}", row


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise CorpusError(f"{path} is not a Parquet file: {error}") from error
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"row {number}", row

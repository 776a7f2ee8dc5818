"""Reads millions of video-caption pairs as Arrow tables, for WebVid and Conceptual Captions."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from .base import CorpusError, PathLike
from .readers import csv_records
from .rows import MISSING_WORDS
from .videos import report_missing

if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)

# Number of strings that are converted to an Arrow array at a time, as Python strings take several times the memory.
_CHUNK = 100_000

# Names that lead out of their directory, absolute paths, and blank names.
_LEADS_OUTSIDE = r"(^|/)\.\.(/|$)|^/|^[A-Za-z]:/|\x00|^$"


def read_delimited(
    path: Path, delimiter: str, names: Sequence[str] | None, wanted: Sequence[str], quoted: bool
) -> pa.Table:
    """Reads columns of a file of delimited text as strings.

    Args:
        names: the names of all columns of a file without a header; None if the file has a header.
        wanted: the columns to read.
        quoted: whether fields may be in double quotes, and may then contain delimiters and line breaks. Otherwise, a
            quote is an ordinary character.
    """
    try:
        table = pa_csv.read_csv(
            path,
            read_options=pa_csv.ReadOptions(column_names=names, block_size=2**24),
            parse_options=pa_csv.ParseOptions(
                delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted
            ),
            convert_options=pa_csv.ConvertOptions(
                include_columns=list(wanted),
                column_types=dict.fromkeys(wanted, pa.string()),
                strings_can_be_null=False,
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        where = _find_damage(path, delimiter, quoted)
        raise CorpusError(where or f"{path} is damaged: {' '.join(str(error).split())}") from error
    suspicious = quoted and (
        _num_lines(path) > _num_lines_of(table) + (names is None)  # also if the quote is in a column that is not read
        or any(_holds_rows(column, delimiter, len(wanted)) for column in table.columns)
    )
    if suspicious and (where := _find_damage(path, delimiter, quoted)):
        raise CorpusError(where)
    return table


def _num_lines(path: Path) -> int:
    """Returns the number of lines of a file that are not empty."""
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _num_lines_of(table: pa.Table) -> int:
    """Returns the number of lines that the rows of a table have, as far as its columns tell."""
    breaks = (pc.sum(pc.count_substring(column, "\n")).as_py() or 0 for column in table.columns)
    return table.num_rows + sum(breaks)


def _holds_rows(values: pa.ChunkedArray, delimiter: str, columns: int) -> bool:
    """Returns whether a field has line breaks and delimiters, as if an unclosed quote has swallowed rows."""
    pattern = rf"[\r\n](?:[^{delimiter}\r\n]*{delimiter}){{{columns - 1}}}"
    return bool(pc.any(pc.match_substring_regex(values, pattern)).as_py())


def read_header(path: Path, delimiter: str, quoted: bool) -> list[str]:
    """Returns the fields of the first row."""
    try:
        return next(_numbered_rows(path, delimiter, quoted))[1]
    except StopIteration:
        raise CorpusError(f"{path} is empty") from None
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text: {error}") from error


def _find_damage(path: Path, delimiter: str, quoted: bool) -> str | None:
    """Reads a file again, row by row, to find the wrong line: Arrow reads in parallel and does not report it."""
    line = expected = 0
    try:
        for line, row in _numbered_rows(path, delimiter, quoted):
            expected = expected or len(row)
            if len(row) != expected:
                return f"{path}, line {line}: {len(row)} fields, expected {expected} as in the first line"
    except UnicodeDecodeError as error:
        return f"{path} is not UTF-8 text after line {line}: {error}"
    except csv.Error as error:
        return f"{path}, line {line + 1}: {error}"
    except CorpusError as error:
        return str(error)
    return None


def _numbered_rows(path: Path, delimiter: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    if quoted:
        yield from csv_records(path, delimiter, strict=False)
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        for row in rows:
            if row:
                yield rows.line_num, row


def check_names(names: pa.ChunkedArray, path: Path, what: str) -> None:
    """Checks that no file name is blank or leads out of its directory, and that not all gained a decimal point."""
    wrong = pc.match_substring_regex(names, _LEADS_OUTSIDE)
    if pc.any(wrong).as_py():
        row = pc.index(wrong, True).as_py()
        raise CorpusError(
            f"{path}, row {row + 1} (not counting a header): {what} {names[row].as_py()!r} is blank or leads outside "
            "of the directory of the files"
        )
    if len(names) and pc.all(pc.match_substring_regex(names, r"^\d+\.0$")).as_py():
        raise CorpusError(
            f"{path}: all values of {what} are floats, such as {names[0].as_py()!r}; integers in a column "
            "with missing values become floats: write them as strings"
        )


def normalize_names(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns file names with slashes instead of backslashes, in the composed form of Unicode."""
    names = pc.replace_substring(names, "\\", "/")
    return names if pc.all(pc.string_is_ascii(names)).as_py() else pc.utf8_normalize(names, form="NFC")


def list_files(
    roots: Sequence[Path], directories: Iterable[str], extensions: Sequence[str]
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Lists the files in `directories` of `roots`. Each directory is listed once.

    Args:
        directories: names relative to the roots; "" is a root itself.
        extensions: the extensions of the files to list, in lower case; "" stands for names without a dot.

    Returns:
        Names relative to the root without extension, and absolute paths, in the same order.
    """
    wanted = set(directories)
    stems, paths = _Strings(), _Strings()
    for root in roots:
        # Listing the root once avoids looking for directories that it does not have.
        names = os.listdir(root)
        there = {"", *names}
        for directory in sorted(name for name in wanted if name.partition("/")[0] in there):
            base = os.path.join(root, directory)
            try:
                entries = names if not directory else os.listdir(base)
            except (NotADirectoryError, FileNotFoundError):
                continue
            prefix = f"{directory}/" if directory else ""
            for name in entries:
                stem, extension = os.path.splitext(name)
                if extension.lower() in extensions:
                    stems.append(prefix + stem)
                    paths.append(os.path.join(base, name))
    return stems.to_arrow(), paths.to_arrow()


class _Strings:
    """Collects strings into an Arrow array."""

    def __init__(self) -> None:
        self._chunks: list[pa.Array] = []
        self._pending: list[str] = []

    def append(self, value: str) -> None:
        self._pending.append(value)
        if len(self._pending) == _CHUNK:
            self._flush()

    def _flush(self) -> None:
        # An annotation file cannot name a file whose name is not UTF-8.
        values = [value.encode("utf-8", "replace").decode("utf-8") for value in self._pending]
        self._chunks.append(pa.array(values, pa.string()))
        self._pending = []

    def to_arrow(self) -> pa.ChunkedArray:
        self._flush()
        return pa.chunked_array(self._chunks, pa.string())


def locate(wanted: pa.ChunkedArray, stems: pa.ChunkedArray, paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the path of the first file with each wanted stem, or null."""
    found = pc.index_in(normalize_names(wanted), value_set=normalize_names(stems).combine_chunks())
    return pc.take(paths, found)


def map_strings(values: pa.ChunkedArray, function: Callable[[str], str]) -> pa.ChunkedArray:
    """Applies a function to every string."""
    chunks = []
    for chunk in values.chunks:
        for start in range(0, len(chunk), _CHUNK):
            chunks.append(pa.array(map(function, chunk.slice(start, _CHUNK).to_pylist()), pa.string()))
    return pa.chunked_array(chunks, pa.string())


def build_pairs(
    table: pa.Table,
    source: Path,
    data_dir: Path,
    split: str,
    max_missing: int | float,
    missing_list: PathLike | None,
    places: Sequence[Path] = (),
) -> Dataset:
    """Builds the dataset of a table. Blank captions and missing files are left out, with one warning for each kind.

    Args:
        table: columns `video_id`, `caption`, `video` (null for a missing file) and `expected` (the path where it
            should be). Rows of the same file become one row with all their captions.
        source: the file that the captions come from, for messages.
        max_missing, missing_list: see `report_missing`.
        places: the directories that were searched for the files.
    """
    from datasets import Dataset

    caption = pc.utf8_trim_whitespace(table["caption"])
    table = table.set_column(table.column_names.index("caption"), "caption", caption)
    blank = pc.is_in(caption, value_set=pa.array(["", *sorted(MISSING_WORDS)]))
    if number := pc.sum(blank).as_py():
        logger.warning("left out %d rows with a blank caption: %s", number, source)
        table = table.filter(pc.invert(blank))
    if not table.num_rows:
        raise CorpusError(f"no row with a caption in {source}")
    missing = pc.unique(table["expected"].filter(pc.is_null(table["video"]))).to_pylist()
    files = len(missing) + pc.count_distinct(table["video"]).as_py()
    report_missing(missing, files, data_dir, max_missing, missing_list, split, places)
    table = table.select(["video", "video_id", "caption"])
    if missing:
        table = table.filter(pc.is_valid(table["video"]))
    if files - len(missing) == table.num_rows:
        table = table.set_column(2, "captions", _each_a_list(table["caption"]))
    else:
        grouped = table.group_by(["video"], use_threads=False)
        table = grouped.aggregate([("video_id", "first"), ("caption", "list")])
        table = table.select(["video", "video_id_first", "caption_list"]).rename_columns(
            ["video", "video_id", "captions"]
        )
    return Dataset(table, fingerprint=_fingerprint(table))


def _each_a_list(values: pa.ChunkedArray) -> pa.ChunkedArray:
    lists = [pa.ListArray.from_arrays(pa.array(range(len(chunk) + 1), pa.int32()), chunk) for chunk in values.chunks]
    return pa.chunked_array(lists, pa.list_(pa.string()))


def _fingerprint(table: pa.Table) -> str:
    """Hashes the content. The fingerprint that `datasets` computes by default needs a copy of the table in memory."""
    digest = hashlib.blake2b(digest_size=8)
    for name, column in zip(table.column_names, table.columns):
        digest.update(name.encode())
        for chunk in column.chunks:
            digest.update(f"{chunk.offset},{len(chunk)}".encode())
            for buffer in chunk.buffers():
                digest.update(buffer or b"")
    return digest.hexdigest()

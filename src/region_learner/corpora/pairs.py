"""Pairs by the million, column by column in Arrow memory: what WebVid and Conceptual Captions share."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from .common import PathLike, logger
from .errors import CorpusError
from .folder import STREAMING_SHARDS
from .paths import report_missing
from .tables import csv_records
from .values import MISSING_WORDS

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


# Strings that are turned into Arrow arrays at once: Python strings take several times the memory.
_CHUNK = 100_000

# A name in this form leads out of its directory, or is an absolute path.
_LEADS_OUTSIDE = r"(^|/)\.\.(/|$)|^/|^[A-Za-z]:/|\x00|^$"


def read_delimited(
    path: Path, delimiter: str, names: Sequence[str] | None, wanted: Sequence[str], quoted: bool
) -> pa.Table:
    """Columns of a file of delimited text as strings.

    Args:
        names: of all columns of a file without a header; None if it has one.
        wanted: columns to read.
        quoted: fields may stand in double quotes and then hold delimiters and line breaks; else a quote is a
            character like any other.

    Raises:
        CorpusError: a row has another number of fields, a quote is not closed, or the file is not UTF-8 text.
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
    suspicious = quoted and any(_holds_rows(column, delimiter, len(wanted)) for column in table.columns)
    if suspicious and (where := _find_damage(path, delimiter, quoted)):
        raise CorpusError(where)
    return table


def _holds_rows(values: pa.ChunkedArray, delimiter: str, columns: int) -> bool:
    """Whether a field may have swallowed rows, by a quote that is not closed: line breaks and as many delimiters."""
    pattern = rf"[\r\n](?:[^{delimiter}\r\n]*{delimiter}){{{columns - 1}}}"
    return bool(pc.any(pc.match_substring_regex(values, pattern)).as_py())


def read_header(path: Path, delimiter: str, quoted: bool) -> list[str]:
    """The fields of the first row.

    Raises:
        CorpusError: the file is empty or not UTF-8 text.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(_rows(file, delimiter, quoted))
    except StopIteration:
        raise CorpusError(f"{path} is empty") from None
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text: {error}") from error


def _rows(file: Iterable[str], delimiter: str, quoted: bool) -> Any:
    return csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)


def _find_damage(path: Path, delimiter: str, quoted: bool) -> str | None:
    """Which line is wrong: read again row by row, as Arrow reads blocks in parallel and does not tell."""
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
        rows = _rows(file, delimiter, quoted)
        for row in rows:
            if row:
                yield rows.line_num, row


def check_names(names: pa.ChunkedArray, path: Path, what: str) -> None:
    """
    Raises:
        CorpusError: a name leads out of the directory that it is in, or is blank.
    """
    wrong = pc.match_substring_regex(names, _LEADS_OUTSIDE)
    if pc.any(wrong).as_py():
        row = pc.index(wrong, True).as_py()
        raise CorpusError(
            f"{path}, row {row + 1} below any header: {what} {names[row].as_py()!r} is blank or leads outside of the "
            "directory of the files"
        )
    if len(names) and pc.all(pc.match_substring_regex(names, r"^\d+\.0$")).as_py():
        raise CorpusError(
            f"{path}: {what} {names[0].as_py()!r}, and all others, are numbers that gained a decimal point: write "
            "them as strings"
        )


def plain_names(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """Names of files with slashes instead of backslashes, and in the composed form of Unicode."""
    names = pc.replace_substring(names, "\\", "/")
    return names if pc.all(pc.string_is_ascii(names)).as_py() else pc.utf8_normalize(names, form="NFC")


def list_files(
    roots: Sequence[Path], directories: Iterable[str], extensions: Sequence[str]
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """All files in `directories` of `roots`, each directory listed once.

    Args:
        directories: relative names, "" for a root itself.
        extensions: of the files to take, lower case; "" among them takes names without a dot.

    Returns:
        Names relative to the root without extension, and absolute paths; as many of both.
    """
    wanted = set(directories)
    stems, paths = _Strings(), _Strings()
    for root in roots:
        # One listing of the root spares looking for directories that it does not have.
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
    return stems.finish(), paths.finish()


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
        # Names that are not UTF-8 cannot be named by an annotation file either.
        values = [value.encode("utf-8", "replace").decode("utf-8") for value in self._pending]
        self._chunks.append(pa.array(values, pa.string()))
        self._pending = []

    def finish(self) -> pa.ChunkedArray:
        self._flush()
        return pa.chunked_array(self._chunks, pa.string())


def locate(wanted: pa.ChunkedArray, stems: pa.ChunkedArray, paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """The path of the first file with each wanted stem, null where there is none."""
    found = pc.index_in(plain_names(wanted), value_set=plain_names(stems).combine_chunks())
    return pc.take(paths, found)


def map_strings(values: pa.ChunkedArray, function: Callable[[str], str]) -> pa.ChunkedArray:
    chunks = []
    for chunk in values.chunks:
        for start in range(0, len(chunk), _CHUNK):
            chunks.append(pa.array(map(function, chunk.slice(start, _CHUNK).to_pylist()), pa.string()))
    return pa.chunked_array(chunks, pa.string())


def pairs_dataset(
    table: pa.Table,
    source: Path,
    data_dir: Path,
    split: str,
    streaming: bool,
    max_missing: int | float,
    missing_list: PathLike | None,
    places: Sequence[Path] = (),
) -> Dataset | IterableDataset:
    """Leaves out blank captions and missing files with a warning of each kind, and builds the data set.

    Args:
        table: `video_id`, `caption`, `video` (null where the file is missing) and `expected` (where it should be);
            rows of the same file become one row with all their captions.
        source: the file that captions come from.
        places: directories that the files were looked for in.

    Raises:
        CorpusError: more files are missing than `max_missing`; no row is left.
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
    dataset = Dataset(table, fingerprint=_fingerprint(table))
    return dataset.to_iterable_dataset(min(STREAMING_SHARDS, len(dataset))) if streaming else dataset


def _each_a_list(values: pa.ChunkedArray) -> pa.ChunkedArray:
    lists = [pa.ListArray.from_arrays(pa.array(range(len(chunk) + 1), pa.int32()), chunk) for chunk in values.chunks]
    return pa.chunked_array(lists, pa.list_(pa.string()))


def _fingerprint(table: pa.Table) -> str:
    """Of the content. That which `datasets` makes by itself holds a copy of the table in memory."""
    digest = hashlib.blake2b(digest_size=8)
    for name, column in zip(table.column_names, table.columns):
        digest.update(name.encode())
        for chunk in column.chunks:
            digest.update(f"{chunk.offset},{len(chunk)}".encode())
            for buffer in chunk.buffers():
                digest.update(buffer or b"")
    return digest.hexdigest()

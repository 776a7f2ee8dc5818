"""Readers of metadata: CSV, JSON, tab-separated files, lists and Parquet. Each row comes with its place in the file.

The contents of files are checked: a `CorpusError` names the file and the line.
"""

from __future__ import annotations

import csv
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .base import CorpusError, PathLike, Row
from .videos import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS

logger = logging.getLogger(__name__)


# --- Metadata of the user's own ------------------------------------------------------------------------------


def read_table(path: Path) -> list[tuple[str, Row]]:
    """Returns the rows of a .csv, .jsonl or .parquet file, each with its place in the file ("line 3", "row 3")."""
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    try:
        return list(readers[path.suffix](path))
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text: {error}") from error


def csv_records(
    path: Path, delimiter: str = ",", strict: bool = True, is_row: Callable[[list[str]], bool] | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows of a CSV file, the header first, each with the number of its first line. Blank rows are skipped.

    A quote that is opened but not closed makes the rest of the file, or the rows up to the next quote, part of one
    field. CSV readers accept this silently; here it is an error.

    Args:
        strict: whether to refuse text after a closing quote, as in `"Hello" he said`. Otherwise, it becomes part of
            the field, without the quotes.
        is_row: function that returns whether a line within a field looks like a swallowed row, given the fields of
            that line, which are as many as in the header. By default, every such line does if there are at least three
            columns.
    """
    line = ""
    columns = 0
    with path.open(encoding="utf-8-sig", newline="") as file:

        def lines() -> Iterator[str]:
            nonlocal line
            for line in file:  # noqa: UP028, `line` is used below
                yield line

        reader = csv.reader(lines(), delimiter=delimiter, strict=True)
        while True:
            start = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                if strict or reader.line_num != start:
                    raise CorpusError(_csv_problem(path, start, reader.line_num, error)) from error
                fields = next(csv.reader([line], delimiter=delimiter))
            if fields is None:
                return
            if not fields:
                continue
            columns = columns or len(fields)
            if reader.line_num != start and _swallows_rows(fields, columns, delimiter, is_row):
                raise CorpusError(
                    f"{path}, line {start}: a quote is opened here and closed in line {reader.line_num}, so the rows "
                    "in between become one field: close it; to write a quote inside a quoted field, double it"
                )
            yield start, fields


def _csv_problem(path: Path, start: int, end: int, error: csv.Error) -> str:
    if "field limit" in str(error) and start == end:
        return (
            f"{path}, line {start}: a field has more than {csv.field_size_limit()} characters, the limit for CSV: use "
            "metadata.jsonl instead"
        )
    if "end of data" in str(error) or "field limit" in str(error):
        return f"{path}, line {start}: a quote is opened here and never closed, so later rows are lost: close it"
    after = "" if start == end else f", which is closed in line {end}"
    return (
        f"{path}, line {start}: text follows the end of a quoted field{after} ({error}): quote the whole field, and "
        "double the quotes within it"
    )


def _swallows_rows(
    fields: Sequence[str], columns: int, delimiter: str, is_row: Callable[[list[str]], bool] | None
) -> bool:
    """Returns whether a field holds a line break followed by something that looks like a row."""
    for field in fields:
        for line in field.splitlines()[1:]:
            inner = next(csv.reader([line], delimiter=delimiter), [])
            if len(inner) == columns and (is_row(inner) if is_row else columns > 2):
                return True
    return False


def check_header(header: Sequence[str], path: Path) -> None:
    """Checks that no two columns have the same name: only one of them could be read."""
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise CorpusError(f"{path} has two columns {twice[0]!r}: rename one of them")


def _read_csv(path: Path) -> Iterator[tuple[str, Row]]:
    header: list[str] = []

    def is_row(fields: list[str]) -> bool:
        name = fields[header.index("file_name")] if "file_name" in header else ""
        return name.lower().endswith((*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS))

    for number, row in _csv_rows(csv_records(path, is_row=is_row), header, path):
        yield f"line {number}", row


def _csv_rows(
    records: Iterable[tuple[int, list[str]]], header: list[str], path: Path
) -> Iterator[tuple[int, dict[str, str]]]:
    """Fills `header` with the fields of the first record, and yields the others as rows."""
    for number, fields in records:
        if not header:
            check_header(fields, path)
            header += fields
        elif len(fields) != len(header):
            raise CorpusError(
                f"{path}, line {number}: the number of fields is {len(fields)}, but the header has {len(header)}; put "
                "quotes around values with commas"
            )
        else:
            yield number, dict(zip(header, fields))


def parse_json(text: str, path: Path, line: int | None = None) -> Any:
    """Parses the text of a file, or of one of its lines."""
    where = str(path) if line is None else f"{path}, line {line}"
    try:
        return json.loads(text)
    except RecursionError:
        raise CorpusError(f"{where}: lists or objects are nested too deeply") from None
    except json.JSONDecodeError as error:
        raise CorpusError(f"{path}, line {line or error.lineno}: not JSON: {error}") from error
    except ValueError as error:  # such as a number of thousands of digits
        raise CorpusError(f"{where}: {error}") from error


def _read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = parse_json(line, path, number)
            if not isinstance(row, dict):
                raise CorpusError(f"{path}, line {number}: not a JSON object")
            yield f"line {number}", row


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except pa.ArrowException as error:
        raise CorpusError(f"{path} is not a Parquet file: {error}") from error
    check_header(table.column_names, path)
    columns = {}
    for name in table.column_names:
        try:
            columns[name] = table[name].to_pylist()
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise CorpusError(
                f"{path}: column {name!r} of type {table[name].type} has values that Python cannot represent: "
                f"{error}; remove it, or write it as strings"
            ) from error
    for number in range(table.num_rows):
        yield f"row {number + 1}", {name: values[number] for name, values in columns.items()}


# --- Annotation files of benchmarks --------------------------------------------------------------------------

# Directories below data_dir that are searched for annotation files, in this order.
ANNOTATION_DIRS = (
    "",
    "annotation",
    "annotations",
    "metadata",
    "meta_data",
    "splits",
    "high-quality/structured-symlinks",
)


def look_for(data_dir: Path, names: Sequence[str], directories: Sequence[str] = ()) -> Path | None:
    """Returns the first of the files `names` in `data_dir` or in one of its usual annotation directories, or None."""
    for name in names:
        for directory in (*ANNOTATION_DIRS, *directories):
            path = data_dir / directory / name
            if path.is_file():
                return path
    return None


def find_annotation(data_dir: Path, names: Sequence[str], what: str, directories: Sequence[str] = ()) -> Path:
    """Works like `look_for`, but raises an error if none of the files exists."""
    path = look_for(data_dir, names, directories)
    if path is None:
        places = ", ".join(f"{directory}/" for directory in (*ANNOTATION_DIRS, *directories) if directory)
        raise CorpusError(
            f"no {what} in {data_dir}: looked for {' or '.join(names)} there and in {places}; put the file there or "
            "check data_dir="
        )
    return path


def given_file(data_dir: Path, file: PathLike) -> Path:
    """Returns the path of the file that the option `file` names, absolute or relative to `data_dir`."""
    path = Path(os.path.normpath(data_dir / os.path.expanduser(file)))
    if not path.is_file():
        raise CorpusError(f"{path} is not a file: check file=")
    return path


def check_count(found: int, published: int | Sequence[int], what: str, path: Path) -> None:
    """Warns if a list is not as long as published. Some lists only contain what could still be downloaded."""
    expected = [published] if isinstance(published, int) else list(published)
    if found not in expected:
        numbers = " or ".join(f"{number:,}" for number in expected)
        logger.warning("%s: expected %s, found %s in %s", what, numbers, f"{found:,}", path)


def read_list(path: Path) -> list[tuple[str, str]]:
    """Returns the non-blank lines of a text file, stripped, each with its place in the file."""
    return [(f"{path}, line {number}", line.strip()) for number, line in _read_lines(path)]


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file."""
    return parse_json(_read_text(path), path)


def read_entries(path: Path) -> list[tuple[str, Row]]:
    """Returns the objects of a JSON list or of JSON lines, each with its place in the file, for messages."""
    text = _read_text(path)
    if text.lstrip().startswith("["):
        values = parse_json(text, path)
        entries = [(f"{path}, entry {number}", value) for number, value in enumerate(values, start=1)]
    else:
        entries = [(f"{path}, line {number}", parse_json(line, path, number)) for number, line in _read_lines(path)]
    for where, value in entries:
        if not isinstance(value, dict):
            raise CorpusError(f"{where}: not a JSON object")
    if not entries:
        raise CorpusError(f"{path} is empty")
    return entries


def text_field(entry: Mapping[str, Any], name: str, where: str) -> str:
    """Returns a string of an entry, stripped."""
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        raise CorpusError(f"{where}: {name!r} must be a string that is not blank, not {value!r}")
    return value.strip()


def check_strings(value: Any, where: str) -> list[str]:
    """Returns `value`, a list of strings."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise CorpusError(f"{where}: expected a list of strings, not {value!r:.100}")
    return value


def read_csv(path: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Returns the named columns of a CSV file with a header, each row with its place. Other columns are ignored."""
    header: list[str] = []
    try:
        rows = list(_csv_rows(csv_records(path, strict=False), header, path))
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text: {error}") from error
    if absent := [name for name in columns if header and name not in header]:
        raise CorpusError(f"{path} has no column {' or '.join(absent)} (columns: {', '.join(header)})")
    if not rows:
        raise CorpusError(f"{path} has no rows" if header else f"{path} is empty")
    return [(f"{path}, line {number}", {name: row[name].strip() for name in columns}) for number, row in rows]


def read_tsv(path: Path, columns: Sequence[int]) -> list[tuple[str, list[str]]]:
    """Returns the fields of a tab-separated file without header and quotes, each row with its place in the file.

    Args:
        columns: the numbers of fields that a row may have.
    """
    rows = []
    for number, line in _read_lines(path):
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) not in columns:
            expected = " or ".join(map(str, columns))
            raise CorpusError(f"{path}, line {number}: {len(fields)} tab-separated fields, expected {expected}")
        rows.append((f"{path}, line {number}", fields))
    return rows


def _read_lines(path: Path) -> list[tuple[int, str]]:
    lines = [(number, line) for number, line in enumerate(_read_text(path).split("\n"), start=1) if line.strip()]
    if not lines:
        raise CorpusError(f"{path} is empty")
    return lines


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text: {error}") from error

"""Tables of metadata: CSV, JSON lines and Parquet, row by row, each row with where it stands."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import CorpusError
from .paths import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS

Row = dict[str, Any]


def read_table(path: Path) -> list[tuple[str, Row]]:
    """Rows of a metadata file, each with where it stands in it ("line 3", "row 3").

    Raises:
        CorpusError: the file is damaged.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    try:
        return list(readers[path.suffix](path))
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text: {error}") from error


# --- CSV -----------------------------------------------------------------------------------------------------


def csv_records(
    path: Path, delimiter: str = ",", strict: bool = True, is_row: Callable[[list[str]], bool] | None = None
) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file, the header first, each with the number of the line it begins in; blank ones are not.

    A quote that is opened and not closed makes the rest of the file, or the rows up to the next quote, part of one
    field, which no CSV reader complains of. Here it is an error.

    Args:
        strict: refuse text after a closing quote, `"Hello" he said`; else it is part of the field, without quotes.
        is_row: whether the fields of a line within a field look like a row that the field has swallowed; they are as
            many as the header has. By default all do, from three columns on.

    Raises:
        CorpusError: a quote is not closed, or closed in a later row.
    """
    line = ""
    columns = 0
    with path.open(encoding="utf-8-sig", newline="") as file:

        def lines() -> Iterator[str]:
            nonlocal line
            for line in file:  # noqa: UP028, as it is looked at below
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
                    f"{path}, line {start}: a quote is opened here and closed in line {reader.line_num}, so that the "
                    "rows between are part of one field: close it, or write quotes that are text twice, in a quoted "
                    "field"
                )
            yield start, fields


def _csv_problem(path: Path, start: int, end: int, error: csv.Error) -> str:
    if "field limit" in str(error) and start == end:
        return f"{path}, line {start}: a field of more than {csv.field_size_limit()} characters: write it as .jsonl"
    if "end of data" in str(error) or "field limit" in str(error):
        return f"{path}, line {start}: a quote is opened here and never closed, so that later rows are lost: close it"
    after = "" if start == end else f", which is closed in line {end}"
    return (
        f"{path}, line {start}: text follows the end of a quoted field{after} ({error}): quote all of the field, and "
        "write quotes within it twice"
    )


def _swallows_rows(
    fields: Sequence[str], columns: int, delimiter: str, is_row: Callable[[list[str]], bool] | None
) -> bool:
    """Whether a field holds a line break and then what looks like a row."""
    for field in fields:
        for line in field.splitlines()[1:]:
            inner = next(csv.reader([line], delimiter=delimiter), [])
            if len(inner) == columns and (is_row(inner) if is_row else columns > 2):
                return True
    return False


def check_header(header: Sequence[str], path: Path) -> None:
    """
    Raises:
        CorpusError: two columns have one name, so that only one of them could be read.
    """
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise CorpusError(f"{path} has two columns {twice[0]!r}: rename one of them")


def _read_csv(path: Path) -> Iterator[tuple[str, Row]]:
    """All values are strings; a list is written as a JSON list."""
    header: list[str] = []

    def is_row(fields: list[str]) -> bool:
        name = fields[header.index("file_name")] if "file_name" in header else ""
        return name.lower().endswith((*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS))

    for number, fields in csv_records(path, is_row=is_row):
        if not header:
            check_header(fields, path)
            header = fields
        elif len(fields) != len(header):
            raise CorpusError(
                f"{path}, line {number}: not as many fields as the {len(header)} columns of the header; put quotes "
                "around values with commas"
            )
        else:
            yield f"line {number}", dict(zip(header, fields))


# --- JSON ----------------------------------------------------------------------------------------------------


def parse_json(text: str, path: Path, line: int | None = None) -> Any:
    """The value of a file, or of one of its lines.

    Raises:
        CorpusError: it is not JSON, or is nested too deeply.
    """
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


# --- Parquet -------------------------------------------------------------------------------------------------


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
                f"{path}: column {name!r} of type {table[name].type} holds values that Python cannot: {error}; take "
                "it out, or write it as strings"
            ) from error
    for number in range(table.num_rows):
        yield f"row {number + 1}", {name: values[number] for name, values in columns.items()}

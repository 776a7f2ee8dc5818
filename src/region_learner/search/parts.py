"""
Embeddings of videos as Parquet parts, which are written by jobs on many machines and joined into an index.

Job i of n writes `part-i-of-n-0000.parquet` and so on, with one row per window, and one for each video that cannot be
read. The metadata of each part records how it was made. The last part of a job also records the hash of the list of
videos that the job has finished.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import naming, near_file, partial_of, sync_directory
from .database import Record
from .sources import Video
from .spans import check_windows
from .windows import Windows, are_tokens, are_units, is_token_shape

if TYPE_CHECKING:  # importing it takes too long for commands that do not need it
    import pyarrow as pa

FORMAT = 1

_KEY = b"region_learner"
_NAME = re.compile(r"part-(\d{5,9})-of-(\d{5,9})-(\d{4,9})\.parquet")

# A part is written when it has this many windows, or after this many seconds. A killed job loses no more than that.
_WINDOWS = 2**15
_SECONDS = 300

_GROUP = 2**13  # number of rows that are compressed and read together
_MOST_PIECES = 128  # maximum number of such groups per video: 60 days in steps of 5 s
_MOST_DIMENSIONS = 2**14
_EMBEDDINGS = ("vector", "tokens", "token_weights")
_ROUNDING = 1e-3

# What to do about a damaged part: parts that exist are not made again.
_CURE = "Delete the parts of its shard, and run `region-learner embed` for this shard again."

# The settings that are equal in all parts of an index. The name of the model may differ, because its path may differ
# between machines.
COMMON = ("weights", "preprocessing", "dim", "num_frames", "window", "stride", "tokens")


def schema_of(about: dict[str, Any]) -> pa.Schema:
    """Returns the columns of a part. Columns of windows are null for an unreadable video."""
    import pyarrow as pa

    tokens = []
    if about["tokens"] is not None:
        of_token = pa.list_(pa.float16(), about["tokens"][1])
        tokens = [("tokens", pa.list_(of_token)), ("token_weights", pa.list_(pa.float16()))]
    return pa.schema(
        [
            ("path", pa.string()),
            ("start", pa.float64()),
            ("end", pa.float64()),
            ("vector", pa.list_(pa.float32(), about["dim"])),
            *tokens,
            ("duration", pa.float64()),
            ("sha256", pa.string()),
            ("size", pa.int64()),
            ("modified", pa.int64()),
            ("shard", pa.string()),
            ("offset", pa.int64()),
            ("root", pa.string()),
            ("error", pa.string()),
        ]
    )


@dataclass(frozen=True)
class PartFile:
    """
    A part that was found.

    Args:
        path: path of the file.
        shard, shards: job `shard` of `shards`, counted from 0, wrote it.
        number: number of the part within the job.
        about: the settings that an index must match, as in `VideoIndex.about`, and "neutral".
        created: when it was written, in nanoseconds.
        finished: hash of the list of videos that the job has finished with this part; None if the job is not finished.
    """

    path: Path
    shard: int
    shards: int
    number: int
    about: dict[str, Any]
    created: int
    finished: str | None


# --- Writing -------------------------------------------------------------------------------------------------


class PartWriter:
    """
    Writes the parts of one job, each atomically. If an error ends the `with` block, the videos so far are written.

    Args:
        directory: directory of the parts.
        about: the settings that the embeddings were made with.
        shard, shards: index of the job, and number of jobs.
        parts: the existing parts.
    """

    def __init__(
        self, directory: Path, about: dict[str, Any], shard: int, shards: int, parts: Sequence[PartFile] = ()
    ):
        self.directory, self.about, self.shard, self.shards = directory, about, shard, shards
        own = sorted((part for part in parts if part.shard == shard), key=lambda part: part.number)
        self.finished = own[-1].finished if own else None
        self.next = own[-1].number + 1 if own else 0
        self.waiting: list[tuple[Record, Windows]] = []
        self.since = time.monotonic()

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.waiting:
            self._write(None)

    def put(self, record: Record, windows: Windows) -> None:
        """Adds a video with its windows. An unreadable video has none."""
        self.waiting.append((record, windows))
        rows = sum(max(1, len(windows)) for _, windows in self.waiting)
        if rows >= _WINDOWS or time.monotonic() - self.since > _SECONDS:
            self._write(None)

    def finish(self, videos: str) -> None:
        """Writes the remaining videos. `videos` is the hash of the list of videos that is finished."""
        if self.waiting or self.finished != videos:
            self._write(videos)

    def _write(self, finished: str | None) -> None:
        import pyarrow.parquet as pq

        content = {"format": FORMAT, "about": self.about, "created": time.time_ns(), "finished": finished}
        table = table_of(self.waiting, self.about).replace_schema_metadata({_KEY: json.dumps(content)})
        path = self.directory / f"part-{self.shard:05}-of-{self.shards:05}-{self.next:04}.parquet"
        partial = partial_of(path)
        try:
            with naming(path):
                names = [name for name in table.column_names if name not in _EMBEDDINGS]  # as their values repeat
                with open(partial, "wb") as file:
                    pq.write_table(
                        table,
                        file,
                        row_group_size=_GROUP,
                        compression="zstd",
                        use_dictionary=names,
                        write_page_checksum=True,
                    )
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        sync_directory(self.directory)
        self.waiting, self.since, self.next, self.finished = [], time.monotonic(), self.next + 1, finished


def table_of(videos: list[tuple[Record, Windows]], about: dict[str, Any]) -> pa.Table:
    """Returns a table with one row per window, followed by one row per unreadable video."""
    import pyarrow as pa

    schema = schema_of(about)
    readable = [(record, windows) for record, windows in videos if record.error is None]
    unreadable = pa.Table.from_pylist([_row(record) for record, _ in videos if record.error is not None], schema)
    counts = np.array([len(windows) for _, windows in readable], np.int64)
    table = pa.Table.from_pylist([_row(record) for record, _ in readable], schema)
    table = table.take(pa.array(np.repeat(np.arange(len(readable)), counts)))
    spans = np.concatenate([np.empty((0, 2)), *(record.spans for record, _ in readable)])
    windows = Windows.concatenate([Windows.empty(about), *(windows for _, windows in readable)])
    columns = {
        "start": pa.array(spans[:, 0]),
        "end": pa.array(spans[:, 1]),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(windows.vectors.reshape(-1)), about["dim"]),
    }
    if about["tokens"] is not None:
        columns |= _token_columns(windows.tokens)
    for name, values in columns.items():
        table = table.set_column(schema.get_field_index(name), schema.field(name), values)
    return pa.concat_tables([table, unreadable])


def _token_columns(tokens: np.ndarray | None) -> dict[str, pa.Array]:
    """Returns the columns of tokens (W, n, 1 + d)."""
    import pyarrow as pa

    assert tokens is not None
    count, number, width = tokens.shape
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * number)
    embeds = pa.FixedSizeListArray.from_arrays(pa.array(tokens[..., 1:].reshape(-1)), width - 1)
    return {
        "tokens": pa.ListArray.from_arrays(offsets, embeds),
        "token_weights": pa.ListArray.from_arrays(offsets, pa.array(tokens[..., 0].reshape(-1))),
    }


def _row(record: Record) -> dict[str, Any]:
    video, readable = record.video, record.error is None
    return {
        "path": as_text(video.path),
        "duration": record.duration if readable else None,
        "sha256": record.sha256,
        "size": video.size,
        "modified": video.modified,
        "shard": None if video.shard is None else as_text(video.shard),
        "offset": video.offset,
        "root": as_text(record.root),
        "error": record.error,
    }


# The reason for leaving out a video: its path could not be read back from a table.
NOT_TEXT = "its name is not UTF-8, which tables need: rename it"


def is_text(path: str) -> bool:
    """Returns whether a table can store a path."""
    return as_text(path) == path


def as_text(path: str) -> str:
    """Returns a path as text. Parquet cannot store file names that are not UTF-8, so their bytes become escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# --- Reading -------------------------------------------------------------------------------------------------


def list_parts(paths: Sequence[str | os.PathLike[str]], may_be_empty: bool = False) -> list[PartFile]:
    """
    Returns the parts in `paths`, sorted by name. Each path is a part or a directory of parts.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a path has no parts, or a file is not a part or is damaged.
    """
    files: set[Path] = set()
    for given in paths:
        path = Path(given)
        if not path.is_dir() and not path.exists():
            raise FileNotFoundError(f"There is no file or folder {path}{near_file(path)}")
        found = sorted(path.glob("[!.]*.parquet")) if path.is_dir() else [path]
        if not found and not may_be_empty:
            raise ValueError(f"{path} does not contain any parts: `region-learner embed` writes them.")
        files.update(file.resolve() for file in found)
    return [_header(path) for path in sorted(files)]


def _header(path: Path) -> PartFile:
    """Returns the description of a part, from its name and its metadata."""
    name = _NAME.fullmatch(path.name)
    if not name or int(name[1]) >= int(name[2]):
        raise ValueError(f"{path} does not have the name of a part, such as part-00000-of-00004-0000.parquet.")
    with open_part(path) as file:
        try:
            content = json.loads((file.schema_arrow.metadata or {})[_KEY])
            about = {"tokens": None} | content["about"]  # earlier versions did not have any
            created, finished = content["created"], content["finished"]
            is_right = content["format"] == FORMAT and type(created) is int and type(finished) in (str, type(None))
            is_right = is_right and _is_about(about)
        except (KeyError, TypeError, ValueError, RecursionError):
            is_right = False
        if not is_right:
            raise ValueError(
                f"{path} is not a part of format {FORMAT}: embed its videos with this version of region-learner, in a "
                "new directory."
            )
        if file.schema_arrow.remove_metadata() != schema_of(about):
            raise ValueError(f"{path} is damaged: it does not have the columns of a part. {_CURE}")
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group)
            if size.num_rows > _GROUP or size.total_byte_size > _GROUP * _most_bytes(about):
                raise ValueError(f"{path} is damaged: row group {group} is too large for a part. {_CURE}")
    return PartFile(path, int(name[1]), int(name[2]), int(name[3]), about, created, finished)


def _most_bytes(about: dict[str, Any]) -> int:
    """Returns how many bytes a row may have: those of its numbers, and an allowance for the rest."""
    number, dim = about["tokens"] or (0, 0)
    return 4 * about["dim"] + 4 * number * (1 + dim) + 2**14


def _is_about(about: Any) -> bool:
    """Returns whether an index can be made with the settings `about`."""
    if set(about) != {*COMMON, "model", "revision", "neutral"} or not isinstance(about["preprocessing"], dict):
        return False
    if not is_token_shape(about["tokens"]):
        return False
    if not all(isinstance(about[name], str) for name in ("model", "weights", "neutral")):
        return False
    if about["revision"] is not None and not isinstance(about["revision"], str):
        return False
    if not all(type(about[name]) is int and 0 < about[name] <= _MOST_DIMENSIONS for name in ("dim", "num_frames")):
        return False
    neutral = np.frombuffer(bytes.fromhex(about["neutral"]), "<f4").reshape(-1, about["dim"])
    check_windows(about["window"], about["stride"])
    return are_units(neutral)


@contextmanager
def open_part(path: Path) -> Iterator[Any]:
    """Opens a Parquet file as plain data, without creating extension types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, arrow_extensions_enabled=False, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, EOFError) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}). {_CURE}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}). {_CURE}") from error


def read_part(part: PartFile) -> Iterator[tuple[Record, Windows]]:
    """
    Yields the videos of a part with their windows. Only one video at a time is in memory.

    Raises:
        ValueError: the part is damaged, or was not written by `region-learner embed`.
    """
    import pyarrow as pa

    seen: set[str] = set()
    rows = 0
    with open_part(part.path) as file:
        batches = file.iter_batches(_GROUP, use_threads=False)
        runs = (run for batch in batches for run in _runs(pa.Table.from_batches([batch])))
        for path, tables in groupby(runs, key=lambda table: table["path"][0].as_py()):
            try:
                pieces = list(islice(tables, _MOST_PIECES + 1))
                rows += sum(map(len, pieces))
                if len(pieces) > _MOST_PIECES:
                    raise ValueError("it has too many windows")
                if path in seen:
                    raise ValueError("it occurs twice")
                seen.add(path)
                found = _video(pa.concat_tables(pieces).combine_chunks(), part.about)
            except ValueError as error:
                raise ValueError(f"{part.path} is damaged ({path!r:.200}: {error}). {_CURE}") from error
            yield found
        # The headers of pages have no checksum: damaged ones can end the reading of a column early, without an error.
        if rows != file.metadata.num_rows:
            raise ValueError(f"{part.path} is damaged ({rows} of its {file.metadata.num_rows} rows are left). {_CURE}")


def _runs(table: pa.Table) -> Iterator[pa.Table]:
    """Yields the consecutive rows of each video."""
    paths = table["path"].to_pylist()
    starts = [row for row, path in enumerate(paths) if not row or path != paths[row - 1]]
    for start, stop in pairwise([*starts, len(paths)]):
        yield table.slice(start, stop - start)


def _video(table: pa.Table, about: dict[str, Any]) -> tuple[Record, Windows]:
    """
    Returns a video and its windows from its rows.

    Raises:
        ValueError: the rows do not have the form that `table_of` gives them.
    """
    of_window = ["start", "end", *(name for name in _EMBEDDINGS if name in table.column_names)]
    of_video = table.drop_columns(of_window)
    if of_video != of_video.take(np.zeros(len(table), np.int64)):
        raise ValueError("its rows contradict each other")
    record = _record(of_video.slice(0, 1).to_pylist()[0])
    nulls = {table[name].null_count for name in of_window}
    if record.error is not None:
        if len(table) > 1 or nulls != {1}:
            raise ValueError("it has both windows and an error")
        return record, Windows.empty(about)
    spans = np.stack([table["start"].to_numpy(), table["end"].to_numpy()], axis=1)
    vectors = table["vector"].chunk(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, about["dim"])
    if nulls != {0} or not are_units(vectors):
        raise ValueError("its vectors are not of length 1")
    times = np.concatenate([[0], spans[:, 0], [record.duration]])
    is_right = np.isfinite(spans).all() and (np.diff(times) >= 0).all() and (np.diff(spans) >= 0).all()
    if not is_right or spans.max() > record.duration + _ROUNDING:
        raise ValueError("its windows are not consecutive spans of the video")
    return record._replace(spans=spans), Windows(vectors, _tokens(table, about["tokens"]))


def _tokens(table: pa.Table, shape: list[int] | None) -> np.ndarray | None:
    """
    Returns the tokens of windows (W, n, 1 + d) from their rows.

    Raises:
        ValueError: the rows do not have the form that `table_of` gives them.
    """
    if shape is None:
        return None
    number, dim = shape
    weights, embeds = (table[name].chunk(0) for name in ("token_weights", "tokens"))
    if {*weights.value_lengths().to_pylist(), *embeds.value_lengths().to_pylist()} != {number}:
        raise ValueError(f"its windows do not have {number} tokens")
    flat = embeds.flatten().flatten().to_numpy(zero_copy_only=False)
    if len(flat) != len(table) * number * dim:  # a token is null
        raise ValueError("its tokens are not of length 1")
    weights = weights.flatten().to_numpy(zero_copy_only=False)
    tokens = np.concatenate([weights.reshape(-1, number, 1), flat.reshape(-1, number, dim)], 2)
    if not are_tokens(tokens):
        raise ValueError("its tokens are not of length 1, or their weights do not sum to 1")
    return tokens


def _record(row: dict[str, Any]) -> Record:
    """
    Returns the video of a row.

    Raises:
        ValueError: a value of the row is not valid.
    """
    path, shard, error = row["path"], row["shard"], row["error"]
    if not path or not os.path.isabs(path) or os.path.normpath(path) != path or "\0" in path:
        raise ValueError("its path is not an absolute path of this system")
    if (shard is None) != (row["offset"] is None) or (
        shard is not None and not path.startswith(os.path.join(shard, ""))
    ):
        raise ValueError("it is not a member of its shard")
    numbers = (row["size"], row["modified"], row["offset"] or 0)
    if row["root"] is None or None in numbers or min(numbers) < 0:
        raise ValueError("a value is missing")
    video = Video(path, row["size"], row["modified"], row["offset"], shard)
    if error is not None:
        return Record(video, row["root"], error=error)
    if not re.fullmatch("[0-9a-f]{64}", row["sha256"] or "") or not 0 <= (row["duration"] or 0) < float("inf"):
        raise ValueError("its hash or its duration is missing")
    return Record(video, row["root"], row["sha256"], row["duration"] or 0.0)

"""The SQLite file of an index: the settings that it was made with, its videos, and the rows of their vectors."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..configuration_region_learner import did_you_mean
from ..files import readable
from .sources import Video
from .vectors import AGAIN, check_is_file

FILE = "index.sqlite"
FORMAT = 1

# Paths are stored as bytes, because file names need not be valid text.
_SCHEMA = (
    "CREATE TABLE about (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE videos (path BLOB NOT NULL UNIQUE, root BLOB NOT NULL, size INTEGER NOT NULL,"
    " modified INTEGER NOT NULL, shard BLOB, offset INTEGER, sha256 TEXT, duration REAL, spans BLOB,"
    " first_row INTEGER, rows INTEGER NOT NULL, error TEXT)",
    "CREATE INDEX videos_by_row ON videos (first_row)",
    "CREATE INDEX videos_by_size ON videos (size)",
    "CREATE INDEX videos_by_hash ON videos (sha256)",
    "CREATE TABLE holes (start INTEGER PRIMARY KEY, stop INTEGER NOT NULL)",
)


_NAMES_ANOTHER = bytes.fromhex("d9d505f920a163d7")


class Record(NamedTuple):
    """
    The entry of a video in the index.

    Args:
        video: the file.
        root: the argument that it came from.
        sha256: hash of its content; None if the file could not be read.
        duration: its duration in seconds.
        spans: start and end of its windows in seconds, float64 (W, 2).
        first_row: row of the vector of its first window.
        error: the reason why it is not searched; None if it is searched.
    """

    video: Video
    root: str
    sha256: str | None = None
    duration: float = 0.0
    spans: np.ndarray = np.empty((0, 2))
    first_row: int = 0
    error: str | None = None


class Database:
    """
    The SQLite file of an index. All changes between two commits become visible and permanent at the same time.

    An index may be untrusted. Its schema must be exactly that of this version, so that the file contains only data.

    Args:
        directory: directory of the index.
        writes: whether to open it for changes.

    Raises:
        FileNotFoundError: the directory does not contain an index.
        ValueError: the file is damaged, or has another version.
    """

    def __init__(self, directory: Path, writes: bool = False):
        self.path = directory / FILE
        if not self.path.is_file():
            raise FileNotFoundError(
                f"{directory} is not an index: it has no {FILE}. `region-learner index VIDEOS --index {directory}` "
                "makes one."
            )
        self._check_files()
        with self._errors():
            self.connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=rw",
                uri=True,
                isolation_level=None,
                timeout=60,
                check_same_thread=False,  # several threads may take turns in using it, as in the app
            )
            for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0", "synchronous=FULL"):
                self.connection.execute(f"PRAGMA {pragma}")
            self.connection.execute(f"PRAGMA query_only={'OFF' if writes else 'ON'}")
            found = self.connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY 1")
            if sorted(sql for (sql,) in found) != sorted(_SCHEMA):
                raise ValueError(f"{self.path} is not an index of this version: {AGAIN}")
        if self.about("format") != FORMAT:
            raise ValueError(f"{self.path} is an index of format {self.about('format')}, not {FORMAT}: {AGAIN}")
        rows, vectors = self.about("rows"), self.about("vectors")
        if type(rows) is not int or rows < 0 or not re.fullmatch(r"vectors-\d{1,9}", str(vectors)):
            raise ValueError(f"{self.path} is damaged (rows {rows!r:.40}, {vectors!r:.40}): {AGAIN}")

    @classmethod
    def create(cls, directory: Path, about: dict[str, Any]) -> Database:
        """Creates the file, which only appears once it is complete."""
        partial = directory / f".{FILE}.partial"
        partial.unlink(missing_ok=True)
        with closing(sqlite3.connect(partial)) as connection, connection:
            for statement in _SCHEMA:
                connection.execute(statement)
            values = {"format": FORMAT, "rows": 0, "vectors": "vectors-0", **about}
            connection.executemany("INSERT INTO about VALUES (?, ?)", [(k, json.dumps(v)) for k, v in values.items()])
        os.replace(partial, directory / FILE)
        return cls(directory, writes=True)

    def _check_files(self) -> None:
        """Refuses files that would make SQLite open or delete other files, before SQLite sees them."""
        for suffix in ("", "-journal", "-wal", "-shm"):
            check_is_file(self.path.with_name(FILE + suffix))
        # A journal with this ending names another journal, which SQLite would delete. Our journals never have it.
        with suppress(FileNotFoundError), open(self.path.with_name(f"{FILE}-journal"), "rb") as journal:
            journal.seek(max(0, os.fstat(journal.fileno()).st_size - 8))
            if journal.read(8) == _NAMES_ANOTHER:
                raise ValueError(f"{journal.name} names another file, which is never right for an index: delete it.")

    def close(self) -> None:
        self.connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.path} cannot be read or written: {error}.") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path} is damaged ({error}): {AGAIN}") from error

    def execute(self, statement: str, parameters: Iterable[Any] = ()) -> list[Any]:
        with self._errors():
            return self.connection.execute(statement, tuple(parameters)).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commits all changes of the block at once, or none if it raises an error."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            with self._errors():
                self.connection.commit()
        except BaseException:
            self.connection.rollback()
            raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Makes all reads in the block see the same state, whatever other processes commit."""
        self.execute("BEGIN")
        try:
            yield
        finally:
            self.connection.rollback()

    def version(self) -> int:
        """Returns a number that changes when another process changes the index."""
        return self.execute("PRAGMA data_version")[0][0]

    # --- Settings and numbers of rows ---

    def about(self, name: str) -> Any:
        found = self.execute("SELECT value FROM about WHERE name = ?", [name])
        try:
            return json.loads(found[0][0]) if found else None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is damaged ({name}): {AGAIN}") from error

    def vectors_directory(self) -> Path:
        """Returns the directory of the vectors. Raises a `ValueError` for one outside of the index."""
        name = self.about("vectors")
        if not isinstance(name, str) or not re.fullmatch(r"vectors-[0-9]{1,18}", name):
            raise ValueError(f"{self.path} is damaged (vectors): {AGAIN}")
        directory = self.path.parent / name
        if directory.is_symlink():
            raise ValueError(f"{directory} is a symbolic link, which is not allowed: replace it with the directory.")
        return directory

    def _ranges(self, found: list[Any]) -> np.ndarray:
        """Returns ranges of rows as int64 (n, 2), which are disjoint and within the rows of the index."""
        try:
            ranges = np.array(found, np.int64).reshape(-1, 2)
            edges = ranges[ranges[:, 0].argsort()].ravel()
            if len(edges) and (edges[0] < 0 or edges[-1] > self.about("rows") or (np.diff(edges) < 0).any()):
                raise ValueError("they overlap, or are out of range")
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{self.path} is damaged (rows): {AGAIN}") from error
        return ranges

    def set_about(self, name: str, value: Any) -> None:
        self.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", [name, json.dumps(value)])

    def holes(self) -> np.ndarray:
        """Returns the ranges of rows that do not belong to any video, int64 (n, 2), in order."""
        found = self.execute("SELECT start, stop FROM holes ORDER BY start")
        return np.array(found, np.int64).reshape(-1, 2)

    def _add_hole(self, start: int, stop: int) -> None:
        """Adds a range of rows, merged with the holes at its ends."""
        if start == stop:
            return
        before = self.execute("SELECT start FROM holes WHERE stop = ?", [start])
        after = self.execute("SELECT start, stop FROM holes WHERE start = ?", [stop])
        for neighbor, *_ in (*before, *after):
            self.execute("DELETE FROM holes WHERE start = ?", [neighbor])
        start, stop = before[0][0] if before else start, after[0][1] if after else stop
        self.execute("INSERT INTO holes VALUES (?, ?)", [start, stop])

    # --- Videos ---

    _COLUMNS = "path, size, modified, offset, shard, root, sha256, duration, spans, first_row, error"

    def _record(self, row: Any) -> Record:
        path, size, modified, offset, shard, root, sha256, duration, spans, first_row, error = row
        try:
            video = Video(os.fsdecode(path), size, modified, offset, None if shard is None else os.fsdecode(shard))
            times = np.frombuffer(spans or b"", "<f8").reshape(-1, 2)
            numbers = (size, modified, first_row or 0, offset or 0)
            if not all(type(number) is int and number >= 0 for number in numbers) or not _are_spans(times):
                raise ValueError("numbers out of range")
            if not os.path.isabs(video.path) or not os.path.isabs(video.shard or video.path):
                raise ValueError("its path is not absolute")  # such as an address, which a reader may fetch
            return Record(video, os.fsdecode(root), sha256, duration or 0.0, times, first_row or 0, error)
        except (TypeError, ValueError) as damage:
            raise ValueError(f"{self.path} is damaged ({path!r:.80}): {AGAIN}") from damage

    def record(self, path: str) -> Record | None:
        found = self.execute(f"SELECT {self._COLUMNS} FROM videos WHERE path = ?", [os.fsencode(path)])
        return self._record(found[0]) if found else None

    def records(self, where: str = "1", parameters: Iterable[Any] = ()) -> list[Record]:
        rows = self.execute(f"SELECT {self._COLUMNS} FROM videos WHERE {where} ORDER BY path", parameters)
        return [self._record(row) for row in rows]

    def owner(self, row: int) -> Record:
        """Returns the video that has a row."""
        found = self.execute(
            f"SELECT {self._COLUMNS} FROM videos WHERE first_row <= ? ORDER BY first_row DESC LIMIT 1", [row]
        )
        record = self._record(found[0]) if found else None
        if record is None or row >= record.first_row + len(record.spans):
            raise ValueError(f"{self.path} is damaged (row {row} does not belong to a video): {AGAIN}")
        return record

    def stamps(self) -> dict[str, tuple[int, int, int | None, bool, str]]:
        """Returns the size, time, offset, whether there is an error, and the root of each video, by path."""
        found = self.execute("SELECT path, size, modified, offset, error IS NOT NULL, root FROM videos")
        return {
            os.fsdecode(path): (size, modified, offset, bool(error), os.fsdecode(root))
            for path, size, modified, offset, error, root in found
        }

    def records_within(self, path: str) -> list[Record]:
        """Returns the video with a path, or all videos in a folder or shard."""
        return self.records(_WITHIN, _limits(path))

    def rows_within(self, path: str) -> np.ndarray:
        """Returns the range of rows of a video, or of each video in a folder or shard, by path: int64 (n, 2)."""
        statement = f"SELECT first_row, first_row + rows FROM videos WHERE {_WITHIN} AND rows > 0 ORDER BY path"
        return self._ranges(self.execute(statement, _limits(path)))

    def near(self, path: str) -> str:
        """Returns the result of `did_you_mean` for the folders and videos of the index beside `path`."""
        folder = os.path.dirname(path)
        paths = self.execute(f"SELECT path FROM videos WHERE {_WITHIN}", _limits(folder))
        names = {os.path.relpath(os.fsdecode(name), folder).split(os.sep)[0] for (name,) in paths}
        return did_you_mean(os.path.basename(path), names)

    def sampled_rows(self, count: int) -> np.ndarray:
        """
        Returns up to `count` rows like [`evenly_spaced`], from all videos, or from some if there are very many. The
        choice of rows and their order only depend on the contents of the videos.
        """
        videos = self.execute("SELECT COUNT(*) FROM videos WHERE first_row IS NOT NULL")[0][0]
        # The hashes are evenly distributed: about `count` videos have a hash below this limit.
        limit = "g" if videos <= count else f"{count * 2**32 // videos:08x}"
        condition = "first_row IS NOT NULL AND sha256 < ? ORDER BY sha256"
        found = self.execute(f"SELECT first_row, first_row + rows FROM videos WHERE {condition}", [limit])
        return evenly_spaced(self._ranges(found), count)

    def put(self, record: Record) -> None:
        """Adds a video, replacing an entry with the same path."""
        self.remove(record.video.path)
        video, spans = record.video, record.spans
        shard = None if video.shard is None else os.fsencode(video.shard)
        values = [
            os.fsencode(video.path), os.fsencode(record.root), video.size, video.modified, shard, video.offset,
            record.sha256, record.duration, spans.astype("<f8").tobytes(), record.first_row if len(spans) else None,
            len(spans), None if record.error is None else readable(record.error),  # which may name the file
        ]  # fmt: skip
        self.execute(f"INSERT INTO videos VALUES ({', '.join('?' * len(values))})", values)

    def move(self, path: str, video: Video, root: str) -> None:
        """Gives a video another path, size, time or position. Its rows stay the same."""
        shard = None if video.shard is None else os.fsencode(video.shard)
        self.execute(
            "UPDATE videos SET path = ?, size = ?, modified = ?, offset = ?, shard = ?, root = ? WHERE path = ?",
            [os.fsencode(video.path), video.size, video.modified, video.offset, shard, os.fsencode(root),
             os.fsencode(path)],
        )  # fmt: skip

    def set_root(self, path: str, root: str) -> None:
        self.execute("UPDATE videos SET root = ? WHERE path = ?", [os.fsencode(root), os.fsencode(path)])

    def remove(self, path: str) -> bool:
        """Removes a video and marks its rows as a hole. Returns whether it was in the index."""
        name = os.fsencode(path)
        for first, rows in self.execute("SELECT first_row, rows FROM videos WHERE path = ?", [name]):
            if rows:
                self._add_hole(first, first + rows)
            self.execute("DELETE FROM videos WHERE path = ?", [name])
            return True
        return False


def _are_spans(times: np.ndarray) -> bool:
    """Returns whether times (n, 2) are valid starts and ends in order, of less than about a thousand years."""
    starts, ends = times.T
    return bool(((starts >= 0) & (starts <= ends) & (ends < 2**35)).all() and (np.diff(starts) >= 0).all())


_WITHIN = "(path = ? OR (path > ? AND path < ?))"


def _limits(path: str) -> list[bytes]:
    """Returns a path, and the two limits between which the paths of its members are sorted."""
    name = os.fsencode(path)
    begin = name.rstrip(b"/") + b"/"
    return [name, begin, begin[:-1] + b"0"]  # "0" follows "/"


def evenly_spaced(ranges: np.ndarray, count: int) -> np.ndarray:
    """Returns up to `count` evenly spaced rows of ranges (n, 2), int64, in their order."""
    rows = np.concatenate([np.arange(start, stop) for start, stop in ranges.tolist()] or [np.empty(0, np.int64)])
    return rows if len(rows) <= count else rows[np.arange(count) * len(rows) // count]


def merged(ranges: np.ndarray) -> np.ndarray:
    """Returns disjoint ranges (n, 2) in order, with adjacent ranges merged."""
    if not len(ranges):
        return ranges
    ranges = ranges[ranges[:, 0].argsort()]
    is_first = np.append(True, ranges[1:, 0] != ranges[:-1, 1])
    is_last = np.append(is_first[1:], True)
    return np.stack([ranges[is_first, 0], ranges[is_last, 1]], axis=1)

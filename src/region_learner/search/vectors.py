"""The embeddings of an index: vectors in append-only, memory-mapped files."""

import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..files import naming, sync_directory

# With 256 dimensions, a file has 256 MiB.
ROWS_PER_FILE = 2**18

# What to do if an index cannot be used: an existing index is never replaced.
AGAIN = "delete the index, and index the videos again."


class Vectors:
    """
    Vectors of the same length, by row number, in files of `ROWS_PER_FILE` rows each: raw, little-endian, without a
    header. Rows are only appended, so other processes can read the rows that are known to be complete while one
    process writes.

    Args:
        directory: directory of the files. Nothing is created before the first write.
        dim: length of the vectors.
        prefix: start of the file names.
        dtype: dtype of the numbers, "<f4" or "<f2".

    Example:

        vectors = Vectors(Path("my_index"), 256)
        vectors.write(0, embeddings)
        vectors.read(0, 10) @ query
    """

    def __init__(self, directory: Path, dim: int, prefix: str = "vectors", dtype: str = "<f4"):
        if dim < 1:
            raise ValueError(f"dim={dim} must be at least 1.")
        self.directory, self.dim, self.prefix, self.dtype = Path(directory), dim, prefix, np.dtype(dtype)
        self._maps: dict[int, np.ndarray] = {}

    def write(self, row: int, vectors: np.ndarray) -> None:
        """
        Writes `vectors` (n, dim) as the rows [row, row + n), overwrites rows that an interrupted run may have left
        there, and returns when they are on disk.

        Raises:
            ValueError: the vectors have another shape or are not finite, or there are fewer than `row` rows.
            OSError: a file cannot be written. The message names it.
        """
        vectors = np.asarray(vectors, dtype=self.dtype, order="C")
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"vectors must have the shape (n, {self.dim}), not {vectors.shape}.")
        if not np.isfinite(vectors).all():
            bad = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
            raise ValueError(f"Vector {bad} of {len(vectors)} is not finite: the model may have overflowed.")
        self.check(row)
        for file, first, start, stop in self._pieces(row, row + len(vectors)):
            path = self._path(file)
            check_is_file(path)
            with naming(path), open(os.open(path, os.O_RDWR | os.O_CREAT | _BINARY, 0o666), "r+b") as opened:
                opened.seek(first * self._row_bytes)
                opened.write(vectors[start - row : stop - row].data)
                opened.flush()
                os.fsync(opened.fileno())
            if first == 0:
                sync_directory(self.directory)

    def read(self, start: int, stop: int) -> np.ndarray:
        """
        Returns the rows [start, stop), (stop - start, dim). They are a read-only view of a memory-mapped file, or a
        copy if the rows are in several files.

        Raises:
            ValueError: the files contain fewer than `stop` rows.
        """
        pieces = [
            self._map(file, first + end - begin)[first : first + end - begin]
            for file, first, begin, end in self._pieces(start, stop)
        ]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty((0, self.dim), self.dtype)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """
        Returns a copy of the rows with the numbers `rows` (n,), (n, dim).

        Raises:
            ValueError: the files lack one of the rows.
        """
        rows = np.asarray(rows, dtype=np.int64)
        result = np.empty((len(rows), self.dim), self.dtype)
        files, within = np.divmod(rows, ROWS_PER_FILE)
        for file in np.unique(files).tolist():
            here = files == file
            result[here] = self._map(file, int(within[here].max()) + 1)[within[here]]
        return result

    def check(self, rows: int) -> None:
        """
        Checks that the files contain `rows` rows.

        Raises:
            ValueError: a file is missing, is not a regular file, or is too short.
        """
        for file, first, start, stop in self._pieces(0, rows):
            path = self._path(file)
            check_is_file(path)
            size = path.stat().st_size if path.exists() else 0
            if size < (first + stop - start) * self._row_bytes:
                raise ValueError(
                    f"{path} has {size // self._row_bytes:,} vectors instead of {stop - start:,}: it is incomplete. "
                    f"Copy the index again, or {AGAIN}"
                )

    @property
    def _row_bytes(self) -> int:
        return self.dtype.itemsize * self.dim

    def _path(self, file: int) -> Path:
        return self.directory / f"{self.prefix}-{file:05d}.f{8 * self.dtype.itemsize}"

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """
        Yields, for each file with some of the rows [start, stop), the number of the file, the position of the first of
        these rows in it, and the range of these rows.
        """
        while start < stop:
            file, first = divmod(start, ROWS_PER_FILE)
            end = min(stop, (file + 1) * ROWS_PER_FILE)
            yield file, first, start, end
            start = end

    def _map(self, file: int, rows: int) -> np.ndarray:
        """Returns at least `rows` vectors of a file, which may have grown since it was mapped."""
        mapped = self._maps.get(file)
        if mapped is None or len(mapped) < rows:
            self.check(file * ROWS_PER_FILE + rows)
            with open(self._path(file), "rb") as opened:
                size = os.fstat(opened.fileno()).st_size // self._row_bytes * self._row_bytes
                memory = mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_READ)
            mapped = self._maps[file] = np.frombuffer(memory, self.dtype).reshape(-1, self.dim)
        return mapped


_BINARY = getattr(os, "O_BINARY", 0)  # Windows


def check_is_file(path: Path) -> None:
    """Refuses links and devices, because an untrusted index must not refer to other files."""
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise ValueError(
            f"{path} is not a regular file (links and devices are not allowed): replace it with a copy of the file."
        )

"""
Approximate search by FAISS (IVF with 8-bit scalar quantization), in files that are safe to read.

An index may be untrusted, and `faiss.read_index` is not memory-safe on a crafted file. Therefore, the trained state of
FAISS is stored as raw arrays, whose sizes and values are checked before FAISS sees them:

- `nearest.json`: sizes, and the segments in use. It is replaced atomically, after the files that it names are written.
- `nearest-GENERATION.f32`: the centroids of the lists (lists, D), then the smallest values and ranges of the quantizer
  (2, D).
- `nearest-NUMBER.lists`: a segment, which has the lists of a range of rows. For each list, it contains the codes
  (n, D) of its vectors in uint8 and their row numbers (n,) in int64; after all lists, their lengths (lists,) in int64.

Segments are memory-mapped, so loading takes milliseconds and a search only reads the lists that it probes. Row numbers
in them are not checked when they are loaded, but when a search returns them.
"""

import json
import logging
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..files import naming, partial_of, sync_directory, write_json
from .vectors import Vectors, check_is_file

logger = logging.getLogger(__name__)

FORMAT = 1
ABOUT = "nearest.json"

# Number of vectors per list that k-means is trained on. FAISS recommends 39 to 256.
TRAINED_PER_LIST = 64
ITERATIONS = 10
# The lists are trained again when the number of rows has grown by this factor.
RETRAIN = 2
# Up to this many new rows are searched exactly, in 1 to 3 ms at 256 dimensions, before they become a segment.
TAIL_ROWS = 2**14
# New rows are merged with preceding segments that have less than this many times as many rows. Therefore, there are
# few segments to search (one more each time the number of rows grows by this factor), and a small update writes
# little.
MERGE = 4
# A segment is rewritten when this share of its rows is deleted. Until then, searches skip its deleted rows.
DELETED = 0.2
# Number of rows whose lists or codes are computed at a time: with 4,096 lists, 32 MiB of products.
_BLOCK_ROWS = 2**11


@dataclass(frozen=True)
class Segment:
    """The lists of the rows [start, stop), of which `entries` were not deleted when it was written."""

    number: int
    start: int
    stop: int
    entries: int


@dataclass(frozen=True)
class About:
    """
    The content of `nearest.json`.

    Attributes:
        dim: length of the vectors.
        lists: number of lists.
        trained: number of rows when the lists were trained.
        generation: number in the name of the file of the centroids.
        segments: the segments, which are contiguous from row 0.
    """

    dim: int
    lists: int
    trained: int
    generation: int
    segments: tuple[Segment, ...]

    @property
    def stop(self) -> int:
        return self.segments[-1].stop if self.segments else 0


def read_about(directory: Path, vectors: Vectors) -> About:
    """
    Reads `nearest.json`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, or belongs to other vectors.
    """
    path = directory / ABOUT
    check_is_file(path)
    try:
        about = _parse_about(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError(f"{path} is damaged.") from None
    if about.dim != vectors.dim:
        raise ValueError(f"{path} does not match the vectors of this index.")
    return about


def _parse_about(text: str) -> About:
    content = json.loads(text)
    if content.pop("format") != FORMAT:
        raise ValueError
    about = About(**content | {"segments": tuple(Segment(**segment) for segment in content["segments"])})
    numbers: list[Any] = [about.dim, about.lists, about.trained, about.generation]
    numbers += [value for segment in about.segments for value in asdict(segment).values()]
    if not all(type(number) is int and 0 <= number < 2**40 for number in numbers):
        raise ValueError
    starts = [0, *(segment.stop for segment in about.segments)]
    for start, segment in zip(starts, about.segments):
        if not (start == segment.start < segment.stop and segment.entries <= segment.stop - segment.start):
            raise ValueError
    if not about.segments or not about.lists:
        raise ValueError
    return about


def _write_about(directory: Path, about: About) -> None:
    path = directory / ABOUT
    partial_of(path).unlink(missing_ok=True)  # a link must not be followed
    write_json(path, {"format": FORMAT} | asdict(about))


def _trained_path(directory: Path, generation: int) -> Path:
    return directory / f"nearest-{generation}.f32"


def _segment_path(directory: Path, number: int) -> Path:
    return directory / f"nearest-{number}.lists"


def _numbered(directory: Path) -> dict[Path, int]:
    """Returns the files that have a number in their names, whether in use or left by an interrupted run."""
    names = re.compile(r"nearest-(\d{1,9})\.(f32|lists)")
    matches = ((path, names.fullmatch(path.name)) for path in directory.iterdir())
    return {path: int(match[1]) for path, match in matches if match}


def _write_new(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file, which must not be in use yet, and flushes it to disk."""
    with naming(path), open(path, "xb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.parent)


class Quantizer:
    """
    Assigns vectors to lists by their centroids (lists, D), and encodes them with 8 bits per dimension, using the
    smallest values and ranges (2, D) of the dimensions, as FAISS's `QT_8bit` does. It uses NumPy, whose matrix
    products are several times as fast as FAISS's search for the nearest centroid.
    """

    def __init__(self, centroids: np.ndarray, ranges: np.ndarray):
        self.centroids, self.ranges = np.ascontiguousarray(centroids), np.ascontiguousarray(ranges)

    @classmethod
    def train(cls, vectors: np.ndarray, lists: int) -> "Quantizer":
        """Trains on a sample (n, D) by spherical k-means."""
        rng = np.random.default_rng(0)
        smallest = vectors.min(0)
        quantizer = cls(vectors[rng.choice(len(vectors), lists, replace=False)], vectors.max(0) - smallest)
        quantizer.ranges = np.stack((smallest, quantizer.ranges))
        for _ in range(ITERATIONS):
            sums = np.zeros_like(quantizer.centroids)
            for start in range(0, len(vectors), _BLOCK_ROWS):
                block = vectors[start : start + _BLOCK_ROWS]
                assigned = quantizer.assign(block)
                order = np.argsort(assigned)
                numbers, starts = np.unique(assigned[order], return_index=True)
                sums[numbers] += np.add.reduceat(block[order], starts)
            norms = np.linalg.norm(sums, axis=1, keepdims=True)
            others = vectors[rng.choice(len(vectors), lists, replace=False)]  # for lists that became empty
            quantizer.centroids = np.where(norms > 0, sums / np.maximum(norms, 1e-30), others)
        return quantizer

    @classmethod
    def read(cls, path: Path, lists: int, dim: int) -> "Quantizer":
        """
        Reads a file that `write` has written.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: it is not a regular file, or has other contents.
        """
        check_is_file(path)
        if path.stat().st_size != 4 * (lists + 2) * dim:
            raise ValueError(f"{path} is damaged.")
        values = np.fromfile(path, "<f4").reshape(lists + 2, dim)
        if not np.isfinite(values).all():
            raise ValueError(f"{path} is damaged.")
        return cls(values[:lists], values[lists:])

    def write(self, path: Path) -> None:
        values = np.concatenate((self.centroids, self.ranges)).astype("<f4")
        _write_new(path, lambda file: file.write(values.data))

    def assign(self, vectors: np.ndarray) -> np.ndarray:
        """Returns the list of each vector (n, D), (n,)."""
        return (vectors @ self.centroids.T).argmax(1)

    def codes(self, vectors: np.ndarray) -> np.ndarray:
        """Returns the codes (n, D), in uint8, of vectors (n, D)."""
        smallest, widths = self.ranges
        return np.clip((vectors - smallest) * (255 / np.maximum(widths, 1e-30)), 0, 255).astype(np.uint8)


class SegmentFile:
    """
    The file of a segment, memory-mapped.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a regular file, or its sizes are wrong.
    """

    def __init__(self, directory: Path, segment: Segment, about: About):
        self.path, self.segment, self.about = _segment_path(directory, segment.number), segment, about
        check_is_file(self.path)
        entry_bytes = about.dim + 8
        expected = segment.entries * entry_bytes + 8 * about.lists
        if self.path.stat().st_size != expected:
            raise ValueError(f"{self.path} is damaged.")
        self.data = np.memmap(self.path, np.uint8, "r")
        self.sizes = self.data[-8 * about.lists :].view("<i8").copy()
        # The sum alone could overflow.
        if self.sizes.min() < 0 or self.sizes.max() > segment.entries or self.sizes.sum() != segment.entries:
            raise ValueError(f"{self.path} is damaged.")
        self.starts = (np.cumsum(self.sizes) - self.sizes) * entry_bytes

    def ids(self, number: int) -> np.ndarray:
        """Returns the row numbers of a list, as stored in the file."""
        size = int(self.sizes[number])
        start = int(self.starts[number]) + size * self.about.dim
        return np.frombuffer(self.data[start : start + 8 * size].tobytes(), "<i8")

    def lists(self) -> np.ndarray:
        """Returns the list of each row of the segment, (stop - start,), with -1 for missing rows."""
        result = np.full(self.segment.stop - self.segment.start, -1, np.int32)
        for number in np.flatnonzero(self.sizes).tolist():
            rows = self.ids(number) - self.segment.start
            result[rows[(rows >= 0) & (rows < len(result))]] = number
        return result

    def as_faiss(self, quantizer: Quantizer, coarse: Any) -> Any:
        """
        Returns a FAISS index over the file, which reads only the lists that a search probes. It points to `coarse`,
        the FAISS index of the centroids, and to this object.
        """
        import faiss

        kind, metric = faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        index: Any = faiss.IndexIVFScalarQuantizer(coarse, self.about.dim, self.about.lists, kind, metric, False)
        faiss.copy_array_to_vector(quantizer.ranges.ravel(), index.sq.trained)
        index.is_trained, index.ntotal = True, self.segment.entries
        self._lists = self._mapped_lists() or self._copied_lists()  # kept alive here, as FAISS only holds a pointer
        index.replace_invlists(self._lists, False)
        return index

    def _mapped_lists(self) -> Any:
        import faiss

        # FAISS cannot do this on Windows, accepts only UTF-8 paths, and cannot map an empty file.
        path = os.fspath(self.path)
        if not hasattr(faiss, "OnDiskInvertedLists") or path != path.encode(errors="ignore").decode():
            return None
        lists = faiss.OnDiskInvertedLists(self.about.lists, self.about.dim, path)
        lists.read_only, lists.prefetch_nthread = True, 0
        sizes = self.sizes.astype(np.uint64)  # in a variable, as the pointer does not keep it alive
        lists.set_all_lists_sizes(faiss.swig_ptr(sizes))
        lists.totsize = len(self.data)
        lists.do_mmap()
        return lists

    def _copied_lists(self) -> Any:
        import faiss

        lists = faiss.ArrayInvertedLists(self.about.lists, self.about.dim)
        for number in np.flatnonzero(self.sizes).tolist():
            size, start, ids = int(self.sizes[number]), int(self.starts[number]), self.ids(number)
            codes = self.data[start : start + size * self.about.dim]
            lists.add_entries(number, size, faiss.swig_ptr(ids), faiss.swig_ptr(codes))
        return lists


def _write_segment(
    directory: Path, number: int, rows: np.ndarray, lists: np.ndarray, vectors: Vectors, quantizer: Quantizer
) -> None:
    """Writes the lists of `rows` (n,), given the list of each, (n,)."""
    sizes = np.bincount(lists, minlength=len(quantizer.centroids)).astype("<i8")
    by_list = np.split(rows[np.argsort(lists, kind="stable")], np.cumsum(sizes)[:-1])

    def write(file: BinaryIO) -> None:
        for ids in by_list:
            for start in range(0, len(ids), _BLOCK_ROWS):
                block = vectors.take(ids[start : start + _BLOCK_ROWS])
                file.write(quantizer.codes(block).data)
            file.write(ids.astype("<i8").data)
        file.write(sizes.data)

    _write_new(_segment_path(directory, number), write)


@dataclass(frozen=True)
class Selection:
    """
    The rows that a search may find.

    Attributes:
        bits: one bit per row.
        counts: number of selected rows in each list, (lists,); None if nearly all rows are selected.
    """

    bits: np.ndarray
    counts: np.ndarray | None


class InvertedLists:
    """
    The inverted lists of a directory, loaded for a search. They may contain rows that were added after the search
    began.

    Raises:
        FileNotFoundError: the files do not exist.
        ValueError: they are damaged, or belong to other vectors.
    """

    def __init__(self, directory: Path, vectors: Vectors):
        import faiss

        self.about = read_about(directory, vectors)
        path = _trained_path(directory, self.about.generation)
        self._quantizer = Quantizer.read(path, self.about.lists, self.about.dim)
        self._files = [SegmentFile(directory, segment, self.about) for segment in self.about.segments]
        self._coarse = faiss.IndexFlatIP(self.about.dim)
        self._coarse.add(self._quantizer.centroids)
        self._indexes = [file.as_faiss(self._quantizer, self._coarse) for file in self._files]
        self._list_of_row: np.ndarray | None = None

    @property
    def entries(self) -> int:
        """The number of rows in the lists, deleted ones included."""
        return sum(segment.entries for segment in self.about.segments)

    def select(self, selected: np.ndarray, few: bool) -> Selection:
        """Returns the selection of the rows in `selected`, (stop,) bool. With `few`, counts the rows in each list."""
        counts = None
        if few:
            if self._list_of_row is None:
                self._list_of_row = np.concatenate([file.lists() for file in self._files])
            counts = np.bincount(self._list_of_row[selected] + 1, minlength=self.about.lists + 1)[1:]
        return Selection(np.packbits(selected, bitorder="little"), counts)

    def probes(self, query: np.ndarray, rows: int, selection: Selection | None) -> int:
        """Returns how many of the lists nearest to `query` (D,) contain `rows` of the selected rows."""
        if selection is None or selection.counts is None:
            return -(-rows * self.about.lists // self.entries)
        order = np.argsort(self._quantizer.centroids @ -query)
        return 1 + int((np.cumsum(selection.counts[order]) < rows).sum())

    def candidates(self, query: np.ndarray, k: int, rows: int, selection: Selection | None) -> np.ndarray:
        """
        Returns the numbers of up to `k` rows near `query` (D,) from each segment, after comparing about `rows` rows. A
        missing row is -1. The numbers are read from the files without a check: if the files are damaged, they can be
        anything.
        """
        import faiss

        options: dict[str, Any] = {"nprobe": min(self.probes(query, rows, selection), self.about.lists)}
        if selection is not None:
            make: Any = faiss.IDSelectorBitmap
            options["sel"] = make(selection.bits)
        parameters = faiss.SearchParametersIVF(**options)
        found = [index.search(query[None], k, params=parameters)[1][0] for index in self._indexes]
        return np.concatenate(found)


def update_lists(directory: Path, vectors: Vectors, rows: int, live: np.ndarray) -> None:
    """
    Brings the lists up to date with the rows `live` (n,), those of the first `rows` rows that are not deleted. Does
    nothing if little has changed.
    """
    try:
        lists = InvertedLists(directory, vectors)
        if lists.about.stop > rows:
            raise ValueError(f"{directory / ABOUT} contains rows that are not in the index.")
    except FileNotFoundError:
        about = None
    except ValueError as error:
        logger.info("%s Rebuilding it.", error)
        about = None
    else:
        about, quantizer, files = lists.about, lists._quantizer, lists._files
    number = 1 + max(_numbered(directory).values(), default=0)
    if about is None or len(live) >= RETRAIN * about.trained:
        quantizer, files = _train(vectors, live), []
        about = About(vectors.dim, len(quantizer.centroids), len(live), number, ())
        quantizer.write(_trained_path(directory, number))
    kept = _kept_segments(about, live)
    if kept is None:
        return
    start = about.segments[kept].start if kept < len(about.segments) else about.stop
    new = live[np.searchsorted(live, start) :]
    of_row = np.concatenate([np.empty(0, np.int32), *(file.lists() for file in files[kept:])])
    assigned = np.append(of_row, np.full(rows - about.stop, -1, np.int32))[new - start]
    for block in np.array_split(np.flatnonzero(assigned < 0), 1 + len(new) // _BLOCK_ROWS):
        assigned[block] = quantizer.assign(vectors.take(new[block]))
    _write_segment(directory, number, new, assigned, vectors, quantizer)
    about = replace(about, segments=(*about.segments[:kept], Segment(number, start, rows, len(new))))
    _write_about(directory, about)
    used = {_trained_path(directory, about.generation)}
    used |= {_segment_path(directory, segment.number) for segment in about.segments}
    for path in _numbered(directory).keys() - used:
        with suppress(OSError):  # on Windows, another process may be reading it
            path.unlink()


def _train(vectors: Vectors, live: np.ndarray) -> Quantizer:
    lists = min(2 ** round(np.log2(4 * len(live) ** 0.5)), 2**16, -(-len(live) // 40))
    size = min(len(live), TRAINED_PER_LIST * lists)
    logger.info("Training %s inverted lists on %s of %s vectors.", *(f"{n:,}" for n in (lists, size, len(live))))
    return Quantizer.train(vectors.take(np.sort(np.random.default_rng(0).choice(live, size, replace=False))), lists)


def _kept_segments(about: About, live: np.ndarray) -> int | None:
    """Returns how many segments are kept before a new one is added; None if nothing needs to be written."""

    def count(start: int, stop: int | None = None) -> int:
        last = len(live) if stop is None else np.searchsorted(live, stop)
        return int(last - np.searchsorted(live, start))

    segments = about.segments
    kept = 0
    while kept < len(segments):
        segment = segments[kept]
        if count(segment.start, segment.stop) < (1 - DELETED) * segment.entries:
            break
        kept += 1
    if segments and kept == len(segments) and count(about.stop) <= TAIL_ROWS:
        return None
    while kept and segments[kept - 1].entries < MERGE * count(segments[kept - 1].stop):
        kept -= 1
    return kept

"""
Finds the vectors with the greatest inner products with a query: exactly, in blocks, or with FAISS if there are more
than `EXACT_ROWS` rows.

The same function computes all scores from the stored vectors, so they do not depend on which of the two methods found
a row.
"""

import functools
import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import install_hint
from .vectors import Vectors

if TYPE_CHECKING:
    from .inverted_lists import InvertedLists, Selection

logger = logging.getLogger(__name__)

# Up to this many rows, exact search takes milliseconds, and nothing has to be trained.
EXACT_ROWS = 300_000
# Number of rows and queries whose inner products are computed at a time: 64 MiB of vectors with 256 dimensions.
BLOCK_ROWS = 2**16
BLOCK_QUERIES = 128
# Of n rows in the lists, the codes of SCANNED * n ** 0.5 rows, and of some more per result, are compared with a query.
# `benchmarks/search.py` measures the recall. If at most as many rows are allowed, all of them are searched.
SCANNED = 44
SCANNED_PER_RESULT = 64

# Scores (n,) and row numbers (n,), best first.
_Found = tuple[np.ndarray, np.ndarray]
_NONE: _Found = (np.empty(0, np.float32), np.empty(0, np.int64))


class NearestRows:
    """
    Finds the rows whose vectors have the greatest inner products with queries. The vectors are L2-normalized, so these
    are cosine similarities. The search is exact for up to `EXACT_ROWS` rows.

    Args:
        vectors: the vectors.
        directory: directory that `update_nearest` writes to.
        rows: number of complete rows. Later rows are not read.
        holes: sorted disjoint ranges [start, stop) of deleted rows, (n, 2).

    Raises:
        ValueError: the files of the vectors are incomplete, or `holes` are not sorted disjoint ranges.

    Example:

        nearest = NearestRows(vectors, directory, rows=100_000, holes=np.array([[20, 30]]))
        scores, rows = nearest.search(queries, k=10)
    """

    def __init__(self, vectors: Vectors, directory: Path, rows: int, holes: np.ndarray):
        self.vectors, self.rows = vectors, rows
        vectors.check(rows)
        self.holes = _as_ranges(holes, rows, "holes")
        self._live = _without(np.array([[0, rows]]), self.holes)
        self._lists = _load_lists(directory, vectors) if _count(self._live) > EXACT_ROWS else None

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """
        Returns the scores (Q, k) and numbers (Q, k) of the best rows of each query, in descending order of scores, and
        in ascending order of rows if scores are equal. If there are fewer than `k` rows, the remaining scores are -inf
        and the remaining row numbers are -1.

        Args:
            queries: L2-normalized embeddings, (Q, D).
            k: number of rows per query.
            allowed: sorted disjoint ranges [start, stop) of rows to search, (n, 2). None searches all rows.

        Raises:
            ValueError: the queries have another length or are not finite, `k` is less than 1, or the files of the
                vectors are incomplete.
        """
        queries = _as_queries(queries, self.vectors.dim)
        if k < 1:
            raise ValueError(f"k={k} must be at least 1.")
        ranges = self._live
        if allowed is not None:
            ranges = _without(_as_ranges(allowed, self.rows, "allowed"), self.holes)
        search = self._search_exactly if self._lists is None else self._search_lists
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        for query, (found_scores, found_rows) in enumerate(search(queries, k, ranges)):
            scores[query, : len(found_rows)], rows[query, : len(found_rows)] = found_scores, found_rows
        return scores, rows

    def _search_exactly(self, queries: np.ndarray, k: int, ranges: np.ndarray) -> list[_Found]:
        """Returns the best rows in `ranges` (n, 2)."""
        best = [_NONE] * len(queries)
        # Matrix products round differently at different places in a block: rows whose scores are so close to the k-th
        # best that this could matter are scored again.
        slack = 2 * queries.shape[1] * np.finfo(np.float32).eps * np.linalg.norm(queries, axis=1)
        for numbers, block in self._blocks(_rows_of(ranges)):
            for first in range(0, len(queries), BLOCK_QUERIES):
                products = queries[first : first + BLOCK_QUERIES] @ block.T
                for query, scores in enumerate(products, first):
                    at = np.flatnonzero(scores >= _floor(scores, best[query][0], k) - slack[query])
                    if len(at):
                        exact = inner_products(block[at], queries[query])
                        best[query] = _best(best[query], (exact, numbers[at]), k)
        return best

    def _search_lists(self, queries: np.ndarray, k: int, ranges: np.ndarray) -> list[_Found]:
        """Returns the best rows in `ranges` (n, 2), from the lists and from the rows that are not in them yet."""
        assert self._lists is not None
        stop = min(self._lists.about.stop, self.rows)
        inside = _without(ranges, np.array([[stop, self.rows]]))
        if _count(inside) <= self._scanned(k):
            return self._search_exactly(queries, k, ranges)
        selection = None
        if ranges is self._live:
            selection = self._live_selection
        elif _count(inside) < self._lists.entries:
            selection = self._lists.select(self._selected(inside), few=True)
        tail = self._search_exactly(queries, k, _without(ranges, np.array([[0, stop]])))
        found = [self._search_query(query, k, inside, selection) for query in queries]
        return [_best(*both, k) for both in zip(found, tail)]

    def _search_query(self, query: np.ndarray, k: int, ranges: np.ndarray, selection: "Selection | None") -> _Found:
        assert self._lists is not None
        candidates = self._lists.candidates(query, k + max(k // 2, 32), self._scanned(k), selection)
        # Damaged lists could return any number.
        rows = np.unique(candidates[_within(ranges, candidates)])
        if len(rows) < min(k, _count(ranges)):
            return self._search_exactly(query[None], k, ranges)[0]
        return _best(_NONE, (inner_products(self.vectors.take(rows), query), rows), k)

    @functools.cached_property
    def _live_selection(self) -> "Selection | None":
        """Returns the rows that are not deleted; None if the lists contain no deleted rows."""
        assert self._lists is not None
        selected = self._selected(self._live)
        return self._lists.select(selected, few=False) if selected.sum() < self._lists.entries else None

    def _selected(self, ranges: np.ndarray) -> np.ndarray:
        """Returns which of the rows in the lists are in `ranges` (n, 2), (stop,) bool."""
        assert self._lists is not None
        selected = np.zeros(self._lists.about.stop, bool)
        for start, stop in ranges.tolist():
            selected[start:stop] = True
        return selected

    def _scanned(self, k: int) -> int:
        assert self._lists is not None
        return int(SCANNED * self._lists.entries**0.5) + SCANNED_PER_RESULT * k

    def _blocks(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(rows), BLOCK_ROWS):
            numbers = rows[start : start + BLOCK_ROWS]
            first, last = int(numbers[0]), int(numbers[-1])
            contiguous = last - first + 1 == len(numbers)
            yield numbers, self.vectors.read(first, last + 1) if contiguous else self.vectors.take(numbers)


def update_nearest(vectors: Vectors, directory: Path, rows: int, holes: np.ndarray) -> None:
    """
    Updates the inverted lists that `NearestRows` uses above `EXACT_ROWS` rows, for the first `rows` rows. Of these,
    `holes` (n, 2) are deleted. Most calls return at once, because a search covers a few thousand new rows without the
    lists. The first call for a million rows takes minutes, and so does a call after their number has doubled.

    Only one process may call this at a time, but others can search in the meantime. If it is killed, they continue to
    use the earlier lists.

    Raises:
        ValueError: the files of the vectors are incomplete.
        OSError: a file cannot be written. The message names it.
    """
    live = _without(np.array([[0, rows]]), _as_ranges(holes, rows, "holes"))
    if _count(live) > EXACT_ROWS and _has_faiss():
        from .inverted_lists import update_lists

        update_lists(directory, vectors, rows, _rows_of(live))


def _load_lists(directory: Path, vectors: Vectors) -> "InvertedLists | None":
    if not _has_faiss():
        return None
    from .inverted_lists import ABOUT, InvertedLists

    for _ in range(2):  # another process may replace the files in the meantime
        try:
            return InvertedLists(directory, vectors)
        except FileNotFoundError as error:
            if Path(error.filename).name == ABOUT:
                return None
            problem = f"{error.filename} is missing."
        except (ValueError, OSError, RuntimeError) as error:
            problem = str(error)
            break
    logger.warning("%s Until the index is updated, all vectors are searched, which is slower.", problem)
    return None


@functools.cache  # warns once
def _has_faiss() -> bool:
    if importlib.util.find_spec("faiss"):
        return True
    logger.warning(
        "Searching more than %s vectors is slow without FAISS: %s", f"{EXACT_ROWS:,}", install_hint("search")
    )
    return False


def inner_products(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """
    Returns the inner products of `vectors` (n, D) with `query` (D,), in float32. Each is independent of the other
    vectors, bit-for-bit, which matrix products do not guarantee.
    """
    return np.einsum("ij,j->i", vectors, query)


def _floor(scores: np.ndarray, kept: np.ndarray, k: int) -> float:
    """Returns the score that a row of a block needs to be among the best `k`, after `kept` scores."""
    if len(kept) == k:
        return kept[-1]
    kth = np.partition(scores, -k)[-k] if k < len(scores) else -np.inf
    return kth if np.isfinite(kth) else -np.inf


def _best(found: _Found, more: _Found, k: int) -> _Found:
    """Returns the best `k` of both. Scores of damaged vectors that are not finite are left out."""
    scores, rows = np.append(found[0], more[0]), np.append(found[1], more[1])
    order = np.lexsort((rows, -scores))
    order = order[np.isfinite(scores[order])][:k]
    return scores[order], rows[order]


def _as_queries(queries: np.ndarray, dim: int) -> np.ndarray:
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ValueError(f"queries must have the shape (Q, {dim}), not {queries.shape}.")
    if not np.isfinite(queries).all():
        raise ValueError("The embedding of a query is not finite: the model may have overflowed.")
    return queries


def _as_ranges(ranges: np.ndarray, rows: int, name: str) -> np.ndarray:
    """Returns sorted disjoint ranges (n, 2) of the first `rows` rows."""
    ranges = np.asarray(ranges, dtype=np.int64).reshape(-1, 2)
    edges = ranges.ravel()
    if (np.diff(edges) < 0).any() or (len(edges) and (edges[0] < 0 or edges[-1] > rows)):
        raise ValueError(f"{name} must be sorted disjoint ranges of the {rows:,} rows.")
    return ranges[ranges[:, 0] < ranges[:, 1]]


def _within(ranges: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns whether each of `rows` (n,) is in one of the ranges."""
    # In the sorted edges of the ranges, odd positions are inside a range.
    return np.searchsorted(ranges.ravel(), rows, side="right") % 2 == 1


def _without(ranges: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """Returns the ranges of rows that are in `ranges` but not in `holes`."""
    edges = np.unique(np.concatenate((ranges.ravel(), holes.ravel())))
    starts, stops = edges[:-1], edges[1:]
    kept = _within(ranges, starts) & ~_within(holes, starts)
    return np.stack((starts[kept], stops[kept]), axis=1)


def _count(ranges: np.ndarray) -> int:
    return int((ranges[:, 1] - ranges[:, 0]).sum())


def _rows_of(ranges: np.ndarray) -> np.ndarray:
    """Returns the rows of ranges (n, 2) as sorted numbers."""
    lengths = ranges[:, 1] - ranges[:, 0]
    ends = np.cumsum(lengths)
    return np.arange(lengths.sum()) + np.repeat(ranges[:, 0] - ends + lengths, lengths)

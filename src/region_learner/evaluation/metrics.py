"""
Retrieval metrics from embeddings, without storing the whole score matrix.

Scores are computed in float32, one tile at a time, and each tile is used for both directions. If float32 is not
precise enough to compare two scores, they are computed again in float64. The results are those of float64, at nearly
the cost of float32.
"""

import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
import torch

from ..corpora.rows import is_missing, plain, shown
from ..inference import progress_bar
from ..labels import IGNORED_ID
from .ties import mean_rank

RECALL_AT = (1, 5, 10, 50)

# Rows and columns of a tile. Eight booleans are counted at once, as the bytes of an integer, which count up to 255.
_ROWS, _COLUMNS = 248, 8 * 255

# Above this share of a tile, operations on all of its scores are faster than on single ones.
_FEW = 1 / 64

_NUMBERS_AT_ONCE = 2**18  # 2 MiB of float64, which fit in the cache
_PAIRS_AT_ONCE = 2**18

# Held from when settings of torch are changed until they are restored.
_SETTINGS = Lock()

_FLOAT64_ROUNDING, _FLOAT32_ROUNDING = 2.0**-53, 2.0**-24
_FLOAT32_SMALLEST = 2.0**-126
_FLOAT32_LENGTHS = (1e-12, 1e12)  # range of the longest embedding, far from where products overflow or vanish


class _Side:
    """
    The texts or the videos, and the state of their ranks as queries.

    `embeds`: (n, dim), in their original dtype. `lengths`: (n,), float64. `best`: (n,), float64, the best score of a
    relevant entry. `bounds`: two tensors (n,), between which scores are tied with the best one. `float32_bounds`: two
    tensors (n,), between which float32 is not precise enough. `above` and `at_least`: (n,), the numbers of scores that
    are greater than the best one, and of scores that are greater than or tied with it.
    """

    bounds: tuple[torch.Tensor, torch.Tensor]
    float32_bounds: tuple[torch.Tensor, torch.Tensor]

    def __init__(self, name: str, embeds: Any):
        with warnings.catch_warnings():  # about read-only memory-mapped files, which are not written to
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            embeds = torch.as_tensor(embeds)
        if embeds.ndim != 2 or not len(embeds):
            raise ValueError(f"{name} must be of shape (n, dim) with n > 0, not {tuple(embeds.shape)}.")
        self.embeds = embeds.detach().cpu()
        self.dim = embeds.shape[1]
        self.at_once = max(1, _NUMBERS_AT_ONCE // max(1, self.dim))
        self.lengths = torch.cat([part.double().norm(dim=1) for part in self.embeds.split(self.at_once)])
        if not torch.isfinite(self.lengths).all():
            raise ValueError(f"{name} contains values that are not finite.")
        self.longest = float(self.lengths.max())
        self.best = torch.full_like(self.lengths, -torch.inf)
        self.above = torch.zeros(len(embeds), dtype=torch.int64)
        self.at_least = torch.zeros(len(embeds), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.embeds)

    def ranks(self) -> np.ndarray:
        """Returns the ranks of the best relevant entries, (n,), float64."""
        return mean_rank(self.above.numpy(), (self.at_least - self.above).numpy())


def _pair_scores(left: _Side, right: _Side, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
    """Returns the scores of the pairs (i, j), each of shape (pairs,), in float64."""
    scores = torch.empty(len(i), dtype=torch.float64)
    for start in range(0, len(i), left.at_once):
        part = slice(start, start + left.at_once)
        scores[part] = (left.embeds[i[part]].double() * right.embeds[j[part]].double()).sum(1)
    return scores


@contextmanager
def _true_float32() -> Iterator[None]:
    """Computes matrix products in the precision of their dtype, even if settings would let oneDNN use bfloat16."""
    enabled = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.backends.mkldnn.enabled = enabled


@contextmanager
def parallel_map(tasks: int) -> Iterator[Callable[..., Iterable]]:
    """
    Yields a `map` over as many threads as torch has, each of which computes alone.

    Operations on tiles are so short that threads that share one operation would mostly wait for each other.
    """
    threads = torch.get_num_threads()
    if min(threads, tasks) == 1:
        yield map
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(threads, tasks)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


def _mask(compare: Callable, scores: torch.Tensor, bound: torch.Tensor, dim: int) -> torch.Tensor:
    """Compares `scores` (rows, columns) with the bound of each query. Pads columns to a multiple of 8."""
    width = scores.shape[1]
    mask = torch.zeros(len(scores), width + -width % 8, dtype=torch.bool)
    compare(scores, bound.unsqueeze(dim), out=mask[:, :width])
    return mask


def _count(mask: torch.Tensor, dim: int) -> torch.Tensor:
    """Returns the number of true entries along `dim` of a mask (rows, columns), columns a multiple of 8; int64."""
    sums = mask.view(torch.int64).sum(dim).view(torch.uint8)
    return sums.long() if dim == 0 else sums.view(len(mask), 8).sum(1)


def _places(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the rows and columns of the true entries of a mask (rows, columns), columns a multiple of 8."""
    eights = mask.view(torch.int64)
    row, eighth = eights.nonzero(as_tuple=True)
    found, byte = eights[row, eighth][:, None].view(torch.uint8).nonzero(as_tuple=True)
    return row[found], 8 * eighth[found] + byte


def _few(mask: torch.Tensor) -> bool:
    return bool(_count(mask, 1).sum() <= _FEW * mask.numel())


class _Counter:
    """
    Counts the scores above the best relevant ones, tile by tile, into `above` and `at_least` of the queries.

    Whatever the order of summation, the error of a score is at most n u / (1 - n u) times the product of the two
    lengths, with n = dim and u the rounding of its dtype, 2^-24 or 2^-53 (Higham, Accuracy and Stability of Numerical
    Algorithms, 2002, section 3.1), or with n = dim + 2 if embeddings had to be rounded, too. Scores that float64
    cannot distinguish are tied: a matrix product sums in another order at its edges, so the scores of equal embeddings
    can differ.
    """

    def __init__(self, left: _Side, right: _Side):
        self.left, self.right = left, right
        rounding = (left.dim + 4) * _FLOAT32_ROUNDING
        low, high = _FLOAT32_LENGTHS
        self.in_float32 = rounding < 0.5 and all(low < side.longest < high for side in (left, right))
        # The error of embeddings and products that vanish below the smallest float32.
        vanishing = 3 * left.dim * _FLOAT32_SMALLEST * (1 + left.longest + right.longest)
        for queries, gallery in ((left, right), (right, left)):
            reach = queries.lengths * gallery.longest  # the largest absolute value of a score
            tied = 4 * (left.dim + 4) * _FLOAT64_ROUNDING * reach  # for two scores, with a safety factor of 2
            queries.bounds = queries.best - tied, queries.best + tied
            # The bounds are rounded to float32, too.
            unsure = tied + (rounding / (1 - rounding) + 4 * _FLOAT32_ROUNDING) * reach + vanishing
            queries.float32_bounds = (queries.best - unsure).float(), (queries.best + unsure).float()
        self.adding = Lock()

    def run(self, dims: Sequence[int]) -> None:
        """Counts along `dims`, the axes of the gallery: 1 if the queries are the left side, 0 if the right side."""
        row_starts = range(0, len(self.left), _ROWS)
        with parallel_map(len(row_starts)) as map_in_threads:
            # The right side, which may be on disk, is read once.
            for start in progress_bar(range(0, len(self.right), _COLUMNS), "ranking", unit="tile"):
                columns = slice(start, start + _COLUMNS)
                count = partial(self._count_tile, self.right.embeds[columns].float(), columns, dims)
                for _ in map_in_threads(count, row_starts):  # waits, and raises the errors of threads
                    pass

    @torch.inference_mode()
    def _count_tile(self, right: torch.Tensor, columns: slice, dims: Sequence[int], start: int) -> None:
        rows = slice(start, start + _ROWS)
        remaining = list(dims)
        if self.in_float32:
            scores = self.left.embeds[rows].float() @ right.T
            remaining = [dim for dim in dims if not self._count_sure_ones(scores, rows, columns, dim)]
        if remaining:
            scores = self.left.embeds[rows].double() @ self.right.embeds[columns].double().T
            for dim in remaining:
                queries, part = self._queries(dim, rows, columns)
                low, high = (bound[part] for bound in queries.bounds)
                at_least, above = _mask(torch.ge, scores, low, dim), _mask(torch.gt, scores, high, dim)
                self._add(_count(above, dim), _count(at_least, dim), queries, part)

    def _queries(self, dim: int, rows: slice, columns: slice) -> tuple[_Side, slice]:
        return (self.left, rows) if dim == 1 else (self.right, columns)

    def _count_sure_ones(self, scores: torch.Tensor, rows: slice, columns: slice, dim: int) -> bool:
        """
        Counts with float32 `scores` (rows, columns), and computes unsure ones again. Returns False if there are too
        many of them.
        """
        queries, part = self._queries(dim, rows, columns)
        low, high = (bound[part] for bound in queries.float32_bounds)
        possibly = _mask(torch.ge, scores, low, dim)
        if _few(possibly):  # as for a good model: look at each of them
            i, j = _places(possibly)
            unsure = scores[i, j] <= high[i if dim == 1 else j]
            above = torch.bincount((i if dim == 1 else j)[~unsure], minlength=len(low))
            i, j = i[unsure], j[unsure]
        else:
            surely = _mask(torch.gt, scores, high, dim)
            possibly ^= surely  # scores that are surely above are also possibly above: the rest is unsure
            if not _few(possibly):
                return False
            above = _count(surely, dim)
            i, j = _places(possibly)
        query = i if dim == 1 else j
        exact = _pair_scores(self.left, self.right, i + rows.start, j + columns.start)
        low, high = (bound[part][query] for bound in queries.bounds)
        at_least = above.index_add(0, query, (exact >= low).long())
        above.index_add_(0, query, (exact > high).long())
        self._add(above, at_least, queries, part)
        return True

    def _add(self, above: torch.Tensor, at_least: torch.Tensor, queries: _Side, part: slice) -> None:
        with self.adding:
            for total, counts in ((queries.above[part], above), (queries.at_least[part], at_least)):
                total += counts[: len(total)]


def _rank(left: _Side, right: _Side, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], both: bool) -> None:
    """
    Ranks the right side for each entry of the left side, and with `both` also the left side for each entry of the
    right side.

    `pairs` yields chunks (i, j) of the indices of relevant pairs. The rank of an entry without a pair is meaningless.
    """
    for i, j in pairs:
        scores = _pair_scores(left, right, i, j)
        left.best.scatter_reduce_(0, i, scores, "amax")
        right.best.scatter_reduce_(0, j, scores, "amax")
    dims: tuple[int, ...] = (1, 0) if both else (1,)
    if len(left) > len(right):
        left, right, dims = right, left, tuple(1 - dim for dim in dims)
    with _SETTINGS, _true_float32():
        _Counter(left, right).run(dims)


def _pairs(entries: np.ndarray, first: np.ndarray, counts: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """
    Yields the pairs of a query and each of its relevant entries, in chunks.

    The relevant entries of query i are the `counts[i]` entries from `entries[first[i]]` on.
    """
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        begin = ends[start] - counts[start]
        stop = max(start + 1, int(np.searchsorted(ends, begin + _PAIRS_AT_ONCE, side="right")))
        part = counts[start:stop]
        offsets = np.arange(ends[stop - 1] - begin) - np.repeat(ends[start:stop] - part - begin, part)
        queries = np.repeat(np.arange(start, stop), part)
        yield torch.from_numpy(queries), torch.from_numpy(entries[first[queries] + offsets])
        start = stop


def best_ranks(queries: Any, gallery: Any, relevant: Sequence[Sequence[int]]) -> np.ndarray:
    """
    Returns the rank of the best-ranked relevant gallery entry for each query, by dot product, in bounded memory.

    Ranks start at 1; ties count as in [`~region_learner.evaluation.ties.mean_rank`].

    Args:
        queries: embeddings (n, dim).
        gallery: embeddings (m, dim).
        relevant: for each query, the indices of its relevant gallery entries (at least one).

    Returns:
        Ranks of shape (n,), float64: whole numbers, or halves if there are ties.

    Raises:
        ValueError: shapes do not fit, values are not finite, or a query has no relevant entry.
    """
    left, right = _Side("queries", queries), _Side("gallery", gallery)
    if left.dim != right.dim:
        raise ValueError(f"queries and gallery must have the same dimension, not {left.dim} and {right.dim}.")
    if len(relevant) != len(left):
        raise ValueError(f"relevant has {len(relevant)} entries for {len(left)} queries.")
    counts = np.array([len(indices) for indices in relevant], dtype=np.int64)
    if not counts.all():
        raise ValueError(f"Query {int(np.argmin(counts))} has no relevant entry.")
    entries = np.fromiter((index for indices in relevant for index in indices), dtype=np.int64)
    _rank(left, right, _pairs(entries, np.cumsum(counts) - counts, counts), both=False)
    return left.ranks()


def _ids(name: str, ids: Any, length: int) -> list[Hashable]:
    if ids is None:
        return list(range(length))
    ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    if len(ids) != length:
        raise ValueError(f"{name} has {len(ids)} entries for {length} embeddings.")
    return checked_ids(name, ids)


def checked_ids(name: str, ids: list[Any]) -> list[Hashable]:
    """
    Returns ids as plain Python values, because scalars of torch or NumPy with the same value are not always equal.

    Raises:
        ValueError: an id is missing or not hashable, or some are strings and others numbers, which are never equal.
    """
    kinds = {type(value) for value in ids}
    if not kinds <= {str, int}:
        ids = [plain(value) for value in ids]
        kinds = {type(value) for value in ids}
    if not kinds <= {str, int}:
        for i, value in enumerate(ids):
            if is_missing(value):
                raise ValueError(f"{name}[{i}] is {value!r}: every text and every video needs an id.")
            if type(value).__hash__ is None:
                raise ValueError(f"{name}[{i}] is {shown(value)}: an id must be a string or an integer.")
    if str in kinds and len(kinds) > 1:
        text = next(value for value in ids if isinstance(value, str))
        other = next(value for value in ids if not isinstance(value, str))
        raise ValueError(
            f"{name} mixes strings and numbers, such as {text!r} and {other!r}: make all of them strings."
        )
    return ids


def match_ids(
    texts: torch.Tensor, videos: torch.Tensor, text_video_ids: Any, video_ids: Any
) -> tuple[list[Hashable], list[Hashable]]:
    """
    Returns the ids of the videos that `texts` (texts, dim) describe, and the ids of `videos` (videos, dim).

    Raises:
        ValueError: dimensions or numbers of ids do not fit, or the video of a text is missing.
    """
    if texts.shape[1] != videos.shape[1]:
        raise ValueError(
            f"text_embeds and video_embeds must have the same dimension, not {texts.shape[1]} and {videos.shape[1]}."
        )
    if text_video_ids is None and len(texts) != len(videos):
        raise ValueError(
            f"There are {len(texts)} texts and {len(videos)} videos: pass text_video_ids to say which belong together."
        )
    ids = _ids("video_ids", video_ids, len(videos))
    owners = ids if text_video_ids is None else _ids("text_video_ids", text_video_ids, len(texts))
    known = set(ids)
    if missing := list(dict.fromkeys(video_id for video_id in owners if video_id not in known)):
        differ = isinstance(missing[0], str) != isinstance(ids[0], str)
        hint = f"; some are strings and others numbers, such as {ids[0]!r}" if differ else ""
        raise ValueError(f"{len(missing)} videos of text_video_ids are not in video_ids: {missing[:3]} ...{hint}")
    return owners, ids


def summary(prefix: str, ranks: np.ndarray) -> dict[str, float]:
    """Returns recalls in percent, the median and mean of ranks, and the geometric mean of R@1, R@5 and R@10."""
    result = {f"{prefix}_R@{k}": float(100 * np.mean(ranks <= k)) for k in RECALL_AT}
    recalls = [result[f"{prefix}_R@{k}"] for k in (1, 5, 10)]
    return result | {
        f"{prefix}_MedR": float(np.median(ranks)),
        f"{prefix}_MeanR": float(np.mean(ranks)),
        f"{prefix}_gmean": float(np.cbrt(np.prod(recalls))),
    }


def retrieval_metrics(
    text_embeds: Any, video_embeds: Any, text_video_ids: Any = None, video_ids: Any = None
) -> dict[str, float]:
    """
    Returns the metrics of text-to-video (`t2v_`) and video-to-text (`v2t_`) retrieval.

    The whole score matrix is never stored, and the embeddings are not copied: they may be tensors, arrays or
    memory-mapped files of any floating-point dtype. The metrics are computed on the CPU, with torch's threads.

    Args:
        text_embeds (array of shape `(texts, dim)`): embeddings of texts, which are compared with those of videos by
            dot product. Normalize both for cosine similarity.
        video_embeds (array of shape `(videos, dim)`): embeddings of videos.
        text_video_ids (sequence of length `texts`, *optional*): id of the video that each text describes; several
            texts may describe one video. By default, text i describes the i-th video.
        video_ids (sequence of length `videos`, *optional*): id of each video. The default is 0, 1, 2, ...

    Returns:
        `R@1`, `R@5`, `R@10`, `R@50` in percent, `MedR`, `MeanR`, and `gmean`, the geometric mean of R@1, R@5 and R@10,
        each with a prefix. Ranks start at 1, and ties count as the mean of their ranks. Video-to-text uses the
        best-ranked text of a video; videos without a text are in the gallery but are not queries.

    Raises:
        ValueError: shapes or ids do not fit, values are not finite, the video of a text is missing, ids are None or
            NaN, or some ids are strings and others numbers.

    Example:

        retrieval_metrics(text_embeds, video_embeds, ["a", "a", "b"], ["a", "b"])["t2v_R@1"]
    """
    texts, videos = _Side("text_embeds", text_embeds), _Side("video_embeds", video_embeds)
    owners, ids = match_ids(texts.embeds, videos.embeds, text_video_ids, video_ids)
    numbers: dict[Hashable, int] = {}
    of_video = np.array([numbers.setdefault(video_id, len(numbers)) for video_id in ids])
    of_text = np.array([numbers[video_id] for video_id in owners])
    # Usually there is one video for each id, but a few corpora have several clips with the same id.
    counts = np.bincount(of_video)
    first = np.cumsum(counts) - counts
    pairs = _pairs(np.argsort(of_video, kind="stable"), first[of_text], counts[of_text])
    _rank(texts, videos, pairs, both=True)
    described = np.isin(of_video, of_text)
    return summary("t2v", texts.ranks()) | summary("v2t", videos.ranks()[described])


def compute_retrieval_metrics(prediction) -> dict[str, float]:
    """
    Returns retrieval metrics, as `compute_metrics` of the Trainer. `prediction.predictions` are (text_embeds,
    video_embeds), and `label_ids` are the ids of the videos. Pairs with the id -1 are left out, and a video that
    occurs again with another text counts once.
    """
    text_embeds, video_embeds = prediction.predictions[:2]
    ids = prediction.label_ids[0] if isinstance(prediction.label_ids, tuple) else prediction.label_ids
    kept = ids != IGNORED_ID
    if not kept.any():
        raise ValueError("Every row is left out: no video could be read.")
    text_embeds, video_embeds, ids = text_embeds[kept], video_embeds[kept], ids[kept]
    _, first = np.unique(ids, return_index=True)
    first = np.sort(first)
    return retrieval_metrics(text_embeds, video_embeds[first], ids, ids[first])


# --- Which metrics can choose a checkpoint ------------------------------------------------------------------

_RANKING = {f"R@{k}": True for k in RECALL_AT} | {"MedR": False, "MeanR": False, "gmean": True}

# The metrics of evaluation during training that measure the quality of the model, and whether greater is better.
GREATER_IS_BETTER: dict[str, dict[str, bool]] = {
    "retrieval": {f"{side}_{name}": better for side in ("t2v", "v2t") for name, better in _RANKING.items()}
    | {"loss": False},
    "multiple_choice": {"accuracy": True},
    "question_answering": {"accuracy": True, "loss": False},
    "classification": {"top1": True, "top5": True, "loss": False},
}

_OF_ANY_TASK = {name: better for metrics in GREATER_IS_BETTER.values() for name, better in metrics.items()}


def greater_is_better(name: str) -> bool | None:
    """
    Returns whether a greater value of a metric is better, or None for a metric that no task has.

    Args:
        name: name of the metric as in `metric_for_best_model`: with or without "eval_", and preceded by the name of an
            evaluation dataset if there are several ("eval_unseen_t2v_MeanR").
    """
    for known in sorted(_OF_ANY_TASK, key=len, reverse=True):
        if name == known or name.endswith(f"_{known}"):
            return _OF_ANY_TASK[known]
    return None

"""An index of videos on disk, which stays in sync with their files and is searched by text, image or video."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch

from ..files import locked
from ..modeling_region_learner import word_region_similarity
from .calibration import RIVALS, clip_score_by_chance, hit_probabilities, neutral_texts, score_by_chance
from .database import FILE, Database, Record, evenly_spaced, merged
from .embedding import Embedder, Query
from .nearest import NearestRows, inner_products
from .spans import STRIDE, WINDOW, check_windows, find_spans
from .updating import Updater, UpdateReport
from .vectors import AGAIN
from .windows import WindowStore, is_token_shape

logger = logging.getLogger(__name__)

MODEL = "google/siglip2-base-patch16-224"

# A hit with a probability above the first is likely to be right; below the second, probably nothing matches.
LIKELY = 0.5
NO_MATCH = 0.1

# Errors of a video of the index that cannot be read, or is not in the index any more.
UNREADABLE = (ValueError, OSError, KeyError)
DIFFERENT = {"weights": "other weights", "preprocessing": "another preprocessing", "dim": "other embeddings"}

_NEAREST = 200  # minimum number of windows that are examined for each query
_PART = 512  # windows of a long video in which a span is searched
# Number of spans that are re-ranked by words and regions.
_RERANKED = 50
_SAMPLE = 4096  # windows that the calibration scores


@dataclass(frozen=True)
class Hit:
    """
    A span of a video that matches a query.

    Args:
        path: path of the video; for a member of a shard, the path of the shard followed by the name of the member.
        start, end: start and end in seconds from the first frame.
        score: cosine similarity of the query and the best window of the span.
        probability: probability that the hit is what the query means, from 0 to 1. docs/calibration.md shows how
            reliable it is.
        regions: masks for a clip of the span, float32 (T, S, h, w), if they were requested, and the video can be read.
            For a text and a model with tokens, they are heat maps, one for each of `phrases`; otherwise they are the
            masks of all regions, if the model has any.
        phrases: what each of `regions` shows: first the whole query, then its phrases. Empty for the masks of all
            regions.
    """

    path: str
    start: float
    end: float
    score: float
    probability: float
    regions: np.ndarray | None = field(default=None, compare=False, repr=False)
    phrases: tuple[str, ...] = field(default=(), compare=False)


class VideoIndex:
    """
    An index of videos on disk, which is searched by text, image or video.

    Args:
        directory: directory of an existing index. Use [`VideoIndex.create`] to create a new one.
        model: the new path of the model of the index, if it was moved.

    Raises:
        FileNotFoundError: the directory does not contain an index.
        ValueError: the index is damaged, or has another version.

    Example:

        index = VideoIndex.create("videos.index", model="google/siglip2-base-patch16-224")
        print(index.update("videos"))
        for hit in index.search("a dog jumps over a fence", k=5):
            print(f"{hit.probability:.2f} {hit.path} {hit.start:.0f}-{hit.end:.0f}")
    """

    def __init__(self, directory: str | os.PathLike[str], model: str | None = None):
        self.directory = Path(os.path.abspath(directory))  # the working directory may change
        self.database = Database(self.directory)
        _check_about(self.database)
        self._given_model = model
        self._embedder: Embedder | None = None
        self._view: _View | None = None
        self._lock = threading.Lock()  # one thread at a time

    @classmethod
    def create(
        cls,
        directory: str | os.PathLike[str],
        model: str = MODEL,
        window: float = WINDOW,
        stride: float = STRIDE,
        num_frames: int | None = None,
        tokens: bool | None = None,
    ) -> VideoIndex:
        """
        Creates an empty index.

        Args:
            directory: directory of the index, which must be empty or not exist.
            model: directory or Hub name of a RegionLearner, CLIP, MetaCLIP 2, SigLIP or SigLIP 2 checkpoint.
            window: length of a window in seconds.
            stride: seconds from the start of one window to the start of the next.
            num_frames: frames per window. The default is the number that the model expects.
            tokens: whether to keep the tokens of each window in addition to its vector, which makes searching by text
                more accurate. By default, they are kept if the model has any (`token_dim`).

        Raises:
            FileExistsError: the directory is already an index, or contains other files.
            BlockingIOError: another process is creating or changing the index.
            ValueError: `window`, `stride` or `num_frames` is out of range, the model cannot embed texts and videos, or
                `tokens` is True and the model does not have any.
            OSError: the model does not exist.
        """
        path = Path(directory)
        check_new(path)
        check_windows(window, stride)
        embedder = Embedder(model, num_frames)
        about = new_about(embedder, window, stride, tokens)
        create_database(path, about)
        index = cls(path)
        index._embedder = embedder
        return index

    @classmethod
    def open(cls, directory: str | os.PathLike[str], model: str | None = None) -> VideoIndex:
        """Opens an index; the same as `VideoIndex(directory, model)`."""
        return cls(directory, model)

    @classmethod
    def from_embeddings(
        cls, directory: str | os.PathLike[str], parts: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    ) -> VideoIndex:
        """
        Creates an index from the parts that `region-learner embed` has written, or adds them to an existing index.
        Neither the videos nor the model are read.

        Args:
            directory: directory of an index, or one that is empty or does not exist.
            parts: one or several directories of parts, or single parts.

        Raises:
            ValueError: parts are missing or damaged, or were made with another model or other windows than the other
                parts or the index.
            BlockingIOError: another process is changing the index.

        Example:

            index = VideoIndex.from_embeddings("videos.index", "parts")
        """
        from .jobs import join_parts

        join_parts(directory, parts)
        return cls(directory)

    def __len__(self) -> int:
        """Returns the number of readable videos in the index."""
        return self.database.execute("SELECT COUNT(*) FROM videos WHERE error IS NULL")[0][0]

    def about(self) -> dict[str, Any]:
        """
        Returns the settings of the index: its model, revision, hash of the weights, preprocessing, window and stride,
        and the number of tokens per window with their number of dimensions (None without tokens).
        """
        names = ("model", "revision", "weights", "preprocessing", "num_frames", "dim", "window", "stride", "tokens")
        return {name: self.database.about(name) for name in names}

    # --- The model ---

    @property
    def embedder(self) -> Embedder:
        """
        The model of the index with its processor, which are loaded when first used.

        Raises:
            ValueError: the model or its preprocessing differs from that which the index was made with.
        """
        if self._embedder is None:
            made_with = self.database.about("model")
            name = self._given_model or made_with
            try:
                embedder = Embedder(name, self.database.about("num_frames"))
            except OSError as error:
                if self._given_model:
                    raise
                raise OSError(
                    f"{error} The index {self.directory} was made with this model: if it was moved, pass its path as "
                    "model (--model)."
                ) from error
            found = embedder.about()
            for what in ("weights", "preprocessing", "dim"):
                if found[what] != self.database.about(what):
                    raise ValueError(
                        f"{self.directory} was made with {made_with}, but {name} has "
                        f"{DIFFERENT[what]}: use that model, or create another index."
                    )
            shape = self.database.about("tokens")
            if shape is not None and shape[1] != embedder.model.config.token_dim:
                raise ValueError(f"{self.database.path} is damaged (tokens): {AGAIN}")
            self._embedder = embedder
        return self._embedder

    @property
    def model(self) -> Any:
        """The `RegionLearnerModel` of the index."""
        return self.embedder.model

    @property
    def processor(self) -> Any:
        """The `RegionLearnerProcessor` of the index."""
        return self.embedder.processor

    # --- Changes ---

    def update(
        self,
        paths: Any,
        remove_missing: bool = True,
        *,
        retry: bool = False,
        num_workers: int = 0,
        root: str = "rows of a corpus",
    ) -> UpdateReport:
        """
        Brings the index up to date with files: embeds new and changed videos, and removes those that no longer exist.
        Unchanged videos are not read again. To resume an interrupted update, call this again.

        Args:
            paths: one or several paths of folders, videos, shards (.tar) or lists (.txt); or rows of `load_corpus`.
            remove_missing: whether to remove videos that were found in these folders, lists, shards or rows earlier
                but no longer exist there.
            retry: whether to retry files that could not be read earlier.
            num_workers: number of processes that decode. With 0, the default, this process decodes.
            root: a name for rows of `load_corpus`. With `remove_missing`, an update removes the videos that came from
                earlier rows of the same name and are not among the new rows. If an index has rows of several corpora,
                give each corpus its own name.

        Returns:
            The new, changed, moved, unchanged, removed and unreadable videos, as an [`UpdateReport`].

        Raises:
            BlockingIOError: another process is changing the index.
            FileNotFoundError: a path does not exist.
            ValueError: a path does not contain any videos.
        """
        with locked(self.directory), Updater(self.directory, lambda: self.embedder) as updater:
            return updater.update(paths, remove_missing, retry, num_workers, root)

    def remove(self, paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> int:
        """
        Removes videos from the index, not from the disk.

        Args:
            paths: one or several paths of videos, or of folders or shards whose videos are removed.

        Returns:
            The number of videos that were removed.

        Raises:
            ValueError: the index has no videos within a path; nothing is removed.
            BlockingIOError: another process is changing the index.
        """
        given = [paths] if isinstance(paths, str | os.PathLike) else paths
        with locked(self.directory), Updater(self.directory, lambda: self.embedder) as updater:
            return updater.remove([_absolute(path) for path in given])

    def unreadable(self) -> dict[str, str]:
        """Returns the unreadable videos: for each path, the reason why it could not be read."""
        return {record.video.path: record.error or "" for record in self.database.records("error IS NOT NULL")}

    # --- Reading the videos of the index ---

    def paths(self) -> list[str]:
        """Returns the paths of the readable videos."""
        return [os.fsdecode(path) for (path,) in self.database.execute(
            "SELECT path FROM videos WHERE error IS NULL ORDER BY path"
        )]  # fmt: skip

    def source(self, path: str) -> Any:
        """Returns the processor's input for a video of the index. Raises a `KeyError` for other paths."""
        return self.record(path).video.source()

    def duration(self, path: str) -> float:
        """Returns the length of a video of the index in seconds. Raises a `KeyError` for other paths."""
        return self.record(path).duration

    def record(self, path: str) -> Record:
        """Returns the record of a video of the index. Raises a `KeyError` for other paths."""
        record = self.database.record(path)
        if record is None:
            raise KeyError(f"{path} is not in the index {self.directory}")
        return record

    def token_bytes_per_hour(self) -> float:
        """Returns how many bytes the tokens take per hour of video; 0 if the index does not keep them, or is empty."""
        number, dim = self.database.about("tokens") or (0, 0)
        windows, seconds = self.database.execute("SELECT SUM(rows), SUM(duration) FROM videos")[0]
        return 2 * number * (1 + dim) * windows * 3600 / seconds if seconds else 0.0

    def vectors(self, path: str) -> np.ndarray:
        """
        Returns the embeddings of the windows of a video of the index, float32 (W, D), of length 1. Raises a `KeyError`
        for other paths.
        """
        with self._lock, self.database.snapshot():
            record = self.record(path)
            return self._current_view().vectors.read(record.first_row, record.first_row + len(record.spans))

    # --- Search ---

    @overload
    def search(
        self, text: str | None = None, image: Any = None, video: Any = None, k: int = 10, **options: Any
    ) -> list[Hit]: ...
    @overload
    def search(
        self, text: list[str], image: None = None, video: None = None, k: int = 10, **options: Any
    ) -> list[list[Hit]]: ...
    def search(
        self,
        text: str | list[str] | None = None,
        image: Any = None,
        video: Any = None,
        k: int = 10,
        within: str | os.PathLike[str] | None = None,
        min_score: float | None = None,
        min_probability: float | None = None,
        regions: bool = False,
        exclude: tuple[str, float, float] | None = None,
    ) -> Any:
        """
        Returns the spans of videos that match a query best. Exactly one of `text`, `image` and `video` is required.

        If the index keeps tokens, the best spans for a text are re-ranked by words and regions. This only changes the
        order of the hits. Each hit keeps its `score`, but a `probability` belongs to a rank: the first hit gets the
        probability of the hit that was first before re-ranking, and so on.

        Args:
            text: a text, or a list of texts, each of which is a query.
            image: an image, as a path, a PIL image or an array.
            video: a video, as a path, frames, or `(video, start, end)` in seconds.
            k: maximum number of hits.
            within: a folder, shard or video of the index. Only the videos in it are searched.
            min_score: minimum cosine similarity of a hit.
            min_probability: minimum probability of a hit.
            regions: whether to run the model on the hits to fill `Hit.regions`.
            exclude: a span `(path, start, end)` in seconds. Windows that overlap it are not searched: for a query that
                is itself in the index.

        Returns:
            The hits, best first; for a list of texts, one list of hits per text.

        Raises:
            ValueError: not exactly one query is given, `k` is less than 1, or the index has no videos `within`.
            VideoDecodeError: the image or video cannot be read.
        """
        if sum(query is not None for query in (text, image, video)) != 1:
            raise ValueError("Give exactly one query: text, image or video.")
        if k < 1:
            raise ValueError(f"k={k} must be at least 1.")
        queries = self._embed(text, image, video)
        folder = None if within is None else _absolute(within)
        with self._lock:
            all_hits = [self._search(query, k, folder, text is not None, exclude) for query in queries]
        lowest, least = -2 if min_score is None else min_score, min_probability or 0
        found = [[hit for hit in hits if hit.score >= lowest and hit.probability >= least][:k] for hits in all_hits]
        if regions:
            texts = [text] if text is None or isinstance(text, str) else list(text)
            found = [[self._with_regions(hit, words) for hit in hits] for hits, words in zip(found, texts)]
        return found[0] if text is None or isinstance(text, str) else found

    def _embed(self, text: Any, image: Any, video: Any) -> list[Query]:
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            if not texts or not all(isinstance(item, str) and item.strip() for item in texts):
                raise ValueError('A query is empty: give words, such as "a dog jumps".')
            return self.embedder.queries(texts)
        if image is not None:
            return [Query(self.embedder.clip(images=[image]))]
        video, *span = video if isinstance(video, tuple) else (video,)
        if len(span) not in (0, 2):
            raise ValueError("A span of a video must be given as (video, start, end), in seconds.")
        start, end = span or (None, None)
        return [Query(self.embedder.clip(videos=[video], start=start, end=end))]

    def _without(self, view: _View, path: str, start: float, end: float) -> _View:
        record = self.database.record(_absolute(path))
        if record is None:
            raise ValueError(f"The index {self.directory} does not have the video {path}{self.database.near(path)}")
        overlap = np.flatnonzero((record.spans[:, 0] < end) & (record.spans[:, 1] > start))
        if not len(overlap):
            return view
        return view.without(record.first_row + int(overlap[0]), record.first_row + int(overlap[-1]) + 1)

    def _search(
        self, query: Query, k: int, within: str | None, is_text: bool, exclude: tuple[str, float, float] | None = None
    ) -> list[Hit]:
        """Returns at least `k` hits of a query, if there are that many."""
        with self.database.snapshot():  # for one query only, because it keeps other processes from committing
            view = self._current_view()
            if within is not None:
                ranges = self.database.rows_within(within)
                if not len(ranges):
                    raise ValueError(
                        f"The index {self.directory} has no videos within {within}{self.database.near(within)}"
                    )
                view = view.restricted(ranges)
            if exclude is not None:
                view = self._without(view, *exclude)
            return self._hits(view, query, k, is_text) if view.count else []

    def _hits(self, view: _View, query: Query, k: int, is_text: bool) -> list[Hit]:
        reranks = query.words is not None and view.windows.tokens is not None
        wanted = min(max(k, _RERANKED if reranks else 0, RIVALS), view.count)
        nearest = min(max(_NEAREST, 10 * wanted), view.count)
        while len(found := self._spans(view, query.vector, nearest, wanted)) < wanted and nearest < view.count:
            nearest *= 4  # one video may have many windows that match
        found = found[:wanted]
        scale = self.embedder.logit_scale
        chance = view.text_chance if is_text else view.clip_chance
        best = view.vectors.take(np.array([span.best for span in found], np.int64))
        sample, count = view.sample, view.count
        if len(found) < RIVALS:  # other windows of a span are not rivals of its hit
            is_rival = ~self._are_in_spans(view.sample_rows, found)
            sample, count = sample[is_rival], round(count * is_rival.mean())
        probabilities = hit_probabilities(query.vector, best, sample, chance, count, scale)
        if reranks:
            found[:_RERANKED] = self._reranked(view, query, found[:_RERANKED])
        # The probabilities belong to the ranks, even though re-ranking by words makes more of the first hits right.
        return [
            Hit(span.path, span.start, span.end, span.score, float(probability))
            for span, probability in zip(found, probabilities)
        ]

    def _are_in_spans(self, rows: np.ndarray, found: list[_Span]) -> np.ndarray:
        """Returns whether the windows of `rows` overlap with one of the spans."""
        are_in = np.zeros(len(rows), bool)
        for span in found:
            record = self.database.record(span.path)
            assert record is not None
            overlap = (record.spans[:, 0] < span.end) & (record.spans[:, 1] > span.start)
            are_in |= np.isin(rows, record.first_row + np.flatnonzero(overlap))
        return are_in

    def _reranked(self, view: _View, query: Query, spans: list[_Span]) -> list[_Span]:
        """Returns spans sorted by the sum of the model's two logits for the best window of each."""
        assert query.words is not None
        tokens = torch.from_numpy(view.windows.take_tokens(np.array([span.best for span in spans], np.int64))).float()
        similarities = word_region_similarity(*query.words, tokens[..., 1:], tokens[..., 0])[0]
        scores = torch.tensor([span.score for span in spans], dtype=torch.float64)
        logits = scores * self.embedder.logit_scale + similarities * self.embedder.token_logit_scale
        return [spans[place] for place in logits.argsort(descending=True, stable=True).tolist()]

    def _spans(self, view: _View, query: np.ndarray, nearest: int, wanted: int) -> list[_Span]:
        """
        Returns the spans around the `nearest` rows, best first. The first `wanted` of them, or all if there are fewer,
        are the best of the index.
        """
        first, last = view.excluded
        (row_scores,), (rows,) = view.nearest.search(query[None], nearest + last - first, view.allowed)
        rows = rows[(rows < first) | (rows >= last)]
        found: list[_Span] = []
        seen: set[int] = set()
        for row in rows[rows >= 0].tolist():
            if row in seen:
                continue
            record = self.database.owner(row)
            part = (row - record.first_row) // _PART
            first = record.first_row + part * _PART
            spans = record.spans[part * _PART : (part + 1) * _PART]
            seen.update(range(first, first + len(spans)))
            scores = inner_products(view.vectors.read(first, first + len(spans)), query)
            places = np.arange(len(spans)) + first
            is_searched = (places < view.excluded[0]) | (places >= view.excluded[1])
            scores, spans, places = scores[is_searched], spans[is_searched], places[is_searched]
            highest = scores.max()
            if sum(span.score > highest for span in found) >= wanted:
                break  # all others score lower
            for start, end, best in find_spans(scores, spans):
                found.append(_Span(-float(scores[best]), record.video.path, start, end, int(places[best])))
        # A row that is not among the nearest may score as much as the last of them.
        floor = row_scores[-1] if nearest < view.count else -np.inf
        return sorted(span for span in found if span.score >= floor)

    def _current_view(self) -> _View:
        """Returns the current view of the index, which is loaded again if another process has changed it."""
        version = self.database.version()
        if self._view is None or self._view.version != version:
            self._view = _View(self.directory, self.database, version)
        return self._view

    def with_regions(self, hit: Hit, text: str | None = None) -> Hit:
        """
        Returns a hit with its `regions`. If a text is given and the model compares words with regions, these are the
        heat maps of the text. Otherwise they are the masks of all regions, or None if the model does not have any.
        """
        if text is not None and self.embedder.has_tokens:
            phrases, heat_maps = self.embedder.phrases(self.source(hit.path), text, **self.span_of(hit))
            return replace(hit, regions=heat_maps, phrases=phrases)
        if self.embedder.has_regions:
            masks = self.embedder.regions(self.source(hit.path), **self.span_of(hit))
            return replace(hit, regions=masks, phrases=())
        return replace(hit, regions=None, phrases=())

    def _with_regions(self, hit: Hit, text: str | None) -> Hit:
        try:
            return self.with_regions(hit, text)
        except UNREADABLE as error:  # the hit was found nevertheless
            logger.warning("The regions of a hit are left out: %s", error)
            return hit

    def span_of(self, hit: Hit) -> dict[str, float | None]:
        """Returns the `start` and `end` with which the processor reads a hit: None for a whole video."""
        whole = hit.start == 0 and hit.end >= self.duration(hit.path)
        return {"start": None, "end": None} if whole else {"start": hit.start, "end": hit.end}


class _Span(NamedTuple):
    """A span that was found, with the row of its best window. Spans sort like hits."""

    negative_score: float
    path: str
    start: float
    end: float
    best: int

    @property
    def score(self) -> float:
        return -self.negative_score


def check_new(path: Path) -> None:
    """Raises a `FileExistsError` unless an index can be created in a directory."""
    if (path / FILE).exists():
        raise FileExistsError(f"{path} is already an index: open it, or choose another directory.")
    own = (".lock", f".{FILE}.partial")  # which an earlier run may have left
    if path.exists() and not all(file.name.startswith(own) for file in path.iterdir()):
        raise FileExistsError(f"{path} contains other files: choose another directory for the index.")


def create_database(path: Path, about: dict[str, Any]) -> None:
    """
    Creates the database of a new index.

    Raises:
        FileExistsError: the directory is already an index, which another process may have created in the meantime.
        BlockingIOError: another process is changing that index.
    """
    path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        check_new(path)
        Database.create(path, about).close()


def new_about(embedder: Embedder, window: float, stride: float, tokens: bool | None) -> dict[str, Any]:
    """
    Returns the settings of a new index, as JSON values.

    Raises:
        ValueError: `tokens` is True and the model does not have any.
    """
    shape = embedder.token_shape(tokens)
    neutral = embedder.texts(neutral_texts()).astype("<f4").tobytes().hex()
    return {**embedder.about(), "window": window, "stride": stride, "tokens": shape, "neutral": neutral}


def _check_about(database: Database) -> None:
    """Raises a `ValueError` unless the settings of an index, which may be untrusted, are valid."""
    numbers = {name: database.about(name) for name in ("dim", "num_frames", "window", "stride")}
    if not isinstance(database.about("model"), str) or not all(
        type(number) in (int, float) and 0 < number < 2**31 for number in numbers.values()
    ):
        raise ValueError(f"{database.path} is damaged ({numbers!r:.100}): {AGAIN}")
    if not is_token_shape(database.about("tokens")):  # indexes of earlier versions have none
        raise ValueError(f"{database.path} is damaged (tokens): {AGAIN}")
    _neutral(database)


def _neutral(database: Database) -> np.ndarray:
    """Returns the embeddings of the neutral texts, float32 (P, D)."""
    try:
        found = np.frombuffer(bytes.fromhex(database.about("neutral")), "<f4").reshape(-1, database.about("dim"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{database.path} is damaged: {AGAIN}") from error
    if not len(found) or not np.isfinite(found).all():
        raise ValueError(f"{database.path} is damaged: {AGAIN}")
    return found


class _View:
    """
    The windows of an index at one point in time.

    Attributes:
        windows: vectors and tokens of the windows.
        allowed: the ranges of rows that are searched (n, 2); None for all.
        excluded: the range of rows that is left out of them.
        count: the number of rows that are searched.
        sample: some of their vectors, and `sample_rows`, their rows.
        text_chance, clip_chance: the scores that the best window reaches by chance, for texts and for clips.
    """

    def __init__(self, directory: Path, database: Database, version: int):
        self.version = version
        rows, dim, holes = database.about("rows"), database.about("dim"), database.holes()
        self.windows = WindowStore(database.vectors_directory(), dim, database.about("tokens"))
        self.windows.check(rows)
        self.vectors = self.windows.vectors
        self.nearest = NearestRows(self.vectors, self.vectors.directory, rows, holes)
        self.neutral = _neutral(database)
        self.allowed: np.ndarray | None = None
        self.excluded = (0, 0)
        self.count = rows - int((holes[:, 1] - holes[:, 0]).sum())
        self._set_sample(database.sampled_rows(_SAMPLE))

    def _set_sample(self, rows: np.ndarray) -> None:
        self.sample_rows, self.sample = rows, self.vectors.take(rows)
        if len(rows):
            self.text_chance = score_by_chance(self.sample, self.neutral, self.count)
            self.clip_chance = clip_score_by_chance(self.sample, self.count)

    def restricted(self, ranges: np.ndarray) -> _View:
        """Returns a view of the rows in ranges (n, 2)."""
        view = copy(self)
        view.allowed = merged(ranges)
        view.count = int((ranges[:, 1] - ranges[:, 0]).sum())
        view._set_sample(evenly_spaced(ranges, _SAMPLE))
        return view

    def without(self, first: int, last: int) -> _View:
        """Returns a view without the rows of a video from `first` to `last` (exclusive)."""
        view = copy(self)
        view.excluded = first, last
        allowed = np.array([[first, last]]) if self.allowed is None else self.allowed
        common = np.minimum(allowed[:, 1], last) - np.maximum(allowed[:, 0], first)
        view.count -= int(np.maximum(common, 0).sum())
        is_left = (self.sample_rows < first) | (self.sample_rows >= last)
        view.sample_rows, view.sample = self.sample_rows[is_left], self.sample[is_left]
        return view


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(os.path.expanduser(path))

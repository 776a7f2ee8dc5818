"""An index of videos on disk, which follows their files and is searched by texts, images and videos."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from ..files import locked
from .calibration import hit_probabilities, neutral_texts
from .database import FILE, Database, Record, evenly_spaced, merged
from .embedding import Embedder
from .nearest import NearestRows, inner_products
from .spans import STRIDE, WINDOW, find_spans
from .updating import Updater, UpdateReport
from .vectors import Vectors

logger = logging.getLogger(__name__)

MODEL = "google/siglip2-base-patch16-224"

# A best hit of less than this probability means: nothing in the index matches.
LIKELY = 0.5

_DIFFERENT = {"weights": "other weights", "preprocessing": "another preprocessing", "dim": "other embeddings"}

_NEAREST = 200  # windows that are looked at for each query, at least
_RIVALS = 50  # best spans that are compared with one another, so that a probability does not depend on `k`
_SAMPLE = 4096  # windows of which the calibration sees the scores


@dataclass(frozen=True)
class Hit:
    """
    A span of a video that matches a query.

    Args:
        path: of the video; of a member of a shard, the path of the shard followed by the name of the member.
        start, end: in seconds from the first frame.
        score: cosine similarity of the query and the best window of the span.
        probability: that this is what the query means, from 0 to 1; see docs/search.md for how far it can be trusted.
        regions: masks of the regions of a clip of the span, float32 (T, S, h, w), if they were asked for and the
            model has regions.
    """

    path: str
    start: float
    end: float
    score: float
    probability: float
    regions: np.ndarray | None = field(default=None, compare=False, repr=False)


class VideoIndex:
    """
    An index of videos.

    Args:
        directory: of an index that exists; see [`VideoIndex.create`].
        model: where the model of the index is now, if it was moved.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: it is damaged, or of another version.

    Example:

        index = VideoIndex.create("videos.index", model="google/siglip2-base-patch16-224")
        print(index.update("videos"))
        for hit in index.search("a dog jumps over a fence", k=5):
            print(f"{hit.probability:.2f} {hit.path} {hit.start:.0f}-{hit.end:.0f}")
    """

    def __init__(self, directory: str | os.PathLike[str], model: str | None = None):
        self.directory = Path(directory)
        self.database = Database(self.directory)
        self._given_model = model
        self._embedder: Embedder | None = None
        self._view: _View | None = None

    @classmethod
    def create(
        cls,
        directory: str | os.PathLike[str],
        model: str = MODEL,
        window: float = WINDOW,
        stride: float = STRIDE,
        num_frames: int | None = None,
    ) -> VideoIndex:
        """
        Makes an empty index.

        Args:
            directory: where nothing, or an empty directory, is.
            model: a directory or Hub name, of a RegionLearner or of a CLIP, MetaCLIP 2, SigLIP or SigLIP 2.
            window: length of a window in seconds.
            stride: seconds from the start of one window to that of the next.
            num_frames: frames per window; by default those of the model.

        Raises:
            FileExistsError: the directory is an index, or has other files.
            ValueError: `window` and `stride` do not fit, or the model cannot embed texts and videos.
            OSError: the model does not exist.
        """
        path = Path(directory)
        if (path / FILE).exists():
            raise FileExistsError(f"{path} is an index already: open it, or choose another directory.")
        if path.exists() and any(path.iterdir()):
            raise FileExistsError(f"{path} has other files: choose another directory for the index.")
        if not 0 < stride <= window < float("inf"):
            raise ValueError(
                f"window={window} and stride={stride} must be seconds, 0 < stride <= window: with a longer stride, "
                "parts of the videos would be left out."
            )
        embedder = Embedder(model, num_frames)
        path.mkdir(parents=True, exist_ok=True)
        neutral = embedder.texts(neutral_texts()).astype("<f4").tobytes().hex()
        about = {**embedder.about(), "window": window, "stride": stride, "neutral": neutral}
        Database.create(path, about).close()
        index = cls(path)
        index._embedder = embedder
        return index

    @classmethod
    def open(cls, directory: str | os.PathLike[str], model: str | None = None) -> VideoIndex:
        """Opens an index; the same as `VideoIndex(directory, model)`."""
        return cls(directory, model)

    def __len__(self) -> int:
        """Returns the number of videos that are searched."""
        return self.database.execute("SELECT COUNT(*) FROM videos WHERE error IS NULL")[0][0]

    def about(self) -> dict[str, Any]:
        """Returns what the index was made with: model, revision, hash of weights, preprocessing, window, stride."""
        names = ("model", "revision", "weights", "preprocessing", "num_frames", "dim", "window", "stride")
        return {name: self.database.about(name) for name in names}

    # --- The model ---

    @property
    def embedder(self) -> Embedder:
        """
        The model of the index with its processor, loaded when it is first used.

        Raises:
            ValueError: the model, or its preprocessing, is not the one that the index was made with.
        """
        if self._embedder is None:
            made_with = self.database.about("model")
            name = self._given_model or made_with
            embedder = Embedder(name, self.database.about("num_frames"))
            found = embedder.about()
            for what in ("weights", "preprocessing", "dim"):
                if found[what] != self.database.about(what):
                    raise ValueError(
                        f"{self.directory} was made with {made_with}, but {name} has "
                        f"{_DIFFERENT[what]}: use that model, or make another index."
                    )
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
        Brings the index up to date with files: embeds new and changed ones, and removes those that are gone. What has
        not changed is not read. An interrupted update goes on where it stopped when it is called again.

        Args:
            paths: one or several paths of folders, videos, shards (.tar) or lists (.txt); or rows of `load_corpus`.
            remove_missing: whether to remove videos that these folders, lists, shards or rows had earlier and do not
                have now.
            retry: whether to read files again that could not be read.
            num_workers: processes that decode; by default 0: the videos are decoded in this process.
            root: what to call the rows of a corpus, so that a later update knows which videos came from them.

        Raises:
            BlockingIOError: another process is changing the index.
            FileNotFoundError, ValueError: a path does not exist, or does not have any videos.
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
            KeyError: a path has no videos in the index.
            BlockingIOError: another process is changing the index.
        """
        given = [paths] if isinstance(paths, str | os.PathLike) else paths
        with locked(self.directory), Updater(self.directory, lambda: self.embedder) as updater:
            return updater.remove([_absolute(path) for path in given])

    def unreadable(self) -> dict[str, str]:
        """Returns why videos could not be read, by their paths."""
        return {record.video.path: record.error or "" for record in self.database.records("error IS NOT NULL")}

    # --- Reading the videos of the index ---

    def paths(self) -> list[str]:
        """Returns the paths of the videos that are searched."""
        return [os.fsdecode(path) for (path,) in self.database.execute(
            "SELECT path FROM videos WHERE error IS NULL ORDER BY path"
        )]  # fmt: skip

    def source(self, path: str) -> Any:
        """Returns what the processor reads for a video of the index. Raises a `KeyError` for other paths."""
        return self._record(path).video.source()

    def duration(self, path: str) -> float:
        """Returns the length of a video of the index in seconds. Raises a `KeyError` for other paths."""
        return self._record(path).duration

    def _record(self, path: str) -> Record:
        record = self.database.record(path)
        if record is None:
            raise KeyError(f"{path} is not in the index {self.directory}")
        return record

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
    ) -> Any:
        """
        Returns the spans of videos that match a query best.

        Args:
            text: words; or a list of texts, each of which is a query.
            image: a picture: a path, a PIL image or an array.
            video: a video: a path, frames, or `(video, start, end)` in seconds. One of these three is given.
            k: the greatest number of hits.
            within: a folder, shard or video of the index: only its videos are searched.
            min_score: the lowest cosine similarity of a hit.
            min_probability: the lowest probability of a hit.
            regions: whether to run the model on the hits, for the masks of their regions.

        Returns:
            The hits, best first; for a list of texts a list of them for each.

        Raises:
            ValueError: not exactly one query is given, or `k` is less than 1.
            KeyError: `within` has no videos in the index.
            VideoDecodeError: the image or video cannot be read.
        """
        if sum(query is not None for query in (text, image, video)) != 1:
            raise ValueError("Give one query: text, image or video.")
        if k < 1:
            raise ValueError(f"k={k} must be at least 1.")
        queries = self._embed(text, image, video)
        found = [
            [
                hit
                for hit in hits
                if hit.score >= (-2 if min_score is None else min_score) and hit.probability >= (min_probability or 0)
            ]
            for hits in self._search(queries, k, None if within is None else _absolute(within))
        ]
        if regions:
            found = [[self._with_regions(hit) for hit in hits] for hits in found]
        return found if isinstance(text, list) else found[0]

    def _embed(self, text: Any, image: Any, video: Any) -> np.ndarray:
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            if not texts or not all(isinstance(item, str) and item.strip() for item in texts):
                raise ValueError("A query is empty: expected words.")
            return self.embedder.texts(texts)
        if image is not None:
            return self.embedder.clip(images=[image])[None]
        video, *span = video if isinstance(video, tuple) else (video,)
        start, end = span or (None, None)
        return self.embedder.clip(videos=[video], start=start, end=end)[None]

    def _search(self, queries: np.ndarray, k: int, within: str | None) -> Iterator[list[Hit]]:
        with self.database.snapshot():
            view = self._current_view()
            if within is not None:
                ranges = self.database.rows_within(within)
                if not len(ranges):
                    raise KeyError(f"{within} has no videos in the index {self.directory}")
                view = view.restricted(ranges)
            for query in queries:
                yield self._hits(view, query, k) if view.count else []

    def _hits(self, view: _View, query: np.ndarray, k: int) -> list[Hit]:
        """Returns the hits of one query."""
        nearest = max(_NEAREST, 10 * k)
        while len(found := self._spans(view, query, nearest)) < k and nearest < view.count:
            nearest *= 4  # one video may have many windows that match
        del found[max(k, _RIVALS) :]
        probabilities = hit_probabilities(
            query,
            view.vectors.take(np.array([row for *_, row in found], np.int64)),
            view.sample,
            view.neutral,
            view.count,
            self.embedder.logit_scale,
            self.embedder.logit_bias,
        )
        return [
            Hit(path, start, end, score, float(probability))
            for (score, path, start, end, _), probability in zip(found[:k], probabilities)
        ]

    def _spans(self, view: _View, query: np.ndarray, nearest: int) -> list[tuple[float, str, float, float, int]]:
        """
        Returns the spans of the videos of the `nearest` rows, best first: score, path, start, end and the row of the
        best window.
        """
        _, (rows,) = view.nearest.search(query[None], nearest, view.allowed)
        found = []
        seen: set[int] = set()
        for row in rows[rows >= 0].tolist():
            if row in seen:
                continue
            record = self.database.owner(row)
            stop = record.first_row + len(record.spans)
            seen.update(range(record.first_row, stop))
            scores = inner_products(view.vectors.read(record.first_row, stop), query)
            for start, end, best in find_spans(scores, record.spans):
                found.append((float(scores[best]), record.video.path, start, end, record.first_row + best))
        return sorted(found, key=lambda hit: (-hit[0], *hit[1:]))

    def _current_view(self) -> _View:
        """Returns what is searched, loaded again if another process has changed the index."""
        version = self.database.version()
        if self._view is None or self._view.version != version:
            self._view = _View(self.directory, self.database, version)
        return self._view

    def _with_regions(self, hit: Hit) -> Hit:
        whole = hit.start == 0 and hit.end >= self.duration(hit.path)
        span = (None, None) if whole else (hit.start, hit.end)
        masks = self.embedder.regions(self.source(hit.path), *span)
        return replace(hit, regions=masks)


class _View:
    """
    The vectors of an index at one time.

    Attributes:
        allowed: the ranges of rows that are searched (n, 2); None for all.
        count: the number of rows that are searched.
        sample: some of their vectors.
    """

    def __init__(self, directory: Path, database: Database, version: int):
        self.version = version
        rows, dim, holes = database.about("rows"), database.about("dim"), database.holes()
        self.vectors = Vectors(directory / database.about("vectors"), dim)
        self.vectors.check(rows)
        self.nearest = NearestRows(self.vectors, self.vectors.directory, rows, holes)
        self.neutral = np.frombuffer(bytes.fromhex(database.about("neutral")), "<f4").reshape(-1, dim)
        self.allowed: np.ndarray | None = None
        self.count = rows - int((holes[:, 1] - holes[:, 0]).sum())
        self.sample = self.vectors.take(database.sampled_rows(_SAMPLE))

    def restricted(self, ranges: np.ndarray) -> _View:
        """Returns a view of the rows in ranges (n, 2)."""
        view = copy(self)
        view.allowed = merged(ranges)
        view.count = int((ranges[:, 1] - ranges[:, 0]).sum())
        view.sample = self.vectors.take(evenly_spaced(ranges, _SAMPLE))
        return view


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(os.path.expanduser(path))

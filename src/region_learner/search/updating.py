"""Brings an index up to date with files."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .database import Database, Record
from .embedding import Embedded, Embedder, embed_events
from .nearest import update_nearest
from .reading import Failed, Job, Known, Options, read_video, read_videos
from .sources import Video, find_videos, root_to_keep
from .windows import Windows, WindowStore

logger = logging.getLogger(__name__)

_WINDOWS = 2048  # number of windows per commit
_SECONDS = 10  # after this time windows are committed in any case: a killed process loses no more work than that


@dataclass
class UpdateReport:
    """
    The result of an update, as lists of paths.

    Args:
        new: videos that were not in the index, or could not be read earlier.
        changed: videos that were embedded again because their content had changed.
        moved: videos that were found under another path, and were not read again.
        unchanged: videos that have not changed.
        removed: videos that no longer exist.
        unreadable: for each video that could not be read in this or an earlier update, the reason.
    """

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join(f"{len(paths)} {name}" for name, paths in vars(self).items() if paths) or "nothing to do"


class Updater:
    """
    The only writer of an index. Windows are on disk before a transaction makes them part of the index.

    Args:
        directory: directory of the index, which the caller has locked.
        embedder: function that returns the model. It is called when the model is needed.
    """

    def __init__(self, directory: Path, embedder: Callable[[], Embedder]):
        self.directory, self.embedder = directory, embedder
        self.database = Database(directory, writes=True)
        self.about = {name: self.database.about(name) for name in ("dim", "tokens")}
        self.windows = self._open_windows(self.database.vectors_directory())
        self.report = UpdateReport()
        self.waiting: list[tuple[Record, Windows]] = []  # to be committed
        self.since = time.monotonic()

    def __enter__(self) -> Updater:
        for path in self.directory.glob("vectors-*"):
            if path.name != self.database.about("vectors"):  # no reader uses it anymore
                shutil.rmtree(path)
        return self

    def __exit__(self, *_: Any) -> None:
        self.database.close()

    def _open_windows(self, directory: Path) -> WindowStore:
        directory.mkdir(exist_ok=True)
        return WindowStore(directory, self.about["dim"], self.about["tokens"])

    def update(self, paths: Any, remove_missing: bool, retry: bool, workers: int, root: str) -> UpdateReport:
        """See [`VideoIndex.update`]."""
        found = find_videos(paths, root)
        self.report.unreadable |= found.unreadable
        stamps = self.database.stamps()
        gone = {path for path, (*_, earlier) in stamps.items() if remove_missing and found.lacks(path, earlier)}
        known = {path: stamps[path][-1] for path in found.roots.keys() & stamps.keys()}
        roots = found.roots | {path: root_to_keep(path, known[path], found.roots[path]) for path in known}
        self._set_roots({path: roots[path] for path in known if roots[path] != known[path]})
        jobs = []
        for path, video in found.videos.items():
            size, modified, offset, failed, _ = stamps.get(path, (None, None, None, False, ""))
            if (size, modified, offset) != (video.size, video.modified, video.offset) or (failed and retry):
                same_size = self.database.records("size = ? AND error IS NULL", [video.size])
                jobs.append(Job(video, frozenset(record.sha256 for record in same_size if record.sha256)))
            elif failed:
                self.report.unreadable[path] = (self.database.record(path) or Record(video, "")).error or ""
            else:
                self.report.unchanged.append(path)
        try:
            self._read(jobs, roots, gone, workers)
        finally:
            self._commit()
        with self.database.transaction():
            self.report.removed += sorted(path for path in gone if self.database.remove(path))
        self._tidy()
        return self.report

    def remove(self, paths: Sequence[str]) -> int:
        """See [`VideoIndex.remove`]."""
        count = 0
        with self.database.transaction():
            for path in paths:
                records = self.database.records_within(path)
                if not records:
                    hint = self.database.near(path)
                    raise ValueError(
                        f"Nothing was removed: the index {self.directory} has no videos within {path}{hint}"
                    )
                count += sum(self.database.remove(record.video.path) for record in records)
        self._tidy()
        return count

    def add(self, videos: Iterable[tuple[Record, Windows]]) -> UpdateReport:
        """Adds videos that were embedded elsewhere. Videos that have not changed are skipped."""
        stamps = self.database.stamps()
        roots = {}  # that replace those of unchanged videos
        try:
            for record, windows in videos:
                path, size, modified, offset, _ = record.video
                *stamp, known = stamps.get(path, (record.root,))
                record = record._replace(root=root_to_keep(path, known, record.root))
                if record.error is not None:
                    self.report.unreadable[path] = record.error
                if stamp != [size, modified, offset, record.error is not None]:
                    self._put(record, windows)
                    continue
                if record.error is None:
                    self.report.unchanged.append(path)
                if record.root != known:
                    roots[path] = record.root
        finally:
            self._commit()
        self._set_roots(roots)
        self._tidy()
        return self.report

    def _set_roots(self, roots: dict[str, str]) -> None:
        with self.database.transaction():
            for path, root in roots.items():
                self.database.set_root(path, root)

    # --- Reading ---

    def _read(self, jobs: list[Job], roots: dict[str, str], gone: set[str], workers: int) -> None:
        if not jobs:
            return
        processor = self.embedder().processor.video_processor
        options = Options(processor, self.database.about("window"), self.database.about("stride"))
        with (
            closing(read_videos(jobs, options, min(workers, len(jobs)))) as events,
            Progress("indexing", [job.video for job in jobs]) as progress,
        ):
            for video, result in embed_events(events, self.embedder()):
                self._take(video, result, roots[video.path], gone, options)
                progress.advance(video, result)

    def _take(
        self, video: Video, result: Embedded | Known | Failed, root: str, gone: set[str], options: Options
    ) -> None:
        if isinstance(result, Embedded):
            plan = result.plan
            self._put(Record(video, root, result.sha256, plan.duration, plan.spans), result.windows)
        elif isinstance(result, Failed):
            self.report.unreadable[video.path] = result.reason
            self._put(Record(video, root, error=result.reason), Windows.empty(self.about))
        elif not self._reuse(video, result.sha256, root, gone):
            # The video with this content was itself replaced in the meantime.
            events = ((video, event) for event in read_video(Job(video), options))
            for _, again in embed_events(events, self.embedder()):
                self._take(video, again, root, gone, options)

    def _reuse(self, video: Video, sha256: str, root: str, gone: set[str]) -> bool:
        """Reuses the windows of a video with the same content, if it is still in the index."""
        self._commit()
        same = self.database.records("size = ? AND sha256 = ? AND error IS NULL", [video.size, sha256])
        by_path = {record.video.path: record for record in same}
        moved = next((path for path in by_path if path in gone), None)
        with self.database.transaction():
            if video.path in by_path:
                self.database.move(video.path, video, root)
                self.report.unchanged.append(video.path)
            elif moved is not None:
                self.database.remove(video.path)
                self.database.move(moved, video, root)
                gone.discard(moved)
                self.report.moved.append(video.path)
        if same and moved is None and video.path not in by_path:
            first = same[0]
            rows = self.windows.read(first.first_row, first.first_row + len(first.spans))
            self._put(first._replace(video=video, root=root), rows)
        return bool(same)

    # --- Writing ---

    def _put(self, record: Record, windows: Windows) -> None:
        if record.error is None:
            known = self.database.record(record.video.path)
            is_new = known is None or known.error is not None
            (self.report.new if is_new else self.report.changed).append(record.video.path)
        self.waiting.append((record, windows))
        if sum(len(rows) for _, rows in self.waiting) >= _WINDOWS or time.monotonic() - self.since > _SECONDS:
            self._commit()

    def _commit(self) -> None:
        """Commits the waiting videos to the index."""
        self.since = time.monotonic()
        waiting, self.waiting = self.waiting, []  # if they cannot be written, they are not written again
        if not waiting:
            return
        first = self.database.about("rows")
        self.windows.write(first, Windows.concatenate([windows for _, windows in waiting]))
        with self.database.transaction():
            for record, windows in waiting:
                self.database.put(record._replace(first_row=first))
                first += len(windows)
            self.database.set_about("rows", first)

    def _tidy(self) -> None:
        """Removes the holes if they make up most of the rows, and updates the inverted lists."""
        holes = self.database.holes()
        rows, lost = self.database.about("rows"), int((holes[:, 1] - holes[:, 0]).sum())
        if lost > rows / 2:
            self._compact()
            rows, holes = self.database.about("rows"), self.database.holes()
        update_nearest(self.windows.vectors, self.windows.directory, rows, holes)

    def _compact(self) -> None:
        """Writes the remaining windows to a new directory, and then switches to it."""
        number = int(self.database.about("vectors").removeprefix("vectors-")) + 1
        directory = self.directory / f"vectors-{number}"
        shutil.rmtree(directory, ignore_errors=True)
        windows = self._open_windows(directory)
        left = self.database.execute("SELECT rowid, first_row, rows FROM videos WHERE rows > 0 ORDER BY first_row")
        places, first, waiting = [], 0, 0
        kept: list[Windows] = []
        for name, start, count in left:
            kept.append(self.windows.read(start, start + count))
            places.append((first, name))
            first, waiting = first + count, waiting + count
            if waiting >= _WINDOWS:
                windows.write(first - waiting, Windows.concatenate(kept))
                kept, waiting = [], 0
        if waiting:
            windows.write(first - waiting, Windows.concatenate(kept))
        with self.database.transaction():
            for place in places:
                self.database.execute("UPDATE videos SET first_row = ? WHERE rowid = ?", place)
            self.database.execute("DELETE FROM holes")
            self.database.set_about("rows", first)
            self.database.set_about("vectors", directory.name)
        self.windows = windows


class Progress:
    """
    A progress bar over videos. It also shows the hours of video that are done and, estimated from file sizes, the
    hours that remain.
    """

    def __init__(self, description: str, videos: list[Video]):
        self.bytes_left = sum(video.size for video in videos)
        self.bytes = self.seconds = self.windows = 0.0
        self.start = time.monotonic()
        self.bar = tqdm(total=len(videos), desc=description, unit="video", delay=1, disable=None)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()

    def advance(self, video: Video, result: Embedded | Known | Failed) -> None:
        self.bytes_left -= video.size
        self.bytes += video.size
        if isinstance(result, Embedded):
            self.seconds += result.plan.duration
            self.windows += len(result.windows)
        to_go = self.seconds * self.bytes_left / self.bytes if self.bytes else 0
        self.bar.set_postfix_str(
            f"{self.seconds / 3600:.2f} h of video done, about {to_go / 3600:.2f} h to go, "
            f"{self.windows / (time.monotonic() - self.start):.1f} windows/s",
            refresh=False,
        )
        self.bar.update()

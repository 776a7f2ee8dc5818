"""Indexing on many machines: each job embeds one shard of the videos, and one process joins them into an index."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ..files import locked
from ..inference import progress_bar
from .database import FILE, Database, Record
from .embedding import Embedded, Embedder, embed_events
from .index import DIFFERENT, check_new, create_database, new_about
from .parts import COMMON, NOT_TEXT, PartFile, PartWriter, as_text, is_text, list_parts, open_part, read_part
from .reading import Failed, Job, Options, read_videos
from .sources import Video, find_videos
from .spans import STRIDE, WINDOW, check_windows
from .updating import Progress, Updater, UpdateReport
from .windows import Windows

# --- Embedding -----------------------------------------------------------------------------------------------


def embed_videos(
    model: str,
    paths: Any,
    output_dir: str | os.PathLike[str],
    shard: tuple[int, int] = (0, 1),
    *,
    window: float = WINDOW,
    stride: float = STRIDE,
    num_frames: int | None = None,
    tokens: bool | None = None,
    retry: bool = False,
    num_workers: int = 0,
    root: str = "rows of a corpus",
) -> UpdateReport:
    """
    Embeds one of n equal shards of videos, and writes the embeddings as Parquet files, called parts. Videos that are
    already in parts are not read again: the same call resumes an interrupted one, and adds new and changed videos.

    Args:
        model: directory or Hub name of a RegionLearner, CLIP, MetaCLIP 2, SigLIP or SigLIP 2 checkpoint.
        paths: the videos, as in [`VideoIndex.update`]. They must be the same for every shard.
        output_dir: directory of the parts, which all jobs may share.
        shard: (i, n) takes every n-th video in the order of the paths, starting with the i-th; i counts from 0.
        window, stride: length of a window, and time from the start of one window to the start of the next, in seconds.
        num_frames: frames per window. The default is the number that the model expects.
        tokens: whether to keep the tokens of each window. By default, they are kept if the model has any.
        retry: whether to retry files that could not be read earlier.
        num_workers: number of processes that decode. With 0, the default, this process decodes.
        root: name of the rows of a corpus.

    Returns:
        An `UpdateReport` of the videos of this shard.

    Raises:
        ValueError: the directory contains parts with another model, other windows or another n; or as in
            `VideoIndex.update`.
        BlockingIOError: another process is writing the parts of this shard.

    Example:

        for i in range(4):  # on as many machines
            embed_videos("google/siglip2-base-patch16-224", "videos", "parts", shard=(i, 4))
        index = VideoIndex.from_embeddings("videos.index", "parts")
    """
    number, count = shard
    if not 0 <= number < count < 10**9:
        raise ValueError(f"shard={shard} must be (i, n) with i from 0 to n - 1.")
    check_windows(window, stride)
    found = find_videos(paths, root)
    names = sorted(found.videos)
    finished = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    embedder = Embedder(model, num_frames)
    about = new_about(embedder, window, stride, tokens)
    directory = Path(output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory, f".lock-{number:05}"):
        parts = list_parts([directory], may_be_empty=True)
        for part in parts:
            if part.shards != count:
                raise ValueError(
                    f"{directory} has parts of {part.shards} shards, not {count}: use --shard I/{part.shards}, or "
                    "another directory."
                )
            _check_same(about, "This run", part.about, part.path)
        videos = [found.videos[name] for name in names[number::count]]
        with PartWriter(directory, about, number, count, parts) as writer:
            report = _embed(videos, found.roots, _stamps(parts, videos), embedder, writer, retry, num_workers)
            writer.finish(finished)
    report.unreadable |= found.unreadable
    return report


def _embed(
    videos: list[Video],
    roots: dict[str, str],
    stamps: dict[str, tuple[Any, ...]],
    embedder: Embedder,
    writer: PartWriter,
    retry: bool,
    workers: int,
) -> UpdateReport:
    """Embeds the videos that are not in parts yet."""
    report = UpdateReport()
    nothing = Windows.empty(writer.about)
    jobs = []
    for video in videos:
        *stamp, error = stamps.get(as_text(video.path), (None, None))
        if tuple(stamp) != (video.size, video.modified, video.offset) or (error is not None and retry):
            if is_text(video.path):
                jobs.append(Job(video))
            else:
                report.unreadable[video.path] = NOT_TEXT
                writer.put(Record(video, roots[video.path], error=report.unreadable[video.path]), nothing)
        elif error is not None:
            report.unreadable[video.path] = error
        else:
            report.unchanged.append(video.path)
    options = Options(embedder.processor.video_processor, writer.about["window"], writer.about["stride"])
    with (
        closing(read_videos(jobs, options, min(workers, len(jobs)))) as events,
        Progress("embedding", [job.video for job in jobs]) as progress,
    ):
        for video, result in embed_events(events, embedder):
            record = Record(video, roots[video.path])
            if isinstance(result, Embedded):
                plan = result.plan
                record = record._replace(sha256=result.sha256, duration=plan.duration, spans=plan.spans)
                *_, error = stamps.get(video.path, ("new",))
                (report.changed if error is None else report.new).append(video.path)
                writer.put(record, result.windows)
            elif isinstance(result, Failed):
                report.unreadable[video.path] = result.reason
                writer.put(record._replace(error=result.reason), nothing)
            progress.advance(video, result)
    return report


def _stamps(parts: Sequence[PartFile], videos: Iterable[Video]) -> dict[str, tuple[Any, ...]]:
    """Returns the size, time, offset and error of the videos in parts, by path, from the last part with the video."""
    columns = ["path", "size", "modified", "offset", "error"]
    wanted = {as_text(video.path) for video in videos}
    stamps: dict[str, tuple[Any, ...]] = {}
    for part in sorted(parts, key=lambda part: part.created):
        with open_part(part.path) as file:
            found = file.read(columns=columns).group_by(columns).aggregate([]).to_pydict()
        stamps.update({path: tuple(stamp) for path, *stamp in zip(*found.values()) if path in wanted})
    return stamps


# --- Joining -------------------------------------------------------------------------------------------------


def join_parts(
    directory: str | os.PathLike[str], parts: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
) -> UpdateReport:
    """Creates an index from parts, or adds them to an existing one; see [`VideoIndex.from_embeddings`]."""
    files = list_parts([parts] if isinstance(parts, str | os.PathLike) else parts)
    _check_complete(files)
    path, first = Path(directory), files[0]
    for file in files[1:]:
        _check_same(first.about, first.path, file.about, file.path)
    if (path / FILE).exists():
        with closing(Database(path)) as database:
            about = {name: database.about(name) for name in (*COMMON, "model", "neutral")}
        _check_same(about, path, first.about, first.path)
    else:
        check_new(path)
        create_database(path, first.about)
    with locked(path), Updater(path, _no_model) as updater:
        return updater.add(_newest(files))


def _no_model() -> Embedder:
    raise AssertionError("joining parts does not need the model")


def _newest(files: Sequence[PartFile]) -> Iterator[tuple[Record, Windows]]:
    """Yields the videos of parts. For a video that is in several parts, yields the one that was written last."""
    seen: set[str] = set()
    newest = sorted(files, key=lambda file: (file.created, file.number), reverse=True)
    for file in progress_bar(newest, "joining", unit="part"):
        for record, windows in read_part(file):
            if record.video.path not in seen:
                seen.add(record.video.path)
                yield record, windows


def _check_complete(files: Sequence[PartFile]) -> None:
    """
    Checks, for each directory, that it has all shards, and that they have finished the same list of videos.

    Raises:
        ValueError: something is missing. The message names it.
    """
    for directory, group in groupby(files, key=lambda file: file.path.parent):
        parts = list(group)  # sorted by shard and number
        count = parts[0].shards
        if other := [part for part in parts if part.shards != count]:
            raise ValueError(
                f"{parts[0].path} and {other[0].path} are shards of different runs: join the parts of one run only."
            )
        shards = {shard: list(own) for shard, own in groupby(parts, key=lambda part: part.shard)}
        if missing := [shard for shard in range(count) if shard not in shards]:
            raise ValueError(
                f"{directory} lacks the parts of {_shares(missing, count)}: copy them there, or run "
                f"`region-learner embed` with --shard {missing[0]}/{count}."
            )
        for own in shards.values():
            for number, part in enumerate(own):
                if part.number != number:
                    lost = part.path.name.replace(f"{part.number:04}.parquet", f"{number:04}.parquet")
                    raise ValueError(
                        f"{directory} lacks {lost}: copy it there, or delete the other parts of its shard and run "
                        f"`region-learner embed` with --shard {part.shard}/{count} again."
                    )
        if unfinished := [shard for shard, own in shards.items() if own[-1].finished is None]:
            are = "is" if len(unfinished) == 1 else "are"
            raise ValueError(
                f"{directory}: {_shares(unfinished, count)} {are} not finished: run the same `region-learner embed` "
                f"command with --shard {unfinished[0]}/{count} to resume it."
            )
        if other := [own[-1] for own in shards.values() if own[-1].finished != parts[-1].finished]:
            raise ValueError(
                f"{directory}: shards {other[0].shard} and {parts[-1].shard} of {count} list different videos: "
                "run `region-learner embed` with the same VIDEOS for each shard."
            )


def _shares(shards: Sequence[int], count: int) -> str:
    names = [f"{shard}/{count}" for shard in shards[:10]] + ["..."] * (len(shards) > 10)
    return f"{'shard' if len(shards) == 1 else 'shards'} {', '.join(names)}"


def _tokens(about: dict[str, Any]) -> str:
    return "no tokens" if about["tokens"] is None else "{} tokens of length {} per window".format(*about["tokens"])


def _check_same(about: dict[str, Any], where: Any, other: dict[str, Any], other_where: Any) -> None:
    """
    Checks that two indexes or parts were made with the same model, preprocessing and windows.

    Raises:
        ValueError: they were not. The message names the first difference.
    """
    cure = "use the same model and options, or another directory."
    for name in COMMON:
        if about[name] != other[name]:
            if name in DIFFERENT:
                what = f"{where} ({about['model']}) has {DIFFERENT[name]} than {other_where} ({other['model']})"
            elif name == "tokens":
                what = f"{where} has {_tokens(about)}, but {other_where} has {_tokens(other)}"
            else:
                what = f"{where} has {name}={about[name]:g}, but {other_where} has {name}={other[name]:g}"
            raise ValueError(f"{what}: {cure}")
    ours, theirs = (np.frombuffer(bytes.fromhex(each["neutral"]), "<f4") for each in (about, other))
    # Results differ between machines in the last digits, and differ more on GPUs.
    if ours.shape != theirs.shape or not np.allclose(ours, theirs, atol=0.05):
        raise ValueError(f"{where} and {other_where} were made by different versions of region-learner: {cure}")

"""Reads the frames of many videos in worker processes. Each video is read once, from start to end."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import numpy as np
import torch

from ..corpora import CorpusError
from ..processes import MEMORY, check_memory, initialize_process
from ..video_decoding_region_learner import VideoDecodeError, iterate_parts
from .sources import Video
from .spans import Plan, plan_windows

PART = 128  # number of frames that are sent at once: 19 MB at 224 x 224
_SECONDS = 900  # time limit for one part


class Job(NamedTuple):
    """A video to read, unless the hash of its content is one of `known`."""

    video: Video
    known: frozenset[str] = frozenset()


class Options(NamedTuple):
    """Options for reading videos: a `RegionLearnerVideoProcessor`, and the windows in seconds."""

    processor: Any
    window: float
    stride: float


class Known(NamedTuple):
    """The content of a video is already known, so it is not read."""

    sha256: str


class Begin(NamedTuple):
    """The frames of a video follow. A second `Begin` for the same video invalidates everything sent before."""

    sha256: str
    plan: Plan


class Part(NamedTuple):
    """Some frames of a video in order, (n, 3, H, W), transformed but not normalized, and their indices."""

    indices: np.ndarray
    frames: np.ndarray


class End(NamedTuple):
    """All frames of a video were sent."""


class Failed(NamedTuple):
    """A video cannot be read."""

    reason: str


Event = Known | Begin | Part | End | Failed


def read_video(job: Job, options: Options) -> Iterator[Event]:
    """Reads one video. Yields `Known`; or `Begin`, its parts and `End`; or, at any point, `Failed`."""
    try:
        yield from _read(job, options)
    except (VideoDecodeError, CorpusError, OSError) as error:
        check_memory(error)
        yield Failed(" ".join(str(error).split()))


def _read(job: Job, options: Options) -> Iterator[Event]:
    video, processor = job.video, options.processor
    sha256 = video.sha256()
    if sha256 in job.known:
        yield Known(sha256)
        return
    plans: list[Plan] = []

    def choose(metadata: Any) -> np.ndarray:
        try:
            plans.append(plan_windows(metadata, processor, options.window, options.stride))
        except VideoDecodeError:
            raise
        except ValueError as error:  # such as too few frames, if the processor does not repeat frames
            raise VideoDecodeError(str(error)) from error
        return np.unique(plans[-1].frames)

    begun = None
    for metadata, indices, frames in iterate_parts(
        video.source(), choose, processor.scale_while_decoding({}), max_frames=PART
    ):
        if metadata is not begun:
            begun = metadata
            yield Begin(sha256, plans[-1])
        yield Part(np.asarray(indices), _transform(processor, frames))
    changed = os.stat(video.shard or video.path).st_mtime_ns != video.modified
    yield Failed(f"{video.path} changed while it was read") if changed else End()


def _transform(processor: Any, frames: np.ndarray) -> np.ndarray:
    """Returns the transformed frames (n, 3, H, W), uint8 unless the processor resizes in floating point."""
    options: dict[str, Any] = {"do_sample_frames": False, "rescale_factor": 1.0, "do_normalize": False}
    clips = processor([frames], input_data_format="channels_last", return_tensors="pt", **options)
    return clips["pixel_values_videos"][0].numpy()


# --- In processes --------------------------------------------------------------------------------------------


def read_videos(jobs: Iterable[Job], options: Options, workers: int = 0) -> Generator[tuple[Video, Event], None, None]:
    """
    Reads videos in worker processes. A video that makes its process crash or hang is `Failed`, like any other
    unreadable video. A process waits until its last event has been received, so that memory stays bounded.

    Args:
        jobs: the videos to read, which are consumed lazily.
        options: options for reading videos.
        workers: number of processes; 0 to read in this process.

    Yields:
        Videos with their events. The events of one video are in order; those of videos that are read at the same time
        are interleaved. Close the generator if you do not consume all of it, so that the processes end.

    Raises:
        RuntimeError: a process does not start.
    """
    if not workers:
        for job in jobs:
            for event in read_video(job, options):
                yield job.video, event
        return
    context: Any = multiprocessing.get_context("spawn")
    if "forkserver" in multiprocessing.get_all_start_methods():  # not Windows
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
    waiting = iter(jobs)
    first = deque(job for _, job in zip(range(workers), waiting))
    readers = [_Reader(context, options) for _ in first]
    try:
        while True:
            for reader in readers:
                following = first.popleft() if first and reader.job is None else None
                if reader.job is None and (following := following or next(waiting, None)) is not None:
                    reader.begin(following)
            busy = {reader.connection: reader for reader in readers if reader.job is not None}
            if not busy:
                return
            wait(list(busy), timeout=1)
            for reader in busy.values():
                video = reader.job.video if reader.job else None
                arrived = reader.event()
                if video is not None and arrived is not None:
                    yield video, arrived
    finally:
        for reader in readers:
            reader.end()


class _Reader:
    """A process that reads one video at a time."""

    def __init__(self, context: Any, options: Options):
        self.context, self.options = context, options
        self.job: Job | None = None
        self.since = 0.0
        self._start()

    def _start(self) -> None:
        self.connection, theirs = self.context.Pipe()
        arguments = (theirs, self.options, MEMORY, dict(os.environ))
        self.process = self.context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        try:
            self.connection.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(
                "Worker processes do not start: in a script, put the call under `if __name__ == '__main__':`."
            ) from error

    def begin(self, job: Job) -> None:
        self.job, self.since = job, time.monotonic()
        with suppress(ConnectionError):  # the process has crashed, which `event` reports
            self.connection.send(job)

    def event(self) -> Event | None:
        """Returns the next event of the video, or None if there is none yet."""
        event: Event | None = None
        try:
            if self.connection.poll():
                event = self.connection.recv()
                self.since = time.monotonic()
                if isinstance(event, MemoryError):  # libraries may not release the memory
                    event = Failed(f"reading it takes more than {MEMORY / 2**30:g} GiB of memory")
                    self._replace()
            elif time.monotonic() - self.since > _SECONDS:
                event = Failed(f"reading it takes more than {_SECONDS} seconds")
                self._replace()
        except (EOFError, OSError):  # the latter if it has sent a part of an event
            event = Failed("reading it crashes the process")
            self._replace()
        if isinstance(event, Known | End | Failed):
            self.job = None
        return event

    def _replace(self) -> None:
        self.end()
        self._start()

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, options: Options, memory: int, environment: dict[str, str]) -> None:
    """Reads the videos that are sent to this process, until its parent ends."""
    initialize_process(memory, environment)
    torch.set_num_threads(1)
    connection.send(None)
    while True:
        job = connection.recv()
        try:
            for event in read_video(job, options):
                connection.send(event)
        except MemoryError:
            connection.send(MemoryError())
            return

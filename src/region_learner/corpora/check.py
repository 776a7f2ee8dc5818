"""Finds the videos of a corpus that cannot be decoded."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from ..processes import MEMORY, check_memory, map_in_processes
from .base import CorpusError
from .rows import check_ids
from .webdataset import video_source

if TYPE_CHECKING:
    from datasets import Dataset


def check_corpus(
    rows: Dataset, workers: int | None = None, timeout: float = 1800, memory: int = MEMORY
) -> dict[str, Any]:
    """Finds the videos of a corpus that cannot be read, by decoding all frames: training may need any of them.

    Args:
        rows: a dataset of `load_corpus`, not streamed. A video with several rows is decoded once.
        workers: the number of processes; by default one per core.
        timeout: time limit per video, in seconds.
        memory: memory limit per video, in bytes, on Linux.

    Returns:
        A dictionary: `videos` is the number of videos, and `unreadable` a list of dicts with `video_id` and `reason`.

    Example:
        >>> check_corpus(load_corpus("folder", "data/mine"))
        {'videos': 120, 'unreadable': []}
    """
    check_ids(rows, "the corpus")
    first_rows: dict[str, int] = {}
    for index, video_id in enumerate(rows["video_id"]):
        first_rows.setdefault(video_id, index)
    checked = map_in_processes(
        _check_row,
        (rows[index] for index in first_rows.values()),
        workers or os.cpu_count() or 1,
        timeout,
        _reason,
        preload=(__name__, "region_learner.video_decoding_region_learner"),
        memory=memory,
    )
    unreadable = []
    with closing(checked):
        for entry in tqdm(checked, total=len(first_rows), unit="video", desc="Checking", disable=None):
            if entry["reason"] is not None:
                unreadable.append(entry)
    return {"videos": len(first_rows), "unreadable": unreadable}


def _reason(row: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"video_id": row["video_id"], "reason": reason}


def _check_row(row: dict[str, Any]) -> dict[str, Any]:
    from ..video_decoding_region_learner import Scale, VideoDecodeError, iterate_frames

    small = Scale(lambda height, width: (min(height, 32), min(width, 32)))  # the frames are not used
    try:
        for _ in iterate_frames(video_source(row["video"]), small):
            pass
    except (CorpusError, VideoDecodeError, OSError) as error:
        check_memory(error)
        return _reason(row, str(error))
    except MemoryError:
        raise
    except Exception as error:  # such as a row without a video: the other rows are still checked
        return _reason(row, f"{type(error).__name__}: {error}")
    return _reason(row, None)

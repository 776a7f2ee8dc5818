"""DiDeMo (Hendricks et al., ICCV 2017): unedited personal videos, each with descriptions of several moments."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .base import CorpusError, PathLike
from .benchmarks import build_benchmark, open_benchmark
from .readers import check_count, find_annotation, look_for, read_json, read_list
from .videos import VideoFiles

if TYPE_CHECKING:
    from datasets import Dataset


# Lengths of the published lists; that of collaborative-experts leaves out three videos of training.
_SIZES = {"train": (8395, 8392), "val": (1065,), "test": (1004,)}
_ANNOTATION_DIRS = ("data", "didemo_data", "DiDeMo", "LocalizingMoments/data")
_VIDEO_DIRS = (
    "videos/all",
    "videos",
    "video",
    "didemo_videos",
    "DiDeMo_Videos",
    "videos/train",
    "videos/val",
    "videos/test",
)


def load_didemo(
    data_dir: PathLike | None,
    split: str,
    *,
    video_dir: PathLike | None = None,
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset:
    """DiDeMo: {train,val,test}_data.json and _list.txt; the descriptions of a video joined into one paragraph.

    The paragraph protocol (Zhang et al., ECCV 2018; Liu et al., BMVC 2019): each video has one caption, its
    descriptions joined by spaces in the order of the file. Lists of 8,395, 1,065 and 1,004 videos are published, and
    another one of 8,392 for training.

    Args:
        data_dir: directory with the annotation files, directly or in data/, annotations/ or the like. Without a list
            file, the videos of the JSON file are taken.
        split: "train", "val" or "test".
        video_dir: directory of the videos, absolute or below `data_dir`. By default videos/, video/ ... are searched.
            A video "x.mov" may be x.mov, x.mov.mp4 or x.mp4.
        max_missing, missing_list: see `report_missing`.
    """
    directory, split = open_benchmark("didemo", data_dir, split, list(_SIZES))
    source = find_annotation(directory, [f"{split}_data.json"], f"descriptions of DiDeMo {split}", _ANNOTATION_DIRS)
    entries = read_json(source)
    if not isinstance(entries, list):
        raise CorpusError(f"{source}: expected a list of moments")
    descriptions: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        where = f"{source}, entry {number}"
        name = entry.get("video") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name.strip() or not isinstance(entry.get("description"), str):
            raise CorpusError(f"{where}: expected a video and a description")
        descriptions.setdefault(name.strip(), []).append(entry["description"].strip())
        first.setdefault(name.strip(), where)
    path = look_for(directory, [f"{split}_list.txt"], _ANNOTATION_DIRS)
    chosen = {line: where for where, line in read_list(path)} if path else first
    check_count(len(chosen), _SIZES[split], f"videos of DiDeMo {split}", path or source)
    videos = VideoFiles(directory, video_dir, _VIDEO_DIRS)
    rows = []
    for name, where in chosen.items():
        # Names keep the extension of the uploaded file, which may be empty; ids have no dot in them.
        stem = os.path.splitext(name)[0].rstrip(".")
        paragraph = " ".join(text for text in descriptions.get(name, []) if text)
        rows.append({"video": videos.find(name, where, stem), "video_id": stem, "captions": [paragraph]})
    return build_benchmark(rows, videos, source, split, max_missing, missing_list)

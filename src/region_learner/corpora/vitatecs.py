"""VITATECS (Li et al., arXiv 2311.17404): captions of MSR-VTT and VATEX, each with a temporally wrong counterpart."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import CorpusError, PathLike, Row
from .benchmarks import build_benchmark, choice_row, open_benchmark
from .msrvtt import VIDEO_DIRS as MSRVTT_VIDEO_DIRS
from .readers import check_count, find_annotation, read_entries, text_field
from .videos import VideoFiles

if TYPE_CHECKING:
    from datasets import Dataset


ASPECTS = ("Direction", "Intensity", "Sequence", "Localization", "Compositionality", "Type")
SIZE = 13_838
_SOURCES = ("MSRVTT", "VATEX")
_ANNOTATION_DIRS = ("data", "VITATECS", "VITATECS/data")
_VIDEO_DIRS = (
    "videos",
    "VITATECS/videos",
    *MSRVTT_VIDEO_DIRS,
    *(f"MSRVTT/{name}" for name in MSRVTT_VIDEO_DIRS),
    "MSRVTT",
    "VATEX/videos",
    "VATEX",
)


def load_vitatecs(
    data_dir: PathLike | None,
    split: str,
    *,
    video_dir: PathLike | None = None,
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset:
    """VITATECS: {Direction,Intensity,...}.jsonl of video_name, caption, counterfactual; videos of MSR-VTT and VATEX.

    13,838 questions with two options: a caption, and the same caption changed by a language model so that it is wrong
    about one aspect of time. The column `aspect` names this aspect: "direction", "intensity", "sequence",
    "localization", "compositionality" or "type". The position of the right option is drawn by a hash of the pair.
    There is only a test split.

    Args:
        data_dir: directory with the six files, directly or in data/, annotations/ or the like.
        split: "test".
        video_dir: directory of the videos, absolute or below `data_dir`, with MSRVTT/videoN.mp4 and
            VATEX/ID_START_END.mp4, or all of them in one directory. By default videos/ is searched, as the
            authors lay it out, and the places where `msrvtt` looks, below `data_dir` and below its MSRVTT/ and VATEX/.
        max_missing, missing_list: see `report_missing`.
    """
    directory, split = open_benchmark("vitatecs", data_dir, split, ["test"])
    videos = VideoFiles(directory, video_dir, _VIDEO_DIRS)
    paths = [
        find_annotation(directory, [f"{aspect}.jsonl"], f"pairs of VITATECS for {aspect}", _ANNOTATION_DIRS)
        for aspect in ASPECTS
    ]
    rows = [
        _row(entry, aspect, videos, where)
        for aspect, path in zip(ASPECTS, paths)
        for where, entry in read_entries(path)
    ]
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    check_count(len(rows), SIZE, "pairs of VITATECS", folder)
    return build_benchmark(rows, videos, folder, split, max_missing, missing_list)


def _row(entry: dict[str, Any], aspect: str, videos: VideoFiles, where: str) -> Row:
    source, name = text_field(entry, "src_dataset", where), text_field(entry, "video_name", where)
    if source not in _SOURCES:
        raise CorpusError(f"{where}: 'src_dataset' must be {' or '.join(_SOURCES)}, not {source!r}")
    if entry.get("aspect", aspect) != aspect:
        raise CorpusError(f"{where}: 'aspect' is {entry['aspect']!r} in the file of {aspect}")
    options = [text_field(entry, "caption", where), text_field(entry, "counterfactual", where)]
    answer = hashlib.sha256("\n".join([source, name, aspect, *options]).encode()).digest()[0] % 2
    options = options[::-1] if answer else options
    video = videos.find(f"{source}/{name}", where, name)
    row = choice_row(video, os.path.splitext(name)[0], options, answer, where)
    return {**row, "aspect": aspect.lower()}

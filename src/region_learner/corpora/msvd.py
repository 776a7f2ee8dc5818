"""MSVD (Chen and Dolan, ACL 2011): 1,970 short clips from the web with about 40 captions each; retrieval and QA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .base import CorpusError, PathLike
from .benchmarks import build_benchmark, captioned_rows, open_benchmark, question_rows
from .readers import check_count, check_strings, find_annotation, look_for, read_csv, read_json, read_list
from .videos import VideoFiles

if TYPE_CHECKING:
    from datasets import Dataset


_SIZES = {"train": 1200, "val": 100, "test": 670}
_QUESTIONS = {"train": 30_933, "val": 6_415, "test": 13_157}
_CAPTIONS = ("captions_msvd.json", "AllVideoDescriptions.txt", "MSR Video Description Corpus.csv")
_ANNOTATION_DIRS = ("msvd_data", "MSVD", "MSVD-QA")
_VIDEO_DIRS = ("YouTubeClips", "MSVD_Videos", "videos/all", "videos", "video", "MSVD/YouTubeClips")


def load_msvd(
    data_dir: PathLike | None,
    split: str,
    *,
    video_dir: PathLike | None = None,
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset:
    """MSVD: captions_msvd.json, AllVideoDescriptions.txt or the corpus's CSV; {train,val,test}_list.txt; .avi files.

    The split 1,200/100/670 is that of Venugopalan et al. (ICCV 2015), which retrieval keeps. As in
    collaborative-experts, all captions of a video count, about 40.

    Args:
        data_dir: directory with the annotation files, directly or in msvd_data/, annotations/ or the like. From the
            CSV of the first release, only the English descriptions are taken.
        split: "train", "val" or "test".
        video_dir: directory of the videos, absolute or below `data_dir`. By default YouTubeClips, videos ... are
            searched, for files ID.avi or re-encoded ones.
        max_missing, missing_list: see `report_missing`.
    """
    directory, split = open_benchmark("msvd", data_dir, split, list(_SIZES))
    path = find_annotation(directory, [f"{split}_list.txt"], f"list of MSVD {split}", _ANNOTATION_DIRS)
    chosen = {line: where for where, line in read_list(path)}
    check_count(len(chosen), _SIZES[split], f"videos of MSVD {split}", path)
    source = find_annotation(directory, _CAPTIONS, "captions of MSVD", _ANNOTATION_DIRS)
    captions = _read_captions(source)
    videos = VideoFiles(directory, video_dir, _VIDEO_DIRS, ".avi")
    rows = captioned_rows(chosen, captions, videos)
    return build_benchmark(rows, videos, source, split, max_missing, missing_list)


def load_msvd_qa(
    data_dir: PathLike | None,
    split: str,
    *,
    video_dir: PathLike | None = None,
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset:
    """MSVD-QA: {train,val,test}_qa.json, youtube_mapping.txt of `YOUTUBE_ID vidN`; one row per question; .avi files.

    Made from MSVD by Xu et al. (ACM Multimedia 2017): 30,933, 6,415 and 13,157 questions. `captions` is empty.
    A classifier usually chooses among the 1,000 most frequent training answers; see `answer_vocabulary`.

    Args:
        data_dir: directory with the files, directly or in MSVD-QA/ or annotations/. Without the mapping, videos are
            expected as vidN.avi.
        split: "train", "val" or "test".
        video_dir, max_missing, missing_list: see `load_msvd`.
    """
    directory, split = open_benchmark("msvd_qa", data_dir, split, list(_QUESTIONS))
    names = (f"{split}_qa.json", f"msvd_qa_{split}.jsonl", f"{split}.jsonl")
    path = find_annotation(directory, names, f"questions of MSVD-QA for split {split!r}", _ANNOTATION_DIRS)
    mapping = look_for(directory, ["youtube_mapping.txt"], _ANNOTATION_DIRS)
    videos = VideoFiles(directory, video_dir, _VIDEO_DIRS, ".avi")
    rows = question_rows(path, _read_mapping(mapping) if mapping else None, "vid", videos)
    check_count(len(rows), _QUESTIONS[split], f"questions of MSVD-QA {split}", path)
    return build_benchmark(rows, videos, path, split, max_missing, missing_list, captioned=False)


def _read_captions(path: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    if path.suffix == ".json":
        data = read_json(path)
        if not isinstance(data, dict):
            raise CorpusError(f"{path}: expected an object of lists of captions by video")
        return {video_id: check_strings(texts, f"{path}, {video_id!r}") for video_id, texts in data.items()}
    if path.suffix == ".csv":
        columns = ("VideoID", "Start", "End", "Language", "Description")
        for _, row in read_csv(path, columns):
            if row["Language"] == "English":
                video_id = f"{row['VideoID']}_{row['Start']}_{row['End']}"
                captions.setdefault(video_id, []).append(row["Description"])
        return captions
    for where, line in read_list(path):
        if line.startswith("#"):
            continue
        video_id, _, caption = line.partition(" ")
        if not caption:
            raise CorpusError(f"{where}: expected an id of a video and a description")
        captions.setdefault(video_id, []).append(caption)
    return captions


def _read_mapping(path: Path) -> dict[int, str]:
    names = {}
    for where, line in read_list(path):
        video_id, _, label = line.partition(" ")
        digits = label.strip().removeprefix("vid")
        if not (digits.isascii() and digits.isdigit()):
            raise CorpusError(f"{where}: expected `YOUTUBE_ID vidN`")
        names[int(digits)] = video_id
    return names

"""MSR-VTT (Xu et al., CVPR 2016): 10,000 clips from the web with 20 captions each; retrieval, questions, choices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from ..configuration_region_learner import did_you_mean
from .base import CorpusError, PathLike, Row
from .benchmarks import build_benchmark, captioned_rows, choice_row, open_benchmark, question_rows
from .readers import (
    check_count,
    check_strings,
    find_annotation,
    look_for,
    read_csv,
    read_entries,
    read_json,
    read_list,
    text_field,
)
from .videos import VideoFiles

if TYPE_CHECKING:
    from datasets import Dataset


Protocol = Literal["1k-A", "jsfusion", "1k-B", "miech", "full"]
PROTOCOLS = {"1k-a": "1k-A", "jsfusion": "1k-A", "1k-b": "1k-B", "miech": "1k-B", "full": "full"}

# Files of each split, of which the first that exists is read, and how many videos it names.
_LISTS: dict[str, dict[str, tuple[tuple[str, ...], int]]] = {
    "1k-A": {
        "train": (("MSRVTT_train.9k.csv", "train_list_jsfusion.txt"), 9000),
        "test": (("MSRVTT_JSFUSION_test.csv",), 1000),
    },
    "1k-B": {"train": (("train_list_miech.txt",), 6656), "test": (("test_list_miech.txt",), 1000)},
    "full": {
        "train": (("train_list_full.txt",), 6513),
        "val": (("val_list_full.txt",), 497),
        "test": (("test_list_full.txt",), 2990),
    },
}
_CAPTIONS = ("MSRVTT_data.json", "MSR_VTT.json")
_OFFICIAL_CAPTIONS = ("train_val_videodatainfo.json", "test_videodatainfo.json")
_OFFICIAL_SPLITS = {"train": "train", "validate": "val", "test": "test"}
_ANNOTATION_DIRS = (
    "msrvtt_data",
    "MSRVTT",
    "MSRVTT/annotation",
    "MSRVTT/high-quality/structured-symlinks",
    "MSRVTT-QA",
)

VIDEO_DIRS = (
    "videos/all", "videos", "TrainValVideo", "TestVideo", "MSRVTT_Videos", "train-video", "test-video", "video", "all",
    "MSRVTT/videos/all", "MSRVTT/videos", "videos/train", "videos/val", "videos/test",
)  # fmt: skip


def load_msrvtt(
    data_dir: PathLike | None,
    split: str,
    *,
    protocol: Protocol = "1k-A",
    video_dir: PathLike | None = None,
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset:
    """MSR-VTT: MSRVTT_data.json or MSR_VTT.json, lists of the splits, videos as videoN.mp4.

    Protocols, with all 20 captions of a video unless said otherwise:

    - "1k-A" or "jsfusion" (Yu et al., ECCV 2018; training videos of Gabeur et al., ECCV 2020): 9,000 videos for
      training, and 1,000 for testing with the one caption of `MSRVTT_JSFUSION_test.csv`.
    - "1k-B" or "miech" (Miech et al., 2018): 6,656 and 1,000. Tests keep all captions, as in collaborative-experts.
    - "full" (Xu et al., CVPR 2016): 6,513 for training, 497 for validation, 2,990 for testing.

    Args:
        data_dir: directory with the annotation files, directly or in a directory such as annotations/.
        split: "train" or "test"; "full" also has "val".
        protocol: which videos and captions belong to which split.
        video_dir: directory of the videos, absolute or below `data_dir`. By default videos/all, videos,
            TrainValVideo, TestVideo ... are searched.
        max_missing, missing_list: see `report_missing`.
    """
    name = PROTOCOLS.get(str(protocol).lower())
    if name is None:
        names = get_args(Protocol)
        raise CorpusError(
            f"unknown protocol {protocol!r} (protocols: {', '.join(names)}){did_you_mean(str(protocol), names)}"
        )
    directory, split = open_benchmark(f"msrvtt (protocol {name})", data_dir, split, list(_LISTS[name]))
    videos = VideoFiles(directory, video_dir, VIDEO_DIRS)
    if (name, split) == ("1k-A", "test"):
        rows, source = _test_pairs(directory, videos)
    else:
        rows, source = _captioned(directory, name, split, videos)
    return build_benchmark(rows, videos, source, split, max_missing, missing_list)


def load_msrvtt_qa(
    data_dir: PathLike | None,
    split: str,
    *,
    video_dir: PathLike | None = None,
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset:
    """MSRVTT-QA: {train,val,test}_qa.json of question, answer, video_id; one row per question, videos as videoN.mp4.

    Made from MSR-VTT by Xu et al. (ACM Multimedia 2017): 158,581, 12,278 and 72,821 questions. `captions` is empty.
    A classifier usually chooses among the 1,500 most frequent training answers; see `answer_vocabulary`.

    Args:
        data_dir: directory with the JSON files (lists, or one object per line), directly or in MSRVTT-QA/ or
            annotations/.
        split: "train", "val" or "test".
        video_dir, max_missing, missing_list: see `load_msrvtt`.
    """
    sizes = {"train": 158_581, "val": 12_278, "test": 72_821}
    directory, split = open_benchmark("msrvtt_qa", data_dir, split, list(sizes))
    names = (f"{split}_qa.json", f"msrvtt_qa_{split}.jsonl", f"{split}.jsonl")
    path = find_annotation(directory, names, f"questions of MSRVTT-QA for split {split!r}", _ANNOTATION_DIRS)
    videos = VideoFiles(directory, video_dir, VIDEO_DIRS)
    rows = question_rows(path, None, "video", videos)
    check_count(len(rows), sizes[split], f"questions of MSRVTT-QA {split}", path)
    return build_benchmark(rows, videos, path, split, max_missing, missing_list, captioned=False)


def load_msrvtt_mc(
    data_dir: PathLike | None,
    split: str,
    *,
    video_dir: PathLike | None = None,
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset:
    """MSR-VTT multiple choice: mc_test.jsonl of clip_name, five options and answer (0-4); videos as videoN.mp4.

    2,990 questions over the test videos (Yu et al., ECCV 2018): which of five captions belongs to the video? There is
    only a test split; models are trained for retrieval, on `msrvtt` with protocol "full".

    Args:
        data_dir: directory with the file, directly or in annotations/ or the like.
        split: "test".
        video_dir, max_missing, missing_list: see `load_msrvtt`.
    """
    directory, split = open_benchmark("msrvtt_mc", data_dir, split, ["test"])
    names = ("mc_test.jsonl", "msrvtt_mc_test.jsonl", "test.jsonl")
    path = find_annotation(directory, names, "multiple-choice questions of MSR-VTT", _ANNOTATION_DIRS)
    videos = VideoFiles(directory, video_dir, VIDEO_DIRS)
    rows = []
    for where, entry in read_entries(path):
        clip = text_field(entry, "clip_name", where)
        options = check_strings(entry.get("options"), f"{where}, 'options'")
        rows.append(choice_row(videos.find(clip, where), clip, options, entry.get("answer"), where))
    check_count(len(rows), 2990, "questions of MSR-VTT multiple choice", path)
    return build_benchmark(rows, videos, path, split, max_missing, missing_list)


def _test_pairs(directory: Path, videos: VideoFiles) -> tuple[list[Row], Path]:
    """Reads the test pairs of 1k-A. Their captions are part of the protocol: others would give other numbers."""
    names, size = _LISTS["1k-A"]["test"]
    path = find_annotation(directory, names, "test pairs of protocol 1k-A", _ANNOTATION_DIRS)
    captions: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for where, row in read_csv(path, ("video_id", "sentence")):
        captions.setdefault(row["video_id"], []).append(row["sentence"])
        first.setdefault(row["video_id"], where)
    check_count(len(captions), size, "videos of MSR-VTT 1k-A test", path)
    return captioned_rows(first, captions, videos), path


def _captioned(directory: Path, protocol: str, split: str, videos: VideoFiles) -> tuple[list[Row], Path]:
    captions, splits, source = _read_captions(directory)
    names, size = _LISTS[protocol][split]
    path = look_for(directory, names, _ANNOTATION_DIRS)
    if path is None and protocol == "full" and split in splits.values():
        path, chosen = source, {video_id: str(source) for video_id, own in splits.items() if own == split}
    else:
        path = find_annotation(directory, names, f"list of MSR-VTT {protocol} {split}", _ANNOTATION_DIRS)
        if path.suffix == ".csv":
            chosen = {row["video_id"]: where for where, row in read_csv(path, ("video_id",))}
        else:
            chosen = {line: where for where, line in read_list(path)}
    check_count(len(chosen), size, f"videos of MSR-VTT {protocol} {split}", path)
    return captioned_rows(chosen, captions, videos), source


def _read_captions(directory: Path) -> tuple[dict[str, list[str]], dict[str, str], Path]:
    """Reads the captions of each video, its official split if the file has it, and the path of the file."""
    path = look_for(directory, _CAPTIONS, _ANNOTATION_DIRS)
    paths = [path] if path else []
    if not paths:  # the first release, in two files
        found = [look_for(directory, [name], _ANNOTATION_DIRS) for name in _OFFICIAL_CAPTIONS]
        paths = [path for path in found if path]
    if not paths:
        paths = [
            find_annotation(directory, (*_CAPTIONS, *_OFFICIAL_CAPTIONS), "captions of MSR-VTT", _ANNOTATION_DIRS)
        ]
    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for path in paths:
        data = read_json(path)
        entries = data.get("sentences", data.get("annotations")) if isinstance(data, dict) else None
        if not isinstance(entries, list):
            raise CorpusError(f"{path} has neither 'sentences' nor 'annotations': it is not a caption file of MSR-VTT")
        for number, entry in enumerate(entries, start=1):
            video_id = entry.get("video_id", entry.get("image_id")) if isinstance(entry, dict) else None
            if not isinstance(video_id, str) or not isinstance(entry.get("caption"), str):
                raise CorpusError(f"{path}, caption {number}: expected a video_id or image_id, and a caption")
            captions.setdefault(video_id, []).append(entry["caption"])
        for entry in data.get("videos", []):
            if isinstance(entry, dict) and entry.get("split") in _OFFICIAL_SPLITS:
                splits[str(entry.get("video_id"))] = _OFFICIAL_SPLITS[entry["split"]]
    return captions, splits, paths[0]

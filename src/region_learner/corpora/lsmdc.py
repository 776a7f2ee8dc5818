"""LSMDC (Rohrbach et al., IJCV 2017): film clips, each with a sentence of its audio description."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import CorpusError, PathLike, Row
from .benchmarks import build_benchmark, choice_row, open_benchmark
from .readers import check_count, find_annotation, read_tsv
from .videos import VideoFiles

if TYPE_CHECKING:
    from datasets import Dataset


# Files of the 2016 release, and their lengths according to its readme.
_RETRIEVAL: dict[str, tuple[tuple[str, ...], int]] = {
    "train": (("LSMDC16_annos_training.csv",), 101_079),
    "val": (("LSMDC16_annos_val.csv",), 7_408),
    "test": (("LSMDC16_challenge_1000_publictect.csv", "LSMDC16_challenge_1000_publictest.csv"), 1_000),
}
_CHOICE = {
    "train": ("LSMDC16_multiple_choice_train.csv", 101_079),
    "val": ("LSMDC16_multiple_choice_valid.csv", 7_408),
    "test": ("LSMDC16_multiple_choice_test_randomized.csv", 10_053),
}
_ANNOTATION_DIRS = ("task1", "task2", "LSMDC", "structured-symlinks")
_VIDEO_DIRS = ("avi", "videos", "video", "LSMDC_Videos", "LSMDC/avi", "clips")

# Fields before the sentences: the clip, its start and end as aligned by hand, and its start and end as cut.
_FIELDS = 5


def load_lsmdc(
    data_dir: PathLike | None,
    split: str,
    *,
    video_dir: PathLike | None = None,
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset:
    """LSMDC: LSMDC16_annos_training.csv and the like, tab-separated without a header; videos as MOVIE/CLIP.avi.

    The 2016 challenge: 101,079 clips for training, 7,408 for validation, and for testing the 1,000 public pairs of
    `LSMDC16_challenge_1000_publictect.csv` (spelt like this). The sentences of a clip become one row.

    Args:
        data_dir: directory with the annotation files, directly or in task1/, annotations/ or the like.
        split: "train", "val" or "test".
        video_dir: directory of the films, absolute or below `data_dir`. By default avi/, videos/ ... are searched.
            Clips may also all be in one directory.
        max_missing, missing_list: see `report_missing`.
    """
    directory, split = open_benchmark("lsmdc", data_dir, split, list(_RETRIEVAL))
    names, size = _RETRIEVAL[split]
    path = find_annotation(directory, names, f"annotations of LSMDC {split}", _ANNOTATION_DIRS)
    videos = VideoFiles(directory, video_dir, _VIDEO_DIRS, ".avi")
    rows: dict[str, Row] = {}
    for where, (clip, *_, sentence) in read_tsv(path, [_FIELDS + 1]):
        if clip not in rows:
            rows[clip] = {"video": _find(videos, clip, where), "video_id": clip, "captions": []}
        rows[clip]["captions"].append(sentence)
    check_count(len(rows), size, f"clips of LSMDC {split}", path)
    return build_benchmark(list(rows.values()), videos, path, split, max_missing, missing_list)


def load_lsmdc_mc(
    data_dir: PathLike | None,
    split: str,
    *,
    video_dir: PathLike | None = None,
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset:
    """LSMDC multiple choice: LSMDC16_multiple_choice_test_randomized.csv, tab-separated; videos as MOVIE/CLIP.avi.

    The movie multiple-choice test of the 2016 challenge: 10,053 clips with five sentences each, one of which is right.
    In training and validation, the right one always comes first.

    Args:
        data_dir: directory with the annotation files, directly or in task2/, annotations/ or the like.
        split: "train", "val" or "test".
        video_dir, max_missing, missing_list: see `load_lsmdc`.
    """
    directory, split = open_benchmark("lsmdc_mc", data_dir, split, list(_CHOICE))
    name, size = _CHOICE[split]
    path = find_annotation(directory, [name], f"multiple-choice questions of LSMDC {split}", _ANNOTATION_DIRS)
    videos = VideoFiles(directory, video_dir, _VIDEO_DIRS, ".avi")
    rows = []
    for where, fields in read_tsv(path, [_FIELDS + 6] if split == "test" else [_FIELDS + 5]):
        clip, options, answer = fields[0], fields[_FIELDS : _FIELDS + 5], 0
        if split == "test":
            if fields[-1] not in ("1", "2", "3", "4", "5"):
                raise CorpusError(f"{where}: the last field must be the number of the right sentence, 1 to 5")
            answer = int(fields[-1]) - 1
        rows.append(choice_row(_find(videos, clip, where), clip, options, answer, where))
    check_count(len(rows), size, f"questions of LSMDC multiple choice {split}", path)
    return build_benchmark(rows, videos, path, split, max_missing, missing_list)


def _find(videos: VideoFiles, clip: str, where: str) -> str:
    """Finds a clip. "0001_American_Beauty_00.00.51.926-00.00.54.129" is in the directory "0001_American_Beauty"."""
    film, _, times = clip.rpartition("_")
    if not film or not times:
        raise CorpusError(f"{where}: {clip!r} is not the name of a clip, MOVIE_START-END")
    return videos.find(f"{film}/{clip}", where, clip)

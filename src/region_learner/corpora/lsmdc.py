"""LSMDC (Rohrbach et al., IJCV 2017): clips of films with a sentence of their audio description each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .common import (
    PathLike,
    VideoFiles,
    check_count,
    choice_features,
    choice_row,
    find_annotation,
    finish,
    open_benchmark,
    read_tsv,
)
from .folder import CorpusError, Row

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


# Of the 2016 release; sizes as its readme counts them.
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

# Before the sentences: the clip, and when it starts and ends, as aligned by hand and as cut.
_TIMES = 5


def load_lsmdc(
    data_dir: PathLike | None,
    split: str,
    streaming: bool,
    *,
    video_dir: PathLike | None = None,
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset | IterableDataset:
    """LSMDC: LSMDC16_annos_training.csv and the like, tab-separated without a header; videos as MOVIE/CLIP.avi.

    The 2016 challenge: 101,079 clips for training, 7,408 for validation, and for testing the 1,000 public pairs of
    `LSMDC16_challenge_1000_publictect.csv` (so spelt). Sentences of one clip are kept together.

    Args:
        data_dir: holds the annotation files, or has them in task1/, annotations/ or the like.
        split: "train", "val" or "test".
        video_dir: where the directories of the films lie, absolute or below `data_dir`; else avi/, videos/ ... are
            looked through. Clips may also lie side by side, without directories of films.
        max_missing, missing_list: of videos; see `report_missing`.

    Raises:
        CorpusError: a file or video is missing, or a row has not 6 fields.
    """
    directory, split = open_benchmark("lsmdc", data_dir, split, list(_RETRIEVAL))
    names, size = _RETRIEVAL[split]
    path = find_annotation(directory, names, f"annotations of LSMDC {split}", _ANNOTATION_DIRS)
    videos = VideoFiles(directory, video_dir, _VIDEO_DIRS, ".avi")
    rows: dict[str, Row] = {}
    for where, (clip, *_, sentence) in read_tsv(path, [_TIMES + 1]):
        if clip not in rows:
            rows[clip] = {"video": _find(videos, clip, where), "video_id": clip, "captions": []}
        rows[clip]["captions"].append(sentence)
    check_count(len(rows), size, f"clips of LSMDC {split}", path)
    return finish(list(rows.values()), videos, path, split, streaming, max_missing, missing_list)


def load_lsmdc_mc(
    data_dir: PathLike | None,
    split: str,
    streaming: bool,
    *,
    video_dir: PathLike | None = None,
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset | IterableDataset:
    """LSMDC multiple choice: LSMDC16_multiple_choice_test_randomized.csv, tab-separated; videos as MOVIE/CLIP.avi.

    The movie multiple-choice test of the 2016 challenge: 10,053 clips with five sentences each, of which one is right.
    For training and validation the right one is always the first.

    Args:
        data_dir: holds the annotation files, or has them in task2/, annotations/ or the like.
        split: "train", "val" or "test".
        video_dir, max_missing, missing_list: as of `load_lsmdc`.

    Raises:
        CorpusError: a file or video is missing, or a row has not 11 fields (10 before the test) or no right answer.
    """
    directory, split = open_benchmark("lsmdc_mc", data_dir, split, list(_CHOICE))
    name, size = _CHOICE[split]
    path = find_annotation(directory, [name], f"multiple-choice questions of LSMDC {split}", _ANNOTATION_DIRS)
    videos = VideoFiles(directory, video_dir, _VIDEO_DIRS, ".avi")
    rows = []
    for where, fields in read_tsv(path, [_TIMES + 6] if split == "test" else [_TIMES + 5]):
        clip, options, answer = fields[0], fields[_TIMES : _TIMES + 5], 0
        if split == "test":
            if fields[-1] not in ("1", "2", "3", "4", "5"):
                raise CorpusError(f"{where}: the last field must be the number of the right sentence, 1 to 5")
            answer = int(fields[-1]) - 1
        rows.append(choice_row(_find(videos, clip, where), clip, options, answer, where))
    check_count(len(rows), size, f"questions of LSMDC multiple choice {split}", path)
    return finish(rows, videos, path, split, streaming, max_missing, missing_list, features=choice_features())


def _find(videos: VideoFiles, clip: str, where: str) -> str:
    """A clip "0001_American_Beauty_00.00.51.926-00.00.54.129" lies in the directory "0001_American_Beauty"."""
    film, _, times = clip.rpartition("_")
    if not film or not times:
        raise CorpusError(f"{where}: {clip!r} is no name of a clip, MOVIE_START-END")
    return videos.find_first([f"{film}/{clip}", clip], where)

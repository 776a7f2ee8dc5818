"""Action recognition: HMDB51 (Kuehne et al., ICCV 2011) and UCF101 (Soomro et al., 2012), in three folds each."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .common import (
    ANNOTATION_DIRS,
    PathLike,
    VideoFiles,
    check_count,
    find_annotation,
    finish,
    look_for,
    open_benchmark,
    read_csv,
    read_list,
)
from .folder import CorpusError, Row

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


_HMDB51_SIZES = {"train": 3570, "test": 1530}
_UCF101_SIZES = {"train": (9537, 9586, 9624), "test": (3783, 3734, 3696)}
_HMDB51_LISTS = ("", "testTrainMulti_7030_splits", "test_train_splits", "splits")
_HMDB51_USES = {"1": "train", "2": "test"}  # 0: neither


def load_hmdb51(
    data_dir: PathLike | None,
    split: str,
    streaming: bool,
    *,
    fold: Literal[1, 2, 3] = 1,
    video_dir: PathLike | None = None,
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset | IterableDataset:
    """HMDB51: CLASS_test_splitN.txt of the release, or hmdb51.csv; videos as CLASS/NAME.avi; column `label`.

    The release's three folds: 70 videos of each of the 51 classes for training and 30 for testing, 3,570 and 1,530.
    A class "brush_hair" is called "brush hair", which is also the one caption of its videos.

    Args:
        data_dir: holds the lists in testTrainMulti_7030_splits/, or hmdb51.csv (video_id, label, split1 ... split3),
            itself or in a directory for annotations.
        split: "train" or "test".
        fold: 1, 2 or 3. Results are usually the mean over the three.
        video_dir: where the directories of the classes lie, absolute or below `data_dir`; else hmdb51_org/, videos/
            ... are looked through. Videos may also lie side by side.
        max_missing, missing_list: of videos; see `report_missing`.

    Raises:
        CorpusError: a file, column or video is missing, or an entry is damaged.
    """
    directory, split = open_benchmark("hmdb51", data_dir, split, list(_HMDB51_SIZES))
    _check_fold(fold)
    table = look_for(directory, ["hmdb51.csv"])
    lists = None if table else _hmdb51_lists(directory, fold)
    if table is None and lists is None:
        raise CorpusError(
            f"no lists of HMDB51 in {directory}: looked for testTrainMulti_7030_splits/CLASS_test_split{fold}.txt and "
            "for hmdb51.csv; unpack the lists there or check data_dir="
        )
    entries, source = _hmdb51_entries(table, fold) if table else _hmdb51_listed(lists or [])
    videos = VideoFiles(directory, video_dir, ("hmdb51_org", "hmdb51", "videos/all", "videos", "video"), ".avi")
    classes = sorted({name for name, _, _, _ in entries}, key=str.lower)
    chosen = [(name, video, where) for name, video, use, where in entries if use == split]
    check_count(len(classes), 51, "classes of HMDB51", source)
    check_count(len(chosen), _HMDB51_SIZES[split], f"videos of HMDB51 fold {fold} {split}", source)
    return _labelled(chosen, classes, videos, source, split, streaming, max_missing, missing_list)


def load_ucf101(
    data_dir: PathLike | None,
    split: str,
    streaming: bool,
    *,
    fold: Literal[1, 2, 3] = 1,
    video_dir: PathLike | None = None,
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset | IterableDataset:
    """UCF101: trainlist0N.txt and testlist0N.txt; videos as CLASS/v_CLASS_gNN_cNN.avi; column `label`.

    The release's three folds of its 101 classes: 9,537, 9,586 and 9,624 videos for training, 3,783, 3,734 and 3,696
    for testing. A class "ApplyEyeMakeup" is called "apply eye makeup", which is also the one caption of its videos.

    Args:
        data_dir: holds the lists, or has them in ucfTrainTestlist/ or a directory for annotations. Both lists of the
            fold are needed: classes are numbered over both, in the order of the release's classInd.txt.
        split: "train" or "test".
        fold: 1, 2 or 3. Results are usually the mean over the three.
        video_dir: where the directories of the classes lie, absolute or below `data_dir`; else UCF-101/, videos/ ...
            are looked through. Videos may also lie side by side.
        max_missing, missing_list: of videos; see `report_missing`.

    Raises:
        CorpusError: a file or video is missing, or an entry is damaged.
    """
    directory, split = open_benchmark("ucf101", data_dir, split, list(_UCF101_SIZES))
    _check_fold(fold)
    lists = {}
    for use in _UCF101_SIZES:
        name = f"{use}list{fold:02}.txt"
        path = find_annotation(directory, [name], "list of UCF101", ("ucfTrainTestlist", "UCF101TrainTestSplits"))
        lists[use] = (path, _ucf101_list(path))
    source, chosen = lists[split]
    # The release numbers them without regard to case.
    classes = sorted({name for _, entries in lists.values() for name, _, _ in entries}, key=str.lower)
    check_count(len(classes), 101, "classes of UCF101", source)
    check_count(len(chosen), _UCF101_SIZES[split][fold - 1], f"videos of UCF101 fold {fold} {split}", source)
    videos = VideoFiles(directory, video_dir, ("UCF-101", "UCF101", "ucf101", "videos/all", "videos", "video"), ".avi")
    return _labelled(chosen, classes, videos, source, split, streaming, max_missing, missing_list)


def class_words(name: str) -> str:
    """A class in words: "brush_hair" -> "brush hair", "ApplyEyeMakeup" -> "apply eye makeup"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name.replace("_", " ")).lower()


def _check_fold(fold: object) -> None:
    if isinstance(fold, bool) or fold not in (1, 2, 3):
        raise CorpusError(f"fold must be 1, 2 or 3, not {fold!r}")


def _labelled(
    chosen: list[tuple[str, str, str]],
    classes: list[str],
    videos: VideoFiles,
    source: Path,
    split: str,
    streaming: bool,
    max_missing: int | float,
    missing_list: PathLike | None,
) -> Dataset | IterableDataset:
    """Rows of (class, name of the video, where it is named)."""
    from datasets import ClassLabel

    numbers = {name: number for number, name in enumerate(classes)}
    words = [class_words(name) for name in classes]
    rows: list[Row] = []
    for name, video, where in chosen:
        rows.append(
            {
                "video": videos.find_first([f"{name}/{video}", video], where),
                "video_id": os.path.splitext(video)[0],
                "captions": [words[numbers[name]]],
                "label": numbers[name],
            }
        )
    features = {"label": ClassLabel(names=words)}
    return finish(rows, videos, source, split, streaming, max_missing, missing_list, features=features)


# Class, name of the video, "train", "test" or "", where it stands.
_Entries = list[tuple[str, str, str, str]]


def _hmdb51_entries(path: Path, fold: int) -> tuple[_Entries, Path]:
    entries = []
    for where, row in read_csv(path, ("video_id", "label", f"split{fold}")):
        use = row[f"split{fold}"]
        if use not in ("0", "1", "2"):
            raise CorpusError(f"{where}: split{fold} must be 0, 1 (train) or 2 (test), not {use!r}")
        # The labels are called as the lists that they were made from.
        entries.append((row["label"].removesuffix("_test"), row["video_id"], _HMDB51_USES.get(use, ""), where))
    return entries, path


def _hmdb51_lists(directory: Path, fold: int) -> list[Path] | None:
    for name in dict.fromkeys((*_HMDB51_LISTS, *ANNOTATION_DIRS)):
        found = sorted((directory / name).glob(f"*_test_split{fold}.txt"))
        if found:
            return found
    return None


def _hmdb51_listed(paths: list[Path]) -> tuple[_Entries, Path]:
    entries = []
    for path in paths:
        name = path.name.rpartition("_test_split")[0]
        for number, line in read_list(path):
            where = f"{path}, line {number}"
            video, _, use = line.rpartition(" ")
            if use not in ("0", "1", "2") or not video.strip():
                raise CorpusError(f"{where}: expected the name of a video and 0, 1 (train) or 2 (test)")
            entries.append((name, video.strip(), _HMDB51_USES.get(use, ""), where))
    return entries, paths[0].parent


def _ucf101_list(path: Path) -> list[tuple[str, str, str]]:
    """(class, name of the video, where it stands). Lists for training have the number of the class after the name."""
    entries = []
    for number, line in read_list(path):
        where = f"{path}, line {number}"
        name, slash, video = line.split(" ")[0].partition("/")
        if not name or not slash or not video:
            raise CorpusError(f"{where}: expected CLASS/VIDEO.avi")
        entries.append((name, video, where))
    return entries

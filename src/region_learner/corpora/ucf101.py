"""UCF101 (Soomro et al., 2012): 101 actions in clips from the web, in three folds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .base import CorpusError, PathLike
from .benchmarks import build_action_benchmark, check_fold, open_benchmark
from .readers import check_count, find_annotation, read_list
from .videos import VideoFiles

if TYPE_CHECKING:
    from datasets import Dataset


SIZES = {"train": (9537, 9586, 9624), "test": (3783, 3734, 3696)}  # of each fold


def load_ucf101(
    data_dir: PathLike | None,
    split: str,
    *,
    fold: Literal[1, 2, 3] = 1,
    video_dir: PathLike | None = None,
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset:
    """UCF101: trainlist0N.txt and testlist0N.txt; videos as CLASS/v_CLASS_gNN_cNN.avi; column `label`.

    The release has three folds of its 101 classes: 9,537, 9,586 and 9,624 videos for training, 3,783, 3,734 and 3,696
    for testing. The class "ApplyEyeMakeup" is called "apply eye makeup", which is also the only caption of its videos.

    Args:
        data_dir: directory with the lists, directly, in ucfTrainTestlist/ or in a directory for annotations. Both
            lists of the fold are needed: classes are numbered over both, in the order of the release's classInd.txt.
        split, fold, max_missing, missing_list: see `load_hmdb51`.
        video_dir: as in `load_hmdb51`. By default UCF-101/, videos/ ... are searched.
    """
    directory, split = open_benchmark("ucf101", data_dir, split, list(SIZES))
    check_fold(fold)
    lists = {}
    for use in SIZES:
        name = f"{use}list{fold:02}.txt"
        path = find_annotation(directory, [name], "list of UCF101", ("ucfTrainTestlist", "UCF101TrainTestSplits"))
        lists[use] = (path, _read_list(path))
    source, chosen = lists[split]
    classes = {name for _, entries in lists.values() for name, _, _ in entries}
    check_count(len(classes), 101, "classes of UCF101", source)
    check_count(len(chosen), SIZES[split][fold - 1], f"videos of UCF101 fold {fold} {split}", source)
    videos = VideoFiles(directory, video_dir, ("UCF-101", "UCF101", "ucf101", "videos/all", "videos", "video"), ".avi")
    return build_action_benchmark(chosen, classes, videos, source, split, max_missing, missing_list)


def _read_list(path: Path) -> list[tuple[str, str, str]]:
    """Reads (class, name of the video, place). Training lists have the number of the class after the name."""
    entries = []
    for where, line in read_list(path):
        name, slash, video = line.split(" ")[0].partition("/")
        if not name or not slash or not video:
            raise CorpusError(f"{where}: expected CLASS/VIDEO.avi")
        entries.append((name, video, where))
    return entries

"""HMDB51 (Kuehne et al., ICCV 2011): 51 actions in clips from films and the web, in three folds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .base import CorpusError, PathLike
from .benchmarks import build_action_benchmark, check_fold, open_benchmark
from .readers import ANNOTATION_DIRS, check_count, look_for, read_csv, read_list
from .videos import VideoFiles

if TYPE_CHECKING:
    from datasets import Dataset


SIZES = {"train": 3570, "test": 1530}
_LIST_DIRS = ("", "testTrainMulti_7030_splits", "test_train_splits", "splits")
_USES = {"1": "train", "2": "test"}  # 0: neither


def load_hmdb51(
    data_dir: PathLike | None,
    split: str,
    *,
    fold: Literal[1, 2, 3] = 1,
    video_dir: PathLike | None = None,
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset:
    """HMDB51: CLASS_test_splitN.txt of the release, or hmdb51.csv; videos as CLASS/NAME.avi; column `label`.

    The release has three folds: 70 videos of each of the 51 classes for training and 30 for testing, 3,570 and 1,530.
    The class "brush_hair" is called "brush hair", which is also the only caption of its videos.

    Args:
        data_dir: directory with the lists in testTrainMulti_7030_splits/, or with hmdb51.csv (video_id, label, split1
            ... split3), directly or in a directory for annotations.
        split: "train" or "test".
        fold: 1, 2 or 3. Results are usually the mean over all three.
        video_dir: directory of the classes, absolute or below `data_dir`. By default hmdb51_org/, videos/ ... are
            searched. Videos may also all be in one directory.
        max_missing, missing_list: see `report_missing`.
    """
    directory, split = open_benchmark("hmdb51", data_dir, split, list(SIZES))
    check_fold(fold)
    table = look_for(directory, ["hmdb51.csv"])
    lists = None if table else _find_lists(directory, fold)
    if table is None and lists is None:
        raise CorpusError(
            f"no lists of HMDB51 in {directory}: looked for testTrainMulti_7030_splits/CLASS_test_split{fold}.txt and "
            "for hmdb51.csv; unpack the lists there or check data_dir="
        )
    entries, source = _read_table(table, fold) if table else _read_lists(lists or [])
    videos = VideoFiles(directory, video_dir, ("hmdb51_org", "hmdb51", "videos/all", "videos", "video"), ".avi")
    classes = {name for name, _, _, _ in entries}
    chosen = [(name, video, where) for name, video, use, where in entries if use == split]
    check_count(len(classes), 51, "classes of HMDB51", source)
    check_count(len(chosen), SIZES[split], f"videos of HMDB51 fold {fold} {split}", source)
    return build_action_benchmark(chosen, classes, videos, source, split, max_missing, missing_list)


# Class, name of the video, "train", "test" or "", and the place in the file.
_Entries = list[tuple[str, str, str, str]]


def _read_table(path: Path, fold: int) -> tuple[_Entries, Path]:
    entries = []
    for where, row in read_csv(path, ("video_id", "label", f"split{fold}")):
        use = row[f"split{fold}"]
        if use not in ("0", "1", "2"):
            raise CorpusError(f"{where}: split{fold} must be 0, 1 (train) or 2 (test), not {use!r}")
        # Labels are named after the lists that they were made from.
        entries.append((row["label"].removesuffix("_test"), row["video_id"], _USES.get(use, ""), where))
    return entries, path


def _find_lists(directory: Path, fold: int) -> list[Path] | None:
    for name in dict.fromkeys((*_LIST_DIRS, *ANNOTATION_DIRS)):
        found = sorted((directory / name).glob(f"*_test_split{fold}.txt"))
        if found:
            return found
    return None


def _read_lists(paths: list[Path]) -> tuple[_Entries, Path]:
    entries = []
    for path in paths:
        name = path.name.rpartition("_test_split")[0]
        for where, line in read_list(path):
            video, _, use = line.rpartition(" ")
            if use not in ("0", "1", "2") or not video.strip():
                raise CorpusError(f"{where}: expected the name of a video and 0, 1 (train) or 2 (test)")
            entries.append((name, video.strip(), _USES.get(use, ""), where))
    return entries, paths[0].parent

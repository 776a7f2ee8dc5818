"""Code that the benchmarks share: opening their directory, rows for each task, and building the dataset."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import SPLIT_ALIASES, CorpusError, PathLike, Row, build_dataset, check_data_dir, check_split
from .readers import read_entries, text_field
from .rows import MISSING_WORDS
from .videos import VideoFiles, report_missing

if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)


def open_benchmark(corpus: str, data_dir: PathLike | None, split: str, splits: Sequence[str]) -> tuple[Path, str]:
    """Returns the directory as an absolute path, and the name of the split ("validation" means "val")."""
    directory = check_data_dir(corpus, data_dir)
    if SPLIT_ALIASES.get(split) in splits:
        split = SPLIT_ALIASES[split]
    check_split(split, splits, corpus)
    return directory, split


def build_benchmark(
    rows: Sequence[Row],
    videos: VideoFiles,
    source: Path,
    split: str,
    max_missing: int | float,
    missing_list: PathLike | None,
    captioned: bool = True,
    features: Mapping[str, Any] | None = None,
) -> Dataset:
    """Builds the dataset of a benchmark. Blank captions and missing videos are left out, with a warning of each kind.

    Args:
        rows: rows whose `video` comes from `videos`.
        source: the file that the captions come from, for messages.
        max_missing, missing_list: see `report_missing`.
        captioned: whether every row must have a caption.
        features: types of columns that cannot be inferred from their values.
    """
    from datasets import List, Value

    if captioned:
        rows = _strip_captions(rows, source)
    files = {row["video"] for row in rows}
    report_missing(files & videos.missing, len(files), videos.data_dir, max_missing, missing_list, split, videos.roots)
    present = [row for row in rows if row["video"] not in videos.missing]
    if not present:
        raise CorpusError(f"{source} has no row of split {split!r} whose video exists")
    return build_dataset(present, features={"captions": List(Value("string")), **(features or {})})


def captioned_rows(chosen: Mapping[str, str], captions: Mapping[str, list[str]], videos: VideoFiles) -> list[Row]:
    """Returns the rows of videos. `chosen` maps their ids to where they are named, `captions` to their captions."""
    return [
        {"video": videos.find(video_id, where), "video_id": video_id, "captions": captions.get(video_id, [])}
        for video_id, where in chosen.items()
    ]


def _strip_captions(rows: Sequence[Row], source: Path) -> list[Row]:
    blank, kept, bare = 0, [], []
    for row in rows:
        captions = [caption.strip() for caption in row["captions"]]
        captions = [caption for caption in captions if caption and caption not in MISSING_WORDS]
        blank += len(row["captions"]) - len(captions)
        if captions:
            kept.append({**row, "captions": captions})
        else:
            bare.append(row["video_id"])
    if blank or bare:
        names = f" (the first: {', '.join(bare[:5])})" if bare else ""
        logger.warning(
            "left out %d blank captions and %d videos without a caption%s: %s", blank, len(bare), names, source
        )
    if rows and not kept:
        raise CorpusError(f"no video of the split has a caption in {source}")
    return kept


def question_rows(path: Path, names: Mapping[int, str] | None, prefix: str, videos: VideoFiles) -> list[Row]:
    """Reads the rows of a file of {"question", "answer", "video_id"}.

    Args:
        names: ids of videos by their number; None if the ids are `prefix` and the number.
    """
    rows = []
    for where, entry in read_entries(path):
        number = entry.get("video_id")
        if isinstance(number, str) and number.strip():
            number = number.strip()
            digits = number.removeprefix(prefix)
            number = int(digits) if digits.isascii() and digits.isdigit() else number
        if isinstance(number, bool) or not isinstance(number, int | str) or number == "":
            raise CorpusError(f"{where}: no 'video_id'")
        if isinstance(number, str):
            video_id = number
        elif names is None:
            video_id = f"{prefix}{number}"
        elif number in names:
            video_id = names[number]
        else:
            raise CorpusError(f"{where}: the mapping of ids has no video {number}")
        rows.append(
            {
                "video": videos.find(video_id, where),
                "video_id": video_id,
                "captions": [],
                "question": text_field(entry, "question", where),
                "answer": text_field(entry, "answer", where),
            }
        )
    return rows


def choice_row(video: str, video_id: str, options: list[str], answer: Any, where: str) -> Row:
    """Returns the row of a multiple-choice question."""
    options = [option.strip() for option in options]
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(options):
        raise CorpusError(f"{where}: the answer {answer!r} is not the index of one of the {len(options)} options")
    if not options[answer]:
        raise CorpusError(f"{where}: the right option, {answer}, is blank")
    return {
        "video": video,
        "video_id": video_id,
        "captions": [options[answer]],
        "options": options,
        "answer": answer,
    }


def answer_vocabulary(rows: Iterable[Mapping[str, Any]], size: int) -> list[str]:
    """Returns the most frequent answers, the classes of open-ended question answering. Ties are in alphabetical order.

    Usual sizes are 1,500 for MSRVTT-QA and 1,000 for MSVD-QA, counted on the training split.

    Args:
        rows: a dataset with questions, or its rows.
        size: the largest number of answers.

    Raises:
        CorpusError: rows do not have the column `answer`, or it has the index of an option instead of words; `size` is
            not positive.

    Example:
        >>> answers = answer_vocabulary(load_corpus("msrvtt_qa", "data/MSRVTT"), 1500)
    """
    if size < 1:
        raise CorpusError(f"size must be at least 1, not {size}")
    columns = getattr(rows, "column_names", None)
    if columns is not None and "answer" in columns and hasattr(rows, "select_columns"):
        rows = rows.select_columns(["answer"])
    counts: Counter[str] = Counter()
    for row in rows:
        if not isinstance(row.get("answer"), str):
            raise CorpusError("answer_vocabulary needs rows with words in the column 'answer', such as msrvtt_qa")
        counts[row["answer"]] += 1
    return sorted(counts, key=lambda answer: (-counts[answer], answer))[:size]


def class_words(name: str) -> str:
    """Returns the name of a class in words: "brush_hair" -> "brush hair", "ApplyEyeMakeup" -> "apply eye makeup"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name.replace("_", " ")).lower()


def check_fold(fold: object) -> None:
    """Checks that `fold` is 1, 2 or 3."""
    if isinstance(fold, bool) or fold not in (1, 2, 3):
        raise CorpusError(f"fold must be 1, 2 or 3, not {fold!r}")


def build_action_benchmark(
    chosen: Sequence[tuple[str, str, str]],
    classes: Iterable[str],
    videos: VideoFiles,
    source: Path,
    split: str,
    max_missing: int | float,
    missing_list: PathLike | None,
) -> Dataset:
    """Builds the dataset of a benchmark with a column `label`. The caption is the class in words.

    Args:
        chosen: class, name of the video and where it is named, of each row.
        classes: the names of all classes. They are numbered as the releases do, alphabetically regardless of case.
        videos, source, split, max_missing, missing_list: see `build_benchmark`.
    """
    from datasets import ClassLabel

    classes = sorted(classes, key=str.lower)
    numbers = {name: number for number, name in enumerate(classes)}
    words = [class_words(name) for name in classes]
    rows = [
        {
            "video": videos.find(f"{name}/{video}", where, video),
            "video_id": os.path.splitext(video)[0],
            "captions": [words[numbers[name]]],
            "label": numbers[name],
        }
        for name, video, where in chosen
    ]
    features = {"label": ClassLabel(names=words)}
    return build_benchmark(rows, videos, source, split, max_missing, missing_list, features=features)

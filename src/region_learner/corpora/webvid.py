"""WebVid (Bain et al., ICCV 2021): stock footage with its titles, 2.5 or 10 million pairs for pre-training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .base import CorpusError, PathLike
from .benchmarks import open_benchmark
from .readers import ANNOTATION_DIRS, find_annotation, given_file
from .videos import VIDEO_EXTENSIONS, video_roots

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


_NAMES = ("results_2M_{}.csv", "results_10M_{}.csv", "webvid_{}.csv", "{}_webvid.csv", "{}.csv")


def load_webvid(
    data_dir: PathLike | None,
    split: str,
    *,
    file: PathLike | None = None,
    video_dir: PathLike | None = None,
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset:
    """WebVid: results_2M_{train,val}.csv with videoid, name and page_dir; videos as PAGE_DIR/VIDEOID.mp4.

    The release of Bain et al.: WebVid-2M for pre-training as in Frozen in Time, WebVid-10M in the same form. Each
    video has one caption. There are lists for training and validation; a list for testing is read if it exists.

    Args:
        data_dir: directory with the CSV file, directly or in metadata/, annotations/ or the like:
            results_2M_{split}.csv, results_10M_{split}.csv, webvid_{split}.csv, {split}_webvid.csv or {split}.csv.
            Other columns are ignored. Without the column page_dir, videos are expected in one directory.
        split: "train", "val" or "test".
        file: the CSV file, absolute or below `data_dir`, if it has another name or there are several.
        video_dir: directory of the pages, absolute or below `data_dir`. By default videos/, videos/{split}/, {split}/
            and `data_dir` itself are searched. Videos may also all be in one directory, as VIDEOID.mp4.
        max_missing, missing_list: see `report_missing`. Directories are listed; files are not looked up one by one.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from .arrow_tables import build_pairs, check_names, list_files, locate, normalize_names

    directory, split = open_benchmark("webvid", data_dir, split, ("train", "val", "test"))
    path = _find_file(directory, split, file)
    table = _read_table(path)
    ids = pc.utf8_trim_whitespace(table["videoid"])
    check_names(ids, path, "videoid")
    roots = video_roots(directory, video_dir, ("videos", f"videos/{split}", split))
    nested, directories = ids, {""}
    paged = "page_dir" in table.column_names
    if paged:
        pages = normalize_names(pc.utf8_trim_whitespace(table["page_dir"]))
        nested = pc.if_else(pc.equal(pages, ""), ids, pc.binary_join_element_wise(pages, ids, "/"))
        check_names(nested, path, "page_dir and videoid")
        directories |= set(pc.unique(pages).to_pylist())
    files = list_files(roots, directories, VIDEO_EXTENSIONS)
    videos = locate(nested, *files)
    if paged:
        videos = pc.coalesce(videos, locate(ids, *files))
    expected = pc.binary_join_element_wise(os.path.join(roots[0], ""), nested, ".mp4", "")
    columns = {"video_id": ids, "caption": table["name"], "video": videos, "expected": expected}
    return build_pairs(pa.table(columns), path, directory, split, max_missing, missing_list, roots)


def _read_table(path: Path) -> pa.Table:
    """Reads the columns videoid, name and, if the file has it, page_dir."""
    from .arrow_tables import read_delimited, read_header

    header = read_header(path, ",", quoted=True)
    if absent := [name for name in ("videoid", "name") if name not in header]:
        raise CorpusError(f"{path} has no column {' or '.join(absent)} (columns: {', '.join(header)})")
    columns = [name for name in ("videoid", "name", "page_dir") if name in header]
    table = read_delimited(path, ",", None, columns, quoted=True)
    if not table.num_rows:
        raise CorpusError(f"{path} has no rows")
    return table


def _find_file(directory: Path, split: str, file: PathLike | None) -> Path:
    if file is not None:
        return given_file(directory, file)
    names = [name.format(split) for name in _NAMES]
    found = [path for name in names for place in ANNOTATION_DIRS if (path := directory / place / name).is_file()]
    if len(found) > 1:
        raise CorpusError(f"both {found[0]} and {found[1]}: choose with file=")
    return find_annotation(directory, names, f"CSV file of WebVid {split}")

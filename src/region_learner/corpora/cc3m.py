"""Conceptual Captions (Sharma et al., ACL 2018): 3.3 million images of the web with captions, for pre-training."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from .common import PathLike, check_count, find_annotation, open_benchmark, video_roots
from .errors import CorpusError
from .paths import IMAGE_EXTENSIONS
from .tables import parse_json

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, IterableDataset


_LISTS: dict[str, tuple[tuple[str, ...], int]] = {
    "train": (("Train_GCC-training.tsv", "Train-GCC-training.tsv", "cc3m_train.tsv", "cc3m.tsv"), 3_318_333),
    "val": (("Validation_GCC-1.1.0-Validation.tsv", "cc3m_val.tsv", "cc3m_validation.tsv"), 15_840),
}
_IMAGE_DIRS = {
    "train": ("training", "train", "images/training", "images/train", "cc3m/train", "cc3m", "images"),
    "val": ("validation", "val", "images/validation", "images/val", "cc3m/val"),
}
# Names of columns in lists to which somebody added a header, as img2dataset needs one.
_HEADERS = {("caption", "url"), ("title", "url"), ("text", "url")}
_SHARD = re.compile(r"\d{4,}")


def load_cc3m(
    data_dir: PathLike | None,
    split: str,
    streaming: bool,
    *,
    file: PathLike | None = None,
    video_dir: PathLike | None = None,
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset | IterableDataset:
    """Conceptual Captions: Train_GCC-training.tsv, images by hash or index of the downloader; or files of img2dataset.

    The path of an image stands in the column `video`: it is a clip of one frame. 3,318,333 pairs for training and
    15,840 for validation were published; many URLs are dead, so `max_missing` is usually needed. Two layouts:

    - img2dataset with output_format "files": directories 00000, 00001 ... of images, each with its 00000.parquet of
      `key`, `caption` and `status` beside it, or with a .json beside each image (which takes long to read). Rows
      that were not downloaded count as missing where the Parquet files tell of them.
    - the list of the release, without a header and quotes, and images under the CRC-32 of their URL ("1234567890"),
      the index and the CRC-32 ("17_1234567890"), or the index of their row from 0 on ("17", "000017"), with an
      extension of images or without any. Which it is, is found out by what matches.

    Args:
        data_dir: holds the list, or has it in metadata/, annotations/ or the like.
        split: "train" or "val".
        file: the list, absolute or below `data_dir`, where it has another name.
        video_dir: where the images, or the directories of img2dataset, lie, absolute or below `data_dir`; else
            training/ or train/ (validation/ or val/), images/ and `data_dir` itself are looked through.
        max_missing, missing_list: of images; see `report_missing`.

    Raises:
        CorpusError: a file, a column or images are missing, or a row is damaged.
    """
    from .pairs import pairs_dataset

    directory, split = open_benchmark("cc3m", data_dir, split, list(_LISTS))
    roots = video_roots(directory, video_dir, _IMAGE_DIRS[split])
    # What lies in data_dir itself is of no split, and so taken for training.
    candidates = [root for root in roots if split == "train" or root != directory or video_dir is not None]
    root, shards = next(((root, found) for root in candidates if (found := _shards(root))), (directory, []))
    if shards and file is None:
        table, source = _read_shards(root, shards), root
    else:
        source = _find_list(directory, split, file)
        table = _read_list(source, roots)
        if file is None:
            check_count(table.num_rows, _LISTS[split][1], f"pairs of Conceptual Captions {split}", source)
    return pairs_dataset(table, source, directory, split, streaming, max_missing, missing_list, roots)


# --- The list of the release ---------------------------------------------------------------------------------


def _find_list(directory: Path, split: str, file: PathLike | None) -> Path:
    if file is None:
        return find_annotation(
            directory, _LISTS[split][0], f"list or img2dataset files of Conceptual Captions {split}"
        )
    path = Path(os.path.normpath(directory / os.path.expanduser(file)))
    if not path.is_file():
        raise CorpusError(f"no file {path}: check file=")
    return path


def _read_list(path: Path, roots: list[Path]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    from .pairs import list_files, locate, map_strings, read_delimited, read_header

    first = [field.strip().lower() for field in read_header(path, "\t", quoted=False)]
    if len(first) < 2:
        raise CorpusError(f"{path}, line 1: expected a caption and a URL with a tab between them")
    names = ["caption", "url", *(f"column {number}" for number in range(3, len(first) + 1))]
    table = read_delimited(path, "\t", names, ["caption", "url"], quoted=False)
    if tuple(first[:2]) in _HEADERS:
        table = table.slice(1)
    if not table.num_rows:
        raise CorpusError(f"{path} has no rows")

    stems, paths = list_files(roots, [""], (*IMAGE_EXTENSIONS, ""))
    hashes = map_strings(table["url"], lambda url: str(zlib.crc32(url.strip().encode())))
    # "HASH" and "INDEX_HASH": the index is passed over, as the downloader counts rows in its own way.
    images = locate(hashes, pc.replace_substring_regex(stems, r"^\d+_", ""), paths)
    ids = hashes
    if not len(images) - images.null_count:
        rows = pa.chunked_array([pa.array(range(table.num_rows)).cast(pa.string())])
        by_index = locate(rows, pc.replace_substring_regex(stems, r"^0+(\d)", r"\1"), paths)
        if by_index.null_count < len(by_index):
            images, ids = by_index, rows
    expected = pc.binary_join_element_wise(os.path.join(roots[0], ""), ids, "")
    return pa.table({"video_id": ids, "caption": table["caption"], "video": images, "expected": expected})


# --- What img2dataset writes ---------------------------------------------------------------------------------


def _shards(root: Path) -> list[str]:
    """Names of its directories, by themselves or by their Parquet files: of a shard all of whose URLs are dead."""
    names = set()
    with os.scandir(root) as entries:
        for entry in entries:
            name = entry.name.removesuffix(".parquet")
            # Images without extension are called by numbers too.
            if _SHARD.fullmatch(name) and (name != entry.name or entry.is_dir()):
                names.add(name)
    return sorted(names)


def _read_shards(root: Path, shards: list[str]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    from .pairs import check_names, list_files, locate

    tables = []
    for shard in tqdm(shards, desc="Reading shards", unit="shard", disable=None):
        path = root / f"{shard}.parquet"
        table = _read_parquet(path) if path.is_file() else _read_json(root / shard)
        check_names(table["key"], path, "key")
        nested = pc.binary_join_element_wise(f"{shard}/", table["key"], "")
        tables.append(table.append_column("nested", nested))
    table = pa.concat_tables(tables)
    if not table.num_rows:
        raise CorpusError(f"no row in the img2dataset files under {root}: pass file= to read a list instead")
    images = locate(table["nested"], *list_files([root], shards, IMAGE_EXTENSIONS))
    if "status" in table.column_names:
        images = pc.if_else(pc.equal(table["status"], "success"), images, pa.scalar(None, pa.string()))
    expected = pc.binary_join_element_wise(os.path.join(root, ""), table["nested"], ".jpg", "")
    return pa.table({"video_id": table["key"], "caption": table["caption"], "video": images, "expected": expected})


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    wanted = ("key", "caption", "status")
    try:
        schema = pq.read_schema(path)
        if absent := [name for name in wanted if name not in schema.names]:
            raise CorpusError(f"{path} has no column {' or '.join(absent)} (columns: {', '.join(schema.names)})")
        table = pq.read_table(path, columns=list(wanted))
        if pa.types.is_integer(schema.field("key").type) or pa.types.is_floating(schema.field("key").type):
            raise CorpusError(
                f"{path}: the column key holds numbers, which have lost the leading zeros of the names of the images: "
                "write it as strings, as img2dataset does"
            )
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path} is not a Parquet file: {error}") from error
    columns = {name: table[name].cast(pa.string()) for name in wanted}
    columns["caption"] = pc.fill_null(columns["caption"], "")
    return pa.table(columns)


def _read_json(directory: Path) -> pa.Table:
    import pyarrow as pa

    rows = list(_json_rows(directory))
    columns = ("key", "caption", "status")
    return pa.table({name: pa.array([row[n] for row in rows], pa.string()) for n, name in enumerate(columns)})


def _json_rows(directory: Path) -> Iterator[tuple[str, str, str]]:
    for name in sorted(os.listdir(directory)):
        if not name.endswith(".json"):
            continue
        path = directory / name
        try:
            entry = parse_json(path.read_text(encoding="utf-8"), path)
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path} is not UTF-8 text: {error}") from error
        caption = entry.get("caption") if isinstance(entry, dict) else None
        if not isinstance(caption, str | None):
            raise CorpusError(f"{path}: expected a caption, not {caption!r}")
        yield name.removesuffix(".json"), caption or "", str(entry.get("status", "success"))

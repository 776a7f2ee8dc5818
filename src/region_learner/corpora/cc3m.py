"""Conceptual Captions (Sharma et al., ACL 2018): 3.3 million images from the web with captions, for pre-training."""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from .base import CorpusError, PathLike
from .benchmarks import open_benchmark
from .readers import check_count, find_annotation, given_file, read_json
from .rows import shown
from .videos import IMAGE_EXTENSIONS, video_roots

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


_LISTS: dict[str, tuple[tuple[str, ...], int]] = {
    "train": (("Train_GCC-training.tsv", "Train-GCC-training.tsv", "cc3m_train.tsv", "cc3m.tsv"), 3_318_333),
    "val": (("Validation_GCC-1.1.0-Validation.tsv", "cc3m_val.tsv", "cc3m_validation.tsv"), 15_840),
}
_IMAGE_DIRS = {
    "train": ("training", "train", "images/training", "images/train", "cc3m/train", "cc3m", "images"),
    "val": ("validation", "val", "images/validation", "images/val", "cc3m/val"),
}
# Names of columns in lists that were given a header, as img2dataset needs one.
_HEADERS = {("caption", "url"), ("title", "url"), ("text", "url")}
_SHARD = re.compile(r"\d{4,}")


def load_cc3m(
    data_dir: PathLike | None,
    split: str,
    *,
    file: PathLike | None = None,
    video_dir: PathLike | None = None,
    max_missing: int | float = 0,
    missing_list: PathLike | None = None,
) -> Dataset:
    """Conceptual Captions: Train_GCC-training.tsv, images by hash or index of the downloader; or files of img2dataset.

    The column `video` holds the path of the image, which is a clip of one frame. 3,318,333 pairs for training and
    15,840 for validation were published; many URLs are dead, so `max_missing` is usually needed. Two layouts are read:

    - img2dataset with output_format "files": directories 00000, 00001 ... of images, each with a Parquet file beside
      it (00000.parquet, columns `key`, `caption` and `status`), or with a .json file beside each image, which takes
      long to read. Rows that were not downloaded count as missing if the Parquet files list them.
    - The list of the release, without header and quotes. Images are named by the CRC-32 of their URL ("1234567890"),
      by an index and the CRC-32 ("17_1234567890"), or by the index of their row, counted from 0 ("17", "000017"),
      with or without an image extension. The naming is found by trying which one matches.

    Args:
        data_dir: directory with the list, directly or in metadata/, annotations/ or the like.
        split: "train" or "val".
        file: the list, absolute or below `data_dir`, if it has another name.
        video_dir: directory of the images, or of those of img2dataset, absolute or below `data_dir`. By default
            training/ or train/ (validation/ or val/), images/ and `data_dir` itself are searched.
        max_missing, missing_list: see `report_missing`; files are images here.
    """
    from .arrow_tables import build_pairs

    directory, split = open_benchmark("cc3m", data_dir, split, list(_LISTS))
    roots = video_roots(directory, video_dir, _IMAGE_DIRS[split])
    # Files in data_dir itself belong to no split, and count as training.
    candidates = [root for root in roots if split == "train" or root != directory or video_dir is not None]
    root, shards = next(((root, found) for root in candidates if (found := _shards(root))), (directory, []))
    if shards and file is None:
        table, source = _read_shards(root, shards), root
    elif file is not None:
        source = given_file(directory, file)
        table = _read_list(source, roots)
    else:
        names, size = _LISTS[split]
        source = find_annotation(directory, names, f"list or img2dataset files of Conceptual Captions {split}")
        table = _read_list(source, roots)
        check_count(table.num_rows, size, f"pairs of Conceptual Captions {split}", source)
    return build_pairs(table, source, directory, split, max_missing, missing_list, roots)


def _read_list(path: Path, roots: list[Path]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    from .arrow_tables import list_files, locate, map_strings, read_delimited, read_header

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
    # "HASH" and "INDEX_HASH": the index is ignored, as the downloader counts rows in its own way.
    images = locate(hashes, pc.replace_substring_regex(stems, r"^\d+_", ""), paths)
    ids = hashes
    if images.null_count:  # in large lists, some hashes are also the index of another row
        rows = pa.chunked_array([pa.array(range(table.num_rows)).cast(pa.string())])
        by_index = locate(rows, pc.replace_substring_regex(stems, r"^0+(\d)", r"\1"), paths)
        if by_index.null_count < images.null_count:
            images, ids = by_index, rows
    expected = pc.binary_join_element_wise(os.path.join(roots[0], ""), ids, "")
    return pa.table({"video_id": ids, "caption": table["caption"], "video": images, "expected": expected})


def _shards(root: Path) -> list[str]:
    """Names of the shards in a directory. A shard whose URLs are all dead has a Parquet file but no directory."""
    names = set()
    with os.scandir(root) as entries:
        for entry in entries:
            name = entry.name.removesuffix(".parquet")
            # Images without an extension have numbers as names, too.
            if _SHARD.fullmatch(name) and (name != entry.name or entry.is_dir()):
                names.add(name)
    return sorted(names)


def _read_shards(root: Path, shards: list[str]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    from .arrow_tables import check_names, list_files, locate

    tables = []
    if packed := next((one for one in shards if (root / f"{one}.tar").is_file() and not (root / one).is_dir()), None):
        raise CorpusError(
            f"{root / packed}.tar holds the images: use the corpus 'webdataset' (--corpus webdataset), or run "
            'img2dataset with output_format="files"'
        )
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
                f"{path}: the column key holds numbers, which have lost the leading zeros of the image names: write "
                "it as strings, as img2dataset does"
            )
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path} is not a Parquet file: {error}") from error
    columns = {name: table[name].cast(pa.string()) for name in wanted}
    columns["caption"] = pc.fill_null(columns["caption"], "")
    return pa.table(columns)


def _read_json(directory: Path) -> pa.Table:
    import pyarrow as pa

    rows = []
    for path in sorted(directory.glob("*.json")):
        entry = read_json(path)
        if not isinstance(entry, dict):
            raise CorpusError(f"{path}: expected an object with a caption, not {shown(entry)}")
        caption = entry.get("caption")
        if not isinstance(caption, str | None):
            raise CorpusError(f"{path}: expected a caption, not {caption!r}")
        rows.append({"key": path.stem, "caption": caption or "", "status": str(entry.get("status", "success"))})
    return pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in ("key", "caption", "status")]))

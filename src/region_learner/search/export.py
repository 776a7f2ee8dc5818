"""Exports an index to Parquet files, LanceDB or Qdrant."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import nearest_or_all
from ..files import locked, readable
from ..inference import progress_bar
from .database import Record
from .index import VideoIndex
from .parts import NOT_TEXT, PartWriter, is_text, schema_of, table_of
from .windows import Windows, WindowStore

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

NAME = "videos"

_ROWS = 2**13  # number of rows that are read at a time
_POINTS = 256  # number of points per request


def export_index(index: VideoIndex, to: str, output: str, name: str | None = None) -> int:
    """
    Copies the windows of an index, each with its vector, path, start and end in seconds, and its tokens if the index
    keeps them.

    Args:
        index: the index, which is not changed. Other processes cannot change it during the export.
        to: "parquet" writes parts like `embed_videos`, "lance" writes a LanceDB table, and "qdrant" writes a Qdrant
            collection that compares vectors by cosine similarity. With tokens, the vectors of a collection are called
            "vector" and "tokens"; the latter is a multivector, which is compared by the sum of the highest inner
            products.
        output: for "parquet", a directory that is empty or does not exist; for "lance", the directory or address of a
            database; for "qdrant", the address of a server (`http://...`, with its key in QDRANT_API_KEY if it needs
            one), or a directory for Qdrant's local mode.
        name: name of the table or collection, which must not exist yet. The default is "videos".

    Returns:
        The number of exported windows. Videos whose names are not UTF-8 are left out, with a warning.

    Raises:
        ValueError: the format is not known, or `name` is given for Parquet files.
        FileExistsError: the table or collection already exists, or the directory is not empty.
        ImportError: the package of the engine is not installed.
        BlockingIOError: another process is changing the index.
        OSError: the files cannot be written, or the server refused the export.

    Example:

        export_index(VideoIndex.open("videos.index"), "qdrant", "http://localhost:6333")
    """
    if to not in FORMATS:
        raise ValueError(f"to={to!r} is not known{nearest_or_all(to, FORMATS)}")
    if to == "parquet" and name is not None:
        raise ValueError(f"name={name!r} (--name) is for tables and collections, not for Parquet files: leave it out.")
    with locked(index.directory):
        FORMATS[to](index, output, NAME if name is None else name)
        counts = index.database.execute("SELECT path, rows FROM videos WHERE error IS NULL")
        return sum(rows for path, rows in counts if is_text(os.fsdecode(path)))


def _tables(index: VideoIndex) -> Iterator[pa.Table]:
    """Yields tables of windows, of bounded size, with the row in the index as the column "id"."""
    import pyarrow as pa

    for videos in _batches(index):
        ids = [np.arange(len(windows)) + record.first_row for record, windows in videos]
        table = table_of(videos, index.about()).select(_columns(index))
        yield table.add_column(0, "id", pa.array(np.concatenate(ids)))


def _columns(index: VideoIndex) -> list[str]:
    tokens = [] if index.database.about("tokens") is None else ["tokens", "token_weights"]
    return ["path", "start", "end", "vector", *tokens]


def _batches(index: VideoIndex) -> Iterator[list[tuple[Record, Windows]]]:
    """Yields readable videos with their windows, in the order of their rows, except those that no table can store."""
    about = index.about()
    windows = WindowStore(index.database.vectors_directory(), about["dim"], about["tokens"])
    for start in progress_bar(range(0, index.database.about("rows"), _ROWS), "exporting"):
        records = index.database.records("first_row >= ? AND first_row < ?", [start, start + _ROWS])
        if videos := [
            (record, windows.read(record.first_row, record.first_row + len(record.spans)))
            for record in sorted(records, key=lambda record: record.first_row)
            if _is_exported(record)
        ]:
            yield videos


def _is_exported(record: Record) -> bool:
    if not is_text(record.video.path):
        logger.warning("%s is left out: %s.", readable(record.video.path), NOT_TEXT)
        return False
    return True


# --- Formats -------------------------------------------------------------------------------------------------


def _to_parquet(index: VideoIndex, output: str, name: str) -> None:
    directory = Path(output)
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty: choose another directory for the parts.")
    directory.mkdir(parents=True, exist_ok=True)
    with PartWriter(directory, index.about() | {"neutral": index.database.about("neutral")}, 0, 1) as writer:
        for record in filter(_is_exported, index.database.records("error IS NOT NULL")):
            writer.put(record, Windows.empty(writer.about))
        for videos in _batches(index):
            for record, windows in videos:
                writer.put(record, windows)
        writer.finish("an index")


def _to_lance(index: VideoIndex, output: str, name: str) -> None:
    import pyarrow as pa

    try:
        import lancedb
    except ImportError as error:
        raise ImportError("--to lance needs the package lancedb: pip install lancedb") from error
    columns = [schema_of(index.about()).field(name) for name in _columns(index)]
    schema = pa.schema([("id", pa.int64()), *columns])
    batches = (batch for table in _tables(index) for batch in table.to_batches())
    try:
        database = lancedb.connect(output)
        with suppress(ValueError, FileNotFoundError):  # there is no such table
            database.open_table(name)
            raise FileExistsError(f"{output} already has a table {name}: choose another --name, or drop it first.")
        try:
            database.create_table(name, pa.RecordBatchReader.from_batches(schema, batches))
        except BaseException:
            with suppress(ValueError, FileNotFoundError):
                database.drop_table(name)
            raise
    except RuntimeError as error:
        raise OSError(f"{output} cannot be written: {' '.join(str(error).split())}") from error


def _to_qdrant(index: VideoIndex, output: str, name: str) -> None:
    try:
        from qdrant_client import QdrantClient, models
        from qdrant_client.http.exceptions import ApiException
    except ImportError as error:
        raise ImportError("--to qdrant needs the package qdrant-client: pip install qdrant-client") from error
    where: Any = {"path": output}
    if "://" in output:
        where = {"url": output, "api_key": os.environ.get("QDRANT_API_KEY"), "check_compatibility": False}
    try:
        with closing(QdrantClient(**where)) as client:
            if client.collection_exists(name):
                raise FileExistsError(
                    f"{output} already has a collection {name}: choose another --name, or delete it first."
                )
            client.create_collection(name, _qdrant_vectors(models, index.about()))
            try:
                for table in _tables(index):
                    _upload(client, models, name, table)
            except BaseException:
                client.delete_collection(name)
                raise
    except ApiException as error:
        raise OSError(f"{output} refused the export: {' '.join(str(error).split())}") from error


def _qdrant_vectors(models: Any, about: dict[str, Any]) -> Any:
    """Returns the configuration of how Qdrant compares vectors, and tokens if there are any."""
    vector = models.VectorParams(size=about["dim"], distance=models.Distance.COSINE)
    if about["tokens"] is None:
        return vector
    tokens = models.VectorParams(
        size=about["tokens"][1],
        distance=models.Distance.DOT,  # so that a query can weight its words by the lengths of their vectors
        multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
        hnsw_config=models.HnswConfigDiff(m=0),  # tokens only re-rank the results of "vector"
        datatype=models.Datatype.FLOAT16,
    )
    return {"vector": vector, "tokens": tokens}


def _upload(client: Any, models: Any, name: str, table: pa.Table) -> None:
    for start in range(0, len(table), _POINTS):
        rows = table.slice(start, _POINTS)
        payload = ["path", "start", "end"]
        vectors: Any = rows["vector"].to_pylist()
        if "tokens" in rows.column_names:
            vectors = {"vector": vectors, "tokens": rows["tokens"].to_pylist()}
            payload.append("token_weights")
        payloads = rows.select(payload).to_pylist()
        points = models.Batch(ids=rows["id"].to_pylist(), vectors=vectors, payloads=payloads)
        client.upsert(name, points, wait=True)


FORMATS: dict[str, Callable[[VideoIndex, str, str], None]] = {
    "parquet": _to_parquet,
    "lance": _to_lance,
    "qdrant": _to_qdrant,
}

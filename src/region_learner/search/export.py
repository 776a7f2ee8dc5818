"""Exports an index to Parquet files, or to the engines of larger collections: LanceDB and Qdrant."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import nearest_or_all
from ..files import locked
from ..inference import progress_bar
from .database import Record
from .index import VideoIndex
from .parts import PartWriter, schema_of, table_of
from .vectors import Vectors

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "videos"

_ROWS = 2**13  # that are read together
_POINTS = 256  # of one request


def export_index(index: VideoIndex, to: str, output: str, name: str | None = None) -> int:
    """
    Copies the windows of an index, each with its vector, path, start and end in seconds.

    Args:
        index: stays as it is. It cannot be changed while it is exported.
        to: "parquet", for parts as `embed_videos` writes them; "lance", for a table of LanceDB; or "qdrant", for a
            collection of Qdrant that compares vectors by their cosine.
        output: of "parquet", a directory that is empty or does not exist; of "lance", the directory or address of a
            database; of "qdrant", the address of a server (`http://...`, with the key in QDRANT_API_KEY if it needs
            one), or a directory for Qdrant's local mode.
        name: of the table or collection, which must not exist; by default "videos".

    Returns:
        The number of windows.

    Raises:
        FileExistsError: there already is a table or collection of this name, or a file in the directory.
        ImportError: the package of the engine is not installed.
        BlockingIOError: another process is changing the index.

    Example:

        export_index(VideoIndex.open("videos.index"), "qdrant", "http://localhost:6333")
    """
    if to not in _EXPORTS:
        raise ValueError(f"to={to!r} is not known{nearest_or_all(to, _EXPORTS)}")
    if to == "parquet" and name is not None:
        raise ValueError(f"name={name!r} is of a table or a collection: files do not have one. Leave it out.")
    with locked(index.directory):
        _EXPORTS[to](index, output, name or NAME)
        return index.database.execute("SELECT SUM(rows) FROM videos")[0][0] or 0


def _tables(index: VideoIndex) -> Iterator[pa.Table]:
    """Yields the windows with their rows in the index as "id", a bounded number at a time."""
    import pyarrow as pa

    dim = index.database.about("dim")
    for videos in _batches(index):
        ids = [np.arange(len(vectors)) + record.first_row for record, vectors in videos]
        table = table_of(videos, dim).select(["path", "start", "end", "vector"])
        yield table.add_column(0, "id", pa.array(np.concatenate(ids)))


def _batches(index: VideoIndex) -> Iterator[list[tuple[Record, np.ndarray]]]:
    """Yields videos that are searched with their vectors, in the order of their rows."""
    vectors = Vectors(index.database.vectors_directory(), index.database.about("dim"))
    for start in progress_bar(range(0, index.database.about("rows"), _ROWS), "exporting"):
        records = index.database.records("first_row >= ? AND first_row < ?", [start, start + _ROWS])
        if videos := [
            (record, vectors.read(record.first_row, record.first_row + len(record.spans)))
            for record in sorted(records, key=lambda record: record.first_row)
        ]:
            yield videos


# --- Formats -------------------------------------------------------------------------------------------------


def _to_parquet(index: VideoIndex, output: str, name: str) -> None:
    directory = Path(output)
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} has other files: choose another directory for the parts.")
    directory.mkdir(parents=True, exist_ok=True)
    with PartWriter(directory, index.about() | {"neutral": index.database.about("neutral")}, 0, 1) as writer:
        for record in index.database.records("error IS NOT NULL"):
            writer.put(record, np.empty((0, writer.about["dim"]), np.float32))
        for videos in _batches(index):
            for record, vectors in videos:
                writer.put(record, vectors)
        writer.finish("an index")


def _to_lance(index: VideoIndex, output: str, name: str) -> None:
    import pyarrow as pa

    try:
        import lancedb
    except ImportError as error:
        raise ImportError("--to lance needs the package lancedb: pip install lancedb") from error
    schema = pa.schema([("id", pa.int64()), *list(schema_of(index.database.about("dim")))[:4]])
    batches = (batch for table in _tables(index) for batch in table.to_batches())
    try:
        database = lancedb.connect(output)
        with suppress(ValueError, FileNotFoundError):  # there is no such table
            database.open_table(name)
            raise FileExistsError(f"{output} has a table {name} already: choose another --name, or drop it first.")
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
                    f"{output} has a collection {name} already: choose another --name, or delete it first."
                )
            size = index.database.about("dim")
            client.create_collection(name, models.VectorParams(size=size, distance=models.Distance.COSINE))
            try:
                for table in _tables(index):
                    _upload(client, models, name, table)
            except BaseException:
                client.delete_collection(name)
                raise
    except ApiException as error:
        raise OSError(f"{output} does not take the export: {' '.join(str(error).split())}") from error


def _upload(client: Any, models: Any, name: str, table: pa.Table) -> None:
    for start in range(0, len(table), _POINTS):
        rows = table.slice(start, _POINTS)
        payloads = rows.select(["path", "start", "end"]).to_pylist()
        points = models.Batch(ids=rows["id"].to_pylist(), vectors=rows["vector"].to_pylist(), payloads=payloads)
        client.upsert(name, points, wait=True)


_EXPORTS: dict[str, Callable[[VideoIndex, str, str], None]] = {
    "parquet": _to_parquet,
    "lance": _to_lance,
    "qdrant": _to_qdrant,
}

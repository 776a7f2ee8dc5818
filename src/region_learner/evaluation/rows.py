"""The rows of a corpus, read once without their videos; and each video once."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ..corpora.rows import check_dataset, read_row


class _Videos(Sequence):
    """The videos of some rows, looked up when needed: the encoded videos of a corpus do not fit into memory."""

    def __init__(self, rows: Any, indices: Sequence[int]):
        self.rows, self.indices = rows, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index):
        row = self.rows[self.indices[index]]
        return read_row(row, (), f"row {self.indices[index]}")["video"]


class CorpusRows:
    """
    The rows of a corpus.

    Attributes:
        columns: for each row, the columns asked for, without its video.
        videos: each video once, by its id.
        ids: ids of the videos.
        owners: index of the video of each row.

    Raises:
        ValueError: there are no rows, a column is missing, or a row is wrong.
    """

    def __init__(self, dataset: Iterable[dict[str, Any]], columns: Sequence[str]):
        check_dataset(dataset, columns, "the data set", first_rows=0)
        rows: Any = dataset if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") else list(dataset)
        if not len(rows):
            raise ValueError("The data set has no rows.")
        without_videos = rows
        if hasattr(rows, "select_columns"):  # of a `datasets.Dataset`, without the column that may be large
            without_videos = rows.select_columns(["video_id", *columns])
        self.columns: list[dict[str, Any]] = []
        owners: list[int] = []
        first: dict[Any, tuple[int, int]] = {}  # number and first row of each video
        for i, row in enumerate(without_videos):
            row = read_row(row, columns, f"row {i}", bare=True, with_video=without_videos is rows)
            self.columns.append({name: row[name] for name in columns})
            number, _ = first.setdefault(row["video_id"], (len(first), i))
            owners.append(number)
        self.ids: list[Any] = list(first)
        self.videos = _Videos(rows, [i for _, i in first.values()])
        self.owners = torch.tensor(owners)

    def __len__(self) -> int:
        return len(self.columns)

    def column(self, name: str) -> list[Any]:
        """Returns the values of a column, one per row."""
        return [row[name] for row in self.columns]

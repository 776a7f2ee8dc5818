"""
The training data. The rows of a batch depend only on the seed and the index of the batch, so that several processes
draw the same rows as a single process would, and a resumed run continues as if it had never stopped.
"""

import bisect
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler, get_worker_info
from torch.utils.data import Dataset as MapDataset

from ..corpora import CorpusError
from ..corpora.rows import check_kind
from .arguments import MIXES

# The key of a row's draw, which is not the name of any column.
DRAWN = "__drawn__"


def draw(*numbers: int) -> int:
    """Returns a pseudo-random number of 63 bits that depends only on `numbers`."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


@dataclass
class CorpusPart:
    """
    One of the training corpora.

    Args:
        dataset: rows of `load_corpus`, which are a `Dataset` or an `IterableDataset`; or a list of rows, or a
            map-style dataset of torch.
        batch_size: rows per batch of one process.
        num_frames: frames per clip. The default is the number that the processor samples.
        weight: how often its batches are drawn with `mix="weighted"`, relative to the other corpora.
        shuffle_buffer: size of the shuffle buffer of a stream, in rows.
    """

    dataset: Any
    batch_size: int
    num_frames: int | None = None
    weight: float = 1.0
    shuffle_buffer: int = 10_000

    def __post_init__(self):
        check_kind(self.dataset, "the training data")
        if self.streamed and not hasattr(self.dataset, "shuffle"):
            raise CorpusError(
                f"the training data is a {type(self.dataset).__name__}, which has no length and cannot be shuffled: "
                "pass a list of rows, or datasets.IterableDataset.from_generator(...) of it"
            )

    @property
    def streamed(self) -> bool:
        return not hasattr(self.dataset, "__len__")


def as_parts(train_dataset: Any, batch_size: int) -> list[CorpusPart]:
    """
    Returns the parts of a training dataset: a list of parts unchanged, and rows as one part.

    Raises:
        ValueError: a list contains both parts and rows.
    """
    if train_dataset is None:
        return []
    if not isinstance(train_dataset, list | tuple) or not any(isinstance(part, CorpusPart) for part in train_dataset):
        return [CorpusPart(train_dataset, batch_size)]
    if other := [part for part in train_dataset if not isinstance(part, CorpusPart)]:
        raise ValueError(
            f"train_dataset: every entry of a list of corpora must be a CorpusPart, not a {type(other[0]).__name__}."
        )
    return list(train_dataset)


class Draw(NamedTuple):
    """
    A row that was drawn: the index of its part, its index in that part (in a stream, within one pass), and the seed
    for frames, crop and caption.
    """

    part: int
    row: int
    seed: int | None
    num_frames: int | None = None


class TrainingRows(MapDataset):
    """
    Looks up the rows that `TrainingBatchSampler` draws, and adds the draw as the column `DRAWN`.

    Args:
        parts: the corpora.
        rows_per_epoch: the length of this dataset. The default is the number of rows of all corpora.
    """

    def __init__(self, parts: Sequence[CorpusPart], rows_per_epoch: int | None = None):
        self.parts, self.rows_per_epoch = list(parts), rows_per_epoch

    def __len__(self) -> int:
        return self.rows_per_epoch or sum(len(part.dataset) for part in self.parts)

    def __getitem__(self, drawn: Draw) -> dict[str, Any]:
        part = self.parts[drawn.part]
        return dict(part.dataset[drawn.row]) | {DRAWN: drawn._replace(num_frames=part.num_frames)}


class TrainingBatchSampler(Sampler[list[Draw]]):
    """
    Yields the batches of one process in one epoch. Each batch comes from one corpus, the same in all processes in each
    step. Corpora are reshuffled in each epoch.

    Args:
        parts: the corpora.
        mix: "alternate" takes one batch of each corpus in turn until the shortest corpus ends (as the paper does for
            images and videos). "weighted" draws corpora at random by their weights, for as many batches as all corpora
            have together.
        seed: seed of the order and the draws, together with the epoch.
        rank, world_size: index of this process, and number of processes.
        samples_per_epoch: maximum number of rows per epoch, over all corpora and processes.
        drop_last: whether to leave out rows that do not fill a batch of all processes. Otherwise, the batch is filled
            with rows from the beginning of the epoch, because the contrastive loss needs batches of equal size.

    Raises:
        ValueError: `mix` is unknown, a corpus is empty, or not even one batch is left within the limits.
    """

    def __init__(
        self,
        parts: Sequence[CorpusPart],
        mix: str = "alternate",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        samples_per_epoch: int | None = None,
        drop_last: bool = False,
    ):
        _check_mix(parts, mix)
        self.parts, self.mix, self.seed = list(parts), mix, seed
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        self.epoch = 0
        sizes = [part.batch_size * world_size for part in parts]  # rows per step
        self._steps_through = []  # number of steps in one pass through each corpus
        for part, size in zip(parts, sizes):
            steps = len(part.dataset) // size if drop_last else -(-len(part.dataset) // size)
            if steps == 0:
                raise ValueError(
                    f"A corpus of {len(part.dataset)} rows does not fill a batch of {size}: use smaller batches or "
                    "more data, or leave out --dataloader-drop-last."
                )
            self._steps_through.append(steps)
        if mix == "alternate":
            steps, rows_per_step = len(parts) * min(self._steps_through), sum(sizes) / len(sizes)
        else:
            total = sum(part.weight for part in parts)
            steps = sum(self._steps_through)
            rows_per_step = sum(part.weight / total * size for part, size in zip(parts, sizes))
        if samples_per_epoch is not None:
            bound = int(samples_per_epoch / rows_per_step)
            bound -= bound % len(parts) if mix == "alternate" else 0  # whole rounds
            if bound == 0:
                least = math.ceil(rows_per_step * (len(parts) if mix == "alternate" else 1))
                raise ValueError(
                    f"samples_per_epoch={samples_per_epoch} is less than one batch of each corpus and process: set it "
                    f"to at least {least}, or use smaller batches."
                )
            steps = min(steps, bound)
        self._steps = steps
        # Rows of all processes; with "weighted", on average.
        self.rows_per_epoch = round(steps * rows_per_step)

    def __len__(self) -> int:
        return self._steps

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Draw]]:
        taken = [0] * len(self.parts)  # number of steps of each part so far
        orders: dict[tuple[int, int], torch.Tensor] = {}
        for step in range(self._steps):
            number = _part_of_step(self.parts, self.mix, self.seed + self.epoch, step)
            part = self.parts[number]
            length, size = len(part.dataset), part.batch_size * self.world_size
            # Each pass through a corpus within an epoch has a different order.
            through, nth = divmod(taken[number], self._steps_through[number])
            if (number, through) not in orders:
                orders.pop((number, through - 1), None)
                generator = torch.Generator().manual_seed(draw(self.seed, self.epoch, number, through))
                orders[number, through] = torch.randperm(length, generator=generator)
            order = orders[number, through]
            start = nth * size + self.rank * part.batch_size
            batch = []
            for position in range(start, start + part.batch_size):
                index = int(order[position % length])
                batch.append(Draw(number, index, draw(self.seed, self.epoch, number, through, position)))
            yield batch
            taken[number] += 1


class TrainingStream(IterableDataset):
    """
    Yields endless batches (lists of rows) of streamed corpora for one process. Each loader process has its own shards.

    Resuming replays the stream up to where it stopped, without decoding anything: if rows refer to their videos
    (`load_corpus("webdataset", streaming=True, lazy=True)`), only names are read. The batches that follow are those of
    an uninterrupted run, even within a shuffle buffer, as long as the numbers of processes and loader processes do not
    change.

    Args:
        parts: the corpora. Corpora that are not streamed are read as endless streams, too.
        mix, seed, rank, world_size: as in [`TrainingBatchSampler`].
        skip: number of batches that this process has already trained on.
    """

    def __init__(
        self,
        parts: Sequence[CorpusPart],
        mix: str = "alternate",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        skip: int = 0,
    ):
        _check_mix(parts, mix)
        self.parts, self.mix, self.seed = list(parts), mix, seed
        self.rank, self.world_size, self.skip = rank, world_size, skip

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        streams = [self._rows(number, worker, workers) for number in range(len(self.parts))]
        # The loader takes one batch from each of its processes in turn, beginning with the first one. Therefore, only
        # whole rounds are skipped here, and `StreamLoader` skips the rest.
        skip = self.skip // workers * workers
        for turn, step in enumerate(itertools.count(worker, workers)):
            # With "alternate", each loader process takes the corpora in turn. If they alternated by the global step,
            # each of two processes would only read one of two corpora, although it has shards of both.
            position = worker + turn if self.mix == "alternate" else step
            number = _part_of_step(self.parts, self.mix, self.seed, position)
            rows = list(itertools.islice(streams[number], self.parts[number].batch_size))
            if step >= skip:
                yield rows

    def _rows(self, number: int, worker: int, workers: int) -> Iterator[dict[str, Any]]:
        part = self.parts[number]
        for epoch in itertools.count():
            seed = draw(self.seed, epoch, number, self.rank, worker)
            count = 0
            for row in self._once(part, draw(self.seed, number), epoch, worker, workers):
                yield dict(row) | {DRAWN: Draw(number, count, draw(seed, count), part.num_frames)}
                count += 1
            if count == 0:
                raise ValueError(
                    f"Loader process {worker + 1} of {workers} in process {self.rank + 1} of {self.world_size} has no "
                    "rows to read: use fewer loader processes (--dataloader-num-workers) or more shards."
                )

    def _once(self, part: CorpusPart, seed: int, epoch: int, worker: int, workers: int) -> Iterator[dict[str, Any]]:
        """Yields the rows of this loader process in one pass through a corpus."""
        if not part.streamed:
            generator = torch.Generator().manual_seed(draw(seed, epoch))
            order = torch.randperm(len(part.dataset), generator=generator)
            for index in order[self.rank * workers + worker :: self.world_size * workers].tolist():
                yield part.dataset[index]
            return
        stream = part.dataset.shuffle(seed=seed % 2**32, buffer_size=part.shuffle_buffer)
        if self.world_size > 1 and stream.num_shards % self.world_size and stream.num_shards > self.world_size:
            # (With `split_dataset_by_node`, every process would read all shards and discard most rows.)
            stream = stream.shard(num_shards=self.world_size, index=self.rank)
        elif self.world_size > 1:
            from datasets.distributed import split_dataset_by_node

            stream = split_dataset_by_node(stream, rank=self.rank, world_size=self.world_size)
        stream.set_epoch(epoch)
        yield from stream  # `datasets` itself assigns shards to each loader process


class StreamLoader(DataLoader):
    """The data loader for a [`TrainingStream`], which yields whole batches."""

    def __init__(self, stream: TrainingStream, **kwargs):
        super().__init__(stream, batch_size=None, **kwargs)
        self.stream = stream

    def __iter__(self):
        batches = super().__iter__()
        skip = self.stream.skip % max(1, self.num_workers)
        return itertools.islice(batches, skip, None) if skip else batches


class RowLoader(DataLoader):
    """The data loader for [`TrainingRows`], which tells its [`TrainingBatchSampler`] which epoch begins."""

    def set_epoch(self, epoch: int):  # the Trainer calls it
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


def make_train_dataloader(
    parts: Sequence[CorpusPart], args: Any, data_collator: Any, loader_options: dict[str, Any], skip: int = 0
) -> DataLoader:
    """
    Returns the data loader for the training batches of this process. It decides which rows each process reads, not
    `accelerate`.

    Args:
        parts: the corpora.
        args: the [`RegionLearnerTrainingArguments`].
        data_collator: makes a batch from rows.
        loader_options: further arguments of the `DataLoader`.
        skip: number of batches of a stream that this process has already trained on.
    """
    seed = args.seed if args.data_seed is None else args.data_seed
    share = {"mix": args.mix, "seed": seed, "rank": args.process_index, "world_size": args.world_size}
    options: dict[str, Any] = {
        "collate_fn": data_collator,
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory and args.device.type == "cuda",
        "persistent_workers": args.dataloader_persistent_workers,
        "prefetch_factor": args.dataloader_prefetch_factor,
        "multiprocessing_context": getattr(args, "dataloader_multiprocessing_context", None),
        "generator": torch.Generator().manual_seed(seed),  # not the global one, which the model draws from
        **loader_options,
    }
    if any(part.streamed for part in parts):
        if args.samples_per_epoch is not None:
            raise ValueError("samples_per_epoch has no effect on a stream, which has no epochs: set it to none.")
        return StreamLoader(TrainingStream(parts, skip=skip, **share), **options)
    sampler = TrainingBatchSampler(
        parts, samples_per_epoch=args.samples_per_epoch, drop_last=args.dataloader_drop_last, **share
    )
    return RowLoader(TrainingRows(parts, sampler.rows_per_epoch), batch_sampler=sampler, **options)


def _check_mix(parts: Sequence[CorpusPart], mix: str):
    if mix not in MIXES:
        raise ValueError(f"mix={mix!r} is not known; choose one of {', '.join(map(repr, MIXES))}.")
    for part in parts:
        if not part.weight > 0 or part.batch_size < 1:
            raise ValueError(f"batch_size={part.batch_size} must be at least 1, and weight={part.weight} above 0.")


def _part_of_step(parts: Sequence[CorpusPart], mix: str, seed: int, step: int) -> int:
    """Returns the index of the corpus of a step, which is the same in all processes."""
    if mix == "alternate":
        return step % len(parts)
    bounds = list(itertools.accumulate(part.weight for part in parts))
    return bisect.bisect(bounds, draw(seed, step) / 2**63 * bounds[-1], hi=len(parts) - 1)

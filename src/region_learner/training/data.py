"""
Which rows make which batch, as a function of the seed and the number of the batch alone: so that training on several
processes draws what one process would, and a resumed run goes on as if it had never stopped.
"""

import bisect
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, IterableDataset, Sampler, get_worker_info
from torch.utils.data import Dataset as MapDataset

from ..corpora import CorpusError
from ..corpora.rows import check_kind

MIXES = ("alternate", "weighted")

# Where a row holds what was drawn for it: a name that no column has, as rows come with columns of their own.
DRAWN = "__drawn__"


def draw(*numbers: int) -> int:
    """A number of 63 bits that looks random but depends on `numbers` alone."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


@dataclass
class CorpusPart:
    """
    One of the corpora that are trained on.

    Args:
        dataset: rows of `load_corpus`, a `Dataset` or an `IterableDataset`; or a list of rows, or a data set of
            torch that is not iterable only.
        batch_size: rows a batch of one process.
        num_frames: frames a clip; by default as many as the processor has.
        weight: how often its batches come, relative to the other corpora, where they are mixed by weight.
        shuffle_buffer: rows that a stream is shuffled among.
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
                f"the training data is a {type(self.dataset).__name__}, which cannot be shuffled or told how long it "
                "is: pass a list of rows, or datasets.IterableDataset.from_generator(...) of it"
            )

    @property
    def streamed(self) -> bool:
        return not hasattr(self.dataset, "__len__")


class Draw(NamedTuple):
    """A row of a part, by its number in it or of a stream in one pass, with the seed of frames, crop and caption."""

    part: int
    row: int
    seed: int | None
    num_frames: int | None = None


class TrainingRows(MapDataset):
    """Looks up what `TrainingBatchSampler` draws: rows of a corpus, with the draw in the column `DRAWN`."""

    def __init__(self, parts: Sequence[CorpusPart]):
        self.parts = list(parts)

    def __len__(self) -> int:
        return sum(len(part.dataset) for part in self.parts)

    def __getitem__(self, drawn: Draw) -> dict[str, Any]:
        part = self.parts[drawn.part]
        return dict(part.dataset[drawn.row]) | {DRAWN: drawn._replace(num_frames=part.num_frames)}


class TrainingBatchSampler(Sampler[list[Draw]]):
    """
    Batches of one process in one epoch, each of one corpus; in one step all processes have the same corpus. Corpora
    are shuffled anew in each epoch.

    Args:
        parts: the corpora.
        mix: "alternate", one batch of each in turn until the shortest is through (as the paper trains on images and
            videos); "weighted", at random by their weights, as many batches as all corpora hold.
        seed: what order and draws depend on, together with the epoch.
        rank, world_size: this process among how many.
        samples_per_epoch: bound on the rows of an epoch, of all corpora and processes.
        drop_last: leave out rows that do not fill a batch of all processes; else rows from the beginning of the
            epoch fill it, as the contrastive loss needs batches of equal size.

    Raises:
        ValueError: for an unknown `mix`, an empty corpus, or bounds that leave no batch.
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
        sizes = [part.batch_size * world_size for part in parts]  # rows a step
        self._steps_through = []  # steps that take one through each corpus
        for part, size in zip(parts, sizes):
            steps = len(part.dataset) // size if drop_last else -(-len(part.dataset) // size)
            if steps == 0:
                raise ValueError(
                    f"A corpus of {len(part.dataset)} rows does not fill a batch of {size}: take smaller batches, "
                    "more data, or no --dataloader_drop_last."
                )
            self._steps_through.append(steps)
        if mix == "alternate":
            steps, rows_a_step = len(parts) * min(self._steps_through), sum(sizes) / len(sizes)
        else:
            total = sum(part.weight for part in parts)
            steps = sum(self._steps_through)
            rows_a_step = sum(part.weight / total * size for part, size in zip(parts, sizes))
        if samples_per_epoch is not None:
            bound = int(samples_per_epoch / rows_a_step)
            bound -= bound % len(parts) if mix == "alternate" else 0  # whole rounds
            if bound == 0:
                raise ValueError(
                    f"samples_per_epoch={samples_per_epoch} is less than one batch of each corpus and process "
                    f"({int(rows_a_step)} rows a step)."
                )
            steps = min(steps, bound)
        self._steps = steps
        self.num_samples = round(steps * rows_a_step)  # rows an epoch of all processes (of "weighted", on average)

    def __len__(self) -> int:
        return self._steps

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Draw]]:
        taken = [0] * len(self.parts)  # steps of each part so far
        orders: dict[tuple[int, int], torch.Tensor] = {}
        for step in range(self._steps):
            number = _part_of_step(self.parts, self.mix, self.seed + self.epoch, step)
            part = self.parts[number]
            length, size = len(part.dataset), part.batch_size * self.world_size
            # A corpus that comes round again within an epoch has another order each time.
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
    Endless batches (lists of rows) of streamed corpora for one process. Each loader process has shards of its own.

    Resuming replays the stream up to where it stopped, without decoding anything: rows that refer to their videos
    (`load_corpus("webdataset", streaming=True, lazy=True)`) make that a matter of reading names. What comes is what
    would have come, also from within a shuffle buffer, as long as the numbers of processes and loader processes stay.

    Args:
        parts: the corpora; those that are not streamed take part as endless streams, too.
        mix, seed, rank, world_size: as in [`TrainingBatchSampler`].
        skip: batches of this process that were trained on before.
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
        # The loader takes one batch from each of its processes in turn. So that it begins with the first of them,
        # whole rounds are skipped here; `StreamLoader` skips the rest.
        skip = self.skip // workers * workers
        for step in itertools.count(worker, workers):
            number = _part_of_step(self.parts, self.mix, self.seed, step)
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
                    "rows to read: take fewer loader processes (--dataloader_num_workers) or more shards."
                )

    def _once(self, part: CorpusPart, seed: int, epoch: int, worker: int, workers: int) -> Iterator[dict[str, Any]]:
        """The rows of one pass through a corpus that are this loader process'."""
        if not part.streamed:
            generator = torch.Generator().manual_seed(draw(seed, epoch))
            order = torch.randperm(len(part.dataset), generator=generator)
            for index in order[self.rank * workers + worker :: self.world_size * workers].tolist():
                yield part.dataset[index]
            return
        stream = part.dataset.shuffle(seed=seed % 2**32, buffer_size=part.shuffle_buffer)
        if self.world_size > 1 and stream.num_shards % self.world_size and stream.num_shards > self.world_size:
            # (By node, every process would read all shards that cannot be divided, and throw most rows away.)
            stream = stream.shard(num_shards=self.world_size, index=self.rank)
        elif self.world_size > 1:
            stream = split_dataset_by_node(stream, rank=self.rank, world_size=self.world_size)
        stream.set_epoch(epoch)
        yield from stream  # `datasets` itself leaves each loader process its shards


class StreamLoader(DataLoader):
    """Loader of a [`TrainingStream`], whose batches come ready."""

    def __init__(self, stream: TrainingStream, **kwargs):
        super().__init__(stream, batch_size=None, **kwargs)
        self.stream = stream

    def __iter__(self):
        batches = super().__iter__()
        skip = self.stream.skip % max(1, self.num_workers)
        return itertools.islice(batches, skip, None) if skip else batches


def _check_mix(parts: Sequence[CorpusPart], mix: str):
    if mix not in MIXES:
        raise ValueError(f"mix={mix!r} is not known; choose one of {', '.join(map(repr, MIXES))}.")
    for part in parts:
        if not part.weight > 0 or part.batch_size < 1:
            raise ValueError(f"batch_size={part.batch_size} must be at least 1, and weight={part.weight} positive.")


def _part_of_step(parts: Sequence[CorpusPart], mix: str, seed: int, step: int) -> int:
    """Number of the corpus that a step is of: the same in all processes."""
    if mix == "alternate":
        return step % len(parts)
    bounds = list(itertools.accumulate(part.weight for part in parts))
    return bisect.bisect(bounds, draw(seed, step) / 2**63 * bounds[-1], hi=len(parts) - 1)

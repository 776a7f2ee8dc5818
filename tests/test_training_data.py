"""Tests which rows make up which batch, with one process and several, and in resumed and uninterrupted runs."""

import itertools
import re
from collections import Counter

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from region_learner.training.data import (
    DRAWN,
    CorpusPart,
    StreamLoader,
    TrainingBatchSampler,
    TrainingRows,
    TrainingStream,
    make_train_dataloader,
)
from region_learner.training.training_arguments import RegionLearnerTrainingArguments


def rows(count: int, name: str = "a") -> datasets.Dataset:
    return datasets.Dataset.from_dict({"video_id": [f"{name}{i}" for i in range(count)]})


def stream(count: int, shards: int, name: str = "a") -> datasets.IterableDataset:
    return rows(count, name).to_iterable_dataset(num_shards=shards)


def epoch(sampler, number=0):
    sampler.set_epoch(number)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


@pytest.mark.parametrize("mix", ["alternate", "weighted"])
def test_two_processes_draw_the_batches_of_one(mix):
    whole = TrainingBatchSampler([CorpusPart(rows(23), 6), CorpusPart(rows(40), 4, weight=3)], mix, seed=1)
    halves = [CorpusPart(rows(23), 3), CorpusPart(rows(40), 2, weight=3)]
    parts = [TrainingBatchSampler(halves, mix, seed=1, rank=rank, world_size=2) for rank in (0, 1)]
    for number in (0, 1):
        assert epoch(whole, number) == [a + b for a, b in zip(*(epoch(part, number) for part in parts), strict=True)]


def test_an_epoch_takes_every_row_once_in_a_new_order_each_time():
    sampler = TrainingBatchSampler([CorpusPart(rows(24), 4)], seed=3)
    orders = [[drawn.row for batch in epoch(sampler, number) for drawn in batch] for number in (0, 1, 0)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(24))
    assert orders[0] == orders[2] != orders[1]
    seeds = [drawn.seed for number in (0, 1) for batch in epoch(sampler, number) for drawn in batch]
    assert len(set(seeds)) == len(seeds)
    other = TrainingBatchSampler([CorpusPart(rows(24), 4)], seed=4)
    assert [drawn.row for batch in epoch(other) for drawn in batch] != orders[0]


def test_the_last_batch_is_filled_from_the_beginning_or_dropped():
    filled = epoch(TrainingBatchSampler([CorpusPart(rows(10), 4)]))
    indices = [drawn.row for batch in filled for drawn in batch]
    assert [len(batch) for batch in filled] == [4, 4, 4]
    assert sorted(indices[:10]) == list(range(10))
    assert indices[10:] == indices[:2]
    dropped = epoch(TrainingBatchSampler([CorpusPart(rows(10), 4)], drop_last=True))
    assert dropped == filled[:2]
    with pytest.raises(ValueError, match="3 rows does not fill a batch of 4"):
        TrainingBatchSampler([CorpusPart(rows(3), 4)], drop_last=True)


def test_corpora_alternate_until_the_shortest_is_exhausted():
    sampler = TrainingBatchSampler([CorpusPart(rows(8), 4), CorpusPart(rows(100), 2)])
    batches = epoch(sampler)
    assert [batch[0].part for batch in batches] == [0, 1, 0, 1]
    assert [len(batch) for batch in batches] == [4, 2, 4, 2]
    first = {drawn.row for batch in batches for drawn in batch if drawn.part == 1}
    second = {drawn.row for batch in epoch(sampler, 1) for drawn in batch if drawn.part == 1}
    assert first != second  # the longer one continues with other rows


def test_corpora_mixed_by_weight():
    parts = [CorpusPart(rows(400), 1, weight=1), CorpusPart(rows(400), 1, weight=3)]
    batches = epoch(TrainingBatchSampler(parts, "weighted", seed=5))
    assert len(batches) == 800
    share = Counter(batch[0].part for batch in batches)[1] / 800
    assert 0.70 < share < 0.80
    times = Counter(batch[0].row for batch in batches if batch[0].part == 1)
    assert set(times.values()) <= {1, 2}  # about 600 draws from 400 rows: no third draw before all second ones
    again = [drawn.row for batch in batches for drawn in batch if drawn.part == 1]
    assert again[:200] != again[400:600]


@pytest.mark.parametrize(("mix", "steps"), [("alternate", 6), ("weighted", 6)])
def test_the_length_of_an_epoch_is_bounded_by_samples(mix, steps):
    parts = [CorpusPart(rows(100), 4), CorpusPart(rows(100), 2)]
    sampler = TrainingBatchSampler(parts, mix, samples_per_epoch=20)
    assert len(epoch(sampler)) == steps
    assert sampler.rows_per_epoch == 18
    with pytest.raises(ValueError, match="samples_per_epoch=2 is less than one batch") as refused:
        TrainingBatchSampler(parts, mix, samples_per_epoch=2)
    least = int(re.search(r"set it to at least (\d+)", str(refused.value))[1])
    assert len(TrainingBatchSampler(parts, mix, samples_per_epoch=least)) > 0
    with pytest.raises(ValueError, match="is less than one batch"):
        TrainingBatchSampler(parts, mix, samples_per_epoch=least - 1)


def test_wrong_mixes():
    with pytest.raises(ValueError, match="mix='both' is not known; choose one of 'alternate', 'weighted'"):
        TrainingBatchSampler([CorpusPart(rows(4), 2)], "both")
    with pytest.raises(ValueError, match="weight=0 above 0"):
        TrainingBatchSampler([CorpusPart(rows(4), 2, weight=0)], "weighted")


def test_rows_carry_their_part_and_number_of_frames():
    parts = [CorpusPart(rows(4, "a"), 2, num_frames=1), CorpusPart(rows(4, "b"), 2, num_frames=3)]
    loader = DataLoader(TrainingRows(parts), batch_sampler=TrainingBatchSampler(parts), collate_fn=list)
    batches = list(loader)
    assert [[(row["video_id"][0], row[DRAWN].part, row[DRAWN].num_frames) for row in batch] for batch in batches] == [
        [("a", 0, 1)] * 2,
        [("b", 1, 3)] * 2,
    ] * 2


# Streams


def test_streams_have_no_samples_per_epoch():
    arguments = RegionLearnerTrainingArguments("x", max_steps=1, samples_per_epoch=9, use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match=r"samples_per_epoch has no effect on a stream.*: set it to none"):
        make_train_dataloader([CorpusPart(stream(24, 4), 2)], arguments, list, {})


def read(parts, batches, workers=0, **options):
    stream = TrainingStream(parts, **options)
    loader = StreamLoader(stream, num_workers=workers, collate_fn=list, generator=torch.Generator())
    return list(itertools.islice(loader, batches))


def names(batches):
    return [[row["video_id"] for row in batch] for batch in batches]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_pass_through_a_stream_reads_every_row_once(world_size, workers):
    seen = []
    for rank in range(world_size):
        share = 24 // world_size
        parts = [CorpusPart(stream(24, 4), 2, shuffle_buffer=5)]
        seen += names(read(parts, share // 2, workers, rank=rank, world_size=world_size))
    assert sorted(itertools.chain(*seen)) == sorted(f"a{i}" for i in range(24))


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("count", [2, 3])
def test_a_pass_through_alternating_streams_reads_every_row_once(workers, count):
    """Each loader process has shards of every corpus, so it must draw from all of them."""
    parts = [CorpusPart(stream(24, 12, name), 1, shuffle_buffer=5) for name in "abc"[:count]]
    seen = names(read(parts, 24 * count, workers))
    assert sorted(itertools.chain(*seen)) == sorted(f"{name}{i}" for name in "abc"[:count] for i in range(24))
    if workers < 2:
        assert [batch[0][0] for batch in seen] == list("abc"[:count]) * 24
    resumed = names(read(parts, 24 * count - 5, workers, skip=5))
    assert resumed == seen[5:]


def test_shards_that_processes_cannot_divide():
    """6 shards are read by 4 processes: each process has its own shards, although not equally many."""
    seen = []
    for rank in range(4):
        mine = names(read([CorpusPart(stream(24, 6), 1)], 8, rank=rank, world_size=4))
        seen.append(set(itertools.chain(*mine)))
    assert set.union(*seen) == {f"a{i}" for i in range(24)}
    assert sum(len(part) for part in seen) == 24


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("skip", [1, 4, 11])
def test_a_resumed_stream_continues_where_it_stopped(workers, skip):
    """After 11 batches, the smaller corpus is in its second pass."""
    parts = [CorpusPart(stream(24, 6), 3, shuffle_buffer=7), CorpusPart(rows(9, "b"), 2)]
    options = {"mix": "weighted", "seed": 2}
    whole = read(parts, 16, workers, **options)
    resumed = read(parts, 16 - skip, workers, skip=skip, **options)
    assert resumed == whole[skip:]
    seeds = [row[DRAWN].seed for batch in whole for row in batch]
    assert len(set(seeds)) == len(seeds)


def test_streams_are_reshuffled_in_each_pass():
    batches = names(read([CorpusPart(stream(24, 2), 24, shuffle_buffer=24)], 2))
    assert sorted(batches[0]) == sorted(batches[1])
    assert batches[0] != batches[1]
    assert batches[0] != [f"a{i}" for i in range(24)]


def test_more_loader_processes_than_shards():
    with pytest.raises(ValueError, match="has no rows to read: use fewer loader processes"):
        read([CorpusPart(stream(4, 1), 2)], 4, workers=2)


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epoch(TrainingBatchSampler([CorpusPart(rows(8), 2)]))
    read([CorpusPart(stream(8, 1), 2)], 2)
    assert torch.equal(torch.get_rng_state(), before)

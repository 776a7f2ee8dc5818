"""Tests exact and inverted-list search for the nearest rows against brute force, and damaged or crafted files."""

import json
import logging
import os
import sys

import numpy as np
import pytest

from region_learner.errors import install_hint
from region_learner.search import inverted_lists, nearest
from region_learner.search import vectors as vectors_module
from region_learner.search.inverted_lists import InvertedLists, Quantizer
from region_learner.search.nearest import NearestRows, update_nearest
from region_learner.search.vectors import Vectors

NO_HOLES = np.empty((0, 2), np.int64)
DIM = 12  # not a multiple of 8, so that row numbers are not aligned


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(vectors_module, "ROWS_PER_FILE", 1000)
    monkeypatch.setattr(nearest, "BLOCK_ROWS", 128)
    monkeypatch.setattr(nearest, "BLOCK_QUERIES", 3)
    monkeypatch.setattr(inverted_lists, "_BLOCK_ROWS", 100)
    nearest._has_faiss.cache_clear()


@pytest.fixture
def approximate(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(nearest, "EXACT_ROWS", 500)
    monkeypatch.setattr(nearest, "SCANNED", 5)
    monkeypatch.setattr(nearest, "SCANNED_PER_RESULT", 4)
    monkeypatch.setattr(inverted_lists, "TAIL_ROWS", 100)


def make_rows(rows: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    """Returns clustered unit vectors (rows, dim), some of them equal."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(0).standard_normal((40, dim))
    found = centers[rng.integers(0, 40, rows)] + 0.3 * rng.standard_normal((rows, dim))
    found[rng.integers(0, rows, rows // 20)] = found[0]
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def stored(directory, rows: np.ndarray) -> Vectors:
    vectors = Vectors(directory, rows.shape[1])
    vectors.write(0, rows)
    return vectors


def numbers(ranges) -> np.ndarray:
    return np.array([row for start, stop in ranges for row in range(start, stop)], np.int64)


def brute_force(rows: np.ndarray, queries: np.ndarray, k: int, holes=(), allowed=None):
    """Returns the scores and numbers of the best allowed rows that are not holes. In float64, equal vectors tie."""
    searched = np.setdiff1d(np.arange(len(rows)) if allowed is None else numbers(allowed), numbers(holes))
    scores = np.full((len(queries), k), -np.inf)
    found = np.full((len(queries), k), -1)
    for query, vector in enumerate(queries):
        products = (rows[searched].astype(np.float64) * vector.astype(np.float64)).sum(1)
        order = np.argsort(-products, kind="stable")[:k]
        scores[query, : len(order)], found[query, : len(order)] = products[order], searched[order]
    return scores, found


# --- Exact ------------------------------------------------------------------------------------------------------

ALLOWED = [None, [[0, 2500]], [[3, 4]], [[0, 10], [990, 1010], [2000, 2400]], [[7, 9], [9, 12]], []]


@pytest.mark.parametrize("holes", [[], [[0, 1], [100, 400], [999, 1001], [2400, 2500]], [[0, 2500]]])
@pytest.mark.parametrize("allowed", ALLOWED)
@pytest.mark.parametrize("k", [1, 10, 300, 3000])
def test_exact_equals_brute_force(tmp_path, holes, allowed, k):
    rows = make_rows(2500)
    queries = np.concatenate((rows[[0, 700]], make_rows(5, seed=1)))
    search = NearestRows(stored(tmp_path, rows), tmp_path, 2500, np.array(holes, np.int64).reshape(-1, 2)).search
    scores, found = search(queries, k, None if allowed is None else np.array(allowed, np.int64).reshape(-1, 2))
    expected_scores, expected = brute_force(rows, queries, k, holes, allowed)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-6)
    assert (scores.dtype, found.dtype) == (np.float32, np.int64)


def test_ties_are_in_row_order(tmp_path):
    """In a matrix product, equal vectors can have different scores, depending on their position in a block."""
    rows = np.tile(make_rows(7, dim=67), (150, 1))
    rows[500:] = rows[0]
    nearest_rows = NearestRows(stored(tmp_path, rows), tmp_path, len(rows), NO_HOLES)
    queries = np.concatenate((rows[:1], make_rows(5, seed=1, dim=67)))
    for k in (1, 30, 140, 600):
        scores, found = nearest_rows.search(queries, k)
        same = np.flatnonzero((rows == rows[0]).all(1))
        np.testing.assert_array_equal(found[0], same[:k])
        for query in range(6):
            order = np.lexsort((found[query], -scores[query]))
            np.testing.assert_array_equal(order, np.arange(k))
            tied = found[query][(rows[found[query]] == rows[0]).all(1)]
            np.testing.assert_array_equal(tied, same[: len(tied)])


def test_nearly_equal_scores_are_in_order(tmp_path):
    rows = make_rows(1, dim=67) + 1e-7 * np.random.default_rng(0).standard_normal((3000, 67)).astype(np.float32)
    query = make_rows(1, seed=1, dim=67)
    exact = nearest.inner_products(rows, query[0])
    assert len(np.unique(exact)) < 100
    for k in (1, 5, 50, 500):
        scores, found = NearestRows(stored(tmp_path, rows), tmp_path, len(rows), NO_HOLES).search(query, k)
        expected = np.lexsort((np.arange(len(rows)), -exact))[:k]
        np.testing.assert_array_equal(found[0], expected)
        np.testing.assert_array_equal(scores[0], exact[expected])


def test_only_committed_rows_are_read(tmp_path):
    rows = make_rows(1200)
    vectors = stored(tmp_path, rows)
    _, found = NearestRows(vectors, tmp_path, 900, NO_HOLES).search(rows[1000:1001], 900)
    assert sorted(found[0]) == list(range(900))
    _, found = NearestRows(vectors, tmp_path, 0, NO_HOLES).search(rows[:1], 2)
    np.testing.assert_array_equal(found, [[-1, -1]])
    with pytest.raises(ValueError, match=r"vectors-00001.f32 has 200 vectors instead of 500"):
        NearestRows(vectors, tmp_path, 1500, NO_HOLES).search(rows[:1], 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_damaged_vectors_are_not_found(tmp_path, bad):
    rows = make_rows(600)
    vectors = stored(tmp_path, rows)
    path = tmp_path / "vectors-00000.f32"
    damaged = rows.copy()
    damaged[50:300, 2] = bad
    path.write_bytes(damaged.tobytes())
    queries = rows[[0, 60, 400]]
    scores, found = NearestRows(vectors, tmp_path, 600, NO_HOLES).search(queries, 600)
    expected_scores, expected = brute_force(rows, queries, 600, holes=[[50, 300]])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


def test_refuses_bad_input(tmp_path):
    rows = make_rows(20)
    vectors = stored(tmp_path, rows)
    search = NearestRows(vectors, tmp_path, 20, NO_HOLES).search
    with pytest.raises(ValueError, match=r"queries must have the shape \(Q, 12\), not \(12,\)"):
        search(rows[0], 1)
    with pytest.raises(ValueError, match="embedding of a query is not finite"):
        search(np.full((1, DIM), np.nan), 1)
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        search(rows[:1], 0)
    for ranges in ([[0, 21]], [[-1, 3]], [[5, 4]], [[0, 5], [4, 6]], [[5, 6], [0, 1]]):
        with pytest.raises(ValueError, match="allowed must be sorted disjoint ranges of the 20 rows"):
            search(rows[:1], 1, np.array(ranges))
        with pytest.raises(ValueError, match="holes must be sorted disjoint ranges of the 20 rows"):
            NearestRows(vectors, tmp_path, 20, np.array(ranges))


# --- Inverted lists -----------------------------------------------------------------------------------------------


class Index:
    """Vectors to which rows are added and from which rows are removed, as in a video index."""

    def __init__(self, directory, rows: int, seed: int = 0):
        self.directory, self.rows, self.holes = directory, make_rows(rows, seed), NO_HOLES
        self.vectors = stored(directory, self.rows)

    def add(self, rows: int) -> None:
        added = make_rows(rows, seed=len(self.rows))
        self.vectors.write(len(self.rows), added)
        self.rows = np.concatenate((self.rows, added))

    def remove(self, start: int, stop: int) -> None:
        self.holes = np.array(sorted([*self.holes.tolist(), [start, stop]]), np.int64)

    def update(self) -> None:
        update_nearest(self.vectors, self.directory, len(self.rows), self.holes)

    def open(self) -> NearestRows:
        return NearestRows(Vectors(self.directory, DIM), self.directory, len(self.rows), self.holes)

    def about(self) -> dict:
        return json.loads((self.directory / "nearest.json").read_text())

    def segments(self) -> list[tuple[int, int, int]]:
        return [(segment["start"], segment["stop"], segment["entries"]) for segment in self.about()["segments"]]

    def check(self, k: int = 10, recall: float = 0.95, allowed=None) -> None:
        """Checks recall, that no deleted, disallowed or repeated rows are found, and that scores equal exact ones."""
        opened = self.open()
        queries = np.concatenate((make_rows(8, seed=5), self.rows[:: len(self.rows) // 8]))
        scores, found = opened.search(queries, k, allowed)
        opened._lists = None
        exact_scores, exact = opened.search(queries, k, allowed)
        _, expected = brute_force(self.rows, queries, k, self.holes.tolist(), allowed)
        np.testing.assert_array_equal(exact, expected)
        recalls = []
        for query in range(len(queries)):
            assert len(set(found[query].tolist())) == k
            assert not np.isin(found[query], numbers(self.holes.tolist())).any()
            assert allowed is None or np.isin(found[query], numbers(allowed)).all()
            known = dict(zip(exact[query].tolist(), exact_scores[query].tolist()))
            both = [at for at in range(k) if int(found[query][at]) in known]
            assert [scores[query][at] for at in both] == [known[int(found[query][at])] for at in both]
            order = np.lexsort((found[query], -scores[query]))
            np.testing.assert_array_equal(order, np.arange(k))
            # Any row that scores at least as high as the last exact result counts as found.
            recalls.append(np.mean(scores[query] >= exact_scores[query][-1]))
        assert np.mean(recalls) >= recall


@pytest.fixture
def index(tmp_path, approximate) -> Index:
    made = Index(tmp_path, 3000)
    made.update()
    return made


def test_lists_find_nearly_all(index):
    assert index.segments() == [(0, 3000, 3000)]
    lists = index.open()._lists
    assert lists is not None
    assert lists.probes(index.rows[0], 340, None) < lists.about.lists / 5
    for k in (1, 10, 50):
        index.check(k)


def test_lists_scan_only_a_part(index, monkeypatch):
    """If lists scanned all rows, the recall that other tests check would mean nothing."""
    opened = index.open()
    asked = []
    candidates = InvertedLists.candidates
    monkeypatch.setattr(
        InvertedLists, "candidates", lambda self, *arguments: asked.append(arguments) or candidates(self, *arguments)
    )
    exact = []
    monkeypatch.setattr(opened.vectors, "take", lambda rows: exact.append(len(rows)) or index.rows[rows])
    opened.search(index.rows[:3], 10)
    assert len(asked) == 3
    assert max(exact) <= 10 + 32


def test_small_indexes_have_no_lists(tmp_path, approximate):
    made = Index(tmp_path, 500)
    made.update()
    assert not (tmp_path / "nearest.json").exists()
    made.add(1)
    made.update()
    assert made.segments() == [(0, 501, 501)]
    made.remove(0, 2)
    assert made.open()._lists is None
    made.check(recall=1)


@pytest.mark.parametrize("k", [1, 10, 40])
@pytest.mark.parametrize(
    "allowed",
    [[[5, 6], [700, 1900]], [[0, 3000]], [[1, 2], [2990, 3000]], [[at, at + 7] for at in range(0, 2990, 10)]],
)
def test_allowed_rows(index, allowed, k):
    index.remove(800, 810)
    index.add(50)
    k = min(k, len(numbers(allowed)))
    index.check(k, allowed=np.array(allowed))
    index.check(k, allowed=np.array([*allowed, [3010, 3030]]))


def test_allowed_rows_far_from_the_query(index, monkeypatch):
    """Lists are probed until they hold enough of the allowed rows, wherever these are."""
    opened = index.open()
    assert opened._lists is not None
    right = []
    monkeypatch.setattr(opened, "_blocks", lambda rows: iter(()))  # nothing is searched exactly
    for query in make_rows(10, seed=3):
        far = np.sort(np.argsort(-(index.rows @ query))[1500:2500])
        allowed = np.stack((far, far + 1), axis=1)
        _, found = opened.search(query[None], 10, allowed)
        _, expected = brute_force(index.rows, query[None], 10, allowed=allowed)
        right.append(len(set(found[0]) & set(expected[0])))
        selection = opened._lists.select(np.isin(np.arange(3000), far), few=True)
        assert opened._lists.probes(query, 340, selection) > opened._lists.probes(query, 340, None)
    assert np.mean(right) > 7


def test_new_rows_are_found_before_and_after_an_update(index):
    before = (index.directory / "nearest.json").read_bytes()
    index.add(100)
    index.check()
    index.update()
    assert (index.directory / "nearest.json").read_bytes() == before
    index.add(1)
    index.check()
    index.update()
    assert index.segments() == [(0, 3000, 3000), (3000, 3101, 101)]
    index.check()


def test_new_rows_are_in_the_tail_or_in_lists_but_not_in_both(index):
    index.add(90)
    query = index.rows[3050:3051]
    assert index.open().search(query, 3)[1][0].tolist() == brute_force(index.rows, query, 3)[1][0].tolist()
    index.add(30)
    index.update()
    assert index.open().search(query, 3)[1][0].tolist() == brute_force(index.rows, query, 3)[1][0].tolist()


def test_segments_are_merged_so_that_few_remain(index):
    sizes = []
    for _ in range(20):
        index.add(120)
        index.update()
        sizes.append([stop - start for start, stop, _ in index.segments()])
        assert sum(sizes[-1]) == len(index.rows)
        assert all(large >= 4 * small for large, small in zip(sizes[-1], sizes[-1][1:]))
    assert [3000, 120] in sizes
    assert sizes[-1][0] > 3000
    assert len(list(index.directory.glob("nearest-*"))) == 1 + len(index.segments())
    assert index.about()["trained"] == 3000
    index.check()


def test_lists_are_trained_again_when_rows_double(index):
    index.add(2900)
    index.update()
    assert index.about()["trained"] == 3000
    lists = index.about()["lists"]
    index.add(101)
    index.update()
    assert (index.about()["trained"], index.segments()) == (6001, [(0, 6001, 6001)])
    assert index.about()["lists"] > lists
    assert len(list(index.directory.glob("nearest-*"))) == 2
    index.check()


def test_merged_lists_equal_those_of_a_single_pass(index):
    index.add(1500)
    index.update()
    assert index.segments() == [(0, 4500, 4500)]
    lists = InvertedLists(index.directory, index.vectors)
    np.testing.assert_array_equal(lists._files[0].lists(), lists._quantizer.assign(index.rows))


def test_deleted_rows_are_left_out_and_then_removed(index):
    index.remove(100, 500)
    index.check()
    index.update()
    assert index.segments() == [(0, 3000, 3000)]  # too few rows were removed to rewrite the segment
    index.remove(2000, 2300)
    index.check()
    index.update()
    assert index.segments() == [(0, 3000, 2300)]
    lists = InvertedLists(index.directory, index.vectors)._files[0].lists()
    np.testing.assert_array_equal(np.flatnonzero(lists < 0), numbers(index.holes.tolist()))
    index.check()
    index.remove(0, 5)
    index.add(300)
    index.check()
    index.update()
    index.check()


def test_all_rows_of_a_segment_deleted(index):
    index.add(200)
    index.update()
    assert len(index.segments()) == 2
    index.remove(3000, 3200)
    index.update()
    assert index.segments() == [(0, 3000, 3000), (3000, 3200, 0)]
    index.check()


def test_codes_match_those_of_faiss():
    faiss = pytest.importorskip("faiss")
    rows = make_rows(3000)
    quantizer = Quantizer.train(rows, 30)
    codes = faiss.ScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_8bit)
    codes.train(rows)
    np.testing.assert_allclose(quantizer.ranges.ravel(), faiss.vector_to_array(codes.trained), rtol=1e-6)
    difference = quantizer.codes(rows).astype(int) - codes.compute_codes(rows)
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 1e-3
    assert quantizer.codes(np.array([[-9.0] * DIM, [9.0] * DIM], np.float32)).tolist() == [[0] * DIM, [255] * DIM]


def test_centroids_are_as_good_as_those_of_faiss():
    faiss = pytest.importorskip("faiss")
    rows = make_rows(4000)
    kmeans = faiss.Kmeans(DIM, 60, niter=10, spherical=True, seed=0)
    kmeans.train(rows)
    ours = (rows @ Quantizer.train(rows, 60).centroids.T).max(1).mean()
    assert ours > 0.99 * (rows @ kmeans.centroids.T).max(1).mean()


# --- Interrupted, damaged, crafted --------------------------------------------------------------------------------


class KilledError(Exception):
    pass


def restore(directory, files: dict) -> None:
    for path in directory.iterdir():
        path.unlink()
    for path, content in files.items():
        path.write_bytes(content)


@pytest.mark.parametrize("work", ["first", "add", "merge", "delete", "train"])
def test_killed_at_any_write(tmp_path, approximate, monkeypatch, work):
    """An update that is killed before or after any write leaves a usable index, and another update completes it."""
    made = Index(tmp_path, 1000)
    if work != "first":
        made.update()
    if work == "delete":
        made.remove(0, 300)
    else:
        made.add({"first": 1, "add": 120, "merge": 500, "train": 1100}[work])
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    fatal = calls = 0

    def step() -> None:
        nonlocal calls
        calls += 1
        if calls == fatal:
            raise KilledError

    def dying(original):
        def run(*arguments):
            step()
            original(*arguments)
            step()

        return run

    for name in ("_write_new", "_write_about", "write_json", "sync_directory"):
        monkeypatch.setattr(inverted_lists, name, dying(getattr(inverted_lists, name)))
    complete = False
    while not complete:
        fatal += 1
        restore(tmp_path, files)
        for attempt in range(2):  # killed twice at the same write; the second time, files of the first are left
            calls = 0
            try:
                made.update()
                complete = complete or attempt == 0
            except KilledError:
                pass
            made.check()
    assert fatal > 5
    assert made.segments()[-1][1] == len(made.rows)
    assert len(list(tmp_path.glob("nearest-*"))) == 1 + len(made.segments())


def test_a_half_written_file_is_not_used(index, monkeypatch):
    """A power failure while a new segment is written can leave half of its file."""
    index.add(200)
    monkeypatch.setattr(inverted_lists, "_write_about", lambda *_: (_ for _ in ()).throw(KilledError))
    with pytest.raises(KilledError):
        index.update()
    (newest,) = index.directory.glob("nearest-2.lists")
    newest.write_bytes(newest.read_bytes()[:100])
    index.check()
    monkeypatch.undo()


def test_rereads_files_that_another_process_replaces(index, monkeypatch):
    read, calls = inverted_lists.read_about, []

    def read_and_replace(*arguments):
        about = read(*arguments)
        calls.append(about)
        if len(calls) == 1:  # before the files that it names are opened
            index.add(1000)
            index.update()
        return about

    index.add(3000)  # the reader knows about these rows, but not about those that are added later
    monkeypatch.setattr(inverted_lists, "read_about", read_and_replace)
    opened = index.open()
    assert (calls[0].stop, len(index.rows)) == (3000, 7000)
    assert opened._lists is not None
    assert opened._lists.about.stop == 7000
    _, found = opened.search(index.rows[:6000:100], 10)
    assert (found[:, 0] == np.arange(0, 6000, 100)).mean() > 0.8  # the others equal row 0
    assert found.max() < 6000


def test_keeps_reading_after_another_process_has_replaced_the_files(index):
    opened = index.open()
    expected = opened.search(index.rows[:5], 10)
    index.add(3500)
    index.update()
    assert not (index.directory / "nearest-1.lists").exists()
    for now, before in zip(opened.search(index.rows[:5], 10), expected):
        np.testing.assert_array_equal(now, before)


def damage(path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
        return
    if kind == "empty":
        content.clear()
    elif kind == "short":
        del content[-3:]
    elif kind == "long":
        content += b"\0" * 8
    elif kind == "ones":
        content[-64:] = b"\xff" * 64
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["missing", "empty", "short", "long", "ones"])
@pytest.mark.parametrize("name", ["nearest.json", "nearest-1.f32", "nearest-1.lists"])
def test_damaged_files_are_ignored_with_one_warning_and_rebuilt(index, caplog, name, kind):
    damage(index.directory / name, kind)
    with caplog.at_level(logging.WARNING):
        opened = index.open()
    assert opened._lists is None
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (0 if (name, kind) == ("nearest.json", "missing") else 1)
    assert all(name in message and "\n" not in message for message in messages)
    index.check(recall=1)
    index.update()
    assert index.open()._lists is not None
    index.check()


def test_lists_of_other_vectors_are_ignored(index, tmp_path, caplog):
    other = Vectors(tmp_path, DIM - 1, "other")
    other.write(0, index.rows[:, 1:].copy())
    assert NearestRows(other, tmp_path, 3000, NO_HOLES)._lists is None
    assert "nearest.json does not match the vectors of this index" in caplog.text
    update_nearest(other, tmp_path, 3000, NO_HOLES)
    assert index.about()["dim"] == DIM - 1
    assert NearestRows(other, tmp_path, 3000, NO_HOLES)._lists is not None


def test_lists_with_more_rows_than_the_index_are_rebuilt(index, caplog):
    """After a database is restored from a backup, later rows may be different ones."""
    with caplog.at_level(logging.INFO):
        update_nearest(index.vectors, index.directory, 2000, NO_HOLES)
    assert "nearest.json contains rows that are not in the index. Rebuilding it." in caplog.text
    assert (index.about()["trained"], index.segments()) == (2000, [(0, 2000, 2000)])


ABOUT_CHANGES = [
    {"format": 2},
    {"lists": 0},
    {"lists": -1},
    {"lists": 2**62},
    {"lists": 5.0},
    {"lists": True},
    {"dim": 13},
    {"dim": "12"},
    {"generation": "../1"},
    {"generation": 7},
    {"segments": []},
    {"segments": {}},
    {"segments": [[1, 0, 3000, 3000]]},
    {"segments": [{"number": 1, "start": 0, "stop": 3000}]},
    {"segments": [{"number": 1, "start": 0, "stop": 3000, "entries": 3001}]},
    {"segments": [{"number": 1, "start": 0, "stop": 3000, "entries": 2999}]},
    {"segments": [{"number": 1, "start": 1, "stop": 3000, "entries": 2999}]},
    {"segments": [{"number": 1, "start": 0, "stop": 0, "entries": 0}]},
    {"segments": [{"number": 1, "start": 0, "stop": 2**63, "entries": 3000}]},
    {"segments": [{"number": "../../x", "start": 0, "stop": 3000, "entries": 3000}]},
    {"more": 1},
]


@pytest.mark.parametrize("change", ABOUT_CHANGES, ids=str)
def test_crafted_json_is_refused(index, caplog, change):
    path = index.directory / "nearest.json"
    path.write_text(json.dumps(index.about() | change))
    assert index.open()._lists is None
    assert len(caplog.records) == 1 or "generation" in change
    index.update()
    index.check()


@pytest.mark.parametrize("text", ["[]", "1", "null", "{", "[" * 100_000, '{"format": ' + "9" * 5000 + "}", "\ud800"])
def test_json_of_another_kind_is_refused(index, caplog, text):
    (index.directory / "nearest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert index.open()._lists is None
    assert [record.getMessage().split(".json")[1].split(".")[0] for record in caplog.records] == [" is damaged"]


def test_crafted_row_numbers_and_codes_do_no_harm(index):
    """Lists are not trusted: whatever their bytes are, results are distinct allowed rows with correct scores."""
    path = index.directory / "nearest-1.lists"
    original = path.read_bytes()
    sizes = len(original) - 8 * index.about()["lists"]
    rng = np.random.default_rng(0)
    for kind in ("random", "zeros", "ones", "flips"):
        content = np.frombuffer(original, np.uint8).copy()
        if kind == "flips":
            content[rng.integers(0, sizes, 500)] ^= rng.integers(1, 256, 500).astype(np.uint8)
        else:
            content[:sizes] = {"zeros": 0, "ones": 255, "random": rng.integers(0, 256, sizes)}[kind]
        path.write_bytes(content.tobytes())
        index.check(recall=0)
        index.check(recall=0, allowed=np.array([[50, 2000]]))
        if kind == "random":
            index.remove(100, 300)
            index.check(recall=0)
        index.add(150)
        index.update()
        index.check(recall=0)


def test_fuzzed_files_do_no_harm(index):
    """Random changes to the files neither crash the process nor raise an error, and scores stay correct."""
    files = {path: path.read_bytes() for path in index.directory.glob("nearest*")}
    rng = np.random.default_rng(0)
    used = 0
    for _ in range(150):
        for path, content in files.items():
            changed = np.frombuffer(content, np.uint8).copy()
            at = rng.integers(0, len(changed), rng.integers(0, 3))
            at = np.append(at, len(changed) - rng.integers(1, 8 * 64, rng.integers(0, 2)) % len(changed) - 1)
            changed[at] = rng.integers(0, 256, len(at))
            path.write_bytes(changed.tobytes())
        opened = index.open()
        used += opened._lists is not None
        scores, found = opened.search(index.rows[:2], 5)
        for query in range(2):
            assert len(set(found[query].tolist())) == 5
            np.testing.assert_allclose(scores[query], index.rows[found[query]] @ index.rows[query], atol=1e-6)
    assert used > 10


@pytest.mark.skipif(os.name == "nt", reason="needs links and pipes of POSIX")
@pytest.mark.parametrize("name", ["nearest.json", "nearest-1.f32", "nearest-1.lists", ".nearest.json.partial"])
def test_links_and_pipes_are_not_followed(index, tmp_path_factory, name):
    outside = tmp_path_factory.mktemp("outside") / "file"
    path = index.directory / name
    if path.exists():
        path.rename(outside)
    else:
        outside.write_text("mine")
    before = outside.read_bytes()
    path.symlink_to(outside)
    assert (index.open()._lists is None) == (name[0] != ".")
    index.add(200)
    index.update()
    assert outside.read_bytes() == before
    assert index.open()._lists is not None
    if name[0] != ".":
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        index.check()


def test_without_memory_mapped_lists(index, monkeypatch):
    """FAISS has no memory-mapped lists on Windows."""
    expected = index.open().search(index.rows[:30], 10)
    monkeypatch.delattr("faiss.OnDiskInvertedLists")
    opened = index.open()
    assert opened._lists is not None
    for ours, theirs in zip(opened.search(index.rows[:30], 10), expected):
        np.testing.assert_array_equal(ours, theirs)


def test_directory_whose_name_is_not_utf8(tmp_path, approximate):
    directory = tmp_path / os.fsdecode(b"\xff")
    try:
        directory.mkdir()
    except OSError:
        pytest.skip("the file system takes only names in UTF-8")
    made = Index(directory, 1000)
    made.update()
    assert made.open()._lists is not None
    made.check()


def test_without_faiss(tmp_path, approximate, monkeypatch, caplog):
    made = Index(tmp_path, 1500)
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for _ in range(2):
        made.update()
        made.check(recall=1)
    assert [path.name for path in tmp_path.iterdir() if "nearest" in path.name] == []
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == f"Searching more than 500 vectors is slow without FAISS: {install_hint('search')}"

"""Tests for vectors in files, which are read back across files and by other readers, and for damaged files."""

import os
import re
from functools import partial

import numpy as np
import pytest

from region_learner.search import vectors as module
from region_learner.search.vectors import Vectors


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_FILE", 10)


def random_vectors(rows: int, dim: int = 3) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, dim)).astype(np.float32)


def test_reads_what_was_written(tmp_path):
    expected = random_vectors(47)
    vectors = Vectors(tmp_path, 3)
    assert list(tmp_path.iterdir()) == []
    for start, stop in ((0, 4), (4, 10), (10, 31), (31, 31), (31, 47)):
        vectors.write(start, expected[start:stop])
    names = [f"vectors-{file:05d}.f32" for file in range(5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / names[1]).read_bytes() == expected[10:20].astype("<f4").tobytes()
    for reader in (vectors, Vectors(tmp_path, 3)):
        for start in range(48):
            for stop in range(start, 48):
                np.testing.assert_array_equal(reader.read(start, stop), expected[start:stop])
        rows = np.random.default_rng(0).integers(0, 47, 100)
        np.testing.assert_array_equal(reader.take(rows), expected[rows])
        assert reader.take(np.empty(0, np.int64)).shape == reader.read(5, 5).shape == (0, 3)


def test_reads_views_that_cannot_be_written(tmp_path):
    vectors = Vectors(tmp_path, 3)
    vectors.write(0, random_vectors(20))
    assert np.shares_memory(vectors.read(2, 5), vectors.read(3, 9))
    with pytest.raises(ValueError, match="read-only"):
        vectors.read(2, 5)[0] = 0
    vectors.take(np.array([2]))[0] = 0
    np.testing.assert_array_equal(vectors.read(0, 20), random_vectors(20))


def test_overwrites_what_an_interrupted_run_left(tmp_path):
    first, second = random_vectors(35), random_vectors(40)
    Vectors(tmp_path, 3).write(0, first)
    reader = Vectors(tmp_path, 3)
    before = reader.read(0, 8)
    Vectors(tmp_path, 3).write(8, second[8:])
    np.testing.assert_array_equal(before, first[:8])
    np.testing.assert_array_equal(reader.read(0, 40), np.concatenate((first[:8], second[8:])))


def test_readers_see_rows_appended_by_another(tmp_path):
    expected = random_vectors(25)
    writer, reader = Vectors(tmp_path, 3), Vectors(tmp_path, 3)
    for row in range(25):
        writer.write(row, expected[row : row + 1])
        np.testing.assert_array_equal(reader.read(0, row + 1), expected[: row + 1])
        np.testing.assert_array_equal(reader.take(np.arange(row + 1)), expected[: row + 1])


def test_prefixes_are_separate(tmp_path):
    a, b = Vectors(tmp_path, 3, "a"), Vectors(tmp_path, 3, "b")
    a.write(0, random_vectors(5))
    b.write(0, random_vectors(6))
    np.testing.assert_array_equal(a.read(0, 5), random_vectors(5))
    np.testing.assert_array_equal(b.read(0, 6), random_vectors(6))


def test_is_on_the_disk_when_write_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor)))
    Vectors(tmp_path, 3).write(0, random_vectors(12))
    sizes = {state.st_ino: state.st_size for state in synced}
    for path, rows in ((tmp_path / "vectors-00000.f32", 10), (tmp_path / "vectors-00001.f32", 2)):
        assert sizes[path.stat().st_ino] == rows * 12
    assert tmp_path.stat().st_ino in sizes  # the directory, for the names of new files


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_vectors_that_are_not_finite(tmp_path, bad):
    wrong = random_vectors(15)
    wrong[12, 1] = bad
    with pytest.raises(ValueError, match="Vector 12 of 15 is not finite"):
        Vectors(tmp_path, 3).write(0, wrong)
    assert list(tmp_path.iterdir()) == []


def test_refuses_other_shapes_and_gaps(tmp_path):
    vectors = Vectors(tmp_path, 3)
    for shape in ((3,), (2, 4), (1, 2, 3)):
        with pytest.raises(ValueError, match=re.escape(f"must have the shape (n, 3), not {shape}")):
            vectors.write(0, np.zeros(shape))
    with pytest.raises(ValueError, match="dim=0 must be at least 1"):
        Vectors(tmp_path, 0)
    vectors.write(0, random_vectors(5))
    with pytest.raises(ValueError, match=r"vectors-00000.f32 has 5 vectors instead of 6: it is incomplete"):
        vectors.write(6, random_vectors(1))
    vectors.check(5)


def test_names_damaged_files(tmp_path):
    vectors = Vectors(tmp_path, 3)
    vectors.write(0, random_vectors(25))
    vectors.check(25)
    second = tmp_path / "vectors-00001.f32"
    for content, held in ((second.read_bytes()[:-1], 9), (b"", 0), (None, 0)):
        second.unlink()
        if content is not None:
            second.write_bytes(content)
        fresh = Vectors(tmp_path, 3)
        fresh.check(10)
        for use in (
            partial(fresh.check, 25),
            partial(fresh.check, 20),
            partial(fresh.read, 5, 20),
            partial(fresh.take, np.array([3, 19])),
            partial(fresh.write, 25, random_vectors(1)),
        ):
            with pytest.raises(ValueError, match=f"vectors-00001.f32 has {held} vectors instead of 10") as error:
                use()
            assert "\n" not in str(error.value)
        second.touch()


@pytest.mark.skipif(os.name == "nt", reason="needs links and pipes of POSIX")
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "directory"])
def test_refuses_files_that_are_not_regular(tmp_path, kind):
    outside = tmp_path / "outside.f32"
    outside.write_bytes(random_vectors(10).tobytes())
    path = tmp_path / "index" / "vectors-00000.f32"
    path.parent.mkdir()
    {
        "link": lambda: path.symlink_to(outside),
        "dangling": lambda: path.symlink_to(tmp_path / "new"),
        "pipe": lambda: os.mkfifo(path),
        "directory": path.mkdir,
    }[kind]()
    vectors = Vectors(path.parent, 3)
    for use in (lambda: vectors.read(0, 5), lambda: vectors.write(0, np.zeros((10, 3))), lambda: vectors.check(1)):
        with pytest.raises(ValueError, match=r"vectors-00000.f32 is not a regular file"):
            use()
    assert outside.read_bytes() == random_vectors(10).tobytes()
    assert not (tmp_path / "new").exists()

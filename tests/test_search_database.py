"""Tests of the SQLite file of an index."""

import hashlib
import os
import random
import sqlite3
import struct

import numpy as np
import pytest

from region_learner.search.database import FILE, Database, Record, merged
from region_learner.search.sources import Video


@pytest.fixture
def database(tmp_path):
    return Database.create(tmp_path, {"dim": 4, "rows": 10_000})


def record(name, first_row=0, rows=1, **fields):
    spans = np.arange(2.0 * rows).reshape(-1, 2)
    return Record(Video(name, 10, 20), "/root", "hash", 5.0, spans, first_row)._replace(**fields)


def test_records_come_back(database, tmp_path):
    odd = os.fsdecode(b"/v/\xff.mp4")
    records = [
        record("/v/a.mp4", 0, 3),
        record(odd, 3, 1),
        record("/s.tar/m.mp4", 4, 2, video=Video("/s.tar/m.mp4", 7, 8, 512, "/s.tar")),
        record("/v/bad.mp4", error="damaged", rows=0, sha256=None),
    ]
    with database.transaction():
        for item in records:
            database.put(item)
    reader = Database(tmp_path)
    for item in records:
        found = reader.record(item.video.path)
        assert found.spans.tolist() == item.spans.tolist()
        assert found._replace(spans=0) == item._replace(spans=0)
    assert reader.record("/v/none.mp4") is None
    assert reader.owner(4).video.path == "/s.tar/m.mp4"
    assert reader.owner(3).video.path == odd
    with pytest.raises(ValueError, match="row 6 does not belong to a video"):
        reader.owner(6)
    assert reader.stamps()["/s.tar/m.mp4"] == (7, 8, 512, False, "/root")
    assert reader.stamps()["/v/bad.mp4"][3]


def test_ranges_of_a_folder(database):
    rows = {"/v/a.mp4": (0, 2), "/v/b/c.mp4": (2, 1), "/vv/d.mp4": (3, 1), "/v/e.mp4": (5, 2), "/v.mp4": (7, 1)}
    with database.transaction():
        for path, (first, count) in rows.items():
            database.put(record(path, first, count))
    assert merged(database.rows_within("/v")).tolist() == [[0, 3], [5, 7]]
    assert database.rows_within("/v/").tolist() == [[0, 2], [2, 3], [5, 7]]
    assert database.rows_within("/v/b/c.mp4").tolist() == [[2, 3]]
    assert merged(database.rows_within("/")).tolist() == [[0, 4], [5, 8]]
    assert len(database.rows_within("/x")) == 0


def test_samples_do_not_depend_on_the_order_of_rows(tmp_path):
    """Two indexes of the same 1,000 videos in different orders have the same samples."""
    rng = random.Random(0)
    videos = [(f"/v/{i}.mp4", hashlib.sha256(str(i).encode()).hexdigest(), rng.randrange(1, 5)) for i in range(1000)]
    sampled = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        database = Database.create(tmp_path / name, {"rows": 10_000})
        owner, first = {}, 0
        with database.transaction():
            for path, sha256, rows in videos:
                database.put(record(path, first, rows, sha256=sha256))
                owner |= {first + i: (path, i) for i in range(rows)}
                first += rows
        assert sorted(database.sampled_rows(10**6).tolist()) == list(range(first))
        for count in (100, 1000):
            rows = database.sampled_rows(count).tolist()
            assert count * 0.9 < len(rows) <= count
            assert len(set(rows)) == len(rows)
        sampled.append([owner[row] for row in database.sampled_rows(200).tolist()])
        rng.shuffle(videos)
    assert sampled[0] == sampled[1]


def test_holes_are_the_removed_rows(database):
    rng = random.Random(0)
    rows, owners = 0, {}
    for _ in range(80):
        path = f"/v/{rng.randrange(12)}.mp4"
        with database.transaction():
            if rng.random() < 0.4:
                assert database.remove(path) == (path in owners)
                owners.pop(path, None)
            else:
                count = rng.randrange(4)
                database.put(record(path, rows, count))
                owners[path] = set(range(rows, rows + count))
                rows += count
        holes = database.holes()
        lost = {row for start, stop in holes.tolist() for row in range(start, stop)}
        assert lost == set(range(rows)) - set().union(*owners.values())
        assert (holes[1:, 0] > holes[:-1, 1]).all()  # merged


def test_a_block_that_fails_changes_nothing(database, tmp_path):
    with pytest.raises(ZeroDivisionError), database.transaction():
        assert database.put(record("/v/a.mp4")) or 1 / 0
    assert Database(tmp_path).records() == []


def test_a_commit_that_fails_is_rolled_back(database, tmp_path):
    reader = Database(tmp_path)
    database.execute("PRAGMA busy_timeout=0")
    with reader.snapshot():
        assert reader.records() == []
        with pytest.raises(OSError, match=r"cannot be read or written: database is locked"), database.transaction():
            database.put(record("/v/a.mp4"))
    assert database.records() == []
    with database.transaction():
        database.put(record("/v/b.mp4"))
    assert [item.video.path for item in reader.records()] == ["/v/b.mp4"]


def test_readers_see_one_state(database, tmp_path):
    reader = Database(tmp_path)
    before = reader.version()
    with database.transaction():
        database.put(record("/v/a.mp4"))
    assert reader.version() != before
    assert len(reader.records()) == 1
    with pytest.raises(OSError, match="readonly"):
        reader.put(record("/v/b.mp4"))


def test_files_that_are_not_an_index(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not an index: it has no index"):
        Database(tmp_path)
    (tmp_path / FILE).write_bytes(b"text" * 1000)
    with pytest.raises(ValueError, match="is damaged"):
        Database(tmp_path)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON videos BEGIN DELETE FROM videos; END",
        "CREATE VIEW v AS SELECT * FROM videos",
        "DROP INDEX videos_by_row",
        "CREATE TABLE more (x)",
    ],
)
def test_a_schema_with_anything_else_is_refused(database, tmp_path, statement):
    database.close()
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute(statement)
    connection.commit()
    connection.close()
    with pytest.raises(ValueError, match="not an index of this version"):
        Database(tmp_path)


def test_another_format_is_refused(database, tmp_path):
    with database.transaction():
        database.set_about("format", 99)
    with pytest.raises(ValueError, match="format 99"):
        Database(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        "spans = 'text'",
        "size = 'many'",
        "spans = x'00'",
        "first_row = -1",
        "modified = 1.5",
        "shard = 7",
        "spans = x'000000000000f87f000000000000f87f'",  # NaN
        "spans = x'0000000000000040000000000000f03f'",  # from 2 to 1
        "spans = x'000000000000f03f0000000000000040000000000000000000000000000040'",
        "spans = x'0000000000000000000000000000f07f'",  # to infinity
    ],
)
def test_crafted_values_are_one_line_errors(database, tmp_path, change):
    with database.transaction():
        database.put(record("/v/a.mp4"))
    assert Database(tmp_path).record("/v/a.mp4") is not None
    database.execute(f"UPDATE videos SET {change}")
    with pytest.raises(ValueError, match="is damaged"):
        Database(tmp_path).record("/v/a.mp4")


@pytest.mark.parametrize(
    ("name", "value"), [("vectors", "../../elsewhere"), ("vectors", None), ("rows", -1), ("rows", "1")]
)
def test_crafted_descriptions_are_one_line_errors(database, tmp_path, name, value):
    with database.transaction():
        database.set_about(name, value)
    with pytest.raises(ValueError, match="is damaged"):
        Database(tmp_path)


def test_names_of_vectors_stay_in_the_index(database, tmp_path):
    for name in ("../../x", "vectors", "vectors-0/../..", "/tmp", 7, None):
        database.set_about("vectors", name)
        with pytest.raises(ValueError, match=r"damaged \(vectors\)"):
            database.vectors_directory()
    database.set_about("vectors", "vectors-0")
    (tmp_path / "outside").mkdir()
    (tmp_path / "vectors-0").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="is a symbolic link"):
        database.vectors_directory()


def test_a_journal_that_names_another_file_deletes_nothing(database, tmp_path):
    database.close()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    name, size = os.fsencode(victim), (tmp_path / FILE).stat().st_size
    magic = bytes.fromhex("d9d505f920a163d7")
    header = magic + struct.pack(">5I", 0, 0, size // 4096, 512, 4096)
    ending = struct.pack(">I", 2**30 // 4096 + 1) + name + struct.pack(">2I", len(name), sum(name)) + magic
    (tmp_path / f"{FILE}-journal").write_bytes(header.ljust(512, b"\0") + ending)
    with pytest.raises(ValueError, match="names another file"):
        Database(tmp_path)
    assert victim.exists()


def test_an_index_that_is_a_link_is_refused(database, tmp_path):
    database.close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FILE).symlink_to(tmp_path / FILE)
    with pytest.raises(ValueError, match="links and devices are not allowed"):
        Database(tmp_path / "other")


@pytest.mark.parametrize("change", ["rows = 1000000000000", "first_row = -1", "first_row = 0"])
def test_rows_out_of_range_are_refused(database, change):
    with database.transaction():
        database.put(record("/v/a.mp4", sha256="0a"))
        database.put(record("/v/b.mp4", 1, sha256="0b"))
        database.set_about("rows", 2)
        database.execute(f"UPDATE videos SET {change} WHERE path = ?", [b"/v/b.mp4"])
    for ranges in (lambda: database.rows_within("/v"), lambda: database.sampled_rows(10)):
        with pytest.raises(ValueError, match="is damaged"):
            ranges()


@pytest.mark.parametrize("change", ["path = CAST('http://x/b.mp4' AS BLOB)", "first_row = -1"])
def test_records_that_lead_elsewhere_are_refused(database, change):
    with database.transaction():
        database.put(record("/v/a.mp4"))
        database.execute(f"UPDATE videos SET {change}")
    with pytest.raises(ValueError, match="is damaged"):
        database.records()

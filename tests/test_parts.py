"""Tests the parts that many jobs write, and the index that they are joined into."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from region_learner import VideoIndex
from region_learner.cli import main
from region_learner.files import locked
from region_learner.loading import load_checkpoint
from region_learner.search import embed_videos, embedding, jobs, parts
from region_learner.search.database import Record
from region_learner.search.export import export_index
from region_learner.search.jobs import join_parts
from region_learner.search.parts import PartWriter, list_parts, read_part
from region_learner.search.sources import Video
from region_learner.search.windows import Windows

from .conftest import ROOT
from .search_toys import answers, content, counts, make_video, make_videos, save_checkpoint

WINDOWS = {"window": 4.0, "stride": 2.0, "num_frames": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_checkpoint("clip", tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = make_videos(tmp_path_factory.mktemp("originals"))
    (folder / "bad.mp4").write_bytes(b"\0" * 500)
    return folder


@pytest.fixture
def videos(originals, tmp_path):
    return Path(shutil.copytree(originals, tmp_path / "videos"))


@pytest.fixture
def embed(model, videos, tmp_path):
    def embed(shard=(0, 1), directory="parts", paths=videos, **options):
        return counts(embed_videos(model, paths, tmp_path / directory, shard, **WINDOWS | options))

    return embed


@pytest.fixture
def made_at_once(model, videos, tmp_path):
    index = VideoIndex.create(tmp_path / "at_once", model, **WINDOWS)
    index.update(videos)
    return index


# --- Equality with an index made at once ---------------------------------------------------------------------


def test_joined_shards_equal_an_index_made_at_once(embed, made_at_once, videos, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_WINDOWS", 6)  # several parts per shard
    shares = [embed((number, 3)) for number in (2, 0, 1)]
    assert [sum(share.values()) for share in shares] == [2, 2, 2]
    names = sorted(path.name for path in (tmp_path / "parts").glob("*.parquet"))
    assert {name[:19] for name in names} == {f"part-{number:05}-of-00003" for number in range(3)}
    assert len(names) > 3
    monkeypatch.setattr(embedding, "load_checkpoint", None)  # not called
    index = VideoIndex.from_embeddings(tmp_path / "index", tmp_path / "parts")
    monkeypatch.undo()
    assert content(index) == content(made_at_once)
    assert index.about() == made_at_once.about()
    assert answers(index) == answers(made_at_once)
    assert index.unreadable() == made_at_once.unreadable() != {}
    assert counts(index.update(videos)) == {"unchanged": 5, "unreadable": 1}
    (videos / "a.mp4").unlink()
    assert counts(index.update(videos)) == {"unchanged": 4, "unreadable": 1, "removed": 1}


def test_members_of_shards(embed, model, videos, tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("a.mp4", "b.mp4"):
            tar.add(videos / name, name)
    assert embed(paths=tmp_path / "s.tar") == {"new": 2}
    assert embed(paths=tmp_path / "s.tar") == {"unchanged": 2}
    index = VideoIndex.from_embeddings(tmp_path / "index", tmp_path / "parts")
    other = VideoIndex.create(tmp_path / "other", model, **WINDOWS)
    other.update(tmp_path / "s.tar")
    assert content(index) == content(other)
    assert index.source(f"{tmp_path}/s.tar/a.mp4")["bytes"] == (videos / "a.mp4").read_bytes()


def test_a_damaged_shard_is_named(embed, videos):
    with tarfile.open(videos / "s.tar", "w") as tar:
        tar.add(videos / "a.mp4", "a.mp4")
    os.truncate(videos / "s.tar", 1000)
    assert embed() == {"new": 5, "unreadable": 2}


def test_parts_are_plain_tables(embed, made_at_once, videos, tmp_path):
    """Parts are Parquet tables that other programs can read."""
    embed()
    table = pq.read_table(tmp_path / "parts")
    rows = table.to_pylist()
    for record in made_at_once.database.records():
        own = [row for row in rows if row["path"] == record.video.path]
        if record.error:
            assert [(row["vector"], row["start"], row["error"]) for row in own] == [(None, None, record.error)]
            continue
        assert [(row["start"], row["end"]) for row in own] == [tuple(span) for span in record.spans.tolist()]
        status = os.stat(record.video.path)
        assert {(row["size"], row["modified"], row["sha256"], row["duration"]) for row in own} == {
            (
                status.st_size,
                status.st_mtime_ns,
                record.sha256,
                record.duration,
            )
        }
        vectors = made_at_once._current_view().vectors.read(record.first_row, record.first_row + len(own))
        assert np.array_equal(np.array([row["vector"] for row in own], np.float32), vectors)
    assert len(rows) == sum(max(1, len(record.spans)) for record in made_at_once.database.records())


def test_file_names_that_are_not_utf8_are_reported(embed, videos, tmp_path):
    name = os.fsencode(videos) + b"/\xff.mp4"
    shutil.copy(videos / "a.mp4", name)
    assert embed() == {"new": 5, "unreadable": 2}
    assert embed() == {"unchanged": 5, "unreadable": 2}
    index = VideoIndex.from_embeddings(tmp_path / "index", tmp_path / "parts")
    assert "not UTF-8" in index.unreadable()[f"{videos}/\\xff.mp4"]


def test_an_export_leaves_out_names_that_are_not_utf8(made_at_once, videos, tmp_path, caplog):
    index = made_at_once
    shutil.copy(videos / "a.mp4", os.fsencode(videos) + b"/\xff.mp4")
    index.update(videos)
    windows = sum(len(record.spans) for record in index.database.records() if record.video.path.isascii())
    assert export_index(index, "parquet", str(tmp_path / "out")) == windows
    assert "/\\udcff.mp4 is left out: its name is not UTF-8" in caplog.text
    again = VideoIndex.from_embeddings(tmp_path / "again", tmp_path / "out")
    assert again.paths() == [path for path in index.paths() if path.isascii()]


# --- Resuming ------------------------------------------------------------------------------------------------


def test_videos_in_parts_are_not_embedded_again(embed, model, videos, originals, tmp_path, monkeypatch):
    assert embed() == {"new": 5, "unreadable": 1}
    before = sorted((tmp_path / "parts").glob("*.parquet"))
    read = []
    reading = jobs.read_videos
    monkeypatch.setattr(jobs, "read_videos", lambda jobs, *rest: read.extend(jobs) or reading(jobs, *rest))
    assert embed() == {"unchanged": 5, "unreadable": 1}
    assert read == []
    assert sorted((tmp_path / "parts").glob("*.parquet")) == before
    shutil.copy(originals / "e.mp4", videos / "sub" / "c.mp4")  # changed
    make_video(videos / "f.mp4", 2, seed=9)
    (videos / "a.mp4").unlink()
    shutil.copy(originals / "a.mp4", videos / "bad.mp4")
    index = VideoIndex.from_embeddings(tmp_path / "index", tmp_path / "parts")
    assert embed() == {"new": 2, "changed": 1, "unchanged": 3}
    assert {os.path.basename(job.video.path) for job in read} == {"c.mp4", "f.mp4", "bad.mp4"}
    assert embed() == {"unchanged": 6}
    assert counts(join_parts(index.directory, [tmp_path / "parts"])) == {"new": 2, "changed": 1, "unchanged": 4}
    assert counts(join_parts(index.directory, tmp_path / "parts")) == {"unchanged": 7}
    anew = VideoIndex.create(tmp_path / "anew", model, **WINDOWS)
    anew.update(videos)
    assert index.remove(videos / "a.mp4") == 1  # the parts still contain it
    assert content(index) == content(anew)
    assert answers(index) == answers(anew)


def test_a_run_whose_last_video_fills_a_part_is_finished(embed, videos, originals, tmp_path, monkeypatch):
    embed()
    shutil.copy(originals / "a.mp4", videos / "sub" / "d.mp4")  # changed, but the list of files is the same
    monkeypatch.setattr(parts, "_WINDOWS", 1)
    assert embed()["changed"] == 1
    assert len(VideoIndex.from_embeddings(tmp_path / "index", tmp_path / "parts")) == 5


def test_joining_remembers_the_folder(embed, made_at_once, videos, tmp_path):
    """A video that leaves its list stays in the index after parts of its folder were joined."""
    (tmp_path / "l.txt").write_text(f"{videos}/a.mp4\n{videos}/b.mp4\n")
    made_at_once.remove(videos)
    made_at_once.update(tmp_path / "l.txt")
    embed()
    join_parts(made_at_once.directory, tmp_path / "parts")
    (tmp_path / "l.txt").write_text(f"{videos}/b.mp4\n")
    assert counts(made_at_once.update(tmp_path / "l.txt")) == {"unchanged": 1}
    assert len(made_at_once) == 5


def test_unreadable_files_are_retried_on_request(embed, videos, tmp_path):
    assert embed() == {"new": 5, "unreadable": 1}
    status = os.stat(videos / "bad.mp4")
    content = (videos / "a.mp4").read_bytes()
    (videos / "bad.mp4").write_bytes(content)
    os.truncate(videos / "bad.mp4", status.st_size)  # like a disk that first returned zeros and now works
    os.utime(videos / "bad.mp4", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert embed() == {"unchanged": 5, "unreadable": 1}
    assert len(list((tmp_path / "parts").glob("*.parquet"))) == 1
    embed(retry=True)
    assert len(list((tmp_path / "parts").glob("*.parquet"))) == 2


def test_a_changed_file_may_move_to_another_shard(embed, videos, originals, tmp_path):
    """When files are added, a changed file may move to another shard; the version written last counts."""
    for number in range(2):
        embed((number, 2))
    shutil.copy(originals / "a.mp4", videos / "b.mp4")
    make_video(videos / "0.mp4", 2, seed=9)
    assert embed((0, 2)) == {"new": 1, "changed": 1, "unchanged": 2}
    with pytest.raises(ValueError, match="shards 0 and 1 of 2 list different videos"):
        VideoIndex.from_embeddings(tmp_path / "index", tmp_path / "parts")
    assert embed((1, 2)) == {"unchanged": 2, "unreadable": 1}
    index = VideoIndex.from_embeddings(tmp_path / "index", tmp_path / "parts")
    assert index.duration(str(videos / "b.mp4")) == 3
    assert len(index) == 6


KILLED = """
import os, signal, sys
from region_learner.search import embed_videos, parts

model, videos, output, until = sys.argv[1:]
parts._WINDOWS = 1
count = 0
replace = parts.Path.replace

def counted(self, *arguments):
    global count
    count += 1
    if count == int(until):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, *arguments)

parts.Path.replace = counted
embed_videos(model, videos, output, window=4.0, stride=2.0, num_frames=4)
"""


@pytest.mark.slow
def test_a_killed_job_resumes(model, videos, made_at_once, tmp_path, monkeypatch):
    """The job is killed after writing a part, before the part is renamed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", KILLED, model, str(videos), str(tmp_path / "parts"), "3"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(ValueError, match=r"shard 0/1 is not finished: .* --shard 0/1 to resume it"):
        VideoIndex.from_embeddings(tmp_path / "index", tmp_path / "parts")
    read = []
    reading = jobs.read_videos
    monkeypatch.setattr(jobs, "read_videos", lambda jobs, *rest: read.extend(jobs) or reading(jobs, *rest))
    embed_videos(model, videos, tmp_path / "parts", **WINDOWS)
    assert len(read) == 4
    assert not list((tmp_path / "parts").glob(".*.partial"))
    index = VideoIndex.from_embeddings(tmp_path / "index", tmp_path / "parts")
    assert content(index) == content(made_at_once)


def test_an_interrupted_job_keeps_what_it_has(embed, videos, tmp_path, monkeypatch):
    reading = jobs.read_videos

    def interrupted(*arguments):
        ends = 0
        for video, event in reading(*arguments):
            yield video, event
            ends += type(event).__name__ == "End"
            if ends == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "read_videos", interrupted)
    with suppress(KeyboardInterrupt):
        embed()
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"shard 0/1 is not finished: .* --shard 0/1 to resume it"):
        VideoIndex.from_embeddings(tmp_path / "index", tmp_path / "parts")
    report = embed()
    assert (report["new"], report["unchanged"]) == (2, 3)


# --- What is refused -----------------------------------------------------------------------------------------


def test_another_model_or_other_options(embed, model, videos, tmp_path, made_at_once):
    embed()
    with pytest.raises(
        ValueError, match=r"This run has stride=1, but .*part-00000-of-00001-0000\.parquet has stride=2"
    ):
        embed(stride=1.0)
    with pytest.raises(ValueError, match="num_frames=2, but"):
        embed(num_frames=2)
    with pytest.raises(ValueError, match="has parts of 1 shards, not 2: use --shard I/1"):
        embed((0, 2))
    network, processor = load_checkpoint(model, "retrieval")
    with torch.no_grad():
        next(network.video_model.parameters()).add_(0.1)
    network.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"This run \(.*other\) has other weights than .*0000\.parquet \(.*clip"):
        embed_videos(str(tmp_path / "other"), videos, tmp_path / "parts", **WINDOWS)
    embed_videos(str(tmp_path / "other"), videos, tmp_path / "others", **WINDOWS)
    with pytest.raises(ValueError, match="has other weights than"):
        join_parts(tmp_path / "index", [tmp_path / "parts", tmp_path / "others"])
    with pytest.raises(ValueError, match=r"at_once \(.*has other weights than"):
        join_parts(made_at_once.directory, tmp_path / "others")
    assert not (tmp_path / "index").exists()
    assert counts(join_parts(made_at_once.directory, tmp_path / "parts")) == {"unchanged": 5, "unreadable": 1}
    for shard in ((1, 1), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="from 0 to n - 1"):
            embed(shard)
    with locked(tmp_path / "parts", ".lock-00000"), pytest.raises(BlockingIOError, match="another run"):
        embed()


def test_missing_parts(embed, videos, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_WINDOWS", 1)
    embed((1, 4))

    def join():
        VideoIndex.from_embeddings(tmp_path / "index", tmp_path / "parts")

    with pytest.raises(ValueError, match=r"parts of shards 0/4, 2/4, 3/4: copy .* --shard 0/4"):
        join()
    for number in (0, 2, 3):
        embed((number, 4))
    first = tmp_path / "parts" / "part-00001-of-00004-0000.parquet"
    first.rename(tmp_path / first.name)
    with pytest.raises(ValueError, match=f"parts lacks {first.name}"):
        join()
    (tmp_path / first.name).rename(first)
    make_video(videos / "f.mp4", 2, seed=9)
    embed((2, 4))
    with pytest.raises(ValueError, match="list different videos"):
        join()
    embed(directory="other")
    shutil.copy(tmp_path / "other" / "part-00000-of-00001-0000.parquet", tmp_path / "parts")
    with pytest.raises(ValueError, match="shards of different runs"):
        join()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="does not contain any parts"):
        join_parts(tmp_path / "index", tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        join_parts(tmp_path / "index", tmp_path / "none")
    (tmp_path / "empty" / "x.parquet").touch()
    with pytest.raises(ValueError, match="does not have the name of a part"):
        join_parts(tmp_path / "index", tmp_path / "empty")
    assert not (tmp_path / "index").exists()


def test_several_directories(embed, videos, tmp_path):
    embed(paths=videos / "sub", directory="first")
    embed(paths=[videos / "sub", videos / "a.mp4"], directory="second")
    index = VideoIndex.from_embeddings(tmp_path / "index", [tmp_path / "first", tmp_path / "second"])
    assert len(index) == 3


# --- The command line ----------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys, monkeypatch):
    """Returns a function that runs a command in this process and returns its exit code, output and messages."""
    reading = jobs.read_videos
    monkeypatch.setattr(jobs, "read_videos", lambda jobs, options, workers: reading(jobs, options))

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return end.value.code, *capsys.readouterr()

    return run


def test_commands(run, model, videos, tmp_path, made_at_once):
    options = ["--output", tmp_path / "parts", "--window", "4", "--stride", "2", "--num-frames", "4"]
    code, printed, closing = run("embed", model, videos, *options, "--shard", "0/2")
    assert (code, printed.splitlines()[-1]) == (0, "2 new, 1 unreadable.")
    assert printed.startswith(f"unreadable: {videos}/bad.mp4")
    assert f"Wrote {tmp_path / 'parts'}: shard 0/2" in closing
    code, printed, _ = run("embed", model, videos, *options, "--shard", "1/2", "--json")
    assert code == 0
    assert len(json.loads(printed)["new"]) == 3
    for places in ([tmp_path / "one"], ["--index", tmp_path / "two"]):
        code, printed, closing = run("index", *places, "--from-embeddings", tmp_path / "parts")
        assert code == 0
        assert printed.splitlines()[-1] == "5 new, 1 unreadable."
        assert f"{places[-1]}: 5 videos" in closing
    assert content(VideoIndex.open(tmp_path / "two")) == content(made_at_once)
    code, _, closing = run(
        "index", "export", "--index", tmp_path / "two", "--to", "parquet", "--output", tmp_path / "x"
    )
    assert (code, closing.splitlines()[-1]) == (0, f"Wrote 15 windows to {tmp_path / 'x'}")
    assert content(VideoIndex.from_embeddings(tmp_path / "again", tmp_path / "x")) == content(made_at_once)


def test_wrong_usage(run, model, videos, tmp_path, made_at_once, monkeypatch):
    def message(*arguments):
        code, _, printed = run(*arguments)
        assert code == 2
        return printed

    assert "--output DIR is missing" in message("embed", model, videos)
    assert "Give either VIDEOS" in message("embed", model, "--output", "x")
    for shard in ("4", "4/4", "-1/4", "0/0", "a/b"):
        assert f"must be I/N with I from 0 to N - 1, such as 0/4, not '{shard}'" in message(
            "embed", model, videos, "--output", "x", "--shard", shard
        )
    assert "takes only --index DIR and --json" in message("index", videos, "--index", "x", "--from-embeddings", "p")
    assert "takes only --index DIR and --json" in message("index", "x", "--from-embeddings", "p", "--window", "4")
    assert "takes only --index DIR and --json" in message("index", "--from-embeddings", "p")
    export = ["index", "export", "--index", made_at_once.directory, "--output", tmp_path / "out", "--to"]
    assert "--index DIR, --to FORMAT and" in message(*export[:-1])
    assert "--to 'lanse' is not known; did you mean 'lance'?" in message(*export, "lanse")
    assert "not for Parquet files" in message(*export, "parquet", "--name", "x")
    for engine, package, module in (("lance", "lancedb", "lancedb"), ("qdrant", "qdrant-client", "qdrant_client")):
        monkeypatch.setitem(sys.modules, module, None)
        assert f"needs the package {package}: pip install {package}\n" in message(*export, engine)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    assert "is not empty" in message(*export, "parquet")
    with locked(made_at_once.directory):
        assert "another run" in message(*export, "parquet")


# --- Untrusted parts -----------------------------------------------------------------------------------------

ABOUT = {
    "model": "m", "revision": None, "weights": "0" * 64, "preprocessing": {}, "num_frames": 4, "dim": 4,
    "window": 4.0, "stride": 2.0, "tokens": None, "neutral": np.eye(4, dtype="<f4").tobytes().hex(),
}  # fmt: skip


@pytest.fixture
def written(tmp_path):
    """Writes a part with a video of three windows and an unreadable one; returns a function that alters it."""
    video = Video(str(tmp_path / "v.mp4"), 10, 20)
    spans = np.array([[0, 4], [2, 6], [3, 7.5]])
    windows = Windows(np.eye(4, dtype=np.float32)[:3])
    with PartWriter(tmp_path / "made", ABOUT, 0, 1) as writer:
        (tmp_path / "made").mkdir()
        writer.put(Record(video, "root", "a" * 64, 7.5, spans), windows)
        writer.put(Record(video._replace(path=str(tmp_path / "w.mp4")), "root", error="why"), Windows.empty(ABOUT))
        writer.finish("list")
    path = tmp_path / "made" / "part-00000-of-00001-0000.parquet"
    table = pq.read_table(path)

    def write(change=lambda table: table, **metadata):
        about = json.loads(table.schema.metadata[b"region_learner"])
        about["about"] |= metadata
        changed = change(table).replace_schema_metadata({b"region_learner": json.dumps(about)})
        pq.write_table(changed, path)
        return path

    return write


def joined(path):
    return {record.video.path: record for part in list_parts([path]) for record, _ in read_part(part)}


def column(name, *values):
    def change(table):
        place = table.schema.get_field_index(name)
        return table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))

    return change


ONE = [[1.0, 0, 0, 0]]
DAMAGED = {
    "its vectors are not": [
        column("vector", *ONE * 2, [float("nan"), 0, 0, 1], None),
        column("vector", *ONE * 2, [float("inf"), 0, 0, 1], None),
        column("vector", *ONE * 2, [0.5, 0, 0, 0], None),
        column("vector", *ONE * 2, [1.0, None, 0, 0], None),
        column("vector", *ONE * 2, None, None),
        column("start", 0, 2, None, None),
    ],
    "its windows are not": [
        column("start", 0, 5, 3, None),
        column("start", -1, 2, 3, None),
        column("start", 0, 2, float("nan"), None),
        column("end", 4, 6, 9, None),
        column("end", 4, 1, 7, None),
    ],
    "its rows contradict each other": [
        column("size", 10, 10, 11, 10),
        column("sha256", "a" * 64, "a" * 64, "b" * 64, None),
    ],
    "it has both windows and an error": [column("error", "x", "x", "x", "y"), column("vector", *ONE * 4)],
    "its path is not": [
        column("path", *["v.mp4"] * 3, "/w"),
        column("path", *["/a/../v.mp4"] * 3, "/w"),
        column("path", *["/a\0"] * 3, "/w"),
        column("path", None, None, None, "/w"),
    ],
    "it occurs twice": [column("path", "/a", "/a", "/b", "/a"), lambda table: pa.concat_tables([table] * 2)],
    "it is not a member": [column("shard", *["/other.tar"] * 4), column("offset", 1, 1, 1, 1)],
    "a value is missing": [column("size", None, None, None, 1), column("modified", -1, -1, -1, 1)],
    "its hash or its duration": [
        column("sha256", *["x"] * 3, None),
        column("sha256", *[None] * 4),
        column("duration", *[float("inf")] * 3, None),
        column("duration", *[-1.0] * 3, None),
    ],
    "it does not have the columns": [
        lambda table: table.drop_columns(["root"]),
        lambda table: table.append_column("x", pa.array([1] * 4)),
        lambda table: table.set_column(3, "vector", table["vector"].cast(pa.list_(pa.float32()))),
    ],
}


@pytest.mark.parametrize(("message", "change"), [(why, change) for why in DAMAGED for change in DAMAGED[why]])
def test_damaged_rows(written, message, change):
    assert len(joined(written())) == 2
    path = written(change)
    with pytest.raises(ValueError, match=f"{path.name} is damaged.*{message}"):
        joined(path)


@pytest.mark.parametrize(
    "metadata",
    [
        {"dim": 0}, {"dim": "4"}, {"dim": 2**20}, {"dim": True}, {"num_frames": 0.5}, {"window": "x"}, {"stride": 9},
        {"window": float("nan")}, {"neutral": "x"}, {"neutral": "00" * 16}, {"neutral": "00" * 3}, {"model": 1},
        {"weights": None}, {"preprocessing": []}, {"more": 1}, {"revision": 2},
    ],
)  # fmt: skip
def test_damaged_metadata(written, metadata):
    with pytest.raises(ValueError, match="is not a part of format 1"):
        joined(written(**metadata))


def test_damaged_files(written, monkeypatch):
    path = written()
    content = path.read_bytes()
    for damaged in (b"", b"PAR1", content[:100], content[:-100]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            joined(path)
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(ValueError, match="is not a part of format 1"):
        joined(path)
    written()
    monkeypatch.setattr(parts, "_GROUP", 1)
    with pytest.raises(ValueError, match="row group 0 is too large for a part"):
        joined(path)
    monkeypatch.undo()
    monkeypatch.setattr(parts, "_MOST_PIECES", 0)
    with pytest.raises(ValueError, match="too many windows"):
        joined(path)


def test_flipped_bytes_are_found(written, tmp_path):
    """
    A flip in the values or in the type of a page is an error. A flip elsewhere in the columns may be in bytes that
    nothing reads, but never changes what is read.
    """
    path = tmp_path / "made" / "part-00000-of-00001-0000.parquet"
    original = path.read_bytes()

    def content(flipped=None):
        """Returns what is read after a bit of one byte is flipped."""
        data = bytearray(original)
        if flipped is not None:
            data[flipped] ^= 1
        path.write_bytes(data)
        (part,) = list_parts([path])
        return [(repr(record), windows.vectors.tolist()) for record, windows in read_part(part)]

    whole = content()
    group = pq.read_metadata(path).row_group(0)
    for number in range(group.num_columns):
        column = group.column(number)
        start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        end = start + column.total_compressed_size
        for place in (column.data_page_offset + 1, end - 1):  # Parquet skips pages of another type
            with pytest.raises(ValueError, match="is damaged"):
                content(place)
        for place in range(start, end, 10):
            with suppress(ValueError):
                assert content(place) == whole, place


def test_a_video_over_several_batches(written, monkeypatch):
    path = written()
    monkeypatch.setattr(parts, "_GROUP", 2)
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=2)
    records = joined(path)
    assert [len(record.spans) for record in records.values()] == [3, 0]

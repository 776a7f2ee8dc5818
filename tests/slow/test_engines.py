"""Tests that other engines read exports back, and that jobs on Ray and SLURM give the same embeddings."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from glob import glob
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from region_learner import VideoIndex
from region_learner.search.export import export_index

from ..conftest import ROOT
from ..search_toys import QUERIES, answers, content, make_videos, save_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_checkpoint("clip", tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = make_videos(tmp_path_factory.mktemp("videos"), {f"{n}.mp4": 5 + 5 * n for n in range(8)})
    (folder / "bad.mp4").write_bytes(b"\0" * 500)
    return folder


@pytest.fixture(scope="module")
def index(model, videos, tmp_path_factory):
    index = VideoIndex.create(tmp_path_factory.mktemp("indexes") / "index", model)
    index.update(videos)
    index.remove(videos / "3.mp4")  # leaves a gap in the rows
    return index


@pytest.fixture(scope="module")
def best_rows(index):
    """For each query, its vector and the best windows of the index by brute force, as (path, start, end), score."""
    found = []
    for query in index.embedder.texts(QUERIES):
        rows = []
        for path, (record, vectors) in content(index).items():
            matrix = np.frombuffer(vectors, "<f4").reshape(-1, len(query)).astype(np.float64)
            rows += [((path, *span), score) for span, score in zip(record.spans, matrix @ query)]
        rows.sort(key=lambda row: -row[1])
        found.append((query, rows[:10]))
    for (_, rows), hits in zip(found, index.search(QUERIES)):
        assert rows[0][0][0] == hits[0].path
        assert rows[0][1] == pytest.approx(hits[0].score, abs=1e-6)
    return found


def check(found, expected):
    """Checks the rows that an engine has found, as (path, start, end), score, best first."""
    assert [row for row, _ in found] == [row for row, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)


# --- Exports -------------------------------------------------------------------------------------------------


def test_parquet(index, best_rows, tmp_path):
    count = export_index(index, "parquet", str(tmp_path / "parquet"))
    table = pq.read_table(tmp_path / "parquet")
    table = table.filter(pa.compute.is_null(table["error"]))
    assert len(table) == count == sum(len(record.spans) for record, _ in content(index).values())
    vectors = np.array(table["vector"].to_pylist(), np.float64)
    rows = list(zip(*(table[name].to_pylist() for name in ("path", "start", "end"))))
    for query, expected in best_rows:
        scores = vectors @ query
        check([(rows[place], scores[place]) for place in np.argsort(-scores)[:10]], expected)
    again = VideoIndex.from_embeddings(tmp_path / "again", tmp_path / "parquet")
    assert content(again) == content(index)
    assert answers(again) == answers(index)


def test_lance(index, best_rows, tmp_path):
    lancedb = pytest.importorskip("lancedb")
    count = export_index(index, "lance", str(tmp_path / "lance"), "clips")
    table = lancedb.connect(str(tmp_path / "lance")).open_table("clips")
    assert table.count_rows() == count
    for query, expected in best_rows:
        found = table.search(query).distance_type("cosine").limit(10).to_list()
        check([((row["path"], row["start"], row["end"]), 1 - row["_distance"]) for row in found], expected)
    with pytest.raises(FileExistsError, match="already has a table clips"):
        export_index(index, "lance", str(tmp_path / "lance"), "clips")
    assert table.count_rows() == count


def test_qdrant(index, best_rows, tmp_path):
    qdrant = pytest.importorskip("qdrant_client")
    count = export_index(index, "qdrant", str(tmp_path / "qdrant"))
    with pytest.raises(FileExistsError, match="already has a collection videos"):
        export_index(index, "qdrant", str(tmp_path / "qdrant"))
    client = qdrant.QdrantClient(path=str(tmp_path / "qdrant"))
    assert client.count("videos").count == count
    for query, expected in best_rows:
        points = client.query_points("videos", query=query.tolist(), limit=10).points
        check([((p.payload["path"], p.payload["start"], p.payload["end"]), p.score) for p in points], expected)
    client.close()
    with pytest.raises(OSError, match="localhost:1 refused the export"):
        export_index(index, "qdrant", "http://localhost:1")


@pytest.fixture(scope="module")
def with_tokens(videos, tmp_path_factory):
    """An index with tokens, its windows, and for each query its vector, its weighted words and its MaxSim scores."""
    model = str(save_checkpoint("words", tmp_path_factory.mktemp("words")))
    index = VideoIndex.create(tmp_path_factory.mktemp("indexes") / "words", model)
    index.update(videos)
    windows = index._current_view().windows.read(0, index.database.about("rows"))
    expected = []
    for query in index.embedder.queries(QUERIES):
        words, weights = (part[0].numpy() for part in query.words)
        words = [weight * word for word, weight in zip(words, weights) if weight > 0]
        sums = [sum(max(word @ token for token in tokens[:, 1:].astype("f4")) for word in words)
                for tokens in windows.tokens]  # fmt: skip
        expected.append((query.vector, words, np.array(sums)))
    return index, windows, expected


def test_lance_with_tokens(with_tokens, tmp_path):
    lancedb = pytest.importorskip("lancedb")
    index, windows, _ = with_tokens
    assert export_index(index, "lance", str(tmp_path / "lance")) == len(windows)
    table = lancedb.connect(str(tmp_path / "lance")).open_table("videos").to_arrow().sort_by("id")
    assert np.array_equal(np.array(table["tokens"].to_pylist(), np.float16), windows.tokens[..., 1:])
    assert np.array_equal(np.array(table["token_weights"].to_pylist(), np.float16), windows.tokens[..., 0])


def test_qdrant_with_tokens(with_tokens, tmp_path):
    qdrant = pytest.importorskip("qdrant_client")
    index, windows, expected = with_tokens
    assert export_index(index, "qdrant", str(tmp_path / "qdrant")) == len(windows)
    client = qdrant.QdrantClient(path=str(tmp_path / "qdrant"))
    for vector, words, sums in expected:
        best = client.query_points("videos", query=vector.tolist(), using="vector", limit=5).points
        scores = windows.vectors @ vector
        assert [point.id for point in best] == np.argsort(-scores)[:5].tolist()
        prefetch = qdrant.models.Prefetch(query=vector.tolist(), using="vector", limit=20)
        query = [word.tolist() for word in words]
        points = client.query_points("videos", prefetch=prefetch, query=query, using="tokens", limit=20).points
        near = np.argsort(-scores)[:20]
        assert [point.score for point in points] == pytest.approx(np.sort(sums[near])[::-1].tolist(), abs=2e-3)
        for point in points:
            assert point.score == pytest.approx(sums[point.id], abs=2e-3)
            assert point.payload["token_weights"] == windows.tokens[point.id, :, 0].tolist()
    client.close()


def test_a_failed_export_leaves_nothing(index, tmp_path, monkeypatch):
    """An interrupted export can be repeated under the same name."""
    lancedb, qdrant = pytest.importorskip("lancedb"), pytest.importorskip("qdrant_client")
    from region_learner.search import export

    tables = export._tables

    def breaks_off(index):
        yield from tables(index)
        raise KeyboardInterrupt

    places = {"lance": str(tmp_path / "lance"), "qdrant": str(tmp_path / "qdrant")}
    monkeypatch.setattr(export, "_tables", breaks_off)
    for to, output in places.items():
        with pytest.raises((KeyboardInterrupt, OSError)):
            export_index(index, to, output)
    monkeypatch.undo()
    counts = [export_index(index, to, output) for to, output in places.items()]
    assert lancedb.connect(places["lance"]).open_table("videos").count_rows() == counts[0]
    client = qdrant.QdrantClient(path=places["qdrant"])
    assert client.count("videos").count == counts[1]
    client.close()


# --- Jobs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def at_once(model, videos, tmp_path_factory):
    index = VideoIndex.create(tmp_path_factory.mktemp("indexes") / "at_once", model)
    index.update(videos)
    return index


def kill_a_worker(output: Path, script: subprocess.Popen) -> None:
    """Kills the first process that holds the lock of a shard, which means that it is embedding the shard."""
    while script.poll() is None:
        for link in glob("/proc/[0-9]*/fd/*"):
            with suppress(OSError):  # it is closed, or its process has ended
                if os.readlink(link).startswith(f"{output}/.lock-"):
                    os.kill(int(link.split("/")[2]), signal.SIGKILL)
                    return
        time.sleep(0.01)
    raise AssertionError(script.communicate()[0][-3000:])


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the worker in /proc")
def test_ray(model, videos, at_once, tmp_path):
    pytest.importorskip("ray")
    output = tmp_path / "parts"
    arguments = ["--parts", str(output), "--index", str(tmp_path / "index"), "--shards", "3"]
    script = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "search" / "ray_data.py"), model, str(videos), *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        kill_a_worker(output, script)
        printed, _ = script.communicate(timeout=600)
    finally:
        script.kill()
    assert script.returncode == 0, printed[-5000:]
    assert f"index: {len(at_once)} videos" in printed
    index = VideoIndex.open(tmp_path / "index")
    assert content(index) == content(at_once)
    assert answers(index) == answers(at_once)


def test_slurm(model, videos, at_once, tmp_path):
    """Runs an array of two jobs, the first of which is preempted once."""
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/requeued\n")
    (tmp_path / "scontrol").chmod(0o755)
    output = tmp_path / "parts"

    def start(number):
        return subprocess.Popen(
            ["bash", str(ROOT / "examples" / "search" / "slurm.sh"), model, str(videos), str(output), "2"],
            env=ENVIRONMENT
            | {"PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}", "SLURM_ARRAY_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"}
            | {"SLURM_ARRAY_TASK_ID": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )

    job = start(0)
    while job.poll() is None and not (output / ".lock-00000").exists():
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    _, printed = job.communicate(timeout=300)
    assert job.returncode == 143, printed
    assert "Run the same command again to" in printed
    assert (tmp_path / "requeued").read_text() == "requeue 7_0\n"
    for number in range(2):
        job = start(number)
        _, printed = job.communicate(timeout=300)
        assert job.returncode == 0, printed
        assert f"shard {number}/2" in printed
    index = VideoIndex.from_embeddings(tmp_path / "index", tmp_path / "parts")
    assert content(index) == content(at_once)
    assert answers(index) == answers(at_once)

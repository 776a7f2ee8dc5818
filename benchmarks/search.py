"""
Measures nearest-vector search, compared with plain FAISS, NumPy and LanceDB, at the sizes of an index of videos.

    python benchmarks/search.py [--rows 100000 1000000] [--dim 256] [--queries 200] [--engines ours numpy ...]
                                [--directory DIR] [--json FILE]

The vectors resemble those of windows of videos: L2-normalized, 60 windows per video on average, videos within topics
of unequal sizes, scenes within videos, a common mean direction, and variances that decrease from one dimension to the
next. Half of the queries are like texts, in a cone of their own (their best scores are far below 1), and half like
other windows. Each engine builds its index in one process, and loads and searches it in another, one query at a time,
with the files in the system's cache. "exact" is the recall against all inner products, for 10 and 100 results. Memory
is what loading and searching add to the process. Pages of mapped files, which the system takes back when it needs
memory, are counted separately (on Linux). Engines that are not installed are named and left out. At 1,000,000 rows,
HNSW and LanceDB take several minutes each.
"""

import argparse
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from measuring import about, described

BLOCK = 2**15
KS = (10, 100)


# --- Data -------------------------------------------------------------------------------------------------------


def directions(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """Returns random vectors (rows, dim), of length 1 on average, with decreasing variances."""
    scale = np.arange(1, dim + 1, dtype=np.float32) ** -0.35
    return rng.standard_normal((rows, dim), dtype=np.float32) * (scale / np.linalg.norm(scale))


def make_data(directory: Path, rows: int, dim: int, queries: int) -> None:
    """Writes vectors.npy (rows, dim), queries.npy (queries, dim), and best.npy, the best rows of the queries."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
    cones = directions(rng, 2, dim)
    topics = directions(rng, max(50, rows // 1000), dim)
    videos = np.repeat(np.arange(rows), rng.geometric(1 / 60, rows))[:rows]  # the video of each row
    popular = rng.zipf(1.3, videos[-1] + 1) % len(topics)
    wanted = np.sort(rng.choice(rows, queries, replace=False))
    vectors = np.lib.format.open_memmap(directory / "vectors.npy", "w+", np.float32, (rows, dim))
    meanings = []
    for start in range(0, rows, BLOCK):
        video = videos[start : start + BLOCK]
        first = video[0]
        own = topics[popular[first : video[-1] + 1]] + 0.8 * directions(
            np.random.default_rng([1, first]), video[-1] + 1 - first, dim
        )
        scenes = np.cumsum(rng.random(len(video)) < 0.3)
        meaning = own[video - first] + 0.6 * directions(rng, scenes[-1] + 1, dim)[scenes]
        block = cones[0] + meaning + 0.3 * directions(rng, len(video), dim)
        vectors[start : start + len(block)] = normalized(block @ rotation)
        meanings.append(meaning[wanted[(wanted >= start) & (wanted < start + BLOCK)] - start])
    meaning = np.concatenate(meanings)
    noise = directions(rng, queries, dim)
    is_text = np.arange(queries)[:, None] % 2 == 0
    asked = np.where(is_text, cones[1] + 0.6 * meaning + 0.8 * noise, cones[0] + meaning + 0.5 * noise)
    asked = normalized(asked @ rotation)
    np.save(directory / "queries.npy", asked)
    np.save(directory / "best.npy", exact_rows(vectors, asked, max(KS)))


def normalized(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def exact_rows(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(vectors), BLOCK):
        more = queries @ vectors[start : start + BLOCK].T
        scores = np.append(scores, more, axis=1)
        rows = np.append(rows, np.broadcast_to(np.arange(start, start + more.shape[1]), more.shape), axis=1)
        order = np.argsort(-scores, axis=1)[:, :k]
        scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    return rows


# --- Engines: `build(vectors, directory)`, and `load(dim, directory)`, which returns `search(query, k)`. -------------


class NumPy:
    name, needs = "NumPy, exact", "numpy"

    def build(self, vectors: np.ndarray, directory: Path) -> None:
        vectors.tofile(directory / "vectors.f32")

    def load(self, dim: int, directory: Path):
        vectors = np.fromfile(directory / "vectors.f32", np.float32).reshape(-1, dim)

        def search(query: np.ndarray, k: int) -> np.ndarray:
            scores = vectors @ query
            best = np.argpartition(-scores, k)[:k]
            return best[np.argsort(-scores[best])]

        return search


class Ours:
    name, needs = "ours", "region_learner.search.nearest"

    def build(self, vectors: np.ndarray, directory: Path) -> None:
        from region_learner.search.nearest import update_nearest
        from region_learner.search.vectors import Vectors

        stored = Vectors(directory, vectors.shape[1])
        for start in range(0, len(vectors), BLOCK):
            stored.write(start, vectors[start : start + BLOCK])
        update_nearest(stored, directory, len(vectors), np.empty((0, 2), np.int64))

    def load(self, dim: int, directory: Path):
        from region_learner.search.nearest import NearestRows
        from region_learner.search.vectors import Vectors

        rows = sum(path.stat().st_size for path in directory.glob("vectors-*.f32")) // (4 * dim)
        nearest = NearestRows(Vectors(directory, dim), directory, rows, np.empty((0, 2), np.int64))
        return lambda query, k: nearest.search(query[None], k)[1][0]


class Faiss:
    needs = "faiss"

    def __init__(self, name: str, factory: str, parameters: str):
        self.name, self.factory, self.parameters = name, factory, parameters

    def build(self, vectors: np.ndarray, directory: Path) -> None:
        import faiss

        lists = 2 ** round(np.log2(4 * len(vectors) ** 0.5))
        index = faiss.index_factory(vectors.shape[1], self.factory.format(lists=lists), faiss.METRIC_INNER_PRODUCT)
        sample = np.sort(np.random.default_rng(0).choice(len(vectors), min(len(vectors), 64 * lists), replace=False))
        index.train(vectors[sample])
        for start in range(0, len(vectors), BLOCK):
            index.add(np.ascontiguousarray(vectors[start : start + BLOCK]))
        faiss.write_index(index, str(directory / "index.faiss"))

    def load(self, dim: int, directory: Path):
        import faiss

        index = faiss.read_index(str(directory / "index.faiss"))
        if self.parameters:
            faiss.ParameterSpace().set_index_parameters(index, self.parameters)
        return lambda query, k: index.search(query[None], k)[1][0]


class LanceDB:
    name, needs = "LanceDB IVF_RQ, refined", "lancedb"

    def build(self, vectors: np.ndarray, directory: Path) -> None:
        import lancedb
        import pyarrow as pa
        from lancedb.index import IvfRq

        def batches():
            for start in range(0, len(vectors), BLOCK):
                block = np.ascontiguousarray(vectors[start : start + BLOCK])
                column = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), vectors.shape[1])
                numbers = pa.array(np.arange(start, start + len(block)))
                yield pa.RecordBatch.from_arrays([numbers, column], ["row", "vector"])

        schema = pa.schema([("row", pa.int64()), ("vector", pa.list_(pa.float32(), vectors.shape[1]))])
        table = lancedb.connect(directory).create_table(
            "windows", pa.RecordBatchReader.from_batches(schema, batches())
        )
        table.create_index("vector", config=IvfRq(distance_type="dot"))

    def load(self, dim: int, directory: Path):
        import lancedb

        table = lancedb.connect(directory).open_table("windows")

        def search(query: np.ndarray, k: int) -> np.ndarray:
            found = table.search(query).distance_type("dot").nprobes(64).refine_factor(10).select(["row", "_distance"])
            return found.limit(k).to_arrow()["row"].to_numpy()

        return search


ENGINES: dict[str, Any] = {
    "ours": Ours(),
    "numpy": NumPy(),
    "flat": Faiss("FAISS SQ8, flat", "SQ8", ""),
    "ivf": Faiss("FAISS IVF-SQ8, 64 probes", "IVF{lists},SQ8", "nprobe=64"),
    "hnsw": Faiss("FAISS HNSW32-SQ8, efSearch 128", "HNSW32_SQ8", "efSearch=128"),
    "lancedb": LanceDB(),
}


# --- Measuring --------------------------------------------------------------------------------------------------


def build(engine: str, data: Path, directory: Path) -> dict[str, float]:
    vectors = np.load(data / "vectors.npy", mmap_mode="r")
    start = time.perf_counter()
    ENGINES[engine].build(vectors, directory)
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return {"build_seconds": seconds, "disk_bytes": size}


def query(engine: str, data: Path, directory: Path) -> dict[str, float]:
    queries, best = np.load(data / "queries.npy"), np.load(data / "best.npy")
    importlib.import_module(ENGINES[engine].needs)
    before = _memory()
    start = time.perf_counter()
    search = ENGINES[engine].load(queries.shape[1], directory)
    result: dict[str, float] = {"load_seconds": time.perf_counter() - start}
    for k in KS:
        for one in queries[: len(queries) // 4]:  # warms up
            search(one, k)
        seconds, recalls = [], []
        for one, expected in zip(queries, best):
            start = time.perf_counter()
            rows = search(one, k)
            seconds.append(time.perf_counter() - start)
            recalls.append(len(set(rows.tolist()) & set(expected[:k].tolist())) / k)
        result |= {f"ms@{k}": 1000 * statistics.median(seconds), f"recall@{k}": statistics.mean(recalls)}
        result |= {f"recall@{k}_texts": statistics.mean(recalls[::2])}
    own, mapped = (now - then for now, then in zip(_memory(), before))
    return result | {"memory_bytes": own, "mapped_bytes": mapped}


def _memory() -> tuple[int, int]:
    """Returns the memory of this process without pages of mapped files, and the memory of these pages."""
    info = psutil.Process().memory_info()
    return info.rss - info.shared, info.shared


def in_own_process(phase: str, engine: str, data: Path, directory: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--phase", phase, engine, str(data), str(directory)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(engine: str, data: Path) -> dict[str, float]:
    directory = data / engine
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    try:
        return in_own_process("build", engine, data, directory) | in_own_process("query", engine, data, directory)
    finally:
        shutil.rmtree(directory)


COLUMNS = (
    "engine",
    "ms, 10",
    "exact, 10",
    "ms, 100",
    "exact, 100",
    "load s",
    "build s",
    "disk MB",
    "memory MB",
    "mapped MB",
)


def table_row(name: str, result: dict[str, float]) -> str:
    cells = [name]
    for k in KS:
        cells += [f"{result[f'ms@{k}']:.2f}", f"{result[f'recall@{k}']:.3f}"]
    cells += [f"{result['load_seconds']:.2f}", f"{result['build_seconds']:.0f}"]
    cells += [f"{result[name] / 1e6:,.0f}" for name in ("disk_bytes", "memory_bytes", "mapped_bytes")]
    return f"| {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=[name for name in ENGINES if name != "hnsw"])
    parser.add_argument("--directory", type=Path, help="directory to write files to; by default a temporary one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--phase", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        phase, engine, data, directory = options.phase
        print(json.dumps({"build": build, "query": query}[phase](engine, Path(data), Path(directory))))
        return
    where = about("cpu", "numpy", "faiss-cpu", "lancedb")
    print(described(where))
    results = []
    for rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.directory) as made:
            make_data(Path(made), rows, options.dim, options.queries)
            print(f"\n{rows:,} vectors of {options.dim} dimensions\n")
            print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
            for engine in options.engines:
                if not importlib.util.find_spec(ENGINES[engine].needs):
                    print(f"| {ENGINES[engine].name} | not installed: {ENGINES[engine].needs} |")
                    continue
                result = measure(engine, Path(made))
                print(table_row(ENGINES[engine].name, result), flush=True)
                results.append({"rows": rows, "engine": engine} | result)
    if options.json:
        options.json.write_text(json.dumps({"about": where, "dim": options.dim, "rows": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()

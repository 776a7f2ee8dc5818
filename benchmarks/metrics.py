"""
Measures time and memory of retrieval metrics in both directions, compared with NumPy on the whole matrix of scores.

    python benchmarks/metrics.py [--large] [--dim 256] [--repeats 3] [--threads N] [--json FILE]

The cases are 10,000 texts with 10,000 videos, and 10,000 texts with 2,000 videos that have 1 to 9 captions each.
`--large` adds 100,000 texts with 1,000,000 videos, whose matrix of scores would take 400 GB. Each case runs in its own
process, on the same embeddings (float32, L2-normalized). Results are compared before times. The plain implementation
is straightforward NumPy code. It runs in float32, in which ranks can differ because of the last bits of scores, and in
float64, in which ranks are equal. Times are medians. "CPU s" adds up all threads, and depends less on other load. Peak
memory is for the whole process, including imports and embeddings, and "added" is what the metrics add to it.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from measuring import about, described
from region_learner.evaluation import retrieval_metrics

# Numbers of texts and videos, and the implementations to compare.
CASES = {
    "pairs": (10_000, 10_000, ("ours", "plain float32", "plain float64")),
    "captions": (10_000, 2_000, ("ours", "plain float32", "plain float64")),
    "large": (100_000, 1_000_000, ("ours",)),
}


def embeddings(case: str, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns texts (texts, dim), videos (videos, dim), and the index of the video of each text, (texts,)."""
    texts, videos, _ = CASES[case]
    rng = np.random.default_rng(0)
    if case == "captions":
        counts = 1 + rng.multinomial(texts - videos, np.full(videos, 1 / videos))
        owners = rng.permutation(np.repeat(np.arange(videos), counts))
    else:
        owners = rng.permutation(videos)[:texts]
    video = rng.standard_normal((videos, dim), dtype=np.float32)
    video /= np.linalg.norm(video, axis=1, keepdims=True)
    # Captions that rank their video first among 10,000 about half of the time.
    text = video[owners] + rng.standard_normal((texts, dim), dtype=np.float32) * np.float32(0.24)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    return text, video, owners


def plain_ranks(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Returns the ranks for `scores` (queries, gallery), where `relevant` marks the correct entries."""
    best = np.where(relevant, scores, -np.inf).max(1, keepdims=True)
    return 1 + (scores > best).sum(1) + ((scores == best).sum(1) - 1) / 2


def plain_metrics(text: np.ndarray, video: np.ndarray, owners: np.ndarray, dtype: str) -> dict[str, float]:
    scores = text.astype(dtype) @ video.astype(dtype).T
    if dtype == "float64":
        scores = scores.round(10)
    relevant = owners[:, None] == np.arange(len(video))
    described = relevant.any(0)
    result = {}
    for prefix, ranks in (
        ("t2v", plain_ranks(scores, relevant)),
        ("v2t", plain_ranks(scores.T[described], relevant.T[described])),
    ):
        recalls = {k: float(100 * np.mean(ranks <= k)) for k in (1, 5, 10, 50)}
        result |= {f"{prefix}_R@{k}": value for k, value in recalls.items()}
        result[f"{prefix}_MedR"], result[f"{prefix}_MeanR"] = float(np.median(ranks)), float(np.mean(ranks))
        result[f"{prefix}_gmean"] = float(np.cbrt(recalls[1] * recalls[5] * recalls[10]))
    return result


def peak() -> int:
    """Returns the peak memory of this process in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


def measure(case: str, implementation: str, dim: int, repeats: int) -> dict:
    text, video, owners = embeddings(case, dim)
    before = peak()
    seconds, cpu_seconds = [], []
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        if implementation == "ours":
            metrics = retrieval_metrics(text, video, owners, range(len(video)))
        else:
            metrics = plain_metrics(text, video, owners, implementation.split()[1])
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    return {
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(cpu_seconds),
        "peak_bytes": peak(),
        "added_bytes": peak() - before,
        "metrics": metrics,
    }


def in_own_process(case: str, implementation: str, options: argparse.Namespace) -> dict:
    repeats = 1 if case == "large" else options.repeats
    command = [sys.executable, __file__, "--measure", case, implementation]
    command += ["--dim", str(options.dim), "--repeats", str(repeats), "--threads", str(options.threads)]
    environment = os.environ | dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(options.threads)
    )
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="also 100,000 x 1,000,000: minutes, and 3 GB of memory")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        torch.set_num_threads(options.threads)
        print(json.dumps(measure(*options.measure, options.dim, options.repeats)))
        return
    torch.set_num_threads(options.threads)
    where = about("cpu", "numpy")
    print(described(where))
    columns = ("texts", "videos", "implementation", "seconds", "CPU s", "peak GiB", "added GiB", "t2v R@1", "v2t R@1")
    print(" | ".join(f"{column:>14}" for column in columns), flush=True)
    rows = []
    for case in CASES if options.large else [case for case in CASES if case != "large"]:
        texts, videos, implementations = CASES[case]
        results = {name: in_own_process(case, name, options) for name in implementations}
        ours = results["ours"]["metrics"]
        for name, result in results.items():
            for key, value in result["metrics"].items():
                # Small enough to notice a rank that differs for one of a thousand texts in float32.
                allowed = 1e-9 if name == "plain float64" else 1e-3 * abs(ours[key])
                if abs(value - ours[key]) > allowed:
                    raise SystemExit(f"{case}: {key} is {ours[key]}, with {name} {value}")
            cells = (
                f"{texts:,}",
                f"{videos:,}",
                name,
                f"{result['seconds']:.2f}",
                f"{result['cpu_seconds']:.2f}",
                f"{result['peak_bytes'] / 2**30:.2f}",
                f"{result['added_bytes'] / 2**30:.2f}",
                f"{result['metrics']['t2v_R@1']:.2f}",
                f"{result['metrics']['v2t_R@1']:.2f}",
            )
            print(" | ".join(f"{cell:>14}" for cell in cells), flush=True)
            rows.append({"texts": texts, "videos": videos, "implementation": name} | result)
    if options.json:
        options.json.write_text(json.dumps({"about": where, "dim": options.dim, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

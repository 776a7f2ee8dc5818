"""Runs every script in `benchmarks/` at its smallest size. Of the measurements, only counts are checked."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ..conftest import ROOT
from ..test_video_processing import write_video

SMALLEST = {
    "attention": ["--size", "tiny", "--frames", "2", "--repetitions", "1"],
    "codebook": ["--steps", "1"],
    "decoding": ["VIDEOS", "--frames", "2", "--repeats", "1", "--no-rivals"],
    "embedding": ["VIDEOS", "--size", "small", "--frames", "2", "--workers", "1", "--repeats", "1"],
    "features": ["VIDEOS", "--frames", "2", "--batch", "2", "--steps", "1"],
    "feeding": ["VIDEOS", "--frames", "2", "--batch", "2", "--workers", "0", "1", "--passes", "1"],
    "indexing": ["VIDEOS", "--size", "small", "--frames", "2", "--workers", "1", "--repeats", "1"],
    "metrics": ["--dim", "8", "--repeats", "1"],
    "model": ["--batch", "2", "--frames", "2", "--image-size", "32", "--codes", "16", "--repetitions", "1"],
    "quantization": ["--steps", "1"],
    "recipe": ["--steps", "4", "--train", "16", "--test", "8", "--batch", "8", "--workers", "1", "--no-compile"],
    "search": ["--rows", "2000", "--dim", "8", "--queries", "4", "--engines", "ours", "numpy", "flat"],
    "speed": ["--size", "tiny", "--frames", "2", "--dtypes", "fp32", "--repeats", "1"],
    "starting": ["--repeats", "1"],
    "training": ["--size", "small", "--batch", "2", "--frames", "1", "--repeats", "1", "--price", "1"],
}


MODULES = {"measuring", "plain"}  # imported by scripts


def test_all_scripts_are_known():
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} == SMALLEST.keys() | MODULES


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", SMALLEST)
def test_script_runs(name, tmp_path):
    if name == "quantization":
        pytest.importorskip("torchao")
    videos, result = tmp_path / "videos", tmp_path / "result.json"
    videos.mkdir()
    for number in range(2):
        write_video(videos / f"{number}.mp4", count=20)
    options = [str(videos) if option == "VIDEOS" else option for option in SMALLEST[name]]
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *options, "--json", str(result)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # other tests may run at the same time
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    where = json.loads(result.read_text())["about"]
    assert where["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"device", "cpu", "threads", "python"} <= where.keys()


def run_gpu_script(
    output: Path, *parts: str, python: Path | str = sys.executable, **environment: str
) -> subprocess.CompletedProcess:
    path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "benchmarks/gpu.sh", str(output), *parts],
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"} | environment,
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_parts_of_the_gpu_script_run_on_a_cpu(tmp_path):
    parts = ["memory", "eager", "regions", "inference", "recipe", "compiled", "compiled_peers", "frames", "videos"]
    output, videos = tmp_path / "output", tmp_path / "videos"
    videos.mkdir()
    for number in range(2):
        write_video(videos / f"{number}.mp4", count=20)
    done = run_gpu_script(output, "tests", *parts, SIZE="tiny", DEVICE="cpu", VIDEOS=str(videos))
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    lines = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert [line["part"] for line in lines] == [*parts, "videos", "videos"]
    assert {path.name for path in output.iterdir()} == {"results.jsonl", *(f"{x}.log" for x in ("tests", *parts))}


@pytest.mark.parametrize(
    ("parts", "environment", "message"),
    [
        (["speed"], {}, "speed is not a part of this script"),
        (["videos"], {}, "videos needs a directory: set VIDEOS=DIRECTORY"),
        (["small"], {"SIZE": "tiny", "DEVICE": "cpu"}, "SIZE=tiny has no part small: leave it out"),
        (["memory"], {"DEVICE": "cpu"}, "SIZE=base with DEVICE=cpu is not supported"),
    ],
)
def test_the_gpu_script_refuses(tmp_path, parts, environment, message):
    done = run_gpu_script(tmp_path / "output", *parts, **environment)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "output").exists()


def test_the_default_parts_of_the_gpu_script_end_within_nine_minutes():
    script = (ROOT / "benchmarks" / "gpu.sh").read_text()
    parts = re.search(r"set -- ([a-z_ ]+)\n", script)[1].split()
    limits = {part: int(re.search(rf"{part}\) (?:run|measure) {part} (\d+)", script)[1]) for part in parts}
    assert sum(limits.values()) <= 540
    for part, limit in limits.items():
        assert re.search(rf"# \| {part} \|.*\| {limit} \|", script), part


def measuring():
    spec = importlib.util.spec_from_file_location("measuring", ROOT / "benchmarks" / "measuring.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("with_mask", [False, True])
def test_operations_of_attention_are_counted(with_mask):
    batch, heads, queries, keys, width = 2, 3, 5, 7, 8
    query = torch.randn(batch, heads, queries, width, requires_grad=True)
    key, value = (torch.randn(batch, heads, keys, width, requires_grad=True) for _ in range(2))
    mask = torch.zeros(queries, keys) if with_mask else None
    product = 2 * batch * heads * queries * keys * width

    def attend():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    count = measuring().count_flops
    # Scores and their product with the values; backward, the scores once more, and two products for each of these.
    assert count(attend) == 2 * product
    assert count(lambda: attend().sum().backward()) == (2 + 5) * product
    linear = torch.nn.Linear(width, 4)
    assert count(lambda: linear(attend())) == 2 * product + 2 * batch * heads * queries * width * 4


# In place of Python: writes the results and runs that a script would, and prints its arguments.
STAND_IN = f"""#!/bin/bash
if [[ $1 == -c ]]; then exec {sys.executable} "$@"; fi
echo "$@"
while (($#)); do
    if [[ $1 == --json ]]; then echo '{{"rows": []}}' > "$2"; fi
    if [[ $1 == --output ]]; then mkdir -p "$2/corpus" && touch "$2/shapes_96.jsonl" "$2/corpus/clips.npy"; fi
    shift
done
exit ${{STATUS:-0}}
"""


@pytest.mark.parametrize("status", [0, 3])
def test_the_gpu_script_writes_few_files_and_goes_on_after_a_failure(tmp_path, status):
    stand_in = tmp_path / "bin" / "python"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    work, output = tmp_path / "work", tmp_path / "output"
    work.mkdir()
    environment = {"TMPDIR": str(work), "STATUS": str(status)}
    done = run_gpu_script(output, python=stand_in, **environment)
    assert done.returncode == (1 if status else 0)
    parts = ["memory", "eager", "regions", "inference", "recipe", "compiled"]
    assert {path.name for path in output.iterdir()} == {"results.jsonl", "tests.log", *(f"{x}.log" for x in parts)}
    lines = (output / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"part": part, "rows": []} for part in parts]
    done = run_gpu_script(output, "small", python=stand_in, **environment)
    assert done.returncode == (1 if status else 0)
    assert len((output / "small.log").read_text().splitlines()) == 2
    assert (output / "shapes_96.jsonl").exists()
    assert not any(work.iterdir())

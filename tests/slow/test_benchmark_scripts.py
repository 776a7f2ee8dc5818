"""Runs every script in `benchmarks/` at its smallest size. The measurements are not checked."""

import json
import os
import subprocess
import sys

import pytest

from ..conftest import ROOT
from ..test_video_processing import write_video

SMALLEST = {
    "codebook": ["--steps", "1"],
    "decoding": ["VIDEOS", "--frames", "2", "--repeats", "1", "--no-rivals"],
    "features": ["VIDEOS", "--frames", "2", "--batch", "2", "--steps", "1"],
    "feeding": ["VIDEOS", "--frames", "2", "--batch", "2", "--workers", "0", "1"],
    "metrics": ["--dim", "8", "--repeats", "1"],
    "model": ["--batch", "1", "--frames", "2", "--image-size", "32", "--codes", "16", "--repetitions", "1"],
    "quantization": ["--steps", "1"],
    "training": ["--size", "small", "--batch", "2", "--frames", "1", "--repeats", "1", "--price", "1"],
}


def test_all_scripts_are_known():
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} == SMALLEST.keys()


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
    assert json.loads(result.read_text())

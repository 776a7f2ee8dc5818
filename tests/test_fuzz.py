"""Damaged videos: frames that are intact, or one clear error; never a crash, a hang, or memory without end."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import av
import pytest

from .conftest import ROOT
from .fuzz_videos import MEMORY
from .test_video_processing import ENCODINGS, write_video

# A case in each of the containers and codecs: what each parses is code of its own.
SOURCES = {name: ENCODINGS[name] for name in ENCODINGS if name != "h264_one_key_frame.mp4"} | {
    "h264.flv": {"options": {"g": "10", "bf": "2"}},
    "mpeg4.mov": {"codec": "mpeg4", "options": {"g": "10"}},
    "wmv2.wmv": {"codec": "wmv2", "options": {"g": "10"}},
}


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="time and memory are limited as on Linux")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    for name, arguments in SOURCES.items():
        if arguments.get("codec", "libx264") in av.codecs_available:
            write_video(folder / name, **arguments)
    return folder


def run_cases(folder, first: int, last: int) -> list[dict]:
    """One entry a case. A process that ends early is followed by another one, from the next case on."""
    entries = []
    while first < last:
        command = [sys.executable, "-m", "tests.fuzz_videos", str(folder), str(first), str(last)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines, done.stderr
        for begun in (line for line in lines if "source" in line):
            ended = next((line for line in lines if line["case"] == begun["case"] and "memory" in line), None)
            entries.append(begun | (ended or {"died": done.returncode, "why": done.stderr[-500:]}))
        first = entries[-1]["case"] + 1
    return entries


def check(entries: list[dict]):
    assert not [entry for entry in entries if "died" in entry]  # by a signal: a crash (11, 6), or a hang (27, 14)
    assert not [entry for entry in entries if entry["memory"] > MEMORY]
    assert not [entry for entry in entries if entry.get("invented")]
    errors = [entry["error"] for entry in entries if "error" in entry]
    assert all("\n" not in error and "damaged" in error.split(":")[0] for error in errors)  # which file, in one line
    assert sum(entry.get("invented") == 0 for entry in entries) > 0.2 * len(entries)
    assert 0.1 < len(errors) / len(entries) < 0.9  # some can be read, and some cannot


def test_some_damaged_videos(sources):
    check(run_cases(sources, 0, 200))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_damaged_videos(sources):
    with ThreadPoolExecutor(2) as pool:
        parts = pool.map(lambda first: run_cases(sources, first, first + 500), range(1000, 6000, 500))
        check([entry for part in parts for entry in part])

"""Tests damaged videos: they give intact frames or one clear error, never a crash, a hang or unbounded memory use."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
from PIL import Image

from .conftest import ROOT
from .fuzz_videos import MEMORY
from .test_video_processing import ENCODINGS, pictures, write_video

# One video for each container and codec, because each has its own parser.
SOURCES = {name: ENCODINGS[name] for name in ENCODINGS if name != "h264_one_key_frame.mp4"} | {
    "h264.flv": {"options": {"g": "10", "bf": "2"}},
    "mpeg4.mov": {"codec": "mpeg4", "options": {"g": "10"}},
    "wmv2.wmv": {"codec": "wmv2", "options": {"g": "10"}},
    "ffv1.mkv": {"codec": "ffv1", "options": {"slicecrc": "1", "level": "3"}},
    "cinepak.avi": {"codec": "cinepak", "pix_fmt": "rgb24", "options": {"g": "10"}, "count": 20},
}
PICTURES = {
    "photograph.jpg": {"quality": 90},
    "progressive.jpg": {"quality": 90, "progressive": True},
    "picture.png": {},
    "picture.webp": {"lossless": True},
    "picture.tif": {"compression": "tiff_lzw"},
    "picture.avif": {},
}


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="time and memory are limited as on Linux")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    for name, arguments in SOURCES.items():
        if arguments.get("codec", "libx264") in av.codecs_available:
            write_video(folder / name, **arguments)
    return folder


@pytest.fixture(scope="module")
def picture_sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz_pictures")
    noise = np.random.default_rng(0).integers(0, 60, (120, 160, 3))
    image = Image.fromarray((next(pictures(1, width=160, height=120)) * 0.7 + noise).astype(np.uint8))
    for name, options in PICTURES.items():
        image.save(folder / name, **options)
    return folder


def run_cases(folder, first: int, last: int) -> list[dict]:
    """Returns one entry per case. If a process ends early, another one continues with the next case."""
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


def check_classes(entries: list[dict]) -> list[str]:
    """Asserts that no entry has a fault, and returns the error messages."""
    errors = [entry["error"] for entry in entries if "error" in entry]
    faults = {
        "crashes and hangs": [entry for entry in entries if "died" in entry],  # by signal 11 or 6, or 27 or 14
        "too much memory": [entry for entry in entries if entry.get("memory", 0) > MEMORY],
        "frames of another picture": [entry for entry in entries if entry.get("invented")],
        "black frames": [entry for entry in entries if entry.get("black")],
        # An error message has one line and names the file.
        "unclear errors": [error for error in errors if "\n" in error or "damaged" not in error.split(":")[0]],
    }
    counts = {name: len(found) for name, found in faults.items()} | {"refused": len(errors), "cases": len(entries)}
    assert not any(faults.values()), f"{counts}; the first of each: {[found[:1] for found in faults.values()]}"
    return errors


def check(entries: list[dict]):
    errors = check_classes(entries)
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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_damaged_pictures(picture_sources):
    """Damaged pictures without checksums may change, but nothing may crash, and none may become black."""
    entries = run_cases(picture_sources, 0, 300)
    errors = check_classes(entries)
    assert 0.1 < len(errors) / len(entries) < 0.9

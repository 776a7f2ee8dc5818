"""What makers of corpora leave when they are killed, and several that make the same one at the same time."""

import subprocess
import sys
import threading
import time
from pathlib import Path

from region_learner.corpora import generated, load_corpus, make_moving_shapes
from region_learner.corpora.locks import in_turn

SIZES = {"train": 3, "val": 0, "test": 0, "test_unseen": 0, "size": 48, "frames": 8}

MAKE = """
import sys
from region_learner.corpora import make_moving_shapes
make_moving_shapes(sys.argv[1], workers=1, progress=False, train=5000, val=0, test=0, test_unseen=0, size=48, frames=8)
"""


def hidden(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith(".")}


def start_making(target: Path) -> subprocess.Popen:
    """A process that writes a large corpus, when it has written some of it."""
    process = subprocess.Popen([sys.executable, "-c", MAKE, str(target)], stderr=subprocess.PIPE, text=True)
    clips = target.with_name(f".{target.name}.partial") / "train" / "clips"
    deadline = time.monotonic() + 120
    while not (clips.is_dir() and any(clips.iterdir())) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    assert process.poll() is None
    return process


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    target = tmp_path / "shapes"
    process = start_making(target)
    process.kill()
    process.wait()
    assert ".shapes.partial" in hidden(tmp_path)
    others = {".shapes.partial-12", ".shapes.old-7", ".shapes.partial-mine", ".shapes2.partial", ".shapes"}
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    make_moving_shapes(target, progress=False, **SIZES)
    assert len(load_corpus("moving_shapes", target)) == 3
    assert hidden(tmp_path) == {".shapes.partial-mine", ".shapes2.partial", ".shapes"}


def test_those_who_wait_take_turns(tmp_path):
    """Each removes the file of the lock when it is done, while others wait at it."""
    inside, seen = [], []

    def enter():
        for _ in range(20):
            with in_turn(tmp_path / "lock"):
                inside.append(None)
                time.sleep(0.001)  # so that others come to wait
                seen.append((len(inside), (tmp_path / "lock").exists()))
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [(1, True)] * 160
    assert not (tmp_path / "lock").exists()


def test_what_a_live_process_writes_is_not_touched(tmp_path, monkeypatch):
    """Two make the same corpus: one writes it, the other waits, and finds it."""
    written = []
    begun, go_on = threading.Event(), threading.Event()
    write = generated._write_corpus

    def slowly(corpus, directory, *arguments):
        begun.set()
        assert go_on.wait(60)
        written.append(directory)
        write(corpus, directory, *arguments)

    monkeypatch.setattr(generated, "_write_corpus", slowly)
    target = tmp_path / "shapes"
    makers = [
        threading.Thread(target=make_moving_shapes, args=(target,), kwargs={"progress": False, **SIZES})
        for _ in range(2)
    ]
    makers[0].start()
    assert begun.wait(60)
    makers[1].start()
    makers[1].join(0.5)  # it cannot end before the first one has
    assert makers[1].is_alive()
    assert ".shapes.partial" in hidden(tmp_path)
    go_on.set()
    for maker in makers:
        maker.join(60)
    assert len(written) == 1
    assert len(load_corpus("moving_shapes", target)) == 3

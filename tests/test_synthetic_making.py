"""Tests for making synthetic corpora: repeatedly, in the cache, with interruptions, and concurrently."""

import hashlib
import multiprocessing
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from region_learner.corpora import CorpusError, load_corpus, load_masks, make_corpus
from region_learner.corpora.synthetic import base
from region_learner.files import locked

SIZES = {"train": 3, "val": 1, "test": 0, "test_unseen": 0, "size": 48, "frames": 8}


def make_many(target: Path):
    make_corpus("moving_shapes", target, workers=1, progress=False, **SIZES | {"train": 1000})


def hidden(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith(".")}


def start_making(target: Path) -> BaseProcess:
    """Starts a process that writes a large corpus, and returns it once the first clip exists."""
    process = multiprocessing.get_context("forkserver").Process(target=make_many, args=(target,))
    process.start()
    clips = target.with_name(f".{target.name}.partial") / "train" / "clips"
    deadline = time.monotonic() + 120
    while not (clips.is_dir() and any(clips.iterdir())) and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.05)
    assert process.is_alive()
    return process


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    target = tmp_path / "shapes"
    process = start_making(target)
    process.kill()
    process.join()
    assert ".shapes.partial" in hidden(tmp_path)
    (tmp_path / ".shapes.old").mkdir()
    others = {".shapes.partial-mine", ".shapes2.partial", ".shapes"}
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    make_corpus("moving_shapes", target, progress=False, **SIZES)
    assert len(load_corpus("moving_shapes", target)) == 3
    assert hidden(tmp_path) - {".shapes.lock"} == others


def test_waiting_threads_take_turns(tmp_path):
    inside, seen = [], []

    def enter():
        for _ in range(20):
            with locked(tmp_path, "lock", wait=True):
                inside.append(None)
                time.sleep(0.001)  # so that other threads have to wait
                seen.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 160


def test_a_corpus_that_is_being_written_is_not_touched(tmp_path, monkeypatch):
    """If two threads make the same corpus, one writes it, and the other waits and uses it."""
    written = []
    begun, go_on = threading.Event(), threading.Event()
    write = base._write_corpus

    def slowly(corpus, directory, *arguments):
        begun.set()
        assert go_on.wait(60)
        written.append(directory)
        write(corpus, directory, *arguments)

    monkeypatch.setattr(base, "_write_corpus", slowly)
    target = tmp_path / "shapes"
    makers = [
        threading.Thread(
            target=make_corpus,
            args=("moving_shapes", target),
            kwargs={"progress": False, **SIZES},
        )
        for _ in range(2)
    ]
    makers[0].start()
    assert begun.wait(60)
    makers[1].start()
    makers[1].join(0.5)  # it cannot end before the first one
    assert makers[1].is_alive()
    assert ".shapes.partial" in hidden(tmp_path)
    go_on.set()
    for maker in makers:
        maker.join(60)
    assert len(written) == 1
    assert len(load_corpus("moving_shapes", target)) == 3


def test_shapes_that_are_made_again(caplog, tmp_path):
    caplog.set_level("INFO", "region_learner")
    shapes_dir = make_corpus("moving_shapes", tmp_path / "shapes", progress=False, **SIZES)
    before = (shapes_dir / "corpus.json").stat().st_mtime_ns
    assert make_corpus("moving_shapes", shapes_dir, **SIZES) == shapes_dir
    assert caplog.messages == [f"Wrote {shapes_dir}", f"{shapes_dir} already holds this corpus: nothing to do"]
    assert (shapes_dir / "corpus.json").stat().st_mtime_ns == before
    with pytest.raises(CorpusError, match=r"other options \(val is 1, not 9, seed is 0, not 2\): .*overwrite=True"):
        make_corpus("moving_shapes", shapes_dir, **{**SIZES, "val": 9, "seed": 2})
    with pytest.raises(CorpusError, match=r"other options \(seed is 0, not 2\)"):
        load_corpus("moving_shapes", shapes_dir, seed=2)

    tiny = {"train": 1, "val": 0, "test": 0, "test_unseen": 0, "progress": False}
    make_corpus("moving_shapes", tmp_path / "c", **tiny)
    make_corpus("moving_shapes", tmp_path / "c", seed=5, overwrite=True, **tiny)
    assert load_corpus("moving_shapes", tmp_path / "c", seed=5).num_rows == 1
    assert hidden(tmp_path) <= {".c.lock", ".shapes.lock"}
    with pytest.raises(CorpusError, match=r"has no split 'val' \(splits: train\)"):
        load_corpus("moving_shapes", tmp_path / "c", split="val")


def test_shapes_leave_other_directories_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CorpusError, match="is not a corpus of moving shapes"):
        make_corpus("moving_shapes", tmp_path, overwrite=True, progress=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_shapes_interrupted(tmp_path, monkeypatch):
    write = base._write_clip

    def interrupted(index, scene, **kwargs):
        if index == 3:
            raise KeyboardInterrupt
        return write(index, scene, **kwargs)

    monkeypatch.setattr(base, "_write_clip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_corpus("moving_shapes", tmp_path / "corpus", train=8, progress=False)
    assert hidden(tmp_path) <= {".corpus.lock"}
    assert not (tmp_path / "corpus").exists()
    with pytest.raises(CorpusError, match=r"no complete corpus .*\(no corpus.json\): make it with"):
        load_corpus("moving_shapes", tmp_path / "corpus")


def test_shapes_are_made_in_the_cache_once(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    options = {"train": 2, "val": 0, "test": 0, "test_unseen": 0, "progress": False}
    first = load_corpus("moving_shapes", **options)
    monkeypatch.setattr(base, "_write_corpus", None)  # must not be called again
    assert load_corpus("moving_shapes", **options).to_list() == first.to_list()
    assert Path(first["video"][0]).is_relative_to(tmp_path / "region_learner")
    with pytest.raises(CorpusError, match=r"moving_shapes has no split 'valid' .*; did you mean 'val'"):
        load_corpus("moving_shapes", split="valid", **options)


def test_shapes_masks_missing(tmp_path):
    with pytest.raises(CorpusError, match=r"the label maps .*x.npz do not exist"):
        load_masks(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("name", "directory", "digest"),
    [
        ("moving_shapes", "moving_shapes-1bedc2fdf3b5", "619895aeaeadf01d"),
        ("drifting_letters", "drifting_letters-c0896eaf72f1", "a7d57f0338de50d6"),
    ],
)
def test_scenes_and_captions_stay_as_they_are(name, directory, digest, tmp_path, monkeypatch):
    """If scenes changed, cached corpora would not be found, and recorded results would not be reproducible."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    options = {"train": 2, "val": 1, "test": 1, "size": 48, "frames": 4, "progress": False}
    load_corpus(name, **options, **({"test_unseen": 2} if name == "moving_shapes" else {}))
    files = sorted((tmp_path / "region_learner" / directory).glob("*/metadata.jsonl"))
    assert hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16] == digest

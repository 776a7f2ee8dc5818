"""Tests the video index: what it finds, and how it follows changes of the files."""

import multiprocessing
import os
import shutil
import signal
import struct
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from region_learner import RegionLearnerVideoProcessor, VideoIndex
from region_learner.files import locked
from region_learner.loading import load_checkpoint
from region_learner.search import embedding, find_videos, reading, updating, vectors
from region_learner.search import index as index_module
from region_learner.search.database import Database
from region_learner.video_decoding_region_learner import read_clip

from .search_toys import LENGTHS, answers, counts, make_video, make_videos, save_checkpoint

WINDOW, STRIDE = 4.0, 2.0


@pytest.fixture(scope="module", params=["words", "clip"])
def model(request, tmp_path_factory):
    return str(save_checkpoint(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("originals"))


@pytest.fixture
def videos(originals, tmp_path):
    return Path(shutil.copytree(originals, tmp_path / "videos"))


@pytest.fixture
def make_index(model, tmp_path):
    def make(name="index", **options):
        options = {"window": WINDOW, "stride": STRIDE, "num_frames": 4} | options
        return VideoIndex.create(tmp_path / name, model, **options)

    return make


def relative_answers(index, base=None):
    """Returns the hits of an index for some queries, with paths relative to `base`."""
    base, found = base or index.directory.parent, answers(index)
    return [[(os.path.relpath(h.path, base), h.start, h.end, h.score, h.probability) for h in hits] for hits in found]


def test_windows_match_the_processor_and_the_model(make_index, videos, model):
    """Each stored vector equals the embedding of its span, processed on its own."""
    index = make_index()
    assert counts(index.update(videos)) == {"new": 5}
    network, processor = load_checkpoint(model, "retrieval")
    processor.video_processor.num_frames = 4
    seen = {}
    for record in index.database.records():
        name = os.path.relpath(record.video.path, videos)
        seen[name] = record.spans.tolist()
        stored = index._current_view().vectors.read(record.first_row, record.first_row + len(record.spans))
        for vector, (start, _) in zip(stored, record.spans.tolist()):
            span = {} if len(record.spans) == 1 else {"start": start, "end": start + WINDOW}
            with torch.no_grad():
                expected = network(**processor(videos=[record.video.path], **span)).video_embeds[0]
            np.testing.assert_allclose(vector, expected, atol=2e-6)
        assert index.duration(record.video.path) == pytest.approx(LENGTHS[name])
    assert seen["a.mp4"] == [[0, 3]]
    assert seen["b.mp4"] == [[start, start + 4] for start in range(0, 11, 2)]
    assert seen["sub/c.mp4"] == [[0, 4], [1, 5]]
    assert seen["sub/d.mp4"] == [[0, 4], [2, 6], [4, 8], [6, 10], [7, 11.5]]  # frames are one second apart
    assert len(index) == 5


def test_frames_are_decoded_and_encoded_once(make_index, videos, monkeypatch):
    index = make_index()
    encoded = []
    encode = embedding.Embedder.encode
    monkeypatch.setattr(embedding.Embedder, "encode", lambda self, x: encoded.append(len(x)) or encode(self, x))
    index.update(videos / "b.mp4")
    assert sum(encoded) == 14  # one frame per second; the six windows have 24 in total


def test_scores_are_cosines(make_index, videos):
    index = make_index()
    index.update(videos)
    query = index.embedder.texts(["blue circle"])[0]
    view = index._current_view()
    best = {}
    for record in index.database.records():
        rows = view.vectors.read(record.first_row, record.first_row + len(record.spans))
        best[record.video.path] = max(float(np.dot(row.astype(np.float64), query)) for row in rows)
    hits = index.search("blue circle", k=50)
    first = {}
    for hit in hits:
        first.setdefault(hit.path, hit.score)
        assert 0 <= hit.start < hit.end <= LENGTHS[os.path.relpath(hit.path, videos)] + 1e-6
        assert 0 <= hit.probability <= 1
    assert first == pytest.approx(best, abs=1e-6)
    if index.about()["tokens"] is None:  # otherwise see test_search_tokens.py
        scores = [hit.score for hit in hits]
        assert scores == sorted(scores, reverse=True)
    assert index.search("blue circle", k=2) == hits[:2]


def test_spans_are_the_best_however_many_rows_are_examined(make_index, videos):
    index = make_index()
    index.update(videos)
    view = index._current_view()
    queries = np.random.default_rng(0).standard_normal((50, index.about()["dim"])).astype(np.float32)
    for query in queries / np.linalg.norm(queries, axis=1, keepdims=True):
        best = index._spans(view, query, view.count, 50)
        for nearest in range(1, view.count):
            found = index._spans(view, query, nearest, 50)
            assert found == best[: len(found)]
            assert len(found) > 0


def test_filters(make_index, videos):
    index = make_index()
    index.update(videos)
    hits = index.search("blue circle", k=50)
    inside = index.search("blue circle", k=50, within=videos / "sub")
    assert {hit.path for hit in inside} == {str(videos / "sub" / name) for name in ("c.mp4", "d.mp4")}
    assert [(hit.path, hit.score) for hit in hits if "sub" in hit.path] == [(hit.path, hit.score) for hit in inside]
    second = sorted(hit.score for hit in hits)[-2]
    found = index.search("blue circle", k=50, min_score=second)
    assert found == [hit for hit in hits if hit.score >= second]
    assert len(found) == 2
    least = sorted(hit.probability for hit in hits)[-1]
    assert all(hit.probability >= least for hit in index.search("blue circle", min_probability=least))
    with pytest.raises(ValueError, match="has no videos within"):
        index.search("x", within=videos / "none")
    for query in ({}, {"text": "x", "image": "y"}, {"text": ""}, {"text": []}, {"text": "x", "k": 0}):
        with pytest.raises(ValueError, match=r"one query|is empty|k=0"):
            index.search(**query)
    with pytest.raises(ValueError, match=r"must be given as \(video, start, end\)"):
        index.search(video=(str(videos / "a.mp4"), 1.0))


def test_queries_by_picture_and_by_video(make_index, videos, tmp_path):
    index = make_index()
    index.update(videos)
    hit = index.search(video=str(videos / "a.mp4"))[0]
    assert (hit.path, hit.score) == (str(videos / "a.mp4"), pytest.approx(1))
    hit = index.search(video=(str(videos / "b.mp4"), 4.0, 8.0))[0]
    assert hit.path == str(videos / "b.mp4")
    assert hit.score == pytest.approx(1)
    assert hit.start < 8
    assert hit.end > 4
    frames, _ = read_clip(videos / "e.mp4", lambda metadata: [0])
    picture = Image.fromarray(frames[0])
    picture.save(tmp_path / "frame.png")
    by_picture = index.search(image=picture)
    assert by_picture == index.search(image=str(tmp_path / "frame.png"))
    network, processor = index.model, index.processor
    with torch.no_grad():
        expected = network(**processor(images=[picture])).video_embeds[0].numpy()
    top = by_picture[0]
    rows = index._current_view().vectors.read(0, index.database.about("rows"))
    assert top.score == pytest.approx(float((rows @ expected).max()), abs=1e-5)


def test_regions_of_hits(make_index, videos):
    index = make_index()
    index.update(videos)
    hit = index.search("blue circle", k=1, regions=True)[0]
    if index.model.video_model.backbone is not None:
        assert hit.regions is None
    else:
        assert hit.regions.shape == (4, len(hit.phrases), 4, 4)


def test_hits_that_cannot_be_read_have_no_regions(make_index, videos, caplog):
    index = make_index()
    index.update(videos)
    expected = index.search("blue circle", k=50)
    (videos / "a.mp4").unlink()
    hits = index.search("blue circle", k=50, regions=True)
    assert hits == expected
    if index.model.video_model.backbone is not None:  # without regions, nothing is read
        assert {hit.regions is None for hit in hits} == {True}
        assert caplog.messages == []
    else:
        assert {hit.path for hit in hits if hit.regions is None} == {str(videos / "a.mp4")}
        assert "a.mp4: no such file" in caplog.text


def test_each_query_has_its_own_snapshot(make_index, videos, monkeypatch):
    """A single snapshot for a long list of queries would keep an update from committing."""
    index = make_index()
    index.update(videos / "a.mp4")
    taken, snapshot = [], Database.snapshot
    monkeypatch.setattr(Database, "snapshot", lambda self: taken.append(self) or snapshot(self))
    assert len(index.search(["a red", "blue", "a circle"], within=videos)) == 3
    assert len(taken) == 3


# --- Following the files -------------------------------------------------------------------------------------


def test_updates_follow_changes_without_reading_the_rest(make_index, videos, originals, tmp_path, monkeypatch):
    index = make_index()
    assert counts(index.update(videos)) == {"new": 5}
    read = []
    monkeypatch.setattr(updating, "read_videos", lambda jobs, *rest: read.append(jobs) or iter(()))
    assert counts(index.update(videos)) == {"unchanged": 5}
    assert read == []
    monkeypatch.undo()

    (videos / "a.mp4").unlink()
    shutil.copy(originals / "e.mp4", videos / "sub" / "c.mp4")  # changed
    (videos / "b.mp4").rename(videos / "renamed.mp4")
    os.utime(videos / "sub" / "d.mp4")  # touched
    make_video(videos / "f.mp4", 2, seed=9)
    report = index.update(videos)
    assert counts(report) == {"new": 1, "changed": 1, "moved": 1, "unchanged": 2, "removed": 1}
    assert report.moved == [str(videos / "renamed.mp4")]
    assert str(report) == "1 new, 1 changed, 1 moved, 2 unchanged, 1 removed"
    anew = make_index("anew")
    anew.update(videos)
    assert relative_answers(index) == relative_answers(anew)
    assert len(index) == len(anew) == 5
    assert index.paths() == anew.paths()


def test_copies_are_not_read_again(make_index, videos, monkeypatch):
    index = make_index()
    index.update(videos)
    shutil.copy(videos / "b.mp4", videos / "copy.mp4")
    monkeypatch.setattr(embedding.Embedder, "encode", None)  # not called
    assert counts(index.update(videos)) == {"new": 1, "unchanged": 5}
    hits = index.search(video=(str(videos / "b.mp4"), 4.0, 8.0), k=2)
    assert [os.path.basename(hit.path) for hit in hits] == ["b.mp4", "copy.mp4"]
    assert hits[0].score == hits[1].score


def test_a_folder_that_was_moved(make_index, videos, monkeypatch):
    index = make_index()
    index.update(videos)
    before = index.paths()
    place = videos.rename(videos.with_name("elsewhere"))
    monkeypatch.setattr(embedding.Embedder, "encode", None)  # not called
    assert counts(index.update(place)) == {"new": 5}
    after = sorted(str(path) for path in place.rglob("*.mp4"))
    assert index.paths() == sorted(before + after)  # the old folder may be on a disk that is not mounted
    assert index.remove(videos) == 5
    assert index.paths() == after


def test_files_that_moved_can_be_kept(make_index, videos):
    index = make_index()
    index.update(videos)
    before = index.paths()
    (videos / "a.mp4").rename(videos / "renamed.mp4")
    assert counts(index.update(videos, remove_missing=False)) == {"new": 1, "unchanged": 4}
    assert index.paths() == sorted([*before, str(videos / "renamed.mp4")])


def test_a_video_that_leaves_a_list_stays_if_its_folder_is_indexed(make_index, videos, tmp_path):
    (tmp_path / "l.txt").write_text(f"{videos}/a.mp4\n{videos}/b.mp4\n")
    index = make_index()
    assert counts(index.update(tmp_path / "l.txt")) == {"new": 2}
    assert counts(index.update(videos)) == {"new": 3, "unchanged": 2}
    (tmp_path / "l.txt").write_text(f"{videos}/b.mp4\n")
    assert counts(index.update(tmp_path / "l.txt")) == {"unchanged": 1}
    assert len(index) == 5


def test_missing_files_can_be_kept(make_index, videos):
    index = make_index()
    index.update(videos)
    (videos / "a.mp4").unlink()
    assert counts(index.update(videos, remove_missing=False)) == {"unchanged": 4}
    assert len(index) == 5
    assert counts(index.update([videos / "sub"])) == {"unchanged": 2}  # other folders are left alone
    assert len(index) == 5
    assert counts(index.update(videos)) == {"unchanged": 4, "removed": 1}
    shutil.rmtree(videos)
    videos.mkdir()
    with pytest.raises(ValueError, match="does not contain any videos"):
        index.update(videos)  # for example, because a disk is not mounted
    assert len(index) == 4


def test_unreadable_files_are_kept_in_a_list(make_index, videos):
    (videos / "bad.mp4").write_bytes(b"\0" * 500)
    (videos / "text.mp4").write_text("not a video")
    index = make_index()
    report = index.update(videos)
    assert counts(report) == {"new": 5, "unreadable": 2}
    assert "text, not a video" in report.unreadable[str(videos / "text.mp4")]
    assert index.unreadable() == report.unreadable
    again = index.update(videos)
    assert counts(again) == {"unchanged": 5, "unreadable": 2}
    assert again.unreadable == report.unreadable
    shutil.copy(videos / "a.mp4", videos / "bad.mp4")
    assert counts(index.update(videos)) == {"new": 1, "unchanged": 5, "unreadable": 1}
    assert counts(index.update(videos, retry=True)) == {"unchanged": 6, "unreadable": 1}
    assert len(index) == 6


def test_embeddings_that_are_not_finite_are_left_out(make_index, videos, monkeypatch):
    index = make_index()
    join = embedding.WindowEmbeddings.windows

    def overflowed(self):
        windows = join(self)
        return embedding.Windows(windows.vectors * np.nan, windows.tokens) if self.plan.duration == 14 else windows

    monkeypatch.setattr(embedding.WindowEmbeddings, "windows", overflowed)
    report = index.update(videos)
    assert counts(report) == {"new": 4, "unreadable": 1}
    assert "may have overflowed" in report.unreadable[str(videos / "b.mp4")]


def test_remove(make_index, videos):
    index = make_index()
    index.update(videos)
    assert index.remove(videos / "sub") == 2
    assert len(index) == 3
    with pytest.raises(ValueError, match="has no videos within"):
        index.remove([videos / "a.mp4", videos / "sub"])
    assert len(index) == 3
    assert all("sub" not in hit.path for hit in index.search("a red", k=50))
    assert index.remove(videos) == 3
    assert index.search("a red") == []
    assert counts(index.update(videos)) == {"new": 5}


def test_rows_are_compacted_when_most_are_holes(make_index, videos):
    index = make_index()
    index.update(videos)
    assert index.search("a red")
    rows = index.database.about("rows")
    index.remove([videos / "b.mp4", videos / "sub" / "d.mp4"])
    assert index.database.about("rows") == rows - 6 - 5
    assert index.database.holes().tolist() == []
    other = make_index("other")
    other.update([videos / "a.mp4", videos / "sub" / "c.mp4", videos / "e.mp4"])
    assert relative_answers(index) == relative_answers(other)
    index.update(videos)
    assert [path.name for path in index.directory.glob("vectors-*")] == ["vectors-1"]


def test_vectors_of_a_video_whose_rows_have_moved(make_index, videos):
    index = make_index()
    index.update(videos)
    path = str(videos / "sub" / "c.mp4")
    expected = index.vectors(path).copy()
    assert len(expected) == 2
    VideoIndex.open(index.directory).remove([videos / "b.mp4", videos / "sub" / "d.mp4"])  # like another process
    assert np.array_equal(index.vectors(path), expected)


def test_members_of_shards(make_index, videos, tmp_path):
    shard = tmp_path / "s.tar"
    with tarfile.open(shard, "w") as tar:
        for name in ("a.mp4", "b.mp4"):
            tar.add(videos / name, name)
    index = make_index()
    assert counts(index.update(shard)) == {"new": 2}
    other = make_index("other")
    other.update([videos / "a.mp4", videos / "b.mp4"])
    assert relative_answers(index, shard) == relative_answers(other, videos)
    assert index.source(f"{shard}/a.mp4")["bytes"] == (videos / "a.mp4").read_bytes()
    assert {hit.path for hit in index.search("a", within=shard)} == {f"{shard}/a.mp4", f"{shard}/b.mp4"}
    with pytest.raises(KeyError):
        index.source("/etc/passwd")


def test_a_damaged_shard_is_named(make_index, videos):
    with tarfile.open(videos / "s.tar", "w") as tar:
        tar.add(videos / "a.mp4", "a.mp4")
    os.truncate(videos / "s.tar", 1000)
    index = make_index()
    report = index.update(videos)
    assert len(report.new) == 5
    assert list(report.unreadable) == [str(videos / "s.tar")]


def test_threads_take_turns(make_index, videos):
    index = make_index()
    index.update(videos)
    expected = index.search("a red", k=50)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: index.search("a red", k=50), range(32))) == [expected] * 32


def test_search_while_another_process_writes(make_index, videos):
    index = make_index()
    index.update(videos / "a.mp4")
    assert len(index.search("a", k=50)) == 1
    with locked(index.directory), pytest.raises(BlockingIOError, match="being written to by another run"):
        index.update(videos)
    writer = VideoIndex.open(index.directory)
    writer.update(videos)
    assert {hit.path for hit in index.search("a", k=50)} == set(index.paths())
    assert len(index) == 5


# --- The model of the index ----------------------------------------------------------------------------------


def test_another_model_is_refused(make_index, videos, model, tmp_path):
    index = make_index()
    other = shutil.copytree(model, tmp_path / "other")
    assert VideoIndex.open(index.directory, str(other)).embedder.name == str(other)
    network, processor = load_checkpoint(str(other), "retrieval")
    with torch.no_grad():
        next(network.video_model.parameters()).add_(0.1)
    network.save_pretrained(other)
    processor.save_pretrained(other)
    with pytest.raises(ValueError, match=r"was made with .*, but .*other has other weights"):
        VideoIndex.open(index.directory, str(other)).search("a")
    network, processor = load_checkpoint(model, "retrieval")
    processor.video_processor.image_mean = [0.1, 0.2, 0.3]
    network.save_pretrained(other)
    processor.save_pretrained(other)
    with pytest.raises(ValueError, match=r"has another preprocessing"):
        VideoIndex.open(index.directory, str(other)).update(videos)
    assert len(index) == 0


def test_videos_that_are_too_short_for_the_processor(videos, model, tmp_path):
    """Its checkpoint refuses short clips instead of repeating frames."""
    other = shutil.copytree(model, tmp_path / "other")
    network, processor = load_checkpoint(str(other), "retrieval")
    processor.video_processor.short_clips = "error"
    network.save_pretrained(other)
    processor.save_pretrained(other)
    make_video(videos / "short.mp4", 0.5, seed=3)
    index = VideoIndex.create(tmp_path / "index", str(other), window=4, stride=2)
    report = index.update(videos)
    assert "short.mp4" in str(list(report.unreadable))
    assert "frames" in report.unreadable[str(videos / "short.mp4")]
    assert len(report.new) > 0


def test_a_span_of_the_index_as_a_query(make_index, videos):
    """Without its own windows, it is as if they were not in the index."""
    index = make_index()
    index.update(videos)
    first, second = index.search("a red", k=2)
    span = (first.path, first.start, first.end)
    query = {"video": span, "k": 50}
    found = index.search(**query, exclude=span)
    assert found
    assert all(hit.path != first.path or hit.end <= first.start or hit.start >= first.end for hit in found)
    expected = [hit for hit in index.search(**query) if hit.path != first.path]
    assert [(hit.path, hit.start, hit.score) for hit in found if hit.path != first.path] == [
        (hit.path, hit.start, hit.score) for hit in expected
    ]
    assert found[0].probability > expected[0].probability  # the query is not a rival of the other hits
    within = index.search(**query, exclude=span, within=os.path.dirname(second.path))
    assert {hit.path for hit in within} <= {hit.path for hit in found}
    relative = os.path.relpath(first.path)
    assert index.search(**query, exclude=(relative, *span[1:])) == found
    with pytest.raises(ValueError, match=r"does not have the video .*nowhere\.mp4"):
        index.search(**query, exclude=("nowhere.mp4", 0, 1))
    assert index.search(**query, exclude=(first.path, 1e6, 2e6)) == index.search(**query)
    alone = make_index("alone")
    alone.update(first.path)
    assert alone.search(**query, exclude=(first.path, 0, 1e6)) == []


def test_windows_of_a_span_are_not_rivals_of_its_hit(make_index, videos, monkeypatch):
    index = make_index()
    index.update(videos)
    seen = []
    original = index_module.hit_probabilities
    monkeypatch.setattr(
        index_module, "hit_probabilities", lambda *arguments: seen.append(arguments) or original(*arguments)
    )
    hits = index.search("a red", k=50)
    _, best, sample, _, count, _ = seen[-1]
    windows = [(record, span) for record in index.database.records() for span in record.spans.tolist()]
    rivals = sum(
        not any(hit.path == record.video.path and start < hit.end and hit.start < end for hit in hits)
        for record, (start, end) in windows
    )
    assert len(hits) == len(best) < 10
    assert len(sample) == count == rivals < len(windows)


def test_texts_may_be_in_any_sequence(make_index, videos):
    index = make_index()
    index.update(videos)
    expected = index.search(["a red", "a blue"])
    assert len(expected) == 2
    for texts in (("a red", "a blue"), np.array(["a red", "a blue"])):
        assert index.search(texts) == expected
    with_regions = index.search(("a red", "a blue"), regions=True)
    assert [[hit.path for hit in hits] for hits in with_regions] == [[hit.path for hit in hits] for hits in expected]


def test_a_model_that_was_moved(make_index, videos, model, tmp_path):
    first = shutil.copytree(model, tmp_path / "first")
    index = VideoIndex.create(tmp_path / "moved", str(first), window=WINDOW, stride=STRIDE, num_frames=4)
    index.update(videos)
    expected = index.search("a red")
    second = first.rename(tmp_path / "second")
    with pytest.raises(OSError, match=r"There is no directory .*first.* if it was moved, pass its path as model"):
        VideoIndex.open(tmp_path / "moved").search("a red")
    assert VideoIndex.open(tmp_path / "moved", str(second)).search("a red") == expected
    (tmp_path / "moved").rename(tmp_path / "elsewhere")
    assert VideoIndex.open(tmp_path / "elsewhere", str(second)).search("a red") == expected


def test_create(make_index, model, tmp_path):
    index = make_index()
    about = index.about()
    assert (about["model"], about["window"], about["stride"], about["num_frames"]) == (model, WINDOW, STRIDE, 4)
    with pytest.raises(FileExistsError, match="is already an index"):
        make_index()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FileExistsError, match="contains other files"):
        make_index("full")
    for window, stride in ((1, 2), (0, 0), (float("nan"), 1), (float("inf"), 1), (2.0**31, 1)):
        with pytest.raises(ValueError, match="0 < stride <= window"):
            make_index("new", window=window, stride=stride)
    with pytest.raises(ValueError, match="num_frames=0 must be at least 1"):
        make_index("new", num_frames=0)
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".index.sqlite.partial").touch()  # as left by a killed process
    assert len(make_index("new")) == 0
    with pytest.raises(FileNotFoundError, match="is not an index"):
        VideoIndex.open(tmp_path / "none")
    assert index.search("a") == []


def test_a_second_start_does_not_replace_the_index(make_index, videos, tmp_path, monkeypatch):
    """Another run creates the index while this one loads the model."""
    load = index_module.Embedder

    def load_slowly(*arguments):
        monkeypatch.undo()
        make_index().update(videos / "a.mp4")
        return load(*arguments)

    monkeypatch.setattr(index_module, "Embedder", load_slowly)
    with pytest.raises(FileExistsError, match="is already an index"):
        make_index()
    assert len(VideoIndex.open(tmp_path / "index")) == 1


# --- Processes and interruptions -----------------------------------------------------------------------------


def test_worker_processes_make_the_same_index(make_index, videos):
    (videos / "bad.mp4").write_bytes(b"\0" * 500)
    index, other = make_index(), make_index("other")
    assert counts(index.update(videos, num_workers=2)) == {"new": 5, "unreadable": 1}
    other.update(videos)
    assert relative_answers(index) == relative_answers(other)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited on Linux")
def test_a_process_that_ran_out_of_memory_is_replaced(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MEMORY", 50 * 2**20)
    Image.new("RGB", (6000, 6000)).save(tmp_path / "large.png")
    found = find_videos([tmp_path / "large.png", videos / "a.mp4"]).videos.values()
    options = reading.Options(RegionLearnerVideoProcessor.for_image_size(32, num_frames=4), WINDOW, STRIDE)
    events = list(reading.read_videos(map(reading.Job, found), options, workers=1))
    assert events[0][1] == reading.Failed("reading it takes more than 0.0488281 GiB of memory")
    assert events[-1] == (find_videos(videos / "a.mp4").videos[str(videos / "a.mp4")], reading.End())


def test_a_process_that_is_killed_while_it_sends(monkeypatch):
    ours, theirs = multiprocessing.Pipe()
    os.write(theirs.fileno(), struct.pack("!i", 100) + b"a part of an event")
    theirs.close()
    replaced = []
    reader = SimpleNamespace(connection=ours, since=0.0, job="job", _replace=lambda: replaced.append(True))
    assert reading._Reader.event(reader) == reading.Failed("reading it crashes the process")
    assert (reader.job, replaced) == (None, [True])


def killed_after(steps: int, index: VideoIndex, videos: Path) -> None:
    """Updates an index, and kills this process when `steps` reads and writes have begun or ended."""
    left = steps

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counting(function):
        def counted(*args, **kwargs):
            count()
            result = function(*args, **kwargs)
            count()
            return result

        return counted

    updating._WINDOWS = 3
    for owner, names in (
        (vectors.Vectors, ["write"]),
        (updating.Database, ["put", "set_about", "remove", "move"]),
        (embedding.WindowEmbeddings, ["add"]),
    ):
        for name in names:
            setattr(owner, name, counting(getattr(owner, name)))
    own = VideoIndex.open(index.directory)
    own._embedder = index.embedder
    own.update(videos)


def test_updates_can_be_killed_at_any_moment(make_index, videos):
    index = make_index()
    index.update(videos)
    killed, context = 0, multiprocessing.get_context("fork")
    for step in range(1, 12):
        make_video(videos / "new.mp4", 5 + step % 3, seed=100 + step)
        make_video(videos / "sub" / "c.mp4", 4 + step % 4, seed=200 + step)
        name = "a.mp4" if (videos / "a.mp4").exists() else "moved.mp4"
        (videos / name).rename(videos / ("moved.mp4" if name == "a.mp4" else "a.mp4"))
        process = context.Process(target=killed_after, args=(2 * step, index, videos))
        process.start()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        reader = VideoIndex.open(index.directory)
        reader._embedder = index.embedder
        assert reader.search("a red", k=50)  # the index is usable at any time
        rows = sum(len(record.spans) for record in reader.database.records())
        lost = sum(stop - start for start, stop in reader.database.holes().tolist())
        assert rows + lost == reader.database.about("rows")  # no row is stored twice or lost
    assert killed >= 10
    index.update(videos)
    anew = make_index("anew")
    anew.update(videos)
    assert relative_answers(index) == relative_answers(anew)


def test_damaged_indexes_are_refused(make_index, videos):
    """Damaged and incomplete files of an index are reported."""
    index = make_index()
    index.update(videos)
    for name, value in (
        ("dim", "x"),
        ("dim", 0),
        ("window", None),
        ("stride", -1),
        ("model", 5),
        ("neutral", "zz"),
        ("neutral", "00"),
    ):
        good = index.database.about(name)
        for changed in (value, good):
            writer = Database(index.directory, writes=True)
            with writer.transaction():
                writer.set_about(name, changed)
            writer.close()
            if changed is value:
                with pytest.raises(ValueError, match="is damaged"):
                    VideoIndex.open(index.directory)
    index.database.close()
    file = index.directory / "vectors-0" / "vectors-00000.f32"
    os.truncate(file, 100)
    with pytest.raises(ValueError, match="is incomplete"):
        VideoIndex.open(index.directory).search("a")
    content = (index.directory / "index.sqlite").read_bytes()
    (index.directory / "index.sqlite").write_bytes(content[:5000])
    with pytest.raises((ValueError, OSError), match=r"index\.sqlite"):
        VideoIndex.open(index.directory).search("a")


def test_the_working_directory_may_change(make_index, videos, tmp_path, monkeypatch):
    make_index().update(videos)
    monkeypatch.chdir(tmp_path)
    index = VideoIndex.open("index")
    monkeypatch.chdir(videos)
    assert index.search("a red square")

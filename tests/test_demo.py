"""Tests of the demo after training: loading the checkpoint without the package, and the page of search results."""

import subprocess

import pytest

from region_learner.corpora import load_corpus, make_corpus
from region_learner.demo import (
    ABSENT,
    RESULTS_PER_QUERY,
    Found,
    _page,
    chance,
    check_in_fresh_process,
    index_videos,
    metrics_rows,
    run_demo,
    search_captions,
)
from region_learner.evaluation import retrieval_accuracy
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.search import Hit, percent
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_decoding_region_learner import read_clip
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor
from region_learner.visualization import render_page

from .conftest import tiny_model, tiny_text_config
from .fresh_process import run_script


@pytest.mark.parametrize("options", [{}, {"token_dim": 8, "phrase_window": 3}], ids=["regions", "words and regions"])
def test_search_and_page(tmp_path, monkeypatch, options):
    monkeypatch.setattr("region_learner.demo.NO_MATCH", 0.0)  # the model is not trained
    sizes = {"train": 0, "val": 0, "test": 20, "test_unseen": 0, "size": 48, "frames": 4, "objects": [1, 2]}
    corpus = make_corpus("moving_shapes", tmp_path / "corpus", workers=1, progress=False, **sizes)
    test = load_corpus("moving_shapes", corpus, "test")
    tokenizer = train_tokenizer([text for row in test for text in row["captions"]], 200, 32)
    processor = RegionLearnerProcessor(RegionLearnerVideoProcessor.for_image_size(32, num_frames=4), tokenizer)
    model = tiny_model(text=tiny_text_config(vocab_size=200), **options)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "checkpoint")
    index, places = index_videos(tmp_path / "checkpoint", test, tmp_path)
    assert len(index) == 7  # each joins up to 3 clips
    captions = [caption for row in test for caption in set(row["captions"])]
    assert set(places) == {caption for caption in captions if captions.count(caption) == 1}
    for row in test:
        for caption in row["captions"]:
            if caption in places:  # the frames of the span are those of the clip
                path, start, end = places[caption]
                frames, metadata = read_clip(row["video"], lambda metadata: range(metadata.total_num_frames))
                first = round(start * metadata.fps)
                joined, _ = read_clip(path, lambda metadata: range(first, first + len(frames)))  # noqa: B023
                assert abs(joined.astype(int) - frames).mean() < 4
                assert end - start == pytest.approx(len(frames) / metadata.fps)
    # The model is not trained: for the first caption, the hit is declared to be right.
    shortest = min(places, key=lambda caption: (len(caption.split()), len(caption), caption))
    (best,) = index.search(shortest, k=1)
    places[shortest] = best.path, best.start, best.end
    found, seen = search_captions(index, places)
    assert found[0].query == shortest
    assert len(found) == 4 or seen == len(places)
    lengths = [len(result.query.split()) for result in found]
    assert lengths == sorted(lengths)
    for result in found:
        assert result.is_right(result.hits[0])
        again = index.search(result.query, k=RESULTS_PER_QUERY)
        assert [(hit.path, hit.start, hit.probability) for hit in result.hits] == [
            (hit.path, hit.start, hit.probability) for hit in again
        ]
    found.append(Found(ABSENT, index.search(ABSENT, k=RESULTS_PER_QUERY, regions=True)))
    if options:
        monkeypatch.setattr(subprocess, "run", run_script)
    check_in_fresh_process(index, tmp_path)
    model, processor = index.model, index.processor
    metrics = retrieval_accuracy(model, processor, test, progress=False)
    results = {"test": metrics, "train": {"videos": 9, "train_runtime": 1.0}, "log": [{"step": 1, "loss": "2.5"}]}
    page = _page(index, found, "How they were chosen.", results, seconds=1.0)
    for query, result in zip(page.queries, found, strict=True):
        assert [one.score for one in query.results] == [percent(hit.probability) for hit in result.hits]
        assert [one.correct for one in query.results] == [
            None if result.wanted is None else result.is_right(hit) for hit in result.hits
        ]
    first = page.queries[0].results[0]
    pictures = [picture for _, picture in first.phrases] if options else [first.regions]
    assert pictures
    assert {picture.size for picture in pictures} == {first.strip.size}
    text = render_page(page)
    assert ("orange shows which part" in text) == bool(options)
    assert ("Region 1</li>" in text) != bool(options)
    assert text.index(ABSENT) < text.index('id="metrics"')
    assert "How they were chosen." in text
    assert f"R@1 {metrics['t2v_R@1']:.1f}% (chance: 5.0%)" in text
    (tmp_path / "checkpoint" / "config.json").unlink()
    monkeypatch.setattr(subprocess, "run", run_script)
    with pytest.raises(RuntimeError, match="cannot be loaded without this package"):
        check_in_fresh_process(index, tmp_path)


def test_right_hits_share_half_of_the_clip():
    found = Found("words", [], ("a.mp4", 10.0, 12.0))
    for path, start, end, right in (
        ("a.mp4", 10, 12, True),
        ("a.mp4", 9, 12, True),
        ("a.mp4", 11, 13, True),
        ("a.mp4", 11.5, 13, False),
        ("a.mp4", 0, 50, False),
        ("b.mp4", 10, 12, False),
    ):
        assert found.is_right(Hit(path, start, end, 0.5, 0.5)) == right


def test_chance():
    assert chance(4) == {"R@1": 25, "R@5": 100, "R@10": 100, "R@50": 100, "MedR": 2.5, "MeanR": 2.5}
    metrics = {f"{side}_{name}": 1.0 for side in ("t2v", "v2t") for name in chance(4)} | {"videos": 4}
    header, rows = metrics_rows(metrics)
    assert [len(row) for row in rows] == [len(header)] * 3
    assert rows[-1][:2] == ["chance (4 videos)", 25]


@pytest.mark.parametrize("name", ["checkpoint", "videos", "videos.index", "index.html"])
def test_files_of_others_are_not_replaced(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"already contains {name}, which the demo would replace"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]

"""The demo after its training: a checkpoint that is loaded without the package, and the page of what was found."""

import pytest

from region_learner.corpora import load_corpus, make_corpus
from region_learner.demo import _page, chance, metrics_rows, search_in_fresh_process
from region_learner.evaluation import embed_corpus, retrieval_accuracy
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor
from region_learner.visualization import render_page

from .conftest import tiny_model, tiny_text_config


def test_search_without_the_package_and_the_page(tmp_path):
    sizes = {"train": 0, "val": 0, "test": 6, "test_unseen": 0, "size": 48, "frames": 4, "objects": [1, 2]}
    corpus = make_corpus("moving_shapes", tmp_path / "corpus", workers=1, progress=False, **sizes)
    test = load_corpus("moving_shapes", corpus, "test")
    tokenizer = train_tokenizer([text for row in test for text in row["captions"]], 200, 32)
    processor = RegionLearnerProcessor(RegionLearnerVideoProcessor.for_image_size(32, num_frames=4), tokenizer)
    model = tiny_model(text=tiny_text_config(vocab_size=200))
    for part in (model, processor):
        part.save_pretrained(tmp_path / "checkpoint")
    found = search_in_fresh_process(tmp_path / "checkpoint", test, tmp_path)
    embeddings = embed_corpus(model, processor, test, progress=False)
    texts = [embeddings.text_embeds[embeddings.texts.index(query)] for query in found.queries]
    for text, wanted, order, scores, query in zip(texts, found.wanted, found.order, found.scores, found.queries):
        expected = embeddings.video_embeds @ text
        assert scores.tolist() == pytest.approx(expected[order].tolist(), abs=1e-5)
        assert order.tolist() == expected.argsort(descending=True)[:4].tolist()
        assert query in test[wanted]["captions"]
    metrics = retrieval_accuracy(model, processor, test, progress=False)
    results = {"test": metrics, "train": {"videos": 9, "train_runtime": 1.0}, "log": [{"step": 1, "loss": "2.5"}]}
    page = _page(tmp_path / "checkpoint", test, found, results, seconds=1.0)
    assert [len(query.results) for query in page.queries] == [4] * 5
    assert page.queries[0].results[0].strip.size == page.queries[0].results[0].regions.size
    right = [result.correct for query in page.queries for result in query.results]
    assert right.count(True) == sum(wanted in order for wanted, order in zip(found.wanted, found.order.tolist()))
    assert found.queries[0] in render_page(page)


def test_a_checkpoint_that_does_not_load_without_the_package_is_an_error(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(RuntimeError, match="cannot be loaded without this package"):
        search_in_fresh_process(tmp_path / "checkpoint", _Rows(), tmp_path)


class _Rows(list):
    """Five rows of a data set, of which columns can be asked for."""

    def __init__(self):
        super().__init__({"captions": [f"clip {n}"]} for n in range(5))

    def __getitem__(self, index):
        return ["a.mp4"] * 5 if index == "video" else super().__getitem__(index)


def test_chance():
    assert chance(4) == {"R@1": 25, "R@5": 100, "R@10": 100, "R@50": 100, "MedR": 2.5, "MeanR": 2.5}
    metrics = {f"{side}_{name}": 1.0 for side in ("t2v", "v2t") for name in chance(4)} | {"videos": 4}
    header, rows = metrics_rows(metrics)
    assert [len(row) for row in rows] == [len(header)] * 3
    assert rows[-1][:2] == ["chance (4 videos)", 25]

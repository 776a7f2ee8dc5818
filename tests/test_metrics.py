"""Retrieval metrics against a naive reading: sort, and give ties the mean of their ranks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from region_learner.evaluation import compute_retrieval_metrics, retrieval_metrics


def naive_ranks(queries, gallery, relevant):
    scores = queries @ gallery.T
    return np.array([rankdata(-row, method="average")[list(r)].min() for row, r in zip(scores, relevant)])


def naive(text, video, owners, ids):
    t2v = naive_ranks(text, video, [[j for j, v in enumerate(ids) if v == o] for o in owners])
    described = [i for i, v in enumerate(ids) if v in owners]
    v2t = naive_ranks(video[described], text, [[j for j, o in enumerate(owners) if o == ids[i]] for i in described])
    result = {}
    for prefix, ranks in (("t2v", t2v), ("v2t", v2t)):
        recall = {k: 100 * sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10, 50)}
        result |= {f"{prefix}_R@{k}": value for k, value in recall.items()}
        result[f"{prefix}_MedR"] = np.median(ranks)
        result[f"{prefix}_MeanR"] = np.mean(ranks)
        result[f"{prefix}_gmean"] = (recall[1] * recall[5] * recall[10]) ** (1 / 3)
    return result


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ties", [False, True])
def test_equals_a_naive_reading(seed, ties):
    rng = np.random.default_rng(seed)
    videos, texts = rng.integers(2, 40), rng.integers(1, 90)
    draw = (lambda n: rng.integers(-1, 2, (n, 3)).astype(float)) if ties else (lambda n: rng.normal(size=(n, 6)))
    text, video = draw(texts), draw(videos)
    ids = [f"v{i}" for i in rng.permutation(1000)[:videos]]
    owners = [ids[i] for i in rng.integers(0, videos, texts)]
    if seed % 3 == 0:  # several clips of one video
        ids[-1] = ids[0]
        owners = [o if o in ids else ids[0] for o in owners]
    expected = naive(text, video, owners, ids)
    assert retrieval_metrics(text, video, owners, ids) == pytest.approx(expected)
    result = retrieval_metrics(torch.tensor(text), torch.tensor(video), owners, ids)
    assert result == pytest.approx(expected)


def test_ties_are_no_hits():
    """A model that gives every input the same embedding is at chance."""
    constant = np.ones((100, 4))
    metrics = retrieval_metrics(constant, constant)
    assert metrics["t2v_R@1"] == metrics["v2t_R@1"] == 0
    assert metrics["t2v_MedR"] == metrics["t2v_MeanR"] == 50.5
    # equal embeddings tie whatever a matrix product makes of them
    rng = np.random.default_rng(0)
    video = rng.normal(size=(7, 301)).astype(np.float32)[rng.integers(0, 7, 333)]
    metrics = retrieval_metrics(video, video)
    counts = np.unique(video, axis=0, return_counts=True)[1]
    assert metrics["t2v_MeanR"] == pytest.approx(np.average((counts + 1) / 2, weights=counts))


def test_perfect_and_by_default_text_i_is_of_video_i():
    embeds = np.eye(60)
    metrics = retrieval_metrics(embeds, embeds)
    assert metrics["t2v_R@1"] == metrics["v2t_R@1"] == metrics["t2v_gmean"] == 100
    assert metrics["t2v_MedR"] == metrics["v2t_MeanR"] == 1
    assert set(metrics) == {
        f"{d}_{m}" for d in ("t2v", "v2t") for m in ("R@1", "R@5", "R@10", "R@50", "MedR", "MeanR", "gmean")
    }
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((3, 4)), np.ones((2, 4))), "3 texts and 2 videos: say which belong together"),
        ((np.ones((3, 4)), np.ones((3, 5))), "4 dimensions, video_embeds 5"),
        ((np.ones((0, 4)), np.ones((3, 4))), "text_embeds must be of shape"),
        ((np.full((3, 4), np.nan), np.ones((3, 4))), "text_embeds holds values that are not finite"),
        ((np.ones((3, 4)), np.ones((3, 4)), [0, 1]), "text_video_ids has 2 entries for 3"),
        ((np.ones((2, 4)), np.ones((2, 4)), ["a", "z"], ["a", "b"]), r"not in video_ids: \['z'\]"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(*arguments)


def test_trainer_form_leaves_out_fillers_and_repeated_videos():
    rng = np.random.default_rng(0)
    text, video = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    ids = np.array([11, 12, -1, 13, 12, -1])
    video[4] = video[1]
    prediction = SimpleNamespace(predictions=(text, video), label_ids=ids)
    expected = naive(text[[0, 1, 3, 4]], video[[0, 1, 3]], [11, 12, 13, 12], [11, 12, 13])
    assert compute_retrieval_metrics(prediction) == pytest.approx(expected)

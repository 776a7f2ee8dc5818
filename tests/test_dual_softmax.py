"""Tests dual-softmax re-scoring against a naive computation on the whole matrix."""

import numpy as np
import pytest
import torch

from region_learner.evaluation import dual_softmax, dual_softmax_metrics, retrieval_metrics

from .test_metrics import naive_metrics


def naive_ranks(scores, relevant):
    ranks = []
    for row, own in zip(scores, relevant):
        best = max(row[j] for j in own)
        greater = sum(score > best + 1e-12 * abs(best) for score in row)
        tied = sum(abs(score - best) <= 1e-12 * abs(best) for score in row)
        ranks.append(1 + greater + (tied - 1) / 2)
    return np.array(ranks)


def naive(text, video, owners, ids, temperature):
    result = {}
    described = [i for i, video_id in enumerate(ids) if video_id in owners]
    for prefix, queries, of_queries, gallery, of_gallery in (
        ("dsl_t2v", text, owners, video, ids),
        ("dsl_v2t", video[described], [ids[i] for i in described], text, owners),
    ):
        similarity = np.round(queries @ gallery.T, 10)
        weights = np.exp(similarity / temperature)
        scores = similarity * (weights / weights.sum(0)) * len(similarity)
        relevant = [[j for j, other in enumerate(of_gallery) if other == own] for own in of_queries]
        result |= naive_metrics(prefix, naive_ranks(scores, relevant))
    return result


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("ties", [False, True])
def test_equals_a_naive_computation(seed, ties, monkeypatch):
    monkeypatch.setattr(dual_softmax, "_SCORES_AT_ONCE", 100)  # several tiles
    rng = np.random.default_rng(seed)
    videos, texts = rng.integers(2, 40), rng.integers(1, 90)
    draw = (lambda n: rng.integers(-1, 2, (n, 3)).astype(float)) if ties else (lambda n: rng.normal(size=(n, 6)))
    text, video = draw(texts), draw(videos)
    ids = [f"v{i}" for i in rng.permutation(1000)[:videos]]
    owners = [ids[i] for i in rng.integers(0, videos, texts)]
    if seed % 3 == 0:  # several clips of one video
        ids[-1] = ids[0]
        owners = [owner if owner in ids else ids[0] for owner in owners]
    temperature = (0.05, 0.5, 2.0)[seed % 3]
    result = dual_softmax_metrics(torch.tensor(text), video, owners, ids, temperature)
    assert result == pytest.approx(naive(text, video, owners, ids, temperature))
    assert all(type(value) is float for value in result.values())


def test_the_rule_on_a_small_example():
    """A video that all texts prefer is found only by the text that prefers it most."""
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.75, 0.1], [0.7, 0.1, 0.65]], dtype=torch.float64)
    plain = retrieval_metrics(similarity, torch.eye(3))
    assert plain["t2v_R@1"] == pytest.approx(100 / 3)
    assert dual_softmax_metrics(similarity, torch.eye(3), temperature=0.05)["dsl_t2v_R@1"] == 100


def test_names_are_those_of_the_plain_metrics_with_a_prefix():
    embeds = np.eye(12)
    plain, rescored = retrieval_metrics(embeds, embeds), dual_softmax_metrics(embeds, embeds)
    assert [f"dsl_{name}" for name in plain] == list(rescored)
    assert list(plain.values()) == pytest.approx(list(rescored.values()))


def test_ties_are_not_hits():
    """A model that gives every input the same embedding is at chance, and equal embeddings tie at any size."""
    constant = np.ones((100, 4)) / 2
    metrics = dual_softmax_metrics(constant, constant)
    assert metrics["dsl_t2v_R@1"] == metrics["dsl_v2t_R@1"] == 0
    assert metrics["dsl_t2v_MedR"] == metrics["dsl_t2v_MeanR"] == 50.5
    rng = np.random.default_rng(0)
    video = rng.normal(size=(7, 301)).astype(np.float32)
    video = (video / np.linalg.norm(video, axis=1, keepdims=True))[rng.integers(0, 7, 333)]
    metrics = dual_softmax_metrics(video, video, temperature=0.01)
    counts = np.unique(video, axis=0, return_counts=True)[1]
    assert metrics["dsl_t2v_MeanR"] == pytest.approx(np.average((counts + 1) / 2, weights=counts))


def test_small_weights_are_distinguished():
    """At a low temperature most weights are far below what ten decimals can show."""
    rng = np.random.default_rng(1)
    text, video = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 60, 16)))
    owners = ids = list(range(60))
    result = dual_softmax_metrics(text, video, owners, ids, temperature=0.01)
    assert result == pytest.approx(naive(text, video, owners, ids, 0.01))
    assert dual_softmax_metrics(text, video, temperature=0.005)["dsl_t2v_MeanR"] != 30.5


def test_weights_that_underflow_and_embeddings_of_any_norm():
    """Weights that underflow match those in `longdouble`. Norms do not matter if the temperature is scaled alike."""
    rng = np.random.default_rng(2)
    text, video = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 60, 16)))
    owners = ids = list(range(60))
    lowest = dual_softmax_metrics(text, video, owners, ids, temperature=2e-4)
    assert lowest == pytest.approx(naive(text.astype(np.longdouble), video, owners, ids, 2e-4))
    expected = dual_softmax_metrics(text, video)
    given = 1e-6 * text, 1e-3 * video
    assert dual_softmax_metrics(*given, temperature=0.05e-9) == pytest.approx(expected)
    assert given[0].max() < 1e-6  # the inputs are unchanged


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((3, 4)), np.ones((2, 4))), "3 texts and 2 videos: pass text_video_ids to say"),
        ((np.ones((3, 4)), np.ones((3, 5))), "same dimension, not 4 and 5"),
        ((np.ones((0, 4)), np.ones((3, 4))), "text_embeds must be of shape"),
        ((np.full((3, 4), np.nan), np.ones((3, 4))), "text_embeds contains values that are not finite"),
        ((np.ones((3, 4)), np.ones((3, 4)), [0, 1]), "text_video_ids has 2 entries for 3"),
        ((np.ones((2, 4)), np.ones((2, 4)), ["a", "z"], ["a", "b"]), r"not in video_ids: \['z'\]"),
        ((np.ones((2, 4)), np.ones((2, 4)), None, None, 0.0), r"temperature=0.0 must be above 0"),
        ((np.ones((2, 4)), np.ones((2, 4)), None, None, float("nan")), r"temperature=nan must be above 0"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        dual_softmax_metrics(*arguments)

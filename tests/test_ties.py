"""Tests how ties count, against enumerating every order of tied entries, and that all metrics agree."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from region_learner.evaluation import (
    compute_answer_metrics,
    compute_classification_metrics,
    compute_multiple_choice_metrics,
    dual_softmax_metrics,
    load_metric,
    retrieval_metrics,
)
from region_learner.evaluation.metrics import best_ranks
from region_learner.evaluation.tasks import top_k
from region_learner.evaluation.ties import chance_of_top_k, count_ties, mean_rank


def ranks_in_every_order(scores: list[float], own: int) -> list[int]:
    """Returns the rank of an entry in each order of the entries that sorts the scores."""
    orders = itertools.permutations(range(len(scores)))
    return [
        order.index(own) + 1 for order in orders if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]


def rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores with few distinct values, so that most rows have ties, and an entry of each row."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 3, (12, 5)).astype(float), rng.integers(0, 5, 12)


@pytest.mark.parametrize("seed", range(3))
def test_ranks_and_chances_are_means_over_every_order_of_ties(seed):
    scores, owns = rows(seed)
    own = torch.tensor(scores[np.arange(12), owns])
    better, tied = count_ties(torch.tensor(scores), own)
    everywhere = [ranks_in_every_order(row.tolist(), own) for row, own in zip(scores, owns)]
    assert mean_rank(better, tied).tolist() == pytest.approx([np.mean(ranks) for ranks in everywhere])
    for k in (1, 2, 5, 7):
        expected = [np.mean([rank <= k for rank in ranks]) for ranks in everywhere]
        assert chance_of_top_k(better, tied, k).tolist() == pytest.approx(expected)
    assert (tied > 1).any()
    assert (better > 0).any()


def test_scores_within_a_margin_are_tied():
    scores = torch.tensor([[0.0, 1.0, 1.1, 1.3, 0.95]])
    better, tied = count_ties(scores, torch.tensor([1.0]), margin=0.15)
    assert (better.item(), tied.item()) == (1, 3)
    assert [part.item() for part in count_ties(scores, torch.tensor([1.0]))] == [2, 1]


@pytest.mark.parametrize("seed", range(3))
def test_all_metrics_count_ties_alike(seed, tmp_path):
    """Each row has the scores of a query. Retrieval uses mean ranks; accuracies use chances."""
    scores, owns = rows(seed)
    own = torch.tensor(scores[np.arange(12), owns])
    better, tied = count_ties(torch.tensor(scores), own)
    ranks, chances = mean_rank(better, tied).numpy(), chance_of_top_k(better, tied, 1).numpy()
    assert best_ranks(scores, np.eye(5), [[own] for own in owns]).tolist() == ranks.tolist()
    found = retrieval_metrics(scores, np.eye(5), owns, range(5))
    assert found["t2v_MeanR"] == pytest.approx(ranks.mean())
    assert found["t2v_R@1"] == pytest.approx(100 * np.mean(ranks <= 1))
    assert top_k(torch.tensor(scores), torch.tensor(owns), 1).tolist() == pytest.approx(chances.tolist())
    prediction = SimpleNamespace(predictions=scores, label_ids=owns)
    accuracy = pytest.approx(100 * chances.mean())
    assert compute_answer_metrics(prediction)["accuracy"] == accuracy
    assert compute_multiple_choice_metrics(prediction)["accuracy"] == accuracy
    assert compute_classification_metrics(prediction)["top1"] == accuracy
    metric = load_metric("multiple_choice_accuracy", cache_dir=str(tmp_path))
    assert metric.compute(predictions=scores, references=owns)["accuracy"] == accuracy


def test_a_model_that_scores_everything_alike_is_at_chance_everywhere():
    same = np.ones((5, 3)) / 3**0.5
    for found, prefix in ((retrieval_metrics(same, same), ""), (dual_softmax_metrics(same, same), "dsl_")):
        assert found[f"{prefix}t2v_MeanR"] == found[f"{prefix}v2t_MeanR"] == 3
        assert found[f"{prefix}t2v_R@1"] == 0
    prediction = SimpleNamespace(predictions=np.zeros((4, 5)), label_ids=np.arange(4))
    assert compute_classification_metrics(prediction) == {"top1": 20, "top5": 100}

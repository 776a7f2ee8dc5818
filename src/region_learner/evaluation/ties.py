"""How ties count. This is the only place where scores become ranks and probabilities, for all metrics."""

from typing import TypeVar

import numpy as np
import torch

_Array = TypeVar("_Array", torch.Tensor, np.ndarray)


def count_ties(scores: torch.Tensor, own: torch.Tensor, margin: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Returns the number of entries in each row that are better than its own entry, and the number of those that are tied
    with it, including itself.

    Args:
        scores: scores (n, m).
        own: the score of each row that is ranked, (n,).
        margin: scores that differ by at most this much are tied.

    Returns:
        Two tensors of integers, (n,).
    """
    better = (scores > own[:, None] + margin).sum(1)
    return better, (scores >= own[:, None] - margin).sum(1) - better


def mean_rank(better: _Array, tied: _Array) -> _Array:
    """
    Returns the rank of an entry, counted from 1, with `better` entries before it and `tied` entries including itself.
    Tied entries share the mean of their ranks, so that a model that gives everything the same embedding ranks in the
    middle, not first.
    """
    return better + (tied + 1) / 2


def chance_of_top_k(better: torch.Tensor, tied: torch.Tensor, k: int) -> torch.Tensor:
    """Returns the probability (float64) that an entry is among the `k` best if ties are broken at random."""
    return ((k - better) / tied.clamp(min=1).double()).clamp(0, 1)

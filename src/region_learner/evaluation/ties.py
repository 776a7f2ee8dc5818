"""How ties count: the one place that turns scores into ranks and chances, for all metrics."""

from typing import TypeVar

import numpy as np
import torch

_Array = TypeVar("_Array", torch.Tensor, np.ndarray)


def count_ties(scores: torch.Tensor, own: torch.Tensor, margin: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Counts the entries of each row that are better than its own, and those that are tied with it, itself included.

    Args:
        scores: (n, m).
        own: (n,), the score in each row that is ranked.
        margin: scores that differ by no more than this are tied.

    Returns:
        Two tensors of integers, (n,).
    """
    better = (scores > own[:, None] + margin).sum(1)
    return better, (scores >= own[:, None] - margin).sum(1) - better


def mean_rank(better: _Array, tied: _Array) -> _Array:
    """
    Returns the rank of an entry, counted from 1, with `better` entries before it and `tied` entries including itself.
    Tied entries share the mean of their ranks, so that a model that embeds everything alike ranks in the middle, not
    first.
    """
    return better + (tied + 1) / 2


def chance_of_top_k(better: torch.Tensor, tied: torch.Tensor, k: int) -> torch.Tensor:
    """Returns the probability, float64, that an entry is among the `k` best if ties are broken at random."""
    return ((k - better) / tied.clamp(min=1).double()).clamp(0, 1)

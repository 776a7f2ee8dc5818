"""`auto_find_batch_size`: trains anew with half the batch size until batches fit in memory."""

import copy
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate.utils import find_executable_batch_size

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Start:
    """What a run begins with (weights, optimiser, random numbers), so that each try begins with the same."""

    def __init__(self, model: torch.nn.Module, optimizer: Any):
        self.weights = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
        self.optimizer = None if optimizer is None else copy.deepcopy(optimizer.state_dict())
        self.random = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore(self, model: torch.nn.Module, optimizer: Any) -> Any:
        """Returns the optimiser to begin with: the one of the beginning, None if there was none."""
        model.load_state_dict(self.weights)
        torch.set_rng_state(self.random[0])
        if self.random[1]:
            torch.cuda.set_rng_state_all(self.random[1])
        if self.optimizer is None:
            return None
        optimizer.load_state_dict(self.optimizer)
        return optimizer


def halve_until_it_fits(train: Callable[[int], T], size: int, smallest: int, resumed: bool = False) -> T:
    """
    `train(size)`, and again with half the size whenever it runs out of memory.

    Args:
        train: begins anew each time it is called.
        size: the largest batch.
        smallest: the smallest.
        resumed: whether the run began with a checkpoint, whose batch size has to stay.

    Raises:
        ValueError: not even the smallest batch fits, or that of a checkpoint does not.
    """

    def half() -> int:
        nonlocal size
        if resumed:
            raise ValueError(
                f"Batches of {size}, with which this checkpoint was trained, do not fit in memory any more: give "
                "--gradient_cache_chunk or --gradient_checkpointing true, or train from the beginning."
            )
        if size // 2 < smallest:
            raise ValueError(
                f"auto_find_batch_size: not even batches of {size} fit in memory. Take fewer or smaller frames, or "
                "--gradient_checkpointing true."
            )
        logger.warning("Batches of %d do not fit in memory: training begins anew with %d.", size, size // 2)
        size //= 2
        return size

    return find_executable_batch_size(train, starting_batch_size=size, reduce_batch_size_fn=half)()

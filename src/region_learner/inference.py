"""Helpers for running a model without training it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from tqdm.auto import tqdm

_Item = TypeVar("_Item")


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """
    Puts a model into evaluation mode, without gradients. Afterwards, each of its modules returns to the mode that it
    was in, so that a frozen tower stays in evaluation mode while the rest is trained.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def progress_bar(
    items: Iterable[_Item], description: str, total: int | None = None, show: bool = True, unit: str = "batch"
) -> Iterable[_Item]:
    """Shows a progress bar for anything that takes longer than a second, if standard error is a terminal."""
    return tqdm(items, description, total, unit=unit, delay=1, disable=None if show else True)

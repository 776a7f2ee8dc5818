"""The embeddings that an index stores for each window: its vector, and the tokens that words are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .vectors import AGAIN, Vectors

# Maximum number of tokens per window. Models with regions have fewer. Models with patches have hundreds, nearly all of
# which are never the best match of a word.
MOST_TOKENS = 32
_MOST_TOKEN_DIMENSIONS = 2**10  # so that untrusted files take bounded memory

_ROUNDING = 1e-3  # tolerance for the lengths of vectors
_ROUNDING_OF_TOKENS = 1e-2  # tolerance for float16 numbers and their sums


@dataclass(frozen=True)
class Windows:
    """
    The embeddings of some windows.

    Args:
        vectors: L2-normalized embeddings, float32 (W, D).
        tokens: float16 (W, n, 1 + d): the weight of each token, followed by its L2-normalized embedding. The weights
            of a window sum to 1, and a token of weight 0 is absent. None if the model or the index has no tokens.
    """

    vectors: np.ndarray
    tokens: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def empty(cls, about: dict[str, Any]) -> Windows:
        """Returns an empty set of windows with the shapes of an index with the settings `about`."""
        tokens = about["tokens"]
        none = None if tokens is None else np.empty((0, tokens[0], 1 + tokens[1]), np.float16)
        return cls(np.empty((0, about["dim"]), np.float32), none)

    @classmethod
    def concatenate(cls, parts: Sequence[Windows]) -> Windows:
        """Concatenates the windows of one or more parts. The result has no tokens if any part lacks them."""
        tokens = [part.tokens for part in parts if part.tokens is not None]
        return cls(
            np.concatenate([part.vectors for part in parts]),
            np.concatenate(tokens) if len(tokens) == len(parts) else None,
        )


def pack_tokens(embeds: torch.Tensor, weights: torch.Tensor) -> np.ndarray:
    """
    Returns the tokens of windows in the form in which they are stored, float16 (B, n, 1 + d). If there are more than
    `MOST_TOKENS`, those that differ most from each other are kept, in their order, and their weights are rescaled to
    sum to 1.

    Args:
        embeds: L2-normalized embeddings (B, tokens, d).
        weights: weights (B, tokens), which sum to 1 for each window.
    """
    embeds, weights = torch.nn.functional.normalize(embeds.float().cpu(), dim=-1), weights.float().cpu()
    if weights.shape[1] > MOST_TOKENS:
        kept = _farthest_points(embeds, weights, MOST_TOKENS).sort(1).values
        weights = weights.gather(1, kept)
        weights = weights / weights.sum(1, keepdim=True)
        embeds = embeds.gather(1, kept[..., None].expand(-1, -1, embeds.shape[2]))
    # In float16, a small weight could become 0, which means that the token is absent.
    weights = weights.where(weights == 0, weights.clamp(min=torch.finfo(torch.float16).tiny))
    return torch.cat([weights[..., None], embeds], -1).half().numpy()


def _farthest_points(embeds: torch.Tensor, weights: torch.Tensor, count: int) -> torch.Tensor:
    """
    Chooses tokens by greedy farthest-point sampling, and returns their indices (B, count). It starts with the token of
    the highest weight, and repeatedly adds the token that is least similar to the chosen ones. Among equal tokens, the
    first is chosen, and absent tokens come last. (The tokens with the highest weights often show the same thing, but
    queries ask for other things as well.)
    """
    points = embeds.double()
    newest = weights.argmax(1)
    greatest = torch.where(weights == 0, 2.0, -2.0).double()  # cosine with a chosen token; 2: absent, 3: chosen
    chosen = [newest]
    while len(chosen) < count:
        # Rounding removes differences that come from the other windows in the batch and the position of a token.
        cosines = (points @ points.take_along_dim(newest[:, None, None], 1).mT).squeeze(2).round(decimals=10)
        greatest = torch.maximum(greatest, cosines).scatter(1, newest[:, None], 3.0)
        newest = greatest.argmin(1)
        chosen.append(newest)
    return torch.stack(chosen, 1)


def are_units(vectors: np.ndarray) -> bool:
    """Returns whether all vectors (n, D) are finite and L2-normalized."""
    return bool((np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1) < _ROUNDING).all())


def are_tokens(tokens: np.ndarray) -> bool:
    """Returns whether tokens (W, n, 1 + d) have the form that `pack_tokens` gives them."""
    weights, embeds = tokens[..., 0].astype(np.float32), tokens[..., 1:].astype(np.float32)
    lengths = np.linalg.norm(embeds, axis=-1)
    is_unit = (np.abs(lengths - 1) < _ROUNDING_OF_TOKENS) | ((weights == 0) & (lengths == 0))
    return bool(is_unit.all() and (weights >= 0).all() and (np.abs(weights.sum(1) - 1) < _ROUNDING_OF_TOKENS).all())


def is_token_shape(shape: Any) -> bool:
    """Returns whether a value, which may be untrusted, is the shape [n, d] of tokens, or None."""
    return shape is None or (
        isinstance(shape, list)
        and [type(number) for number in shape] == [int, int]
        and 0 < shape[0] <= MOST_TOKENS
        and 0 < shape[1] <= _MOST_TOKEN_DIMENSIONS
    )


class WindowStore:
    """
    The windows of an index on disk, by row: the vectors in files, and the tokens in files beside them.

    Args:
        directory: directory of the files.
        dim: length of the vectors.
        shape: number and length of the tokens of a window, [n, d]; None if tokens are not kept.
    """

    def __init__(self, directory: Path, dim: int, shape: Sequence[int] | None):
        self.directory, self.vectors = directory, Vectors(directory, dim)
        self.tokens: Vectors | None = None
        if shape is not None:
            self._shape = (shape[0], 1 + shape[1])
            self.tokens = Vectors(directory, math.prod(self._shape), "tokens", "<f2")

    def write(self, row: int, windows: Windows) -> None:
        """Writes windows as the rows from `row` on; see [`Vectors.write`]. Ignores tokens if the index keeps none."""
        self.vectors.write(row, windows.vectors)
        if self.tokens is not None:
            if windows.tokens is None or windows.tokens.shape[1:] != self._shape:
                raise ValueError(f"{self.directory} is damaged (number of tokens): {AGAIN}")
            self.tokens.write(row, windows.tokens.reshape(-1, math.prod(self._shape)))

    def read(self, start: int, stop: int) -> Windows:
        """Returns the windows [start, stop), as views of the files if possible; see [`Vectors.read`]."""
        tokens = None if self.tokens is None else self.tokens.read(start, stop).reshape(stop - start, *self._shape)
        return Windows(self.vectors.read(start, stop), tokens)

    def take_tokens(self, rows: np.ndarray) -> np.ndarray:
        """
        Returns a copy of the tokens of `rows` (k,), float16 (k, n, 1 + d).

        Raises:
            ValueError: the files are incomplete, or damaged.
        """
        assert self.tokens is not None
        tokens = self.tokens.take(rows).reshape(len(rows), *self._shape)
        if not are_tokens(tokens):
            raise ValueError(f"{self.directory} is damaged (tokens of a window): {AGAIN}")
        return tokens

    def check(self, rows: int) -> None:
        """Raises a `ValueError` unless the files contain `rows` rows."""
        self.vectors.check(rows)
        if self.tokens is not None:
            self.tokens.check(rows)

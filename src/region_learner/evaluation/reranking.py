"""
Retrieval in two stages: all entries are ranked by a single vector, and the best entries are re-ranked by words and
regions.

Metrics after re-ranking have their own names and are reported separately: a score that compares every word with every
region is not the score of a dual encoder, whose embeddings can be searched with an index.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..inference import progress_bar
from .dual_softmax import matrix, places, tiles
from .metrics import match_ids, parallel_map, summary
from .reading import Views
from .ties import count_ties, mean_rank

CANDIDATES = 100  # default number of candidates per query

# Float32 is not precise enough to compare similarities that differ by less than this, so float64 is used for them.
_UNSURE = 2.0**-13

_NUMBERS_AT_ONCE = 2**20  # 4 MiB of float32


@dataclass
class Tokens:
    """
    Embeddings of the words of texts, or of the regions of videos.

    They are stored in float32, as the model returns them, so that scores are those of the model. float16 would halve
    the memory, but the CPU would have to convert it for each product.

    Args:
        embeds: L2-normalized embeddings (n, length, dim).
        weights: weights (n, length), 0 for padding. The weights of each text or video sum to 1.
    """

    embeds: torch.Tensor
    weights: torch.Tensor

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, index: Any) -> "Tokens":
        """Returns the tokens of one text or video, or of several."""
        return Tokens(self.embeds[index], self.weights[index])

    def double(self) -> "Tokens":
        """Returns a copy in float64."""
        return Tokens(self.embeds.double(), self.weights.double())

    @classmethod
    def concatenate(cls, parts: Sequence["Tokens"]) -> "Tokens":
        """Concatenates `parts`, padded to the longest one."""
        longest = max(part.weights.shape[1] for part in parts)
        missing = [longest - part.weights.shape[1] for part in parts]
        return cls(
            torch.cat([F.pad(part.embeds, (0, 0, 0, more)) for part, more in zip(parts, missing)]),
            torch.cat([F.pad(part.weights, (0, more)) for part, more in zip(parts, missing)]),
        )


def has_tokens(model: Any) -> bool:
    """Returns whether a model has embeddings of words and regions."""
    return bool(getattr(getattr(model, "config", None), "token_dim", 0))


def check_tokens(model: Any, views: Views) -> None:
    """
    Checks that results can be re-ranked.

    Raises:
        ValueError: a model has no embeddings of words and regions, or a video has several clips. (With several clips,
            a video would have more regions, and windows of videos of different lengths could not be compared.)
    """
    if not has_tokens(model):
        raise ValueError("Re-ranking needs a model with word-region embeddings (token_dim): leave out --rerank.")
    if not views.single:
        raise ValueError("Re-ranking needs one clip per video: leave out --clips and --window-stride, or --rerank.")


def number_to_rerank(model: Any, rerank: int | None, views: Views) -> int:
    """
    Returns the number of best entries of each query that are re-ranked; 0 means none.

    Args:
        model: the dual encoder.
        rerank: the requested number. None means `CANDIDATES` if the model has word-region tokens and each video has
            one clip, and 0 otherwise.
        views: the clips of each video.

    Raises:
        ValueError: re-ranking was requested but is not possible, or the number is negative.
    """
    if rerank is None:
        return CANDIDATES if has_tokens(model) and views.single else 0
    if rerank < 0:
        raise ValueError(f"rerank={rerank} must be at least 0.")
    if rerank:
        check_tokens(model, views)
    return rerank


def temperatures_of(model: Any) -> dict[str, float]:
    """Returns the temperatures of a model with tokens, learned or fixed, as arguments of [`reranked_metrics`]."""
    with torch.no_grad():
        return {name: float(getattr(model, name)) for name in ("temperature", "token_temperature")}


def candidate_similarity(query: Tokens, candidates: Tokens) -> torch.Tensor:
    """
    Returns the similarity (K,) of one text and its K candidate videos, or of one video and its K candidate texts, as
    [`~region_learner.modeling_region_learner.word_region_similarity`] defines it. It is symmetric.

    Args:
        query: tokens of one text or video: `embeds` (L, dim), `weights` (L,).
        candidates: tokens of the candidates: `embeds` (K, n, dim), `weights` (K, n).

    Example:

    ```python
    >>> text = Tokens(outputs.text_token_embeds[0], outputs.text_token_weights[0])
    >>> videos = Tokens(outputs.video_token_embeds, outputs.video_token_weights)
    >>> candidate_similarity(text, videos).shape
    torch.Size([1])
    ```
    """
    present = query.weights > 0
    embeds, weights = query.embeds[present], query.weights[present]
    cosines = (embeds @ candidates.embeds.flatten(0, 1).T).unflatten(1, candidates.weights.shape)  # (L, K, n)
    by_candidates = (cosines.amax(0) * candidates.weights).sum(1)
    absent = candidates.weights == 0
    if absent.any():
        cosines = cosines.masked_fill_(absent, -torch.inf)
    return (weights @ cosines.amax(2) + by_candidates) / 2


def exact_similarity(query: Tokens, candidates: Tokens) -> torch.Tensor:
    """
    Returns [`candidate_similarity`] in float64, rounded, because matrix products sum in another order at the edges of
    a matrix, which could break ties of equal tokens.
    """
    return candidate_similarity(query.double(), candidates.double()).round(decimals=10)


def _of_candidates(
    similarity: Callable[[Tokens, Tokens], torch.Tensor], query: Tokens, gallery: Tokens, candidates: torch.Tensor
) -> torch.Tensor:
    """Returns the similarities (K,), float64, of a query and the entries `candidates` (K,) of a gallery."""
    step = max(1, _NUMBERS_AT_ONCE // gallery.embeds[0].numel())
    return torch.cat([similarity(query, gallery[part]) for part in candidates.split(step)]).double()


def reranked_metrics(
    text_embeds: Any,
    video_embeds: Any,
    text_tokens: Tokens,
    video_tokens: Tokens,
    text_video_ids: Sequence[Any] | None = None,
    video_ids: Sequence[Any] | None = None,
    *,
    temperature: float,
    token_temperature: float,
    candidates: int = CANDIDATES,
) -> dict[str, float]:
    """
    Returns retrieval metrics after re-ranking. For each query, the entries with the highest cosines are sorted by
    `cosine / temperature + similarity / token_temperature`, the sum of the model's `logits_per_text` and
    `token_logits_per_text`. All other entries keep their ranks behind them.

    Entries that are tied with the last candidate are candidates as well, so that the result does not depend on the
    order of the gallery. Similarities are computed for one query and its candidates at a time.

    Args:
        text_embeds (array of shape `(texts, dim)`): L2-normalized embeddings of texts.
        video_embeds (array of shape `(videos, dim)`): L2-normalized embeddings of videos.
        text_tokens, video_tokens: tokens of the same texts and videos.
        text_video_ids (sequence of length `texts`, *optional*): id of the video that each text describes. By default,
            text i describes the i-th video.
        video_ids (sequence of length `videos`, *optional*): id of each video. The default is 0, 1, 2, ...
        temperature, token_temperature: temperatures of the model.
        candidates: the number of entries per query that are sorted.

    Returns:
        `rr_t2v_R@1` and so on, like [`retrieval_metrics`], with the same rules for ties and for several texts per
        video.

    Raises:
        ValueError: shapes or ids do not fit, values are not finite, the video of a text is missing, or `candidates` is
            less than 1.

    Example:

    ```python
    >>> texts = Tokens(outputs.text_token_embeds, outputs.text_token_weights)
    >>> videos = Tokens(outputs.video_token_embeds, outputs.video_token_weights)
    >>> metrics = reranked_metrics(
    ...     outputs.text_embeds, outputs.video_embeds, texts, videos, temperature=0.05, token_temperature=0.05
    ... )
    >>> metrics["rr_t2v_R@1"]
    100.0
    ```
    """
    if candidates < 1:
        raise ValueError(f"candidates={candidates} must be at least 1.")
    texts, videos = matrix("text_embeds", text_embeds), matrix("video_embeds", video_embeds)
    owners, ids = match_ids(texts, videos, text_video_ids, video_ids)
    for name, embeds, tokens in (("text", texts, text_tokens), ("video", videos, video_tokens)):
        if len(tokens) != len(embeds):
            raise ValueError(f"{name}_tokens must have {len(embeds)} entries, one per embedding, not {len(tokens)}.")
        if not (torch.isfinite(tokens.embeds).all() and torch.isfinite(tokens.weights).all()):
            raise ValueError(f"{name}_tokens contains values that are not finite.")
    texts_of, videos_of = places(owners), places(ids)
    of_texts = {i: videos_of[video_id] for i, video_id in enumerate(owners)}
    of_videos = {i: texts_of[video_id] for i, video_id in enumerate(ids) if video_id in texts_of}
    ranks = partial(_best_ranks, temperature=temperature, token_temperature=token_temperature, candidates=candidates)
    t2v = ranks((texts, text_tokens), (videos, video_tokens), of_texts)
    v2t = ranks((videos, video_tokens), (texts, text_tokens), of_videos)
    return summary("rr_t2v", t2v) | summary("rr_v2t", v2t)


def _best_ranks(
    queries: tuple[torch.Tensor, Tokens],
    gallery: tuple[torch.Tensor, Tokens],
    relevant: Mapping[int, Sequence[int]],
    *,
    temperature: float,
    token_temperature: float,
    candidates: int,
) -> np.ndarray:
    """Returns the rank of the best-ranked `relevant` entry of each query that has any, (queries,)."""

    def rank(i: int, cosines: torch.Tensor) -> torch.Tensor:
        own = torch.tensor(relevant[i])
        last = cosines.topk(min(candidates, len(cosines))).values[-1]
        if (best := cosines[own].max()) < last:  # it keeps its place
            return mean_rank(*count_ties(cosines[None], best[None]))
        chosen = (cosines >= last).nonzero()[:, 0]
        logits, is_own = cosines[chosen] / temperature, torch.isin(chosen, own)
        query = queries[1][i]
        scores = logits + _of_candidates(candidate_similarity, query, gallery[1], chosen) / token_temperature
        unsure = (scores - scores[is_own].max()).abs() <= _UNSURE / token_temperature
        exact = _of_candidates(exact_similarity, query, gallery[1], chosen[unsure])
        scores[unsure] = logits[unsure] + exact / token_temperature
        return mean_rank(*count_ties(scores[None], scores[is_own].max()[None]))

    numbers = list(relevant)
    with parallel_map(len(numbers)) as map_in_threads:
        ranks = (
            one
            for part, scores in tiles(queries[0][numbers], gallery[0])
            for one in map_in_threads(rank, numbers[part], scores)
        )
        return torch.cat(list(progress_bar(ranks, "re-ranking", len(numbers), unit="query"))).double().numpy()

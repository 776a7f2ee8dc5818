"""
Dual-softmax re-scoring (Cheng et al., "Improving Video-Text Retrieval by Multi-Stream Corpus Alignment and Dual
Softmax Loss", arXiv 2109.04290), which many papers apply to the scores of a trained model.

It uses all queries at once, so the hits of a query depend on the other queries. It also benefits from the fact that
every entry is queried equally often, which is true of benchmarks but not of users. Therefore, its metrics have their
own names and are reported separately.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .metrics import match_ids, summary
from .ties import count_ties, mean_rank

# Logarithms are tied if they differ by less than this share of their range, which is 64 times their rounding error.
TIED = 2.0**-46

_SCORES_AT_ONCE = 2**21  # 16 MiB of float64


def dual_softmax_metrics(
    text_embeds: Any,
    video_embeds: Any,
    text_video_ids: Sequence[Any] | None = None,
    video_ids: Sequence[Any] | None = None,
    temperature: float = 0.05,
) -> dict[str, float]:
    """
    Returns retrieval metrics of re-scored pairs: the score s of a query and an entry becomes
    `s * softmax(s / temperature)`, with the softmax over all queries for the same entry. The queries of text-to-video
    are the texts, and those of video-to-text are the videos that have a text.

    As in the authors' code, the score itself is weighted, so that a negative score drops further the more it stands
    out. Their code also multiplies it by the number of queries, which does not change ranks. Scores are computed in
    tiles, twice: once for the sums of the softmax, and once for the ranks.

    Args:
        text_embeds (array of shape `(texts, dim)`): embeddings of texts, which are compared with those of videos by
            dot product. Normalize both for cosine similarity.
        video_embeds (array of shape `(videos, dim)`): embeddings of videos.
        text_video_ids (sequence of length `texts`, *optional*): id of the video that each text describes. By default,
            text i describes the i-th video.
        video_ids (sequence of length `videos`, *optional*): id of each video. The default is 0, 1, 2, ...
        temperature: temperature of the softmax, usually that of the model.

    Returns:
        `dsl_t2v_R@1` and so on, like [`retrieval_metrics`], with the same rules for ties and for several texts per
        video.

    Raises:
        ValueError: shapes or ids do not fit, values are not finite, the video of a text is missing, or the temperature
            is not above 0.

    Example:

        dual_softmax_metrics(text_embeds, video_embeds, ["a", "a", "b"], ["a", "b"])["dsl_t2v_R@1"]
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0.")
    texts, videos = matrix("text_embeds", text_embeds), matrix("video_embeds", video_embeds)
    owners, ids = match_ids(texts, videos, text_video_ids, video_ids)
    # Scale scores to at most 1, for which the bounds on rounding below hold. Ranks do not depend on the scale.
    for embeds in (texts, videos):
        longest = float(embeds.norm(dim=1).max()) or 1.0
        embeds /= longest
        temperature /= longest
    texts_of, videos_of = places(owners), places(ids)
    described = [i for i, video_id in enumerate(ids) if video_id in texts_of]
    t2v = _best_ranks(texts, videos, [videos_of[video_id] for video_id in owners], temperature)
    v2t = _best_ranks(videos[described], texts, [texts_of[ids[i]] for i in described], temperature)
    return summary("dsl_t2v", t2v) | summary("dsl_v2t", v2t)


def matrix(name: str, embeds: Any) -> torch.Tensor:
    """
    Returns a copy of embeddings (n, dim) in float64.

    Raises:
        ValueError: they have another shape, or contain values that are not finite.
    """
    embeds = torch.as_tensor(embeds).detach().cpu().to(torch.float64, copy=True)
    if embeds.ndim != 2 or not len(embeds):
        raise ValueError(f"{name} must be of shape (n, dim) with n > 0, not {tuple(embeds.shape)}.")
    if not torch.isfinite(embeds).all():
        raise ValueError(f"{name} contains values that are not finite.")
    return embeds


def places(ids: Sequence[Any]) -> dict[Any, list[int]]:
    """Returns the indices of the entries with each id."""
    places: dict[Any, list[int]] = {}
    for i, video_id in enumerate(ids):
        places.setdefault(video_id, []).append(i)
    return places


def tiles(queries: torch.Tensor, gallery: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yields some queries at a time, and their scores with the whole gallery."""
    step = max(1, _SCORES_AT_ONCE // len(gallery))
    for start in range(0, len(queries), step):
        part = slice(start, min(start + step, len(queries)))
        # Matrix products sum in another order at the edges of a matrix, so the scores of equal embeddings can differ
        # in the last bit.
        yield part, (queries[part] @ gallery.T).round_(decimals=10)


def _best_ranks(
    queries: torch.Tensor, gallery: torch.Tensor, relevant: Sequence[Sequence[int]], temperature: float
) -> np.ndarray:
    """Returns the rank of the best-ranked of the `relevant` entries of each query, (queries,)."""
    normalizer = torch.full((len(gallery),), -torch.inf, dtype=torch.float64)  # log of the sum over all queries
    for _, scores in tiles(queries, gallery):
        normalizer = torch.logaddexp(normalizer, scores.div_(temperature).logsumexp(0))
    ranks = torch.zeros(len(queries), dtype=torch.float64)
    # Most weights are close to 0 and would underflow, so logarithms are compared instead, with the sign of the score.
    # `enough` makes them positive: scores are rounded to 1e-10 and at most 1.
    enough = 24 + 2 / temperature + math.log(len(queries))
    margin = TIED * enough
    for part, scores in tiles(queries, gallery):
        logarithms = scores.abs().clamp_(min=1e-11).log_().add_(scores / temperature).sub_(normalizer)
        scores = scores.sign() * (logarithms + enough)
        best = torch.stack([row[list(own)].max() for row, own in zip(scores, relevant[part])])
        ranks[part] = mean_rank(*count_ties(scores, best, margin))
    return ranks.numpy()

"""Ranks and what is made of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

RECALL_AT = (1, 5, 10, 50)
_SCORES_AT_ONCE = 2**24  # 128 MiB of float64

# Of rows that are there to fill a batch and count for nothing.
IGNORED_ID = -1


def _matrix(name: str, embeds: Any) -> torch.Tensor:
    embeds = torch.as_tensor(embeds)
    if embeds.ndim != 2 or not len(embeds):
        raise ValueError(f"{name} must be of shape (n, dim) with n > 0, not {tuple(embeds.shape)}.")
    if not torch.isfinite(embeds).all():
        raise ValueError(f"{name} holds values that are not finite.")
    return embeds.detach().cpu().double()


def _ids(name: str, ids: Any, length: int) -> list:
    ids = list(range(length)) if ids is None else ids.tolist() if hasattr(ids, "tolist") else list(ids)
    if len(ids) != length:
        raise ValueError(f"{name} has {len(ids)} entries for {length} embeddings.")
    return ids


def best_ranks(queries: torch.Tensor, gallery: torch.Tensor, relevant: Sequence[Sequence[int]]) -> np.ndarray:
    """
    Rank of the best-ranked relevant gallery entry for each query, by dot product, in bounded memory.

    Ranks start at 1. Entries of equal score share the mean of their ranks, so that a constant embedding ranks in
    the middle, not first.

    Args:
        queries: (n, dim), float64.
        gallery: (m, dim), float64.
        relevant: for each query, the indices of its relevant gallery entries (one at least).

    Returns:
        ranks of shape (n,), float64: whole, or half where there are ties.
    """
    ranks = []
    step = max(1, _SCORES_AT_ONCE // len(gallery))
    for start in range(0, len(queries), step):
        # Matrix products sum in another order at the edges of a matrix: equal embeddings can differ in the last bit.
        scores = (queries[start : start + step] @ gallery.T).round(decimals=10)
        rows = relevant[start : start + step]
        best = torch.stack([row[list(indices)].max() for row, indices in zip(scores, rows)])[:, None]
        greater, tied = (scores > best).sum(1), (scores == best).sum(1)
        ranks.append(1 + greater + (tied - 1) / 2)
    return torch.cat(ranks).numpy()


def _summary(prefix: str, ranks: np.ndarray) -> dict[str, float]:
    result = {f"{prefix}_R@{k}": float(100 * np.mean(ranks <= k)) for k in RECALL_AT}
    recalls = [result[f"{prefix}_R@{k}"] for k in (1, 5, 10)]
    return result | {
        f"{prefix}_MedR": float(np.median(ranks)),
        f"{prefix}_MeanR": float(np.mean(ranks)),
        f"{prefix}_gmean": float(np.cbrt(np.prod(recalls))),
    }


def retrieval_metrics(
    text_embeds: Any, video_embeds: Any, text_video_ids: Any = None, video_ids: Any = None
) -> dict[str, float]:
    """
    Text-to-video (`t2v_`) and video-to-text (`v2t_`) retrieval.

    Args:
        text_embeds (array of shape `(texts, dim)`): compared by dot product: of length 1 for cosine similarity.
        video_embeds (array of shape `(videos, dim)`): likewise.
        text_video_ids (sequence of length `texts`, *optional*): id of the video that each text describes; several
            texts may describe one video. By default text i describes the i-th video.
        video_ids (sequence of length `videos`, *optional*): id of each video, by default 0, 1, 2, ...

    Returns:
        `R@1`, `R@5`, `R@10`, `R@50` in percent, `MedR`, `MeanR`, and `gmean`, the geometric mean of R@1, 5 and 10,
        each with prefix. Ranks start at 1, ties count as the mean of their ranks. Video-to-text takes the
        best-ranked text of a video; videos without a text are in the gallery but are no queries.

    Raises:
        ValueError: for shapes and ids that do not fit, values that are not finite, or a text whose video is missing.
    """
    texts, videos = _matrix("text_embeds", text_embeds), _matrix("video_embeds", video_embeds)
    if texts.shape[1] != videos.shape[1]:
        raise ValueError(f"text_embeds have {texts.shape[1]} dimensions, video_embeds {videos.shape[1]}.")
    if text_video_ids is None and video_ids is None and len(texts) != len(videos):
        raise ValueError(
            f"There are {len(texts)} texts and {len(videos)} videos: say which belong together, by text_video_ids."
        )
    owners = _ids("text_video_ids", text_video_ids, len(texts))
    ids = _ids("video_ids", video_ids, len(videos))
    videos_of: dict[Any, list[int]] = {}
    texts_of: dict[Any, list[int]] = {}
    for i, video_id in enumerate(ids):
        videos_of.setdefault(video_id, []).append(i)
    for i, video_id in enumerate(owners):
        texts_of.setdefault(video_id, []).append(i)
    if missing := [video_id for video_id in texts_of if video_id not in videos_of]:
        raise ValueError(f"{len(missing)} videos of text_video_ids are not in video_ids: {missing[:3]} ...")
    t2v = best_ranks(texts, videos, [videos_of[video_id] for video_id in owners])
    described = [i for i, video_id in enumerate(ids) if video_id in texts_of]
    v2t = best_ranks(videos[described], texts, [texts_of[ids[i]] for i in described])
    return _summary("t2v", t2v) | _summary("v2t", v2t)


def compute_retrieval_metrics(prediction) -> dict[str, float]:
    """
    `compute_metrics` for the Trainer: `prediction.predictions` are (text_embeds, video_embeds), `label_ids` the ids
    of the videos. Pairs with the id -1 count for nothing; a video met again with another text counts once.
    """
    text_embeds, video_embeds = prediction.predictions[:2]
    ids = prediction.label_ids[0] if isinstance(prediction.label_ids, tuple) else prediction.label_ids
    kept = ids != IGNORED_ID
    text_embeds, video_embeds, ids = text_embeds[kept], video_embeds[kept], ids[kept]
    _, first = np.unique(ids, return_index=True)
    first = np.sort(first)
    return retrieval_metrics(text_embeds, video_embeds[first], ids, ids[first])

"""Embeds the videos and texts of a corpus, and evaluates retrieval with these embeddings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import torch
import torch.nn.functional as F

from ..inference import evaluation_mode, progress_bar
from .dual_softmax import dual_softmax_metrics
from .metrics import retrieval_metrics
from .reading import ONE_VIEW, CorpusRows, ReadingOptions, mean_of_views, read_clips, warn_of_unreadable
from .reranking import CANDIDATES, Tokens, check_tokens, number_to_rerank, reranked_metrics, temperatures_of


@dataclass
class Embeddings:
    """
    The L2-normalized embeddings of the videos and the captions of a corpus.

    Args:
        video_ids: ids of the videos.
        video_embeds: embeddings of the videos (videos, dim).
        texts: the captions.
        text_embeds: embeddings of the captions (texts, dim).
        text_video_ids: id of the video that each text describes.
        unreadable: error messages, by id, of videos that could not be read. The other fields do not contain them.
        video_tokens, text_tokens: embeddings of regions and of words, if they were requested.
    """

    video_ids: list[str]
    video_embeds: torch.Tensor
    texts: list[str]
    text_embeds: torch.Tensor
    text_video_ids: list[str]
    unreadable: dict[str, str] = field(default_factory=dict)
    video_tokens: Tokens | None = None
    text_tokens: Tokens | None = None

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of [`retrieval_metrics`]."""
        return retrieval_metrics(self.text_embeds, self.video_embeds, self.text_video_ids, self.video_ids)

    def rescored_metrics(self, temperature: float) -> dict[str, float]:
        """Returns the metrics of [`dual_softmax_metrics`] for a temperature."""
        return dual_softmax_metrics(
            self.text_embeds, self.video_embeds, self.text_video_ids, self.video_ids, temperature
        )

    def reranked_metrics(
        self, temperature: float, token_temperature: float, candidates: int = CANDIDATES
    ) -> dict[str, float]:
        """
        Returns the metrics of [`reranked_metrics`] for the temperatures of the model.

        Raises:
            ValueError: there are no tokens: call `embed_corpus` with `tokens=True`.
        """
        if self.text_tokens is None or self.video_tokens is None:
            raise ValueError("Re-ranking needs embeddings of words and regions: call embed_corpus with tokens=True.")
        return reranked_metrics(
            self.text_embeds,
            self.video_embeds,
            self.text_tokens,
            self.video_tokens,
            self.text_video_ids,
            self.video_ids,
            temperature=temperature,
            token_temperature=token_temperature,
            candidates=candidates,
        )


def embed_texts(
    model,
    processor,
    texts: Sequence[str],
    *,
    batch_size: int = 256,
    progress: bool = True,
    tokens: list[Tokens] | None = None,
) -> torch.Tensor:
    """
    Returns the L2-normalized embeddings of `texts`, (texts, dim), on the CPU.

    Args:
        model: the dual encoder.
        processor: its processor.
        texts: the texts.
        batch_size: texts per batch.
        progress: whether to show a progress bar if standard error is a terminal.
        tokens: a list to which the embeddings of the words are appended, batch by batch.

    Example:

        embed_texts(model, processor, ["a red square", "a blue circle"])  # (2, projection_dim)
    """
    embeds = []
    with evaluation_mode(model):
        for start in progress_bar(range(0, len(texts), batch_size), "embedding texts", show=progress):
            inputs = processor(text=list(texts[start : start + batch_size]), return_tensors="pt").to(model.device)
            if tokens is None:
                features = model.get_text_features(**inputs).pooler_output
            else:
                outputs = model(**inputs)
                features = outputs.text_embeds
                tokens.append(_on_cpu(outputs.text_token_embeds, outputs.text_token_weights))
            embeds.append(F.normalize(features.float(), dim=-1).cpu())
    return torch.cat(embeds)


def _on_cpu(embeds: torch.Tensor, weights: torch.Tensor) -> Tokens:
    return Tokens(embeds.float().cpu(), weights.float().cpu())


def embed_videos(
    model, processor, videos: Sequence[Any], tokens: list[Tokens] | None = None, **reading: Unpack[ReadingOptions]
) -> tuple[torch.Tensor, dict[int, str]]:
    """
    Returns the L2-normalized embeddings of `videos`, (videos, dim), on the CPU, and the error message of each
    unreadable video by its index. The embedding of an unreadable video is NaN. With several clips per video, the
    embedding is the normalized mean of the clips' normalized embeddings, so that each clip counts the same.

    Args:
        model: the dual encoder.
        processor, videos: as in [`read_clips`].
        tokens: a list to which the embeddings of the regions of each readable clip are appended, batch by batch.
        reading: see [`ReadingOptions`].
    """
    found: list[torch.Tensor] = []
    owners: list[int] = []
    unreadable: dict[int, str] = {}
    with evaluation_mode(model):
        for indices, parts in read_clips(processor, videos, unreadable, **reading):
            owners += indices
            for clips in parts:
                if tokens is None:
                    features = model.get_video_features(clips.to(model.device)).pooler_output
                else:
                    outputs = model(pixel_values_videos=clips.to(model.device))
                    features = outputs.video_embeds
                    tokens.append(_on_cpu(outputs.video_token_embeds, outputs.video_token_weights))
                found.append(F.normalize(features.float(), dim=-1).cpu())
    readable = torch.cat(found)
    if not reading.get("views", ONE_VIEW).single:
        readable = F.normalize(mean_of_views(readable, owners), dim=-1)
    embeds = readable.new_full((len(videos), readable.shape[1]), torch.nan)
    embeds[list(dict.fromkeys(owners))] = readable
    return embeds, unreadable


def embed_corpus(
    model, processor, dataset: Iterable[dict[str, Any]], *, tokens: bool = False, **reading: Unpack[ReadingOptions]
) -> Embeddings:
    """
    Returns the embeddings of the videos of a corpus, each of which is embedded once, and of all of their captions.
    Videos that cannot be read are left out, named in a warning and listed in `unreadable`. Rows with the same
    `video_id` contain captions of the same video.

    Args:
        model: the dual encoder.
        processor: its processor.
        dataset: rows with `video`, `video_id` and `captions`, as from `load_corpus`.
        tokens: whether to also keep the embeddings of words and regions, if the model has `token_dim`. This needs one
            clip per video.
        reading: see [`ReadingOptions`]. The embeddings of several clips per video are averaged.

    Raises:
        ValueError: there are no rows or no captions, a column is missing, too many videos or all of them cannot be
            read, or tokens are requested but the model has none.

    Example:

        embed_corpus(model, processor, load_corpus("msvd", "data/MSVD", split="test")).metrics()["t2v_R@1"]
    """
    rows = CorpusRows(dataset, ("captions",))
    ids, captions = rows.ids, rows.column("captions")
    if not any(captions):
        raise ValueError("No row has a caption, so retrieval cannot be evaluated: choose the task of this corpus.")
    if tokens:
        check_tokens(model, reading.get("views", ONE_VIEW))
    of_videos: list[Tokens] = []
    of_texts: list[Tokens] = []
    video_embeds, failures = embed_videos(model, processor, rows.videos, of_videos if tokens else None, **reading)
    pairs = [
        (caption, ids[owner])
        for owner, some in zip(rows.owners.tolist(), captions)
        if owner not in failures
        for caption in some
    ]
    if not pairs:
        raise ValueError("No video with a caption can be read.")
    texts = [caption for caption, _ in pairs]
    # Each text is embedded once: with another padding, an embedding differs in its last digits, and equal texts would
    # no longer be tied.
    unique = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    of_text = torch.tensor([unique[text] for text in texts])
    text_embeds = embed_texts(
        model, processor, list(unique), progress=reading.get("progress", True), tokens=of_texts if tokens else None
    )
    warn_of_unreadable(failures, ids)
    readable = [i for i in range(len(ids)) if i not in failures]
    return Embeddings(
        video_ids=[ids[i] for i in readable],
        video_embeds=video_embeds[readable],
        texts=texts,
        text_embeds=text_embeds[of_text],
        text_video_ids=[video_id for _, video_id in pairs],
        unreadable={ids[i]: message for i, message in failures.items()},
        video_tokens=Tokens.concatenate(of_videos) if tokens else None,
        text_tokens=Tokens.concatenate(of_texts)[of_text] if tokens else None,
    )


def retrieval_accuracy(
    model,
    processor,
    dataset: Iterable[dict[str, Any]],
    *,
    dual_softmax_temperature: float | None = None,
    rerank: int | None = None,
    **reading: Unpack[ReadingOptions],
) -> dict[str, Any]:
    """
    Evaluates text-to-video and video-to-text retrieval.

    Args:
        model, processor, dataset, reading: as in [`embed_corpus`].
        dual_softmax_temperature: if given, the metrics of dual-softmax re-scoring at this temperature are added.
        rerank: the number of best entries of each query that are re-ranked by words and regions; 0 disables this. The
            default is 100 if the model has `token_dim` and each video has one clip, and 0 otherwise.

    Returns:
        The metrics of [`retrieval_metrics`], `videos` and `texts` (their numbers), and `unreadable` (ids of videos).
        With a temperature also `rescored`, a dict of the metrics of [`dual_softmax_metrics`], and with re-ranking also
        `reranked`, a dict of the metrics of [`reranked_metrics`].

    Raises:
        ValueError: as in [`embed_corpus`], or re-ranking was requested but is not possible.

    Example:

        rows = load_corpus("folder", "my_videos", "test")
        retrieval_accuracy(model, processor, rows)["t2v_R@1"]
    """
    candidates = number_to_rerank(model, rerank, reading.get("views", ONE_VIEW))
    embeddings = embed_corpus(model, processor, dataset, tokens=candidates > 0, **reading)
    result: dict[str, Any] = {
        **embeddings.metrics(),
        "videos": len(embeddings.video_ids),
        "texts": len(embeddings.texts),
        "unreadable": list(embeddings.unreadable),
    }
    if dual_softmax_temperature is not None:
        result["rescored"] = embeddings.rescored_metrics(dual_softmax_temperature)
    if candidates:
        result["reranked"] = embeddings.reranked_metrics(**temperatures_of(model), candidates=candidates)
    return result

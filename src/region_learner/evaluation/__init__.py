"""Metrics of retrieval and of the other tasks, and the evaluation of a model on a corpus."""

from collections.abc import Callable
from typing import Any

from .codebook import codebook_use
from .dual_softmax import dual_softmax_metrics
from .metrics import compute_retrieval_metrics, retrieval_metrics
from .modules import list_metrics, load_metric
from .protocols import PROTOCOLS, Protocol, evaluate_checkpoint, get_protocol
from .regions import RegionMetrics, align_label_maps, region_quality, region_quality_of_batches, region_report
from .results import EvaluationResults, read_results, write_results
from .retrieval import ONE_VIEW, Embeddings, Views, embed_corpus, embed_texts
from .tasks import (
    answer_accuracy,
    classification_accuracy,
    compute_answer_metrics,
    compute_classification_metrics,
    compute_multiple_choice_metrics,
    multiple_choice_accuracy,
    zero_shot_accuracy,
)


def retrieval(
    model,
    processor,
    dataset,
    batch_size: int = 16,
    num_workers: int = 0,
    views: Views = ONE_VIEW,
    dual_softmax_temperature: float | None = None,
    max_unreadable: float = 1.0,
) -> dict[str, Any]:
    """
    Retrieval metrics both ways, with the numbers of videos and texts, and which videos cannot be read. With a
    temperature, also those of dual-softmax re-scoring, apart from the others under `rescored`.
    """
    embeddings = embed_corpus(
        model, processor, dataset, batch_size, num_workers, views=views, max_unreadable=max_unreadable
    )
    counts = {"videos": len(embeddings.video_ids), "texts": len(embeddings.texts)}
    result: dict[str, Any] = embeddings.metrics() | counts | {"unreadable": list(embeddings.unreadable)}
    if dual_softmax_temperature is not None:
        embeds_and_ids = (
            embeddings.text_embeds,
            embeddings.video_embeds,
            embeddings.text_video_ids,
            embeddings.video_ids,
        )
        result["rescored"] = dual_softmax_metrics(*embeds_and_ids, temperature=dual_softmax_temperature)
    return result


# What a model is evaluated by in each task: (model, processor, dataset, and by name batch_size, num_workers, views,
# max_unreadable) to metrics, numbers of rows, and the ids of videos that cannot be read.
EVALUATIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "retrieval": retrieval,
    "multiple_choice": multiple_choice_accuracy,
    "question_answering": answer_accuracy,
    "classification": classification_accuracy,
    "zero_shot": zero_shot_accuracy,
}

__all__ = [
    "EVALUATIONS",
    "PROTOCOLS",
    "Embeddings",
    "EvaluationResults",
    "Protocol",
    "RegionMetrics",
    "Views",
    "align_label_maps",
    "answer_accuracy",
    "classification_accuracy",
    "codebook_use",
    "compute_answer_metrics",
    "compute_classification_metrics",
    "compute_multiple_choice_metrics",
    "compute_retrieval_metrics",
    "dual_softmax_metrics",
    "embed_corpus",
    "embed_texts",
    "evaluate_checkpoint",
    "get_protocol",
    "list_metrics",
    "load_metric",
    "multiple_choice_accuracy",
    "read_results",
    "region_quality",
    "region_quality_of_batches",
    "region_report",
    "retrieval_metrics",
    "write_results",
    "zero_shot_accuracy",
]

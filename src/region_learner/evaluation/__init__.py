"""Metrics of retrieval and of the other tasks, and the evaluation of a model on a corpus."""

from collections.abc import Callable
from typing import Any

from .codebook import codebook_use
from .metrics import compute_retrieval_metrics, retrieval_metrics
from .retrieval import Embeddings, embed_corpus, embed_texts
from .tasks import (
    answer_accuracy,
    classification_accuracy,
    compute_answer_metrics,
    compute_classification_metrics,
    multiple_choice_accuracy,
    zero_shot_accuracy,
)


def retrieval(model, processor, dataset, batch_size: int = 16, num_workers: int = 0) -> dict[str, Any]:
    """Retrieval metrics both ways, with the numbers of videos and texts, and which videos cannot be read."""
    embeddings = embed_corpus(model, processor, dataset, batch_size, num_workers)
    counts = {"videos": len(embeddings.video_ids), "texts": len(embeddings.texts)}
    return embeddings.metrics() | counts | {"unreadable": embeddings.unreadable}


# What a model is evaluated by in each task: (model, processor, dataset, batch_size, num_workers) to metrics.
EVALUATIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "retrieval": retrieval,
    "multiple_choice": multiple_choice_accuracy,
    "question_answering": answer_accuracy,
    "classification": classification_accuracy,
    "zero_shot": zero_shot_accuracy,
}

__all__ = [
    "EVALUATIONS",
    "Embeddings",
    "answer_accuracy",
    "classification_accuracy",
    "codebook_use",
    "compute_answer_metrics",
    "compute_classification_metrics",
    "compute_retrieval_metrics",
    "embed_corpus",
    "embed_texts",
    "multiple_choice_accuracy",
    "retrieval_metrics",
    "zero_shot_accuracy",
]

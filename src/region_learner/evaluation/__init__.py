"""Metrics of retrieval and of the other tasks, and the evaluation of a model on a corpus."""

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

__all__ = [
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

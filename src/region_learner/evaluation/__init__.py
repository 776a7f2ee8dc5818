"""Retrieval metrics, and the evaluation of a model on a corpus."""

from .codebook import codebook_use
from .metrics import compute_retrieval_metrics, retrieval_metrics
from .retrieval import Embeddings, embed_corpus, embed_texts

__all__ = [
    "Embeddings",
    "codebook_use",
    "compute_retrieval_metrics",
    "embed_corpus",
    "embed_texts",
    "retrieval_metrics",
]

"""Metrics of retrieval and of the other tasks, and the evaluation of a model on a corpus."""

from .checkpoints import evaluate_checkpoint
from .dual_softmax import dual_softmax_metrics
from .grounding import grounding_accuracy
from .metrics import compute_retrieval_metrics, retrieval_metrics
from .modules import list_metrics, load_metric
from .protocols import PROTOCOLS, Protocol, get_protocol, register_protocol
from .reading import ReadingOptions, Views
from .region_description import codebook_use, draw_phrases, draw_report, region_report
from .region_evaluation import align_label_maps, region_quality, region_quality_of_batches
from .region_metrics import RegionMetrics
from .reranking import Tokens, candidate_similarity, reranked_metrics
from .results import EvaluationResults, read_results, write_results
from .retrieval import Embeddings, embed_corpus, embed_texts, retrieval_accuracy
from .tasks import (
    EVALUATIONS,
    answer_accuracy,
    classification_accuracy,
    compute_answer_metrics,
    compute_classification_metrics,
    compute_multiple_choice_metrics,
    multiple_choice_accuracy,
    zero_shot_accuracy,
)

__all__ = [
    "EVALUATIONS",
    "PROTOCOLS",
    "Embeddings",
    "EvaluationResults",
    "Protocol",
    "ReadingOptions",
    "RegionMetrics",
    "Tokens",
    "Views",
    "align_label_maps",
    "answer_accuracy",
    "candidate_similarity",
    "classification_accuracy",
    "codebook_use",
    "compute_answer_metrics",
    "compute_classification_metrics",
    "compute_multiple_choice_metrics",
    "compute_retrieval_metrics",
    "draw_phrases",
    "draw_report",
    "dual_softmax_metrics",
    "embed_corpus",
    "embed_texts",
    "evaluate_checkpoint",
    "get_protocol",
    "grounding_accuracy",
    "list_metrics",
    "load_metric",
    "multiple_choice_accuracy",
    "read_results",
    "region_quality",
    "region_quality_of_batches",
    "region_report",
    "register_protocol",
    "reranked_metrics",
    "retrieval_accuracy",
    "retrieval_metrics",
    "write_results",
    "zero_shot_accuracy",
]

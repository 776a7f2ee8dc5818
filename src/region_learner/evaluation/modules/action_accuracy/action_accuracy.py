"""`evaluate` module: action recognition, by `region_learner.evaluation.compute_classification_metrics`."""

from transformers import EvalPrediction

from region_learner.evaluation import compute_classification_metrics
from region_learner.evaluation.modules import columns
from region_learner.evaluation.modules.columns import flat, info, matrix, scores_and_labels

DESCRIPTION = """
Top-1 and top-5 accuracy, in percent, of action recognition. A right class that is tied with others counts with the
probability of drawing it at random.
"""

INPUTS = """
Args:
    predictions (sequences of float, one per class): logits of the classes, kept in float32.
    references (integers): index of the right class. Rows with -100 are left out, and those with -1 are wrong.

Returns:
    top1, top5.
"""


class ActionAccuracy(columns.RowsMetric):
    def _info(self):
        return info(DESCRIPTION, INPUTS, scores_and_labels("float32"))

    def _compute(self, predictions, references):
        logits = matrix("predictions", predictions)
        return compute_classification_metrics(EvalPrediction(predictions=logits, label_ids=flat(references)))

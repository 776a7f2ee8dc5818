"""`evaluate` module: open-ended question answering, by `region_learner.evaluation.compute_answer_metrics`."""

from transformers import EvalPrediction

from region_learner.evaluation import compute_answer_metrics
from region_learner.evaluation.modules import columns
from region_learner.evaluation.modules.columns import flat, info, matrix, scores_and_labels

DESCRIPTION = """
Accuracy, in percent, of answers out of a vocabulary. A right answer tied with others for the best counts for the
chance of drawing it.
"""

INPUTS = """
Args:
    predictions (sequences of float, one per answer): logits of the answers; kept in float32.
    references (integers): index of the right answer; -1 for one outside of the vocabulary, which counts as wrong;
        rows with -100 are left out.

Returns:
    accuracy; questions; out_of_vocabulary, those of the questions whose answer is -1.
"""


class AnswerAccuracy(columns.RowsMetric):
    def _info(self):
        return info(DESCRIPTION, INPUTS, scores_and_labels("float32"))

    def _compute(self, predictions, references):
        logits = matrix("predictions", predictions)
        return compute_answer_metrics(EvalPrediction(predictions=logits, label_ids=flat(references)))

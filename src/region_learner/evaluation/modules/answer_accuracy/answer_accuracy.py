"""`evaluate` module: open-ended question answering, by `region_learner.evaluation.compute_answer_metrics`."""

from transformers import EvalPrediction

from region_learner.evaluation import compute_answer_metrics
from region_learner.evaluation.modules import columns
from region_learner.evaluation.modules.columns import flat, info, matrix, scores_and_labels

DESCRIPTION = """
Accuracy, in percent, of answers from a vocabulary. A right answer that is tied with others for the best score counts
with the probability of drawing it at random.
"""

INPUTS = """
Args:
    predictions (sequences of float, one per answer): logits of the answers, kept in float32.
    references (integers): index of the right answer, or -1 for an answer outside of the vocabulary, which counts as
        wrong. Rows with -100 are left out.

Returns:
    accuracy; questions; out_of_vocabulary, the number of questions whose answer is -1.
"""


class AnswerAccuracy(columns.RowsMetric):
    def _info(self):
        return info(DESCRIPTION, INPUTS, scores_and_labels("float32"))

    def _compute(self, predictions, references):
        logits = matrix("predictions", predictions)
        return compute_answer_metrics(EvalPrediction(predictions=logits, label_ids=flat(references)))

"""`evaluate` module: multiple choice, with the ties of `region_learner.evaluation.multiple_choice_accuracy`."""

import numpy as np
import torch

from region_learner.evaluation.modules import columns
from region_learner.evaluation.modules.columns import flat, info, list_lengths, scores_and_labels
from region_learner.evaluation.tasks import top_k
from region_learner.labels import IGNORED_LABEL

DESCRIPTION = """
Accuracy, in percent, of choosing the option with the highest score. A right option that is tied with others for the
best score counts with the probability of drawing it at random.
"""

INPUTS = """
Args:
    predictions (sequences of float, one per option; rows may have different numbers of options): scores of the
        options, such as their cosine similarities to the video.
    references (integers): index of the right option. Rows with -100 are left out.

Returns:
    accuracy; questions, the number of rows that count.
"""


class MultipleChoiceAccuracy(columns.RowsMetric):
    def _info(self):
        return info(DESCRIPTION, INPUTS, scores_and_labels("float64"))

    def _compute(self, predictions, references):
        lengths, answers = list_lengths(predictions), flat(references)
        kept = answers != IGNORED_LABEL
        if not kept.any():
            raise ValueError("Every row is left out: all references are -100.")
        wrong = kept & ((answers < 0) | (answers >= lengths))
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"Row {row}: the answer {answers[row]} is not the index of one of {lengths[row]} options."
            )
        # Missing options rank below all others.
        scores = np.full((len(lengths), lengths.max()), -np.inf)
        scores[np.arange(lengths.max()) < lengths[:, None]] = flat(predictions)
        right = top_k(torch.from_numpy(scores[kept]), torch.tensor(answers[kept]), 1)
        return {"accuracy": float(100 * right.mean()), "questions": len(right)}

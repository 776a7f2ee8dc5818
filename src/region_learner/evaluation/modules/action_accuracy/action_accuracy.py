"""`evaluate` module: action recognition, by `region_learner.evaluation.compute_classification_metrics`."""

import datasets
import evaluate
from transformers import EvalPrediction

from region_learner.evaluation import compute_classification_metrics
from region_learner.evaluation.modules.columns import matrix, numbers

DESCRIPTION = """
Top-1 and top-5 accuracy, in percent, of action recognition. A right class tied with others counts for the chance of
drawing it.
"""

INPUTS = """
Args:
    predictions (sequences of float, as long as there are classes): logits of the classes; kept in float32.
    references (integers): number of the right class; rows with -100 count for nothing, those with -1 are wrong.

Returns:
    top1, top5.
"""


class ActionAccuracy(evaluate.Metric):
    def _info(self):
        logits = datasets.Sequence(datasets.Value("float32"))
        info = evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": logits, "references": datasets.Value("int64")}),
        )
        info.format = "arrow"  # not above, where it is refused for sequences; Python lists take eight times as much
        return info

    def _compute(self, predictions, references):
        logits = matrix("predictions", predictions)
        return compute_classification_metrics(EvalPrediction(predictions=logits, label_ids=numbers(references)))

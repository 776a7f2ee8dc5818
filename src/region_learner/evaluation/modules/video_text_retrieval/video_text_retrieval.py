"""`evaluate` module: text-to-video and video-to-text retrieval, by `region_learner.evaluation.retrieval_metrics`."""

import datasets
import numpy as np

from region_learner.evaluation import retrieval_metrics
from region_learner.evaluation.metrics import IGNORED_ID
from region_learner.evaluation.modules import columns
from region_learner.evaluation.modules.columns import info, vectors

DESCRIPTION = """
Text-to-video (t2v_) and video-to-text (v2t_) retrieval by dot product: R@1, R@5, R@10 and R@50 in percent, median
and mean rank, and the geometric mean of R@1, 5 and 10. Ranks start at 1, ties count as the mean of their ranks,
video-to-text takes the best-ranked of the texts of a video. The matrix of scores is never held.
"""

INPUTS = """
Args:
    predictions (sequences of float, one length for all): embeddings of texts; of length 1 for cosine similarity.
    references (sequences of float, of the same length): embeddings of the videos that they describe.
    video_ids (strings, or integers, but not both): ids of these videos.

A video met again, with another text, counts once, with its first embedding. So a row may be a text alone, with [] for
its video, where another row has it; and a video alone, with [] for its text: such a video is in the gallery but no
query, unless another row has a text of it. Rows with the id -1 count for nothing. Embeddings are kept in float32.

Returns:
    t2v_R@1, t2v_R@5, t2v_R@10, t2v_R@50, t2v_MedR, t2v_MeanR, t2v_gmean, and the same with v2t_.
"""


def _features(ids: str) -> datasets.Features:
    embedding = datasets.Sequence(datasets.Value("float32"))
    return datasets.Features({"predictions": embedding, "references": embedding, "video_ids": datasets.Value(ids)})


class VideoTextRetrieval(columns.RowsMetric):
    def _info(self):
        return info(DESCRIPTION, INPUTS, [_features("string"), _features("int64")])

    def _compute(self, predictions, references, video_ids):
        ids = video_ids.to_pylist()
        texts, text_rows = vectors("predictions", predictions)
        videos, video_rows = vectors("references", references)
        kept = np.array([ids[row] != IGNORED_ID for row in text_rows])
        if not kept.any():
            raise ValueError("No row counts: all ids are -1.")
        text_ids = [ids[row] for row in text_rows[kept]]
        first: dict[str | int, int] = {}
        for i, row in enumerate(video_rows):
            if ids[row] != IGNORED_ID:
                first.setdefault(ids[row], i)
        return retrieval_metrics(texts[kept], videos[list(first.values())], text_ids, list(first))

"""`evaluate` module: text-to-video and video-to-text retrieval, by `region_learner.evaluation.retrieval_metrics`."""

import datasets
import numpy as np

from region_learner.evaluation import retrieval_metrics
from region_learner.evaluation.modules import columns
from region_learner.evaluation.modules.columns import info, vectors
from region_learner.labels import IGNORED_ID

DESCRIPTION = """
Text-to-video (t2v_) and video-to-text (v2t_) retrieval by dot product: R@1, R@5, R@10 and R@50 in percent, median
and mean rank, and the geometric mean of R@1, R@5 and R@10. Ranks start at 1, ties count as the mean of their ranks,
and video-to-text uses the best-ranked text of a video. The whole score matrix is never stored.
"""

INPUTS = """
Args:
    predictions (sequences of float, all of one length): embeddings of texts; normalize them for cosine similarity.
    references (sequences of float, of the same length): embeddings of the videos that they describe.
    video_ids (either strings or integers): ids of these videos.

A video that occurs again with another text counts once, with its first embedding. Therefore, a row may be only a text,
with [] for its video, if another row has the video; or only a video, with [] for its text. Such a video is in the
gallery but is not a query, unless another row has a text for it. Rows with the id -1 are left out. Embeddings are kept
in float32.

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
            raise ValueError("Every row is left out: all ids are -1.")
        text_ids = [ids[row] for row in text_rows[kept]]
        first: dict[str | int, int] = {}
        for i, row in enumerate(video_rows):
            if ids[row] != IGNORED_ID:
                first.setdefault(ids[row], i)
        return retrieval_metrics(texts[kept], videos[list(first.values())], text_ids, list(first))

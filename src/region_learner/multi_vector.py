"""Uses words and regions as the vectors of a `MultiVectorEncoder` of sentence-transformers."""

from typing import Any

import torch
from sentence_transformers.base.modules import Transformer

_MODALITIES = {
    name: {"method": "forward", "method_output_name": f"{side}_token_embeds"}
    for name, side in (("text", "text"), ("video", "video"), ("image", "video"))
}


class RegionLearnerTokens(Transformer):
    """
    The single module of a `MultiVectorEncoder` that embeds texts by their words, and videos and images by their
    regions. The checkpoint must be a [`RegionLearnerModel`] with `token_dim`.

    Each vector of a query is scaled by its weight, and the vectors of a document have length 1. MaxSim, the sum
    of the highest inner product of each query vector, is then the weighted mean over the tokens of the query of the
    highest cosine. This is one of the two halves of `word_region_similarity`; the other half, over the tokens of
    the document, cannot be expressed with MaxSim.

    Example:

    ```python
    >>> from sentence_transformers import MultiVectorEncoder

    >>> from region_learner.multi_vector import RegionLearnerTokens

    >>> encoder = MultiVectorEncoder(modules=[RegionLearnerTokens("checkpoint")])
    >>> words = encoder.encode_query(["a red square"])
    >>> regions = encoder.encode_document(["1.mp4", "2.mp4"])
    >>> encoder.similarity(words, regions).shape
    torch.Size([1, 2])
    ```
    """

    forward_kwargs = {"task"}

    def __init__(self, model_name_or_path: str, **kwargs: Any):
        kwargs |= {"modality_config": _MODALITIES, "module_output_name": "token_embeddings"}
        super().__init__(model_name_or_path, **kwargs)
        if not getattr(self.model.config, "token_dim", 0):
            raise ValueError(
                f"{model_name_or_path} does not have word-region tokens: use a RegionLearnerModel that was trained "
                "with token_dim, or SentenceTransformer for single vectors."
            )

    def get_embedding_dimension(self) -> int:
        return self.model.config.token_dim

    def forward(self, features: dict[str, Any], task: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Adds the tokens (B, n, token_dim) as "token_embeddings", and which count (B, n) as "attention_mask"."""
        inputs = ("input_ids", "attention_mask", "token_type_ids", "pixel_values_videos")
        outputs = self.model(**{name: features[name] for name in inputs if name in features})
        side = "video" if "pixel_values_videos" in features else "text"
        embeds, weights = outputs[f"{side}_token_embeds"], outputs[f"{side}_token_weights"]
        features["token_embeddings"] = embeds * weights.unsqueeze(-1) if task == "query" else embeds
        features["attention_mask"] = (weights > 0).to(torch.int64)
        return features

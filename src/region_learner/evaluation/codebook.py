"""How much of a codebook is in use."""

from collections.abc import Iterable

import torch

from ..inference import evaluation_mode


def codebook_use(model, pixel_values_videos: Iterable[torch.Tensor]) -> float:
    """
    Returns the share of the codes that any patch of the given clips is assigned to, in evaluation mode.

    Args:
        model: a model with a video tower.
        pixel_values_videos: batches (B, T, C, H, W).

    Raises:
        ValueError: the model has no codebook.
    """
    config = model.config.video_config
    if not config.codebook_size:
        raise ValueError("The model has no codebook: its codebook_size is 0.")
    used = torch.zeros(config.codebook_size, dtype=torch.bool)
    with evaluation_mode(model):
        for batch in pixel_values_videos:
            ids = model.video_model(batch.to(model.device)).cluster_ids
            used[ids.unique().cpu()] = True
    return used.float().mean().item()

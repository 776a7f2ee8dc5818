"""How much of a codebook is in use."""

from collections.abc import Iterable

import torch


def codebook_use(model, pixel_values_videos: Iterable[torch.Tensor]) -> float:
    """Share of the codes that any patch of the given batches (B, T, C, H, W) is assigned to, in evaluation mode."""
    config = model.config.video_config
    if not config.codebook_size:
        raise ValueError("The model has no codebook: codebook_size=0.")
    used = torch.zeros(config.codebook_size, dtype=torch.bool)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in pixel_values_videos:
            ids = model.video_model(batch.to(model.device)).cluster_ids
            used[ids.unique().cpu()] = True
    model.train(was_training)
    return used.float().mean().item()

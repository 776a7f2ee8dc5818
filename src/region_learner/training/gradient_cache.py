"""
Cached contrastive gradients, after "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"
(arXiv 2101.06983): a batch of negatives many times larger than what fits in memory at once.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from .finite import contagious


def cached_backward(
    accelerator,
    model: torch.nn.Module,
    inputs: dict[str, Any],
    chunk: int,
    autocast: Callable[[], contextlib.AbstractContextManager],
    scale: float = 1.0,
    observe: Callable[[Any], None] = lambda outputs: None,
) -> torch.Tensor:
    """
    Computes the gradients of the model's loss of a whole batch, `chunk` pairs at a time.

    The embeddings, and each clip's loss of the regions, are computed first without gradient; the loss and its gradient
    with respect to them next; and then, chunk by chunk, they are computed again and given this gradient. Random
    numbers are the same both times, and the codebook is updated once, from the whole batch.

    Args:
        accelerator (`accelerate.Accelerator`): does the backward passes.
        model: [`RegionLearnerModel`], or what `accelerator.prepare` made of it.
        inputs: a batch of [`RegionLearnerCollator`] on the model's device.
        chunk: pairs in one forward pass.
        autocast: makes the context of a forward pass.
        scale: what gradients are multiplied by, one over the number of accumulated batches.
        observe: is given the outputs of each chunk.

    Returns:
        The loss, multiplied by `scale`; its mean over processes is that of the global batch.
    """
    inputs = {name: value for name, value in inputs.items() if name != "return_loss"}
    video_ids = inputs.pop("video_ids", None)
    pairs = len(inputs["pixel_values_videos"])
    chunks = [
        {name: value[start : start + chunk] if torch.is_tensor(value) else value for name, value in inputs.items()}
        for start in range(0, pairs, chunk)
    ]
    bare = accelerator.unwrap_model(model)
    pieces = _codebook_pieces(bare, inputs)
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []

    with torch.no_grad(), torch.random.fork_rng(devices), pieces("start"):
        for part in chunks if pieces.needs_start else ():
            with autocast():
                model(**part)

    states, by_chunk = [], []
    with torch.no_grad(), pieces("look"):
        for part in chunks:
            states.append(_random_state(devices))
            with autocast():
                by_chunk.append(_of_loss(model(**part)))

    text_embeds, video_embeds, *region_loss = sources = [torch.cat(some).requires_grad_() for some in zip(*by_chunk)]
    loss = bare.contrastive_loss(text_embeds, video_embeds, video_ids)
    if region_loss:
        loss = loss + bare.weighted_region_loss(*region_loss, None if video_ids is None else video_ids >= 0)
    loss = contagious(loss) * scale
    # A learned temperature or bias has its gradient from the loss, not through the embeddings.
    direct = [p for p in (bare.logit_scale, getattr(bare, "logit_bias", None)) if p is not None and p.requires_grad]
    gradients = torch.autograd.grad(loss, [*sources, *direct])

    with pieces("learn"):
        for number, (part, state) in enumerate(zip(chunks, states)):
            last = number == len(chunks) - 1
            with torch.random.fork_rng(devices):
                _set_random_state(state, devices)
                with contextlib.nullcontext() if last else accelerator.no_sync(model):
                    with autocast():
                        outputs = model(**part)
                    observe(outputs)
                    rows = slice(number * chunk, number * chunk + len(part["pixel_values_videos"]))
                    surrogate = sum((new * old[rows]).sum() for new, old in zip(_of_loss(outputs), gradients))
                    if last:
                        for parameter, gradient in zip(direct, gradients[len(sources) :]):
                            surrogate = surrogate + (parameter * gradient).sum()
                    accelerator.backward(surrogate)
            del outputs
    return loss.detach()


def _of_loss(outputs) -> list[torch.Tensor]:
    """What the loss is made from: embeddings of texts and videos, and each clip's loss of its regions if any."""
    region_loss = outputs.video_model_output.region_loss
    return [outputs.text_embeds, outputs.video_embeds] + ([] if region_loss is None else [region_loss])


class _codebook_pieces:  # noqa: N801 # reads as the function it stands for
    """Puts the model's quantizer, if it has one that learns, into one of its phases for batches in pieces."""

    def __init__(self, model, inputs: dict[str, Any]):
        module = model.video_model.region_module
        self.quantizer = None if module is None else module.quantizer
        _, frames, _, height, width = inputs["pixel_values_videos"].shape
        patch = model.video_model.config.patch_size
        mask = inputs.get("frame_mask")
        real_frames = len(inputs["pixel_values_videos"]) * frames if mask is None else int(mask.bool().sum())
        self.features = real_frames * (height // patch) * (width // patch)

    @property
    def needs_start(self) -> bool:
        quantizer = self.quantizer
        learns = quantizer is not None and quantizer.mode == "ema" and not quantizer.frozen
        return learns and not bool(quantizer.num_updates)

    def __call__(self, phase: str):
        if self.quantizer is None:
            return contextlib.nullcontext()
        return self.quantizer.pieces(phase, self.features)


def _random_state(devices):
    return torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]


def _set_random_state(state, devices):
    torch.set_rng_state(state[0])
    for device, its_state in zip(devices, state[1]):
        torch.cuda.set_rng_state(its_state, device)

"""
Cached contrastive gradients, after "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"
(arXiv 2101.06983), for batches that are many times larger than what fits in memory at once.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from ..modeling_region_learner import RegionLearnerOutput
from .finite import contagious

# The outputs that the loss is computed from. Those with one row per pair or per negative text are split into chunks;
# the others are shared by all pairs.
_TOKENS = ("text_token_embeds", "text_token_weights", "video_token_embeds", "video_token_weights")
_NEGATIVE = "negative_"  # prefix of inputs and outputs with one row per negative text
_NEGATIVES = ("negative_text_embeds", "negative_token_embeds", "negative_token_weights")
_PER_PAIR = ("text_embeds", "video_embeds", "region_loss", *_TOKENS, *_NEGATIVES)
_SHARED = ("temperature", "logit_bias", "token_temperature")


def cached_backward(
    accelerator,
    model: torch.nn.Module,
    inputs: dict[str, Any],
    chunk: int,
    autocast: Callable[[], contextlib.AbstractContextManager],
    loss_function: Callable[[RegionLearnerOutput], torch.Tensor],
    scale: float = 1.0,
    observe: Callable[[Any], None] = lambda outputs: None,
) -> torch.Tensor:
    """
    Computes the gradients of the contrastive loss of a whole batch, `chunk` pairs at a time.

    A first pass computes the embeddings and the mask loss of each clip without gradients. The loss of the whole batch
    is differentiated with respect to these, and a second pass over the chunks, with the same random numbers,
    propagates the gradients to the weights. The codebook only collects statistics in the second pass.

    Args:
        accelerator (`accelerate.Accelerator`): runs the backward passes.
        model: a [`RegionLearnerModel`], or its wrapper from `accelerator.prepare`.
        inputs: arguments of the model's `forward`, on its device.
        chunk: number of pairs per forward pass.
        autocast: returns the context manager of a forward pass.
        loss_function: returns the loss of the whole batch from its outputs, which are only the embeddings, mask
            losses, temperature and bias.
        scale: factor of the loss and the gradients: one divided by the number of accumulated batches.
        observe: called with the outputs of each chunk.

    Returns:
        The loss, multiplied by `scale`.
    """
    pairs, negatives = len(inputs["pixel_values_videos"]), len(inputs.get("negative_input_ids", ()))
    starts = range(0, pairs, chunk)
    shares = [negatives * number // len(starts) for number in range(len(starts) + 1)]
    rows = [
        {True: slice(shares[number], shares[number + 1]), False: slice(start, start + chunk)}  # True: negative texts
        for number, start in enumerate(starts)
    ]
    chunks = [
        {
            name: value[some[name.startswith(_NEGATIVE)]] if torch.is_tensor(value) else value
            for name, value in inputs.items()
        }
        for some in rows
    ]
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    states, by_chunk = [], []
    with torch.no_grad():
        for part in chunks:
            states.append(_random_state(devices))
            with autocast():
                by_chunk.append(_loss_inputs(model(**part)))

    leaves = _as_leaves(by_chunk)
    loss = contagious(loss_function(RegionLearnerOutput(**leaves))) * scale
    gradients = dict(zip(leaves, _gradients(loss, leaves)))

    for number, (part, state) in enumerate(zip(chunks, states)):
        last = number == len(chunks) - 1
        with torch.random.fork_rng(devices), contextlib.nullcontext() if last else accelerator.no_sync(model):
            _set_random_state(state, devices)
            with autocast():
                outputs = model(**part)
            observe(outputs)
            surrogate = sum(  # its gradients are those of the loss
                (value * gradients[name][rows[number][name.startswith(_NEGATIVE)]]).sum()
                if name in _PER_PAIR
                else (value * gradients[name]).sum() / len(chunks)
                for name, value in _loss_inputs(outputs).items()
            )
            accelerator.backward(surrogate)
        del outputs
    return loss.detach()


def _loss_inputs(outputs) -> dict[str, torch.Tensor]:
    """Returns the outputs that the loss is computed from."""
    return {name: outputs[name] for name in (*_PER_PAIR, *_SHARED) if outputs.get(name) is not None}


def _as_leaves(by_chunk: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Returns the inputs of the loss of a whole batch, from those of its chunks, as leaf tensors with gradients."""
    whole = {name: torch.cat([part[name] for part in by_chunk]) for name in by_chunk[0] if name in _PER_PAIR}
    shared = {name: value.clone() for name, value in by_chunk[0].items() if name in _SHARED}
    return {name: value.requires_grad_() for name, value in (whole | shared).items()}


def _gradients(loss: torch.Tensor, leaves: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    # A custom loss may not use all of them.
    return torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)


def _random_state(devices):
    return torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]


def _set_random_state(state, devices):
    torch.set_rng_state(state[0])
    for device, its_state in zip(devices, state[1]):
        torch.cuda.set_rng_state(its_state, device)

# Copyright 2026 The RegionLearner authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in
# compliance with the License. You may obtain a copy at http://www.apache.org/licenses/LICENSE-2.0
"""
Losses of the RegionLearner models, for one batch or for the global batch of several processes.

The models' `forward` computes the loss of the batch that it is given. With data parallelism, call the functions below
with `gather=True` on its outputs instead: text and video embeddings of all processes are then each other's negatives.
As in open_clip's `ClipLoss` with `local_loss` and `gather_with_grad`, each process compares its own rows with those of
all processes, so that memory grows with batch size x global batch size. The mean over processes of the losses and of
their gradients, which DDP and FSDP compute, equals the loss and the gradients of one process with the global batch.
Batches may differ in size between processes.

Outputs may have embeddings of negative texts, which do not describe any video (`negative_text_embeds`). In every loss,
each video is also compared with the negative texts of all processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .configuration_region_learner import LOSSES

# Labels that the classification loss ignores: -100 for padding, -1 for a class that the model does not have.
IGNORED_LABELS = (-100, -1)

# The losses that were registered with `register_loss`.
_REGISTERED: dict[str, Callable[[Any, Any, torch.Tensor | None, bool], torch.Tensor]] = {}


def world() -> tuple[int, int]:
    """Returns the rank of this process and the number of processes; (0, 1) without a process group."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def cosine_similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Returns cosine similarities (n, m) of L2-normalized embeddings, in their own dtype even under autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.T


def word_region_similarity(
    text_token_embeds: torch.Tensor,
    text_token_weights: torch.Tensor,
    video_token_embeds: torch.Tensor,
    video_token_weights: torch.Tensor,
) -> torch.Tensor:
    """
    Returns the similarity of each text and each video, (texts, videos), computed from their tokens. Each word of a
    text is compared with the most similar token of the video, and each token of the video with the most similar word.
    The result is the mean of both weighted sums of cosines: the weighted token-wise interaction of DRL (arXiv
    2203.07111). Tokens of weight 0, such as padding, are left out.

    Args:
        text_token_embeds (`torch.FloatTensor` of shape `(texts, L, token_dim)`): L2-normalized.
        text_token_weights (`torch.FloatTensor` of shape `(texts, L)`): the sum over the tokens of a text is 1.
        video_token_embeds (`torch.FloatTensor` of shape `(videos, n, token_dim)`): L2-normalized.
        video_token_weights (`torch.FloatTensor` of shape `(videos, n)`): the sum over the tokens of a video is 1.

    Example:

    ```python
    >>> texts, videos = model(**processor(text=["a cat", "a dog"])), model(**processor(videos=["clip.mp4"]))
    >>> word_region_similarity(
    ...     texts.text_token_embeds, texts.text_token_weights, videos.video_token_embeds, videos.video_token_weights
    ... ).shape
    torch.Size([2, 1])
    ```
    """
    with torch.autocast(text_token_embeds.device.type, enabled=False):
        # Two extra channels lower all cosines with a token of weight 0 by 4, so that it is never the most similar one.
        absent_words, absent_tokens = (
            -4.0 * (weights == 0).to(embeds).unsqueeze(-1)
            for weights, embeds in (
                (text_token_weights, text_token_embeds),
                (video_token_weights, video_token_embeds),
            )
        )
        words = torch.cat([text_token_embeds, absent_words, torch.ones_like(absent_words)], dim=-1)
        tokens = torch.cat([video_token_embeds, torch.ones_like(absent_tokens), absent_tokens], dim=-1)
        cosines = (words.flatten(0, 1) @ tokens.flatten(0, 1).T).view(*words.shape[:2], *tokens.shape[:2])
        of_words, of_tokens = cosines.max(3).values, cosines.max(1).values  # (texts, L, videos), (texts, videos, n)
        by_words = torch.einsum("tlv,tl->tv", of_words, text_token_weights)
        by_tokens = torch.einsum("tvn,vn->tv", of_tokens, video_token_weights)
        return (by_words + by_tokens) / 2


def contrastive_loss(
    config: Any, outputs: Any, video_ids: torch.Tensor | None = None, gather: bool = False
) -> torch.Tensor:
    """
    Returns the contrastive loss that the configuration names, plus the weighted losses of the region masks and of the
    tokens.

    Args:
        config (`RegionLearnerConfig`): the configuration of the model.
        outputs (`RegionLearnerOutput`): its outputs for as many texts as videos, and for any number of negative texts.
        video_ids (`torch.LongTensor` of shape `(B,)`, *optional*): pairs with the same id are not each other's
            negatives; pairs with an id below 0 are padding, which is ignored. Negative texts do not have ids: all of
            them count.
        gather (`bool`, defaults to `False`): whether to compute the loss of the global batch. If so, all processes
            have to call this function.

    Returns:
        `torch.Tensor` of shape `()`.

    Raises:
        ValueError: a process has more texts than videos or vice versa, or the processes disagree on the embedding
            size or on whether there are `video_ids`. With `gather`, all processes raise it.

    Example, in each process of a training loop with DDP:

    ```python
    >>> video_ids = batch.pop("video_ids", None)
    >>> outputs = model(**batch)  # a RegionLearnerModel wrapped in DistributedDataParallel
    >>> loss = contrastive_loss(model.module.config, outputs, video_ids, gather=True)
    >>> loss.backward()
    >>> optimizer.step()
    >>> model.module.update_codebook()
    ```
    """
    text_embeds, video_embeds = outputs.text_embeds, outputs.video_embeds
    temperature = config.temperature if outputs.temperature is None else outputs.temperature
    negatives = getattr(outputs, "negative_text_embeds", None)
    has_tokens = getattr(outputs, "text_token_embeds", None) is not None
    pairs: Any = None  # computed once, because this waits for all processes
    if has_tokens or config.loss not in _REGISTERED:
        pairs = _Pairs.of(text_embeds, video_embeds, video_ids, gather, negatives)
    if config.loss in _REGISTERED:
        loss = _REGISTERED[config.loss](config, outputs, video_ids, gather)
    elif config.loss == "max_margin":
        loss = _max_margin(pairs, config.margin)
    elif config.loss == "sigmoid":
        loss = _sigmoid(pairs, temperature, outputs.logit_bias)
    else:
        loss = _infonce(pairs, temperature)
    if has_tokens:
        temperature = config.token_temperature if outputs.token_temperature is None else outputs.token_temperature
        loss = loss + config.token_loss_weight * _word_region(
            pairs, outputs, temperature, outputs.token_logits_per_text
        )
    return loss + _region_loss(config, outputs, None if video_ids is None else video_ids >= 0, gather)


def register_loss(name: str, function: Callable[[Any, Any, torch.Tensor | None, bool], torch.Tensor]) -> None:
    """
    Registers your own contrastive loss, which `RegionLearnerConfig(loss=name)` then selects. The losses of the region
    masks and of the tokens are added to it. To load a model that was trained with this loss where it is not
    registered, use `from_pretrained(..., loss="infonce")`.

    Args:
        name (`str`): name of the loss. A built-in loss cannot be replaced.
        function: takes `config`, `outputs`, `video_ids` and `gather`, the arguments of [`contrastive_loss`], and
            returns a tensor of shape `()`. With cached gradients, `outputs` contains only the embeddings (including
            those of negative texts and of tokens), the temperature and the bias.

    Raises:
        ValueError: a built-in loss has this name.

    Example:

    ```python
    >>> def text_to_video_loss(config, outputs, video_ids, gather):
    ...     logits = outputs.text_embeds @ outputs.video_embeds.T / config.temperature
    ...     return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))

    >>> register_loss("text_to_video", text_to_video_loss)
    >>> config = RegionLearnerConfig(loss="text_to_video")
    ```
    """
    if name in LOSSES and name not in _REGISTERED:
        raise ValueError(f"There is a built-in loss {name!r}: choose another name.")
    _REGISTERED[name] = function
    if name not in LOSSES:
        LOSSES.append(name)


def classification_loss(config: Any, outputs: Any, labels: torch.Tensor, gather: bool = False) -> torch.Tensor:
    """
    Returns the mean cross-entropy of the logits, plus the weighted loss of the region masks.

    Args:
        config (`RegionLearnerConfig`): the configuration of the model.
        outputs: outputs of a video classifier or a question answering model.
        labels (`torch.LongTensor` of shape `(B,)`): the classes. -100 (padding) and -1 (a class that the model does
            not have) are ignored.
        gather (`bool`, defaults to `False`): whether to compute the loss of the global batch. If so, all processes
            have to call this function.

    Returns:
        `torch.Tensor` of shape `()`.
    """
    counts = torch.stack([labels != label for label in IGNORED_LABELS]).all(0)
    logits = outputs.logits.to(torch.promote_types(outputs.logits.dtype, torch.float32))
    total = F.cross_entropy(logits, labels.masked_fill(~counts, -100), reduction="sum")
    return _mean(total, counts.sum(), gather) + _region_loss(config, outputs, labels != -100, gather)


def infonce_loss(
    text_embeds: torch.Tensor,
    video_embeds: torch.Tensor,
    temperature: torch.Tensor | float,
    video_ids: torch.Tensor | None = None,
    gather: bool = False,
    negative_text_embeds: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Returns the mean cross-entropy of finding the video of each text among all videos, plus the mean cross-entropy of
    finding the text of each video. Logits are cosine similarities divided by `temperature`. This is `NormSoftmaxLoss`
    of the reference implementation. Embeddings are L2-normalized, of shape `(B, dim)`. Each video is also compared
    with `negative_text_embeds` (N, dim), the embeddings of texts that describe none of the videos. For the other
    arguments see [`contrastive_loss`].
    """
    return _infonce(_Pairs.of(text_embeds, video_embeds, video_ids, gather, negative_text_embeds), temperature)


def _infonce(pairs: "_Pairs", temperature: torch.Tensor | float) -> torch.Tensor:
    rows = ((pairs.texts, pairs.all_videos), (pairs.videos, pairs.all_texts))
    return _cross_entropy(pairs, [cosine_similarity(own, others) / temperature for own, others in rows])


def word_region_loss(
    outputs: Any,
    temperature: torch.Tensor | float,
    video_ids: torch.Tensor | None = None,
    gather: bool = False,
) -> torch.Tensor:
    """
    Returns the loss of [`infonce_loss`] with [`word_region_similarity`] in place of cosine similarities. `outputs` are
    the outputs of a model with `token_dim`; for the other arguments see [`contrastive_loss`].
    """
    negatives = getattr(outputs, "negative_text_embeds", None)
    pairs = _Pairs.of(outputs.text_embeds, outputs.video_embeds, video_ids, gather, negatives)
    return _word_region(pairs, outputs, temperature)


def _word_region(
    pairs: "_Pairs", outputs: Any, temperature: torch.Tensor | float, logits: torch.Tensor | None = None
) -> torch.Tensor:
    """`logits`: those of this process, with this temperature, if the model has computed them."""
    texts = outputs.text_token_embeds, outputs.text_token_weights
    videos = outputs.video_token_embeds, outputs.video_token_weights
    all_texts, all_videos = pairs.gather_tokens(*texts), pairs.gather_tokens(*videos)
    of_texts = logits if len(pairs.sizes) == 1 else None
    if of_texts is None:  # in several processes, or with cached gradients
        of_texts = word_region_similarity(*texts, *all_videos) / temperature
    of_videos = of_texts.T if len(pairs.sizes) == 1 else word_region_similarity(*all_texts, *videos).T / temperature
    if any(pairs.negative_sizes):
        own = texts[0][:0], texts[1][:0]  # empty if only other processes have negative texts
        if getattr(outputs, "negative_text_embeds", None) is not None:
            own = outputs.negative_token_embeds, outputs.negative_token_weights
        all_negatives = pairs.gather_tokens(*own, pairs.negative_sizes)
        of_videos = torch.cat([of_videos, word_region_similarity(*all_negatives, *videos).T / temperature], 1)
    return _cross_entropy(pairs, [of_texts, of_videos])


def sigmoid_loss(
    text_embeds: torch.Tensor,
    video_embeds: torch.Tensor,
    temperature: torch.Tensor | float,
    bias: torch.Tensor | float,
    video_ids: torch.Tensor | None = None,
    gather: bool = False,
    negative_text_embeds: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Returns SigLIP's loss (arXiv 2303.15343): each combination of a video and a text is a binary classification, whose
    logit is the cosine similarity divided by `temperature`, plus `bias`. As in SigLIP, the sum of all losses is
    divided by the number of texts, so that the total weight of negatives grows with the batch. The reference
    implementation does not have this loss. For the other arguments see [`infonce_loss`].
    """
    return _sigmoid(_Pairs.of(text_embeds, video_embeds, video_ids, gather, negative_text_embeds), temperature, bias)


def _sigmoid(pairs: "_Pairs", temperature: torch.Tensor | float, bias: torch.Tensor | float) -> torch.Tensor:
    logits = cosine_similarity(pairs.videos, pairs.all_texts) / temperature + bias
    own = logits.take_along_dim(pairs.labels[:, None], 1).squeeze(1)
    total = (F.softplus(logits) * pairs.negatives).sum() + (F.softplus(-own) * pairs.real).sum()
    return _mean(total, pairs.real.sum(), len(pairs.sizes) > 1)


def max_margin_loss(
    text_embeds: torch.Tensor,
    video_embeds: torch.Tensor,
    margin: float,
    video_ids: torch.Tensor | None = None,
    gather: bool = False,
    negative_text_embeds: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Returns the mean of max(0, margin + similarity of a negative - similarity of the pair) over the negatives of all
    texts and of all videos. This is `MaxMarginRankingLoss` of the reference implementation, whose default margin is 1.
    For the other arguments see [`infonce_loss`].
    """
    return _max_margin(_Pairs.of(text_embeds, video_embeds, video_ids, gather, negative_text_embeds), margin)


def _max_margin(pairs: "_Pairs", margin: float) -> torch.Tensor:
    total, count = pairs.texts.new_zeros(()), pairs.labels.new_zeros(())
    for rows, others in ((pairs.texts, pairs.all_videos), (pairs.videos, pairs.all_texts)):
        similarity, negatives = cosine_similarity(rows, others), pairs.negatives[:, : len(others)]
        own = similarity.take_along_dim(pairs.labels[:, None], 1)
        total = total + (F.relu(margin + similarity - own) * negatives).sum()
        count = count + negatives.sum()
    return _mean(total, count, len(pairs.sizes) > 1)


def _region_loss(config: Any, outputs: Any, counts: torch.Tensor | None, gather: bool) -> torch.Tensor | float:
    """Returns the weighted mean of `outputs.region_loss` (B,) over the clips that count (B,); 0 if it is None."""
    if outputs.region_loss is None:
        return 0.0
    losses = outputs.region_loss
    counts = torch.ones_like(losses, dtype=torch.bool) if counts is None else counts
    weight = config.video_config.resolved.region_options.mask_loss_weight
    # `where`, because the loss of a clip that does not count may be NaN.
    return weight * _mean(torch.where(counts, losses, 0).sum(), counts.sum(), gather)


def _mean(total: torch.Tensor, count: torch.Tensor, gather: bool) -> torch.Tensor:
    """Returns `total` / `count`; with `gather`, a value whose mean over processes is the one of the global batch."""
    _, processes = world()
    if gather and processes > 1:
        count = count.clone()
        torch.distributed.all_reduce(count)
        total = total * processes
    return total / count.clamp(min=1)


def _cross_entropy(pairs: "_Pairs", both: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the mean cross-entropy of the logits of texts to videos (b, n), plus that of videos to texts."""
    total = pairs.texts.new_zeros(())
    for logits in both:
        if pairs.excluded is not None:  # padding is only compared with itself, which gives a loss of 0
            logits = logits.masked_fill(pairs.excluded[:, : logits.shape[1]], torch.finfo(logits.dtype).min)
        total = total + F.cross_entropy(logits, pairs.labels, reduction="sum")
    return _mean(total, pairs.real.sum(), len(pairs.sizes) > 1)


@dataclass
class _Pairs:
    """
    The b pairs of this process, and the n pairs and m negative texts that they are compared with, which are those of
    all processes or, without gathering, those of this process.
    """

    texts: torch.Tensor  # (b, dim)
    videos: torch.Tensor  # (b, dim)
    all_texts: torch.Tensor  # (n + m, dim), negative texts last
    all_videos: torch.Tensor  # (n, dim)
    labels: torch.Tensor  # (b,), index of each pair among all pairs
    real: torch.Tensor  # (b,), False for padding
    negatives: torch.Tensor  # (b, n + m)
    excluded: torch.Tensor | None  # (b, n + m), neither negatives nor the pair itself; None if there are no others
    rank: int
    sizes: list[int]  # number of pairs of each process
    negative_sizes: list[int]  # number of negative texts of each process

    @classmethod
    def of(
        cls,
        texts: torch.Tensor | None,
        videos: torch.Tensor | None,
        video_ids: torch.Tensor | None,
        gather: bool,
        negative_texts: torch.Tensor | None,
    ) -> "_Pairs":
        rank, processes = world() if gather else (0, 1)
        sizes, negative_sizes = _check_sizes(texts, videos, video_ids, negative_texts, processes)
        assert texts is not None and videos is not None  # noqa: PT018 # or the sizes would not pair
        labels = torch.arange(len(texts), device=texts.device) + sum(sizes[:rank])
        own = labels[:, None] == torch.arange(sum(sizes) + sum(negative_sizes), device=labels.device)
        all_texts, all_videos, all_ids = texts, videos, video_ids
        all_negative_texts = texts[:0] if negative_texts is None else negative_texts
        if processes > 1:
            all_texts, all_videos = (_GatherWithGradient.apply(x, rank, sizes) for x in (texts, videos))
            all_ids = None if video_ids is None else _all_gather(video_ids, sizes)
        if processes > 1 and any(negative_sizes):
            all_negative_texts = _GatherWithGradient.apply(all_negative_texts, rank, negative_sizes)
        all_texts = torch.cat([all_texts, all_negative_texts])
        if video_ids is None or all_ids is None:
            real, negatives, excluded = torch.ones_like(labels, dtype=torch.bool), ~own, None
        else:
            real = video_ids >= 0
            negatives = (video_ids[:, None] != all_ids) & (all_ids >= 0)
            negatives = F.pad(negatives, (0, sum(negative_sizes)), value=True) & real[:, None]
            excluded = ~(negatives | own)
        return cls(
            texts, videos, all_texts, all_videos, labels, real, negatives, excluded, rank, sizes, negative_sizes
        )

    def gather_tokens(
        self, embeds: torch.Tensor, weights: torch.Tensor, sizes: list[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Returns `embeds` (b, length, dim) and `weights` (b, length) of tokens, concatenated over processes:
        (n, longest, dim) and (n, longest). If other processes have more tokens, tokens of weight 0 are appended.
        `sizes`: number of rows of each process, by default its number of pairs.
        """
        if len(self.sizes) == 1:
            return embeds, weights
        length = torch.tensor(weights.shape[1], device=weights.device)
        torch.distributed.all_reduce(length, torch.distributed.ReduceOp.MAX)
        missing = int(length) - weights.shape[1]
        embeds, weights = F.pad(embeds, (0, 0, 0, missing)), F.pad(weights, (0, missing))
        gathered = [_GatherWithGradient.apply(x, self.rank, sizes or self.sizes) for x in (embeds, weights)]
        return gathered[0], gathered[1]


def _check_sizes(
    texts: torch.Tensor | None,
    videos: torch.Tensor | None,
    video_ids: torch.Tensor | None,
    negative_texts: torch.Tensor | None,
    processes: int,
) -> tuple[list[int], list[int]]:
    """
    Returns the number of pairs and the number of negative texts of each process. Sizes are compared before embeddings
    are gathered, because processes that disagree would wait for each other forever. (The comparison synchronizes with
    the device.)
    """
    shapes = [tuple(x.shape) if x is not None else (0, 0) for x in (texts, videos)]
    mine = [length for shape in shapes for length in shape] + [-1 if video_ids is None else len(video_ids)]
    mine.append(0 if negative_texts is None else len(negative_texts))
    everyones = [mine]
    if processes > 1:
        device = next(x.device for x in (texts, videos, video_ids) if x is not None)
        everyones = _all_gather(torch.tensor([mine], device=device), [1] * processes).tolist()
    whole = all(n == m and ids in (-1, n) and a == b for n, a, m, b, ids, _ in everyones)
    alike = len({(dim, ids == -1) for _, dim, _, _, ids, _ in everyones}) == 1
    if whole and alike:
        return [texts for texts, *_ in everyones], [negatives for *_, negatives in everyones]
    told = [
        f"{n} texts of size {a}, {m} videos of size {b}, {'no' if ids == -1 else ids} video_ids"
        for n, a, m, b, ids, _ in everyones
    ]
    if processes > 1:
        told = [f"process {process} has {sizes}" for process, sizes in enumerate(told)]
    raise ValueError(
        "The loss needs one text for each video, embeddings of one size, and video_ids for all pairs or for none: "
        f"{'; '.join(told)}."
    )


def _all_gather(x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Returns `x` concatenated over processes, whose numbers of rows are `sizes`, without gradient."""
    padding = (0, 0) * (x.ndim - 1) + (0, max(sizes) - len(x))
    x = F.pad(x, padding).contiguous()
    parts = [torch.empty_like(x) for _ in sizes]
    torch.distributed.all_gather(parts, x)
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])


class _GatherWithGradient(torch.autograd.Function):
    """
    Concatenates a tensor over processes along the first axis; the gradient of each part flows back to its process.
    (torch 2.14 deprecates `torch.distributed.nn.functional.all_gather`, whose replacement has another name in earlier
    versions.)
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, rank: int, sizes: list[int]) -> torch.Tensor:
        ctx.start, ctx.length = sum(sizes[:rank]), len(x)
        return _all_gather(x, sizes)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(gradient)
        return gradient.narrow(0, ctx.start, ctx.length), None, None

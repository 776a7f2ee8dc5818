"""Checks that a text tower can embed the tokens of a tokenizer."""

import logging
import re
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .modeling_region_learner import FULL_LENGTH_TEXT_TOWERS, build_text_tower
from .processing_region_learner import LONGEST_TEXT, UNKNOWN_LENGTH

logger = logging.getLogger(__name__)


def check_text_tower(text_config: PreTrainedConfig, tokenizer: Any):
    """
    Checks that a text tower can embed the tokens of a tokenizer. Settings with only one safe value are set and logged:
    texts are truncated to the positions of the tower (`tokenizer.model_max_length`), and a tokenizer without a padding
    token pads with its end-of-text token.

    Args:
        text_config: the configuration of the text tower. For SigLIP, which attends to padding, its padding token is
            set to that of the tokenizer.
        tokenizer: the tokenizer, which is changed as described.

    Raises:
        ValueError: the tokenizer has tokens that the tower does not embed, has no token to pad with, or pads with
            another token than the tower, which skips padding when it counts positions.
    """
    kind = f"the text tower ({text_config.model_type})"
    tower = _without_weights(text_config)
    table: Any = tower.get_input_embeddings()
    largest, embedded = max(tokenizer.get_vocab().values()), table.num_embeddings
    if largest >= embedded:
        raise ValueError(
            f"The tokenizer has tokens up to id {largest:,}, but {kind} embeds only {embedded:,}: use the tokenizer "
            "that belongs to the text tower."
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"The tokenizer of {kind} has neither a padding token nor an end-of-text token: set pad_token."
            )
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("The tokenizer has no padding token: texts are padded with %r.", tokenizer.pad_token)
    tables, padding = _position_tables(tower), tokenizer.pad_token_id
    if counted := {table.padding_idx for table in tables} - {None, padding}:
        raise ValueError(
            f"The tokenizer pads with id {padding}, but {kind} skips id {counted.pop()} as padding when it counts "
            "positions: use the tokenizer that belongs to the text tower."
        )
    if text_config.model_type in FULL_LENGTH_TEXT_TOWERS and text_config.pad_token_id != padding:
        logger.info("Padding texts for %s with id %d, as its tokenizer does.", kind, padding)
        text_config.pad_token_id = padding
    positions = min(map(_num_positions, tables), default=getattr(text_config, "max_position_embeddings", None))
    positions = None if positions is not None and positions < 1 else positions  # XLNet, which has no limit, says -1
    longest = tokenizer.model_max_length
    if positions is not None and positions < (longest if longest < UNKNOWN_LENGTH else LONGEST_TEXT):
        logger.info("Texts are truncated to %d tokens, the positions of %s.", positions, kind)
        tokenizer.model_max_length = positions


def _without_weights(text_config: PreTrainedConfig) -> PreTrainedModel:
    """
    Returns the text tower on the meta device.

    Raises:
        ValueError: no model can be built from the configuration.
    """
    try:
        with torch.device("meta"):
            return build_text_tower(text_config)
    except (RuntimeError, ArithmeticError, TypeError) as error:  # sizes that are negative, 0, or not numbers
        raise ValueError(
            f"text_config ({text_config.model_type}) describes a model that cannot be built: {error}"
        ) from error


def _position_tables(tower: nn.Module) -> list[nn.Embedding]:
    """Returns the learned absolute position embeddings of a text tower: none if positions are relative or rotary."""
    return [
        module
        for name, module in tower.named_modules()
        if isinstance(module, nn.Embedding) and re.search(r"pos\w*emb|embed_pos|^wpe$", name.rpartition(".")[2])
    ]


def _num_positions(table: Any) -> int:
    """Returns how many positions a table has. RoBERTa's first position follows its padding id; OPT's first is 2."""
    offset = getattr(table, "offset", None)
    if offset is None:
        offset = 0 if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - offset

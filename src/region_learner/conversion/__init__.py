"""Converts weights: checkpoints of the reference implementation, and pre-trained towers of timm and transformers."""

from .original import convert_original_checkpoint
from .towers import from_pretrained_towers, processor_from_towers

__all__ = ["convert_original_checkpoint", "from_pretrained_towers", "processor_from_towers"]

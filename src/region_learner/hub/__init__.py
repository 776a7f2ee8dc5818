"""Model cards."""

from .model_card import model_card

__all__ = ["model_card"]

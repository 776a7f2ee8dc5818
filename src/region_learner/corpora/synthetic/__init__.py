"""The synthetic corpora: small real videos with true captions and object masks, which the package writes itself."""

from .base import SyntheticCorpus, load_masks, make_synthetic
from .letters import DRIFTING_LETTERS, DriftingLettersOptions, load_drifting_letters
from .phrases import object_phrases
from .shapes import MOVING_SHAPES, MovingShapesOptions, load_moving_shapes

__all__ = [
    "DRIFTING_LETTERS",
    "MOVING_SHAPES",
    "DriftingLettersOptions",
    "MovingShapesOptions",
    "SyntheticCorpus",
    "load_drifting_letters",
    "load_masks",
    "load_moving_shapes",
    "make_synthetic",
    "object_phrases",
]

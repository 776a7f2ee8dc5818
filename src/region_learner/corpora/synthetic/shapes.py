"""Moving shapes: small real videos with true captions and object masks, which the package writes itself.

A clip shows a few main objects, each with a shape, a colour, a texture, a size and a motion of its own, over a muted
background with gray clutter. Several captions per clip say what the main objects look like and do. Label maps of the
main objects lie beside the videos. Every clip of the split `test_unseen` shows one of the `HELD_OUT_PAIRS` of shape
and colour, which no other split does.

Scenes, splits and files on disk: see `base.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..base import CorpusError, PathLike, build_dataset
from .base import Clip, SyntheticCorpus, SyntheticOptions, check_task, load_synthetic_rows
from .shapes_captions import write_captions
from .shapes_drawing import draw
from .shapes_scenes import HELD_OUT_PAIRS, Scene, draw_scene, lay_out
from .shapes_tasks import TASKS, rows_of_task

if TYPE_CHECKING:
    from datasets import Dataset


# Part of `corpus.json` and of the cache directory's name; increase it whenever drawings or captions change.
FORMAT = 1


@dataclass(frozen=True)
class MovingShapesOptions(SyntheticOptions):
    """The options of all synthetic corpora, and those of this one.

    More `objects`, more `distractors`, a smaller `scale` and fewer `train` clips make retrieval harder to learn.
    """

    splits: ClassVar = ("train", "val", "test", "test_unseen")
    added: ClassVar = ("scale",)

    test_unseen: int = 200  # clips in the split
    objects: tuple[int, int] = (2, 4)  # main objects per clip, 1 to 5
    distractors: tuple[int, int] = (2, 5)  # gray clutter that no caption mentions, 0 to 20
    scale: float = 1.0  # factor by which objects and distractors are smaller than usual, 0.5 to 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("objects", 1, 5)
        self.check_range("distractors", 0, 20)
        if isinstance(self.scale, bool) or not isinstance(self.scale, int | float) or not 0.5 <= self.scale <= 1:
            raise CorpusError(f"scale must be a number from 0.5 to 1, not {self.scale!r}")
        object.__setattr__(self, "scale", float(self.scale))


def _make_clip(scene: Scene, options: MovingShapesOptions, rng: np.random.Generator) -> Clip:
    tracks = lay_out(scene, options.frames, rng, options.scale)
    captions = write_captions(scene, tracks, options.captions, rng)
    return Clip(captions, *draw(scene, tracks, options, rng))


MOVING_SHAPES = SyntheticCorpus(
    "moving_shapes",
    FORMAT,
    MovingShapesOptions,
    "objects",
    draw_scene,
    _make_clip,
    info={"held_out_pairs": [list(pair) for pair in HELD_OUT_PAIRS]},
)


def load_moving_shapes(
    data_dir: PathLike | None,
    split: str,
    *,
    task: str = "retrieval",
    negative_captions: bool = False,
    workers: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Dataset:
    """Built in, made on first use: MP4 clips of moving shapes, true captions, object masks, unseen combinations.

    Columns beside the common ones: `objects`, a list of {shape, colour, texture, size, motion}, and `masks`, the
    path of the label maps (see `load_masks`).

    Args:
        data_dir: a directory written by `make_corpus`. Without one, the corpus is made on first use in the
            cache directory `$HF_HOME/region_learner`.
        split: "train", "val", "test" or "test_unseen".
        task: "retrieval", or one of these tasks on the same clips:

            - "question_answering": columns `question` and `answer`, both str; one row per question, several per clip;
              no captions.
            - "multiple_choice": `options`, five captions that differ in single attributes, and `answer`, the index of
              the only true one.
            - "compositional": the same with two options, the first caption of the clip and this caption with an
              attribute swapped between two objects, and the column `aspect`: "colour", "texture" or "motion". Clips in
              which nothing can be swapped are left out.
            - "action_recognition": `label`, how the largest object moves; clips without a single largest object are
              left out, `objects=1` keeps them all.
        negative_captions: for retrieval, also the column `negative_captions`: the first caption with an attribute
            swapped between two objects, once for each attribute for which this is possible.
        workers, progress: see `make_corpus`.
        options: see `MovingShapesOptions`. With `data_dir`, they must be those that the corpus was made with.
    """
    check_task(MOVING_SHAPES, task, TASKS, negative_captions)
    rows = load_synthetic_rows(MOVING_SHAPES, data_dir, split, options, workers=workers, progress=progress)
    rows, features = rows_of_task(rows, task, split, negative_captions)
    return build_dataset(rows, features)

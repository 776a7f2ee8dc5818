"""Measures how well the phrases of captions find their objects, on corpora with label maps of the objects."""

from collections.abc import Iterable
from typing import Any, Unpack

import torch

from ..corpora import object_phrases
from ..inference import evaluation_mode
from ..phrase_maps import EmbeddedPairs, check_tokens, embed_pairs, phrase_focus
from ..region_masks import region_focus
from .reading import BATCH_SIZE, ONE_VIEW, ReadingOptions, warn_of_unreadable
from .region_baselines import baseline_masks, record_patches
from .region_evaluation import read_labeled_clips, rows_with_masks
from .region_metrics import one_hot, peaks_on_objects, thin_out

_MEASURES = ("pointing", "iou")


def scores_of_heat_maps(
    heat_maps: torch.Tensor, labels: torch.Tensor, objects: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Compares heat maps with the objects of a clip, over all of its frames together.

    Args:
        heat_maps: heat maps (P, T, h, w), at least 0.
        labels: label maps (T, H, W), integers: 0 for the background, n for the n-th object.
        objects: number of objects, O.

    Returns:
        For each heat map and object, (P, O): the probability that the peak of the heat map is on the object, where
        ties count partially; and the intersection over union of the object and the area of the heat map.
    """
    tall = region_focus(heat_maps.flatten(1, 2)[None], signed=False)  # all frames stacked vertically
    on_object, _ = peaks_on_objects(tall, labels.flatten(0, 1)[None], objects)  # (1, P, O)
    focus = phrase_focus(heat_maps)
    points = thin_out(labels, focus.values.shape[-2:])  # (T, H, W)
    of_object = one_hot(points, objects, torch.float64).transpose(0, 1).flatten(1)  # (O, T * H * W)
    inside = focus.areas(points.shape[-2:]).flatten(1).to(of_object)  # (P, T * H * W)
    shared = inside @ of_object.T
    union = inside.sum(1, keepdim=True) + of_object.sum(1) - shared
    return on_object[0].double(), shared / union.clamp(min=1)


class _Means:
    """Means over objects of each measure, for each kind of heat map."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.objects = 0

    def add(self, kind: str, scores: Iterable[torch.Tensor]) -> None:
        for measure, values in zip(_MEASURES, scores):
            self.sums[f"{kind}{measure}"] = self.sums.get(f"{kind}{measure}", 0.0) + float(values.sum())

    def compute(self) -> dict[str, float]:
        if not self.objects:
            raise ValueError("No object that a caption names is visible in its clip.")
        return {name: 100 * value / self.objects for name, value in self.sums.items()}


def grounding_accuracy(
    model, processor, dataset: Iterable[dict[str, Any]], **reading: Unpack[ReadingOptions]
) -> dict[str, Any]:
    """
    Measures how well the phrases of captions find their objects.

    The phrases are the clauses of the first caption, one for each object of the clip; `phrase_maps` defines what a
    phrase finds. Objects that are not visible in the frames that the model sees are not counted.

    Args:
        model: a dual encoder with `token_dim`.
        processor: its processor.
        dataset: rows of "moving_shapes" or "drifting_letters". Videos with the same id count once.
        reading: see [`ReadingOptions`]. There is one clip per video.

    Returns:
        `pointing`, the percentage of objects that contain the peak of the heat map, and `iou`, the mean intersection
        over union, in percent, of the object and the area of the heat map, over all frames of the clip together. The
        same with a prefix for other heat maps: "chance_" for a uniform one; "cls_attention_" for the attention of CLS,
        which does not depend on the phrase (not with a backbone); and "best_region_" for the best region for each
        object, which is an upper bound for choosing regions (not without regions).

        Also `videos` and `objects`, the numbers of videos and objects that were measured; `cut_off`, the number of
        objects whose phrase is beyond the maximum text length of the model, which count as not found; and `unreadable`
        (ids of videos).

    Raises:
        ValueError: the model does not compare words with regions, several clips per video are requested, there are no
            rows, the column `masks` is missing, no object is visible, or too many videos cannot be read.
        CorpusError: the rows are from another corpus.

    Example:

        rows = load_corpus("moving_shapes", "data/moving_shapes", "test")
        metrics = grounding_accuracy(model, processor, rows)
        metrics["pointing"], metrics["chance_pointing"]
    """
    check_tokens(model)
    if not reading.pop("views", ONE_VIEW).single:
        raise ValueError("Grounding uses one clip per video: leave out --clips and --window-stride.")
    rows = rows_with_masks(dataset)
    spans = [object_phrases(row) for row in rows]
    unreadable: dict[int, str] = {}
    options: dict[str, Any] = {"batch_size": BATCH_SIZE, "num_workers": 0, "progress": True, **reading}
    means, cut_off = _Means(), 0
    with evaluation_mode(model), record_patches(model.video_model) as record:
        for indices, clips, labels in read_labeled_clips(processor, rows, unreadable, "finding phrases", **options):
            pairs = embed_pairs(model, processor, clips, [rows[index]["captions"][0] for index in indices])
            attention = _cls_attention(model.video_model, record, pairs)
            for row, index in enumerate(indices):
                matches = pairs.find(row, spans[index])
                visible = _visible(labels[row], len(matches), pairs.grid())
                cut_off += sum(match.region is None and bool(seen) for match, seen in zip(matches, visible))
                means.objects += int(visible.sum())
                kinds = {
                    "": torch.stack([match.heat_map for match in matches]),
                    "chance_": torch.ones(1, *pairs.grid()),
                }
                if attention is not None:
                    kinds["cls_attention_"] = attention[row][None]
                if (maps := pairs.region_maps(row)) is not None:
                    kinds["best_region_"] = maps.cpu()
                for kind, heat_maps in kinds.items():
                    scores = scores_of_heat_maps(heat_maps, labels[row], len(matches))
                    of_object = (some.diagonal() if kind == "" else some.amax(0) for some in scores)
                    means.add(kind, (some[visible] for some in of_object))
    ids = [row["video_id"] for row in rows]
    return means.compute() | {
        "videos": len(rows) - len(unreadable),
        "objects": means.objects,
        "cut_off": cut_off,
        "unreadable": warn_of_unreadable(unreadable, ids),
    }


def _visible(labels: torch.Tensor, objects: int, grid: tuple[int, int, int]) -> torch.Tensor:
    """Returns which objects are visible in any frame of a clip, (O,), for label maps (T, H, W)."""
    points = thin_out(labels, torch.Size(grid[1:]))
    return one_hot(points, objects, torch.bool).flatten(2).any(2).any(0)


def _cls_attention(tower, record: dict[str, torch.Tensor], pairs: EmbeddedPairs) -> torch.Tensor | None:
    """Returns the attention of CLS in the last block, averaged over heads, (B, T, h, w); None with a backbone."""
    if tower.backbone is not None:
        return None
    frames, *grid = pairs.grid()
    like = torch.empty(len(pairs.texts), frames, 1, *grid)
    return baseline_masks("cls_attention", tower, record, like, like, 0).mean(2).float().cpu()

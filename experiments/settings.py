"""The settings of the experiments, and the models that are compared in the rows of each table."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setting:
    """
    The common parts of all runs of a table: the corpus, the encoders around the region module, and the training.

    Args:
        corpus: name of a built-in corpus.
        options: options of the corpus generator; `size` is the size of the frames that the model sees.
        video_config, text_config, config: configuration of the model, without the region module.
        epochs, batch_size, learning_rate, warmup_steps, max_grad_norm, weight_decay: options of training, which uses
            AdamW with a cosine schedule; `max_grad_norm=0` turns off gradient clipping.
        bf16: whether to train under bfloat16 autocast.
        vocab_size: vocabulary size of the tokenizer, which is trained on the training captions.
        regions_on: number of test clips whose region masks are compared with the true masks.
        drawn: whether clips are used as the generator draws them, without a codec. In this case, neither PyAV nor
            datasets is needed. Only for "moving_shapes".
    """

    corpus: str
    options: dict[str, Any]
    video_config: dict[str, Any]
    text_config: dict[str, Any]
    config: dict[str, Any]
    epochs: int = 6
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 150
    max_grad_norm: float = 1.0
    weight_decay: float = 0.05
    bf16: bool = True
    vocab_size: int = 1000
    regions_on: int = 200
    drawn: bool = False

    def __post_init__(self) -> None:
        if self.drawn and self.corpus != "moving_shapes":
            raise ValueError(f"drawn=True is for moving_shapes, not for {self.corpus}.")

    def clips_in(self, output: Path) -> Path:
        """Returns the directory of the clips, which all settings with the same clips share."""
        clips = json.dumps([self.corpus, self.options, self.drawn], sort_keys=True)
        return output / "corpus" / f"{self.corpus}-{hashlib.sha256(clips.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Row:
    """
    A model, as a row of a table.

    Args:
        name: its name in commands and recorded runs.
        label: its name in tables and figures.
        video_config: fields that it adds to the video configuration of the setting.
        baseline: name of the row that it is compared with.
        config: fields that it adds to the configuration of the dual encoder.
        gathering: the replacement of the layer that pools patches into regions, a key of `GATHERINGS`.
        labels: whether the gathering is given the true masks of the objects; see [`Split`].
        negatives: whether training uses captions with an attribute swapped between two objects as negative texts.
        epochs_factor: factor of the number of epochs of the setting.
    """

    name: str
    label: str
    video_config: dict[str, Any] = field(default_factory=dict)
    baseline: str = "frozen"
    config: dict[str, Any] = field(default_factory=dict)
    gathering: str | None = None
    labels: bool = False
    negatives: bool = False
    epochs_factor: int = 1


def _with(model: Mapping[str, Any], region_options: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Returns the video configuration `model` with some of its fields and region options replaced."""
    changed = {**model, **fields}
    if region_options:
        changed["region_options"] = model.get("region_options", {}) | region_options
    return changed


# Without any part of the region module: the encoder of Frozen in Time.
_NONE: dict[str, Any] = {"codebook_size": 0, "num_regions": 0, "interaction_layers": 0}

_SIZES: dict[str, Any] = {"codebook_size": 256, "num_regions": 8, "interaction_layers": 1, "interaction_heads": 4}

# The form of the paper, except for the codebook, which moves slowly and revives unused codes.
_PAPER: dict[str, Any] = _SIZES | {"region_form": "paper"}

# The default form. Its options repeat those of the configuration on purpose: the recorded runs were made with these
# values. If a default changes in the configuration, they must stay the same.
_DECOUPLED: dict[str, Any] = _SIZES | {
    "region_form": "decoupled",
    "region_options": {
        "mask_normalization": "regions",
        "pooling": "softmax",
        "pooling_sharpness": 3.0,
        "values": "features",
        "detach_masks": True,
        "interaction_residual": True,
        "interaction_norm": True,
        "interaction_mlp": True,
        "mask_loss_weight": 1.0,
    },
}

# The default of earlier versions: regions are maxima, and the gradient of masks and codes comes from retrieval alone.
_FIRST_FORM: dict[str, Any] = _SIZES | {
    "region_form": "decoupled",
    "region_options": {
        "mask_normalization": "regions",
        "pooling": "max",
        "values": "features",
        "detach_masks": False,
        "interaction_residual": True,
        "interaction_norm": True,
        "interaction_mlp": True,
        "mask_loss_weight": 0.0,
    },
}

_MAIN = [
    Row("frozen", "no regions (Frozen in Time)", _NONE),
    Row("frozen_deeper", "no regions, one more block", _with(_NONE, num_hidden_layers=3)),
    Row("patches", "no regions, mean of all patches", _with(_NONE, video_pooling="cls_mean")),
    Row("patches_max", "no regions, maximum of all patches", _with(_NONE, video_pooling="cls_max")),
    Row(
        "patches_max_deeper",
        "no regions, one more block, maximum of all patches",
        _with(_NONE, num_hidden_layers=3, video_pooling="cls_max"),
    ),
    Row(
        "quantization",
        "paper, only quantization (mean of quantized patches)",
        _with(_NONE, codebook_size=256, video_pooling="cls_mean"),
    ),
    Row("aggregation", "paper, without interaction", _with(_PAPER, interaction_layers=0)),
    Row("paper", "paper", _PAPER),
    Row("paper_motion", "paper, with motion excitation", _with(_PAPER, motion_excitation=True)),
    Row("decoupled", "decoupled", _DECOUPLED),
    # The mask of a single region is the whole frame, and the mask loss is constant.
    Row(
        "decoupled_1_region",
        "decoupled, one region per frame",
        _with(_DECOUPLED, {"mask_loss_weight": 0.0}, num_regions=1),
    ),
    Row("decoupled_no_codes", "decoupled, without quantization", _with(_DECOUPLED, codebook_size=0)),
    Row("decoupled_no_interaction", "decoupled, without interaction", _with(_DECOUPLED, interaction_layers=0)),
    Row("decoupled_motion", "decoupled, with motion excitation", _with(_DECOUPLED, motion_excitation=True)),
]


def _main(*names: str) -> list[Row]:
    return [row for row in _MAIN if row.name in names]


def _paper(name: str, change: str, region_options: dict[str, Any] | None = None, **fields: Any) -> Row:
    return Row(f"paper_{name}", f"paper: {change}", _with(_PAPER, region_options, **fields), baseline="paper")


def _decoupled(name: str, change: str, region_options: dict[str, Any] | None = None, **fields: Any) -> Row:
    model = _with(_DECOUPLED, region_options, **fields)
    return Row(f"decoupled_{name}", f"decoupled: {change}", model, baseline="decoupled")


# Words and regions.
_TOKENS: dict[str, Any] = {"token_dim": 64}
_PHRASES: dict[str, Any] = {"phrase_window": 7, "tube_mlp": True}
_QUERIES: dict[str, Any] = {
    "region_form": "queries",
    "codebook_size": 0,
    "num_regions": 12,
    "region_layer": 1,
    "interaction_layers": 0,
    "interaction_heads": 4,
    "video_pooling": "cls_patch_max",
}


def _gathered(gathering: str, label: str, base: str = "queries") -> Row:
    return Row(gathering, label, _QUERIES, base, _TOKENS | _PHRASES, gathering)


_WORDS = [
    *[row for row in _MAIN if row.name == "decoupled"],
    Row("decoupled_words", "decoupled, with the token loss", _DECOUPLED, "decoupled", _TOKENS),
    Row(
        "decoupled_words_1_region",
        "decoupled, with the token loss, one region per frame",
        _with(_DECOUPLED, {"mask_loss_weight": 0.0}, num_regions=1),
        "decoupled",
        _TOKENS,
    ),
    Row(
        "decoupled_words_grid",
        "decoupled, with the token loss, a fixed grid as masks",
        _with(_DECOUPLED, {"mask_loss_weight": 0.0}),
        "decoupled",
        _TOKENS,
        "grid",
    ),
    Row("phrases", "decoupled, with local phrases and tubes", _DECOUPLED, "decoupled", _PHRASES),
    Row("queries", "queries", _QUERIES, "decoupled", _TOKENS | _PHRASES),
    Row("no_regions", "no regions, with local phrases and tubes", _with(_QUERIES, num_regions=0), "queries", _PHRASES),
    Row("queries_no_tubes", "queries, without tubes", _QUERIES, "queries", _TOKENS | _PHRASES | {"tube_mlp": False}),
    Row("queries_no_phrases", "queries, without local phrases", _QUERIES, "queries", _TOKENS | {"tube_mlp": True}),
    Row(
        "queries_negatives",
        "queries, with swapped captions as negatives",
        _QUERIES,
        "queries",
        _TOKENS | _PHRASES,
        negatives=True,
    ),
    Row(
        "cells_negatives",
        "12 cells of a grid, with swapped captions as negatives",
        _QUERIES,
        "queries_negatives",
        _TOKENS | _PHRASES,
        "cells",
        negatives=True,
    ),
    _gathered("cells", "12 cells of a grid"),
    _gathered("frame_cells", "12 cells, 4 in each frame"),
    _gathered("random_patches", "12 random patches"),
    _gathered("clusters", "12 clusters (k-means)"),
    _gathered("convolution", "12 masks by a convolution"),
    _gathered("slots", "12 slots"),
    _gathered("tracking", "12 tracks"),
    Row("queries_36", "36 queries", _with(_QUERIES, num_regions=36), "queries", _TOKENS | _PHRASES),
    Row(
        "tubes",
        "36 tubes",
        _with(_QUERIES, num_regions=36),
        "queries",
        _TOKENS | _PHRASES,
        "cells",
    ),
    Row(
        "all_patches",
        "all 108 patches",
        _with(_QUERIES, num_regions=0),
        "queries",
        _TOKENS | _PHRASES,
    ),
]

# How good masks have to be, and attempts to make them better.
_BETTER_MASKS = [
    *[row for row in _WORDS if row.name in ("queries", "cells")],
    replace(_gathered("true_masks", "true masks"), labels=True),
    replace(_gathered("blurred_masks", "true masks, blurred", "true_masks"), labels=True),
    replace(_gathered("missing_masks", "true masks, a quarter missing", "true_masks"), labels=True),
    replace(_gathered("untracked_masks", "true masks, in a new order in each frame", "true_masks"), labels=True),
    _gathered("competing", "12 queries that compete"),
    _gathered("refined", "12 queries that attend twice"),
    _gathered("refined_competing", "12 queries that compete and attend twice"),
    _gathered("refined_tracking", "12 tracks, followed twice"),
    _gathered("refined_competing_tracking", "12 tracks that compete, followed twice"),
]

_CROWDED_ROWS = [
    *[row for row in _WORDS if row.name in ("queries", "cells", "clusters", "slots", "tracking")],
    _gathered("anchored", "12 queries with anchors"),
    _gathered("tracking_heads", "12 tracks, with the path of each head"),
    _gathered("tracks_and_cells", "12 tracks, with half of the heads on cells"),
    Row("queries_24", "24 queries", _with(_QUERIES, num_regions=24), "queries", _TOKENS | _PHRASES),
]

TABLES: dict[str, list[Row]] = {
    "main": _MAIN,
    "words": _WORDS,
    "better_masks": _BETTER_MASKS,
    "crowded": _CROWDED_ROWS,
    "first_form": [
        *_main("frozen", "patches_max", "decoupled"),
        Row("maxima", "first form", _FIRST_FORM),
        Row("maxima_1_region", "first form, one region per frame", _with(_FIRST_FORM, num_regions=1)),
        Row("maxima_no_codes", "first form, without quantization", _with(_FIRST_FORM, codebook_size=0)),
        Row("maxima_no_interaction", "first form, without interaction", _with(_FIRST_FORM, interaction_layers=0)),
        Row("maxima_motion", "first form, with motion excitation", _with(_FIRST_FORM, motion_excitation=True)),
    ],
    # The choices within the two forms, one at a time.
    "sweeps": [
        *_main("frozen", "paper"),
        _paper("original_codebook", "codebook of the reference implementation", codebook_mode="original"),
        _paper("no_codes", "without quantization", codebook_size=0),
        _paper("residual", "residual in the interaction", {"interaction_residual": True}),
        _paper("softmax", "masks are a softmax over positions", {"mask_normalization": "positions"}),
        _paper("features", "regions pool unquantized features", {"values": "features"}),
        _paper("cls_max", "maximum of regions", video_pooling="cls_max"),
        *_main("decoupled", "decoupled_no_interaction"),
        _decoupled("64_codes", "64 codes", codebook_size=64),
        _decoupled("1024_codes", "1,024 codes", codebook_size=1024),
        _decoupled("2_regions", "2 regions", num_regions=2),
        _decoupled("4_regions", "4 regions", num_regions=4),
        _decoupled("16_regions", "16 regions", num_regions=16),
        _decoupled(
            "over_positions",
            "masks are a softmax over positions, no mask loss",
            {"mask_normalization": "positions", "mask_loss_weight": 0.0},
        ),
        _decoupled("sharpness_2", "pooling sharpness 2", {"pooling_sharpness": 2.0}),
        _decoupled("sharpness_4", "pooling sharpness 4", {"pooling_sharpness": 4.0}),
        _decoupled("sharpness_8", "pooling sharpness 8", {"pooling_sharpness": 8.0}),
        _decoupled("mean_gather", "regions are means", {"pooling": "mean"}),
        _decoupled("max_gather", "regions are maxima", {"pooling": "max"}),
        _decoupled("no_region_loss", "no mask loss", {"mask_loss_weight": 0.0}),
        _decoupled("masks_train_encoder", "masks and their loss train the encoder", {"detach_masks": False}),
        _decoupled("cls_mean", "mean of regions", video_pooling="cls_mean"),
        _decoupled("quantized", "regions pool quantized features", {"values": "quantized"}),
        _decoupled("no_mlp", "no MLP in the interaction", {"interaction_mlp": False}),
        _decoupled("no_residual", "no residual in the interaction", {"interaction_residual": False}),
    ],
    "patch_dropout": [
        *_main("decoupled"),
        _decoupled("half", "half of the patches", patch_dropout=0.5),
        replace(
            _decoupled("half_longer", "half of the patches, twice as many steps", patch_dropout=0.5), epochs_factor=2
        ),
        *[row for row in _WORDS if row.name == "queries"],
        Row(
            "queries_half",
            "queries: half of the patches",
            _with(_QUERIES, patch_dropout=0.5),
            "queries",
            _TOKENS | _PHRASES,
        ),
    ],
    "second_corpus": _main("frozen", "patches_max", "paper", "decoupled", "decoupled_1_region", "decoupled_no_codes"),
    "unclipped": _main("frozen", "decoupled"),
}

# Pairs of rows that differ by one part of the method (or, where there is no such pair, by as little as possible).
CONTRASTS = [
    ("paper", "patches"),
    ("quantization", "patches"),
    ("aggregation", "quantization"),
    ("paper", "aggregation"),
    ("paper_motion", "paper"),
    ("decoupled", "paper"),
    ("decoupled", "frozen_deeper"),
    ("decoupled", "patches_max"),
    ("decoupled", "patches_max_deeper"),
    ("decoupled", "decoupled_no_codes"),
    ("decoupled", "decoupled_no_interaction"),
    ("decoupled_no_mlp", "decoupled_no_interaction"),
    ("decoupled", "decoupled_1_region"),
    ("decoupled_motion", "decoupled"),
    ("decoupled_no_interaction", "patches_max"),
    ("decoupled_1_region", "patches_max_deeper"),
    ("decoupled", "maxima"),
    ("maxima", "maxima_no_codes"),
    ("maxima", "maxima_1_region"),
    ("decoupled_half", "decoupled"),
    ("decoupled_half_longer", "decoupled"),
    ("queries_half", "queries"),
]

# The pairs of rows that `experiments.words` compares.
WORD_CONTRASTS = [
    ("decoupled_words", "decoupled"),
    ("decoupled_words", "decoupled_words_grid"),
    ("decoupled_words", "decoupled_words_1_region"),
    ("phrases", "decoupled"),
    ("queries", "decoupled"),
    ("queries", "phrases"),
    ("queries", "no_regions"),
    ("queries", "queries_no_tubes"),
    ("queries", "queries_no_phrases"),
    ("queries", "cells"),
    ("queries", "frame_cells"),
    ("queries", "random_patches"),
    ("queries", "clusters"),
    ("queries", "convolution"),
    ("queries", "slots"),
    ("tracking", "anchored"),
    ("tracking", "queries"),
    ("tracking", "cells"),
    ("tracking", "clusters"),
    ("tracking", "random_patches"),
    ("tracking_heads", "tracking"),
    ("tracks_and_cells", "tracking"),
    ("tracks_and_cells", "cells"),
    ("queries_24", "queries"),
    ("slots", "cells"),
    ("convolution", "cells"),
    ("clusters", "cells"),
    ("cells", "no_regions"),
    ("cells", "all_patches"),
    ("clusters", "all_patches"),
    ("tubes", "all_patches"),
    ("tubes", "cells"),
    ("queries", "tubes"),
    ("queries_36", "tubes"),
    ("queries_36", "queries"),
    ("queries", "all_patches"),
    ("all_patches", "no_regions"),
    ("queries_negatives", "queries"),
    ("queries_negatives", "cells_negatives"),
    ("true_masks", "cells"),
    ("true_masks", "queries"),
    ("true_masks", "tracking"),
    ("blurred_masks", "true_masks"),
    ("missing_masks", "true_masks"),
    ("untracked_masks", "true_masks"),
    ("competing", "queries"),
    ("refined", "queries"),
    ("refined_competing", "queries"),
    ("refined_competing", "tracking"),
    ("refined_competing", "cells"),
    ("refined_tracking", "tracking"),
    ("refined_competing_tracking", "tracking"),
]

_ENCODERS: dict[str, Any] = {
    "video_config": {
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 384,
        "image_size": 48,
        "patch_size": 8,
        "num_frames": 3,
    },
    "text_config": {
        "model_type": "distilbert",
        "dim": 96,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 384,
        "max_position_embeddings": 64,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "config": {"projection_dim": 128, "text_pooling": "mean"},
}
_CLIPS: dict[str, int] = {"train": 12000, "val": 1000, "test": 1000, "size": 48, "frames": 8, "captions": 1}
_CROWDED: dict[str, Any] = {"objects": 5, "distractors": [8, 14], "scale": 0.7}
_SHAPES: dict[str, Any] = _CLIPS | {"test_unseen": 0, "fps": 4, "objects": 4, "distractors": [4, 8]}

SETTINGS: dict[str, Setting] = {
    "shapes": Setting(corpus="moving_shapes", options=_SHAPES, **_ENCODERS),
    "letters": Setting(corpus="drifting_letters", options=dict(_CLIPS), **_ENCODERS),
    # Half as many epochs, because the best models can hardly be distinguished after full training.
    "shapes_short": Setting(corpus="moving_shapes", options=_SHAPES, **_ENCODERS, epochs=3),
    "letters_short": Setting(corpus="drifting_letters", options=dict(_CLIPS), **_ENCODERS, epochs=3),
    # Four times as many patches, of half the size.
    "shapes_fine": Setting(
        corpus="moving_shapes",
        options=_SHAPES,
        **_ENCODERS | {"video_config": _ENCODERS["video_config"] | {"patch_size": 4}},
        epochs=3,
    ),
    # More and smaller objects, and more patches: a cell of a coarse grid often contains several objects.
    "shapes_crowded": Setting(
        corpus="moving_shapes",
        options=_SHAPES | _CROWDED | {"size": 64},
        **_ENCODERS | {"video_config": _ENCODERS["video_config"] | {"image_size": 64}},
        epochs=3,
        drawn=True,
    ),
    # The same with larger frames and models and more clips, for a GPU.
    "shapes_96": Setting(
        corpus="moving_shapes",
        options=_SHAPES | _CROWDED | {"train": 24000, "size": 96},
        **_ENCODERS
        | {"video_config": _ENCODERS["video_config"] | {"image_size": 96, "num_hidden_layers": 4, "num_frames": 4}},
        epochs=3,
        drawn=True,
    ),
    # Shows how much of the differences between seeds comes from the optimization.
    "shapes_unclipped": Setting(
        corpus="moving_shapes", options=_SHAPES, **_ENCODERS, warmup_steps=50, max_grad_norm=0
    ),
}


def rows_of(names: Iterable[str]) -> list[Row]:
    """
    Returns the rows for `names`, which are names of tables or rows, each once.

    Raises:
        ValueError: a name is not known.
    """
    single = {row.name: row for table in TABLES.values() for row in table}
    chosen: dict[str, Row] = {}
    for name in names:
        if name not in TABLES and name not in single:
            raise ValueError(f"{name!r} is not a table or a row; choose one of {', '.join([*TABLES, *single])}.")
        chosen |= {row.name: row for row in TABLES.get(name) or [single[name]]}
    return list(chosen.values())


def with_baselines(rows: Iterable[Row]) -> list[Row]:
    """Returns `rows` and the rows that they are compared with."""
    chosen = {row.name: row for row in rows}
    missing = {row.baseline for row in chosen.values()} - chosen.keys()
    return [*chosen.values(), *rows_of(sorted(missing))]

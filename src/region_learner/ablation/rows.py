"""The tables: which models are compared, and in which setting."""

from typing import Any

from ..configuration_region_learner import REGION_FORMS, RegionOptions, did_you_mean, merge_fields
from .run import Row, Setting

# Without any part of the region module: the encoder of Frozen in Time.
_NONE: dict[str, Any] = {"codebook_size": 0, "num_regions": 0, "interaction_layers": 0}

_SIZES: dict[str, Any] = {"codebook_size": 256, "num_regions": 8, "interaction_layers": 1, "interaction_heads": 4}

# The region module as the paper has it, but for a codebook that moves slowly and revives dead codes.
_PAPER: dict[str, Any] = _SIZES | {"region_form": "paper"}

_QUANTIZED_PATCHES: dict[str, Any] = _NONE | {"codebook_size": 256, "video_pooling": "cls_mean"}

# The form that new models have by default, spelled out: should that change, runs of before tell that they are others.
_OURS: dict[str, Any] = _SIZES | {
    "region_form": "decoupled",
    "region_options": REGION_FORMS["decoupled"] | {"mask_loss_weight": 1.0},
}

# What that was before: regions are maxima, and masks and codes have their gradient from retrieval alone.
_MAXIMA: dict[str, Any] = _SIZES | {
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


def _change(model: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """A video configuration in which some fields and region options are `changed`."""
    options = {name: value for name, value in changed.items() if name in RegionOptions._fields}
    sizes = {name: value for name, value in changed.items() if name not in options}
    return merge_fields(model, sizes | ({"region_options": options} if options else {}))


# Tables by name.
ROWS: dict[str, list[Row]] = {
    "main": [
        Row("frozen", "no regions: Frozen in Time", _NONE),
        Row("frozen_deeper", "no regions, one block more", _NONE | {"num_hidden_layers": 3}),
        Row("patches", "no regions, mean of all patches", _NONE | {"video_pooling": "cls_mean"}),
        Row("patches_max", "no regions, maximum of all patches", _NONE | {"video_pooling": "cls_max"}),
        Row(
            "patches_max_deeper",
            "no regions, one block more, maximum of all patches",
            _NONE | {"num_hidden_layers": 3, "video_pooling": "cls_max"},
        ),
        Row("quantization", "paper, step 1: mean of quantized patches", _QUANTIZED_PATCHES),
        Row("aggregation", "paper, steps 1 and 2: raw masks", _PAPER | {"interaction_layers": 0}),
        Row("paper", "paper, steps 1 to 3: interaction", _PAPER),
        Row("paper_motion", "paper, with motion excitation", _PAPER | {"motion_excitation": True}),
        Row("ours", "ours, whole", _OURS),
        # A single region has nothing to compete with: its mask is the whole frame.
        Row(
            "ours_1_region",
            "ours, one region a frame: no masks",
            _change(_OURS, {"num_regions": 1, "mask_loss_weight": 0.0}),  # the loss would be a constant
        ),
        Row("ours_no_codes", "ours, without quantization", _OURS | {"codebook_size": 0}),
        Row("ours_no_interaction", "ours, without interaction", _OURS | {"interaction_layers": 0}),
        Row("ours_motion", "ours, with motion excitation", _OURS | {"motion_excitation": True}),
    ],
}


def _main(*names: str) -> list[Row]:
    return [row for row in ROWS["main"] if row.name in names]


ROWS["first_form"] = [
    *_main("frozen", "patches_max", "ours"),
    Row("maxima", "regions are maxima", _MAXIMA),
    Row("maxima_1_region", "maxima, one region a frame: no masks", _MAXIMA | {"num_regions": 1}),
    Row("maxima_no_codes", "maxima, without quantization", _MAXIMA | {"codebook_size": 0}),
    Row("maxima_no_interaction", "maxima, without interaction", _MAXIMA | {"interaction_layers": 0}),
    Row("maxima_motion", "maxima, with motion excitation", _MAXIMA | {"motion_excitation": True}),
]


def _paper(name: str, describes: str, **changed: Any) -> Row:
    return Row(f"paper_{name}", f"paper: {describes}", _change(_PAPER, changed), against="paper")


def _ours(name: str, describes: str, **changed: Any) -> Row:
    return Row(f"ours_{name}", f"ours: {describes}", _change(_OURS, changed), against="ours")


# What the two forms chose, one choice at a time.
ROWS["sweeps"] = [
    *_main("frozen", "paper"),
    _paper("original_codebook", "the original's codebook", codebook_mode="original"),
    _paper("no_codes", "without quantization", codebook_size=0),
    _paper("residual", "residual in the interaction", interaction_residual=True),
    _paper("softmax", "masks a softmax over positions", mask_normalization="positions"),
    _paper("features", "masks gather unquantized features", values="features"),
    _paper("cls_max", "maximum of regions", video_pooling="cls_max"),
    *_main("ours", "ours_no_interaction"),
    _ours("64_codes", "64 codes", codebook_size=64),
    _ours("1024_codes", "1024 codes", codebook_size=1024),
    _ours("2_regions", "2 regions", num_regions=2),
    _ours("4_regions", "4 regions", num_regions=4),
    _ours("16_regions", "16 regions", num_regions=16),
    _ours(
        "over_positions",
        "masks over positions, without their loss",
        mask_normalization="positions",
        mask_loss_weight=0.0,
    ),
    _ours("sharpness_2", "sharpness 2", pooling_sharpness=2.0),
    _ours("sharpness_4", "sharpness 4", pooling_sharpness=4.0),
    _ours("sharpness_8", "sharpness 8", pooling_sharpness=8.0),
    _ours("mean_gather", "masks gather means", pooling="mean"),
    _ours("max_gather", "masks gather maxima", pooling="max"),
    _ours("no_region_loss", "without a loss of the regions", mask_loss_weight=0.0),
    _ours("masks_train_encoder", "the encoder learns through masks and their loss, too", detach_masks=False),
    _ours("cls_mean", "mean of regions", video_pooling="cls_mean"),
    _ours("quantized", "masks gather quantized features", values="quantized"),
    _ours("no_mlp", "no MLP in the interaction", interaction_mlp=False),
    _ours("no_residual", "no residual in the interaction", interaction_residual=False),
]
ROWS["second_corpus"] = _main("frozen", "patches_max", "paper", "ours", "ours_1_region", "ours_no_codes")
ROWS["unclipped"] = _main("frozen", "ours")

# Parts of the method, each by what it adds to a model that is otherwise the same (or as nearly as there is one).
CONTRASTS = [
    ("paper", "patches"),
    ("quantization", "patches"),
    ("aggregation", "quantization"),
    ("paper", "aggregation"),
    ("paper_motion", "paper"),
    ("ours", "paper"),
    ("ours", "frozen_deeper"),
    ("ours", "patches_max"),
    ("ours", "patches_max_deeper"),
    ("ours", "ours_no_codes"),
    ("ours", "ours_no_interaction"),
    ("ours_no_mlp", "ours_no_interaction"),
    ("ours", "ours_1_region"),
    ("ours_motion", "ours"),
    ("ours_no_interaction", "patches_max"),
    ("ours_1_region", "patches_max_deeper"),
    ("ours", "maxima"),
    ("maxima", "maxima_no_codes"),
    ("maxima", "maxima_1_region"),
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
_SHAPES: dict[str, Any] = _CLIPS | {"test_unseen": 0, "fps": 4, "objects": 4, "distractors": [4, 8]}

SETTINGS: dict[str, Setting] = {
    "shapes": Setting(
        corpus="moving_shapes",
        options=_SHAPES,
        **_ENCODERS,
    ),
    "letters": Setting(corpus="drifting_letters", options=dict(_CLIPS), **_ENCODERS),
    # How much of the differences between seeds is the optimisation's.
    "shapes_unclipped": Setting(
        corpus="moving_shapes", options=_SHAPES, **_ENCODERS, warmup_steps=50, max_grad_norm=0
    ),
}


def rows_of(names: list[str]) -> list[Row]:
    """
    The rows of tables and single rows, by name, each once.

    Raises:
        ValueError: naming one that there is not.
    """
    single = {row.name: row for table in ROWS.values() for row in table}
    chosen: dict[str, Row] = {}
    for name in names:
        if name not in ROWS and name not in single:
            known = [*ROWS, *single]
            raise ValueError(f"There is no table or row {name!r}{did_you_mean(name, known)} ({', '.join(known)})")
        chosen |= {row.name: row for row in ROWS.get(name) or [single[name]]}
    return list(chosen.values())

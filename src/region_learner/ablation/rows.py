"""The tables: which models are compared, and in which setting."""

from typing import Any

from ..corpora.folder import suggestion
from .run import Row, Setting

# Without any part of the region module: the encoder of Frozen in Time.
_NONE: dict[str, Any] = {"codebook_size": 0, "num_regions": 0, "interaction_layers": 0}

_SIZES: dict[str, Any] = {"codebook_size": 256, "num_regions": 8, "interaction_layers": 1, "interaction_heads": 4}

# The region module as the paper has it, but for a codebook that moves slowly and revives dead codes.
_PAPER: dict[str, Any] = _SIZES | {"region_form": "paper"}

_QUANTIZED_PATCHES: dict[str, Any] = _NONE | {"codebook_size": 256, "video_pooling": "cls_mean"}

# The form that new models have by default.
_OURS: dict[str, Any] = _SIZES | {"region_form": "decoupled"}
# Tables by name. The first row of each is what the others are compared with.
ROWS: dict[str, list[Row]] = {
    "main": [
        Row("frozen", "no regions: Frozen in Time", _NONE),
        Row("frozen_deeper", "no regions, one block more", _NONE | {"num_hidden_layers": 3}),
        Row("patches", "no regions, mean of all patches", _NONE | {"video_pooling": "cls_mean"}),
        Row("patches_max", "no regions, maximum of all patches", _NONE | {"video_pooling": "cls_max"}),
        Row("quantization", "paper, step 1: mean of quantized patches", _QUANTIZED_PATCHES),
        Row("aggregation", "paper, steps 1 and 2: raw masks", _PAPER | {"interaction_layers": 0}),
        Row("paper", "paper, steps 1 to 3: interaction", _PAPER),
        Row("paper_motion", "paper, with motion excitation", _PAPER | {"motion_excitation": True}),
        Row("ours", "ours, whole", _OURS),
        # A single region has nothing to compete with: its mask is the whole frame.
        Row("ours_1_region", "ours, one region a frame: no masks", _OURS | {"num_regions": 1}),
        Row("ours_no_codes", "ours, without quantization", _OURS | {"codebook_size": 0}),
        Row("ours_no_interaction", "ours, without interaction", _OURS | {"interaction_layers": 0}),
        Row("ours_motion", "ours, with motion excitation", _OURS | {"motion_excitation": True}),
    ],
    "sweeps": [
        Row("paper_original_codebook", "paper, the original's codebook", _PAPER | {"codebook_mode": "original"}),
        Row("paper_no_codes", "paper, without quantization", _PAPER | {"codebook_size": 0}),
        Row("paper_residual", "paper, residual in the interaction", _PAPER | {"interaction_residual": True}),
        Row("paper_softmax", "paper, masks a softmax over positions", _PAPER | {"mask_normalization": "positions"}),
        Row("paper_features", "paper, masks gather unquantized features", _PAPER | {"region_content": "features"}),
        Row("paper_cls_max", "paper, maximum of regions", _PAPER | {"video_pooling": "cls_max"}),
        Row("ours_64_codes", "ours, 64 codes", _OURS | {"codebook_size": 64}),
        Row("ours_1024_codes", "ours, 1024 codes", _OURS | {"codebook_size": 1024}),
        Row("ours_2_regions", "ours, 2 regions", _OURS | {"num_regions": 2}),
        Row("ours_4_regions", "ours, 4 regions", _OURS | {"num_regions": 4}),
        Row("ours_16_regions", "ours, 16 regions", _OURS | {"num_regions": 16}),
        Row("ours_over_positions", "ours, masks over positions", _OURS | {"mask_normalization": "positions"}),
        Row("ours_mean_gather", "ours, masks gather means", _OURS | {"region_gather": "mean"}),
        Row("ours_cls_mean", "ours, mean of regions", _OURS | {"video_pooling": "cls_mean"}),
        Row("ours_quantized", "ours, masks gather quantized features", _OURS | {"region_content": "quantized"}),
        Row("ours_no_mlp", "ours, no MLP in the interaction", _OURS | {"interaction_mlp": False}),
        Row("ours_no_residual", "ours, no residual in the interaction", _OURS | {"interaction_residual": False}),
    ],
}
_SECOND = ("frozen", "patches_max", "paper", "ours", "ours_1_region", "ours_no_codes")
ROWS["second_corpus"] = [row for row in ROWS["main"] if row.name in _SECOND]

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
            raise ValueError(f"There is no table or row {name!r}{suggestion(name, known)} (known: {', '.join(known)})")
        chosen |= {row.name: row for row in ROWS.get(name) or [single[name]]}
    return list(chosen.values())

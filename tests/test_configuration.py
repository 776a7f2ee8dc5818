"""Tests for configurations: every field in every way to set it, merged overrides, saved files, and invalid values."""

import copy
import functools
import json
import logging
import math
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, AutoModel, AutoProcessor, BertConfig, CLIPVisionConfig

from region_learner import (
    RegionLearnerConfig,
    RegionLearnerModel,
    RegionLearnerProcessor,
    RegionLearnerVideoConfig,
    RegionLearnerVideoModel,
    RegionLearnerVideoProcessor,
    configuration_region_learner,
)
from region_learner.cli import main
from region_learner.configuration_region_learner import (
    RegionOptions,
    merge_fields,
    nest_overrides,
)
from region_learner.training import ModelArguments, build_model, parse_arguments, parse_stages, run
from region_learner.training.tokenizer import train_tokenizer

from .conftest import NO_REGIONS, TINY_VIDEO, clips, tiny_text_config

TEXT = {"model_type": "distilbert", "dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 64, "vocab_size": 99}
# A value other than the default for each field of the video tower.
VIDEO_FIELDS = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "initializer_range": 0.1,
    "image_size": 48,
    "patch_size": 16,
    "num_channels": 1,
    "num_frames": 3,
    "patch_dropout": 0.5,
    "pre_layernorm": True,
    "codebook_size": 8,
    "codebook_mode": "original",
    "codebook_decay": 0.5,
    "codebook_revival_after": 7,
    "num_regions": 1,
    "region_layer": 1,
    "interaction_layers": 0,
    "interaction_heads": 2,
    "region_form": "paper",
    "region_options": {"pooling": "max", "detach_masks": False},
    "motion_excitation": True,
    "video_pooling": "cls_mean",
    "temporal_fusion": "linear",
}
REGION_OPTIONS = {
    "mask_normalization": "positions",
    "pooling": "mean",
    "pooling_sharpness": 8.0,
    "values": "quantized",
    "detach_masks": False,
    "interaction_residual": False,
    "interaction_norm": False,
    "interaction_mlp": False,
    "mask_loss_weight": 0.25,
}
TOP_FIELDS = {
    "projection_dim": 24,
    "temperature": 0.1,
    "learn_temperature": True,
    "loss": "sigmoid",
    "sigmoid_bias": -5.0,
    "margin": 0.3,
    "text_pooling": "mean",
    "text_projection_relu": False,
    "projection_bias": False,
    "phrase_window": 3,
    "tube_mlp": True,
    "token_dim": 8,
    "token_temperature": 0.2,
    "token_loss_weight": 0.5,
    "initializer_range": 0.01,
}
# The other fields that a field needs to have an effect.
NEEDED: dict[str, dict] = {
    "sigmoid_bias": {"loss": "sigmoid"},
    "margin": {"loss": "max_margin"},
    "token_temperature": {"token_dim": 8},
    "token_loss_weight": {"token_dim": 8},
}
CHANGES = [
    *({"video_config": {name: value}} for name, value in VIDEO_FIELDS.items()),
    *({"video_config": {"region_options": {name: value}}} for name, value in REGION_OPTIONS.items()),
    *({name: value} | NEEDED.get(name, {}) for name, value in TOP_FIELDS.items()),
    {"video_config": NO_REGIONS},
    {"video_config": NO_REGIONS | {"video_pooling": "cls_max"}},
    {
        "video_config": {"region_form": "queries", "interaction_layers": 0, "video_pooling": "cls_patch_max"},
        "token_dim": 8,
    },
    {"video_config": {"region_form": "paper", "region_options": {"interaction_residual": True}}},
]


def test_every_field_is_tried():
    assert VIDEO_FIELDS.keys() | {"backbone_config"} == RegionLearnerVideoConfig.own_fields()  # test_backbones.py
    assert REGION_OPTIONS.keys() == set(RegionOptions._fields)
    assert TOP_FIELDS.keys() | {"video_config", "text_config"} == RegionLearnerConfig.own_fields()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Returns the path of a checkpoint with a processor and its tokenizer."""
    path = tmp_path_factory.mktemp("checkpoint")
    tokenizer = train_tokenizer(["a red square moves left", "the blue circle"], 99, 16)
    RegionLearnerModel(config_of({})).save_pretrained(path)
    video_processor = RegionLearnerVideoProcessor.for_image_size(32, num_frames=4)
    RegionLearnerProcessor(video_processor, tokenizer).save_pretrained(path)
    return path


def config_of(change, **more) -> RegionLearnerConfig:
    video = TINY_VIDEO | change.get("video_config", {})
    fields = {"projection_dim": 16} | {name: value for name, value in change.items() if name != "video_config"}
    return RegionLearnerConfig(video_config=video, text_config=dict(TEXT), **fields | more)


def chosen(config) -> dict:
    """Returns the fields of a configuration, without those that transformers adds."""
    video = config.video_config
    fields = {name: getattr(config, name) for name in config.own_fields() - {"video_config", "text_config"}}
    of_video = {name: getattr(video, name) for name in video.own_fields()}
    return fields | {"video_config": of_video, "resolved": (config.resolved, video.resolved)}


def shapes(model) -> dict:
    """Returns the shapes of all weights except those of the text encoder, whose vocabulary may differ."""
    return {name: tensor.shape for name, tensor in model.state_dict().items() if not name.startswith("text_model.")}


@functools.cache
def shapes_of_the_checkpoint() -> dict:
    return shapes(RegionLearnerModel(config_of({})))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: re.sub(r"\W+", "_", json.dumps(change)).strip("_"))
def test_every_field_means_the_same_however_it_is_set(change, checkpoint, tmp_path):
    expected = config_of(change)
    assert chosen(expected) != chosen(config_of({}))
    with torch.device("meta"):
        built = shapes(RegionLearnerModel(expected))

    # Overrides of a saved configuration, and of a model.
    assert chosen(RegionLearnerConfig.from_pretrained(checkpoint, **change)) == chosen(expected)
    assert chosen(AutoConfig.from_pretrained(checkpoint, **change)) == chosen(expected)
    model = AutoModel.from_pretrained(checkpoint, ignore_mismatched_sizes=True, **change)
    assert (chosen(model.config), shapes(model)) == (chosen(expected), built)
    if video := change.get("video_config"):
        config = RegionLearnerVideoConfig.from_pretrained(checkpoint, **video)
        assert {name: getattr(config, name) for name in config.own_fields()} == chosen(expected)["video_config"]
        assert config.resolved == expected.video_config.resolved

    # A recipe and the command line.
    recipe = tmp_path / "recipe.yaml"
    text = {**TEXT, "max_position_embeddings": 16}
    new = {"video_config": TINY_VIDEO, "text_config": text, "config": {"projection_dim": 16}}
    recipe.write_text(json.dumps(new | {"tokenizer": str(checkpoint), "use_cpu": True}))
    top = {name: value for name, value in change.items() if name != "video_config"}
    argv = [f"--video_config={json.dumps(change.get('video_config', {}))}", f"--config={json.dumps(top)}"]
    model, _ = build_model(parse_arguments([str(recipe), *argv])[0])
    assert (chosen(model.config), shapes(model)) == (chosen(expected), built)
    if built == shapes_of_the_checkpoint() or "num_frames" in change.get("video_config", {}):
        arguments, _, _ = parse_arguments([f"--model={checkpoint}", "--use_cpu=true", *argv])
        model, processor = build_model(arguments)
        assert (chosen(model.config), shapes(model)) == (chosen(expected), built)
        assert processor.video_processor.num_frames == expected.video_config.num_frames

    # Only the fields that were set are saved.
    expected.save_pretrained(tmp_path / "saved")
    again = RegionLearnerConfig.from_pretrained(tmp_path / "saved")
    assert chosen(again) == chosen(expected)
    again.save_pretrained(tmp_path / "again")
    saved = [(tmp_path / name / "config.json").read_text() for name in ("saved", "again")]
    assert saved[0] == saved[1]
    of_video = json.loads(saved[0])["video_config"]
    assert of_video["region_options"] == expected.video_config.region_options
    assert of_video["codebook_decay"] == change.get("video_config", {}).get("codebook_decay")


def test_overrides_of_saved_defaults_take_effect(tmp_path):
    """An overridden configuration gives the same outputs as one that was created with the value."""
    video_config = RegionLearnerVideoConfig(**TINY_VIDEO)
    video_config.save_pretrained(tmp_path)
    for change in ({"region_form": "paper"}, {"codebook_mode": "original"}, NO_REGIONS):
        outputs = []
        for config in (
            RegionLearnerVideoConfig.from_pretrained(tmp_path, **change),
            RegionLearnerVideoConfig(**TINY_VIDEO | change),
        ):
            torch.manual_seed(0)
            model = RegionLearnerVideoModel(config).train()
            outputs.append((model(clips()).pooler_output, *model.state_dict().values()))
        assert len(outputs[0]) == len(outputs[1])
        assert all(torch.equal(one, other) for one, other in zip(*outputs)), change
    frozen = RegionLearnerVideoConfig.from_pretrained(tmp_path, **NO_REGIONS)
    assert frozen.resolved.video_pooling == "cls"
    assert RegionLearnerVideoConfig.from_pretrained(tmp_path, codebook_mode="original").resolved.codebook_decay == 0.1


def test_null_resets_a_field_to_its_default(tmp_path):
    config_of({"video_config": {"num_regions": 2, "codebook_decay": 0.5, "region_options": {"pooling": "max"}}}
              ).save_pretrained(tmp_path)  # fmt: skip
    back = {"num_regions": None, "codebook_decay": None, "region_options": {"pooling": None}, "video_pooling": None}
    video = AutoConfig.from_pretrained(tmp_path, projection_dim=None, video_config=back).video_config
    assert (video.num_regions, video.codebook_decay, video.region_options) == (8, None, {})
    assert video.hidden_size == TINY_VIDEO["hidden_size"]
    unchanged = AutoConfig.from_pretrained(tmp_path, video_config=None, text_config=None)
    assert chosen(unchanged) == chosen(AutoConfig.from_pretrained(tmp_path))
    with pytest.raises(StrictDataclassFieldValidationError, match="expected int"):
        AutoConfig.from_pretrained(tmp_path, video_config={"num_regions": "4"})


def test_mappings_merge_key_by_key():
    below = {"a": 1, "b": {"c": 2, "d": 3}, "e": 4}
    above = {"a": 5, "b": {"c": None, "f": None, "g": {"h": None}}, "e": None, "i": None}
    assert merge_fields(below, above) == {"a": 5, "b": {"d": 3, "g": {}}}
    kept = {"a": 5, "b": {"d": 3, "f": None, "g": {"h": None}}, "i": None}
    assert merge_fields(below, above, keep_null=True) == kept
    assert below == {"a": 1, "b": {"c": 2, "d": 3}, "e": 4}
    other = {"model_type": "bert", "num_hidden_layers": 2}
    assert merge_fields({"text_config": dict(TEXT)}, {"text_config": other}) == {"text_config": other}
    assert merge_fields(TEXT, {"model_type": "distilbert", "n_layers": 2}) == TEXT | {"n_layers": 2}


def test_the_text_configuration_of_a_checkpoint_merges_too(checkpoint):
    config = AutoConfig.from_pretrained(checkpoint, text_config={"n_layers": 3, "hidden_size": 64})
    assert (config.text_config.n_layers, config.text_config.dim, config.text_config.vocab_size) == (3, 64, 99)
    other = AutoConfig.from_pretrained(checkpoint, text_config={"model_type": "bert", "num_hidden_layers": 1})
    assert type(other.text_config) is BertConfig
    assert other.text_config.vocab_size == BertConfig().vocab_size
    assert other.resolved.text_pooling == "pooler"
    of_objects = {"video_config": RegionLearnerVideoConfig(hidden_size=96), "text_config": tiny_text_config()}
    merged = RegionLearnerConfig.from_dict(of_objects, video_config={"num_regions": 4}, text_config={"n_layers": 3})
    assert (merged.video_config.hidden_size, merged.video_config.num_regions) == (96, 4)
    assert (merged.text_config.dim, merged.text_config.n_layers) == (32, 3)
    replaced = AutoConfig.from_pretrained(checkpoint, text_config=tiny_text_config(n_layers=4))
    assert replaced.text_config.n_layers == 4
    new_tower = AutoConfig.from_pretrained(checkpoint, video_config=RegionLearnerVideoConfig(hidden_size=96))
    assert (new_tower.video_config.hidden_size, new_tower.video_config.num_hidden_layers) == (96, 12)


def test_fields_that_transformers_adds_are_accepted(checkpoint, tmp_path):
    saved = json.loads((checkpoint / "config.json").read_text())
    added = {
        "architectures": ["RegionLearnerModel"], "dtype": "bfloat16", "transformers_version": "5.17.0",
        "id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}, "problem_type": None, "return_dict": True,
        "output_hidden_states": True, "output_attentions": False, "tie_word_embeddings": False, "use_cache": False,
        "pad_token_id": 0, "bos_token_id": None, "quantization_config": None, "_name_or_path": "there",
        "_attn_implementation_autoset": True, "_commit_hash": "0", "chunk_size_feed_forward": 0,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(saved | added))
    config = AutoConfig.from_pretrained(tmp_path, attn_implementation="eager", num_labels=5)
    assert config.id2label[1] == "LABEL_1"
    assert config.num_labels == 5
    assert config.output_hidden_states
    assert config.video_config._attn_implementation == "eager"
    overridden = AutoConfig.from_pretrained(tmp_path, video_config={"num_regions": 2}, attn_implementation="eager")
    assert (overridden.dtype, overridden.output_hidden_states) == (torch.bfloat16, True)
    assert overridden.video_config._attn_implementation == "eager"
    # Options of models and processors, whose `from_pretrained` also loads the configuration.
    options = {
        "device_map": "cpu", "low_cpu_mem_usage": True, "use_safetensors": True, "weights_only": True,
        "dtype": torch.float32, "local_files_only": True, "trust_remote_code": False, "key_mapping": None,
        "output_loading_info": True,
    }  # fmt: skip
    model, _ = AutoModel.from_pretrained(checkpoint, **options)
    assert type(model) is RegionLearnerModel
    processor = AutoProcessor.from_pretrained(checkpoint, num_frames=2, use_fast=True, padding_side="right")
    assert processor.video_processor.num_frames == 2
    assert AutoConfig.from_pretrained(checkpoint, use_fast=True).projection_dim == 16


# Invalid values


def test_unknown_fields_are_refused_with_a_suggestion(checkpoint):
    near = "'num_regionz' is not a field of RegionLearnerVideoConfig; did you mean 'num_regions'?"
    of_video = "'num_regions' is not a field of RegionLearnerConfig, but of its video_config: pass video_config={'num_"
    option = "'pooling' is not a field of RegionLearnerVideoConfig, but a key of its region_options: pass region_opt"
    top = "'temperature_' is not a field of RegionLearnerConfig; did you mean 'temperature'?"
    text = "text_config: 'n_layer' is not a field of DistilBertConfig; did you mean 'n_layers'?"
    for call, message in [
        (lambda: RegionLearnerVideoConfig(num_regionz=4), near),
        (lambda: RegionLearnerVideoConfig.from_pretrained(checkpoint, num_regionz=4), near),
        (lambda: RegionLearnerVideoModel.from_pretrained(checkpoint, num_regionz=4), near),
        (lambda: RegionLearnerConfig(video_config={"num_regionz": 4}), near),
        (lambda: RegionLearnerConfig.from_pretrained(checkpoint, video_config={"num_regionz": 4}), near),
        (lambda: AutoModel.from_pretrained(checkpoint, video_config={"num_regionz": 4}), near),
        (lambda: AutoModel.from_pretrained(checkpoint, num_regions=4), of_video),
        (lambda: RegionLearnerModel.from_pretrained(checkpoint, num_regions=4), of_video),
        (lambda: AutoModel.from_pretrained(checkpoint, num_regionz=4), "did you mean 'num_regions', in video_config?"),
        (lambda: RegionLearnerVideoConfig(pooling="max"), option),
        (lambda: RegionLearnerConfig(video_config={"temperature": 1.0}), "but of RegionLearnerConfig: pass it there"),
        (lambda: RegionLearnerConfig(temperature_=1.0), top),
        (lambda: RegionLearnerConfig.from_pretrained(checkpoint, temperature_=1.0), top),
        (lambda: AutoConfig.from_pretrained(checkpoint, temperature_=1.0), top),
        (lambda: AutoModel.from_pretrained(checkpoint, temperature_=1.0), top),
        (lambda: RegionLearnerConfig.from_pretrained(checkpoint, unknown=1), "'unknown' is not a field of Region"),
        (lambda: RegionLearnerConfig(unknown=1), "'unknown' is not a field of RegionLearnerConfig."),
        (
            lambda: RegionLearnerVideoConfig(region_options={"poolin": "max"}),
            "'poolin' is not a key of region_opt",
        ),
        (lambda: RegionLearnerConfig(text_config=TEXT | {"n_layer": 1}), text),
        (lambda: AutoModel.from_pretrained(checkpoint, text_config={"n_layer": 1}), text),
        (lambda: RegionLearnerConfig(text_config={"model_type": "distilber"}), "did you mean 'distilbert'?"),
        (
            lambda: nest_overrides({"num_regionz": 4}),
            "the configuration; did you mean 'num_regions'",
        ),
        (
            lambda: RegionLearnerConfig(video_config=BertConfig()),
            "video_config is the configuration of a 'bert'",
        ),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


def test_unknown_saved_fields_are_ignored_with_a_warning(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(configuration_region_learner.logger, "warning", lambda text, *args: said.append(text % args))
    config = config_of({})
    config.batch_norm_eps = config.video_config.batch_norm_eps = 1.0
    config.save_pretrained(tmp_path)
    assert chosen(AutoConfig.from_pretrained(tmp_path)) == chosen(config_of({}))
    assert said == [
        f"Ignoring unknown fields of {name} in config.json: batch_norm_eps."
        for name in ("RegionLearnerConfig", "RegionLearnerVideoConfig")
    ]


def test_fields_of_any_text_encoder_are_known():
    """Known fields include those that transformers renames, or reads from older checkpoints."""
    for fields in (
        {"model_type": "distilbert", "hidden_size": 16, "num_attention_heads": 2},
        {"model_type": "bert", "pad_token_id": 1, "use_cache": False},
        {"model_type": "gpt2", "hidden_size": 16, "n_head": 2, "n_layer": 1},
        {"model_type": "modernbert", "global_rope_theta": 10.0},
        {"model_type": "llama", "rope_theta": 10.0, "num_hidden_layers": 1},
        {"model_type": "clip_text_model", "projection_dim": 4},
    ):
        assert RegionLearnerConfig(text_config=fields).text_config.model_type == fields["model_type"]


NAN, INF = math.nan, math.inf
SIZES = ["hidden_size", "num_attention_heads", "intermediate_size", "image_size", "patch_size", "num_channels"]
COUNTS = ["num_hidden_layers", "codebook_size", "codebook_revival_after", "num_regions", "interaction_layers"]
WRONG = [
    *({"video_config": {name: value}} for name in [*SIZES, "num_frames", "interaction_heads"] for value in (0, -1)),
    *({"video_config": {name: -1}} for name in COUNTS),
    *({"video_config": {"layer_norm_eps": value}} for value in (-1.0, NAN, INF)),
    *({"video_config": {"initializer_range": value}} for value in (-1.0, NAN, INF)),
    *({"video_config": {"codebook_decay": value}} for value in (-0.1, 1.0, NAN, INF)),
    *({"video_config": {"region_options": {"pooling_sharpness": value}}} for value in (-1, NAN, INF, "3", True)),
    *({"video_config": {"region_options": {"mask_loss_weight": value}}} for value in (-1, NAN, INF, "1")),
    *({"video_config": {"region_options": {"detach_masks": value}}} for value in (0, "yes")),
    {"video_config": {"region_options": {"pooling": "median"}}},
    {"projection_dim": 0},
    *({"temperature": value} for value in (0, 0.0, -1.0, NAN, INF, 10**400)),
    *({"margin": value} for value in (0.0, -1.0, NAN, INF)),
    *({"sigmoid_bias": value} for value in (NAN, INF)),
    *({"initializer_range": value} for value in (-1.0, NAN)),
    {"loss": "los"},
    *({"text_config": {name: -1}} for name in ("n_layers", "n_heads", "dim", "vocab_size")),
    {"text_config": {"initializer_range": NAN}},
]


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_values_out_of_range_are_refused(change, checkpoint):
    """Such values are refused as overrides, and when a model is built from a changed configuration."""
    field, value = next(reversed(change.items()))
    while isinstance(value, dict):
        field, value = next(iter(value.items()))
    with pytest.raises(ValueError, match=f"{field}.*{re.escape(str(value))}"):
        AutoModel.from_pretrained(checkpoint, **change)
    config = config_of({})
    for name, values in change.items():
        if isinstance(values, dict):
            for key, one in values.items():
                setattr(getattr(config, name), key, one)
        else:
            setattr(config, name, values)
    with pytest.raises(ValueError, match=field):
        RegionLearnerModel(config)


def test_a_loss_without_a_temperature_does_not_learn_one(checkpoint):
    with pytest.raises(ValueError, match="loss='max_margin' has no temperature to learn"):
        AutoModel.from_pretrained(checkpoint, loss="max_margin", learn_temperature=True)


@pytest.mark.parametrize("pooling", ["cls", "cls_patch_max"])
def test_regions_that_nothing_uses_are_refused(pooling):
    video = {"video_pooling": pooling, "num_regions": 6}
    with pytest.raises(
        ValueError, match=rf"video_pooling='{pooling}' leaves the 6 regions out .*: set token_dim, .* or"
    ):
        RegionLearnerConfig(video_config=video)
    assert RegionLearnerConfig(video_config=video, token_dim=8).token_dim == 8
    assert RegionLearnerConfig(video_config=video | NO_REGIONS).video_config.num_regions == 0


def test_sizes_that_do_not_fit_together_are_refused():
    for change, message in {
        ("image_size", 30): "image_size=30 is not a multiple of patch_size=8",
        ("num_attention_heads", 5): "hidden_size=32 is not a multiple of num_attention_heads=5",
        ("interaction_heads", 5): "hidden_size=32 is not a multiple of interaction_heads=5",
        ("hidden_act", "geluu"): "hidden_act='geluu' is not known; choose one of",
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            config_of({"video_config": dict([change])})
        config = config_of({})
        setattr(config.video_config, *change)
        with pytest.raises(ValueError, match=re.escape(message)):
            RegionLearnerModel(config)
    RegionLearnerModel(config_of({"video_config": {"interaction_heads": 5, "interaction_layers": 0}}))


# Recipes and the command line


def test_the_command_line_merges_into_the_mappings_of_a_recipe(caplog):
    caplog.set_level(logging.INFO, "region_learner")
    given = {"num_regions": 4, "region_layer": None, "region_options": {"pooling": "max"}}
    argv = ["small_from_scratch", f"--video_config={json.dumps(given)}", "--seed=3", "--learning_rate=1e-3"]
    of_recipe, _, _ = parse_arguments(["small_from_scratch"])
    assert not caplog.records
    model, _, _ = parse_arguments([*argv, '--config={"loss": "sigmoid"}'])
    sizes = {name: value for name, value in of_recipe.video_config.items() if name != "region_layer"}
    assert model.video_config == sizes | {"num_regions": 4, "region_options": {"pooling": "max"}}
    assert model.config == of_recipe.config | {"loss": "sigmoid"}
    assert model.text_config == of_recipe.text_config
    assert [record.getMessage() for record in caplog.records] == [
        'Overriding the recipe: config.loss default -> "sigmoid"',
        "Overriding the recipe: video_config.num_regions 12 -> 4",
        'Overriding the recipe: video_config.region_options default -> {"pooling": "max"}',
        "Overriding the recipe: video_config.region_layer 1 -> default",
        "Overriding the recipe: seed 0 -> 3",
    ]
    assert parse_arguments([*argv, "--video_config=none"])[0].video_config is None


def test_null_without_a_recipe_means_the_default(checkpoint):
    argv = [f"--model={checkpoint}", '--video_config={"codebook_revival_after": null, "region_options": null}']
    model, _ = build_model(parse_arguments([*argv, "--use_cpu=true"])[0])
    assert model.config.video_config.codebook_revival_after == 100
    lora = parse_arguments([f"--model={checkpoint}", '--lora={"r": 4, "target_modules": null}', "--use_cpu=true"])[0]
    assert lora.lora == {"r": 4}


def test_stages_merge_in_the_same_way(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "video_tower: a\ntext_tower: b\nuse_cpu: true\nvideo_config: {num_frames: 1, codebook_size: 8}\n"
        "stages: [{video_config: {num_frames: 2}}, {video_config: {num_frames: 4}}, {}]\n"
    )

    def video_configs(*argv):
        return [model.video_config for model, _, _ in parse_stages([str(recipe), *argv])]

    assert video_configs() == [{"num_frames": 2, "codebook_size": 8}, {"num_frames": 4}, None]
    more = {"num_regions": 4}
    assert video_configs('--video_config={"num_regions": 4}') == [
        {"num_frames": 2, "codebook_size": 8} | more, {"num_frames": 4} | more, more,
    ]  # fmt: skip
    assert video_configs('--video_config={"codebook_size": null}')[0] == {"num_frames": 2}


WRONG = [
    (['--config={"los": "sigmoid"}'], "'los' is not a field of the configuration; did you mean 'loss'?"),
    (['--video_config={"num_regionz": 4}'], "'num_regionz' is not a field of RegionLearnerVideoConfig; did you"),
    (['--config={"temperature": 0}'], "temperature=0 must be greater than 0."),
    (['--config={"loss": "hinge"}'], "loss='hinge' is not known; choose one of"),
    (['--config={"loss": "max_margin", "margin": -1}'], "margin=-1 must be greater than 0."),
    (['--video_config={"image_size": 30}'], "image_size=30 is not a multiple of patch_size"),
    (['--video_config={"num_hidden_layers": -1}'], "num_hidden_layers=-1 must be at least 0."),
    (['--lora={"rank": 4, "lora_alfa": 8}'], "lora: 'rank' is not a field of peft.LoraConfig"),
    (['--lora={"lora_alfa": 8}'], "'lora_alfa' is not a field of peft.LoraConfig; did you mean 'lora_alpha'?"),
]
# Whether an image size fits pretrained towers depends on their weights, which are not loaded this early.
CASES = [
    (source, *case)
    for case in WRONG
    for source in ("checkpoint", "recipe", "towers")
    if not (source == "towers" and "image_size" in case[0][0])
]


@pytest.mark.parametrize(("source", "given", "message"), CASES)
def test_a_wrong_configuration_is_found_before_corpora_are_loaded(
    source, given, message, checkpoint, monkeypatch, capsys
):
    def too_late(*_):
        raise AssertionError("the corpora are loaded")

    monkeypatch.setattr(run, "load_data", too_late)
    argv = {
        "checkpoint": [f"--model={checkpoint}"],
        "recipe": ["small_from_scratch"],
        "towers": ["--video_tower=vit_tiny_patch16_224", "--text_tower=distilbert"],
    }[source]
    with pytest.raises(SystemExit) as exit_info:
        main(["train", *argv, *given, "--use_cpu=true", "--report_to=none"])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("region-learner: error: ")
    assert message in error


def test_arguments_from_python_are_checked_as_well(checkpoint):
    with pytest.raises(ValueError, match="did you mean 'num_regions'"):
        build_model(ModelArguments(model=str(checkpoint), video_config={"num_regionz": 4}))
    with pytest.raises(ValueError, match="text_config: 'n_layer' is not a field of DistilBertConfig"):
        build_model(ModelArguments(text_config=TEXT | {"n_layer": 1}, tokenizer=str(checkpoint)))


# An option, fields with which it is ignored, fields with which it has an effect, and the error message.
SHARP = {"video_config": {"region_options": {"pooling_sharpness": 8.0}}}
IGNORED = [
    ({"token_temperature": 0.2}, {}, {"token_dim": 8}, "token_temperature=0.2 has no effect without tokens: set"),
    ({"token_loss_weight": 2}, {}, {"token_dim": 8}, "token_loss_weight=2 has no effect without tokens: set"),
    (
        {"margin": 0.3}, {"loss": "infonce"}, {"loss": "max_margin"},
        "margin=0.3 has no effect with loss='infonce': set loss='max_margin', or leave margin out.",
    ),
    ({"margin": 0.3}, {"loss": "sigmoid"}, {"loss": "max_margin"}, "margin=0.3 has no effect with loss='sigmoid'"),
    (
        {"sigmoid_bias": -5.0}, {"loss": "max_margin"}, {"loss": "sigmoid"},
        "sigmoid_bias=-5.0 has no effect with loss='max_margin': set loss='sigmoid'",
    ),
    ({"sigmoid_bias": 1}, {"loss": "infonce"}, {"loss": "sigmoid"}, "sigmoid_bias=1 has no effect with loss='info"),
    (
        {"video_config": {"codebook_revival_after": 7}},
        {"video_config": {"codebook_mode": "original"}}, {"video_config": {"codebook_mode": "ema"}},
        "codebook_revival_after=7 has no effect with codebook_mode='original': set codebook_mode='ema'",
    ),
    (
        SHARP, {"video_config": {"region_options": {"pooling": "max"}}},
        {"video_config": {"region_options": {"pooling": "softmax"}}},
        "pooling_sharpness=8.0 has no effect with the region option pooling='max': set pooling='softmax'",
    ),
    (
        SHARP, {"video_config": {"region_form": "paper"}}, {"video_config": {"region_form": "decoupled"}},
        "pooling_sharpness=8.0 has no effect with the region option pooling='mean'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("option", "off", "on", "message"), IGNORED)
def test_options_that_would_be_ignored_are_refused(option, off, on, message, tmp_path):
    """Such options are refused if a user sets them, but not if they were saved with a checkpoint."""
    base = {"token_dim": 0, "loss": "infonce", "video_config": TINY_VIDEO}
    off, on = merge_fields(base, off), merge_fields(base, on)
    for name, change in (("off", off), ("on", merge_fields(on, option))):
        config_of(change).save_pretrained(tmp_path / name)
    ignored = merge_fields(off, option)
    for refused in (
        lambda: config_of(ignored),
        lambda: AutoConfig.from_pretrained(tmp_path / "off", **option),
        lambda: AutoConfig.from_pretrained(tmp_path / "on", **ignored),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            refused()
    changed = AutoConfig.from_pretrained(tmp_path / "on", **off)
    changed.save_pretrained(tmp_path / "changed")
    again = AutoConfig.from_pretrained(tmp_path / "changed")
    assert chosen(again) == chosen(changed) != chosen(AutoConfig.from_pretrained(tmp_path / "off"))
    back = AutoConfig.from_pretrained(tmp_path / "changed", **on)
    assert chosen(back) == chosen(AutoConfig.from_pretrained(tmp_path / "on"))
    RegionLearnerModel(again)


def test_defaults_and_options_of_disabled_parts_are_accepted():
    defaults = RegionLearnerConfig()
    for loss in ("infonce", "sigmoid", "max_margin"):
        RegionLearnerConfig(loss=loss, **{name: getattr(defaults, name) for name in NEEDED})
    video = RegionLearnerVideoConfig(codebook_decay=0.5, interaction_heads=2, region_form="paper", **NO_REGIONS)
    assert video.resolved.video_pooling == "cls"


@pytest.mark.parametrize(
    ("config", "name"), [(RegionLearnerVideoConfig, "backbone_config"), (RegionLearnerConfig, "text_config")]
)
def test_a_dict_is_set_where_a_configuration_is_expected(config, name):
    changed = config()
    setattr(changed, name, {"model_type": "bert"})
    with pytest.raises(ValueError, match=rf"^{name} must be a configuration, not {{'model_type': 'bert'}}\.$"):
        changed.validate_architecture()


# Backbones whose configuration contains sizes


def test_what_is_given_is_not_replaced_by_a_field_of_the_backbone():
    backbone = CLIPVisionConfig(hidden_size=32, intermediate_size=4096, num_attention_heads=4, num_hidden_layers=1)
    given = {"hidden_act": "gelu", "intermediate_size": 3072, "layer_norm_eps": 1e-6}  # the defaults of this class
    plain = RegionLearnerVideoConfig(backbone_config=backbone)
    assert (plain.hidden_act, plain.intermediate_size, plain.layer_norm_eps) == ("quick_gelu", 4096, 1e-5)
    config = RegionLearnerVideoConfig(backbone_config=backbone, **given)
    changed = RegionLearnerVideoConfig(backbone_config=backbone)
    changed.hidden_act = "gelu"
    for one, expected in ((config, given), (changed, {"hidden_act": "gelu", "intermediate_size": 4096})):
        for same in (one, copy.deepcopy(one), RegionLearnerVideoConfig.from_dict(one.to_dict())):
            assert {name: getattr(same, name) for name in expected} == expected
        nested = RegionLearnerConfig(video_config=one.to_dict(), text_config=TEXT)
        again = RegionLearnerConfig.from_dict(json.loads(nested.to_json_string())).video_config
        assert {name: getattr(again, name) for name in expected} == expected
    by_override = RegionLearnerVideoConfig.from_dict(plain.to_dict(), hidden_act="gelu")
    assert by_override.hidden_act == "gelu"
    assert "_chosen" not in config.to_dict()
    assert not hasattr(copy.deepcopy(config), "_chosen")

    class Own(RegionLearnerVideoConfig):
        def __init__(self, **options):
            super().__init__(hidden_act="relu", **options)

    assert Own(backbone_config=backbone).hidden_act == "relu"
    with pytest.raises(ValueError, match="hidden_size=768 differs from that of the backbone, 32"):
        RegionLearnerVideoConfig(backbone_config=backbone, hidden_size=768)


@pytest.mark.parametrize("field", ["num_hidden_layers", "num_attention_heads", "patch_size"])
def test_fields_that_a_backbone_ignores(field):
    backbone = {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224"}
    options = {"backbone_config": backbone, "hidden_size": 192}
    with pytest.raises(ValueError, match=f"{field}=6 has no effect with this backbone, whose configuration"):
        RegionLearnerVideoConfig(**options, **{field: 6})
    config = RegionLearnerVideoConfig(**options)
    assert RegionLearnerVideoConfig.from_dict(config.to_dict()).hidden_size == 192

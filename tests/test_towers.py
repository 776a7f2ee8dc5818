"""Tests of models from pre-trained towers: exact inflation, all weights in place, and errors that say what to do."""

import json
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextImageProcessor,
    Dinov2Config,
    Dinov2Model,
    DistilBertForMaskedLM,
    DistilBertModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from region_learner import RegionLearnerModel
from region_learner.conversion import from_pretrained_towers, processor_from_towers
from region_learner.conversion.image_processors import video_processor_of
from region_learner.training.tokenizer import train_tokenizer

from . import naive
from .conftest import NO_REGIONS, clips, randomize, texts, tiny_text_config

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IMAGE = {"image_size": 32, "patch_size": 8}
TIMM_SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
TEXT = SIZES | {"vocab_size": 99, "max_position_embeddings": 32}
TIMM_NORMALIZATION = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
VIDEO_ONLY = ("temporal_embeddings", "time_attention", "time_norm", "region_module")
UNUSED = ("pooler", "classifier", "text_model.", "visual_projection", "text_projection", "logit_scale")

VIDEO = ["timm", "timm_clip", "vit", "vit_classifier", "clip", "clip_vision"]


def save_timm(folder: Path, architecture: str, **options) -> torch.nn.Module:
    overlay = {"pretrained_cfg_overlay": TIMM_NORMALIZATION}
    model = randomize(timm.create_model(architecture, num_classes=0, **options, **overlay)).eval()
    timm.models.save_for_hf(model, folder, model_args=options, safe_serialization=True)
    return model


def save(folder: Path, model: torch.nn.Module) -> torch.nn.Module:
    randomize(model).eval().save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Returns the directories of tiny image and text models by name (`.path`) and the models (`.model`)."""
    root = tmp_path_factory.mktemp("towers")
    clip_text = CLIPTextConfig(**TEXT, bos_token_id=97, eos_token_id=98)
    clip = CLIPConfig(vision_config=SIZES | IMAGE, text_config=clip_text.to_dict())
    models = {
        "timm": save_timm(root / "timm", "vit_tiny_patch16_224", **TIMM_SIZES),
        "timm_clip": save_timm(root / "timm_clip", "vit_base_patch32_clip_quickgelu_224", **TIMM_SIZES),
        "vit": save(root / "vit", ViTModel(ViTConfig(**SIZES, **IMAGE))),
        "vit_classifier": save(root / "vit_classifier", ViTForImageClassification(ViTConfig(**SIZES, **IMAGE))),
        "clip": save(root / "clip", CLIPModel(clip)),
        "clip_vision": save(root / "clip_vision", CLIPVisionModel(CLIPVisionConfig(**SIZES, **IMAGE))),
        "distilbert": save(root / "distilbert", DistilBertModel(tiny_text_config())),
        "distilbert_mlm": save(root / "distilbert_mlm", DistilBertForMaskedLM(tiny_text_config())),
        "bert": save(root / "bert", BertModel(BertConfig(**TEXT))),
        "bert_mlm": save(root / "bert_mlm", BertForMaskedLM(BertConfig(**TEXT))),
        "clip_text": save(root / "clip_text", CLIPTextModel(clip_text)),
    }
    train_tokenizer(["a red square moves left", "two blue disks"], 99, 16).save_pretrained(root / "distilbert")
    return SimpleNamespace(path={name: root / name for name in models}, model=models)


def image_feature(name: str, model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Returns the CLS feature of `images`, computed by the original image model."""
    if name.startswith("timm"):
        return model.forward_features(images)[:, 0]
    if name.startswith("vit"):
        return getattr(model, "vit", model)(images).last_hidden_state[:, 0]
    return getattr(model, "vision_model", model)(images).pooler_output


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def values(tensors) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).sort().values


def source_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a checkpoint's image model."""
    state = load_file(folder / "model.safetensors")
    return {key: tensor for key, tensor in state.items() if not key.startswith(UNUSED)}


# Inflation


@pytest.mark.parametrize("name", VIDEO)
@torch.no_grad()
def test_one_frame_gives_the_feature_of_the_image(sources, name):
    model = from_pretrained_towers(sources.path[name], sources.path["distilbert"], **NO_REGIONS)
    images = clips(batch=3, frames=1)
    expected = image_feature(name, sources.model[name], images[:, 0])
    assert expected.std() > 0.1
    close(model.video_model(images).pooler_output, expected)


@pytest.mark.parametrize("name", ["timm", "vit", "clip"])
@torch.no_grad()
def test_several_frames_match_the_naive_implementation(sources, name, monkeypatch):
    tower = from_pretrained_towers(sources.path[name], sources.path["distilbert"], **NO_REGIONS).video_model
    clip = clips(batch=1, frames=3)
    output = tower(clip).last_hidden_state[0]
    if name == "clip":  # naive.py implements the paper's ViT, without CLIP's activation, LayerNorm and missing bias
        assert tower.embeddings.patch_embedding.bias is None
        tower.embeddings.patch_embedding.bias = torch.nn.Parameter(torch.zeros(32))
        tokens = naive.tokens
        monkeypatch.setattr(naive, "tokens", lambda model, clip: model.pre_layernorm(tokens(model, clip)))
        monkeypatch.setattr(naive.F, "gelu", lambda x: x * torch.sigmoid(1.702 * x))
    close(output, tower.layernorm(naive.encoder(tower, clip[0])))


@pytest.mark.parametrize("name", VIDEO)
@torch.no_grad()
def test_a_repeated_image_differs_slightly(sources, name):
    """The CLS query attends to its own key once, but to each patch in every frame."""
    tower = from_pretrained_towers(sources.path[name], sources.path["distilbert"], **NO_REGIONS).video_model
    image = clips(frames=1)
    one, four = tower(image).pooler_output, tower(image.expand(-1, 4, -1, -1, -1)).pooler_output
    difference = (one - four).norm() / one.norm()
    assert 1e-4 < difference < 0.2


@torch.no_grad()
def test_frames_of_another_size(sources):
    tower = from_pretrained_towers(sources.path["vit"], sources.path["distilbert"], **NO_REGIONS).video_model
    images = clips(frames=1, size=48)
    expected = sources.model["vit"](images[:, 0], interpolate_pos_encoding=True).last_hidden_state[:, 0]
    close(tower(images, interpolate_pos_encoding=True).pooler_output, expected)


# Weights


@pytest.mark.parametrize("name", VIDEO)
def test_all_image_weights_are_in_place_and_only_video_parts_are_new(sources, name):
    model = from_pretrained_towers(sources.path[name], sources.path["distilbert"], codebook_size=8)
    state = model.video_model.state_dict()
    taken = {key: tensor for key, tensor in state.items() if not any(part in key for part in VIDEO_ONLY)}
    assert torch.equal(values(taken.values()), values(source_weights(sources.path[name]).values()))
    assert any("region_module.quantizer" in key for key in state)
    assert any("region_module.interaction" in key for key in state)
    assert not state["embeddings.temporal_embeddings"].any()
    for layer in model.video_model.layers:
        assert not layer.time_attention.out_proj.weight.any()
        assert layer.time_attention.q_proj.weight.std() > 0.01
        assert layer.time_norm.weight.eq(1).all()
    assert not model.training


@pytest.mark.parametrize("name", ["timm", "vit", "clip"])
def test_every_tensor_of_the_image_model_matters(sources, name, tmp_path):
    def feature(folder):
        tower = from_pretrained_towers(folder, sources.path["distilbert"], **NO_REGIONS).video_model
        with torch.no_grad():
            return tower(image).pooler_output

    image = clips(batch=1, frames=1)
    folder = shutil.copytree(sources.path[name], tmp_path / name)
    state = load_file(folder / "model.safetensors")
    # A bias of the keys has no effect: it adds the same value to all logits of a query.
    keys = [
        key for key in source_weights(folder) if ".1." not in key and not key.endswith(("k_proj.bias", "key.bias"))
    ]
    before = feature(folder)
    assert len(keys) > 12
    for key in keys:
        noise = torch.randn(state[key].shape, generator=torch.Generator().manual_seed(0))
        save_file(state | {key: state[key] + noise}, folder / "model.safetensors", metadata={"format": "pt"})
        assert not torch.allclose(feature(folder), before, atol=1e-4), key


@pytest.mark.parametrize("name", ["vit", "clip"])
@torch.no_grad()
def test_regions_match_the_naive_implementation(sources, name, monkeypatch):
    """From the encoder's tokens on, all outputs match the naive region module; other tests cover the encoder."""
    if name == "clip":  # the MLPs of the region module use CLIP's activation
        monkeypatch.setattr(naive.F, "gelu", lambda x: x * torch.sigmoid(1.702 * x))
    options = {"codebook_size": 8, "num_regions": 4}
    tower = from_pretrained_towers(sources.path[name], sources.path["distilbert"], **options).video_model
    clip = clips(batch=1, frames=2)
    output = tower(clip, output_hidden_states=True)
    encoded = output.hidden_states[-1][0]
    regions, masks, ids, _ = naive.region_module(tower.region_module, encoded[1:].unflatten(0, (2, 16)), 4, 4)
    close(output.region_states[0], regions)
    close(output.region_masks[0].flatten(2), masks)
    assert torch.equal(output.cluster_ids[0].flatten(1), ids)
    z = tower.layernorm(torch.cat([encoded[:1], regions]))
    close(output.pooler_output[0], z[0] + z[1:].max(0).values)


def padded_texts() -> dict[str, torch.Tensor]:
    """Returns two texts that end with the last token of the vocabulary, as in CLIP; the first is shorter."""
    inputs = texts()
    ids, mask = inputs["input_ids"].clamp(3, 90), inputs["attention_mask"]
    ids[0, 4], ids[1, 6], mask[0, 5:] = 98, 98, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", ["distilbert", "distilbert_mlm", "bert", "clip_text", "clip"])
@torch.no_grad()
def test_text_features_match_the_text_encoder(sources, name):
    model = from_pretrained_towers(sources.path["vit"], sources.path[name])
    own = sources.model[name]
    own = getattr(own, "text_model", getattr(own, "distilbert", own))
    inputs = padded_texts()
    expected = own(**inputs)
    pooled = expected.last_hidden_state[:, 0] if name.startswith("distilbert") else expected.pooler_output
    features = model.get_text_features(**inputs)
    real = inputs["attention_mask"].bool()
    close(features.last_hidden_state[real], expected.last_hidden_state[real])
    close(features.pooler_output, model.text_projection(pooled.relu()))
    theirs = {key.removeprefix("text_model."): tensor for key, tensor in own.state_dict().items()}
    ours = {key.removeprefix("text_model."): tensor for key, tensor in model.text_model.state_dict().items()}
    assert ours.keys() == {key for key in theirs if not key.startswith("pooler.") or name == "bert"}
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


@torch.no_grad()
def test_end_of_text_of_openai_clip(sources, tmp_path):
    """OpenAI's checkpoints give id 2 as the end of text, but mean the last token of the vocabulary."""
    config = CLIPTextConfig(**TEXT, bos_token_id=97, eos_token_id=2)
    own = save(tmp_path, CLIPTextModel(config))
    model = from_pretrained_towers(sources.path["vit"], tmp_path)
    inputs = padded_texts()
    expected = model.text_projection(own(**inputs).pooler_output.relu())
    close(model.get_text_features(**inputs).pooler_output, expected)


def test_both_towers_of_one_clip(sources, tmp_path):
    model = from_pretrained_towers(sources.path["clip"], sources.path["clip"], codebook_size=8, num_regions=4)
    inputs = padded_texts() | {"pixel_values_videos": clips(), "return_loss": True}
    with torch.no_grad():
        output = model(**inputs)
        model.save_pretrained(tmp_path)
        again = RegionLearnerModel.from_pretrained(tmp_path)(**inputs)
    assert output.loss.isfinite()
    assert torch.equal(output.logits_per_video, again.logits_per_video)


# Both sides of one CLIP


@pytest.fixture(scope="module", params=["eos_token", "openai", "gelu", "unequal_widths"])
def clip(request, tmp_path_factory) -> SimpleNamespace:
    """Returns a tiny CLIP: with the correct end-of-text id, with OpenAI's id 2, with GELU, or with unequal widths."""
    text = TEXT | {"bos_token_id": 97, "eos_token_id": 2 if request.param == "openai" else 98, "pad_token_id": 1}
    vision, activation = SIZES | IMAGE, "gelu" if request.param == "gelu" else "quick_gelu"
    if request.param == "unequal_widths":
        text |= {"hidden_size": 16, "intermediate_size": 48}
    parts = {
        "text_config": text | {"hidden_act": activation},
        "vision_config": vision | {"hidden_act": activation},
    }
    path = tmp_path_factory.mktemp(request.param)
    model = save(path, CLIPModel(CLIPConfig(**parts, projection_dim=24)))
    model.logit_scale.data.fill_(3.21)
    model.save_pretrained(path)
    return SimpleNamespace(path=path, model=model, text=text)


def assert_same_as_clip(model: RegionLearnerModel, clip, inputs: dict[str, torch.Tensor]):
    """Asserts that the embeddings and logits of texts and of images (as clips of one frame) are those of CLIP."""
    images = clips(batch=3, frames=1)
    ours = model(**inputs, pixel_values_videos=images)
    theirs = clip.model(**inputs, pixel_values=images[:, 0])
    close(ours.text_embeds, theirs.text_embeds)
    close(ours.video_embeds, theirs.image_embeds)
    close(ours.logits_per_text, theirs.logits_per_text)
    close(ours.logits_per_video, theirs.logits_per_image)
    assert ours.logits_per_text.std() > 0.1
    close(model.get_text_features(**inputs).pooler_output, clip.model.get_text_features(**inputs).pooler_output)
    close(model.get_video_features(images).pooler_output, clip.model.get_image_features(images[:, 0]).pooler_output)


@torch.no_grad()
@pytest.mark.parametrize("added", [{}, {"phrase_window": 3, "tube_mlp": True}], ids=["alone", "phrases_and_tubes"])
def test_one_call_reproduces_a_clip(clip, tmp_path, added):
    model = from_pretrained_towers(clip.path, clip.path, **NO_REGIONS, **added)
    config = model.config
    assert (config.projection_dim, config.projection_bias, config.text_projection_relu) == (24, False, False)
    assert (config.learn_temperature, config.resolved.text_pooling) == (True, "eos")
    assert model.logit_scale.item() == pytest.approx(3.21)
    assert_same_as_clip(model, clip, padded_texts())
    if clip.text["eos_token_id"] == 2:  # the end of text is the highest token id of a text
        assert_same_as_clip(model, clip, texts(3))
    model.save_pretrained(tmp_path)
    assert_same_as_clip(RegionLearnerModel.from_pretrained(tmp_path), clip, padded_texts())
    # The two paths may spell the same directory differently.
    assert_same_as_clip(
        from_pretrained_towers(f"{clip.path}/../{clip.path.name}", clip.path, **NO_REGIONS), clip, padded_texts()
    )


@torch.no_grad()
def test_pooled_frames_of_a_clip(clip):
    """Video features are the mean of the frames' embeddings, as in the reference implementation with CLIP."""
    model = from_pretrained_towers(clip.path, clip.path, temporal_fusion="pool", **NO_REGIONS)
    videos = clips(frames=3)
    expected = torch.stack([clip.model.get_image_features(frame).pooler_output for frame in videos.unbind(1)]).mean(0)
    close(model.get_video_features(videos).pooler_output, expected)


@torch.no_grad()
def test_with_regions_the_projections_are_still_those_of_clip(clip):
    model = from_pretrained_towers(clip.path, clip.path, codebook_size=8, num_regions=4)
    assert torch.equal(model.video_projection.weight, clip.model.visual_projection.weight)
    assert torch.equal(model.text_projection.weight, clip.model.text_projection.weight)
    output = model(**padded_texts(), pixel_values_videos=clips())
    close(
        output.video_embeds,
        torch.nn.functional.normalize(clip.model.visual_projection(output.video_model_output.pooler_output), dim=-1),
    )
    close(output.logits_per_text, output.text_embeds @ output.video_embeds.T * torch.tensor(3.21).exp())


@torch.no_grad()
def test_settings_from_a_clip_can_be_overridden(clip):
    def load(**options):
        return from_pretrained_towers(clip.path, clip.path, **NO_REGIONS, **options)

    inputs = padded_texts() | {"pixel_values_videos": clips()}
    biased = load(projection_bias=True)
    assert not biased.video_projection.bias.any()
    close(biased(**inputs).logits_per_text, load()(**inputs).logits_per_text)
    fixed = load(learn_temperature=False)
    assert fixed.logit_scale is None
    close(fixed(**inputs).logits_per_text, load()(**inputs).logits_per_text)
    assert load(temperature=0.5).temperature.item() == pytest.approx(0.5)
    margin = load(loss="max_margin")
    assert not margin.config.learn_temperature
    assert load(text_projection_relu=True).config.text_projection_relu
    new = load(projection_dim=8)
    assert new.video_projection.weight.shape == (8, 32)
    assert new.video_projection.weight.std() < 0.1


@torch.no_grad()
def test_towers_of_two_different_clips_get_new_projections(clip, sources):
    model = from_pretrained_towers(sources.path["clip"], clip.path, **NO_REGIONS)
    assert (model.config.projection_dim, model.config.temperature) == (256, 0.05)
    assert model.config.projection_bias
    assert model.logit_scale is None


def test_a_clip_without_its_projections(clip, tmp_path):
    folder = shutil.copytree(clip.path, tmp_path / "clip")
    state = load_file(folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"incomplete: missing visual_projection\.weight"):
        from_pretrained_towers(folder, folder)


@torch.no_grad()
def test_weights_in_half_precision_become_float32(sources, tmp_path):
    for name in ("vit", "bert"):
        kind = type(sources.model[name])
        kind.from_pretrained(sources.path[name], dtype=torch.bfloat16).save_pretrained(tmp_path / name)
    model = from_pretrained_towers(tmp_path / "vit", tmp_path / "bert", codebook_size=8)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model(**texts(), pixel_values_videos=clips(), return_loss=True).loss.isfinite()
    rounded = source_weights(sources.path["vit"])["embeddings.position_embeddings"].bfloat16().float()
    assert torch.equal(model.video_model.embeddings.position_embeddings, rounded)


def test_gradients_reach_both_towers(sources):
    model = from_pretrained_towers(sources.path["timm"], sources.path["distilbert"], codebook_size=8).train()
    model(**texts(), pixel_values_videos=clips(), return_loss=True).loss.backward()
    for layer in model.video_model.layers:
        assert layer.space_attention.q_proj.weight.grad.any()
        assert layer.time_attention.out_proj.weight.grad.any()  # starts at zero, but learns
    assert model.text_model.embeddings.word_embeddings.weight.grad.any()


# Configuration


def test_overrides(sources):
    model = from_pretrained_towers(
        sources.path["timm"],
        sources.path["distilbert"],
        num_frames=8,
        num_regions=4,
        codebook_size=8,
        projection_dim=16,
        temperature=0.1,
    )
    video = model.config.video_config
    assert (video.num_frames, video.num_regions, video.codebook_size) == (8, 4, 8)
    assert (model.config.projection_dim, model.config.temperature) == (16, 0.1)
    with torch.no_grad():
        output = model(**texts(), pixel_values_videos=clips(frames=8))
    assert output.video_model_output.region_states.shape == (2, 8 * 4, 32)
    assert output.video_embeds.shape == (2, 16)
    close(output.logits_per_video, output.video_embeds @ output.text_embeds.T / 0.1)


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_linear_fusion_of_frames(sources, name):
    model = from_pretrained_towers(
        sources.path[name], sources.path["distilbert"], **NO_REGIONS, temporal_fusion="linear"
    )
    assert model.video_model.temporal_fusion is not None


@pytest.mark.parametrize(
    ("name", "activation", "eps", "clip_like"),
    [
        ("timm", "gelu", 1e-6, False),
        ("timm_clip", "quick_gelu", 1e-5, True),
        ("vit", "gelu", 1e-12, False),
        ("clip", "quick_gelu", 1e-5, True),
    ],
)
def test_sizes_are_those_of_the_weights(sources, name, activation, eps, clip_like):
    config = from_pretrained_towers(str(sources.path[name]), str(sources.path["distilbert"])).config.video_config
    expected = SIZES | IMAGE | {"intermediate_size": 128 if name.startswith("timm") else 64}
    assert {key: getattr(config, key) for key in expected} == expected
    assert (config.hidden_act, config.layer_norm_eps) == (activation, eps)
    assert config.pre_layernorm == clip_like


def test_timm_directories_keep_their_sizes(sources):
    saved = json.loads((sources.path["timm"] / "config.json").read_text())
    assert saved["architecture"] == "vit_tiny_patch16_224"
    assert {key: saved["model_args"][key] for key in ("patch_size", "embed_dim", "depth", "num_heads")} == {
        key: TIMM_SIZES[key] for key in ("patch_size", "embed_dim", "depth", "num_heads")
    }


# Processors


def test_processor_of_timm(sources, caplog):
    processor = processor_from_towers(sources.path["timm"], sources.path["distilbert"], num_frames=2)
    video = processor.video_processor
    assert tuple(video.image_mean) == TIMM_NORMALIZATION["mean"]
    assert tuple(video.image_std) == TIMM_NORMALIZATION["std"]
    assert not caplog.records
    inputs = processor(text=["a red square"], videos=[torch.zeros(5, 3, 40, 50, dtype=torch.uint8)])
    assert inputs["pixel_values_videos"].shape == (1, 2, 3, 32, 32)
    black = -torch.tensor(TIMM_NORMALIZATION["mean"]) / torch.tensor(TIMM_NORMALIZATION["std"])
    close(inputs["pixel_values_videos"], black[:, None, None].expand(1, 2, 3, 32, 32))
    assert processor.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True) == "a red square"
    model = from_pretrained_towers(sources.path["timm"], sources.path["distilbert"], codebook_size=8)
    assert model(**inputs).logits_per_video.shape == (1, 1)


@pytest.mark.parametrize("kind", ["image_processor", "clip_processor"])
def test_processor_of_transformers(sources, tmp_path, kind, caplog):
    folder = shutil.copytree(sources.path["clip"], tmp_path / "clip")
    if kind == "image_processor":
        image_processor = ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
        image_processor.save_pretrained(folder)  # preprocessor_config.json
    else:
        image_processor = CLIPImageProcessor()
        CLIPProcessor(image_processor, train_tokenizer(["a"], 99, 16)).save_pretrained(folder)  # inside another file
    processor = processor_from_towers(folder, sources.path["distilbert"])
    assert list(processor.video_processor.image_mean) == list(image_processor.image_mean)
    assert list(processor.video_processor.image_std) == list(image_processor.image_std)
    assert processor.video_processor.num_frames == 4
    assert not [record for record in caplog.records if "normalized" in record.getMessage()]


def test_unknown_normalization_falls_back_to_imagenet_with_a_warning(sources, caplog):
    with caplog.at_level(logging.WARNING, logger="region_learner"):
        from_pretrained_towers(sources.path["vit"], sources.path["distilbert"], codebook_size=8)
        assert "normalized" not in caplog.text  # building a model does not need it
        processor = processor_from_towers(sources.path["vit"], sources.path["distilbert"])
    assert str(sources.path["vit"]) in caplog.text
    assert "normalized" in caplog.text
    assert list(processor.video_processor.image_mean) == [0.485, 0.456, 0.406]
    assert list(processor.video_processor.image_std) == [0.229, 0.224, 0.225]


# Backbones


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "test_convnext"},
        {"reg_tokens": 2},
        {"init_values": 1e-5},
        {"global_pool": "avg"},
        {"qkv_bias": False},
        {"no_embed_class": True},
        {},
    ],
)
@torch.no_grad()
def test_timm_models_that_are_not_a_plain_vit_become_backbones(sources, tmp_path, options):
    architecture = options.get("architecture", "vit_tiny_patch16_224")
    of_vit = {} if "architecture" in options else TIMM_SIZES | options
    original = save_timm(tmp_path, architecture, **of_vit)
    model = from_pretrained_towers(
        tmp_path, sources.path["distilbert"], as_backbone=not options, codebook_size=8, interaction_heads=4
    )
    size = (160, 160) if "architecture" in options else (32, 32)
    images = torch.randn(2, 1, 3, *size)
    expected = original.forward_head(original.forward_features(images[:, 0]))
    close(model.video_model(images).pooler_output, expected)
    assert model.config.video_config.backbone_config.architecture == architecture
    processor = processor_from_towers(tmp_path, sources.path["distilbert"], as_backbone=not options)
    prepared = processor(videos=[torch.zeros(5, 3, 200, 300, dtype=torch.uint8)])["pixel_values_videos"]
    assert prepared.shape == (1, 4, 3, *size)
    black = -torch.tensor(TIMM_NORMALIZATION["mean"]) / torch.tensor(TIMM_NORMALIZATION["std"])
    close(prepared, black[:, None, None].expand(1, 4, 3, *size))


@pytest.mark.parametrize("name", ["dinov2", "vit", "clip_vision"])
@torch.no_grad()
def test_transformers_models_as_backbones(sources, tmp_path, name):
    if name == "dinov2":
        folder, original = tmp_path, save(tmp_path, Dinov2Model(Dinov2Config(**SIZES, **IMAGE)))
    else:
        folder, original = shutil.copytree(sources.path[name], tmp_path / name), sources.model[name]
    CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    options = {"as_backbone": name != "dinov2"}
    model = from_pretrained_towers(folder, sources.path["distilbert"], **options, codebook_size=8, interaction_heads=4)
    images = clips(batch=3, frames=1)
    outputs = original(images[:, 0])
    expected = outputs.last_hidden_state[:, 0] if name == "vit" else outputs.pooler_output
    close(model.video_model(images).pooler_output, expected)
    video = processor_from_towers(folder, sources.path["distilbert"], **options).video_processor
    assert dict(video.size)["shortest_edge"] == 40
    assert video(torch.zeros(4, 3, 50, 60, dtype=torch.uint8))["pixel_values_videos"][0].shape == (4, 3, 32, 32)


@pytest.mark.parametrize(("edge", "share", "width"), [(224, 0.875, 256), (224, 0.5, 448), (384, 0.875, None)])
def test_frames_are_cropped_as_in_convnext(tmp_path, edge, share, width):
    ConvNextImageProcessor(size={"shortest_edge": edge}, crop_pct=share).save_pretrained(tmp_path)
    video = video_processor_of(tmp_path, torch.nn.Identity(), num_frames=4)
    assert dict(video.output_size) == {"height": edge, "width": edge}
    assert video.do_center_crop == (width is not None)
    assert dict(video.size).get("shortest_edge") == width


def test_frames_need_one_size(tmp_path):
    CLIPImageProcessor(size={"shortest_edge": 40}, do_center_crop=False).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"resizes images to .*40.*, but the frames of a clip need a height and a width"
    ):
        video_processor_of(tmp_path, torch.nn.Identity(), num_frames=4)


# Errors


def test_text_models_are_not_image_models(sources):
    with pytest.raises(ValueError, match="is a 'bert' model, which is not an image model"):
        from_pretrained_towers(sources.path["bert"], sources.path["distilbert"])


def test_an_image_model_without_image_processor(sources, tmp_path):
    save(tmp_path, Dinov2Model(Dinov2Config(**SIZES, **IMAGE)))
    with pytest.raises(OSError, match=r"has no image processor \(preprocessor_config\.json\)"):
        processor_from_towers(tmp_path, sources.path["distilbert"])


@pytest.mark.parametrize("family", ["metaclip_2", "siglip2"])
@torch.no_grad()
def test_text_towers_of_other_families(sources, tmp_path, family):
    from .test_backbones import CAPTIONS, original_embeddings, picture, save_family

    original = save_family(family, tmp_path)
    model = from_pretrained_towers(
        sources.path["vit"], tmp_path, **NO_REGIONS, projection_dim=24, text_projection_relu=False
    )
    inputs = processor_from_towers(sources.path["vit"], tmp_path)(text=CAPTIONS)
    weight = torch.eye(32) if family == "siglip2" else original.text_projection.weight
    model.text_projection = torch.nn.Linear(32, len(weight), bias=False)
    model.text_projection.weight = torch.nn.Parameter(weight.clone())
    _, expected = original_embeddings(tmp_path, original, [picture(0)])
    ours = torch.nn.functional.normalize(model.get_text_features(**inputs).pooler_output, dim=-1)
    close(ours, expected)


def test_models_that_are_not_text_encoders(sources, tmp_path):
    for name in ("vit", "clip_vision", "timm"):
        with pytest.raises(ValueError, match=f"{name}' is a .* model, which is not a text encoder"):
            from_pretrained_towers(sources.path["vit"], sources.path[name])
    t5 = T5Config(vocab_size=99, d_model=32, d_kv=8, num_layers=1, num_heads=2, d_ff=32)
    save(tmp_path / "t5", T5Model(t5))
    with pytest.raises(ValueError, match=r"encoder-decoder \(t5\)"):
        from_pretrained_towers(sources.path["vit"], tmp_path / "t5")


def test_sizes_of_the_weights_cannot_be_overridden(sources):
    with pytest.raises(ValueError, match=r"have hidden_size=32, num_hidden_layers=2, which cannot be overridden"):
        from_pretrained_towers(sources.path["vit"], sources.path["distilbert"], hidden_size=64, num_hidden_layers=1)


def test_unknown_override(sources):
    with pytest.raises(ValueError, match=r"'num_region' is not a field .*; did you mean 'num_regions'"):
        from_pretrained_towers(sources.path["vit"], sources.path["distilbert"], num_region=4)


@pytest.mark.parametrize("side", ["video", "text"])
def test_directories_that_are_not_a_model(sources, tmp_path, side):
    def load(folder):
        return from_pretrained_towers(
            **{"video": sources.path["vit"], "text": sources.path["distilbert"]} | {side: folder}
        )

    with pytest.raises(FileNotFoundError, match=r"no model directory .*absent"):
        load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"no model directory \./absent"):
        load("./absent")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="neither an `architecture` of timm nor a `model_type`"):
        load(tmp_path)


def test_names_that_do_not_exist(sources):
    with pytest.raises(ValueError, match="timm cannot load 'vit_of_nobody'"):
        from_pretrained_towers("vit_of_nobody", sources.path["distilbert"])
    with pytest.raises(OSError, match="'nobody/vit' is not a local directory, and downloading it from the Hub failed"):
        from_pretrained_towers("nobody/vit", sources.path["distilbert"])
    with pytest.raises(OSError, match="'nobody/bert' is not a local directory, and downloading it from"):
        from_pretrained_towers(sources.path["vit"], "nobody/bert")


@pytest.mark.parametrize("name", ["vit", "timm", "clip"])
def test_incomplete_weights(sources, tmp_path, name):
    """Missing or damaged weights of the image model are an error, rather than initialized at random."""
    folder = shutil.copytree(sources.path[name], tmp_path / name)
    state = load_file(folder / "model.safetensors")
    suffixes = ("fc1.weight", "intermediate.dense.weight")
    del state[next(key for key in source_weights(folder) if ".1." in key and key.endswith(suffixes))]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"fc1\.weight") as error:
        from_pretrained_towers(folder, sources.path["distilbert"])
    assert str(folder) in str(error.value)
    (folder / "model.safetensors").write_bytes(b"not what it says")
    with pytest.raises(ValueError, match=name):
        from_pretrained_towers(folder, sources.path["distilbert"])
    (folder / "model.safetensors").unlink()
    with pytest.raises((OSError, ValueError), match=name):
        from_pretrained_towers(folder, sources.path["distilbert"])


def test_bert_without_its_pooler(sources):
    with pytest.raises(ValueError, match=r'missing .*pooler.* Pass text_pooling="first"'):
        from_pretrained_towers(sources.path["vit"], sources.path["bert_mlm"])
    model = from_pretrained_towers(sources.path["vit"], sources.path["bert_mlm"], text_pooling="first")
    assert not any("pooler" in key for key in model.text_model.state_dict())


class Touch:
    """Creates a file when a pickle of it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["vit", "timm", "clip"])
def test_weights_run_no_code(sources, tmp_path, name):
    """Pickled weights are read as tensors or not at all."""
    trace, folder = tmp_path / "ran", shutil.copytree(sources.path[name], tmp_path / name)
    torch.save({"weights": Touch(trace)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=name):
        from_pretrained_towers(folder, sources.path["distilbert"])
    assert not trace.exists()


def test_text_weights_run_no_code(sources, tmp_path):
    trace, folder = tmp_path / "ran", shutil.copytree(sources.path["distilbert"], tmp_path / "distilbert")
    torch.save({"weights": Touch(trace)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="contain more than tensors"):
        from_pretrained_towers(sources.path["vit"], folder)
    assert not trace.exists()

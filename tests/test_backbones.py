"""Tests image models as backbones and CLIP-like checkpoints as video models (the table of docs/backbones.md)."""

import dataclasses
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPImageProcessor,
    CLIPTokenizer,
    GemmaTokenizer,
    Siglip2ImageProcessor,
    Siglip2Tokenizer,
    SiglipImageProcessor,
    XLMRobertaTokenizer,
)

from region_learner import RegionLearnerConfig, RegionLearnerModel, RegionLearnerProcessor, RegionLearnerVideoConfig
from region_learner.cli import main
from region_learner.conversion import from_pretrained_towers, processor_from_towers
from region_learner.corpora import make_corpus
from region_learner.evaluation.region_evaluation import region_quality_of_batches
from region_learner.loading import load_checkpoint
from region_learner.training.arguments import ModelArguments
from region_learner.training.model import build_model

from .conftest import NO_REGIONS, clips, randomize, texts, tiny_text_config
from .fresh_process import run_fresh

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IMAGE = {"image_size": 32, "patch_size": 8}
REGIONS = {"codebook_size": 8, "num_regions": 3, "interaction_heads": 4}
FAMILIES = ["clip", "metaclip_2", "siglip", "siglip2", "siglip2_naflex"]
CAPTIONS = ["a red square moves left", "two blue disks", "The Green Triangle!"]

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def clip_tokenizer():
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=32)


def metaclip_tokenizer():
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocab = [*((token, 0.0) for token in special), *((letter, -3.0) for letter in "▁" + LETTERS), ("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=vocab, model_max_length=32)


def siglip_tokenizer():
    pytest.importorskip("sentencepiece")
    import tempfile

    import sentencepiece
    from transformers import SiglipTokenizer

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "captions.txt"
        text.write_text("\n".join([caption.lower() for caption in CAPTIONS] * 20))
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=f"{folder}/spiece", vocab_size=40, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
            minloglevel=2, hard_vocab_limit=False,
        )  # fmt: skip
        return SiglipTokenizer(f"{folder}/spiece.model", model_max_length=32)


def gemma_tokenizer():
    """Returns a tokenizer like that of SigLIP 2: its vocabulary has upper case, which the model never saw."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, *LETTERS.upper(), "▁", "!"]
    vocab = {token: i for i, token in enumerate(tokens)}
    options = {"add_bos_token": False, "add_eos_token": True, "padding_side": "right", "model_max_length": 32}
    return GemmaTokenizer(vocab=vocab, merges=[], **options)


@dataclasses.dataclass
class Family:
    """The parts that a checkpoint of a model family is made of."""

    model_type: str
    tokenizer: object
    image_processor: object
    vision: dict = dataclasses.field(default_factory=lambda: dict(IMAGE))


SQUARE = {"height": 32, "width": 32}
FAMILY = {
    "clip": Family("clip", clip_tokenizer, CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)),
    "metaclip_2": Family(
        "metaclip_2", metaclip_tokenizer, CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    ),
    "siglip": Family("siglip", siglip_tokenizer, SiglipImageProcessor(size=SQUARE)),
    "siglip2": Family("siglip", gemma_tokenizer, SiglipImageProcessor(size=SQUARE, resample=2)),
    "siglip2_naflex": Family(
        "siglip2",
        gemma_tokenizer,
        Siglip2ImageProcessor(patch_size=8, max_num_patches=16),
        {"patch_size": 8, "num_patches": 16},
    ),
}


def save_family(name: str, folder: Path) -> torch.nn.Module:
    """Saves a random small checkpoint of a family, with its tokenizer and image processor, and returns the model."""
    family = FAMILY[name]
    tokenizer = family.tokenizer()
    text = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": 32}
    options = {}
    if family.model_type.startswith("siglip"):  # their configurations do not name special tokens
        text |= {"projection_size": SIZES["hidden_size"]}
    else:
        special = ("bos_token_id", "eos_token_id", "pad_token_id")
        text |= {token: getattr(tokenizer, token) for token in special}
        if name == "clip":  # OpenAI's configuration has these, although its tokenizer has others
            text |= dict(zip(special, (0, 2, 1)))
        options["projection_dim"] = 24
    config = CONFIG_MAPPING[family.model_type](vision_config=SIZES | family.vision, text_config=text, **options)
    model = randomize(AutoModel.from_config(config)).eval()
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    family.image_processor.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A function that returns the directory and the model of a family, which are made on first use."""
    root, made = tmp_path_factory.mktemp("dual_encoders"), {}

    def get(name: str):
        if name not in made:
            made[name] = (root / name, save_family(name, root / name))
        return made[name]

    return get


def picture(seed: int, height: int = 50, width: int = 50) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@torch.no_grad()
def original_embeddings(folder: Path, model, images: list[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the normalized embeddings of images and `CAPTIONS` by the original model and its own processor."""
    inputs = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    captions = CAPTIONS
    if isinstance(tokenizer, GemmaTokenizer) and not isinstance(tokenizer, Siglip2Tokenizer):
        captions = [caption.lower() for caption in CAPTIONS]  # SigLIP 2's documentation asks for it
    is_siglip = model.config.model_type.startswith("siglip")
    padding = {"padding": "max_length", "max_length": 32} if is_siglip else {"padding": True}
    tokens = tokenizer(captions, return_tensors="pt", truncation=True, **padding)
    if is_siglip:
        tokens = {"input_ids": tokens["input_ids"]}
    image = model.get_image_features(**inputs).pooler_output
    text = model.get_text_features(**tokens).pooler_output
    return (torch.nn.functional.normalize(x, dim=-1) for x in (image, text))


@torch.no_grad()
def our_embeddings(model, processor, images: list[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
    outputs = model(**processor(images=images, text=CAPTIONS))
    return outputs.video_embeds, outputs.text_embeds


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "regions",
    [
        {},
        {"region_form": "decoupled", **REGIONS},
        {"region_form": "queries", **REGIONS, "token_dim": 8, "phrase_window": 3, "tube_mlp": True},
    ],
    ids=["alone", "with_regions", "with_queries_phrases_and_tubes"],
)
def test_embeddings_match_the_original(checkpoints, family, regions, tmp_path):
    folder, original = checkpoints(family)
    model, processor = from_pretrained_towers(folder, **regions), processor_from_towers(folder)
    images = [picture(seed, *((50, 50) if family == "siglip2_naflex" else (50, 70))) for seed in range(3)]
    expected = list(original_embeddings(folder, original, images))
    assert (expected[1][0] - expected[1][2]).abs().max() > 0.05  # embeddings depend on the text
    for ours, theirs in zip(our_embeddings(model, processor, images), expected):
        close(ours, theirs)
    assert (model.video_model.region_projection is not None) == bool(regions)

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = RegionLearnerModel.from_pretrained(tmp_path), RegionLearnerProcessor.from_pretrained(tmp_path)
    for ours, theirs in zip(our_embeddings(*again, images), expected):
        close(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_match_the_original(checkpoints, family):
    folder, original = checkpoints(family)
    images = [picture(seed) for seed in range(3)]
    image, text = original_embeddings(folder, original, images)
    expected = image @ text.T * original.logit_scale.exp()
    if family.startswith("siglip"):
        expected = expected + original.logit_bias
    model = from_pretrained_towers(folder)
    close(model(**processor_from_towers(folder)(images=images, text=CAPTIONS)).logits_per_video, expected, 1e-4)


def test_rescaling_of_the_image_processor(checkpoints, tmp_path):
    checkpoints("clip")[1].save_pretrained(tmp_path)
    clip_tokenizer().save_pretrained(tmp_path)
    SiglipImageProcessor(size=SQUARE, do_normalize=False, rescale_factor=1 / 100).save_pretrained(tmp_path)
    expected = AutoImageProcessor.from_pretrained(tmp_path)(picture(0), return_tensors="pt")["pixel_values"]
    close(processor_from_towers(tmp_path)(images=[picture(0)])["pixel_values_videos"][0], expected)


@pytest.mark.parametrize("family", ["clip", "siglip2"])
@torch.no_grad()
def test_the_same_name_twice_is_one_checkpoint(checkpoints, family):
    """If both towers come from one checkpoint, its projections and its image processor are kept."""
    folder, _ = checkpoints(family)
    options = {"as_backbone": family == "clip"}
    twice = from_pretrained_towers(folder, str(folder), **options), processor_from_towers(folder, folder, **options)
    once = from_pretrained_towers(folder), processor_from_towers(folder)
    images = [picture(seed) for seed in range(2)]
    for ours, expected in zip(our_embeddings(*twice, images), our_embeddings(*once, images)):
        close(ours, expected, 0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_clips_are_the_mean_of_their_frames(checkpoints, family):
    model = from_pretrained_towers(checkpoints(family)[0])
    clip = clips(batch=2, frames=3)
    frames = model.get_video_features(clip.flatten(0, 1).unsqueeze(1)).pooler_output.unflatten(0, (2, 3))
    close(model.get_video_features(clip).pooler_output, frames.mean(1))
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    expected = torch.stack([frames[0, :2].mean(0), frames[1].mean(0)])
    close(model.get_video_features(clip, frame_mask=mask).pooler_output, expected)


def test_other_dual_encoders_are_refused(tmp_path):
    CONFIG_MAPPING["chinese_clip"]().save_pretrained(tmp_path)
    for load in (from_pretrained_towers, processor_from_towers):
        with pytest.raises(ValueError, match=r"'chinese_clip' model, but both towers can only come from clip"):
            load(tmp_path)


def test_one_side_of_a_dual_encoder_is_refused(checkpoints, tmp_path):
    checkpoints("clip")[1].vision_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use a checkpoint of RegionLearner, or of CLIP, MetaCLIP 2, SigLIP"):
        load_checkpoint(str(tmp_path), "retrieval")
    with pytest.raises(ValueError, match="'clip_vision_model' model: use a checkpoint of RegionLearner, or of"):
        build_model(ModelArguments(model=str(tmp_path)))


@torch.no_grad()
def test_regions_are_added_to_a_saved_model(checkpoints, tmp_path):
    """A model that was fine-tuned without regions can be continued with regions."""
    plain = from_pretrained_towers(checkpoints("clip")[0])
    plain.save_pretrained(tmp_path)
    processor_from_towers(checkpoints("clip")[0]).save_pretrained(tmp_path)
    of_regions = {"codebook_size": 8, "interaction_heads": 4}
    model, _ = build_model(ModelArguments(model=str(tmp_path), region_form="paper", video_config=of_regions))
    video = model.config.video_config
    assert (video.region_form, video.codebook_size, video.num_regions, video.interaction_layers) == ("paper", 8, 8, 1)
    clip = clips(batch=2, frames=3)
    outputs = model.eval()(pixel_values_videos=clip)
    assert outputs.video_model_output.region_masks is not None
    close(outputs.video_embeds, plain(pixel_values_videos=clip).video_embeds)
    model, _ = build_model(ModelArguments(model=str(tmp_path)))
    assert model.config.video_config.num_regions == 0


@torch.no_grad()
def test_phrases_and_tubes_are_added_to_a_saved_model(checkpoints, tmp_path):
    """They have no influence at first, and those that the checkpoint has are kept."""
    plain = from_pretrained_towers(checkpoints("clip")[0])
    plain.save_pretrained(tmp_path / "plain")
    processor = processor_from_towers(checkpoints("clip")[0])
    processor.save_pretrained(tmp_path / "plain")
    images = [picture(seed) for seed in range(2)]
    added = {"phrase_window": 3, "tube_mlp": True}
    model, _ = build_model(ModelArguments(model=str(tmp_path / "plain"), config=added))
    for ours, expected in zip(our_embeddings(model, processor, images), our_embeddings(plain, processor, images)):
        close(ours, expected, 0)
    for part in (model.phrase_mlp, model.tube_mlp.mlp):
        part.fc2.weight.normal_()
    model.save_pretrained(tmp_path / "trained")
    processor.save_pretrained(tmp_path / "trained")
    again, _ = build_model(ModelArguments(model=str(tmp_path / "trained"), config=added))
    three = [our_embeddings(one, processor, images) for one in (again, model, plain)]
    for ours, expected, before in zip(*three):
        close(ours, expected, 0)
        assert not torch.allclose(ours, before, atol=0.01)


@pytest.mark.parametrize("form", ["queries", "tracks"])
def test_the_option_for_regions_of_whole_clips(form, checkpoints, tmp_path):
    """
    If `--region-form` adds regions, it sets the fields with which they were developed, unless they are given. If the
    model has regions, it changes nothing else.
    """
    heads = {"interaction_heads": 4}
    developed = {"codebook_size": 0, "num_regions": 12, "interaction_layers": 0, "video_pooling": "cls_patch_max"}

    def fields_of(source, video_config):
        options = ModelArguments(
            model=str(source), region_form=form, video_config=heads | video_config, config={"token_dim": 8}
        )
        model, _ = build_model(options)
        return model, {name: getattr(model.config.video_config, name) for name in developed}

    clip = checkpoints("clip")[0]
    from_pretrained_towers(clip).save_pretrained(tmp_path / "plain")
    processor_from_towers(clip).save_pretrained(tmp_path / "plain")
    for source in (clip, tmp_path / "plain"):
        assert fields_of(source, {})[1] == developed
    model, found = fields_of(clip, {"num_regions": 5, "video_pooling": "cls_max"})
    assert found == developed | {"num_regions": 5, "video_pooling": "cls_max"}
    model.save_pretrained(tmp_path / "five")
    processor_from_towers(clip).save_pretrained(tmp_path / "five")
    assert fields_of(tmp_path / "five", {})[1] == found


# The commands


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "corpus"
    options = {"train": 8, "val": 0, "test": 4, "test_unseen": 0, "size": 48, "frames": 4, "objects": [1, 1]}
    return make_corpus("moving_shapes", folder, workers=1, progress=False, **options)


TRAINING = [
    "--report_to=none",
    "--use_cpu=true",
    "--dataloader_pin_memory=false",
    "--disable_tqdm=true",
    "--save_strategy=no",
    "--max_steps=2",
    "--per_device_train_batch_size=4",
    "--num_frames=2",
]


def run(*arguments: str):
    with pytest.raises(SystemExit) as exit:
        main(list(arguments))
    assert not exit.value.code


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluate_is_zero_shot(checkpoints, corpus, family, tmp_path):
    folder, _ = checkpoints(family)
    output = tmp_path / "results.json"
    arguments = ["--corpus", "folder", "--data-dir", str(corpus), "--split", "test", "--output", str(output)]
    run("evaluate", str(folder), *arguments, "--num-frames", "16")  # more than the default of 12
    assert json.loads(output.read_text())["protocol"]["frames"] == 16
    run("evaluate", str(folder), *arguments)
    results = json.loads(output.read_text())
    assert results["protocol"]["frames"] == 12
    assert results["model"]["config"]["temporal_fusion"] == "pool"
    assert 0 <= results["metrics"]["t2v_R@1"] <= 100


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("regions", [False, True], ids=["alone", "with_regions"])
def test_train_fine_tunes(checkpoints, corpus, family, regions, tmp_path):
    folder, _ = checkpoints(family)
    options = ["--region-form", "decoupled", "--video_config", json.dumps(REGIONS)] if regions else []
    arguments = ["--model", str(folder), "--corpus=folder", "--data-dir", str(corpus), "--output-dir", str(tmp_path)]
    run("train", *arguments, *TRAINING, *options, "--learning_rate=0.01")
    model, processor = load_checkpoint(str(tmp_path), "retrieval")
    before = from_pretrained_towers(folder, **({"region_form": "decoupled", **REGIONS} if regions else {}))
    assert processor.video_processor.num_frames == 2
    changed = {
        name
        for (name, new), old in zip(model.named_parameters(), before.state_dict().values())
        if not torch.equal(new, old)
    }
    parts = {"video_model.backbone", "text_model", "logit_scale"} | (
        {"video_model.region_projection"} if regions else set()
    )
    for part in parts:
        assert any(name.startswith(part) for name in changed), part


# Backbones


def backbone_config(model_type: str, **options) -> dict:
    sizes = SIZES | IMAGE | options
    known = CONFIG_MAPPING[model_type]()
    return {"model_type": model_type} | {name: value for name, value in sizes.items() if hasattr(known, name)}


TRANSFORMERS = {
    "clip": backbone_config("clip_vision_model"),
    "metaclip_2": backbone_config("metaclip_2_vision_model"),
    "siglip": backbone_config("siglip_vision_model"),
    "siglip2_naflex": backbone_config("siglip2_vision_model", num_patches=16),
    "vit": backbone_config("vit"),
    "deit": backbone_config("deit"),
    "beit": backbone_config("beit"),
    "dinov2": backbone_config("dinov2"),
    "dinov2_with_registers": backbone_config("dinov2_with_registers"),
    "dinov3": backbone_config("dinov3_vit", num_register_tokens=3),
    "ijepa": backbone_config("ijepa"),
    "convnext": {"model_type": "convnextv2", "hidden_sizes": [8, 8, 16, 32], "depths": [1, 1, 1, 1]},
    "dinov3_convnext": {"model_type": "dinov3_convnext", "hidden_sizes": [8, 8, 16, 32], "depths": [1, 1, 1, 1]},
}
TIMM = {
    "timm_vit": ("vit_tiny_patch16_224", {"depth": 1, "img_size": 64, "embed_dim": 32, "num_heads": 4}, (64, 64)),
    "timm_pe_core": ("vit_pe_core_tiny_patch16_384", {"depth": 1, "img_size": 64}, (64, 64)),
    "timm_dinov3": ("vit_small_patch16_dinov3", {"depth": 1, "img_size": 64}, (64, 64)),
    "timm_eva02": ("eva02_tiny_patch14_224", {"depth": 1, "img_size": [28, 56]}, (28, 56)),
    "timm_siglip": ("vit_base_patch16_siglip_224", {"depth": 1, "img_size": 64}, (64, 64)),
    "timm_resnet": ("test_resnet", {}, (64, 96)),
    "timm_swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "window_size": 2, "depths": (1, 1, 1, 1)},
        (64, 64),
    ),
}
BACKBONES = [*TRANSFORMERS, *TIMM]


def video_config(name: str, **options) -> tuple[RegionLearnerVideoConfig, tuple[int, int]]:
    """Returns the configuration of a video tower on a backbone, and a frame size (height, width) that it accepts."""
    if name in TRANSFORMERS:
        size = (64, 96) if "conv" in name else (32, 32)
        return RegionLearnerVideoConfig(backbone_config=TRANSFORMERS[name], **REGIONS | options), size
    architecture, arguments, size = TIMM[name]
    backbone = {"model_type": "timm_wrapper", "architecture": architecture, "model_args": arguments}
    width = timm.create_model(architecture, num_classes=0, **arguments).num_features
    return RegionLearnerVideoConfig(backbone_config=backbone, hidden_size=width, **REGIONS | options), size


def backbone_model(name: str, seed: int = 0, **options) -> tuple[RegionLearnerModel, tuple[int, int]]:
    video, size = video_config(name, **options)
    torch.manual_seed(seed)
    config = RegionLearnerConfig(video_config=video, text_config=tiny_text_config(), projection_dim=16)
    return RegionLearnerModel(config).eval(), size


def frames_of(size: tuple[int, int], batch: int = 2, frames: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, frames, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_regions_start_without_influence(name):
    model, size = backbone_model(name)
    clip = frames_of(size)
    outputs = model.video_model(clip)
    pooled = model.video_model._encode_frames(clip, False).pooler_output
    close(outputs.pooler_output, pooled.mean(1), 0)
    grid = outputs.region_masks.shape[-2:]
    assert grid[0] * size[1] == grid[1] * size[0]  # the grid has the aspect ratio of the frame
    assert outputs.region_masks.shape[:3] == (2, 3, 3)
    assert outputs.cluster_ids.shape == (2, 3, *grid)
    assert outputs.last_hidden_state.shape == (2, 3 + 9, model.config.video_config.hidden_size)


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_checkpoints_are_complete(name, tmp_path):
    model, size = backbone_model(name)
    randomize(model)
    clip = frames_of(size)
    expected = model(pixel_values_videos=clip)
    assert expected.video_embeds.isfinite().all()
    model.save_pretrained(tmp_path)
    again = RegionLearnerModel.from_pretrained(tmp_path)
    close(again(pixel_values_videos=clip).video_embeds, expected.video_embeds, 0)
    saved = json.loads((tmp_path / "config.json").read_text())["video_config"]
    assert ("hidden_size" in saved) == (name in TIMM)  # otherwise it is in the backbone's configuration


def image_states(name: str, backbone, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the patches (B, N, D) and the pooled state (B, D) of images from each model's own outputs."""
    if name in TIMM:
        states = backbone.timm_model.forward_features(images)
        pooled = backbone.timm_model.forward_head(states)
        if states.ndim == 4:
            return (states if "swin" in name else states.permute(0, 2, 3, 1)).flatten(1, 2), pooled
        return states[:, backbone.timm_model.num_prefix_tokens :], pooled
    outputs = backbone(images)
    states = outputs.last_hidden_state
    before = {"siglip": 0, "ijepa": 0, "deit": 2, "dinov2_with_registers": 5, "dinov3": 4}.get(name, 1)
    if name == "convnext":
        return states.flatten(2).transpose(1, 2), outputs.pooler_output
    if name == "ijepa":
        return states, states.mean(1)
    if name == "beit":  # its pooling layer normalizes the mean of the patches
        mean = states[:, before:].mean(1)
        return states[:, before:], F.layer_norm(
            mean, mean.shape[-1:], *backbone.pooler.layernorm.parameters(), backbone.config.layer_norm_eps
        )
    return states[:, before:], states[:, 0] if name in ("vit", "deit") else outputs.pooler_output


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "siglip2_naflex"])
@torch.no_grad()
def test_patches_exclude_other_tokens(name):
    model, size = backbone_model(name)
    randomize(model)
    images = frames_of(size, frames=1)
    encoded = model.video_model._encode_frames(images, False)
    patches, pooled = image_states(name, model.video_model.backbone, images[:, 0])
    close(encoded.last_hidden_state[:, 0].flatten(1, 2), patches)
    close(encoded.pooler_output[:, 0], pooled)


@torch.no_grad()
def test_a_beit_that_was_pretrained_by_masking(tmp_path):
    """It has no pooling layer, unlike one with a classifier. Its checkpoint says so after saving, too."""
    config = AutoConfig.for_model(**TRANSFORMERS["beit"])
    AutoModel.from_config(config, add_pooling_layer=False).save_pretrained(tmp_path / "masked")
    AutoModel.from_config(config).save_pretrained(tmp_path / "pooled")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(**sizes)).save_pretrained(tmp_path / "text")
    for name in ("masked", "pooled"):
        model = from_pretrained_towers(tmp_path / name, tmp_path / "text").eval()
        assert (model.video_model.backbone.pooler is None) == (name == "masked")
        model.save_pretrained(tmp_path / "saved")
        again, info = AutoModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        images = frames_of((64, 64), frames=1)
        close(again.eval()(pixel_values_videos=images).video_embeds, model(pixel_values_videos=images).video_embeds)


@torch.no_grad()
def test_patches_of_siglip2_naflex_match_its_processor():
    """The patches of a frame are the same, in the same order, as those that the image processor cuts."""
    model, _ = backbone_model("siglip2_naflex")
    images = picture(0, 32, 48)
    processor = Siglip2ImageProcessor(patch_size=8, max_num_patches=24, do_resize=True)
    inputs = processor(images, return_tensors="pt")
    assert inputs["spatial_shapes"].tolist() == [[4, 6]]
    expected = model.video_model.backbone(**inputs).last_hidden_state
    mean, std = np.float32(0.5), np.float32(0.5)
    pixels = torch.from_numpy((np.asarray(images, np.float32) / 255 - mean) / std).permute(2, 0, 1)[None, None]
    encoded = model.video_model._encode_frames(pixels, False)
    assert encoded.last_hidden_state.shape == (1, 1, 4, 6, 32)
    close(encoded.last_hidden_state.flatten(0, 1).flatten(1, 2), expected, 1e-4)


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov3", "timm_resnet"])
@torch.no_grad()
def test_masked_frames_have_no_influence(name):
    model, size = backbone_model(name)
    randomize(model)
    clip = frames_of(size, frames=4)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]])
    other = clip.clone()
    other[:, 2:] = 100
    expected = model(pixel_values_videos=clip[:, :2]).video_embeds
    close(model(pixel_values_videos=clip, frame_mask=mask).video_embeds, expected)
    close(model(pixel_values_videos=other, frame_mask=mask).video_embeds, expected)


@pytest.mark.parametrize("interaction_layers", [0, 1])
@torch.no_grad()
def test_the_order_of_frames_matters_only_through_regions(interaction_layers):
    model, size = backbone_model("clip", interaction_layers=interaction_layers)
    clip = frames_of(size)
    close(model.get_video_features(clip).pooler_output, model.get_video_features(clip.flip(1)).pooler_output)
    randomize(model)
    forward, backward = (model(pixel_values_videos=x).video_embeds for x in (clip, clip.flip(1)))
    assert (forward - backward).abs().max() > 1e-3
    model.video_model.temporal_embeddings.zero_()
    forward, backward = (model(pixel_values_videos=x).video_embeds for x in (clip, clip.flip(1)))
    close(forward, backward)


def brightening(batch: int, seed: int) -> torch.Tensor:
    """Returns clips that become brighter, and the same clips backwards: (2 * batch, 4, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    colours = 0.3 * torch.randn(batch, 1, 3, 1, 1, generator=generator)
    noise = 0.1 * torch.randn(batch, 4, 3, 32, 32, generator=generator)
    clips = torch.linspace(-1, 1, 4).view(1, 4, 1, 1, 1) + colours + noise
    return torch.cat([clips, clips.flip(1)])


@pytest.mark.parametrize("regions", [{}, NO_REGIONS], ids=["with_regions", "alone"])
def test_the_order_of_frames_is_learned_only_with_regions(regions):
    model, _ = backbone_model("clip", **regions)
    randomize(model.video_model.backbone).requires_grad_(False)
    randomize(model.text_model)
    texts = torch.tensor([[5, 6, 7], [5, 8, 7]])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3)
    model.train()
    for step in range(100):
        logits = model(texts, brightening(16, step)).logits_per_video
        torch.nn.functional.cross_entropy(logits, torch.arange(2).repeat_interleave(16)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        logits = model.eval()(texts, brightening(32, 10**6)).logits_per_video
    if regions == NO_REGIONS:
        close(logits[:32], logits[32:], 1e-4)
    else:
        assert (logits.argmax(1) == torch.arange(2).repeat_interleave(32)).float().mean() > 0.95


@torch.no_grad()
def test_regions_of_a_backbone_are_measured():
    model, size = backbone_model("siglip")
    randomize(model)
    labels = torch.zeros(2, 3, *size, dtype=torch.int64)
    labels[:, :, 8:16, 8:24] = 1
    quality = region_quality_of_batches(model, [(frames_of(size), labels)])
    assert quality["objects"] == 6
    assert {"learned", "kmeans", "grid"} < quality.keys()
    assert "cls_attention" not in quality


@torch.no_grad()
def test_regions_do_not_depend_on_the_scale_of_features():
    model, size = backbone_model("clip")
    randomize(model)
    features = model.video_model.encode_frames(frames_of(size))
    expected = model.video_model(features)
    outputs = model.video_model(5 * features + 1)
    close(outputs.region_masks, expected.region_masks, 1e-4)
    assert torch.equal(outputs.cluster_ids, expected.cluster_ids)


@pytest.mark.parametrize("name", ["clip", "siglip2_naflex", "timm_pe_core"])
@torch.no_grad()
def test_half_precision(name):
    model, size = backbone_model(name)
    model.to(torch.bfloat16)
    clip = frames_of(size)
    for inputs in (clip, model.video_model.encode_frames(clip).float()):
        outputs = model(pixel_values_videos=inputs)
        assert outputs.video_embeds.isfinite().all()
        assert outputs.video_model_output.pooler_output.dtype == torch.bfloat16


@torch.no_grad()
def test_outputs_of_a_backbone():
    model, size = backbone_model("clip")
    clip = frames_of(size)
    outputs = model.video_model(clip, output_hidden_states=True)
    assert len(outputs.hidden_states) == 3
    assert outputs.hidden_states[0].shape == (6, 17, 32)
    assert outputs.attentions is None
    assert isinstance(model.video_model(clip, return_dict=False), tuple)
    model.set_attn_implementation("eager")
    assert model.video_model(clip, output_attentions=True).attentions[0].shape == (6, 4, 17, 17)


@torch.no_grad()
def test_frames_of_other_sizes():
    for name, size in (("siglip", (48, 32)), ("dinov3", (48, 32)), ("clip", (48, 32))):
        model, _ = backbone_model(name)
        outputs = model.video_model(frames_of(size), interpolate_pos_encoding=True)
        assert outputs.region_masks.shape == (2, 3, 3, 6, 4)


def test_models_without_patches_are_refused():
    video = RegionLearnerVideoConfig(backbone_config=backbone_config("vit_mae"), **REGIONS)
    model = RegionLearnerModel(RegionLearnerConfig(video_config=video, text_config=tiny_text_config()))
    with pytest.raises(ValueError, match="ViTMAEModel returns 5 tokens for frames of 32 x 32 pixels"):
        model(pixel_values_videos=frames_of((32, 32)))


def test_tokens_after_the_patches_are_refused():
    yolos = backbone_config("yolos", num_detection_tokens=3, image_size=[32, 32])
    video = RegionLearnerVideoConfig(backbone_config=yolos, **REGIONS)
    model = RegionLearnerModel(RegionLearnerConfig(video_config=video, text_config=tiny_text_config()))
    with pytest.raises(ValueError, match=r"YolosModel returns 20 tokens for .* not a grid of patches after class"):
        model(pixel_values_videos=frames_of((32, 32)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone_config": {"hidden_size": 32}}, "without `model_type`.*'siglip_vision_model'"),
        ({"backbone_config": {"model_type": "dinov4"}}, "backbone_config: model_type='dinov4' is not known"),
        ({"backbone_config": TRANSFORMERS["clip"] | {"hidden": 3}}, "backbone_config: 'hidden' is not a field"),
        ({"hidden_size": 64}, "hidden_size=64 differs from that of the backbone, 32"),
        ({"temporal_fusion": "attention"}, "temporal_fusion='attention' is not known; choose one of 'pool', 'linear'"),
        ({"pre_layernorm": True}, "pre_layernorm=True is for the divided space-time ViT"),
        ({"interaction_heads": 5}, "hidden_size=32 is not a multiple of interaction_heads=5"),
        (
            {"num_regions": 0, "interaction_layers": 0, "intermediate_size": 48},
            "intermediate_size=48 has no effect with a backbone and no layers of the region module",
        ),
        ({"interaction_layers": 0, "hidden_act": "relu"}, "hidden_act='relu' has no effect with a backbone"),
        ({**NO_REGIONS, "layer_norm_eps": 0.1}, "layer_norm_eps=0.1 has no effect with a backbone"),
    ],
)
def test_invalid_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RegionLearnerVideoConfig(**{"backbone_config": TRANSFORMERS["clip"]} | REGIONS | options)


def test_layer_options_are_accepted_where_they_have_an_effect():
    """All need layers in the region module, except for `layer_norm_eps`, for which a codebook suffices."""
    for options in (
        {"intermediate_size": 48},
        {"interaction_layers": 0, "region_form": "queries", "hidden_act": "relu"},
        {"num_regions": 0, "interaction_layers": 0, "layer_norm_eps": 0.1},
    ):
        config = RegionLearnerVideoConfig(**{"backbone_config": TRANSFORMERS["clip"]} | REGIONS | options)
        assert all(getattr(config, name) == value for name, value in options.items())


def test_a_timm_model_of_another_width():
    config, _ = video_config("timm_dinov3")
    config.hidden_size = 32
    with pytest.raises(ValueError, match="hidden_size=32, but that of 'vit_small_patch16_dinov3' in timm is 384"):
        RegionLearnerModel(RegionLearnerConfig(video_config=config, text_config=tiny_text_config()))


def test_overrides_of_a_backbone():
    config = RegionLearnerConfig(video_config={"backbone_config": TRANSFORMERS["clip"]})
    changed = RegionLearnerConfig.from_dict(
        config.to_dict(), video_config={"backbone_config": {"num_hidden_layers": 1}, "num_regions": 5}
    )
    assert changed.video_config.backbone_config.num_hidden_layers == changed.video_config.num_hidden_layers == 1
    assert changed.video_config.backbone_config.hidden_size == 32
    assert changed.video_config.num_regions == 5
    own = RegionLearnerConfig.from_dict(config.to_dict(), video_config={"intermediate_size": 48})
    again = RegionLearnerConfig.from_dict(own.to_dict())
    assert (again.video_config.intermediate_size, again.video_config.backbone_config.intermediate_size) == (48, 64)
    assert again.video_config.hidden_act == "quick_gelu"  # the activation of CLIP
    wider = RegionLearnerConfig.from_dict(config.to_dict(), video_config={"backbone_config": {"hidden_size": 64}})
    assert wider.video_config.hidden_size == 64
    with pytest.raises(ValueError, match="did you mean 'num_hidden_layers'"):
        RegionLearnerConfig.from_dict(config.to_dict(), video_config={"backbone_config": {"num_hidden_layer": 1}})


@torch.no_grad()
def test_more_frames():
    model, size = backbone_model("clip", num_frames=2)
    randomize(model)
    clip = frames_of(size, frames=3)
    with pytest.raises(ValueError, match="3 frames, but the model has 2 temporal positions"):
        model(pixel_values_videos=clip)
    more = model.resize_frames(3)
    close(more(pixel_values_videos=clip[:, :2]).video_embeds, model(pixel_values_videos=clip[:, :2]).video_embeds)
    assert more(pixel_values_videos=clip).video_embeds.shape == (2, 16)
    late, _ = backbone_model("clip", num_frames=2, **NO_REGIONS)
    assert late(pixel_values_videos=clip).video_embeds.shape == (2, 16)  # it has no temporal positions
    for arguments, message in (((0,), "num_frames=0 must be at least 1"), ((3, "zero"), "fill='zero' is not known")):
        with pytest.raises(ValueError, match=message):
            late.resize_frames(*arguments)
    linear, _ = backbone_model("clip", num_frames=2, temporal_fusion="linear", **NO_REGIONS)
    assert (late.video_model.max_frames, linear.video_model.max_frames, model.video_model.max_frames) == (None, 2, 2)
    with pytest.raises(ValueError, match="3 frames, but the model has 2 temporal positions"):
        linear(pixel_values_videos=clip)


def test_frames_per_clip_of_a_run(checkpoints, corpus, tmp_path):
    """`--num-frames` also sets the temporal positions on CLIP. Checkpoints refuse more frames than they have."""
    folder, _ = checkpoints("clip")
    arguments = ["--corpus=folder", "--data-dir", str(corpus), "--region-form=decoupled", "--num-frames", "14"]
    config = ["--video_config", json.dumps(REGIONS)]
    training = [argument for argument in TRAINING if not argument.startswith("--num_frames")]
    run("train", "--model", str(folder), *arguments, *config, *training, "--output-dir", str(tmp_path / "regions"))
    model, processor = load_checkpoint(str(tmp_path / "regions"), "retrieval")
    assert model.video_model.max_frames == processor.video_processor.num_frames == 14
    test = ["--data-dir", str(corpus), "--split", "test", "--num-frames", "15"]
    with pytest.raises(SystemExit) as exit:
        main(["evaluate", str(tmp_path / "regions"), *test])
    assert exit.value.code == 2


# Training


@pytest.mark.parametrize("name", ["clip", "siglip", "timm_pe_core"])
def test_a_frozen_backbone_keeps_no_activations(name):
    from region_learner.training.optimization import freeze

    model, size = backbone_model(name)
    model.train()
    freeze(model, ["video_model.backbone"])
    kept = []
    model.video_model.backbone.register_forward_hook(lambda _, __, outputs: kept.append(outputs.last_hidden_state))
    model(**texts(), pixel_values_videos=frames_of(size), return_loss=True).loss.backward()
    assert not kept[0].requires_grad
    assert all(parameter.grad is None for parameter in model.video_model.backbone.parameters())
    assert model.video_model.region_projection.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["siglip", "timm_pe_core", "timm_vit"])
def test_checkpointed_activations_give_the_same_gradients(name):
    from .conftest import checkpoint_activations

    gradients = []
    for checkpointed in (False, True):
        model, size = backbone_model(name, codebook_size=0)
        randomize(model).train()
        if checkpointed:
            checkpoint_activations(model)
            timm_model = getattr(model.video_model.backbone, "timm_model", None)
            assert timm_model is None or timm_model.grad_checkpointing
        model(**texts(), pixel_values_videos=frames_of(size), return_loss=True).loss.backward()
        gradients.append(
            [parameter.grad for parameter in model.video_model.parameters() if parameter.grad is not None]
        )
    for plain, checkpointed in zip(*gradients, strict=True):
        close(checkpointed, plain, 1e-4)


@pytest.mark.parametrize("name", ["siglip", "dinov2", "timm_vit", "timm_pe_core"])
def test_adapters_learn_in_a_backbone(name):
    from region_learner.training.adapters import merged, with_lora

    model, size = backbone_model(name)
    randomize(model)
    adapted = with_lora(model, {"r": 2}).train()
    names = {key for key, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert any("backbone" in key and "lora_A" in key for key in names)
    for part in ("region_module", "region_projection", "temporal_embeddings"):
        assert any(part in key for key in names), part
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 0.1)
    for _ in range(2):  # LoRA's B starts at zero, so A only learns from the second step on
        adapted(**texts(), pixel_values_videos=frames_of(size), return_loss=True).loss.backward()
        without = [key for key, p in adapted.named_parameters() if p.requires_grad and p.grad is None]
        assert not [key for key in without if "backbone" in key]
        optimizer.step()
    with torch.no_grad():
        expected = adapted.eval()(pixel_values_videos=frames_of(size)).video_embeds
        close(merged(adapted)(pixel_values_videos=frames_of(size)).video_embeds, expected, 1e-4)


@pytest.mark.parametrize(("name", "first", "last"), [
    ("clip", "video_model.backbone.encoder.layers.0.", "video_model.backbone.encoder.layers.1."),
    ("dinov3", None, None),
    ("timm_vit", "video_model.backbone.timm_model.patch_embed.", "video_model.backbone.timm_model.blocks.0."),
])  # fmt: skip
def test_layer_decay_of_a_backbone(name, first, last, tmp_path):
    from region_learner import RegionLearnerTrainingArguments
    from region_learner.training.optimization import parameter_groups

    model, _ = backbone_model(name)
    args = RegionLearnerTrainingArguments(
        output_dir=str(tmp_path), learning_rate=1.0, video_learning_rate=0.1, layer_decay=0.5, use_cpu=True
    )
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in parameter_groups(model, args, []) for p in group["params"]}
    assert rates["video_model.temporal_embeddings"] == rates["video_model.region_projection.weight"] == 1.0
    if first is None:
        by_depth = sorted({rate for key, rate in rates.items() if ".backbone." in key})
        assert by_depth == [0.0125, 0.025, 0.05, 0.1]
        return

    def of(prefix: str) -> set[float]:
        return {rate for key, rate in rates.items() if key.replace("vision_model.", "").startswith(prefix)}

    assert of(last) == {0.05}
    assert of(first) == {0.025}


@pytest.mark.parametrize("with_bias", [False, True])
def test_new_projections_have_the_rate_of_new_weights(with_bias, checkpoints, tmp_path):
    from region_learner import RegionLearnerTrainingArguments
    from region_learner.training.optimization import parameter_groups

    model = backbone_model("clip")[0] if with_bias else from_pretrained_towers(checkpoints("clip")[0])
    args = RegionLearnerTrainingArguments(
        output_dir=str(tmp_path), learning_rate=1.0, video_learning_rate=0.1, text_learning_rate=0.2, use_cpu=True
    )
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in parameter_groups(model, args, []) for p in group["params"]}
    assert rates["video_projection.weight"] == (1.0 if with_bias else 0.1)
    assert rates["text_projection.weight"] == (1.0 if with_bias else 0.2)
    pytest.importorskip("peft")
    from region_learner.training.adapters import with_lora

    adapted = with_lora(model, {"r": 2})
    names = {id(parameter): key for key, parameter in adapted.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in parameter_groups(adapted, args, []) for p in group["params"]}
    (of_projection,) = {rate for name, rate in rates.items() if "video_projection" in name and name.endswith("weight")}
    assert of_projection == (1.0 if with_bias else 0.1)


def test_positions_and_tokens_of_a_backbone_have_no_weight_decay(tmp_path):
    from region_learner import RegionLearnerTrainingArguments
    from region_learner.training.optimization import parameter_groups

    args = RegionLearnerTrainingArguments(output_dir=str(tmp_path), weight_decay=0.5, use_cpu=True)
    for name in ("dinov3", "timm_dinov3", "timm_pe_core"):
        model, _ = backbone_model(name)
        names = {id(parameter): key for key, parameter in model.named_parameters()}
        groups = parameter_groups(model, args, list(names.values()))
        decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
        assert not [key for key in decayed if key.endswith(("pos_embed", "cls_token", "reg_token", "register_tokens"))]


def test_layer_decay_needs_one_sequence_of_blocks(tmp_path):
    from region_learner import RegionLearnerTrainingArguments
    from region_learner.training.optimization import parameter_groups

    model, _ = backbone_model("timm_swin")
    args = RegionLearnerTrainingArguments(output_dir=str(tmp_path), layer_decay=0.5, use_cpu=True)
    with pytest.raises(
        ValueError, match="layer_decay needs towers with one sequence of blocks, but video_model has several"
    ):
        parameter_groups(model, args, [])


# Without the package


WITHOUT_PACKAGE = """
import json, sys
sys.modules["region_learner"] = None
if sys.argv[2:]:
    sys.modules[sys.argv[2]] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

torch.set_num_threads(1)
for folder in json.loads(sys.argv[1]):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    inputs = load_file(f"{folder}/inputs.safetensors")
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    except (OSError, ValueError):
        processor = None
    if processor is not None:
        inputs["input_ids"] = processor(text=["two blue disks"])["input_ids"]
    with torch.no_grad():
        outputs = model(**inputs)
    save_file({"video": outputs.video_embeds, "text": outputs.text_embeds}, f"{folder}/outputs.safetensors")
"""


def run_without_package(*arguments: str, environment: dict, check: bool = True) -> subprocess.CompletedProcess:
    done = run_fresh(WITHOUT_PACKAGE, *arguments, environment=environment)
    assert not check or done.returncode == 0, done.stderr
    return done


def test_checkpoints_load_without_the_package(checkpoints, tmp_path):
    import os

    from safetensors.torch import load_file, save_file

    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    expected = {}
    for name in [*FAMILIES, "dinov3", "timm_pe_core"]:
        if name in FAMILIES:
            model = randomize(from_pretrained_towers(checkpoints(name)[0], region_form="decoupled", **REGIONS))
            processor, size = processor_from_towers(checkpoints(name)[0]), (32, 32)
            processor.save_pretrained(tmp_path / name)
            tokens = processor(text=["two blue disks"])["input_ids"]
        else:
            model, size = backbone_model(name)
            tokens = texts(1)["input_ids"]
        model.save_pretrained(tmp_path / name)
        inputs = {"pixel_values_videos": frames_of(size), "input_ids": tokens}
        save_file(inputs, tmp_path / name / "inputs.safetensors")
        with torch.no_grad():
            expected[name] = model(**inputs)
    folders = [str(tmp_path / name) for name in expected]
    run_without_package(json.dumps(folders), environment=environment)
    for name, outputs in expected.items():
        found = load_file(tmp_path / name / "outputs.safetensors")
        close(found["video"], outputs.video_embeds)
        close(found["text"], outputs.text_embeds)
    failed = run_without_package(json.dumps(folders[-1:]), "timm", environment=environment, check=False)
    assert "requires the timm library" in failed.stderr


@pytest.mark.slow
@torch.no_grad()
def test_compiled_backbones():
    for name in ("clip", "siglip", "siglip2_naflex", "dinov3", "timm_pe_core"):
        model, size = backbone_model(name)
        randomize(model)
        compiled = torch.compile(model.video_model, fullgraph=True, backend="eager")
        close(compiled(frames_of(size)).pooler_output, model.video_model(frames_of(size)).pooler_output, 1e-4)


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov3", "timm_pe_core", "timm_eva02"])
def test_features_can_replace_frames(name):
    model, size = backbone_model(name)
    randomize(model)
    clip = frames_of(size)
    expected = model(**texts(), pixel_values_videos=clip, return_loss=True)
    if name == "timm_eva02":
        model.config.video_config.image_size = list(size)
    with torch.no_grad():
        features = model.video_model.encode_frames(clip)
    outputs = model(**texts(), pixel_values_videos=features, return_loss=True)
    close(outputs.loss, expected.loss)
    close(outputs.video_model_output.region_masks, expected.video_model_output.region_masks, 1e-4)
    of = [parameter for key, parameter in model.named_parameters() if "backbone" not in key]
    for ours, theirs in zip(*(torch.autograd.grad(x.loss, of, allow_unused=True) for x in (outputs, expected))):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            close(ours, theirs, 1e-4)
    with pytest.raises(ValueError, match=r"Images are clips of one frame|images are clips of one frame"):
        model(pixel_values_videos=clip[:, 0])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_real_clips_through_the_whole_path(checkpoints, shared_data, tmp_path):
    """Runs the commands of docs/regions_on_your_data.md: zero-shot, fine-tuned, and with regions."""
    videos = tmp_path / "videos"
    (videos / "train").mkdir(parents=True)
    (videos / "test").mkdir()
    source = shared_data / "real_clips"
    rows = [json.loads(line) for line in (source / "metadata.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        split = videos / ("test" if number % 4 == 0 else "train")
        (split / Path(row["file_name"]).name).symlink_to(source / row["file_name"])
        with open(split / "metadata.jsonl", "a") as file:
            file.write(json.dumps({"file_name": Path(row["file_name"]).name, "text": row["text"]}) + "\n")
    folder, _ = checkpoints("siglip2")
    test = ["--data-dir", str(videos), "--split", "test", "--output", str(tmp_path / "zero_shot.json")]
    run("evaluate", str(folder), *test, "--num-frames", "4")
    zero_shot = json.loads((tmp_path / "zero_shot.json").read_text())
    assert zero_shot["data"]["videos"] == len(rows[::4])
    assert zero_shot["data"]["unreadable"] == []
    for name, options in (
        ("plain", []),
        ("regions", ["--region-form=decoupled", "--video_config", json.dumps(REGIONS)]),
    ):
        output = tmp_path / name
        arguments = ["--model", str(folder), "--data-dir", str(videos), "--output-dir", str(output), "--num-frames=4"]
        training = [argument for argument in TRAINING if not argument.startswith(("--max_steps", "--num_frames"))]
        more = ["--num-train-epochs=3", "--test-split=test", "--learning-rate=3e-3", "--warmup-steps=5"]
        run("train", "finetune_folder", *arguments, *training, *more, "--dataloader_num_workers=2", *options)
        results = json.loads((output / "results.json").read_text())
        losses = [entry["loss"] for entry in results["log"] if "loss" in entry]
        assert losses[-1] < losses[0]
        run("evaluate", str(output), *test[:-1], str(tmp_path / f"{name}.json"))
        again = json.loads((tmp_path / f"{name}.json").read_text())["metrics"]
        assert again["t2v_R@1"] == pytest.approx(results["test"]["t2v_R@1"])
    picture = tmp_path / "regions.png"
    video = next((videos / "test").glob("*.mp4"))
    run("regions", str(tmp_path / "regions"), str(video), "--output", str(picture))
    assert Image.open(picture).width > 100

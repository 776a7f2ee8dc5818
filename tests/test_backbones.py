"""Image models as backbones, and CLIP-like checkpoints as models of videos: the table of docs/backbones.md."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CONFIG_MAPPING,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
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
from region_learner.loading import load_checkpoint

from .conftest import NO_REGIONS, clips, randomize, texts, tiny_text_config

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
    """As in the files of SigLIP 2: upper case is in its vocabulary, but the model never saw any."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, *LETTERS.upper(), "▁", "!"]
    vocab = {token: i for i, token in enumerate(tokens)}
    options = {"add_bos_token": False, "add_eos_token": True, "padding_side": "right", "model_max_length": 32}
    return GemmaTokenizer(vocab=vocab, merges=[], **options)


@dataclasses.dataclass
class Family:
    """How the files of a family of checkpoints are made."""

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
    text = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "pad_token_id": tokenizer.pad_token_id}
    options = {}
    if family.model_type.startswith("siglip"):
        text |= {"projection_size": SIZES["hidden_size"]}
    else:
        text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
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
    """Directories and models of checkpoints by family, made when asked for."""
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
    """The normalized embeddings of images and `CAPTIONS` by the original model's own processor and code."""
    inputs = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    captions = CAPTIONS
    if isinstance(tokenizer, GemmaTokenizer) and not isinstance(tokenizer, Siglip2Tokenizer):
        captions = [caption.lower() for caption in CAPTIONS]  # as SigLIP 2's documentation asks
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
@pytest.mark.parametrize("regions", [{}, {"region_form": "decoupled", **REGIONS}], ids=["alone", "with_regions"])
def test_embeddings_are_those_of_the_original(checkpoints, family, regions, tmp_path):
    folder, original = checkpoints(family)
    model, processor = from_pretrained_towers(folder, **regions), processor_from_towers(folder)
    images = [picture(seed, *((50, 50) if family == "siglip2_naflex" else (50, 70))) for seed in range(3)]
    expected = list(original_embeddings(folder, original, images))
    assert (expected[1][0] - expected[1][2]).abs().max() > 0.05  # texts do matter
    for ours, theirs in zip(our_embeddings(model, processor, images), expected):
        close(ours, theirs)
    assert (model.video_model.region_module is not None) == bool(regions)

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = RegionLearnerModel.from_pretrained(tmp_path), RegionLearnerProcessor.from_pretrained(tmp_path)
    for ours, theirs in zip(our_embeddings(*again, images), expected):
        close(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_are_those_of_the_original(checkpoints, family):
    folder, original = checkpoints(family)
    images = [picture(seed) for seed in range(3)]
    image, text = original_embeddings(folder, original, images)
    expected = image @ text.T * original.logit_scale.exp()
    if family.startswith("siglip"):
        expected = expected + original.logit_bias
    model = from_pretrained_towers(folder)
    close(model(**processor_from_towers(folder)(images=images, text=CAPTIONS)).logits_per_video, expected, 1e-4)


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
    run("evaluate", str(folder), *arguments)
    results = json.loads(output.read_text())
    assert results["protocol"]["frames"] == 12
    assert results["model"]["config"]["temporal_fusion"] == "pool"
    assert 0 <= results["metrics"]["t2v_R@1"] <= 100


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("regions", [False, True], ids=["alone", "with_regions"])
def test_train_fine_tunes(checkpoints, corpus, family, regions, tmp_path):
    folder, _ = checkpoints(family)
    options = ["--video_config", json.dumps({"region_form": "decoupled", **REGIONS})] if regions else []
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
    parts = {"video_model.backbone", "text_model", "logit_scale"} | ({"video_model.region_projection"} if regions else set())
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
    "timm_swin": ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2, "depths": (1, 1, 1, 1)}, (64, 64)),
}

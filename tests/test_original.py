"""Tests equality with the reference implementation, from its outputs for three checkpoints in `fixtures/original`."""

import copy
import json
import logging
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import load_file

from region_learner.conversion import convert_original_checkpoint
from region_learner.conversion.original import (
    _HEAD_NAMES,
    _REGION_NAMES,
    VIT_NAMES,
    read_checkpoint,
    rename,
    split_qkv,
)
from region_learner.evaluation import region_report
from region_learner.loading import load_checkpoint
from region_learner.training.tokenizer import train_tokenizer

from .conftest import FIXTURES

CASES = ["frozen_in_time", "region_learner", "region_learner_motion"]
BUFFERS = ["embed", "cluster_size", "cluster_sum", "embed_avg"]


def convert(case: str, **options):
    sizes = json.loads((FIXTURES / f"{case}.json").read_text())
    return convert_original_checkpoint(
        FIXTURES / f"{case}.pth",
        num_attention_heads=sizes["num_attention_heads"],
        text_config=sizes["text"],
        **options,
    )


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def model(case):
    return convert(case)


@pytest.fixture(scope="module")
def recorded(case):
    return load_file(FIXTURES / f"{case}.safetensors")


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_evaluation(model, recorded, frames):
    theirs = {k.removeprefix(f"f{frames}."): v for k, v in recorded.items() if k.startswith(f"f{frames}.")}
    text = {"input_ids": recorded["input_ids"], "attention_mask": recorded["attention_mask"]}
    with torch.no_grad():
        outputs = model(**text, pixel_values_videos=theirs["pixel_values"], return_loss=True)
        video_embeds = model.get_video_features(theirs["pixel_values"]).pooler_output
        text_embeds = model.get_text_features(**text).pooler_output
    video = outputs.video_model_output
    close(video.pooler_output, theirs["video_features"])
    close(video_embeds, theirs["video_embeds"])
    close(text_embeds, theirs["text_embeds"])
    close(outputs.logits_per_text * model.config.temperature, theirs["similarity_text_by_video"])
    close(outputs.loss, theirs["loss"])
    if "cluster_index" in theirs:
        assert torch.equal(video.cluster_ids.flatten(0, 1), theirs["cluster_index"])
        close(video.region_masks.flatten(0, 1), theirs["region_mask"])
    else:
        assert video.cluster_ids is video.region_masks is video.region_states is None


def our_name(name: str) -> str:
    if name.startswith("video_model."):
        return "video_model." + rename(name.removeprefix("video_model."), VIT_NAMES | _REGION_NAMES)
    return rename(name, _HEAD_NAMES)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_training_step(model, recorded, frames):
    theirs = {k.removeprefix(f"f{frames}."): v for k, v in recorded.items() if k.startswith(f"f{frames}.")}
    model = copy.deepcopy(model).train()
    model.text_model.eval()
    text = {"input_ids": recorded["input_ids"], "attention_mask": recorded["attention_mask"]}
    outputs = model(**text, pixel_values_videos=theirs["pixel_values"], return_loss=True)
    outputs.loss.backward()
    close(outputs.loss, theirs["train.loss"])
    parameters = dict(model.named_parameters())
    gradients = {k.removeprefix("train.grad."): v for k, v in theirs.items() if k.startswith("train.grad.")}
    assert len(gradients) >= 11
    gradients = split_qkv({our_name(name): gradient for name, gradient in gradients.items()})
    for name, reference in gradients.items():
        gradient = parameters[name].grad
        if name.endswith("motion_excitation.conv.bias"):
            # A softmax over positions cancels this bias: its gradient is 0, and the recorded one is rounding.
            assert reference.norm() < 1e-6
            assert gradient.norm() < 1e-6
        else:
            assert (gradient - reference).norm() / reference.norm() < 1e-5, name
    if "train.after.embed" in theirs:
        assert torch.equal(outputs.video_model_output.cluster_ids.flatten(0, 1), theirs["cluster_index"])
        for name in BUFFERS:
            close(getattr(model.video_model.region_module.quantizer, name), theirs[f"train.after.{name}"])


def test_sizes_come_from_the_weights():
    sizes = json.loads((FIXTURES / "region_learner_motion.json").read_text())
    config = convert("region_learner_motion").config
    for name in ("hidden_size", "num_hidden_layers", "image_size", "patch_size", "num_frames", "codebook_size"):
        assert getattr(config.video_config, name) == sizes[name], name
    assert config.video_config.num_regions == sizes["num_regions"]
    assert config.video_config.interaction_layers == 1
    assert config.video_config.motion_excitation
    assert config.video_config.codebook_mode == "original"
    assert config.video_config.resolved.codebook_decay == 0.1
    assert config.projection_dim == sizes["projection_dim"]
    assert config.text_config.dim == sizes["text"]["dim"]


def test_late_fusion(tmp_path):
    """Late fusion has the original's weights and computes the original's function of the encoded frames."""
    state = {name.removeprefix("module."): tensor for name, tensor in _tensors("region_learner").items()}
    width = state["video_model.cls_token"].shape[-1]
    weight, bias = torch.randn(width, 4 * width) / width**0.5, torch.randn(width)
    state |= {"video_model.late_temporal_fusion.weight": weight, "video_model.late_temporal_fusion.bias": bias}
    torch.save({"state_dict": state}, tmp_path / "late.pth")
    sizes = json.loads((FIXTURES / "region_learner.json").read_text())
    options = {"num_attention_heads": sizes["num_attention_heads"], "text_config": sizes["text"]}
    linear = convert_original_checkpoint(tmp_path / "late.pth", **options).video_model
    assert linear.config.temporal_fusion == "linear"
    pool = convert("region_learner", temporal_fusion="pool").video_model
    attention = convert("region_learner").video_model
    videos = torch.randn(2, 4, 3, sizes["image_size"], sizes["image_size"])
    with torch.no_grad():
        outputs = linear(videos)
        # The features of each frame: frames are encoded separately, and their regions interact across frames.
        frames, regions = outputs.last_hidden_state.split([4, 4 * sizes["num_regions"]], dim=1)
        features = frames + regions.unflatten(1, (4, -1)).mean(2)
        close(outputs.pooler_output, features.flatten(1) @ weight.T + bias)
        close(pool(videos).pooler_output, features.mean(1))
        close(frames[:, 1], attention(videos[:, 1:2]).last_hidden_state[:, 0])


def test_settings_not_in_the_weights_default_to_the_original():
    config = convert_original_checkpoint(
        FIXTURES / "frozen_in_time.pth", num_attention_heads=4, text_config={"n_heads": 4}
    ).config
    assert (config.text_config.n_layers, config.text_config.dim, config.text_config.hidden_dim) == (2, 32, 64)
    assert config.temperature == 0.05
    assert config.video_config.resolved.video_pooling == "cls"


def test_overrides_and_their_errors():
    assert convert("region_learner", temperature=0.07, interaction_heads=4).config.temperature == 0.07
    with pytest.raises(ValueError, match=r"'interaction_head'.*did you mean 'interaction_heads'"):
        convert("region_learner", interaction_head=4)
    with pytest.raises(ValueError, match="do not fit"):
        convert("region_learner", codebook_size=8)


class Thief:
    """An object in a hostile checkpoint that names a function to call when it is unpickled."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [exec, __import__("os").system, __import__("pathlib").Path.touch])
def test_nothing_in_a_checkpoint_is_run(tmp_path, function):
    proof = tmp_path / "proof"
    argument = {"exec": f"open({str(proof)!r}, 'w')", "system": f"touch {proof}"}.get(function.__name__, proof)
    state = _tensors("frozen_in_time")
    path = tmp_path / "hostile.pth"
    torch.save({"state_dict": state, "config": Thief(function, argument)}, path)
    try:
        tensors = read_checkpoint(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017 - either refusing or ignoring the call is right
    else:
        assert tensors.keys() == {k.removeprefix("module.") for k in state}
    assert not proof.exists()
    with zipfile.ZipFile(path) as archive:  # the call is in the file:
        data = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        assert function.__name__.encode() in archive.read(data)


def _tensors(case: str) -> dict[str, torch.Tensor]:
    path = FIXTURES / f"{case}.pth"
    return torch.load(path, weights_only=False, pickle_module=_stub_pickle())["state_dict"]


def _stub_pickle():
    """Returns a pickle module that replaces the class that the fixtures name, which does not exist."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            return type(name, (), {}) if module == "parse_config" else super().find_class(module, name)

    class Module:
        load = staticmethod(pickle.load)

    Module.Unpickler = Unpickler
    return Module


def test_files_that_are_not_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        convert_original_checkpoint(tmp_path / "missing.pth")
    path = tmp_path / "noise.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"noise\.pth cannot be read"):
        convert_original_checkpoint(path)
    torch.save({"state_dict": {"a.b": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match=r"the reference implementation does not have: a\.b"):
        convert_original_checkpoint(path)
    state = {name: tensor for name, tensor in _tensors("frozen_in_time").items() if "temporal_embed" not in name}
    torch.save({"state_dict": state}, path)
    with pytest.raises(ValueError, match=r"noise\.pth is not a complete dual encoder: it lacks 'embeddings.temporal"):
        convert_original_checkpoint(path)
    torch.save({"state_dict": _tensors("frozen_in_time")}, path, _use_new_zipfile_serialization=False)
    assert convert_original_checkpoint(path, num_attention_heads=4, text_config={"n_heads": 4}) is not None
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="no `state_dict` of tensors"):
        convert_original_checkpoint(path)


# The converted checkpoint


def test_an_existing_checkpoint_is_not_overwritten(tmp_path):
    convert("frozen_in_time", output_dir=tmp_path / "new")
    before = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    with pytest.raises(FileExistsError, match=r"new already contains a checkpoint \(.*\): choose another directory"):
        convert("region_learner", output_dir=tmp_path / "new")
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == before
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file: name a directory"):
        convert("frozen_in_time", output_dir=tmp_path / "file")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").touch()
    convert("frozen_in_time", output_dir=tmp_path / "notes")


def test_a_tokenizer_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    its = train_tokenizer([f"word{i}" for i in range(3000)], 2000, 16)
    with pytest.raises(ValueError, match="tokens up to id 1,999, but the text tower"):
        convert("frozen_in_time", output_dir=tmp_path / "new", tokenizer=its)
    assert not (tmp_path / "new").exists()


def test_the_usual_tokenizer_is_used_if_it_fits(tmp_path, monkeypatch):
    """The authors' text tower is a DistilBERT with the vocabulary of distilbert-base-uncased."""
    state = read_checkpoint(FIXTURES / "frozen_in_time.pth")
    words = "text_model.embeddings.word_embeddings.weight"
    state[words] = torch.randn(30522, state[words].shape[1])
    torch.save(state, tmp_path / "usual.pth")
    asked = []

    def from_pretrained(name):
        asked.append(name)
        return train_tokenizer(["a red square"], 50, 16)

    monkeypatch.setattr("region_learner.conversion.original.AutoTokenizer.from_pretrained", from_pretrained)
    options = {"num_attention_heads": 4, "text_config": {"n_heads": 4}}
    convert_original_checkpoint(tmp_path / "usual.pth", tmp_path / "new", **options)
    assert asked == ["distilbert-base-uncased"]
    assert (tmp_path / "new" / "tokenizer.json").is_file()
    assert convert("frozen_in_time", output_dir=tmp_path / "other") is not None  # it has another vocabulary
    assert len(asked) == 1


def test_a_checkpoint_without_a_tokenizer(tmp_path, caplog):
    """Converting warns about it, regions can be computed, and loading for retrieval says how to add a tokenizer."""
    with caplog.at_level(logging.WARNING, logger="region_learner"):
        convert("region_learner", output_dir=tmp_path)
    assert "saved without a tokenizer" in caplog.text
    model, processor = load_checkpoint(str(tmp_path), None)
    clip = torch.zeros(4, 3, 40, 50, dtype=torch.uint8)
    report = region_report(model, processor(videos=[clip], return_tensors="pt")["pixel_values_videos"])
    assert report["regions"]
    with pytest.raises(ValueError, match=r"has no tokenizer, .*: convert it again with --tokenizer, or .*save_pre"):
        load_checkpoint(str(tmp_path), "retrieval")
    train_tokenizer(["a red square"], 50, 16).save_pretrained(tmp_path)  # as the message says
    assert load_checkpoint(str(tmp_path), "retrieval")[1](text="a red square")["input_ids"].shape[0] == 1
    (tmp_path / "tokenizer.json").write_text("{")  # other errors keep their message
    with pytest.raises(Exception, match=r"^(?!.*has no tokenizer)"):
        load_checkpoint(str(tmp_path), "retrieval")

"""Tests of the heads: video classification, and question answering over an answer vocabulary."""

import copy
import json
import logging

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForVideoClassification,
    AutoModelForVisualQuestionAnswering,
    pipeline,
)
from transformers.utils.logging import warning_once

from region_learner import (
    RegionLearnerForVideoClassification,
    RegionLearnerForVideoQuestionAnswering,
    RegionLearnerModel,
    RegionLearnerVideoProcessor,
)
from region_learner.modeling_region_learner import RegionLearnerPreTrainedModel

from .conftest import NO_REGIONS, checkpoint_activations, clips, randomize, texts, tiny_model, tiny_video_model
from .test_hub import run_python

CLASSIFICATION, ANSWERS = RegionLearnerForVideoClassification, RegionLearnerForVideoQuestionAnswering
HEADS = [CLASSIFICATION, ANSWERS]
AUTO = {CLASSIFICATION: AutoModelForVideoClassification, ANSWERS: AutoModelForVisualQuestionAnswering}
NAMES = ["red", "green", "blue", "yellow", "black"]


def tiny_head(kind: type, seed: int = 0, **options) -> RegionLearnerPreTrainedModel:
    config = tiny_model(**options).config
    config.id2label = dict(enumerate(NAMES))
    config.label2id = {name: i for i, name in enumerate(NAMES)}
    return randomize(kind(config), seed).eval()


def inputs(kind: type, batch: int = 4, **more) -> dict[str, torch.Tensor]:
    return ({} if kind is CLASSIFICATION else texts(batch)) | {"pixel_values_videos": clips(batch)} | more


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_logits_match_a_naive_implementation(kind):
    model = tiny_head(kind)
    frame_mask = torch.ones(4, 4)
    frame_mask[1, 2:] = 0
    outputs = model(**inputs(kind, frame_mask=frame_mask))
    video = model.video_model(clips(4), frame_mask=frame_mask).pooler_output
    if kind is CLASSIFICATION:
        expected = [[float(v @ w) + float(b) for w, b in zip(*model.classifier.parameters())] for v in video]
    else:
        text = model.text_model(**texts(4)).last_hidden_state[:, 0]
        question = F.linear(text.clamp(min=0), model.text_projection.weight, model.text_projection.bias)
        video = F.linear(video, model.video_projection.weight, model.video_projection.bias)
        head, expected = model.classifier, []
        for q, v in zip(question, video):
            sides = []
            for x, layer in ((q, head.question_projection), (v, head.video_projection)):
                weight = layer.scale * layer.weight / layer.weight.square().sum().sqrt()
                sides.append((weight @ x + layer.bias).clamp(min=0))
            hidden = (head.fc1.weight @ (sides[0] * sides[1]) + head.fc1.bias).clamp(min=0)
            assert hidden.shape == (2 * 16,)
            expected.append((head.fc2.weight @ hidden + head.fc2.bias).tolist())
    assert outputs.loss is None
    torch.testing.assert_close(outputs.logits, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert outputs.logits.std() > 0.01


@torch.no_grad()
def test_embeddings_of_question_answering_are_those_of_the_dual_encoder():
    dual, model = tiny_model(seed=3), tiny_head(ANSWERS)
    model.load_state_dict(dual.state_dict(), strict=False)
    outputs = model(**inputs(ANSWERS, 2))
    torch.testing.assert_close(
        outputs.text_model_output.pooler_output, dual.get_text_features(**texts()).pooler_output
    )
    video = dual.get_video_features(clips()).pooler_output
    torch.testing.assert_close(outputs.video_model_output.pooler_output, video)
    assert outputs.video_model_output.region_masks is not None


@pytest.mark.parametrize("kind", HEADS)
def test_labels_that_are_ignored(kind):
    labels = torch.tensor([2, -100, 4, -1])
    for weight in (0.0, 0.5):
        model = tiny_head(kind, region_options={"mask_loss_weight": weight})
        outputs = model(**inputs(kind, labels=labels))
        expected = -sum(outputs.logits[i].log_softmax(0)[labels[i]] for i in (0, 2)) / 2
        if weight:  # a clip of an unknown class (-1) still counts here
            regions = model.video_model(inputs(kind)["pixel_values_videos"]).region_loss
            expected = expected + weight * regions[[0, 2, 3]].mean()
        torch.testing.assert_close(outputs.loss, expected)
    model = tiny_head(kind, region_options={"mask_loss_weight": 0.0})
    nothing = model(**inputs(kind, labels=torch.tensor([-1, -100, -1, -1]))).loss
    nothing.backward()
    assert nothing == 0
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)
    with pytest.raises(IndexError):
        model(**inputs(kind, labels=torch.tensor([0, 1, 5, 2])))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"learn_temperature": True},
        {"loss": "sigmoid", "codebook_size": 0},
        NO_REGIONS,
        {"temporal_fusion": "linear"},
        {"temporal_fusion": "pool"},
    ],
)
@pytest.mark.parametrize("kind", HEADS)
def test_every_parameter_gets_a_gradient(kind, options, checkpointing):
    model = tiny_head(kind, **options).train()
    if checkpointing:
        checkpoint_activations(model)
    model(**inputs(kind, labels=torch.tensor([0, 1, 2, 3]))).loss.backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert not {n for n in without if not n.endswith("k_lin.bias")}  # a softmax cancels these


@pytest.mark.parametrize("kind", HEADS)
def test_a_new_head_can_learn(kind):
    torch.manual_seed(0)
    model = kind(tiny_head(kind, region_options={"mask_loss_weight": 0.0}).config).train()
    logits = model(**inputs(kind)).logits
    assert logits.isfinite().all()
    if kind is ANSWERS:
        layer = model.classifier.question_projection
        x = torch.randn(100, 16)
        assert 0.5 < layer(x).std() < 2  # the scale of the input
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model(**inputs(kind, labels=torch.tensor([0, 1, 2, 3]))).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


WITH_TOKENS = {"token_dim": 8, "phrase_window": 3, "tube_mlp": True, "learn_temperature": True}


@pytest.mark.parametrize("options", [{}, {"learn_temperature": True, "loss": "sigmoid"}, WITH_TOKENS])
@pytest.mark.parametrize("kind", HEADS)
def test_from_a_dual_encoder_only_the_head_is_new(kind, options, tmp_path, caplog, monkeypatch):
    dual = tiny_model(seed=5, **options)
    dual.save_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model, info = kind.from_pretrained(
        tmp_path, id2label=dict(enumerate(NAMES)), label2id={}, output_loading_info=True
    )
    assert {key.partition(".")[0] for key in info["missing_keys"]} == {"classifier"}
    assert not info["mismatched_keys"]
    assert not info["unexpected_keys"]
    theirs, own = dual.state_dict(), model.state_dict()
    for name, tensor in own.items():
        if not name.startswith("classifier."):
            assert torch.equal(tensor, theirs[name]), name
    left_out = theirs.keys() - own.keys()
    towers = {"text_model", "text_projection", "video_projection"} if kind is CLASSIFICATION else set()
    if kind is CLASSIFICATION and "phrase_window" in options:
        towers |= {"phrases", "phrase_mlp", "tube_mlp"}
    of_similarities = {"logit_scale", "logit_bias", "token_logit_scale", "text_tokens", "video_tokens"}
    assert {name.partition(".")[0] for name in left_out} - of_similarities == towers
    assert model.config.num_labels == 5
    assert model.config.id2label[4] == "black"
    assert model(**inputs(kind)).logits.shape == (4, 5)
    assert "classifier" in caplog.text
    assert "UNEXPECTED" not in caplog.text  # no message that would worry users
    # The vocabulary may have another size.
    assert kind.from_pretrained(tmp_path, num_labels=11)(**inputs(kind)).logits.shape == (4, 11)


@pytest.mark.parametrize("kind", HEADS)
def test_saved_and_loaded(kind, tmp_path):
    model = tiny_head(kind)
    model.save_pretrained(tmp_path)
    again, info = AUTO[kind].from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is kind
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.label2id == {name: i for i, name in enumerate(NAMES)}
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [kind.__name__]
    assert config["auto_map"][AUTO[kind].__name__] == f"modeling_region_learner.{kind.__name__}"
    assert isinstance(AutoModel.from_config(AutoConfig.from_pretrained(tmp_path)), RegionLearnerModel)
    half = kind.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.video_model.region_module.quantizer.embed.dtype == torch.float32
    assert half(**inputs(kind)).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_attention_implementations_and_more_frames(kind):
    model = tiny_head(kind)
    by_sdpa = model(**inputs(kind)).logits
    assert model.config._attn_implementation == "sdpa"
    more = model.resize_frames(6)
    assert more.config.video_config.num_frames == 6
    torch.testing.assert_close(more(**inputs(kind)).logits, by_sdpa)
    model.set_attn_implementation("eager")
    outputs = model(**inputs(kind), output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(outputs.logits, by_sdpa, rtol=1e-4, atol=1e-4)
    video = outputs if kind is CLASSIFICATION else outputs.video_model_output
    assert (len(video.attentions), len(video.hidden_states)) == (2, 3)


@pytest.mark.parametrize("build", [tiny_model, tiny_video_model, lambda: tiny_head(CLASSIFICATION)])
def test_input_embeddings_can_be_replaced(build):
    model = build()
    new = copy.deepcopy(model.get_input_embeddings())
    with torch.no_grad():
        new.weight.zero_()
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new
    assert any(module is new for module in model.modules())


@pytest.mark.parametrize("kind", HEADS)
def test_frames_of_another_size(kind):
    model = tiny_head(kind)
    larger = inputs(kind) | {"pixel_values_videos": clips(4, size=48)}
    with pytest.raises(ValueError, match="48 x 48 pixels, but the model takes 32 x 32"):
        model(**larger)
    assert model(**larger, interpolate_pos_encoding=True).logits.shape == (4, 5)


@pytest.mark.parametrize("kind", [*HEADS, RegionLearnerModel])
@torch.no_grad()
def test_return_dict_of_the_configuration(kind):
    """The `return_dict` of a tower's configuration does not affect the whole model."""
    model = tiny_head(kind, token_dim=8)
    expected = model(**inputs(kind))[0]
    model.config.video_config.return_dict = model.config.text_config.return_dict = False
    torch.testing.assert_close(model(**inputs(kind))[0], expected)
    model.config.return_dict = False
    outputs = model(**inputs(kind))
    assert isinstance(outputs, tuple)
    torch.testing.assert_close(outputs[0], expected)


@pytest.mark.parametrize("kind", HEADS)
def test_what_a_head_leaves_out_is_reported(kind, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    warning_once.cache_clear()
    tiny_head(kind, token_dim=8)
    assert not caplog.text
    tiny_head(kind, token_dim=8, video_pooling="cls", tube_mlp=True)
    assert "The model does not use its 3 regions: video_pooling='cls' leaves them out" in caplog.text
    assert ("has no tube MLP" in caplog.text) == (kind is CLASSIFICATION)


def test_errors():
    config = tiny_model().config
    config.id2label = {}
    for kind in HEADS:
        with pytest.raises(ValueError, match="no classes: set num_labels or id2label"):
            kind(config)
    model = tiny_head(ANSWERS)
    with pytest.raises(ValueError, match="one video for each question: there are 3 questions and 2 videos"):
        model(**texts(3), pixel_values_videos=clips(2))
    with pytest.raises(ValueError, match="there are 0 questions and 2 videos"):
        model(pixel_values_videos=clips(2))


# `import region_learner` fails in this script. It loads models as remote code, runs and saves them, and trains heads.
WITHOUT_PACKAGE = """
import sys
sys.modules["region_learner"] = None

import json
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForVideoClassification, AutoModelForVisualQuestionAnswering

torch.set_num_threads(1)
work = sys.argv[1]
result, modules = {}, []
for auto_class in (AutoModelForVideoClassification, AutoModelForVisualQuestionAnswering):
    name = auto_class.__name__
    inputs = load_file(f"{work}/{name}.safetensors")
    try:
        auto_class.from_pretrained(f"{work}/{name}")
    except ValueError as error:
        assert "trust_remote_code=True" in str(error)
    else:
        raise AssertionError("loaded code without leave")
    model = auto_class.from_pretrained(f"{work}/{name}", trust_remote_code=True)
    modules.append(type(model).__module__)
    with torch.no_grad():
        result[name] = model(**inputs).logits
    model.save_pretrained(f"{work}/{name}-again")
    # The class of the code on a dual encoder's weights: the new head is initialized, the rest is loaded.
    torch.manual_seed(0)
    new, info = type(model).from_pretrained(f"{work}/dual", num_labels=3, output_loading_info=True)
    assert {key.partition(".")[0] for key in info["missing_keys"]} == {"classifier"}, info
    assert not info["unexpected_keys"], info
    new.train()(**inputs, labels=torch.zeros(len(result[name]), dtype=torch.long)).loss.backward()
    for key, parameter in new.named_parameters():
        if key.startswith("classifier"):
            assert parameter.isfinite().all() and (key.endswith("bias") or parameter.any()), key
save_file(result, f"{work}/result.safetensors")
with open(f"{work}/modules.json", "w") as file:
    json.dump(modules, file)
"""


def test_remote_code_without_the_package(tmp_path):
    from safetensors.torch import save_file

    expected = {}
    tiny_model(seed=5).save_pretrained(tmp_path / "dual")
    for kind, auto_class in AUTO.items():
        model = tiny_head(kind)
        model.save_pretrained(tmp_path / auto_class.__name__)
        save_file(inputs(kind), tmp_path / f"{auto_class.__name__}.safetensors")
        with torch.no_grad():
            expected[auto_class.__name__] = model(**inputs(kind)).logits
    run_python(WITHOUT_PACKAGE, str(tmp_path), home=tmp_path / "home", HF_HUB_OFFLINE="1")
    result = load_file(tmp_path / "result.safetensors")
    assert all(
        module.startswith("transformers_modules.") for module in json.loads((tmp_path / "modules.json").read_text())
    )
    for kind, auto_class in AUTO.items():
        name = auto_class.__name__
        assert torch.equal(result[name], expected[name])
        again = kind.from_pretrained(tmp_path / f"{name}-again")
        with torch.no_grad():
            assert torch.equal(again(**inputs(kind)).logits, expected[name])


PIPELINE = """
import sys
sys.modules["region_learner"] = None
import copy
import json
import logging
import torch
from transformers import pipeline
from transformers.utils.logging import get_logger

torch.set_num_threads(1)
said = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: said.append(record.getMessage())
get_logger("transformers").addHandler(handler)
classify = pipeline("video-classification", model=sys.argv[1], trust_remote_code=True)
assert not [message for message in said if "not supported" in message], said
result = {
    "module": type(classify.model).__module__,
    "all": classify(sys.argv[2], top_k=9),
    "two": classify([sys.argv[2], sys.argv[2]], num_frames=2, top_k=1),
}
with open(sys.argv[3], "w") as file:
    json.dump(result, file)
"""


@pytest.mark.parametrize("package", ["with the package", "without the package"])
def test_the_pipeline_of_transformers_classifies_a_file(package, tmp_path):
    """It returns `top_k` names and probabilities, from as many frames as the model has positions, or as requested."""
    model = tiny_head(CLASSIFICATION)
    model.save_pretrained(tmp_path / "model")
    processor = RegionLearnerVideoProcessor.for_image_size(32, num_frames=2)
    processor.save_pretrained(tmp_path / "model")
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
        for number in range(12):
            frame = np.full((40, 48, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    if package == "with the package":
        classify = pipeline("video-classification", model=str(tmp_path / "model"))
        assert type(classify.model) is CLASSIFICATION
        result = {"all": classify(str(clip), top_k=9), "two": classify([str(clip)] * 2, num_frames=2, top_k=1)}
    else:
        output = tmp_path / "result.json"
        paths = (str(tmp_path / "model"), str(clip), str(output))
        run_python(PIPELINE, *paths, home=tmp_path / "home", HF_HUB_OFFLINE="1")
        result = json.loads(output.read_text())
        assert result["module"].startswith("transformers_modules.")

    for frames, found in ((4, result["all"]), (2, result["two"][0]), (2, result["two"][1])):
        with torch.no_grad():
            logits = model(**processor([str(clip)], num_frames=frames, return_tensors="pt")).logits[0]
        expected = sorted(zip(logits.softmax(-1).tolist(), NAMES), reverse=True)
        assert [entry["label"] for entry in found] == [name for _, name in expected][: len(found)]
        assert [entry["score"] for entry in found] == pytest.approx([score for score, _ in expected][: len(found)])
    assert len(result["all"]) == len(NAMES)

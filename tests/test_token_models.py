"""Tests models with word and region tokens in training, export, half precision, and with other numbers of frames."""

import json

import numpy as np
import pytest
import torch

from region_learner import RegionLearnerModel, RegionLearnerProcessor
from region_learner.conversion import from_pretrained_towers
from region_learner.evaluation import embed_corpus
from region_learner.training import RegionLearnerTrainer, RegionLearnerTrainingArguments, parse_arguments, train
from region_learner.training.adapters import with_lora
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .conftest import checkpoint_activations, clips, texts, tiny_model
from .test_training import TINY, corpus, rows  # noqa: F401

WITH_PHRASES = {"token_dim": 8, "phrase_window": 3}
LEARNED = WITH_PHRASES | {"learn_temperature": True, "token_temperature": 0.07, "token_loss_weight": 0.5}
FORMS = pytest.mark.parametrize("options", [{"token_dim": 8}, LEARNED], ids=["regions", "phrases"])


def test_a_run_with_tokens_keeps_the_best_checkpoint(corpus, tmp_path, capsys):  # noqa: F811
    """All token options reach the configuration, and evaluation during training uses single vectors."""
    argv = [
        *TINY, "--corpus=moving_shapes", f"--data_dir={corpus}", f"--output_dir={tmp_path / 'run'}",
        "--config", json.dumps(LEARNED), "--per_device_train_batch_size=6", "--num_train_epochs=2",
        "--eval_split=test", "--test_split=test", "--load_best_model_at_end=true",
        "--metric_for_best_model=t2v_MeanR", "--eval_strategy=epoch", "--save_strategy=epoch", "--logging_steps=1",
    ]  # fmt: skip
    results = train(*parse_arguments(argv))
    model = RegionLearnerModel.from_pretrained(tmp_path / "run")
    for name, value in LEARNED.items():
        assert getattr(model.config, name) == value
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    evaluated = [entry for entry in state["log_history"] if "eval_t2v_MeanR" in entry]
    assert len(evaluated) == 2
    assert not any("rr_" in name for entry in evaluated for name in entry)
    assert state["best_metric"] == min(entry["eval_t2v_MeanR"] for entry in evaluated)
    logged = [entry["token_temperature"] for entry in state["log_history"] if "token_temperature" in entry]
    assert logged[0] == pytest.approx(0.07, rel=0.05)
    assert logged[-1] != logged[0]  # the temperature is trained
    assert {f"rr_{name}" for name in ("t2v_R@1", "v2t_MeanR")} <= results["test"]["reranked"].keys()


def test_predictions_of_the_trainer_are_the_single_vectors(rows, tmp_path):  # noqa: F811
    tokenizer = train_tokenizer([text for some in rows["captions"] for text in some], 99, 32)
    processor = RegionLearnerProcessor(RegionLearnerVideoProcessor.for_image_size(32, num_frames=2), tokenizer)
    model = tiny_model(**LEARNED)
    args = RegionLearnerTrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", per_device_eval_batch_size=5, disable_tqdm=True
    )
    trainer = RegionLearnerTrainer(model, args, processing_class=processor, eval_dataset=rows)
    predicted = trainer.predict(rows).predictions
    assert len(predicted) == 2
    first = [row | {"captions": row["captions"][:1]} for row in rows.to_list()]
    embeddings = embed_corpus(model, processor, first, progress=False)
    np.testing.assert_allclose(predicted[0], embeddings.text_embeds, atol=1e-5)
    np.testing.assert_allclose(predicted[1], embeddings.video_embeds, atol=1e-5)


@FORMS
def test_resized_frames(options):
    model = tiny_model(**options)
    more = model.resize_frames(8)
    assert (
        more(pixel_values_videos=clips(frames=8)).video_token_embeds.shape[1]
        == 2 * model(pixel_values_videos=clips()).video_token_embeds.shape[1]
    )
    again = more.resize_frames(4)
    inputs = {**texts(), "pixel_values_videos": clips()}
    torch.testing.assert_close(again(**inputs).token_logits_per_text, model(**inputs).token_logits_per_text)


@FORMS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(options, dtype, tmp_path):
    model = tiny_model(**options)
    model.save_pretrained(tmp_path)
    half = RegionLearnerModel.from_pretrained(tmp_path, dtype=dtype).eval()
    with torch.no_grad():
        outputs = half(pixel_values_videos=clips().to(dtype), **texts())
        expected = model(pixel_values_videos=clips(), **texts())
    assert outputs.token_logits_per_text.dtype == outputs.video_token_embeds.dtype == torch.float32
    torch.testing.assert_close(outputs.token_logits_per_text, expected.token_logits_per_text, rtol=0.02, atol=0.1)


@FORMS
def test_activation_checkpointing_changes_nothing(options):
    models = [tiny_model(**options).train() for _ in range(2)]
    checkpoint_activations(models[1])
    for model in models:
        model(pixel_values_videos=clips(), **texts(), return_loss=True).loss.backward()
    for (name, one), (_, other) in zip(*(model.named_parameters() for model in models)):
        assert one.grad is not None, name
        torch.testing.assert_close(one.grad, other.grad, msg=name)


@FORMS
def test_export(options):
    model, inputs = tiny_model(**options), {**texts(), "pixel_values_videos": clips()}
    exported = torch.export.export(model, (), dict(inputs), strict=False).module()
    torch.testing.assert_close(exported(**inputs).token_logits_per_text, model(**inputs).token_logits_per_text)


def test_adapters_leave_tokens_trained_in_full():
    pytest.importorskip("peft")
    adapted = with_lora(tiny_model(**LEARNED), {"r": 2})
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    for part in ("video_tokens", "text_tokens", "phrases", "token_logit_scale"):
        assert any(part in name for name in trained), part
    inputs = {**texts(), "pixel_values_videos": clips()}
    torch.testing.assert_close(
        adapted.eval()(**inputs).token_logits_per_text, tiny_model(**LEARNED)(**inputs).token_logits_per_text
    )


def test_towers_with_tokens(tmp_path):
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(tmp_path / "vit")
    tiny_model().text_model.save_pretrained(tmp_path / "text")
    video = {"num_frames": 4, "num_regions": 3, "codebook_size": 16, "interaction_heads": 4}
    model = from_pretrained_towers(str(tmp_path / "vit"), str(tmp_path / "text"), video_config=video, **LEARNED).eval()
    outputs = model(pixel_values_videos=clips(), **texts(), return_loss=True)
    assert outputs.loss.isfinite()
    assert outputs.video_token_embeds.shape == (2, 12, 8)  # 4 frames with 3 regions each
    assert model.token_temperature.item() == pytest.approx(0.07)

"""Tests of what a card says about its own model: where it comes from, its energy use and its limits."""

import csv
import dataclasses
import json

import pytest
import yaml
from huggingface_hub import ModelCard

from region_learner.model_card import draft_card, emissions_of
from region_learner.training import RegionLearnerTrainingArguments
from region_learner.training.arguments import DataArguments, ModelArguments
from region_learner.training.run import _recorded

from .test_model_card import HMDB51, MSVD, card, changed, parse, run  # noqa: F401 # fixtures

HEADER = "run_id,emissions,energy_consumed,country_name,cpu_model,gpu_count,gpu_model,codecarbon_version\n"


def limits(text: str) -> list[str]:
    return [line.removeprefix("- ") for line in text.partition("## Limits\n")[2].strip().splitlines()]


def metadata(text: str) -> dict:
    return yaml.safe_load(text.split("---")[1])


def write_run(directory, arguments, **train):
    directory.mkdir(exist_ok=True)
    train = {"videos": 10, "train_loss": 0.5, "train_runtime": 60.0} | train
    (directory / "results.json").write_text(json.dumps({"train": train, "arguments": arguments}))


def test_a_model_from_towers(card, run):  # noqa: F811
    towers = {"video_tower": "timm/vit_base_patch16_224", "text_tower": "distilbert-base-uncased"}
    text = card(MSVD, checkpoint=run(towers | {"corpus": "msvd"}))
    said = metadata(text)
    assert said["base_model"] == ["timm/vit_base_patch16_224", "distilbert-base-uncased"]
    assert (said["datasets"], said["language"]) == (["msvd"], ["en"])
    assert "Training started from timm/vit_base_patch16_224 and distilbert-base-uncased." in parse(text)[3]
    assert limits(text) == [
        "It was trained on msvd (1,200 videos).",
        "It was evaluated only on msvd, which it was trained on. How well it works on other videos is not known.",
        "It sees 4 frames per clip. It misses what happens between frames.",
        "Its training texts are in English.",
    ]
    assert ModelCard(text).data.base_model == said["base_model"]  # as huggingface_hub reads it


def test_a_model_of_several_runs_starts_where_the_first_started(card, run, tmp_path):  # noqa: F811
    write_run(tmp_path / "first", {"model": "openai/clip-vit-base-patch16", "corpus": "webvid"})
    write_run(tmp_path / "second", {"model": str(tmp_path / "first"), "corpus": "folder", "data_dir": "/a/b"})
    text = card(MSVD, checkpoint=run({"model": str(tmp_path / "second"), "corpus": "msrvtt"}))
    said = metadata(text)
    assert said["base_model"] == ["openai/clip-vit-base-patch16"]
    assert said["datasets"] == ["msrvtt", "webvid"]  # a folder may hold any videos
    assert "language" not in said
    assert str(tmp_path) not in text
    assert limits(text)[0] == "It was trained on folder, msrvtt and webvid."
    assert "The language of its training texts is not recorded." in limits(text)
    german = metadata(card(MSVD, checkpoint=tmp_path / "checkpoint", language=["de"]))
    assert german["language"] == ["de"]
    named = metadata(card(MSVD, checkpoint=tmp_path / "checkpoint", datasets=["me/gestures", "msrvtt", "me/gestures"]))
    assert named["datasets"] == ["msrvtt", "webvid", "me/gestures"]
    with pytest.raises(ValueError, match="not a name"):
        card(MSVD, datasets=["not a name"])


def test_a_start_that_is_not_recorded(card, run, tmp_path):  # noqa: F811
    text = card(MSVD, checkpoint=run({"model": str(tmp_path / "gone" / "start"), "corpus": "msvd"}))
    assert "base_model" not in metadata(text)
    assert "Training started from start." in text
    assert str(tmp_path) not in text
    without_run = card(changed(MSVD, model={"trained_on": None}))
    assert {"base_model", "datasets", "language"}.isdisjoint(metadata(without_run))
    assert limits(without_run)[0] == "There is no record of what it was trained on."


def test_limits_name_only_corpora_that_were_measured(card, run, tmp_path):  # noqa: F811
    measured = changed(MSVD, data={"corpus": "msrvtt"})
    corpora = [{"corpus": "cc3m"}, {"corpus": "webvid"}, {"corpus": "msrvtt"}]
    text = card(measured, checkpoint=run({"corpus": "msrvtt", "corpora": corpora}))
    (said,) = [line for line in limits(text) if "evaluated" in line]
    assert said.startswith("It was evaluated only on msrvtt, which it was trained on.")
    measured = changed(MSVD, data={"corpus": "folder"})
    write_run(tmp_path / "checkpoint", {"corpus": "folder", "data_dir": "/a"})
    text = card(measured, checkpoint=tmp_path / "checkpoint")  # perhaps of another folder
    assert "evaluated only on" not in text


def test_a_relative_start_that_is_gone_is_not_a_model_of_the_hub(card, run, tmp_path, monkeypatch):  # noqa: F811
    """Training records an absolute path, so that a directory is not mistaken for a Hub name later."""
    (tmp_path / "runs" / "pretrain").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    training = RegionLearnerTrainingArguments("x", report_to="none")
    recorded = _recorded(ModelArguments(model="runs/pretrain"), DataArguments(corpus="msvd"), training)
    assert recorded["model"] == str(tmp_path / "runs" / "pretrain")
    entries = [{"corpus": "webdataset", "data_dir": "shards"}, {"corpus": "cc3m"}]
    several = _recorded(ModelArguments(), DataArguments(data_dir="clips", corpora=entries), training)
    assert several["data_dir"] == str(tmp_path / "clips")  # compared with that of an evaluation elsewhere
    assert several["corpora"] == [{"corpus": "webdataset", "data_dir": str(tmp_path / "shards")}, {"corpus": "cc3m"}]
    assert entries[0]["data_dir"] == "shards"
    text = card(MSVD, checkpoint=run({"model": recorded["model"], "corpus": "msvd"}))
    assert "base_model" not in metadata(text)
    assert "and possibly on more, because not all of its training is recorded" in limits(text)[0]


def test_a_start_from_a_checkpoint_within_a_run(card, run, tmp_path):  # noqa: F811
    write_run(tmp_path / "first", {"model": "openai/clip-vit-base-patch16", "corpus": "webvid"})
    (tmp_path / "first" / "checkpoint-500").mkdir()
    text = card(MSVD, checkpoint=run({"model": str(tmp_path / "first" / "checkpoint-500"), "corpus": "msvd"}))
    assert metadata(text)["base_model"] == ["openai/clip-vit-base-patch16"]
    assert "Training started from openai/clip-vit-base-patch16." in text


def test_a_model_from_random_weights(card, run):  # noqa: F811
    checkpoint = run({"corpus": "moving_shapes", "tokenizer": "train", "vocab_size": 99})
    (checkpoint / "tokenizer.json").write_text(json.dumps({"truncation": {"max_length": 64}}))
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    (checkpoint / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 32}}))
    sizes = {"config": {"num_frames": 1, "image_size": 48, "patch_size": 8}}
    text = card(changed(MSVD, model=sizes, data={"corpus": "drifting_letters"}), checkpoint=checkpoint)
    assert "Training started from random weights." in text
    assert limits(text) == [
        "It was trained only on moving_shapes (1,200 videos).",
        "It sees 1 frame per clip, at 48 x 48 pixels, in patches of 8 x 8 pixels. It misses what happens between "
        "frames, and small details.",
        "Texts are cut off after 32 tokens.",
        "Its tokenizer was learned from its training captions, so it does not know other words.",
        "Its training texts are in English.",
    ]


def test_a_classifier_has_as_many_classes_as_its_configuration(card, run):  # noqa: F811
    checkpoint = run({"corpus": "hmdb51"})
    (checkpoint / "config.json").write_text(json.dumps({"id2label": {"0": "jump", "1": "climb"}}))
    text = card(dataclasses.replace(HMDB51, metrics={"top1": 50.0}), checkpoint=checkpoint)
    assert limits(text)[-1] == "It chooses one of the 2 classes of config.id2label, even if none is right."
    assert not any("Texts" in line for line in limits(text))


# --- Energy --------------------------------------------------------------------------------------------------


def test_energy_is_the_sum_of_the_runs(card, run):  # noqa: F811
    checkpoint = run({"corpus": "msvd"})
    rows = [
        "a,0.1,0.5,France,EPYC,2,H100,3.0",
        "a,0.25,1.5,France,EPYC,2,H100,3.0",
        "b,0.5,2.0,France,EPYC,2,H100,3.1",
    ]
    (checkpoint / "emissions.csv").write_text(HEADER + "\n".join(rows))
    text = card(MSVD, checkpoint=checkpoint)  # the later row of run a includes the earlier one
    assert metadata(text)["co2_eq_emissions"] == {
        "emissions": 750.0, "source": "CodeCarbon 3.1", "geographical_location": "France", "hardware_used": "2 x H100",
    }  # fmt: skip
    assert (
        "Training used 3.5 kWh in 2 runs and emitted 0.75 kg of CO2 equivalent, as measured by CodeCarbon 3.1 "
        "(France, 2 x H100)." in parse(text)[3]
    )


def test_energy_as_codecarbon_writes_it(run):  # noqa: F811
    codecarbon = pytest.importorskip("codecarbon")
    checkpoint = run({"corpus": "msvd"})
    for _ in range(2):
        tracker = codecarbon.OfflineEmissionsTracker(
            country_iso_code="FRA", output_dir=str(checkpoint), log_level="error", allow_multiple_runs=True
        )
        tracker.start()
        tracker.stop()
    with open(checkpoint / "emissions.csv", encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    energy = emissions_of(checkpoint)
    assert energy.runs == len(written) == 2
    assert energy.kwh == pytest.approx(sum(float(row["energy_consumed"]) for row in written))
    assert energy.kwh > 0
    assert (energy.country, energy.version) == ("France", codecarbon.__version__)


def test_energy_that_was_not_tracked(card, run):  # noqa: F811
    checkpoint = run({"corpus": "msvd"})
    assert emissions_of(checkpoint) is None
    assert "kWh" not in card(MSVD, checkpoint=checkpoint)
    (checkpoint / "emissions.csv").write_text(HEADER)
    assert emissions_of(checkpoint) is None
    (checkpoint / "emissions.csv").write_text(HEADER + "a,many,0.5,France,,,,3.0\n")
    with pytest.raises(ValueError, match=r"emissions.csv was not written by CodeCarbon \(.*many"):
        emissions_of(checkpoint)


def test_the_draft_of_a_model_without_results(run):  # noqa: F811
    checkpoint = run({"model": "openai/clip-vit-base-patch16", "corpus": "msvd"})
    text = draft_card(MSVD.model, checkpoint, "me/mine", license="mit")
    said = metadata(text)
    assert (said["license"], said["base_model"]) == ("mit", ["openai/clip-vit-base-patch16"])
    assert "model-index" not in said
    headings, _, _, seen = parse(text)
    assert "This model has not been evaluated yet." in seen
    assert [name for _, name in headings] == ["me/mine", "Results", "Model", "Training", "Use", "Limits"]


def test_a_directory_is_not_a_model_of_the_hub(card, run, tmp_path, monkeypatch):  # noqa: F811
    """Two names that look the same: one of them is a directory here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "converted" / "rl").mkdir(parents=True)
    (tmp_path / "msvd").mkdir()  # which says nothing about the corpus
    towers = {"video_tower": "converted/rl", "text_tower": "somebody/rl", "corpus": "msvd"}
    said = metadata(card(MSVD, checkpoint=run(towers)))
    assert (said["base_model"], said["datasets"]) == (["somebody/rl"], ["msvd"])

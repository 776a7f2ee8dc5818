"""Tests of model cards: what they must contain, and what they must not."""

import ast
import dataclasses
import hashlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from transformers import TrainingArguments

from region_learner import RegionLearnerForVideoClassification, RegionLearnerForVideoQuestionAnswering
from region_learner.cli import main
from region_learner.evaluation.results import EvaluationResults, mean_of_folds, read_results, write_results
from region_learner.evaluation.tasks import PROMPTS
from region_learner.model_card import model_card
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.training import RegionLearnerTrainingArguments
from region_learner.training.arguments import PUBLISHED_ARGUMENTS, DataArguments, ModelArguments
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .conftest import tiny_model
from .test_recipes import Media

WEIGHTS = b"weights"
WEIGHTS_SHA256 = hashlib.sha256(WEIGHTS).hexdigest()

MSVD = EvaluationResults(
    model={
        "name": "mine",
        "class": "RegionLearnerModel",
        "revision": None,
        "weights": {"model.safetensors": WEIGHTS_SHA256},
        "files": {"config.json": "cd" * 32},
        "parameters": 1_234_567,
        "config": {"num_frames": 4, "codebook_size": 256, "num_regions": 8},
        "trained_on": ["msvd"],
    },
    data={
        "corpus": "msvd", "data_dir": "MSVD", "split": "test", "options": {}, "videos": 668, "texts": 27763,
        "unreadable": ["a", "b"],
    },
    protocol={
        "name": "msvd", "task": "retrieval", "zero_shot": False, "captions": "all captions", "source": "somebody",
        "primary_metric": "t2v_R@1", "frames": 4, "clips": 1, "window_stride": None, "dual_softmax_temperature": 0.05,
    },
    metrics={"t2v_R@1": 45.678, "t2v_MedR": 2.0},
    rescored={"dsl_t2v_R@1": 50.1},
    notes=["the gallery has 668 videos instead of 670"],
    versions={"python": "3.11", "torch": "2.14", "transformers": "5.23", "region_learner": "0.1.0"},
    date="2026-11-25T01:02:03+00:00",
)  # fmt: skip


def changed(one: EvaluationResults = MSVD, **changes) -> EvaluationResults:
    """Returns a copy of `one` with some fields changed; mappings are merged."""
    old = {name: getattr(one, name) for name in changes}
    return dataclasses.replace(
        one, **{name: old[name] | new if isinstance(new, dict) else new for name, new in changes.items()}
    )


HMDB51 = changed(
    model={"class": "RegionLearnerForVideoClassification", "trained_on": ["hmdb51"]},
    data={"corpus": "hmdb51", "data_dir": "HMDB51", "texts": None, "unreadable": []},
    protocol={"name": "hmdb51", "task": "classification", "captions": "51 classes", "primary_metric": "top1"},
    rescored=None,
    notes=[],
)


def folds(several_models: bool = True) -> EvaluationResults:
    parts = []
    for fold in (1, 2, 3):
        weights = hashlib.sha256(b"%d" % fold).hexdigest() if several_models else WEIGHTS_SHA256
        parts.append(
            dataclasses.replace(
                changed(
                    HMDB51,
                    model={"name": f"fold{fold}", "weights": {"model.safetensors": weights}},
                    data={"options": {"fold": fold}, "videos": 1529 + fold, "unreadable": ["a"] * (fold - 1)},
                ),
                metrics={"top1": 10.0 * fold, "top5": 50.0 + fold},
            )
        )
    return mean_of_folds(parts, [1, 2, 3], "fold{fold}" if several_models else "fold1")


@pytest.fixture
def card(tmp_path):
    """Returns a function that writes results to files and returns a card made from them."""

    def make(*results, **options) -> str:
        paths = [tmp_path / f"{number}.json" for number in range(len(results))]
        for one, path in zip(results, paths):
            write_results(one, path)
        return model_card(paths, **options)

    return make


@pytest.fixture
def run(tmp_path):
    """Returns a function that writes a checkpoint with the results.json of its training run."""

    def make(arguments, weights: bytes = WEIGHTS, **train):
        checkpoint = tmp_path / "checkpoint"
        checkpoint.mkdir()
        (checkpoint / "model.safetensors").write_bytes(weights)
        train = {"videos": 1200, "train_loss": 0.5, "train_runtime": 60.0} | train
        (checkpoint / "results.json").write_text(json.dumps({"train": train, "arguments": arguments}))
        return checkpoint

    return make


def parse(text: str):
    """Returns headings, tables (rows of cells), code blocks and all text. Fails on HTML and on foreign links."""
    tokens = MarkdownIt("commonmark").enable("table").parse(ModelCard(text).text)
    headings, tables, blocks, lines = [], [], [], []
    for before, token in zip([None, *tokens], tokens):
        assert token.type != "html_block", token.content
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "fence":
            blocks.append((token.info, token.content))
        elif token.type == "inline":
            assert not any(child.type == "html_inline" for child in token.children), token.content
            links = [child.attrs["href"] for child in token.children if child.type == "link_open"]
            assert links in ([], ["https://arxiv.org/abs/2112.01194"])
            seen = "".join(child.content or " " for child in token.children)
            lines.append(seen)
            if before.type == "heading_open":
                headings.append((before.tag, seen))
            elif before.type in ("td_open", "th_open"):
                tables[-1][-1].append(seen)
    return headings, tables, blocks, "\n".join(lines)


def test_a_card_contains_what_was_measured(card, run):
    text = card(MSVD, checkpoint=run({}, unreadable_videos=3), repo="me/mine", license="apache-2.0", title="Mine")
    data = ModelCard(text).data
    assert data.license == "apache-2.0"
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "feature-extraction"
    assert {"video-text-retrieval", "text-to-video-retrieval"} <= set(data.tags)
    entries = {(entry.dataset_type, entry.metric_type): entry.metric_value for entry in data.eval_results}
    assert entries == {("msvd", "t2v_R@1"): 45.68, ("msvd", "t2v_MedR"): 2.0}  # without re-scored metrics
    headings, (results, rescored, model), _, seen = parse(text)
    names = ["Results", "Model", "Training", "Use", "Limits"]
    assert [name for tag, name in headings if tag != "h3"] == ["Mine", *names]
    assert ("h3", "msvd (retrieval, trained on msvd)") in headings
    assert results == [["t2v_R@1", "t2v_MedR"], ["45.7", "2.0"]]
    assert rescored == [["dsl_t2v_R@1"], ["50.1"]]
    assert model[1:] == [
        ["parameters", "1.2 M"],
        ["num frames", "4"],
        ["codebook size", "256"],
        ["num regions", "8"],
        ["SHA-256 of model.safetensors", f"{WEIGHTS_SHA256[:16]}…"],
    ]
    for part in (
        "Corpus msvd, split test; 668 videos, 27,763 texts, 2 unreadable and left out; all captions; "
        "data directory “MSVD”, 4 frames, 1 clip per video.",
        "the gallery has 668",
        "dual softmax (temperature 0.05), which uses all queries at once, so these numbers are not comparable with "
        "the table above:",
        "1,200 videos, mean loss 0.500 over the whole run, 60 seconds",
        "3 videos could not be read",
        "on 2026-11-25 with torch 2.14, transformers 5.23, region_learner 0.1.0, in float32 on cpu.",
    ):
        assert part in seen, part


def test_without_a_training_run_or_license_the_card_says_so(card):
    text = card(MSVD)
    data = ModelCard(text).data
    assert data.license == "other"
    assert data.license_name == "not-stated"
    assert "Not stated: this card was made without the `results.json`" in text


# --- Training ------------------------------------------------------------------------------------------------


def test_paths_and_secrets_are_not_published(card, run, tmp_path):
    secret = tmp_path / "secret"
    arguments = {
        "model": str(secret / "start"),
        "video_config": {"num_regions": 8},
        "data_dir": "/home/me",
        "corpus_options": {"missing_list": str(secret / "missing.txt"), "video_dir": "~/clips"},
        "corpora": [
            {"corpus": "webvid", "data_dir": str(secret / "WebVid"), "options": {"file": str(secret / "f.csv")}}
        ],
        "data_dirs": [f"webvid={secret}"],
        "learning_rate": 2e-4,
        "per_device_train_batch_size": 64,
        "seed": 3,
        "hub_token": "hf_secret",
        "output_dir": str(secret / "out"),
        "run_name": "secret",
    }
    text = card(MSVD, checkpoint=run(arguments))
    assert "secret" not in text
    assert "/home/me" not in text
    _, _, ((_, told), _), _ = parse(text)
    assert told == (
        "model: start\n"
        "video_config: {num_regions: 8}\n"
        "corpus_options: {missing_list: missing.txt, video_dir: clips}\n"
        "corpora:\n"
        "- corpus: webvid\n"
        "  options: {file: f.csv}\n"
        "learning_rate: 0.0002\n"
        "per_device_train_batch_size: 64\n"
        "seed: 3\n"
    )


def test_published_arguments_exist():
    names = {item.name for item in dataclasses.fields(RegionLearnerTrainingArguments)}
    own = {item.name for kind in (ModelArguments, DataArguments) for item in dataclasses.fields(kind)}
    own |= names - {item.name for item in dataclasses.fields(TrainingArguments)}
    assert names | own >= PUBLISHED_ARGUMENTS
    assert own - PUBLISHED_ARGUMENTS == {"data_dir", "data_dirs", "overwrite"}


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"train": {}}', '{"train": {"train_loss": "x", "train_runtime": 1}, "arguments": {}}', "{}"],
)
def test_a_results_json_that_is_not_of_a_training_run(card, run, content):
    checkpoint = run({})
    (checkpoint / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"results.json is not the results.json of a training run"):
        card(MSVD, checkpoint=checkpoint)


def test_results_of_an_evaluation_may_be_called_results_json(card, run):
    checkpoint = run({})
    (checkpoint / "results.json").unlink()
    write_results(MSVD, checkpoint / "results.json")
    assert "this card was made without the `results.json` of a training run" in card(MSVD, checkpoint=checkpoint)


# --- Folds ---------------------------------------------------------------------------------------------------


def test_folds(card, run):
    mean = folds()
    headings, (results, model), blocks, seen = parse(card(mean, checkpoint=run({"task": "classification"}, b"2")))
    assert ("h1", "fold{fold}") in headings
    assert ("h3", "hmdb51 (classification, trained on hmdb51)") in headings
    assert results == [
        ["", "top1", "top5", ""],
        ["mean of folds 1 to 3", "20.0", "52.0", ""],
        ["fold 1", "10.0", "51.0", "1,530 videos"],
        ["fold 2", "20.0", "52.0", "1,531 videos, 1 unreadable and left out"],
        ["fold 3", "30.0", "53.0", "1,532 videos, 2 unreadable and left out"],
    ]
    digests = [row for row in model if row[0].startswith("SHA-256")]
    assert [name for name, _ in digests] == [f"SHA-256 of model.safetensors, fold {fold}" for fold in (1, 2, 3)]
    assert len({digest for _, digest in digests}) == 3
    assert "; a model for each fold; mean of folds 1 to 3, data directory “HMDB51”, 4 frames" in seen
    assert "Fold 2: 1,200 videos, mean loss" in seen
    assert 'from_pretrained("fold1"' in blocks[-1][1]
    (entry, _) = ModelCard(card(mean)).data.eval_results
    assert "mean of folds 1 to 3" in entry.dataset_config


def test_folds_of_one_model(card):
    mean = folds(several_models=False)
    _, (_, model), _, _ = parse(card(mean))
    assert model[-1] == ["SHA-256 of model.safetensors", f"{WEIGHTS_SHA256[:16]}…"]
    # A card may add other results of that model, but not to results of several models.
    assert [name for tag, name in parse(card(mean, MSVD))[0] if tag == "h3"][1] == "msvd (retrieval, trained on msvd)"
    with pytest.raises(ValueError, match=r"1.json has results of another model than .*0.json \(models: 1 instead"):
        card(folds(), MSVD)


# --- Protocols -----------------------------------------------------------------------------------------------


def test_two_protocols_of_one_corpus(card):
    zero_shot = changed(protocol={"name": "msvd_zero_shot", "zero_shot": True}, notes=["not checked"], rescored=None)
    three = changed(protocol={"clips": 3})
    windows = changed(protocol={"clips": None, "window_stride": 5}, data={"options": {"max_missing": 2}})
    text = card(MSVD, zero_shot, three, windows)
    headings, tables, _, seen = parse(text)
    shown = [name for tag, name in headings if tag == "h3"]
    assert shown == ["msvd (retrieval, trained on msvd)", "msvd_zero_shot (retrieval, zero-shot)", *[shown[0]] * 2]
    measured = [table[1][0] for table in tables[:-1] if table[0][0] == "t2v_R@1"]
    assert measured == ["45.7"] * 4
    assert "4 frames, 3 clips per video" in seen
    assert "max_missing=2, 4 frames, sliding windows of stride 5" in seen
    assert "not checked" in seen
    results = ModelCard(text).data.eval_results
    assert len({entry.unique_identifier for entry in results}) == 4
    assert results[2].dataset_config == "msvd_zero_shot, data directory “MSVD”, 4 frames, 1 clip per video"
    with pytest.raises(ValueError, match=r"1.json and .*0.json are both results of msvd, data directory “MSVD”"):
        card(MSVD, MSVD)


def test_prompts(card):
    by_prompts = changed(protocol={"name": "hmdb51_prompts", "task": "zero_shot", "templates": list(PROMPTS["few"])})
    own = changed(by_prompts, protocol={"templates": ["{}", "look: {}"]})
    text = card(by_prompts, own)
    headings, _, _, seen = parse(text)
    assert ("h3", "hmdb51_prompts (classification by prompts, trained on msvd)") in headings
    assert "1 clip per video, prompts: few." in seen
    assert "1 clip per video, prompts: 2 custom ones, the first “{}”." in seen
    assert {entry.task_type for entry in ModelCard(text).data.eval_results} == {"video-text-classification-by-prompts"}


def test_results_without_a_protocol(card):
    free = changed(protocol={"name": None, "captions": ""}, data={"corpus": "folder", "data_dir": "trips"}, notes=[])
    other = changed(free, data={"data_dir": "others"})
    text = card(free, other)
    headings, _, _, seen = parse(text)
    assert ("h3", "folder, split test (retrieval, no protocol; not checked whether it is zero-shot)") in headings
    assert "27,763 texts, 2 unreadable and left out; data directory “trips”, 4 frames" in seen
    assert "no captions" not in seen
    assert len({entry.unique_identifier for entry in ModelCard(text).data.eval_results}) == 2


def test_each_result_has_its_own_date_and_versions(card):
    later = changed(protocol={"name": "msvd_zero_shot"}, date="2026-12-01T00:00:00+00:00", versions={"torch": "2.15"})
    seen = parse(card(MSVD, later))[-1]
    assert seen.index("Measured on 2026-11-25 with torch 2.14") < seen.index("Measured on 2026-12-01 with torch 2.15")
    same = changed(later, date=MSVD.date, versions=MSVD.versions)
    assert parse(card(MSVD, same))[-1].count("with torch") == 1


# --- One model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "yours", "message"),
    [
        ({}, {"weights": {"model.safetensors": "cd" * 32}}, "different: model.safetensors"),
        ({}, {"files": {"config.json": "cd" * 32, "processor_config.json": "00"}}, "different: processor_config.json"),
        ({}, {"weights": {}}, "different: model.safetensors, name"),
        ({"weights": {}}, {"weights": {}, "name": "other"}, "different: name"),
        ({"weights": {}, "revision": "1"}, {"weights": {}, "revision": "2"}, "different: revision"),
    ],
)
def test_a_card_describes_one_model(card, mine, yours, message):
    other = changed(model=yours, protocol={"name": "msvd_zero_shot"})
    with pytest.raises(
        ValueError, match=rf"1.json has results of another model than .*0.json \({message}\): a card describes one"
    ):
        card(changed(model=mine), other)


def test_unknown_weights(card, run, tmp_path):
    unknown = changed(model={"weights": {}})
    assert ["SHA-256 of the weights", "not known"] in parse(card(unknown))[1][-1]
    with pytest.raises(ValueError, match="has other weights than those that were evaluated"):
        card(unknown, checkpoint=run({}))
    (tmp_path / "empty").mkdir()  # a checkpoint without weights cannot be verified, either
    with pytest.raises(ValueError, match=r"empty has no model.safetensors"):
        card(unknown, checkpoint=tmp_path / "empty")


def test_the_checkpoint_must_be_the_evaluated_model(card, run, tmp_path):
    with pytest.raises(ValueError, match="checkpoint has other weights than those that were evaluated: a card"):
        card(MSVD, checkpoint=run({}, b"others"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no model.safetensors"):
        card(MSVD, checkpoint=tmp_path / "empty")
    with pytest.raises(ValueError, match="none is not a directory"):
        card(MSVD, checkpoint=tmp_path / "none")


@pytest.mark.parametrize(("regions", "expected"), [(3, "into a few regions"), (0, "without regions")])
def test_a_card_of_a_backbone(card, regions, expected):
    text = card(changed(MSVD, model={"config": {"backbone": "clip_vision_model", "num_regions": regions}}))
    assert "This is a video-text dual encoder on an image model (clip_vision_model), which encodes each frame" in text
    assert expected in text
    assert "space-time ViT" not in text


@pytest.mark.parametrize("kind", ["RegionLearnerModel", "RegionLearnerForVideoClassification",
                                  "RegionLearnerForVideoQuestionAnswering"])  # fmt: skip
@pytest.mark.parametrize(("regions", "fusion"), [(8, "attention"), (0, "attention"), (0, "pool")])
def test_a_card_says_whether_there_are_regions(card, kind, regions, fusion):
    config = {"num_regions": regions, "temporal_fusion": fusion}
    text = card(changed(MSVD, model={"class": kind, "config": config}))
    assert ("which learns regions without labels" in text) == ("into a few regions" in text) == bool(regions)
    assert ("(https://arxiv.org/abs/2112.01194) without regions" in text) == (not regions)
    assert ("A ViT encodes each frame of a clip" in text) == (fusion == "pool")
    assert ("A space-time ViT encodes the frames" in text) == (fusion == "attention")


# --- Untrusted text ------------------------------------------------------------------------------------------

NASTY = (
    '")); import os #\n---\n# title <script>alert(1)</script> [a](javascript:b) ![c](d) `e` | _f_ *g* ~~h~~ '
    "&lt; $i$ \\"
)


def test_text_is_escaped(card, run):
    flat = " ".join(NASTY.split())
    one = changed(
        model={"name": NASTY, "config": {NASTY: NASTY}, "weights": {NASTY: "0" * 64}},
        data={"corpus": NASTY, "data_dir": NASTY, "split": NASTY, "options": {NASTY: NASTY}},
        protocol={"name": NASTY, "captions": NASTY, "templates": [NASTY]},
        notes=[NASTY],
        versions={"torch": NASTY},
        date=NASTY,
    )
    one = dataclasses.replace(one, metrics={NASTY: 1.0, "t2v_R@1": 2.0}, rescored={NASTY: 3.0})
    text = card(one, query=NASTY)
    data = ModelCard(text).data
    assert data.eval_results[0].dataset_type == NASTY
    headings, (results, rescored, model), ((_, code),), seen = parse(text)
    assert headings[0] == ("h1", flat)
    assert (results[0], rescored) == ([flat, "t2v_R@1"], [[flat], ["3.0"]])
    assert model[-1] == [f"SHA-256 of {flat}", f"{'0' * 16}…"]
    assert f"Note: {flat}" in seen
    strings = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert strings.count(NASTY) == 3  # twice the name, and the query


def test_a_fence_in_an_argument_does_not_close_the_block(card, run):
    fences = "a\n```\n# b\n````\n"
    _, _, blocks, _ = parse(card(MSVD, checkpoint=run({"corpus": fences, "config": {}}), query="```\n"))
    assert [language for language, _ in blocks] == ["yaml", "python"]
    assert yaml.safe_load(blocks[0][1]) == {"corpus": fences, "config": {}}


@pytest.mark.parametrize("query", ['say "hi"', "naïve 🎉", "back\\slash"])
def test_the_query_is_a_python_string(card, query):
    (_, code) = parse(card(MSVD, query=query))[2][-1]
    assert query in [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]


def test_repo_must_be_a_hub_name(card):
    assert 'from_pretrained("me/mine", trust_remote_code=True)' in card(MSVD, repo="me/mine")
    with pytest.raises(ValueError, match="Repo id must"):
        card(MSVD, repo='me/mine")')


def test_description_is_markdown(card):
    assert ("h2", "About") in parse(card(MSVD, description="Words.\n\n## About\n\nMore."))[0]


# --- The example runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [None, RegionLearnerForVideoClassification, RegionLearnerForVideoQuestionAnswering],
)
def test_the_example_runs(kind, card, tmp_path, monkeypatch, capsys):
    media = Media(tmp_path / "media")
    monkeypatch.chdir(tmp_path)
    media.link(tmp_path, ["clip.mp4"])
    model = tiny_model(num_frames=2, learn_temperature=True)
    if kind is not None:
        model.config.id2label = {0: "jump", 1: "climb"}
        model = kind(model.config)
    else:  # a learned temperature that differs from the configured one
        model.logit_scale.data += 1.0
    model.save_pretrained("mine")
    tokenizer = train_tokenizer(["a dog catches a frisbee", "what does it catch"], 99, 16)
    video_processor = RegionLearnerVideoProcessor.for_image_size(32, num_frames=2)
    RegionLearnerProcessor(video_processor, tokenizer).save_pretrained("mine")
    text = card(changed(model={"class": type(model).__name__}))
    ((_, code),) = parse(text)[2]
    names = {}
    exec(code, names)
    printed = capsys.readouterr().out.strip()
    if kind is not None:
        assert printed in ("jump", "climb")
        assert "cosine" not in text
        assert "retrieval" not in ModelCard(text).data.tags
    else:
        outputs = names["outputs"]
        expected = torch.nn.functional.cosine_similarity(outputs.text_embeds, outputs.video_embeds)
        assert float(re.search(r"-?\d\.\d+", printed)[0]) == pytest.approx(expected.item(), abs=1e-3)


# --- Command -------------------------------------------------------------------------------------------------


def test_errors(tmp_path, capsys):
    with pytest.raises(ValueError, match="needs measured results"):
        model_card([])
    path = tmp_path / "damaged.json"
    write_results(MSVD, path)
    path.write_text(path.read_text().replace("45.678", '"many"'))
    for name in ("none.json", "damaged.json"):
        with pytest.raises(SystemExit) as end:
            main(["card", str(tmp_path / name)])
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert name in line


def test_command(tmp_path, capsys):
    write_results(MSVD, tmp_path / "evaluation.json")
    output = tmp_path / "cards" / "mine.md"
    options = ["--title", "Mine", "--language", "de", "--dataset", "me/gestures", "--dataset", "me/signs"]
    with pytest.raises(SystemExit) as end:
        main(["card", str(tmp_path / "evaluation.json"), "--output", str(output), *options])
    assert end.value.code == 0
    assert "# Mine" in output.read_text()
    data = ModelCard.load(output).data
    assert data.language == ["de"]
    assert data.datasets[-2:] == ["me/gestures", "me/signs"]
    assert capsys.readouterr().err == f"Wrote {output}\n"


def test_command_on_a_checkpoint(tmp_path, capsys):
    """The card of a directory has all results in it; its other files are ignored."""
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    digest = {"model": {"weights": {"model.safetensors": hashlib.sha256(b"weights").hexdigest()}}}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(SystemExit) as end:
        main(["card", str(tmp_path)])
    assert end.value.code == 2
    assert "has no results: write some with `region-learner evaluate" in capsys.readouterr().err
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    write_results(changed(**digest), files[0])
    write_results(changed(**digest, protocol={"name": "other"}), files[1])
    with pytest.raises(SystemExit) as end:
        main(["card", str(tmp_path)])
    assert end.value.code == 0
    assert capsys.readouterr().out.strip() == model_card(files, tmp_path).strip()
    with pytest.raises(SystemExit) as end:
        main(["card", str(tmp_path), str(files[0])])
    assert end.value.code == 2
    assert "is a directory: give either one directory or only files" in capsys.readouterr().err


CARDS = Path(__file__).parent.parent / "model_cards"


def test_the_card_in_the_repository_is_rendered_from_its_results(monkeypatch):
    """The repository has everything that the card is rendered from, except the weights."""
    directory = CARDS / "moving_shapes"
    protocols = ("moving_shapes", "moving_shapes_unseen", "moving_shapes_compositional", "moving_shapes_grounding")
    files = [directory / f"{name}.json" for name in protocols]
    module = sys.modules["region_learner.model_card"]
    monkeypatch.setattr(module, "weights_of", lambda _: read_results(files[0]).model["weights"])
    description = (directory / "description.md").read_text(encoding="utf-8")
    rendered = model_card(
        files,
        directory,
        license="apache-2.0",
        title="RegionLearner, moving shapes",
        description=description,
        query="a red circle moves to the left",
    )
    assert rendered == (directory / "README.md").read_text(encoding="utf-8")
    assert "Training\n\n12,000 videos" in rendered
    # The description quotes these numbers of regions.json, in this order.
    regions = json.loads((directory / "regions.json").read_text(encoding="utf-8"))
    said = re.search(r"show objects ([\d,]+) times.*?IoU\nof .*?\(k-means [\d.]+, CLS[^)]*\)", description, re.DOTALL)
    numbers = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d)?", said.group())]
    iou = [regions[kind]["iou"] for kind in ("learned", "kmeans", "cls_attention", "grid", "uniform")]
    owned = [regions[kind]["owned"] for kind in ("learned", "kmeans", "cls_attention")]
    assert numbers == [regions["objects"], *(round(value, 1) for value in (*iou, *owned))]

"""Tests `push`: its checks before anything is sent, its single commit, and failures of the Hub."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from region_learner import RegionLearnerModel, RegionLearnerVideoModel, publishing
from region_learner.card_numbers import unbacked_numbers
from region_learner.checkpoint_files import checkpoint_files, is_results
from region_learner.cli import main
from region_learner.evaluation.provenance import describe_model, weights_of
from region_learner.evaluation.results import EvaluationResults, read_results, results_in, write_results
from region_learner.leaks import leaks
from region_learner.model_card import model_card
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.publishing import check, check_loads_without_package, push
from region_learner.space import files_of_space
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .conftest import ROOT, tiny_model, tiny_video_model
from .fresh_process import run_script
from .local_hub import LocalHub
from .test_heads import HEADS, tiny_head
from .test_hub import CAPTIONS, SOURCES
from .test_model_card import HMDB51, MSVD, folds
from .test_pipelines import write_clip

REPO = "tester/mine"
METRICS = {"t2v_R@1": 45.678, "t2v_MedR": 2.0}
RUN = {
    "train": {"videos": 1200, "train_loss": 0.5, "train_runtime": 60.0},
    "arguments": {"corpus": "msvd", "data_dir": "/home/somebody/MSVD", "learning_rate": 1e-4},
}


def results_of(directory: Path, model, **changes) -> EvaluationResults:
    described = describe_model(model, str(directory)) | {"trained_on": ["msvd"]}
    return dataclasses.replace(MSVD, model=described, metrics=METRICS, rescored=None, **changes)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp("publishing") / "mine"
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=99, max_length=32)
    processor = RegionLearnerProcessor(RegionLearnerVideoProcessor.for_image_size(32), tokenizer)
    model = tiny_model(seed=0)
    for part in (model, processor):
        part.save_pretrained(directory)
    write_results(results_of(directory, model), directory / "msvd.json")
    (directory / "results.json").write_text(json.dumps(RUN))
    return directory


@pytest.fixture(scope="module")
def whole(original) -> set[str]:
    """Returns the names of all pushed files: those that saving wrote, the results, and the card."""
    names = {path.relative_to(original).as_posix() for path in original.rglob("*") if path.is_file()}
    assert SOURCES | {"model.safetensors", "config.json", "tokenizer.json", "msvd.json", "results.json"} <= names
    assert {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"} <= names
    return names | {"README.md"}


@pytest.fixture
def checkpoint(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "mine"))


@pytest.fixture
def loads(monkeypatch):
    """Skips loading in a fresh process, which takes seconds; some tests below include it."""
    monkeypatch.setattr(publishing, "check_loads_without_package", lambda files, directory: None)


@pytest.fixture
def hub(monkeypatch, tmp_path, loads):
    """Yields a local Hub that this process pushes to."""
    with LocalHub() as hub:
        hub.use_in_this_process(monkeypatch, tmp_path)
        yield hub


def commits(hub, repo=REPO) -> list[dict[str, bytes]]:
    """Returns the files of each commit after the first, which is empty."""
    return list(hub.repositories[repo].commits.values())[1:]


def run(capsys, *argv) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["push", *map(str, argv)])
    return end.value.code, *capsys.readouterr()


def edit(path: Path, old: str, new: str):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


# --- What is pushed ------------------------------------------------------------------------------------------

OF_THE_RUN = {
    "checkpoint-7/model.safetensors": "checkpoint within a training run",
    "optimizer.pt": "state of a training run",
    "trainer_state.json": "state of a training run",
    "training_args.bin": "state of a training run",
    "rng_state_0.pth": "state of a training run",
    "emissions.csv": "record of a training run",
    "unreadable_videos.json": "record of a training run",
    "pytorch_model.bin": "weights in another format than safetensors",
    ".lock": "hidden file",
    "notes.txt": "not part of a checkpoint",
    "train.py": "not part of a checkpoint",
}


def test_a_push_is_one_private_commit_of_only_the_checkpoint(hub, checkpoint, whole, capsys):
    for name in OF_THE_RUN:
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_text("x")
    code, out, err = run(capsys, checkpoint, REPO, "--license", "mit", "--json")
    assert code == 0, err
    repository = hub.repositories[REPO]
    assert repository.private
    (files,) = commits(hub)
    assert files.keys() == whole
    assert list(repository.messages.values())[1].startswith("Checkpoint, by region-learner")
    unchanged = whole - {"README.md", "results.json"}
    assert {name: files[name] for name in unchanged} == {name: (checkpoint / name).read_bytes() for name in unchanged}
    assert ModelCard(files["README.md"].decode()).data.license == "mit"
    assert not (checkpoint / "README.md").exists()  # the local directory is unchanged

    report = json.loads(out)
    assert report["files"] == {name: len(content) for name, content in files.items()}
    reasons = {name.partition("/")[0] + "/" * ("/" in name): reason for name, reason in OF_THE_RUN.items()}
    assert report["left_out"] == reasons
    assert report["url"] == f"{hub.url}/{REPO}/commit/{repository.branches['main']}"
    assert err.splitlines()[-1].startswith(f"Pushed {len(whole)} files (")


def test_directories_of_the_run_are_not_published(hub, checkpoint):
    pushed = push(checkpoint, REPO)
    published = commits(hub)[0]["results.json"]
    assert b"somebody" not in published
    assert json.loads(published) == RUN | {"arguments": {"corpus": "msvd", "learning_rate": 1e-4}}
    assert any("results.json is published without data directories" in note for note in pushed.notes)
    assert json.loads((checkpoint / "results.json").read_text()) == RUN


def test_a_dry_run_shows_the_same_and_sends_nothing(hub, checkpoint, whole, capsys):
    code, out, err = run(capsys, checkpoint, REPO, "--dry-run", "--space")
    assert code == 0, err
    assert hub.requests == []
    rows = dict(re.findall(r"^(\S+)\s+([\d.]+ k?B)\s*$", out, re.MULTILINE))
    assert rows.keys() >= whole
    assert "total" in rows
    assert "The Space has app.py, requirements.txt" in out
    assert "note: README.md is made from msvd.json" in err
    last = err.splitlines()[-1]
    assert last.startswith(f"Would push {len(whole)} files (")
    assert last.endswith(" kB) to the private repository tester/mine; nothing was sent")
    code, out, _ = run(capsys, checkpoint, REPO, "--dry-run", "--json")
    assert (code, json.loads(out)["url"]) == (0, None)
    assert hub.requests == []


def test_a_name_without_an_owner_belongs_to_the_user(hub, checkpoint):
    assert push(checkpoint, "mine").repo == REPO
    assert f'from_pretrained("{REPO}"' in commits(hub)[0]["README.md"].decode()


def test_notes_are_about_the_full_name(hub, checkpoint):
    (checkpoint / "README.md").write_text(f'---\nlicense: mit\n---\n\nAutoModel.from_pretrained("{REPO}")\n')
    assert [note for note in push(checkpoint, "mine", dry_run=True).notes if "loads" in note]
    assert not [note for note in push(checkpoint, "mine").notes if "loads" in note]


def test_public_on_request(hub, checkpoint):
    assert not push(checkpoint, REPO, private=False, license="apache-2.0").private
    assert not hub.repositories[REPO].private
    with pytest.raises(ValueError, match="tester/mine exists and is public, not private: add --public"):
        push(checkpoint, REPO)
    push(checkpoint, "tester/other")
    with pytest.raises(ValueError, match="tester/other exists and is private, not public: leave --public out"):
        push(checkpoint, "tester/other", private=False, license="apache-2.0")
    assert len(commits(hub)) == len(commits(hub, "tester/other")) == 1


def test_a_second_push_replaces_old_weight_files(hub, checkpoint):
    push(checkpoint, REPO)
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for part, keys in parts.items():
        save_file({key: weights[key] for key in keys}, checkpoint / part, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: part for part, keys in parts.items() for key in keys}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    (checkpoint / "msvd.json").unlink()
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")
    push(checkpoint, REPO)
    _, latest = commits(hub)
    found = {name for name in latest if name.startswith("model")}
    assert found == {*parts, "model.safetensors.index.json", "modeling_region_learner.py"}


def test_a_card_edited_on_the_hub_is_not_replaced_by_a_generated_one(hub, checkpoint):
    push(checkpoint, REPO)
    push(checkpoint, REPO, message="the same card")
    edited = dict(commits(hub)[-1]) | {"README.md": b"# Edited\n"}
    hub.repositories[REPO].commit("main", edited, "edited")
    with pytest.raises(ValueError, match="tester/mine has another card on the Hub, which would be replaced"):
        push(checkpoint, REPO)
    assert commits(hub)[-1] == edited
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")  # a user's card may replace it
    push(checkpoint, REPO)
    assert b"# Mine" in commits(hub)[-1]["README.md"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('![a](r.png "Regions of a clip")', "r.png"),
        ("![a](<my r.png>)", "my r.png"),
        ("![a](my%20r.png)", "my r.png"),
        ("![a][r]\n\n[r]: ./r.png", "r.png"),
        ("<img src='r.png' width=3>", "r.png"),
        ('<p align="center"><img width=3 src="r.png"></p>', "r.png"),
        ("| a |\n|---|\n| ![a](r.png) |", "r.png"),
        ("[a video](r.mp4)", "r.mp4"),
        ("`![a](r.png)`", None),
        ("    ![a](r.png)", None),
    ],
)
def test_pictures_are_found_in_every_form(checkpoint, text, name):
    for file in ("r.png", "my r.png", "r.mp4"):
        (checkpoint / file).touch()
    (checkpoint / "README.md").write_text(f"---\nlicense: mit\n---\n\n{text}\n")
    found = checkpoint_files(checkpoint).belong.keys() & {"r.png", "my r.png", "r.mp4"}
    assert found == ({name} if name else set())


def test_hidden_folders_of_the_package_are_not_published(tmp_path, monkeypatch):
    for name in ("a.py", ".mypy_cache/a.json", "search/.ipynb_checkpoints/b.py", "search/c.py", "__pycache__/d.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr("region_learner.space._PACKAGE", tmp_path)
    pytest.importorskip("gradio")
    ours = {name for name in files_of_space(REPO, private=True) if name.startswith("region_learner/")}
    assert ours == {"region_learner/a.py", "region_learner/search/c.py"}


def test_card_images_and_sentence_transformers_modules_belong_to_a_checkpoint(checkpoint):
    (checkpoint / "README.md").write_text("![a](./regions.png) ![b](../b.png) ![c](https://x.y/c.png)")
    modules = [{"path": ""}, {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (checkpoint / "modules.json").write_text(json.dumps([*modules, {"path": "2", "type": "own_module.Own"}]))
    (checkpoint / "1_Pooling").mkdir()
    for name in ("regions.png", "other.png", "../b.png", "1_Pooling/config.json", "1_Pooling/notes", "own_module.py"):
        (checkpoint / name).write_text("{}" if name.endswith("json") else "")
    belong, left_out = checkpoint_files(checkpoint)
    assert {"regions.png", "1_Pooling/config.json", "own_module.py", "modules.json"} <= belong.keys()
    assert left_out.keys() == {"other.png", "1_Pooling/notes", "msvd.json", "results.json"}


# --- What is checked -----------------------------------------------------------------------------------------


def test_it_loads_from_the_pushed_files_without_the_package(checkpoint, monkeypatch):
    files = checkpoint_files(checkpoint).belong
    check_loads_without_package(files, checkpoint)  # raises nothing
    monkeypatch.setattr(subprocess, "run", run_script)
    weights = load_file(checkpoint / "model.safetensors")
    weights["another"] = weights.pop("text_projection.weight")
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"mine: 1 weights are missing \(text_projection.weight\): load it with this"):
        check_loads_without_package(files, checkpoint)


@pytest.mark.parametrize("kind", [RegionLearnerVideoModel, *HEADS])
def test_towers_and_heads_load_without_the_package(kind, original, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", run_script)
    processor = AutoProcessor.from_pretrained(original)
    model, directory = tiny_video_model() if kind is RegionLearnerVideoModel else tiny_head(kind), tmp_path / "other"
    model.save_pretrained(directory)
    (processor if kind is HEADS[1] else processor.video_processor).save_pretrained(directory)
    files = checkpoint_files(directory).belong
    assert "sentence_bert_config.json" in files
    check_loads_without_package(files, directory)  # raises nothing


def test_it_does_not_load_without_its_source_files(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "run", run_script)
    (checkpoint / "loss_region_learner.py").unlink()
    code, _, err = run(capsys, checkpoint, REPO, "--dry-run")
    assert code == 2
    (line,) = err.splitlines()
    assert "does not load without region-learner installed" in line
    assert "loss_region_learner" in line
    assert "save it again with save_pretrained" in line


def without_its_pipeline(checkpoint):
    (checkpoint / "pipeline_region_learner.py").unlink()


def without_a_module(checkpoint):
    pytest.importorskip("sentence_transformers", minversion="6")
    edit(checkpoint / "modules.json", "normalize.Normalize", "normalize.Nothing")


@pytest.mark.parametrize(
    ("change", "message"), [(without_its_pipeline, "pipeline_region_learner.py"), (without_a_module, "Nothing")]
)
def test_pipelines_and_sentence_transformers_load_without_the_package(checkpoint, change, message, monkeypatch):
    monkeypatch.setattr(subprocess, "run", run_script)
    change(checkpoint)
    with pytest.raises(ValueError, match="mine does not load without region-learner installed") as refused:
        check_loads_without_package(checkpoint_files(checkpoint).belong, checkpoint)
    assert message in str(refused.value)


def not_finite(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    weights["text_projection.weight"][0, 0] = torch.nan
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


def as_pickle(checkpoint):
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()


def cut_off(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def part_is_missing(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))


def in_metadata_of_weights(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt", "from": "/home/somebody/runs/3"})
    (checkpoint / "msvd.json").unlink()
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\n")


def in_config(text):
    def change(checkpoint):
        config = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps(config | {"note": text}, indent=1))
        (checkpoint / "msvd.json").unlink()
        (checkpoint / "README.md").write_text("---\nlicense: mit\n---\n")

    return change


def with_card(text):
    return lambda checkpoint: (checkpoint / "README.md").write_text(text)


def with_edited_card(old, new):
    def change(checkpoint):
        (checkpoint / "README.md").write_text(model_card([checkpoint / "msvd.json"], checkpoint, REPO, "mit"))
        edit(checkpoint / "README.md", old, new)

    return change


def results_of_other_weights(checkpoint):
    edit(checkpoint / "msvd.json", json.loads((checkpoint / "msvd.json").read_text())["model"]["weights"][
        "model.safetensors"], "ab" * 32)  # fmt: skip


def changed_since_measured(checkpoint):
    with_edited_card("# ", "# ")(checkpoint)
    edit(checkpoint / "processor_config.json", "{", "{ ")


def emissions(checkpoint):
    with_edited_card("license: mit", "license: mit\nco2_eq_emissions:\n  emissions: 3.5")(checkpoint)


WRONG = {
    not_finite: "weights that are NaN or infinite (the first: text_projection.weight)",
    as_pickle: "no weights as safetensors (model.safetensors): load it and save it again",
    cut_off: "model.safetensors is damaged or incomplete",
    part_is_missing: "model.safetensors.index.json and the files differ in model-00002-of-00002.safetensors",
    in_metadata_of_weights: "model.safetensors, line 1, contains the path '/home/somebody/runs/3', which everybody",
    in_config("/home/somebody/data"): "config.json, line ",
    in_config("hf_" + "aB3" * 12): "contains a Hugging Face token (hf_aB3…), which everybody could read: remove it",
    with_card("# Mine\n"): "README.md has no metadata (YAML between two lines of ---): write a new card with",
    with_card("---\na: [\n---\n"): "README.md: its metadata is not valid: while parsing",
    with_card("---\nlicense: mit\nmodel-index: 3\n---\n"): "README.md: its metadata is not valid: ",
    with_card("---\ntags: [a]\n---\n"): "README.md does not name a license: write `license: ID`",
    with_edited_card("value: 45.68", "value: 55.68"): (
        "README.md: its model-index claims t2v_R@1 = 55.68 on msvd (measured: 45.68), which is not in any results file"
    ),
    with_edited_card("| 45.7 |", "| 46.7 |"): (
        "README.md: a table claims 46.7 for 't2v_R@1' (measured: 45.68), which is not in any results file"
    ),
    with_edited_card("\n## Limits", "\n| IoU |\n|---|\n| 34.5 |\n\n## Limits"): "a table claims 34.5 for 'IoU'",
    results_of_other_weights: "no results of its weights to make one from (msvd.json: results of other weights)",
    changed_since_measured: "(msvd.json: results of another processor_config.json)",
    emissions: "README.md claims emissions of 3.5 g, but ",
}


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_what_must_not_be_published(checkpoint, hub, capsys, number):
    change, message = list(WRONG.items())[number]
    change(checkpoint)
    code, out, err = run(capsys, checkpoint, REPO)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("region-learner: error: ")
    assert message in line
    assert hub.requests == []  # the check comes before anything is sent


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere/at/all", REPO], "There is no directory nowhere/at/all"),
        (["owner/name", REPO], "owner/name is not a directory"),
        (["MODEL", "a/b/c"], "Repo id must be in the form"),
        (["MODEL", REPO, "--public"], "The card states no license, so nobody may use the model: add --license ID"),
        (["MODEL", REPO, "--pubic"], "--pubic is not known; did you mean '--public'?"),
        (["MODEL"], "Missing argument 'REPO'"),
    ],
)
def test_wrong_usage(checkpoint, hub, capsys, argv, message):
    code, out, err = run(capsys, *(checkpoint if word == "MODEL" else word for word in argv))
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert hub.requests == []


def test_a_license_is_not_written_into_an_existing_card(checkpoint, loads):
    with_card("---\nlicense: mit\n---\n")(checkpoint)
    with pytest.raises(ValueError, match=r"--license has no effect, as .*README.md exists: write `license: bsd`"):
        check(checkpoint, REPO, license="bsd")


def test_a_generated_card_passes(checkpoint, loads):
    with_edited_card("# ", "# ")(checkpoint)
    checked = check(checkpoint, REPO)
    assert checked.notes == [
        "results.json is published without data directories, and with paths cut to their last part"
    ]
    notes = check(checkpoint, "tester/other").notes
    assert "the example of README.md loads 'tester/mine', not 'tester/other'" in notes


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a\n'/home/me/x'", [(2, "the path '/home/me/x'")]),
        ('"C:\\\\Users\\\\me\\\\x"', [(1, "the path 'C:")]),
        ("file:///mnt/disk/x", [(1, "the path '/mnt/disk/x'")]),
        (f"see {Path(__file__).parent}", [(1, "the path ")]),
        ("https://huggingface.co/home/me and a/home/b, and/or, #!/usr/bin/env python, 1/2/3, </home/x>", []),
        ("key: ghp_" + "a1B2" * 9, [(1, "a GitHub token (ghp_a1…)")]),
        ("AKIAIOSFODNN7EXAMPLE", [(1, "an AWS access key (AKIAIO…)")]),
        ("-----BEGIN RSA PRIVATE KEY-----", [(1, "a private key (-----B…)")]),
        ("https://me:secret@example.org/", [(1, "a password in a URL (https:…)")]),
        ('{"api_key": "0123456789"}', [(1, "a value of a secret setting (api_ke…)")]),
        ('{"hub_token": "<HUB_TOKEN>", "pad_token": "[PAD]", "eos_token": "<|endoftext|>"}', []),
    ],
)
def test_leaks(text, found):
    assert [(leak.line, leak.what[: len(what)]) for leak, (_, what) in zip(leaks(text), found, strict=True)] == found


# --- Failures of the Hub -------------------------------------------------------------------------------------

NEW, REMOVED = "POST /api/repos/create", "The repository that was created for it has been deleted again."
FAILURES = {
    "the network breaks in the middle of the weights": ({"^PUT /lfs/": None}, "The connection to the Hub failed ("),
    "the network breaks in the middle of the commit": ({"/commit/": None}, "The connection to the Hub failed ("),
    "the token is revoked meanwhile": (
        {"/commit/": (401, "Invalid credentials in Authorization header")},
        "The Hub refuses your token, which may be revoked or expired: create a new one",
    ),
    "too large": (
        {"/commit/": (413, "Payload too large")},
        "Pushing tester/mine failed because its owner's storage is full",
    ),
    "not paid": ({"/info/lfs": (402, "Payment required")}, "The Hub requires payment for tester/mine (the Hub says:"),
    "the card is refused": ({"/preupload/": (400, "Bad card")}, "The Hub failed with status 400"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_push_leaves_nothing_behind(hub, checkpoint, capsys, name):
    hub.faults, message = FAILURES[name]
    code, out, err = run(capsys, checkpoint, REPO)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"region-learner: error: {message}"), line
    assert line.endswith(REMOVED)
    assert NEW in hub.requests
    assert "DELETE /api/repos/delete" in hub.requests
    assert hub.repositories == {}

    # A repository that existed before is unchanged.
    hub.faults = {}
    push(checkpoint, REPO)
    capsys.readouterr()  # a progress bar
    (before,) = commits(hub)
    hub.large_files.clear()
    hub.faults, _ = FAILURES[name]
    weights = load_file(checkpoint / "model.safetensors")
    save_file({key: value + 1 for key, value in weights.items()}, checkpoint / "model.safetensors", {"format": "pt"})
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\n")
    code, _, err = run(capsys, checkpoint, REPO)
    assert code == 2
    (line,) = err.splitlines()
    assert line.endswith("tester/mine on the Hub is unchanged.")
    assert commits(hub) == [before]


LEFT = (
    "The repository tester/mine, which was created for it, may still be on the Hub, and may be empty: push again, or "
    "delete it."
)
FAULTS = {
    "revoked": (401, "Invalid credentials in Authorization header"),
    "forbidden": (403, "Forbidden"),
    "without access": (404, "Repository not found", "RepoNotFound"),
    "out of order": (500, "out of order"),
    "no network": None,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_from_any_request_after_the_creation_on(hub, checkpoint, fault, monkeypatch):
    """The clean-up fails as well, so the new repository is left, and the error says so."""
    checked = check(checkpoint, REPO)
    monkeypatch.setattr(publishing, "check", lambda *_, **options: checked)  # once is enough
    push(checkpoint, REPO)
    requests = hub.requests[hub.requests.index(NEW) + 1 :]
    assert len(requests) >= 4
    for number in range(1, len(requests) + 1):
        hub.repositories.clear()
        hub.large_files.clear()
        hub.requests.clear()

        def break_down(request, number=number):
            if NEW in hub.requests[:-number]:
                hub.faults = {"": FAULTS[fault]}

        hub.on_request = break_down
        with pytest.raises(OSError, match=f"{re.escape(LEFT)}$") as failed:
            push(checkpoint, REPO)
        hub.on_request, hub.faults = lambda request: None, {}
        assert ("belongs to somebody else" in str(failed.value)) == (fault == "forbidden")
        assert commits(hub) == []


def test_a_token_that_is_revoked_after_the_creation(hub, checkpoint):
    hub.on_request = lambda request: hub.tokens.clear() if NEW in hub.requests[:-1] else None
    with pytest.raises(OSError, match=rf"^The Hub refuses your token.* {re.escape(LEFT)}$"):
        push(checkpoint, REPO)
    assert commits(hub) == []


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("cleaning", ["/tree/", "^DELETE"])
def test_a_repository_that_cannot_be_removed_is_named(hub, checkpoint, cleaning, fault):
    hub.faults = {"/commit/": None, cleaning: FAULTS[fault]}
    with pytest.raises(OSError, match=re.escape(LEFT)):
        push(checkpoint, REPO)
    assert commits(hub) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_repository_that_cannot_be_created(hub, checkpoint, fault):
    hub.faults = {NEW: FAULTS[fault]}
    with pytest.raises(OSError, match=r" The repository was not created\.$"):
        push(checkpoint, REPO)
    assert hub.repositories == {}
    hub.faults |= {"/tree/": FAULTS[fault]}  # the answer may be lost, but a refusal is certain
    left = "may have been created for it, may still be" if fault in ("out of order", "no network") else "not created"
    with pytest.raises(OSError, match=left):
        push(checkpoint, REPO)


def test_a_commit_whose_response_is_lost_is_not_removed(hub, checkpoint, monkeypatch):
    real = publishing.commit_files

    def lost(*args, **options):
        real(*args, **options)
        raise OSError("The connection to the Hub failed")

    monkeypatch.setattr(publishing, "commit_files", lost)
    with pytest.raises(OSError, match="The commit may have arrived nevertheless: see http"):
        push(checkpoint, REPO)
    assert len(commits(hub)) == 1


def test_full_quota(hub, checkpoint):
    hub.quota = 1000
    with pytest.raises(
        OSError, match=r"failed because its owner's storage is full \(the Hub says: Private repository storage limit"
    ):
        push(checkpoint, REPO)
    assert hub.repositories == {}


def test_not_logged_in(hub, checkpoint, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    code, _, err = run(capsys, checkpoint, REPO)
    assert (code, err) == (
        2,
        "region-learner: error: You are not logged in to the Hub: run `hf auth login`, or set HF_TOKEN to a token "
        "with write access.\n",
    )


def test_a_revoked_token(hub, checkpoint):
    hub.tokens.clear()
    with pytest.raises(OSError, match="The Hub refuses your token, which may be revoked or expired"):
        push(checkpoint, REPO)
    assert hub.repositories == {}


def test_somebody_elses_repository(hub, checkpoint):
    with pytest.raises(
        OSError, match=r"else/mine belongs to somebody else, as you are logged in as 'tester': push to tester/mine"
    ):
        push(checkpoint, "else/mine")
    assert all(request.startswith("GET") for request in hub.requests)
    hub.faults = {
        NEW: (403, "You don't have the rights to create a model under the namespace")
    }  # a token that can only read
    with pytest.raises(OSError, match=r"You cannot write to tester/mine \(the Hub says: You don't have the rights"):
        push(checkpoint, REPO)


def test_the_hub_may_refuse_the_card(hub, checkpoint):
    hub.faults = {"validate-yaml": (400, '"license" must be one of ...')}
    with pytest.raises(ValueError, match=r"README.md: the Hub does not accept its metadata: .*license"):
        push(checkpoint, REPO)
    assert hub.repositories == {}


def test_without_a_network(hub, checkpoint, capsys):
    hub.stop()
    code, _, err = run(capsys, checkpoint, REPO)
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("region-learner: error: The connection to the Hub failed (")


def test_a_network_that_breaks_for_good_is_an_error_of_one_line(hub, checkpoint):
    """The command runs in a separate process, whose whole stderr is looked at: with the warnings of all libraries."""
    hub.on_request = lambda request: hub.faults.update({"": None} if "/lfs/" in request else {})
    script = (
        "import sys, types; import huggingface_hub.utils._http as http; from region_learner import publishing\n"
        "from region_learner.cli import main; http.time = types.SimpleNamespace(sleep=lambda seconds: None)\n"
        "publishing.check_loads_without_package = lambda *_: None; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, "push", str(checkpoint), REPO]
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("region-learner: error: The connection to the Hub failed (")
    assert line.endswith(LEFT)


def test_messages_of_the_hub_are_hidden_only_by_the_command(hub, checkpoint, capsys, caplog):
    hub.faults = {"^PUT /lfs/": None}
    run(capsys, checkpoint, REPO)
    assert not caplog.records
    with pytest.raises(OSError, match="The connection to the Hub failed"):
        push(checkpoint, REPO)
    assert "Retrying in" in caplog.text
    assert "model.safetensors:" in capsys.readouterr().err  # a progress bar


# --- The Space -----------------------------------------------------------------------------------------------


def test_space(hub, checkpoint, capsys):
    code, _, err = run(capsys, checkpoint, REPO, "--space")
    assert code == 0, err
    space = hub.repositories[f"spaces/{REPO}"]
    assert space.private
    (files,) = commits(hub, f"spaces/{REPO}")
    data = ModelCard(files["README.md"].decode()).data.to_dict()
    assert {"sdk": "gradio", "app_file": "app.py", "models": [REPO]}.items() <= data.items()
    assert b"secret `HF_TOKEN`" in files["README.md"]
    compile(files["app.py"], "app.py", "exec")
    assert {"region_learner/space.py", "region_learner/search/app.html.jinja"} <= files.keys()
    assert not any("__pycache__" in name for name in files)
    needed = {re.match(r"[\w-]+", line)[0] for line in files["requirements.txt"].decode().splitlines()}
    assert {"torch", "transformers", "av"} <= needed
    assert needed.isdisjoint({"pytest", "region-learner", "gradio"})
    assert err.splitlines()[-1] == f"Pushed the Space: {hub.url}/spaces/{REPO}/commit/{space.branches['main']}"


def test_a_failed_space_is_reported_apart_from_the_model(hub, checkpoint):
    hub.faults = {"/api/spaces/.*/commit/": (402, "Spaces need a subscription")}
    with pytest.raises(OSError, match=r"The model is published \(http.*\), but not its Space: .* deleted again."):
        push(checkpoint, REPO, space=True)
    assert hub.repositories.keys() == {REPO}


def test_an_existing_space_keeps_its_page_and_gets_this_package(hub, checkpoint):
    push(checkpoint, REPO, space=True)
    space = hub.repositories[f"spaces/{REPO}"]
    mine = {"README.md": b"# Mine", "videos/a.mp4": b"a", "region_learner/old.py": b"", "app.py": b"old"}
    space.commit("main", commits(hub, f"spaces/{REPO}")[0] | mine, "edited")
    push(checkpoint, REPO, space=True)
    files = commits(hub, f"spaces/{REPO}")[-1]
    assert (files["README.md"], files["videos/a.mp4"]) == (b"# Mine", b"a")
    assert b"serve_space" in files["app.py"]
    assert "region_learner/old.py" not in files
    space.private = False
    with pytest.raises(ValueError, match="The Space tester/mine exists and is public, not private"):
        push(checkpoint, REPO, space=True, message="not even the model")
    assert len(commits(hub)) == 1


def test_a_space_without_videos_has_no_index(tmp_path):
    from region_learner.space import open_index

    assert open_index(tmp_path, REPO) is None


@pytest.mark.slow
def test_the_app_of_a_space_starts(hub, checkpoint, tmp_path):
    """The app starts from the files of the Space, in a separate process, before any videos are added."""
    import os
    import time
    from urllib.error import URLError
    from urllib.request import urlopen

    from .toy_run import free_port

    push(checkpoint, REPO, space=True)
    for name, content in commits(hub, f"spaces/{REPO}")[0].items():
        (tmp_path / "space" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "space" / name).write_bytes(content)
    port = free_port()
    environment = {"GRADIO_SERVER_PORT": str(port), "HF_ENDPOINT": hub.url, "PYTHONPATH": "", "HF_HUB_OFFLINE": "0"}
    app = subprocess.Popen([sys.executable, "app.py"], cwd=tmp_path / "space", env=os.environ | environment)
    try:
        for _ in range(240):
            try:
                page = urlopen(f"http://127.0.0.1:{port}/", timeout=10).read().decode()
                break
            except URLError:
                time.sleep(0.5)
        assert "This Space has no videos yet" in page
    finally:
        app.terminate()
        app.wait()


def test_a_space_searches_its_videos(tmp_path):
    from region_learner.space import open_index

    from .search_toys import make_video, save_checkpoint

    save_checkpoint("space_time", tmp_path / "model")
    space = tmp_path / "space"
    for seed, name in enumerate(("a.mp4", "b.mp4")):
        make_video(space / "videos" / name, 3, seed)
    hits = open_index(space, str(tmp_path / "model")).search("a red square", k=2)
    assert {Path(hit.path).name for hit in hits} == {"a.mp4", "b.mp4"}
    # The index that this start has written serves the next one, although a video is gone.
    (space / "videos" / "b.mp4").unlink()
    assert [Path(path).name for path in open_index(space, str(tmp_path / "model")).paths()] == ["a.mp4"]


# --- Numbers that nobody measured ----------------------------------------------------------------------------

FACTS = [{"num_hidden_layers": 12, "intermediate_size": 64, "vocab_size": 99}]
UNBACKED = {
    "It reaches R@1 99.9 on MSR-VTT.": "its text claims 99.9 in 'It reaches R@1 99.9 on MSR-VTT.' (measured: 45.68",
    "On MSVD, it has an accuracy of 99.9.": "claims 99.9",
    "- R@5: 100.0": "claims 100.0 in 'R@5: 100.0' (measured: 70.10)",
    "**R@1 = 99.9 %**": "claims 99.9",
    "R@1 of about 64": "claims 64",
    "64 R@1": "claims 64",
    "t2v_R@1 of 41.0": "claims 41.0 in 't2v_R@1 of 41.0' (measured: 45.68)",
    "| x | accuracy |\n|---|---|\n| mine | 90.5 |": "claims 90.5 for 'accuracy of mine' (measured: 81.50)",
    "R@1/R@5: 45.7/99.9": "claims 99.9",
    "Recall@5 (99)": "claims 99",
    "A recall at 1 of 99%": "claims 99",
    "mAP: 12.5, nDCG@10: 12.5": "claims 12.5",
    "MedR is 1": "claims 1",
    "# R@1 99.9": "claims 99.9",
    "```\nR@1 99.9\n```": "claims 99.9",
    "<div>R@1 99.9</div>": "claims 99.9",
    "![R@1 99.9](plot.png)": "claims 99.9",
    "text <table><tr><td>34.5</td></tr></table>": "a table claims 34.5 for 'a table in HTML'",
    "| R@1 99.9 | b |\n|---|---|\n| yes | yes |": "claims 99.9",
    "| a | b |\n|---|---|\n| mine, R@1 99.9 | yes |": "claims 99.9",
    "| a |\n|---|\n| recall 99.9 |": "claims 99.9",
    "| a | b |\n|---|---|\n| mine | recall 64 |": "claims 64",
    "| R@1 | R@5 |\n|---|---|\n| 64 | 70.1 |": "a table claims 64 for 'R@1' (measured: 45.68",
    "| model | R@1 |\n|---|---|\n| mine | 9.99e1 |": "claims 9.99e1",
    "| R@1 | R@5 |\n|---|---|\n| 99.9pp | 70.1 |": "claims 99.9pp",
    "| model | R@1 |\n|---|---|\n| mine | 99.9 (000000000000) |": "claims 99.9",
    "Top-1: 99.9": "claims 99.9 in 'Top-1: 99.9' (measured: 45.68",
    "A top-1 of 99.9%": "claims 99.9",
    "A top-1 of 77%": "claims 77",  # which is the top-5
    "Top 1 is 99, top5 is 77.0": "claims 99",
    "Top-1/Top-5: 50.0/99.9": "claims 99.9",
    "A top-5 accuracy of 81.5": "claims 81.5",  # which is another accuracy
    "An accuracy of 77.0": "claims 77.0",
    "Acc@1: 99": "claims 99",
    "99 percent accuracy": "claims 99",
    "Its mean IoU is 99.9": "claims 99.9",
    "An mIoU of 99": "claims 99",
    "Its intersection over union is 99.9%": "claims 99.9",
    "IoU@0.5 is 99": "claims 99",
    "Its median rank is 1": "claims 1",
    "A mean rank of only 1": "claims 1",
    "MdR 1, MnR 7.5": "claims 1",
    "A geometric mean of 99.9": "claims 99.9",
    "F1 of 99.9": "claims 99.9",
    "An F1-score of 99": "claims 99",
    "Hit rate 99.9%": "claims 99.9",
    "Hit@5: 99": "claims 99",
    "A pointing accuracy of 81.5": "claims 81.5",
    "A precision of 99.9%": "claims 99.9",
    "An MRR of 0.99": "claims 0.99",
    "R1: 99.9": "claims 99.9",
    "R1/R5: 45.7/99.9": "claims 99.9",
    "Its rank-1: 99.9": "claims 99.9",
    "It retrieves the right clip in 99.9% of cases.": "claims 99.9",
    "SOTA: 63.1 on MSR-VTT.": "claims 63.1 in 'SOTA: 63.1 on MSR-VTT.'",
    "**99.9** on MSVD (t2v)": "claims 99.9",
    "t2v 45.7, v2t 88.8": "claims 88.8",
    "It finds 99% of the captions.": "claims 99",
}
BACKED = [
    "It reaches R@1 45.7 and R@5 70.1 on the 668 test videos of MSVD, with MedR 2.",
    "R@1/R@5/R@10: 45.68/70.1. The t2v_R@1 is 4.57e1.",
    "| model | R@1 |\n|---|---|\n| mine, 12 layers | 45.7 % |\n\n| layers | vocabulary |\n|---|---|\n| 12 | 99 |",
    "Recall and accuracy are percentages. It has 13.5 M parameters. Table 3: accuracy by length.",
    "Measured with torch 2.14.0 in 2026, R@1 is 45.7. See SHA-256 and recall on 2026-11-25.",
    "Re-ranked, the accuracy is 90.5 instead of 81.5; t2v_R@1 is 45.7, and R@5 70.1.",
    "The recall of its 34 classes was not measured. A perfect R@1 is not possible.",
    "Top-1: 50.0, top-5 accuracy 77 %. Hit@5 is 70.1, the median rank 2, and the mean rank 7.5 (gmean 60.0).",
    "It returns the top 5 hits in 0.3 seconds. The top 10% of 1.5 hours are the top-100 candidates.",
    "45.7 on MSVD, which has 1,970 videos of about 10 s. Trained on MSR-VTT, 12 layers, width 64.",
    "It ranks 1,000 videos in 0.3 seconds and scores 64 dimensions. The right R2 is not meant.",
    "Fine-tuned with LoRA (rank-16, dropout 0.05). Captions by DeepSeek-R1 with a temperature of 0.6.",
    "Captions were written by DeepSeek R1 with a temperature of 0.6.",
    "Initialized from ImageNet R-50, with a learning rate of 3e-5. Trained on MSVD with PyTorch 2.14.",
    "Only 5.5% of MSR-VTT videos contain speech. Use a threshold of 0.25 on the score.",
    "arXiv 2112.01194 describes text-to-video retrieval. Retrieval is 2.5x faster. Version 1.2 of the model.",
    "We trained on 2.5M pairs of WebVid and tested on MSVD. It retrieves the right clip in 50% of cases.",
    "R@1 is 45.7 after 1.5 hours and 3.5 epochs. In bf16 precision, training is 2.5 times faster.",
]


def numbers_of(text: str) -> list[str]:
    metrics = {"t2v_R@1": 45.678, "t2v_R@5": 70.1, "t2v_MedR": 2.0, "t2v_MeanR": 7.5, "t2v_gmean": 60.0}
    metrics |= {"v2t_R@1": 41.0, "accuracy": 81.5, "top1": 50.0, "top5": 77.0}
    one = dataclasses.replace(MSVD, metrics=metrics, rescored={"rr_accuracy": 90.5})
    return unbacked_numbers(f"---\nlicense: mit\n---\n\n{text}\n", {"a": one}, one.model["weights"], FACTS)


@pytest.mark.parametrize("text", UNBACKED)
def test_numbers_of_metrics_must_be_measured(text):
    assert UNBACKED[text] in " ".join(numbers_of(text))


@pytest.mark.parametrize("text", BACKED)
def test_measured_numbers_and_numbers_of_other_things_may_be_written(text):
    assert numbers_of(text) == []


def test_numbers_in_metadata_must_be_measured():
    card = "---\nlicense: mit\ndescription: R@1 of 99.9\ntags: [R@1 of 45.7, video]\n---\n"
    (problem,) = unbacked_numbers(card, {"a": MSVD}, MSVD.model["weights"])
    assert "claims 99.9 in 'R@1 of 99.9'" in problem


def test_cards_that_are_made_here_pass(tmp_path):
    directory = ROOT / "model_cards" / "moving_shapes"
    results = {path.name: read_results(path) for path in results_in(directory)}
    run = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    weights = next(iter(results.values())).model["weights"]
    card = (directory / "README.md").read_text(encoding="utf-8")
    regions = json.loads((directory / "regions.json").read_text(encoding="utf-8"))
    assert unbacked_numbers(card, results, weights, [run], [regions]) == []
    (problem, *_) = unbacked_numbers(card, results, weights, [run])
    assert "claims 44.9 in 'The best mask for an object in a frame has a mean IoU of 44.9%" in problem
    actions = dataclasses.replace(HMDB51, metrics={"top1": 50.0, "top5": 77.0})
    for number, one in enumerate((folds(several_models=False), folds(several_models=True), MSVD, actions)):
        path = tmp_path / f"{number}.json"
        write_results(one, path)
        assert unbacked_numbers(model_card([path]), {"one.json": one}, MSVD.model["weights"]) == []


def test_measured_regions_count_for_their_weights(checkpoint, loads):
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\nIts mean IoU is 44.9, that of k-means 28.4.\n")
    regions = {"objects": 9, "learned": {"iou": 44.93, "masks": 12}, "kmeans": {"iou": 28.36, "stability": None}}
    own = read_results(checkpoint / "msvd.json").model
    (checkpoint / "regions.json").write_text(json.dumps(regions | {"model": own}))
    assert "regions.json" in check(checkpoint, REPO).files
    assert is_results((checkpoint / "regions.json").read_bytes())  # so that another model replaces it
    for model, reason in (
        (own | {"weights": {"model.safetensors": "ab" * 32}}, "results of other weights"),
        (own | {"files": {"config.json": "ab" * 32}}, "results of another config.json"),
        (None, "results of other weights"),  # an earlier version did not name the weights
    ):
        (checkpoint / "regions.json").write_text(json.dumps(regions | {"model": model}))
        with pytest.raises(ValueError, match=rf"claims 44.9 .*\(regions.json: {reason}\)"):
            check(checkpoint, REPO)


# --- Secrets in any file -------------------------------------------------------------------------------------

HEX = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (f'{{"wandb_api_key": "{HEX}"}}', "a value of a secret setting"),
        (f"export WANDB_API_KEY={HEX}", "a value of a secret setting"),
        ("password: hunter2hunter2", "a value of a secret setting"),
        ('{"aws_secret_access_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}', "a value of a secret setting"),
        (r'"{\"api_key\": \"0123456789\"}"', "a value of a secret setting"),
        ("hf_oauth_eyJhbGciOiJFZERTQSJ9aaaa", "a Hugging Face token"),
        ("sk_" + "live_a1B2c3D4e5F6g7H8i9J0k1L2", "a Stripe key"),
        ("pypi-" + "AgEIcHlwaS5vcmcC" * 4, "a PyPI token"),
        ("https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXX", "a Slack webhook"),
        (f"ya29.{'a1' * 12}", "a Google token"),
        (f"npm_{'a1' * 18}", "an npm token"),
        (f"dckr_pat_{'a1' * 12}", "a Docker token"),
        (f"AccountKey={'a1' * 21}==", "an Azure key"),
        ("client_secret: abcdefgh12345678", "a value of a secret setting"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0", "a JSON Web Token"),
        ("Authorization: Bearer abcdefghijklmnopqrstuvwxyz0123456789", "a bearer token"),
        *(
            (text, "the path '/home/alice/x'")
            for text in ("PATH=/bin:/home/alice/x", "**/home/alice/x**", "<b>/home/alice/x</b>", "[a]/home/alice/x")
        ),
        (r'"\/home\/alice\/x"', "the path '/home/alice/x'"),
        (r"\\server\share\alice\x", "the path "),
        (r'"\\\\server\\share\\alice"', "the path "),
    ],
)
def test_more_leaks(text, what):
    assert [leak.what[: len(what)] for leak in leaks(text)] == [what]


@pytest.mark.parametrize(
    "text",
    [
        '{"vocab": {"password": 20786, "api_key": 30000001, "Ġaccess_token": 4, "/home": 5, "bearer": 6, "**/": 7}}',
        "password\n:\nhunter2hunter2\napi_key\n=\n",  # a vocabulary as lines
        '"merges": ["pass word", "api _key", ["password", ":"]]',
        r'{"Regex": "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\s+(?!\\S)"}',
        'def login(password: str | None = None, api_key=os.environ["KEY"], token="<TOKEN>"): ...',
        "Password: required. Bearer tokens are explained in the documentation.",
        "D:/ and http://localhost:8000/home/alice, saved_model/**/*",
    ],
)
def test_ordinary_files_are_not_refused(text):
    assert leaks(text) == []


def test_every_published_file_is_searched_for_secrets(checkpoint, loads):
    token = "hf_" + "aB3" * 12
    card = "---\nlicense: mit\n---\n![a](a.svg) ![b](b.png) ![c](c.jpg) ![d](d.mp4) ![e](e.gif)\n"
    (checkpoint / "README.md").write_text(card)
    (checkpoint / "msvd.json").unlink()
    texts = PngInfo()
    texts.add_itxt("Comment", token, zip=True)
    picture = Image.new("RGB", (4, 4))
    write_clip(checkpoint / "d.mp4", 60)
    for name in ("b.png", "c.jpg", "e.gif"):
        picture.save(checkpoint / name)
    check(checkpoint, REPO)  # the fixtures' own files and plain pictures pass

    with av.open(str(checkpoint / "d.mp4")) as source, av.open(str(checkpoint / "with.mp4"), "w") as target:
        target.metadata["comment"] = token
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    writers = {
        "a.svg": lambda path: path.write_text(f"<svg><!-- {token} --></svg>"),
        "b.png": lambda path: picture.save(path, pnginfo=texts),
        "c.jpg": lambda path: picture.save(path, comment=token),
        "d.mp4": lambda path: (checkpoint / "with.mp4").rename(path),
        "e.gif": lambda path: picture.save(path, comment=token),
        "LICENSE.rst": lambda path: path.write_text(token),
        "NOTICE.html": lambda path: path.write_text("<p>/home/alice/x/y</p>"),
        "tokenizer.model": lambda path: path.write_bytes(b"\x00\xff\x0a" + token.encode()),
    }
    for name, write in writers.items():
        before = (checkpoint / name).read_bytes() if (checkpoint / name).exists() else None
        write(checkpoint / name)
        with pytest.raises(
            ValueError, match=rf"{name}, line \d, contains (a Hugging Face token|the path '/home/alice)"
        ):
            check(checkpoint, REPO)
        (checkpoint / name).unlink()
        if before is not None:
            (checkpoint / name).write_bytes(before)


# --- A repository that is not empty --------------------------------------------------------------------------


def add_to_hub(hub, files: dict[str, bytes]):
    hub.repositories[REPO].commit("main", dict(commits(hub)[-1]) | files, "edited")


def other_weights(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    save_file({key: value + 1 for key, value in weights.items()}, checkpoint / "model.safetensors", {"format": "pt"})
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")


def test_a_second_push_leaves_nothing_of_the_first_model(hub, checkpoint):
    push(checkpoint, REPO)
    stale = {
        "preprocessor_config.json": b'{"image_processor_type": "CLIPImageProcessor"}',
        "vocab.txt": b"x",
        "pytorch_model.bin": b"x",
        "adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "tester/nowhere"}',
        "adapter_model.safetensors": b"x",
    }
    kept = {"labels.json": b'["a"]', "train.py": b"", "LICENSE": b"mine"}
    add_to_hub(hub, stale | kept)
    other_weights(checkpoint)
    notes = push(checkpoint, REPO).notes
    latest = commits(hub)[-1]
    assert kept.items() <= latest.items()
    assert latest.keys().isdisjoint({"msvd.json", *stale})
    removed = ", ".join(sorted(["msvd.json", *stale]))
    assert f"removed from the repository, as files of an earlier model: {removed}" in notes

    model = RegionLearnerModel.from_pretrained(REPO)
    expected = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.items())
    assert isinstance(AutoProcessor.from_pretrained(REPO), RegionLearnerProcessor)


def test_a_change_on_the_hub_in_the_meantime_is_kept(hub, checkpoint, monkeypatch):
    push(checkpoint, REPO)
    other_weights(checkpoint)
    real = publishing.commit_files

    def late(*args, **options):
        add_to_hub(hub, {"README.md": b"# Edited"})
        return real(*args, **options)

    monkeypatch.setattr(publishing, "commit_files", late)
    with pytest.raises(
        OSError,
        match=r"tester/mine was changed in the meantime .*: push again\. .* now has another commit than before",
    ):
        push(checkpoint, REPO)
    assert commits(hub)[-1]["README.md"] == b"# Edited"


def test_a_card_of_ones_own_that_replaces_another_is_noted(hub, checkpoint):
    push(checkpoint, REPO)
    head = hub.repositories[REPO].branches["main"]
    other_weights(checkpoint)
    notes = push(checkpoint, REPO).notes
    assert (
        f"{checkpoint / 'README.md'} replaces another README.md on the Hub, which remains in its history (commit "
        f"{head})" in notes
    )
    assert not [note for note in push(checkpoint, REPO).notes if "replaces" in note]


def test_a_repository_is_removed_if_the_answer_to_its_creation_is_lost(hub, checkpoint, monkeypatch):
    real = HfApi.create_repo

    def lost(*args, **options):
        real(*args, **options)
        raise RuntimeError("connection lost")

    monkeypatch.setattr(HfApi, "create_repo", lost)
    with pytest.raises(OSError, match=r"connection lost.* The repository that was created for it has been deleted"):
        push(checkpoint, REPO)
    assert hub.repositories == {}
    monkeypatch.setattr(HfApi, "create_repo", real)
    hub.faults = {NEW: (403, "You don't have the rights")}
    with pytest.raises(OSError, match=r"You cannot write to tester/mine .* The repository was not created\."):
        push(checkpoint, REPO)


# --- More files that are not what their names say ------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors.index.json", b"{}", "does not name the files of the weights (in 'weight_map')"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 3}}', "does not name the files of the weights"),
        (
            "README.md",
            b"---\nlicense: mit\n---\n \xe9",
            "README.md is not encoded in UTF-8 (unexpected end of data",
        ),
        ("README.md", b"\xef\xbb\xbf---\nlicense: mit\n---\n", "README.md starts with a byte order mark"),
        ("emissions.csv", b"run_id,emissions\n1,\xe9\n", "emissions.csv was not written by CodeCarbon"),
    ],
)
def test_files_in_another_form(checkpoint, loads, capsys, name, content, message):
    (checkpoint / name).write_bytes(content)
    code, _, err = run(capsys, checkpoint, REPO, "--dry-run")
    assert code == 2
    (line,) = err.splitlines()
    assert message in line


def test_weights_of_a_damaged_index(checkpoint):
    (checkpoint / "model.safetensors.index.json").write_text("[]")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model.safetensors.index.json does not name the files of the weights"):
        weights_of(checkpoint)


def test_loading_that_takes_too_long_is_an_error_of_one_line(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(publishing, "_LOADING_TIMEOUT", 0.01)
    code, _, err = run(capsys, checkpoint, REPO, "--dry-run")
    assert code == 2
    (line,) = err.splitlines()
    assert "mine did not load within 0.01 seconds in a fresh process: push again when the machine is less busy" in line

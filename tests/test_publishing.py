"""Tests `push`: its checks before anything is sent, its single commit, and failures of the Hub."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from region_learner import publishing
from region_learner.checkpoint_files import checkpoint_files
from region_learner.cli import main
from region_learner.evaluation.provenance import describe_model
from region_learner.evaluation.results import EvaluationResults, write_results
from region_learner.leaks import leaks
from region_learner.model_card import model_card
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.publishing import check, check_loads_without_package, push
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .conftest import tiny_model
from .fresh_process import run_script
from .local_hub import LocalHub
from .test_hub import CAPTIONS, SOURCES
from .test_model_card import MSVD

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
    with_card("---\ntags: [a]\n---\n"): "README.md names no license: write `license: ID`",
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
        "tester/mine does not fit: its owner's storage is full",
    ),
    "not paid": ({"/info/lfs": (402, "Payment required")}, "The Hub requires payment for tester/mine (the Hub says:"),
    "the card is refused": ({"/preupload/": (400, "Bad card")}, "The Hub failed with status 400"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_push_leaves_nothing_behind(hub, checkpoint, capsys, name):
    hub.faults, message = FAILURES[name]
    code, out, err = run(capsys, checkpoint, REPO)
    assert (code, out) == (2, "")
    line = err.splitlines()[-1]
    assert line.startswith(f"region-learner: error: {message}"), line
    assert line.endswith(REMOVED)
    assert NEW in hub.requests
    assert "DELETE /api/repos/delete" in hub.requests
    assert hub.repositories == {}

    # A repository that existed before is unchanged.
    hub.faults = {}
    push(checkpoint, REPO)
    (before,) = commits(hub)
    hub.large_files.clear()
    hub.faults, _ = FAILURES[name]
    weights = load_file(checkpoint / "model.safetensors")
    save_file({key: value + 1 for key, value in weights.items()}, checkpoint / "model.safetensors", {"format": "pt"})
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\n")
    code, _, err = run(capsys, checkpoint, REPO)
    assert code == 2
    assert err.splitlines()[-1].endswith("tester/mine on the Hub is unchanged.")
    assert commits(hub) == [before]


def test_a_repository_that_cannot_be_removed_is_named(hub, checkpoint):
    hub.faults = {"/commit/": None, "^DELETE": (500, "out of order")}
    with pytest.raises(
        OSError, match=r"The repository tester/mine, which was created for it, may be empty on the Hub"
    ):
        push(checkpoint, REPO)
    assert commits(hub) == []


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
    with pytest.raises(OSError, match=r"does not fit: .* storage .* \(the Hub says: Private repository storage limit"):
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
    assert err.splitlines()[-1].startswith("region-learner: error: The connection to the Hub failed (")


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

"""Tests checkpoints that are pushed to a Hub during training: each can be loaded without the package."""

import dataclasses
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load
from transformers import TrainerCallback

from region_learner import RegionLearnerModel, publishing
from region_learner.evaluation.provenance import describe_model
from region_learner.evaluation.results import write_results
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.training import parse_stages, pushing, train_stages
from region_learner.training.checkpoints import incompleteness
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .conftest import tiny_model
from .local_hub import TOKEN, LocalHub, Repository
from .test_hub import CAPTIONS, run_python, run_without_package, video, work  # noqa: F401 # fixtures
from .test_model_card import MSVD
from .toy_run import run

REPO = "tester/in-training"

TRAIN = """
import json, sys
from region_learner.training import parse_stages, train_stages

model, data, output, repo = sys.argv[1:]
train_stages(parse_stages([
    f"--model={model}", f"--data_dir={data}", f"--output_dir={output}", "--max_steps=3", "--save_strategy=steps",
    "--save_steps=1", "--push_to_hub=true", f"--hub_model_id={repo}", "--hub_strategy=every_save",
    "--hub_always_push=true", "--per_device_train_batch_size=2", "--use_cpu=true", "--report_to=none",
    "--learning_rate=0.01", "--disable_tqdm=true",
]))
"""


@pytest.fixture(scope="module")
def pushed(video, work):  # noqa: F811
    processor = RegionLearnerProcessor(
        RegionLearnerVideoProcessor.for_image_size(32), train_tokenizer(CAPTIONS, vocab_size=99, max_length=32)
    )
    for part in (tiny_model(seed=0), processor):
        part.save_pretrained(work / "start")
    names = [video.name, "other.mp4"]
    shutil.copy(video, work / names[1])
    rows = [{"file_name": name, "caption": caption} for name, caption in zip(names, CAPTIONS)]
    (work / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with LocalHub() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        arguments = [str(work / "start"), str(work), str(work / "output"), REPO]
        run_python(TRAIN, *arguments, home=work / "trainer", **environment)
        yield hub


def test_intermediate_pushes_load_with_remote_code(pushed, video, work):  # noqa: F811
    repository = pushed.repositories[REPO]
    by_message = {message: commit for commit, message in repository.messages.items()}
    assert "End of training" in by_message
    steps = [message for message in by_message if message.startswith("Training in progress, step")]
    assert steps
    revision = by_message[steps[0]]
    assert {"modeling_region_learner.py", "config.json", "model.safetensors"} <= repository.commits[revision].keys()
    jobs = {"step": {"source": REPO, "revision": revision}, "end": {"source": REPO}}
    environment = {"HF_ENDPOINT": pushed.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}  # it is private
    results = run_without_package(jobs, work / "remote", video, home=work / "user", **environment)
    embeddings = [results[name][0]["outputs.video_embeds"] for name in ("step", "end")]
    assert not torch.equal(*embeddings)  # training continued in between
    assert all("transformers_modules" in module for module in results["step"][1]["modules"])


def test_the_results_are_kept_if_the_last_push_fails(pushed, work, tmp_path, monkeypatch):  # noqa: F811
    pushed.use_in_this_process(monkeypatch, tmp_path)
    monkeypatch.setattr(pushed, "faults", {"/commit/": (403, "Private repository storage limit reached")})
    options = [f"--model={work / 'start'}", f"--data_dir={work}", f"--output_dir={tmp_path / 'run'}", "--max_steps=1"]
    options += ["--push_to_hub=true", f"--hub_model_id={REPO}", "--save_strategy=no", "--use_cpu=true"]
    options += ["--per_device_train_batch_size=2", "--report_to=none", "--disable_tqdm=true"]
    with pytest.raises(OSError, match=f"Pushing {REPO} failed because its owner's storage is full"):
        train_stages(parse_stages(options))
    assert json.loads((tmp_path / "run" / "results.json").read_text())["train"]["train_loss"] > 0


# --- Without videos, in this process --------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with LocalHub() as hub:
        hub.use_in_this_process(monkeypatch, tmp_path)
        yield hub


RUN = {"train": {"train_loss": 1, "train_runtime": 2}, "arguments": {"data_dir": "/home/somebody/videos"}}


class EditCard(TrainerCallback):
    """Edits the card on the Hub after a step, as a user might."""

    def __init__(self, hub, text: bytes, step: int = 1):
        self.hub, self.text, self.step = hub, text, step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            repository = self.hub.repositories[REPO]
            files = repository.commits[repository.branches["main"]]
            repository.commit("main", files | {"README.md": self.text}, "edited")


def train(output_dir, trainers: list | None = None, **arguments):
    pushes = {"push_to_hub": True, "hub_model_id": REPO, "hub_strategy": "every_save", "hub_always_push": True}
    saves = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    keep = trainers.append if trainers is not None else lambda trainer: None
    return run(output_dir, keep_result=False, before=keep, **pushes | saves | arguments)


def files_by_message(hub) -> dict[str, dict[str, bytes]]:
    repository = hub.repositories[REPO]
    return {message: repository.commits[commit] for commit, message in repository.messages.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> set[str]:
    """Returns the names of the files that a model is loaded from."""
    directory = tmp_path_factory.mktemp("saved")
    tiny_model().save_pretrained(directory)
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def test_each_commit_is_one_checkpoint_and_keeps_the_card(hub, whole, tmp_path):
    trainers = []
    train(tmp_path / "run", trainers, callbacks=(EditCard(hub, b"# Mine"),), save=True)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "run" / "README.md").write_text("# Not mine")
    (tmp_path / "run" / "results.json").write_text(json.dumps(RUN))
    trainers[0].push_to_hub()
    found = files_by_message(hub)
    steps = [f"Training in progress, step {step}" for step in (1, 2, 3)]
    assert sorted(found) == sorted(["initial commit", "edited", *steps, "End of training"])  # no other commits
    assert len(hub.repositories[REPO].commits) == len(found)  # one commit per message
    for step, message in enumerate(steps, start=1):
        assert found[message].keys() - {"README.md"} == whole
        saved = (tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors").read_bytes()
        assert found[message]["model.safetensors"] == saved
    assert found["End of training"].keys() == whole | {"README.md", "results.json"}
    assert found["End of training"]["README.md"] == b"# Mine"
    assert not list((tmp_path / "run").glob(".push-*"))
    (tmp_path / "loaded").mkdir()
    for name, content in found[steps[1]].items():
        (tmp_path / "loaded" / name).write_bytes(content)
    model = RegionLearnerModel.from_pretrained(tmp_path / "loaded")
    for name, value in load(found[steps[1]]["model.safetensors"]).items():
        assert torch.equal(model.state_dict()[name], value)


def test_a_missing_card_is_added_at_the_end(hub, tmp_path):
    trainers = []
    train(tmp_path / "run", trainers, max_steps=1, save=True)
    (tmp_path / "run" / "results.json").write_text(json.dumps(RUN))
    trainers[0].push_to_hub(license="mit", language="de")
    found = files_by_message(hub)
    assert all("README.md" not in files for message, files in found.items() if message != "End of training")
    card = found["End of training"]["README.md"].decode()
    assert "license: mit" in card
    assert "- de" in card
    assert "This model has not been evaluated yet." in card
    assert b"somebody" not in found["End of training"]["results.json"]
    with pytest.raises(ValueError, match=r"push_to_hub does not take 'tags': leave it out, or write your own card to"):
        trainers[0].push_to_hub(tags=["a"])


@pytest.mark.parametrize(("strategy", "folder"), [("checkpoint", "last-checkpoint"), ("all_checkpoints", None)])
def test_a_pushed_checkpoint_is_complete(hub, whole, tmp_path, strategy, folder):
    train(tmp_path / "run", hub_strategy=strategy, max_steps=2, hub_token=TOKEN)
    last = files_by_message(hub)["Training in progress, step 2"]
    folders = [folder] if folder else ["checkpoint-1", "checkpoint-2"]
    assert {name.partition("/")[0] for name in last if "/" in name} == set(folders)
    assert {name for name in last if "/" not in name} == whole
    for name, content in last.items():
        (tmp_path / "loaded" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "loaded" / name).write_bytes(content)
    for name in folders:
        assert incompleteness(tmp_path / "loaded" / name) is None
    assert last[f"{folders[-1]}/model.safetensors"] == last["model.safetensors"]
    pickled = [content for name, content in last.items() if name.endswith("training_args.bin")]
    assert pickled
    assert not any(TOKEN.encode() in content for content in pickled)


def test_a_checkpoint_that_is_removed_during_its_push_is_pushed_completely(hub, tmp_path, monkeypatch):
    real, first = pushing.commit_files, tmp_path / "run" / "checkpoint-1"
    content = []

    def slow(*args, **options):
        content.append((first / "model.safetensors").read_bytes())
        deadline = time.monotonic() + 60
        while first.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return real(*args, **options)

    monkeypatch.setattr(pushing, "commit_files", slow)
    train(tmp_path / "run", save_total_limit=1, hub_always_push=False)
    found = files_by_message(hub)
    assert found["Training in progress, step 1"]["model.safetensors"] == content[0]


def test_a_failed_push_does_not_end_training(hub, tmp_path, caplog):
    trainers = []
    hub.faults = {"/commit/": (403, "Private repository storage limit reached")}
    train(tmp_path / "run", trainers)
    (warning, *_) = [record.getMessage() for record in caplog.records if "was not pushed" in record.getMessage()]
    assert warning.startswith(
        "'Training in progress, step 1' was not pushed to tester/in-training, and training continues: "
        "Pushing tester/in-training failed because its owner's storage is full"
    )
    assert (tmp_path / "run" / "checkpoint-3").is_dir()
    with pytest.raises(OSError, match="Pushing tester/in-training failed"):
        trainers[0].push_to_hub()
    assert not list(Path(tmp_path / "run").glob(".push-*"))


def test_a_repository_that_cannot_be_created_is_an_error_of_one_line(hub, tmp_path):
    hub.faults = {"/repos/create": (403, "You don't have the rights to create a model")}
    with pytest.raises(
        PermissionError, match=r"^You cannot write to else/mine \(the Hub says: You don't.*$"
    ) as failed:
        train(tmp_path / "run", hub_model_id="else/mine")
    assert isinstance(failed.value.__cause__, HfHubHTTPError)
    hub.faults = {}
    hub.tokens.clear()
    with pytest.raises(PermissionError, match=r"^The Hub refuses your token.*run `hf auth login`\.$"):
        train(tmp_path / "run", hub_model_id=None)
    hub.faults = {"": None}
    with pytest.raises(OSError, match=r"^The connection to the Hub failed \(.*$"):
        train(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint-1").exists()


def test_a_repository_for_training_is_private_unless_it_is_asked_for(hub, tmp_path):
    train(tmp_path / "run", max_steps=1)
    assert hub.repositories[REPO].private
    train(tmp_path / "public", max_steps=1, hub_model_id="tester/public", hub_private_repo=False)
    assert not hub.repositories["tester/public"].private


def test_files_of_an_earlier_model_are_removed_and_a_processor_is_kept(hub, whole, tmp_path, caplog):
    hub.repositories[REPO] = Repository(private=True)
    write_results(MSVD, tmp_path / "msvd.json")
    stale = {
        "msvd.json": (tmp_path / "msvd.json").read_bytes(),
        "results.json": json.dumps(RUN).encode(),
        "pytorch_model.bin": b"x",
        "adapter_config.json": b"{}",
        "modules.json": b"[]",
    }
    kept = {"tokenizer.json": b"{}", "labels.json": b'["a"]', "README.md": b"# Mine"}
    hub.repositories[REPO].commit("main", stale | kept, "earlier")
    train(tmp_path / "run", max_steps=1)
    files = files_by_message(hub)["Training in progress, step 1"]
    assert files.keys() == whole | kept.keys()
    removed = ", ".join(sorted(stale.keys() - whole))
    assert f"Removed the files of an earlier model from {REPO}: {removed}" in caplog.text


def test_push_replaces_the_draft_of_the_trainer_unless_it_was_edited(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "check_loads_without_package", lambda files, directory: None)
    trainers, directory = [], tmp_path / "run"
    train(directory, trainers, max_steps=1, save=True)
    (directory / "results.json").write_text(json.dumps(RUN))
    trainers[0].push_to_hub(license="mit", language="de", title="My *model*")
    draft = files_by_message(hub)["End of training"]
    assert b"This model has not been evaluated yet." in draft["README.md"]
    described = describe_model(trainers[0].model, str(directory)) | {"trained_on": ["msvd"]}
    write_results(dataclasses.replace(MSVD, model=described, rescored=None), directory / "msvd.json")

    edited = draft["README.md"].replace(b"has not been evaluated yet", b"is wonderful")
    hub.repositories[REPO].commit("main", draft | {"README.md": edited}, "edited")
    with pytest.raises(ValueError, match="has another card on the Hub, which would be replaced"):
        publishing.push(directory, REPO, license="apache-2.0")
    hub.repositories[REPO].commit("main", draft, "as it was")
    publishing.push(directory, REPO, license="apache-2.0")
    repository = hub.repositories[REPO]
    assert b"license: apache-2.0" in repository.commits[repository.branches["main"]]["README.md"]

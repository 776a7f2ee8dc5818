"""The JSON file of an evaluation: written and read back, what describes the model, what must not be in it."""

import hashlib
import json
import re

import huggingface_hub.constants
import pytest

from region_learner.evaluation.results import (
    SCHEMA,
    EvaluationResults,
    check_output,
    describe_data,
    describe_model,
    mean_of_folds,
    read_results,
    versions,
    write_results,
)

from .conftest import tiny_model


def results(**changes) -> EvaluationResults:
    fields = {
        "model": {"name": "tiny", "weights": {"model.safetensors": "00"}, "parameters": 3},
        "data": {
            "corpus": "msvd",
            "data_dir": "MSVD",
            "split": "test",
            "options": {},
            "videos": 2,
            "unreadable": ["ä"],
        },
        "protocol": {"name": "msvd", "primary_metric": "t2v_R@1", "templates": None},
        "metrics": {"t2v_R@1": 12.5, "t2v_MedR": 3.0},
    }
    return EvaluationResults(**fields | changes)


def test_written_and_read_back(tmp_path):
    path = tmp_path / "new" / "evaluation.json"
    written = results(rescored={"dsl_t2v_R@1": 50.0}, notes=["a note"], seed=7, device="a GPU", seconds=1.5)
    write_results(written, path)
    assert read_results(path) == written
    assert [file.name for file in path.parent.iterdir()] == ["evaluation.json"]
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["schema"] == SCHEMA
    assert content["metrics"] == {"t2v_R@1": 12.5, "t2v_MedR": 3.0}  # and nothing of what was re-scored
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", content["date"])
    assert read_results(path).primary == ("t2v_R@1", 12.5)
    write_results(results(), path)  # over one of the same kind
    assert read_results(path).rescored is None


def test_versions():
    found = versions()
    assert set(found) == {"python", "torch", "torchvision", "transformers", "av", "region_learner", "platform"}
    assert all(found.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "holds no results of `region-learner evaluate`: it has no 'schema'"),
        ('{"train": {}, "arguments": {}}', "it has no 'schema'"),
        ('{"schema": 99}', f"has another schema than {SCHEMA}"),
        ('{"schema": 1, "metrics": {}}', "missing or unknown: data, date"),
    ],
)
def test_files_that_hold_no_results(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_results(path)
    with pytest.raises(ValueError, match=r"is there already and would be lost .*: give another file") as error:
        write_results(results(), path)
    assert "\n" not in str(error.value)
    assert path.read_text() == content


def test_places_for_no_results(tmp_path):
    with pytest.raises(ValueError, match=r"is a directory: give a file for the results, such as .*evaluation.json"):
        check_output(tmp_path)
    check_output(tmp_path / "new" / "file.json")
    assert not (tmp_path / "new").exists()
    with pytest.raises(OSError, match=r"none.json"):
        read_results(tmp_path / "none.json")


# --- What is described ---------------------------------------------------------------------------------------


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_description_of_a_directory(tmp_path, monkeypatch):
    model = tiny_model()
    model.save_pretrained(tmp_path / "tiny")
    found = describe_model(model, str(tmp_path / "tiny"))
    assert found["name"] == "tiny"
    assert found["class"] == "RegionLearnerModel"
    assert found["revision"] is None
    assert found["weights"] == {"model.safetensors": sha256(tmp_path / "tiny" / "model.safetensors")}
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["config"]["num_regions"] == 3
    assert found["config"]["text_model_type"] == "distilbert"
    assert json.loads(json.dumps(found)) == found
    monkeypatch.chdir(tmp_path)
    assert describe_model(model, "tiny") == found
    model.save_pretrained("shards", max_shard_size="100KB")
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 1
    assert describe_model(model, "shards")["weights"] == {path.name: sha256(path) for path in shards}
    assert describe_model(model, "nobody/nothing")["weights"] == {}


def test_description_of_a_hub_model(tmp_path, monkeypatch):
    """Files are those of the commit that was loaded, out of the cache."""
    model = tiny_model()
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / commit
    model.save_pretrained(snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model.config._commit_hash = commit
    found = describe_model(model, "someone/tiny")
    assert (found["name"], found["revision"]) == ("someone/tiny", commit)
    assert found["weights"] == {"model.safetensors": sha256(snapshot / "model.safetensors")}


def test_no_paths_of_the_machine(tmp_path):
    options = {
        "fold": 2,
        "video_dir": str(tmp_path / "clips"),
        "missing_list": tmp_path / "m.txt",
        "file": "a/b",
    }
    found = describe_data("msvd", tmp_path / "MSVD", "test", options)
    assert found["data_dir"] == "MSVD"
    assert found["options"] == {"fold": 2, "video_dir": "clips", "missing_list": "m.txt", "file": "a/b"}
    assert str(tmp_path) not in json.dumps(found)
    assert describe_data("moving_shapes", None, "test", {})["data_dir"] is None


# --- Folds ---------------------------------------------------------------------------------------------------


def test_mean_of_folds():
    parts = [
        results(metrics={"top1": top1, "top5": 90.0}, notes=notes, seconds=2.0, model={"name": f"fold{fold}"})
        for fold, top1, notes in ((1, 50.0, []), (2, 60.0, ["few"]), (3, 64.0, []))
    ]
    mean = mean_of_folds(parts, [1, 2, 3])
    assert mean.metrics == {"top1": 58.0, "top5": 90.0}
    assert mean.notes == ["fold 2: few"]
    assert mean.seconds == 6.0
    assert [(part["fold"], part["metrics"]["top1"]) for part in mean.folds] == [(1, 50.0), (2, 60.0), (3, 64.0)]
    assert [part["model"]["name"] for part in mean.folds] == ["fold1", "fold2", "fold3"]
    with pytest.raises(ValueError, match="Folds are averaged over one protocol"):
        mean_of_folds([parts[0], results()], [1, 2])

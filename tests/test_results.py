"""Tests of the JSON file of an evaluation: writing and reading it, and its descriptions of the model and the data."""

import hashlib
import json
import re

import huggingface_hub.constants
import pytest
from huggingface_hub.errors import StrictDataclassError

from region_learner.cli.evaluation import _print_evaluation
from region_learner.evaluation.provenance import describe_data, describe_model, versions, weights_of
from region_learner.evaluation.results import (
    SCHEMA,
    EvaluationResults,
    check_output,
    mean_of_folds,
    read_results,
    write_results,
)

from .conftest import tiny_model


def results(**changes) -> EvaluationResults:
    fields = {
        "model": {
            "name": "tiny",
            "class": "RegionLearnerModel",
            "revision": None,
            "weights": {"model.safetensors": "00"},
            "files": {"config.json": "11"},
            "parameters": 3,
            "config": {},
        },
        "data": {
            "corpus": "msvd",
            "data_dir": "MSVD",
            "split": "test",
            "options": {},
            "videos": 2,
            "unreadable": ["ä", "\udcff"],  # the second is a file name that is not UTF-8
        },
        "protocol": {"name": "msvd", "task": "retrieval", "zero_shot": False, "primary_metric": "t2v_R@1"}
        | dict.fromkeys(("captions", "frames", "clips", "window_stride")),
        "metrics": {"t2v_R@1": 12.5, "t2v_MedR": 3.0},
    }
    return EvaluationResults(**fields | changes)


def test_written_and_read_back(tmp_path):
    path = tmp_path / "new" / "evaluation.json"
    written = results(rescored={"dsl_t2v_R@1": 50.0}, notes=["a note"], device="a GPU", seconds=1.5)
    write_results(written, path)
    assert read_results(path) == written
    assert [file.name for file in path.parent.iterdir()] == ["evaluation.json"]
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["schema"] == SCHEMA
    assert content["metrics"] == {"t2v_R@1": 12.5, "t2v_MedR": 3.0}  # without re-scored ones
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", content["date"])
    assert read_results(path).primary == ("t2v_R@1", 12.5)
    write_results(results(), path)  # a file of the same kind is replaced
    assert read_results(path).rescored is None


def test_files_of_earlier_versions_contain_a_seed(tmp_path):
    path = tmp_path / "evaluation.json"
    write_results(results(), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 7}))
    assert read_results(path) == results(date=read_results(path).date)


def test_versions():
    found = versions()
    assert set(found) == {"python", "torch", "torchvision", "transformers", "av", "region_learner", "platform"}
    assert all(found.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "does not contain results of `region-learner evaluate`: 'schema' is missing"),
        ('{"train": {}, "arguments": {}}', "'schema' is missing"),
        ('{"schema": 99}', f"the schema is 99, expected {SCHEMA}"),
        (f'{{"schema": {SCHEMA}, "metrics": {{}}}}', "missing or unknown: data, date"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_files_that_do_not_contain_results(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_results(path)
    with pytest.raises(ValueError, match=r"exists and would be overwritten .*: name another file") as error:
        write_results(results(), path)
    assert "\n" not in str(error.value)
    assert path.read_text() == content


def test_places_where_results_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"is a directory: name a file, such as .*evaluation.json"):
        check_output(tmp_path)
    check_output(tmp_path / "new" / "file.json")
    assert list((tmp_path / "new").iterdir()) == []  # tried and left empty
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "e.json", tmp_path / ("a" * 250)):  # too long with the added `.partial`
        with pytest.raises(ValueError, match=r"Results cannot be written to .*: name another file"):
            check_output(place)
    with pytest.raises(OSError, match=r"none.json"):
        read_results(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {}}, "model: 'name' is missing"),
        ({"model": 3}, "Field 'model' expected a dict, got int"),
        ({"model.weights": ["a"]}, r"Field 'model.weights' expected a dict, got list"),
        ({"model.weights": {"a": 1}}, r"Field 'model.weights\['a'\]' expected str, got int"),
        ({"model.parameters": True}, "Field 'model.parameters' expected int, got bool"),
        ({"model.config": "x" * 9999}, "Field 'model.config' expected dict, got str"),
        ({"model.revision": 7}, "Field 'model.revision' with value 7 doesn't match any type in .str, NoneType."),
        ({"protocol": {"task": "retrieval"}}, "protocol: 'name' is missing"),
        ({"data.corpus": None}, "Field 'data.corpus' expected str, got NoneType"),
        ({"data.videos": "2"}, "Field 'data.videos' with value '2' doesn't match any type"),
        ({"data.videos": "2" * 9999}, "Field 'data.videos' with value '22222"),
        ({"protocol.task": 1}, "Field 'protocol.task' expected str, got int"),
        ({"protocol.primary_metric": "top1"}, "metrics: the primary metric, 'top1', is missing"),
        ({"metrics": {"t2v_R@1": "12"}}, r"Field 'metrics\['t2v_R@1'\]' with value '12' doesn't match any type"),
        ({"metrics": {"t2v_R@1": True}}, r"(Field ')?metrics.*'t2v_R@1'.* True\b"),
        ({"metrics": {"t2v_R@1": float("nan")}}, "metrics: 't2v_R@1' is nan, which is not finite"),
        ({"rescored": {"a": float("inf")}}, "rescored: 'a' is inf, which is not finite"),
        ({"versions": {}}, "versions: 'torch' is missing"),
        ({"metrics": {"t2v_R@1": 10**400}}, "metrics: 't2v_R@1' is 1000"),
        ({"notes": "few"}, "Field 'notes' expected a list, got str"),
        ({"notes": [1]}, r"Field 'notes\[0\]' expected str, got int"),
        ({"folds": [3]}, r"Field 'folds' with value \[3\] doesn't match any type"),
        ({"folds": [{"fold": "1", "model": {}, "data": {}, "metrics": {}}]}, r"Field 'folds\[0\].fold' expected int"),
        ({"folds": [{"fold": 1, "model": {}, "data": {}, "metrics": {}}]}, r"folds\[0\].model: 'name' is missing"),
    ],
)
def test_contents_that_are_not_results(tmp_path, changes, message):
    """Such contents are neither read nor written."""
    path = tmp_path / "evaluation.json"
    write_results(results(), path)
    content = json.loads(path.read_text())
    for name, value in changes.items():
        where, _, key = name.partition(".")
        content[where] = content[where] | {key: value} if key else value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"does not contain results of `region-learner evaluate`: {message}") as error:
        read_results(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert str(path) in str(error.value)
    del content["schema"]
    with pytest.raises((ValueError, StrictDataclassError)):  # either when they are made or when they are written
        write_results(EvaluationResults(**content), tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"corpus": 3}}, r"Field 'folds\[1\].data.corpus' expected str, got int"),
        ({"data": {"corpus": None}}, r"Field 'folds\[1\].data.corpus' expected str"),
        ({"model": {"parameters": "3"}}, r"Field 'folds\[1\].model.parameters' expected int, got str"),
        ({"metrics": {"t2v_R@1": float("inf")}}, r"folds\[1\].metrics: 't2v_R@1' is inf, which is not finite"),
        ({"metrics": {"other": 1.0}}, r"folds\[1\].metrics: expected the same metrics as those of the mean"),
    ],
)
def test_folds_that_are_not_results(tmp_path, changes, message):
    path = tmp_path / "mean.json"
    write_results(mean_of_folds([results(), results()], [1, 2], "x"), path)
    content = json.loads(path.read_text())
    for name, change in changes.items():
        content["folds"][1][name] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        read_results(path)
    assert "\n" not in str(error.value)


def test_results_that_are_not_finite_can_be_printed_but_are_not_written(tmp_path, capsys):
    diverged = results(metrics={"t2v_R@1": float("nan")})
    _print_evaluation(diverged, as_json=False)
    assert re.search(r"t2v_R@1\W+nan", capsys.readouterr().out)
    with pytest.raises(ValueError, match=r"The results cannot be written to .*new.json: metrics: 't2v_R@1' is nan"):
        write_results(diverged, tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()


# --- Descriptions of models and data -------------------------------------------------------------------------


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
    assert found["files"] == {"config.json": sha256(tmp_path / "tiny" / "config.json")}
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


def test_an_index_cannot_point_outside_its_checkpoint(tmp_path):
    (tmp_path / "secret").write_text("secret")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "own").write_text("own")
    index = {"weight_map": {"a": "../secret", "b": str(tmp_path / "secret"), "c": "own"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_of(checkpoint) == {"own": sha256(checkpoint / "own")}


def test_one_file_of_weights_precedes_shards(tmp_path):
    """transformers loads it, too, if an index was left over from an earlier save."""
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(weights_of(tmp_path)) > 1
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert weights_of(tmp_path) == {"model.safetensors": sha256(tmp_path / "model.safetensors")}


def test_description_of_a_hub_model(tmp_path, monkeypatch):
    """The files are those of the loaded commit in the cache."""
    model = tiny_model()
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / commit
    model.save_pretrained(snapshot)
    (tmp_path / "models--someone--tiny" / "refs").mkdir()
    (tmp_path / "models--someone--tiny" / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    found = describe_model(model, "someone/tiny")
    assert (found["name"], found["revision"]) == ("someone/tiny", commit)
    assert found["weights"] == {"model.safetensors": sha256(snapshot / "model.safetensors")}


def test_descriptions_contain_no_local_paths(tmp_path):
    options = {
        "fold": 2,
        "video_dir": str(tmp_path / "clips"),
        "missing_list": tmp_path / "m.txt",
        "file": "a/b",
    }
    options["nested"] = [{"data_dir": "x", "a": str(tmp_path / "a"), "b": ["~/b", "../c", "C:\\\\me\\d", "e/f/g"]}]
    found = describe_data("msvd", tmp_path / "MSVD", "test", options)
    assert found["data_dir"] == "MSVD"
    assert found["options"] == {"fold": 2, "video_dir": "clips", "missing_list": "m.txt", "file": "a/b"} | {
        "nested": [{"a": "a", "b": ["b", "c", "d", "g"]}]
    }
    assert str(tmp_path) not in json.dumps(found)
    assert describe_data("moving_shapes", None, "test", {})["data_dir"] is None


# --- Folds ---------------------------------------------------------------------------------------------------


def test_mean_of_folds(tmp_path):
    whole = results()
    protocol = whole.protocol | {"primary_metric": "top1"}
    parts = [
        results(
            model=whole.model | {"name": f"fold{fold}", "weights": {"model.safetensors": f"0{fold}"}},
            data=whole.data | {"options": {"fold": fold, "max_missing": 1}, "videos": fold},
            protocol=protocol,
            metrics={"top1": top1, "top5": 90.0},
            notes=["small", *notes],
            seconds=2.0,
        )
        for fold, top1, notes in ((1, 50.0, []), (2, 60.0, ["few"]), (3, 64.0, []))
    ]
    mean = mean_of_folds(parts, [1, 2, 3], str(tmp_path / "fold{fold}"))
    assert mean.metrics == {"top1": 58.0, "top5": 90.0}
    assert mean.notes == ["folds 1, 2, 3: small", "fold 2: few"]
    assert mean.seconds == 6.0
    assert mean.mean_of == "mean of folds 1 to 3"
    assert [(part["fold"], part["metrics"]["top1"]) for part in mean.folds] == [(1, 50.0), (2, 60.0), (3, 64.0)]
    assert [part["model"]["name"] for part in mean.folds] == ["fold1", "fold2", "fold3"]
    assert [part["data"]["videos"] for part in mean.folds] == [1, 2, 3]
    # What holds for one fold only is left out.
    assert mean.data == {"corpus": "msvd", "data_dir": "MSVD", "split": "test", "options": {"max_missing": 1}}
    assert mean.model["name"] == "fold{fold}"
    assert mean.model["parameters"] == 3
    assert "weights" not in mean.model
    write_results(mean, tmp_path / "mean.json")
    assert read_results(tmp_path / "mean.json") == mean
    assert mean_of_folds([parts[0], parts[0]], [1, 3], "fold1").model == parts[0].model
    assert mean_of_folds([parts[0], parts[0]], [1, 3], "fold1").mean_of == "mean of folds 1, 3"
    assert whole.mean_of == ""
    with pytest.raises(ValueError, match="Folds are averaged over one protocol"):
        mean_of_folds([parts[0], whole], [1, 2], "x")

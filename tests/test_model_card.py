"""Model cards: what must be in them, and what must not."""

import dataclasses
import json

import pytest
from huggingface_hub import ModelCard

from region_learner.cli import main
from region_learner.evaluation.results import EvaluationResults, write_results
from region_learner.hub import model_card


@pytest.fixture
def measured(tmp_path):
    results = EvaluationResults(
        model={
            "name": "mine",
            "class": "RegionLearnerModel",
            "revision": None,
            "weights": {"model.safetensors": "ab" * 32},
            "parameters": 1_234_567,
            "config": {"num_frames": 4, "codebook_size": 256, "num_regions": 8},
        },
        data={"corpus": "msvd", "data_dir": "MSVD", "split": "test", "options": {}, "videos": 670, "texts": 27763},
        protocol={
            "name": "msvd", "task": "retrieval", "captions": "all", "frames": 4, "clips": 1, "zero_shot": False,
            "primary_metric": "t2v_R@1", "source": "somebody",
        },
        metrics={"t2v_R@1": 45.678, "t2v_MedR": 2.0},
        rescored={"dsl_t2v_R@1": 50.1},
        notes=["the gallery has 668 videos instead of 670"],
        versions={"python": "3.11", "torch": "2.14", "transformers": "5.23", "region_learner": "0.1.0"},
        date="2026-11-25T01:02:03+00:00",
    )  # fmt: skip
    path = tmp_path / "evaluation.json"
    write_results(results, path)
    return results, path


def test_a_card_holds_what_was_measured(measured, tmp_path):
    _, path = measured
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    arguments = {
        "video_config": {"num_regions": 8},
        "model": str(tmp_path / "secret" / "start"),
        "data_dir": "/home/me",
    }
    train = {"videos": 1200, "train_loss": 0.5, "train_runtime": 60.0, "unreadable_videos": 3}
    (checkpoint / "results.json").write_text(json.dumps({"train": train, "arguments": arguments}))
    text = model_card([path], checkpoint, repo="me/mine", license="apache-2.0", title="Mine")
    card = ModelCard(text)
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "feature-extraction"
    assert {"video-text-retrieval", "text-to-video-retrieval"} <= set(card.data.tags)
    entries = {(entry.dataset_type, entry.metric_type): entry.metric_value for entry in card.data.eval_results}
    assert entries == {("msvd", "t2v_R@1"): 45.68, ("msvd", "t2v_MedR"): 2.0}  # nothing re-scored among the plain ones
    for part in ("# Mine", "| 45.7 | 2.0 |", "670 videos, 27,763 texts", "1.2 M", "the gallery has 668", "abababab"):
        assert part in card.text, part
    for part in ("dsl_t2v_R@1 50.1", "not to be compared", "On 1,200 videos", "3 videos could not be read"):
        assert part in card.text, part
    assert 'from_pretrained("me/mine", trust_remote_code=True)' in card.text
    assert str(tmp_path) not in text
    assert "/home/me" not in text


def test_without_a_training_run_or_licence_the_card_says_so(measured):
    _, path = measured
    card = ModelCard(model_card([path]))
    assert card.data.license == "other"
    assert card.data.license_name == "not-stated"
    assert "Not known: there is no `results.json`" in card.text


def test_errors(measured, tmp_path, capsys):
    results, path = measured
    with pytest.raises(ValueError, match="needs measured results"):
        model_card([])
    other = dataclasses.replace(results, model=results.model | {"weights": {"model.safetensors": "cd" * 32}})
    write_results(other, tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"other.json is of other weights than .*evaluation.json"):
        model_card([path, tmp_path / "other.json"])
    with pytest.raises(SystemExit) as end:
        main(["card", str(tmp_path / "none.json")])
    assert end.value.code == 2
    assert "none.json" in capsys.readouterr().err


def test_command(measured, tmp_path):
    _, path = measured
    with pytest.raises(SystemExit) as end:
        main(["card", str(path), "--output", str(tmp_path / "cards" / "mine.md"), "--title", "Mine"])
    assert end.value.code == 0
    assert "# Mine" in (tmp_path / "cards" / "mine.md").read_text()

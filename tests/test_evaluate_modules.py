"""Tests the `evaluate` modules: from a directory or the package, in batches, in several processes, and offline."""

import os
import shutil
import socket
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

import region_learner.evaluation.modules
from region_learner.evaluation import list_metrics, load_metric, retrieval_metrics

from .test_distributed_evaluation import in_two_processes

FOLDER = Path(region_learner.evaluation.modules.__file__).parent
NAMES = ["action_accuracy", "answer_accuracy", "multiple_choice_accuracy", "video_text_retrieval"]


@pytest.fixture(scope="module", autouse=True)
def modules_cache(tmp_path_factory):
    """Sets a temporary directory for the modules that `evaluate` copies, and fails on any network access."""

    connect = socket.socket.connect

    def connect_to_processes(self, address):
        assert self.family == socket.AF_UNIX, f"a metric asked for the network: {address}"
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(socket.socket, "connect", connect_to_processes)
        yield


@pytest.fixture
def load(tmp_path):
    return lambda name, **options: load_metric(name, cache_dir=str(tmp_path / "cache"), **options)


def pairs(seed: int = 0):
    """Returns texts, videos, and the index of each text's video. The last videos have no text."""
    rng = np.random.default_rng(seed)
    text, video = rng.normal(size=(31, 5)).astype(np.float32), rng.normal(size=(17, 5)).astype(np.float32)
    text[3], video[4] = text[2], video[1]
    return text, video, rng.integers(0, 14, 31)


def test_every_directory_is_a_module(tmp_path):
    assert list_metrics() == NAMES
    for name in NAMES:
        shutil.copytree(FOLDER / name, tmp_path / name)
        for path in (FOLDER / name, tmp_path / name / f"{name}.py"):
            module = evaluate.load(str(path), cache_dir=str(tmp_path / "cache"))
            assert isinstance(module, evaluate.Metric)
            assert module.name == name
            assert "predictions" in module.inputs_description
            assert len(module.description) > 50
    with pytest.raises(ValueError, match="'accuracy' is not known; choose one of action_accuracy, answer_accuracy, "):
        load_metric("accuracy")


@pytest.mark.parametrize("ids", ["numbers", "words"])
@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_retrieval_in_batches(load, ids, keep_in_memory):
    text, video, owners = pairs()
    names = np.arange(100, 117) if ids == "numbers" else np.array([f"video{i}" for i in range(17)])
    expected = retrieval_metrics(text, video, owners, np.arange(17))
    metric = load("video_text_retrieval", keep_in_memory=keep_in_memory)
    for _ in range(2):  # it can be used again
        for start in range(0, 31, 4):
            part = slice(start, start + 4)
            metric.add_batch(
                predictions=text[part], references=video[owners[part]], video_ids=names[owners[part]].tolist()
            )
        metric.add_batch(predictions=[[]] * 3, references=video[14:], video_ids=names[14:].tolist())
        if ids == "numbers":  # rows with the id -1 are padding
            metric.add_batch(predictions=text[:2], references=video[:2], video_ids=[-1, -1])
        rest = [i for i in range(14) if i not in owners]
        if rest:
            metric.add_batch(predictions=[[]] * len(rest), references=video[rest], video_ids=names[rest].tolist())
        assert metric.compute() == expected


def test_retrieval_with_separate_texts_and_videos(load):
    text, video, owners = pairs(1)
    metric = load("video_text_retrieval")
    for i in range(17):
        metric.add(prediction=[], reference=torch.tensor(video[i]), video_ids=i)
    metric.add(prediction=[], reference=-video[3], video_ids=3)  # a repeated id: the first embedding counts
    metric.add_batch(predictions=torch.tensor(text), references=[[]] * 31, video_ids=torch.tensor(owners))
    assert metric.compute() == retrieval_metrics(text, video, owners, range(17))
    own = load("video_text_retrieval").compute(
        predictions=text[:17].tolist(), references=video.tolist(), video_ids=list("abcdefghijklmnopq")
    )
    assert own == retrieval_metrics(text[:17], video)


def test_retrieval_errors(load):
    text, video, _ = pairs()
    ids = list(range(17))
    for arguments, message in [
        ({"predictions": [[1.0, 2.0], [1.0]], "references": video[:2]}, "predictions must be .*same length.*1, 2"),
        (
            {"predictions": [[], []], "references": video[:2]},
            "predictions must be .*same length, but they are empty",
        ),
        ({"predictions": text[:2], "references": video[:2, :4]}, "must have the same dimension, not 5 and 4"),
        ({"predictions": text[:2], "references": [video[0], []]}, r"not in video_ids: \[1\]"),
        (
            {"predictions": text[:2], "references": np.full((2, 5), np.nan)},
            "video_embeds contains values that are",
        ),
        ({"predictions": text[:2], "references": video[:3]}, "Mismatch in the number of predictions"),
    ]:
        with pytest.raises(ValueError, match=message):
            load("video_text_retrieval").compute(**arguments, video_ids=ids[: len(arguments["predictions"])])
    with pytest.raises(ValueError, match="Every row is left out: all ids are -1"):
        load("video_text_retrieval").compute(predictions=text[:2], references=video[:2], video_ids=[-1, -1])


def test_accuracies(load):
    """Compares with rows scored by hand. A tie counts as the chance of drawing the right one."""
    logits = np.array(
        [[3, 2, 1, 0, 0, -9], [0, 9, 1, 2, 3, 4], [1, 0, 0, 0, 0, 0], [9, 0, 0, 0, 0, 0], [5, 5, 0, 0, 0, 0]]
    )
    labels = [0, 0, -1, -100, 1]

    def batches(name):
        metric = load(name)
        for start in range(0, 5, 2):
            metric.add_batch(predictions=logits[start : start + 2], references=labels[start : start + 2])
        return metric.compute()

    assert batches("answer_accuracy") == {"accuracy": 100 * 1.5 / 4, "questions": 4, "out_of_vocabulary": 1}
    assert batches("action_accuracy") == {"top1": 100 * 1.5 / 4, "top5": 100 * 2 / 4}
    tensors = {"predictions": torch.tensor(logits).float(), "references": torch.tensor(labels)}
    assert load("action_accuracy").compute(**tensors) == {"top1": 100 * 1.5 / 4, "top5": 100 * 2 / 4}
    for name in ("answer_accuracy", "action_accuracy"):
        with pytest.raises(ValueError, match="predictions must be sequences of the same length, but 1 are empty"):
            load(name).compute(predictions=[[1.0, 2.0], []], references=[0, 1])
        with pytest.raises(ValueError, match="Every row is left out"):
            load(name).compute(predictions=[[1.0, 2.0]], references=[-100])


def test_multiple_choice(load):
    options = [[0.1, 0.9], [1, 1, 1, 1], [3, 2, 1], [], [-5, -1, -3], [0.5]]
    answers = [1, 2, 0, -100, 2, 0]
    metric = load("multiple_choice_accuracy")
    for start in range(0, 6, 4):
        metric.add_batch(predictions=options[start : start + 4], references=answers[start : start + 4])
    assert metric.compute() == {"accuracy": pytest.approx(100 * (1 + 1 / 4 + 1 + 0 + 1) / 5), "questions": 5}
    # Scores keep their precision.
    close = {"predictions": [[0.3, 0.3 + 1e-9]], "references": [0]}
    assert load("multiple_choice_accuracy").compute(**close)["accuracy"] == 0
    for answer, number in ((3, 3), (-1, 3)):
        with pytest.raises(ValueError, match=f"Row 1: the answer {answer} is not the index of one of {number}"):
            load("multiple_choice_accuracy").compute(predictions=options[1:3], references=[0, answer])
    with pytest.raises(ValueError, match="Every row is left out"):
        load("multiple_choice_accuracy").compute(predictions=[[1.0]], references=[-100])


def add_own_rows(rank: int, log: str, folder: str):
    """Adds the rows of one process: the first has 20 of the 31 texts, the second has 11."""
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # Each process has its own folder: that two of them set up one folder at once is not tested here.
    evaluate.config.HF_MODULES_CACHE = str(Path(folder) / f"modules-{rank}")
    metric = load_metric(
        "video_text_retrieval", cache_dir=folder, num_process=2, process_id=rank, experiment_id="of two"
    )
    text, video, owners = pairs()
    own = range(31)[20:] if rank else range(31)[:20]
    for start in range(0, len(own), 6):
        part = list(own[start : start + 6])
        metric.add_batch(predictions=text[part], references=video[owners[part]], video_ids=owners[part])
    torch.save(metric.compute(), Path(folder) / f"rank{rank}.pt")


def test_retrieval_in_two_processes(tmp_path):
    in_two_processes(add_own_rows, tmp_path)
    text, video, owners = pairs()
    met = np.unique(owners)
    expected = retrieval_metrics(text, video[met], owners, met)
    assert torch.load(tmp_path / "rank0.pt") == expected
    assert torch.load(tmp_path / "rank1.pt") is None

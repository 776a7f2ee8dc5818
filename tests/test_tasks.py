"""Tests question answering, multiple choice and action recognition, from corpus to metric, on moving shapes."""

import json
from collections import Counter

import pytest
from transformers import (
    AutoModel,
    AutoModelForVideoClassification,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
)

from region_learner.cli import main
from region_learner.corpora import load_corpus, make_corpus
from region_learner.evaluation import zero_shot_accuracy
from region_learner.training import parse_arguments, train

from .conftest import tiny_text_config

VIDEO = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 48,
    "patch_size": 8,
    "num_frames": 4,
    "codebook_size": 32,
    "num_regions": 4,
    "interaction_heads": 4,
}
ARGUMENTS = [
    "--corpus=moving_shapes",
    "--test_split=train",
    "--video_config",
    json.dumps(VIDEO),
    "--text_config",
    json.dumps(tiny_text_config(dim=48).to_diff_dict() | {"vocab_size": 400, "model_type": "distilbert"}),
    "--config",
    json.dumps({"projection_dim": 48, "text_pooling": "mean"}),
    "--tokenizer=train",
    "--vocab_size=400",
    "--learning_rate=4e-3",
    "--warmup_steps=10",
    "--per_device_train_batch_size=16",
    "--per_device_eval_batch_size=32",
    "--report_to=none",
    "--save_strategy=no",
    "--use_cpu=true",
    "--disable_tqdm=true",
]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    def make(clips):
        folder = tmp_path_factory.mktemp("shapes") / "corpus"
        options = {"val": 0, "test": 0, "test_unseen": 0, "size": 48, "frames": 4, "objects": [1, 1]}
        return make_corpus("moving_shapes", folder, workers=1, progress=False, train=clips, **options)

    return make


def run(corpus, output, task, of_corpus, steps):
    arguments = [
        *ARGUMENTS,
        f"--output_dir={output}",
        f"--data_dir={corpus}",
        f"--task={task}",
        f"--max_steps={steps}",
    ]
    return train(*parse_arguments([*arguments, "--corpus_options", json.dumps({"task": of_corpus})]))


def without_looking(rows, column):
    """Returns the accuracy in percent if every row gets the most frequent answer."""
    return 100 * Counter(rows[column]).most_common(1)[0][1] / len(rows)


def test_question_answering(make, tmp_path):
    corpus = make(6)
    results = run(corpus, tmp_path, "question_answering", "question_answering", 60)["test"]
    rows = load_corpus("moving_shapes", corpus, task="question_answering")
    assert results["accuracy"] > 2 * without_looking(rows, "answer")
    assert (results["questions"], results["out_of_vocabulary"]) == (len(rows), 0)
    model = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path)
    assert set(model.config.label2id) == set(rows["answer"])


@pytest.mark.slow
def test_action_recognition(make, tmp_path, capsys):
    corpus = make(64)
    results = run(corpus, tmp_path, "classification", "action_recognition", 150)["test"]
    rows = load_corpus("moving_shapes", corpus, task="action_recognition")
    assert results["top1"] > 2 * without_looking(rows, "label")
    assert results["top5"] >= results["top1"]
    model = AutoModelForVideoClassification.from_pretrained(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([
            "evaluate", str(tmp_path), "--corpus=moving_shapes", f"--data-dir={corpus}", "--split=train", "--json",
            "--task=classification", '--corpus-options={"task": "action_recognition"}',
        ])  # fmt: skip
    assert end.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in results} == results
    assert (found["split"], found["trained_on"]) == ("train", True)
    assert [model.config.id2label[i] for i in range(len(model.config.id2label))] == rows.features["label"].names


@pytest.mark.slow
def test_multiple_choice(make, tmp_path):
    results = run(make(64), tmp_path, "multiple_choice", "multiple_choice", 80)["test"]
    assert results["accuracy"] > 50  # chance: 20
    assert results["questions"] == 64


@pytest.mark.slow
def test_zero_shot_recognition(make, tmp_path):
    """The dual encoder was trained on captions, which are the names of the actions, and never on labels."""
    corpus = make(64)
    run(corpus, tmp_path, "retrieval", "action_recognition", 400)
    rows = load_corpus("moving_shapes", corpus, task="action_recognition")
    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    results = zero_shot_accuracy(model, processor, rows, templates=("{}",), progress=False)
    assert results["top1"] > 1.5 * without_looking(rows, "label")

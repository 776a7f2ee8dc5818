"""Compares the Trainer's metrics in two processes and in one: every row counts once, for any number of rows."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from region_learner import RegionLearnerForVideoClassification, RegionLearnerForVideoQuestionAnswering
from region_learner.training import RegionLearnerTrainer, RegionLearnerTrainingArguments

from .conftest import randomize, tiny_model
from .toy_run import _PROCESSES, DEFAULTS, Processor, free_port

BATCH = 3  # per process
ROWS = (1, 2, 3, 4, 5, 6, 7, 11, 12)  # with two processes, batches of 6
BAD = (1, 6, 7, 8, 10)  # rows with unreadable videos; of 12 rows, they fill the last batch of one process
METRICS = {
    "retrieval": ("t2v", "v2t"),
    "multiple_choice": ("accuracy", "questions"),
    "question_answering": ("accuracy", "questions"),
    "classification": ("top",),
}
CLASSES = 5


class Collator:
    """Behaves like the collator of the package in evaluation: unreadable rows have the ID -1 or the label -100."""

    def __init__(self, task):
        self.task = task

    def __call__(self, rows):
        numbers = [int(row["video_id"]) for row in rows]
        clips, texts, ids, labels, options = [], [], [], [], []
        for number in numbers:
            generator = torch.Generator().manual_seed(number)
            count = 2 + number % 3 if self.task == "multiple_choice" else 1
            options.append([len(texts) + i if i < count else -1 for i in range(max(2 + n % 3 for n in numbers))])
            texts += [torch.randint(1, 99, (6,), generator=generator) for _ in range(count)]
            first = 0 if self.task == "multiple_choice" else -1  # -1: an answer that the model does not know
            last = count if self.task == "multiple_choice" else CLASSES
            labels.append(int(torch.randint(first, last, (), generator=generator)))
            video = number // 2  # every other text belongs to the same video as the one before
            clips.append(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(100 + video)))
            ids.append(2**61 + video)
        bad = torch.tensor([number in BAD for number in numbers])
        batch = {
            "pixel_values_videos": torch.stack(clips),
            "unreadable": [(str(number), "cannot be read") for number in numbers if number in BAD],
            "videos": len(rows),
        }
        if self.task != "classification":
            batch |= {"input_ids": torch.stack(texts), "attention_mask": torch.ones(len(texts), 6, dtype=torch.long)}
        if self.task == "multiple_choice":
            batch["options"] = torch.tensor(options)
        if self.task == "retrieval":
            return batch | {"video_ids": torch.tensor(ids).where(~bad, -1), "return_loss": True}
        return batch | {"labels": torch.tensor(labels).where(~bad, -100)}


def model_of(task: str):
    model = tiny_model(seed=11)
    if task in ("retrieval", "multiple_choice"):
        return model
    model.config.id2label = {i: str(i) for i in range(CLASSES)}
    kinds = {
        "question_answering": RegionLearnerForVideoQuestionAnswering,
        "classification": RegionLearnerForVideoClassification,
    }
    return randomize(kinds[task](model.config), 11)


def dataset(rows: int, first: int = 0) -> Dataset:
    return Dataset.from_dict({"video_id": [str(first + i) for i in range(rows)]})


def make_trainer(task: str, output_dir, **options) -> RegionLearnerTrainer:
    datasets = {name: options.pop(name) for name in ("train_dataset", "eval_dataset") if name in options}
    trainer = RegionLearnerTrainer(
        model=model_of(task),
        args=RegionLearnerTrainingArguments(output_dir=str(output_dir), **DEFAULTS | options),
        processing_class=Processor(),
        data_collator=Collator(task),
        task=task,
        label=None if task in ("retrieval", "multiple_choice") else (lambda row: 0),
        **datasets,
    )
    trainer.eval_collator = Collator(task)
    return trainer


def predictions(output_dir, batch: int) -> dict:
    """Returns the inputs and results of `compute_metrics`, by task and number of rows."""
    torch.set_num_threads(1)
    results = {}
    for task in METRICS:
        trainer = make_trainer(task, output_dir, per_device_eval_batch_size=batch)
        for rows in ROWS:
            output = trainer.predict(dataset(rows))
            metrics = {name.removeprefix("test_"): value for name, value in output.metrics.items()}
            results[task, rows] = {
                "outputs": output.predictions if task == "retrieval" else (output.predictions,),
                "labels": output.label_ids,
                "metrics": {name: metrics[name] for name in metrics if name.startswith(METRICS[task])},
            }
    return results


def labels_while_training(output_dir) -> list[np.ndarray]:
    """Returns the labels that `compute_metrics` gets in evaluations during training."""
    trainer = make_trainer(
        "retrieval",
        output_dir,
        train_dataset=dataset(8, first=20),
        eval_dataset=dataset(7),
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=BATCH,
    )
    seen: list[np.ndarray] = []
    compute = trainer.compute_metrics
    trainer.compute_metrics = lambda prediction: seen.append(prediction.label_ids) or compute(prediction)
    trainer.train()
    return seen


def complaint_about_a_stream(output_dir) -> str:
    with pytest.raises(ValueError, match="stream") as error:
        make_trainer("retrieval", output_dir).predict(dataset(7).to_iterable_dataset())
    return str(error.value)


def child(rank: int, port: int, log: str, output_dir: str):
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    result = predictions(output_dir, BATCH)
    result["while training"] = labels_while_training(output_dir)
    result["stream"] = complaint_about_a_stream(output_dir)
    torch.save(result, Path(output_dir) / f"rank{rank}.pt")


def in_two_processes(target, folder: Path, *arguments):
    """Runs `target(rank, *arguments, log, folder)` in two processes."""
    logs = [folder / f"{rank}.log" for rank in range(2)]
    started = [
        _PROCESSES.Process(target=target, args=(rank, *arguments, str(logs[rank]), str(folder))) for rank in range(2)
    ]
    for process in started:
        process.start()
    try:
        for process in started:
            process.join(300)
        for process, log in zip(started, logs):
            assert process.exitcode == 0, log.read_text(errors="replace")[-4000:]
    finally:
        for process in started:
            process.kill()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(child, folder, free_port())
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def of_one(tmp_path_factory):
    return predictions(tmp_path_factory.mktemp("one"), batch=4)


def labels_of(task: str, rows: int) -> list[int]:
    labels = Collator(task)(dataset(rows))
    return labels["video_ids" if task == "retrieval" else "labels"].tolist()


@pytest.mark.parametrize("task", METRICS)
@pytest.mark.parametrize("rows", ROWS)
def test_every_row_counts_once(of_two, of_one, task, rows):
    expected = of_one[task, rows]
    assert expected["labels"].tolist() == labels_of(task, rows)
    for process in of_two:
        result = process[task, rows]
        assert result["labels"].tolist() == labels_of(task, rows)
        assert len(result["outputs"]) == len(expected["outputs"]) == (2 if task == "retrieval" else 1)
        for output, reference in zip(result["outputs"], expected["outputs"]):
            assert len(output) == rows
            np.testing.assert_allclose(output, reference, rtol=1e-4, atol=1e-5)
        assert result["metrics"] == pytest.approx(expected["metrics"])
        assert len(result["metrics"]) == (14 if task == "retrieval" else 2)


def test_metrics_are_those_of_the_readable_rows(of_two):
    """The metrics equal those computed by hand from the readable rows."""
    rows = max(ROWS)
    kept = [i for i in range(rows) if i not in BAD]
    text, video = (output[kept] for output in of_two[0]["retrieval", rows]["outputs"])
    owners = [i // 2 for i in kept]
    videos = sorted(set(owners))
    scores = text @ video[[owners.index(number) for number in videos]].T
    own = np.array([videos.index(number) for number in owners])
    ranks = 1 + (scores > scores[np.arange(len(kept)), own][:, None] + 1e-6).sum(1)
    assert of_two[0]["retrieval", rows]["metrics"]["t2v_MeanR"] == pytest.approx(ranks.mean())
    assert ranks.mean() > 1
    logits, labels = (of_two[0]["classification", rows][name] for name in ("outputs", "labels"))
    hits = [logits[0][i].argmax() == labels[i] for i in kept]
    assert of_two[0]["classification", rows]["metrics"]["top1"] == pytest.approx(100 * np.mean(hits))
    assert 0 < np.mean(hits) < 1
    assert of_two[0]["question_answering", rows]["metrics"]["questions"] == len(kept)
    (scores,), labels = (of_two[0]["multiple_choice", rows][name] for name in ("outputs", "labels"))
    counts = [2 + i % 3 for i in range(rows)]
    assert [(row > -1).sum() for row in scores] == counts  # scores of padding are below any cosine
    hits = [scores[i, : counts[i]].argmax() == labels[i] for i in kept]
    assert of_two[0]["multiple_choice", rows]["metrics"]["accuracy"] == pytest.approx(100 * np.mean(hits))
    assert 0 < np.mean(hits) < 1


def test_every_row_counts_once_while_training(of_two):
    for process in of_two:
        assert [labels.tolist() for labels in process["while training"]] == 2 * [labels_of("retrieval", 7)]


def test_streams_are_refused(of_two):
    """For streams, accelerate repeats rows of the last batch, or leaves one process waiting for another."""
    for process in of_two:
        assert "without repeating or losing rows: load the corpus with streaming=False" in process["stream"]

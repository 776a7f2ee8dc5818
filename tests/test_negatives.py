"""Tests that batches of one pair are refused, because a contrastive loss needs negatives."""

import pytest
import torch
from datasets import Dataset

from region_learner.training import (
    CorpusPart,
    RegionLearnerTrainer,
    RegionLearnerTrainingArguments,
    parse_stages,
    train_stages,
)
from region_learner.training.batch_size import check_batch_size

from .conftest import tiny_model
from .test_training import TINY
from .toy_run import DEFAULTS, Collator, Processor


def rows(number):
    return Dataset.from_dict({"video_id": [str(2 * i) for i in range(number)], "seed": [0] * number,
                              "num_frames": [2] * number})  # fmt: skip


def trainer(tmp_path, dataset=None, task="retrieval", **options):
    made = RegionLearnerTrainer(
        model=tiny_model(),
        args=RegionLearnerTrainingArguments(**DEFAULTS | {"output_dir": str(tmp_path)} | options),
        processing_class=Processor(),
        train_dataset=rows(6) if dataset is None else dataset,
        eval_dataset=rows(5),
        data_collator=Collator(),
        task=task,
        label=None if task in ("retrieval", "multiple_choice") else len,
    )
    made.eval_collator = Collator()
    return made


@pytest.mark.parametrize(
    "options",
    [
        {"per_device_train_batch_size": 1},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"per_device_train_batch_size": 1, "gradient_cache_chunk": 1},
    ],
)
@pytest.mark.parametrize("task", ["retrieval", "multiple_choice"])
def test_a_batch_of_one_is_refused(tmp_path, options, task):
    with pytest.raises(ValueError, match="A batch of 1 pair has no negatives"):
        trainer(tmp_path, task=task, **options)


def test_the_global_batch_counts(tmp_path):
    check_batch_size(1, processes=2)
    with pytest.raises(ValueError, match="no negatives"):
        check_batch_size(1, processes=1)
    trainer(tmp_path, per_device_train_batch_size=2, gradient_cache_chunk=1)


def test_corpora_with_separate_batch_sizes(tmp_path):
    with pytest.raises(ValueError, match=r"\(batch_size in corpora\)"):
        trainer(tmp_path, [CorpusPart(rows(6), 4), CorpusPart(rows(6), 1)])
    with pytest.raises(ValueError, match="A corpus of 1 row has no negatives"):
        trainer(tmp_path, [CorpusPart(rows(6), 4), CorpusPart(rows(1), 4)])
    corpora = f'[{{"corpus": "folder", "data_dir": "{tmp_path}/nowhere", "batch_size": 1}}]'
    with pytest.raises(ValueError, match="A batch of 1 pair has no negatives"):  # before the corpus is loaded
        train_stages(parse_stages([*TINY, f"--output_dir={tmp_path}", "--corpora", corpora]))


def test_labels_need_no_negatives(tmp_path):
    trainer(tmp_path, task="question_answering", per_device_train_batch_size=1)


def test_the_last_batch_of_an_epoch_is_full(tmp_path):
    """The last batch is filled with rows from the beginning of the epoch, so that no row is left alone."""
    sizes = [len(batch) for batch in trainer(tmp_path, rows(9)).get_train_dataloader().batch_sampler]
    assert sizes == [4, 4, 4]


def test_a_last_row_alone_has_no_loss_in_an_evaluation(tmp_path):
    """With 5 rows in batches of 2, the loss is that of the first 4."""
    made = trainer(tmp_path, per_device_eval_batch_size=2)
    metrics = made.evaluate()
    model = made.model.eval()
    losses = []
    with torch.no_grad():
        for start in (0, 2):
            batch = Collator()([rows(5)[i] for i in (start, start + 1)])
            batch.pop("unreadable")
            losses.append(float(model(**batch).loss))
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert len(made.predict(rows(5)).label_ids) == 5  # but the row counts in the metrics


def test_an_evaluation_of_single_rows_has_no_loss(tmp_path, caplog):
    caplog.set_level("INFO", logger="region_learner")
    alone = {"per_device_eval_batch_size": 1, "eval_strategy": "epoch"}
    metrics = trainer(tmp_path, **alone).evaluate()
    assert "eval_loss" not in metrics
    assert "eval_t2v_R@1" in metrics
    assert "no negatives, and therefore no contrastive loss. Evaluation does not report a loss" in caplog.text
    with pytest.raises(ValueError, match="Set it to 2 or more, or choose a metric_for_best_model other than 'loss'"):
        trainer(tmp_path, **alone, metric_for_best_model="loss")

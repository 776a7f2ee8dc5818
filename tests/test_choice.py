"""Tests of how the best checkpoint is chosen: by the direction of the metric, whose name is checked before the run."""

import numpy as np
import pytest
from datasets import Dataset
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import EvalPrediction

from region_learner.evaluation.metrics import GREATER_IS_BETTER, greater_is_better
from region_learner.training import RegionLearnerTrainer, RegionLearnerTrainingArguments, parse_stages, train_stages
from region_learner.training.training_arguments import METRICS, check_evaluation, set_best_model_metric

from .conftest import tiny_model
from .test_training import TINY
from .toy_run import DEFAULTS, Collator, Processor

BY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


def arguments(**options):
    return RegionLearnerTrainingArguments(**DEFAULTS | options)


def predictions(task, good: bool) -> EvalPrediction:
    """Returns predictions for 64 rows, all correct or at chance."""
    rng = np.random.default_rng(0)
    if task == "retrieval":
        videos = rng.standard_normal((64, 8)).astype(np.float32)
        texts = videos if good else rng.standard_normal((64, 8)).astype(np.float32)
        return EvalPrediction((texts, videos), np.arange(64))
    labels = rng.integers(0, 8, 64)
    scores = rng.standard_normal((64, 8)).astype(np.float32)
    return EvalPrediction(scores + 100 * good * np.eye(8, dtype=np.float32)[labels], labels)


@pytest.mark.parametrize("task", GREATER_IS_BETTER)
def test_the_table_has_all_metrics_and_their_directions(task):
    good, bad = (METRICS[task](predictions(task, is_good)) for is_good in (True, False))
    table = GREATER_IS_BETTER[task]
    assert good.keys() - {"questions", "out_of_vocabulary"} == table.keys() - {"loss"}
    for name in table.keys() - {"loss"}:
        assert (good[name] > bad[name]) == table[name], name
        assert good[name] != bad[name], name
    assert not table.get("loss", False)


def test_names_with_prefixes():
    for name in ("t2v_MeanR", "eval_v2t_MedR", "eval_unseen_t2v_MedR", "loss", "eval_loss", "val_loss"):
        assert greater_is_better(name) is False, name
    for name in ("t2v_R@10", "eval_t2v_R@1", "eval_unseen_v2t_gmean", "accuracy", "eval_top5"):
        assert greater_is_better(name) is True, name
    assert greater_is_better("my_score") is None
    assert arguments(metric_for_best_model="my_score").greater_is_better  # the default of transformers


def test_a_contradiction_is_refused():
    with pytest.raises(ValueError, match=r"greater_is_better=True contradicts .*'eval_t2v_MeanR', of which smaller"):
        arguments(metric_for_best_model="eval_t2v_MeanR", greater_is_better=True)
    with pytest.raises(ValueError, match=r"greater_is_better=False contradicts .*'accuracy', of which greater"):
        arguments(metric_for_best_model="accuracy", greater_is_better=False)
    assert not arguments(metric_for_best_model="t2v_MedR", greater_is_better=False).greater_is_better


class Evaluated(RegionLearnerTrainer):
    """Returns the metric values that a test sets, one per step."""

    metric, values = "", ()

    def evaluate(self, *args, **kwargs):
        metrics = {f"eval_{self.metric}": float(self.values[self.state.global_step - 1])}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def trained(tmp_path, metric, values, callbacks=(), **options):
    rows = Dataset.from_dict({"video_id": [str(i) for i in range(24)]})
    trainer = Evaluated(
        model=tiny_model(),
        args=arguments(output_dir=str(tmp_path), max_steps=len(values), metric_for_best_model=metric, **options),
        processing_class=Processor(),
        train_dataset=rows.add_column("num_frames", [2] * 24),
        eval_dataset=rows,
        data_collator=Collator(),
        callbacks=list(callbacks),
    )
    trainer.metric, trainer.values = metric.removeprefix("eval_"), values
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("metric", "values"),
    [("t2v_MeanR", [3, 1, 2]), ("eval_v2t_MedR", [3, 1, 2]), ("t2v_R@1", [1, 3, 2]), ("loss", [3, 1, 2])],
)
@pytest.mark.parametrize("save_strategy", ["steps", "best"])
def test_the_best_checkpoint_is_kept(tmp_path, metric, values, save_strategy):
    options = BY_STEP | {"save_strategy": save_strategy, "load_best_model_at_end": True, "save_total_limit": 1}
    trainer = trained(tmp_path, metric, values, **options)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert trainer.state.best_metric == values[1]


@pytest.mark.parametrize(("metric", "steps"), [("t2v_MeanR", 4), ("t2v_R@1", 2)])
def test_early_stopping_follows_the_metric(tmp_path, metric, steps):
    """The values fall, so ranks get better and recall gets worse."""
    early = [EarlyStoppingCallback(early_stopping_patience=1)]
    trainer = trained(tmp_path, metric, [4, 3, 2, 1], early, **BY_STEP, load_best_model_at_end=True)
    assert trainer.state.global_step == steps


@pytest.mark.parametrize("metric", ["t2v_R@1", "t2v_MeanR"])
def test_a_learning_rate_that_follows_a_metric(tmp_path, metric):
    options = {"lr_scheduler_type": "reduce_lr_on_plateau", "learning_rate": 1.0, "max_grad_norm": 1e-6}
    options |= BY_STEP | {"save_strategy": "no"}
    rates = []
    for values in ([1, 2, 3], [3, 2, 1]):
        trainer = trained(tmp_path, metric, values, **options, lr_scheduler_kwargs={"patience": 0, "factor": 0.5})
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == ([1.0, 0.25] if metric == "t2v_R@1" else [0.25, 1.0])
    wrong = options | {"lr_scheduler_kwargs": {"mode": "min" if metric == "t2v_R@1" else "max"}}
    with pytest.raises(ValueError, match=r"lr_scheduler_kwargs: mode='.*' contradicts metric_for_best_model"):
        arguments(metric_for_best_model=metric, **wrong)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (
            "retrieval",
            {"metric_for_best_model": "R@1"},
            "'R@1' is not a metric .*did you mean 't2v_R@1' or 'v2t_R@1'?",
        ),
        ("retrieval", {"metric_for_best_model": "eval_t2v_meanr"}, "did you mean 't2v_MeanR'"),
        ("retrieval", {"metric_for_best_model": "accuracy"}, "is not a metric of task='retrieval'"),
        ("question_answering", {"metric_for_best_model": "questions"}, r"metrics: accuracy, loss\)"),
        ("classification", {"metric_for_best_model": "top-1"}, "did you mean 'top1'"),
        ("retrieval", {"metric_for_best_model": "t2v_R@1", "prediction_loss_only": True}, r"\(metrics: loss\)"),
        ("multiple_choice", {"prediction_loss_only": True}, "multiple choice is evaluated without a loss"),
        ("retrieval", {"save_strategy": "best"}, "needs metric_for_best_model: one of t2v_R@1"),
        (
            "retrieval",
            {"save_strategy": "best", "metric_for_best_model": "t2v_R@1", "eval_strategy": "no"},
            "save_strategy=best saves after an evaluation: set --eval-split",
        ),
    ],
)
def test_what_cannot_choose_a_checkpoint(task, options, message):
    with pytest.raises(ValueError, match=message):
        check_evaluation(arguments(**{"eval_strategy": "epoch"} | options), task, has_data=True)


def test_evaluation_needs_data():
    with pytest.raises(ValueError, match="eval_strategy=epoch needs data to evaluate on: set --eval-split"):
        check_evaluation(arguments(eval_strategy="epoch"), "retrieval", has_data=False)


def test_metrics_of_several_datasets_and_custom_metrics():
    check_evaluation(arguments(metric_for_best_model="eval_unseen_t2v_R@1"), "retrieval", True, ["seen", "unseen"])
    with pytest.raises(ValueError, match="did you mean 'seen_t2v_R@1' or 'unseen_t2v_R@1'"):
        check_evaluation(arguments(metric_for_best_model="t2v_R@1"), "retrieval", True, ["seen", "unseen"])
    check_evaluation(arguments(metric_for_best_model="my_score"), "retrieval", True, own_metrics=True)


def test_multiple_choice_is_chosen_by_accuracy():
    by_plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}
    found = arguments(**by_plateau)
    assert found.lr_scheduler_kwargs == {"mode": "min"}  # the direction of the loss
    set_best_model_metric(found, "multiple_choice")
    assert (found.metric_for_best_model, found.greater_is_better) == ("accuracy", True)
    assert found.lr_scheduler_kwargs == {"mode": "max"}


def test_all_stages_are_checked_before_any_corpus_is_loaded(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("stages: [{num_frames: 1}, {num_frames: 2, metric_for_best_model: R@1}]")
    argv = [str(recipe), *TINY, f"--data_dir={tmp_path / 'nowhere'}", f"--output_dir={tmp_path / 'run'}"]
    with pytest.raises(ValueError, match="metric_for_best_model='R@1' is not a metric"):
        train_stages(parse_stages(argv))

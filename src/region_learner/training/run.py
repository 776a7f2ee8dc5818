"""Runs training from its arguments: loads corpora and model, trains, saves the model and evaluates it."""

import copy
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed
from transformers.trainer_utils import IntervalStrategy

from ..corpora.features import check_features
from ..evaluation import EVALUATIONS
from ..files import write_json
from .adapters import with_lora
from .arguments import PUBLISHED_ARGUMENTS, UNLABELED_TASKS, DataArguments, ModelArguments
from .batch_size import check_batch_size
from .checkpoints import checkpoints_in, last_complete
from .model import build_model, check_model_arguments, with_head
from .parsing import Arguments
from .task_data import RunData, check_splits, default_flip_probability, is_trained_on, load_data
from .trainer import RegionLearnerTrainer
from .training_arguments import RegionLearnerTrainingArguments, check_evaluation, set_best_model_metric

logger = logging.getLogger(__name__)

RESULTS = "results.json"


def train(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: RegionLearnerTrainingArguments,
    callbacks: list | None = None,
) -> dict[str, Any]:
    """
    Trains a model, saves it with its processor and source files in `output_dir`, evaluates it on `test_split` if there
    is one, and writes `results.json`.

    Returns:
        The content of `results.json`: `train` (loss, seconds, unreadable videos ...), `test` (metrics of the task) and
        `tested_on` (their `corpus` and `split`, and whether it was `trained_on`), the `log`, and the `arguments`.

    Raises:
        ValueError: arguments do not fit together. `CorpusError` and `VideoDecodeError` are ValueErrors as well.

    Example:

        arguments = parse_arguments(["moving_shapes", "--output-dir", "runs/moving_shapes"])
        print(train(*arguments)["test"]["t2v_R@1"])
    """
    complete_arguments(model_arguments, data_arguments, training_arguments)
    check_arguments(model_arguments, data_arguments, training_arguments)
    set_seed(training_arguments.seed)
    _tell_if_trained_on(data_arguments)
    data = load_data(data_arguments, training_arguments)
    data.check(model_arguments.task, training_arguments)
    model, processor = _build(model_arguments, data_arguments, data)
    trainer = _make_trainer(model, processor, model_arguments.task, data, training_arguments, callbacks)
    metrics = trainer.train(resume_from_checkpoint=parsed_resume(training_arguments)).metrics
    _save_model(trainer, has_adapters=model_arguments.lora is not None)
    results = {
        "train": _facts(trainer) | metrics,
        "arguments": _recorded(model_arguments, data_arguments, training_arguments),
        "log": [entry for entry in trainer.state.log_history if "loss" in entry or _is_of_evaluation(entry)],
    }
    if trainer.is_world_process_zero():
        if data.test_dataset is not None:
            results |= _test(trainer, model_arguments.task, data_arguments, data.test_dataset)
        output_dir = _output_dir(training_arguments)
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(output_dir / RESULTS, results, indent=2)
    if training_arguments.push_to_hub:
        trainer.push_to_hub()
    return results


def train_stages(stages: Sequence[Arguments]) -> dict[str, Any]:
    """
    Trains the stages of a recipe one after the other, each from the checkpoint of the stage before it. With
    `resume_from_checkpoint`, finished stages are skipped, and stages after the resumed one start over.

    Returns:
        The results of the last stage.
    """
    for arguments in stages:
        complete_arguments(*arguments)
    finished = _number_of_finished_stages(stages)
    for number, arguments in enumerate(stages[finished:], start=finished + 1):
        check_arguments(*arguments, from_earlier_stage=number > 1)
    for number, (model_arguments, data_arguments, training_arguments) in enumerate(stages, start=1):
        output_dir = _output_dir(training_arguments)
        if number <= finished:
            logger.info("Stage %d of %d has already finished: %s.", number, len(stages), output_dir)
            continue
        if len(stages) > 1:
            logger.info("Training stage %d of %d in %s.", number, len(stages), output_dir)
        if number > finished + 1:  # earlier runs of later stages started from other weights
            training_arguments = copy.copy(training_arguments)
            training_arguments.resume_from_checkpoint, training_arguments.overwrite = None, True
        later = [_RemoveEarlierRun(_output_dir(arguments[2]), replace=True) for arguments in stages[number:]]
        results = train(model_arguments, data_arguments, training_arguments, callbacks=later)
    return results


def _number_of_finished_stages(stages: Sequence[Arguments]) -> int:
    """Returns the number of stages at the start of a resumed run that need not be trained, which is never all."""
    for number, (_, _, training_arguments) in enumerate(stages):
        is_finished = (_output_dir(training_arguments) / RESULTS).is_file()
        if number == len(stages) - 1 or not is_finished or parsed_resume(training_arguments) is not True:
            return number
    return 0


# Arguments


def complete_arguments(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: RegionLearnerTrainingArguments,
) -> None:
    """Sets defaults that depend on other arguments: when to evaluate, and which metric selects the checkpoint."""
    if data_arguments.eval_split is not None and training_arguments.eval_strategy == "no":
        streaming = [entry.get("streaming", data_arguments.streaming) for entry in data_arguments.corpora or [{}]]
        training_arguments.eval_strategy = IntervalStrategy.STEPS if any(streaming) else IntervalStrategy.EPOCH
        if any(streaming) and training_arguments.eval_steps is None:  # a stream has no epochs
            training_arguments.eval_steps = training_arguments.save_steps
    set_best_model_metric(training_arguments, model_arguments.task)


def check_arguments(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: RegionLearnerTrainingArguments,
    from_earlier_stage: bool = False,
) -> None:
    """
    Checks arguments before corpora are loaded, which can take minutes, and before earlier stages are trained.

    Args:
        model_arguments, data_arguments, training_arguments: the arguments of a run, or of one of its stages.
        from_earlier_stage: whether the stage starts from a checkpoint that does not exist yet.

    Raises:
        ValueError: the arguments do not fit together.
        OSError: `model` is not a checkpoint.
    """
    check_model_arguments(model_arguments, from_earlier_stage)
    check_splits(data_arguments)
    check_evaluation(training_arguments, model_arguments.task, data_arguments.eval_split is not None)
    if model_arguments.task in UNLABELED_TASKS:
        for entry in data_arguments.corpora or [{}]:
            size = entry.get("batch_size", training_arguments.per_device_train_batch_size)
            check_batch_size(size, training_arguments.world_size)
    if training_arguments.do_predict:
        raise ValueError("do_predict is not supported: leave it out, and set --test-split to evaluate at the end.")
    if training_arguments.do_eval and training_arguments.eval_strategy == "no":
        raise ValueError("do_eval is not supported: leave it out, and set --eval-split to evaluate while training.")
    _check_output_dir(training_arguments)


def parsed_resume(arguments: RegionLearnerTrainingArguments) -> str | bool | None:
    """Returns `resume_from_checkpoint`, with True for "true", which stands for the last one in `output_dir`."""
    resume: Any = arguments.resume_from_checkpoint
    return resume.lower() == "true" if isinstance(resume, str) and resume.lower() in ("true", "false") else resume


def _output_dir(arguments: RegionLearnerTrainingArguments) -> Path:
    return Path(str(arguments.output_dir))


def _check_output_dir(arguments: RegionLearnerTrainingArguments) -> None:
    """
    Checks that the run can be written to `output_dir`.

    Raises:
        ValueError: `output_dir` is a file, or contains another run that would be overwritten.
    """
    output_dir, resume = _output_dir(arguments), parsed_resume(arguments)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output-dir {output_dir} is a file: name a directory.")
    if arguments.overwrite or isinstance(resume, str):
        return
    if resume:
        if (output_dir / RESULTS).is_file() and last_complete(output_dir, contents=False)[0] is None:
            raise ValueError(
                f"--output-dir {output_dir} contains a finished run without a checkpoint to resume from: give another "
                "directory, or --overwrite to replace it."
            )
        return
    for pattern in (RESULTS, "checkpoint-*", "config.json", "*.safetensors"):
        if found := next(output_dir.glob(pattern), None):
            raise ValueError(
                f"--output-dir {output_dir} already contains a run ({found.name}): resume it with "
                "--resume-from-checkpoint true, give another directory, or --overwrite to replace it."
            )


def _recorded(model: ModelArguments, data: DataArguments, training: RegionLearnerTrainingArguments) -> dict[str, Any]:
    """Returns the arguments for `results.json`: those of the model, of the data, and of training."""
    how = {name: value for name, value in training.to_dict().items() if name in PUBLISHED_ARGUMENTS}
    recorded = {name: value for name, value in (vars(model) | vars(data) | how).items() if value is not None}
    for name in ("model", "video_tower", "text_tower"):
        if name in recorded and os.path.isdir(recorded[name]):  # a relative path could be mistaken for a Hub name
            recorded[name] = os.path.abspath(recorded[name])
    if "corpora" in recorded:
        recorded["corpora"] = [dict(entry) for entry in recorded["corpora"]]
    # Directories are compared later, perhaps from another working directory.
    for entry in (recorded, *recorded.get("corpora", [])):
        if entry.get("data_dir") is not None:
            entry["data_dir"] = os.path.abspath(os.path.expanduser(entry["data_dir"]))
    return recorded


# Steps of a run


def _tell_if_trained_on(arguments: DataArguments) -> None:
    if is_trained_on(arguments, arguments.eval_split):
        logger.warning(
            "--eval-split %s is also the training split: its metrics do not show how good the model is on new videos.",
            arguments.eval_split,
        )
    if is_trained_on(arguments, arguments.test_split):  # on purpose in `small_from_scratch`, to test memorization
        logger.info(
            "Testing on the training split, %s: the metrics show what the model has memorized, not how good it is on "
            "new videos.",
            arguments.test_split,
        )


def _build(arguments: ModelArguments, data_arguments: DataArguments, data: RunData) -> tuple[Any, Any]:
    """Returns the model, with adapters and the head of its task, and the processor."""
    model: Any
    model, processor = build_model(arguments, data.texts(arguments.task))
    most = max(filter(None, [arguments.num_frames, *(part.num_frames for part in data.parts)]), default=0)
    positions = model.video_model.max_frames
    if positions is not None and most > positions:
        raise ValueError(
            f"num_frames={most}: the model has temporal positions for {positions} frames per clip. Use fewer, or add "
            f"positions with --video-config '{{\"num_frames\": {most}}}'."
        )
    if arguments.task in ("question_answering", "classification"):
        model = with_head(model, arguments, data.labels(arguments.task, arguments.max_answers))
    if arguments.lora is not None:
        model = with_lora(model, arguments.lora)
    logger.info("The model has %.1f million parameters.", sum(p.numel() for p in model.parameters()) / 1e6)
    flip = arguments.flip_probability
    processor.video_processor.flip_probability = default_flip_probability(data_arguments) if flip is None else flip
    return model, processor


def _make_trainer(
    model: Any,
    processor: Any,
    task: str,
    data: RunData,
    args: RegionLearnerTrainingArguments,
    callbacks: list | None,
) -> RegionLearnerTrainer:
    replace = args.overwrite and not parsed_resume(args)
    trainer = RegionLearnerTrainer(
        model=model,
        args=args,
        processing_class=processor,
        train_dataset=data.parts,
        eval_dataset=data.eval_dataset,
        task=task,
        label=data.label_function(task, model.config.label2id),
        callbacks=[_RemoveEarlierRun(_output_dir(args), replace), *(callbacks or [])],
    )
    check_features(model, processor, [(data.test_dataset, None)], trains=True)
    if data.test_dataset is not None and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError(
            "--test-split is not supported with sharded weights (FSDP, DeepSpeed): set --test-split none, and run "
            "`region-learner evaluate` after training."
        )
    return trainer


class _RemoveEarlierRun(TrainerCallback):
    """
    Removes the results of an earlier run in a directory when training begins. If the run is replaced, also removes its
    checkpoints: otherwise, if this run were killed before it saves one, it would be resumed from them. This also holds
    for the directories of later stages.
    """

    def __init__(self, output_dir: Path, replace: bool):
        self.output_dir, self.replace = output_dir, replace

    def on_train_begin(self, args, state, control, **kwargs):
        if not args.should_save:
            return
        (self.output_dir / RESULTS).unlink(missing_ok=True)
        if self.replace:
            (self.output_dir / "unreadable_videos.json").unlink(missing_ok=True)
            for checkpoint in checkpoints_in(self.output_dir):
                logger.info("Removing %s of the earlier run.", checkpoint)
                shutil.rmtree(checkpoint)


def _save_model(trainer: RegionLearnerTrainer, has_adapters: bool) -> None:
    if has_adapters:  # the model is saved and tested with its adapters merged
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model(_internal_call=True)  # `train` pushes it once, with its results
    trainer.accelerator.wait_for_everyone()  # the next stage reads what the first process has written


def _facts(trainer: RegionLearnerTrainer) -> dict[str, int]:
    facts = {} if trainer.streamed else {"videos": trainer.unreadable.number_of_videos}
    return facts | {"processes": trainer.args.world_size}  # the global batch is larger by this factor


def _is_of_evaluation(entry: dict[str, Any]) -> bool:
    return any(name.startswith("eval_") for name in entry)


def _test(
    trainer: RegionLearnerTrainer, task: str, data_arguments: DataArguments, dataset: Any
) -> dict[str, dict[str, Any]]:
    model = trainer.accelerator.unwrap_model(trainer.model)
    args = trainer.args
    return {
        "test": EVALUATIONS[task](
            model,
            trainer.processing_class,
            dataset,
            batch_size=args.per_device_eval_batch_size,
            num_workers=args.dataloader_num_workers,
        ),
        "tested_on": {
            "corpus": data_arguments.corpus,
            "split": data_arguments.test_split,
            "trained_on": is_trained_on(data_arguments, data_arguments.test_split),
        },
    }

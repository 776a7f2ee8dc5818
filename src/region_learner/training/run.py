"""One training run from its arguments: corpora, model, Trainer, final evaluation, checkpoint."""

import itertools
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed
from transformers.trainer_utils import IntervalStrategy

from ..corpora import CorpusError, answer_vocabulary, corpus_info, corpus_options, load_corpus
from ..corpora.rows import check_dataset
from ..evaluation import EVALUATIONS
from ..evaluation.provenance import videos_of
from ..files import write_json
from ..labels import UNKNOWN_LABEL
from .arguments import TOLD_ARGUMENTS, DataArguments, ModelArguments, RegionLearnerTrainingArguments
from .choice import settle_choice
from .collator import UNLABELLED_TASKS, needed_columns
from .data import CorpusPart
from .model import build_model, check_configuration, check_source, with_head, with_lora
from .negatives import check_batch_size
from .trainer import RegionLearnerTrainer

logger = logging.getLogger(__name__)

# A tokenizer is learned from so many rows of a stream.
_ROWS_FOR_TOKENIZER = 100_000


class AnswerLabel:
    """The number of a row's answer in the vocabulary of a model, -1 if it is not in it."""

    def __init__(self, label2id: dict[str, int]):
        self.label2id = label2id

    def __call__(self, row: dict[str, Any]) -> int:
        answer = row["answer"]
        if not isinstance(answer, str):
            raise CorpusError(f"video_id {row['video_id']!r}: answer must be a string, not {answer!r}")
        return self.label2id.get(answer, UNKNOWN_LABEL)


class ClassLabel:
    """The number of a row's class in a model, whatever its number in the corpus is; -1 if the model lacks it."""

    def __init__(self, names: list[str], label2id: dict[str, int]):
        self.numbers = [label2id.get(name, UNKNOWN_LABEL) for name in names]

    def __call__(self, row: dict[str, Any]) -> int:
        label = row["label"]
        if not isinstance(label, int) or not 0 <= label < len(self.numbers):
            raise CorpusError(
                f"video_id {row['video_id']!r}: the label {label!r} is not one of the {len(self.numbers)} classes"
            )
        return self.numbers[label]


def load_parts(arguments: DataArguments, training: RegionLearnerTrainingArguments) -> list[CorpusPart]:
    """The corpora to train on, of `corpora` or of `corpus`. Missing videos are counted, and listed in a file."""
    parts = []
    for number, entry in enumerate(arguments.corpora or [{}]):
        name = entry.get("corpus", arguments.corpus)
        options = dict(arguments.corpus_options or {}) if "corpus" not in entry else {}
        options |= entry.get("options", {})
        streaming = entry.get("streaming", arguments.streaming)
        if streaming and "lazy" in corpus_options(name):
            options.setdefault("lazy", True)
        data_dir = entry.get("data_dir", arguments.data_dir if "corpus" not in entry else None)
        suffix = f"_{number}" if arguments.corpora else ""
        dataset = _load(
            arguments, training, name, data_dir, entry.get("split", arguments.train_split), suffix, options, streaming
        )
        if arguments.max_train_videos is not None:
            dataset = dataset.take(arguments.max_train_videos)
        parts.append(
            CorpusPart(
                dataset,
                entry.get("batch_size", training.per_device_train_batch_size),
                entry.get("num_frames"),
                float(entry.get("weight", 1.0)),
                entry.get("shuffle_buffer", arguments.shuffle_buffer),
            )
        )
    return parts


def _load(arguments, training, name: str, data_dir, split: str, suffix: str, options: dict, streaming: bool = False):
    known = corpus_options(name)
    if "max_missing" in known:
        options.setdefault("max_missing", arguments.max_missing)
    missing_list = Path(str(training.output_dir)) / f"missing_videos_{split}{suffix}.txt"
    if "missing_list" in known and training.process_index == 0:
        options.setdefault("missing_list", missing_list)
    dataset = load_corpus(name, data_dir, split, streaming=streaming, **options)
    if missing_list.is_file() and missing_list.stat().st_size == 0:
        missing_list.unlink(missing_ok=True)
    return dataset


def _texts(parts: list[CorpusPart], task: str) -> Iterable[str]:
    """What a tokenizer is learned from."""
    for part in parts:
        rows = itertools.islice(part.dataset, _ROWS_FOR_TOKENIZER) if part.streamed else part.dataset
        if not part.streamed:
            columns = set(part.dataset.column_names) & {"captions", "question"}
            rows = part.dataset.select_columns(sorted(columns))
        for row in rows:
            yield from [row["question"]] if task == "question_answering" else row["captions"]


def _labels(parts: list[CorpusPart], model_arguments: ModelArguments) -> list[str]:
    """Names of the labels that a new head is to tell apart, from the training corpus."""
    task = model_arguments.task
    if len(parts) != 1 or parts[0].streamed:
        raise ValueError(f"task={task!r} trains on one corpus that is not streamed: leave out corpora and streaming.")
    dataset = parts[0].dataset
    column = "answer" if task == "question_answering" else "label"
    if column not in dataset.column_names or (
        task == "classification" and not hasattr(dataset.features[column], "names")
    ):
        raise CorpusError(
            f"task={task!r} needs the column {column!r}, which this corpus does not have (columns: "
            f"{', '.join(dataset.column_names)})"
        )
    if task == "question_answering":
        return answer_vocabulary(dataset, model_arguments.max_answers)
    return list(dataset.features[column].names)


# The columns of each task, beside those that all corpora have.
_COLUMNS = {
    "retrieval": (),
    "multiple_choice": ("options", "answer"),
    "question_answering": ("question", "answer"),
    "classification": ("label",),
}


def _check_columns(dataset, split: str | None, task: str) -> None:
    columns = getattr(dataset, "column_names", None)
    if columns is not None and (missing := [name for name in _COLUMNS[task] if name not in columns]):
        raise CorpusError(
            f"task={task!r} is evaluated on the columns {', '.join(_COLUMNS[task])}, and split {split!r} of this "
            f"corpus has no {missing[0]!r} (columns: {', '.join(columns)}): see its corpus_options."
        )


def _labelling(model_arguments: ModelArguments, model, dataset) -> Callable[[dict[str, Any]], int] | None:
    if model_arguments.task == "question_answering":
        return AnswerLabel(model.config.label2id)
    if model_arguments.task == "classification":
        return ClassLabel(dataset.features["label"].names, model.config.label2id)
    return None


def check_arguments(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: RegionLearnerTrainingArguments,
    from_earlier_stage: bool = False,
) -> None:
    """
    Finds out what cannot work before corpora are loaded, which can take minutes, and earlier stages trained.

    Args:
        from_earlier_stage: `model` is what an earlier stage will have trained.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    if not from_earlier_stage:
        check_source(model_arguments)
    check_configuration(model_arguments, from_earlier_stage)
    if data_arguments.eval_split is not None and training_arguments.eval_strategy == "no":
        training_arguments.eval_strategy = IntervalStrategy.EPOCH
    settle_choice(training_arguments, model_arguments.task, data_arguments.eval_split is not None)
    if model_arguments.task in UNLABELLED_TASKS:
        for entry in data_arguments.corpora or [{}]:
            size = entry.get("batch_size", training_arguments.per_device_train_batch_size)
            check_batch_size(size, training_arguments.world_size)
    output_dir = Path(str(training_arguments.output_dir))
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir {output_dir} is a file: give a directory.")
    if training_arguments.do_predict:
        raise ValueError("do_predict is not supported: --test_split NAME evaluates at the end. Leave it out.")
    if training_arguments.do_eval and training_arguments.eval_strategy == "no":
        raise ValueError("do_eval is not supported: --eval_split NAME evaluates while training. Leave it out.")


def _check_frames(numbers: Iterable[int | None], model) -> None:
    positions = model.config.video_config.num_frames
    most = max((number for number in numbers if number is not None), default=0)
    if most > positions:
        raise ValueError(
            f"num_frames={most}: the model has temporal positions for {positions} frames per clip. Take fewer, or add "
            f"positions by --video_config '{{\"num_frames\": {most}}}'."
        )


def trained_on(arguments: DataArguments, split: str | None) -> bool:
    """Whether the model is trained on a split of its own corpus."""
    mine = (videos_of(arguments.corpus), arguments.data_dir, split)
    for entry in arguments.corpora or [{}]:
        data_dir = entry.get("data_dir", arguments.data_dir if "corpus" not in entry else None)
        corpus = videos_of(entry.get("corpus", arguments.corpus))
        if (corpus, data_dir, entry.get("split", arguments.train_split)) == mine:
            return True
    return False


class _ForgetResults(TrainerCallback):
    """Removes the results of an earlier run in the same directory, which would say that this one has finished."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        if args.should_save:
            self.path.unlink(missing_ok=True)


def train(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: RegionLearnerTrainingArguments,
    callbacks: list | None = None,
) -> dict[str, Any]:
    """
    Trains, evaluates on `test_split` if there is one, and saves model, processor and source files in `output_dir`,
    with `results.json`.

    Returns:
        What `results.json` holds: `train` (loss, seconds, unreadable videos ...), `test` (metrics of the task) and
        `tested_on` (their `corpus` and `split`, and whether it was `trained_on`), the `log`, and the `arguments`.

    Raises:
        ValueError: for arguments that do not fit together; CorpusError and VideoDecodeError are of that kind.
    """
    check_arguments(model_arguments, data_arguments, training_arguments)
    set_seed(training_arguments.seed)
    task = model_arguments.task
    for name, its_split in {"eval_split": data_arguments.eval_split, "test_split": data_arguments.test_split}.items():
        if trained_on(data_arguments, its_split):
            logger.warning(
                "%s=%s is trained on: its metrics do not tell how good the model is on new videos.", name, its_split
            )
    resume = _resume(training_arguments)
    output_dir = Path(str(training_arguments.output_dir))

    def split(name: str | None):
        if name is None:
            return None
        options = dict(data_arguments.corpus_options or {})
        return _load(
            data_arguments, training_arguments, data_arguments.corpus, data_arguments.data_dir, name, "", options
        )

    parts = load_parts(data_arguments, training_arguments)
    if any(part.streamed for part in parts) and training_arguments.max_steps <= 0:
        raise ValueError("A stream has no end: say how long to train with --max_steps.")
    eval_dataset, test_dataset = split(data_arguments.eval_split), split(data_arguments.test_split)
    _check_columns(eval_dataset, data_arguments.eval_split, task)
    _check_columns(test_dataset, data_arguments.test_split, task)
    for part in parts:
        check_dataset(part.dataset, needed_columns(task, training=True), "the training data", first_rows=0)
    model: Any
    model, processor = build_model(model_arguments, _texts(parts, task))
    _check_frames([model_arguments.num_frames, *(part.num_frames for part in parts)], model)
    if task in ("question_answering", "classification"):
        model = with_head(model, model_arguments, _labels(parts, model_arguments))
    if model_arguments.lora is not None:
        model = with_lora(model, model_arguments.lora)
    flips = model_arguments.flip_probability
    if flips is None:
        corpora = {data_arguments.corpus} | {entry.get("corpus") for entry in data_arguments.corpora or []}
        flips = 0.5 if all(corpus_info(name).horizontal_flip for name in corpora if name) else 0.0
    processor.video_processor.flip_probability = flips
    logger.info("%.1f million parameters", sum(p.numel() for p in model.parameters()) / 1e6)

    trainer = RegionLearnerTrainer(
        model=model,
        args=training_arguments,
        processing_class=processor,
        train_dataset=parts,
        eval_dataset=eval_dataset,
        task=task,
        label=_labelling(model_arguments, model, parts[0].dataset),
        callbacks=[_ForgetResults(output_dir / "results.json"), *(callbacks or [])],
    )
    if test_dataset is not None and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError(
            "A sharded model is evaluated after training: give --test_split none, and then `region-learner evaluate`."
        )
    result = trainer.train(resume_from_checkpoint=resume)
    if model_arguments.lora is not None:  # what is saved, and used, is a plain model
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model()
    trainer.accelerator.wait_for_everyone()  # a next stage reads what the first process has written
    facts = {} if trainer.streamed else {"videos": sum(len(part.dataset) for part in parts)}
    facts["processes"] = training_arguments.world_size  # a batch is as many times larger than what one of them takes
    arguments = _shown(model_arguments, data_arguments, training_arguments)
    results: dict[str, Any] = {"train": facts | result.metrics, "arguments": arguments}
    results["log"] = [
        entry
        for entry in trainer.state.log_history
        if "loss" in entry or any(key.startswith("eval_") for key in entry)
    ]
    if trainer.is_world_process_zero():
        if test_dataset is not None:
            trained = trainer.accelerator.unwrap_model(trainer.model)
            results["test"] = EVALUATIONS[task](
                trained,
                processor,
                test_dataset,
                batch_size=training_arguments.per_device_eval_batch_size,
                num_workers=training_arguments.dataloader_num_workers,
            )
            results["tested_on"] = {
                "corpus": data_arguments.corpus,
                "split": data_arguments.test_split,
                "trained_on": trained_on(data_arguments, data_arguments.test_split),
            }
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(output_dir / "results.json", results, indent=2)
    if training_arguments.push_to_hub:
        trainer.push_to_hub()
    return results


def train_stages(
    stages: list[tuple[ModelArguments, DataArguments, RegionLearnerTrainingArguments]],
) -> dict[str, Any]:
    """
    Trains one stage after the other, each from the checkpoint of the one before it. With `resume_from_checkpoint` of
    true, stages that have already finished are not run again, and those after the one that is resumed begin anew.

    Returns:
        The results of the last stage.
    """
    for number, arguments in enumerate(stages, start=1):
        check_arguments(*arguments, from_earlier_stage=number > 1)
    trained = False  # a stage, in this call
    for number, arguments in enumerate(stages, start=1):
        output_dir = Path(str(arguments[2].output_dir))
        done = output_dir / "results.json"
        if trained:  # what lies in the directories of later stages began with other weights
            arguments[2].resume_from_checkpoint = None
        if number < len(stages) and _resume(arguments[2]) is True and done.is_file():
            logger.info("Stage %d of %d has already finished: %s.", number, len(stages), output_dir)
            continue
        if len(stages) > 1:
            logger.info("Stage %d of %d, in %s.", number, len(stages), output_dir)
        results, trained = train(*arguments), True
    return results


def _resume(arguments: RegionLearnerTrainingArguments) -> Any:
    """`resume_from_checkpoint`: True for the last checkpoint in `output_dir`, as the Trainer has it."""
    resume: Any = arguments.resume_from_checkpoint
    return resume.lower() == "true" if isinstance(resume, str) and resume.lower() in ("true", "false") else resume


def _shown(model: ModelArguments, data: DataArguments, training: RegionLearnerTrainingArguments) -> dict[str, Any]:
    """Arguments as JSON has them: of model and data all, of training those that say how, and not where or as whom."""
    told = {name: value for name, value in training.to_dict().items() if name in TOLD_ARGUMENTS}
    return {name: value for name, value in (vars(model) | vars(data) | told).items() if value is not None}

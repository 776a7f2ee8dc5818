"""Loads the corpora of a run, and what a task needs from their rows: columns, labels, and texts for a tokenizer."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..corpora import CorpusError, answer_vocabulary, corpus_options, load_corpus
from ..corpora.registry import allows_mirroring, corpus_info
from ..corpora.rows import check_dataset, read_negative_captions
from ..evaluation.provenance import training_corpora
from ..labels import UNKNOWN_LABEL
from .arguments import UNLABELED_TASKS, DataArguments
from .collator import needed_columns
from .data import CorpusPart
from .training_arguments import RegionLearnerTrainingArguments

# The columns that evaluation needs for each task, in addition to those that all corpora have.
_EVALUATION_COLUMNS = {
    "retrieval": (),
    "multiple_choice": ("options", "answer"),
    "question_answering": ("question", "answer"),
    "classification": ("label",),
}

# A tokenizer is trained on this many rows of a stream.
_ROWS_FOR_TOKENIZER = 100_000


@dataclass
class RunData:
    """
    The data of a run.

    Args:
        parts: the corpora to train on.
        eval_dataset: rows to evaluate on during training.
        test_dataset: rows to evaluate on after training.
    """

    parts: list[CorpusPart]
    eval_dataset: Any = None
    test_dataset: Any = None

    def check(self, task: str, arguments: RegionLearnerTrainingArguments) -> None:
        """
        Checks that the data fit the task, and the arguments fit the data.

        Raises:
            ValueError: a corpus is a stream, but `max_steps` is not set, or something is done once per epoch.
            CorpusError: a column is missing.
        """
        if any(part.streamed for part in self.parts):
            if arguments.max_steps <= 0:
                raise ValueError("A stream has no end: set the number of training steps with --max-steps.")
            for what in ("save", "eval", "logging"):
                if getattr(arguments, f"{what}_strategy") == "epoch":
                    raise ValueError(
                        f"--{what}-strategy epoch would mean once, after the last step, because a stream has no "
                        f"epochs: set --{what}-strategy steps and --{what}-steps N."
                    )
        for split, dataset in (("eval_split", self.eval_dataset), ("test_split", self.test_dataset)):
            columns = getattr(dataset, "column_names", None)
            needed = _EVALUATION_COLUMNS[task]
            if columns is not None and (missing := [name for name in needed if name not in columns]):
                raise CorpusError(
                    f"task={task!r} is evaluated on the columns {', '.join(needed)}, but the {split} of this corpus "
                    f"has no {missing[0]!r} (columns: {', '.join(columns)}): see its corpus_options."
                )
        for part in self.parts:
            check_dataset(part.dataset, needed_columns(task, training=True), "the training data", first_rows=0)
        if task == "classification" and len(self.parts) == 1:
            label = (getattr(self.parts[0].dataset, "features", None) or {}).get("label")
            self.eval_dataset = _with_classes(self.eval_dataset, getattr(label, "names", None))

    def texts(self, task: str) -> Iterator[str]:
        """Yields the texts that a tokenizer is trained on."""
        for part in self.parts:
            rows: Iterable[dict[str, Any]] = itertools.islice(part.dataset, _ROWS_FOR_TOKENIZER)
            if not part.streamed:
                columns = set(part.dataset.column_names) & {"captions", "question", "negative_captions"}
                rows = part.dataset.select_columns(sorted(columns))
            for row in rows:
                yield from [row["question"]] if task == "question_answering" else row["captions"]
                if task in UNLABELED_TASKS:
                    yield from read_negative_captions(row.get("negative_captions"))

    def labels(self, task: str, max_answers: int) -> list[str]:
        """
        Returns the names of the labels of a new head, from the training corpus.

        Raises:
            ValueError: there are several corpora, or the corpus is a stream.
            CorpusError: the corpus has no labels.
        """
        if len(self.parts) != 1 or self.parts[0].streamed:
            raise ValueError(
                f"task={task!r} needs a single corpus that is not streamed: leave out corpora and streaming."
            )
        dataset = self.parts[0].dataset
        column = "answer" if task == "question_answering" else "label"
        if column not in dataset.column_names:
            raise CorpusError(
                f"task={task!r} needs the column {column!r}, which this corpus does not have (columns: "
                f"{', '.join(dataset.column_names)})"
            )
        if column == "answer":
            return answer_vocabulary(dataset, max_answers)
        if not hasattr(dataset.features[column], "names"):
            raise CorpusError(
                f"task={task!r} needs a column 'label' of classes, a datasets.ClassLabel; in this corpus, it is "
                f"{dataset.features[column]}"
            )
        return list(dataset.features[column].names)

    def label_function(self, task: str, label2id: dict[str, int]) -> Callable[[dict[str, Any]], int] | None:
        """Returns a function that returns the label of a row; None for tasks without labels."""
        if task == "question_answering":
            return AnswerLabel(label2id)
        if task == "classification":
            return ClassLabel(self.parts[0].dataset.features["label"].names, label2id)
        return None


def _with_classes(dataset: Any, names: list[str] | None) -> Any:
    """
    Returns rows whose labels are indices of `names`.

    Raises:
        CorpusError: the rows have other classes.
    """
    import datasets

    own = getattr((getattr(dataset, "features", None) or {}).get("label"), "names", names)
    if own == names or names is None:
        return dataset
    if unknown := [name for name in own if name not in names]:
        raise CorpusError(
            f"The eval_split has classes that the training data does not have, such as {unknown[0]!r}: evaluate on "
            "another split, or leave out their videos."
        )
    numbers = [names.index(name) for name in own]
    features = dataset.features.copy()
    features["label"] = datasets.ClassLabel(names=names)

    def renumber(label: int) -> dict[str, int]:
        return {"label": numbers[label] if 0 <= label < len(numbers) else label}

    return dataset.map(renumber, input_columns=["label"], features=features, load_from_cache_file=False)


class AnswerLabel:
    """Returns the index of a row's answer in the vocabulary of a model, or -1 if it is not in the vocabulary."""

    def __init__(self, label2id: dict[str, int]):
        self.label2id = label2id

    def __call__(self, row: dict[str, Any]) -> int:
        answer = row["answer"]
        if not isinstance(answer, str):
            raise CorpusError(f"video_id {row['video_id']!r}: answer must be a string, not {answer!r}")
        return self.label2id.get(answer, UNKNOWN_LABEL)


class ClassLabel:
    """Returns the index of a row's class in a model, whatever its index in the corpus; -1 if the model lacks it."""

    def __init__(self, names: list[str], label2id: dict[str, int]):
        self.numbers = [label2id.get(name, UNKNOWN_LABEL) for name in names]

    def __call__(self, row: dict[str, Any]) -> int:
        label = row["label"]
        if not isinstance(label, int) or not 0 <= label < len(self.numbers):
            raise CorpusError(
                f"video_id {row['video_id']!r}: the label {label!r} is not one of the {len(self.numbers)} classes"
            )
        return self.numbers[label]


def load_data(arguments: DataArguments, training: RegionLearnerTrainingArguments) -> RunData:
    """
    Loads the training corpora (`corpora` or `corpus`) and the splits of `corpus` to evaluate on. Missing videos are
    counted, and are listed in a file in `output_dir`.
    """
    parts = []
    names = {_source(arguments, entry)[0] for entry in arguments.corpora or [{}]}
    if arguments.max_missing and not any("max_missing" in corpus_options(name) for name in names):
        raise ValueError(f"--max-missing does not apply to the corpus {sorted(names)[0]!r}: leave it out.")
    for number, entry in enumerate(arguments.corpora or [{}]):
        name, data_dir, split = _source(arguments, entry)
        options = _options(arguments, entry)
        streaming = entry.get("streaming", arguments.streaming)
        if streaming and "lazy" in corpus_options(name):
            options.setdefault("lazy", True)
        suffix = f"_{number}" if arguments.corpora else ""
        dataset = _load(arguments, training, name, data_dir, split, suffix, options, streaming)
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

    def split_of_corpus(split: str | None) -> Any:
        if split is None:
            return None
        options = dict(arguments.corpus_options or {})
        return _load(arguments, training, arguments.corpus, arguments.data_dir, split, "", options)

    return RunData(parts, split_of_corpus(arguments.eval_split), split_of_corpus(arguments.test_split))


def check_splits(arguments: DataArguments) -> None:
    """
    Checks that the rows to train on and to evaluate on are chosen separately.

    Raises:
        ValueError: an option of the corpus chooses the rows whatever the split is.
    """
    option = corpus_info(arguments.corpus).replaces_split
    if option is None or (chosen := (arguments.corpus_options or {}).get(option)) is None:
        return
    trained_on = [
        (*_source(arguments, entry)[:2], _options(arguments, entry).get(option)) for entry in arguments.corpora or [{}]
    ]
    trains = (arguments.corpus, arguments.data_dir, chosen) in trained_on
    splits = {"--eval-split": arguments.eval_split, "--test-split": arguments.test_split}
    used = [f"{name} {split}" for name, split in splits.items() if split is not None]
    if len(used) + trains > 1:
        entry = {"corpus": arguments.corpus, "data_dir": arguments.data_dir, "options": {option: "..."}}
        raise ValueError(
            f"--corpus-options {option} chooses rows of the corpus {arguments.corpus!r} regardless of the split, so "
            f"{' and '.join(used)} would be the same rows{' as those to train on' if trains else ''}: choose the rows "
            f"to train on with --corpora '{json.dumps([entry])}', or set {used[-1].split()[0]} none."
        )


def _source(arguments: DataArguments, entry: dict[str, Any]) -> tuple[str, str | None, str]:
    """Returns the corpus, directory and split of an entry of `corpora`."""
    data_dir = entry.get("data_dir", arguments.data_dir if "corpus" not in entry else None)
    return entry.get("corpus", arguments.corpus), data_dir, entry.get("split", arguments.train_split)


def _options(arguments: DataArguments, entry: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of an entry of `corpora`."""
    general = {} if "corpus" in entry else arguments.corpus_options or {}
    return {**general, **entry.get("options", {})}


def _load(arguments, training, name: str, data_dir, split: str, suffix: str, options: dict, streaming: bool = False):
    known = corpus_options(name)
    if "max_missing" in known:  # that of a single corpus takes precedence
        options.setdefault("max_missing", arguments.max_missing)
    missing_list = Path(str(training.output_dir)) / f"missing_videos_{split}{suffix}.txt"
    if "missing_list" in known and training.process_index == 0:
        options.setdefault("missing_list", missing_list)
    dataset = load_corpus(name, data_dir, split, streaming=streaming, **options)
    # (Another process may be about to write the same list.)
    if training.process_index == 0 and missing_list.is_file() and missing_list.stat().st_size == 0:
        missing_list.unlink()
    return dataset


def is_trained_on(arguments: DataArguments, split: str | None) -> bool:
    """Returns whether the model is trained on a split of the corpus that it is evaluated on."""
    return split is not None and any(
        # Other lists divide the same videos in other ways, so that most of a split is in the same split of both.
        trained.is_split(arguments.corpus, arguments.data_dir, split, trained.lists)
        for trained in training_corpora(vars(arguments))
    )


def default_flip_probability(arguments: DataArguments) -> float:
    """Returns 0.5, or 0 if the captions of one of the corpora mention left and right."""
    mirrors = []
    for entry in arguments.corpora or [{}]:
        name, data_dir, _ = _source(arguments, entry)
        shards = _options(arguments, entry).get("shards") if name == "webdataset" else None
        mirrors.append(allows_mirroring(name, data_dir, shards))
    return 0.5 if all(mirrors) else 0.0

"""
The arguments of a training run in addition to `transformers.TrainingArguments`, and the groups of `--help`.

This module imports neither torch nor transformers, so that `region-learner train --help` is fast.
"""
# ruff: noqa: RUF009 # `argument` returns a field

import json
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import nearest_or_all

# Recipes and Python pass mappings and lists. The command line passes JSON, which `__post_init__` parses.
if TYPE_CHECKING:
    JsonMapping = dict[str, Any] | None
    JsonList = list[dict[str, Any]] | None
else:
    JsonMapping = dict | str | None
    JsonList = list | str | None

TASKS = ("retrieval", "multiple_choice", "question_answering", "classification")
UNLABELED_TASKS = ("retrieval", "multiple_choice")  # they train on pairs of video and text
FORMS = ("decoupled", "paper", "queries", "tracks")  # as in the configuration, which is not imported for `--help`
FILLS = ("zeros", "nearest", "bilinear")
MIXES = ("alternate", "weighted")

# The groups of `--help` and their arguments, in this order: all arguments of this package, and those of
# `transformers.TrainingArguments` that most runs need.
ARGUMENT_GROUPS: dict[str, tuple[str, ...]] = {
    "Model": (
        "model", "video_tower", "text_tower", "task", "region_form", "video_config", "text_config", "config",
        "tokenizer", "vocab_size", "frame_fill", "max_answers", "lora",
    ),
    "Data": (
        "corpus", "data_dir", "corpus_options", "train_split", "corpora", "data_dirs", "mix", "samples_per_epoch",
        "max_train_videos", "num_frames", "flip_probability", "streaming", "shuffle_buffer", "max_missing",
        "max_unreadable", "dataloader_num_workers",
    ),
    "Optimization": (
        "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_cache_chunk",
        "gradient_checkpointing", "gradient_accumulation_steps", "auto_find_batch_size", "bf16", "fp16",
        "torch_compile", "learning_rate", "video_learning_rate", "text_learning_rate", "layer_decay", "freeze",
        "lr_scheduler_type", "lr_milestones", "lr_gamma", "warmup_steps", "weight_decay", "max_grad_norm", "optim",
        "seed",
    ),
    "Evaluation": (
        "eval_split", "test_split", "eval_strategy", "eval_steps", "per_device_eval_batch_size",
        "load_best_model_at_end", "metric_for_best_model",
    ),
    "Saving and logging": (
        "output_dir", "overwrite", "resume_from_checkpoint", "save_strategy", "save_steps", "save_total_limit",
        "logging_steps", "report_to", "push_to_hub", "hub_private_repo",
    ),
}  # fmt: skip


def argument(help: str, default: Any = None, factory: Any = MISSING) -> Any:
    """Returns a dataclass field with its help, and with a default or a default factory."""
    if factory is not MISSING:
        return field(default_factory=factory, metadata={"help": help})
    return field(default=default, metadata={"help": help})


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known{nearest_or_all(str(value), choices)}")


def _check_at_least_1(arguments: Any, *names: str) -> None:
    for name in names:
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")


# The values that stand for None on the command line.
NONE = ("none", "null")


def _none_from_text(arguments: Any, *names: str) -> None:
    for name in names:
        if getattr(arguments, name) in NONE:
            setattr(arguments, name, None)


def _from_json(name: str, value: Any, kind: type, what: str, example: str) -> Any:
    if not isinstance(value, str):
        return value
    if value in NONE:
        return None
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} must be JSON, such as '{example}': {error}") from error
    if not isinstance(parsed, kind):
        raise ValueError(f"{name} must be a JSON {what}, such as '{example}', not {value}")
    return parsed


def mapping_from_json(name: str, value: dict | str | None) -> dict | None:
    """
    Returns the mapping that is given as JSON, or None for "none". A mapping is returned unchanged.

    Raises:
        ValueError: the value is not a JSON object. The message contains `name`.
    """
    return _from_json(name, value, dict, "object", '{"key": 1}')


def _without_none(options: dict | None) -> dict | None:
    return options and {name: value for name, value in options.items() if value is not None}


@dataclass
class ModelArguments:
    """The source of the model: a checkpoint, two pre-trained towers, or a configuration."""

    model: str | None = argument("Checkpoint to start from, with its processor: a directory or a Hub name.")
    video_tower: str | None = argument("Pre-trained image model to start from: a timm or Hub name, or a directory.")
    text_tower: str | None = argument("Pre-trained text encoder to start from: a Hub name or a directory.")
    video_config: JsonMapping = argument(
        "Fields of the video configuration, as JSON. With --model, they override those of the checkpoint."
    )
    region_form: str | None = argument(
        f"Form of the regions: {', '.join(FORMS)}. Adds regions to a model without them, such as CLIP; 'queries' and "
        "'tracks' then need --config '{\"token_dim\": 64}'."
    )
    text_config: JsonMapping = argument("Text configuration of a new model, as JSON. It must include model_type.")
    config: JsonMapping = argument("Other fields of the configuration, as JSON, such as projection_dim.")
    task: str = argument(f"What the model is trained for: {', '.join(TASKS)}.", "retrieval")
    max_answers: int = argument(
        "For question answering: number of the most frequent answers that a new head chooses from.", 1500
    )
    lora: JsonMapping = argument(
        "Train LoRA adapters. JSON with fields of peft.LoraConfig and, optionally, `towers`: a list of video_model "
        "and text_model, by default both."
    )
    frame_fill: str = argument(f"How to fill temporal positions that a checkpoint lacks: {', '.join(FILLS)}.", "zeros")
    tokenizer: str | None = argument(
        "Tokenizer of a new model: a directory or a Hub name, or 'train' to train one on the captions."
    )
    vocab_size: int = argument("Maximum vocabulary size for --tokenizer train.", 4000)
    num_frames: int | None = argument("Frames per clip. By default, the number of temporal positions of the model.")
    flip_probability: float | None = argument(
        "Probability of mirroring a training clip. By default 0.5, and 0 for corpora whose captions mention left and "
        "right.",
    )

    def __post_init__(self):
        for name in ("video_config", "text_config", "config", "lora"):
            setattr(self, name, mapping_from_json(name, getattr(self, name)))
        self.lora = _without_none(self.lora)
        _none_from_text(self, "model", "video_tower", "text_tower", "region_form", "tokenizer")
        _check_at_least_1(self, "num_frames", "max_answers")
        _check_choice("frame_fill", self.frame_fill, FILLS)
        _check_choice("task", self.task, TASKS)
        if self.region_form is not None:
            _check_choice("region_form", self.region_form, FORMS)
        if self.flip_probability is not None and not 0.0 <= self.flip_probability <= 1.0:
            raise ValueError(f"flip_probability={self.flip_probability} must be between 0 and 1.")


# For each key of an entry of `corpora`: the types that its value may have, the same in words, and its lower bound.
_CORPUS_KEYS: dict[str, tuple[tuple[type, ...], str, float | None]] = {
    "corpus": ((str,), "text", None),
    "data_dir": ((str, Path, type(None)), "text", None),
    "split": ((str,), "text", None),
    "options": ((dict,), "a mapping", None),
    "batch_size": ((int,), "an integer of at least 1", 1),
    "num_frames": ((int, type(None)), "an integer of at least 1", 1),
    "weight": ((int, float), "a number above 0", 1e-300),
    "streaming": ((bool,), "true or false", None),
    "shuffle_buffer": ((int,), "an integer of at least 1", 1),
}


def _check_corpus(entry: dict[str, Any]) -> None:
    for key, value in entry.items():
        if key not in _CORPUS_KEYS:
            raise ValueError(f"corpora: unknown key {key!r}{nearest_or_all(str(key), _CORPUS_KEYS)}")
        types, words, minimum = _CORPUS_KEYS[key]
        fits = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        if not fits or (minimum is not None and value is not None and not value >= minimum):
            raise ValueError(f"corpora: {key}={value!r} must be {words}.")


@dataclass
class DataArguments:
    """The corpus or corpora to train on."""

    corpus: str = argument("Name of the corpus; `region-learner corpus list` lists them.", "folder")
    data_dir: str | None = argument("Directory of the corpus.")
    corpus_options: JsonMapping = argument("Options of the corpus, as JSON.")
    train_split: str = argument("Split to train on.", "train")
    eval_split: str | None = argument(
        "Split to evaluate on during training. 'none' turns off this evaluation in a recipe."
    )
    test_split: str | None = argument(
        "Split to evaluate on once, after training. 'none' turns off the test in a recipe."
    )
    corpora: JsonList = argument(
        "Several corpora to train on, as a JSON list of objects with the keys " + ", ".join(_CORPUS_KEYS) + ".",
    )
    data_dirs: list[str] | None = argument("Directories of the corpora of a recipe: cc3m=DIR webvid=DIR ...")
    streaming: bool = argument("Read the training corpus as a stream of shards. Needs --max-steps.", False)
    shuffle_buffer: int = argument("Size of the shuffle buffer of a stream, in rows.", 10_000)
    max_missing: float = argument(
        "Maximum number of missing videos, or a fraction below 1. Up to this limit, they are skipped, and listed in "
        "missing_videos_SPLIT.txt in the output directory (missing_videos_SPLIT_NUMBER.txt with --corpora); more are "
        "an error.",
        0.0,
    )
    max_train_videos: int | None = argument("Use only the first N rows of each training corpus.")

    def __post_init__(self):
        self.corpus_options = _without_none(mapping_from_json("corpus_options", self.corpus_options)) or {}
        self.corpora = _from_json("corpora", self.corpora, list, "list", '[{"corpus": "cc3m", "data_dir": "cc3m"}]')
        _none_from_text(self, "eval_split", "test_split")
        _check_at_least_1(self, "max_train_videos", "shuffle_buffer")
        if self.corpora == []:
            raise ValueError("corpora is an empty list: name at least one corpus in it, or leave it out.")
        if self.corpora is not None and not (
            isinstance(self.corpora, list) and all(isinstance(entry, dict) for entry in self.corpora)
        ):
            raise ValueError(
                f"corpora must be a list of mappings, not {self.corpora!r:.80}. Keys: {', '.join(_CORPUS_KEYS)}."
            )
        for entry in self.corpora or []:
            _check_corpus(entry)
        for item in self.data_dirs or []:
            self._set_data_dir(*item.partition("=")[::2])

    def _set_data_dir(self, corpus: str, data_dir: str):
        names = dict.fromkeys([self.corpus, *(entry.get("corpus", self.corpus) for entry in self.corpora or [])])
        if not data_dir:
            raise ValueError(f"data_dirs: {corpus!r} is not of the form CORPUS=DIRECTORY, such as webvid=data/WebVid.")
        if corpus not in names:
            raise ValueError(f"data_dirs: {corpus!r} is not a corpus of this run{nearest_or_all(corpus, names)}")
        if corpus == self.corpus:
            self.data_dir = data_dir
        if self.corpora is not None:  # a new list, because other stages of a recipe share the old one
            self.corpora = [
                entry | {"data_dir": data_dir} if entry.get("corpus", self.corpus) == corpus else entry
                for entry in self.corpora
            ]


@dataclass
class OwnTrainingArguments:
    """The arguments that [`RegionLearnerTrainingArguments`] adds to `transformers.TrainingArguments`."""

    max_unreadable: float = argument(
        "Maximum share of unreadable training videos; more are an error. Each is reported, and another video is "
        "substituted. In evaluation, unreadable videos are left out.",
        0.1,
    )
    mix: str = argument(
        "How to mix several corpora: 'alternate' takes a batch from each in turn, 'weighted' draws by their weights.",
        "alternate",
    )
    samples_per_epoch: int | None = argument(
        "Maximum number of rows per epoch, over all corpora and processes. Not for streams."
    )
    gradient_cache_chunk: int | None = argument(
        "Cached gradients (GradCache): embed this many pairs at a time, with the loss over the whole batch.",
    )
    lr_milestones: list[float] = argument(
        "Multiply the learning rate by --lr-gamma at these fractions of training: 0.6 0.8 ... Needs "
        "--lr-scheduler-type constant or constant_with_warmup.",
        factory=list,
    )
    lr_gamma: float = argument("Factor of the learning rate at each of --lr-milestones.", 0.1)
    video_learning_rate: float | None = argument(
        "Learning rate of the video tower; in a model with a backbone, such as CLIP, only of the backbone and its "
        "projection. By default --learning-rate."
    )
    text_learning_rate: float | None = argument("Learning rate of the text encoder. By default --learning-rate.")
    layer_decay: float | None = argument(
        "Layer-wise learning rate decay: each block has this factor times the learning rate of the block after it, so "
        "blocks near the input learn slowest."
    )
    freeze: list[str] = argument(
        "Parameters to freeze, by prefixes of their names: text_model ...",
        factory=list,
    )
    overwrite: bool = argument(
        "Replace an earlier run in --output-dir, and delete its checkpoints and results.", False
    )


_CLASSES: tuple[type, ...] = (ModelArguments, DataArguments, OwnTrainingArguments)

# The arguments that `results.json` and model cards publish. The others describe a machine or an account, and may
# contain directories and keys.
PUBLISHED_ARGUMENTS = {item.name for cls in _CLASSES for item in fields(cls)} - {"data_dir", "data_dirs", "overwrite"}
PUBLISHED_ARGUMENTS |= {
    "optim", "optim_args", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "fp16", "tf32", "seed", "data_seed",
    "load_best_model_at_end", "metric_for_best_model",
}  # fmt: skip

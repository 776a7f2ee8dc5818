"""Arguments of a training run: dataclasses, the command line, and recipes (YAML files of the same names)."""

import argparse
import difflib
import itertools
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from transformers import HfArgumentParser, SchedulerType, TrainingArguments

from ..configuration_region_learner import merge_fields
from ..files import near_file
from .argument_rules import check_accelerator_config, check_ranges, check_trackers, refuse_arguments
from .choice import set_direction
from .collator import TASKS
from .data import MIXES

logger = logging.getLogger(__name__)

# Mappings and lists come as such from recipes and Python, and as JSON from the command line, until `__post_init__`.
if TYPE_CHECKING:
    JsonMapping = dict[str, Any] | None
    JsonList = list[dict[str, Any]] | None
else:
    JsonMapping = dict | str | None
    JsonList = list | str | None

FILLS = ("zeros", "nearest", "bilinear")

# How the command line takes back what a recipe says.
_NOTHING = ("none", "null")


def _from_json(name: str, value: Any, kind: type, what: str, example: str) -> Any:
    if not isinstance(value, str):
        return value
    if value in _NOTHING:
        return None
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} must be JSON, such as '{example}': {error}") from error
    if not isinstance(parsed, kind):
        raise ValueError(f"{name} must be a JSON {what}, not {value}")
    return parsed


def mapping_from_json(name: str, value: dict | str | None) -> dict | None:
    """
    Parses a mapping given as JSON, with None for "none"; lets others through.

    Raises:
        ValueError: naming `name`, if it is not a JSON object.
    """
    return _from_json(name, value, dict, "object", '{"key": 1}')


def _without_null(options: dict | None) -> dict | None:
    """`options` without those that are taken back to their defaults."""
    return options and {name: value for name, value in options.items() if value is not None}


@dataclass
class ModelArguments:
    """Where the model comes from: a checkpoint, two pre-trained towers, or a configuration."""

    model: str | None = field(
        default=None, metadata={"help": "Checkpoint to start from: a directory or Hub name. It brings its processor."}
    )
    video_tower: str | None = field(
        default=None, metadata={"help": "Image model to start from: a timm or Hub name, or a directory."}
    )
    text_tower: str | None = field(
        default=None, metadata={"help": "Text encoder to start from: a Hub name or directory."}
    )
    video_config: JsonMapping = field(
        default=None, metadata={"help": "Fields of the video configuration (JSON): of a new model, or to override."}
    )
    text_config: JsonMapping = field(
        default=None, metadata={"help": "Text configuration of a new model (JSON), with its model_type."}
    )
    config: JsonMapping = field(
        default=None, metadata={"help": "Other fields of the configuration (JSON), such as projection_dim."}
    )
    task: str = field(default="retrieval", metadata={"help": f"One of {', '.join(TASKS)}."})
    max_answers: int = field(
        default=1500, metadata={"help": "Size of the vocabulary of a new head for questions: the most frequent ones."}
    )
    lora: JsonMapping = field(
        default=None,
        metadata={"help": "Low-rank adapters instead of whole towers (JSON): fields of peft.LoraConfig, and towers."},
    )
    frame_fill: str = field(
        default="zeros",
        metadata={"help": "Temporal positions of a checkpoint with fewer frames: zeros, nearest or bilinear."},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "Directory or Hub name; 'train' learns one from the training captions."},
    )
    vocab_size: int = field(default=4000, metadata={"help": "Tokens at most, for --tokenizer train."})
    num_frames: int | None = field(
        default=None, metadata={"help": "Frames a clip; by default as many as the model has temporal positions."}
    )
    flip_probability: float | None = field(
        default=None,
        metadata={
            "help": "Of mirroring a training clip; by default 0.5, and 0 for captions that tell left and right."
        },
    )

    def __post_init__(self):
        self.video_config = mapping_from_json("video_config", self.video_config)
        self.text_config = mapping_from_json("text_config", self.text_config)
        self.config = mapping_from_json("config", self.config)
        self.lora = _without_null(mapping_from_json("lora", self.lora))
        for name in ("model", "video_tower", "text_tower", "tokenizer"):
            if getattr(self, name) in _NOTHING:
                setattr(self, name, None)
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames={self.num_frames} must be at least 1.")
        if self.max_answers < 1:
            raise ValueError(f"max_answers={self.max_answers} must be at least 1.")
        if self.frame_fill not in FILLS:
            raise ValueError(
                f"frame_fill={self.frame_fill!r} is not known; choose one of {', '.join(map(repr, FILLS))}."
            )
        if self.flip_probability is not None and not 0.0 <= self.flip_probability <= 1.0:
            raise ValueError(f"flip_probability={self.flip_probability} must be between 0 and 1.")
        if self.task not in TASKS:
            raise ValueError(
                f"task={self.task!r} is not known{_nearest(self.task, TASKS)} (tasks: {', '.join(TASKS)})"
            )


CORPUS_KEYS = (
    "corpus",
    "data_dir",
    "split",
    "options",
    "batch_size",
    "num_frames",
    "weight",
    "streaming",
    "shuffle_buffer",
)

# What those that are not text hold: kinds, in words, and the least number.
_CORPUS_VALUES: dict[str, tuple[tuple[type, ...], str, float | None]] = {
    "options": ((dict,), "a mapping", None),
    "batch_size": ((int,), "an integer of at least 1", 1),
    "num_frames": ((int, type(None)), "an integer of at least 1", 1),
    "weight": ((int, float), "a number above 0", 1e-300),
    "streaming": ((bool,), "true or false", None),
    "shuffle_buffer": ((int,), "an integer of at least 1", 1),
}


def _check_corpus(entry: dict[str, Any]) -> None:
    for key, value in entry.items():
        if key not in CORPUS_KEYS:
            raise ValueError(
                f"corpora: unknown key {key!r}{_nearest(str(key), CORPUS_KEYS)} ({', '.join(CORPUS_KEYS)})"
            )
        kinds, words, least = _CORPUS_VALUES.get(key, ((str, Path, type(None)), "text", None))
        fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        if not fits or (least is not None and value is not None and not value >= least):
            raise ValueError(f"corpora: {key}={value!r} must be {words}.")


@dataclass
class DataArguments:
    """The corpus, or the corpora."""

    corpus: str = field(default="folder", metadata={"help": "Name of a corpus; see `region-learner corpus list`."})
    data_dir: str | None = field(default=None, metadata={"help": "Where the corpus lies."})
    corpus_options: JsonMapping = field(default=None, metadata={"help": "Options of the corpus (JSON)."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(
        default=None, metadata={"help": "Split for evaluation while training; 'none' takes back a recipe's."}
    )
    test_split: str | None = field(
        default=None, metadata={"help": "Split for one evaluation at the end; 'none' takes back a recipe's."}
    )
    corpora: JsonList = field(
        default=None,
        metadata={
            "help": "Several corpora to train on (JSON): a list of mappings with corpus, data_dir, split, options, "
            "batch_size, num_frames, weight, streaming, shuffle_buffer."
        },
    )
    data_dirs: list[str] | None = field(
        default=None,
        metadata={"help": "Where the corpora of a recipe lie, instead of where it says: cc3m=DIR webvid=DIR ..."},
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the training corpus as a stream, with max_steps and shards."}
    )
    shuffle_buffer: int = field(default=10_000, metadata={"help": "Rows that a stream is shuffled among."})
    max_missing: float = field(
        default=0.0,
        metadata={"help": "Missing videos that are left out and listed, instead of an error: a number or a share."},
    )
    max_train_videos: int | None = field(default=None, metadata={"help": "Train on the first so many videos."})

    def __post_init__(self):
        self.corpus_options = _without_null(mapping_from_json("corpus_options", self.corpus_options)) or {}
        self.corpora = _from_json("corpora", self.corpora, list, "list", '[{"corpus": "cc3m", "data_dir": "cc3m"}]')
        for name in ("max_train_videos", "shuffle_buffer"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if self.corpora == []:
            raise ValueError("corpora is an empty list: name at least one corpus in it, or leave it out.")
        for name in ("eval_split", "test_split"):
            if getattr(self, name) in _NOTHING:
                setattr(self, name, None)
        if self.corpora is not None and not (
            isinstance(self.corpora, list) and all(isinstance(entry, dict) for entry in self.corpora)
        ):
            raise ValueError(f"corpora must be a list of mappings with keys of {', '.join(CORPUS_KEYS)}.")
        for entry in self.corpora or []:
            _check_corpus(entry)
        for item in self.data_dirs or []:
            self._set_data_dir(*item.partition("=")[::2])

    def _set_data_dir(self, corpus: str, data_dir: str):
        named = dict.fromkeys([self.corpus, *(entry.get("corpus", self.corpus) for entry in self.corpora or [])])
        if not data_dir:
            raise ValueError(f"data_dirs: {corpus!r} is not of the form CORPUS=DIRECTORY, such as webvid=data/WebVid.")
        if corpus not in named:
            raise ValueError(
                f"data_dirs: {corpus!r} is no corpus of this run{_nearest(corpus, named)} ({', '.join(named)})"
            )
        if corpus == self.corpus:
            self.data_dir = data_dir
        if self.corpora is not None:  # a recipe's own list stays as it is, for its other stages
            self.corpora = [
                entry | {"data_dir": data_dir} if entry.get("corpus", self.corpus) == corpus else entry
                for entry in self.corpora
            ]


@dataclass
class RegionLearnerTrainingArguments(TrainingArguments):
    """[`~transformers.TrainingArguments`] with the defaults that a contrastive model over videos needs."""

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "The collator reads columns that the model does not know."}
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["video_ids"], metadata={"help": "What evaluation keeps of a batch: the task decides."}
    )
    accelerator_config: JsonMapping = field(
        default_factory=lambda: {"dispatch_batches": False},
        metadata={"help": "As in transformers; here each process reads its own part of a stream."},
    )
    max_unreadable: float = field(
        default=0.1,
        metadata={"help": "Share of videos that may be unreadable; each is replaced by another and reported."},
    )
    mix: str = field(
        default="alternate",
        metadata={"help": "Several corpora: 'alternate' takes a batch of each in turn, 'weighted' by their weights."},
    )
    samples_per_epoch: int | None = field(
        default=None, metadata={"help": "Bound on the rows of an epoch, of all corpora and processes together."}
    )
    gradient_cache_chunk: int | None = field(
        default=None,
        metadata={
            "help": "Pairs in one forward pass of cached gradients: a batch of any size in the memory of so many."
        },
    )
    lr_milestones: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Shares of the training (0.6 0.8 ...) at which the learning rate is multiplied by lr_gamma."
        },
    )
    lr_gamma: float = field(default=0.1, metadata={"help": "Factor of lr_milestones."})
    video_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the video tower, where it differs from learning_rate."}
    )
    text_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the text encoder, where it differs from learning_rate."}
    )
    layer_decay: float | None = field(
        default=None, metadata={"help": "Factor on the learning rate for each block below the output of a tower."}
    )
    freeze: list[str] = field(
        default_factory=list,
        metadata={"help": "Parameters that stay as they are, by the beginnings of their names: text_model ..."},
    )

    def __post_init__(self):
        greater_is_better = self.greater_is_better
        if isinstance(self.accelerator_config, str) and self.accelerator_config.startswith("{"):
            self.accelerator_config = mapping_from_json("accelerator_config", self.accelerator_config)
        self.lr_scheduler_kwargs = mapping_from_json("lr_scheduler_kwargs", self.lr_scheduler_kwargs)
        check_accelerator_config(self.accelerator_config)
        try:
            super().__post_init__()
        except TypeError as error:  # of a mapping with unknown keys
            raise ValueError(f"An argument of the training does not fit: {error}") from error
        if self.gradient_accumulation_steps < 1:
            raise ValueError(f"gradient_accumulation_steps={self.gradient_accumulation_steps} must be at least 1.")
        check_ranges(self)
        if self.mix not in MIXES:
            raise ValueError(f"mix={self.mix!r} is not known; choose one of {', '.join(map(repr, MIXES))}.")
        refuse_arguments(self)
        check_trackers(self.report_to or ())
        set_direction(self, greater_is_better)
        if self.gradient_cache_chunk is not None and self.gradient_cache_chunk < 1:
            raise ValueError(f"gradient_cache_chunk={self.gradient_cache_chunk} must be at least 1.")
        if any(not 0.0 < share < 1.0 for share in self.lr_milestones):
            raise ValueError(f"lr_milestones={self.lr_milestones} are shares of the training, between 0 and 1.")
        if self.lr_milestones and "constant" not in SchedulerType(self.lr_scheduler_type).value:
            raise ValueError("lr_milestones go with lr_scheduler_type constant or constant_with_warmup.")
        if self.lr_milestones and self.lr_scheduler_kwargs:
            raise ValueError("lr_milestones have no lr_scheduler_kwargs but lr_gamma: leave them out.")
        schedule = SchedulerType(self.lr_scheduler_type)
        if self.lr_scheduler_kwargs and schedule in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP):
            raise ValueError(f"lr_scheduler_type={schedule.value} takes no lr_scheduler_kwargs: leave them out.")
        if self.layer_decay is not None and not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(f"layer_decay={self.layer_decay} must be above 0 and at most 1.")
        if not 0.0 <= self.max_unreadable <= 1.0:
            raise ValueError(f"max_unreadable={self.max_unreadable} is a share: it must be between 0 and 1.")


ARGUMENT_CLASSES: list = [ModelArguments, DataArguments, RegionLearnerTrainingArguments]

# Arguments of `region-learner train` that say how a model was trained. Others are of somebody's machine, directories
# and keys among them, and stay there.
TOLD_ARGUMENTS = {
    # model
    "model", "video_tower", "text_tower", "video_config", "text_config", "config", "task", "max_answers", "lora",
    "frame_fill", "tokenizer", "vocab_size", "num_frames", "flip_probability",
    # data
    "corpus", "corpus_options", "train_split", "eval_split", "test_split", "corpora", "streaming", "shuffle_buffer",
    "max_missing", "max_train_videos", "max_unreadable", "mix", "samples_per_epoch",
    # optimisation
    "optim", "optim_args", "learning_rate", "video_learning_rate", "text_learning_rate", "layer_decay", "freeze",
    "lr_scheduler_type", "lr_scheduler_kwargs", "lr_milestones", "lr_gamma", "warmup_steps", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "gradient_cache_chunk",
    "bf16", "fp16", "tf32", "seed", "data_seed", "load_best_model_at_end", "metric_for_best_model",
}  # fmt: skip


def list_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(resources.files(__package__) / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _nearest(name: str, known) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """
    Reads a recipe: one of the package by its name, or a YAML file.

    Raises:
        ValueError: for an unknown recipe, a file that is no mapping, or keys that are no argument.
    """
    recipes = list_recipes()
    path = recipes.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        raise ValueError(
            f"There is no recipe or file {name_or_path!r}{_nearest(name_or_path, recipes) or near_file(path)} "
            f"(recipes: {', '.join(recipes)})."
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of argument names to values.")
    known = {item.name for cls in ARGUMENT_CLASSES for item in fields(cls) if item.init}
    stages = values.get("stages", [])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ValueError(f"{path}: stages must be a list of mappings of argument names to values.")
    for key in itertools.chain({key for key in values if key != "stages"}, *stages):
        if key not in known:
            raise ValueError(f"{path}: unknown key {key!r}{_nearest(str(key), known | {'stages'})}")
    return values


class _Parser(HfArgumentParser):
    def error(self, message: str):
        if message.startswith("unrecognized arguments: "):
            unknown = message.split()[2].partition("=")[0]
            if unknown.startswith("-"):
                message = f"{unknown} is not known{_nearest(unknown, self._option_string_actions)}"
            else:
                message = f"{unknown!r} is not expected: only a recipe comes without --name, and it comes first"
        raise ValueError(f"{message} (`region-learner train --help` lists all arguments)")


Arguments = tuple[ModelArguments, DataArguments, RegionLearnerTrainingArguments]


def parse_arguments(argv: Sequence[str] | None = None, **overrides: Any) -> Arguments:
    """
    Parses `[RECIPE] [--name value ...]`. Values of the command line go before those of the recipe, and `overrides`
    before both. Mappings merge key by key, and null takes a key of the recipe back.

    Raises:
        ValueError: for an unknown recipe, key or flag, a value that does not parse, or a recipe of several stages.
    """
    stages = parse_stages(argv, **overrides)
    if len(stages) > 1:
        raise ValueError("The recipe has several stages: use parse_stages and train_stages.")
    return stages[0]


def parse_stages(argv: Sequence[str] | None = None, **overrides: Any) -> list[Arguments]:
    """
    As [`parse_arguments`], for recipes with `stages`: a list of mappings, each of which goes before the values that
    all stages share. A stage begins with the checkpoint of the one before it; the last one's lies in `output_dir`,
    those of the others in `output_dir/stage-N`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    values = read_recipe(argv.pop(0)) if argv and not argv[0].startswith("-") else {}
    stages = values.pop("stages", None) or [{}]
    parsed: list[Any] = []
    changes: dict[str, None] = {}  # in order, each once
    for number, stage in enumerate(stages, start=1):
        parser = _Parser(ARGUMENT_CLASSES, prog="region-learner train", allow_abbrev=False)
        recipe = _merge_arguments(values, stage)
        parser.set_defaults(**recipe)
        given = _given(parser, argv) | overrides
        merged = _merge_arguments(recipe, given)
        namespace = vars(parser.parse_args(argv)) | {name: merged[name] for name in given}
        parsed_recipe = vars(parser.parse_args([]))
        overridden = {name: parsed_recipe[name] for name in recipe if name in given and name != "hub_token"}
        changes |= dict.fromkeys(_changes(overridden, namespace))
        if namespace.get("output_dir") is None:
            namespace["output_dir"] = os.path.join("runs", f"{namespace['corpus']}")
        if number > 1:
            previous = os.path.join(namespace["output_dir"], f"stage-{number - 1}")
            namespace |= {"model": previous, "video_tower": None, "text_tower": None, "tokenizer": None}
            # What all stages share is in that checkpoint.
            names = ("config", "video_config")
            own, on_top = ({name: some[name] for name in names if name in some} for some in (stage, given))
            namespace |= dict.fromkeys(("text_config", *names)) | _merge_arguments(own, on_top)
        if number < len(stages):
            namespace["output_dir"] = os.path.join(namespace["output_dir"], f"stage-{number}")
        parsed.append(parser.parse_dict(namespace, allow_extra_keys=False))
    if len(parsed) > 1:
        _resume_one_stage([arguments[2] for arguments in parsed])
    for change in changes if parsed[0][2].process_index == 0 else ():
        logger.info("Changed in the recipe: %s", change)
    return parsed  # type: ignore[return-value]


def _given(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """The arguments that the command line itself gives."""
    unset = object()
    names = [item.name for cls in ARGUMENT_CLASSES for item in fields(cls) if item.init]
    namespace = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, unset)))
    return {name: value for name, value in vars(namespace).items() if value is not unset}


def _as_mapping(name: str, value: Any) -> Any:
    """`value`, or what it is as a mapping if it is written as a JSON object."""
    return mapping_from_json(name, value) if isinstance(value, str) and value.lstrip().startswith("{") else value


def _merge_arguments(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """The arguments `below` with those `above` on top; mappings merge key by key."""
    merged = dict(below)
    for name, value in above.items():
        value, base = _as_mapping(name, value), _as_mapping(name, below.get(name))
        both = isinstance(value, dict) and isinstance(base, dict)
        merged[name] = merge_fields(base, value, keep_null=True) if both else value
    return merged


def _changes(recipe: dict[str, Any], arguments: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """What of a recipe is otherwise in the `arguments`, in words: `video_config.num_regions 8 -> 4`."""
    for name, before in recipe.items():
        before, now = (_as_mapping(name, value) for value in (before, arguments.get(name)))
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _changes(dict.fromkeys(now) | before, now, f"{prefix}{name}.")
        elif isinstance(before, dict) and now in _NOTHING:
            yield f"{prefix}{name} {_in_words(before)} -> {_in_words(None)}"
        elif before != now:
            yield f"{prefix}{name} {_in_words(before)} -> {_in_words(now)}"


def _in_words(value: Any) -> str:
    return "default" if value is None else json.dumps(value, default=str)


def _resume_one_stage(stages: list[RegionLearnerTrainingArguments]):
    """A checkpoint to resume from is that of one stage: those before it have finished, those after it begin anew."""
    resume = stages[0].resume_from_checkpoint
    if resume is None or resume.lower() in ("true", "false"):
        return
    folder = os.path.dirname(os.path.abspath(resume))
    folders = [os.path.abspath(str(stage.output_dir)) for stage in stages]
    if folder not in folders:
        raise ValueError(f"resume_from_checkpoint={resume} is of none of the stages ({', '.join(folders)}).")
    for number, stage in enumerate(stages):
        if folders[number] != folder:
            stage.resume_from_checkpoint = "true" if number < folders.index(folder) else None

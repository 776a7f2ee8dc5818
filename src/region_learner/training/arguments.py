"""Arguments of a training run: dataclasses, the command line, and recipes (YAML files of the same names)."""

import difflib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from transformers import HfArgumentParser, TrainingArguments

# A mapping comes as such from recipes and from Python, and as JSON from the command line, until `__post_init__`.
if TYPE_CHECKING:
    JsonMapping = dict[str, Any] | None
else:
    JsonMapping = dict | str | None


def mapping_from_json(name: str, value: dict | str | None) -> dict | None:
    """
    Parses a mapping given as JSON; lets others through.

    Raises:
        ValueError: naming `name`, if it is no JSON object.
    """
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} must be JSON, such as '{{\"key\": 1}}': {error}") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{name} must be a JSON object, not {value}")
    return parsed


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


@dataclass
class DataArguments:
    """The corpus."""

    corpus: str = field(default="folder", metadata={"help": "Name of a corpus; see `region-learner corpus list`."})
    data_dir: str | None = field(default=None, metadata={"help": "Where the corpus lies."})
    corpus_options: JsonMapping = field(default=None, metadata={"help": "Options of the corpus (JSON)."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(default=None, metadata={"help": "Split for evaluation while training."})
    test_split: str | None = field(default=None, metadata={"help": "Split for one retrieval evaluation at the end."})
    max_train_videos: int | None = field(default=None, metadata={"help": "Train on the first so many videos."})

    def __post_init__(self):
        self.corpus_options = mapping_from_json("corpus_options", self.corpus_options) or {}


@dataclass
class RegionLearnerTrainingArguments(TrainingArguments):
    """[`~transformers.TrainingArguments`] with the defaults that a contrastive model over videos needs."""

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "The collator reads columns that the model does not know."}
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["video_ids"], metadata={"help": "What evaluation keeps of a batch: its video ids."}
    )
    accelerator_config: JsonMapping = field(
        default_factory=lambda: {"dispatch_batches": False},
        metadata={"help": "As in transformers; here each process reads its own part of a stream."},
    )
    max_unreadable: float = field(
        default=0.1,
        metadata={"help": "Share of videos that may be unreadable; each is replaced by another and reported."},
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 <= self.max_unreadable <= 1.0:
            raise ValueError(f"max_unreadable={self.max_unreadable} is a share: it must be between 0 and 1.")


ARGUMENT_CLASSES: list = [ModelArguments, DataArguments, RegionLearnerTrainingArguments]


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
            f"There is no recipe or file {name_or_path!r}{_nearest(name_or_path, recipes)} "
            f"(recipes: {', '.join(recipes)})."
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of argument names to values.")
    known = {item.name for cls in ARGUMENT_CLASSES for item in fields(cls) if item.init}
    for key in values:
        if key not in known:
            raise ValueError(f"{path}: unknown key {key!r}{_nearest(str(key), known)}")
    return values


class _Parser(HfArgumentParser):
    def error(self, message: str):
        raise ValueError(f"{message} (`region-learner train --help` lists all arguments)")


def parse_arguments(
    argv: Sequence[str] | None = None, **overrides: Any
) -> tuple[ModelArguments, DataArguments, RegionLearnerTrainingArguments]:
    """
    Parses `[RECIPE] [--name value ...]`. Values of the command line go before those of the recipe, and `overrides`
    before both.

    Raises:
        ValueError: for an unknown recipe, key or flag, or a value that does not parse.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    values = read_recipe(argv.pop(0)) if argv and not argv[0].startswith("-") else {}
    parser = _Parser(ARGUMENT_CLASSES, prog="region-learner train", allow_abbrev=False)
    parser.set_defaults(**values)
    namespace = vars(parser.parse_args(argv)) | overrides
    if namespace.get("output_dir") is None:
        namespace["output_dir"] = os.path.join("runs", f"{namespace['corpus']}")
    return parser.parse_dict(namespace, allow_extra_keys=False)  # type: ignore[return-value]

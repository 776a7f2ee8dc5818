"""The model of a training run: from a checkpoint, from pre-trained towers, or new."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from ..configuration_region_learner import RegionLearnerConfig, RegionLearnerVideoConfig, merge_fields, nest_overrides
from ..conversion import from_pretrained_towers, processor_from_towers
from ..conversion.dual_encoders import dual_encoder_config, is_dual_encoder
from ..loading import (
    check_checkpoint,
    check_files,
    check_name,
    load_model,
    load_processor,
    refuse_bare_adapters,
    refuse_non_finite,
)
from ..modeling_region_learner import (
    RegionLearnerForVideoClassification,
    RegionLearnerForVideoQuestionAnswering,
    RegionLearnerModel,
)
from ..processing_region_learner import RegionLearnerProcessor
from ..text_tower import check_text_tower
from ..video_processing_region_learner import RegionLearnerVideoProcessor
from .adapters import check_lora
from .arguments import ModelArguments
from .tokenizer import train_tokenizer

_HEADS: dict[str, type[PreTrainedModel]] = {
    "question_answering": RegionLearnerForVideoQuestionAnswering,
    "classification": RegionLearnerForVideoClassification,
}


# Checks that need neither weights nor captions


def check_model_arguments(arguments: ModelArguments, from_earlier_stage: bool = False):
    """
    Checks the arguments of the model before weights or captions are loaded.

    Args:
        arguments: the source of the model, and changes to its configuration.
        from_earlier_stage: whether `model` is the checkpoint of an earlier stage, which does not exist yet.

    Raises:
        ValueError: the arguments do not name exactly one source of the model, a field does not exist, a value is out
            of range, or sizes do not fit together.
        OSError: `model` is not a checkpoint.
    """
    if not from_earlier_stage:
        _check_source(arguments)
    if arguments.lora is not None:
        check_lora(arguments.lora)
    _check_configuration(arguments, from_earlier_stage)


def _check_source(arguments: ModelArguments):
    if arguments.model is not None:
        refuse_bare_adapters(arguments.model)
    named = {
        "model": arguments.model is not None,
        "video_tower and text_tower": arguments.video_tower is not None or arguments.text_tower is not None,
        "text_config and tokenizer": arguments.text_config is not None,
    }
    chosen = [name for name, given in named.items() if given]
    if len(chosen) != 1:
        given = "; ".join(chosen) or "none of them"
        raise ValueError(f"Give exactly one source of the model: {'; or '.join(named)}. Given: {given}.")
    if arguments.model is not None:
        check_checkpoint(arguments.model)
    if arguments.tokenizer is not None and arguments.text_config is None:
        raise ValueError(
            "tokenizer is only for a new model (text_config), as pre-trained models have their own: leave it out."
        )
    if arguments.text_config is not None and arguments.tokenizer is None:
        raise ValueError("A new model needs a tokenizer: a directory, a Hub name, or 'train'.")
    if arguments.tokenizer not in (None, "train"):
        check_name(arguments.tokenizer, "a tokenizer")
    if (arguments.video_tower is None) != (arguments.text_tower is None):
        raise ValueError("Pre-trained towers come in pairs: give both video_tower and text_tower.")


def _check_configuration(arguments: ModelArguments, from_earlier_stage: bool):
    overrides = _overrides(arguments)
    if from_earlier_stage:  # the names are checked now, and the values once the checkpoint exists
        nest_overrides(overrides.get("video_config") or {})
    elif arguments.video_tower is not None:
        # The width comes from the tower, so it is not known yet whether `interaction_heads` divides it.
        video = {k: v for k, v in overrides.get("video_config", {}).items() if k != "interaction_heads"}
        RegionLearnerConfig.from_dict({}, **overrides | {"video_config": video})
    elif arguments.model is None or overrides:
        config = _new_config(arguments) if arguments.model is None else _changed_config(arguments)
        with torch.device("meta"):
            RegionLearnerModel(config)


# Configurations

# With `--region-form`, these forms get the fields with which they were developed (docs/evidence.md).
_FORMS_OF_CLIP_REGIONS = ("queries", "tracks")
_FIELDS_OF_CLIP_REGIONS = {
    "codebook_size": 0,
    "num_regions": 12,
    "interaction_layers": 0,
    "video_pooling": "cls_patch_max",
}


def _overrides(arguments: ModelArguments, adds_regions: bool = True) -> dict[str, Any]:
    """
    Returns the changes to a configuration, as keyword arguments of `from_pretrained`.

    Args:
        adds_regions: whether the model has no regions yet, so that `region_form` also sets their number.
    """
    overrides = nest_overrides(arguments.config or {})
    of_video = dict(arguments.video_config or {})
    form = arguments.region_form
    if form is not None and of_video.setdefault("region_form", form) != form:
        raise ValueError(f"region_form={form!r} contradicts region_form in video_config: leave one of them out.")
    if form in _FORMS_OF_CLIP_REGIONS and adds_regions:
        of_video = _FIELDS_OF_CLIP_REGIONS | of_video
    if of_video:
        video = overrides.get("video_config") or {}
        overrides["video_config"] = merge_fields(video, of_video, keep_null=True)
    return overrides


def _dual_encoder_overrides(arguments: ModelArguments) -> dict[str, Any]:
    """Returns the overrides for CLIP and similar models, where `num_frames` also sets the temporal positions."""
    overrides = _overrides(arguments)
    if arguments.num_frames is not None:
        overrides["video_config"] = {"num_frames": arguments.num_frames} | (overrides.get("video_config") or {})
    return overrides


def _changed_config(arguments: ModelArguments) -> RegionLearnerConfig:
    """Returns the configuration of the checkpoint `model`, changed by the arguments."""
    assert arguments.model is not None
    if is_dual_encoder(arguments.model):
        return dual_encoder_config(arguments.model, **_dual_encoder_overrides(arguments))
    config: Any = AutoConfig.from_pretrained(arguments.model)
    if not isinstance(config, RegionLearnerConfig):
        raise ValueError(
            f"{arguments.model} is a {config.model_type!r} model: use a checkpoint of RegionLearner, or of CLIP, "
            "MetaCLIP 2, SigLIP or SigLIP 2 with both towers."
        )
    overrides, saved = _overrides(arguments, adds_regions=False), config.video_config
    if arguments.region_form is not None and not (saved.codebook_size or saved.num_regions):  # it adds regions
        parts = ("codebook_size", "num_regions", "interaction_layers")
        added = {name: getattr(RegionLearnerVideoConfig, name) for name in parts}
        overrides = _overrides(arguments)
        overrides["video_config"] = added | overrides["video_config"]
    return AutoConfig.from_pretrained(arguments.model, **overrides)


def _new_config(arguments: ModelArguments, **text_defaults: Any) -> RegionLearnerConfig:
    """Returns the configuration of a new model."""
    text_config = {name: value for name, value in (arguments.text_config or {}).items() if value is not None}
    if "model_type" not in text_config:
        raise ValueError("text_config needs a model_type, for example 'distilbert'.")
    overrides = _overrides(arguments)
    overrides["text_config"] = merge_fields(overrides.get("text_config") or {}, text_defaults | text_config)
    return RegionLearnerConfig.from_dict({}, **overrides)


# Models


def build_model(
    arguments: ModelArguments, captions: Iterable[str] = ()
) -> tuple[RegionLearnerModel, RegionLearnerProcessor]:
    """
    Returns the model and its processor: from a checkpoint (`model`), from pre-trained towers (`video_tower` and
    `text_tower`), or new (`text_config` and `tokenizer`).

    Args:
        arguments: the source of the model.
        captions: the texts that `tokenizer="train"` is trained on.

    Raises:
        ValueError: the arguments do not name exactly one source, or the tokenizer does not fit the text tower.
    """
    _check_source(arguments)
    if arguments.model is not None:
        return _from_checkpoint(arguments, arguments.model)
    if arguments.text_config is not None:
        return _new(arguments, captions)
    assert arguments.video_tower is not None  # checked before
    assert arguments.text_tower is not None
    model = from_pretrained_towers(arguments.video_tower, arguments.text_tower, **_overrides(arguments))
    frames = arguments.num_frames or model.config.video_config.num_frames
    return model, processor_from_towers(arguments.video_tower, arguments.text_tower, num_frames=frames)


def _from_checkpoint(arguments: ModelArguments, name: str) -> tuple[RegionLearnerModel, RegionLearnerProcessor]:
    check_files(name)
    if is_dual_encoder(name):
        model = from_pretrained_towers(name, **_dual_encoder_overrides(arguments))
        refuse_non_finite(model, name)
        processor: Any = processor_from_towers(name)
    else:
        model = _load(AutoModel, arguments, _changed_config(arguments))
        processor = load_processor(name, model.config.text_config)
    processor.video_processor.num_frames = arguments.num_frames or model.config.video_config.num_frames
    return model, processor


def _load(auto_class: Any, arguments: ModelArguments, config: RegionLearnerConfig) -> Any:
    """Loads the checkpoint `model` with a configuration that may have another number of frames."""
    assert arguments.model is not None
    config, frames = copy.deepcopy(config), config.video_config.num_frames
    # The temporal positions are resized after loading.
    config.video_config.num_frames = AutoConfig.from_pretrained(arguments.model).video_config.num_frames
    model = load_model(auto_class, arguments.model, config=config)
    same = frames == config.video_config.num_frames
    return model if same else model.resize_frames(frames, fill=arguments.frame_fill)


def _new(arguments: ModelArguments, captions: Iterable[str]) -> tuple[RegionLearnerModel, RegionLearnerProcessor]:
    if arguments.tokenizer == "train":
        length = (arguments.text_config or {}).get("max_position_embeddings") or 64
        tokenizer: Any = train_tokenizer(captions, arguments.vocab_size, length)
    else:
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    defaults = {"vocab_size": len(tokenizer)}
    if tokenizer.pad_token_id is not None:
        defaults["pad_token_id"] = tokenizer.pad_token_id
    config = _new_config(arguments, **defaults)
    check_text_tower(config.text_config, tokenizer)  # type: ignore[arg-type]
    video = config.video_config
    video_processor = RegionLearnerVideoProcessor.for_image_size(
        video.image_size, num_frames=arguments.num_frames or video.num_frames
    )
    return RegionLearnerModel(config), RegionLearnerProcessor(video_processor, tokenizer)


def with_head(
    model: RegionLearnerModel, arguments: ModelArguments, labels: Sequence[str]
) -> RegionLearnerForVideoQuestionAnswering | RegionLearnerForVideoClassification:
    """
    Returns the towers of a dual encoder with the head of a task. If the checkpoint already has such a head, the head
    and its labels are kept.

    Args:
        model: the dual encoder.
        arguments: arguments with the task, and with the checkpoint that the model came from.
        labels: names of the classes, or the answers, for a new head.
    """
    head = _HEADS[arguments.task]
    if arguments.model is not None:
        architectures = AutoConfig.from_pretrained(arguments.model).architectures or []
        if head.__name__ in architectures:
            return _load(head, arguments, model.config)
    config = copy.deepcopy(model.config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    result = head(config)
    missing, _ = result.load_state_dict(model.state_dict(), strict=False)
    towers = {name for name, _ in model.named_children()}
    if lost := [name for name in missing if name.split(".")[0] in towers]:
        raise RuntimeError(f"Weights of the dual encoder did not reach {head.__name__}: {lost[:3]}")
    return result  # type: ignore[return-value]

"""The model of a training run: from a checkpoint, from pre-trained towers, or new."""

import copy
import logging
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from ..configuration_region_learner import RegionLearnerConfig, did_you_mean, merge_fields, nest_overrides
from ..conversion import from_pretrained_towers, processor_from_towers
from ..files import refuse_bare_adapters
from ..loading import check_checkpoint, check_files, check_name, load_model, load_processor
from ..modeling_region_learner import (
    RegionLearnerForVideoClassification,
    RegionLearnerForVideoQuestionAnswering,
    RegionLearnerModel,
)
from ..processing_region_learner import RegionLearnerProcessor
from ..text_tower import check_text_tower
from ..video_processing_region_learner import RegionLearnerVideoProcessor
from .arguments import ModelArguments
from .tokenizer import train_tokenizer

logger = logging.getLogger(__name__)

_HEADS: dict[str, type[PreTrainedModel]] = {
    "question_answering": RegionLearnerForVideoQuestionAnswering,
    "classification": RegionLearnerForVideoClassification,
}


def build_model(
    arguments: ModelArguments, captions: Iterable[str] = ()
) -> tuple[RegionLearnerModel, RegionLearnerProcessor]:
    """
    The model and its processor: of a checkpoint (`model`), from pre-trained towers (`video_tower` and `text_tower`),
    or new (`text_config` and `tokenizer`).

    Args:
        arguments: where they come from.
        captions: what `tokenizer="train"` learns from.

    Raises:
        ValueError: if the arguments name none of these, or several, or the tokenizer does not fit the text tower.
    """
    check_source(arguments)
    if arguments.model is not None:
        return _from_checkpoint(arguments, arguments.model)
    if arguments.text_config is not None:
        return _new(arguments, captions)
    assert arguments.video_tower is not None  # as was checked
    assert arguments.text_tower is not None
    model = from_pretrained_towers(arguments.video_tower, arguments.text_tower, **_overrides(arguments))
    frames = arguments.num_frames or model.config.video_config.num_frames
    return model, processor_from_towers(arguments.video_tower, arguments.text_tower, num_frames=frames)


def check_source(arguments: ModelArguments):
    """
    Raises:
        ValueError: if the arguments do not say where the model comes from, or say it twice.
        OSError: `model` cannot be a checkpoint.
    """
    if arguments.model is not None:
        refuse_bare_adapters(arguments.model)
    named = {
        "model": arguments.model is not None,
        "video_tower and text_tower": arguments.video_tower is not None or arguments.text_tower is not None,
        "text_config and tokenizer": arguments.text_config is not None,
    }
    chosen = [name for name, given in named.items() if given]
    if len(chosen) != 1:
        raise ValueError(f"Say where the model comes from by one of {', '.join(named)}; given: {chosen or 'none'}.")
    if arguments.model is not None:
        check_checkpoint(arguments.model)
    if arguments.tokenizer is not None and arguments.text_config is None:
        raise ValueError("tokenizer goes with text_config, of a new model; others bring the tokenizer they had.")
    if arguments.text_config is not None and arguments.tokenizer is None:
        raise ValueError("A new model needs a tokenizer: a directory, a Hub name, or 'train'.")
    if arguments.tokenizer not in (None, "train"):
        check_name(arguments.tokenizer, "a tokenizer")
    if (arguments.video_tower is None) != (arguments.text_tower is None):
        raise ValueError("Pre-trained towers come in pairs: give both video_tower and text_tower.")


def check_configuration(arguments: ModelArguments, from_earlier_stage: bool = False):
    """
    Checks what the arguments say of the configuration and of adapters, as far as it can be known without weights and
    captions.

    Args:
        from_earlier_stage: `model` does not exist yet.

    Raises:
        ValueError: for a field that does not exist, a value out of range, or sizes that do not fit together.
    """
    overrides = _overrides(arguments)
    if arguments.lora is not None:
        _check_lora(arguments.lora)
    if from_earlier_stage:  # of which the values will be checked then, and the names are now
        nest_overrides(overrides.get("video_config") or {})
        return
    if arguments.video_tower is not None:
        # Whether the heads fit is for the width of the tower to say.
        video = {k: v for k, v in (overrides.get("video_config") or {}).items() if k != "interaction_heads"}
        RegionLearnerConfig.from_dict({}, **overrides | {"video_config": video})
        return
    if arguments.model is None:
        config = _new_config(arguments)
    elif overrides:
        config = AutoConfig.from_pretrained(arguments.model, **overrides)
    else:
        return
    with torch.device("meta"):
        RegionLearnerModel(config)


def _overrides(arguments: ModelArguments) -> dict[str, Any]:
    """What the arguments change in a configuration."""
    overrides = nest_overrides(arguments.config or {})
    if arguments.video_config:
        video = overrides.get("video_config") or {}
        overrides["video_config"] = merge_fields(video, arguments.video_config, keep_null=True)
    return overrides


def _from_checkpoint(arguments: ModelArguments, name: str) -> tuple[RegionLearnerModel, RegionLearnerProcessor]:
    check_files(name)
    if overrides := _overrides(arguments):
        config = AutoConfig.from_pretrained(name, **overrides)
        frames = config.video_config.num_frames
        # Positions are resized after loading.
        config.video_config.num_frames = AutoConfig.from_pretrained(name).video_config.num_frames
        model = load_model(AutoModel, name, config=config)
        if frames != config.video_config.num_frames:
            model = model.resize_frames(frames, fill=arguments.frame_fill)
    else:
        model = load_model(AutoModel, name)
    processor = load_processor(name, model.config.text_config)
    processor.video_processor.num_frames = arguments.num_frames or model.config.video_config.num_frames
    return model, processor


def _new_config(arguments: ModelArguments, **defaults: Any) -> RegionLearnerConfig:
    """The configuration of a new model; `defaults` are of the text encoder."""
    text_config = {name: value for name, value in (arguments.text_config or {}).items() if value is not None}
    if "model_type" not in text_config:
        raise ValueError("text_config needs a model_type, for example 'distilbert'.")
    overrides = _overrides(arguments)
    overrides["text_config"] = merge_fields(overrides.get("text_config") or {}, defaults | text_config)
    return RegionLearnerConfig.from_dict({}, **overrides)


def _new(arguments: ModelArguments, captions: Iterable[str]) -> tuple[RegionLearnerModel, RegionLearnerProcessor]:
    length = (arguments.text_config or {}).get("max_position_embeddings") or 64
    if arguments.tokenizer == "train":
        tokenizer: Any = train_tokenizer(captions, arguments.vocab_size, length)
    else:
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    tokenizer.model_max_length = min(tokenizer.model_max_length, length)
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
    The towers of a dual encoder under the head of a task. A checkpoint that has this head already keeps it, and with
    it its labels.

    Args:
        model: the dual encoder.
        arguments: its `task`, and the checkpoint the model came from.
        labels: names of the classes, or the answers, of a new head.
    """
    head = _HEADS[arguments.task]
    if arguments.model is not None:
        architectures = AutoConfig.from_pretrained(arguments.model).architectures or []
        if head.__name__ in architectures:
            config, frames = copy.deepcopy(model.config), model.config.video_config.num_frames
            config.video_config.num_frames = AutoConfig.from_pretrained(arguments.model).video_config.num_frames
            loaded: Any = load_model(head, arguments.model, config=config)
            same = config.video_config.num_frames == frames
            return loaded if same else loaded.resize_frames(frames, fill=arguments.frame_fill)
    config = copy.deepcopy(model.config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    result = head(config)
    missing, _ = result.load_state_dict(model.state_dict(), strict=False)
    of_towers = [name for name in missing if name.split(".")[0] in {name for name, _ in model.named_children()}]
    if of_towers:
        raise RuntimeError(f"Weights of the dual encoder did not reach {head.__name__}: {of_towers[:3]}")
    return result  # type: ignore[return-value]


def _import_peft():
    try:
        import peft
    except ImportError as error:
        raise ImportError("lora needs the package `peft`: pip install 'region-learner[peft]'") from error
    return peft


def _check_lora(options: dict[str, Any]):
    known = {item.name for item in fields(_import_peft().LoraConfig) if item.init} | {"towers"}
    for name in options:
        if name not in known:
            raise ValueError(f"lora: {name!r} is not a field of peft.LoraConfig{did_you_mean(name, known)}")
    rank, towers = options.get("r", 8), options.get("towers", [])
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"lora: r={rank!r} must be an integer of at least 1.")
    if not isinstance(towers, list | tuple) or not all(isinstance(tower, str) for tower in towers):
        raise ValueError(f'lora: towers must be a list such as ["text_model"], not {towers!r}.')


def with_lora(model: PreTrainedModel, options: dict[str, Any]):
    """
    Low-rank adapters (PEFT) in the blocks of the towers. What is not of a pre-trained tower (region module, fusion
    and positions of frames, projections, heads, a learned temperature) is trained whole.

    Args:
        model: of any task.
        options: of `peft.LoraConfig`, and `towers`, by default both: "video_model", "text_model".

    Raises:
        ImportError: without `peft`.
        ValueError: for options that do not exist, or towers that the model does not have.
    """
    _check_lora(options)
    peft = _import_peft()
    options = dict(options)
    towers = options.pop("towers", ["video_model", "text_model"])
    known = [name for name in ("video_model", "text_model") if hasattr(model, name)]
    if unknown := set(towers) - set(known):
        raise ValueError(f"lora: there is no tower {sorted(unknown)}; towers: {', '.join(known)}.")
    in_blocks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[0] in towers and "region_module" not in name
    ]
    trained_whole = [name for name, _ in model.named_children() if name not in known]
    if "video_model" in towers and getattr(model.video_model, "region_module", None) is not None:
        trained_whole.append("region_module")
    if "video_model" in towers and getattr(model.video_model, "temporal_fusion", None) is not None:
        trained_whole.append("temporal_fusion")
    for module in options.get("modules_to_save") or ():
        if not any(name == module or name.endswith(f".{module}") for name, _ in model.named_modules()):
            raise ValueError(f"lora: modules_to_save: the model has no module {module!r}.")
    defaults = {"target_modules": in_blocks, "modules_to_save": trained_whole}
    try:
        adapted = peft.get_peft_model(model, peft.LoraConfig(**defaults | options))
    except TypeError as error:  # of values of another kind, which PEFT does not check
        raise ValueError(f"lora: {options} do not fit peft.LoraConfig: {error}") from error
    for name, parameter in adapted.named_parameters():
        # No modules, so PEFT leaves them frozen: scale and bias of the loss, and positions that may all be zero yet.
        is_temporal = name.endswith("temporal_embeddings") and "video_model" in towers
        if name.endswith(("logit_scale", "logit_bias")) or is_temporal:
            parameter.requires_grad_(True)
    quantizer = getattr(getattr(model.video_model, "region_module", None), "quantizer", None)
    if "video_model" not in towers and quantizer is not None:
        quantizer.frozen = True
    return adapted

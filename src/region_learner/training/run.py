"""One training run from its arguments: corpus, model, Trainer, final evaluation, checkpoint."""

import json
import logging
from collections.abc import Iterable, Sized
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, set_seed
from transformers.trainer_utils import IntervalStrategy

from ..configuration_region_learner import RegionLearnerConfig, RegionLearnerVideoConfig
from ..conversion import from_pretrained_towers, processor_from_towers
from ..conversion.original import config_with_overrides
from ..corpora import load_corpus
from ..evaluation.retrieval import embed_corpus
from ..modeling_region_learner import RegionLearnerModel
from ..processing_region_learner import RegionLearnerProcessor
from ..video_processing_region_learner import RegionLearnerVideoProcessor
from .arguments import DataArguments, ModelArguments, RegionLearnerTrainingArguments
from .tokenizer import train_tokenizer
from .trainer import RegionLearnerTrainer

logger = logging.getLogger(__name__)

# Captions of these corpora tell left from right, so that a mirrored clip would belie them.
_TELLS_LEFT_FROM_RIGHT = {"moving_shapes"}


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
        ValueError: if the arguments name none of these, or several.
    """
    named = {
        "model": arguments.model is not None,
        "video_tower and text_tower": arguments.video_tower is not None or arguments.text_tower is not None,
        "text_config and tokenizer": arguments.text_config is not None,
    }
    chosen = [name for name, given in named.items() if given]
    if len(chosen) != 1:
        raise ValueError(f"Say where the model comes from by one of {', '.join(named)}; given: {chosen or 'none'}.")
    overrides = dict(arguments.video_config or {}) | dict(arguments.config or {})
    if arguments.tokenizer is not None and arguments.text_config is None:
        raise ValueError("tokenizer goes with text_config, of a new model; others bring the tokenizer they had.")
    if arguments.model is not None:
        return _from_checkpoint(arguments, arguments.model)
    if arguments.text_config is not None:
        return _new(arguments, captions)
    if arguments.video_tower is None or arguments.text_tower is None:
        raise ValueError("Pre-trained towers come in pairs: give both video_tower and text_tower.")
    model = from_pretrained_towers(arguments.video_tower, arguments.text_tower, **overrides)
    frames = arguments.num_frames or model.config.video_config.num_frames
    return model, processor_from_towers(arguments.video_tower, arguments.text_tower, num_frames=frames)


def _from_checkpoint(arguments: ModelArguments, name: str) -> tuple[RegionLearnerModel, RegionLearnerProcessor]:
    overrides = dict(arguments.config or {})
    if arguments.video_config:
        given = arguments.video_config
        video_config = AutoConfig.from_pretrained(name).video_config.to_dict()
        # What the configuration derives from other fields is derived anew where these change.
        if "codebook_mode" in given:
            video_config["codebook_decay"] = None
        if given.keys() & {"codebook_size", "num_regions"}:
            video_config["video_pooling"] = None
        overrides["video_config"] = RegionLearnerVideoConfig(**video_config | given).to_dict()
    frames = (arguments.video_config or {}).get("num_frames")
    if frames is not None:  # positions are resized after loading
        overrides["video_config"].pop("num_frames")
    model = AutoModel.from_pretrained(name, **overrides)
    if frames is not None and frames != model.config.video_config.num_frames:
        model = model.resize_frames(frames)
    processor = AutoProcessor.from_pretrained(name)
    processor.video_processor.num_frames = arguments.num_frames or model.config.video_config.num_frames
    return model, processor


def _new(arguments: ModelArguments, captions: Iterable[str]) -> tuple[RegionLearnerModel, RegionLearnerProcessor]:
    text_config = dict(arguments.text_config or {})
    length = text_config.get("max_position_embeddings", 64)
    if arguments.tokenizer is None:
        raise ValueError("A new model needs a tokenizer: a directory, a Hub name, or 'train'.")
    if arguments.tokenizer == "train":
        tokenizer: Any = train_tokenizer(captions, arguments.vocab_size, length)
    else:
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    tokenizer.model_max_length = min(tokenizer.model_max_length, length)
    text_config.setdefault("vocab_size", len(tokenizer))
    if tokenizer.pad_token_id is not None:
        text_config.setdefault("pad_token_id", tokenizer.pad_token_id)
    if "model_type" not in text_config:
        raise ValueError("text_config needs a model_type, for example 'distilbert'.")
    text = AutoConfig.for_model(text_config.pop("model_type"), **text_config)
    config: RegionLearnerConfig = config_with_overrides(
        dict(arguments.config or {}), video=arguments.video_config or {}, text_config=text
    )
    video = config.video_config
    video_processor = RegionLearnerVideoProcessor.for_image_size(
        video.image_size, num_frames=arguments.num_frames or video.num_frames
    )
    return RegionLearnerModel(config), RegionLearnerProcessor(video_processor, tokenizer)


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
        What `results.json` holds: `train` (loss, seconds, unreadable videos ...), `test` (retrieval metrics), and
        the `arguments`.

    Raises:
        ValueError: for arguments that do not fit together; CorpusError and VideoDecodeError are of that kind.
    """
    set_seed(training_arguments.seed)
    if data_arguments.eval_split is not None and training_arguments.eval_strategy == "no":
        training_arguments.eval_strategy = IntervalStrategy.EPOCH
    resume: Any = training_arguments.resume_from_checkpoint
    if isinstance(resume, str) and resume.lower() in ("true", "false"):
        resume = resume.lower() == "true"  # the last checkpoint in output_dir, as the Trainer has it
    output_dir = Path(str(training_arguments.output_dir))

    def split(name: str | None):
        if name is None:
            return None
        return load_corpus(
            data_arguments.corpus, data_arguments.data_dir, name, **(data_arguments.corpus_options or {})
        )

    train_dataset, eval_dataset = split(data_arguments.train_split), split(data_arguments.eval_split)
    test_dataset = split(data_arguments.test_split)  # before training, so that a wrong name loses nothing
    if data_arguments.max_train_videos is not None:
        train_dataset = train_dataset.take(data_arguments.max_train_videos)
    captions = (caption for row in train_dataset["captions"] for caption in row)
    model, processor = build_model(model_arguments, captions)
    flips = model_arguments.flip_probability
    if flips is None:
        flips = 0.0 if data_arguments.corpus in _TELLS_LEFT_FROM_RIGHT else 0.5
    processor.video_processor.flip_probability = flips
    logger.info("%.1f million parameters", sum(p.numel() for p in model.parameters()) / 1e6)

    trainer = RegionLearnerTrainer(
        model=model,
        args=training_arguments,
        processing_class=processor,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        callbacks=callbacks,
    )
    result = trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    counts = {"videos": len(train_dataset)} if isinstance(train_dataset, Sized) else {}
    results: dict[str, Any] = {"train": counts | result.metrics, "arguments": _shown(model_arguments, data_arguments)}
    results["log"] = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    if test_dataset is not None and trainer.is_world_process_zero():
        results["test"] = _evaluate(trainer, processor, test_dataset)
    if trainer.is_world_process_zero():
        (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def _evaluate(trainer: RegionLearnerTrainer, processor, dataset) -> dict[str, Any]:
    model = trainer.accelerator.unwrap_model(trainer.model)
    workers = trainer.args.dataloader_num_workers
    embeddings = embed_corpus(model, processor, dataset, trainer.args.per_device_eval_batch_size, workers)
    counts = {"videos": len(embeddings.video_ids), "texts": len(embeddings.texts)}
    return embeddings.metrics() | counts | {"unreadable": embeddings.unreadable}


def _shown(*arguments) -> dict[str, Any]:
    return {name: value for part in arguments for name, value in vars(part).items() if value is not None}

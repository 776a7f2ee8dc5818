"""A single run, which trains a small dual encoder from scratch on clips in memory, and then measures it."""

import os
import platform
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_model
from transformers import PrinterCallback, TrainerCallback, set_seed

from region_learner import RegionLearnerTrainer, RegionLearnerTrainingArguments
from region_learner.corpora import load_masks
from region_learner.evaluation import codebook_use, embed_texts, region_quality_of_batches, retrieval_metrics
from region_learner.inference import evaluation_mode
from region_learner.training.arguments import ModelArguments
from region_learner.training.model import build_model

from .clips import SPLITS, ClipsInMemory, CollatorInMemory, Split
from .gatherings import GATHERINGS, give_labels
from .settings import Row, Setting

_BATCH_SIZE = 100  # batch size of the evaluation
_DRAWN = 4  # number of validation clips whose region masks are saved for figures


def new_model(setting: Setting, row: Row, captions: Sequence[str]):
    """Returns the untrained model of a row and its processor, whose tokenizer is trained on `captions`."""
    arguments = ModelArguments(
        video_config=setting.video_config | row.video_config,
        text_config=dict(setting.text_config),
        config=setting.config | row.config,
        tokenizer="train",
        vocab_size=setting.vocab_size,
    )
    model, processor = build_model(arguments, captions)
    if row.gathering is not None:
        config: Any = model.config.video_config
        model.video_model.region_module.aggregation = GATHERINGS[row.gathering](config).apply(model._init_weights)
    if row.labels:
        give_labels(model.video_model)
    return model, processor


def train_and_measure(
    setting: Setting,
    row: Row,
    seed: int,
    corpus: Path,
    use_cpu: bool = False,
    masks_to: Path | None = None,
    data_seed: int | None = None,
    weights_to: Path | None = None,
) -> dict[str, Any]:
    """
    Trains the model of a row from one seed, and measures it after the last step.

    Args:
        seed: seed of the weights, and of the order and sampling of the data.
        corpus: the directory where [`prepare`] put the decoded clips.
        use_cpu: whether to run on the CPU even if there is a GPU.
        masks_to: an .npz file for the region masks of a few clips during training.
        data_seed: a separate seed for the order and sampling of the data.
        weights_to: a .safetensors file for the weights after the last step.

    Returns:
        The settings of the run and its measurements: `val` and `test`, retrieval metrics; `curve`, the validation R@1
        during training; `loss` (without the mask loss) and `region_loss` (the mask loss), means over every 50 steps;
        `codes_in_use`, a share between 0 and 1; `regions`, see `region_quality_of_batches`; `parameters` and
        `parameters_of_region_module`; `seconds`; `machine`; `versions`.
    """
    start = time.perf_counter()
    set_seed(seed)
    train, val, test = (Split.load(setting, corpus, name, row.labels) for name in SPLITS)
    model, processor = new_model(setting, row, [caption for _, caption in train.captions()])
    use_cpu = use_cpu or not torch.cuda.is_available()
    if use_cpu:
        model.set_attn_implementation("eager")  # faster than the fused kernel with so few tokens
    epochs = setting.epochs * row.epochs_factor
    watch = _Watch(model, processor, val, every=max(1, epochs // 6), masks=masks_to is not None)
    trainer = RegionLearnerTrainer(
        model=model,
        args=_arguments(setting, epochs, seed, data_seed, use_cpu, corpus),
        processing_class=processor,
        train_dataset=_training_rows(setting, row, train),
        data_collator=CollatorInMemory(processor, train.frames),
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    result = {
        "row": row.name,
        "seed": seed,
        **({} if data_seed is None else {"data_seed": data_seed}),
        "setting": asdict(setting),
        "video_config": row.video_config,
        **({"config": row.config} if row.config else {}),
        **({"gathering": row.gathering} if row.gathering else {}),
        **({"labels": True} if row.labels else {}),
        **({"negatives": True} if row.negatives else {}),
        **({"epochs_factor": row.epochs_factor} if row.epochs_factor > 1 else {}),
        "val": _retrieval(model, processor, val),
        "test": _retrieval(model, processor, test),
        "curve": watch.curve,
        **_losses(model, trainer.state.log_history),
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_of_region_module": sum(p.numel() for n, p in model.named_parameters() if "region_module" in n),
        **_codes_and_regions(model, processor, test, setting.regions_on),
        "seconds": round(time.perf_counter() - start, 1),
        "machine": _machine(model.device),
        "versions": {name: _version(name) for name in ("region-learner", "torch", "transformers")},
    }
    if weights_to is not None:
        weights_to.parent.mkdir(parents=True, exist_ok=True)
        save_model(model, str(weights_to))
    if masks_to is not None and watch.masks:
        masks_to.parent.mkdir(parents=True, exist_ok=True)
        clip = ClipsInMemory(processor.video_processor)
        frames = np.stack([frames[clip.indices(frames)][..., :3] for frames in val.frames[:_DRAWN]])
        np.savez_compressed(masks_to, frames=frames, **watch.masks)  # type: ignore[arg-type] # names of arrays
    return result


def _training_rows(setting: Setting, row: Row, train: Split) -> list[dict[str, Any]]:
    # `CollatorInMemory` finds clips by their index: rows without frames are small enough for loader processes.
    rows = [
        {"video": one["video_id"], **{name: one[name] for name in ("video_id", "captions", "index")}}
        for one in train.rows
    ]
    if row.negatives:
        negatives = {pair["video_id"]: pair["negative_captions"] for pair in train.pairs(setting, "train")}
        rows = [one | {"negative_captions": negatives.get(one["video_id"], [])} for one in rows]
    return rows


def _arguments(setting: Setting, epochs: int, seed: int, data_seed: int | None, use_cpu: bool, corpus: Path):
    return RegionLearnerTrainingArguments(
        output_dir=str(corpus / "unused"),  # nothing is saved
        seed=seed,
        data_seed=data_seed,
        num_train_epochs=epochs,
        per_device_train_batch_size=setting.batch_size,
        learning_rate=setting.learning_rate,
        warmup_steps=setting.warmup_steps,
        max_grad_norm=setting.max_grad_norm,
        weight_decay=setting.weight_decay,
        adam_beta2=0.98,
        lr_scheduler_type="cosine",
        bf16=setting.bf16,
        use_cpu=use_cpu,
        dataloader_drop_last=True,
        dataloader_num_workers=0 if use_cpu else 2,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        logging_steps=50,
        disable_tqdm=True,
    )


class _Watch(TrainerCallback):
    """Measures validation R@1 every few epochs, and collects region masks of a few validation clips."""

    def __init__(self, model, processor, val: Split, every: int, masks: bool):
        self.model, self.processor, self.val, self.every = model, processor, val, every
        self.with_masks = masks and bool(model.config.video_config.num_regions)
        self.curve: list[dict[str, float]] = []
        self.masks: dict[str, np.ndarray] = {}

    def on_epoch_end(self, args, state, control, **kwargs):
        epoch = round(state.epoch)
        if epoch % self.every:
            return
        metrics = _retrieval(self.model, self.processor, self.val)
        self.curve.append({"epoch": epoch, "t2v_R@1": metrics["t2v_R@1"]})
        if self.with_masks:
            with evaluation_mode(self.model):
                clips = next(batches(self.model, self.processor, self.val, _DRAWN))
                self.masks[f"epoch_{epoch}"] = self.model.video_model(clips).region_masks.float().cpu().numpy()


def batches(model, processor, split: Split, count: int | None = None) -> Iterator[torch.Tensor]:
    """Yields the first `count` clips of a split, as [`ClipsInMemory`] returns them, on the device of the model."""
    clip = ClipsInMemory(processor.video_processor)
    frames = split.frames[:count]
    for start in range(0, len(frames), _BATCH_SIZE):
        yield torch.stack([clip(some) for some in frames[start : start + _BATCH_SIZE]]).to(model.device)


def _retrieval(model, processor, split: Split) -> dict[str, float]:
    with evaluation_mode(model):
        videos = torch.cat(
            [model(pixel_values_videos=some).video_embeds.cpu() for some in batches(model, processor, split)]
        )
    owners, captions = zip(*split.captions())
    texts = embed_texts(model, processor, captions)
    return retrieval_metrics(texts, videos, owners, range(len(videos)))


def _losses(model, history: list[dict[str, float]]) -> dict[str, list[float]]:
    """Splits the logged losses into the contrastive loss and the mask loss."""
    log = [entry for entry in history if "loss" in entry]
    weight = model.config.video_config.resolved.region_options.mask_loss_weight
    return {
        "loss": [round(entry["loss"] - weight * entry.get("region_loss", 0.0), 4) for entry in log],
        "region_loss": [entry["region_loss"] for entry in log if "region_loss" in entry],
    }


def _codes_and_regions(model, processor, test: Split, count: int) -> dict[str, Any]:
    """Measures the codes in use and the region masks, if the model has them, on the first `count` clips."""
    found: dict[str, Any] = {}
    if model.config.video_config.codebook_size:
        found["codes_in_use"] = codebook_use(model, batches(model, processor, test, count))
    if model.config.video_config.num_regions:
        indices = ClipsInMemory(processor.video_processor).indices(test.frames[0])
        labels = [load_masks(row)[indices] for row in test.rows[:count]]
        labels = [np.stack(labels[start : start + _BATCH_SIZE]) for start in range(0, len(labels), _BATCH_SIZE)]
        found["regions"] = region_quality_of_batches(model, zip(batches(model, processor, test, count), labels))
    return found


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # the package is run from its source
        return "not installed"


def _machine(device: torch.device) -> str:
    """Returns a description of the hardware that a model runs on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    found = re.search(r"model name\s*: (.*)", text)
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"

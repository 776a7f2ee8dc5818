"""One run of an ablation: a small dual encoder, trained from nothing on clips held in memory, and measured."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback, set_seed
from transformers.video_utils import VideoMetadata

from ..corpora import load_corpus
from ..corpora.generated import load_masks
from ..evaluation import codebook_use, embed_texts, region_quality_of_batches, retrieval_metrics
from ..training.arguments import ModelArguments
from ..training.collator import RegionLearnerCollator
from ..training.logs import LogLines
from ..training.model import build_model
from ..training.trainer import RegionLearnerTrainer
from ..training.training_arguments import RegionLearnerTrainingArguments
from ..video_processing_region_learner import RegionLearnerVideoProcessor

SPLITS = ("train", "val", "test")
_AT_ONCE = 100  # clips, in evaluation
_DRAWN = 4  # clips of the validation split whose masks are kept for pictures


@dataclass(frozen=True)
class Setting:
    """
    What all runs of an ablation share: the corpus, the encoders around the region module, and the training.

    Args:
        corpus: name of a built-in corpus.
        options: what it is made with; its `size` is that of the frames the model sees.
        video_config, text_config, config: of the model, without the region module.
        epochs, batch_size, learning_rate, warmup_steps, max_grad_norm, weight_decay: of the training, AdamW with a
            cosine schedule; `max_grad_norm=0` does not clip.
        bf16: autocast to bfloat16.
        vocab_size: of the tokenizer, learned from the training captions.
        regions_on: test clips whose masks are compared with the true ones.
    """

    corpus: str
    options: dict[str, Any]
    video_config: dict[str, Any]
    text_config: dict[str, Any]
    config: dict[str, Any]
    epochs: int = 6
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 150
    max_grad_norm: float = 1.0
    weight_decay: float = 0.05
    bf16: bool = True
    vocab_size: int = 1000
    regions_on: int = 200


@dataclass(frozen=True)
class Row:
    """
    A model of the table: what its video configuration has beyond that of the setting, and the row `against` which it
    is compared.
    """

    name: str
    describes: str
    video_config: dict[str, Any] = field(default_factory=dict)
    against: str = "frozen"


def prepare(setting: Setting, directory: Path) -> None:
    """
    Makes the corpus and decodes it, once for all runs: `directory/SPLIT.npy`, (clips, frames, height, width, 3) uint8;
    `directory/corpus.json` says which it is.

    Raises:
        ValueError: another corpus is there.
    """
    described = json.loads(json.dumps({"corpus": setting.corpus, "options": setting.options}))
    label = directory / "corpus.json"
    if label.exists():
        if json.loads(label.read_text(encoding="utf-8")) != described:
            raise ValueError(f"{directory} holds the clips of another corpus: choose another output, or remove it.")
    else:
        if directory.exists() and any(directory.iterdir()):
            raise ValueError(f"{directory} holds something else than clips: choose another output, or remove it.")
        directory.mkdir(parents=True, exist_ok=True)
        label.write_text(json.dumps(described) + "\n", encoding="utf-8")
    processor = RegionLearnerVideoProcessor()
    for split in SPLITS:
        target = directory / f"{split}.npy"
        if target.exists():
            continue
        videos = load_corpus(setting.corpus, split=split, **setting.options)["video"]
        clips = np.stack([processor.fetch_videos(video)[0].permute(0, 2, 3, 1).numpy() for video in videos])
        partial = target.with_suffix(".partial.npy")
        np.save(partial, clips)
        partial.replace(target)


@dataclass
class Split:
    """A split of a corpus: `rows`, with their `index`, and the `frames` that [`prepare`] has decoded."""

    rows: Dataset
    frames: np.ndarray

    @classmethod
    def load(cls, setting: Setting, directory: Path, name: str) -> "Split":
        rows = load_corpus(setting.corpus, split=name, **setting.options)
        rows = rows.add_column("index", list(range(len(rows))))
        frames = np.load(directory / f"{name}.npy", mmap_mode="r")
        if len(frames) != len(rows):
            raise ValueError(f"{directory} has {len(frames)} clips of {name}, of {len(rows)}: remove it.")
        return cls(rows, frames)

    def captions(self) -> list[tuple[int, str]]:
        """Every caption, with the index of its clip."""
        return [(index, caption) for index, captions in enumerate(self.rows["captions"]) for caption in captions]


class ClipsInMemory:
    """
    What a model is given of decoded clips: the frames that the processor samples, normalised as it does it. They are
    whole, also in training: a crop could cut away what a caption names.
    """

    def __init__(self, processor: RegionLearnerVideoProcessor):
        self.processor = processor
        self.mean, self.std = (torch.tensor(x).view(3, 1, 1) for x in (processor.image_mean, processor.image_std))

    def indices(self, frames: np.ndarray, training: bool = False, generator=None) -> np.ndarray:
        """Which of the `frames` (all of a clip, height, width, 3) are taken."""
        return self.processor.sample_frames(VideoMetadata(len(frames)), training=training, generator=generator)

    def __call__(self, frames: np.ndarray, training: bool = False, generator=None) -> torch.Tensor:
        """The clip (T, 3, height, width)."""
        clip = torch.from_numpy(frames[self.indices(frames, training, generator)]).permute(0, 3, 1, 2)
        return (clip / 255 - self.mean) / self.std


class _Collator(RegionLearnerCollator):
    def __init__(self, processor, frames: np.ndarray):
        super().__init__(processor, training=True)
        self.clip, self.frames = ClipsInMemory(processor.video_processor), frames

    def _decode(self, row, generator, unreadable) -> torch.Tensor:
        return self.clip(self.frames[row["index"]], training=True, generator=generator)


class _Watch(TrainerCallback):
    """Calls `look` every few epochs of a run."""

    def __init__(self, look: Callable[[int], None], every: int):
        self.look, self.every = look, every

    def on_epoch_end(self, args, state, control, **kwargs):
        if round(state.epoch) % self.every == 0:
            self.look(round(state.epoch))


def new_model(setting: Setting, row: Row, captions: Sequence[str]):
    """The untrained model of a row and its processor; the tokenizer is learned from `captions`."""
    arguments = ModelArguments(
        video_config=setting.video_config | row.video_config,
        text_config=dict(setting.text_config),
        config=dict(setting.config),
        tokenizer="train",
        vocab_size=setting.vocab_size,
    )
    return build_model(arguments, captions)


def run(
    setting: Setting,
    row: Row,
    seed: int,
    directory: Path,
    use_cpu: bool = False,
    masks_to: Path | None = None,
    data_seed: int | None = None,
) -> dict[str, Any]:
    """
    Trains and measures the model of one row, from one seed: of its weights, and of the order and draws of the data.

    Args:
        directory: where [`prepare`] has put the decoded corpus.
        use_cpu: even where there is a GPU.
        masks_to: an .npz file for the masks of a few clips while they are learned.
        data_seed: another seed of the order and draws of the data, to tell what each of the two does.

    Returns:
        What was set and measured: retrieval on `test` and `val`; `regions` (see `region_quality_of_batches`);
        `codes_in_use`, a share; `curve`, validation while training; `loss`, the contrastive one, and `region_loss`,
        means of every 50 steps;
        `parameters`; `seconds`, `machine`, `versions`.
    """
    start = time.perf_counter()
    set_seed(seed)
    train, val, test = (Split.load(setting, directory, name) for name in SPLITS)
    model, processor = new_model(setting, row, [caption for _, caption in train.captions()])
    use_cpu = use_cpu or not torch.cuda.is_available()
    if use_cpu:
        model.set_attn_implementation("eager")  # with so few tokens faster on a CPU than its fused kernel
    clip = ClipsInMemory(processor.video_processor)
    masks: dict[str, np.ndarray] = {}

    def batches(split: Split, count: int | None = None) -> Iterator[torch.Tensor]:
        frames = split.frames[:count]
        for first in range(0, len(frames), _AT_ONCE):
            yield torch.stack([clip(some) for some in frames[first : first + _AT_ONCE]]).to(model.device)

    @torch.inference_mode()
    def retrieval(split: Split) -> dict[str, float]:
        was_training = model.training
        model.eval()
        videos = torch.cat([model(pixel_values_videos=some).video_embeds.cpu() for some in batches(split)])
        owners, captions = zip(*split.captions())
        texts = embed_texts(model, processor, captions)
        model.train(was_training)
        return retrieval_metrics(texts, videos, owners, range(len(videos)))

    curve: list[dict[str, float]] = []

    def look(epoch: int):
        curve.append({"epoch": epoch, "t2v_R@1": retrieval(val)["t2v_R@1"]})
        if masks_to is not None and model.config.video_config.num_regions:
            with torch.inference_mode():
                some = next(batches(val, _DRAWN))
                masks[f"epoch_{epoch}"] = model.eval().video_model(some).region_masks.float().cpu().numpy()
            model.train()

    trainer = RegionLearnerTrainer(
        model=model,
        args=RegionLearnerTrainingArguments(
            output_dir=str(directory / "unused"),
            seed=seed,
            data_seed=data_seed,
            num_train_epochs=setting.epochs,
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
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to="none",
            logging_steps=50,
            disable_tqdm=True,
        ),
        processing_class=processor,
        train_dataset=train.rows.select_columns(["video", "video_id", "captions", "index"]),
        data_collator=_Collator(processor, train.frames),
        callbacks=[_Watch(look, every=max(1, setting.epochs // 6))],
    )
    trainer.remove_callback(LogLines)
    trainer.train()

    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    weight = model.config.video_config.resolved.region_options.mask_loss_weight
    result: dict[str, Any] = {
        "row": row.name,
        "seed": seed,
        "setting": asdict(setting),
        "video_config": row.video_config,
        "val": retrieval(val),
        "test": retrieval(test),
        "curve": curve,
        "loss": [round(entry["loss"] - weight * entry.get("region_loss", 0.0), 4) for entry in log],
        "region_loss": [entry["region_loss"] for entry in log if "region_loss" in entry],
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_of_region_module": sum(p.numel() for n, p in model.named_parameters() if "region_module" in n),
    }
    if model.config.video_config.codebook_size:
        result["codes_in_use"] = codebook_use(model, batches(test, setting.regions_on))
    if model.config.video_config.num_regions:
        indices = clip.indices(test.frames[0])
        labels = [load_masks(path)[indices] for path in test.rows["masks"][: setting.regions_on]]
        labels = [np.stack(labels[first : first + _AT_ONCE]) for first in range(0, len(labels), _AT_ONCE)]
        result["regions"] = region_quality_of_batches(model, zip(batches(test, setting.regions_on), labels))
        if masks_to is not None:
            frames = np.stack([frames[indices] for frames in val.frames[:_DRAWN]])
            masks_to.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(masks_to, frames=frames, **masks)  # type: ignore[arg-type] # names of arrays
    return result | {
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(model.device),
        "versions": {name: version(name) for name in ("region-learner", "torch", "transformers")},
    }


def machine(device: torch.device) -> str:
    """What a model runs on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

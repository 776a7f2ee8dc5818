"""Small training runs without videos, in separate processes. Tests compare them with one another and kill them."""

import gc
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback

from region_learner import RegionLearnerConfig, RegionLearnerModel
from region_learner.loader_processes import now_reading
from region_learner.training import CorpusPart, RegionLearnerTrainer, RegionLearnerTrainingArguments
from region_learner.training.data import DRAWN

from .conftest import TINY_VIDEO, tiny_text_config

DEFAULTS = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
    "logging_steps": 1,
    "lr_scheduler_type": "constant",
    "max_steps": 4,
    "per_device_train_batch_size": 4,
}


class Processor:
    """A processor with only what the Trainer needs if clips do not come from videos."""

    def save_pretrained(self, folder):
        pass


class Collator:
    """
    Returns clips and captions that depend on the row and, like augmentations, on its seed.

    Rows in `bad` are reported as unreadable. `deadly` is a row and a signal: the process that reads the row sends
    itself the signal.
    """

    def __init__(self, bad=(), deadly: tuple[int, int] | None = None):
        self.bad, self.deadly = bad, deadly

    def __call__(self, rows):
        unreadable = [(row["video_id"], "cannot be read") for row in rows if int(row["video_id"]) in self.bad]
        clips, texts, ids, negatives = [], [], [], []
        for row in rows:
            number = int(row["video_id"])
            now_reading(row["video_id"])
            if self.deadly is not None and number == self.deadly[0]:
                os.kill(os.getpid(), self.deadly[1])
            fixed = torch.Generator().manual_seed(number)
            seed, frames = (row[DRAWN].seed, row[DRAWN].num_frames) if DRAWN in row else (0, None)
            drawn = torch.Generator().manual_seed(seed)
            frames = frames or 2
            clip = torch.randn(1, 3, 32, 32, generator=fixed).expand(frames, -1, -1, -1)
            clips.append(clip + 0.5 * torch.randn(frames, 3, 32, 32, generator=drawn))
            texts.append(torch.randint(1, 99, (6,), generator=fixed))
            if number % 5 == 2:  # some batches, and some processes in a step, have no negatives
                negatives.append(torch.randint(1, 99, (6,), generator=drawn))
            # Rows 2n and 2n + 1 are clips of the same video, and every seventh row is padding.
            ids.append(-1 if number % 7 == 3 else number // 2)
        frame_mask = torch.ones(len(rows), frames, dtype=torch.long)
        if frames > 1:
            frame_mask[torch.tensor(ids) % 3 == 0, -1] = 0
        wrong = {"input_ids": torch.stack(negatives)} if negatives else {}
        wrong |= {"attention_mask": torch.ones(len(negatives), 6, dtype=torch.long)} if negatives else {}
        return {
            "input_ids": torch.stack(texts),
            "attention_mask": torch.ones(len(rows), 6, dtype=torch.long),
            **{f"negative_{name}": value for name, value in wrong.items()},
            "pixel_values_videos": torch.stack(clips),
            "frame_mask": frame_mask,
            "video_ids": torch.tensor(ids),
            "return_loss": True,
            "unreadable": unreadable,
        }


class Kill(TrainerCallback):
    """Kills the process after a step, as `kill -9` does."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class KeepGradients(TrainerCallback):
    def __init__(self):
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


class KeepState(TrainerCallback):
    """Keeps the weights, the codebook and the statistics of the optimizer after every step."""

    def __init__(self):
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.steps.append({name: value.clone() for name, value in model.state_dict().items()})
        for number, statistics in optimizer.state_dict()["state"].items():
            self.steps[-1] |= {
                f"{number}.{name}": torch.as_tensor(value).clone() for name, value in statistics.items()
            }


class ToyTrainer(RegionLearnerTrainer):
    kill_while_saving: int | None = None
    kill_signal: int = signal.SIGKILL
    bad_steps: tuple[int, ...] = ()
    bad_process: int = 0

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        if self.state.global_step + 1 in self.bad_steps and self.args.process_index == self.bad_process:
            inputs["pixel_values_videos"][:, 0, 0, 3, 3] = float("nan")
        return inputs

    def _save_scaler(self, output_dir):  # called after the weights are saved and before the random states are
        if self.state.global_step == self.kill_while_saving:
            os.kill(os.getpid(), self.kill_signal)
        super()._save_scaler(output_dir)


def run(
    output_dir,
    dropout: float = 0.0,
    model: dict | None = None,
    video: dict | None = None,
    dtype: str = "float32",
    rows: int = 24,
    image_rows: int = 0,
    shards: int = 0,
    bad: tuple = (),
    resume=None,
    kill_at: int | None = None,
    kill_while_saving: int | None = None,
    kill_signal: int = signal.SIGKILL,
    deadly: tuple[int, int] | None = None,
    bad_steps: tuple[int, ...] = (),
    bad_process: int = 0,
    callbacks: tuple = (),
    save: bool = False,
    keep_result: bool = True,
    before=lambda trainer: None,
    **arguments,
) -> dict:
    """
    Trains and returns losses, gradients and the final state. Each process also writes them to `OUTPUT/rank{N}.pt`.

    Args:
        bad_steps: steps in which a pixel is NaN in the process `bad_process`.
        save: whether to save the final model, too.
        before: called with the Trainer before it trains.
    """
    torch.set_num_threads(1)
    arguments = RegionLearnerTrainingArguments(output_dir=str(output_dir), **DEFAULTS | arguments)
    text = tiny_text_config(dropout=dropout, attention_dropout=dropout)
    # The initial weights are kept: `randomize` would make a model that amplifies rounding errors.
    revival = {} if (video or {}).get("codebook_mode") == "original" else {"codebook_revival_after": 2}
    options = {"projection_dim": 16, "video_config": TINY_VIDEO | revival | (video or {})}
    torch.manual_seed(0)
    dual_encoder = RegionLearnerModel(RegionLearnerConfig(text_config=text, **options | (model or {})))
    dual_encoder.to(getattr(torch, dtype))
    batch = arguments.per_device_train_batch_size
    dataset = Dataset.from_dict({"video_id": [str(i) for i in range(rows)]})
    if shards:
        dataset = dataset.to_iterable_dataset(num_shards=shards)
    parts = [CorpusPart(dataset, batch, num_frames=2, shuffle_buffer=5)]
    if image_rows:
        images = Dataset.from_dict({"video_id": [str(1000 + i) for i in range(image_rows)]})
        parts.insert(0, CorpusPart(images, batch, num_frames=1))
    trainer = ToyTrainer(
        model=dual_encoder,
        args=arguments,
        processing_class=Processor(),
        train_dataset=parts,
        data_collator=Collator(bad, deadly),
        callbacks=[Kill(kill_at), gradients := KeepGradients(), *callbacks],
    )
    trainer.kill_while_saving, trainer.kill_signal = kill_while_saving, kill_signal
    trainer.bad_steps, trainer.bad_process = bad_steps, bad_process
    before(trainer)
    metrics = trainer.train(resume_from_checkpoint=resume).metrics
    if save:
        trainer.save_model()
    result = {
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        "gradients": gradients.steps,
        "skipped_steps": metrics["skipped_steps"],
        "state": {name: value.clone() for name, value in dual_encoder.state_dict().items()},
    }
    if keep_result:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        torch.save(result, Path(output_dir) / f"rank{arguments.process_index}.pt")
    return result


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# Processes are forked from one that has imported everything: starting each from scratch takes several seconds.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.toy_run"])


def _child(log: str, environment: dict[str, str], output_dir: str, options: dict):
    gc.freeze()  # excludes the libraries from garbage collection, as in `conftest.py`
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    multiprocessing.set_start_method("fork", force=True)  # else, loader processes would use "forkserver"
    os.environ |= environment
    try:
        run(output_dir, **options)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(2)


def launch(output_dir, processes: int = 1, check: bool = True, fail: bool = False, **options) -> list:
    """
    Calls `run` in new processes and returns their results. Without `check`, returns their exit codes instead. With
    `fail`, checks that each process fails by itself, and returns what they print.
    """
    port = free_port()
    started, logs = [], []
    for rank in range(processes):
        environment = {"ACCELERATE_USE_CPU": "true"}
        if processes > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(processes)}
        log = tempfile.NamedTemporaryFile(suffix=".log", delete=False)  # noqa: SIM115 # the child writes to it
        logs.append(Path(log.name))
        arguments = (log.name, environment, str(output_dir), options)
        started.append(_PROCESSES.Process(target=_child, args=arguments))
        started[-1].start()
    try:
        started[0].join(300)
        if not check:
            # The others wait for the killed one: end them, too, as a scheduler would.
            for process in started[1:]:
                process.kill()
        for process in started:
            process.join(300)
        if not check:
            return [process.exitcode for process in started]
        if fail:
            assert [process.exitcode for process in started] == [2] * processes
            return [log.read_text(errors="replace") for log in logs]
        for process, log in zip(started, logs):
            assert process.exitcode == 0, log.read_text(errors="replace")[-4000:]
    finally:
        for process, log in zip(started, logs):
            process.kill()
            log.unlink(missing_ok=True)
    paths = [Path(output_dir) / f"rank{rank}.pt" for rank in range(processes)]
    return [torch.load(path, weights_only=True) for path in paths]

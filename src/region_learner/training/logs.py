"""Measures the progress of a run, and logs it as readable lines on the terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback


class Progress(TrainerCallback):
    """
    Collects measurements between two logs: clips trained on, seconds of steps and of waiting for data, assigned codes,
    and the loss of the regions. Counts and sums stay on the device until they are logged.

    Args:
        codebook_size: number of codes; 0 without a codebook.
    """

    def __init__(self, codebook_size: int = 0):
        self.codebook_size = codebook_size
        self._reset()

    def _reset(self):
        self.total_samples = 0  # until the last log
        self.codes: torch.Tensor | None = None  # (K,), number of times that each code was assigned
        self.regions: torch.Tensor | None = None  # (2,), sum of the clips' region losses, and number of clips
        self._start_interval()

    def _start_interval(self):
        self.samples = self.videos = 0
        self.in_steps = self.waited = 0.0  # seconds
        self.codes = None if self.codes is None else torch.zeros_like(self.codes)
        self.regions = None if self.regions is None else torch.zeros_like(self.regions)

    def on_train_begin(self, args, state, control, **kwargs):
        self._reset()

    def on_step_begin(self, args, state, control, **kwargs):
        self._step_began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.in_steps += time.perf_counter() - self._step_began

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time in this block as waiting for data."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - began

    @property
    def samples_seen(self) -> int:
        return self.total_samples + self.samples

    def observe(self, outputs: Any):
        """Counts the codes that were assigned in a batch, and adds up the loss of its regions."""
        video = getattr(outputs, "video_model_output", None)
        ids, losses = getattr(video, "cluster_ids", None), getattr(video, "region_loss", None)
        if ids is not None:
            ids = ids.detach().flatten() + 1  # with patch dropout, missing patches have the index -1
            counts = ids.new_zeros(self.codebook_size + 1).scatter_add_(0, ids, torch.ones_like(ids))[1:]
            self.codes = counts if self.codes is None else self.codes + counts
        if losses is not None:
            sums = torch.stack([losses.detach().sum(), losses.new_tensor(len(losses))])
            self.regions = sums if self.regions is None else self.regions + sums

    def summary(self, accelerator, unreadable: int) -> dict[str, float]:
        """
        Returns the measurements of all processes since the last summary. Every process has to call this.

        `samples_per_second` counts clips, and `videos_per_second` clips that are not images, over the time of training
        without evaluation and saving; `data_wait` is the share of this time spent waiting for data;
        `unreadable_videos` is the number of unreadable videos so far; `codebook_use` is the percentage of codes that
        were assigned, and `codebook_perplexity` the perplexity of their distribution; `region_loss` is the unweighted
        mean over clips.
        """
        seconds = max(self.in_steps + self.waited, 1e-9)
        numbers = [self.samples, self.videos, self.waited, unreadable]
        sums = accelerator.reduce(torch.tensor(numbers, device=accelerator.device), reduction="sum")
        samples, videos, waited, failures = sums.tolist()
        result = {
            "samples_per_second": round(samples / seconds, 2),
            "videos_per_second": round(videos / seconds, 2),
            "data_wait": round(waited / seconds / accelerator.num_processes, 4),
            "unreadable_videos": int(failures),
        }
        if self.codes is not None:
            shares = accelerator.reduce(self.codes, reduction="sum").double()
            result["codebook_use"] = round(100 * float((shares > 0).double().mean()), 2)
            shares = shares / shares.sum().clamp(min=1)
            entropy = -torch.special.xlogy(shares, shares).sum()
            result["codebook_perplexity"] = round(float(entropy.exp()), 2)
        if self.regions is not None:
            total, clips = accelerator.reduce(self.regions, reduction="sum").tolist()
            result["region_loss"] = round(total / max(clips, 1), 4)
        self.total_samples += self.samples
        self._start_interval()
        return result


def temperatures_of(model: Any) -> dict[str, float]:
    """
    Returns the temperatures of a contrastive model by their names in logs: one for embeddings, and one for tokens if
    there are any. Other models have none.
    """
    if not hasattr(model, "temperature"):
        return {}
    names = ["temperature", *(["token_temperature"] if model.config.token_dim else [])]
    found = {}
    for name in names:
        temperature = torch.as_tensor(getattr(model, name)).detach()
        if hasattr(temperature, "full_tensor"):  # the model is sharded
            temperature = temperature.full_tensor()
        found[name] = float(temperature)
    return found


# Lines

# Format of the values of a training step, in order. Rarely needed values are only written to `results.json`.
_STEP_FORMATS = {
    "loss": "loss {:7.4f}",
    "grad_norm": "grad {:7.3f}",
    "learning_rate": "lr {:.1e}",
    "samples_per_second": "{:6.4g} clips/s",
    "data_wait": "data wait {:3.0%}",
    "codebook_use": "codes {:3.0f}%",
    "temperature": "temperature {:.4f}",
    "token_temperature": "token temperature {:.4f}",
}
_ONLY_IF_ANY = ("skipped_steps", "unreadable_videos")
# Suffixes of other names that are not shown.
_NOT_SHOWN = (
    "runtime", "per_second", "preparation_time", "epoch", "total_flos", "R@50", "MeanR", "gmean",
)  # fmt: skip


def log_line(logs: dict[str, Any], step: int, max_steps: int) -> str:
    """
    Formats what the Trainer logs as one line. A training step and an evaluation give lines such as:

        step 120/800  epoch  3.00  loss  1.2340  grad   0.520  lr 1.0e-04    420 clips/s  data wait  3%  codes  96%
        step 120/800  epoch  3.00  eval  loss  1.5012  t2v R@1  40.00  R@5  71.50  R@10  84.00  MedR   2.00

    Args:
        logs: names and values of a training step, of an evaluation, or of the whole run.
        step: steps so far.
        max_steps: steps of the whole run.
    """
    parts = [f"step {step:{len(str(max_steps))}}/{max_steps}"] if max_steps else []
    if max_steps and "epoch" in logs:
        parts.append(f"epoch {logs['epoch']:5.2f}")
    if "loss" in logs:
        parts += [shape.format(float(logs[name])) for name, shape in _STEP_FORMATS.items() if name in logs]
        parts += [f"{name} {logs[name]}" for name in _ONLY_IF_ANY if logs.get(name)]
    else:
        shown = {name: value for name, value in logs.items() if not name.endswith(_NOT_SHOWN)}
        if any(name.startswith("eval_") for name in shown):
            parts.append("eval")
        last_group = ""
        for name, value in shown.items():
            # The name of a group of metrics, such as "t2v", is printed once.
            group, _, metric = name.removeprefix("eval_").rpartition("_")
            label = f"{group} {metric}" if group and group != last_group else metric
            last_group = group
            number = f"{value:7.4f}" if metric == "loss" else f"{value:6.2f}" if isinstance(value, float) else value
            parts.append(f"{label} {number}")
    return "  ".join(parts)


class LogLines(TrainerCallback):
    """Prints logs as lines on standard error. Those of training steps end with the time that is left."""

    _began, _first_step = 0.0, sys.maxsize  # before training, nothing is known about the time that is left

    def on_train_begin(self, args, state, control, **kwargs):
        self._began, self._first_step = time.perf_counter(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            line = log_line(logs, state.global_step, state.max_steps)
            if "loss" in logs and state.global_step > self._first_step:
                per_step = (time.perf_counter() - self._began) / (state.global_step - self._first_step)
                left = round(per_step * (state.max_steps - state.global_step))
                line += f"  {timedelta(seconds=left)} left"
            print(line, file=sys.stderr, flush=True)


class LogLinesAndBar(ProgressCallback):
    """Prints logs as lines above a progress bar."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            line = log_line(logs, state.global_step, state.max_steps)
            if self.training_bar is None:  # this is an evaluation before or after training
                print(line, file=sys.stderr, flush=True)
            else:
                self.training_bar.write(line, file=sys.stderr)


def print_lines(trainer: Any) -> None:
    """Replaces transformers' callbacks, which print logs as dictionaries. The progress bar is only for terminals."""
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback) in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
            has_bar = type(callback) is ProgressCallback and sys.stderr.isatty()
            trainer.add_callback(LogLinesAndBar() if has_bar else LogLines())

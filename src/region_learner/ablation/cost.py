"""What a row of the table costs: seconds of a training step, beside those of the baseline, in one run."""

import statistics
import time
from collections.abc import Sequence

import torch

from .run import Row, Setting, new_model


def relative_cost(setting: Setting, rows: Sequence[Row], rounds: int = 7, use_cpu: bool = False) -> dict[str, float]:
    """
    Median time of a training step (forward, backward, AdamW) for each of `rows`, divided by that of the first. The
    rows take turns, so that what else the machine does falls on all of them alike.
    """
    device = torch.device("cuda" if torch.cuda.is_available() and not use_cpu else "cpu")
    video = setting.video_config
    shape = (setting.batch_size, video["num_frames"], 3, video["image_size"], video["image_size"])
    clips = torch.randn(shape, device=device)
    texts = torch.randint(5, 30, (setting.batch_size, 32), device=device)  # of a vocabulary of any size
    steps = {}
    for row in rows:
        model, _ = new_model(setting, row, ["some words, whatever they are, that a tokenizer can be learned from"])
        if device.type == "cpu":
            model.set_attn_implementation("eager")
        model = model.to(device).train()
        steps[row.name] = _step(model, torch.optim.AdamW(model.parameters(), lr=1e-4), clips, texts, setting.bf16)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number >= 2:  # the first ones warm up
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = medians[rows[0].name]
    return {name: value / first for name, value in medians.items()}


def _step(model, optimizer, clips: torch.Tensor, texts: torch.Tensor, bf16: bool):
    def step():
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=bf16):
            loss = model(
                input_ids=texts, attention_mask=torch.ones_like(texts), pixel_values_videos=clips, return_loss=True
            ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step

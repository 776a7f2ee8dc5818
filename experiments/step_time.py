"""Measures the times of training steps, for the "step" column of tables."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from .settings import Row, Setting
from .training import new_model


def relative_step_times(
    setting: Setting, rows: Sequence[Row], rounds: int = 7, use_cpu: bool = False
) -> dict[str, float]:
    """
    Returns the median time of a training step (forward, backward, AdamW) of each of `rows`, by name, divided by that
    of the first row. The rows take turns, so that other load on the machine affects all of them equally.
    """
    device = torch.device("cuda" if torch.cuda.is_available() and not use_cpu else "cpu")
    video = setting.video_config
    shape = (setting.batch_size, video["num_frames"], 3, video["image_size"], video["image_size"])
    clips = torch.randn(shape, device=device)
    texts = torch.randint(5, 30, (setting.batch_size, 32), device=device)  # ids that exist in any vocabulary
    steps = {}
    for row in rows:
        model, _ = new_model(setting, row, ["a few words to train the tokenizer on"])
        if device.type == "cpu":
            model.set_attn_implementation("eager")
        labels = clips.new_zeros(*shape[:2], int(row.labels), *shape[3:])
        steps[row.name] = _training_step(model.to(device).train(), torch.cat([clips, labels], 2), texts, setting.bf16)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number >= 2:  # after warming up
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {name: value / medians[rows[0].name] for name, value in medians.items()}


def _training_step(model, clips: torch.Tensor, texts: torch.Tensor, bf16: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step():
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=bf16):
            loss = model(
                input_ids=texts, attention_mask=torch.ones_like(texts), pixel_values_videos=clips, return_loss=True
            ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step

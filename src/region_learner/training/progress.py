"""What can be seen of a run while it trains."""

import time
from contextlib import contextmanager
from typing import Any

import torch


class Progress:
    """
    Collects, between two logs: rows trained on, seconds that the model waited for them, which codes were assigned,
    and the loss of the regions. Counts and sums stay on the device until they are logged.

    Args:
        codebook_size: number of codes, 0 for none.
    """

    def __init__(self, codebook_size: int = 0):
        self.codebook_size = codebook_size
        self.total_samples = 0  # before the last log
        self.codes: torch.Tensor | None = None  # (K,), how often each was assigned
        self.regions: torch.Tensor | None = None  # (2,), sum of the loss of clips' regions, and number of clips
        self._restart()

    def _restart(self):
        self.samples = 0
        self.videos = 0
        self.waited = 0.0
        self.since = time.perf_counter()
        if self.codes is not None:
            self.codes = torch.zeros_like(self.codes)
        if self.regions is not None:
            self.regions = torch.zeros_like(self.regions)

    @contextmanager
    def paused(self):
        """Leaves out of the time that is measured what happens within, an evaluation or the saving of a checkpoint."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.since += time.perf_counter() - start

    def observe(self, outputs: Any):
        """Counts the codes that a batch was assigned, and adds up the loss of its regions."""
        video = getattr(outputs, "video_model_output", None)
        ids, losses = getattr(video, "cluster_ids", None), getattr(video, "region_loss", None)
        if ids is not None:
            counts = torch.bincount(ids.detach().flatten(), minlength=self.codebook_size)
            self.codes = counts if self.codes is None else self.codes + counts
        if losses is not None:
            sums = torch.stack([losses.detach().sum(), losses.new_tensor(len(losses))])
            self.regions = sums if self.regions is None else self.regions + sums

    def summary(self, accelerator, unreadable: int) -> dict[str, float]:
        """
        What happened in all processes since the last summary, which each of them has to ask for:
        `samples_per_second`, and of these `videos_per_second`; `data_wait`, the share of time spent waiting for
        data; `unreadable_videos` so far; `codebook_use`, the percentage of codes that were assigned, and
        `codebook_perplexity`, the number of equally frequent codes that would be as diverse; `region_loss`, the mean
        over clips, before it is weighted.
        """
        seconds = max(time.perf_counter() - self.since, 1e-9)
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
        self._restart()
        return result

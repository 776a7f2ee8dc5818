"""Windows over the time of a video, and spans of the windows that match a query."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

WINDOW = 10.0
STRIDE = 5.0

_ROUNDING = 1e-6  # seconds


class Plan(NamedTuple):
    """
    The windows of one video.

    Args:
        spans: start and end of each window in seconds, float64 (W, 2).
        frames: indices of its frames, int64 (W, T).
        duration: of the video in seconds.
    """

    spans: np.ndarray
    frames: np.ndarray
    duration: float


def plan_windows(metadata: Any, processor: Any, window: float, stride: float) -> Plan:
    """
    Returns the windows of a video.

    A window begins at each multiple of `stride`, and has `processor.num_frames` frames at equal distances. The last
    one begins as late as fits, at a multiple of that distance, so that it shares frames with the one before. A video
    that is no longer than a window is one window, sampled as a whole.

    Args:
        metadata: a `ClipMetadata`, of the whole video.
        processor: a `RegionLearnerVideoProcessor` with `num_frames`.
        window, stride: in seconds.
    """
    duration = metadata.end if metadata.times is not None else metadata.duration or 0.0
    if metadata.times is None or duration <= window + _ROUNDING:
        return Plan(np.array([[0.0, duration]]), processor.sample_frames(metadata)[None], duration)
    step = window / processor.num_frames
    starts = np.arange(int((duration - window + _ROUNDING) / stride) + 1) * float(stride)
    if duration - window - starts[-1] >= step - _ROUNDING:
        starts = np.append(starts, int((duration - window + _ROUNDING) / step) * step)
    spans = np.stack([starts, starts + window], axis=1)
    frames = np.stack([processor.span_frames(metadata, start, end) for start, end in spans.tolist()])
    spans[-1, 1] = duration  # less than one distance of frames later
    return Plan(spans, frames, duration)


def find_spans(scores: np.ndarray, spans: np.ndarray) -> list[tuple[float, float, int]]:
    """
    Merges the windows of one video into spans.

    Time is cut at the borders of all windows, and each piece has the mean score of the windows that cover it. A span
    is a run of pieces around a peak that are at least halfway between the peak and the median of the video. The span
    of the best window comes first; further ones are of the best windows outside of the earlier spans that are at
    least halfway as well.

    Args:
        scores: of the windows, (W,).
        spans: of the windows in seconds, (W, 2), in order.

    Returns:
        For each span its start and end, and the index of its best window.
    """
    if len(scores) == 1:
        return [(float(spans[0, 0]), float(spans[0, 1]), 0)]
    borders = np.unique(spans)
    first, last = borders.searchsorted(spans[:, 0]), borders.searchsorted(spans[:, 1])
    changes, counts = np.zeros(len(borders)), np.zeros(len(borders))
    np.add.at(changes, first, scores)
    np.add.at(changes, last, -scores)
    np.add.at(counts, first, 1)
    np.add.at(counts, last, -1)
    counts = counts.cumsum()[:-1]
    pieces = np.where(counts > 0, changes.cumsum()[:-1] / np.maximum(counts, 1), -np.inf)

    found: list[tuple[float, float, int]] = []
    free = np.ones(len(scores), bool)
    highest, middle = float(scores.max()), float(np.median(scores))
    while free.any():
        best = int(np.where(free, scores, -np.inf).argmax())
        if found and scores[best] < (highest + middle) / 2:
            break
        inside = slice(first[best], last[best])
        peak = int(first[best] + pieces[inside].argmax())
        level = (pieces[peak] + middle) / 2
        start = end = peak
        while start > 0 and pieces[start - 1] >= level:
            start -= 1
        while end < len(pieces) - 1 and pieces[end + 1] >= level:
            end += 1
        found.append((float(borders[start]), float(borders[end + 1]), best))
        overlaps = (spans[:, 0] < borders[end + 1]) & (spans[:, 1] > borders[start])
        free &= ~overlaps
        free[best] = False
    return found


def clock(seconds: float) -> str:
    """Returns a time as it is shown: "00:42", or "1:02:03" from an hour on."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute:02}:{second:02}"

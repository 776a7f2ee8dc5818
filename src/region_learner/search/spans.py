"""Splits a video into windows, and merges windows that match a query into spans."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..video_decoding_region_learner import VideoDecodeError

WINDOW = 10.0
STRIDE = 5.0

_ROUNDING = 1e-6  # seconds
_LEVEL = 0.7  # of 0.4 to 0.9, this gives the best intersection over union with true spans (docs/search_details.md)
_LONGEST = 2**31  # seconds; longer windows would count as damage of an index
_MOST = 2**17  # maximum number of windows per video: a week, with one window every 5 seconds


class Plan(NamedTuple):
    """
    The windows of one video.

    Args:
        spans: start and end of each window in seconds, float64 (W, 2).
        frames: indices of the frames of each window, int64 (W, T).
        duration: duration of the video in seconds.
    """

    spans: np.ndarray
    frames: np.ndarray
    duration: float


def check_windows(window: float, stride: float) -> None:
    """Raises a `ValueError` unless windows of this length and stride, in seconds, cover a video."""
    if not 0 < stride <= window < _LONGEST:
        raise ValueError(
            f"window={window} and stride={stride} must be seconds with 0 < stride <= window < 2**31: a longer stride "
            "would leave out parts of the videos."
        )


def plan_windows(metadata: Any, processor: Any, window: float, stride: float) -> Plan:
    """
    Returns the windows of a video.

    A window begins at each multiple of `stride`, and has `processor.num_frames` evenly spaced frames. The last window
    begins as late as possible, at a multiple of the distance between frames, so that it shares frames with the window
    before it. A video that is not longer than a window has a single window, which is sampled from the whole video.

    Args:
        metadata: the `ClipMetadata` of the whole video.
        processor: a `RegionLearnerVideoProcessor` with `num_frames`.
        window, stride: length and stride of the windows in seconds.
    """
    duration = metadata.end if metadata.times is not None else metadata.duration or 0.0
    if metadata.times is None or duration <= window + _ROUNDING:
        return Plan(np.array([[0.0, duration]]), processor.sample_frames(metadata)[None], duration)
    step = window / processor.num_frames
    if (duration - window) / stride > _MOST:
        raise VideoDecodeError(f"its time stamps span {duration / 86400:.1f} days, more than {_MOST} windows")
    starts = np.arange(int((duration - window + _ROUNDING) / stride) + 1) * float(stride)
    if duration - window - starts[-1] >= step - _ROUNDING:
        starts = np.append(starts, int((duration - window + _ROUNDING) / step) * step)
    spans = np.stack([starts, starts + window], axis=1)
    frames = np.stack([processor.span_frames(metadata, start, end) for start, end in spans.tolist()])
    spans[-1, 1] = duration  # less than the distance between two frames later
    # Windows with the same frames, as in a slide show, are merged, so there are no more windows than frames.
    is_first = np.append(True, (frames[1:] != frames[:-1]).any(axis=1))
    ends = spans[np.append(is_first[1:], True), 1]
    return Plan(np.stack([spans[is_first, 0], ends], axis=1), frames[is_first], duration)


def find_spans(scores: np.ndarray, spans: np.ndarray) -> list[tuple[float, float, int]]:
    """
    Merges the windows of one video into spans.

    Time is cut at the borders of all windows, and the score of each piece is the mean score of the windows that cover
    it. A span is a run of pieces around a peak whose scores reach at least `_LEVEL` of the way from the median to the
    peak. The first span contains the best window. Each further span contains the best window outside of the earlier
    spans, if its score reaches at least half of that way. Spans do not overlap.

    Args:
        scores: scores of the windows, (W,).
        spans: start and end of the windows in seconds, (W, 2), in order.

    Returns:
        The start and end of each span in seconds, and the index of its best window.
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
    free, taken = np.ones(len(scores), bool), np.zeros(len(pieces), bool)
    highest, middle = float(scores.max()), float(np.median(scores))
    while free.any():
        best = int(np.where(free, scores, -np.inf).argmax())
        if found and scores[best] < (highest + middle) / 2:
            break
        inside = slice(first[best], last[best])
        peak = int(first[best] + pieces[inside].argmax())
        level = middle + _LEVEL * (pieces[peak] - middle)
        start = end = peak
        while start > 0 and pieces[start - 1] >= level and not taken[start - 1]:
            start -= 1
        while end < len(pieces) - 1 and pieces[end + 1] >= level and not taken[end + 1]:
            end += 1
        taken[start : end + 1] = True
        found.append((float(borders[start]), float(borders[end + 1]), best))
        overlaps = (spans[:, 0] < borders[end + 1]) & (spans[:, 1] > borders[start])
        free &= ~overlaps
        free[best] = False
    return found


def clock(start: float, end: float) -> str:
    """
    Formats a span, rounded outwards to whole seconds.

    Example:

        >>> clock(42.4, 51.2)
        '00:42-00:52'
        >>> clock(3723, 3733)
        '1:02:03-1:02:13'
    """

    def shown(second: int) -> str:
        hours, rest = divmod(second, 3600)
        minutes = f"{rest // 60:02}:{rest % 60:02}"
        return f"{hours}:{minutes}" if hours else minutes

    return f"{shown(math.floor(start + _ROUNDING))}-{shown(math.ceil(end - _ROUNDING))}"


def percent(probability: float) -> str:
    """
    Formats a probability in whole percent. It is never shown as 0% or 100%.

    Example:

        >>> percent(0.914), percent(0.002), percent(0.998)
        ('91%', '<1%', '>99%')
    """
    if probability < 0.01:
        return "<1%"
    return ">99%" if probability > 0.99 else f"{probability:.0%}"

"""Tests the windows over a video, and the spans that are merged from them."""

import itertools

import numpy as np
import pytest

from region_learner import RegionLearnerVideoProcessor
from region_learner.search.spans import clock, find_spans, plan_windows
from region_learner.video_decoding_region_learner import ClipMetadata


def plan(seconds, fps=10.0, num_frames=5, window=10.0, stride=5.0, times=None):
    times = np.arange(round(seconds * fps)) / fps if times is None else times
    metadata = ClipMetadata(len(times), fps=fps, times=times)
    return plan_windows(metadata, RegionLearnerVideoProcessor(num_frames=num_frames), window, stride), times


@pytest.mark.parametrize("seconds", [0.1, 3, 9.9, 10, 10.1, 11, 14.9, 15, 17, 25, 26.3, 100, 3600])
@pytest.mark.parametrize(
    ("num_frames", "window", "stride"), [(5, 10, 5), (4, 10, 5), (12, 10, 5), (3, 7, 7), (5, 4, 3)]
)
def test_windows_cover_the_video(seconds, num_frames, window, stride):
    found, times = plan(seconds, num_frames=num_frames, window=window, stride=stride)
    end = times[-1] + 0.1
    starts, ends = found.spans.T
    assert found.duration == pytest.approx(end)
    assert starts[0] == 0
    assert ends[-1] == pytest.approx(end)
    assert (starts[1:] <= ends[:-1] + 1e-9).all()  # no gap
    assert found.frames.shape == (len(starts), num_frames)
    step = window / num_frames
    if end <= window + 1e-6:
        assert len(starts) == 1
    else:
        regular = np.arange(0, end - window + 1e-6, stride)
        np.testing.assert_allclose(starts[: len(regular)], regular)
        assert len(starts) - len(regular) in (0, 1)
        if len(starts) > len(regular):
            assert starts[-1] / step == pytest.approx(round(starts[-1] / step))
        assert end - (starts[-1] + window) < max(step, 1e-6) + 1e-9
        for start, chosen in zip(starts, found.frames):
            wanted = start + (np.arange(num_frames) + 0.5) * step
            assert (times[chosen] <= wanted + 1e-6).all()
            assert (np.append(times, np.inf)[chosen + 1] > wanted + 1e-6).all()


def test_overlapping_windows_share_frames():
    found, _ = plan(600, fps=30, num_frames=12)
    assert len(np.unique(found.frames)) == 600 * 12 / 10
    uneven, _ = plan(598.9, fps=30, num_frames=12)  # the last window shares frames, too
    assert len(np.unique(uneven.frames)) <= 598.9 * 12 / 10 + 1


def test_a_variable_frame_rate():
    times = np.concatenate([np.arange(100) * 0.01, 1 + np.arange(24)])
    found, _ = plan(0, times=times)
    for (start, _), chosen in zip(found.spans, found.frames):
        wanted = start + (np.arange(5) + 0.5) * 2
        assert (times[chosen] <= wanted).all()
        assert (np.append(times, np.inf)[chosen + 1] > wanted).all()


def test_a_video_without_times_is_one_window():
    processor = RegionLearnerVideoProcessor(num_frames=4)
    metadata = ClipMetadata(100, fps=None, duration=None)
    found = plan_windows(metadata, processor, 10, 5)
    assert found.spans.tolist() == [[0, 0]]
    assert found.frames.tolist() == [processor.sample_frames(metadata).tolist()]


# --- Spans ---------------------------------------------------------------------------------------------------


def windows(duration, window=10.0, stride=5.0):
    starts = np.arange(0, duration - window + 1e-9, stride)
    return np.stack([starts, starts + window], axis=1)


def test_finds_where_scores_are_high():
    spans = windows(100)
    scores = np.where((spans[:, 0] < 50) & (spans[:, 1] > 30), 0.5, 0.0)
    scores[(spans[:, 0] >= 30) & (spans[:, 1] <= 50)] = 1.0
    assert [found[:2] for found in find_spans(scores, spans)] == [(30.0, 50.0)]


def test_two_places_in_one_video():
    spans = windows(200)
    scores = np.zeros(len(spans))
    scores[5], scores[25] = 0.8, 1.0
    found = find_spans(scores, spans)
    assert [best for *_, best in found] == [25, 5]
    for start, end, best in found:
        assert start <= spans[best].mean() <= end
        assert end - start <= 20


def test_equal_scores_give_one_span():
    spans = windows(100)
    assert find_spans(np.ones(len(spans)), spans) == [(0.0, 100.0, 0)]
    assert find_spans(np.ones(1), np.array([[0.0, 3.0]])) == [(0.0, 3.0, 0)]


def test_properties_of_spans():
    rng = np.random.default_rng(0)
    for number in range(300):
        spans = windows(rng.uniform(11, 200), stride=rng.choice([2.5, 5, 10]))
        scores = rng.normal(size=len(spans))
        if number % 2:  # neighboring windows are alike
            scores = np.convolve(scores, [0.25, 0.5, 0.25], mode="same")[: len(spans)]
        found = find_spans(scores, spans)
        assert found[0][2] == scores.argmax()
        assert [scores[best] for *_, best in found] == sorted((scores[best] for *_, best in found), reverse=True)
        for start, end, best in found:
            assert start < end
            assert spans[best, 0] < end
            assert spans[best, 1] > start
        assert len({best for *_, best in found}) == len(found)
        in_order = sorted(found)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(in_order))  # spans do not overlap
        shifted = find_spans(2 * scores + 5, spans)  # scale and offset of the scores do not matter
        assert [found[2] for found in shifted] == [found[2] for found in find_spans(scores, spans)]


@pytest.mark.parametrize(
    ("start", "end", "shown"),
    [
        (0, 0.3, "00:00-00:01"),
        (42, 52, "00:42-00:52"),
        (42.4, 59.6, "00:42-01:00"),
        (3599.9999999, 3723, "1:00:00-1:02:03"),
        (59.9, 360000, "00:59-100:00:00"),
    ],
)
def test_clock(start, end, shown):
    assert clock(start, end) == shown

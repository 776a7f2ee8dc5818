"""Tests of the probabilities of hits: against a naive version, and for the properties that they must have."""

import math

import numpy as np
import pytest

from region_learner.search.calibration import (
    WEIGHTS,
    clip_score_by_chance,
    evidence,
    hit_probabilities,
    neutral_texts,
    score_by_chance,
)

SCALE = 20.0


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def near(rng: np.random.Generator, vectors: np.ndarray, noise: float) -> np.ndarray:
    moved = vectors + noise * unit(rng, *vectors.shape)
    return moved / np.linalg.norm(moved, axis=-1, keepdims=True)


def best_of(windows: np.ndarray, query: np.ndarray, k: int = 10) -> np.ndarray:
    return windows[np.argsort(-(windows @ query), kind="stable")[:k]]


def probabilities(query, windows, neutral, k=10, scale=SCALE):
    """Returns the probabilities of the best hits in an index whose windows are all known."""
    chance = score_by_chance(windows, neutral, len(windows))
    return hit_probabilities(query, best_of(windows, query, k), windows, chance, len(windows), scale)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def naive_probabilities(query, hits, sample, neutral, windows, scale):
    """Computes probabilities in loops, for a `sample` that has all or only some of the `windows` of an index."""

    def dot(a, b):
        return sum(float(x) * float(y) for x, y in zip(a, b))

    found = []
    chance = max(dot(window, text) for window in sample for text in neutral)
    if windows > len(sample) >= 8:
        quarter = len(sample) // 4
        parts = [sample[i * quarter : (i + 1) * quarter] for i in range(4)]
        lower = sum(max(dot(window, text) for window in part for text in neutral) for part in parts) / 4
        steps = math.sqrt(math.log(len(sample))) - math.sqrt(math.log(len(sample) / 4))
        more = math.sqrt(math.log(windows)) - math.sqrt(math.log(len(sample)))
        chance += (chance - lower) * more / steps
    total = 0.0
    for hit in hits:
        total += math.exp(scale * dot(query, hit)) / sum(dot(hit, other) > 0.99 for other in hits)
    for window in sample:
        if dot(query, window) < dot(query, hits[-1]) - 1e-6:
            total += max(windows / len(sample), 1) * math.exp(scale * dot(query, window))
    for hit in hits:
        share = scale * dot(query, hit) - math.log(total)
        logit = WEIGHTS[0] * scale * (dot(query, hit) - chance) + WEIGHTS[1] * share
        found.append(min([1 / (1 + math.exp(-logit)), *found]))
    return found


@pytest.mark.parametrize(("seen", "windows"), [(40, 40), (40, 1000), (1, 1), (3, 500), (200, 200)])
def test_equals_a_naive_version(rng, seen, windows):
    for scale in (5.0, 20.0, 100.0):
        index, query, neutral = unit(rng, seen, 8), unit(rng, 8), unit(rng, 6, 8)
        hits = best_of(index, query, 4)
        if windows > seen:  # the best ones are rarely in the sample
            hits = np.concatenate([near(rng, np.stack([query, query]), 0.5), hits])
            hits = best_of(np.concatenate([hits, hits[:1]]), query, 5)  # with a duplicate
        chance = score_by_chance(index, neutral, windows)
        found = hit_probabilities(query, hits, index, chance, windows, scale)
        assert found.dtype == np.float64
        np.testing.assert_allclose(
            found, naive_probabilities(query, hits, index, neutral, windows, scale), rtol=1e-4, atol=1e-12
        )


def test_probabilities_do_not_depend_on_the_number_of_hits(rng):
    windows, query, neutral = unit(rng, 200, 8), unit(rng, 8), unit(rng, 6, 8)
    few, many = (probabilities(query, windows, neutral, k) for k in (10, 50))
    np.testing.assert_array_equal(many[:10], few)
    assert (np.diff(many) <= 0).all()


def test_neutral_texts_are_many_and_distinct():
    texts = neutral_texts()
    assert len(set(texts)) == len(texts) == 128
    assert {"a penguin ironing a shirt", "a penguin selling ice cream in a library"} <= set(texts)
    assert all(text == text.strip() and text and len(text.split()) <= 12 for text in texts)


def test_the_score_by_chance_is_the_highest(rng):
    windows, neutral = unit(rng, 50, 16), unit(rng, 12, 16)
    highest = max(float(window @ text) for window in windows for text in neutral)
    assert score_by_chance(windows, neutral, 50) == pytest.approx(highest, rel=1e-6)
    # Fewer windows than in the sample are not extrapolated.
    assert score_by_chance(windows, neutral, 20) == score_by_chance(windows, neutral, 50)


def test_the_score_by_chance_of_a_sample_is_extrapolated(rng):
    windows, neutral = unit(rng, 20_000, 32), unit(rng, 128, 32)
    true = score_by_chance(windows, neutral, 20_000)
    samples = [windows[start : start + 500] for start in range(0, 20_000, 500)]
    seen = np.mean([score_by_chance(sample, neutral, 500) for sample in samples])
    extrapolated = np.mean([score_by_chance(sample, neutral, 20_000) for sample in samples])
    assert abs(extrapolated - true) < 0.5 * (true - seen)
    sizes = [score_by_chance(samples[0], neutral, size) for size in (500, 1000, 10_000, 10**6)]
    assert sizes == sorted(sizes)


def test_a_share_estimated_from_a_sample_is_that_of_the_index(rng):
    windows = unit(rng, 20_000, 32)
    differences = []
    for query in unit(rng, 20, 32):
        hits = best_of(windows, query)
        whole = evidence(query, hits, windows, 0.0, 20_000, SCALE)
        sampled = evidence(query, hits, windows[rng.permutation(20_000)[:1000]], 0.0, 20_000, SCALE)
        differences.append(sampled[0, 1] - whole[0, 1])
    assert abs(np.mean(differences)) < 0.05
    assert np.std(differences) < 0.2


def test_no_hit_is_likelier_than_the_one_before(rng):
    for _ in range(20):
        windows, neutral = unit(rng, 60, 6), unit(rng, 5, 6)
        found = probabilities(unit(rng, 6), windows, neutral)
        assert (np.diff(found) <= 0).all()
        assert (found >= 0).all()
        assert (found <= 1).all()
    # This also holds for hits in another order, as from an approximate search.
    hits = best_of(windows, windows[0])[[1, 0, 2]]
    assert (np.diff(hit_probabilities(windows[0], hits, windows, 0.0, 60, SCALE)) <= 0).all()


def test_a_better_match_is_likelier(rng):
    windows, neutral = unit(rng, 100, 16), unit(rng, 20, 16)
    towards = [near(rng, windows[0], noise) for noise in (0.3, 0.6, 1.0)]
    found = [probabilities(query, windows, neutral)[0] for query in towards]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1] + 0.1


def test_rivals_and_higher_scores_by_chance_make_it_less_likely(rng):
    windows, query = unit(rng, 100, 16), unit(rng, 16)
    alone = near(rng, query, 0.3)
    rival = near(rng, query, 0.4)
    assert alone @ rival < 0.98

    def of(hits, chance=0.8, size=100):
        return hit_probabilities(query, np.stack(hits), windows, chance, size, SCALE)[0]

    others = list(best_of(windows, query, 5))
    assert of([alone, *others]) > of([alone, rival, *others]) + 0.05
    assert of([alone, *others], 0.8) > of([alone, *others], 0.9) + 0.05
    assert of([alone, *others], size=100) > of([alone, *others], size=100_000)


def test_irrelevant_windows_never_make_it_likelier(rng):
    for _ in range(20):
        windows, neutral, query = unit(rng, 50, 8), unit(rng, 10, 8), unit(rng, 8)
        lowest = (best_of(windows, query) @ query).min()
        more = unit(rng, 400, 8)
        more = more[more @ query < lowest]
        before = probabilities(query, windows, neutral)
        after = probabilities(query, np.concatenate([windows, more]), neutral)
        assert (after <= before + 1e-9).all()
        assert after[0] < before[0]


def test_the_order_of_the_sample_does_not_matter(rng):
    windows, neutral, query = unit(rng, 80, 8), unit(rng, 10, 8), unit(rng, 8)
    before = probabilities(query, windows, neutral)
    np.testing.assert_allclose(before, probabilities(query, windows[rng.permutation(80)], neutral[::-1]), rtol=1e-5)


def test_copies_of_a_video_are_not_rivals(rng):
    windows, neutral = unit(rng, 50, 32), unit(rng, 10, 32)
    query = near(rng, windows[0], 0.5)
    once = probabilities(query, windows, neutral)
    copies = np.concatenate([windows, near(rng, windows[:1], 0.05), windows[:1]])
    thrice = probabilities(query, copies, neutral)
    np.testing.assert_allclose(thrice[:3], once[0], rtol=0.1)
    np.testing.assert_allclose(thrice[3:], once[1:8], rtol=0.1)


def test_overlapping_windows_of_a_hit_are_not_rivals(rng):
    windows, neutral, query = unit(rng, 50, 32), unit(rng, 10, 32), unit(rng, 32)
    hits = best_of(windows, query, 8)
    chance = score_by_chance(windows, neutral, 50)
    around = near(rng, np.repeat(hits[:1], 5, axis=0), 0.3)
    around = around[(around @ query < hits[0] @ query) & (around @ query > hits[-1] @ query)]
    assert len(around) >= 2
    alone = evidence(query, hits, windows, chance, 50, SCALE)
    among = evidence(query, hits, np.concatenate([windows, around]), chance, 50 + len(around), SCALE)
    np.testing.assert_allclose(alone, among, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 1e4])
def test_probabilities_are_finite_and_bounded(rng, scale):
    one, neutral = unit(rng, 1, 8), unit(rng, 10, 8)
    for query in (one[0], -one[0], unit(rng, 8)):
        for index in (one, np.repeat(one, 30, axis=0), unit(rng, 2, 8), unit(rng, 9, 8)):
            for windows in (len(index), 10**7):
                chance = score_by_chance(index, neutral, windows)
                hits = best_of(index, query)
                assert np.isfinite(evidence(query, hits, index, chance, windows, scale)).all()
                found = hit_probabilities(query, hits, index, chance, windows, scale)
                assert np.isfinite(found).all()
                assert (found >= 0).all()
                assert (found <= 1).all()


def test_a_single_window_is_judged_by_the_neutral_texts(rng):
    window, neutral = unit(rng, 1, 64), unit(rng, 50, 64)
    assert probabilities(near(rng, window[0], 0.3), window, neutral)[0] > 0.9
    assert probabilities(unit(rng, 64), window, neutral)[0] < 0.5


def test_the_score_by_chance_of_clips_compares_two_parts_of_the_index(rng):
    windows = unit(rng, 600, 16)
    best = max(float(a @ b) for a in windows[300:] for b in windows[0:300:2])
    assert clip_score_by_chance(windows, 300) == pytest.approx(best, rel=1e-6)
    assert clip_score_by_chance(windows, 6000) > best
    assert clip_score_by_chance(windows[:1], 1) == 1.0
    assert clip_score_by_chance(windows[:3], 3) == pytest.approx(max(windows[0] @ windows[i] for i in (1, 2)))


def test_inputs_may_have_half_precision(rng):
    windows, neutral, query = unit(rng, 50, 16), unit(rng, 10, 16), unit(rng, 16)
    whole = probabilities(query, windows, neutral)
    half = probabilities(*(x.astype(np.float16) for x in (query, windows, neutral)))
    np.testing.assert_allclose(half, whole, atol=0.02)


def test_indexed_clips_are_told_from_absent_ones(rng):
    windows, neutral = unit(rng, 500, 24), unit(rng, 128, 24)
    there, gone = [], []
    for clip in range(100):
        query = near(rng, windows[clip], 0.8)
        there.append(probabilities(query, windows, neutral)[0])
        gone.append(probabilities(query, np.delete(windows, clip, axis=0), neutral)[0])
    assert np.mean(np.subtract.outer(there, gone) > 0) > 0.9
    assert np.mean(there) > 3 * np.mean(gone)


def test_embeddings_without_meaning_are_unlikely(rng):
    """The embeddings of an untrained model, for example, are all nearly the same."""
    center = unit(rng, 1, 32)
    windows, neutral, queries = (near(rng, np.repeat(center, n, axis=0), 0.1) for n in (200, 128, 50))
    assert max(probabilities(query, windows, neutral)[0] for query in queries) < 0.05

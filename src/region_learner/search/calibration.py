"""The probability that a hit is right.

A cosine similarity alone does not determine it, because it depends on the model, on the words, and on the number of
windows to choose from. The probability is computed from two numbers, both in units of the logits that the model was
trained with:

- *contrast*: how much the score of the hit exceeds the score of the best hit of all neutral texts, which describe none
  of the videos. The more windows there are, the higher that best score.
- *share*: the logarithm of the softmax over all windows of the index, at the hit. It is low if other windows match
  just as well.

The probability is the logistic function of a weighted sum of the two. `experiments/calibration.py` fitted the weights,
and docs/calibration.md shows how reliable the probability is.
"""

import numpy as np

from .nearest import inner_products

# Weights of contrast and share, as printed by experiments/calibration.py. Its offset, 0.03, is left out, so that a hit
# without rivals that is as good as the best hit of a neutral text is right with a probability of one half.
WEIGHTS = np.array([0.42, 1.64])

# Number of the best hits whose scores are compared with each other, however many hits are asked for.
RIVALS = 10

# Hits whose cosine similarity is higher than this are copies of one video: either all of them are right or none is.
_COPY = 0.99

# Neutral texts combine a subject, an action and a place that are unlikely to occur together in any video.
_WHO = (
    "a penguin", "an astronaut", "a nun", "a polar bear", "a knight in armour", "a giraffe", "a mermaid", "a clown",
    "a crocodile", "a Roman emperor", "a snowman", "an octopus", "a ballerina", "a kangaroo", "a pirate", "a robot",
)  # fmt: skip
_WHAT = (
    "ironing a shirt", "playing chess", "repairing a tractor", "selling ice cream", "playing the harp",
    "mowing a lawn", "painting a fence", "baking bread", "shearing a sheep", "conducting an orchestra",
    "riding a unicycle", "juggling teapots", "milking a cow", "directing traffic", "typing a letter",
    "sweeping leaves",
)  # fmt: skip
_WHERE = (
    "in a submarine", "on the moon", "in a cathedral", "on an iceberg", "in a jungle", "in a supermarket",
    "on a volcano", "in a library", "on a railway track", "in a desert", "under a waterfall", "in a hospital",
    "on a castle wall", "in a swimming pool", "on a roof at night", "in a barn",
)  # fmt: skip


def neutral_texts() -> tuple[str, ...]:
    """
    Returns 128 texts for [`score_by_chance`]. Like queries, they are about visible things, but they describe none of
    the videos.
    """
    return tuple(
        f"{who} {_WHAT[(i + 3 * turn) % 16]}" + (f" {_WHERE[(5 * i + 7 * turn) % 16]}" if turn % 2 else "")
        for turn in range(8)
        for i, who in enumerate(_WHO)
    )


def score_by_chance(sample: np.ndarray, neutral: np.ndarray, windows: int) -> float:
    """
    Returns the highest score that a window of an index has for a neutral text.

    Args:
        sample: embeddings of windows of the index (m, D), m > 0: all of them, or a few thousand random ones. All
            embeddings are L2-normalized.
        neutral: embeddings of [`neutral_texts`], (P, D).
        windows: number of windows in the index. If there are more than in the sample, the score is extrapolated from
            the difference between the whole sample and quarters of it.
    """
    best, m = (sample @ neutral.T).max(1), len(sample)  # the best score of each window
    highest = float(best.max())
    if windows <= m or m < 8:
        return highest
    quarters = np.mean([quarter.max() for quarter in np.array_split(best, 4)])
    # The maximum of n normal numbers is about sqrt(2 log n) standard deviations above their mean.
    quarter, all_of_it, index = np.sqrt(np.log([m / 4, m, windows]))
    return float(highest + (highest - quarters) * (index - all_of_it) / (all_of_it - quarter))


def clip_score_by_chance(sample: np.ndarray, windows: int) -> float:
    """
    Returns the highest score that a window of an index has for a window of another part of the index. This is
    [`score_by_chance`] for images and videos as queries, which are closer to all windows than texts are.

    Args:
        sample: as in [`score_by_chance`], in the order of the index.
        windows: number of windows in the index.
    """
    half = len(sample) // 2
    if not half:
        return 1.0  # there is nothing to compare with: return the highest possible score
    return score_by_chance(sample[half:], sample[: half : max(half // 128, 1)], windows)


def evidence(
    query: np.ndarray, hits: np.ndarray, sample: np.ndarray, chance: float, windows: int, scale: float
) -> np.ndarray:
    """Returns contrast and share of each hit, float64 (k, 2). The arguments are those of [`hit_probabilities`]."""
    # Unlike with matrix products, a hit has exactly the same score as its window in the sample.
    scores, others = (inner_products(vectors, query).astype(np.float64) for vectors in (hits, sample))
    # The rivals of a hit are the other first hits and all windows with lower scores, which the sample represents.
    # Windows with scores between those of the first hits belong to the same spans.
    rivals, first = scores[:RIVALS], hits[:RIVALS]
    below = others[others < rivals[-1]]
    copies = np.array([(first @ hit > _COPY).sum() for hit in first])
    highest = scores.max()
    total = (np.exp(scale * (rivals - highest)) / copies).sum()
    total += np.exp(scale * (below - highest)).sum() * max(windows / max(len(sample), 1), 1)
    share = scale * (scores - highest) - np.log(total)
    return np.stack([scale * (scores - chance), share], axis=1)


def hit_probabilities(
    query: np.ndarray, hits: np.ndarray, sample: np.ndarray, chance: float, windows: int, scale: float
) -> np.ndarray:
    """
    Returns the probability that each hit of a query is right.

    Args:
        query: embedding of the query (D,). All embeddings are L2-normalized.
        hits: embeddings of the best window of each hit (k, D), best first. More hits, up to `RIVALS`, improve the
            estimate.
        sample, windows: as in [`score_by_chance`].
        chance: the value of [`score_by_chance`], or for images and videos of [`clip_score_by_chance`]. It is the same
            for all queries.
        scale: factor of the model's logits, 1 / temperature.

    Returns:
        float64 (k,), between 0 and 1, in descending order.

    Example:

        chance = score_by_chance(sample, neutral, len(index))
        hit_probabilities(query, hits, sample, chance, len(index), 1 / float(model.temperature))
    """
    found = evidence(query, hits, sample, chance, windows, scale)
    return np.minimum.accumulate(np.exp(-np.logaddexp(0, -found @ WEIGHTS)))

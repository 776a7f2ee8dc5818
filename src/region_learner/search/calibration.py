"""The probability that a hit is right.

A cosine similarity means nothing by itself: how high it is depends on the model, on the words, and on how many windows
there are to choose from. Two differences do, both in units of the logits that the model was trained with:

- *contrast*: how far the hit is above the best hits of neutral texts, which have nothing to do with the index. More
  windows raise those, too.
- *share*: the logarithm of the softmax over the windows of the index, at the hit. It is low if others match as well.

The probability is the logistic function of a weighted sum of the two. The weights were fitted by
`experiments/calibration.py`; docs/search.md says how far the probabilities can be trusted.
"""

import numpy as np
from scipy.special import expit, logsumexp

# Fitted by experiments/calibration.py, which prints them.
CONTRAST, SHARE, OFFSET = 0.50, 1.30, -2.53

# Windows whose distance from a hit is less than this share of the median count less as its rivals.
_ALIKE = 0.25

_NEUTRAL = """
a person talking to the camera
two people shaking hands
a crowd walking down a street
a child playing in a park
a woman reading a book
a man repairing a bicycle
friends eating dinner at a table
a baby sleeping
a dog running on the beach
a cat sitting on a windowsill
birds flying over a lake
a horse in a field
fish swimming in an aquarium
an elephant drinking water
a cow eating grass
insects on a flower
a car driving on a highway
a train arriving at a station
an aeroplane taking off
a boat on a river
a cyclist riding up a hill
a bus stopping in traffic
a truck on a construction site
a motorcycle on a mountain road
a football match
a basketball player scoring
a runner crossing the finish line
swimmers in a pool
a skier going downhill
a tennis player serving
a gymnast on a beam
people dancing on a stage
a chef cutting vegetables
pouring coffee into a cup
a cake being decorated
meat on a grill
bread coming out of an oven
a bowl of fruit
washing dishes in a sink
a band playing a concert
a hand playing the piano
a painter in front of a canvas
a potter shaping clay
sewing a dress
a magician showing a trick
waves breaking on rocks
snow falling in a forest
a sunset over the sea
clouds moving across the sky
rain on a window
a waterfall in the jungle
a desert with sand dunes
a volcano erupting
leaves in the wind
the night sky with stars
a city skyline at night
an old stone bridge
the inside of a church
an empty office
a kitchen with white cupboards
a shop full of customers
a classroom with pupils
a hospital corridor
a warehouse with shelves
a teacher writing on a blackboard
a doctor examining a patient
a farmer driving a tractor
a worker welding metal
a police officer directing cars
a soldier marching
a scientist using a microscope
a politician giving a speech
a screen recording of a computer program
a person typing on a keyboard
a video game
an animated cartoon character
a map with arrows
a slide with a chart
text scrolling over a black background
the opening titles of a film
a news presenter in a studio
an interview on a sofa
a product on a table
unboxing a phone
a robot moving a box
a drone flying over houses
fireworks
a burning candle
smoke rising from a chimney
a clock on a wall
a red balloon
a blue door
a green bottle
a yellow umbrella
a wooden chair
a pair of shoes
a close-up of an eye
hands holding a letter
somebody opening a box
somebody falling off a ladder
somebody laughing
somebody crying
a wedding
a funeral
a birthday party
a fight in a bar
a street market
a flooded road
a demonstration with banners
a parade with flags
a film of very poor quality
an out-of-focus shot
a black screen
a white background
nothing happens
something moves quickly
slow motion
time lapse
a view from above
a view from a moving car
underwater
indoors at night
outdoors on a sunny day
in the nineteenth century
music
an unknown place
a thing
a video
"""


def neutral_texts() -> tuple[str, ...]:
    """Returns 128 short descriptions of all kinds of videos, whose best hits tell how high a score gets by chance."""
    return tuple(_NEUTRAL.strip().splitlines())


def hit_probabilities(
    query: np.ndarray,
    hits: np.ndarray,
    sample: np.ndarray,
    neutral: np.ndarray,
    windows: int,
    scale: float,
    bias: float | None = None,
) -> np.ndarray:
    """
    Returns the probability that each hit of a query is right.

    Args:
        query: its embedding (D,). All embeddings have length 1.
        hits: of the best windows of the hits (k, D), best first.
        sample: of windows of the index (m, D), m > 0: all, or some thousand random ones.
        neutral: of [`neutral_texts`] (P, D).
        windows: number of windows in the index.
        scale: of the logits of the model, 1 / temperature.
        bias: of its logits. It is not used.

    Returns:
        float64 (k,) between 0 and 1; none is higher than the one before.
    """
    scores = (hits @ query).astype(np.float64)
    contrast = scale * (scores - _best_by_chance(sample, neutral, windows))
    share = _log_share(scores, sample @ query, hits, sample, windows, scale)
    return np.minimum.accumulate(expit(CONTRAST * contrast + SHARE * share + OFFSET))


def _best_by_chance(sample: np.ndarray, neutral: np.ndarray, windows: int) -> float:
    """Returns the score that the best of all windows has for a neutral text, on average."""
    scores = sample @ neutral.T  # (m, P)
    # The maximum of n normal scores is about sqrt(2 log n) standard deviations above their mean.
    growth = np.sqrt(2 * np.log(max(windows, len(sample)))) - np.sqrt(2 * np.log(len(sample)))
    return float(np.mean(scores.max(0) + growth * scores.std(0)))


def _log_share(
    scores: np.ndarray, others: np.ndarray, hits: np.ndarray, sample: np.ndarray, windows: int, scale: float
) -> np.ndarray:
    """
    Returns the logarithm of the softmax at each hit over itself and its rivals, (k,). The rivals are the other hits,
    and all windows below them, for which those of the sample stand.
    """
    below = others < scores[-1]
    distances = 1 - hits @ sample.T  # (k, m)
    near = np.maximum(_ALIKE * np.median(distances, axis=1, keepdims=True), 1e-6)
    weight = max(windows, len(sample)) / len(sample)
    rivals = np.concatenate(
        [np.clip((1 - hits @ hits.T) / near, 0, 1), np.clip(distances[:, below] / near, 0, 1) * weight], axis=1
    )
    logits = scale * (np.concatenate([scores, others[below]]) - scores[:, None])
    np.fill_diagonal(rivals, 1)
    return -logsumexp(logits, axis=1, b=rivals)

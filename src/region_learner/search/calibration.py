"""The probability that a hit is right.

A cosine similarity by itself does not tell: how high it is depends on the model, on the words, and on how many windows
there are to choose from. Two numbers do, both in units of the logits that the model was trained with:

- *contrast*: how far the hit is above what neutral texts, which were not written for this index, find in it. The more
  windows there are, the more these find, too.
- *share*: the logarithm of the softmax over all windows of the index, at the hit. It is low if others match as well.

The probability is the logistic function of a weighted sum of both. The weights are fixed, and were fitted by
`experiments/calibration.py`; docs/search.md says how far they can be trusted.
"""

import numpy as np

from .nearest import inner_products

# Printed by experiments/calibration.py.
WEIGHTS = np.array([0.50, 1.30])  # of contrast and share
OFFSET = -2.53

# Hits that are more alike than this, by their cosine similarity, are copies of one video, which are all right or none.
_COPY = 0.99

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
    """Returns 128 short descriptions of all kinds of videos, for [`score_by_chance`]."""
    return tuple(_NEUTRAL.strip().splitlines())


def score_by_chance(sample: np.ndarray, neutral: np.ndarray, windows: int) -> float:
    """
    Returns the score that the best window of an index has for a neutral text, on average.

    Args:
        sample: embeddings of windows of the index (m, D), m > 0: all, or some thousand random ones. All embeddings
            have length 1.
        neutral: of [`neutral_texts`], (P, D).
        windows: number of windows in the index. If there are more than in the sample, the best score is extrapolated
            from how it grows between a quarter of the sample and all of it.
    """
    scores = sample @ neutral.T  # (m, P)
    best, m = float(scores.max(0).mean()), len(sample)
    if windows <= m or m < 8:
        return best
    quarters = np.mean([quarter.max(0).mean() for quarter in np.array_split(scores, 4)])
    # The maximum of n normal numbers is about sqrt(2 log n) standard deviations above their mean.
    quarter, all_of_it, index = np.sqrt(np.log([m / 4, m, windows]))
    return float(best + (best - quarters) * (index - all_of_it) / (all_of_it - quarter))


def evidence(
    query: np.ndarray, hits: np.ndarray, sample: np.ndarray, chance: float, windows: int, scale: float
) -> np.ndarray:
    """Returns contrast and share of each hit, float64 (k, 2). The arguments are those of [`hit_probabilities`]."""
    # Not products of matrices, so that a hit has the same score as its window in the sample.
    scores, others = (inner_products(vectors, query).astype(np.float64) for vectors in (hits, sample))
    # The rivals of a hit are the other hits, and all windows below the hits, for which those of the sample stand. What
    # lies between the hits are other windows of the same spans.
    below = others[others < scores[-1]]
    copies = np.array([(hits @ hit > _COPY).sum() for hit in hits])
    highest = scores.max()
    total = (np.exp(scale * (scores - highest)) / copies).sum()
    total += np.exp(scale * (below - highest)).sum() * max(windows / len(sample), 1)
    share = scale * (scores - highest) - np.log(total)
    return np.stack([scale * (scores - chance), share], axis=1)


def hit_probabilities(
    query: np.ndarray, hits: np.ndarray, sample: np.ndarray, chance: float, windows: int, scale: float
) -> np.ndarray:
    """
    Returns the probability that each hit of a query is right.

    Args:
        query: embedding of a text (D,). All embeddings have length 1.
        hits: of the best window of each hit (k, D), best first; the more, the better, up to about ten.
        sample, windows: as of [`score_by_chance`].
        chance: what it returns. It is the same for all queries.
        scale: of the logits of the model, 1 / temperature.

    Returns:
        float64 (k,), between 0 and 1. None is higher than the one before.

    Example:

        chance = score_by_chance(sample, neutral, len(index))
        hit_probabilities(query, hits, sample, chance, len(index), 1 / float(model.temperature))
    """
    found = evidence(query, hits, sample, chance, windows, scale)
    return np.minimum.accumulate(np.exp(-np.logaddexp(0, -found @ WEIGHTS - OFFSET)))

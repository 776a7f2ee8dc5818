"""
Measures the probabilities of `region_learner.search`, and fits their weights.

    python -m experiments.calibration embed MODEL --corpus moving_shapes --data-dir DIR --output shapes.npz
    python -m experiments.calibration measure shapes.npz letters.npz real.npz

`embed` writes the embeddings of the test split of a corpus, of its captions, of the neutral texts, and of texts that
do not describe any video. `measure` draws galleries of several sizes from each of these files, and searches for clips
twice: with the clips of the caption in the gallery, and without them, so that no hit can be right. A hit is right if
the query is one of its captions. Each corpus is tested with weights that were fitted on the other corpora.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata

from region_learner import load_corpus
from region_learner.evaluation.retrieval import embed_corpus, embed_texts
from region_learner.loading import load_checkpoint
from region_learner.search.calibration import WEIGHTS, evidence, neutral_texts, score_by_chance

from .tables import markdown

SIZES = (20, 100, 500, 2000)
GALLERIES, QUERIES = 8, 100  # number of galleries of each size, and of queries in each gallery
HITS = 10

NONSENSE = (
    "asdf qwerty", "the annual report of a bank", "xyzzy", "lorem ipsum dolor sit amet", "stock prices fell on Monday",
    "colourless green ideas sleep furiously", "how to install an operating system", "12345", "zzz zzz zzz",
    "parliament debates a new law", "the meaning of life", "a tax declaration", "????", "jkl;", "the", "a theorem",
    "second-hand insurance", "yesterday", "the square root of two", "a recipe without ingredients",
)  # fmt: skip

# The columns of a case: measurements of the best hit of a query.
COSINE, LOG_SIZE, Z_SCORE, GAP, LOGIT, CONTRAST, SHARE = range(7)

# The methods that are compared, as the columns that their weights are fitted for.
METHODS = {
    "cosine": [COSINE],
    "cosine, log of the size": [COSINE, LOG_SIZE],
    "z-score above the best of random ones": [Z_SCORE],
    "gap to the second, log of the size": [GAP, LOG_SIZE],
    "contrast": [CONTRAST],
    "share": [SHARE],
    "contrast and share": [CONTRAST, SHARE],
}


@dataclass
class Embedded:
    """The output of [`embed`]: the L2-normalized embeddings of a corpus by one model."""

    name: str
    corpus: str
    videos: np.ndarray  # (V, D)
    texts: np.ndarray  # (T, D)
    captions: np.ndarray  # (T,): equal captions have the same number
    owners: np.ndarray  # (T,): the video of each text
    neutral: np.ndarray  # (P, D)
    nonsense: np.ndarray  # (N, D)
    scale: float
    bias: float  # NaN if there is none

    @classmethod
    def load(cls, path: Path) -> "Embedded":
        with np.load(path) as file:
            values = {key: file[key] for key in file.files}
        corpus, scale, bias = str(values.pop("corpus")), float(values.pop("scale")), float(values.pop("bias"))
        return cls(name=path.stem, corpus=corpus, scale=scale, bias=bias, **values)

    def right(self, text: int) -> np.ndarray:
        """Returns the videos that have a text as a caption."""
        return self.owners[self.captions == self.captions[text]]


@dataclass
class Cases:
    """The best hits of queries, (n, columns); whether they are right and whether the gallery had the clip, (n,)."""

    columns: np.ndarray
    right: np.ndarray
    present: np.ndarray

    @classmethod
    def join(cls, parts: Sequence["Cases"]) -> "Cases":
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__annotations__))


def embed(model_name: str, corpus: str, data_dir: str, split: str, output: Path) -> None:
    """Writes the embeddings of a corpus by a model."""
    model, processor = load_checkpoint(model_name, "retrieval")
    embedded = embed_corpus(model, processor, load_corpus(corpus, data_dir, split=split), batch_size=64)
    number = {video: index for index, video in enumerate(embedded.video_ids)}
    np.savez(
        output,
        corpus=corpus,
        videos=embedded.video_embeds.numpy(),
        texts=embedded.text_embeds.numpy(),
        captions=np.unique(embedded.texts, return_inverse=True)[1],
        owners=np.array([number[video] for video in embedded.text_video_ids]),
        neutral=embed_texts(model, processor, neutral_texts()).numpy(),
        nonsense=embed_texts(model, processor, NONSENSE).numpy(),
        scale=1 / float(torch.as_tensor(model.temperature).detach()),
        bias=np.nan if model.logit_bias is None else float(model.logit_bias.detach()),
    )


def describe(embedded: Embedded, query: np.ndarray, gallery: np.ndarray, sample: int) -> tuple[int, list[float]]:
    """
    Returns the best hit of a query in a gallery of videos, and its columns.

    Args:
        query: embedding of the query (D,).
        gallery: indices of videos.
        sample: number of videos that the calibration sees.
    """
    videos = embedded.videos[gallery]
    scores = videos @ query
    order = np.argsort(-scores, kind="stable")[:HITS]
    seen = videos[:sample]  # the gallery is in random order
    chance = score_by_chance(seen, embedded.neutral, len(gallery))
    contrast, share = evidence(query, videos[order], seen, chance, len(gallery), embedded.scale)[0]
    best, second = scores[order[:2]].tolist()
    size = np.log(len(gallery))
    # The best of n normal scores is about sqrt(2 log n) standard deviations above their mean.
    z_score = (best - scores.mean()) / max(scores.std(), 1e-6) - np.sqrt(2 * size)
    logit = embedded.scale * best + embedded.bias
    return int(gallery[order[0]]), [best, size, z_score, best - second, logit, contrast, share]


def draw_cases(embedded: Embedded, size: int, sample: int = 4096, seed: int = 0) -> Cases:
    """Draws galleries of a size, and searches for clips in them, before and after removing these clips."""
    rng = np.random.default_rng(seed)
    columns, right, present = [], [], []
    for _ in range(GALLERIES):
        gallery = rng.permutation(len(embedded.videos))[:size]
        texts = np.flatnonzero(np.isin(embedded.owners, gallery))
        for text in rng.permutation(texts)[:QUERIES]:
            wanted = embedded.right(text)
            for there in (gallery, gallery[~np.isin(gallery, wanted)]):
                hit, values = describe(embedded, embedded.texts[text], there, sample)
                columns.append(values)
                right.append(hit in wanted)
                present.append(len(there) == len(gallery))
    return Cases(np.array(columns), np.array(right), np.array(present))


def fit(columns: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the weights and the offset of a logistic regression."""
    mean, std = columns.mean(0), columns.std(0)
    inputs = np.c_[(columns - mean) / std, np.ones(len(columns))]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = inputs @ weights
        gradient = inputs.T @ (expit(logits) - right) / len(right)
        return float(np.mean(np.logaddexp(0, logits) - right * logits)), gradient

    *weights, offset = minimize(loss, np.zeros(inputs.shape[1]), jac=True).x
    return weights / std, float(offset - mean @ (weights / std))


def area_under_curve(values: np.ndarray, positive: np.ndarray) -> float:
    """Returns the probability that a positive has a higher value than a negative. Ties count half."""
    n, m = positive.sum(), (~positive).sum()
    return float((rankdata(values)[positive].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


def calibration_error(probabilities: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Returns the mean difference of stated and true probability over bins, weighted by their numbers of cases."""
    return sum(share * abs(stated - true) for share, stated, true in reliability(probabilities, right, bins))


def reliability(probabilities: np.ndarray, right: np.ndarray, bins: int = 10) -> list[tuple[float, float, float]]:
    """Returns the share of cases, and the mean stated and true probability, of each bin that has cases."""
    number = np.minimum((probabilities * bins).astype(int), bins - 1)
    cases = [number == index for index in range(bins)]
    return [(float(x.mean()), float(probabilities[x].mean()), float(right[x].mean())) for x in cases if x.any()]


def score(probabilities: np.ndarray, cases: Cases) -> list[str]:
    """Returns the cells of a table: areas under the curve, and errors of probabilities, as in `MEASURES`."""
    return [
        f"{area_under_curve(probabilities, cases.present):.3f}",
        f"{area_under_curve(probabilities, cases.right):.3f}",
        f"{calibration_error(probabilities, cases.right):.3f}",
        f"{np.mean((probabilities - cases.right) ** 2):.3f}",
    ]


MEASURES = ["in or out, AUC", "right or wrong, AUC", "calibration error", "Brier score"]


def compare_methods(drawn: dict[str, Cases], corpus_of: dict[str, str], fit_on: Sequence[str]) -> str:
    """Returns a table of all methods, each tested on every corpus with weights that were fitted on the others."""
    lines = []
    for method, used in METHODS.items():
        for name in fit_on:
            cases = drawn[name]
            others = [drawn[other] for other in fit_on if corpus_of[other] != corpus_of[name]]
            if not others:
                continue
            weights, offset = fit(np.concatenate([x.columns[:, used] for x in others]), Cases.join(others).right)
            lines.append([method, name, *score(expit(cases.columns[:, used] @ weights + offset), cases)])
    for name, cases in drawn.items():
        if np.isfinite(cases.columns[:, LOGIT]).all():
            lines.append(["the sigmoid of the model's own logit", name, *score(expit(cases.columns[:, LOGIT]), cases)])
    return markdown(["method", "tested on", *MEASURES], lines)


def by_size(embedded: Embedded, drawn: dict[int, Cases]) -> str:
    """Returns a table of the probabilities that `search` states, by the size of the gallery."""
    lines = []
    for size, cases in drawn.items():
        stated = as_stated(cases.columns)
        right = cases.right[cases.present]
        means = (stated[cases.present].mean(), stated[~cases.present].mean())
        lines.append([embedded.name, str(size), f"{100 * right.mean():.0f}%", *(f"{x:.2f}" for x in means)])
        lines[-1] += score(stated, cases)
    return markdown(["model and corpus", "videos", "R@1", "mean, in", "mean, out", *MEASURES], lines)


def as_stated(columns: np.ndarray) -> np.ndarray:
    """Returns the probabilities that `search` states."""
    return expit(columns[:, [CONTRAST, SHARE]] @ WEIGHTS)


def nonsense(embedded: Embedded) -> str:
    """Returns the mean and the highest probability of the best hit for texts that do not describe any video."""
    gallery = np.random.default_rng(0).permutation(len(embedded.videos))[:200]
    columns = np.array([describe(embedded, query, gallery, 4096)[1] for query in embedded.nonsense])
    stated = as_stated(columns)
    worst = NONSENSE[int(stated.argmax())]
    return f"{embedded.name}: nonsense {stated.mean():.2f} on average, {stated.max():.2f} at most ({worst!r})"


def measure(paths: Sequence[Path], fit_on: Sequence[str]) -> None:
    """Prints the tables of docs/calibration.md."""
    everything = [Embedded.load(path) for path in paths]
    by_sizes = {
        embedded.name: {size: draw_cases(embedded, size) for size in SIZES if size <= len(embedded.videos)}
        for embedded in everything
    }
    drawn = {name: Cases.join(list(cases.values())) for name, cases in by_sizes.items()}
    fit_on = fit_on or list(drawn)
    fitted = [drawn[name] for name in fit_on]
    weights, offset = fit(np.concatenate([x.columns[:, [CONTRAST, SHARE]] for x in fitted]), Cases.join(fitted).right)
    print(f"Fitted on {len(fitted)} files: WEIGHTS = {weights.round(2).tolist()}, OFFSET = {offset:.2f}\n")
    print(compare_methods(drawn, {embedded.name: embedded.corpus for embedded in everything}, fit_on))
    for embedded in everything:
        print(f"\n{by_size(embedded, by_sizes[embedded.name])}\n\n{nonsense(embedded)}")
        bins = reliability(as_stated(drawn[embedded.name].columns), drawn[embedded.name].right)
        print(
            "stated and true: " + ", ".join(f"{stated:.2f} {true:.2f} ({share:.0%})" for share, stated, true in bins)
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.calibration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    embedding = commands.add_parser("embed")
    embedding.add_argument("model")
    embedding.add_argument("--corpus", required=True)
    embedding.add_argument("--data-dir", required=True)
    embedding.add_argument("--split", default="test")
    embedding.add_argument("--output", type=Path, required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("files", type=Path, nargs="+")
    measuring.add_argument("--fit", nargs="+", default=[], metavar="NAME", help="files to fit on, by default all")
    options = parser.parse_args(arguments)
    if options.command == "embed":
        embed(options.model, options.corpus, options.data_dir, options.split, options.output)
    else:
        measure(options.files, options.fit)


if __name__ == "__main__":
    main()

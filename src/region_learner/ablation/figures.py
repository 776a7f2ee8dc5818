"""The figures of an ablation, with matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..visualization import draw_regions
from .summary import METRIC

_HEIGHT = 96  # pixels of a frame in pictures of masks
_COLORS = ["#000000", "#56b4e9", "#d55e00", "#0072b2", "#e69f00", "#009e73"]


def pyplot():
    """matplotlib's, drawing to files; an ImportError that tells the cure where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install 'region-learner[ablation]'") from error
    matplotlib.use("Agg")  # files alone, also where there is no display
    import matplotlib.pyplot

    return matplotlib.pyplot


def draw_means(rows: Sequence[dict[str, Any]], path: Path, baseline: str = "frozen"):
    """R@1 of every row of [`summarize`]: seeds as dots, the mean with its 95 % interval, a line at the baseline."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(rows) + 1.1), layout="constrained")
    for place, row in enumerate(rows):
        color = "#777777" if row["row"].startswith(baseline) else "#0072b2"
        axes.plot(row["values"], [place] * len(row["values"]), "o", color=color, alpha=0.35, markersize=4, mew=0)
        axes.errorbar(row["mean"], place, xerr=row["half_width"] or 0, fmt="D", color=color, markersize=5, capsize=3)
        if row["row"] == baseline:
            axes.axvline(row["mean"], color="#777777", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), [row["describes"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("text-to-video R@1, test (%): seeds, mean, 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_curves(runs: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], path: Path):
    """Validation R@1 while training, of the runs of `rows`: a thin line a seed, a thick one for their mean."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    for row, color in zip(rows, _COLORS):
        curves = [run["curve"] for run in runs if run["row"] == row["row"]]
        epochs = [point["epoch"] for point in curves[0]]
        values = np.array([[point[METRIC] for point in curve] for curve in curves])
        axes.plot(epochs, values.T, color=color, linewidth=0.6, alpha=0.5)
        axes.plot(epochs, values.mean(0), color=color, linewidth=2, label=row["describes"])
    axes.set_xlabel("epoch")
    axes.set_ylabel("text-to-video R@1, validation (%)")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_losses(rows: Sequence[dict[str, Any]], some: Sequence[dict[str, Any]], path: Path):
    """R@1 over the training loss at the end, a point a run: `some` of the rows in colour, others in grey."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    colors = dict(zip([row["row"] for row in some], _COLORS))
    for row in rows:
        colored = row["row"] in colors
        known = {"color": colors[row["row"]], "label": row["describes"]} if colored else {"color": "#bbbbbb"}
        axes.plot(row["losses"], row["values"], "o", markersize=5, mew=0, **known)
    axes.set_xlabel("training loss, mean of the last 200 steps")
    axes.set_ylabel("text-to-video R@1, test (%)")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_masks(masks: Path, path: Path, clips: int = 3):
    """Regions over the frames of a few clips, a row of pictures for each moment of the training kept in `masks`."""
    plt = pyplot()
    with np.load(masks) as file:
        kept = {name: file[name] for name in file.files}
    frames = kept.pop("frames")[:clips]  # (clips, T, height, width, 3)
    moments = {"frames": None, **kept}
    figure, grid = plt.subplots(
        len(moments),
        clips,
        figsize=(clips * frames.shape[1] * 0.95, len(moments)),
        squeeze=False,
        layout="constrained",
    )
    for axes_of_moment, (name, values) in zip(grid, moments.items()):
        for axes, number in zip(axes_of_moment, range(clips)):
            some = torch.zeros(frames.shape[1], 1, 2, 2) if values is None else torch.from_numpy(values[number])
            axes.imshow(np.concatenate([np.asarray(p) for p in draw_regions(frames[number], some, height=_HEIGHT)], 1))
            axes.set_xticks([])
            axes.set_yticks([])
        axes_of_moment[0].set_ylabel(name.replace("_", " "), fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)

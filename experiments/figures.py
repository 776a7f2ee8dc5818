"""Draws the figures of an ablation, as WebP files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from region_learner.visualization import draw_regions

from .runs import read_runs
from .tables import METRIC

_COLORED = ("frozen", "patches_max", "paper", "decoupled", "decoupled_no_codes", "decoupled_1_region")
_COLORS = dict(zip(_COLORED, ("#000000", "#56b4e9", "#d55e00", "#0072b2", "#e69f00", "#009e73")))
_HEIGHT = 96  # pixels of a frame in figures of masks


def draw(output: Path, setting: str, table: str, entries: Sequence[dict[str, Any]], directory: Path) -> None:
    """
    Draws the entries of `summarize`: `SETTING_TABLE_means.webp`, `..._curves.webp` and `..._losses.webp`; and for
    each row whose masks are in `output`, `SETTING_masks_ROW.webp`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    prefix = f"{setting}_{table}"
    draw_means(entries, directory / f"{prefix}_means.webp")
    colored = [entry for entry in entries if entry["row"] in _COLORS]
    draw_curves(read_runs(output / f"{setting}.jsonl"), colored or entries[:1], directory / f"{prefix}_curves.webp")
    draw_losses(entries, directory / f"{prefix}_losses.webp")
    for entry in entries:
        masks = output / "masks" / setting / f"{entry['row']}.npz"
        if masks.exists():
            draw_masks(masks, directory / f"{setting}_masks_{entry['row']}.webp")


def draw_means(entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws R@1 of every row: seeds as dots, the mean with its 95% interval, a line at Frozen in Time."""
    figure, axes = _plot((8, 0.42 * len(entries) + 1.1))
    for place, entry in enumerate(entries):
        color = "#777777" if entry["row"].startswith("frozen") else "#0072b2"
        values = list(entry["values"].values())
        axes.plot(values, [place] * len(values), "o", color=color, alpha=0.35, markersize=4, mew=0)
        axes.errorbar(
            entry["mean"], place, xerr=entry["half_width"] or 0, fmt="D", color=color, markersize=5, capsize=3
        )
        if entry["row"] == "frozen":
            axes.axvline(entry["mean"], color="#777777", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(entries)), [entry["label"] for entry in entries])
    axes.invert_yaxis()
    axes.set_xlabel("text-to-video R@1, test (%): seeds, mean, 95% interval")
    _save(figure, path)


def draw_curves(runs: Sequence[dict[str, Any]], entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws validation R@1 during training: one thin line per run, one thick line per row for their mean."""
    figure, axes = _plot((7, 4.6))
    for entry in entries:
        color = _COLORS.get(entry["row"], "#777777")
        curves = [run["curve"] for run in runs if run["row"] == entry["row"]]
        epochs = [point["epoch"] for point in curves[0]]
        values = np.array([[point[METRIC] for point in curve] for curve in curves])
        axes.plot(epochs, values.T, color=color, linewidth=0.6, alpha=0.5)
        axes.plot(epochs, values.mean(0), color=color, linewidth=2, label=entry["label"])
    axes.set_xlabel("epoch")
    axes.set_ylabel("text-to-video R@1, validation (%)")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _save(figure, path)


def draw_losses(entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws R@1 against the final training loss, one point per run."""
    figure, axes = _plot((7, 4.6))
    for entry in entries:
        known = entry["row"] in _COLORS
        style = {"color": _COLORS[entry["row"]], "label": entry["label"]} if known else {"color": "#bbbbbb"}
        axes.plot(list(entry["losses"].values()), list(entry["values"].values()), "o", markersize=5, mew=0, **style)
    axes.set_xlabel("training loss, mean of the last 200 steps")
    axes.set_ylabel("text-to-video R@1, test (%)")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _save(figure, path)


def draw_masks(masks: Path, path: Path, clips: int = 3) -> None:
    """Draws the regions over the frames of a few clips: the frames, then one row of pictures per recorded epoch."""
    with np.load(masks) as file:
        recorded = {name: file[name] for name in file.files}
    frames = recorded.pop("frames")[:clips]  # (clips, T, height, width, 3)
    size = (clips * frames.shape[1] * 0.95, 1 + len(recorded))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1 + len(recorded), clips, squeeze=False)
    for row, (name, values) in zip(grid, {"frames": None, **recorded}.items()):
        for number, axes in enumerate(row):
            regions = torch.zeros(frames.shape[1], 1, 2, 2) if values is None else torch.from_numpy(values[number])
            pictures = draw_regions(frames[number], regions, height=_HEIGHT)
            axes.imshow(np.concatenate([np.asarray(picture) for picture in pictures], 1))
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(name.replace("_", " "), fontsize=8)
    _save(figure, path)


def _plot(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, pil_kwargs={"quality": 85, "method": 6})

"""Statistics of runs (means with 95% intervals, differences paired by seed), and Markdown tables of them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .settings import Row

METRIC = "t2v_R@1"
_LAST = 4  # the last entries of a run's `loss`, which cover 200 steps
_REFERENCES = {
    "kmeans": "k-means on the features of decoupled (`kmeans`)",
    "cls_attention": "CLS attention of decoupled, one mask per head (`cls_attention`)",
    "grid": "cells of a grid (`grid`)",
    "random_positions": "masks of decoupled, moved at random (`random_positions`)",
    "uniform": "whole frames (`uniform`)",
    "oracle": "best possible at this resolution (`oracle`)",
}


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """
    Returns the mean of `values` and half the width of its 95% interval, by Student's t distribution; None instead of
    the half width for a single value.
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, None
    from scipy.stats import t as student_t  # only needed for tables

    return mean, float(student_t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))


def _measured(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Returns the [`interval`] of the values that are not None."""
    measured = [value for value in values if value is not None]
    return interval(measured) if measured else None


def _differences(values: Mapping[int, float], others: Mapping[int, float]) -> list[float]:
    """Returns the differences, paired by seed, for the seeds that both have."""
    return [value - others[seed] for seed, value in values.items() if seed in others]


def summarize(runs: Iterable[dict[str, Any]], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """
    Summarizes the `runs` of each of `rows` that has any.

    Returns:
        One entry per row: `row`, `label`, `parameters`; `values`, the test R@1 (text to video) by seed, and their
        `mean` and `half_width`; `losses`, the mean training loss of the last 200 steps by seed; `difference`, the
        [`interval`] of the differences from the baseline, paired by seed, and `pairs`, their number (not for the
        baseline itself); `v2t_R@1`; `codes_in_use` in percent and `regions`, with [`interval`]s by kind of masks, if
        the model has them.
    """
    by_row: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        by_row.setdefault(run["row"], {})[run["seed"]] = run
    entries = []
    for row in rows:
        if row.name not in by_row:
            continue
        seeds = by_row[row.name]
        first, *_ = seeds.values()
        values = {seed: run["test"][METRIC] for seed, run in seeds.items()}
        mean, half_width = interval(list(values.values()))
        entry: dict[str, Any] = {
            "row": row.name,
            "label": row.label,
            "parameters": first["parameters"],
            "values": values,
            "mean": mean,
            "half_width": half_width,
            "losses": {seed: float(np.mean(run["loss"][-_LAST:])) for seed, run in seeds.items()},
            "v2t_R@1": float(np.mean([run["test"]["v2t_R@1"] for run in seeds.values()])),
        }
        baseline = {seed: run["test"][METRIC] for seed, run in by_row.get(row.baseline, {}).items()}
        differences = _differences(values, baseline)
        if row.name != row.baseline and differences:
            entry |= {"difference": interval(differences), "pairs": len(differences)}
        if "codes_in_use" in first:
            entry["codes_in_use"] = 100 * float(np.mean([run["codes_in_use"] for run in seeds.values()]))
        if "regions" in first:
            entry["regions"] = {
                kind: {key: _measured([run["regions"][kind][key] for run in seeds.values()]) for key in metrics}
                for kind, metrics in first["regions"].items()
                if isinstance(metrics, dict)
            }
        entries.append(entry)
    return entries


def loss_correlation(entries: Sequence[dict[str, Any]]) -> float | None:
    """
    Returns Pearson's correlation of R@1 with the final training loss, among seeds of the same row (both minus their
    means in the row). Returns None if there are fewer than three runs, or if nothing varies.
    """
    if not entries:
        return None
    centered = []
    for name in ("losses", "values"):
        parts = [np.array(list(entry[name].values())) for entry in entries]
        centered.append(np.concatenate([part - part.mean() for part in parts]))
    if len(centered[0]) < 3 or not all(part.any() for part in centered):
        return None
    return float(np.corrcoef(centered[0], centered[1])[0, 1])


def model_table(entries: Sequence[dict[str, Any]], step_times: Mapping[str, float] | None = None) -> str:
    """Returns the entries of [`summarize`] as a table. `step_times` are relative, by the name of the row."""
    lines = []
    for entry in entries:
        name = entry["row"]
        lines.append(
            [
                entry["label"],
                str(len(entry["values"])),
                _with_interval(entry["mean"], entry["half_width"]),
                _difference(entry),
                f"{entry['v2t_R@1']:.1f}",
                f"{entry['parameters'] / 1e3:.0f} k",
                f"{step_times[name]:.2f}" if step_times and name in step_times else "",
                f"{entry['codes_in_use']:.0f}%" if "codes_in_use" in entry else "",
                f"{entry['regions']['learned']['iou'][0]:.1f}" if "regions" in entry else "",
            ]
        )
    header = ["model", "seeds", "R@1", "difference", "V2T R@1", "parameters", "step", "codes in use", "mask IoU"]
    return markdown(header, lines)


def _difference(entry: dict[str, Any]) -> str:
    """Returns a cell of the table, with the number of pairs if it is less than the number of seeds."""
    if "difference" not in entry:
        return ""
    cell = _with_interval(*entry["difference"], sign="+")
    pairs = entry["pairs"]
    return cell if pairs == len(entry["values"]) else f"{cell} ({pairs} pair{'s' * (pairs > 1)})"


def differences_of(entries: Sequence[dict[str, Any]], name: str, other: str) -> list[float]:
    """Returns the differences in R@1 of two rows, for the seeds that both have."""
    values = {entry["row"]: entry["values"] for entry in entries}
    return _differences(values.get(name, {}), values.get(other, {}))


def contrast_table(entries: Sequence[dict[str, Any]], contrasts: Iterable[tuple[str, str]]) -> str | None:
    """Returns the differences in R@1 of pairs of rows as a table; None if `entries` contain none of the pairs."""
    labels = {entry["row"]: entry["label"] for entry in entries}
    lines = []
    for name, other in contrasts:
        if found := differences_of(entries, name, other):
            lines.append([labels[name], labels[other], str(len(found)), mean_cell(found, sign="+")])
    return markdown(["model", "compared with", "pairs", "difference in R@1"], lines, texts=2) if lines else None


def mask_table(entries: Sequence[dict[str, Any]], references_of: str = "decoupled") -> str | None:
    """
    Returns a table of how well the region masks of rows match objects. Below them, it has masks that were not learned
    (clusters, attention, ...), as measured with the row `references_of`. Returns None if no row has masks.
    """
    kinds = [(entry["label"], entry["regions"]["learned"]) for entry in entries if "regions" in entry]
    for entry in entries:
        if entry["row"] == references_of and "regions" in entry:
            kinds += [(_REFERENCES[kind], entry["regions"][kind]) for kind in _REFERENCES if kind in entry["regions"]]
    columns = ("iou", "pointing", "precision", "owned", "stability")
    lines = [
        [
            label,
            f"{metrics['masks'][0]:.0f}",
            *("" if metrics[key] is None else _with_interval(*metrics[key]) for key in columns),
        ]
        for label, metrics in kinds
    ]
    return markdown(["masks", "number", "IoU", *columns[1:]], lines) if lines else None


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Returns a table whose first `texts` columns are text and whose other columns are numbers."""
    rows = [header, ["---"] * texts + ["---:"] * (len(header) - texts), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def mean_cell(values: Sequence[float], sign: str = "") -> str:
    """
    Returns the mean of `values` with its 95% interval as a cell of a table. One or two values are listed instead,
    because their interval says little. Without values, the cell is empty.
    """
    if len(values) < 3:
        return ", ".join(f"{value:{sign}z.1f}" for value in values)
    return _with_interval(*interval(values), sign=sign)


def _with_interval(mean: float, half_width: float | None, sign: str = "") -> str:
    return f"{mean:{sign}z.1f}" + ("" if half_width is None else f" ± {half_width:.1f}")

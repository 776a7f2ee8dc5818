"""What the runs of an ablation say together: means with 95 % intervals, differences paired by seed, a table."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..configuration_region_learner import rename_old_fields
from .run import Row

METRIC = "t2v_R@1"
_LAST = 4  # entries of a run's `loss`: 200 steps
_REFERENCES = {
    "kmeans": "k-means on features of the whole form",
    "cls_attention": "its CLS attention, a mask a head",
    "grid": "cells of a grid",
    "random_positions": "the whole form's masks, moved at random",
    "uniform": "whole frames",
    "oracle": "what can be reached at this resolution",
}


def student_t():
    """
    Student's distribution.

    Raises:
        ImportError: scipy is not installed.
    """
    try:
        from scipy.stats import t
    except ImportError as error:
        raise ImportError("Intervals need scipy: pip install 'region-learner[ablation]'") from error
    return t


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """
    Mean of `values`, and half the width of its 95 % interval: Student's t with one degree of freedom less than there
    are values. None for a single one.
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, None
    return mean, float(student_t().ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))


def read_json(path: Path) -> Any:
    """
    What a file holds.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it.") from error


# Of a run, what everything here takes for granted.
_KINDS = {
    "row": str, "seed": int, "setting": dict, "video_config": dict, "test": dict, "loss": list, "curve": list,
    "parameters": int,
}  # fmt: skip
_METRICS = (METRIC, "v2t_R@1")


def read_runs(directory: Path) -> dict[Path, dict[str, Any]]:
    """
    The runs in `directory/runs`, by their files.

    Raises:
        ValueError: a file is damaged, or no run.
    """
    runs = {}
    for path in sorted((directory / "runs").glob("*.json")):
        found = read_json(path)
        for name, kind in _KINDS.items():
            if not isinstance(found, dict) or not isinstance(found.get(name), kind):
                raise ValueError(f"{path} is no run of an ablation, whose {name!r} is a {kind.__name__}: remove it.")
        for name in _METRICS:
            if not isinstance(found["test"].get(name), int | float):
                raise ValueError(f"{path} is no run of an ablation, whose test split has {name!r}: remove it.")
        runs[path] = found | {"video_config": rename_old_fields(found["video_config"])}
    return runs


def _measured(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """[`interval`] of what could be measured."""
    measured = [value for value in values if value is not None]
    return interval(measured) if measured else None


def _paired(values: Mapping[int, float], others: Mapping[int, float]) -> tuple[float, float | None] | None:
    """[`interval`] of the differences of seeds that both have."""
    differences = [value - others[seed] for seed, value in values.items() if seed in others]
    return interval(differences) if differences else None


def summarize(runs: Iterable[dict[str, Any]], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """
    One entry for each of `rows` of which there are `runs`.

    Returns:
        For each row `row`, `describes`, `video_config`, `seeds`, `parameters`; `values` of text-to-video R@1 on the
        test split, their `mean` and `half_width`; `losses`, of the last 200 steps of each seed; `difference` and
        `difference_half_width`, of the differences to the runs with the same seed of the row `against` which it is
        compared, of so many `pairs`; the means of `v2t_R@1` and of `codes_in_use` (percent); and means with half
        widths of what `regions` says of each kind of masks.
    """
    by_row: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        by_row.setdefault(run["row"], {})[run["seed"]] = run
    entries = []
    for row in rows:
        if not (seeds := by_row.get(row.name, {})):
            continue
        values = {seed: run["test"][METRIC] for seed, run in seeds.items()}
        mean, half_width = interval(list(values.values()))
        entry = {
            "row": row.name,
            "describes": row.describes,
            "seeds": sorted(values),
            "values": [values[seed] for seed in sorted(values)],
            "losses": [float(np.mean(seeds[seed]["loss"][-_LAST:])) for seed in sorted(values)],
            "mean": mean,
            "half_width": half_width,
            "v2t_R@1": float(np.mean([run["test"]["v2t_R@1"] for run in seeds.values()])),
            "parameters": next(iter(seeds.values()))["parameters"],
            "video_config": row.video_config,
        }
        base = {seed: run["test"][METRIC] for seed, run in by_row.get(row.against, {}).items()}
        if row.name != row.against and (paired := _paired(values, base)):
            entry["against"], entry["pairs"] = row.against, len(values.keys() & base.keys())
            entry["difference"], entry["difference_half_width"] = paired
        first = next(iter(seeds.values()))
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


def loss_correlation(rows: Sequence[dict[str, Any]]) -> float | None:
    """
    Pearson's correlation, over seeds of the same row, of the last training loss with R@1: both less their means in
    the row. How much of what seeds differ by is how far training came. None with less than three runs.
    """
    if not rows:
        return None
    losses, values = (
        np.concatenate([np.subtract(row[name], np.mean(row[name])) for row in rows]) for name in ("losses", "values")
    )
    if sum(len(row["seeds"]) > 1 for row in rows) == 0 or len(values) < 3 or not losses.any() or not values.any():
        return None
    return float((losses * values).sum() / math.sqrt((losses**2).sum() * (values**2).sum()))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The entries of [`summarize`] as a table in Markdown."""
    lines = []
    for row in rows:
        learned = row["regions"]["learned"] if "regions" in row else {}
        lines.append(
            [
                row["describes"],
                str(len(row["seeds"])),
                _with_interval(row["mean"], row["half_width"]),
                _difference(row),
                f"{row['v2t_R@1']:.1f}",
                f"{row['parameters'] / 1e3:.0f} k",
                f"{row['cost']:.2f}" if "cost" in row else "",
                f"{row['codes_in_use']:.0f} %" if "codes_in_use" in row else "",
                f"{learned['iou'][0]:.1f}" if learned else "",
            ]
        )
    header = ["model", "seeds", "R@1", "difference", "V2T R@1", "parameters", "step", "codes in use", "mask IoU"]
    return _markdown(header, lines)


def _difference(row: dict[str, Any]) -> str:
    """As a cell of the table: of how many pairs, where that are fewer than the seeds beside it say."""
    if "difference" not in row:
        return ""
    cell = _with_interval(row["difference"], row["difference_half_width"], "+")
    pairs = row["pairs"]
    return cell if pairs == len(row["seeds"]) else f"{cell} ({pairs} pair{'s' * (pairs > 1)})"


def contrast_table(rows: Sequence[dict[str, Any]], contrasts: Iterable[tuple[str, str]]) -> str | None:
    """Differences in R@1 of the pairs `contrasts` of rows, paired by seed, in Markdown; None if there is no pair."""
    by_name = {row["row"]: row for row in rows}
    lines = []
    for names in contrasts:
        if all(name in by_name for name in names):
            row, other = (by_name[name] for name in names)
            paired = _paired(dict(zip(row["seeds"], row["values"])), dict(zip(other["seeds"], other["values"])))
            if paired:
                pairs = len(set(row["seeds"]) & set(other["seeds"]))
                lines.append([row["describes"], other["describes"], str(pairs), _with_interval(*paired, "+")])
    return _markdown(["model", "less that of", "pairs", "difference in R@1"], lines, texts=2) if lines else None


def region_table(rows: Sequence[dict[str, Any]], references_of: str = "ours") -> str | None:
    """
    Where the masks of rows land, and below them what is no row's (clusters, attention, ...), from the row
    `references_of`; in Markdown. None if no row has masks.
    """
    kinds = [(row["describes"], row["regions"]["learned"]) for row in rows if "regions" in row]
    for row in rows:
        if row["row"] == references_of and "regions" in row:
            kinds += [(_REFERENCES[kind], row["regions"][kind]) for kind in _REFERENCES if kind in row["regions"]]
    columns = ("iou", "pointing", "precision", "owned", "stability")
    lines = [
        [
            describes,
            f"{metrics['masks'][0]:.0f}",
            *("" if metrics[key] is None else _with_interval(*metrics[key]) for key in columns),
        ]
        for describes, metrics in kinds
    ]
    return _markdown(["masks", "number", "IoU", *columns[1:]], lines) if lines else None


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A table whose first columns are `texts`, and the others numbers."""
    rows = [header, ["---"] * texts + ["---:"] * (len(header) - texts), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _with_interval(mean: float, half_width: float | None, sign: str = "") -> str:
    return f"{mean:{sign}.1f}" + ("" if half_width is None else f" ± {half_width:.1f}")

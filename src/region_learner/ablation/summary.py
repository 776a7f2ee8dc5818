"""What the runs of an ablation say together: means with 95 % intervals, differences paired by seed, a table."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

METRIC = "t2v_R@1"
_LAST = 4  # entries of a run's `loss`: 200 steps


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


def read_runs(directory: Path) -> list[dict[str, Any]]:
    """The runs in `directory/runs`, a JSON file each."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((directory / "runs").glob("*.json"))]


def _mean(values: Sequence[float | None]) -> float | None:
    """Of what could be measured."""
    measured = [value for value in values if value is not None]
    return float(np.mean(measured)) if measured else None


def summarize(runs: Iterable[dict[str, Any]], baseline: str = "frozen") -> list[dict[str, Any]]:
    """
    One entry for each row of the table, in the order in which its first run comes.

    Returns:
        For each row `row`, `seeds`, `parameters`; `values` of text-to-video R@1 on the test split, their `mean` and
        `half_width`; `losses`, of the last 200 steps of each seed; `difference` and `difference_half_width`, of the
        runs' differences to those of the `baseline` with the same seed; and the means of `v2t_R@1`, of `codes_in_use`
        (percent) and of the regions' metrics, where there are any.
    """
    by_row: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        by_row.setdefault(run["row"], {})[run["seed"]] = run
    base = {seed: run["test"][METRIC] for seed, run in by_row.get(baseline, {}).items()}
    rows = []
    for name, seeds in by_row.items():
        values = {seed: run["test"][METRIC] for seed, run in seeds.items()}
        mean, half_width = interval(list(values.values()))
        row = {
            "row": name,
            "seeds": sorted(values),
            "values": [values[seed] for seed in sorted(values)],
            "losses": [float(np.mean(seeds[seed]["loss"][-_LAST:])) for seed in sorted(values)],
            "mean": mean,
            "half_width": half_width,
            "v2t_R@1": float(np.mean([run["test"]["v2t_R@1"] for run in seeds.values()])),
            "parameters": next(iter(seeds.values()))["parameters"],
        }
        paired = [value - base[seed] for seed, value in values.items() if seed in base]
        if paired and name != baseline:
            row["difference"], row["difference_half_width"] = interval(paired)
        first = next(iter(seeds.values()))
        if "codes_in_use" in first:
            row["codes_in_use"] = 100 * float(np.mean([run["codes_in_use"] for run in seeds.values()]))
        if "regions" in first:
            learned = [run["regions"]["learned"] for run in seeds.values()]
            row["regions"] = {key: _mean([metrics[key] for metrics in learned]) for key in learned[0]}
        rows.append(row)
    return rows


def loss_correlation(rows: Sequence[dict[str, Any]]) -> float | None:
    """
    Pearson's correlation, over seeds of the same row, of the last training loss with R@1: both less their means in
    the row. How much of what seeds differ by is how far training came. None with less than three runs.
    """
    losses, values = (
        np.concatenate([np.subtract(row[name], np.mean(row[name])) for row in rows]) for name in ("losses", "values")
    )
    if sum(len(row["seeds"]) > 1 for row in rows) == 0 or len(values) < 3 or not losses.any() or not values.any():
        return None
    return float((losses * values).sum() / math.sqrt((losses**2).sum() * (values**2).sum()))


def table(rows: Sequence[dict[str, Any]], describes: Mapping[str, str] | None = None) -> str:
    """The entries of [`summarize`] as a table in Markdown."""
    header = ["model", "seeds", "R@1", "difference", "V2T R@1", "parameters", "step", "codes in use", "mask IoU"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for row in rows:
        regions = row.get("regions", {})
        lines.append(
            [
                (describes or {}).get(row["row"], row["row"]),
                str(len(row["seeds"])),
                _with_interval(row["mean"], row["half_width"]),
                _with_interval(row["difference"], row["difference_half_width"], "+") if "difference" in row else "",
                f"{row['v2t_R@1']:.1f}",
                f"{row['parameters'] / 1e3:.0f} k",
                f"{row['cost']:.2f}" if "cost" in row else "",
                f"{row['codes_in_use']:.0f} %" if "codes_in_use" in row else "",
                "" if regions.get("iou") is None else f"{regions['iou']:.1f}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _with_interval(mean: float, half_width: float | None, sign: str = "") -> str:
    return f"{mean:{sign}.1f}" + ("" if half_width is None else f" ± {half_width:.1f}")

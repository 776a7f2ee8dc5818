"""
Rewrites the tables of docs/evidence.md, and its figures, from the recorded runs.

    python -m experiments.render

Each table is between `<!-- table: WORDS -->` and `<!-- end of table -->`, where WORDS choose the table. Figures of
region masks are only redrawn if `runs/masks`, which is not under version control, exists.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .ablation import entries_of, step_times_of
from .figures import draw
from .kept_tokens import kept_table
from .runs import read_runs, runs_of
from .seeds import seed_table
from .settings import CONTRASTS, SETTINGS, WORD_CONTRASTS, rows_of
from .tables import (
    METRIC,
    contrast_table,
    differences_of,
    loss_correlation,
    markdown,
    mask_table,
    mean_cell,
    model_table,
)
from .words import Measured, differences, word_contrasts, word_table

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "evidence.md"
FIGURES = ROOT / "docs" / "images" / "evidence"
RUNS = ROOT / "experiments" / "runs"

# The rows of the main table, by how they pool patches and regions.
_MEANS = ("frozen", "frozen_deeper", "patches", "quantization", "aggregation", "paper", "paper_motion")
_MAXIMA = (
    "patches_max",
    "patches_max_deeper",
    "decoupled",
    "decoupled_1_region",
    "decoupled_no_codes",
    "decoupled_no_interaction",
    "decoupled_motion",
)

# The findings of the first section: a description, and the two rows whose difference is shown.
_VECTOR_FINDINGS = [
    ("the region module in the `paper` form, added to Frozen in Time", "paper", "frozen"),
    ("the region module in the `decoupled` form, added to Frozen in Time", "decoupled", "frozen"),
    ("one more encoder block, added to Frozen in Time", "frozen_deeper", "frozen"),
    ("the mean over all patches, added to Frozen in Time", "patches", "frozen"),
    ("the maximum over all patches, added to Frozen in Time", "patches_max", "frozen"),
    ("`decoupled` instead of the maximum over all patches", "decoupled", "patches_max"),
    ("interaction (attention between regions) in `decoupled`", "decoupled", "decoupled_no_interaction"),
    (
        "eight regions per frame in `decoupled` instead of one that covers the frame",
        "decoupled",
        "decoupled_1_region",
    ),
    ("quantization in `decoupled`", "decoupled", "decoupled_no_codes"),
    ("motion excitation in `decoupled`", "decoupled_motion", "decoupled"),
]
_VECTOR, _TOKENS, _SUM, _WHERE = ("single",), ("tokens",), ("reranked",), ("where", "pointing")
_REPLACEMENTS = [
    ("random_patches", "random patches"),
    ("cells", "cells of a grid"),
    ("clusters", "k-means clusters"),
]
_WORD_FINDINGS: list[tuple[str, Measured, Measured]] = [
    (
        "one vector: local phrases, tubes and a maximum over patches instead of the regions of `decoupled`",
        ("no_regions", _VECTOR),
        ("decoupled", _VECTOR),
    ),
    (
        "one vector: training with region queries as tokens instead of no regions",
        ("queries", _VECTOR),
        ("no_regions", _VECTOR),
    ),
    ("one vector: the token loss, added to `decoupled`", ("decoupled_words", _VECTOR), ("decoupled", _VECTOR)),
    *[
        (
            f"`decoupled` with the token loss: learned masks instead of a fixed grid, {kind}",
            ("decoupled_words", measure),
            ("decoupled_words_grid", measure),
        )
        for measure, kind in ((_TOKENS, "by tokens alone"), (_SUM, "re-ranked"))
    ],
    ("region queries: re-ranked instead of by one vector", ("queries", _SUM), ("queries", _VECTOR)),
    *[
        (f"region queries instead of {label}, {kind}", ("queries", measure), (row, measure))
        for row, label in _REPLACEMENTS
        for measure, kind in ((_TOKENS, "by tokens alone"), (_SUM, "re-ranked"))
    ],
    *[
        (f"region queries instead of {label}, *where*", ("queries", _WHERE), (row, _WHERE))
        for row, label in _REPLACEMENTS
    ],
    *[
        (f"region queries instead of {label}, re-ranked", ("queries", _SUM), (row, _SUM))
        for row, label in (
            ("convolution", "masks by a convolution"),
            ("slots", "slots"),
            ("all_patches", "all 108 patches"),
            ("tubes", "36 cells of one patch each (tubes)"),
        )
    ],
    (
        "36 region queries instead of 36 cells of one patch each (tubes), re-ranked",
        ("queries_36", _SUM),
        ("tubes", _SUM),
    ),
    ("36 region queries instead of 12, re-ranked", ("queries_36", _SUM), ("queries", _SUM)),
    *[
        (f"the true masks of the objects instead of {label}, {kind}", ("true_masks", measure), (row, measure))
        for row, label in (("queries", "region queries"), ("cells", "cells of a grid"))
        for measure, kind in ((_TOKENS, "by tokens alone"), (_SUM, "re-ranked"))
    ],
    *[
        (f"tracks instead of region queries, {kind}", ("tracking", measure), ("queries", measure))
        for measure, kind in ((_TOKENS, "by tokens alone"), (_SUM, "re-ranked"), (_WHERE, "*where*"))
    ],
    *[
        (f"tracks instead of {label}, {kind}", ("tracking", measure), (row, measure))
        for row, label in _REPLACEMENTS[1:]
        for measure, kind in ((_TOKENS, "by tokens alone"), (_SUM, "re-ranked"))
    ],
]
_CORPORA = ["moving_shapes", "drifting_letters"]


def _vector_findings() -> str:
    by_setting = [_entries("shapes", "main"), _entries("letters", "second_corpus")]
    lines = [
        [text, *(mean_cell(differences_of(entries, row, other), sign="+") for entries in by_setting)]
        for text, row, other in _VECTOR_FINDINGS
    ]
    return markdown(["what is added or replaced", *_CORPORA], lines)


def _word_findings() -> str:
    settings = ("shapes_short", "letters_short", "shapes_crowded")
    by_setting = [read_runs(RUNS / f"{setting}_words.jsonl") for setting in settings]

    def cell(values: list[float]) -> str:
        return mean_cell(values, sign="+") if len(values) > 2 else ""  # fewer values give no interval

    lines = [
        [text, *(cell(differences(found, one, other)) for found in by_setting)] for text, one, other in _WORD_FINDINGS
    ]
    return markdown(["what is added or replaced", *_CORPORA, "crowded clips"], lines)


def _entries(setting: str, table: str) -> list[dict[str, Any]]:
    return entries_of(RUNS, setting, SETTINGS[setting], rows_of([table]))


def _models(setting: str, table: str) -> str:
    return model_table(_entries(setting, table), step_times_of(RUNS, setting, table))


def _contrasts(setting: str, table: str) -> str | None:
    return contrast_table(_entries(setting, table), CONTRASTS)


def _masks(setting: str, table: str) -> str | None:
    return mask_table(_entries(setting, table))


def _correlations() -> str:
    """Returns a table of the correlations of R@1 with the final training loss."""
    by_setting = [_entries("shapes", "main"), _entries("letters", "second_corpus")]
    lines = []
    for label, names in (("means", _MEANS), ("(soft) maxima", _MAXIMA)):
        within = [loss_correlation([entry for entry in entries if entry["row"] in names]) for entries in by_setting]
        lines.append([f"among seeds of the same model, models with {label}", *(f"{value:.2f}" for value in within)])
    over_all = []
    for entries in by_setting:
        losses, values = (
            [value for entry in entries for value in entry[name].values()] for name in ("losses", "values")
        )
        over_all.append(f"{np.corrcoef(losses, values)[0, 1]:.2f}")
    return markdown(
        ["correlation of R@1 with the loss", *_CORPORA],
        [*lines, ["among all runs of the table", *over_all]],
    )


def _seeds(setting: str, row: str, *seeds: str) -> str:
    return seed_table(RUNS, setting, SETTINGS[setting], rows_of([row])[0], [int(seed) for seed in seeds])


def _again(setting: str, *names: str) -> str:
    """Returns a table with R@1 of runs that were repeated on another machine."""
    rows = rows_of(names)
    recorded, again = (
        {(run["row"], run["seed"]): run["test"][METRIC] for run in runs_of(path, SETTINGS[setting], rows)}
        for path in (RUNS / f"{setting}.jsonl", RUNS / "again" / f"{setting}.jsonl")
    )
    labels = {row.name: row.label for row in rows}
    lines = [
        [labels[row], str(seed), f"{recorded[row, seed]:.1f}", f"{value:.1f}"] for (row, seed), value in again.items()
    ]
    return markdown(["model", "seed", "recorded", "repeated"], lines)


def _words(setting: str, *rows: str) -> str:
    found, runs = (read_runs(RUNS / f"{setting}{suffix}.jsonl") for suffix in ("_words", ""))
    return word_table(found, rows_of(rows), runs, step_times_of(RUNS, setting, "-".join(rows)))


def _kept(setting: str) -> str:
    return kept_table(read_runs(RUNS / f"{setting}_kept.jsonl"))


def _word_contrasts(setting: str) -> str | None:
    return word_contrasts(read_runs(RUNS / f"{setting}_words.jsonl"), WORD_CONTRASTS)


TABLES: dict[str, Callable[..., str | None]] = {
    "models": _models,
    "contrasts": _contrasts,
    "masks": _masks,
    "correlations": _correlations,
    "seeds": _seeds,
    "again": _again,
    "vector_findings": _vector_findings,
    "word_findings": _word_findings,
    "words": _words,
    "word_contrasts": _word_contrasts,
    "kept": _kept,
}


def render(document: str) -> str:
    """Returns the document with its tables updated."""

    def table(match: re.Match) -> str:
        kind, *words = match["words"].split()
        return f"{match['begin']}\n\n{TABLES[kind](*words)}\n\n{match['end']}"

    pattern = r"(?P<begin><!-- table: (?P<words>.+?) -->).*?(?P<end><!-- end of table -->)"
    return re.sub(pattern, table, document, flags=re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(
        prog="python -m experiments.render",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(arguments)
    DOCUMENT.write_text(render(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    for setting, table in (("shapes", "main"), ("letters", "second_corpus")):
        draw(RUNS, setting, table, _entries(setting, table), FIGURES)
    print(f"Wrote {DOCUMENT} and the figures in {FIGURES}.")


if __name__ == "__main__":
    main()

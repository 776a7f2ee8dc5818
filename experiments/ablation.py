"""
Shows what each part of the method contributes: trains the same small model with and without the part, from several
seeds, and prints tables in Markdown.

    python -m experiments.ablation --output runs --setting shapes --rows main --seeds 5 --jobs 2

Each run is one line of OUTPUT/SETTING.jsonl. Runs that are recorded there are not repeated: the same command resumes
after an interruption, and a command with more rows or seeds adds to the file. The tables include all recorded seeds of
the chosen rows.
"""

import argparse
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from region_learner.files import locked, write_json

from .clips import prepare
from .runs import add_run, read_json, run_in_processes, runs_of
from .settings import CONTRASTS, SETTINGS, TABLES, Row, Setting, rows_of, with_baselines
from .step_time import relative_step_times
from .tables import contrast_table, loss_correlation, mask_table, model_table, summarize
from .training import train_and_measure


def run_missing(
    output: Path,
    name: str,
    setting: Setting,
    rows: Sequence[Row],
    seeds: Iterable[int],
    jobs: int = 1,
    use_cpu: bool = False,
    progress: bool = True,
    data_seeds: Sequence[int] | None = None,
) -> None:
    """
    Trains each of `rows` from each of `seeds`, and records the run, unless it is already in `output/NAME.jsonl`.

    Args:
        name: name of the setting.
        jobs: number of runs at a time.
        use_cpu: whether to leave GPUs unused.
        data_seeds: seeds of the order and sampling of the data. Each of `seeds`, which then only determines the
            weights, is combined with each of them, and the runs are recorded in `output/NAME_seeds.jsonl`.

    Raises:
        ValueError: recorded runs of these rows had another setting or model.
        ChildProcessError: runs have failed. This is raised after all others are done.
        BlockingIOError: another process is writing to `output`.
    """
    path = output / (f"{name}.jsonl" if data_seeds is None else f"{name}_seeds.jsonl")
    output.mkdir(parents=True, exist_ok=True)
    with locked(output):
        recorded = {(run["row"], run["seed"], run.get("data_seed")) for run in runs_of(path, setting, rows)}
        corpus = setting.clips_in(output)
        tasks = {}
        for seed, row, data_seed in product(seeds, rows, data_seeds or (None,)):
            if (row.name, seed, data_seed) not in recorded:
                masks_to = output / "masks" / name / f"{row.name}.npz" if seed == 0 and data_seed is None else None
                label = f"{row.name}, seed {seed}" + ("" if data_seed is None else f", data {data_seed}")
                weights_to = (
                    output / "weights" / name / f"{row.name}-{seed}.safetensors" if data_seed is None else None
                )
                tasks[label] = (setting, row, seed, corpus, use_cpu, masks_to, data_seed, weights_to)
        if tasks:
            for labels in {row.labels for _, row, *_ in tasks.values()}:
                prepare(setting, corpus, labels=labels)
            run_in_processes(train_and_measure, tasks, lambda run: add_run(path, run), jobs, use_cpu, progress)


def entries_of(output: Path, name: str, setting: Setting, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns a summary of the recorded runs of `rows`; see [`summarize`]."""
    return summarize(runs_of(output / f"{name}.jsonl", setting, with_baselines(rows)), rows)


def table_name(rows: str) -> str:
    """Returns the name of a table, from the option `--rows`."""
    return rows.replace(" ", "").replace(",", "-")


def step_times_of(output: Path, name: str, table: str) -> dict[str, float]:
    """Returns the relative times of training steps that were measured for a table; empty if there are none."""
    return read_json(output / "step_times.json").get(name, {}).get(table, {})


def measure_step_times(
    output: Path, name: str, setting: Setting, rows: Sequence[Row], table: str, use_cpu: bool
) -> None:
    """Measures and records the times of training steps, relative to the first of `rows`."""
    path = output / "step_times.json"
    times = relative_step_times(setting, rows, use_cpu=use_cpu)
    with locked(output):
        recorded = read_json(path)
        recorded.setdefault(name, {})[table] = times
        write_json(path, recorded)


def report(entries: Sequence[dict[str, Any]], step_times: dict[str, float]) -> str:
    """Returns the entries of [`summarize`] in Markdown."""
    parts = [model_table(entries, step_times), contrast_table(entries, CONTRASTS), mask_table(entries)]
    correlation = loss_correlation(entries)
    if correlation is not None:
        parts.append(
            f"Correlation of R@1 with the final training loss, among seeds of the same row: {correlation:.2f}"
        )
    return "\n\n".join(part for part in parts if part)


def argument_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the options that the commands of the experiments share."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="directory of the recorded runs and decoded clips")
    parser.add_argument("--setting", choices=list(SETTINGS), default="shapes", help="corpus, encoders and training")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time (default: 1)")
    parser.add_argument("--cpu", action="store_true", help="leave GPUs unused")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser("ablation", __doc__)
    parser.add_argument(
        "--rows",
        default="main",
        help=f"tables ({', '.join(TABLES)}) or single rows, separated by commas (default: main)",
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of runs per row (default: 5)")
    parser.add_argument("--step-times", action="store_true", help="also measure the time of a training step")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="also draw figures, as DIR/SETTING_ROWS_*.webp")
    options = parser.parse_args(arguments)
    try:
        rows = rows_of(name.strip() for name in options.rows.split(","))
    except ValueError as error:
        parser.error(f"--rows: {error}")
    output, name, setting = options.output, options.setting, SETTINGS[options.setting]
    table = table_name(options.rows)
    try:
        run_missing(output, name, setting, rows, range(options.seeds), options.jobs, options.cpu)
    except (ValueError, ChildProcessError, BlockingIOError) as error:
        parser.exit(1, f"{error}\n")
    if options.step_times:
        measure_step_times(output, name, setting, rows, table, options.cpu)
    entries = entries_of(output, name, setting, rows)
    print(report(entries, step_times_of(output, name, table)))
    if options.figures:
        from .figures import draw  # needs matplotlib

        draw(output, name, table, entries, options.figures)


if __name__ == "__main__":
    main()

"""
Shows which seed a model's retrieval depends on: that of its weights, or that of the order and sampling of its data.

    python -m experiments.seeds --output runs --setting shapes --row paper --seeds 0 2 --jobs 2

Trains a row of the ablation with every pair of the seeds, and prints text-to-video R@1 on the test split. Each run is
one line of OUTPUT/SETTING_seeds.jsonl; runs that are recorded there are not repeated. OUTPUT may be that of the
ablation, whose decoded clips are reused. A pair of equal seeds is the run that the ablation makes of that seed.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from .clips import prepare
from .runs import add_run, only_writer, run_in_processes, runs_of
from .settings import SETTINGS, TABLES, Row, Setting
from .tables import METRIC, markdown
from .training import train_and_measure


def run_missing(
    output: Path, name: str, setting: Setting, row: Row, seeds: Sequence[int], jobs: int = 1, use_cpu: bool = False
) -> None:
    """Trains `row` with every pair of `seeds`, unless that run is recorded in `output/NAME_seeds.jsonl`."""
    path, corpus = output / f"{name}_seeds.jsonl", output / "corpus" / name
    with only_writer(output):
        recorded = {(run["seed"], run["data_seed"]) for run in runs_of(path, setting, [row])}
        missing = [pair for pair in product(seeds, seeds) if pair not in recorded]
        if missing:
            prepare(setting, corpus)
            tasks = {
                f"weights {weights}, data {data}": (setting, row, weights, corpus, use_cpu, None, data)
                for weights, data in missing
            }
            run_in_processes(train_and_measure, tasks, lambda run: add_run(path, run), jobs, use_cpu)


def seed_table(output: Path, name: str, setting: Setting, row: Row, seeds: Sequence[int]) -> str:
    """Returns test R@1 as a table, with one row per seed of the weights and one column per seed of the data."""
    runs = runs_of(output / f"{name}_seeds.jsonl", setting, [row])
    found = {(run["seed"], run["data_seed"]): f"{run['test'][METRIC]:.1f}" for run in runs}
    lines = [[str(weights), *(found[weights, data] for data in seeds)] for weights in seeds]
    return markdown(["weights", *(f"data {data}" for data in seeds)], lines)


def main(arguments: Sequence[str] | None = None) -> None:
    rows = {row.name: row for table in TABLES.values() for row in table}
    parser = argparse.ArgumentParser(
        prog="python -m experiments.seeds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="directory of the recorded runs and decoded clips")
    parser.add_argument("--setting", choices=list(SETTINGS), default="shapes", help="corpus, encoders and training")
    parser.add_argument("--row", choices=list(rows), metavar="ROW", required=True, help="name of a row")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time (default: 1)")
    parser.add_argument("--cpu", action="store_true", help="leave GPUs unused")
    options = parser.parse_args(arguments)
    setting, row = SETTINGS[options.setting], rows[options.row]
    try:
        run_missing(options.output, options.setting, setting, row, options.seeds, options.jobs, options.cpu)
    except (ValueError, ChildProcessError, BlockingIOError) as error:
        parser.exit(1, f"{error}\n")
    print(seed_table(options.output, options.setting, setting, row, options.seeds))


if __name__ == "__main__":
    main()

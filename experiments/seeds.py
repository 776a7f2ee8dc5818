"""
Shows which seed affects a model's retrieval: that of its weights, or that of the order and sampling of its data.

    python -m experiments.seeds --output runs --setting shapes --row paper --seeds 0 2 --jobs 2

Trains a row of the ablation with every pair of the seeds, and prints text-to-video R@1 on the test split. Each run is
one line of OUTPUT/SETTING_seeds.jsonl; runs that are recorded there are not repeated. OUTPUT may be that of the
ablation, whose decoded clips are reused. A pair of equal seeds is the same as the run of the ablation with that seed.
"""

from collections.abc import Sequence
from pathlib import Path

from .ablation import argument_parser, run_missing
from .runs import runs_of
from .settings import SETTINGS, TABLES, Row, Setting
from .tables import METRIC, markdown


def seed_table(output: Path, name: str, setting: Setting, row: Row, seeds: Sequence[int]) -> str:
    """Returns test R@1 as a table, with one row per seed of the weights and one column per seed of the data."""
    runs = runs_of(output / f"{name}_seeds.jsonl", setting, [row])
    found = {(run["seed"], run["data_seed"]): f"{run['test'][METRIC]:.1f}" for run in runs}
    lines = [[str(weights), *(found[weights, data] for data in seeds)] for weights in seeds]
    return markdown(["seed of the weights", *(f"seed of the data: {data}" for data in seeds)], lines)


def main(arguments: Sequence[str] | None = None) -> None:
    rows = {row.name: row for table in TABLES.values() for row in table}
    parser = argument_parser("seeds", __doc__)
    parser.add_argument("--row", choices=list(rows), metavar="ROW", required=True, help="name of a row")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    options = parser.parse_args(arguments)
    setting, row = SETTINGS[options.setting], rows[options.row]
    try:
        run_missing(
            options.output,
            options.setting,
            setting,
            [row],
            options.seeds,
            options.jobs,
            options.cpu,
            data_seeds=options.seeds,
        )
    except (ValueError, ChildProcessError, BlockingIOError) as error:
        parser.exit(1, f"{error}\n")
    print(seed_table(options.output, options.setting, setting, row, options.seeds))


if __name__ == "__main__":
    main()

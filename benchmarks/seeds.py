"""
Which seed a model's retrieval depends on: that of its weights, or that of the order and draws of its data.

    python benchmarks/seeds.py --output runs/shapes --row paper --seeds 0 2 [--setting shapes] [--jobs 2] [--cpu]

Trains a row of `region-learner ablate` with every pair of the seeds, and prints text-to-video R@1 on the test split,
rows for weights (and what is drawn for the codebook), columns for data. `--output` may be that of `region-learner
ablate`, whose corpus is taken; one file a run is in OUTPUT/seeds, and runs that are there are not run again. A pair of
equal seeds is the run that `ablate` makes of this seed.
"""

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from region_learner.ablation import ROWS, SETTINGS, Row
from region_learner.ablation.run import prepare, run
from region_learner.files import locked, write_json

MODELS = {row.name: row for rows in ROWS.values() for row in rows}


def one(pair: tuple[int, int], setting: str, row: Row, output: Path, threads: int, cpu: bool) -> float:
    """R@1 of the model with these seeds, of weights and of data."""
    weights, data = pair
    path = output / "seeds" / f"{row.name}-{weights}-{data}.json"
    if not path.exists():
        torch.set_num_threads(threads)
        found = run(SETTINGS[setting], row, weights, output / "corpus", cpu, data_seed=data)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found | {"data_seed": data})
    found = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps({"setting": vars(SETTINGS[setting]), "video_config": row.video_config}))
    if any(found[name] != value for name, value in now.items()):
        raise ValueError(f"{path} is of another setting or model: choose another output, or remove it.")
    return found["test"]["t2v_R@1"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--row", choices=list(MODELS), metavar="ROW", required=True, help="one row, by its name")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--setting", choices=list(SETTINGS), default="shapes")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side; they share the cores")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    options = parser.parse_args()
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    measure = partial(
        one, setting=options.setting, row=MODELS[options.row], output=options.output, threads=threads, cpu=options.cpu
    )
    pairs = [(weights, data) for weights in options.seeds for data in options.seeds]
    # A process for each run, as `ablate` has.
    pool = ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    options.output.mkdir(parents=True, exist_ok=True)
    with locked(options.output), pool:
        prepare(SETTINGS[options.setting], options.output / "corpus")
        found = dict(zip(pairs, pool.map(measure, pairs)))
    print("| weights | " + " | ".join(f"data {data}" for data in options.seeds) + " |")
    print("| --- |" + " ---: |" * len(options.seeds))
    for weights in options.seeds:
        print(f"| {weights} | " + " | ".join(f"{found[weights, data]:.1f}" for data in options.seeds) + " |")


if __name__ == "__main__":
    main()

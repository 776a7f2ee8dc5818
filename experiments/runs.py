"""Recorded runs: JSON Lines files, one line per run."""

import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import MISSING, fields
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from tqdm.auto import tqdm

from region_learner.files import write_text

from .settings import Row, Setting

# Defaults of fields that older runs did not record.
_DEFAULTS = {field.name: field.default for field in fields(Setting) if field.default is not MISSING}


def read_runs(path: Path) -> list[dict[str, Any]]:
    """
    Returns the runs in a file, or an empty list if the file does not exist.

    Raises:
        ValueError: a line is damaged.
    """
    runs = []
    if path.exists():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                runs.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is not JSON ({error}): remove the line.") from error
    return runs


def read_json(path: Path) -> dict[str, Any]:
    """Returns the content of a JSON file, or an empty dict if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def add_run(path: Path, run: dict[str, Any]) -> None:
    """Appends a run to a file. The write is atomic, so that an interruption does not lose earlier runs."""
    write_text(path, "".join(json.dumps(one) + "\n" for one in [*read_runs(path), run]))


def runs_of(path: Path, setting: Setting, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """
    Returns the runs of `rows` in a file.

    Raises:
        ValueError: one of them had another setting or model.
    """
    wanted = {row.name: row for row in rows}
    runs = [run for run in read_runs(path) if run["row"] in wanted]
    for run in runs:
        row = wanted[run["row"]]
        for name, default in (("gathering", None), ("labels", False), ("negatives", False), ("epochs_factor", 1)):
            if run.get(name, default) != getattr(row, name):
                raise ValueError(
                    f"{path}: the run of {run['row']}, seed {run['seed']}, had another {name} "
                    f"({run.get(name, default)}): choose another output, or remove the line."
                )
        now = json.loads(
            json.dumps({"setting": vars(setting), "video_config": row.video_config, "config": row.config})
        )
        for name, value in now.items():
            recorded = (_DEFAULTS if name == "setting" else {}) | run.get(name, {})
            if recorded != value:
                fields = sorted(key for key in value | recorded if recorded.get(key) != value.get(key))
                raise ValueError(
                    f"{path}: the run of {run['row']}, seed {run['seed']}, had another {name} ({', '.join(fields)}): "
                    "choose another output, or remove the line."
                )
    return runs


def run_in_processes(
    function: Callable[..., dict[str, Any]],
    tasks: dict[str, tuple],
    keep: Callable[[dict[str, Any]], None],
    jobs: int = 1,
    use_cpu: bool = False,
    progress: bool = True,
) -> None:
    """
    Calls `function(*arguments)` for each of `tasks` (names with arguments), `jobs` at a time, each in its own process.
    The processes share the CPU cores and take turns on the GPUs.

    Args:
        keep: called in this process with each result as soon as it is available.
        use_cpu: whether to leave GPUs unused.

    Raises:
        ChildProcessError: tasks have failed. This is raised after all others are done.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    gpus = [] if use_cpu else _visible_gpus()
    free: SimpleQueue[str] = SimpleQueue()
    for number in range(jobs):
        free.put(gpus[number % len(gpus)] if gpus else "")

    def one(arguments: tuple) -> dict[str, Any]:
        gpu = free.get()
        try:
            return _in_process(gpu, threads, function, arguments)
        finally:
            free.put(gpu)

    failed: dict[str, BaseException] = {}
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = {pool.submit(one, arguments): name for name, arguments in tasks.items()}
        for future in tqdm(as_completed(futures), total=len(futures), unit="run", disable=not progress):
            if error := future.exception():
                failed[futures[future]] = error
                tqdm.write(f"{futures[future]} failed: {error}")
            else:
                keep(future.result())
    finally:
        pool.shutdown(cancel_futures=True)
    if failed:
        name, error = next(iter(failed.items()))
        raise ChildProcessError(
            f"{len(failed)} of {len(tasks)} runs failed, the first: {name} ({type(error).__name__}: {error}). Run the "
            "command again to retry."
        )


def _visible_gpus() -> list[str]:
    """Returns the GPUs of this process, by their names in `CUDA_VISIBLE_DEVICES`."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    return [str(number) for number in range(torch.cuda.device_count())]


def _in_process(gpu: str, threads: int, function: Callable[..., dict[str, Any]], arguments: tuple) -> dict[str, Any]:
    context = get_context("spawn")  # a forked process could not use the GPU
    with ProcessPoolExecutor(1, context, _start_process, (gpu, threads)) as pool:
        return pool.submit(function, *arguments).result()


def _start_process(gpu: str, threads: int) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before anything uses a GPU
    torch.set_num_threads(threads)
    for name in ("region_learner", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)

"""
What each part of the method brings: one small model with and without it, trained from nothing on the same clips, with
several seeds, and a table of how well each finds clips by words. `docs/evidence.md` says what came of it.
"""

import json
import logging
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..configuration_region_learner import rename_old_fields
from ..files import locked, write_json, write_text
from ..processes import end_with_parent
from .cost import relative_cost
from .rows import CONTRASTS, ROWS, SETTINGS, rows_of
from .run import Row, Setting, prepare, run
from .summary import contrast_table, loss_correlation, read_json, read_runs, region_table, student_t, summarize, table

__all__ = ["ROWS", "SETTINGS", "Row", "Setting", "ablate", "read_runs", "report", "rows_of", "summarize", "table"]

logger = logging.getLogger(__name__)

_DRAWN = ("frozen", "patches_max", "paper", "ours", "ours_no_codes", "ours_1_region")  # in curves, and in colour


def ablate(
    output: str | os.PathLike[str],
    setting: Setting,
    rows: Sequence[Row],
    seeds: int | Sequence[int] = 5,
    jobs: int = 1,
    use_cpu: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """
    Runs what is missing of a table: each of `rows` with each of `seeds`. One JSON file a run, in `output/runs`; runs
    that are there already are not run again, so that the same command goes on after an interruption, and one with
    more rows or seeds adds to it.

    Args:
        jobs: runs side by side, in processes of their own; they share the cores, and take the GPUs that are free.
        use_cpu: even where there is a GPU.

    Returns:
        One entry for each row; see [`summarize`].

    Raises:
        ValueError: `output` holds runs of these rows in another setting, or another corpus.
        ImportError: scipy is not installed.
        ChildProcessError: some runs failed; the others are done and kept.
        BlockingIOError: another process is at work on `output`.
    """
    student_t()  # where it is missing, better now than after hours
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    with locked(output):
        return _ablate(output, setting, rows, seeds, jobs, use_cpu, progress)


def _ablate(
    output: Path,
    setting: Setting,
    rows: Sequence[Row],
    seeds: int | Sequence[int],
    jobs: int,
    use_cpu: bool,
    progress: bool,
) -> list[dict[str, Any]]:
    wanted = [(row, seed) for seed in (range(seeds) if isinstance(seeds, int) else seeds) for row in rows]
    there = {(found["row"], found["seed"]) for found in _runs_of(output, setting, rows)}
    missing = [(row, seed) for row, seed in wanted if (row.name, seed) not in there]
    if missing:
        prepare(setting, output / "corpus")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    gpus = [] if use_cpu else os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    gpus = gpus if any(gpus) else [str(gpu) for gpu in range(torch.cuda.device_count())] or [""]
    failed: dict[str, str] = {}
    free = [gpus[number % len(gpus)] for number in range(jobs)]
    running: dict[Future, tuple[str, str]] = {}
    # "spawn": a forked process could neither use the GPU nor count on its threads.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), end_with_parent, max_tasks_per_child=1)
    with pool, tqdm(total=len(wanted), initial=len(wanted) - len(missing), unit="run", disable=not progress) as bar:
        while missing or running:
            while missing and free:
                (row, seed), gpu = missing.pop(0), free.pop(0)
                future = pool.submit(_run, output, setting, row, seed, threads, use_cpu, gpu)
                running[future] = f"{row.name}, seed {seed}", gpu
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, gpu = running.pop(future)
                free.append(gpu)
                bar.update()
                if error := future.exception():
                    failed[name] = f"{type(error).__name__}: {error}"
                    logger.error("%s failed: %s", name, failed[name])
                if isinstance(error, BrokenProcessPool):  # killed, as for want of memory: no other can be started
                    missing.clear()
    if failed:
        raise ChildProcessError(
            f"{len(failed)} of {len(wanted)} runs failed, the first: {next(iter(failed))} "
            f"({next(iter(failed.values()))}). The same command tries them again."
        )
    return summarize(_runs_of(output, setting, rows), rows)


def report(
    output: str | os.PathLike[str],
    setting: Setting,
    rows: Sequence[Row],
    entries: Sequence[dict[str, Any]],
    name: str = "main",
    use_cpu: bool = False,
    cost: bool = False,
    figures: bool = False,
) -> str:
    """
    Writes the table `name` in `output`: `NAME.json` with the `entries`, `NAME.md`; with `figures` `NAME_means.png`,
    `NAME_curves.png` and `NAME_losses.png`, and `masks/ROW.png` for each of `rows` with masks.

    Args:
        entries: as [`ablate`] returns them.
        cost: measure the time of a training step relative to the first of `rows`. It goes into the entries; without,
            it is kept from an earlier report of that name, of rows that are the same model still, if the first is.

    Returns:
        What is in `NAME.md`: means and differences; the `CONTRASTS` there are; where masks land.
    """
    output = Path(output)
    summary = output / f"{name}.json"
    if cost:
        times = relative_cost(setting, rows, use_cpu=use_cpu)
    else:
        times = _costs_before(summary, entries) if summary.exists() else {}
    for entry in entries:
        if entry["row"] in times:
            entry["cost"] = times[entry["row"]]
    write_json(summary, entries)
    parts = [table(entries), contrast_table(entries, CONTRASTS), region_table(entries)]
    correlation = loss_correlation(entries)
    if correlation is not None:
        parts.append(f"Among seeds of the same row, R@1 and the last training loss correlate by {correlation:.2f}.")
    text = "\n\n".join(part for part in parts if part)
    write_text(output / f"{name}.md", text + "\n")
    if figures:
        from .figures import draw_curves, draw_losses, draw_masks, draw_means

        draw_means(entries, output / f"{name}_means.png")
        some = [entry for entry in entries if entry["row"] in _DRAWN]
        if some:
            draw_curves(list(read_runs(output).values()), some, output / f"{name}_curves.png")
        draw_losses(entries, some, output / f"{name}_losses.png")
        for row in rows:
            path = output / "masks" / f"{row.name}.npz"
            if path.exists():
                draw_masks(path, path.with_suffix(".png"))
    return text


def _costs_before(summary: Path, entries: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The costs in an earlier report that are still those of the models, relative to the first of them."""
    before = read_json(summary)
    if not isinstance(before, list) or not all(isinstance(entry, dict) and "row" in entry for entry in before):
        raise ValueError(f"{summary} is no report of an ablation: choose another name for this one.")
    models = {entry["row"]: entry["video_config"] for entry in entries}
    same = [entry for entry in before if rename_old_fields(entry.get("video_config", {})) == models.get(entry["row"])]
    if not same or same[0] is not before[0] or before[0]["row"] != entries[0]["row"]:
        return {}
    return {entry["row"]: entry["cost"] for entry in same if "cost" in entry}


def _runs_of(output: Path, setting: Setting, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """
    The runs of `rows` that `output` has, and of those that they are compared with.

    Raises:
        ValueError: one is of another setting or model than is asked for, or no run at all.
    """
    wanted = {row.name: row for row in rows}
    wanted |= {row.name: row for row in rows_of(sorted({row.against for row in rows} - wanted.keys()))}
    runs = []
    for path, found in read_runs(output).items():
        row = wanted.get(found["row"])
        if row is None:
            continue
        before = {name: found[name] for name in ("setting", "video_config")}
        now = json.loads(json.dumps({"setting": vars(setting), "video_config": row.video_config}))
        for name, value in now.items():
            if before[name] != value:
                changed = [key for key in value if before[name].get(key) != value[key]] or list(before[name])
                raise ValueError(
                    f"{path} is of another {name} ({', '.join(changed)}): choose another output, or remove it."
                )
        runs.append(found)
    return runs


def _run(output: Path, setting: Setting, row: Row, seed: int, threads: int, use_cpu: bool, gpu: str):
    """One run, in a process of its own."""
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before anything asks for a GPU
    torch.set_num_threads(threads)
    for name in ("region_learner", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    masks_to = output / "masks" / f"{row.name}.npz" if seed == 0 else None
    result = run(setting, row, seed, output / "corpus", use_cpu, masks_to)
    path = output / "runs" / f"{row.name}-{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)

"""A demonstration of the main job on the built-in corpus, in a few minutes on a CPU."""

import json
import logging
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table as ConsoleTable
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from .corpora import load_corpus, make_corpus
from .evaluation.metrics import RECALL_AT
from .inference import evaluation_mode
from .training import parse_arguments, train
from .visualization import (
    Page,
    Query,
    Result,
    Table,
    draw_regions,
    frame_strip,
    frames_of_height,
    write_page,
)

logger = logging.getLogger(__name__)

RECIPE = "moving_shapes"
NUM_QUERIES = 5
RESULTS_PER_QUERY = 4
STRIP_HEIGHT = 112  # pixels


@dataclass
class Search:
    """
    What a process without this package found: for each query the index of the video that it describes, the indices of
    the best videos, and their scores.
    """

    queries: list[str]
    wanted: list[int]
    order: torch.Tensor
    scores: torch.Tensor


def chance(videos: int) -> dict[str, float]:
    """Returns text-to-video recall in percent, and ranks, of guessing among `videos`."""
    recalls = {f"R@{k}": 100 * min(1.0, k / videos) for k in RECALL_AT}
    return recalls | {"MedR": (videos + 1) / 2, "MeanR": (videos + 1) / 2}


def _times_chance(metrics: dict[str, Any]) -> float:
    return metrics["t2v_R@1"] / chance(metrics["videos"])["R@1"]


def metrics_rows(metrics: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Returns the header and the rows of a retrieval table; the last row is chance."""
    names = [*(f"R@{k}" for k in RECALL_AT), "MedR", "MeanR"]
    guessing = chance(metrics["videos"])
    rows = [
        [label, *(metrics[f"{prefix}_{name}"] for name in names)]
        for label, prefix in (("text to video", "t2v"), ("video to text", "v2t"))
    ]
    return ["", *names], [*rows, [f"chance ({metrics['videos']} videos)", *(guessing[name] for name in names)]]


def print_metrics(console: Console, metrics: dict[str, Any]):
    header, rows = metrics_rows(metrics)
    table = ConsoleTable(*header)
    for row in rows:
        table.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row))
    console.print(table)


def run_demo(output: str | os.PathLike, options: list[str] | None = None, corpus_options: dict | None = None) -> Path:
    """
    Makes the corpus, trains, evaluates and saves a model, loads the checkpoint in a process that cannot import this
    package, searches by words there, and writes a page of what was found, with regions.

    Args:
        output: directory for the corpus, the checkpoint and the page.
        options: options of the training command that override the recipe.
        corpus_options: options of the corpus `moving_shapes` that override those of the recipe.

    Returns:
        The path of the page.

    Raises:
        RuntimeError: the checkpoint cannot be loaded without this package.
    """
    console, output, start = Console(stderr=True), Path(output), time.perf_counter()
    arguments = parse_arguments([RECIPE, *(options or ())], output_dir=str(output / "checkpoint"), overwrite=True)
    model_arguments, data_arguments, training_arguments = arguments

    console.rule("1. Corpus")
    made = (data_arguments.corpus_options or {}) | (corpus_options or {})
    data_arguments.data_dir = str(make_corpus("moving_shapes", output / "corpus", **made))
    data_arguments.corpus_options = {}
    test = load_corpus(data_arguments.corpus, data_arguments.data_dir, data_arguments.test_split or "test")

    console.rule("2. Training")
    results = train(model_arguments, data_arguments, training_arguments)
    checkpoint = output / "checkpoint"

    console.rule(f"3. Retrieval on {len(test)} unseen clips")
    print_metrics(console, results["test"])
    console.print(f"Text-to-video R@1 is {_times_chance(results['test']):.0f} times chance.")

    console.rule("4. Search with AutoModel, in a process without this package")
    found = search_in_fresh_process(checkpoint, test, output)
    for query, order, scores in zip(found.queries, found.order, found.scores):
        best = ", ".join(f"{test[int(i)]['video_id']} ({score:.2f})" for i, score in zip(order, scores))
        console.print(f"[bold]{query}[/bold]\n   {best}", highlight=False, soft_wrap=True)

    console.rule("5. Page")
    page = _page(checkpoint, test, found, results, seconds=time.perf_counter() - start)
    path = write_page(output / "index.html", page)
    console.print(
        f"Finished in {time.perf_counter() - start:.0f} s. Open [bold]{path}[/bold] in a browser.", soft_wrap=True
    )
    console.print(
        f"Wrote the checkpoint to {checkpoint} and the metrics to {checkpoint / 'results.json'}.", soft_wrap=True
    )
    return path


def search_in_fresh_process(checkpoint: Path, dataset, output: Path) -> Search:
    """Runs `demo_standalone.py` on the videos of `dataset` and captions of some of them, evenly spaced."""
    wanted = [round((i + 0.5) * len(dataset) / NUM_QUERIES) for i in range(NUM_QUERIES)]
    queries = [dataset[i]["captions"][0] for i in wanted]
    request, result = output / "search.json", output / "search.safetensors"
    request.write_text(json.dumps({"videos": list(dataset["video"]), "queries": queries}), encoding="utf-8")
    script = Path(__file__).with_name("demo_standalone.py")
    # -I: neither the current directory nor PYTHONPATH; the script blocks an installed package itself.
    command = [sys.executable, "-I", str(script), str(checkpoint), str(request), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The checkpoint cannot be loaded without this package:\n{done.stderr}")
    Console(stderr=True).print(done.stdout.strip(), highlight=False)
    embeds = load_file(result)
    scores, order = (embeds["text_embeds"] @ embeds["video_embeds"].T).topk(RESULTS_PER_QUERY)
    return Search(queries, wanted, order, scores)


def _page(checkpoint: Path, test, found: Search, results: dict[str, Any], seconds: float) -> Page:
    model, processor = AutoModel.from_pretrained(checkpoint), AutoProcessor.from_pretrained(checkpoint)
    queries = []
    for text, wanted, order, scores in zip(found.queries, found.wanted, found.order, found.scores):
        best = [
            _result(model, processor, test[int(i)], float(score), correct=int(i) == wanted)
            for i, score in zip(order, scores)
        ]
        queries.append(Query(text, best))
    header, rows = metrics_rows(results["test"])
    caption = (
        f"Retrieval on {results['test']['videos']} clips that were not trained on, with all of their "
        f"{results['test']['texts']} captions. R@k: how often the right one is among the first k, in percent. "
        "MedR, MeanR: median and mean of its rank."
    )
    video = model.config.video_config
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return Page(
        title="RegionLearner: moving shapes",
        subtitle="Video search by words, with regions learned without labels",
        facts=[
            ("Model", f"{size:.1f} M parameters, {video.num_regions} regions per frame, {video.codebook_size} codes"),
            ("Trained on", f"{results['train']['videos']} clips for {results['train']['train_runtime']:.0f} s"),
            ("Machine", f"{os.cpu_count()} cores, {platform.machine()}, PyTorch {torch.__version__}"),
            ("Whole demo", f"{seconds:.0f} s"),
            ("Text to video", f"R@1 {_times_chance(results['test']):.0f} times chance"),
        ],
        metrics=Table(header, rows, caption=caption, muted={len(rows) - 1}),
        loss=[(entry["step"], float(entry["loss"])) for entry in results["log"] if "loss" in entry],
        queries=queries,
        num_regions=video.num_regions,
    )


def _result(model, processor, row: dict[str, Any], score: float, correct: bool) -> Result:
    pixel_values = processor(videos=[row["video"]])["pixel_values_videos"]
    with evaluation_mode(model):
        region_masks = model.video_model(pixel_values).region_masks[0]
    frames = frames_of_height(processor.video_processor, row["video"], STRIP_HEIGHT, pixel_values.shape[-2])
    drawn = draw_regions(frames, region_masks)
    return Result(
        title=row["video_id"],
        score=score,
        strip=frame_strip([Image.fromarray(frame) for frame in frames], STRIP_HEIGHT),
        regions=frame_strip(drawn, STRIP_HEIGHT),
        captions=row["captions"][:2],
        correct=correct,
    )

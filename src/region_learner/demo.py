"""Demonstrates training, evaluation and search on the built-in corpus, in a few minutes on a CPU."""

import logging
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table as ConsoleTable
from safetensors.numpy import load_file

from .configuration_region_learner import CLIP_POOLINGS
from .corpora import load_corpus, make_corpus
from .corpora.encoding import write_video
from .evaluation.metrics import RECALL_AT
from .files import write_json
from .inference import evaluation_mode
from .loading import load_checkpoint
from .search import NO_MATCH, Hit, VideoIndex, clock, percent
from .search.page import show_hit
from .training import parse_arguments, train
from .video_decoding_region_learner import read_clip
from .visualization import (
    Page,
    Query,
    Result,
    Table,
    write_page,
)

logger = logging.getLogger(__name__)

RECIPE = "moving_shapes"
NUM_VIDEOS = 8
NUM_QUERIES = 4
ABSENT = "two people shake hands in an office"
RESULTS_PER_QUERY = 2
NUM_CHECKED = 16  # windows that are embedded again without this package


@dataclass
class Found:
    """
    The hits of a query.

    Args:
        query: the words.
        hits: the best spans.
        wanted: path, start and end of the clip that the words describe. None if they describe none of the clips.
    """

    query: str
    hits: list[Hit]
    wanted: tuple[str, float, float] | None = None

    def is_right(self, hit: Hit) -> bool:
        """Returns whether the overlap of clip and hit is at least half of each."""
        if self.wanted is None or hit.path != self.wanted[0]:
            return False
        start, end = self.wanted[1:]
        shared = min(hit.end, end) - max(hit.start, start)
        return shared >= max(hit.end - hit.start, end - start) / 2


def chance(videos: int) -> dict[str, float]:
    """Returns the text-to-video recall in percent, and the ranks, of guessing among `videos` videos."""
    recalls = {f"R@{k}": 100 * min(1.0, k / videos) for k in RECALL_AT}
    return recalls | {"MedR": (videos + 1) / 2, "MeanR": (videos + 1) / 2}


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


_OF_SEARCH = ("videos", "videos.index")
_REPLACED = ("checkpoint", *_OF_SEARCH, "index.html")


def run_demo(output: str | os.PathLike, options: list[str] | None = None, corpus_options: dict | None = None) -> Path:
    """
    Makes the corpus, trains, evaluates and saves a model, indexes videos and searches them by text, loads the
    checkpoint in a process that cannot import this package, and writes a page of the hits and their regions.

    Args:
        output: directory for the corpus, the checkpoint and the page.
        options: options of the training command that override the recipe.
        corpus_options: options of the corpus `moving_shapes` that override those of the recipe.

    Returns:
        The path of the page.

    Raises:
        ValueError: `output` contains files of the same names that an earlier demo has not made.
        RuntimeError: the checkpoint cannot be loaded without this package.
    """
    console, output, start = Console(stderr=True), Path(output), time.perf_counter()
    arguments = parse_arguments([RECIPE, *(options or ())], output_dir=str(output / "checkpoint"), overwrite=True)
    model_arguments, data_arguments, training_arguments = arguments
    is_of_demo = (output / "corpus" / "corpus.json").is_file()
    if not is_of_demo and (others := [name for name in _REPLACED if (output / name).exists()]):
        raise ValueError(f"{output} already contains {others[0]}, which the demo would replace: use another --output.")

    console.rule("1. Corpus")
    made = (data_arguments.corpus_options or {}) | (corpus_options or {})
    data_arguments.data_dir = str(make_corpus("moving_shapes", output / "corpus", **made))
    data_arguments.corpus_options = {}
    test = load_corpus(data_arguments.corpus, data_arguments.data_dir, data_arguments.test_split or "test")

    console.rule("2. Training")
    results = train(model_arguments, data_arguments, training_arguments)
    checkpoint = output / "checkpoint"

    console.rule("3. Search")
    index, places = index_videos(checkpoint, test, output)
    found, seen = search_captions(index, places)
    found.append(Found(ABSENT, index.search(ABSENT, k=RESULTS_PER_QUERY, regions=True)))
    rule = (
        f"We searched for the {seen} shortest captions, and show the {len(found) - 1} whose clip ranks first with a "
        f"probability of at least {NO_MATCH:.0%}. The last query does not describe any of the videos."
    )
    console.print(rule, soft_wrap=True)
    for result in found:
        best = result.hits[0]
        console.print(f"[bold]{result.query}[/bold]\n   {_in_words(best)}", highlight=False, soft_wrap=True)

    console.rule(f"4. Retrieval on {len(test)} unseen clips")
    print_metrics(console, results["test"])

    console.rule("5. The checkpoint with AutoModel, in a process without this package")
    check_in_fresh_process(index, output)

    console.rule("6. Page")
    page = _page(index, found, rule, results, seconds=time.perf_counter() - start)
    path = write_page(output / "index.html", page)
    console.print(
        f"Finished in {time.perf_counter() - start:.0f} s. Open [bold]{path}[/bold] in a browser.", soft_wrap=True
    )
    console.print(
        f"Wrote the checkpoint to {checkpoint} and the metrics to {checkpoint / 'results.json'}.", soft_wrap=True
    )
    return path


def index_videos(checkpoint: Path, test: Any, output: Path) -> tuple[VideoIndex, dict[str, tuple[str, float, float]]]:
    """
    Joins the clips of a corpus into a few longer videos, and indexes them.

    Returns:
        The index, and for each caption that describes only one clip the path, start and end (in seconds) of the clip.
    """
    for name in _OF_SEARCH:
        shutil.rmtree(output / name, ignore_errors=True)
    (output / "videos").mkdir()
    places: dict[str, tuple[str, float, float]] = {}
    captions = Counter(caption for row in test for caption in set(row["captions"]))
    size = math.ceil(len(test) / NUM_VIDEOS)
    for number in range(math.ceil(len(test) / size)):
        path = output / "videos" / f"video-{number + 1}.mp4"
        frames: list[np.ndarray] = []
        for row in test.select(range(number * size, min((number + 1) * size, len(test)))):
            clip, metadata = read_clip(row["video"], lambda metadata: range(metadata.total_num_frames))
            fps = metadata.fps or 1.0
            span = len(frames) / fps, (len(frames) + len(clip)) / fps
            places |= {
                caption: (os.path.abspath(path), *span) for caption in row["captions"] if captions[caption] == 1
            }
            frames += list(clip)
        write_video(path, np.stack(frames), fps)
    seconds = len(clip) / fps
    index = VideoIndex.create(output / "videos.index", str(checkpoint), window=seconds, stride=seconds / 2)
    index.update(output / "videos")
    return index, places


def search_captions(index: VideoIndex, places: dict[str, tuple[str, float, float]]) -> tuple[list[Found], int]:
    """
    Searches for captions, shortest first, until `NUM_QUERIES` of them have their clip as the first hit, and this hit
    is not unlikely.

    Returns:
        These hits, and the number of captions that were searched for.
    """
    captions = sorted(places, key=lambda caption: (len(caption.split()), len(caption), caption))
    found: list[Found] = []
    for seen, caption in enumerate(captions, start=1):
        result = Found(caption, index.search(caption, k=RESULTS_PER_QUERY), places[caption])
        if result.hits and result.is_right(result.hits[0]) and result.hits[0].probability >= NO_MATCH:
            found.append(replace(result, hits=index.search(caption, k=RESULTS_PER_QUERY, regions=True)))
        if len(found) == NUM_QUERIES:
            return found, seen
    return found, len(captions)


def check_in_fresh_process(index: VideoIndex, output: Path) -> None:
    """
    Runs `demo_standalone.py` on some windows of the index, and compares its embeddings with those of this package.
    Both compute them on the CPU in float32: the vectors of the index are in bfloat16 if they come from a GPU.

    Raises:
        RuntimeError: the checkpoint cannot be loaded without this package, or its embeddings differ.
    """
    record = index.record(index.paths()[0])
    request, result = output / "check.json", output / "check.safetensors"
    windows = record.spans[:NUM_CHECKED].tolist()
    write_json(request, {"videos": [(record.video.path, start, end) for start, end in windows]})
    script = Path(__file__).with_name("demo_standalone.py")
    # -P: without the current directory; the script blocks an installed package itself.
    command = [sys.executable, "-P", str(script), index.about()["model"], str(request), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The checkpoint cannot be loaded without this package:\n{done.stderr}")
    model, processor = load_checkpoint(index.about()["model"], "retrieval")
    starts, ends = (list(times) for times in zip(*windows))
    with evaluation_mode(model):
        inputs = processor(videos=[record.video.path] * len(windows), start=starts, end=ends)
        expected = model(**inputs).video_embeds.numpy()
    difference = np.abs(load_file(result)["video_embeds"] - expected).max()
    if not difference < 1e-4:
        raise RuntimeError(f"Without this package, the embeddings of the checkpoint differ by {difference:.2g}.")
    message = f"{done.stdout.strip()}: the embeddings of {len(windows)} windows differ by at most {difference:.0e}"
    Console(stderr=True).print(message, highlight=False, soft_wrap=True)


def _in_words(hit: Hit) -> str:
    name = f"{Path(hit.path).name} {clock(hit.start, hit.end)} (probability {percent(hit.probability)})"
    return name if hit.probability >= NO_MATCH else f"Probably nothing in this index matches; the best hit is {name}"


def _page(index: VideoIndex, found: list[Found], rule: str, results: dict[str, Any], seconds: float) -> Page:
    queries = [
        Query(
            result.query,
            [_result(index, hit, None if result.wanted is None else result.is_right(hit)) for hit in result.hits],
            note="" if result.hits[0].probability >= NO_MATCH else "Probably nothing in this index matches.",
        )
        for result in found
    ]
    header, rows = metrics_rows(results["test"])
    caption = (
        f"Retrieval on {results['test']['videos']} clips that were not used in training, with all of their "
        f"{results['test']['texts']} captions. R@k is the percentage of queries whose match is among the first k. "
        "MedR and MeanR are the median and the mean rank of the match."
    )
    video = index.model.config.video_config
    size = sum(parameter.numel() for parameter in index.model.parameters()) / 1e6
    trained = results["train"]
    minutes = sum(index.duration(path) for path in index.paths()) / 60
    return Page(
        title="RegionLearner: moving shapes",
        subtitle="Video search by text, with regions learned without labels",
        facts=[
            ("Searched", f"{len(index)} videos, {minutes:.0f} minutes in total"),
            ("Model", f"{size:.1f} M parameters, {_regions(video)}"),
            ("Trained on", f"{trained['videos']:,} other clips for {trained['train_runtime']:.0f} s"),
            (
                "Machine",
                f"{os.cpu_count()} cores, {platform.machine()}, PyTorch {torch.__version__.partition('+')[0]}",
            ),
            ("Whole demo", f"{seconds:.0f} s"),
            ("Text to video", _recall_and_chance(results["test"])),
        ],
        metrics=Table(header, rows, caption=caption, muted={len(rows) - 1}),
        loss=[(entry["step"], float(entry["loss"])) for entry in results["log"] if "loss" in entry],
        queries=queries,
        queries_note=rule,
        num_regions=video.num_regions,
        score_name="the probabilities that a hit is right",
    )


def _recall_and_chance(metrics: dict[str, Any]) -> str:
    return f"R@1 {metrics['t2v_R@1']:.1f}% (chance: {chance(metrics['videos'])['R@1']:.1f}%)"


def _regions(config: Any) -> str:
    per = "clip" if config.resolved.region_options.pooling in CLIP_POOLINGS else "frame"
    codes = f", {config.codebook_size} codes" if config.codebook_size else ""
    return f"{config.num_regions} regions per {per}{codes}"


def _result(index: VideoIndex, hit: Hit, correct: bool | None) -> Result:
    shown = show_hit(index, hit, with_preview=False)
    return Result(
        title=f"{Path(hit.path).name}  {clock(hit.start, hit.end)}",
        score=percent(hit.probability),
        strip=shown.strip,
        regions=next((picture for phrase, picture in shown.regions if not phrase), None),
        phrases=[(phrase, picture) for phrase, picture in shown.regions if phrase],
        correct=correct,
        note=shown.problem,
    )

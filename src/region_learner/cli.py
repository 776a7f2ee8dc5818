"""The command line, `region-learner COMMAND`."""

import json
import logging
import os
import sys
import traceback
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Column, Table

from .errors import in_one_line, is_for_user
from .interruption import interruptible

if TYPE_CHECKING:
    from .evaluation.results import EvaluationResults

app = typer.Typer(
    name="region-learner",
    help="Video-text dual encoders that learn regions by themselves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
corpus_app = typer.Typer(no_args_is_help=True, help="List, make and prepare corpora.")
app.add_typer(corpus_app, name="corpus")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def _cell(value: Any) -> str:
    if value is None:  # not to be measured
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _print(result: dict[str, Any], as_json: bool):
    """A result on standard output: JSON, or one row a value."""
    if as_json:
        print(json.dumps(result, indent=2))
        return
    table = Table("", "", show_header=False)
    for name, value in result.items():
        table.add_row(name, _cell(value))
    Console().print(table)


def _print_rows(what: str, rows: dict[str, dict[str, Any]]):
    """Results of the same kind on standard output, a row each: `what` says what the rows are."""
    columns = [Column(name, justify="right", no_wrap=True) for name in next(iter(rows.values()))]
    table = Table(Column(what, no_wrap=True), *columns, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name, row in rows.items():
        table.add_row(name, *(_cell(value) for value in row.values()))
    Console().print(table)


def _json_option(name: str, text: str | None) -> dict[str, Any]:
    from .training.arguments import mapping_from_json

    return mapping_from_json(name, text) or {}


def _corpus_options(text: str | None) -> dict[str, Any]:
    options = _json_option("--corpus-options", text)
    if reserved := {"name", "data_dir", "split", "streaming"} & options.keys():
        raise ValueError(f"--corpus-options are those of one corpus alone, not {', '.join(sorted(reserved))}.")
    return options


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where corpus, checkpoint and page go.")] = Path("demo-output"),
):
    """The main job on the built-in corpus: make it, train, evaluate, save, load elsewhere, search, look at regions."""
    from .demo import run_demo

    run_demo(output)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def train(context: typer.Context):
    """Train: `train [RECIPE] [--name value ...] [--json]`; `train --help` lists all names."""
    as_json = "--json" in context.args
    output_dirs: list[str] = []
    logs = redirect_stdout(sys.stderr) if as_json else nullcontext()  # the Trainer prints them

    def how_to_go_on() -> str:
        from .training.checkpoints import how_to_resume

        return how_to_resume(output_dirs)

    with interruptible(how_to_go_on), logs:
        from accelerate import PartialState

        from .training import parse_stages, train_stages

        stages = parse_stages([argument for argument in context.args if argument != "--json"])
        output_dirs += [str(arguments[2].output_dir) for arguments in stages]
        results = train_stages(stages)
    if PartialState().is_main_process:
        _print_training(results, as_json)


def _print_training(results: dict[str, Any], as_json: bool):
    trained = {name: value for name, value in results["train"].items() if value != {}}
    if "test" not in results:
        _print(trained, as_json)
        return
    where = results["tested_on"]
    if as_json:
        tested = {f"{where['split']}_{name}": value for name, value in results["test"].items()}
        _print(trained | tested | {"tested_on": where}, as_json)
        return
    _print(trained, as_json)
    Console().print(_heading(where["corpus"], where["split"], where["trained_on"]), highlight=False, soft_wrap=True)
    _print(results["test"], as_json)


def _heading(corpus: str, split: str, trained_on: bool) -> str:
    return f"{corpus}, split {split}{', which the model was trained on' * trained_on}:"


@app.command()
def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Checkpoint: a directory or Hub name. With --all-folds, {fold} in it stands for the fold's number.",
        ),
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="Name of a benchmark's protocol.")] = None,
    list_protocols: Annotated[bool, typer.Option("--list-protocols", help="Show all protocols.")] = False,
    corpus: Annotated[str | None, typer.Option(help="Name of a corpus, without --protocol (default: folder).")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the corpus lies.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the corpus (default: test).")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="retrieval, multiple_choice, question_answering, classification or zero_shot (default: retrieval)."
        ),
    ] = None,
    corpus_options: Annotated[str | None, typer.Option(help="Options of the corpus, as JSON.")] = None,
    all_folds: Annotated[bool, typer.Option("--all-folds", help="Mean over all folds of the protocol.")] = False,
    clips: Annotated[int, typer.Option(help="Clips of each video, of other frames each, to average.")] = 1,
    window_stride: Annotated[
        int | None, typer.Option(help="Sliding windows instead: a clip for every so many frames of a segment.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="For zero_shot: few (default), name, original, actions, or a text file, one a line."),
    ] = None,
    dual_softmax: Annotated[
        bool, typer.Option("--dual-softmax", help="Retrieval: also re-scored metrics, reported apart.")
    ] = False,
    dual_softmax_temperature: Annotated[float | None, typer.Option(help="By default that of the model.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    workers: Annotated[int, typer.Option(min=0, max=1024, help="Processes that decode.")] = 0,
    max_unreadable: Annotated[
        float, typer.Option(help="Share of videos that may be unreadable, left out and told of; 0 allows none.")
    ] = 1.0,
    output: Annotated[Path | None, typer.Option(help="Also write all of the result to this JSON file.")] = None,
    as_json: Json = False,
):
    """
    Retrieval both ways (each video once, with all of its captions), multiple choice, question answering, or
    recognition of actions, by a classifier (classification) or by prompts (zero_shot). See docs/evaluation.md.
    """
    if list_protocols:
        _print_protocols(as_json)
        return
    if model is None:
        raise typer.BadParameter("Say which checkpoint to evaluate.", param_hint="'MODEL'")

    from .evaluation import EVALUATIONS, Protocol, Views, evaluate_checkpoint, get_protocol
    from .evaluation.results import check_output, write_results
    from .evaluation.tasks import read_prompts

    if protocol is None:
        chosen = Protocol(corpus=corpus or "folder", task=task or "retrieval", split=split or "test")
        if chosen.task not in EVALUATIONS:
            near = did_you_mean(task or "", EVALUATIONS)
            raise ValueError(f"--task {task!r} is not known{near} (tasks: {', '.join(EVALUATIONS)}).")
    else:
        chosen = get_protocol(protocol)
        for name, value in {"corpus": corpus, "split": split, "task": task}.items():
            if value is not None:
                raise ValueError(f"--protocol {protocol} decides on the {name}: leave out --protocol or --{name}.")
    if output is not None:
        check_output(output)
    with interruptible("Nothing was written; the same command starts again."):
        results = evaluate_checkpoint(
            chosen,
            model,
            data_dir,
            options=_corpus_options(corpus_options),
            all_folds=all_folds,
            views=Views(clips, window_stride),
            templates=None if prompts is None else read_prompts(prompts),
            dual_softmax=dual_softmax,
            dual_softmax_temperature=dual_softmax_temperature,
            batch_size=batch_size,
            num_workers=workers,
            max_unreadable=max_unreadable,
        )
    try:
        _print_evaluation(results, as_json)
    finally:  # numbers that took hours are lost neither to a full disk nor to a closed pipe
        if output is not None:
            write_results(results, output)


# Of `EvaluationResults.data`: what the command itself said, and what only the file needs.
_NOT_COUNTED = ("corpus", "data_dir", "split", "trained_on", "options", "sha256")


def _print_evaluation(results: "EvaluationResults", as_json: bool):
    def counts(data: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in data.items() if name not in _NOT_COUNTED}

    shown = results.metrics | counts(results.data)
    data = results.data
    apart: dict[str, Any] = {
        "split": data["split"],
        "trained_on": results.trained_on,
        "folds": results.folds,
        "rescored": results.rescored,
        "notes": results.notes,
    }
    apart = {name: value for name, value in apart.items() if value}
    if as_json:
        _print(shown | apart, as_json)
        return
    Console().print(_heading(data["corpus"], data["split"], results.trained_on), highlight=False, soft_wrap=True)
    if results.folds:
        Console().print(f"{results.mean_of.capitalize()}:")
    _print(shown, as_json)
    for fold in apart.get("folds", ()):
        Console().print(f"Fold {fold['fold']}:")
        _print(fold["metrics"] | counts(fold["data"]), as_json)
    if "rescored" in apart:
        Console().print("Re-scored by dual softmax, with all queries at once:")
        _print(apart["rescored"], as_json)


def _print_protocols(as_json: bool):
    import dataclasses

    from .evaluation.protocols import PROTOCOLS

    if as_json:
        table = {name: dataclasses.asdict(value) | {"metric": value.metric} for name, value in PROTOCOLS.items()}
        print(json.dumps(table, indent=2))
        return
    shown = Table(Column("protocol", no_wrap=True), "task", "metric", "sizes")
    for name, value in PROTOCOLS.items():
        folds = range(1, 1 + max(1, value.folds))
        sizes = {what: dict.fromkeys(f"{value.size(what, fold):,}" for fold in folds) for what in value.sizes}
        in_words = ", ".join(f"{' / '.join(numbers)} {what}" for what, numbers in sizes.items())
        shown.add_row(name, value.task, value.metric, in_words)
    Console().print(shown)


@app.command()
def regions(
    model: Annotated[str, typer.Argument(help="Checkpoint: a directory or Hub name.")],
    videos: Annotated[list[str] | None, typer.Argument(help="Files or URLs.", metavar="[VIDEO...]")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Also draw regions, codes and masks over the frames, into this picture.")
    ] = None,
    corpus: Annotated[str | None, typer.Option(help="A corpus that knows its objects, instead of videos.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the corpus lies, if it has been made.")] = None,
    split: Annotated[str | None, typer.Option(help="Of the corpus (default: test).")] = None,
    corpus_options: Annotated[str | None, typer.Option(help="Options of the corpus, as JSON.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Clips of the corpus at a time (default: 16).")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, max=1024, help="Processes that decode the corpus (default: 0).")
    ] = None,
    as_json: Json = False,
):
    """
    What the regions do in videos, without knowing what is to be seen: how much of a frame they cover, how far they
    overlap, how sharp, different and lasting they are, and how many codes are in use. With --corpus moving_shapes or
    drifting_letters: how well they land on the objects, and what other masks reach. Shares in percent, averaged over
    the videos. See docs/evaluation.md.
    """
    import torch
    from PIL import Image

    from .corpora import load_corpus
    from .evaluation import draw_report, region_quality, region_report
    from .files import naming
    from .loading import check_checkpoint, check_video, load_checkpoint

    check_checkpoint(model)
    videos = videos or []
    for video in videos:
        check_video(video)
    of_corpus = {
        "--data-dir": data_dir,
        "--split": split,
        "--corpus-options": corpus_options,
        "--batch-size": batch_size,
        "--workers": workers,
    }
    if bool(videos) == (corpus is not None):
        raise ValueError("Name videos, or a corpus by --corpus: one of the two.")
    if output is not None:
        if corpus is not None:
            raise ValueError("--output draws the videos that are named, and with --corpus there are none.")
        if output.suffix.lower() not in Image.registered_extensions():
            raise ValueError(f"--output {str(output)!r} is not a picture: give it the extension .png.")
        output.parent.mkdir(parents=True, exist_ok=True)
    dataset = None
    if corpus is not None:
        dataset = load_corpus(corpus, data_dir, split=split or "test", **_corpus_options(corpus_options))
    elif given := [name for name, value in of_corpus.items() if value is not None]:
        raise ValueError(f"{given[0]} goes with --corpus.")
    encoder, processor = load_checkpoint(model, None)
    encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    if dataset is not None:
        quality = region_quality(encoder, processor, dataset, batch_size=batch_size or 16, num_workers=workers or 0)
        if as_json:
            _print(quality, as_json)
            return
        _print_rows("kind", {name: row for name, row in quality.items() if isinstance(row, dict)})
        _print({name: value for name, value in quality.items() if not isinstance(value, dict)}, as_json)
        return
    report = region_report(encoder, processor(videos=videos, return_tensors="pt")["pixel_values_videos"])
    if output is not None:
        with naming(output):
            draw_report(encoder, processor, videos).save(output)
    if as_json:
        _print(report, as_json)
        return
    rows = {str(number): row for number, row in enumerate(report.pop("regions"), start=1)}
    _print_rows("region", rows | {"mean": {name: report.pop(name) for name in rows["1"]}})
    _print(report, as_json)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="The authors' .pth file.")],
    output: Annotated[Path, typer.Argument(help="Directory for the converted checkpoint.")],
    text_config: Annotated[
        str | None, typer.Option(help="Of the text encoder: JSON, a directory or a Hub name.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Directory or Hub name.")] = None,
    config: Annotated[
        str | None, typer.Option(help="What weights cannot tell, as JSON: num_attention_heads, temperature ...")
    ] = None,
    as_json: Json = False,
):
    """Convert a checkpoint of the authors' code. Nothing in the file is run."""
    from .conversion import convert_original_checkpoint

    text = _json_option("--text-config", text_config) if (text_config or "").startswith("{") else text_config
    options = _json_option("--config", config)
    if reserved := {"path", "output_dir", "text_config", "tokenizer"} & set(options):
        raise ValueError(f"--config takes fields of the configuration, not {', '.join(sorted(reserved))}.")
    model = convert_original_checkpoint(source, output, text_config=text, tokenizer=tokenizer, **options)
    video = model.config.video_config
    names = ("hidden_size", "num_hidden_layers", "image_size", "num_frames", "codebook_size", "num_regions")
    _print({"output": str(output)} | {name: getattr(video, name) for name in names}, as_json)


@app.command()
def ablate(
    output: Annotated[Path, typer.Option(help="Directory for the runs, one JSON file each, tables and figures.")],
    setting: Annotated[
        str, typer.Option(help="shapes, letters or shapes_unclipped: corpus, encoders, training.")
    ] = "shapes",
    rows: Annotated[
        str, typer.Option(help="Tables (main, first_form, sweeps, second_corpus, unclipped) or rows: a,b.")
    ] = "main",
    name: Annotated[str | None, typer.Option(help="Of the files with the table; by default what --rows says.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each row.")] = 5,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 1,
    cpu: Annotated[bool, typer.Option("--cpu", help="Even where there is a GPU.")] = False,
    cost: Annotated[bool, typer.Option("--cost", help="Also measure the time of a training step.")] = False,
    figures: Annotated[bool, typer.Option("--figures", help="Also draw the figures (needs matplotlib).")] = False,
    as_json: Json = False,
):
    """
    What each part of the method brings: the same small model with and without it, from several seeds. The same
    command again goes on where it was interrupted.
    """
    from .ablation import SETTINGS, ablate, report, rows_of
    from .configuration_region_learner import did_you_mean

    if setting not in SETTINGS:
        raise ValueError(f"--setting {setting!r} is not known{did_you_mean(setting, SETTINGS)} {', '.join(SETTINGS)}.")
    named = [one.strip() for one in rows.split(",")]
    chosen = rows_of(named)
    name = name or "-".join(named)
    if Path(name).name != name:
        raise ValueError(f"--name {name!r} is no name of a file.")
    if figures:
        from .ablation.figures import pyplot

        pyplot()  # where it is missing, better now than after hours
    entries = ablate(output, SETTINGS[setting], chosen, seeds, jobs, cpu)
    text = report(output, SETTINGS[setting], chosen, entries, name, use_cpu=cpu, cost=cost, figures=figures)
    print(json.dumps(entries, indent=2) if as_json else text)


@app.command()
def card(
    results: Annotated[
        list[Path],
        typer.Argument(help="Files of `region-learner evaluate --output`, of one model, or a checkpoint they lie in."),
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Directory of the weights that were measured, for what its training run says.")
    ] = None,
    repo: Annotated[str | None, typer.Option(help="Its name on the Hub.")] = None,
    license: Annotated[str | None, typer.Option(help="Of the weights, such as apache-2.0.")] = None,
    title: Annotated[str | None, typer.Option()] = None,
    description: Annotated[str, typer.Option(help="In Markdown.")] = "",
    query: Annotated[str | None, typer.Option(help="Text of the example.")] = None,
    output: Annotated[Path | None, typer.Option(help="File to write; by default standard output.")] = None,
):
    """Model card from measured results."""
    from .evaluation.results import results_in
    from .files import naming, near_file
    from .model_card import model_card

    for path in results:
        if not path.exists():
            raise FileNotFoundError(
                f"There is no {path}{near_file(path)}: `card` takes the files that `region-learner evaluate MODEL "
                "--output FILE` writes, or the checkpoint's directory they are in."
            )
    directories = [path for path in results if path.is_dir()]
    if directories:
        if len(results) > 1:
            raise ValueError(f"{directories[0]} is a directory: give it alone, or files.")
        checkpoint, results = checkpoint or directories[0], results_in(directories[0])
    text = model_card(results, checkpoint, repo, license, title, description, query)
    if output is None:
        print(text)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        with naming(output):
            output.write_text(text, encoding="utf-8")  # which may be a pipe or a device


@corpus_app.command("list")
def corpus_list(as_json: Json = False):
    """Names and formats."""
    from .corpora import list_corpora

    _print(list_corpora(), as_json)


@corpus_app.command("make")
def corpus_make(
    output: Annotated[Path, typer.Argument(help="Directory for the corpus.")],
    corpus: Annotated[str, typer.Option(help="moving_shapes or drifting_letters.")] = "moving_shapes",
    options: Annotated[
        str | None, typer.Option(help="Sizes and seed, as JSON; see MovingShapesOptions and DriftingLettersOptions.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=1024, help="By default one a core.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a corpus with other options.")] = False,
):
    """Write a built-in corpus."""
    from .corpora import make_corpus

    made_with = _json_option("--options", options)
    with interruptible("Nothing was written; the same command starts again."):
        path = make_corpus(corpus, output, workers=workers, overwrite=overwrite, **made_with)
    Console(stderr=True).print(f"The corpus is in {path}.")


@corpus_app.command("prepare")
def corpus_prepare(
    output: Annotated[Path, typer.Argument(help="Directory for the shards, OUTPUT/SPLIT/*.tar.")],
    corpus: Annotated[str, typer.Option(help="Name of the corpus.")] = "folder",
    data_dir: Annotated[Path | None, typer.Option(help="Where it lies.")] = None,
    split: Annotated[str, typer.Option(help="Its split, and name of that of the shards.")] = "train",
    corpus_options: Annotated[str | None, typer.Option(help="Options of the corpus, as JSON.")] = None,
    short_side: Annotated[int, typer.Option(help="Pixels; smaller frames stay as they are.")] = 256,
    max_fps: Annotated[float, typer.Option(help="At most this many frames a second; 0 keeps all.")] = 30,
    num_frames: Annotated[
        int | None, typer.Option(help="Fixed length instead: as many frames a clip, spread evenly.")
    ] = None,
    group: Annotated[int, typer.Option(help="Frames in a group of pictures: fewer read faster, and take more.")] = 6,
    crf: Annotated[int, typer.Option(help="Quality of H.264; lower is better.")] = 23,
    clips_per_shard: Annotated[int, typer.Option(help="The unit that an interrupted run goes on with.")] = 500,
    workers: Annotated[int | None, typer.Option(min=1, max=1024, help="By default one a core.")] = None,
    timeout: Annotated[
        float, typer.Option(min=1, max=1e6, help="Seconds that a clip may take; one that takes longer is left out.")
    ] = 1800,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try again what was left out before, as files may have come back.")
    ] = False,
    max_unreadable: Annotated[
        float, typer.Option(help="Share of clips that may be left out because they cannot be read; 0 allows none.")
    ] = 0.1,
    memory: Annotated[
        float, typer.Option(min=0.1, help="GiB that a clip may take; one that takes more is left out (Linux).")
    ] = 4,
    as_json: Json = False,
):
    """
    Re-encode a corpus once, to train on it many times as fast: small frames, short groups of pictures, in WebDataset
    shards (--corpus webdataset reads them). The same command goes on where it was interrupted. Exits with 1 if more
    clips than --max-unreadable cannot be read.
    """
    from .corpora import PrepareOptions, UnreadableError, load_corpus, prepare_corpus

    options = PrepareOptions(short_side, max_fps or None, num_frames, group, crf, clips_per_shard)
    rows = load_corpus(corpus, data_dir, split=split, **_corpus_options(corpus_options))
    size = int(memory * 2**30)
    try:
        with interruptible("The same command goes on with the shards that are not finished."):
            result = prepare_corpus(rows, output, split, options, workers, timeout, retry, size, max_unreadable)
    except UnreadableError as error:
        print(f"region-learner: error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    _print(result, as_json)


@corpus_app.command("check")
def corpus_check(
    corpus: Annotated[str, typer.Option(help="Name of the corpus.")] = "folder",
    data_dir: Annotated[Path | None, typer.Option(help="Where it lies.")] = None,
    split: Annotated[str, typer.Option(help="Its split.")] = "train",
    corpus_options: Annotated[str | None, typer.Option(help="Options of the corpus, as JSON.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=1024, help="By default one a core.")] = None,
    timeout: Annotated[
        float, typer.Option(min=1, max=1e6, help="Seconds that a video may take; one that takes longer is unreadable.")
    ] = 1800,
    max_unreadable: Annotated[
        float, typer.Option(min=0, max=1, help="Share of videos that may be unreadable before it exits with 1.")
    ] = 0,
    memory: Annotated[
        float, typer.Option(min=0.1, help="GiB that a video may take; one that takes more is unreadable (Linux).")
    ] = 4,
    as_json: Json = False,
):
    """
    Find the videos of a corpus that cannot be read: every one is decoded to its end. Exits with 1 if there are more
    than --max-unreadable.
    """
    from .corpora import check_corpus, load_corpus

    rows = load_corpus(corpus, data_dir, split=split, **_corpus_options(corpus_options))
    with interruptible("Nothing was kept; the same command starts again."):
        result = check_corpus(rows, workers, timeout, memory=int(memory * 2**30))
    unreadable = result["unreadable"]
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        for entry in unreadable:
            print(f"{entry['video_id']}: {entry['reason']}")
        Console(stderr=True).print(f"{len(unreadable)} of {result['videos']} videos cannot be read.")
    if len(unreadable) > max_unreadable * result["videos"]:
        raise typer.Exit(1)


def main(argv: list[str] | None = None):
    """
    Runs a command and exits: 0 when it is done, 2 with one line for bad usage or input, 130 when it was interrupted,
    and 1 with a traceback for an error of this program. With REGION_LEARNER_DEBUG set, all errors show a traceback.
    """
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False, markup=False)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s")
    logging.getLogger("region_learner").setLevel(logging.INFO)
    try:
        app(argv)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if is_for_user(error) and not os.environ.get("REGION_LEARNER_DEBUG"):
            print(f"region-learner: error: {in_one_line(error)}", file=sys.stderr)
            sys.exit(2)
        traceback.print_exc()
        if not is_for_user(error):
            print(
                "region-learner: this is an error of region-learner itself: please report it, with the command and "
                "the lines above.",
                file=sys.stderr,
            )
        sys.exit(1)


if __name__ == "__main__":
    main()

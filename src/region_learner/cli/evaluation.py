"""Commands that evaluate: `evaluate`, `mteb` and `regions`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..interruption import interruptible
from .options import AsJson, BatchSize, CorpusOptions, DataDir, MaxMissing, Model, options_of, read_corpus
from .output import print_json, print_result, print_rows, print_table, print_wrote

if TYPE_CHECKING:
    from ..evaluation import Protocol
    from ..evaluation.results import EvaluationResults
    from ..phrase_maps import PhraseMatch

# --- evaluate ------------------------------------------------------------------------------------------------

_ModelOfFolds = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="RegionLearner, CLIP, MetaCLIP 2, SigLIP or SigLIP 2 checkpoint: a directory or a Hub name. With "
        "--all-folds, {fold} in the name is replaced by the number of the fold.",
    ),
]
_Protocol = Annotated[
    str | None, typer.Option(metavar="NAME", help="Protocol of a benchmark, which sets the corpus, split and task.")
]
_ListProtocols = Annotated[bool, typer.Option("--list-protocols", help="List the protocols and exit.")]
_Corpus = Annotated[
    str | None, typer.Option(metavar="NAME", help="Corpus, if there is no --protocol.  [default: folder]")
]
_Split = Annotated[str | None, typer.Option(metavar="NAME", help="Split of the corpus.  [default: test]")]
_Task = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="retrieval, multiple_choice, question_answering, classification, zero_shot or grounding.  "
        "[default: retrieval]",
    ),
]
_ResultsFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also write the full results to this JSON file.")
]
_Workers = Annotated[
    int,
    typer.Option(min=0, max=1024, metavar="N", help="Processes that decode videos. With 0, the main process decodes."),
]
_MaxUnreadable = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        help="Maximum share of unreadable videos, from 0 to 1; more are an error. Unreadable videos are left out.",
    ),
]
_NumFrames = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Frames per clip. By default, as many as the model expects.")
]
_AllFolds = Annotated[bool, typer.Option("--all-folds", help="Evaluate all folds of the protocol and average them.")]
_Clips = Annotated[
    int, typer.Option(metavar="N", help="Clips per video. Their embeddings, or logits of a classifier, are averaged.")
]
_WindowStride = Annotated[
    int | None,
    typer.Option(
        metavar="FRAMES",
        help="Instead of --clips: evaluate several clips. Each takes its frames this many frames later than the "
        "clip before.",
    ),
]
_Prompts = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Prompts for zero_shot: few (three prompts), name (only the name of the class), original (the prompt of "
        "the reference implementation for HMDB51), actions (16 prompts), or a text file with one prompt per line, "
        "with {} for the class.  [default: few]",
    ),
]
_DualSoftmax = Annotated[
    bool, typer.Option("--dual-softmax", help="For retrieval, also report the metrics after dual softmax.")
]
_DualSoftmaxTemperature = Annotated[
    float | None, typer.Option(metavar="T", help="Temperature of --dual-softmax. By default, the model's temperature.")
]
_Rerank = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="K",
        help="For models that compare words with regions (token_dim in the configuration), also report the metrics "
        "after re-ranking the best K candidates of each query by word-region similarity. 0 turns this off. Multiple "
        "choice re-ranks all options, so K may only be 0.  [default: 100]",
    ),
]


def evaluate(
    model: _ModelOfFolds = None,
    protocol: _Protocol = None,
    list_protocols: _ListProtocols = False,
    corpus: _Corpus = None,
    data_dir: DataDir = None,
    split: _Split = None,
    task: _Task = None,
    output: _ResultsFile = None,
    as_json: AsJson = False,
    batch_size: BatchSize = 16,
    workers: _Workers = 0,
    corpus_options: CorpusOptions = None,
    max_missing: MaxMissing = None,
    max_unreadable: _MaxUnreadable = 1.0,
    num_frames: _NumFrames = None,
    all_folds: _AllFolds = False,
    clips: _Clips = 1,
    window_stride: _WindowStride = None,
    prompts: _Prompts = None,
    dual_softmax: _DualSoftmax = False,
    dual_softmax_temperature: _DualSoftmaxTemperature = None,
    rerank: _Rerank = None,
) -> None:
    """
    Evaluate a checkpoint on a benchmark or on your own videos.

    The tasks are retrieval in both directions, multiple choice, question answering, action recognition with a
    classifier (classification) or with prompts (zero_shot), and finding the objects that a caption describes
    (grounding).
    """
    if list_protocols:
        _print_protocols(as_json)
        return
    if model is None:
        raise ValueError("Name the checkpoint to evaluate, as in `region-learner evaluate MODEL`.")

    from ..evaluation import Views, evaluate_checkpoint
    from ..evaluation.results import check_output, write_results
    from ..evaluation.tasks import read_prompts

    chosen = _choose_protocol(protocol, corpus, split, task)
    if output is not None:
        check_output(output)
    with interruptible("Nothing was written. Run the same command to start again."):
        results = evaluate_checkpoint(
            chosen,
            model,
            data_dir,
            options=options_of(chosen.corpus, corpus_options, max_missing),
            num_frames=num_frames,
            all_folds=all_folds,
            views=Views(clips, window_stride),
            templates=None if prompts is None else read_prompts(prompts),
            dual_softmax=dual_softmax,
            dual_softmax_temperature=dual_softmax_temperature,
            rerank=rerank,
            batch_size=batch_size,
            num_workers=workers,
            max_unreadable=max_unreadable,
        )
    try:
        _print_evaluation(results, as_json)
    finally:  # even if printing fails, as into a closed pipe: the results may have taken hours
        if output is not None:
            write_results(results, output)
            print_wrote(output)


def _choose_protocol(protocol: str | None, corpus: str | None, split: str | None, task: str | None) -> "Protocol":
    from ..errors import nearest_or_all
    from ..evaluation import EVALUATIONS, Protocol, get_protocol

    if protocol is not None:
        for name, value in {"corpus": corpus, "split": split, "task": task}.items():
            if value is not None:
                raise ValueError(f"--protocol {protocol} already sets the {name}: leave out --{name} or --protocol.")
        return get_protocol(protocol)
    task = task or "retrieval"
    if task not in EVALUATIONS:
        raise ValueError(f"--task {task!r} is not known{nearest_or_all(task, EVALUATIONS)}")
    return Protocol(corpus=corpus or "folder", task=task, split=split or "test")


# Entries of `EvaluationResults.data` that are not printed: the user gave them, or only the results file needs them.
_NOT_SHOWN = ("corpus", "data_dir", "split", "trained_on", "options", "sha256")


def _print_evaluation(results: "EvaluationResults", as_json: bool) -> None:
    def shown(metrics: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        return metrics | {name: value for name, value in data.items() if name not in _NOT_SHOWN}

    data = results.data
    if as_json:
        apart = {
            "split": data["split"],
            "trained_on": results.trained_on,
            "folds": results.folds,
            "rescored": results.rescored,
            "reranked": results.reranked,
            "notes": results.notes,
        }
        print_json(shown(results.metrics, data) | {name: value for name, value in apart.items() if value})
        return
    print(heading(data["corpus"], data["split"], results.trained_on))
    if results.folds:
        print(f"{results.mean_of.capitalize()}:")
    print_result(shown(results.metrics, data))
    for fold in results.folds or ():
        print(f"Fold {fold['fold']}:")
        print_result(shown(fold["metrics"], fold["data"]))
    if results.rescored:
        print("Re-scored by dual softmax over all queries:")
        print_result(results.rescored)
    candidates = results.protocol.get("rerank")
    print_reranked(results.reranked, f", the best {candidates} of each query" if candidates else ", all options")


def print_reranked(metrics: dict[str, Any] | None, which: str = "") -> None:
    """Prints metrics after re-ranking, if there are any, under a heading of their own."""
    if metrics:
        print(f"Re-ranked by words and regions{which}:")
        print_result(metrics)


def heading(corpus: str, split: str, trained_on: bool) -> str:
    return f"{corpus}, split {split}{', which the model was trained on' * trained_on}:"


def _print_protocols(as_json: bool) -> None:
    from rich.table import Column, Table

    from ..evaluation import PROTOCOLS

    if as_json:
        print_json({name: dataclasses.asdict(value) | {"metric": value.metric} for name, value in PROTOCOLS.items()})
        return
    table = Table(Column("protocol", no_wrap=True), "task", "metric", "sizes")
    for name, value in PROTOCOLS.items():
        folds = range(1, 1 + max(1, value.folds))
        sizes = {what: dict.fromkeys(f"{value.size(what, fold):,}" for fold in folds) for what in value.sizes}
        in_words = ", ".join(f"{' / '.join(numbers)} {what}" for what, numbers in sizes.items())
        table.add_row(name, value.task, value.metric, in_words)
    print_table(table)


# --- mteb ----------------------------------------------------------------------------------------------------

_ModelOfMteb = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="RegionLearner, CLIP, MetaCLIP 2, SigLIP or SigLIP 2 checkpoint: a directory or a Hub name.",
    ),
]
_Tasks = Annotated[list[str] | None, typer.Argument(metavar="TASK", help="Names of tasks, such as MSVDT2VRetrieval.")]
_AllTasks = Annotated[bool, typer.Option("--all", help="Evaluate on all tasks that are not in beta.")]
_ListTasks = Annotated[bool, typer.Option("--list-tasks", help="List the tasks and exit.")]
_MtebOutput = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Directory for MTEB's result files. By default, MTEB's own directory."),
]


def mteb(
    model: _ModelOfMteb = None,
    tasks: _Tasks = None,
    all_tasks: _AllTasks = False,
    list_tasks: _ListTasks = False,
    output: _MtebOutput = None,
    as_json: AsJson = False,
    batch_size: BatchSize = 16,
    workers: _Workers = 0,
) -> None:
    """
    Evaluate a checkpoint on video retrieval tasks of MTEB.

    MTEB downloads the data of the tasks. The main scores are shown in percent; MTEB's own result files contain all
    scores.
    """
    if not list_tasks and (model is None or bool(tasks) == all_tasks):
        raise ValueError("Give a checkpoint, and names of tasks or --all; --list-tasks shows the tasks.")
    if model is not None:
        from ..loading import check_checkpoint

        check_checkpoint(model)

    from ..evaluation.mteb import (
        MTEBEncoder,
        choose_tasks,
        evaluate_on_mteb,
        results_directory,
        video_retrieval_tasks,
    )

    if list_tasks:
        about = {name: task.metadata for name, task in video_retrieval_tasks().items()}
        rows = {name: {"category": of.category, "beta": "yes" if of.is_beta else ""} for name, of in about.items()}
        print_json(rows) if as_json else print_rows("task", rows)
        return
    chosen = choose_tasks(tasks)
    with interruptible("Finished tasks are kept. Run the same command again to evaluate the others."):
        encoder = MTEBEncoder(str(model), num_workers=workers)
        scores, failures = evaluate_on_mteb(encoder, chosen, output, batch_size=batch_size)
    if as_json:
        print_json(scores)
    elif scores:
        print_rows("task", scores)
    if scores:
        print_wrote(results_directory(encoder, output))
    if failures:
        reasons = "; ".join(f"{name}: {message}" for name, message in failures.items())
        raise ValueError(f"{len(failures)} of {len(chosen)} tasks could not be evaluated. {reasons}")


# --- regions -------------------------------------------------------------------------------------------------

_Videos = Annotated[list[str] | None, typer.Argument(help="Video files or URLs.", metavar="VIDEO")]
_Picture = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Also save a picture of the regions, codes and masks. With --query, the picture shows which parts of the "
        "frames match each phrase of the query. For several videos, each picture has the number and name of its video "
        "in its file name.",
    ),
]
_Query = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Show which parts of the videos match each phrase of this text. Needs a model that compares words with "
        "regions (token_dim in the configuration).",
    ),
]
_CorpusOfObjects = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Use a corpus with known objects instead of videos: moving_shapes or drifting_letters."
    ),
]
_CorpusBatchSize = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Clips per batch, with --corpus.  [default: 16]")
]
_CorpusWorkers = Annotated[
    int | None,
    typer.Option(min=0, max=1024, metavar="N", help="Processes that decode videos, with --corpus.  [default: 0]"),
]


def regions(
    model: Model,
    videos: _Videos = None,
    query: _Query = None,
    output: _Picture = None,
    as_json: AsJson = False,
    corpus: _CorpusOfObjects = None,
    data_dir: DataDir = None,
    split: _Split = None,
    corpus_options: CorpusOptions = None,
    batch_size: _CorpusBatchSize = None,
    workers: _CorpusWorkers = None,
) -> None:
    """
    Show and measure the regions of a model.

    For videos, prints how much of a frame each region covers, how much the regions overlap, how sharp, distinct and
    stable they are, and how many codes of the codebook are used. With --query, prints which region matches each phrase
    of a text. With --corpus, prints how well the regions match known objects, compared with simple baseline masks.
    Shares are percentages, averaged over the videos, or with --corpus over the objects. (With --query, each video is
    shown separately, and weights are from 0 to 1.)
    """
    from ..loading import check_checkpoint, check_video

    check_checkpoint(model)
    videos = videos or []
    for video in videos:
        check_video(video)
    if bool(videos) == (corpus is not None):
        raise ValueError("Give either videos or --corpus NAME.")
    if corpus is not None:
        for option, value in {"--output": output, "--query": query}.items():
            if value is not None:
                raise ValueError(f"{option} does not work with --corpus: leave one of the two out.")
        dataset = read_corpus(corpus, data_dir, split or "test", corpus_options, None)
        _print_quality(model, dataset, batch_size or 16, workers or 0, as_json)
        return
    of_corpus = {
        "--data-dir": data_dir,
        "--split": split,
        "--corpus-options": corpus_options,
        "--batch-size": batch_size,
        "--workers": workers,
    }
    if given := [name for name, value in of_corpus.items() if value is not None]:
        raise ValueError(f"{given[0]} needs --corpus NAME: add it, or leave {given[0]} out.")
    if output is not None:
        _check_picture(output)
    if query is None:
        _print_regions(model, videos, output, as_json)
    else:
        _print_phrases(model, videos, query, output, as_json)


def _check_picture(output: Path) -> None:
    from PIL import Image

    if Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--output {str(output)!r} does not have the extension of an image file, such as .png.")
    output.parent.mkdir(parents=True, exist_ok=True)


def _load(model: str, task: str | None = None) -> tuple[Any, Any]:
    import torch

    from ..loading import load_checkpoint

    encoder, processor = load_checkpoint(model, task)
    return encoder.to("cuda" if torch.cuda.is_available() else "cpu"), processor


def _print_quality(model: str, dataset: Any, batch_size: int, workers: int, as_json: bool) -> None:
    """Prints how well the regions match the objects of a corpus."""
    from ..evaluation import region_quality
    from ..evaluation.provenance import describe_model

    with interruptible("Nothing was written. Run the same command to start again."):
        encoder, processor = _load(model)
        quality = region_quality(encoder, processor, dataset, batch_size=batch_size, num_workers=workers)
    if as_json:
        print_json({"model": describe_model(encoder, model)} | quality)
        return
    print_rows("kind", {name: row for name, row in quality.items() if isinstance(row, dict)})
    print_result({name: value for name, value in quality.items() if not isinstance(value, dict)})


def _print_regions(model: str, videos: list[str], output: Path | None, as_json: bool) -> None:
    """Prints statistics of the regions in videos, and draws the regions."""
    from ..evaluation import draw_report, region_report
    from ..files import naming

    encoder, processor = _load(model)
    report = region_report(encoder, processor(videos=videos, return_tensors="pt")["pixel_values_videos"])
    pictures = _picture_files(output, videos)
    for video, picture in pictures.items():
        with naming(picture):
            draw_report(encoder, processor, video).save(picture)
    if as_json:
        print_json(report)
    else:
        rows = {str(number): row for number, row in enumerate(report.pop("regions"), start=1)}
        print_rows("region", rows | {"mean": {name: report.pop(name) for name in rows["1"]}})
        print_result(report)
    for picture in pictures.values():
        print_wrote(picture)


def _picture_files(output: Path | None, videos: list[str]) -> dict[str, Path]:
    """Returns the file of the picture of each video: `output`, or for several videos, a file beside it for each."""
    if output is None:
        return {}
    if len(videos) == 1:
        return {videos[0]: output}
    return {
        video: output.with_name(f"{output.stem}-{number}-{Path(video).stem}{output.suffix}")
        for number, video in enumerate(videos, start=1)
    }


def _print_phrases(model: str, videos: list[str], query: str, output: Path | None, as_json: bool) -> None:
    """Prints which parts of videos match the phrases of a text, and draws these parts."""
    from ..evaluation import draw_phrases
    from ..files import naming
    from ..phrase_maps import find_words

    encoder, processor = _load(model, "grounding")
    found = {
        video: find_words(
            encoder, processor, processor(videos=[video], return_tensors="pt")["pixel_values_videos"], query
        )
        for video in videos
    }
    pictures = _picture_files(output, videos)
    for video, picture in pictures.items():
        with naming(picture):
            draw_phrases(encoder, processor, video, query).save(picture)
    from ..files import readable

    rows = {video: [_phrase_row(match) for match in matches] for video, matches in found.items()}
    if as_json:
        print_json(rows)
    else:
        for video, of_video in rows.items():
            print(f"{readable(video)}:")
            print_rows("phrase", {f"{number} {row.pop('text')}": row for number, row in enumerate(of_video)})
    for picture in pictures.values():
        print_wrote(picture)


def _phrase_row(match: "PhraseMatch") -> dict[str, Any]:
    """Returns what is printed for a phrase. Frames and regions are counted from 1, as a reader would."""
    peak = match.peak
    return {
        "text": match.text,
        "weight": match.weight,
        "similarity": match.similarity,
        "region": None if match.region is None else match.region + 1,
        "frame": None if peak is None else peak[0] + 1,
        "x": None if peak is None else 100 * peak[1],
        "y": None if peak is None else 100 * peak[2],
    }

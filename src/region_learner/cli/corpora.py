"""`region-learner corpus COMMAND`: commands for data."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..interruption import interruptible
from .commands import Commands
from .options import (
    AsJson,
    BatchSize,
    Corpus,
    CorpusOptions,
    DataDir,
    MaxMissing,
    Memory,
    Model,
    Split,
    Timeout,
    Workers,
    mapping,
    read_corpus,
)
from .output import print_json, print_result, print_wrote

corpus_app = typer.Typer(cls=Commands, rich_markup_mode=None, help="List, make, prepare and check corpora.")


@corpus_app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the corpora and their formats."""
    from ..corpora import list_corpora

    print_result(list_corpora(), as_json)


@corpus_app.command()
def make(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Directory for the corpus.")],
    corpus: Annotated[
        str, typer.Option(metavar="NAME", help="Corpus to make: moving_shapes or drifting_letters.")
    ] = "moving_shapes",
    corpus_options: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Options such as sizes and seed, as JSON; see MovingShapesOptions and DriftingLettersOptions.",
        ),
    ] = None,
    workers: Workers = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing corpus that was made with other options.")
    ] = False,
) -> None:
    """Make a built-in corpus."""
    from ..corpora import make_corpus

    options = mapping("--corpus-options", corpus_options)
    with interruptible("Nothing was written. Run the same command to start again."):
        make_corpus(corpus, output, workers=workers, overwrite=overwrite, **options)


@corpus_app.command()
def prepare(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Directory for the shards, OUTPUT/SPLIT/*.tar.")],
    corpus: Corpus = "folder",
    data_dir: DataDir = None,
    split: Split = "train",
    corpus_options: CorpusOptions = None,
    max_missing: MaxMissing = None,
    short_side: Annotated[
        int, typer.Option(metavar="PIXELS", help="Short side of the frames. Smaller videos keep their size.")
    ] = 256,
    max_fps: Annotated[float, typer.Option(metavar="FPS", help="Maximum frames per second. 0 keeps all frames.")] = 30,
    num_frames: Annotated[
        int | None, typer.Option(metavar="N", help="Frames per clip, evenly spaced, instead of --max-fps.")
    ] = None,
    group: Annotated[
        int,
        typer.Option(
            metavar="N", help="Frames from one key frame to the next. Low values decode faster, but make larger files."
        ),
    ] = 6,
    crf: Annotated[
        int, typer.Option(metavar="N", help="Quality of H.264 (CRF). Lower values are better, but make larger files.")
    ] = 23,
    clips_per_shard: Annotated[
        int, typer.Option(metavar="N", help="Clips per shard. A resumed run repeats its unfinished shard.")
    ] = 500,
    workers: Workers = None,
    timeout: Timeout = 1800,
    memory: Memory = 4,
    retry: Annotated[bool, typer.Option("--retry", help="Retry clips that were left out before.")] = False,
    max_unreadable: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Maximum share of unreadable clips. Unreadable clips are left out."),
    ] = 0.1,
    as_json: AsJson = False,
) -> None:
    """
    Re-encode videos to a smaller size, and pack them into shards.

    Smaller frames and more frequent key frames make training faster. To train on the shards, use `region-learner train
    --corpus webdataset`. Run the same command again to resume an interrupted run. The exit code is 1 if more clips are
    unreadable than --max-unreadable allows.
    """
    from ..corpora import PrepareOptions, UnreadableError, prepare_corpus
    from ..corpora.registry import allows_mirroring

    options = PrepareOptions(short_side, max_fps or None, num_frames, group, crf, clips_per_shard)
    _refuse_features(corpus)
    rows = read_corpus(corpus, data_dir, split, corpus_options, max_missing)
    shards = mapping("--corpus-options", corpus_options).get("shards") if corpus == "webdataset" else None
    size, mirrors = int(memory * 2**30), allows_mirroring(corpus, data_dir, shards)
    try:
        with interruptible("Run the same command again to write the remaining shards."):
            result = prepare_corpus(
                rows, output, split, options, workers, timeout, retry, size, max_unreadable, horizontal_flip=mirrors
            )
    except UnreadableError as error:
        print(f"region-learner: error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    print_result(result, as_json)
    print_wrote(output / split)


@corpus_app.command()
def features(
    model: Model,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Directory for the features, which are written to DIR/SPLIT.")
    ],
    corpus: Corpus = "folder",
    data_dir: DataDir = None,
    split: Split = "train",
    corpus_options: CorpusOptions = None,
    max_missing: MaxMissing = None,
    num_frames: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Frames per clip. By default, as many as the model expects.")
    ] = None,
    batch_size: BatchSize = 16,
    workers: Workers = None,
    max_unreadable: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Maximum share of unreadable videos; more are an error. Unreadable videos are left out.",
        ),
    ] = 0.1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing features in DIR/SPLIT.")] = False,
    as_json: AsJson = False,
) -> None:
    """
    Compute and store the features of a frozen backbone.

    `region-learner train --corpus features` can then train the regions and the text encoder without decoding videos.
    Run the same command again to resume an interrupted run.
    """
    from ..features import compute_features

    rows = read_corpus(corpus, data_dir, split, corpus_options, max_missing)
    with interruptible("Run the same command again to write the remaining files."):
        result = compute_features(
            model,
            rows,
            output,
            split,
            num_frames=num_frames,
            batch_size=batch_size,
            num_workers=workers or os.cpu_count() or 1,
            max_unreadable=max_unreadable,
            overwrite=overwrite,
        )
    print_result(result, as_json)
    size = result["bytes"]
    amount = f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
    print_wrote(f"features of {result['videos']} videos ({amount}) to {output / split}")


def _refuse_features(corpus: str | None) -> None:
    if corpus == "features":
        raise ValueError("The corpus 'features' has features instead of videos: name the corpus that they come from.")


@corpus_app.command()
def check(
    corpus: Corpus = "folder",
    data_dir: DataDir = None,
    split: Split = "train",
    corpus_options: CorpusOptions = None,
    max_missing: MaxMissing = None,
    workers: Workers = None,
    timeout: Timeout = 1800,
    memory: Memory = 4,
    max_unreadable: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Maximum share of unreadable videos.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """
    Find the videos that cannot be read.

    Decodes every video from start to end. The exit code is 1 if more videos are unreadable than --max-unreadable
    allows.
    """
    from ..corpora import check_corpus

    _refuse_features(corpus)
    rows = read_corpus(corpus, data_dir, split, corpus_options, max_missing)
    with interruptible("Nothing was written. Run the same command to start again."):
        result = check_corpus(rows, workers, timeout, memory=int(memory * 2**30))
    unreadable = result["unreadable"]
    if as_json:
        print_json(result)
    else:
        for entry in unreadable:
            print(f"{entry['video_id']}: {entry['reason']}")
        print(f"{len(unreadable)} of {result['videos']} videos cannot be read.", file=sys.stderr)
    if len(unreadable) > max_unreadable * result["videos"]:
        raise typer.Exit(1)

"""Commands for more videos than one machine embeds, or searches: `embed` and `index export`."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..interruption import interruptible
from .options import AsJson, CorpusOptions, DataDir, MaxMissing, Model, Workers
from .output import print_json, print_wrote
from .search import given_videos, print_unreadable

if TYPE_CHECKING:
    from ..search import UpdateReport


def embed(
    model: Model,
    videos: Annotated[
        list[str] | None,
        typer.Argument(metavar="VIDEOS...", help="Folders, files, shards or lists, as for `region-learner index`."),
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Directory of the parts. Required.")] = None,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Only embed share I of N of the videos; I counts from 0.")
    ] = "0/1",
    window: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Length of the windows; by default 10.")
    ] = None,
    stride: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="From the start of one window to the next; by default half a window."),
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Frames per window; by default those of the model.")
    ] = None,
    tokens: Annotated[
        bool | None,
        typer.Option(
            "--tokens/--no-tokens",
            help="Whether to keep the tokens of each window. By default, they are kept if the model has any "
            "(token_dim).",
        ),
    ] = None,
    workers: Workers = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try unreadable files again.")] = False,
    corpus: Annotated[
        str | None, typer.Option(metavar="NAME", help="Embed the videos of a corpus instead of VIDEOS.")
    ] = None,
    data_dir: DataDir = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Split of the corpus; by default train.")] = None,
    corpus_options: CorpusOptions = None,
    max_missing: MaxMissing = None,
    as_json: AsJson = False,
) -> None:
    """
    Embed a share of many videos into Parquet files.

    `region-learner index DIR --from-embeddings PARTS` joins them into an index.
    The same command again embeds new and changed videos, and resumes an interrupted run.
    """
    if output is None:
        raise ValueError("--output DIR is needed: where the parts are written")
    share = _parse_shard(shard)
    rows, root = given_videos(videos, corpus, data_dir, split, corpus_options, max_missing)
    from ..search import WINDOW, embed_videos

    window = WINDOW if window is None else window
    with interruptible("The same command resumes with the videos that are not in parts yet."):
        report = embed_videos(
            model,
            rows,
            output,
            share,
            window=window,
            stride=window / 2 if stride is None else stride,
            num_frames=num_frames,
            tokens=tokens,
            retry=retry,
            num_workers=workers or os.cpu_count() or 1,
            root=root,
        )
    if as_json:
        print_json({**vars(report), "shard": shard, "output": str(output)})
    else:
        print_unreadable(report)
        print(f"{report}.")
        print_wrote(f"{output}: shard {shard}. Join all: region-learner index DIR --from-embeddings {output}")


def _parse_shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not found or int(found[1]) >= int(found[2]):
        raise ValueError(f"--shard {text!r} must be I/N with I from 0 to N - 1, such as 0/4")
    return int(found[1]), int(found[2])


def index_parts(directory: Path, parts: list[Path]) -> "UpdateReport":
    """Makes an index from parts, or adds them to one: `index --from-embeddings`."""
    from ..search.jobs import join_parts

    with interruptible("The same command resumes with the videos that are not in the index yet."):
        return join_parts(directory, parts)


def index_export(
    index: Annotated[Path | None, typer.Option(metavar="DIR", help="Directory of the index. Required.")] = None,
    to: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="parquet, lance (LanceDB) or qdrant. Required.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="WHERE",
            help="Directory of the Parquet files or of the LanceDB database; or the address of a Qdrant server "
            "(key in QDRANT_API_KEY), or a directory for Qdrant's local mode. Required.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the table or collection; by default videos.")
    ] = None,
) -> None:
    """
    Copy an index to Parquet files, LanceDB or Qdrant.

    Each window becomes a row with its vector, path, start and end.
    """
    if index is None or to is None or output is None:
        raise ValueError("--index DIR, --to FORMAT and --output WHERE are needed")
    from ..search import VideoIndex
    from ..search.export import export_index

    with interruptible("The index is as it was; delete what was exported before the command is run again."):
        count = export_index(VideoIndex.open(index), to, output, name)
    print_wrote(f"{count} windows to {output}")

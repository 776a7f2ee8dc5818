"""Commands for collections that are too large for one machine: `embed` and `index export`."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..interruption import interruptible
from .options import (
    AsJson,
    CorpusInstead,
    CorpusOptions,
    DataDir,
    FramesPerWindow,
    IndexDir,
    MaxMissing,
    Model,
    Retry,
    SplitOfCorpus,
    Stride,
    Tokens,
    Window,
    Workers,
)
from .output import print_json, print_wrote
from .search import given_videos, print_unreadable

if TYPE_CHECKING:
    from ..search import UpdateReport


def embed(
    model: Model,
    videos: Annotated[
        list[str] | None,
        typer.Argument(metavar="VIDEOS", help="Folders, files, .tar shards or lists, as for `region-learner index`."),
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Directory for the parts.  [required]")] = None,
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N", help="Embed only every N-th video, starting with number I, which is counted from 0."
        ),
    ] = "0/1",
    window: Window = None,
    stride: Stride = None,
    num_frames: FramesPerWindow = None,
    tokens: Tokens = None,
    workers: Workers = None,
    retry: Retry = False,
    corpus: CorpusInstead = None,
    data_dir: DataDir = None,
    split: SplitOfCorpus = None,
    corpus_options: CorpusOptions = None,
    max_missing: MaxMissing = None,
    as_json: AsJson = False,
) -> None:
    """
    Embed videos, or a share of them, into Parquet files.

    With --shard, several machines can each embed a share of the videos. `region-learner index --index DIR
    --from-embeddings PARTS` then joins the Parquet files, called parts, into an index. Run the same command again to
    embed new and changed videos, or to resume an interrupted run.
    """
    if output is None:
        raise ValueError("--output DIR is missing: name a directory for the parts")
    share = _parse_shard(shard)
    rows, root = given_videos(videos, corpus, data_dir, split, corpus_options, max_missing)
    from ..search import WINDOW, embed_videos

    window = WINDOW if window is None else window
    with interruptible("Run the same command again to embed the remaining videos."):
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
        print_wrote(
            f"{output}: shard {shard}. Join all shards: region-learner index --index DIR --from-embeddings {output}"
        )


def _parse_shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not found or int(found[1]) >= int(found[2]):
        raise ValueError(f"--shard must be I/N with I from 0 to N - 1, such as 0/4, not {text!r}")
    return int(found[1]), int(found[2])


def index_parts(directory: Path, parts: list[Path]) -> "UpdateReport":
    """Makes an index from parts, or adds them to an existing one: `index --from-embeddings`."""
    from ..search.jobs import join_parts

    with interruptible("Run the same command again to add the remaining videos."):
        return join_parts(directory, parts)


def index_export(
    index: IndexDir = None,
    to: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="parquet, lance (LanceDB) or qdrant.  [required]")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="WHERE",
            help="Where to write: a directory (Parquet, LanceDB, or Qdrant's local mode), or the address of a LanceDB "
            "database or of a Qdrant server, whose key is read from QDRANT_API_KEY.  [required]",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the table or collection.  [default: videos]")
    ] = None,
) -> None:
    """
    Copy an index to Parquet files, LanceDB or Qdrant.

    Each window becomes a row with its vector, path, start and end.
    """
    if index is None or to is None or output is None:
        raise ValueError("--index DIR, --to FORMAT and --output WHERE are all required")
    from ..errors import nearest_or_all
    from ..search import VideoIndex
    from ..search.export import FORMATS, export_index

    if to not in FORMATS:
        raise ValueError(f"--to {to!r} is not known{nearest_or_all(to, FORMATS)}")
    with interruptible("The index is unchanged. Delete what was exported before you run the command again."):
        count = export_index(VideoIndex.open(index), to, output, name)
    print_wrote(f"{count} windows to {output}")

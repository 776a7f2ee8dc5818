"""Commands that search: `index`, `search` and `app`."""

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    Retry,
    SplitOfCorpus,
    Stride,
    Tokens,
    Window,
    Workers,
    mapping,
    read_corpus,
)
from .output import print_json, print_wrote, without_loading_bars

if TYPE_CHECKING:
    from ..search import Hit, UpdateReport, VideoIndex

_Index = Annotated[Path, typer.Argument(metavar="INDEX", help="Directory of the index.")]
_MovedModel = Annotated[
    str | None, typer.Option(metavar="MODEL", help="New location of the index's model, if it has moved.")
]

_LONGEST_STEM = 180  # bytes, of the names of exported files; most file systems allow 255 for a whole name

# --- index ---------------------------------------------------------------------------------------------------


def index(
    videos: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="VIDEOS",
            help="Folders (searched at any depth), video files, shards (.tar), or lists (.txt, one path per line).",
        ),
    ] = None,
    index: IndexDir = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Model of a new index: a RegionLearner, CLIP, MetaCLIP 2, SigLIP or SigLIP 2 checkpoint, as a "
            "directory or a Hub name.  [default: google/siglip2-base-patch16-224]",
        ),
    ] = None,
    window: Window = None,
    stride: Stride = None,
    num_frames: FramesPerWindow = None,
    tokens: Tokens = None,
    workers: Workers = None,
    keep_missing: Annotated[
        bool, typer.Option("--keep-missing", help="Keep indexed videos whose files no longer exist.")
    ] = False,
    retry: Retry = False,
    from_embeddings: Annotated[
        list[Path] | None,
        typer.Option(metavar="PARTS", help="Read the output of `region-learner embed` instead of VIDEOS."),
    ] = None,
    corpus: CorpusInstead = None,
    data_dir: DataDir = None,
    split: SplitOfCorpus = None,
    corpus_options: CorpusOptions = None,
    max_missing: MaxMissing = None,
    as_json: AsJson = False,
) -> None:
    """
    Index videos for `region-learner search`.

    Run the same command again to update the index (it adds new videos, updates changed videos, and removes videos that
    no longer exist), or to resume an interrupted run.
    """
    if from_embeddings:
        given = (
            model,
            window,
            stride,
            num_frames,
            None if tokens is None else "tokens",  # --no-tokens is False, but it was given, too
            workers,
            keep_missing,
            retry,
            corpus,
            data_dir,
            split,
            corpus_options,
            max_missing,
        )
        others = any(value is not None and value is not False for value in given)
        _index_parts(index, videos, from_embeddings, others, as_json)
        return
    if index is None:
        raise ValueError("--index DIR is missing: name the directory of the index, which is created if it is new")
    rows, root = given_videos(videos, corpus, data_dir, split, corpus_options, max_missing)
    from ..search import find_videos

    with interruptible("Run the same command again to index the remaining videos."):
        found = find_videos(rows, root)  # reports wrong paths before the model is loaded
        opened = _open_or_create(index, model, window, stride, num_frames, tokens)
        report = opened.update(found, not keep_missing, retry=retry, num_workers=workers or os.cpu_count() or 1)
    _print_report(opened, report, as_json)
    if report.unreadable and not len(opened):
        raise typer.Exit(1)


def given_videos(
    videos: list[str] | None,
    corpus: str | None,
    data_dir: Path | None,
    split: str | None,
    corpus_options: str | None,
    max_missing: float | None,
) -> tuple[Any, str]:
    """
    Returns what to index, which is paths or the rows of a corpus, and a name for the corpus.

    Raises:
        ValueError: both paths and a corpus are given, or neither, or options of a corpus without one.
    """
    if bool(videos) == bool(corpus):
        raise ValueError("Give either VIDEOS or --corpus NAME with --data-dir DIR.")
    if corpus:
        split = split or "train"
        name = f"{corpus} {'' if data_dir is None else os.path.abspath(data_dir)} {split}"
        if options := mapping("--corpus-options", corpus_options):  # such as the protocol, which selects other videos
            name += f" {json.dumps(options, sort_keys=True)}"
        return read_corpus(corpus, data_dir, split, corpus_options, max_missing), name
    others = {"data-dir": data_dir, "split": split, "corpus-options": corpus_options, "max-missing": max_missing}
    if unused := [f"--{name}" for name, value in others.items() if value is not None]:
        cure = "add --corpus NAME, or leave it out" if len(unused) == 1 else "add --corpus NAME, or leave them out"
        raise ValueError(f"{', '.join(unused)} {'applies' if len(unused) == 1 else 'apply'} only to a corpus: {cure}.")
    return videos, ""


def _index_parts(
    index: Path | None, videos: list[str] | None, parts: list[Path], has_options: bool, as_json: bool
) -> None:
    """Makes an index from parts: `index DIR --from-embeddings PARTS`, or with `--index DIR`."""
    places = [*(videos or ()), *([] if index is None else [index])]
    if len(places) != 1 or has_options:
        raise ValueError(
            "--from-embeddings PARTS takes only --index DIR and --json: give one directory for the index, and leave "
            "out VIDEOS and all other options, because the parts have recorded them."
        )
    from ..search import VideoIndex
    from .scale import index_parts

    report = index_parts(Path(places[0]), parts)
    _print_report(VideoIndex.open(places[0]), report, as_json)


def _open_or_create(
    directory: Path,
    model: str | None,
    window: float | None,
    stride: float | None,
    num_frames: int | None,
    tokens: bool | None,
) -> "VideoIndex":
    """
    Opens an index, or creates it if it does not exist.

    Raises:
        ValueError: the existing index was made with other options.
    """
    from ..search import MODEL, WINDOW, VideoIndex

    if not (directory / "index.sqlite").exists():
        window = WINDOW if window is None else window
        stride = window / 2 if stride is None else stride
        model = MODEL if model is None else model
        return VideoIndex.create(directory, model, window, stride, num_frames, tokens)
    opened = VideoIndex.open(directory, model)
    made_with = opened.about()
    for name, value in (("window", window), ("stride", stride), ("num_frames", num_frames)):
        if value is not None and value != made_with[name]:
            raise ValueError(
                f"{directory} was made with --{name.replace('_', '-')} {made_with[name]:g}, not {value:g}: leave the "
                "option out, or create another index."
            )
    keeps = made_with["tokens"] is not None
    if tokens is not None and tokens != keeps:
        raise ValueError(
            f"{directory} was made {'with' if keeps else 'without'} tokens: leave the option out, or create another "
            "index."
        )
    if model is not None:
        _ = opened.embedder  # raises an error if the index was made with another model
    return opened


def _print_report(index: "VideoIndex", report: "UpdateReport", as_json: bool) -> None:
    if as_json:
        print_json({**vars(report), "videos": len(index), "index": str(index.directory)})
        return
    print_unreadable(report)
    print(f"{report}.")
    size = index.token_bytes_per_hour()
    tokens = f" Tokens (embeddings of parts of the frames) take {size / 1e6:.2f} MB per hour of video." if size else ""
    search = f'region-learner search {index.directory} "words"'
    print_wrote(f"{index.directory}: {len(index)} videos.{tokens} Search: {search}")


def print_unreadable(report: "UpdateReport") -> None:
    from ..files import readable

    for path, reason in report.unreadable.items():
        path, reason = readable(path), readable(reason)
        print(f"unreadable: {reason if path in reason else f'{path}: {reason}'}")
    if report.unreadable:
        print("Unreadable files are skipped until they change; --retry tries them again.", file=sys.stderr)


# --- search --------------------------------------------------------------------------------------------------


def search(
    index: _Index,
    queries: Annotated[
        list[str] | None, typer.Argument(metavar="QUERY", help="Text queries. Put each one in quotes.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Search with an image. May be repeated.")
    ] = None,
    video: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:START-END]",
            help="Search with a video, or a span of one. Times are in seconds, or as 1:02:03. May be repeated.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Maximum number of hits per query.")] = 10,
    within: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Search only the videos in this folder, shard or file.")
    ] = None,
    min_probability: Annotated[
        float | None, typer.Option(min=0, max=1, metavar="P", help="Leave out hits with a probability below P.")
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(min=-1, max=1, metavar="S", help="Leave out hits with a cosine similarity below S."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page that shows and plays the hits.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Cut each hit out of its video and save it in this directory.")
    ] = None,
    model: _MovedModel = None,
    as_json: AsJson = False,
) -> None:
    """
    Search an index by text, image or video.

    For each hit, prints the probability that it matches the query, its score, its start and end, and its video.
    """
    wanted: list[tuple[str, dict[str, Any]]] = [(words, {"text": words}) for words in queries or ()]
    for path in image or ():
        _check_file(path)
        wanted.append((str(path), {"image": str(path)}))
    for name in video or ():
        wanted.append((name, {"video": _parse_video(name)}))
    if not wanted:
        raise ValueError('Give a query: words in quotes, such as "a dog jumps", --image FILE or --video FILE.')
    from ..search import VideoIndex

    opened = VideoIndex.open(index, model)
    options: dict[str, Any] = {
        "k": top,
        "within": within,
        "min_score": min_score,
        "min_probability": min_probability,
        "regions": html is not None,
    }
    with without_loading_bars():
        results = [(name, opened.search(**query, **options)) for name, query in wanted]
    if as_json:
        print_json([{"query": name, "hits": [_as_json(hit) for hit in hits]} for name, hits in results])
    else:
        for name, hits in results:
            _print_hits(name, hits, heading=len(results) > 1)
    if export is not None:
        _export(opened, results, export)
    if html is not None:
        from ..search.page import write_search_page

        print_wrote(write_search_page(html, opened, results))


_TIME = r"(?:\d+:){0,2}\d+(?:\.\d+)?"


def _parse_video(text: str) -> Any:
    """
    Parses FILE or FILE:START-END, with times such as 42, 0:42 or 1:02:03.5.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if os.path.exists(text):
        return text
    if match := re.fullmatch(rf"(.+?):({_TIME})-({_TIME})", text):
        path, start, end = match.groups()
        _check_file(Path(path))
        return path, _seconds(start), _seconds(end)
    _check_file(Path(text))
    return text


def _check_file(path: Path) -> None:
    from ..files import near_file

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}{near_file(path)}")


def _seconds(text: str) -> float:
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part)
    return total


def _as_json(hit: "Hit") -> dict[str, Any]:
    names = ("path", "start", "end", "score", "probability")
    return {name: getattr(hit, name) for name in names}


def _print_hits(name: str, hits: "list[Hit]", heading: bool) -> None:
    from ..files import readable
    from ..search import NO_MATCH, clock, percent

    if heading:
        print(f"{readable(name)}:")
    if not hits:
        print("Nothing was found: no hit passes the filters, or the index is empty.", file=sys.stderr)
        return
    if hits[0].probability < NO_MATCH:
        print(
            f"Probably nothing in this index matches: the best hit has a probability below {percent(NO_MATCH)}.",
            file=sys.stderr,
        )
    for hit in hits:
        print(f"{percent(hit.probability):>4} {hit.score:6.3f}  {clock(hit.start, hit.end)}  {readable(hit.path)}")


def _export(index: "VideoIndex", results: "list[tuple[str, list[Hit]]]", directory: Path) -> None:
    from ..search import clock
    from ..search.cut import cut_span
    from ..search.page import message_of

    directory.mkdir(parents=True, exist_ok=True)
    count = 0
    for number, (_, hits) in enumerate(results, start=1):
        for rank, hit in enumerate(hits, start=1):
            path = Path(hit.path)
            times = clock(hit.start, hit.end).replace(":", ".")
            prefix = f"{number}-" if len(results) > 1 else ""
            stem = path.stem
            while len(os.fsencode(stem)) > _LONGEST_STEM:
                stem = stem[:-1]
            output = directory / f"{prefix}{rank:02}-{stem}-{times}{path.suffix}"
            try:
                cut_span(index.source(hit.path), hit.start, hit.end, output)
                count += 1
            except (ValueError, KeyError) as error:  # other hits can be cut, unless the disk is full, for example
                print(f"A hit was not exported: {message_of(error)}", file=sys.stderr)
    print_wrote(f"{count} spans to {directory}")


# --- app -----------------------------------------------------------------------------------------------------


def app(
    index: _Index,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Address to listen on. 0.0.0.0 allows connections from other machines."),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, metavar="N", help="Port. By default, the first free one from 7860 on."),
    ] = None,
    model: _MovedModel = None,
) -> None:
    """Search an index in a browser."""
    from ..search import VideoIndex
    from ..search.app import launch

    launch(VideoIndex.open(index, model), host=host, port=port)

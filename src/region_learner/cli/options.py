"""Options that several commands share, so that the same thing has the same name and help in every command."""

from pathlib import Path
from typing import Annotated, Any

import typer

# Directories and files are arguments where a command always needs them, and options otherwise.
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint: a directory or a Hub name.")]
Corpus = Annotated[
    str, typer.Option(metavar="NAME", help="Name of the corpus; `region-learner corpus list` lists them.")
]
DataDir = Annotated[Path | None, typer.Option(metavar="DIR", help="Directory of the corpus.")]
Split = Annotated[str, typer.Option(metavar="NAME", help="Split of the corpus.")]
CorpusOptions = Annotated[
    str | None,
    typer.Option(
        metavar="JSON", help="Options of the corpus, as JSON. An unknown option is an error that lists all options."
    ),
]
MaxMissing = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        help="Maximum number of missing videos, or a fraction below 1. Up to this limit, they are skipped; more are "
        "an error.  [default: 0]",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Clips per batch.")]
Workers = Annotated[
    int | None, typer.Option(min=1, max=1024, metavar="N", help="Worker processes. By default, one per CPU core.")
]
Timeout = Annotated[
    float,
    typer.Option(
        min=1,
        max=1_000_000,
        metavar="SECONDS",
        help="Time limit per video. A video that takes longer counts as unreadable.",
    ),
]
Memory = Annotated[
    float,
    typer.Option(
        min=0.1,
        max=2**20,
        metavar="GIB",
        help="Memory limit per video, on Linux. A video that needs more counts as unreadable.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

# Options that `index` and `embed` share.
Window = Annotated[float | None, typer.Option(metavar="SECONDS", help="Length of each window.  [default: 10]")]
Stride = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Time from the start of one window to the start of the next. By default, half a window.",
    ),
]
FramesPerWindow = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Frames per window. By default, as many as the model expects.")
]
Tokens = Annotated[
    bool | None,
    typer.Option(
        "--tokens/--no-tokens",
        help="Whether to store the tokens of each window, which are embeddings of at most 32 regions (or patches, if "
        "the model has no regions), to re-rank the best hits for a text query. By default, they are stored if the "
        "model has them (token_dim).",
    ),
]
Retry = Annotated[bool, typer.Option("--retry", help="Try unreadable files again.")]
CorpusInstead = Annotated[
    str | None, typer.Option(metavar="NAME", help="Use the videos of this corpus instead of VIDEOS.")
]
SplitOfCorpus = Annotated[str | None, typer.Option(metavar="NAME", help="Split of the corpus.  [default: train]")]
IndexDir = Annotated[Path | None, typer.Option(metavar="DIR", help="Directory of the index.  [required]")]


def mapping(option: str, text: str | None) -> dict[str, Any]:
    """
    Parses the JSON object that an option was given.

    Raises:
        ValueError: it is not a JSON object.
    """
    from ..training.arguments import mapping_from_json

    return mapping_from_json(option, text) or {}


def options_of(corpus: str, text: str | None, max_missing: float | None = None) -> dict[str, Any]:
    """
    Returns the options of a corpus, from `--corpus-options` and `--max-missing`.

    Raises:
        ValueError: an option has a command-line option of its own, or the corpus does not have it.
    """
    from ..corpora import corpus_options

    options = mapping("--corpus-options", text)
    if reserved := {"name", "data_dir", "split", "streaming"} & options.keys():
        raise ValueError(
            f"--corpus-options takes options of the corpus, not {', '.join(sorted(reserved))}: use --corpus, "
            "--data-dir and --split."
        )
    if max_missing is not None:
        if "max_missing" not in corpus_options(corpus):
            raise ValueError(f"--max-missing does not apply to the corpus {corpus!r}: leave it out.")
        if "max_missing" in options:
            raise ValueError("--max-missing and max_missing in --corpus-options mean the same: give only one of them.")
        options["max_missing"] = max_missing
    return options


def read_corpus(corpus: str, data_dir: Path | None, split: str, text: str | None, max_missing: float | None) -> Any:
    """Returns the rows of a split. Raises the errors of [`options_of`] and [`load_corpus`]."""
    from ..corpora import load_corpus

    return load_corpus(corpus, data_dir, split=split, **options_of(corpus, text, max_missing))

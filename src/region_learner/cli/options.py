"""Options that several commands share, and how they are read. One thing has one name in every command."""

from pathlib import Path
from typing import Annotated, Any

import typer

# Directories and files are arguments where a command cannot do without them, and otherwise options.
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint: a directory or a Hub name.")]
Corpus = Annotated[
    str, typer.Option(metavar="NAME", help="Name of the corpus; `region-learner corpus list` shows all.")
]
DataDir = Annotated[Path | None, typer.Option(metavar="DIR", help="Directory of the corpus.")]
Split = Annotated[str, typer.Option(metavar="NAME", help="Split of the corpus.")]
CorpusOptions = Annotated[
    str | None, typer.Option(metavar="JSON", help="Options of the corpus, as JSON; see docs/corpora.md.")
]
MaxMissing = Annotated[
    float | None,
    typer.Option(metavar="N", help="Missing videos to leave out instead of failing: a number, or a share below 1."),
]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Clips per batch.")]
Workers = Annotated[int | None, typer.Option(min=1, max=1024, metavar="N", help="Processes. By default one per core.")]
Timeout = Annotated[
    float,
    typer.Option(min=1, max=1_000_000, metavar="SECONDS", help="Time limit per video; a slower one is unreadable."),
]
Memory = Annotated[
    float, typer.Option(min=0.1, metavar="GIB", help="Memory limit per video; a larger one is unreadable (Linux).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def mapping(option: str, text: str | None) -> dict[str, Any]:
    """
    Parses an option in JSON.

    Raises:
        ValueError: it is not a JSON object.
    """
    from ..training.arguments import mapping_from_json

    return mapping_from_json(option, text) or {}


def options_of(corpus: str, text: str | None, max_missing: float | None = None) -> dict[str, Any]:
    """
    The options of a corpus, from `--corpus-options` and `--max-missing`.

    Raises:
        ValueError: an option has its own command-line option, or the corpus does not have it.
    """
    from ..corpora import corpus_options

    options = mapping("--corpus-options", text)
    if reserved := {"name", "data_dir", "split", "streaming"} & options.keys():
        raise ValueError(
            f"--corpus-options are the options of one corpus, not {', '.join(sorted(reserved))}: see docs/corpora.md."
        )
    if max_missing is not None:
        if "max_missing" not in corpus_options(corpus):
            raise ValueError(f"--max-missing does not apply to the corpus {corpus!r}: leave it out.")
        if "max_missing" in options:
            raise ValueError("--max-missing and max_missing in --corpus-options exclude each other: give one of them.")
        options["max_missing"] = max_missing
    return options


def read_corpus(corpus: str, data_dir: Path | None, split: str, text: str | None, max_missing: float | None) -> Any:
    """The rows of a split. Errors are those of [`options_of`] and [`load_corpus`]."""
    from ..corpora import load_corpus

    return load_corpus(corpus, data_dir, split=split, **options_of(corpus, text, max_missing))

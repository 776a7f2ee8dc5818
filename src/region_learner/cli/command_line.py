"""The `region-learner` application: its commands, and how errors and exit codes are reported."""

import logging
import os
import sys
import traceback
from typing import Annotated

import typer

from .. import __version__
from ..errors import in_one_line, is_for_user
from .commands import Commands
from .corpora import corpus_app
from .evaluation import evaluate, mteb, regions
from .models import card, convert, export, push
from .scale import embed, index_export
from .search import app as app_command
from .search import index, search
from .training import demo, train

# The base of all usage errors, which typer does not export.
(UsageError,) = typer.BadParameter.__bases__

app = typer.Typer(
    cls=Commands,
    help="Search videos by text, and train, evaluate and publish video-text models.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={
        "help_option_names": ["--help", "-h"],
        "max_content_width": 100,
        "token_normalize_func": lambda name: name.replace("_", "-"),  # accepts --batch_size as well
    },
)
app.command(rich_help_panel="First steps")(demo)
app.command(rich_help_panel="Search")(index)
app.command(rich_help_panel="Search")(search)
app.command("app", rich_help_panel="Search")(app_command)
app.command(rich_help_panel="Search")(embed)
app.command("index export", rich_help_panel="Search")(index_export)
app.command(
    rich_help_panel="Train and evaluate",
    add_help_option=False,  # its options are not typer's, so it prints its own help
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(train)
app.command(rich_help_panel="Train and evaluate")(evaluate)
app.command(rich_help_panel="Train and evaluate")(mteb)
app.command(rich_help_panel="Train and evaluate")(regions)
app.add_typer(corpus_app, name="corpus", rich_help_panel="Data")
app.command(rich_help_panel="Checkpoints")(convert)
app.command(rich_help_panel="Checkpoints")(export)
app.command(rich_help_panel="Checkpoints")(card)
app.command(rich_help_panel="Checkpoints")(push)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"region-learner {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return message if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {message}"


def main(argv: list[str] | None = None) -> None:
    """
    Runs a command and exits: with 0 on success, with 2 and a one-line message for wrong usage or input, with 130 when
    interrupted, and with 1 and a traceback for a bug in this package. With REGION_LEARNER_DEBUG set, every error shows
    a traceback.
    """
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # of retries, for example, only the outcome is reported
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    is_main_process = int(os.environ.get("RANK", 0)) == 0
    logging.getLogger("region_learner").setLevel(logging.INFO if is_main_process else logging.WARNING)
    try:
        code = app(argv, prog_name="region-learner", standalone_mode=False)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sys.exit(_report(error))
    sys.exit(code or 0)


def _report(error: Exception) -> int:
    """Prints an error and returns the exit code."""
    _end_progress_bars()
    for_user = is_for_user(error) or isinstance(error, UsageError)
    if for_user and not os.environ.get("REGION_LEARNER_DEBUG"):
        line = _usage_line(error) if isinstance(error, UsageError) else in_one_line(error)
        print(f"region-learner: error: {line}", file=sys.stderr)
        return 2
    traceback.print_exception(error)
    if not for_user:
        print(
            "region-learner: this is a bug: please report it with the command and the lines above.",
            file=sys.stderr,
        )
    return 1


def _end_progress_bars() -> None:
    """Closes open progress bars, such as that of a failed upload, so that the next message begins on its own line."""
    if (tqdm := sys.modules.get("tqdm")) is not None:
        for bar in list(getattr(tqdm.tqdm, "_instances", ())):
            bar.close()


def _usage_line(error) -> str:
    message = _wrong_number(error) or " ".join(error.format_message().split())
    if hasattr(error, "possibilities"):  # an unknown option
        near = f"; did you mean {error.possibilities[0]!r}?" if error.possibilities else ""
        message = f"{error.option_name} is not known{near}"
    return f"{message} (see `{error.ctx.command_path} --help`)" if error.ctx else message


def _wrong_number(error) -> str:
    """Returns what a numeric option must be, with its range and an example; "" for other errors."""
    option, problem = getattr(error, "param", None), error.__cause__
    if option is None or not hasattr(problem, "errors"):  # not a value that typer's validator refused
        return ""
    found = problem.errors()[0]
    expected = [{"int_parsing": "an integer", "float_parsing": "a number"}.get(found["type"], "")]
    if option.min is not None:
        expected.append(f"at least {option.min}" if option.max is None else f"from {option.min} to {option.max}")
    if not any(expected):
        return ""
    if example := option.default or (0.5 if option.max == 1 else None):
        expected.append(f"such as {example}")
    return f"{option.opts[0]} must be {', '.join(filter(None, expected))}, not {found['input']!r}"

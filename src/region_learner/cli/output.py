"""What commands print: results on standard output, everything else on standard error."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def print_json(result: Any) -> None:
    print(json.dumps(result, indent=2))


def print_result(result: Mapping[str, Any], as_json: bool = False) -> None:
    """Prints a result as JSON, or as a table with one value per row."""
    from rich.markup import escape
    from rich.table import Table

    if as_json:
        print_json(result)
        return
    table = Table("", "", show_header=False)
    for name, value in result.items():
        table.add_row(escape(name), _cell(value))
    print_table(table)


def print_rows(title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints a table with one row per result. All results have the same keys. `title` heads the column of names."""
    from rich.markup import escape
    from rich.table import Column, Table

    columns = []
    for name in next(iter(rows.values())):
        values = [row[name] for row in rows.values()]
        if any(isinstance(value, str) and " " in value for value in values):
            columns.append(Column(escape(name), overflow="fold"))
        else:  # numbers are never cut off
            width = max(len(name), *(len(_cell(value)) for value in values))
            columns.append(Column(escape(name), justify="right", no_wrap=True, min_width=width))
    table = Table(Column(escape(title), overflow="fold"), *columns, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name, row in rows.items():
        table.add_row(escape(name), *(_cell(value) for value in row.values()))
    print_table(table)


def print_table(table: Any) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # lines in a file are not wrapped
        console.width = 10_000
    console.print(table)


@contextmanager
def without_loading_bars() -> Iterator[None]:
    """Hides the progress bars that transformers shows while it loads a checkpoint, which takes only a moment."""
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    were_shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            enable_progress_bar()


@contextmanager
def quiet_hub() -> Iterator[None]:
    """
    Hides the warnings of huggingface_hub, such as those about retries, whose outcome is reported anyway, and its
    progress bars if standard error is not a terminal.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    of_hub = logging.getLogger("huggingface_hub")
    level = of_hub.level
    is_chosen = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None  # by the environment variable of this name
    hides_bars = not (sys.stderr.isatty() or is_chosen or are_progress_bars_disabled())
    of_hub.setLevel(logging.ERROR)
    if hides_bars:
        disable_progress_bars()
    try:
        yield
    finally:
        of_hub.setLevel(level)
        if hides_bars:
            enable_progress_bars()


def print_wrote(path: Path | str) -> None:
    """Prints the closing line of a command that has written something."""
    print(f"Wrote {path}", file=sys.stderr)


def _cell(value: Any) -> str:
    if value is None:  # cannot be measured
        return "-"
    if isinstance(value, list):  # such as the unreadable videos, which --json lists
        return str(len(value))
    from rich.markup import escape

    return f"{value:.2f}" if isinstance(value, float) else escape(str(value))

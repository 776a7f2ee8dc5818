"""Commands that train: `demo` and `train`."""

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from ..interruption import interruptible
from .evaluation import heading, print_reranked
from .output import print_json, print_result, print_wrote
from .train_help import SHORT_NAMES, train_help


def demo(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Directory for the corpus, checkpoint and page.")] = Path(
        "demo-output"
    ),
) -> None:
    """
    Train, evaluate and search on a built-in corpus.

    Makes the corpus, trains and evaluates a small model, joins test clips into longer videos, indexes and searches
    these videos, loads the checkpoint in a process without this package, and writes an HTML page of the search
    results. This takes six to fifteen minutes on two CPU cores.
    """
    from ..demo import run_demo

    run_demo(output)


def train(context: typer.Context) -> None:
    """Train or fine-tune a model, from a recipe or from options alone."""
    argv = [_full_name(argument) for argument in context.args]
    if {"--help", "-h", "--help-all"} & set(argv):
        print(train_help(everything="--help-all" in argv))
        return
    as_json = "--json" in argv
    _train([argument for argument in argv if argument != "--json"], as_json)


def _full_name(argument: str) -> str:
    name, equals, value = argument.partition("=")
    full = SHORT_NAMES.get(name.removeprefix("--").replace("-", "_"))
    return f"--{full}{equals}{value}" if full and name.startswith("--") else argument


def _train(argv: list[str], as_json: bool) -> None:
    output_dirs: list[str] = []

    def how_to_continue() -> str:
        from ..training.checkpoints import how_to_resume

        return how_to_resume(output_dirs)

    logs = redirect_stdout(sys.stderr) if as_json else nullcontext()  # the Trainer prints them
    with interruptible(how_to_continue), logs:
        from accelerate import PartialState

        from ..training import parse_stages, train_stages
        from ..training.run import RESULTS

        stages = parse_stages(argv)
        output_dirs += [str(arguments[2].output_dir) for arguments in stages]
        results = train_stages(stages)
    if PartialState().is_main_process:
        _print_training(results, as_json)
        print_wrote(Path(output_dirs[-1]) / RESULTS)


def _print_training(results: dict[str, Any], as_json: bool) -> None:
    trained = {name: value for name, value in results["train"].items() if value != {}}
    if not as_json:
        trained.pop("total_flos", None)
    if "test" not in results:
        print_result(trained, as_json)
        return
    tested, where = results["test"], results["tested_on"]
    if as_json:
        tested = {f"{where['split']}_{name}": value for name, value in tested.items()}
        print_json(trained | tested | {"tested_on": where})
        return
    print_result(trained)
    print(heading(where["corpus"], where["split"], where["trained_on"]))
    print_result({name: value for name, value in tested.items() if name != "reranked"})
    print_reranked(tested.get("reranked"))

"""The command line, `region-learner COMMAND`."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from huggingface_hub.errors import StrictDataclassError
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

app = typer.Typer(
    name="region-learner",
    help="Video-text dual encoders that learn regions by themselves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
corpus_app = typer.Typer(no_args_is_help=True, help="List, make and prepare corpora.")
app.add_typer(corpus_app, name="corpus")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def _print(result: dict[str, Any], as_json: bool):
    """A result on standard output: JSON, or one row a value."""
    if as_json:
        print(json.dumps(result, indent=2))
        return
    table = Table("", "", show_header=False)
    for name, value in result.items():
        table.add_row(name, f"{value:.2f}" if isinstance(value, float) else str(value))
    Console().print(table)


def _json_option(name: str, text: str | None) -> dict[str, Any]:
    from .training.arguments import mapping_from_json

    return mapping_from_json(name, text) or {}


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where corpus, checkpoint and page go.")] = Path("demo-output"),
):
    """The main job on the built-in corpus: make it, train, evaluate, save, load elsewhere, search, look at regions."""
    from .demo import run_demo

    run_demo(output)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def train(context: typer.Context):
    """Train: `train [RECIPE] [--name value ...] [--json]`; `train --help` lists all names."""
    from accelerate import PartialState

    from .training import parse_stages, train_stages

    as_json = "--json" in context.args
    results = train_stages(parse_stages([argument for argument in context.args if argument != "--json"]))
    shown = results["train"] | {f"test_{name}": value for name, value in results.get("test", {}).items()}
    if PartialState().is_main_process:
        _print({name: value for name, value in shown.items() if value != {}}, as_json)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Checkpoint: a directory or Hub name.")],
    corpus: Annotated[str, typer.Option(help="Name of a corpus.")] = "folder",
    data_dir: Annotated[Path | None, typer.Option(help="Where it lies.")] = None,
    split: Annotated[str, typer.Option(help="Split to evaluate on.")] = "test",
    task: Annotated[
        str, typer.Option(help="retrieval, multiple_choice, question_answering, classification or zero_shot.")
    ] = "retrieval",
    corpus_options: Annotated[str | None, typer.Option(help="Options of the corpus, as JSON.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Also write the result to this JSON file.")] = None,
    as_json: Json = False,
):
    """
    Retrieval both ways (each video once, with all of its captions), multiple choice, question answering, or
    recognition of actions, by a classifier (classification) or by prompts (zero_shot).
    """
    import torch
    from transformers import (
        AutoModel,
        AutoModelForVideoClassification,
        AutoModelForVisualQuestionAnswering,
        AutoProcessor,
    )

    from .corpora import load_corpus
    from .evaluation import EVALUATIONS

    if task not in EVALUATIONS:
        raise ValueError(f"--task {task!r} is not known; choose one of {', '.join(EVALUATIONS)}.")
    heads = {
        "question_answering": AutoModelForVisualQuestionAnswering,
        "classification": AutoModelForVideoClassification,
    }
    dataset = load_corpus(corpus, data_dir, split, **_json_option("--corpus-options", corpus_options))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = heads.get(task, AutoModel).from_pretrained(model).to(device)
    result = EVALUATIONS[task](encoder, AutoProcessor.from_pretrained(model), dataset, batch_size, workers)
    if isinstance(result["unreadable"], dict):
        result["unreadable"] = sorted(result["unreadable"])
    if output is not None:
        where = {"model": model, "task": task, "corpus": corpus, "data_dir": str(data_dir), "split": split}
        output.write_text(json.dumps(where | result, indent=2) + "\n", encoding="utf-8")
    _print(result, as_json)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="The authors' .pth file.")],
    output: Annotated[Path, typer.Argument(help="Directory for the converted checkpoint.")],
    text_config: Annotated[
        str | None, typer.Option(help="Of the text encoder: JSON, a directory or a Hub name.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Directory or Hub name.")] = None,
    config: Annotated[
        str | None, typer.Option(help="What weights cannot tell, as JSON: num_attention_heads, temperature ...")
    ] = None,
    as_json: Json = False,
):
    """Convert a checkpoint of the authors' code. Nothing in the file is run."""
    from .conversion import convert_original_checkpoint

    text = _json_option("--text-config", text_config) if (text_config or "").startswith("{") else text_config
    options = _json_option("--config", config)
    if reserved := {"path", "output_dir", "text_config", "tokenizer"} & set(options):
        raise ValueError(f"--config takes fields of the configuration, not {', '.join(sorted(reserved))}.")
    model = convert_original_checkpoint(source, output, text_config=text, tokenizer=tokenizer, **options)
    video = model.config.video_config
    names = ("hidden_size", "num_hidden_layers", "image_size", "num_frames", "codebook_size", "num_regions")
    _print({"output": str(output)} | {name: getattr(video, name) for name in names}, as_json)


@corpus_app.command("list")
def corpus_list(as_json: Json = False):
    """Names and formats."""
    from .corpora import list_corpora

    _print(list_corpora(), as_json)


@corpus_app.command("make")
def corpus_make(
    output: Annotated[Path, typer.Argument(help="Directory for the corpus.")],
    options: Annotated[str | None, typer.Option(help="Sizes and seed, as JSON; see MovingShapesOptions.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="By default one a core.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a corpus with other options.")] = False,
):
    """Write the built-in corpus of moving shapes."""
    from .corpora import make_moving_shapes

    path = make_moving_shapes(output, workers=workers, overwrite=overwrite, **_json_option("--options", options))
    Console(stderr=True).print(f"The corpus is in {path}.")


def main(argv: list[str] | None = None):
    """
    Runs a command and exits: 0 when it is done, 2 with one line for bad usage or input. With REGION_LEARNER_DEBUG
    set, errors show where they come from.
    """
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False, markup=False)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s")
    logging.getLogger("region_learner").setLevel(logging.INFO)
    try:
        app(argv)
    except (ValueError, OSError, ImportError, StrictDataclassError) as error:
        if os.environ.get("REGION_LEARNER_DEBUG"):
            raise
        print(f"region-learner: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

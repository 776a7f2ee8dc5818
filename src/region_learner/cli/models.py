"""Commands for checkpoints: `convert`, `export`, `card` and `push`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AsJson, Model, mapping
from .output import print_json, print_result, print_rows, print_wrote, quiet_hub


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The .pth file.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Directory for the converted checkpoint.")],
    text_config: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG",
            help="Configuration of the text encoder, if it is neither a DistilBERT nor a BERT with 12 heads: a "
            "directory or a Hub name, or JSON for a DistilBERT or BERT with another number of heads.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Tokenizer: a directory or a Hub name. By default, that of --text-config, if it is one of these, and "
            "otherwise the one that the authors used, which is downloaded.",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Configuration fields that the weights do not determine: num_attention_heads, temperature, ...",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """
    Convert a checkpoint of the reference implementation.

    The reference implementation is the code that the paper's authors published. The file is read without running any
    code in it.
    """
    from ..conversion import convert_original_checkpoint

    text = mapping("--text-config", text_config) if (text_config or "").startswith("{") else text_config
    options = mapping("--config", config)
    if reserved := {"path", "output_dir", "text_config", "tokenizer"} & set(options):
        raise ValueError(f"--config takes fields of the configuration, not {', '.join(sorted(reserved))}.")
    model = convert_original_checkpoint(source, output, text_config=text, tokenizer=tokenizer, **options)
    video = model.config.video_config
    names = ("hidden_size", "num_hidden_layers", "image_size", "num_frames", "codebook_size", "num_regions")
    print_result({"output": str(output)} | {name: getattr(video, name) for name in names}, as_json)
    print_wrote(output)


def export(
    model: Model,
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Directory for the exported files.")],
    format: Annotated[str, typer.Option("--format", metavar="NAME", help="`onnx` or `openvino`.")] = "onnx",
    part: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="`text`, `video`, or `model` for the whole model in one file. May be repeated. By default, one file "
            "per tower, or the whole model if it has a task head.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """
    Export a model to ONNX or OpenVINO, and compare it with PyTorch.

    Batch size, text length and number of frames stay dynamic. The processor is saved beside the exported files.
    """
    from ..export import check_format, export_model, load_for_export

    check_format(format)
    encoder, processor = load_for_export(model)
    results = export_model(encoder, output, format, part or None)
    processor.save_pretrained(output)
    rows = {
        result["file"]: {"outputs": len(result["outputs"]), "largest difference": f"{result['difference']:.1e}"}
        for result in results.values()
    }
    if as_json:
        print_json(results)
    else:
        print_rows("file", rows)
    print_wrote(output)


def card(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL|RESULTS",
            help="Directory of a checkpoint with results files, or files from `region-learner evaluate --output`.",
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With RESULTS: directory of the evaluated checkpoint, which records how it was trained.",
        ),
    ] = None,
    repo: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the model on the Hub.")] = None,
    license: Annotated[str | None, typer.Option(metavar="ID", help="License of the weights: apache-2.0, ...")] = None,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Title of the card.")] = None,
    description: Annotated[str, typer.Option(metavar="MARKDOWN", help="What the model is.")] = "",
    query: Annotated[str | None, typer.Option(metavar="TEXT", help="Query of the code example in the card.")] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(metavar="CODE", help="Language of the training captions: en, ... May be repeated."),
    ] = None,
    datasets: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            metavar="NAME",
            help="Name on the Hub of a data set that the model was trained on, if it is not a built-in corpus. May be "
            "repeated.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write. By default, standard output.")
    ] = None,
) -> None:
    """Write a model card from measured results."""
    from ..files import naming
    from ..model_card import model_card

    files, checkpoint = _results_and_checkpoint(results, model)
    text = model_card(files, checkpoint, repo, license, title, description, query, language or (), datasets or ())
    if output is None:
        print(text)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with naming(output):
        output.write_text(text, encoding="utf-8")  # may be a pipe or a device, so it is not written atomically
    print_wrote(output)


def _results_and_checkpoint(given: list[Path], checkpoint: Path | None) -> tuple[list[Path], Path | None]:
    from ..evaluation.results import results_in
    from ..files import near_file

    for path in given:
        if not path.exists():
            hint = near_file(path)
            if hint == ".":
                hint = (
                    ": `card` takes files that `region-learner evaluate MODEL --output FILE` writes, or the directory "
                    "of the checkpoint that contains them."
                )
            raise FileNotFoundError(f"{path} does not exist{hint}")
    directories = [path for path in given if path.is_dir()]
    if not directories:
        return given, checkpoint
    if len(given) > 1:
        raise ValueError(f"{directories[0]} is a directory: give either one directory or only files.")
    return results_in(directories[0]), checkpoint or directories[0]


def push(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Directory of the checkpoint.")],
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="Name on the Hub: OWNER/NAME, or NAME for your own account.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Make the repository public. By default, it is private.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check the checkpoint and list what would be pushed, without sending anything."
        ),
    ] = False,
    space: Annotated[
        bool,
        typer.Option(
            "--space",
            help="Also publish a Space named REPO that searches videos with the model; private without --public.",
        ),
    ] = False,
    license: Annotated[
        str | None,
        typer.Option(metavar="ID", help="License of the weights, if this command writes the card: apache-2.0, ..."),
    ] = None,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Commit message.")] = None,
    as_json: AsJson = False,
) -> None:
    """
    Check a checkpoint, and publish it on the Hub in one commit.

    The checkpoint must load without the region-learner package, the metrics in its card must come from results files
    of the same weights, and no file may contain a secret or a path on this machine. If there is no README.md, a card
    is made from the results files.
    """
    from ..publishing import push as push_to_hub

    with quiet_hub():
        pushed = push_to_hub(
            model, repo, private=not public, dry_run=dry_run, space=space, license=license, message=message
        )
    if as_json:
        print_json(vars(pushed))
    else:
        _print_pushed(pushed)
    kind = "private" if pushed.private else "public"
    total = _size(sum(pushed.files.values()))
    what = f"{len(pushed.files)} files ({total})"
    if pushed.url is None:
        print(f"Would push {what} to the {kind} repository {pushed.repo}; nothing was sent", file=sys.stderr)
        return
    print(f"Pushed {what} to the {kind} repository {pushed.repo}: {pushed.url}", file=sys.stderr)
    if pushed.space_url is not None:
        print(f"Pushed the Space: {pushed.space_url}", file=sys.stderr)


def _print_pushed(pushed: Any) -> None:
    sizes = {name: {"size": _size(size)} for name, size in pushed.files.items()}
    print_rows("file", sizes | {"total": {"size": _size(sum(pushed.files.values()))}})
    if pushed.left_out:
        print()
        print_rows("left out", {name: {"because": reason} for name, reason in pushed.left_out.items()})
    if pushed.space_files:
        number, size = len(pushed.space_files), _size(sum(pushed.space_files.values()))
        print(f"\nThe Space has app.py, requirements.txt, README.md and this package ({number} files, {size}).")
    for note in pushed.notes:
        print(f"note: {note}", file=sys.stderr)


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"

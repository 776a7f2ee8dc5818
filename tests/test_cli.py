"""Tests the help, option names, usage errors and output of the command line, but not what its commands do."""

import json
import logging
import subprocess
import sys
from dataclasses import fields

import pytest
import typer
from transformers import HfArgumentParser

from region_learner import __version__
from region_learner.cli import app, main
from region_learner.cli.command_line import _Formatter
from region_learner.cli.options import options_of
from region_learner.cli.output import print_result, print_rows
from region_learner.cli.train_help import OF_TRANSFORMERS, SHORT_NAMES, train_help
from region_learner.training import DataArguments, ModelArguments, RegionLearnerTrainingArguments
from region_learner.training.arguments import ARGUMENT_GROUPS, OwnTrainingArguments
from region_learner.training.recipes import list_recipes, recipe_description

from .fresh_process import run_fresh

COMMANDS = {
    name: command
    for name, command in typer.main.get_command(app).commands.items()
    if not hasattr(command, "commands")
} | {
    f"corpus {name}": command
    for name, command in typer.main.get_command(app).commands["corpus"].commands.items()
}  # fmt: skip


def run(capsys, *argv: str) -> tuple[int, str, str]:
    """Returns the exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as end:
        main(list(argv))
    return end.value.code, *capsys.readouterr()


def names_of(command) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts if name.startswith("--")}


# Help


def test_help_imports_nothing_that_takes_seconds():
    """All commands run in one process, which collects the imports of each."""
    script = f"""
import sys
from region_learner.cli import main
for command in {["", "corpus", *COMMANDS]!r}:
    try:
        main([*command.split(), "--help"])
    except SystemExit as end:
        assert end.code == 0, command
slow = {{"accelerate", "av", "datasets", "huggingface_hub", "numpy", "PIL", "rich", "torch", "transformers"}}
sys.exit(", ".join(slow & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert done.stderr.strip() == ""


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "region_learner", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == f"region-learner {__version__}\n"


def test_help_lists_all_commands_in_sections(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    section, sections = None, {}
    for line in out.splitlines():
        if line.endswith(":"):
            section = line
        elif line.startswith("  ") and section not in (None, "Options:"):
            sections[line.split()[0]] = section
    assert list(sections)[:3] == ["demo", "index", "search"]
    assert set(sections) == {name.split()[0] for name in COMMANDS}
    assert len(set(sections.values())) > 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_explained(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run(capsys, *name.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: region-learner {name} ")
    assert all(parameter.help for parameter in COMMANDS[name].params)
    assert all(f"  {option}" in out for option in names_of(COMMANDS[name]))


def test_the_help_has_the_defaults_of_the_package(capsys, monkeypatch):
    from region_learner.search import MODEL, WINDOW

    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run(capsys, "index", "--help")
    for default in (MODEL, f"{WINDOW:g}"):
        assert f"[default: {default}]" in " ".join(out.split())


def test_without_a_command_the_help_is_shown_as_an_error(capsys):
    for argv in ([], ["corpus"]):
        code, out, err = run(capsys, *argv)
        assert (code, out) == (2, "")
        assert err.startswith(f"Usage: {' '.join(['region-learner', *argv])} ")


def test_help_of_train_has_all_our_options_and_some_of_transformers():
    ours = {item.name for cls in (ModelArguments, DataArguments, OwnTrainingArguments) for item in fields(cls)}
    shown = [name for names in ARGUMENT_GROUPS.values() for name in names]
    assert len(shown) == len(set(shown))
    assert set(shown) == ours | set(OF_TRANSFORMERS)
    assert not ours & set(OF_TRANSFORMERS)
    known = {item.name for cls in (DataArguments, RegionLearnerTrainingArguments) for item in fields(cls)}
    assert set(OF_TRANSFORMERS) | set(SHORT_NAMES.values()) <= known


def test_help_of_train(capsys):
    HfArgumentParser([ModelArguments, DataArguments])  # changes the types of their fields
    code, ours, _ = run(capsys, "train", "--help")
    assert (code, ours) == (0, train_help() + "\n")
    for name, path in list_recipes().items():  # one line each
        (line,) = [line for line in ours.splitlines() if line.split()[:1] == [name]]
        assert line.removeprefix(f"  {name}").strip() == recipe_description(path)
    for wanted in ("--video-tower NAME", "--config JSON", "--freeze PREFIX ...", "--streaming  ", "--lr-gamma X"):
        assert f"\n  {wanted}" in ours
    assert "\n  --batch-size N                Pairs per device. Same as --per-device-train-batch-size." in ours
    assert "--adam-beta1" not in ours
    _, everything, _ = run(capsys, "train", "small_from_scratch", "--help-all")
    assert everything.startswith(ours)
    assert "\n  --adam-beta1 X" in everything
    assert everything.count("\n  --max-steps ") == 1


# Names


def test_one_thing_has_one_name():
    of_corpora = {"--corpus", "--data-dir", "--split", "--corpus-options", "--workers", "--json"}
    for name in ("evaluate", "regions", "corpus prepare", "corpus check"):
        assert of_corpora <= names_of(COMMANDS[name]), name
    for name in ("evaluate", "corpus prepare", "corpus check"):
        assert {"--max-missing", "--max-unreadable"} <= names_of(COMMANDS[name]), name
    for name in ("demo", "evaluate", "regions", "card"):
        assert "--output" in names_of(COMMANDS[name]), name
    assert "--model" in names_of(COMMANDS["card"])


@pytest.fixture
def given(monkeypatch):
    """The arguments that training was given."""
    given = []

    def parse_stages(argv):
        given.extend(argv)
        raise ValueError("that is enough")

    monkeypatch.setattr("region_learner.training.parse_stages", parse_stages)
    return given


def test_train_takes_the_names_of_other_commands(given, capsys):
    argv = ["moving_shapes", "--output=there", "--batch_size", "3", "--workers=2", "--split", "val", "--json"]
    assert run(capsys, "train", *argv)[0] == 2
    assert given == [
        "moving_shapes", "--output_dir=there", "--per_device_train_batch_size", "3", "--dataloader_num_workers=2",
        "--train_split", "val",
    ]  # fmt: skip


@pytest.mark.parametrize("option", ["--max-unreadable", "--max_unreadable"])
def test_options_are_spelled_with_hyphens_or_underscores(option, capsys):
    for argv in (["corpus", "check"], ["evaluate", "model"]):
        code, _, err = run(capsys, *argv, option, "many")
        assert code == 2
        assert "--max-unreadable must be a number, " in err
    _, _, err = run(capsys, "train", option, "many")
    assert "error: --max-unreadable: invalid float value: 'many'" in err


# Mistakes


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evaluates", "model"], "'evaluates' is not a command; did you mean 'evaluate'? (see"),
        (["corpus", "checks"], "'checks' is not a command; did you mean 'check'? (see `region-learner corpus"),
        (["xyzzy"], "'xyzzy' is not a command (see `region-learner --help`)"),
        (
            ["evaluate", "model", "--batchsize=3"],
            "--batchsize is not known; did you mean '--batch-size'? (see `region-learner evaluate --help`)",
        ),
        (["evaluate", "model", "--xyzzy"], "--xyzzy is not known (see `region-learner evaluate --help`)"),
        (["regions", "model", "--outputs=x.png"], "--outputs is not known; did you mean '--output'?"),
        (["train", "--learning-rat=1"], "--learning-rat is not known; did you mean '--learning-rate'?"),
        (["--versions"], "--versions is not known; did you mean '--version'?"),
        (["evaluate"], "Name the checkpoint to evaluate"),
        (["convert", "a.pth"], "Missing argument"),
        (["regions", "model", "--output"], "Option '--output' requires an argument."),
        (["evaluate", "model", "--batch-size=0"], "--batch-size must be at least 1, such as 16, not '0' (see"),
        (["evaluate", "model", "--rerank=-1"], "--rerank must be at least 0, not '-1' (see"),
        (["search", "i", "w", "--min-score=x"], "--min-score must be a number, from -1 to 1, such as 0.5, not 'x'"),
        (["evaluate", "model", "other"], "Got unexpected extra argument"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_usage_is_one_line(capsys, argv, message):
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"region-learner: error: {message}")


def test_missing_videos_may_be_allowed():
    assert options_of("msrvtt", '{"protocol": "full"}', 0.1) == {"protocol": "full", "max_missing": 0.1}
    assert options_of("moving_shapes", None) == {}
    with pytest.raises(ValueError, match="--max-missing does not apply to the corpus 'moving_shapes'"):
        options_of("moving_shapes", None, 0.1)
    with pytest.raises(ValueError, match="mean the same"):
        options_of("msrvtt", '{"max_missing": 1}', 2)


# Output


def test_only_json_is_on_standard_output(capsys, tmp_path):
    code, out, err = run(capsys, "corpus", "list", "--json")
    assert (code, err) == (0, "")
    assert "folder" in json.loads(out)
    code, out, err = run(capsys, "corpus", "list")
    assert "folder" in out


ROWS = {
    "1 a long phrase about a red square and a blue circle that moves": {"score": 0.5, "x": 64.25, "why": "left [out]"},
    "2 [b]": {"score": -0.125, "x": 0.0, "why": "because of a reason that takes more than one line of the table"},
}


@pytest.mark.parametrize("is_terminal", [False, True])
def test_tables_keep_all_numbers(capsys, monkeypatch, is_terminal):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("rich.console.Console.is_terminal", is_terminal)
    print_rows("phrase", ROWS)
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "…" not in out
    assert all(number in out for number in ("0.50", "64.25", "-0.12", "0.00"))
    assert "left [out]" in out
    assert any(line.startswith("2 [b] ") for line in lines)
    assert (len(lines) == 3) == (not is_terminal)
    print_result({"a [/b] c": "[d]", "number": 1.5})
    found = capsys.readouterr().out
    assert "a [/b] c" in found
    assert "[d]" in found


def test_the_written_path_is_printed_once(tmp_path):
    options = '{"train": 1, "val": 0, "test": 0, "test_unseen": 0, "size": 64, "frames": 4}'
    script = "import runpy; runpy.run_module('region_learner', run_name='__main__', alter_sys=True)"
    command = ("corpus", "make", "a", "--corpus-options", options)
    for closing_line in (f"Wrote {tmp_path / 'a'}", f"{tmp_path / 'a'} already holds this corpus: nothing to do"):
        done = run_fresh(script, *command, isolated=False, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.splitlines()[-1] == closing_line
    assert len(done.stderr.splitlines()) == 1


def test_warnings_are_marked():
    def line(level: int) -> str:
        return _Formatter().format(logging.LogRecord("region_learner", level, "", 0, "a %s", ("b",), None))

    assert (line(logging.INFO), line(logging.WARNING)) == ("a b", "warning: a b")

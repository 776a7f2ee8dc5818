"""Tests of command-line errors: one line with a remedy for mistakes of users, a traceback for our own."""

import linecache
import runpy
import sys

import pytest
import torch
from safetensors import SafetensorError
from torch._utils import ExceptionWrapper
from torch.optim import AdamW

from region_learner import RegionLearnerProcessor, RegionLearnerVideoProcessor
from region_learner.cli import main
from region_learner.conversion.towers import _square
from region_learner.corpora import load_corpus
from region_learner.errors import in_one_line, is_for_user
from region_learner.evaluation.results import write_results
from region_learner.files import naming
from region_learner.training.tokenizer import train_tokenizer

from .conftest import tiny_model
from .test_model_card import MSVD


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a checkpoint, a run, a folder with a file that is not a video, and other files."""
    place = tmp_path_factory.mktemp("place")
    tiny_model().save_pretrained(place / "model")
    processor = RegionLearnerProcessor(RegionLearnerVideoProcessor(), train_tokenizer(["a red square"], 50, 16))
    processor.save_pretrained(place / "model")
    tiny_model().save_pretrained(place / "run" / "checkpoint-8")
    (place / "videos").mkdir()
    (place / "videos" / "metadata.csv").write_text("file_name,caption\na.mp4,a red square\n")
    (place / "videos" / "a.mp4").write_text("not a video")
    (place / "results.json").write_text("{}")
    (place / "original.pth").write_text("?")
    return place


TRAIN = ["train", "--model=model", "--data_dir=videos", "--output_dir=out", "--max_steps=1"]
NEW = ["train", "--tokenizer=train", "--data_dir=videos", "--output_dir=out", "--max_steps=1"]
MISTAKES = [
    (["evaluate", "./nosuch"], "There is no directory ./nosuch. A checkpoint is a directory, or a Hub name"),
    (["evaluate", "./models"], "There is no directory ./models; did you mean 'model'?"),
    (["evaluate", "models", "--data-dir=videos", "--split=train"], "is not a local directory; did you mean 'model'?"),
    (["evaluate", "run", "--data-dir=videos"], "it has no config.json; did you mean 'run/checkpoint-8'?"),
    (["evaluate", "videos", "--data-dir=videos"], "videos is not a checkpoint: it has no config.json."),
    (["evaluate", "original.pth"], "convert it first with `region-learner convert original.pth DIRECTORY`"),
    (["evaluate", "model", "--protocol=msrvtt"], "did you mean 'msrvtt_1ka' or 'msrvtt_1kb' or 'msrvtt_full'"),
    (["evaluate", "model", "--protocol=msvd"], "corpus 'msvd' needs data_dir= (--data-dir)"),
    (["evaluate", "model", "--task=retrieva"], "--task 'retrieva' is not known; did you mean 'retrieval'?"),
    (["train", "--model=./nosuch"], "There is no directory ./nosuch."),
    (["search", "i", "w", "--min-probability=50"], "--min-probability must be from 0 to 1, such as 0.5, not '50'"),
    (["search", "i", "w", "--top=0"], "--top must be at least 1, such as 10, not '0'"),
    (["search", "i", "w", "--top=ten"], "--top must be an integer, at least 1, such as 10, not 'ten'"),
    (["app", "i", "--port=99999"], "--port must be from 1 to 65535, not '99999'"),
    (["corpus", "check", "--timeout=soon"], "--timeout must be a number, from 1 to 1000000, such as 1800, not"),
    (["index", "export", "--index=i", "--to=parqet", "--output=o"], "--to 'parqet' is not known; did you mean 'parq"),
    (["train", "--max_step", "3"], "--max_step is not known; did you mean '--max-steps'?"),
    (["train", "--max-step=3"], "--max-step is not known; did you mean '--max-steps'?"),
    (["train", "small_from_scratch", "extra"], "'extra' is not expected: give only one recipe"),
    (["card", "nofile.json"], "nofile.json does not exist: `card` takes files that `region-learner evaluate MODEL"),
    (["card", "result.json"], "result.json does not exist; did you mean 'results.json'?"),
    (["regions", "model", "videos"], "videos is a directory: name its videos, such as videos/*.mp4."),
    (["regions", "model", "videos/b.mp4"], "There is no file videos/b.mp4; did you mean 'a.mp4'?"),
    (["regions", "videos/a.mp4", "model"], "videos/a.mp4 is a file, not a checkpoint: give the checkpoint first"),
    (["convert", "results.json", "new"], "it is a text file that begins with '{}'"),
    ([*TRAIN, "--accelerator_config", '{"x": 1}'], "accelerator_config: unknown key 'x'"),
    ([*TRAIN, "--gradient_accumulation_steps=0"], "gradient_accumulation_steps=0 must be at least 1"),
    ([*TRAIN, "--flip_probability=2"], "flip_probability=2.0 must be between 0 and 1"),
    ([*TRAIN, "--lora", '{"lora_alfa": 3}'], "not a field of peft.LoraConfig; did you mean 'lora_alpha'"),
    ([*NEW, "--vocab_size=0", "--text_config", '{"model_type": "distilbert"}'], "vocab_size=0 must be greater than"),
    ([*NEW, "--text_config", '{"model_type": "distilbert", "dim": -12}'], "text_config: dim=-12 must be at least 1."),
    ([*NEW, "--text_config", '{"model_type": "vit"}'], "text_config does not describe a text encoder"),
    ([*TRAIN, "--seed=-1"], "seed=-1 must be at least 0."),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "message"), MISTAKES, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_a_mistake_is_reported_in_one_line(place, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(place)
    monkeypatch.delenv("REGION_LEARNER_DEBUG", raising=False)
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    output, errors = capsys.readouterr()
    assert "Traceback" not in output + errors
    line = errors.strip().splitlines()[-1]
    assert line.startswith("region-learner: error: ")
    assert message in line


def test_accelerate_launch_handles_errors_as_the_command_does(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["region_learner.training", "--max_step", "3"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("region_learner.training", run_name="__main__")
    assert end.value.code == 2
    assert "--max_step is not known; did you mean '--max-steps'?" in capsys.readouterr().err


def command_that_raises(monkeypatch, error: BaseException):
    def command(*arguments, **options):
        raise error

    monkeypatch.setattr("region_learner.cli.corpora.print_result", command)
    monkeypatch.delenv("REGION_LEARNER_DEBUG", raising=False)
    with pytest.raises(SystemExit) as end:
        main(["corpus", "list"])
    return end.value.code


@pytest.mark.parametrize(
    "error", [KeyError("a"), RuntimeError("b"), TypeError("c"), AttributeError("d"), OverflowError("e")]
)
def test_our_own_errors_show_where_they_come_from(monkeypatch, capsys, error):
    assert command_that_raises(monkeypatch, error) == 1
    errors = capsys.readouterr().err
    assert "Traceback (most recent call last)" in errors
    assert type(error).__name__ in errors
    assert "please report it" in errors.splitlines()[-1]


def test_debug_mode_shows_tracebacks_of_user_mistakes(monkeypatch, capsys):
    monkeypatch.setenv("REGION_LEARNER_DEBUG", "1")
    for argv in (["card", "nofile.json"], ["xyzzy"]):
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == 1
        errors = capsys.readouterr().err
        assert "Traceback (most recent call last)" in errors
        assert "please report it" not in errors


def test_an_interruption_ends_without_a_traceback(monkeypatch, capsys):
    assert command_that_raises(monkeypatch, KeyboardInterrupt()) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SafetensorError("Error while deserializing header"), "Error while deserializing header"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), "out of memory: use smaller batches"),
        (MemoryError(), "out of memory: use smaller batches"),
        (OSError(28, "No space left on device", "a"), "the disk is full: [Errno 28] No space left on device: 'a'"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_file_and_memory_errors_are_reported_in_one_line(monkeypatch, capsys, error, words):
    assert command_that_raises(monkeypatch, error) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def caught(action) -> Exception:
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def caught_of_loader(action) -> Exception:
    """Returns the error as a DataLoader raises it again from a worker process."""

    def reraise():
        try:
            action()
        except Exception:
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()

    return caught(reraise)


@pytest.mark.parametrize("catch", [caught, caught_of_loader])
def test_which_value_errors_are_the_users(catch):
    on_purpose = catch(lambda: load_corpus("folder", "/nowhere"))
    assert is_for_user(on_purpose)
    assert in_one_line(on_purpose) == "/nowhere is not a directory: check data_dir= (--data-dir) of corpus 'folder'"
    # A failure in our own code without a `raise` statement is a bug.
    assert not is_for_user(catch(lambda: _square((1, 2, 3), "name")))
    assert not is_for_user(catch(lambda: {}["key"]))
    # An error of a library can be either, so the message says where it comes from.
    of_library = catch(lambda: AdamW([torch.nn.Parameter(torch.zeros(1))], lr=-1.0))
    assert is_for_user(of_library)
    assert in_one_line(of_library).startswith("Invalid learning rate: -1.0 (from torch/optim/")


@pytest.mark.parametrize(
    ("library", "line", "expected"),
    [
        ("transformers", "raise RuntimeError('sizes do not fit')", True),
        ("transformers", "().missing", False),
        ("torch", "raise RuntimeError('shapes do not fit')", False),
        ("transformers", "raise NotImplementedError('b')", False),
        ("transformers", "raise KeyError('a')", False),
    ],
)
def test_which_other_errors_are_the_users(library, line, expected):
    file = f"/venv/lib/site-packages/{library}/made_up.py"
    linecache.cache[file] = (len(line), None, [line], file)
    error = caught(lambda: exec(compile(line, file, "exec")))
    assert is_for_user(error) == expected
    assert in_one_line(error).endswith(f"(from {library}/made_up.py:1; REGION_LEARNER_DEBUG=1 shows more)")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full")
def test_a_full_disk_names_the_file(tmp_path, capsys):
    write_results(MSVD, tmp_path / "results.json")
    with pytest.raises(SystemExit) as end:
        main(["card", str(tmp_path / "results.json"), "--output", "/dev/full"])
    assert end.value.code == 2
    assert "the disk is full: [Errno 28] No space left on device: '/dev/full'" in capsys.readouterr().err


def test_write_errors_name_the_file():
    with pytest.raises(OSError, match=r"\[Errno 28\] No space left on device: 'a/b'"), naming("a/b"):
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match=r"\[Errno 13\] Permission denied: 'c'"), naming("a/b"):
        raise OSError(13, "Permission denied", "c")  # the error names its file already
    with pytest.raises(OSError, match=r"a/b cannot be written: I/O error: No space left"), naming("a/b"):
        raise SafetensorError("I/O error: No space left")

"""Tests for the README: its length, and that its examples print what it says after `make demo`."""

import ast
import contextlib
import io
import re

import pytest

from region_learner.cli import main
from region_learner.corpora import load_corpus, make_corpus
from region_learner.demo import run_demo
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .conftest import ROOT, tiny_model, tiny_text_config
from .test_docs import blocks_of, lines_of

README = ROOT / "README.md"


def example() -> tuple[str, str]:
    """Returns the Python example that loads the demo's checkpoint, and the output that its comment promises."""
    (code,) = [block for block in blocks_of(README, "python") if "AutoModel" in block]
    (printed,) = re.findall(r"^print\(.*\)  # (.+)$", code, re.MULTILINE)
    return code, printed


def output_of(code: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    return printed.getvalue().strip()


def test_it_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) < 150


def test_the_python_example_runs(tmp_path, monkeypatch):
    """With an untrained model, the example runs and prints one of its texts."""
    monkeypatch.chdir(tmp_path)
    sizes = {"train": 0, "val": 0, "test_unseen": 0, "size": 48, "frames": 4, "objects": [1, 1]}
    code, printed = example()
    (number,) = re.findall(r"test-(\d+)\.mp4", code)
    make_corpus("moving_shapes", "demo-output/corpus", workers=1, progress=False, test=int(number) + 1, **sizes)
    rows = load_corpus("moving_shapes", "demo-output/corpus", "test")
    tokenizer = train_tokenizer([text for row in rows for text in row["captions"]], 99, 32)
    processor = RegionLearnerProcessor(RegionLearnerVideoProcessor.for_image_size(32, num_frames=4), tokenizer)
    for part in (tiny_model(text=tiny_text_config(vocab_size=99)), processor):
        part.save_pretrained("demo-output/checkpoint")
    (texts,) = re.findall(r"^texts = (\[.+\])", code, re.MULTILINE)
    assert printed in ast.literal_eval(texts)
    assert output_of(code) in ast.literal_eval(texts)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_examples_print_what_the_readme_says(tmp_path, monkeypatch, capsys):
    """After the whole demo, the query finds its clip, and the example prints the right text."""
    monkeypatch.chdir(tmp_path)
    run_demo("demo-output")
    code, printed = example()
    assert output_of(code) == printed
    lines = [words for block in blocks_of(README, "bash") for words in lines_of(block)]
    ((_, *argv),) = [words for words in lines if "demo-output/videos.index" in words]
    # The probability and the score are not compared, because they depend on the processor, and the times only roughly.
    line = r"\d+%  [\d.]+  (\d\d):(\d\d)-(\d\d):(\d\d)  \S*?(video-\d+\.mp4)\n"
    ((*times, name),) = re.findall(rf"```\n *{line}```", README.read_text("utf-8"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:  # also on success
        main(argv)
    assert not exit_info.value.code
    ((*found, video),) = re.findall(line, capsys.readouterr().out)
    assert video == name
    (start, end), (found_start, found_end) = (
        [60 * int(one[at]) + int(one[at + 1]) for at in (0, 2)] for one in (times, found)
    )
    assert min(end, found_end) > max(start, found_start)

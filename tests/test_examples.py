"""
Tests that the notebooks of `examples/` are committed without outputs, and that their imports exist. In the slow tier,
they run with less data, and find what they should. The scripts run on toys, and Accelerate reads its configurations.
"""

import ast
import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from PIL import Image

from region_learner import RegionLearnerModel, RegionLearnerProcessor, VideoIndex, load_corpus
from region_learner.corpora import make_corpus
from region_learner.evaluation import retrieval_accuracy
from region_learner.video_decoding_region_learner import read_clip

from .conftest import ROOT
from .search_toys import make_videos, save_checkpoint

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
SEARCH, FINETUNE = "search_a_folder.ipynb", "finetune_and_see_regions.ipynb"

# Runs in a separate process, because kernels and their clients warn about each other.
EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[1])
"""


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def code_cell(source: str) -> dict:
    empty = {"metadata": {}, "execution_count": None, "outputs": []}
    return {"cell_type": "code", "id": f"test-{len(source)}", "source": source} | empty


def run(name: str, directory: Path, report: str, **parameters) -> tuple[Any, int]:
    """
    Runs a notebook in a directory, with other values of its parameters.

    Returns:
        The value of the expression `report` after the last cell, and the number of pictures that the notebook shows.
    """
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook, path = read(ROOT / "examples" / name), directory / name
    cells = notebook["cells"]
    (at,) = [i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", ())]
    cells.insert(at + 1, code_cell("\n".join(f"{key} = {value!r}" for key, value in parameters.items())))
    cells.append(code_cell(f"import json\nprint(json.dumps({report}))"))
    path.write_text(json.dumps(notebook), encoding="utf-8")
    environment = os.environ | {"IPYTHONDIR": str(directory / "ipython")}
    command = [sys.executable, "-c", EXECUTE, str(path)]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    outputs = [output for cell in code_cells(read(path)) for output in cell["outputs"]]
    return json.loads("".join(outputs[-1]["text"])), sum("image/png" in output.get("data", ()) for output in outputs)


def test_all_notebooks_are_known():
    assert [path.name for path in NOTEBOOKS] == sorted([SEARCH, FINETUNE])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean(path):
    """A notebook has no outputs, and no traces of the machine on which it was last run."""
    notebook = read(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in code_cells(notebook):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        assert cell["metadata"] in ({}, {"tags": ["parameters"]})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_imports_of_notebook_exist(path):
    for cell in code_cells(read(path)):
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.Import):
                for item in node.names:
                    importlib.import_module(item.name)
            elif isinstance(node, ast.ImportFrom) and not node.module.startswith("IPython"):  # every notebook has it
                module = importlib.import_module(node.module)
                assert not [item.name for item in node.names if not hasattr(module, item.name)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_notebook_are_not_broken(path):
    for cell in read(path)["cells"]:
        if cell["cell_type"] == "markdown":
            for target in re.findall(r"\]\(([^)#]+)\)", "".join(cell["source"])):
                assert (path.parent / target).exists(), target


# --- Running them --------------------------------------------------------------------------------------------


def overlap(one: list, other: list) -> float:
    """Returns how many seconds two spans share. Each is a path, a start and an end."""
    return min(one[2], other[2]) - max(one[1], other[1]) if one[0] == other[0] else 0.0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_search_finds_the_clips(tmp_path):
    report = """{
        "hits": [(hit.path, hit.start, hit.end) for hit in hits],
        "more": [(hit.path, hit.start, hit.end) for hit in more],
        "clips": clips, "first": first, "among_5": among_5, "again": len(index.update(VIDEOS).unchanged),
    }"""
    found, pictures = run(SEARCH, tmp_path, report, CLIPS=400)
    ((_, *wanted),) = [clip for clip in found["clips"] if {"red", "heart"} <= set(clip[0].split())]
    assert overlap(found["hits"][0], wanted) > 0
    assert overlap(found["more"][0], found["hits"][0]) > 0
    assert found["again"] == 4
    # There are 19 windows in each of 4 videos: by chance, a first hit is right for about 1 of 40 captions.
    assert found["first"] >= 8
    assert found["among_5"] > found["first"]
    assert pictures >= 7
    output = tmp_path / "search-output"
    _, metadata = read_clip(output / "best.mp4", lambda metadata: range(1))
    _, start, end = found["hits"][0]
    assert metadata.end == pytest.approx(end - start)
    assert "red heart" in (output / "hits.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_training_learns_regions(tmp_path):
    report = "{name: metrics[name] for name in ('videos', 't2v_R@1', 'reranked')} | grounding"
    found, pictures = run(FINETUNE, tmp_path, report, CLIPS=400, TEST_CLIPS=60, EPOCHS=10)
    chance = 100 / 60
    assert found["videos"] == 60
    assert found["t2v_R@1"] > 5 * chance
    assert found["reranked"]["rr_t2v_R@1"] > 5 * chance
    assert found["pointing"] > 2 * found["chance_pointing"]
    assert pictures == 3
    with Image.open(tmp_path / "finetune-output" / "phrases.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**24)) > 100


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_notebooks_run_with_custom_videos_and_checkpoints(tmp_path):
    """The model has random weights, so what it finds is not checked."""
    videos, model = make_videos(tmp_path / "videos"), save_checkpoint("clip", tmp_path / "clip")
    found, _ = run(SEARCH, tmp_path, "index.paths()", VIDEOS=str(videos), MODEL=str(model), WINDOW=10, STRIDE=5)
    assert len(found) == 5
    sizes = {"train": 16, "val": 0, "test": 8, "test_unseen": 0, "size": 48, "frames": 4}
    corpus = make_corpus("moving_shapes", tmp_path / "corpus", progress=False, **sizes)
    report = "[metrics['videos'], model.config.video_config.region_form]"
    found, pictures = run(FINETUNE, tmp_path, report, DATA=str(corpus), CHECKPOINT=str(model), EPOCHS=1)
    assert (found, pictures) == ([8, "queries"], 3)


# --- Scripts and configuration files -----------------------------------------------------------------------------


def run_script(name: str, *argv, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def test_the_script_searches_a_folder(tmp_path, monkeypatch, capsys):
    videos = make_videos(tmp_path / "videos", {"a.mp4": 3, "sub/b.mp4": 14})
    (videos / "broken.mp4").write_bytes(b"not a video")
    model = save_checkpoint("space_time", tmp_path / "model")
    arguments = (videos, "a red square", "--index", tmp_path / "index")
    run_script("search_a_folder.py", *arguments, "--model", model, monkeypatch=monkeypatch)
    report, skipped, *hits = capsys.readouterr().out.splitlines()
    assert report.startswith("2 new")
    assert skipped.startswith(f"{videos / 'broken.mp4'} was skipped: ")
    found = VideoIndex.open(tmp_path / "index").search("a red square", k=5)
    assert [hit.split()[-1] for hit in hits] == [hit.path for hit in found]
    run_script("search_a_folder.py", *arguments, "--top", 1, monkeypatch=monkeypatch)
    assert capsys.readouterr().out.splitlines()[-1] == hits[0]
    with pytest.raises(SystemExit):
        run_script("search_a_folder.py", *arguments, "--model", "another", monkeypatch=monkeypatch)
    assert "has its own model: leave out --model, or name another --index." in capsys.readouterr().err


def test_the_script_fine_tunes(tmp_path, monkeypatch, capsys):
    sizes = {"train": 4, "val": 0, "test": 2, "test_unseen": 0, "size": 48, "frames": 4}
    corpus = make_corpus("moving_shapes", tmp_path / "corpus", progress=False, **sizes)
    model = save_checkpoint("space_time", tmp_path / "model")
    arguments = (model, corpus, "--output-dir", tmp_path / "run", "--epochs", 1, "--batch-size", 2, "--workers", 0)
    run_script("finetune.py", *arguments, monkeypatch=monkeypatch)
    shown = [line.split() for line in capsys.readouterr().out.splitlines() if "->" in line]
    assert [line[0] for line in shown] == ["t2v_R@1", "t2v_R@5", "t2v_MedR", "v2t_R@1", "v2t_R@5", "v2t_MedR"]
    trained = RegionLearnerModel.from_pretrained(tmp_path / "run")
    processor = RegionLearnerProcessor.from_pretrained(tmp_path / "run")
    metrics = retrieval_accuracy(trained, processor, load_corpus("folder", corpus, "test"))
    assert [float(line[3]) for line in shown] == [round(metrics[line[0]], 1) for line in shown]
    before = RegionLearnerModel.from_pretrained(model)
    assert any(not torch.equal(new, old) for new, old in zip(trained.parameters(), before.parameters()))
    with pytest.raises(SystemExit):
        run_script("finetune.py", *arguments, monkeypatch=monkeypatch)
    assert "run exists: name a new directory." in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configuration(path):
    """Accelerate's own parser accepts every field, and `accelerate launch` starts what the file says."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = load_config_from_file(str(path))
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed_zero2": "DEEPSPEED"}
    assert config.distributed_type == kinds[path.stem]
    assert config.num_processes == content["num_processes"]
    assert config.mixed_precision == "bf16"
    assert content.keys() <= config.to_dict().keys()
    known = {action.dest for action in launch_command_parser()._actions}
    for section in ("fsdp_config", "deepspeed_config"):
        assert content.get(section, {}).keys() <= known

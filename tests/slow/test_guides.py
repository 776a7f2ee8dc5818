"""
Runs the commands and the Python code of guides, one after the other, as a reader would. Toys replace videos and
pre-trained weights, each training run takes one step, and a loop over seeds uses only the first one.
"""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from transformers import DistilBertModel, ViTConfig, ViTModel

from region_learner import RegionLearnerModel, VideoIndex
from region_learner.evaluation import read_results
from region_learner.training.tokenizer import train_tokenizer

from ..conftest import tiny_text_config
from ..search_toys import WORDS, make_video, save_checkpoint
from ..test_backbones import IMAGE, SIZES
from ..test_docs import DOCS, LOOPS, blocks_of, exit_code, lines_of, without_placeholders
from ..test_docstrings import TOYS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
QUICK = "--max-steps 1 --use-cpu true --dataloader-num-workers 0 --per-device-train-batch-size 2"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Returns a function that runs a guide in a directory with the files that guides name."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("train/0001", "train/0002", "val/0051", "test/0101", "test/0102")):
        video = make_video(Path("my_videos") / f"{name}.mp4", 4, number)
        with open(video.parent / "metadata.jsonl", "a", encoding="utf-8") as file:
            print(json.dumps({"file_name": video.name, "text": f"a dog catches frisbee {number}"}), file=file)
    make_video(Path("my_videos/football/goal.mp4"), 12, seed=5)
    make_video(Path("clip.mp4"), 21, seed=6)
    shutil.copy("my_videos/test/0101.mp4", "video.mp4")
    Image.new("RGB", (48, 64), "red").save("dress.jpg")
    save_checkpoint("clip", Path("clip"))
    save_checkpoint("space_time", Path("CHECKPOINT"))
    ViTModel(ViTConfig(**SIZES, **IMAGE)).save_pretrained("vit")
    tokenizer = train_tokenizer([WORDS] * 20, 99, 16)
    DistilBertModel(tiny_text_config(vocab_size=len(tokenizer))).save_pretrained("distilbert")
    tokenizer.save_pretrained("distilbert")

    def run(name: str) -> list[str]:
        """Returns the commands that have run."""
        done = []
        for block in blocks_of(DOCS / name, "bash"):
            for program, *argv in lines_of(without_placeholders(block)):
                if program in LOOPS | {"pip"} or argv[0] == "app":  # the app runs until it is stopped
                    continue
                assert program == "region-learner"
                argv = [TOYS.get(word, word) for word in argv]
                if argv[0] == "index" and "--model" not in argv:
                    argv += ["--model", "clip"]  # instead of the default, SigLIP 2
                elif argv[0] == "train":
                    argv += QUICK.split()
                assert exit_code(argv) == 0, argv
                done.append(argv[0])
        return done

    return run


def run_python(name: str):
    for code in blocks_of(DOCS / name, "python"):
        for weights, toy in TOYS.items():
            code = code.replace(weights, toy)
        exec(code, {})


def test_search(run, capsys):
    assert run("search.md").count("search") == 7
    assert len(VideoIndex.open("videos.index")) == 6
    assert any(Path("cut").iterdir())
    assert "<html" in Path("goals.html").read_text(encoding="utf-8")


def test_fine_tune(run):
    assert run("finetune.md").count("train") == 5
    assert read_results("mine.json").metrics["t2v_R@1"] >= 0
    assert len(VideoIndex.open("mine.index")) == 6
    run_python("finetune.md")
    assert RegionLearnerModel.from_pretrained("runs/clip").config.video_config.num_regions == 0


def test_regions(run):
    assert run("regions_on_your_data.md").count("train") == 3
    for name in ("regions.png", "phrases.png"):
        with Image.open(name) as picture:
            assert picture.width > 300
    names = ("plain", "phrases", "regions")
    plain, phrases, regions = (json.loads(Path(f"runs/{name}-0/results.json").read_text()) for name in names)
    assert plain["test"].keys() == phrases["test"].keys() == regions["test"].keys() - {"reranked"}
    assert "rr_t2v_R@1" in regions["test"]["reranked"]
    run_python("regions_on_your_data.md")

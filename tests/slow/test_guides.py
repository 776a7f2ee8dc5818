"""
Runs the commands of the README and the guides, and the Python code of some, one after the other, as a reader would.
Toys replace videos, data and pre-trained weights, each training run takes one step, and a loop over seeds uses only
the first one. Other tests run the recipes of `docs/pretrain.md` (test_recipes.py), and the scripts in `benchmarks`
and `experiments`.
"""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from transformers import DistilBertModel, ViTConfig, ViTModel

from region_learner import RegionLearnerModel, VideoIndex
from region_learner.corpora import make_corpus
from region_learner.evaluation import read_results
from region_learner.training.tokenizer import train_tokenizer

from ..conftest import ROOT, tiny_text_config
from ..search_toys import WORDS, make_video, save_checkpoint
from ..test_backbones import IMAGE, SIZES
from ..test_benchmarks import PAIRS
from ..test_docs import DOCS, LOOPS, blocks_of, exit_code, lines_of, without_placeholders
from ..test_docstrings import TOYS
from ..test_protocols import places  # noqa: F401 # a fixture
from ..test_recipes import (
    SHAPES,
    Media,
    make_actions,
    make_cc3m,
    make_didemo,
    make_lsmdc,
    make_msrvtt,
    make_msvd,
    make_webdataset,
    make_webvid,
    write,
)

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
        for block in blocks_of(ROOT / name if name == "README.md" else DOCS / name, "bash"):
            for program, *argv in lines_of(without_placeholders(block)):
                if program in LOOPS | {"pip", "source", "python"} or is_left_out(argv):
                    continue
                assert program == "region-learner"
                argv = [TOYS.get(word, word) for word in argv]
                if argv[0] == "index" and argv[1] != "export" and not {"--model", "--from-embeddings"} & set(argv):
                    argv += ["--model", "clip"]  # instead of the default, SigLIP 2
                elif argv[0] == "train":
                    argv = ["small_from_scratch" if word == "RECIPE" else word for word in argv] + QUICK.split()
                assert exit_code(argv) == 0, argv
                done.append(argv[0])
        return done

    return run


def is_left_out(argv: list[str]) -> bool:
    """
    Returns whether a command runs until it is stopped, needs a server, another package, the files of the demo or a
    checkpoint of the reference implementation, or makes what already exists.
    """
    return (
        argv[0] in ("app", "demo", "mteb", "convert")
        or (argv[:2] == ["corpus", "make"] and Path(argv[2]).exists())
        or ("lance" in argv and importlib.util.find_spec("lancedb") is None)
        or any("://" in word or word.startswith("demo-output") for word in argv)
        or (argv[0] == "push" and "--dry-run" not in argv)
    )


@pytest.fixture
def data(run, places, tmp_path):  # noqa: F811
    """Toys of the benchmarks that guides name, in the places that they name."""
    media, root = Media(tmp_path / "media"), Path("data")
    make_msrvtt(root / "MSRVTT", media)
    Path("MSRVTT").symlink_to("data/MSRVTT")
    for name, make in {
        "MSVD": make_msvd, "DiDeMo": make_didemo, "LSMDC": make_lsmdc, "WebVid": make_webvid, "CC3M": make_cc3m
    }.items():  # fmt: skip
        make(root / name, media)
    make_actions(root / "actions", media)
    (root / "actions" / "ucf101").rename(root / "UCF101")
    for list_of_files in list((root / "UCF101" / "ucfTrainTestlist").glob("*list01.txt")):
        shutil.copy(list_of_files, list_of_files.with_name(list_of_files.name.replace("01", "02")))
    (root / "HMDB51").symlink_to(places.data / "hmdb51")
    Path("runs").mkdir()
    for fold in (1, 2, 3):
        Path(f"runs/hmdb51-{fold}").symlink_to(places.root / f"fold{fold}")
    for aspect, pair in PAIRS.items():
        write(root / "VITATECS" / "data" / f"{aspect}.jsonl", json.dumps(pair) + "\n")
    media.link(root / "VITATECS/videos", [f"{pair['src_dataset']}/{pair['video_name']}" for pair in PAIRS.values()])
    make_webdataset(Path("my_shards"), media)
    make_corpus("moving_shapes", root / "shapes", workers=1, progress=False, **SHAPES | {"val": 2, "objects": [2, 2]})
    for name in ("train", "test"):
        shutil.copytree(Path("my_videos") / name, root / "mine" / name)
    Path("path/to").mkdir(parents=True)
    for name in ("videos", "path/to/my_videos"):
        Path(name).symlink_to(Path("my_videos").absolute())
    shutil.copy("video.mp4", "another.mp4")
    Path("converted").symlink_to("CHECKPOINT")
    shutil.copytree("CHECKPOINT", "runs/mine")


def run_python(name: str):
    for code in blocks_of(DOCS / name, "python"):
        code = code.replace('VideoIndex.create("videos.index")', 'VideoIndex.create("videos.index", "clip")')
        for weights, toy in TOYS.items():
            code = code.replace(weights, toy)
        exec(code, {})


def test_search(run, capsys):
    assert run("search.md").count("search") == 7
    assert len(VideoIndex.open("videos.index")) == 6
    assert any(Path("cut").iterdir())
    assert "<html" in Path("goals.html").read_text(encoding="utf-8")
    shutil.rmtree("videos.index")
    make_video(Path("my_videos/private/clip.mp4"), 4, seed=7)
    run_python("search.md")


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


@pytest.mark.parametrize(
    ("page", "commands"),
    {
        "README.md": 6, "backbones.md": 5, "convert.md": 1, "corpora.md": 13, "evaluation.md": 12, "features.md": 4,
        "publish.md": 4, "scale.md": 7, "video.md": 2,
    }.items(),
)  # fmt: skip
def test_commands_of_other_pages(page, commands, run, data):
    if page == "corpora.md":
        Path("my_shards").rename("shards")
    elif page == "evaluation.md":  # its model compares words with regions
        save_checkpoint("words", Path("CHECKPOINT"))
    elif page == "publish.md":
        for name, protocol, benchmark in (
            ("msrvtt_1ka", "msrvtt_1ka", "MSRVTT"), ("msvd_zero_shot", "msvd_zero_shot", "MSVD")
        ):  # fmt: skip
            argv = ["evaluate", "CHECKPOINT", "--protocol", protocol, "--data-dir", f"data/{benchmark}"]
            assert exit_code([*argv, "--output", f"{name}.json"]) == 0
    assert len(run(page)) >= commands

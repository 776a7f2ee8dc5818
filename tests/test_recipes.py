"""Runs every recipe at toy size on stand-ins for its data, and checks recipe headers and errors about wrong keys."""

import itertools
import json
import re
import shlex
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import timm
import torch
import typer
from PIL import Image
from transformers import AutoModel, AutoModelForVideoClassification, AutoProcessor, DistilBertModel

from region_learner import RegionLearnerForVideoQuestionAnswering
from region_learner.cli import app
from region_learner.corpora import corpus_options, list_corpora, make_corpus
from region_learner.corpora.encoding import add_video_stream
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.training import RegionLearnerTrainer, parse_arguments, parse_stages, run, train_stages
from region_learner.training.collator import stable_id
from region_learner.training.recipes import list_recipes, recipe_description
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .conftest import ROOT, randomize, tiny_model, tiny_text_config
from .test_backbones import save_family
from .test_benchmarks import write_csv

SHAPES = {"train": 6, "val": 0, "test": 3, "test_unseen": 0, "size": 48, "frames": 4, "objects": [1, 1]}
WORDS = ["a red square moves", "two dogs run", "somebody sings", "cars in the rain", "how to cook", "what is it?"]
CLIP = "1012_Unbreakable_00.05.16.065-00.05.21.94"

RETRIEVAL = ("t2v_R@1", "v2t_MedR", "videos")
ANSWERS = ("accuracy", "questions", "out_of_vocabulary")


@dataclass
class Toy:
    """
    A toy run of a recipe, and what is expected of it.

    Args:
        options: options with the places of data and models: "{data}", "{checkpoint}" and so on are filled in.
        frames: frames per clip in each of the steps.
        rate: learning rate of the first step of each stage; with warm-up, this is 0.
        metrics: some of the final metrics; empty if the recipe does not test.
        rows: training rows of each corpus.
        evaluated: a metric of the evaluations during training, or None if there are none. A star means that the
            best checkpoint is chosen by it.
        model: the class that loads the checkpoint.
        paper: whether the optimizer has the paper's settings.
    """

    options: str
    frames: list[int] = field(default_factory=lambda: [8, 8])
    rate: list[float] = field(default_factory=lambda: [3e-5])
    metrics: tuple[str, ...] = RETRIEVAL
    rows: list[int] = field(default_factory=lambda: [4])
    evaluated: str | None = None
    model: type = AutoModel
    paper: bool = True


TOWERS = "--video_tower={timm} --text_tower={distilbert}"
IMAGES_AND_VIDEOS = "--data_dirs cc3m={data}/cc3m webvid={data}/webvid"
ON_CLIP = (
    "--model={clip} --region_form=decoupled "
    '--config \'{{"video_config": {{"codebook_size": 8, "interaction_heads": 4}}}}\''
)
TOYS = {
    "pretrain_cc3m_webvid": Toy(
        f"{TOWERS} {IMAGES_AND_VIDEOS}",
        frames=[1, 1], rate=[2e-4], metrics=(), rows=[4, 4], evaluated="t2v_gmean",
    ),
    "pretrain_webdataset": Toy(
        TOWERS + " --data_dir={data}/webdataset", frames=[1, 1], rate=[2e-4], metrics=(), rows=[],
    ),
    "curriculum_4f": Toy(
        "--model={checkpoint} " + IMAGES_AND_VIDEOS,
        frames=[1, 4], metrics=(), rows=[4, 4], evaluated="t2v_gmean",
    ),
    "curriculum_1f_4f_8f": Toy(
        f"{TOWERS} {IMAGES_AND_VIDEOS}",
        frames=[1, 1, 1, 4, 1, 8], rate=[2e-4, 3e-5, 1e-5], metrics=(), rows=[4, 4], evaluated="t2v_gmean",
    ),
    "finetune_msrvtt": Toy("--model={checkpoint} --data_dir={data}/msrvtt", rows=[5]),
    "finetune_msrvtt_12f": Toy(
        f"{ON_CLIP} --data_dir={{data}}/msrvtt", frames=[12, 12], rate=[0.0], rows=[5], paper=False
    ),
    "finetune_msrvtt_16f": Toy(
        f"{ON_CLIP} --data_dir={{data}}/msrvtt", frames=[16, 16], rate=[0.0], rows=[5], paper=False
    ),
    "finetune_msvd": Toy("--model={checkpoint} --data_dir={data}/msvd", evaluated="t2v_gmean*"),
    "finetune_didemo": Toy("--model={checkpoint} --data_dir={data}/didemo", evaluated="t2v_gmean*"),
    "finetune_lsmdc": Toy("--model={checkpoint} --data_dir={data}/lsmdc", evaluated="t2v_gmean*"),
    "finetune_msrvtt_qa": Toy(
        "--model={checkpoint} --data_dir={data}/msrvtt",
        metrics=ANSWERS, evaluated="accuracy*", model=RegionLearnerForVideoQuestionAnswering,
    ),
    "finetune_msvd_qa": Toy(
        "--model={checkpoint} --data_dir={data}/msvd",
        metrics=ANSWERS, evaluated="accuracy*", model=RegionLearnerForVideoQuestionAnswering,
    ),
    "finetune_msrvtt_mc": Toy(
        "--model={checkpoint} --data_dirs msrvtt={data}/msrvtt msrvtt_mc={data}/msrvtt",
        metrics=("accuracy", "questions"),
    ),
    "finetune_lsmdc_mc": Toy(
        "--model={checkpoint} --data_dir={data}/lsmdc", metrics=("accuracy", "questions"), evaluated="accuracy*",
    ),
    "finetune_hmdb51": Toy(
        "--model={checkpoint} --data_dir={data}/hmdb51",
        metrics=("top1", "top5"), model=AutoModelForVideoClassification,
    ),
    "finetune_ucf101": Toy(
        "--model={checkpoint} --data_dir={data}/ucf101",
        metrics=("top1", "top5"), model=AutoModelForVideoClassification,
    ),
    "finetune_folder": Toy("--model={checkpoint} --data_dir={data}/folder", frames=[4, 4], metrics=(), rate=[0.0]),
    "moving_shapes": Toy(
        "--data_dir={data}/shapes --corpus_options=none", frames=[4, 4], rate=[0.0], rows=[6], paper=False,
    ),
    "small_from_scratch": Toy("--data_dir={data}/folder", frames=[2, 2], rate=[0.0], paper=False),
}  # fmt: skip
SIZES = (
    "--per_device_train_batch_size=2 --per_device_eval_batch_size=2 --max_steps=2 --logging_steps=1 "
    "--dataloader_num_workers=0 --dataloader_pin_memory=false --use_cpu=true --disable_tqdm=true"
)


# Stand-ins


class Media:
    """Writes three clips of eight frames and an image, and links them wherever a corpus expects a file."""

    def __init__(self, folder: Path):
        folder.mkdir()
        generator = np.random.default_rng(0)
        clips = [folder / f"{number}.mp4" for number in range(3)]
        for path in clips:
            with av.open(str(path), "w") as container:
                stream = add_video_stream(container, "mpeg4", rate=8)
                stream.width = stream.height = 32
                stream.pix_fmt = "yuv420p"
                for _ in range(8):
                    pixels = generator.integers(0, 255, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                container.mux(stream.encode())
        self.clips = itertools.cycle(clips)
        self.image = folder / "image.jpg"
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), np.uint8)).save(self.image)

    def link(self, folder: Path, names):
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.hardlink_to(self.image if path.suffix == ".jpg" else next(self.clips))


def write(path: Path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def caption(number: int) -> str:
    return f"{WORDS[number % len(WORDS)]} {number}"


def questions(ids: list) -> list[dict]:
    return [{"question": WORDS[5], "answer": "ab"[i % 2], "video_id": video_id} for i, video_id in enumerate(ids)]


def make_msrvtt(root: Path, media: Media):
    splits = {"train": [0, 1, 2, 3], "val": [6513, 6514], "test": [7010, 7011, 7012]}
    numbers = [*itertools.chain(*splits.values()), 8000]
    sentences = [{"video_id": f"video{n}", "caption": text} for n in numbers for text in (caption(n), caption(n + 1))]
    write(root / "annotation" / "MSRVTT_data.json", {"sentences": sentences})
    for split, own in splits.items():
        write(root / f"{split}_list_full.txt", "\n".join(f"video{n}" for n in own))
        write(root / "MSRVTT-QA" / f"{split}_qa.json", questions(own))
    # Protocol 1k-A has one more training video, which is a test video of protocol full.
    write_csv(root / "MSRVTT_train.9k.csv", [{"video_id": f"video{n}"} for n in (*splits["train"], 8000)])
    pairs = [{"key": f"ret{n}", "video_id": f"video{n}", "sentence": caption(n)} for n in splits["test"]]
    write_csv(root / "MSRVTT_JSFUSION_test.csv", pairs)
    choices = [{"clip_name": f"video{n}", "options": WORDS[:5], "answer": n % 5} for n in splits["test"]]
    write(root / "mc_test.jsonl", "\n".join(map(json.dumps, choices)))
    media.link(root / "videos" / "all", [f"video{n}.mp4" for n in numbers])


def make_msvd(root: Path, media: Media):
    splits = {"train": [1, 2, 3, 4], "val": [5, 6], "test": [7, 8, 9]}
    numbers = list(itertools.chain(*splits.values()))
    write(root / "captions_msvd.json", {f"id{n}_1_2": [caption(n), caption(n + 1)] for n in numbers})
    write(root / "youtube_mapping.txt", "\n".join(f"id{n}_1_2 vid{n}" for n in numbers))
    for split, own in splits.items():
        write(root / f"{split}_list.txt", "\n".join(f"id{n}_1_2" for n in own))
        write(root / f"{split}_qa.json", questions(own))
    media.link(root / "YouTubeClips", [f"id{n}_1_2.avi" for n in numbers])


def make_didemo(root: Path, media: Media):
    for split, own in {"train": range(4), "val": range(4, 6), "test": range(6, 9)}.items():
        moments = [{"video": f"{n}.mov", "description": text} for n in own for text in (caption(n), "Again.")]
        write(root / "data" / f"{split}_data.json", moments)
    media.link(root / "videos", [f"{n}.mov" for n in range(9)])


def make_lsmdc(root: Path, media: Media):
    names = {
        "LSMDC16_annos_training.csv": (range(4), False),
        "LSMDC16_annos_val.csv": (range(4, 6), False),
        "LSMDC16_challenge_1000_publictect.csv": (range(6, 9), False),
        "LSMDC16_multiple_choice_train.csv": (range(4), True),
        "LSMDC16_multiple_choice_valid.csv": (range(4, 6), True),
        "LSMDC16_multiple_choice_test_randomized.csv": (range(6, 9), True),
    }
    for name, (own, choices) in names.items():
        lines = []
        for n in own:
            last = ["1"] if "test" in name else []
            text = [caption(n), *WORDS[1:5], *last] if choices else [caption(n)]
            lines.append("\t".join([f"{CLIP}{n}", *["00.00.51.926"] * 4, *text]))
        write(root / name, "\n".join(lines) + "\n")
    media.link(root / "avi" / "1012_Unbreakable", [f"{CLIP}{n}.avi" for n in range(9)])


def make_actions(root: Path, media: Media):
    for label in ("brush_hair", "climb"):
        names = [f"{label}{n}.avi" for n in range(3)]
        uses = "\n".join(f"{name} {1 if n < 2 else 2}" for n, name in enumerate(names))
        write(root / "hmdb51" / "testTrainMulti_7030_splits" / f"{label}_test_split1.txt", uses)
        media.link(root / "hmdb51" / "hmdb51_org" / label, names)
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for number, label in enumerate(("Archery", "BabyCrawling"), start=1):
        names = [f"{label}/v_{label}_g0{n}_c01.avi" for n in range(3)]
        lists["train"] += [f"{name} {number}" for name in names[:2]]
        lists["test"] += names[2:]
        media.link(root / "ucf101" / "UCF-101", names)
    for use, lines in lists.items():
        write(root / "ucf101" / "ucfTrainTestlist" / f"{use}list01.txt", "\n".join(lines))


def make_webvid(root: Path, media: Media):
    for split, own in {"train": range(4), "val": range(4, 7)}.items():
        rows = [{"videoid": f"webvid{n}", "name": caption(n), "page_dir": "000001_000050"} for n in own]
        write_csv(root / f"results_2M_{split}.csv", rows)
    media.link(root / "videos" / "000001_000050", [f"webvid{n}.mp4" for n in range(7)])


def make_cc3m(root: Path, media: Media):
    """Five rows, one of them with a dead URL."""
    urls = [f"http://example.com/{n}" for n in range(5)]
    write(root / "Train_GCC-training.tsv", "".join(f"{caption(n)}\t{url}\n" for n, url in enumerate(urls)))
    media.link(root / "training", [f"{zlib.crc32(url.encode())}.jpg" for url in urls[:4]])


def make_webdataset(root: Path, media: Media):
    root.mkdir()
    for shard in range(2):
        with tarfile.open(root / f"train-{shard:05}.tar", "w") as tar:
            for n in range(2):
                write(root / "text", caption(n))
                tar.add(next(media.clips), f"{shard}{n}.mp4")
                tar.add(root / "text", f"{shard}{n}.txt")


def make_folder(root: Path, media: Media):
    rows = [{"file_name": f"{n}.mp4", "caption": caption(n)} for n in range(4)]
    write(root / "train" / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    media.link(root / "train", [row["file_name"] for row in rows])


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Paths of `data`, a `checkpoint` that reads one frame, `clip`, and two towers, `timm` and `distilbert`."""
    root = tmp_path_factory.mktemp("recipes")
    data, media = root / "data", Media(root / "media")
    for name in ("msrvtt", "msvd", "didemo", "lsmdc", "webvid", "cc3m", "folder"):
        globals()[f"make_{name}"](data / name, media)
    make_webdataset(data / "webdataset", media)
    make_actions(data, media)
    make_corpus("moving_shapes", data / "shapes", workers=1, progress=False, **SHAPES)

    tokenizer = train_tokenizer([caption(n) for n in range(12)], 99, 16)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    image_model = randomize(timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes))
    timm.models.save_for_hf(image_model, root / "timm", model_args=sizes, safe_serialization=True)
    randomize(DistilBertModel(tiny_text_config())).save_pretrained(root / "distilbert")
    tokenizer.save_pretrained(root / "distilbert")
    tiny_model(num_frames=4).save_pretrained(root / "checkpoint")
    video_processor = RegionLearnerVideoProcessor.for_image_size(32, num_frames=1)
    RegionLearnerProcessor(video_processor, tokenizer).save_pretrained(root / "checkpoint")
    save_family("clip", root / "clip")
    names = ("data", "checkpoint", "timm", "distilbert", "clip")
    return SimpleNamespace(**{name: str(root / name) for name in names})


# Runs


@pytest.fixture
def trainers(monkeypatch):
    """The trainers of all runs. Each records the clip shape, learning rate and video ids of its steps in `steps`."""
    made = []

    class Spy(RegionLearnerTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.steps = []
            made.append(self)

        def training_step(self, model, inputs, *args, **kwargs):
            group = self.optimizer.param_groups[0]
            ids = set(inputs["video_ids"].tolist()) if "video_ids" in inputs else None
            self.steps.append((tuple(inputs["pixel_values_videos"].shape), group["lr"], ids))
            return super().training_step(model, inputs, *args, **kwargs)

    monkeypatch.setattr(run, "RegionLearnerTrainer", Spy)
    return made


def test_every_recipe_is_run():
    assert set(TOYS) == set(list_recipes())


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_train_evaluate_and_save(name, places, trainers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that the recipe's default data_dir does not exist
    toy = TOYS[name]
    options = shlex.split(toy.options.format_map(vars(places)))
    results = train_stages(parse_stages([name, *options, *SIZES.split(), f"--output_dir={tmp_path}"]))

    # The run uses the settings of the recipe.
    steps = [step for trainer in trainers for step in trainer.steps]
    assert [shape[:2] for shape, _, _ in steps] == [(2, frames) for frames in toy.frames]
    assert [trainer.steps[0][1] for trainer in trainers] == pytest.approx(toy.rate)
    for trainer in trainers:
        group = trainer.optimizer.param_groups[0]
        if toy.paper:
            assert (group["eps"], group["weight_decay"]) == (1e-6, 0.0)
        assert [len(part.dataset) for part in trainer.parts if not part.streamed] == toy.rows
    if len(toy.rows) > 1:  # corpora take turns, one batch at a time
        of_corpora = [{stable_id(i) for i in part.dataset["video_id"]} for part in trainers[0].parts]
        for number, (_, _, ids) in enumerate(steps):
            assert ids <= of_corpora[number % len(of_corpora)]

    # The run was evaluated, and its results are recorded.
    assert results == json.loads((tmp_path / "results.json").read_text())
    for name in ("learning_rate", "per_device_train_batch_size", "seed"):
        assert results["arguments"][name] == getattr(trainers[-1].args, name)
    assert not results["arguments"].keys() & {"output_dir", "hub_token", "logging_dir"}
    assert results["train"]["processes"] == 1
    assert all(np.isfinite(float(entry["loss"])) for entry in results["log"] if "loss" in entry)
    assert set(toy.metrics) <= set(results.get("test", {}))
    assert bool(toy.metrics) == ("test" in results)
    found = [key.removeprefix("eval_") for entry in results["log"] for key in entry if key.startswith("eval_")]
    if toy.evaluated is None:
        assert not found
    else:
        assert toy.evaluated.rstrip("*") in found
        state = trainers[-1].state
        assert (state.best_model_checkpoint is not None) == toy.evaluated.endswith("*")

    # The saved checkpoint loads as the trained model.
    model, processor = toy.model.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert type(model) is type(trainers[-1].model)
    trained = trainers[-1].model.state_dict()
    assert all(torch.equal(tensor, trained[key]) for key, tensor in model.state_dict().items())
    assert model.config.video_config.num_frames >= max(toy.frames)
    assert processor.video_processor.num_frames == max(toy.frames)
    if toy.model is not AutoModel:
        assert len(model.config.id2label) == 2


def test_each_stage_continues_from_the_previous_one(places, trainers, tmp_path):
    """Each stage has more frames than the previous one, and a finished stage is not run again."""
    options = f"{TOWERS} {IMAGES_AND_VIDEOS} {SIZES}".format_map(vars(places)).split()
    argv = ["curriculum_1f_4f_8f", *options, "--max_steps=1", f"--output_dir={tmp_path}", "--eval_strategy=no"]
    stages = parse_stages(argv)
    assert [data.corpora[0]["data_dir"] for _, data, _ in stages] == [f"{places.data}/cc3m"] * 3
    assert [arguments.per_device_train_batch_size for _, _, arguments in parse_stages(argv[:1])] == [64, 16, 8]
    train_stages(stages[:2])
    assert AutoModel.from_pretrained(tmp_path / "stage-1").config.video_config.num_frames == 1
    assert AutoModel.from_pretrained(tmp_path / "stage-2").config.video_config.num_frames == 4
    train_stages(parse_stages([*argv, "--resume_from_checkpoint=true"]))
    assert len(trainers) == 3
    assert trainers[2].model.config.video_config.num_frames == 8
    assert trainers[2].model.config.video_config.codebook_size == 2048


# Settings of the paper


def test_pretraining_matches_the_paper():
    model, data, training = parse_arguments(["pretrain_cc3m_webvid"])
    assert [(entry["corpus"], entry.get("batch_size")) for entry in data.corpora] == [("cc3m", None), ("webvid", None)]
    assert (model.num_frames, model.video_config) == (1, {"num_frames": 4})
    assert (training.per_device_train_batch_size, training.mix, training.samples_per_epoch) == (64, "alternate", 10**6)
    assert [share * training.num_train_epochs for share in training.lr_milestones] == [30, 40]
    assert (training.lr_gamma, training.max_grad_norm, training.get_warmup_steps(1000)) == (0.1, 0.0, 0)
    assert (model.video_tower, model.text_tower) == (
        "vit_base_patch16_224.orig_in21k_ft_in1k",
        "distilbert-base-uncased",
    )


OF_DUAL_ENCODERS = {"finetune_msrvtt_12f": 12, "finetune_msrvtt_16f": 16}  # total batch of 128
FINETUNING = [
    name
    for name in list_recipes()
    if name.startswith("finetune_") and name not in {"finetune_folder", *OF_DUAL_ENCODERS}
]


@pytest.mark.parametrize("name", OF_DUAL_ENCODERS)
def test_finetuning_of_dual_encoders_matches_clip4clip(name):
    model, data, training = parse_arguments([name, "--model=anything", "--data_dir=anywhere"])
    assert model.video_config == {"num_frames": OF_DUAL_ENCODERS[name]}
    assert (training.learning_rate, training.video_learning_rate, training.text_learning_rate) == (1e-4, 1e-7, 1e-7)
    assert (training.get_warmup_steps(1000), training.num_train_epochs) == (100, 5)
    assert (data.train_split, data.test_split, data.eval_split) == ("train", "test", None)


@pytest.mark.parametrize("name", FINETUNING)
def test_finetuning_matches_the_paper_and_never_sees_the_test_split(name):
    model, data, training = parse_arguments([name, "--model=anything", "--data_dir=anywhere"])
    assert (training.per_device_train_batch_size, model.video_config) == (16, {"num_frames": 8})
    assert (training.max_grad_norm, training.lr_scheduler_type) == (0.0, "constant")
    assert training.num_train_epochs <= 100
    assert (data.train_split, data.test_split) == ("train", "test")
    assert data.eval_split in (None, "val")
    assert training.load_best_model_at_end == (data.eval_split == "val")
    assert f"{training.num_train_epochs:.0f}" in header(list_recipes()[name])


# Headers

ONE_GPU = {"finetune_folder", "moving_shapes", "small_from_scratch"}


def header(path: Path) -> str:
    return "".join(itertools.takewhile(lambda line: line.startswith("#"), path.open(encoding="utf-8")))


def commands(path: Path) -> list[list[str]]:
    """Returns the commands of a header, each of which starts on its own line, indented by three to five spaces."""
    text = re.sub(r"\\\n#\s+", "", header(path))
    lines = re.findall(r"^# {3,5}((?:region-learner|accelerate launch) .+)$", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_say_how_to_run_them(name):
    path = list_recipes()[name]
    seen = set()
    for words in commands(path):
        if words[:2] == ["region-learner", "evaluate"]:
            typer.main.get_command(app).commands["evaluate"].make_context("evaluate", words[2:])
            continue
        if words[:2] == ["accelerate", "launch"]:
            assert (words[2], words[4:6]) == ("--num_processes", ["-m", "region_learner.training"])
            arguments = words[6:]
        else:
            assert words[:2] == ["region-learner", "train"]
            arguments = words[2:]
        seen.add(words[0])
        assert arguments[0] == name
        stages = parse_stages(arguments)
        assert stages[-1][2].output_dir == arguments[arguments.index("--output-dir") + 1]
        for model, data, _ in stages:
            given = [model.model, model.video_tower, model.text_config]
            assert sum(value is not None for value in given) == 1  # the command is complete
            for entry in data.corpora or [{"corpus": data.corpus, "data_dir": data.data_dir}]:
                assert entry["corpus"] in list_corpora()
                assert set(entry.get("options", {})) <= set(corpus_options(entry["corpus"]))
                assert entry["data_dir"] or entry["corpus"] == "moving_shapes"
    assert seen == {"region-learner"} if name in ONE_GPU else {"region-learner", "accelerate"}


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_describe_their_data_and_results(name):
    path = list_recipes()[name]
    description = recipe_description(path)
    assert re.match(r"[A-Z].*\.$", description)
    assert len(description) < 110
    text = " ".join(header(path).replace("#", " ").split())
    assert text.startswith(description)
    for part in ("Data: ", "Expected"):
        assert part in text
    headings = re.findall(r"^##+ (.+)$", (ROOT / "docs" / "corpora.md").read_text(), re.MULTILINE)
    described = text.partition("Data: ")[2].partition("Expected")[0]
    for section in re.findall(r'"([^"]+)"', described):
        assert section in headings
    # Published results are quoted only if they were checked.
    checked = {"36.3 / 63.9 / 72.5", "31.0 / 59.5 / 70.5", "18.7 / 39.5 / 51.6"}
    assert set(re.findall(r"\d+\.\d / \d+\.\d / \d+\.\d", text)) <= checked


# Wrong keys


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lerning_rate: 1", "unknown key 'lerning_rate'; did you mean 'learning_rate'"),
        ("stage: [{learning_rate: 1}]", "unknown key 'stage'; did you mean 'stages'"),
        ("stages: [{learning_rate: 1}, {num_frame: 2}]", "unknown key 'num_frame'; did you mean 'num_frames'"),
        ("stages: {learning_rate: 1}", "stages must be a list of mappings"),
        ("corpora: [{corpus: cc3m, data_dri: x}]", "corpora: unknown key 'data_dri'; did you mean 'data_dir'"),
        ("corpora: [cc3m]", "corpora must be a list of mappings, not ['cc3m']. Keys: corpus, data_dir"),
        ("corpora: {corpus: cc3m}", "corpora must be a list of mappings"),
        ("max_answers: 1.5", "max_answers=1.5 must be an integer."),
        ("num_frames: true", "num_frames=True must be an integer."),
        ("learning_rate: [1]", "learning_rate=[1] must be a number."),
        ("lr_milestones: [0.5, yes]", "lr_milestones=True must be a number."),
        ("streaming: 1", "streaming=1 must be true or false."),
    ],
)
def test_wrong_keys(tmp_path, content, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_stages([str(path)])


def test_a_single_item_becomes_a_list(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("{lr_milestones: 0.6, lr_scheduler_type: constant, freeze: text_model, learning_rate: 1e-3}")
    ((_, _, training),) = parse_stages([str(path)])
    assert (training.lr_milestones, training.freeze, training.learning_rate) == ([0.6], ["text_model"], 1e-3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {"protocol": "1k-A"}),
        (["--corpus=msrvtt", '--corpus-options={"video_dir": "here"}'], {"protocol": "1k-A", "video_dir": "here"}),
        (["--corpus=webdataset"], {}),
        (["--corpus=webdataset", '--corpus-options={"shards": "a*"}'], {"shards": "a*"}),
        (["--corpus=webdataset", "--corpus-options=none"], {}),
    ],
)
def test_another_corpus_does_not_get_the_options_of_the_recipes_corpus(given, expected, caplog):
    caplog.set_level("INFO")
    _, data, _ = parse_arguments(["finetune_msrvtt", "--model=x", *given])
    assert data.corpus_options == expected
    removed = 'corpus_options.protocol "1k-A" -> default' in caplog.text
    assert removed == (given[:1] == ["--corpus=webdataset"] and "--corpus-options=none" not in given)


def test_data_dirs():
    _, data, _ = parse_arguments(["pretrain_cc3m_webvid", "--data_dirs", "webvid=/a=b", "cc3m=there"])
    assert [entry["data_dir"] for entry in data.corpora] == ["there", "/a=b"]
    assert data.data_dir == "/a=b"  # the directory for evaluation
    _, data, _ = parse_arguments(["pretrain_cc3m_webvid", "--data_dirs", "cc3m=there"])
    assert [entry["data_dir"] for entry in data.corpora] == ["there", "data/WebVid"]
    assert data.data_dir == "data/WebVid"
    _, data, _ = parse_arguments(["finetune_msvd", "--data_dirs", "msvd=there"])
    assert (data.data_dir, data.corpora) == ("there", None)
    for wrong, message in {
        "webvd=x": "'webvd' is not a corpus of this run; did you mean 'webvid'?",
        "webvid": "'webvid' is not of the form CORPUS=DIRECTORY",
        "webvid=": "'webvid' is not of the form CORPUS=DIRECTORY",
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            parse_arguments(["pretrain_cc3m_webvid", "--data_dirs", wrong])

"""
Runs the examples in the docstrings of the API reference, except for those in `NOT_RUN`. Their files and variables are
toys of the same names.
"""

import doctest
import inspect
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DistilBertModel, ViTConfig, ViTModel

import region_learner
from region_learner import RegionLearnerProcessor, RegionLearnerVideoProcessor, VideoIndex, evaluation, load_corpus
from region_learner.corpora import make_corpus
from region_learner.corpora.encoding import write_video
from region_learner.evaluation import evaluate_checkpoint, get_protocol, write_results
from region_learner.phrase_maps import find_words
from region_learner.training import parse_arguments
from region_learner.training.tokenizer import train_tokenizer

from .conftest import tiny_model, tiny_text_config
from .test_backbones import IMAGE, SIZES, save_family
from .test_docs import DOCUMENTED, object_of, registers  # noqa: F401 # a fixture
from .test_recipes import Media, make_msrvtt, make_msvd
from .test_results import results

NOT_RUN = {
    "check_corpus": "counts 120 videos: test_check.py",
    "compute_features": "needs weights of CLIP and the videos of MSVD: test_features.py",
    "convert_original_checkpoint": "needs a checkpoint of the authors: test_original.py",
    "ExportedPart": "compiles for seconds: test_export.py",
    "export_index": "needs a server of Qdrant: test_parts.py",
    "export_model": "needs the packages of the extra `export`: test_export.py",
    "launch": "serves until it is interrupted: test_app.py",
    "prepare_corpus": "needs the videos of MSR-VTT: test_prepare.py",
    "RegionLearnerTokens": "loads sentence-transformers: test_sentence_transformers.py",
    "VideoTextRetrievalPipeline": "its scores are of a trained model: test_pipelines.py",
    "VideoIndex.from_embeddings": "runs as a part of the example of embed_videos",
}
SLOW = {"push"}  # loads the checkpoint in a separate process, without this package
# Examples name these pre-trained weights; the directories of toys replace them.
TOYS = {
    "google/siglip2-base-patch16-224": "clip",
    "openai/clip-vit-base-patch16": "clip",
    "vit_base_patch16_224.orig_in21k_ft_in1k": "vit",
    "distilbert-base-uncased": "distilbert",
}


def code_of(docstring: str) -> str | None:
    """Returns the code of the example in a docstring, with its prompts if it has any, or None."""
    if "```python" in docstring:
        return docstring.partition("```python")[2].partition("```")[0]
    found = re.search(r"^Example:\n\n?((?: {4}.*\n?|\n)+)", docstring, re.MULTILINE)
    return None if found is None else inspect.cleandoc(found[1]) + "\n"


def examples() -> dict[str, tuple[str, dict]]:
    """Returns the code of every example, and the names of its module."""
    found = {}
    for path in DOCUMENTED:
        owner = object_of(path)
        name = path.rpartition(".")[2]
        of_class = vars(owner).items() if inspect.isclass(owner) else ()
        methods = {f"{name}.{key}": getattr(value, "__func__", value) for key, value in of_class if key[0] != "_"}
        for key, value in {name: owner, **{key: value for key, value in methods.items() if callable(value)}}.items():
            code = None if inspect.isclass(value) and key != name else code_of(inspect.cleandoc(value.__doc__ or ""))
            if code is not None:
                found[key] = (code, vars(inspect.getmodule(value)))
    return found


EXAMPLES = examples()


def test_the_public_api_has_examples():
    forwards = {f"RegionLearner{name}.forward" for name in
                ("Model", "VideoModel", "ForVideoClassification", "ForVideoQuestionAnswering")}  # fmt: skip
    outputs = {name for name in region_learner.__all__ if name.endswith("Output")}
    assert forwards | set(region_learner.__all__) - outputs - {
        # The example is in `forward` or the Trainer, or the function takes no arguments.
        "RegionLearnerModel", "RegionLearnerVideoModel", "RegionLearnerForVideoClassification",
        "RegionLearnerForVideoQuestionAnswering", "RegionLearnerTrainingArguments", "list_corpora",
    } <= EXAMPLES.keys()  # fmt: skip


def test_each_example_that_is_not_run_exists():
    assert NOT_RUN.keys() | SLOW <= EXAMPLES.keys()
    assert len(NOT_RUN) < len(EXAMPLES) / 2


def write(path, seconds: float, fps: int = 2):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.random.default_rng(0).integers(0, 256, (round(seconds * fps), 40, 48, 3), np.uint8)
    write_video(path, frames, fps)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with the checkpoints and videos that the examples name."""
    path = tmp_path_factory.mktemp("examples")
    tiny_model(token_dim=8).save_pretrained(path / "checkpoint")
    tokenizer = train_tokenizer(["a red square", "a blue circle"], 90, 32)
    RegionLearnerProcessor(RegionLearnerVideoProcessor.for_image_size(32, num_frames=4), tokenizer).save_pretrained(
        path / "checkpoint"
    )
    (path / "CHECKPOINT").symlink_to("checkpoint")
    for name in ("clip", "video", "videos/one", "videos/two", "data/YouCook2/val/a"):
        write(path / f"{name}.mp4", 4)
    (path / "data/YouCook2/val/metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "a pan"}\n')
    for name in ("dog.mp4", "cat.mp4", "a.mp4", "lecture.mp4"):
        write(path / name, 21)
    (path / "b.webm").write_bytes((path / "a.mp4").read_bytes())
    write(path / "lecture.mkv", 80, fps=1)
    make_corpus("moving_shapes", path / "shapes", train=2, val=0, test=2, test_unseen=0, progress=False)
    (path / "my_videos").symlink_to("shapes")
    (path / "data/moving_shapes").symlink_to("../shapes")
    media = Media(path / "media")
    make_msvd(path / "data/MSVD", media)
    make_msrvtt(path / "data/MSRVTT", media)
    save_family("clip", path / "clip")
    ViTModel(ViTConfig(**SIZES, **IMAGE)).save_pretrained(path / "vit")
    DistilBertModel(tiny_text_config(vocab_size=len(tokenizer))).save_pretrained(path / "distilbert")
    tokenizer.save_pretrained(path / "distilbert")
    return path


@pytest.fixture
def names(folder) -> dict:
    """The variables that examples take for granted."""
    model = region_learner.RegionLearnerModel.from_pretrained(folder / "checkpoint").eval()
    processor = RegionLearnerProcessor.from_pretrained(folder / "checkpoint")
    inputs = processor(text=["a red square"], videos=[str(folder / "clip.mp4")])
    embeds = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)
    rows = [{"video": str(folder / f"{name}.mp4"), "video_id": name, "captions": [name]} for name in ("dog", "cat")]
    public = {name: getattr(module, name) for module in (region_learner, evaluation) for name in module.__all__}
    return public | {
        "Path": Path,
        "checkpoint": "checkpoint",
        "embed": lambda frames: frames,
        "find_words": find_words,
        "label_maps": torch.ones(1, 4, 32, 32, dtype=torch.long),
        "load_corpus": lambda name, *args, **options: load_corpus(
            name, *args or [folder / "shapes"], **options
        ),
        "model": model,
        "outputs": model(**inputs),
        "pixel_values_videos": inputs["pixel_values_videos"],
        "processor": processor,
        "rows": rows,
        "text_embeds": embeds[:3],
        "video_embeds": embeds[3:],
    }  # fmt: skip


def parse_one_step(argv: list[str]) -> tuple:
    """Returns the arguments of one training step on a corpus of two clips."""
    few = {"max_steps": 1, "per_device_train_batch_size": 2, "dataloader_num_workers": 0, "use_cpu": True}
    arguments = parse_arguments(argv, **few)
    arguments[1].data_dir, arguments[1].corpus_options = "shapes", {}
    return arguments


def prepare(name: str, names: dict):
    """Creates what a single example takes for granted."""
    if name == "RegionLearnerVideoProcessor.span_frames":
        names["processor"] = names["processor"].video_processor
    elif name == "make_corpus":
        few = {"train": 1, "val": 0, "test": 0, "test_unseen": 0}
        names["make_corpus"] = lambda *args, **options: make_corpus(*args, **options | few)
    elif name == "model_card":
        write_results(evaluate_checkpoint(get_protocol("msvd"), "CHECKPOINT", "data/MSVD"), "msvd.json")
    elif name == "push":
        Path("runs").mkdir()
        shutil.copytree("checkpoint", "runs/mine")
        write_results(evaluate_checkpoint(get_protocol("msvd"), "runs/mine", "data/MSVD"), "runs/mine/msvd.json")
    elif name == "read_results":
        write_results(results(), "results.json")
    elif name == "train":
        names["parse_arguments"] = parse_one_step
    elif name == "cut_span":
        Path("cuts").mkdir()
    elif name == "write_search_page":
        names["index"] = VideoIndex.create("page.index", "checkpoint")
        names["index"].update("videos")
    elif name == "contrastive_loss":
        names["batch"] = {**names["processor"](text=["a red square"] * 2, videos=["clip.mp4", "video.mp4"])}
        names["batch"]["video_ids"] = torch.tensor([1, 2])
        names["optimizer"] = torch.optim.SGD(names["model"].parameters(), lr=0.1)
        module = names["model"].train()
        names["model"] = type("Wrapper", (), {"module": module, "__call__": lambda self, **batch: module(**batch)})()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in sorted(EXAMPLES.keys() - NOT_RUN.keys())
    ],
)
def test_example_runs(name, folder, names, registers, monkeypatch, tmp_path):  # noqa: F811
    code, of_module = EXAMPLES[name]
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    names = {**of_module, **names}
    prepare(name, names)
    for weights, toy in TOYS.items():
        code = code.replace(weights, toy)
    if ">>>" not in code:
        exec(code, names)
        return
    test = doctest.DocTestParser().get_doctest(code, names, name, None, 0)
    assert test.examples
    checker, flags = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for example in test.examples:
        if not example.want:  # its output is left out
            exec(example.source, names)
            continue
        got = repr(eval(example.source.strip(), names)) + "\n"
        assert checker.check_output(example.want, got, flags), f"{example.source} gives {got}"

"""
Runs the examples in the docstrings of the API reference, except for those in `NOT_RUN`. Their files and variables are
toys of the same names.
"""

import doctest
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import region_learner
from region_learner import RegionLearnerProcessor, RegionLearnerVideoProcessor, VideoIndex, evaluation, load_corpus
from region_learner.corpora import make_corpus
from region_learner.corpora.encoding import write_video
from region_learner.training.tokenizer import train_tokenizer

from .conftest import tiny_model
from .test_docs import DOCUMENTED, object_of, registers  # noqa: F401 # a fixture

NOT_RUN = {
    "answer_vocabulary": "needs the files of MSR-VTT-QA: test_benchmarks.py",
    "check_corpus": "counts 120 videos: test_check.py",
    "compute_features": "needs weights of CLIP and the videos of MSVD: test_features.py",
    "convert_original_checkpoint": "needs a checkpoint of the authors: test_original.py",
    "embed_corpus": "needs the videos of MSVD: test_protocols.py",
    "evaluate_checkpoint": "needs the videos of MSVD: test_protocols.py",
    "ExportedPart": "compiles for seconds: test_export.py",
    "export_index": "needs a server of Qdrant: test_parts.py",
    "export_model": "needs the packages of the extra `export`: test_export.py",
    "from_pretrained_towers": "needs pre-trained weights: test_towers.py, test_backbones.py",
    "launch": "serves until it is interrupted: test_app.py",
    "load_corpus": "needs the files of MSR-VTT: test_benchmarks.py",
    "make_corpus": "draws 500 clips: test_synthetic_making.py",
    "model_card": "needs the result of an evaluation: test_model_card.py",
    "prepare_corpus": "needs the videos of MSR-VTT: test_prepare.py",
    "push": "needs a Hub: test_publishing.py",
    "RegionLearnerTokens": "loads sentence-transformers: test_sentence_transformers.py",
    "train": "trains for minutes: `region-learner demo`, test_demo.py",
    "VideoTextRetrievalPipeline": "its scores are of a trained model: test_pipelines.py",
    "VideoIndex.from_embeddings": "runs as a part of the example of embed_videos",
}
# Examples name these pre-trained weights; a toy checkpoint replaces them.
SIGLIP = "google/siglip2-base-patch16-224"


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
    assert NOT_RUN.keys() <= EXAMPLES.keys()
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
    make_corpus("moving_shapes", path / "shapes", train=1, val=0, test=0, test_unseen=0, progress=False)
    return path


@pytest.fixture
def names(folder) -> dict:
    """The variables that examples take for granted."""
    model = region_learner.RegionLearnerModel.from_pretrained(folder / "checkpoint").eval()
    processor = RegionLearnerProcessor.from_pretrained(folder / "checkpoint")
    inputs = processor(text=["a red square"], videos=[str(folder / "clip.mp4")])
    embeds = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)
    rows = [{"video": str(folder / f"{name}.mp4"), "video_id": name, "captions": [name]} for name in ("dog", "cat")]
    return {name: getattr(region_learner, name) for name in region_learner.__all__} | {
        "checkpoint": "checkpoint",
        "embed": lambda frames: frames,
        "evaluate_checkpoint": evaluation.evaluate_checkpoint,
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


def prepare(name: str, names: dict):
    """Creates what a single example takes for granted."""
    if name in ("RegionLearnerVideoProcessor.span_frames", "draw_regions"):
        names["processor"] = names["processor"].video_processor
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


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - NOT_RUN.keys()))
def test_example_runs(name, folder, names, registers, monkeypatch, tmp_path):  # noqa: F811
    code, of_module = EXAMPLES[name]
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    names = {**of_module, **names}
    prepare(name, names)
    code = code.replace(SIGLIP, "checkpoint")
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

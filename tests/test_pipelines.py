"""Tests of the pipeline "video-text-retrieval", with the package and from the code in a checkpoint."""

import json

import av
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import pipeline

from region_learner import RegionLearnerModel, RegionLearnerProcessor
from region_learner.pipeline_region_learner import VideoTextRetrievalPipeline
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .conftest import tiny_model
from .test_heads import CLASSIFICATION, run_python, tiny_head

TASK = "video-text-retrieval"
TEXTS = ["a red square moves left", "the blue circle", "a red circle and a blue square"]


def write_clip(path, level: int) -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
        for number in range(8):
            frame = np.zeros((40, 48, 3), np.uint8)
            frame[:, 5 * number :] = level
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return str(path)


def tiny_processor() -> RegionLearnerProcessor:
    tokenizer = train_tokenizer(TEXTS * 5, 99, 32)
    return RegionLearnerProcessor(RegionLearnerVideoProcessor.for_image_size(32, num_frames=2), tokenizer)


@pytest.fixture(scope="module")
def clip_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"{level}.mp4", level) for level in (60, 150, 255)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model(learn_temperature=True, temperature=0.3).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def logits(checkpoint, clip_files):
    """The model's logits for all clips and texts, (videos, texts), and its temperature."""
    model, processor = RegionLearnerModel.from_pretrained(checkpoint), tiny_processor()
    with torch.no_grad():
        return model(**processor(text=TEXTS, videos=clip_files)).logits_per_video, model.temperature.item()


def assert_ranked(found, name, candidates, scores):
    expected = sorted(zip(scores.tolist(), candidates), reverse=True)[: len(found)]
    assert [entry[name] for entry in found] == [candidate for _, candidate in expected]
    assert [entry["score"] for entry in found] == pytest.approx([score for score, _ in expected], abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_ranks_texts_videos_and_labels(checkpoint, clip_files, logits, batch_size):
    logits, temperature = logits
    retrieve = pipeline(TASK, model=str(checkpoint))  # trust_remote_code is not needed: the package has the pipeline
    assert type(retrieve) is VideoTextRetrievalPipeline
    for found, scores in zip(retrieve(clip_files, texts=TEXTS, batch_size=batch_size), logits * temperature):
        assert len(found) == 3
        assert_ranked(found, "text", TEXTS, scores)
    for found, scores in zip(
        retrieve(TEXTS, videos=clip_files, top_k=2, batch_size=batch_size), logits.T * temperature
    ):
        assert len(found) == 2
        assert_ranked(found, "video", clip_files, scores)
    labels = [text.removeprefix("a ").removeprefix("the ") for text in TEXTS]
    plain = retrieve(clip_files[1], candidate_labels=labels)
    assert retrieve(clip_files[1], candidate_labels=labels, prompt=None) == plain
    found = retrieve(clip_files[1], candidate_labels=[labels[0], labels[2]], prompt="a {}")
    assert_ranked(found, "label", [labels[0], labels[2]], logits[1, [0, 2]].softmax(-1))


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_each_picture_is_a_separate_video(checkpoint, batch_size):
    pictures = [Image.new("RGB", (40, 40), color) for color in ("red", "blue", "white")]
    retrieve = pipeline(TASK, model=str(checkpoint))
    with torch.no_grad():
        scores = torch.stack([retrieve.model(**retrieve.processor(text=TEXTS[:1], videos=picture)).logits_per_video
                              for picture in pictures]).flatten() * retrieve.model.temperature  # fmt: skip
    found = retrieve(TEXTS[0], videos=pictures, batch_size=batch_size)
    order = scores.argsort(descending=True).tolist()
    assert [entry["video"] for entry in found] == [pictures[i] for i in order]
    assert [entry["score"] for entry in found] == pytest.approx(scores[order].tolist(), abs=1e-5)
    frames = retrieve([pictures[:2]], texts=TEXTS[:1])[0]  # one clip of two frames
    assert frames[0]["score"] != pytest.approx(scores[0].item(), abs=1e-5)


def test_labels_have_independent_probabilities_with_the_sigmoid_loss(clip_files):
    model, processor = tiny_model(loss="sigmoid", sigmoid_bias=-1.0), tiny_processor()
    found = pipeline(TASK, model=model, processor=processor)(clip_files[0], candidate_labels=TEXTS)
    with torch.no_grad():
        expected = model(**processor(text=TEXTS, videos=clip_files[:1])).logits_per_video[0].sigmoid()
    assert_ranked(found, "label", TEXTS, expected)


def test_invalid_options_are_refused(checkpoint, clip_files):
    retrieve = pipeline(TASK, model=str(checkpoint))
    for options, message in (
        ({}, "Give one of texts, videos, candidate_labels to choose from; got none"),
        ({"texts": TEXTS, "videos": clip_files}, "got texts and videos"),
        ({"texts": "one"}, "texts must be a list of at least one candidate, not 'one'"),
        ({"candidate_labels": []}, "candidate_labels must be a list"),
        ({"candidate_labels": ["a"], "prompt": "a video"}, "must contain {}"),
        ({"texts": TEXTS, "prompt": "a {}"}, "prompt='a {}' is for candidate_labels, not for texts"),
        ({"texts": TEXTS, "top_k": 0}, "top_k=0 must be an integer of at least 1"),
        ({"texts": TEXTS, "top_k": -1}, "top_k=-1 must be"),
        ({"texts": TEXTS, "topk": 3}, "'topk' is not an argument of the pipeline"),
    ):
        with pytest.raises(ValueError, match=message):
            retrieve(clip_files[0], **options)
    with pytest.raises(ValueError, match="RegionLearnerForVideoClassification does not embed texts and videos"):
        pipeline(TASK, model=tiny_head(CLASSIFICATION), processor=tiny_processor())


def test_the_pipeline_can_be_saved(checkpoint, clip_files, tmp_path):
    retrieve = pipeline(TASK, model=str(checkpoint))
    retrieve.save_pretrained(tmp_path / "again")
    again = pipeline(TASK, model=str(tmp_path / "again"))
    assert again(clip_files[0], texts=TEXTS) == retrieve(clip_files[0], texts=TEXTS)


WITHOUT_PACKAGE = """
import sys
sys.modules["region_learner"] = None
import json
import torch
from transformers import pipeline

torch.set_num_threads(1)
checkpoint, output, texts, clips = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
retrieve = pipeline("video-text-retrieval", model=checkpoint, trust_remote_code=True)
assert type(retrieve).__module__.startswith("transformers_modules."), type(retrieve)
assert type(pipeline(model=checkpoint, trust_remote_code=True)).__name__ == type(retrieve).__name__
retrieve.model.save_pretrained(f"{output}/again")
with open(f"{output}/found.json", "w") as file:
    json.dump(retrieve(clips, texts=texts), file)
"""


def test_without_the_package(checkpoint, clip_files, tmp_path):
    run_python(
        WITHOUT_PACKAGE, str(checkpoint), str(tmp_path), json.dumps(TEXTS), json.dumps(clip_files),
        home=tmp_path / "home", HF_HUB_OFFLINE="1",
    )  # fmt: skip
    expected = pipeline(TASK, model=str(checkpoint))(clip_files, texts=TEXTS)
    for one, other in zip(json.loads((tmp_path / "found.json").read_text()), expected):
        assert [entry["text"] for entry in one] == [entry["text"] for entry in other]
        assert [entry["score"] for entry in one] == pytest.approx([entry["score"] for entry in other])
    again = tmp_path / "again"
    name = "pipeline_region_learner.py"
    assert (again / name).read_bytes() == (checkpoint / name).read_bytes()
    configs = [json.loads((folder / "config.json").read_text()) for folder in (checkpoint, again)]
    for name in ("custom_pipelines", "architectures"):
        assert configs[0][name] == configs[1][name]


def test_a_list_within_the_inputs_is_one_clip(checkpoint, clip_files, tmp_path):
    """As within candidates: no frame is left out, and what is not one clip is refused."""
    frames = [str(tmp_path / f"{color}.png") for color in ("red", "blue")]
    for path in frames:
        Image.new("RGB", (40, 40), path.rpartition("/")[2].removesuffix(".png")).save(path)
    retrieve = pipeline(TASK, model=str(checkpoint))
    with torch.no_grad():
        outputs = retrieve.model(**retrieve.processor(text=TEXTS[:1], videos=[frames]))
    expected = pytest.approx((outputs.logits_per_video * retrieve.model.temperature).item(), abs=1e-5)
    opened = [Image.open(path) for path in frames]
    for clip in (frames, tuple(frames), opened, np.stack(opened)):
        assert retrieve([clip], texts=TEXTS[:1])[0][0]["score"] == expected
        assert retrieve(TEXTS[0], videos=[clip])[0]["score"] == expected
    assert retrieve(tuple(clip_files), texts=TEXTS) == retrieve(clip_files, texts=TEXTS)
    two_clips = np.zeros((2, 2, 32, 32, 3), np.uint8)
    for inputs, options, message in (
        ([clip_files[:2]], {"texts": TEXTS}, "a list within the list of videos is one clip"),
        (TEXTS[0], {"videos": [clip_files[:2]]}, "a list within the list of videos is one clip"),
        ([TEXTS], {"videos": clip_files}, "one of them is \\['a red square"),
        (two_clips, {"texts": TEXTS}, "1 videos contain 2 clips: give each clip as a video of its own"),
        (TEXTS[0], {"videos": [two_clips]}, "1 videos contain 2 clips"),
    ):
        with pytest.raises(ValueError, match=message):
            retrieve(inputs, **options)


def test_clips_of_one_batch_have_the_same_length(checkpoint, clip_files, tmp_path):
    """transformers would pad the shorter one with black frames, which the model would see."""
    retrieve = pipeline(TASK, model=str(checkpoint))
    retrieve.processor.video_processor.num_frames, retrieve.processor.video_processor.fps = None, 2
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    inputs = [clip_files[0], str(tmp_path / "red.png")]
    alone = [retrieve([item], texts=TEXTS)[0] for item in inputs]
    assert retrieve(inputs, texts=TEXTS) == alone
    with pytest.raises(ValueError, match="Clips of 1 and 2 frames cannot be batched: use batch_size=1, or sample"):
        retrieve(inputs, texts=TEXTS, batch_size=2)


def test_other_containers_and_numbers(checkpoint, clip_files):
    retrieve = pipeline(TASK, model=str(checkpoint))
    assert retrieve([], texts=TEXTS) == retrieve((), texts=TEXTS) == []
    rows = Dataset.from_dict({"text": TEXTS})
    assert retrieve(clip_files[0], texts=rows["text"]) == retrieve(clip_files[0], texts=TEXTS)
    for options, message in (
        ({"texts": (text for text in TEXTS)}, "texts must be a list of at least one candidate, not a generator"),
        ({"texts": set(TEXTS)}, "texts must be a list of at least one candidate, not a set"),
        ({"texts": dict.fromkeys(TEXTS)}, "texts must be a list of at least one candidate, not a dict"),
        ({"texts": [None]}, "texts must be a list of strings; one of them is None"),
        ({"candidate_labels": [1, 2]}, "candidate_labels must be a list of strings; one of them is 1"),
        ({"videos": np.zeros((2, 2, 32, 32, 3), np.uint8)}, "videos must be a list .*, not a ndarray"),
        ({"videos": torch.zeros(2, 2, 3, 32, 32)}, "videos must be a list of at least one candidate, not a Tensor"),
        ({"texts": TEXTS, "batch_size": 0}, "batch_size=0 must be an integer of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            retrieve(clip_files[0], **options)
    for options, message in (
        ({"candidate_labels": TEXTS}, r"candidate_labels belongs in the call of the pipeline: retrieve\(inputs, cand"),
        ({"prompt": "a {}"}, "prompt belongs in the call"),
        ({"top_k": 0}, "top_k=0 must be an integer of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline(TASK, model=str(checkpoint), **options)

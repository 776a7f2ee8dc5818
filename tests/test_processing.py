"""Tests for the processor: text, videos and images in any combination, defaults, saving and loading."""

import json

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from region_learner.corpora.encoding import add_video_stream
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

LONG = " ".join(["a"] * 600)


def make_tokenizer(**kwargs):
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "dog": 3, "runs": 4}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_input_names=inputs, **kwargs
    )


@pytest.fixture
def processor():
    return RegionLearnerProcessor(RegionLearnerVideoProcessor.for_image_size(32), make_tokenizer(model_max_length=20))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "video.mp4"
    with av.open(str(path), "w") as container:
        stream = add_video_stream(container, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(20):
            image = np.full((48, 64, 3), 12 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_text_and_videos(processor, video):
    inputs = processor(text=["a dog", "a dog runs"], videos=[video, str(video)])
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values_videos"} == set(processor.model_input_names)
    assert inputs["input_ids"].tolist() == [[2, 3, 0], [2, 3, 4]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert inputs["pixel_values_videos"].shape == (2, 4, 3, 32, 32)
    expected = processor.video_processor([video, video], return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(inputs["pixel_values_videos"], expected)


def test_each_alone(processor, video):
    assert set(processor(text="a dog")) == {"input_ids", "attention_mask"}
    assert processor(text="a dog")["input_ids"].shape == (1, 2)
    assert set(processor(videos=video)) == {"pixel_values_videos"}
    assert set(processor(images=Image.new("RGB", (40, 40)))) == {"pixel_values_videos"}
    with pytest.raises(ValueError, match="give text, videos or images"):
        processor()


def test_max_length_is_limited_by_the_tower(processor):
    assert processor(text=LONG, max_length=20)["input_ids"].shape == (1, 20)
    for given in ({"max_length": 21}, {"text_kwargs": {"max_length": 21}}):
        with pytest.raises(ValueError, match="max_length=21 is more than the 20 tokens"):
            processor(text=LONG, **given)
    for length in (0, -1, "8"):
        with pytest.raises(ValueError, match=rf"max_length={length!r} must be an integer of at least 1"):
            processor(text=LONG, max_length=length)
    # The tokenizer's file may allow more tokens than the tower.
    processor.tokenizer.init_kwargs["max_length"] = 512
    assert processor(text=LONG)["input_ids"].shape == (1, 20)


@pytest.mark.parametrize("text", [[], ["a", None], 5, float("nan"), b"a", [["a", "dog"]], np.array(["a"])])
def test_what_is_not_text(processor, text):
    """The error message is one line. Tokenizers would read a nested list as a pair of texts."""
    with pytest.raises(ValueError, match=r"^(text must be a string or a list of strings|No text was given)[^\n]*$"):
        processor(text=text)
    assert processor(text=[["a", "dog"]], is_split_into_words=True)["input_ids"].tolist() == [[2, 3]]


def test_images_are_clips_of_one_frame(processor, video, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    array = np.array(image)
    images = [image, array, torch.from_numpy(array).permute(2, 0, 1), tmp_path / "image.png", image.convert("RGBA")]
    images.append((tmp_path / "image.png").read_bytes())
    clips = processor(images=images)["pixel_values_videos"]
    assert clips.shape == (6, 1, 3, 32, 32)
    assert (clips == clips[0]).all()
    for same in ([[image]] * 2, np.stack([array, array]), (image, image)):
        assert torch.equal(processor(images=same)["pixel_values_videos"], clips[:2])
    # Options about the frames of videos have no effect.
    assert torch.equal(processor(images=image, num_frames=8)["pixel_values_videos"], clips[:1])
    assert torch.equal(processor(images=image, do_sample_frames=False)["pixel_values_videos"], clips[:1])
    assert torch.equal(processor(images=image, fps=2, short_clips="error")["pixel_values_videos"], clips[:1])
    assert processor(images=video, videos_kwargs={"num_frames": 8})["pixel_values_videos"].shape[1] == 1


def test_videos_and_images_together_are_refused(processor, video):
    with pytest.raises(ValueError, match="two calls"):
        processor(videos=video, images=Image.new("RGB", (40, 40)))


def test_text_is_truncated(processor):
    assert processor(text=LONG)["input_ids"].shape == (1, 20)
    assert processor(text=LONG, max_length=7)["input_ids"].shape == (1, 7)
    assert processor(text=LONG, truncation=False)["input_ids"].shape == (1, 600)
    assert processor(text="a", padding="max_length")["input_ids"].shape == (1, 20)
    boundless = RegionLearnerProcessor(processor.video_processor, make_tokenizer())
    assert boundless(text=LONG)["input_ids"].shape == (1, 512)
    assert boundless(text=LONG, max_length=550)["input_ids"].shape == (1, 550)


def test_options_reach_the_video_processor(processor, video):
    assert processor(videos=video, num_frames=2)["pixel_values_videos"].shape == (1, 2, 3, 32, 32)
    assert processor(videos=video, videos_kwargs={"fps": 5})["pixel_values_videos"].shape[1] == 10
    with pytest.raises(ValueError, match="20 frames"):
        processor(videos=video, num_frames=30, short_clips="error")
    repeated = processor(videos=video, num_frames=30, return_metadata=True)
    assert repeated["video_metadata"][0].frames_indices == [*range(20), *[19] * 10]
    assert isinstance(processor(text="a", videos=video, return_tensors="np")["pixel_values_videos"], np.ndarray)


def test_misspelled_options_are_refused(processor, video):
    with pytest.raises(ValueError, match="'starts' is not an option of RegionLearnerProcessor; did you mean 'start'"):
        processor(videos=video, starts=12.5)
    with pytest.raises(ValueError, match="did you mean 'num_frames'"):
        processor(videos=video, videos_kwargs={"num_frmaes": 2})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_kwargs": {"maxlength": 2}}, "'maxlength' is not an option of .*; did you mean 'max_length'"),
        ({"text_kwargs": {"num_frames": 2}}, "'num_frames' is not an option"),
        ({"images_kwargs": {"do_normalise": False}}, "'do_normalise' is not an option of .*'do_normalize'"),
        ({"audio": [0.0, 1.0]}, "takes texts, videos and images, not audio"),
    ],
)
def test_options_in_groups_are_not_ignored(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor(text="a dog", **options)


def test_options_of_images(processor):
    image = Image.fromarray(np.full((40, 40, 3), 128, np.uint8))
    plain = processor(images=image, do_normalize=False)["pixel_values_videos"]
    grouped = processor(images=image, images_kwargs={"do_normalize": False})["pixel_values_videos"]
    assert torch.equal(plain, grouped)
    assert not torch.equal(plain, processor(images=image)["pixel_values_videos"])


def test_training_follows_the_generator(processor, video):
    """The generator is not copied, so it continues from call to call."""

    def clips(seed=None, calls=2, nested=False):
        options = {"generator": None if seed is None else torch.Generator().manual_seed(seed)}
        options = {"videos_kwargs": options} if nested else options
        return [processor(videos=video, training=True, **options)["pixel_values_videos"] for _ in range(calls)]

    first, second = clips(seed=5)
    assert not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(clips(seed=5), (first, second)))
    assert all(torch.equal(a, b) for a, b in zip(clips(seed=5, nested=True), (first, second)))
    torch.manual_seed(5)
    without = clips()
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(clips(), without))
    fixed = clips(calls=1)[0]
    assert not torch.equal(fixed, processor(videos=video)["pixel_values_videos"])


def test_defaults_stay_as_they_are(processor):
    """Options of one call do not affect the next one."""
    processor(text="a", text_kwargs={"padding": "max_length"}, common_kwargs={"return_tensors": "np"})
    inputs = processor(text=["a", "a dog"])
    assert isinstance(inputs["input_ids"], torch.Tensor)
    assert inputs["input_ids"].shape == (2, 2)


def test_saving_and_loading(processor, video, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = RegionLearnerProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["video_processor"]["output_size"] == {"height": 32, "width": 32}
    first, second = (each(text=LONG, videos=video) for each in (processor, loaded))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert loaded.decode([2, 3]) == "a dog"
    assert loaded.batch_decode([[2, 3], [2]]) == ["a dog", "a"]
    smaller = RegionLearnerProcessor.from_pretrained(tmp_path, num_frames=2)
    assert smaller(videos=video)["pixel_values_videos"].shape[1] == 2

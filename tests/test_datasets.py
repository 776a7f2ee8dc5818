"""Tests for rows of `datasets`: videos that it decodes itself, and columns with other names."""

import re
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset, Video
from datasets.packaged_modules.videofolder.videofolder import VideoFolder
from transformers.video_utils import VideoMetadata

from region_learner import RegionLearnerTrainer, RegionLearnerTrainingArguments, load_corpus
from region_learner.corpora import CorpusError
from region_learner.corpora.rows import check_dataset
from region_learner.video_decoding_region_learner import VideoDecodeError, read_clip

from .conftest import ROOT, tiny_model
from .test_pipelines import TEXTS, clip_files, tiny_processor, write_clip  # noqa: F401


class Decoder:
    """Stands in for `torchcodec.decoders.VideoDecoder`, with the same sequence of frames and the same attributes."""

    def __init__(self, path, encoded: dict | None = None, order: str = "NCHW"):
        frames, metadata = read_clip(str(path), lambda metadata: range(metadata.total_num_frames))
        self.frames = torch.from_numpy(frames)
        self.order = order
        self.metadata = types.SimpleNamespace(num_frames=len(frames), average_fps=metadata.fps)
        self.read: list[int] = []
        if encoded is not None:
            self._hf_encoded = encoded

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        self.read.append(index)
        return self.frames[index].permute(2, 0, 1) if self.order == "NCHW" else self.frames[index]

    def get_frames_at(self, indices):
        raise AssertionError("not needed")


@pytest.mark.parametrize("kind", ["path", "bytes", "frames", "frames, channels last", "remote"])
def test_the_processor_takes_video_decoders(kind, clip_files):  # noqa: F811
    path = clip_files[1]
    encoded = {
        "path": {"path": path, "bytes": None},
        "bytes": {"path": None, "bytes": Path(path).read_bytes()},
        "remote": {"path": "hf://datasets/owner/name/clip.mp4", "bytes": None},
    }.get(kind)
    decoder = Decoder(path, encoded, "NHWC" if "last" in kind else "NCHW")
    processor, is_file = tiny_processor(), kind in ("path", "bytes")
    frames = decoder.frames.permute(0, 3, 1, 2)
    for span in ({}, {"start": 0.25, "end": 0.75}):
        if is_file:  # decoded from the file, which scales frames while converting their colors
            expected = processor(videos=[path], **span)
        else:
            metadata = VideoMetadata(len(frames), fps=decoder.metadata.average_fps)
            expected = processor(videos=[frames], video_metadata=[metadata], **span)
        found = processor(videos=[decoder, decoder], **span)["pixel_values_videos"]
        assert torch.equal(found, expected["pixel_values_videos"].repeat(2, 1, 1, 1, 1))
    assert processor(videos=decoder)["pixel_values_videos"].shape == (1, 2, 3, 32, 32)
    assert len(decoder.read) == (0 if is_file else 2 * 5)  # only the sampled frames
    assert processor.video_processor.decode(decoder)[0].shape[:2] == (2, 3)


def test_frames_that_a_decoder_cannot_read(clip_files):  # noqa: F811
    class Damaged(Decoder):
        def __getitem__(self, index):
            raise RuntimeError("Could not push packet to decoder")

    with pytest.raises(VideoDecodeError, match=r"frame \d of a VideoDecoder: Could not push packet"):
        tiny_processor()(videos=[Damaged(clip_files[0])])


def real_decoder():
    """Returns torchcodec's `VideoDecoder`, or skips the test."""
    reason = "torchcodec and FFmpeg are not installed"
    return pytest.importorskip("torchcodec.decoders", reason=reason, exc_type=(ImportError, RuntimeError)).VideoDecoder


@pytest.mark.parametrize("kind", ["stand-in", pytest.param("torchcodec", marks=pytest.mark.slow)])
def test_the_trainer_takes_rows_of_video_decoders(kind, clip_files, tmp_path, monkeypatch):  # noqa: F811
    """Rows with `datasets.Video()` contain video decoders."""
    columns = {
        "video": clip_files * 2,
        "video_id": [str(i) for i in range(6)],
        "captions": [[text] for text in TEXTS * 2],
    }
    files = Dataset.from_dict(columns)
    decoded = files.cast_column("video", Video())
    if kind == "stand-in":
        monkeypatch.setattr(
            Video, "decode_example", lambda self, value, token_per_repo_id=None: Decoder(value["path"], value)
        )
    assert isinstance(decoded[0]["video"], Decoder if kind == "stand-in" else real_decoder())
    args = RegionLearnerTrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", per_device_train_batch_size=3, per_device_eval_batch_size=4,
        max_steps=2, disable_tqdm=True, save_strategy="no", seed=1,
    )  # fmt: skip
    losses = []
    for dataset in (files, decoded):
        trainer = RegionLearnerTrainer(
            tiny_model(), args, processing_class=tiny_processor(), train_dataset=dataset, eval_dataset=dataset
        )
        losses.append((trainer.train().training_loss, trainer.evaluate()["eval_t2v_MeanR"]))
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_rows_of_torchcodec(clip_files):  # noqa: F811
    decoder = real_decoder()
    row = Dataset.from_dict({"video": clip_files}).cast_column("video", Video())[0]
    processor = tiny_processor()
    expected = processor(videos=clip_files[:1])["pixel_values_videos"]
    assert torch.equal(processor(videos=[row["video"]])["pixel_values_videos"], expected)
    found = processor(videos=[decoder(clip_files[0])])["pixel_values_videos"]
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)


def test_webm_in_a_folder(tmp_path):
    """`load_corpus` reads the .webm files of a folder, which `datasets` leaves out."""
    write_clip(tmp_path / "b.mp4", 90)
    import av

    with av.open(str(tmp_path / "a.webm"), "w") as container:
        stream = container.add_stream("libvpx", rate=8, options={"auto-alt-ref": "0"})
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
        for number in range(8):
            frame = np.full((40, 48, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    (tmp_path / "metadata.csv").write_text("file_name,text\na.webm,brighter\nb.mp4,wider\n")
    rows = load_corpus("folder", tmp_path)
    assert [row["captions"] for row in rows] == [["brighter"], ["wider"]]
    clips = tiny_processor()(videos=list(rows["video"]))["pixel_values_videos"]
    assert clips.shape == (2, 2, 3, 32, 32)
    assert clips[0, 0].mean() < clips[0, 1].mean()  # it becomes brighter


@pytest.mark.parametrize(
    ("columns", "renamed"),
    [
        (("path", "id", "text"), {"path": "video", "id": "video_id", "text": "captions"}),
        (("Video", "Video_ID", "Caption"), {"Video": "video", "Video_ID": "video_id", "Caption": "captions"}),
        (("video", "caption"), {"caption": "captions"}),
        (("video", "captions"), {}),
        (("video", "id", "words"), {"id": "video_id"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["dataset", "stream", "rows", "generator"])
def test_columns_of_other_names(columns, renamed, kind, clip_files):  # noqa: F811
    """The message says how to map them, and doing what it says works."""
    rows = [dict.fromkeys(columns, "one") | {columns[0]: path} for path in clip_files]
    dataset = {
        "dataset": lambda: Dataset.from_list(rows),
        "stream": lambda: Dataset.from_list(rows).to_iterable_dataset(),
        "rows": lambda: rows,
        "generator": lambda: IterableDataset.from_generator(lambda: iter(rows)),
    }[kind]()
    with pytest.raises(CorpusError) as error:
        check_dataset(dataset, ("captions",), "the training data")
    message = str(error.value)
    assert message.endswith("; add 'captions', or use another dataset.") == ("words" in columns)
    assert ("add 'video_id', such as the path" in message) == ("video_id" not in {*columns, *renamed.values()})
    if kind in ("rows", "generator"):
        assert dict(re.findall(r"'(\w+)' to '(\w+)'", message)) == renamed
        return
    for code in re.findall("`(dataset.+?)`(?=[.;])", message):
        dataset = eval(code, {"dataset": dataset})
    if "add 'video_id'" in message:
        dataset = dataset.map(lambda row: {"video_id": row["video"]})
    if "words" not in columns:
        check_dataset(dataset, ("captions",), "the training data")


def test_webm_in_a_video_folder(tmp_path, monkeypatch):
    """As docs/libraries.md says: `datasets` itself leaves such files out."""
    for name in ("a/1.mkv", "b/2.mp4"):
        (tmp_path / "my_videos" / name).parent.mkdir(parents=True)
        write_clip(tmp_path / "my_videos" / name, 100)
    (tmp_path / "my_videos" / "a" / "1.mkv").rename(tmp_path / "my_videos" / "a" / "1.webm")  # of the same family
    monkeypatch.setattr(VideoFolder, "EXTENSIONS", list(VideoFolder.EXTENSIONS))
    page = (ROOT / "docs" / "libraries.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "VideoFolder" in block]
    monkeypatch.chdir(tmp_path)

    def load(code, cache):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / cache)
        names: dict = {}
        exec(code, names)
        return names["rows"].cast_column("video", Video(decode=False))

    plain = load(code.replace("VideoFolder.EXTENSIONS.append", "str"), "plain")
    assert [Path(row["path"]).name for row in plain["video"]] == ["2.mp4"]
    rows = load(code, "added")
    assert [Path(row["path"]).name for row in rows["video"]] == ["1.webm", "2.mp4"]
    assert [rows.features["label"].int2str(label) for label in rows["label"]] == ["a", "b"]
    clips = tiny_processor().video_processor([row["path"] for row in rows["video"]], return_tensors="pt")
    assert clips["pixel_values_videos"].shape[0] == 2

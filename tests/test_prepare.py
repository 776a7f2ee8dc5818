"""Tests of prepared corpora: they contain what the originals contain, even after crashes and interruptions."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image

from region_learner import load_corpus
from region_learner.cli import main
from region_learner.corpora import CorpusError, PrepareOptions, UnreadableError, prepare_corpus
from region_learner.corpora import prepare as module
from region_learner.corpora.encoding import add_video_stream
from region_learner.corpora.webdataset import video_source
from region_learner.processes import map_in_processes
from region_learner.video_decoding_region_learner import iterate_frames, read_clip

from . import test_video_processing as video_processing


def write_video(path: Path, frames: int = 30, size=(64, 48), rate: int = 30, seed: int = 0) -> Path:
    """Writes smooth pictures that get brighter over time, so that lossy copies of frames can be told apart."""
    rng = np.random.default_rng(seed)
    small = rng.integers(40, 160, (4, 4, 3), np.uint8)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = add_video_stream(container, rate=rate, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
            image = np.clip(np.asarray(image).astype(int) + 2 * number, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    return [str(write_video(folder / f"{number}.mp4", seed=number)) for number in range(7)]


def rows_of(videos) -> Dataset:
    rows = [{"video": path, "video_id": Path(path).stem, "captions": [f"a {path[-5]}", "b"]} for path in videos]
    return Dataset.from_list(rows)


def load(directory, **options) -> Dataset:
    return load_corpus("webdataset", directory, **options)


def frames_of(row) -> np.ndarray:
    return every_frame(video_source(row["video"]))


def every_frame(source) -> np.ndarray:
    """Returns all frames, read as in training."""
    return read_clip(source, lambda metadata: range(metadata.total_num_frames))[0].astype(int)


def test_clips_captions_and_metadata_match_the_originals(videos, tmp_path):
    result = prepare_corpus(rows_of(videos), tmp_path, options=PrepareOptions(clips_per_shard=3, crf=10), workers=2)
    assert (result["clips"], result["left_out"]) == (7, 0)
    assert sorted(path.name for path in (tmp_path / "train").glob("*.tar")) == [f"{n:06}.tar" for n in range(3)]
    prepared = load(tmp_path)
    assert prepared["video_id"] == [Path(path).stem for path in videos]
    assert prepared["captions"] == rows_of(videos)["captions"]
    for row, path in zip(prepared, videos):
        original = every_frame(path)
        assert frames_of(row).shape == original.shape
        assert np.abs(frames_of(row) - original).mean() < 1.5
        assert abs(frames_of(row).mean((1, 2, 3)) - original.mean((1, 2, 3))).max() < 0.5  # the next is brighter by 2
        assert row["prepared"]["frames"] == 30
        assert row["prepared"]["fps"] == pytest.approx(30, abs=0.01)
        assert row["prepared"]["source"] == {"width": 64, "height": 48, "bytes": os.path.getsize(path)}
    streamed = list(load_corpus("webdataset", tmp_path, streaming=True))
    assert [row["video_id"] for row in streamed] == prepared["video_id"]


def test_groups_are_short_and_frames_are_not_reordered(videos, tmp_path):
    prepare_corpus(rows_of(videos[:1]), tmp_path, options=PrepareOptions(group=4), workers=1)
    with av.open(module.io.BytesIO(video_source(load(tmp_path)[0]["video"])["bytes"])) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [number for number, packet in enumerate(packets) if packet.is_keyframe] == list(range(0, 30, 4))
    assert [packet.pts for packet in packets] == sorted(packet.pts for packet in packets)


def test_options(tmp_path):
    path = write_video(tmp_path / "wide.mp4", frames=60, size=(320, 180), rate=60)

    def prepared(**options):
        _, data, known = module.encode_clip(path, PrepareOptions(**options))
        return [(image, at) for image, at in iterate_frames(data)], known

    frames, known = prepared(short_side=90)
    assert frames[0][0].shape == (90, 160, 3)
    assert known["source"] == {"width": 320, "height": 180}
    np.testing.assert_allclose([at for _, at in frames], np.arange(30) / 30, atol=1e-3)  # half of 60 per second
    frames, _ = prepared(max_fps=None)
    np.testing.assert_allclose([at for _, at in frames], np.arange(60) / 60, atol=1e-3)
    frames, _ = prepared(max_fps=25)
    assert len(frames) == 25
    frames, known = prepared(num_frames=6)
    assert len(frames) == known["frames"] == 6
    expected = [image for image, _ in iterate_frames(path)]
    for (image, _), index in zip(frames, (5, 15, 25, 35, 45, 55)):
        assert abs(image.mean() - expected[index].mean()) < 0.9
    assert prepared(short_side=4000)[0][0][0].shape == (180, 320, 3)  # never enlarged


def test_images_of_uneven_sizes(tmp_path):
    path = tmp_path / "odd.png"
    Image.new("RGB", (75, 33), (200, 30, 30)).save(path)
    extension, data, known = module.encode_clip(path, PrepareOptions(short_side=16), is_image=True)
    assert extension == ".jpg"
    assert (known["width"], known["height"]) == (36, 16)
    assert np.abs(next(iterate_frames(data))[0].astype(int) - [200, 30, 30]).max() < 8
    _, data, known = module.encode_clip(path, PrepareOptions())
    assert (known["width"], known["height"]) == (76, 32)


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_animations_named_like_images_keep_their_frames(tmp_path, name):
    images = [Image.new("RGB", (64, 48), (60 * number, 30, 30)) for number in range(3)]
    images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=200)
    extension, data, known = module.encode_clip(tmp_path / name, PrepareOptions(), is_image=True)
    assert (extension, known["frames"]) == (".mp4", 3)
    reds = [image[..., 0].mean() for image, _ in iterate_frames(data)]
    np.testing.assert_allclose(reds, [0, 60, 120], atol=6)


def test_unreadable_clips_are_left_out_and_listed(videos, tmp_path, caplog):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(Path(videos[0]).read_bytes()[:1500])
    rows = rows_of([videos[0], str(broken), str(tmp_path / "gone.mp4"), videos[1]])
    result = prepare_corpus(
        rows, tmp_path / "out", options=PrepareOptions(clips_per_shard=2), workers=1, max_unreadable=0.5
    )
    assert (result["clips"], result["left_out"]) == (2, 2)
    report = json.loads(Path(result["report"]).read_text())
    assert [entry["video_id"] for entry in report["left_out"]] == ["broken", "gone"]
    assert "no such file" in report["left_out"][1]["reason"]
    assert "2 clips of 4 left out: broken, gone (listed in " in caplog.text
    assert load(tmp_path / "out")["video_id"] == ["0", "1"]
    with pytest.raises(CorpusError, match=r"none of the clips could be read: gone .*the first: .*no such file"):
        prepare_corpus(rows.select([2]), tmp_path / "none", workers=1)


def test_more_unreadable_clips_than_allowed(videos, tmp_path, capsys):
    """The run stops with exit code 1 at the shard that exceeds the limit. Finished shards are not written again."""

    def written():
        stat = (tmp_path / "out" / "train" / "000000.tar").stat()
        return stat.st_ino, stat.st_mtime_ns

    finished = []
    rows = rows_of([*videos[:2], *(str(tmp_path / f"gone{number}.mp4") for number in range(4)), *videos[2:4]])
    options = PrepareOptions(clips_per_shard=2)
    message = r"2 clips of 8 cannot be read, more than max_unreadable=0.1 allows: gone0, gone1 \(listed in"
    for _ in range(2):
        with pytest.raises(UnreadableError, match=message):
            prepare_corpus(rows, tmp_path / "out", options=options, workers=1)
        report = json.loads((tmp_path / "out" / "train" / "report.json").read_text())
        assert [entry["video_id"] for entry in report["left_out"]] == ["gone0", "gone1"]
        assert load(tmp_path / "out")["video_id"] == ["0", "1"]
        finished.append(written())
    result = prepare_corpus(rows, tmp_path / "out", options=options, workers=1, max_unreadable=0.5)
    assert (result["clips"], result["left_out"]) == (4, 4)
    assert finished == [written()] * 2
    with pytest.raises(CorpusError, match="max_unreadable=50 must be a share"):
        prepare_corpus(rows, tmp_path / "out", max_unreadable=50)

    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    os.link(videos[0], tmp_path / "whole.mp4")
    (tmp_path / "metadata.csv").write_text("file_name,text\nwhole.mp4,a\nbroken.mp4,b\n")
    command = ["corpus", "prepare", str(tmp_path / "cli"), "--data-dir", str(tmp_path), "--workers", "1"]
    codes = []
    for more in ([], ["--max-unreadable", "0.5"]):
        with pytest.raises(SystemExit) as exit:
            main([*command, *more])
        codes.append(exit.value.code or 0)
    assert codes == [1, 0]
    errors = capsys.readouterr().err
    assert "1 clip of 2 cannot be read, more than max_unreadable=0.1 allows: broken" in errors
    assert errors.splitlines()[-1] == f"Wrote {tmp_path / 'cli' / 'train'}"


def test_clips_that_cannot_be_encoded_are_left_out(videos, tmp_path):
    """The line of pixels is wider than the encoder accepts."""
    Image.new("RGB", (40000, 16)).save(tmp_path / "line.gif")
    rows = rows_of([videos[0], str(tmp_path / "line.gif")])
    result = prepare_corpus(rows, tmp_path / "out", workers=1, max_unreadable=0.5)
    assert (result["clips"], result["left_out"]) == (1, 1)
    assert "line: cannot be encoded" in Path(result["report"]).read_text()


def test_columns_of_tasks(videos, tmp_path):
    features = Features(
        {
            "video": Value("string"),
            "video_id": Value("string"),
            "captions": [Value("string")],
            "label": ClassLabel(names=["run", "jump"]),
        }
    )
    rows = [
        {"video": path, "video_id": path[-5], "captions": [], "label": label}
        for label, path in zip((0, 1, -1), videos[:3])
    ]
    prepare_corpus(Dataset.from_list(rows, features=features), tmp_path, workers=1)
    prepared = load(tmp_path)
    assert prepared.features["label"].names == ["run", "jump"]
    assert prepared["label"] == [0, 1, None]
    assert prepared["captions"] == [[], [], []]


def test_several_questions_about_a_video(videos, tmp_path):
    row = {"video": videos[0], "video_id": "0", "captions": [], "answer": "a"}
    questions = [row | {"question": question} for question in ("who?", "where?")]
    prepare_corpus(Dataset.from_list(questions), tmp_path, workers=1)
    assert [(row["video_id"], row["question"]) for row in load(tmp_path)] == [("0", "who?"), ("0", "where?")]


def test_a_shard_is_on_the_disk_before_its_report(videos, tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(module, "sync_file", lambda path: flushed.append((path.name, path.is_file())))
    monkeypatch.setattr(module, "sync_directory", lambda path: flushed.append(sorted(os.listdir(path))))
    prepare_corpus(rows_of(videos[:1]), tmp_path, workers=1)
    assert flushed == [("000000.tar.partial", True), [".lock", "000000.tar", "prepare.json"]]


def test_longer_audio_does_not_stretch_frames(videos, tmp_path):
    path = tmp_path / "sound.mkv"
    with av.open(videos[0]) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        sound = container.add_stream("pcm_s16le", rate=8000)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000 * 9), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(sound.encode(frame))
    _, data, _ = module.encode_clip(path, PrepareOptions(num_frames=5))
    np.testing.assert_allclose([at for _, at in iterate_frames(data)], np.arange(5) / 5, atol=0.02)  # 1 second


def test_columns_of_any_name(videos, tmp_path):
    """Columns are kept even if captions of other shards have such names and the row has no caption."""
    rows = [
        {"video": videos[0], "video_id": "0", "captions": [], "text": "no caption", "key": "k", "caption": "nor this"}
    ]
    prepare_corpus(Dataset.from_list(rows), tmp_path, workers=1)
    row = load(tmp_path)[0]
    assert {name: row[name] for name in ("captions", "text", "key", "caption")} == {
        "captions": [],
        "text": "no caption",
        "key": "k",
        "caption": "nor this",
    }


def test_retry_reads_clips_that_have_come_back(videos, tmp_path):
    gone = tmp_path / "gone.mp4"
    rows = rows_of([videos[0], str(gone), videos[1], videos[2]])
    options = PrepareOptions(clips_per_shard=2)
    allowed = {"options": options, "workers": 1, "max_unreadable": 0.5}
    assert prepare_corpus(rows, tmp_path / "out", **allowed)["left_out"] == 1
    untouched = (tmp_path / "out" / "train" / "000001.tar").stat().st_mtime_ns
    gone.write_bytes(Path(videos[3]).read_bytes())
    assert prepare_corpus(rows, tmp_path / "out", **allowed)["left_out"] == 1
    assert prepare_corpus(rows, tmp_path / "out", **allowed, retry=True)["left_out"] == 0
    assert load(tmp_path / "out")["video_id"] == ["0", "gone", "1", "2"]
    assert (tmp_path / "out" / "train" / "000001.tar").stat().st_mtime_ns == untouched


def test_a_shard_without_a_report_is_written_again_even_if_its_clips_are_gone(videos, tmp_path):
    """A run that is killed between writing a shard and its report leaves the shard behind."""
    (tmp_path / "a.mp4").write_bytes(Path(videos[0]).read_bytes())
    rows = rows_of([str(tmp_path / "a.mp4"), videos[1]])
    options = PrepareOptions(clips_per_shard=1)
    prepare_corpus(rows, tmp_path / "out", options=options, workers=1)
    (tmp_path / "out" / "train" / "000000.json").unlink()
    (tmp_path / "a.mp4").unlink()
    result = prepare_corpus(rows, tmp_path / "out", options=options, workers=1, max_unreadable=0.5)
    assert (result["clips"], result["left_out"]) == (1, 1)
    assert load(tmp_path / "out")["video_id"] == ["1"]


def test_one_impossible_row_does_not_end_the_run(videos, tmp_path):
    rows = Dataset.from_list([*rows_of(videos[:2]), {"video": None, "video_id": "none", "captions": ["x"]}])
    result = prepare_corpus(rows, tmp_path, workers=1, max_unreadable=0.5)
    assert (result["clips"], result["left_out"]) == (2, 1)
    assert "none: TypeError" in Path(result["report"]).read_text()


def test_shards_of_a_subfolder_keep_what_they_say_about_mirroring(videos, tmp_path, capsys):
    prepare_corpus(rows_of(videos[:2]), tmp_path / "root" / "a" / "shapes", workers=1, horizontal_flip=False)
    shards = json.dumps({"shards": "a/shapes/train/*.tar"})
    source = ["--corpus", "webdataset", "--data-dir", str(tmp_path / "root"), "--corpus-options", shards]
    with pytest.raises(SystemExit) as end:
        main(["corpus", "prepare", str(tmp_path / "small"), *source, "--workers", "1"])
    assert not end.value.code
    assert json.loads((tmp_path / "small" / "train" / "prepare.json").read_text())["horizontal_flip"] is False


def test_avi_with_reordered_frames_keeps_its_times(tmp_path):
    """AVI has no time stamps of frames, and those of its packets are in another order."""
    path = video_processing.write_video(
        tmp_path / "a.avi", count=75, options={"bf": "2", "g": "25", "x264-params": "b-adapt=0"}
    )
    stamps = [at for _, at in iterate_frames(path)]
    assert any(after < before for before, after in itertools.pairwise(stamps))
    for max_fps, expected in ((None, 75), (10, 30)):
        _, data, known = module.encode_clip(path, PrepareOptions(max_fps=max_fps))
        assert known["frames"] == expected
        times = [at for _, at in iterate_frames(data)]
        np.testing.assert_allclose(times, np.arange(expected) * 3 / expected, atol=0.05)


def test_timestamps_that_start_over(tmp_path):
    """Two recordings in one file keep as many frames per second as one recording."""
    with av.open(str(tmp_path / "0.ts"), "w") as container:
        stream = add_video_stream(container, rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(60):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode())
    data = (tmp_path / "0.ts").read_bytes()
    _, again, known = module.encode_clip(data + data, PrepareOptions(max_fps=10))
    assert known["frames"] == 40
    np.testing.assert_allclose([at for _, at in iterate_frames(again)], np.arange(40) / 10, atol=0.05)


def test_a_prepared_corpus_can_be_prepared(videos, tmp_path):
    prepare_corpus(rows_of(videos[:2]), tmp_path / "once", workers=1)
    prepare_corpus(load(tmp_path / "once"), tmp_path / "twice", options=PrepareOptions(short_side=24), workers=1)
    twice = load(tmp_path / "twice")
    assert twice["video_id"] == ["0", "1"]
    assert frames_of(twice[0]).shape == (30, 24, 32, 3)


def test_another_corpus_is_not_mixed_in(videos, tmp_path):
    prepare_corpus(rows_of(videos[:2]), tmp_path, workers=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "train").glob("*.tar")}
    (tmp_path / "train" / "000007.tar.partial").touch()  # left by a killed run
    again = prepare_corpus(rows_of(videos[:2]), tmp_path, workers=1)  # nothing is left to do
    assert not list((tmp_path / "train").glob("*.partial"))
    assert again["clips"] == 2
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(CorpusError, match="crf is 23, not 30"):
        prepare_corpus(rows_of(videos[:2]), tmp_path, options=PrepareOptions(crf=30), workers=1)
    with pytest.raises(CorpusError, match="rows is 2, not 3"):
        prepare_corpus(rows_of(videos[:3]), tmp_path, workers=1)
    changed = rows_of(videos[:2]).map(lambda row: row | {"captions": ["another"]})
    with pytest.raises(CorpusError, match="its ids, captions or other columns differ"):
        prepare_corpus(changed, tmp_path, workers=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").touch()
    with pytest.raises(CorpusError, match="other files"):
        prepare_corpus(rows_of(videos[:2]), tmp_path, split="mine", workers=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"crf": 99}, "crf=99 must be between 0 and 51"), ({"group": 0}, "group=0"), ({"num_frames": 0}, "num_frames=0")],
)
def test_impossible_options(options, message):
    with pytest.raises(CorpusError, match=message):
        PrepareOptions(**options)


_encode_row = module._encode_row


def crash_on_2(row, options):
    """Replaces `_encode_row`, in its process."""
    if row["video_id"] == "2":
        os.kill(os.getpid(), signal.SIGKILL)
    return _encode_row(row, options)


def hang_on_2(row, options):
    if row["video_id"] == "2":
        time.sleep(3600)
    return _encode_row(row, options)


@pytest.mark.parametrize(("encode", "timeout"), [(crash_on_2, 60), (hang_on_2, 3)])
def test_a_clip_that_crashes_or_hangs_its_process_is_left_out(encode, timeout, videos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_encode_row", encode)
    result = prepare_corpus(rows_of(videos), tmp_path, workers=2, timeout=timeout, max_unreadable=0.5)
    assert (result["clips"], result["left_out"]) == (6, 1)
    report = json.loads(Path(result["report"]).read_text())
    reason = f"reading it crashes the process, or takes more than {timeout} seconds"
    assert report["left_out"] == [{"video_id": "2", "reason": reason}]
    assert load(tmp_path)["video_id"] == ["0", "1", "3", "4", "5", "6"]


def square(number):
    if number in (3, 11):
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def slowly(numbers):
    for number in numbers:
        time.sleep(0.05)  # so that a process ends while the next item is drawn
        yield number


@pytest.mark.parametrize("workers", [1, 2])
def test_items_that_crash_while_others_are_drawn(workers):
    results = map_in_processes(square, slowly(range(20)), workers, 60, lambda number, reason: reason[:18])
    expected = ["reading it crashes" if number in (3, 11) else number * number for number in range(20)]
    assert list(results) == expected


def test_processes_that_do_not_start(tmp_path):
    """A script without a main guard cannot start processes, and the error does not blame the clips."""
    script = tmp_path / "script.py"
    script.write_text(
        "from region_learner.processes import map_in_processes\n"
        "print(list(map_in_processes(abs, [-1], 1, 60, lambda item, reason: 'left out')))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "left out" not in done.stdout
    assert "__name__ == '__main__'" in done.stderr


def processes_of(directory: Path) -> list[str]:
    """Returns the ids of processes whose working directory is `directory` (Linux only)."""
    return [entry for entry in os.listdir("/proc") if entry.isdigit() and works_in(entry, directory)]


def works_in(process: str, directory: Path) -> bool:
    try:
        return os.readlink(f"/proc/{process}/cwd") == str(directory)
    except OSError:
        return False


RUN = """
import sys
from region_learner import load_corpus
from region_learner.corpora import PrepareOptions, prepare_corpus
if __name__ == "__main__":
    rows = load_corpus("folder", sys.argv[1], split="all")
    prepare_corpus(rows, sys.argv[2], options=PrepareOptions(clips_per_shard=2), workers=1)
"""


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks for processes as Linux has them")
def test_a_killed_run_resumes(videos, tmp_path):
    """A run killed after its first shard resumes: no clip is lost or duplicated, and finished shards are kept."""
    originals = tmp_path / "originals"
    originals.mkdir()
    with open(originals / "metadata.jsonl", "w") as file:
        for number in range(30):
            os.link(videos[number % len(videos)], originals / f"{number:02}.mp4")
            file.write(json.dumps({"file_name": f"{number:02}.mp4", "caption": f"clip {number}"}) + "\n")
    script = tmp_path / "run.py"
    script.write_text(RUN)
    out, shards = tmp_path / "out", tmp_path / "out" / "train"
    command = [sys.executable, str(script), str(originals), str(out)]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not list(shards.glob("0*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    run.kill()
    run.wait()
    ends_by = time.monotonic() + 30
    while processes_of(tmp_path) and time.monotonic() < ends_by:
        time.sleep(0.1)
    assert not processes_of(tmp_path)  # its workers end with it
    done = {path: path.stat().st_mtime_ns for path in shards.glob("0*.json")}
    assert 0 < len(done) < 15
    assert not (shards / "report.json").exists()
    rows = load_corpus("folder", str(originals), split="all")
    prepare_corpus(rows, out, options=PrepareOptions(clips_per_shard=2), workers=1)
    assert done == {path: path.stat().st_mtime_ns for path in done}
    prepared = load(out)
    assert prepared["captions"] == [[f"clip {number}"] for number in range(30)]
    assert not list(shards.glob("*.partial"))


def test_frames_are_read_from_shards_as_from_folders(videos, tmp_path):
    """Frames that are read by index, as in training, match those of the original."""
    prepare_corpus(rows_of(videos[:1]), tmp_path, options=PrepareOptions(crf=5), workers=1)
    source = video_source(load(tmp_path)[0]["video"])
    for indices in ([0, 13, 29], [28, 3, 3]):
        ours, _ = read_clip(source, lambda metadata, indices=indices: indices)
        original, _ = read_clip(videos[0], lambda metadata, indices=indices: indices)
        assert np.abs(ours.astype(int) - original.astype(int)).mean() < 1.5

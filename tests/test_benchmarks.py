"""Tests of the benchmark corpora, on real annotation files, stand-ins for the others, and damaged files.

Videos are empty files, because nothing is decoded.
"""

import csv
import json
import logging
import shutil
import zlib
from collections import Counter, defaultdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, IterableDataset, Value

from region_learner.corpora import CorpusError, answer_vocabulary, list_corpora, load_corpus
from region_learner.corpora.benchmarks import class_words
from region_learner.corpora.videos import VideoFiles

COMMON = ["video", "video_id", "captions"]


@pytest.fixture
def annotations(shared_data):
    return shared_data / "annotations"


def touch(directory, names):
    paths = [directory / name for name in names]
    for parent in {path.parent for path in paths}:
        parent.mkdir(parents=True, exist_ok=True)
    for path in paths:
        path.touch()


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def lines(path):
    return path.read_text().split()


def copy(source, target, *names):
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(source / name, target / name)


BENCHMARKS = [
    *("webvid", "cc3m", "msrvtt", "msvd", "didemo", "lsmdc"),
    *("msrvtt_qa", "msvd_qa", "msrvtt_mc", "lsmdc_mc", "vitatecs", "hmdb51", "ucf101"),
]


def test_every_benchmark_is_listed():
    corpora = list_corpora()
    assert {*BENCHMARKS, "features", "folder", "webdataset", "moving_shapes", "drifting_letters"} == set(corpora)
    assert all(len(line) > 40 and "\n" not in line for line in corpora.values())


@pytest.mark.parametrize("name", BENCHMARKS)
def test_missing_data_is_reported(name, tmp_path):
    split = "test" if name in ("msrvtt_mc", "vitatecs") else "train"
    with pytest.raises(CorpusError, match=f"corpus '?{name}.* needs data_dir="):
        load_corpus(name, split=split)
    with pytest.raises(CorpusError, match=r"nowhere is not a directory: check data_dir="):
        load_corpus(name, tmp_path / "nowhere", split=split)
    with pytest.raises(CorpusError, match=f"in {tmp_path}: looked for .*data_dir=|in {tmp_path}: .* file=$") as error:
        load_corpus(name, tmp_path, split=split)
    assert "\n" not in str(error.value)
    with pytest.raises(CorpusError, match=f"{name}.* has no split 'trian'"):
        load_corpus(name, tmp_path, split="trian")


# --- Behavior shared by all benchmarks, shown on MSVD --------------------------------------------------------


@pytest.fixture
def msvd(tmp_path, caplog):
    """A directory with four videos, three of which are in the test list."""
    root = tmp_path / "msvd"
    captions = {"-a_1_2": [" one ", "two"], "b_3_4": ["", "three", "  "], "c.d_5_6": ["four"], "other": ["no"]}
    write(root / "captions_msvd.json", json.dumps(captions))
    write(root / "test_list.txt", "-a_1_2\nb_3_4\r\n\nc.d_5_6")
    touch(root / "YouTubeClips", ["-a_1_2.avi", "b_3_4.avi", "c.d_5_6.avi", "other.avi"])
    return root


def test_columns_captions_and_blanks(msvd, caplog):
    dataset = load_corpus("msvd", msvd, "test")
    assert dataset.column_names == COMMON
    assert dataset.features["captions"].feature == Value("string")
    assert dataset.to_list() == [
        {"video": str(msvd / "YouTubeClips/-a_1_2.avi"), "video_id": "-a_1_2", "captions": ["one", "two"]},
        {"video": str(msvd / "YouTubeClips/b_3_4.avi"), "video_id": "b_3_4", "captions": ["three"]},
        {"video": str(msvd / "YouTubeClips/c.d_5_6.avi"), "video_id": "c.d_5_6", "captions": ["four"]},
    ]
    size, blank = (record.message for record in caplog.records)
    assert size == f"videos of MSVD test: expected 670, found 3 in {msvd / 'test_list.txt'}"
    assert blank.startswith("left out 2 blank captions and 0 videos without a caption")


def test_streams_with_features(msvd):
    stream = load_corpus("msvd", msvd, "test", streaming=True)
    assert isinstance(stream, IterableDataset)
    assert list(stream) == load_corpus("msvd", msvd, "test").to_list()


def test_videos_without_captions_are_left_out(msvd, caplog):
    write(msvd / "test_list.txt", "-a_1_2\nnew_1_2")
    assert load_corpus("msvd", msvd, "test")["video_id"][:] == ["-a_1_2"]
    assert "0 blank captions and 1 videos without a caption (the first: new_1_2)" in caplog.text
    write(msvd / "test_list.txt", "new_1_2")
    with pytest.raises(CorpusError, match=r"no video of the split has a caption in .*captions_msvd.json"):
        load_corpus("msvd", msvd, "test")


def test_missing_videos(msvd, caplog, tmp_path):
    gone = [str(msvd / "YouTubeClips" / name) for name in ("-a_1_2.avi", "c.d_5_6.avi")]
    for path in gone:
        (msvd / path).unlink()
    listed = tmp_path / "lists" / "missing-test.txt"
    option = {"missing_list": tmp_path / "lists" / "missing-{split}.txt"}
    with pytest.raises(CorpusError, match=r"2 of 3 video files .*-a_1_2.avi, .*all of them in .*max_missing=2"):
        load_corpus("msvd", msvd, "test", **option)
    assert listed.read_text().splitlines() == gone
    listed.unlink()
    with pytest.raises(CorpusError, match=r"max_missing=2"):
        load_corpus("msvd", msvd, "test", max_missing=0.5)
    assert not listed.exists()
    for enough in (2, 0.7):
        caplog.clear()
        assert load_corpus("msvd", msvd, "test", max_missing=enough, **option)["video_id"][:] == ["b_3_4"]
        assert "2 of 3 video files" in caplog.text
        assert listed.read_text().splitlines() == gone
    touch(msvd / "YouTubeClips", ["-a_1_2.avi", "c.d_5_6.avi"])
    assert load_corpus("msvd", msvd, "test", **option).num_rows == 3
    assert listed.read_text() == ""
    with pytest.raises(CorpusError, match=r"cannot write missing_list="):
        load_corpus("msvd", msvd, "test", missing_list=msvd)


def test_folder_lists_missing_files(tmp_path):
    write(tmp_path / "metadata.jsonl", '{"file_name": "a.mp4", "text": "a"}\n{"file_name": "b.mp4", "text": "b"}')
    touch(tmp_path, ["a.mp4"])
    with pytest.raises(CorpusError, match=r"1 of 2"):
        load_corpus("folder", tmp_path, missing_list=tmp_path / "m.txt")
    assert (tmp_path / "m.txt").read_text() == f"{tmp_path}/b.mp4\n"


def test_folder_of_images_and_videos(tmp_path, caplog):
    names = ["a.mp4", "b.JPG", "c.png", "d.webm", "e"]
    write(tmp_path / "metadata.jsonl", "".join(json.dumps({"file_name": n, "text": n}) + "\n" for n in names))
    touch(tmp_path, names)

    def ids(**options):
        return load_corpus("folder", tmp_path, **options)["video_id"][:]

    assert ids() == ids(media="all") == ["a", "b", "c", "d", "e"]
    assert ids(media="images") == ["b", "c"]
    assert ids(media="videos") == ["a", "d"]
    with pytest.raises(CorpusError, match=r"media must be one of all, videos, images, not 'video'"):
        ids(media="video")
    write(tmp_path / "metadata.jsonl", '{"file_name": "a.mp4", "text": "a"}')
    with pytest.raises(CorpusError, match=r"no images among the rows of split 'train'"):
        ids(media="images")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a\0"])
def test_entries_that_lead_outside(msvd, name):
    write(msvd / "test_list.txt", f"b_3_4\n{name}")
    touch(msvd, ["x.avi"])
    with pytest.raises(CorpusError, match=r"test_list.txt, line 2: video '.*' leads outside of .*YouTubeClips"):
        load_corpus("msvd", msvd, "test")


def test_video_dir(msvd, tmp_path):
    shutil.move(msvd / "YouTubeClips", tmp_path / "elsewhere")
    with pytest.raises(CorpusError, match=r"3 of 3 video files"):
        load_corpus("msvd", msvd, "test")
    for video_dir in (tmp_path / "elsewhere", "../elsewhere"):
        dataset = load_corpus("msvd", msvd, "test", video_dir=video_dir)
        assert dataset["video"][1] == str(tmp_path / "elsewhere" / "b_3_4.avi")
    with pytest.raises(CorpusError, match=r"gone is not a directory: check video_dir="):
        load_corpus("msvd", msvd, "test", video_dir="gone")


@pytest.mark.parametrize(
    ("there", "wanted", "found"),
    [
        (["x.mp4"], "x", "x.mp4"),
        (["x.avi", "x.mp4", "x.txt"], "x", "x.mp4"),
        (["x.mp4", "x.avi"], "x.avi", "x.avi"),
        (["x.WEBM"], "x.avi", "x.WEBM"),
        (["x.mov.mp4"], "x.mov", "x.mov.mp4"),
        (["x.mov.mp4"], "x", "x.mov.mp4"),
        (["x.mp4"], "x.", "x.mp4"),
        (["x..mp4"], "x.", "x..mp4"),
        (["x."], "x.", "x."),
        (["x_00.01.129.avi"], "x_00.01.129", "x_00.01.129.avi"),
        (["x_00.01.avi"], "x_00.01.129", None),
        (["x.json", "x.jpg"], "x", None),
        (["d/x.mkv", "x.mp4"], "d/x", "d/x.mkv"),
    ],
)
def test_finding_videos(tmp_path, there, wanted, found):
    touch(tmp_path / "videos", there)
    videos = VideoFiles(tmp_path, None, ["absent", "videos"])
    path = videos.find(wanted, "here")
    if found:
        assert path == str(tmp_path / "videos" / found)
        assert not videos.missing
    else:
        assert videos.missing == {path} == {str(tmp_path / "videos" / f"{wanted}.mp4")}


def test_the_first_directory_wins(tmp_path):
    touch(tmp_path, ["videos/all/x.avi", "videos/x.mp4", "y.mp4"])
    videos = VideoFiles(tmp_path, None, ["videos/all", "videos"])
    assert videos.find("x.mp4", "here") == str(tmp_path / "videos/all/x.avi")
    assert videos.find("y", "here") == str(tmp_path / "y.mp4")


# --- MSR-VTT -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def msrvtt_videos(tmp_path_factory):
    """A directory with all 10,000 videos of MSR-VTT, made once for all tests."""
    directory = tmp_path_factory.mktemp("videos")
    touch(directory, [f"video{n}.mp4" for n in range(10_000)])
    return directory


@pytest.fixture
def msrvtt(annotations, msrvtt_videos, tmp_path):
    """The real lists, in the directories of the release, and captions of 60 videos."""
    lists = "high-quality/structured-symlinks"
    names = [path.name for path in (annotations / "msrvtt").iterdir()]
    copy(annotations / "msrvtt", tmp_path / lists, *[name for name in names if name.endswith(".txt")])
    copy(annotations / "msrvtt", tmp_path, *[name for name in names if name.endswith(".csv")])
    copy(annotations / "msrvtt", tmp_path / "annotation", "MSR_VTT.json")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "all").symlink_to(msrvtt_videos)
    return tmp_path


def msrvtt_captions(annotations):
    captions = defaultdict(list)
    for entry in json.loads((annotations / "msrvtt" / "MSR_VTT.json").read_text())["annotations"]:
        captions[entry["image_id"]].append(entry["caption"].strip())
    return captions


def test_msrvtt_1k_a_test_pairs(msrvtt, annotations, caplog):
    dataset = load_corpus("msrvtt", msrvtt, "test")
    with (annotations / "msrvtt" / "MSRVTT_JSFUSION_test.csv").open(newline="") as file:
        expected = [(row[2], [row[3]]) for row in list(csv.reader(file))[1:]]
    assert len(expected) == dataset.num_rows == 1000
    assert list(zip(dataset["video_id"], dataset["captions"])) == expected
    assert set(dataset["video_id"]) == set(lines(annotations / "msrvtt" / "val_list_jsfusion.txt"))
    assert dataset["video"][0] == str(msrvtt / "videos/all/video9770.mp4")
    assert not caplog.records
    for name in ("jsfusion", "1k-a"):
        assert load_corpus("msrvtt", msrvtt, "test", protocol=name).to_list() == dataset.to_list()


# Writes captions for every video; the annotation files of the tests have only some.
def write_whole_captions(msrvtt):
    sentences = [
        {"caption": f"{text} {n}", "video_id": f"video{n}", "sen_id": 0} for text in "ab" for n in range(10_000)
    ]
    ranges = {"train": range(6513), "validate": range(6513, 7010), "test": range(7010, 10_000)}
    videos = [{"video_id": f"video{n}", "split": split} for split, numbers in ranges.items() for n in numbers]
    write(msrvtt / "annotation" / "MSRVTT_data.json", json.dumps({"videos": videos, "sentences": sentences}))


@pytest.mark.parametrize(
    ("protocol", "sizes"),
    [
        ("1k-A", {"train": ("train_list_jsfusion.txt", 9000)}),
        ("1k-B", {"train": ("train_list_miech.txt", 6656), "test": ("test_list_miech.txt", 1000)}),
        ("miech", {"test": ("test_list_miech.txt", 1000)}),
        (
            "full",
            {
                "train": ("train_list_full.txt", 6513),
                "val": ("val_list_full.txt", 497),
                "validation": ("val_list_full.txt", 497),
                "test": ("test_list_full.txt", 2990),
            },
        ),
    ],
)
def test_msrvtt_protocols(msrvtt, annotations, caplog, protocol, sizes):
    write_whole_captions(msrvtt)
    for split, (name, size) in sizes.items():
        dataset = load_corpus("msrvtt", msrvtt, split, protocol=protocol)
        assert dataset.num_rows == size
        assert set(dataset["video_id"]) == set(lines(annotations / "msrvtt" / name))
        for row in dataset.select(range(0, size, 100)):
            number = row["video_id"].removeprefix("video")
            assert row["captions"] == [f"a {number}", f"b {number}"]
    assert not caplog.records


def test_msrvtt_train_and_test_share_no_video(msrvtt):
    write_whole_captions(msrvtt)
    for protocol in ("1k-A", "1k-B", "full"):
        train, test = (set(load_corpus("msrvtt", msrvtt, s, protocol=protocol)["video_id"]) for s in ("train", "test"))
        assert not train & test


@pytest.mark.parametrize("layout", ["MSR_VTT.json", "MSRVTT_data.json"])
def test_msrvtt_real_captions(msrvtt, annotations, caplog, layout):
    (msrvtt / "annotation" / "MSR_VTT.json").unlink()
    copy(annotations / "msrvtt", msrvtt / "annotation", layout)
    dataset = load_corpus("msrvtt", msrvtt, "test", protocol="full")
    assert dict(zip(dataset["video_id"], dataset["captions"])) == msrvtt_captions(annotations)
    assert Counter(map(len, dataset["captions"])) == {20: 60}
    assert "2930 videos without a caption" in caplog.text


def test_msrvtt_first_release(tmp_path, caplog):
    """The first release has two files, and their own splits are used if there are no lists."""
    for name, entries in {"train_val": {1: "train", 2: "validate"}, "test": {7010: "test"}}.items():
        data = {
            "info": {},
            "videos": [{"video_id": f"video{n}", "split": split} for n, split in entries.items()],
            "sentences": [{"video_id": f"video{n}", "caption": f"{split} {n}"} for n, split in entries.items()],
        }
        write(tmp_path / f"{name}_videodatainfo.json", json.dumps(data))
    touch(tmp_path, ["TrainValVideo/video1.mp4", "TrainValVideo/video2.mp4", "TestVideo/video7010.mp4"])
    for split, path in {
        "train": "TrainValVideo/video1",
        "val": "TrainValVideo/video2",
        "test": "TestVideo/video7010",
    }.items():
        (row,) = load_corpus("msrvtt", tmp_path, split, protocol="full")
        assert row["video"] == str(tmp_path / f"{path}.mp4")
    assert "videos of MSR-VTT full val: expected 497, found 1 in" in caplog.text


def test_msrvtt_errors(msrvtt):
    with pytest.raises(
        CorpusError, match=r"unknown protocol '1k-C' \(protocols: 1k-A, jsfusion.*\); did you mean '1k-.'"
    ):
        load_corpus("msrvtt", msrvtt, protocol="1k-C")
    with pytest.raises(CorpusError, match=r"msrvtt \(protocol 1k-A\) has no split 'val' \(splits: train, test\)"):
        load_corpus("msrvtt", msrvtt, "val")
    (msrvtt / "MSRVTT_JSFUSION_test.csv").write_text("key,video_id,text\nret0,video1,a\n")
    with pytest.raises(CorpusError, match=r"test.csv has no column sentence \(columns: key, video_id, text\)"):
        load_corpus("msrvtt", msrvtt, "test")
    (msrvtt / "MSRVTT_JSFUSION_test.csv").write_text("video_id,sentence\nvideo1,a\nvideo2,b, c\n")
    with pytest.raises(CorpusError, match=r"test.csv, line 3: the number of fields is \d, but the header has 2"):
        load_corpus("msrvtt", msrvtt, "test")
    (msrvtt / "MSRVTT_JSFUSION_test.csv").unlink()
    with pytest.raises(CorpusError, match=r"no test pairs of protocol 1k-A in .*MSRVTT_JSFUSION_test.csv"):
        load_corpus("msrvtt", msrvtt, "test")
    for damaged, message in {
        '{"annotations": [{"image_id": "video1"}]}': "MSR_VTT.json, caption 1: expected a video_id or image_id",
        '{"sentences": 3}': "neither 'sentences' nor 'annotations'",
        '{"annot': "MSR_VTT.json, line 1: not JSON",
    }.items():
        write(msrvtt / "annotation" / "MSR_VTT.json", damaged)
        with pytest.raises(CorpusError, match=message):
            load_corpus("msrvtt", msrvtt, "train")


def test_msrvtt_csv_with_other_columns(tmp_path):
    write(tmp_path / "MSRVTT_JSFUSION_test.csv", '\ufeffsentence,new,video_id\n"a, ""b""\nc",,video1\nd,,video1\n')
    touch(tmp_path / "videos", ["video1.webm"])
    (row,) = load_corpus("msrvtt", tmp_path, "test")
    assert row == {"video": str(tmp_path / "videos/video1.webm"), "video_id": "video1", "captions": ['a, "b"\nc', "d"]}


# --- MSVD, DiDeMo, LSMDC -------------------------------------------------------------------------------------


def test_msvd_real_files(annotations, tmp_path, caplog):
    copy(annotations / "msvd", tmp_path, "captions_msvd.json", *[f"{s}_list.txt" for s in ("train", "val", "test")])
    captions = json.loads((tmp_path / "captions_msvd.json").read_text())
    whole = {
        name: captions.get(name, ["a"]) for s in ("train", "val", "test") for name in lines(tmp_path / f"{s}_list.txt")
    }
    write(tmp_path / "captions_msvd.json", json.dumps(whole))
    touch(tmp_path / "YouTubeClips", [f"{name}.avi" for name in whole])
    loaded = {}
    for split, size in {"train": 1200, "val": 100, "test": 670}.items():
        dataset = load_corpus("msvd", tmp_path, split)
        assert dataset["video_id"][:] == lines(annotations / "msvd" / f"{split}_list.txt")
        assert dataset.num_rows == size
        loaded |= zip(dataset["video_id"], dataset["captions"])
    assert loaded == whole
    assert sum(len(loaded[name]) for name in captions) / len(captions) > 40  # videos keep all of their captions
    assert not caplog.records


def test_msvd_other_caption_files(msvd):
    (msvd / "captions_msvd.json").unlink()
    write(
        msvd / "AllVideoDescriptions.txt",
        "# A comment\n# x y\n\n-a_1_2 a dog runs.\nb_3_4 a cat\n-a_1_2 it's\nc.d_5_6 c",
    )
    expected = [["a dog runs.", "it's"], ["a cat"], ["c"]]
    assert load_corpus("msvd", msvd, "test")["captions"][:] == expected
    write(msvd / "AllVideoDescriptions.txt", "-a_1_2")
    with pytest.raises(CorpusError, match=r"AllVideoDescriptions.txt, line 1: expected an id of a video and a desc"):
        load_corpus("msvd", msvd, "test")
    (msvd / "AllVideoDescriptions.txt").unlink()
    rows = ["VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description"]
    for language, text in [("English", '"a dog, brown"'), ("German", "der Hund"), ("English", "a pet")]:
        rows.append(f"-a,1,2,7,clean,30,{language},{text}")
    write(msvd / "MSR Video Description Corpus.csv", "\n".join(rows))
    write(msvd / "test_list.txt", "-a_1_2")
    assert load_corpus("msvd", msvd, "test")["captions"][:] == [["a dog, brown", "a pet"]]


def test_didemo_real_files(annotations, tmp_path, caplog):
    copy(annotations / "didemo", tmp_path / "data", "test_data.json", "test_list.txt")
    listed = lines(annotations / "didemo" / "test_list.txt")
    paragraphs = defaultdict(list)
    for moment in json.loads((annotations / "didemo" / "test_data.json").read_text()):
        paragraphs[moment["video"]].append(moment["description"].strip())
    touch(tmp_path / "videos", listed)
    dataset = load_corpus("didemo", tmp_path, "test")
    expected = [name for name in listed if name in paragraphs]
    assert len(listed) == 1004
    assert dataset["captions"][:] == [[" ".join(paragraphs[name])] for name in expected]
    assert dataset["video"][:] == [str(tmp_path / "videos" / name) for name in expected]
    assert dataset["video_id"][:] == [name.rpartition(".")[0] for name in expected]
    assert max(len(texts) for texts in paragraphs.values()) > 1
    (record,) = caplog.records  # the list is complete, but the captions are not
    assert f"{len(listed) - len(expected)} videos without a caption" in record.message


@pytest.mark.parametrize(("split", "size"), [("train", 8392), ("val", 1065)])
def test_didemo_real_lists(annotations, tmp_path, caplog, split, size):
    """Every video is found, whether its file has the released name, a second extension, or .mp4 instead."""
    names = lines(annotations / "didemo" / f"{split}_list.txt")
    copy(annotations / "didemo", tmp_path, f"{split}_list.txt")
    write(tmp_path / f"{split}_data.json", json.dumps([{"video": name, "description": name} for name in names]))
    on_disk = [
        name if n % 3 == 0 else f"{name}.mp4" if n % 3 == 1 else f"{name.rpartition('.')[0]}.mp4"
        for n, name in enumerate(names)
    ]
    touch(tmp_path / "video", on_disk)
    dataset = load_corpus("didemo", tmp_path, split)
    assert dataset["video"][:] == [str(tmp_path / "video" / name) for name in on_disk]
    assert len(set(dataset["video_id"])) == size
    assert not caplog.records


def test_didemo_without_list_and_damaged(tmp_path):
    write(tmp_path / "val_data.json", json.dumps([{"video": "a.mov", "description": d} for d in (" x ", "", "y.")]))
    touch(tmp_path, ["a.mov"])
    (row,) = load_corpus("didemo", tmp_path, "validation")
    assert row == {"video": str(tmp_path / "a.mov"), "video_id": "a", "captions": ["x y."]}
    write(tmp_path / "val_data.json", '[{"video": "a.mov", "description": "x"}, {"video": "a.mov"}]')
    with pytest.raises(CorpusError, match=r"val_data.json, entry 2: expected a video and a description"):
        load_corpus("didemo", tmp_path, "val")


CLIPS = ["0001_American_Beauty_00.00.51.926-00.00.54.129", "1012_Unbreakable_00.05.16.065-00.05.21.941"]


def lsmdc_line(clip, *fields):
    return "\t".join([clip, "00.00.51.926", "00.00.54.129", "00.00.51.926", "00.00.54.129", *fields]) + "\n"


def test_lsmdc(tmp_path, caplog):
    text = (
        lsmdc_line(CLIPS[0], 'He says "hi.')
        + lsmdc_line(CLIPS[1], "A car\u2028stops.")
        + lsmdc_line(CLIPS[0], "Again.")
    )
    write(tmp_path / "LSMDC16_annos_training.csv", text)
    touch(tmp_path / "avi", [f"0001_American_Beauty/{CLIPS[0]}.avi", f"{CLIPS[1]}.mp4"])
    dataset = load_corpus("lsmdc", tmp_path)
    assert dataset.to_list() == [
        {
            "video": str(tmp_path / "avi/0001_American_Beauty" / f"{CLIPS[0]}.avi"),
            "video_id": CLIPS[0],
            "captions": ['He says "hi.', "Again."],
        },
        {"video": str(tmp_path / "avi" / f"{CLIPS[1]}.mp4"), "video_id": CLIPS[1], "captions": ["A car\u2028stops."]},
    ]
    assert "clips of LSMDC train: expected 101,079, found 2 in" in caplog.text
    write(tmp_path / "LSMDC16_challenge_1000_publictect.csv", lsmdc_line(CLIPS[0], "x") + "\n" + lsmdc_line(CLIPS[1]))
    with pytest.raises(CorpusError, match=r"publictect.csv, line 3: 5 tab-separated fields, expected 6"):
        load_corpus("lsmdc", tmp_path, "test")
    write(tmp_path / "LSMDC16_annos_val.csv", lsmdc_line("../../x_1", "x"))
    with pytest.raises(CorpusError, match=r"val.csv, line 1: video '../../x/../../x_1' leads outside"):
        load_corpus("lsmdc", tmp_path, "val")
    write(tmp_path / "LSMDC16_annos_val.csv", lsmdc_line("clip", "x"))
    with pytest.raises(CorpusError, match=r"'clip' is not the name of a clip"):
        load_corpus("lsmdc", tmp_path, "val")


def test_lsmdc_missing_clip_is_expected_in_its_film(tmp_path):
    write(tmp_path / "LSMDC16_annos_val.csv", lsmdc_line(CLIPS[0], "x"))
    with pytest.raises(
        CorpusError,
        match=f"missing .*: 0001_American_Beauty/{CLIPS[0]}.avi; .*American_Beauty does not exist; ",
    ):
        load_corpus("lsmdc", tmp_path, "val")


# --- Question answering and multiple choice ------------------------------------------------------------------


def test_msrvtt_qa(tmp_path, caplog):
    questions = [
        {"answer": "couch", "category_id": 14, "id": 1, "question": " what is broken? ", "video_id": 6513},
        {"answer": "two", "id": 2, "question": "how many?", "video_id": 6513},
        {"answer": "dog", "id": 3, "question": "who runs?", "video_id": "video7"},
    ]
    touch(tmp_path / "videos", ["video6513.mp4", "video7.mp4"])
    expected = [
        (str(tmp_path / "videos/video6513.mp4"), "video6513", [], "what is broken?", "couch"),
        (str(tmp_path / "videos/video6513.mp4"), "video6513", [], "how many?", "two"),
        (str(tmp_path / "videos/video7.mp4"), "video7", [], "who runs?", "dog"),
    ]
    for name, text in {
        "MSRVTT-QA/val_qa.json": json.dumps(questions),
        "msrvtt_qa_test.jsonl": "\n".join(map(json.dumps, questions)),
    }.items():
        write(tmp_path / name, text)
        split = "val" if "val" in name else "test"
        dataset = load_corpus("msrvtt_qa", tmp_path, split)
        assert dataset.column_names == [*COMMON, "question", "answer"]
        assert dataset.features["captions"].feature == Value("string")
        assert [tuple(row.values()) for row in dataset] == expected
    assert "expected 12,278, found 3" in caplog.text
    assert "expected 72,821, found 3" in caplog.text


def test_msvd_qa(tmp_path):
    write(tmp_path / "youtube_mapping.txt", "-4wsuPCjDBc_5_15 vid1\nb_1_2 vid23\n")
    write(tmp_path / "test_qa.json", '[{"id": 1, "question": "who?", "answer": "man", "video_id": 23}]')
    touch(tmp_path / "YouTubeClips", ["b_1_2.avi"])
    (row,) = load_corpus("msvd_qa", tmp_path, "test")
    assert (row["video"], row["video_id"]) == (str(tmp_path / "YouTubeClips/b_1_2.avi"), "b_1_2")
    write(tmp_path / "test_qa.json", '[{"question": "who?", "answer": "man", "video_id": 24}]')
    with pytest.raises(CorpusError, match=r"test_qa.json, entry 1: the mapping of ids has no video 24"):
        load_corpus("msvd_qa", tmp_path, "test")
    (tmp_path / "youtube_mapping.txt").unlink()
    touch(tmp_path / "video", ["vid24.avi"])
    assert load_corpus("msvd_qa", tmp_path, "test")["video_id"][:] == ["vid24"]
    write(tmp_path / "youtube_mapping.txt", "a vid1\nb 2nd\n")
    with pytest.raises(CorpusError, match=r"youtube_mapping.txt, line 2: expected `YOUTUBE_ID vidN`"):
        load_corpus("msvd_qa", tmp_path, "test")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"answer": "a", "video_id": 1}, "entry 2: 'question' must be a string"),
        ({"answer": 3, "question": "q", "video_id": 1}, "entry 2: 'answer' must be a string"),
        ({"answer": "a", "question": "q"}, "entry 2: no 'video_id'"),
        ({"answer": "a", "question": "q", "video_id": "../x"}, "entry 2: video '../x' leads outside"),
        ("q", "entry 2: not a JSON object"),
    ],
)
def test_damaged_questions(tmp_path, entry, message):
    good = {"answer": "a", "question": "q", "video_id": 1}
    write(tmp_path / "train_qa.json", json.dumps([good, entry]))
    with pytest.raises(CorpusError, match=f"train_qa.json, {message}"):
        load_corpus("msrvtt_qa", tmp_path)


def test_answer_vocabulary(tmp_path):
    rows = [{"answer": answer} for answer in ["b", "b", "b", "c", "a", "c", "a", "d"]]
    assert answer_vocabulary(rows, 3) == ["b", "a", "c"]
    assert answer_vocabulary(rows, 100) == ["b", "a", "c", "d"]
    questions = [{"question": "q", "answer": row["answer"], "video_id": n} for n, row in enumerate(rows)]
    write(tmp_path / "train_qa.json", json.dumps(questions))
    touch(tmp_path, [f"video{n}.mp4" for n in range(len(rows))])
    for streaming in (False, True):
        assert answer_vocabulary(load_corpus("msrvtt_qa", tmp_path, streaming=streaming), 2) == ["b", "a"]
    with pytest.raises(CorpusError, match=r"needs rows with words in the column 'answer'"):
        answer_vocabulary([{"answer": 3}], 2)
    with pytest.raises(CorpusError, match=r"size must be at least 1"):
        answer_vocabulary(rows, 0)


OPTIONS = ["a", "b", "c", "d", "e"]


def test_msrvtt_mc(tmp_path, caplog):
    entry = {"qid": 0, "clip_name": "video9770", "options": OPTIONS, "answer": 3}
    write(tmp_path / "mc_test.jsonl", json.dumps(entry) + "\n")
    touch(tmp_path / "videos/all", ["video9770.mp4"])
    dataset = load_corpus("msrvtt_mc", tmp_path, "test")
    assert dataset.to_list() == [
        {
            "video": str(tmp_path / "videos/all/video9770.mp4"),
            "video_id": "video9770",
            "captions": ["d"],
            "options": OPTIONS,
            "answer": 3,
        }
    ]
    assert dataset.features["answer"] == Value("int64")
    assert "expected 2,990, found 1" in caplog.text
    for name, value, message in [
        ("answer", 5, "line 1: the answer 5 is not the index of one of the 5 options"),
        ("answer", "3", "line 1: the answer '3' is not the index"),
        ("options", ["a", " "], "line 1: the answer 3 is not the index of one of the 2 options"),
        ("options", ["a", "b", "c", "\t", "e"], "line 1: the right option, 3, is blank"),
        ("options", "abcde", "line 1, 'options': expected a list of strings, not 'abcde'"),
        ("clip_name", "/etc/passwd", "line 1: video '/etc/passwd' leads outside"),
    ]:
        write(tmp_path / "mc_test.jsonl", json.dumps({**entry, name: value}))
        with pytest.raises(CorpusError, match=message):
            load_corpus("msrvtt_mc", tmp_path, "test")


def test_lsmdc_mc(tmp_path):
    touch(tmp_path / "avi", [f"{clip.rpartition('_')[0]}/{clip}.avi" for clip in CLIPS])
    name = "LSMDC16_multiple_choice_test_randomized.csv"
    write(tmp_path / name, lsmdc_line(CLIPS[0], *OPTIONS, "5") + lsmdc_line(CLIPS[1], *OPTIONS[::-1], "1"))
    dataset = load_corpus("lsmdc_mc", tmp_path, "test")
    assert dataset["answer"][:] == [4, 0]
    assert dataset["options"][:] == [OPTIONS, OPTIONS[::-1]]
    assert dataset["captions"][:] == [["e"], ["e"]]
    assert dataset["video_id"][:] == CLIPS
    write(tmp_path / name, lsmdc_line(CLIPS[0], *OPTIONS, "0"))
    with pytest.raises(CorpusError, match=r"line 1: the last field must be the number of the right sentence, 1 to 5"):
        load_corpus("lsmdc_mc", tmp_path, "test")
    write(tmp_path / "LSMDC16_multiple_choice_valid.csv", lsmdc_line(CLIPS[0], *OPTIONS))
    (row,) = load_corpus("lsmdc_mc", tmp_path, "val")
    assert (row["answer"], row["captions"]) == (0, ["a"])


ASPECTS = ("Direction", "Intensity", "Sequence", "Localization", "Compositionality", "Type")
# One pair per aspect, with the fields that the authors' README describes.
PAIRS = {
    aspect: {
        "src_dataset": ("MSRVTT", "VATEX")[number % 2],
        "video_name": (f"video{7010 + number}.mp4", f"a-B_{number}_000027_000037.mp4")[number % 2],
        "caption": f"a person puts {number} things down",
        "counterfactual": f"a person picks {number} things up",
        "aspect": aspect,
    }
    for number, aspect in enumerate(ASPECTS)
}


@pytest.fixture
def vitatecs(tmp_path):
    """The six files of the original repository, with one pair each, and empty videos."""
    root = tmp_path / "vitatecs"
    for aspect, pair in PAIRS.items():
        write(root / "data" / f"{aspect}.jsonl", json.dumps(pair) + "\n")
    touch(root / "videos", [f"{pair['src_dataset']}/{pair['video_name']}" for pair in PAIRS.values()])
    return root


def test_vitatecs(vitatecs, caplog):
    dataset = load_corpus("vitatecs", vitatecs, "test")
    assert dataset.column_names == [*COMMON, "options", "answer", "aspect"]
    for row, (aspect, pair) in zip(dataset, PAIRS.items(), strict=True):
        assert row["video"] == str(vitatecs / "videos" / pair["src_dataset"] / pair["video_name"])
        assert row["video_id"] == pair["video_name"].removesuffix(".mp4")
        assert row["captions"] == [pair["caption"]] == [row["options"][row["answer"]]]
        assert row["options"][1 - row["answer"]] == pair["counterfactual"]
        assert row["aspect"] == aspect.lower()
    assert f"pairs of VITATECS: expected 13,838, found 6 in {vitatecs / 'data'}" in caplog.text
    # Files of the first release do not name the aspect.
    lines = [{**PAIRS["Type"], "caption": f"caption {number}"} for number in range(300)]
    write(vitatecs / "data" / "Type.jsonl", "\n".join(json.dumps({**one, "aspect": "Type"}) for one in lines))
    with_aspect = load_corpus("vitatecs", vitatecs, "test").to_list()
    for one in lines:
        del one["aspect"]
    write(vitatecs / "data" / "Type.jsonl", "\n".join(map(json.dumps, lines)))
    rows = load_corpus("vitatecs", vitatecs, "test").to_list()
    assert rows == with_aspect
    assert Counter(row["aspect"] for row in rows)["type"] == 300
    assert 110 < sum(row["answer"] for row in rows) < 190  # both positions are about equally frequent


@pytest.mark.parametrize(
    ("msrvtt", "vatex"),
    [
        ("videos/all", "VATEX"),
        ("MSRVTT/videos/all", "VATEX/videos"),
        ("MSRVTT", "VATEX"),
        ("TestVideo", "videos"),
        ("", ""),
    ],
)
def test_vitatecs_finds_the_videos_of_its_sources(vitatecs, msrvtt, vatex):
    shutil.rmtree(vitatecs / "videos")
    places = {"MSRVTT": msrvtt, "VATEX": vatex}
    files = [f"{places[pair['src_dataset']]}/{pair['video_name']}".lstrip("/") for pair in PAIRS.values()]
    touch(vitatecs, [name.replace(".mp4", ".webm") for name in files])
    dataset = load_corpus("vitatecs", vitatecs, "test")
    assert dataset["video"][:] == [str(vitatecs / name.replace(".mp4", ".webm")) for name in files]


def test_vitatecs_without_some_videos(vitatecs, tmp_path, caplog):
    shutil.rmtree(vitatecs / "videos" / "VATEX")
    with pytest.raises(CorpusError, match=r"3 of 6 video files .* missing .*: videos/VATEX/a-B_1_000027_000037.mp4"):
        load_corpus("vitatecs", vitatecs, "test")
    dataset = load_corpus("vitatecs", vitatecs, "test", max_missing=0.5, missing_list=tmp_path / "missing.txt")
    assert dataset["aspect"][:] == ["direction", "sequence", "compositionality"]
    assert len(lines(tmp_path / "missing.txt")) == 3
    touch(tmp_path / "elsewhere", [f"{pair['src_dataset']}/{pair['video_name']}" for pair in PAIRS.values()])
    assert len(load_corpus("vitatecs", vitatecs, "test", video_dir=tmp_path / "elsewhere")) == 6


def test_vitatecs_damaged(vitatecs):
    for name, value, message in [
        ("src_dataset", "msvd", "line 1: 'src_dataset' must be MSRVTT or VATEX, not 'msvd'"),
        ("video_name", " ", "line 1: 'video_name' must be a string that is not blank"),
        ("video_name", "/etc/passwd", "line 1: video '/etc/passwd' leads outside"),
        ("video_name", "../../x.mp4", "line 1: video '.*' leads outside"),
        ("caption", "", "line 1: 'caption' must be a string that is not blank"),
        ("counterfactual", None, "line 1: 'counterfactual' must be a string that is not blank"),
        ("aspect", "Direction", "line 1: 'aspect' is 'Direction' in the file of Type"),
    ]:
        write(vitatecs / "data" / "Type.jsonl", json.dumps({**PAIRS["Type"], name: value}))
        with pytest.raises(CorpusError, match=rf"Type.jsonl, {message}"):
            load_corpus("vitatecs", vitatecs, "test")
    (vitatecs / "data" / "Type.jsonl").unlink()
    with pytest.raises(CorpusError, match=r"no pairs of VITATECS for Type in .*: looked for Type.jsonl there and in"):
        load_corpus("vitatecs", vitatecs, "test")


# --- Actions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_hmdb51_real_file(annotations, tmp_path, caplog, fold):
    copy(annotations / "hmdb51", tmp_path, "hmdb51.csv")
    with (tmp_path / "hmdb51.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    touch(tmp_path, [f"hmdb51_org/{row['label'][:-5]}/{row['video_id']}" for row in rows])
    for split, use in {"train": "1", "test": "2"}.items():
        dataset = load_corpus("hmdb51", tmp_path, split, fold=fold)
        chosen = [row for row in rows if row[f"split{fold}"] == use]
        assert dataset["video_id"][:] == [row["video_id"][:-4] for row in chosen]
        assert dataset.features["label"] == ClassLabel(names=["brush hair", "cartwheel", "catch", "chew"])
        names = dataset.features["label"].int2str(dataset["label"][:])
        assert names == [row["label"][:-5].replace("_", " ") for row in chosen]
        assert dataset["captions"][:] == [[name] for name in names]
        # Each class has 70 training videos and 30 test videos.
        expected = {"train": 70, "test": 30}[split]
        whole = [name for name, count in Counter(names).items() if count == expected]
        assert len(whole) >= 3
    assert "classes of HMDB51: expected 51, found 4" in caplog.text


def test_hmdb51_lists_of_the_release(tmp_path):
    folder = tmp_path / "testTrainMulti_7030_splits"
    write(folder / "climb_test_split2.txt", "#a b&c.avi 1 \nd.avi 2 \n")
    write(folder / "climb_stairs_test_split2.txt", "e[1].avi 1 \nf.avi 0 \n")
    write(folder / "climb_test_split1.txt", "d.avi 1 \n")
    touch(tmp_path, ["climb/#a b&c.avi", "climb/d.avi", "videos/e[1].avi"])
    dataset = load_corpus("hmdb51", tmp_path, fold=2)
    names = ["climb", "climb stairs"]
    assert dataset.features["label"].names == names
    rows = {row["video_id"]: (row["video"], row["captions"], names[row["label"]]) for row in dataset}
    assert rows == {
        "#a b&c": (str(tmp_path / "climb/#a b&c.avi"), ["climb"], "climb"),
        "e[1]": (str(tmp_path / "videos/e[1].avi"), ["climb stairs"], "climb stairs"),
    }
    assert load_corpus("hmdb51", tmp_path, "test", fold=2)["video_id"][:] == ["d"]
    write(folder / "climb_test_split2.txt", "a.avi 1\nb.avi 3\n")
    with pytest.raises(CorpusError, match=r"climb_test_split2.txt, line 2: expected the name of a video and 0, 1"):
        load_corpus("hmdb51", tmp_path, fold=2)


def test_hmdb51_damaged(tmp_path):
    write(tmp_path / "hmdb51.csv", "video_id,label,split1\na.avi,hug_test,4\n")
    with pytest.raises(CorpusError, match=r"hmdb51.csv, line 2: split1 must be 0, 1"):
        load_corpus("hmdb51", tmp_path)
    with pytest.raises(CorpusError, match=r"hmdb51.csv has no column split3"):
        load_corpus("hmdb51", tmp_path, fold=3)
    for fold in (0, 4, "1", True):
        with pytest.raises(CorpusError, match=r"fold must be 1, 2 or 3"):
            load_corpus("hmdb51", tmp_path, fold=fold)


def test_ucf101(annotations, tmp_path, caplog):
    """All classes of the real label map are loaded, with one video per class and split."""
    classes = lines(annotations / "label_maps" / "ucf101_label_map.txt")
    assert len(classes) == 101
    for use, group in {"train": "08", "test": "01"}.items():
        names = [f"{name}/v_{name}_g{group}_c01.avi" for name in reversed(classes)]
        numbers = [f" {classes.index(name.split('/')[0]) + 1}" if use == "train" else "" for name in names]
        text = "\r\n".join(map("".join, zip(names, numbers)))
        write(tmp_path / "ucfTrainTestlist" / f"{use}list02.txt", text)
        touch(tmp_path / "UCF-101", names)
    dataset = load_corpus("ucf101", tmp_path, "train", fold=2)
    assert dataset["label"][:] == list(reversed(range(101)))  # in the order of the release
    assert dataset.features["label"].names[:3] == ["apply eye makeup", "apply lipstick", "archery"]
    assert dataset["captions"][100] == ["apply eye makeup"]
    assert dataset["video_id"][100] == "v_ApplyEyeMakeup_g08_c01"
    assert dataset["video"][100] == str(tmp_path / "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi")
    test = load_corpus("ucf101", tmp_path, "test", fold=2)
    assert test.features == dataset.features
    assert "videos of UCF101 fold 2 test: expected 3,734, found 101" in caplog.text
    assert "classes" not in caplog.text
    write(tmp_path / "ucfTrainTestlist/testlist02.txt", "v_Archery_g01_c01.avi")
    with pytest.raises(CorpusError, match=r"testlist02.txt, line 1: expected CLASS/VIDEO.avi"):
        load_corpus("ucf101", tmp_path, "test", fold=2)
    write(tmp_path / "ucfTrainTestlist/testlist02.txt", "../../x.avi")
    with pytest.raises(CorpusError, match=r"testlist02.txt, line 1: video '../../x.avi' leads outside"):
        load_corpus("ucf101", tmp_path, "test", fold=2)


def test_class_order_matches_the_label_maps(annotations):
    for name in ("hmdb51", "ucf101"):
        classes = lines(annotations / "label_maps" / f"{name}_label_map.txt")
        assert sorted(classes, key=str.lower) == classes
        assert len({class_words(entry) for entry in classes}) == len(classes)
    assert class_words("draw_sword") == "draw sword"
    assert class_words("YoYo") == "yo yo"


# --- WebVid --------------------------------------------------------------------------------------------------


def webvid_row(video, name, page="000001_000050"):
    return {
        "videoid": video,
        "name": name,
        "page_idx": 1,
        "page_dir": page,
        "duration": "PT00H00M17S",
        "contentUrl": "u",
    }


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_webvid_real_file(annotations, tmp_path):
    copy(annotations / "webvid", tmp_path / "metadata", "test_webvid.csv")
    with (annotations / "webvid" / "test_webvid.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    touch(tmp_path / "videos", [f"{row['page_dir']}/{row['videoid']}.mp4" for row in rows])
    dataset = load_corpus("webvid", tmp_path, "test")
    assert dataset.column_names == COMMON
    assert dataset.to_list() == [
        {
            "video": str(tmp_path / "videos" / row["page_dir"] / f"{row['videoid']}.mp4"),
            "video_id": row["videoid"],
            "captions": [row["name"].strip()],
        }
        for row in rows
    ]
    assert dataset.num_rows == 20
    stream = load_corpus("webvid", tmp_path, "test", streaming=True)
    assert isinstance(stream, IterableDataset)
    assert stream.num_shards == 20
    assert list(stream) == dataset.to_list()


@pytest.mark.parametrize("closed", [False, True])
def test_webvid_with_an_open_quote_in_a_column_that_is_not_read(tmp_path, closed):
    """The rows after it would be lost."""
    write_csv(tmp_path / "results_2M_val.csv", [webvid_row(str(n), "a") for n in range(10)])
    lines = (tmp_path / "results_2M_val.csv").read_text().splitlines()
    lines[3] = lines[3].removesuffix("u") + '"u'
    lines[7] = lines[7].removesuffix("u") + 'u"' if closed else lines[7]
    (tmp_path / "results_2M_val.csv").write_text("\n".join(lines) + "\n")
    touch(tmp_path / "videos", [f"000001_000050/{n}.mp4" for n in range(10)])
    with pytest.raises(CorpusError, match=r"results_2M_val\.csv, line 4: a quote is opened here and"):
        load_corpus("webvid", tmp_path, "val")


def test_webvid_with_lines_in_a_column_that_is_not_read(tmp_path):
    rows = [webvid_row(str(n), "a") | {"contentUrl": "two\nlines"} for n in range(3)]
    write_csv(tmp_path / "results_2M_val.csv", rows)
    touch(tmp_path / "videos", [f"000001_000050/{n}.mp4" for n in range(3)])
    assert len(load_corpus("webvid", tmp_path, "val")) == 3


@pytest.mark.parametrize("name", ["results_2M_val.csv", "results_10M_val.csv", "metadata/webvid_val.csv", "val.csv"])
@pytest.mark.parametrize(
    "layout",
    ["videos/000001_000050/1.mp4", "000001_000050/1.webm", "videos/val/000001_000050/1.mp4", "val/1.mp4", "1.mkv"],
)
def test_webvid_layouts(tmp_path, name, layout):
    write_csv(tmp_path / name, [webvid_row("1", "a")])
    touch(tmp_path, [layout])
    assert load_corpus("webvid", tmp_path, "validation")["video"][:] == [str(tmp_path / layout)]


def test_webvid_rows(tmp_path, caplog):
    """Rows may have blank captions, quotes, line breaks, words like "null", repeated videos, and missing videos."""
    names = {"1": 'a "b",\nc', "2": "  ", "3": " null ", "4": "NA", "5": "gone", "6": "gone too"}
    write_csv(tmp_path / "train.csv", [*(webvid_row(*item) for item in names.items()), webvid_row("1", "again")])
    touch(tmp_path / "videos/000001_000050", [f"{n}.mp4" for n in range(1, 5)])
    listed = tmp_path / "missing.txt"
    with pytest.raises(CorpusError, match=r"2 of 5 video files .*000001_000050/5.mp4.*max_missing=2"):
        load_corpus("webvid", tmp_path, missing_list=listed)
    gone = [str(tmp_path / f"videos/000001_000050/{n}.mp4") for n in (5, 6)]
    assert listed.read_text().splitlines() == gone
    dataset = load_corpus("webvid", tmp_path, max_missing=0.4)
    assert dict(zip(dataset["video_id"], dataset["captions"])) == {
        "1": ['a "b",\nc', "again"],
        "3": ["null"],
        "4": ["NA"],
    }
    assert dataset["video"][0] == str(tmp_path / "videos/000001_000050/1.mp4")
    assert "left out 1 rows with a blank caption" in caplog.text
    assert dataset._fingerprint == load_corpus("webvid", tmp_path, max_missing=0.4)._fingerprint
    (tmp_path / "videos/000001_000050/4.mp4").unlink()
    assert dataset._fingerprint != load_corpus("webvid", tmp_path, max_missing=3)._fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("videoid,page_dir\n1,2\n", r"has no column name \(columns: videoid, page_dir\)"),
        ("", "is empty"),
        ("videoid,name,page_dir\n", "has no rows"),
        ("videoid,name,page_dir\n1,a,p\n\n2,b, c,p\n", "line 4: 4 fields, expected 3 as in the first line"),
        ("videoid,name,page_dir\n1,a\n", "line 2: 2 fields, expected 3"),
        (b"videoid,name,page_dir\n1,\xff,p\n", "is not UTF-8 text"),
        (
            "videoid,name,page_dir\n1,a,p\n../2,a,p\n",
            r"row 2 .*: videoid '../2' is blank or leads out",
        ),
        ("videoid,name,page_dir\n1,a,..\n", r"row 1 .not counting a header.: page_dir and videoid '../1' is blank or"),
        ("videoid,name,page_dir\n/etc/passwd,a,\n", "videoid '/etc/passwd' is blank or leads outside"),
        ("videoid,name,page_dir\n,a,p\n", "videoid '' is blank"),
        ("videoid,name,page_dir\n1, ,p\n", "no row with a caption"),
    ],
)
def test_webvid_damaged(tmp_path, content, message):
    path = write(tmp_path / "results_2M_train.csv", content)
    with pytest.raises(CorpusError, match=f"{path}.*{message}|{message} in {path}") as error:
        load_corpus("webvid", tmp_path)
    assert "\n" not in str(error.value)


def test_webvid_file_can_be_chosen(tmp_path):
    for name, caption in {"results_2M_train.csv": "two", "results_10M_train.csv": "ten", "part.csv": "part"}.items():
        write_csv(tmp_path / name, [webvid_row("1", caption)])
    touch(tmp_path, ["1.mp4"])
    with pytest.raises(CorpusError, match=r"both .*2M_train.csv and .*10M_train.csv: choose with file="):
        load_corpus("webvid", tmp_path)
    assert load_corpus("webvid", tmp_path, file="part.csv")["captions"][0] == ["part"]
    with pytest.raises(CorpusError, match=r"x.csv is not a file: check file="):
        load_corpus("webvid", tmp_path, file="x.csv")


# --- Conceptual Captions -------------------------------------------------------------------------------------

URLS = [f"http://example.com/{n}.jpg?a=\u00fc" for n in range(4)]
TEXTS = ['a "quoted', " dog ", 'cat" here', "bird"]


def crc(url):
    return str(zlib.crc32(url.encode()) & 0xFFFFFFFF)


@pytest.mark.parametrize(
    "name_of",
    [
        lambda n: crc(URLS[n]),
        lambda n: f"{crc(URLS[n])}.png",
        lambda n: f"{n + 5}_{crc(URLS[n])}",
        lambda n: f"{n}_{crc(URLS[n])}.jpg",
        lambda n: f"{n}.jpg",
        lambda n: f"{n:08d}",
    ],
)
@pytest.mark.parametrize("header", ["", "caption\turl\n"])
def test_cc3m_lists(tmp_path, caplog, name_of, header):
    """The first row is data unless it is a header, and quotes are ordinary characters."""
    text = "".join(f"{text}\t{url}\n" for text, url in zip(TEXTS, URLS))
    write(tmp_path / "Train_GCC-training.tsv", header + text)
    touch(tmp_path / "training", [name_of(n) for n in range(4)])
    dataset = load_corpus("cc3m", tmp_path)
    assert dataset.column_names == COMMON
    assert dataset["captions"][:] == [[text.strip()] for text in TEXTS]
    assert dataset["video"][:] == [str(tmp_path / "training" / name_of(n)) for n in range(4)]
    assert len(set(dataset["video_id"])) == 4
    assert "expected 3,318,333, found 4 in" in caplog.text
    (tmp_path / "training" / name_of(1)).unlink()
    with pytest.raises(CorpusError, match=r"1 of 4 video files .*max_missing=1"):
        load_corpus("cc3m", tmp_path)
    assert load_corpus("cc3m", tmp_path, max_missing=1).num_rows == 3


def test_cc3m_images_named_by_rows_whose_hashes_are_rows_too(tmp_path, monkeypatch):
    """In a list of millions, thousands of hashes are numbers of other rows."""
    real = zlib.crc32
    monkeypatch.setattr(
        "region_learner.corpora.cc3m.zlib.crc32", lambda url: 2 if url == URLS[0].encode() else real(url)
    )
    write(tmp_path / "list.tsv", "".join(f"{text}\t{url}\n" for text, url in zip(TEXTS, URLS)))
    touch(tmp_path / "training", [f"{n}.jpg" for n in range(4)])
    dataset = load_corpus("cc3m", tmp_path, file="list.tsv")
    assert dataset["video"][:] == [str(tmp_path / "training" / f"{n}.jpg") for n in range(4)]


def test_cc3m_in_tar_files(tmp_path):
    touch(tmp_path / "train", ["00000.tar", "00000.parquet"])
    with pytest.raises(CorpusError, match=r"00000\.tar holds the images: use the corpus 'webdataset'"):
        load_corpus("cc3m", tmp_path)


def test_cc3m_splits_have_their_own_directories(tmp_path):
    write(tmp_path / "Validation_GCC-1.1.0-Validation.tsv", f"a\t{URLS[0]}\n")
    touch(tmp_path, [f"training/{crc(URLS[0])}", f"validation/{crc(URLS[0])}"])
    assert load_corpus("cc3m", tmp_path, "val")["video"][:] == [str(tmp_path / "validation" / crc(URLS[0]))]


def test_cc3m_damaged(tmp_path):
    path = write(tmp_path / "list.tsv", f"a\t{URLS[0]}\nb {URLS[1]}\n")
    touch(tmp_path, ["0.jpg", "1.jpg"])
    with pytest.raises(CorpusError, match=f"{path}, line 2: 1 fields, expected 2"):
        load_corpus("cc3m", tmp_path, file="list.tsv")
    write(path, "a caption alone\n")
    with pytest.raises(CorpusError, match=r"list.tsv, line 1: expected a caption and a URL"):
        load_corpus("cc3m", tmp_path, file="list.tsv")


def img2dataset_shard(root, shard, statuses, form):
    rows = []
    for n, status in enumerate(statuses):
        key = f"{shard}{n:04d}"
        row = {"key": key, "caption": f"{shard} {n}", "status": status, "url": "u"}
        rows.append(row)
        if status == "success":
            touch(root / shard, [f"{key}.jpg", f"{key}.txt"])
            write(root / shard / f"{key}.json", json.dumps(row))
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), root / f"{shard}.parquet")


@pytest.mark.parametrize("directory", ["", "train", "elsewhere"])
@pytest.mark.parametrize("form", ["parquet", "json"])
def test_cc3m_img2dataset(tmp_path, form, directory):
    root = tmp_path / directory
    root.mkdir(exist_ok=True)
    img2dataset_shard(root, "00000", ["success", "failed_to_download", "success"], form)
    img2dataset_shard(root, "00001", ["success"], form)
    options = {"video_dir": "elsewhere"} if directory == "elsewhere" else {}
    if form == "parquet":  # it lists the failed download, too
        with pytest.raises(CorpusError, match=r"1 of 4 video files .*00000/000000001.jpg"):
            load_corpus("cc3m", tmp_path, **options)
        options["max_missing"] = 1
    dataset = load_corpus("cc3m", tmp_path, **options)
    assert dataset["video_id"][:] == ["000000000", "000000002", "000010000"]
    assert dataset["captions"][:] == [["00000 0"], ["00000 2"], ["00001 0"]]
    assert dataset["video"][:] == [str(root / key[:5] / f"{key}.jpg") for key in dataset["video_id"]]
    if directory != "elsewhere":
        with pytest.raises(CorpusError, match=r"no list or img2dataset files of Conceptual Captions val"):
            load_corpus("cc3m", tmp_path, "val")


def test_cc3m_img2dataset_damaged(tmp_path):
    pq.write_table(pa.Table.from_pylist([{"key": "000000000", "url": "u"}]), tmp_path / "00000.parquet")
    with pytest.raises(CorpusError, match=r"00000.parquet has no column caption or status \(columns: key, url\)"):
        load_corpus("cc3m", tmp_path)
    rows = [{"key": "../x", "caption": "a", "status": "success"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    with pytest.raises(CorpusError, match=r"00000.parquet, row 1 .*: key '../x' is blank or leads"):
        load_corpus("cc3m", tmp_path)
    (tmp_path / "00000.parquet").write_text("PAR1")
    with pytest.raises(CorpusError, match=r"00000.parquet is not a Parquet file"):
        load_corpus("cc3m", tmp_path)
    (tmp_path / "00000.parquet").unlink()
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / "000000000.json").write_text("[]")
    with pytest.raises(CorpusError, match=r"000000000.json: expected an object with a caption, not \[\]"):
        load_corpus("cc3m", tmp_path)


def test_warnings_come_from_the_package(msvd, caplog):
    with caplog.at_level(logging.WARNING):
        load_corpus("msvd", msvd, "test")
    assert {record.name.split(".")[0] for record in caplog.records} == {"region_learner"}

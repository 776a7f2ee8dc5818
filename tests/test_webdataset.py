"""Tests of WebDataset shards: compared with `tarfile`, split among processes, resumed, damaged, and hostile."""

import gzip
import io
import itertools
import json
import logging
import os
import pickle
import tarfile
from pathlib import Path

import pytest
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from region_learner.corpora import CorpusError, list_corpora, load_corpus, tar, webdataset
from region_learner.corpora.webdataset import is_reference, read_member

SAMPLES = 9  # per shard


@pytest.fixture(autouse=True)
def _warn_again():
    webdataset._warned.clear()


def video_of(key):
    """Returns bytes that stand for a video; nothing here is decoded."""
    return f"video {key} ".encode() * (1 + sum(key.encode()) % 97)


def write_shard(path, members, **options):
    """Writes a tar file of (name, payload) pairs or `TarInfo`s, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                name, payload = member
                info = tarfile.TarInfo(name)
                info.size = len(payload)
                tar.addfile(info, io.BytesIO(payload))
    return path


def sample(key, caption="a caption", extension="mp4"):
    return [(f"{key}.{extension}", video_of(key)), (f"{key}.txt", f"{caption} of {key}".encode())]


def write_corpus(directory, shards=4, prefix="shard-"):
    for number in range(shards):
        members = [part for n in range(SAMPLES) for part in sample(f"{number:03}{n:03}")]
        write_shard(directory / f"{prefix}{number:03}.tar", members)
    return directory


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("webdataset"))


def read_naively(directory):
    """Reads all samples of a directory with `tarfile`, and returns key -> {extension: payload}."""
    samples = {}
    for path in sorted(directory.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                key, _, extension = os.path.basename(member.name).partition(".")
                samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return samples


def ids(rows):
    return [row["video_id"] for row in rows]


# --- Rows ----------------------------------------------------------------------------------------------------


def test_rows_match_a_naive_reading(corpus):
    expected = [
        {"video": parts["mp4"], "video_id": key, "captions": [parts["txt"].decode()]}
        for key, parts in read_naively(corpus).items()
    ]
    assert len(expected) == 4 * SAMPLES
    stream = load_corpus("webdataset", corpus, streaming=True)
    assert isinstance(stream, IterableDataset)
    assert stream.num_shards == 4
    assert list(stream) == expected
    lazy = load_corpus("webdataset", corpus, streaming=True, lazy=True)
    indexed = load_corpus("webdataset", corpus)
    assert isinstance(indexed, Dataset)
    assert list(lazy) == indexed.to_list()
    for rows in (list(lazy), indexed):
        assert all(is_reference(row["video"]) for row in rows)
        assert [row | {"video": read_member(row["video"])} for row in rows] == expected
    assert not is_reference(expected[0]["video"])
    assert not is_reference("a.mp4")


def test_listed_with_its_format():
    assert ".tar" in list_corpora()["webdataset"]


def test_captions_ids_and_columns_from_json(tmp_path):
    contents = {
        "a": {"caption": "one"},
        "b": {"captions": ["two", " ", "three"], "caption": "not this", "video_id": "vid-b", "key": "x"},
        "c": {"text": "four", "key": 7, "label": 3, "video": "u"},
        "d": {"caption": None, "duration": 1.5},
    }
    members = []
    for key, content in contents.items():
        members += [(f"{key}.json", json.dumps(content).encode()), (f"{key}.webm", b"v"), (f"{key}.txt", b"text\n")]
    write_shard(tmp_path / "0.tar", members)
    rows = list(load_corpus("webdataset", tmp_path, streaming=True))
    assert [row["captions"] for row in rows] == [["one"], ["two", "three"], ["four"], ["text"]]
    assert ids(rows) == ["a", "vid-b", "7", "d"]
    assert [sorted(set(row) - {"video", "video_id", "captions"}) for row in rows] == [[], [], ["label"], ["duration"]]
    table = load_corpus("webdataset", tmp_path)
    assert table["label"][:] == [None, None, 3, None]
    assert table["duration"][:] == [None, None, None, 1.5]


def test_keys_extensions_and_directories(tmp_path):
    directory = tarfile.TarInfo("x")
    directory.type = tarfile.DIRTYPE
    members = [
        directory,
        ("__meta", b"not in a sample"),
        ("x/.hidden.mp4", b"nor this"),
        ("x/a.thumb.jpg", b"nor that"),
        *sample("x/a", extension="MP4"),
        ("y/a.jpg", b"preview"),
        *sample("y/a", extension="mkv"),
        *sample("./b", extension="webp"),
        *sample("c", extension="gif"),
    ]
    write_shard(tmp_path / "0.tar", members)
    rows = list(load_corpus("webdataset", tmp_path, streaming=True))
    assert ids(rows) == ["x/a", "y/a", "b", "c"]
    assert [row["video"] for row in rows] == [video_of(key) for key in ("x/a", "y/a", "./b", "c")]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_formats_and_long_names(tmp_path, form):
    long = "/".join(["directory"] * 12) + "/" + "k" * 60
    names = [long, "short"] if form == tarfile.USTAR_FORMAT else [long + "é" * 100, "short", "ü"]
    write_shard(tmp_path / "0.tar", [part for name in names for part in sample(name)], format=form)
    rows = list(load_corpus("webdataset", tmp_path, streaming=True))
    assert ids(rows) == names
    assert [row["video"] for row in rows] == [video_of(name) for name in names]


def test_sizes_in_pax_and_in_binary(tmp_path):
    info = tarfile.TarInfo("a.mp4")
    info.size, info.pax_headers = 5, {"size": "5", "comment": "x"}
    blocks = info.tobuf(tarfile.PAX_FORMAT) + b"video".ljust(512, b"\0")
    text = bytearray(tarfile.TarInfo("a.txt").tobuf())
    text[124:136] = b"\x80" + (4).to_bytes(11, "big")
    text[148:156] = b"%06o\0 " % (sum(text) - sum(text[148:156]) + 256)
    (tmp_path / "0.tar").write_bytes(blocks + bytes(text) + b"text".ljust(512, b"\0") + bytes(1024))
    assert list(load_corpus("webdataset", tmp_path, streaming=True)) == [
        {"video": b"video", "video_id": "a", "captions": ["text"]}
    ]


def test_concatenated_archives_are_read_to_the_end(tmp_path):
    """The result of `cat a.tar b.tar > ab.tar` is read to the end; `tarfile` stops at the first end mark."""
    parts = [write_shard(tmp_path / "parts" / f"{key}.tar", sample(key)).read_bytes() for key in "ab"]
    (tmp_path / "0.tar").write_bytes(b"".join(parts))
    assert ids(load_corpus("webdataset", tmp_path, streaming=True, shards="0.tar")) == ["a", "b"]


def test_lazy_stream_reads_headers_and_captions_only(tmp_path, monkeypatch):
    members = [(f"{n}.{extension}", payload) for n in range(3) for extension, payload in
               (("mp4", b"x" * 100_000), ("txt", b"text"))]  # fmt: skip
    write_shard(tmp_path / "0.tar", members)
    read = []
    original = tar.read_at
    for module in (tar, webdataset):
        monkeypatch.setattr(
            module,
            "read_at",
            lambda file, offset, size, shard: read.append(size) or original(file, offset, size, shard),
        )
    assert len(list(load_corpus("webdataset", tmp_path, streaming=True, lazy=True))) == 3
    assert sum(read) < 20_000


# --- Splits and patterns -------------------------------------------------------------------------------------


def test_split_directories(tmp_path):
    for split in ("train", "val"):
        write_shard(tmp_path / split / "0.tar", sample(split))
    for split, found in {"train": "train", "val": "val", "validation": "val"}.items():
        assert ids(load_corpus("webdataset", tmp_path, split=split)) == [found]
    assert ids(load_corpus("webdataset", tmp_path, split="all")) == ["train", "val"]
    with pytest.raises(CorpusError, match=r"no shards of split 'vall' .*train, val, all.*did you mean 'val'"):
        load_corpus("webdataset", tmp_path, split="vall")
    write_shard(tmp_path / "1.tar", sample("a"))
    with pytest.raises(CorpusError, match=r"shards both in .* \(1.tar\) and in its subdirectory train"):
        load_corpus("webdataset", tmp_path)


def test_split_prefixes(tmp_path):
    for name in ("train-0", "train-1", "test-0", "unseen-0"):
        write_shard(tmp_path / f"{name}.tar", sample(name))
    assert ids(load_corpus("webdataset", tmp_path, split="test")) == ["test-0"]
    assert ids(load_corpus("webdataset", tmp_path, split="unseen")) == ["unseen-0"]
    with pytest.raises(CorpusError, match="no shards of split 'val'"):
        load_corpus("webdataset", tmp_path, split="val")


def test_shards_without_split_are_train(corpus):
    assert load_corpus("webdataset", corpus).num_rows == 4 * SAMPLES
    with pytest.raises(CorpusError, match=r"no shards of split 'test' .*test-\*.tar \(splits: train, all\)"):
        load_corpus("webdataset", corpus, split="test")


def test_shards_by_pattern(corpus, monkeypatch):
    def shards(pattern):
        return [key[:3] for key in ids(load_corpus("webdataset", corpus, shards=pattern))[::SAMPLES]]

    assert shards("shard-{001..003}.tar") == ["001", "002", "003"]
    assert shards("shard-00{2,0}.tar") == ["002", "000"]
    assert shards("*-00[13].tar") == ["001", "003"]
    assert shards(["shard-003.tar", "shard-0{0,0}3.tar"]) == ["003"]
    assert shards(str(corpus / "shard-001.tar")) == ["001"]
    assert list(webdataset._expand_braces("a{8..10}b{2..1}")) == ["a8b2", "a8b1", "a9b2", "a9b1", "a10b2", "a10b1"]
    with pytest.raises(CorpusError, match=r"no shards shard-004.tar, shard-005.tar, shard-006.tar and 3 more in"):
        load_corpus("webdataset", corpus, shards="shard-{000..009}.tar")
    monkeypatch.setattr(webdataset, "_MAX_EXPANDED", 1000)
    for pattern in ("{0..99999999999}.tar", "{0..999}{0..999}{0..999}{0..999}.tar"):
        with pytest.raises(CorpusError, match="more than 1000 shards"):
            load_corpus("webdataset", corpus, shards=pattern)
    with pytest.raises(CorpusError, match="shards= is empty"):
        load_corpus("webdataset", corpus, shards=[])


def test_patterns_in_a_directory_with_brackets(tmp_path):
    write_shard(tmp_path / "[1] mine" / "0.tar", sample("a"))
    assert ids(load_corpus("webdataset", tmp_path / "[1] mine", shards="*.tar")) == ["a"]


def test_bad_options(corpus, tmp_path):
    with pytest.raises(CorpusError, match="needs data_dir="):
        load_corpus("webdataset")
    with pytest.raises(CorpusError, match=r"no shards \(\*.tar\) in"):
        load_corpus("webdataset", tmp_path)
    with pytest.raises(CorpusError, match="damaged must be 'error' or 'skip', not 'ignore'"):
        load_corpus("webdataset", corpus, damaged="ignore")
    with pytest.raises(CorpusError, match="always lazy: leave out lazy=False"):
        load_corpus("webdataset", corpus, lazy=False)
    with pytest.raises(CorpusError, match=r"unknown option 'shard'.*did you mean 'shards'"):
        load_corpus("webdataset", corpus, shard="x")


def test_two_rows_with_the_same_id(tmp_path):
    for name in ("0", "1"):
        write_shard(tmp_path / f"{name}.tar", sample("same"))
    with pytest.raises(CorpusError, match=r"two samples, in .*0.tar and .*1.tar, have the id 'same'"):
        load_corpus("webdataset", tmp_path)


# --- Splitting among processes, shuffling, resuming ----------------------------------------------------------


@pytest.mark.parametrize("shards", [3, 4, 5])  # split by shards if divisible by 2, otherwise by samples
@pytest.mark.parametrize("shuffled", [False, True])
def test_nodes_and_workers_cover_everything_once(tmp_path, shards, shuffled):
    stream = load_corpus("webdataset", write_corpus(tmp_path, shards), streaming=True, lazy=True)
    if shuffled:
        stream = stream.shuffle(seed=3, buffer_size=5)
        stream.set_epoch(2)
    seen = []
    for rank in range(2):
        node = split_dataset_by_node(stream, rank=rank, world_size=2)
        loader = DataLoader(node, batch_size=None, num_workers=2)
        seen += ids(loader)
    assert sorted(seen) == sorted(read_naively(tmp_path))


def test_shuffling_depends_on_seed_and_epoch(corpus):
    def order(seed, epoch):
        stream = load_corpus("webdataset", corpus, streaming=True, lazy=True).shuffle(seed=seed, buffer_size=8)
        stream.set_epoch(epoch)
        return ids(stream)

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert orders == [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4
    assert len({tuple(sorted(some)) for some in orders}) == 1


@pytest.mark.parametrize("buffer_size", [0, 7])
def test_skipping_continues_as_if_uninterrupted(corpus, buffer_size):
    def stream():
        rows = load_corpus("webdataset", corpus, streaming=True, lazy=True)
        rows = rows.shuffle(seed=5, buffer_size=buffer_size) if buffer_size else rows
        rows.set_epoch(1)
        return rows

    uninterrupted = list(stream())
    for skipped in (0, 1, 10, 4 * SAMPLES - 1):
        assert list(itertools.islice(stream(), skipped, None)) == uninterrupted[skipped:]


def test_the_state_of_a_stream_can_be_restored(corpus):
    stream = load_corpus("webdataset", corpus, streaming=True, lazy=True)
    rows = iter(stream)
    first = list(itertools.islice(rows, SAMPLES + 3))
    state = stream.state_dict()
    again = load_corpus("webdataset", corpus, streaming=True, lazy=True)
    again.load_state_dict(state)
    assert first + list(again) == list(load_corpus("webdataset", corpus, streaming=True, lazy=True))


def test_streams_can_be_pickled(corpus):
    stream = load_corpus("webdataset", corpus, streaming=True, lazy=True)
    assert list(pickle.loads(pickle.dumps(stream))) == list(stream)


def test_too_few_shards_are_reported(corpus, caplog, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "5")
    with caplog.at_level(logging.WARNING):
        load_corpus("webdataset", corpus, streaming=True)
        (record,) = caplog.records
        assert "4 shards cannot be divided among 5 processes" in record.message
        caplog.clear()
        for harmless in ({"RANK": "1"}, {"WORLD_SIZE": "3", "RANK": "0"}):
            for name, value in harmless.items():
                monkeypatch.setenv(name, value)
            load_corpus("webdataset", corpus, streaming=True)
        assert not caplog.records


def test_too_few_shards_for_the_workers_are_reported(caplog, monkeypatch):
    class Info:
        id, num_workers = 0, 3

    monkeypatch.setattr("torch.utils.data.get_worker_info", lambda: Info)
    with caplog.at_level(logging.WARNING):
        webdataset._check_workers(3)
        monkeypatch.setenv("WORLD_SIZE", "4")
        webdataset._check_workers(3)  # every process reads all shards
        assert not caplog.records
        monkeypatch.setenv("WORLD_SIZE", "2")
        webdataset._check_workers(5)
        webdataset._check_workers(5)
    (record,) = caplog.records
    assert "5 shards for 6 loader processes" in record.message


def test_ids_of_prepared_shards_may_repeat_in_one_directory_only(tmp_path):
    """Several questions may be about one video, but another split may have another video with this name."""

    def prepared(key):
        content = {"video_id": "1", "captions": [key], "prepared": {"source": {}}}
        return [(f"{key}.json", json.dumps(content).encode()), (f"{key}.mp4", b"v")]

    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        write_shard(tmp_path / split / "0.tar", [*prepared("a"), *prepared("b")])
    assert len(load_corpus("webdataset", tmp_path, "train")) == 2
    with pytest.raises(CorpusError, match=r"two samples, in .*train.0\.tar and .*val.0\.tar, have the id '1'"):
        load_corpus("webdataset", tmp_path, "all")


# --- Left-out samples ----------------------------------------------------------------------------------------


def test_what_is_left_out_of_a_sample_is_named(tmp_path, caplog):
    contents = {
        "a": {"captions": ["one", " "], "text": "other", "caption": ["one", " "]},
        "b": {"caption": "two", "video": "v.mp4", "text": ""},
        "c": {"caption": "three"},
        "d": {"text": [None, "four"]},
    }
    members = [(f"{key}{end}", content) for key, value in contents.items()
               for end, content in ((".json", json.dumps(value).encode()), (".mp4", b"v"))]  # fmt: skip
    write_shard(tmp_path / "0.tar", members)
    rows = load_corpus("webdataset", tmp_path)
    assert [row["captions"] for row in rows] == [["one"], ["two"], ["three"], ["four"]]
    (record,) = caplog.records
    assert record.message.partition("0.tar: ")[2].split("; ") == [
        "leaving out blank captions of 2 samples (a, d)",
        "leaving out the field 'text' of 1 sample (a)",
        "leaving out the field 'video' of 1 sample (b)",
    ]


def test_samples_without_video_or_caption_are_counted(tmp_path, caplog):
    members = [
        ("a.mp4", b"v"),
        *sample("b"),
        ("c.txt", b"text"),
        ("d.mp4", b"v"),
        ("d.txt", b" \n"),
        ("e.v2.mp4", b"v"),
    ]
    write_shard(tmp_path / "0.tar", members)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert ids(load_corpus("webdataset", tmp_path)) == ["b"]
    (record,) = caplog.records
    assert "leaving out 2 samples without a caption (a, d)" in record.message
    assert "leaving out 2 samples without a video or image (c, e)" in record.message
    assert "0.tar" in record.message


def test_nothing_left(tmp_path):
    write_shard(tmp_path / "0.tar", [("a.mp4", b"v")])
    with pytest.raises(CorpusError, match="no sample with a video and a caption in the 1 shards"):
        load_corpus("webdataset", tmp_path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.mp4", b"1"), ("a.mp4", b"2"), ("a.txt", b"t")], "two members 'a.mp4'"),
        ([("a.mp4", b"1"), ("a.webm", b"2"), ("a.txt", b"t")], "members 'a.mp4' and 'a.webm' belong to the same"),
        ([*sample("a"), *sample("b"), *sample("a")], "sample 'a' do not follow one another.*--sort=name"),
    ],
)
@pytest.mark.parametrize("damaged", ["error", "skip"])
def test_duplicates_are_refused(tmp_path, members, message, damaged):
    write_shard(tmp_path / "0.tar", members)
    with pytest.raises(CorpusError, match=rf"0.tar:? .*{message}"):
        load_corpus("webdataset", tmp_path, damaged=damaged)


@pytest.mark.parametrize(
    ("name", "payload", "message"),
    [
        ("a.json", b'{"caption"', "member 'a.json' is not JSON"),
        ("a.json", b"[" * 100_000, "member 'a.json' is not JSON"),
        ("a.json", b"[]", "member 'a.json' is not a JSON object"),
        ("a.json", b'{"n": ' + b"9" * 5000 + b"}", "member 'a.json' is not JSON"),
        ("a.json", b'{"n": [' + b"9" * 30 + b"]}", "member 'a.json' has an integer of more than 64 bits"),
        ("a.json", b'{"captions": "x", "\\ud800": 1}', "member 'a.json' has an unpaired surrogate"),
        (
            "a.json",
            b'{"captions": [1]}',
            r"member 'a.json': captions must be a string or a list of strings, not \[1\]",
        ),
        ("a.txt", b"\xff\xfe", "member 'a.txt' is not UTF-8 text"),
        ("a.txt", bytes(2**24 + 1), "member 'a.txt' has 16777217 bytes, but text may have at most 16777216"),
    ],
)
def test_damaged_text(tmp_path, caplog, name, payload, message):
    write_shard(tmp_path / "0.tar", [("a.mp4", b"v"), (name, payload), *sample("b")])
    with pytest.raises(CorpusError, match=rf'0.tar: {message}.*damaged="skip"'):
        load_corpus("webdataset", tmp_path)
    with caplog.at_level(logging.WARNING):
        assert ids(load_corpus("webdataset", tmp_path, damaged="skip")) == ["b"]
    assert "1 sample with " in caplog.records[0].message


# --- Damaged and hostile shards ------------------------------------------------------------------------------


def damage_cut(content, at):
    return content[:at]


def damage_header(content, at):
    return content[: at + 10] + b"\x13\x37" + content[at + 12 :]


def damage_size(content, at):
    """Returns content whose header is valid except for a size far beyond the end of the file."""
    header = bytearray(content[at : at + 512])
    header[124:136] = b"77777777777\0"
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 256)
    return content[:at] + bytes(header) + content[at + 512 :]


@pytest.mark.parametrize(
    ("damage", "at_payload", "message"),
    [
        (damage_cut, 5, "is damaged or truncated: its member at byte"),
        (damage_cut, -512, "is truncated: it has no end-of-archive mark"),
        (damage_cut, -300, "is truncated at byte"),
        (damage_header, -512, "is damaged: no header at byte"),
        (damage_size, -512, "is damaged or truncated: .* should have 8589934591 bytes, but only"),
    ],
)
def test_damaged_shards(tmp_path, caplog, damage, at_payload, message):
    """Nothing can be read from the third sample's video on."""
    path = write_shard(tmp_path / "0.tar", [part for key in "abcd" for part in sample(key)])
    with tarfile.open(path) as tar:
        at = tar.getmember("c.mp4").offset_data + at_payload
    path.write_bytes(damage(path.read_bytes(), at))
    write_shard(tmp_path / "1.tar", sample("e"))
    with pytest.raises(CorpusError, match=rf'0.tar {message}.*damaged="skip"') as caught:
        load_corpus("webdataset", tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(CorpusError, match=message):
        list(load_corpus("webdataset", tmp_path, streaming=True))
    with caplog.at_level(logging.WARNING):
        # "b" is also left out: what follows its caption may have belonged to it.
        assert ids(load_corpus("webdataset", tmp_path, damaged="skip")) == ["a", "e"]
    (record,) = caplog.records
    assert "leaving out the rest of the shard after 1 sample (" in record.message


def write_sparse_shard(path: Path, size: int):
    """Writes a shard that takes little space on disk: its second video is a hole of `size` bytes."""
    write_shard(path, sample("a"))
    whole = path.read_bytes().rstrip(b"\0")
    header = tarfile.TarInfo("b.mp4")
    header.size = size
    with open(path, "wb") as file:
        file.write(whole + bytes(-len(whole) % 512))
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.seek(size, os.SEEK_CUR)
        text = tarfile.TarInfo("b.txt")
        text.size = 4
        file.write(text.tobuf() + b"text".ljust(512, b"\0") + bytes(1024))


def test_videos_that_are_too_large(tmp_path, caplog):
    """A video of 8 GiB, in a shard that takes a few KiB on disk, is not read into memory."""
    write_sparse_shard(tmp_path / "0.tar", 2**33)
    message = r"0.tar: member 'b.mp4' has 8589934592 bytes, but a video in a shard may have at most 2147483648"
    with pytest.raises(CorpusError, match=message):
        list(load_corpus("webdataset", tmp_path, streaming=True))
    with pytest.raises(CorpusError, match=message):
        load_corpus("webdataset", tmp_path)
    with caplog.at_level(logging.WARNING):
        assert ids(load_corpus("webdataset", tmp_path, damaged="skip")) == ["a"]
    assert "leaving out 1 sample with oversized video (b)" in caplog.text
    with pytest.raises(CorpusError, match=r"0.tar at byte 2048: 8589934592 bytes, but a video has"):
        read_member({"path": str(tmp_path / "0.tar"), "offset": 2048, "size": 2**33})


def test_files_that_are_not_a_tar_file(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(CorpusError, match=r"0.tar is not a tar file: no header at byte 0"):
        load_corpus("webdataset", tmp_path)
    (tmp_path / "0.tar").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"0.tar is truncated"):
        load_corpus("webdataset", tmp_path)


def test_compressed_shards_are_refused(tmp_path):
    content = write_shard(tmp_path / "x" / "0.tar", sample("a")).read_bytes()
    (tmp_path / "0.tar").write_bytes(gzip.compress(content))
    with pytest.raises(CorpusError, match=r"0.tar is compressed \(gzip\), .*decompress it"):
        list(load_corpus("webdataset", tmp_path, streaming=True, shards="0.tar"))
    (tmp_path / "x" / "0.tar").rename(tmp_path / "x" / "1.tar.gz")
    with pytest.raises(CorpusError, match=r"1.tar.gz is compressed \(gz\), .*decompress it"):
        load_corpus("webdataset", tmp_path / "x")


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("/etc/a.mp4", b"v"), "'/etc/a.mp4' leads outside"),
        (("x/../../a.mp4", b"v"), "'x/../../a.mp4' leads outside"),
        (("..\\a.mp4", b"v"), "leads outside"),
        (("C:/a.mp4", b"v"), "leads outside"),
        (special("a.mp4", tarfile.SYMTYPE, "/etc/passwd"), "'a.mp4' is a symbolic link"),
        (special("a.mp4", tarfile.LNKTYPE, "b.mp4"), "'a.mp4' is a hard link"),
        (special("a.mp4", tarfile.CHRTYPE), "'a.mp4' is a device"),
        (special("a.mp4", tarfile.BLKTYPE), "'a.mp4' is a device"),
        (special("a.mp4", tarfile.FIFOTYPE), "'a.mp4' is a pipe"),
        (special("a.mp4", tarfile.GNUTYPE_SPARSE), "'a.mp4' is a sparse file"),
        (special("a.mp4", b"Z"), "of the unknown type"),
    ],
)
@pytest.mark.parametrize("damaged", ["error", "skip"])
def test_hostile_members_are_refused(tmp_path, member, message, damaged):
    write_shard(tmp_path / "0.tar", [*sample("z"), member])
    with pytest.raises(CorpusError, match=rf"0.tar: member .*{message}"):
        list(load_corpus("webdataset", tmp_path, streaming=True, damaged=damaged))


def test_hostile_names_in_extended_headers(tmp_path):
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        write_shard(tmp_path / "0.tar", [("../" * 60 + "a.mp4", b"v")], format=form)
        with pytest.raises(CorpusError, match="leads outside"):
            load_corpus("webdataset", tmp_path)


@pytest.mark.parametrize(
    "records", [b"-1 path=x\n0", b"x" * 30, b"99 path=a.mp4\n", b"0 path=a\n", b"-5 path=a\n", b"9 size=x\n"]
)
def test_damaged_pax_headers(tmp_path, records):
    info = tarfile.TarInfo("pax")
    info.type, info.size = b"x", len(records)
    (tmp_path / "0.tar").write_bytes(info.tobuf() + records.ljust(512, b"\0") + bytes(1024))
    with pytest.raises(CorpusError, match=r"0.tar is damaged: the pax header at byte 0 has no records"):
        load_corpus("webdataset", tmp_path)


def test_names_that_are_not_text(tmp_path):
    header = bytearray(tarfile.TarInfo("a.mp4").tobuf())
    header[0:1] = b"\xff"
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 256)
    (tmp_path / "0.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(CorpusError, match="is not UTF-8"):
        load_corpus("webdataset", tmp_path)


def test_references_that_cannot_be_read(corpus, tmp_path):
    path = str(Path(corpus) / "shard-000.tar")
    for wrong in ({"path": path, "offset": 0}, {"path": path, "offset": "x", "size": 1}, {}):
        with pytest.raises(CorpusError, match="keys path, offset and size"):
            read_member(wrong)
    for offset, size in ((10**12, 1), (0, 10**12), (-1, 5)):
        with pytest.raises(CorpusError, match="it was replaced after the corpus was loaded"):
            read_member({"path": path, "offset": offset, "size": size})
    with pytest.raises(CorpusError, match=r"gone.tar cannot be read: No such file"):
        read_member({"path": str(tmp_path / "gone.tar"), "offset": 0, "size": 1})

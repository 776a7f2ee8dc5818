"""Tests the corpus `folder` in all its layouts, and its error messages for bad input."""

import csv
import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, IterableDataset

from region_learner.corpora import CorpusError, load_corpus


def write_metadata(directory, rows, form="jsonl"):
    """Writes a metadata file in the format `form`, and an empty file for each video, because no video is decoded."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"metadata.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for row in rows:
                writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
    for row in rows:
        video = directory / row["file_name"]
        if directory in video.resolve().parents:
            video.parent.mkdir(exist_ok=True)
            video.touch()
    return path


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["text", "caption", "captions"])
def test_folder_forms(tmp_path, form, column):
    as_list = column == "captions"
    rows = [
        {"file_name": "clips/a.mp4", column: ["one", "two"] if as_list else "one", "theme": "x"},
        {"file_name": "clips/b.mp4", column: ["three, four"] if as_list else "three, four", "theme": "y"},
    ]
    write_metadata(tmp_path, rows, form)
    dataset = load_corpus("folder", tmp_path)
    assert isinstance(dataset, Dataset)
    assert dataset.column_names == ["video", "video_id", "captions", "theme"]
    assert dataset["video"][:] == [str(tmp_path / "clips/a.mp4"), str(tmp_path / "clips/b.mp4")]
    assert dataset["video_id"][:] == ["clips/a", "clips/b"]
    assert dataset["captions"][:] == [["one", "two"] if as_list else ["one"], ["three, four"]]
    assert dataset["theme"][:] == ["x", "y"]


def test_folder_merges_rows_of_one_file(tmp_path):
    rows = [{"file_name": name, "text": text, "n": n} for n, (name, text) in enumerate(["ax", "by", "az", "ax"])]
    write_metadata(tmp_path, rows)
    assert load_corpus("folder", tmp_path).to_list() == [
        {"video": str(tmp_path / "a"), "video_id": "a", "captions": ["x", "z", "x"], "n": 0},
        {"video": str(tmp_path / "b"), "video_id": "b", "captions": ["y"], "n": 1},
    ]


def test_negative_captions_of_merged_rows(tmp_path):
    """Some files have several rows, and others one, or none of these captions."""
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(b"")
    lines = ["file_name,text,negative_captions", "a.mp4,1,x", "a.mp4,2,y", "a.mp4,3,x", "b.mp4,4,z", "c.mp4,5,"]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    rows = load_corpus("folder", tmp_path)
    assert list(rows["negative_captions"]) == [["x", "y"], ["z"], []]
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "t", "negative_captions": 3}')
    with pytest.raises(CorpusError, match=r"metadata\.jsonl, line 1: negative_captions must be"):
        load_corpus("folder", tmp_path)


def test_folder_takes_ids_and_a_named_caption_column(tmp_path):
    write_metadata(tmp_path, [{"file_name": "a.mp4", "text": "short", "long": "longer", "video_id": "v1"}])
    (row,) = load_corpus("folder", tmp_path, caption_column="long")
    assert row == {"video": str(tmp_path / "a.mp4"), "video_id": "v1", "captions": ["longer"], "text": "short"}


def test_folder_splits(tmp_path):
    for split in ("train", "val", "test_unseen"):
        write_metadata(tmp_path / split, [{"file_name": f"{split}.mp4", "text": split}])
    for split, directory in {
        "train": "train",
        "validation": "val",
        "val": "val",
        "test_unseen": "test_unseen",
    }.items():
        (row,) = load_corpus("folder", tmp_path, split=split)
        assert row["video"] == str(tmp_path / directory / f"{directory}.mp4")
    assert load_corpus("folder", tmp_path, split="all").num_rows == 3
    with pytest.raises(CorpusError, match=r"has no split 'tests'.*\(splits: test_unseen, train, val, all\)"):
        load_corpus("folder", tmp_path, split="tests")
    write_metadata(tmp_path, [{"file_name": "c.mp4", "text": "c"}])
    with pytest.raises(CorpusError, match=r"has metadata both for the whole folder .* and for .*keep only one"):
        load_corpus("folder", tmp_path)


def test_folder_without_split_directories_is_train(tmp_path):
    write_metadata(tmp_path, [{"file_name": "a.mp4", "text": "a"}])
    assert load_corpus("folder", tmp_path).num_rows == load_corpus("folder", tmp_path, split="all").num_rows == 1
    with pytest.raises(CorpusError, match=r"has no split 'test': .*all rows are in 'train'"):
        load_corpus("folder", tmp_path, split="test")


def test_folder_streams(tmp_path):
    write_metadata(tmp_path, [{"file_name": f"{n}.mp4", "text": str(n)} for n in range(5)])
    dataset = load_corpus("folder", tmp_path, streaming=True)
    assert isinstance(dataset, IterableDataset)
    assert dataset.num_shards == 5
    assert [row["captions"] for row in dataset] == [[str(n)] for n in range(5)]


def test_folder_missing_files(tmp_path, caplog):
    write_metadata(tmp_path, [{"file_name": f"clips/{n}.mp4", "text": str(n)} for n in range(8)])
    for n in (2, 3, 5, 7):
        (tmp_path / "clips" / f"{n}.mp4").unlink()
    with pytest.raises(CorpusError, match=r"4 of 8 video files .*clips/2.mp4, clips/3.mp4, clips/5.mp4 and 1 more"):
        load_corpus("folder", tmp_path)
    for too_few in (3, 0.49):
        with pytest.raises(CorpusError, match="max_missing=4"):
            load_corpus("folder", tmp_path, max_missing=too_few)
    for enough in (4, 0.5):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            dataset = load_corpus("folder", tmp_path, max_missing=enough)
        assert [captions[0] for captions in dataset["captions"]] == ["0", "1", "4", "6"]
        (record,) = caplog.records
        assert "4 of 8" in record.message
        assert all(f"clips/{n}.mp4" in record.message for n in (2, 3, 5, 7))
    for wrong in (-1, True, "1"):
        with pytest.raises(CorpusError, match="max_missing must be"):
            load_corpus("folder", tmp_path, max_missing=wrong)


def test_folder_all_files_missing(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "a"}\n')
    with pytest.raises(CorpusError, match=r"1 of 1 video files .*check data_dir"):
        load_corpus("folder", tmp_path, max_missing=10)


@pytest.mark.parametrize("name", ["../a.mp4", "clips/../../a.mp4", "/etc/passwd", "a\0.mp4", "."])
def test_folder_refuses_paths_that_lead_outside(tmp_path, name):
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "a"}))
    with pytest.raises(CorpusError, match=r"line 1: file_name .* leads outside of"):
        load_corpus("folder", tmp_path)


def test_folder_splits_may_share_a_directory(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").touch()
    write_metadata(tmp_path / "train", [{"file_name": "../clips/a.mp4", "text": "a"}])
    assert load_corpus("folder", tmp_path)["video"][0] == str(tmp_path / "clips" / "a.mp4")


def test_folder_empty_captions(tmp_path):
    captions = ["a", "", None, "  ", [], ["b", ""]]
    lines = [json.dumps({"file_name": f"{n}.mp4", "captions": caption}) for n, caption in enumerate(captions)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(
        CorpusError, match=r"no caption in column 'captions' of line 2 \(1.mp4\), .* and 2 more: fill them in"
    ):
        load_corpus("folder", tmp_path)


def test_folder_one_id_for_two_files(tmp_path):
    write_metadata(tmp_path, [{"file_name": "a.mp4", "text": "a"}, {"file_name": "a.avi", "text": "b"}])
    with pytest.raises(CorpusError, match=r"a.mp4, a.avi both have the id 'a'.*column video_id"):
        load_corpus("folder", tmp_path)


def test_folder_no_directory(tmp_path):
    with pytest.raises(CorpusError, match="needs data_dir="):
        load_corpus("folder")
    with pytest.raises(CorpusError, match=r"nowhere is not a directory"):
        load_corpus("folder", tmp_path / "nowhere")


def test_folder_no_metadata(tmp_path):
    pattern = r"has no metadata: put metadata.csv, metadata.jsonl or metadata.parquet into it, .* and one of"
    with pytest.raises(CorpusError, match=pattern):
        load_corpus("folder", tmp_path)


def test_folder_two_metadata_files(tmp_path):
    write_metadata(tmp_path, [{"file_name": "a.mp4", "text": "a"}], "csv")
    write_metadata(tmp_path, [{"file_name": "a.mp4", "text": "a"}], "jsonl")
    with pytest.raises(CorpusError, match=r"both metadata.csv and metadata.jsonl"):
        load_corpus("folder", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", '{"video": "a.mp4", "text": "a"}', r"no column file_name \(columns: video, text\)"),
        ("metadata.jsonl", '{"file_name": "a", "title": "a"}', "none of the columns captions, caption, text .*title"),
        ("metadata.jsonl", '{"file_name": "a", "text": "a", "caption": "b"}', "choose with caption_column="),
        (
            "metadata.jsonl",
            '{"file_name": "a", "text": 3}',
            "line 1: text must be a string or a list of strings, not 3",
        ),
        ("metadata.jsonl", '{"file_name": 3, "text": "a"}', "line 1: file_name must be a string, not 3"),
        ("metadata.jsonl", '{"file_name": "a", "text": "a"}\n{"file_na', "line 2: not JSON"),
        ("metadata.jsonl", '["a"]', "line 1: not a JSON object"),
        ("metadata.jsonl", "", "has no rows"),
        ("metadata.jsonl", b"\xff\xfe{}", "not UTF-8"),
        (
            "metadata.csv",
            "file_name,text\na.mp4,one, two\n",
            r"line 2: the number of fields is [13], but the header has 2; put quotes around",
        ),
        (
            "metadata.csv",
            "file_name,text\na.mp4\n",
            r"line 2: the number of fields is [13], but the header has 2; put quotes around",
        ),
        ("metadata.csv", "file_name,text\n", "has no rows"),
        ("metadata.parquet", "PAR1", "not a Parquet file"),
    ],
)
def test_folder_damaged_metadata(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CorpusError, match=message):
        load_corpus("folder", tmp_path)


def test_columns_that_rows_have_already_are_left_out_with_a_warning(tmp_path, caplog):
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4", "captions": "a", "video": "v", "text": "t"}')
    (row,) = load_corpus("folder", tmp_path, caption_column="text")
    assert (row["captions"], row["video"]) == (["t"], str(tmp_path / "a.mp4"))
    assert [record.args[1] for record in caplog.records] == ["video", "captions"]
    caplog.clear()
    load_corpus("folder", tmp_path, caption_column="captions")
    assert "the column 'video'" in caplog.text
    assert "'captions'" not in caplog.text


def test_folder_unknown_caption_column(tmp_path):
    write_metadata(tmp_path, [{"file_name": "a.mp4", "text": "a"}])
    with pytest.raises(CorpusError, match=r"no column 'words' \(columns: file_name, text\)"):
        load_corpus("folder", tmp_path, caption_column="words")


def test_folder_column_of_two_types(tmp_path):
    write_metadata(tmp_path, [{"file_name": "a", "text": "a", "n": 1}, {"file_name": "b", "text": "b", "n": "x"}])
    with pytest.raises(CorpusError, match="column 'n' has values of different types"):
        load_corpus("folder", tmp_path)


def test_folder_real_clips(shared_data):
    dataset = load_corpus("folder", shared_data / "real_clips")
    assert dataset.num_rows == 120
    assert dataset["video_id"][0] == "clips/102"
    assert dataset["captions"][0][0].startswith("The video displays a car")
    longer = load_corpus("folder", shared_data / "real_clips", caption_column="description")
    assert sum(len(c[0]) for c in longer["captions"]) > sum(len(c[0]) for c in dataset["captions"])

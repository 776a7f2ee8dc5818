"""Tests for real-world metadata: captions, ids and file names as spreadsheets, pandas and other systems write them."""

import json
import unicodedata
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from region_learner.corpora import CorpusError, folder, load_corpus
from region_learner.corpora.readers import csv_records
from region_learner.corpora.rows import MISSING_WORDS, UnfitValueError, read_captions, read_id

from .test_webdataset import write_shard

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café.mp4") for form in ("NFC", "NFD"))


def write(directory: Path, form: str, rows: list[dict], videos=None) -> Path:
    """Writes a metadata file, and an empty file for each video, because no test decodes them."""
    path = directory / f"metadata.{form}"
    if form == "csv":
        path.write_text(pd.DataFrame(rows).to_csv(index=False))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in videos if videos is not None else [row["file_name"] for row in rows]:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()
    return path


def refusal(directory: Path, **options) -> str:
    with pytest.raises(CorpusError) as error:
        load_corpus("folder", directory, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


FORMS = pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])


# --- Quotes in CSV -------------------------------------------------------------------------------------------

STRAY = [
    ('a.mp4,"one\nb.mp4,two\nc.mp4,three\n', "line 2: a quote is opened here and never closed"),
    ('z.mp4,zero\na.mp4,"one\nb.mp4,two\n', "line 3: a quote is opened here and never closed"),
    ('a.mp4,"one\nb.mp4,two"\nc.mp4,three\n', "line 2: a quote is opened here and closed in line 3"),
    ('a.mp4,"one\nb.mp4,"two\nc.mp4,three\n', "line 2: text follows the end of a quoted field, which is closed in"),
    ('a.mp4,"one" he said\n', "line 2: text follows the end of a quoted field"),
    ('a.mp4,"say \\"one\\""\n', "line 2: text follows the end of a quoted field"),
    ("a.mp4," + "x" * 200_000 + "\n", "line 2: a field has more than 131072 characters, the limit for CSV"),
    ('a.mp4,"one\n' + "b.mp4,two\n" * 20_000, "line 2: a quote is opened here and never closed"),
]


@pytest.mark.parametrize(("content", "message"), STRAY, ids=range(len(STRAY)))
def test_a_stray_quote_is_found_in_its_line(tmp_path, content, message):
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + content)
    assert f"{tmp_path / 'metadata.csv'}, {message}" in refusal(tmp_path)


def test_properly_quoted_fields(tmp_path):
    captions = ['5" screen', 'he said "one", then\ntwo, three', "it's", 'a "b"\nc.mp4 plays, then stops, twice']
    write(tmp_path, "csv", [{"file_name": f"{i}.mp4", "text": text} for i, text in enumerate(captions)])
    assert load_corpus("folder", tmp_path)["captions"][:] == [[text] for text in captions]


def test_csv_records_of_valid_files(tmp_path):
    """Fields and line numbers are right even with line breaks and quotes everywhere."""
    rng = np.random.default_rng(0)
    pieces = ["a", "b c", '"', "\n", ",", "é", ""]
    rows = [["".join(rng.choice(pieces, 4)) for _ in range(3)] for _ in range(200)]
    rows = [[field.replace("\n", "\n-") for field in row] for row in rows]  # no line looks like a row
    text = pd.DataFrame(rows).to_csv(index=False, header=False)
    (tmp_path / "x.csv").write_text(text)
    records = list(csv_records(tmp_path / "x.csv", is_row=lambda fields: False))
    assert [fields for _, fields in records] == rows
    lengths = [1 + sum(field.count("\n") for field in row) for row in rows]
    assert [line for line, _ in records] == [1 + sum(lengths[:i]) for i in range(200)]


@pytest.mark.parametrize(
    ("corpus", "name", "header", "row"),
    [
        ("webvid", "train.csv", "videoid,contentUrl,duration,page_dir,name", '{0},http://x,PT1S,p,{1}"{2}"'),
        ("msrvtt", "MSRVTT_JSFUSION_test.csv", "key,vid_key,video_id,sentence", "ret{0},msr{0},video{0},{1}"),
    ],
)
def test_a_stray_quote_in_a_benchmark(tmp_path, corpus, name, header, row):
    lines = [header, *(row.format(i, f"caption {i}", "").removesuffix('""') for i in range(5))]
    path = tmp_path / name
    split = "train" if corpus == "webvid" else "test"
    for i in range(5):
        (tmp_path / f"{i}.mp4").touch()
        (tmp_path / f"video{i}.mp4").touch()
    path.write_text("\n".join(lines) + "\n")
    assert len(load_corpus(corpus, tmp_path, split)) == 5
    for end in ("", '"'):  # never closed, or closed in a later row
        stray = [*lines]
        stray[2] = stray[2].replace("caption", '"caption')
        stray[4] += end
        path.write_text("\n".join(stray) + "\n")
        with pytest.raises(CorpusError, match=f"{path}, line 3: a quote is opened here and"):
            load_corpus(corpus, tmp_path, split)


def test_wrong_table_formats_are_reported(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name;text\na.mp4;one\n")
    assert "its columns are separated by ';' instead of commas" in refusal(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text,text\na.mp4,one,two\n")
    assert "has two columns 'text'" in refusal(tmp_path)
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.json").write_text("[]")
    assert "(metadata.json has a format that is not supported)" in refusal(tmp_path)


# --- Captions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["captions", "text"])
@pytest.mark.parametrize("text", ["['a', \"it's\"]", '["a", "it\'s"]'])
@FORMS
def test_lists_that_were_written_as_text(tmp_path, form, column, text):
    write(tmp_path, form, [{"file_name": "a.mp4", column: text}])
    assert load_corpus("folder", tmp_path)["captions"][:] == [["a", "it's"]]


def test_lists_as_datasets_writes_them(tmp_path):
    captions = [["a dog", 'says "hello", twice'], ["it's"], ["back\\slash", "line\nbreak"]]
    rows = Dataset.from_dict({"file_name": ["a.mp4", "b.mp4", "c.mp4"], "captions": captions})
    rows.to_csv(tmp_path / "metadata.csv")
    for name in "abc":
        (tmp_path / f"{name}.mp4").touch()
    text = (tmp_path / "metadata.csv").read_text()
    if "' '" in text:  # NumPy's format for arrays, in which the end of a string can be ambiguous
        assert "captions looks like a list but is not a JSON list" in refusal(tmp_path)
    else:
        assert load_corpus("folder", tmp_path)["captions"][:] == captions
    pd.DataFrame({"file_name": ["a.mp4", "b.mp4", "c.mp4"], "captions": captions}).to_csv(tmp_path / "metadata.csv")
    assert load_corpus("folder", tmp_path)["captions"][:] == captions


@pytest.mark.parametrize(
    "text", ["['a' 'b']", "['a', nan]", "array(['a'], dtype=object)", '["a", b]', "['a', ['b']]", '["a", 1]']
)
@FORMS
def test_lists_that_cannot_be_read_are_refused(tmp_path, form, text):
    write(tmp_path, form, [{"file_name": "a.mp4", "text": "one"}, {"file_name": "b.mp4", "text": text}])
    number = {"csv": "line 3", "jsonl": "line 2", "parquet": "row 2"}[form]
    assert f"metadata.{form}, {number}: text " in (message := refusal(tmp_path))
    assert "list" in message


@pytest.mark.parametrize("text", ["[music]", "[1]", "(a) b", "[a, b]", "NA", "null", "none", "a nan"])
@FORMS
def test_texts_that_only_look_odd(tmp_path, form, text):
    write(tmp_path, form, [{"file_name": "a.mp4", "text": text}])
    assert load_corpus("folder", tmp_path)["captions"][:] == [[text]]


@pytest.mark.parametrize("word", sorted(MISSING_WORDS))
@FORMS
def test_missing_values_that_became_words(tmp_path, form, word):
    write(tmp_path, form, [{"file_name": "a.mp4", "text": "one"}, {"file_name": "b.mp4", "text": word}])
    number = {"csv": "line 3", "jsonl": "line 2", "parquet": "row 2"}[form]
    assert f"no caption in column 'text' of {number} (b.mp4)" in refusal(tmp_path)


def test_missing_values_of_pandas_are_recognized():
    missing = pd.Series([np.nan, None, pd.NA, pd.NaT], dtype=object)
    assert {str(value) for value in missing} <= MISSING_WORDS
    assert [read_captions(value) for value in missing] == [[]] * 4
    assert [read_id(value) for value in missing] == [None] * 4


def test_missing_words_are_left_out_of_benchmarks_and_shards(tmp_path, caplog):
    path = tmp_path / "captions_msvd.json"
    path.write_text(json.dumps({"a": ["nan", "NA"], "b": ["None"]}))
    (tmp_path / "test_list.txt").write_text("a\nb\n")
    for name in "ab":
        (tmp_path / f"{name}.avi").touch()
    assert load_corpus("msvd", tmp_path, "test")["captions"][:] == [["NA"]]
    assert "left out 2 blank captions and 1 videos without a caption (the first: b)" in caplog.text
    members = [("a.mp4", b"v"), ("a.txt", b"nan"), ("b.mp4", b"v"), ("b.txt", b"['x', 'y']")]
    write_shard(tmp_path / "shards" / "0.tar", members)
    rows = load_corpus("webdataset", tmp_path / "shards")
    assert rows["captions"][:] == [["x", "y"]]
    assert "leaving out 1 sample without a caption (a)" in caplog.text


def test_lists_written_as_text_are_not_executed(tmp_path, monkeypatch):
    """The code in these texts would write a file, even if its result were refused."""
    monkeypatch.chdir(tmp_path)
    assert read_captions("[open('x', 'w')]") == ["[open('x', 'w')]"]  # one caption, such as "[music]"
    for text in ("['a', open('x', 'w')]", "['a', f'{open(\"x\", \"w\")}']", "['a'.join(open('x', 'w').name)]"):
        with pytest.raises(UnfitValueError, match="looks like a list but is not a JSON list"):
            read_captions(text)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("quote", ["'", '"'])
def test_lists_of_any_depth_are_refused(quote):
    deep = "[" * 100_000 + "]" * 100_000
    with pytest.raises(UnfitValueError, match=r"^(looks like a list|must be a string or a list of strings)"):
        read_captions(f"[{quote}a{quote}, {deep}]")


# --- Ids -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [("007", "007"), (0, "0"), (7, "7"), (np.int64(7), "7"), ("null", "null"), (" a", " a"), ("", None), (None, None)],
)
def test_ids(value, expected):
    assert read_id(value) == expected


@pytest.mark.parametrize("value", [12.0, np.float32(1.5), True, ["a"], "nan", "None", "\ud800"])
def test_ids_that_are_refused(value):
    with pytest.raises(UnfitValueError):
        read_id(value)


@FORMS
def test_ids_keep_their_zeros(tmp_path, form):
    rows = [{"file_name": f"{i}.mp4", "text": "x", "video_id": i} for i in ("007", "0", "7")]
    write(tmp_path, form, rows)
    assert load_corpus("folder", tmp_path)["video_id"][:] == ["007", "0", "7"]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_id_0_is_an_id(tmp_path, form):
    write(tmp_path, form, [{"file_name": f"{i}.mp4", "text": "x", "video_id": 1 - i} for i in range(2)])
    assert load_corpus("folder", tmp_path)["video_id"][:] == ["1", "0"]


@FORMS
def test_ids_that_became_decimal_numbers(tmp_path, form):
    """Pandas turns integers into floats if one is missing."""
    frame = pd.DataFrame({"file_name": ["a.mp4", "b.mp4"], "text": "x", "video_id": [12, None]})
    rows = frame.to_dict("records") if form == "csv" else frame.iloc[:1].to_dict("records")
    write(tmp_path, form, rows)
    number = {"csv": "line 2", "jsonl": "line 1", "parquet": "row 1"}[form]
    assert f"metadata.{form}, {number}: " in (message := refusal(tmp_path))
    assert "integers in a column with missing values become floats: write ids as strings" in message


def test_ids_that_are_decimal_numbers(tmp_path):
    """Decimal ids, such as seconds, are accepted if not all of them are whole numbers."""
    write(tmp_path, "csv", [{"file_name": f"{i}.mp4", "text": "x", "video_id": i} for i in ("1.0", "1.5")])
    assert load_corpus("folder", tmp_path)["video_id"][:] == ["1.0", "1.5"]


def test_ids_of_shards_and_benchmarks(tmp_path, caplog):
    contents = {"a": {"video_id": 0}, "b": {"video_id": 12.0}, "c": {"video_id": ["x"]}}
    members = []
    for key, content in contents.items():
        members += [(f"{key}.mp4", b"v"), (f"{key}.json", json.dumps(content | {"caption": "x"}).encode())]
    write_shard(tmp_path / "0.tar", members)
    with pytest.raises(CorpusError, match=r"member 'b.json': video_id is the float 12.0; integers in"):
        load_corpus("webdataset", tmp_path)
    assert load_corpus("webdataset", tmp_path, damaged="skip")["video_id"][:] == ["0"]
    (tmp_path / "train.csv").write_text("videoid,name\n12.0,one\n13.0,two\n")
    with pytest.raises(CorpusError, match=r"all values of videoid are floats, such as '12.0'"):
        load_corpus("webvid", tmp_path)
    (tmp_path / "cc3m" / "train" / "00000").mkdir(parents=True)
    table = pa.table({"key": [12], "caption": ["x"], "status": ["success"]})
    pq.write_table(table, tmp_path / "cc3m" / "train" / "00000.parquet")
    with pytest.raises(CorpusError, match=r"00000.parquet: the column key holds numbers, which have lost the leading"):
        load_corpus("cc3m", tmp_path / "cc3m")


# --- Names of files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "there", "video_id"),
    [
        ("clips\\a.mp4", "clips/a.mp4", "clips/a"),
        ("./clips//a.mp4", "clips/a.mp4", "clips/a"),
        ("clips/x/../a.mp4", "clips/a.mp4", "clips/a"),
        (COMPOSED, DECOMPOSED, COMPOSED[:-4]),
        (DECOMPOSED, COMPOSED, COMPOSED[:-4]),
        (f"{DECOMPOSED[:-4]}\\{COMPOSED}", f"{COMPOSED[:-4]}/{DECOMPOSED}", f"{COMPOSED[:-4]}/{COMPOSED[:-4]}"),
    ],
)
@FORMS
def test_names_in_other_forms(tmp_path, form, named, there, video_id):
    write(tmp_path, form, [{"file_name": named, "text": "x"}], videos=[there])
    (row,) = load_corpus("folder", tmp_path)
    assert (row["video"], row["video_id"]) == (str(tmp_path / there), video_id)
    assert Path(row["video"]).is_file()


def test_rows_that_spell_one_file_differently_are_merged(tmp_path):
    names = ["clips/a.mp4", "./clips/a.mp4", "clips\\a.mp4", COMPOSED, DECOMPOSED]
    rows = [{"file_name": name, "text": str(i)} for i, name in enumerate(names)]
    write(tmp_path, "jsonl", rows, videos=["clips/a.mp4", DECOMPOSED])
    assert load_corpus("folder", tmp_path)["captions"][:] == [["0", "1", "2"], ["3", "4"]]


def test_files_whose_names_look_alike_are_distinct(tmp_path):
    rows = [{"file_name": name, "text": "x", "video_id": str(i)} for i, name in enumerate((COMPOSED, DECOMPOSED))]
    write(tmp_path, "jsonl", rows)
    assert [Path(video).name for video in load_corpus("folder", tmp_path)["video"]] == [COMPOSED, DECOMPOSED]
    (tmp_path / "b").mkdir()
    write(tmp_path / "b", "jsonl", [{"file_name": "x\\y.mp4", "text": "x"}])  # unpacking can create such a name
    assert load_corpus("folder", tmp_path / "b")["video"][0] == str(tmp_path / "b" / "x\\y.mp4")


@pytest.mark.parametrize("name", ["..\\a.mp4", "x\\..\\..\\a.mp4", "C:\\data\\a.mp4", "\\\\server\\a.mp4", "c:/a.mp4"])
def test_windows_names_that_lead_outside(tmp_path, name):
    write(tmp_path, "jsonl", [{"file_name": name, "text": "x"}], videos=[])
    assert "metadata.jsonl, line 1: file_name" in (message := refusal(tmp_path))
    assert "leads outside of" in message


def test_names_of_benchmarks_in_other_forms(tmp_path):
    (tmp_path / "captions_msvd.json").write_text(json.dumps({COMPOSED[:-4]: ["x"], DECOMPOSED[:-4] + "2": ["y"]}))
    (tmp_path / "test_list.txt").write_text(f"{COMPOSED[:-4]}\n{DECOMPOSED[:-4]}2\n")
    names = [DECOMPOSED, f"{COMPOSED[:-4]}2.avi"]
    for name in names:
        (tmp_path / name).touch()
    assert load_corpus("msvd", tmp_path, "test")["video"][:] == [str(tmp_path / name) for name in names]
    (tmp_path / "p" / "q").mkdir(parents=True)
    (tmp_path / "p" / "q" / DECOMPOSED).touch()
    (tmp_path / "train.csv").write_text(f"videoid,name,page_dir\n{COMPOSED[:-4]},one,p\\q\n")
    assert load_corpus("webvid", tmp_path)["video"][:] == [str(tmp_path / "p" / "q" / DECOMPOSED)]


# --- Missing files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "there", "message"),
    [
        ("a.mp4", [], "but {0} is empty"),
        ("a.mp4", ["a.webm"], "but 'a.webm' exists, with another extension"),
        ("a.mp4", ["A.MP4"], "but it is called 'A.MP4' there: upper and lower case differ"),
        ("a.mp4", ["videos/a.mp4"], "but {0}/videos/a.mp4 exists, a level below {0}"),
        ("videos/a.mp4", ["a.mp4"], "but {0}/a.mp4 exists, directly in {0}"),
        ("videos/a.mp4", ["other/a.mp4"], "but {0}/other/a.mp4 exists, a level below {0}"),
        ("videos/a.mp4", ["../videos/a.mp4"], "but {1}/videos/a.mp4 exists, a level above {0}"),
        ("videos/a.mp4", ["b.mp4"], "but the directory {0}/videos does not exist"),
        ("videos/a.mp4", ["videos/b.mp4"], "/videos/a.mp4; correct the names"),
    ],
)
def test_all_files_missing_says_where_they_may_be(tmp_path, named, there, message):
    root = tmp_path / "data"
    root.mkdir()
    metadata = root / "train"
    metadata.mkdir()
    rows = [{"file_name": f"../{named}", "text": "x"}, {"file_name": f"../{named}2.mp4", "text": "x"}]
    write(metadata, "jsonl", rows, videos=[])
    for name in there:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    if message.endswith("is empty"):  # the directory of the file itself is empty
        (root / "clips").mkdir()
        write(metadata, "jsonl", [{"file_name": "../clips/a.mp4", "text": "x"}], videos=[])
        named, message = "clips/a.mp4", "but {0}/clips is empty"
    expected = message.format(root, tmp_path)
    text = refusal(root)
    assert f"the first was looked for at {root / named}" in text
    assert expected in text
    assert text.endswith("correct the names, or check data_dir (--data-dir)")


def test_some_files_missing_names_the_flag(tmp_path):
    write(tmp_path, "jsonl", [{"file_name": f"{i}.mp4", "text": "x"} for i in range(3)], videos=["0.mp4"])
    assert """max_missing=2 (--corpus-options '{"max_missing": 2}') to leave them out""" in refusal(tmp_path)
    (tmp_path / "train_list.txt").write_text("a\n")
    (tmp_path / "captions_msvd.json").write_text('{"a": ["x"]}')
    (tmp_path / "videos").mkdir()
    with pytest.raises(
        CorpusError, match=rf"looked for at {tmp_path}/videos/a.avi and in {tmp_path}, but .* is empty"
    ):
        load_corpus("msvd", tmp_path, "train")


# --- Custom columns ------------------------------------------------------------------------------------------

DEEP = "[" * 40 + "]" * 40
BOTTOMLESS = "[" * 200_000 + "]" * 200_000
UNFIT = {
    "an integer of more than 64 bits": str(2**63),
    "an unpaired surrogate": '"\\ud800"',
    "nested more than 32 deep": DEEP,
    "JSON|nested too deeply": BOTTOMLESS,
    "Exceeds the limit": "1" * 5000,
}


@pytest.mark.parametrize(("message", "value"), UNFIT.items(), ids=range(len(UNFIT)))
def test_values_that_no_dataset_can_hold(tmp_path, message, value):
    line = f'{{"file_name": "a.mp4", "text": "x", "n": [{{"m": {value}}}]}}'
    (tmp_path / "metadata.jsonl").write_text(line)
    text = refusal(tmp_path)
    assert "metadata.jsonl, line 1: " in text
    assert any(part in text for part in message.split("|"))
    write_shard(tmp_path / "0.tar", [("a.mp4", b"v"), ("a.json", line.encode())])
    with pytest.raises(CorpusError, match=f"0.tar: member 'a.json' .*({message}|recursion)"):
        load_corpus("webdataset", tmp_path)


@pytest.mark.parametrize("column", ["text", "file_name", "video_id"])
def test_unpaired_surrogates_in_our_columns(tmp_path, column):
    row = {"file_name": "a.mp4", "text": "x", "video_id": "i"} | {column: "a\ud800"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert f"metadata.jsonl, line 1: {column} has an unpaired surrogate" in refusal(tmp_path)


def test_parquet_holds_more_than_json(tmp_path):
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    table = pa.table(
        {
            "file_name": ["a.mp4"],
            "text": ["x"],
            "at": pa.array([at]),
            "fine": pa.array([at.timestamp() * 10**9 + 1], pa.timestamp("ns")),
            "day": pa.array([at.date()]),
            "long": pa.array([timedelta(seconds=3)]),
            "kind": pa.array(["k"]).dictionary_encode(),
            "raw": pa.array([b"\xff"]),
            "n": pa.array([2**64 - 1], pa.uint64()),
        }
    )
    (tmp_path / "a.mp4").touch()
    pq.write_table(table.drop(["n"]), tmp_path / "metadata.parquet")
    (row,) = load_corpus("folder", tmp_path)
    assert (row["at"], row["day"], row["kind"], row["raw"]) == (at, at.date(), "k", b"\xff")
    pq.write_table(table, tmp_path / "metadata.parquet")
    assert "row 1: column 'n' has an integer of more than 64 bits" in refusal(tmp_path)
    table = table.select(["file_name", "text"]).append_column("at", pa.array([10**12], pa.timestamp("s")))
    pq.write_table(table, tmp_path / "metadata.parquet")
    assert "column 'at' of type timestamp[" in refusal(tmp_path)


def test_columns_named_like_ours(tmp_path):
    ours = {"num_frames": 9, "seed": "s", "part": None, "labels": [1], "prepared": "yes", "row": "r"}
    write(tmp_path, "jsonl", [{"file_name": "a.mp4", "text": "x"} | ours])
    (row,) = load_corpus("folder", tmp_path)
    assert {name: row[name] for name in ours} == ours
    write_shard(tmp_path / "0.tar", [("a.mp4", b"v"), ("a.json", json.dumps(ours | {"text": "x"}).encode())])
    (row,) = load_corpus("webdataset", tmp_path)
    assert {name: row[name] for name in ours} == ours
    assert row["captions"] == ["x"]


# --- Many captions -------------------------------------------------------------------------------------------


def test_captions_of_one_file_are_not_copied_for_each_row(tmp_path, monkeypatch):
    """Copying the list for each row would take hours for millions of rows."""
    rows = [{"video": "a.mp4", "video_id": "a", "captions": [str(i)]} for i in range(1000)]
    begun = rows[0]["captions"]
    monkeypatch.setattr(folder, "_find_splits", lambda directory: {"train": tmp_path})
    monkeypatch.setattr(folder, "_read_videos", lambda *arguments: rows)
    (row,) = folder.read_split(tmp_path, "train")
    assert row["captions"] is begun
    assert begun == [str(i) for i in range(1000)]

"""Tests of rows that users pass from Python: they are read as intended, or an error names the row and column."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset

from region_learner import RegionLearnerTrainer, RegionLearnerTrainingArguments
from region_learner.corpora import CorpusError, check_corpus, load_corpus, make_corpus, prepare_corpus
from region_learner.corpora.rows import check_dataset, read_row
from region_learner.evaluation import (
    Views,
    answer_accuracy,
    embed_corpus,
    list_metrics,
    load_metric,
    multiple_choice_accuracy,
    region_quality,
    retrieval_metrics,
    zero_shot_accuracy,
)
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.training import RegionLearnerCollator
from region_learner.training.collator import stable_id
from region_learner.training.data import DRAWN, CorpusPart, Draw, TrainingRows
from region_learner.training.task_data import AnswerLabel, ClassLabel
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .conftest import tiny_model, tiny_text_config
from .test_webdataset import write_shard

GOOD = {"video": "a.mp4", "video_id": "a", "captions": ["one", "two"]}

BAD = [
    ({"captions": 3}, "captions must be a string or a list of strings, not 3"),
    ({"captions": [3]}, r"captions must be a string or a list of strings, not \[3\]"),
    ({"captions": None}, "captions has no caption"),
    ({"captions": float("nan")}, "captions has no caption"),
    ({"captions": []}, "captions has no caption"),
    ({"captions": ["one", " "]}, "captions has a caption that is blank or missing"),
    ({"captions": ["one", None]}, "captions has a caption that is blank or missing"),
    ({"captions": "nan"}, "captions has a caption that is blank or missing"),
    ({"captions": "['a' 'b']"}, "captions looks like a list but is not a JSON list"),
    ({"captions": r"['C:\Users\x']"}, "captions looks like a list but is not a JSON list"),
    ({"captions": "['a\nb']"}, "captions looks like a list but is not a JSON list"),
    ({"captions": "a\ud800"}, "captions has an unpaired surrogate"),
    ({"video_id": None}, "video_id is missing or blank"),
    ({"video_id": " "}, "video_id is missing or blank"),
    ({"video_id": 12.0}, "video_id is the float 12.0; .* write ids as strings"),
    ({"video_id": float("nan")}, "video_id is missing or blank"),
    ({"video_id": True}, "video_id must be a string or an integer, not True"),
    ({"video": None}, r"\(video_id '.*'\): video is missing or blank"),
    ({"video": ""}, r"\(video_id '.*'\): video is missing or blank"),
    ({"video": 3}, "video must be a path, encoded bytes or frames, not 3"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    options = {"train": 8, "val": 0, "test": 0, "test_unseen": 0, "size": 48, "frames": 2, "objects": 1}
    return make_corpus(
        "moving_shapes", tmp_path_factory.mktemp("rows") / "corpus", workers=1, progress=False, **options
    )


@pytest.fixture(scope="module")
def rows(corpus):
    dataset = load_corpus("folder", corpus)
    return dataset.select_columns(["video", "video_id", "captions"]).to_list()


@pytest.fixture(scope="module")
def processor(rows):
    tokenizer = train_tokenizer((caption for row in rows for caption in row["captions"]), 99, 32)
    return RegionLearnerProcessor(RegionLearnerVideoProcessor.for_image_size(32, num_frames=2), tokenizer)


@pytest.fixture(scope="module")
def model():
    return tiny_model(text=tiny_text_config(), num_frames=2)


class TorchRows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class TorchStream(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def stream(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


# --- Single rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changed", "message"), BAD, ids=range(len(BAD)))
def test_bad_rows_are_named(changed, message):
    with pytest.raises(CorpusError, match=f"^row 7.*{message}"):
        read_row(GOOD | changed, ("captions",), "row 7")


def test_accepted_values():
    for captions in ("one", ["one"], ("one",), np.array(["one"]), "['one']", '["one"]', [" one "]):
        assert read_row(GOOD | {"captions": captions}, ("captions",), "x")["captions"] == ["one"]
    for video_id in (7, np.int64(7), "7", torch.tensor(7)):
        assert read_row(GOOD | {"video_id": video_id}, (), "x")["video_id"] == "7"
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    assert read_row({"video": frames, "video_id": 0, "mine": {1}}, (), "x") == {
        "video": frames,
        "video_id": "0",
        "mine": {1},
    }
    choice = {"options": np.array(["a", "b"]), "answer": np.int64(1)}
    read = read_row(GOOD | choice, ("options", "answer"), "x")
    assert (read["options"], read["answer"], type(read["answer"])) == (["a", "b"], 1, int)


@pytest.mark.parametrize(
    ("columns", "values", "message"),
    [
        (("options", "answer"), {"options": ["a", "b"], "answer": 2}, "answer must be the index .* not 2"),
        (("options", "answer"), {"options": ["a", "b"], "answer": -1}, "answer must be the index .* not -1"),
        (("options", "answer"), {"options": ["a", "b"], "answer": True}, "answer must be the index .* not True"),
        (("options", "answer"), {"options": ["a", "b"], "answer": float("nan")}, "answer must be the index .*nan"),
        (("options", "answer"), {"options": "ab", "answer": 0}, "options must be a list of strings, not 'ab'"),
        (("options", "answer"), {"options": ["a", " "], "answer": 0}, "options must be a string that is not blank"),
        (("question", "answer"), {"question": None, "answer": "x"}, "question must be a string .* not None"),
        (("question", "answer"), {"question": "x", "answer": 2}, "answer must be a string that is not blank, not 2"),
        (("label",), {"label": float("nan")}, "label must be the number or the name of a class, not nan"),
        (("label",), {"label": None}, "label must be the number or the name of a class, not None"),
        (("label",), {"label": 1.0}, "label must be the number or the name of a class, not 1.0"),
        (("label",), {}, r"has no column 'label' \(columns: captions, video, video_id\)"),
    ],
)  # fmt: skip
def test_columns_of_other_tasks(columns, values, message):
    with pytest.raises(CorpusError, match=message):
        read_row(GOOD | values, columns, "row 0")


def test_a_caption_is_never_split_into_letters(rows, processor):
    """A caption is one text, whether it is given as a string, a list or a JSON list."""
    captions = [row["captions"][0] for row in rows]
    expected = processor(text=captions, return_tensors="pt")["input_ids"]
    for form in (lambda text: text, lambda text: [text], lambda text: json.dumps([text])):
        batch = [row | {"captions": form(row["captions"][0])} for row in rows]
        for training in (True, False):
            result = RegionLearnerCollator(processor, training=training)(batch)
            assert torch.equal(result["input_ids"], expected)


# --- Datasets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [list, Dataset.from_list, stream, TorchRows])
def test_the_first_rows_are_checked(form):
    check_dataset(form([GOOD, GOOD]), ("captions",), "mine")
    with pytest.raises(CorpusError, match=r"^mine, row 1 .*: captions has a caption that is blank"):
        check_dataset(form([GOOD, GOOD | {"captions": [""]}]), ("captions",), "mine")
    with pytest.raises(CorpusError, match=r"^mine.* has no column 'label'"):
        check_dataset(form([GOOD]), ("label",), "mine")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (DatasetDict(train=Dataset.from_list([GOOD])), "is a mapping of 'train': pass one split"),
        (GOOD, "is a mapping of 'video', 'video_id', 'captions': pass one split"),
        (pd.DataFrame([GOOD]), "is a pandas DataFrame: convert it with datasets.Dataset.from_pandas"),
        ("msrvtt", "must be a dataset or a list of rows, not 'msrvtt'"),
        (3, "must be a dataset or a list of rows, not 3"),
        ([], "mine has no rows"),
        ([("a.mp4", "a")], "row 0 must be a mapping of columns"),
    ],
)
def test_what_is_not_a_dataset_is_refused(dataset, message):
    with pytest.raises(CorpusError, match=message):
        check_dataset(dataset, (), "mine")


def test_rows_that_can_only_be_read_once_are_left_for_training():
    rows = iter([GOOD])
    check_dataset(rows, ("captions",), "mine")
    assert list(rows) == [GOOD]
    with pytest.raises(
        CorpusError, match=r"is a TorchStream, .* cannot be shuffled: .* datasets.IterableDataset.from"
    ):
        CorpusPart(TorchStream([GOOD]), 2)


# --- The Trainer ---------------------------------------------------------------------------------------------


def make_trainer(model, processor, tmp_path, arguments=(), **options):
    arguments = RegionLearnerTrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, max_steps=1, per_device_train_batch_size=4, save_strategy="no",
        dataloader_pin_memory=False, disable_tqdm=True, max_unreadable=1.0, **dict(arguments),
    )  # fmt: skip
    return RegionLearnerTrainer(model=model, args=arguments, processing_class=processor, **options)


@pytest.mark.parametrize("form", [list, Dataset.from_list, stream, TorchRows])
def test_the_trainer_refuses_rows_before_it_trains(model, processor, rows, tmp_path, form):
    bad = [*rows[:2], rows[2] | {"captions": [" "]}, *rows[3:]]
    with pytest.raises(CorpusError, match=r"^the training data, row 2 .*: captions has a caption that is blank"):
        make_trainer(model, processor, tmp_path, train_dataset=form(bad))
    with pytest.raises(CorpusError, match=r"^eval_dataset, row 2 .*: captions has"):
        make_trainer(model, processor, tmp_path, train_dataset=rows, eval_dataset=form(bad))
    with pytest.raises(CorpusError, match=r"^eval_dataset\['b'\], row 2 .*: captions has"):
        make_trainer(model, processor, tmp_path, eval_dataset={"a": rows, "b": form(bad)})
    parts = [CorpusPart(form(rows), 2), CorpusPart(form(bad), 2)]
    with pytest.raises(CorpusError, match=r"^corpus 2 of the training data, row 2 "):
        make_trainer(model, processor, tmp_path, train_dataset=parts)


@pytest.mark.parametrize("form", [list, Dataset.from_list, stream, TorchRows])
def test_the_trainer_names_a_later_row(model, processor, rows, tmp_path, form):
    bad = [*rows[:7], rows[7] | {"captions": ["one", ""]}]
    trainer = make_trainer(model, processor, tmp_path, train_dataset=form(bad))
    trainer.args.max_steps = 4
    with pytest.raises(
        CorpusError, match=rf"^row \d of the training data \(video_id {bad[7]['video_id']!r}\): captions"
    ):
        trainer.train()


@pytest.mark.parametrize("form", [list, Dataset.from_list, stream, TorchRows])
def test_the_trainer_accepts_rows_of_every_kind(model, processor, rows, tmp_path, form):
    named = [row | {"video_id": number, "captions": row["captions"][0]} for number, row in enumerate(rows)]
    trainer = make_trainer(model, processor, tmp_path, train_dataset=form(named), eval_dataset=named)
    assert np.isfinite(trainer.train().training_loss)
    strings = [row | {"video_id": str(row["video_id"]), "captions": [row["captions"]]} for row in named]
    expected = trainer.evaluate(strings)
    measured = trainer.evaluate()
    assert {k: v for k, v in measured.items() if "2" in k} == {k: v for k, v in expected.items() if "2" in k}


OURS = {"num_frames": "nine", "seed": "s", "part": 5, "row": None, "labels": [1], "unreadable": 1}


def test_columns_named_like_ours_change_nothing(model, processor, rows, tmp_path):
    named = [row | OURS for row in rows]
    for training in (True, False):
        collator = RegionLearnerCollator(processor, training=training)
        torch.manual_seed(0)
        expected = collator(rows[:4])
        torch.manual_seed(0)
        result = collator(named[:4])
        assert torch.equal(result["pixel_values_videos"], expected["pixel_values_videos"])
        assert torch.equal(result["input_ids"], expected["input_ids"])
    trainer = make_trainer(model, processor, tmp_path, train_dataset=named, eval_dataset=named)
    trainer.train()
    assert trainer.evaluate()["eval_t2v_R@50"] == 100
    part = CorpusPart(named, 2, num_frames=3)
    row = TrainingRows([part])[Draw(0, 1, 11)]
    assert row == named[1] | {DRAWN: Draw(0, 1, 11, num_frames=3)}


def test_negative_captions(processor, rows, tmp_path):
    """One negative caption is drawn per row that has any, by the row's seed, without changing its other draws."""
    named = [row | {"negative_captions": wrong} for row, wrong in zip(rows, (["a b", "c d"], None, " ", "e f"))]
    lists = [["a b", "c d"], [], []]
    for part in (named, Dataset.from_list([row | {"negative_captions": wrong} for row, wrong in zip(rows, lists)])):
        drawn = [TrainingRows([CorpusPart(part, 2)])[Draw(0, number, 7)] for number in range(len(part))]
        collator = RegionLearnerCollator(processor, training=True)
        batch = collator(drawn)
        tokens = batch["negative_input_ids"]
        assert tokens.shape == batch["negative_attention_mask"].shape == (len(part) // 2, batch["input_ids"].shape[1])
        texts = [processor.tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens]
        assert texts[0] in ("a b", "c d")
        assert texts[1:] == ["e f"] * (len(part) == 4)
        assert torch.equal(collator(drawn)["negative_input_ids"], tokens)
        plain = collator([{k: v for k, v in row.items() if k != "negative_captions"} for row in drawn])
        assert "negative_input_ids" not in plain
        assert torch.equal(plain["pixel_values_videos"], batch["pixel_values_videos"])
        length = plain["input_ids"].shape[1]
        assert torch.equal(plain["input_ids"], batch["input_ids"][:, :length])
        assert batch["attention_mask"][:, length:].sum() == 0
    seen = {
        processor.tokenizer.decode(ids, skip_special_tokens=True)
        for seed in range(20)
        for ids in collator([TrainingRows([CorpusPart(named, 2)])[Draw(0, 0, seed)]])["negative_input_ids"]
    }
    assert seen == {"a b", "c d"}
    assert "negative_input_ids" not in RegionLearnerCollator(processor, training=False)(named[:4])
    for wrong, message in [
        (["x", rows[0]["captions"][0].upper() + " "], "negative_captions contains a caption of the video itself"),
        (["x", " "], "negative_captions has a caption that is blank or missing"),
        (7, "negative_captions must be a string or a list of strings, not 7"),
    ]:
        bad = [rows[0] | {"negative_captions": wrong}, *rows[1:]]
        with pytest.raises(CorpusError, match=message):
            collator(bad[:1])
        with pytest.raises(CorpusError, match=f"the training data, row 0 .*: {message}"):
            make_trainer(tiny_model(text=tiny_text_config(), num_frames=2), processor, tmp_path, train_dataset=bad)
    late = [row | {"negative_captions": []} for row in rows]
    late[7] |= {"negative_captions": rows[7]["captions"][:1]}
    with pytest.raises(
        CorpusError, match=r"the training data, row 7 .*: negative_captions contains a caption of the video"
    ):
        make_trainer(
            tiny_model(text=tiny_text_config(), num_frames=2), processor, tmp_path,
            train_dataset=Dataset.from_list(late),
        )  # fmt: skip


def test_negative_captions_of_rows_with_the_same_file_are_merged(rows, tmp_path):
    shutil.copy(rows[0]["video"], tmp_path / "a.mp4")
    lines = [
        {"file_name": "a.mp4", "text": "one", "negative_captions": ["x"]},
        {"file_name": "a.mp4", "text": "two", "negative_captions": ["y", "x"]},
        {"file_name": "a.mp4", "text": "three", "negative_captions": None},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (row,) = load_corpus("folder", tmp_path)
    assert row["captions"] == ["one", "two", "three"]
    assert row["negative_captions"] == ["x", "y"]
    text = "file_name,text,negative_captions\na.mp4,one,\na.mp4,two,nan\na.mp4,three,x\n"
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text(text)
    (row,) = load_corpus("folder", tmp_path)
    assert row["negative_captions"] == ["x"]


def test_training_with_negative_captions(processor, rows, tmp_path):
    """Negative captions change the loss, and cached gradients, which split them into chunks, give the same loss."""
    wrong = [row | {"negative_captions": [f"not {row['captions'][0]}"] if n % 3 else []} for n, row in enumerate(rows)]
    losses = []
    for name, given, options in [
        ("plain", rows, {}), ("wrong", wrong, {}), ("cached", wrong, {"gradient_cache_chunk": 1}),
    ]:  # fmt: skip
        model = tiny_model(text=tiny_text_config(), num_frames=2)
        trainer = make_trainer(model, processor, tmp_path / name, {"logging_steps": 1} | options, train_dataset=given)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] > losses[0] + 1e-3
    assert losses[2] == pytest.approx(losses[1], rel=1e-4)


def test_columns_named_like_ours_in_shards(model, processor, rows, tmp_path):
    members = []
    for number, row in enumerate(rows):
        with open(row["video"], "rb") as file:
            members.append((f"{number}.mp4", file.read()))
        members.append((f"{number}.json", json.dumps(OURS | {"text": row["captions"][0]}).encode()))
    write_shard(tmp_path / "0.tar", members)
    shards = load_corpus("webdataset", tmp_path)
    assert shards.column_names == ["video", "video_id", "captions", *OURS]
    trainer = make_trainer(model, processor, tmp_path / "run", train_dataset=shards, eval_dataset=shards)
    trainer.train()
    assert trainer.evaluate()["eval_t2v_R@50"] == 100


def test_labels_are_never_counted_from_the_end():
    label = ClassLabel(["x", "y"], {"x": 0, "y": 1})
    assert [label({"label": number, "video_id": "a"}) for number in (0, 1)] == [0, 1]
    for wrong in (-1, 2, None, "x"):
        with pytest.raises(CorpusError, match=f"video_id 'a': the label {wrong!r} is not one of the 2 classes"):
            label({"label": wrong, "video_id": "a"})
    with pytest.raises(CorpusError, match="video_id 'a': answer must be a string, not 2"):
        AnswerLabel({"2": 0})({"answer": 2, "video_id": "a"})


def test_labels_of_a_callable_are_numbers(rows, processor):
    for wrong in ("1", 1.5, None):
        collator = RegionLearnerCollator(processor, training=True, task="classification", label=lambda row: wrong)  # noqa: B023
        with pytest.raises(CorpusError, match=f"label= must return a class index, not {wrong!r}"):
            collator(rows[:2])
    collator = RegionLearnerCollator(
        processor, training=True, task="classification", label=lambda row: torch.tensor(stable_id(row["video_id"]) % 3)
    )
    assert collator(rows)["labels"].tolist() == [stable_id(row["video_id"]) % 3 for row in rows]
    with pytest.raises(ValueError, match=r"task='classification' needs label=, a function"):
        RegionLearnerCollator(processor, training=True, task="classification")
    with pytest.raises(ValueError, match=r"label= is only for tasks that have labels, not for task='retrieval'"):
        RegionLearnerCollator(processor, training=True, label=lambda row: 0)


# --- Evaluation, check, prepare ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [list, Dataset.from_list, stream, TorchRows])
def test_evaluation_reads_rows_the_same_way(model, processor, rows, form):
    expected = embed_corpus(
        model, processor, [row | {"captions": row["captions"][:1]} for row in rows], progress=False
    )
    named = [row | {"captions": row["captions"][0]} for row in rows]
    result = embed_corpus(model, processor, form(named), progress=False)
    assert (result.texts, result.video_ids) == (expected.texts, expected.video_ids)
    assert result.metrics() == expected.metrics()
    for changed, message in BAD:
        if "has no caption" in message:  # a video without captions stays in the gallery
            continue
        bad, number = [*rows[:2], rows[2] | changed], 2
        if form == Dataset.from_list:
            if "surrogate" in message:  # cannot be stored
                continue
            bad, number = [row | changed for row in rows[:3]], 0  # the values of a column have the same type
        with pytest.raises(ValueError, match=f"row {number}.*{message}"):
            embed_corpus(model, processor, form(bad), progress=False)


def test_the_same_video_by_number_and_by_string(model, processor, rows):
    twice = [rows[0] | {"video_id": 7, "captions": "one"}, rows[0] | {"video_id": "7", "captions": ["two"]}]
    result = embed_corpus(model, processor, twice, progress=False)
    assert (result.video_ids, result.text_video_ids) == (["7"], ["7", "7"])


def test_other_evaluations_name_row_and_column(model, processor, rows):
    for evaluate, columns, wrong, message in (
        (multiple_choice_accuracy, {"options": ["a", "b"], "answer": 0}, {"answer": 2}, "row 1 .*: answer must be"),
        (answer_accuracy, {"question": "q", "answer": "a"}, {"question": ""}, "row 1 .*: question must be a string"),
        (zero_shot_accuracy, {"label": "x"}, {"label": None}, "row 1 .*: label must be the number or the name"),
    ):
        good = [row | columns for row in rows[:3]]
        with pytest.raises(CorpusError, match=message):
            evaluate(model, processor, [good[0], good[1] | wrong, good[2]], progress=False)
    with pytest.raises(CorpusError, match="row 1: video_id is missing"):
        region_quality(model, processor, [rows[0] | {"masks": "m"}, rows[1] | {"masks": "m", "video_id": None}])


def test_check_and_prepare_require_ids(tmp_path, rows):
    bad = Dataset.from_list([*rows[:3], rows[3] | {"video_id": None}])
    for work in (check_corpus, lambda dataset: prepare_corpus(dataset, tmp_path / "out")):
        with pytest.raises(CorpusError, match="the corpus, row 3: video_id is missing or blank"):
            work(bad)
        with pytest.raises(CorpusError, match="the corpus has no column 'video_id'"):
            work(bad.remove_columns("video_id"))
    assert not (tmp_path / "out").exists()


# --- Ids in metrics ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "videos", "message"),
    [
        (["7", "8"], [7, 8], r"2 videos of text_video_ids .*\['7', '8'\].*; some are strings and others numbers.*7"),
        (["7", 8], ["7", "8"], "text_video_ids mixes strings and numbers, such as '7' and 8"),
        ([7, 8], [7, "8"], "video_ids mixes strings and numbers, such as '8' and 7"),
        (["a", None], ["a", "b"], r"text_video_ids\[1\] is None"),
        ([1.0, float("nan")], [1.0, 2.0], r"text_video_ids\[1\] is nan"),
        ([1, 2], [1, [2]], r"video_ids\[1\] is \[2\]"),
    ],
)
def test_ids_that_cannot_be_compared(texts, videos, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(np.eye(2), np.eye(2), texts, videos)


def test_torch_and_numpy_ids_are_compared_by_value():
    expected = retrieval_metrics(np.eye(3), np.eye(3)[[1, 0, 2]], [1, 0, 2], [0, 1, 2])
    for text_ids in ([torch.tensor(1), torch.tensor(0), torch.tensor(2)], list(np.array([1, 0, 2])), [1.0, 0.0, 2.0]):
        assert retrieval_metrics(np.eye(3), np.eye(3)[[1, 0, 2]], text_ids, [0, 1, 2]) == expected


@pytest.mark.parametrize("name", list_metrics())
def test_evaluate_modules_require_rows(name, tmp_path):
    ids = {"video_ids": []} if name == "video_text_retrieval" else {}
    metric = load_metric(name, cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"^predictions are empty: there is nothing to measure"):
        metric.compute(predictions=[], references=[], **ids)
    with pytest.raises(ValueError, match=r"^references are missing: each row needs predictions, references"):
        load_metric(name, cache_dir=str(tmp_path)).compute(predictions=[[1.0, 0.0]], **ids)


def test_evaluate_modules_do_not_convert_ids_or_labels(tmp_path):
    def retrieval(ids):
        embeds = np.eye(len(ids))
        metric = load_metric("video_text_retrieval", cache_dir=str(tmp_path))
        return metric.compute(predictions=embeds, references=embeds, video_ids=ids)

    for ids, message in ((["7", 7], "mixes strings and numbers"), ([7, None], r"video_ids\[1\] is None")):
        with pytest.raises(ValueError, match=message):
            retrieval(ids)
    metric = load_metric("video_text_retrieval", cache_dir=str(tmp_path))
    metric.add_batch(predictions=np.eye(2), references=np.eye(2), video_ids=[7, 8])
    with pytest.raises(ValueError, match="video_ids such as '7' are of another type than earlier ones"):
        metric.add_batch(predictions=np.eye(2), references=np.eye(2), video_ids=["7", "9"])
    for label in (1.5, None, float("nan"), "1"):
        with pytest.raises(ValueError, match=rf"references\[1\] must be the index of a class, not {label!r}"):
            load_metric("action_accuracy", cache_dir=str(tmp_path)).compute(
                predictions=np.eye(2), references=[0, label]
            )


# --- Videos that are given as frames -------------------------------------------------------------------------


def frames_of(count: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 40, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_of_floats_and_levels_is_normalized_once(rows, processor, training):
    """Clips of floats are always normalized, so the other clips of their batch must be, too."""
    floats = [rows[0] | {"video": frames_of() / 255}, rows[1]]
    seeded = [row | {DRAWN: Draw(0, number, seed=number, num_frames=None)} for number, row in enumerate(floats)]
    given = seeded if training else floats
    expected = RegionLearnerCollator(processor, training=training)(given)["pixel_values_videos"]
    batch = RegionLearnerCollator(processor, training=training, normalize=False)(given)["pixel_values_videos"]
    assert torch.equal(batch, expected)
    assert batch.abs().max() < 3
    alone = [processor(videos=row["video"])["pixel_values_videos"][0] for row in floats]
    if not training:
        torch.testing.assert_close(batch, torch.stack(alone))
    levels = [floats[0] | {"video": frames_of()}, rows[1]]
    batch = RegionLearnerCollator(processor, training=training, normalize=False)(levels)["pixel_values_videos"]
    assert batch.dtype == torch.uint8  # normalized later, on the device


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (np.stack([frames_of(), frames_of()]), "the video of a row must be one clip, not 2"),
        (frames_of() * 1.0, r"must lie within 0\.\.1"),
        (frames_of().astype(int), "Frames of int64 are ambiguous"),
        ([], "A clip has no frames"),
        (object(), "not object"),
    ],
    ids=["several clips", "floats of 255", "integers", "no frames", "something else"],
)
def test_frames_that_are_not_one_clip_are_reported(rows, processor, model, video, message):
    wrong = [rows[1], rows[0] | {"video": video}]
    with pytest.raises(ValueError, match=f"^video_id {rows[0]['video_id']!r}: .*{message}"):
        RegionLearnerCollator(processor, training=True)(wrong)
    with pytest.raises(ValueError, match=f"^video 1: .*{message}"):
        embed_corpus(model, processor, wrong, progress=False)


def test_a_dict_without_a_video(rows, processor):
    with pytest.raises(CorpusError, match=r"^row 0 .*: video has neither a path nor bytes"):
        RegionLearnerCollator(processor, training=True)([rows[0] | {"video": {"path": None, "bytes": None}}])


def test_several_clips_of_frames(rows, processor, model):
    """Frames in an array give the same clips as the same frames in a file."""
    frames, _ = processor.video_processor.decode(rows[0]["video"], num_frames=2)
    arrays = [rows[0] | {"video": frames.permute(0, 2, 3, 1).numpy()}, rows[1]]
    expected, got = (
        embed_corpus(model, processor, some, progress=False, views=Views(2)).video_embeds
        for some in (rows[:2], arrays)
    )
    torch.testing.assert_close(got, expected)


def test_clips_of_different_shapes_are_not_batched(rows, processor, model):
    any_size = RegionLearnerVideoProcessor(num_frames=2, do_resize=False, do_center_crop=False)
    sizes = RegionLearnerProcessor(any_size, processor.tokenizer)
    mixed = [rows[0], rows[1] | {"video": frames_of()}]
    with pytest.raises(ValueError, match="Clips of different shapes cannot be batched"):
        embed_corpus(model, sizes, mixed, progress=False)
    with pytest.raises(ValueError, match="Clips of different shapes cannot be batched"):
        RegionLearnerCollator(sizes, training=False)(mixed)

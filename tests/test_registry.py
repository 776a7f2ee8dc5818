"""Tests the names and options of corpora, and custom corpora that a program registers."""

import json
from contextlib import suppress

import pytest
from datasets import Dataset, IterableDataset

from region_learner.cli import main
from region_learner.corpora import (
    CorpusError,
    corpus_info,
    corpus_options,
    list_corpora,
    load_corpus,
    make_corpus,
    register_corpus,
    registry,
)
from region_learner.training import DataArguments, parse_arguments, train
from region_learner.training.task_data import default_flip_probability

from .test_training import TINY


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_CORPORA", dict(registry._CORPORA))


def load_gestures(data_dir, split, hand="both", *, max_missing=0):
    """Gestures: one video per gesture.

    More about them.
    """
    if split != "train":
        raise CorpusError(f"no split {split!r}")
    return [
        {"video": f"{data_dir}/{name}.mp4", "video_id": name, "captions": [f"{hand}: {name}"]}
        for name in ("wave", "point", "clap")
    ]


def test_list_corpora_describes_each_in_one_line():
    corpora = list_corpora()
    assert {"folder", "moving_shapes"} <= set(corpora)
    assert all(line and "\n" not in line for line in corpora.values())
    assert "metadata.csv" in corpora["folder"]


def test_unknown_name_suggests_the_nearest():
    message = (
        r"unknown corpus 'moving_shape' \(corpora: .*folder,.* moving_shapes,.*\); did you mean .moving_shapes.\?"
    )
    for function in (load_corpus, corpus_info, corpus_options):
        with pytest.raises(CorpusError, match=message):
            function("moving_shape")


def test_unknown_options_name_the_allowed_ones(tmp_path):
    with pytest.raises(CorpusError, match=r"'max_mising' for corpus 'folder' \(options: .*\); did you mean 'max_miss"):
        load_corpus("folder", tmp_path, max_mising=1)
    with pytest.raises(CorpusError, match=r"'flip' for corpus 'moving_shapes' \(options: captions, .*task.*workers\)"):
        load_corpus("moving_shapes", tmp_path, flip=True)
    with pytest.raises(CorpusError, match="unknown option 'clips'"):
        make_corpus("moving_shapes", tmp_path / "new", clips=3)


def test_errors_are_value_errors():
    assert issubclass(CorpusError, ValueError)


def test_options_of_built_in_corpora():
    for name in list_corpora():
        assert "streaming" not in corpus_options(name)
    assert {"shards", "lazy", "damaged"} == set(corpus_options("webdataset"))
    assert {"task", "train", "test_unseen", "seed", "workers"} <= set(corpus_options("moving_shapes"))
    assert {"protocol", "video_dir", "max_missing", "missing_list"} == set(corpus_options("msrvtt"))


def test_flips_are_declared():
    """Captions of the synthetic corpora tell left from right."""
    tell_directions = {name for name in list_corpora() if not corpus_info(name).horizontal_flip}
    assert tell_directions == {"moving_shapes", "drifting_letters"}


def test_a_registered_corpus(tmp_path, capsys):
    register_corpus("gestures", load_gestures, horizontal_flip=False)
    assert corpus_info("gestures").horizontal_flip is False
    assert list_corpora()["gestures"] == "Gestures: one video per gesture."
    assert corpus_options("gestures") == ["hand", "max_missing"]
    dataset = load_corpus("gestures", tmp_path, hand="left")
    assert isinstance(dataset, Dataset)
    assert dataset[0] == {"video": f"{tmp_path}/wave.mp4", "video_id": "wave", "captions": ["left: wave"]}
    stream = load_corpus("gestures", tmp_path, streaming=True)
    assert isinstance(stream, IterableDataset)
    assert [row["video_id"] for row in stream] == ["wave", "point", "clap"]
    with pytest.raises(CorpusError, match=r"unknown option 'hnd' for corpus 'gestures' .*did you mean 'hand'"):
        load_corpus("gestures", tmp_path, hnd="left")
    with suppress(SystemExit):
        main(["corpus", "list", "--json"])
    assert json.loads(capsys.readouterr().out)["gestures"] == "Gestures: one video per gesture."


def test_what_a_loader_may_return(tmp_path):
    rows = load_gestures(tmp_path, "train")
    returned: dict = {
        "dataset": Dataset.from_list(rows),
        "stream": Dataset.from_list(rows).to_iterable_dataset(),
        "torch": type("Rows", (), {"__len__": lambda self: 3, "__getitem__": lambda self, i: rows[i]})(),
        "nothing": None,
        "no_rows": [],
        "no_id": [{"video": "a.mp4", "captions": ["a"]}],
    }
    for name, value in returned.items():
        register_corpus(name, lambda data_dir, split, value=value: value, description="One of the test.")
    assert isinstance(load_corpus("dataset", streaming=True), IterableDataset)
    assert [row["video_id"] for row in load_corpus("stream", streaming=True)] == ["wave", "point", "clap"]
    assert len(load_corpus("torch")) == 3
    with pytest.raises(CorpusError, match="'torch' cannot be streamed: its loader returns a Rows"):
        load_corpus("torch", streaming=True)
    with pytest.raises(CorpusError, match="split 'train' of corpus 'nothing' must be a dataset or a list of rows"):
        load_corpus("nothing")
    with pytest.raises(CorpusError, match="split 'train' of corpus 'no_rows' has no rows"):
        load_corpus("no_rows")
    with pytest.raises(CorpusError, match="split 'train' of corpus 'no_id' has no column 'video_id'"):
        load_corpus("no_id")


def test_a_loader_may_stream_by_itself_and_take_any_option(tmp_path):
    seen = {}

    def load_any(data_dir, split, *, streaming=False, **options):
        seen.update(options, streaming=streaming)
        return Dataset.from_list(load_gestures(data_dir, split))

    register_corpus("any", load_any, description="Takes any option.")
    load_corpus("any", tmp_path, streaming=True, colour="red")
    assert seen == {"streaming": True, "colour": "red"}
    assert corpus_options("any") == []


def test_registering_twice():
    with pytest.raises(CorpusError, match=r"already a corpus 'msrvtt': choose another name, or pass overwrite=True"):
        register_corpus("msrvtt", load_gestures)
    register_corpus("msrvtt", load_gestures, description="Replaced.", overwrite=True)
    assert list_corpora()["msrvtt"] == "Replaced."


@pytest.mark.parametrize("loader", [None, lambda: [], lambda data_dir: [], lambda *, data_dir, split: []])
def test_loaders_that_cannot_be_called(loader):
    with pytest.raises(CorpusError, match="the loader of corpus 'mine' must be a function of data_dir and split"):
        register_corpus("mine", loader)


@pytest.mark.parametrize("name", ["", " ", None, 3])
def test_names_that_cannot_be_given(name):
    with pytest.raises(CorpusError, match="the name of a corpus must be a string that is not blank"):
        register_corpus(name, load_gestures)


@pytest.mark.parametrize(("corpora", "probability"), [(("webvid", "cc3m"), 0.5), (("webvid", "moving_shapes"), 0.0)])
def test_one_corpus_that_tells_left_from_right_disables_flips(corpora, probability):
    arguments = DataArguments(corpus="webvid", corpora=[{"corpus": name} for name in corpora])
    assert default_flip_probability(arguments) == probability


def test_synthetic_corpora_are_not_flipped_under_another_name(tmp_path):
    """Clips of a synthetic corpus are not flipped when it is read as a folder or as shards."""
    sizes = {"train": 2, "val": 0, "test": 0, "test_unseen": 0, "size": 48, "frames": 4}
    make_corpus("moving_shapes", tmp_path / "shapes", progress=False, **sizes)
    argv = ["corpus", "prepare", tmp_path / "shards", "--data-dir", tmp_path / "shapes", "--workers=1"]
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in argv])
    assert not end.value.code
    for corpus, folder, probability in (
        ("folder", "shapes", 0.0),
        ("webdataset", "shards", 0.0),
        ("webdataset", "shards/train", 0.0),
        ("folder", ".", 0.5),
    ):
        assert default_flip_probability(DataArguments(corpus=corpus, data_dir=str(tmp_path / folder))) == probability


def test_shards_at_any_depth_say_whether_clips_may_be_mirrored(tmp_path):
    for name, flips in (("letters", False), ("birds", True)):
        directory = tmp_path / name / "train"
        directory.mkdir(parents=True)
        (directory / "0.tar").touch()
        (directory / "prepare.json").write_text(json.dumps({"horizontal_flip": flips}))
    for shards, expected in (("letters/train/*.tar", 0.0), (["birds/train/0.tar"], 0.5), ("*/train/*.tar", 0.0)):
        options = {"corpus": "webdataset", "data_dir": str(tmp_path), "corpus_options": {"shards": shards}}
        assert default_flip_probability(DataArguments(**options)) == expected
        entry = {"corpus": "webdataset", "data_dir": str(tmp_path), "options": {"shards": shards}}
        assert default_flip_probability(DataArguments(corpora=[entry])) == expected


@pytest.mark.parametrize(("horizontal_flip", "probability"), [(True, 0.5), (False, 0.0)])
def test_training_mirrors_clips_only_where_captions_stay_true(horizontal_flip, probability, tmp_path):
    def load_shapes(data_dir, split, *, max_missing=0):
        return load_corpus("moving_shapes", data_dir, split)

    sizes = {"train": 4, "val": 0, "test": 0, "test_unseen": 0, "size": 48, "frames": 4}
    make_corpus("moving_shapes", tmp_path / "shapes", progress=False, **sizes)
    register_corpus("mine", load_shapes, description="Mine.", horizontal_flip=horizontal_flip)
    argv = [*TINY, "--corpus=mine", f"--data_dir={tmp_path / 'shapes'}", f"--output_dir={tmp_path / 'out'}"]
    train(*parse_arguments([*argv, "--max_steps=1", "--per_device_train_batch_size=2", "--test_split=none"]))
    saved = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert saved["video_processor"]["flip_probability"] == probability

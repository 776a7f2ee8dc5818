"""Tests questions, choices and actions of moving shapes against an independent reading of the stored scenes."""

import re
from collections import Counter

import numpy as np
import pytest
from datasets import ClassLabel, IterableDataset, List, Value

from region_learner.corpora import CorpusError, load_corpus, load_masks, make_corpus
from region_learner.corpora.synthetic.shapes_scenes import HELD_OUT_PAIRS

from .test_synthetic_shapes import centroids, parse

SPLITS = {"train": 60, "test": 20, "test_unseen": 20}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tasks") / "corpus"
    return make_corpus(
        "moving_shapes", directory, val=0, size=64, frames=8, objects=(1, 4), workers=2, progress=False, **SPLITS
    )


def load(directory, task, split="train", **options):
    return load_corpus("moving_shapes", directory, split=split, task=task, **options)


def all_rows(directory, task):
    return [row for split in SPLITS for row in load(directory, task, split)]


# --- Questions -----------------------------------------------------------------------------------------------

MOTION_WORDS = {
    "left": "moves left", "right": "moves right", "up": "moves up", "down": "moves down",
    "diagonal": "moves diagonally", "circling": "moves in a circle", "bouncing": "bounces", "growing": "grows",
    "shrinking": "shrinks", "spinning": "spins", "still": "stays still",
}  # fmt: skip
SHAPES = "circle|square|triangle|star|cross|ring|heart|crescent"
COLOURS = "red|orange|yellow|green|blue|purple|pink|white"


def answers(question, row):
    """Returns the answers to a question, one from each object of the clip that the question fits."""
    objects = row["objects"]
    one = rf"the ({COLOURS}) ({SHAPES})"

    def described(pattern):
        if not (match := re.fullmatch(pattern.replace("ONE", one), question)):
            return []
        return [entry for entry in objects if (entry["colour"], entry["shape"]) == match.groups()]

    if question == "how many objects are not gray?":
        return [["no", "one", "two", "three", "four"][len(objects)]]
    if match := re.fullmatch(rf"what color is the ({SHAPES})\?", question):
        return [entry["colour"] for entry in objects if entry["shape"] == match[1]]
    if match := re.fullmatch(rf"what shape is ({COLOURS})\?", question):
        return [entry["shape"] for entry in objects if entry["colour"] == match[1]]
    if found := described(r"which way does ONE move\?"):
        words = {"left": "left", "right": "right", "up": "up", "down": "down", "diagonal": "diagonally"}
        return [words[entry["motion"]] for entry in found]
    if found := described(r"what does ONE do\?"):
        return [MOTION_WORDS[entry["motion"]] for entry in found]
    if found := described(r"what pattern does ONE have\?"):
        return [entry["texture"] for entry in found]
    found = described(r"is ONE small or large\?")
    return [entry["size"] for entry in found]


def test_questions_have_one_answer(directory):
    rows = all_rows(directory, "question_answering")
    for row in rows:
        assert answers(row["question"], row) == [row["answer"]], row
    assert len({row["answer"] for row in rows}) > 25
    kinds = Counter(re.sub(rf"\b({COLOURS}|{SHAPES})\b", "_", row["question"]) for row in rows)
    assert len(kinds) == 7
    assert min(kinds.values()) > 10
    answered = Counter(row["answer"] for row in rows)
    assert max(answered.values()) < 0.15 * len(rows)


def test_answers_match_the_masks(directory):
    checked = Counter()
    for row in load(directory, "question_answering"):
        masks = load_masks(row)
        if row["question"].startswith("how many"):
            assert len(np.unique(masks)) - 1 == ["no", "one", "two", "three", "four"].index(row["answer"])
        elif row["answer"] in ("left", "right", "up", "down"):
            (label,) = [
                number
                for number, entry in enumerate(row["objects"], 1)
                if f" {entry['colour']} {entry['shape']} " in row["question"]
            ]
            x, y = (track[-1] - track[0] for track in centroids(masks, label).T)
            seen = ("left" if x < 0 else "right") if abs(x) > abs(y) else ("up" if y < 0 else "down")
            assert seen == row["answer"]
        else:
            continue
        checked[row["answer"]] += 1
    assert len(checked) >= 7


def test_question_columns(directory):
    table = load(directory, "question_answering")
    clips = load(directory, "retrieval")
    assert set(table.column_names) == {*clips.column_names, "question", "answer"}
    assert table.features["captions"] == List(Value("string"))
    assert all(captions == [] for captions in table["captions"])
    assert list(dict.fromkeys(table["video_id"])) == clips["video_id"][:]
    assert 4 <= table.num_rows / clips.num_rows <= 7
    asked = list(zip(table["video_id"], table["question"]))
    assert len(set(asked)) == len(asked)


# --- Choices -------------------------------------------------------------------------------------------------


def is_true(caption, objects):
    """Returns whether a caption mentions all objects of the clip, each once, and nothing else."""
    mentions, _ = parse(caption)
    left = list(objects)
    for mention in mentions:
        found = [entry for entry in left if mention.items() <= entry.items()]
        if not found:
            return False
        left.remove(found[0])
    return len(mentions) == len(objects)


def test_only_the_answer_is_true(directory):
    rows = all_rows(directory, "multiple_choice")
    assert len(rows) == sum(SPLITS.values())
    for row in rows:
        assert len(set(row["options"])) == 5
        assert [is_true(option, row["objects"]) for option in row["options"]] == [
            number == row["answer"] for number in range(5)
        ]
        assert row["captions"] == [row["options"][row["answer"]]]
    assert set(Counter(row["answer"] for row in rows)) == set(range(5))


def test_choices_cannot_be_guessed_without_the_clip(directory):
    """The right option is not the one most like the others, nor the only one that is possible or likely."""
    total = right = 0
    for split in SPLITS:
        for row in load(directory, "multiple_choice", split):
            scenes = [parse(option)[0] for option in row["options"]]
            pairs = [{(thing["shape"], thing["colour"]) for thing in scene} for scene in scenes]
            assert len({bool(some & set(HELD_OUT_PAIRS)) for some in pairs}) == 1
            assert all(
                ("size" in thing) != (thing["motion"] in ("growing", "shrinking")) for s in scenes for thing in s
            )
            alike = [
                sum(a.get(name) == b.get(name) for other in scenes for a, b in zip(scene, other) for name in a)
                for scene in scenes
            ]
            best = [number for number in range(5) if alike[number] == max(alike)]
            right += (row["answer"] in best) / len(best)
            total += 1
    assert 0.05 < right / total < 0.35  # chance is 0.2


# --- Actions -------------------------------------------------------------------------------------------------


def test_actions_are_those_of_the_largest_object(directory):
    table = load(directory, "action_recognition")
    assert isinstance(table.features["label"], ClassLabel)
    names = table.features["label"].names
    assert names == list(MOTION_WORDS.values())
    order = ["small", "medium", "large"]
    expected = {}
    for row in load(directory, "retrieval"):
        sizes = sorted((order.index(entry["size"]), number) for number, entry in enumerate(row["objects"]))
        if len(sizes) == 1 or sizes[-1][0] > sizes[-2][0]:
            expected[row["video_id"]] = MOTION_WORDS[row["objects"][sizes[-1][1]]["motion"]]
    assert {row["video_id"]: names[row["label"]] for row in table} == expected
    assert all(row["captions"] == [names[row["label"]]] for row in table)
    assert 20 < table.num_rows < SPLITS["train"]


def test_actions_of_single_objects_keep_all_clips(tmp_path):
    make_corpus(
        "moving_shapes", tmp_path / "c", train=4, val=0, test=0, test_unseen=0, objects=1, frames=2, progress=False
    )
    table = load(tmp_path / "c", "action_recognition")
    assert [MOTION_WORDS[row["objects"][0]["motion"]] for row in table] == [row["captions"][0] for row in table]
    assert table.num_rows == 4


def test_a_split_without_actions_is_refused(tmp_path, monkeypatch):
    make_corpus("moving_shapes", tmp_path / "c", train=1, val=0, test=0, test_unseen=0, frames=2, progress=False)
    monkeypatch.setattr("region_learner.corpora.synthetic.shapes_tasks._largest", lambda scene: None)
    with pytest.raises(CorpusError, match=r"no clip of split 'train' has one object larger .*objects=1"):
        load(tmp_path / "c", "action_recognition")


# --- All of them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["question_answering", "multiple_choice", "action_recognition"])
def test_tasks_are_the_same_each_time_and_streamed(directory, task):
    table = load(directory, task)
    assert table.to_list() == load(directory, task).to_list()
    stream = load(directory, task, streaming=True)
    assert isinstance(stream, IterableDataset)
    assert stream.features == table.features
    assert list(stream) == table.to_list()


def test_retrieval_is_the_default(directory):
    assert load(directory, "retrieval").to_list() == load_corpus("moving_shapes", directory).to_list()


def test_unknown_task(directory):
    with pytest.raises(CorpusError, match=r"unknown task 'multiple_choices' .*did you mean 'multiple_choice'\?"):
        load(directory, "multiple_choices")

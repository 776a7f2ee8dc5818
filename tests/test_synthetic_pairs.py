"""Tests for compositional pairs and object phrases, against the generators and against separate parsers."""

import dataclasses
import re
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Value

from region_learner.corpora import CorpusError, load_corpus, make_corpus, object_phrases
from region_learner.corpora.synthetic import (
    DRIFTING_LETTERS,
    MOVING_SHAPES,
    DriftingLettersOptions,
    MovingShapesOptions,
    base,
    letters,
    shapes_captions,
    shapes_tasks,
)
from region_learner.corpora.synthetic.compositional import compositional_rows
from region_learner.corpora.synthetic.letters import LETTERS_WORDING
from region_learner.corpora.synthetic.shapes_captions import SHAPES_WORDING
from region_learner.corpora.synthetic.shapes_scenes import HELD_OUT_PAIRS

from . import test_synthetic_letters, test_synthetic_shapes

SCENES = 700


def tell_letters(scene, _, rng):
    return letters._tell(base.pick(rng, ("list", "clauses")), scene, rng)


CORPORA = {
    "moving_shapes": SimpleNamespace(
        corpus=MOVING_SHAPES,
        options=MovingShapesOptions(train=SCENES, objects=(1, 5)),
        split="train",
        wording=SHAPES_WORDING,
        tell=shapes_captions.tell_everything,
        parse=lambda caption: test_synthetic_shapes.parse(caption)[0],
        is_possible=lambda scene: shapes_tasks._is_possible(scene, "train"),
    ),
    "unseen": SimpleNamespace(
        corpus=MOVING_SHAPES,
        options=MovingShapesOptions(test_unseen=SCENES),
        split="test_unseen",
        wording=SHAPES_WORDING,
        tell=shapes_captions.tell_everything,
        parse=lambda caption: test_synthetic_shapes.parse(caption)[0],
        is_possible=lambda scene: shapes_tasks._is_possible(scene, "test_unseen"),
    ),
    "drifting_letters": SimpleNamespace(
        corpus=DRIFTING_LETTERS,
        options=DriftingLettersOptions(train=SCENES, letters=(1, 4)),
        split="train",
        wording=LETTERS_WORDING,
        tell=tell_letters,
        parse=lambda caption: test_synthetic_letters.parse(caption)[0],
        is_possible=letters._is_possible,
    ),
}


@pytest.fixture(scope="module", params=CORPORA)
def made(request):
    """Plans a corpus without rendering it, and returns its scenes, with a row and a full caption for each."""
    one = CORPORA[request.param]
    scenes = base.plan_scenes(one.corpus, one.options, one.split)
    rows = [
        {
            "video_id": f"clip-{number}",
            "captions": [one.tell(scene, [], np.random.default_rng(number)), "another"],
            "objects": [dataclasses.asdict(thing) for thing in scene],
        }
        for number, scene in enumerate(scenes)
    ]
    pairs = compositional_rows(rows, one.wording, one.is_possible, one.split)
    return SimpleNamespace(**vars(one), scenes=scenes, rows=rows, pairs=pairs)


def said(made, caption):
    """Returns what a caption says about each object, in the format of a row's `objects`."""
    names = [field.name for field in dataclasses.fields(made.wording.thing)]
    return [{name: mention.get(name, "medium") for name in names} for mention in made.parse(caption)]


def multiset(objects):
    return Counter(tuple(sorted(entry.items())) for entry in objects)


# --- Phrases -------------------------------------------------------------------------------------------------


def test_phrases_are_those_of_the_generator(made, monkeypatch):
    """The generator is patched to mark where each phrase begins and ends, with the same random numbers."""
    noun_phrase = shapes_captions._noun_phrase
    marked = {name: tuple(tuple(f"{form}>" for form in forms) for forms in some) for name, some in
              shapes_captions.MOTIONS.items()}  # fmt: skip
    monkeypatch.setattr(shapes_captions, "_noun_phrase", lambda *arguments: f"<{noun_phrase(*arguments)}")
    monkeypatch.setattr(shapes_captions, "MOTIONS", marked)
    forms = {name: (*form[:2], f"<{form[2]}>") for name, form in letters.FORMS.items()}
    monkeypatch.setattr(letters, "FORMS", forms)
    captions = [made.tell(scene, [], np.random.default_rng(number)) for number, scene in enumerate(made.scenes)]
    monkeypatch.undo()
    for caption, row in zip(captions, made.rows):
        assert caption.replace("<", "").replace(">", "") == row["captions"][0]
        expected = [part.split(">")[0] for part in caption.split("<")[1:]]
        spans = object_phrases(row)
        assert [row["captions"][0][start:end] for start, end in spans] == expected
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert len(spans) == len(row["objects"])


def test_rows_without_phrases(made):
    # Other kinds of captions leave these words out: the size of a shape, the color of a letter.
    words = test_synthetic_letters.COLOUR if made.corpus is DRIFTING_LETTERS else "small|little|tiny|large|big|huge"
    row = next(row for row in made.rows if len(row["objects"]) > 1 and re.search(rf" ({words}) ", row["captions"][0]))
    caption, objects = row["captions"][0], row["objects"]
    for changed, message in [
        ({"captions": []}, "needs 'objects' and 'captions'"),
        ({"objects": []}, "needs .objects. and .captions."),
        ({"captions": [caption + " slowly"]}, "does not describe all objects"),
        ({"objects": objects[:-1]}, "does not describe all objects"),
        ({"objects": objects[::-1]}, "does not describe all objects"),
        ({"objects": [{"name": "cat"}]}, "are neither shapes nor letters: name"),
        ({"captions": [re.sub(rf" ({words}) ", " ", caption, count=1)]}, "does not describe all objects"),
    ]:
        with pytest.raises(CorpusError, match=message):
            object_phrases(row | changed)
    with pytest.raises(
        CorpusError, match=r"needs 'objects' and 'captions' that are not empty .columns: video.: use a row of"
    ):
        object_phrases({"video": "a.mp4"})


# --- Pairs ---------------------------------------------------------------------------------------------------


def test_pairs_differ_by_one_swap(made):
    """The right caption is the stored one. The wrong one has the same words, with two of them swapped."""
    clips = {row["video_id"]: row for row in made.rows}
    for row in made.pairs:
        right, wrong = row["options"][row["answer"]], row["options"][1 - row["answer"]]
        assert len(row["options"]) == 2
        assert row["captions"] == [right] == clips[row["video_id"]]["captions"][:1]
        words, others = ([word.strip(",;") for word in text.split() if word not in ("a", "an")] for text in
                         (right, wrong))  # fmt: skip
        assert Counter(words) == Counter(others)
        truth, claim = said(made, right), said(made, wrong)
        assert truth == row["objects"]
        changed = [number for number, (a, b) in enumerate(zip(truth, claim, strict=True)) if a != b]
        assert len(changed) == 2
        names = {"event": ("event", "into")}.get(row["aspect"], (row["aspect"],))
        for here, there in (changed, changed[::-1]):
            assert claim[here] == truth[here] | {name: truth[there][name] for name in names}


def test_wrong_captions_are_false_and_possible(made):
    for row in made.pairs:
        claim = said(made, row["options"][1 - row["answer"]])
        assert multiset(claim) != multiset(row["objects"])
        if made.corpus is DRIFTING_LETTERS:
            assert all(entry["into"] != entry["colour"] for entry in claim)
            glyphs = [entry[name] for entry in claim for name in ("glyph", "into") if entry[name] in letters.GLYPHS]
            assert len(set(glyphs)) == len(glyphs)
            continue
        looks = {(entry["shape"], entry["colour"]) for entry in claim}
        assert len(looks) == len(claim)
        assert bool(looks & set(HELD_OUT_PAIRS)) == (made.split == "test_unseen")
        for entry in claim:
            assert (entry["size"] == "medium") == (entry["motion"] in ("growing", "shrinking"))
            assert not (entry["motion"] == "spinning" and entry["shape"] in ("circle", "ring"))


def test_articles_are_right(made):
    vowels = "EHLMR" if made.corpus is DRIFTING_LETTERS else "aeiou"
    for row in made.pairs:
        for caption in row["options"]:
            for article, word in zip(caption.split(), caption.split()[1:]):
                if article in ("a", "an"):
                    assert (article == "an") == (word[0] in vowels or word == "orange"), caption


def test_every_clip_with_a_possible_swap_gives_a_pair(made):
    """The expected clips are found by trying all swaps of attributes in a naive loop."""
    expected = []
    for row in made.rows:
        possible = False
        for names in made.wording.aspects.values():
            for i in range(len(row["objects"])):
                for j in range(i):
                    things = [dict(entry) for entry in row["objects"]]
                    for name in names:
                        things[i][name], things[j][name] = things[j][name], things[i][name]
                    scene = tuple(made.wording.thing(**entry) for entry in things)
                    possible |= multiset(things) != multiset(row["objects"]) and made.is_possible(scene)
        expected += [row["video_id"]] * possible
    assert [row["video_id"] for row in made.pairs] == expected
    assert 0.5 * SCENES < len(expected) < SCENES


def test_nothing_but_the_clip_tells_which_is_right(made):
    """Neither position, length and alphabetical order, nor the number of possible swaps gives the answer away."""
    count = len(made.pairs)
    assert abs(np.mean([row["answer"] for row in made.pairs]) - 0.5) < 2.5 / count**0.5
    aspects = Counter(row["aspect"] for row in made.pairs)
    assert set(aspects) == set(made.wording.aspects)
    assert min(aspects.values()) > 0.5 * count / len(aspects)
    guesses = []
    for row in made.pairs:
        right, wrong = row["options"][row["answer"]], row["options"][1 - row["answer"]]
        chances = []
        for caption in (right, wrong):  # probability of this swap if the caption were the true one
            scene = tuple(made.wording.thing(**entry) for entry in said(made, caption))
            swaps = made.wording.swaps(scene, made.is_possible)
            chances.append(1 / len(swaps) / len(swaps[row["aspect"]]))
        guesses.append(0.5 + 0.5 * np.sign(round(chances[0] - chances[1], 9)))
        assert abs(len(right) - len(wrong)) <= 2
    assert abs(np.mean(guesses) - 0.5) < 0.02
    shorter = [np.sign(len(row["options"][1 - row["answer"]]) - len(row["options"][row["answer"]]))
               for row in made.pairs]  # fmt: skip
    first = [row["options"][row["answer"]] < row["options"][1 - row["answer"]] for row in made.pairs]
    assert abs(np.mean(shorter)) < 0.04
    assert abs(np.mean(first) - 0.5) < 2.5 / count**0.5


def test_a_clip_gives_the_same_pair_in_every_corpus(made):
    again = compositional_rows(made.rows[::-1][:200], made.wording, made.is_possible, made.split)
    pairs = {row["video_id"]: row for row in made.pairs}
    assert all(pairs[row["video_id"]] == row for row in again)


# --- Loading -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["moving_shapes", "drifting_letters"])
def stored(request, tmp_path_factory):
    """Returns the name and the directory of a small corpus."""
    name = request.param
    sizes = {"train": 12, "val": 0, "test": 6, "size": 48, "frames": 4}
    sizes |= {"test_unseen": 4} if name == "moving_shapes" else {}
    return name, make_corpus(name, tmp_path_factory.mktemp(name) / "c", workers=1, progress=False, **sizes)


def test_pairs_of_a_corpus(stored):
    name, directory = stored
    for split in ("train", "test", *["test_unseen"] * (name == "moving_shapes")):
        clips = {row["video_id"]: row for row in load_corpus(name, directory, split)}
        table = load_corpus(name, directory, split, task="compositional")
        new = ["negative_captions", "options", "answer", "aspect"]
        assert table.column_names == [*next(iter(clips.values())), *new]
        assert table.features["answer"] == Value("int64")
        assert 0 < len(table) <= len(clips)
        for row in table:
            clip = clips[row["video_id"]]
            assert row["captions"] == clip["captions"][:1]
            assert all(row[column] == clip[column] for column in ("video", "masks", "objects"))
            assert row["negative_captions"][0] == row["options"][1 - row["answer"]]
            for wrong in row["negative_captions"]:  # the same words in another order, except for "a" and "an"
                assert wrong != row["captions"][0]
                texts = [re.sub(r"\ban\b", "a", text) for text in (wrong, row["captions"][0])]
                assert sorted(re.findall(r"\w+", texts[0])) == sorted(re.findall(r"\w+", texts[1]))
            assert object_phrases(row) == object_phrases(clip)
        assert list(load_corpus(name, directory, split, task="compositional", streaming=True)) == table.to_list()
    assert load_corpus(name, directory, task="retrieval").to_list() == load_corpus(name, directory).to_list()
    with pytest.raises(CorpusError, match=rf"unknown task 'compositionl' of {name} .* mean 'compositional'\?"):
        load_corpus(name, directory, task="compositionl")


def test_choices_have_phrases_too(stored):
    name, directory = stored
    if name == "moving_shapes":
        for row in load_corpus(name, directory, task="multiple_choice"):
            assert len(object_phrases(row)) == len(row["objects"])


@pytest.mark.parametrize(("name", "things"), [("moving_shapes", "objects"), ("drifting_letters", "letters")])
def test_clips_without_a_pair(name, things, tmp_path, caplog):
    sizes = {"val": 0, "test": 0, "size": 48, "frames": 4} | ({"test_unseen": 0} if name == "moving_shapes" else {})
    one = make_corpus(name, tmp_path / "one", progress=False, train=3, **{things: 1}, **sizes)
    with pytest.raises(
        CorpusError, match=r"no clip of split 'train' has two objects between which an attribute can be swapped"
    ):
        load_corpus(name, one, task="compositional")
    alone = load_corpus(name, one, negative_captions=True)
    assert alone["negative_captions"][:] == [[]] * 3
    assert alone.features["negative_captions"].feature == Value("string")
    some = make_corpus(name, tmp_path / "some", progress=False, train=12, **{things: (1, 2)}, **sizes)
    rows = load_corpus(name, some).to_list()
    with_negatives = load_corpus(name, some, negative_captions=True).to_list()
    with caplog.at_level("INFO"):
        table = load_corpus(name, some, task="compositional")
    assert 0 < len(table) < 12
    negatives = {row["video_id"]: row["negative_captions"] for row in table}
    assert with_negatives == [row | {"negative_captions": negatives.get(row["video_id"], [])} for row in rows]
    with pytest.raises(CorpusError, match="negative_captions are for the task 'retrieval', not 'compositional'"):
        load_corpus(name, some, task="compositional", negative_captions=True)
    assert f"leaving out {12 - len(table)} of 12 clips: nothing can be swapped in them" in caplog.text

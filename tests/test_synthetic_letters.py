"""Tests of the drifting letters: captions, pixels and masks agree, checked independently; making and loading them."""

import json
import re
from collections import Counter

import av
import numpy as np
import pytest
from datasets import IterableDataset
from PIL import Image, ImageDraw, ImageFont

from region_learner.cli import main
from region_learner.corpora import (
    CorpusError,
    corpus_options,
    load_corpus,
    load_masks,
    make_corpus,
)
from region_learner.corpora.synthetic import DRIFTING_LETTERS, DriftingLettersOptions, base, letters
from region_learner.training import parse_arguments, train

from .test_synthetic_shapes import centroids, decode
from .test_training import TINY

SIZES = {"train": 40, "val": 8, "test": 8}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("letters") / "corpus"
    return make_corpus("drifting_letters", folder, workers=2, size=64, progress=False, **SIZES)


@pytest.fixture(scope="module")
def rows(directory):
    return [row for split in SIZES for row in load_corpus("drifting_letters", directory, split=split)]


@pytest.fixture(scope="module")
def single_letters(tmp_path_factory):
    """Returns rows with one large letter per clip and no clutter, so that its pixels are easy to identify."""
    folder = tmp_path_factory.mktemp("single") / "corpus"
    options = {"train": 90, "val": 0, "test": 0, "size": 160, "letters": 1, "distractors": 0}
    make_corpus("drifting_letters", folder, workers=2, progress=False, **options)
    return load_corpus("drifting_letters", folder).to_list()


# --- What captions say ---------------------------------------------------------------------------------------

DIGITS = {"two": "2", "three": "3", "four": "4", "seven": "7"}
GLYPH = "[CEHJKLMRTUVW2347]|two|three|four|seven"
COLOUR = "red|orange|yellow|green|blue|pink|white|black"
EVENTS = {
    "stays": "(stays|staying) put|(keeps|keeping) its place",
    "left": "(goes|going) left|(travels|travelling) to the left",
    "right": "(goes|going) right|(travels|travelling) to the right",
    "up": "(goes|going) up|climbs|climbing",
    "down": "(goes|going) down|descends|descending",
    "appears": "(shows|showing) up|appears|appearing|comes in|coming in",
    "disappears": "vanishes|vanishing|disappears|disappearing|drops out|dropping out",
    "blinks": "blinks|blinking|(goes|going) on and off",
    "becomes": rf"(turns|turning) into an? (?P<into>{GLYPH})|(is|being) replaced by an? (?P<into2>{GLYPH})",
    "recolours": rf"(turns|turning) (?P<into>{COLOUR})|(changes|changing) to (?P<into2>{COLOUR})",
}
LOOK = re.compile(rf"({GLYPH})( then (?P<new>{GLYPH}))? in ({COLOUR})( then (?P<other>{COLOUR}))?")
CLAUSE = re.compile(rf"(?:(?:an? |the )?({COLOUR}) )?({GLYPH}) (.+)")


def parse(caption):
    """Returns what a caption says about each letter it mentions, and the word between them if it gives their order."""
    body = re.sub(r"^(letters on screen: |on screen: |overlay of |text overlay: |characters: )", "", caption)
    (link,) = set(re.findall("; | / | \\+ |, | before | after ", body)) or {""}
    mentions = []
    for clause in body.split(link) if link else [body]:
        if match := LOOK.fullmatch(clause):
            change = {"new": "becomes", "other": "recolours"}
            events = {change[name]: word for name, word in match.groupdict().items() if word}
            assert len(events) <= 1
            mention = {"glyph": match[1], "colour": match[4], "into": ""}
            for event, into in events.items():
                mention |= {"event": event, "into": into}
        else:
            colour, glyph, words = CLAUSE.fullmatch(clause).groups()
            ((event, match),) = [
                (name, match) for name, pattern in EVENTS.items() if (match := re.fullmatch(pattern, words))
            ]
            into = next((word for word in match.groupdict().values() if word), "")
            mention = {"glyph": glyph, "event": event, "into": into} | ({"colour": colour} if colour else {})
        mentions.append({name: DIGITS.get(value, value) for name, value in mention.items()})
    return mentions, link.strip() if link in (" before ", " after ") else None


def moments(row):
    """Returns the frame in which something happens to each letter, from the corpus's plan, or None if nothing does."""
    split, index = row["video_id"].rsplit("-", 1)
    options = DriftingLettersOptions(size=64, **SIZES)
    scene = tuple(letters.Letter(**entry) for entry in row["objects"])
    tracks = letters._lay_out(scene, options, base._rng(options, split, int(index), purpose=1))
    return [track.moment for track in tracks]


def test_captions_are_true(rows):
    orders = 0
    for row in rows:
        assert len(set(row["captions"])) == 4
        for number, caption in enumerate(row["captions"]):
            mentions, order = parse(caption)
            found = [
                [i for i, entry in enumerate(row["objects"]) if mention.items() <= entry.items()]
                for mention in mentions
            ]
            assert all(len(matching) == 1 for matching in found), (caption, row["objects"])
            told = [matching[0] for matching in found]
            assert len(set(told)) == len(told) >= 2
            if number == 0:
                assert told == list(range(len(row["objects"])))
                assert all(set(mention) == {"glyph", "colour", "event", "into"} for mention in mentions)
            elif number != 2:
                assert sorted(told) == list(range(len(row["objects"])))
            if order:
                orders += 1
                first, second = (moments(row)[i] for i in (told if order == "before" else reversed(told)))
                assert second - first >= 2, caption
    assert orders >= 4


def test_captions_use_the_right_article():
    rng = np.random.default_rng(0)
    drawn = [letters.Letter(glyph, "orange", "becomes", "R") for glyph in letters.GLYPHS]
    drawn += [letters.Letter("C", "red", "becomes", glyph) for glyph in letters.GLYPHS]
    for letter in drawn:
        for form in ("list", "clauses"):
            caption = letters._tell(form, [letter], rng)
            assert not re.search(r"\ba ([EHLMR]\b|orange)|\ban [^EHLMRo]", caption), caption


def test_full_captions_describe_no_other_clip():
    """A perfect model can find each of a thousand clips by its full captions, and by nearly all other captions."""
    options = DriftingLettersOptions(test=1000)
    scenes = base.plan_scenes(DRIFTING_LETTERS, options, "test")
    entries = [[vars(letter) for letter in scene] for scene in scenes]
    rng = np.random.default_rng(0)
    ambiguous = Counter()
    for scene in scenes[::20]:
        for form in ("list", "clauses", "looks", "events"):
            mentions, _ = parse(letters._tell(form, scene, rng))
            fitting = [s for s in entries if all(any(m.items() <= e.items() for e in s) for m in mentions)]
            ambiguous[form] += len(fitting) > 1
    assert ambiguous["list"] == ambiguous["clauses"] == 0
    assert ambiguous["looks"] + ambiguous["events"] <= 10


# --- Pixels and masks ----------------------------------------------------------------------------------------


def shrunk(masks, pixels):
    """Returns Boolean masks (T, H, W) without everything within `pixels` pixels of their border."""
    inner = masks.copy()
    for _ in range(pixels):
        inner[:, 1:-1, 1:-1] &= inner[:, :-2, 1:-1] & inner[:, 2:, 1:-1] & inner[:, 1:-1, :-2] & inner[:, 1:-1, 2:]
    return inner


def outline(picture):
    """Returns the Boolean mask (H, W) of a glyph, cropped and resized to a height of 24 pixels."""
    picture = Image.fromarray(picture.astype(np.uint8) * 255)
    picture = picture.crop(picture.getbbox())
    return np.asarray(picture.resize((max(1, round(24 * picture.width / picture.height)), 24))) > 127


@pytest.fixture(scope="module")
def templates():
    """Returns outlines of all glyphs in both weights, rotated by several angles."""
    font = ImageFont.load_default(100)
    result = []
    for glyph in letters.GLYPHS:
        for stroke in (6, 9):
            picture = Image.new("L", (240, 240))
            ImageDraw.Draw(picture).text((120, 120), glyph, fill=255, font=font, stroke_width=stroke, anchor="mm")
            result += [(glyph, outline(np.asarray(picture.rotate(angle)) > 127)) for angle in range(-15, 16, 3)]
    return result


def read(mask, templates):
    """Returns the glyph that a Boolean mask (H, W) looks most like. It may be slightly rotated, but not mirrored."""
    seen = outline(mask)

    def likeness(template):
        width = max(seen.shape[1], template.shape[1])
        a, b = (
            np.pad(x, ((0, 0), ((width - x.shape[1]) // 2, -((x.shape[1] - width) // 2)))) for x in (seen, template)
        )
        return (a & b).sum() / (a | b).sum()

    return max(templates, key=lambda entry: likeness(entry[1]))[0]


def test_letters_look_and_act_as_described(single_letters, templates):
    checked = Counter()
    for row in single_letters:
        (entry,) = row["objects"]
        event, into = entry["event"], entry["into"]
        frames, masks = decode(row["video"]).astype(int), load_masks(row).astype(bool)
        there = np.flatnonzero(masks.any(axis=(1, 2)))
        shown = "".join("01"[t in there] for t in range(8))
        pattern = {"appears": "0{4,6}1+", "disappears": "1{2,4}0+", "blinks": "(1100|0011){2}"}.get(event, "1{8}")
        assert re.fullmatch(pattern, shown), (event, shown)

        first, last = there[0], there[-1]
        after = {"becomes": {"glyph": into}, "recolours": {"colour": into}}.get(event, {})
        inner = shrunk(masks, 7)  # without the outline, which is 3 to 4 pixels wide, and the blur of the codec
        for t, wanted in ((first, entry), (last, entry | after)):
            assert read(masks[t], templates) == wanted["glyph"], (row["video_id"], entry)
            if inner[t].sum() > 50:
                seen = np.median(frames[t][inner[t]], axis=0)
                distances = {name: np.abs(seen - rgb).max() for name, rgb in letters.COLOURS.items()}
                assert min(distances, key=distances.get) == wanted["colour"]
                assert distances[wanted["colour"]] < 30
                checked[wanted["colour"]] += 1

        x, y = centroids(masks, True).T
        dx, dy = x[last] - x[first], y[last] - y[first]
        far, near = 160 * 0.34, 15 if event == "becomes" else 2
        if event in ("left", "right"):
            assert (dx if event == "right" else -dx) > far
            assert abs(dy) < near
        elif event in ("up", "down"):
            assert (dy if event == "down" else -dy) > far
            assert abs(dx) < near
        else:
            assert np.hypot(dx, dy) < 2 * near
        if event in ("becomes", "recolours"):
            changes = np.abs(np.diff(frames, axis=0)).max(axis=-1) > 90  # (T - 1, H, W)
            (moment,) = np.flatnonzero((changes & (masks[1:] | masks[:-1])).sum(axis=(1, 2)) > 150) + 1
            assert 3 <= moment <= 5
        assert not masks[:, [0, -1]].any(), "a letter leaves the frame"
        assert not masks[:, :, [0, -1]].any(), "a letter leaves the frame"
        checked[event] += 1
    assert set(checked) == {*letters.EVENTS, *letters.COLOURS}


def test_masks_cover_the_letters(single_letters):
    """Colors that no background has appear under the masks and nowhere else."""
    checked = Counter()
    for row in single_letters:
        (entry,) = row["objects"]
        if entry["event"] == "recolours" or entry["colour"] not in ("red", "green", "blue", "pink"):
            continue
        masks = load_masks(row).astype(bool)
        rgb = np.array(letters.COLOURS[entry["colour"]])
        like = np.abs(decode(row["video"]) - rgb).max(axis=-1) < 40
        assert (like & masks).sum() > 0.98 * like.sum()
        assert (like & masks).sum() > 0.3 * masks.sum()
        checked[entry["colour"]] += 1
    assert len(checked) == 4


def test_backgrounds_move(single_letters):
    for row in single_letters[:20]:
        frames = decode(row["video"]).astype(float).mean(axis=-1)
        free = ~load_masks(row).any(axis=0)
        change = np.abs(frames[1:] - frames[:-1])[:, free].mean(axis=-1)
        assert change.min() > 0.5
        assert np.abs(frames[-1] - frames[0])[free].mean() > 4


def test_letters_stay_visible(rows):
    shares = []
    for row in rows:
        masks = load_masks(row)
        assert masks.shape == (8, 64, 64)
        assert masks.max() == len(row["objects"])
        for label, entry in enumerate(row["objects"], start=1):
            areas = (masks == label).sum(axis=(1, 2))
            shown = {"appears": 2, "disappears": 2, "blinks": 4}.get(entry["event"], 8)
            assert (areas > 0).sum() >= shown, (row["video_id"], entry)
            shares.append(np.median(areas[areas > 0]) / 64**2)
    assert np.quantile(shares, 0.02) > 0.01
    assert np.max(shares) < 0.2


def test_glyphs_can_be_told_apart():
    assert not {"O", "0", "I", "1", "A"} & set(letters.GLYPHS)
    pictures = {glyph: np.asarray(letters._glyph(glyph, 100, 5)) > 127 for glyph in letters.GLYPHS}
    for glyph, picture in pictures.items():
        ys, xs = np.nonzero(picture)
        assert abs(xs.min() + xs.max() + 1 - picture.shape[1]) <= 2, "not in the middle"
        assert abs(ys.min() + ys.max() + 1 - picture.shape[0]) <= 2, "not in the middle"
        for other, second in pictures.items():
            assert glyph == other or (picture & second).sum() < 0.8 * (picture | second).sum(), (glyph, other)


# --- Planning, writing and loading ---------------------------------------------------------------------------


def test_columns_and_videos(directory):
    for split, size in SIZES.items():
        dataset = load_corpus("drifting_letters", directory, split=split)
        assert dataset.num_rows == size
        assert dataset.column_names == ["video", "video_id", "captions", "masks", "objects"]
        assert dataset["video_id"][0] == f"{split}-000000"
        assert all(2 <= len(objects) <= 4 for objects in dataset["objects"])
    with av.open(dataset["video"][0]) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate, stream.frames) == (64, 64, 4, 8)
    stream = load_corpus("drifting_letters", directory, split="val", streaming=True)
    assert isinstance(stream, IterableDataset)
    assert list(stream) == load_corpus("drifting_letters", directory, split="val").to_list()
    assert load_corpus("folder", directory, split="test")["captions"][:] == dataset["captions"][:]


def test_clips_do_not_depend_on_workers_or_other_splits(directory, tmp_path):
    again = make_corpus(
        "drifting_letters", tmp_path / "again", workers=1, size=64, train=0, val=0, test=8, progress=False
    )
    assert (again / "test/metadata.jsonl").read_bytes() == (directory / "test/metadata.jsonl").read_bytes()
    for i in range(8):
        video, masks = f"test/clips/test-{i:06d}.mp4", f"test/masks/test-{i:06d}.npz"
        assert (again / video).read_bytes() == (directory / video).read_bytes()
        assert np.array_equal(load_masks(again / masks), load_masks(directory / masks))


def test_splits_share_no_scene():
    """This holds for plans of the full size, and across seeds, because a scene's split does not depend on the seed."""
    seen = {}
    for seed in (0, 1):
        options = DriftingLettersOptions(seed=seed, letters=(1, 2))
        for split in options.splits:
            planned = base.plan_scenes(DRIFTING_LETTERS, options, split)
            scenes = [tuple(sorted(scene)) for scene in planned]
            assert len(set(scenes)) == len(scenes) == getattr(options, split)
            seen.setdefault(split, set()).update(scenes)
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))


def test_no_glyph_twice_in_a_scene():
    options = DriftingLettersOptions(train=500)
    events = Counter()
    for scene in base.plan_scenes(DRIFTING_LETTERS, options, "train"):
        glyphs = [letter.glyph for letter in scene] + [letter.into for letter in scene if letter.event == "becomes"]
        assert len(set(glyphs)) == len(glyphs)
        assert all(letter.into != letter.colour for letter in scene)
        events.update(letter.event for letter in scene)
    assert set(events) == set(letters.EVENTS)
    assert min(events.values()) > 0.6 * max(events.values())


@pytest.mark.parametrize("frames", [4, 5, 7, 30])
def test_events_are_seen_in_clips_of_any_length(frames):
    rng = np.random.default_rng(0)
    for event in letters.EVENTS:
        for _ in range(20):
            moment, visible = letters._timing(event, frames, rng)
            assert visible.shape == (frames,)
            assert visible.all() == (event not in ("appears", "disappears", "blinks"))
            assert visible.any()
            if event == "blinks":
                assert (np.diff(visible.astype(int)) != 0).sum() == 3
            assert (moment is None) == (event not in ("appears", "disappears", "becomes", "recolours"))
            assert moment is None or 1 <= moment < frames


def test_largest_size(tmp_path):
    make_corpus(
        "drifting_letters", tmp_path / "c", train=1, val=0, test=0, size=1024, frames=4, captions=10, progress=False
    )
    (row,) = load_corpus("drifting_letters", tmp_path / "c")
    assert len(set(row["captions"])) == 10
    assert load_masks(row).shape == decode(row["video"]).shape[:3] == (4, 1024, 1024)


def test_options_that_cannot_be_met(tmp_path):
    for options, message in (
        ({"train": -1}, "train must be an integer from 0"),
        ({"size": 46}, "size must be an integer from 48"),
        ({"frames": 3}, "frames must be an integer from 4"),
        ({"letters": (3, 2)}, r"letters must be a number or \(least, most\)"),
        ({"letters": 5}, "letters must be an integer from 1 to 4"),
        ({"distractors": 21}, "distractors must be"),
        ({"captions": 0}, "captions must be"),
        ({"leters": 2}, r"unknown option 'leters' for corpus 'drifting_letters' .*; did you mean 'letters'"),
        ({"letters": 1, "test": 100_000}, "different scenes of 1 to 1 letters found for split 'test'"),
    ):
        with pytest.raises(CorpusError, match=message):
            make_corpus(
                "drifting_letters", tmp_path / "corpus", progress=False, **{"train": 0, "val": 0, "test": 0, **options}
            )
        assert not (tmp_path / "corpus").exists()


def test_other_corpora_are_left_alone(directory, tmp_path):
    with pytest.raises(CorpusError, match=r"other options \(size is 64, not 48\)"):
        load_corpus("drifting_letters", directory, size=48)
    with pytest.raises(
        CorpusError, match=r"task 'multiple_choice' of drifting_letters \(tasks: retrieval, compositional\)"
    ):
        load_corpus("drifting_letters", directory, task="multiple_choice")
    with pytest.raises(CorpusError, match=r"drifting_letters has no split 'test_unseen' \(splits: train, val, test\)"):
        load_corpus("drifting_letters", directory, split="test_unseen")
    with pytest.raises(CorpusError, match="is not a corpus of moving shapes"):
        make_corpus("moving_shapes", directory, overwrite=True, progress=False)
    with pytest.raises(CorpusError, match=r"no complete corpus of moving shapes .*corpus make --corpus moving_shapes"):
        load_corpus("moving_shapes", directory)
    with pytest.raises(CorpusError, match=r"is not a synthetic corpus .*; did you mean 'drifting_letters'\?"):
        make_corpus("drifting_leters", tmp_path / "c")
    assert {"workers", "progress", "letters", "val"} <= set(corpus_options("drifting_letters"))
    info = json.loads((directory / "corpus.json").read_text())
    assert info["splits"] == SIZES
    assert info["horizontal_flip"] is False


def test_made_in_the_cache_once(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    options = {"train": 2, "val": 0, "test": 0, "progress": False}
    first = load_corpus("drifting_letters", **options)
    monkeypatch.setattr(base, "_write_corpus", None)  # must not be called again
    assert load_corpus("drifting_letters", **options).to_list() == first.to_list()
    assert first["video"][0].startswith(str(tmp_path / "region_learner" / "drifting_letters-"))


def test_the_command_makes_a_corpus(tmp_path, capsys):
    options = '{"train": 2, "val": 0, "test": 0, "size": 48}'
    with pytest.raises(SystemExit) as exit_info:
        main(["corpus", "make", str(tmp_path / "c"), "--corpus", "drifting_letters", "--corpus-options", options])
    assert exit_info.value.code == 0
    assert load_corpus("drifting_letters", tmp_path / "c").num_rows == 2
    with pytest.raises(SystemExit) as exit_info:
        main(["corpus", "make", str(tmp_path / "d"), "--corpus", "msrvtt"])
    assert exit_info.value.code == 2
    assert "'msrvtt' is not a synthetic corpus" in capsys.readouterr().err


def test_trains_without_mirroring(directory, tmp_path):
    argv = [
        *TINY, "--corpus=drifting_letters", f"--data_dir={directory}", f"--output_dir={tmp_path}", "--max_steps=2",
        "--per_device_train_batch_size=4", "--test_split=test",
    ]  # fmt: skip
    results = train(*parse_arguments(argv))
    assert results["test"]["videos"] == 8
    assert json.loads((tmp_path / "processor_config.json").read_text())["video_processor"]["flip_probability"] == 0

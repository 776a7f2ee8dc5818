"""Tests moving shapes: the drawings, captions and label maps, and the scenes of each split."""

import json
import re
import shutil
from collections import Counter
from itertools import pairwise

import av
import numpy as np
import pytest
from datasets import IterableDataset

from region_learner.corpora import CorpusError, load_corpus, load_masks, make_corpus
from region_learner.corpora.synthetic import (
    MOVING_SHAPES,
    MovingShapesOptions,
    base,
    shapes_captions,
    shapes_drawing,
    shapes_scenes,
)
from region_learner.corpora.synthetic.base import plan_scenes
from region_learner.corpora.synthetic.shapes_scenes import HELD_OUT_PAIRS

SIZES = {"train": 24, "val": 8, "test": 8, "test_unseen": 12}
SPLITS = tuple(SIZES)


def decode(path):
    """Returns all frames of a video, (T, H, W, 3) uint8."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def shapes_dir(tmp_path_factory):
    return make_corpus(
        "moving_shapes", tmp_path_factory.mktemp("shapes") / "corpus", workers=2, progress=False, **SIZES
    )


@pytest.fixture(scope="module")
def shapes(shapes_dir):
    return {split: load_corpus("moving_shapes", shapes_dir, split=split) for split in SPLITS}


@pytest.fixture(scope="module")
def single_shapes(tmp_path_factory):
    """Clips with one object and no clutter, so that its pixels are easy to identify."""
    directory = tmp_path_factory.mktemp("single") / "corpus"
    options = {"train": 90, "val": 0, "test": 0, "test_unseen": 0, "objects": 1, "distractors": 0}
    make_corpus("moving_shapes", directory, progress=False, **options)
    return load_corpus("moving_shapes", directory).to_list()


def scene_of(row):
    return tuple(sorted(tuple(sorted(entry.items())) for entry in row["objects"]))


def test_a_smaller_scale_draws_smaller_objects():
    areas = {}
    for scale in (1, 0.5):
        options = MovingShapesOptions(size=256, distractors=20, scale=scale)
        scene = plan_scenes(MOVING_SHAPES, options, "train")[0]
        clip = base.make_clip(MOVING_SHAPES, options, "train", 0, scene)
        _, clutter, _ = shapes_drawing._distractor(options, np.random.default_rng(0))
        areas[scale] = (np.count_nonzero(clip.masks == len(scene)), clutter.radius.mean() ** 2)
    np.testing.assert_allclose(np.divide(areas[0.5], areas[1]), 0.25, rtol=0.1)
    for wrong in (0.4, 2, "small", True):
        with pytest.raises(CorpusError, match=r"scale must be a number from 0.5 to 1, not"):
            MovingShapesOptions(scale=wrong)


def test_a_corpus_from_before_an_option_existed_has_its_default(shapes_dir, tmp_path):
    directory = shutil.copytree(shapes_dir, tmp_path / "corpus")
    info = json.loads((directory / "corpus.json").read_text())
    del info["options"]["scale"]
    (directory / "corpus.json").write_text(json.dumps(info))
    assert load_corpus("moving_shapes", directory, scale=1).num_rows == SIZES["train"]
    make_corpus("moving_shapes", directory, progress=False, **SIZES)
    assert "scale" not in json.loads((directory / "corpus.json").read_text())["options"]  # it was not generated again
    with pytest.raises(CorpusError, match=r"other options \(scale is 1.0, not 0.5\)"):
        load_corpus("moving_shapes", directory, scale=0.5)


def test_shapes_columns(shapes):
    for split, dataset in shapes.items():
        assert dataset.num_rows == SIZES[split]
        assert dataset.column_names == ["video", "video_id", "captions", "masks", "objects"]
        assert dataset["video_id"][0] == f"{split}-000000"
        assert all(len(set(captions)) == 4 for captions in dataset["captions"])
        assert all(2 <= len(objects) <= 4 for objects in dataset["objects"])


def test_shapes_videos_are_real(shapes):
    row = shapes["train"][0]
    with av.open(row["video"]) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == ("h264" if "libx264" in av.codecs_available else "mpeg4")
        assert (stream.width, stream.height, stream.average_rate, stream.frames) == (96, 96, 8, 16)
    masks = load_masks(row)
    assert masks.dtype == np.uint8
    assert masks.shape == decode(row["video"]).shape[:3]
    assert np.array_equal(masks, load_masks(row["masks"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"masks": np.zeros(3, np.uint8)}, "is damaged: .* more than 100"),
        ({"other": np.zeros(3, np.uint8)}, "does not contain label maps"),
        (b"not a zip file", "does not contain label maps"),
        (b"", "does not contain label maps"),
    ],
)
def test_files_that_are_not_label_maps(tmp_path, monkeypatch, content, message):
    path = tmp_path / "clip.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez_compressed(path, **content)
    monkeypatch.setattr(base, "_MAX_MASKS", 100)
    with pytest.raises(CorpusError, match=rf"clip.npz {message}"):
        load_masks(path)


def test_shapes_do_not_depend_on_workers_or_other_splits(shapes_dir, tmp_path):
    again = make_corpus(
        "moving_shapes", tmp_path / "again", workers=1, progress=False, **{**SIZES, "train": 0, "val": 0}
    )
    for split in ("test", "test_unseen"):
        assert (again / split / "metadata.jsonl").read_bytes() == (shapes_dir / split / "metadata.jsonl").read_bytes()
    rows = load_corpus("moving_shapes", again, split="test")
    for row, first in zip(rows, load_corpus("moving_shapes", shapes_dir, split="test")):
        assert np.array_equal(decode(row["video"]), decode(first["video"]))
        assert np.array_equal(load_masks(row), load_masks(first))


def test_shapes_seed_changes_the_corpus(shapes):
    scenes = plan_scenes(MOVING_SHAPES, MovingShapesOptions(seed=1, train=24), "train")
    other = {tuple(sorted(tuple(sorted(vars(thing).items())) for thing in scene)) for scene in scenes}
    assert not other & {scene_of(row) for row in shapes["train"]}


def test_shapes_splits_share_no_scene():
    """Checks plans at full size, and across seeds, since the split of a scene does not depend on the seed."""
    seen = {}
    for seed in (0, 1):
        options = MovingShapesOptions(seed=seed, objects=(1, 2))
        for split in SPLITS:
            scenes = [tuple(sorted(scene)) for scene in plan_scenes(MOVING_SHAPES, options, split)]
            assert len(set(scenes)) == len(scenes) == getattr(options, split)
            seen.setdefault(split, set()).update(scenes)
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))


def test_shapes_unseen_pairs(shapes):
    def pairs(row):
        return {(entry["shape"], entry["colour"]) for entry in row["objects"]}

    for split in ("train", "val", "test"):
        assert not any(pairs(row) & set(HELD_OUT_PAIRS) for row in shapes[split])
    assert all(pairs(row) & set(HELD_OUT_PAIRS) for row in shapes["test_unseen"])
    # Each shape and each color is part of one unseen pair and of several seen ones.
    assert len({shape for shape, _ in HELD_OUT_PAIRS}) == len({colour for _, colour in HELD_OUT_PAIRS}) == 8


def test_invalid_options_of_shapes_are_refused(tmp_path):
    for options, message in (
        ({"train": -1}, "train must be an integer from 0"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"size": 97}, "size must be even"),
        ({"fps": 0}, "fps must be above 0"),
        ({"objects": (3, 2)}, r"objects must be a number or \(least, most\)"),
        ({"objects": 6}, "objects must be an integer from 1 to 5"),
        ({"captions": 0}, "captions must be"),
        ({"objects": 1, "test": 100_000}, "different scenes of 1 to 1 objects found for split 'test'"),
    ):
        with pytest.raises(CorpusError, match=message):
            make_corpus(
                "moving_shapes", tmp_path / "corpus", progress=False, **{"train": 0, "val": 0, "test": 0, **options}
            )
        assert not (tmp_path / "corpus").exists()


# What words mean, written down independently of the generator.
NOUNS = {
    "circle": "circle", "disc": "circle", "square": "square", "box": "square", "triangle": "triangle",
    "star": "star", "cross": "cross", "plus sign": "cross", "ring": "ring", "hoop": "ring", "heart": "heart",
    "crescent": "crescent", "moon": "crescent",
}  # fmt: skip
ADJECTIVES = {
    **dict.fromkeys(["small", "little", "tiny"], ("size", "small")),
    **dict.fromkeys(["large", "big", "huge"], ("size", "large")),
    **dict.fromkeys(["striped", "stripy"], ("texture", "striped")),
    **dict.fromkeys(["dotted", "spotted"], ("texture", "dotted")),
    **dict.fromkeys(["checkered", "chequered"], ("texture", "checkered")),
    "plain": ("texture", "plain"),
    **{
        colour: ("colour", colour)
        for colour in ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
    },
    "violet": ("colour", "purple"),
}
MOTION_STEMS = {
    "in a circle": "circling", "loop": "circling", "diagonally": "diagonal", "hop": "bouncing", "bounc": "bouncing",
    "bigger": "growing", "grow": "growing", "smaller": "shrinking", "shrink": "shrinking", "spin": "spinning",
    "rotat": "spinning", "still": "still", "rest": "still", "left": "left", "right": "right", "rises": "up",
    "rising": "up", "up": "up", "sink": "down", "down": "down",
}  # fmt: skip
NOUN_PHRASE = re.compile(rf"\ban? ((?:(?:{'|'.join(ADJECTIVES)}) )+)({'|'.join(NOUNS)})\b")
RELATION = re.compile(r" is (to the left of|left of|to the right of|right of|above|higher than|below|lower than) $")


def parse(caption):
    """Returns what a caption says about each object it mentions, and the relation of the first two, if any."""
    mentions, relation = [], None
    matches = list(NOUN_PHRASE.finditer(caption))
    rest = [caption[a.end() : b.start()] for a, b in pairwise(matches)] + [caption[matches[-1].end() :]]
    for match, tail in zip(matches, rest):
        if found := RELATION.search(tail):
            relation, tail = found[1].split()[-2 if found[1].endswith(("of", "than")) else -1], tail[: found.start()]
        mention = dict(ADJECTIVES[word] for word in match[1].split())
        mention["shape"] = NOUNS[match[2]]
        mention["motion"] = next(motion for stem, motion in MOTION_STEMS.items() if stem in tail)
        mentions.append(mention)
    return mentions, relation


def centroids(masks, label):
    """Returns the mean x and y of an object's pixels in each frame, (T, 2); NaN where it is hidden."""
    return np.array(
        [np.argwhere(frame == label).mean(axis=0)[::-1] if label in frame else [np.nan] * 2 for frame in masks]
    )


def test_shapes_captions_are_true(shapes):
    relations = 0
    for dataset in shapes.values():
        for row in dataset:
            for number, caption in enumerate(row["captions"]):
                mentions, relation = parse(caption)
                found = [
                    [i for i, entry in enumerate(row["objects"]) if mention.items() <= entry.items()]
                    for mention in mentions
                ]
                assert all(len(matching) == 1 for matching in found), (caption, row["objects"])
                if number == 0:
                    assert [matching[0] for matching in found] == list(range(len(row["objects"])))
                    for mention, entry in zip(mentions, row["objects"]):
                        assert set(mention) == set(entry) - ({"size"} if entry["size"] == "medium" else set())
                else:
                    assert len(mentions) >= 2
                if relation:
                    relations += 1
                    masks = load_masks(row)
                    first, second = (centroids(masks, matching[0] + 1) for matching in found[:2])
                    axis = 0 if relation in ("left", "right") else 1
                    sign = 1 if relation in ("left", "above", "higher") else -1
                    assert (sign * (second - first)[:, axis] > 0).all(), caption
    assert relations > 20


def test_shapes_first_captions_are_unambiguous():
    """Captions hardly ever fit another of a thousand test clips, so a perfect model finds nearly every clip."""
    options = MovingShapesOptions(test=1000)
    scenes = [[vars(thing) for thing in scene] for scene in plan_scenes(MOVING_SHAPES, options, "test")]
    rng = np.random.default_rng(0)
    ambiguous = Counter()
    for scene in scenes[::20]:
        objects = tuple(shapes_scenes.ShapeObject(**entry) for entry in scene)
        for tell in (shapes_captions.tell_everything, shapes_captions._tell_motions, shapes_captions._tell_some):
            mentions, _ = parse(tell(objects, [], rng))
            fitting = [s for s in scenes if all(any(m.items() <= e.items() for e in s) for m in mentions)]
            ambiguous[tell] += len(fitting) > 1
    assert ambiguous[shapes_captions.tell_everything] == 0
    assert ambiguous[shapes_captions._tell_motions] <= 1
    assert ambiguous[shapes_captions._tell_some] <= 3


def test_shapes_masks_match_pixels(single_shapes):
    """A plain object has its color inside its mask, and nothing outside the mask is as colorful."""
    checked = Counter()
    for row in single_shapes:
        (entry,) = row["objects"]
        if entry["texture"] != "plain":
            continue
        frames, masks = decode(row["video"]).astype(int), load_masks(row)
        inner = masks.astype(bool)
        for _ in range(3):  # away from outline and soft edge
            inner[:, 1:-1, 1:-1] &= inner[:, :-2, 1:-1] & inner[:, 2:, 1:-1] & inner[:, 1:-1, :-2] & inner[:, 1:-1, 2:]
        if inner.sum() < 200:
            continue
        seen = np.median(frames[inner], axis=0)
        distances = {name: np.abs(seen - rgb).max() for name, rgb in shapes_drawing._RGB.items()}
        assert min(distances, key=distances.get) == entry["colour"]
        assert distances[entry["colour"]] < 25
        if entry["colour"] != "white":
            colourful = frames.max(axis=-1) - frames.min(axis=-1) > 75
            assert (colourful & (masks > 0)).sum() > 0.85 * colourful.sum(), entry
            assert (colourful & inner).sum() > 0.95 * inner.sum(), entry
        checked[entry["colour"]] += 1
    assert sum(checked.values()) >= 10


def test_shapes_move_as_described(single_shapes):
    checked = Counter()
    for row in single_shapes:
        (entry,) = row["objects"]
        masks = load_masks(row)
        x, y = centroids(masks, 1).T
        area = (masks == 1).sum(axis=(1, 2))
        dx, dy, shift = x[-1] - x[0], y[-1] - y[0], np.hypot(np.ptp(x), np.ptp(y))
        as_described = {
            "left": dx < -28 and abs(dy) < 2,
            "right": dx > 28 and abs(dy) < 2,
            "up": dy < -28 and abs(dx) < 2,
            "down": dy > 28 and abs(dx) < 2,
            "diagonal": abs(dx) > 26 and abs(dy) > 26,
            "circling": np.ptp(x) > 20 and np.ptp(y) > 20 and np.hypot(dx, dy) < 9,
            "bouncing": np.ptp(x) < 2 and np.ptp(y) > 15 and (np.diff(np.sign(np.diff(y))) != 0).sum() >= 3,
            "growing": area[-1] > 4 * area[0],
            "shrinking": area[-1] < area[0] / 4,
            "spinning": shift < 14 and (masks[0] != masks[4]).mean() > 0.005,
            "still": (masks == masks[0]).all(),
        }
        assert as_described[entry["motion"]], (entry, dx, dy, shift)
        assert not masks[:, [0, -1]].any(), "an object leaves the frame"
        assert not masks[:, :, [0, -1]].any(), "an object leaves the frame"
        if entry["size"] in ("small", "large") and entry["shape"] == "circle":
            assert (area.max() > 500) == (entry["size"] == "large")
        checked[entry["motion"]] += 1
    assert set(checked) == set(shapes_scenes.MOTIONS)


@pytest.mark.parametrize("shape", shapes_scenes.SHAPES)
def test_shape_outlines(shape):
    """Outlines are centered, so that spinning does not look like moving, and within the reach that layouts assume."""
    v, u = np.mgrid[-2:2:401j, -2:2:401j]
    inside = shapes_drawing._signed_distance(shape, u, v) < 0
    assert np.hypot(u[inside].mean(), v[inside].mean()) < 0.13
    assert np.hypot(u[inside], v[inside]).max() < shapes_scenes.REACH
    assert 0.8 < inside.sum() * 0.01**2 < 3.2


def test_shapes_objects_stay_visible(shapes):
    for row in shapes["train"]:
        masks = load_masks(row)
        for label in range(1, len(row["objects"]) + 1):
            area = (masks == label).sum(axis=(1, 2))
            assert area.min() > 20
        assert masks.max() == len(row["objects"])


def test_shapes_open_as_a_folder_too(shapes_dir, shapes):
    folder = load_corpus("folder", shapes_dir, split="test_unseen")
    for column in ("video", "video_id", "captions", "objects"):
        assert folder[column][:] == shapes["test_unseen"][column][:]


def test_shapes_stream(shapes_dir, shapes):
    stream = load_corpus("moving_shapes", shapes_dir, split="val", streaming=True)
    assert isinstance(stream, IterableDataset)
    assert list(stream) == shapes["val"].to_list()


def test_shapes_corpus_json(shapes_dir):
    info = json.loads((shapes_dir / "corpus.json").read_text())
    assert info["splits"] == SIZES
    assert info["options"]["seed"] == 0
    assert info["horizontal_flip"] is False
    assert info["versions"]["av"] == av.__version__

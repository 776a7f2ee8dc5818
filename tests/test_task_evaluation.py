"""Tests the evaluation of each task against naive loops, on moving shapes and tiny models."""

import itertools
import logging
import math
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from region_learner.corpora import load_corpus, make_corpus
from region_learner.corpora.encoding import add_video_stream
from region_learner.evaluation import (
    Views,
    answer_accuracy,
    classification_accuracy,
    compute_answer_metrics,
    compute_classification_metrics,
    embed_corpus,
    multiple_choice_accuracy,
    zero_shot_accuracy,
)
from region_learner.evaluation.reading import ONE_VIEW, read_clips
from region_learner.evaluation.tasks import PROMPTS, TEMPLATES, read_prompts, top_k
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.training import RegionLearnerTrainer, RegionLearnerTrainingArguments
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .conftest import tiny_model, tiny_text_config
from .test_webdataset import write_shard

CLIPS = 14


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    sizes = {"train": CLIPS, "val": 0, "test": 0, "test_unseen": 0, "size": 48, "frames": 4, "objects": [1, 2]}
    return make_corpus(
        "moving_shapes", tmp_path_factory.mktemp("shapes") / "corpus", workers=1, progress=False, **sizes
    )


@pytest.fixture(scope="module")
def tables(directory):
    tasks = ("retrieval", "multiple_choice", "question_answering", "action_recognition")
    return {task: load_corpus("moving_shapes", directory, task=task) for task in tasks}


@pytest.fixture(scope="module")
def processor(tables):
    words = [text for row in tables["multiple_choice"] for text in row["options"]]
    words += tables["question_answering"]["question"][:]
    tokenizer = train_tokenizer(words, 400, 32)
    return RegionLearnerProcessor(RegionLearnerVideoProcessor.for_image_size(32, num_frames=2), tokenizer)


@pytest.fixture(scope="module")
def model():
    return tiny_model(text=tiny_text_config(vocab_size=400))


def cosine(model, processor, video, text):
    """Returns the cosine similarity of one video and one text, each alone in its batch."""
    with torch.no_grad():
        clip = processor(videos=[video], return_tensors="pt")
        one = model.get_video_features(**clip).pooler_output[0].double()
        other = model.get_text_features(**processor(text=[text], return_tensors="pt")).pooler_output[0].double()
    return float(one @ other / one.norm() / other.norm())


class Head(torch.nn.Module):
    """A stand-in for a model with a head. Its logits depend on the clip, and on the question if there is one."""

    def __init__(self, labels, seed=0):
        super().__init__()
        self.config = SimpleNamespace(id2label=dict(enumerate(labels)))
        generator = torch.Generator().manual_seed(seed)
        self.of_clip = torch.nn.Parameter(torch.randn(2 * 3 * 32 * 32, len(labels), generator=generator))
        self.of_word = torch.nn.Parameter(3 * torch.randn(400, len(labels), generator=generator))
        self.batches = []

    @property
    def device(self):
        return self.of_clip.device

    def forward(self, pixel_values_videos, input_ids=None, attention_mask=None):
        assert not self.training
        self.batches.append(len(pixel_values_videos))
        logits = pixel_values_videos.flatten(1) @ self.of_clip
        if input_ids is not None:
            logits = logits + (self.of_word[input_ids] * attention_mask[..., None]).sum(1)
        return SimpleNamespace(logits=logits)

    def get_video_features(self, pixel_values_videos):
        self.batches.append(len(pixel_values_videos))
        return SimpleNamespace(pooler_output=pixel_values_videos.flatten(1) @ self.of_clip)

    def get_text_features(self, input_ids, attention_mask, **_):
        return SimpleNamespace(pooler_output=(self.of_word[input_ids] * attention_mask[..., None]).sum(1))

    @staticmethod
    def classifier(question, video):
        return question + video


def damage(table, tmp_path, which):
    """Returns the table, with the videos whose ids are in `which` replaced by a file that is not a video."""
    path = tmp_path / "damaged.mp4"
    path.write_bytes(b"not a video")
    return table.map(lambda row: {"video": str(path) if row["video_id"] in which else row["video"]})


# --- Scores --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_is_the_chance_of_a_hit_with_ties_broken_at_random(k):
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 3, (40, 4)).astype(float), rng.integers(-1, 4, 40)
    for row, label, chance in zip(scores, labels, top_k(torch.tensor(scores), torch.tensor(labels), k).tolist()):
        hits = [label in np.lexsort((rng.random(4), -row))[:k] for _ in range(400)]
        assert abs(np.mean(hits) - chance) < 0.1
        if label < 0:
            assert chance == 0
        if k >= 4:
            assert chance == (label >= 0)


def test_top_k_of_scores_that_are_not_finite():
    """A class with a score of -inf is never right. NaN is refused, as it could count as right or wrong."""
    nan, inf = torch.nan, torch.inf
    scores = torch.tensor([[inf, 0.1, 0.1], [0.5, inf, 0.1], [0.5, -inf, 0.1], [-inf, -inf, -inf]])
    assert top_k(scores, torch.zeros(4, dtype=torch.long), 1).tolist() == [1, 0, 1, 0]
    with pytest.raises(ValueError, match="2 of 3 rows have scores that are NaN"):
        top_k(torch.tensor([[0.5, nan, 0.1], [0.5, 0.2, 0.1], [nan, nan, nan]]), torch.zeros(3, dtype=torch.long), 1)


def test_top_k_of_probabilities():
    """Even tiny probabilities are ranked like the logits that they come from."""
    logits = torch.arange(10.0)[None] * 40
    for label in range(10):
        chances = [top_k(scores.double(), torch.tensor([label]), 5) for scores in (logits, logits.double().softmax(1))]
        assert chances[0] == chances[1] == (label >= 5)
    with pytest.raises(ValueError, match="label 10 must be below the number of classes, 10"):
        top_k(logits, torch.tensor([10]), 1)


# --- Rows ----------------------------------------------------------------------------------------------------


def test_one_row_per_caption_equals_one_row_per_video(model, processor, tables):
    rows = [row | {"captions": [*row["captions"], "again"]} for row in tables["retrieval"].to_list()[:4]]
    single = [row | {"captions": [caption]} for row in rows for caption in row["captions"]]
    whole, split = (embed_corpus(model, processor, some, progress=False) for some in (rows, single))
    assert split.video_ids == whole.video_ids
    assert (split.texts, split.text_video_ids) == (whole.texts, whole.text_video_ids)
    assert split.metrics() == pytest.approx(whole.metrics())


def test_rows_that_cannot_be_retrieved_are_refused_before_a_video_is_read(model, processor):
    row = {"video": "missing.mp4", "video_id": "a", "captions": ["a dog"]}
    for rows, message in (
        ([], "has no rows"),
        ([{"video": "missing.mp4", "captions": ["a dog"]}], "no column 'video_id'"),
        ([{"video": "missing.mp4", "video_id": "a"}], "no column 'captions'"),
        ([row | {"captions": []}], "No row has a caption"),
    ):
        with pytest.raises(ValueError, match=message):
            embed_corpus(model, processor, rows, progress=False)


# --- Multiple choice -----------------------------------------------------------------------------------------


def test_multiple_choice_against_a_naive_loop(model, processor, tables):
    table = tables["multiple_choice"]
    right = 0
    for row in table:
        scores = [cosine(model, processor, row["video"], option) for option in row["options"]]
        right += int(np.argmax(scores) == row["answer"])
    result = multiple_choice_accuracy(model, processor, table, batch_size=4, progress=False)
    assert result == {"accuracy": pytest.approx(100 * right / CLIPS), "questions": CLIPS, "unreadable": []}


def test_multiple_choice_embeds_each_video_once(model, processor, tables, monkeypatch):
    rows = tables["multiple_choice"].to_list()[:3]
    questions = [row | {"options": row["options"][:n], "answer": 0} for row in rows for n in (2, 3, 5)]
    seen = []
    embed = type(model).get_video_features

    def counted(self, pixel_values_videos, **kwargs):
        seen.append(len(pixel_values_videos))
        return embed(self, pixel_values_videos, **kwargs)

    monkeypatch.setattr(type(model), "get_video_features", counted)
    result = multiple_choice_accuracy(model, processor, questions, progress=False)
    assert seen == [3]
    assert result["questions"] == 9
    monkeypatch.undo()
    right = [
        np.argmax([cosine(model, processor, row["video"], option) for option in row["options"]]) == row["answer"]
        for row in questions
    ]
    assert result["accuracy"] == pytest.approx(100 * np.mean(right))


def test_multiple_choice_by_aspect_against_a_naive_loop(model, processor, directory, tmp_path):
    rows = load_corpus("moving_shapes", directory, task="compositional").to_list()
    rows += [row | {"aspect": None} for row in rows[:1]] + [
        row | {"options": row["options"][:1] * 2} for row in rows[1:2]
    ]
    rows += [{name: value for name, value in rows[2].items() if name != "aspect"}]
    right: dict = {}
    for row in rows:
        first, second = (cosine(model, processor, row["video"], option) for option in row["options"])
        hit = 0.5 if row["options"][0] == row["options"][1] else float((second > first) == row["answer"])
        for aspect in (None, row.get("aspect")) if row.get("aspect") else (None,):
            right.setdefault(aspect, []).append(hit)
    expected = {f"accuracy_{aspect}": 100 * np.mean(hits) for aspect, hits in right.items() if aspect}
    assert set(expected) == {"accuracy_colour", "accuracy_motion", "accuracy_texture"}
    expected = {"accuracy": 100 * np.mean(right[None])} | expected
    result = multiple_choice_accuracy(model, processor, rows, batch_size=4, progress=False)
    assert {name: result.pop(name) for name in expected} == pytest.approx(expected)
    assert result == {"questions": len(rows), "unreadable": []}
    # Questions about an unreadable video do not count in any of the accuracies.
    lost = rows[0]["video_id"]
    table = damage(Dataset.from_list(rows[:-3]), tmp_path, [lost])
    result = multiple_choice_accuracy(model, processor, table, progress=False)
    kept = multiple_choice_accuracy(
        model, processor, [row for row in rows[:-3] if row["video_id"] != lost], progress=False
    )
    assert result == kept | {"unreadable": [lost]}


def test_aspects_must_be_words(model, processor, directory):
    rows = load_corpus("moving_shapes", directory, task="compositional").to_list()
    for aspect in (3, " ", ["colour"]):
        with pytest.raises(ValueError, match=r"row 1 \(video_id .*\): aspect must be a string that is not blank"):
            multiple_choice_accuracy(model, processor, [rows[0], rows[1] | {"aspect": aspect}])


def test_multiple_choice_ties_count_in_part(model, processor, tables):
    row = tables["multiple_choice"][0]
    for answer in (0, 3):
        same = [row | {"options": ["a red star"] * 4, "answer": answer}]
        assert multiple_choice_accuracy(model, processor, same, progress=False)["accuracy"] == 25


def test_multiple_choice_leaves_out_and_names_unreadable_videos(model, processor, tables, tmp_path, caplog):
    table = tables["multiple_choice"]
    lost = table["video_id"][2:4]
    with caplog.at_level(logging.WARNING):
        damaged = damage(table, tmp_path, lost)
        result = multiple_choice_accuracy(model, processor, damaged, batch_size=3, progress=False)
    kept = [row for row in table if row["video_id"] not in lost]
    expected = multiple_choice_accuracy(model, processor, kept, progress=False)
    assert result == expected | {"unreadable": lost}
    assert result["questions"] == CLIPS - 2
    assert f"2 of {CLIPS} videos cannot be read" in caplog.records[-1].message
    with pytest.raises(ValueError, match=f"2 of {CLIPS} videos cannot be read, more than max_unreadable=0"):
        multiple_choice_accuracy(model, processor, damage(table, tmp_path, lost), progress=False, max_unreadable=0)
    assert all(video_id in caplog.records[-1].message for video_id in lost)
    with pytest.raises(ValueError, match=r"None of the 14 videos can be read; the first: .*damaged.mp4"):
        multiple_choice_accuracy(model, processor, damage(table, tmp_path, table["video_id"][:]), progress=False)


def test_bad_questions(model, processor, tables):
    row = tables["multiple_choice"][0]
    with pytest.raises(ValueError, match=r"no rows"):
        multiple_choice_accuracy(model, processor, [])
    with pytest.raises(ValueError, match=r"no column 'options' .*another dataset"):
        multiple_choice_accuracy(model, processor, tables["retrieval"])
    for answer in (5, -1, "0"):
        with pytest.raises(ValueError, match=f"must be the index .* of 5 options, counted from 0, not {answer!r}"):
            multiple_choice_accuracy(model, processor, [row | {"answer": answer}])


# --- Zero-shot action recognition ----------------------------------------------------------------------------


def naive_zero_shot(model, processor, rows, names, templates):
    with torch.no_grad():
        classes = []
        for name in names:
            prompts = [template.replace("{}", name) for template in templates]
            each = [
                model.get_text_features(**processor(text=[p], return_tensors="pt")).pooler_output[0] for p in prompts
            ]
            mean = torch.stack([one / one.norm() for one in each]).mean(0)
            classes.append(mean / mean.norm())
        top = {1: 0, 5: 0}
        for row in rows:
            clip = model.get_video_features(**processor(videos=[row["video"]], return_tensors="pt")).pooler_output[0]
            order = torch.stack([clip @ one for one in classes]).argsort(descending=True).tolist()
            for k in top:
                top[k] += row["label"] in order[:k]
    return {f"top{k}": pytest.approx(100 * hits / len(rows)) for k, hits in top.items()}


def test_zero_shot_against_a_naive_loop(model, processor, tables):
    table = tables["action_recognition"]
    names = table.features["label"].names
    templates = ("{}", "a video of a shape that {}", "we see {} here")
    result = zero_shot_accuracy(model, processor, table, templates=templates, batch_size=3, progress=False)
    counts = {"videos": table.num_rows, "classes": len(names), "unreadable": []}
    assert result == naive_zero_shot(model, processor, table, names, templates) | counts


def test_zero_shot_accepts_class_names_and_labels_as_words(model, processor, tables, tmp_path):
    table = tables["action_recognition"]
    names = [f"it {name}" for name in table.features["label"].names]
    by_number = zero_shot_accuracy(model, processor, table, class_names=names, progress=False)
    rows = [row | {"label": names[row["label"]]} for row in table]
    assert zero_shot_accuracy(model, processor, rows, class_names=names, progress=False) == by_number
    lost = damage(table, tmp_path, table["video_id"][:1])
    part = zero_shot_accuracy(model, processor, lost, class_names=names, progress=False)
    expected = zero_shot_accuracy(model, processor, rows[1:], class_names=names, progress=False)
    assert part == expected | {"unreadable": table["video_id"][:1]}


def test_zero_shot_bad_input(model, processor, tables):
    table = tables["action_recognition"]
    rows = table.to_list()
    with pytest.raises(ValueError, match="as class_names"):
        zero_shot_accuracy(model, processor, rows)
    with pytest.raises(ValueError, match="2 names for the dataset's 11 classes"):
        zero_shot_accuracy(model, processor, table, class_names=["a", "b"])
    with pytest.raises(ValueError, match="Two classes have the name 'a'"):
        zero_shot_accuracy(model, processor, rows, class_names=["a", "a"])
    with pytest.raises(ValueError, match=r"Row \d+: the label \d+ is not one of the 1 classes"):
        zero_shot_accuracy(model, processor, [row | {"label": 7} for row in rows], class_names=["a"])
    with pytest.raises(ValueError, match="1 labels are not among the classes: 'b'"):
        zero_shot_accuracy(model, processor, [row | {"label": "b"} for row in rows], class_names=["a"])
    with pytest.raises(ValueError, match=r"'a video' needs '\{\}'"):
        zero_shot_accuracy(model, processor, table, templates=["a video"])
    with pytest.raises(ValueError, match="a sequence of one or more prompts"):
        zero_shot_accuracy(model, processor, table, templates="{}")


# --- Models with a head --------------------------------------------------------------------------------------


def test_classification_matches_classes_by_name(processor, tables, tmp_path):
    table = tables["action_recognition"]
    names = table.features["label"].names
    model = Head([*reversed(names), "something else"])
    top = {1: 0, 5: 0}
    for row in table:
        clip = processor(videos=[row["video"]], return_tensors="pt")["pixel_values_videos"]
        order = (clip.flatten(1) @ model.of_clip)[0].argsort(descending=True).tolist()
        for k in top:
            top[k] += names[row["label"]] in [model.config.id2label[number] for number in order[:k]]
    expected = {f"top{k}": pytest.approx(100 * hits / table.num_rows) for k, hits in top.items()}
    counts = {"videos": table.num_rows, "unreadable": []}
    model.train()
    assert classification_accuracy(model, processor, table, batch_size=3, progress=False) == expected | counts
    assert model.training
    assert max(model.batches) == 3
    # The video processor alone is enough, and labels may be class names.
    rows = [row | {"label": names[row["label"]]} for row in table]
    alone = classification_accuracy(model, processor.video_processor, rows, progress=False)
    assert alone == expected | counts
    lost = damage(table, tmp_path, table["video_id"][1:3])
    part = classification_accuracy(model, processor, lost, batch_size=2, progress=False)
    kept = classification_accuracy(model, processor, [rows[0], *rows[3:]], progress=False)
    assert part == kept | {"unreadable": table["video_id"][1:3]}


def test_classification_with_classes_that_the_model_lacks(processor, tables):
    table = tables["action_recognition"]
    names = table.features["label"].names
    with pytest.raises(ValueError, match="The model lacks 2 of the dataset's classes: 'moves left', 'stays still'"):
        classification_accuracy(Head(names[1:-1]), processor, table)
    rows = Dataset.from_dict({"video": ["a"], "video_id": ["a"], "label": [3]})
    with pytest.raises(ValueError, match=r"numbers without class names: cast it to datasets.ClassLabel"):
        classification_accuracy(Head(names), processor, rows)
    features = Features({"video": Value("string"), "video_id": Value("string"), "label": ClassLabel(names=["x"])})
    with pytest.raises(ValueError, match="lacks 1 of"):
        classification_accuracy(Head(names), processor, Dataset.from_dict(dict(rows.to_dict(), label=[0]), features))


def test_answers_against_a_naive_loop(processor, tables, tmp_path):
    table = tables["question_answering"]
    vocabulary = sorted(set(table["answer"]))[::2]  # half of the answers are unknown to the model
    model = Head(vocabulary)
    right = {}
    for row in table:
        inputs = processor(text=[row["question"]], videos=[row["video"]], return_tensors="pt")
        scores = model.eval()(
            **{name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values_videos")}
        )
        given = vocabulary[int(scores.logits.argmax())]
        right[row["video_id"], row["question"]] = given == row["answer"]
    unknown = sum(row["answer"] not in vocabulary for row in table)
    assert sum(right.values()) > 0
    assert 0 < unknown < table.num_rows
    model.batches.clear()
    assert answer_accuracy(model, processor, table, batch_size=4, progress=False) == {
        "accuracy": pytest.approx(100 * np.mean(list(right.values()))),
        "questions": table.num_rows,
        "out_of_vocabulary": unknown,
        "unreadable": [],
    }
    assert max(model.batches) <= 4
    lost = set(table["video_id"][:1])
    part = answer_accuracy(model, processor, damage(table, tmp_path, lost), batch_size=3, progress=False)
    kept = [row for row in table if row["video_id"] not in lost]
    assert part == answer_accuracy(model, processor, kept, progress=False) | {"unreadable": list(lost)}
    with pytest.raises(ValueError, match="more than max_unreadable=0"):
        answer_accuracy(model, processor, damage(table, tmp_path, lost), progress=False, max_unreadable=0)
    with pytest.raises(ValueError, match="no column 'question'"):
        answer_accuracy(model, processor, tables["retrieval"])


def test_workers_and_lazy_shards_give_the_same_results(model, processor, tables, tmp_path):
    """Videos in shards give the same results from a table, read by loader processes, and from a stream."""
    members = []
    for row in tables["action_recognition"].to_list():
        with open(row["video"], "rb") as file:
            members.append((f"{row['video_id']}.mp4", file.read()))
        members.append((f"{row['video_id']}.json", f'{{"caption": "x", "label": "{row["captions"][0]}"}}'.encode()))
    members += [("broken.mp4", b"not a video"), ("broken.json", b'{"caption": "x", "label": "moves left"}')]
    write_shard(tmp_path / "0.tar", members)
    expected = zero_shot_accuracy(model, processor, tables["action_recognition"], progress=False)
    expected["unreadable"] = ["broken"]
    names = tables["action_recognition"].features["label"].names
    for options in ({}, {"streaming": True}, {"streaming": True, "lazy": True}):
        shards = load_corpus("webdataset", tmp_path, **options)
        workers = 0 if options else 2
        result = zero_shot_accuracy(model, processor, shards, class_names=names, num_workers=workers, progress=False)
        assert result == expected
    embeddings = embed_corpus(model, processor, load_corpus("webdataset", tmp_path), progress=False)
    assert list(embeddings.unreadable) == ["broken"]
    assert "0.tar at byte" in embeddings.unreadable["broken"]


# --- Prompts -------------------------------------------------------------------------------------------------


def test_prompt_sets_and_files(tmp_path):
    assert read_prompts("few") == TEMPLATES
    assert len(set(read_prompts("actions"))) == len(PROMPTS["actions"]) >= 10
    assert all(template.count("{}") == 1 for prompts in PROMPTS.values() for template in prompts)
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa film of {}\n\n  {} \r\n", encoding="utf-8")
    assert read_prompts(str(path)) == ("a film of {}", "{}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}\na film\n", r"prompts.txt, line 2: 'a film' needs '\{\}'"),
        (b"\n \n", "prompts.txt has no prompts"),
        (b"\xff{}", "prompts.txt is not UTF-8 text"),
        (None, r"neither a set \(few, name, original, actions\) nor a text file"),
    ],
)
def test_wrong_prompts(tmp_path, content, message):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(str(path))


# --- Views ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lengths(tmp_path_factory):
    """Returns rows for all tasks, with videos of 1, 2, 5, 11 and 23 frames of noise."""
    folder = tmp_path_factory.mktemp("lengths")
    generator = np.random.default_rng(0)
    rows = []
    for number, frames in enumerate((1, 2, 5, 11, 23)):
        path = folder / f"{frames}.mp4"
        with av.open(str(path), "w") as container:
            stream = add_video_stream(container, "mpeg4", rate=8)
            stream.width = stream.height = 48
            stream.pix_fmt = "yuv420p"
            for _ in range(frames):
                pixels = generator.integers(0, 255, (6, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        row = {"video": str(path), "video_id": str(frames), "captions": [f"a red star {frames}", "it moves"]}
        row |= {"question": "what colour is it?", "label": ("red", "blue")[number % 2]}
        rows.append(row | {"options": ["a red star", "a blue circle", "it moves left"]})
    return rows


def clips_of(processor, video, views):
    """Returns the clips of a video, each processed separately after decoding all frames: (clips, T, C, H, W)."""
    frames, _ = processor.video_processor.fetch_videos(video)  # all frames
    indices = views.frames(len(frames), processor.video_processor.num_frames)
    clips = [processor(videos=[frames[own]], do_sample_frames=False)["pixel_values_videos"] for own in indices]
    return torch.cat(clips)


@pytest.mark.parametrize("num_frames", [1, 2, 4, 8])
def test_one_view_has_the_frames_of_the_video_processor(num_frames):
    video_processor = RegionLearnerVideoProcessor(num_frames=num_frames)
    for total in range(1, 80):
        expected = video_processor.sample_frames(SimpleNamespace(total_num_frames=total, fps=None)).tolist()
        assert Views().frames(total, num_frames).tolist() == [expected]


@pytest.mark.parametrize("clips", [2, 3, 5])
def test_clips_take_the_middles_of_equal_parts_of_each_segment(clips):
    for total in range(1, 60):
        for num_frames in (1, 3, 4):
            frames = Views(clips).frames(total, num_frames)
            assert frames.shape == (clips, num_frames)
            used = min(total, num_frames)
            borders = [int(Fraction(total * i, used)) for i in range(used + 1)]
            for k in range(clips):
                for segment in range(num_frames):
                    start, end = borders[min(segment, used - 1)], borders[min(segment, used - 1) + 1]
                    middle = start + Fraction(2 * k + 1, 2 * clips) * (end - start)  # frame i lasts from i to i + 1
                    assert frames[k, segment] == max(start, math.floor(middle - Fraction(1, 2))) < end
            if total >= clips * num_frames:
                assert len(np.unique(frames)) == clips * num_frames


@pytest.mark.parametrize("stride", [1, 2, 7])
def test_windows_take_the_same_frame_of_each_segment(stride):
    for total in range(1, 60):
        for num_frames in (1, 3, 4):
            used = min(total, num_frames)
            borders = [int(Fraction(total * i, used)) for i in range(used + 1)]
            shortest = min(end - start for start, end in itertools.pairwise(borders))
            expected = [[start + i for start in borders[:-1]] for i in range(shortest) if i % stride == 0]
            expected = [frames + frames[-1:] * (num_frames - used) for frames in expected]
            assert Views(window_stride=stride).frames(total, num_frames).tolist() == expected


def test_wrong_views():
    for options, message in (
        ({"clips": 0}, "clips=0 must be an integer of at least 1"),
        ({"clips": 1.5}, "clips=1.5 must be"),
        ({"window_stride": 0}, "window_stride=0 must be"),
        ({"clips": 2, "window_stride": 2}, "Give only one of clips"),
    ):
        with pytest.raises(ValueError, match=message):
            Views(**options)


VIEWS = [Views(2), Views(3), Views(window_stride=1), Views(window_stride=3)]


@pytest.mark.parametrize("views", [ONE_VIEW, *VIEWS])
@pytest.mark.parametrize("batch_size", [2, 100])
def test_clips_have_the_chosen_frames(processor, lengths, views, batch_size, monkeypatch):
    decoded = []
    fetch = RegionLearnerVideoProcessor.fetch_videos

    def counted(self, video, *args):
        decoded.append(video)
        return fetch(self, video, *args)

    videos = [row["video"] for row in lengths]
    expected = [clips_of(processor, video, views) for video in videos]
    monkeypatch.setattr(RegionLearnerVideoProcessor, "fetch_videos", counted)
    found: dict[int, list] = {}
    for indices, parts in read_clips(processor, videos, {}, batch_size=batch_size, progress=False, views=views):
        assert max(map(len, parts)) <= batch_size
        for index, clip in zip(indices, torch.cat(parts), strict=True):
            found.setdefault(index, []).append(clip)
    assert decoded == videos  # each video is decoded once
    assert list(found) == list(range(len(videos)))
    for index, clips in found.items():
        assert torch.equal(torch.stack(clips), expected[index])


def test_views_of_one_clip_are_the_clip_itself(processor, lengths):
    """Where views select only one clip, reading several clips per video gives the same as reading one."""
    far_apart = Views(window_stride=1000)  # the first frame of each segment
    videos = [row["video"] for row in lengths]
    batches = read_clips(processor, videos, {}, batch_size=1, progress=False, views=far_apart)
    for index, (_, (clips,)) in enumerate(batches):
        assert torch.equal(clips, clips_of(processor, videos[index], far_apart))
        if index < 2:  # the video has no more frames than the clip
            assert torch.equal(clips, processor(videos=[videos[index]])["pixel_values_videos"])


@pytest.mark.parametrize("views", VIEWS)
def test_embeddings_of_clips_are_averaged(model, processor, lengths, views, tmp_path):
    rows = [*lengths, lengths[0] | {"video": str(tmp_path / "none.mp4"), "video_id": "gone"}]
    embeddings = embed_corpus(model, processor, rows, batch_size=2, progress=False, views=views)
    assert list(embeddings.unreadable) == ["gone"]
    for row, embed in zip(lengths, embeddings.video_embeds, strict=True):
        with torch.no_grad():
            each = model.get_video_features(clips_of(processor, row["video"], views)).pooler_output
        mean = (each / each.norm(dim=1, keepdim=True)).mean(0)
        torch.testing.assert_close(embed, mean / mean.norm(), rtol=1e-4, atol=1e-5)
    assert embeddings.text_embeds.shape[0] == 2 * len(lengths)


@pytest.mark.parametrize("views", VIEWS[1:3])
def test_tasks_with_views(model, processor, lengths, views):
    with torch.no_grad():
        videos = []
        for row in lengths:
            each = model.get_video_features(clips_of(processor, row["video"], views)).pooler_output
            mean = (each / each.norm(dim=1, keepdim=True)).mean(0)
            videos.append(mean / mean.norm())

        def text(words):
            return model.get_text_features(**processor(text=[words], return_tensors="pt")).pooler_output[0]

        chosen = [int(torch.stack([v @ F_normalize(text(o)) for o in lengths[0]["options"]]).argmax()) for v in videos]
        named = [int(torch.stack([v @ F_normalize(text(name)) for name in ("red", "blue")]).argmax()) for v in videos]
    answered = [row | {"answer": choice} for row, choice in zip(lengths, chosen)]
    options = {"batch_size": 2, "progress": False, "views": views}
    assert multiple_choice_accuracy(model, processor, answered, **options)["accuracy"] == 100
    labeled = [row | {"label": ("red", "blue")[number]} for row, number in zip(lengths, named)]
    result = zero_shot_accuracy(model, processor, labeled, class_names=("red", "blue"), templates=("{}",), **options)
    assert result["top1"] == 100


def F_normalize(vector):  # noqa: N802
    return vector / vector.norm()


class Bent(Head):
    """A head whose logits are not linear in the features, so that averaging logits differs from averaging features."""

    @staticmethod
    def classifier(question, video):
        assert len(question) == len(video)
        return (question + video).relu() ** 2


@pytest.mark.parametrize("views", [ONE_VIEW, *VIEWS])
def test_heads_with_views(processor, lengths, views):
    labels = ["red", "blue", "green", "left"]
    model = Bent(labels, seed=3)
    question = processor(text=[lengths[0]["question"]], return_tensors="pt")
    classes, answers = [], []
    with torch.no_grad():
        for row in lengths:
            clips = clips_of(processor, row["video"], views)
            classes.append(labels[int((clips.flatten(1) @ model.of_clip).mean(0).argmax())])
            asked = (model.of_word[question["input_ids"]] * question["attention_mask"][..., None]).sum(1)
            each = [model.classifier(asked, (clip.flatten()[None] @ model.of_clip)) for clip in clips]
            answers.append(labels[int(torch.cat(each).mean(0).argmax())])
    options = {"batch_size": 2, "progress": False, "views": views}
    labeled = [row | {"label": label} for row, label in zip(lengths, classes)]
    assert classification_accuracy(model, processor, labeled, **options)["top1"] == 100
    answered = [row | {"answer": answer} for row, answer in zip(lengths, answers)]
    twice = [*answered, *answered[::-1]]
    assert answer_accuracy(model, processor, twice, **options)["accuracy"] == 100
    assert max(model.batches) <= 2


def test_views_keep_the_rules_of_the_video_processor(model, processor, lengths):
    strict = RegionLearnerVideoProcessor.for_image_size(32, num_frames=4, short_clips="error")
    videos = [lengths[1]["video"]]
    with pytest.raises(ValueError, match="The video has 2 frames, but num_frames=4"):
        next(read_clips(strict, videos, {}, progress=False, views=Views(2)))
    by_rate = RegionLearnerVideoProcessor.for_image_size(32, fps=2)
    with pytest.raises(ValueError, match="Several clips per video need a video processor with num_frames"):
        next(read_clips(by_rate, videos, {}, progress=False, views=Views(2)))


# --- Trainer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3])
def test_multiple_choice_in_the_trainer(model, processor, tables, tmp_path, batch_size):
    """
    Metrics match `multiple_choice_accuracy` for questions with different numbers of options, equal options, and an
    unreadable video, even if it is alone in its batch.
    """
    rows = tables["multiple_choice"].to_list()
    rows[1] |= {"options": rows[1]["options"][:2], "answer": 1}
    rows[2] |= {"options": ["a red star"] * 4, "answer": 3}
    table = damage(Dataset.from_list(rows), tmp_path, [rows[4]["video_id"]])
    trainer = RegionLearnerTrainer(
        model=model,
        args=RegionLearnerTrainingArguments(
            output_dir=str(tmp_path / "run"),
            per_device_eval_batch_size=batch_size,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            use_cpu=True,
            report_to="none",
        ),
        processing_class=processor,
        eval_dataset=table,
        task="multiple_choice",
    )
    metrics = trainer.evaluate()
    expected = multiple_choice_accuracy(model, processor, table, progress=False)
    assert (metrics["eval_accuracy"], metrics["eval_questions"]) == (expected["accuracy"], CLIPS - 1)
    assert list(trainer.unreadable.in_evaluation) == expected["unreadable"] == [rows[4]["video_id"]]
    assert (trainer.args.metric_for_best_model, trainer.args.greater_is_better) == ("accuracy", True)
    first = rows[0]["video_id"]
    for changed, message in (
        ({"answer": 7}, rf"{first!r}\): answer must be the index of .* 5 options, counted from 0, not 7"),
        ({"answer": None}, rf"{first!r}\): answer must be the index of .* 5 options, counted from 0, not None"),
        ({"options": []}, rf"video_id {first!r}\): options must be a list of strings, not \[\]"),
        ({"options": None}, rf"video_id {first!r}\): options must be a list of strings, not None"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.evaluate(Dataset.from_list([rows[0] | changed]))


def test_trainer_metrics():
    logits = np.array(
        [[3, 2, 1, 0, 0, -9], [0, 9, 1, 2, 3, 4], [1, 0, 0, 0, 0, 0], [9, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
    )
    labels = np.array([0, 0, -1, -100, 1])
    prediction = SimpleNamespace(predictions=logits.astype(np.float32), label_ids=labels)
    assert compute_answer_metrics(prediction) == {"accuracy": 50, "questions": 4, "out_of_vocabulary": 1}
    assert compute_classification_metrics(prediction) == {"top1": 50, "top5": 50}
    in_tuples = SimpleNamespace(predictions=(prediction.predictions, None), label_ids=(labels,))
    assert compute_answer_metrics(in_tuples)["accuracy"] == 50
    with pytest.raises(ValueError, match="Every row is left out"):
        compute_answer_metrics(SimpleNamespace(predictions=logits, label_ids=np.full(5, -100)))
    with pytest.raises(ValueError, match=r"got \(5, 6\) and \(4,\)"):
        compute_classification_metrics(SimpleNamespace(predictions=logits, label_ids=labels[:4]))

"""Tests of cached features of a frozen backbone: computing and reading them, training, evaluation, and errors."""

import json
import logging
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value

from region_learner import RegionLearnerTrainer, RegionLearnerTrainingArguments, RegionLearnerVideoProcessor, features
from region_learner.cli import main
from region_learner.conversion import from_pretrained_towers, processor_from_towers
from region_learner.corpora import CorpusError, load_corpus, make_corpus
from region_learner.corpora.features import check_features, digest_of_weights, read_features
from region_learner.evaluation.retrieval import embed_corpus
from region_learner.features import compute_features
from region_learner.loading import load_checkpoint
from region_learner.training import CorpusPart
from region_learner.training.collator import RegionLearnerCollator

from .conftest import randomize
from .test_backbones import REGIONS, TRAINING, backbone_model, save_family

FRAMES = 4
NUMBER_OF_CLIPS = {"train": 8, "test": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Returns a folder with `clip`, a checkpoint; `corpus`, videos as long as clips; and `cached`, their features."""
    folder = tmp_path_factory.mktemp("features")
    save_family("clip", folder / "clip")
    sizes = {"val": 0, "test_unseen": 0, "size": 48, "frames": FRAMES, "objects": [1, 1]}
    make_corpus("moving_shapes", folder / "corpus", workers=1, progress=False, **NUMBER_OF_CLIPS, **sizes)
    for split in NUMBER_OF_CLIPS:
        compute_features(str(folder / "clip"), videos(folder, split), folder / "cached", split, num_frames=FRAMES)
    return folder


def videos(root: Path, split: str) -> Dataset:
    return load_corpus("folder", root / "corpus", split)


def cached(root: Path, split: str = "train") -> Dataset:
    return load_corpus("features", root / "cached", split)


@pytest.fixture
def copied(root, tmp_path):
    """Returns a folder with a copy of the features of the training split, which tests may damage."""
    shutil.copytree(root / "cached" / "train", tmp_path / "cached" / "train")
    return tmp_path


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code or 0, *capsys.readouterr()


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def load(root: Path, regions: bool = True, **options):
    torch.manual_seed(0)
    if regions:
        options = {"region_form": "decoupled", **REGIONS} | options
    model, processor = from_pretrained_towers(root / "clip", **options), processor_from_towers(root / "clip")
    processor.video_processor.num_frames = FRAMES
    if regions:  # regions start without influence
        torch.nn.init.normal_(model.video_model.region_projection.weight, std=0.1)
    return model, processor


# Writing and reading


def test_rows_are_those_of_the_corpus(root):
    for split, count in NUMBER_OF_CLIPS.items():
        dataset, source = cached(root, split), videos(root, split)
        assert len(dataset) == count
        assert dataset.remove_columns("video").to_list() == source.remove_columns("video").to_list()
        assert dataset.remove_columns("video").features == source.remove_columns("video").features


def test_features_are_those_of_the_backbone(root):
    model, processor = load(root, regions=False)
    pixels = processor(videos=videos(root, "train")["video"][:])["pixel_values_videos"]
    with torch.no_grad():
        expected = model.video_model.encode_frames(pixels)
    found = torch.stack([read_features(video) for video in cached(root)["video"]])
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, atol=2e-3, rtol=2e-3)
    about = json.loads((root / "cached/train/features.json").read_text())
    assert about["shape"] == list(expected.shape[1:]) == [FRAMES, 17, 32]
    assert about["backbone_sha256"] == digest_of_weights(model.video_model.backbone)
    assert (root / "cached/train/000000.bin").stat().st_size == expected.numel() * 2


def test_columns_of_other_tasks(root, tmp_path):
    """Labels keep their names, and the features of a video that several rows share are computed once."""
    paths = videos(root, "train")["video"][:3]
    kinds = {
        "video": Value("string"),
        "video_id": Value("string"),
        "captions": List(Value("string")),
        "question": Value("string"),
        "answer": Value("string"),
        "options": List(Value("string")),
        "label": ClassLabel(names=["run", "walk"]),
    }
    rows = [
        {"video": paths[i // 2], "video_id": f"v{i // 2}", "captions": [], "question": f"What {i}?", "answer": "é",
         "options": ["a", "b"], "label": i % 2}
        for i in range(6)
    ]  # fmt: skip
    source = Dataset.from_list(rows, features=Features(kinds))
    result = compute_features(str(root / "clip"), source, tmp_path, "val", num_frames=FRAMES, batch_size=2)
    assert (result["videos"], result["rows"], result["unreadable"]) == (3, 6, [])
    dataset = load_corpus("features", tmp_path, "validation")
    assert dataset.remove_columns("video").to_list() == source.remove_columns("video").to_list()
    assert {name: dataset.features[name] for name in list(kinds)[1:]} == {
        name: kind for name, kind in kinds.items() if name != "video"
    }
    assert dataset[4]["video"] == dataset[5]["video"] != dataset[3]["video"]
    trained = cached(root)
    assert torch.equal(read_features(dataset[5]["video"]), read_features(trained[2]["video"]))


@pytest.mark.parametrize("name", ["dinov3", "timm_pe_core"])
def test_checkpoints_with_a_backbone(root, name, tmp_path):
    model, size = backbone_model(name, num_frames=FRAMES)
    randomize(model).save_pretrained(tmp_path / "checkpoint")
    RegionLearnerVideoProcessor.for_image_size(size[0]).save_pretrained(tmp_path / "checkpoint")
    compute_features(str(tmp_path / "checkpoint"), videos(root, "test"), tmp_path / "cached", "test")
    dataset = cached(tmp_path, "test")
    again, processor = load_checkpoint(str(tmp_path / "checkpoint"), None)
    assert check_features(again, processor, [(dataset, None)])
    found = torch.stack([read_features(video) for video in dataset["video"]])
    pixels = processor(videos(root, "test")["video"][:], return_tensors="pt")["pixel_values_videos"]
    with torch.no_grad():
        expected = model.get_video_features(pixels).pooler_output
        torch.testing.assert_close(model.get_video_features(found).pooler_output, expected, atol=2e-2, rtol=2e-2)


# Evaluating and training


def test_metrics_match_those_of_videos(root, tmp_path, capsys):
    model, processor = load(root)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    of_videos, of_features = (
        embed_corpus(model, processor, dataset) for dataset in (videos(root, "test"), cached(root, "test"))
    )
    torch.testing.assert_close(of_features.video_embeds, of_videos.video_embeds, atol=2e-3, rtol=0)
    assert not torch.equal(of_features.video_embeds, of_videos.video_embeds)
    results = {}
    for corpus, data_dir in (("folder", root / "corpus"), ("features", root / "cached")):
        output = tmp_path / f"{corpus}.json"
        arguments = ["--corpus", corpus, "--data-dir", data_dir, "--output", output]
        assert command(capsys, "evaluate", tmp_path / "model", *arguments)[0] == 0
        results[corpus] = json.loads(output.read_text())
    assert results["features"]["metrics"] == results["folder"]["metrics"]
    assert results["features"]["data"]["sha256"] == results["folder"]["data"]["sha256"]


def train_on(root: Path, rows, folder: Path, **arguments) -> tuple[list[float], RegionLearnerTrainer]:
    model, processor = load(root, codebook_size=0)  # rounding would change the codes of patches
    processor.video_processor.flip_probability = 0.0
    processor.video_processor.crop_scale = (1.0, 1.0)
    args = RegionLearnerTrainingArguments(
        str(folder), max_steps=4, per_device_train_batch_size=4, learning_rate=5e-3, use_cpu=True, report_to="none",
        disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False, logging_steps=1,
        **{"freeze": ["video_model.backbone"]} | arguments,
    )  # fmt: skip
    # One caption per row, because random crops and captions are drawn from the same generator.
    rows = [row | {"captions": row["captions"][:1]} for row in rows]
    trainer = RegionLearnerTrainer(model, args, processing_class=processor, train_dataset=rows)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], trainer


def test_losses_match_those_of_videos_without_augmentation(root, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    of_videos, _ = train_on(root, videos(root, "train"), tmp_path / "a")
    assert "Cached features" not in caplog.text
    of_features, trainer = train_on(root, cached(root), tmp_path / "b")
    assert of_features == pytest.approx(of_videos, rel=1e-3)
    assert len(set(of_features)) == 4
    assert caplog.text.count("Training on cached features uses middle frames and center crops") == 1
    cache, _ = train_on(root, cached(root), tmp_path / "c", gradient_cache_chunk=2)
    assert cache == pytest.approx(of_features, abs=1e-4)
    before, _ = load(root, codebook_size=0)
    assert digest_of_weights(trainer.model.video_model.backbone) == digest_of_weights(before.video_model.backbone)
    assert not torch.equal(trainer.model.video_projection.weight, before.video_projection.weight)


def test_train_and_evaluate_commands(root, tmp_path, capsys):
    data = ["--corpus=features", "--data-dir", root / "cached"]
    options = ["--num_frames", str(FRAMES), "--freeze", "video_model.backbone", "--eval_split=test"]
    regions = ["--video_config", json.dumps({"region_form": "decoupled", **REGIONS})]
    arguments = [*TRAINING[:-1], *options, *regions, "--test_split=test", "--dataloader_num_workers=1"]
    code, _, err = command(capsys, "train", "--model", root / "clip", *data, "--output-dir", tmp_path, *arguments)
    assert code == 0, err
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["train"]["videos"] == 8
    assert 0 <= results["test"]["t2v_R@1"] <= 100
    code, out, _ = command(capsys, "evaluate", tmp_path, *data, "--json", "--workers=1")
    assert code == 0
    assert json.loads(out)["t2v_MeanR"] == results["test"]["t2v_MeanR"]


# Refused input


def test_a_trained_backbone_is_refused(root, tmp_path, capsys):
    data = ["--corpus=features", "--data-dir", root / "cached", "--output-dir", tmp_path / "run"]
    code, _, err = command(capsys, "train", "--model", root / "clip", *data, *TRAINING, f"--num_frames={FRAMES}")
    assert code == 2
    assert "but this run trains the backbone: add --freeze video_model.backbone" in last_line(err)
    with pytest.raises(ValueError, match="this run trains the backbone"):
        train_on(root, cached(root), tmp_path, freeze=["video_model.backbone.encoder"])
    model, processor = load(root)
    args = RegionLearnerTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    given = {"train_dataset": videos(root, "train"), "eval_dataset": {"a": cached(root)}}
    with pytest.raises(ValueError, match="this run trains the backbone"):
        RegionLearnerTrainer(model, args, processing_class=processor, **given)


def test_other_frames_are_refused_before_training(root, tmp_path, capsys):
    model, processor = load(root)
    args = RegionLearnerTrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", freeze=["video_model.backbone"]
    )
    with pytest.raises(ValueError, match="but the model reads 2: pass --num-frames 4"):
        RegionLearnerTrainer(
            model, args, processing_class=processor, train_dataset=[CorpusPart(cached(root), 4, num_frames=2)]
        )
    shutil.copytree(root / "cached" / "train", tmp_path / "cached" / "train")
    compute_features(str(root / "clip"), videos(root, "test"), tmp_path / "cached", "test", num_frames=1)
    data = ["--corpus=features", "--data-dir", tmp_path / "cached", "--output-dir", tmp_path / "run"]
    options = ["--freeze", "video_model.backbone", "--test_split=test", *TRAINING, f"--num_frames={FRAMES}"]
    code, _, err = command(capsys, "train", "--model", root / "clip", *data, *options)
    assert code == 2
    assert "cached/test has features of 1 frames per clip, but the model reads 4" in last_line(err)
    assert "step 1" not in err


def test_other_models_are_refused(root, tmp_path, capsys):
    data = ["--corpus", "features", "--data-dir", root / "cached"]
    code, _, err = command(capsys, "evaluate", root / "clip", *data)
    assert code == 2
    assert f"has features of {FRAMES} frames per clip, but the model reads 12" in last_line(err)
    model, processor = load(root, regions=False)
    dataset = [(cached(root), None)]
    assert check_features(model, processor, dataset)
    assert not check_features(model, processor, [(videos(root, "test"), None), (None, None)])
    with pytest.raises(ValueError, match="but the model reads 2: pass --num-frames 4"):
        check_features(model, processor, [(cached(root), 2)])
    processor.video_processor.image_mean = [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"were prepared differently \(image_mean=\[0.48145466"):
        check_features(model, processor, dataset)
    with torch.no_grad():
        next(model.video_model.backbone.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(ValueError, match="of the backbone of clip, whose weights differ"):
        check_features(model, processor, dataset)
    model.video_model.backbone = None
    with pytest.raises(ValueError, match="has features of a backbone, but the model has none"):
        check_features(model, processor, dataset)


def test_digests_do_not_depend_on_precision():
    layer = torch.nn.Linear(2, 3).bfloat16()
    digest = digest_of_weights(layer)
    assert digest_of_weights(layer.float()) == digest
    with torch.no_grad():
        layer.bias[2] += 0.1
    assert digest_of_weights(layer) != digest


def test_other_views_are_refused(root, tmp_path, capsys):
    model, processor = load(root, regions=False)
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    data = ["--corpus", "features", "--data-dir", root / "cached"]
    code, _, err = command(capsys, "evaluate", tmp_path, *data, "--clips", "2")
    assert code == 2
    assert "Cached features have one clip per video" in last_line(err)


def test_mixed_batches_are_refused(root):
    _, processor = load(root)
    rows = [cached(root, "test")[0], videos(root, "test")[1]]
    for training in (False, True):
        with pytest.raises(ValueError, match="cannot have both videos and cached features"):
            RegionLearnerCollator(processor, training)(rows)
    with pytest.raises(ValueError, match="cannot have both videos and cached features"):
        embed_corpus(load(root)[0], processor, rows)


def test_models_without_a_backbone_are_refused(root, tmp_path, capsys):
    from .conftest import tiny_model

    tiny_model().save_pretrained(tmp_path / "model")
    RegionLearnerVideoProcessor.for_image_size(32).save_pretrained(tmp_path / "model")
    data = ["--corpus", "folder", "--data-dir", root / "corpus", "--output", tmp_path / "cached"]
    code, _, err = command(capsys, "corpus", "features", tmp_path / "model", *data)
    assert code == 2
    assert "does not have a backbone" in last_line(err)
    assert not (tmp_path / "cached").exists()


def test_features_that_overflow_are_refused(root, tmp_path):
    model, processor = load(root, regions=False)
    with torch.no_grad():
        model.video_model.backbone.post_layernorm.weight.fill_(1e6)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="'test-000000' has features that do not fit in float16"):
        compute_features(str(tmp_path / "model"), videos(root, "test"), tmp_path / "cached", "test")
    assert not (tmp_path / "cached" / "test").exists()


# Damage


def change(path: Path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_row(path: Path, clip=0, **values):
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | {"video": clip} | values), *others]))


def change_labels(split: Path, label):
    change(split / "features.json", classes={"label": ["run", "walk"]})
    change_row(split / "rows.jsonl", label=label)


DAMAGE = {
    "a short file": (lambda split: os.truncate(split / "000000.bin", 100), "000000.bin has 100 bytes instead of"),
    "a long file": (
        lambda split: (split / "000000.bin").write_bytes(bytes(34818)), "has 34818 bytes instead of 34816"
    ),
    "no file": (lambda split: (split / "000000.bin").unlink(), "000000.bin does not exist"),
    "more clips": (lambda split: change(split / "features.json", clips=9), "has 34816 bytes instead of"),
    "many clips": (lambda split: change(split / "features.json", clips=2**39, clips_per_shard=1), "34816 bytes inst"),
    "smaller shards": (lambda split: change(split / "features.json", clips_per_shard=4), "bytes instead of"),
    "another shape": (lambda split: change(split / "features.json", shape=[4, 17, 33]), "bytes instead of"),
    "a negative shape": (lambda split: change(split / "features.json", shape=[-4, 17, -32]), "must be above 0"),
    "a flat shape": (lambda split: change(split / "features.json", shape=[2176]), "must be above 0"),
    "no clips": (lambda split: change(split / "features.json", clips=True), "must be above 0"),
    "classes": (lambda split: change(split / "features.json", classes={"label": ["a", "a"]}), "of different names"),
    "no model": (lambda split: change(split / "features.json", model=None), "does not say which model"),
    "another format": (lambda split: change(split / "features.json", format=2), "is not of format 1"),
    "not JSON": (lambda split: (split / "features.json").write_text("{"), "not JSON"),
    "a list": (lambda split: (split / "features.json").write_text("[]"), "is not of format 1"),
    "no rows": (lambda split: (split / "rows.jsonl").write_text(""), "rows.jsonl has no rows"),
    "a reference": (
        lambda split: change_row(split / "rows.jsonl", {"path": "/etc/passwd", "offset": 0, "shape": [1, 1, 1]}),
        "line 1: video must be a number below 8",
    ),
    "a path": (lambda split: change_row(split / "rows.jsonl", "../secret"), "line 1: video must be a number below 8"),
    "a large number": (lambda split: change_row(split / "rows.jsonl", video_id=2**70), "an integer of more than 64"),
    "half a character": (lambda split: change_row(split / "rows.jsonl", x="\ud800"), "line 1: a value is an unpaired"),
    "an unknown label": (lambda split: change_labels(split, 2), "label must be the number of one of 2 classes, not 2"),
    "a label that is text": (lambda split: change_labels(split, "a"), "one of 2 classes, not 'a'"),
    "no labels": (lambda split: change(split / "features.json", classes={"label": ["a"]}), "line 1: label must be"),
    "labels for videos": (lambda split: change(split / "features.json", classes={"video": ["a"]}), "video must be"),
    "past the end": (lambda split: change_row(split / "rows.jsonl", 8), "line 1: video must be a number below 8"),
    "before the start": (lambda split: change_row(split / "rows.jsonl", -1), "line 1: video must be a number below 8"),
    "not a number": (lambda split: change_row(split / "rows.jsonl", True), "line 1: video must be a number below 8"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_reported(copied, name):
    damage, message = DAMAGE[name]
    damage(copied / "cached" / "train")
    with pytest.raises(CorpusError, match=message) as error:
        cached(copied)
    assert "\n" not in str(error.value)


def test_files_that_shrink_after_loading(copied, root):
    dataset = cached(copied)
    os.truncate(copied / "cached/train/000000.bin", 34816 - 2)
    with pytest.raises(CorpusError, match="is shorter than when the corpus was loaded"):
        read_features(dataset[7]["video"])
    batch = RegionLearnerCollator(load(root)[1], training=False)([dataset[6], dataset[7]])
    assert [name for name, _ in batch["unreadable"]] == ["train-000007"]
    assert batch["video_ids"][1] == -1


def test_names_of_splits(root, tmp_path):
    with pytest.raises(CorpusError, match=r"has no split 'trian' .*did you mean 'train'"):
        cached(root, "trian")
    with pytest.raises(CorpusError, match=r"has no split '\.\./cached/train'"):
        cached(root, "../cached/train")
    with pytest.raises(CorpusError, match="no features in"):
        load_corpus("features", tmp_path)
    for split in ("../x", ".x", "", "a/b"):
        with pytest.raises(CorpusError, match="must be the name of a directory"):
            compute_features(str(root / "clip"), videos(root, "test"), tmp_path, split)


# Unreadable videos, existing features and killed runs


def test_unreadable_videos_are_skipped_and_listed(root, tmp_path, capsys):
    shutil.copytree(root / "corpus", tmp_path / "corpus")
    rows = videos(tmp_path, "train")
    for video in rows["video"][1:3]:
        Path(video).write_bytes(b"not a video")
    arguments = ["--corpus=folder", "--data-dir", tmp_path / "corpus", "--output", tmp_path / "cached"]
    arguments += ["--num-frames", FRAMES, "--batch-size=3", "--workers=1"]
    code, _, err = command(capsys, "corpus", "features", root / "clip", *arguments)
    assert code == 2
    assert "2 of 8 videos cannot be read, more than max_unreadable=0.1" in last_line(err)
    assert not (tmp_path / "cached" / "train").exists()
    code, out, err = command(
        capsys, "corpus", "features", root / "clip", *arguments, "--max-unreadable=0.25", "--json"
    )
    assert code == 0
    assert json.loads(out) == {
        "videos": 6, "rows": 6, "bytes": 6 * FRAMES * 17 * 32 * 2, "unreadable": ["train-000001", "train-000002"]
    }  # fmt: skip
    assert last_line(err) == f"Wrote features of 6 videos (0.03 MB) to {tmp_path / 'cached' / 'train'}"
    found, expected = cached(tmp_path), cached(root)
    kept = [0, *range(3, 8)]
    assert found["video_id"][:] == [f"train-00000{i}" for i in kept]
    for row, i in zip(found, kept):
        torch.testing.assert_close(read_features(row["video"]), read_features(expected[i]["video"]), atol=1e-2, rtol=0)
    assert "train-000001" in json.loads((tmp_path / "cached/train/features.json").read_text())["unreadable"]


def test_existing_features_are_kept(root, tmp_path, capsys):
    shutil.copytree(root / "cached", tmp_path / "cached")
    arguments = ["--corpus=folder", "--data-dir", root / "corpus", "--output", tmp_path / "cached", "--workers=1"]
    code, _, err = command(capsys, "corpus", "features", root / "clip", *arguments)
    assert code == 2
    assert "already exists: choose another --output, or replace it with --overwrite" in last_line(err)
    assert cached(tmp_path)[0]["video"]["shape"][0] == FRAMES
    code, _, _ = command(capsys, "corpus", "features", root / "clip", *arguments, "--num-frames=1", "--overwrite")
    assert code == 0
    assert cached(tmp_path)[0]["video"]["shape"][0] == 1
    assert cached(tmp_path, "test")[0]["video"]["shape"][0] == FRAMES
    assert sorted(path.name for path in (tmp_path / "cached").iterdir() if path.is_dir()) == ["test", "train"]


def test_only_features_are_overwritten(root, tmp_path, capsys):
    """The videos themselves may be in a directory of this name."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.mp4").write_text("a video")
    arguments = ["--corpus=folder", "--data-dir", root / "corpus", "--output", tmp_path, "--workers=1"]
    for options in ([], ["--overwrite"]):
        code, _, err = command(capsys, "corpus", "features", root / "clip", *arguments, *options)
        assert code == 2
        assert "train already exists, and does not have features: choose another --output" in last_line(err)
    assert (tmp_path / "train" / "a.mp4").read_text() == "a video"


@pytest.mark.parametrize("name", ["check", "prepare"])
def test_features_are_not_videos(root, tmp_path, capsys, name):
    output = [tmp_path / "out"] if name == "prepare" else []
    code, _, err = command(capsys, "corpus", name, *output, "--corpus=features", "--data-dir", root / "cached")
    assert code == 2
    assert "The corpus 'features' has features instead of videos" in last_line(err)
    assert not (tmp_path / "out").exists()


def killed_run(root: str, output: str, per_shard: int, after: int):
    torch.set_num_threads(1)
    features._SHARD_BYTES = per_shard * FRAMES * 17 * 32 * 2
    encode, seen = features._Encoder.__call__, 0

    def encode_or_die(self, clips):
        nonlocal seen
        seen += len(clips)
        if seen > after + 1:  # the first one is the black example clip
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(self, clips)

    features._Encoder.__call__ = encode_or_die
    rows = damaged(Path(root))
    compute_features(f"{root}/clip", rows, output, num_frames=FRAMES, batch_size=1, max_unreadable=0.5)


def damaged(root: Path) -> Dataset:
    """Returns the training videos; the second and the last three cannot be read."""
    rows = videos(root, "train").to_list()
    return Dataset.from_list(
        [row | {"video": "nowhere.mp4"} if i in (1, 5, 6, 7) else row for i, row in enumerate(rows)]
    )


def killed(root: Path, output: Path, after: int):
    process = multiprocessing.get_context("fork").Process(target=killed_run, args=(str(root), str(output), 2, after))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def fail_to_sync(directory):
    raise OSError("the disk is full")


def test_a_killed_run_resumes(root, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    killed(root, tmp_path / "cached", after=3)
    with pytest.raises(CorpusError, match="no features in"):
        cached(tmp_path)
    monkeypatch.setattr(features, "_SHARD_BYTES", 2 * FRAMES * 17 * 32 * 2)
    encoded = []
    encode = features._Encoder.__call__
    monkeypatch.setattr(
        features._Encoder, "__call__", lambda self, clips: encoded.append(len(clips)) or encode(self, clips)
    )
    options = {"num_frames": FRAMES, "batch_size": 1, "max_unreadable": 0.5}
    with pytest.raises(ValueError, match=r"4 of 8 videos cannot be read, more than max_unreadable=0.4"):
        compute_features(str(root / "clip"), damaged(root), tmp_path / "cached", **options | {"max_unreadable": 0.4})
    with monkeypatch.context() as patched:
        patched.setattr(features, "sync_tree", fail_to_sync)
        with pytest.raises(OSError, match="full"):
            compute_features(str(root / "clip"), damaged(root), tmp_path / "cached", **options)
    encoded.clear()
    result = compute_features(str(root / "clip"), damaged(root), tmp_path / "cached", **options)
    assert [message for message in caplog.messages if "Resuming" in message] == [
        "Resuming after 2 clips.", "Resuming after 2 clips.", "Resuming after 4 clips."
    ]  # fmt: skip
    assert len(encoded) == 2  # the black example clip, and the last clip again
    assert result["videos"] == 4
    assert result["unreadable"] == [f"train-00000{i}" for i in (1, 5, 6, 7)]
    compute_features(str(root / "clip"), damaged(root), tmp_path / "other", **options)
    for name in ("000000.bin", "000001.bin", "rows.jsonl", "features.json"):
        assert (tmp_path / "cached/train" / name).read_bytes() == (tmp_path / "other/train" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "cached/train").iterdir()) == [
        "000000.bin", "000001.bin", "features.json", "rows.jsonl"
    ]  # fmt: skip
    dataset = cached(tmp_path)
    expected = cached(root)
    for row, i in zip(dataset, (0, 2, 3, 4), strict=True):
        torch.testing.assert_close(read_features(row["video"]), read_features(expected[i]["video"]), atol=1e-2, rtol=0)


def test_a_killed_run_with_other_frames_starts_over(root, tmp_path):
    killed(root, tmp_path / "cached", after=3)
    result = compute_features(str(root / "clip"), damaged(root), tmp_path / "cached", num_frames=1, max_unreadable=0.5)
    assert result["videos"] == 4
    assert np.prod(cached(tmp_path)[0]["video"]["shape"]) == 17 * 32
    assert not [path for path in (tmp_path / "cached").iterdir() if path.name.endswith(".partial")]


def without(root: Path, *missing: int) -> Dataset:
    rows = videos(root, "train").to_list()
    return Dataset.from_list([row | {"video": f"gone{i}.mp4"} if i in missing else row for i, row in enumerate(rows)])


@pytest.mark.parametrize("kind", ["the last one is gone", "one is repaired", "one is repaired, and tried again"])
def test_videos_that_change_between_runs(root, tmp_path, monkeypatch, caplog, kind):
    """Each clip keeps the features of its own video, and repaired videos are left out unless they are tried again."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(features, "_SHARD_BYTES", 2 * FRAMES * 17 * 32 * 2)
    monkeypatch.setattr(features, "digest_of_rows", lambda dataset: "the same corpus")
    options = {"num_frames": FRAMES, "batch_size": 1, "max_unreadable": 0.5}
    before = without(root) if kind == "the last one is gone" else without(root, 1)
    encode, seen = features._Encoder.__call__, []

    def stop(self, clips):
        seen.append(1)
        if len(seen) > 4:  # the black example clip, and three clips
            raise KeyboardInterrupt
        return encode(self, clips)

    with monkeypatch.context() as patched:
        patched.setattr(features._Encoder, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            compute_features(str(root / "clip"), before, tmp_path / "cached", **options)
    after = without(root, 1) if kind == "the last one is gone" else without(root)
    again = kind == "one is repaired, and tried again"
    result = compute_features(str(root / "clip"), after, tmp_path / "cached", **options, overwrite=again)
    # The features of the one that is gone were computed before.
    left_out = ["train-000001"] if kind == "one is repaired" else []
    assert result["unreadable"] == left_out
    assert any("use --overwrite" in message for message in caplog.messages) == bool(left_out)
    assert any("Starting over" in message for message in caplog.messages) == again
    kept = [row for row in cached(root) if row["video_id"] not in left_out]
    for row, expected in zip(cached(tmp_path), kept, strict=True):
        torch.testing.assert_close(read_features(row["video"]), read_features(expected["video"]), atol=1e-2, rtol=0)

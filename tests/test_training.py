"""Tests arguments, recipes, the collator, the Trainer and the command line on tiny corpora."""

import json
import logging
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from region_learner import RegionLearnerModel, RegionLearnerTrainer, RegionLearnerTrainingArguments
from region_learner.cli import main
from region_learner.corpora import load_corpus, make_corpus
from region_learner.evaluation import codebook_use, embed_corpus
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.training import (
    DataArguments,
    ModelArguments,
    RegionLearnerCollator,
    build_model,
    parse_arguments,
    train,
)
from region_learner.training.collator import stable_id
from region_learner.training.data import DRAWN, Draw
from region_learner.training.run import _tell_if_trained_on
from region_learner.training.task_data import is_trained_on
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_decoding_region_learner import VideoDecodeError
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .conftest import FIXTURES, TINY_VIDEO, clips, tiny_model, tiny_text_config
from .fresh_process import run_fresh, run_script

FROZEN = FIXTURES / "frozen_in_time.pth"
TINY = [
    "--video_config",
    json.dumps(TINY_VIDEO | {"num_frames": 2}),
    "--text_config",
    json.dumps(tiny_text_config().to_diff_dict() | {"vocab_size": 400, "model_type": "distilbert"}),
    "--tokenizer=train",
    "--vocab_size=400",
    "--report_to=none",
    "--save_strategy=no",
    "--use_cpu=true",
    "--dataloader_pin_memory=false",
    "--disable_tqdm=true",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "corpus"
    options = {"train": 12, "val": 0, "test": 6, "test_unseen": 0, "size": 48, "frames": 4, "objects": [1, 1]}
    return make_corpus("moving_shapes", folder, workers=1, progress=False, **options)


@pytest.fixture(scope="module")
def rows(corpus):
    return load_corpus("folder", corpus)


@pytest.fixture(scope="module")
def processor(rows):
    tokenizer = train_tokenizer((caption for row in rows["captions"] for caption in row), 400, 32)
    return RegionLearnerProcessor(RegionLearnerVideoProcessor.for_image_size(32, num_frames=2), tokenizer)


@pytest.fixture
def damaged(corpus, tmp_path):
    """Returns a folder with the videos of the corpus, two of the twelve damaged."""
    rows = [json.loads(line) for line in (corpus / "train" / "metadata.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        content = (corpus / "train" / row["file_name"]).read_bytes()
        (tmp_path / f"clip{i}.mp4").write_bytes({3: content[:200], 7: b"not a video"}.get(i, content))
        rows[i] = {"file_name": f"clip{i}.mp4", "captions": row["captions"]}
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_batches_for_training_and_for_evaluation(rows, processor):
    batch = [rows[i] for i in range(4)]
    torch.manual_seed(0)
    training = RegionLearnerCollator(processor, training=True)
    one, other = training(batch), training(batch)
    assert one["pixel_values_videos"].shape == (4, 2, 3, 32, 32)
    assert one["return_loss"] is True
    assert "labels" not in one
    assert one["video_ids"].tolist() == [stable_id(row["video_id"]) for row in batch]
    assert not torch.equal(one["pixel_values_videos"], other["pixel_values_videos"])
    drawn = {
        processor.tokenizer.decode(ids, skip_special_tokens=True)
        for _ in range(20)
        for ids in training(batch)["input_ids"][:1]
    }
    assert len(drawn) > 1
    evaluation = RegionLearnerCollator(processor, training=False)
    one, other = evaluation(batch), evaluation(batch)
    assert torch.equal(one["pixel_values_videos"], other["pixel_values_videos"])
    expected = processor(text=[row["captions"][0] for row in batch], videos=[row["video"] for row in batch])
    assert torch.equal(one["input_ids"], expected["input_ids"])
    assert torch.equal(one["pixel_values_videos"], expected["pixel_values_videos"])


def test_clips_are_normalized_on_the_device_or_before(rows, processor):
    """Both the collator and `normalize_clips` compute (frames / 255 - mean) / std."""
    batch = [dict(rows[i]) | {DRAWN: Draw(0, i, seed=i)} for i in range(3)]
    raw = RegionLearnerCollator(processor, training=True, normalize=False)(batch)["pixel_values_videos"]
    ready = RegionLearnerCollator(processor, training=True)(batch)["pixel_values_videos"]
    assert raw.dtype == torch.uint8
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(ready, (raw / 255 - mean) / std)
    torch.testing.assert_close(processor.video_processor.normalize_clips(raw), ready)


def test_unreadable_videos_are_substituted_and_reported(damaged, processor):
    rows = load_corpus("folder", damaged)
    batch = [rows[i] for i in range(8)]
    readable = {stable_id(f"clip{i}") for i in range(12)} - {stable_id("clip3"), stable_id("clip7")}
    result = RegionLearnerCollator(processor, training=True, datasets=[rows])(batch)
    assert {video_id for video_id, _ in result["unreadable"]} == {"clip3", "clip7"}
    assert set(result["video_ids"].tolist()) <= readable
    assert all(clip.std() > 0.1 for clip in result["pixel_values_videos"])  # no black frames
    result = RegionLearnerCollator(processor, training=False)(batch)
    assert [i for i, video_id in enumerate(result["video_ids"].tolist()) if video_id == -1] == [3, 7]
    for normalize in (True, False):  # in evaluation, the last batch may be a single bad video
        evaluation = RegionLearnerCollator(processor, training=False, normalize=normalize)
        result, good = evaluation([rows[3]]), evaluation([rows[0]])
        assert result["video_ids"].tolist() == [-1]
        assert [video_id for video_id, _ in result["unreadable"]] == ["clip3"]
        assert result["pixel_values_videos"].shape == good["pixel_values_videos"].shape
        assert result["pixel_values_videos"].dtype == good["pixel_values_videos"].dtype
    with pytest.raises(VideoDecodeError, match="No readable video was found"):
        RegionLearnerCollator(processor, training=True, datasets=[[rows[3]]])([rows[3]])


@contextmanager
def without_the_rights_of_root():
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_training_continues_past_files_that_cannot_be_opened(damaged, processor, caplog):
    """One file has no read permission, one is now a directory, and one was deleted after it was listed."""
    with tempfile.TemporaryDirectory() as folder:  # readable by other users, too
        for path in damaged.iterdir():
            shutil.copy(path, folder)
        os.chmod(folder, 0o777)
        rows = load_corpus("folder", folder)
        closed, directory, gone = (Path(folder) / f"clip{i}.mp4" for i in (1, 2, 5))
        closed.chmod(0)
        directory.unlink()
        directory.mkdir()
        gone.unlink()
        model = tiny_model(text=tiny_text_config(vocab_size=400), num_frames=2)
        arguments = RegionLearnerTrainingArguments(
            output_dir=f"{folder}/run", max_steps=3, per_device_train_batch_size=6, max_unreadable=0.5,
            report_to="none", save_strategy="no", use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True,
        )  # fmt: skip
        trainer = RegionLearnerTrainer(model=model, args=arguments, processing_class=processor, train_dataset=rows)
        with without_the_rights_of_root(), caplog.at_level(logging.WARNING):
            assert trainer.train().global_step == 3
        listed = trainer.unreadable.in_training
        assert sorted(listed) == ["clip1", "clip2", "clip3", "clip5", "clip7"]
        for path in (closed, directory, gone):
            assert listed[path.stem].startswith(f"{path}: ")
        assert "Permission denied" in listed["clip1"]
        # Root made the run's directory, so the list cannot be written to it. Training still continues.
        where = Path(folder) / "run" / "unreadable_videos.json"
        if os.geteuid() == 0:
            assert f"could not be written: [Errno 13] Permission denied: '{where}'" in caplog.text
        else:
            assert json.loads(where.read_text()) == listed


def test_the_trainer_reports_unreadable_videos(damaged, processor, tmp_path, caplog):
    def trainer(limit):
        arguments = RegionLearnerTrainingArguments(
            output_dir=tmp_path / "run", max_steps=3, per_device_train_batch_size=6, max_unreadable=limit,
            report_to="none", save_strategy="no", use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True,
        )  # fmt: skip
        model = tiny_model(text=tiny_text_config(vocab_size=400), num_frames=2)
        rows = load_corpus("folder", damaged)
        return RegionLearnerTrainer(model=model, args=arguments, processing_class=processor, train_dataset=rows)

    with caplog.at_level(logging.WARNING):
        result = trainer(limit=0.2).train()
    assert result.metrics["unreadable_videos"] == 2
    listed = json.loads((tmp_path / "run" / "unreadable_videos.json").read_text())
    assert sorted(listed) == ["clip3", "clip7"]
    assert sum("clip3.mp4" in record.message for record in caplog.records) == 1
    with pytest.raises(VideoDecodeError, match=r"2 of 12 videos are unreadable, more than max_unreadable=0.1 allows:"):
        trainer(limit=0.1).train()
    with pytest.raises(VideoDecodeError, match=r"1 of 12 videos are unreadable, more than max_unreadable=0.0 allows:"):
        trainer(limit=0.0).train()


def test_accumulated_gradients_are_divided(rows, processor, tmp_path):
    """The Trainer must divide the loss by the accumulation steps, so that the gradient is that of the mean."""
    arguments = RegionLearnerTrainingArguments(
        output_dir=tmp_path, max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        learning_rate=0.0, max_grad_norm=0.0, report_to="none", save_strategy="no", use_cpu=True,
        dataloader_pin_memory=False, disable_tqdm=True,
    )  # fmt: skip
    model = tiny_model(text=tiny_text_config(vocab_size=400), num_frames=2, codebook_size=0)
    seen, gradients = [], {}

    class Collator(RegionLearnerCollator):
        def __call__(self, rows):
            seen.append(super().__call__(rows))
            return dict(seen[-1])

    class Trainer(RegionLearnerTrainer):
        def training_step(self, model, *args, **kwargs):
            loss = super().training_step(model, *args, **kwargs)
            gradients.update({name: p.grad.clone() for name, p in model.named_parameters()})
            return loss

    trainer = Trainer(
        model=model, args=arguments, processing_class=processor, train_dataset=rows,
        data_collator=Collator(processor, training=True),
    )  # fmt: skip
    trainer.train()
    reference = tiny_model(text=tiny_text_config(vocab_size=400), num_frames=2, codebook_size=0).train()
    for batch in seen[:2]:
        inputs = {name: value for name, value in batch.items() if name != "unreadable"}
        (reference(**inputs).loss / 2).backward()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_train_evaluate_save_and_load(corpus, tmp_path, capsys):
    """The loss falls. The saved checkpoint gives the same metrics on the command line and can be trained further."""
    argv = [
        *TINY, "--corpus=moving_shapes", f"--data_dir={corpus}", f"--output_dir={tmp_path}", "--test_split=test",
        "--max_steps=12", "--per_device_train_batch_size=12", "--learning_rate=2e-3", "--logging_steps=1",
        "--eval_split=test", "--eval_strategy=steps", "--eval_steps=6",
    ]  # fmt: skip
    results = train(*parse_arguments(argv))
    losses = [float(entry["loss"]) for entry in results["log"] if "loss" in entry]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert any("eval_t2v_R@1" in entry for entry in results["log"])
    assert results["test"]["videos"] == 6
    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(model, RegionLearnerModel)
    assert processor.video_processor.flip_probability == 0  # captions of moving_shapes tell left from right
    again = embed_corpus(model, processor, load_corpus("moving_shapes", corpus, "test"), progress=False).metrics()
    assert again == pytest.approx({name: results["test"][name] for name in again})
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main(["evaluate", str(tmp_path), "--corpus=moving_shapes", f"--data-dir={corpus}", "--json"])
    assert exit_info.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert {name: printed[name] for name in again} == pytest.approx(again)
    # Training continues from the checkpoint, with more frames.
    argv = [
        f"--model={tmp_path}", "--corpus=moving_shapes", f"--data_dir={corpus}", f"--output_dir={tmp_path / 'more'}",
        '--video_config={"num_frames": 4}', "--max_steps=1", *TINY[5:],
    ]  # fmt: skip
    train(*parse_arguments(argv))
    assert AutoModel.from_pretrained(tmp_path / "more").config.video_config.num_frames == 4
    assert AutoProcessor.from_pretrained(tmp_path / "more").video_processor.num_frames == 4


@pytest.mark.parametrize(("split", "seen"), [("train", True), ("test", False)])
def test_results_name_their_split_and_say_whether_it_was_trained_on(corpus, tmp_path, capsys, caplog, split, seen):
    argv = ["train", *TINY, "--corpus=moving_shapes", f"--data_dir={corpus}", f"--output_dir={tmp_path}",
            f"--test_split={split}", "--max_steps=1", "--per_device_train_batch_size=4", "--overwrite"]  # fmt: skip

    def printed(*more):
        with pytest.raises(SystemExit) as exit_info:
            main([*argv, *more])
        assert exit_info.value.code == 0
        return capsys.readouterr().out

    out = printed("--json")
    found = json.loads(out)
    where = {"corpus": "moving_shapes", "split": split, "trained_on": seen}
    assert found["tested_on"] == where
    assert f"{split}_t2v_R@1" in found
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["tested_on"] == where
    assert written["test"]["t2v_R@1"] == found[f"{split}_t2v_R@1"]
    assert (f"Testing on the training split, {split}:" in caplog.text) == seen
    heading = f"moving_shapes, split {split}{', which the model was trained on' * seen}:"
    shown = printed().splitlines()
    assert heading in shown
    assert any("t2v_R@1" in line for line in shown[shown.index(heading) :])


@pytest.mark.parametrize(
    ("options", "split", "expected"),
    [
        ({}, "train", True),
        ({}, "test", False),
        ({}, None, False),
        ({"train_split": "test"}, "test", True),
        ({"corpora": [{"corpus": "webvid", "data_dir": "w"}, {"split": "val"}]}, "val", True),
        ({"corpora": [{"corpus": "webvid", "data_dir": "w"}]}, "train", False),
        ({"corpora": [{"data_dir": "elsewhere"}]}, "train", False),
        ({"corpora": [{"corpus": "msrvtt", "data_dir": "here"}], "corpus": "msrvtt_qa"}, "train", True),
        ({"train_split": "all"}, "test", True),
        ({"train_split": "val"}, "validation", True),
        ({"corpora": [{"data_dir": "./here/"}]}, "train", True),
    ],
)
def test_which_splits_are_trained_on(options, split, expected):
    assert is_trained_on(DataArguments(**{"data_dir": "here"} | options), split) == expected


@pytest.mark.parametrize(
    ("options", "level"), [({"test_split": "train"}, "INFO"), ({"eval_split": "train"}, "WARNING"), ({}, None)]
)
def test_an_evaluation_on_the_training_split_is_logged(options, level, caplog):
    caplog.set_level("INFO", logger="region_learner")
    _tell_if_trained_on(DataArguments(**{"data_dir": "here", "eval_split": "val", "test_split": "test"} | options))
    assert [record.levelname for record in caplog.records] == [level] * (level is not None)
    assert all("the training split" in record.getMessage() for record in caplog.records)


def test_embedding_a_corpus_leaves_out_unreadable_videos(damaged, processor, caplog):
    model = tiny_model(text=tiny_text_config(vocab_size=400), num_frames=2)
    rows = load_corpus("folder", damaged)
    with caplog.at_level(logging.WARNING):
        embeddings = embed_corpus(model, processor, rows, batch_size=4, progress=False)
    assert sorted(embeddings.unreadable) == ["clip3", "clip7"]
    assert "2 of 12 videos cannot be read" in caplog.text
    assert len(embeddings.video_ids) == len(embeddings.video_embeds) == 10
    assert set(embeddings.text_video_ids) == set(embeddings.video_ids)
    row = next(row for row in rows if row["video_id"] == embeddings.video_ids[4])
    with torch.no_grad():
        outputs = model(**processor(text=row["captions"], videos=[row["video"]]))
    torch.testing.assert_close(embeddings.video_embeds[4], outputs.video_embeds[0], rtol=1e-4, atol=1e-5)
    mine = torch.tensor([owner == row["video_id"] for owner in embeddings.text_video_ids])
    torch.testing.assert_close(embeddings.text_embeds[mine], outputs.text_embeds, rtol=1e-4, atol=1e-5)


def test_codebook_use():
    model = tiny_model()
    videos = clips(3)
    with torch.no_grad():
        expected = len(model.video_model(videos).cluster_ids.unique()) / 16
    model.train()
    before, modes = {name: buffer.clone() for name, buffer in model.named_buffers()}, []
    model.video_model.register_forward_hook(lambda tower, *_: modes.append(tower.training))
    assert codebook_use(model, videos.split(1)) == pytest.approx(expected)
    assert modes == [False] * 3  # the model runs in evaluation mode
    assert model.training  # its mode is restored
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    with pytest.raises(ValueError, match="no codebook"):
        codebook_use(tiny_model(codebook_size=0), [videos])


def test_tokenizers_are_the_same_in_every_process(tmp_path):
    texts = ["a red circle moves left", "two blue squares, spinning", "a large green star's shadow"] * 3
    script = (
        "import sys, json; from region_learner.training.tokenizer import train_tokenizer; "
        "print(json.dumps(train_tokenizer(json.loads(sys.argv[1]), 60, 16).backend_tokenizer.to_str()))"
    )
    other = run_fresh(script, json.dumps(texts), isolated=False)  # another process hashes strings differently
    tokenizer = train_tokenizer(texts, 60, 16)
    assert json.loads(other.stdout) == tokenizer.backend_tokenizer.to_str()
    ids = tokenizer("a red square")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a red square"
    assert len(tokenizer(" ".join(texts), truncation=True)["input_ids"]) == 16


def test_a_resumed_run_matches_an_uninterrupted_one(corpus, tmp_path):
    """Two uninterrupted epochs give the same weights and codebook as resuming after the first epoch."""
    argv = [
        *TINY, "--corpus=moving_shapes", f"--data_dir={corpus}", "--max_steps=4", "--per_device_train_batch_size=6",
        "--save_strategy=steps", "--save_steps=2", "--learning_rate=1e-3",
    ]  # fmt: skip
    train(*parse_arguments(argv, output_dir=str(tmp_path / "straight")))
    shutil.copytree(tmp_path / "straight" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    train(*parse_arguments([*argv, "--resume_from_checkpoint=true"], output_dir=str(tmp_path / "resumed")))
    one, other = (AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("straight", "resumed"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], msg=name)


def test_changing_a_checkpoint_changes_the_defaults_that_depend_on_it(tmp_path, processor):
    model = tiny_model(text=tiny_text_config(vocab_size=400), num_frames=2, codebook_mode="original")
    assert model.config.video_config.resolved.codebook_decay == 0.1
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    arguments = ModelArguments(model=str(tmp_path), video_config={"codebook_mode": "ema", "num_frames": 3})
    changed, changed_processor = build_model(arguments)
    assert changed.config.video_config.resolved.codebook_decay == 0.99
    assert changed.video_model.region_module.quantizer.decay == 0.99
    assert changed.config.video_config.num_frames == changed_processor.video_processor.num_frames == 3
    assert torch.equal(changed.video_projection.weight, model.video_projection.weight)


def test_changing_the_masks_of_a_checkpoint_changes_their_loss(tmp_path, processor):
    own = {"region_options": {"mask_loss_weight": 0.5}}
    for name, options in (("ours", {}), ("paper", {"region_form": "paper"}), ("own", own)):
        tiny_model(text=tiny_text_config(vocab_size=400), num_frames=2, **options).save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    for name, changes, weight in [
        ("ours", {"region_form": "paper"}, 0.0),
        ("ours", {"region_options": {"mask_normalization": "positions"}}, 0.0),
        ("ours", {"region_options": {"interaction_mlp": False}}, 1.0),
        ("paper", {"region_form": "decoupled"}, 1.0),
        ("paper", {"region_form": "decoupled", "region_options": {"mask_loss_weight": 0.25}}, 0.25),
        ("own", {"region_options": {"interaction_mlp": False}}, 0.5),
        ("own", {"region_options": {"mask_loss_weight": None}}, 1.0),
    ]:
        model, _ = build_model(ModelArguments(model=str(tmp_path / name), video_config=changes))
        assert model.config.video_config.resolved.region_options.mask_loss_weight == weight, (name, changes)
        assert model.video_model.region_module.aggregation.has_loss == (weight > 0), (name, changes)


def test_arguments_come_from_flags_then_recipe(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("learning_rate: 0.5\nseed: 7\ncorpus_options: {seed: 3}\n")
    _, data, training = parse_arguments([str(recipe), "--seed", "8"], output_dir="there")
    assert (training.learning_rate, training.seed, training.output_dir) == (0.5, 8, "there")
    assert data.corpus_options == {"seed": 3}
    assert not training.remove_unused_columns
    assert training.label_names == ["video_ids"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lerning_rate: 1", "unknown key 'lerning_rate'; did you mean 'learning_rate'"),
        ("- 1", "must contain a mapping"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_wrong_recipes(tmp_path, content, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        parse_arguments([str(path)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "moving_shape"], "'moving_shape' is neither a recipe nor a file; did you mean 'moving_shapes'"),
        (["train", "small_from_scratch", "--data_dir", "/nowhere"], "/nowhere"),
        (["train", *TINY, "--corpus=nothing"], "unknown corpus 'nothing'"),
        (["train", "--corpus=nothing"], "Give exactly one source of the model: model"),
        (["evaluate", "model", "--corpus-options", "{"], "--corpus-options must be JSON"),
        (["convert", "/nowhere.pth", "out"], "no checkpoint /nowhere.pth"),
        (["convert", str(FROZEN), "out", "--config", '{"num_frames": "4"}'], "expected int, got str"),
        (["convert", str(FROZEN), "out", "--config", '{"tokenizer": "a"}'], "--config takes fields"),
        (
            ["convert", str(FROZEN), "out", "--config", '{"num_heads": 4}'],
            "'num_heads' is not a field of the configuration; did you mean",
        ),
        (["train", "--no_such_flag", "1"], "--no_such_flag is not known"),
        (["train", "--video_config", "{"], "video_config must be JSON"),
        (["corpus", "make", "out", "--corpus-options", '{"trian": 3}'], "trian"),
    ],
)
def test_the_command_line_says_in_one_line_what_is_wrong(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("region-learner: error: ")
    assert message in error


def test_a_model_comes_from_one_place():
    with pytest.raises(
        ValueError, match=r"one source of the model: model; or video_tower and text_tower; or .* Given: none"
    ):
        build_model(ModelArguments())
    with pytest.raises(ValueError, match="Given: model; text_config and tokenizer"):
        build_model(ModelArguments(model="a", text_config={"model_type": "bert"}))
    with pytest.raises(ValueError, match="come in pairs"):
        build_model(ModelArguments(video_tower="vit_tiny_patch16_224"))
    with pytest.raises(ValueError, match="needs a tokenizer"):
        build_model(ModelArguments(text_config={"model_type": "bert"}))


def test_the_demo_runs(tmp_path, capsys, monkeypatch):
    from region_learner.demo import run_demo

    monkeypatch.setattr(subprocess, "run", run_script)
    sizes = {"train": 24, "test": 8, "size": 48, "frames": 4}
    options = [
        "--max_steps=2",
        "--logging_steps=1",
        "--per_device_train_batch_size=8",
        "--dataloader_num_workers=0",
        "--use_cpu=true",
    ]
    page = run_demo(tmp_path, options, sizes).read_text()
    printed = capsys.readouterr().err
    assert "loaded RegionLearnerModel and RegionLearnerProcessor from transformers_modules" in printed
    assert "chance (8 videos)" in printed
    assert page.count("<svg") >= 1
    assert "orange shows which part of them matches the query" in page
    assert (tmp_path / "checkpoint" / "model.safetensors").is_file()

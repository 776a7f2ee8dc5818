"""Tests what the Trainer adds: learning rates per tower and layer, frozen parts, logs, adapters and stages."""

import inspect
import json
import math
import shutil
import tarfile
import time

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModel, ProgressCallback, Trainer, TrainerCallback, TrainerState
from transformers.utils.logging import is_progress_bar_enabled

from region_learner.corpora import load_corpus, make_corpus
from region_learner.training import (
    CorpusPart,
    ModelArguments,
    RegionLearnerTrainer,
    RegionLearnerTrainingArguments,
    parse_stages,
    train_stages,
)
from region_learner.training.adapters import with_lora
from region_learner.training.logs import LogLines, Progress, log_line
from region_learner.training.model import with_head
from region_learner.training.optimization import freeze, milestones, parameter_groups
from region_learner.training.run import _facts
from region_learner.training.unreadable import UnreadableVideos
from region_learner.video_decoding_region_learner import VideoDecodeError

from .conftest import TINY_VIDEO, clips, tiny_model
from .test_training import TINY
from .toy_run import DEFAULTS, Collator, Processor, run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "corpus"
    options = {"train": 8, "val": 0, "test": 4, "test_unseen": 0, "size": 48, "frames": 4, "objects": [1, 1]}
    return make_corpus("moving_shapes", folder, workers=1, progress=False, **options)


def command(corpus, output, *more):
    return [*TINY, "--corpus=moving_shapes", f"--data_dir={corpus}", f"--output_dir={output}", "--max_steps=2",
            "--per_device_train_batch_size=4", *more]  # fmt: skip


# Optimization


def groups_by_name(model, decayed=(), **arguments):
    arguments = RegionLearnerTrainingArguments(report_to="none", use_cpu=True, **arguments)
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, arguments, list(decayed))
        for p in group["params"]
    }


def test_learning_rates_of_towers_and_layers():
    model = tiny_model(learn_temperature=True)
    rates = groups_by_name(model, learning_rate=1.0, video_learning_rate=0.5, text_learning_rate=0.25, layer_decay=0.5)
    assert rates.keys() == {name for name, _ in model.named_parameters()}
    expected = {
        "video_projection.weight": 1.0,
        "logit_scale": 1.0,
        "video_model.layernorm.weight": 0.5,
        "video_model.region_module.aggregation.conv.weight": 0.5,
        "video_model.layers.1.mlp.fc1.weight": 0.5 * 0.5,
        "video_model.layers.0.space_attention.q_proj.weight": 0.5 * 0.5**2,
        "video_model.embeddings.temporal_embeddings": 0.5 * 0.5**3,
        "text_model.transformer.layer.1.ffn.lin1.weight": 0.25 * 0.5,
        "text_model.embeddings.word_embeddings.weight": 0.25 * 0.5**3,
    }
    assert {name: rates[name][0] for name in expected} == expected
    assert {rate for rate, _ in groups_by_name(model, learning_rate=0.1).values()} == {0.1}


def test_weight_decay_exempts_norms_positions_and_biases(tmp_path):
    seen = {}

    class Look(torch.optim.SGD):
        def __init__(self, groups, **options):
            seen["groups"] = [(group["weight_decay"], group["params"]) for group in groups]
            super().__init__(groups, **options)

    model = tiny_model(learn_temperature=True)
    arguments = RegionLearnerTrainingArguments(report_to="none", use_cpu=True, weight_decay=0.1)
    trainer = RegionLearnerTrainer(model=model, args=arguments, processing_class=Processor())
    trainer.get_optimizer_cls_and_kwargs = lambda *_: (Look, {"lr": 0.1})
    trainer.create_optimizer()
    names = {id(p): name for name, p in model.named_parameters()}
    decay = {names[id(p)]: value for value, parameters in seen["groups"] for p in parameters}
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim < 2 or "norm" in name.lower() or "position" in name or "temporal" in name
        assert decay[name] == (0.0 if exempt or "cls_token" in name else 0.1), name


def test_frozen_parts_do_not_change(tmp_path):
    start = run(tmp_path / "0", max_steps=1, learning_rate=0.0, freeze=["video_model."])["state"]
    trained = run(tmp_path / "1", max_steps=3, learning_rate=0.01, freeze=["video_model.", "text_projection"])["state"]
    changed = {name for name, value in trained.items() if not torch.equal(value, start[name])}
    assert changed
    assert all(name.startswith(("text_model", "video_projection")) for name in changed)


def test_frozen_names():
    with pytest.raises(ValueError, match=r"freeze='audio' is not the beginning of any parameter's name .*video_model"):
        freeze(tiny_model(), ["audio"])
    model = tiny_model()
    freeze(model, ["video_model", "text_model", "video_projection", "text_projection"])
    with pytest.raises(ValueError, match="All parameters are frozen"):
        groups_by_name(model)
    layer = tiny_model()
    freeze(layer, ["video_model.layers.0."])
    assert not layer.video_model.region_module.quantizer.frozen
    assert layer.video_model.layers[1].mlp.fc1.weight.requires_grad


def test_milestones():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = milestones(optimizer, [6, 8], 0.1, warmup=1)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_milestones_in_a_run(tmp_path):
    log = run(tmp_path, max_steps=5, lr_milestones=[0.4, 0.8], learning_rate=1e-3, lr_scheduler_type="constant")["log"]
    assert [entry["learning_rate"] for entry in log] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer_decay": 2.0}, "layer_decay=2.0 must be above 0 and at most 1"),
        ({"lr_milestones": [30.0]}, "must be fractions of training"),
        ({"lr_milestones": [0.5], "lr_scheduler_type": "cosine"}, "need lr_scheduler_type constant"),
        ({"gradient_cache_chunk": 0}, "gradient_cache_chunk=0 must be at least 1"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 is not supported"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RegionLearnerTrainingArguments(report_to="none", **arguments)


# Logs


class OneProcess:
    device = torch.device("cpu")
    num_processes = 1

    @staticmethod
    def reduce(x, reduction):
        return x


def test_the_state_of_codebook_and_regions_is_logged():
    class Outputs:
        class video_model_output:  # noqa: N801
            cluster_ids = torch.tensor([[0, 0, 1], [1, 2, 2]])
            region_loss = torch.tensor([0.5, 0.25])

    progress = Progress(codebook_size=6)
    progress.observe(Outputs)
    first = progress.summary(OneProcess, 0)
    assert (first["codebook_use"], first["region_loss"]) == (50.0, 0.375)
    progress.observe(Outputs)  # a new count begins after each summary
    Outputs.video_model_output.cluster_ids = torch.tensor([3, 3, 3, 3, 3, 3])
    Outputs.video_model_output.region_loss = torch.tensor([0.75])
    progress.observe(Outputs)
    shares = [2 / 12, 2 / 12, 2 / 12, 6 / 12]
    summary = progress.summary(OneProcess, 7)
    assert summary["codebook_perplexity"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), abs=0.01)
    assert summary["region_loss"] == 0.5
    assert summary["unreadable_videos"] == 7


def test_only_steps_and_waiting_for_data_count_as_training_time(monkeypatch):
    """A fake clock simulates 4 seconds of waiting, a step of 6 seconds, and an evaluation of 100 seconds."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    progress = Progress()
    progress.on_train_begin(None, None, None)
    with progress.waiting():
        now[0] += 4
    progress.on_step_begin(None, None, None)
    now[0] += 6
    progress.on_step_end(None, None, None)
    progress.samples, progress.videos = 50, 20
    now[0] += 100
    summary = progress.summary(OneProcess, 0)
    assert (summary["samples_per_second"], summary["videos_per_second"], summary["data_wait"]) == (5.0, 2.0, 0.4)
    assert progress.samples_seen == 50
    progress.on_step_begin(None, None, None)
    now[0] += 2
    progress.on_step_end(None, None, None)
    progress.samples = 6
    assert progress.summary(OneProcess, 0)["samples_per_second"] == 3.0  # a new interval
    assert progress.samples_seen == 56
    progress.on_train_begin(None, None, None)
    assert progress.samples_seen == 0


STEP = {"loss": 1.23456, "grad_norm": 0.5, "learning_rate": 1e-4, "epoch": 3.0, "samples_per_second": 419.6,
        "videos_per_second": 400.0, "data_wait": 0.034, "codebook_use": 96.09, "codebook_perplexity": 12.0,
        "temperature": 0.05, "unreadable_videos": 0}  # fmt: skip


def test_log_lines():
    line = (
        "step 120/8000  epoch  3.00  loss  1.2346  grad   0.500  lr 1.0e-04   419.6 clips/s  data wait  3%  codes  96%"
    )
    assert log_line(STEP, 120, 8000) == line.replace("step 120", "step  120") + "  temperature 0.0500"
    assert len(log_line(STEP, 8000, 8000)) == len(log_line(STEP | {"loss": 0.1, "epoch": 12.5}, 1, 8000))  # aligned
    assert log_line(STEP | {"unreadable_videos": 2}, 1, 8).endswith("  unreadable_videos 2")
    assert "loss     nan" in log_line(STEP | {"loss": math.nan}, 1, 8)
    metrics = {
        "eval_loss": 1.5,
        "eval_t2v_R@1": 40.0,
        "eval_t2v_R@50": 90.0,
        "eval_t2v_MedR": 2.0,
        "eval_v2t_R@1": 100.0,
        "eval_runtime": 3.2,
        "eval_samples_per_second": 9.0,
        "epoch": 3.0,
    }
    shown = "eval  loss  1.5000  t2v R@1  40.00  MedR   2.00  v2t R@1 100.00"
    assert log_line(metrics, 5, 10) == f"step  5/10  epoch  3.00  {shown}"
    assert log_line(metrics, 0, 0) == shown  # without training
    assert log_line({"eval_accuracy": 50.0, "eval_questions": 8}, 0, 0) == "eval  accuracy  50.00  questions 8"
    assert log_line({"eval_own_t2v_R@1": 4.0}, 0, 0) == "eval  own_t2v R@1   4.00"  # one of several datasets
    end = {"train_runtime": 8.0, "train_loss": 2.0, "total_flos": 1e9, "epoch": 12.0}
    assert log_line(end, 10, 10) == "step 10/10  epoch 12.00  train loss  2.0000"


def test_lines_of_steps_end_with_the_time_that_is_left(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    lines, state = LogLines(), TrainerState(global_step=100, max_steps=500)  # the run resumes at step 100
    lines.on_log(None, state, None, {"loss": 1.0})  # `trainer.log` may be called before training
    lines.on_train_begin(None, state, None)
    now[0] += 60
    state.global_step = 140  # 40 steps in a minute: the other 360 take 9 minutes
    lines.on_log(None, state, None, STEP)
    lines.on_log(None, state, None, {"eval_t2v_R@1": 40.0})
    state.global_step = 500
    lines.on_log(None, state, None, STEP)
    before, step, evaluation, last = capsys.readouterr().err.splitlines()
    assert before.endswith("loss  1.0000")
    assert step.endswith("  temperature 0.0500  0:09:00 left")
    assert evaluation.endswith("R@1  40.00")
    assert last.endswith("  0:00:00 left")


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("quiet", [True, False])
def test_runs_print_lines_instead_of_dictionaries(tmp_path, capsys, monkeypatch, terminal, quiet):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    run(tmp_path, max_steps=2, disable_tqdm=quiet, save=True)
    out, err = capsys.readouterr()
    assert not out
    assert "shards" not in err  # no progress bar for saving either
    assert is_progress_bar_enabled()
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2", "2/2"]
    assert "{" not in err
    assert ("2/2 [" in err) == (terminal and not quiet)  # a progress bar


def test_what_is_logged(tmp_path):
    log = run(tmp_path, max_steps=2, model={"learn_temperature": True})["log"]
    codebook = ("codebook_use", "codebook_perplexity")
    for name in ("samples_per_second", *codebook, "region_loss", "temperature", "grad_norm"):
        assert log[0][name] > 0
    assert 0 <= log[0]["data_wait"] <= 1
    assert log[0]["unreadable_videos"] == 0
    without = run(tmp_path, max_steps=1, video={"codebook_size": 0, "region_options": {"mask_loss_weight": 0.0}})[
        "log"
    ]
    assert not {"codebook_use", "region_loss"} & without[0].keys()


# Runs


class Recording(Collator):
    def __init__(self):
        super().__init__()
        self.ids = []

    def __call__(self, rows):
        self.ids.append([row["video_id"] for row in rows])
        return super().__call__(rows)


def test_each_epoch_has_its_own_order(tmp_path):
    arguments = RegionLearnerTrainingArguments(
        output_dir=str(tmp_path), **DEFAULTS | {"max_steps": 6, "per_device_train_batch_size": 8}
    )
    rows = Dataset.from_dict({"video_id": [str(i) for i in range(16)]})
    trainer = RegionLearnerTrainer(
        model=tiny_model(), args=arguments, processing_class=Processor(), train_dataset=rows, data_collator=Recording()
    )
    trainer.train()
    ids = trainer.data_collator.ids
    epochs = [first + second for first, second in zip(ids[::2], ids[1::2])]
    assert all(set(epoch) == set(rows["video_id"]) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.parametrize("mode", ["ema", "original"])
def test_the_codebook_is_updated_once_per_step(tmp_path, mode):
    """This also holds for accumulated batches. After training, `auto_update` is on again, as custom loops need it."""
    quantizers, seen = [], []

    class Watch(TrainerCallback):
        def on_substep_end(self, args, state, control, model=None, **kwargs):
            seen.append((int(model.quantizer.num_updates), model.quantizer.auto_update))

        on_step_end = on_substep_end

    def before(trainer):
        quantizers.append(trainer.model.quantizer)

    def interrupted(trainer):  # what an interrupted run left behind must not matter
        before(trainer)
        trainer.model.quantizer.auto_update = False
        trainer.model.train()(pixel_values_videos=clips())

    options = {"max_steps": 3, "gradient_accumulation_steps": 2, "video": {"codebook_mode": mode}}
    states = [
        run(tmp_path, callbacks=(Watch(),), before=prepare, **options)["state"] for prepare in (before, interrupted)
    ]
    assert seen == 2 * [(0, False), (1, False), (1, False), (2, False), (2, False), (3, False)]
    assert all(quantizer.auto_update for quantizer in quantizers)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    # Each step has 2 batches of 4 clips with up to 2 frames of 16 patches. The first step of "ema" initializes codes.
    frames = states[0]["video_model.region_module.quantizer.cluster_sum"].sum() / 16
    steps = 2 if mode == "ema" else 3
    assert steps * 8 < frames <= steps * 16


def test_adapters(corpus, tmp_path):
    """Only the weights that adapters may change are different, and the saved model is a plain one."""
    pytest.importorskip("peft")
    train_stages(parse_stages(command(corpus, tmp_path / "whole", "--test_split=test")))
    lora = json.dumps({"r": 2, "towers": ["text_model"]})
    argv = ["--corpus=moving_shapes", f"--data_dir={corpus}", "--use_cpu=true", "--report_to=none", "--max_steps=2",
            f"--model={tmp_path / 'whole'}", "--learning_rate=0.01", "--per_device_train_batch_size=4",
            "--disable_tqdm=true", "--test_split=test"]  # fmt: skip
    results = train_stages(parse_stages([*argv, "--lora", lora], output_dir=str(tmp_path / "text")))
    assert results["test"]["videos"] == 4
    both = json.dumps({"r": 2})
    train_stages(parse_stages([*argv, "--lora", both], output_dir=str(tmp_path / "both")))
    before = load_file(tmp_path / "whole" / "model.safetensors")
    for name, parts in (("text", ("text_model", "text_projection", "video_projection")), ("both", ("",))):
        after = load_file(tmp_path / name / "model.safetensors")
        assert after.keys() == before.keys()
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed
        assert all(key.startswith(parts) for key in changed), changed
        AutoModel.from_pretrained(tmp_path / name)
    assert "video_model.region_module.quantizer.embed" in changed
    assert "video_model.layers.0.mlp.fc1.weight" in changed
    assert "video_model.embeddings.temporal_embeddings" in changed
    assert "video_model.embeddings.position_embeddings" not in changed
    with pytest.raises(ValueError, match="audio is not a tower of this model; choose from video_model"):
        train_stages(parse_stages([*argv, "--lora", '{"towers": ["audio"]}'], output_dir=str(tmp_path / "wrong")))


def test_adapters_do_not_freeze_new_parameters():
    pytest.importorskip("peft")
    model = with_lora(tiny_model(learn_temperature=True, loss="sigmoid", temporal_fusion="linear"), {"r": 2})
    trained = {name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad}
    assert {"logit_scale", "logit_bias", "video_model.embeddings.temporal_embeddings"} <= trained
    assert any("temporal_fusion" in name for name in trained)
    assert "text_model.embeddings.word_embeddings.weight" not in trained


def test_adapters_resume(corpus, tmp_path):
    """Weights that PEFT does not save, such as a learned temperature, are restored, too."""
    pytest.importorskip("peft")
    options = ["--config", json.dumps({"learn_temperature": True}), "--learning_rate=0.01", "--save_strategy=steps",
               "--save_steps=2", "--lora", '{"r": 2}', "--max_steps=4"]  # fmt: skip
    train_stages(parse_stages([*command(corpus, tmp_path / "whole"), *options]))
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    train_stages(parse_stages([*command(corpus, tmp_path / "resumed"), *options, "--resume_from_checkpoint=true"]))
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert one["logit_scale"] != -math.log(0.05)


def test_a_checkpoint_to_resume_from_belongs_to_one_stage(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("stages: [{num_frames: 1}, {num_frames: 2}, {num_frames: 4}]")
    output = tmp_path / "run"
    argv = [str(recipe), *TINY, f"--output_dir={output}"]
    stages = parse_stages([*argv, f"--resume_from_checkpoint={output}/stage-2/checkpoint-7"])
    resumes = [arguments[2].resume_from_checkpoint for arguments in stages]
    assert resumes == ["true", f"{output}/stage-2/checkpoint-7", None]
    with pytest.raises(ValueError, match="is not in the directory of any stage"):
        parse_stages([*argv, "--resume_from_checkpoint=elsewhere/checkpoint-7"])


def test_a_head_takes_more_frames_than_it_was_trained_with(tmp_path):
    arguments = ModelArguments(model=str(tmp_path), task="question_answering")
    head = with_head(tiny_model(), ModelArguments(task="question_answering"), ["red", "blue"])
    head.save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path).resize_frames(8)
    again = with_head(model, arguments, ["other", "answers", "now"])
    assert again.config.video_config.num_frames == 8
    assert again.config.label2id == {"red": 0, "blue": 1}
    assert torch.equal(again.classifier.fc2.weight, head.classifier.fc2.weight)
    decayed = {name for name, _ in again.named_parameters()}
    assert groups_by_name(again, decayed, weight_decay=0.1)["classifier.video_projection.scale"][1] == 0.0


def test_the_limit_of_unreadable_videos_is_a_share_of_videos_not_of_questions(tmp_path):
    rows = Dataset.from_dict(
        {"video": ["x"] * 200, "video_id": [str(i % 10) for i in range(200)], "captions": ["x"] * 200}
    )
    arguments = RegionLearnerTrainingArguments(report_to="none", use_cpu=True, output_dir=str(tmp_path))
    trainer = RegionLearnerTrainer(
        model=tiny_model(), args=arguments, processing_class=Processor(), train_dataset=rows
    )
    assert _facts(trainer)["videos"] == 10
    trainer.unreadable.report("1", "cannot be read", in_training=True)
    with pytest.raises(VideoDecodeError, match=r"2 of 10 videos are unreadable, more than max_unreadable=0.1"):
        trainer.unreadable.report("2", "cannot be read", in_training=True)


def test_a_resumed_stream_counts_earlier_clips(tmp_path):
    parts = [CorpusPart(Dataset.from_dict({"video_id": ["0"]}).to_iterable_dataset(), 2)]
    before = UnreadableVideos(tmp_path, 0.1, parts)
    for number in range(12):
        before.report(str(number), "cannot be read", in_training=True, samples_seen=400)
    before.save(tmp_path, 0, samples_seen=400)
    resumed = UnreadableVideos(tmp_path, 0.1, parts)
    resumed.load(tmp_path, 0)
    for number in range(12, 41):
        resumed.report(str(number), "cannot be read", in_training=True, samples_seen=10)
    with pytest.raises(VideoDecodeError, match="42 of 410 videos are unreadable"):
        resumed.report("41", "cannot be read", in_training=True, samples_seen=10)
    (tmp_path / "unreadable_0.json").write_text('{"7": "cannot be read"}')  # the format of an older version
    resumed.load(tmp_path, 0)
    assert resumed.in_training == {"7": "cannot be read"}


def test_the_limit_of_unreadable_videos_applies_to_all_processes_together(tmp_path, monkeypatch):
    videos = UnreadableVideos(tmp_path, 0.1, [CorpusPart([{"video_id": str(number)} for number in range(20)], 2)])
    others = [("1", "cannot be read"), ("2", "cannot be read")]
    monkeypatch.setattr("region_learner.training.unreadable.gather_object", lambda own: own + others)
    videos.report("1", "cannot be read", in_training=True)
    videos.check_all_processes(3)  # 2 different videos
    videos.report("3", "cannot be read", in_training=True)
    with pytest.raises(VideoDecodeError, match=r"3 of 20 videos are unreadable, more than max_unreadable=0.1"):
        videos.check_all_processes(4)
    assert set(json.loads((tmp_path / "unreadable_videos.json").read_text())) == {"1", "2", "3"}


def test_each_stage_continues_from_the_previous_one(corpus, tmp_path, caplog):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "stages: [{num_frames: 1, video_config: {num_frames: 2}}, "
        "{num_frames: 4, video_config: {num_frames: 4}, learning_rate: 0.0}]"
    )
    sizes = {name: value for name, value in TINY_VIDEO.items() if name != "num_frames"}  # set by each stage
    sizes = f"--video_config={json.dumps(sizes)}"
    argv = [str(recipe), *command(corpus, tmp_path / "run"), sizes, "--test_split=test"]
    stages = parse_stages(argv)
    assert [stage[0].num_frames for stage in stages] == [1, 4]
    results = train_stages(stages)
    assert results["test"]["videos"] == 4
    first = AutoModel.from_pretrained(tmp_path / "run" / "stage-1")
    last = AutoModel.from_pretrained(tmp_path / "run")
    assert (first.config.video_config.num_frames, last.config.video_config.num_frames) == (2, 4)
    name = "video_model.layers.0.mlp.fc1.weight"
    assert torch.equal(first.state_dict()[name], last.state_dict()[name])  # learning rate 0
    trained = (tmp_path / "run" / "stage-1" / "model.safetensors").stat().st_mtime_ns
    caplog.set_level("INFO", logger="region_learner")
    (tmp_path / "run" / "results.json").unlink()  # as if the run had been killed
    train_stages(parse_stages([*argv, "--resume_from_checkpoint=true"]))
    assert "Stage 1 of 2 has already finished" in caplog.text
    assert (tmp_path / "run" / "stage-1" / "model.safetensors").stat().st_mtime_ns == trained


def test_several_corpora_and_a_stream(corpus, tmp_path):
    """Shards and files are read in turn, each with its own number of frames and batch size."""
    rows = load_corpus("moving_shapes", corpus)
    for shard in range(2):
        with tarfile.open(tmp_path / f"train-{shard}.tar", "w") as tar:
            for i in range(shard, 8, 2):
                (tmp_path / f"{i}.txt").write_text(rows[i]["captions"][0])
                tar.add(rows[i]["video"], f"{i}.mp4")
                tar.add(tmp_path / f"{i}.txt", f"{i}.txt")
    corpora = [
        {"corpus": "webdataset", "data_dir": str(tmp_path), "streaming": True, "num_frames": 1, "batch_size": 3},
        {"corpus": "moving_shapes", "data_dir": str(corpus), "batch_size": 2},
    ]
    argv = command(corpus, tmp_path / "run", "--corpora", json.dumps(corpora), "--max_steps=4", "--logging_steps=1")
    results = train_stages(parse_stages(argv))
    assert len(results["log"]) == 4
    assert results["train"]["unreadable_videos"] == 0
    with pytest.raises(ValueError, match="set the number of training steps with --max-steps"):
        train_stages(parse_stages([*argv, "--max_steps=-1", "--overwrite"]))


def test_bfloat16(tmp_path):
    half = run(tmp_path / "1", max_steps=2, bf16=True)
    full = run(tmp_path / "2", max_steps=2)
    for ours, expected in zip(half["log"], full["log"], strict=True):
        assert ours["loss"] == pytest.approx(expected["loss"], rel=0.05)
        assert ours["loss"] != expected["loss"]  # it was really bfloat16
    for name, value in half["state"].items():
        if "quantizer" in name and value.is_floating_point():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value.norm(), full["state"][name].norm(), rtol=0.1, atol=0.1, msg=name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    compiled = run(tmp_path / "1", max_steps=2, torch_compile=True)
    plain = run(tmp_path / "2", max_steps=2)
    for ours, expected in zip(compiled["log"], plain["log"], strict=True):
        assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_docstrings_say_what_changes_in_the_trainer():
    """A method that overrides one of transformers' Trainer has its own docstring, and so has each callback."""
    classes = [cls for cls in RegionLearnerTrainer.__mro__ if cls.__module__.startswith("region_learner.")]
    overrides = {
        f"{cls.__name__}.{name}": method.__doc__
        for cls in classes
        for name, method in vars(cls).items()
        if inspect.isfunction(method) and hasattr(Trainer, name) and name != "__init__"
    }
    assert {"RegionLearnerTrainer.train", "SafeTrainer._save"} <= overrides.keys()
    callbacks = [*TrainerCallback.__subclasses__(), *ProgressCallback.__subclasses__()]
    ours = {cls.__name__: cls.__doc__ for cls in callbacks if cls.__module__.startswith("region_learner.")}
    assert {"Progress", "_CodebookUpdates"} <= ours.keys()
    assert [name for name, docstring in (overrides | ours).items() if not docstring] == []

"""Tests that a run is refused before it starts if it would ignore an option or fail on it too late."""

import json
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import TrainerCallback

from region_learner.cli import main
from region_learner.loading import load_model
from region_learner.modeling_region_learner import RegionLearnerModel
from region_learner.training import (
    CorpusPart,
    ModelArguments,
    RegionLearnerTrainer,
    RegionLearnerTrainingArguments,
    parse_stages,
    run,
    task_data,
    train_stages,
)
from region_learner.training.arguments import DataArguments
from region_learner.training.checkpoints import data_order, how_to_resume
from region_learner.training.model import check_model_arguments
from region_learner.training.run import check_arguments

from .conftest import tiny_model
from .test_training import TINY
from .toy_run import DEFAULTS, Collator, Processor


@pytest.mark.parametrize(
    "options",
    [
        {"per_device_train_batch_size": 0},
        {"per_device_eval_batch_size": 0},
        {"dataloader_num_workers": -1},
        {"learning_rate": float("nan")},
        {"video_learning_rate": -1.0},
        {"text_learning_rate": float("inf")},
        {"weight_decay": -0.1},
        {"lr_gamma": -1.0},
        {"samples_per_epoch": 0},
        {"seed": -1},
        {"max_steps": 0},
    ],
    ids=str,
)
def test_numbers_out_of_range(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* must be at least"):
        RegionLearnerTrainingArguments(**options)


def test_other_values_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="mix='alternating' is not known"):
        RegionLearnerTrainingArguments(mix="alternating")
    with pytest.raises(ValueError, match="num_frames=0 must be at least 1"):
        ModelArguments(num_frames=0)
    with pytest.raises(ValueError, match="frame_fill='cubic' is not known"):
        ModelArguments(frame_fill="cubic")
    with pytest.raises(ValueError, match="max_train_videos=-1 must be at least 1"):
        DataArguments(max_train_videos=-1)
    with pytest.raises(ValueError, match="corpora is an empty list"):
        DataArguments(corpora=[])
    (file := tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file: name a directory"):
        check_arguments(*parse_stages([*TINY, f"--output_dir={file}"])[0])


@pytest.mark.parametrize(
    "entry",
    [
        {"batch_size": "4"},
        {"batch_size": True},
        {"weight": 0},
        {"weight": "a"},
        {"num_frames": 0},
        {"options": [1]},
        {"data_dir": 3},
        {"streaming": "true"},
        {"shuffle_buffer": 0},
    ],
    ids=str,
)
def test_values_of_corpora(entry):
    with pytest.raises(ValueError, match=f"corpora: {next(iter(entry))}=.* must be "):
        DataArguments(corpora=[{"corpus": "folder", **entry}])
    DataArguments(corpora=[{"corpus": "cc3m", "num_frames": None, "weight": 2, "streaming": True, "options": {}}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": "2"}, "r='2' must be an integer"),
        ({"r": 0}, "r=0 must be an integer of at least 1"),
        ({"towers": "text_model"}, "towers must be a list"),
    ],
)
def test_options_of_adapters(options, message):
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match=message):
        check_model_arguments(
            ModelArguments(text_config={"model_type": "distilbert"}, tokenizer="train", lora=options)
        )


def test_modules_that_do_not_exist():
    pytest.importorskip("peft")
    from region_learner.training.adapters import with_lora

    with pytest.raises(ValueError, match="modules_to_save names 'video_head'"):
        with_lora(tiny_model(), {"modules_to_save": ["video_head"]})
    with_lora(tiny_model(), {"modules_to_save": ["video_projection"]})
    with pytest.raises(ValueError, match=r"are not valid for peft\.LoraConfig"):
        with_lora(tiny_model(), {"lora_alpha": "a"})


def test_more_frames_than_the_model_has_positions(tmp_path, pictures):
    argv = [*TINY, *pictures, f"--output_dir={tmp_path / 'run'}", "--num_frames=3"]
    with pytest.raises(ValueError, match="num_frames=3: the model has temporal positions for 2 frames per clip"):
        train_stages(parse_stages(argv))


def test_a_size_that_differs_from_the_checkpoint(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    config = tiny_model().config
    config.video_config.num_regions += 1
    with pytest.raises(ValueError, match="do not have the shapes of its configuration"):
        load_model(RegionLearnerModel, str(tmp_path), config=config)


def test_a_checkpoint_without_weights_of_its_towers(tmp_path):
    tiny_model(num_regions=0, codebook_size=0, interaction_layers=0).save_pretrained(tmp_path)
    config = tiny_model().config
    loaded = load_model(RegionLearnerModel, str(tmp_path), config=config)  # only its regions are new
    assert loaded.video_model.region_module is not None
    config.video_config.num_hidden_layers += 1
    with pytest.raises(ValueError, match=r"lacks \d+ weights of its towers \(video_model\.layers\."):
        load_model(RegionLearnerModel, str(tmp_path), config=config)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Returns the arguments of a corpus of pictures."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("corpus")
    (folder / "train").mkdir()
    rows = []
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(folder / "train" / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": f"number {number}"}))
    (folder / "train" / "metadata.jsonl").write_text("\n".join(rows))
    return ["--corpus=folder", f"--data_dir={folder}"]


def test_json_alone_on_standard_output(tmp_path, pictures, capsys):
    steps = ["--max_steps=1", "--per_device_train_batch_size=2", "--logging_steps=1"]
    with pytest.raises(SystemExit) as exit_info:
        main(["train", *TINY, *pictures, *steps, f"--output_dir={tmp_path}", "--json"])
    out, err = capsys.readouterr()
    assert exit_info.value.code == 0, err
    assert json.loads(out)["videos"] == 4
    assert "  grad " in err


# In Python


def trainer(tmp_path, dataset, **options):
    of_arguments = {item.name for item in fields(RegionLearnerTrainingArguments)} & options.keys()
    arguments = {name: options.pop(name) for name in of_arguments}
    if "model_init" not in options:
        options["model"] = tiny_model()
    return RegionLearnerTrainer(
        args=RegionLearnerTrainingArguments(**DEFAULTS | {"output_dir": str(tmp_path)} | arguments),
        processing_class=Processor(),
        train_dataset=dataset,
        data_collator=Collator(),
        **options,
    )


def rows(ids):
    return Dataset.from_dict({"video_id": list(ids)})


def test_rows_of_one_video_have_no_negatives(tmp_path):
    with pytest.raises(ValueError, match="All 8 rows of a corpus have the video_id 'a'"):
        trainer(tmp_path, rows("aaaaaaaa"))
    trainer(tmp_path, rows("aaaaaaab"))


def test_several_corpora_are_parts(tmp_path):
    with pytest.raises(ValueError, match="must be a CorpusPart, not a Dataset"):
        trainer(tmp_path, [CorpusPart(rows("abcd"), 4), rows("abcd")])


def test_options_that_a_custom_optimizer_would_ignore(tmp_path):
    mine = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match="layer_decay has no effect if optimizers= is given to the Trainer"):
        trainer(tmp_path, rows("abcd"), layer_decay=0.5, optimizers=(mine, None))
    schedule = torch.optim.lr_scheduler.ConstantLR(mine)
    with pytest.raises(ValueError, match="lr_milestones has no effect if optimizers= is given to the Trainer"):
        trainer(tmp_path, rows("abcd"), lr_milestones=[0.5], optimizers=(mine, schedule))
    trainer(tmp_path, rows("abcd"), layer_decay=0.5)


def test_a_model_that_is_made_again_is_frozen_again(tmp_path):
    made = []

    def init():
        made.append(tiny_model())
        return made[-1]

    found = trainer(tmp_path, rows(map(str, range(24))), model_init=init, freeze=["text_model"])
    found.train()
    assert len(made) == 2
    assert found.model is made[-1]
    assert not any(parameter.requires_grad for parameter in made[-1].text_model.parameters())
    before = tiny_model().state_dict()
    after = {name: value for name, value in made[-1].state_dict().items() if name.startswith("text_model")}
    assert after
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_corpora_of_the_same_size_are_distinguished():
    args = RegionLearnerTrainingArguments()
    ids = [str(number) for number in range(100)]

    def record(some):
        return data_order([CorpusPart(some, 4)], args)

    same = record(rows(ids))
    assert record(rows(ids)) == same == record([{"video_id": name} for name in ids])
    assert record(rows(reversed(ids))) != same
    assert record(rows([*ids[:99], "other"])) != same
    assert record(rows(["0"]))["rows"] == [1]


def test_options_of_a_schedule(tmp_path):
    options = {"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"foo": 1}}
    with pytest.raises(ValueError, match=r"lr_scheduler_kwargs=\{'foo': 1\} do not fit lr_scheduler_type=linear"):
        trainer(tmp_path, rows("01234567"), **options).train()
    with pytest.raises(ValueError, match="lr_scheduler_type=constant takes no lr_scheduler_kwargs"):
        trainer(tmp_path, rows("01234567"), **options | {"lr_scheduler_type": "constant"})


def test_modes_of_compilation():
    with pytest.raises(ValueError, match=r"torch_compile_mode='max' is not known; .*max-autotune"):
        RegionLearnerTrainingArguments(torch_compile_mode="max")


@pytest.mark.parametrize(
    "argv",
    [["evaluate", "--data-dir=CORPUS", "--split=train"], ["regions", "FILE"], ["train", "--data_dir=c", "--model"]],
    ids=str,
)
def test_adapters_alone_are_not_a_checkpoint(tmp_path, argv, pictures, capsys):
    folder, picture = tmp_path / "adapter", tmp_path / "picture.png"
    folder.mkdir()
    picture.touch()
    (folder / "adapter_config.json").write_text("{}")
    argv = [word.replace("--data-dir=CORPUS", pictures[1].replace("data_dir", "data-dir")) for word in argv]
    argv = [*argv, str(folder)] if "FILE" not in argv else ["regions", str(folder), str(picture)]
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert exit_info.value.code == 2
    assert "adapter contains only adapters: use the checkpoint that they belong to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", *TINY, "--tokenizer=./nosuch"], "There is no directory ./nosuch. A tokenizer is a directory"),
        (["regions", "MODEL", "FILE", "--batch-size=2"], "--batch-size needs --corpus"),
        (["regions", "MODEL", "FILE", "--workers=2"], "--workers needs --corpus"),
        (["train", *TINY, "CORPUS", "--task=question_answering"], "the training data has no column 'question'"),
    ],
    ids=["tokenizer", "batch-size", "workers", "task"],
)
def test_the_command_line_reports_errors_in_one_line(tmp_path, argv, message, pictures, capsys):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "0.png").touch()
    names = {"MODEL": [str(tmp_path)], "FILE": [str(tmp_path / "0.png")], "CORPUS": pictures}
    argv = [one for word in argv for one in names.get(word, [word])]
    with pytest.raises(SystemExit) as exit_info:
        main([*argv, f"--output_dir={tmp_path / 'run'}"] if argv[0] == "train" else argv)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_limit_of_missing_videos_that_has_no_effect(tmp_path):
    arguments = DataArguments(corpus="webdataset", data_dir=str(tmp_path), max_missing=0.5)
    with pytest.raises(ValueError, match="--max-missing does not apply to the corpus 'webdataset': leave it out"):
        task_data.load_data(arguments, RegionLearnerTrainingArguments(str(tmp_path), report_to="none"))


SHARDS = {"corpus": "webdataset", "corpus_options": {"shards": "train/*.tar"}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SHARDS | {"test_split": "test"}, r"so --test-split test would be the same rows as those to train on: choose"),
        (SHARDS | {"eval_split": "val"}, r"so --eval-split val would be the same rows as those to train on: choose"),
        ({"corpus": "webvid", "corpus_options": {"file": "a.csv"}, "eval_split": "val"}, r"options file chooses"),
        (SHARDS | {"corpora": [{"corpus": "cc3m"}], "eval_split": "val", "test_split": "test"},
         r"so --eval-split val and --test-split test would be the same rows: choose"),
        (SHARDS | {"corpora": [{"corpus": "webdataset", "options": {"shards": "train/*.tar"}}], "eval_split": "val"},
         r"so --eval-split val would be the same rows as those to train on: choose"),
        (SHARDS | {"corpora": [{"options": {"shards": "other/*.tar"}}], "eval_split": "val"}, None),
        (SHARDS, None),
        (SHARDS | {"corpora": [{"corpus": "cc3m"}], "eval_split": "val"}, None),
        ({"corpus": "webdataset", "eval_split": "val", "test_split": "test"}, None),
        ({"corpus": "msrvtt", "corpus_options": {"protocol": "full"}, "test_split": "test"}, None),
    ],
)  # fmt: skip
def test_options_that_choose_rows_in_place_of_the_split(options, message):
    if message is None:
        task_data.check_splits(DataArguments(**options))
        return
    with pytest.raises(ValueError, match=message):
        task_data.check_splits(DataArguments(**options))


@pytest.mark.parametrize(
    ("options", "given", "expected"),
    [
        ({}, {}, ("epoch", None)),
        ({"streaming": True}, {}, ("steps", 500)),
        ({"streaming": True}, {"save_steps": 70}, ("steps", 70)),
        ({"streaming": True}, {"eval_steps": 30}, ("steps", 30)),
        ({"corpora": [{"streaming": True}, {}]}, {}, ("steps", 500)),
        ({"streaming": True, "corpora": [{"streaming": False}]}, {}, ("epoch", None)),
    ],
)
def test_when_a_split_is_evaluated_by_default(tmp_path, options, given, expected):
    arguments = RegionLearnerTrainingArguments(str(tmp_path), report_to="none", **given)
    run.complete_arguments(ModelArguments(), DataArguments(eval_split="val", **options), arguments)
    assert (arguments.eval_strategy, arguments.eval_steps) == expected


@pytest.mark.parametrize("what", ["save", "eval", "logging"])
def test_streams_have_no_epochs(tmp_path, what):
    rows = Dataset.from_dict({"video": ["a"], "video_id": ["a"], "captions": [["b"]]})
    data = task_data.RunData([CorpusPart(rows.to_iterable_dataset(), 2)], eval_dataset=rows)
    given = {"save_strategy": "steps", "eval_strategy": "steps", "logging_strategy": "steps"}
    arguments = RegionLearnerTrainingArguments(
        str(tmp_path), report_to="none", max_steps=9, **given | {f"{what}_strategy": "epoch"}
    )
    with pytest.raises(ValueError, match=rf"^--{what}-strategy epoch would mean once, after the last step, "):
        data.check("retrieval", arguments)
    data.check("retrieval", RegionLearnerTrainingArguments(str(tmp_path), report_to="none", max_steps=9, **given))


def test_classes_of_the_evaluation_are_found_by_name(tmp_path):
    def rows(names, labels):
        texts = {name: Value("string") for name in ("video", "video_id")}
        features = Features(texts | {"label": ClassLabel(names=names)})
        count = range(len(labels))
        columns = {"video": [f"{i}.mp4" for i in count], "video_id": list(map(str, count)), "label": labels}
        return Dataset.from_dict(columns | {}, features)

    trained = rows(["climb", "jump", "run"], [0, 1, 2])
    arguments = RegionLearnerTrainingArguments(str(tmp_path), report_to="none")
    data = task_data.RunData([CorpusPart(trained, 2)], eval_dataset=rows(["run", "climb"], [0, 1, 0]))
    data.check("classification", arguments)
    label = data.label_function("classification", {"climb": 5, "jump": 6, "run": 7})
    assert [label(row) for row in data.eval_dataset] == [7, 5, 7]
    data.eval_dataset = rows(["Run", "run", "climb", "jump"], [1, 2, -1])
    with pytest.raises(ValueError, match="such as 'Run'"):  # names are compared exactly
        data.check("classification", arguments)
    data.eval_dataset = rows(["run", "climb"], [1, -1])
    data.check("classification", arguments)
    assert data.eval_dataset["label"][:] == [0, -1]  # a missing label stays one
    data.eval_dataset = rows(["run", "swim"], [0, 1])
    with pytest.raises(ValueError, match="has classes that the training data does not have, such as 'swim'"):
        data.check("classification", arguments)


def test_only_the_first_process_removes_an_empty_list(tmp_path, monkeypatch):
    monkeypatch.setattr(task_data, "load_corpus", lambda *arguments, **options: None)
    for process, left in ((1, True), (0, False)):
        (tmp_path / "missing_videos_train.txt").touch()
        training = SimpleNamespace(output_dir=tmp_path, process_index=process)
        task_data._load(DataArguments(), training, "folder", None, "train", "", {})
        assert (tmp_path / "missing_videos_train.txt").exists() == left


@pytest.mark.parametrize(
    ("column", "message"),
    [("label", "needs a column 'label' of classes"), ("text", "needs the column 'label', which")],
)
def test_labels_that_are_not_classes(column, message):
    data = task_data.RunData([CorpusPart(Dataset.from_dict({"video_id": ["a"], column: ["run"]}), 1)])
    with pytest.raises(ValueError, match=message):
        data.labels("classification", 1)


# Stages


@pytest.fixture
def stages(tmp_path, monkeypatch):
    """Returns a function that runs three stages and returns which were trained, and what they resumed from."""
    recipe = tmp_path / "stages.yaml"
    recipe.write_text("stages: [{seed: 1}, {seed: 2}, {seed: 3}]\n")
    called = []

    def train(model, data, training, callbacks):
        called.append((training.seed, training.resume_from_checkpoint))
        for callback in callbacks:
            callback.on_train_begin(SimpleNamespace(should_save=True), None, None)
        return {}

    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(run, "check_arguments", lambda *arguments, **options: None)

    def go(resume, finished=()):
        for number in finished:
            (tmp_path / "run" / f"stage-{number}").mkdir(parents=True, exist_ok=True)
            (tmp_path / "run" / f"stage-{number}" / "results.json").touch()
        called.clear()
        argv = [str(recipe), f"--output_dir={tmp_path / 'run'}", f"--resume_from_checkpoint={resume}"]
        run.train_stages(parse_stages(argv))
        return list(called)

    return go


def test_stages_that_have_finished(stages, tmp_path):
    assert stages("true", finished=[1]) == [(2, "true"), (3, None)]
    assert stages("true", finished=[1, 2]) == [(3, "true")]
    assert stages("false", finished=[1, 2]) == [(1, "false"), (2, None), (3, None)]
    (tmp_path / "run" / "results.json").touch()
    assert stages("true", finished=[1, 2]) == [(3, "true")]  # the last stage is resumed, and returns its results


def test_later_stages_of_an_earlier_run_are_neither_skipped_nor_resumed(stages, tmp_path):
    own, copy = (tmp_path / "run" / "stage-2" / name for name in ("checkpoint-5", "checkpoint-5-best"))
    write(own / "complete.json")
    write(copy / "complete.json")
    stages("false", finished=[1, 2])
    assert not own.exists()
    assert not (own.parent / "results.json").exists()
    assert copy.exists()


def test_a_named_stage_is_resumed_even_if_it_has_finished(stages, tmp_path):
    checkpoint = str(tmp_path / "run" / "stage-2" / "checkpoint-5")
    assert stages(checkpoint, finished=[1, 2]) == [(2, checkpoint), (3, None)]


class StoppedError(Exception):
    pass


class StopEarly(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise StoppedError


@pytest.fixture
def stopped_run(tmp_path, pictures):
    """Returns a function that starts a run in `tmp_path/run` and stops it after one step, before it saves anything."""

    def go(*more):
        output = tmp_path / "run"
        argv = [*TINY, *pictures, "--max_steps=2", "--per_device_train_batch_size=2", f"--output_dir={output}", *more]
        with pytest.raises(StoppedError):
            run.train(*parse_stages(argv)[0], callbacks=[StopEarly()])
        return output

    return go


@pytest.mark.parametrize("name", ["results.json", "checkpoint-7", "config.json", "model.safetensors"])
def test_an_earlier_run_is_not_overwritten(tmp_path, stopped_run, name):
    output = tmp_path / "run"
    (output / name).mkdir(parents=True) if name == "checkpoint-7" else write(output / name)
    message = rf"{output} already contains a run \({name}\): resume it .*, give another directory, or --overwrite"
    with pytest.raises(ValueError, match=message):
        stopped_run()
    assert (output / name).exists()
    stopped_run("--overwrite")


def test_an_unfinished_run_does_not_prevent_resuming(tmp_path, stopped_run):
    """Without a checkpoint, an unfinished run starts over, and a finished run must be overwritten."""
    output = tmp_path / "run"
    write(output / "model.safetensors")
    stopped_run("--resume_from_checkpoint=true")
    write(output / "results.json")
    with pytest.raises(ValueError, match="contains a finished run without a checkpoint to resume from"):
        stopped_run("--resume_from_checkpoint=true")


def test_what_is_overwritten_is_not_resumed(tmp_path, stopped_run, caplog):
    """If a run that overwrites another one is killed before it saves a checkpoint, it leaves no earlier checkpoint."""
    output = tmp_path / "run"
    for name in ("results.json", "unreadable_videos.json", "checkpoint-7/complete.json", "notes.txt", "config.json"):
        write(output / name)
    with pytest.raises(ValueError, match="num_frames=3"):  # checks come first
        stopped_run("--overwrite", "--num_frames=3")
    assert (output / "checkpoint-7" / "complete.json").exists()
    caplog.set_level("INFO", logger="region_learner")
    stopped_run("--overwrite=true")
    assert "checkpoint-7 of the earlier run" in caplog.text
    assert {path.name for path in output.iterdir()} == {
        "notes.txt",
        "config.json",
    }  # the model stays until there is a new one
    stopped_run("--resume_from_checkpoint=true")
    assert "has no complete checkpoint" in caplog.text


def test_a_resumed_run_keeps_its_checkpoints(tmp_path, stopped_run):
    write(tmp_path / "run" / "checkpoint-7" / "complete.json")
    stopped_run("--overwrite", "--resume_from_checkpoint=true")
    assert (tmp_path / "run" / "checkpoint-7").is_dir()


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")


def test_how_to_continue_after_a_stage_without_checkpoints(tmp_path):
    stages = [str(tmp_path / "stage-1"), str(tmp_path)]
    assert "No checkpoint has been saved" in how_to_resume(stages)
    (tmp_path / "stage-1").mkdir()
    (tmp_path / "stage-1" / "results.json").touch()
    assert "stages that have finished are not trained again" in how_to_resume(stages)

"""
Tests that every argument of `transformers.TrainingArguments` either works or is refused by name.

`INHERITED` are read only by code of transformers that our Trainer neither replaces nor skips (a test inspects that
code). `HANDLED` are read or checked by this package, and each names the test that shows it.
"""

import ast
import inspect
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from region_learner import RegionLearnerConfig, RegionLearnerForVideoQuestionAnswering, RegionLearnerModel
from region_learner.loader_processes import WatchedLoader
from region_learner.training import RegionLearnerTrainer, RegionLearnerTrainingArguments, parse_stages
from region_learner.training.run import check_arguments, complete_arguments
from region_learner.training.training_arguments import REFUSED

from .conftest import NO_REGIONS, checkpointing_argument, clips, texts, tiny_model, tiny_text_config
from .test_training import TINY
from .toy_run import DEFAULTS, Collator, Processor, run

INHERITED = {
    # how long, how fast
    "num_train_epochs", "max_steps", "warmup_steps", "adam_beta1", "adam_beta2", "adam_epsilon",
    "optim_args", "max_grad_norm",
    # precision, memory, compilation
    "bf16", "fp16", "tf32", "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing",
    "activation_checkpointing_kwargs", "torch_compile", "torch_compile_backend", "torch_compile_mode",
    # logs
    "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter",
    "log_level", "log_level_replica", "disable_tqdm", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "skip_memory_metrics",
    # evaluation
    "eval_steps", "eval_delay", "per_device_eval_batch_size", "eval_on_start", "eval_accumulation_steps",
    "include_for_metrics",
    # checkpoints and the Hub
    "save_steps", "save_on_each_node", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy",
    "hub_always_push", "hub_revision", "restore_callback_states_from_checkpoint",
    # the machine
    "full_determinism", "use_cpu", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend",
    "ddp_timeout", "fsdp", "fsdp_config", "deepspeed", "local_rank",
}  # fmt: skip

HANDLED = {
    "output_dir": "test_training.py::test_train_evaluate_save_and_load",
    "per_device_train_batch_size": "test_negatives.py::test_a_batch_of_one_is_refused",
    "learning_rate": "test_trainer.py::test_learning_rates_of_towers_and_layers",
    "weight_decay": "test_trainer.py::test_weight_decay_exempts_norms_positions_and_biases",
    "optim": "test_argument_rules.py::test_optimizers",
    "lr_scheduler_type": "test_trainer.py::test_wrong_arguments",
    "lr_scheduler_kwargs": "test_choice.py::test_a_learning_rate_that_follows_a_metric",
    "gradient_accumulation_steps": "test_data_order.py::test_what_may_not_change_on_resume",
    "torch_empty_cache_steps": "test_argument_rules.py::test_emptying_the_cache_with_cached_gradients",
    "neftune_noise_alpha": "test_argument_rules.py::test_noise_on_the_embeddings_of_words",
    "auto_find_batch_size": "test_halving.py::test_a_run_that_found_its_batch_size_equals_one_that_was_given_it",
    "report_to": "test_argument_rules.py::test_trackers",
    "eval_strategy": "test_choice.py::test_what_cannot_choose_a_checkpoint",
    "prediction_loss_only": "test_choice.py::test_what_cannot_choose_a_checkpoint",
    "save_only_model": "test_data_order.py::test_a_model_alone_is_not_resumed_from",
    "save_strategy": "test_choice.py::test_what_cannot_choose_a_checkpoint",
    "save_total_limit": "test_interruptions.py::test_old_checkpoints_go_when_the_new_one_is_complete",
    "enable_jit_checkpoint": "test_argument_rules.py::test_a_checkpoint_at_the_end_of_the_time_is_complete",
    "push_to_hub": "test_push_while_training.py::test_intermediate_pushes_load_with_remote_code",
    "load_best_model_at_end": "test_choice.py::test_the_best_checkpoint_is_kept",
    "metric_for_best_model": "test_choice.py::test_the_best_checkpoint_is_kept",
    "greater_is_better": "test_choice.py::test_a_contradiction_is_refused",
    "ignore_data_skip": "test_data_order.py::test_the_data_may_begin_anew",
    "seed": "test_training_data.py::test_an_epoch_takes_every_row_once_in_a_new_order_each_time",
    "data_seed": "test_data_order.py::test_what_may_not_change_on_resume",
    "accelerator_config": "test_argument_rules.py::test_refused_arguments_name_themselves",
    "dataloader_drop_last": "test_argument_rules.py::test_an_evaluation_drops_no_rows",
    "dataloader_num_workers": "test_argument_rules.py::test_arguments_of_the_loader",
    "dataloader_pin_memory": "test_argument_rules.py::test_arguments_of_the_loader",
    "dataloader_persistent_workers": "test_argument_rules.py::test_arguments_of_the_loader",
    "dataloader_prefetch_factor": "test_argument_rules.py::test_arguments_of_the_loader",
    "dataloader_multiprocessing_context": "test_argument_rules.py::test_arguments_of_the_loader",
    "ddp_find_unused_parameters": "test_distributed.py::test_two_processes_equal_one_with_the_whole_batch",
    "do_train": "test_argument_rules.py::test_what_scripts_of_others_decide_by",
    "do_eval": "test_argument_rules.py::test_what_scripts_of_others_decide_by",
    "do_predict": "test_argument_rules.py::test_what_scripts_of_others_decide_by",
    "resume_from_checkpoint": "test_interruptions.py::test_a_killed_run_resumes_bit_by_bit",
}

# Not every supported version of transformers has these.
NEW = {"activation_checkpointing", "activation_checkpointing_kwargs"}


def arguments(**options):
    return RegionLearnerTrainingArguments(**DEFAULTS | options)


def test_every_argument_is_in_the_table():
    """If a new version of transformers adds an argument, check whether it works here, and add it to a table."""
    here = {item.name for item in fields(TrainingArguments)}
    table = [*INHERITED, *HANDLED, *REFUSED]
    assert len(table) == len(set(table))
    assert here - set(table) == set()
    assert set(table) - here <= NEW


def test_the_tests_in_the_table_exist():
    folder = Path(__file__).parent
    for name, where in HANDLED.items():
        file, _, test = where.partition("::")
        assert f"def {test}(" in (folder / file).read_text(encoding="utf-8"), (name, where)


def of_transformers() -> dict[str, set[str]]:
    """Returns the names of the arguments that each method of transformers' Trainer reads."""
    tree = ast.parse(inspect.getsource(Trainer).expandtabs())
    names = {item.name for item in fields(TrainingArguments)}
    found: dict[str, set[str]] = {}
    for method in tree.body[0].body:
        if isinstance(method, ast.FunctionDef):
            nodes = [node for node in ast.walk(method) if isinstance(node, ast.Attribute)]
            reads = {node.attr for node in nodes if ast.unparse(node.value) in ("args", "self.args")}
            found[method.name] = reads & names
    return found


def test_inherited_arguments_are_read_by_code_that_runs_here():
    """Methods that our Trainer replaces may not run, so arguments that they read could be silently ignored."""
    methods = of_transformers()
    # Methods that only the replaced training loader calls, and methods that our Trainer skips in some cases.
    replaced = {"_get_dataloader", "_get_train_sampler", "training_step", "prediction_step", "create_scheduler"}
    for name, method in vars(RegionLearnerTrainer).items():
        if name in methods and f"super().{name}" not in inspect.getsource(method):
            replaced.add(name)
    assert "get_train_dataloader" in replaced
    lost = set().union(*(methods[name] for name in replaced if name in methods))
    assert lost & INHERITED == set()
    assert {"dataloader_in_order", "dataloader_num_workers", "train_sampling_strategy"} <= lost


@pytest.mark.parametrize(
    "options",
    [
        {"train_sampling_strategy": "group_by_length"},
        {"length_column_name": "frames"},
        {"dataloader_in_order": False},
        {"remove_unused_columns": True},
        {"label_names": ["labels"]},
        {"label_smoothing_factor": 0.1},
        {"average_tokens_across_devices": False},
        {"include_num_input_tokens_seen": "all"},
        {"eval_do_concat_batches": False},
        {"batch_eval_metrics": True},
        {"eval_use_gather_object": True},
        {"bf16_full_eval": True},
        {"fp16_full_eval": True},
        {"use_cache": True},
        {"use_liger_kernel": True},
        {"liger_kernel_config": {"rope": True}},
        {"optim_target_modules": "all-linear"},
        {"debug": "underflow_overflow"},
        {"parallelism_config": object()},
    ],
    ids=lambda options: next(iter(options)),
)
def test_refused_arguments(options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=rf"^{name}=.* is not supported: .*Leave it out\.$"):
        arguments(**options)


def test_all_refusals_are_tested():
    marks = test_refused_arguments.pytestmark[0].args[1]
    assert {next(iter(options)) for options in marks} == set(REFUSED)
    arguments(label_names=None)  # the default of transformers is accepted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator_config": {"split_batches": True}}, "accelerator_config: split_batches=True is not supported"),
        ({"accelerator_config": '{"even_batches": false}'}, "accelerator_config: even_batches=False is not supported"),
        ({"accelerator_config": {"even_batch": False}}, "unknown key 'even_batch'; did you mean 'even_batches'"),
        ({"optim": "galore_adamw"}, "optim=galore_adamw is not supported: it chooses parameters itself"),
        ({"optim": "adalomo"}, "optim=adalomo is not supported"),
        (
            {"lr_milestones": [0.5], "lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"a": 1}},
            "take lr_gamma",
        ),
    ],
)
def test_refused_arguments_name_themselves(options, message):
    with pytest.raises(ValueError, match=message):
        arguments(**options)


def test_trackers(monkeypatch):
    monkeypatch.setattr(
        "transformers.integrations.integration_utils.get_available_reporting_integrations", lambda: ["wandb"]
    )
    assert arguments(report_to="wandb").report_to == ["wandb"]
    for name, message in [
        ("tensorboard", r"report_to='tensorboard' is not installed: install it with `pip install tensorboard`"),
        ("flyte", r"is not installed: install it with `pip install flytekit`"),
        ("tensorbord", "report_to='tensorbord' is not known; did you mean 'tensorboard'"),
    ]:
        with pytest.raises(ValueError, match=message):
            arguments(report_to=["wandb", name])


def test_a_tracker_is_looked_for_before_the_corpus(tmp_path):
    with pytest.raises(ValueError, match="report_to='wandbb' is not known; did you mean 'wandb'"):
        parse_stages([*TINY, f"--data_dir={tmp_path / 'nowhere'}", "--report_to=wandbb"])


def test_what_scripts_of_others_decide_by(tmp_path):
    def check(*more):
        stage = parse_stages([*TINY, f"--output_dir={tmp_path}", *more])[0]
        complete_arguments(*stage)
        check_arguments(*stage)

    check("--do_train=true")
    check("--do_eval=true", "--eval_split=val")
    with pytest.raises(ValueError, match="do_eval is not supported: leave it out, and set --eval-split"):
        check("--do_eval=true")
    with pytest.raises(ValueError, match="do_predict is not supported: leave it out, and set --test-split"):
        check("--do_predict=true")


def rows(number=5):
    return Dataset.from_dict({"video_id": [str(2 * i) for i in range(number)], "seed": [0] * number,
                              "num_frames": [2] * number})  # fmt: skip


def trainer(tmp_path, dataset=None, optimizer_cls_and_kwargs=None, **options):
    made = RegionLearnerTrainer(
        model=tiny_model(),
        args=arguments(output_dir=str(tmp_path), **options),
        processing_class=Processor(),
        train_dataset=rows(24) if dataset is None else dataset,
        eval_dataset=rows(),
        data_collator=Collator(),
        optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
    )
    made.eval_collator = Collator()
    return made


@pytest.mark.parametrize("size", [2, 64])
def test_an_evaluation_drops_no_rows(tmp_path, size):
    expected = trainer(tmp_path, per_device_eval_batch_size=size).evaluate()
    dropping = trainer(tmp_path, per_device_eval_batch_size=size, dataloader_drop_last=True)
    found = dropping.evaluate()
    assert len(dropping.predict(rows()).label_ids) == 5
    timed = ("runtime", "per_second", "preparation_time")
    for name, value in expected.items():
        if not name.endswith(timed):
            assert found[name] == pytest.approx(value, rel=1e-6), name
    assert "eval_t2v_R@1" in found
    assert dropping.args.dataloader_drop_last  # still set, for training
    assert len(dropping.get_train_dataloader()) == 6
    assert len(trainer(tmp_path, rows(7), dataloader_drop_last=True).get_train_dataloader()) == 1


def test_arguments_of_the_loader(tmp_path):
    made = trainer(
        tmp_path,
        dataloader_num_workers=2,
        dataloader_persistent_workers=True,
        dataloader_prefetch_factor=3,
        dataloader_multiprocessing_context="spawn",
    )
    loader = made.get_train_dataloader()
    assert (loader.num_workers, loader.persistent_workers, loader.prefetch_factor) == (2, True, 3)
    assert loader.multiprocessing_context.get_start_method() == "spawn"
    assert not loader.pin_memory
    made.args.dataloader_pin_memory = True
    made.args.__dict__["_setup_devices"] = torch.device("cuda")
    assert made.get_train_dataloader().pin_memory


def test_evaluation_in_pieces_equals_the_whole(tmp_path):
    whole, pieces = (trainer(tmp_path, eval_accumulation_steps=steps, per_device_eval_batch_size=2).evaluate()
                     for steps in (None, 1))  # fmt: skip
    assert whole["eval_t2v_MeanR"] == pieces["eval_t2v_MeanR"]
    assert whole["eval_loss"] == pytest.approx(pieces["eval_loss"])


def test_optimizers(tmp_path):
    made = trainer(tmp_path, optim="sgd", learning_rate=0.5, video_learning_rate=0.25)
    assert type(made.create_optimizer()) is torch.optim.SGD
    assert {group["lr"] for group in made.optimizer.param_groups} == {0.5, 0.25}


def test_an_optimizer_from_python_is_used(tmp_path):
    def create(options):
        given = (torch.optim.SGD, options)
        made = trainer(tmp_path, optimizer_cls_and_kwargs=given, learning_rate=0.5, video_learning_rate=0.25)
        return made.create_optimizer()

    assert type(optimizer := create({"momentum": 0.75})) is torch.optim.SGD
    assert {(group["lr"], group["momentum"]) for group in optimizer.param_groups} == {(0.5, 0.75), (0.25, 0.75)}
    with pytest.raises(ValueError, match="must not set the learning rate: use learning_rate"):
        create({"lr": 0.1})


def test_emptying_the_cache_with_cached_gradients(tmp_path, monkeypatch):
    emptied = []
    monkeypatch.setattr("region_learner.training.trainer.clear_device_cache", lambda: emptied.append(1))
    run(tmp_path, max_steps=4, gradient_cache_chunk=2, torch_empty_cache_steps=2)
    assert len(emptied) == 2


def test_noise_on_the_embeddings_of_words(tmp_path):
    plain, noisy = (run(tmp_path, max_steps=1, neftune_noise_alpha=alpha)["log"][0]["loss"] for alpha in (None, 50.0))
    assert noisy != pytest.approx(plain, rel=1e-3)
    with pytest.raises(ValueError, match="neftune_noise_alpha is for word embeddings"):
        RegionLearnerTrainer(
            model=tiny_model(),
            args=arguments(neftune_noise_alpha=5.0, output_dir=str(tmp_path)),
            processing_class=Processor(),
            task="classification",
            label=lambda row: 0,
        )


def test_a_custom_loss_is_refused_with_cached_gradients(tmp_path):
    with pytest.raises(ValueError, match="leave out compute_loss_func"):
        RegionLearnerTrainer(
            model=tiny_model(),
            args=arguments(gradient_cache_chunk=2, output_dir=str(tmp_path)),
            processing_class=Processor(),
            compute_loss_func=lambda *args, **kwargs: 0,
        )


def test_a_checkpoint_at_the_end_of_the_time_is_complete(tmp_path):
    """`enable_jit_checkpoint` marks a checkpoint as incomplete by a file, and removes the file when it is saved."""
    from transformers.trainer_jit_checkpoint import CheckpointManager

    from region_learner.training.checkpoints import incompleteness

    made = trainer(tmp_path, max_steps=1)
    made.train()
    CheckpointManager(made, kill_wait=0).execute_jit_checkpoint()
    assert incompleteness(tmp_path / "checkpoint-1") is None


def test_inherited_arguments_together(tmp_path):
    made = trainer(tmp_path, max_steps=2, max_grad_norm=0.5, warmup_steps=1, adam_beta1=0.5, logging_first_step=True,
                   eval_strategy="steps", eval_steps=1, eval_delay=1, eval_on_start=True, eval_accumulation_steps=1,
                   include_for_metrics=["inputs", "loss"], bf16=True,
                   restore_callback_states_from_checkpoint=True, skip_memory_metrics=True,
                   save_strategy="steps", save_steps=1, save_total_limit=1,
                   **{checkpointing_argument(): True})  # fmt: skip
    made.train()
    steps = [entry["step"] for entry in made.state.log_history if "eval_loss" in entry]
    assert steps == [0, 1, 2]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_the_cpu_has_no_index():
    """`torch.load` does not accept "cpu:0", the name of the device in a distributed run."""
    args = arguments()
    args.__dict__["_setup_devices"] = torch.device("cpu", 0)
    assert str(args.device) == "cpu"


_MOTION = {"motion_excitation": True}
_ONLY_TOKENS = {"video_pooling": "cls_patch_max", "token_dim": 8}


ONLY_CODES = {"num_regions": 0, "interaction_layers": 0, "codebook_size": 8}


@pytest.mark.parametrize("parts", [{"num_regions": 3}, ONLY_CODES])
def test_regions_that_only_re_rank_leave_no_parameter_unused(parts):
    """With video_pooling="cls" and a backbone, the vector of a clip is that of the backbone."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}
    backbone = {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8} | sizes
    config = RegionLearnerConfig(
        video_config={"backbone_config": backbone, "video_pooling": "cls", "interaction_heads": 4} | parts,
        text_config=tiny_text_config(), token_dim=8, projection_dim=16,
    )  # fmt: skip
    model = RegionLearnerModel(config).train()
    model(**texts(4), pixel_values_videos=clips(4), return_loss=True).loss.backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert [name for name in unused if "backbone" not in name] == []


@pytest.mark.parametrize(
    ("head", "options", "given", "expected"),
    [
        (None, {}, None, False),
        (None, _MOTION, None, True),
        (None, _MOTION, False, False),
        (None, _ONLY_TOKENS, None, False),
        (RegionLearnerForVideoQuestionAnswering, _ONLY_TOKENS, None, True),
        (RegionLearnerForVideoQuestionAnswering, _ONLY_TOKENS | NO_REGIONS, None, False),
    ],
)
def test_when_unused_parameters_are_looked_for(tmp_path, head, options, given, expected):
    """Motion is unused for single frames, and tokens are unused by heads. The user's choice is kept."""
    model = tiny_model(**options)
    made = RegionLearnerTrainer(
        model=model if head is None else head(model.config),
        args=arguments(output_dir=str(tmp_path), ddp_find_unused_parameters=given),
        processing_class=Processor(),
    )
    assert made.accelerator.ddp_handler.find_unused_parameters == expected
    assert made.args.ddp_find_unused_parameters == given


def test_loader_processes_of_every_evaluation_are_watched(tmp_path):
    """This includes persistent processes, which the Trainer keeps for the next evaluation."""
    made = trainer(tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True)
    first, second = made.get_eval_dataloader(), made.get_eval_dataloader()
    assert isinstance(first, WatchedLoader)
    assert second is first


def test_an_epoch_counts_the_rows_of_its_batches(tmp_path):
    """The Trainer computes `train_samples_per_second` from this number."""
    made = trainer(tmp_path, rows(9))
    assert made.num_examples(made.get_train_dataloader()) == 12  # three full batches of 4

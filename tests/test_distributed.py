"""Tests that two processes equal one with the whole batch, and that cached gradients equal those of the batch."""

import pytest
import torch
from torch import multiprocessing
from torch.distributed.fsdp import fully_shard

from region_learner import loss_region_learner
from region_learner.loss_region_learner import contrastive_loss

from .conftest import checkpointing_argument, clips, texts, tiny_model
from .toy_run import free_port, launch, run


def start_codebook(trainer):
    """
    Places the codes among the features, and marks them as started. How codes start and are revived depends on the
    number of features per process and per pass, and is tested in `test_codebook.py`.
    """
    quantizer = trainer.model.quantizer
    quantizer.embed.mul_(0.3)
    quantizer.embed_avg.mul_(0.3)
    quantizer.cluster_size.fill_(1)
    quantizer.num_updates.fill_(1)


# With plain gradient descent, a difference in a gradient causes an equal difference in the weights. Double precision
# is needed because several training steps multiply the rounding errors of float32.
SGD = {"dtype": "float64", "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 1.0, "max_steps": 3}
SGD |= {"video": {"codebook_revival_after": 0}, "before": start_codebook}

# Gradients that are 0 except for rounding, because a constant that is added to all inputs of a softmax has no effect.
_ZERO = ("k_lin.bias", "k_proj.bias", "motion_excitation.conv.bias")


def close(ours: dict, expected: dict, tolerance: float = 1e-5):
    """Asserts that losses, gradients of every step, and the final weights and codebook are equal."""
    losses, expected_losses = ([entry["loss"] for entry in run["log"]] for run in (ours, expected))
    assert losses == pytest.approx(expected_losses, rel=tolerance)
    assert len(ours["gradients"]) == len(expected["gradients"]) == len(losses)
    for step, reference in enumerate(expected["gradients"]):
        for name, gradient in reference.items():
            if name.endswith(_ZERO):
                continue
            error = (ours["gradients"][step][name] - gradient).norm() / gradient.norm().clamp(min=1e-30)
            assert error < tolerance, (step, name, float(error))
    for name, value in expected["state"].items():
        if name.endswith(_ZERO):
            continue
        got = ours["state"][name].double()
        error = (got - value.double()).norm() / value.double().norm().clamp(min=1e-12)
        assert error < tolerance, (name, float(error))


def moved(result: dict, start: dict):
    """Asserts that training changed the weights, because comparing unchanged weights would prove nothing."""
    changed = [name for name, value in result["state"].items() if not torch.equal(value, start["state"][name])]
    assert {"logit_scale", "video_model.region_module.quantizer.embed"} <= set(changed)


@pytest.mark.parametrize(
    ("both", "of_two"),
    [
        ({}, {}),
        ({}, {checkpointing_argument(): True}),
        ({}, {"gradient_cache_chunk": 2}),
        ({"loss": "sigmoid"}, {}),
        ({"image_rows": 16, "video": {"motion_excitation": True, "codebook_revival_after": 0}}, {}),
        ({"token_dim": 8}, {"gradient_cache_chunk": 2}),
    ],
    ids=["plain", "checkpointing", "cached", "sigmoid", "images and videos", "cached with tokens"],
)
def test_two_processes_equal_one_with_the_whole_batch(tmp_path, both, of_two):
    both = dict(both)
    both["model"] = {"learn_temperature": True, "loss": both.pop("loss", "infonce")}
    both["model"]["token_dim"] = both.pop("token_dim", 0)
    pair = launch(tmp_path / "two", 2, per_device_train_batch_size=4, **SGD | both | of_two)
    whole = run(tmp_path / "one", per_device_train_batch_size=8, **SGD | both)
    start = run(tmp_path / "start", per_device_train_batch_size=8, **SGD | both | {"learning_rate": 0.0})
    close(pair[0], whole)
    close(pair[1], whole)
    moved(whole, start)


def test_one_step_in_single_precision(tmp_path):
    options = SGD | {"dtype": "float32", "max_steps": 1, "gradient_cache_chunk": 2}
    pair = launch(tmp_path / "two", 2, per_device_train_batch_size=4, **options)
    close(pair[0], run(tmp_path / "one", per_device_train_batch_size=8, **options | {"gradient_cache_chunk": None}))


def test_accumulation_in_two_processes_equals_one_with_joined_batches(tmp_path):
    options = SGD | {"gradient_accumulation_steps": 2, "model": {"learn_temperature": True}}
    pair = launch(tmp_path / "two", 2, per_device_train_batch_size=2, **options)
    close(pair[0], run(tmp_path / "one", per_device_train_batch_size=4, **options))


@pytest.mark.parametrize("chunk", [1, 3, 8])
@pytest.mark.parametrize("loss", ["infonce", "sigmoid", "max_margin"])
def test_cached_gradients_are_those_of_the_batch(tmp_path, chunk, loss):
    model = {"loss": loss, "learn_temperature": loss != "max_margin"}
    options = SGD | {"per_device_train_batch_size": 8, "model": model}
    close(run(tmp_path / "cached", gradient_cache_chunk=chunk, **options), run(tmp_path / "whole", **options))


def test_cached_gradients_of_words_and_regions(tmp_path):
    model = {"token_dim": 8, "token_temperature": 0.1, "token_loss_weight": 2.0, "learn_temperature": True}
    options = SGD | {"per_device_train_batch_size": 8, "model": model}
    whole = run(tmp_path / "whole", **options)
    close(run(tmp_path / "cached", gradient_cache_chunk=3, **options), whole)
    assert all(
        any(name.endswith(part) and gradient.norm() > 0 for name, gradient in whole["gradients"][0].items())
        for part in ("video_tokens.embed.weight", "text_tokens.weigh.weight", "token_logit_scale")
    )


def test_cached_gradients_of_a_loss_that_ignores_negative_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(loss_region_learner, "_REGISTERED", {})
    monkeypatch.setattr(loss_region_learner, "LOSSES", names := [*loss_region_learner.LOSSES])
    monkeypatch.setattr("region_learner.configuration_region_learner.LOSSES", names)

    def text_to_video(config, outputs, video_ids, gather):
        logits = outputs.text_embeds @ outputs.video_embeds.T / config.temperature
        return torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)))

    loss_region_learner.register_loss("text_to_video", text_to_video)
    options = SGD | {"per_device_train_batch_size": 8, "model": {"loss": "text_to_video"}}
    close(run(tmp_path / "cached", gradient_cache_chunk=3, **options), run(tmp_path / "whole", **options))


def test_cached_gradients_with_accumulation_and_without_codebook(tmp_path):
    options = SGD | {"gradient_accumulation_steps": 2}
    close(run(tmp_path / "cached", gradient_cache_chunk=3, **options), run(tmp_path / "whole", **options))
    del options["before"]
    options |= {"video": {"codebook_size": 0}}
    close(run(tmp_path / "cached", gradient_cache_chunk=3, **options), run(tmp_path / "whole", **options))


def test_the_first_step_of_cached_gradients(tmp_path):
    """All chunks of the first batch pass unquantized, as the whole batch does, and all codes start on features."""
    options = SGD | {"max_steps": 1, "before": lambda trainer: None}
    cached = run(tmp_path / "cached", gradient_cache_chunk=2, **options)
    whole = run(tmp_path / "whole", **options)
    codes = "video_model.region_module.quantizer.embed"
    for result in (cached, whole):
        start = {name: result["state"].pop(name) for name in list(result["state"]) if "quantizer" in name}
        assert start[codes.replace("embed", "num_updates")] == 1
        assert len(start[codes].unique(dim=0)) == 16
    close(cached, whole)


def test_cached_gradients_repeat_their_random_numbers(tmp_path):
    """The second pass drops the same units as the first one, so a single chunk equals the whole batch."""
    options = SGD | {"per_device_train_batch_size": 4, "dropout": 0.5, "learning_rate": 0.0}
    once = run(tmp_path / "one", gradient_cache_chunk=4, **options)
    plain = run(tmp_path / "two", **options)
    # The loss is computed in the first pass, and the gradient norm in the second.
    norms = [[entry["grad_norm"] for entry in result["log"]] for result in (once, plain)]
    assert norms[0][0] == pytest.approx(norms[1][0], rel=1e-5)
    assert once["log"][0]["loss"] == pytest.approx(plain["log"][0]["loss"], rel=1e-6)


def test_the_original_codebook_refuses_cached_gradients(tmp_path):
    options = SGD | {"video": {"codebook_mode": "original"}}
    with pytest.raises(ValueError, match='codebook_mode="original" assigns codes after updating them'):
        run(tmp_path, gradient_cache_chunk=2, **options)


def _sharded(rank: int, port: int, path: str):
    """Takes a step of a model without and with FSDP2, with half of a batch in each process, and saves both results."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    part = slice(2 * rank, 2 * rank + 2)
    inputs = {name: value[part] for name, value in texts(batch=4).items()}
    inputs |= {"pixel_values_videos": clips(batch=4)[part]}
    results = []
    for shard in (False, True):
        model = tiny_model(learn_temperature=True).train()
        if shard:
            # Like accelerate, shard each module of a class in _no_split_modules separately, and then the whole model.
            mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
            names = set(model._no_split_modules)
            for module in model.modules():
                if type(module).__name__ in names:
                    fully_shard(module, mesh=mesh)
            fully_shard(model, mesh=mesh)
        loss = contrastive_loss(model.config, model(**inputs), gather=True)
        loss.backward()
        model.update_codebook()
        gradients = {}
        for name, parameter in model.named_parameters():
            if shard:
                gradients[name] = parameter.grad.full_tensor()
            else:
                torch.distributed.all_reduce(parameter.grad)
                gradients[name] = parameter.grad / 2
        assert model.quantizer.num_updates == 1
        results.append({"loss": loss.detach(), "gradients": gradients, "buffers": dict(model.named_buffers())})
    if rank == 0:
        torch.save(results, path)
    torch.distributed.destroy_process_group()


def test_fully_sharded_data_parallelism(tmp_path):
    multiprocessing.start_processes(
        _sharded, (free_port(), str(tmp_path / "result")), nprocs=2, start_method="forkserver"
    )
    whole, sharded = torch.load(tmp_path / "result", weights_only=True)
    assert sharded["loss"] == pytest.approx(float(whole["loss"]), rel=1e-6)
    assert whole["gradients"].keys() == sharded["gradients"].keys()
    for name, gradient in whole["gradients"].items():
        torch.testing.assert_close(sharded["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    for name, buffer in whole["buffers"].items():
        torch.testing.assert_close(sharded["buffers"][name], buffer, msg=name)


def test_two_processes_leave_out_the_patches_that_one_does(tmp_path):
    options = SGD | {"model": {"learn_temperature": True}}
    dropping = options | {"video": SGD["video"] | {"patch_dropout": 0.5}}
    pair = launch(tmp_path / "two", 2, per_device_train_batch_size=4, **dropping)
    whole = run(tmp_path / "one", per_device_train_batch_size=8, **dropping)
    close(pair[0], whole)
    close(pair[1], whole)
    every_patch = run(tmp_path / "all", per_device_train_batch_size=8, **options)
    assert whole["log"][-1]["loss"] != pytest.approx(every_patch["log"][-1]["loss"], rel=1e-3)

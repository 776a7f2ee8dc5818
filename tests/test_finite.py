"""Tests losses, gradients and weights that are not finite: what a run skips, where it stops, and what it keeps."""

import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from region_learner.training.checkpoints import incompleteness
from region_learner.training.finite import NonFiniteError, contagious

from .toy_run import KeepState, launch, run


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_cache_chunk": 2},
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.0},
        {"video": {"codebook_mode": "original"}, "optim": "sgd"},
    ],
    ids=["plain", "cached", "accumulated", "original"],
)
def test_a_bad_batch_changes_nothing(tmp_path, caplog, options):
    """Weights, optimizer state and codebook stay bit-for-bit the same, and later steps continue as usual."""
    states = KeepState()
    result = run(tmp_path, bad_steps=(3,), callbacks=(states,), weight_decay=0.1, **options)
    _, before, after, then = states.steps
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    quantizer = "video_model.region_module.quantizer"
    for name in ("text_model.embeddings.word_embeddings.weight", f"{quantizer}.embed"):
        assert not torch.equal(then[name], after[name]), name
    assert all(value.isfinite().all() for value in then.values())
    assert result["skipped_steps"] == 1
    losses = [entry["loss"] for entry in result["log"]]
    assert math.isnan(losses.pop(2))  # it is not logged as a loss of 0
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert [entry.get("skipped_steps", 0) for entry in result["log"]] == [0, 0, 1, 1]
    assert "Step 3 is skipped: the loss is nan." in caplog.text


def test_a_bad_batch_in_the_first_step_and_an_average_over_steps(tmp_path):
    result = run(tmp_path, bad_steps=(1, 2, 4, 5), max_steps=6, logging_steps=3)
    assert result["skipped_steps"] == 4
    assert all(math.isfinite(entry["loss"]) for entry in result["log"])
    assert result["state"]["video_model.region_module.quantizer.num_updates"] == 2


def test_several_bad_batches_in_a_row_end_the_run(tmp_path):
    with pytest.raises(
        NonFiniteError, match=r"^Step 5: the loss is nan, and it was not finite in the 2 steps before\. "
    ) as e:
        run(tmp_path, bad_steps=(3, 4, 5, 6), max_steps=8, save_strategy="steps", save_steps=2, save_total_limit=1)
    assert f"The last complete checkpoint is {tmp_path / 'checkpoint-4'}." in str(e.value)
    assert "\n" not in str(e.value)
    for saved in (2, 4):  # the one from before the bad steps is kept in spite of save_total_limit
        assert incompleteness(tmp_path / f"checkpoint-{saved}") is None
    assert all(value.isfinite().all() for value in load_file(tmp_path / "checkpoint-4" / "model.safetensors").values())


def test_weights_that_are_not_finite_end_the_run_and_are_not_saved(tmp_path):
    """A step with an infinite learning rate breaks the weights. The last checkpoint before it is kept."""
    diverge = {"optim": "sgd", "max_grad_norm": 0.0, "save_total_limit": 1, "save_strategy": "steps"}

    class TooLong(KeepState):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            if state.global_step == 3:
                optimizer.param_groups[0]["lr"] = math.inf

    with pytest.raises(NonFiniteError, match=r"^Step 4: the weights are not finite .* and are not saved"):
        run(tmp_path / "a", callbacks=(TooLong(),), save_steps=1, **diverge)
    assert sorted(path.name for path in (tmp_path / "a").glob("checkpoint-*")) == ["checkpoint-3"]
    assert incompleteness(tmp_path / "a" / "checkpoint-3") is None
    with pytest.raises(NonFiniteError, match=r"^Step 5: .*, and the weights are not finite .*checkpoint-3\."):
        run(tmp_path / "b", callbacks=(TooLong(),), save_steps=3, max_steps=9, **diverge)
    with pytest.raises(NonFiniteError, match=r"and are not saved\. No checkpoint has been saved\."):
        run(tmp_path / "c", callbacks=(TooLong(),), save=True, **diverge | {"save_strategy": "no"})
    assert not list((tmp_path / "c").rglob("*.safetensors"))


def test_processes_skip_the_same_steps_and_stop_together(tmp_path):
    """Only the second process has values that are not finite, and no process is left waiting for the other."""
    options = {"bad_steps": (2, 4, 5, 6), "bad_process": 1, "max_steps": 8}
    first, second = launch(tmp_path, 2, fail=True, **options)
    assert "Step 2 is skipped: the loss is nan." in first
    for log in (first, second):
        assert "NonFiniteError: Step 6: the loss is nan, and it was not finite in the 2 steps before." in log


def test_steps_that_the_loss_scaler_skips_do_not_count(tmp_path, caplog):
    """
    With float16, steps are skipped until the loss scaler has found a scale. There may be more of them in a row than of
    bad steps, and the codebook is not updated in them.
    """
    states = KeepState()

    def scaled(trainer):
        """Does what `accelerate` does for fp16 (on GPUs only), with float32 gradients that overflow."""
        accelerator = trainer.accelerator
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        accelerator.unscale_gradients = lambda *_: accelerator.scaler.unscale_(trainer.optimizer.optimizer)

    result = run(tmp_path, before=scaled, callbacks=(states,), max_steps=24, max_grad_norm=0.0)
    embed = "video_model.region_module.quantizer.num_updates"
    updates = [int(step[embed]) for step in states.steps]
    waited = updates.index(1)
    assert waited > 4, updates
    # From then on the codebook learns in exactly the steps in which the weights do.
    name = "video_model.embeddings.patch_embedding.weight"
    for before, after in pairwise(states.steps):
        learns = not torch.equal(before[name], after[name])
        assert after[embed] - before[embed] == int(learns)
    assert result["skipped_steps"] == 0
    assert "is skipped" not in caplog.text
    with pytest.raises(NonFiniteError, match="Step 3: the loss is nan"):  # the scale cannot be the reason
        run(tmp_path, before=scaled, max_steps=24, max_grad_norm=0.0, bad_steps=(1, 2, 3))


def test_contagious():
    loss = torch.tensor(1.2345678, requires_grad=True)
    out = contagious(loss)
    out.backward()
    assert out.item() == loss.item()
    assert loss.grad == 1
    for bad in (math.inf, -math.inf, math.nan):
        loss = torch.tensor(bad, requires_grad=True)
        contagious(loss).backward()
        assert not loss.grad.isfinite()


@pytest.mark.parametrize("chunk", [None, 2])
def test_a_loss_that_is_not_finite_counts_even_with_finite_gradients(tmp_path, caplog, chunk):
    def infinite_once(trainer):
        forward = trainer.model.forward

        def with_infinity(**inputs):
            outputs = forward(**inputs)
            outputs.region_loss = outputs.region_loss + (math.inf if trainer.state.global_step == 1 else 0.0)
            return outputs

        trainer.model.forward = with_infinity

    assert run(tmp_path, before=infinite_once, gradient_cache_chunk=chunk)["skipped_steps"] == 1
    assert "Step 2 is skipped: the loss is inf." in caplog.text

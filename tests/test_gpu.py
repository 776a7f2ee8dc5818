"""Tests on a GPU, which need neither PyAV nor datasets: `python -m pytest -m gpu tests/test_gpu.py`."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import masking_utils

from region_learner import RegionLearnerTrainer, RegionLearnerTrainingArguments

from .conftest import checkpoint_activations, clips, texts, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # from the compiler, on Python 3.12 and later
]

FORMS = {
    "decoupled": {},
    "paper": {"region_form": "paper"},
    "queries": {"region_form": "queries", "codebook_size": 0, "token_dim": 8, "phrase_window": 3, "tube_mlp": True},
    "tracks": {"region_form": "tracks", "codebook_size": 0, "token_dim": 8, "phrase_window": 3},
    "patch_dropout": {"patch_dropout": 0.5},
}


@pytest.fixture(autouse=True)
def exact_products():
    """Computes products of float32 numbers in float32 instead of TF32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def batch(device: str = "cuda") -> dict[str, torch.Tensor]:
    inputs = {**texts(4), "pixel_values_videos": clips(4)}
    return {name: value.to(device) for name, value in inputs.items()}


def steps(model, inputs, count=3, autocast=None):
    """Makes training steps, and returns their losses."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    losses = []
    for _ in range(count):
        with torch.autocast("cuda", autocast, enabled=autocast is not None):
            loss = model(**inputs, return_loss=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses).cpu()


@pytest.mark.parametrize("options", [FORMS[name] for name in ("decoupled", "paper", "queries", "tracks")])
def test_outputs_gradients_and_codebook_equal_those_of_the_cpu(options):
    on_cpu = tiny_model(**options).train()
    on_gpu = copy.deepcopy(on_cpu).cuda()
    for _ in range(3):
        for model, device in ((on_cpu, "cpu"), (on_gpu, "cuda")):
            model.zero_grad()
            outputs = model(**batch(device), return_loss=True)
            outputs.loss.backward()
            model.found = outputs.loss.detach().cpu(), outputs.logits_per_text.detach().cpu()
        torch.testing.assert_close(on_gpu.found, on_cpu.found, rtol=1e-3, atol=1e-3)
        found, expected = (
            {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
            for model in (on_gpu, on_cpu)
        )
        total = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        for name, gradient in expected.items():
            # In the `paper` form, attention between regions is saturated. Its gradients, and those of everything
            # before it, are differences of much larger numbers.
            size = total if options == FORMS["paper"] else gradient.norm() + 1e-5 * total
            assert (found[name] - gradient).norm() < 1e-2 * size, name
    for (name, one), (_, other) in zip(on_gpu.named_buffers(), on_cpu.named_buffers()):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_a_step_does_not_wait_for_the_gpu(options, monkeypatch):
    # Without compilation, transformers waits once per forward pass: it checks whether any token is padding.
    monkeypatch.setattr(masking_utils, "_ignore_bidirectional_mask_sdpa", lambda *args: False)
    model, inputs = tiny_model(**options).cuda().train(), batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    steps(model, inputs)  # allocates and looks up what is needed only once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**inputs, return_loss=True).loss
        loss.backward()
        optimizer.step()
        model.update_codebook()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


@pytest.mark.parametrize("options", [FORMS[name] for name in ("decoupled", "queries", "tracks")])
def test_compiled_steps_equal_plain_ones(options):
    plain = tiny_model(**options).cuda()
    compiled = copy.deepcopy(plain)
    inputs = batch()
    expected = steps(plain, inputs)
    with torch.no_grad():
        compiled(**inputs)  # the first call prepares for returning hidden states, which cannot be compiled
    found = steps(torch.compile(compiled, fullgraph=True), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    for (name, one), (_, other) in zip(compiled.named_buffers(), plain.named_buffers()):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3, msg=name)


def test_cuda_graphs_give_the_same_embeddings():
    model, inputs = tiny_model().cuda().eval(), batch()
    compiled = torch.compile(model, mode="reduce-overhead")
    with torch.inference_mode():
        expected = model(**inputs).logits_per_text
        for _ in range(3):  # the third call replays the graph
            torch.testing.assert_close(compiled(**inputs).logits_per_text.clone(), expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_autocast_is_near_float32_and_keeps_the_statistics():
    plain = tiny_model().cuda()
    mixed = copy.deepcopy(plain)
    expected, found = steps(plain, batch()), steps(mixed, batch(), autocast=torch.bfloat16)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)
    assert mixed.quantizer.embed.dtype == torch.float32


def test_float16_with_a_scaler():
    model, inputs = tiny_model().cuda().train(), batch()
    optimizer, scaler = torch.optim.AdamW(model.parameters(), lr=1e-3), torch.amp.GradScaler("cuda")
    losses = []
    for _ in range(10):
        with torch.autocast("cuda", torch.float16):
            loss = model(**inputs, return_loss=True).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert model.quantizer.embed.isfinite().all()


def test_flash_kernels_support_the_attention():
    model, inputs = tiny_model().cuda().eval(), batch()["pixel_values_videos"]
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        with sdpa_kernel(SDPBackend.MATH):
            expected = model.get_video_features(inputs).pooler_output
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises an error if a shape or layout has no flash kernel
            found = model.get_video_features(inputs).pooler_output
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("masked", [False, True])
def test_flex_attention_equals_sdpa(masked):
    """With gradients and masks, which PyTorch does not support on a CPU."""
    by_sdpa = tiny_model(hidden_size=64).cuda().train()  # flex attention needs heads of at least 16 channels
    by_flex = copy.deepcopy(by_sdpa)
    by_flex.video_model.set_attn_implementation("flex_attention")
    inputs = batch()
    if masked:
        inputs["frame_mask"] = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 1, 1]], device="cuda")
    losses = []
    for model in (by_sdpa, by_flex):
        losses.append(model(**inputs, return_loss=True).loss)
        losses[-1].backward()
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)
    for (name, one), (_, other) in zip(by_sdpa.named_parameters(), by_flex.named_parameters()):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-2, atol=1e-3, msg=name)


def test_activation_checkpointing_changes_nothing():
    models = [tiny_model().cuda() for _ in range(2)]
    checkpoint_activations(models[1])
    losses = [steps(model, batch()) for model in models]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    for (name, one), (_, other) in zip(*(model.named_buffers() for model in models)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=name)


def test_a_clip_does_not_depend_on_its_neighbors():
    model, inputs = tiny_model().cuda().eval(), batch()["pixel_values_videos"]
    with torch.inference_mode():
        together = model.get_video_features(inputs).pooler_output
        alone = torch.cat([model.get_video_features(clip[None]).pooler_output for clip in inputs])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


class _Collator:
    """Returns a batch with a random clip and caption per row, seeded with its number."""

    def __call__(self, rows):
        drawn = [torch.Generator().manual_seed(row["number"]) for row in rows]
        ids = torch.stack([torch.randint(1, 99, (6,), generator=one) for one in drawn])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values_videos": torch.stack([torch.randn(2, 3, 32, 32, generator=one) for one in drawn]),
            "video_ids": torch.tensor([row["number"] for row in rows]),
            "return_loss": True,
            "unreadable": [],
        }


class _Processor:
    def save_pretrained(self, directory):
        pass


def losses_of_training(output, **options):
    """Returns the loss of each step of a short training with the Trainer."""
    arguments = RegionLearnerTrainingArguments(
        str(output), max_steps=30, per_device_train_batch_size=8, learning_rate=1e-3, lr_scheduler_type="constant",
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = RegionLearnerTrainer(
        tiny_model(temperature=0.2), arguments, processing_class=_Processor(), data_collator=_Collator(),
        train_dataset=[{"number": number} for number in range(16)],
    )  # fmt: skip
    trainer.train()
    return torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


@pytest.fixture(scope="module")
def losses_in_float32(tmp_path_factory):
    return losses_of_training(tmp_path_factory.mktemp("float32"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_training_with_mixed_precision_and_compilation_is_near_that_in_float32(tmp_path, losses_in_float32, precision):
    counters.clear()
    expected, found = losses_in_float32, losses_of_training(tmp_path, torch_compile=True, **{precision: True})
    assert counters["stats"]["unique_graphs"] > 0  # it was compiled
    assert len(found) == 30
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found[:5], expected[:5], rtol=0.1, atol=0.1)
    assert found[-5:].mean() < 0.5 * found[:5].mean()

"""Tests the quantizer's statistics: their values, which passes count, and that two processes agree with one."""

import logging
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch.utils.checkpoint import checkpoint

from region_learner.loss_region_learner import contrastive_loss
from region_learner.modeling_region_learner import RegionLearnerQuantizer, _hash_uniform
from region_learner.training.gradient_cache import cached_backward

from .conftest import TINY_VIDEO, RegionLearnerVideoConfig, checkpoint_activations, clips, texts, tiny_model
from .toy_run import free_port


def quantizer(**options) -> RegionLearnerQuantizer:
    return RegionLearnerQuantizer(RegionLearnerVideoConfig(**TINY_VIDEO | options)).train()


def quantizer_of(state: dict[str, torch.Tensor]) -> RegionLearnerQuantizer:
    q = quantizer()
    q.load_state_dict(state)
    return q.eval()


def features(count: int = 200, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def state(module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a[:, None] - b[None]).norm(dim=-1)


def spread(chosen: torch.Tensor, count: int) -> bool:
    """Returns whether the position chosen for each code is within its own stretch of `count` positions."""
    stretches = torch.arange(len(chosen) + 1) * count // len(chosen)
    return bool((stretches[:-1] <= chosen).all() and (chosen < stretches[1:]).all())


def test_codes_start_as_features_of_the_first_batch():
    q, x = quantizer(), features()
    with torch.no_grad():
        assert torch.equal(q(x)[0], x)  # features stay unquantized, also in a pass without gradients
        assert q.num_updates == 0
    assert torch.equal(q(x)[0], x)
    nearest = distance(q.embed, x).min(1)
    assert nearest.values.max() == 0
    assert spread(nearest.indices, 200)
    assert q.num_updates == 1
    assert not q.cluster_sum.any()
    # The statistics are as if each code had been the average of an equal share of the batch for one step.
    torch.testing.assert_close(q.cluster_size, torch.full((16,), 0.01 * 200 / 16))
    torch.testing.assert_close(q.embed_avg, q.embed * q.cluster_size[:, None])
    output, ids = q(x)
    assert len(ids.unique()) == 16
    assert (distance(output, x).min(1).values < 1e-4).all()  # the codes from before the second update
    untrained = quantizer().eval()
    output, ids = untrained(x)
    assert torch.equal(output, untrained.embed[ids])


def test_the_start_of_a_code_in_its_stretch_depends_on_the_step():
    """It is not always the first feature: in a regular grid, first features, such as corners, are all similar."""
    places = []
    for step in range(40):
        q = quantizer()
        chosen, found = q._draw_candidates(
            torch.ones(320, dtype=torch.bool), _hash_uniform(step * 16 + torch.arange(16))
        )
        assert found.all()
        assert spread(chosen, 320)
        places.append(chosen - torch.arange(16) * 20)
    places = torch.stack(places).float()  # (40, 16) of 0 to 19
    assert places.min() == 0
    assert places.max() == 19
    assert abs(places.mean() - 9.5) < 1
    assert (places.std(0) > 3).all()
    assert (places.std(1) > 3).all()


def test_candidates_are_drawn_equally_from_all_passes_of_a_step():
    """Each code starts on a feature of one of the passes, which are all equally likely."""
    origins = []
    for trial in range(60):
        q = quantizer(codebook_size=8)
        q.auto_update = False
        q.num_updates -= trial  # another step has other random numbers; the first update is still to come
        passes = [features(40, seed=number) for number in range(4)]
        for x in passes:
            q(x)
        q.num_updates.zero_()
        q.update()
        nearest = distance(q.embed, torch.cat(passes)).min(1)
        assert nearest.values.max() == 0
        assert spread(nearest.indices % 40, 40)
        origins.append(nearest.indices // 40)
    counts = torch.bincount(torch.cat(origins), minlength=4)  # 480 in all
    assert ((counts - 120) ** 2 / 120).sum() < 16.3  # chi-square, 3 degrees of freedom: p < 1e-3 above it


def test_update_equals_moving_averages_written_out():
    q = quantizer()
    q(features())
    before = state(q)
    x = features(seed=1)
    _, ids = q(x)
    expected_ids = torch.tensor([((x[i] - before["embed"]) ** 2).sum(1).argmin() for i in range(len(x))])
    assert torch.equal(ids, expected_ids)
    for code in range(16):
        mine = x[expected_ids == code]
        n = 0.99 * before["cluster_size"][code] + 0.01 * len(mine)
        m = 0.99 * before["embed_avg"][code] + 0.01 * mine.sum(0)
        torch.testing.assert_close(q.cluster_size[code], n)
        torch.testing.assert_close(q.embed_avg[code], m)
        assert q.cluster_sum[code] == before["cluster_sum"][code] + len(mine)
    total = q.cluster_size.sum()
    laplace = (q.cluster_size + 1e-5) / (total + 16e-5) * total
    torch.testing.assert_close(q.embed, q.embed_avg / laplace[:, None])


def test_evaluation_changes_nothing_and_gradients_pass_straight_through():
    q = quantizer()
    q(features())
    before = state(q.eval())
    x = features(seed=1).requires_grad_()
    output, ids = q(x)
    (output * torch.arange(32.0)).sum().backward()
    assert torch.equal(output, q.embed[ids])
    assert torch.equal(x.grad, torch.arange(32.0).expand_as(x))
    assert all(torch.equal(value, before[name]) for name, value in q.named_buffers())


def test_dead_codes_are_revived_from_current_features():
    q = quantizer(codebook_revival_after=36)
    q(features())
    q.embed[:8] = 1e4  # no feature will choose these
    q.embed_avg[:8] = 1e4 * q.cluster_size[:8, None]
    for step in range(3):
        before = state(q)
        x = features(seed=step)
        q(x)
    # Each revived code lies a tenth of the way from a live code to one of its features.
    ids = distance(x, before["embed"]).argmin(1)
    splits = 0.9 * before["embed"][ids] + 0.1 * x
    nearest = distance(q.embed[:8], splits).min(1)
    assert (nearest.values < 1e-4).all()
    assert len(nearest.indices.unique()) == 8
    assert (q.features_unused[:8] == 0).all()
    # Its statistics are as if an average share of the features had chosen it in one step.
    _, ids = quantizer_of(before)(x)
    counts = torch.bincount(ids, minlength=16)
    average = (0.99 * before["cluster_size"] + 0.01 * counts).mean()
    torch.testing.assert_close(q.cluster_size[:8], (0.01 * average).expand(8))
    torch.testing.assert_close(q.embed_avg[:8], q.embed[:8] * q.cluster_size[:8, None])
    for step in range(20):
        _, ids = q(features(seed=step))
    assert len(ids.unique()) >= 15


def test_without_revival_dead_codes_stay_dead():
    q = quantizer(codebook_revival_after=0)
    q(features())
    q.embed[:8] = 1e4
    q.embed_avg[:8] = 1e4 * q.cluster_size[:8, None]
    for step in range(6):
        _, ids = q(features(seed=step))
    assert ids.min() >= 8


def test_nearest_in_chunks(monkeypatch):
    q, x = quantizer(), features()
    whole = q.nearest(x)
    monkeypatch.setattr("region_learner.modeling_region_learner._DISTANCES_AT_ONCE", 16 * 7)
    assert torch.equal(q.nearest(x), whole)


def test_hash_is_uniform():
    values = _hash_uniform(torch.arange(100_000))
    assert values.min() > 0
    assert values.max() < 1
    counts = torch.histc(values.float(), bins=20, min=0, max=1)
    assert ((counts - 5000) ** 2 / 5000).sum() < 50  # chi-square, 19 degrees of freedom: p < 1e-4 above 50
    assert torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1].abs() < 0.02


@pytest.mark.parametrize("mode", ["ema", "original"])
def test_a_resumed_run_has_the_same_statistics(mode):
    """The statistics depend only on buffers and batches, not on a random state."""
    options = {"codebook_mode": mode} | ({"codebook_revival_after": 24} if mode == "ema" else {})
    one, other = quantizer(**options), None
    for step in range(4):
        if step == 2:
            other = quantizer(**options)
            other.load_state_dict(one.state_dict())
        one(features(seed=step))
        if other is not None:
            torch.rand(7)
            other(features(seed=step))
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers()))


def damaged(seed: int) -> torch.Tensor:
    """Returns features; six of them, including the first and last, are not finite or too large for a finite sum."""
    x = features(seed=seed)
    x[0, 3], x[17], x[60, 0], x[61, 31], x[150, 5], x[-1, 0] = (
        float("nan"),
        float("inf"),
        -float("inf"),
        3e38,
        -2e20,
        1e30,
    )
    return x


def sound(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([row for row in x if all(abs(value) < 1e15 for value in row.tolist())])


def naive_update(before, x, decay):
    """Returns the averages after a batch, computed code by code. Features are looked up in `before["embed"]`."""
    after = {"cluster_size": [], "embed_avg": [], "cluster_sum": []}
    nearest = [min(range(16), key=lambda k: float(((row - before["embed"][k]) ** 2).sum())) for row in x]
    for code in range(16):
        mine = [row for row, k in zip(x, nearest) if k == code]
        after["cluster_size"].append(decay * before["cluster_size"][code] + (1 - decay) * len(mine))
        after["cluster_sum"].append(before["cluster_sum"][code] + len(mine))
        after["embed_avg"].append(decay * before["embed_avg"][code] + (1 - decay) * sum(mine, torch.zeros(32)))
    after = {name: torch.stack(values) for name, values in after.items()}
    total = after["cluster_size"].sum()
    smoothed = (after["cluster_size"] + 1e-5) / (total + 16e-5) * total
    return after | {"embed": after["embed_avg"] / smoothed[:, None]}


@pytest.mark.parametrize(("mode", "decay"), [("ema", 0.99), ("original", 0.1)])
def test_features_that_are_not_finite_do_not_count(mode, decay):
    q = quantizer(codebook_mode=mode)
    q(features())
    for step in (1, 2):
        before, x = state(q), damaged(step)
        assert len(sound(x)) == len(x) - 6
        q(x)
        for name, value in naive_update(before, sound(x), decay).items():
            torch.testing.assert_close(q.get_buffer(name), value, msg=name)


@pytest.mark.parametrize("mode", ["ema", "original"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_start_and_revive_without_features_that_are_not_finite(mode, dtype):
    """The result is the same as for a batch without these features, also if frames are masked."""
    options = {"codebook_mode": mode} | ({"codebook_revival_after": 1} if mode == "ema" else {})
    q, expected, masked = quantizer(**options), quantizer(**options), quantizer(**options)
    for step in range(4):
        x = damaged(step).to(dtype)
        q(x)
        expected(sound(x))
        padding = torch.full((5, 32), float("nan"), dtype=dtype)
        masked(torch.cat([x[:50], padding, x[50:]]), torch.tensor([True] * 50 + [False] * 5 + [True] * 150))
    for name, value in expected.named_buffers():
        assert torch.equal(q.get_buffer(name), value), name
        assert torch.equal(masked.get_buffer(name), value), name
        assert value.isfinite().all()


def test_a_batch_without_any_finite_feature_moves_no_code():
    for q in (quantizer(codebook_revival_after=1), quantizer(codebook_mode="original")):
        for _ in range(2):  # before and after the first update
            before = q.embed.clone()
            for _ in range(3):
                q(torch.full((20, 32), float("nan")))
            assert torch.equal(q.embed, before)
            q(features())


# Which passes count

INPUTS = {**texts(4), "pixel_values_videos": clips(4)}
FEATURES = 4 * 4 * 16  # the number of features of these clips


def loss_of(model, rows: slice = slice(4)) -> torch.Tensor:
    return model(**{name: value[rows] for name, value in INPUTS.items()}, return_loss=True).loss


def plain(model):
    loss_of(model).backward()


def accumulated(model):
    for rows in (slice(2), slice(2, 4)):
        loss_of(model, rows).backward()


def joined(model):
    (loss_of(model, slice(2)) + loss_of(model, slice(2, 4))).backward()


def beside_others(model):
    with torch.no_grad():
        loss_of(model)
    loss = loss_of(model)
    loss_of(model.eval()).backward()
    model.train()
    loss.backward()


def layers_checkpointed(model):
    checkpoint_activations(model)
    loss_of(model).backward()


def checkpoint_regions(model, reentrant: bool):
    """Checkpoints the region module like FSDP's activation checkpointing (which is not reentrant)."""
    module = model.video_model.region_module
    forward = partial(type(module).forward, module)
    module.forward = lambda *inputs: checkpoint(forward, *inputs, use_reentrant=reentrant)


def checkpointed(model, reentrant: bool = False):
    checkpoint_regions(model, reentrant)
    loss = loss_of(model)
    loss.backward(retain_graph=True)
    loss.backward()  # recomputes everything once more


def checkpointed_reentrantly(model):
    checkpointed(model, reentrant=True)


def cached(model):
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), backward=lambda loss: loss.backward(), no_sync=lambda model: nullcontext()
    )
    loss = partial(contrastive_loss, model.config)
    cached_backward(accelerator, model, INPUTS, chunk=3, autocast=nullcontext, loss_function=loss)


def cached_and_checkpointed(model):
    checkpoint_regions(model, reentrant=False)
    cached(model)


def cached_and_checkpointed_reentrantly(model):
    checkpoint_regions(model, reentrant=True)
    cached(model)


class Embedder(torch.nn.Sequential):
    """Gives a model the interface that sentence-transformers' losses expect."""

    def forward(self, inputs):
        outputs = self[0](**inputs)
        return {"sentence_embedding": outputs.text_embeds if "input_ids" in inputs else outputs.video_embeds}


def cached_by_sentence_transformers(model):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    loss = losses.CachedMultipleNegativesRankingLoss(Embedder(model), mini_batch_size=3)
    videos = {"pixel_values_videos": INPUTS["pixel_values_videos"]}
    loss([texts(4), videos], torch.zeros(4)).backward()


def cached_by_sentence_transformers_and_checkpointed(model):
    checkpoint_regions(model, reentrant=False)
    cached_by_sentence_transformers(model)


@pytest.mark.parametrize(
    "step",
    [
        plain,
        accumulated,
        joined,
        beside_others,
        layers_checkpointed,
        checkpointed,
        checkpointed_reentrantly,
        cached,
        cached_and_checkpointed,
        cached_and_checkpointed_reentrantly,
        cached_by_sentence_transformers,
        cached_by_sentence_transformers_and_checkpointed,
    ],
)
def test_each_feature_counts_once(step):
    states = []
    for way in (plain, step):
        model = tiny_model(codebook_revival_after=0).train()
        loss_of(model)  # in one process, passes update the codebook by themselves
        assert model.quantizer.num_updates == 1
        model.quantizer.auto_update = False
        for _ in range(2):
            before = state(model.quantizer)
            way(model)
            assert all(torch.equal(value, before[name]) for name, value in model.quantizer.named_buffers())
            model.update_codebook()
            model.update_codebook()  # nothing is left to learn from
        assert model.quantizer.num_updates == 3
        assert model.quantizer.cluster_sum.sum() == 2 * FEATURES
        states.append(state(model.quantizer))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, msg=name)


def test_passes_within_a_backward_pass_update_the_codes_once_at_its_end():
    states = []
    for way in (plain, cached_by_sentence_transformers):
        model = tiny_model(codebook_revival_after=0).train()
        loss_of(model)
        way(model)
        assert model.quantizer.num_updates == 2
        states.append(state(model.quantizer))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, msg=name)


def test_statistics_of_a_failed_backward_pass_are_discarded():
    states = []
    for fails in (False, True):
        model = tiny_model(codebook_revival_after=0).train()
        loss_of(model)
        if fails:
            hook = model.video_model.region_module.register_forward_hook(fail_in_backward)
            with pytest.raises(MemoryError):
                cached_by_sentence_transformers(model)
            hook.remove()
            assert model.quantizer.num_updates == 1
        cached_by_sentence_transformers(model)
        assert model.quantizer.num_updates == 2
        states.append(state(model.quantizer))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, msg=name)


def fail_in_backward(*_):
    if torch._C._current_graph_task_id() != -1:
        raise MemoryError


def test_passes_of_a_compiled_model_count_the_same():
    models = [tiny_model(codebook_revival_after=1).train() for _ in range(2)]
    for model, called in zip(models, (models[0], torch.compile(models[1], backend="eager", fullgraph=True))):
        model.quantizer.auto_update = False
        for _ in range(2):
            for seed in range(2):
                outputs = called(**texts(4), pixel_values_videos=clips(4, seed=seed))
                contrastive_loss(model.config, outputs).backward()
            model.update_codebook()
    for (name, value), (_, compiled) in zip(*(model.named_buffers() for model in models)):
        torch.testing.assert_close(compiled, value, msg=name)


def say_again():
    """Makes `warning_once` repeat its warnings."""
    logging.Logger.warning_once.cache_clear()


def test_pending_statistics_are_neither_saved_nor_lost_when_a_model_moves(caplog):
    say_again()
    model = tiny_model().train()
    loss_of(model)
    model.quantizer.auto_update = False
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss_of(model)
    assert model.state_dict().keys() == before.keys()
    assert "The model is saved, but its codebook has not learned" in caplog.text
    model.to(torch.bfloat16).to(torch.float32)
    model.update_codebook()
    assert model.quantizer.cluster_sum.sum() == FEATURES
    model.quantizer.discard_pending()
    loss_of(model)
    model.quantizer.discard_pending()
    model.update_codebook()
    assert model.quantizer.num_updates == 2


def test_a_frozen_codebook_collects_nothing():
    for codebook in ("ema", "original"):
        model = tiny_model(codebook_mode=codebook).train()
        model.quantizer.frozen = True
        before = state(model.quantizer)
        output = model.video_model(INPUTS["pixel_values_videos"])
        model.update_codebook()
        assert all(torch.equal(value, before[name]) for name, value in model.quantizer.named_buffers())
        expected = model.eval().video_model(INPUTS["pixel_values_videos"])
        assert torch.equal(output.cluster_ids, expected.cluster_ids)
        torch.testing.assert_close(output.pooler_output, expected.pooler_output)
    without = tiny_model(codebook_size=0)
    assert without.quantizer is None
    without.update_codebook()


def test_the_original_mode_looks_up_codes_after_the_update():
    q, x = quantizer(codebook_mode="original"), features()
    waiting = quantizer(codebook_mode="original")
    waiting.auto_update = False
    for _ in range(2):
        output, ids = waiting(x)
        ours, _ = q(x)
        assert torch.equal(ours, q.embed[ids])
        assert torch.equal(output, ours)
        waiting.update()
        assert all(torch.equal(waiting.get_buffer(name), value) for name, value in q.named_buffers())


# In two processes


def _steps(called, model, rows: slice, count: int):
    """Runs `count` training steps on some rows of a batch of four. Returns the last loss, and leaves its gradients."""
    frame_mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
    for step in range(count):
        model.zero_grad()
        inputs = {name: value[rows] for name, value in texts(4, seed=step).items()}
        videos = clips(4, seed=step)[rows].double()
        outputs = called(**inputs, pixel_values_videos=videos, frame_mask=frame_mask[rows])
        loss = contrastive_loss(model.config, outputs, torch.tensor([5, 6, 5, 7])[rows], gather=True)
        loss.backward()
        model.update_codebook()
    return loss.detach()


MODES = [
    {"codebook_size": 64, "codebook_revival_after": 1},  # codes are revived in every step
    {"codebook_size": 64, "codebook_mode": "original"},
]
HALF = 101  # features of `damaged` in the first process; each has 97 that count


def _worker(rank: int, port: int, result_file: str):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    results = {"models": [], "damaged": []}
    for options in MODES:
        model = tiny_model(**options).double().train()
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        loss = _steps(parallel, model, slice(2 * rank, 2 * rank + 2), 3)
        torch.distributed.all_reduce(loss)
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results["models"].append((loss / 2, gradients, state(model)))
        q = quantizer(**options)
        for step in range(3):
            q(damaged(step)[:HALF] if rank == 0 else damaged(step)[HALF:])
            q.update()
        results["damaged"].append(state(q))

    # The processes have unequal numbers of features, one has none in the end, and 63 codes cannot be shared evenly.
    q = quantizer(codebook_size=63, codebook_revival_after=0)
    for step, share in enumerate((90, 20, 200)):
        place = torch.arange(200)
        q(features(seed=step), (place < share) if rank == 0 else (place >= share))
        q.update()
        if step == 0:
            results["uneven start"] = q.embed.clone()
    results["uneven"] = state(q)

    # Both processes have a candidate for each code, from three passes.
    both = quantizer(codebook_size=4)
    both._pending = torch.zeros(4, 2 * 32 + 2)
    both._pending[:, 0], both._pending[:, 33:65], both._pending[:, 65] = 1, 2 + 2 * rank, 3
    both.update()
    results["both"] = both.embed.clone()

    # Nothing is learned without an update, and a warning says so.
    lines = []
    handler = logging.Handler()
    say_again()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("region_learner").addHandler(handler)
    before = state(q)
    for _ in range(3):
        q(features())
    results["unchanged"] = all(torch.equal(value, before[name]) for name, value in q.named_buffers())
    assert not lines
    for _ in range(2):
        q.eval(), q.state_dict(), q.train()
    results["lines"] = list(lines)
    results["learned"] = []
    for alone in (None, 0, 1, None):  # when one process trains alone, both learn from it
        if rank == alone:
            q(features())
        q.update()
        results["learned"].append(float(q.cluster_sum.sum() - before["cluster_sum"].sum()) / 200)
    say_again()
    q.eval(), q.state_dict()
    assert lines == results["lines"]
    torch.save(results, f"{result_file}.{rank}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> list[dict]:
    path = tmp_path_factory.mktemp("codebook") / "result"
    multiprocessing.start_processes(_worker, (free_port(), str(path)), nprocs=2, start_method="forkserver")
    return [torch.load(f"{path}.{rank}") for rank in range(2)]


@pytest.mark.parametrize("number", range(len(MODES)))
def test_two_processes_equal_one_with_the_whole_batch(two_processes, number):
    """Compares loss, gradients and codebook, with masked frames. In float64, only the codebook (float32) rounds."""
    options = MODES[number]
    single = tiny_model(**options).double().train()
    loss = _steps(single, single, slice(4), 3)
    whole = torch.cat([parameter.grad.flatten() for parameter in single.parameters()])
    for results in two_processes:
        their_loss, gradients, buffers = results["models"][number]
        for name, buffer in single.named_buffers():
            torch.testing.assert_close(buffers[name], buffer, rtol=1e-5, atol=1e-4, msg=name)
        if options.get("codebook_mode") == "original":
            continue  # each process looks up codes that only its own features have moved
        torch.testing.assert_close(their_loss, loss, rtol=1e-5, atol=1e-6)
        for name, parameter in single.named_parameters():
            # The gradient of a bias that a softmax cancels is only rounding.
            error = (gradients[name] - parameter.grad).norm() / (parameter.grad.norm() + 1e-6 * whole.norm())
            assert error < 3e-5, name
        gathered = torch.cat([gradients[name].flatten() for name, _ in single.named_parameters()])
        assert (gathered - whole).norm() / whole.norm() < 1e-5


@pytest.mark.parametrize("number", range(len(MODES)))
def test_features_that_are_not_finite_do_not_count_in_two_processes(two_processes, number):
    single = quantizer(**MODES[number])
    for step in range(3):
        single(sound(damaged(step)))
    for results in two_processes:
        for name, buffer in results["damaged"][number].items():
            torch.testing.assert_close(buffer, single.get_buffer(name), rtol=1e-5, atol=1e-4, msg=name)


def test_processes_with_different_numbers_of_features(two_processes):
    """Wherever the codes start, they then learn what one process would learn from all features."""
    for results in two_processes:
        assert torch.equal(results["both"], torch.full((4, 32), 3.0))
    start = two_processes[0]["uneven start"]
    assert torch.equal(start, two_processes[1]["uneven start"])
    # Nearly all start on a feature. One at the border of the processes' shares may start between two, or later.
    assert (distance(start, features()).min(1).values < 1e-4).sum() >= 61
    single = quantizer(codebook_size=63, codebook_revival_after=0)
    single(features())
    single.embed.copy_(start)
    single.embed_avg.copy_(start * single.cluster_size[:, None])
    for step in (1, 2):
        single(features(seed=step))
    for results in two_processes:
        for name, buffer in results["uneven"].items():
            torch.testing.assert_close(buffer, single.get_buffer(name), rtol=1e-5, atol=1e-4, msg=name)


def test_a_forgotten_update_is_reported(two_processes):
    for results in two_processes:
        assert results["unchanged"]
        assert len(results["lines"]) == 2  # once each, however often it happens
        assert results["lines"][0].startswith("The model is switched to evaluation mode, but its codebook has not")
        assert "call `model.update_codebook()` after each `optimizer.step()`" in results["lines"][1]
        assert results["learned"] == [6, 7, 8, 8]  # three passes of each process, and then one of each in turn

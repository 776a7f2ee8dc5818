"""The quantizer's statistics, in one process and in two."""

import pytest
import torch
import torch.multiprocessing as multiprocessing

from region_learner.modeling_region_learner import RegionLearnerQuantizer, _hash_uniform

from .conftest import TINY_VIDEO, RegionLearnerVideoConfig, clips, texts, tiny_model


def quantizer(**options) -> RegionLearnerQuantizer:
    return RegionLearnerQuantizer(RegionLearnerVideoConfig(**TINY_VIDEO | options)).train()


def features(count: int = 200, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def state(module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a[:, None] - b[None]).norm(dim=-1)


def test_codes_start_as_features_of_the_first_batch():
    q, x = quantizer(), features()
    output, ids = q(x)
    # Looked up before the update: every output is a feature of the batch, and each code its own nearest.
    distances = distance(output, x)
    assert (distances.min(1).values < 1e-4).all()
    assert len(ids.unique()) == 16
    assert q.num_updates == 1


def test_update_equals_moving_averages_written_out():
    q = quantizer()
    q(features())
    before = state(q)
    x = features(seed=1)
    with torch.no_grad():
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
    q.embed[:8] = 1e4  # nobody will choose these
    q.embed_avg[:8] = 1e4 * q.cluster_size[:8, None]
    for step in range(3):
        before = state(q)
        x = features(seed=step)
        q(x)
    # Each lies a tenth of the way from a living code to one of its features.
    ids = distance(x, before["embed"]).argmin(1)
    splits = 0.9 * before["embed"][ids] + 0.1 * x
    nearest = distance(q.embed[:8], splits).min(1)
    assert (nearest.values < 1e-4).all()
    assert len(nearest.indices.unique()) == 8
    assert (q.features_unused[:8] == 0).all()
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
def test_a_revived_run_repeats_itself(mode):
    """Nothing depends on a random state: the statistics are a function of buffers and batches."""
    one, other = quantizer(codebook_mode=mode, codebook_revival_after=24), None
    for step in range(4):
        if step == 2:
            other = quantizer(codebook_mode=mode, codebook_revival_after=24)
            other.load_state_dict(one.state_dict())
        one(features(seed=step))
        if other is not None:
            torch.rand(7)
            other(features(seed=step))
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers()))


def damaged(seed: int) -> torch.Tensor:
    """Features of which six are not finite, or too large for a sum of theirs to be, the first and last among them."""
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
    """The averages after a batch, code by code, of the original: looked up with `before["embed"]`."""
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
def test_a_codebook_begins_and_revives_without_features_that_are_not_finite(mode, dtype):
    """As if the batch had been without them, also where frames are masked."""
    options = {"codebook_mode": mode, "codebook_revival_after": 1}
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
    for q in (quantizer(codebook_revival_after=1), quantizer(codebook_mode="original", codebook_revival_after=1)):
        for _ in range(2):  # before and after the first update
            before = q.embed.clone()
            for _ in range(3):
                q(torch.full((20, 32), float("nan")))
            torch.testing.assert_close(q.embed, before, rtol=0.02, atol=0.05)  # counts that shrink are smoothed more
            q(features())


def test_pieces_of_a_batch_that_is_not_finite_leave_a_finite_codebook():
    """Of cached gradients, which know the number of features only as it is with those that do not count."""
    q = quantizer(codebook_revival_after=1)
    x = features()
    x[20:60] = float("nan")
    for phase in ("start", "look", "learn", "learn", "learn"):
        with q.pieces(phase, len(x)):
            for piece in x.split(50):
                q(piece)
        # Codes lie on features, or between them: none is put at 0, where no feature is.
        assert all(buffer.isfinite().all() for buffer in q.buffers())
        assert (q.embed.norm(dim=1) > 1).all()


def _one_step(model, rows: slice, steps: int):
    """Loss and gradients of the last of `steps` training steps on some rows of a batch of four."""
    frame_mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    for step in range(steps):
        model.zero_grad()
        inputs = {name: value[rows] for name, value in texts(4, seed=step).items()}
        videos = clips(4, seed=step)[rows].double()
        video_ids = torch.tensor([5, 6, 5, 7])[rows]
        outputs = model(
            **inputs, pixel_values_videos=videos, frame_mask=frame_mask[rows], video_ids=video_ids, return_loss=True
        )
        outputs.loss.backward()
    return outputs.loss.detach()


MODES = [
    {"codebook_size": 64, "codebook_revival_after": 1},  # codes are revived in every step
    {"codebook_size": 64, "codebook_mode": "original"},
]


def _worker(rank: int, port: int, result_file: str):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    results = []
    for options in MODES:
        model = tiny_model(**options).double().train()
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        loss = _one_step(parallel, slice(2 * rank, 2 * rank + 2), steps=3)
        torch.distributed.all_reduce(loss)
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((loss / 2, gradients, state(model)))
    torch.save(results, f"{result_file}.{rank}")
    halves = []
    for options in MODES:
        q = quantizer(**options)
        for step in range(3):
            q(damaged(step)[:80] if rank == 0 else damaged(step)[80:])
        halves.append(state(q))
    torch.save(halves, f"{result_file}.damaged.{rank}")
    torch.distributed.destroy_process_group()


def _free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_processes_equal_one_with_the_whole_batch(tmp_path):
    """Loss, gradients and codebook, with masked frames. In float64, so that only the codebook (float32) rounds."""
    multiprocessing.spawn(_worker, (_free_port(), str(tmp_path / "result")), nprocs=2)
    results = [torch.load(tmp_path / f"result.{rank}") for rank in range(2)]
    for i, options in enumerate(MODES):
        single = tiny_model(**options).double().train()
        loss = _one_step(single, slice(0, 4), steps=3)
        whole = torch.cat([parameter.grad.flatten() for parameter in single.parameters()])
        for their_loss, gradients, buffers in (results[0][i], results[1][i]):
            torch.testing.assert_close(their_loss, loss, rtol=1e-5, atol=1e-6)
            for name, buffer in single.named_buffers():
                torch.testing.assert_close(buffers[name], buffer, rtol=1e-5, atol=1e-4, msg=name)
            for name, parameter in single.named_parameters():
                # Biases that a softmax cancels have nothing but rounding for a gradient.
                error = (gradients[name] - parameter.grad).norm() / (parameter.grad.norm() + 1e-6 * whole.norm())
                assert error < 3e-5, name
            gathered = torch.cat([gradients[name].flatten() for name, _ in single.named_parameters()])
            assert (gathered - whole).norm() / whole.norm() < 1e-5
        single = quantizer(**options)
        for step in range(3):
            single(sound(damaged(step)))
        for rank in range(2):  # of whose features some are not finite
            for name, buffer in torch.load(tmp_path / f"result.damaged.{rank}")[i].items():
                torch.testing.assert_close(buffer, single.get_buffer(name), rtol=1e-5, atol=1e-4, msg=name)

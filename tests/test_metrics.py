"""Compares retrieval metrics with a naive implementation, which sorts and gives ties the mean of their ranks."""

import tracemalloc
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from region_learner.evaluation import compute_retrieval_metrics, metrics, retrieval_metrics
from region_learner.evaluation.metrics import best_ranks


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def naive_ranks(queries, gallery, relevant):
    scores = queries @ gallery.T
    return np.array([rankdata(-row, method="average")[list(r)].min() for row, r in zip(scores, relevant)])


def naive_metrics(prefix, ranks):
    recall = {k: 100 * sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10, 50)}
    metrics = {f"{prefix}_R@{k}": value for k, value in recall.items()}
    metrics |= {f"{prefix}_MedR": np.median(ranks), f"{prefix}_MeanR": np.mean(ranks)}
    return metrics | {f"{prefix}_gmean": (recall[1] * recall[5] * recall[10]) ** (1 / 3)}


def naive(text, video, owners, ids):
    t2v = naive_ranks(text, video, [[j for j, v in enumerate(ids) if v == o] for o in owners])
    described = [i for i, v in enumerate(ids) if v in owners]
    v2t = naive_ranks(video[described], text, [[j for j, o in enumerate(owners) if o == ids[i]] for i in described])
    return naive_metrics("t2v", t2v) | naive_metrics("v2t", v2t)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ties", [False, True])
def test_metrics_equal_a_naive_implementation(seed, ties):
    rng = np.random.default_rng(seed)
    videos, texts = rng.integers(2, 40), rng.integers(1, 90)
    draw = (lambda n: rng.integers(-1, 2, (n, 3)).astype(float)) if ties else (lambda n: rng.normal(size=(n, 6)))
    text, video = draw(texts), draw(videos)
    ids = [f"v{i}" for i in rng.permutation(1000)[:videos]]
    owners = [ids[i] for i in rng.integers(0, videos, texts)]
    if seed % 3 == 0:  # several clips of one video
        ids[-1] = ids[0]
        owners = [o if o in ids else ids[0] for o in owners]
    expected = naive(text, video, owners, ids)
    assert retrieval_metrics(text, video, owners, ids) == pytest.approx(expected)
    result = retrieval_metrics(torch.tensor(text), torch.tensor(video), owners, ids)
    assert result == pytest.approx(expected)


def test_ties_are_not_hits():
    """A model that gives every input the same embedding is at chance."""
    constant = np.ones((100, 4))
    metrics = retrieval_metrics(constant, constant)
    assert metrics["t2v_R@1"] == metrics["v2t_R@1"] == 0
    assert metrics["t2v_MedR"] == metrics["t2v_MeanR"] == 50.5
    # equal embeddings tie, whatever the rounding errors of a matrix product
    rng = np.random.default_rng(0)
    video = rng.normal(size=(7, 301)).astype(np.float32)[rng.integers(0, 7, 333)]
    metrics = retrieval_metrics(video, video)
    counts = np.unique(video, axis=0, return_counts=True)[1]
    assert metrics["t2v_MeanR"] == pytest.approx(np.average((counts + 1) / 2, weights=counts))


def uneven(seed: int, videos: int, texts: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the video id of each text and all video ids, some twice. Some videos have many texts, some have none."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, max(1, videos * 4 // 5), videos)
    return rng.choice(ids, texts, p=(weights := rng.random(videos) ** 6) / weights.sum()), ids


@pytest.mark.parametrize("tile", [(8, 8), (5, 24), (248, 2040)])
@pytest.mark.parametrize("at_once", [1, 7, 2**20])
@pytest.mark.parametrize("number_of_threads", [1, 3])
def test_tiles_pieces_and_threads(monkeypatch, threads, tile, at_once, number_of_threads):
    threads(number_of_threads)
    monkeypatch.setattr(metrics, "_ROWS", tile[0])
    monkeypatch.setattr(metrics, "_COLUMNS", tile[1])
    monkeypatch.setattr(metrics, "_NUMBERS_AT_ONCE", at_once)
    monkeypatch.setattr(metrics, "_PAIRS_AT_ONCE", at_once)
    for seed, (texts, videos) in enumerate([(1, 1), (30, 1), (1, 30), (83, 49), (47, 80), (64, 64)]):
        rng = np.random.default_rng(seed)
        owners, ids = uneven(seed, videos, texts)
        text = rng.integers(-2, 3, (texts, 4)).astype(np.float32)
        video = rng.integers(-2, 3, (videos, 4)).astype(np.float32)
        expected = naive(text, video, owners.tolist(), ids.tolist())
        assert retrieval_metrics(text, video, owners, ids) == pytest.approx(expected)
    assert torch.get_num_threads() == number_of_threads


@pytest.mark.parametrize("few", [-1, 0.02, 2], ids=["tiles", "mixed", "pairs"])
@pytest.mark.parametrize("kind", ["close", "collapsed", "cancelling", "a few lengths"])
def test_scores_that_float32_cannot_tell_apart(monkeypatch, kind, few):
    """Scores that float32 cannot tell apart are computed again, one by one or a tile at a time."""
    monkeypatch.setattr(metrics, "_FEW", few)
    monkeypatch.setattr(metrics, "_COLUMNS", 64)
    rng = np.random.default_rng(1)
    text, video = rng.normal(size=(150, 32)), rng.normal(size=(130, 32))
    if kind == "close":  # all texts are parallel, and scores differ in steps of 1e-9
        direction = text[0] / np.linalg.norm(text[0])
        text = (1 + 1e-9 * rng.permutation(150)[:, None]) * direction
        video += (0.3 + 1e-9 * rng.permutation(130) - video @ direction)[:, None] * direction
    elif kind == "collapsed":
        text, video = 1 + 1e-5 * text, 1 + 1e-5 * video
    elif kind == "cancelling":  # large products that cancel, except for the last ones
        text[:, :16] = 1e3 * text[:, 16:]
        video[:, :16] = 1e3
        video[:, 1:16:2] *= -1
        text[:, 1:16:2] = text[:, :16:2]
    else:
        text, video = text * rng.choice([1e-4, 1, 300], (150, 1)), video * rng.choice([1e-2, 1, 50], (130, 1))
    owners, ids = uneven(2, 130, 150)
    expected = naive(text, video, owners.tolist(), ids.tolist())
    assert retrieval_metrics(text, video, owners, ids) == pytest.approx(expected)
    single = retrieval_metrics(text.astype(np.float32), video.astype(np.float32), owners, ids)
    text, video = text.astype(np.float32).astype(float), video.astype(np.float32).astype(float)
    if kind not in ("collapsed", "close"):  # where float32 embeddings tie, or almost
        assert single == pytest.approx(naive(text, video, owners.tolist(), ids.tolist()))


@pytest.mark.parametrize("length", [1e-100, 1e-20, 1e-9, 1e-3, 1e3, 1e9, 1e20, 1e100])
def test_embeddings_of_any_length(length):
    rng = np.random.default_rng(3)
    text, video = rng.normal(size=(60, 8)), rng.normal(size=(40, 8))
    owners, ids = uneven(3, 40, 60)
    expected = naive(text, video, owners.tolist(), ids.tolist())
    assert retrieval_metrics(text * length, video, owners, ids) == pytest.approx(expected)
    assert retrieval_metrics(text, video * length, owners, ids) == pytest.approx(expected)
    assert retrieval_metrics(text * length, video / length, owners, ids) == pytest.approx(expected)
    # Equal embeddings tie, whatever the last bit of a matrix product.
    which = rng.integers(0, 7, 333)
    video = length * rng.normal(size=(7, 301))[which]
    counts = np.bincount(which)
    result = retrieval_metrics(video, video)
    assert result["t2v_MeanR"] == pytest.approx(np.average((counts + 1) / 2, weights=counts))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_types(dtype):
    generator = torch.Generator().manual_seed(0)
    text, video = (4 * torch.randn(n, 24, generator=generator) for n in (70, 50))
    text, video = text.to(dtype), video.to(dtype)
    owners, ids = uneven(4, 50, 70)
    expected = naive(text.double().numpy(), video.double().numpy(), owners.tolist(), ids.tolist())
    assert retrieval_metrics(text, video, torch.tensor(owners), torch.tensor(ids)) == pytest.approx(expected)
    if dtype.is_floating_point:
        with torch.inference_mode():
            assert retrieval_metrics(text.clone(), video.clone(), owners, ids) == pytest.approx(expected)
        assert retrieval_metrics(text.requires_grad_(), video.T.contiguous().T, owners, ids) == pytest.approx(expected)


def test_memory_mapped_files(tmp_path):
    rng = np.random.default_rng(5)
    text, video = rng.normal(size=(2, 90, 8)).astype(np.float32)
    for name, embeds in (("text", text), ("video", video)):
        np.save(tmp_path / f"{name}.npy", embeds)
    files = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("text", "video")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert retrieval_metrics(*files) == pytest.approx(naive(text, video, list(range(90)), list(range(90))))


def test_lower_float32_precision_does_not_change_ranks(threads):
    """A lower precision of float32 products, set for training, does not change ranks, and the setting is kept."""
    rng = np.random.default_rng(6)
    video = rng.normal(size=(600, 64)).astype(np.float32)
    text = (video + 0.1 * rng.normal(size=(600, 64))).astype(np.float32)
    expected = naive(text.astype(float), video.astype(float), list(range(600)), list(range(600)))
    assert expected["t2v_R@1"] > 99
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        for number in (1, 3):
            threads(number)
            with torch.autocast("cpu", torch.bfloat16):
                assert retrieval_metrics(1 + text / 50, 1 + video / 50) == pytest.approx(
                    naive(*((1 + x / 50).astype(float) for x in (text, video)), list(range(600)), list(range(600)))
                )
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.mkldnn.enabled
    finally:
        torch.set_float32_matmul_precision(precision)


class LargestTensor(TorchDispatchMode):
    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


@pytest.mark.parametrize("kind", ["different", "equal", "duplicates", "one video"])
def test_never_holds_the_matrix(threads, kind):
    threads(1)  # LargestTensor does not see other threads
    texts, videos, dim = 3_000, 2_500, 4
    rng = np.random.default_rng(7)
    text, video = rng.normal(size=(texts, dim)), rng.normal(size=(videos, dim))
    if kind == "equal":
        text[:], video[:] = 1, 1
    if kind == "duplicates":
        text, video = text[np.arange(texts) % 70], video[np.arange(videos) % 70]
    owners, ids = rng.integers(0, videos, texts), np.arange(videos)
    if kind == "one video":  # any video is right
        owners, ids = np.zeros(texts, int), np.zeros(videos, int)
    tracemalloc.start()
    try:
        with LargestTensor() as largest:
            result = retrieval_metrics(text, video, owners, ids)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A tile has two masks, and pairs come in pieces; the whole matrix would have 7.5 million numbers.
    assert largest.numbers <= 2 * 248 * 2040
    assert peak < 8 * texts * videos / 2
    if kind == "equal":
        assert result["t2v_MeanR"] == (videos + 1) / 2
        assert result["v2t_MeanR"] == (texts + 1) / 2
    if kind == "one video":
        assert result["t2v_MeanR"] == result["v2t_MedR"] == 1


def test_ranks_of_queries_in_a_gallery():
    rng = np.random.default_rng(8)
    queries, gallery = rng.integers(-2, 3, (40, 3)), rng.integers(-2, 3, (70, 3))
    relevant = [rng.choice(70, rng.integers(1, 6), replace=False).tolist() for _ in range(40)]
    expected = naive_ranks(queries, gallery, relevant)
    np.testing.assert_array_equal(best_ranks(queries, gallery, relevant), expected)
    np.testing.assert_array_equal(
        best_ranks(queries, gallery[:20], [[3]] * 40), naive_ranks(queries, gallery[:20], [[3]] * 40)
    )
    with pytest.raises(ValueError, match="Query 1 has no relevant entry"):
        best_ranks(queries[:2], gallery, [[1], []])
    with pytest.raises(ValueError, match="relevant has 1 entries for 2 queries"):
        best_ranks(queries[:2], gallery, [[1]])
    with pytest.raises(ValueError, match="queries and gallery must have the same dimension, not 2 and 3"):
        best_ranks(queries[:, :2], gallery, relevant)


def test_perfect_embeddings_and_default_pairs():
    embeds = np.eye(60)
    metrics = retrieval_metrics(embeds, embeds)
    assert metrics["t2v_R@1"] == metrics["v2t_R@1"] == metrics["t2v_gmean"] == 100
    assert metrics["t2v_MedR"] == metrics["v2t_MeanR"] == 1
    assert set(metrics) == {
        f"{d}_{m}" for d in ("t2v", "v2t") for m in ("R@1", "R@5", "R@10", "R@50", "MedR", "MeanR", "gmean")
    }
    assert all(type(value) is float for value in metrics.values())
    for ids in (np.roll(np.arange(60), 7), [f"video {i}" for i in range(60)]):  # names of videos do not matter
        assert retrieval_metrics(embeds, embeds, video_ids=ids) == metrics
    with pytest.raises(ValueError, match="60 texts and 59 videos: pass text_video_ids to say"):
        retrieval_metrics(embeds, embeds[1:], video_ids=range(59))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((3, 4)), np.ones((2, 4))), "3 texts and 2 videos: pass text_video_ids to say"),
        ((np.ones((3, 4)), np.ones((3, 5))), "same dimension, not 4 and 5"),
        ((np.ones((0, 4)), np.ones((3, 4))), "text_embeds must be of shape"),
        ((np.full((3, 4), np.nan), np.ones((3, 4))), "text_embeds contains values that are not finite"),
        ((np.ones((3, 4)), np.ones((3, 4)), [0, 1]), "text_video_ids has 2 entries for 3"),
        ((np.ones((2, 4)), np.ones((2, 4)), ["a", "z"], ["a", "b"]), r"not in video_ids: \['z'\]"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(*arguments)


def test_trainer_metrics_leave_out_padding_and_repeated_videos():
    rng = np.random.default_rng(0)
    text, video = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    ids = np.array([11, 12, -1, 13, 12, -1])
    video[4] = video[1]
    prediction = SimpleNamespace(predictions=(text, video), label_ids=ids)
    expected = naive(text[[0, 1, 3, 4]], video[[0, 1, 3]], [11, 12, 13, 12], [11, 12, 13])
    assert compute_retrieval_metrics(prediction) == pytest.approx(expected)
    with pytest.raises(ValueError, match="Every row is left out"):
        compute_retrieval_metrics(SimpleNamespace(predictions=(text, video), label_ids=np.full(6, -1)))

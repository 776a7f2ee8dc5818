"""Tests for re-ranking by words and regions against naive implementations, from similarities to the model card."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from region_learner import RegionLearnerModel
from region_learner.cli import main
from region_learner.corpora import load_corpus, make_corpus
from region_learner.evaluation import (
    Tokens,
    Views,
    candidate_similarity,
    embed_corpus,
    evaluate_checkpoint,
    get_protocol,
    multiple_choice_accuracy,
    read_results,
    reranked_metrics,
    reranking,
    retrieval_accuracy,
    retrieval_metrics,
)
from region_learner.model_card import model_card
from region_learner.modeling_region_learner import word_region_similarity
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .conftest import tiny_model, tiny_text_config
from .test_metrics import naive_metrics

CLIPS = 12
T, TOKEN_T = 0.07, 0.04  # temperatures


def some_tokens(rng, n: int, length: int, padded: bool, values: int | None = None) -> Tokens:
    """Returns random unit vectors (only `values` different ones, if given); `padded` sets trailing weights to 0."""
    embeds = rng.normal(size=(n, length, 5))
    if values is not None:
        embeds = rng.normal(size=(values, 5))[rng.integers(0, values, (n, length))]
    weights = np.ones((n, length)) if values else rng.random((n, length)) + 0.1
    if padded:
        weights *= np.arange(length) < rng.integers(1, length + 1, n)[:, None]
    weights /= weights.sum(1, keepdims=True)
    return Tokens(
        F.normalize(torch.tensor(embeds, dtype=torch.float32), dim=-1), torch.tensor(weights, dtype=torch.float32)
    )


def unit(rng, n: int, ties: bool) -> torch.Tensor:
    embeds = np.add(rng.integers(0, 2, (n, 3)), [0.0, 0.0, 1.0]) if ties else rng.normal(size=(n, 4))
    return F.normalize(torch.tensor(embeds), dim=-1)


def matrices(text, video, words, regions, temperature=T, token_temperature=TOKEN_T):
    """Returns the cosines and the summed logits of all pairs, (texts, videos), rounded so that ties are exact."""
    of_tokens = word_region_similarity(
        words.embeds.double(), words.weights.double(), regions.embeds.double(), regions.weights.double()
    ).round(decimals=10)
    cosines = (text.double() @ video.double().T).round(decimals=10)
    return cosines.numpy(), (cosines / temperature + of_tokens / token_temperature).numpy()


def naive_rank(cosines, sums, own, k: int) -> float:
    """Ranks a gallery in two stages, and returns the mean rank of the entries tied with the best right one."""
    last = sorted(cosines, reverse=True)[min(k, len(cosines)) - 1]
    keys = [(1, total) if cosine >= last else (0, cosine) for cosine, total in zip(cosines, sums)]
    best = max(keys[j] for j in own)
    # Sums of equal parts may differ by rounding.
    tied = [key[0] == best[0] and abs(key[1] - best[1]) < 1e-9 for key in keys]
    places = [1 + place for place, j in enumerate(sorted(range(len(keys)), key=lambda j: keys[j])[::-1]) if tied[j]]
    return float(np.mean(places))


def naive(cosines, sums, owners, ids, k: int) -> dict[str, float]:
    result = {}
    described = [i for i, video_id in enumerate(ids) if video_id in owners]
    for prefix, first, second, of_queries, of_gallery in (
        ("rr_t2v", cosines, sums, owners, ids),
        ("rr_v2t", cosines.T[described], sums.T[described], [ids[i] for i in described], owners),
    ):
        ranks = [
            naive_rank(a, b, [j for j, other in enumerate(of_gallery) if other == own], k)
            for a, b, own in zip(first, second, of_queries)
        ]
        result |= naive_metrics(prefix, np.array(ranks))
    return result


# --- Similarities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_similarity_to_candidates_is_that_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    words, regions = some_tokens(rng, 6, 7, padded=True), some_tokens(rng, 9, 4, padded=seed % 2 == 1)
    expected = word_region_similarity(words.embeds, words.weights, regions.embeds, regions.weights)
    chosen = torch.tensor([7, 0, 3])
    for text in range(6):
        torch.testing.assert_close(candidate_similarity(words[text], regions[chosen]), expected[text, chosen])
    chosen = torch.tensor([5, 2])
    for video in range(9):
        torch.testing.assert_close(candidate_similarity(regions[video], words[chosen]), expected[chosen, video])


def test_exact_similarities_of_equal_tokens_are_equal():
    """Exact similarities do not depend on the order in which products are summed."""
    rng = np.random.default_rng(0)
    query, tokens = some_tokens(rng, 1, 5, padded=False)[0].double(), some_tokens(rng, 1, 4, padded=False).double()
    noise = 1e-14 * torch.from_numpy(rng.normal(size=(50, 4, 5)))
    candidates = Tokens(tokens.embeds + noise, tokens.weights.expand(50, 4))
    assert len(candidate_similarity(query, candidates).unique()) > 1
    (similarity,) = reranking.exact_similarity(query, candidates).unique()
    assert float(similarity) == pytest.approx(float(candidate_similarity(query, tokens)), abs=1e-9)


def test_batches_of_different_lengths():
    rng = np.random.default_rng(0)
    parts = [some_tokens(rng, 2, 7, padded=True), some_tokens(rng, 3, 4, padded=True)]
    whole = Tokens.concatenate(parts)
    assert whole.embeds.shape == (5, 7, 5)
    query = some_tokens(rng, 1, 6, padded=False)[0]
    expected = torch.cat([candidate_similarity(query, part) for part in parts])
    torch.testing.assert_close(candidate_similarity(query, whole), expected)


# --- Ranks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ties", [False, True])
def test_metrics_equal_a_naive_implementation(seed, ties, monkeypatch):
    monkeypatch.setattr(reranking, "_NUMBERS_AT_ONCE", 60)  # compute in several parts
    rng = np.random.default_rng(seed)
    texts, videos, k = rng.integers(1, 60), rng.integers(2, 30), int(rng.choice([1, 2, 5, 100]))
    text, video = unit(rng, texts, ties), unit(rng, videos, ties)
    words = some_tokens(rng, texts, 6, padded=True, values=2 if ties else None)
    regions = some_tokens(rng, videos, 3, padded=False, values=2 if ties else None)
    ids = [f"v{i}" for i in rng.permutation(1000)[:videos]]
    if seed % 3 == 0:  # several clips of one video
        ids[-1] = ids[0]
    owners = [ids[i] for i in rng.integers(0, videos, texts)]
    expected = naive(*matrices(text, video, words, regions), owners, ids, k)
    found = reranked_metrics(
        text, video, words, regions, owners, ids, temperature=T, token_temperature=TOKEN_T, candidates=k
    )
    assert found == pytest.approx(expected)
    assert all(type(value) is float for value in found.values())
    order = torch.from_numpy(rng.permutation(videos))  # the order of the gallery does not matter
    again = reranked_metrics(
        text, video[order], words, regions[order], owners, [ids[i] for i in order],
        temperature=T, token_temperature=TOKEN_T, candidates=k,
    )  # fmt: skip
    assert again == pytest.approx(found)


@pytest.mark.parametrize("at_once", [1, 60, 61, 2**20])
def test_candidates_are_compared_in_parts(at_once, monkeypatch):
    """Each part has as many candidates as fit, and at least one; the result is the same."""
    rng = np.random.default_rng(0)
    text, video = unit(rng, 30, ties=False), unit(rng, 30, ties=False)
    tokens = some_tokens(rng, 30, 3, padded=False), some_tokens(rng, 30, 4, padded=False)  # 15 and 20 numbers each
    temperatures = {"temperature": T, "token_temperature": TOKEN_T}
    expected = reranked_metrics(text, video, *tokens, **temperatures, candidates=8)
    most = {15: 0, 20: 0}

    def counted(query, candidates):
        size = candidates.embeds[0].numel()
        most[size] = max(most[size], len(candidates))
        return candidate_similarity(query, candidates)

    monkeypatch.setattr(reranking, "candidate_similarity", counted)
    monkeypatch.setattr(reranking, "_NUMBERS_AT_ONCE", at_once)
    assert reranked_metrics(text, video, *tokens, **temperatures, candidates=8) == pytest.approx(expected)
    assert most == {size: min(8, max(1, at_once // size)) for size in most}


def test_a_worked_example():
    """The right video ranks third by embedding and first by regions, so it needs three candidates."""
    text = F.normalize(torch.tensor([[1.0, 0.0]]), dim=-1)
    video = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.4]]), dim=-1)
    one, other = torch.eye(2)
    words = Tokens(one.expand(1, 1, 2), torch.ones(1, 1))
    regions = Tokens(torch.stack([other, other, one, one])[:, None], torch.ones(4, 1))
    ranks = []
    for k in (1, 2, 3, 4):
        found = reranked_metrics(
            text, video, words, regions, [2], range(4), temperature=1, token_temperature=1, candidates=k
        )
        ranks.append(found["rr_t2v_MeanR"])
    assert ranks == [3, 3, 1, 1]


def test_one_candidate_changes_nothing_but_the_names():
    rng = np.random.default_rng(0)
    text, video = unit(rng, 40, ties=False), unit(rng, 40, ties=False)
    words, regions = some_tokens(rng, 40, 6, padded=True), some_tokens(rng, 40, 3, padded=False)
    found = reranked_metrics(text, video, words, regions, temperature=T, token_temperature=TOKEN_T, candidates=1)
    plain = retrieval_metrics(text, video)
    assert found == {f"rr_{name}": value for name, value in plain.items()}
    assert list(found) == [f"rr_{name}" for name in plain]


@pytest.mark.parametrize("k", [5, 100])
def test_a_model_that_embeds_everything_alike_is_at_chance(k):
    alike = torch.ones(100, 4) / 2
    words = Tokens(torch.full((100, 3, 4), 0.5), torch.full((100, 3), 1 / 3))
    found = reranked_metrics(alike, alike, words, words, temperature=T, token_temperature=TOKEN_T, candidates=k)
    assert found["rr_t2v_R@1"] == found["rr_v2t_R@1"] == 0
    assert found["rr_t2v_MeanR"] == found["rr_v2t_MedR"] == 50.5


def test_only_equal_tokens_are_tied():
    """The 300 videos have seven kinds of tokens, two of which differ only in the last bit of a float32 number."""
    rng = np.random.default_rng(1)
    words = some_tokens(rng, 300, 5, padded=False)
    kinds = some_tokens(rng, 7, 9, padded=False)
    kinds.embeds[1] = kinds.embeds[0]  # except for the last bit of one number
    kinds.embeds[1, 0, 0] = torch.nextafter(kinds.embeds[0, 0, 0], torch.tensor(2.0))
    which = torch.from_numpy(rng.integers(0, 7, 300))
    alike = torch.ones(300, 4) / 2
    regions = kinds[which]
    found = reranked_metrics(alike, alike, words, regions, temperature=T, token_temperature=TOKEN_T)
    expected = naive(*matrices(alike, alike, words, regions), list(range(300)), list(range(300)), 300)
    assert found == pytest.approx(expected)
    merged = reranked_metrics(alike, alike, words, kinds[which.clamp(min=1)], temperature=T, token_temperature=TOKEN_T)
    assert merged["rr_t2v_MeanR"] != found["rr_t2v_MeanR"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": 0}, "candidates=0 must be at least 1"),
        ({"words": 2}, "text_tokens must have 3 entries, one per embedding, not 2"),
        ({"regions": 4}, "video_tokens must have 3 entries, one per embedding, not 4"),
        ({"nan": True}, "video_tokens contains values that are not finite"),
    ],
)
def test_arguments_that_do_not_fit(changes, message):
    rng = np.random.default_rng(0)
    embeds = unit(rng, 3, ties=False)
    words = some_tokens(rng, changes.get("words", 3), 2, padded=False)
    regions = some_tokens(rng, changes.get("regions", 3), 2, padded=False)
    if "nan" in changes:
        regions.embeds[1, 1, 1] = torch.nan
    with pytest.raises(ValueError, match=message):
        reranked_metrics(
            embeds, embeds, words, regions,
            temperature=T, token_temperature=TOKEN_T, candidates=changes.get("candidates", 5),
        )  # fmt: skip


# --- Models and corpora --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    sizes = {"train": 0, "val": 0, "test": CLIPS, "test_unseen": 0, "size": 48, "frames": 4, "objects": [2, 2]}
    root = tmp_path_factory.mktemp("shapes") / "corpus"
    return make_corpus("moving_shapes", root, workers=1, progress=False, **sizes)


@pytest.fixture(scope="module")
def processor(directory):
    words = [text for row in load_corpus("moving_shapes", directory, split="test") for text in row["captions"]]
    tokenizer = train_tokenizer(words, 400, 32)
    return RegionLearnerProcessor(RegionLearnerVideoProcessor.for_image_size(32, num_frames=2), tokenizer)


@pytest.fixture(scope="module")
def model():
    return tiny_model(text=tiny_text_config(vocab_size=400), token_dim=8, token_temperature=0.03)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, model, processor):
    """Returns a directory with a checkpoint with tokens and one without."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, one in (("with", model), ("without", tiny_model(text=tiny_text_config(vocab_size=400)))):
        one.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    return root


def outputs_of(model, processor, videos, texts):
    """Returns the single-vector logits and the summed logits, (texts, videos), of one forward pass."""
    with torch.no_grad():
        outputs = model(**processor(text=texts, videos=videos, return_tensors="pt"))
    return outputs.logits_per_text.double(), (outputs.logits_per_text + outputs.token_logits_per_text).double()


@pytest.mark.parametrize("k", [3, None])
def test_retrieval_by_the_outputs_of_the_model(k, model, processor, directory):
    rows = load_corpus("moving_shapes", directory, split="test").to_list()
    rows[1]["captions"] = []  # a video without captions stays in the gallery
    texts = [caption for row in rows for caption in row["captions"]]
    owners = [row["video_id"] for row in rows for _ in row["captions"]]
    ids = [row["video_id"] for row in rows]
    single, sums = outputs_of(model, processor, [row["video"] for row in rows], texts)
    found = retrieval_accuracy(model, processor, rows, rerank=k, batch_size=5, progress=False)
    expected = naive(single.numpy(), sums.numpy(), owners, ids, k or 100)
    assert found["reranked"] == pytest.approx(expected)
    plain = retrieval_accuracy(model, processor, rows, rerank=0, batch_size=5, progress=False)
    assert "reranked" not in plain
    assert plain == {name: value for name, value in found.items() if name != "reranked"}
    assert plain["t2v_MeanR"] != found["reranked"]["rr_t2v_MeanR"]


def test_every_video_and_text_is_embedded_once(model, processor, directory, monkeypatch):
    rows = load_corpus("moving_shapes", directory, split="test")
    seen = {"videos": 0, "texts": 0}
    for name, tower in (("videos", model.video_model), ("texts", model.text_model)):
        forward = tower.forward

        def counted(*args, _name=name, _forward=forward, **kwargs):
            seen[_name] += len(args[0] if args else kwargs["input_ids"])
            return _forward(*args, **kwargs)

        monkeypatch.setattr(tower, "forward", counted)
    texts = retrieval_accuracy(model, processor, rows, progress=False)["texts"]
    assert seen == {"videos": CLIPS, "texts": texts}


def test_unreadable_videos_are_left_out(model, processor, directory, tmp_path):
    (tmp_path / "damaged.mp4").write_bytes(b"not a video")
    rows = load_corpus("moving_shapes", directory, split="test").to_list()
    damaged = [rows[0], rows[1] | {"video": str(tmp_path / "damaged.mp4")}, *rows[2:]]
    found = retrieval_accuracy(model, processor, damaged, batch_size=5, progress=False)
    assert found["unreadable"] == [rows[1]["video_id"]]
    without = retrieval_accuracy(model, processor, [rows[0], *rows[2:]], batch_size=5, progress=False)
    assert found["reranked"] == pytest.approx(without["reranked"])
    questions = load_corpus("moving_shapes", directory, split="test", task="compositional").to_list()
    damaged = [row | {"video": str(tmp_path / "damaged.mp4")} if i < 2 else row for i, row in enumerate(questions)]
    gone = {row["video_id"] for row in damaged[:2]}
    damaged = [row for i, row in enumerate(damaged) if i < 2 or row["video_id"] not in gone]
    found = multiple_choice_accuracy(model, processor, damaged, batch_size=5, progress=False)
    expected = multiple_choice_accuracy(model, processor, damaged[2:], batch_size=5, progress=False)
    assert found["reranked"] == pytest.approx(expected["reranked"])


@pytest.mark.parametrize("task", ["compositional", "multiple_choice"])
def test_multiple_choice_by_the_outputs_of_the_model(task, model, processor, directory):
    rows = load_corpus("moving_shapes", directory, split="test", task=task).to_list()
    rows += [row | {"options": [row["options"][0]] * 2, "answer": 1} for row in rows[:1]]  # a tie counts half
    right: dict[str | None, list[float]] = {}
    for row in rows:
        _, sums = outputs_of(model, processor, [row["video"]], row["options"])
        best = sums[:, 0] >= sums[:, 0].max() - 1e-4
        hit = float(best[row["answer"]]) / int(best.sum())
        right.setdefault(row.get("aspect"), []).append(hit)
        right.setdefault("all", []).append(hit)
    expected = {"rr_accuracy": 100 * np.mean(right.pop("all"))}
    expected |= {f"rr_accuracy_{aspect}": 100 * np.mean(hits) for aspect, hits in right.items() if aspect}
    found = multiple_choice_accuracy(model, processor, rows, batch_size=5, progress=False)
    assert found["reranked"] == pytest.approx(expected)
    plain = multiple_choice_accuracy(model, processor, rows, rerank=False, batch_size=5, progress=False)
    assert plain == {name: value for name, value in found.items() if name != "reranked"}
    assert not any(name.startswith("rr_") for name in plain)


def test_a_learned_temperature_is_that_of_the_model(model, processor, directory):
    learned = tiny_model(
        text=tiny_text_config(vocab_size=400), token_dim=8, token_temperature=0.03, learn_temperature=True
    )
    learned.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        learned.logit_scale.fill_(-np.log(0.05))
        learned.token_logit_scale.fill_(-np.log(0.03))
    rows = load_corpus("moving_shapes", directory, split="test")
    expected = retrieval_accuracy(model, processor, rows, progress=False)["reranked"]
    assert retrieval_accuracy(learned, processor, rows, progress=False)["reranked"] == pytest.approx(expected)
    with torch.no_grad():
        learned.token_logit_scale.fill_(-10)
    changed = retrieval_accuracy(learned, processor, rows, progress=False)
    assert changed["reranked"]["rr_t2v_MeanR"] == changed["t2v_MeanR"]  # tokens count for next to nothing


def test_half_precision(model, processor, directory, checkpoints):
    half = RegionLearnerModel.from_pretrained(checkpoints / "with", dtype=torch.bfloat16).eval()
    rows = load_corpus("moving_shapes", directory, split="test")
    embeddings = embed_corpus(half, processor, rows, tokens=True, progress=False)
    assert embeddings.text_tokens.embeds.dtype == embeddings.video_tokens.weights.dtype == torch.float32
    found = retrieval_accuracy(half, processor, rows, progress=False)["reranked"]
    assert found["rr_t2v_MeanR"] == pytest.approx(
        retrieval_accuracy(model, processor, rows, progress=False)["reranked"]["rr_t2v_MeanR"], abs=1
    )


def test_what_cannot_be_reranked(model, processor, directory):
    rows = load_corpus("moving_shapes", directory, split="test")
    questions = load_corpus("moving_shapes", directory, split="test", task="compositional")
    without = tiny_model(text=tiny_text_config(vocab_size=400))
    for evaluate, dataset, rerank in (
        (retrieval_accuracy, rows, 5), (multiple_choice_accuracy, questions, True),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="Re-ranking needs a model with word-region embeddings"):
            evaluate(without, processor, dataset, rerank=rerank, progress=False)
        with pytest.raises(ValueError, match="Re-ranking needs one clip per video"):
            evaluate(model, processor, dataset, rerank=rerank, progress=False, views=Views(2))
        assert "reranked" not in evaluate(model, processor, dataset, progress=False, views=Views(2))
        assert "reranked" not in evaluate(without, processor, dataset, progress=False)
        assert "reranked" not in evaluate(without, processor, dataset, rerank=0, progress=False)
    with pytest.raises(ValueError, match="rerank=-1 must be at least 0"):
        retrieval_accuracy(model, processor, rows, rerank=-1, progress=False)
    with pytest.raises(ValueError, match="Re-ranking needs a model"):
        embed_corpus(without, processor, rows, tokens=True, progress=False)
    with pytest.raises(ValueError, match="call embed_corpus with tokens=True"):
        embed_corpus(model, processor, rows, progress=False).reranked_metrics(T, TOKEN_T)


# --- Command line, files, cards ------------------------------------------------------------------------------


def run(capsys, *argv) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*map(str, argv)])
    return end.value.code, *capsys.readouterr()


@pytest.mark.parametrize("options", [[], ["--rerank=4"]])
def test_command_file_and_card(options, checkpoints, directory, tmp_path, capsys, model, processor):
    argv = ["evaluate", checkpoints / "with", "--protocol=moving_shapes", "--data-dir", directory, *options]
    code, printed, _ = run(capsys, *argv, "--output", tmp_path / "evaluation.json", "--json")
    assert code == 0
    rows = load_corpus("moving_shapes", directory, split="test")
    k = 4 if options else 100
    expected = retrieval_accuracy(model, processor, rows, rerank=k, progress=False)
    found = read_results(tmp_path / "evaluation.json")
    assert found.reranked == pytest.approx(expected["reranked"])
    assert json.loads(printed)["reranked"] == found.reranked
    assert found.protocol["rerank"] == k
    assert all(name.startswith("rr_") for name in found.reranked)
    assert not any(name.startswith("rr_") for name in found.metrics)
    card = " ".join(model_card([tmp_path / "evaluation.json"]).split())
    assert f"Re-ranked by words and regions (the best {k} of each query)" in card
    names, values = (f"| {' | '.join(row)} |" for row in zip(*((m, f"{v:.1f}") for m, v in found.reranked.items())))
    assert names in card
    assert values in card
    assert "name: rr_" not in card  # the model index has only the plain metrics
    code, printed, _ = run(capsys, *argv)
    assert code == 0
    assert f"Re-ranked by words and regions, the best {k} of each query:" in printed
    assert "rr_t2v_R@1" in printed


def test_command_for_options(checkpoints, directory, tmp_path, capsys):
    argv = ["evaluate", checkpoints / "with", "--protocol=moving_shapes_compositional", "--data-dir", directory]
    code, printed, _ = run(capsys, *argv, "--output", tmp_path / "evaluation.json")
    assert code == 0
    assert "Re-ranked by words and regions, all options:" in printed
    found = read_results(tmp_path / "evaluation.json")
    assert found.reranked.keys() == {f"rr_{name}" for name in found.metrics}
    assert "rerank" not in found.protocol
    assert "Re-ranked by words and regions (all options)" in " ".join(
        model_card([tmp_path / "evaluation.json"]).split()
    )
    code, printed, _ = run(capsys, *argv, "--rerank=0")
    assert code == 0
    assert "rr_" not in printed


def test_several_clips_are_noted(checkpoints, directory):
    protocol, name = get_protocol("moving_shapes"), str(checkpoints / "with")
    note = "The results are not re-ranked by words and regions, because this needs one clip per video."
    found = evaluate_checkpoint(protocol, name, directory, views=Views(2))
    assert found.reranked is None
    assert note in found.notes
    found = evaluate_checkpoint(protocol, name, directory, views=Views(2), rerank=0)
    assert note not in found.notes
    assert note not in evaluate_checkpoint(protocol, str(checkpoints / "without"), directory, views=Views(2)).notes


@pytest.mark.parametrize(
    ("which", "options", "message"),
    [
        ("without", ["--protocol=moving_shapes", "--rerank=5"], "needs a model with word-region embeddings"),
        ("with", ["--protocol=moving_shapes", "--rerank=5", "--clips=2"], "needs one clip per video"),
        ("with", ["--protocol=moving_shapes_compositional", "--rerank=5"], "multiple choice re-ranks all options"),
        ("with", ["--corpus=moving_shapes", "--task=zero_shot", "--rerank=5"], "not for the task 'zero_shot'"),
        (
            "with",
            ["--protocol=moving_shapes", "--rerank=-1"],
            "--rerank must be at least 0, not '-1'",
        ),
    ],
)
def test_options_that_do_not_fit(which, options, message, checkpoints, directory, capsys):
    code, printed, errors = run(capsys, "evaluate", checkpoints / which, "--data-dir", directory, *options)
    assert code == 2
    assert printed == ""
    last = errors.splitlines()[-1]  # the progress bar of the weights comes first
    assert last[last.index("region-learner: error") :].count("error") == 1
    assert message in last


def test_files_of_earlier_versions_are_read(checkpoints, directory, tmp_path, capsys):
    path = tmp_path / "evaluation.json"
    argv = ["evaluate", checkpoints / "without", "--protocol=moving_shapes", "--data-dir", directory]
    assert run(capsys, *argv, "--output", path)[0] == 0
    content = json.loads(path.read_text())
    assert content.pop("reranked") is None
    path.write_text(json.dumps(content))
    assert read_results(path).reranked is None
    path.write_text(json.dumps(content | {"reranked": {"rr_t2v_R@1": float("inf")}}))
    with pytest.raises(ValueError, match="reranked: 'rr_t2v_R@1' is inf"):
        read_results(path)

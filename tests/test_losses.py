"""Compares the losses with double loops, with several captions per video, padding and several processes."""

import itertools
import math
from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from region_learner import (
    RegionLearnerConfig,
    RegionLearnerForVideoClassification,
    RegionLearnerModel,
    loss_region_learner,
)
from region_learner.loss_region_learner import (
    classification_loss,
    contrastive_loss,
    infonce_loss,
    max_margin_loss,
    register_loss,
    sigmoid_loss,
)

from .conftest import clips, texts, tiny_model

IDS = {
    "none": None,
    "all_different": [4, 2, 9, 0, 7],
    "ties": [3, 7, 3, 9, 7],
    "padding": [3, -1, 7, -1, 9],
    "ties_and_padding": [3, -1, 3, -1, 9],
    "one_left": [-1, -1, 5, -1, -1],
}
TEMPERATURE, BIAS, MARGIN = 0.2, -1.5, 0.3

LOSSES = {
    "infonce": lambda text, video, ids, wrong=None: infonce_loss(
        text, video, TEMPERATURE, ids, negative_text_embeds=wrong
    ),
    "sigmoid": lambda text, video, ids, wrong=None: sigmoid_loss(
        text, video, TEMPERATURE, BIAS, ids, negative_text_embeds=wrong
    ),
    "max_margin": lambda text, video, ids, wrong=None: max_margin_loss(
        text, video, MARGIN, ids, negative_text_embeds=wrong
    ),
}
# Options of models that learn every parameter their loss can learn.
OPTIONS = {
    "infonce": {"learn_temperature": True},
    "sigmoid": {"loss": "sigmoid", "learn_temperature": True, "sigmoid_bias": BIAS},
    "max_margin": {"loss": "max_margin", "margin": 2.5},  # so large that every negative violates it
}


def naive_loss(
    name: str, text: torch.Tensor, video: torch.Tensor, ids: list[int], wrong: Sequence[torch.Tensor] = ()
) -> float:
    """Computes a loss, one pair of text and video at a time."""
    real = [i for i in range(len(text)) if ids[i] >= 0]
    similarity = {(i, j): float(text[i].double() @ video[j].double()) for i in real for j in real}
    negatives = [(i, j) for i in real for j in real if ids[i] != ids[j]]
    of_wrong = {i: [float(other.double() @ video[i].double()) for other in wrong] for i in real}
    if name == "infonce":
        total = 0.0
        for i in real:
            others = [j for j in real if (i, j) in negatives]
            for row in ([similarity[i, j] for j in others], [similarity[j, i] for j in others] + of_wrong[i]):
                pair = similarity[i, i] / TEMPERATURE
                total += math.log(math.exp(pair) + sum(math.exp(s / TEMPERATURE) for s in row)) - pair
        return total / len(real)
    if name == "sigmoid":
        total = 0.0
        for i, j in [*negatives, *((i, i) for i in real)]:
            sign = 1 if i == j else -1
            total -= math.log(1 / (1 + math.exp(-sign * (similarity[i, j] / TEMPERATURE + BIAS))))
        for found in itertools.chain(*of_wrong.values()):
            total -= math.log(1 / (1 + math.exp(found / TEMPERATURE + BIAS)))
        return total / len(real)
    violations = [max(0.0, MARGIN - similarity[i, i] + similarity[i, j]) for i, j in negatives]
    violations += [max(0.0, MARGIN - similarity[i, i] + similarity[j, i]) for i, j in negatives]
    violations += [max(0.0, MARGIN - similarity[i, i] + found) for i in real for found in of_wrong[i]]
    return sum(violations) / len(violations) if violations else 0.0


def embeddings(count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    text, video = (F.normalize(torch.randn(count, 8, generator=generator), dim=-1) for _ in range(2))
    return text, F.normalize(video + text, dim=-1)


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_a_double_loop(name, ids):
    text, video = embeddings()
    wrong = F.normalize(video[[0, 2, 0]] + 0.5 * text[[1, 3, 4]], dim=-1)
    ids = IDS[ids]
    given = None if ids is None else torch.tensor(ids)
    for negatives in (None, wrong, wrong[:0]):
        ours = LOSSES[name](text, video, given, negatives)
        expected = naive_loss(name, text, video, ids or list(range(5)), () if negatives is None else negatives)
        assert ours.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_padding_gets_no_gradient(name):
    text, video = (x.requires_grad_() for x in embeddings())
    LOSSES[name](text, video, torch.tensor([3, -1, 7, -1, 9])).backward()
    for gradient in (text.grad, video.grad):
        assert not gradient[[1, 3]].any()
        assert gradient[[0, 2, 4]].any(1).all() or name == "max_margin"
    text, video = (x.requires_grad_() for x in embeddings())
    loss = LOSSES[name](text, video, torch.full((5,), -1))
    loss.backward()  # padding alone must not break the backward pass
    assert loss == 0
    assert not text.grad.any()


def test_the_model_computes_the_configured_loss():
    ids = torch.tensor([5, 6, 5, -1])
    inputs = {**texts(4), "pixel_values_videos": clips(4), "video_ids": ids, "return_loss": True}
    for name, options in OPTIONS.items():
        model = tiny_model(**options)
        with torch.no_grad():
            outputs = model(**inputs)
            text, video = outputs.text_embeds, outputs.video_embeds
            if name == "infonce":
                expected = infonce_loss(text, video, model.temperature, ids)
            elif name == "sigmoid":
                expected = sigmoid_loss(text, video, model.temperature, model.logit_bias, ids)
            else:
                expected = max_margin_loss(text, video, 2.5, ids)
            regions = outputs.video_model_output.region_loss[:3].mean()
            torch.testing.assert_close(outputs.loss, expected + regions)
            bias = model.logit_bias if name == "sigmoid" else 0.0
            torch.testing.assert_close(outputs.logits_per_text, text @ video.T / model.temperature + bias)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_parameter_gets_a_gradient(name):
    model = tiny_model(**OPTIONS[name]).train()
    model(**texts(4), pixel_values_videos=clips(4), return_loss=True).loss.backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert not {n for n in without if not n.endswith("k_lin.bias")}  # a softmax cancels these


def test_only_the_sigmoid_loss_has_a_bias(tmp_path):
    for loss in ("infonce", "max_margin"):
        assert tiny_model(loss=loss).logit_bias is None
        assert not any("logit_bias" in name for name in tiny_model(loss=loss).state_dict())
    config = tiny_model(loss="sigmoid", sigmoid_bias=-3).config
    model = RegionLearnerModel(config)
    assert model.logit_bias.item() == -3
    assert RegionLearnerConfig(loss="sigmoid").sigmoid_bias == -10
    model.logit_bias.data.fill_(-2.0)
    model.save_pretrained(tmp_path)
    assert RegionLearnerModel.from_pretrained(tmp_path).logit_bias.item() == -2


def test_configuration_errors():
    for options, message in [
        ({"loss": "hinge"}, "loss='hinge' is not known; choose one of 'infonce', 'sigmoid', 'max_margin'"),
        ({"loss": "max_margin", "margin": 0}, "margin=0 must be greater than 0"),
        ({"loss": "max_margin", "learn_temperature": True}, "'max_margin' has no temperature to learn"),
    ]:
        with pytest.raises(ValueError, match=message):
            RegionLearnerConfig(**options)


def _classifier() -> RegionLearnerForVideoClassification:
    torch.manual_seed(0)
    config = tiny_model(codebook_size=0).config
    config.id2label = dict(enumerate("abc"))
    return RegionLearnerForVideoClassification(config)


MODELS = {name: lambda options=options: tiny_model(codebook_size=0, **options) for name, options in OPTIONS.items()}
MODELS["classes"] = _classifier
MODELS["negatives"] = lambda: tiny_model(codebook_size=0, learn_temperature=True)
MODELS["negatives of tokens"] = lambda: tiny_model(codebook_size=0, token_dim=8, phrase_window=3)
MODELS["words and regions"] = lambda: tiny_model(codebook_size=0, token_dim=8, phrase_window=3, learn_temperature=True)


def _gradients(name: str, rows: slice, parallel: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    Returns the loss and gradients of a model of `MODELS` for some rows of a batch of four. One row is padding, and two
    belong to the same video. For "classes", one row is padding, and another has a class that the model does not have.
    """
    model = MODELS[name]().double().train()
    called = DistributedDataParallel(model) if parallel else model
    inputs = {"pixel_values_videos": clips(4).double()[rows]}
    if name == "classes":
        outputs, labels = called(**inputs), torch.tensor([0, -1, -100, 2])[rows]
        loss = classification_loss(model.config, outputs, labels, gather=parallel)
    else:
        # Texts of the second process are padded, so that the processes have different lengths.
        padding = (0, 2) if parallel and rows.start else (0, 0)
        given = {key: F.pad(value[rows], padding) for key, value in texts(4).items()}
        if name.startswith("negatives") and (not parallel or not rows.start):  # the second process has none
            given |= {f"negative_{key}": value for key, value in texts(3, seed=8).items()}
        outputs = called(**inputs, **given)
        loss = contrastive_loss(model.config, outputs, torch.tensor([5, 6, 5, -1])[rows], gather=parallel)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def test_the_models_loss_equals_the_loss_functions():
    for name in MODELS:
        model = MODELS[name]()
        inputs = {"pixel_values_videos": clips(4)}
        with torch.no_grad():
            if name == "classes":
                labels = torch.tensor([0, -1, -100, 2])
                outputs = model(**inputs, labels=labels)
                entropies = F.cross_entropy(outputs.logits[[0, 3]], labels[[0, 3]])
                expected = entropies + outputs.region_loss[[0, 1, 3]].mean()
                torch.testing.assert_close(classification_loss(model.config, outputs, labels), expected)
            else:
                ids = torch.tensor([5, 6, 5, -1])
                outputs = model(**inputs, **texts(4), video_ids=ids, return_loss=True)
                expected = contrastive_loss(model.config, outputs, ids)
                assert (outputs.temperature is not None, outputs.logit_bias is not None) == {
                    "infonce": (True, False), "sigmoid": (True, True), "max_margin": (False, False),
                    "words and regions": (True, False), "negatives": (True, False),
                    "negatives of tokens": (False, False),
                }[name]  # fmt: skip
        torch.testing.assert_close(outputs.loss, expected)


@pytest.mark.parametrize("name", ["infonce", "sigmoid", "max_margin", "tokens"])
def test_wrong_texts_are_negatives_of_all_videos(name):
    """Wrong texts count like texts of additional pairs whose videos are not compared with anything."""
    model = tiny_model(token_dim=8, phrase_window=3) if name == "tokens" else tiny_model(**OPTIONS[name])
    negatives = {f"negative_{key}": value for key, value in texts(3, seed=8).items()}
    with torch.no_grad():
        outputs = model(**texts(4), **negatives, pixel_values_videos=clips(4), return_loss=True)
        plain = model(**texts(4), pixel_values_videos=clips(4), return_loss=True)
        wrong = model(**texts(3, seed=8), pixel_values_videos=clips(4))
    torch.testing.assert_close(outputs.text_embeds, plain.text_embeds)
    torch.testing.assert_close(outputs.logits_per_text, plain.logits_per_text)
    torch.testing.assert_close(outputs.negative_text_embeds, wrong.text_embeds)
    if name in ("infonce", "tokens"):
        more = 0.0
        for of_pairs, of_wrong in [
            (plain.logits_per_text, wrong.logits_per_text),
            (plain.token_logits_per_text, wrong.token_logits_per_text),
        ][: 1 + (name == "tokens")]:
            before, after = of_pairs.logsumexp(0), torch.cat([of_pairs, of_wrong]).logsumexp(0)
            more = more + (after - before).mean()
        torch.testing.assert_close(outputs.loss - plain.loss, more)
    else:
        assert outputs.loss > plain.loss


def test_wrong_texts_that_do_not_fit():
    model, given = tiny_model(), texts(3, seed=8)
    clips_ = {"pixel_values_videos": clips(2)}
    with pytest.raises(ValueError, match="input_ids has length 5 and negative_input_ids length 7: tokenize"):
        model(**texts(2, 5), **clips_, negative_input_ids=given["input_ids"])
    with pytest.raises(ValueError, match="input_ids has none and negative_input_ids length 7"):
        model(**clips_, negative_input_ids=given["input_ids"])
    with pytest.raises(ValueError, match="attention_mask has length 7 and negative_attention_mask none"):
        model(**texts(2), **clips_, negative_input_ids=given["input_ids"])
    negatives = {f"negative_{key}": value for key, value in given.items()}
    with pytest.raises(ValueError, match="position_ids cannot be given together with negative_input_ids"):
        model(**texts(2), **clips_, **negatives, position_ids=torch.arange(7)[None])
    with pytest.raises(ValueError, match="token_type_ids has length 7 and negative_token_type_ids none"):
        model(**texts(2), **clips_, **negatives, token_type_ids=torch.zeros(2, 7, dtype=torch.long))


# In two processes

SPLITS = {"even": 2, "uneven": 3}  # rows of the first process


def _wrong_batches(rank: int) -> dict[str, tuple]:
    """Returns texts, videos and ids of a process that are wrong only in comparison with the other process."""
    text, video = embeddings(4)
    ids = torch.arange(4)
    return {
        "another size": (text[:, : 8 - rank], video[:, : 8 - rank], None),
        "ids in one process": (text, video, ids if rank else None),
        "a text less": (text[: 4 - rank], video, ids),
        "no texts": (None if rank else text, video, ids),
    }


def _worker(rank: int, store: str, result_file: str):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    results = {"shapes": set(), "errors": {}}
    if rank == 0:  # a model is in training mode in one process only
        model = tiny_model(learn_temperature=True).train()
        model(**texts(3), pixel_values_videos=clips(3), return_loss=True).loss.backward()
        results["alone"] = {name: parameter.grad for name, parameter in model.named_parameters()}
    similarity = loss_region_learner.cosine_similarity

    def spy(a, b):
        results["shapes"].add((len(a), len(b)))
        return similarity(a, b)

    loss_region_learner.cosine_similarity = spy
    for name in MODELS:
        for split, first in SPLITS.items():
            loss, gradients = _gradients(name, slice(first) if rank == 0 else slice(first, 4), parallel=True)
            torch.distributed.all_reduce(loss)
            results[name, split] = loss / 2, gradients
    config = RegionLearnerConfig()
    for name, (text, video, ids) in _wrong_batches(rank).items():
        outputs = SimpleNamespace(text_embeds=text, video_embeds=video, temperature=None, region_loss=None)
        try:
            contrastive_loss(config, outputs, ids, gather=True)
        except ValueError as error:
            results["errors"][name] = str(error)
    torch.save(results, f"{result_file}.{rank}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("losses")
    multiprocessing.start_processes(
        _worker, (str(folder / "store"), str(folder / "result")), nprocs=2, start_method="forkserver"
    )
    return [torch.load(folder / f"result.{rank}", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", MODELS)
def test_two_processes_equal_one_with_the_whole_batch(two_processes, name, split):
    """Loss and gradients are equal, including those of temperature and bias."""
    loss, gradients = _gradients(name, slice(4))
    assert any(gradient.any() for gradient in gradients.values())
    for results in two_processes:
        their_loss, theirs = results[name, split]
        torch.testing.assert_close(their_loss, loss)
        for parameter, gradient in gradients.items():
            torch.testing.assert_close(theirs[parameter], gradient, rtol=1e-6, atol=1e-9, msg=parameter)


def test_each_process_compares_only_its_own_rows(two_processes):
    local = {(2, 2), (1, 1), (3, 3)}  # shapes of the output `logits_per_video`
    for rank, results in enumerate(two_processes):
        rows = (2, 3) if rank == 0 else (2, 1)
        assert results["shapes"] - local == {(own, others) for own in rows for others in (4, 4 + 3)}  # 3 wrong texts


def test_batches_that_do_not_fit_together_are_refused_by_all_processes(two_processes):
    sizes = {
        "another size": "process 0 has 4 texts of size 8, 4 videos of size 8, no video_ids; "
        "process 1 has 4 texts of size 7, 4 videos of size 7, no video_ids.",
        "ids in one process": "process 0 has 4 texts of size 8, 4 videos of size 8, no video_ids; "
        "process 1 has 4 texts of size 8, 4 videos of size 8, 4 video_ids.",
        "a text less": "process 0 has 4 texts of size 8, 4 videos of size 8, 4 video_ids; "
        "process 1 has 3 texts of size 8, 4 videos of size 8, 4 video_ids.",
        "no texts": "process 0 has 4 texts of size 8, 4 videos of size 8, 4 video_ids; "
        "process 1 has 0 texts of size 0, 4 videos of size 8, 4 video_ids.",
    }
    for results in two_processes:
        assert results["errors"].keys() == sizes.keys()
        for name, told in sizes.items():
            assert results["errors"][name].endswith(told)
            assert "\n" not in results["errors"][name]


def test_a_model_in_training_mode_needs_no_other_process(two_processes):
    model = tiny_model(learn_temperature=True).train()
    model(**texts(3), pixel_values_videos=clips(3), return_loss=True).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(two_processes[0]["alone"][name], parameter.grad, msg=name)


def test_pairs_are_found_once(monkeypatch):
    """With several processes, finding the pairs waits for all of them, so it is done only once."""
    found = []
    of = loss_region_learner._Pairs.of
    monkeypatch.setattr(loss_region_learner._Pairs, "of", lambda *args: found.append(args) or of(*args))
    model = tiny_model(token_dim=8)
    contrastive_loss(model.config, model(**texts(3), pixel_values_videos=clips(3)))
    assert len(found) == 1


def test_a_registered_loss(monkeypatch, tmp_path):
    monkeypatch.setattr(loss_region_learner, "_REGISTERED", {})
    monkeypatch.setattr(loss_region_learner, "LOSSES", names := [*loss_region_learner.LOSSES])
    monkeypatch.setattr("region_learner.configuration_region_learner.LOSSES", names)
    given = []

    def text_to_video(config, outputs, video_ids, gather):
        given.append((video_ids, gather))
        logits = outputs.text_embeds @ outputs.video_embeds.T / config.temperature
        return F.cross_entropy(logits, torch.arange(len(logits)))

    with pytest.raises(ValueError, match="loss='text_to_video' is not known; choose one of 'infonce'"):
        RegionLearnerConfig(loss="text_to_video")
    with pytest.raises(ValueError, match="There is a built-in loss 'infonce'"):
        register_loss("infonce", text_to_video)
    register_loss("text_to_video", text_to_video)
    register_loss("text_to_video", text_to_video)
    model = tiny_model(loss="text_to_video").eval()
    outputs = model(**texts(), pixel_values_videos=clips(), return_loss=True)
    expected = F.cross_entropy(outputs.logits_per_text, torch.arange(len(outputs.text_embeds)))
    masks = outputs.region_loss.mean() * model.config.video_config.resolved.region_options.mask_loss_weight
    torch.testing.assert_close(outputs.loss, expected + masks)
    ids = torch.tensor([3, 3])
    contrastive_loss(model.config, outputs, ids, gather=True)
    assert given == [(None, False), (ids, True)]
    model.save_pretrained(tmp_path)
    names.remove("text_to_video")
    with pytest.raises(ValueError, match="register it with `register_loss`"):
        RegionLearnerModel.from_pretrained(tmp_path)
    assert RegionLearnerModel.from_pretrained(tmp_path, loss="infonce").config.loss == "infonce"

"""The contrastive losses against double loops, with several captions of one video, fillers and several processes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import multiprocessing

from region_learner import RegionLearnerConfig, RegionLearnerForVideoClassification, RegionLearnerModel
from region_learner.modeling_region_learner import infonce_loss, max_margin_loss, sigmoid_loss

from .conftest import clips, texts, tiny_model

IDS = {
    "none": None,
    "all_different": [4, 2, 9, 0, 7],
    "ties": [3, 7, 3, 9, 7],
    "fillers": [3, -1, 7, -1, 9],
    "ties_and_fillers": [3, -1, 3, -1, 9],
    "one_left": [-1, -1, 5, -1, -1],
}
TEMPERATURE, BIAS, MARGIN = 0.2, -1.5, 0.3

LOSSES = {
    "infonce": lambda text, video, ids: infonce_loss(text, video, TEMPERATURE, ids),
    "sigmoid": lambda text, video, ids: sigmoid_loss(text, video, TEMPERATURE, BIAS, ids),
    "max_margin": lambda text, video, ids: max_margin_loss(text, video, MARGIN, ids),
}
# Of a model that learns all that its loss can learn.
OPTIONS = {
    "infonce": {"learn_temperature": True},
    "sigmoid": {"loss": "sigmoid", "learn_temperature": True, "sigmoid_bias": BIAS},
    "max_margin": {"loss": "max_margin", "margin": 2.5},  # so large that every negative violates it
}


def naive_loss(name: str, text: torch.Tensor, video: torch.Tensor, ids: list[int]) -> float:
    """One pair of text and video at a time."""
    real = [i for i in range(len(text)) if ids[i] >= 0]
    similarity = {(i, j): float(text[i].double() @ video[j].double()) for i in real for j in real}
    negatives = [(i, j) for i in real for j in real if ids[i] != ids[j]]
    if name == "infonce":
        total = 0.0
        for i in real:
            others = [j for j in real if (i, j) in negatives]
            for row in ([similarity[i, j] for j in others], [similarity[j, i] for j in others]):
                pair = similarity[i, i] / TEMPERATURE
                total += math.log(math.exp(pair) + sum(math.exp(s / TEMPERATURE) for s in row)) - pair
        return total / len(real)
    if name == "sigmoid":
        total = 0.0
        for i, j in [*negatives, *((i, i) for i in real)]:
            sign = 1 if i == j else -1
            total -= math.log(1 / (1 + math.exp(-sign * (similarity[i, j] / TEMPERATURE + BIAS))))
        return total / len(real)
    violations = [max(0.0, MARGIN - similarity[i, i] + similarity[i, j]) for i, j in negatives]
    violations += [max(0.0, MARGIN - similarity[i, i] + similarity[j, i]) for i, j in negatives]
    return sum(violations) / len(violations) if violations else 0.0


def embeddings(count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    text, video = (F.normalize(torch.randn(count, 8, generator=generator), dim=-1) for _ in range(2))
    return text, F.normalize(video + text, dim=-1)


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("name", LOSSES)
def test_equals_a_double_loop(name, ids):
    text, video = embeddings()
    ids = IDS[ids]
    ours = LOSSES[name](text, video, None if ids is None else torch.tensor(ids))
    assert ours.item() == pytest.approx(naive_loss(name, text, video, ids or list(range(5))), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_fillers_get_no_gradient(name):
    text, video = (x.requires_grad_() for x in embeddings())
    LOSSES[name](text, video, torch.tensor([3, -1, 7, -1, 9])).backward()
    for gradient in (text.grad, video.grad):
        assert not gradient[[1, 3]].any()
        assert gradient[[0, 2, 4]].any(1).all() or name == "max_margin"
    text, video = (x.requires_grad_() for x in embeddings())
    loss = LOSSES[name](text, video, torch.full((5,), -1))
    loss.backward()  # of nothing: no harm done
    assert loss == 0
    assert not text.grad.any()


def test_the_model_computes_what_its_configuration_names():
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
            torch.testing.assert_close(model.contrastive_loss(text, video, ids), expected)
            bias = model.logit_bias if name == "sigmoid" else 0.0
            torch.testing.assert_close(outputs.logits_per_text, text @ video.T / model.temperature + bias)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_parameter_gets_a_gradient(name):
    model = tiny_model(**OPTIONS[name]).train()
    model(**texts(4), pixel_values_videos=clips(4), return_loss=True).loss.backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert not {n for n in without if not n.endswith("k_lin.bias")}  # a softmax cancels these


def test_the_bias_is_there_for_the_sigmoid_loss_alone(tmp_path):
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


def _step(model, rows: slice):
    inputs = {key: value[rows] for key, value in texts(4).items()}
    ids = torch.tensor([5, 6, 5, -1])[rows]
    loss = model(**inputs, pixel_values_videos=clips(4).double()[rows], video_ids=ids, return_loss=True).loss
    loss.backward()
    return loss.detach()


def _classifier() -> RegionLearnerForVideoClassification:
    torch.manual_seed(0)
    config = tiny_model(codebook_size=0).config
    config.id2label = dict(enumerate("abc"))
    return RegionLearnerForVideoClassification(config).double().train()


def _classify(model, part: slice) -> torch.Tensor:
    labels = torch.tensor([0, -1, 1, 2])  # one class that the model does not have: the parts count unevenly
    loss = model(pixel_values_videos=clips(batch=4).double()[part], labels=labels[part]).loss
    loss.backward()
    return loss.detach()


def _worker(rank: int, store: str, result_file: str):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    results = {}
    for name, options in OPTIONS.items():
        model = tiny_model(codebook_size=0, **options).double().train()
        loss = _step(torch.nn.parallel.DistributedDataParallel(model), slice(2 * rank, 2 * rank + 2))
        torch.distributed.all_reduce(loss)
        results[name] = loss / 2, {name: parameter.grad for name, parameter in model.named_parameters()}
    model = _classifier()
    loss = _classify(torch.nn.parallel.DistributedDataParallel(model), slice(2 * rank, 2 * rank + 2))
    torch.distributed.all_reduce(loss)
    results["classes"] = loss / 2, {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.save(results, f"{result_file}.{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one_with_the_whole_batch(tmp_path):
    """
    Loss and gradients, those of temperature and bias too; ids tie across processes, and one row is a filler, so that
    the parts have unevenly many regions.
    """
    multiprocessing.spawn(_worker, (str(tmp_path / "store"), str(tmp_path / "result")), nprocs=2)
    for rank in range(2):
        results = torch.load(tmp_path / f"result.{rank}")
        for name, options in OPTIONS.items():
            single = tiny_model(codebook_size=0, **options).double().train()
            torch.testing.assert_close(results[name][0], _step(single, slice(0, 4)))
            for parameter_name, parameter in single.named_parameters():
                torch.testing.assert_close(results[name][1][parameter_name], parameter.grad, rtol=1e-6, atol=1e-9)
        single = _classifier()
        torch.testing.assert_close(results["classes"][0], _classify(single, slice(0, 4)))
        for parameter_name, parameter in single.named_parameters():
            torch.testing.assert_close(results["classes"][1][parameter_name], parameter.grad, rtol=1e-6, atol=1e-9)

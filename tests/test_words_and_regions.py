"""Words against regions: similarities, their loss, masks and padding, against literal readings."""

import pytest
import torch
import torch.nn.functional as F

from region_learner import RegionLearnerConfig, RegionLearnerModel
from region_learner.loss_region_learner import contrastive_loss, word_region_loss
from region_learner.modeling_region_learner import word_region_similarity

from .conftest import NO_REGIONS, clips, texts, tiny_model


def literal_similarity(words, word_weights, tokens, token_weights) -> torch.Tensor:
    """Loops over pairs, words and tokens, and leaves out those of weight 0."""
    rows = []
    for text, of_text in zip(words, word_weights):
        row = []
        for video, of_video in zip(tokens, token_weights):
            said = [(word, weight) for word, weight in zip(text, of_text) if weight > 0]
            seen = [(token, weight) for token, weight in zip(video, of_video) if weight > 0]
            by_words = sum(weight * max(word @ token for token, _ in seen) for word, weight in said)
            by_tokens = sum(weight * max(word @ token for word, _ in said) for token, weight in seen)
            row.append((by_words + by_tokens) / 2)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def some_tokens(batch: int, length: int, absent: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random unit vectors and weights; the last `absent` ones of the first row have weight 0."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(batch, length, 6, generator=generator, dtype=torch.float64)
    weights = torch.rand(batch, length, generator=generator, dtype=torch.float64)
    weights[0, length - absent :] = 0
    embeds[0, length - absent :] = 1
    return F.normalize(embeds, dim=-1), weights / weights.sum(1, keepdim=True)


def test_similarity_equals_a_literal_reading():
    words, tokens = some_tokens(3, 5, 2, seed=0), some_tokens(4, 7, 3, seed=1)
    ours = word_region_similarity(*words, *tokens)
    assert ours.shape == (3, 4)
    torch.testing.assert_close(ours, literal_similarity(*words, *tokens))


def test_gradients_equal_those_of_a_literal_reading():
    found = []
    for similarity in (word_region_similarity, literal_similarity):
        inputs = [x.requires_grad_() for x in (*some_tokens(3, 5, 2, seed=0), *some_tokens(4, 7, 3, seed=1))]
        found.append(torch.autograd.grad((similarity(*inputs) ** 2).sum(), inputs))
    present = [x[1] > 0 for x in (some_tokens(3, 5, 2, seed=0), some_tokens(4, 7, 3, seed=1))]
    for ours, expected, there in zip(*found, (present[0], present[0], present[1], present[1])):
        torch.testing.assert_close(ours[there], expected[there])


@pytest.mark.parametrize(
    "options",
    [{}, NO_REGIONS, {"temporal_fusion": "pool"}, NO_REGIONS | {"temporal_fusion": "linear"}],
    ids=["regions", "patches", "late fusion", "late fusion of patches"],
)
def test_outputs(options):
    model = tiny_model(token_dim=8, token_temperature=0.2, **options)
    given = texts(3)
    given["attention_mask"][1, 4:] = 0
    with torch.no_grad():
        outputs = model(pixel_values_videos=clips(2), **given)
    n = 4 * (16 if "num_regions" in options else 3)
    assert outputs.video_token_embeds.shape == (2, n, 8)
    assert outputs.text_token_embeds.shape == (3, 7, 8)
    for embeds in (outputs.video_token_embeds, outputs.text_token_embeds):
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(embeds.shape[:2]))
    for weights in (outputs.video_token_weights, outputs.text_token_weights):
        torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
    assert torch.equal(outputs.text_token_weights > 0, given["attention_mask"] > 0)
    expected = literal_similarity(
        outputs.text_token_embeds,
        outputs.text_token_weights,
        outputs.video_token_embeds,
        outputs.video_token_weights,
    )
    torch.testing.assert_close(outputs.token_logits_per_text, expected / 0.2)
    # Tokens are the last states of the video tower, after those of CLS.
    states = model.video_tokens.norm(outputs.video_model_output.last_hidden_state[:, -n:])
    torch.testing.assert_close(outputs.video_token_embeds, F.normalize(model.video_tokens.embed(states), dim=-1))


@pytest.mark.parametrize("fusion", ["attention", "pool"])
def test_tokens_of_an_earlier_layer(fusion):
    model = tiny_model(token_dim=8, video_token_layer=1, text_token_layer=0, phrase_window=5, temporal_fusion=fusion)
    given = texts(2)
    given["attention_mask"][0, 4:] = 0
    with torch.no_grad():
        outputs = model(pixel_values_videos=clips(2), **given, output_hidden_states=True)
    states = outputs.video_model_output.hidden_states[1][:, 1:].reshape(2, 64, 32)
    expected = F.normalize(model.video_tokens.embed(model.video_tokens.norm(states)), dim=-1)
    torch.testing.assert_close(outputs.video_token_embeds, expected)

    # The convolution, one word at a time.
    weight, bias = model.phrases.conv.weight, model.phrases.conv.bias
    for row, length in ((0, 4), (1, 7)):
        words = model.text_model.embeddings(given["input_ids"])[row, :length]
        for at in range(length):
            near = [(words[at + step], step + 2) for step in range(-2, 3) if 0 <= at + step < length]
            phrase = words[at] + F.gelu(sum(weight[:, :, tap] @ word for word, tap in near) + bias)
            expected = F.normalize(model.text_tokens.embed(model.text_tokens.norm(phrase)), dim=-1)
            torch.testing.assert_close(outputs.text_token_embeds[row, at], expected)


def test_hidden_states_are_returned_only_if_asked_for():
    model = tiny_model(token_dim=8, video_token_layer=1, text_token_layer=0)
    outputs = model(pixel_values_videos=clips(2), **texts(2))
    assert outputs.video_model_output.hidden_states is None
    assert outputs.text_model_output.hidden_states is None


def test_without_token_dim_there_is_nothing():
    outputs = tiny_model()(pixel_values_videos=clips(2), **texts(2))
    assert not [name for name in outputs if "token" in name]


def test_one_side_alone():
    model = tiny_model(token_dim=8)
    assert model(pixel_values_videos=clips(2)).text_token_embeds is None
    outputs = model(**texts(2))
    assert outputs.text_token_embeds is not None
    assert outputs.token_logits_per_text is None


def test_padding_of_a_text_changes_nothing():
    model = tiny_model(token_dim=8).double()
    videos, given = clips(2).double(), texts(2)
    alone = model(pixel_values_videos=videos, **given)
    for side in ((3, 0), (0, 3)):
        padded = {name: F.pad(x, side) for name, x in given.items()}
        outputs = model(pixel_values_videos=videos, **padded)
        torch.testing.assert_close(outputs.token_logits_per_text, alone.token_logits_per_text)
        absent = padded["attention_mask"] == 0
        assert (outputs.text_token_weights[absent] == 0).all()


@pytest.mark.parametrize("options", [{}, NO_REGIONS, {"temporal_fusion": "pool"}], ids=["regions", "patches", "late"])
def test_masked_frames_change_nothing(options):
    model = tiny_model(token_dim=8, **options).double()
    videos, given = clips(2).double(), texts(2)
    alone = model(pixel_values_videos=videos[:, :3], **given)
    mask = torch.tensor([[1, 1, 1, 0]] * 2)
    masked = model(pixel_values_videos=videos, frame_mask=mask, **given)
    torch.testing.assert_close(masked.token_logits_per_text, alone.token_logits_per_text)
    per_frame = masked.video_token_weights.unflatten(1, (4, -1))
    assert (per_frame[:, 3] == 0).all()
    assert (per_frame[:, :3] > 0).all()


@pytest.mark.parametrize("ids", [None, [5, 6, 5, -1]], ids=["all", "captions of one video, and padding"])
def test_loss_equals_a_literal_reading(ids):
    model = tiny_model(token_dim=8, token_temperature=0.1, token_loss_weight=0.7).double()
    outputs = model(pixel_values_videos=clips(4).double(), **texts(4))
    video_ids = None if ids is None else torch.tensor(ids)
    similarity = literal_similarity(
        outputs.text_token_embeds,
        outputs.text_token_weights,
        outputs.video_token_embeds,
        outputs.video_token_weights,
    )
    rows = [row for row in range(4) if ids is None or ids[row] >= 0]
    expected = 0.0
    for logits in (similarity / 0.1, similarity.T / 0.1):
        for row in rows:
            others = [c for c in rows if c == row or ids is None or ids[c] != ids[row]]
            expected = expected - (logits[row, row] - logits[row, others].logsumexp(0)) / len(rows)
    torch.testing.assert_close(word_region_loss(outputs, 0.1, video_ids), expected)
    whole = contrastive_loss(model.config, outputs, video_ids)
    outputs.text_token_embeds = None
    torch.testing.assert_close(whole, contrastive_loss(model.config, outputs, video_ids) + 0.7 * expected)


def test_checkpoints(tmp_path):
    tiny_model(token_dim=8, learn_temperature=True, token_temperature=0.07).save_pretrained(tmp_path / "with")
    model, info = RegionLearnerModel.from_pretrained(tmp_path / "with", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    inputs = {"pixel_values_videos": clips(2), **texts(2)}
    saved = tiny_model(token_dim=8, learn_temperature=True, token_temperature=0.07)(**inputs)
    torch.testing.assert_close(model.eval()(**inputs).token_logits_per_text, saved.token_logits_per_text)

    # A checkpoint without tokens gets new projections, whose temperature is that of the configuration.
    tiny_model(learn_temperature=True).save_pretrained(tmp_path / "without")
    config = {"token_dim": 8, "token_temperature": 0.02}
    model, info = RegionLearnerModel.from_pretrained(tmp_path / "without", **config, output_loading_info=True)
    new = {
        f"text_tokens.{name}" for name in ("embed.bias", "embed.weight", "weigh.weight", "norm.weight", "norm.bias")
    }
    new.add("token_logit_scale")
    assert set(info["missing_keys"]) == new | {
        name.replace("text", "video") for name in new if name.startswith("text_")
    }
    assert model.token_temperature.item() == pytest.approx(0.02)


@pytest.mark.parametrize(("field", "value"), [("token_dim", -1), ("token_temperature", 0), ("token_loss_weight", 0)])
def test_values_that_cannot_be(field, value):
    with pytest.raises(ValueError, match=field):
        RegionLearnerConfig(**{field: value})

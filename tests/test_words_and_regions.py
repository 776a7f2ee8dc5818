"""Tests of the similarity of words and regions, its loss, masks and padding, against literal implementations."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from scipy.fft import dct

from region_learner import (
    RegionLearnerConfig,
    RegionLearnerModel,
    RegionLearnerVideoConfig,
    RegionLearnerVideoModel,
)
from region_learner.evaluation.region_baselines import grid_masks
from region_learner.loss_region_learner import contrastive_loss, word_region_loss
from region_learner.modeling_region_learner import word_region_similarity
from region_learner.region_masks import are_normalized

from .conftest import NO_REGIONS, clips, randomize, texts, tiny_model, tiny_video_model

QUERIES = {"region_form": "queries", "codebook_size": 0, "num_regions": 5, "interaction_layers": 0}


def literal_similarity(words, word_weights, tokens, token_weights) -> torch.Tensor:
    """Computes the similarity with loops over pairs, words and tokens, ignoring those with weight 0."""
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
    """Returns random unit vectors and weights; the last `absent` ones of the first row have weight 0."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(batch, length, 6, generator=generator, dtype=torch.float64)
    weights = torch.rand(batch, length, generator=generator, dtype=torch.float64)
    weights[0, length - absent :] = 0
    embeds[0, length - absent :] = 1
    return F.normalize(embeds, dim=-1), weights / weights.sum(1, keepdim=True)


def test_similarity_equals_a_literal_implementation():
    words, tokens = some_tokens(3, 5, 2, seed=0), some_tokens(4, 7, 3, seed=1)
    ours = word_region_similarity(*words, *tokens)
    assert ours.shape == (3, 4)
    torch.testing.assert_close(ours, literal_similarity(*words, *tokens))


def test_gradients_equal_those_of_a_literal_implementation():
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
    # Tokens are the last states of the video tower that follow those of CLS.
    states = model.video_tokens.norm(outputs.video_model_output.last_hidden_state[:, -n:])
    torch.testing.assert_close(outputs.video_token_embeds, F.normalize(model.video_tokens.embed(states), dim=-1))


def literal_phrases(module, words: torch.Tensor) -> torch.Tensor:
    """Computes the convolution one word and one tap at a time, for `words` (L, width) without padding."""
    weight, bias, reach = module.conv.weight, module.conv.bias, module.conv.kernel_size[0] // 2
    rows = []
    for at in range(len(words)):
        near = [(step, words[at + step]) for step in range(-reach, reach + 1) if 0 <= at + step < len(words)]
        rows.append(words[at] + F.gelu(sum(weight[:, :, step + reach] @ word for step, word in near) + bias))
    return torch.stack(rows)


def literal_max_mlp(module, tokens: torch.Tensor) -> torch.Tensor:
    """Computes the max MLP of `tokens` (n, width), one at a time."""
    hidden = [F.gelu(module.fc1.weight @ module.norm(token) + module.fc1.bias) for token in tokens]
    highest = torch.tensor([max(values) for values in zip(*[row.tolist() for row in hidden])])
    return module.fc2.weight @ highest + module.fc2.bias


def test_phrases_of_a_text():
    model, without = tiny_model(token_dim=8, phrase_window=5), tiny_model(token_dim=8)
    without.load_state_dict({k: v for k, v in model.state_dict().items() if "phrase" not in k})
    given = texts(2)
    given["attention_mask"][0, 4:] = 0
    with torch.no_grad():
        outputs, plain = model.get_text_features(**given), without.get_text_features(**given)
        tokens = model(**given).text_token_embeds
        for row, length in ((0, 4), (1, 7)):
            words = model.text_model.embeddings(given["input_ids"])[row, :length]
            expected = literal_phrases(model.phrases, words)
            torch.testing.assert_close(outputs.phrase_states[row, :length], expected, rtol=1e-4, atol=1e-5)
            added = outputs.pooler_output[row] - plain.pooler_output[row]
            torch.testing.assert_close(added, literal_max_mlp(model.phrase_mlp, expected), rtol=1e-4, atol=1e-4)
            embeds = F.normalize(model.text_tokens.embed(model.text_tokens.norm(expected)), dim=-1)
            torch.testing.assert_close(tokens[row, :length], embeds, rtol=1e-4, atol=1e-5)


def test_hidden_states_are_returned_only_if_asked_for():
    model = tiny_model(phrase_window=5)
    assert model(**texts(2)).text_model_output.hidden_states is None
    assert model.get_text_features(**texts(2)).hidden_states is None
    assert len(model(**texts(2), output_hidden_states=True).text_model_output.hidden_states) == 3


def literal_moments(found: torch.Tensor) -> torch.Tensor:
    """Returns four moments (4, ...) over frames (T, ...): SciPy's DCT, rescaled so that the first one is the mean."""
    transformed = torch.from_numpy(dct(found.numpy(), axis=0, norm="ortho"))[:4] / len(found) ** 0.5
    return torch.cat([transformed, torch.zeros(4 - len(transformed), *found.shape[1:])])


def literal_tube_mlp(module, patches: torch.Tensor) -> torch.Tensor:
    """Returns the vector of one clip of patches (T, n, D), computed one tube at a time."""
    tubes = [module.proj(literal_moments(tube).flatten()) for tube in module.norm(patches).unbind(1)]
    return literal_max_mlp(module.mlp, torch.stack(tubes))


def literal_centers(looked: torch.Tensor, places: Sequence[int], side: int) -> torch.Tensor:
    """Returns where a query looked (T, 2), given its weights (T, n) for patches at `places` of a square grid."""
    ends = [-1 + 2 * n / side for n in range(side + 1)]
    middles = [(before + after) / 2 for before, after in pairwise(ends)]
    at = [(middles[place // side], middles[place % side]) for place in places]
    centers = [[sum(float(w) * xy[i] for w, xy in zip(frame, at)) for i in range(2)] for frame in looked]
    return torch.tensor(centers, dtype=looked.dtype)


def literal_queries(
    module, frames: torch.Tensor, heads: int, places: Sequence[int] = range(16), side: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns regions (S, D) and attention (S, T, n) of one clip (T, n, D), one query, frame and head at a time."""
    regions, attention = [], []
    spots = torch.tensor([[2 * (place // side) + 1, 2 * (place % side) + 1] for place in places]) / side - 1
    for number, query in enumerate(module.queries[0]):
        found, looked = [], []
        at = module.anchors[number] if module.follows else None
        for patches in frames:
            gathered, weights = [], []
            for head in range(heads):
                q, k, v = (
                    x.chunk(heads, dim=-1)[head]
                    for x in (
                        module.q_proj(module.query_norm(query)),
                        module.k_proj(module.key_norm(patches)),
                        module.v_proj(module.value_norm(patches)),
                    )
                )
                scores = (k @ q) / len(q) ** 0.5
                if at is not None:
                    distances = torch.stack([(spot - at).norm() for spot in spots.to(at)])
                    scores = scores - module.nearness[head] * (distances**2).clamp(max=2)
                weights.append(scores.softmax(0))
                gathered.append(weights[-1] @ v)
            found.append(torch.cat(gathered))
            looked.append(torch.stack(weights).mean(0))
            at = None if at is None else (looked[-1][:, None] * spots.to(at)).sum(0)
        region = query + module.out_proj(literal_moments(torch.stack(found)).flatten())
        centers = literal_centers(torch.stack(looked), places, side)
        region = region + module.path_proj(4 * literal_moments(centers).flatten())
        regions.append(region + module.fc2(F.gelu(module.fc1(module.mlp_norm(region)))))
        attention.append(torch.stack(looked))
    return torch.stack(regions), torch.stack(attention)


def test_phrases_tubes_and_queries_start_at_the_scale_of_their_width():
    model = RegionLearnerModel(tiny_model(token_dim=8, phrase_window=5, tube_mlp=True, **QUERIES).config)
    queries = model.video_model.region_module.aggregation
    layers = {
        32: [queries.q_proj, queries.fc1, model.phrase_mlp.fc1, model.text_tokens.embed, model.tube_mlp.mlp.fc1],
        64: [queries.fc2],
        128: [model.phrase_mlp.fc2, queries.out_proj, model.tube_mlp.proj],
        160: [model.phrases.conv],
    }
    for inputs, some in layers.items():
        for layer in some:
            assert layer.weight.std().item() == pytest.approx((3 * inputs) ** -0.5, rel=0.15)
    assert queries.queries.std().item() == pytest.approx(0.5, rel=0.2)
    assert model.video_model.layers[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)


TUBES = {
    "regions": {"region_layer": 1},
    "patches": NO_REGIONS,
    "late": {"temporal_fusion": "pool"},
    "queries": QUERIES | {"region_layer": 0, "num_frames": 6},
    "two_frames": {"num_frames": 2},
}


@pytest.mark.parametrize("options", TUBES.values(), ids=TUBES)
def test_the_tube_mlp(options):
    model, without = tiny_model(**options, tube_mlp=True), tiny_model(**options)
    without.load_state_dict({k: v for k, v in model.state_dict().items() if "tube_mlp" not in k})
    frames, layer = options.get("num_frames", 4), options.get("region_layer", 2)
    mask = torch.ones(2, frames, dtype=torch.int)
    mask[1, frames - 2] = 0
    given = {"pixel_values_videos": clips(2, frames), "frame_mask": mask}
    with torch.no_grad():
        added = model.get_video_features(**given).pooler_output - without.get_video_features(**given).pooler_output
        states = model.video_model(**given, output_hidden_states=True).hidden_states[layer]
        late = "temporal_fusion" in options
        patches = states.unflatten(0, (2, frames))[:, :, 1:] if late else states[:, 1:].unflatten(1, (frames, 16))
        for row in range(2):
            expected = literal_tube_mlp(model.tube_mlp, patches[row, mask[row].bool()])
            torch.testing.assert_close(added[row], expected, rtol=1e-4, atol=1e-4)
        embeds = F.normalize(model.get_video_features(**given).pooler_output, dim=-1)
        torch.testing.assert_close(model(**given).video_embeds, embeds)


def test_the_tube_mlp_depends_on_the_order_of_frames():
    model, clip = tiny_model(tube_mlp=True), torch.randn(1, 4, 4, 4, 32)
    forwards, backwards, moved = (model.tube_mlp(x) for x in (clip, clip.flip(1), clip.roll((1, 1), (2, 3))))
    assert not torch.allclose(forwards, backwards, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(forwards, moved, rtol=1e-4, atol=1e-4)  # the MLP does not know where a tube is


@pytest.mark.parametrize("fusion", ["attention", "pool"])
def test_the_maximum_of_the_last_patches(fusion):
    model = tiny_video_model(**QUERIES, region_layer=1, video_pooling="cls_patch_max", temporal_fusion=fusion)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1]])
    with torch.no_grad():
        outputs = model(clips(2), frame_mask=mask, output_hidden_states=True)
        states = outputs.hidden_states[-1]
        if fusion == "pool":
            states = torch.cat([states[:, :1].view(2, 4, 32), states[:, 1:].reshape(2, 64, 32)], dim=1)
        states = model.layernorm(states)
        cls, patches = states[:, :-64], states[:, -64:].unflatten(1, (4, 16))
        for row, frames in ((0, [0, 1, 2, 3]), (1, [0, 1, 3])):
            if fusion == "pool":
                expected = (cls[row, frames] + patches[row, frames].amax(1)).mean(0)
            else:
                expected = cls[row, 0] + patches[row, frames].flatten(0, 1).amax(0)
            torch.testing.assert_close(outputs.pooler_output[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["queries", "tracks"])
@pytest.mark.parametrize(("layer", "frames"), [(0, 4), (1, 1), (1, 2), (None, 3), (None, 7)])
def test_regions_of_queries(layer, frames, form):
    model = tiny_model(token_dim=8, region_layer=layer, num_frames=frames, **QUERIES | {"region_form": form})
    with torch.no_grad():
        outputs = model(pixel_values_videos=clips(2, frames), output_hidden_states=True).video_model_output
        for row in range(2):
            patches = outputs.hidden_states[2 if layer is None else layer][row, 1:].unflatten(0, (frames, 16))
            regions, attention = literal_queries(model.video_model.region_module.aggregation, patches, heads=4)
            torch.testing.assert_close(outputs.region_states[row], regions, rtol=1e-4, atol=1e-4)
            masks = (attention * 16).view(5, frames, 4, 4).transpose(0, 1)
            torch.testing.assert_close(outputs.region_masks[row], masks, rtol=1e-4, atol=1e-4)
        # The feature of a clip is the last CLS state plus the maximum of the regions.
        states = model.video_model.layernorm(torch.cat([outputs.hidden_states[-1][:, :1], outputs.region_states], 1))
        torch.testing.assert_close(outputs.last_hidden_state, states)
        torch.testing.assert_close(outputs.pooler_output, states[:, 0] + states[:, 1:].amax(1))
    assert are_normalized(outputs.region_masks)


def test_queries_over_codes_gather_features():
    """Keys are quantized; values are not."""
    model = tiny_video_model(**QUERIES | {"codebook_size": 16})
    record = {}
    module = model.region_module
    module.aggregation.register_forward_pre_hook(lambda module, inputs: record.update(inputs=inputs))
    with torch.no_grad():
        outputs = model(clips(2), output_hidden_states=True)
    patches = outputs.hidden_states[-1][:, 1:].unflatten(1, (4, 4, 4))
    keys, values = record["inputs"][:2]
    torch.testing.assert_close(values, patches)
    torch.testing.assert_close(keys, F.embedding(outputs.cluster_ids, module.quantizer.embed))


@pytest.mark.parametrize("form", ["queries", "tracks"])
@pytest.mark.parametrize("fusion", ["attention", "pool", "linear"])
def test_masked_frames_do_not_change_queries(fusion, form):
    model = tiny_video_model(**QUERIES | {"region_form": form}, temporal_fusion=fusion).double()
    videos = clips(2).double()
    alone = model(videos[:, :3])
    masked = model(videos, frame_mask=torch.tensor([[1, 1, 1, 0]] * 2))
    torch.testing.assert_close(masked.pooler_output, alone.pooler_output)
    torch.testing.assert_close(masked.region_states, alone.region_states)
    torch.testing.assert_close(masked.region_masks[:, :3], alone.region_masks)
    assert (masked.region_masks[:, 3] == 0).all()


@pytest.mark.parametrize("form", ["queries", "tracks"])
def test_a_masked_frame_in_the_middle_does_not_count_as_time(form):
    model = tiny_video_model(**QUERIES | {"region_form": form}).region_module.double()
    features = torch.randn(1, 4, 4, 4, 32, dtype=torch.float64)
    states, masks, *_ = model(features, torch.tensor([[True, False, True, True]]))
    expected, their_masks, *_ = model(features[:, [0, 2, 3]])
    torch.testing.assert_close(states, expected)
    torch.testing.assert_close(masks[:, [0, 2, 3]], their_masks)


def test_tracks_start_at_the_cells_of_a_grid_and_follow_what_moves():
    config = tiny_video_model(**QUERIES | {"region_form": "tracks", "num_regions": 12}).config
    config.interaction_heads = 1
    module = RegionLearnerVideoModel(config).region_module.aggregation
    cells = grid_masks(12, 12, 12).flatten(1)
    centers = (cells / cells.sum(1, keepdim=True)) @ module._places(12, 12, None, cells)
    torch.testing.assert_close(module.anchors.detach(), centers)
    # One bright patch moves by one position per frame, from the first cell to the last.
    features = torch.zeros(1, 12, 1, 12, 32)
    features[0, torch.arange(12), 0, torch.arange(12)] = torch.randn(32)
    with torch.no_grad():
        module.anchors.copy_(torch.tensor([[0.0, 2 * n / 11 - 1] for n in range(12)]))
        module.q_proj.weight.copy_(torch.eye(32))
        module.k_proj.weight.copy_(torch.eye(32))
        module.queries.copy_(features[:, 0, :, 0])  # all look for the same patch
        module.nearness.fill_(100.0)
        weights = module.attend(features, module._places(1, 12, None, features))[0, 0]  # (T, S, 12)
    assert weights.argmax(-1)[:, 0].tolist() == list(range(12))
    assert weights.argmax(-1)[0, 3:].tolist() == list(range(3, 12))  # too far away to be attracted


def test_queries_of_a_backbone_depend_on_the_order_of_frames():
    backbone = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    backbone |= {"intermediate_size": 64, "image_size": 32, "patch_size": 8}
    config = RegionLearnerVideoConfig(backbone_config=backbone, num_frames=4, interaction_heads=4, **QUERIES)
    torch.manual_seed(0)
    model = randomize(RegionLearnerVideoModel(config)).eval()
    videos = clips(1)
    with torch.no_grad():
        forward, backward = (model(x).region_states for x in (videos, videos.flip(1)))
    assert (forward - backward).abs().max() > 0.01


def test_without_token_dim_there_are_no_token_outputs():
    outputs = tiny_model()(pixel_values_videos=clips(2), **texts(2))
    assert not [name for name in outputs if "token" in name]


def test_one_side_alone():
    model = tiny_model(token_dim=8)
    assert model(pixel_values_videos=clips(2)).text_token_embeds is None
    outputs = model(**texts(2))
    assert outputs.text_token_embeds is not None
    assert outputs.token_logits_per_text is None


@pytest.mark.parametrize("window", [0, 5])
def test_padding_of_a_text_changes_nothing(window):
    model = tiny_model(token_dim=8, phrase_window=window).double()
    videos, given = clips(2).double(), texts(2)
    alone = model(pixel_values_videos=videos, **given)
    for side in ((3, 0), (0, 3)):
        padded = {name: F.pad(x, side) for name, x in given.items()}
        outputs = model(pixel_values_videos=videos, **padded)
        torch.testing.assert_close(outputs.token_logits_per_text, alone.token_logits_per_text)
        torch.testing.assert_close(outputs.text_embeds, alone.text_embeds)
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
def test_loss_equals_a_literal_implementation(ids):
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
    others = type(outputs)(**outputs | {"token_logits_per_text": None})  # those of the model have its temperature
    torch.testing.assert_close(word_region_loss(others, 0.1, video_ids), expected)
    others.token_logits_per_text = 7 * outputs.token_logits_per_text
    torch.testing.assert_close(word_region_loss(others, 0.1, video_ids), expected)
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

    # A checkpoint without tokens gets new projections and the temperature of the configuration.
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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"token_dim": -1}, "token_dim"),
        ({"token_temperature": 0}, "token_temperature"),
        ({"token_loss_weight": 0}, "token_loss_weight"),
        ({"phrase_window": 4}, "odd number of words"),
        ({"video_config": {"region_layer": 13}}, "at most num_hidden_layers=12"),
        (
            {"video_config": {"region_form": "queries", "interaction_layers": 0, "interaction_heads": 5}},
            "not a multiple",
        ),
        (
            {"video_config": {"region_layer": 1, "backbone_config": {"model_type": "vit"}}},
            "leave it out with a backbone",
        ),
        ({"video_config": {"region_options": {"pooling": "attention"}}}, "leave out both and use region_form="),
    ],
)
def test_invalid_values(values, message):
    with pytest.raises(ValueError, match=message):
        RegionLearnerConfig(**values)

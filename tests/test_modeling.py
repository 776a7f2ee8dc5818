"""Tests the model against a literal implementation of the method (`naive.py`), and its options and errors."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, CLIPTextConfig

from region_learner import (
    RegionLearnerConfig,
    RegionLearnerModel,
    RegionLearnerVideoConfig,
    RegionLearnerVideoModel,
    modeling_region_learner,
)
from region_learner.loss_region_learner import infonce_loss
from region_learner.modeling_region_learner import RegionLearnerDividedAttention

from . import naive
from .conftest import NO_REGIONS, TINY_VIDEO, checkpoint_activations, clips, texts, tiny_model, tiny_video_model

OPTIONS = {
    "default": {},
    "paper": {"region_form": "paper"},
    "motion": {"motion_excitation": True},
    "paper_motion": {"region_form": "paper", "motion_excitation": True},
    "masks_over_positions": {"region_options": {"mask_normalization": "positions", "interaction_mlp": False}},
    "maximum": {"region_options": {"pooling": "max"}},
    "maximum_under_masks_over_positions": {"region_options": {"mask_normalization": "positions", "pooling": "max"}},
    "sharper_with_masks_not_detached": {"region_options": {"pooling_sharpness": 8.0, "detach_masks": False}},
    "no_mask_loss": {"region_options": {"mask_loss_weight": 0.0}},
    "means_under_competing_masks": {"region_options": {"pooling": "mean"}},
    "means_under_masks_over_positions": {"region_options": {"mask_normalization": "positions", "pooling": "mean"}},
    "features_under_raw_masks": {"region_form": "paper", "region_options": {"values": "features"}},
    "quantized_values": {"region_options": {"values": "quantized"}},
    "frozen_in_time": NO_REGIONS,
    "no_quantization": {"codebook_size": 0},
    "no_interaction": {"interaction_layers": 0},
    "quantization_only": {"num_regions": 0, "interaction_layers": 0},
    "masks_only": {"codebook_size": 0, "interaction_layers": 0},
    "several_layers": {"interaction_layers": 2},
    "several_paper_layers": {
        "region_form": "paper",
        "interaction_layers": 2,
        "region_options": {"interaction_residual": True},
    },
    "mean_of_regions": {"video_pooling": "cls_mean"},
    "mean_of_patches": NO_REGIONS | {"video_pooling": "cls_mean"},
    "pool": {"temporal_fusion": "pool", "motion_excitation": True},
    "pool_frozen_in_time": NO_REGIONS | {"temporal_fusion": "pool"},
    "pool_mean_of_patches": NO_REGIONS | {"temporal_fusion": "pool", "video_pooling": "cls_mean"},
    "linear": {"temporal_fusion": "linear"},
    "linear_frozen_in_time": NO_REGIONS | {"temporal_fusion": "linear"},
}


@pytest.fixture(params=OPTIONS)
def options(request):
    return OPTIONS[request.param]


@pytest.mark.parametrize("frames", [1, 3])
def test_matches_a_literal_implementation(options, frames):
    model = tiny_video_model(**options).double()  # a softmax over large logits would amplify float32 rounding
    videos = clips(frames=frames).double()
    with torch.no_grad():
        ours = model(videos)
        theirs = torch.stack([naive.video_feature(model, clip) for clip in videos])
    torch.testing.assert_close(ours.pooler_output, theirs, rtol=1e-6, atol=1e-6)
    grid = TINY_VIDEO["image_size"] // TINY_VIDEO["patch_size"]
    if model.config.num_regions:
        assert ours.region_masks.shape == (2, frames, 3, grid, grid)
        assert ours.region_states.shape == (2, frames * 3, 32)
    else:
        assert ours.region_masks is None
        assert ours.region_states is None
    if model.config.codebook_size:
        assert ours.cluster_ids.shape == (2, frames, grid, grid)
    else:
        assert ours.cluster_ids is None


def test_region_module_parts_match_a_literal_implementation():
    model = tiny_video_model(motion_excitation=True)
    features = torch.randn(3, 16, 32)
    with torch.no_grad():
        states, masks, ids, loss = model.region_module(features.view(1, 3, 4, 4, 32))
        their_states, their_masks, their_ids, their_loss = naive.region_module(model.region_module, features, 4, 4)
    torch.testing.assert_close(states[0], their_states, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(masks[0].flatten(2), their_masks, rtol=1e-4, atol=1e-5)
    assert torch.equal(ids[0].flatten(1), their_ids)
    torch.testing.assert_close(loss[0].double(), their_loss, rtol=1e-5, atol=1e-6)


def test_region_loss_matches_a_literal_implementation():
    """The loss of each clip in a batch with masked frames matches, and so does its gradient."""
    aggregation = tiny_video_model().double().region_module.aggregation
    frame_mask = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 1]])
    states, content = (torch.randn(3, 4, 4, 4, 32).double().requires_grad_() for _ in range(2))
    _, _, loss = aggregation(states, content, frame_mask.bool())
    logits = aggregation.conv(states.flatten(0, 1).permute(0, 3, 1, 2)).view(3, 4, 3, 16)
    shares = logits.exp() / logits.exp().sum(2, keepdim=True)
    expected = []
    for clip in (0, 2):
        real = frame_mask[clip].bool()
        expected.append(naive.region_loss(shares[clip][real], content[clip][real].flatten(1, 2)))
    torch.testing.assert_close(loss[[0, 2]], torch.stack(expected))
    assert loss[1] == 0
    ours = torch.autograd.grad(loss.sum(), [aggregation.conv.weight, states], retain_graph=True)
    theirs = torch.autograd.grad(sum(expected), [aggregation.conv.weight, states], retain_graph=True)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)
    assert torch.autograd.grad(loss.sum(), content, allow_unused=True) == (None,)


@pytest.mark.parametrize("clusters", [2, 3])
def test_masks_that_match_the_clusters_of_a_clip_have_no_loss(clusters):
    aggregation = tiny_video_model(num_regions=clusters).region_module.aggregation
    labels = torch.arange(4 * 16).view(4, 16) * 7 % clusters
    right = F.one_hot(labels, clusters).float().transpose(1, 2)[None]
    centers = torch.randn(clusters, 32)
    # The loss does not depend on the scale of the features or on an offset common to all.
    for content in (centers[labels], 1e-2 * centers[labels], centers[labels] + 30 * torch.randn(32)):
        loss = aggregation._partition_loss(right, content[None], None)
        torch.testing.assert_close(loss, torch.zeros(1), atol=1e-3, rtol=0)
        swapped = torch.cat([right[:, :2], right[:, 2:].roll(1, 2)], 1)  # regions swap places in later frames
        assert aggregation._partition_loss(swapped, content[None], None) > 0.5
        telling_nothing = torch.full_like(right, 1 / clusters)
        torch.testing.assert_close(aggregation._partition_loss(telling_nothing, content[None], None), torch.ones(1))


def test_regions_of_identical_features_have_no_loss():
    aggregation = tiny_video_model().region_module.aggregation
    content = torch.randn(32).expand(1, 4, 16, 32)
    loss = aggregation._partition_loss(torch.rand(1, 4, 3, 16).softmax(2), content, None)
    assert 0 <= loss < 1e-2


def test_pooling_at_sharpness_0_is_the_mean():
    states, content = torch.randn(2, 2, 4, 4, 4, 32)
    aggregations = [
        tiny_video_model(region_options=options).region_module.aggregation
        for options in ({"pooling_sharpness": 0.0}, {"pooling": "mean"})
    ]
    with torch.no_grad():
        (one, *_), (other, *_) = (aggregation(states, content) for aggregation in aggregations)
    torch.testing.assert_close(one, other)


def test_pooling_is_near_the_maximum_despite_large_constant_channels():
    """Large encoders have a few channels that are much larger than others at all positions."""
    aggregation = tiny_video_model().region_module.aggregation
    content, masks = torch.randn(8, 64, 32).double(), torch.ones(8, 1, 64).double()
    everywhere = torch.zeros(32).double()
    everywhere[:4] = torch.tensor([200.0, -50.0, 1000.0, 7.0])
    mean, maximum = content.mean(1, keepdim=True), content.amax(1, keepdim=True)
    plain, shifted, scaled = (
        ((regions - mean) / (maximum - mean))[..., 4:]
        for regions in (
            aggregation._softmax_pool(masks, content),
            aggregation._softmax_pool(masks, content + everywhere),
            aggregation._softmax_pool(masks, 100 * content) / 100,
        )
    )
    for nearness in (plain, shifted):
        assert nearness.min() > 0.4
        assert 0.7 < nearness.mean() < 1
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-4)


def test_a_mask_pools_content_whose_exponential_is_0():
    """Where content is so far from its maximum that its exponential is 0, pooling gives the mean under the mask."""
    aggregation = tiny_video_model(num_regions=2).region_module.aggregation
    aggregation.sharpness = 100.0
    content = 1e-3 * torch.randn(1, 16, 32)
    content[0, :8, 0], content[0, 8:, 0] = 1.0, -1.0
    masks = torch.zeros(1, 2, 16)
    masks[0, 0, :8] = masks[0, 1, 8:] = 2.0
    content.requires_grad_()
    regions = aggregation._softmax_pool(masks, content)
    torch.testing.assert_close(regions[0, :, 0], torch.tensor([1.0, -1.0]))
    (gradient,) = torch.autograd.grad(regions[0, 1, 0], content)
    expected = torch.zeros(16)
    expected[8:] = 1 / 8
    torch.testing.assert_close(gradient[0, :, 0], expected, atol=1e-5, rtol=1e-4)


def test_the_encoder_learns_through_masks_only_if_they_are_not_detached():
    for options, learns in (
        ({}, False),
        ({"codebook_size": 0}, False),
        ({"region_options": {"detach_masks": False}}, True),
        ({"region_form": "paper"}, True),
    ):
        model = tiny_video_model(**options)
        masks = model(clips()).region_masks
        masks.square().sum().backward()
        assert model.region_module.aggregation.conv.weight.grad.any(), options
        gradient = model.embeddings.patch_embedding.weight.grad
        assert (gradient is not None and bool(gradient.any())) == learns, options


@pytest.mark.parametrize("mask", [None, [[1, 1, 1, 0], [1, 1, 1, 1]]], ids=["all_frames", "masked_frames"])
def test_sdpa_and_eager_attention_agree(options, mask):
    model, videos = tiny_video_model(**options).double(), clips().double()
    frame_mask = None if mask is None else torch.tensor(mask)
    weights = torch.randn(2, 32).double()
    outputs, gradients = [], []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        outputs.append(model(videos, frame_mask=frame_mask).pooler_output)
        (outputs[-1] * weights).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    expected, found = gradients
    total = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():  # eager attention computes the softmax in float32
        assert (found[name] - gradient).norm() < 1e-3 * (gradient.norm() + 1e-4 * total), name


def test_pooling_keeps_little_for_the_backward_pass(monkeypatch):
    """What the soft maximum needs is computed again, with the same gradients to the last bit."""
    videos = clips()

    def run():
        model, kept = tiny_video_model().train(), {}
        assert model.region_module.aggregation.pooling == "softmax"

        def keep(x: torch.Tensor) -> torch.Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            outputs = model(videos)
            (outputs.pooler_output.square().sum() + outputs.region_masks.square().sum()).backward()
        return outputs.pooler_output.detach(), {name: p.grad for name, p in model.named_parameters()}, kept

    output, gradients, kept = run()
    monkeypatch.setattr(modeling_region_learner, "checkpoint", lambda function, *inputs, **options: function(*inputs))
    expected_output, expected, all_kept = run()
    assert torch.equal(output, expected_output)
    assert all((x is None) == (expected[name] is None) for name, x in gradients.items())
    assert all(torch.equal(x, expected[name]) for name, x in gradients.items() if x is not None)
    patches = videos.shape[0] * videos.shape[1] * 16
    size = 4 * patches * tiny_video_model().config.hidden_size  # of the features of all patches
    assert sum(all_kept.values()) - sum(kept.values()) > 3 * size


@pytest.mark.parametrize("mask", [None, [[1, 1, 1, 0], [1, 1, 1, 1]]], ids=["all_frames", "masked_frames"])
def test_attention_in_bfloat16_on_a_cpu(mask, monkeypatch):
    """Plain attention replaces the fused kernel, but not for long sequences, nor in inference on a CPU with AMX."""
    videos, frame_mask = clips(), None if mask is None else torch.tensor(mask)

    def run(implementation="sdpa", training=True, dtype=torch.bfloat16):
        model = tiny_video_model().train(training)
        model.set_attn_implementation(implementation)
        calls = []
        with (
            monkeypatch.context() as patched,
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32),
        ):
            plain = modeling_region_learner.eager_attention_forward
            counted = lambda *args, **options: calls.append(1) or plain(*args, **options)  # noqa: E731
            patched.setattr(modeling_region_learner, "eager_attention_forward", counted)
            output = model(videos, frame_mask=frame_mask).pooler_output
        output.float().square().sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        return output.detach().float(), gradient, len(calls)

    output, gradient, calls = run()
    eager_output, eager_gradient, all_calls = run("eager")
    assert calls == all_calls > 0
    assert torch.equal(output, eager_output)
    assert torch.equal(gradient, eager_gradient)
    exact_output, exact_gradient, calls = run(dtype=torch.float32)
    assert calls == 0
    for has_amx, expected in ((False, all_calls), (True, 0)):
        monkeypatch.setattr(modeling_region_learner, "_HAS_AMX", has_amx)
        assert run(training=False)[2] == expected
    assert (output - exact_output).norm() < 0.03 * exact_output.norm()
    assert (gradient - exact_gradient).norm() < 0.1 * exact_gradient.norm()
    monkeypatch.setattr(modeling_region_learner, "_PLAIN_WEIGHTS", 30)  # 4 x 5 over time, 16 x 17 over space
    assert 0 < run()[2] < all_calls


@pytest.mark.slow
def test_sdpa_and_flex_attention_agree(options):
    """On the CPU, PyTorch supports flex attention neither with gradients nor with masks."""
    model, videos = tiny_video_model(**options), clips()
    with torch.no_grad():
        by_sdpa = model(videos).pooler_output
        model.set_attn_implementation("flex_attention")
        by_flex = model(videos).pooler_output
    torch.testing.assert_close(by_sdpa, by_flex, rtol=1e-4, atol=1e-4)


def test_attention_weights_on_request():
    model = tiny_video_model()
    model.set_attn_implementation("eager")
    frame_mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    for mask in (None, frame_mask):
        with torch.no_grad():
            plain = model(clips(), frame_mask=mask).pooler_output
            outputs = model(clips(), frame_mask=mask, output_attentions=True, output_hidden_states=True)
        torch.testing.assert_close(outputs.pooler_output, plain, rtol=1e-4, atol=1e-4)
        assert len(outputs.attentions) == 2
        assert len(outputs.hidden_states) == 3
        weights = outputs.attentions[0]
        assert weights.shape == (2, 4, 65, 65)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 65))
        second_frame = weights[:, :, 20]  # a patch of the second frame sees only CLS and that frame
        seen = (second_frame > 0).any(0).any(0).nonzero().flatten().tolist()
        assert seen == [0, *range(17, 33)]


def test_attention_weights_cost_nothing_without_eager_attention(monkeypatch):
    """Only eager attention returns weights, so the masked attention that computes them is not used."""
    model = tiny_video_model()
    with torch.no_grad():
        expected = model(clips()).pooler_output
        monkeypatch.setattr(RegionLearnerDividedAttention, "_full_mask", None)
        outputs = model(clips(), output_attentions=True)
    assert outputs.attentions == ()
    assert torch.equal(outputs.pooler_output, expected)


@pytest.mark.parametrize("mask", [[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 0]])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"region_form": "paper"},
        {"motion_excitation": True},
        {"codebook_size": 0},
        NO_REGIONS,
        {"temporal_fusion": "pool", "motion_excitation": True},
        {"temporal_fusion": "linear"},
        NO_REGIONS | {"temporal_fusion": "linear"},
    ],
)
def test_masked_frames_have_no_influence(mask, extra):
    model = tiny_video_model(**extra)
    frame_mask = torch.tensor([mask, [1, 1, 1, 1]])
    videos = clips()
    changed = videos.clone()
    changed[0, ~frame_mask[0].bool()] = 100 * torch.randn(3, 32, 32)
    with torch.no_grad():
        one, other = (model(x, frame_mask=frame_mask).pooler_output for x in (videos, changed))
        unmasked = model(videos).pooler_output
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        losses = [model(x, frame_mask=frame_mask).region_loss for x in (videos, changed)]
        if losses[0] is not None:
            torch.testing.assert_close(*losses)
        assert not torch.allclose(one[0], unmasked[0], atol=1e-3)
        torch.testing.assert_close(one[1], unmasked[1], rtol=1e-4, atol=1e-4)
        if mask == [1, 1, 0, 0]:  # padding at the end gives the same as the shorter clip
            torch.testing.assert_close(one[:1], model(videos[:1, :2]).pooler_output, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_masked_nans_have_no_influence():
    model, videos, frame_mask = tiny_model(), clips(), torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1]])
    expected = model.get_video_features(videos, frame_mask).pooler_output
    videos[~frame_mask.bool()] = torch.nan
    assert torch.equal(model.get_video_features(videos, frame_mask).pooler_output, expected)


@torch.no_grad()
def test_a_frame_mask_does_not_weight_frames():
    model, frame_mask = tiny_model(tube_mlp=True), torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1]])
    for inputs in ({}, texts()):
        embeds = [
            model(pixel_values_videos=clips(), frame_mask=mask, **inputs).video_embeds
            for mask in (frame_mask, 2 * frame_mask)
        ]
        assert torch.equal(*embeds)


@pytest.mark.parametrize("form", ["decoupled", "paper", "queries", "tracks"])
@torch.no_grad()
def test_masks_of_masked_frames_are_zero(form):
    frame_mask = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1]])
    masks = tiny_video_model(region_form=form)(clips(), frame_mask=frame_mask).region_masks
    assert torch.equal(masks.flatten(2).any(2), frame_mask.bool())


def test_masked_frames_do_not_train_the_codebook():
    frame_mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    videos = clips()
    changed = torch.where(frame_mask.bool()[:, :, None, None, None], videos, torch.tensor(7.0))
    models = [tiny_video_model().train() for _ in range(2)]
    for _ in range(3):
        models[0](videos, frame_mask=frame_mask)
        models[1](changed, frame_mask=frame_mask)
    one, other = (model.region_module.quantizer for model in models)
    assert one.cluster_sum.sum() == 2 * frame_mask.sum() * 16  # the first batch initializes the codes
    torch.testing.assert_close(one.embed, other.embed, rtol=1e-4, atol=1e-4)


def test_other_resolutions():
    model = tiny_video_model()
    with torch.no_grad():
        outputs = model(clips(size=48), interpolate_pos_encoding=True)
        same = model(clips(), interpolate_pos_encoding=True).pooler_output
        dual = tiny_model()
        with pytest.raises(ValueError, match="or set `interpolate_pos_encoding=True`"):
            dual(pixel_values_videos=clips(size=48))
        embeds = dual(pixel_values_videos=clips(size=48), interpolate_pos_encoding=True).video_embeds
        features = dual.get_video_features(clips(size=48), interpolate_pos_encoding=True).pooler_output
        torch.testing.assert_close(embeds, F.normalize(features, dim=-1))
        assert torch.equal(same, model(clips()).pooler_output)
    assert outputs.region_masks.shape == (2, 4, 3, 6, 6)
    assert torch.equal(model.embeddings.interpolate_pos_encoding(4, 4), model.embeddings.position_embeddings[:, 1:])
    # Compare with bicubic interpolation written out: Keys' kernel with a = -0.75, and repeated borders.
    old = model.embeddings.position_embeddings[0, 1:].view(4, 4, 32)
    new = model.embeddings.interpolate_pos_encoding(6, 6)[0].view(6, 6, 32)

    def kernel(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.25 * x**3 - 2.25 * x**2 + 1
        return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    def weights(i: int) -> list[tuple[int, float]]:
        center = (i + 0.5) * 4 / 6 - 0.5
        return [(min(max(j, 0), 3), kernel(center - j)) for j in range(-2, 7)]

    expected = torch.zeros(6, 6, 32)
    for i in range(6):
        for j in range(6):
            for y, wy in weights(i):
                for x, wx in weights(j):
                    expected[i, j] += wy * wx * old[y, x]
    torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fill", ["zeros", "nearest", "bilinear"])
def test_more_frames(fill):
    model = tiny_model()
    more = model.resize_frames(8, fill=fill)
    old = model.video_model.embeddings.temporal_embeddings[0]
    new = more.video_model.embeddings.temporal_embeddings[0]
    assert more.config.video_config.num_frames == more.video_model.config.num_frames == 8
    assert model.config.video_config.num_frames == 4
    assert len(old) == 4
    if fill == "zeros":
        assert torch.equal(new, torch.cat([old, torch.zeros_like(old)]))
        with torch.no_grad():
            torch.testing.assert_close(
                more.video_model(clips()).pooler_output, model.video_model(clips()).pooler_output
            )
    elif fill == "nearest":
        assert torch.equal(new, old.repeat_interleave(2, 0))
    else:
        position = torch.linspace(0, 3, 8)
        low = position.floor().long().clamp(max=2)
        expected = torch.lerp(old[low], old[low + 1], (position - low)[:, None])
        torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert more.video_model(clips(frames=8)).pooler_output.shape == (2, 32)
    assert torch.equal(more.resize_frames(2).video_model.embeddings.temporal_embeddings[0], new[:2])


@pytest.mark.parametrize("fill", ["zeros", "nearest", "bilinear"])
def test_more_frames_under_linear_fusion(fill):
    model = tiny_video_model(temporal_fusion="linear", interaction_layers=0)
    more = model.resize_frames(8, fill=fill)
    old = model.temporal_fusion.weight.view(32, 4, 32)
    new = more.temporal_fusion.weight.view(32, 8, 32)
    assert model.temporal_fusion.num_frames == 4
    still = clips(frames=1)
    with torch.no_grad():
        if fill == "zeros":
            assert torch.equal(new[:, :4], old)
            assert not new[:, 4:].any()
            torch.testing.assert_close(more(clips()).pooler_output, model(clips()).pooler_output)
            # Dropping more frames than were added gives what the first model computes for shorter clips.
            less = more.resize_frames(2)
            torch.testing.assert_close(less(clips(frames=2)).pooler_output, model(clips(frames=2)).pooler_output)
        else:
            if fill == "nearest":
                torch.testing.assert_close(new, old.repeat_interleave(2, 1) / 2)
            else:  # the first and the last frame keep their weights, except for a correction that is added to all
                gaps = new[:, 1:] - new[:, :-1]
                torch.testing.assert_close(gaps[:, 0] * 7 / 3, (old[:, 1] - old[:, 0]) / 2, rtol=1e-4, atol=1e-5)
            for frames, resized in ((8, more), (3, model.resize_frames(3, fill=fill))):
                torch.testing.assert_close(
                    resized(still.expand(-1, frames, -1, -1, -1)).pooler_output,
                    model(still.expand(-1, 4, -1, -1, -1)).pooler_output,
                    rtol=1e-4,
                    atol=1e-4,
                )
    assert more.temporal_fusion.weight.shape == (32, 8 * 32)
    again = RegionLearnerVideoModel(more.config)
    again.load_state_dict(more.state_dict())


def test_linear_fusion_starts_as_the_mean():
    options = NO_REGIONS | {"num_frames": 4}
    models = []
    for fusion in ("linear", "pool"):
        torch.manual_seed(0)
        config = RegionLearnerVideoConfig(**TINY_VIDEO | options | {"temporal_fusion": fusion})
        models.append(RegionLearnerVideoModel(config).eval())
    models[1].load_state_dict(models[0].state_dict(), strict=False)
    with torch.no_grad():
        one, other = (model(clips()).pooler_output for model in models)
    torch.testing.assert_close(one, other)


def test_late_fusion_encodes_frames_as_images():
    """Without region interaction, the feature of a clip is the mean of the features of its single frames."""
    model = tiny_video_model(temporal_fusion="pool", interaction_layers=0)
    videos = clips()
    with torch.no_grad():
        outputs = model(videos, output_hidden_states=True)
        alone = torch.stack([model(videos[:, i : i + 1]).pooler_output for i in range(4)])
    torch.testing.assert_close(outputs.pooler_output, alone.mean(0), rtol=1e-4, atol=1e-5)
    assert outputs.last_hidden_state.shape == (2, 4 + 4 * 3, 32)
    assert outputs.region_states.shape == (2, 4 * 3, 32)
    assert outputs.region_masks.shape == (2, 4, 3, 4, 4)
    assert outputs.cluster_ids.shape == (2, 4, 4, 4)
    assert outputs.hidden_states[0].shape == (8, 17, 32)


def test_errors_say_what_is_wrong_and_what_to_do():
    model = tiny_model()
    for call, message in [
        (lambda: model(), "give input_ids, pixel_values_videos, or both"),
        (lambda: model.video_model(clips()[:, 0]), r"images are clips of one frame: `pixel_values.unsqueeze\(1\)`"),
        (lambda: model.video_model(clips(frames=5)), r"5 frames.*4 temporal positions.*resize_frames\(5\)"),
        (lambda: model.video_model(clips(size=30)), "30 x 30 pixels, but the model takes 32 x 32: .* `interpolate"),
        (lambda: model.video_model(clips(size=48)[..., :32]), "48 x 32 pixels, but the model takes 32 x 32"),
        (
            lambda: model.video_model(clips(size=30), interpolate_pos_encoding=True),
            "30 x 30 pixels, but must be multiples of the patch size, 8",
        ),
        (lambda: model.video_model(clips()[:, :, :1]), "1 channels, but the model takes 3"),
        (lambda: model.video_model(clips(), frame_mask=torch.ones(2, 3)), r"frame_mask must be .* \(2, 4\)"),
        (
            lambda: model(**texts(3), pixel_values_videos=clips(2), return_loss=True),
            "one text for each video, .*: 3 texts of size 16, 2 videos of size 16, no video_ids",
        ),
        (lambda: model(**texts(3), return_loss=True), "3 texts of size 16, 0 videos"),
        (lambda: model.resize_frames(8, fill="zero"), "fill='zero' is not known"),
        (lambda: model.resize_frames(0), "must be at least 1"),
        (lambda: RegionLearnerVideoConfig(num_regions=0), "interaction_layers=1 needs regions"),
        (lambda: RegionLearnerVideoConfig(codebook_size=0, motion_excitation=True), "motion_excitation=True adds"),
        (lambda: RegionLearnerVideoConfig(codebook_mode="vq"), "codebook_mode='vq' is not known"),
        (
            lambda: RegionLearnerVideoConfig(region_options={"mask_normalization": "none"}),
            "pooling='softmax' needs positive masks, but mask_normalization='none'",
        ),
        (
            lambda: RegionLearnerVideoConfig(
                region_options={"mask_normalization": "positions", "mask_loss_weight": 0.5}
            ),
            "mask_loss_weight=0.5 needs masks that compete for positions, but mask_normalization='positions'",
        ),
        (lambda: RegionLearnerVideoConfig(region_form="best"), "region_form='best' is not known"),
        (lambda: RegionLearnerVideoConfig(video_pooling="max"), "video_pooling='max' is not known"),
        (lambda: RegionLearnerVideoConfig(temporal_fusion="mean"), "temporal_fusion='mean' is not known"),
        (lambda: tiny_video_model(temporal_fusion="pool")(clips(frames=5)), "5 frames.*4 temporal positions"),
        (lambda: RegionLearnerVideoConfig(codebook_decay=1.0), "codebook_decay=1.0"),
        (lambda: RegionLearnerConfig(temperature=0.0), "temperature=0.0 must be greater than 0"),
        (lambda: RegionLearnerConfig(text_config={"dim": 8}), "dict without `model_type`"),
        (lambda: RegionLearnerConfig(text_pooling="final"), "text_pooling='final' is not known"),
        (lambda: tiny_video_model(num_attention_heads=5), "hidden_size=32 is not a multiple of num_attention_heads=5"),
        (lambda: tiny_video_model(image_size=30), "image_size=30 is not a multiple of patch_size=8"),
        (lambda: tiny_video_model(interaction_heads=5), "not a multiple of interaction_heads=5"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_loss_matches_a_literal_implementation():
    text, video = (F.normalize(torch.randn(5, 8), dim=-1) for _ in range(2))
    expected = 0.0
    for i in range(5):
        t2v = torch.stack([text[i] @ video[j] / 0.05 for j in range(5)])
        v2t = torch.stack([video[i] @ text[j] / 0.05 for j in range(5)])
        expected = expected - (t2v[i] - t2v.logsumexp(0) + v2t[i] - v2t.logsumexp(0)) / 5
    torch.testing.assert_close(infonce_loss(text, video, 0.05), expected)


def test_pairs_of_one_video_are_not_negatives():
    text, video = (F.normalize(torch.randn(4, 8), dim=-1) for _ in range(2))
    ids = torch.tensor([3, 7, 3, 9])
    expected = 0.0
    for i in range(4):
        others = [j for j in range(4) if j == i or ids[j] != ids[i]]
        for a, b in ((text, video), (video, text)):
            logits = torch.stack([a[i] @ b[j] / 0.05 for j in others])
            expected = expected - (logits[others.index(i)] - logits.logsumexp(0)) / 4
    torch.testing.assert_close(infonce_loss(text, video, 0.05, ids), expected)


def test_padding_pairs_do_not_count():
    text, video = (F.normalize(torch.randn(5, 8), dim=-1) for _ in range(2))
    ids = torch.tensor([3, -1, 7, -1, 9])
    kept = ids >= 0
    expected = infonce_loss(text[kept], video[kept], 0.05)
    torch.testing.assert_close(infonce_loss(text, video, 0.05, ids), expected)


def test_autocast_keeps_the_loss_in_float32():
    model = tiny_model(codebook_size=0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = model(**texts(4), pixel_values_videos=clips(4), return_loss=True)
    regions = outputs.video_model_output.region_loss
    assert outputs.loss.dtype == outputs.logits_per_text.dtype == regions.dtype == torch.float32
    contrastive = infonce_loss(outputs.text_embeds, outputs.video_embeds, 0.05)
    torch.testing.assert_close(outputs.loss, contrastive + regions.mean())
    aggregation = model.video_model.region_module.aggregation
    shares, content = torch.rand(2, 4, 3, 16).softmax(2), torch.randn(2, 4, 16, 32)
    masks = shares.flatten(0, 1) / shares.flatten(0, 1).mean(-1, keepdim=True)
    with torch.no_grad():
        for call in (
            lambda: aggregation._partition_loss(shares, content, None),
            lambda: aggregation._softmax_pool(masks, content.flatten(0, 1)),
        ):
            plain = call()
            with torch.autocast("cpu", torch.bfloat16):
                torch.testing.assert_close(call(), plain, rtol=1e-6, atol=1e-6)


def test_a_batch_of_masked_frames_does_not_change_the_codebook():
    model = tiny_video_model().train()
    before = model.region_module.quantizer.embed.clone()
    model(clips(), frame_mask=torch.zeros(2, 4))
    assert torch.equal(model.region_module.quantizer.embed, before)
    model(clips())
    assert model.region_module.quantizer.num_updates == 1
    assert model.region_module.quantizer.embed.isfinite().all()


def test_dual_encoder_outputs():
    model = tiny_model()
    inputs = {**texts(3), "pixel_values_videos": clips(2)}
    with torch.no_grad():
        outputs = model(**inputs)
        text = model.get_text_features(**texts(3)).pooler_output
        video = model.get_video_features(clips(2)).pooler_output
        assert model(**texts(3)).video_embeds is None
        assert model(pixel_values_videos=clips(2)).logits_per_text is None
    torch.testing.assert_close(outputs.text_embeds, F.normalize(text, dim=-1))
    torch.testing.assert_close(outputs.video_embeds, F.normalize(video, dim=-1))
    torch.testing.assert_close(outputs.logits_per_text, outputs.text_embeds @ outputs.video_embeds.T / 0.05)
    torch.testing.assert_close(outputs.logits_per_video, outputs.logits_per_text.T)
    assert outputs.loss is None


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_includes_the_weighted_region_loss(weight):
    model = tiny_model(region_options={"mask_loss_weight": weight})
    ids = torch.tensor([3, -1, 7, 9])
    inputs = {**texts(4), "pixel_values_videos": clips(4)}
    with torch.no_grad():
        outputs = model(**inputs, return_loss=True)
        filled = model(**inputs, return_loss=True, video_ids=ids)
    regions = outputs.video_model_output.region_loss
    losses = []
    for video_ids, kept in ((None, [0, 1, 2, 3]), (ids, [0, 2, 3])):
        loss = infonce_loss(outputs.text_embeds, outputs.video_embeds, 0.05, video_ids)
        losses.append(loss + (weight * regions[kept].mean() if weight else 0))
    torch.testing.assert_close(torch.stack([outputs.loss, filled.loss]), torch.stack(losses))
    assert (regions is None) == (weight == 0)


def test_learned_temperature():
    model = tiny_model(learn_temperature=True)
    model.logit_scale.data.fill_(2.0)
    outputs = model(**texts(), pixel_values_videos=clips(), return_loss=True)
    expected = outputs.text_embeds @ outputs.video_embeds.T * torch.tensor(2.0).exp()
    torch.testing.assert_close(outputs.logits_per_text, expected)
    outputs.loss.backward()
    assert model.logit_scale.grad is not None
    fresh = RegionLearnerModel(model.config)
    assert fresh.temperature.item() == pytest.approx(model.config.temperature)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_gets_a_gradient(options, checkpointing):
    model = tiny_model(**options).train()
    if checkpointing:
        checkpoint_activations(model)
    outputs = model(**texts(4), pixel_values_videos=clips(4), return_loss=True)
    outputs.loss.backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    # Adding a constant to all inputs of a softmax does not change it, so these biases have no influence.
    without = {n for n in without if not n.endswith(("ex_proj.bias", "k_lin.bias", "motion_excitation.conv.bias"))}
    assert not without


def test_time_attention_starts_as_the_zero_function_and_can_learn():
    torch.manual_seed(0)
    model = RegionLearnerVideoModel(RegionLearnerVideoConfig(**TINY_VIDEO)).train()
    attention = model.layers[0].time_attention
    with torch.no_grad():
        assert not attention(torch.randn(2, 65, 32), (4, 4, 4))[0].any()
        assert model.layers[0].space_attention(torch.randn(2, 65, 32), (4, 4, 4))[0].any()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    model(clips()).pooler_output.square().sum().backward()
    optimizer.step()
    model(clips()).pooler_output.square().sum().backward()
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
        assert projection.weight.grad.any()


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"model_type": "bert"}, "pooler"),
        ({"model_type": "bert"}, "first"),
        ({"model_type": "roberta", "pad_token_id": 0}, "mean"),
        ({"model_type": "clip_text_model", "eos_token_id": 98, "bos_token_id": 97, "pad_token_id": 0}, "eos"),
    ],
)
def test_text_encoders_and_poolings(config, pooling):
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = config | sizes | {"intermediate_size": 37, "max_position_embeddings": 40}
    model = tiny_model(text=text, text_pooling=pooling)
    inputs = texts(3)
    inputs["input_ids"][:, -2] = torch.tensor([98, 5, 98])
    inputs["attention_mask"][1, -2:] = 0
    with torch.no_grad():
        features = model.get_text_features(**inputs).pooler_output
        outputs = model.text_model(**inputs)
    states = outputs.last_hidden_state
    expected = {
        "first": lambda: states[:, 0],
        "mean": lambda: torch.stack([states[0].mean(0), states[1, :-2].mean(0), states[2].mean(0)]),
        "eos": lambda: torch.stack([states[0, -2], states[1, -3], states[2, -2]]),
        "pooler": lambda: outputs.pooler_output,
    }[pooling]()
    torch.testing.assert_close(features, model.text_projection(F.relu(expected)), rtol=1e-4, atol=1e-5)
    loss = model.train()(**inputs, pixel_values_videos=clips(3), return_loss=True).loss
    loss.backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_default_poolings():
    assert RegionLearnerConfig().resolved.text_pooling == "first"
    assert RegionLearnerConfig(text_config=BertConfig()).resolved.text_pooling == "pooler"
    assert RegionLearnerConfig(text_config=CLIPTextConfig()).resolved.text_pooling == "eos"
    assert RegionLearnerVideoConfig().resolved.video_pooling == "cls_max"
    assert RegionLearnerVideoConfig(region_form="paper").resolved.video_pooling == "cls_mean"
    assert RegionLearnerVideoConfig(**NO_REGIONS).resolved.video_pooling == "cls"


def test_half_precision_and_autocast_keep_codebook_statistics_in_float32():
    model = tiny_model().train()
    quantizer = model.video_model.region_module.quantizer
    model(**texts(), pixel_values_videos=clips(), return_loss=True)
    before = {name: buffer.clone() for name, buffer in quantizer.named_buffers()}
    model.to(torch.bfloat16)
    for name, buffer in quantizer.named_buffers():
        assert torch.equal(buffer, before[name]), name
        assert buffer.dtype in (torch.float32, torch.int64)
    outputs = model(**texts(), pixel_values_videos=clips(), return_loss=True)
    assert outputs.loss.isfinite()
    assert quantizer.cluster_size.dtype == torch.float32
    model.to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**texts(), pixel_values_videos=clips(), return_loss=True)
    outputs.loss.backward()
    assert quantizer.embed.dtype == torch.float32
    assert quantizer.num_updates == 3


def test_gradient_checkpointing_changes_nothing():
    models = [tiny_model().train() for _ in range(2)]
    checkpoint_activations(models[1])
    for model in models:
        for _ in range(2):
            model(**texts(4), pixel_values_videos=clips(4), return_loss=True).loss.backward()
    for (name, one), (_, other) in zip(*(model.named_parameters() for model in models)):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)
    for (name, one), (_, other) in zip(*(model.named_buffers() for model in models)):
        torch.testing.assert_close(one, other, msg=name)
    assert models[1].video_model.region_module.quantizer.num_updates == 2


WORDS_AND_TUBES = {"codebook_size": 0, "token_dim": 8, "phrase_window": 3, "tube_mlp": True}
COMPILED = {
    "decoupled": {},
    "paper": {"region_form": "paper"},
    "queries": {"region_form": "queries"} | WORDS_AND_TUBES,
    "tracks": {"region_form": "tracks"} | WORDS_AND_TUBES,
    "motion": {"motion_excitation": True},
    "late_fusion": {"temporal_fusion": "pool"},
    "no_regions": NO_REGIONS,
    "patch_dropout": {"patch_dropout": 0.5},
    "queries_patch_dropout": {"region_form": "queries", "patch_dropout": 0.5} | WORDS_AND_TUBES,
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=[] if name in ("decoupled", "queries") else pytest.mark.slow)
        for name, options in COMPILED.items()
    ],
)
def test_compiles_without_graph_breaks(options):
    """A compiled training step and a compiled evaluation equal those of the model itself."""
    plain, inputs = tiny_model(**options).train(), {**texts(4), "pixel_values_videos": clips(4)}
    assert plain._can_compile_fullgraph
    copied = copy.deepcopy(plain)
    torch.compiler.reset()  # the number of compilations of one function is limited
    with torch.no_grad():
        copied.eval()(**inputs)  # the first call prepares for returning hidden states, which cannot be compiled
    copied.train()
    compiled = torch.compile(copied, backend="aot_eager", fullgraph=True)  # which also traces the backward pass
    losses = []
    for model in (plain, compiled):
        torch.manual_seed(3)  # of patch dropout
        losses.append(model(**inputs, return_loss=True).loss)
        losses[-1].backward()
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    for (name, one), (_, other) in zip(plain.named_parameters(), copied.named_parameters()):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-4, msg=name)
    for (name, one), (_, other) in zip(plain.named_buffers(), copied.named_buffers()):
        torch.testing.assert_close(other, one, msg=name)
    plain.eval(), copied.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs).logits_per_text, plain(**inputs).logits_per_text)


def test_a_clip_does_not_depend_on_its_neighbors(options):
    model, clip = tiny_video_model(**options).double(), clips(batch=1).double()
    with torch.no_grad():
        alone = model(clip)
        for neighbors in (clips(batch=2, seed=5).double(), torch.zeros(3, *clip.shape[1:]).double(), 10 * clip):
            together = model(torch.cat([neighbors, clip]))
            torch.testing.assert_close(together.pooler_output[-1:], alone.pooler_output)
            if alone.region_masks is not None:
                torch.testing.assert_close(together.region_masks[-1:], alone.region_masks)


# --- Cost ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["decoupled", "paper", "queries", "tracks"])
def test_the_cost_grows_linearly_with_the_number_of_frames(form):
    """
    Each further frame costs the same number of FLOPs, except for two kinds of attention: over time, a patch attends to
    its position in all frames, and the regions of frames attend to one another.
    """
    layers, interaction_layers, width, patches, regions = 2, 1, 32, 16, 3
    gathers_clips = form in ("queries", "tracks")
    codes = {"codebook_size": 0} if gathers_clips else {}
    # Scaled dot product attention is not counted on the CPU.
    model = tiny_video_model(num_frames=8, region_form=form, interaction_layers=interaction_layers, **codes)
    model.set_attn_implementation("eager")
    linear = {}
    for frames in (2, 4, 8):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(clips(batch=1, frames=frames))
        pairs = layers * patches * frames**2
        if not gathers_clips:
            pairs += interaction_layers * (frames * regions) ** 2
        # The score of a query and a key takes `width` multiplications and additions, and so does the weighted value.
        linear[frames] = counter.get_total_flops() - 4 * width * pairs
    assert linear[8] - linear[4] == 2 * (linear[4] - linear[2]) > 0

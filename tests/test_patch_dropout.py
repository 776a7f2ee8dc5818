"""Tests for patch dropout, against a naive implementation on the kept patches."""

import pytest
import torch

from region_learner import RegionLearnerVideoConfig

from . import naive
from .conftest import NO_REGIONS, TINY_VIDEO, checkpoint_activations, clips, texts, tiny_model, tiny_video_model
from .test_modeling import OPTIONS
from .test_words_and_regions import literal_queries

GRID = TINY_VIDEO["image_size"] // TINY_VIDEO["patch_size"]
QUERIES = {"region_form": "queries", "codebook_size": 0, "region_layer": 1, "video_pooling": "cls_patch_max"}
TRACKS = QUERIES | {"region_form": "tracks"}


def kept_patches(clips: int, number: int, seed: int) -> torch.Tensor:
    """Returns the patches that a model keeps of each clip after `torch.manual_seed(seed)`."""
    torch.manual_seed(seed)
    return torch.rand(clips, GRID**2).argsort(1)[:, :number].sort(1).values


def frozen(model):
    """Returns the model in training mode, with a frozen codebook."""
    model.train()
    if model.quantizer is not None:
        model.quantizer.frozen = True
    return model


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_a_naive_implementation_on_the_kept_patches(options):
    model = frozen(tiny_video_model(**options, patch_dropout=0.6).double())
    videos = clips(frames=3).double()
    kept = kept_patches(2, round(0.4 * GRID**2), seed=5)
    assert kept[0].tolist() != kept[1].tolist()
    torch.manual_seed(5)
    with torch.no_grad():
        outputs = model(videos)
        expected = torch.stack([naive.video_feature(model, clip, its) for clip, its in zip(videos, kept)])
    torch.testing.assert_close(outputs.pooler_output, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"region_form": "paper"}, QUERIES, TRACKS], ids=["decoupled", "paper", "queries", "tracks"]
)
def test_masks_and_codes_are_at_the_positions_of_the_kept_patches(options):
    model = frozen(tiny_video_model(**options, patch_dropout=0.5))
    kept = kept_patches(2, GRID**2 // 2, seed=1)
    torch.manual_seed(1)
    with torch.no_grad():
        outputs = model(clips(frames=3))
    places = torch.zeros(2, GRID**2, dtype=torch.bool).scatter(1, kept, True).view(2, 1, GRID, GRID)
    assert outputs.region_masks.shape == (2, 3, 3, GRID, GRID)
    assert torch.equal(outputs.region_masks.ne(0).any(2), places.expand(-1, 3, -1, -1))
    if model.quantizer is not None:
        assert torch.equal(outputs.cluster_ids >= 0, places.expand(-1, 3, -1, -1))
        assert (outputs.cluster_ids[~places.expand(-1, 3, -1, -1)] == -1).all()


@pytest.mark.parametrize("options", [QUERIES, TRACKS], ids=["queries", "tracks"])
def test_queries_look_at_the_kept_patches_where_they_are(options):
    model = frozen(
        tiny_video_model(**options | {"region_layer": None, "interaction_layers": 0}, patch_dropout=0.5).double()
    )
    videos = clips(frames=3).double()
    kept = kept_patches(2, GRID**2 // 2, seed=1)
    torch.manual_seed(1)
    with torch.no_grad():
        outputs = model(videos)
        for clip, mask, regions, its in zip(videos, outputs.region_masks, outputs.region_states, kept):
            patches = naive.encoder(model, clip, its)[1:].view(1, 3, 1, len(its), -1)
            if model.temporal_embeddings is not None:
                patches = patches + model.temporal_embeddings[:, :3, None, None]
            literal, attention = literal_queries(
                model.region_module.aggregation, patches[0, :, 0], 4, its.tolist(), GRID
            )
            torch.testing.assert_close(regions, literal, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(mask.flatten(2)[:, :, its], attention.transpose(0, 1) * len(its))


@pytest.mark.parametrize("options", [{}, QUERIES, NO_REGIONS], ids=["decoupled", "queries", "no_regions"])
def test_evaluation_and_a_very_small_share_drop_no_patches(options):
    plain, dropping = tiny_video_model(**options), tiny_video_model(**options, patch_dropout=0.9)
    dropping.load_state_dict(plain.state_dict())
    videos = clips(frames=3)
    with torch.no_grad():
        assert torch.equal(plain(videos).pooler_output, dropping(videos).pooler_output)
        expected = frozen(plain)(videos)
        dropping.config.patch_dropout = 0.01  # less than half a patch
        found = frozen(dropping)(videos)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=1e-5, atol=1e-6)
    if expected.region_masks is not None:
        torch.testing.assert_close(found.region_masks, expected.region_masks, rtol=1e-5, atol=1e-6)


def test_at_least_one_patch_is_kept():
    model = tiny_video_model(patch_dropout=0.99).train()
    outputs = model(clips(frames=2))
    assert outputs.pooler_output.isfinite().all()
    assert (outputs.cluster_ids >= 0).sum((2, 3)).tolist() == [[1, 1], [1, 1]]


def test_masked_frames_have_no_influence():
    model = frozen(tiny_video_model(patch_dropout=0.5))
    videos = clips(frames=3)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    others = videos.clone()
    others[0, 2] = 5.0
    found = []
    for one in (videos, others):
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(model(one, frame_mask=mask).pooler_output)
    torch.testing.assert_close(*found)


def test_only_kept_patches_are_counted_by_the_codebook():
    model = tiny_video_model(patch_dropout=0.75).train()
    model(clips(frames=3))  # the first batch places the codes
    assert model.quantizer.cluster_sum.sum() == 0
    model(clips(frames=3))
    assert model.quantizer.cluster_sum.sum() == 2 * 3 * GRID**2 / 4


@pytest.mark.parametrize("options", [{}, QUERIES, TRACKS], ids=["decoupled", "queries", "tracks"])
def test_every_parameter_gets_a_gradient_even_with_checkpointing(options):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = tiny_model(**options, patch_dropout=0.5, token_dim=8)
        frozen(model.video_model)
        model.train()
        if checkpointing:
            checkpoint_activations(model)
        torch.manual_seed(3)
        model(**texts(), pixel_values_videos=clips(frames=3), return_loss=True).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    for name, gradient in gradients[0].items():
        if name.startswith("video_model") and "key_norm.bias" not in name:
            assert gradient is not None, name
            torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch_dropout": 1}, "patch_dropout=1 must be less than 1."),
        ({"patch_dropout": -0.1}, "patch_dropout=-0.1 must be at least 0."),
        ({"patch_dropout": 0.5, "backbone_config": {"model_type": "vit"}}, "leave it out with a backbone"),
    ],
)
def test_invalid_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        RegionLearnerVideoConfig(**values)

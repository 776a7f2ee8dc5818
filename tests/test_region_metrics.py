"""Tests of region quality metrics against hand-made masks and naive loops, of the report, and of the command."""

import itertools
import json
import logging
import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from region_learner.cli import main
from region_learner.corpora import CorpusError, load_corpus, load_masks, make_corpus
from region_learner.corpora.encoding import add_video_stream
from region_learner.evaluation import RegionMetrics, region_quality, region_quality_of_batches, region_report
from region_learner.evaluation.provenance import describe_model
from region_learner.evaluation.region_baselines import (
    BASELINES,
    _first_centers,
    baseline_masks,
    grid_masks,
    kmeans,
    moved_masks,
    record_patches,
)
from region_learner.evaluation.region_description import _read, draw_report, mask_report
from region_learner.evaluation.region_evaluation import _LabeledClips, align_label_maps
from region_learner.evaluation.region_metrics import region_metrics
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.region_masks import _otsu, are_normalized, region_focus
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_decoding_region_learner import read_clip
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor
from region_learner.visualization import frames_of_height, region_colors

from .conftest import NO_REGIONS, clips, tiny_model, tiny_text_config, tiny_video_model

SHARES = ("iou", "clip_iou", "pointing", "precision", "owned", "stability")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normalized(masks: torch.Tensor) -> torch.Tensor:
    return (2 * masks).flatten(-2).softmax(-1).view_as(masks) * masks.shape[-1] * masks.shape[-2]


def two_squares(frames: int = 3) -> torch.Tensor:
    """Returns label maps (T, 8, 10) of a square 1 that moves right and a square 2 that moves left."""
    labels = torch.zeros(frames, 8, 10, dtype=torch.uint8)
    for t in range(frames):
        labels[t, 1:4, t : t + 3] = 1
        labels[t, 5:8, 7 - t : 10 - t] = 2
    return labels


def masks_of(labels: torch.Tensor) -> torch.Tensor:
    """Returns masks (T, 2, H, W) that are 1 on an object and 0 elsewhere."""
    return torch.stack([(labels == n).float() for n in (1, 2)], dim=1)


# --- Hand-made masks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 7.0])
@pytest.mark.parametrize("scale", [3.0, -0.01])
def test_masks_that_are_the_objects(scale, offset):
    labels = two_squares()
    result = region_metrics(scale * masks_of(labels) + offset, labels)
    assert result == dict.fromkeys(SHARES, 100) | {"masks": 2}
    assert region_metrics(9 * masks_of(labels).double() / 9, labels, signed=False) == result


def test_normalized_masks_that_are_the_objects():
    labels = two_squares()
    masks = masks_of(labels) / masks_of(labels).mean((2, 3), keepdim=True)
    assert are_normalized(masks)
    assert region_metrics(masks, labels) == dict.fromkeys(SHARES, 100) | {"masks": 2}


def test_a_shifted_mask():
    labels = torch.zeros(2, 8, 10, dtype=torch.int64)
    labels[:, 2:6, 2:6] = 1
    for shift, precise in ((1, True), (2, False), (4, False)):
        result = region_metrics(torch.roll(labels, shift, 2)[:, None].float(), labels)
        shared = 4 * (4 - shift)
        assert [result["iou"], result["clip_iou"]] == pytest.approx([100 * shared / (32 - shared)] * 2)
        assert [result["pointing"], result["precision"]] == pytest.approx([100 * shared / 16] * 2)  # tied peaks
        assert result["owned"] == 100 * precise  # more than half of the mask
        assert result["stability"] == (100 if precise else None)


def test_a_region_has_to_follow_its_object():
    labels = two_squares(4)
    masks = masks_of(labels)
    swapped = masks.clone()
    swapped[2:] = masks[2:].flip(1)  # the regions swap places once
    result = region_metrics(swapped, labels)
    assert [result[name] for name in ("iou", "pointing", "precision", "owned")] == [100] * 4
    assert result["stability"] == pytest.approx(100 * 2 / 3)  # 2 of 3 steps, for both objects
    assert 50 <= result["clip_iou"] < 60  # right in half of the frames, and overlapping little in the others
    swapped[1::2], swapped[::2] = masks[1::2].flip(1), masks[::2]
    assert region_metrics(swapped, labels)["stability"] == 0


def test_an_object_hidden_for_a_while_counts_where_it_is_seen():
    labels = two_squares(3)
    labels[1][labels[1] == 2] = 0
    masks = masks_of(two_squares(3))
    metrics = RegionMetrics()
    metrics.update(masks, labels)
    assert metrics.sums["objects"] == 5
    result = metrics.compute()
    assert [result[name] for name in ("iou", "clip_iou", "owned", "stability")] == [100] * 4
    assert metrics.sums["followed"] == 2  # object 1 twice; object 2 is not seen in the middle
    assert result["precision"] == pytest.approx(100 * 5 / 6)  # in the middle, region 2 looks at nothing


def test_one_region_on_two_objects_owns_the_larger_part_only():
    labels = two_squares(1)
    both = (labels > 0).float()[:, None]
    result = region_metrics(both, labels)
    assert result["owned"] == 0  # half and half: no majority
    assert result["iou"] == 50
    labels[0, 5, 7:] = 0
    result = region_metrics(both, labels)
    assert result["owned"] == 0  # 9 of 18 pixels
    both[0, 0, 5, 7:] = 0
    assert region_metrics(both, labels)["owned"] == 50  # 9 of 15


def test_peaks_of_several_regions():
    labels = two_squares(1)
    masks = torch.zeros(1, 3, 8, 10)
    for region, (row, column) in enumerate([(2, 1), (3, 2), (0, 9)]):  # two on object 1, one on nothing
        masks[0, region, row, column] = (-1.0) ** region
    result = region_metrics(masks, labels)
    assert result["pointing"] == 50
    assert result["precision"] == pytest.approx(100 * 2 / 3)
    assert result["owned"] == 50


def test_uniform_masks_score_at_chance():
    labels = two_squares()
    share = 9 / 80
    for masks, signed in ((torch.ones(3, 4, 4, 5), False), (torch.full((3, 4, 4, 5), -0.3), True)):
        result = region_metrics(masks, labels.repeat_interleave(2, 1).repeat_interleave(2, 2), signed)
        assert [result["iou"], result["clip_iou"]] == pytest.approx([100 * share] * 2)
        assert result["owned"] == 0
        assert result["stability"] is None
    result = region_metrics(torch.ones(3, 4, 8, 10), labels, False)  # one position per pixel
    assert result["pointing"] == pytest.approx(100 * (1 - (1 - share) ** 4))
    assert result["precision"] == pytest.approx(100 * 2 * share)
    nothing = region_metrics(torch.zeros(3, 4, 8, 10), labels, signed=False)
    assert nothing == dict.fromkeys(SHARES, 0) | {"precision": None, "stability": None, "masks": 4}


def test_a_peak_between_pixels_is_in_all_of_them():
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[0, 1, 1] = labels[0, 1, 2] = 1
    for row, column, expected in ((0, 0, 25), (0, 1, 25), (1, 1, 0)):  # centers at (1, 1), (1, 3), (3, 3)
        mask = torch.zeros(1, 1, 2, 2)
        mask[0, 0, row, column] = 1
        assert region_metrics(mask, labels)["pointing"] == expected


def test_an_object_between_the_sampled_points_is_ignored():
    labels = torch.zeros(1, 64, 64, dtype=torch.int64)
    labels[0, 16, 16] = 1  # at the center of a position, but on none of the sampled points
    labels[0, 32:, 32:] = 2
    masks = torch.zeros(1, 2, 2, 2)
    masks[0, 0, 0, 0] = masks[0, 1, 1, 1] = 1
    found = region_metrics(masks, labels)
    assert (found["pointing"], found["precision"]) == (100, 50)


# --- Naive loops ---------------------------------------------------------------------------------------------


def naive_otsu(values) -> float:
    """Returns the midpoint between two neighboring values that minimizes the variance within the two sides."""
    ordered = sorted({float(value) for value in values})
    best = None
    for low, high in itertools.pairwise(ordered):
        cut = (low + high) / 2
        sides = [[v for v in values if v <= cut], [v for v in values if v > cut]]
        within = sum(len(side) * np.var(side) for side in sides)
        if best is None or within < best[0]:
            best = within, cut
    return best[1]


def naive_bilinear(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    result = np.zeros((height, width))
    for i, j in np.ndindex(height, width):
        y = min(max((i + 0.5) * mask.shape[0] / height - 0.5, 0), mask.shape[0] - 1)
        x = min(max((j + 0.5) * mask.shape[1] / width - 0.5, 0), mask.shape[1] - 1)
        for r, c in np.ndindex(*mask.shape):
            result[i, j] += max(0, 1 - abs(y - r)) * max(0, 1 - abs(x - c)) * mask[r, c]
    return result


def naive_metrics(masks: np.ndarray, labels: np.ndarray, signed: bool) -> dict[str, float]:
    """Computes the metrics of masks (B, T, S, h, w) and label maps (B, T, H, W), one object and frame at a time."""
    (_, _, regions, h, w), (batch, frames, height, width) = masks.shape, labels.shape
    ious, clip_ious, points, owned, followed, hits = [], [], [], [], [], []
    for b in range(batch):
        inside, weight, peak = {}, {}, {}
        for t, s in np.ndindex(frames, regions):
            mask = masks[b, t, s] - (masks[b, t, s].mean() if signed else 0)
            small, large = mask, naive_bilinear(mask, height, width)
            weight[t, s], coarse = (abs(large), abs(small)) if signed else (large, small)
            inside[t, s] = weight[t, s] > naive_otsu(coarse.flatten())
            r, c = np.unravel_index(coarse.argmax(), coarse.shape)
            peak[t, s] = int((r + 0.5) * height / h), int((c + 0.5) * width / w)  # odd cells, so inside a pixel
        for t in range(frames):
            if labels[b, t].any():
                hits += [labels[b, t][peak[t, s]] > 0 for s in range(regions)]
        for n in range(1, labels.max() + 1):
            seen = [t for t in range(frames) if (labels[b, t] == n).any()]
            iou, owners = {}, {}
            for t in seen:
                thing = labels[b, t] == n
                for s in range(regions):
                    iou[t, s] = (inside[t, s] & thing).sum() / (inside[t, s] | thing).sum()
                owners[t] = [
                    s
                    for s in range(regions)
                    if weight[t, s][inside[t, s] & thing].sum() > weight[t, s][inside[t, s]].sum() / 2
                ]
                ious.append(max(iou[t, s] for s in range(regions)))
                points.append(any(thing[peak[t, s]] for s in range(regions)))
                owned.append(bool(owners[t]))
            for t in seen:
                if t + 1 in seen and owners[t]:
                    followed.append(max(owners[t], key=lambda s: iou[t, s]) in owners[t + 1])
            if seen:
                best = max(np.mean([iou[t, s] for t in seen]) for s in range(regions))
                clip_ious += [best] * len(seen)
    values = (ious, clip_ious, points, hits, owned, followed)
    return {name: 100 * np.mean(value) for name, value in zip(SHARES, values)}


@pytest.mark.parametrize("signed", [True, False])
def test_against_a_naive_loop(signed):
    masks = random(6, 3, 4, 5, 6)
    coarse = torch.randint(0, 9, (6, 3, 4, 5), generator=torch.Generator().manual_seed(1))
    coarse[coarse > 3] = 0
    coarse[0, 1] = 0  # a frame without objects
    labels = coarse.repeat_interleave(4, 2)[:, :, :15].repeat_interleave(4, 3)[:, :, :, :18]  # 3 pixels per position
    for n in (1, 2, 3):  # masks follow objects now and then, or nothing would be owned
        follow = torch.nn.functional.interpolate((labels == n).double(), size=(5, 6), mode="area")
        masks[:, :, n] += 5 * follow * torch.tensor([1.0, -1.0 if signed else 0.7, 0.5]).view(3, 1, 1)
    masks = masks if signed else normalized(masks)
    expected = naive_metrics(masks.numpy(), labels.numpy(), signed)
    assert all(0 < value < 100 for value in expected.values())
    result = region_metrics(masks, labels)
    assert result == {name: pytest.approx(value) for name, value in expected.items()} | {"masks": 4}
    # clips one by one, as NumPy arrays, and in single precision
    metrics = RegionMetrics(signed)
    for clip, its_labels in zip(masks.numpy(), labels.numpy().astype(np.uint8)):
        metrics.update(clip, its_labels)
    assert metrics.compute() == pytest.approx(result)
    assert region_metrics(masks.float(), labels) == pytest.approx(result)


def test_neither_sign_scale_nor_offset_of_raw_masks_matters():
    masks, labels = random(2, 3, 4, 5, 6), torch.randint(0, 4, (2, 3, 20, 24))
    expected = region_metrics(masks, labels)
    generator = torch.Generator().manual_seed(5)
    scale = torch.randn(4, 1, 1, generator=generator)
    offset = 10 * torch.randn(2, 3, 4, 1, 1, generator=generator)  # a different one in each frame
    assert region_metrics(-masks, labels) == expected
    assert region_metrics(scale * masks + offset, labels) == pytest.approx(expected)
    assert torch.equal(region_focus(-masks).areas(), region_focus(masks).areas())
    torch.testing.assert_close(
        region_focus(scale * masks + offset).distributions(), region_focus(masks).distributions()
    )


def test_only_high_values_of_normalized_masks_count():
    masks = torch.full((1, 4, 4), 1.1)
    masks[0, 0, 0] = 1 - 1.5
    masks = masks - masks.min()  # a uniform mask with a hole of zero
    masks = masks / masks.mean()
    assert region_focus(masks).areas().sum() == 15
    assert region_focus(masks - 1).areas().sum() == 1  # in a raw mask, the hole is what stands out
    assert not are_normalized(masks - 1)
    assert not are_normalized(2 * masks)
    lost = torch.cat([masks, masks, 0.1 * masks])  # a region that lost the whole frame to others
    assert are_normalized(lost)


def test_a_raw_mask_that_deviates_equally_everywhere():
    halves = torch.tensor([0.3, 0.7]).repeat(6).view(1, 3, 4)
    assert region_focus(halves).areas().all()
    assert region_focus(1000 - 7 * halves).areas((6, 8)).all()
    assert region_focus(halves, signed=False).areas().equal(halves > 0.5)
    assert region_focus(halves).areas((6, 8)).shape == (1, 6, 8)


def test_otsu_against_a_naive_search():
    for seed, n in enumerate([2, 3, 7, 30] * 3):
        values = random(5, n, seed=seed).abs()
        assert _otsu(values).squeeze(1).tolist() == pytest.approx([naive_otsu(row) for row in values.numpy()])
    assert _otsu(torch.tensor([[0.0] * 30 + [1.0]])).item() == 0.5


def test_fine_label_maps_are_subsampled():
    masks, labels = random(2, 3, 4, 3, 5), torch.randint(0, 4, (2, 3, 24, 40))  # 8 pixels per position
    finer = labels.repeat_interleave(5, 2).repeat_interleave(5, 3)
    assert region_metrics(masks, finer) == pytest.approx(region_metrics(masks, labels))


def test_bad_masks_and_label_maps():
    masks, labels = random(2, 3, 4, 5), torch.zeros(2, 8, 10, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"No object is visible in the label maps of 1 clips"):
        region_metrics(masks, labels)
    for wrong in (labels[:1], labels[:, :3], labels[None]):
        with pytest.raises(ValueError, match=r"need label maps"):
            region_metrics(masks, wrong)
    for wrong in (labels.float(), labels > 0):
        with pytest.raises(ValueError, match=f"Label maps must be integers, got {wrong.dtype}"):
            region_metrics(masks, wrong)
    with pytest.raises(ValueError, match=r"not finite"):
        region_metrics(masks / 0, labels)
    with pytest.raises(ValueError, match=r"must not have negative values"):
        region_metrics(masks, labels, signed=False)
    with pytest.raises(ValueError, match=r"floating-point numbers of shape .* of torch.int64"):
        region_focus(labels).distributions()


# --- Baseline masks ------------------------------------------------------------------------------------------


def test_grids():
    for regions, rows, columns in ((8, 2, 4), (3, 1, 3), (4, 2, 2), (7, 1, 7), (1, 1, 1)):
        masks = grid_masks(regions, 14, 84)
        assert masks.shape == (regions, 14, 84)
        assert (masks.sum(0) == 1).all()
        assert all(mask.sum() == 14 * 84 / regions for mask in masks)
        assert masks[0, : 14 // rows, : 84 // columns].all()
    assert region_focus(grid_masks(8, 14, 14), False).areas().equal(grid_masks(8, 14, 14) > 0)


def test_moved_masks_keep_their_values():
    masks = random(3, 2, 4, 5)
    moved = moved_masks(masks, torch.Generator().manual_seed(0))
    assert moved.flatten(2).sort().values.equal(masks.flatten(2).sort().values)
    shifts = set()
    for mask, other in zip(masks.flatten(0, 1), moved.flatten(0, 1)):
        found = [s for s in np.ndindex(4, 5) if torch.roll(mask, s, (0, 1)).equal(other)]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) > 3


def test_kmeans_against_sklearn():
    sklearn = pytest.importorskip("sklearn.cluster")
    features = random(3, 60, 5) + 3 * random(3, 4, 5, seed=1).repeat_interleave(15, 1)
    clusters = kmeans(features, 4)
    for clip, found in zip(features, clusters):
        centers = _first_centers((clip - clip.mean(0)).float()[None], 4, 0)[0] + clip.mean(0)
        other = sklearn.KMeans(4, init=centers.numpy(), n_init=1, tol=0).fit(clip.numpy())
        assert found.tolist() == other.labels_.tolist()


def test_kmeans_improves_and_treats_clips_independently():
    features = random(3, 50, 4)

    def inertia(clusters: torch.Tensor) -> float:
        return sum(
            float((clip[found == k] - clip[found == k].mean(0)).square().sum())
            for clip, found in zip(features, clusters)
            for k in found.unique()
        )

    inertias = [inertia(kmeans(features, 5, iterations)) for iterations in range(12)]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(inertias))
    assert inertias[-1] < inertias[0]
    assert kmeans(features, 5)[1:2].equal(kmeans(features[1:2], 5))
    assert kmeans(features + 1000, 5).equal(kmeans(features, 5))
    # as many clusters as features, and fewer distinct features than clusters
    assert sorted(kmeans(features[:1, :5], 5)[0].tolist()) == list(range(5))
    assert kmeans(torch.ones(1, 6, 2), 3).unique().numel() == 1
    with pytest.raises(ValueError, match="k=3 clusters need at least as many features, got 2"):
        kmeans(torch.ones(1, 2, 2), 3)


@pytest.mark.parametrize("fusion", ["attention", "pool"])
def test_baselines_against_recorded_outputs(fusion):
    model = tiny_video_model(temporal_fusion=fusion)
    model.set_attn_implementation("eager")
    videos = clips(2, 3)
    with torch.no_grad():
        model(videos, output_hidden_states=True, output_attentions=True)  # transformers leaves its own hooks
    hooked = model.region_module, model.layers[-1].space_attention
    hooks = [len(module._forward_pre_hooks) for module in hooked]
    with torch.no_grad(), record_patches(model) as record:
        outputs = model(videos, output_hidden_states=True, output_attentions=True)
        masks = outputs.region_masks
        labels = torch.zeros(2, 3, 32, 32, dtype=torch.int64)
        baselines = {name: baseline_masks(name, model, record, masks, labels, 0) for name in BASELINES}
    patches = outputs.hidden_states[-1][:, 1:].reshape(2, 3 * 16, -1)
    expected = kmeans(patches, 3).view(2, 3, 4, 4)
    assert baselines["kmeans"].argmax(2).equal(expected)
    assert (baselines["kmeans"].sum(2) == 1).all()
    attentions = outputs.attentions[-1]
    for b, t, head in np.ndindex(2, 3, 4):
        row = attentions[b, head, 0, 1 + 16 * t :] if fusion == "attention" else attentions[3 * b + t, head, 0, 1:]
        torch.testing.assert_close(baselines["cls_attention"][b, t, head], row[:16].view(4, 4))
    assert all(mask.shape[:2] + mask.shape[3:] == (2, 3, 4, 4) for mask in baselines.values())
    assert [len(module._forward_pre_hooks) for module in hooked] == hooks


# --- Models and label maps -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    sizes = {"train": 5, "val": 0, "test": 0, "test_unseen": 0, "size": 64, "frames": 7, "objects": [1, 3]}
    directory = make_corpus(
        "moving_shapes", tmp_path_factory.mktemp("shapes") / "corpus", workers=1, progress=False, **sizes
    )
    return load_corpus("moving_shapes", directory)


@pytest.fixture(scope="module")
def video_processor():
    return RegionLearnerVideoProcessor.for_image_size(32, num_frames=4)


PROCESSORS = {
    "default": {},
    "no crop": {"size": {"height": 40, "width": 56}, "do_center_crop": False, "output_size": None},
    "crop of native pixels": {"do_resize": False, "crop_size": 40},
    "cropped and enlarged": {"size": {"shortest_edge": 40}, "crop_size": 30, "output_size": 48},
}


def painted(frames: int, height: int, width: int) -> np.ndarray:
    """Returns label maps of a picture that differs from frame to frame and is not symmetric."""
    labels = np.zeros((frames, height, width), dtype=np.uint8)
    for t in range(frames):
        labels[t, height // 8 : height // 2, width // 6 + 2 * t : width // 2 + 2 * t] = 1
        labels[t, height // 2 + t : height - 9 + t, width // 3 : width - 12] = 2
        labels[t, : height // 5, width - 25 - t :] = 3
    return labels


def in_colours(labels: np.ndarray) -> np.ndarray:
    """Returns frames (T, H, W, 3) of label maps: 0 in black; 1, 2 and 3 in red, green and blue."""
    return 255 * (labels[..., None] == np.array([1, 2, 3])).astype(np.uint8)


def check_match(clip: torch.Tensor, labels: torch.Tensor | np.ndarray, least: float = 1.0):
    """Asserts that a share of at least `least` of the clear pixels of a clip (T, 3, H, W) match the label maps."""
    labels = torch.as_tensor(labels)
    assert labels.shape == clip[:, 0].shape
    strongest, channel = clip.max(1)
    shown = torch.where(strongest > 0.5, channel + 1, 0)
    clear = ((clip > 0.8) | (clip < 0.2)).all(1)  # not at an edge
    assert clear.double().mean() > 0.8
    assert len(shown[clear].unique()) >= 3
    assert (shown == labels)[clear].double().mean() >= least
    assert (shown == labels).double().mean() > 0.985  # few pixels at edges have the label of the other side


@pytest.mark.parametrize("name", PROCESSORS)
def test_label_maps_are_transformed_like_pixels(name):
    processor = RegionLearnerVideoProcessor.for_image_size(48, num_frames=4, do_normalize=False)
    processor = RegionLearnerVideoProcessor(**processor.to_dict() | PROCESSORS[name])
    labels = painted(7, 72, 96)
    taken, metadata = processor.decode(in_colours(labels))
    assert metadata.frames_indices == [0, 1, 3, 5]
    clip = processor([taken], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"][0]
    check_match(clip, align_label_maps(processor, labels, metadata.frames_indices))
    with pytest.raises(AssertionError):  # the check can fail
        check_match(clip, align_label_maps(processor, labels[:, :, ::-1], metadata.frames_indices))


def test_label_maps_of_encoded_videos(tmp_path):
    labels = painted(7, 72, 96)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = add_video_stream(container, "mpeg4", rate=8, options={"qmin": "1", "qmax": "2"})
        stream.height, stream.width, stream.pix_fmt = 72, 96, "yuv420p"
        for frame in in_colours(labels):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    np.savez(tmp_path / "a.npz", masks=labels)
    row = {"video": str(tmp_path / "a.mp4"), "video_id": "a", "masks": str(tmp_path / "a.npz")}
    processor = RegionLearnerVideoProcessor.for_image_size(48, num_frames=4, do_normalize=False)
    clip, its_labels = _LabeledClips([row], processor)[0]
    assert clip.equal(processor([row["video"]], return_tensors="pt")["pixel_values_videos"][0])
    check_match(clip, its_labels, 0.99)
    np.savez(tmp_path / "a.npz", masks=labels[:5])
    with pytest.raises(ValueError, match=r"Video 'a' has frames of shape \(7, 72, 96\), but label maps of \(5,"):
        _LabeledClips([row], processor)[0]


def test_label_maps_of_moving_shapes(shapes):
    """Objects are more colorful than the muted background, so label maps must cover the colorful pixels."""
    processor = RegionLearnerVideoProcessor.for_image_size(64, num_frames=3, do_normalize=False)
    for row in shapes:
        clip, labels = _LabeledClips([row], processor)[0]
        assert labels.shape == (3, 64, 64)
        saturation = clip.amax(1) - clip.amin(1)
        if all(thing["colour"] != "white" and thing["texture"] == "plain" for thing in row["objects"]):
            assert saturation[labels > 0].mean() > saturation[labels == 0].mean() + 0.2
    clip, labels = _LabeledClips([shapes[0]], processor)[0]
    _, metadata = processor.decode(shapes[0]["video"])
    assert labels.equal(torch.from_numpy(load_masks(shapes[0]))[metadata.frames_indices])


def test_quality_on_a_corpus(shapes, video_processor):
    model = tiny_model()
    model.train()
    result = region_quality(model, video_processor, shapes, batch_size=2, progress=False)
    assert model.training
    model.eval()
    batch = [_LabeledClips(shapes.to_list(), video_processor)[i] for i in range(5)]
    videos, labels = (torch.stack(part) for part in zip(*batch))
    with torch.no_grad():
        masks = model.video_model(videos).region_masks
    assert result["learned"] == pytest.approx(region_metrics(masks, labels))
    seen = sum(int((labels[b, t] == n).any()) for b, t, n in np.ndindex(5, 4, 4) if n)
    assert {name: result[name] for name in ("clips", "frames", "objects", "unreadable")} == {
        "clips": 5, "frames": 20, "objects": seen, "unreadable": []
    }  # fmt: skip
    assert list(result) == ["clips", "frames", "objects", "learned", *BASELINES, "unreadable"]
    json.dumps(result)
    # the IoU of a whole frame with an object is the area of the object
    areas = [(labels[b, t] == n).double().mean() for b, t, n in np.ndindex(5, 4, 4) if n]
    assert result["uniform"]["iou"] == pytest.approx(100 * float(sum(areas)) / seen)
    assert result["oracle"]["iou"] > 1.5 * max(result[name]["iou"] for name in BASELINES if name != "oracle")
    assert result["cls_attention"]["masks"] == 4
    # the batch size, workers, and passing only the video tower make no difference
    again = region_quality(model.video_model, video_processor, shapes, batch_size=5, num_workers=1, progress=False)
    for name in ("learned", *BASELINES):
        assert again[name] == pytest.approx(result[name])
    fewer = region_quality_of_batches(model, [(videos[:2], labels[:2]), (videos[2:], labels[2:])], ["kmeans"])
    assert fewer == {name: pytest.approx(result[name]) for name in ("clips", "frames", "objects", "learned", "kmeans")}


def test_quality_leaves_out_what_is_unreadable(shapes, video_processor, tmp_path, caplog):
    model = tiny_model()
    rows = shapes.to_list()
    (tmp_path / "damaged.mp4").write_bytes(b"not a video")
    damaged = [rows[0] | {"video": str(tmp_path / "damaged.mp4")}, *rows[1:4], rows[4] | {"masks": "nowhere.npz"}]
    with caplog.at_level(logging.WARNING):
        result = region_quality(model, video_processor, damaged, batch_size=2, progress=False, baselines=())
    expected = region_quality(model, video_processor, rows[1:4], progress=False, baselines=())
    assert result.pop("learned") == pytest.approx(expected.pop("learned"))
    assert result == expected | {"unreadable": [rows[0]["video_id"], rows[4]["video_id"]]}
    assert "2 of 5 videos cannot be read" in caplog.text
    assert "the label maps nowhere.npz do not exist" in caplog.text
    with pytest.raises(ValueError, match=r"None of the 1 videos can be read; the first: .*damaged.mp4"):
        region_quality(model, video_processor, damaged[:1], progress=False)


def test_quality_bad_input(shapes, video_processor):
    with pytest.raises(ValueError, match="no regions to measure: its num_regions is 0"):
        region_quality(tiny_model(**NO_REGIONS), video_processor, shapes)
    with pytest.raises(ValueError, match="no column 'masks': use a built-in corpus"):
        region_quality(tiny_model(), video_processor, shapes.remove_columns("masks"))
    with pytest.raises(ValueError, match="no rows"):
        region_quality(tiny_model(), video_processor, [])
    with pytest.raises(ValueError, match="'luck' is not a baseline \\(baselines: uniform, grid"):
        region_quality(tiny_model(), video_processor, shapes, progress=False, baselines=["luck"])
    with pytest.raises(ValueError, match="No object is visible in the label maps of 0 clips"):
        region_quality_of_batches(tiny_model(), [])


# --- The report ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [True, False])
def test_report_against_a_naive_loop(signed):
    masks = random(2, 3, 4, 5, 6)
    masks = masks if signed else normalized(masks)
    codes = torch.randint(0, 7, (2, 3, 5, 6))
    report = mask_report(masks, codes)
    assert report["masks"] == ("raw" if signed else "normalized")
    names = ("area", "overlap", "entropy", "difference", "change")
    values = {(name, s): [] for name in names for s in range(4)}
    covered = []
    weights = []
    for b, t in np.ndindex(2, 3):
        inside, before, weights = [], weights, []
        for s in range(4):
            mask = masks[b, t, s].numpy().flatten()
            weight = abs(mask - mask.mean()) if signed else mask
            inside.append(weight > naive_otsu(weight))
            weights.append(weight / weight.sum())
        covered.append(np.mean(np.any(inside, axis=0)))
        for s in range(4):
            others = [o for o in range(4) if o != s]
            values["area", s].append(np.mean(inside[s]))
            values["entropy", s].append(-sum(p * math.log(p) for p in weights[s] if p > 0) / math.log(30))
            values["overlap", s].append(
                np.mean([(inside[s] & inside[o]).sum() / (inside[s] | inside[o]).sum() for o in others])
            )
            values["difference", s].append(np.mean([abs(weights[s] - weights[o]).sum() / 2 for o in others]))
            if t:
                values["change", s].append(abs(weights[s] - before[s]).sum() / 2)
    expected = [{name: pytest.approx(100 * np.mean(values[name, s])) for name in names} for s in range(4)]
    assert report["regions"] == expected
    for name in names:
        assert report[name] == pytest.approx(100 * np.mean([np.mean(values[name, s]) for s in range(4)]))
    assert report["coverage"] == pytest.approx(100 * np.mean(covered))
    shares = np.bincount(codes.flatten().numpy()) / codes.numel()
    assert report["codes"] == (shares > 0).sum()
    assert report["perplexity"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares if p > 0)))


def test_report_of_known_masks():
    masks = grid_masks(4, 4, 4).expand(2, 3, -1, -1, -1) * 4
    report = mask_report(masks, torch.zeros(2, 3, 4, 4, dtype=torch.int64))
    assert report["masks"] == "normalized"
    assert report["coverage"] == report["difference"] == 100
    assert report["area"] == 25
    assert report["overlap"] == report["change"] == 0
    assert report["entropy"] == pytest.approx(50)  # log 4 / log 16
    assert report["codes"] == report["perplexity"] == 1
    report = mask_report(torch.ones(1, 1, 2, 4, 4))
    assert report["coverage"] == report["overlap"] == report["area"] == 100
    assert report["entropy"] == pytest.approx(100)
    assert report["difference"] == 0
    assert report["change"] is report["codes"] is report["perplexity"] is None
    alone = mask_report(random(1, 2, 1, 4, 4))
    assert alone["overlap"] is alone["difference"] is alone["regions"][0]["overlap"] is None
    with pytest.raises(ValueError, match=r"\(B, T, S, h, w\), not \(2, 3, 4\)"):
        mask_report(torch.ones(2, 3, 4))


def test_report_of_a_model():
    model, videos = tiny_model(), clips(20)
    model.train()
    report = region_report(model, videos)
    assert model.training
    model.eval()
    with torch.no_grad():
        outputs = model.video_model(videos)
    expected = mask_report(outputs.region_masks, outputs.cluster_ids)
    assert report["regions"] == [pytest.approx(row) for row in expected["regions"]]
    assert report["perplexity"] == pytest.approx(expected["perplexity"])
    assert (report["clips"], report["frames"], len(report["regions"])) == (20, 4, 3)
    assert report["codes"] == outputs.cluster_ids.unique().numel()
    assert region_report(model.video_model, videos) == report
    assert region_report(tiny_model(codebook_size=0), videos)["codes"] is None
    with pytest.raises(ValueError, match="its num_regions is 0"):
        region_report(tiny_model(**NO_REGIONS), videos)
    with pytest.raises(ValueError, match="`codebook_use` measures how much"):
        region_report(tiny_model(num_regions=0, interaction_layers=0), videos)


# --- The command ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processor(shapes, video_processor):
    words = [text for captions in shapes["captions"] for text in captions]
    return RegionLearnerProcessor(video_processor, train_tokenizer(words, 200, 32))


def save(directory, processor, **options):
    tiny_model(text=tiny_text_config(vocab_size=200), **options).save_pretrained(directory)
    processor.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, processor):
    return save(tmp_path_factory.mktemp("checkpoint"), processor)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["regions", *arguments])
    return end.value.code, *capsys.readouterr()


def test_command(checkpoint, processor, shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    videos = list(shapes["video"][:2])
    code, out, _ = run(capsys, checkpoint, *videos, "--json")
    assert code == 0
    report = json.loads(out)
    model = tiny_model(text=tiny_text_config(vocab_size=200))
    expected = region_report(model, processor(videos=videos)["pixel_values_videos"])
    assert report["regions"] == [pytest.approx(row) for row in expected["regions"]]
    assert {k: v for k, v in report.items() if k != "regions"} == {
        k: pytest.approx(v) if isinstance(v, float) else v for k, v in expected.items() if k != "regions"
    }

    picture = tmp_path / "regions.png"
    code, out, errors = run(capsys, checkpoint, videos[0], "--output", str(picture))
    assert code == 0
    assert errors.splitlines()[-1] == f"Wrote {picture}"
    report = region_report(model, processor(videos=videos[:1])["pixel_values_videos"])
    for number, row in enumerate(report["regions"], start=1):
        cells = [f"{value:.2f}" for value in row.values()]
        assert any(line.replace("│", " ").split() == [str(number), *cells] for line in out.splitlines())
    assert f"{report['coverage']:.2f}" in out
    assert f"{report['perplexity']:.2f}" in out
    assert np.array_equal(np.asarray(Image.open(picture)), np.asarray(draw_report(model, processor, videos[0])))

    code, _, errors = run(capsys, checkpoint, *videos, "--output", str(picture))
    assert code == 0
    written = [tmp_path / f"regions-{number}-{Path(video).stem}.png" for number, video in enumerate(videos, start=1)]
    assert errors.splitlines()[-2:] == [f"Wrote {file}" for file in written]
    for file, video in zip(written, videos):
        assert np.array_equal(np.asarray(Image.open(file)), np.asarray(draw_report(model, processor, video)))


def test_pictures_of_regions_have_times_and_a_legend(processor, shapes):
    """The time of each frame is below it, if the video has times. The legend has the color of every region."""
    model = tiny_model(text=tiny_text_config(vocab_size=200))
    (video,), height = shapes["video"][:1], 88
    text = height // 8
    picture = np.asarray(draw_report(model, processor, video, height)).astype(int)
    frames, _ = read_clip(video, lambda metadata, **_: range(metadata.total_num_frames))
    without = np.asarray(draw_report(model, processor, frames, height)).astype(int)
    assert len(picture) == len(without) + 2 * text
    clip, _, times = _read(processor.video_processor, video, height)
    decoded, metadata = read_clip(video, lambda metadata, **_: processor.video_processor.sample_frames(metadata))
    assert times == metadata.timestamps
    assert len(times) == len(decoded) == clip.shape[1]
    below = picture[2 * text + height : 4 * text + height, text:]
    width = clip.shape[1] * height
    for left in range(0, width, height):  # black letters on white, in every column
        assert below[:, left : left + height].min() < 100
    assert (below == 255).mean() > 0.8
    for color in region_colors(model.config.video_config.num_regions):
        for image in (picture, without):
            assert (image == color).all(-1).sum() >= 2 * text


def test_command_with_a_corpus(checkpoint, processor, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # wide enough that nothing is cut off
    options = {"train": 1, "val": 1, "test": 3, "test_unseen": 0, "size": 64, "frames": 4, "fps": 4}
    arguments = [checkpoint, "--corpus", "moving_shapes", "--corpus-options", json.dumps(options), "--batch-size", "2"]
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0
    model = tiny_model(text=tiny_text_config(vocab_size=200))
    rows = load_corpus("moving_shapes", split="test", **options)
    expected = region_quality(model, processor, rows, batch_size=2, progress=False)
    assert json.loads(out) == {"model": describe_model(model, str(checkpoint))} | expected
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    for name in ("learned", "uniform"):  # uniform masks own nothing, so they have no stability
        values = ["-" if value is None else value for value in expected[name].values()]
        cells = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in values]
        assert any(line.split() == [name, *cells] for line in out.splitlines())
    assert any(line.replace("│", " ").split() == ["clips", "3"] for line in out.splitlines())


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise CorpusError("Video 'a' has no label maps: make them.\nOr: take another one.")


def test_errors_of_loaders_are_one_line(monkeypatch, checkpoint, capsys):
    def fail(*_, **__):
        list(torch.utils.data.DataLoader(Broken(), num_workers=1))

    monkeypatch.setattr("region_learner.evaluation.region_quality", fail)
    code, _, error = run(
        capsys, checkpoint, "--corpus", "moving_shapes", "--corpus-options", '{"test": 1, "train": 1}'
    )
    assert code == 2
    assert error.splitlines()[-1] == (
        "region-learner: error: Video 'a' has no label maps: make them. Or: take another one."
    )


def test_pictures(shapes, video_processor):
    video = shapes["video"][0]
    model = tiny_video_model()
    picture = draw_report(model, video_processor, video, height=48)
    without_codes = draw_report(tiny_video_model(codebook_size=0), video_processor, video, height=48)
    assert without_codes.height < picture.height
    # With native pixels (no resizing), the picture has the same size.
    native = RegionLearnerVideoProcessor(num_frames=4, do_resize=False, crop_size=64)
    assert draw_report(model, native, video, height=48).size == picture.size


def test_pictures_show_what_the_model_sees(shapes):
    """Pictures show the part of the frame that the model sees, in finer pixels, even with a non-default crop."""
    processor = RegionLearnerVideoProcessor(num_frames=2, size={"shortest_edge": 64}, crop_size=32, output_size=32)
    frames = painted(2, 96, 96)
    seen = processor([in_colours(frames)], return_tensors="pt", do_normalize=False)["pixel_values_videos"][0]
    fine = torch.tensor(frames_of_height(processor, in_colours(frames), 96, seen.shape[-2])).permute(0, 3, 1, 2) / 255
    pooled = torch.nn.functional.avg_pool2d(fine, 3)
    assert (pooled - seen).abs().mean() < 0.02


def test_command_errors(checkpoint, processor, shapes, tmp_path, capsys):
    video = shapes[0]["video"]
    (tmp_path / "damaged.mp4").write_bytes(b"not a video")
    without = save(tmp_path / "without", processor, **NO_REGIONS)
    of_text_alone = save(tmp_path / "text", processor)
    weights = load_file(f"{of_text_alone}/model.safetensors")
    del weights["video_model.embeddings.cls_token"]
    save_file(weights, f"{of_text_alone}/model.safetensors", {"format": "pt"})
    of_corpus = [checkpoint, "--corpus", "moving_shapes", "--corpus-options"]
    for arguments, message in (
        ([without, video], "no regions to measure: its num_regions is 0"),
        ([checkpoint, video, str(tmp_path / "damaged.mp4")], "damaged.mp4: "),
        ([checkpoint, "nowhere.mp4"], "There is no file nowhere.mp4."),
        ([checkpoint, video, "--output", str(tmp_path / "a.txt")], "does not have the extension of an image file"),
        ([checkpoint, video, "--output", str(Path(video) / "a.png")], "File exists"),
        ([checkpoint], "Give either videos or --corpus"),
        ([checkpoint, video, "--corpus", "moving_shapes"], "Give either videos or --corpus"),
        ([checkpoint, "--corpus", "moving_shapes", "--output", "a.png"], "--output does not work with --corpus"),
        ([of_text_alone, video], "that the video tower needs are missing or of another shape (video_model."),
        ([checkpoint, video, "--split", "val"], "--split needs --corpus"),
        ([*of_corpus, '{"split": "val"}'], "--corpus-options takes options of the corpus, not split"),
    ):
        code, out, error = run(capsys, *arguments)
        assert (code, out) == (2, "")
        lines = [line for line in error.splitlines() if "error: " in line]
        assert len(lines) == 1
        assert message in lines[0]

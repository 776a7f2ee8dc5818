"""Tests for phrase grounding: the regions and heat maps of phrases, the metrics against naive loops, and pictures."""

import itertools
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from region_learner.cli import main
from region_learner.corpora import CorpusError, load_corpus, load_masks, make_corpus, object_phrases
from region_learner.evaluation import Views, align_label_maps, draw_phrases, grounding_accuracy, read_results
from region_learner.evaluation.grounding import scores_of_heat_maps
from region_learner.model_card import model_card
from region_learner.modeling_region_learner import RegionLearnerOutput, RegionLearnerVideoOutput
from region_learner.phrase_maps import EmbeddedPairs, embed_pairs, find_phrases, find_words, phrase_focus
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor
from region_learner.visualization import draw_heat_maps

from .conftest import NO_REGIONS, clips, tiny_model, tiny_text_config
from .test_region_metrics import naive_bilinear, naive_otsu

TEXT = "a red square, and a blue-ish circle drifting"
FORMS = {
    "queries": {"region_form": "queries", "codebook_size": 0, "num_regions": 5, "interaction_layers": 0},
    "decoupled": {},
    "paper": {"region_form": "paper"},
    "patches": NO_REGIONS,
    "late": NO_REGIONS | {"temporal_fusion": "pool"},
}
CORPORA = {"moving_shapes": {"objects": [2, 3], "test_unseen": 0}, "drifting_letters": {}}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpora")
    sizes = {"train": 0, "val": 0, "test": 4, "size": 64, "frames": 6}
    for name, options in CORPORA.items():
        make_corpus(name, root / name, workers=1, progress=False, **sizes, **options)
    return root


@pytest.fixture(scope="module")
def processor(corpora):
    words = [text for name in CORPORA for row in load_corpus(name, corpora / name, "test") for text in row["captions"]]
    video_processor = RegionLearnerVideoProcessor.for_image_size(32, num_frames=4)
    return RegionLearnerProcessor(video_processor, train_tokenizer([TEXT, *words], 300, 80))


def model_of(form: str, **options):
    text = tiny_text_config(vocab_size=300, max_position_embeddings=80)
    return tiny_model(text=text, token_dim=8, **FORMS[form] | options)


# --- The region and the heat map of a phrase ----------------------------------------------------------------------


def naive_match(model, processor, clip, text, span):
    """Returns the best region of a phrase, its similarity, the phrase's weight, and the heat map, found by loops."""
    encoding = processor.tokenizer(text)
    tokens = [
        token
        for token in range(len(encoding.input_ids))
        for chars in [encoding.token_to_chars(token)]  # None for special tokens
        if chars and any(chars.start <= at < chars.end and text[at] != " " for at in range(*span))
    ]
    with torch.no_grad():
        outputs = model(**processor(text=[text]), pixel_values_videos=clip)
    words, weights = outputs.text_token_embeds[0], outputs.text_token_weights[0]
    regions, masks = outputs.video_token_embeds[0], outputs.video_model_output.region_masks
    whole = sum(weights[i] for i in tokens)
    scores = [sum(weights[i] * (words[i] @ region) for i in tokens) / whole for region in regions]
    best = int(np.argmax(scores))
    frames = clip.shape[1]
    heat = torch.zeros(frames, 4, 4)
    for t, i, j in np.ndindex(*heat.shape):
        if masks is None:
            heat[t, i, j] = max(0, scores[16 * t + 4 * i + j])
        elif len(regions) == masks.shape[2]:
            heat[t, i, j] = masks[0, t, best, i, j]
        elif t == best // masks.shape[2]:
            mask = masks[0, t, best % masks.shape[2]]
            signed = model.config.video_config.region_form == "paper"
            heat[t, i, j] = abs(mask[i, j] - mask.mean()) if signed else mask[i, j]
    return best, float(scores[best]), float(whole), heat


@pytest.mark.parametrize("form", FORMS)
def test_phrases_against_a_naive_loop(form, processor):
    model, clip = model_of(form), clips(1)
    spans = [(0, len(TEXT)), (2, 12), (14, 32), (16, 20), (6, 7)]  # with commas and spaces, and within words
    matches = find_phrases(model, processor, clip, TEXT, spans)
    for span, match in zip(spans, matches):
        best, similarity, weight, heat = naive_match(model, processor, clip, TEXT, span)
        assert (match.text, match.span, match.region) == (TEXT[slice(*span)], span, best)
        assert (match.similarity, match.weight) == pytest.approx((similarity, weight), abs=1e-6)
        torch.testing.assert_close(match.heat_map, heat)
        frame, row, column = np.unravel_index(int(heat.argmax()), heat.shape)
        assert match.peak == (frame, (column + 0.5) / 4, (row + 0.5) / 4)
    (whole,) = find_phrases(model, processor, clip[0], TEXT)
    assert (whole.span, whole.region) == ((0, len(TEXT)), matches[0].region)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_other_pairs_change_nothing(side, processor):
    model, both = model_of("queries", phrase_window=3), clips(2)
    tokenizer = train_tokenizer([TEXT], 300, 80)
    tokenizer.padding_side = side
    processor = RegionLearnerProcessor(processor.video_processor, tokenizer)
    pairs = embed_pairs(model, processor, both, ["a circle", TEXT])
    for row, (text, span) in enumerate([("a circle", (2, 8)), (TEXT, (2, 12))]):
        (match,), (alone,) = pairs.find(row, [span]), find_phrases(model, processor, both[row], text, [span])
        assert (match.text, match.region) == (alone.text, alone.region)
        assert match.similarity == pytest.approx(alone.similarity, abs=1e-5)
        torch.testing.assert_close(match.heat_map, alone.heat_map)


def made_pairs(
    cosines: list[list[float]], weights: list[float], masks: torch.Tensor | None, grid: tuple[int, int] = (2, 2)
) -> EmbeddedPairs:
    """Returns a pair whose text is a, b, c, ..., given its cosines with regions, or with the patches of 2 frames."""
    rows = torch.tensor(cosines)
    text = " ".join("abcdefgh"[: len(rows)])
    offsets = torch.tensor([[(2 * i, 2 * i + 1) for i in range(len(rows))]])
    outputs = RegionLearnerOutput(
        text_token_embeds=rows[None],
        text_token_weights=torch.tensor([weights]),
        video_token_embeds=torch.eye(rows.shape[1])[None],
        video_model_output=RegionLearnerVideoOutput(region_masks=masks, patch_states=torch.zeros(1, 2, *grid, 1)),
    )
    return EmbeddedPairs([text], offsets, outputs)


def test_a_phrase_that_looks_for_two_words():
    """Two words find a region that neither of them finds alone, and the heavier word counts more."""
    cosines = [[0.9, 0.6, 0.0], [0.0, 0.6, 0.8]]
    masks = torch.rand(1, 2, 3, 4, 4)
    masks /= masks.mean((1, 3, 4), keepdim=True)
    a, b, both = made_pairs(cosines, [0.5, 0.5], masks).find(0, [(0, 1), (2, 3), (0, 3)])
    assert [match.region for match in (a, b, both)] == [0, 2, 1]
    torch.testing.assert_close(both.heat_map, masks[0, :, 1])
    (heavy,) = made_pairs(cosines, [0.1, 0.9], masks).find(0, [(0, 3)])
    assert (heavy.region, heavy.similarity) == (2, pytest.approx(0.72))
    (without,) = made_pairs(cosines, [0.0, 0.0], masks).find(0, [(0, 3)])  # all words count equally
    assert (without.region, without.similarity, without.weight) == (1, pytest.approx(0.6), 0)


def test_dissimilar_patches_have_no_heat():
    cosines = [[-0.5, 0.2, 0.4, -0.1, 0.0, 0.1, -0.3, 0.3], [-0.5] * 7 + [-0.4]]
    some, none = made_pairs(cosines, [0.5, 0.5], None).find(0, [(0, 1), (2, 3)])
    expected = torch.tensor([[[0.0, 0.2], [0.4, 0.0]], [[0.0, 0.1], [0.0, 0.3]]])
    torch.testing.assert_close(some.heat_map, expected)
    assert some.peak == (0, 0.25, 0.75)
    assert (none.region, none.similarity) == (7, pytest.approx(-0.4))
    assert (none.heat_map.any(), none.peak) == (False, None)


def test_the_grid_of_patches_is_that_of_the_model():
    """The grid is right even if the number of patches does not determine it."""
    pairs = made_pairs([[0.5] * 12], [1.0], None, grid=(1, 6))
    assert pairs.grid() == (2, 1, 6)
    (match,) = pairs.find(0, [(0, 1)])
    assert match.heat_map.shape == (2, 1, 6)


def test_half_precision(processor):
    model = model_of("queries")
    (expected,) = find_phrases(model, processor, clips(1), TEXT, [(2, 12)])
    (match,) = find_phrases(model.bfloat16(), processor, clips(1).bfloat16(), TEXT, [(2, 12)])
    assert match.heat_map.dtype == torch.float32
    assert match.similarity == pytest.approx(expected.similarity, abs=0.05)


# --- Words -------------------------------------------------------------------------------------------------------


def test_words_are_merged_by_region(processor):
    model, clip = model_of("queries", num_regions=2, seed=2), clips(1)
    processor = RegionLearnerProcessor(processor.video_processor, train_tokenizer([TEXT], 300, 80))
    whole, *phrases = find_words(model, processor, clip, TEXT)
    assert whole.span == (0, len(TEXT))
    spans = [(0, 1), (2, 5), (6, 12), (14, 17), (18, 19), (20, 28), (29, 35), (36, 44)]
    words = find_phrases(model, processor, clip, TEXT, spans)
    least = 0.2 * sum(word.weight for word in words) / len(words)
    merged = []
    keys = {id(word): (word.region if word.weight >= least else None, word.span[0] > 12) for word in words}
    for (region, _), some in itertools.groupby(words, key=lambda word: keys[id(word)]):  # not across the comma
        some = list(some)
        if region is not None:
            merged.append(((some[0].span[0], some[-1].span[1]), region))
    assert 1 < len(merged) < sum(word.weight >= least for word in words)
    assert [(phrase.span, phrase.region) for phrase in phrases] == merged


def words_of(pairs: EmbeddedPairs, monkeypatch) -> list[str]:
    monkeypatch.setattr("region_learner.phrase_maps.embed_pairs", lambda *_: pairs)
    return [match.text for match in find_words(None, None, clips(1), pairs.texts[0])]


def test_light_words_and_patches_that_touch(monkeypatch):
    masks = torch.ones(1, 2, 3, 4, 4)
    one, two = [0.9, 0.0, 0.0], [0.0, 0.9, 0.0]
    light = made_pairs([one, one, two, one, two, two], [0.2, 0.2, 0.02, 0.2, 0.35, 0.03], masks)
    assert words_of(light, monkeypatch) == ["a b c d e f", "a b", "d", "e"]
    places = [0, 3, 7, 6, 1]  # in a grid of 2 x 2 x 2: touching, same place in the next frame, touching, another frame
    patches = made_pairs([[float(i == place) for i in range(8)] for place in places], [0.2] * 5, None)
    assert words_of(patches, monkeypatch)[1:] == ["a b", "c d", "e"]
    wide = made_pairs([[float(i == place) for i in range(32)] for place in (0, 2, 7, 11)], [0.25] * 4, None, (4, 4))
    assert words_of(wide, monkeypatch)[1:] == ["a", "b c d"]  # two columns apart; diagonal; below each other


def test_texts_that_are_cut_off(processor, caplog):
    short = RegionLearnerProcessor(processor.video_processor, train_tokenizer([TEXT], 300, 6))
    model = model_of("decoupled")
    read, not_read = find_phrases(model, short, clips(1), TEXT, [(2, 5), (36, 44)])
    assert read.region is not None
    assert (not_read.region, not_read.weight, not_read.similarity, not_read.peak) == (None, 0, 0, None)
    with caplog.at_level(logging.WARNING):
        phrases = find_words(model, short, clips(1), TEXT)
    assert "reads it up to 'square', without the last 5 words" in caplog.text
    assert phrases[-1].span[1] <= 12


def test_what_is_refused(processor):
    model = model_of("decoupled")
    slow = RegionLearnerProcessor(processor.video_processor, train_tokenizer([TEXT], 300, 80))
    for arguments, message in (
        ((tiny_model(), processor, clips(1), TEXT), r"\(token_dim=0\).*--config '\{\"token_dim\": 64"),
        ((model, processor, clips(2), TEXT), r"one clip, .* not \(2, 4, 3, 32, 32\)"),
        ((model, processor, clips(1), TEXT, [(0, 99)]), r"The span \(0, 99\) contains no words"),
        ((model, processor, clips(1), TEXT, [(3, 3)]), r"The span \(3, 3\) contains no words"),
        ((model, processor, clips(1), TEXT, [(1, 2)]), r"The span \(1, 2\) contains no words"),
    ):
        with pytest.raises(ValueError, match=message):
            find_phrases(*arguments)
    with pytest.raises(ValueError, match="has no words"):
        find_words(model, processor, clips(1), " ?! ")
    type(slow.tokenizer).is_fast, before = property(lambda self: False), type(slow.tokenizer).is_fast
    try:
        with pytest.raises(ValueError, match="load the fast tokenizer"):
            find_phrases(model, slow, clips(1), TEXT)
    finally:
        type(slow.tokenizer).is_fast = before


# --- Metrics -----------------------------------------------------------------------------------------------------


def enlarged(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns the same as `naive_bilinear`, computed as a product of matrices."""
    rows, columns = (
        np.maximum(0, 1 - abs(np.clip((np.arange(side)[:, None] + 0.5) * n / side - 0.5, 0, n - 1) - np.arange(n)))
        for side, n in zip((height, width), heat.shape)
    )
    return rows @ heat @ columns.T


def naive_scores(heat: np.ndarray, labels: np.ndarray, n: int) -> tuple[float, float]:
    """Returns pointing and IoU of a heat map (T, h, w) for object n of label maps (T, H, W), computed by loops."""
    (frames, h, w), (_, height, width) = heat.shape, labels.shape
    peaks = [place for place in np.ndindex(*heat.shape) if heat[place] == heat.max() > 0]
    hits = []
    for t, i, j in peaks:
        y, x = (i + 0.5) * height / h, (j + 0.5) * width / w  # where four pixels meet, or inside one
        around = [labels[t, int(np.floor(y - e)), int(np.floor(x - f))] == n for e in (0, 1e-6) for f in (0, 1e-6)]
        hits.append(np.mean(around))
    shared = whole = 0
    cut = -np.inf if np.ptp(heat) == 0 and heat.max() > 0 else naive_otsu(heat.flatten()) if heat.any() else np.inf
    for t in range(frames):
        inside = enlarged(heat[t], height, width) > cut
        shared += (inside & (labels[t] == n)).sum()
        whole += (inside | (labels[t] == n)).sum()
    return float(np.mean(hits)) if hits else 0.0, shared / max(whole, 1)


def test_scores_against_a_naive_loop():
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(4, 5, generator=generator).numpy()
    np.testing.assert_allclose(enlarged(small, 16, 20), naive_bilinear(small, 16, 20))
    heat = torch.rand(7, 3, 4, 5, generator=generator).double()
    labels = torch.randint(0, 6, (3, 4, 5), generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels = labels.roll((1, 2), (1, 2))  # borders of objects are not aligned with positions
    heat[1] = (heat[1] > 0.5).double()  # ties
    heat[2] = 1  # the same everywhere
    heat[3] = 0  # nowhere
    heat[4, 1:] = 0  # in one frame only
    heat[5] = 0
    heat[5, 0, 0, 0] = 0.5  # a single position
    heat[6] = heat[6].masked_fill(labels[:, 2::4, 2::4] == 2, 2.0)
    hits, ious = scores_of_heat_maps(heat, labels, 4)
    expected = [[naive_scores(one.numpy(), labels.numpy(), n) for n in range(1, 5)] for one in heat]
    torch.testing.assert_close(torch.stack([hits, ious], -1), torch.tensor(expected), atol=1e-6, rtol=0)
    assert len({round(float(value), 3) for value in hits.flatten()}) > 5


def test_heat_maps_that_equal_the_objects():
    labels = torch.zeros(3, 8, 8, dtype=torch.uint8)
    labels[0, 1:4, 1:4] = labels[1, 2:5, 2:5] = 1
    labels[2, 4:8, 4:8] = 2
    heat = torch.stack([(labels == n).double() for n in (1, 2)])
    hits, ious = scores_of_heat_maps(heat, labels, 2)
    assert hits.tolist() == ious.tolist() == [[1, 0], [0, 1]]
    hits, ious = scores_of_heat_maps(torch.ones(1, 3, 8, 8), labels, 2)  # chance: an object's share of the clip
    expected = torch.tensor([[18 / 192, 16 / 192]])
    torch.testing.assert_close(hits.float(), expected)
    torch.testing.assert_close(ious.float(), expected)
    # The heat map is right in one of two frames.
    heat[0, 0] = 0
    assert scores_of_heat_maps(heat, labels, 2)[1][0].tolist() == [0.5, 0]


def test_all_frames_of_a_clip_share_a_threshold():
    heat = torch.zeros(1, 2, 4, 4)
    heat[0, 0, 0, 0], heat[0, 1, 3, 3], heat[0, 1, 0, 0] = 1.0, 0.9, 0.1
    assert phrase_focus(heat).areas().nonzero().tolist() == [[0, 0, 0, 0], [0, 1, 3, 3]]


def naive_grounding(model, processor, rows, form):
    """Returns the grounding metrics, computed one video at a time from functions that other tests cover."""
    found = {}
    objects = 0
    for row in rows:
        _, metadata = processor.video_processor.decode(row["video"])
        clip = processor(videos=[row["video"]])["pixel_values_videos"]
        labels = align_label_maps(processor.video_processor, load_masks(row), metadata.frames_indices)
        spans = object_phrases(row)
        matches = find_phrases(model, processor, clip, row["captions"][0], spans)
        pairs = embed_pairs(model, processor, clip, [row["captions"][0]])
        with torch.no_grad():
            attention = model.video_model(clip, output_attentions=True).attentions[-1]
        # What CLS attends to, from (B, H, 1 + T * N, ...), or from (T, H, 1 + N, ...) with late fusion.
        attention = attention[:, :, 0, 1:].mean(1).reshape(4, 4, 4)
        for n, match in enumerate(matches, start=1):
            if not (labels == n).any():
                continue
            objects += 1
            maps = {"": [match.heat_map], "chance_": [torch.ones(4, 4, 4)], "cls_attention_": [attention]}
            if (regions := pairs.region_maps(0)) is not None:
                maps["best_region_"] = list(regions)
            for kind, some in maps.items():
                scores = np.max([naive_scores(one.double().numpy(), labels, n) for one in some], axis=0)
                found.setdefault(f"{kind}pointing", []).append(100 * scores[0])
                found.setdefault(f"{kind}iou", []).append(100 * scores[1])
    return {name: pytest.approx(np.mean(values), abs=1e-3) for name, values in found.items()} | {"objects": objects}


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("form", ["queries", "paper", "patches", "late"])
def test_grounding_against_a_naive_loop(name, form, corpora, processor):
    model = model_of(form)
    model.set_attn_implementation("eager")
    rows = load_corpus(name, corpora / name, "test")
    result = grounding_accuracy(model, processor, rows, batch_size=4, progress=False)
    counts = {"videos": 4, "cut_off": 0, "unreadable": []}
    assert result == naive_grounding(model, processor, rows, form) | counts
    assert ("best_region_iou" in result) == (form in ("queries", "paper"))
    twice = [*rows, *rows]
    assert grounding_accuracy(model, processor, twice, batch_size=4, progress=False) == result


def test_phrases_that_are_cut_off_count_as_not_found(corpora, processor):
    rows = load_corpus("moving_shapes", corpora / "moving_shapes", "test")
    model = model_of("queries")
    words = [text for row in rows for text in row["captions"]]
    short = RegionLearnerProcessor(processor.video_processor, train_tokenizer(words, 300, 8))
    result = grounding_accuracy(model, short, rows, progress=False)
    whole = grounding_accuracy(model, processor, rows, progress=False)
    assert 0 < result["cut_off"] < result["objects"] == whole["objects"]
    assert result["chance_iou"] == whole["chance_iou"]
    found = result["pointing"] * result["objects"] / 100
    assert found <= result["objects"] - result["cut_off"]


def test_grounding_leaves_out_unreadable_videos(corpora, processor, tmp_path, caplog):
    rows = load_corpus("moving_shapes", corpora / "moving_shapes", "test").to_list()
    (tmp_path / "damaged.mp4").write_bytes(b"not a video")
    model = model_of("queries")
    result = grounding_accuracy(
        model, processor, [rows[0] | {"video": str(tmp_path / "damaged.mp4")}, *rows[1:]], progress=False
    )
    assert result["unreadable"] == [rows[0]["video_id"]]
    assert rows[0]["video_id"] in caplog.text
    rest = grounding_accuracy(model, processor, rows[1:], progress=False)
    assert {**result, "unreadable": []} == rest


def test_what_cannot_be_measured(corpora, processor, tmp_path):
    rows = load_corpus("moving_shapes", corpora / "moving_shapes", "test")
    model = model_of("queries")
    hidden = rows[0] | {"masks": str(tmp_path / "none.npz")}
    np.savez(hidden["masks"], masks=np.zeros_like(load_masks(rows[0])))
    for error, message, arguments in (
        (ValueError, "token_dim=0", (tiny_model(), processor, rows)),
        (ValueError, "no column 'masks'", (model, processor, rows.remove_columns("masks"))),
        (ValueError, "No object that a caption names is visible", (model, processor, [hidden])),
        (CorpusError, "needs 'objects'", (model, processor, rows.remove_columns("objects"))),
    ):
        with pytest.raises(error, match=message):
            grounding_accuracy(*arguments, progress=False)
    with pytest.raises(ValueError, match="one clip per video"):
        grounding_accuracy(model, processor, rows, views=Views(2), progress=False)


# --- Commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, processor):
    root = tmp_path_factory.mktemp("checkpoints")
    for form in ("queries", "patches"):
        model_of(form).save_pretrained(root / form)
        processor.save_pretrained(root / form)
    tiny_model(text=tiny_text_config(vocab_size=300)).save_pretrained(root / "without")
    processor.save_pretrained(root / "without")
    return root


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code, *capsys.readouterr()


@pytest.mark.parametrize("name", CORPORA)
def test_evaluate(name, corpora, processor, checkpoints, tmp_path, capsys):
    argv = ["evaluate", checkpoints / "queries", "--data-dir", corpora / name, "--json"]
    file = tmp_path / "results.json"
    code, out, _ = run(capsys, *argv, "--protocol", f"{name}_grounding", "--output", file)
    assert code == 0
    rows = load_corpus(name, corpora / name, "test")
    expected = grounding_accuracy(model_of("queries"), processor, rows, progress=False)
    found = read_results(file)
    counts = {key: expected.pop(key) for key in ("videos", "objects", "cut_off", "unreadable")}
    assert found.metrics == pytest.approx(expected)
    assert counts.items() <= found.data.items()
    assert found.primary == ("pointing", pytest.approx(expected["pointing"]))
    assert found.metrics.items() <= json.loads(out).items()
    assert f"4 videos, {counts['objects']} objects" in model_card([file])
    code, out, _ = run(capsys, *argv, "--corpus", name, "--task", "grounding")
    assert (code, json.loads(out)["pointing"]) == (0, pytest.approx(expected["pointing"]))


def test_evaluate_without_tokens(corpora, checkpoints, capsys):
    argv = ["evaluate", checkpoints / "without", "--data-dir", corpora / "moving_shapes"]
    code, out, error = run(capsys, *argv, "--protocol", "moving_shapes_grounding")
    assert (code, out) == (2, "")
    assert "error: The model does not compare words with regions (token_dim=0)" in error


@pytest.mark.parametrize("form", ["queries", "patches"])
def test_regions_of_a_query(form, corpora, processor, checkpoints, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    videos = load_corpus("moving_shapes", corpora / "moving_shapes", "test")["video"][:2]
    argv = ["regions", checkpoints / form, *videos, "--query", TEXT]
    code, out, errors = run(capsys, *argv, "--json", "--output", tmp_path / "new" / "phrases.png")
    assert code == 0
    stems = [Path(video).stem for video in videos]
    pictures = [tmp_path / "new" / f"phrases-{number}-{stem}.png" for number, stem in enumerate(stems, start=1)]
    assert errors.splitlines()[-2:] == [f"Wrote {picture}" for picture in pictures]
    model = model_of(form)
    for video, rows in json.loads(out).items():
        matches = find_words(model, processor, processor(videos=[video])["pixel_values_videos"], TEXT)
        assert [row["text"] for row in rows] == [match.text for match in matches]
        for row, match in zip(rows, matches):
            assert (row["weight"], row["similarity"]) == pytest.approx((match.weight, match.similarity))
            assert row["region"] == match.region + 1
            frame, x, y = match.peak
            assert (row["frame"], row["x"], row["y"]) == pytest.approx((frame + 1, 100 * x, 100 * y))
    assert list(json.loads(out)) == videos
    for picture, video in zip(pictures, videos):
        assert np.array_equal(np.asarray(Image.open(picture)), np.asarray(draw_phrases(model, processor, video, TEXT)))
    code, out, _ = run(capsys, *argv[:3], "--query", "a red circle, a red circle")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == [f"{videos[0]}:"]
    assert lines[1] == ["phrase", "weight", "similarity", "region", "frame", "x", "y"]
    assert lines[2][:7] == ["0", "a", "red", "circle,", "a", "red", "circle"]
    found = find_words(
        model, processor, processor(videos=videos[:1])["pixel_values_videos"], "a red circle, a red circle"
    )
    assert len(lines) == 2 + len(found)


def test_query_errors(corpora, checkpoints, tmp_path, capsys):
    video = load_corpus("moving_shapes", corpora / "moving_shapes", "test")["video"][0]
    for arguments, message in (
        (["without", video, "--query", TEXT], "token_dim=0"),
        (["queries", video, "--query", "?"], "The text '?' has no words"),
        (
            ["queries", video, "--query", TEXT, "--output", tmp_path / "a.txt"],
            "does not have the extension of an image file",
        ),
        (["queries", "--corpus", "moving_shapes", "--query", TEXT], "--query does not work with --corpus"),
        (["queries", "--query", TEXT], "Give either videos or --corpus"),
    ):
        code, out, error = run(capsys, "regions", checkpoints / arguments[0], *arguments[1:])
        assert (code, out) == (2, "")
        (line,) = [line for line in error.splitlines() if "error: " in line]
        assert message in line
    assert not list(tmp_path.iterdir())


# --- Pictures ----------------------------------------------------------------------------------------------------


def test_heat_over_frames():
    frames = np.full((2, 32, 40, 3), 200, np.uint8)
    heat = torch.zeros(2, 2, 4, 5)
    heat[0, 1, 1, 2] = 0.3
    heat[1] = 1.0
    (empty, spot), even = (
        [np.asarray(picture).astype(int) for picture in row] for row in draw_heat_maps(frames, heat)
    )
    dimmed = int(0.6 * 200)
    assert (empty == dimmed).all()  # the first frame has neither heat nor an outline
    assert (spot[:4] == dimmed).all()
    center = spot[12, 20]
    assert center[0] > center[1] > center[2]  # orange
    redness = spot[..., 0] - spot[..., 2]
    assert abs(np.unravel_index(redness.argmax(), redness.shape) - np.array([11.5, 19.5])).max() <= 1
    assert ((spot == spot[..., :1]).all(-1) & (spot[..., 0] > dimmed + 50)).any()  # the white outline
    assert all((picture == even[0][0, 0]).all() for picture in even)
    large = draw_heat_maps(frames, heat, height=64)
    assert large[0][0].size == (80, 64)
    for wrong, error, message in (
        (heat[0], ValueError, r"\(P, T, h, w\), not \(2, 4, 5\)"),
        (heat[:, :1], ValueError, "2 frames, but a heat map has 1"),
        (-heat, ValueError, "negative"),
        (heat.long(), TypeError, "heat_maps must be a floating-point"),
    ):
        with pytest.raises(error, match=message):
            draw_heat_maps(frames, wrong)


def test_a_picture_has_a_row_for_each_phrase(corpora, processor):
    videos = load_corpus("drifting_letters", corpora / "drifting_letters", "test")["video"][:2]
    model = model_of("queries")
    rows = [
        len(find_words(model, processor, processor(videos=[video])["pixel_values_videos"], TEXT)) for video in videos
    ]
    heights = [draw_phrases(model, processor, video, TEXT, height=50).height for video in videos]
    line = 11  # height of the text
    times_and_footer = 2 * line + 2 * line
    assert heights == [(1 + count) * (50 + 3 * line) + times_and_footer for count in rows]

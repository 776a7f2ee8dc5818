"""Tests for the tokens that an index stores per window, and for the order of hits by them, against naive loops."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from region_learner import VideoIndex
from region_learner.cli import main
from region_learner.loading import load_checkpoint
from region_learner.search import embed_videos
from region_learner.search import index as index_module
from region_learner.search.database import Database
from region_learner.search.export import export_index
from region_learner.search.jobs import join_parts
from region_learner.search.page import _with_peak, write_search_page
from region_learner.search.windows import MOST_TOKENS, are_tokens, pack_tokens

from . import search_toys
from .search_toys import LENGTHS, QUERIES, make_video, make_videos, save_checkpoint
from .test_words_and_regions import literal_similarity, some_tokens

EIGHT = LENGTHS | {"f.mp4": 2, "g.mp4": 2, "h.mp4": 2}
OPTIONS = {"window": 4.0, "stride": 2.0, "num_frames": 4}
N, DIM = 5, 8  # tokens of the model "words"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_checkpoint("words", tmp_path_factory.mktemp("words")))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("videos"), EIGHT)


@pytest.fixture(scope="module")
def made(model, videos, tmp_path_factory):
    """Returns an index with tokens and one without, of the same model; tests must not change them."""
    folder = tmp_path_factory.mktemp("indexes")
    indexes = [VideoIndex.create(folder / str(kept), model, tokens=kept, **OPTIONS) for kept in (None, False)]
    for index in indexes:
        index.update(videos)
    return indexes


@pytest.fixture
def copied(made, tmp_path):
    """Returns the path of a copy of the index with tokens."""
    return Path(shutil.copytree(made[0].directory, tmp_path / "copied"))


def tokens_of(index):
    """Returns the stored tokens of all windows as float32, by path."""
    windows = index._current_view().windows
    return {
        record.video.path: windows.read(record.first_row, record.first_row + len(record.spans)).tokens.astype("f4")
        for record in index.database.records()
        if record.error is None
    }


# --- Stored tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["words", "patches"])
def test_tokens_of_windows_are_those_of_the_model(kind, videos, tmp_path):
    model = str(save_checkpoint(kind, tmp_path / kind))
    index = VideoIndex.create(tmp_path / "index", model, **OPTIONS)
    index.update(videos)
    network, processor = load_checkpoint(model, "retrieval")
    kept = tokens_of(index)
    number = {"words": N, "patches": MOST_TOKENS}[kind]
    assert index.about()["tokens"] == [number, DIM]
    for record in index.database.records():
        for tokens, (start, _) in zip(kept[record.video.path], record.spans.tolist()):
            span = {} if len(record.spans) == 1 else {"start": start, "end": start + 4}
            with torch.no_grad():
                outputs = network(**processor(videos=[record.video.path], **span))
            weights, embeds = outputs.video_token_weights[0].tolist(), outputs.video_token_embeds[0]
            best = naive_farthest_points(embeds, weights, number)
            total = sum(weights[i] for i in best)
            assert tokens.shape == (number, 1 + DIM)
            np.testing.assert_allclose(tokens[:, 0], [weights[i] / total for i in best], atol=2e-3)
            np.testing.assert_allclose(tokens[:, 1:], embeds[best], atol=2e-3)


def naive_farthest_points(embeds, weights, count):
    """Returns the sorted indices of the tokens of one window that are kept, found by loops."""
    embeds = torch.nn.functional.normalize(embeds.float(), dim=-1).double()
    cosines = [[round(float(one @ other), 10) for other in embeds.numpy()] for one in embeds.numpy()]
    present = [i for i in range(len(weights)) if weights[i] > 0]
    chosen = [max(present, key=lambda i: weights[i])]
    while len(chosen) < min(count, len(present)):
        others = [i for i in present if i not in chosen]
        chosen.append(min(others, key=lambda i: max(cosines[i][j] for j in chosen)))
    absent = [i for i in range(len(weights)) if weights[i] == 0]
    return sorted(chosen + absent[: count - len(chosen)])


def test_packing():
    """Windows have too many tokens, with equal and absent ones among them, or no more than fit."""
    embeds, weights = some_tokens(5, MOST_TOKENS + 40, 3, seed=0)
    embeds[1, 30:60] = embeds[1, :30]
    weights[2:4, 20:] *= 1e-9  # too small for float16
    weights[3:, ::3] = 0
    weights[4, MOST_TOKENS:] = 0
    weights /= weights.sum(1, keepdim=True)
    packed = pack_tokens(embeds, weights)
    assert packed.dtype == np.float16
    assert are_tokens(packed)
    for row in range(5):
        order = naive_farthest_points(embeds[row], weights[row].tolist(), MOST_TOKENS)
        expected = weights[row, order] / weights[row, order].sum()
        np.testing.assert_allclose(packed[row, :, 0], expected, atol=5e-4)
        np.testing.assert_array_equal(packed[row, :, 0] > 0, expected > 0)
        np.testing.assert_allclose(packed[row, :, 1:], embeds[row, order], atol=2e-3)
        for part in (slice(row, row + 1), slice(row, None)):  # the other windows of the batch do not matter
            np.testing.assert_array_equal(pack_tokens(embeds[part], weights[part])[0], packed[row])
    few = pack_tokens(embeds[:, :4], weights[:, :4])
    np.testing.assert_allclose(few[..., 0], weights[:, :4], atol=2e-3)  # all are kept


def test_equal_tokens_are_chosen_in_their_order_in_every_batch():
    """In float32, the cosine of a token could depend on its position, which would break ties."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.nn.functional.normalize(torch.randn(13, 60, generator=generator), dim=-1)
    embeds = kinds[torch.randint(0, 13, (7, 91), generator=generator)]
    weights = torch.rand(7, 91, generator=generator)
    weights /= weights.sum(1, keepdim=True)
    packed = pack_tokens(embeds, weights)
    for row in range(7):
        order = naive_farthest_points(embeds[row], weights[row].tolist(), MOST_TOKENS)
        expected = weights[row, order] / weights[row, order].sum()
        np.testing.assert_allclose(packed[row, :, 0], expected, atol=5e-4)
        np.testing.assert_array_equal(pack_tokens(embeds[row : row + 1], weights[row : row + 1])[0], packed[row])


def test_kept_tokens_cover_all_directions():
    """Two things have many heavy patches and 18 have a single light one; the kept tokens include all of them."""
    things = torch.nn.functional.normalize(torch.randn(20, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    which = torch.tensor([0] * 70 + [1] * 20 + list(range(2, 20)))
    weights = torch.tensor([1.0] * 90 + [0.1] * 18)[None]
    packed = pack_tokens(things[which][None], weights / weights.sum())[0]
    kept = (torch.from_numpy(packed[:, 1:]).float() @ things.T).argmax(1)
    assert set(kept.tolist()) == set(range(20))


def test_absent_tokens():
    tokens = np.zeros((1, 3, 3), np.float16)
    tokens[0, :2] = [[0.25, 1, 0], [0.75, 0, 1]]
    assert are_tokens(tokens)
    for place, value in (((0, 2), [0.5, 1, 0]), ((0, 1), [0.75, 0, 0.9]), ((0, 1), [0.7, 0, 1]),
                         ((0, 0), [-0.25, 1, 0]), ((0, 0), [np.nan, 1, 0]), ((0, 2), [0, np.inf, 0])):  # fmt: skip
        wrong = tokens.copy()
        wrong[place] = value
        assert not are_tokens(wrong)


def test_changes_keep_tokens_with_their_windows(made, copied, model, videos, tmp_path):
    """After videos are removed, copied, moved and changed, the tokens equal those of a new index."""
    folder = Path(shutil.copytree(videos, tmp_path / "videos"))
    index = VideoIndex.create(tmp_path / "index", model, **OPTIONS)
    index.update(folder)
    shutil.copy(folder / "b.mp4", folder / "copy.mp4")
    (folder / "a.mp4").rename(folder / "moved.mp4")
    shutil.copy(folder / "e.mp4", folder / "sub" / "c.mp4")
    index.update(folder)
    index.remove([folder / "b.mp4", folder / "sub" / "d.mp4"])  # most of the rows, so the rest is rewritten
    assert index.database.about("vectors") == "vectors-1"
    os.remove(folder / "b.mp4")
    os.remove(folder / "sub" / "d.mp4")
    anew = VideoIndex.create(tmp_path / "anew", model, **OPTIONS)
    anew.update(folder)
    ours, theirs = tokens_of(index), tokens_of(anew)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[path], theirs[path]) for path in ours)
    assert index.search(QUERIES, k=50) == anew.search(QUERIES, k=50)
    rows = index.database.about("rows")
    assert (index.directory / "vectors-1" / "tokens-00000.f16").stat().st_size == rows * N * (1 + DIM) * 2


# --- The order of hits ---------------------------------------------------------------------------------------


def literal_order(index, text, hits, most, least=0.0):
    """Returns `hits` with the first `most` sorted by the sum of both logits; token weights are at least `least`."""
    network, processor = index.model, index.processor
    with torch.no_grad():
        outputs = network(**processor(text=[text]))
    scored = []
    for hit in hits[:most]:
        vectors = index.vectors(hit.path)
        cosines = [float(vector @ outputs.text_embeds[0].numpy()) for vector in vectors]
        (window,) = (place for place, cosine in enumerate(cosines) if math.isclose(cosine, hit.score, abs_tol=1e-6))
        tokens = torch.from_numpy(tokens_of(index)[hit.path][window])
        tokens[:, 0].clamp_(least)
        similarity = literal_similarity(
            outputs.text_token_embeds, outputs.text_token_weights, tokens[None, :, 1:], tokens[None, :, 0]
        )
        logit = hit.score / network.config.temperature + float(similarity) / network.config.token_temperature
        scored.append((logit, hit))
    return [hit for _, hit in sorted(scored, key=lambda pair: -pair[0])] + hits[most:]


def places(hits):
    return [(hit.path, hit.start, hit.end, hit.score) for hit in hits]


@pytest.mark.parametrize("most", [3, 50])
def test_order_equals_a_naive_implementation(made, monkeypatch, most):
    monkeypatch.setattr(index_module, "_RERANKED", most)
    index, without = made
    changed = 0
    for text, hits, plain in zip(QUERIES, index.search(QUERIES, k=50), without.search(QUERIES, k=50)):
        assert len(plain) > 5
        assert places(hits) == places(literal_order(index, text, plain, most))
        # Probabilities belong to ranks, not to hits, so they do not depend on the tokens.
        assert [hit.probability for hit in hits] == [hit.probability for hit in plain]
        changed += places(hits) != places(plain)
    assert changed
    hits = index.search(QUERIES[0], k=50)
    for k in (1, 2, 4):
        assert index.search(QUERIES[0], k=k) == hits[:k]
    least = hits[2].probability
    assert index.search(QUERIES[0], k=50, min_probability=least) == hits[:3]


def test_the_best_score_is_found_even_if_others_rank_higher(made):
    changed = 0
    for text in QUERIES:
        hits = made[0].search(text, k=50)
        best = max(hits, key=lambda hit: hit.score)
        assert made[0].search(text, k=1, min_score=best.score) == [best]
        changed += best != hits[0]
    assert changed


def test_the_order_does_not_depend_on_the_number_of_hits(made, monkeypatch):
    for name in ("_NEAREST", "RIVALS"):
        monkeypatch.setattr(index_module, name, 1)
    for text in QUERIES:
        hits = made[0].search(text, k=50)
        for k in range(1, len(hits)):
            assert places(made[0].search(text, k=k)) == places(hits[:k])


def test_tokens_of_weight_zero_are_absent(made, copied):
    """A token of weight 0 is ignored, even if it would match best."""
    index = VideoIndex.open(copied)
    with torch.no_grad():
        word = index.model(**index.processor(text=["blue circle"])).text_token_embeds[0, 1].numpy()
    file = copied / "vectors-0" / "tokens-00000.f16"
    tokens = np.fromfile(file, "<f2").reshape(-1, N, 1 + DIM).astype(np.float32)
    tokens[::2, 0, 0], tokens[::2, 0, 1:] = 0, word
    tokens[..., 0] /= tokens[..., 0].sum(1, keepdims=True)
    tokens.astype("<f2").tofile(file)
    index = VideoIndex.open(copied)
    plain = made[1].search("blue circle", k=50)
    found = places(index.search("blue circle", k=50))
    assert found == places(literal_order(index, "blue circle", plain, 50))
    assert found != places(literal_order(index, "blue circle", plain, 50, least=1e-9))  # as if they were present


def test_only_text_queries_use_tokens(made, videos):
    index, without = made
    for query in ({"video": str(videos / "b.mp4")}, {"video": (str(videos / "b.mp4"), 4.0, 8.0)}):
        assert index.search(**query, k=50) == without.search(**query, k=50)
    inside = {"within": videos / "sub", "k": 50}
    expected = literal_order(index, QUERIES[0], without.search(QUERIES[0], **inside), 50)
    assert places(index.search(QUERIES[0], **inside)) == places(expected)


# --- Options -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return end.value.code, *capsys.readouterr()

    return run


def test_options(run, made, model, videos, tmp_path):
    index, without = made
    assert without.about()["tokens"] is None
    assert without.token_bytes_per_hour() == 0
    assert not list(without.directory.rglob("*.f16"))
    rows, hours = index.database.about("rows"), sum(EIGHT.values()) / 3600
    size = sum(path.stat().st_size for path in index.directory.rglob("*.f16"))
    assert size == rows * N * (1 + DIM) * 2
    assert index.token_bytes_per_hour() == pytest.approx(size / hours)
    code, _, closing = run("index", videos, "--index", index.directory, "--workers", "1")
    assert code == 0
    size_of_tokens = f"{size / hours / 1e6:.2f} MB per hour of video"
    assert f"8 videos. Tokens (embeddings of parts of the frames) take {size_of_tokens}. Search: " in closing
    assert "Tokens" not in run("index", videos, "--index", without.directory, "--workers", "1")[2]
    code, _, printed = run("index", videos, "--index", index.directory, "--no-tokens")
    assert (code, "was made with tokens: leave the option out" in printed) == (2, True)
    code, _, printed = run("index", videos, "--index", without.directory, "--tokens")
    assert (code, "was made without tokens: leave the option out" in printed) == (2, True)
    code, _, printed = run("index", tmp_path / "new", "--from-embeddings", "parts", "--no-tokens")
    assert (code, "takes only --index DIR and --json" in printed) == (2, True)


def test_a_model_without_tokens(run, videos, tmp_path):
    model = str(save_checkpoint("space_time", tmp_path / "model"))
    with pytest.raises(ValueError, match=r"model does not have word-region tokens .*: leave out --tokens, or use"):
        VideoIndex.create(tmp_path / "index", model, tokens=True)
    for command in (["index", videos, "--index", tmp_path / "index", "--model", model],
                    ["embed", model, videos, "--output", tmp_path / "parts"]):  # fmt: skip
        code, _, printed = run(*command, "--tokens")
        assert code == 2
        assert "does not have word-region tokens" in printed.splitlines()[-1]
    assert not (tmp_path / "index").exists()
    assert VideoIndex.create(tmp_path / "index", model).about()["tokens"] is None


@pytest.mark.parametrize("token_dim", [0, 4])
def test_another_model_is_not_called_damage(made, token_dim, tmp_path, monkeypatch):
    monkeypatch.setitem(search_toys._OPTIONS, "words", (search_toys._OPTIONS["words"][0], {"token_dim": token_dim}))
    other = str(save_checkpoint("words", tmp_path / "other"))
    with pytest.raises(ValueError, match=r"was made with .*, but .*other has other weights: use that model"):
        VideoIndex.open(made[0].directory, other).search("a")


# --- Parts and other engines ---------------------------------------------------------------------------------


def test_parts_carry_tokens(made, model, videos, tmp_path):
    index, without = made
    for number in range(2):
        embed_videos(model, videos, tmp_path / "parts", (number, 2), **OPTIONS)
    joined = VideoIndex.from_embeddings(tmp_path / "joined", tmp_path / "parts")
    export_index(index, "parquet", str(tmp_path / "exported"))
    again = VideoIndex.from_embeddings(tmp_path / "again", tmp_path / "exported")
    for other in (joined, again):
        assert other.about() == index.about()
        ours, theirs = tokens_of(other), tokens_of(index)
        assert all(np.array_equal(ours[path], theirs[path]) for path in theirs)
        assert other.search(QUERIES, k=50) == index.search(QUERIES, k=50)
    rows = pq.read_table(tmp_path / "exported").to_pylist()  # what other programs read
    for path, tokens in tokens_of(index).items():
        own = [row for row in rows if row["path"] == path]
        assert np.array_equal([row["token_weights"] for row in own], tokens[..., 0])
        assert np.array_equal([row["tokens"] for row in own], tokens[..., 1:])
    message = r"This run has no tokens, but .* has 5 tokens of length 8 per window: use the same model and options"
    with pytest.raises(ValueError, match=message):
        embed_videos(model, videos, tmp_path / "parts", (0, 2), tokens=False, **OPTIONS)
    with pytest.raises(ValueError, match="has no tokens, but"):
        join_parts(without.directory, tmp_path / "parts")


# --- Damaged files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [[0, 8], [5, "8"], [5, 8, 1], [MOST_TOKENS + 1, 8], [5, 2**20], [True, 8], "x", 5])
def test_damaged_shapes(copied, shape):
    writer = Database(copied, writes=True)
    with writer.transaction():
        writer.set_about("tokens", shape)
    writer.close()
    with pytest.raises(ValueError, match=r"is damaged \(tokens\)"):
        VideoIndex.open(copied)


def test_damaged_files(copied, tmp_path):
    writer = Database(copied, writes=True)
    with writer.transaction():
        writer.set_about("tokens", [N, DIM - 1])
    with pytest.raises(ValueError, match=r"is damaged \(tokens\)"):
        VideoIndex.open(copied).search("a")
    with writer.transaction():
        writer.set_about("tokens", [N - 2, DIM])
    make_video(tmp_path / "new.mp4", 2, seed=9)
    with pytest.raises(ValueError, match=r"is damaged \(number of tokens\)"):
        VideoIndex.open(copied).update(tmp_path / "new.mp4")
    with writer.transaction():
        writer.set_about("tokens", [N, DIM])
    writer.close()
    file = copied / "vectors-0" / "tokens-00000.f16"
    content = file.read_bytes()
    for wrong in (np.nan, np.inf, 0, -1):
        numbers = np.frombuffer(content, "<f2").copy()
        numbers[::9] = wrong  # every weight
        file.write_bytes(numbers.tobytes())
        with pytest.raises(ValueError, match="is damaged"):
            VideoIndex.open(copied).search("a")
    os.truncate(file, 100)
    with pytest.raises(ValueError, match=r"tokens-00000\.f16 has 1 vectors instead of 18: it is incomplete"):
        VideoIndex.open(copied).search("a")
    file.unlink()
    (tmp_path / "elsewhere").write_bytes(content)
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is not a regular file"):
        VideoIndex.open(copied).search("a")


def test_damaged_parts(made, tmp_path):
    export_index(made[0], "parquet", str(tmp_path / "parts"))
    (path,) = (tmp_path / "parts").glob("*.parquet")
    whole = pq.read_table(path)

    def refused(table, metadata=lambda about: about):
        content = json.loads(whole.schema.metadata[b"region_learner"])
        content["about"] = metadata(content["about"])
        pq.write_table(table.replace_schema_metadata({b"region_learner": json.dumps(content)}), path)
        with pytest.raises(ValueError, match=r"is damaged|is not a part of format") as raised:
            VideoIndex.from_embeddings(tmp_path / "index", path)
        shutil.rmtree(tmp_path / "index", ignore_errors=True)
        return str(raised.value)

    def changed(name, change):
        values = whole[name].to_pylist()
        values[3] = change(values[3])
        field = whole.schema.field(name)
        return whole.set_column(whole.schema.get_field_index(name), field, [pa.array(values, field.type)])

    unit = "its tokens are not of length 1"
    assert unit in refused(changed("tokens", lambda tokens: [[2.0] * DIM, *tokens[1:]]))
    assert unit in refused(changed("tokens", lambda tokens: [[float("nan")] * DIM, *tokens[1:]]))
    assert unit in refused(changed("tokens", lambda tokens: [None, *tokens[1:]]))
    assert unit in refused(changed("tokens", lambda tokens: [[None] * DIM, *tokens[1:]]))
    assert unit in refused(changed("token_weights", lambda weights: [None, *weights[1:]]))
    assert unit in refused(changed("token_weights", lambda weights: [1.0] * N))
    assert unit in refused(changed("token_weights", lambda weights: [-1.0, 2.0, *[0.0] * (N - 2)]))
    assert "do not have 5 tokens" in refused(changed("tokens", lambda tokens: tokens[1:]))
    assert "do not have 5 tokens" in refused(changed("token_weights", lambda weights: [0.0, *weights]))
    assert "are not of length 1" in refused(changed("tokens", lambda tokens: None))
    assert "it does not have the columns" in refused(whole.drop_columns(["tokens"]))
    assert "it does not have the columns" in refused(whole, lambda about: about | {"tokens": None})
    assert "it does not have the columns" in refused(whole, lambda about: about | {"tokens": [N, DIM + 1]})
    for shape in ([0, 8], "x", [1], [5, 8.0]):
        assert "is not a part of format" in refused(whole, lambda about, shape=shape: about | {"tokens": shape})


# --- Heat maps of words --------------------------------------------------------------------------------------


def test_regions_of_a_text(made, videos):
    """The heat maps of hits peak where the masks of the model do."""
    index, without = made
    text = "a red square moves left"
    with torch.no_grad():
        for hit in index.search(text, k=3, regions=True):
            clip = index.processor(videos=[hit.path], **index.span_of(hit))
            outputs = index.model(**clip, **index.processor(text=[text]))
            masks = outputs.video_model_output.region_masks[0]
            assert hit.phrases[0] == text
            assert all(phrase in text for phrase in hit.phrases)
            assert hit.regions.shape == (len(masks), len(hit.phrases), *masks.shape[2:])
            assert hit.regions.dtype == np.float32
            cosines = outputs.text_token_embeds[0] @ outputs.video_token_embeds[0].T
            weights = outputs.text_token_weights[0].clone()
            weights[[0, -1]] = 0  # the tokens that begin and end a text are not words
            best = int((weights @ cosines).argmax())
            assert hit.regions[:, 0].argmax() == masks[:, best].flatten().argmax()
    both = index.search([text, "blue"], k=1, regions=True)
    assert [hit.phrases[0] for (hit,) in both] == [text, "blue"]
    assert index.search("?", k=1, regions=True)[0].phrases == ("?",)
    (by_video,) = index.search(video=str(videos / "e.mp4"), k=1, regions=True)
    assert (by_video.phrases, by_video.regions.shape[1]) == ((), N)
    assert without.search(text, k=1, regions=True)[0].phrases  # phrases come from the model, not from the index
    assert index.search(text, k=1)[0].regions is None


def test_the_page_shows_where_words_are(made, videos, tmp_path):
    index, _ = made
    hits = index.search("a <red> square moves left", k=2, regions=True)
    page = write_search_page(tmp_path / "page.html", index, [("a <red> square", hits)]).read_text()
    assert "orange shows which part of them matches the query" in page
    assert "do not depend on the query" not in page
    assert page.count('alt="Frames of the span with a heat map of ') == sum(len(hit.phrases) for hit in hits)
    assert 'heat map of a &lt;red&gt; square moves left"' in page
    page = write_search_page(
        tmp_path / "page.html", index, [("a video", index.search(video=str(videos / "e.mp4"), k=2, regions=True))]
    ).read_text()
    assert "do not depend on the query" in page
    assert "heat map" not in page


def test_frames_with_the_peak_are_shown():
    heat = torch.zeros(12, 4, 4)
    heat[5, 1, 2] = 1
    assert _with_peak([1, 4, 7, 10], heat) == [1, 5, 7, 10]
    assert _with_peak([0], heat) == [5]


def test_the_app_shows_where_words_are(made):
    pytest.importorskip("gradio")
    from region_learner.search.app import Answers, Query

    index, _ = made
    (hit,) = index.search("blue circle", k=1)
    answers = Answers(index)
    assert "heat map of blue circle" in answers.draw(hit, True, Query("words", {"text": "blue circle"}))
    for query in (None, Query("a video", {"video": "x"})):
        assert "They do not depend on the query" in answers.draw(hit, True, query)
    assert answers.draw(hit, False, None) == ""

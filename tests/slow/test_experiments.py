"""Tests the experiments at toy size: runs that can be resumed and extended, statistics against scipy, and tables."""

import dataclasses
import json
import os
import pickle
import re
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from experiments import ablation, kept_tokens, render, runs, seeds, words
from experiments.clips import SPLITS, ClipsInMemory, CollatorInMemory, Split, prepare
from experiments.gatherings import GATHERINGS
from experiments.runs import add_run, read_runs, run_in_processes, runs_of
from experiments.settings import SETTINGS, TABLES, Row, rows_of, with_baselines
from experiments.step_time import relative_step_times
from experiments.tables import (
    contrast_table,
    interval,
    loss_correlation,
    mask_table,
    mean_cell,
    model_table,
    summarize,
)
from experiments.training import _losses, new_model, train_and_measure
from region_learner import load_corpus
from region_learner.corpora import load_masks
from region_learner.evaluation.region_baselines import grid_masks
from region_learner.files import locked
from region_learner.modeling_region_learner import word_region_similarity

pytestmark = pytest.mark.slow

TOY = dataclasses.replace(
    SETTINGS["shapes"],
    options=SETTINGS["shapes"].options | {"train": 16, "val": 8, "test": 8},
    video_config=SETTINGS["shapes"].video_config
    | {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16},
    text_config=SETTINGS["shapes"].text_config | {"dim": 16, "n_layers": 1, "hidden_dim": 16},
    epochs=2,
    batch_size=8,
    warmup_steps=1,
    regions_on=4,
)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Corpora are generated in a cache directory of this module, not in the user's."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        home = str(tmp_path_factory.mktemp("home"))
        patch.setattr(constants, "HF_HOME", home)
        patch.setenv("HF_HOME", home)  # for the processes of the runs
        yield


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    prepare(TOY, directory)
    return directory


def test_names_of_tables_and_rows_differ():
    assert not TABLES.keys() & {row.name for rows in TABLES.values() for row in rows}
    with pytest.raises(ValueError, match=r"'decoupld' is not a table or a row"):
        rows_of(["decoupld"])


# The recorded runs, and what docs/evidence.md says about them

RECORDED = sorted(path for path in render.RUNS.rglob("*.jsonl") if not path.stem.endswith(("_words", "_kept")))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: str(path.relative_to(render.RUNS)))
def test_recorded_runs_match_the_current_settings_and_models(path):
    setting = SETTINGS[path.stem.removesuffix("_seeds")]
    recorded = read_runs(path)
    assert runs_of(path, setting, rows_of(TABLES)) == recorded
    keys = [(run["row"], run["seed"], run.get("data_seed")) for run in recorded]
    assert len(set(keys)) == len(keys) > 0


@pytest.mark.parametrize(
    "path", sorted(render.RUNS.rglob("*_words.jsonl")), ids=lambda path: str(path.relative_to(render.RUNS))
)
def test_measurements_of_words_match_the_recorded_runs(path):
    recorded = read_runs(path.with_name(path.name.replace("_words", "")))
    trained = {(run["row"], run["seed"]): run["test"]["t2v_R@1"] for run in recorded}
    for one in read_runs(path):
        assert one["single"] == pytest.approx(trained[one["row"], one["seed"]], abs=0.75)  # rounding differs


def test_a_reduction_to_all_tokens_changes_nothing():
    embeds, weights = F.normalize(torch.randn(2, 9, 4), dim=-1), torch.rand(2, 9).softmax(1)
    texts, words = F.normalize(torch.randn(3, 5, 4), dim=-1), torch.rand(3, 5).softmax(1)
    expected = word_region_similarity(texts, words, embeds, weights)
    for name, reduce in kept_tokens.METHODS.items():
        torch.testing.assert_close(word_region_similarity(texts, words, *reduce(embeds, weights, 9)), expected)
        some, of_some = reduce(embeds, weights, 3)
        assert some.shape == (2, 3, 4), name
        torch.testing.assert_close(of_some.sum(1), torch.ones(2))


def test_models_that_are_missing_or_were_trained_again(tmp_path, capsys):
    arguments = ["--output", str(tmp_path), "--setting", "shapes_short", "--cpu"]
    with pytest.raises(SystemExit, match="1"):
        kept_tokens.main(arguments)
    assert "has no trained models of all_patches" in capsys.readouterr().err
    weights = tmp_path / "weights" / "shapes_short" / "all_patches-0.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"other weights")
    (tmp_path / "shapes_short_kept.jsonl").write_text('{"seed": 0, "weights": "of an earlier run"}\n')
    with pytest.raises(SystemExit, match="1"):
        kept_tokens.main(arguments)
    assert "seed 0 was trained again since: remove its line" in capsys.readouterr().err


def test_reductions_of_tokens_in_two_groups():
    """Five similar tokens and two others: which are kept, or merged, can be seen by hand."""
    one, other = F.normalize(torch.tensor([[1.0, 0.01], [0.0, 1.0]]), dim=-1)
    embeds = torch.stack([one, one, other, one, other, one, one])[None]
    weights = torch.tensor([[3.0, 2.9, 1.0, 2.8, 1.0, 2.7, 2.6]]) / 16
    heaviest, _ = kept_tokens.heaviest(embeds, weights, 2)
    assert torch.equal(heaviest[0], torch.stack([one, one]))
    farthest, shares = kept_tokens.farthest_points(embeds, weights, 2)
    assert torch.equal(farthest[0], torch.stack([one, other]))
    torch.testing.assert_close(shares, torch.tensor([[0.75, 0.25]]))
    for reduce in (kept_tokens.clusters, kept_tokens.merged):
        found, shares = reduce(embeds, weights, 2)
        order = shares[0].argsort(descending=True)
        torch.testing.assert_close(found[0, order], torch.stack([one, other]))
        torch.testing.assert_close(shares[0, order], torch.tensor([14.0, 2.0]) / 16)


@pytest.mark.parametrize(
    ("setting", "table", "least"),
    [
        ("shapes", "main", 5),
        ("shapes", "first_form", 5),
        ("shapes", "sweeps", 3),
        ("letters", "second_corpus", 5),
        ("shapes_unclipped", "unclipped", 5),
    ],
)
def test_tables_are_complete(setting, table, least):
    rows = rows_of([table])
    entries = ablation.entries_of(render.RUNS, setting, SETTINGS[setting], rows)
    assert [entry["row"] for entry in entries] == [row.name for row in rows]
    assert min(len(entry["values"]) for entry in entries) == least
    assert ablation.step_times_of(render.RUNS, setting, table).keys() == {row.name for row in rows}
    # Baselines are also read if they are not among the rows.
    alone = ablation.entries_of(render.RUNS, setting, SETTINGS[setting], rows[-1:])
    assert alone == entries[-1:]


def test_the_evidence_is_rendered_from_the_recorded_runs():
    document = render.DOCUMENT.read_text(encoding="utf-8")
    assert document.count("<!-- table: ") == document.count("<!-- end of table -->") > 0
    assert render.render(document) == document
    changed = re.sub(r"(<!-- table: .*?)\d+\.\d ±", r"\g<1>99.9 ±", document, count=1, flags=re.DOTALL)
    assert changed != document
    assert render.render(changed) == document


def test_help_of_render_writes_nothing(monkeypatch, capsys):
    monkeypatch.setattr(render, "DOCUMENT", None)  # any use is an error
    with pytest.raises(SystemExit, match="0"):
        render.main(["--help"])
    assert "docs/evidence.md" in capsys.readouterr().out


def test_tables_have_no_negative_zero():
    assert mean_cell([-0.04, 0.02]) == "0.0, 0.0"
    assert mean_cell([-0.04, 0.02, -0.01], sign="+").startswith("+0.0 ± ")


# One run


# The dictionary removes duplicates: rows are in several tables.
@pytest.mark.parametrize(
    "row", {row.name: row for rows in TABLES.values() for row in rows}.values(), ids=lambda row: row.name
)
def test_every_part_of_every_model_learns(row):
    torch.manual_seed(0)
    small = row.video_config | ({"codebook_size": 8} if row.video_config["codebook_size"] else {})
    model, _ = new_model(TOY, dataclasses.replace(row, video_config=small), ["a word or two for the tokenizer"])
    clips, texts = torch.randn(4, 3, 3, 48, 48), torch.randint(4, 10, (4, 5))
    if row.labels:
        clips = torch.cat([clips, torch.randint(0, 4, (4, 3, 1, 48, 48)).float()], 2)
    for _ in range(2):  # time attention starts at zero: layers before it have no gradient in the first step
        model.zero_grad()
        model.train()(
            input_ids=texts, attention_mask=torch.ones_like(texts), pixel_values_videos=clips, return_loss=True
        ).loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
    without = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    # A softmax cancels these: the biases of the mask and motion convolutions, and of keys.
    if row.video_config["num_regions"] == 1:  # nothing can change the mask of a single region
        without.remove("video_model.region_module.aggregation.conv.weight")
    assert all(name.endswith("bias") for name in without), without


def test_clips_in_memory_match_the_processor(prepared):
    rows = load_corpus(TOY.corpus, split="val", **TOY.options)
    _, processor = new_model(TOY, rows_of(["frozen"])[0], rows["captions"][0])
    split, clip = Split.load(TOY, prepared, "val"), ClipsInMemory(processor.video_processor)
    whole = {"do_resize": False, "do_center_crop": False, "output_size": None}
    for index in (0, 5):
        theirs = processor.video_processor([rows["video"][index]], return_tensors="pt", **whole)
        torch.testing.assert_close(clip(split.frames[index]), theirs["pixel_values_videos"][0])
    drawn = [clip(split.frames[0], True, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    collator = CollatorInMemory(processor, split.frames)
    collated = collator._decode(split.rows[0], torch.Generator().manual_seed(1), [])
    assert torch.equal(collated, drawn[0])


def test_true_masks_are_those_of_the_objects(prepared):
    prepare(TOY, prepared, ["val"], labels=True)
    plain, labeled = (Split.load(TOY, prepared, "val", labels) for labels in (False, True))
    model, processor = new_model(TOY, rows_of(["true_masks"])[0], ["a few words for the tokenizer"])
    clip = ClipsInMemory(processor.video_processor)
    clips = torch.stack([clip(frames) for frames in labeled.frames])
    torch.testing.assert_close(clips[:, :, :3], torch.stack([clip(frames) for frames in plain.frames]))
    masks = model.eval().video_model(clips).region_masks  # (B, T, S, h, w), with a mean of 1 over each frame
    indices, orders = clip.indices(labeled.frames[0]), set()
    for row, found in zip(labeled.rows, masks):
        slots = []
        for label in range(1, 1 + len(row["objects"])):
            pixels = torch.from_numpy(load_masks(row)[indices] == label).float()  # (T, 48, 48)
            patches = pixels.unfold(1, 8, 8).unfold(2, 8, 8).mean((3, 4))
            expected = 36 * patches / patches.sum((1, 2), keepdim=True).clamp(min=1e-6)
            same = [slot for slot in range(6) if torch.allclose(found[:, slot], expected, atol=1e-4)]
            assert same
            slots.append(same[0])
        orders.add(tuple(slots))
        assert found[:, :6].flatten(2).any(2).any(0).sum() == len(set(slots))
        assert torch.equal(found[0, 6:] > 0, grid_masks(6, 6, 6) > 0)
    assert len(orders) > 1
    drawn = dataclasses.replace(TOY, drawn=True)
    prepare(drawn, prepared / "drawn", ["val"], labels=True)
    drawn = Split.load(drawn, prepared / "drawn", "val", labels=True)
    assert np.array_equal(drawn.frames[..., 3], labeled.frames[..., 3])


def test_true_masks_that_are_made_worse():
    config = new_model(TOY, rows_of(["queries"])[0], ["a few words for the tokenizer"])[0].config.video_config
    labels = torch.zeros(64, 3, 48, 48)
    labels[:, :, :16, :16], labels[:, :, 40:, 40:] = 1, 2  # four patches and one patch

    def found(name: str) -> torch.Tensor:  # (clips, frames, objects, patches)
        gathering = GATHERINGS[name](config).eval()
        gathering.labels = labels
        return gathering.attend(torch.zeros(64, 3, 6, 6, 96), None, None)[:, 0, :, :6]

    shown = found("true_masks").sum(-1).round()
    assert (shown.sum(2) == 2).all()
    assert (shown == shown[:, :1]).all()
    blurred = found("blurred_masks")
    assert sorted((blurred[0, 0] > 0).sum(-1).tolist()) == [0, 0, 0, 0, 4, 9]
    missing = found("missing_masks").sum(-1).round()
    assert 0.6 < missing.sum() / shown.sum() < 0.9
    assert (missing == missing[:, :1]).all()
    untracked = found("untracked_masks").sum(-1).round()
    assert (untracked.sum(2) == 2).all()
    assert (untracked != untracked[:, :1]).any((1, 2)).float().mean() > 0.9


def test_masks_of_a_fixed_grid():
    row = rows_of(["decoupled_words_grid"])[0]
    model, _ = new_model(TOY, row, ["a few words for the tokenizer"])
    masks = model.eval().video_model(torch.randn(2, 3, 3, 48, 48)).region_masks
    torch.testing.assert_close(masks / masks.amax((3, 4), keepdim=True), grid_masks(8, 6, 6).expand(2, 3, -1, -1, -1))


def test_loader_processes_do_not_copy_the_clips(prepared):
    train = Split.load(TOY, prepared, "train")
    _, processor = new_model(TOY, rows_of(["decoupled"])[0], ["a word or two for the tokenizer"])
    collator = CollatorInMemory(processor, train.frames)
    sent = pickle.dumps(collator)
    assert len(sent) < train.frames.nbytes / 10
    received = pickle.loads(sent)
    np.testing.assert_array_equal(received.frames[train.rows[3]["index"]], train.frames[3])


def test_settings_share_a_directory_if_their_clips_are_the_same(tmp_path):
    assert SETTINGS["shapes"].clips_in(tmp_path) == SETTINGS["shapes_short"].clips_in(tmp_path)
    for changed in ({"options": TOY.options | {"train": 17}}, {"drawn": True}):
        assert dataclasses.replace(TOY, **changed).clips_in(tmp_path) != TOY.clips_in(tmp_path)


def test_missing_clips_are_reported(prepared, tmp_path):
    np.save(tmp_path / "val.npy", np.load(prepared / "val.npy")[1:])
    with pytest.raises(ValueError, match=r"has 7 clips of val, expected 8: remove it"):
        Split.load(TOY, tmp_path, "val")


def test_drawn_clips_equal_the_corpus_before_encoding(prepared, tmp_path):
    drawn = dataclasses.replace(TOY, drawn=True)
    prepare(drawn, tmp_path)
    for name in SPLITS:
        ours, theirs = Split.load(drawn, tmp_path, name), Split.load(TOY, prepared, name)
        columns = ("video_id", "captions", "objects", "index")
        assert [[row[key] for key in columns] for row in ours.rows] == [
            [row[key] for key in columns] for row in theirs.rows
        ]
        assert 0 < abs(ours.frames.astype(int) - theirs.frames).mean() < 4  # the effect of the codec
        new = ("captions", "negative_captions", "options", "answer", "aspect")
        assert [[pair[key] for key in new] for pair in ours.pairs(drawn, name)] == [
            [pair[key] for key in new] for pair in theirs.pairs(TOY, name)
        ]
    for one, other in zip(ours.rows, theirs.rows):
        assert np.array_equal(load_masks(one), load_masks(other))
        assert np.array_equal(one["video"], ours.frames[one["index"]])
    with pytest.raises(ValueError, match="drawn=True is for moving_shapes"):
        dataclasses.replace(SETTINGS["letters"], drawn=True)


def test_the_same_seeds_give_the_same_run(prepared):
    pairs = [(3, None), (3, 3), (4, None), (3, 4)]  # seeds of weights and of data
    same, again, *others = (
        train_and_measure(TOY, rows_of(["decoupled"])[0], seed, prepared, data_seed=data) for seed, data in pairs
    )
    for name in ("val", "test", "loss", "region_loss", "regions", "curve"):
        assert same[name] == again[name]
    assert "data_seed" not in same
    assert again["data_seed"] == 3
    assert len({json.dumps(one["regions"]["learned"]) for one in (same, *others)}) == 3


def test_losses_are_separated():
    model, _ = new_model(TOY, rows_of(["decoupled"])[0], ["a word or two for the tokenizer"])
    history = [{"loss": 3.5, "region_loss": 0.75}, {"eval_loss": 9.0}, {"loss": 2.0, "region_loss": 0.5}]
    assert _losses(model, history) == {"loss": [2.75, 1.5], "region_loss": [0.75, 0.5]}
    assert _losses(model, [{"loss": 3.5}]) == {"loss": [3.5], "region_loss": []}


# Many runs


def test_runs_are_recorded_added_to_and_not_repeated(tmp_path, capsys, monkeypatch):
    rows, path = rows_of(["frozen", "decoupled"]), tmp_path / "toy.jsonl"
    ablation.run_missing(tmp_path, "toy", TOY, rows, range(1), use_cpu=True, progress=False)
    first = path.read_text()
    run = read_runs(path)[1]
    assert (run["row"], run["seed"]) == ("decoupled", 0)
    assert [point["epoch"] for point in run["curve"]] == [1, 2]
    assert "epochs_factor" not in run
    assert run["curve"][-1]["t2v_R@1"] == run["val"]["t2v_R@1"]
    assert 0 < run["codes_in_use"] <= 1
    assert run["regions"]["clips"] == 4
    assert run["parameters"] > run["parameters_of_region_module"] > 0
    ablation.run_missing(tmp_path, "toy", TOY, rows, range(2), jobs=2, use_cpu=True, progress=False)
    assert path.read_text().startswith(first)
    assert {(run["row"], run["seed"]) for run in read_runs(path)} == {
        (name, seed) for name in ("frozen", "decoupled") for seed in (0, 1)
    }

    # The command only prints the tables now: all runs are recorded.
    monkeypatch.setitem(SETTINGS, "toy", TOY)
    before, figures = path.read_text(), tmp_path / "figures"
    command = ["--output", str(tmp_path), "--setting", "toy", "--rows", "frozen, decoupled", "--seeds", "2", "--cpu"]
    ablation.main([*command, "--step-times", "--figures", str(figures)])
    assert path.read_text() == before
    text = capsys.readouterr().out
    assert "| no regions (Frozen in Time) | 2 |" in text
    assert "| 1.00 |" in text
    assert json.loads((tmp_path / "step_times.json").read_text())["toy"]["frozen-decoupled"]["frozen"] == 1.0
    for name in ("toy_frozen-decoupled_means", "toy_frozen-decoupled_curves", "toy_masks_decoupled"):
        assert (figures / f"{name}.webp").stat().st_size > 3000
    ablation.main(command)
    assert capsys.readouterr().out == text  # recorded step times are kept


def test_pairs_of_seeds(tmp_path, capsys, monkeypatch):
    def run_here(function, tasks, keep, *_):  # a process takes several seconds to start
        for arguments in tasks.values():
            keep(function(*arguments))

    monkeypatch.setattr(ablation, "run_in_processes", run_here)
    monkeypatch.setitem(SETTINGS, "toy", TOY)
    command = ["--output", str(tmp_path), "--setting", "toy", "--row", "frozen", "--cpu", "--seeds"]
    seeds.main([*command, "0"])
    seeds.main([*command, "0", "1"])
    found = {
        (run["seed"], run["data_seed"]): run["test"]["t2v_R@1"] for run in read_runs(tmp_path / "toy_seeds.jsonl")
    }
    assert list(found) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"| {weights} | {found[weights, 0]:.1f} | {found[weights, 1]:.1f} |" for weights in (0, 1)
    ]


def test_recorded_runs_of_another_setting_or_model_are_refused(tmp_path, capsys, monkeypatch):
    path = tmp_path / "toy.jsonl"
    (row,) = rows_of(["frozen"])
    run = _runs({"frozen": [1.0]})[0] | {"setting": dataclasses.asdict(TOY), "video_config": row.video_config}
    add_run(path, run)
    assert runs_of(path, TOY, [row]) == [run]
    assert runs_of(path, dataclasses.replace(TOY, epochs=1), rows_of(["decoupled"])) == []
    with pytest.raises(ValueError, match=r"the run of frozen, seed 0, had another setting \(epochs\)"):
        runs_of(path, dataclasses.replace(TOY, epochs=1), [row])
    with pytest.raises(ValueError, match=r"frozen, seed 0, had another video_config \(num_regions\)"):
        runs_of(path, TOY, [dataclasses.replace(row, video_config=row.video_config | {"num_regions": 1})])
    monkeypatch.setitem(SETTINGS, "toy", TOY)
    path.write_text(path.read_text() + '{"row": "fro\n')
    with pytest.raises(SystemExit):
        ablation.main(["--output", str(tmp_path), "--setting", "toy"])
    assert f"{path}, line 2 is not JSON" in capsys.readouterr().err


def test_words_and_regions_of_trained_models(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(SETTINGS, "toy", TOY)
    names = ("decoupled", "queries", "queries_negatives", "cells")
    ablation.run_missing(tmp_path, "toy", TOY, rows_of(names), range(2), use_cpu=True, progress=False)
    trained = {(run["row"], run["seed"]): run for run in read_runs(tmp_path / "toy.jsonl")}
    assert [run["negatives"] for run in trained.values() if "negatives" in run] == [True, True]
    weights = [(tmp_path / "weights" / "toy" / f"{name}-0.safetensors").read_bytes() for name in names[1:3]]
    assert weights[0] != weights[1]
    arguments = ["--output", str(tmp_path), "--setting", "toy", "--rows", ",".join(names)]
    words.main(arguments)
    printed = capsys.readouterr().out
    found = read_runs(tmp_path / "toy_words.jsonl")
    assert {(one["row"], one["seed"]) for one in found} == trained.keys()
    for one in found:
        assert one["single"] == pytest.approx(trained[one["row"], one["seed"]]["test"]["t2v_R@1"])
        assert ("tokens" in one) == ("where" in one) == (one["row"] != "decoupled")
        assert 0 <= one["exchanged"]["all"] <= 100
        assert one.get("where", {"chance_pointing": 7})["chance_pointing"] > 0
        assert one["unseen"].keys() == one.keys() & {"single", "tokens", "reranked"}
    assert any(one["unseen"]["single"] != one["single"] for one in found)  # measured on other clips
    words.main(arguments)  # nothing is measured again
    assert capsys.readouterr().out == printed
    weights = tmp_path / "weights" / "toy"
    kept = (weights / "cells-1.safetensors").read_bytes()
    (weights / "cells-1.safetensors").write_bytes((weights / "cells-0.safetensors").read_bytes())
    with pytest.raises(SystemExit):
        words.main(arguments)
    assert "cells, seed 1, was trained again since: remove its line." in capsys.readouterr().err
    (weights / "cells-1.safetensors").write_bytes(kept)
    of = {name: [one for one in found if one["row"] == name] for name in names}
    expected = [a["reranked"] - b["single"] for a, b in zip(of["queries"], of["decoupled"])]
    compared = "| queries | decoupled |"
    line = next(line for line in printed.splitlines() if line.startswith(compared))
    assert line.split(" | ")[5] == ", ".join(f"{difference:+.1f}" for difference in expected)
    with pytest.raises(ValueError, match="the run of queries, seed 0, had another negatives"):
        runs_of(tmp_path / "toy.jsonl", TOY, [dataclasses.replace(rows_of(["queries"])[0], negatives=True)])


def test_a_row_that_is_trained_longer(prepared):
    row = dataclasses.replace(rows_of(["frozen"])[0], epochs_factor=2)
    run = train_and_measure(TOY, row, 0, prepared, use_cpu=True)
    assert [point["epoch"] for point in run["curve"]] == [1, 2, 3, 4]
    assert run["epochs_factor"] == 2


def test_custom_rows_are_compared_with_each_other(tmp_path):
    base = dataclasses.replace(rows_of(["frozen"])[0], name="base", baseline="base")
    mine = dataclasses.replace(rows_of(["patches_max"])[0], name="mine", baseline="base")
    for row, run in zip((base, mine), _runs({"base": [1.0], "mine": [2.0]})):
        add_run(tmp_path / "toy.jsonl", run | {"setting": dataclasses.asdict(TOY), "video_config": row.video_config})
    _, entry = ablation.entries_of(tmp_path, "toy", TOY, [base, mine])
    assert (entry["pairs"], entry["difference"]) == (1, (1.0, None))


def test_one_command_at_a_time(tmp_path):
    with locked(tmp_path), pytest.raises(BlockingIOError, match="is being written to by another run"):
        ablation.run_missing(tmp_path, "toy", TOY, rows_of(["frozen"]), range(1), progress=False)


def test_a_failed_run_is_named_and_the_others_are_kept(tmp_path):
    rows = [Row("broken", "", {"hidden_size": 17}), *rows_of(["frozen"])]
    message = r"1 of 2 runs failed, the first: broken, seed 0 \(ValueError: hidden_size"
    with pytest.raises(ChildProcessError, match=message):
        ablation.run_missing(tmp_path, "toy", TOY, rows, range(1), jobs=2, use_cpu=True, progress=False)
    assert [run["row"] for run in read_runs(tmp_path / "toy.jsonl")] == ["frozen"]


def test_each_run_has_its_own_process(monkeypatch):
    """Runs functions of `os`, since importing anything else would take each process several seconds."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    kept = []
    run_in_processes(os.getpid, {"first": (), "second": ()}, kept.append, progress=False)
    assert len({*kept, os.getpid()}) == 3
    for use_cpu in (False, True):
        run_in_processes(os.getenv, {"gpu": ("CUDA_VISIBLE_DEVICES",)}, kept.append, use_cpu=use_cpu, progress=False)
    assert kept[2:] == ["5", ""]
    with pytest.raises(ChildProcessError, match=r"1 of 1 runs failed, the first: dies .*terminated abruptly"):
        run_in_processes(os._exit, {"dies": (3,)}, kept.append, progress=False)


def test_runs_use_the_gpus_that_are_free(monkeypatch):
    """The first of five runs lasts until all others are done, so these take turns on the other GPU."""
    taken, others = [], threading.Semaphore(0)

    def fake(gpu, threads, function, arguments):
        taken.append((*arguments, gpu))
        if arguments == (0,):
            assert all(others.acquire(timeout=60) for _ in range(4))
        else:
            others.release()
        return {}

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setattr(runs, "_in_process", fake)
    run_in_processes(print, {str(n): (n,) for n in range(5)}, lambda _: None, jobs=2, progress=False)
    assert sorted(taken) == [(0, "5"), *((number, "7") for number in (1, 2, 3, 4))]


# Statistics


def _runs(values: dict[str, list[float]]) -> list[dict]:
    return [
        {
            "row": row,
            "seed": seed,
            "test": {"t2v_R@1": value, "v2t_R@1": value},
            "parameters": 1,
            "loss": [9.0, *[(50 - value) / 20 + seed % 2] * 4],
        }
        for row, of_row in values.items()
        for seed, value in enumerate(of_row)
    ]


def test_correlation_is_within_rows():
    both = rows_of(["frozen", "decoupled"])
    entries = summarize(_runs({"frozen": [30.0, 34.0, 31.0], "decoupled": [60.0, 61.0, 66.0, 60.5]}), both)
    losses, values = ([np.array(list(entry[name].values())) for entry in entries] for name in ("losses", "values"))
    centered = [np.concatenate([part - part.mean() for part in parts]) for parts in (losses, values)]
    assert loss_correlation(entries) == pytest.approx(stats.pearsonr(*centered).statistic)
    assert list(entries[0]["losses"].values()) == pytest.approx([1.0, 1.8, 0.95])
    assert loss_correlation(summarize(_runs({"frozen": [30.0], "decoupled": [60.0]}), both)) is None
    assert loss_correlation(summarize(_runs({"frozen": [30.0], "decoupled": [60.0, 60.0, 60.0]}), both)) is None
    assert loss_correlation([]) is None


def test_intervals_match_scipy():
    rng = np.random.default_rng(0)
    base, other = rng.normal(30, 3, 5), rng.normal(36, 3, 5)
    found = _runs({"decoupled_motion": other + 1, "decoupled": other, "frozen": base})
    rows = rows_of(["frozen", "decoupled", "decoupled_motion"])
    frozen, decoupled, motion = summarize(found[::-1], rows)  # in the order of the table, not of the runs
    for entry, values in ((frozen, base), (decoupled, other)):
        low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
        mean, half = entry["mean"], entry["half_width"]
        assert (mean - half, mean + half) == pytest.approx((low, high))
    paired = stats.ttest_rel(other, base).confidence_interval(0.95)
    difference, half = decoupled["difference"]
    assert (difference - half, difference + half) == pytest.approx((paired.low, paired.high))
    assert motion["difference"][0] == pytest.approx(difference + 1)
    assert "difference" not in frozen
    assert f"{decoupled['mean']:.1f} ± {decoupled['half_width']:.1f}" in model_table([frozen, decoupled])
    assert interval([4.0]) == (4.0, None)
    # Only seeds that both rows have are paired.
    uneven = _runs({"frozen": [1.0], "decoupled": [4.0, 5.0]})
    table = model_table(summarize(uneven, rows_of(["frozen", "decoupled"])), {"decoupled": 1.25})
    assert "| decoupled | 2 | 4.5 ± 6.4 | +3.0 (1 pair) | 4.5 | 0 k | 1.25 |" in table
    # A row of the sweeps is compared with the form that it varies.
    uneven = _runs({"frozen": [1.0, 2.0], "decoupled": [4.0], "decoupled_4_regions": [4.5]})
    rows = rows_of(["decoupled", "decoupled_4_regions"])
    assert [row.name for row in with_baselines(rows)] == ["decoupled", "decoupled_4_regions", "frozen"]
    decoupled, sweep = summarize(uneven, rows)
    assert decoupled["difference"] == (3.0, None)
    assert sweep["difference"] == (0.5, None)
    assert "| decoupled: 4 regions | 1 | 4.5 | +0.5 |" in model_table([decoupled, sweep])


def test_tables_of_contrasts_and_masks():
    found = _runs({"frozen": [1.0, 2.0], "decoupled": [4.0, 6.0], "decoupled_no_codes": [3.0, 3.0]})
    masks = {"iou": 20.0, "pointing": 30.0, "precision": 31.0, "owned": 1.0, "stability": None, "masks": 8}
    for one, iou in zip(found[2:], (25.0, 26.0, 28.0, 29.0)):
        one["regions"] = {"clips": 4, "learned": masks | {"iou": iou}, "kmeans": masks | {"iou": iou + 1}}
    entries = summarize(found, rows_of(["frozen", "decoupled", "decoupled_no_codes"]))
    contrasts = contrast_table(entries, [("decoupled", "decoupled_no_codes"), ("decoupled", "paper")])
    assert contrasts.splitlines()[2:] == ["| decoupled | decoupled, without quantization | 2 | +1.0, +3.0 |"]
    assert contrast_table(entries, [("decoupled", "paper")]) is None
    rest = "30.0 ± 0.0 | 31.0 ± 0.0 | 1.0 ± 0.0 |  |"
    half = interval([25.0, 26.0])[1]
    assert mask_table(entries).splitlines()[2:] == [
        f"| decoupled | 8 | 25.5 ± {half:.1f} | {rest}",
        f"| decoupled, without quantization | 8 | 28.5 ± {half:.1f} | {rest}",
        f"| k-means on the features of decoupled (`kmeans`) | 8 | 26.5 ± {half:.1f} | {rest}",
    ]
    assert mask_table(entries[:1]) is None


def test_step_times_are_relative_to_the_first_row():
    times = relative_step_times(TOY, rows_of(["frozen", "decoupled"]), rounds=2, use_cpu=True)
    assert times["frozen"] == 1.0
    assert times.keys() == {"frozen", "decoupled"}

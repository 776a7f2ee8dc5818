"""The ablation at toy size: runs that can be interrupted and added to, and statistics against scipy."""

import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from region_learner import ablation, load_corpus
from region_learner.ablation import (
    CONTRASTS,
    ROWS,
    SETTINGS,
    Row,
    _costs_before,
    _runs_of,
    ablate,
    report,
    rows_of,
    summarize,
    table,
)
from region_learner.ablation.cost import relative_cost
from region_learner.ablation.run import ClipsInMemory, Split, new_model, prepare, run
from region_learner.ablation.summary import (
    contrast_table,
    interval,
    loss_correlation,
    read_json,
    read_runs,
    region_table,
)
from region_learner.cli import main
from region_learner.files import locked

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
    """Corpora are made in a cache directory of this module, not in that of the user."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        home = str(tmp_path_factory.mktemp("home"))
        patch.setattr(constants, "HF_HOME", home)
        patch.setenv("HF_HOME", home)  # of the processes of the runs
        yield


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    prepare(TOY, directory)
    return directory


def test_names_of_tables_and_rows_differ():
    assert not ROWS.keys() & {row.name for rows in ROWS.values() for row in rows}


DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("setting", [path.name for path in sorted((DOCS / "evidence").iterdir())])
def test_the_runs_of_the_evidence_are_those_of_its_rows(setting):
    output = DOCS / "evidence" / setting
    names = [name for name in ROWS if _runs_of(output, SETTINGS[setting], rows_of([name]))]
    assert names
    found = {run["row"] for name in names for run in _runs_of(output, SETTINGS[setting], rows_of([name]))}
    assert {run["row"] for run in read_runs(output).values()} == found


@pytest.mark.parametrize("summary", sorted(DOCS.glob("evidence/*/*.json")), ids=lambda path: path.stem)
def test_the_tables_of_the_evidence_are_of_its_runs(summary):
    costs = {entry["row"]: entry.get("cost") for entry in json.loads(summary.read_text(encoding="utf-8"))}
    rows = rows_of([summary.stem])
    entries = summarize(_runs_of(summary.parent, SETTINGS[summary.parent.name], rows), rows)
    for entry in entries:
        if costs[entry["row"]] is not None:
            entry["cost"] = costs[entry["row"]]
    tables = [table(entries), contrast_table(entries, CONTRASTS), region_table(entries)]
    written, told = summary.with_suffix(".md"), DOCS / "evidence.md"
    for some in filter(None, tables):
        assert some in written.read_text(encoding="utf-8")
    # Where masks land is told of the first table of each corpus.
    for some in filter(None, tables if summary.stem in ("main", "second_corpus") else tables[:2]):
        assert some in told.read_text(encoding="utf-8")


def _correlation(setting: str, rows: str) -> str:
    """As said in evidence.md: of R@1 with the mean loss of the last 200 steps, within rows."""
    losses, values = {}, {}
    for found in read_runs(DOCS / "evidence" / setting).values():
        if found["row"] in rows.split():
            losses.setdefault(found["row"], []).append(np.mean(found["loss"][-4:]))
            values.setdefault(found["row"], []).append(found["test"]["t2v_R@1"])
    assert losses.keys() == set(rows.split())
    within = (np.concatenate([np.array(row) - np.mean(row) for row in some.values()]) for some in (losses, values))
    return f"{np.corrcoef(*within)[0, 1]:.2f}"


def test_what_the_evidence_says_of_seeds():
    told = (DOCS / "evidence.md").read_text(encoding="utf-8")
    told = " ".join(told[told.index("### Why seeds differ") : told.index("## The sweeps")].split())
    means = _correlation("shapes", "frozen frozen_deeper patches quantization aggregation paper paper_motion")
    maxima = "patches_max ours ours_1_region ours_no_codes"
    of_shapes = _correlation("shapes", f"{maxima} patches_max_deeper ours_no_interaction ours_motion")
    assert f"(r = {means} within models, {_correlation('letters', 'frozen paper')} on `letters`)" in told
    assert f"(r = {of_shapes}; on `letters`, where they are less far, {_correlation('letters', maxima)})" in told
    directory = DOCS / "evidence" / "shapes"
    for weights in (0, 2):
        runs = [read_json(directory / "seeds" / f"paper-{weights}-{data}.json") for data in (0, 2)]
        assert [(found["seed"], found["data_seed"]) for found in runs] == [(weights, 0), (weights, 2)]
        assert f"| {weights} | {runs[0]['test']['t2v_R@1']:.1f} | {runs[1]['test']['t2v_R@1']:.1f} |" in told
    whole = (DOCS / "evidence.md").read_text(encoding="utf-8")
    for row in ("frozen", "paper", "ours"):
        again, before = (read_json(directory / name / f"{row}-0.json") for name in ("again", "runs"))
        assert f"{again['test']['t2v_R@1']:.1f} instead of {before['test']['t2v_R@1']:.1f}" in " ".join(whole.split())


# Rows are in several tables.
@pytest.mark.parametrize(
    "row", {row.name: row for rows in ROWS.values() for row in rows}.values(), ids=lambda row: row.name
)
def test_every_row_is_a_model_that_learns_in_all_its_parts(row):
    torch.manual_seed(0)
    small = row.video_config | ({"codebook_size": 8} if row.video_config["codebook_size"] else {})
    model, _ = new_model(TOY, dataclasses.replace(row, video_config=small), ["a word or two for the tokenizer"])
    clips, texts = torch.randn(4, 3, 3, 48, 48), torch.randint(4, 10, (4, 5))
    for _ in range(2):  # time attention starts at zero: what is before it has a gradient from the second step on
        model.zero_grad()
        model.train()(
            input_ids=texts, attention_mask=torch.ones_like(texts), pixel_values_videos=clips, return_loss=True
        ).loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
    without = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    # What a softmax cancels: the bias of a mask's convolution, that of motion's, and keys' biases.
    if row.video_config["num_regions"] == 1:  # whose mask nothing can change
        without.remove("video_model.region_module.aggregation.conv.weight")
    assert all(name.endswith("bias") for name in without), without


def test_clips_in_memory_are_those_of_the_processor(prepared):
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


@pytest.mark.slow
def test_runs_are_kept_added_to_and_not_repeated(tmp_path):
    first = ablate(tmp_path, TOY, rows_of(["frozen", "ours"]), seeds=1, use_cpu=True, progress=False)
    assert [(row["row"], row["seeds"]) for row in first] == [("frozen", [0]), ("ours", [0])]
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert set(files) == {"frozen-0.json", "ours-0.json"}
    second = ablate(tmp_path, TOY, rows_of(["frozen", "ours"]), seeds=2, jobs=2, use_cpu=True, progress=False)
    assert [row["seeds"] for row in second] == [[0, 1], [0, 1]]
    assert {name: (tmp_path / "runs" / name).stat().st_mtime_ns for name in files} == files
    run = json.loads((tmp_path / "runs" / "ours-0.json").read_text())
    assert run["test"]["t2v_R@1"] == first[1]["values"][0]
    assert [point["epoch"] for point in run["curve"]] == [1, 2]
    assert run["curve"][-1]["t2v_R@1"] == run["val"]["t2v_R@1"]
    assert 0 < run["codes_in_use"] <= 1
    assert run["regions"]["clips"] == 4
    assert run["parameters"] > run["parameters_of_region_module"] > 0

    chosen = rows_of(["frozen", "ours"])
    text = report(tmp_path, TOY, chosen, second, use_cpu=True, cost=True, figures=True)
    assert "no regions: Frozen in Time | 2 |" in text
    assert (tmp_path / "main.md").read_text() == text + "\n"
    costs = [entry["cost"] for entry in json.loads((tmp_path / "main.json").read_text())]
    assert costs[0] == 1.0
    for picture in ("main_means.png", "main_curves.png", "main_losses.png", "masks/ours.png"):
        assert (tmp_path / picture).stat().st_size > 5000
    report(tmp_path, TOY, rows_of(["ours"]), second[1:], "other")  # tables of one directory leave each other alone
    assert (tmp_path / "main.md").read_text() == text + "\n"
    fresh = ablate(tmp_path, TOY, chosen, seeds=2, progress=False)
    assert report(tmp_path, TOY, chosen, fresh) == text  # a cost once measured is kept
    assert [entry["cost"] for entry in fresh] == costs
    # but not of another model, nor relative to another one
    fresh = ablate(tmp_path, TOY, chosen, seeds=2, progress=False)
    for entries in (fresh[::-1], [fresh[0] | {"video_config": {}}, fresh[1]]):
        assert _costs_before(tmp_path / "main.json", entries) == {}
    fresh[1] |= {"video_config": {}}
    assert _costs_before(tmp_path / "main.json", fresh) == {"frozen": 1.0}
    (tmp_path / "other.json").write_text("[3]")
    with pytest.raises(ValueError, match=r"other.json is no report of an ablation"):
        report(tmp_path, TOY, chosen, fresh, "other")

    for seeds in (1, [7]):  # also where other seeds are asked for: the table would have those that are there, too
        with pytest.raises(ValueError, match=r"frozen-0.json is of another setting \(epochs\)"):
            ablate(tmp_path, dataclasses.replace(TOY, epochs=1), chosen, seeds=seeds, progress=False)
    (tmp_path / "runs" / "foreign.json").write_text("{}")
    with pytest.raises(ValueError, match=r"foreign.json is no run of an ablation, whose 'row' is a str"):
        ablate(tmp_path, TOY, chosen, seeds=1, progress=False)
    (tmp_path / "runs" / "foreign.json").write_text('{"row": "fro')
    with pytest.raises(ValueError, match=r"foreign.json is damaged \(Unterminated string"):
        ablate(tmp_path, TOY, chosen, seeds=1, progress=False)
    del run["test"]["t2v_R@1"]
    (tmp_path / "runs" / "foreign.json").write_text(json.dumps(run))
    with pytest.raises(ValueError, match=r"foreign.json is no run of an ablation, whose test split has 't2v_R@1'"):
        ablate(tmp_path, TOY, chosen, seeds=1, progress=False)


def test_rows_of_ones_own_are_compared_with_each_other(tmp_path):
    base = dataclasses.replace(rows_of(["frozen"])[0], name="base", against="base")
    mine = dataclasses.replace(rows_of(["patches_max"])[0], name="mine", against="base")
    (tmp_path / "runs").mkdir()
    for row, found in zip((base, mine), _runs({"base": [1.0], "mine": [2.0]})):
        found |= {"setting": dataclasses.asdict(TOY), "video_config": row.video_config, "curve": []}
        (tmp_path / "runs" / f"{row.name}-0.json").write_text(json.dumps(found))
    _, entry = ablate(tmp_path, TOY, [base, mine], seeds=1, progress=False)
    assert (entry["against"], entry["pairs"], entry["difference"]) == ("base", 1, 1.0)


def test_one_command_at_a_time(tmp_path):
    with locked(tmp_path), pytest.raises(BlockingIOError, match="is being written to by another run"):
        ablate(tmp_path, TOY, rows_of(["frozen"]), seeds=1, progress=False)


def test_clips_of_another_number_are_not_taken(prepared, tmp_path):
    np.save(tmp_path / "val.npy", np.load(prepared / "val.npy")[1:])
    with pytest.raises(ValueError, match=r"has 7 clips of val, of 8: remove it"):
        Split.load(TOY, tmp_path, "val")


def test_clips_of_another_corpus_are_not_taken(prepared, tmp_path):
    other = dataclasses.replace(TOY, options=TOY.options | {"train": 17})
    with pytest.raises(ValueError, match="holds the clips of another corpus"):
        prepare(other, prepared)
    (tmp_path / "train.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="holds something else than clips"):
        prepare(TOY, tmp_path)


def test_the_same_seeds_give_the_same_run(prepared):
    seeds = [(3, None), (3, 3), (4, None), (3, 4)]  # of weights and of data
    same, again, *others = (run(TOY, rows_of(["ours"])[0], seed, prepared, data_seed=data) for seed, data in seeds)
    assert same["val"] == again["val"]
    assert same["loss"] == again["loss"]
    assert same["regions"] == again["regions"]
    assert same["curve"] == again["curve"]
    assert len({json.dumps(one["regions"]["learned"]) for one in (same, *others)}) == 3


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_are_kept(tmp_path):
    rows = [Row("broken", "", {"hidden_size": 17}), rows_of(["frozen"])[0]]
    message = r"1 of 2 runs failed, the first: broken, seed 0 \(ValueError: hidden_size"
    with pytest.raises(ChildProcessError, match=message):
        ablate(tmp_path, TOY, rows, seeds=1, jobs=2, use_cpu=True, progress=False)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["frozen-0.json"]


def test_runs_take_the_gpus_that_are_free(tmp_path, monkeypatch):
    """The first of five runs lasts until all others are done: they take turns on the other GPU."""
    taken, others = [], threading.Semaphore(0)

    def fake_run(output, setting, row, seed, threads, use_cpu, gpu):
        taken.append((seed, gpu))
        if seed:
            others.release()
        else:
            assert all(others.acquire(timeout=60) for _ in range(4))

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setattr(ablation, "_run", fake_run)
    monkeypatch.setattr(ablation, "ProcessPoolExecutor", lambda jobs, *_, **__: ThreadPoolExecutor(jobs))
    monkeypatch.setattr(ablation, "prepare", lambda *_: None)
    ablate(tmp_path, TOY, rows_of(["frozen"]), seeds=5, jobs=2, progress=False)
    assert sorted(taken) == [(0, "5"), *((seed, "7") for seed in (1, 2, 3, 4))]


def test_nothing_is_started_after_a_process_was_killed(tmp_path, monkeypatch):
    started = []

    def fake_run(output, setting, row, seed, threads, use_cpu, gpu):
        started.append(seed)
        raise BrokenProcessPool("a process was killed")

    monkeypatch.setattr(ablation, "_run", fake_run)
    monkeypatch.setattr(ablation, "ProcessPoolExecutor", lambda jobs, *_, **__: ThreadPoolExecutor(jobs))
    monkeypatch.setattr(ablation, "prepare", lambda *_: None)
    with pytest.raises(ChildProcessError, match=r"1 of 3 runs failed, the first: frozen, seed 0 \(BrokenProcessPool"):
        ablate(tmp_path, TOY, rows_of(["frozen"]), seeds=3, jobs=1, use_cpu=True, progress=False)
    assert started == [0]


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


def test_correlation_is_that_of_values_less_their_means():
    both = rows_of(["frozen", "ours"])
    rows = summarize(_runs({"frozen": [30.0, 34.0, 31.0], "ours": [60.0, 61.0, 66.0, 60.5]}), both)
    losses, values = ([np.array(row[name]) for row in rows] for name in ("losses", "values"))
    centred = [np.concatenate([part - part.mean() for part in parts]) for parts in (losses, values)]
    assert loss_correlation(rows) == pytest.approx(stats.pearsonr(*centred).statistic)
    assert rows[0]["losses"] == pytest.approx([1.0, 1.8, 0.95])
    assert loss_correlation(summarize(_runs({"frozen": [30.0], "ours": [60.0]}), both)) is None


def test_intervals_are_those_of_scipy():
    rng = np.random.default_rng(0)
    base, other = rng.normal(30, 3, 5), rng.normal(36, 3, 5)
    runs = _runs({"ours_motion": other + 1, "ours": other, "frozen": base})
    frozen, ours, motion = summarize(runs, rows_of(["frozen", "ours", "ours_motion"]))  # in the order of the table
    for row, values in ((frozen, base), (ours, other)):
        low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
        assert (row["mean"] - row["half_width"], row["mean"] + row["half_width"]) == pytest.approx((low, high))
    paired = stats.ttest_rel(other, base).confidence_interval(0.95)
    difference, half = ours["difference"], ours["difference_half_width"]
    assert (difference - half, difference + half) == pytest.approx((paired.low, paired.high))
    assert motion["difference"] == pytest.approx(difference + 1)
    assert "difference" not in frozen
    assert f"{ours['mean']:.1f} ± {ours['half_width']:.1f}" in table([frozen, ours])
    assert interval([4.0]) == (4.0, None)
    # only seeds that both have are paired
    uneven = _runs({"frozen": [1.0], "ours": [4.0, 5.0]})
    assert "| ours, whole | 2 | 4.5 ± 6.4 | +3.0 (1 pair) |" in table(summarize(uneven, rows_of(["frozen", "ours"])))
    uneven = _runs({"frozen": [1.0, 2.0], "ours": [4.0], "ours_4_regions": [4.5]})
    _, ours, sweep = summarize(uneven, rows_of(["frozen", "ours", "ours_4_regions"]))
    assert (ours["difference"], ours["against"]) == (3.0, "frozen")
    assert (sweep["difference"], sweep["against"]) == (0.5, "ours")  # a sweep is compared with the form it varies
    assert "| ours: 4 regions | 1 | 4.5 | +0.5 |" in table([ours, sweep])


def test_tables_of_contrasts_and_masks():
    runs = _runs({"frozen": [1.0, 2.0], "ours": [4.0, 6.0], "ours_no_codes": [3.0, 3.0]})
    masks = {"iou": 20.0, "pointing": 30.0, "precision": 31.0, "owned": 1.0, "stability": None, "masks": 8}
    for one, iou in zip(runs[2:], (25.0, 26.0, 28.0, 29.0)):
        one["regions"] = {"clips": 4, "learned": masks | {"iou": iou}, "kmeans": masks | {"iou": iou + 1}}
    entries = summarize(runs, rows_of(["frozen", "ours", "ours_no_codes"]))
    difference, half = interval([1.0, 3.0])
    contrasts = contrast_table(entries, [("ours", "ours_no_codes"), ("ours", "paper")])
    assert contrasts.splitlines()[2:] == [
        f"| ours, whole | ours, without quantization | 2 | {difference:+.1f} ± {half:.1f} |"
    ]
    assert contrast_table(entries, [("ours", "paper")]) is None
    rest = "30.0 ± 0.0 | 31.0 ± 0.0 | 1.0 ± 0.0 |  |"
    half = interval([25.0, 26.0])[1]
    assert region_table(entries).splitlines()[2:] == [
        f"| ours, whole | 8 | 25.5 ± {half:.1f} | {rest}",
        f"| ours, without quantization | 8 | 28.5 ± {half:.1f} | {rest}",
        f"| k-means on features of the whole form | 8 | 26.5 ± {half:.1f} | {rest}",
    ]
    assert region_table(entries[:1]) is None


def test_cost_is_relative_to_the_first_row():
    cost = relative_cost(TOY, rows_of(["frozen", "ours"]), rounds=2, use_cpu=True)
    assert cost["frozen"] == 1.0
    assert set(cost) == {"frozen", "ours"}
    assert cost["ours"] > 0


def test_errors(capsys):
    with pytest.raises(ValueError, match=r"no table or row 'ourz'.*did you mean 'ours'"):
        rows_of(["ourz"])
    with pytest.raises(SystemExit) as end:
        main(["ablate", "--output", "x", "--setting", "shape"])
    assert end.value.code == 2
    assert "--setting 'shape' is not known" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["ablate", "--output", "x", "--name", "a/b"])
    assert end.value.code == 2
    assert "--name 'a/b' is no name of a file" in capsys.readouterr().err

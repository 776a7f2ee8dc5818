"""Tests for evaluation protocols on stand-ins for the benchmarks, and for which split selects the checkpoint."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from datasets import IterableDataset
from safetensors.torch import load_file, save_file

from region_learner import RegionLearnerForVideoClassification, RegionLearnerModel, load_corpus
from region_learner.cli import main
from region_learner.corpora import corpus_options, make_corpus
from region_learner.corpora.didemo import _SIZES as _DIDEMO_SIZES
from region_learner.corpora.hmdb51 import SIZES as _HMDB51_SIZES
from region_learner.corpora.lsmdc import _CHOICE, _RETRIEVAL
from region_learner.corpora.msrvtt import _LISTS
from region_learner.corpora.msvd import _QUESTIONS
from region_learner.corpora.msvd import _SIZES as _MSVD_SIZES
from region_learner.corpora.ucf101 import SIZES as _UCF101_SIZES
from region_learner.corpora.vitatecs import ASPECTS
from region_learner.corpora.vitatecs import SIZE as VITATECS_SIZE
from region_learner.evaluation import (
    EVALUATIONS,
    Protocol,
    Views,
    dual_softmax_metrics,
    embed_corpus,
    evaluate_checkpoint,
    get_protocol,
    register_protocol,
)
from region_learner.evaluation.protocols import PRIMARY_METRIC, PROTOCOLS
from region_learner.evaluation.provenance import digest_of_rows, lists_of, training_history
from region_learner.evaluation.results import read_results
from region_learner.evaluation.tasks import PROMPTS
from region_learner.loading import load_checkpoint
from region_learner.model_card import model_card
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.training import parse_arguments, parse_stages, train, trainer
from region_learner.training.recipes import list_recipes
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .conftest import ROOT, tiny_model
from .test_recipes import Media, caption, make_didemo, make_lsmdc, make_msrvtt, make_msvd, write
from .test_training import TINY

ACTIONS = ("brush_hair", "climb", "wave")


def make_folds(root, media):
    """Writes HMDB51 with three videos per class; fold N tests on the N-th video."""
    for label in ACTIONS:
        names = [f"{label}{n}.avi" for n in (1, 2, 3)]
        media.link(root / "hmdb51_org" / label, names)
        for fold in (1, 2, 3):
            uses = "\n".join(f"{name} {2 if n == fold else 1}" for n, name in enumerate(names, start=1))
            write(root / "testTrainMulti_7030_splits" / f"{label}_test_split{fold}.txt", uses)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Returns paths: `data` has stand-ins for the benchmarks, `model` a dual encoder, `root` a classifier per fold."""
    root = tmp_path_factory.mktemp("protocols")
    media = Media(root / "media")
    for name, make in {"msrvtt": make_msrvtt, "msvd": make_msvd, "didemo": make_didemo, "lsmdc": make_lsmdc}.items():
        make(root / "data" / name, media)
    make_folds(root / "data" / "hmdb51", media)
    tokenizer = train_tokenizer([caption(n) for n in range(12)] + list(ACTIONS), 99, 16)
    processor = RegionLearnerProcessor(RegionLearnerVideoProcessor.for_image_size(32, num_frames=2), tokenizer)
    model = tiny_model()
    model.save_pretrained(root / "model")
    processor.save_pretrained(root / "model")
    for fold in (1, 2, 3):
        config = tiny_model().config
        config.id2label = dict(enumerate(["brush hair", "climb", "wave"]))
        config.label2id = {name: number for number, name in config.id2label.items()}
        torch.manual_seed(fold)
        RegionLearnerForVideoClassification(config).save_pretrained(root / f"fold{fold}")
        processor.save_pretrained(root / f"fold{fold}")
    return SimpleNamespace(root=root, data=root / "data", model=str(root / "model"))


def command(capsys, *argv) -> dict:
    """Returns what a command prints as JSON."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*map(str, argv), "--json"])
    assert end.value.code == 0
    return json.loads(capsys.readouterr().out)


# --- The table -----------------------------------------------------------------------------------------------


def test_the_table():
    wanted = {
        "msrvtt_1ka",
        "msrvtt_1kb",
        "msrvtt_full",
        "msvd",
        "didemo",
        "lsmdc",
        "msrvtt_mc",
        "lsmdc_mc",
        "vitatecs",
    }
    zero_shot = {f"{name}_zero_shot" for name in wanted} | {"hmdb51_zero_shot", "ucf101_zero_shot"}
    wanted |= {"msrvtt_qa", "msvd_qa", "hmdb51", "ucf101", "hmdb51_prompts", "ucf101_prompts"}
    built_in = {"moving_shapes", "moving_shapes_unseen", "drifting_letters"}
    built_in |= {"moving_shapes_compositional", "drifting_letters_compositional"}
    built_in |= {"moving_shapes_grounding", "drifting_letters_grounding"}
    assert set(PROTOCOLS) == wanted | zero_shot | built_in
    assert set(PRIMARY_METRIC) == set(EVALUATIONS)
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert protocol.zero_shot == name.endswith("_zero_shot")
        assert set(protocol.options) <= set(corpus_options(protocol.corpus))
        assert protocol.source
        assert protocol.captions
        assert protocol.sizes or protocol.corpus in ("moving_shapes", "drifting_letters")


def test_sizes_are_those_that_the_corpora_check():
    msrvtt = {name: _LISTS[name]["test"][1] for name in _LISTS}
    for name, protocol in PROTOCOLS.items():
        expected = {
            "msrvtt": lambda protocol: {"videos": msrvtt[protocol.options["protocol"]]},
            "msvd": lambda _: {"videos": _MSVD_SIZES["test"]},
            "didemo": lambda _: {"videos": _DIDEMO_SIZES["test"][0]},
            "lsmdc": lambda _: {"videos": _RETRIEVAL["test"][1]},
            "lsmdc_mc": lambda _: {"questions": _CHOICE["test"][1]},
            "vitatecs": lambda _: {"questions": VITATECS_SIZE},
            "msvd_qa": lambda _: {"questions": _QUESTIONS["test"]},
            "hmdb51": lambda _: {"videos": _HMDB51_SIZES["test"]},
            "ucf101": lambda _: {"videos": _UCF101_SIZES["test"]},
        }.get(protocol.corpus, lambda _: {})(protocol)
        assert {key: protocol.sizes[key] for key in expected} == expected, name


def test_the_guide_names_every_protocol():
    text = (ROOT / "docs" / "evaluation.md").read_text()
    for name in PROTOCOLS:
        assert f"`{name.removesuffix('_zero_shot').removesuffix('_prompts')}`" in text
    for name in PROMPTS:
        assert f"`{name}`" in text


def test_unknown_names():
    with pytest.raises(ValueError, match=r"The protocol 'msrvtt_fll' is not known; did you mean 'msrvtt_full'\?$"):
        get_protocol("msrvtt_fll")
    with pytest.raises(ValueError, match=r"'x' is not known; choose one of msrvtt_1ka, .*, ucf101_zero_shot\.$"):
        get_protocol("x")


def test_a_registered_protocol_can_be_evaluated(places, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("region_learner.evaluation.protocols.PROTOCOLS", dict(PROTOCOLS))
    mine = Protocol(corpus="msvd", split="val", captions="mine", sizes={"videos": 3}, source="me")
    registered = register_protocol("mine", mine)
    assert registered == replace(mine, name="mine") == get_protocol("mine")
    found = evaluate_checkpoint(get_protocol("mine"), places.model, places.data / "msvd")
    assert (found.protocol["name"], found.protocol["source"], found.data["split"]) == ("mine", "me", "val")
    expected = evaluate_checkpoint(mine, places.model, places.data / "msvd")
    assert found.metrics == expected.metrics
    assert found.notes == [note.replace("None", "mine") for note in expected.notes]
    argv = ["evaluate", places.model, "--protocol=mine", "--data-dir", places.data / "msvd"]
    assert command(capsys, *argv)["videos"] == found.data["videos"]
    zero_shot = register_protocol("mine_too", replace(mine, zero_shot=True))
    shutil.copytree(places.model, tmp_path / "trained")
    (tmp_path / "trained" / "results.json").write_text(json.dumps({"arguments": {"corpus": "msvd_qa"}}))
    with pytest.raises(ValueError, match=r"according to its results.json: use a protocol with zero_shot=False\."):
        evaluate_checkpoint(zero_shot, str(tmp_path / "trained"), places.data / "msvd")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("msvd", {}, "The protocol name 'msvd' is taken: choose another one"),
        ("", {}, "The protocol name '' is empty"),
        ("mine", {"task": "retrieva"}, r"task='retrieva' is not known; did you mean 'retrieval'\?$"),
        (
            "mine",
            {"sizes": {"questions": 3}},
            r"'questions', which is not counted for .* 'retrieval' \(videos, texts\)",
        ),
        ("mine", {"sizes": {"videos": 0}}, r"sizes\['videos'\]=0 must be a positive integer"),
        ("mine", {"sizes": {"videos": (3, 4)}}, r"sizes\['videos'\] has 2 numbers for 0 folds"),
    ],
)
def test_protocols_that_cannot_be_registered(name, changes, message):
    before = dict(PROTOCOLS)
    with pytest.raises(ValueError, match=message):
        register_protocol(name, Protocol(**{"corpus": "msvd"} | changes))
    assert before == PROTOCOLS
    if name == "mine":  # evaluating a checkpoint with it fails in the same way
        with pytest.raises(ValueError, match=message):
            evaluate_checkpoint(Protocol(**{"corpus": "msvd"} | changes), "nowhere")


def test_sizes_by_fold():
    protocol = get_protocol("ucf101")
    assert [protocol.size("videos", fold) for fold in (1, 2, 3)] == [3783, 3734, 3696]
    assert protocol.size_notes({"videos": 3734}, 2) == []
    (note,) = protocol.size_notes({"videos": 3734}, 3)
    assert note.startswith("ucf101 was evaluated on 3,734 videos instead of 3,696: ")
    assert get_protocol("moving_shapes").size_notes({"videos": 3, "texts": 4}) == []


# --- Runs ----------------------------------------------------------------------------------------------------

RUNS = {
    "msrvtt_1ka": ("msrvtt", {"videos": 3, "texts": 3}),
    "msrvtt_full": ("msrvtt", {"videos": 3, "texts": 6}),
    "msvd": ("msvd", {"videos": 3, "texts": 6}),
    "didemo_zero_shot": ("didemo", {"videos": 3, "texts": 3}),
    "lsmdc": ("lsmdc", {"videos": 3, "texts": 3}),
    "msrvtt_mc_zero_shot": ("msrvtt", {"questions": 3}),
    "lsmdc_mc": ("lsmdc", {"questions": 3}),
    "hmdb51_zero_shot": ("hmdb51", {"videos": 3, "classes": 3}),
}


@pytest.mark.parametrize("name", RUNS)
def test_protocols_from_the_command_line(name, places, tmp_path, capsys, caplog):
    corpus, counts = RUNS[name]
    argv = ["evaluate", places.model, "--protocol", name, "--data-dir", places.data / corpus]
    printed = command(capsys, *argv, "--output", tmp_path / "evaluation.json")
    found = read_results(tmp_path / "evaluation.json")
    assert {key: found.data[key] for key in counts} == {key: printed[key] for key in counts} == counts
    assert found.metrics.items() <= printed.items()
    assert found.protocol["name"] == name
    assert found.primary[0] == get_protocol(name).metric
    assert found.data["unreadable"] == []
    # A note says that a gallery of three videos is not the benchmark.
    assert found.notes == printed["notes"]
    assert f"{name} was evaluated on 3 " in found.notes[0]
    assert ("could not be checked" in found.notes[-1]) == name.endswith("_zero_shot")  # there is no training run
    assert found.notes[0] in caplog.text
    assert str(places.root) not in (tmp_path / "evaluation.json").read_text()
    assert found.model["name"] == "model"


def make_vitatecs(root, media):
    """Writes one or two pairs per aspect, whose wrong caption is the right caption of another pair."""
    for number, aspect in enumerate(ASPECTS):
        names = [f"MSRVTT/video{number}.mp4", f"VATEX/a_{number}_000000_000010.mp4"][: 1 + number % 2]
        media.link(root / "videos", names)
        pairs = [
            {
                "src_dataset": name.split("/")[0],
                "video_name": name.split("/")[1],
                "caption": caption(2 * number + place),
                "counterfactual": caption(2 * number + place + 1),
                "aspect": aspect,
            }
            for place, name in enumerate(names)
        ]
        write(root / "data" / f"{aspect}.jsonl", "\n".join(map(json.dumps, pairs)))


PAIRED = {
    "vitatecs": {aspect.lower() for aspect in ASPECTS},
    "moving_shapes_compositional": {"colour", "texture", "motion"},
    "drifting_letters_compositional": {"colour", "event"},
}


@pytest.mark.parametrize("name", PAIRED)
def test_pairs_from_the_command_line(name, places, tmp_path, capsys):
    protocol = get_protocol(name)
    if name == "vitatecs":
        make_vitatecs(tmp_path / "data", Media(tmp_path / "media"))
    else:
        sizes = {"train": 0, "val": 0, "test": 10, "size": 48, "frames": 4}
        sizes |= {"test_unseen": 0} if protocol.corpus == "moving_shapes" else {}
        make_corpus(protocol.corpus, tmp_path / "data", workers=1, progress=False, **sizes)
    argv = ["evaluate", places.model, "--protocol", name, "--data-dir", tmp_path / "data"]
    printed = command(capsys, *argv, "--output", tmp_path / "evaluation.json")
    found = read_results(tmp_path / "evaluation.json")
    assert found.metrics.items() <= printed.items()
    assert found.metrics.keys() == {"accuracy", *(f"accuracy_{aspect}" for aspect in PAIRED[name])}
    assert found.primary == ("accuracy", found.metrics["accuracy"])
    rows = load_corpus(protocol.corpus, tmp_path / "data", "test", **protocol.options)
    shares = Counter(rows["aspect"])
    mean = sum(found.metrics[f"accuracy_{aspect}"] * count for aspect, count in shares.items()) / len(rows)
    assert found.metrics["accuracy"] == pytest.approx(mean)
    assert found.data["questions"] == len(rows)
    assert found.data["sha256"] == digest_of_rows(rows)
    assert found.data["sha256"] != digest_of_rows(rows.remove_columns("aspect"))
    assert bool(found.notes) == (name == "vitatecs")  # nine pairs instead of 13,838
    card = model_card([tmp_path / "evaluation.json"])
    assert all(f"accuracy_{aspect}" in card for aspect in PAIRED[name])


def test_missing_videos_are_reported(places, tmp_path, capsys, monkeypatch):
    protocol = replace(PROTOCOLS["msvd"], sizes={"videos": 3})
    monkeypatch.setitem(PROTOCOLS, "msvd", protocol)
    whole = evaluate_checkpoint(protocol, places.model, places.data / "msvd")
    assert whole.notes == []
    broken = tmp_path / "videos"
    broken.mkdir()
    (broken / "id7_1_2.mp4").symlink_to(places.data / "msvd" / "YouTubeClips" / "id7_1_2.avi")
    (broken / "id8_1_2.mp4").write_bytes(b"not a video")
    options = {"video_dir": str(broken), "max_missing": 1}
    argv = ["evaluate", places.model, "--protocol=msvd", "--data-dir", places.data / "msvd"]
    printed = command(capsys, *argv, "--corpus-options", json.dumps(options), "--output", tmp_path / "e.json")
    assert printed["unreadable"] == ["id8_1_2"]
    assert "msvd was evaluated on 1 videos instead of 3" in printed["notes"][0]
    assert read_results(tmp_path / "e.json").data["options"] == {"video_dir": "videos", "max_missing": 1}
    with pytest.raises(
        ValueError, match=r"1 of 2 videos cannot be read, more than max_unreadable=0.4 allows; the last one: .*id8"
    ):
        evaluate_checkpoint(protocol, places.model, places.data / "msvd", options=options, max_unreadable=0.4)
    with pytest.raises(ValueError, match="max_unreadable=2 must be a share"):
        evaluate_checkpoint(protocol, places.model, places.data / "msvd", max_unreadable=2)


def test_the_file_records_everything_that_affects_the_results(places, tmp_path, capsys):
    argv = ["evaluate", places.model, "--protocol=msvd", "--data-dir", places.data / "msvd", "--clips=2"]
    argv += ["--dual-softmax", "--output", tmp_path / "evaluation.json"]
    printed = command(capsys, *argv)
    found = read_results(tmp_path / "evaluation.json")
    assert found.protocol["frames"] == 2
    assert (found.protocol["clips"], found.protocol["window_stride"]) == (2, None)
    assert found.protocol["dual_softmax_temperature"] == pytest.approx(0.05)  # the temperature of the model
    assert found.dtype == "float32"
    assert found.seconds > 0
    assert found.model["weights"].keys() == {"model.safetensors"}
    assert found.model["files"].keys() == {
        "config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert found.data["sha256"] == digest_of_rows(load_corpus("msvd", places.data / "msvd", "test"))
    assert found.data["sha256"] != digest_of_rows(load_corpus("msvd", places.data / "msvd", "val"))
    stream = IterableDataset.from_generator(lambda: iter(load_corpus("msvd", places.data / "msvd", "test")))
    assert found.data["sha256"] == digest_of_rows(stream)  # a stream knows neither its columns nor its features
    # Re-scored metrics are separate, under their own names.
    assert all(name.startswith("dsl_") for name in found.rescored)
    assert not any(name.startswith("dsl_") for name in found.metrics)
    assert printed["rescored"] == found.rescored
    printed = command(capsys, *argv[:-1], tmp_path / "windows.json", "--window-stride=3", "--clips=1")
    found = read_results(tmp_path / "windows.json")
    assert (found.protocol["clips"], found.protocol["window_stride"]) == (None, 3)


def test_equal_captions_are_tied(places):
    """Each text is embedded once, so that its embedding does not depend on the other texts of a batch."""
    model = RegionLearnerModel.from_pretrained(places.model).eval()
    processor = RegionLearnerProcessor.from_pretrained(places.model)
    rows = load_corpus("msvd", places.data / "msvd", "test").to_list()
    long = " ".join([caption(1)] * 3)
    rows = [row | {"captions": [caption(0), *[long] * (number == 2)]} for number, row in enumerate(rows[:3])]
    given = []

    def process(*arguments, **options):
        given.extend(options.get("text") or [])
        return processor(*arguments, **options)

    process.video_processor = processor.video_processor
    embeddings = embed_corpus(model, process, rows, progress=False)
    assert given == [caption(0), long]
    assert embeddings.texts == [caption(0), caption(0), caption(0), long]
    assert torch.equal(embeddings.text_embeds[0], embeddings.text_embeds[2])
    assert not torch.equal(embeddings.text_embeds[0], embeddings.text_embeds[3])


def test_a_number_of_frames_replaces_a_rate(places, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(places.model, model)
    processor = RegionLearnerProcessor.from_pretrained(model)
    processor.video_processor.num_frames, processor.video_processor.fps = None, 2
    processor.save_pretrained(model)
    found = evaluate_checkpoint(get_protocol("msvd"), str(model), places.data / "msvd", num_frames=2)
    assert found.metrics == evaluate_checkpoint(get_protocol("msvd"), places.model, places.data / "msvd").metrics


@pytest.mark.parametrize(
    ("corpus", "options", "protocol", "doubt"),
    [
        ("msrvtt", {}, "msrvtt_full", "protocol 1k-A instead of protocol full"),
        ("msrvtt", {"protocol": "full"}, "msrvtt_full", None),
        ("msrvtt", {"protocol": "jsfusion"}, "msrvtt_1ka", None),
        ("msrvtt_qa", {}, "msrvtt_1ka", "protocol full instead of protocol 1k-A"),
        ("msvd", {}, "msvd", None),
    ],
)
def test_training_with_other_lists_of_the_same_videos(places, tmp_path, corpus, options, protocol, doubt):
    model = tmp_path / "model"
    shutil.copytree(places.model, model)
    told = {"corpus": corpus, "corpus_options": options, "data_dir": "elsewhere", "train_split": "train"}
    (model / "results.json").write_text(json.dumps({"arguments": told}))
    corpus = get_protocol(protocol).corpus
    found = evaluate_checkpoint(get_protocol(protocol), str(model), places.data / corpus)
    notes = [note for note in found.notes if "other lists" in note]
    assert len(notes) == (doubt is not None)
    assert doubt is None or doubt in notes[0]
    assert not found.data["trained_on"]


def test_each_fold_has_its_own_lists(tmp_path):
    told = {"corpus": "ucf101", "corpus_options": {"fold": 2}}
    (tmp_path / "results.json").write_text(json.dumps({"arguments": told}))
    history = training_history(str(tmp_path))
    assert history.includes_split("ucf101", None, "train", lists_of("ucf101", {"fold": 2}))
    assert not history.includes_split("ucf101", None, "train", lists_of("ucf101", {}))
    assert history.other_lists("ucf101", lists_of("ucf101", {})) == ["fold 2"]


def test_views_and_dual_softmax_reach_the_metrics(places):

    protocol = get_protocol("msrvtt_full")
    found = evaluate_checkpoint(
        protocol, places.model, places.data / "msrvtt", views=Views(3), dual_softmax_temperature=0.2
    )
    model = RegionLearnerModel.from_pretrained(places.model).eval()
    processor = RegionLearnerProcessor.from_pretrained(places.model)
    dataset = load_corpus("msrvtt", places.data / "msrvtt", "test", protocol="full")
    embeddings = embed_corpus(model, processor, dataset, progress=False, views=Views(3))
    assert found.metrics == embeddings.metrics()
    expected = dual_softmax_metrics(
        embeddings.text_embeds, embeddings.video_embeds, embeddings.text_video_ids, embeddings.video_ids, 0.2
    )
    assert found.rescored == expected
    plain = evaluate_checkpoint(protocol, places.model, places.data / "msrvtt")
    assert plain.rescored is None
    assert plain.protocol.keys().isdisjoint({"dual_softmax_temperature", "templates"})


def test_settings_reach_the_evaluation(places, monkeypatch):
    given = {}

    def evaluate(model, processor, dataset, **settings):
        given.update(settings)
        return {"t2v_R@1": 1.0, "videos": 3, "texts": 6, "unreadable": []}

    monkeypatch.setitem(EVALUATIONS, "retrieval", evaluate)
    settings = {"batch_size": 3, "num_workers": 1, "progress": False, "views": Views(2), "max_unreadable": 0.5}
    evaluate_checkpoint(get_protocol("msvd"), places.model, places.data / "msvd", **settings)
    assert given == settings


def test_prompts(places, tmp_path, capsys):
    argv = ["evaluate", places.model, "--protocol=hmdb51_zero_shot", "--data-dir", places.data / "hmdb51"]
    for prompts, expected in {"": PROMPTS["few"], "actions": PROMPTS["actions"]}.items():
        command(capsys, *argv, *(["--prompts", prompts] if prompts else []), "--output", tmp_path / "e.json")
        assert read_results(tmp_path / "e.json").protocol["templates"] == list(expected)
    (tmp_path / "mine.txt").write_text("{}\nlook: {}\n")
    command(capsys, *argv, "--prompts", tmp_path / "mine.txt", "--output", tmp_path / "e.json")
    assert read_results(tmp_path / "e.json").protocol["templates"] == ["{}", "look: {}"]


# --- Folds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "model"), [("hmdb51_zero_shot", "model"), ("hmdb51", "fold{fold}")])
def test_all_folds(name, model, places, tmp_path, capsys):
    path = places.root / model
    argv = ["evaluate", path, "--protocol", name, "--data-dir", places.data / "hmdb51", "--all-folds"]
    printed = command(capsys, *argv, "--output", tmp_path / "evaluation.json")
    found = read_results(tmp_path / "evaluation.json")
    protocol = get_protocol(name)
    each = [
        evaluate_checkpoint(
            protocol, str(path).replace("{fold}", str(fold)), places.data / "hmdb51", options={"fold": fold}
        )
        for fold in (1, 2, 3)
    ]
    assert len({json.dumps(one.data["options"]) for one in each}) == 3
    for metric, value in found.metrics.items():
        assert value == pytest.approx(sum(one.metrics[metric] for one in each) / 3)
    assert [part["metrics"] for part in found.folds] == [one.metrics for one in each]
    assert [part["model"]["name"] for part in found.folds] == [model.replace("{fold}", str(n)) for n in (1, 2, 3)]
    assert [part["data"]["options"]["fold"] for part in printed["folds"]] == [1, 2, 3]
    assert len({json.dumps(part["model"]["weights"]) for part in found.folds}) == (3 if "{fold}" in model else 1)
    assert all(note.startswith("folds 1, 2, 3: ") for note in found.notes)
    # What differs between folds is only reported per fold.
    assert found.data == {"corpus": "hmdb51", "data_dir": "hmdb51", "split": "test", "options": {}}
    assert "videos" not in printed
    assert [part["data"]["videos"] for part in found.folds] == [3, 3, 3]
    assert len({part["data"]["sha256"] for part in found.folds}) == 3
    assert found.model["name"] == model
    assert ("weights" in found.model) == ("{fold}" not in model)
    if "{fold}" not in model:  # without the option, the first fold is evaluated
        assert evaluate_checkpoint(protocol, str(path), places.data / "hmdb51").data == each[0].data
    with pytest.raises(SystemExit):
        main([str(part) for part in argv])
    text = capsys.readouterr().out
    assert text.index("Mean of folds 1 to 3:") < text.index("Fold 1:") < text.index("videos")


def test_each_fold_has_its_own_published_size(places):
    protocol = replace(get_protocol("hmdb51"), sizes={"videos": (3, 2, 3)})
    model = str(places.root / "fold{fold}")
    found = evaluate_checkpoint(protocol, model, places.data / "hmdb51", all_folds=True)
    assert len(found.notes) == 1
    assert found.notes[0].startswith("fold 2: hmdb51 was evaluated on 3 videos instead of 2")


# --- Wrong use -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--protocol=msvdd"], "The protocol 'msvdd' is not known; did you mean 'msvd'?"),
        (
            ["--protocol=msvd", "--corpus=msvd"],
            "already sets the corpus: leave out --corpus or --protocol",
        ),
        (["--protocol=msvd", "--task=retrieval"], "sets the task"),
        (["--protocol=msvd", "--split=val"], "sets the split"),
        (["--protocol=msvd"], "corpus 'msvd' needs data_dir="),
        (["--protocol=msvd", "--data-dir=nowhere"], "is not a directory"),
        (
            ["--protocol=msrvtt_1ka", '--corpus-options={"protocol": "full"}'],
            "sets protocol='1k-A': leave that corpus option out",
        ),
        (["--protocol=msvd", "--clips=0"], "clips=0 must be an integer of at least 1"),
        (["--protocol=msvd", "--clips=2", "--window-stride=4"], "Give only one of clips and window_stride"),
        (["--protocol=msvd", "--window-stride=-1"], "window_stride=-1 must be an integer"),
        (["--protocol=msrvtt_mc", "--dual-softmax"], "Dual-softmax re-scoring is for retrieval, not for the task"),
        (["--protocol=msvd", "--dual-softmax-temperature=0"], "dual_softmax_temperature=0.0 must be above 0"),
        (["--protocol=msvd", "--prompts=actions"], "Prompts are for the task 'zero_shot'"),
        (["--protocol=hmdb51_zero_shot", "--prompts=no-such"], "Prompts 'no-such' are neither a set"),
        (["--protocol=msvd", "--all-folds"], "all_folds needs a protocol with folds: hmdb51, ucf101"),
        (
            ["--protocol=hmdb51", "--all-folds"],
            "write {fold} where the names of the models differ",
        ),
        (["--protocol=hmdb51_prompts", "--all-folds"], "Each fold needs the model that was trained on it"),
        (
            ["--protocol=hmdb51_zero_shot", "--all-folds", '--corpus-options={"fold": 1}'],
            "leave out either all_folds or the corpus option 'fold'",
        ),
        (["--task=retrievals"], "--task 'retrievals' is not known; did you mean 'retrieval'?"),
        (["--protocol=msvd", "--output=."], "is a directory: name a file, such as"),
        (["--protocol=msvd", "--output=a-file/e.json"], "Results cannot be written to a-file/e.json"),
    ],
)
def test_errors_are_one_line(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "model", *argv])
    assert end.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith("region-learner: error: ")
    assert message in error[0]


@pytest.mark.parametrize(
    ("model", "protocol", "data", "message"),
    [
        (
            "fold1",
            "msvd",
            "msvd",
            ": {} weights of RegionLearnerModel that the task 'retrieval' needs are missing or of another shape",
        ),
        (
            "fold1",
            "hmdb51_zero_shot",
            "hmdb51",
            "RegionLearnerForVideoClassification): {} weights of",
        ),
        ("model", "msvd_qa", "msvd", "of RegionLearnerForVideoQuestionAnswering that the task 'question_answering'"),
        ("model", "hmdb51", "hmdb51", "of RegionLearnerForVideoClassification that the task 'classification'"),
        ("fold1", "msvd_qa", "msvd", "of RegionLearnerForVideoQuestionAnswering"),
        ("nowhere", "msvd", "msvd", "nowhere. A checkpoint is a directory, or a Hub name"),
    ],
)
def test_a_model_of_another_task_is_refused(model, protocol, data, message, places, capsys, tmp_path):
    """Without this check, missing weights would be random, and the metrics would look like real measurements."""
    output = tmp_path / "results.json"
    argv = ["evaluate", f"{places.root / model}", f"--protocol={protocol}", f"--data-dir={places.data / data}"]
    with pytest.raises(SystemExit) as end:
        main([*argv, f"--output={output}"])
    assert end.value.code == 2
    error = capsys.readouterr().err
    for part in message.split("{}"):
        assert part in error
    assert not output.exists()


def test_incomplete_and_foreign_checkpoints_are_refused(places, tmp_path):
    model, processor = load_checkpoint(str(places.model), "retrieval")
    tower = tmp_path / "tower"
    model.video_model.save_pretrained(tower)
    processor.save_pretrained(tower)
    weights = load_file(tower / "model.safetensors")
    assert torch.equal(load_checkpoint(str(tower), None)[0].embeddings.cls_token, weights["embeddings.cls_token"])
    with pytest.raises(ValueError, match="is a RegionLearnerVideoModel of the type 'region_learner_video': use a"):
        load_checkpoint(str(tower), "retrieval")
    del weights["embeddings.cls_token"]
    save_file(weights, tower / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights of .* that the video tower needs .*\(embeddings.cls_token\)"):
        load_checkpoint(str(tower), None)
    other = tmp_path / "other"
    model.text_model.save_pretrained(other)
    with pytest.raises(ValueError, match="use a checkpoint of RegionLearner"):
        load_checkpoint(str(other), None)
    model.save_pretrained(tmp_path / "wider")
    config = json.loads((tmp_path / "wider" / "config.json").read_text())
    config["projection_dim"] += 1
    (tmp_path / "wider" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError,
        match=r": . weights of RegionLearnerModel that the task 'retrieval' needs are missing or of another shape",
    ):
        load_checkpoint(str(tmp_path / "wider"), "retrieval")


def test_the_model_is_required(capsys):
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "--protocol=msvd"])
    assert end.value.code == 2
    assert "MODEL" in capsys.readouterr().err


def test_the_list_of_protocols(capsys):
    assert command(capsys, "evaluate", "--list-protocols")["msvd"]["sizes"] == {"videos": 670}
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "--list-protocols"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in PROTOCOLS)
    assert "3,783 / 3,734" in printed


@pytest.mark.parametrize("lost", ["file", "standard output"])
def test_results_are_not_lost(lost, places, tmp_path, capsys, monkeypatch):
    """Results are printed even if the file cannot be written, and written even if they cannot be printed."""

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(
        *(("pathlib.Path.replace",) if lost == "file" else ("region_learner.cli.evaluation.print_json",)), fail
    )
    output = tmp_path / "new" / "e.json"
    argv = ["evaluate", places.model, "--protocol=msvd", "--data-dir", places.data / "msvd", "--output", output]
    with pytest.raises(SystemExit) as end:
        main([*map(str, argv), "--json"])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert "no space left" in captured.err
    if lost == "file":
        assert json.loads(captured.out)["videos"] == 3
        assert list(output.parent.iterdir()) == []
    else:
        assert read_results(output).data["videos"] == 3


@pytest.fixture
def trained(places, tmp_path):
    """Returns a function that writes results.json for the run of a checkpoint, and evaluates the checkpoint."""
    checkpoint = tmp_path / "run" / "checkpoint-7"
    checkpoint.mkdir(parents=True)
    for path in (places.root / "model").iterdir():
        (checkpoint / path.name).symlink_to(path)

    def evaluate(name, folder="run", **arguments):
        if arguments:
            write(tmp_path / folder / "results.json", {"arguments": arguments})
        protocol = get_protocol(name)
        return evaluate_checkpoint(protocol, str(checkpoint), places.data / protocol.corpus.removesuffix("_mc"))

    return evaluate


@pytest.mark.parametrize("folder", ["run", "run/checkpoint-7"])
def test_zero_shot_is_refused_for_training_corpora(trained, folder):
    with pytest.raises(ValueError, match=r"not trained on msvd, but .* was, according to .*: use msvd\."):
        trained("msvd_zero_shot", folder, corpus="msvd")
    with pytest.raises(ValueError, match=r"use msrvtt_mc\."):  # its questions are about the same videos
        trained("msrvtt_mc_zero_shot", folder, corpus="webvid", corpora=[{"corpus": "msrvtt"}])
    with pytest.raises(ValueError, match=r"not trained on vitatecs, .* use vitatecs\."):  # shares some of its videos
        trained("vitatecs_zero_shot", folder, corpus="msrvtt")
    with pytest.raises(ValueError, match=r"use hmdb51 or hmdb51_prompts\."):
        trained("hmdb51_zero_shot", folder, corpus="hmdb51")
    # With several training corpora, `corpus` is only used for validation.
    found = trained("msvd_zero_shot", folder, corpus="msvd", corpora=[{"corpus": "webvid"}])
    assert found.model["trained_on"] == ["webvid"]
    assert not any("could not be checked" in note for note in found.notes)
    found = trained("msvd", folder, corpus="msvd")
    assert found.model["trained_on"] == ["msvd"]
    assert not any("could not be checked" in note for note in found.notes)


def test_zero_shot_is_refused_for_corpora_of_earlier_runs(trained, tmp_path):
    write(tmp_path / "first" / "results.json", {"arguments": {"corpus": "msvd"}})
    with pytest.raises(ValueError, match="for models that were not trained on msvd"):
        trained("msvd_zero_shot", corpus="webvid", model=str(tmp_path / "first"))
    found = trained("didemo_zero_shot", corpus="webvid", model=str(tmp_path / "first"))
    assert found.model["trained_on"] == ["msvd", "webvid"]
    assert "could not be checked" not in found.notes[-1]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "no results.json says how 'checkpoint-7' was trained"),
        (
            {"corpus": "webvid", "model": "someone/else"},
            "no results.json says how 'someone/else' was trained",
        ),
        ({"corpus": "webvid", "model": "SELF"}, "no results.json says how 'run' was trained"),
        ({"corpora": [{}]}, "no results.json says how 'checkpoint-7' was trained"),
        ({"corpus": "webdataset"}, "its corpus 'webdataset' may contain any videos"),
    ],
)
def test_a_claim_that_cannot_be_checked_is_noted(trained, tmp_path, arguments, reason):
    if arguments.get("model") == "SELF":
        arguments["model"] = str(tmp_path / "run")
    found = trained("msvd_zero_shot", **arguments)
    assert found.notes[-1] == f"Whether the model was trained on msvd could not be checked: {reason}."
    assert not any("could not be checked" in note for note in trained("msvd", **arguments).notes)


# --- Validation selects the checkpoint, which is tested once -------------------------------------------------


@pytest.mark.parametrize("name", [name for name in list_recipes() if name.startswith("finetune_")])
def test_recipes_select_checkpoints_by_validation_or_not_at_all(name):
    model, data, arguments = parse_stages([name, "--model=x", "--data_dir=x"])[-1]
    # Where there is no validation split, the number of epochs is fixed.
    without = {
        "finetune_msrvtt",
        "finetune_msrvtt_12f",
        "finetune_msrvtt_16f",
        "finetune_msrvtt_mc",
        "finetune_hmdb51",
        "finetune_ucf101",
        "finetune_folder",
    }
    assert (data.eval_split is None) == (name in without)
    assert data.test_split == (None if name == "finetune_folder" else "test")
    assert data.train_split == "train"
    assert arguments.load_best_model_at_end == (data.eval_split is not None)
    if data.eval_split is not None:
        assert data.eval_split == "val"
        assert arguments.metric_for_best_model == ("t2v_gmean" if model.task == "retrieval" else "accuracy")
        assert arguments.eval_strategy == arguments.save_strategy == "epoch"
        assert arguments.greater_is_better


def test_a_run_selects_its_checkpoint_by_validation(tmp_path, monkeypatch):
    """The run keeps the second of three checkpoints, which is best on validation, and tests only that one."""
    corpus = make_corpus(
        "moving_shapes", tmp_path / "corpus", workers=1, progress=False, train=8, val=2, test=4, test_unseen=0,
        size=48, frames=4, objects=[1, 1],
    )  # fmt: skip
    validations, tests = iter([10.0, 30.0, 20.0]), []

    def validate(prediction):
        assert len(prediction.predictions[0]) == 2  # the validation split, not the four videos of the test split
        return {"t2v_gmean": next(validations)}

    def test(model, processor, dataset, **_):
        tests.append({name: value.clone() for name, value in model.state_dict().items()})
        assert len(dataset) == 4
        return {"t2v_gmean": 100.0, "unreadable": []}

    monkeypatch.setitem(trainer.METRICS, "retrieval", validate)
    monkeypatch.setitem(EVALUATIONS, "retrieval", test)
    argv = [
        *TINY, "--corpus=moving_shapes", f"--data_dir={corpus}", f"--output_dir={tmp_path / 'run'}",
        "--per_device_train_batch_size=8", "--learning_rate=0.01", "--num_train_epochs=3", "--eval_split=val",
        "--test_split=test", "--load_best_model_at_end=true", "--metric_for_best_model=t2v_gmean",
        "--eval_strategy=epoch", "--save_strategy=epoch",
    ]  # fmt: skip
    results = train(*parse_arguments(argv))
    assert next(validations, None) is None  # three validations, and none after training
    assert len(tests) == 1
    assert results["test"]["t2v_gmean"] == 100.0
    saved = load_file(tmp_path / "run" / "model.safetensors")
    chosen, last = (load_file(tmp_path / "run" / f"checkpoint-{n}" / "model.safetensors") for n in (2, 3))
    assert all(torch.equal(saved[name], value) for name, value in chosen.items())
    assert all(torch.equal(tests[0][name], value) for name, value in chosen.items())
    assert any(not torch.equal(saved[name], value) for name, value in last.items())
    assert not any("test" in name for entry in results["log"] for name in entry)


@pytest.mark.parametrize(("split", "seen"), [("test", False), ("train", True)])
def test_an_evaluation_names_its_split_and_says_if_it_was_trained_on(places, tmp_path, capsys, split, seen):
    model = tmp_path / "model"
    shutil.copytree(places.model, model)
    told = {"corpus": "msvd_qa", "data_dir": str(places.data / "msvd"), "train_split": "train"}
    (model / "results.json").write_text(json.dumps({"arguments": told}))
    output = tmp_path / "evaluation.json"
    argv = ["evaluate", model, "--corpus=msvd", "--data-dir", places.data / "msvd", "--split", split]
    printed = command(capsys, *argv, "--output", output)
    assert (printed["split"], printed.get("trained_on", False)) == (split, seen)
    found = read_results(output)
    assert (found.data["trained_on"], found.trained_on) == (seen, seen)
    assert any(f"The model was trained on this split, {split}:" in note for note in found.notes) == seen
    with pytest.raises(SystemExit):
        main([str(word) for word in argv])
    heading = f"msvd, split {split}{', which the model was trained on' * seen}:"
    assert heading in capsys.readouterr().out.splitlines()
    assert ("(which it was trained on)" in model_card([output])) == seen


@pytest.mark.parametrize(("where", "seen"), [("here", True), ("elsewhere/../here", True), ("elsewhere", False)])
def test_custom_videos_are_identified_by_their_directory(tmp_path, where, seen):
    (tmp_path / "elsewhere").mkdir()
    told = {"corpora": [{"corpus": "folder", "data_dir": str(tmp_path / "here")}], "corpus": "folder"}
    (tmp_path / "results.json").write_text(json.dumps({"arguments": told}))
    history = training_history(str(tmp_path))
    assert history.includes_split("folder", tmp_path / where, "train") == seen
    assert not history.includes_split("folder", tmp_path / where, "test")

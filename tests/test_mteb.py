"""Tests for evaluating checkpoints on tasks of MTEB, which are made from the built-in corpus."""

import importlib
import json
import math
import types
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Image, Video

from region_learner import RegionLearnerProcessor, load_corpus
from region_learner.corpora import make_corpus
from region_learner.evaluation import embed_corpus, retrieval_metrics
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .conftest import tiny_model, tiny_text_config
from .test_cli import run
from .test_sentence_transformers import picture

mteb = pytest.importorskip("mteb")
ours = importlib.import_module("region_learner.evaluation.mteb")
AbsTaskRetrieval = mteb.abstasks.retrieval.AbsTaskRetrieval


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    """Returns clips with the captions that no other clip has, because equal texts would tie."""
    sizes = {"train": 0, "val": 0, "test": 14, "test_unseen": 0, "size": 48, "frames": 4, "objects": 2}
    corpus = make_corpus("moving_shapes", tmp_path_factory.mktemp("shapes"), workers=1, progress=False, **sizes)
    rows = load_corpus("moving_shapes", corpus, "test").to_list()
    captions = [caption for row in rows for caption in row["captions"]]
    return [row | {"captions": [text for text in row["captions"] if captions.count(text) == 1]} for row in rows]


@pytest.fixture(scope="module")
def checkpoint(rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    tokenizer = train_tokenizer([text for row in rows for text in row["captions"]], 200, 32)
    RegionLearnerProcessor(RegionLearnerVideoProcessor.for_image_size(32, num_frames=4), tokenizer).save_pretrained(
        folder
    )
    tiny_model(text=tiny_text_config(vocab_size=200)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(checkpoint) -> ours.MTEBEncoder:
    return ours.MTEBEncoder(str(checkpoint), device="cpu")


@pytest.fixture(scope="module")
def embeddings(rows, encoder):
    return embed_corpus(encoder.model, encoder.processor, rows, progress=False)


class ShapesTask(AbsTaskRetrieval):
    """Provides rows as MTEB gets them from the Hub: the bytes of videos, in a column that `datasets` decodes."""

    rows: list[dict] = []

    def load_data(self, num_proc=None, **kwargs) -> None:
        files = [{"bytes": Path(row["video"]).read_bytes(), "path": f"{row['video_id']}.mp4"} for row in self.rows]
        ids = [row["video_id"] for row in self.rows]
        videos = Dataset.from_dict({"id": ids, "video": files}).cast_column("video", Video())
        pairs = [(row["video_id"], text) for row in self.rows for text in row["captions"]]
        texts = Dataset.from_dict(
            {"id": [f"text-{i}" for i in range(len(pairs))], "text": [text for _, text in pairs]}
        )
        relevant: dict[str, dict[str, int]] = {}
        for i, (video_id, _) in enumerate(pairs):
            query, document = (f"text-{i}", video_id) if self.metadata.category == "t2v" else (video_id, f"text-{i}")
            relevant.setdefault(query, {})[document] = 1
        queries, corpus = (texts, videos) if self.metadata.category == "t2v" else (videos, texts)
        split = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": None}
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


def task_of(category: str, rows: list[dict], name: str = "Shapes") -> ShapesTask:
    """Returns a task of MTEB. Each task has its own class with its metadata."""
    metadata = mteb.abstasks.task_metadata.TaskMetadata(
        name=f"{name}{category.upper()}", description="Moving shapes", dataset={"path": "shapes", "revision": "1"},
        reference=None, type="Any2AnyRetrieval", category=category, modalities=["video", "text"], eval_splits=["test"],
        eval_langs=["eng-Latn"], main_score="ndcg_at_10", date=None, domains=None, task_subtypes=None, license=None,
        annotations_creators=None, dialect=None, sample_creation=None, bibtex_citation=None,
    )  # fmt: skip
    return type(f"Of{metadata.name}", (ShapesTask,), {"metadata": metadata, "rows": rows})()


def ndcg_at_10(similarity: torch.Tensor, relevant: list[set[int]]) -> float:
    """Returns the mean over queries of the discounted gain of the best ten, divided by the best possible gain."""
    values = []
    for scores, right in zip(similarity.tolist(), relevant):
        ranking = sorted(range(len(scores)), key=lambda i: -scores[i])[:10]
        gain = sum(1 / math.log2(rank + 2) for rank, i in enumerate(ranking) if i in right)
        values.append(gain / sum(1 / math.log2(rank + 2) for rank in range(min(10, len(right)))))
    return 100 * sum(values) / len(values)


@pytest.mark.parametrize("category", ["t2v", "v2t"])
def test_scores_are_those_of_this_package(category, rows, encoder, embeddings, tmp_path):
    scores, failures = ours.evaluate_on_mteb(encoder, [task_of(category, rows)], tmp_path, batch_size=5)
    assert failures == {}
    found = scores[f"Shapes{category.upper()}"]

    similarity = embeddings.text_embeds @ embeddings.video_embeds.T
    owners = [embeddings.video_ids.index(video_id) for video_id in embeddings.text_video_ids]
    relevant = [{owner} for owner in owners]
    if category == "v2t":
        similarity = similarity.T
        relevant = [{i for i, owner in enumerate(owners) if owner == video} for video in range(len(rows))]
    assert found["main_score"] == found["ndcg_at_10"] == pytest.approx(ndcg_at_10(similarity, relevant), abs=1e-2)

    metrics = retrieval_metrics(
        embeddings.text_embeds, embeddings.video_embeds, embeddings.text_video_ids, embeddings.video_ids
    )
    (file,) = tmp_path.glob(f"results/local__checkpoint/*/Shapes{category.upper()}.json")
    (saved,) = json.loads(file.read_text())["scores"]["test"]
    for k in (1, 5, 10):
        assert 100 * saved[f"hit_rate_at_{k}"] == pytest.approx(metrics[f"{category}_R@{k}"], abs=1e-2)
        if category == "t2v":  # each query has one right answer
            assert found[f"recall_at_{k}"] == pytest.approx(metrics[f"t2v_R@{k}"], abs=1e-2)
    assert 0 < metrics[f"{category}_R@5"] < 100
    for path in tmp_path.rglob("*.json*"):
        assert str(encoder.model.config._name_or_path) not in path.read_text(), path.name


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_sentence_transformer_gets_the_same_scores(rows, checkpoint, encoder, tmp_path):
    """As in docs/evaluation.md, with MTEB's own way to decode videos."""
    pytest.importorskip("torchcodec")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    wrapper = importlib.import_module("mteb.models.sentence_transformer_wrapper").SentenceTransformerEncoderWrapper
    model = sentence_transformers.SentenceTransformer(str(checkpoint), trust_remote_code=True, device="cpu")
    wrapped = wrapper(model, num_frames=4)
    wrapped.mteb_model_meta.modalities = ["text", "image", "video"]
    # For a model on the Hub, MTEB takes the modalities from this file.
    config = json.loads((checkpoint / "sentence_bert_config.json").read_text(encoding="utf-8"))
    assert set(wrapped.mteb_model_meta.modalities) <= set(config["modality_config"])
    for category in ("t2v", "v2t"):
        (result,) = mteb.evaluate(wrapped, task_of(category, rows), cache=None, encode_kwargs={"batch_size": 4})
        expected, _ = ours.evaluate_on_mteb(encoder, [task_of(category, rows)], tmp_path, batch_size=5)
        (found,) = result.scores["test"]
        for name in ("ndcg_at_10", "recall_at_1"):
            assert 100 * found[name] == pytest.approx(expected[f"Shapes{category.upper()}"][name], abs=0.01)


def of_mteb(**columns) -> types.SimpleNamespace:
    """Returns a stand-in for a `DataLoader` of MTEB, with only what the encoder uses."""
    return types.SimpleNamespace(dataset=Dataset.from_dict(columns))


METADATA = types.SimpleNamespace(name="Some task")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_decoding_processes_do_not_change_embeddings(num_workers, rows, checkpoint, embeddings):
    inputs = of_mteb(video=[row["video"] for row in rows])
    inputs.dataset = inputs.dataset.cast_column("video", Video())
    encoder = ours.MTEBEncoder(str(checkpoint), device="cpu", num_workers=num_workers)
    found = encoder.encode(inputs, task_metadata=METADATA, batch_size=16, show_progress_bar=False)
    torch.testing.assert_close(found, embeddings.video_embeds)


def test_images_are_clips_of_one_frame(encoder):
    pictures = [picture(), picture(90), picture(140).rotate(90)]
    inputs = of_mteb(image=pictures)
    assert isinstance(inputs.dataset.features["image"], Image)
    found = encoder.encode(inputs, task_metadata=METADATA)
    with torch.no_grad():
        expected = encoder.model(**encoder.processor(images=pictures)).video_embeds
        repeated = encoder.model(**encoder.processor(videos=[[one] for one in pictures])).video_embeds
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, repeated, atol=1e-3)


def test_inputs_that_cannot_be_embedded(encoder, rows):
    for inputs, message in (
        (of_mteb(text=["one"], video=["1.mp4"]), "Some task has text and video in one input: a task can only"),
        (of_mteb(audio=["1.wav"]), "Some task has neither texts, images nor videos in one input"),
        (of_mteb(video=["absent.mp4", rows[0]["video"]]), "1 of the 2 videos of Some task cannot be read.*absent.mp4"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder.encode(inputs, task_metadata=METADATA)


def test_results_belong_to_the_weights(checkpoint, encoder, tmp_path):
    about = encoder.mteb_model_meta
    assert about.name == "local/checkpoint"
    assert set(about.modalities) == {"text", "image", "video"}
    other = tmp_path / "checkpoint"
    tiny_model(seed=1, text=tiny_text_config(vocab_size=200)).save_pretrained(other)
    encoder.processor.save_pretrained(other)
    assert ours.MTEBEncoder(str(other)).mteb_model_meta.name == about.name
    assert ours.MTEBEncoder(str(other)).mteb_model_meta.revision != about.revision
    assert ours.MTEBEncoder(str(checkpoint)).mteb_model_meta.revision == about.revision


# Choosing tasks


def test_tasks_of_mteb():
    tasks = ours.video_retrieval_tasks()
    assert {"MSVDT2VRetrieval", "MSVDV2TRetrieval", "MSRVTTT2V", "ABOI2VRetrieval"} <= set(tasks)
    for task in tasks.values():
        assert "video" in task.metadata.modalities
        assert not {"audio"} & set(task.metadata.modalities), task.metadata.name
    by_default = [task.metadata.name for task in ours.choose_tasks()]
    assert "MSVDT2VRetrieval" in by_default
    assert "MSRVTTT2V" not in by_default  # in beta
    assert [task.metadata.name for task in ours.choose_tasks(["MSVDT2VRetrieval"] * 2)] == ["MSVDT2VRetrieval"]
    with pytest.raises(ValueError, match=r"'MSVDT2VRetrievals' is not a video retrieval .* mean 'MSVDT2VRetrieval'"):
        ours.choose_tasks(["MSVDT2VRetrievals"])


def test_tasks_in_beta_are_named(caplog):
    ours.choose_tasks(["MSRVTTT2V", "MSVDT2VRetrieval"])
    (record,) = [record for record in caplog.records if record.name == ours.logger.name]
    assert record.getMessage() == "These tasks are in beta, so MTEB may still change their data and scores: MSRVTTT2V"


def test_rows_of_a_task_with_several_subsets():
    parts = [{"hf_subset": name, "main_score": score} for name, score in (("en", 0.5), ("zh", 0.25))]
    rows = ours._rows(types.SimpleNamespace(task_name="Task", scores={"test": parts}))
    assert {name: row["main_score"] for name, row in rows.items()} == {"Task test en": 50.0, "Task test zh": 25.0}
    assert rows["Task test en"]["recall_at_1"] is None


def test_bugs_are_not_mistaken_for_failed_tasks(encoder, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(ours.mteb, "evaluate", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        ours.evaluate_on_mteb(encoder, [task_of("t2v", rows)], tmp_path)


# The command


@pytest.fixture
def known(monkeypatch, rows):
    damaged = [rows[0] | {"video": __file__}, *rows[1:]]
    tasks = [task_of("t2v", rows), task_of("v2t", rows), task_of("t2v", damaged, "Damaged")]
    known = {task.metadata.name: task for task in tasks}
    monkeypatch.setattr(ours, "video_retrieval_tasks", lambda: known)
    return known


def test_command(known, checkpoint, tmp_path, capsys, monkeypatch):
    argv = ["mteb", str(checkpoint), "ShapesT2V", "ShapesV2T", "--output", str(tmp_path), "--batch-size", "4"]
    code, out, error = run(capsys, *argv)
    assert code == 0, error
    assert out.split()[:6] == ["task", "main_score", "ndcg_at_10", "recall_at_1", "recall_at_5", "recall_at_10"]
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["ShapesT2V", "ShapesV2T"]
    (directory,) = tmp_path.glob("results/local__checkpoint/*")
    assert f"Wrote {directory}" in error
    assert {"ShapesT2V.json", "ShapesV2T.json", "model_meta.json"} <= {path.name for path in directory.iterdir()}

    # Finished tasks are not evaluated again, and their scores are printed even if another task fails.
    monkeypatch.setattr(ShapesTask, "evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    known["DamagedT2V"].evaluate = types.MethodType(AbsTaskRetrieval.evaluate, known["DamagedT2V"])
    code, again, error = run(capsys, "mteb", str(checkpoint), "--all", "--output", str(tmp_path), "--json")
    assert code == 2
    assert f"{json.loads(again)['ShapesT2V']['ndcg_at_10']:.2f}" in out
    assert "error: 1 of 3 tasks could not be evaluated. DamagedT2V: 1 of the 14 videos of " in error


def test_list_of_tasks(known, capsys):
    code, out, _ = run(capsys, "mteb", "--list-tasks", "--json")
    assert code == 0
    assert json.loads(out)["ShapesT2V"] == {"category": "t2v", "beta": ""}
    assert run(capsys, "mteb", "--list-tasks")[1].split()[:3] == ["task", "category", "beta"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["CHECKPOINT"], "Give a checkpoint, and names of tasks or --all; --list-tasks shows the tasks."),
        (["CHECKPOINT", "ShapesT2V", "--all"], "Give a checkpoint, and names of tasks or --all"),
        ([], "Give a checkpoint"),
        (["./absent", "--all"], "There is no directory ./absent"),
        (["CHECKPOINT", "ShapesT3V"], "'ShapesT3V' is not a video retrieval task of MTEB; did you mean 'ShapesT2V'?"),
    ],
)
def test_mistakes(argv, message, known, checkpoint, capsys):
    code, _, error = run(capsys, "mteb", *(str(checkpoint) if word == "CHECKPOINT" else word for word in argv))
    assert (code, len(error.splitlines())) == (2, 1)
    assert message in error

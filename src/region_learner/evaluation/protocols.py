"""
The benchmarks' protocols by name, and the evaluation of a checkpoint by one of them.

A protocol says what is compared with what: videos, texts that are queries, the number to look at, and where it comes
from. Sizes are those published; an evaluation on other ones says so. docs/evaluation.md tells what other papers do
differently.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..files import refuse_bare_adapters
from ..loading import load_model
from .results import EvaluationResults, describe_data, describe_model, digest_of_rows, mean_of_folds, shown_path
from .retrieval import ONE_VIEW, Views
from .tasks import TEMPLATES

logger = logging.getLogger(__name__)

# Of what an evaluation returns, what is no metric.
_COUNTS = ("videos", "texts", "questions", "classes", "out_of_vocabulary")

# Corpora whose name does not tell what is in them.
_ANY_VIDEOS = {"folder", "webdataset"}

PRIMARY_METRIC = {
    "retrieval": "t2v_R@1",
    "multiple_choice": "accuracy",
    "question_answering": "accuracy",
    "classification": "top1",
    "zero_shot": "top1",
}


@dataclass(frozen=True)
class Protocol:
    """
    Args:
        name: as on the command line; None for a corpus and a task chosen freely.
        corpus: name of the corpus.
        task: one of `EVALUATIONS`. "zero_shot" recognises actions by prompts.
        split: of the corpus.
        options: of the corpus.
        captions: which texts are queries, in words.
        sizes: published numbers by name ("videos", "texts", "questions"); several where they differ by fold.
        source: paper, and repository where that set the rules.
        zero_shot: whether the model must not have been trained on the corpus.
        folds: how many there are, of which fold 1 is the default; 0 where there are none.
    """

    name: str | None
    corpus: str
    task: str = "retrieval"
    split: str = "test"
    options: Mapping[str, Any] = field(default_factory=dict)
    captions: str = ""
    sizes: Mapping[str, int | Sequence[int]] = field(default_factory=dict)
    source: str = ""
    zero_shot: bool = False
    folds: int = 0

    @property
    def metric(self) -> str:
        """The primary metric."""
        return PRIMARY_METRIC[self.task]

    def size(self, name: str, fold: int = 1) -> int:
        """The published number of videos, texts or questions."""
        size = self.sizes[name]
        return size if isinstance(size, int) else size[fold - 1]


_ALL = "all captions of a video, each a query of its own"
_ONE = "one caption a video"

_FINE_TUNED = [
    Protocol(
        "msrvtt_1ka", "msrvtt",
        options={"protocol": "1k-A"}, captions="the one caption a video of the published pairs",
        sizes={"videos": 1000, "texts": 1000},
        source="Yu et al., ECCV 2018 (JSFusion), pairs; training on 9,000 videos: Gabeur et al., ECCV 2020",
    ),
    Protocol(
        "msrvtt_1kb", "msrvtt",
        options={"protocol": "1k-B"}, captions=_ALL, sizes={"videos": 1000, "texts": 20_000},
        source="Miech et al., arXiv 1804.02516, lists; captions as in github.com/albanie/collaborative-experts",
    ),
    Protocol(
        "msrvtt_full", "msrvtt",
        options={"protocol": "full"}, captions=_ALL, sizes={"videos": 2990, "texts": 59_800},
        source="Xu et al., CVPR 2016; as in github.com/albanie/collaborative-experts",
    ),
    Protocol(
        "msvd", "msvd", captions=_ALL, sizes={"videos": 670},
        source="Chen and Dolan, ACL 2011; split of Venugopalan et al., ICCV 2015; all captions as in "
        "github.com/albanie/collaborative-experts",
    ),
    Protocol(
        "didemo", "didemo",
        captions="one paragraph a video: its descriptions joined", sizes={"videos": 1004, "texts": 1004},
        source="Hendricks et al., ICCV 2017; paragraphs: Zhang et al., ECCV 2018, and Liu et al., BMVC 2019",
    ),
    Protocol(
        "lsmdc", "lsmdc", captions=_ONE, sizes={"videos": 1000, "texts": 1000},
        source="Rohrbach et al., IJCV 2017; the 1,000 public test clips of the 2016 challenge",
    ),
    Protocol(
        "msrvtt_mc", "msrvtt_mc", task="multiple_choice", captions="5 options a question", sizes={"questions": 2990},
        source="Yu et al., ECCV 2018 (JSFusion)",
    ),
    Protocol(
        "lsmdc_mc", "lsmdc_mc", task="multiple_choice", captions="5 options a question", sizes={"questions": 10_053},
        source="LSMDC 2016, movie multiple choice (Torabi et al., arXiv 1609.08124)",
    ),
    Protocol(
        "msrvtt_qa", "msrvtt_qa", task="question_answering",
        captions="questions with open answers, from the vocabulary of the model", sizes={"questions": 72_821},
        source="Xu et al., ACM Multimedia 2017",
    ),
    Protocol(
        "msvd_qa", "msvd_qa", task="question_answering",
        captions="questions with open answers, from the vocabulary of the model", sizes={"questions": 13_157},
        source="Xu et al., ACM Multimedia 2017",
    ),
    Protocol(
        "hmdb51", "hmdb51", task="classification", captions="51 classes, by a classifier",
        sizes={"videos": 1530}, folds=3, source="Kuehne et al., ICCV 2011",
    ),
    Protocol(
        "ucf101", "ucf101", task="classification", captions="101 classes, by a classifier",
        sizes={"videos": (3783, 3734, 3696)}, folds=3, source="Soomro et al., arXiv 1212.0402",
    ),
    Protocol(
        "moving_shapes", "moving_shapes", captions=_ALL, source="built in: see corpora/synthetic/shapes.py",
    ),
    Protocol(
        "moving_shapes_unseen", "moving_shapes", split="test_unseen", captions=_ALL,
        source="built in: combinations that training does not have; see corpora/synthetic/shapes.py",
    ),
    Protocol(
        "drifting_letters", "drifting_letters", captions=_ALL, source="built in: see corpora/synthetic/letters.py",
    ),
]  # fmt: skip


def _prompted(protocol: Protocol, suffix: str, zero_shot: bool) -> Protocol:
    captions = f"{protocol.captions.partition(',')[0]}, by prompts"
    return dataclasses.replace(
        protocol, name=f"{protocol.name}_{suffix}", task="zero_shot", captions=captions, zero_shot=zero_shot
    )


def _table() -> dict[str, Protocol]:
    protocols = list(_FINE_TUNED)
    for protocol in _FINE_TUNED:
        if protocol.task == "classification":
            protocols.append(_prompted(protocol, "prompts", zero_shot=False))
            protocols.append(_prompted(protocol, "zero_shot", zero_shot=True))
        elif protocol.task != "question_answering" and protocol.sizes:  # a vocabulary of answers has to be trained
            protocols.append(dataclasses.replace(protocol, name=f"{protocol.name}_zero_shot", zero_shot=True))
    return {str(protocol.name): protocol for protocol in protocols}


PROTOCOLS: dict[str, Protocol] = _table()


def get_protocol(name: str) -> Protocol:
    """
    Raises:
        ValueError: there is none of this name.
    """
    from ..configuration_region_learner import did_you_mean

    if name not in PROTOCOLS:
        of_corpus = [f"'{known}'" for known in PROTOCOLS if known.startswith(f"{name}_")]
        near = f"; did you mean {', '.join(of_corpus)}?" if of_corpus else did_you_mean(name, PROTOCOLS)
        raise ValueError(f"There is no protocol {name!r}{near} (protocols: {', '.join(PROTOCOLS)}).")
    return PROTOCOLS[name]


def evaluate_checkpoint(
    protocol: Protocol,
    model: str,
    data_dir: str | Path | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    all_folds: bool = False,
    views: Views = ONE_VIEW,
    templates: Sequence[str] | None = None,
    dual_softmax: bool = False,
    dual_softmax_temperature: float | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    max_unreadable: float = 1.0,
) -> EvaluationResults:
    """
    Evaluates a checkpoint by a protocol.

    Args:
        protocol: of `PROTOCOLS`, or one's own.
        model: directory or Hub name; with `all_folds`, "{fold}" in it stands for the number of the fold.
        data_dir: where the corpus lies.
        options: of the corpus, beside those of the protocol.
        all_folds: the mean over all folds. A model that was trained on one fold has seen the tests of the others, so
            that each takes its own model; a model that saw none may be one for all.
        views: clips of a video.
        templates: prompts for actions.
        dual_softmax: for retrieval, also re-scored metrics.
        dual_softmax_temperature: by default that of the model.
        batch_size: clips at a time.
        num_workers: processes that decode.
        max_unreadable: share of the videos that may be unreadable, and left out; above it, evaluation ends.

    Raises:
        ValueError: options that do not fit the protocol, a model that was trained on a corpus it is to be evaluated
            on zero-shot; CorpusError: missing or damaged data.
    """
    options = dict(options or {})
    for name, value in protocol.options.items():
        if options.setdefault(name, value) != value:
            raise ValueError(f"Protocol {protocol.name} has {name}={value!r}: the corpus option must not change it.")
    if (dual_softmax or dual_softmax_temperature is not None) and protocol.task != "retrieval":
        raise ValueError(f"Dual-softmax re-scoring is for retrieval, not for the task {protocol.task!r}.")
    if dual_softmax_temperature is not None and not dual_softmax_temperature > 0:
        raise ValueError(f"The temperature of dual softmax, {dual_softmax_temperature}, must be above 0.")
    if not 0 <= max_unreadable <= 1:
        raise ValueError(f"max_unreadable={max_unreadable} is a share: it must be between 0 and 1.")
    if templates is not None and protocol.task != "zero_shot":
        raise ValueError(f"Prompts are for actions with the task 'zero_shot', not for the task {protocol.task!r}.")
    arguments: dict[str, Any] = {
        "views": views,
        "templates": templates,
        "dual_softmax": dual_softmax or dual_softmax_temperature is not None,
        "dual_softmax_temperature": dual_softmax_temperature,
        "batch_size": batch_size,
        "num_workers": num_workers,
        "max_unreadable": max_unreadable,
    }
    if not all_folds:
        return _evaluate(protocol, model, data_dir, options, **arguments)
    if not protocol.folds:
        with_folds = [name for name, other in PROTOCOLS.items() if other.folds]
        raise ValueError(f"All folds are of a protocol that has some: {', '.join(with_folds)}.")
    if "fold" in options:
        raise ValueError("All folds and the corpus option 'fold' exclude each other.")
    if "{fold}" not in model and not protocol.zero_shot:
        raise ValueError(
            f"Each fold takes the model that was trained on it, as others have seen its test videos: write {{fold}} "
            f"where the names of the models differ, as in {model}-{{fold}}."
        )
    folds = range(1, protocol.folds + 1)
    models = [model.replace("{fold}", str(fold)) for fold in folds]
    results = [
        _evaluate(protocol, its_model, data_dir, options | {"fold": fold}, **arguments)
        for fold, its_model in zip(folds, models)
    ]
    return mean_of_folds(results, folds, model)


def _evaluate(
    protocol: Protocol,
    name: str,
    data_dir: str | Path | None,
    options: dict[str, Any],
    *,
    views: Views,
    templates: Sequence[str] | None,
    dual_softmax: bool,
    dual_softmax_temperature: float | None,
    batch_size: int,
    num_workers: int,
    max_unreadable: float,
) -> EvaluationResults:
    import torch

    from ..corpora import corpus_options, load_corpus
    from ..loading import check_checkpoint
    from . import EVALUATIONS

    start = time.perf_counter()
    check_checkpoint(name)
    runs, unknown = _training_of(name)
    trained_on = {entry.corpus for entry in runs}
    unchecked = _check_zero_shot(protocol, name, trained_on, unknown) if protocol.zero_shot else []
    if "fold" in corpus_options(protocol.corpus):
        options = {"fold": 1} | options  # to be said, even where it was not given
    dataset = load_corpus(protocol.corpus, data_dir, protocol.split, **options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, processor = load_checkpoint(name, protocol.task)
    model.to(device)
    extra: dict[str, Any] = {}
    if protocol.task == "zero_shot":
        extra["templates"] = list(TEMPLATES if templates is None else templates)
    if dual_softmax:
        given = dual_softmax_temperature
        extra["dual_softmax_temperature"] = float(model.temperature) if given is None else given
    found = EVALUATIONS[protocol.task](
        model,
        processor,
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        views=views,
        max_unreadable=max_unreadable,
        **extra,
    )

    counts = {key: found.pop(key) for key in _COUNTS if key in found}
    unreadable, rescored = found.pop("unreadable"), found.pop("rescored", None)
    seen = any(entry.holds(protocol.corpus, data_dir, protocol.split) for entry in runs)
    notes = size_notes(protocol, counts, options.get("fold", 1)) + unchecked
    if seen:
        notes.append(
            f"The model was trained on this split, {protocol.split}: the metrics do not tell how good it is on new "
            "videos."
        )
    for note in notes:
        logger.warning(note)
    return EvaluationResults(
        model=describe_model(model, name) | {"trained_on": sorted(trained_on)},
        data=describe_data(protocol.corpus, data_dir, protocol.split, options)
        | {"sha256": digest_of_rows(dataset), "trained_on": seen}
        | counts
        | {"unreadable": unreadable},
        protocol={
            "name": protocol.name,
            "task": protocol.task,
            "zero_shot": protocol.zero_shot,
            "captions": protocol.captions,
            "source": protocol.source,
            "primary_metric": protocol.metric,
            "frames": getattr(processor, "video_processor", processor).num_frames,
            "clips": views.clips if views.window_stride is None else None,
            "window_stride": views.window_stride,
            **extra,
        },
        metrics=found,
        rescored=rescored,
        notes=notes,
        dtype=str(model.dtype).removeprefix("torch."),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        seconds=round(time.perf_counter() - start, 2),
    )


def load_checkpoint(name: str, task: str | None) -> tuple[Any, Any]:
    """
    The model of a checkpoint that does a task, and its processor.

    Args:
        name: a directory or Hub name.
        task: of `EVALUATIONS`; None for what needs a video tower alone. For it, and for "classification", the
            processor is a video processor.

    Raises:
        ValueError: it is no RegionLearner, or lacks weights, as one of another task does: they would be drawn at
            random, and so would be what is measured.
        OSError: there is no such directory, or model on the Hub.
    """
    from transformers import (
        AutoModel,
        AutoModelForVideoClassification,
        AutoModelForVisualQuestionAnswering,
    )

    from ..files import near_file
    from ..loading import load_processor

    refuse_bare_adapters(name)
    heads: dict[str | None, Any] = {
        "question_answering": AutoModelForVisualQuestionAnswering,
        "classification": AutoModelForVideoClassification,
    }
    try:
        model, info = load_model(
            heads.get(task, AutoModel), name, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError) as error:
        if Path(name).exists():
            raise
        raise OSError(
            f"{name} is not a local directory{near_file(name)}, and downloading it from the Hub failed: {error}"
        ) from error
    is_a = type(model).__name__
    towers = ("region_learner",) if task is not None else ("region_learner", "region_learner_video")
    if model.config.model_type not in towers:
        raise ValueError(
            f"{name} is a {is_a}, of the type {model.config.model_type!r}: expected a RegionLearner model."
        )
    absent = {str(key) for key in info["missing_keys"]} | {str(key[0]) for key in info["mismatched_keys"]}
    needed = "video_model." if task is None and hasattr(model, "video_model") else ""
    if missing := sorted(key for key in absent if key.startswith(needed)):
        was = ", ".join(model.config.architectures or []) or "of an unknown class"
        takes = "the video tower" if task is None else f"the task {task!r}"
        raise ValueError(
            f"{name} ({was}): {len(missing)} weights of {is_a} that {takes} needs are missing or of another shape "
            f"({', '.join(missing[:3])}{', ...' * (len(missing) > 3)}): they would be random. Take a checkpoint that "
            "was trained for it."
        )
    reads_texts = task not in (None, "classification")
    return model, load_processor(name, model.config.text_config if reads_texts else None)


def size_notes(protocol: Protocol, counts: Mapping[str, int], fold: int = 1) -> list[str]:
    """
    What to say of an evaluation that did not have all videos, texts or questions of the benchmark: nothing if it had.

    Args:
        counts: numbers of what was evaluated.
        fold: where sizes differ by it.
    """
    different = [
        f"{counts[name]:,} {name} instead of {protocol.size(name, fold):,}"
        for name in protocol.sizes
        if counts[name] != protocol.size(name, fold)
    ]
    if not different:
        return []
    return [
        f"{protocol.name} was evaluated on {' and '.join(different)}: videos are missing or unreadable, or the lists "
        "are other ones. The results do not compare with published ones."
    ]


class _TrainedOn(NamedTuple):
    """A corpus that a model was trained on."""

    corpus: str
    data_dir: str | None
    split: str

    def holds(self, corpus: str, data_dir: str | Path | None, split: str) -> bool:
        """Whether it is this split of a corpus: of corpora of one's own videos, that of the same directory."""
        if (videos_of(self.corpus), self.split) != (videos_of(corpus), split):
            return False
        return corpus not in _ANY_VIDEOS or Path(self.data_dir or "").resolve() == Path(data_dir or "").resolve()


def _training_of(model: str) -> tuple[set[_TrainedOn], str | None]:
    """
    What a model was trained on, by the results.json of its training run and of those that it began from; and the
    checkpoint of which nothing is known, or None if the last one began from no checkpoint.
    """
    corpora: set[_TrainedOn] = set()
    seen: set[Path] = set()
    name: str | None = model
    while name is not None:
        path = Path(name).absolute() / "results.json"
        if not path.is_file() and path.parent.name.startswith("checkpoint-"):  # one of those that a run leaves
            path = path.parent.parent / path.name
        try:
            arguments = json.loads(path.read_bytes())["arguments"]
            for entry in arguments.get("corpora") or [{}]:
                corpus = str(entry.get("corpus", arguments["corpus"]))
                data_dir = entry.get("data_dir", None if "corpus" in entry else arguments.get("data_dir"))
                split = entry.get("split", arguments.get("train_split", "train"))
                corpora.add(_TrainedOn(corpus, data_dir, str(split)))
            start = arguments.get("model")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return corpora, name
        if path in seen:  # a run that was written over what it began from
            return corpora, name
        seen.add(path)
        name = None if start is None else str(start)
    return corpora, None


def _check_zero_shot(protocol: Protocol, model: str, trained_on: set[str], unknown: str | None) -> list[str]:
    """
    What to note of the claim that the model was not trained on the corpus: nothing if its training is known.

    Raises:
        ValueError: the model was trained on the corpus.
    """
    if videos_of(protocol.corpus) in map(videos_of, trained_on):
        base = str(protocol.name).removesuffix("_zero_shot")
        others = [name for name in (base, f"{base}_prompts") if name in PROTOCOLS]
        raise ValueError(
            f"Protocol {protocol.name} is for models that were not trained on {protocol.corpus}, but results.json of "
            f"the training of {model} says that this one was: take {' or '.join(others)}."
        )
    reasons = [f"its corpus {name!r} may hold any videos" for name in sorted(trained_on & _ANY_VIDEOS)]
    if unknown is not None:
        reasons.append(f"no results.json tells how {shown_path(unknown)!r} was trained")
    if not reasons:
        return []
    return [f"That the model was not trained on {protocol.corpus} could not be checked: {', and '.join(reasons)}."]


def videos_of(corpus: str) -> str:
    """The corpus that the videos are of: questions and choices are asked about those of others."""
    return corpus.removesuffix("_qa").removesuffix("_mc")

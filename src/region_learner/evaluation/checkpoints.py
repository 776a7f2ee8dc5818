"""Evaluates a checkpoint by a protocol."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch

from ..corpora import corpus_options, load_corpus
from ..corpora.features import check_features
from ..loading import check_checkpoint, load_checkpoint
from .protocols import PROTOCOLS, Protocol
from .provenance import TrainingHistory, describe_data, describe_model, digest_of_rows, lists_of, training_history
from .reading import ONE_VIEW, ReadingOptions, Views
from .reranking import CANDIDATES, has_tokens
from .results import EvaluationResults, mean_of_folds
from .tasks import EVALUATIONS, TEMPLATES

logger = logging.getLogger(__name__)

# The numbers that an evaluation returns in addition to metrics.
_COUNTS = ("videos", "texts", "questions", "classes", "objects", "out_of_vocabulary", "cut_off")


_RANKING = ("retrieval", "multiple_choice")  # the tasks that can be re-ranked by words and regions


def evaluate_checkpoint(
    protocol: Protocol,
    model: str,
    data_dir: str | Path | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    num_frames: int | None = None,
    all_folds: bool = False,
    templates: Sequence[str] | None = None,
    dual_softmax: bool = False,
    dual_softmax_temperature: float | None = None,
    rerank: int | None = None,
    **reading: Unpack[ReadingOptions],
) -> EvaluationResults:
    """
    Evaluates a checkpoint by a protocol.

    Args:
        protocol: one of `PROTOCOLS`, or your own.
        model: directory or Hub name of the checkpoint. With `all_folds`, "{fold}" in it is replaced by the number of
            the fold.
        data_dir: directory of the corpus.
        options: options of the corpus, in addition to those of the protocol.
        num_frames: frames per clip. The default is the number that the processor samples.
        all_folds: whether to average over all folds. A model that was trained on one fold has seen the test videos of
            the others, so each fold needs its own model; a model that was not trained on the corpus can be used for
            all folds.
        templates: prompts for the task "zero_shot".
        dual_softmax: whether to add retrieval metrics that are re-scored by dual softmax.
        dual_softmax_temperature: temperature of dual softmax, which implies `dual_softmax`. The default is the
            temperature of the model.
        rerank: number of best candidates of each query that are re-ranked by words and regions, with a model that has
            `token_dim`. The default is 100; 0 disables re-ranking. Multiple choice re-ranks all options, so only 0 may
            be given.
        reading: see [`ReadingOptions`].

    Returns:
        The metrics, and everything that they depend on.

    Raises:
        ValueError: options do not fit the protocol, or the protocol is zero-shot and the model was trained on the
            corpus.
        CorpusError: data is missing or damaged.
        OSError: the checkpoint does not exist, or cannot be downloaded.

    Example:

        evaluate_checkpoint(Protocol(corpus="folder"), "CHECKPOINT", "my_videos").metrics["t2v_R@1"]
        evaluate_checkpoint(get_protocol("msvd"), "CHECKPOINT", "data/MSVD").metrics["t2v_R@1"]
    """
    protocol.check()
    if not 0 <= (share := reading.get("max_unreadable", 1.0)) <= 1:
        raise ValueError(f"max_unreadable={share} must be a share between 0 and 1.")
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames={num_frames} must be at least 1.")
    of_task = _options_of_task(protocol.task, templates, dual_softmax, dual_softmax_temperature, rerank)
    corpus = dict(options or {})
    for name, value in protocol.options.items():
        if corpus.setdefault(name, value) != value:
            raise ValueError(f"The protocol {protocol.name} sets {name}={value!r}: leave that corpus option out.")
    if not all_folds:
        return _evaluate(protocol, model, data_dir, corpus, num_frames, of_task, reading)
    _check_folds(protocol, model, corpus)
    folds = range(1, protocol.folds + 1)
    results = []
    for fold in folds:
        name, of_fold = model.replace("{fold}", str(fold)), corpus | {"fold": fold}
        results.append(_evaluate(protocol, name, data_dir, of_fold, num_frames, of_task, reading))
    return mean_of_folds(results, folds, model)


def _options_of_task(
    task: str, templates: Sequence[str] | None, dual_softmax: bool, temperature: float | None, rerank: int | None
) -> dict[str, Any]:
    """
    Returns the arguments that only the evaluation of this task takes. A temperature of None means that of the model.

    Raises:
        ValueError: a number is out of range, or an option does not fit the task.
    """
    dual_softmax = dual_softmax or temperature is not None
    if dual_softmax and task != "retrieval":
        raise ValueError(f"Dual-softmax re-scoring is for retrieval, not for the task {task!r}.")
    if temperature is not None and not temperature > 0:
        raise ValueError(f"dual_softmax_temperature={temperature} must be above 0.")
    reranking = _rerank_of_task(task, rerank)
    if task == "zero_shot":
        return {"templates": list(TEMPLATES if templates is None else templates)}
    if templates is not None:
        raise ValueError(f"Prompts are for the task 'zero_shot', not for the task {task!r}.")
    return ({"dual_softmax_temperature": temperature} if dual_softmax else {}) | reranking


def _rerank_of_task(task: str, rerank: int | None) -> dict[str, Any]:
    """
    Returns the argument for re-ranking if it is not the default.

    Raises:
        ValueError: the task does not rank, or the number does not fit it.
    """
    if rerank is None:
        return {}
    if task not in _RANKING:
        raise ValueError(f"Re-ranking is for retrieval and multiple choice, not for the task {task!r}.")
    if rerank < 0:
        raise ValueError(f"rerank={rerank} must be at least 0.")
    if task == "retrieval":
        return {"rerank": rerank}
    if rerank:
        raise ValueError(f"rerank={rerank}: multiple choice re-ranks all options. Leave rerank out, or set it to 0.")
    return {"rerank": False}


def _check_folds(protocol: Protocol, model: str, options: Mapping[str, Any]) -> None:
    if not protocol.folds:
        with_folds = [name for name, other in PROTOCOLS.items() if other.folds]
        raise ValueError(f"all_folds needs a protocol with folds: {', '.join(with_folds)}.")
    if "fold" in options:
        raise ValueError("all_folds evaluates every fold: leave out either all_folds or the corpus option 'fold'.")
    if "{fold}" not in model and not protocol.zero_shot:
        raise ValueError(
            "Each fold needs the model that was trained on it, as the other models have seen its test videos: write "
            f"{{fold}} where the names of the models differ, as in {model}-{{fold}}."
        )


def _evaluate(
    protocol: Protocol,
    name: str,
    data_dir: str | Path | None,
    options: dict[str, Any],
    num_frames: int | None,
    of_task: dict[str, Any],
    reading: ReadingOptions,
) -> EvaluationResults:
    start = time.perf_counter()
    check_checkpoint(name)
    history = training_history(name)
    notes = _check_zero_shot(protocol, name, history) if protocol.zero_shot else []
    if "fold" in corpus_options(protocol.corpus):
        options = {"fold": 1} | options  # record the fold even if it was not given
    dataset = load_corpus(protocol.corpus, data_dir, protocol.split, **options)
    model, processor = load_checkpoint(name, protocol.task)
    if num_frames is not None:
        most = model.video_model.max_frames
        if most is not None and num_frames > most:
            raise ValueError(
                f"num_frames={num_frames}: {name} has temporal positions for {most} frames per clip. Use fewer, or a "
                "copy of the model with more positions, from `model.resize_frames`."
            )
        video_processor = getattr(processor, "video_processor", processor)
        video_processor.num_frames, video_processor.fps = num_frames, None
    check_features(model, processor, [(dataset, None)])
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    of_task = dict(of_task)
    if "dual_softmax_temperature" in of_task:
        of_task["dual_softmax_temperature"] = of_task["dual_softmax_temperature"] or float(model.temperature)
    metrics = EVALUATIONS[protocol.task](model, processor, dataset, **reading, **of_task)
    unreadable, rescored = metrics.pop("unreadable"), metrics.pop("rescored", None)
    reranked = metrics.pop("reranked", None)
    asked = of_task.pop("rerank", None)
    if reranked and protocol.task == "retrieval":
        of_task["rerank"] = asked or CANDIDATES
    elif asked is None and protocol.task in _RANKING and has_tokens(model) and not reranked:
        notes.append("The results are not re-ranked by words and regions, because this needs one clip per video.")
    counts = {key: metrics.pop(key) for key in _COUNTS if key in metrics}
    lists = lists_of(protocol.corpus, options)
    trained_on = history.includes_split(protocol.corpus, data_dir, protocol.split, lists)
    notes = [*protocol.size_notes(counts, options.get("fold", 1)), *notes]
    if trained_on:
        notes.append(
            f"The model was trained on this split, {protocol.split}: the metrics do not show how good it is on new "
            "videos."
        )
    elif others := history.other_lists(protocol.corpus, lists):
        notes.append(
            f"The model was trained with other lists of these videos ({', '.join(others)} instead of {lists}), so its "
            "training videos may be among those of this evaluation."
        )
    for note in notes:
        logger.warning(note)
    return EvaluationResults(
        model={**describe_model(model, name), "trained_on": history.names},
        data={
            **describe_data(protocol.corpus, data_dir, protocol.split, options),
            "sha256": digest_of_rows(dataset),
            "trained_on": trained_on,
            **counts,
            "unreadable": unreadable,
        },
        protocol=_protocol_record(protocol, processor, reading.get("views", ONE_VIEW)) | of_task,
        metrics=metrics,
        rescored=rescored,
        reranked=reranked,
        notes=notes,
        dtype=str(model.dtype).removeprefix("torch."),
        device=torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu",
        seconds=round(time.perf_counter() - start, 2),
    )


def _protocol_record(protocol: Protocol, processor, views: Views) -> dict[str, Any]:
    return {
        "name": protocol.name,
        "task": protocol.task,
        "zero_shot": protocol.zero_shot,
        "captions": protocol.captions,
        "source": protocol.source,
        "primary_metric": protocol.metric,
        "frames": getattr(processor, "video_processor", processor).num_frames,
        "clips": views.clips if views.window_stride is None else None,
        "window_stride": views.window_stride,
    }


def _check_zero_shot(protocol: Protocol, model: str, history: TrainingHistory) -> list[str]:
    """
    Returns a note if it cannot be checked that the model was not trained on the corpus.

    Raises:
        ValueError: the model was trained on the corpus.
    """
    if history.includes(protocol.corpus):
        base = str(protocol.name).removesuffix("_zero_shot")
        others = [name for name in (base, f"{base}_prompts") if name in PROTOCOLS and name != protocol.name]
        raise ValueError(
            f"The protocol {protocol.name} is for models that were not trained on {protocol.corpus}, but {model} was, "
            f"according to its results.json: use {' or '.join(others) or 'a protocol with zero_shot=False'}."
        )
    if not (doubts := history.doubts()):
        return []
    return [f"Whether the model was trained on {protocol.corpus} could not be checked: {', and '.join(doubts)}."]

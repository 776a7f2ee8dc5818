"""
The evaluation of a model on a corpus for each task, and `compute_metrics` for the Trainer.

All accuracies are percentages. If the right answer is tied for the best score, it counts with the probability of
drawing it at random, so that a model that gives everything the same score does not look good. Videos that cannot be
read are left out, listed by their ids, and named in a warning.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
import torch.nn.functional as F

from ..inference import evaluation_mode
from ..labels import IGNORED_LABEL, MISSING_OPTION_SCORE, UNKNOWN_LABEL
from .grounding import grounding_accuracy
from .reading import (
    BATCH_SIZE,
    ONE_VIEW,
    CorpusRows,
    ReadingOptions,
    mean_of_views,
    read_clips,
    warn_of_unreadable,
)
from .reranking import Tokens, exact_similarity, number_to_rerank, temperatures_of
from .retrieval import embed_texts, embed_videos, retrieval_accuracy
from .ties import chance_of_top_k, count_ties

# These include the bare class name, because the captions of action corpora are class names.
TEMPLATES = ("{}", "a video of {}", "a person is doing {}")

# Sets of prompts, by name. The authors' code evaluates HMDB51 with a sentence and UCF101 with the bare class name.
PROMPTS: dict[str, tuple[str, ...]] = {
    "few": TEMPLATES,
    "name": ("{}",),
    "original": ("A person is {}",),
    "actions": (
        "{}",
        "{} in progress",
        "a video of {}",
        "a short clip of {}",
        "footage of {}",
        "this video shows {}",
        "an example of {}",
        "a demonstration of {}",
        "the action of {}",
        "the activity called {}",
        "someone doing {}",
        "people doing {}",
        "a person performing {}",
        "a person practising {}",
        "a video of a person doing {}",
        "a clip in which somebody is doing {}",
    ),
}


def read_prompts(name: str) -> tuple[str, ...]:
    """
    Returns a set of `PROMPTS` by its name, or the lines of a text file that are not blank. Each prompt has "{}" in the
    place of the class.

    Raises:
        ValueError: `name` is neither a set nor a file, the file has no prompts, or a line lacks "{}".
    """
    if name in PROMPTS:
        return PROMPTS[name]
    path = Path(name)
    if not path.is_file():
        raise ValueError(
            f"Prompts {name!r} are neither a set ({', '.join(PROMPTS)}) nor a text file with one prompt per line."
        )
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line and "{}" not in line:
            raise ValueError(f"{path}, line {number}: {line!r} needs '{{}}' in the place of the class name.")
    if not any(lines):
        raise ValueError(f"{path} has no prompts: write one per line, with '{{}}' in the place of the class name.")
    return tuple(line for line in lines if line)


# --- Scores --------------------------------------------------------------------------------------------------


def top_k(scores: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """
    Returns the probability (n,) that the class `labels` (n,) is among the `k` best of each row of `scores`
    (n, classes), with ties broken at random. Negative labels are never right, nor is a class with the score -inf.

    Raises:
        ValueError: a label is beyond the last class, or a score is NaN.
    """
    if scores.isnan().any():
        rows = int(scores.isnan().any(1).sum())
        raise ValueError(
            f"{rows} of {len(scores)} rows have scores that are NaN: training may have diverged, or half precision "
            "may have overflowed."
        )
    if len(labels) and int(labels.max()) >= scores.shape[1]:
        raise ValueError(f"The label {int(labels.max())} must be below the number of classes, {scores.shape[1]}.")
    labels = labels.to(scores.device)
    own = scores.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    chance = chance_of_top_k(*count_ties(scores, own), k)
    return chance.where((labels >= 0) & (own > -torch.inf), 0.0)


def _cosines(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """
    Returns the cosine similarities (n, m) of L2-normalized embeddings, (n, dim) and (m, dim), in float64. They are
    rounded, because matrix products sum in another order at the edges of a matrix, which could break ties of equal
    embeddings.
    """
    return (left.double() @ right.double().T).round(decimals=10)


def _percent(right: torch.Tensor) -> float:
    return float(100 * right.double().mean())


# --- Labels --------------------------------------------------------------------------------------------------


def _class_labels(dataset: Any) -> list[str] | None:
    """Returns the class names of the column `label`; None if it has none."""
    features = getattr(dataset, "features", None) or {}
    return getattr(features.get("label"), "names", None)


def _label_names(questions: CorpusRows, names: Sequence[str] | None) -> list[str]:
    """Returns the class name of each row."""
    labels = questions.column("label")
    if all(isinstance(label, str) for label in labels):
        return labels
    if names is None:
        raise ValueError(
            "The column 'label' has numbers without class names: cast it to datasets.ClassLabel, or to strings."
        )
    known = set(names)
    for row, label in enumerate(labels):
        if label not in known if isinstance(label, str) else not 0 <= label < len(names):
            raise ValueError(f"Row {row}: the label {label!r} is not one of the {len(names)} classes.")
    return [label if isinstance(label, str) else names[label] for label in labels]


# --- Dual encoder --------------------------------------------------------------------------------------------


def option_scores(video_embeds: torch.Tensor, text_embeds: torch.Tensor, options: torch.Tensor) -> torch.Tensor:
    """
    Returns the cosine similarity of each video and each of its options.

    Args:
        video_embeds: L2-normalized embeddings of the videos (B, dim).
        text_embeds: L2-normalized embeddings of the distinct texts (n, dim).
        options: the index of the text of each option (B, O); negative where a row has fewer options.

    Returns:
        (B, O), float32; `MISSING_OPTION_SCORE`, -100, where a row has fewer options.
    """
    scores = (video_embeds.float()[:, None] * text_embeds.float()[options.clamp(min=0)]).sum(-1)
    return scores.masked_fill(options < 0, MISSING_OPTION_SCORE)


def multiple_choice_accuracy(
    model,
    processor,
    dataset: Iterable[dict[str, Any]],
    *,
    rerank: bool | None = None,
    **reading: Unpack[ReadingOptions],
) -> dict[str, Any]:
    """
    Evaluates multiple choice by retrieval: the option with the highest cosine similarity to the video is chosen.

    Args:
        model: the dual encoder.
        processor: its processor.
        dataset: rows with `video`, `video_id`, `options` (any number of texts) and `answer` (index of the right one),
            and optionally `aspect`, the aspect that the question is about (str or None). Videos with the same id are
            embedded once.
        rerank: whether to also choose by words and regions. By default, this is done if the model has `token_dim` and
            each video has one clip.
        reading: see [`ReadingOptions`]. The embeddings of several clips per video are averaged.

    Returns:
        `accuracy`, `accuracy_ASPECT` for the questions about each aspect, `questions` (the number of answered ones),
        and `unreadable` (ids of videos). With re-ranking also `reranked`, a dict of `rr_accuracy` and
        `rr_accuracy_ASPECT`, computed from the sum of the model's logits of embeddings and of tokens.

    Raises:
        ValueError: there are no rows, a column is missing, an answer is not the index of an option, too many videos
            cannot be read, or re-ranking was requested but is not possible.

    Example:

        rows = [{"video": "clip.mp4", "video_id": "clip", "options": ["a dog runs", "a cat sleeps"], "answer": 0}]
        multiple_choice_accuracy(model, processor, rows)["accuracy"]
    """
    questions = CorpusRows(dataset, ("options", "answer"), optional=("aspect",))
    views = reading.get("views", ONE_VIEW)
    with_tokens = bool(number_to_rerank(model, None if rerank is None else int(rerank), views))
    scores, reranked, failures = _score_options(model, processor, questions, with_tokens, **reading)
    unreadable = warn_of_unreadable(failures, questions.ids)
    counts = {"questions": sum(some is not None for some in scores), "unreadable": unreadable}
    result: dict[str, Any] = _choice_metrics(scores, questions, "accuracy") | counts
    return result | {"reranked": _choice_metrics(reranked, questions, "rr_accuracy")} if with_tokens else result


def _choice_metrics(scores: Sequence[torch.Tensor | None], questions: CorpusRows, name: str) -> dict[str, float]:
    """Returns the accuracy as `name`, and that of each aspect, from the scores of [`_score_options`]."""
    right = [
        top_k(some, torch.tensor([answer]), 1)
        for some, answer in zip(scores, questions.column("answer"))
        if some is not None
    ]
    aspects = [aspect for some, aspect in zip(scores, questions.column("aspect")) if some is not None]
    metrics = {name: _percent(torch.cat(right))}
    for aspect in sorted(set(aspects) - {None}):
        metrics[f"{name}_{aspect}"] = _percent(torch.cat([one for one, of in zip(right, aspects) if of == aspect]))
    return metrics


def _score_options(
    model, processor, questions: CorpusRows, with_tokens: bool, **reading: Unpack[ReadingOptions]
) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None], dict[int, str]]:
    """
    Returns scores (1, options) of how well each option of a row fits its video, or None if the video cannot be read:
    first the scores of embeddings, and then, for a model with tokens, the sums of both logits. Also returns the error
    messages of unreadable videos, by their indices. This is the only place where options are scored.
    """
    options = questions.column("options")
    # Equal texts are embedded once, because their embeddings could differ in batches with different padding.
    texts = {text: number for number, text in enumerate(dict.fromkeys(text for some in options for text in some))}
    of_videos: list[Tokens] = []
    of_texts: list[Tokens] = []
    embeds, failures = embed_videos(model, processor, questions.videos, of_videos if with_tokens else None, **reading)
    text_embeds = embed_texts(
        model, processor, list(texts), progress=reading.get("progress", True), tokens=of_texts if with_tokens else None
    )
    owners = questions.owners.tolist()
    chosen = [[texts[text] for text in some] for some in options]
    scores = [
        None if owner in failures else _cosines(embeds[[owner]], text_embeds[some])
        for some, owner in zip(chosen, owners)
    ]
    if not with_tokens:
        return scores, [], failures
    words, regions = Tokens.concatenate(of_texts), Tokens.concatenate(of_videos)
    readable = [index for index in range(len(questions.videos)) if index not in failures]
    place = {index: number for number, index in enumerate(readable)}
    temperature, token_temperature = temperatures_of(model).values()
    sums = [
        None
        if of_row is None
        else of_row / temperature + exact_similarity(regions[place[owner]], words[some])[None] / token_temperature
        for of_row, some, owner in zip(scores, chosen, owners)
    ]
    return scores, sums, failures


def zero_shot_accuracy(
    model,
    processor,
    dataset: Iterable[dict[str, Any]],
    *,
    templates: Sequence[str] = TEMPLATES,
    class_names: Sequence[str] | None = None,
    **reading: Unpack[ReadingOptions],
) -> dict[str, Any]:
    """
    Evaluates action recognition with prompts. The embedding of a class is the normalized mean of the embeddings of its
    prompts.

    Args:
        model: the dual encoder.
        processor: its processor.
        dataset: rows with `video`, `video_id` and `label`, a number or a class name.
        templates: prompts, with "{}" in the place of the class name; see `PROMPTS`.
        class_names: the class names to use in the prompts, in the order of their numbers. The default is the names in
            the dataset's `ClassLabel`.
        reading: see [`ReadingOptions`]. The embeddings of several clips per video are averaged.

    Returns:
        `top1`, `top5`, `videos` (the number of readable ones), `classes` (their number), `unreadable` (ids of videos).

    Raises:
        ValueError: there are no rows or names, a label is not a class, a template lacks "{}", or too many videos
            cannot be read.

    Example:

        rows = [{"video": "clip.mp4", "video_id": "clip", "label": "jumping"}]
        zero_shot_accuracy(model, processor, rows, class_names=["jumping", "running"])["top1"]
    """
    questions = CorpusRows(dataset, ("label",))
    names = _names_in_prompts(dataset, class_names)
    _check_templates(templates)
    numbers = {name: number for number, name in enumerate(names)}
    labels = _label_names(questions, names)
    if missing := sorted({label for label in labels if label not in numbers}):
        raise ValueError(f"{len(missing)} labels are not among the classes: {', '.join(map(repr, missing[:3]))}.")
    prompts = [template.replace("{}", name) for name in names for template in templates]
    embeds, failures = embed_videos(model, processor, questions.videos, **reading)
    prompt_embeds = embed_texts(model, processor, prompts, progress=reading.get("progress", True))
    prompt_embeds = prompt_embeds.view(len(names), len(templates), -1)
    unreadable = warn_of_unreadable(failures, questions.ids)
    class_embeds = F.normalize(prompt_embeds.double().mean(1), dim=-1)
    rows = questions.of_readable(failures)
    scores = _cosines(embeds, class_embeds)[questions.owners[rows]]
    return _top_metrics(scores, torch.tensor([numbers[label] for label in labels])[rows]) | {
        "videos": len(questions.videos) - len(failures),
        "classes": len(names),
        "unreadable": unreadable,
    }


def _names_in_prompts(dataset: Any, class_names: Sequence[str] | None) -> list[str]:
    known = _class_labels(dataset)
    names = list(class_names if class_names is not None else known or [])
    if not names:
        raise ValueError("The dataset does not name its classes: pass their names as class_names.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"Two classes have the name {twice!r}: rename one of them.")
    if known is not None and len(known) != len(names):
        raise ValueError(f"class_names has {len(names)} names for the dataset's {len(known)} classes.")
    return names


def _check_templates(templates: Sequence[str]) -> None:
    if not templates or isinstance(templates, str):
        raise ValueError(f"templates must be a sequence of one or more prompts, not {templates!r}.")
    if wrong := [template for template in templates if "{}" not in template]:
        raise ValueError(f"The template {wrong[0]!r} needs '{{}}' in the place of the class name.")


def _top_metrics(scores: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    return {f"top{k}": _percent(top_k(scores, labels, k)) for k in (1, 5)}


# --- Models with a head --------------------------------------------------------------------------------------


def _labels_of(model) -> dict[str, int]:
    """Returns the index of each class, or answer, of a model."""
    return {str(label): int(number) for number, label in model.config.id2label.items()}


def classification_accuracy(
    model, processor, dataset: Iterable[dict[str, Any]], **reading: Unpack[ReadingOptions]
) -> dict[str, Any]:
    """
    Evaluates action recognition with a classification head. Classes are matched by name, not by index.

    Args:
        model: a `RegionLearnerForVideoClassification`.
        processor: its processor, or the video processor alone.
        dataset: rows with `video`, `video_id` and `label`, a number of the dataset's `ClassLabel` or a class name.
        reading: see [`ReadingOptions`]. The logits of several clips per video are averaged (with a linear head, this
            is the same as averaging features).

    Returns:
        `top1`, `top5`, `videos` (the number of readable ones), `unreadable` (ids of videos).

    Raises:
        ValueError: there are no rows or names, the model lacks a class, or too many videos cannot be read.
    """
    questions = CorpusRows(dataset, ("label",))
    known = _class_labels(dataset)
    names = _label_names(questions, known)
    numbers = _labels_of(model)
    if missing := [name for name in dict.fromkeys([*(known or ()), *names]) if name not in numbers]:
        raise ValueError(
            f"The model lacks {len(missing)} of the dataset's classes: {', '.join(map(repr, missing[:3]))}; it knows "
            f"{', '.join(map(repr, list(numbers)[:3]))}, ... ({len(numbers)}). Train it on these classes, or give "
            "them the same names in config.id2label."
        )
    failures: dict[int, str] = {}
    logits = torch.zeros(len(questions.videos), len(numbers), dtype=torch.float64)
    with evaluation_mode(model):
        batches = read_clips(processor, questions.videos, failures, "classifying videos", **reading)
        for indices, parts in batches:
            of_clips = [model(pixel_values_videos=clips.to(model.device)).logits for clips in parts]
            logits[list(dict.fromkeys(indices))] = mean_of_views(torch.cat(of_clips).double().cpu(), indices)
    unreadable = warn_of_unreadable(failures, questions.ids)
    rows = questions.of_readable(failures)
    labels = torch.tensor([numbers[name] for name in names])
    return _top_metrics(logits[questions.owners[rows]], labels[rows]) | {
        "videos": len(questions.videos) - len(unreadable),
        "unreadable": unreadable,
    }


def answer_accuracy(
    model, processor, dataset: Iterable[dict[str, Any]], **reading: Unpack[ReadingOptions]
) -> dict[str, Any]:
    """
    Evaluates open-ended question answering: measures how often the answer with the highest score is the right one.

    Args:
        model: a `RegionLearnerForVideoQuestionAnswering`; `config.id2label` is its vocabulary.
        processor: its processor.
        dataset: rows with `video`, `video_id`, `question` and `answer` (str). Each video is decoded and encoded once.
        reading: see [`ReadingOptions`]; `batch_size` also applies to questions. With several clips per video, each
            question is asked about each clip, and the logits are averaged.

    Returns:
        `accuracy`, `questions` (their number), `out_of_vocabulary` (the number of questions whose answer the model
        cannot give; they are among `questions` and count as wrong), `unreadable` (ids of videos; their questions are
        not counted).

    Raises:
        ValueError: there are no rows, a column is missing, or too many videos cannot be read.
    """
    questions = CorpusRows(dataset, ("question", "answer"))
    numbers = _labels_of(model)
    labels = torch.tensor([numbers.get(answer, UNKNOWN_LABEL) for answer in questions.column("answer")])
    texts = questions.column("question")
    rows_of: list[list[int]] = [[] for _ in questions.ids]
    for row, owner in enumerate(questions.owners.tolist()):
        rows_of[owner].append(row)
    failures: dict[int, str] = {}
    right = torch.zeros(len(questions), dtype=torch.float64)
    batch_size = reading.get("batch_size", BATCH_SIZE)
    with evaluation_mode(model):
        batches = read_clips(processor, questions.videos, failures, "answering questions", **reading)
        for indices, parts in batches:  # each video is encoded once
            outputs = [model.get_video_features(clips.to(model.device)) for clips in parts]
            features = torch.cat([output.pooler_output for output in outputs])
            clips_of: dict[int, list[int]] = {}
            for position, index in enumerate(indices):
                clips_of.setdefault(index, []).append(position)
            asked = [row for index in clips_of for row in rows_of[index]]
            for start in range(0, len(asked), batch_size):
                rows = asked[start : start + batch_size]
                clips = [clips_of[owner] for owner in questions.owners[rows].tolist()]
                logits = _answer_logits(model, processor, [texts[row] for row in rows], features, clips)
                right[rows] = top_k(logits, labels[rows], 1)
    unreadable = warn_of_unreadable(failures, questions.ids)
    counted = questions.of_readable(failures)
    return {
        "accuracy": _percent(right[counted]),
        "questions": int(counted.sum()),
        "out_of_vocabulary": int((labels[counted] == UNKNOWN_LABEL).sum()),
        "unreadable": unreadable,
    }


def _answer_logits(
    model, processor, questions: list[str], features: torch.Tensor, clips: Sequence[Sequence[int]]
) -> torch.Tensor:
    """
    Returns the logits of questions, (questions, answers), on the CPU. `features` (n, dim) are those of clips, and
    `clips` are the indices of the clips that each question is about, whose logits are averaged.
    """
    inputs = processor(text=questions, return_tensors="pt").to(model.device)
    of_clip = [i for i, some in enumerate(clips) for _ in some]
    text_features = model.get_text_features(**inputs).pooler_output[of_clip]
    logits = model.classifier(text_features, features[[index for some in clips for index in some]])
    return mean_of_views(logits.cpu(), of_clip)


# The function that evaluates a model for each task. All take (model, processor, dataset) and the keyword arguments of
# `ReadingOptions`; "retrieval" also takes dual_softmax_temperature and rerank, "multiple_choice" takes rerank, and
# "zero_shot" takes templates. All return metrics, the numbers of evaluated items, and `unreadable`, the ids of videos.
EVALUATIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "retrieval": retrieval_accuracy,
    "multiple_choice": multiple_choice_accuracy,
    "question_answering": answer_accuracy,
    "classification": classification_accuracy,
    "zero_shot": zero_shot_accuracy,
    "grounding": grounding_accuracy,
}


# --- Trainer -------------------------------------------------------------------------------------------------


def _logits_and_labels(prediction) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the logits and labels of an `EvalPrediction`, without the rows that are left out."""
    logits, labels = (
        torch.as_tensor(part[0] if isinstance(part, tuple | list) else part)
        for part in (prediction.predictions, prediction.label_ids)
    )
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"Logits must be (n, classes), labels (n,); got {tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    kept = labels != IGNORED_LABEL
    if not kept.any():
        raise ValueError("Every row is left out: no video could be read.")
    return logits[kept], labels[kept].long()


def compute_classification_metrics(prediction) -> dict[str, float]:
    """
    Returns `top1` and `top5`, as `compute_metrics` of the Trainer. `prediction.predictions` are logits (n, classes),
    and `prediction.label_ids` are labels (n,). Rows with the label -100 are left out, and those with -1 are wrong.
    """
    return _top_metrics(*_logits_and_labels(prediction))


def compute_multiple_choice_metrics(prediction) -> dict[str, float]:
    """
    Returns `accuracy` and `questions`, as `compute_metrics` of the Trainer. `prediction.predictions` are scores
    (n, options), and `prediction.label_ids` are the right options (n,). Rows with the label -100 are left out. If a
    row has fewer options than others, the missing scores are -100, which is below any cosine similarity.
    """
    scores, labels = _logits_and_labels(prediction)
    return {"accuracy": _percent(top_k(scores, labels, 1)), "questions": len(labels)}


def compute_answer_metrics(prediction) -> dict[str, float]:
    """
    Returns `accuracy`, `questions` and `out_of_vocabulary`, as `compute_metrics` of the Trainer.
    `prediction.predictions` are logits (n, answers), and `prediction.label_ids` are labels (n,). Rows with the label
    -100 are left out, and those with -1, whose answer is outside of the vocabulary, are wrong.
    """
    logits, labels = _logits_and_labels(prediction)
    return {
        "accuracy": _percent(top_k(logits, labels, 1)),
        "questions": len(labels),
        "out_of_vocabulary": int((labels == UNKNOWN_LABEL).sum()),
    }

"""
Measures how well the trained models of `experiments.ablation` match words and regions, and prints tables in Markdown:

    python -m experiments.words --output runs --setting shapes --rows words

The measurements are R@1 by the single vector, by tokens alone, and after re-ranking; how many captions with an
attribute swapped between two objects are distinguished from the right one; and how many objects are found by their
descriptions. Each measurement is one line of OUTPUT/SETTING_words.jsonl. Recorded measurements are not repeated.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model

from region_learner.evaluation import grounding_accuracy, retrieval_metrics
from region_learner.inference import evaluation_mode
from region_learner.modeling_region_learner import word_region_similarity

from .ablation import argument_parser, step_times_of, table_name
from .clips import Split, prepare, unseen
from .runs import add_run, read_runs, run_in_processes
from .settings import SETTINGS, TABLES, WORD_CONTRASTS, Row, Setting, rows_of
from .tables import markdown, mean_cell
from .training import batches, new_model

_BATCH_SIZE = 100
_TEXTS_AT_ONCE = 10  # the memory of token similarities grows with this number


def measure(
    setting: Setting, row: Row, seed: int, weights: Path, corpus: Path, use_cpu: bool = False
) -> dict[str, Any]:
    """
    Measures a trained model.

    Args:
        weights: the file that [`train_and_measure`] wrote.
        corpus: the directory where [`prepare`] put the decoded clips. Those of [`unseen`] are
            beside it, in a directory whose name ends in "_unseen".
        use_cpu: whether to leave a GPU unused.

    Returns:
        `row`, `seed` and `weights`, a digest of the file. In percent: `single`, R@1 of the single vectors; with
        `token_dim`, `tokens` and `reranked`, R@1 of tokens alone and of the sum of both logits; `unseen`, the same
        for combinations of shape and color that training does not have (`moving_shapes`); `exchanged` and
        `exchanged_reranked`, the share of pairs of captions that are distinguished, overall and by aspect; with
        `token_dim`, `where`, see [`grounding_accuracy`] (not if the model is given the true masks).
    """
    train, test = (Split.load(setting, corpus, name, row.labels) for name in ("train", "test"))
    model, processor = new_model(setting, row, [caption for _, caption in train.captions()])
    load_model(model, str(weights))
    model.to("cuda" if torch.cuda.is_available() and not use_cpu else "cpu")
    found: dict[str, Any] = {"row": row.name, "seed": seed, "weights": digest(weights)}
    videos = embed_videos(model, processor, test)
    found |= _recall(model, processor, test, videos)
    if (other := unseen(setting)) is not None:
        clips = Split.load(other, _unseen_in(corpus), "test_unseen", row.labels)
        found["unseen"] = _recall(model, processor, clips, embed_videos(model, processor, clips))
    if "token_embeds" in videos and not row.labels:
        where = grounding_accuracy(model, processor, test.rows[: setting.regions_on], progress=False)
        found["where"] = {name: value for name, value in where.items() if isinstance(value, float)}
    return found | _swapped(setting, model, processor, test, videos)


def _unseen_in(corpus: Path) -> Path:
    return corpus.with_name(f"{corpus.name}_unseen")


def _recall(model, processor, split: Split, videos: dict[str, torch.Tensor]) -> dict[str, float]:
    """Returns R@1 of the captions of a split, in percent, by each score of the model."""
    owners, captions = zip(*split.captions())
    texts = embed_texts(model, processor, captions)
    scores = {"single": texts["embeds"] @ videos["embeds"].T / float(model.temperature)}
    if "token_embeds" in videos:
        scores["tokens"] = token_scores(texts, videos) / float(model.token_temperature)
        scores["reranked"] = scores["single"] + scores["tokens"]
    entries, ids = torch.eye(len(split.rows)), range(len(split.rows))
    return {name: retrieval_metrics(matrix, entries, owners, ids)["t2v_R@1"] for name, matrix in scores.items()}


def embed_videos(model, processor, split: Split) -> dict[str, torch.Tensor]:
    with evaluation_mode(model):
        return _embed([model(pixel_values_videos=some) for some in batches(model, processor, split)], "video")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _swapped(setting: Setting, model, processor, test: Split, videos: dict[str, torch.Tensor]) -> dict[str, Any]:
    pairs = test.pairs(setting, "test")
    clip_of = {row["video_id"]: index for index, row in enumerate(test.rows)}
    clips = torch.tensor([clip_of[pair["video_id"]] for pair in pairs])
    of_options = [embed_texts(model, processor, [pair["options"][n] for pair in pairs]) for n in (0, 1)]
    scores = [(one["embeds"] * videos["embeds"][clips]).sum(1) / float(model.temperature) for one in of_options]
    by_score = {"exchanged": scores}
    if "token_embeds" in videos:
        tokens = [_paired_token_scores(one, videos, clips) / float(model.token_temperature) for one in of_options]
        by_score["exchanged_reranked"] = [single + token for single, token in zip(scores, tokens)]
    answers, aspects = torch.tensor([pair["answer"] for pair in pairs]), np.array([pair["aspect"] for pair in pairs])
    found: dict[str, Any] = {}
    for name, (first, second) in by_score.items():
        margin = torch.where(answers == 0, first - second, second - first)
        right = 100 * ((margin > 0).double() + (margin == 0).double() / 2)
        found[name] = {"all": float(right.mean())}
        found[name] |= {aspect: float(right[aspects == aspect].mean()) for aspect in sorted(set(aspects))}
    return found


def embed_texts(model, processor, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    with evaluation_mode(model):
        parts = [list(texts[start : start + _BATCH_SIZE]) for start in range(0, len(texts), _BATCH_SIZE)]
        return _embed([model(**processor(text=part, return_tensors="pt").to(model.device)) for part in parts], "text")


def _embed(outputs: Sequence[Any], side: str) -> dict[str, torch.Tensor]:
    """Joins the embeddings, and the tokens if there are any, of batches; shorter texts are padded."""
    found = {}
    for name in ("embeds", "token_embeds", "token_weights"):
        parts = [output[f"{side}_{name}"].float().cpu() for output in outputs if f"{side}_{name}" in output]
        if parts and name != "embeds":
            length = max(part.shape[1] for part in parts)
            parts = [
                torch.cat([part, part.new_zeros(len(part), length - part.shape[1], *part.shape[2:])], 1)
                for part in parts
            ]
        if parts:
            found[name] = torch.cat(parts)
    return found


def token_scores(texts: dict[str, torch.Tensor], videos: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns the similarities of all texts and videos, computed from their tokens."""
    rows = []
    for start in range(0, len(texts["embeds"]), _TEXTS_AT_ONCE):
        some = slice(start, start + _TEXTS_AT_ONCE)
        of_texts = texts["token_embeds"][some], texts["token_weights"][some]
        parts = [
            word_region_similarity(
                *of_texts,
                videos["token_embeds"][at : at + _BATCH_SIZE],
                videos["token_weights"][at : at + _BATCH_SIZE],
            )
            for at in range(0, len(videos["embeds"]), _BATCH_SIZE)
        ]
        rows.append(torch.cat(parts, 1))
    return torch.cat(rows)


def _paired_token_scores(
    texts: dict[str, torch.Tensor], videos: dict[str, torch.Tensor], clips: torch.Tensor
) -> torch.Tensor:
    """Returns the similarity of each text and its clip, computed from their tokens."""
    return torch.cat(
        [
            word_region_similarity(
                texts["token_embeds"][n : n + 1],
                texts["token_weights"][n : n + 1],
                videos["token_embeds"][clip : clip + 1],
                videos["token_weights"][clip : clip + 1],
            )[0]
            for n, clip in enumerate(clips.tolist())
        ]
    )


def word_table(
    found: Sequence[dict[str, Any]],
    rows: Sequence[Row],
    runs: Sequence[dict[str, Any]],
    step_times: Mapping[str, float],
) -> str:
    """
    Returns the measurements as a table: means over seeds with 95% intervals, or the values of one or two seeds. The
    numbers of parameters are those of `runs`, the recorded training runs. `step_times` are relative times of training
    steps, by the name of the row; without any, the table does not have this column.
    """
    lines, columns = [], _columns(found)
    parameters = {run["row"]: f"{run['parameters'] / 1000:.0f} k" for run in runs}
    for row in rows:
        of_row = sorted((one for one in found if one["row"] == row.name), key=lambda one: one["seed"])
        if of_row:
            cells = [
                mean_cell([value for one in of_row if (value := _value(one, names)) is not None]) for names in columns
            ]
            step = [f"{step_times[row.name]:.2f}" if row.name in step_times else ""] if step_times else []
            lines.append([row.label, str(len(of_row)), *cells, parameters[row.name], *step])
    return markdown(["model", "seeds", *columns.values(), "parameters", *["step"] * bool(step_times)], lines)


def word_contrasts(found: Sequence[dict[str, Any]], contrasts: Sequence[tuple[str, str]]) -> str | None:
    """
    Returns the differences of pairs of rows as a table: means over the seeds that both have, with 95% intervals, or
    the differences of one or two seeds. If one of the two has no tokens, "re-ranked" compares with its single vector.
    """
    labels = {row.name: row.label for row in rows_of(["words", "better_masks", "crowded"])}
    lines, columns = [], _columns(found)
    for name, other in contrasts:
        cells = [mean_cell(differences(found, (name, names), (other, names)), sign="+") for names in columns]
        pairs = len(differences(found, (name, ("single",)), (other, ("single",))))
        if pairs:
            lines.append([labels[name], labels[other], str(pairs), *cells])
    return markdown(["model", "compared with", "pairs", *columns.values()], lines, texts=2) if lines else None


# A row of a table, and the path to one of its values in a measurement.
Measured = tuple[str, tuple[str, ...]]


def differences(found: Sequence[dict[str, Any]], one: Measured, other: Measured) -> list[float]:
    """Returns the differences of two measurements, for the seeds that have both, in their order."""
    of = {(measured["row"], measured["seed"]): measured for measured in found}
    (row, names), (other_row, other_names) = one, other
    pairs = [
        (_value(measured, names, fall_back=True), _value(of[other_row, seed], other_names, fall_back=True))
        for (name, seed), measured in sorted(of.items())
        if name == row and (other_row, seed) in of
    ]
    return [a - b for a, b in pairs if a is not None and b is not None]


# The measurements: the path to a value in the recorded runs (which say "exchanged"), and the header of its column.
_COLUMNS = {
    ("single",): "one vector",
    ("tokens",): "by tokens",
    ("reranked",): "re-ranked",
    ("unseen", "single"): "unseen",
    ("unseen", "tokens"): "unseen, by tokens",
    ("unseen", "reranked"): "unseen, re-ranked",
    ("exchanged", "all"): "swapped",
    ("exchanged_reranked", "all"): "swapped, re-ranked",
    ("where", "pointing"): "where",
    ("where", "iou"): "where, IoU",
}


def _columns(found: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], str]:
    """Returns the columns for which any run has a value."""
    return {names: head for names, head in _COLUMNS.items() if any(_value(one, names) is not None for one in found)}


def _value(one: dict[str, Any], names: Sequence[str], fall_back: bool = False) -> float | None:
    """Returns the value at a path, or None. With `fall_back`, the single vector replaces missing re-ranked values."""
    name, *parts = names
    if fall_back and name not in one:
        name = {"reranked": "single", "exchanged_reranked": "exchanged"}.get(name, name)
    value = one.get(name)
    return value.get(parts[0]) if parts and value is not None else value


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser("words", __doc__)
    parser.add_argument("--rows", default="words", help=f"tables ({', '.join(TABLES)}) or single rows")
    options = parser.parse_args(arguments)
    setting, rows = SETTINGS[options.setting], rows_of(name.strip() for name in options.rows.split(","))
    path = options.output / f"{options.setting}_words.jsonl"
    done = {(run["row"], run["seed"]): run["weights"] for run in read_runs(path)}
    corpus = setting.clips_in(options.output)
    tasks = {}
    for row in rows:
        for weights in sorted((options.output / "weights" / options.setting).glob(f"{row.name}-*.safetensors")):
            seed = int(weights.stem.rpartition("-")[2])
            if weights.stem != f"{row.name}-{seed}":  # weights of another row whose name starts the same way
                continue
            recorded = done.get((row.name, seed), "")
            if recorded and recorded != digest(weights):
                parser.exit(1, f"{path}: {row.name}, seed {seed}, was trained again since: remove its line.\n")
            if not recorded:
                tasks[f"{row.name}, seed {seed}"] = (setting, row, seed, weights, corpus, options.cpu)
    if tasks:
        for labels in {row.labels for _, row, *_ in tasks.values()}:
            prepare(setting, corpus, labels=labels)
            if (other := unseen(setting)) is not None:
                prepare(other, _unseen_in(corpus), ["test_unseen"], labels)
        try:
            run_in_processes(measure, tasks, lambda run: add_run(path, run), options.jobs, options.cpu)
        except ChildProcessError as error:
            parser.exit(1, f"{error}\n")
    found = read_runs(path)
    step_times = step_times_of(options.output, options.setting, table_name(options.rows))
    print(word_table(found, rows, read_runs(options.output / f"{options.setting}.jsonl"), step_times))
    if contrasts := word_contrasts(found, WORD_CONTRASTS):
        print(f"\n{contrasts}")


if __name__ == "__main__":
    main()

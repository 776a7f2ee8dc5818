"""
Measures what the trained models of `experiments.ablation` tell about words and regions, and prints it in Markdown:

    python -m experiments.words --output runs --setting shapes --rows words

R@1 by the single vector, by tokens alone, and after re-ranking; and how many captions with an attribute exchanged
between two objects are told apart from the right one. Each measurement is one line of OUTPUT/SETTING_words.jsonl.
What is recorded there is not measured again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model

from region_learner import load_corpus
from region_learner.evaluation import retrieval_metrics
from region_learner.inference import evaluation_mode
from region_learner.modeling_region_learner import word_region_similarity

from .ablation import argument_parser
from .clips import Split
from .runs import add_run, read_runs
from .settings import SETTINGS, TABLES, Row, Setting, rows_of
from .tables import interval, markdown
from .training import batches, new_model

_BATCH_SIZE = 100
_TEXTS_AT_ONCE = 10  # of the similarity of tokens, whose memory grows with their number


def measure(setting: Setting, row: Row, seed: int, weights: Path, corpus: Path) -> dict[str, Any]:
    """
    Measures a trained model.

    Args:
        weights: the file that [`train_and_measure`] wrote.
        corpus: the directory where [`prepare`] put the decoded clips.

    Returns:
        `row`, `seed`, and in percent: `single`, R@1 of the single vectors; with `token_dim`, `tokens` and `reranked`,
        R@1 of tokens alone and of the sum of both logits; `exchanged` and `exchanged_reranked`, the share of pairs of
        captions that are told apart, over all and by aspect.
    """
    train, test = (Split.load(setting, corpus, name) for name in ("train", "test"))
    model, processor = new_model(setting, row, [caption for _, caption in train.captions()])
    load_model(model, str(weights))
    with evaluation_mode(model):
        videos = _embed([model(pixel_values_videos=some) for some in batches(model, processor, test)], "video")
    owners, captions = zip(*test.captions())
    texts = _embed_texts(model, processor, captions)
    found: dict[str, Any] = {"row": row.name, "seed": seed}
    scores = {"single": texts["embeds"] @ videos["embeds"].T / float(model.temperature)}
    if "token_embeds" in videos:
        scores["tokens"] = _token_scores(texts, videos) / float(model.token_temperature)
        scores["reranked"] = scores["single"] + scores["tokens"]
    for name, matrix in scores.items():
        entries = torch.eye(len(test.rows))
        found[name] = retrieval_metrics(matrix, entries, owners, range(len(test.rows)))["t2v_R@1"]
    return found | _exchanged(setting, model, processor, test, videos)


def _exchanged(setting: Setting, model, processor, test: Split, videos: dict[str, torch.Tensor]) -> dict[str, Any]:
    pairs = load_corpus(setting.corpus, split="test", task="compositional", **setting.options)
    clip_of = {video_id: index for index, video_id in enumerate(test.rows["video_id"])}
    clips = torch.tensor([clip_of[video_id] for video_id in pairs["video_id"]])
    of_options = [_embed_texts(model, processor, [options[n] for options in pairs["options"]]) for n in (0, 1)]
    scores = [(one["embeds"] * videos["embeds"][clips]).sum(1) / float(model.temperature) for one in of_options]
    by_score = {"exchanged": scores}
    if "token_embeds" in videos:
        tokens = [_paired_token_scores(one, videos, clips) / float(model.token_temperature) for one in of_options]
        by_score["exchanged_reranked"] = [single + token for single, token in zip(scores, tokens)]
    answers, aspects = torch.tensor(pairs["answer"]), np.array(pairs["aspect"])
    found: dict[str, Any] = {}
    for name, (first, second) in by_score.items():
        margin = torch.where(answers == 0, first - second, second - first)
        right = 100 * ((margin > 0).double() + (margin == 0).double() / 2)
        found[name] = {"all": float(right.mean())}
        found[name] |= {aspect: float(right[aspects == aspect].mean()) for aspect in sorted(set(aspects))}
    return found


def _embed_texts(model, processor, texts: Sequence[str]) -> dict[str, torch.Tensor]:
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


def _token_scores(texts: dict[str, torch.Tensor], videos: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns the similarities of all texts and videos by their tokens."""
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
    """Returns the similarity of each text and its clip, by their tokens."""
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


def word_table(found: Sequence[dict[str, Any]], rows: Sequence[Row]) -> str:
    """Returns the measurements as a table: means over seeds, with 95 % intervals."""
    lines = []
    for row in rows:
        of_row = [one for one in found if one["row"] == row.name]
        if of_row:
            cells = [row.label, str(len(of_row))]
            for name in ("single", "tokens", "reranked"):
                cells.append(_cell([one[name] for one in of_row if name in one]))
            for name in ("exchanged", "exchanged_reranked"):
                cells.append(_cell([one[name]["all"] for one in of_row if name in one]))
            lines.append(cells)
    header = ["model", "seeds", "R@1", "by tokens", "re-ranked", "exchanged captions", "the same, re-ranked"]
    return markdown(header, lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean, half_width = interval(values)
    return f"{mean:.1f}" + ("" if half_width is None else f" ± {half_width:.1f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser("words", __doc__)
    parser.add_argument("--rows", default="words", help=f"tables ({', '.join(TABLES)}) or single rows")
    options = parser.parse_args(arguments)
    setting, rows = SETTINGS[options.setting], rows_of(name.strip() for name in options.rows.split(","))
    path = options.output / f"{options.setting}_words.jsonl"
    done = {(run["row"], run["seed"]) for run in read_runs(path)}
    for row in rows:
        for weights in sorted((options.output / "weights" / options.setting).glob(f"{row.name}-*.safetensors")):
            seed = int(weights.stem.rpartition("-")[2])
            if weights.stem == f"{row.name}-{seed}" and (row.name, seed) not in done:
                add_run(path, measure(setting, row, seed, weights, options.output / "corpus" / setting.corpus))
    print(word_table(read_runs(path), rows))


if __name__ == "__main__":
    main()

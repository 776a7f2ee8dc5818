"""
Compares ways to reduce the tokens of a clip after training: trained models with all patches as tokens ("all_patches",
trained by `experiments.ablation`) rank clips with 12, 24 and 32 of their tokens. Prints tables in Markdown:

    python -m experiments.kept_tokens --output runs --setting shapes_short --cpu

The measurements are R@1 by tokens alone and after re-ranking. Each model is one line of OUTPUT/SETTING_kept.jsonl.
Recorded measurements are not repeated.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_model
from scipy.cluster.hierarchy import fcluster, linkage

from region_learner.evaluation import retrieval_metrics
from region_learner.evaluation.region_baselines import kmeans
from region_learner.search.windows import _farthest_points

from .ablation import argument_parser
from .clips import Split, prepare
from .runs import add_run, read_runs, run_in_processes
from .settings import SETTINGS, Setting, rows_of
from .tables import markdown, mean_cell
from .training import new_model
from .words import digest, embed_texts, embed_videos, token_scores

ROW = "all_patches"
COUNTS = (12, 24, 32)


def measure(setting: Setting, seed: int, weights: Path, corpus: Path, use_cpu: bool = False) -> dict[str, Any]:
    """
    Measures a trained model of the row "all_patches".

    Args:
        weights: the file that `train_and_measure` wrote.
        corpus: the directory where [`prepare`] put the decoded clips.
        use_cpu: whether to leave a GPU unused.

    Returns:
        `seed`; `weights`, a digest of the file; `single`, R@1 of the single vectors; `all`, with all tokens: `tokens`,
        R@1 by tokens alone, and `reranked`; and the same for each of `METHODS` and `COUNTS`, as `{method: {count:
        {"tokens": ..., "reranked": ...}}}`. All in percent.
    """
    train, test = (Split.load(setting, corpus, name) for name in ("train", "test"))
    model, processor = new_model(setting, rows_of([ROW])[0], [caption for _, caption in train.captions()])
    load_model(model, str(weights))
    model.to("cuda" if torch.cuda.is_available() and not use_cpu else "cpu")
    videos = embed_videos(model, processor, test)
    owners, captions = zip(*test.captions())
    texts = embed_texts(model, processor, captions)
    single = texts["embeds"] @ videos["embeds"].T / float(model.temperature)

    def recall(scores: torch.Tensor) -> float:
        return retrieval_metrics(scores, torch.eye(len(test.rows)), owners, range(len(test.rows)))["t2v_R@1"]

    def recalls(embeds: torch.Tensor, weights: torch.Tensor) -> dict[str, float]:
        kept = {"embeds": videos["embeds"], "token_embeds": embeds, "token_weights": weights}
        scores = token_scores(texts, kept) / float(model.token_temperature)
        return {"tokens": recall(scores), "reranked": recall(single + scores)}

    tokens = videos["token_embeds"], videos["token_weights"]
    found: dict[str, Any] = {"seed": seed, "weights": digest(weights), "single": recall(single)}
    found["all"] = recalls(*tokens)
    for name, reduce in METHODS.items():
        found[name] = {str(count): recalls(*reduce(*tokens, count)) for count in COUNTS}
    return found


# The methods take the embeddings (B, n, d) and weights (B, n) of tokens, and return those of `count` tokens.


def random_tokens(embeds: torch.Tensor, weights: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return _kept(embeds, weights, torch.rand(weights.shape, generator=generator).argsort(1)[:, :count])


def heaviest(embeds: torch.Tensor, weights: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _kept(embeds, weights, weights.topk(count, 1).indices)


def farthest_points(embeds: torch.Tensor, weights: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The method of an index."""
    return _kept(embeds, weights, _farthest_points(embeds, weights, count))


def clusters(embeds: torch.Tensor, weights: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of k-means clusters."""
    return _merged(embeds, weights, kmeans(embeds, count), count)


def merged(embeds: torch.Tensor, weights: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Repeatedly merges the two most similar groups of tokens (average linkage, by cosine)."""
    groups = [fcluster(linkage(some.double(), "average", "cosine"), count, "maxclust") - 1 for some in embeds.cpu()]
    return _merged(embeds, weights, torch.stack([torch.from_numpy(some) for some in groups]).long(), count)


def _kept(embeds: torch.Tensor, weights: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weights = weights.gather(1, kept)
    return embeds.take_along_dim(kept[..., None], 1), weights / weights.sum(1, keepdim=True)


def _merged(
    embeds: torch.Tensor, weights: torch.Tensor, groups: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the L2-normalized mean of each group, and its sum of weights. Both are 0 if a group has no members."""
    members = F.one_hot(groups, count).to(weights)
    return F.normalize(members.mT @ embeds, dim=-1), (members.mT @ weights[..., None]).squeeze(-1)


METHODS: dict[str, Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]] = {
    "random": random_tokens,
    "heaviest": heaviest,
    "clusters": clusters,
    "merged": merged,
    "farthest": farthest_points,
}
_LABELS = {
    "random": "random patches",
    "heaviest": "the patches with the largest weights",
    "clusters": "means of k-means clusters",
    "merged": "groups of similar patches, merged (average linkage)",
    "farthest": "farthest-point sampling",
}


def kept_table(found: Sequence[dict[str, Any]]) -> str:
    """Returns the measurements as a table: means over seeds with 95% intervals, or the values of one or two seeds."""
    scores = {"tokens": "by tokens", "reranked": "re-ranked"}
    lines = [
        [_LABELS[name], *[mean_cell([one[name][str(n)][score] for one in found]) for score in scores for n in COUNTS]]
        for name in METHODS
    ]
    lines.append(
        ["all patches", *[mean_cell([one["all"][score] for one in found]) for score in scores for _ in COUNTS]]
    )
    return markdown(["kept", *[f"{n} {head}" for head in scores.values() for n in COUNTS]], lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser("kept_tokens", __doc__)
    options = parser.parse_args(arguments)
    setting, corpus = SETTINGS[options.setting], SETTINGS[options.setting].clips_in(options.output)
    path = options.output / f"{options.setting}_kept.jsonl"
    recorded = {run["seed"]: run["weights"] for run in read_runs(path)}
    tasks = {}
    for weights in sorted((options.output / "weights" / options.setting).glob(f"{ROW}-*.safetensors")):
        seed = int(weights.stem.rpartition("-")[2])
        if recorded.get(seed, digest(weights)) != digest(weights):
            parser.exit(1, f"{path}: seed {seed} was trained again since: remove its line.\n")
        if seed not in recorded:
            tasks[f"seed {seed}"] = (setting, seed, weights, corpus, options.cpu)
    if tasks:
        prepare(setting, corpus)
        try:
            run_in_processes(measure, tasks, lambda run: add_run(path, run), options.jobs, options.cpu)
        except ChildProcessError as error:
            parser.exit(1, f"{error}\n")
    elif not recorded:
        parser.exit(1, f"{options.output} has no trained models of {ROW}: train them with experiments.ablation.\n")
    print(kept_table(read_runs(path)))


if __name__ == "__main__":
    main()

"""A model card, rendered from what was measured."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCardData

from ..evaluation.results import EvaluationResults, read_results, shown_path

_TAGS = ["video-text-retrieval", "text-to-video-retrieval", "region-learner"]

# What may be said of a model that the files do not say.
_LIMITS = (
    "It finds what its training captions speak of. Nothing was measured on other data than the above; scores are "
    "cosines, to be compared within one query, and no probabilities."
)


def model_card(
    results: Sequence[str | os.PathLike[str]],
    checkpoint: str | os.PathLike[str] | None = None,
    repo: str | None = None,
    license: str | None = None,  # the field's own name on the Hub
    title: str | None = None,
    description: str = "",
    query: str = "a dog catches a frisbee",
) -> str:
    """
    Renders a model card.

    Args:
        results: files that `region-learner evaluate --output` has written, all of one model.
        checkpoint: its directory; the `results.json` of its training run, if it is there, says how it was trained.
        repo: its name on the Hub, in the example; by default the model's name in the results.
        license: of the weights, an identifier of the Hub; by default "other", with the name "not stated".
        title, description: in words.
        query: of the example.

    Returns:
        The card in Markdown, with its metadata (`model-index` among it) on top.

    Raises:
        ValueError: no results, results of several models, or a file that holds none.
    """
    measured = [read_results(path) for path in results]
    if not measured:
        raise ValueError("A model card needs measured results: files of `region-learner evaluate --output FILE`.")
    first = measured[0]
    for path, other in zip(results, measured):
        if other.model["weights"] != first.model["weights"]:
            raise ValueError(f"{path} is of other weights than {results[0]}: a card is of one model.")
    name = repo or first.model["name"]
    card_data = ModelCardData(
        model_name=name,
        license=license or "other",
        license_name=None if license else "not-stated",
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=list(_TAGS),
        eval_results=[entry for one in measured for entry in _eval_results(one)],
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("region_learner.hub", "."), undefined=jinja2.StrictUndefined
    )
    return environment.get_template("model_card.md.jinja").render(
        card_data=card_data.to_yaml().strip(),
        title=title or name,
        description=description,
        results=[_shown(one) for one in measured],
        parameters=f"{first.model['parameters'] / 1e6:.1f} M",
        config=[(key.replace("_", " "), value) for key, value in first.model["config"].items()],
        weights=first.model["weights"].items(),
        training=_training(checkpoint),
        repo=name,
        query=query,
        limits=_LIMITS,
    )


def _heading(one: EvaluationResults) -> str:
    return f"{one.data['corpus']}, split {one.data['split']}"


def _eval_results(one: EvaluationResults) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=f"video-text-{one.protocol['task']}".replace("_", "-"),
            dataset_type=one.data["corpus"],
            dataset_name=_heading(one),
            dataset_split=one.data["split"],
            metric_type=metric,
            metric_name=metric,
            metric_value=round(value, 2),
        )
        for metric, value in one.metrics.items()
    ]


def _shown(one: EvaluationResults) -> dict[str, Any]:
    counts = [f"{one.data[key]:,} {key}" for key in ("videos", "texts", "questions", "classes") if one.data.get(key)]
    clips = one.protocol.get("clips")
    versions = ("torch", "transformers", "region_learner")
    return {
        "heading": _heading(one),
        "gallery": ", ".join(counts),
        "captions": one.protocol.get("captions") or "no",
        "frames": one.protocol.get("frames"),
        "clips": f"{clips} clip{'' if clips == 1 else 's'} a video" if clips else "sliding windows",
        "metrics": [(metric, f"{value:.1f}") for metric, value in one.metrics.items()],
        "rescored": ", ".join(f"{metric} {value:.1f}" for metric, value in (one.rescored or {}).items()),
        "notes": one.notes,
        "date": one.date[:10],
        "versions": ", ".join(f"{key} {one.versions[key]}" for key in versions),
    }


def _training(checkpoint: str | os.PathLike[str] | None) -> dict[str, str] | None:
    path = None if checkpoint is None else Path(checkpoint) / "results.json"
    if path is None or not path.is_file():
        return None
    run = json.loads(path.read_text(encoding="utf-8"))
    train = run["train"]
    line = f"On {train['videos']:,} videos, " if "videos" in train else ""
    line += f"final mean loss {train['train_loss']:.3f}, {train['train_runtime']:.0f} seconds"
    if train.get("unreadable_videos"):
        line += f"; {train['unreadable_videos']} videos could not be read and were replaced by others"
    # No paths of somebody's machine.
    arguments = {
        key: shown_path(value) if isinstance(value, str) else value
        for key, value in run["arguments"].items()
        if key not in ("data_dir", "data_dirs")
    }
    return {
        "loss_line": line + ". Arguments of `region-learner train`:",
        "arguments": yaml.safe_dump(arguments, sort_keys=False, default_flow_style=None, width=110).strip(),
    }

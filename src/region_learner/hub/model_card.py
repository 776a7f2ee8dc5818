"""A model card, rendered from what was measured."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import validate_repo_id

from ..evaluation.protocols import videos_of
from ..evaluation.results import EvaluationResults, read_results, shown_options, weights_of
from ..evaluation.tasks import PROMPTS
from ..training.arguments import PUBLISHED_ARGUMENTS

_TAGS = ["video-text-retrieval", "text-to-video-retrieval", "region-learner"]

# Of models that are no dual encoder; the template says how they are used.
_PIPELINES = {
    "RegionLearnerForVideoClassification": "video-classification",
    "RegionLearnerForVideoQuestionAnswering": "visual-question-answering",
}

# Tasks in words. Prompts are no claim to be zero-shot.
_TASKS = {"zero_shot": "classification by prompts"}


def model_card(
    results: Sequence[str | os.PathLike[str]],
    checkpoint: str | os.PathLike[str] | None = None,
    repo: str | None = None,
    license: str | None = None,  # the field's own name on the Hub
    title: str | None = None,
    description: str = "",
    query: str | None = None,
) -> str:
    """
    Renders a model card.

    Args:
        results: files that `region-learner evaluate --output` has written, all of one model. One of several folds may
            be of a model for each.
        checkpoint: its directory; the `results.json` of its training run, if it is there, says how it was trained.
        repo: its name on the Hub, in the example; by default the model's name in the results.
        license: of the weights, an identifier of the Hub; by default "other", with the name "not stated".
        title: in words.
        description: in Markdown.
        query: text of the example.

    Returns:
        The card in Markdown, with its metadata (`model-index` among it) on top.

    Raises:
        ValueError: no results, results of several models or twice the same evaluation, a file that holds none, a
            checkpoint of other weights, or a repo that is no name of the Hub.
    """
    measured = [read_results(path) for path in results]
    if not measured:
        raise ValueError("A model card needs measured results: files of `region-learner evaluate --output FILE`.")
    if repo is not None:
        validate_repo_id(repo)
    first, parts = measured[0], _models(measured[0])
    for path, other in zip(results, measured):
        if different := _what_differs(parts, _models(other)):
            raise ValueError(f"{path} is of another model than {results[0]} ({different}): a card is of one model.")
    evaluations: dict[str, str | os.PathLike[str]] = {}
    for path, one in zip(results, measured):
        if (name := f"{_name(one)}, {_config(one)}") in evaluations:
            raise ValueError(f"{path} and {evaluations[name]} are of the same evaluation, {name}: give one of them.")
        evaluations[name] = path
    name = repo or first.model["name"]
    model = parts[0]["model"]
    pipeline = _PIPELINES.get(model["class"])
    card_data = ModelCardData(
        model_name=name,
        license=license or "other",
        license_name=None if license else "not-stated",
        library_name="transformers",
        pipeline_tag=pipeline or "feature-extraction",
        tags=["region-learner"] if pipeline else list(_TAGS),
        eval_results=[entry for one in measured for entry in _eval_results(one)],
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("region_learner.hub", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": _markdown, "python": _python, "block": _block}
    return environment.get_template("model_card.md.jinja").render(
        card_data=card_data.to_yaml().strip(),
        title=title or name,
        description=description.strip(),
        results=[_shown(one) for one in measured],
        measured=list(dict.fromkeys(_measured(one) for one in measured)),
        rows=_model_rows(parts),
        training=_training(checkpoint, parts),
        kind=pipeline,
        repo=repo or model["name"],
        query=query,
    )


# --- Text that is put into the card --------------------------------------------------------------------------

# What means something to Markdown inside of a line. A `_` between letters does not.
_SPECIAL = re.compile(r"[\\`*\[\]<>|~&$#]|(?<![^\W_])_|_(?![^\W_])")


def _markdown(text: Any) -> str:
    """Plain text of any origin, in one line that begins with something else."""
    return _SPECIAL.sub(r"\\\g<0>", " ".join(str(text).split()))


def _python(text: str) -> str:
    """A string literal. Those of JSON are Python's, too, but for its escapes of emoji and the like, which are two."""
    return json.dumps(text, ensure_ascii=False)


def _block(text: str, language: str) -> str:
    """A fenced block that nothing inside of it closes."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text.strip()}\n{fence}"


# --- Which model ---------------------------------------------------------------------------------------------


def _models(one: EvaluationResults) -> list[dict[str, Any]]:
    """The models that were measured, each once: `model`, and the `fold` that it is of if there are several."""
    models: dict[str, dict[str, Any]] = {}
    for part in one.folds or [{"fold": None, "model": one.model}]:
        models.setdefault(json.dumps(_identity(part["model"]), sort_keys=True), part)
    return list(models.values())


def _identity(model: dict[str, Any]) -> dict[str, Any]:
    """What has to be the same in all results of one model: its files, or what there is where weights are unknown."""
    return (model["weights"] or {"name": model["name"], "revision": model["revision"]}) | model["files"]


def _what_differs(parts: list[dict[str, Any]], others: list[dict[str, Any]]) -> str:
    """In words, empty if it is the same model, or the same ones."""
    if len(parts) != len(others):
        return f"models: {len(others)} instead of {len(parts)}"
    different = set()
    for part, other in zip(parts, others):
        mine, yours = _identity(part["model"]), _identity(other["model"])
        different |= {key for key in mine.keys() | yours.keys() if mine.get(key) != yours.get(key)}
    return f"different: {', '.join(sorted(different))}" if different else ""


def _model_rows(parts: list[dict[str, Any]]) -> list[tuple[str, str]]:
    models = [part["model"] for part in parts]
    rows = [("parameters", _each(f"{model['parameters'] / 1e6:.1f} M" for model in models))]
    for key in models[0]["config"]:
        rows.append((key.replace("_", " "), _each(model["config"].get(key) for model in models)))
    for part in parts:
        of_fold = f", fold {part['fold']}" if len(parts) > 1 else ""
        for file, digest in part["model"]["weights"].items():
            rows.append((f"SHA-256 of {file}{of_fold}", f"{digest[:16]}…"))
        if not part["model"]["weights"]:
            rows.append((f"SHA-256 of the weights{of_fold}", "not known"))
    return rows


def _each(values) -> str:
    """One value if all models have the same, else all."""
    return " / ".join(dict.fromkeys(map(str, values)))


# --- What was measured ---------------------------------------------------------------------------------------


def _name(one: EvaluationResults) -> str:
    if one.protocol["name"]:
        return one.protocol["name"]
    return f"{one.data['corpus']}, split {one.data['split']}"


def _config(one: EvaluationResults) -> str:
    """What tells two evaluations of one name apart."""
    protocol, data = one.protocol, one.data
    said = [one.mean_of] if one.folds else []
    said += [f"data in {data['data_dir']}"] if data["data_dir"] else []
    said += [f"{key}={value}" for key, value in data["options"].items()]
    said.append(f"{protocol['frames']} frames" if protocol["frames"] else "all frames that the processor samples")
    if protocol["clips"]:
        said.append(f"{protocol['clips']} clip{'s' * (protocol['clips'] > 1)} a video")
    else:
        said.append(f"sliding windows of stride {protocol['window_stride']}")
    if templates := protocol.get("templates"):
        own = f"{len(templates)} of one's own, the first “{templates[0]}”"
        said.append(f"prompts: {next((name for name, known in PROMPTS.items() if list(known) == templates), own)}")
    return ", ".join(said)


def _task(one: EvaluationResults) -> str:
    return _TASKS.get(one.protocol["task"], one.protocol["task"].replace("_", " "))


def _claim(one: EvaluationResults) -> str:
    if one.protocol["zero_shot"]:
        return "zero-shot"
    trained_on = {videos_of(str(name)) for part in _models(one) for name in part["model"].get("trained_on") or ()}
    corpus = videos_of(one.data["corpus"])
    return f"trained on {corpus}" if corpus in trained_on else "not claimed to be zero-shot"


def _counts(data: dict[str, Any]) -> str:
    counts = [f"{data[key]:,} {key}" for key in ("videos", "texts", "questions", "classes") if data.get(key)]
    if data.get("out_of_vocabulary"):
        counts.append(f"{data['out_of_vocabulary']:,} answers outside of the vocabulary")
    if data.get("unreadable"):
        counts.append(f"{len(data['unreadable']):,} unreadable and left out")
    return ", ".join(counts)


def _measured(one: EvaluationResults) -> str:
    versions = ", ".join(f"{key} {one.versions[key]}" for key in ("torch", "transformers", "region_learner"))
    return f"{one.date[:10]} with {versions}, in {one.dtype} on {one.device}"


def _eval_results(one: EvaluationResults) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=f"video-text-{_task(one)}".replace(" ", "-"),
            dataset_type=one.data["corpus"],
            dataset_name=f"{one.data['corpus']}, split {one.data['split']}",
            dataset_config=f"{one.protocol['name'] or 'no protocol'}, {_config(one)}",
            dataset_split=one.data["split"],
            metric_type=metric,
            metric_name=metric,
            metric_value=round(value, 2),
        )
        for metric, value in one.metrics.items()
    ]


def _shown(one: EvaluationResults) -> dict[str, Any]:
    task, protocol = _task(one), [] if one.protocol["name"] else ["no protocol"]
    seen = " (which it was trained on)" * one.trained_on
    where = [
        f"Corpus {one.data['corpus']}, split {one.data['split']}{seen}",
        _counts(one.data),
        one.protocol["captions"],
    ]
    where += ["a model for each fold"] if len(_models(one)) > 1 else []
    rows = [[f"{value:.1f}" for value in one.metrics.values()]]
    header = list(one.metrics)
    if one.folds:
        header = ["", *header, ""]
        rows = [[one.mean_of, *rows[0], ""]]
        for part in one.folds:
            values = [f"{part['metrics'][metric]:.1f}" for metric in one.metrics]
            rows.append([f"fold {part['fold']}", *values, _counts(part["data"])])
    return {
        "heading": f"{_name(one)} ({', '.join([task, *protocol, _claim(one)])})",
        "line": "; ".join(filter(None, [*where, _config(one)])),
        "header": header,
        "rows": rows,
        "rescored": ", ".join(f"{metric} {value:.1f}" for metric, value in (one.rescored or {}).items()),
        "temperature": one.protocol.get("dual_softmax_temperature"),
        "notes": one.notes,
        "measured": _measured(one),
    }


# --- How it was trained --------------------------------------------------------------------------------------


def _training(checkpoint: str | os.PathLike[str] | None, parts: list[dict[str, Any]]) -> dict[str, str] | None:
    if checkpoint is None:
        return None
    if not Path(checkpoint).is_dir():
        raise ValueError(f"The checkpoint {checkpoint} is no directory.")
    weights = weights_of(checkpoint)
    of = next((part for part in parts if weights and part["model"]["weights"] == weights), None)
    if of is None:
        what = "other weights than those that were measured" if weights else "no model.safetensors"
        raise ValueError(f"{checkpoint} holds {what}: a card is of one model.")
    path = Path(checkpoint) / "results.json"
    if not path.is_file():
        return None
    try:
        run = json.loads(path.read_bytes())
        train = run["train"]
        line = f"Fold {of['fold']}: " if len(parts) > 1 else ""
        line += f"{train['videos']:,} videos, " if "videos" in train else ""
        line += f"{train['processes']} processes, " if train.get("processes", 1) > 1 else ""
        line += f"mean loss {train['train_loss']:.3f} over the whole run, {train['train_runtime']:.0f} seconds"
        line += " (if it was resumed, since then)"
        if train.get("unreadable_videos"):
            line += f"; {train['unreadable_videos']:,} videos could not be read and were replaced by others"
        arguments = {key: value for key, value in run["arguments"].items() if key in PUBLISHED_ARGUMENTS}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no results.json of a training run: {error!r}") from error
    shown = yaml.safe_dump(shown_options(arguments), sort_keys=False, default_flow_style=None, width=110)
    return {"line": line, "arguments": shown}

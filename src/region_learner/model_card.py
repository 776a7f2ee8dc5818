"""Model cards, rendered from measured results."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import validate_repo_id

from .evaluation.provenance import shown_options, videos_of, weights_of
from .evaluation.results import EvaluationResults, read_results
from .evaluation.tasks import PROMPTS
from .training.arguments import PUBLISHED_ARGUMENTS

_TAGS = ["video-text-retrieval", "text-to-video-retrieval", "region-learner"]

# The pipelines of models that are not dual encoders; the template says how they are used.
_PIPELINES = {
    "RegionLearnerForVideoClassification": "video-classification",
    "RegionLearnerForVideoQuestionAnswering": "visual-question-answering",
}

# Tasks in words. Using prompts does not mean that the evaluation is zero-shot.
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
        results: files that `region-learner evaluate --output` wrote, all of one model. The results of several folds
            may be of one model per fold.
        checkpoint: directory of the model; the `results.json` of its training run, if it is there, says how it was
            trained.
        repo: name on the Hub, for the example; by default the name of the model in the results.
        license: of the weights, an identifier of the Hub; by default "other", with the name "not stated".
        title: by default the name.
        description: in Markdown.
        query: text of the example.

    Returns:
        The card in Markdown, with its metadata, including `model-index`, on top.

    Raises:
        ValueError: there are no results, they are of several models or twice of the same evaluation, a file does not
            hold any, the checkpoint has other weights, or `repo` cannot be a name on the Hub.

    Example:

        Path("README.md").write_text(model_card(["msvd.json"], "CHECKPOINT", repo="me/mine", license="apache-2.0"))
    """
    measured = [read_results(path) for path in results]
    if not measured:
        raise ValueError("A model card needs measured results: give files of `region-learner evaluate --output FILE`.")
    if repo is not None:
        validate_repo_id(repo)
    _check_one_model(results, measured)
    _check_different_evaluations(results, measured)
    parts = _models(measured[0])
    name = repo or measured[0].model["name"]
    model = parts[0]["model"]
    pipeline = _PIPELINES.get(model["class"])
    return _template().render(
        card_data=_metadata(name, license, pipeline, measured),
        title=title or name,
        description=description.strip(),
        results=[_shown(one) for one in measured],
        measured=list(dict.fromkeys(_measured(one) for one in measured)),
        rows=_model_rows(parts),
        training=_training(checkpoint, parts),
        kind=pipeline,
        backbone=model["config"].get("backbone"),
        has_regions=bool(model["config"].get("num_regions")),
        repo=repo or model["name"],
        query=query,
    )


def _metadata(name: str, license: str | None, pipeline: str | None, measured: Sequence[EvaluationResults]) -> str:
    """The metadata on top of a card, in YAML."""
    card_data = ModelCardData(
        model_name=name,
        license=license or "other",
        license_name=None if license else "not-stated",
        library_name="transformers",
        pipeline_tag=pipeline or "feature-extraction",
        tags=["region-learner"] if pipeline else list(_TAGS),
        eval_results=[entry for one in measured for entry in _eval_results(one)],
    )
    return card_data.to_yaml().strip()


def _template():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": _markdown, "python": _python, "block": _block}
    return environment.get_template("model_card.md.jinja")


# --- Text that is put into the card --------------------------------------------------------------------------

# The characters that have a meaning to Markdown inside of a line. A `_` between letters does not.
_SPECIAL = re.compile(r"[\\`*\[\]<>|~&$#]|(?<![^\W_])_|_(?![^\W_])")


def _markdown(text: Any) -> str:
    """Escapes plain text of any origin, for a line that starts with something else."""
    return _SPECIAL.sub(r"\\\g<0>", " ".join(str(text).split()))


def _python(text: str) -> str:
    """A string literal: that of JSON, which is also one of Python if characters such as emoji are not escaped."""
    return json.dumps(text, ensure_ascii=False)


def _block(text: str, language: str) -> str:
    """A fenced block, with a fence that does not occur in the text."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text.strip()}\n{fence}"


# --- Which model ---------------------------------------------------------------------------------------------


def _models(one: EvaluationResults) -> list[dict[str, Any]]:
    """The models that were measured, each once: `model`, and its `fold` if there are several."""
    models: dict[str, dict[str, Any]] = {}
    for part in one.folds or [{"fold": None, "model": one.model}]:
        models.setdefault(json.dumps(_identity(part["model"]), sort_keys=True), part)
    return list(models.values())


def _identity(model: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in all results of one model: its files, or its name if the weights are unknown."""
    return (model["weights"] or {"name": model["name"], "revision": model["revision"]}) | model["files"]


def _check_one_model(paths: Sequence[str | os.PathLike[str]], measured: Sequence[EvaluationResults]) -> None:
    parts = _models(measured[0])
    for path, other in zip(paths, measured):
        if different := _what_differs(parts, _models(other)):
            raise ValueError(f"{path} is of another model than {paths[0]} ({different}): a card describes one model.")


def _what_differs(parts: list[dict[str, Any]], others: list[dict[str, Any]]) -> str:
    """What differs, in words; empty if it is the same model, or the same ones."""
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
    """The value, if all models have the same, or else all values."""
    return " / ".join(dict.fromkeys(map(str, values)))


# --- What was measured ---------------------------------------------------------------------------------------


def _name(one: EvaluationResults) -> str:
    if one.protocol["name"]:
        return one.protocol["name"]
    return f"{one.data['corpus']}, split {one.data['split']}"


def _config(one: EvaluationResults) -> str:
    """What distinguishes two evaluations of one name."""
    protocol, data = one.protocol, one.data
    said = [one.mean_of] if one.folds else []
    said += [f"data in {data['data_dir']}"] if data["data_dir"] else []
    said += [f"{key}={value}" for key, value in data["options"].items()]
    said.append(f"{protocol['frames']} frames" if protocol["frames"] else "all frames that the processor samples")
    if protocol["clips"]:
        said.append(f"{protocol['clips']} clip{'s' * (protocol['clips'] > 1)} per video")
    else:
        said.append(f"sliding windows of stride {protocol['window_stride']}")
    if templates := protocol.get("templates"):
        own = f"{len(templates)} custom ones, the first “{templates[0]}”"
        said.append(f"prompts: {next((name for name, known in PROMPTS.items() if list(known) == templates), own)}")
    return ", ".join(said)


def _check_different_evaluations(
    paths: Sequence[str | os.PathLike[str]], measured: Sequence[EvaluationResults]
) -> None:
    evaluations: dict[str, str | os.PathLike[str]] = {}
    for path, one in zip(paths, measured):
        if (name := f"{_name(one)}, {_config(one)}") in evaluations:
            raise ValueError(f"{path} and {evaluations[name]} are of the same evaluation, {name}: leave one out.")
        evaluations[name] = path


def _task(one: EvaluationResults) -> str:
    return _TASKS.get(one.protocol["task"], one.protocol["task"].replace("_", " "))


def _claim(one: EvaluationResults) -> str:
    if one.protocol["zero_shot"]:
        return "zero-shot"
    trained_on = {videos_of(str(name)) for part in _models(one) for name in part["model"].get("trained_on") or ()}
    corpus = videos_of(one.data["corpus"])
    return f"trained on {corpus}" if corpus in trained_on else "not claimed to be zero-shot"


def _counts(data: dict[str, Any]) -> str:
    counts = [
        f"{data[key]:,} {key}" for key in ("videos", "texts", "questions", "classes", "objects") if data.get(key)
    ]
    if data.get("out_of_vocabulary"):
        counts.append(f"{data['out_of_vocabulary']:,} answers outside of the vocabulary")
    if data.get("cut_off"):
        counts.append(f"{data['cut_off']:,} objects named beyond the length that the model reads")
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
        "reranked": ", ".join(f"{metric} {value:.1f}" for metric, value in (one.reranked or {}).items()),
        "candidates": f"the best {k} of each query" if (k := one.protocol.get("rerank")) else "all options",
        "notes": one.notes,
        "measured": _measured(one),
    }


# --- How it was trained --------------------------------------------------------------------------------------


def _training(checkpoint: str | os.PathLike[str] | None, parts: list[dict[str, Any]]) -> dict[str, str] | None:
    if checkpoint is None:
        return None
    if not Path(checkpoint).is_dir():
        raise ValueError(f"The checkpoint {checkpoint} is not a directory.")
    weights = weights_of(checkpoint)
    of = next((part for part in parts if weights and part["model"]["weights"] == weights), None)
    if of is None:
        what = "holds other weights than those that were measured" if weights else "has no model.safetensors"
        raise ValueError(f"{checkpoint} {what}: a card describes one model.")
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
        line += " (of a resumed run, those after it was resumed)"
        if train.get("unreadable_videos"):
            line += f"; {train['unreadable_videos']:,} videos could not be read and were substituted"
        arguments = {key: value for key, value in run["arguments"].items() if key in PUBLISHED_ARGUMENTS}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not the results.json of a training run: {error!r:.200}") from error
    shown = yaml.safe_dump(shown_options(arguments), sort_keys=False, default_flow_style=None, width=110)
    return {"line": line, "arguments": shown}

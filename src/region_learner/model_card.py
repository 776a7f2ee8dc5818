"""Model cards, rendered from measured results."""

import csv
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from .checkpoint_files import is_results
from .evaluation.provenance import (
    ANY_VIDEOS,
    record_of_run,
    shown_options,
    shown_path,
    training_history,
    videos_of,
    weights_of,
)
from .evaluation.results import EvaluationResults, read_results
from .evaluation.tasks import PROMPTS
from .training.arguments import PUBLISHED_ARGUMENTS

_TAGS = ["video-text-retrieval", "text-to-video-retrieval", "region-learner"]

# The pipelines of models that are not dual encoders; the template shows how to use them.
_PIPELINES = {
    "RegionLearnerForVideoClassification": "video-classification",
    "RegionLearnerForVideoQuestionAnswering": "visual-question-answering",
}

# Corpora with captions, questions or classes in English.
_ENGLISH = {
    "cc3m", "didemo", "drifting_letters", "hmdb51", "lsmdc", "moving_shapes", "msrvtt", "msvd", "ucf101", "webvid",
}  # fmt: skip

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
    language: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> str:
    """
    Renders a model card.

    Args:
        results: files that `region-learner evaluate --output` wrote, all for one model. Results of several folds may
            belong to one model per fold.
        checkpoint: directory of the model. If it has the `results.json` of its training run, the card says how it was
            trained.
        repo: name on the Hub, for the code example; by default the name of the model in the results.
        license: license of the weights, as an identifier of the Hub; by default "other", with the name "not-stated".
        title: title of the card; by default the name of the model.
        description: what the model is, in Markdown.
        query: query of the code example.
        language: languages of the training captions, as codes such as "en"; by default those of the benchmarks that it
            was trained on.
        datasets: names on the Hub of the data sets that the model was trained on, in addition to the corpora of
            benchmarks, which are known.

    Returns:
        The card in Markdown, with its metadata, including `model-index`, on top.

    Raises:
        ValueError: there are no results, they belong to several models, an evaluation occurs twice, a file does not
            contain results, the checkpoint has other weights, or `repo` or one of `datasets` is not a Hub name.

    Example:

        Path("README.md").write_text(model_card(["msvd.json"], "CHECKPOINT", repo="me/mine", license="apache-2.0"))
    """
    measured = [read_results(path) for path in results]
    if not measured:
        raise ValueError("A model card needs measured results, from `region-learner evaluate --output FILE`.")
    for name in (*datasets, *([] if repo is None else [repo])):
        validate_repo_id(name)
    _check_one_model(results, measured)
    _check_different_evaluations(results, measured)
    parts = _models(measured[0])
    name = repo or measured[0].model["name"]
    return _render(parts, measured, checkpoint, name, repo, license, title, description, query, language, datasets)


def draft_card(
    model: Mapping[str, Any],
    checkpoint: str | os.PathLike[str],
    repo: str,
    license: str | None = None,
    title: str | None = None,
    language: Sequence[str] = (),
) -> str:
    """
    Renders the card of a model that was trained but not evaluated yet.

    Args:
        model: the description of the model by `describe_model` of `evaluation.provenance`.
        checkpoint: its directory.
        repo: name on the Hub.
        license, title, language: as in [`model_card`].
    """
    parts = [{"fold": None, "model": dict(model)}]
    return _render(parts, [], checkpoint, repo, repo, license, title, language=language)


def _render(
    parts: list[dict[str, Any]],
    measured: Sequence[EvaluationResults],
    checkpoint: str | os.PathLike[str] | None,
    name: str,
    repo: str | None,
    license: str | None = None,
    title: str | None = None,
    description: str = "",
    query: str | None = None,
    language: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> str:
    model = parts[0]["model"]
    pipeline = _PIPELINES.get(model["class"])
    training = _training(checkpoint, parts)
    origin = _origin(checkpoint, parts, training)
    languages = list(language) or origin.languages
    energy = emissions_of(checkpoint) if checkpoint is not None else None
    return _template().render(
        card_data=_metadata(name, license, pipeline, measured, origin, languages, datasets, energy),
        title=title or name,
        description=description.strip(),
        results=[_shown(one) for one in measured],
        measured=list(dict.fromkeys(_measured(one) for one in measured)),
        rows=_model_rows(parts),
        training=training,
        origin=origin.in_words,
        energy=energy and _energy_in_words(energy),
        limits=_limits(parts, measured, checkpoint, origin, languages),
        kind=pipeline,
        backbone=model["config"].get("backbone"),
        has_regions=bool(model["config"].get("num_regions")),
        by_frame=model["config"].get("temporal_fusion") in ("pool", "linear"),
        repo=repo or model["name"],
        query=query,
    )


def _metadata(
    name: str,
    license: str | None,
    pipeline: str | None,
    measured: Sequence[EvaluationResults],
    origin: "_Origin",
    languages: Sequence[str],
    datasets: Sequence[str],
    energy: "Emissions | None",
) -> str:
    """Returns the metadata on top of a card, in YAML."""
    emissions: Any = {"co2_eq_emissions": energy.metadata()} if energy is not None else {}
    known = _of_the_hub(name for name in origin.corpora if name not in ANY_VIDEOS)
    card_data = ModelCardData(
        base_model=_models_of_the_hub(origin.base_models) or None,
        datasets=list(dict.fromkeys([*known, *datasets])) or None,
        language=list(languages) or None,
        model_name=name,
        license=license or "other",
        license_name=None if license else "not-stated",
        library_name="transformers",
        pipeline_tag=pipeline or "feature-extraction",
        tags=["region-learner"] if pipeline else list(_TAGS),
        eval_results=[entry for one in measured for entry in _eval_results(one)] or None,
        **emissions,
    )
    return card_data.to_yaml().strip()


def _of_the_hub(names: Iterable[str]) -> list[str]:
    """Returns the names that are valid on the Hub."""
    found = []
    for name in names:
        with suppress(HFValidationError):
            validate_repo_id(name)
            found.append(name)
    return found


def _models_of_the_hub(names: Iterable[str]) -> list[str]:
    """Returns the names without directories: converted/mine would be read as a model of somebody else."""
    return _of_the_hub(name for name in names if not os.path.isdir(name))


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

# The characters with a meaning in Markdown within a line, which a `_` between letters does not have.
_SPECIAL = re.compile(r"[\\`*\[\]<>|~&$#]|(?<![^\W_])_|_(?![^\W_])")


def _markdown(text: Any) -> str:
    """Escapes plain text of any origin, for a line that starts with something else."""
    return _SPECIAL.sub(r"\\\g<0>", " ".join(str(text).split()))


def _python(text: str) -> str:
    """Returns a string literal of JSON, which is also valid in Python if characters such as emoji are not escaped."""
    return json.dumps(text, ensure_ascii=False)


def _block(text: str, language: str) -> str:
    """Returns a fenced block, with a fence that does not occur in the text."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text.strip()}\n{fence}"


# --- Which model ---------------------------------------------------------------------------------------------


def _models(one: EvaluationResults) -> list[dict[str, Any]]:
    """Returns the models that were measured, each once: `model`, and its `fold` if there are several."""
    models: dict[str, dict[str, Any]] = {}
    for part in one.folds or [{"fold": None, "model": one.model}]:
        models.setdefault(json.dumps(_identity(part["model"]), sort_keys=True), part)
    return list(models.values())


def _identity(model: dict[str, Any]) -> dict[str, Any]:
    """Returns what must be the same in all results of one model: its files, or its name if the weights are unknown."""
    return (model["weights"] or {"name": model["name"], "revision": model["revision"]}) | model["files"]


def _check_one_model(paths: Sequence[str | os.PathLike[str]], measured: Sequence[EvaluationResults]) -> None:
    parts = _models(measured[0])
    for path, other in zip(paths, measured):
        if different := _what_differs(parts, _models(other)):
            raise ValueError(
                f"{path} has results of another model than {paths[0]} ({different}): a card describes one model. "
                "Leave the results of other models out."
            )


def _what_differs(parts: list[dict[str, Any]], others: list[dict[str, Any]]) -> str:
    """Returns what differs, in words; empty if it is the same model, or the same ones."""
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
    """Returns the value, if all models have the same, or else all values."""
    return " / ".join(dict.fromkeys(map(str, values)))


# --- What was measured ---------------------------------------------------------------------------------------


def _name(one: EvaluationResults) -> str:
    if one.protocol["name"]:
        return one.protocol["name"]
    return f"{one.data['corpus']}, split {one.data['split']}"


def _config(one: EvaluationResults) -> str:
    """Returns what distinguishes two evaluations of one name."""
    protocol, data = one.protocol, one.data
    said = [one.mean_of] if one.folds else []
    said += [f"data directory “{data['data_dir']}”"] if data["data_dir"] else []
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
            raise ValueError(f"{path} and {evaluations[name]} are both results of {name}: leave one of them out.")
        evaluations[name] = path


def _task(one: EvaluationResults) -> str:
    return _TASKS.get(one.protocol["task"], one.protocol["task"].replace("_", " "))


def _claim(one: EvaluationResults) -> str:
    if one.protocol["zero_shot"]:
        return ", zero-shot"
    trained_on = [str(name) for part in _models(one) for name in part["model"].get("trained_on") or ()]
    corpus = one.data["corpus"]
    is_trained_on = _is_trained_on(corpus, trained_on)
    return f", trained on {videos_of(corpus)}" if is_trained_on else "; not checked whether it is zero-shot"


def _counts(data: dict[str, Any]) -> str:
    counts = [
        f"{data[key]:,} {key}" for key in ("videos", "texts", "questions", "classes", "objects") if data.get(key)
    ]
    if data.get("out_of_vocabulary"):
        counts.append(f"{data['out_of_vocabulary']:,} answers outside the vocabulary")
    if data.get("cut_off"):
        counts.append(f"{data['cut_off']:,} objects named beyond the maximum text length")
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
        "heading": f"{_name(one)} ({', '.join([task, *protocol])}{_claim(one)})",
        "line": "; ".join(filter(None, [*where, _config(one)])),
        "header": header,
        "rows": rows,
        "rescored": {metric: f"{value:.1f}" for metric, value in (one.rescored or {}).items()},
        "temperature": one.protocol.get("dual_softmax_temperature"),
        "reranked": {metric: f"{value:.1f}" for metric, value in (one.reranked or {}).items()},
        "candidates": f"the best {k} of each query" if (k := one.protocol.get("rerank")) else "all options",
        "notes": one.notes,
        "measured": _measured(one),
    }


# --- How it was trained --------------------------------------------------------------------------------------


def _training(checkpoint: str | os.PathLike[str] | None, parts: list[dict[str, Any]]) -> dict[str, Any] | None:
    if checkpoint is None:
        return None
    if not Path(checkpoint).is_dir():
        raise ValueError(f"The checkpoint {checkpoint} is not a directory.")
    weights = weights_of(checkpoint)
    of = next((part for part in parts if weights and part["model"]["weights"] == weights), None)
    if of is None:
        what = "has other weights than those that were evaluated" if weights else "has no model.safetensors"
        raise ValueError(f"{checkpoint} {what}: a card describes one model. Name the checkpoint that was evaluated.")
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
        line += " (since the last resume, if the run was resumed)"
        if train.get("unreadable_videos"):
            line += f"; {train['unreadable_videos']:,} videos could not be read and were substituted"
        arguments = {key: value for key, value in run["arguments"].items() if key in PUBLISHED_ARGUMENTS}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if is_results(path.read_bytes(), of_training=False):  # those of an evaluation
            return None
        raise ValueError(f"{path} is not the results.json of a training run: {error!r:.200}") from error
    shown = yaml.safe_dump(shown_options(arguments), sort_keys=False, default_flow_style=None, width=110)
    return {"line": line, "arguments": shown, "run": run}


# --- Where it comes from -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Origin:
    """
    What a model was made from, according to the records of its training runs.

    Args:
        base_models: names of the models and towers that training started from.
        corpora: names of the corpora it was trained on, in all of its runs.
        is_complete: whether these are all of them.
        videos: number of training videos, if there was only one run.
        in_words: sentence about where training started; empty if that is not known.
        learned_tokens: size of a tokenizer that was trained on the captions, or None.
    """

    base_models: tuple[str, ...] = ()
    corpora: tuple[str, ...] = ()
    is_complete: bool = False
    videos: int | None = None
    in_words: str = ""
    learned_tokens: int | None = None

    @property
    def languages(self) -> list[str]:
        return ["en"] if self.corpora and all(videos_of(name) in _ENGLISH for name in self.corpora) else []


def _origin(
    checkpoint: str | os.PathLike[str] | None, parts: list[dict[str, Any]], training: dict[str, Any] | None
) -> _Origin:
    if checkpoint is None or training is None:
        names = {str(name) for part in parts for name in part["model"].get("trained_on") or ()}
        return _Origin(corpora=tuple(sorted(names)))
    arguments = training["run"]["arguments"]
    bases, tokenizer = _base_models(Path(checkpoint), arguments)
    history = training_history(os.fspath(checkpoint))
    is_from_scratch = not bases and history.unknown is None
    words = f"Training started from {_listed(map(shown_path, bases))}." if bases else ""
    videos = training["run"]["train"].get("videos") if arguments.get("model") is None else None
    return _Origin(
        tuple(bases),
        tuple(history.names),
        history.unknown is None or history.unknown in _models_of_the_hub(bases),
        videos,
        "Training started from random weights." if is_from_scratch else words,
        tokenizer,
    )


def _base_models(checkpoint: Path, arguments: Mapping[str, Any]) -> tuple[list[str], int | None]:
    """
    Returns the models that the first training run of a checkpoint started from, and the size of the tokenizer that it
    learned, if it did.
    """
    seen = {record_of_run(os.fspath(checkpoint))}
    while (name := arguments.get("model")) is not None:
        record = record_of_run(str(name))
        try:
            earlier = json.loads(record.read_bytes())["arguments"]
            assert isinstance(earlier, dict)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, AssertionError):
            return [str(name)], None
        if record in seen:
            return [], None
        seen.add(record)
        arguments = earlier
    towers = [arguments.get("video_tower"), arguments.get("text_tower")]
    learned = arguments.get("vocab_size") if arguments.get("tokenizer") == "train" else None
    return list(dict.fromkeys(str(tower) for tower in towers if tower is not None)), learned


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


# --- Energy --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Emissions:
    """
    The energy and emissions of training, as measured by CodeCarbon.

    Args:
        kwh: energy in kWh.
        kg: emissions in kg of CO2 equivalents.
        runs: number of runs that are summed up.
        country: country of the machine.
        hardware: the GPUs, or the CPUs if there are none.
        version: version of CodeCarbon.
    """

    kwh: float
    kg: float
    runs: int
    country: str
    hardware: str
    version: str

    def metadata(self) -> dict[str, Any]:
        """Returns the field `co2_eq_emissions` of a card; its emissions are in grams."""
        said = {"emissions": round(1000 * self.kg, 3), "source": f"CodeCarbon {self.version}".strip()}
        where = {"geographical_location": self.country, "hardware_used": self.hardware}
        return said | {name: text for name, text in where.items() if text}


def emissions_of(checkpoint: str | os.PathLike[str]) -> Emissions | None:
    """
    Reads the `emissions.csv` of CodeCarbon beside a checkpoint, which transformers' `--report-to codecarbon` writes.

    Returns:
        The sums of all runs in it; None if the file does not exist or is empty.

    Raises:
        ValueError: it is not a file of CodeCarbon.
    """
    path = Path(checkpoint) / "emissions.csv"
    if not path.is_file():
        return None
    runs: dict[str, dict[str, str]] = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                runs[row.get("run_id") or str(len(runs))] = row  # a later row of a run includes the earlier ones
        kwh, kg = (math.fsum(float(row[name]) for row in runs.values()) for name in ("energy_consumed", "emissions"))
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} was not written by CodeCarbon ({error!r:.80}): remove it or track again.") from error
    if not runs or not (math.isfinite(kwh) and math.isfinite(kg)):
        return None
    last = list(runs.values())[-1]
    hardware = _hardware(last, "gpu") or _hardware(last, "cpu")
    return Emissions(
        kwh, kg, len(runs), last.get("country_name") or "", hardware, last.get("codecarbon_version") or ""
    )


def _hardware(row: Mapping[str, str], kind: str) -> str:
    model, count = row.get(f"{kind}_model") or "", row.get(f"{kind}_count") or ""
    starts_with_count = re.match(r"\d+ x ", model)  # as CodeCarbon writes several GPUs
    several = re.fullmatch(r"\d+(\.0)?", count) and float(count) > 1 and model and not starts_with_count
    return f"{int(float(count))} x {model}" if several and kind == "gpu" else model


def _energy_in_words(energy: Emissions) -> str:
    runs = f" in {energy.runs} runs" if energy.runs > 1 else ""
    where = ", ".join(filter(None, [energy.country, energy.hardware]))
    return (
        f"Training used {energy.kwh:.3g} kWh{runs} and emitted {energy.kg:.3g} kg of CO2 equivalent, as measured by "
        f"CodeCarbon {energy.version}".strip()
        + (f" ({where})." if where else ".")
    )


# --- Limits --------------------------------------------------------------------------------------------------


def _limits(
    parts: list[dict[str, Any]],
    measured: Sequence[EvaluationResults],
    checkpoint: str | os.PathLike[str] | None,
    origin: _Origin,
    languages: Sequence[str],
) -> list[str]:
    """Returns sentences about the limits of this particular model, which not every model has."""
    return [
        *_limits_of_training(origin, measured),
        *_limits_of_clips(parts[0]["model"]["config"]),
        *_limits_of_texts(parts[0]["model"], checkpoint, origin, languages),
        *_limits_of_answers(parts[0]["model"], measured, checkpoint),
    ]


def _limits_of_training(origin: _Origin, measured: Sequence[EvaluationResults]) -> list[str]:
    if not origin.corpora:
        return ["There is no record of what it was trained on."]
    size = f" ({origin.videos:,} videos)" if origin.videos is not None else ""
    only = "only " if origin.is_complete and not origin.base_models else ""
    lines = [f"It was trained {only}on {_listed(origin.corpora)}{size}."]
    if not origin.is_complete:
        lines[0] = lines[0].removesuffix(".") + ", and possibly on more, because not all of its training is recorded."
    evaluated = sorted({one.data["corpus"] for one in measured})
    if evaluated and all(_is_trained_on(corpus, origin.corpora) for corpus in evaluated):
        lines.append(f"It was evaluated only on {_listed(evaluated)}, which it was trained on. How well it works on "
                     "other videos is not known.")  # fmt: skip
    return lines


def _is_trained_on(corpus: str, trained_on: Iterable[str]) -> bool:
    """Returns whether a corpus has videos of a training corpus, as far as their names tell."""
    return corpus not in ANY_VIDEOS and videos_of(corpus) in map(videos_of, trained_on)


def _limits_of_clips(config: Mapping[str, Any]) -> list[str]:
    frames, size, patch = (config.get(key) for key in ("num_frames", "image_size", "patch_size"))
    if not frames:
        return []
    line = f"It sees {frames} frame{'s' * (frames != 1)} per clip"
    line += f", at {size} x {size} pixels" if size else ""
    line += f", in patches of {patch} x {patch} pixels" if size and patch else ""
    return [f"{line}. It misses what happens between frames{', and small details' if size else ''}."]


def _limits_of_texts(
    model: Mapping[str, Any], checkpoint: str | os.PathLike[str] | None, origin: _Origin, languages: Sequence[str]
) -> list[str]:
    if model["class"] == "RegionLearnerForVideoClassification":
        return []
    length = _text_length(Path(checkpoint)) if checkpoint is not None else None
    lines = [f"Texts are cut off after {length} tokens."] if length else []
    if origin.learned_tokens:
        lines.append("Its tokenizer was learned from its training captions, so it does not know other words.")
    if languages:
        named = {"en": "English"}
        lines.append(f"Its training texts are in {_listed(named.get(code, code) for code in languages)}.")
    elif origin.corpora:
        lines.append("The language of its training texts is not recorded.")
    return lines


def _text_length(checkpoint: Path) -> int | None:
    """Returns the number of tokens that the tokenizer and the text encoder take, as far as their files say."""
    tokenizer = _read_mapping(checkpoint / "tokenizer.json")
    settings = _read_mapping(checkpoint / "tokenizer_config.json")
    config = _read_mapping(checkpoint / "config.json").get("text_config") or {}
    found = [
        (tokenizer.get("truncation") or {}).get("max_length"),
        settings.get("model_max_length"),
        config.get("max_position_embeddings"),
    ]
    # transformers writes 1e30 where there is no limit.
    return min((int(length) for length in found if isinstance(length, int | float) and 0 < length < 1e6), default=None)


def _limits_of_answers(
    model: Mapping[str, Any], measured: Sequence[EvaluationResults], checkpoint: str | os.PathLike[str] | None
) -> list[str]:
    kind = {"video-classification": "classes", "visual-question-answering": "answers"}.get(
        _PIPELINES.get(model["class"], "")
    )
    if kind is None:
        return []
    labels = _read_mapping(Path(checkpoint) / "config.json").get("id2label") if checkpoint is not None else None
    number = len(labels) if labels else next((n for one in measured if (n := one.data.get("classes"))), None)
    return [
        f"It chooses one of the {f'{number:,} ' if number else ''}{kind} of config.id2label, even if none is right."
    ]


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}

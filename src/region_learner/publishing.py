"""Publishes a checkpoint on the Hub, in one commit, after checks that send nothing."""

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id
from PIL import Image
from safetensors import safe_open

from . import __version__
from .card_numbers import unbacked_numbers
from .checkpoint_files import CARD, RESULTS, WEIGHTS, checkpoint_files, published_run
from .evaluation.provenance import weights_of
from .evaluation.results import EvaluationResults, read_results, region_results_in, results_in
from .files import near_file, shards_of
from .hub import commit_files, in_words, status_of
from .leaks import leaks
from .loading import check_checkpoint, check_files, first_non_finite
from .model_card import Emissions, draft_card, emissions_of, model_card
from .space import files_of_space
from .video_decoding_region_learner import any_metadata

logger = logging.getLogger(__name__)

_WITH_METADATA = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".mp4")
_LOADING_TIMEOUT = 1800  # seconds


@dataclass(frozen=True)
class Pushed:
    """
    What `push` has done, or would do.

    Args:
        repo: name of the repository on the Hub.
        private: whether only its owners can see it.
        files: size in bytes of each file of the commit, by name.
        left_out: why other files of the directory are not published, by name.
        notes: what the user should know, such as a file that is changed.
        url: address of the commit; None if nothing was sent.
        space_files: the same as `files` for the Space; empty without one.
        space_url: address of the commit in the Space.
    """

    repo: str
    private: bool
    files: dict[str, int]
    left_out: dict[str, str]
    notes: list[str] = field(default_factory=list)
    url: str | None = None
    space_files: dict[str, int] = field(default_factory=dict)
    space_url: str | None = None


@dataclass(frozen=True)
class Checked:
    """A checkpoint that can be published: its files by name, as paths or bytes, and the files that are left out."""

    files: dict[str, Path | bytes]
    left_out: dict[str, str]
    notes: list[str]
    model: Mapping[str, Any] | None  # the description of the model, if the card is made here


def push(
    model: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = True,
    dry_run: bool = False,
    space: bool = False,
    license: str | None = None,  # the field's own name on the Hub
    message: str | None = None,
    token: str | None = None,
) -> Pushed:
    """
    Publishes a checkpoint on the Hub, in one commit, after checks that send nothing.

    Args:
        model: directory of the checkpoint.
        repo: name on the Hub, "owner/name"; without an owner, the repository is yours.
        private: whether a new repository is private. An existing one must already have this visibility.
        dry_run: whether to only check and report what would be sent, without contacting the Hub.
        space: whether to also publish a Space of the same name that searches videos with the model.
        license: license of the weights, if the card is made here. An existing README.md names it itself.
        message: commit message.
        token: token for the Hub; by default that of `hf auth login`, or HF_TOKEN.

    Raises:
        ValueError: a check failed; nothing was sent.
        OSError: the Hub refused the push, or could not be reached. The repository has no part of the commit. A
            repository that was created for it is deleted again, or else the message names it. If only the Space
            failed, the model has been published, and the message says so.

    Example:

        print(push("runs/mine", "me/mine", dry_run=True).files)
    """
    validate_repo_id(repo)
    checked = check(model, repo, license, is_public=not private)
    apps = files_of_space(repo, private) if space else {}
    pushed = Pushed(repo, private, _sizes(checked.files), checked.left_out, checked.notes, space_files=_sizes(apps))
    if dry_run:
        return pushed
    api = HfApi(token=token, library_name="region-learner", library_version=__version__)
    owner_and_name = f"{_owner(api, repo)}/{repo.rpartition('/')[2]}"
    if owner_and_name != repo:
        checked = check(model, owner_and_name, license, is_public=not private, loads=False)
        apps = files_of_space(owner_and_name, private) if space else {}
    _validate_card(_text_of(checked.files[CARD]), Path(model) / CARD, repo)
    notes = list(checked.notes)
    with in_words(owner_and_name):
        head = _head(api, owner_and_name, "model", private)
        head_of_space = _head(api, owner_and_name, "space", private) if space else None
        if head is not None:
            notes += _check_replaced_card(api, owner_and_name, head, checked, Path(model))
    message = message or f"Checkpoint, by region-learner {__version__}"
    url, removed = _publish(api, owner_and_name, checked.files, message, private, head)
    if removed:
        notes.append(f"removed from the repository, as files of an earlier model: {', '.join(removed)}")
    space_url = None
    if space:
        try:
            space_url, _ = _publish(api, owner_and_name, apps, "Search app", private, head_of_space, "space")
        except (OSError, ValueError) as error:
            raise OSError(f"The model is published ({url}), but not its Space: {error}") from error
    return replace(
        pushed,
        repo=owner_and_name,
        files=_sizes(checked.files),
        left_out=checked.left_out,
        notes=notes,
        url=url,
        space_files=_sizes(apps),
        space_url=space_url,
    )


def _validate_card(text: str, path: Path, repo: str) -> None:
    """Asks the Hub whether it accepts the metadata of a card, as this cannot be checked locally."""
    try:
        with in_words(repo):
            ModelCard(text).validate()
    except ValueError as error:
        raise ValueError(f"{path}: the Hub does not accept its metadata: {' '.join(str(error).split())}") from error


def _text_of(file: Path | bytes) -> str:
    return (file if isinstance(file, bytes) else file.read_bytes()).decode("utf-8", "replace")


def _sizes(files: Mapping[str, Path | bytes]) -> dict[str, int]:
    return {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}


# --- Checks --------------------------------------------------------------------------------------------------


def check(
    model: str | os.PathLike[str],
    repo: str,
    license: str | None = None,
    is_public: bool = False,
    loads: bool = True,
) -> Checked:
    """
    Checks whether a checkpoint may be published, and returns its files. Nothing is sent anywhere.

    Args:
        model: directory of the checkpoint.
        repo: its name on the Hub, for the card.
        license: license for a card that is made here.
        is_public: whether everybody will be able to see it, which requires a license.
        loads: whether to also load it in a fresh process without this package, which takes seconds.

    Raises:
        ValueError: it is incomplete, its weights are damaged or not finite, it does not load without this package, it
            has no valid card, a number in the card is not measured, or a file contains a secret or a path of this
            machine.
        OSError: a file cannot be read.
    """
    directory = _directory(model)
    _check_weights(directory)
    weights = weights_of(directory)
    results, others = _results(directory, weights)
    regions, other_regions = _regions(directory, weights)
    others |= other_regions
    run = published_run(directory)
    named = [*results, *regions, *([RESULTS] if run else [])]
    belong, left_out = checkpoint_files(directory, also=named)
    left_out |= others
    files: dict[str, Path | bytes] = dict(belong)
    notes = []
    if run:
        files[RESULTS] = run
        if run != (directory / RESULTS).read_bytes():
            notes.append(f"{RESULTS} is published without data directories, and with paths cut to their last part")
    described = None
    if CARD not in files:
        notes.append(f"{CARD} is made from {', '.join(results)}")
        described = _described(results, weights)
    text = _card(directory, repo, license, results, others)
    files.setdefault(CARD, text.encode())
    notes += _check_card(directory, text, repo, results, regions.values(), others, run, is_public)
    _check_leaks(directory, files)
    if loads:
        check_loads_without_package(files, directory)
    return Checked(dict(sorted(files.items())), left_out, notes, described)


def _directory(model: str | os.PathLike[str]) -> Path:
    name = os.fspath(model)
    check_checkpoint(name)
    if not Path(name).is_dir():
        raise ValueError(f"{name} is not a directory{near_file(name)} Name the directory of a checkpoint.")
    if not (Path(name) / "config.json").is_file():
        raise ValueError(f"{name} has only adapters: use the checkpoint that they belong to, {Path(name).parent}.")
    check_files(name)
    return Path(name)


def _check_weights(directory: Path) -> None:
    names = sorted(path.name for path in directory.iterdir() if WEIGHTS.fullmatch(path.name))
    again = "load it and save it again with save_pretrained."
    if not names:
        raise ValueError(f"{directory} has no weights as safetensors (model.safetensors): {again}")
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        shards = shards_of(index)
        if "model.safetensors" in names:
            raise ValueError(f"{directory} has both model.safetensors and {index.name}: remove the older one.")
        if different := shards ^ (set(names) - {index.name}):
            raise ValueError(f"{directory}: {index.name} and the files differ in {min(different)}: {again}")
    elif names != ["model.safetensors"]:
        raise ValueError(f"{directory} has shards of weights without {index.name}: {again}")
    for name in (name for name in names if name.endswith(".safetensors")):
        with safe_open(directory / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 # not a mapping
                if first_non_finite({key: file.get_tensor(key)}) is not None:
                    raise ValueError(
                        f"{directory / name} has weights that are NaN or infinite (the first: {key}): its training "
                        "diverged. Publish an earlier checkpoint."
                    )


def _results(directory: Path, weights: dict[str, str]) -> tuple[dict[str, EvaluationResults], dict[str, str]]:
    """Returns the results files of these weights, and why others in the directory do not count."""
    try:
        paths = results_in(directory)
    except ValueError:  # there are none
        return {}, {}
    results, others = {}, {}
    for path in paths:
        one = read_results(path)
        models = [part["model"] for part in one.folds or []] or [one.model]
        if reason := _why_others(models, directory, weights):
            others[path.name] = reason
        else:
            results[path.name] = one
    return results, others


def _regions(directory: Path, weights: dict[str, str]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Returns the measurements of the regions of these weights, and why others in the directory do not count."""
    found = region_results_in(directory)
    reasons = {name: _why_others([one.get("model")], directory, weights) for name, one in found.items()}
    mine = {name: one for name, one in found.items() if not reasons[name]}
    return mine, {name: reason for name, reason in reasons.items() if reason}


def _why_others(models: list[Any], directory: Path, weights: dict[str, str]) -> str:
    """Returns why results of these models do not count for a checkpoint with these weights; empty if they do."""
    mine = [model for model in models if isinstance(model, dict) and model.get("weights") == weights]
    if not mine:
        return "results of other weights"
    digests = [item for model in mine for item in model.get("files", {}).items()]
    changed = next((name for name, digest in digests if not _same(directory / name, digest)), None)
    return f"results of another {changed}" if changed else ""


def _described(results: Mapping[str, EvaluationResults], weights: dict[str, str]) -> Mapping[str, Any] | None:
    """Returns the description of the model with these weights in its results, as `describe_model` made it."""
    for one in results.values():
        for part in one.folds or [{"model": one.model}]:
            if part["model"]["weights"] == weights:
                return {key: value for key, value in part["model"].items() if key != "trained_on"}
    return None


def _same(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _card(
    directory: Path,
    repo: str,
    license: str | None,
    results: Mapping[str, EvaluationResults],
    others: Mapping[str, str],
) -> str:
    path = directory / CARD
    if path.is_file():
        if license is not None:
            raise ValueError(
                f"--license has no effect, as {path} exists: write `license: {license}` into its metadata instead."
            )
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not encoded in UTF-8 ({error.reason}): save it as UTF-8.") from error
        if text.startswith("\ufeff"):
            raise ValueError(
                f"{path} starts with a byte order mark, which hides its metadata: save it as UTF-8 without BOM."
            )
        return text
    if not results:
        raise ValueError(
            f"{directory} has no card, and no results of its weights to make one from{_why(others)}: evaluate it with "
            f"`region-learner evaluate {directory} --protocol NAME --output {directory / 'NAME.json'}`, or write one."
        )
    return model_card([directory / name for name in results], directory, repo, license)


def _check_card(
    directory: Path,
    text: str,
    repo: str,
    results: Mapping[str, EvaluationResults],
    regions: Iterable[Mapping[str, Any]],
    others: Mapping[str, str],
    run: bytes | None,
    is_public: bool,
) -> list[str]:
    """Checks the card, and returns notes about it."""
    name, notes = directory / CARD, []
    write = f"write a new card with `region-learner card {directory} --output {name}`"
    if REGEX_YAML_BLOCK.search(text) is None:
        raise ValueError(f"{name} has no metadata (YAML between two lines of ---): {write}, or add some.")
    try:
        data = ModelCard(text).data
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{name}: its metadata is not valid: {' '.join(str(error).split())}") from error
    if data.get("license") is None or (data.get("license") == "other" and data.get("license_name") is None):
        raise ValueError(f"{name} does not name a license: write `license: ID` into its metadata, such as apache-2.0.")
    if data.get("license_name") == "not-stated":
        if is_public:
            raise ValueError(
                "The card states no license, so nobody may use the model: add --license ID, such as apache-2.0, or "
                f"write the license into the metadata of {name}."
            )
        notes.append("the card states no license (--license ID): nobody else may use the model")
    config = json.loads((directory / "config.json").read_bytes())
    trained = {key: value for key, value in (json.loads(run) if run else {}).items() if key in ("train", "arguments")}
    energy = emissions_of(directory)
    _check_energy(name, data.get("co2_eq_emissions"), energy)
    facts = [config, trained, vars(energy) if energy else {}]
    if problems := unbacked_numbers(text, results, weights_of(directory), facts, regions):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ValueError(
            f"{name}: {problems[0]}, which is not in any results file of these weights in {directory}{_why(others)}"
            f"{more}: evaluate the model with `region-learner evaluate --output`, or {write}."
        )
    if loaded := sorted(set(re.findall(r"from_pretrained\(\s*[\"']([^\"']+)[\"']", text)) - {repo}):
        notes.append(f"the example of {CARD} loads {loaded[0]!r}, not {repo!r}")
    return notes


def _why(others: Mapping[str, str]) -> str:
    """Returns why the first of the results files that do not count does not count."""
    return next((f" ({name}: {reason})" for name, reason in others.items()), "")


def _check_energy(card: Path, claim: Any, energy: Emissions | None) -> None:
    grams = claim.get("emissions") if isinstance(claim, dict) else claim
    if grams is None:
        return
    measured = None if energy is None else energy.metadata()["emissions"]
    if measured is None or not isinstance(grams, int | float) or abs(grams - measured) > 0.01 * abs(measured):
        gives = "does not exist" if measured is None else f"has {measured}"
        raise ValueError(
            f"{card} claims emissions of {grams} g, but {card.with_name('emissions.csv')} {gives}: correct the card."
        )


def _check_leaks(directory: Path, files: Mapping[str, Path | bytes]) -> None:
    for name, file in files.items():
        if found := leaks(_readable(file)):
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise ValueError(
                f"{directory / name}, line {found[0].line}, contains {found[0].what}{more}, which everybody could "
                "read: remove it from the file."
            )


def _readable(file: Path | bytes) -> str:
    """Returns what people can read of a file: its text, or the metadata of weights, a picture or a video."""
    suffix = file.suffix.lower() if isinstance(file, Path) else ""
    if suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            return json.dumps(opened.metadata() or {}, ensure_ascii=False)
    if suffix in _WITH_METADATA:
        try:
            metadata = _metadata_of_video(file) if suffix == ".mp4" else _metadata_of_picture(file)
            return "\n".join(
                entry.decode("utf-8", "replace") if isinstance(entry, bytes) else str(entry) for entry in metadata
            )
        except Exception:  # what the name calls a picture or a video may be anything
            pass
    return _text_of(file)


def _metadata_of_picture(file: Any) -> list[Any]:
    with Image.open(file) as image:
        image.load()  # texts may follow the pixels
        return [value for name, value in image.info.items() if name != "icc_profile"]


def _metadata_of_video(file: Any) -> list[Any]:
    with av.open(str(file), **any_metadata()) as container:
        return [value for part in (container, *container.streams) for value in part.metadata.values()]


def check_loads_without_package(files: Mapping[str, Path | bytes], directory: Path) -> None:
    """
    Loads a checkpoint from these files alone, in a fresh process that has transformers but not this package.

    Args:
        files: the files, by name.
        directory: name of the checkpoint in messages.

    Raises:
        ValueError: it does not load, or takes longer than half an hour to load, or weights are missing, unexpected or
            of another shape.
    """
    again = "load it with this version of region-learner, save it again with save_pretrained, and evaluate it again."
    with tempfile.TemporaryDirectory(prefix="region-learner-push-") as folder:
        place = Path(folder) / "checkpoint"
        write_files(files, place)
        # The process has a module cache of its own, so that nothing loaded earlier can help, and sends no requests.
        environment = os.environ | {"HF_MODULES_CACHE": str(Path(folder) / "modules"), "HF_HUB_OFFLINE": "1"}
        script = Path(__file__).with_name("load_standalone.py")
        # -P: without the current directory; the script blocks an installed package itself.
        command = [sys.executable, "-P", str(script), str(place)]
        try:
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                timeout=_LOADING_TIMEOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ValueError(
                f"{directory} did not load within {_LOADING_TIMEOUT:g} seconds in a fresh process: push again when "
                "the machine is less busy, or from a faster disk."
            ) from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1].replace(str(place), "it")
        raise ValueError(f"{directory} does not load without region-learner installed ({reason[:300]}): {again}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    for kind, words in (
        ("missing", "missing"),
        ("unexpected", "not those of the model"),
        ("mismatched", "of another shape"),
    ):
        if names := found[kind]:
            shown = f"{', '.join(names[:3])}{', ...' * (len(names) > 3)}"
            raise ValueError(f"{directory}: {len(names)} weights are {words} ({shown}): {again}")


def write_files(files: Mapping[str, Path | bytes], place: Path) -> None:
    """Puts files in a directory: links to existing files, and new files for the others."""
    for name, file in files.items():
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file, bytes):
            target.write_bytes(file)
        else:
            target.symlink_to(file.absolute())


# --- The Hub -------------------------------------------------------------------------------------------------


def _publish(
    api: HfApi,
    repo: str,
    files: Mapping[str, Path | bytes],
    message: str,
    private: bool,
    head: str | None,
    repo_type: str = "model",
) -> tuple[str, list[str]]:
    """
    Makes one commit in a repository, after creating it if `head`, its latest commit, is None.

    Returns:
        The commit's address, and the files of an earlier model that it has removed.
    """
    is_space = repo_type == "space"
    is_created = False
    try:
        with in_words(repo):
            if head is None:
                sdk = "gradio" if is_space else None
                api.create_repo(repo, private=private, repo_type=repo_type, space_sdk=sdk, exist_ok=True)
                is_created = True
            # Texts that a user wrote about an existing Space are kept; the package in it is replaced as a whole.
            info, removed = commit_files(
                api,
                repo,
                files,
                message,
                repo_type,
                keeps_card=is_space and head is not None,
                replaces="region_learner" if is_space else None,
                parent=head,
            )
            return info.commit_url, removed
    except BaseException as error:
        if head is not None:
            left = _what_changed(api, repo, repo_type, head)
        elif not is_created and 400 <= (status_of(error.__cause__) or 0) < 500:
            left = "The repository was not created."
        else:
            left = _remove_if_empty(api, repo, repo_type, is_created)
        if isinstance(error, OSError | ValueError):
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(f"{' '.join(str(error).split())} {left}") from error
        logger.warning(left)
        raise


def _head(api: HfApi, repo: str, repo_type: str, private: bool) -> str | None:
    """Returns the latest commit of a repository; None if it does not exist."""
    try:
        info = api.repo_info(repo, repo_type=repo_type)
    except RepositoryNotFoundError:
        return None
    if info.private is not None and info.private != private:
        kinds = ("public", "private")
        cure = "add --public to push to it" if private else "leave --public out, or change the repository's settings"
        what = "The Space " * (repo_type == "space")
        raise ValueError(f"{what}{repo} exists and is {kinds[info.private]}, not {kinds[private]}: {cure}.")
    return info.sha


def _check_replaced_card(api: HfApi, repo: str, head: str, checked: Checked, directory: Path) -> list[str]:
    """
    Refuses to replace a card that somebody wrote on the Hub with one that is made here. Returns a note if it is
    replaced with another one that somebody wrote.
    """
    if not api.file_exists(repo, CARD, revision=head):
        return []
    present = _text_of(Path(api.hf_hub_download(repo, CARD, revision=head)))
    if present == _text_of(checked.files[CARD]):
        return []
    if (directory / CARD).is_file():
        return [f"{directory / CARD} replaces another {CARD} on the Hub, which remains in its history (commit {head})"]
    if checked.model is None or present != _draft_like(present, checked.model, directory, repo):
        raise ValueError(
            f"{repo} has another card on the Hub, which would be replaced: put that {CARD}, or one from "
            "`region-learner card MODEL --output`, into the directory of the checkpoint."
        )
    return []


def _draft_like(card: str, model: Mapping[str, Any], directory: Path, repo: str) -> str | None:
    """
    Returns the card that training pushes at its end, before anything is measured, with the license, the languages and
    the title of another card; None if that has no valid metadata.
    """
    try:
        parsed = ModelCard(card)
        data = parsed.data.to_dict()
        license = None if data.get("license_name") == "not-stated" else data.get("license")
        languages = data.get("language") or ()
        heading = re.search(r"^# (.+)$", parsed.text, re.MULTILINE)
        title = re.sub(r"\\(.)", r"\1", heading[1]) if heading else None  # without the escapes of Markdown
        return draft_card(
            model, directory, repo, license, title, [languages] if isinstance(languages, str) else languages
        )
    except (ValueError, TypeError, AttributeError, yaml.YAMLError):
        return None


def _what_changed(api: HfApi, repo: str, repo_type: str, head: str) -> str:
    """Returns a sentence about a repository after a commit on top of `head` has failed."""
    try:
        latest = api.repo_info(repo, repo_type=repo_type).sha
    except Exception:  # for any reason, such as a lost connection
        return f"See {_address(api, repo, repo_type)} for whether the commit has arrived."
    if latest == head:
        return f"{repo} on the Hub is unchanged."
    return f"{repo} on the Hub now has another commit than before, {latest}: see {_address(api, repo, repo_type)}."


def _remove_if_empty(api: HfApi, repo: str, repo_type: str, is_created: bool) -> str:
    """
    Deletes a repository that was created for a commit that failed, and returns a sentence about the result.

    Args:
        is_created: whether the Hub has confirmed that it has created the repository.
    """
    try:
        made_by_hub = {".gitattributes", *([CARD] if repo_type == "space" else [])}
        if set(api.list_repo_files(repo, repo_type=repo_type)) <= made_by_hub:
            api.delete_repo(repo, repo_type=repo_type)
            return "The repository that was created for it has been deleted again."
        return f"The commit may have arrived nevertheless: see {_address(api, repo, repo_type)}."
    except Exception as error:  # for any reason, such as a lost connection or a token without access
        if not is_created and isinstance(error, RepositoryNotFoundError) and status_of(error) == 404:
            return "The repository was not created."
        logger.debug("%s could not be removed", repo, exc_info=True)
    was = "was" if is_created else "may have been"
    return (
        f"The repository {repo}, which {was} created for it, may still be on the Hub, and may be empty: push again, "
        "or delete it."
    )


def _address(api: HfApi, repo: str, repo_type: str) -> str:
    return f"{api.endpoint}/{'spaces/' * (repo_type == 'space')}{repo}"


def _owner(api: HfApi, repo: str) -> str:
    """Returns the owner of a repository. Raises an error if the account clearly cannot write to it."""
    with in_words(repo):
        account = api.whoami()
    owner = repo.rpartition("/")[0] or account["name"]
    known = {account["name"], *(one["name"] for one in account.get("orgs", []))}
    if owner not in known:
        raise PermissionError(
            f"{repo} belongs to somebody else, as you are logged in as {account['name']!r}: push to "
            f"{account['name']}/{repo.rpartition('/')[2]}, or log in with `hf auth login`."
        )
    return owner

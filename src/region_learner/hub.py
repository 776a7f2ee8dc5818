"""Pushes files to the Hub in a single commit, and reports errors of the Hub in one line."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from .checkpoint_files import CARD, LOADED, WEIGHTS, is_results, replaced_files

# The base class of all HTTP errors of httpx or httpx2, which huggingface_hub does not export.
_HTTPError = HfHubHTTPError.__bases__[0]

_MOST_BYTES = 10_000_000  # of a results file


class Committed(NamedTuple):
    """A commit, and the names of the files of an earlier model that it has removed."""

    info: CommitInfo
    removed: list[str]


def commit_files(
    api: HfApi,
    repo: str,
    files: Mapping[str, Path | bytes],
    message: str,
    repo_type: str = "model",
    revision: str | None = None,
    keeps_card: bool = False,
    replaces: str | None = None,
    parent: str | None = None,
) -> Committed:
    """
    Adds files to a repository in one commit, unless somebody else changes the repository in the meantime. If the
    files are those of a model, the commit also removes what is left of an earlier model: files that `from_pretrained`
    would load together with the new ones, and results files.

    (`upload_folder` makes several commits for many or large files, and the first ones lack some of the weights.)

    Args:
        api: an API object that is logged in.
        repo: an existing repository.
        files: the files, by their names in the repository.
        message: message of the commit.
        repo_type: "model" or "space".
        revision: branch; by default "main".
        keeps_card: whether to leave out README.md if the repository already has one.
        replaces: a directory of the repository whose other files are removed.
        parent: the commit that the caller has looked at; by default the latest one.

    Raises:
        OSError, RuntimeError: errors of huggingface_hub, which [`in_words`] explains.
    """
    found = api.repo_info(repo, repo_type=repo_type, revision=parent or revision, files_metadata=True)
    present = {file.rfilename: file.size or 0 for file in found.siblings or []}
    added = {name: file for name, file in files.items() if not (keeps_card and name == CARD and CARD in present)}
    removed = replaced_files(present, files)
    if any(WEIGHTS.fullmatch(name) for name in files):
        others = {name: size for name, size in present.items() if name not in files and name not in LOADED}
        removed |= _results_in(api, repo, others, found.sha)
    of_folder = {name for name in present if replaces and name.startswith(f"{replaces}/")}
    operations: list[Any] = [CommitOperationDelete(name) for name in sorted((removed | of_folder) - added.keys())]
    operations += [CommitOperationAdd(name, file) for name, file in added.items()]
    info = api.create_commit(
        repo,
        operations,
        commit_message=message,
        repo_type=repo_type,
        revision=revision,
        parent_commit=found.sha,
    )
    return Committed(info, sorted(removed))


def _results_in(api: HfApi, repo: str, sizes: Mapping[str, int], revision: str | None) -> set[str]:
    """Returns the files among those of `sizes` (in bytes, by name) that have results of a model."""
    names = [name for name, size in sizes.items() if re.fullmatch(r"[^/]+\.json", name) and size <= _MOST_BYTES]
    found = {name: Path(api.hf_hub_download(repo, name, revision=revision)).read_bytes() for name in names}
    return {name for name, content in found.items() if is_results(content)}


@contextmanager
def in_words(repo: str) -> Iterator[None]:
    """Turns errors of the Hub within this block into an `OSError` of one line that says what to do."""
    try:
        yield
    except (_HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, RuntimeError) as error:
        if isinstance(error, NotImplementedError | RecursionError):
            raise
        cause: BaseException = error  # uploads raise a RuntimeError: from another error, or on its own (hf_xet)
        while isinstance(cause, RuntimeError) and cause.__cause__ is not None:
            cause = cause.__cause__
        kind = PermissionError if status_of(cause) in (401, 403, 404) else OSError
        raise kind(hub_error(cause, repo)) from error


def status_of(error: BaseException | None) -> int | None:
    """Returns the HTTP status of an error of the Hub; None for other errors, such as a lost connection."""
    return getattr(getattr(error, "response", None), "status_code", None)


def hub_error(error: BaseException, repo: str) -> str:
    """Returns a one-line explanation of an error of the Hub, and what to do."""
    said = " ".join(str(getattr(error, "server_message", None) or "").split())
    says = f" (the Hub says: {said[:300]})" if said else ""
    status = status_of(error)
    if isinstance(error, LocalTokenNotFoundError):
        return "You are not logged in to the Hub: run `hf auth login`, or set HF_TOKEN to a token with write access."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be pushed: unset it."
    if status == 401:
        return "The Hub refuses your token, which may be revoked or expired: create a new one and run `hf auth login`."
    is_full = re.search("storage|quota|limit|upgrade", said, re.IGNORECASE) is not None
    if status in (413, 507) or (status in (402, 403) and is_full):
        return (
            f"Pushing {repo} failed because its owner's storage is full{says}. Free up or buy storage, and push again."
        )
    if status == 402:
        return f"The Hub requires payment for {repo}{says}: see the billing settings of its owner."
    if status == 404:
        return (
            f"The Hub does not find {repo}{says}: it does not exist, or your token has no access to it. Check the "
            "name, or run `hf auth login` with a token that has write access."
        )
    if status == 403:
        return (
            f"You cannot write to {repo}{says}: it belongs to somebody else, or your token has no write access. "
            "Choose another name, or run `hf auth login` with a token that has write access."
        )
    if status == 412 or status == 409:
        return f"{repo} was changed in the meantime{says}: push again."
    if status == 429:
        return f"You have sent too many requests to the Hub{says}: wait a few minutes, and push again."
    if status is not None:
        return f"The Hub failed with status {status}{says}: push again later."
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"The connection to the Hub failed ({reason}): check it, and push again."

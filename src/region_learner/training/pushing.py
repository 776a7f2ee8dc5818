"""Pushes a model to the Hub during training, in commits that can be loaded. An existing card is not changed."""

import logging
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi

from .. import __version__
from ..checkpoint_files import CARD, RESULTS, WEIGHTS, checkpoint_files, published_run
from ..hub import commit_files, in_words

logger = logging.getLogger(__name__)

_SNAPSHOT = ".push-"


class HubPushes:
    """
    Pushes the checkpoints of a training run to one repository.

    Each push is a commit that `from_pretrained` can load: weights, configuration, processor and source files.
    (transformers' Trainer pushes whatever is in `output_dir` at that time, and splits many files into several
    commits.) An existing card on the Hub is not changed. Files of an earlier model are removed.

    Args:
        repo: an existing repository.
        output_dir: directory of the run.
        token, revision: token and revision for the Hub; None for the default.
    """

    def __init__(self, repo: str, output_dir: Path, token: str | None = None, revision: str | None = None):
        self.repo, self.output_dir, self.revision = repo, output_dir, revision
        self.api = HfApi(token=token, library_name="region-learner", library_version=__version__)

    def push_checkpoint(self, checkpoint: Path, message: str, state_folder: str | None = None) -> Future | None:
        """
        Pushes a complete checkpoint in the background, after earlier pushes. Its files are copied first, because it
        may be removed in the meantime. Errors are logged, and training continues.

        Args:
            checkpoint: directory of the checkpoint.
            message: message of the commit.
            state_folder: directory of the repository for the whole checkpoint, from which training can be resumed; its
                other files are removed. None pushes only the model.

        Returns:
            The push in progress, or None if the files could not be copied.
        """
        snapshot: Path | None = None
        try:
            snapshot = Path(tempfile.mkdtemp(prefix=_SNAPSHOT, dir=self.output_dir))
            files = _files_of_model(checkpoint)
            if state_folder is not None:
                whole = {path.relative_to(checkpoint): path for path in checkpoint.rglob("*") if path.is_file()}
                files |= {f"{state_folder}/{name.as_posix()}": path for name, path in whole.items()}
            copies: dict[Path, Path] = {}
            for number, path in enumerate(dict.fromkeys(files.values())):
                copies[path] = Path(shutil.copyfile(path, snapshot / str(number)))
        except OSError as error:
            self._warn(message, error, snapshot)
            return None
        copied = {name: copies[path] for name, path in files.items()}
        return self.api.run_as_future(self._push, copied, message, state_folder, snapshot)

    def _push(
        self, files: Mapping[str, Path | bytes], message: str, state_folder: str | None, snapshot: Path
    ) -> CommitInfo | None:
        try:
            return self._commit(files, message, state_folder)
        except Exception as error:  # an error while pushing should not end training
            self._warn(message, error, None)
            return None
        finally:
            shutil.rmtree(snapshot, ignore_errors=True)

    def _warn(self, message: str, error: Exception, snapshot: Path | None) -> None:
        if snapshot is not None:
            shutil.rmtree(snapshot, ignore_errors=True)
        reason = " ".join(str(error).split()) or type(error).__name__
        logger.warning("%r was not pushed to %s, and training continues: %s", message, self.repo, reason)

    def push_model(self, message: str, card: str | None = None, blocking: bool = True) -> Any:
        """
        Pushes the model in `output_dir`, with the results of the run if there are any.

        Args:
            message: message of the commit.
            card: card for a repository without one. The default is the README.md of `output_dir`, if there is one.
            blocking: whether to wait until the push has finished.

        Returns:
            The commit, or its future if not `blocking`.

        Raises:
            OSError: the Hub refused the push, or could not be reached.
        """
        files: dict[str, Path | bytes] = dict(_files_of_model(self.output_dir))
        own = self.output_dir / CARD
        if own.is_file():
            files[CARD] = own
        elif card is not None:
            files[CARD] = card.encode()
        run = published_run(self.output_dir)
        if run is not None:
            files[RESULTS] = run
        if blocking:
            return self._commit(files, message, None)
        return self.api.run_as_future(self._commit, files, message, None)

    def _commit(self, files: Mapping[str, Path | bytes], message: str, state_folder: str | None) -> CommitInfo:
        with in_words(self.repo):
            info, removed = commit_files(
                self.api,
                self.repo,
                files,
                message,
                revision=self.revision,
                keeps_card=True,
                replaces=state_folder,
            )
        if removed:
            logger.warning("Removed the files of an earlier model from %s: %s", self.repo, ", ".join(removed))
        return info


def remove_snapshots(output_dir: Path) -> None:
    """Removes leftovers from the pushes of a killed process."""
    for folder in output_dir.glob(f"{_SNAPSHOT}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _files_of_model(directory: Path) -> dict[str, Path]:
    files = {name: path for name, path in checkpoint_files(directory).belong.items() if name != CARD}
    if not any(WEIGHTS.fullmatch(name) for name in files):
        raise OSError(
            f"{directory} has no model.safetensors: weights that are sharded across processes cannot be pushed."
        )
    return files

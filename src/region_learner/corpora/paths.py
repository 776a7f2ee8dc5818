"""Names of files in metadata, what they are called on disk, and what is said of those that are missing."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .errors import CorpusError

logger = logging.getLogger(__name__)

# By what their names end in, lower case, and the likelier of two files of one name first.
VIDEO_EXTENSIONS = (
    ".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".3gp", ".3g2", ".3gpp", ".flv", ".ogv",
    ".ts", ".mts", ".m2ts", ".qt", ".asf", ".divx", ".gif",
)  # fmt: skip
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


# --- Names ---------------------------------------------------------------------------------------------------


def composed(name: str) -> str:
    """A name in the composed form of Unicode (NFC): macOS and some archives decompose accents."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def with_slashes(name: str) -> str:
    """A relative name as it is written on Windows, with slashes instead of backslashes."""
    return name.replace("\\", "/")


def resolve_within(base: Path, file_name: str, data_dir: Path, where: str, what: str = "file_name") -> str:
    r"""The absolute path of a file, which must not lead out of the corpus. Backslashes are read as slashes.

    Checked by name alone: a link inside the directory was put there by whoever owns it.

    Raises:
        CorpusError: it leads out of `data_dir`.
    """
    name = with_slashes(file_name)
    path = os.path.normpath(base / name)
    if "\0" in path or re.match("[A-Za-z]:/", name) or not path.startswith(os.path.join(data_dir, "")):
        raise CorpusError(f"{where}: {what} {file_name!r} leads outside of {data_dir}: name a file within it")
    return path


class Listings:
    """Files by their paths. Every directory is listed once, as millions of lookups take hours on network file systems.

    Names are found in whatever form of Unicode they are on disk.
    """

    def __init__(self) -> None:
        self._names: dict[str, dict[str, str]] = {}
        self._directories: dict[str, str] = {}

    def names(self, directory: str) -> dict[str, str]:
        """What is in a directory: names, as they are and composed, to names as they are. Empty if there is none."""
        if directory not in self._names:
            listed = os.listdir(directory) if os.path.isdir(directory) else []
            names = {name: name for name in listed}
            for name in listed:
                names.setdefault(composed(name), name)
            self._names[directory] = names
        return self._names[directory]

    def directory(self, path: str) -> str:
        """A directory as it is called on disk; as it is given where there is none."""
        if path not in self._directories:
            found, (parent, name) = path, os.path.split(path)
            if not os.path.isdir(path) and parent != path:
                parent = self.directory(parent)
                found = os.path.join(parent, self._find(parent, name) or name)
            self._directories[path] = found
        return self._directories[path]

    def find(self, path: str) -> str | None:
        """A file as it is called on disk, or None."""
        directory, name = os.path.split(path)
        directory = self.directory(directory)
        found = self._find(directory, name)
        return None if found is None else os.path.join(directory, found)

    def _find(self, directory: str, name: str) -> str | None:
        names = self.names(directory)
        return names.get(name) or names.get(composed(name))


# --- Missing files -------------------------------------------------------------------------------------------


def drop_missing(
    rows: list[dict[str, Any]],
    data_dir: Path,
    max_missing: int | float,
    missing_list: str | os.PathLike[str] | None = None,
    split: str = "",
    listings: Listings | None = None,
) -> list[dict[str, Any]]:
    """Leaves out rows whose file `video` does not exist, and says which in one warning.

    Args:
        max_missing, missing_list, split: see `report_missing`.
        listings: of directories that were listed before.

    Raises:
        CorpusError: more are missing.
    """
    listings = listings or Listings()
    present = [row for row in rows if listings.find(row["video"]) is not None]
    files = {row["video"] for row in rows}
    missing = files - {row["video"] for row in present}
    report_missing(missing, len(files), data_dir, max_missing, missing_list, split)
    return present if missing else rows


def report_missing(
    missing: Iterable[str],
    files: int,
    data_dir: Path,
    max_missing: int | float,
    missing_list: str | os.PathLike[str] | None = None,
    split: str = "",
    places: Sequence[Path] = (),
) -> None:
    """Writes down which files are missing, refuses if they are too many, and warns of them otherwise.

    Args:
        missing: absolute paths.
        files: how many there should be.
        max_missing: how many may be missing: a number, or a fraction (a float below 1) of all files.
        missing_list: text file for the paths, one a line; written anew each time, empty if none is missing, and also
            when they are too many. `{split}` in its name stands for `split`, as each split has a list of its own.
        places: directories that were looked through, where a file may lie in several.

    Raises:
        CorpusError: more are missing, or all; the list cannot be written.
    """
    if isinstance(max_missing, bool) or not isinstance(max_missing, int | float) or not max_missing >= 0:
        raise CorpusError(f"max_missing must be a number of files or a fraction below 1, not {max_missing!r}")
    missing = sorted(missing)
    listed = ""
    if missing_list is not None:
        path = os.path.abspath(os.path.expanduser(str(missing_list).replace("{split}", split)))
        _write_lines(Path(path), missing)
        listed = f" (all of them in {path})"
    if not missing:
        return
    allowed = max_missing * files if isinstance(max_missing, float) and max_missing < 1 else max_missing
    report = f"{len(missing)} of {files} video files named by the metadata are missing under {data_dir}"
    names = some_names(missing, data_dir, 3)
    if len(missing) == files:
        cure = "correct the names, or check data_dir (--data-dir)"
        if places:
            cure = "check data_dir (--data-dir) and video_dir (--corpus-options '{\"video_dir\": ...}')"
        raise CorpusError(
            f"{report}, and none is left: {names}{listed}; {_looked_for(missing[0], data_dir, places)}; {cure}"
        )
    if len(missing) > allowed:
        raise CorpusError(
            f"{report}: {names}{listed}; {_looked_for(missing[0], data_dir, places)}; bring them, or pass "
            f"max_missing={len(missing)} (--corpus-options '{{\"max_missing\": {len(missing)}}}') to leave them out"
        )
    logger.warning("%s and left out: %s%s", report, some_names(missing, data_dir, 3 if listed else 100), listed)


_DIRECTORIES_LOOKED_THROUGH = 1000  # for a file that is missing


def _looked_for(path: str, data_dir: Path, places: Sequence[Path]) -> str:
    """Where a missing file was looked for, and where it may be instead."""
    around = [place for place in places if path.startswith(os.path.join(place, ""))]
    others = [str(place) for place in places if place != max(around, key=lambda place: len(place.parts), default=None)]
    looked = f"the first was looked for at {path}" + (f" and in {', '.join(others)}" if others else "")
    instead = _elsewhere(path, data_dir)
    return f"{looked}, but {instead}" if instead else looked


def _elsewhere(path: str, data_dir: Path) -> str:
    """What is there in place of a missing file: another extension, another level, no directory at all."""
    directory, name = os.path.split(path)
    beside = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    for other in beside:
        if other.lower() == name.lower():
            return f"there it is called {other!r}: upper and lower case differ"
    stem = os.path.splitext(name)[0]
    for other in beside:
        if os.path.splitext(other)[0] == stem:
            return f"there is {other!r}, with another extension"
    relative = Path(os.path.relpath(path, data_dir))
    with os.scandir(data_dir) as entries:  # which tells directories without looking each up
        below = sorted(Path(entry.path) for entry in entries if entry.is_dir())[:_DIRECTORIES_LOOKED_THROUGH]
    for root in (*below, data_dir, data_dir.parent):
        # As it is named, without its first directory, and by its name alone.
        for form in (relative, Path(*relative.parts[1:]), Path(name)):
            found = root / form
            if form.parts and str(found) != path and found.is_file():
                level = "above" if root == data_dir.parent else "below" if root in below else "in"
                place = "directly in" if level == "in" else f"a level {level}"
                return f"there is {found}, {place} {data_dir}"
    if not os.path.isdir(directory):
        return f"there is no directory {directory}"
    return f"{directory} is empty" if not beside else ""


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    """All or nothing: the processes of a distributed run write the same list at the same time."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Names of files need not be text.
        with temporary.open("w", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(f"{line}\n" for line in lines)
        temporary.replace(path)
    except OSError as error:
        raise CorpusError(f"cannot write missing_list={str(path)!r}: {error}") from error


def some_names(paths: Sequence[str], data_dir: Path, limit: int) -> str:
    inside = os.path.join(data_dir, "")
    names = ", ".join(path.removeprefix(inside) for path in paths[:limit])
    return f"{names} and {len(paths) - limit} more" if len(paths) > limit else names

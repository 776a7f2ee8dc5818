"""Finds the video and image files that metadata names, and reports missing ones."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from .base import CorpusError, PathLike, Row

logger = logging.getLogger(__name__)

# Of two files that differ only in their extension, the one listed first here is taken.
VIDEO_EXTENSIONS = (
    ".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".3gp", ".3g2", ".3gpp", ".flv", ".ogv",
    ".ts", ".mts", ".m2ts", ".qt", ".asf", ".divx", ".gif",
)  # fmt: skip
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


# --- Names ---------------------------------------------------------------------------------------------------


def to_nfc(name: str) -> str:
    """Returns a name in the composed form of Unicode (NFC): macOS and some archives decompose accents."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def resolve_within(base: Path, file_name: str, data_dir: Path, where: str, what: str = "file_name") -> str:
    r"""Returns the absolute path of a file, which must lie within the corpus. Backslashes are read as slashes.

    Only the name is checked, as links inside the directory were made by its owner.
    """
    name = file_name.replace("\\", "/")
    path = os.path.normpath(base / name)
    if "\0" in path or re.match("[A-Za-z]:/", name) or not path.startswith(os.path.join(data_dir, "")):
        raise CorpusError(f"{where}: {what} {file_name!r} leads outside of {data_dir}: name a file within it")
    return path


class Listings:
    """Looks up files by their paths, listing every directory once, as millions of lookups take hours on network disks.

    Names are found in whatever form of Unicode they have on disk.
    """

    def __init__(self) -> None:
        self._names: dict[str, dict[str, str]] = {}
        self._directories: dict[str, str] = {}

    def names(self, directory: str) -> dict[str, str]:
        """Maps the names in a directory, as they are and in NFC, to the names as they are; empty without one."""
        if directory not in self._names:
            listed = os.listdir(directory) if os.path.isdir(directory) else []
            names = {name: name for name in listed}
            for name in listed:
                names.setdefault(to_nfc(name), name)
            self._names[directory] = names
        return self._names[directory]

    def directory(self, path: str) -> str:
        """Returns the path of a directory as it is on disk, or as it was given if it does not exist."""
        if path not in self._directories:
            found, (parent, name) = path, os.path.split(path)
            if not os.path.isdir(path) and parent != path:
                parent = self.directory(parent)
                found = os.path.join(parent, self._find(parent, name) or name)
            self._directories[path] = found
        return self._directories[path]

    def find(self, path: str) -> str | None:
        """Returns the path of a file as it is on disk, or None."""
        directory, name = os.path.split(path)
        directory = self.directory(directory)
        found = self._find(directory, name)
        return None if found is None else os.path.join(directory, found)

    def _find(self, directory: str, name: str) -> str | None:
        names = self.names(directory)
        return names.get(name) or names.get(to_nfc(name))


# --- Videos of a benchmark -----------------------------------------------------------------------------------


class VideoFiles:
    """Finds the videos of a benchmark. Every directory is listed once; single files are not looked up or opened.

    A name is found in the first directory that has it: as it is, or else by its stem with any video extension, as
    releases are often re-encoded. "x.mov" is thus found as x.mov, x.mov.mp4 or x.mp4.

    Args:
        data_dir: the directory of the benchmark.
        video_dir: the only directory to look in, absolute or relative to `data_dir`.
        usual: the directories below `data_dir` to look in without `video_dir`; `data_dir` itself comes last.
        extension: added to names without one when a missing file is reported.
    """

    def __init__(self, data_dir: Path, video_dir: PathLike | None, usual: Sequence[str], extension: str = ".mp4"):
        self.data_dir = data_dir
        self.extension = extension
        self.roots = video_roots(data_dir, video_dir, usual)
        self._files = Listings()
        self._listings: dict[str, dict[str, str]] = {}
        self._found: dict[str, str] = {}
        self.missing: set[str] = set()

    def find(self, name: str, where: str, *others: str) -> str:
        """Returns the absolute path of a video; for a missing one, the path where it should be.

        Args:
            name: name relative to the directory of the videos, with or without extension.
            where: file and line that name the video, for messages.
            others: other names that it may have instead.
        """
        if name not in self._found:
            wanted = [form for one in (name, *others) for form in (one, *_stems(one))]
            self._found[name] = self._find(wanted, where) or self._expected(name, where)
        return self._found[name]

    def _find(self, wanted: Sequence[str], where: str) -> str | None:
        for root in self.roots:
            for name in wanted:
                directory, key = os.path.split(resolve_within(root, name, root, where, "video"))
                directory = self._files.directory(directory)
                listing = self._listing(directory)
                found = listing.get(key) or listing.get(to_nfc(key))
                if found is not None:
                    return os.path.join(directory, found)
        return None

    def _expected(self, name: str, where: str) -> str:
        path = resolve_within(self.roots[0], name, self.roots[0], where, "video")
        # The last dot of a name need not begin an extension.
        if not path.lower().endswith(VIDEO_EXTENSIONS) and not path.endswith("."):
            path += self.extension
        self.missing.add(path)
        return path

    def _listing(self, directory: str) -> dict[str, str]:
        """Maps the names of files, and all their stems, to the names of files."""
        if directory not in self._listings:
            names = sorted(set(self._files.names(directory).values()), key=_preference)
            listing = {name: name for name in names}
            for name in names:
                for form in (to_nfc(name), *_stems(name), *_stems(to_nfc(name))):
                    listing.setdefault(form, name)
            self._listings[directory] = listing
        return self._listings[directory]


def video_roots(data_dir: Path, video_dir: PathLike | None, usual: Sequence[str]) -> list[Path]:
    """Returns the directories to look for videos in: `video_dir`, or those of `usual` that exist, and `data_dir`."""
    if video_dir is not None:
        root = Path(os.path.normpath(data_dir / os.path.expanduser(video_dir)))
        if not root.is_dir():
            raise CorpusError(f"{root} is not a directory: check video_dir=")
        return [root]
    return [*(data_dir / name for name in usual if (data_dir / name).is_dir()), data_dir]


def _stems(name: str) -> list[str]:
    """Strips video extensions, or a trailing dot, one after the other: "a.mov.mp4" -> ["a.mov", "a"]."""
    stems: list[str] = []
    while True:
        stem, extension = os.path.splitext(name)
        if name.endswith(".") and name.rstrip("."):
            stem = name.rstrip(".")
        elif extension.lower() not in VIDEO_EXTENSIONS or not extension:
            return stems
        stems.append(stem)
        name = stem


def _preference(name: str) -> tuple[int, str]:
    extension = os.path.splitext(name)[1].lower()
    rank = VIDEO_EXTENSIONS.index(extension) if extension in VIDEO_EXTENSIONS else len(VIDEO_EXTENSIONS)
    return rank, name


# --- Missing files -------------------------------------------------------------------------------------------


def drop_missing(
    rows: list[Row],
    data_dir: Path,
    max_missing: int | float,
    missing_list: PathLike | None = None,
    split: str = "",
    listings: Listings | None = None,
) -> list[Row]:
    """Leaves out rows whose file `video` does not exist, with one warning that names the files.

    Args:
        max_missing, missing_list, split: see `report_missing`.
        listings: directories that were listed before.
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
    missing_list: PathLike | None = None,
    split: str = "",
    places: Sequence[Path] = (),
) -> None:
    """Lists the missing files, raises an error if there are too many of them, and warns of them otherwise.

    Args:
        missing: absolute paths.
        files: how many files there should be.
        max_missing: how many files may be missing: a number, or a fraction (a float below 1) of all files.
        missing_list: text file for the paths, one per line. It is written each time, empty if no file is missing,
            and also if too many are. `{split}` in its name stands for `split`, so that each split has its own list.
        places: the directories that were looked through, if there are several.
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
        raise CorpusError(f"{report}: {names}{listed}; {_looked_for(missing[0], data_dir, places)}; {cure}")
    if len(missing) > allowed:
        raise CorpusError(
            f"{report}: {names}{listed}; {_looked_for(missing[0], data_dir, places)}; add them, or pass "
            f"max_missing={len(missing)} (--corpus-options '{{\"max_missing\": {len(missing)}}}') to leave them out"
        )
    logger.warning("%s and are left out: %s%s", report, some_names(missing, data_dir, 3 if listed else 100), listed)


_MAX_SEARCHED_DIRECTORIES = 1000  # for one missing file


def _looked_for(path: str, data_dir: Path, places: Sequence[Path]) -> str:
    """Says where a missing file was looked for, and where it may be instead."""
    around = [place for place in places if path.startswith(os.path.join(place, ""))]
    others = [str(place) for place in places if place != max(around, key=lambda place: len(place.parts), default=None)]
    looked = f"the first was looked for at {path}" + (f" and in {', '.join(others)}" if others else "")
    instead = _elsewhere(path, data_dir)
    return f"{looked}, but {instead}" if instead else looked


def _elsewhere(path: str, data_dir: Path) -> str:
    """Says what exists in place of a missing file: another extension, another level, or no directory at all."""
    directory, name = os.path.split(path)
    beside = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    for other in beside:
        if other.lower() == name.lower():
            return f"it is called {other!r} there: upper and lower case differ"
    stem = os.path.splitext(name)[0]
    for other in beside:
        if os.path.splitext(other)[0] == stem:
            return f"{other!r} exists, with another extension"
    relative = Path(os.path.relpath(path, data_dir))
    with os.scandir(data_dir) as entries:
        below = sorted(Path(entry.path) for entry in entries if entry.is_dir())[:_MAX_SEARCHED_DIRECTORIES]
    for root in (*below, data_dir, data_dir.parent):
        # The name as it is, without its first directory, and without any directory.
        for form in (relative, Path(*relative.parts[1:]), Path(name)):
            found = root / form
            if form.parts and str(found) != path and found.is_file():
                level = "above" if root == data_dir.parent else "below" if root in below else "in"
                place = "directly in" if level == "in" else f"a level {level}"
                return f"{found} exists, {place} {data_dir}"
    if not os.path.isdir(directory):
        return f"the directory {directory} does not exist"
    return f"{directory} is empty" if not beside else ""


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes all lines or none. Unlike with `write_text`, several processes may write the same list at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Names of files need not be valid UTF-8.
        with temporary.open("w", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(f"{line}\n" for line in lines)
        temporary.replace(path)
    except OSError as error:
        raise CorpusError(f"cannot write missing_list={str(path)!r}: {error}") from error


def some_names(paths: Sequence[str], data_dir: Path, limit: int) -> str:
    """Returns at most `limit` paths relative to `data_dir`, and how many more there are."""
    inside = os.path.join(data_dir, "")
    names = ", ".join(path.removeprefix(inside) for path in paths[:limit])
    return f"{names} and {len(paths) - limit} more" if len(paths) > limit else names

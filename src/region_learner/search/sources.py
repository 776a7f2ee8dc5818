"""Finds the videos in folders, files, lists, shards and the rows of a corpus."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..corpora import CorpusError
from ..corpora.tar import read_at, walk_members
from ..corpora.videos import VIDEO_EXTENSIONS
from ..corpora.webdataset import is_reference, read_member
from ..files import near_file

logger = logging.getLogger(__name__)

_LIST = ".txt"
_SHARD = ".tar"


class Video(NamedTuple):
    """
    A video file, or a member of a shard.

    Args:
        path: absolute path; for a member, the path of its shard followed by its name.
        size: size in bytes.
        modified: time of the last change of the file or the shard, in nanoseconds.
        offset: position in bytes at which a member begins in its shard; None for a file.
        shard: path of the shard of a member.
    """

    path: str
    size: int
    modified: int
    offset: int | None = None
    shard: str | None = None

    def source(self) -> Any:
        """
        Returns the input for a video processor: the path, or the name and the bytes of a member.

        Raises:
            CorpusError: the shard cannot be read, or is shorter than before.
        """
        if self.shard is None:
            return self.path
        reference = {"path": self.shard, "offset": self.offset, "size": self.size}
        return {"path": self.path, "bytes": read_member(reference)}

    def sha256(self) -> str:
        """
        Returns the hash of the content.

        Raises:
            OSError: the file cannot be read.
        """
        with open(self.shard or self.path, "rb", buffering=0) as file:
            if self.shard is None:
                return hashlib.file_digest(file, "sha256").hexdigest()
            return hashlib.sha256(read_at(file, self.offset or 0, self.size, self.shard)).hexdigest()


@dataclass
class FoundVideos:
    """
    The videos that were found.

    Args:
        videos: the videos by path.
        roots: the argument that each path came from; see [`root_to_keep`].
        searched: the arguments. If a video came from one of them and is not found there anymore, it counts as gone.
        folders: the folders that were searched.
        shards: the shards that were read to their end.
        unlisted: folders, shards and videos that could not be listed or read. It is not known whether these videos, or
            those in them, are gone.
        unreadable: for each shard in a folder that could not be read to its end, the reason.
    """

    videos: dict[str, Video] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)
    searched: set[str] = field(default_factory=set)
    folders: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    def add(self, video: Video, root: str) -> None:
        self.videos[video.path] = video  # of two members with the same name, the last one counts, as for `tar`
        self.roots[video.path] = root_to_keep(video.path, self.roots.get(video.path, root), root)

    def lacks(self, path: str, root: str) -> bool:
        """Returns whether a video that was found earlier, through the argument `root`, is gone."""
        if path in self.videos or path in self.unlisted or _is_within(path, self.unlisted):
            return False
        if root in self.searched:
            return True
        # A folder does not list everything that can be indexed otherwise: links to folders, hidden files, files with
        # other extensions, and the rows of a corpus, which name members by their position.
        is_listed = path.lower().endswith(VIDEO_EXTENSIONS)
        return (is_listed and _is_within(path, self.shards)) or (_is_within(path, self.folders) and _is_gone(path))


def root_to_keep(path: str, earlier: str, root: str) -> str:
    """
    Returns which of two arguments to remember for a video that was found through both. A folder or shard that contains
    the video stays, because the video may leave the other one, such as a list, without being gone.
    """
    return earlier if path == earlier or _is_within(path, [earlier]) else root


def find_videos(paths: Any, root: str = "rows of a corpus") -> FoundVideos:
    """
    Returns the videos in `paths`.

    Args:
        paths: one or several paths, each a folder, a video, a shard (.tar) or a list (.txt, one path per line,
            relative to the list); rows of `load_corpus`; or the result of an earlier call. Folders are searched at any
            depth for files with the extension of a video and for shards, except for names that begin with a dot.
        root: name of the corpus, for rows.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a path does not contain any videos, or a row refers to something that is not a file.

    Example:

    ```python
    >>> len(find_videos("videos").videos)
    2
    ```
    """
    if isinstance(paths, FoundVideos):
        return paths
    found = FoundVideos()
    if hasattr(paths, "column_names"):
        for row in paths.select_columns(["video"]):
            found.add(_video_of_row(row["video"]), root)
        if not found.videos:
            raise ValueError(f"{root} does not contain any videos: nothing was changed.")
        found.searched.add(root)
        return found
    for given in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = os.path.abspath(os.path.expanduser(given))
        for video in _expand(path, found, name=str(given)):
            found.add(video, path)
        found.searched.add(path)
    return found


def _is_within(path: str, folders: Iterable[str]) -> bool:
    return any(path.startswith(os.path.join(folder, "")) for folder in folders)


def _is_gone(path: str) -> bool:
    """Returns whether there is neither a file at `path` nor, for a member, its shard."""
    for place in (path, *map(str, Path(path).parents)):
        try:
            return stat.S_ISDIR(os.stat(place).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:  # not known
            return False
    return True


def _expand(path: str, found: FoundVideos, name: str, in_list: str | None = None) -> Iterator[Video]:
    """
    Yields the videos of one argument, or of one line of the list `in_list`.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: it does not contain any videos. `name` is its name in the message.
    """
    videos: Iterable[Video]
    if os.path.isdir(path):
        found.folders.append(path)
        videos = _in_folder(path, found)
    elif not os.path.exists(path):
        raise FileNotFoundError(f"There is no file or folder {path}{near_file(path)}")
    elif path.endswith(_SHARD):
        videos = _in_shard(path, found)
    elif path.endswith(_LIST) and in_list is None:
        videos = _in_list(path, found)
    else:
        videos = [_video_file(path)]
    is_empty = True
    for video in videos:
        is_empty = False
        yield video
    if is_empty:
        listed = "" if in_list is None else f", which {in_list} lists,"
        raise ValueError(
            f"{name}{listed} does not contain any videos (files such as {', '.join(VIDEO_EXTENSIONS[:4])} at any "
            f"depth, or shards, {_SHARD}): nothing was changed."
        )


def _video_file(path: str) -> Video:
    status = os.stat(path)
    return Video(path, status.st_size, status.st_mtime_ns)


def _in_folder(folder: str, found: FoundVideos) -> Iterator[Video]:
    def note(error: OSError) -> None:
        logger.warning("%s cannot be listed (%s): its videos are kept unchanged.", error.filename, error.strerror)
        found.unlisted.append(error.filename)

    for directory, folders, files in os.walk(folder, onerror=note):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = os.path.join(directory, name)
            is_video = name.lower().endswith(VIDEO_EXTENSIONS)
            if name.startswith(".") or not (is_video or name.endswith(_SHARD)):
                continue
            try:
                if not stat.S_ISREG(os.stat(path).st_mode):
                    continue
                if is_video:
                    yield _video_file(path)
                else:
                    yield from _in_shard(path, found)
            except (FileNotFoundError, NotADirectoryError):  # a dangling link, or deleted in the meantime
                continue
            except (OSError, CorpusError) as error:
                found.unlisted.append(path)
                reason = getattr(error, "strerror", None) or " ".join(str(error).split())
                if is_video:
                    logger.warning("%s cannot be read (%s): it is kept unchanged.", path, reason)
                else:  # the videos before the damage are indexed
                    found.unreadable[path] = reason


def _in_shard(shard: str, found: FoundVideos) -> Iterator[Video]:
    modified = os.stat(shard).st_mtime_ns
    with open(shard, "rb", buffering=0) as file:
        for member in walk_members(file, shard):
            is_hidden = re.search(r"(^|/)\.[^./]", member.name)  # such as "._1.mp4", which macOS adds
            if member.name.lower().endswith(VIDEO_EXTENSIONS) and not is_hidden:
                path = os.path.normpath(os.path.join(shard, member.name))
                yield Video(path, member.size, modified, member.offset, shard)
    found.shards.append(shard)


def _in_list(path: str, found: FoundVideos) -> Iterator[Video]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = [line.strip() for line in file]
    for line in filter(None, lines):
        if "://" in line:
            raise ValueError(f"{path} lists {line}, but only files can be indexed: download it first.")
        video = os.path.normpath(os.path.join(os.path.dirname(path), os.path.expanduser(line)))
        yield from _expand(video, found, name=line, in_list=path)


def _video_of_row(video: Any) -> Video:
    if is_reference(video):
        path, offset = os.path.abspath(video["path"]), int(video["offset"])
        name = os.path.join(path, f"byte {offset}")
        return Video(name, int(video["size"]), os.stat(path).st_mtime_ns, offset, path)
    if not isinstance(video, str) or "://" in video:
        kind = video if isinstance(video, str) else type(video).__name__
        raise ValueError(f"The video of a row is {kind}, but only files can be indexed: use a corpus of video files.")
    return _video_file(os.path.abspath(video))


__all__ = ["FoundVideos", "Video", "find_videos"]

"""Reads WebDataset shards: tar files of videos or images with their captions, as video2dataset writes them.

Only the headers of shards are read, not the videos, so that shuffling, splitting and skipping in a stream is fast.
"""

from __future__ import annotations

import glob
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tqdm.auto import tqdm

from ..configuration_region_learner import did_you_mean
from .base import SPLIT_ALIASES, CorpusError, PathLike, Row, build_dataset, check_data_dir, read_record
from .rows import UnfitValueError, read_captions, read_id, shown, unstorable
from .tar import DamagedShardError, Member, read_at, walk_members
from .videos import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


logger = logging.getLogger(__name__)

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# Prefixes of shards whose splits lie side by side, before a hyphen.
_SPLIT_NAMES = ("train", "val", "valid", "validation", "dev", "test")

# The file that `corpus prepare` writes beside its shards, and its entry with the names of classes by column.
PREPARED, CLASSES = "prepare.json", "classes"

_MAX_TEXT = 2**24  # bytes of a .txt or .json member
_MAX_MEDIA = 2**31  # bytes of a video or image, which is read at once

_warned: set[str] = set()  # shards that this process has warned about, as every epoch reads them again


# --- Samples -------------------------------------------------------------------------------------------------


def read_member(reference: Mapping[str, Any]) -> bytes:
    """Reads the encoded video that a row of a lazy corpus refers to.

    Args:
        reference: `{"path": shard, "offset": int, "size": int}`, the `video` of the row.

    Raises:
        CorpusError: it is not a reference, or the shard is missing or shorter than when it was indexed.
    """
    try:
        shard, offset, size = str(reference["path"]), int(reference["offset"]), int(reference["size"])
    except (KeyError, TypeError, ValueError):
        raise CorpusError(f"a reference has the keys path, offset and size, not {shown(reference, 100)}") from None
    try:
        with open(shard, "rb", buffering=0) as file:
            length = file.seek(0, os.SEEK_END)
            if offset < 0 or size < 0 or offset + size > length:
                raise CorpusError(
                    f"{shard} has only {length} bytes, so there is no member at bytes {offset} to {offset + size}: it "
                    "was replaced after the corpus was loaded; load the corpus again"
                )
            if size > _MAX_MEDIA:
                raise CorpusError(f"{shard} at byte {offset}: {size} bytes, but a video has at most {_MAX_MEDIA}")
            return read_at(file, offset, size, shard)
    except OSError as error:
        raise CorpusError(f"{shard} cannot be read: {error.strerror}") from error


def is_reference(video: Any) -> bool:
    """Returns whether the `video` of a row is a reference of a lazy corpus, which `read_member` reads."""
    return isinstance(video, Mapping) and {"path", "offset", "size"} <= video.keys()


def video_source(video: Any) -> Any:
    """Returns the input of a video processor for the `video` of a row. References are read; others are unchanged."""
    if not is_reference(video):
        return video
    return {"path": f"{video['path']} at byte {video['offset']}", "bytes": read_member(video)}


def _split_name(name: str) -> tuple[str, str] | None:
    """Returns key and extension (lower case, with its dot) of a member, or None if it does not belong to a sample."""
    directory, slash, file_name = name.removeprefix("./").rpartition("/")
    stem, dot, extension = file_name.partition(".")
    return (directory + slash + stem, dot + extension.lower()) if stem and dot else None


def read_samples(
    shards: Sequence[str], lazy: bool = True, damaged: str = "error", total_shards: int = 0
) -> Iterator[Row]:
    """Yields the rows of some shards, in order; see `load_webdataset`.

    Args:
        total_shards: the number of shards of the corpus, for a warning if they are too few for all loader processes.
    """
    if total_shards:
        _check_workers(total_shards)
    for shard in shards:
        with _open_shard(shard) as file:
            report = _ShardReport(shard)
            try:
                yield from _read_shard(file, shard, lazy, damaged, report)
            except DamagedShardError as error:
                if damaged == "error":
                    raise CorpusError(
                        f'{error}; download or pack it again, or leave out the rest of it with damaged="skip"'
                    ) from error
                report.damage = str(error)
            report.warn()


def _open_shard(shard: str) -> BinaryIO:
    try:
        file = open(shard, "rb", buffering=0)  # noqa: SIM115, closed by the caller
    except OSError as error:
        raise CorpusError(f"shard {shard} cannot be opened: {error.strerror}") from error
    magic = file.read(8)
    for beginning, name in _MAGIC.items():
        if magic.startswith(beginning):
            file.close()
            raise CorpusError(_compressed_message(shard, name))
    return file


def _compressed_message(shard: str, compression: str) -> str:
    return (
        f"shard {shard} is compressed ({compression}), so that reading a video means unpacking everything before it: "
        "decompress it to a .tar (compression hardly makes videos smaller)"
    )


class _ShardReport:
    """Collects the samples that are left out of a shard."""

    def __init__(self, shard: str):
        self.shard = shard
        self.read = 0
        self.left_out: dict[str, list[str]] = {}  # samples, by reason
        self.parts_left_out: dict[str, list[str]] = {}  # of samples that are read, by what is left out
        self.damage = ""

    def leave_out(self, key: str, reason: str) -> None:
        self.left_out.setdefault(reason, []).append(key)

    def leave_out_of(self, key: str, part: str) -> None:
        self.parts_left_out.setdefault(part, []).append(key)

    def warn(self) -> None:
        """Logs one warning, once per shard and process."""
        if not (self.left_out or self.parts_left_out or self.damage) or self.shard in _warned:
            return
        _warned.add(self.shard)
        parts = []
        for reason, keys in self.left_out.items():
            parts.append(f"leaving out {_count(keys)} {reason} ({_some(keys)})")
        for part, keys in self.parts_left_out.items():
            parts.append(f"leaving out {part} of {_count(keys)} ({_some(keys)})")
        if self.damage:
            parts.append(f"leaving out the rest of the shard after {_count(range(self.read))} ({self.damage})")
        logger.warning("%s: %s", self.shard, "; ".join(parts))


def _count(samples: Sized) -> str:
    return "1 sample" if len(samples) == 1 else f"{len(samples)} samples"


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _read_shard(file: BinaryIO, shard: str, lazy: bool, damaged: str, report: _ShardReport) -> Iterator[Row]:
    seen: set[str] = set()
    members = ((_split_name(member.name), member) for member in walk_members(file, shard))
    samples = itertools.groupby(((key, member) for key, member in members if key), lambda item: item[0][0])
    for key, group in samples:
        # All members are read before a row is made, so that a truncated sample does not become a row.
        parts: dict[str, Member] = {}
        for (_, extension), member in group:
            if extension in parts:
                raise CorpusError(f"{shard} has two members {member.name!r}: remove one of them")
            parts[extension] = member
        if key in seen:
            raise CorpusError(
                f"{shard}: the members of sample {key!r} do not follow one another, or two samples have this key: "
                "pack them sorted by name (tar --sort=name)"
            )
        seen.add(key)
        try:
            row = _make_row(file, shard, key, parts, lazy, report)
        except _UnusableError as error:
            if error.is_damage and damaged == "error":
                raise CorpusError(f'{shard}: {error}; repair it, or leave it out with damaged="skip"') from error
            report.leave_out(key, error.reason)
            continue
        report.read += 1
        yield row


class _UnusableError(ValueError):
    """A sample cannot become a row."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(detail)
        self.reason, self.is_damage = reason, bool(detail)


# Columns that every corpus has, and fields of .json that captions and ids come from.
_RESERVED = ("video", "video_id", "captions")
_SOURCES = ("key", "caption", "text")
_CAPTION_COLUMNS = ("captions", "caption", "text")
# Columns of tasks whose rows need no captions.
_WITHOUT_CAPTIONS = {"question", "label"}


def _make_row(
    file: BinaryIO, shard: str, key: str, parts: Mapping[str, Member], lazy: bool, report: _ShardReport
) -> Row:
    media = _choose_media(shard, parts)
    if media is None:
        raise _UnusableError("without a video or image")
    if media.size > _MAX_MEDIA:
        raise _UnusableError(
            "with oversized video",
            f"member {media.name!r} has {media.size} bytes, but a video in a shard may have at most {_MAX_MEDIA}",
        )
    content: dict[str, Any] = {}
    if ".json" in parts:
        content = _read_json(file, shard, parts[".json"])
    # Samples that `corpus prepare` wrote hold the row as it was.
    ours = isinstance(content.get("prepared"), dict) and "source" in content["prepared"]
    column, captions = _captions(content, parts.get(".json"), ("captions",) if ours else _CAPTION_COLUMNS)
    if not captions and ".txt" in parts:
        _, captions = _captions({"text": _read_text(file, shard, parts[".txt"])}, parts[".txt"], ("text",))
    if not captions and not ours and not _WITHOUT_CAPTIONS & content.keys():
        raise _UnusableError("without a caption")
    if not all(captions):
        report.leave_out_of(key, "blank captions")
    for name in () if ours else ("video", *_CAPTION_COLUMNS):
        if name != column and content.get(name) and content[name] != content.get(column):
            report.leave_out_of(key, f"the field {name!r}")
    reserved = _RESERVED if ours else (*_RESERVED, *_SOURCES)
    return {
        "video": (
            {"path": shard, "offset": media.offset, "size": media.size}
            if lazy
            else read_at(file, media.offset, media.size, shard)
        ),
        "video_id": _video_id(content, parts.get(".json"), key),
        "captions": [caption for caption in captions if caption],
        **{name: value for name, value in content.items() if name not in reserved},
    }


def _choose_media(shard: str, parts: Mapping[str, Member]) -> Member | None:
    """Returns the video of a sample, or its image. An image beside a video is a preview."""
    for extensions in (VIDEO_EXTENSIONS, IMAGE_EXTENSIONS):
        found = [member for extension, member in parts.items() if extension in extensions]
        if len(found) > 1:
            raise CorpusError(
                f"{shard}: members {found[0].name!r} and {found[1].name!r} belong to the same sample: keep one of them"
            )
        if found:
            return found[0]
    return None


def _video_id(content: Mapping[str, Any], member: Member | None, key: str) -> str:
    for name in ("video_id", "key"):
        if (video_id := _read(read_id, content, name, member)) is not None:
            return video_id
    return key


def _captions(content: Mapping[str, Any], member: Member | None, names: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the first of the fields `names` that has a caption, and its captions; "" and [] if none has."""
    for name in names:
        captions = _read(read_captions, content, name, member)
        if any(captions):
            return name, captions
    return "", []


def _read(reader: Callable[[Any], Any], content: Mapping[str, Any], name: str, member: Member | None) -> Any:
    try:
        return reader(content.get(name))
    except UnfitValueError as problem:
        assert member is not None
        kind = os.path.splitext(member.name)[1]
        raise _UnusableError(f"with damaged {kind}", f"member {member.name!r}: {name} {problem}") from problem


def _read_text(file: BinaryIO, shard: str, member: Member) -> str:
    if member.size > _MAX_TEXT:
        raise _UnusableError(
            "with oversized text",
            f"member {member.name!r} has {member.size} bytes, but text may have at most {_MAX_TEXT}",
        )
    try:
        return read_at(file, member.offset, member.size, shard).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _UnusableError("with damaged text", f"member {member.name!r} is not UTF-8 text: {error}") from error


def _read_json(file: BinaryIO, shard: str, member: Member) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(file, shard, member))
    except (ValueError, RecursionError) as error:
        if isinstance(error, _UnusableError):
            raise
        raise _UnusableError("with damaged .json", f"member {member.name!r} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise _UnusableError("with damaged .json", f"member {member.name!r} is not a JSON object")
    if what := unstorable(content):
        raise _UnusableError("with damaged .json", f"member {member.name!r} has {what}, which no column can store")
    return content


# --- Loading -------------------------------------------------------------------------------------------------


def load_webdataset(
    data_dir: PathLike | None,
    split: str,
    *,
    streaming: bool = False,
    shards: str | Sequence[str] | None = None,
    lazy: bool | None = None,
    damaged: str = "error",
) -> Dataset | IterableDataset:
    """WebDataset shards (.tar): samples of one video or image and .txt or .json with `caption` or `captions`.

    The members of a sample follow one another and share a key, which is the name up to the first dot of the file name.
    Captions come from `captions`, `caption` or `text` in .json, or else from .txt. Samples without captions are left
    out, unless .json has a `question` or a `label`. The id is `video_id` or `key` in .json, or else the key. It must
    be unique among all shards, except in those of `corpus prepare`, which may have several questions about a video;
    their columns of classes are a `ClassLabel` without streaming. Values are read by the rules of `folder`. Other
    fields of .json become columns. Other members are ignored, as are images beside a video.

    Streams are shuffled and shared among processes by whole shards: the number of shards should be a multiple of the
    number of processes, with several shards for each loader process.

    Args:
        data_dir: directory with SPLIT/*.tar, with SPLIT-*.tar, or with other *.tar files, which are the split "train".
        split: name of a split, or "all".
        streaming: whether to read shards during training. Otherwise the headers of all shards are read first.
        shards: names of shards within `data_dir`, instead of `split`: a pattern such as "a-{000..127}.tar" or
            "*/part-*.tar", or a list of patterns.
        lazy: whether the column `video` holds `{"path": shard, "offset": int, "size": int}` instead of encoded bytes,
            for `read_member` to read when the video is decoded. Such rows are small enough for large shuffle buffers,
            and fast to skip when training resumes. Without streaming, rows are always lazy.
        damaged: "error", or "skip" to leave out, with a warning, the rest of a shard that is damaged or truncated, and
            samples whose text is damaged or whose video has more than 2 GiB.

    Raises:
        CorpusError: the directory has no such split or shards; a shard is compressed or, unless left out, damaged; two
            samples have the same id, or none has a video and a caption. A stream raises it when it is read.
    """
    if damaged not in ("error", "skip"):
        raise CorpusError(f"damaged must be 'error' or 'skip', not {damaged!r}")
    if lazy is False and not streaming:
        raise CorpusError("without streaming=True, webdataset rows are always lazy: leave out lazy=False")
    directory = check_data_dir("webdataset", data_dir)
    paths = _find_shards(directory, split) if shards is None else matching_shards(directory, shards)
    if compressed := [path for path in paths if path.endswith(_COMPRESSED)]:
        raise CorpusError(_compressed_message(compressed[0], compressed[0].rpartition(".")[2]))
    if streaming:
        from datasets import IterableDataset

        _check_processes(len(paths))
        arguments = {"shards": paths, "lazy": bool(lazy), "damaged": damaged, "total_shards": len(paths)}
        return IterableDataset.from_generator(read_samples, gen_kwargs=arguments)
    rows: list[Row] = []
    for path in tqdm(paths, desc="Indexing shards", unit="shard", disable=None, delay=1):
        rows += read_samples([path], lazy=True, damaged=damaged)
    if not rows:
        raise CorpusError(f"no sample with a video and a caption in the {len(paths)} shards of {directory}")
    _check_ids(rows)
    return build_dataset(rows, _class_features(paths))


def _check_ids(rows: Sequence[Row]) -> None:
    shard_of: dict[str, str] = {}
    for row in rows:
        video_id, shard = row["video_id"], row["video"]["path"]
        if video_id not in shard_of:
            shard_of[video_id] = shard
            continue
        # Shards that were prepared from one split may have several questions per video.
        same = "prepared" in row and os.path.dirname(shard) == os.path.dirname(shard_of[video_id])
        if not same:
            raise CorpusError(
                f"two samples, in {shard_of[video_id]} and {shard}, have the id {video_id!r}: give them different "
                "keys, or different values of video_id in .json"
            )


def _class_features(paths: Sequence[str]) -> dict[str, Any]:
    """Returns the types of the columns of classes, if all shards were prepared with the same classes."""
    from datasets import ClassLabel

    directories = {os.path.dirname(path) for path in paths}
    classes, *others = (read_record(Path(directory) / PREPARED).get(CLASSES, {}) for directory in directories)
    if any(other != classes for other in others):
        return {}
    return {column: ClassLabel(names=names) for column, names in classes.items()}


def _is_shard(name: str) -> bool:
    return name.endswith((".tar", *_COMPRESSED)) and not name.startswith(".")


def _shards_in(directory: Path) -> list[str]:
    return sorted(os.path.join(directory, name) for name in os.listdir(directory) if _is_shard(name))


def _find_shards(directory: Path, split: str) -> list[str]:
    """Finds the shards of a split."""
    directories = sorted(path for path in directory.iterdir() if path.is_dir())
    splits = {path.name: shards for path in directories if (shards := _shards_in(path))}
    top = _shards_in(directory)
    if top and splits:
        raise CorpusError(
            f"there are shards both in {directory} ({os.path.basename(top[0])}) and in its subdirectory "
            f"{next(iter(splits))}: move them, or choose with shards="
        )
    if not top and not splits:
        raise CorpusError(f"no shards (*.tar) in {directory} or its subdirectories: check data_dir=")
    named = f"({'|'.join(re.escape(name) for name in (*_SPLIT_NAMES, split))})-"
    for path in top:
        prefix = re.match(named, os.path.basename(path))
        splits.setdefault(prefix[1] if prefix else "train", []).append(path)
    if split == "all":
        return [path for paths in splits.values() for path in paths]
    name = split if split in splits else SPLIT_ALIASES.get(split, split)
    if name not in splits:
        raise CorpusError(
            f"no shards of split {split!r} in {directory}, which should be {split}/*.tar or {split}-*.tar (splits: "
            f"{', '.join([*splits, 'all'])}){did_you_mean(split, splits)}"
        )
    return splits[name]


def matching_shards(directory: Path, patterns: str | Sequence[str]) -> list[str]:
    """Finds the shards that patterns name."""
    found: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        missing = []
        names = list(itertools.islice(_expand_braces(str(pattern)), _MAX_EXPANDED + 1))
        if len(names) > _MAX_EXPANDED:
            raise CorpusError(f"shards={pattern!r} names more than {_MAX_EXPANDED} shards")
        for name in names:
            matches = sorted(glob.glob(os.path.expanduser(name), root_dir=directory))
            if not matches:
                missing.append(name)
            found.update(dict.fromkeys(os.path.join(directory, match) for match in matches))
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise CorpusError(f"no shards {', '.join(missing[:3])}{more} in {directory}: check shards={pattern!r}")
    if not found:
        raise CorpusError("shards= is empty: leave it out to take the shards of the split")
    return list(found)


_MAX_EXPANDED = 1_000_000


def _expand_braces(pattern: str) -> Iterator[str]:
    """Expands braces like a shell: "a{0..2}{b,c}" gives a0b, a0c, a1b, ...; "{000..127}" keeps its zeros.

    Braces cannot be nested. The package `braceexpand` is not used, as it keeps all numbers of "{0..99999999}" in
    memory.
    """
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not match:
        yield pattern
        return
    first, last, listed = match.groups()
    if listed is not None:
        choices: Iterator[str] = iter(listed.split(","))
    else:
        step = 1 if int(first) <= int(last) else -1
        width = max(len(first), len(last)) if "0" in (first[:1], last[:1]) else 0
        choices = (f"{number:0{width}}" for number in range(int(first), int(last) + step, step))
    for choice in choices:
        yield from _expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])


def _check_processes(shards: int) -> None:
    """Warns if not every process of a distributed run can have its own shards, as `TrainingStream` divides them."""
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if shards < world_size and int(os.environ.get("RANK", 0)) == 0:
        logger.warning(
            "%d shards cannot be divided among %d processes: every process reads all of them and keeps every "
            "%d-th sample; pack the corpus into a multiple of %d shards",
            *(shards, world_size, world_size, world_size),
        )


def _check_workers(shards: int) -> None:
    """Warns once, in the first loader process, if some loader processes do not have a shard to read."""
    from torch.utils.data import get_worker_info

    info = get_worker_info()
    if info is None or info.id or "<workers>" in _warned or int(os.environ.get("RANK", 0)):
        return
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    # With fewer shards than processes, every process reads all of them.
    readers = info.num_workers * (1 if shards < world_size else world_size)
    if shards < readers:
        _warned.add("<workers>")
        logger.warning(
            "%d shards for %d loader processes: some of them read nothing; use fewer loader processes or pack the "
            "corpus into more shards",
            *(shards, readers),
        )

"""Re-encodes a corpus for fast training: small frames and short groups of pictures, in WebDataset shards.

Shards also hold the captions and the other columns of each row; `load_corpus("webdataset")` reads them.

Each shard is written to a temporary file, moved to its place when it is complete, and then marked as done by a report.
So a killed run resumes with the unfinished shard, and no clip is lost or duplicated. Which clips are in which shard
depends only on the rows, not on the number of processes.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import math
import os
import tarfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..files import locked, partial_of, sync_directory, sync_file, write_json
from ..processes import MEMORY, check_memory, map_in_processes
from .base import CorpusError
from .encoding import add_video_stream
from .rows import check_ids
from .videos import IMAGE_EXTENSIONS
from .webdataset import CLASSES, PREPARED, video_source

if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)

_REPORT = "report.json"
_TICKS = 90_000  # time stamps per second
_USUAL_FPS = 25  # assumed for files without time stamps


class UnreadableError(CorpusError):
    """More clips than `max_unreadable` allows cannot be decoded."""


@dataclass(frozen=True)
class PrepareOptions:
    """How clips are re-encoded.

    Args:
        short_side: length of the short side of frames, in pixels. Smaller frames keep their size.
        max_fps: maximum number of frames per second to keep, evenly spaced. None keeps all.
        num_frames: number of frames per clip to keep, evenly spaced, instead of `max_fps`. Shorter clips keep all.
        group: frames per key frame. On average, half as many are decoded to reach a frame. With 1, every frame is a
            key frame, and files are largest.
        crf: quality of x264: 0 is lossless, 18 looks lossless, and 6 more halve the size.
        clips_per_shard: the number of rows of the corpus per shard.
    """

    short_side: int = 256
    max_fps: float | None = 30
    num_frames: int | None = None
    group: int = 6
    crf: int = 23
    clips_per_shard: int = 500

    def __post_init__(self):
        for name, low, high in (
            ("short_side", 16, 4096),
            ("max_fps", 0.01, 1000),
            ("num_frames", 1, 100_000),
            ("group", 1, 1000),
            ("crf", 0, 51),
            ("clips_per_shard", 1, 10_000_000),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise CorpusError(f"{name}={value} must be between {low} and {high}")


def prepare_corpus(
    rows: Dataset,
    output_dir: str | os.PathLike[str],
    split: str = "train",
    options: PrepareOptions | None = None,
    workers: int | None = None,
    timeout: float = 1800,
    retry: bool = False,
    memory: int = MEMORY,
    max_unreadable: float = 0.1,
    horizontal_flip: bool = True,
) -> dict[str, Any]:
    """Writes `output_dir/split/*.tar`, or resumes an interrupted run with the same rows and options.

    A sample is the clip (.mp4, or .jpg for an image) and a .json with all columns of its row and, in `prepared`, its
    size, number of frames and frames per second, and the size of its source. Frames are upright; sound is left out.

    Args:
        rows: a dataset of `load_corpus`, not streamed.
        split: the name of the directory of the shards.
        options: how clips are re-encoded.
        workers: the number of processes that re-encode; by default one per core.
        timeout: time limit per clip, in seconds; a clip that takes longer is left out.
        retry: whether to write shards again that lack clips.
        memory: memory limit per clip, in bytes, on Linux; a clip that needs more is left out.
        max_unreadable: share of the clips that may be left out because they cannot be decoded; 0 for none.
        horizontal_flip: whether captions stay true when a clip is mirrored. If not, training does not mirror clips.

    Returns:
        A dictionary: `clips` and `left_out` are numbers of clips, `source_bytes` (where known) and `bytes` the sizes
        of the written clips before and after, `seconds` the time of this run, and `report` a file that also lists
        every clip that was left out and why.

    Raises:
        CorpusError: `output_dir/split` contains a corpus with other rows or options.
        UnreadableError: more clips than `max_unreadable` allows cannot be decoded, or none can. The shards that were
            written are kept.
        BlockingIOError: another run is writing there.

    Example:
        >>> train = load_corpus("msrvtt", "data/MSRVTT")
        >>> prepare_corpus(train, "data/msrvtt-small", options=PrepareOptions(short_side=128))
    """
    options = options or PrepareOptions()
    check_ids(rows, "the corpus")
    if not 0 <= max_unreadable <= 1:
        raise CorpusError(f"max_unreadable={max_unreadable} must be a share between 0 and 1")
    directory = Path(output_dir) / split
    directory.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    per_shard = options.clips_per_shard
    shards = [range(first, min(first + per_shard, len(rows))) for first in range(0, len(rows), per_shard)]
    with locked(directory):
        _check_options(directory, rows, options, horizontal_flip)
        for left in (*directory.glob("*.tar.partial"), *directory.glob(".*.partial")):  # left by killed runs
            left.unlink()
        if retry:
            for number in range(len(shards)):
                if _left_out(directory, number):
                    _report_path(directory, number).unlink()
        missing = {
            number: indices for number, indices in enumerate(shards) if not _report_path(directory, number).exists()
        }
        encoded = map_in_processes(
            partial(_encode_row, options=options),
            _rows_with_class_names(rows, itertools.chain.from_iterable(missing.values())),
            workers or os.cpu_count() or 1,
            timeout,
            _Encoded,
            preload=(__name__, "region_learner.video_decoding_region_learner"),
            memory=memory,
        )
        _write_shards(directory, shards, missing, encoded, max_left_out=max_unreadable * len(rows))
        return _report(directory, len(rows), max_unreadable) | {"seconds": time.monotonic() - start}


def _rows_with_class_names(rows: Dataset, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Yields rows with the names of classes instead of their numbers, which are meaningless without the dataset."""
    classes = _class_names(rows)
    for index in indices:
        row = rows[index]
        for column, names in classes.items():
            number = row[column]
            # -1 stands for an unknown label in `datasets`.
            row[column] = None if number is None or number < 0 else names[number]
        yield row


def _class_names(rows: Dataset) -> dict[str, list[str]]:
    return {name: kind.names for name, kind in rows.features.items() if hasattr(kind, "names")}


def _check_options(directory: Path, rows: Dataset, options: PrepareOptions, horizontal_flip: bool) -> None:
    digest = hashlib.blake2b(digest_size=16)
    for row in rows.remove_columns("video"):  # files may have been moved
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\0")
    wanted = asdict(options) | {"rows": len(rows), "contents": digest.hexdigest()}
    path = directory / PREPARED
    if not path.exists():
        ours = (".lock", partial_of(path).name)  # left by a run that was killed before it wrote anything else
        if others := [other.name for other in directory.iterdir() if other.name not in ours]:
            raise CorpusError(f"{directory} contains other files ({others[0]}): choose an empty directory")
        write_json(path, wanted | {CLASSES: _class_names(rows), "horizontal_flip": horizontal_flip})
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [f"{name} is {before.get(name)}, not {new}" for name, new in wanted.items() if before.get(name) != new]
    if changed == [f"contents is {before.get('contents')}, not {wanted['contents']}"]:
        changed = ["its ids, captions or other columns differ"]
    if changed:
        raise CorpusError(
            f"{directory} has a corpus with other rows or options ({'; '.join(changed)}): choose another directory"
        )


def _report_path(directory: Path, shard: int) -> Path:
    return directory / f"{shard:06}.json"


def _left_out(directory: Path, shard: int) -> int:
    """Returns how many clips were left out of a shard; 0 if it is not written yet."""
    path = _report_path(directory, shard)
    return len(json.loads(path.read_text(encoding="utf-8"))["left_out"]) if path.exists() else 0


def _write_shards(
    directory: Path,
    shards: Sequence[range],
    missing: Mapping[int, range],
    encoded: Generator[_Encoded, None, None],
    max_left_out: float,
) -> None:
    """Writes the shards that are missing, until more than `max_left_out` clips are left out of all."""
    total = sum(map(len, shards))
    done = total - sum(map(len, missing.values()))
    left_out = sum(_left_out(directory, number) for number in range(len(shards)))
    with closing(encoded), tqdm(total=total, initial=done, unit="clip", desc="Preparing", disable=None) as bar:
        for number, indices in missing.items():
            if left_out > max_left_out:
                break
            _write_shard(directory, number, indices, encoded, bar)
            left_out += _left_out(directory, number)


def _write_shard(directory: Path, number: int, indices: range, encoded: Iterator[_Encoded], bar: tqdm) -> None:
    path = directory / f"{number:06}.tar"
    partial = path.with_name(f"{path.name}.partial")
    report: dict[str, Any] = {"clips": 0, "left_out": [], "source_bytes": 0, "bytes": 0}
    try:
        with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
            for index in indices:
                clip = next(encoded)
                bar.update()
                if clip.reason is not None:
                    report["left_out"].append({"video_id": clip.row["video_id"], "reason": clip.reason})
                    continue
                report["clips"] += 1
                report["source_bytes"] += clip.prepared["source"].get("bytes") or 0
                report["bytes"] += len(clip.data)
                described = {name: value for name, value in clip.row.items() if name != "video"}
                _add(tar, f"{index:09}{clip.extension}", clip.data)
                text = json.dumps(described | {"prepared": clip.prepared}, ensure_ascii=False, default=str)
                _add(tar, f"{index:09}.json", text.encode())
        if report["clips"]:
            # The report, which is flushed as well, says that the shard is complete.
            sync_file(partial)
            partial.replace(path)
            sync_directory(directory)
        else:
            path.unlink(missing_ok=True)  # left by a run that was killed before it wrote its report
    finally:
        partial.unlink(missing_ok=True)
    write_json(_report_path(directory, number), report)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _report(directory: Path, rows: int, max_unreadable: float) -> dict[str, Any]:
    """Writes the report of all shards that exist, and returns what `prepare_corpus` returns."""
    paths = sorted(directory.glob("[0-9]*.json"))
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    left_out = [entry for report in reports for entry in report["left_out"]]
    sums = {name: sum(report[name] for report in reports) for name in ("clips", "source_bytes", "bytes")}
    path = directory / _REPORT
    write_json(path, sums | {"left_out": left_out})
    names = ", ".join(str(entry["video_id"]) for entry in left_out[:10]) + ", ..." * (len(left_out) > 10)
    first = left_out[0]["reason"] if left_out else ""
    told = f"{names} (listed in {path}; the first: {first})"
    if not sums["clips"]:
        raise UnreadableError(f"none of the clips could be read{f': {told}' if left_out else ''}")
    count = "1 clip" if len(left_out) == 1 else f"{len(left_out)} clips"
    if len(left_out) > max_unreadable * rows:
        raise UnreadableError(
            f"{count} of {rows} cannot be read, more than max_unreadable={max_unreadable:g} allows: {told}. Repair "
            "them and try again (--retry), or allow more (--max-unreadable)."
        )
    if left_out:
        logger.warning("%s of %d left out: %s. Use --retry to try them again.", count, rows, told)
    return sums | {"left_out": len(left_out), "report": str(path)}


# --- Encoding --------------------------------------------------------------------------------------------------------


@dataclass
class _Encoded:
    row: dict[str, Any]
    reason: str | None = None  # why it is left out
    data: bytes = b""
    extension: str = ".mp4"
    prepared: dict[str, Any] = field(default_factory=dict)


def _encode_row(row: dict[str, Any], options: PrepareOptions) -> _Encoded:
    import av

    from ..video_decoding_region_learner import VideoDecodeError

    video, row = row["video"], row | {"video": None}
    try:
        source = video_source(video)
        is_image = isinstance(video, str) and video.lower().endswith(IMAGE_EXTENSIONS)
        extension, data, prepared = encode_clip(source, options, is_image=is_image)
    except (CorpusError, VideoDecodeError, OSError) as error:
        check_memory(error)
        return _Encoded(row, str(error))
    except MemoryError:
        raise
    except av.error.FFmpegError as error:
        return _Encoded(row, f"{row['video_id']}: cannot be encoded: {error.strerror}")
    except Exception as error:  # a single row out of millions must not end every run
        return _Encoded(row, f"{row['video_id']}: {type(error).__name__}: {error}")
    prepared["source"]["bytes"] = _size(source)
    return _Encoded(row, None, data, extension, prepared)


def _size(source: Any) -> int | None:
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes | bytearray | memoryview):
        return len(source)
    try:
        return os.path.getsize(source)
    except (OSError, TypeError):
        return None  # a URL


def encode_clip(source: Any, options: PrepareOptions, is_image: bool = False) -> tuple[str, bytes, dict[str, Any]]:
    """Re-encodes one clip.

    Args:
        source: what `read_clip` takes.
        is_image: whether to write a JPEG file, unless the source turns out to be an animation.

    Returns:
        The extension, the content of the file, and its properties: `width`, `height`, `frames`, mean `fps` (None for a
        single frame), and `source` with the `width` and `height` of the source.

    Raises:
        VideoDecodeError: the source cannot be decoded to its end.
    """
    original: list[tuple[int, int]] = []

    def scaled(height: int, width: int) -> tuple[int, int]:
        if not original:
            original.append((height, width))
        return _scaled(height, width, options.short_side)

    frames = _frames(source, options, scaled)
    first = list(itertools.islice(frames, 2)) if is_image else []
    is_image = len(first) == 1  # and not an animated PNG or WebP
    if is_image:
        image = first[0][0]
        data, count, last = _jpeg(image), 1, 0.0
    else:
        frames = itertools.chain(first, frames)
        data, count, last, image = _encode(frames, options)
    fps = (count - 1) / last if last else None
    prepared: dict[str, Any] = {"width": image.shape[1], "height": image.shape[0], "frames": count, "fps": fps}
    prepared["source"] = {"width": original[0][1], "height": original[0][0]}
    return ".jpg" if is_image else ".mp4", data, prepared


def _scaled(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Scales height and width so that the short side is at most `short_side`. Both are even, as H.264 requires."""
    scale = min(1.0, short_side / min(height, width))
    return max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2))


def _frames(
    source: Any, options: PrepareOptions, scaled: Callable[[int, int], tuple[int, int]]
) -> Iterator[tuple[np.ndarray, float]]:
    """Yields the frames to keep, scaled, and their times in seconds."""
    from ..video_decoding_region_learner import Scale, iterate_frames, read_clip

    if options.num_frames is not None:
        clip, metadata = read_clip(source, partial(_spread, count=options.num_frames), Scale(scaled), exact=True)
        # The duration that the file states may be that of its sound. An image has no end.
        step = (getattr(metadata, "end", None) or metadata.duration or len(clip) / _USUAL_FPS) / len(clip)
        for number, frame in enumerate(clip):
            yield frame, number * step
        return
    frames = iterate_frames(source, Scale(scaled))
    head: list[tuple[np.ndarray, float | None]] = []
    for image, at in frames:
        head.append((image, at))
        if len(head) == _HEAD or (len(head) >= _LEAST and len(head) * image.nbytes > _HEAD_BYTES):
            break
    rate = None
    if _are_unordered([at for _, at in head]):  # as in AVI, which has the time stamps of packets
        rate = read_clip(source, lambda metadata: [0], Scale(scaled))[1].fps
    first, slot = None, -1
    last, step, shift = -math.inf, 1 / _USUAL_FPS, 0.0
    for number, (image, at) in enumerate(itertools.chain(head, frames)):
        at = number / rate if rate else at
        moment = shift + (number / _USUAL_FPS if at is None else at)
        if moment < last:  # time stamps restart
            shift += last + step - moment
            moment = last + step
        elif number:
            step = moment - last
        last = moment
        first = moment if first is None else first
        if options.max_fps is not None:
            # One frame per 1 / max_fps seconds, with a tolerance of half a millisecond, as time stamps are rounded.
            before, slot = slot, math.floor((moment - first + 5e-4) * options.max_fps)
            if slot == before:
                continue
        yield image, moment


# So many first frames, or fewer if they are large, tell whether the time stamps are those of the frames.
_HEAD, _LEAST, _HEAD_BYTES = 64, 8, 2**26


def _are_unordered(times: list[float | None]) -> bool:
    """Returns whether times go back by less than a second, unlike where they restart."""
    known = [at for at in times if at is not None]
    return any(0 < before - after < 1 for before, after in itertools.pairwise(known))


def _spread(metadata: Any, count: int) -> list[int]:
    """Returns the middles of `count` equal segments."""
    total = metadata.total_num_frames
    count = min(count, total)
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


def _jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=92)
    return file.getvalue()


def _encode(
    frames: Iterator[tuple[np.ndarray, float]], options: PrepareOptions
) -> tuple[bytes, int, float, np.ndarray]:
    """Returns an MP4 file, the number of its frames, the time of the last one, and the last frame."""
    import av

    file = io.BytesIO()
    count, stamp = 0, -1
    first = 0.0
    with av.open(file, "w", format="mp4") as container:
        stream = None
        for image, at in frames:
            if stream is None:
                stream = add_video_stream(container, options=_x264(options))
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.codec_context.time_base = stream.time_base = Fraction(1, _TICKS)
                first = at
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            stamp = max(stamp + 1, round((at - first) * _TICKS))  # time stamps must increase
            frame.pts, frame.time_base = stamp, Fraction(1, _TICKS)
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode())
    return file.getvalue(), count, stamp / _TICKS, image


def _x264(options: PrepareOptions) -> dict[str, str]:
    """Returns options of x264 for fast random access.

    Without B-frames and scene cuts, at most one group is decoded to reach a frame. Features that are slow to decode
    (arithmetic coding, deblocking) are turned off, which makes files a tenth larger.
    """
    group = str(options.group)
    fixed = {"preset": "fast", "tune": "fastdecode", "bf": "0", "sc_threshold": "0"}
    return fixed | {"crf": str(options.crf), "g": group, "keyint_min": group}

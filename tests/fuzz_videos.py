"""
Reads damaged videos, one after another, in a process that they may crash.

    python -m tests.fuzz_videos DIRECTORY FIRST LAST

DIRECTORY contains undamaged videos. Cases FIRST to LAST - 1 are made from them in turn, each with its own random seed.
For each case, one line says which case starts, and a line of JSON gives its result. After a crash or a hang, which
ends the process, the last line therefore names the case.
"""

import hashlib
import json
import logging
import re
import signal
import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from region_learner.video_decoding_region_learner import VideoDecodeError, any_metadata, read_clip

SECONDS = 20  # of CPU time, for one case
STUCK = 300  # seconds of wall-clock time for one case: other work may keep the CPU busy
MEMORY = 2**30  # bytes that reading may add to the process

Digest = tuple[tuple[int, ...], str]  # the shape of a frame, and a hash

PICTURES = (".jpg", ".png", ".webp", ".tif", ".avif")
EXTREMES = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0", b"\0\0\0\1", b"\xff\xff\xff\x7f")


def flip(data: bytearray, rng: np.random.Generator):
    for _ in range(rng.choice([1, 4, 32])):
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)


def truncate(data: bytearray, rng: np.random.Generator):
    del data[rng.integers(1, len(data)) :]


def lie(data: bytearray, rng: np.random.Generator):
    """Writes absurd sizes, numbers and durations near the beginning or the end, where headers are."""
    for _ in range(rng.choice([1, 3])):
        region = min(4096, len(data) - 8)
        at = int(rng.integers(region)) + (len(data) - 8 - region if rng.random() < 0.5 else 0)
        data[at : at + 4] = EXTREMES[rng.integers(len(EXTREMES))]


def boxes(data: bytes, start: int, end: int) -> list[tuple[int, int]]:
    """Returns where each of the consecutive MP4 boxes of a range begins and ends."""
    found = []
    while start + 8 <= end:
        size = int.from_bytes(data[start : start + 4], "big")
        if not 8 <= size <= end - start:
            break
        found.append((start, start + size))
        start += size
    return found


def swap(data: bytearray, rng: np.random.Generator):
    """Swaps two MP4 boxes, at the top level or within another box, or two pieces of another container."""
    chosen = boxes(bytes(data), 0, len(data))
    while chosen and rng.random() < 0.7:
        start, end = chosen[rng.integers(len(chosen))]
        inner = boxes(bytes(data), start + 8, end)
        if len(inner) < 2:
            break
        chosen = inner
    if len(chosen) < 2:
        size = int(rng.integers(16, min(512, len(data) // 2)))
        first = int(rng.integers(len(data) - 2 * size + 1))
        second = int(rng.integers(first + size, len(data) - size + 1))
        chosen = [(first, first + size), (second, second + size)]
    (a, b), (c, d) = (chosen[i] for i in sorted(rng.choice(len(chosen), 2, replace=False)))
    data[a:d] = data[c:d] + data[b:c] + data[a:b]


def remove(data: bytearray, rng: np.random.Generator):
    at = int(rng.integers(len(data)))
    del data[at : at + int(rng.integers(1, 300))]


def blank(data: bytearray, rng: np.random.Generator):
    at = int(rng.integers(len(data)))
    piece = len(data[at : at + int(rng.integers(1, 2000))])
    data[at : at + piece] = bytes(piece)


MUTATIONS = (flip, flip, truncate, lie, lie, swap, remove, blank)


def intact_frames(path: Path, skip: str = "DEFAULT") -> set[Digest]:
    """
    Returns digests of the frames that plainly decoding the whole file gives. After damage, decoding continues at the
    next key frame. With `skip="NONREF"`, only frames that others refer to are decoded, and damage to the rest is not
    noticed.
    """
    digests = set()
    if path.suffix in PICTURES:
        try:
            return {digest(np.array(Image.open(path).convert("RGB")))}
        except UnidentifiedImageError:  # FFmpeg may read it, with different rounding
            pass
        except Exception:  # Pillow raises all kinds of errors on damaged files
            return digests
    try:
        container = av.open(str(path), **any_metadata())
    except av.error.FFmpegError:
        return digests
    with container:
        cover = av.stream.Disposition.attached_pic
        stream = next(stream for stream in container.streams.video if not stream.disposition & cover)
        stream.codec_context.options = {"err_detect": "explode"}
        stream.codec_context.thread_count = 1
        stream.codec_context.skip_frame = skip
        damaged = False
        try:
            for packet in container.demux(stream):
                if damaged and not packet.is_keyframe:
                    continue
                damaged = False
                frames = decoded(packet)
                if frames is None:
                    damaged = True
                    frames = decoded(stream.codec_context) or []  # frames held back for reordering
                    stream.codec_context.flush_buffers()
                for frame in frames:
                    if not frame.is_corrupt:
                        digests.add(digest(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))))
        except av.error.FFmpegError:
            pass
    return digests


def decoded(what) -> list | None:
    """Returns the frames of a packet, or those that a decoder still holds. Returns None if it finds damage."""
    errors = av.logging.get_last_error()[0]
    try:
        frames = what.decode()
    except av.error.FFmpegError:
        return None
    return frames if av.logging.get_last_error()[0] == errors else None


def digest(image: np.ndarray) -> Digest:
    return image.shape, hashlib.blake2b(np.ascontiguousarray(image).tobytes()).hexdigest()


def is_of(image: np.ndarray, whole: set[Digest]) -> bool:
    """Returns whether a frame is in `whole`, rotated or mirrored in any way: the orientation may be damaged, too."""
    turned = (np.rot90(form, turns) for form in (image, image[::-1]) for turns in range(4))
    return any(digest(form) in whole for form in turned)


def read_damaged(path: Path, whole: set[Digest], rng: np.random.Generator) -> dict:
    """Reads some frames and reports on them or on the error. `whole` has the digests of the undamaged frames."""

    def choose(metadata):
        return sorted(rng.integers(metadata.total_num_frames, size=4).tolist())

    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(STUCK)
    try:
        clip, _ = read_clip(path, choose)
    except VideoDecodeError as error:
        return {"error": str(error)}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    # Decoders miss some damage, and what they then return depends on where they began, so it cannot be checked.
    noticed = intact_frames(path) <= whole and intact_frames(path, "NONREF") <= whole
    invented = sum(not is_of(image, whole) for image in clip) if noticed else None
    # No frame of the sources is black.
    return {"frames": len(clip), "invented": invented, "black": sum(int(image.max()) < 8 for image in clip)}


def peak() -> int:
    """Returns the peak memory of the process in bytes. (`getrusage` would include the peak of the parent.)"""
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])


def main():
    directory, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    sources = sorted(path for path in directory.iterdir() if path.is_file())
    damaged = directory / "damaged"
    damaged.mkdir(exist_ok=True)
    whole: dict[Path, set[Digest]] = {}
    av.logging.set_level(av.logging.ERROR)  # so that errors are counted
    logging.getLogger("libav").setLevel(logging.CRITICAL + 1)
    before = peak()
    for case in range(first, last):
        rng = np.random.default_rng(case)
        source = sources[case % len(sources)]
        mutate = MUTATIONS[rng.integers(len(MUTATIONS))]
        data = bytearray(source.read_bytes())
        mutate(data, rng)
        path = damaged / f"{case}-{source.name}"
        path.write_bytes(data)
        print(json.dumps({"case": case, "source": source.name, "mutation": mutate.__name__}), flush=True)
        if source not in whole:
            whole[source] = intact_frames(source)
        result = read_damaged(path, whole[source], rng)
        print(json.dumps({"case": case, "memory": peak() - before} | result), flush=True)
        path.unlink()


if __name__ == "__main__":
    main()

"""
Measures clips per second from video files, compared with transformers' video loader, decord and torchcodec.

    python benchmarks/decoding.py [DIRECTORY ...] [--frames 8] [--repeats 3] [--no-rivals] [--json FILE]

Each implementation reads the middle frame of each of 8 equal segments of a clip, resized and cropped to 224 x 224, in
uint8, as loader processes pass them on. Frames of the alternatives are resized by the same code as ours. The "scaling"
variants scale large frames to our size while they decode, which saves them much work. The directories contain videos;
without a directory, clips are generated (H.264 with the defaults of x264, 256p and 1080p). The alternatives are
installed into build/rivals. torchcodec needs FFmpeg's shared libraries on the system; an implementation that cannot be
loaded is reported and left out.

Every implementation runs in its own process, all on the same core and with one thread. They take turns clip by clip,
and only one works at a time. Times are CPU times of all threads (medians over repetitions, summed over clips), so that
other work on the machine matters little. Frames are compared before times: our frames must be bit-for-bit the same as
when the whole file is decoded. The frames of the alternatives are compared with ours, in levels of 255, because color
conversions differ.

"frames" counts "all" frames; the frames "between" a key frame and a wanted frame, which the alternatives decode; the
frames that are "needed", because they are wanted or referenced by another frame; and the frames "decoded" by our
reader.

"torchcodec CUDA" decodes, resizes and crops on a GPU. It is measured if there is one, in wall-clock time, because CPU
time would leave out the work of the GPU.

"prepared" is our reader on the same clips from shards made by `region-learner corpus prepare`, with at most 30 frames
per second and a short side of 256, so the frames are not the same.

"keyframes" is our reader with `sampling="keyframes"`, compared with our reader on random frames, as in training. It
reads other frames, and the output says how far they are from the random frames.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from measuring import about, described

RIVALS = Path(__file__).parent.parent / "build" / "rivals"
SCALING = ("decord scaling", "torchcodec scaling")
ON_GPU = "torchcodec CUDA"
NAMES = ("ours", "transformers", "decord", "torchcodec", "torchcodec approximate", *SCALING, ON_GPU)
OURS = ("ours", "prepared", "random", "keyframes")
EXTENSIONS = (".mp4", ".webm", ".mkv", ".avi", ".mov")


def middle_frames(total: int, frames: int) -> list[int]:
    """Returns the indices of the middle frames of equal segments."""
    borders = np.floor(np.linspace(0, total, min(frames, total) + 1)).astype(int)
    chosen = ((borders[:-1] + borders[1:] - 1) // 2).tolist()
    return chosen + chosen[-1:] * (frames - len(chosen))


# --- Implementations: each reads the wanted frames of a path, uint8 (T, height, width, 3) ----------------------------


def read_ours(path: str, frames: int) -> np.ndarray:
    from region_learner.video_decoding_region_learner import read_clip

    return read_clip(path, lambda metadata: middle_frames(metadata.total_num_frames, frames))[0]


def read_transformers(path: str, frames: int) -> np.ndarray:
    from transformers.video_utils import load_video

    def choose(metadata, **kwargs):
        return np.array(middle_frames(metadata.total_num_frames, frames))

    return np.asarray(load_video(path, backend="pyav", sample_indices_fn=choose)[0])


def read_decord(path: str, frames: int, size: tuple[int, int] | None = None) -> np.ndarray:
    import decord

    height, width = size or (-1, -1)
    reader = decord.VideoReader(path, num_threads=1, height=height, width=width)
    return reader.get_batch(middle_frames(len(reader), frames)).asnumpy()


def read_torchcodec(path: str, frames: int, seek_mode: str, size: tuple[int, int] | None = None) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder
    from torchvision.transforms import v2

    transforms = [v2.Resize(size)] if size else None
    decoder = VideoDecoder(
        path, num_ffmpeg_threads=1, seek_mode=seek_mode, dimension_order="NHWC", transforms=transforms
    )
    return decoder.get_frames_at(middle_frames(len(decoder), frames)).data.numpy()


def read_torchcodec_on_gpu(path: str, frames: int) -> torch.Tensor:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, dimension_order="NHWC", device="cuda")
    return decoder.get_frames_at(middle_frames(len(decoder), frames)).data


READERS: dict[str, Any] = {
    "ours": read_ours,
    "transformers": read_transformers,
    "decord": read_decord,
    "torchcodec": partial(read_torchcodec, seek_mode="exact"),
    "torchcodec approximate": partial(read_torchcodec, seek_mode="approximate"),
    "decord scaling": read_decord,
    "torchcodec scaling": partial(read_torchcodec, seek_mode="exact"),
    ON_GPU: read_torchcodec_on_gpu,
}


def scaled_size(processor: Any, path: str) -> tuple[int, int] | None:
    """Returns the size that our reader scales frames to while it decodes; None if it does not scale them."""
    import av

    with av.open(path) as container:
        size = container.streams.video[0].height, container.streams.video[0].width
    scaled = processor.scale_while_decoding({}).size_for(*size)
    return None if scaled == size else scaled


def serve(name: str, frames: int, connection) -> None:
    """Runs in its own process: receives paths, and sends back seconds, with the frames if they are asked for."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    if name not in OURS:
        sys.path.append(str(RIVALS))
    from region_learner import RegionLearnerVideoProcessor
    from region_learner.corpora.webdataset import video_source

    sampling = "keyframes" if name == "keyframes" else "segments"
    processor = RegionLearnerVideoProcessor(num_frames=frames, sampling=sampling)
    raw = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    while (task := connection.recv()) is not None:
        video, with_frames = task
        try:
            torch.manual_seed(0)
            how = {"size": scaled_size(processor, video)} if name in SCALING else {}
            clock = time.perf_counter if name == ON_GPU else time.process_time
            start = clock()
            if name in OURS:
                processor(video_source(video), training=name in ("random", "keyframes"), **raw)
            else:
                clip = torch.as_tensor(READERS[name](video, frames, **how)).permute(0, 3, 1, 2)
                processor(clip, do_sample_frames=False, **raw)
            if name == ON_GPU:
                torch.cuda.synchronize()
            seconds = clock() - start
            read = torch.as_tensor(READERS[name](video, frames)) if with_frames and name in READERS else None
            connection.send((seconds, None if read is None else read.cpu().numpy()))
        except Exception as error:
            connection.send((None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))


# --- Frames that have to be decoded ----------------------------------------------------------------------------------


def count_frames(path: str, frames: int) -> dict[str, int]:
    """Returns how many frames lie between key frames and wanted ones, how many are needed, and how many we decode."""
    import av

    from region_learner import video_decoding_region_learner as module

    with av.open(path) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        order, keys = [packet.pts for packet in packets], [packet.is_keyframe for packet in packets]
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.skip_frame = "NONREF"
        referred = {frame.pts for frame in container.decode(stream)}
    times = sorted(order)
    wanted = {times[index] for index in middle_frames(len(times), frames)}
    between = needed = 0
    start = 0
    for end in [*(i for i, key in enumerate(keys) if key and i), len(order)]:
        group = order[start:end]
        last = max((i for i, time in enumerate(group) if time in wanted), default=-1)
        between += last + 1
        needed += sum(time in referred or time in wanted for time in group[: last + 1])
        start = end

    decoded = 0

    def counted(*args, original=module._decode_from):
        nonlocal decoded
        for frame in original(*args):
            decoded += 1
            yield frame

    original = module._decode_from
    module._decode_from = counted
    try:
        read_ours(path, frames)
    finally:
        module._decode_from = original
    return {"all": len(order), "between": between, "needed": needed, "decoded": decoded}


def whole_file(path: str, frames: int) -> np.ndarray:
    """Decodes all frames and returns the wanted ones."""
    import av

    with av.open(path) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack([every[index] for index in middle_frames(len(every), frames)])


def moved_by(path: str, frames: int) -> tuple[float, float]:
    """Returns the mean distance of key frames from random frames, in frames and as a share of a segment."""
    from region_learner import RegionLearnerVideoProcessor

    chosen = []
    for sampling in ("segments", "keyframes"):
        torch.manual_seed(0)
        processor = RegionLearnerVideoProcessor(num_frames=frames, sampling=sampling)
        _, metadata = processor.decode(path, training=True)
        chosen.append(np.array(metadata.frames_indices))
    distance = np.abs(chosen[0] - chosen[1]).mean()
    return float(distance), float(distance * frames / metadata.total_num_frames)


# --- Clips ---------------------------------------------------------------------------------------------------------


def make_clips(directory: Path, height: int, count: int) -> None:
    """Writes clips of scrolling noise and a moving square: 10 s at 30 fps, H.264 with the defaults of x264."""
    import av
    from PIL import Image

    directory.mkdir()
    width = height * 8 // 9 * 2
    for number in range(count):
        rng = np.random.default_rng(number)
        wall = sum(
            np.asarray(Image.fromarray(rng.integers(0, 256, (n, 2 * n, 3), np.uint8)).resize((2 * width, height)), int)
            for n in (4, 16, 64)
        )
        with av.open(str(directory / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=30)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for i in range(300):
                left = i * width // 300
                image = (wall[:, left : left + width] // 3).astype(np.uint8)
                x, y = int(width * (0.5 + 0.4 * np.sin(i / 20))), int(height * (0.5 + 0.4 * np.cos(i / 33)))
                image[max(y - height // 8, 0) : y + height // 8, max(x - height // 8, 0) : x + height // 8] = 30
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())


def videos_in(directory: Path, at_most: int | None = None) -> list[str]:
    videos = sorted(str(path) for path in directory.resolve().rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not videos:
        raise SystemExit(f"no videos in {directory}")
    return videos[:at_most]


def prepare(paths: list[str], directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prepares the clips as shards. Returns the `video` of each path in them, and the summary of `prepare_corpus`."""
    from datasets import Dataset

    from region_learner import load_corpus
    from region_learner.corpora import prepare_corpus

    rows = [{"video": path, "video_id": path, "captions": ["a clip"]} for path in paths]
    summary = prepare_corpus(Dataset.from_list(rows), directory)
    return {row["video_id"]: row["video"] for row in load_corpus("webdataset", directory)}, summary


def install_rivals() -> None:
    if not RIVALS.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(RIVALS)]
        subprocess.run([*command, "decord", "torchcodec"], check=True)


# --- The run ---------------------------------------------------------------------------------------------------------


def measure(
    paths: list[str], prepared: dict[str, Any], names: list[str], frames: int, repeats: int
) -> tuple[dict[str, Any], list[str]]:
    """Returns the seconds of each implementation (clips, repeats), how far its frames are from ours, and notes."""
    context = get_context("spawn")
    connections, processes = {}, []
    for name in names:
        connections[name], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(name, frames, theirs), daemon=True))
        processes[-1].start()
    notes: list[str] = []
    seconds: dict[str, list[list[float]]] = {name: [] for name in names}
    differences: dict[str, list[float]] = {name: [] for name in names}

    def ask(name: str, path: str, with_frames: bool = False):
        connections[name].send((prepared[path] if name == "prepared" else path, with_frames))
        elapsed, answer = connections[name].recv()
        if elapsed is None:
            notes.append(f"{name} is left out: {answer} ({path})")
            connections.pop(name).send(None)
            seconds.pop(name)
            differences.pop(name)
        return elapsed, answer

    for path in paths:
        ours = None
        for name in list(connections):  # not timed: this imports modules and caches the file
            elapsed, clip = ask(name, path, True)
            if elapsed is None:
                continue
            if name == "ours":
                ours = clip
                if not np.array_equal(clip, whole_file(path, frames)):
                    raise SystemExit(f"{path}: our frames differ from the frames that decoding the whole file gives")
            elif name not in OURS and ours is not None:
                differences[name].append(float(np.abs(clip.astype(int) - ours.astype(int)).mean()))
            seconds[name].append([])
    for repeat in range(repeats):
        for number, path in enumerate(paths):
            order = list(connections)
            for name in order[repeat % len(order) :] + order[: repeat % len(order)]:
                elapsed, _ = ask(name, path)
                if elapsed is not None:
                    seconds[name][number].append(elapsed)
    for connection in connections.values():
        connection.send(None)
    for process in processes:
        process.join(10)
    return {name: {"seconds": seconds[name], "difference": differences[name]} for name in seconds}, notes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="*", type=Path)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clips", type=int, help="maximum number of clips per directory")
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.no_rivals:
        install_rivals()
    sys.path.append(str(RIVALS))  # for their versions only: our own processes start without them
    where = about("cuda" if torch.cuda.is_available() else "cpu", "av", "decord", "torchcodec")
    sys.path.remove(str(RIVALS))
    print(f"{described(where)}\nEach implementation uses one core and one thread.")
    results = []
    with tempfile.TemporaryDirectory() as made:
        directories = options.directories
        if not directories:
            print("Making clips ...")
            directories = [Path(made) / name for name in ("256p", "1080p")]
            make_clips(directories[0], 256, 12)
            make_clips(directories[1], 1080, 3)
        for directory in directories:
            results.append(compare(directory, options))
    if options.json:
        options.json.write_text(json.dumps({"about": where, "rows": results}, indent=2) + "\n")


def compare(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    paths = videos_in(directory, options.clips)
    names = list(OURS) if options.no_rivals else [*NAMES, *OURS[1:]]
    if not torch.cuda.is_available() and ON_GPU in names:
        names.remove(ON_GPU)
    with tempfile.TemporaryDirectory() as shards:
        prepared, summary = prepare(paths, Path(shards))
        measured, notes = measure(paths, prepared, names, options.frames, options.repeats)
    totals = {name: sum(statistics.median(times) for times in result["seconds"]) for name, result in measured.items()}
    rivals = {name: total for name, total in totals.items() if name in NAMES and name not in ("ours", ON_GPU)}
    print(f"\n{directory.name}: {len(paths)} clips, {options.frames} frames each")
    print(f"{'':24} | {'clips/s':>8} | {'of ours':>8} | {'frames differ by':>16}")
    for name in (name for name in NAMES if name in totals):
        difference = measured[name]["difference"]
        apart = f"{statistics.mean(difference):.3f} levels" if difference else "exact"
        print(f"{name:24} | {len(paths) / totals[name]:8.2f} | {totals['ours'] / totals[name]:8.2f} | {apart:>16}")
    if rivals:
        best = min(rivals, key=lambda name: rivals[name])
        print(f"ours is {rivals[best] / totals['ours']:.2f} times as fast as the best of the others, {best}")
        ratio = rivals[best] / totals["prepared"]
        print(f"with prepared clips, ours is {ratio:.1f} times as fast as {best} on the original clips")
    space = summary["bytes"] / summary["source_bytes"]
    print(
        f"prepared: {len(paths) / totals['prepared']:.1f} clips/s, in {space:.2f} of the space, made at "
        f"{summary['clips'] / summary['seconds']:.2f} clips/s in {os.cpu_count()} processes"
    )
    counts = [count_frames(path, options.frames) for path in paths]
    frames = {name: sum(count[name] for count in counts) for name in counts[0]}
    print(f"frames: {', '.join(f'{count:,} {name}' for name, count in frames.items())}")
    moved = [moved_by(path, options.frames) for path in paths]
    distance, share = (statistics.mean(values) for values in zip(*moved))
    print(
        f'sampling="keyframes" is {totals["random"] / totals["keyframes"]:.2f} times as fast as random frames. Its '
        f"frames are {distance:.1f} frames ({100 * share:.0f} % of a segment) away from random ones, on average."
    )
    for note in notes:
        print(note)
    return {
        "directory": directory.name,
        "clips": len(paths),
        "clips_per_second": {name: len(paths) / total for name, total in totals.items()},
        "frames": frames,
        "prepared": {name: summary[name] for name in ("bytes", "source_bytes", "seconds")},
        "keyframes_move_by": {"frames": distance, "share_of_a_segment": share},
        "notes": notes,
    }


if __name__ == "__main__":
    main()

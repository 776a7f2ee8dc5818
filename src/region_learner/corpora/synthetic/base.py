"""Code that the synthetic corpora share: options, scenes, writing and loading.

A synthetic corpus is described by a `SyntheticCorpus`. Its clips show *scenes*.

- A scene is the multiset of descriptions of what a clip shows. No scene occurs twice. A hash of the scene alone
  decides in which of train, val and test it may occur, so splits stay disjoint even across corpora of different sizes
  and seeds.
- Clip `i` of a split depends only on the seed, the split and `i`, not on the number of workers.

On disk, a corpus is a folder of videos (see `folder.py`) with label maps and, written last, `corpus.json`:

    DIR/corpus.json
    DIR/SPLIT/metadata.jsonl
    DIR/SPLIT/clips/<video_id>.mp4
    DIR/SPLIT/masks/<video_id>.npz
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm.auto import tqdm

from ...configuration_region_learner import did_you_mean
from ...files import locked
from ..base import CorpusError, PathLike, Row, check_options, check_split, read_record
from ..encoding import available_codec, write_video
from ..folder import read_split
from ..videos import drop_missing

logger = logging.getLogger(__name__)

# Scenes are distributed among these three; other splits of a corpus may have any scene.
_HOME_SPLITS = ("train", "val", "test")


# --- Description of a corpus ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SyntheticOptions:
    """The options of a corpus. Two corpora with equal options are equal.

    Options with two numbers are ranges (least, most), both included, from which a value is drawn for every clip. They
    can also be set to a single number.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    least_frames: ClassVar[int] = 1
    added: ClassVar[tuple[str, ...]] = ()  # options that older versions did not have

    train: int = 2000  # clips in the split; 0 leaves the split out
    val: int = 200
    test: int = 200
    seed: int = 0
    size: int = 96  # width and height in pixels; even, as H.264 with 4:2:0 colour requires
    frames: int = 16
    fps: float = 8.0
    captions: int = 4  # per clip, 1 to 10

    def __post_init__(self) -> None:
        for name in self.splits:
            _check_integer(name, getattr(self, name), 0, 1_000_000)
        _check_integer("seed", self.seed, 0, 2**32 - 1)
        _check_integer("size", self.size, 48, 1024)
        if self.size % 2:
            raise CorpusError(f"size must be even, as H.264 requires, not {self.size}")
        _check_integer("frames", self.frames, self.least_frames, 1000)
        if not isinstance(self.fps, int | float) or not 0 < self.fps <= 120:
            raise CorpusError(f"fps must be above 0 and at most 120, not {self.fps!r}")
        object.__setattr__(self, "fps", float(self.fps))
        _check_integer("captions", self.captions, 1, 10)

    def check_range(self, name: str, least: int, most: int) -> None:
        """Checks that an option is (least, most) or a single number, and makes it a pair."""
        value = getattr(self, name)
        pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
        for bound in pair:
            _check_integer(name, bound, least, most)
        if len(pair) != 2 or pair[0] > pair[1]:
            raise CorpusError(f"{name} must be a number or (least, most), not {value!r}")
        object.__setattr__(self, name, pair)

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    def draw(self, name: str, rng: np.random.Generator) -> int:
        """Draws a number from the range `name`."""
        least, most = getattr(self, name)
        return int(rng.integers(least, most + 1))


def _check_integer(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise CorpusError(f"{name} must be an integer from {least} to {most}, not {value!r}")


@dataclass
class Clip:
    """A clip before it is encoded."""

    captions: list[str]  # all different, all true
    frames: np.ndarray  # (T, H, W, 3) uint8
    masks: np.ndarray  # (T, H, W) uint8: 0, or n where the n-th object of the scene is visible


@dataclass(frozen=True)
class SyntheticCorpus:
    """A corpus and how its clips are made. A scene is a tuple of dataclass instances that can be sorted."""

    name: str  # in `load_corpus` and `make_NAME`
    format: int  # increase it whenever drawings or captions change
    options: type[Any]  # a dataclass derived from `SyntheticOptions`
    things: str  # what scenes consist of; also the option that sets how many
    draw_scene: Callable[[Any, str, np.random.Generator], tuple[Any, ...]]  # options, split -> a scene
    make_clip: Callable[[Any, Any, np.random.Generator], Clip]  # scene, options -> its clip
    info: Mapping[str, Any] = field(default_factory=dict)  # additional content of `corpus.json`

    @property
    def title(self) -> str:
        return self.name.replace("_", " ")

    @property
    def option_names(self) -> list[str]:
        return [option.name for option in dataclasses.fields(self.options)]

    def read_options(self, options: Mapping[str, Any]) -> Any:
        """Returns an instance of `options`."""
        check_options(self.name, options, self.option_names)
        return self.options(**options)


def check_task(corpus: SyntheticCorpus, task: str, tasks: Sequence[str], negative_captions: bool) -> None:
    """Checks that `task` is a task of a corpus, and that negative captions are only requested for retrieval."""
    if task not in tasks:
        raise CorpusError(
            f"unknown task {task!r} of {corpus.name} (tasks: {', '.join(tasks)}){did_you_mean(str(task), tasks)}"
        )
    if negative_captions and task != "retrieval":
        raise CorpusError(f"negative_captions are for the task 'retrieval', not {task!r}: leave one of the two out")


# --- Scenes and captions -------------------------------------------------------------------------------------


def pick(rng: np.random.Generator, items: Sequence[Any]) -> Any:
    """Returns a random item."""
    return items[int(rng.integers(len(items)))]


def plan_scenes(corpus: SyntheticCorpus, options: Any, split: str) -> list[Any]:
    """Draws the scenes of a split, all different, in the order of its clips."""
    scenes, taken = [], set()
    for index in range(getattr(options, split)):
        rng = _rng(options, split, index, purpose=0)
        for _ in range(1000):
            scene = corpus.draw_scene(options, split, rng)
            multiset = tuple(sorted(scene))
            if multiset not in taken and (split not in _HOME_SPLITS or split == _home_split(multiset)):
                break
        else:
            least, most = getattr(options, corpus.things)
            raise CorpusError(
                f"no {index + 1} different scenes of {least} to {most} {corpus.things} found for split {split!r}: "
                f"ask for fewer clips or more {corpus.things}"
            )
        taken.add(multiset)
        scenes.append(scene)
    return scenes


def _rng(options: Any, split: str, index: int, purpose: int) -> np.random.Generator:
    """Returns the random generator of one clip: stream 0 for its scene, stream 1 for its frames and captions."""
    return np.random.default_rng([options.seed, options.splits.index(split), index, purpose])


def make_clip(corpus: SyntheticCorpus, options: Any, split: str, index: int, scene: Any) -> Clip:
    """Draws a clip of a split and its captions, from the scene with the same index; see `plan_scenes`."""
    return corpus.make_clip(scene, options, _rng(options, split, index, purpose=1))


def _home_split(multiset: tuple[Any, ...]) -> str:
    """Returns the split among train, val and test in which a scene may occur: 8, 1 and 1 of 10 scenes."""
    description = json.dumps([dataclasses.astuple(thing) for thing in multiset])
    bucket = int.from_bytes(hashlib.sha256(description.encode()).digest()[:8], "big") % 10
    return {0: "val", 1: "test"}.get(bucket, "train")


def different_captions(writers: Sequence[Callable[[], str]], count: int) -> list[str]:
    """Returns `count` different captions, calling the writers in turn."""
    captions: list[str] = []
    attempt = 0
    while len(captions) < count:
        caption = writers[attempt % len(writers)]()
        if caption not in captions:
            captions.append(caption)
        attempt += 1
    return captions


# --- Writing -------------------------------------------------------------------------------------------------


def make_synthetic(
    corpus: SyntheticCorpus,
    output_dir: PathLike,
    options: Mapping[str, Any],
    *,
    workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> Path:
    """Writes a corpus and returns its directory; see `make_corpus`.

    The directory appears when everything is written. Leftovers of an interrupted run do not look like a corpus, and
    the next run removes them. If several processes make the same corpus at the same time, one of them makes it and the
    others wait. Workers are threads, as drawing and encoding mostly release Python's global lock.
    """
    wanted = corpus.read_options(options)
    target = Path(os.path.abspath(os.path.expanduser(output_dir)))
    if not _is_in_place(corpus, target, wanted, overwrite):
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent, _beside(target, "lock").name, wait=True):
            for what in ("partial", "old"):  # left by killed runs, as a running one would hold the lock
                shutil.rmtree(_beside(target, what), ignore_errors=True)
            if not _is_in_place(corpus, target, wanted, overwrite):
                partial_dir = _beside(target, "partial")
                try:
                    partial_dir.mkdir()
                    _write_corpus(corpus, partial_dir, wanted, workers, progress)
                    _replace(target, partial_dir)
                finally:
                    shutil.rmtree(partial_dir, ignore_errors=True)
                logger.info("Wrote %s", target)
                return target
    logger.info("%s already holds this corpus: nothing to do", target)
    return target


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.{what}")


def _is_in_place(corpus: SyntheticCorpus, target: Path, wanted: Any, overwrite: bool) -> bool:
    """Returns whether `target` already holds the corpus."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    if _read_info(corpus, target) is None:
        raise CorpusError(f"{target} exists and is not a corpus of {corpus.title}: choose another directory")
    difference = _difference(corpus, target, wanted.to_json())
    if difference and not overwrite:
        raise CorpusError(
            f"{target} contains {corpus.title} with other options ({difference}): choose another directory, or "
            "replace it with overwrite=True (--overwrite)"
        )
    return not difference


def _replace(target: Path, new: Path) -> None:
    """Moves a new corpus to `target`, which does not exist, is empty, or contains a corpus to be replaced."""
    if target.is_dir() and any(target.iterdir()):
        old = _beside(target, "old")
        target.rename(old)
        new.rename(target)
        shutil.rmtree(old)
    else:
        new.replace(target)


def _write_corpus(corpus: SyntheticCorpus, directory: Path, options: Any, workers: int | None, progress: bool) -> None:
    splits = {split: getattr(options, split) for split in options.splits if getattr(options, split)}
    scenes = {split: plan_scenes(corpus, options, split) for split in splits}
    with (
        ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool,
        tqdm(total=sum(splits.values()), desc=corpus.title.capitalize(), unit="clip", disable=not progress) as bar,
    ):
        try:
            for split in splits:
                for folder in ("clips", "masks"):
                    (directory / split / folder).mkdir(parents=True)
                write = partial(_write_clip, corpus=corpus, directory=directory, split=split, options=options)
                with (directory / split / "metadata.jsonl").open("w", encoding="utf-8") as file:
                    for row in pool.map(write, range(splits[split]), scenes[split]):
                        file.write(json.dumps(row) + "\n")
                        bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    info = {
        "corpus": corpus.name,
        "format": corpus.format,
        "options": options.to_json(),
        "splits": splits,
        **corpus.info,
        "horizontal_flip": False,  # captions mention left and right
        "codec": available_codec(),
        "versions": {name: _version(name) for name in ("region-learner", "av", "numpy", "pillow")},
    }
    (directory / "corpus.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def _write_clip(
    index: int, scene: Any, *, corpus: SyntheticCorpus, directory: Path, split: str, options: Any
) -> dict[str, Any]:
    """Writes the video and the label maps of a clip, and returns its row of `metadata.jsonl`."""
    clip = make_clip(corpus, options, split, index, scene)
    video_id = f"{split}-{index:06d}"
    video, label_maps = f"clips/{video_id}.mp4", f"masks/{video_id}.npz"
    write_video(directory / split / video, clip.frames, options.fps)
    np.savez_compressed(directory / split / label_maps, masks=clip.masks)
    return {
        "file_name": video,
        "video_id": video_id,
        "captions": clip.captions,
        "masks": label_maps,
        "objects": [dataclasses.asdict(thing) for thing in scene],
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


# --- Loading -------------------------------------------------------------------------------------------------


def load_synthetic_rows(
    corpus: SyntheticCorpus,
    data_dir: PathLike | None,
    split: str,
    options: Mapping[str, Any],
    *,
    workers: int | None,
    progress: bool,
) -> list[Row]:
    """Loads the rows of a split: the common columns, `objects`, and `masks`, the path of the label maps.

    Args:
        data_dir: a directory written by `make_synthetic`. Without one, the corpus is made on first use in the cache
            directory `$HF_HOME/region_learner`.
        options: with `data_dir`, they must be those that the corpus was made with.
    """
    wanted = corpus.read_options(options)
    check_split(split, wanted.splits, corpus.name)
    if data_dir is None:
        directory = _cached(corpus, wanted, workers, progress)
    else:
        directory = _checked(corpus, data_dir, wanted, options)
    made = [name for name in wanted.splits if (directory / name).is_dir()]
    check_split(split, made, str(directory))
    rows = drop_missing(read_split(directory, split), directory, max_missing=0)
    for row in rows:
        row["masks"] = str(directory / split / row["masks"])
    return rows


_MAX_MASKS = 2**31  # bytes of the label maps of a clip, twice as many as 1000 frames of 1024 x 1024 have


def load_masks(source: PathLike | Mapping[str, Any]) -> np.ndarray:
    """Loads the label maps of a clip, (T, H, W) uint8: 0 is background or clutter, n the n-th of the row's `objects`.

    There is one map per frame of the video. Where objects overlap, the pixel belongs to the one in front.

    Args:
        source: a row of the dataset, or the path in its column `masks`.

    Raises:
        CorpusError: the file does not exist, or does not contain label maps.

    Example:
        >>> row = load_corpus("moving_shapes")[0]
        >>> load_masks(row).shape
        (16, 96, 96)
    """
    path = Path(source["masks"] if isinstance(source, Mapping) else source)
    if not path.is_file():
        raise CorpusError(f"the label maps {path} do not exist: make the corpus again")
    try:
        with zipfile.ZipFile(path) as archive:
            if (size := archive.getinfo("masks.npy").file_size) > _MAX_MASKS:
                raise CorpusError(f"{path} is damaged: {size} bytes of label maps, more than {_MAX_MASKS}")
        with np.load(path) as file:
            return file["masks"]
    except (KeyError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{path} does not contain label maps ({error}): make the corpus again") from error


def _cached(corpus: SyntheticCorpus, options: Any, workers: int | None, progress: bool) -> Path:
    """Returns the directory of the corpus in the cache, after making it if necessary."""
    from huggingface_hub.constants import HF_HOME

    # With the defaults of new options, corpora that older versions have cached are found.
    defaults = corpus.options().to_json()
    values = {k: v for k, v in options.to_json().items() if k not in options.added or v != defaults[k]}
    identity = json.dumps({"format": corpus.format, **values}, sort_keys=True)
    name = f"{corpus.name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    directory = Path(HF_HOME, "region_learner", name)
    if _read_info(corpus, directory) is None:
        make_synthetic(corpus, directory, vars(options), workers=workers, progress=progress)
    return directory


def _checked(corpus: SyntheticCorpus, data_dir: PathLike, wanted: Any, options: Mapping[str, Any]) -> Path:
    directory = Path(os.path.abspath(os.path.expanduser(data_dir)))
    if _read_info(corpus, directory) is None:
        raise CorpusError(
            f"no complete corpus of {corpus.title} in {directory} (no corpus.json): make it with "
            f"`region-learner corpus make --corpus {corpus.name}`, or leave data_dir out"
        )
    made_with = wanted.to_json()
    difference = _difference(corpus, directory, {name: made_with[name] for name in options})
    if difference:
        raise CorpusError(
            f"{directory} contains {corpus.title} with other options ({difference}): leave the options out, or make "
            "another corpus"
        )
    return directory


def _read_info(corpus: SyntheticCorpus, directory: Path) -> dict[str, Any] | None:
    """Reads `corpus.json`. Returns None if the directory does not contain a complete corpus of this name."""
    info = read_record(directory / "corpus.json")
    return info if info.get("corpus") == corpus.name else None


def _difference(corpus: SyntheticCorpus, directory: Path, wanted: Mapping[str, Any]) -> str:
    """Returns how the corpus in a directory differs from the requested one; empty if it does not."""
    info = _read_info(corpus, directory) or {}
    # A corpus that was made before an option existed was made with its default.
    has = {"format": info.get("format"), **corpus.options().to_json(), **info.get("options", {})}
    return ", ".join(
        f"{name} is {has.get(name)}, not {value}"
        for name, value in {"format": corpus.format, **wanted}.items()
        if has.get(name) != value
    )

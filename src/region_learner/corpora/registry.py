"""The corpora by name: those of this package, and those that a program registers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configuration_region_learner import did_you_mean
from .base import CorpusError, PathLike, build_dataset, check_options, read_record
from .cc3m import load_cc3m
from .didemo import load_didemo
from .features import load_features
from .folder import load_folder
from .hmdb51 import load_hmdb51
from .lsmdc import load_lsmdc, load_lsmdc_mc
from .msrvtt import load_msrvtt, load_msrvtt_mc, load_msrvtt_qa
from .msvd import load_msvd, load_msvd_qa
from .rows import check_dataset
from .synthetic import (
    DRIFTING_LETTERS,
    MOVING_SHAPES,
    SyntheticCorpus,
    load_drifting_letters,
    load_moving_shapes,
    make_synthetic,
)
from .ucf101 import load_ucf101
from .vitatecs import load_vitatecs
from .webdataset import PREPARED, load_webdataset, matching_shards
from .webvid import load_webvid

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


# Maximum number of loader processes that can share a streamed corpus.
_STREAMING_SHARDS = 64


@dataclass(frozen=True)
class Corpus:
    """The description of a corpus.

    Args:
        name: its name in `load_corpus`.
        loader: function `loader(data_dir, split, **options)` that returns a split.
        description: one line about its format. By default the first line of the loader's docstring.
        horizontal_flip: whether captions stay true when a clip is mirrored. If not, training does not mirror clips.
        synthetic: how the corpus is made, if it is synthetic. Its options are among those of the loader.
        replaces_split: the option that chooses the rows, whatever `split` is.
    """

    name: str
    loader: Callable[..., Any]
    description: str = ""
    horizontal_flip: bool = True
    synthetic: SyntheticCorpus | None = None
    replaces_split: str | None = None

    def __post_init__(self) -> None:
        if not self.description:
            object.__setattr__(self, "description", (inspect.getdoc(self.loader) or "").partition("\n")[0])

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The parameters of the loader after `data_dir` and `split`."""
        return dict(list(inspect.signature(self.loader).parameters.items())[2:])

    @property
    def options(self) -> list[str]:
        """The names of the options. A loader with `**options` may accept others."""
        named = [name for name, parameter in self.parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
        made = self.synthetic.option_names if self.synthetic else []
        return [name for name in (*named, *made) if name != "streaming"]

    @property
    def takes_any_option(self) -> bool:
        kinds = [parameter.kind for parameter in self.parameters.values()]
        return inspect.Parameter.VAR_KEYWORD in kinds and not self.synthetic


_CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        Corpus("cc3m", load_cc3m, replaces_split="file"),
        Corpus("didemo", load_didemo),
        Corpus("drifting_letters", load_drifting_letters, horizontal_flip=False, synthetic=DRIFTING_LETTERS),
        Corpus("features", load_features),
        Corpus("folder", load_folder),
        Corpus("hmdb51", load_hmdb51),
        Corpus("lsmdc", load_lsmdc),
        Corpus("lsmdc_mc", load_lsmdc_mc),
        Corpus("moving_shapes", load_moving_shapes, horizontal_flip=False, synthetic=MOVING_SHAPES),
        Corpus("msrvtt", load_msrvtt),
        Corpus("msrvtt_mc", load_msrvtt_mc),
        Corpus("msrvtt_qa", load_msrvtt_qa),
        Corpus("msvd", load_msvd),
        Corpus("msvd_qa", load_msvd_qa),
        Corpus("ucf101", load_ucf101),
        Corpus("vitatecs", load_vitatecs),
        Corpus("webdataset", load_webdataset, replaces_split="shards"),
        Corpus("webvid", load_webvid, replaces_split="file"),
    )
}


def register_corpus(
    name: str,
    loader: Callable[..., Any],
    *,
    description: str = "",
    horizontal_flip: bool = True,
    overwrite: bool = False,
) -> None:
    """Registers a corpus of your own for `load_corpus`, training recipes, evaluation and the command line.

    Args:
        name: its name.
        loader: function `loader(data_dir, split, **options)`. It returns a `datasets.Dataset` or a list of rows with
            the columns that `load_corpus` describes. Its other parameters are the options of the corpus. `max_missing`
            and `missing_list` are set by training if the loader has them, and `streaming` is passed on if it has it.
            It should raise a `CorpusError` for a split that does not exist.
        description: one line about its format. By default the first line of the loader's docstring.
        horizontal_flip: whether captions stay true when a clip is mirrored. If not, training does not mirror clips.
        overwrite: whether to replace a corpus of this name.

    Raises:
        CorpusError: there is a corpus of this name, or `loader` cannot be called with `data_dir` and `split`.

    Example:
        >>> def load_gestures(data_dir, split, *, hand="both"):
        ...     "Gestures: one video per gesture."
        ...     return [{"video": f"{data_dir}/{split}/wave.mp4", "video_id": "wave", "captions": ["a hand waves"]}]
        >>> register_corpus("gestures", load_gestures, horizontal_flip=False)
        >>> load_corpus("gestures", "data/gestures", "train", hand="left")
    """
    if not isinstance(name, str) or not name.strip():
        raise CorpusError(f"the name of a corpus must be a string that is not blank, not {name!r}")
    if name in _CORPORA and not overwrite:
        raise CorpusError(f"there is already a corpus {name!r}: choose another name, or pass overwrite=True")
    try:
        inspect.signature(loader).bind_partial("data_dir", "split")
    except (TypeError, ValueError) as error:
        raise CorpusError(
            f"the loader of corpus {name!r} must be a function of data_dir and split, not {loader!r}"
        ) from error
    _CORPORA[name] = Corpus(name, loader, description, horizontal_flip)


def corpus_info(name: str) -> Corpus:
    """Returns the description of a corpus.

    Raises:
        CorpusError: the name is unknown.

    Example:
        >>> corpus_info("moving_shapes").horizontal_flip
        False
    """
    if name not in _CORPORA:
        raise CorpusError(
            f"unknown corpus {name!r} (corpora: {', '.join(sorted(_CORPORA))}){did_you_mean(str(name), _CORPORA)}"
        )
    return _CORPORA[name]


# Files of `corpus make` and `corpus prepare` that describe what the directory of a corpus contains.
_RECORDS = {"folder": ("corpus.json",), "webdataset": ("prepare.json", "*/prepare.json")}


def allows_mirroring(name: str, data_dir: PathLike | None, shards: str | Sequence[str] | None = None) -> bool:
    """Returns whether captions stay true when a clip is mirrored.

    Folders and shards that were written from another corpus record this property of that corpus.

    Args:
        name: name of the corpus.
        data_dir: its directory.
        shards: the option `shards` of the corpus "webdataset".

    Raises:
        CorpusError: the name is unknown, or there are no such shards.
    """
    directory = Path(data_dir or ".").expanduser()
    records = [path for pattern in _RECORDS.get(name, ()) for path in directory.glob(pattern)]
    if shards is not None:
        records += [path for path in {Path(one).parent / PREPARED for one in matching_shards(directory, shards)}
                    if path.is_file()]  # fmt: skip
    return corpus_info(name).horizontal_flip and all(
        read_record(path).get("horizontal_flip", True) for path in records
    )


def list_corpora() -> dict[str, str]:
    """Returns the name of every corpus, with one line about its format."""
    return {name: corpus.description for name, corpus in _CORPORA.items()}


def corpus_options(name: str) -> list[str]:
    """Returns the names of the options of a corpus.

    Example:

    ```python
    >>> "negative_captions" in corpus_options("moving_shapes")
    True
    ```
    """
    return corpus_info(name).options


def load_corpus(
    name: str,
    data_dir: PathLike | None = None,
    split: str = "train",
    streaming: bool = False,
    **options: Any,
) -> Dataset | IterableDataset:
    """Loads a split of a corpus, one row per video, or for question answering per question. Nothing is decoded.

    The columns of every corpus are `video` (the path of a file; from shards its bytes, or a reference to them; from
    `features` a reference to features),
    `video_id` (str) and `captions` (list of str, empty for question answering). Corpora for other tasks have more
    columns:

    - question answering: `question` and `answer` (str);
    - multiple choice: `options` (list of str), `answer` (int, the index of the right option), and in some corpora
      `aspect` (str, what the options differ in);
    - classification: `label` (a `ClassLabel`).

    Args:
        name: a name from `list_corpora`.
        data_dir: the directory of the corpus. Without it, synthetic corpora are made in the cache directory.
        split: the name of a split, such as "train", "val" or "test".
        streaming: whether to return an `IterableDataset`, which can be shared among processes and resumed.
        options: the options of this corpus; see docs/corpora.md. `corpus_options` returns their names.

    Raises:
        CorpusError: the name, the split or an option is unknown, or data is missing or damaged.

    Example:
        >>> train = load_corpus("msrvtt", "data/MSRVTT", split="train", protocol="full", max_missing=0.01)
    """
    corpus = corpus_info(name)
    if not corpus.takes_any_option:
        check_options(name, options, corpus.options)
    if "streaming" in corpus.parameters:
        return corpus.loader(data_dir, split, streaming=streaming, **options)
    dataset = corpus.loader(data_dir, split, **options)
    if isinstance(dataset, list):
        if not dataset:
            raise CorpusError(f"split {split!r} of corpus {name!r} has no rows")
        dataset = build_dataset(dataset)
    check_dataset(dataset, (), f"split {split!r} of corpus {name!r}", first_rows=0)
    if not streaming or not hasattr(dataset, "__len__"):  # an IterableDataset is streamed already
        return dataset
    if not hasattr(dataset, "to_iterable_dataset"):
        raise CorpusError(f"corpus {name!r} cannot be streamed: its loader returns a {type(dataset).__name__}")
    return dataset.to_iterable_dataset(min(_STREAMING_SHARDS, len(dataset)))


def make_corpus(
    name: str,
    output_dir: PathLike,
    *,
    workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Writes a synthetic corpus, `moving_shapes` or `drifting_letters`, and returns its directory.

    A directory that already holds the corpus with these options is left as it is.

    Args:
        workers: number of clips to write at the same time; by default one per CPU core.
        progress: whether to show progress on stderr.
        overwrite: whether to replace a corpus of this name that has other options.
        options: see `MovingShapesOptions` and `DriftingLettersOptions` in `region_learner.corpora.synthetic`.

    Raises:
        CorpusError: it is not a synthetic corpus, options are unknown or impossible, or the directory contains
            something else.

    Example:
        >>> make_corpus("moving_shapes", "data/shapes", train=500, size=64)
    """
    synthetic = {known: corpus.synthetic for known, corpus in _CORPORA.items() if corpus.synthetic}
    if name not in synthetic:
        raise CorpusError(
            f"{name!r} is not a synthetic corpus (synthetic: {', '.join(synthetic)}){did_you_mean(name, synthetic)}"
        )
    return make_synthetic(
        synthetic[name], output_dir, options, workers=workers, progress=progress, overwrite=overwrite
    )

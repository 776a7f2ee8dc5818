"""Corpora of captioned videos, each under one name and with the same columns.

A corpus is a function in a file of its own, `load(data_dir, split, streaming, *, its options)`, entered in
`_CORPORA`. The first line of its docstring describes the format; its keyword-only parameters are its options.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .actions import load_hmdb51, load_ucf101
from .cc3m import load_cc3m
from .check import check_corpus
from .common import answer_vocabulary
from .didemo import load_didemo
from .drifting_letters import load_drifting_letters, make_drifting_letters
from .folder import CorpusError, check_options, load_folder, suggestion
from .generated import load_masks
from .lsmdc import load_lsmdc, load_lsmdc_mc
from .moving_shapes import load_moving_shapes, make_moving_shapes
from .msrvtt import load_msrvtt, load_msrvtt_mc, load_msrvtt_qa
from .msvd import load_msvd, load_msvd_qa
from .prepare import PrepareOptions, UnreadableError, prepare_corpus
from .webdataset import load_webdataset
from .webvid import load_webvid

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


__all__ = [
    "CorpusError",
    "PrepareOptions",
    "UnreadableError",
    "answer_vocabulary",
    "check_corpus",
    "corpus_options",
    "list_corpora",
    "load_corpus",
    "load_masks",
    "make_corpus",
    "make_drifting_letters",
    "make_moving_shapes",
    "prepare_corpus",
]

_CORPORA: dict[str, Callable[..., Any]] = {
    "cc3m": load_cc3m,
    "didemo": load_didemo,
    "drifting_letters": load_drifting_letters,
    "folder": load_folder,
    "hmdb51": load_hmdb51,
    "lsmdc": load_lsmdc,
    "lsmdc_mc": load_lsmdc_mc,
    "moving_shapes": load_moving_shapes,
    "msrvtt": load_msrvtt,
    "msrvtt_mc": load_msrvtt_mc,
    "msrvtt_qa": load_msrvtt_qa,
    "msvd": load_msvd,
    "msvd_qa": load_msvd_qa,
    "ucf101": load_ucf101,
    "webdataset": load_webdataset,
    "webvid": load_webvid,
}

_BUILT_IN: dict[str, Callable[..., Path]] = {
    "drifting_letters": make_drifting_letters,
    "moving_shapes": make_moving_shapes,
}


def list_corpora() -> dict[str, str]:
    """Every name that `load_corpus` knows, with one line about its format."""
    return {name: (inspect.getdoc(loader) or "").split("\n")[0] for name, loader in _CORPORA.items()}


def corpus_options(name: str) -> list[str]:
    """Names of the options of a corpus.

    Raises:
        CorpusError: unknown name.
    """
    parameters = inspect.signature(_loader(name)).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def _loader(name: str) -> Callable[..., Any]:
    if name not in _CORPORA:
        raise CorpusError(
            f"unknown corpus {name!r}{suggestion(name, _CORPORA)} (corpora: {', '.join(sorted(_CORPORA))})"
        )
    return _CORPORA[name]


def load_corpus(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    split: str = "train",
    streaming: bool = False,
    **options: Any,
) -> Dataset | IterableDataset:
    """Loads a split of a corpus, one row a video. Nothing is decoded.

    The columns of every corpus are `video` (path of the file; from shards its bytes, or a reference to them),
    `video_id` (str) and `captions` (list of str, empty for questions). Those for a task have more: `question` and
    `answer` (str), `options` (list of str) and `answer` (int), or `label` (a `ClassLabel`).

    Args:
        name: one of `list_corpora()`.
        data_dir: where the corpus lies. Those built in are made in the cache directory without it.
        split: name of a split; which there are depends on the corpus.
        streaming: give an `IterableDataset`, which is split among processes and can be resumed.
        options: of this corpus; see its function.

    Raises:
        CorpusError: unknown name, split or option; data that is missing or damaged. One line says what was
            looked for, where, and the cure.
    """
    loader = _loader(name)
    # A loader that takes any option checks them itself.
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(loader).parameters.values()):
        check_options(name, options, corpus_options(name))
    return loader(data_dir, split, streaming, **options)


def make_corpus(name: str, output_dir: str | os.PathLike[str], **options: Any) -> Path:
    """Writes a built-in corpus, `moving_shapes` or `drifting_letters`, and returns its directory.

    Args:
        options: of this corpus, and how it is written; see `make_moving_shapes` and `make_drifting_letters`.

    Raises:
        CorpusError: it is not built in; unknown or impossible options; the directory holds something else.
    """
    if name not in _BUILT_IN:
        raise CorpusError(
            f"{name!r} is no built-in corpus{suggestion(name, _BUILT_IN)} (built in: {', '.join(sorted(_BUILT_IN))})"
        )
    return _BUILT_IN[name](output_dir, **options)


class _Info:
    def __init__(self, horizontal_flip: bool):
        self.horizontal_flip = horizontal_flip


def corpus_info(name: str) -> _Info:  # a stand-in until the corpora declare it
    return _Info(name not in ("drifting_letters", "moving_shapes"))

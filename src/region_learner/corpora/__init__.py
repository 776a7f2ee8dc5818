"""Corpora of captioned videos, each under one name and with the same columns.

Missing, damaged or invalid data raises a `CorpusError`: one line that says what is wrong, where, and what to do.

Each benchmark has a file with a function `load_NAME(data_dir, split, *, option=default, ...)`, which is listed in
`registry.py`. The first line of its docstring describes the format; its keyword-only parameters are its options.
"""

from .base import CorpusError
from .benchmarks import answer_vocabulary
from .check import check_corpus
from .prepare import PrepareOptions, UnreadableError, prepare_corpus
from .registry import (
    Corpus,
    corpus_info,
    corpus_options,
    list_corpora,
    load_corpus,
    make_corpus,
    register_corpus,
)
from .synthetic import load_masks, object_phrases

__all__ = [
    "Corpus",
    "CorpusError",
    "PrepareOptions",
    "UnreadableError",
    "answer_vocabulary",
    "check_corpus",
    "corpus_info",
    "corpus_options",
    "list_corpora",
    "load_corpus",
    "load_masks",
    "make_corpus",
    "object_phrases",
    "prepare_corpus",
    "register_corpus",
]

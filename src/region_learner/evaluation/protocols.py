"""
The evaluation protocols of the benchmarks, by name.

A protocol defines an evaluation: the videos, the texts that are queries, the primary metric, and the source of these
rules. Sizes are the published ones; results for other sizes get a note. docs/evaluation.md explains how other papers
differ.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import nearest_or_all

# The tasks that a model can be evaluated for, each with its primary metric.
PRIMARY_METRIC = {
    "retrieval": "t2v_R@1",
    "multiple_choice": "accuracy",
    "question_answering": "accuracy",
    "classification": "top1",
    "zero_shot": "top1",
    "grounding": "pointing",
}

# The counts for each task, which are compared with published sizes.
_COUNTS = {
    "retrieval": ("videos", "texts"),
    "multiple_choice": ("questions",),
    "question_answering": ("questions",),
    "classification": ("videos",),
    "zero_shot": ("videos", "classes"),
    "grounding": ("videos", "objects"),
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """
    The definition of an evaluation.

    Args:
        corpus: name of the corpus.
        task: a key of `PRIMARY_METRIC`. "zero_shot" is action recognition with prompts.
        split: split of the corpus.
        options: options of the corpus.
        captions: description of the texts that are queries.
        sizes: published numbers by name ("videos", "texts", "questions"); one number per fold if they differ.
        source: the paper, and the repository if it defines the rules.
        zero_shot: whether the model must not have been trained on the corpus.
        folds: number of folds, of which fold 1 is the default; 0 for a corpus without folds.
        name: name of the protocol; None if corpus and task were chosen freely.
    """

    corpus: str
    task: str = "retrieval"
    split: str = "test"
    options: Mapping[str, Any] = field(default_factory=dict)
    captions: str = ""
    sizes: Mapping[str, int | Sequence[int]] = field(default_factory=dict)
    source: str = ""
    zero_shot: bool = False
    folds: int = 0
    name: str | None = None

    @property
    def metric(self) -> str:
        """The primary metric."""
        return PRIMARY_METRIC[self.task]

    def size(self, name: str, fold: int = 1) -> int:
        """Returns the published number of videos, texts or questions."""
        size = self.sizes[name]
        return size if isinstance(size, int) else size[fold - 1]

    def size_notes(self, counts: Mapping[str, int], fold: int = 1) -> list[str]:
        """
        Returns a note if the numbers of videos, texts or questions are not those of the benchmark.

        Args:
            counts: the numbers of evaluated videos, texts and questions, by name.
            fold: number of the fold.
        """
        different = [
            f"{counts[name]:,} {name} instead of {self.size(name, fold):,}"
            for name in self.sizes
            if counts[name] != self.size(name, fold)
        ]
        if not different:
            return []
        return [
            f"{self.name} was evaluated on {' and '.join(different)}: videos are missing or unreadable, or the lists "
            "differ. The results cannot be compared with published ones."
        ]

    def check(self) -> None:
        """
        Checks that the protocol is valid.

        Raises:
            ValueError: the task is not known, or the sizes do not fit the task or the folds.
        """
        if self.task not in PRIMARY_METRIC:
            raise ValueError(f"task={self.task!r} is not known{nearest_or_all(self.task, PRIMARY_METRIC)}")
        for name, size in self.sizes.items():
            numbers = [size] if isinstance(size, int) else list(size)
            if name not in _COUNTS[self.task]:
                counts = ", ".join(_COUNTS[self.task])
                raise ValueError(f"sizes has {name!r}, which is not counted for the task {self.task!r} ({counts}).")
            if not all(isinstance(number, int) and number > 0 for number in numbers):
                raise ValueError(f"sizes[{name!r}]={size!r} must be a positive integer, or one per fold.")
            if not isinstance(size, int) and len(numbers) != self.folds:
                raise ValueError(f"sizes[{name!r}] has {len(numbers)} numbers for {self.folds} folds.")


_ALL = "every caption is a separate query"
_ONE = "one caption per video"
_CLAUSES = "the first caption of each video, in which each clause describes one object"
_SWAPPED = "2 options per question: the full caption, and the same with an attribute swapped between two objects"

_FINE_TUNED = [
    Protocol(
        name="msrvtt_1ka", corpus="msrvtt",
        options={"protocol": "1k-A"}, captions="the one caption per video of the published pairs",
        sizes={"videos": 1000, "texts": 1000},
        source="Yu et al., ECCV 2018 (JSFusion), pairs; training on 9,000 videos: Gabeur et al., ECCV 2020",
    ),
    Protocol(
        name="msrvtt_1kb", corpus="msrvtt",
        options={"protocol": "1k-B"}, captions=_ALL, sizes={"videos": 1000, "texts": 20_000},
        source="Miech et al., arXiv 1804.02516, lists; captions as in github.com/albanie/collaborative-experts",
    ),
    Protocol(
        name="msrvtt_full", corpus="msrvtt",
        options={"protocol": "full"}, captions=_ALL, sizes={"videos": 2990, "texts": 59_800},
        source="Xu et al., CVPR 2016; as in github.com/albanie/collaborative-experts",
    ),
    Protocol(
        name="msvd", corpus="msvd", captions=_ALL, sizes={"videos": 670},
        source="Chen and Dolan, ACL 2011; split of Venugopalan et al., ICCV 2015; all captions as in "
        "github.com/albanie/collaborative-experts",
    ),
    Protocol(
        name="didemo", corpus="didemo",
        captions="one paragraph per video: its descriptions joined", sizes={"videos": 1004, "texts": 1004},
        source="Hendricks et al., ICCV 2017; paragraphs: Zhang et al., ECCV 2018, and Liu et al., BMVC 2019",
    ),
    Protocol(
        name="lsmdc", corpus="lsmdc", captions=_ONE, sizes={"videos": 1000, "texts": 1000},
        source="Rohrbach et al., IJCV 2017; the 1,000 public test clips of the 2016 challenge",
    ),
    Protocol(
        name="msrvtt_mc", corpus="msrvtt_mc", task="multiple_choice", captions="5 options per question",
        sizes={"questions": 2990},
        source="Yu et al., ECCV 2018 (JSFusion)",
    ),
    Protocol(
        name="lsmdc_mc", corpus="lsmdc_mc", task="multiple_choice", captions="5 options per question",
        sizes={"questions": 10_053},
        source="LSMDC 2016, movie multiple choice (Torabi et al., arXiv 1609.08124)",
    ),
    Protocol(
        name="vitatecs", corpus="vitatecs", task="multiple_choice",
        captions="2 options per question, which differ in one of six aspects of time", sizes={"questions": 13_838},
        source="Li et al., arXiv 2311.17404, repository lscpku/VITATECS",
    ),
    Protocol(
        name="msrvtt_qa", corpus="msrvtt_qa", task="question_answering",
        captions="questions with open answers, from the vocabulary of the model", sizes={"questions": 72_821},
        source="Xu et al., ACM Multimedia 2017",
    ),
    Protocol(
        name="msvd_qa", corpus="msvd_qa", task="question_answering",
        captions="questions with open answers, from the vocabulary of the model", sizes={"questions": 13_157},
        source="Xu et al., ACM Multimedia 2017",
    ),
    Protocol(
        name="hmdb51", corpus="hmdb51", task="classification", captions="51 classes, by a classifier",
        sizes={"videos": 1530}, folds=3, source="Kuehne et al., ICCV 2011",
    ),
    Protocol(
        name="ucf101", corpus="ucf101", task="classification", captions="101 classes, by a classifier",
        sizes={"videos": (3783, 3734, 3696)}, folds=3, source="Soomro et al., arXiv 1212.0402",
    ),
    Protocol(
        name="moving_shapes", corpus="moving_shapes", captions=_ALL, source="a built-in corpus",
    ),
    Protocol(
        name="moving_shapes_unseen", corpus="moving_shapes", split="test_unseen", captions=_ALL,
        source="a built-in corpus; combinations of shape and color that training does not have",
    ),
    Protocol(
        name="drifting_letters", corpus="drifting_letters", captions=_ALL, source="a built-in corpus",
    ),
    Protocol(
        name="moving_shapes_compositional", corpus="moving_shapes", task="multiple_choice",
        options={"task": "compositional"}, captions=_SWAPPED, source="a built-in corpus",
    ),
    Protocol(
        name="drifting_letters_compositional", corpus="drifting_letters", task="multiple_choice",
        options={"task": "compositional"}, captions=_SWAPPED, source="a built-in corpus",
    ),
    Protocol(
        name="moving_shapes_grounding", corpus="moving_shapes", task="grounding", captions=_CLAUSES,
        source="a built-in corpus",
    ),
    Protocol(
        name="drifting_letters_grounding", corpus="drifting_letters", task="grounding", captions=_CLAUSES,
        source="a built-in corpus",
    ),
]  # fmt: skip


def _by_prompts(protocol: Protocol, suffix: str, zero_shot: bool) -> Protocol:
    captions = f"{protocol.captions.partition(',')[0]}, by prompts"
    return dataclasses.replace(
        protocol, name=f"{protocol.name}_{suffix}", task="zero_shot", captions=captions, zero_shot=zero_shot
    )


def _with_zero_shot() -> dict[str, Protocol]:
    protocols = list(_FINE_TUNED)
    for protocol in _FINE_TUNED:
        if protocol.task == "classification":
            protocols.append(_by_prompts(protocol, "prompts", zero_shot=False))
            protocols.append(_by_prompts(protocol, "zero_shot", zero_shot=True))
        elif protocol.task != "question_answering" and protocol.sizes:  # a vocabulary of answers has to be trained
            protocols.append(dataclasses.replace(protocol, name=f"{protocol.name}_zero_shot", zero_shot=True))
    return {str(protocol.name): protocol for protocol in protocols}


PROTOCOLS: dict[str, Protocol] = _with_zero_shot()


def get_protocol(name: str) -> Protocol:
    """
    Returns a protocol by its name.

    Raises:
        ValueError: the name is not known.

    Example:

    ```python
    >>> get_protocol("msrvtt_1ka").split
    'test'
    ```
    """
    if name not in PROTOCOLS:
        of_corpus = [f"'{known}'" for known in PROTOCOLS if known.startswith(f"{name}_")]
        hint = f"; did you mean {' or '.join(of_corpus)}?" if of_corpus else nearest_or_all(name, PROTOCOLS)
        raise ValueError(f"The protocol {name!r} is not known{hint}")
    return PROTOCOLS[name]


def register_protocol(name: str, protocol: Protocol) -> Protocol:
    """
    Registers a protocol, so that `get_protocol` and `region-learner evaluate --protocol` of the same process find it.

    Returns:
        The protocol with its name.

    Raises:
        ValueError: the name is taken, or the protocol is not valid.

    Example:

        register_protocol("youcook2", Protocol(corpus="folder", split="val", sizes={"videos": 3350}))
        evaluate_checkpoint(get_protocol("youcook2"), "CHECKPOINT", "data/YouCook2")
    """
    if not name or name in PROTOCOLS:
        raise ValueError(f"The protocol name {name!r} is {'taken' if name else 'empty'}: choose another one.")
    protocol.check()
    PROTOCOLS[name] = dataclasses.replace(protocol, name=name)
    return PROTOCOLS[name]

"""Evaluates checkpoints on the tasks with videos of [MTEB](https://github.com/embeddings-benchmark/mteb)."""

import hashlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image, Video

from ..errors import in_one_line, install_hint, is_for_user, nearest_or_all
from ..loading import load_checkpoint
from .provenance import describe_model, digest_of_file
from .reading import BATCH_SIZE
from .retrieval import embed_texts, embed_videos

try:
    import mteb
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
except ImportError as error:
    raise ImportError(f"Tasks of MTEB need the package mteb: {install_hint('mteb')}") from error

logger = logging.getLogger(__name__)

_MODALITIES = ("text", "image", "video")
_TASK_TYPES: Any = ("Any2AnyRetrieval", "Any2AnyMultilingualRetrieval")
_CATEGORIES: Any = ("t2v", "v2t", "v2v", "i2v", "v2i")  # each query and each document is a text, an image or a video
_SCORES = ("main_score", "ndcg_at_10", "recall_at_1", "recall_at_5", "recall_at_10")


class MTEBEncoder(AbsEncoder):
    """
    A dual encoder as a model of MTEB, for all of its tasks with texts, images and videos.

    Videos are decoded as in every evaluation of this package: only the frames that the processor samples, and only
    one batch at a time in memory. torchcodec is not needed. Instructions of tasks are not used. The sound of a task
    with videos and sound is ignored, and MTEB warns about this.

    Args:
        model: directory or Hub name of a RegionLearner, CLIP or SigLIP checkpoint.
        device: device of the model. The default is a GPU if there is one.
        num_workers: number of decoding processes. With 0, this process decodes.

    Raises:
        ValueError: the checkpoint is damaged, or belongs to another kind of model.
        OSError: the directory or Hub model does not exist.

    Example:

        mteb.evaluate(MTEBEncoder("CHECKPOINT"), mteb.get_task("MSVDT2VRetrieval"), encode_kwargs={"batch_size": 16})
    """

    mteb_model_meta: ModelMeta

    def __init__(self, model: str, *, device: str | torch.device | None = None, num_workers: int = 0):
        self.model, self.processor = load_checkpoint(model, "retrieval")
        self.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.num_workers = num_workers
        self.mteb_model_meta = _metadata(self.model, self.processor, model)

    def encode(self, inputs: Any, *, task_metadata: Any, **kwargs: Any) -> torch.Tensor:
        """
        Returns the L2-normalized embeddings of texts, images or videos, (inputs, projection_dim), on the CPU.

        Args:
            inputs: a `DataLoader` from MTEB. Only its dataset is used, because its batches contain all frames of a
                video.
            task_metadata: metadata of the task, for messages.
            kwargs: `batch_size`, 16 by default, and `show_progress_bar`, true by default. Other options are not used.

        Raises:
            ValueError: a video or image cannot be read, or an input is not one text, image or video.
        """
        rows: Dataset = inputs.dataset
        given = [name for name in _MODALITIES if name in rows.column_names]
        if len(given) != 1:
            raise ValueError(
                f"{task_metadata.name} has {' and '.join(given) or 'neither texts, images nor videos'} in one input: "
                "a task can only be evaluated if each of its inputs is one text, one image or one video."
            )
        batch_size, progress = kwargs.get("batch_size", BATCH_SIZE), kwargs.get("show_progress_bar", True)
        if given == ["text"]:
            return embed_texts(
                self.model, self.processor, list(rows["text"]), batch_size=batch_size, progress=progress
            )
        processor = self.processor.video_processor
        if given == ["image"]:  # a clip of one frame, as in RegionLearnerProcessor
            processor = partial(processor, num_frames=1, fps=None, do_sample_frames=True)
        files = _undecoded(rows, given[0])
        embeds, unreadable = embed_videos(
            self.model, processor, files, batch_size=batch_size, num_workers=self.num_workers, progress=progress
        )
        if unreadable:
            raise ValueError(
                f"{len(unreadable)} of the {len(files)} {given[0]}s of {task_metadata.name} cannot be read, and "
                f"without them it would be another task; the first: {next(iter(unreadable.values()))}"
            )
        return embeds


def _undecoded(rows: Dataset, column: str) -> Sequence[Any]:
    """Returns videos or images without decoding them: `datasets` would need torchcodec, and decode all frames."""
    feature, rows = rows.features[column], rows.select_columns([column])
    if isinstance(feature, Image | Video):
        rows = rows.cast_column(column, type(feature)(decode=False))
    return rows[column]


def _metadata(model: Any, processor: Any, name: str) -> ModelMeta:
    """
    Returns the metadata under which MTEB saves results. The revision of a directory is a digest of its files, so that
    the results of other weights with the same name are never mistaken for those of this model.
    """
    about = describe_model(model, name)
    is_local = os.path.isdir(name)
    weights = about["weights"]
    if is_local and not weights:  # in another format than safetensors
        weights = {path.name: digest_of_file(path) for path in sorted(Path(name).glob("pytorch_model*.bin"))}
    files = json.dumps([weights, about["files"]], sort_keys=True).encode()
    return ModelMeta.create_empty(
        {
            "name": f"local/{Path(name).resolve().name}" if is_local else name,
            "revision": about["revision"] or hashlib.sha256(files).hexdigest()[:40],
            "reference": None if is_local else f"https://huggingface.co/{name}",
            "n_parameters": about["parameters"],
            "embed_dim": model.config.projection_dim,
            "max_tokens": processor.tokenizer.model_max_length,
            "similarity_fn_name": ScoringFunction.COSINE,
            "framework": ["PyTorch", "Transformers"],
            "use_instructions": False,
            "modalities": list(_MODALITIES),
        }
    )


def video_retrieval_tasks() -> dict[str, Any]:
    """
    Returns, by name, the retrieval tasks of MTEB that have videos, and in which each query and each document is one
    text, one image or one video. Their data are not loaded.
    """
    logging_of_mteb = logging.getLogger("mteb")
    level = logging_of_mteb.level
    logging_of_mteb.setLevel(logging.ERROR)  # two warnings for each task in beta
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tasks = mteb.get_tasks(task_types=_TASK_TYPES, categories=_CATEGORIES, exclude_beta=False)
    finally:
        logging_of_mteb.setLevel(level)
    return {task.metadata.name: task for task in sorted(tasks, key=lambda task: task.metadata.name)}


def choose_tasks(names: Sequence[str] | None = None) -> list[Any]:
    """
    Returns tasks from [`video_retrieval_tasks`].

    Args:
        names: names of tasks. The default is all tasks that are not in beta.

    Raises:
        ValueError: a name is not the name of such a task.
    """
    known = video_retrieval_tasks()
    if names is None:
        return [task for task in known.values() if not task.metadata.is_beta]
    if unknown := next((name for name in names if name not in known), None):
        raise ValueError(f"{unknown!r} is not a video retrieval task of MTEB{nearest_or_all(unknown, known)}")
    tasks = [known[name] for name in dict.fromkeys(names)]
    if beta := [task.metadata.name for task in tasks if task.metadata.is_beta]:
        logger.warning("These tasks are in beta, so MTEB may still change their data and scores: %s", ", ".join(beta))
    return tasks


def evaluate_on_mteb(
    encoder: MTEBEncoder, tasks: Sequence[Any], output: str | Path | None = None, *, batch_size: int = 16
) -> tuple[dict[str, dict[str, float | None]], dict[str, str]]:
    """
    Evaluates a model on tasks of MTEB, which writes its results to a file for each task. Tasks that already have
    results are not evaluated again.

    Args:
        encoder: the model.
        tasks: tasks from [`choose_tasks`], or any other tasks of MTEB.
        output: directory of MTEB's results. The default is that of MTEB, `~/.cache/mteb` or the environment variable
            `MTEB_CACHE`.
        batch_size: videos or texts per batch.

    Returns:
        The scores of each task in percent, and the error message of each task that could not be evaluated, by name.

    Example:

        scores, failures = evaluate_on_mteb(MTEBEncoder("CHECKPOINT"), choose_tasks(["MSVDT2VRetrieval"]), "results")
        scores["MSVDT2VRetrieval"]["ndcg_at_10"]
    """
    scores: dict[str, dict[str, float | None]] = {}
    failures: dict[str, str] = {}
    cache = mteb.ResultCache(output)
    for task in tasks:
        try:
            found = mteb.evaluate(
                encoder,
                task,
                cache=cache,
                encode_kwargs={"batch_size": batch_size, "show_progress_bar": sys.stderr.isatty()},
                show_progress_bar=False,
                public_only=False,
            )
        except Exception as error:
            if not is_for_user(error):
                raise
            failures[task.metadata.name] = in_one_line(error)
        else:
            scores |= _rows(found.task_results[0])
    return scores, failures


def results_directory(encoder: MTEBEncoder, output: str | Path | None = None) -> Path:
    """Returns the directory of MTEB's files with the results of a model; `output` as in [`evaluate_on_mteb`]."""
    return mteb.ResultCache(output).get_task_result_path("task", encoder.mteb_model_meta).parent


def _rows(result: Any) -> dict[str, dict[str, float | None]]:
    """Returns one row of scores for each split and subset of a task."""
    rows = {
        (split, found["hf_subset"]): {
            name: None if found.get(name) is None else 100 * float(found[name]) for name in _SCORES
        }
        for split, parts in result.scores.items()
        for found in parts
    }
    return {" ".join((result.task_name, *key * (len(rows) > 1))): row for key, row in rows.items()}

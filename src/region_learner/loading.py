"""The processor of a checkpoint."""

import os
from typing import Any

from transformers import AutoProcessor, PreTrainedConfig
from transformers.utils import cached_file

from .text_tower import check_text_tower


def load_processor(name: str | os.PathLike, text_config: PreTrainedConfig | None) -> Any:
    """
    Returns the processor of a checkpoint, after a look whether its tokenizer fits the text tower; or, for those who
    read no texts, its video processor alone.

    Args:
        name: a directory or Hub name.
        text_config: of the text tower; None for the video processor alone.

    Raises:
        OSError: the checkpoint has no such files.
        ValueError: it has no tokenizer, or one that does not fit.
    """
    if text_config is None:
        from transformers import AutoVideoProcessor

        return AutoVideoProcessor.from_pretrained(name)
    try:
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        files = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
        if any(cached_file(name, file, _raise_exceptions_for_missing_entries=False) for file in files):
            raise
        raise ValueError(
            f"{name} has no tokenizer, and texts cannot be read without: convert it again with --tokenizer, or save "
            "that of its text encoder there, such as AutoTokenizer.from_pretrained('distilbert-base-uncased')"
            f".save_pretrained({os.fspath(name)!r})."
        ) from error
    check_text_tower(text_config, processor.tokenizer)
    return processor

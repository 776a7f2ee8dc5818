"""From rows of a corpus to a batch of the model: decodes clips, chooses captions. Runs in the loader's workers."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from ..evaluation.metrics import IGNORED_ID
from ..video_processing_region_learner import VideoDecodeError


def stable_id(video_id: str) -> int:
    """A number for a video's id that is the same in every process: 62 bits of its BLAKE2 digest."""
    return int.from_bytes(hashlib.blake2b(video_id.encode(), digest_size=8).digest()) >> 2


class RegionLearnerCollator:
    """
    Makes batches of `input_ids`, `attention_mask`, `pixel_values_videos` (B, T, C, H, W), `video_ids` (B,) and
    `return_loss=True` from rows with the columns `video`, `video_id` and `captions`.

    For training, frames, crop and caption are drawn at random (by torch's generator, which the Trainer seeds in each
    worker); for evaluation, middle frames, centre crop and the first caption.

    A video that cannot be read never becomes black frames. In training another row of `dataset` takes its place; in
    evaluation another row of the batch, with the id -1, so that it counts for nothing. The batch tells of it in
    `unreadable`, pairs of video id and reason.

    Args:
        processor (`RegionLearnerProcessor`): decodes, transforms and tokenizes.
        training (`bool`): random or fixed choices.
        dataset (sequence of rows, *optional*): where replacements come from; by default the batch itself.
    """

    MAX_REPLACEMENTS = 20  # in a row, before the corpus is taken to be broken

    def __init__(self, processor, training: bool, dataset: Sequence[dict[str, Any]] | None = None):
        self.processor = processor
        self.training = training
        self.dataset = dataset

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        unreadable: list[tuple[str, str]] = []
        decoded = [(row, self._decode(row, unreadable)) for row in rows]
        good = [(row, clip) for row, clip in decoded if clip is not None]
        pairs = []
        for row, clip in decoded:
            video_id = stable_id(row["video_id"])
            if clip is None and self.training:
                row, clip = self._replacement(good, unreadable)
                video_id = stable_id(row["video_id"])
            elif clip is None:
                if not good:
                    raise VideoDecodeError(f"no video of a batch can be read, the first: {unreadable[0][1]}")
                (row, clip), video_id = good[0], IGNORED_ID
            pairs.append((row, clip, video_id))
        batch = dict(self.processor(text=[self._caption(row) for row, _, _ in pairs], return_tensors="pt"))
        return batch | {
            "pixel_values_videos": torch.stack([clip for _, clip, _ in pairs]),
            "video_ids": torch.tensor([video_id for _, _, video_id in pairs]),
            "return_loss": True,
            "unreadable": unreadable,
        }

    def _decode(self, row: dict[str, Any], unreadable: list[tuple[str, str]]) -> torch.Tensor | None:
        try:
            clips = self.processor.video_processor([row["video"]], training=self.training, return_tensors="pt")
        except VideoDecodeError as error:
            unreadable.append((row["video_id"], str(error)))
            return None
        return clips["pixel_values_videos"][0]

    def _replacement(self, good, unreadable) -> tuple[dict[str, Any], torch.Tensor]:
        source: Sequence = self.dataset if self.dataset is not None else [row for row, _ in good]
        for _ in range(self.MAX_REPLACEMENTS if len(source) else 0):
            row = source[int(torch.randint(len(source), ()))]
            clip = self._decode(row, unreadable)
            if clip is not None:
                return row, clip
        raise VideoDecodeError(f"no readable video found in place of unreadable ones, the last: {unreadable[-1][1]}")

    def _caption(self, row: dict[str, Any]) -> str:
        captions = row["captions"]
        return captions[int(torch.randint(len(captions), ()))] if self.training else captions[0]

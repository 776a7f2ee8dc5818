"""
Defines which part of a clip matches a phrase, for both metrics (`evaluation`) and pictures.

**Which region.** A model with `token_dim` embeds each word of a text and each region of a clip. The similarity of a
phrase and a region is the mean of the cosines of its words with the region, weighted by `text_token_weights`. The
region with the highest similarity is the one that the phrase finds.

**Which heat map.** The heat map of a region is the weight that it gives to each position of each frame (see
`region_masks`). A region of the whole clip has weights in all frames; a region of one frame has 0 in all others. A
model without regions compares words with single patches. A phrase can then match all similar patches, not only the
best one, so its heat map consists of the similarities themselves, with 0 in place of negative ones, which mean that
something else is there.

**Which positions.** A phrase matches the *area* of its heat map: the positions above Otsu's threshold, over all frames
of the clip together, because what the phrase means may be visible in only some of them. Heat maps are enlarged
frame by frame.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .inference import evaluation_mode
from .region_masks import RegionFocus, region_focus

logger = logging.getLogger(__name__)

Span = tuple[int, int]  # the first character, and the one after the last

# A word may have a hyphen or an apostrophe within, straight or curved.
_WORD = re.compile("\\w+(?:['\N{RIGHT SINGLE QUOTATION MARK}-]\\w+)*")

# Words with less than this share of the mean weight per word are not shown by themselves.
_LEAST_WEIGHT = 0.2


@dataclass(frozen=True)
class PhraseMatch:
    """
    The part of a clip that matches a phrase.

    Args:
        text: the phrase.
        span: position of the phrase in the text.
        weight: share of the text's weight that its words have.
        similarity: similarity with the region that the phrase finds, between -1 and 1.
        region: index of this region, or patch, in `video_token_embeds`. None if the text was truncated before the
            phrase.
        heat_map: (T, h, w), at least 0; 0 everywhere if there is no region.
    """

    text: str
    span: Span
    weight: float
    similarity: float
    region: int | None
    heat_map: torch.Tensor

    @property
    def peak(self) -> tuple[int, float, float] | None:
        """The peak of the heat map: the frame, counted from 0, and the position in it from the left and from the top,
        as shares of the width and height. None if the heat map is 0 everywhere."""
        if not self.heat_map.any():
            return None
        _, height, width = self.heat_map.shape
        frame, row, column = np.unravel_index(int(self.heat_map.argmax()), self.heat_map.shape)
        return int(frame), (float(column) + 0.5) / width, (float(row) + 0.5) / height


def check_tokens(model) -> None:
    """
    Checks that a model compares words with regions.

    Raises:
        ValueError: the model has no embeddings of words and regions.
    """
    if not getattr(model.config, "token_dim", 0):
        raise ValueError(
            "The model does not compare words with regions (token_dim=0), so it cannot locate phrases: train one that "
            """does, for example with --config '{"token_dim": 64, "phrase_window": 7}'."""
        )


def find_phrases(
    model, processor, pixel_values_videos: torch.Tensor, text: str, spans: Sequence[Span] | None = None
) -> list[PhraseMatch]:
    """
    Returns which part of a clip matches each phrase of a text.

    Args:
        model: a dual encoder with `token_dim`.
        processor: its processor.
        pixel_values_videos: the clip, (1, T, C, height, width) or (T, C, height, width).
        text: the text.
        spans: for each phrase, its first character and the one after its last; by default the whole text.

    Raises:
        ValueError: the model does not compare words with regions, its tokenizer does not map tokens to characters,
            there is not exactly one clip, or a span is outside of the text or without a word.

    Example:

        clip = processor(videos=["clip.mp4"])["pixel_values_videos"]
        (match,) = find_phrases(model, processor, clip, "a red square")
        match.heat_map  # (T, h, w)
    """
    pairs = embed_pairs(model, processor, _one_clip(pixel_values_videos), [text])
    return pairs.find(0, [(0, len(text))] if spans is None else spans)


@dataclass(frozen=True)
class EmbeddedPairs:
    """
    Clips and their texts, as [`embed_pairs`] returns them.

    Args:
        texts: B texts.
        offsets: for each token of each text, its first character and the one after its last, (B, L, 2).
        outputs: of the model, for both.
    """

    texts: Sequence[str]
    offsets: torch.Tensor
    outputs: Any

    def find(self, row: int, spans: Sequence[Span]) -> list[PhraseMatch]:
        """Returns which part of the clip of a pair matches each phrase of its text."""
        text, outputs = self.texts[row], self.outputs
        words, weights = outputs.text_token_embeds[row].float(), outputs.text_token_weights[row].float()
        cosines = words @ outputs.video_token_embeds[row].float().T  # (L, n)
        maps = self.region_maps(row)
        matches = []
        for span in spans:
            tokens = self._tokens(row, span)
            weight = float(weights[tokens].sum())
            best: int | None = None
            similarity, heat = 0.0, torch.zeros(self.grid())
            if tokens:
                shares = weights[tokens] + torch.finfo(weights.dtype).tiny  # they may all be 0
                similarities = (shares / shares.sum()) @ cosines[tokens]
                best = int(similarities.argmax())
                similarity = float(similarities[best])
                heat = similarities.clamp(min=0).view(self.grid()) if maps is None else maps[best]
            matches.append(PhraseMatch(text[slice(*span)], span, weight, similarity, best, heat.cpu()))
        return matches

    def are_near(self, region: int | None, other: int | None) -> bool:
        """Returns whether two regions are the same one, or two patches the same one or next to each other."""
        if region is None or other is None:
            return False
        if self.outputs.video_model_output.region_masks is not None:
            return region == other
        places = np.array(np.unravel_index([region, other], self.grid()))  # frames, rows and columns, (3, 2)
        frames, *distances = np.abs(places[:, 0] - places[:, 1]).tolist()
        return frames == 0 and max(distances) <= 1

    def grid(self) -> tuple[int, int, int]:
        """Returns the frames, rows and columns of heat maps."""
        frames, height, width = self.outputs.video_model_output.patch_states.shape[1:4]
        return frames, height, width

    def region_maps(self, row: int) -> torch.Tensor | None:
        """Returns the heat map of each region of a clip, (n, T, h, w); None for a model without regions."""
        masks = self.outputs.video_model_output.region_masks
        if masks is None:
            return None
        focus = region_focus(masks[row].float())
        maps = focus.weights() * focus.scale  # (T, S, h, w)
        if self.outputs.video_token_embeds.shape[1] == maps.shape[1]:  # a region belongs to the clip
            return maps.transpose(0, 1)
        own_frame = torch.eye(len(maps), dtype=maps.dtype, device=maps.device)
        return torch.einsum("tshw,tu->tsuhw", maps, own_frame).flatten(0, 1)

    def _tokens(self, row: int, span: Span) -> list[int]:
        """Returns the tokens that share a character, other than a space, with a phrase."""
        text, (start, end) = self.texts[row], span
        if not 0 <= start < end <= len(text) or not text[start:end].strip():
            raise ValueError(f"The span {span} contains no words of the text {text!r}.")
        characters = {at for at in range(start, end) if not text[at].isspace()}
        return [at for at, (a, b) in enumerate(self.offsets[row].tolist()) if characters & set(range(a, b))]


def embed_pairs(model, processor, pixel_values_videos: torch.Tensor, texts: Sequence[str]) -> EmbeddedPairs:
    """
    Runs a model on B clips (B, T, C, height, width) and as many texts.

    Raises:
        ValueError: the model does not compare words with regions, or its tokenizer does not map tokens to characters.
    """
    check_tokens(model)
    if not processor.tokenizer.is_fast:
        raise ValueError(
            f"{type(processor.tokenizer).__name__} does not map tokens to characters: load the fast tokenizer of this "
            "model."
        )
    inputs = processor(text=list(texts), return_tensors="pt", return_offsets_mapping=True)
    offsets = inputs.pop("offset_mapping")
    with evaluation_mode(model):
        outputs = model(**inputs.to(model.device), pixel_values_videos=pixel_values_videos.to(model.device))
    return EmbeddedPairs(texts, offsets, outputs)


def find_words(model, processor, pixel_values_videos: torch.Tensor, text: str) -> list[PhraseMatch]:
    """
    Returns which part of a clip matches a text as a whole, and then which part matches each of its phrases. A phrase
    consists of neighboring words, without punctuation between them, that find the same region, or patches that touch.
    Words with hardly any weight are left out. If the text is too long, a warning names the words that the model does
    not read.

    Args:
        model, processor, pixel_values_videos, text: as in [`find_phrases`].

    Raises:
        ValueError: as [`find_phrases`].

    Example:

        clip = processor(videos=["clip.mp4"])["pixel_values_videos"]
        for match in find_words(model, processor, clip, "a red square moves left"):
            print(match.text, match.similarity, match.peak)  # peak: (frame, x, y)
    """
    pairs = embed_pairs(model, processor, _one_clip(pixel_values_videos), [text])
    spans = [word.span() for word in _WORD.finditer(text)]
    found = pairs.find(0, spans)
    words = [word for word in found if word.region is not None]
    if not words:
        raise ValueError(f"The text {text!r} has no words that can be found.")
    if len(words) < len(found):
        logger.warning(
            "The text is too long: the model reads it up to %r, without the last %d words.",
            words[-1].text,
            len(found) - len(words),
        )
    least = _LEAST_WEIGHT * sum(word.weight for word in words) / len(words)
    phrases: list[Span] = []
    before = None  # the region of the word before, if it has a weight
    for word in words:
        if word.weight < least:
            before = None
            continue
        if pairs.are_near(before, word.region) and not text[phrases[-1][1] : word.span[0]].strip():
            phrases[-1] = (phrases[-1][0], word.span[1])
        else:
            phrases.append(word.span)
        before = word.region
    return pairs.find(0, [(0, len(text)), *phrases])


def _one_clip(pixel_values_videos: torch.Tensor) -> torch.Tensor:
    clip = pixel_values_videos if pixel_values_videos.ndim == 5 else pixel_values_videos[None]
    if clip.ndim != 5 or len(clip) != 1:
        raise ValueError(f"Give one clip, (T, C, H, W), to find phrases in, not {tuple(pixel_values_videos.shape)}.")
    return clip


def phrase_focus(heat_maps: torch.Tensor) -> RegionFocus:
    """
    Returns heat maps (P, T, h, w) with the threshold that bounds the area of each, over all frames of the clip.

    Returns:
        Values and thresholds (P, T, h, w) and (P, 1, 1, 1), of which `areas(size)` are (P, T, height, width).
    """
    frames = heat_maps.shape[1]
    focus = region_focus(heat_maps.flatten(1, 2), signed=False)  # frames below one another: (P, T * h, w)
    values = focus.values.unflatten(1, (frames, -1))
    return RegionFocus(values, focus.scale[..., None], focus.threshold[..., None], signed=False)

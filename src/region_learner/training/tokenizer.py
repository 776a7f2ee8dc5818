"""A small tokenizer for models that are trained from scratch."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """
    Returns a tokenizer: a byte-pair encoding of lower-case words, which is trained on texts. Texts become
    `[CLS] ... [SEP]`, padded with `[PAD]`, id 0. The same texts in the same order give the same tokenizer in every
    process. (This is not true of WordPiece, whose trainer numbers tokens in the order of a hash map.)

    Args:
        texts: the training texts.
        vocab_size: maximum number of tokens.
        max_length: texts are truncated to this number of tokens.

    Raises:
        ValueError: `vocab_size` leaves no room for words.
    """
    if vocab_size <= len(_SPECIAL):
        raise ValueError(
            f"vocab_size={vocab_size} must be greater than the number of special tokens, {len(_SPECIAL)}."
        )
    tokenizer = Tokenizer(models.BPE(unk_token=_SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(_SPECIAL.values()), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **_SPECIAL)

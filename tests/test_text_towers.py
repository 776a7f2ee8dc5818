"""Tests that embeddings of texts do not depend on the batch, and that mismatched tokenizers are refused early."""

import logging

import pytest
import torch
from transformers import (
    BertConfig,
    CLIPTextConfig,
    DistilBertModel,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    Qwen3Config,
    RobertaConfig,
    Siglip2TextConfig,
    SiglipTextConfig,
    ViTConfig,
    ViTModel,
    XLNetConfig,
)

from region_learner import RegionLearnerConfig, RegionLearnerModel, RegionLearnerProcessor, RegionLearnerVideoProcessor
from region_learner.conversion import processor_from_towers
from region_learner.loading import load_checkpoint
from region_learner.modeling_region_learner import _end_of_text
from region_learner.text_tower import check_text_tower
from region_learner.training import build_model
from region_learner.training.arguments import ModelArguments
from region_learner.training.tokenizer import train_tokenizer

from .conftest import TINY_VIDEO, tiny_model, tiny_text_config

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 99,
    "max_position_embeddings": 32,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
PAD, EOS = 1, 98
TOWERS = {
    "distilbert": lambda: tiny_text_config(pad_token_id=PAD),
    "bert": lambda: BertConfig(**SIZES, **NO_DROPOUT, pad_token_id=PAD),
    "roberta": lambda: RobertaConfig(**SIZES, **NO_DROPOUT, pad_token_id=PAD, eos_token_id=EOS),
    "clip": lambda: CLIPTextConfig(**SIZES, eos_token_id=EOS, bos_token_id=97, pad_token_id=PAD),
    "siglip": lambda: SiglipTextConfig(**SIZES, eos_token_id=EOS, bos_token_id=97, pad_token_id=PAD),
    "siglip2": lambda: Siglip2TextConfig(**SIZES, eos_token_id=EOS, bos_token_id=97, pad_token_id=PAD),
    "gpt2": lambda: GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=99, n_positions=32, bos_token_id=EOS, eos_token_id=EOS
    ),
    "llama": lambda: LlamaConfig(**SIZES, eos_token_id=EOS, bos_token_id=97),
    "qwen3": lambda: Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8, eos_token_id=[EOS, 96], bos_token_id=97),
}
DEFAULTS = {
    **{"distilbert": "first", "bert": "pooler", "roberta": "first", "clip": "eos", "siglip": "pooler"},
    **{"siglip2": "pooler", "gpt2": "last", "llama": "last", "qwen3": "last"},
}
CASES = [
    *DEFAULTS.items(),
    *[(name, "mean") for name in TOWERS],
    *[(name, "first") for name in ("bert", "siglip")],
    *[(name, "last") for name in ("bert", "roberta", "clip", "siglip")],
    *[(name, "eos") for name in ("roberta", "siglip", "gpt2", "qwen3")],
]

# Texts of several lengths with the same beginning and the same end.
TEXTS = [[5, 10, 11, EOS], [5, 12, EOS], [5, 13, 14, 15, 16, 17, EOS], [5, EOS]]


def padded(side: str, length: int, texts=TEXTS) -> dict[str, torch.Tensor]:
    ids, mask = torch.full((len(texts), length), PAD), torch.zeros(len(texts), length, dtype=torch.long)
    for row, text in enumerate(texts):
        where = slice(length - len(text), length) if side == "left" else slice(len(text))
        ids[row, where], mask[row, where] = torch.tensor(text), 1
    return {"input_ids": ids, "attention_mask": mask}


def by_hand(model: RegionLearnerModel, text: list[int]) -> torch.Tensor:
    """Returns the embedding of a text that its tower encodes alone, without padding."""
    tower, pooling = model.text_model, model.config.resolved.text_pooling
    if "siglip" in model.config.text_config.model_type:  # its texts are always padded to this length, without a mask
        outputs = tower(input_ids=torch.tensor([text + [PAD] * (32 - len(text))]))
    else:
        outputs = tower(input_ids=torch.tensor([text]))
    states = outputs.last_hidden_state[0, : len(text)]
    feature = {
        "first": lambda: states[0],
        "last": lambda: states[-1],
        "eos": lambda: states[text.index(EOS)],
        "mean": lambda: states.mean(0),
        "pooler": lambda: outputs.pooler_output[0],
    }[pooling]()
    return torch.nn.functional.normalize(model.text_projection(feature.relu()), dim=-1)


@pytest.mark.parametrize(("name", "pooling"), CASES)
@torch.no_grad()
def test_a_text_has_the_same_embedding_in_every_batch(name, pooling):
    model = tiny_model(text=TOWERS[name](), text_pooling=pooling)
    expected = torch.stack([by_hand(model, text) for text in TEXTS])
    assert torch.pdist(expected).min() > 1e-3  # different texts have different embeddings
    for side in ("right", "left"):
        for length in (7, 12):
            embeds = model(**padded(side, length)).text_embeds
            torch.testing.assert_close(embeds, expected, rtol=1e-5, atol=1e-5)
    inputs = padded("left", 12)  # padding has no influence, whatever its ids are
    inputs["input_ids"] = inputs["input_ids"].where(inputs["attention_mask"].bool(), 21)
    torch.testing.assert_close(model(**inputs).text_embeds, expected, rtol=1e-5, atol=1e-5)
    if name.startswith("siglip"):  # their tokenizers return no mask
        ids = padded("right", 12)["input_ids"]
        torch.testing.assert_close(model(input_ids=ids).text_embeds, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "pooling"), CASES)
def test_every_parameter_that_is_trained_gets_a_gradient(name, pooling):
    """SigLIP always has a head. If it is not used, it is frozen: DDP fails on trained weights without gradients."""
    model = tiny_model(text=TOWERS[name](), text_pooling=pooling).train()
    model(**padded("right", 7)).text_embeds[:, 0].sum().backward()
    without = [name for name, weight in model.text_model.named_parameters() if weight.grad is None]
    assert not [name for name in without if model.text_model.get_parameter(name).requires_grad]
    assert (without == ["head.weight", "head.bias"]) == ("siglip" in name and pooling != "pooler")


def test_an_encoder_without_attention():
    text = MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=99, state_size=4, pad_token_id=PAD)
    outputs = tiny_model(text=text).get_text_features(**padded("right", 7))
    assert outputs.attentions is None
    assert outputs.pooler_output.shape == (4, 16)


@pytest.mark.parametrize("name", TOWERS)
def test_default_pooling(name):
    assert RegionLearnerConfig(text_config=TOWERS[name]()).resolved.text_pooling == DEFAULTS[name]


def test_default_pooling_of_encoders_and_decoders():
    def pooling(kind, **options):
        return RegionLearnerConfig(text_config={"model_type": kind, **options}).resolved.text_pooling

    assert pooling("bert-generation") == pooling("xlnet") == pooling("mpnet") == pooling("modernbert") == "first"
    assert pooling("qwen2") == pooling("mistral") == pooling("opt") == pooling("modernbert-decoder") == "last"
    assert pooling("roberta", is_decoder=True) == pooling("bert", is_decoder=True) == "last"
    assert pooling("llama", is_causal=False) == pooling("gemma3_text", use_bidirectional_attention=True) == "first"


@torch.no_grad()
def test_states_are_in_the_order_of_the_tokens():
    model = tiny_model(text=TOWERS["gpt2"]())
    model.set_attn_implementation("eager")
    inputs = padded("left", 9)
    features = model.get_text_features(**inputs, output_hidden_states=True, output_attentions=True)
    for row, text in enumerate(TEXTS):
        alone = model.text_model(torch.tensor([text]), output_hidden_states=True, output_attentions=True)
        length = len(text)
        torch.testing.assert_close(features.last_hidden_state[row, -length:], alone.last_hidden_state[0])
        torch.testing.assert_close(features.hidden_states[1][row, -length:], alone.hidden_states[1][0])
        ours, theirs = features.attentions[0][row, :, -length:, -length:], alone.attentions[0][0]
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_states_of_full_length_towers_are_those_of_the_tokens(side):
    """SigLIP's texts are padded to full length, but the states of that padding are not returned."""
    model = tiny_model(text=TOWERS["siglip"]())
    model.set_attn_implementation("eager")
    inputs = padded(side, 9)
    features = model.get_text_features(**inputs, output_hidden_states=True, output_attentions=True)
    assert features.attentions[0].shape[-2:] == (9, 9)
    for row, text in enumerate(TEXTS):
        padding = [model.config.text_config.pad_token_id] * (32 - len(text))
        alone = model.text_model(torch.tensor([text + padding]), output_hidden_states=True)
        mine = inputs["attention_mask"][row].bool()
        for ours, theirs in ((features.last_hidden_state, alone.last_hidden_state),
                             (features.hidden_states[1], alone.hidden_states[1])):  # fmt: skip
            assert ours.shape[1] == 9
            torch.testing.assert_close(ours[row, mine], theirs[0, : len(text)], rtol=1e-4, atol=1e-5)


def test_any_of_several_tokens_ends_a_text():
    """Llama 3 has several such tokens. A truncated text ends with its last token. Padding may be such a token, too."""
    config = LlamaConfig(**SIZES, eos_token_id=[7, 8], bos_token_id=1)
    tokens = torch.tensor([[1, 5, 8, 7], [1, 7, 8, 8], [1, 5, 6, 8], [1, 5, 6, 4]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    assert _end_of_text(tokens, mask, config).tolist() == [2, 1, 2, 3]


@torch.no_grad()
def test_the_token_that_ends_a_text_may_begin_it():
    """GPT-2 and OPT use the same token for both."""
    model = tiny_model(text=TOWERS["gpt2"](), text_pooling="eos")
    texts = [[EOS, 10, 11, EOS, 12], [EOS, 10, 13], [EOS]]
    expected = []
    for text, position in zip(texts, (3, 2, 0)):
        state = model.text_model(torch.tensor([text])).last_hidden_state[0, position]
        expected.append(torch.nn.functional.normalize(model.text_projection(state.relu()), dim=-1))
    for side in ("right", "left"):
        embeds = model(**padded(side, 7, texts)).text_embeds
        torch.testing.assert_close(embeds, torch.stack(expected), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_segments_and_positions_move_with_the_tokens():
    model = tiny_model(text=TOWERS["bert"]())
    right, left = padded("right", 9), padded("left", 9)
    for inputs in (right, left):
        mask = inputs["attention_mask"]
        inputs["token_type_ids"] = (mask.cumsum(1) > 2).long() * mask
        inputs["position_ids"] = 20 - mask.cumsum(1)
    torch.testing.assert_close(model(**left).text_embeds, model(**right).text_embeds)


@pytest.mark.parametrize("name", ["gpt2", "llama", "clip"])
def test_the_first_token_of_a_causal_tower_is_refused(name):
    with pytest.raises(ValueError, match=r"does not attend to the text.*Set text_pooling='last'"):
        tiny_model(text=TOWERS[name](), text_pooling="first")
    with pytest.raises(ValueError, match="text_pooling='pooler' takes a token that does not attend to the text"):
        tiny_model(text=BertConfig(**SIZES, is_decoder=True), text_pooling="pooler")


def test_poolings_that_the_tower_does_not_support():
    with pytest.raises(ValueError, match="eos_token_id of the 'distilbert' text_config is None"):
        tiny_model(text_pooling="eos")
    model = tiny_model(text_pooling="pooler")
    with pytest.raises(ValueError, match="DistilBertModel does not pool"):
        model(**padded("right", 9))


# Tokenizers


def tokenizer(**changes):
    tokenizer = train_tokenizer(["a red square moves to the left", "two blue disks"], 60, 1000)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def test_a_tokenizer_that_pads_left():
    """Captions have the same embeddings in one batch and one by one, whichever side is padded."""
    texts = ["a red square", "two blue disks moves to the left", "disks"]
    model = tiny_model(text=GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=99, n_positions=32))
    for side in ("left", "right"):
        processor = RegionLearnerProcessor(RegionLearnerVideoProcessor(), tokenizer(padding_side=side))
        with torch.no_grad():
            together = model(**processor(text=texts)).text_embeds
            alone = torch.cat([model(**processor(text=text)).text_embeds for text in texts])
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (tiny_text_config(), 32),
        (GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=99, n_positions=32), 32),
        (CLIPTextConfig(**SIZES, eos_token_id=EOS, bos_token_id=97), 32),
        (SiglipTextConfig(**SIZES), 32),
        (LlamaConfig(**SIZES), 32),
        (RobertaConfig(**SIZES, pad_token_id=0), 31),
        (RobertaConfig(**SIZES, pad_token_id=1), 30),
        (OPTConfig(hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=99,
                   max_position_embeddings=32, word_embed_proj_dim=32), 32),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)  # fmt: skip
def test_texts_are_truncated_to_the_positions_of_the_tower(config, positions, caplog):
    """The model runs on the longest text, and with learned positions it fails on one more token."""
    its = tokenizer()
    its.pad_token = its.convert_ids_to_tokens(config.pad_token_id or 0)
    with caplog.at_level(logging.INFO, logger="region_learner"):
        check_text_tower(config, its)
    assert its.model_max_length == positions
    assert f"truncated to {positions} tokens" in caplog.text
    model = tiny_model(text=config)
    processor = RegionLearnerProcessor(RegionLearnerVideoProcessor(), its)
    inputs = processor(text="two blue disks " * 100)
    assert inputs["input_ids"].shape[1] == positions
    assert model(**inputs).text_embeds.isfinite().all()
    if config.model_type != "llama":
        with pytest.raises(ValueError, match=f"max_length={positions + 1} is more than the {positions} tokens"):
            processor(text="two blue disks " * 100, max_length=positions + 1)
        longer = its("two blue disks " * 100, max_length=positions + 1, truncation=True, return_tensors="pt")
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            model(**longer)
    its.model_max_length = 5  # a shorter limit is kept
    check_text_tower(config, its)
    assert its.model_max_length == 5


def test_a_tokenizer_without_a_limit():
    """No limit is set where the tower has more positions than the processor's own limit."""
    its = tokenizer(model_max_length=10**30)
    check_text_tower(XLNetConfig(d_model=32, n_layer=1, n_head=4, d_inner=64, vocab_size=99), its)  # says -1
    assert its.model_max_length == 10**30
    check_text_tower(LlamaConfig(**SIZES | {"max_position_embeddings": 100_000}), its)
    assert its.model_max_length == 10**30
    check_text_tower(LlamaConfig(**SIZES), its)
    assert its.model_max_length == 32


def test_a_tokenizer_without_padding(caplog):
    its = tokenizer(pad_token=None, eos_token="[SEP]")
    with caplog.at_level(logging.INFO, logger="region_learner"):
        check_text_tower(tiny_text_config(), its)
    assert its.pad_token == "[SEP]"
    assert "texts are padded with '[SEP]'" in caplog.text
    with pytest.raises(ValueError, match="neither a padding token nor an end-of-text token"):
        check_text_tower(tiny_text_config(), tokenizer(pad_token=None))


def test_tokens_that_the_tower_does_not_embed():
    largest = max(tokenizer().get_vocab().values())
    check_text_tower(tiny_text_config(vocab_size=largest + 1), tokenizer())
    with pytest.raises(ValueError, match=rf"tokens up to id {largest}, but the text tower .*embeds only {largest}"):
        check_text_tower(tiny_text_config(vocab_size=largest), tokenizer())


def test_a_new_tower_takes_texts_of_all_its_positions(tmp_path):
    its = tokenizer()
    its.model_max_length = 512
    its.save_pretrained(tmp_path)
    sizes = {"model_type": "distilbert", "dim": 32, "hidden_dim": 64, "n_layers": 1, "n_heads": 4}
    arguments = ModelArguments(text_config=sizes, tokenizer=str(tmp_path), video_config=TINY_VIDEO)
    model, processor = build_model(arguments)
    assert model.config.text_config.max_position_embeddings == processor.tokenizer.model_max_length == 512


def test_a_mismatched_pair_is_refused_when_it_is_built(tmp_path):
    its = tokenizer()
    text = tiny_text_config(vocab_size=20)
    ViTModel(ViTConfig(image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
                       intermediate_size=64)).save_pretrained(tmp_path / "vit")  # fmt: skip
    DistilBertModel(text).save_pretrained(tmp_path / "text")
    its.save_pretrained(tmp_path / "text")
    tiny_model(text=text).save_pretrained(tmp_path / "model")
    RegionLearnerProcessor(RegionLearnerVideoProcessor(), its).save_pretrained(tmp_path / "model")
    vit, text_tower, model = (str(tmp_path / name) for name in ("vit", "text", "model"))
    for build in (
        lambda: processor_from_towers(vit, text_tower),
        lambda: build_model(ModelArguments(video_tower=vit, text_tower=text_tower)),
        lambda: build_model(ModelArguments(model=model)),
        lambda: build_model(ModelArguments(text_config=text.to_dict(), tokenizer=text_tower)),
        lambda: load_checkpoint(model, "retrieval"),
    ):
        with pytest.raises(ValueError, match="embeds only 20: use the tokenizer that belongs to the text tower"):
            build()


def test_padding_that_positions_skip_must_be_that_of_the_tokenizer():
    with pytest.raises(ValueError, match=r"pads with id 0, but .* skips id 1 as padding"):
        check_text_tower(RobertaConfig(**SIZES, pad_token_id=1), tokenizer())


def test_siglip_adopts_the_padding_of_its_tokenizer():
    config = SiglipTextConfig(**SIZES, pad_token_id=1)
    check_text_tower(config, tokenizer())
    assert config.pad_token_id == 0

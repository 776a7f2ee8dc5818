"""Tests of checkpoints in sentence-transformers, with single vectors and with words and regions."""

import json
import re

import pytest
import torch
from PIL import Image

from region_learner import RegionLearnerModel

from .conftest import ROOT, tiny_model, tiny_video_model
from .test_heads import HEADS, run_python, tiny_head
from .test_pipelines import TEXTS, clip_files, tiny_processor  # noqa: F401

pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model(token_dim=8, phrase_window=3).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def picture(level: int = 200) -> Image.Image:
    return Image.linear_gradient("L").resize((48, 40)).convert("RGB").point(lambda value: value * level // 255)


def outputs_of(checkpoint, **inputs):
    with torch.no_grad():
        return RegionLearnerModel.from_pretrained(checkpoint)(**tiny_processor()(**inputs))


def test_embeds_texts_videos_and_images(checkpoint, clip_files, tmp_path):  # noqa: F811
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(checkpoint), trust_remote_code=True)
    outputs, images = outputs_of(checkpoint, text=TEXTS, videos=clip_files), [picture(), picture(90)]
    for given, expected in (
        (TEXTS, outputs.text_embeds),
        (clip_files, outputs.video_embeds),
        ([{"video": path} for path in clip_files], outputs.video_embeds),
        (images, outputs_of(checkpoint, images=images).video_embeds),
    ):
        found = encoder.encode(given, convert_to_tensor=True, batch_size=2)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(given)))
    assert encoder.get_embedding_dimension() == 16
    similarity = encoder.similarity(encoder.encode(TEXTS), encoder.encode(clip_files))
    torch.testing.assert_close(similarity, outputs.text_embeds @ outputs.video_embeds.T, rtol=1e-5, atol=1e-5)

    encoder.prompts["query"] = "a video of "
    encoder.save_pretrained(str(tmp_path))  # our files do not replace those of sentence-transformers
    again = SentenceTransformer(str(tmp_path), trust_remote_code=True)
    assert again.prompts["query"] == "a video of "
    assert (again.encode(images) == encoder.encode(images)).all()


WITHOUT_PACKAGE = """
import sys
sys.modules["region_learner"] = None
import json
import numpy as np
import torch
from sentence_transformers import SentenceTransformer

torch.set_num_threads(1)
encoder = SentenceTransformer(sys.argv[1], trust_remote_code=True)
assert type(encoder[0].model).__module__.startswith("transformers_modules.")
np.savez(sys.argv[2], texts=encoder.encode(json.loads(sys.argv[3])), videos=encoder.encode(json.loads(sys.argv[4])))
"""


def test_without_the_package(checkpoint, clip_files, tmp_path):  # noqa: F811
    import numpy as np

    output = str(tmp_path / "embeds.npz")
    arguments = (str(checkpoint), output, json.dumps(TEXTS), json.dumps(clip_files))
    run_python(WITHOUT_PACKAGE, *arguments, home=tmp_path / "home", HF_HUB_OFFLINE="1")
    outputs, found = outputs_of(checkpoint, text=TEXTS, videos=clip_files), np.load(output)
    np.testing.assert_allclose(found["texts"], outputs.text_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(found["videos"], outputs.video_embeds.numpy(), atol=1e-5)


def test_a_video_tower_embeds_videos(clip_files, tmp_path):  # noqa: F811
    from sentence_transformers import SentenceTransformer

    model, processor = tiny_video_model().eval(), tiny_processor().video_processor
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    encoder = SentenceTransformer(str(tmp_path), trust_remote_code=True)
    with torch.no_grad():
        expected = model(processor(clip_files, return_tensors="pt")["pixel_values_videos"]).pooler_output
    found = encoder.encode(clip_files, convert_to_tensor=True)
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected), rtol=1e-5, atol=1e-5)
    for inputs in (TEXTS, [picture()]):
        with pytest.raises(ValueError, match=r"not supported by this SentenceTransformer .* modalities: video\."):
            encoder.encode(inputs)


@pytest.mark.parametrize("kind", HEADS)
def test_heads_embed_nothing(kind, clip_files, tmp_path):  # noqa: F811
    from sentence_transformers import SentenceTransformer

    tiny_head(kind).save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())
    encoder = SentenceTransformer(str(tmp_path), trust_remote_code=True)
    for inputs in (TEXTS, clip_files, [picture()]):
        with pytest.raises(ValueError, match="is not supported by this SentenceTransformer model"):
            encoder.encode(inputs)


def by_words(outputs) -> torch.Tensor:
    """Returns the text half of the word-region similarity, (texts, videos), computed naively from best regions."""
    scores = torch.zeros(len(outputs.text_embeds), len(outputs.video_embeds))
    for i, (words, weights) in enumerate(zip(outputs.text_token_embeds, outputs.text_token_weights)):
        for j, regions in enumerate(outputs.video_token_embeds):
            scores[i, j] = sum(
                weight * max((word @ region).item() for region in regions)
                for word, weight in zip(words, weights) if weight > 0
            )  # fmt: skip
    return scores


def test_words_and_regions(checkpoint, clip_files, tmp_path):  # noqa: F811
    from sentence_transformers import MultiVectorEncoder

    from region_learner.multi_vector import RegionLearnerTokens

    encoder = MultiVectorEncoder(modules=[RegionLearnerTokens(str(checkpoint))])
    expected = by_words(outputs_of(checkpoint, text=TEXTS, videos=clip_files))
    words, regions = encoder.encode_query(TEXTS), encoder.encode_document(clip_files)
    lengths = tiny_processor()(text=TEXTS)["attention_mask"].sum(1).tolist()
    assert [tuple(x.shape) for x in words] == [(length, 8) for length in lengths]
    assert [tuple(x.shape) for x in regions] == [(6, 8)] * 3  # 2 frames of 3 regions
    torch.testing.assert_close(encoder.similarity(words, regions), expected, rtol=1e-4, atol=1e-5)
    assert encoder.encode_document([picture()])[0].shape == (3, 8)

    encoder.save_pretrained(str(tmp_path))
    again = MultiVectorEncoder(str(tmp_path), trust_remote_code=True)
    torch.testing.assert_close(again.encode_query(TEXTS), words)
    with pytest.raises(KeyError, match="token_embeddings"):  # as documented: without `RegionLearnerTokens`
        MultiVectorEncoder(str(checkpoint), trust_remote_code=True).encode_query(TEXTS)


def test_words_and_regions_of_a_model_without_them(tmp_path):
    from region_learner.multi_vector import RegionLearnerTokens

    tiny_model().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not have word-region tokens: use a RegionLearnerModel"):
        RegionLearnerTokens(str(tmp_path))


def test_the_code_in_the_documentation_runs(checkpoint, clip_files, tmp_path, monkeypatch):  # noqa: F811
    """The first code block of the page runs unchanged, on other files."""
    page = (ROOT / "docs" / "sentence_transformers.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1)
    assert len(code.strip().splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    (tmp_path / "CHECKPOINT").symlink_to(checkpoint)
    for name, path in (("1.mp4", clip_files[0]), ("2.mp4", clip_files[1])):
        (tmp_path / name).symlink_to(path)
    picture().save(tmp_path / "photo.jpg")
    names: dict = {}
    exec(compile(code, "docs/sentence_transformers.md", "exec"), names)
    assert names["scores"].shape == (2, 2)
    assert names["photos"].shape == (1, 16)


def test_training_with_a_cached_loss(checkpoint, clip_files):  # noqa: F811
    """Each mini-batch passes the model twice, and the batch updates the codebook once."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    encoder = SentenceTransformer(str(checkpoint), trust_remote_code=True).train()
    model = encoder[0].model
    assert model.quantizer.num_updates == 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    codes = model.quantizer.embed.clone()
    loss = CachedMultipleNegativesRankingLoss(encoder, mini_batch_size=2)
    loss([encoder.preprocess(TEXTS), encoder.preprocess(clip_files)], torch.zeros(3)).backward()
    optimizer.step()
    assert model.quantizer.num_updates == 1
    assert not torch.equal(model.quantizer.embed, codes)
    for tower in ("text_model", "video_model", "text_projection", "video_projection"):
        of_tower = [name for name in weights if name.startswith(tower)]
        assert any(not torch.equal(model.get_parameter(name), weights[name]) for name in of_tower), tower

"""Tests of custom adapters, from `peft.get_peft_model` and `add_adapter`: what is saved is what was trained."""

import pytest
import torch
import transformers
from datasets import Dataset
from packaging.version import Version
from transformers import AutoModel, Trainer, TrainingArguments
from transformers.integrations.peft import MIN_PEFT_VERSION

from region_learner.training import CorpusPart, RegionLearnerTrainer, RegionLearnerTrainingArguments
from region_learner.training.adapters import merged, save_adapters

from .conftest import clips, texts, tiny_model
from .toy_run import DEFAULTS, Collator, Processor

peft = pytest.importorskip("peft")

QUANTIZER = "video_model.region_module.quantizer"
# Modules saved with the adapter: none, the codebook, or the whole region module.
SAVED = [None, ["quantizer"], ["region_module"]]


@pytest.fixture(autouse=True)
def any_version_of_peft(request, monkeypatch):
    """Skips the check of `add_adapter`: transformers 5.24 requires PEFT 0.22, which is not released yet."""
    if Version(peft.__version__) < Version(MIN_PEFT_VERSION) and "get_peft_model" not in request.node.name:
        monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda **options: None)


def lora(modules_to_save=None, **options):
    targets = {"target_modules": ["q_proj", "v_proj", "q_lin", "v_lin"], "init_lora_weights": False}
    return peft.LoraConfig(**{"r": 2, "modules_to_save": modules_to_save} | targets | options)


def own_adapters(kind, base, config):
    """Adds adapters to a model in one of the ways that users have."""
    if kind == "get_peft_model":
        return peft.get_peft_model(base, config)
    if config.modules_to_save and Version(transformers.__version__) < Version("5.18"):
        pytest.skip("load_adapter of transformers 5.17 does not load modules_to_save")
    base.add_adapter(config)
    return base


def load_again(kind, base, adapter):
    model = AutoModel.from_pretrained(base)
    if kind == "get_peft_model":
        return peft.PeftModel.from_pretrained(model, adapter)
    model.load_adapter(str(adapter))
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The path of a model with a trained codebook."""
    folder = tmp_path_factory.mktemp("base")
    model = tiny_model(codebook_decay=0.5).train()
    for seed in range(3):
        model(pixel_values_videos=clips(8, seed=seed), **texts(8, seed=seed))
    model.save_pretrained(folder)
    return folder


def train_a_few_steps(model, steps=3):
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for seed in range(steps):
        model(pixel_values_videos=clips(8, seed=9 + seed), **texts(8, seed=seed), return_loss=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def outputs(model):
    with torch.no_grad():
        found = model.eval()(pixel_values_videos=clips(6), **texts(6), return_loss=True)
    return found.text_embeds, found.video_embeds, found.loss


def assert_same_outputs(model, expected, exact=True):
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-5}
    for ours, theirs in zip(outputs(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


def codes(model):
    return model.quantizer.embed


@pytest.mark.parametrize("saved", SAVED, ids=str)
@pytest.mark.parametrize("kind", ["get_peft_model", "add_adapter"])
def test_adapters_load_as_they_were_trained(base, tmp_path, kind, saved):
    model = train_a_few_steps(own_adapters(kind, AutoModel.from_pretrained(base), lora(saved)))
    before = AutoModel.from_pretrained(base)
    assert torch.equal(codes(model), codes(before)) == (saved is None)  # the codebook learns if it is saved
    assert not torch.equal(outputs(model)[1], outputs(before)[1])
    expected = outputs(model)
    model.save_pretrained(tmp_path)
    again = load_again(kind, base, tmp_path)
    assert torch.equal(codes(again), codes(model))
    assert_same_outputs(again, expected)


@pytest.mark.skipif(Version(peft.__version__) >= Version(MIN_PEFT_VERSION), reason="this PEFT is new enough")
def test_transformers_refuses_an_old_peft(base, tmp_path, monkeypatch):
    """Its methods stop as docs/training.md says. With `get_peft_model`, the other tests do not skip the check."""
    monkeypatch.undo()  # what `any_version_of_peft` did
    adapted = own_adapters("get_peft_model", AutoModel.from_pretrained(base), lora())
    adapted.save_pretrained(tmp_path / "adapter")
    model = AutoModel.from_pretrained(base)
    with pytest.raises(ValueError, match="The version of PEFT you are using is not compatible"):
        model.add_adapter(lora())
    model.load_adapter(str(tmp_path / "adapter"))
    assert_same_outputs(model, outputs(adapted))
    with pytest.raises(ValueError, match="The version of PEFT you are using is not compatible"):
        model.save_pretrained(tmp_path)


def test_adapters_in_a_model_that_is_in_training_mode(tmp_path):
    """The codebook is frozen even if nothing calls `train()`, because new models are in training mode already."""
    model = tiny_model().train()
    adapted = peft.get_peft_model(model, lora())
    adapted(pixel_values_videos=clips(8), **texts(8), return_loss=True).loss.backward()
    assert torch.equal(codes(adapted), codes(tiny_model()))


def test_a_frozen_codebook_is_reported_once(base, caplog):
    from region_learner.modeling_region_learner import logger

    logger.warning_once.cache_clear()
    peft.get_peft_model(AutoModel.from_pretrained(base), lora(["quantizer"])).train()
    frozen = AutoModel.from_pretrained(base)
    frozen.quantizer.frozen = True
    peft.get_peft_model(frozen, lora()).train()
    without = peft.get_peft_model(AutoModel.from_pretrained(base), lora())
    assert "codebook" not in caplog.text  # no message without training, or if the codebook is saved or frozen anyway
    without.train()
    without.eval().train()
    assert caplog.text.count("The codebook is frozen") == 1
    assert 'modules_to_save=["quantizer"]' in caplog.text


@pytest.mark.parametrize("saved", SAVED, ids=str)
def test_merging(base, saved):
    model = train_a_few_steps(peft.get_peft_model(AutoModel.from_pretrained(base), lora(saved)))
    expected, trained = outputs(model), codes(model).clone()
    plain = model.merge_and_unload()
    assert not [name for name in plain.state_dict() if "lora_" in name or "modules_to_save" in name]
    assert torch.equal(codes(plain), trained)
    assert_same_outputs(plain, expected, exact=False)
    train_a_few_steps_in_full(plain)  # a plain model again, whose codebook learns
    assert not torch.equal(codes(plain), trained)


def test_a_second_adapter_may_train_the_codebook(base):
    model = peft.get_peft_model(AutoModel.from_pretrained(base), lora())
    model.add_adapter("other", lora(["quantizer"]))
    train_a_few_steps(model)
    before = codes(model).clone()
    model.set_adapter("other")
    train_a_few_steps(model)
    assert not torch.equal(codes(model), before)
    model.set_adapter("default")
    assert torch.equal(codes(model), before)


def test_deleted_adapters(base):
    model = AutoModel.from_pretrained(base)
    model.add_adapter(lora())
    model.delete_adapter("default")
    before = codes(model).clone()
    assert not torch.equal(codes(train_a_few_steps_in_full(model)), before)


def train_a_few_steps_in_full(model):
    return train_a_few_steps(model.requires_grad_(True))


# The Trainers


class Evaluated:
    """Returns preset metric values, one per step."""

    values = (3.0, 1.0, 2.0)

    def evaluate(self, *args, **kwargs):
        return {"eval_t2v_MeanR": self.values[self.state.global_step - 1]}


class Plain(Evaluated, Trainer):
    """The Trainer of transformers."""

    def __init__(self, model, folder, **options):
        rows = Dataset.from_dict({"video_id": [str(i) for i in range(24)]})
        args = TrainingArguments(output_dir=str(folder), remove_unused_columns=False, **options)
        super().__init__(model, args, data_collator=self.collate, train_dataset=rows, eval_dataset=rows)

    def collate(self, rows):
        batch = Collator()(rows)
        del batch["unreadable"]
        return batch


class Ours(Evaluated, RegionLearnerTrainer):
    def __init__(self, model, folder, **options):
        rows = Dataset.from_dict({"video_id": [str(i) for i in range(24)]})
        super().__init__(
            model=model,
            args=RegionLearnerTrainingArguments(output_dir=str(folder), **options),
            processing_class=Processor(),
            train_dataset=[CorpusPart(rows, 4, num_frames=2)],
            eval_dataset=rows,
            data_collator=Collator(),
        )


def run(trainer_class, kind, base, folder, saved, **options):
    defaults = {"max_steps": 3, "learning_rate": 0.05, "save_strategy": "steps", "save_steps": 1, "seed": 5}
    model = own_adapters(kind, AutoModel.from_pretrained(base), lora(saved, init_lora_weights=True))
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():  # the same in each run
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return trainer_class(model, folder, **DEFAULTS | defaults | options)


RUNS = [(Plain, "get_peft_model"), (Ours, "get_peft_model"), (Ours, "add_adapter")]


@pytest.mark.parametrize("saved", SAVED[:2], ids=str)
@pytest.mark.parametrize(("trainer_class", "kind"), RUNS)
def test_checkpoints_of_a_run(base, tmp_path, trainer_class, kind, saved):
    """`checkpoint-N` loads as the model at that step; a resumed run equals one that was not interrupted."""
    whole = run(trainer_class, kind, base, tmp_path / "whole", saved)
    whole.train()
    expected, trained = outputs(whole.model), codes(whole.model)
    folder = tmp_path / "whole" / "checkpoint-3"
    if trainer_class is Ours:  # the checkpoint itself is a plain model
        assert_same_outputs(AutoModel.from_pretrained(folder), expected, exact=False)
        folder = folder / "adapter"
    assert_same_outputs(load_again(kind, base, folder), expected)
    resumed = run(trainer_class, kind, base, tmp_path / "resumed", saved)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert torch.equal(codes(resumed.model), trained)
    assert_same_outputs(resumed.model, expected)


@pytest.mark.parametrize("saved", SAVED[:2], ids=str)
@pytest.mark.parametrize(("trainer_class", "kind"), RUNS)
def test_the_best_checkpoint(base, tmp_path, trainer_class, kind, saved):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "t2v_MeanR", "eval_strategy": "steps",
            "eval_steps": 1, "greater_is_better": False}  # fmt: skip
    trainer = run(trainer_class, kind, base, tmp_path, saved, **best)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    folder = tmp_path / "checkpoint-2" / ("adapter" if trainer_class is Ours else "")
    assert_same_outputs(load_again(kind, base, folder), outputs(trainer.model))
    other = load_again(kind, base, tmp_path / "checkpoint-3" / ("adapter" if trainer_class is Ours else ""))
    assert not torch.equal(outputs(other)[1], outputs(trainer.model)[1])
    assert torch.equal(codes(other), codes(trainer.model)) == (saved is None)


@pytest.mark.parametrize("saved", SAVED, ids=str)
def test_merging_what_add_adapter_added(base, saved):
    model = AutoModel.from_pretrained(base)
    model.add_adapter(lora(saved))
    expected = outputs(train_a_few_steps(model))
    plain = merged(model)
    assert plain.state_dict().keys() == AutoModel.from_pretrained(base).state_dict().keys()
    assert_same_outputs(plain, expected, exact=False)
    assert_same_outputs(model, expected)  # unchanged


@pytest.mark.parametrize("kind", ["get_peft_model", "add_adapter"])
def test_a_checkpoint_stores_one_adapter(base, tmp_path, kind):
    """Of several, only the first would be saved: refused before the first step, and by what saves."""
    trainer = run(Ours, kind, base, tmp_path / "run", None)
    if kind == "get_peft_model":
        trainer.model.add_adapter("b", lora())
        trainer.model.base_model.set_adapter(["default", "b"])
    else:
        trainer.model.add_adapter(lora(), adapter_name="b")
        trainer.model.set_adapter(["default", "b"])
    message = r"A checkpoint stores one adapter, but 2 adapters are active \(default, b\): activate one with"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    with pytest.raises(ValueError, match=message):
        save_adapters(trainer.model, tmp_path / "adapter")
    assert trainer.state.global_step == 0
    assert not (tmp_path / "adapter").exists()
    trainer.model.set_adapter("b")
    save_adapters(trainer.model, tmp_path / "adapter")
    again = load_again(kind, base, tmp_path / "adapter")
    assert_same_outputs(again, outputs(trainer.model))

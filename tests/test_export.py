"""Tests that exported programs match the model, with any number of texts, videos, frames and tokens."""

import copy
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.export import Dim

from region_learner import (
    RegionLearnerConfig,
    RegionLearnerForVideoClassification,
    RegionLearnerForVideoQuestionAnswering,
    RegionLearnerProcessor,
    modeling_region_learner,
)
from region_learner.cli import main
from region_learner.export import ExportedPart, _write_onnx, export_model, load_for_export, parts_of
from region_learner.modeling_region_learner import _roll

from .conftest import NO_REGIONS, TINY_VIDEO, clips, randomize, texts, tiny_model, tiny_text_config, tiny_video_model
from .test_pipelines import tiny_processor
from .test_text_towers import TOWERS

TOKENS = {"token_dim": 8}
PHRASES = {"token_dim": 8, "phrase_window": 3, "learn_temperature": True}
TUBES = {"region_form": "queries", "tube_mlp": True} | PHRASES
FORMS = {
    "decoupled": {},
    "paper": {"region_form": "paper"},
    "queries": {"region_form": "queries"},
    "tracks": {"region_form": "tracks"},
    "regions and words": TOKENS,
    "regions and phrases": PHRASES,
    "queries and phrases": {"region_form": "queries"} | PHRASES,
    "tubes": TUBES,
    # The recipes that train from scratch have these options.
    "tubes of an early layer": TUBES
    | {"codebook_size": 0, "interaction_layers": 0, "region_layer": 1, "video_pooling": "cls_patch_max"},
    "tubes without regions": NO_REGIONS | {"tube_mlp": True},
    "paper and words": {"region_form": "paper"} | TOKENS,
    "no regions": NO_REGIONS,
    "late fusion": {"temporal_fusion": "pool"},
    "linear fusion": {"temporal_fusion": "linear"},
    "motion": {"motion_excitation": True},
}
QUICK = ("tubes",)  # the others are in the slow tier


def forms(*quick: str):
    marks = {name: () if name in quick else pytest.mark.slow for name in FORMS}
    return pytest.mark.parametrize("form", [pytest.param(name, marks=marks[name]) for name in FORMS])


def exported(part: torch.nn.Module, inputs: dict, dynamic_axes: dict):
    dynamic = {name: dict.fromkeys(axes, Dim.DYNAMIC) for name, axes in dynamic_axes.items()}
    return torch.export.export(part, (), inputs, dynamic_shapes=dynamic, strict=False).module()


def assert_same(program, part, inputs) -> None:
    found, expected = program(**inputs), part(**inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                found[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
            )


@forms(*QUICK)
@torch.no_grad()
def test_parts_of_every_form(form, monkeypatch):
    monkeypatch.setattr(modeling_region_learner, "_DISTANCES_AT_ONCE", 200)  # several chunks of features per clip
    model = tiny_model(**FORMS[form])
    for name in ("text", "video", "model"):
        part = ExportedPart(model, name).eval()
        program = exported(part, part.example(batch=2, frames=2, length=4), part.dynamic_axes)
        for batch, frames, length in ((1, 1, 32), (12, 4, 9), (3, 3, 2)):
            assert_same(program, part, part.example(batch, frames, length, seed=batch))


@pytest.mark.slow
@torch.no_grad()
def test_single_frames_without_motion():
    """A model with motion excitation skips it for images, and so does a program that was exported with clips."""
    model = tiny_video_model(motion_excitation=True)
    program = exported(model, {"pixel_values_videos": clips(2, 2)}, {"pixel_values_videos": {0: "b", 1: "t"}})
    assert_same(program, model, {"pixel_values_videos": clips(3, 1)})
    assert_same(program, model, {"pixel_values_videos": clips(3, 4)})


@pytest.mark.slow
@pytest.mark.parametrize("form", ["decoupled", "paper", "queries", "tracks", "motion", "late fusion"])
@torch.no_grad()
def test_masked_frames(form):
    model = tiny_video_model(**FORMS[form])
    axes = {0: "b", 1: "t"}
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    program = exported(
        model,
        {"pixel_values_videos": clips(2, 3), "frame_mask": mask},
        {"pixel_values_videos": axes, "frame_mask": axes},
    )
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1], [1, 1, 1, 1], [1, 0, 0, 0]])
    assert_same(program, model, {"pixel_values_videos": clips(5, 4), "frame_mask": mask})


@pytest.mark.slow
@torch.no_grad()
def test_models_of_single_frames():
    part = ExportedPart(tiny_model(num_frames=1), "video").eval()
    program = exported(part, part.example(**next(part.sizes())), part.dynamic_axes)
    assert_same(program, part, part.example(batch=5, frames=1))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "last"])
@torch.no_grad()
def test_text_poolings_with_padding_on_the_left(pooling):
    part = ExportedPart(tiny_model(text_pooling=pooling), "text").eval()
    program = exported(part, part.example(), part.dynamic_axes)
    inputs = texts(3, 9)
    inputs["attention_mask"][1, :4] = 0
    assert_same(program, part, inputs)


@pytest.mark.parametrize("tower", ["siglip", pytest.param("clip", marks=pytest.mark.slow)])
@torch.no_grad()
def test_texts_of_any_length_up_to_all_positions(tower):
    """SigLIP's encoder takes texts that are padded to all of its positions, as its tokenizer pads them."""
    model = tiny_model(text=TOWERS[tower]())
    part = ExportedPart(model, "text").eval()
    program = exported(part, part.example(length=8), part.dynamic_axes)
    for length in (2, 31, 32):
        assert_same(program, part, part.example(batch=3, length=length))


def test_roll_with_shifts_of_both_signs():
    x = torch.arange(40).view(4, 5, 2)
    for sign in (1, -1):
        shifts = torch.tensor([0, 1, 3, 4]) * sign
        expected = torch.stack([row.roll(int(shift), 0) for row, shift in zip(x, shifts)])
        assert torch.equal(_roll(x, shifts), expected)
    first = torch.stack([row[:3].roll(shift, 0) for row, shift in zip(x, (0, -1, 2, 1))])
    assert torch.equal(_roll(x, torch.tensor([0, -1, 2, 1]), length=3), first)
    swapped = _roll(x.transpose(1, 2), torch.tensor([0, 1, 3, 4]), dim=2)
    assert torch.equal(swapped.transpose(1, 2), _roll(x, torch.tensor([0, 1, 3, 4])))


def heads():
    config = RegionLearnerConfig(
        video_config=TINY_VIDEO, text_config=tiny_text_config(), projection_dim=16, num_labels=3
    )
    for kind in (RegionLearnerForVideoClassification, RegionLearnerForVideoQuestionAnswering):
        yield randomize(kind(config)).eval()


@pytest.mark.slow
@torch.no_grad()
def test_heads_and_towers_alone():
    for model in (*heads(), tiny_video_model()):
        for name in parts_of(model):
            part = ExportedPart(model, name).eval()
            assert len(part(**part.example())) >= 1
            program = exported(part, part.example(batch=2, frames=2, length=4), part.dynamic_axes)
            assert_same(program, part, part.example(batch=5, frames=3, length=9))


def test_unknown_formats_parts_and_models(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="format='onxx' is not known; choose one of onnx, openvino"):
        export_model(tiny_model(), tmp_path, "onxx")
    with pytest.raises(ValueError, match="Linear cannot be exported: expected one of RegionLearnerModel"):
        parts_of(torch.nn.Linear(1, 1))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"needs .*onnxscript, onnxruntime: pip install 'region-learner\[export\]'"):
        export_model(tiny_model(), tmp_path, "onnx")


def test_models_in_another_precision(tmp_path, monkeypatch):
    monkeypatch.setattr("region_learner.export.check_format", lambda format: None)
    model = tiny_model().bfloat16()
    with pytest.raises(ValueError, match=r"is torch.bfloat16 on cpu: use `model.float\(\).cpu\(\)`"):
        export_model(model, tmp_path / "exported")
    model.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    loaded, _ = load_for_export(str(tmp_path))
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize(("size", "is_beside"), [(2**30, False), (2**31, True)])
def test_large_weights_are_saved_beside_the_file(size, is_beside, tmp_path, monkeypatch):
    """What counts is the size of the weights that are written: those of one part, including buffers."""
    weights = {"embed": SimpleNamespace(const_value=SimpleNamespace(nbytes=size))}
    saved = []
    program = SimpleNamespace(
        model=SimpleNamespace(graph=SimpleNamespace(initializers=weights)),
        save=lambda path, external_data: saved.append(external_data),
    )
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: program)
    _write_onnx(ExportedPart(tiny_model(), "text").eval(), tmp_path / "text.onnx")
    assert saved == [is_beside]


# --- ONNX, OpenVINO, AOTInductor ------------------------------------------------------------------------------------


def needs(format: str) -> None:
    for name in {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}[
        format
    ]:
        pytest.importorskip(name)


def onnx_outputs(path, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {name: value.numpy() for name, value in inputs.items()})))


def openvino_outputs(path, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    import openvino

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = model({name: value.numpy() for name, value in inputs.items()})
    return {output.get_any_name(): result[output] for output in model.outputs}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", ["decoupled", "paper", "tubes", "tubes of an early layer", "no regions"])
@pytest.mark.parametrize("format", ["onnx", "openvino"])
@torch.no_grad()
def test_files_of_other_runtimes(format, form, tmp_path):
    needs(format)
    model = tiny_model(**FORMS[form])
    results = export_model(model, tmp_path, format, ["text", "video", "model"])
    assert all(0 <= result["difference"] < 1e-5 for result in results.values())
    run = onnx_outputs if format == "onnx" else openvino_outputs
    inputs = {**texts(7, 5), "pixel_values_videos": clips(11, 3)}
    inputs["attention_mask"][2, 3:] = 0
    outputs = model(**inputs)
    for name in ("text", "video", "model"):
        part = ExportedPart(model, name)
        found = run(tmp_path / results[name]["file"], {key: inputs[key] for key in part.dynamic_axes})
        assert list(found) == results[name]["outputs"]
        for key, value in found.items():
            expected = getattr(outputs, key) if key in outputs else getattr(outputs.video_model_output, key)
            np.testing.assert_allclose(value, expected.numpy(), rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_wrong_program_is_not_passed_off_as_the_model(tmp_path, monkeypatch):
    needs("onnx")
    from region_learner import export

    def write(part, path):
        names = original(part, path)
        part.model.text_projection.bias.data += 0.01
        return names

    original = export._write_onnx
    monkeypatch.setattr(export, "_write_onnx", write)
    with pytest.raises(ValueError, match=r"text.onnx does not compute the same as the model: text_embeds differs by"):
        export_model(tiny_model(), tmp_path, "onnx", ["text"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("form", ["decoupled", "tubes"])
@torch.no_grad()
def test_ahead_of_time_inductor(form, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    for name in ("text", "video", "model"):
        part = ExportedPart(tiny_model(**FORMS[form]), name).eval()
        inputs = part.example(batch=2, frames=2, length=4)
        dynamic = {key: dict.fromkeys(axes, Dim.DYNAMIC) for key, axes in part.dynamic_axes.items()}
        program = torch.export.export(part, (), inputs, dynamic_shapes=dynamic)
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / f"{name}.pt2"))
        assert_same(torch._inductor.aoti_load_package(package), part, part.example(batch=5, frames=3, length=9))


@pytest.mark.slow
@torch.no_grad()
def test_the_exporters_of_transformers():
    """The Dynamo exporter works. The other exporters of transformers lower its result, to ExecuTorch for example."""
    pytest.importorskip("transformers.exporters")
    from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

    model = tiny_video_model()
    exported = DynamoExporter().export(model, {"pixel_values_videos": clips(2, 3)}, DynamoConfig(dynamic=True))
    program = exported.program.module()
    expected = model(pixel_values_videos=clips(5, 4)).pooler_output
    torch.testing.assert_close(program(pixel_values_videos=clips(5, 4)).pooler_output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of executorch
@pytest.mark.parametrize("form", ["decoupled", "queries"])
@torch.no_grad()
def test_executorch(form):
    pytest.importorskip("executorch.runtime", reason="executorch is not installed", exc_type=ImportError)
    from transformers.exporters.exporter_executorch import ExecutorchConfig, ExecutorchExporter

    model = tiny_model(region_form=form)
    towers = (
        (
            model.video_model,
            "pooler_output",
            {"pixel_values_videos": clips(2, 3)},
            {"pixel_values_videos": clips(2, 3, seed=5)},
        ),
        (model.text_model, "last_hidden_state", texts(), texts(seed=5)),
    )
    for tower, output, example, inputs in towers:
        exported = ExecutorchExporter().export(tower, dict(example), ExecutorchConfig(backend="xnnpack"))
        expected = getattr(tower(**inputs), output)
        torch.testing.assert_close(getattr(exported(**inputs), output), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["decoupled", "tubes"])
@torch.no_grad()
def test_int8(form):
    """With int8 weights, and with int8 activations as well, embeddings stay close, but are not the same."""
    quantization = pytest.importorskip("torchao.quantization")
    model = tiny_model(**FORMS[form]).eval()
    inputs = {**texts(5, 6), "pixel_values_videos": clips(5, 3)}
    expected = model(**inputs)
    for config in (quantization.Int8WeightOnlyConfig, quantization.Int8DynamicActivationInt8WeightConfig):
        quantized = copy.deepcopy(model)
        quantization.quantize_(quantized, config())
        found = quantized(**inputs)
        for name in ("text_embeds", "video_embeds"):
            cosines = (found[name] * expected[name]).sum(1)
            assert 0.99 < cosines.min() < 1 - 1e-7, name


# --- The command ----------------------------------------------------------------------------------------------------


def test_mistakes_are_reported(tmp_path, capsys):
    for arguments, message in (
        (
            ["nowhere/at/all", str(tmp_path), "--format", "onxx"],
            "format='onxx' is not known; choose one of onnx, open",
        ),
        (["nowhere/at/all"], "Missing argument 'OUTPUT'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["export", *arguments])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
def test_the_command(tmp_path, capsys):
    needs("onnx")
    model, processor = tiny_model(), tiny_processor()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--format", "onnx"])
    assert stopped.value.code == 0
    table = capsys.readouterr().out
    assert re.search(r"text\.onnx +1 +\d\.\de-0\d", table), table
    inputs = RegionLearnerProcessor.from_pretrained(tmp_path / "out")(text=["a red square", "a circle"])
    found = onnx_outputs(tmp_path / "out" / "text.onnx", inputs)
    np.testing.assert_allclose(found["text_embeds"], model(**inputs).text_embeds.numpy(), atol=1e-5)


@pytest.mark.slow
def test_models_load_for_export_with_their_heads(tmp_path):
    for number, model in enumerate((*heads(), tiny_video_model())):
        model.save_pretrained(tmp_path / str(number))
        tiny_processor().save_pretrained(tmp_path / str(number))
        loaded, _ = load_for_export(str(tmp_path / str(number)))
        assert type(loaded) is type(model)


def with_errors_of(error: float, monkeypatch, outputs=("video_embeds", "region_masks")) -> None:
    """Replaces ONNX by "programs" that are text files, and compute what the model does except for an error."""
    from region_learner import export

    parts = {}

    def write(part, path):
        parts[path] = part
        path.write_text("program")
        return list(part(**part.example()))

    def run(path):
        def compute(inputs):
            found = parts[path](**{name: torch.from_numpy(value) for name, value in inputs.items()})
            off = {name: error * max(1, found[name].abs().max().item()) for name in outputs if name in found}
            return [(value + off.get(name, 0)).numpy() for name, value in found.items()]

        return compute

    monkeypatch.setattr(export, "check_format", lambda format: None)
    monkeypatch.setattr(export, "_write_onnx", write)
    monkeypatch.setattr(export, "_run_onnx", run)


def test_files_that_differ_by_more_than_1e_5_are_not_kept(tmp_path, monkeypatch):
    model = tiny_model()
    with_errors_of(5e-6, monkeypatch)
    results = export_model(model, tmp_path)
    assert results["video"]["difference"] == pytest.approx(5e-6, rel=0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.onnx", "video.onnx"]
    (tmp_path / "text.onnx").write_text("earlier")
    with_errors_of(5e-5, monkeypatch)
    message = (
        r"video.onnx does not compute the same .* differs by 5e-05 for .*; expected at most 1e-05. It was not kept"
    )
    with pytest.raises(ValueError, match=message):
        export_model(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.onnx", "video.onnx"]
    assert (tmp_path / "text.onnx").read_text() == "earlier"  # and not one of two models


def test_region_masks_with_motion_may_differ_more(tmp_path, monkeypatch):
    with_errors_of(5e-5, monkeypatch, ("region_masks",))
    with pytest.raises(ValueError, match=r"region_masks differs by .*; expected at most 1e-05"):
        export_model(tiny_model(), tmp_path)
    model = tiny_model(motion_excitation=True)
    assert 1e-5 < export_model(model, tmp_path)["video"]["difference"] < 1e-4
    with_errors_of(1e-2, monkeypatch, ("region_masks",))
    with pytest.raises(ValueError, match=r"region_masks differs by .*; expected at most 0.0001"):
        export_model(model, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_region_masks_with_motion(tmp_path):
    """They amplify rounding more than those of any other form."""
    needs("onnx")
    assert export_model(tiny_model(**FORMS["motion"]), tmp_path, "onnx", ["video"])["video"]["difference"] < 1e-4


@pytest.mark.slow
@torch.no_grad()
def test_the_exporters_of_transformers_with_texts():
    """The text tower, and the whole model. (The video tower is above.)"""
    pytest.importorskip("transformers.exporters")
    from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

    model = tiny_model()
    for inputs, others, names in (
        (texts(2, 6), texts(5, 9), ["last_hidden_state"]),
        (
            {**texts(2, 6), "pixel_values_videos": clips(2, 3)},
            {**texts(5, 9), "pixel_values_videos": clips(4, 4)},
            ["logits_per_video", "text_embeds", "video_embeds"],
        ),
    ):
        module = model if "pixel_values_videos" in inputs else model.text_model
        exported = DynamoExporter().export(module, dict(inputs), DynamoConfig(dynamic=True))
        found, expected = exported.program.module()(**others), module(**others)
        for name in names:
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5)

"""
Exports models to ONNX and OpenVINO, and compares the exported programs with PyTorch.

Each part of a model (`parts_of`) is exported as a separate program, with dynamic batch sizes, text lengths and numbers
of frames up to the limits of the model. `torch.export`, AOTInductor and other PyTorch compilers accept the same parts:
see `ExportedPart`.
"""

import importlib
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig

from .errors import install_hint
from .files import sync_tree
from .inference import evaluation_mode
from .loading import check_checkpoint, load_checkpoint

FORMATS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}

# The largest difference of a value between PyTorch and the exported program, in units of the largest value of its
# output (at least 1).
TOLERANCE = 1e-5
# The same for region masks with motion excitation, which amplifies rounding: PyTorch's own masks differ from those in
# float64 by as much.
MOTION_TOLERANCE = 1e-4

# Above this size, the weights do not fit in one ONNX file, which can have at most 2 GiB.
_LARGEST_FILE = 1.8 * 2**30

# The task that a checkpoint is loaded for, by the class that saved it; by default "retrieval".
_TASKS = {
    "RegionLearnerVideoModel": None,
    "RegionLearnerForVideoClassification": "classification",
    "RegionLearnerForVideoQuestionAnswering": "question_answering",
}

# Maximum number of random inputs to draw until all patches have the same codes in both programs.
_DRAWS = 3

_TEXT = {"input_ids": {0: "texts", 1: "length"}, "attention_mask": {0: "texts", 1: "length"}}
_VIDEO = {"pixel_values_videos": {0: "videos", 1: "frames"}}
_OF_TEXT = ("text_embeds", "text_token_embeds", "text_token_weights")
_OF_VIDEO = ("video_embeds", "video_token_embeds", "video_token_weights")
_OF_REGIONS = ("region_masks", "cluster_ids")


@dataclass(frozen=True)
class _Signature:
    """The inputs of a part, each with the names of its dynamic axes, and the outputs that it may have."""

    inputs: Mapping[str, Mapping[int, str]]
    outputs: Sequence[str]


_PARTS = {
    "RegionLearnerModel": {
        "text": _Signature(_TEXT, _OF_TEXT),
        "video": _Signature(_VIDEO, (*_OF_VIDEO, *_OF_REGIONS)),
        "model": _Signature(
            _TEXT | _VIDEO,
            ("logits_per_video", "logits_per_text", "token_logits_per_text", *_OF_TEXT, *_OF_VIDEO, *_OF_REGIONS),
        ),
    },
    "RegionLearnerVideoModel": {"video": _Signature(_VIDEO, ("pooler_output", "last_hidden_state", *_OF_REGIONS))},
    "RegionLearnerForVideoClassification": {"model": _Signature(_VIDEO, ("logits",))},
    "RegionLearnerForVideoQuestionAnswering": {
        "model": _Signature(
            {name: {0: "videos", 1: "length"} for name in _TEXT} | _VIDEO, ("logits",)
        ),  # one question per video
    },
}


class ExportedPart(nn.Module):
    """
    One part of a model to export, with tensors as inputs and a dictionary of tensors as outputs.

    Args:
        model: the model, in evaluation mode.
        name: "text", "video" or "model"; `parts_of` returns those that a model has.

    Attributes:
        dynamic_axes: the names of the dynamic axes of each input, such as `{"input_ids": {0: "texts", 1: "length"}}`.

    Example:

    ```python
    >>> part = ExportedPart(model, "video")
    >>> inputs = part.example(batch=2, frames=2)
    >>> dynamic = {name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for name, axes in part.dynamic_axes.items()}
    >>> program = torch.export.export(part, (), inputs, dynamic_shapes=dynamic)
    >>> program.module()(**part.example(batch=5, frames=1))["video_embeds"].shape
    torch.Size([5, 256])
    ```
    """

    def __init__(self, model: Any, name: str):
        super().__init__()
        self.model = model
        self.name = name
        self.training = model.training
        self._signature = _PARTS[_class_of(model)][name]
        self._max_frames: int | None = getattr(getattr(model, "video_model", model), "max_frames", None)
        self.dynamic_axes: dict[str, dict[int, str]] = {
            name: {axis: of for axis, of in axes.items() if of != "frames" or self._max_frames != 1}
            for name, axes in self._signature.inputs.items()
        }

    @property
    def video_config(self) -> Any:
        """The configuration of the video tower."""
        return getattr(self.model.config, "video_config", self.model.config)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Returns the outputs of this part that the model has, by their names."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values_videos": pixel_values_videos}
        outputs = self.model(**{name: given[name] for name in self._signature.inputs})
        found: dict[str, torch.Tensor] = {}
        for name in self._signature.outputs:
            value = getattr(outputs, name, None)
            if value is None and name in _OF_REGIONS:
                value = getattr(getattr(outputs, "video_model_output", None), name, None)
            if value is not None:
                found[name] = value
        return found

    def example(self, batch: int = 2, frames: int = 2, length: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
        """
        Returns random inputs: `batch` texts of up to `length` tokens with padding, or clips (`batch`, `frames`, C,
        height, width). With both, there is one text more than clips, unless the model needs as many texts as videos.
        """
        generator = torch.Generator().manual_seed(seed)
        inputs = {}
        if "input_ids" in self.dynamic_axes:
            one_each = self.dynamic_axes["input_ids"][0] == "videos" or len(self.dynamic_axes) == 2
            texts = batch if one_each else batch + 1
            vocabulary = self.model.config.text_config.vocab_size
            inputs["input_ids"] = torch.randint(vocabulary, (texts, length), generator=generator)
            lengths = torch.randint(math.ceil(length / 2), length + 1, (texts, 1), generator=generator)
            inputs["attention_mask"] = (torch.arange(length) < lengths).long()
        if "pixel_values_videos" in self.dynamic_axes:
            video = self.video_config
            size = video.image_size
            height, width = (size, size) if isinstance(size, int) else size
            inputs["pixel_values_videos"] = torch.randn(
                batch, frames, video.num_channels, height, width, generator=generator
            )
        return inputs

    def sizes(self) -> Iterator[dict[str, int]]:
        """Yields arguments of `example`: those to export with, and then others to compare with."""
        frames = self._max_frames or 8
        text: Any = getattr(self.model.config, "text_config", None)
        length = min(getattr(text, "max_position_embeddings", None) or 32, 32)
        yield {"batch": 2, "frames": min(2, frames), "length": max(2, length // 4)}
        yield {"batch": 1, "frames": 1, "length": length}
        yield {"batch": 3, "frames": frames, "length": max(2, length // 2)}


def parts_of(model: Any) -> list[str]:
    """
    Returns the names of the parts of a model: "text" and "video" are its towers, and "model" is the whole model.

    Raises:
        ValueError: it is not a model of this package.

    Example:

    ```python
    >>> parts_of(RegionLearnerModel.from_pretrained("CHECKPOINT"))
    ['text', 'video', 'model']
    ```
    """
    if _class_of(model) not in _PARTS:
        raise ValueError(f"{type(model).__name__} cannot be exported: expected one of {', '.join(_PARTS)}.")
    return list(_PARTS[_class_of(model)])


def _class_of(model: Any) -> str:
    return type(model).__name__  # with trust_remote_code, the class is another one of this name


def load_for_export(name: str) -> tuple[Any, Any]:
    """
    Returns the model of a checkpoint in float32, with the head that it was saved with, and its processor.

    Args:
        name: directory or Hub name of a RegionLearner, CLIP, MetaCLIP 2, SigLIP or SigLIP 2 checkpoint.

    Raises:
        ValueError: the checkpoint is damaged, or not of such a model.
        OSError: the directory or Hub model does not exist.

    Example:

    ```python
    >>> model, processor = load_for_export("CHECKPOINT")
    >>> model.dtype
    torch.float32
    ```
    """
    check_checkpoint(name)
    (architecture,) = (AutoConfig.from_pretrained(name).architectures or ["RegionLearnerModel"])[:1]
    model, processor = load_checkpoint(name, _TASKS.get(architecture, "retrieval"))
    return model.float(), processor


def check_format(format: str) -> None:
    """
    Checks that a format is known, and that the packages that it needs are installed.

    Raises:
        ValueError: the format is not known.
        ImportError: packages that it needs are not installed.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not known; choose one of {', '.join(FORMATS)}.")
    missing = []
    for name in FORMATS[format]:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ImportError(f"The format {format!r} needs {', '.join(missing)}: {install_hint('export')}")


def export_model(
    model: Any, output: str | Path, format: str = "onnx", parts: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """
    Exports the parts of a model to files, and compares each of them with the model in PyTorch, on random inputs whose
    sizes differ from those of the export. `output` gets the files only if all parts compute the same as the model.

    Args:
        model: a model of this package, in float32 on the CPU.
        output: directory, which is created if it does not exist.
        format: "onnx" (files `text.onnx`, `video.onnx`, `model.onnx`; weights of 1.8 GiB and more are stored next to
            the file), or "openvino" (`.xml` and `.bin`).
        parts: names of parts, see `parts_of`. By default the towers of a dual encoder, otherwise the whole model.

    Returns:
        For each part its `file`, its `outputs`, and the largest `difference` of any value, relative to the largest
        value of its output (at least 1).

    Raises:
        ValueError: the format or a part is not known, the model is not in float32 on the CPU, or the results of an
            exported program differ from the model's by more than 1e-5 (region masks with motion excitation: 1e-4), as
            `difference` is measured.
        ImportError: packages that the format needs are not installed.

    Example:

    ```python
    >>> export_model(RegionLearnerModel.from_pretrained("checkpoint"), "exported")["text"]["file"]
    'text.onnx'
    ```
    """
    check_format(format)
    known = parts_of(model)
    for name, weight in model.named_parameters():
        if weight.dtype != torch.float32 or weight.device.type != "cpu":
            raise ValueError(
                f"Models are exported in float32 on the CPU, but {name} is {weight.dtype} on {weight.device}: use "
                "`model.float().cpu()`."
            )
    parts = [name for name in known if name != "model"] or known if parts is None else list(parts)
    if unknown := [name for name in parts if name not in known]:
        raise ValueError(f"{_class_of(model)} has no part {unknown[0]!r}; choose from {', '.join(known)}.")
    directory = Path(output)
    directory.mkdir(parents=True, exist_ok=True)
    results = {}
    # Files are moved to `directory` after the comparison. (torch.export does not take tensors of inference mode.)
    with (
        evaluation_mode(model),
        torch.inference_mode(False),
        torch.no_grad(),
        tempfile.TemporaryDirectory(prefix=".export-", dir=directory) as partial,
    ):
        for name in parts:
            results[name] = _export_part(ExportedPart(model, name).eval(), Path(partial), format)
        sync_tree(Path(partial))
        for file in Path(partial).iterdir():
            file.replace(directory / file.name)
    return results


def _export_part(part: ExportedPart, directory: Path, format: str) -> dict[str, Any]:
    path = directory / f"{part.name}.{'onnx' if format == 'onnx' else 'xml'}"
    names = (_write_onnx if format == "onnx" else _write_openvino)(part, path)
    run = (_run_onnx if format == "onnx" else _run_openvino)(path)
    return {"file": path.name, "outputs": names, "difference": _compare(part, run, names, path)}


def _write_onnx(part: ExportedPart, path: Path) -> list[str]:
    """Writes a part as an ONNX file. Returns the names of its outputs."""
    inputs = part.example(**next(part.sizes()))
    names = list(part(**inputs))
    with warnings.catch_warnings():  # two axes of one name
        warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
        program: Any = torch.onnx.export(
            part,
            kwargs=inputs,
            dynamic_shapes={name: dict(axes) for name, axes in part.dynamic_axes.items()},
            input_names=list(inputs),
            output_names=names,
            dynamo=True,
            verbose=False,
        )
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    program.save(path, external_data=size > _LARGEST_FILE)
    return names


def _run_onnx(path: Path) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


def _write_openvino(part: ExportedPart, path: Path) -> list[str]:
    """Writes a part as OpenVINO's .xml and .bin, by way of ONNX. Returns the names of its outputs."""
    import openvino

    intermediate = path.with_name(f".{path.stem}.onnx")
    try:
        names = _write_onnx(part, intermediate)
        openvino.save_model(openvino.convert_model(intermediate), path, compress_to_fp16=False)
    finally:
        for file in (intermediate, intermediate.with_name(f"{intermediate.name}.data")):
            file.unlink(missing_ok=True)
    return names


def _run_openvino(path: Path) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    import openvino

    # The CPU plugin may compute in bfloat16 where the processor has it.
    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: list(compiled(inputs).to_tuple())


def _compare(
    part: ExportedPart, run: Callable[[dict[str, np.ndarray]], list[np.ndarray]], names: Sequence[str], path: Path
) -> float:
    """
    Returns the largest difference between a part and its exported program, relative to the largest value of an output.

    Raises:
        ValueError: they differ by more than rounding.
    """
    difference = 0.0
    for size in part.sizes():
        for seed in range(1, 1 + _DRAWS):
            inputs = part.example(**size, seed=seed)
            found = dict(zip(names, run({name: value.numpy() for name, value in inputs.items()})))
            differences = {
                name: _difference(value, found[name]) if found[name].shape == tuple(value.shape) else math.inf
                for name, value in part(**inputs).items()
            }
            # Because of rounding, a patch between two codes may get either of them, which changes the regions.
            if not 0 < differences.get("cluster_ids", 0) < math.inf:
                break
        difference = max(difference, *differences.values())
        for name, value in differences.items():
            is_inexact = name == "region_masks" and part.video_config.motion_excitation
            if value > (most := MOTION_TOLERANCE if is_inexact else TOLERANCE):
                raise ValueError(
                    f"{path.name} does not compute the same as the model: {name} differs by {value:.2g} for {size}; "
                    f"expected at most {most:g}. It was not kept: use the model in PyTorch, and please report this."
                )
    return difference


def _difference(expected: torch.Tensor, found: np.ndarray) -> float:
    values = expected.numpy()
    difference = float(np.abs(found - values).max()) / max(1.0, float(np.abs(values).max()))
    return difference if math.isfinite(difference) else math.inf  # comparisons with NaN would be false

"""Tests saving, loading and publishing: with the package, as remote code without it, and by name from a local Hub."""

import ast
import inspect
import json
import os
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoVideoProcessor

import region_learner
from region_learner.corpora.encoding import add_video_stream
from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .conftest import tiny_model, tiny_video_model
from .fresh_process import run_fresh
from .local_hub import TOKEN, LocalHub

PACKAGE = Path(region_learner.__file__).parent
PARTS = ("configuration", "loss", "modeling", "video_decoding", "video_processing", "processing", "pipeline")
SOURCES = {f"{part}_region_learner.py" for part in PARTS}
CAPTIONS = ["a red square moves left", "the blue circle"]
REPO = "tester/region-learner-tiny"


def load_and_run(source, video, captions, save_to=None, **options):
    """
    Loads everything in `source` through the Auto classes and runs it. The subprocesses below use this function, too.

    Returns the tensors that the processors and the model return, and the loaded objects by name.
    """
    loaded = {
        "config": AutoConfig.from_pretrained(source, **options),
        "model": AutoModel.from_pretrained(source, **options),
        "video_processor": AutoVideoProcessor.from_pretrained(source, **options),
        "bfloat16": AutoModel.from_pretrained(source, dtype=torch.bfloat16, **options),
    }
    clips = loaded["video_processor"]([video], return_tensors="pt")
    if is_dual := loaded["config"].model_type == "region_learner":
        loaded["processor"] = AutoProcessor.from_pretrained(source, **options)
        inputs = loaded["processor"](text=captions, videos=[video])
    else:
        inputs = clips
    with torch.no_grad():
        outputs = loaded["model"](**inputs)
    parts = {"clips": clips, "inputs": inputs, "outputs": outputs, "bfloat16": loaded["bfloat16"].state_dict()}
    if is_dual:
        parts["video_outputs"] = outputs.video_model_output
    tensors = {
        f"{part}.{name}": value.contiguous().clone()
        for part, values in parts.items()
        for name, value in values.items()
        if torch.is_tensor(value)
    }
    if save_to is not None:
        loaded["model"].save_pretrained(save_to)
        loaded["processor" if is_dual else "video_processor"].save_pretrained(save_to)
    return tensors, loaded


# The script of a process in which `import region_learner` fails. Each job has the arguments of `load_and_run` and an
# `output` folder, to which the script writes the tensors and a JSON file with everything else it found.
WITHOUT_PACKAGE = f"""
import sys
sys.modules["region_learner"] = None

import inspect, json
from pathlib import Path
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoVideoProcessor

torch.set_num_threads(1)

{inspect.getsource(load_and_run)}

for job in json.loads(sys.argv[1]):
    output = Path(job.pop("output"))
    refusals = {{}}
    for auto_class in (AutoConfig, AutoModel, AutoProcessor, AutoVideoProcessor):
        options = {{"revision": job["revision"]}} if "revision" in job else {{}}
        try:
            auto_class.from_pretrained(job["source"], **options)
        except Exception as error:
            refusals[auto_class.__name__] = f"{{type(error).__name__}}: {{error}}"
    tensors, loaded = load_and_run(**job, trust_remote_code=True)
    save_file(tensors, output / "tensors.safetensors")
    try:
        loaded["video_processor"]("https://127.0.0.1/video.mp4")
    except ValueError as error:
        refusals["URL"] = str(error)
    found = {{
        "refusals": refusals,
        "modules": sorted({{type(part).__module__ for part in loaded.values()}}),
        "config": loaded["config"].to_json_string(),
        "modeling": Path(inspect.getfile(type(loaded["model"]))).read_text(encoding="utf-8"),
    }}
    (output / "found.json").write_text(json.dumps(found), encoding="utf-8")
"""

# The script of a process that has the package. It pushes twice, in both possible ways, and then changes the code.
PUBLISH = """
import json, sys
import region_learner
from huggingface_hub import HfApi
from transformers import AutoModel, AutoProcessor

first, second, work, repo = sys.argv[1:]
model, processor = AutoModel.from_pretrained(first), AutoProcessor.from_pretrained(first)
model.push_to_hub(repo)
pinned = processor.push_to_hub(repo).oid
AutoModel.from_pretrained(second).save_pretrained(f"{work}/second", push_to_hub=True, repo_id=repo)
with open(f"{work}/second/modeling_region_learner.py", "a", encoding="utf-8") as file:
    file.write("\\n# A later version.\\n")
api = HfApi()
latest = api.upload_file(
    path_or_fileobj=file.name, path_in_repo="modeling_region_learner.py", repo_id=repo
).oid

loaded = {}  # no flag, as the package is there
for revision in (pinned, latest):
    model = AutoModel.from_pretrained(repo, revision=revision)
    processor = AutoProcessor.from_pretrained(repo, revision=revision)
    loaded[revision] = [isinstance(model, region_learner.RegionLearnerModel), model.text_projection.weight.tolist()]
    loaded[revision].append(isinstance(processor, region_learner.RegionLearnerProcessor))
with open(f"{work}/published.json", "w", encoding="utf-8") as file:
    files = [file.path for file in api.list_repo_tree(repo, revision=pinned)]
    report = {"user": api.whoami()["name"], "files": files, "pinned": pinned, "latest": latest, "loaded": loaded}
    json.dump(report, file)
"""


def run_python(script: str, *arguments: str, home: Path, **environment: str):
    """Runs `script` in a fresh process with its Hub cache in `home`, and asserts that it succeeds."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_")) and "_proxy" not in name.lower()
    }
    environment = {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    result = run_fresh(script, *arguments, environment=inherited | environment)
    assert result.returncode == 0, result.stdout + result.stderr


def run_without_package(jobs: dict[str, dict], work: Path, video: Path, home: Path, **environment: str):
    """Runs the jobs in one process without the package, and returns (tensors, findings) of each job by name."""
    for name, job in jobs.items():
        (work / name).mkdir(parents=True)
        job |= {"output": str(work / name), "video": str(video), "captions": CAPTIONS}
    run_python(WITHOUT_PACKAGE, json.dumps(list(jobs.values())), home=home, **environment)
    return {
        name: (
            load_file(work / name / "tensors.safetensors"),
            json.loads((work / name / "found.json").read_text(encoding="utf-8")),
        )
        for name in jobs
    }


def read_directory(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def assert_same_tensors(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def video(work):
    path = work / "video.mp4"
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = add_video_stream(container, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(8):
            image = random.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def checkpoints(work):
    """Saves two dual encoders with processors, and a video tower with a video processor. Returns their directories."""
    video_processor = RegionLearnerVideoProcessor.for_image_size(32)
    processor = RegionLearnerProcessor(video_processor, train_tokenizer(CAPTIONS, vocab_size=99, max_length=32))
    saved = {
        "first": (tiny_model(seed=0), processor),
        "second": (tiny_model(seed=1), processor),
        "video": (tiny_video_model(seed=2), video_processor),
    }
    for name, parts in saved.items():
        for part in parts:
            part.save_pretrained(work / name)
    return {name: work / name for name in saved}


@pytest.fixture(scope="module")
def expected(checkpoints, video, work):
    """
    Returns the results of `load_and_run` for each checkpoint in this process, which needs no flag, as it has the
    package. Saves each checkpoint again, in `again`.
    """
    again = work / "again"
    return {name: load_and_run(path, str(video), CAPTIONS, again / name) for name, path in checkpoints.items()}


@pytest.fixture(scope="module")
def hub():
    with LocalHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def published(hub, checkpoints, work):
    """Pushes "first" to the Hub, then "second" with changed code."""
    arguments = str(checkpoints["first"]), str(checkpoints["second"]), str(work), REPO
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    run_python(PUBLISH, *arguments, home=work / "publisher", **environment)
    return json.loads((work / "published.json").read_text(encoding="utf-8"))


def by_name(published: dict) -> dict[str, dict]:
    return {"latest": {"source": REPO}, "pinned": {"source": REPO, "revision": published["pinned"]}}


@pytest.fixture(scope="module")
def remote(hub, published, checkpoints, video, work):
    """Loads models from directories and by name from the Hub, in one process without the package."""
    jobs = {
        name: {"source": str(checkpoints[name]), "save_to": str(work / f"{name}-remote")}
        for name in ("first", "video")
    }
    jobs |= by_name(published)
    jobs["latest"]["save_to"] = str(work / "latest-remote")
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    return run_without_package(jobs, work / "remote", video, home=work / "user", **environment)


@pytest.fixture(scope="module")
def offline(hub, published, remote, video, work):
    """Loads again, after the Hub has stopped, what `remote` loaded by name."""
    hub.stop()
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "1"}
    return run_without_package(by_name(published), work / "offline", video, home=work / "user", **environment)


def test_files(checkpoints):
    dual = {"model.safetensors", "config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    others = {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"} | SOURCES
    assert read_directory(checkpoints["first"]).keys() == dual | others
    tower = {"model.safetensors", "config.json", "video_preprocessor_config.json"}
    assert read_directory(checkpoints["video"]).keys() == tower | others - {"processing_region_learner.py"}


def test_source_files_are_those_of_the_package(checkpoints):
    for checkpoint in checkpoints.values():
        for path in checkpoint.glob("*.py"):
            assert path.read_bytes() == (PACKAGE / path.name).read_bytes(), path


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_source_files_import_only_siblings_and_allowed_packages(name):
    """Imports are siblings, what transformers needs for videos, and optional packages within `try`; no HTTP client."""
    allowed = {"transformers", "huggingface_hub", "torch", "numpy", "PIL"} | sys.stdlib_module_names
    allowed -= {"http", "urllib", "socket", "ssl", "ftplib"}
    tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
    optional = {node for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1
            assert f"{node.module}.py" in SOURCES
        elif isinstance(node, ast.Import | ast.ImportFrom) and node not in optional:
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert {module.split(".")[0] for module in modules} <= allowed


def test_with_the_package_no_flag_is_needed(expected):
    for name in ("first", "video"):
        for part in expected[name][1].values():
            assert type(part).__module__.startswith("region_learner."), part
    loaded = expected["first"][1]
    assert isinstance(loaded["config"], region_learner.RegionLearnerConfig)
    assert isinstance(loaded["model"], region_learner.RegionLearnerModel)
    assert isinstance(loaded["processor"], region_learner.RegionLearnerProcessor)
    assert isinstance(loaded["video_processor"], region_learner.RegionLearnerVideoProcessor)
    assert isinstance(expected["video"][1]["config"], region_learner.RegionLearnerVideoConfig)
    assert isinstance(expected["video"][1]["model"], region_learner.RegionLearnerVideoModel)


def test_loaded_weights_are_those_that_were_saved(expected):
    for name, model in (("first", tiny_model(seed=0)), ("second", tiny_model(seed=1)), ("video", tiny_video_model(2))):
        assert_same_tensors(expected[name][1]["model"].state_dict(), model.state_dict())
    assert not torch.equal(
        expected["first"][0]["outputs.logits_per_text"], expected["second"][0]["outputs.logits_per_text"]
    )


@pytest.mark.parametrize("name", ["first", "video"])
def test_saving_again_changes_nothing(checkpoints, expected, video, work, name):
    once, twice = read_directory(checkpoints[name]), read_directory(work / "again" / name)
    # Loading also sets the dtype in the configurations of the towers.
    config = json.loads(once.pop("config.json"))
    for part in {"video_config", "text_config"} & config.keys():
        config[part]["dtype"] = config["dtype"]
    assert json.loads(twice["config.json"]) == config
    assert {file: twice[file] for file in once} == once

    load_and_run(work / "again" / name, str(video), CAPTIONS, save_to=work / "once-more" / name)
    assert read_directory(work / "once-more" / name) == twice


@pytest.mark.parametrize("name", ["first", "video"])
def test_bfloat16_leaves_the_codebook_in_float32(expected, tmp_path, name):
    model, half = expected[name][1]["model"], expected[name][1]["bfloat16"]
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    codebook = {key: value for key, value in model.state_dict().items() if ".quantizer." in key}
    assert {key.rpartition(".")[2] for key in codebook} >= {"embed", "embed_avg", "cluster_size", "cluster_sum"}
    assert_same_tensors({key: value for key, value in half.state_dict().items() if key in codebook}, codebook)

    # The same holds after saving and loading. The model can be trained, which counts updates in integers.
    half.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert_same_tensors(again.state_dict(), half.state_dict())
    tower = getattr(again, "video_model", again).train()
    tower(expected[name][0]["clips.pixel_values_videos"].bfloat16())
    assert tower.region_module.quantizer.num_updates == 1


def test_a_processor_does_not_save_options_of_calls(checkpoints, tmp_path):
    processor = AutoProcessor.from_pretrained(checkpoints["first"])
    assert processor(text=CAPTIONS, max_length=3, padding="max_length")["input_ids"].shape == (2, 3)
    processor.save_pretrained(tmp_path)
    expected = processor(text=CAPTIONS)["input_ids"]
    assert expected.shape[1] > 3
    assert torch.equal(AutoProcessor.from_pretrained(tmp_path)(text=CAPTIONS)["input_ids"], expected)


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_device_map(checkpoints, expected, device_map):
    model = AutoModel.from_pretrained(checkpoints["first"], device_map=device_map)
    assert_same_tensors(model.state_dict(), expected["first"][1]["model"].state_dict())
    inputs = {key.removeprefix("inputs."): value for key, value in expected["first"][0].items() if "inputs." in key}
    with torch.no_grad():
        logits = model(**inputs).logits_per_text
    assert torch.equal(logits.cpu(), expected["first"][0]["outputs.logits_per_text"])


@pytest.mark.parametrize("name", ["first", "video"])
def test_without_the_package_remote_code_gives_the_same(remote, expected, name):
    tensors, found = remote[name]
    assert all(module.startswith("transformers_modules.") for module in found["modules"])
    assert_same_tensors(tensors, expected[name][0])
    config = json.loads(found["config"])
    # With the package, the pipeline is registered, and the configuration does not name it before it is saved.
    assert ("custom_pipelines" in config) == (name == "first")
    config.pop("custom_pipelines", None)
    assert config == json.loads(expected[name][1]["config"].to_json_string())


@pytest.mark.parametrize("name", ["first", "video", "latest", "pinned"])
def test_without_the_package_remote_code_needs_the_flag(remote, name):
    refusals = remote[name][1]["refusals"]
    classes = {"AutoConfig", "AutoModel", "AutoVideoProcessor", "AutoProcessor"}
    assert refusals.keys() == classes | {"URL"}
    assert "URLs are only read with the region-learner package" in refusals["URL"]
    for auto_class in classes:
        assert "trust_remote_code=True" in refusals[auto_class]


@pytest.mark.parametrize("name", ["first", "video"])
def test_remote_code_saves_what_the_package_saves(remote, expected, work, name):
    assert read_directory(work / f"{name}-remote") == read_directory(work / "again" / name)


def test_push(published, expected, hub, work):
    repository = hub.repositories[REPO]
    *_, pinned, second, latest = repository.commits.values()
    assert list(repository.commits)[-3] == published["pinned"]
    assert list(repository.commits)[-1] == repository.branches["main"] == published["latest"]

    assert REPO.startswith(published["user"] + "/")
    assert published["files"] == sorted(pinned)

    card = pinned["README.md"]
    assert b"library_name: transformers" in card
    assert pinned == read_directory(work / "again" / "first") | {"README.md": card}
    assert second == read_directory(work / "again" / "second") | {"README.md": card}
    assert latest["modeling_region_learner.py"] == second["modeling_region_learner.py"] + b"\n# A later version.\n"
    assert "PUT /lfs/" in "\n".join(hub.requests)  # weights were uploaded as large files


def test_by_name_with_the_package(published, expected):
    for name, revision in (("first", published["pinned"]), ("second", published["latest"])):
        is_model, weight, is_processor = published["loaded"][revision]
        assert is_model
        assert is_processor
        assert weight == expected[name][1]["model"].text_projection.weight.tolist()


def test_by_name(remote, expected):
    tensors, found = remote["latest"]
    assert_same_tensors(tensors, expected["second"][0])
    assert found["modeling"].endswith("# A later version.\n")


def test_pinned_revision(remote, expected):
    tensors, found = remote["pinned"]
    assert_same_tensors(tensors, expected["first"][0])
    assert found["modeling"] == (PACKAGE / "modeling_region_learner.py").read_text(encoding="utf-8")


def test_saving_a_model_loaded_by_name_gives_what_was_published(remote, hub, published, work):
    latest = dict(hub.repositories[REPO].commits[published["latest"]])
    del latest["README.md"]
    assert read_directory(work / "latest-remote") == latest


@pytest.mark.parametrize("name", ["latest", "pinned"])
def test_offline(offline, remote, name):
    assert_same_tensors(offline[name][0], remote[name][0])
    assert offline[name][1]["modeling"] == remote[name][1]["modeling"]

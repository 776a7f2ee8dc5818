"""Checkpoints pushed to a Hub while training goes on: each can be loaded where the package is absent."""

import json
import shutil

import pytest
import torch

from region_learner.processing_region_learner import RegionLearnerProcessor
from region_learner.training.tokenizer import train_tokenizer
from region_learner.video_processing_region_learner import RegionLearnerVideoProcessor

from .conftest import tiny_model
from .local_hub import TOKEN, LocalHub
from .test_hub import CAPTIONS, run_python, run_without_package, video, work  # noqa: F401 # fixtures

REPO = "tester/in-training"

TRAIN = """
import json, sys
from region_learner.training import parse_stages, train_stages

model, data, output, repo = sys.argv[1:]
train_stages(parse_stages([
    f"--model={model}", f"--data_dir={data}", f"--output_dir={output}", "--max_steps=3", "--save_strategy=steps",
    "--save_steps=1", "--push_to_hub=true", f"--hub_model_id={repo}", "--hub_strategy=every_save",
    "--hub_always_push=true", "--per_device_train_batch_size=2", "--use_cpu=true", "--report_to=none",
    "--learning_rate=0.01", "--disable_tqdm=true",
]))
"""


@pytest.fixture(scope="module")
def pushed(video, work):  # noqa: F811
    processor = RegionLearnerProcessor(
        RegionLearnerVideoProcessor.for_image_size(32), train_tokenizer(CAPTIONS, vocab_size=99, max_length=32)
    )
    for part in (tiny_model(seed=0), processor):
        part.save_pretrained(work / "start")
    names = [video.name, "other.mp4"]
    shutil.copy(video, work / names[1])
    rows = [{"file_name": name, "caption": caption} for name, caption in zip(names, CAPTIONS)]
    (work / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with LocalHub() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        arguments = [str(work / "start"), str(work), str(work / "output"), REPO]
        run_python(TRAIN, *arguments, home=work / "trainer", **environment)
        yield hub


def test_intermediate_pushes_load_with_remote_code(pushed, video, work):  # noqa: F811
    repository = pushed.repositories[REPO]
    by_message = {message: commit for commit, message in repository.messages.items()}
    assert "End of training" in by_message
    steps = [message for message in by_message if message.startswith("Training in progress, step")]
    assert steps
    revision = by_message[steps[0]]
    assert {"modeling_region_learner.py", "config.json", "model.safetensors"} <= repository.commits[revision].keys()
    jobs = {name: {"source": REPO, "revision": revision} for name, revision in (("step", revision),)}
    jobs["end"] = {"source": REPO}
    environment = {"HF_ENDPOINT": pushed.url, "HF_HUB_DISABLE_XET": "1"}
    results = run_without_package(jobs, work / "remote", video, home=work / "user", **environment)
    embeddings = [results[name][0]["outputs.video_embeds"] for name in ("step", "end")]
    assert not torch.equal(*embeddings)  # training went on in between
    assert all("transformers_modules" in module for module in results["step"][1]["modules"])

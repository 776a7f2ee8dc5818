"""
Embeds spans of videos with a checkpoint in a process that cannot import region_learner, like a user who has only
transformers installed. The demo runs it as a script; it is never imported.

    python demo_standalone.py CHECKPOINT REQUEST.json RESULT.safetensors

REQUEST holds `videos`, each a path with a start and an end in seconds; `video_embeds` (n, D), of length 1, are written
to RESULT.
"""

import json
import sys

sys.modules["region_learner"] = None  # type: ignore[assignment] # any import of it fails from here on

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor


def main(checkpoint: str, request_file: str, result_file: str):
    model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    with open(request_file, encoding="utf-8") as file:
        videos, starts, ends = (list(column) for column in zip(*json.load(file)["videos"]))
    with torch.inference_mode():
        video_embeds = model(**processor(videos=videos, start=starts, end=ends)).video_embeds
    save_file({"video_embeds": video_embeds}, result_file)
    names = {type(model).__module__.split(".")[0], type(processor).__module__.split(".")[0]}
    print(f"loaded {type(model).__name__} and {type(processor).__name__} from {', '.join(sorted(names))}")


if __name__ == "__main__":
    main(*sys.argv[1:])

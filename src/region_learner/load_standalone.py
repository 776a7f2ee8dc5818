"""
Loads a checkpoint in a process that cannot import region_learner, like a user who has only transformers installed.
`region-learner push` runs it as a script; it is never imported.

    python load_standalone.py CHECKPOINT

It also builds the pipelines that the checkpoint contains. If sentence-transformers is installed, it also loads the
checkpoint with it and, if the checkpoint embeds texts, embeds one. The last line that it prints is JSON: the `model`
and the `processor` that were loaded, and the weights that are `missing`, `unexpected` or `mismatched`.
"""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.modules["region_learner"] = None  # type: ignore[assignment] # any import of it fails from here on

import transformers  # noqa: E402
from transformers.dynamic_module_utils import get_class_from_dynamic_module  # noqa: E402


def main(checkpoint: str):
    config = json.loads(Path(checkpoint, "config.json").read_bytes())
    (architecture,) = config.get("architectures") or [None]
    classes = {str(source).rpartition(".")[2]: auto for auto, source in config.get("auto_map", {}).items()}
    if architecture not in classes:
        raise ValueError(f"the auto_map of config.json has no entry for its architecture, {architecture}")
    auto_class = getattr(transformers, classes[architecture])
    model, info = auto_class.from_pretrained(checkpoint, trust_remote_code=True, output_loading_info=True)
    has_texts = Path(checkpoint, "tokenizer_config.json").is_file()
    auto_class = transformers.AutoProcessor if has_texts else transformers.AutoVideoProcessor
    processor = auto_class.from_pretrained(checkpoint, trust_remote_code=True)
    for pipeline in config.get("custom_pipelines", {}).values():
        get_class_from_dynamic_module(pipeline["impl"], checkpoint)(model=model, processor=processor)
    if Path(checkpoint, "modules.json").is_file() and _has_sentence_transformers():
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(checkpoint, device="cpu", trust_remote_code=True)
        if encoder.supports("text"):
            encoder.encode(["a video"])
    names = {f"{kind}": sorted(map(str, info[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    print(json.dumps({"model": type(model).__name__, "processor": type(processor).__name__} | names))


def _has_sentence_transformers() -> bool:
    try:
        return int(version("sentence-transformers").partition(".")[0]) >= 6  # the first one that embeds videos
    except (PackageNotFoundError, ValueError):
        return False


if __name__ == "__main__":
    main(*sys.argv[1:])

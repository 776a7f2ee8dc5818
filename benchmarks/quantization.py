"""
Measures what lower precision costs in retrieval: R@1 on the test clips of the built-in corpus with a model in float32,
under bfloat16 autocast, with int8 weights, and with int8 weights and dynamically quantized activations (pip install
torchao).

    python benchmarks/quantization.py [--steps 400] [--model CHECKPOINT] [--json FILE]
"""

import argparse
import copy
import io
import json
import logging
import tempfile
from pathlib import Path

import torch
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from transformers import AutoModel, AutoProcessor

from measuring import about
from region_learner import load_corpus
from region_learner.evaluation import embed_corpus, retrieval_metrics
from region_learner.training import parse_arguments, train

RECIPE = "moving_shapes"
FORMS = {
    "float32": None,
    "bfloat16 autocast": None,
    "int8 weights": Int8WeightOnlyConfig,
    "int8 weights and activations": Int8DynamicActivationInt8WeightConfig,
}


def megabytes(model: torch.nn.Module) -> float:
    """Returns the size of the saved weights."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell() / 1e6


def measure(model, processor, rows) -> list[dict]:
    results = []
    for name, form in FORMS.items():
        quantized = copy.deepcopy(model)
        if form is not None:
            quantize_(quantized, form())
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16 autocast"):
            found = embed_corpus(quantized, processor, rows, progress=False)
        metrics = retrieval_metrics(found.text_embeds, found.video_embeds, found.text_video_ids, found.video_ids)
        results.append({"form": name, "megabytes": megabytes(quantized)} | {
            key: metrics[key] for key in ("t2v_R@1", "v2t_R@1")
        })  # fmt: skip
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--model", help="a trained checkpoint, instead of training one")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        arguments = parse_arguments(
            [RECIPE, "--max_steps", str(options.steps), "--disable_tqdm", "true"], output_dir=folder
        )
        _, data_arguments, _ = arguments
        data_arguments.test_split = None
        if options.model is None:
            train(*arguments)
        source = options.model or folder
        model, processor = AutoModel.from_pretrained(source).eval(), AutoProcessor.from_pretrained(source)
        rows = load_corpus(data_arguments.corpus, split="test", **data_arguments.corpus_options)
        results = measure(model, processor, rows)
    for row in results:
        print(
            f"{row['form']:>29}: t2v R@1 {row['t2v_R@1']:5.1f}, v2t R@1 {row['v2t_R@1']:5.1f}, "
            f"{row['megabytes']:6.1f} MB"
        )
    result = {
        "steps": options.steps,
        "about": about("cpu", "torchao"),
        "results": results,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

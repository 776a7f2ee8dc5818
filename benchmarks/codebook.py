"""
Measures the share of a 256-code codebook that held-out clips use in evaluation mode, after training on the built-in
corpus. Compares the default ("ema") with the reference implementation ("original": EMA decay 0.1, no revival of unused
codes).

    python benchmarks/codebook.py [--steps 200] [--json FILE]
"""

import argparse
import json
import logging
import tempfile
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor

from measuring import about
from region_learner import load_corpus
from region_learner.evaluation import codebook_use
from region_learner.training import parse_arguments, train

CODES = 256


def measure(mode: str, steps: int, output_dir: Path) -> dict:
    """Trains the recipe `moving_shapes` for `steps` steps and inspects the codes of its 200 test clips."""
    arguments = parse_arguments(
        ["moving_shapes", "--max_steps", str(steps), "--disable_tqdm", "true"], output_dir=str(output_dir)
    )
    model_arguments, data_arguments, _ = arguments
    model_arguments.video_config |= {"codebook_mode": mode, "codebook_size": CODES}
    data_arguments.test_split = None
    results = train(*arguments)
    test = load_corpus(data_arguments.corpus, split="test", **data_arguments.corpus_options)
    model, processor = AutoModel.from_pretrained(output_dir), AutoProcessor.from_pretrained(output_dir)
    videos = list(test["video"])
    batches = (processor(videos=videos[i : i + 20])["pixel_values_videos"] for i in range(0, len(videos), 20))
    return {
        "codebook_mode": mode,
        "codes_in_use": codebook_use(model, batches),
        "loss": results["train"]["train_loss"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rows = []
    for mode in ("ema", "original"):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(mode, options.steps, Path(folder)))
        print(
            f"{mode:>9}: {100 * rows[-1]['codes_in_use']:5.1f} % of {CODES} codes in use, loss {rows[-1]['loss']:.2f}"
        )
    result = {
        "steps": options.steps,
        "about": about("cuda" if torch.cuda.is_available() else "cpu"),
        "rows": rows,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""
Trains the recipe `moving_shapes` from end to end on clips that are drawn into memory, and evaluates retrieval on
others: model, Trainer, loader processes, bfloat16 and compilation together.

    python benchmarks/recipe.py [--steps 400] [--train 2000] [--test 200] [--device cuda] [--no-compile] [--json FILE]

Prints the training steps per second, and R@1 on the test clips. The speed leaves out the first quarter of the steps,
in which the model is compiled. Clips are not encoded, so neither PyAV nor datasets is needed. On a CPU, bfloat16 is
used as well.
"""

import argparse
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, set_seed

from measuring import about, described
from region_learner import RegionLearnerTrainer
from region_learner.corpora.synthetic import MOVING_SHAPES
from region_learner.corpora.synthetic.base import make_clip, plan_scenes
from region_learner.evaluation import embed_corpus
from region_learner.training import parse_arguments
from region_learner.training.model import build_model

SPLITS = ("train", "test")


def draw_rows(options: Any, split: str) -> list[dict[str, Any]]:
    """Draws the clips of a split: many of them on all cores, few of them in less time than processes need to start."""
    scenes = plan_scenes(MOVING_SHAPES, options, split)
    draw, numbers = partial(make_clip, MOVING_SHAPES, options, split), range(len(scenes))
    if len(scenes) <= 500:
        clips = list(map(draw, numbers, scenes))
    else:
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            clips = list(pool.map(draw, numbers, scenes, chunksize=32))
    return [
        {"video": clip.frames, "video_id": f"{split}-{number}", "captions": clip.captions}
        for number, clip in zip(numbers, clips)
    ]


class Timer(TrainerCallback):
    """Measures the time of the steps after the first `skipped`."""

    def __init__(self, skipped: int):
        self.skipped, self.start, self.seconds, self.steps = skipped, 0.0, 0.0, 0

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.skipped:
            self.start = self._now()

    def on_train_end(self, args, state, control, **kwargs):
        self.seconds, self.steps = self._now() - self.start, state.global_step - self.skipped


def run(options: argparse.Namespace, output_dir: str) -> dict[str, Any]:
    given = ["moving_shapes", "--max-steps", str(options.steps), "--bf16", "true", "--disable-tqdm", "true"]
    given += ["--per-device-train-batch-size", str(options.batch), "--logging-steps", str(max(1, options.steps // 8))]
    given += ["--dataloader-num-workers", str(options.workers)]
    given += ["--torch-compile", "false" if options.no_compile else "true"]
    given += ["--use-cpu", "true" if options.device == "cpu" else "false"]
    model_arguments, data_arguments, arguments = parse_arguments(given, output_dir=output_dir)
    sizes = {"train": options.train, "test": options.test}
    corpus = MOVING_SHAPES.read_options(data_arguments.corpus_options | sizes)
    start = time.perf_counter()
    train, test = (draw_rows(corpus, split) for split in SPLITS)
    drawn = time.perf_counter() - start
    set_seed(arguments.seed)
    model, processor = build_model(model_arguments, [caption for row in train for caption in row["captions"]])
    processor.video_processor.flip_probability = 0.0  # captions mention left and right
    timer = Timer(options.steps // 4)
    trainer = RegionLearnerTrainer(
        model, arguments, processing_class=processor, train_dataset=train, callbacks=[timer]
    )
    trainer.remove_callback(PrinterCallback)
    metrics = trainer.train().metrics
    found = embed_corpus(model, processor, test, progress=False).metrics()
    return {
        "seconds_of_drawing": drawn,
        "seconds_of_training": metrics["train_runtime"],
        "steps_per_second": timer.steps / timer.seconds,
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "skipped_steps": metrics["skipped_steps"],
        "metrics": {name: found[name] for name in ("t2v_R@1", "v2t_R@1")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--train", type=int, default=2000, help="number of clips to train on")
    parser.add_argument("--test", type=int, default=200, help="number of clips to evaluate on")
    parser.add_argument("--batch", type=int, default=64, help="clips per step")
    parser.add_argument("--workers", type=int, default=2, help="number of loader processes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    where = about(options.device)
    print(described(where), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        result = run(options, folder)
    print(f"{options.steps} steps of {options.batch} clips: {result['steps_per_second']:.2f} steps/s after the first")
    print(f"{options.steps // 4}, and {result['seconds_of_training']:.0f} s in all; {options.train} clips were drawn")
    print(f"in {result['seconds_of_drawing']:.0f} s. R@1 among {options.test} unseen clips:", end=" ")
    print(f"text to video {result['metrics']['t2v_R@1']:.1f} %, video to text {result['metrics']['v2t_R@1']:.1f} %.")
    if options.json:
        result = {"about": where, "options": vars(options) | {"json": None}, **result}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

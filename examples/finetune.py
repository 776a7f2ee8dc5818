"""
Fine-tunes a checkpoint on a folder of captioned videos, and prints its metrics before and after.

    python examples/finetune.py openai/clip-vit-base-patch16 my_videos --output-dir runs/mine

The folder has the splits `train` and `test`, as docs/finetune.md describes.
"""

import argparse
from pathlib import Path

from region_learner import RegionLearnerTrainer, RegionLearnerTrainingArguments, load_corpus
from region_learner.evaluation import retrieval_accuracy
from region_learner.training import ModelArguments, build_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a RegionLearner, CLIP or SigLIP checkpoint, as a directory or Hub name")
    parser.add_argument("folder", help="folder of captioned videos")
    parser.add_argument("--output-dir", required=True, help="new directory for the fine-tuned checkpoint")
    parser.add_argument("--epochs", type=float, default=5, help="passes over the data (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="pairs per step and GPU (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-6, help="of both towers (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="processes that decode videos (default: %(default)s)")
    options = parser.parse_args()
    if Path(options.output_dir).exists():
        parser.error(f"--output-dir {options.output_dir} exists: name a new directory.")

    train, test = (load_corpus("folder", options.folder, split) for split in ("train", "test"))
    model, processor = build_model(ModelArguments(model=options.model))
    arguments = RegionLearnerTrainingArguments(
        output_dir=options.output_dir,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=1e-4,  # of all other weights, such as the temperature of the loss
        video_learning_rate=options.learning_rate,
        text_learning_rate=options.learning_rate,
        dataloader_num_workers=options.workers,
    )
    trainer = RegionLearnerTrainer(model=model, args=arguments, processing_class=processor, train_dataset=train)
    before = retrieval_accuracy(model, processor, test, num_workers=options.workers)
    trainer.train()
    trainer.save_model()
    after = retrieval_accuracy(model, processor, test, num_workers=options.workers)
    for name in ("t2v_R@1", "t2v_R@5", "t2v_MedR", "v2t_R@1", "v2t_R@5", "v2t_MedR"):
        print(f"{name:8}  {before[name]:6.1f} -> {after[name]:6.1f}")


if __name__ == "__main__":
    main()

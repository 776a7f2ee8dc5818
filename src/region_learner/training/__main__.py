"""Trains with `accelerate launch -m region_learner.training RECIPE [--name value ...]`."""

import sys

from ..cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])

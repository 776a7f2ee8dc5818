#!/bin/bash
# Runs the measurements on a GPU, in about ten minutes: tests, speed compared with other models, and a short training.
#
#   bash benchmarks/gpu.sh OUTPUT
#
# Needs torch, transformers, timm, accelerate, pyarrow and pytest, but neither PyAV nor datasets. If a part
# fails, this is reported, and the next part runs.
set -u
output=${1:?"Usage: bash benchmarks/gpu.sh OUTPUT"}
mkdir -p "$output"
export PYTHONPATH=src:. PYTHONUNBUFFERED=1
run() {
    echo "== $*"
    timeout "$limit" "$@" || echo "== failed: $?"
}
limit=150 run python -m pytest -q -p no:cacheprovider -m gpu tests/test_gpu.py
limit=240 run python benchmarks/speed.py --batch 32 --frames 4 --passes train --dtypes bf16 --repeats 5 --profile \
    --models ours ours+compile ours_patch_dropout ours_no_regions ours_no_regions+compile plain plain+compile \
    clip xclip videoprism \
    --json "$output/speed_train.json"
limit=100 run python benchmarks/speed.py --batch 1 32 --frames 4 --passes inference --dtypes bf16 --repeats 5 \
    --models ours ours+graphs clip xclip videoprism --json "$output/speed_inference.json"
limit=110 run python -m experiments.ablation --output "$output/runs" --setting shapes_96 --rows queries,decoupled --seeds 1 --jobs 2

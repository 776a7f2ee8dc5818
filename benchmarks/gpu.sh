#!/bin/bash
# Runs the measurements on a GPU, in about ten minutes: tests, a training of small models, and speed compared with
# other models.
#
#   bash benchmarks/gpu.sh OUTPUT
#
# Needs torch, transformers, timm, accelerate, pyarrow and pytest, but neither PyAV nor datasets. If a part
# fails, this is reported, and the next part runs. Each part writes what it prints to OUTPUT/PART.log.
set -u
output=${1:?"Usage: bash benchmarks/gpu.sh OUTPUT"}
mkdir -p "$output"
export PYTHONPATH=src:. PYTHONUNBUFFERED=1
run() {  # run PART LIMIT COMMAND...
    local part=$1 limit=$2
    shift 2
    echo "== $part: $*"
    timeout "$limit" "$@" > "$output/$part.log" 2>&1 || echo "== $part failed: $?"
    echo "== $part took until $SECONDS s"
}
small="--output $output/runs --setting shapes_96 --rows queries,cells,tracking,clusters,decoupled --jobs 8"
# Neither of these two measures time, so they run at the same time.
run tests 240 python -m pytest -q -p no:cacheprovider -m gpu tests/test_gpu.py &
run training 250 python -m experiments.ablation $small --seeds 3
run words 50 python -m experiments.words $small
wait
run speed_train 160 python benchmarks/speed.py --batch 16 --frames 4 --passes train --dtypes bf16 --repeats 5 --profile \
    --models ours ours+compile ours_no_regions ours_no_regions+compile ours_queries plain clip xclip \
    --json "$output/speed_train.json"
run speed_inference 60 python benchmarks/speed.py --batch 1 --frames 4 --passes inference --dtypes bf16 --repeats 5 \
    --models ours ours+graphs clip xclip --json "$output/speed_inference.json"
run memory 40 python benchmarks/training.py --batch 1 --frames 16 32 64 --dtype bf16 --methods plain checkpointing \
    --repeats 3 --json "$output/memory.json"
tail -n 40 "$output"/*.log

#!/bin/bash
# Runs the measurements on a GPU, in about six minutes: tests, a training of small models, and speed compared with
# other models.
#
#   bash benchmarks/gpu.sh OUTPUT
#
# Needs torch, transformers, timm, accelerate, pyarrow and pytest, but neither PyAV nor datasets. If a part fails,
# this is reported, and the next part runs. Each part writes what it prints to OUTPUT/PART.log.
set -u
output=${1:?"Usage: bash benchmarks/gpu.sh OUTPUT"}
mkdir -p "$output"
export PYTHONPATH=src:. PYTHONUNBUFFERED=1
run() {  # run PART LIMIT COMMAND...
    local part=$1 limit=$2
    shift 2
    timeout "$limit" "$@" > "$output/$part.log" 2>&1
    echo "== $part: exit status $?, finished after $SECONDS s"
}
speed="python benchmarks/speed.py --frames 4 --dtypes bf16"
train="$speed --passes train --batch 16"
inference="$speed --passes inference --batch 1"
small="--output $output/runs --setting shapes_96 --rows queries,cells,tracking,decoupled --jobs 8"

# None of these measure time, so they run at the same time. The last three fill the cache of the compiler.
(
    run tests 150 python -m pytest -q -p no:cacheprovider -m gpu tests/test_gpu.py
    run memory 60 python benchmarks/training.py --batch 1 --frames 16 64 --dtype bf16 --methods plain checkpointing \
        --repeats 1 --json "$output/memory.json"
) &
(
    run compile_1 100 $train --repeats 1 --models ours+compile
    run compile_2 100 $train --repeats 1 --models ours_no_regions+compile
    run compile_3 60 $inference --repeats 1 --models ours+graphs
) &
run training 205 python -m experiments.ablation $small --seeds 2
run words 45 python -m experiments.words $small
wait

run speed_train 110 $train --repeats 3 --profile \
    --models ours ours+compile ours_no_regions ours_no_regions+compile plain clip xclip --json "$output/speed_train.json"
run speed_inference 50 $inference --repeats 5 --models ours ours+graphs clip xclip --json "$output/speed_inference.json"
tail -n 40 "$output"/*.log

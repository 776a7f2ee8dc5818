#!/bin/bash
# Runs the measurements on a GPU, one after another: tests, memory, and speed compared with other models.
#
#   bash benchmarks/gpu.sh OUTPUT [PART ...]
#
# Parts: tests, memory, eager, inference, compiled, small. Default: all but the last. "small" trains small models for
# docs/evidence.md; it also needs all CPU cores, about two minutes of them to draw the clips. Compilation takes
# minutes as well. Parts are never run at the same time, because they would slow each other down several times.
#
# Needs torch, transformers, timm, accelerate, pyarrow and pytest, but neither PyAV nor datasets. If a part fails or
# exceeds its time limit, this is reported, and the next part runs. Each part writes what it prints to OUTPUT/PART.log.
set -u
output=${1:?"Usage: bash benchmarks/gpu.sh OUTPUT [PART ...]"}
shift
mkdir -p "$output"
export PYTHONPATH=src:. PYTHONUNBUFFERED=1
run() {  # run PART LIMIT COMMAND...
    local part=$1 limit=$2 start=$SECONDS
    shift 2
    timeout "$limit" "$@" > "$output/$part.log" 2>&1
    echo "== $part: exit status $?, $((SECONDS - start)) s"
    tail -n 40 "$output/$part.log"
}
speed() {  # speed PART LIMIT OPTIONS...
    run "$1" "$2" python benchmarks/speed.py --frames 4 --dtypes bf16 --json "$output/$1.json" "${@:3}"
}
small="--output $output/runs --setting shapes_96 --rows queries,cells,tracking,decoupled --jobs 4"

for part in ${@:-tests memory eager inference compiled}; do
    case $part in
        tests) run tests 120 python -m pytest -q -p no:cacheprovider -m gpu tests/test_gpu.py ;;
        memory) run memory 60 python benchmarks/training.py --batch 1 --frames 16 64 --dtype bf16 --repeats 3 \
            --methods plain checkpointing --json "$output/memory.json" ;;
        eager) speed eager 120 --passes train --batch 16 --repeats 3 --profile \
            --models ours ours_queries ours_patch_dropout ours_no_regions plain clip xclip ;;
        inference) speed inference 90 --passes inference --batch 1 --repeats 5 --models ours ours+graphs clip xclip ;;
        compiled) speed compiled 400 --passes train --batch 16 --repeats 3 \
            --models ours ours+compile ours_no_regions+compile plain+compile clip+compile ;;
        small) run small 500 python -m experiments.ablation $small --seeds 2
            run words 100 python -m experiments.words $small ;;
        *) echo "$part is not a part of this script." >&2; exit 2 ;;
    esac
done

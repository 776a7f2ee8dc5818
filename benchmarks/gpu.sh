#!/bin/bash
# Runs the measurements on a GPU, one after another: tests, memory, and speed compared with other models.
#
#   bash benchmarks/gpu.sh OUTPUT [PART ...]
#
# Parts: tests, memory, eager, inference, compiled, small. Default: all but the last. "small" trains and measures the
# models of the setting shapes_96; drawing its clips first keeps all CPU cores busy for about two minutes. "compiled"
# compiles five models, which takes minutes. Do not run parts at the same time: each would take several times as long.
#
# Needs torch, transformers, timm, accelerate, pyarrow and pytest, but neither PyAV nor datasets. If a part fails or
# exceeds its time limit, the next part runs, and the exit status is 1. Each part writes what it prints to
# OUTPUT/PART.log.
set -u
output=${1:?"Usage: bash benchmarks/gpu.sh OUTPUT [PART ...]"}
shift
(($#)) || set -- tests memory eager inference compiled
for part in "$@"; do
    case $part in
        tests | memory | eager | inference | compiled | small) ;;
        *) echo "$part is not a part of this script" >&2; exit 2 ;;
    esac
done
mkdir -p "$output"
export PYTHONPATH=src:. PYTHONUNBUFFERED=1
failed=0
run() {  # run PART LIMIT COMMAND...
    local part=$1 limit=$2 start=$SECONDS status=0
    shift 2
    timeout "$limit" "$@" > "$output/$part.log" 2>&1 || { status=$?; failed=1; }
    echo "== $part: exit status $status, $((SECONDS - start)) s"
    tail -n 40 "$output/$part.log"
}
speed() {  # speed PART LIMIT OPTIONS...
    run "$1" "$2" python benchmarks/speed.py --frames 4 --dtypes bf16 --json "$output/$1.json" "${@:3}"
}
small=(--output "$output/runs" --setting shapes_96 --rows "queries,cells,tracking,decoupled" --jobs 4)

for part in "$@"; do
    case $part in
        tests) run tests 120 python -m pytest -q -p no:cacheprovider -m gpu tests/test_gpu.py ;;
        memory) run memory 60 python benchmarks/training.py --batch 1 --frames 16 64 --dtype bf16 --repeats 3 \
            --methods plain checkpointing --json "$output/memory.json" ;;
        eager) speed eager 120 --passes train --batch 16 --repeats 3 --profile \
            --models ours ours_queries ours_patch_dropout ours_no_regions plain clip xclip ;;
        inference) speed inference 90 --passes inference --batch 1 --repeats 5 --models ours ours+graphs clip xclip ;;
        compiled) speed compiled 400 --passes train --batch 16 --repeats 3 \
            --models ours ours+compile ours_no_regions+compile plain+compile clip+compile ;;
        small)
            run small 500 python -m experiments.ablation "${small[@]}" --seeds 2
            run words 100 python -m experiments.words "${small[@]}" ;;
    esac
done
exit "$failed"

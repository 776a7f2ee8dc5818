#!/bin/bash
# Runs the measurements on a GPU, one after another: tests, memory, speed compared with other models, and a training.
#
#   bash benchmarks/gpu.sh OUTPUT [PART ...]
#   SIZE=tiny DEVICE=cpu bash benchmarks/gpu.sh OUTPUT [PART ...]
#
# | part | what it does | limit in seconds |
# |---|---|---:|
# | tests | the tests that need a GPU | 110 |
# | memory | memory of training steps, by number of frames | 40 |
# | eager | training steps, compared with other models | 80 |
# | regions | share of the region module, by form | 40 |
# | inference | embedding of single clips, with and without CUDA graphs | 50 |
# | recipe | a short training and its evaluation, in bfloat16 and compiled | 70 |
# | compiled | compiled training steps, compared with CLIP, and with plain PyTorch that is not compiled | 150 |
# | compiled_peers | the same for more models | 350 |
# | frames | training steps and embedding of clips of 1 and of 8 frames, compared with other models | 150 |
# | videos | from files to embeddings, decoding (also on the GPU), and feeding, with the videos in the directory
#            VIDEOS; needs PyAV and a build of torchcodec with CUDA | 3 x 150 |
# | small | trains and measures the models of the setting shapes_96; first, drawing its clips keeps all cores busy for
#           about two minutes | 500 + 100 |
#
# Without PART, all parts up to "compiled" run, which takes at most 540 seconds. Do not run parts at the same time: each
# would take several times as long. If a part fails or exceeds its limit, the next part runs, and the exit status is 1.
#
# Each part writes what it prints to OUTPUT/PART.log, and adds a line with its results to OUTPUT/results.jsonl. "small"
# also writes its runs to OUTPUT, as .jsonl files. Other files are temporary.
#
# SIZE=tiny and DEVICE=cpu try the script out, without limits and without compilation where a part can do without. They
# need each other, and leave out "small". Without a GPU, "tests" skips all tests.
#
# Needs torch, transformers, timm, accelerate, pyarrow and pytest, but (except for "videos") neither PyAV nor datasets.
set -u
output=${1:?"Usage: bash benchmarks/gpu.sh OUTPUT [PART ...]"}
shift
(($#)) || set -- tests memory eager regions inference recipe compiled
for part in "$@"; do
    case $part in
        tests | memory | eager | regions | inference | recipe | compiled | compiled_peers | frames | small) ;;
        videos) [[ -d ${VIDEOS:-} ]] || { echo "videos needs a directory: set VIDEOS=DIRECTORY" >&2; exit 2; } ;;
        *) echo "$part is not a part of this script; see the table in $0" >&2; exit 2 ;;
    esac
done
case ${SIZE:-base},${DEVICE:-cuda} in
    base,cuda)
        memory=(--batch 1 --frames 16 64 --dtype bf16 --repeats 3 --methods plain checkpointing)
        speed=(--frames 4 --dtypes bf16) many=(--batch 16 --repeats 3) one=(--batch 1 --repeats 5)
        few_and_many=(--frames 1 8 --dtypes bf16 --batch 16 --repeats 3) embedding=() feeding=(--frames 4) decoding=()
        graphs=(ours+graphs) regions=(--paper --batch 16 --dtype bf16 --repetitions 3) recipe=() ;;
    tiny,cpu)
        memory=(--size small --batch 2 --frames 1 --repeats 1 --methods plain checkpointing)
        speed=(--size tiny --frames 2 --dtypes fp32) many=(--batch 2 --repeats 1) one=(--batch 1 --repeats 1)
        few_and_many=(--size tiny --frames 1 2 --dtypes fp32 --repeats 1)
        embedding=(--size small --frames 2 --workers 1 --repeats 1)
        feeding=(--frames 2 --batch 2 --workers 0 1 --passes 1) decoding=(--frames 2 --repeats 1 --no-rivals)
        graphs=() regions=(--batch 2 --frames 2 --image-size 32 --codes 16 --repetitions 1)
        recipe=(--steps 4 --train 16 --test 8 --batch 8 --workers 0 --no-compile)
        if [[ " $* " == *" small "* ]]; then echo "SIZE=tiny has no part small: leave it out" >&2; exit 2; fi ;;
    *) echo "SIZE=${SIZE:-base} with DEVICE=${DEVICE:-cuda} is not supported: set SIZE=tiny DEVICE=cpu, or neither" >&2
        exit 2 ;;
esac
device=${DEVICE:-cuda}
mkdir -p "$output"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=src:. PYTHONUNBUFFERED=1
failed=0
run() {  # run PART LIMIT COMMAND...: adds to the log, and takes the results from $work/PART.json
    local part=$1 limit=$2 start=$SECONDS status=0
    shift 2
    [[ $device == cpu ]] && limit=0  # no limit
    timeout "$limit" "$@" >> "$output/$part.log" 2>&1 || { status=$?; failed=1; }
    echo "== $part: exit status $status, $((SECONDS - start)) s"
    tail -n 40 "$output/$part.log"
    if [[ -f $work/$part.json ]]; then
        python -c 'import json, sys; print(json.dumps({"part": sys.argv[1], **json.load(open(sys.argv[2]))}))' \
            "$part" "$work/$part.json" >> "$output/results.jsonl"
        rm "$work/$part.json"
    fi
}
measure() {  # measure PART LIMIT SCRIPT OPTIONS...
    run "$1" "$2" python "benchmarks/$3.py" --device "$device" --json "$work/$1.json" "${@:4}"
}
small=(--output "$work/runs" --setting shapes_96 --rows "queries,cells,tracking,decoupled" --jobs 4)

for part in "$@"; do
    rm -f "$output/$part.log"
    case $part in
        tests) run tests 110 python -m pytest -q -p no:cacheprovider -m gpu tests/test_gpu.py ;;
        memory) measure memory 40 training "${memory[@]}" ;;
        eager) measure eager 80 speed "${speed[@]}" "${many[@]}" --passes train --profile \
            --models ours ours_queries ours_patch_dropout ours_no_regions plain clip xclip ;;
        regions) measure regions 40 model "${regions[@]}" --parts forms ;;
        inference) measure inference 50 speed "${speed[@]}" "${one[@]}" --passes inference \
            --models ours "${graphs[@]}" clip xclip ;;
        recipe) measure recipe 70 recipe "${recipe[@]}" ;;
        compiled) measure compiled 150 speed "${speed[@]}" "${many[@]}" --passes train \
            --models ours ours+compile clip+compile plain ;;
        compiled_peers) measure compiled_peers 350 speed "${speed[@]}" "${many[@]}" --passes train \
            --models ours ours+compile ours_no_regions+compile plain plain+compile xclip xclip+compile ;;
        frames) measure frames 150 speed "${few_and_many[@]}" --models ours plain clip xclip videoprism ;;
        videos)
            measure videos 150 embedding "$VIDEOS" "${embedding[@]}"
            run videos 150 python benchmarks/feeding.py "$VIDEOS" "${feeding[@]}" --json "$work/videos.json"
            run videos 150 python benchmarks/decoding.py "$VIDEOS" "${decoding[@]}" --json "$work/videos.json" ;;
        small)
            run small 500 python -m experiments.ablation "${small[@]}" --seeds 2
            run small 100 python -m experiments.words "${small[@]}"
            cp "$work"/runs/*.jsonl "$output" ;;
    esac
done
exit "$failed"

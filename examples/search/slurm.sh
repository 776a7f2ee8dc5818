#!/bin/bash
# Embeds videos as an array of SLURM jobs, one share of the videos each.
#
#   sbatch --array=0-63 examples/search/slurm.sh MODEL VIDEOS PARTS 64
#   region-learner index --index DIR --from-embeddings PARTS     # when all have finished
#
# The first command again embeds what is new, and --array=3,17 the shares 3 and 17 only. PARTS is a directory that all
# machines see. A job that is about to reach its time limit, or is preempted, writes what it has and is started again.
#SBATCH --job-name=region-learner-embed
#SBATCH --cpus-per-task=16
#SBATCH --gres=gpu:1
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
set -euo pipefail

if [ $# != 4 ]; then
    echo "usage: sbatch --array=0-\$((N - 1)) $0 MODEL VIDEOS PARTS N" >&2
    exit 2
fi
region-learner embed "$1" "$2" --output "$3" --shard "$SLURM_ARRAY_TASK_ID/$4" --workers "${SLURM_CPUS_PER_TASK:-1}" &
trap 'kill -TERM $!' TERM
code=0
wait $! || code=$?
if [ "$code" -gt 128 ]; then  # the wait was interrupted, or the command was
    code=0
    wait $! || code=$?
fi
if [ "$code" = 143 ]; then
    scontrol requeue "$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID"
fi
exit "$code"

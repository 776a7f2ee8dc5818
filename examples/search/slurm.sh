#!/bin/bash
# Embeds videos with an array of SLURM jobs, each of which embeds one shard of the videos.
#
#   sbatch --array=0-63 examples/search/slurm.sh MODEL VIDEOS PARTS 64
#   region-learner index --index DIR --from-embeddings PARTS     # when all jobs have finished
#
# Run the first command again to embed new videos, or with --array=3,17 to embed only shards 3 and 17. PARTS is a
# directory that all machines share. A job that is preempted, or about to reach its time limit, writes what it has
# embedded and is put into the queue again.
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

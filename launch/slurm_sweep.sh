#!/usr/bin/env bash
# One point of a sweep for each job of a SLURM array, on one GPU each.
#   sbatch --array=0-2 launch/slurm_sweep.sh configs/sweeps/reference_attention.py --output /shared/runs/reference \
#       --init-from /shared/runs/vae --config.data.directory=/shared/data
# `emo sweep ... --list` prints the points, of which the array has as many. Two minutes before its time is up, or when it
# is preempted, a point saves and is queued again, and after other ends as slurm.sh has it. Then `emo sweep ... --table`
# compares them.
#SBATCH --job-name=emo-sweep
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# ---- the environment, all of it here
VENV=${VENV:-$SLURM_SUBMIT_DIR/.venv}
RESTARTS=${RESTARTS:-20}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda} # no GPU is an error, not a slow run

listed=$("$VENV/bin/emo" sweep "$@" --list)
mapfile -t points <<<"$listed"
point=${points[$SLURM_ARRAY_TASK_ID]:?no such point; the sweep has ${#points[@]}, from 0}

status=0
srun "$VENV/bin/emo" sweep "$@" --points "$point" || status=$?
if ((status == 143 || (status != 0 && status != 2 && status != 3 && ${SLURM_RESTART_COUNT:-0} < RESTARTS))); then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" # not the whole array
fi
exit "$status"

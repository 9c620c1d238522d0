#!/usr/bin/env bash
# Runs a sweep as a SLURM array: one point per task, on one GPU each.
#   sbatch --array=0-2 launch/slurm_sweep.sh configs/sweeps/reference_attention.py --output /shared/runs/reference \
#       --init-from /shared/runs/vae --config.data.directory=/shared/data
# The array has as many tasks as `emo sweep ... --list` prints points. Two minutes before its time limit, or when it is
# preempted, a point saves and is queued again; after other failures as in slurm.sh. Afterwards, `emo sweep ... --table`
# compares the points.
#SBATCH --job-name=emo-sweep
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# ---- environment
VENV=${VENV:-$SLURM_SUBMIT_DIR/.venv}
RESTARTS=${RESTARTS:-20}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda} # fail without a GPU instead of running slowly

list=$("$VENV/bin/emo" sweep "$@" --list)
mapfile -t points <<<"$list"
point=${points[$SLURM_ARRAY_TASK_ID]:?expected an array index below ${#points[@]}; the sweep has ${#points[@]} points}

status=0
srun "$VENV/bin/emo" sweep "$@" --points "$point" || status=$?
if ((status == 143 || (status != 0 && status != 2 && status != 3 && ${SLURM_RESTART_COUNT:-0} < RESTARTS))); then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" # this task, not the array
fi
exit "$status"

#!/usr/bin/env bash
# One point of a sweep for each job of a SLURM array, on one GPU each.
#   sbatch --array=0-2 launch/slurm_sweep.sh configs/sweeps/reference_attention.py --output /shared/runs/reference \
#       --init-from /shared/runs/vae --config.data.directory=/shared/data
# `emo sweep ... --list` prints the points. Then the same `emo sweep` command without SLURM makes the table: all that
# is finished is skipped.
#SBATCH --job-name=emo-sweep
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

# ---- the environment, all of it here
VENV=${VENV:-$SLURM_SUBMIT_DIR/.venv}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda} # no GPU is an error, not a slow run

mapfile -t points < <("$VENV/bin/emo" sweep "$@" --list)
"$VENV/bin/emo" sweep "$@" --points "${points[$SLURM_ARRAY_TASK_ID]}"

#!/usr/bin/env bash
# Makes the videos of a manifest as a SLURM array: each task takes the next videos that nobody works on.
#   sbatch --array=0-15 launch/slurm_generate.sh --manifest /shared/pairs.csv --output /shared/videos --checkpoint /shared/weights
# The output must be on a file system that all tasks share. Videos that are there are skipped, so that the same command
# continues after a failure. When a task is preempted it ends with status 143 and is queued again; a video that could not
# be made (status 1) or bad input (status 2) does not queue it again.
#SBATCH --job-name=emo-generate
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# ---- environment
VENV=${VENV:-$SLURM_SUBMIT_DIR/.venv}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda} # fail without a GPU instead of running slowly

status=0
srun "$VENV/bin/emo" generate "$@" || status=$?
if ((status == 143)); then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" # this task, not the array
fi
exit "$status"

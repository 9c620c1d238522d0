#!/usr/bin/env bash
# Trains on several GPU nodes under SLURM: one process for each GPU, which JAX finds through SLURM's variables.
#   sbatch --nodes 4 launch/slurm.sh --config configs/base.py:image --workdir /shared/runs/image \
#       --config.data.directory=/shared/data --config.train.init_from=/shared/runs/sd15
# Two minutes before its time is up, or when it is preempted, the run saves, ends with 143, and is queued again.
# --workdir and the data must be on a file system that all nodes see.
#SBATCH --job-name=emo
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# ---- the environment, all of it here
VENV=${VENV:-$SLURM_SUBMIT_DIR/.venv}
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
unset http_proxy https_proxy  # the processes talk to each other without one

status=0
srun --kill-on-bad-exit=1 "$VENV/bin/emo" train "$@" || status=$?
if ((status == 143)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

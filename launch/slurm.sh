#!/usr/bin/env bash
# Trains on several GPU nodes under SLURM: one process for each node, of all its GPUs; they meet at the first node.
#   sbatch --nodes 4 launch/slurm.sh --config configs/base.py:image --workdir /shared/runs/image \
#       --config.data.directory=/shared/data --config.train.init_from=/shared/runs/sd15 --config.train.batch_size=64
# Two minutes before its time is up, or when it is preempted, the run saves, ends with 143, and is queued again. So it is
# after a dead process or a full disk, up to RESTARTS times; not after bad input (2) or when it diverged (3).
# --workdir and the data must be on a file system that all nodes see.
#SBATCH --job-name=emo
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# ---- the environment, all of it here
VENV=${VENV:-$SLURM_SUBMIT_DIR/.venv}
RESTARTS=${RESTARTS:-20}
PORT=${PORT:-$((61440 + SLURM_JOB_ID % 4096))} # of the first node; jobs that share it have their own
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda} # no GPU is an error, not a slow run
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not take sbatch's
unset http_proxy https_proxy  # the processes talk to each other without one

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export JAX_COORDINATOR_ADDRESS=${hosts%%$'\n'*}:$PORT

status=0
# shellcheck disable=SC2016  # the variables of each process, not of this script
srun --kill-on-bad-exit=1 bash -c 'exec env JAX_NUM_PROCESSES="$SLURM_NTASKS" JAX_PROCESS_ID="$SLURM_PROCID" "$@"' \
  bash "$VENV/bin/emo" train "$@" || status=$?
if ((status == 143 || (status != 0 && status != 2 && status != 3 && ${SLURM_RESTART_COUNT:-0} < RESTARTS))); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

#!/usr/bin/env bash
# Trains on several GPU nodes under SLURM: one process per node, which uses all its GPUs.
#   sbatch --nodes 4 launch/slurm.sh --config configs/base.py:image --workdir /shared/runs/image \
#       --config.data.directory=/shared/data --config.train.init_from=/shared/runs/sd15 --config.train.batch_size=64
# Two minutes before its time limit, or when it is preempted, the run saves, ends with status 143 and is queued again.
# After other failures it is queued again up to RESTARTS times, but not after bad input (2) or divergence (3).
# --workdir and the data must be on a file system that all nodes share.
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

# ---- environment
VENV=${VENV:-$SLURM_SUBMIT_DIR/.venv}
RESTARTS=${RESTARTS:-20}
PORT=${PORT:-$((61440 + SLURM_JOB_ID % 4096))} # on the first node; differs between jobs that share it
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda} # fail without a GPU instead of running slowly
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not inherit sbatch's value
unset http_proxy https_proxy  # the processes connect to each other directly

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export JAX_COORDINATOR_ADDRESS=${hosts%%$'\n'*}:$PORT

status=0
# shellcheck disable=SC2016  # expanded in each process, not in this script
srun --kill-on-bad-exit=1 bash -c 'exec env JAX_NUM_PROCESSES="$SLURM_NTASKS" JAX_PROCESS_ID="$SLURM_PROCID" "$@"' \
  bash "$VENV/bin/emo" train "$@" || status=$?
if ((status == 143 || (status != 0 && status != 2 && status != 3 && ${SLURM_RESTART_COUNT:-0} < RESTARTS))); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

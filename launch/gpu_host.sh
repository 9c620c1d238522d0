#!/usr/bin/env bash
# Trains on all GPUs of this host in one process.
#   launch/gpu_host.sh --config configs/base.py:image --workdir runs/image --config.data.directory=data \
#       --config.train.mesh.data=1 --config.train.mesh.fsdp=-1
# CUDA_VISIBLE_DEVICES=0,1 selects GPUs. SIGTERM saves and ends the run; the same command continues it.
set -euo pipefail

# ---- environment
VENV=${VENV:-$(dirname "$0")/../.venv}
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda} # fail without a GPU instead of running slowly
unset JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES JAX_PROCESS_ID

exec "$VENV/bin/emo" train "$@"

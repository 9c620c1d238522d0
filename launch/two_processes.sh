#!/usr/bin/env bash
# Trains in two processes with four CPU devices each on this machine, to try out what a cluster will run.
#   launch/two_processes.sh --config configs/tiny.py:vae --workdir runs/two --config.data.directory=data/synthetic
# The exit status is that of the first process that failed. SIGTERM and SIGINT are sent to both.
set -euo pipefail

# ---- environment
VENV=${VENV:-$(dirname "$0")/../.venv}
PROCESSES=${PROCESSES:-2}
DEVICES=${DEVICES:-4}  # per process
PORT=${PORT:-12321}
export JAX_PLATFORMS=cpu
export XLA_FLAGS="--xla_force_host_platform_device_count=$DEVICES ${XLA_FLAGS:-}"
export JAX_COORDINATOR_ADDRESS="localhost:$PORT" JAX_NUM_PROCESSES=$PROCESSES

pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < PROCESSES; i++)); do
  JAX_PROCESS_ID=$i "$VENV/bin/emo" train "$@" &
  pids+=($!)
done
status=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  while kill -0 "$pid" 2>/dev/null; do  # a signal interrupted the wait, the process still runs
    code=0
    wait "$pid" || code=$?
  done
  ((status)) || status=$code
done
exit "$status"

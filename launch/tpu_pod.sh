#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice; JAX finds the hosts through the TPU's metadata.
#   NAME=emo ZONE=us-east5-a launch/tpu_pod.sh create     # v5p-128 (64 chips), spot, as a queued resource
#   NAME=emo ZONE=us-east5-a launch/tpu_pod.sh install    # the last commit and its dependencies, on every host
#   NAME=emo ZONE=us-east5-a launch/tpu_pod.sh train --config configs/base.py:image --workdir /mnt/runs/image \
#       --config.data.directory=/mnt/data --config.train.batch_size=64 \
#       --config.train.mesh.data=1 --config.train.mesh.fsdp=-1
#   NAME=emo ZONE=us-east5-a launch/tpu_pod.sh delete
# --workdir and the data must be mounted at the same path on all hosts. After a preemption: delete (the suspended queued
# resource still occupies the name), create, install and train again.
set -euo pipefail

# ---- environment
NAME=${NAME:?the name of the TPU}
ZONE=${ZONE:?its zone}
TYPE=${TYPE:-v5p-128}
VERSION=${VERSION:-v2-alpha-tpuv5}
PYTHON=${PYTHON:-python3.11} # on the hosts; python3 of Ubuntu 22.04 is 3.10
TRIES=${TRIES:-3} # a run that ends early continues from its last checkpoint
PAUSE=${PAUSE:-30}

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all --command "$1"
}

command=${1:?create, install, train or delete}
shift
case "$command" in
  create)
    gcloud compute tpus queued-resources create "$NAME" --zone "$ZONE" --node-id "$NAME" \
      --accelerator-type "$TYPE" --runtime-version "$VERSION" --spot
    ;;
  install)
    cd "$(dirname "$0")/.."
    [ -z "$(git status --porcelain)" ] || echo "warning: uncommitted changes are not installed" >&2
    git archive --format=tar.gz --prefix=emo_jax/ -o /tmp/emo_jax.tar.gz HEAD
    gcloud compute tpus tpu-vm scp /tmp/emo_jax.tar.gz "$NAME": --zone "$ZONE" --worker=all
    # Not jax[tpu], which requires libtpu 0.0.42: `emo plan` uses the version in constraints.txt.
    on_all_hosts "$PYTHON -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
      { echo '$PYTHON is not Python 3.11 or newer with venv; set PYTHON or install python3.11-venv' >&2; exit 2; } && \
      tar xzf emo_jax.tar.gz && cd emo_jax && $PYTHON -m venv .venv && \
      .venv/bin/pip install --quiet --constraint constraints.txt -e '.[tpu]'"
    ;;
  train)
    arguments=$(printf '%q ' "$@")
    for ((try = 1; ; try++)); do
      status=0
      on_all_hosts "cd emo_jax && exec .venv/bin/emo train $arguments" || status=$?
      case "$status" in 0 | 2 | 3 | 255) break ;; esac # done, bad input, diverged, or unreachable (may still run)
      ((try < TRIES)) || break
      echo "exit status $status; restarting in $PAUSE s" >&2
      sleep "$PAUSE"
    done
    exit "$status"
    ;;
  delete)
    gcloud compute tpus queued-resources delete "$NAME" --zone "$ZONE" --force
    ;;
  *)
    echo "unknown command $command; expected create, install, train or delete" >&2
    exit 2
    ;;
esac

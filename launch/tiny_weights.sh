#!/usr/bin/env bash
# Trains the bundled weights from scratch: data, VAE, then EMO's three stages (make tiny-weights).
# About four hours on two slow CPU cores. Continues after an interruption. Arguments are passed on to `emo train`.
set -euo pipefail
VENV=${VENV:-$(dirname "$0")/../.venv}
RUNS=${RUNS:-runs/tiny}
DATA=${DATA:-data/synthetic}
OUTPUT=${OUTPUT:-$RUNS/weights} # emo_jax/weights/tiny replaces the bundled weights

[ -d "$DATA" ] || "$VENV/bin/emo" prepare synthetic --output "$DATA" --records 1600 --held-out 64
previous=
for stage in vae image video speed; do
  "$VENV/bin/emo" train --config "configs/tiny.py:$stage" --workdir "$RUNS/$stage" \
    --config.data.directory="$DATA" --config.train.init_from="$previous" "$@"
  previous=$RUNS/$stage
done
"$VENV/bin/emo" export --workdir "$previous" --output "$OUTPUT"

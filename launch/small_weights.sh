#!/usr/bin/env bash
# Makes the weights of configs/small.py from nothing: renders the data, trains the VAE of flow, pretrains the audio
# projector, trains EMO's stages video and speed, exports (make small-weights). Every step continues after an
# interruption when the script is run again. Arguments are passed on to `emo train`.
#
# Needs the extra `people` and the packages that docs/data.md names.
set -euo pipefail
HERE=$(dirname "$0")
VENV=${VENV:-$HERE/../.venv}
RUNS=${RUNS:-runs/small}
DATA=${DATA:-data/small}
OUTPUT=${OUTPUT:-$RUNS/weights} # emo_jax/weights/small bundles the weights
SHARDS=${SHARDS:-8}             # data sets of RECORDS long records each
RECORDS=${RECORDS:-200}
HELD_OUT=${HELD_OUT:-16}
LENGTH=${LENGTH:-5} # seconds of a long record
VOICES=${VOICES:-3000}       # voices with lips but without pictures, for the audio projector
LIP_STEPS=${LIP_STEPS:-1500} # of its training, 0.05 s each
STAGES=${STAGES:-vae lips video speed export}

for stage in $STAGES; do
  if [[ ! " vae lips video speed export " == *" $stage "* ]]; then
    echo "STAGES has $stage; expected some of vae lips video speed export" >&2
    exit 2
  fi
done

render() { # NAME SEED RECORDS SECONDS
  [ -d "$DATA/$1" ] || "$VENV/bin/emo" prepare synthetic --world mix -o "$DATA/$1" --seed "$2" \
    --records "$3" --held-out "$HELD_OUT" --seconds "$4"
}
train() { # STAGE PREVIOUS ARGUMENTS...
  "$VENV/bin/emo" train --config "small:$1" --workdir "$RUNS/$1" \
    --config.data.sources="($records)" --config.train.init_from="$2" "${@:3}"
}

mkdir -p "$DATA"
records=
for ((k = 0; k < SHARDS; k++)); do
  render "people-$k" "$k" "$RECORDS" "$LENGTH"
  records+="('$DATA/people-$k','train',1),"
done

for stage in $STAGES; do
  case $stage in
  vae) train vae "" "$@" ;;
  lips)
    [ -f "$DATA/lips.npz" ] || "$VENV/bin/python" -m emo_jax.synthetic.people.lips --people "$VOICES" \
      -o "$DATA/lips.npz"
    [ -d "$RUNS/lips" ] || "$VENV/bin/python" -m emo_jax.training.lip_pretraining --checkpoint "$RUNS/vae" \
      --data "$DATA"/people-* "$DATA/lips.npz" --steps "$LIP_STEPS" -o "$RUNS/lips"
    ;;
  video) train video "$RUNS/lips" "$@" ;;
  speed) train speed "$RUNS/video" "$@" ;;
  export) "$VENV/bin/emo" export --workdir "$RUNS/speed" --output "$OUTPUT" ;;
  esac
done

#!/usr/bin/env bash
# Makes the weights of configs/small.py from nothing: renders the data, trains the autoencoder, encodes the data, trains
# EMO's three stages, exports (make small-weights). About a day on two idle CPU cores; every step continues after an
# interruption when the script is run again. Arguments are passed on to `emo train`.
#
# Needs the extra `people` and the packages that docs/data.md names; pip gets the photographs' packages.
set -euo pipefail
HERE=$(dirname "$0")
VENV=${VENV:-$HERE/../.venv}
RUNS=${RUNS:-runs/small}
DATA=${DATA:-data/small}
OUTPUT=${OUTPUT:-$RUNS/weights} # emo_jax/weights/small bundles the weights
SHARDS=${SHARDS:-8}             # data sets of RECORDS long records each
RECORDS=${RECORDS:-200}
FACES=${FACES:-720} # short records for the autoencoder, which sees one frame of a record at a time
HELD_OUT=${HELD_OUT:-16}
LENGTH=${LENGTH:-5} # seconds of a long record
VOICES=${VOICES:-3000}       # voices with lips but without pictures, for the audio projector
LIP_STEPS=${LIP_STEPS:-1500} # of its training, 0.05 s each
STAGES=${STAGES:-vae vae-full latents lips image video speed export}

for stage in $STAGES; do
  if [[ ! " vae vae-full latents lips image video speed export " == *" $stage "* ]]; then
    echo "STAGES has $stage; expected some of vae vae-full latents lips image video speed export" >&2
    exit 2
  fi
done

render() { # NAME SEED RECORDS SECONDS
  [ -d "$DATA/$1" ] || "$VENV/bin/emo" prepare synthetic --world mix -o "$DATA/$1" --seed "$2" \
    --records "$3" --held-out "$HELD_OUT" --seconds "$4"
}
train() { # STAGE SOURCES PREVIOUS ARGUMENTS...
  "$VENV/bin/emo" train --config "small:$1" --workdir "$RUNS/$1" \
    --config.data.sources="($2)" --config.train.init_from="$3" "${@:4}"
}

mkdir -p "$DATA"
render faces 100 "$FACES" 0.4
pictures="('$DATA/faces','train',3),"
latents=
for ((k = 0; k < SHARDS; k++)); do
  render "people-$k" "$k" "$RECORDS" "$LENGTH"
  pictures+="('$DATA/people-$k','train',1),"
  latents+="('$DATA/latents-$k','train',1),"
done
if [ ! -d "$DATA/photographs" ]; then
  "$VENV/bin/python" -m pip download --quiet --no-deps --only-binary=:all: -d "$DATA/wheels" \
    scikit-image==0.25.2 scikit-learn==1.9.1 matplotlib==3.11.2
  "$VENV/bin/python" "$HERE/photographs.py" --wheels "$DATA/wheels" --output "$DATA/photographs"
fi
pictures+="('$DATA/photographs','train',2),"

for stage in $STAGES; do
  case $stage in
  vae) train vae "$pictures" "" "$@" ;;
  vae-full) train vae-full "$pictures" "$RUNS/vae" "$@" ;;
  latents)
    for ((k = 0; k < SHARDS; k++)); do
      "$VENV/bin/emo" prepare latents "$DATA/people-$k" -o "$DATA/latents-$k" --checkpoint "$RUNS/vae-full"
    done
    ;;
  lips)
    [ -f "$DATA/lips.npz" ] || "$VENV/bin/python" -m emo_jax.synthetic.people.lips --people "$VOICES" \
      -o "$DATA/lips.npz"
    [ -d "$RUNS/lips" ] || "$VENV/bin/python" -m emo_jax.training.lip_pretraining --checkpoint "$RUNS/vae-full" \
      --data "$DATA"/people-* "$DATA/lips.npz" --steps "$LIP_STEPS" -o "$RUNS/lips"
    ;;
  image) train image "$latents" "$RUNS/lips" "$@" ;;
  video) train video "$latents" "$RUNS/image" "$@" ;;
  speed) train speed "$latents" "$RUNS/video" "$@" ;;
  export) "$VENV/bin/emo" export --workdir "$RUNS/speed" --output "$OUTPUT" ;;
  esac
done

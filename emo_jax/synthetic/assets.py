"""Makes the portrait and the voice of `emo demo`.

python -m emo_jax.synthetic.assets --make-assets    # writes emo_jax/assets again
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from emo_jax.generation.inputs import ASSETS
from emo_jax.media.audio import write_wav

PERSON = (1 << 24) + 121
"""A validation seed of `emo prepare synthetic`: training never sees this person."""
SECONDS, SIDE = 6.0, 256


def make_assets(directory: Path = ASSETS) -> None:
    """Writes portrait.png (a held-out person at rest) and voice.wav (formant speech, 16 kHz), deterministically."""
    from emo_jax.media.loudness import normalise
    from emo_jax.synthetic.head import State
    from emo_jax.synthetic.identities import Identity
    from emo_jax.synthetic.rendering import render
    from emo_jax.synthetic.voices import Speaker, synthesise

    directory.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render(Identity.sample(PERSON), State(), SIDE)).save(directory / "portrait.png", optimize=True)
    speaker = Speaker(f0=190.0, tract=1.08, tempo=0.95, breath=0.2, lively=0.6)
    sound = normalise(synthesise(np.random.default_rng([PERSON, 2]), SECONDS, "open", speaker))
    write_wav(directory / "voice.wav", sound)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--make-assets", action="store_true", required=True, help="write emo_jax/assets")
    parser.parse_args()
    make_assets()

"""Makes the portrait and the voice of `emo demo`. Needs the extra `people`.

python -m emo_jax.synthetic.assets --make-assets    # writes emo_jax/assets again
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from emo_jax.generation.inputs import ASSETS
from emo_jax.media.audio import write_wav
from emo_jax.media.loudness import normalise
from emo_jax.media.timing import SAMPLE_RATE

PERSON = (1 << 24) + 16
"""A validation seed of `emo prepare synthetic`: training never sees this person."""
SIDE = 512
_SPEAKER = "en-us+f4"
_SPOKEN = "Hello! Give me a portrait and a voice, and I will speak."
_SUNG = "Or maybe I will sing for you."


def make_assets(directory: Path = ASSETS) -> None:
    """Writes portrait.png (a held-out person at rest) and voice.wav (a sentence and a sung line, 16 kHz)."""
    directory.mkdir(parents=True, exist_ok=True)
    Image.fromarray(make_portrait()).save(directory / "portrait.png", optimize=True)
    write_wav(directory / "voice.wav", make_voice())


def make_portrait() -> np.ndarray:
    """Returns the portrait, (SIDE, SIDE, 3) uint8."""
    from emo_jax.synthetic.people.renderer import Pose
    from emo_jax.synthetic.people.world import set_scene

    scene = set_scene(PERSON, SIDE)
    return scene.look(scene.studio.render(Pose())[0])


def make_voice() -> np.ndarray:
    """Returns the sound, float32 (samples,) at 16 kHz."""
    from emo_jax.synthetic.people.singing import hold_vowels
    from emo_jax.synthetic.people.voices import speak, trim

    spoken, words = (trim(speak(text, "espeak", _SPEAKER, rate)) for text, rate in ((_SPOKEN, 150), (_SUNG, 140)))
    sung, _ = hold_vowels(words, np.random.default_rng(3), low=200.0, degree=2)
    pauses = (np.zeros(round(seconds * SAMPLE_RATE), np.float32) for seconds in (0.25, 0.45, 0.35))
    parts = [part for pair in zip(pauses, (spoken.sound, sung.sound, ()), strict=True) for part in pair]
    return normalise(np.concatenate(parts).astype(np.float32))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--make-assets", action="store_true", required=True, help="write emo_jax/assets")
    parser.parse_args()
    make_assets()

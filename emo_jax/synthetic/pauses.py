"""Long pauses of rendered voices, in which a mouth must stay closed although the portrait's may be open.

Voices pause for less than a second between their sentences. Filmed people also listen, think and breathe: a network
that never sees this keeps an open mouth of its portrait open.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from emo_jax.media.timing import SAMPLE_RATE

SHARE = 0.2
"""Share of the records with a long pause."""
SECONDS = (1.2, 2.4)
"""Shortest and longest of these pauses."""
NOISE = (1e-4, 8e-3)
"""Root mean square of the noise in them, relative to full scale: -80 to -42 dB."""
_STEP = 160
"""Samples of a block whose level is measured, 10 ms."""


class Pause(NamedTuple):
    """A pause in a voice.

    Attributes:
        start: first sample.
        length: number of samples.
        noise: float32 (length,), to be added to the sound.
    """

    start: int
    length: int
    noise: np.ndarray


def draw_pause(rng: np.random.Generator, sound: np.ndarray, share: float = SHARE) -> Pause | None:
    """Draws whether and where a voice pauses for long.

    Args:
        rng: random generator; it is left as it is, so that other draws do not depend on this one.
        sound: the voice, (samples,).
        share: probability of a pause.

    Returns:
        The pause, at the quietest moment of the middle half of the sound; None without one.
    """
    own = rng.spawn(1)[0]
    if own.random() >= share:
        return None
    blocks = len(sound) // _STEP
    length = round(own.uniform(*SECONDS) * SAMPLE_RATE)
    if blocks < 40:
        return None
    power = np.square(sound[: blocks * _STEP], dtype=np.float64).reshape(blocks, _STEP).mean(1)
    smooth = np.convolve(power, np.ones(9) / 9, "same")
    first = blocks // 4
    start = (first + int(np.argmin(smooth[first : blocks - first]))) * _STEP
    level = np.exp(own.uniform(*np.log(NOISE)))
    return Pause(start, length, (level * own.standard_normal(length)).astype(np.float32))


def insert_pause(sound: np.ndarray, pause: Pause) -> np.ndarray:
    """Returns a voice (samples,) with silence at a pause; what follows is later, and the end is cut."""
    silence = np.zeros(pause.length, sound.dtype)
    return np.concatenate([sound[: pause.start], silence, sound[pause.start :]])[: len(sound)]


def add_noise(sound: np.ndarray, pause: Pause) -> np.ndarray:
    """Returns a voice (samples,) with the noise of a pause."""
    noisy = sound.copy()
    part = noisy[pause.start : pause.start + pause.length]
    part += pause.noise[: len(part)]
    return noisy

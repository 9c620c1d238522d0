"""Voices of the procedural world: a formant synthesiser that speaks and sings, levels, and the mouth of a sound.

All sound is float32, 16 kHz, mono.
"""

from __future__ import annotations

import numpy as np

TARGET_DB = -20.0
MAX_GAIN_DB = 20.0
SILENCE_DB = -65.0  # a sound whose loudest 20 ms are below this is silence


def normalise(audio: np.ndarray) -> np.ndarray:
    """Bring speech to an active level of -20 dBFS: (N,) -> (N,) float32.

    The level is the mean power of the 20 ms frames within 30 dB of the loudest; the gain stays within 20 dB
    either way and never lifts a peak above 1. Silence is returned as it is.
    """
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 1:
        raise ValueError(f"audio has shape {audio.shape}; give one channel, (samples,)")
    return (audio * level_gain(audio)).astype(np.float32)


def level_gain(audio: np.ndarray) -> float:
    """The factor by which `normalise` multiplies audio (N,) float32."""
    if not audio.size:
        return 1.0
    frames = np.pad(audio, (0, -len(audio) % 320)).reshape(-1, 320)
    blocks = np.array_split(frames, len(frames) // 4096 + 1)  # doubles of hours of sound at once would be gigabytes
    power = np.concatenate([(block.astype(np.float64) ** 2).mean(1) for block in blocks])
    if power.max() < 10 ** (SILENCE_DB / 10):
        return 1.0
    active = power[power > power.max() / 1000].mean()
    gain = np.clip(TARGET_DB - 10 * np.log10(active), -MAX_GAIN_DB, MAX_GAIN_DB)
    return min(10 ** (gain / 20), 1 / max(np.abs(audio).max(), 1e-9))

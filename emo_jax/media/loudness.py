"""Levels the loudness of speech."""

from __future__ import annotations

import numpy as np

TARGET_DB = -20.0
"""Active level of levelled speech in dBFS."""
MAX_GAIN_DB = 20.0
SILENCE_DB = -65.0
"""Audio whose loudest 20 ms are below this level is silence."""
FRAME = 320  # samples of 20 ms at 16 kHz


def normalise(audio: np.ndarray) -> np.ndarray:
    """Scales speech to an active level of -20 dBFS.

    Args:
      audio: (samples,) in [-1, 1] at 16 kHz.

    Returns:
      float32 (samples,), `audio` times `level_gain(audio)`. Silence is returned unchanged.

    Raises:
      ValueError: if `audio` has several channels.
    """
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 1:
        raise ValueError(f"audio has shape {audio.shape}; expected one channel, (samples,)")
    return (audio * level_gain(audio)).astype(np.float32)


def level_gain(audio: np.ndarray) -> float:
    """Computes the factor that scales speech to an active level of -20 dBFS.

    The active level is the mean power of the 20 ms frames within 30 dB of the loudest frame. The gain is limited to
    20 dB up or down, and never lifts a peak above 1.

    Args:
      audio: float32 (samples,) in [-1, 1] at 16 kHz.

    Returns:
      The factor; 1 for silence and for no samples.
    """
    if not audio.size:
        return 1.0
    frames = np.pad(audio, (0, -len(audio) % FRAME)).reshape(-1, FRAME)
    # In blocks, because float64 of hours of audio at once would take gigabytes.
    blocks = np.array_split(frames, len(frames) // 4096 + 1)
    power = np.concatenate([(block.astype(np.float64) ** 2).mean(1) for block in blocks])
    if power.max() < 10 ** (SILENCE_DB / 10):
        return 1.0
    active = power[power > power.max() / 1000].mean()
    gain = np.clip(TARGET_DB - 10 * np.log10(active), -MAX_GAIN_DB, MAX_GAIN_DB)
    return min(10 ** (gain / 20), 1 / max(np.abs(audio).max(), 1e-9))

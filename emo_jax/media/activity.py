"""Voice activity detection: mutes the pauses of a separated vocal track, so that the mouth closes in them."""

from __future__ import annotations

import numpy as np

FRAME = 320
"""Samples of 20 ms at 16 kHz, the step of the decision."""
RANGE_DB = 30.0
"""A frame is voice if it is at most this far below the mean power of the loud frames."""
HANGOVER = 5
"""Frames of 0.1 s kept before and after voice, within pauses too: consonants and breaths are quieter."""
MIN_PAUSE = 25
"""Frames of 0.5 s: shorter pauses between voice are part of the singing."""


def voice_activity(voice: np.ndarray) -> np.ndarray:
    """Decides where a recording of a voice alone has voice.

    Args:
        voice: float32 (samples,) at 16 kHz, without music, but perhaps with its remains.

    Returns:
        bool (frames,), one for each FRAME samples, the last one padded.
    """
    frames = np.pad(np.asarray(voice, np.float32), (0, -len(voice) % FRAME)).reshape(-1, FRAME)
    power = (frames.astype(np.float64) ** 2).mean(1)
    if not power.max(initial=0.0) > 0:
        return np.zeros(len(power), bool)
    loud = power[power > power.max() / 10 ** (RANGE_DB / 10)].mean()
    active = power > loud / 10 ** (RANGE_DB / 10)
    edges = np.flatnonzero(np.diff(np.concatenate([[1], active, [1]]).astype(int)))
    for start, end in edges.reshape(-1, 2):  # of the pauses
        if end - start < MIN_PAUSE:
            active[start:end] = True
    # The mode "full" for recordings that are shorter than the window.
    return np.convolve(active, np.ones(2 * HANGOVER + 1))[HANGOVER:-HANGOVER] > 0


def mute_pauses(voice: np.ndarray) -> np.ndarray:
    """Replaces pauses of at least MIN_PAUSE by silence, except HANGOVER at their ends, with a fade over one frame.

    Args:
        voice: float32 (samples,) at 16 kHz.

    Returns:
        float32 (samples,).
    """
    active = voice_activity(voice).astype(np.float32)
    centres = (np.arange(len(active)) + 0.5) * FRAME
    gain = np.interp(np.arange(len(voice)), centres, active) if len(active) else np.zeros(0)
    return (voice * gain).astype(np.float32)

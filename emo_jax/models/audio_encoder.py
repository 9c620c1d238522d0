"""Audio features A^f of each video frame: the log-mel front end of the small EMO."""

import functools

import jax.numpy as jnp
import numpy as np

from emo_jax.data.audio import AUDIO_MARGIN, SAMPLE_RATE

_WINDOW = 2 * AUDIO_MARGIN


@functools.cache
def _mel_filters(bands, low=60.0, high=7600.0):
    """Triangular filters on the mel scale (O'Shaughnessy 1987): (_WINDOW // 2 + 1, bands)."""
    mel = np.linspace(*(2595 * np.log10(1 + np.array([low, high]) / 700)), bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequency = np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def mel_features(audio, frames, fps, *, bands, steps):
    """Log-mel features of each video frame.

    Args:
        audio: (B, W) waveform at 16 kHz in [-1, 1], which starts AUDIO_MARGIN samples before the first frame and
            ends at least AUDIO_MARGIN samples behind the last (data.audio.window_bounds).
        frames: how many video frames it spans; fps: their rate.
        bands: mel bands; steps: spectra per frame, evenly spaced over it.

    Returns:
        (B, frames, steps, bands) float32, log power with a floor at -80 dB, scaled to about [-1, 1].
    """
    centres = (np.arange(frames * steps) + 0.5) * SAMPLE_RATE / (fps * steps)
    starts = np.round(centres).astype(np.int32)  # of a window centred there, given the margin
    cut = audio[:, starts[:, None] + np.arange(_WINDOW)]
    spectrum = jnp.fft.rfft(cut * np.hanning(_WINDOW).astype(np.float32))
    power = (jnp.abs(spectrum) ** 2) @ _mel_filters(bands) / _WINDOW
    decibels = 10 * jnp.log10(power + 1e-8)
    return (decibels.reshape(audio.shape[0], frames, steps, bands) + 35) / 35

"""Offset and confidence of lips against sound, without a trained network.

For each shift of the sound, a ridge regression predicts the gap between the lips from the sound's mel spectrum, and is
tested on parts of the video that it was not fitted to. Sound and lips belong together where the prediction is best.
The result depends on this video alone, in any language, and isn't comparable to SyncNet's LSE-C and LSE-D.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from emo_jax.media.timing import SAMPLE_RATE

MAX_LAG = 20
"""Largest shift in frames."""
MIN_FRAMES = 75
"""Shortest track, in frames, from which a regression can be fitted and tested."""
BANDS, COMPONENTS, PENALTY, FOLDS = 20, 12, 100.0, 5
HOP, WINDOW = 160, 512
CONTEXT = (-4, 0, 4)
"""Spectra around a frame that predict its lips, in hops of 10 ms."""
GUARD = 12
"""Frames at the border of a fold that are left out of its fit, because neighbours are alike."""


@dataclasses.dataclass(frozen=True)
class Sync:
    """How lips and sound belong together.

    Attributes:
        offset: frames by which the sound is late (positive) or early, at the best correlation.
        correlation: Pearson's r between predicted and measured lip gap at this offset.
        confidence: correlation there, minus the median over all shifts.
    """

    offset: int
    correlation: float
    confidence: float


def lip_sync(gap: np.ndarray, sound: np.ndarray, fps: float) -> Sync | None:
    """Measures offset and confidence of lips against sound.

    Args:
        gap: (N,) gap between the lips in each frame, NaN where there is no face.
        sound: float (samples,) at 16 kHz, from the first frame on.
        fps: frames per second.

    Returns:
        None if there are fewer than MIN_FRAMES frames with a face, or no movement, or no sound.
    """
    known = ~np.isnan(gap)
    if known.sum() < MIN_FRAMES or not np.ptp(gap[known]) > 0 or not np.any(sound):
        return None
    count = len(gap)
    features = _principal(spectral_features(sound, fps, -MAX_LAG, count + MAX_LAG))
    correlations = []
    for lag in range(-MAX_LAG, MAX_LAG + 1):
        rows = features[lag + MAX_LAG : lag + MAX_LAG + count]
        correlations.append(_predictability(rows[known], gap[known]))
    best = int(np.argmax(correlations))
    return Sync(best - MAX_LAG, correlations[best], correlations[best] - float(np.median(correlations)))


def spectral_features(sound: np.ndarray, fps: float, start: int, stop: int) -> np.ndarray:
    """Returns the log mel spectra around each frame from `start` to `stop`, (stop - start, features).

    Frames before and after the sound repeat its first and last spectrum.
    """
    padded = np.pad(np.asarray(sound, np.float64), (WINDOW // 2, WINDOW))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    filters, blocks = _mel_filters().T, range(0, len(frames), 4096)  # in blocks: the spectra of an hour take gigabytes
    power = (np.abs(np.fft.rfft(frames[i : i + 4096] * np.hanning(WINDOW), axis=1)) ** 2 @ filters for i in blocks)
    spectra = np.log(np.concatenate(list(power)) + 1e-6)
    centres = np.round((np.arange(start, stop) + 0.5) / fps * SAMPLE_RATE / HOP).astype(int)
    index = np.clip(centres[:, None] + np.array(CONTEXT), 0, len(spectra) - 1)
    return spectra[index].reshape(len(centres), -1)


def _mel_filters() -> np.ndarray:
    """Returns triangular filters (BANDS, WINDOW // 2 + 1) whose corners are even on the mel scale, 80 to 7600 Hz."""

    def mel(hertz):
        return 2595 * np.log10(1 + np.asarray(hertz) / 700)

    corners = np.linspace(mel(80), mel(7600), BANDS + 2)
    places = mel(np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE))
    rising = (places - corners[:-2, None]) / np.diff(corners)[:-1, None]
    falling = (corners[2:, None] - places) / np.diff(corners)[1:, None]
    return np.maximum(0, np.minimum(rising, falling))


def _principal(features: np.ndarray) -> np.ndarray:
    """Returns the first COMPONENTS principal components of standardized features (N, K)."""
    spread = features.std(0)
    features = (features - features.mean(0)) / np.where(spread > 1e-6, spread, 1.0)
    _, directions = np.linalg.eigh(features.T @ features)  # ascending
    return features @ directions[:, -COMPONENTS:]


def _predictability(features: np.ndarray, gap: np.ndarray) -> float:
    """Returns Pearson's r between the gap and its prediction from features, each fold predicted from the others."""
    inputs = np.column_stack([features, np.ones(len(gap))])
    penalty = PENALTY * np.eye(inputs.shape[1])
    penalty[-1, -1] = 0  # of the mean
    predicted = np.zeros(len(gap))
    for fold in np.array_split(np.arange(len(gap)), FOLDS):
        fitted = np.ones(len(gap), bool)
        fitted[max(fold[0] - GUARD, 0) : fold[-1] + GUARD + 1] = False
        known = inputs[fitted]
        predicted[fold] = inputs[fold] @ np.linalg.solve(known.T @ known + penalty, known.T @ gap[fitted])
    deviation = np.std(predicted) * np.std(gap)
    return float(np.mean((predicted - predicted.mean()) * (gap - gap.mean())) / deviation) if deviation > 1e-12 else 0.0

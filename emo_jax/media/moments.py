"""First and second moments of a recording, by which the input of wav2vec 2.0 is normalized.

wav2vec 2.0 standardises its input, and its first layer has a group norm over time. Both take their statistics from the
recording, in generation as in training, where the network reads a window of a few seconds only: with pauses, the
statistics of a window differ from those of its recording.
"""

from __future__ import annotations

import numpy as np

FRAME, STRIDE = 10, 5
"""Kernel and stride of the first convolution of all released wav2vec 2.0 models, in samples."""


def audio_moments(audio: np.ndarray) -> np.ndarray:
    """Returns `moment_frames` (20, 10) float32 of audio (samples,) int16, scaled to [-1, 1]; zeros if it is empty."""
    if len(audio) < FRAME:
        return np.zeros((2 * FRAME, FRAME), np.float32)
    return moment_frames(audio, FRAME, STRIDE) / np.float32(32768)


def moment_frames(audio: np.ndarray, size: int, stride: int, block: int = 1 << 16) -> np.ndarray:
    """Computes a few frames with the mean and covariance of all frames of a recording.

    A linear function has the same mean and variance over them as over all frames of `size` samples, one every `stride`
    samples. Windows of a recording thereby share the group norm's statistics of the full recording.

    Args:
        audio: the recording (samples,).
        size: samples per frame.
        stride: samples between frames.
        block: frames that are summed at once.

    Returns:
        (2 * size, size) float32.
    """
    frames = np.lib.stride_tricks.sliding_window_view(audio, size)[::stride]
    total, products = np.zeros(size), np.zeros((size, size))
    for i in range(0, len(frames), block):
        part = frames[i : i + block].astype(np.float64)
        total, products = total + part.sum(0), products + part.T @ part
    mean = total / len(frames)
    variances, directions = np.linalg.eigh(products / len(frames) - np.outer(mean, mean))
    spread = (directions * np.sqrt(size * np.maximum(variances, 0))).T
    return np.concatenate([mean + spread, mean - spread]).astype(np.float32)

"""What a sound contains besides one voice: music, and a second voice that speaks at the same time.

A small network judges each moment of 20 ms by the half second around it. It was trained on mixtures of synthetic voices
and synthetic music alone (`preparation.train_sound_content`), and runs in numpy, so that workers need no JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from emo_jax.media.timing import SAMPLE_RATE

WEIGHTS = pathlib.Path(__file__).parent / "sound_content.safetensors"
HOP, WINDOW, FFT = 320, 1024, 2048
LOWEST, HIGHEST, BANDS = 80.0, 4000.0, 120
"""Frequencies in Hz between which BANDS are even on a logarithmic scale, so that partials keep their distances."""
KERNELS = ((5, 9, 3, 16), (5, 5, 2, 24), (5, 5, 2, 32))
"""Frames, bands, stride over bands and channels of each convolution."""
HIDDEN, MEAN = 48, 15
"""Width of the connected layer, and number of frames over which it is averaged."""
REACH = sum(kernel[0] // 2 for kernel in KERNELS) + MEAN // 2
"""Frames on each side that a judgement depends on."""
OUTPUTS = ("music", "overlap")
ACTIVE_DB = -35.0
"""A frame counts if its level is at most this far below the 95th percentile of all frames."""
_FLOOR = 0.01


@dataclasses.dataclass(frozen=True)
class SoundContent:
    """Shares of the audible moments of a sound, each in [0, 1].

    Attributes:
        music: share of moments with music.
        overlap: share of moments with two voices at once.
    """

    music: float
    overlap: float


def sound_content(sound: np.ndarray) -> SoundContent:
    """Measures a sound, float (samples,) at 16 kHz; all shares are 0 in silence."""
    features, level = spectral_rows(sound)
    active = level > np.quantile(level, 0.95) + ACTIVE_DB
    if not np.any(sound) or not active.any():
        return SoundContent(0.0, 0.0)
    shares = (forward(load_weights(), np.pad(features, ((REACH, REACH), (0, 0)), mode="edge")) > 0)[active].mean(0)
    return SoundContent(*(float(share) for share in shares))


def spectral_rows(sound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns log spectra (frames, BANDS) on a logarithmic scale of frequency, and levels (frames,) in dB.

    Spectra are relative to the root mean square of the sound. There is one frame for each HOP samples.
    """
    sound = np.asarray(sound, np.float32)
    scale = max(float(np.sqrt(np.mean(sound.astype(np.float64) ** 2))) if len(sound) else 0.0, 1e-6)
    padded = np.pad(sound / scale, (WINDOW // 2, WINDOW))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[: max(len(sound), 1) : HOP]
    window = np.hanning(WINDOW).astype(np.float32)
    blocks = range(0, len(windows), 4096)  # in blocks: the spectra of an hour take gigabytes
    spectra = np.concatenate([_bands(np.abs(np.fft.rfft(windows[i : i + 4096] * window, FFT, axis=1))) for i in blocks])
    power = (windows.astype(np.float64) ** 2).mean(1)
    return np.log(spectra / np.sqrt(WINDOW) + _FLOOR).astype(np.float32), 10 * np.log10(power + 1e-12)


def _bands(magnitude: np.ndarray) -> np.ndarray:
    """Interpolates magnitudes (N, FFT // 2 + 1) at the frequencies of the bands."""
    places = np.geomspace(LOWEST, HIGHEST, BANDS) * FFT / SAMPLE_RATE
    low = places.astype(int)
    part = (places - low).astype(np.float32)
    return magnitude[:, low] * (1 - part) + magnitude[:, low + 1] * part


def forward(weights: dict[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    """Returns the logits (N, 2) of OUTPUTS for features (N + 2 * REACH, BANDS)."""
    x = features[..., None] * weights["scale"] + weights["shift"]
    for level, (frames, bands, stride, _) in enumerate(KERNELS):
        windows = np.lib.stride_tricks.sliding_window_view(x, (frames, bands), axis=(0, 1))[:, ::stride]
        x = np.tensordot(windows, weights[f"conv_{level}"], axes=([3, 4, 2], [0, 1, 2])) + weights[f"bias_{level}"]
        x = np.maximum(x, 0)
    x = np.maximum(x.reshape(len(x), -1) @ weights["hidden"] + weights["hidden_bias"], 0)
    means = np.lib.stride_tricks.sliding_window_view(x, MEAN, axis=0).mean(-1)
    return means @ weights["out"] + weights["out_bias"]


@functools.cache
def load_weights(path: str | os.PathLike = WEIGHTS) -> dict[str, np.ndarray]:
    """Reads the weights, float32.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        return {name: array.astype(np.float32) for name, array in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); install emo_jax again") from error

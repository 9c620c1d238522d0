"""SyncNet (Chung and Zisserman 2016): Sync-C and Sync-D of lips and sound, with the weights syncnet_v2.model.

Networks, crop, MFCC features and scores are those of joonson/syncnet_python, at 25 frames per second. Its faces come
from S3FD; ours are the boxes of `faces.landmarks`, so that values may differ slightly from published ones.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
import scipy.ndimage

from emo_jax.evaluation.layers import Params, conv, fill_batch, fold, max_pool
from emo_jax.weights.files import name_file, read_tensors

FPS, SAMPLE_RATE = 25, 16_000
SIDE, FRAMES = 224, 5
"""Side of a face in pixels, and number of frames that the lip network sees."""
MFCC_PER_FRAME, MFCC_WINDOW = 4, 20
MAX_SHIFT = 15
"""Largest offset in frames."""
MARGIN = 0.4
"""Margin around a face, relative to half of its longer side."""
SMOOTH = 13
"""Frames of the median filter of boxes."""
EPS = 1e-5
_COEFFICIENTS, _BANDS, _FFT, _LENGTH, _STEP, _LIFTER, _EMPHASIS = 13, 26, 512, 400, 160, 22, 0.97
_CONVOLUTIONS = ("0", "4", "8", "11", "14", "18")
_NETWORKS = {"netcnnlip": _CONVOLUTIONS, "netcnnaud": _CONVOLUTIONS, "netfclip": ("0", "3"), "netfcaud": ("0", "3")}


@dataclasses.dataclass(frozen=True)
class SyncScore:
    """How well lips and sound fit.

    Attributes:
        confidence: Sync-C, the median of the mean distances at all offsets minus the smallest.
        distance: Sync-D, the smallest mean distance.
        offset: the frames by which the sound is late there; SyncNet's own offset has the other sign.
    """

    confidence: float
    distance: float
    offset: int


def convert(weights: dict[str, np.ndarray]) -> Params:
    """Converts the state dict of syncnet_v2.model, the batch norms folded into the layers before them.

    Raises:
        ValueError: a tensor is missing.
    """
    params = {}
    for network, layers in _NETWORKS.items():
        for layer in layers:
            norm = "" if (network, layer) in (("netfclip", "3"), ("netfcaud", "3")) else f"{network}.{int(layer) + 1}"
            params[f"{network}.{layer}"] = fold(weights, f"{network}.{layer}", norm, EPS)
    return params


def lip_features(params: Params, frames: jax.Array) -> jax.Array:
    """Computes the features (T - 4, 1024) of each 5 consecutive faces.

    Args:
        params: from `convert`.
        frames: (T, 224, 224, 3) BGR in [0, 255].
    """

    def unit(x: jax.Array, layer: str, stride: int = 1, padding: int = 0) -> jax.Array:
        pads = [(0, 0), (padding, padding), (padding, padding)]
        return jax.nn.relu(conv(x, params[f"netcnnlip.{layer}"], (1, stride, stride), pads))

    def pool(x: jax.Array, padding: int = 0) -> jax.Array:
        return max_pool(x, (1, 3, 3), (1, 2, 2), [(0, 0), (padding, padding), (padding, padding)])

    x = pool(unit(frames[None], "0", 2))
    x = pool(unit(x, "4", 2, 1), 1)
    for layer in ("8", "11", "14"):
        x = unit(x, layer, padding=1)
    x = unit(pool(x), "18")[0, :, 0, 0]
    return _connected(params, "netfclip", x)


def sound_features(params: Params, windows: jax.Array) -> jax.Array:
    """Computes the features (B, 1024) of windows (B, 13, 20) of MFCC features."""

    def unit(x: jax.Array, layer: str, padding: int = 1) -> jax.Array:
        return jax.nn.relu(conv(x, params[f"netcnnaud.{layer}"], 1, [(padding, padding)] * 2))

    x = unit(windows[..., None], "0")
    x = max_pool(unit(x, "4"), (3, 3), (1, 2))
    for layer in ("8", "11", "14"):
        x = unit(x, layer)
    x = unit(max_pool(x, (3, 3), (2, 2)), "18", 0)[:, 0, 0]
    return _connected(params, "netfcaud", x)


def mfcc(sound: np.ndarray) -> np.ndarray:
    """Computes MFCC features (N, 13), 100 a second, with the defaults of python_speech_features.

    Args:
        sound: (samples,) at 16 kHz, in the range of int16.
    """
    sound = np.asarray(sound, np.float64)
    emphasized = np.append(sound[:1], sound[1:] - _EMPHASIS * sound[:-1])
    count = 1 + max(0, -(-(len(sound) - _LENGTH) // _STEP))
    padded = np.pad(emphasized, (0, max(0, (count - 1) * _STEP + _LENGTH - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _LENGTH)[::_STEP][:count]
    power = np.abs(np.fft.rfft(frames, _FFT, axis=1)) ** 2 / _FFT
    tiny = np.finfo(np.float64).eps
    energy, bands = power.sum(1), power @ _filters().T
    cepstrum = np.asarray(scipy.fft.dct(np.log(np.where(bands == 0, tiny, bands)), type=2, axis=1, norm="ortho"))
    found = cepstrum[:, :_COEFFICIENTS] * (1 + _LIFTER / 2 * np.sin(np.pi * np.arange(_COEFFICIENTS) / _LIFTER))
    return np.column_stack([np.log(np.where(energy == 0, tiny, energy)), found[:, 1:]])


@functools.cache
def _filters() -> np.ndarray:
    """Returns triangular filters (26, 257) whose corners are even on the mel scale up to 8 kHz."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    corners = np.floor((_FFT + 1) * 700 * (10 ** (np.linspace(0, top, _BANDS + 2) / 2595) - 1) / SAMPLE_RATE)
    bins = np.arange(_FFT // 2 + 1)
    left, centre, right = (corners[i : i + _BANDS, None] for i in range(3))
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return np.where(bins < centre, np.maximum(rising, 0), np.maximum(falling, 0)) * (bins < right)


def score(lips: np.ndarray, sound: np.ndarray, shift: int = MAX_SHIFT) -> SyncScore:
    """Compares features of lips and sound at all offsets up to `shift` frames.

    Args:
        lips: (N, D) features, one for each frame.
        sound: likewise.
        shift: largest offset in frames; beyond the ends, features are zero, as in the reference.
    """
    padded = np.pad(np.asarray(sound, np.float64), ((shift, shift), (0, 0)))
    lips = np.asarray(lips, np.float64)
    offsets = range(2 * shift + 1)
    means = np.array([np.linalg.norm(lips - padded[k : k + len(lips)] + 1e-6, axis=1).mean() for k in offsets])
    best = int(means.argmin())
    return SyncScore(float(np.median(means) - means[best]), float(means[best]), best - shift)


def smooth_boxes(boxes: np.ndarray) -> np.ndarray:
    """Returns the centre and half of the longer side of boxes, (N, 3), gaps filled and smoothed by a median.

    Args:
        boxes: (N, 4); rows are NaN where no face was found.
    """
    sides = np.maximum(boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]) / 2
    rows = np.column_stack([(boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2, sides])
    places, known = np.arange(len(rows)), ~np.isnan(sides)
    filled = np.column_stack([np.interp(places, places[known], column[known]) for column in rows.T])
    return scipy.ndimage.median_filter(filled, size=(SMOOTH, 1), mode="nearest")


def crop_face(image: np.ndarray, place: Sequence[float]) -> np.ndarray:
    """Returns a face as the lip network expects it, float32 (224, 224, 3) BGR in [0, 255].

    Args:
        image: uint8 RGB (H, W, 3).
        place: x and y of the centre of its box, and half of its longer side.
    """
    x, y, half = place
    pad = int(half * (1 + 2 * MARGIN))
    padded = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=(110, 110, 110))
    top, left = int(y + pad - half), int(x + pad - half * (1 + MARGIN))
    bottom, right = int(y + pad + half * (1 + 2 * MARGIN)), int(x + pad + half * (1 + MARGIN))
    return cv2.resize(padded[top:bottom, left:right, ::-1], (SIDE, SIDE)).astype(np.float32)


class SyncNet:
    """Scores videos.

    Args:
        file: the weights.

    Raises:
        ValueError: the file is missing, damaged or of another network.
    """

    CHUNK = 16
    """Frames whose features are computed together."""

    def __init__(self, file: str | os.PathLike):
        with name_file(file):
            params = jax.device_put(convert(read_tensors(file)))
        self._lips = functools.partial(jax.jit(lip_features), params)
        self._sound = functools.partial(jax.jit(sound_features), params)

    def __call__(self, frames: Iterable[np.ndarray], boxes: np.ndarray, sound: np.ndarray) -> SyncScore | None:
        """Scores a video.

        Args:
            frames: its frames at 25 fps, uint8 RGB (H, W, 3).
            boxes: (N, 4) boxes of the face; rows are NaN where no face was found.
            sound: float (samples,) at 16 kHz in [-1, 1], from the first frame on.

        Returns:
            None without a face, or with fewer than MAX_SHIFT frames of sound or video.
        """
        count = min(len(boxes), len(sound) * FPS // SAMPLE_RATE) - FRAMES  # one less than fit, as in the reference
        if count < MAX_SHIFT or np.isnan(boxes).all():
            return None
        faces = (crop_face(frame, place) for frame, place in zip(frames, smooth_boxes(boxes), strict=False))
        lips = self._lip_features(faces, count)
        features = mfcc(np.round(np.clip(sound, -1, 1) * 32767))
        places = np.arange(count)[:, None] * MFCC_PER_FRAME + np.arange(MFCC_WINDOW)
        windows = features[places].swapaxes(1, 2).astype(np.float32)
        heard = [self._sound(fill_batch(windows[i : i + self.CHUNK], self.CHUNK)) for i in range(0, count, self.CHUNK)]
        return score(lips, np.concatenate([np.asarray(part) for part in heard])[:count])

    def _lip_features(self, faces: Iterable[np.ndarray], count: int) -> np.ndarray:
        found, pending = [], []
        for face in itertools.islice(faces, count + FRAMES - 1):
            pending.append(face)
            if len(pending) == self.CHUNK + FRAMES - 1:
                found.append(np.asarray(self._lips(np.stack(pending))))
                pending = pending[self.CHUNK :]
        if len(pending) >= FRAMES:
            found.append(np.asarray(self._lips(fill_batch(np.stack(pending), self.CHUNK + FRAMES - 1))))
        return np.concatenate(found)[:count]


def _connected(params: Params, network: str, x: jax.Array) -> jax.Array:
    for layer in ("0", "3"):
        kernel, bias = params[f"{network}.{layer}"]
        x = x @ jnp.asarray(kernel) + bias
        x = jax.nn.relu(x) if layer == "0" else x
    return x

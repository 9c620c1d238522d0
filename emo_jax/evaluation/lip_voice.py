"""A small network that says how well lips and a voice fit at each shift, trained on rendered people alone.

As in SyncNet (Chung and Zisserman 2016), two networks map lips and sound to one space, in which those of the same
moment lie close together. Ours sees two measures of the lips instead of their pixels, so that it works for faces of any
look. It comes with the package; `emo_jax.evaluation.train_lip_voice` makes its weights.
"""

from __future__ import annotations

import functools
import os
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float
from safetensors.numpy import save_file

from emo_jax.arrays import AnyArray
from emo_jax.evaluation.bundled import read_bundled
from emo_jax.faces.lip_sync import MAX_LAG, MIN_FRAMES, Sync
from emo_jax.files import atomic_write
from emo_jax.media.timing import cut, window_bounds
from emo_jax.models.audio_encoder import mel_features

WEIGHTS = pathlib.Path(__file__).parent / "lip_voice.safetensors"
FPS = 25.0
BANDS, STEPS = 40, 4
"""Mel bands of a spectrum, and spectra of a frame."""
WIDTH, LAYERS, KERNEL, EMBEDDING = 96, 3, 5, 64
LIMIT = 3.0
"""Standard deviations to which a lip measure is clipped: landmarks sometimes jump."""

Params = dict[str, Any]


class Tower(nn.Module):
    """Maps a track to unit vectors, each of which sees 19 frames."""

    @nn.compact
    def __call__(self, track: Float[Array, "batch frames size"]) -> Float[Array, "batch frames {EMBEDDING}"]:
        """Returns one unit vector per frame."""
        x = nn.Conv(WIDTH, (KERNEL,))(track)
        for _ in range(LAYERS):
            x = x + nn.Conv(WIDTH, (KERNEL,))(nn.gelu(nn.LayerNorm()(x)))
        x = nn.Dense(EMBEDDING)(nn.gelu(nn.LayerNorm()(x)))
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True).clip(1e-3)


def init(seed: int = 0) -> Params:
    """Returns random weights of both towers."""
    keys = jax.random.split(jax.random.key(seed))
    sizes = {"lips": 2, "voice": BANDS * STEPS}
    return {
        name: Tower().init(key, jnp.zeros((1, 1, size)))["params"]
        for key, (name, size) in zip(keys, sizes.items(), strict=True)
    }


def embed(
    params: Params, lips: Float[AnyArray, "batch frames 2"], sound: Float[AnyArray, "batch samples"]
) -> tuple[Float[AnyArray, "batch frames embedding"], Float[AnyArray, "batch frames embedding"]]:
    """Returns the unit vectors of lips and voice.

    Args:
        params: weights, see `init`.
        lips: measures of the lips, see `lip_measures`.
        sound: the sound of these frames, cut by `media.timing.window_bounds`.
    """
    frames = lips.shape[1]
    mel = mel_features(sound, frames, FPS, bands=BANDS, steps=STEPS)
    # Rooms, microphones and voices differ in the spectrum's mean.
    mel = (mel - mel.mean((1, 2), keepdims=True)) / (mel.std((1, 2), keepdims=True) + 0.05)
    tracks = {"lips": lips, "voice": mel.reshape(len(mel), frames, -1)}
    tower: Any = Tower()  # `apply` returns what the call returns
    lips, voice = (tower.apply({"params": params[name]}, track) for name, track in tracks.items())
    return lips, voice


def lip_measures(gap: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Returns what the network sees of the lips, (N, 2) float32: each measure in standard deviations from its mean.

    Args:
        gap: (N,) gap between the lips in any unit; NaN where there is no face, which counts as the mean.
        width: (N,) width of the mouth, likewise.
    """
    measures = np.stack([gap, width], 1).astype(np.float64)
    spread = np.nanstd(measures, 0)
    measures = (measures - np.nanmean(measures, 0)) / np.where(spread > 1e-6, spread, 1.0)
    return np.clip(np.nan_to_num(measures), -LIMIT, LIMIT).astype(np.float32)


def lip_voice_sync(gap: np.ndarray, width: np.ndarray, sound: np.ndarray, params: Params | None = None) -> Sync | None:
    """Measures offset and confidence of lips against sound at 25 frames per second.

    Args:
        gap: (N,) gap between the lips in each frame, in any unit; NaN where there is no face.
        width: (N,) width of the mouth, likewise.
        sound: float (samples,) at 16 kHz, from the first frame on.
        params: weights; None: those of the package.

    Returns:
        The best offset, with the mean cosine of lips and voice as its correlation; None if there are fewer than
        `lip_sync.MIN_FRAMES` frames with a face, or no movement, or no sound.
    """
    known = ~np.isnan(gap)
    if known.sum() < MIN_FRAMES or not np.ptp(gap[known]) > 0 or not np.any(sound):
        return None
    window = cut(np.asarray(sound, np.float32), *window_bounds(0, len(gap), FPS))
    lips, voice = embed(load_weights() if params is None else params, lip_measures(gap, width)[None], window[None])
    similarity = np.asarray(lips)[0] @ np.asarray(voice)[0].T  # of each frame's lips with each frame's voice
    scores = []
    for shift in range(-MAX_LAG, MAX_LAG + 1):
        seen = known[max(-shift, 0) : len(known) - max(shift, 0)]
        scores.append(float(np.diagonal(similarity, shift)[seen].mean()))
    best = int(np.argmax(scores))
    return Sync(best - MAX_LAG, scores[best], scores[best] - float(np.median(scores)))


def save_weights(path: str | os.PathLike, params: Params) -> None:
    """Writes weights to a safetensors file in half precision; the file appears only once it is complete."""
    flat = flatten_dict(params, sep="/")
    with atomic_write(path) as partial:
        save_file({name: np.ascontiguousarray(np.asarray(a), np.float16) for name, a in flat.items()}, partial)


@functools.cache
def load_weights(path: str | os.PathLike = WEIGHTS) -> Params:
    """Reads weights from a file of `save_weights`, by default the one in the package.

    Raises:
        ValueError: the file does not exist, is damaged, or holds something else.
    """
    tensors = read_bundled(path, "train_lip_voice")
    found, wanted = (jax.tree.map(np.shape, a) for a in (unflatten_dict(tensors, sep="/"), jax.eval_shape(init)))
    if found != wanted:
        raise ValueError(f"{path} holds other weights than those of lips and voice; train it again")
    return unflatten_dict({name: a.astype(np.float32) for name, a in tensors.items()}, sep="/")

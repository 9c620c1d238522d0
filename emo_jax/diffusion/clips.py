"""A long video as clips of f frames, each led by the last n frames of the one before (EMO, sections 3.2 and 4.1).

K clips make a segment: one `lax.scan`, one compiled program, one write. The carry passes from segment to segment.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Segments(NamedTuple):
    """count: segments to run. padding: generated frames to drop at the end of the last one."""

    count: int
    padding: int


def segments(frames: int, f: int, K: int) -> Segments:
    """How many segments of K clips of f frames cover `frames` frames, and how many frames are too many.

    Raises: ValueError unless all three are at least 1.
    """
    if min(frames, f, K) < 1:
        raise ValueError(f"frames, f, K are {frames}, {f}, {K}, expected at least 1 each")
    count = -(-frames // (f * K))
    return Segments(count, count * f * K - frames)


def clip_keys(key, first: int, count: int) -> jax.Array:
    """Keys (count,) of the clips first .. first + count - 1, counted from the start of the video.

    They depend on the absolute index alone: the segment size does not change the video. `first` may be traced.
    """
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(first + jnp.arange(count))


def first_carry(batch: int, n: int, latent_shape: tuple[int, ...], dtype=jnp.float32) -> tuple[jax.Array, jax.Array]:
    """A video's first carry: motion zeros (B, n, *latent_shape), has_motion False (B,) (EMO, section 3.2)."""
    return jnp.zeros((batch, n, *latent_shape), dtype), jnp.zeros(batch, bool)


def scan_clips(make_clip: Callable, carry, per_clip) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Generates the K clips of one segment; returns (carry, clips (K, B, f, h, w, c)).

    carry: motion latents (B, n, h, w, c) and has_motion bool (B,). per_clip: a pytree whose leaves have a leading K
    (audio features, keys). make_clip(carry, inputs of one clip) -> latents (B, f, h, w, c). The last n latents of a
    clip are the motion frames of the next. n may be 0. Raises ValueError if n > f.
    """

    def body(carry, inputs):
        motion, has_motion = carry
        latents = make_clip(carry, inputs)
        f, n = latents.shape[1], motion.shape[1]
        if n > f:
            raise ValueError(f"clip.motion_frames is {n}, expected at most clip.frames ({f}): make the clips longer")
        return (latents[:, f - n :].astype(motion.dtype), jnp.ones_like(has_motion)), latents

    return jax.lax.scan(body, carry, per_clip)

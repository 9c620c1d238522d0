"""Long videos as clips of f frames, each conditioned on the last n frames of the clip before (Sections 3.2 and 4.1).

K clips form a segment: one `lax.scan`, one compiled program, one write. The carry passes from segment to segment.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from emo_jax.arrays import AnyArray

Carry = tuple[Float[AnyArray, "batch n height width channels"], Bool[AnyArray, " batch"]]
"""Latents of the motion frames, and whether a sample has motion frames at all."""


class Segments(NamedTuple):
    """The segments of a video.

    Attributes:
        count: number of segments.
        padding: generated frames to drop at the end of the last segment.
    """

    count: int
    padding: int


def segments(frames: int, f: int, K: int) -> Segments:
    """Computes how many segments cover a video.

    Args:
        frames: frames of the video.
        f: frames per clip.
        K: clips per segment.

    Raises:
        ValueError: an argument is below 1.
    """
    if min(frames, f, K) < 1:
        raise ValueError(f"frames, f, K are {frames}, {f}, {K}; expected at least 1 each")
    count = -(-frames // (f * K))
    return Segments(count, count * f * K - frames)


def clip_keys(key: Key[Array, ""], first: int | Int[AnyArray, ""], count: int) -> Key[Array, " count"]:
    """Returns the keys of the clips `first` to `first + count - 1`, counted from the start of the video.

    A key depends on the absolute index of its clip, so that the segment size does not change the video. `first` may be
    traced.
    """
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(first + jnp.arange(count))


def first_carry(batch: int, n: int, latent_shape: tuple[int, ...], dtype: Any = jnp.float32) -> Carry:
    """Returns the carry that starts a video: zero motion latents, and `has_motion` False (Section 3.2)."""
    return jnp.zeros((batch, n, *latent_shape), dtype), jnp.zeros(batch, bool)


def scan_clips(
    make_clip: Callable, carry: Carry, per_clip: Any, next_motion: Callable[[Any], Any] | None = None
) -> tuple[Carry, Float[AnyArray, "K batch f height width channels"]]:
    """Generates the K clips of one segment.

    Args:
        make_clip: maps (carry, the inputs of one clip) to latents (batch, f, height, width, channels). The last n of
            them are the motion frames of the next clip.
        carry: motion latents with n frames (n may be 0), and `has_motion`.
        per_clip: pytree of inputs; its leaves have a leading axis of size K.
        next_motion: maps the latents of a clip's last n frames to those that the next clip gets; None: equal.

    Returns:
        The carry of the next segment, and the latents of all clips.

    Raises:
        ValueError: n is larger than f.
    """

    def body(carry: Carry, inputs: Any) -> tuple[Carry, AnyArray]:
        motion, has_motion = carry
        latents = make_clip(carry, inputs)
        f, n = latents.shape[1], motion.shape[1]
        if n > f:
            raise ValueError(f"clip.motion_frames is {n}; expected at most clip.frames ({f}): make the clips longer")
        last = latents[:, f - n :]
        last = last if next_motion is None else next_motion(last)
        return (last.astype(motion.dtype), jnp.ones_like(has_motion)), latents

    return jax.lax.scan(body, carry, per_clip)

"""Long videos as clips of f frames, each conditioned on the last n frames of the clip before (Sections 3.2 and 4.1).

Up to K clips form a segment: one loop, one compiled program, one write. The carry passes from segment to segment.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from emo_jax.arrays import AnyArray

Carry = tuple[Float[AnyArray, "batch n height width channels"], Bool[AnyArray, " batch"]]
"""Latents of the motion frames, and whether a sample has motion frames at all."""


def segments(frames: int, f: int, K: int, first: int | None = None) -> list[int]:
    """Returns the number of clips of each segment of a video, which are as few as cover its frames.

    Args:
        frames: frames of the video.
        f: frames per clip.
        K: clips per segment, except the first and the last one.
        first: clips of the first segment, 1 to K: with few, frames can be shown sooner. None: K.

    Raises:
        ValueError: an argument is below 1, or `first` above K.
    """
    first = K if first is None else first
    if min(frames, f, first) < 1 or first > K:
        raise ValueError(f"frames, f, K, first are {frames}, {f}, {K}, {first}; expected at least 1, and first up to K")
    clips = -(-frames // f)
    first = min(first, clips)
    full, rest = divmod(clips - first, K)
    return [first, *[K] * full, *([rest] if rest else [])]


def clip_keys(key: Key[Array, "*samples"], first: int | Int[AnyArray, ""], count: int) -> Key[Array, " count *samples"]:
    """Returns the keys of the clips `first` to `first + count - 1`, counted from the start of the video.

    A key depends on the absolute index of its clip, so that the segment size does not change the video. `first` may be
    traced. With (batch,) keys, one for each sample, the result has that axis as well.
    """

    def fold(index: Any) -> Any:
        if key.ndim == 0:
            return jax.random.fold_in(key, index)
        return jax.vmap(lambda one: jax.random.fold_in(one, index))(key)

    return jax.vmap(fold)(first + jnp.arange(count))


def first_carry(batch: int, n: int, latent_shape: tuple[int, ...], dtype: Any = jnp.float32) -> Carry:
    """Returns the carry that starts a video: zero motion latents, and `has_motion` False (Section 3.2)."""
    return jnp.zeros((batch, n, *latent_shape), dtype), jnp.zeros(batch, bool)


def scan_clips(
    make_clip: Callable,
    carry: Carry,
    per_clip: Any,
    next_motion: Callable[[Any], Any] | None = None,
    count: int | Int[AnyArray, ""] | None = None,
) -> tuple[Carry, Float[AnyArray, "K batch f height width channels"]]:
    """Generates the clips of one segment.

    Args:
        make_clip: maps (carry, the inputs of one clip) to latents (batch, f, height, width, channels). The last n of
            them are the motion frames of the next clip.
        carry: motion latents with n frames (n may be 0), and `has_motion`.
        per_clip: pytree of inputs; its leaves have a leading axis of size K.
        next_motion: maps the latents of a clip's last n frames to those that the next clip gets; None: equal.
        count: number of clips to generate, the first ones; None: all K. If it is traced, one program generates
            segments of any number of clips.

    Returns:
        The carry of the next segment, and the latents of all clips, zeros for those that were not generated.

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

    if count is None:
        return jax.lax.scan(body, carry, per_clip)

    def inputs_of(index: Any) -> Any:
        return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False), per_clip)

    def step(index: Any, state: tuple[Carry, Array]) -> tuple[Carry, Array]:
        carry, latents = body(state[0], inputs_of(index))
        return carry, jax.lax.dynamic_update_index_in_dim(state[1], latents, index, 0)

    [clips] = {len(a) for a in jax.tree.leaves(per_clip)}
    latents = jax.eval_shape(lambda carry: body(carry, inputs_of(0))[1], carry)
    return jax.lax.fori_loop(0, count, step, (carry, jnp.zeros((clips, *latents.shape), latents.dtype)))


def clip_windows(values: Any, clips: int, frames: int, margin: int) -> Any:
    """Cuts (B, K * f + 2m, ...) into the clips' overlapping windows (K, B, f + 2m, ...).

    With f = 0 the values are those of one frame, (B, 1 + 2m, ...), and all windows are equal.
    """
    length = (frames or 1) + 2 * margin
    return jnp.stack([values[:, i * frames : i * frames + length] for i in range(clips)])

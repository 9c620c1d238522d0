"""Colours of long videos: each channel of a segment's latents is given the mean and deviation of the first segment."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from emo_jax.diffusion.sampler import Hold

Array: TypeAlias = jax.Array | np.ndarray


def channel_statistics(
    latents: Float[Array, "K batch f h w c"],
) -> tuple[Float[Array, "1 batch 1 1 1 c"], Float[Array, "1 batch 1 1 1 c"]]:
    """Computes the mean and standard deviation of each channel over the frames and places of a segment."""
    axes = (0, 2, 3, 4)
    return jnp.mean(latents, axes, keepdims=True), jnp.std(latents, axes, keepdims=True)


def match_colors(
    carry: Any,
    latents: Float[Array, "K batch f h w c"],
    statistics: tuple[Array, Array],
    held: Hold | None = None,
    next_motion: Callable[[Any], Any] | None = None,
) -> tuple[Any, Float[Array, "K batch f h w c"]]:
    """Gives the latents of a segment the channel statistics of another; the next motion frames change with them.

    Colours of long videos drift, because each segment starts from generated motion frames and repeats their error.
    """
    motion, has_motion = carry
    mean, deviation = channel_statistics(latents)
    matched = (latents - mean) * (statistics[1] / jnp.maximum(deviation, 1e-6)) + statistics[0]
    matched = matched if held is None else held.apply(matched)
    frames, n = latents.shape[2], motion.shape[1]
    last = matched[-1, :, frames - n :]
    last = last if next_motion is None else next_motion(last)
    return (last.astype(motion.dtype), has_motion), matched

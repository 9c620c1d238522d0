"""Noise of a batch: drawn from one key, or from one key for each sample."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from emo_jax.arrays import AnyArray
from emo_jax.ops import random


def normal(key: Key[AnyArray, "*samples"], shape: tuple[int, ...], dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Draws noise of the standard normal distribution.

    Args:
        key: one key, or (batch,) keys: sample i then has the noise of a batch of one with key i.
        shape: (batch, ...).
        dtype: type of the noise.
    """
    if key.ndim == 0:
        return random.normal(key, shape, dtype)
    return jax.vmap(lambda one: random.normal(one, shape[1:], dtype))(key)


def split(key: Key[AnyArray, "*samples"], count: int) -> Key[Array, " {count} *samples"]:
    """Splits one key, or the keys of the samples, into `count` new ones along a leading axis."""
    if key.ndim == 0:
        return jax.random.split(key, count)
    return jax.vmap(lambda one: jax.random.split(one, count), out_axes=1)(key)

"""Random draws whose programs are quick to compile.

XLA takes 2 to 18 s on CPUs to compile a draw over several axes, and a quarter of a second for as many values along one
axis. The values are the same, because JAX draws each of them from its position alone (`jax_threefry_partitionable`).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from emo_jax.arrays import AnyArray


def normal(key: Key[AnyArray, ""], shape: tuple[int, ...], dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Returns the values of `jax.random.normal(key, shape, dtype)`."""
    return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


def bernoulli(key: Key[AnyArray, ""], p: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Returns the values of `jax.random.bernoulli(key, p, shape)`."""
    return jax.random.bernoulli(key, p, (math.prod(shape),)).reshape(shape)

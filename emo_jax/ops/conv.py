"""Convolution, by the fastest implementation of each platform."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from emo_jax.arrays import AnyArray
from emo_jax.ops.attention import platform

_PLACES, _WIDTH = 256, 512  # with fewer places and more channels, XLA's convolution on CPUs is several times slower


def convolve(
    x: Float[AnyArray, "batch height width channels"],
    kernel: Float[AnyArray, "kernel_height kernel_width channels features"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "batch out_height out_width features"]:
    """Computes `jax.lax.conv_general_dilated`, on CPUs as one matrix product where that is faster.

    Args:
        x: input.
        kernel: filter.
        strides: along height and width.
        padding: (before, after) along height and width.
        **options: passed to `jax.lax.conv_general_dilated`.
    """
    same = kernel.shape[:2] == (3, 3) and tuple(strides) == (1, 1) and list(padding) == [(1, 1), (1, 1)]
    if platform() == "cpu" and same and math.prod(x.shape[:3]) <= _PLACES and x.shape[-1] >= _WIDTH:
        return _matmul_3x3(x, kernel)
    return jax.lax.conv_general_dilated(jnp.asarray(x), jnp.asarray(kernel), strides, padding, **options)


def _matmul_3x3(x: AnyArray, kernel: AnyArray) -> Array:
    """Convolves with a 3 x 3 kernel, stride 1 and zero padding by one matrix product."""
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])

"""Convolution, as each platform computes it best."""

import math

import jax
import jax.numpy as jnp

from emo_jax.ops.attention import platform

_PLACES, _WIDTH = 256, 512  # fewer places and more channels make XLA's convolution on CPUs several times too slow


def convolve(x, kernel, strides, padding, **options):
    """jax.lax.conv_general_dilated of x (N, H, W, C); what CPUs are slow at as one matrix product."""
    same = kernel.shape[:2] == (3, 3) and tuple(strides) == (1, 1) and list(padding) == [(1, 1), (1, 1)]
    if platform() == "cpu" and same and math.prod(x.shape[:3]) <= _PLACES and x.shape[-1] >= _WIDTH:
        return _product(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _product(x, kernel):
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    seen = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(seen, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])

"""Convolutions and pooling of the metrics' networks, and the conversion of their weights from torch.

Networks are pure functions of {name: (kernel, bias)}. Batch norms are folded into the convolutions before them.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Params = dict[str, tuple[np.ndarray, np.ndarray]]
Padding = str | Sequence[tuple[int, int]]
_ORDER = {2: "NHWC", 3: "NDHWC"}
_KERNEL = {2: "HWIO", 3: "DHWIO"}


def fold(weights: dict[str, np.ndarray], layer: str, norm: str, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kernel, channels last, and the bias of a layer of torch with its batch norm folded in.

    Args:
        weights: the state dict.
        layer: name of the convolution or linear layer.
        norm: name of the batch norm that follows it; "" if none does.
        eps: of the batch norm.

    Raises:
        ValueError: a tensor is missing.
    """
    try:
        kernel = np.asarray(weights[f"{layer}.weight"], np.float64)
        bias = weights.get(f"{layer}.bias", np.zeros(len(kernel)))
        kernel = np.moveaxis(kernel, (0, 1), (-1, -2))
        if norm:
            scale, shift, mean, variance = (
                np.asarray(weights[f"{norm}.{name}"], np.float64)
                for name in ("weight", "bias", "running_mean", "running_var")
            )
            gain = scale / np.sqrt(variance + eps)
            kernel, bias = kernel * gain, (bias - mean) * gain + shift
    except KeyError as error:
        raise ValueError(f"the weights have no tensor {error.args[0]}") from error
    return kernel.astype(np.float32), np.asarray(bias, np.float32)


def conv(x: jax.Array, layer: tuple, strides: int | Sequence[int] = 1, padding: Padding = "VALID") -> jax.Array:
    """Convolves x, channels last, in as many dimensions as the kernel has."""
    kernel, bias = layer
    sides = kernel.ndim - 2
    steps = (strides,) * sides if isinstance(strides, int) else tuple(strides)
    layout = (_ORDER[sides], _KERNEL[sides], _ORDER[sides])
    return lax.conv_general_dilated(x, jnp.asarray(kernel), steps, padding, dimension_numbers=layout) + bias


def max_pool(x: jax.Array, window: Sequence[int], strides: Sequence[int], padding: Padding = "VALID") -> jax.Array:
    """Takes the maximum over windows of the middle dimensions."""
    pads = padding if isinstance(padding, str) else [(0, 0), *padding, (0, 0)]
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), pads)


def avg_pool(x: jax.Array, window: Sequence[int], padding: Padding = "VALID") -> jax.Array:
    """Averages over windows at stride 1; padding does not count."""

    def total(values: jax.Array) -> jax.Array:
        return lax.reduce_window(values, 0.0, lax.add, (1, *window, 1), (1,) * values.ndim, padding)

    return total(x) / total(jnp.ones_like(x[:1, ..., :1]))


def fill_batch(batch: np.ndarray, count: int) -> np.ndarray:
    """Appends rows of zeros to a batch until it has `count` rows, so that one compiled program serves all batches."""
    return np.concatenate([batch, np.zeros((count - len(batch), *batch.shape[1:]), batch.dtype)])

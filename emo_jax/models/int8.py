"""Kernels in 8 bits: a quarter of float32's memory and half of float16's, for generation.

A kernel (..., features) becomes two parameters below its path, `int8` and `scale`. The networks compute the kernel from
them whenever they use it. The scale of an output feature maps its largest weight to 127 (absolute-maximum quantization
as in LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339, but of weights alone).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from emo_jax.arrays import AnyArray
from emo_jax.models.parts import layer_of, part_of

VALUES, SCALE = "int8", "scale"
_SMALLEST = 4096
"""Kernels of fewer weights stay as they are."""


def is_quantisable(path: str, array: AnyArray) -> bool:
    """Returns whether a parameter is a large kernel between hidden features.

    The autoencoder is not, because its errors would be seen in the picture, nor are first and last layers.
    """
    return array.size >= _SMALLEST and part_of(path) != "vae" and layer_of(path).update == "matrix"


def quantise(
    kernel: Float[AnyArray, "*lead features"],
) -> dict[str, Int8[np.ndarray, "*lead features"] | Float[np.ndarray, " features"]]:
    """Returns a kernel's values in 8 bits and their scales."""
    kernel = np.asarray(kernel, np.float32)
    scale = np.abs(kernel).max(tuple(range(kernel.ndim - 1))) / 127
    values = np.round(kernel / np.where(scale > 0, scale, 1)).astype(np.int8)
    return {VALUES: values, SCALE: scale.astype(np.float32)}


def dequantise(values: Int8[AnyArray, "*lead features"], scale: Float[AnyArray, " features"], dtype: Any) -> Array:
    """Returns the kernel in a type of floats."""
    return jnp.asarray(values).astype(dtype) * jnp.asarray(scale).astype(dtype)


def quantised(flat: dict[str, Any]) -> dict[str, Any]:
    """Returns params {path: array} with their large kernels in 8 bits."""
    found: dict[str, Any] = {}
    for path, array in flat.items():
        parts = quantise(array) if is_quantisable(path, array) else {}
        found |= {f"{path}/{name}": part for name, part in parts.items()} or {path: array}
    return found


def dequantised_flat(flat: dict[str, Any]) -> dict[str, Any]:
    """Returns params {path: array} with their kernels in float32."""
    found = {path: array for path, array in flat.items() if not kernel_of(path, flat)}
    for path in flat:
        kernel = kernel_of(path, flat)
        if kernel and path.endswith(VALUES):
            found[kernel] = np.asarray(flat[path], np.float32) * np.asarray(flat[f"{kernel}/{SCALE}"])
    return found


def dequantised(params: Any, dtype: Any) -> Any:
    """Returns nested params with their kernels in a type of floats; those without 8 bits are returned as they are."""
    if not isinstance(params, dict):
        return params
    if params.keys() == {VALUES, SCALE}:
        return dequantise(params[VALUES], params[SCALE], dtype)
    return {name: dequantised(sub, dtype) for name, sub in params.items()}


def logical_shapes(flat: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of params {path: array}, with a kernel in 8 bits under its own path."""
    return {
        kernel_of(path, flat) or path: array.shape
        for path, array in flat.items()
        if not (kernel_of(path, flat) and path.endswith(SCALE))
    }


def kernel_of(path: str, flat: dict[str, Any]) -> str:
    """Returns the path of the kernel to which a parameter belongs if the kernel has 8 bits, else ''."""
    kernel, _, name = path.rpartition("/")
    return kernel if name in (VALUES, SCALE) and f"{kernel}/{VALUES}" in flat and f"{kernel}/{SCALE}" in flat else ""

"""Low-rank adapters of kernels (LoRA, Hu et al. 2021, arXiv 2106.09685).

A kernel W of m inputs and n outputs is W + A B, with A (m, rank) drawn and B (rank, n) zero at the start, so that
training starts from W. The adapters of the kernel at PATH have the paths PATH/lora_a and PATH/lora_b. There is no
factor alpha: it would only scale the learning rate.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emo_jax.models.parts import PARTS, layer_of, part_of
from emo_jax.ops import random

_A, _B = "/lora_a", "/lora_b"


def is_adapter(path: str) -> bool:
    """Returns whether a path is that of an adapter."""
    return path.endswith((_A, _B))


def adapted_paths(paths: Collection[str], rank: int, parts: Collection[str]) -> list[str]:
    """Returns which of a stage's trained parameters LoRA takes over: they are frozen, and their kernels get adapters.

    Args:
        paths: the paths of the trained parameters.
        rank: rank of the adapters; 0: none.
        parts: names of parts; empty: all that have trained parameters.

    Raises:
        ValueError: a negative rank, an unknown part, or a part that is not trained or has no kernels for adapters.
    """
    if rank < 0:
        raise ValueError(f"train.lora.rank is {rank}; expected 1 or more, or 0 for none")
    if not rank:
        return []
    for part in parts:
        if part not in [row.name for row in PARTS]:
            names = ", ".join(row.name for row in PARTS)
            raise ValueError(f"train.lora.parts has {part!r}; expected names out of {names}")
        if not any(part_of(path) == part and has_adapter(path) for path in paths):
            raise ValueError(f"train.lora.parts has {part!r}, of which no kernel is trained; expected another part")
    return [path for path in paths if not parts or part_of(path) in parts]


def has_adapter(path: str) -> bool:
    """Returns whether a parameter gets an adapter: whether it is a kernel between hidden features."""
    return layer_of(path).update == "matrix"


def new_adapters(kernels: Mapping[str, Any], rank: int, seed: int) -> dict[str, Any]:
    """Returns adapters whose product is zero.

    Args:
        kernels: {path: kernel (..., inputs, outputs)}; all axes but the last are taken as inputs.
        rank: rank of the adapters; a kernel with fewer inputs or outputs gets a smaller one.
        seed: seed of A, which is normal with variance 1 / m.

    Returns:
        {path: array}, two for each kernel, float32.
    """
    adapters = {}
    for path, kernel in kernels.items():
        outputs = kernel.shape[-1]
        inputs = math.prod(kernel.shape[:-1])
        size = min(rank, inputs, outputs)
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
        adapters[path + _A] = random.normal(key, (inputs, size)) / math.sqrt(inputs)
        adapters[path + _B] = jnp.zeros((size, outputs), jnp.float32)
    return adapters


def merge(flat: Mapping[str, Any], precise: bool = False) -> dict[str, Any]:
    """Adds the products of adapters to their kernels; numpy and jax arrays both work.

    Args:
        flat: parameters {path: array}, with or without adapters.
        precise: whether sums are float32; otherwise they have their kernels' precision, that of the networks.

    Returns:
        The parameters without adapters.

    Raises:
        ValueError: an adapter whose kernel is missing or has another shape.
    """
    merged = {path: a for path, a in flat.items() if not is_adapter(path)}
    for path in (path.removesuffix(_A) for path in flat if path.endswith(_A)):
        a, b, kernel = flat[path + _A], flat.get(path + _B), merged.get(path)
        if kernel is None or b is None or (a.shape[0], b.shape[1]) != (math.prod(kernel.shape[:-1]), kernel.shape[-1]):
            found = "is missing" if kernel is None else f"has shape {kernel.shape}"
            raise ValueError(f"the adapter of {path} does not fit: it {found}; expected the weights of the start")
        product = (a.astype("float32") @ b.astype("float32")).reshape(kernel.shape)
        merged[path] = (kernel.astype("float32") + product).astype("float32" if precise else kernel.dtype)
    return merged

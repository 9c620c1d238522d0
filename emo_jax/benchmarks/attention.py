"""Speed and accuracy of the attention that emo_jax chooses for this device, against float32 without fused kernels."""

from __future__ import annotations

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.benchmarks.timing import median_seconds
from emo_jax.ops import attention as op

HEADS = 8
SHAPES = {
    "spatial 64x64": ((1, 12), 4096, 4096, 40),
    "spatial 32x32": ((1, 12), 1024, 1024, 80),
    "spatial 16x16": ((1, 12), 256, 256, 160),
    "audio": ((1, 12), 4096, 32, 40),
    "temporal": ((1, 4096), 12, 16, 40),
    "temporal, guided": ((3, 4096), 12, 16, 40),
}
"""Attention of the UNet's first levels at 512x512: leading axes, number of queries, number of keys, size of a head."""


def measure(rounds: int = 10, shapes: dict[str, tuple[tuple[int, ...], int, int, int]] | None = None) -> list[dict]:
    """Measures attention forward and backward for each shape, with bfloat16 inputs of random numbers.

    Args:
        rounds: the number of timed calls.
        shapes: name -> (leading axes, queries, keys, head size); None means SHAPES.

    Returns:
        One row per shape. ``value`` and ``dq``, ``dk``, ``dv`` are errors of the output and the gradients, relative to
        the norm of the float32 result. ``ms`` and ``float32 ms`` are times. ``scores`` says whether the compiled
        program holds an array of all attention scores, ``kernel`` which implementation XLA used.
    """
    return [_measure_shape(name, shape, rounds) for name, shape in (shapes or SHAPES).items()]


def _measure_shape(name: str, shape: tuple[tuple[int, ...], int, int, int], rounds: int) -> dict:
    lead, queries, keys, width = shape
    rng = np.random.default_rng(0)
    exact = [rng.standard_normal((*lead, length, HEADS, width), np.float32) for length in (queries, keys, keys)]
    inputs = [jnp.asarray(array, jnp.bfloat16) for array in exact]
    exact = [array.astype(jnp.float32) for array in inputs]
    cotangent = jnp.asarray(rng.standard_normal(inputs[0].shape, np.float32))
    run, program = _compile(cotangent, inputs, jax.default_backend())
    run_exact, _ = _compile(cotangent, exact, "cpu")
    (value, gradients), (exact_value, exact_gradients) = run(), run_exact()
    row: dict = {"shape": name, "value": _relative_error(value, exact_value)}
    for label, gradient, right in zip(("dq", "dk", "dv"), gradients, exact_gradients, strict=True):
        row[label] = _relative_error(gradient, right)
    seconds, exact_seconds = median_seconds(run, rounds), median_seconds(run_exact, rounds)
    row |= {"ms": seconds * 1e3, "float32 ms": exact_seconds * 1e3, "ratio": seconds / exact_seconds}
    row["scores"] = bool(queries * keys > 2**20 and re.search(rf"\[(\d+,)*{queries},{keys}\]", program))
    row["kernel"] = "cuDNN" if "fmha" in program.lower() else "XLA"
    return row


def _compile(cotangent: jax.Array, inputs: list[jax.Array], platform: str) -> tuple[Callable, str]:
    """Compiles attention and its gradients for a platform; returns a function without arguments, and the HLO."""

    def value_and_gradients(*inputs: jax.Array) -> tuple:
        out, pullback = jax.vjp(op.attention, *inputs)
        return out, pullback(cotangent.astype(out.dtype))

    with op.traced_for(platform):
        compiled = jax.jit(value_and_gradients).lower(*inputs).compile()
    return lambda: jax.block_until_ready(compiled(*inputs)), compiled.as_text() or ""


def _relative_error(value: jax.Array, right: jax.Array) -> float:
    return float(jnp.linalg.norm((value.astype(jnp.float32) - right).ravel()) / jnp.linalg.norm(right.ravel()))

"""Attention over frames on a TPU: a Pallas kernel for a large number of short sequences, forward and backward.

XLA lays the scores (places, heads, frames, frames) out with frames along a TPU's 128 lanes, most of which stay empty,
and queries, keys and values with a head's features along them, which takes eight and three times the memory. This
kernel keeps a block of sequences, about 128 rows of (place, frame), on the chip from the projections to the result.
Scores between different sequences of a block are computed too, and masked.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from emo_jax.arrays import AnyArray

MAX_LENGTH = 64
"""Length of the longest sequences that the kernel accepts."""

_ROWS = 128  # rows of a block: the size of the matrix units
_TILE = 16  # the rows of a block are a multiple of this
_BLOCK_BYTES = 12 * 2**20 // 14  # the backward pass holds seven blocks, each twice, in 16 MiB


def sequences_per_block(query: Any, key: Any) -> int | None:
    """Returns how many sequences of (..., length, heads, features) form a block, or None if the kernel does not apply.

    Args:
        query: array, or its shape and dtype.
        key: as `query`, of another length.
    """
    lengths, (heads, width) = (query.shape[-3], key.shape[-3]), query.shape[-2:]
    if max(lengths) > MAX_LENGTH:
        return None
    sequences, row = math.prod(query.shape[:-3]), heads * width * query.dtype.itemsize
    rows = min(_ROWS, _BLOCK_BYTES // (row * max(lengths)) * max(lengths))
    for count in range(rows // max(lengths), 0, -1):
        if sequences % count == 0 and all(count * length % _TILE == 0 for length in lengths):
            return count
    return None


def attention_over_frames(
    query: Float[AnyArray, "*lead queries heads features"],
    key: Float[AnyArray, "*lead keys heads features"],
    value: Float[AnyArray, "*lead keys heads features"],
) -> Float[Array, "*lead queries heads features"]:
    """Computes softmax attention, as `ops.attention.attention`.

    Raises:
        ValueError: `sequences_per_block` returns None for the shapes.
    """
    count = sequences_per_block(query, key)
    if count is None:
        raise ValueError(
            f"query and key have shapes {query.shape} and {key.shape}; expected sequences that fill blocks: use "
            "ops.attention.attention"
        )
    heads = query.shape[-2]
    flat = (a.reshape(-1, count * a.shape[-3], heads * a.shape[-1]) for a in (query, key, value))
    lengths = query.shape[-3], key.shape[-3]
    out: Any = _attention(*flat, heads, lengths)
    return out.reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attention(query: AnyArray, key: AnyArray, value: AnyArray, heads: int, lengths: tuple[int, int]) -> Array:
    [out] = _call(_forward, heads, lengths, (query, key, value), (query,))
    return out


def _attention_forward(
    query: AnyArray, key: AnyArray, value: AnyArray, heads: int, lengths: tuple[int, int]
) -> tuple[Array, tuple[AnyArray, AnyArray, AnyArray]]:
    return _attention(query, key, value, heads, lengths), (query, key, value)


def _attention_backward(
    heads: int, lengths: tuple[int, int], saved: tuple[AnyArray, AnyArray, AnyArray], gradient: AnyArray
) -> tuple[Array, ...]:
    return tuple(_call(_backward, heads, lengths, (*saved, gradient), saved))


_attention.defvjp(_attention_forward, _attention_backward)


def _call(
    kernel: Callable, heads: int, lengths: tuple[int, int], inputs: Sequence[AnyArray], outputs: Sequence[AnyArray]
) -> Sequence[Array]:
    """Runs a kernel on each block of the inputs; its results have the shapes and dtypes of `outputs`."""

    def block(a: AnyArray) -> pl.BlockSpec:
        return pl.BlockSpec((None, *a.shape[1:]), lambda i: (i, 0, 0))

    return pl.pallas_call(
        functools.partial(kernel, heads, lengths),
        grid=(inputs[0].shape[0],),
        in_specs=[block(a) for a in inputs],
        out_specs=[block(a) for a in outputs],
        out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in outputs],
    )(*inputs)


def _forward(heads: int, lengths: tuple[int, int], query: Any, key: Any, value: Any, out: Any) -> None:
    for head in _heads(query, heads):
        weights = _weights(query[:, head], key[:, head], lengths)
        out[:, head] = _product(weights.astype(value.dtype), value[:, head]).astype(out.dtype)


def _backward(
    heads: int,
    lengths: tuple[int, int],
    query: Any,
    key: Any,
    value: Any,
    gradient: Any,
    query_bar: Any,
    key_bar: Any,
    value_bar: Any,
) -> None:
    scale = (query.shape[1] // heads) ** -0.5
    for head in _heads(query, heads):
        q, k, v, bar = (ref[:, head] for ref in (query, key, value, gradient))
        weights = _weights(q, k, lengths)
        weights_bar = _product(bar, v, (1, 1))
        scores_bar = weights * (weights_bar - (weights * weights_bar).sum(axis=1, keepdims=True)) * scale
        scores_bar = scores_bar.astype(q.dtype)
        query_bar[:, head] = _product(scores_bar, k).astype(q.dtype)
        key_bar[:, head] = _product(scores_bar, q, (0, 0)).astype(k.dtype)
        value_bar[:, head] = _product(weights.astype(bar.dtype), bar, (0, 0)).astype(v.dtype)


def _heads(ref: Any, heads: int) -> list[slice]:
    """Returns the columns of each head."""
    width = ref.shape[1] // heads
    return [slice(i * width, (i + 1) * width) for i in range(heads)]


def _weights(query: Array, key: Array, lengths: tuple[int, int]) -> Array:
    """Returns softmax weights (rows of queries, rows of keys) in float32, zero between different sequences."""
    scores = _product(query, key, (1, 1)) * query.shape[1] ** -0.5
    row, column = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (0, 1))
    same = jax.lax.div(row, lengths[0]) == jax.lax.div(column, lengths[1])  # unlike div, // would query the chip
    scores = jnp.where(same, scores, -1e30)
    weights = jnp.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _product(a: Array, b: Array, axes: tuple[int, int] = (1, 0)) -> Array:
    """Contracts one axis of each of two matrices, accumulating in float32."""
    numbers = ((axes[:1], axes[1:]), ((), ()))
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)

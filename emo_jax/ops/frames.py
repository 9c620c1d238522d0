"""Attention over frames on a TPU: a Pallas kernel for very many very short sequences, forward and backward.

XLA holds the scores (places, heads, frames, frames) with frames along a TPU's 128 lanes, most of which stay empty, and
queries, keys and values with a head's features along them: eight and three times the memory. Here a block of places,
some 128 rows of (place, frame), stays on the chip from the projections to the result; scores between different places
are computed beside, and masked.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

LONGEST = 64  # of the sequences that the kernel takes
_ROWS = 128  # of a block, which the matrix units have
_TILE = 16  # rows are a multiple of it
_BLOCKS = 12 * 2**20 // 14  # bytes of one: the backward pass has seven, each twice, in 16 MiB


def places_at_once(query, key):
    """How many sequences of (..., S, heads, D) make a block; None where the kernel does not take them."""
    lengths, (heads, width) = (query.shape[-3], key.shape[-3]), query.shape[-2:]
    if max(lengths) > LONGEST:
        return None
    sequences, row = math.prod(query.shape[:-3]), heads * width * query.dtype.itemsize
    rows = min(_ROWS, _BLOCKS // (row * max(lengths)) * max(lengths))
    for places in range(rows // max(lengths), 0, -1):
        if sequences % places == 0 and all(places * length % _TILE == 0 for length in lengths):
            return places
    return None


def attention_over_frames(query, key, value):
    """Softmax attention; arguments and result as ops.attention.attention's.

    Raises:
        ValueError: sequences that `places_at_once` does not take.
    """
    places = places_at_once(query, key)
    if places is None:
        raise ValueError(f"attention over frames takes no {query.shape} and {key.shape}")
    heads = query.shape[-2]
    flat = (a.reshape(-1, places * a.shape[-3], heads * a.shape[-1]) for a in (query, key, value))
    lengths = query.shape[-3], key.shape[-3]
    return _attention(*flat, heads, lengths).reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attention(query, key, value, heads, lengths):
    [out] = _call(_forward, heads, lengths, (query, key, value), (query,))
    return out


def _attention_forward(query, key, value, heads, lengths):
    return _attention(query, key, value, heads, lengths), (query, key, value)


def _attention_backward(heads, lengths, saved, gradient):
    return tuple(_call(_backward, heads, lengths, (*saved, gradient), saved))


_attention.defvjp(_attention_forward, _attention_backward)


def _call(kernel, heads, lengths, inputs, outputs):
    def block(a):
        return pl.BlockSpec((None, *a.shape[1:]), lambda i: (i, 0, 0))

    return pl.pallas_call(
        functools.partial(kernel, heads, lengths),
        grid=(inputs[0].shape[0],),
        in_specs=[block(a) for a in inputs],
        out_specs=[block(a) for a in outputs],
        out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in outputs],
    )(*inputs)


def _forward(heads, lengths, query, key, value, out):
    for head in _heads(query, heads):
        weights = _weights(query[:, head], key[:, head], lengths)
        out[:, head] = _product(weights.astype(value.dtype), value[:, head]).astype(out.dtype)


def _backward(heads, lengths, query, key, value, gradient, query_bar, key_bar, value_bar):
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


def _heads(ref, heads):
    width = ref.shape[1] // heads
    return [slice(i * width, (i + 1) * width) for i in range(heads)]


def _weights(query, key, lengths):
    """Softmax (rows of queries, rows of keys) in float32, zero between different places."""
    scores = _product(query, key, (1, 1)) * query.shape[1] ** -0.5
    row, column = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (0, 1))
    same = jax.lax.div(row, lengths[0]) == jax.lax.div(column, lengths[1])  # // would ask which chip is present
    scores = jnp.where(same, scores, -1e30)
    weights = jnp.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _product(a, b, axes=(1, 0)):
    numbers = ((axes[:1], axes[1:]), ((), ()))
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)

"""Scaled dot-product attention that never holds more scores than it must."""

import jax
import jax.numpy as jnp

_CHUNK = 256
_SHORT = 1024


def attention(query, key, value):
    """Softmax attention, Vaswani et al. 2017, Eq. 1.

    Args:
        query: (..., S, heads, D).
        key: (..., T, heads, D), with the same leading axes.
        value: (..., T, heads, D).

    Returns:
        (..., S, heads, D) in the query's dtype; the softmax is computed in float32.
    """
    if jax.default_backend() == "gpu" and query.dtype in (jnp.bfloat16, jnp.float16):
        return _fused(query, key, value)
    query, key, value = (jnp.moveaxis(a, -2, -3) for a in (query, key, value))  # (..., heads, S, D)
    scale = query.shape[-1] ** -0.5
    if query.shape[-2] * key.shape[-2] <= _SHORT * _SHORT // 4:
        out = _attend(query * scale, key, value)
    else:
        out = _chunked(query * scale, key, value)
    return jnp.moveaxis(out, -3, -2)


def _fused(query, key, value):
    lead = query.shape[:-3]
    flat = [a.reshape(-1, *a.shape[-3:]) for a in (query, key, value)]
    return jax.nn.dot_product_attention(*flat, implementation="cudnn").reshape(*lead, *query.shape[-3:])


def _attend(query, key, value):
    scores = jnp.einsum("...sd,...td->...st", query, key, preferred_element_type=jnp.float32)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    out = jnp.einsum("...st,...td->...sd", weights.astype(value.dtype), value)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(query.dtype)


def _chunked(query, key, value):
    """Maps over heads and chunks of queries: scores of one head and chunk at a time."""
    lead, (length, dim) = query.shape[:-2], query.shape[-2:]
    pad = -length % _CHUNK
    query = jnp.pad(query.reshape(-1, length, dim), ((0, 0), (0, pad), (0, 0)))
    key, value = (a.reshape(-1, *a.shape[-2:]) for a in (key, value))

    @jax.checkpoint
    def one_chunk(q, k, v):
        return _attend(q, k, v)

    def one_head(args):
        q, k, v = args
        chunks = q.reshape(-1, _CHUNK, dim)
        return jax.lax.map(lambda c: one_chunk(c, k, v), chunks).reshape(-1, dim)

    out = jax.lax.map(one_head, (query, key, value))
    return out[:, :length].reshape(*lead, length, dim)

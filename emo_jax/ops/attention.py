"""Scaled dot-product attention that never holds more scores than it must."""

import contextlib
import contextvars

import jax
import jax.numpy as jnp

_CHUNK = 256
_SHORT = 1024
_FUSED_WIDTH = 128  # of a head, the most that cuDNN takes on every card; SD's VAE and deepest level have wider ones
_FUSE = contextvars.ContextVar("fuse", default=True)


@contextlib.contextmanager
def never_fused():
    """Within it, attention is traced as matrix products on every device, which can be counted."""
    token = _FUSE.set(False)
    try:
        yield
    finally:
        _FUSE.reset(token)


def attention(query, key, value):
    """Softmax attention, Vaswani et al. 2017, Eq. 1.

    Args:
        query: (..., S, heads, D).
        key: (..., T, heads, D), with the same leading axes.
        value: (..., T, heads, D).

    Returns:
        (..., S, heads, D) in the query's dtype; the softmax is computed in float32.
    """
    fits = query.dtype in (jnp.bfloat16, jnp.float16) and query.shape[-1] <= _FUSED_WIDTH and query.shape[-1] % 8 == 0
    if jax.default_backend() == "gpu" and fits and _FUSE.get():
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
    """Maps over frames, heads and chunks of queries: scores of one head and chunk at a time, for the whole batch.

    The batch, axis 0, is not mapped over: it may be split over devices, which then compute their own part.
    """
    lead, (length, dim) = query.shape[:-2], query.shape[-2:]
    batch, pad = lead[0] if len(lead) > 1 else 1, -length % _CHUNK
    query, key, value = (
        jnp.moveaxis(a.reshape(batch, -1, *a.shape[-2:]), 0, 1) for a in (query, key, value)
    )  # (frames * heads, batch, S, D)
    query = jnp.pad(query, ((0, 0), (0, 0), (0, pad), (0, 0)))

    @jax.checkpoint
    def one_chunk(q, k, v):
        return _attend(q, k, v)

    def one_head(args):
        q, k, v = args
        chunks = jnp.moveaxis(q.reshape(batch, -1, _CHUNK, dim), 1, 0)
        done = jax.lax.map(lambda c: one_chunk(c, k, v), chunks)
        return jnp.moveaxis(done, 0, 1).reshape(batch, -1, dim)

    out = jnp.moveaxis(jax.lax.map(one_head, (query, key, value)), 1, 0)
    return out[..., :length, :].reshape(*lead, length, dim)

"""Scaled dot-product attention that never holds more scores than it must."""

import contextlib
import contextvars
import math

import jax
import jax.numpy as jnp

from emo_jax.ops.frames import attention_over_frames, places_at_once

_CHUNK = 256
_SHORT = 1024
_SCORES = 2**26  # held at once where memory is large and many small steps are slow: 256 MB
_FUSED_WIDTH = 128  # of a head, the most that cuDNN takes on every card; SD's VAE and deepest level have wider ones
_FUSED_LENGTH = 64  # of queries: for 12, cuDNN took 1.7 times XLA's time in float32 on an H100 (benchmarks/on_gpu.py)
LANES = 128  # of a TPU's tile of 8 x 128 numbers
_BLOCKS = (512, 256, 128)  # of queries and keys in the TPU's kernel, the largest that divides
_BLOCK_BYTES = 2**19  # of one head's: more and a v4's fast memory is too small for the backward pass
_PLATFORM = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def traced_for(name):
    """Within it, what is traced is for that platform ("cpu", "gpu" or "tpu"), whatever JAX's own is.

    On "cpu" attention is matrix products alone, which can be counted.
    """
    token = _PLATFORM.set(name)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def platform():
    """The platform that is traced for: "cpu", "gpu" or "tpu"."""
    return _PLATFORM.get() or jax.default_backend()


def attention(query, key, value):
    """Softmax attention, Vaswani et al. 2017, Eq. 1.

    Args:
        query: (..., S, heads, D).
        key: (..., T, heads, D), with the same leading axes.
        value: (..., T, heads, D).

    Returns:
        (..., S, heads, D) in the query's dtype; the softmax is computed in float32.
    """
    if platform() == "tpu" and query.dtype != jnp.float16:  # which its kernels do not take
        if _tpu_blocks(query, key):
            return _flash(query, key, value)
        if places_at_once(query, key):
            return attention_over_frames(query, key, value)
    if platform() == "gpu" and _fits_cudnn(query):
        return _fused(query, key, value)
    query, key, value = (jnp.moveaxis(a, -2, -3) for a in (query, key, value))  # (..., heads, S, D)
    scale = query.shape[-1] ** -0.5
    if _at_once(query, key):
        out = _attend(query * scale, key, value)
    else:
        out = _chunked(query * scale, key, value)
    return jnp.moveaxis(out, -3, -2)


def _at_once(query, key):
    """Whether all scores of (..., heads, S, D) may be held.

    On CPUs, with their small caches, those of a small map; elsewhere those to few keys (frames, audio tokens), which
    take no more room than the queries, and others as long as memory has room for them.
    """
    keys, scores = key.shape[-2], query.shape[-2] * key.shape[-2]
    if platform() == "cpu":
        return scores <= _SHORT * _SHORT // 4
    return keys <= LANES or scores <= _SHORT * _SHORT and math.prod(query.shape[:-2]) * scores <= _SCORES


def _fits_cudnn(query):
    """Whether cuDNN's flash attention takes these heads and is worth it: for few queries (frames) XLA's is faster."""
    width, half = query.shape[-1], query.dtype in (jnp.bfloat16, jnp.float16)
    return half and width <= _FUSED_WIDTH and width % 8 == 0 and query.shape[-3] >= _FUSED_LENGTH


def _fused(query, key, value):
    lead = query.shape[:-3]
    flat = [a.reshape(-1, *a.shape[-3:]) for a in (query, key, value)]
    return jax.nn.dot_product_attention(*flat, implementation="cudnn").reshape(*lead, *query.shape[-3:])


def _tpu_blocks(query, key):
    """Blocks (of queries, of keys) in which the TPU's kernel goes through long contexts; None for others."""
    lengths, row = (query.shape[-3], key.shape[-3]), query.shape[-1] * query.dtype.itemsize
    fit = [block for block in _BLOCKS if block * row <= _BLOCK_BYTES]
    blocks = [next((block for block in fit if length % block == 0), None) for length in lengths]
    return blocks if min(lengths) >= _SHORT and None not in blocks else None


def _flash(query, key, value):
    """Pallas' splash attention, here without a mask, which keeps scores on the chip in the backward pass too."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    lead, (heads, width) = query.shape[:-3], query.shape[-2:]
    lengths, (q, k) = (query.shape[-3], key.shape[-3]), _tpu_blocks(query, key)
    flat = (jnp.moveaxis(a.reshape(-1, *a.shape[-3:]), -2, -3) for a in (query * width**-0.5, key, value))
    sizes = splash.BlockSizes(q, k, k, q, k, k, q, k)
    mask = splash.MultiHeadMask([splash.FullMask(lengths)] * heads)
    kernel = splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)
    out = jax.vmap(kernel)(*flat)  # (lead, heads, S, D)
    return jnp.moveaxis(out, -3, -2).reshape(*lead, *query.shape[-3:])


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

"""Scaled dot-product attention with bounded memory, by the fastest implementation of each platform."""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from emo_jax.arrays import AnyArray
from emo_jax.ops.frames import attention_over_frames, sequences_per_block

LANES = 128
"""Width of a TPU's tile of 8 x 128 numbers."""

_CHUNK = 256  # queries per chunk
_SHORT = 1024  # sequences below this length count as short
_MAX_SCORES = 2**26  # scores held at once on accelerators, where many small steps are slow: 256 MB
_MAX_FUSED_WIDTH = 128  # widest head that cuDNN accepts on every card; SD's VAE and deepest level have wider ones
_MIN_FUSED_LENGTH = 64  # for 12 queries cuDNN took 1.7 times XLA's time in float32 on an H100 (emo bench attention)
_BLOCKS = (512, 256, 128)  # block lengths of the TPU kernel; the largest that divides the sequence is used
_BLOCK_BYTES = 2**19  # of one head's block: with more, a v4's fast memory is too small for the backward pass
_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def traced_for(name: str) -> Iterator[None]:
    """Traces functions for a platform other than JAX's default.

    On "cpu" attention consists of matrix products alone, whose FLOPs can be counted.

    Args:
        name: "cpu", "gpu" or "tpu".
    """
    token = _PLATFORM.set(name)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def platform() -> str:
    """Returns the platform that functions are traced for: "cpu", "gpu" or "tpu"."""
    return _PLATFORM.get() or jax.default_backend()


def attention(
    query: Float[AnyArray, "*lead queries heads features"],
    key: Float[AnyArray, "*lead keys heads features"],
    value: Float[AnyArray, "*lead keys heads features"],
) -> Float[Array, "*lead queries heads features"]:
    """Computes softmax attention (Vaswani et al. 2017, Eq. 1).

    Returns:
        The result in the query's dtype; the softmax is computed in float32.
    """
    if platform() == "tpu" and query.dtype != jnp.float16:  # the TPU kernels do not accept float16
        if _tpu_blocks(query, key):
            return _flash(query, key, value)
        if sequences_per_block(query, key):
            return attention_over_frames(query, key, value)
    if platform() == "gpu" and _fits_cudnn(query):
        return _fused(query, key, value)
    query, key, value = (jnp.moveaxis(a, -2, -3) for a in (query, key, value))  # (..., heads, length, features)
    scale = query.shape[-1] ** -0.5
    attend = _attend if _scores_fit(query, key) else _attend_in_chunks
    return jnp.moveaxis(attend(query * scale, key, value), -3, -2)


def _scores_fit(query: AnyArray, key: AnyArray) -> bool:
    """Returns whether all scores of (..., heads, length, features) may be held in memory.

    On CPUs, which have small caches, only the scores of a small map. On accelerators, scores to few keys (frames, audio
    tokens), which take no more memory than the queries, and others up to a limit.
    """
    keys, scores = key.shape[-2], query.shape[-2] * key.shape[-2]
    if platform() == "cpu":
        return scores <= _SHORT * _SHORT // 4
    return keys <= LANES or scores <= _SHORT * _SHORT and math.prod(query.shape[:-2]) * scores <= _MAX_SCORES


def _fits_cudnn(query: AnyArray) -> bool:
    """Returns whether cuDNN's flash attention accepts the heads and is faster than XLA, as it is for many queries."""
    width, half = query.shape[-1], query.dtype in (jnp.bfloat16, jnp.float16)
    return half and width <= _MAX_FUSED_WIDTH and width % 8 == 0 and query.shape[-3] >= _MIN_FUSED_LENGTH


def _fused(query: AnyArray, key: AnyArray, value: AnyArray) -> Array:
    """Computes attention by cuDNN's flash attention."""
    lead = query.shape[:-3]
    flat = [a.reshape(-1, *a.shape[-3:]) for a in (query, key, value)]
    return jax.nn.dot_product_attention(*flat, implementation="cudnn").reshape(*lead, *query.shape[-3:])


def _tpu_blocks(query: AnyArray, key: AnyArray) -> tuple[int, int] | None:
    """Returns the block lengths (queries, keys) of the TPU kernel for long contexts, or None if it does not apply."""
    lengths, row = (query.shape[-3], key.shape[-3]), query.shape[-1] * query.dtype.itemsize
    fit = [block for block in _BLOCKS if block * row <= _BLOCK_BYTES]
    q, k = (next((block for block in fit if length % block == 0), None) for length in lengths)
    return (q, k) if q and k and min(lengths) >= _SHORT else None


def _flash(query: AnyArray, key: AnyArray, value: AnyArray) -> Array:
    """Computes attention by Pallas' splash attention without a mask; no pass writes scores to device memory."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    lead, (heads, width) = query.shape[:-3], query.shape[-2:]
    lengths, blocks = (query.shape[-3], key.shape[-3]), _tpu_blocks(query, key)
    if blocks is None:
        raise ValueError(f"query and key have shapes {query.shape} and {key.shape}; expected multiples of a block")
    q, k = blocks
    flat = (jnp.moveaxis(a.reshape(-1, *a.shape[-3:]), -2, -3) for a in (query * width**-0.5, key, value))
    sizes = splash.BlockSizes(q, k, k, q, k, k, q, k)
    mask = splash.MultiHeadMask([splash.FullMask(lengths)] * heads)
    kernel = splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)
    out: Any = jax.vmap(kernel)(*flat)  # (lead, heads, queries, features)
    return jnp.moveaxis(out, -3, -2).reshape(*lead, *query.shape[-3:])


def _attend(query: AnyArray, key: AnyArray, value: AnyArray) -> Array:
    """Computes attention of (..., heads, length, features); the query is scaled already."""
    scores = jnp.einsum("...sd,...td->...st", query, key, preferred_element_type=jnp.float32)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    out = jnp.einsum("...st,...td->...sd", weights.astype(value.dtype), value)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(query.dtype)


def _attend_in_chunks(query: AnyArray, key: AnyArray, value: AnyArray) -> Array:
    """As `_attend`, but holds the scores of one head and one chunk of queries at a time, for all samples.

    Maps over frames, heads and chunks. The batch, axis 0, is not mapped over: it may be split over devices, each of
    which then computes its own samples.
    """
    lead, (length, dim) = query.shape[:-2], query.shape[-2:]
    batch, pad = lead[0] if len(lead) > 1 else 1, -length % _CHUNK
    query, key, value = (
        jnp.moveaxis(a.reshape(batch, -1, *a.shape[-2:]), 0, 1) for a in (query, key, value)
    )  # (frames * heads, batch, length, features)
    query = jnp.pad(query, ((0, 0), (0, 0), (0, pad), (0, 0)))

    @jax.checkpoint
    def attend_chunk(q, k, v):
        return _attend(q, k, v)

    def attend_head(args):
        q, k, v = args
        chunks = rearrange(q, "batch (chunks chunk) dim -> chunks batch chunk dim", chunk=_CHUNK)
        out = jax.lax.map(lambda chunk: attend_chunk(chunk, k, v), chunks)
        return rearrange(out, "chunks batch chunk dim -> batch (chunks chunk) dim")

    out = jnp.moveaxis(jax.lax.map(attend_head, (query, key, value)), 1, 0)
    return out[..., :length, :].reshape(*lead, length, dim)

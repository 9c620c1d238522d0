"""Attention: equal to its definition on every platform's path, and which path a shape takes."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.ops import attention as op
from emo_jax.ops.frames import attention_over_frames, sequences_per_block


def arrays(lead, queries, keys, heads=2, dim=4, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (*lead, queries, heads, dim), (*lead, keys, heads, dim), (*lead, keys, heads, dim)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def softmax_attention(query, key, value):
    scores = np.einsum("...shd,...thd->...hst", query, key, dtype=np.float64) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("...hst,...thd->...shd", weights / weights.sum(axis=-1, keepdims=True), value)


# The last three are computed in chunks of 256 queries: two chunks, a remainder, and less than one chunk.
SHAPES = [((), 5, 7), ((2, 3), 16, 1), ((2,), 512, 520), ((1, 2), 300, 1000), ((), 200, 2000)]


@pytest.mark.parametrize("lead, queries, keys", SHAPES)
def test_attention_matches_the_definition(lead, queries, keys):
    q, k, v = arrays(lead, queries, keys)
    np.testing.assert_allclose(jax.jit(op.attention)(q, k, v), softmax_attention(q, k, v), rtol=1e-4, atol=1e-5)


def test_chunking_keeps_values_and_gradients(monkeypatch):
    inputs = arrays((2,), 300, 1000)

    def run():
        loss = lambda q, k, v: (op.attention(q, k, v) ** 2).sum()  # noqa: E731
        jaxpr = str(jax.make_jaxpr(lambda *a: op.attention(*a))(*inputs))  # a new lambda avoids a cached trace
        return "scan" in jaxpr, jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*inputs)

    chunked, (value, gradients) = run()
    monkeypatch.setattr(op, "_SHORT", 10**6)
    still_chunked, (plain_value, plain_gradients) = run()
    assert chunked and not still_chunked
    np.testing.assert_allclose(value, plain_value, rtol=1e-5)
    for one, other in zip(gradients, plain_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("lead, queries, keys, dim, cpu, gpu", [
    ((1,), 12 * 256, 256, 160, True, False),  # on accelerators: a hundred small kernels in sequence
    ((1,), 4096, 4096, 512, True, True),
    ((64, 16), 1024, 1024, 160, True, True),
    ((1,), 256, 256, 160, False, False),
    ((64, 4096), 16, 16, 160, False, False),  # temporal attention: 4096 small kernels
    ((64, 12), 4096, 128, 160, True, False),
])  # fmt: skip
def test_shapes_that_are_chunked(monkeypatch, lead, queries, keys, dim, cpu, gpu):
    inputs = [jax.ShapeDtypeStruct((*lead, length, 8, dim), jnp.bfloat16) for length in (queries, keys, keys)]
    for platform, expected in (("cpu", cpu), ("gpu", gpu)):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        assert ("scan" in str(jax.make_jaxpr(lambda *a: op.attention(*a))(*inputs))) == expected


@pytest.mark.parametrize("queries, dim, fits", [
    (64, 40, True), (64, 80, True), (64, 160, False), (64, 512, False), (64, 12, False),
    (12, 40, False),  # temporal attention: supported, but slower
])  # fmt: skip
def test_shapes_that_take_cudnn(monkeypatch, queries, dim, fits):
    called = []
    monkeypatch.setattr(op, "_fused", lambda q, k, v: called.append(q.shape) or q)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    op.attention(*(jnp.asarray(a, jnp.bfloat16) for a in arrays((), queries, 4, dim=dim)))
    assert bool(called) == fits


def test_chunking_keeps_samples_on_their_devices():
    """Mapping over the batch would gather it on every device."""
    run = subprocess.run(
        [sys.executable, "-c", _SPLIT], capture_output=True, text=True,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "while" in run.stdout and "all-gather" not in run.stdout and "all-to-all" not in run.stdout


_SPLIT = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from emo_jax.ops.attention import attention
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
split = NamedSharding(mesh, P("data"))
a = jax.ShapeDtypeStruct((4, 2, 600, 2, 8), jnp.float32, sharding=split)
print(jax.jit(attention, out_shardings=split).lower(a, a, a).compile().as_text())
"""


def test_large_scores_do_not_overflow():
    q, k, v = arrays((), 6, 6)
    out = op.attention(100 * q, 100 * k, v)
    np.testing.assert_allclose(out, softmax_attention(100 * q, 100 * k, v), rtol=1e-3, atol=1e-4)


def test_bfloat16_keeps_its_dtype_and_is_close_to_float32():
    inputs = arrays((2,), 40, 60)
    half = op.attention(*(jnp.asarray(a, jnp.bfloat16) for a in inputs))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), softmax_attention(*inputs), atol=0.04)


def test_long_contexts_take_the_tpu_kernel(monkeypatch):
    called = []
    monkeypatch.setattr(op, "_flash", lambda q, k, v: called.append(q.shape) or jnp.asarray(q))
    for queries, keys, fits in ((1024, 4096, True), (6144, 6144, True), (512, 4096, False), (1024, 4100, False)):
        called.clear()
        with op.traced_for("tpu"):
            op.attention(*arrays((1,), queries, keys, heads=1))
        assert bool(called) == fits
    op.attention(*arrays((1,), 1024, 1024, heads=1))
    assert not called


@pytest.mark.parametrize("lead, frames, keys, fits", [
    ((2, 64), 16, 16, 8), ((3,), 16, 16, 3), ((2, 64), 16, 12, 8), ((64,), 24, 24, 4), ((9,), 32, 32, 3),
    ((2, 64), 36, 36, None), ((5,), 12, 12, None), ((2, 64), 16, 128, None), ((2,), 4096, 32, None),
])  # fmt: skip
def test_short_sequences_take_the_tpu_kernel(monkeypatch, lead, frames, keys, fits):
    """A block holds as many sequences as give a multiple of 16 rows."""
    called, inputs = [], arrays(lead, frames, keys)
    monkeypatch.setattr(op, "attention_over_frames", lambda q, k, v: called.append(q.shape) or jnp.asarray(q))
    assert sequences_per_block(*inputs[:2]) == fits
    with op.traced_for("tpu"):
        op.attention(*inputs)
        op.attention(*(jnp.asarray(a, jnp.float16) for a in inputs))  # no kernel accepts float16
    op.attention(*inputs)
    assert len(called) == (fits is not None)


@pytest.mark.parametrize("width, dtype, count", [(160, "float32", 8), (320, "bfloat16", 8), (320, "float32", 4)])
def test_a_block_fits_the_fast_memory(width, dtype, count):
    wide = jax.ShapeDtypeStruct((64, 16, 8, width), dtype)
    assert sequences_per_block(wide, wide) == count


@pytest.mark.slow
@pytest.mark.parametrize("kernel, lead, queries, keys, dim", [
    (op._flash, (), 1024, 1024, 40), (op._flash, (), 1024, 1024, 160),
    (attention_over_frames, (2, 12), 16, 16, 40), (attention_over_frames, (4,), 16, 12, 8),
])  # fmt: skip
def test_tpu_kernels_match_the_definition(kernel, lead, queries, keys, dim):
    from jax.experimental.pallas import tpu as pltpu

    def loss(attention):
        return jax.jit(jax.value_and_grad(lambda *a: (attention(*a) ** 2).sum(), argnums=(0, 1, 2)))

    inputs = arrays(lead, queries, keys, heads=2 if lead else 1, dim=dim)
    with pltpu.force_tpu_interpret_mode():
        np.testing.assert_allclose(jax.jit(kernel)(*inputs), softmax_attention(*inputs), rtol=1e-4, atol=1e-5)
        value, gradients = loss(kernel)(*inputs)
    plain, plain_gradients = loss(op.attention)(*inputs)
    np.testing.assert_allclose(value, plain, rtol=1e-5)
    for one, other in zip(gradients, plain_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)

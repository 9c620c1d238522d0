"""FLOPs and residuals, against functions that can be counted by hand and against compiled steps."""

import functools

import jax
import jax.numpy as jnp
import pytest
from emo_jax.configs import base

from emo_jax.distributed.devices import peak_flops
from emo_jax.models.emo import build
from emo_jax.training.flops import count_flops, gradient_flops, residual_bytes, step_activations, step_flops
from emo_jax.training.step import new_state
from tests.steps import fixed_batch, step_of, training_config


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def convolve(x, kernel, **options):
    return jax.lax.conv_general_dilated(
        x, kernel, padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **{"window_strides": (1, 1)} | options
    )


@pytest.mark.parametrize("function, arguments, wanted", [
    (jnp.matmul, (shape(3, 5, 7), shape(3, 7, 11)), 2 * 3 * 5 * 7 * 11),
    (convolve, (shape(2, 8, 6, 5), shape(3, 3, 5, 7)), 2 * (2 * 8 * 6 * 7) * (3 * 3 * 5)),
    (functools.partial(convolve, window_strides=(2, 2)), (shape(2, 8, 6, 5), shape(3, 3, 5, 7)),
     2 * (2 * 4 * 3 * 7) * (3 * 3 * 5)),
    (functools.partial(convolve, feature_group_count=4), (shape(2, 8, 6, 4), shape(3, 3, 1, 8)),
     2 * (2 * 8 * 6 * 8) * (3 * 3)),
    (lambda x, w: jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, w), None), x, length=9)[0],
     (shape(4, 5), shape(5, 5)), 9 * 2 * 4 * 5 * 5),
    (lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x), (shape(4, 5), shape(5, 5)), 2 * 4 * 5 * 5),
    (lambda x, w: jnp.tanh(x).sum() + w.sum(), (shape(4, 5), shape(5, 5)), 0),
])  # fmt: skip
def test_count_flops(function, arguments, wanted):
    assert count_flops(function, *arguments) == wanted


@pytest.mark.parametrize("wrap, recomputed", [(lambda f: f, 0), (jax.checkpoint, 1)])
def test_gradient_flops_leave_out_recomputation(wrap, recomputed):
    @wrap
    def hidden(x, w):
        return jax.nn.relu(x @ w)

    def loss(trained, frozen, x):
        return (hidden(hidden(x, trained["in"]) @ frozen, trained["out"]) ** 2).sum()

    b, i, j, k, m = 4, 3, 5, 7, 2
    trained = {"in": shape(i, j), "out": shape(k, m)}
    forward = 2 * b * (i * j + j * k + k * m)
    backward = 2 * b * (i * j + j * k + 2 * k * m)  # no gradient for x, none for the frozen weights
    arguments = trained, shape(j, k), shape(b, i)
    assert gradient_flops(loss, *arguments) == forward + backward
    again = recomputed * 2 * b * (i * j + k * m)  # both hidden layers, whose sign the ReLU's gradient needs
    assert count_flops(jax.grad(loss), *arguments) == forward + backward + again


def test_gradient_flops_of_a_convolution():
    for stride in (1, 2):
        strided = functools.partial(convolve, window_strides=(stride, stride))
        x, kernel = shape(2, 8, 8, 4), shape(3, 3, 4, 6)
        one = count_flops(strided, x, kernel)
        assert gradient_flops(lambda both, f=strided: f(*both).sum(), (x, kernel)) == 3 * one
        executed = count_flops(jax.grad(lambda both, f=strided: f(*both).sum()), (x, kernel))
        assert executed == pytest.approx(3 * one, rel=0.01)


def count_step(count, stage, remat="none"):
    """Returns count(emo, config, state, batch) for the small model's step."""
    config = training_config(stage)
    config.model.unet.remat = remat
    emo = build(config)
    state = jax.eval_shape(functools.partial(new_state, config), emo.abstract_params())
    return count(emo, config, state, fixed_batch(config))


small_step_flops = functools.partial(count_step, step_flops)


@pytest.mark.slow
def test_step_flops_agree_with_xla():
    """XLA leaves out products with padding and counts additions, so the two differ slightly."""
    assert small_step_flops("vae") == pytest.approx(step_of("vae")[2].cost_analysis()["flops"], rel=0.03)
    assert small_step_flops("image") == small_step_flops("image", remat="blocks")


def test_residual_bytes():
    x, w = shape(4, 3), shape(3, 5)
    product = residual_bytes(lambda w, x: (x @ w).sum(), w, x)
    assert product == 4 * 4 * 3  # the other factor of the product
    hidden = residual_bytes(lambda w, x: jnp.sin(jnp.sin(x @ w)).sum(), w, x)
    assert hidden == product + 2 * 4 * 4 * 5
    assert residual_bytes(jax.checkpoint(lambda w, x: jnp.sin(jnp.sin(x @ w)).sum()), w, x) == product + 4 * 3 * 5


@pytest.mark.slow
def test_remat_reduces_activations():
    kept = {remat: count_step(step_activations, "image", remat) for remat in ("none", "blocks")}
    assert 0 < kept["blocks"] < 0.4 * kept["none"]


@pytest.mark.slow
def test_flops_of_stable_diffusion_s_vae():
    """By XLA's count of the compiled program, encoding a frame of 512x512 takes 1.117 TFLOP."""
    config = base.get_config()
    config.model.unet.channels = (32, 32, 32, 32)  # not part of the count
    emo = build(config)
    count = count_flops(emo.encode, emo.abstract_params(), shape(1, 1, 512, 512, 3))
    assert count == pytest.approx(1.117e12, rel=0.02)


@pytest.mark.parametrize("kind, wanted", [
    ("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU v5p", 459e12), ("TPU v4", 275e12), ("TPU v6 lite", 918e12),
    ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-40GB", 312e12),
    ("NVIDIA H200", 989e12), ("NVIDIA H200 NVL", 835e12), ("cpu", None), ("NVIDIA H1000", None),
])  # fmt: skip
def test_peak_flops_by_device(kind, wanted):
    assert peak_flops(kind) == wanted

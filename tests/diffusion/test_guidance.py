"""Guidance: modes, equations, and one batched call per step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.diffusion.guidance import PASSES, guidance_mode, guide

X, T = jnp.arange(6.0).reshape(2, 3), jnp.array([5, 9])


def denoise(x, t, reference_on, audio_on):
    """Depends on every argument; reference and audio interact."""
    r, a = reference_on[:, None].astype(float), audio_on[:, None].astype(float)
    return x + t[:, None] + 10 * r + 3 * a * x + 7 * r * a


def run(mode, reference_scale, audio_scale):
    return guide(denoise, mode, reference_scale, audio_scale)(X, T)


def one_pass(reference, audio):
    return denoise(X, T, jnp.full(2, reference), jnp.full(2, audio))


@pytest.mark.parametrize("mode", PASSES)
def test_scales_of_one_are_the_conditional_pass(mode):
    np.testing.assert_allclose(run(mode, 1.0, 1.0), one_pass(True, True), rtol=1e-6)


def test_each_mode_follows_its_equation():
    off, reference, both = one_pass(False, False), one_pass(True, False), one_pass(True, True)
    np.testing.assert_allclose(run("joint", 3.5, 3.5), off + 3.5 * (both - off), rtol=1e-5)
    np.testing.assert_allclose(run("audio", 1.0, 4.0), reference + 4 * (both - reference), rtol=1e-5)
    expected = off + 2 * (reference - off) + 4 * (both - reference)
    np.testing.assert_allclose(run("separate", 2.0, 4.0), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "scales, mode",
    [
        ((1, 1), "none"),
        ((3.5, 3.5), "joint"),
        ((1.0, 2.0), "audio"),
        ((2.0, 1.0), "separate"),
    ],
)
def test_guidance_mode_is_exact(scales, mode):
    assert guidance_mode(*scales) == mode
    np.testing.assert_allclose(run(mode, *scales), run("separate", *scales), rtol=1e-5)


def test_one_batched_call_and_one_trace_for_every_scale():
    calls = []

    def counted(x, t, reference_on, audio_on):
        calls.append((x.shape, t.shape, reference_on.shape, audio_on.dtype))
        return denoise(x, t, reference_on, audio_on)

    guided = jax.jit(lambda r, a: guide(counted, "separate", r, a)(X, T))
    assert not np.allclose(guided(2.0, 3.0), guided(5.0, 1.0))
    assert calls == [((6, 3), (6,), (6,), jnp.bool_)]


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_rescale_moves_the_standard_deviation_to_that_of_the_conditional_pass(share):
    """Lin et al. 2023, Eqs. 15 and 16, for each sample."""
    plain, both = np.asarray(run("joint", 3.5, 3.5)), np.asarray(one_pass(True, True))
    rescaled = guide(denoise, "joint", 3.5, 3.5, rescale=share)(X, T)
    factor = both.std(1, keepdims=True) / plain.std(1, keepdims=True)
    np.testing.assert_allclose(rescaled, (share * factor + 1 - share) * plain, rtol=1e-5)
    if share == 1:
        np.testing.assert_allclose(np.std(rescaled, axis=1), both.std(1), rtol=1e-5)


@pytest.mark.parametrize("t, is_guided", [(99, False), (100, True), (499, True), (500, False)])
def test_outside_of_the_interval_only_the_conditional_pass_is_computed(t, is_guided):
    sizes = []

    def counted(x, t, reference_on, audio_on):
        sizes.append(len(x))
        return denoise(x, t, reference_on, audio_on)

    guided = guide(counted, "separate", 2.0, 4.0, interval=(100, 499))
    times = jnp.full(2, t)
    everywhere, conditional = guide(denoise, "separate", 2.0, 4.0)(X, times), denoise(X, times, *jnp.ones((2, 2), bool))
    expected = everywhere if is_guided else conditional
    np.testing.assert_allclose(jax.jit(guided)(X, times), expected, rtol=1e-6)
    assert sorted(sizes) == [2, 6]  # one branch of each size


def test_bad_input_raises():
    with pytest.raises(ValueError, match="both"):
        guide(denoise, "both", 1.0, 1.0)
    with pytest.raises(ValueError, match="separate"):
        guide(denoise, "joint", 2.0, 3.0)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.diffusion.schedule import (
    add_noise,
    convert,
    draw_noise,
    loss_weight,
    target,
    timesteps,
)


def test_alphas_of_stable_diffusion(schedule):
    sd15 = schedule()
    assert sd15.alphas_cumprod.shape == (1000,) and sd15.train_steps == 1000
    np.testing.assert_allclose(sd15.alphas_cumprod[jnp.array([0, 999])], [0.99915, 0.004660], rtol=2e-4)
    linear = schedule(beta_schedule="linear")
    np.testing.assert_allclose(linear.alphas_cumprod[999], np.prod(1 - np.linspace(0.00085, 0.012, 1000)), rtol=1e-5)
    assert sd15.alphas[-1] == 1 and sd15.sigmas[-1] == 0  # t = -1 is clean data


def test_zero_terminal_snr_changes_the_end_and_keeps_the_start(schedule):
    zero = schedule(zero_terminal_snr=True, prediction="v")
    assert zero.alphas_cumprod[999] == 0 and zero.sigmas[999] == 1
    np.testing.assert_allclose(zero.alphas[0], schedule().alphas[0], rtol=1e-6)
    assert np.all(np.diff(zero.alphas_cumprod) < 0)


@pytest.mark.parametrize("kind, zero", [("eps", False), ("v", False), ("x0", False), ("v", True), ("x0", True)])
def test_convert_inverts_target(schedule, kind, zero):
    s = schedule(zero_terminal_snr=zero, prediction="v")
    x0, noise = np.random.default_rng(0).normal(size=(2, 4, 3, 2, 2)).astype(np.float32)
    t = jnp.array([0, 300, 998, 999])
    x_t = add_noise(s, x0, noise, t)
    got_x0, got_eps = jax.jit(convert, static_argnames="kind")(s, target(s, kind, x0, noise, t), x_t, t, kind=kind)
    np.testing.assert_allclose(got_x0, x0, atol=2e-5)
    np.testing.assert_allclose(got_eps, noise, atol=2e-5)


def test_add_noise_uses_the_timestep_of_each_sample(schedule):
    s = schedule(zero_terminal_snr=True, prediction="v")
    x0, noise = jnp.ones((2, 3, 4)), jnp.full((2, 3, 4), 5.0)
    x_t = add_noise(s, x0, noise, jnp.array([999, -1]))
    np.testing.assert_array_equal(x_t[0], noise[0])
    np.testing.assert_array_equal(x_t[1], x0[1])


def test_min_snr_weights_agree_between_parametrizations(schedule):
    """The weighted loss is equal for losses of eps, v and x0."""
    s, t = schedule(), jnp.array([0, 50, 400, 999])
    snr = s.alphas_cumprod[t] / (1 - s.alphas_cumprod[t])
    np.testing.assert_allclose(loss_weight(s, t, "x0", 5.0), np.minimum(snr, 5), rtol=1e-3)
    np.testing.assert_allclose(loss_weight(s, t, "eps", 5.0) * snr, np.minimum(snr, 5), rtol=1e-3)
    np.testing.assert_allclose(loss_weight(s, t, "v", 5.0) * (snr + 1), np.minimum(snr, 5), rtol=1e-3)
    np.testing.assert_array_equal(loss_weight(s, t, "eps", 0.0), np.ones(4))


@pytest.mark.parametrize("kind", ["v", "x0"])
def test_the_terminal_step_is_trained_at_zero_snr(schedule, kind):
    s = schedule(zero_terminal_snr=True, prediction=kind)
    np.testing.assert_allclose(loss_weight(s, jnp.array([999]), kind, 5.0), [1.0])


@pytest.mark.parametrize(
    "spacing, steps, expected",
    [
        ("leading", 40, np.arange(976, 0, -25)),
        ("trailing", 40, np.arange(999, 0, -25)),
        ("leading", 3, [667, 334, 1]),
        ("trailing", 3, [999, 666, 332]),
        ("linspace", 5, [999, 749, 500, 250, 0]),
        ("leading", 1000, np.arange(999, -1, -1)),
        ("trailing", 1000, np.arange(999, -1, -1)),
    ],
)
def test_timesteps_equal_those_of_diffusers(schedule, spacing, steps, expected):
    ts = timesteps(schedule(), steps, spacing)
    assert ts.dtype == np.int32
    np.testing.assert_array_equal(ts, expected)


def test_noise_offset_is_shared_by_frames_and_pixels(schedule):
    key, shape = jax.random.key(0), (2, 3, 4, 4, 2)
    plain, offset = draw_noise(schedule(), key, shape), draw_noise(schedule(noise_offset=0.5), key, shape)
    difference = np.asarray(offset - plain)
    np.testing.assert_allclose(difference, np.broadcast_to(difference[:, :1, :1, :1], shape), atol=1e-6)
    assert len(np.unique(difference[:, 0, 0, 0].round(4))) == 4  # one per sample and channel


@pytest.mark.parametrize(
    "change",
    [
        {"zero_terminal_snr": True},
        {"prediction": "noise"},
        {"spacing": "even"},
        {"beta_schedule": "cosine"},
        {"beta_start": 0.0},
        {"beta_end": 1.0},
        {"train_steps": 1},
        {"min_snr_gamma": -1.0},
        {"noise_offset": -0.1},
    ],
)
def test_bad_config_raises_with_the_field(schedule, change):
    with pytest.raises(ValueError, match=next(iter(change))) as error:
        schedule(**change)
    assert "\n" not in str(error.value)


def test_bad_input_raises(schedule):
    zero, t, x = schedule(zero_terminal_snr=True, prediction="v"), jnp.array([1]), jnp.ones((1, 2))
    for call in (
        lambda: convert(zero, x, x, t, "eps"),
        lambda: loss_weight(zero, t, "eps", 5.0),
        lambda: convert(zero, x, x, t, "noise"),
        lambda: target(zero, "noise", x, x, t),
        lambda: timesteps(zero, 0, "leading"),
        lambda: timesteps(zero, 1001, "leading"),
        lambda: timesteps(zero, 10, "even"),
    ):
        with pytest.raises(ValueError):
            call()

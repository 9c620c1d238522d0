"""Solvers and sampler on Gaussian data N(MEAN, STD^2), whose optimal prediction and exact solution are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.diffusion.sampler import Hold, sample
from emo_jax.diffusion.schedule import coefficients, timesteps
from emo_jax.diffusion.solvers import ddim, make_solver

MEAN, STD = 0.7, 0.3


def denoiser(s, kind):
    def denoise(x, t):
        alpha, sigma = coefficients(s, t, x)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        x0 = MEAN + gain * (x - alpha * MEAN)
        eps = (x - alpha * x0) / sigma
        return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[kind]

    return denoise


def error(s, name, ts, kind="v"):
    """Returns the largest distance from the exact solution of the probability-flow ODE."""
    x_T = jnp.linspace(-2, 2, 8).reshape(2, 4)
    x = sample(denoiser(s, kind), s, make_solver(name, s), x_T, ts, jax.random.key(0))
    alpha, sigma = s.alphas[ts[0]], s.sigmas[ts[0]]
    exact = MEAN + STD * (x_T - alpha * MEAN) / jnp.sqrt(alpha**2 * STD**2 + sigma**2)
    return float(jnp.abs(x - exact).max())


def even_in_lambda(s, steps):
    """Returns timesteps that reveal the order of DPM-Solver++; other spacings end with a long first-order step."""
    lambdas = np.asarray(s.lambdas[:-1])
    inner = [np.abs(lambdas - value).argmin() for value in np.linspace(lambdas[998], lambdas[0], steps)[1:]]
    return np.array([999, *inner], np.int32)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", ["ddim", "dpm++2m"])
def test_error_decreases_with_steps(schedule, name, zero):
    s = schedule(zero_terminal_snr=zero, prediction="v")
    errors = [error(s, name, timesteps(s, steps, "trailing")) for steps in (10, 40)]
    assert 0 < 2 * errors[1] < errors[0] < 0.5


@pytest.mark.parametrize("zero", [False, True])
def test_second_order_needs_a_quarter_of_the_steps(schedule, zero):
    s = schedule(zero_terminal_snr=zero, prediction="v")
    assert 2 * error(s, "dpm++2m", even_in_lambda(s, 10)) < error(s, "ddim", even_in_lambda(s, 40))


@pytest.mark.parametrize("name", ["ddim", "dpm++2m"])
def test_predictions_of_any_kind_give_the_same_sample(schedule, name):
    ts = np.array([999, 700, 400, 100])
    errors = [error(schedule(prediction=kind), name, ts, kind) for kind in ("eps", "v", "x0")]
    np.testing.assert_allclose(errors, errors[0], rtol=1e-3)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", ["ddim", "dpm++2m"])
@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_are_finite(schedule, name, steps, zero):
    s = schedule(zero_terminal_snr=zero, prediction="v")
    assert np.isfinite(error(s, name, timesteps(s, steps, "trailing")))


def test_dpm_solver_follows_algorithm_2(schedule):
    s, ts = schedule(), [901, 601, 301, 101]
    x, x0_last, h_last = np.array([[0.3, -1.2]]), None, None
    solver = make_solver("dpm++2m", s)
    got = jnp.asarray(x, jnp.float32)
    state = solver.init(got)
    for t, t_next in zip(ts, ts[1:], strict=False):
        x0 = np.sin(x * 3 + t)  # any smooth function
        h = float(s.lambdas[t_next] - s.lambdas[t])
        d = x0 if h_last is None else (1 + h / (2 * h_last)) * x0 - h / (2 * h_last) * x0_last
        x = float(s.sigmas[t_next] / s.sigmas[t]) * x - float(s.alphas[t_next]) * np.expm1(-h) * d
        x0_last, h_last = x0, h
        got, state = solver.step(state, got, jnp.asarray(x0, jnp.float32), None, t, t_next, None)
        np.testing.assert_allclose(got, x, rtol=1e-4)


def test_stochastic_ddim_draws_from_the_data_distribution(schedule):
    s = schedule()
    x_T = jax.random.normal(jax.random.key(1), (4, 2000))
    ts, solver = timesteps(s, 250, "trailing"), ddim(s, eta=1.0)
    run = jax.jit(lambda key: sample(denoiser(s, "eps"), s, solver, x_T, ts, key))
    a, b = run(jax.random.key(2)), run(jax.random.key(3))
    assert abs(a.mean() - MEAN) < 0.03 and abs(a.std() - STD) < 0.03
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.1  # determined by the noise, not by x_T


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_without_alpha_to_one_ends_at_timestep_0(schedule, eta):
    s, x = schedule(), jnp.ones((1, 2))
    x0, eps = jnp.zeros((1, 2)), jnp.ones((1, 2))
    end, _ = ddim(s, eta, alpha_to_one=False).step((), x, x0, eps, 0, -1, jax.random.key(0))
    np.testing.assert_allclose(end, s.sigmas[0] * eps, rtol=1e-5)
    end, _ = ddim(s, eta).step((), x, x0, eps, 0, -1, jax.random.key(0))
    np.testing.assert_array_equal(end, x0)


def test_one_trace_serves_every_seed_and_the_result_is_float32(schedule):
    s, traces = schedule(), 0

    @jax.jit
    def run(x_T, key):
        nonlocal traces
        traces += 1
        half = lambda x, t: denoiser(s, "eps")(x, t).astype(jnp.bfloat16)  # noqa: E731
        return sample(half, s, make_solver("dpm++2m", s), x_T, timesteps(s, 4, s.spacing), key)

    a, b = run(jnp.ones((1, 2)), jax.random.key(0)), run(jnp.zeros((1, 2)), jax.random.key(1))
    assert traces == 1 and a.dtype == jnp.float32 and not np.allclose(a, b)


@pytest.mark.parametrize("arguments", [("euler",), ("dpm++2m", 0.5), ("ddim", 2.0)])
def test_unknown_solver_or_option_raises(schedule, arguments):
    name, *rest = arguments
    with pytest.raises(ValueError, match="expected"):
        make_solver(name, schedule(), *rest)


@pytest.mark.parametrize("name", ["ddim", "dpm++2m"])
def test_held_places_end_at_their_values_and_others_are_unchanged(schedule, name):
    s = schedule(zero_terminal_snr=False, prediction="v")
    x_T, mask = jnp.linspace(-2, 2, 8).reshape(2, 4), jnp.array([[1.0, 0, 0, 1]])
    seen = []

    def watched(x, t):
        jax.debug.callback(lambda *values: seen.append(values), x, t, ordered=True)
        return denoiser(s, "v")(x, t)

    arguments = (s, make_solver(name, s), x_T, timesteps(s, 10, "trailing"), jax.random.key(0))
    free, held = sample(denoiser(s, "v"), *arguments), sample(watched, *arguments, Hold(mask, jnp.full((1, 4), 3.0)))
    np.testing.assert_allclose(held[:, [0, 3]], 3.0, atol=1e-4)
    np.testing.assert_allclose(held[:, [1, 2]], free[:, [1, 2]], atol=1e-4)
    jax.effects_barrier()
    for x, t in seen[1:]:  # the noise level of held places falls with the timestep, around their value
        alpha, sigma = coefficients(s, t, x)
        assert np.abs((x - 3.0 * alpha) / sigma)[:, [0, 3]].max() < 3

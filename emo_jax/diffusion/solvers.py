"""Solvers of the reverse process, as pairs of pure functions for `lax.scan`.

A solver's `step` moves x from t to t_next, given the network's x0 and eps at t. The timesteps t and t_next are scalar
int32 and may be traced; t_next = -1 means clean data.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emo_jax.diffusion.noise import normal
from emo_jax.diffusion.schedule import Schedule, coefficients

SOLVERS = ("ddim", "dpm++2m", "lcm")


class Solver(NamedTuple):
    """A solver; arrays are (batch, ...).

    Attributes:
        init: x -> state.
        step: (state, x, x0, eps, t, t_next, key) -> (x_next, state).
    """

    init: Callable[[jax.Array], Any]
    step: Callable[..., tuple[jax.Array, Any]]


def ddim(schedule: Schedule, eta: float = 0.0, alpha_to_one: bool = True) -> Solver:
    """Returns DDIM (Song et al. 2021, Eqs. 12 and 16).

    Args:
        schedule: the noise schedule.
        eta: 0 is deterministic, 1 is DDPM.
        alpha_to_one: False ends at timestep 0 instead of at clean data, as Stable Diffusion 1.5's
            `set_alpha_to_one: false`.
    """

    def step(state, x, x0, eps, t, t_next, key):
        t_next = t_next if alpha_to_one else jnp.maximum(t_next, 0)
        alpha, sigma = coefficients(schedule, t, x)
        alpha_next, sigma_next = coefficients(schedule, t_next, x)
        if eta == 0:
            return alpha_next * x0 + sigma_next * eps, state
        # Without alpha_to_one, t_next may equal t at the end, where rounding could give a negative radicand.
        std = eta * sigma_next / sigma * jnp.sqrt(jnp.maximum(1 - (alpha / alpha_next) ** 2, 0))
        drift = jnp.sqrt(jnp.maximum(sigma_next**2 - std**2, 0)) * eps
        return alpha_next * x0 + drift + std * normal(key, x.shape, x.dtype), state

    return Solver(lambda x: (), step)


def dpm_solver_pp_2m(schedule: Schedule) -> Solver:
    """Returns DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, Algorithm 2), deterministic, final sigma zero.

    The algorithm's (sigma_s / sigma_t) x - alpha_s (exp(-h) - 1) D, from t to s, is written as
    alpha_s D + sigma_s (x - alpha_t D) / sigma_t. This is equal, because exp(-h) = alpha_t sigma_s / (alpha_s sigma_t),
    and finite where lambda is not. Three steps are first order: the first, the last (diffusers' lower_order_final), and
    the one after an infinite h (zero SNR). The state is the previous x0 and the previous h.
    """

    def init(x):
        return jnp.zeros_like(x), jnp.asarray(jnp.inf, jnp.float32)  # an infinite h makes the first step first order

    def step(state, x, x0, eps, t, t_next, key):
        x0_last, h_last = state
        h = schedule.lambdas[t_next] - schedule.lambdas[t]
        ratio = jnp.where(jnp.isfinite(h), h / (2 * h_last), 0.0)
        alpha, sigma = coefficients(schedule, t, x)
        alpha_next, sigma_next = coefficients(schedule, t_next, x)
        d = x0 + ratio * (x0 - x0_last)
        return alpha_next * d + sigma_next * (x - alpha * d) / sigma, (x0, h)

    return Solver(init, step)


def lcm(schedule: Schedule) -> Solver:
    """Returns multistep consistency sampling (Song et al. 2023, arXiv 2303.01469, Algorithm 1), for distilled networks.

    Their x0 is the end of a trajectory, which belongs to the noise that it started from. DDIM would add that noise
    again, and so leave the distribution of x at t_next; here the noise is new.

    Args:
        schedule: the noise schedule.
    """

    def step(state, x, x0, eps, t, t_next, key):
        alpha_next, sigma_next = coefficients(schedule, t_next, x)
        return alpha_next * x0 + sigma_next * normal(key, x.shape, x.dtype), state

    return Solver(lambda x: (), step)


def make_solver(name: str, schedule: Schedule, eta: float = 0.0, alpha_to_one: bool = True) -> Solver:
    """Returns the solver of a name in SOLVERS.

    Raises:
        ValueError: unknown name, or an option that the solver does not support.
    """
    if name == "ddim":
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta}; expected 0 (deterministic) to 1 (DDPM)")
        return ddim(schedule, eta, alpha_to_one)
    others = {"dpm++2m": dpm_solver_pp_2m, "lcm": lcm}
    if name in others:
        if eta != 0 or not alpha_to_one:
            raise ValueError(f"eta is {eta}, alpha_to_one is {alpha_to_one}; expected 0 and True for {name}: use ddim")
        return others[name](schedule)
    raise ValueError(f"solver is {name!r}; expected one of {', '.join(SOLVERS)}")

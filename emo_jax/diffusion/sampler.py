"""The sampler: one `lax.scan` over the denoising steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from emo_jax.arrays import AnyArray
from emo_jax.diffusion.noise import split
from emo_jax.diffusion.schedule import Schedule, coefficients, convert
from emo_jax.diffusion.solvers import Solver


class Hold(NamedTuple):
    """Places whose clean values are known.

    Attributes:
        mask: 1 where x0 is held, 0 where it is sampled.
        clean: the clean values; of `mask` and `clean`, axes of size 1 are repeated.
    """

    mask: Float[AnyArray, "..."]
    clean: Float[AnyArray, "..."]

    def apply(self, x0: AnyArray) -> Array:
        """Returns x0 with the held values."""
        return jnp.where(self.mask > 0, self.clean, x0)


def sample(
    denoise: Callable[..., Any],
    schedule: Schedule,
    solver: Solver,
    x_T: Float[AnyArray, "batch ..."],
    ts: Int[AnyArray, " steps"],
    key: Key[Array, "*samples"],
    hold: Hold | None = None,
    t_nexts: Int[AnyArray, " steps"] | None = None,
    deep_interval: int = 1,
) -> Float[Array, "batch ..."]:
    """Denoises x_T along descending timesteps and returns x0, float32 (Section 4.1: DDIM, 40 steps).

    Args:
        denoise: (x (batch, ...) float32, t (batch,) int32) -> prediction (batch, ...) of kind `schedule.prediction`.
        schedule: the noise schedule.
        solver: its `step` moves x from one timestep to the next.
        x_T: noise at the first timestep.
        ts: descending timesteps.
        key: used by stochastic solvers: one key, or (batch,) keys with which the samples do not depend on the batch.
        hold: places whose x0 is replaced in each step. The noise there stays that of x_T, so that the network sees the
            known values at the right noise level (as in blended latent diffusion, Avrahami et al. 2023).
        t_nexts: the timestep to which each step goes, -1 for clean data; None: the one that follows in ts.
        deep_interval: above 1, `denoise` also returns features, and is given them as a third argument in all steps but
            each `deep_interval`-th, which it computes with less work.
    """
    x_T = jnp.asarray(x_T, jnp.float32)
    ts = jnp.asarray(ts, jnp.int32)
    t_nexts = jnp.append(ts[1:], -1) if t_nexts is None else jnp.asarray(t_nexts, jnp.int32)
    keys = split(key, ts.shape[0])

    def body(carry, inputs):
        x, state, features = carry
        t, t_next, step_key, is_complete = inputs
        times = jnp.full(x.shape[:1], t)
        if deep_interval == 1:
            prediction = denoise(x, times)
        else:
            prediction, features = jax.lax.cond(
                is_complete, lambda _: denoise(x, times), lambda reused: denoise(x, times, reused), features
            )
        x, state = advance(schedule, solver, x, state, prediction, t, t_next, step_key, hold)
        return (x, state, features), None

    features = None
    if deep_interval > 1:
        _, shape = jax.eval_shape(denoise, x_T, jnp.zeros(x_T.shape[:1], jnp.int32))
        features = jnp.zeros(shape.shape, shape.dtype)
    is_complete = jnp.arange(len(ts)) % deep_interval == 0
    (x, _, _), _ = jax.lax.scan(body, (x_T, solver.init(x_T), features), (ts, t_nexts, keys, is_complete))
    return x


def advance(
    schedule: Schedule,
    solver: Solver,
    x: Float[AnyArray, "batch ..."],
    state: Any,
    prediction: Float[AnyArray, "batch ..."],
    t: Int[AnyArray, ""],
    t_next: Int[AnyArray, ""],
    key: Key[Array, "*samples"],
    hold: Hold | None = None,
) -> tuple[Float[Array, "batch ..."], Any]:
    """Moves samples from one timestep to the next.

    Args:
        schedule: the noise schedule.
        solver: the solver.
        x: samples at t.
        state: the solver's state.
        prediction: the network's prediction of kind `schedule.prediction`.
        t: the timestep.
        t_next: the timestep to go to, -1 for clean data.
        key: key of the step.
        hold: see `sample`.

    Returns:
        The samples at t_next, and the solver's state.
    """
    x0, eps = convert(schedule, prediction.astype(jnp.float32), x, t, schedule.prediction)
    if hold is not None:
        alpha, sigma = coefficients(schedule, t, x)
        x0 = hold.apply(x0)
        eps = (x - alpha * x0) / sigma
    return solver.step(state, x, x0, eps, t, t_next, key)

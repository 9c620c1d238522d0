"""The sampler: one `lax.scan` over the denoising steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from emo_jax.diffusion.schedule import Schedule, convert
from emo_jax.diffusion.solvers import Solver


def sample(denoise_fn: Callable, schedule: Schedule, solver: Solver, x_T, ts, key) -> jax.Array:
    """Denoises x_T (B, ...) along the descending timesteps ts int32 (steps,) and returns x0 (B, ...), float32.

    denoise_fn(x (B, ...) float32, t int32 (B,)) -> prediction (B, ...) of kind `schedule.prediction`. The key is read
    by stochastic solvers only (one key per step). EMO, section 4.1: DDIM, 40 steps.
    """
    x_T = jnp.asarray(x_T, jnp.float32)
    ts = jnp.asarray(ts, jnp.int32)
    t_nexts = jnp.append(ts[1:], -1)
    keys = jax.random.split(key, ts.shape[0])

    def body(carry, inputs):
        x, state = carry
        t, t_next, step_key = inputs
        prediction = denoise_fn(x, jnp.full(x.shape[:1], t))
        x0, eps = convert(schedule, prediction.astype(jnp.float32), x, t, schedule.prediction)
        return solver.step(state, x, x0, eps, t, t_next, step_key), None

    (x, _), _ = jax.lax.scan(body, (x_T, solver.init(x_T)), (ts, t_nexts, keys))
    return x

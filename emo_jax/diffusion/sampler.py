"""The sampler: one `lax.scan` over the denoising steps."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from emo_jax.arrays import AnyArray
from emo_jax.diffusion.guidance import Denoiser
from emo_jax.diffusion.schedule import Schedule, convert
from emo_jax.diffusion.solvers import Solver


def sample(
    denoise: Denoiser,
    schedule: Schedule,
    solver: Solver,
    x_T: Float[AnyArray, "batch ..."],
    ts: Int[AnyArray, " steps"],
    key: Key[Array, ""],
) -> Float[Array, "batch ..."]:
    """Denoises x_T along descending timesteps and returns x0, float32 (Section 4.1: DDIM, 40 steps).

    Args:
        denoise: (x (batch, ...) float32, t (batch,) int32) -> prediction (batch, ...) of kind `schedule.prediction`.
        schedule: the noise schedule.
        solver: its `step` moves x from one timestep to the next.
        x_T: noise at the first timestep.
        ts: descending timesteps.
        key: used by stochastic solvers, one key per step.
    """
    x_T = jnp.asarray(x_T, jnp.float32)
    ts = jnp.asarray(ts, jnp.int32)
    t_nexts = jnp.append(ts[1:], -1)
    keys = jax.random.split(key, ts.shape[0])

    def body(carry, inputs):
        x, state = carry
        t, t_next, step_key = inputs
        prediction = denoise(x, jnp.full(x.shape[:1], t))
        x0, eps = convert(schedule, prediction.astype(jnp.float32), x, t, schedule.prediction)
        return solver.step(state, x, x0, eps, t, t_next, step_key), None

    (x, _), _ = jax.lax.scan(body, (x_T, solver.init(x_T)), (ts, t_nexts, keys))
    return x

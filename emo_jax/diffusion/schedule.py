"""The noise schedule: x_t = alpha_t x0 + sigma_t noise. One `Schedule` serves training and sampling.

Timesteps t are int32 in [0, T), one per sample or one for all; t = -1 is clean data.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from emo_jax.arrays import AnyArray
from emo_jax.ops import random

BETA_SCHEDULES = ("scaled_linear", "linear")
PREDICTIONS = ("eps", "v", "x0")
SPACINGS = ("leading", "trailing", "linspace")

Samples = Float[AnyArray, "batch *shape"]
Timesteps = int | Int[AnyArray, ""] | Int[AnyArray, " batch"]


@flax.struct.dataclass
class Schedule:
    """Float32 tables of length T + 1, computed in float64; the last entry is clean data, so that index -1 finds it.

    Attributes:
        alphas: sqrt(alpha_bar), (T + 1,).
        sigmas: sqrt(1 - alpha_bar), (T + 1,).
        lambdas: log(alpha / sigma), (T + 1,): -inf at zero SNR, +inf for clean data.
        prediction: what the network predicts: 'eps', 'v' or 'x0'.
        spacing: spacing of the sampling timesteps: one of SPACINGS.
        zero_terminal_snr: whether the last timestep is pure noise.
        min_snr_gamma: gamma of the loss weights; 0 disables them.
        noise_offset: standard deviation of the offset noise; 0 disables it.
    """

    alphas: jax.Array
    sigmas: jax.Array
    lambdas: jax.Array
    prediction: str = flax.struct.field(pytree_node=False)
    spacing: str = flax.struct.field(pytree_node=False)
    zero_terminal_snr: bool = flax.struct.field(pytree_node=False)
    min_snr_gamma: float = flax.struct.field(pytree_node=False)
    noise_offset: float = flax.struct.field(pytree_node=False)

    @property
    def train_steps(self) -> int:
        """Number of training timesteps, T."""
        return self.alphas.shape[0] - 1

    @property
    def alphas_cumprod(self) -> Float[Array, " T"]:
        """The table alpha_bar."""
        return self.alphas[:-1] ** 2


def make_schedule(diffusion: ConfigDict) -> Schedule:
    """Builds the schedule of a config.

    Args:
        diffusion: the sub-config `diffusion`, with the fields train_steps, beta_schedule, beta_start, beta_end,
            zero_terminal_snr, prediction, spacing, min_snr_gamma and noise_offset. 'scaled_linear' (linear in
            sqrt(beta)) from 0.00085 to 0.012 is Stable Diffusion's. With `zero_terminal_snr`, sample with 'trailing' or
            'linspace' spacing: 'leading' never visits the last timestep.

    Raises:
        ValueError: unknown name, number out of range, or zero terminal SNR with prediction 'eps'.
    """
    _check_name("beta_schedule", diffusion.beta_schedule, BETA_SCHEDULES)
    _check_name("prediction", diffusion.prediction, PREDICTIONS)
    _check_name("spacing", diffusion.spacing, SPACINGS)
    if diffusion.zero_terminal_snr:
        _check_not_eps(diffusion.prediction)
    if diffusion.train_steps < 2:
        raise ValueError(f"diffusion.train_steps is {diffusion.train_steps}; expected at least 2 (1000 is usual)")
    if not 0 < diffusion.beta_start <= diffusion.beta_end < 1:
        raise ValueError(
            f"diffusion.beta_start, beta_end are {diffusion.beta_start}, {diffusion.beta_end}; expected "
            "0 < beta_start <= beta_end < 1 (Stable Diffusion uses 0.00085 and 0.012)"
        )
    for name in ("min_snr_gamma", "noise_offset"):
        if not diffusion[name] >= 0:
            raise ValueError(f"diffusion.{name} is {diffusion[name]}; expected a number >= 0 (0 disables it)")

    power = 0.5 if diffusion.beta_schedule == "scaled_linear" else 1.0
    betas = np.linspace(diffusion.beta_start**power, diffusion.beta_end**power, diffusion.train_steps) ** (1 / power)
    alphas = np.sqrt(np.cumprod(1 - betas))
    if diffusion.zero_terminal_snr:  # Lin et al. 2023 (arXiv 2305.08891), Algorithm 1
        alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    alphas = np.append(alphas, 1.0)
    sigmas = np.sqrt(1 - alphas**2)
    with np.errstate(divide="ignore"):
        lambdas = np.log(alphas) - np.log(sigmas)
    return Schedule(
        *(jnp.asarray(table, jnp.float32) for table in (alphas, sigmas, lambdas)),
        prediction=diffusion.prediction,
        spacing=diffusion.spacing,
        zero_terminal_snr=bool(diffusion.zero_terminal_snr),
        min_snr_gamma=float(diffusion.min_snr_gamma),
        noise_offset=float(diffusion.noise_offset),
    )


def coefficients(schedule: Schedule, t: Timesteps, x: Samples) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns alpha_t and sigma_t, shaped to broadcast over the trailing axes of x."""
    shape = jnp.shape(t) + (1,) * (x.ndim - jnp.ndim(t))
    return schedule.alphas[t].reshape(shape), schedule.sigmas[t].reshape(shape)


def draw_noise(schedule: Schedule, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "batch ... channels"]:
    """Draws training noise: unit normal, plus `noise_offset` times one draw per sample and channel.

    The offset is shared by all frames and pixels (Guttenberg 2023, "Diffusion with offset noise").
    """
    noise_key, offset_key = jax.random.split(key)
    noise = random.normal(noise_key, shape)
    if schedule.noise_offset:
        offset_shape = (shape[0],) + (1,) * (len(shape) - 2) + (shape[-1],)
        noise += schedule.noise_offset * random.normal(offset_key, offset_shape)
    return noise


def add_noise(schedule: Schedule, x0: Samples, noise: Samples, t: Timesteps) -> Samples:
    """Returns x_t = alpha_t x0 + sigma_t noise (Ho et al. 2020, Eq. 4)."""
    alpha, sigma = coefficients(schedule, t, x0)
    return alpha * x0 + sigma * noise


def target(schedule: Schedule, kind: str, x0: Samples, noise: Samples, t: Timesteps) -> Samples:
    """Returns the training target of a kind of prediction: noise, x0, or v = alpha noise - sigma x0.

    Source: Salimans & Ho 2022.
    """
    _check_name("prediction", kind, PREDICTIONS)
    alpha, sigma = coefficients(schedule, t, x0)
    return {"eps": noise, "x0": x0, "v": alpha * noise - sigma * x0}[kind]


def convert(
    schedule: Schedule, prediction: Samples, x_t: Samples, t: Timesteps, kind: str
) -> tuple[Samples, Samples]:
    """Converts a prediction at x_t to (x0, eps) (Salimans & Ho 2022, Section 4).

    Predictions 'v' and 'x0' are exact at zero SNR too.

    Raises:
        ValueError: kind 'eps' on a schedule with zero terminal SNR.
    """
    _check_name("prediction", kind, PREDICTIONS)
    alpha, sigma = coefficients(schedule, t, x_t)
    if kind == "v":
        return alpha * x_t - sigma * prediction, sigma * x_t + alpha * prediction
    if kind == "x0":
        return prediction, (x_t - alpha * prediction) / sigma
    if schedule.zero_terminal_snr:
        _check_not_eps(kind)
    return (x_t - sigma * prediction) / alpha, prediction


def loss_weight(schedule: Schedule, t: Int[AnyArray, " batch"], kind: str, gamma: float) -> Float[Array, " batch"]:
    """Returns the Min-SNR weight of each sample's loss (Hang et al. 2023); ones if gamma is 0.

    The weight is min(SNR, gamma) for x0, divided by SNR for eps and by SNR + 1 for v. On a schedule with zero terminal
    SNR the numerator is min(SNR + 1, gamma) (the SNR + 1 weighting of Salimans & Ho 2022): otherwise the timestep at
    which sampling starts would have weight zero and never be trained. Multiply by it before any mean over the batch.
    """
    _check_name("prediction", kind, PREDICTIONS)
    if not gamma:
        return jnp.ones(jnp.shape(t), jnp.float32)
    if schedule.zero_terminal_snr:
        _check_not_eps(kind)
    snr = (schedule.alphas[t] / schedule.sigmas[t]) ** 2
    clipped = jnp.minimum(snr + schedule.zero_terminal_snr, gamma)
    return clipped / {"x0": 1.0, "eps": snr, "v": snr + 1}[kind]


def timesteps(schedule: Schedule, steps: int, spacing: str) -> Int[np.ndarray, " steps"]:
    """Returns descending sampling timesteps (Lin et al. 2023, Table 2), equal to those of diffusers' DDIM.

    'leading' is shifted by one, as in Stable Diffusion 1.5 (steps_offset = 1), unless that would leave the schedule.

    Raises:
        ValueError: unknown spacing, or `steps` outside 1 to T.
    """
    _check_name("spacing", spacing, SPACINGS)
    total = schedule.train_steps
    if not 1 <= steps <= total:
        raise ValueError(f"steps is {steps}; expected 1 to {total} (diffusion.train_steps)")
    if spacing == "trailing":
        ts = np.round(total - np.arange(steps) * (total / steps)) - 1
    elif spacing == "leading":
        ts = np.arange(steps)[::-1] * (total // steps)
        ts += ts[0] + 1 < total
    else:
        ts = np.linspace(0, total - 1, steps).round()[::-1]
    return ts.astype(np.int32)


def strided(schedule: Schedule, ts: Int[np.ndarray, " steps"]) -> Int[np.ndarray, " steps"]:
    """Returns the timestep to which each step goes in diffusers' DDIM: t - T // steps, or -1 where that is below 0.

    The networks are evaluated at `ts`, which may differ by one: 3 of 1000 trailing timesteps are 999, 666 and 332, and
    the second step goes to 333.
    """
    return np.maximum(ts - schedule.train_steps // len(ts), -1)


def _check_name(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"diffusion.{field} is {value!r}; expected one of {', '.join(known)}")


def _check_not_eps(prediction: str) -> None:
    if prediction == "eps":
        raise ValueError(
            "diffusion.prediction is 'eps' with zero_terminal_snr, where eps says nothing about x0: "
            "use prediction 'v' or 'x0', or turn zero_terminal_snr off"
        )

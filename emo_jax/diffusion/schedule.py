"""The noise schedule: x_t = alpha_t x0 + sigma_t noise. One `Schedule` object serves training and sampling.

Shapes: x0, x_t, noise and predictions are (B, ...); timesteps t are int32 (B,) or (), in [0, T); t = -1 is clean data.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

BETA_SCHEDULES = ("scaled_linear", "linear")
PREDICTIONS = ("eps", "v", "x0")
SPACINGS = ("leading", "trailing", "linspace")


@flax.struct.dataclass
class Schedule:
    """Float32 tables of length T + 1, computed in float64. The last entry is clean data, so that index -1 finds it."""

    alphas: jax.Array  # (T + 1,) sqrt(alpha_bar)
    sigmas: jax.Array  # (T + 1,) sqrt(1 - alpha_bar)
    lambdas: jax.Array  # (T + 1,) log(alpha / sigma); -inf at zero SNR, +inf for clean data
    prediction: str = flax.struct.field(pytree_node=False)  # what the network puts out: 'eps', 'v' or 'x0'
    spacing: str = flax.struct.field(pytree_node=False)
    zero_terminal_snr: bool = flax.struct.field(pytree_node=False)
    min_snr_gamma: float = flax.struct.field(pytree_node=False)
    noise_offset: float = flax.struct.field(pytree_node=False)

    @property
    def train_steps(self) -> int:
        """T, the number of training timesteps."""
        return self.alphas.shape[0] - 1

    @property
    def alphas_cumprod(self) -> jax.Array:
        """alpha_bar, float32 (T,)."""
        return self.alphas[:-1] ** 2


def make_schedule(config) -> Schedule:
    """Builds the schedule from `config.diffusion` (this sub-config itself, not its parent).

    Fields: train_steps, beta_schedule, beta_start, beta_end, zero_terminal_snr, prediction, spacing, min_snr_gamma (0:
    off), noise_offset (0: off). 'scaled_linear' (linear in sqrt(beta)) with 0.00085-0.012 is Stable Diffusion's. With
    `zero_terminal_snr`, sample with 'trailing' or 'linspace' spacing: 'leading' never visits the last timestep.

    Raises: ValueError for an unknown name, a number out of range, or zero terminal SNR with prediction 'eps'.
    """
    _check("beta_schedule", config.beta_schedule, BETA_SCHEDULES)
    _check("prediction", config.prediction, PREDICTIONS)
    _check("spacing", config.spacing, SPACINGS)
    if config.zero_terminal_snr:
        _check_kind(config.prediction)
    if config.train_steps < 2:
        raise ValueError(f"diffusion.train_steps is {config.train_steps}, expected at least 2; 1000 is usual")
    if not 0 < config.beta_start <= config.beta_end < 1:
        raise ValueError(
            f"diffusion.beta_start, beta_end are {config.beta_start}, {config.beta_end}, expected "
            "0 < beta_start <= beta_end < 1; Stable Diffusion uses 0.00085 and 0.012"
        )
    for name in ("min_snr_gamma", "noise_offset"):
        if not config[name] >= 0:
            raise ValueError(f"diffusion.{name} is {config[name]}, expected a number >= 0; 0 turns it off")

    power = 0.5 if config.beta_schedule == "scaled_linear" else 1.0
    betas = np.linspace(config.beta_start**power, config.beta_end**power, config.train_steps) ** (1 / power)
    alphas = np.sqrt(np.cumprod(1 - betas))
    if config.zero_terminal_snr:  # Lin et al. 2023 (arXiv 2305.08891), Algorithm 1
        alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    alphas = np.append(alphas, 1.0)
    sigmas = np.sqrt(1 - alphas**2)
    with np.errstate(divide="ignore"):
        lambdas = np.log(alphas) - np.log(sigmas)
    return Schedule(
        *(jnp.asarray(table, jnp.float32) for table in (alphas, sigmas, lambdas)),
        prediction=config.prediction,
        spacing=config.spacing,
        zero_terminal_snr=bool(config.zero_terminal_snr),
        min_snr_gamma=float(config.min_snr_gamma),
        noise_offset=float(config.noise_offset),
    )


def coefficients(schedule: Schedule, t, x) -> tuple[jax.Array, jax.Array]:
    """(alpha_t, sigma_t), shaped to broadcast over the trailing dimensions of x (B, ...); t int32 (B,) or ()."""
    shape = jnp.shape(t) + (1,) * (x.ndim - jnp.ndim(t))
    return schedule.alphas[t].reshape(shape), schedule.sigmas[t].reshape(shape)


def draw_noise(schedule: Schedule, key, shape) -> jax.Array:
    """Training noise (B, ..., C), unit normal plus `noise_offset` times one draw per sample and channel.

    The offset is shared by all frames and pixels (Guttenberg 2023, "Diffusion with offset noise").
    """
    noise_key, offset_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, shape)
    if schedule.noise_offset:
        offset_shape = (shape[0],) + (1,) * (len(shape) - 2) + (shape[-1],)
        noise += schedule.noise_offset * jax.random.normal(offset_key, offset_shape)
    return noise


def add_noise(schedule: Schedule, x0, noise, t) -> jax.Array:
    """x_t (B, ...) = alpha_t x0 + sigma_t noise (Ho et al. 2020, eq. 4)."""
    alpha, sigma = coefficients(schedule, t, x0)
    return alpha * x0 + sigma * noise


def target(schedule: Schedule, kind: str, x0, noise, t) -> jax.Array:
    """What a network of that kind learns, (B, ...): noise, x0, or v = alpha noise - sigma x0 (Salimans & Ho 2022)."""
    _check("prediction", kind, PREDICTIONS)
    alpha, sigma = coefficients(schedule, t, x0)
    return {"eps": noise, "x0": x0, "v": alpha * noise - sigma * x0}[kind]


def convert(schedule: Schedule, prediction, x_t, t, kind: str) -> tuple[jax.Array, jax.Array]:
    """(x0, eps), each (B, ...), from a prediction of any kind at x_t (Salimans & Ho 2022, section 4).

    'v' and 'x0' are exact at zero SNR too. Raises ValueError for 'eps' on a schedule with zero terminal SNR.
    """
    _check("prediction", kind, PREDICTIONS)
    alpha, sigma = coefficients(schedule, t, x_t)
    if kind == "v":
        return alpha * x_t - sigma * prediction, sigma * x_t + alpha * prediction
    if kind == "x0":
        return prediction, (x_t - alpha * prediction) / sigma
    if schedule.zero_terminal_snr:
        _check_kind(kind)
    return (x_t - sigma * prediction) / alpha, prediction


def loss_weight(schedule: Schedule, t, kind: str, gamma: float) -> jax.Array:
    """Min-SNR weight of each sample's own loss, float32 like t (Hang et al. 2023); ones where gamma is 0.

    min(SNR, gamma) for x0, divided by SNR for eps and by SNR + 1 for v. On a schedule with zero terminal SNR the
    numerator is min(SNR + 1, gamma) (the SNR + 1 weighting of Salimans & Ho 2022): the timestep where sampling starts
    would otherwise weigh nothing and never be trained. Multiply before any mean over the batch.
    """
    _check("prediction", kind, PREDICTIONS)
    if not gamma:
        return jnp.ones(jnp.shape(t), jnp.float32)
    if schedule.zero_terminal_snr:
        _check_kind(kind)
    snr = (schedule.alphas[t] / schedule.sigmas[t]) ** 2
    clipped = jnp.minimum(snr + schedule.zero_terminal_snr, gamma)
    return clipped / {"x0": 1.0, "eps": snr, "v": snr + 1}[kind]


def timesteps(schedule: Schedule, steps: int, spacing: str) -> np.ndarray:
    """Descending sampling timesteps, int32 (steps,): Lin et al. 2023, Table 2, with the numbers of diffusers' DDIM.

    'leading' is shifted by one, as Stable Diffusion 1.5 does (steps_offset = 1), unless that would leave the schedule.
    Raises: ValueError for an unknown spacing or steps outside 1..T.
    """
    _check("spacing", spacing, SPACINGS)
    total = schedule.train_steps
    if not 1 <= steps <= total:
        raise ValueError(f"steps is {steps}, expected 1 to {total} (diffusion.train_steps)")
    if spacing == "trailing":
        ts = np.round(total - np.arange(steps) * (total / steps)) - 1
    elif spacing == "leading":
        ts = np.arange(steps)[::-1] * (total // steps)
        ts += ts[0] + 1 < total
    else:
        ts = np.linspace(0, total - 1, steps).round()[::-1]
    return ts.astype(np.int32)


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"diffusion.{name} is {value!r}, expected one of {', '.join(known)}")


def _check_kind(prediction: str) -> None:
    if prediction == "eps":
        raise ValueError(
            "diffusion.prediction is 'eps' with zero_terminal_snr, where eps says nothing about x0: "
            "use prediction 'v' or 'x0', or turn zero_terminal_snr off"
        )

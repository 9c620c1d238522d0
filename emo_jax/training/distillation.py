"""The loss of stage distill: guidance in one pass, and few steps.

The student starts as the teacher and gets the guidance scales as inputs (Meng et al. 2023, arXiv 2210.03142). It learns
what the teacher predicts with several passes of guidance. There are two targets:

    guidance     the teacher's guided prediction at the same timestep: as many steps as before, with one pass each
    consistency  the end of the teacher's trajectory, from any timestep (Luo et al. 2023, arXiv 2310.04378): few steps

Consistency distillation needs one run for all numbers of steps, where progressive distillation (Salimans & Ho 2022)
needs one for each halving. Its function is the x0 that the network's prediction means, which is defined at zero
terminal SNR, too, for predictions x0 and v. The boundary condition f(x, clean) = x holds because the last target is the
end of the trajectory itself, so that the network needs no skip connection. The target network is the student itself,
without gradient: no average of past weights is needed (Song & Dhariwal 2023, arXiv 2310.14189, Section 3.2).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from emo_jax.arrays import AnyArray
from emo_jax.diffusion import schedule as diffusion
from emo_jax.generation.guided import guidance_options, guided_denoiser, tiles_bank
from emo_jax.models.conditions import Conditions
from emo_jax.models.emo import EMO
from emo_jax.models.parts import part_of
from emo_jax.training.losses import Batch, clean_inputs, draws, mean_error
from emo_jax.training.stages import Stage

TARGETS = ("consistency", "guidance")
MODES = {"passes": "separate", "inputs": "inputs"}
"""The guidance mode of the teacher for each value of `train.distill.guidance`."""


def check(distill: ConfigDict, train_steps: int) -> None:
    """Checks `train.distill`.

    Args:
        distill: the config's `train.distill`.
        train_steps: training timesteps T.

    Raises:
        ValueError: an unknown name, or a number out of range.
    """
    for name, known in (("target", TARGETS), ("guidance", tuple(MODES))):
        if distill[name] not in known:
            raise ValueError(f"train.distill.{name} is {distill[name]!r}; expected one of {', '.join(known)}")
    if not 1 <= distill.steps <= train_steps:
        raise ValueError(f"train.distill.steps is {distill.steps}; expected 1 to {train_steps}, the training timesteps")
    for name in ("reference_scale", "audio_scale"):
        bounds = tuple(distill[name])
        if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1]:
            raise ValueError(f"train.distill.{name} is {bounds}; expected (lowest, highest), such as (1, 5)")


def teacher_of(flat: Mapping[str, Any], guidance: str) -> dict[str, Any]:
    """Returns the parameters {path: array} of a teacher that is a copy of the Backbone.

    Args:
        flat: the parameters of all networks.
        guidance: the config's `train.distill.guidance`.
    """
    own = {path: a for path, a in flat.items() if path.startswith("backbone/")}
    paths = [path for path in own if guidance == "inputs" or part_of(path) != "guidance_inputs"]
    return {f"teacher/{path.removeprefix('backbone/')}": own[path] for path in paths}


def distillation_loss(
    emo: EMO,
    schedule: diffusion.Schedule,
    stage: Stage,
    config: ConfigDict,
    sampling: ConfigDict,
    params: PyTree,
    batch: Batch,
    key: Key[Array, ""],
    timesteps: Int[Array, " batch"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, "2"]]]:
    """Computes the mean squared error between the student's prediction and its target.

    Errors are weighted as in `losses.denoising_loss`; those of x0, for the target consistency, weigh the same at all
    timesteps. No condition is dropped: the student predicts what guidance makes of them.

    Args:
        emo: the networks.
        schedule: the noise schedule.
        stage: the stage, which selects the conditions.
        config: the `train` config.
        sampling: the config's `sampling`, whose guidance options hold for the teacher.
        params: params tree, with the teacher's Backbone as the branch `teacher`.
        batch: the arrays that `data.pipeline` yields for the stage.
        key: of all draws: timesteps, noise, scales.
        timesteps: the timesteps; None: they are drawn. For consistency, they are moved to the teacher's.

    Returns:
        The loss and the metrics of `losses.denoising_loss`.
    """
    distill, keys = config.distill, draws(key)
    x0, conditions = clean_inputs(emo, stage, config, params, batch, keys["motion"])
    t = jax.random.randint(keys["timestep"], x0.shape[:1], 0, schedule.train_steps) if timesteps is None else timesteps
    t_next = t
    if distill.target == "consistency":
        t, t_next = teacher_steps(schedule, distill.steps, t)
    x_t = diffusion.add_noise(schedule, x0, diffusion.draw_noise(schedule, keys["noise"], x0.shape), t)
    scales = _draw_scales(keys["reference"], distill, len(x0))
    of_student = dataclasses.replace(conditions, scales=scales)
    prediction = emo.denoise(params, x_t, t, of_student)

    of_teacher = conditions
    if tiles_bank(sampling, MODES[distill.guidance]):
        _, of_teacher = clean_inputs(emo, stage, config, params, batch, keys["motion"], tiled=True)
    guided = guided_by_teacher(emo, schedule, distill, sampling, params, of_teacher, x_t, t, scales)
    if distill.target == "guidance":
        weight = diffusion.loss_weight(schedule, t, schedule.prediction, schedule.min_snr_gamma)
        return mean_error(prediction - guided, weight, batch, config, t, schedule.train_steps)

    clean, noise = diffusion.convert(schedule, guided, x_t, t, schedule.prediction)
    x_next = diffusion.add_noise(schedule, clean, noise, t_next)  # DDIM
    # Stopped before use: a stop behind the network would let its derivative be computed and thrown away.
    t_later = jnp.maximum(t_next, 0)
    later = emo.denoise(jax.lax.stop_gradient(params), x_next, t_later, of_student)
    later, _ = diffusion.convert(schedule, later, x_next, t_later, schedule.prediction)
    target = jnp.where(t_next[:, None, None, None, None] < 0, x_next, later)
    student, _ = diffusion.convert(schedule, prediction, x_t, t, schedule.prediction)
    weight = jnp.ones(len(x0))
    return mean_error(student - jax.lax.stop_gradient(target), weight, batch, config, t, schedule.train_steps)


def teacher_steps(
    schedule: diffusion.Schedule, steps: int, t: Int[Array, " batch"]
) -> tuple[Int[Array, " batch"], Int[Array, " batch"]]:
    """Moves timesteps to those of a sampler with this number of steps.

    Returns:
        The sampler's timesteps, and those that follow them; -1 follows the last.
    """
    ts = diffusion.timesteps(schedule, steps, schedule.spacing)
    index = steps - 1 - t * steps // schedule.train_steps
    return jnp.asarray(ts)[index], jnp.append(jnp.asarray(ts)[1:], -1)[index]


def guided_by_teacher(
    emo: EMO,
    schedule: diffusion.Schedule,
    distill: ConfigDict,
    sampling: ConfigDict,
    params: PyTree,
    conditions: Conditions,
    x_t: Float[AnyArray, "batch f h w c"],
    t: Int[Array, " batch"],
    scales: Float[Array, "batch 2"],
) -> Float[Array, "batch f h w c"]:
    """Computes the teacher's guided prediction.

    Args:
        emo: the networks.
        schedule: the noise schedule.
        distill: the config's `train.distill`.
        sampling: the config's `sampling`.
        params: params tree with the branch `teacher`.
        conditions: conditions of the batch.
        x_t: noisy latents.
        t: timesteps.
        scales: (reference_scale, audio_scale) of each sample.
    """
    mode = MODES[distill.guidance]
    options = guidance_options(sampling, schedule.train_steps)
    interval = options.pop("interval")
    if interval is not None and mode != "inputs":  # of each sample: a scale of 1 is no guidance
        inside = (interval[0] <= t) & (t <= interval[1])
        scales = jnp.where(inside[:, None], scales, 1.0)
    pair = scales[:, 0, None, None, None, None], scales[:, 1, None, None, None, None]
    networks = {"backbone": params.get("teacher", {})}
    guided = guided_denoiser(emo, networks, conditions, mode, pair, **options)(x_t, t)
    return jax.lax.stop_gradient(guided)


def _draw_scales(key: Key[Array, ""], distill: ConfigDict, size: int) -> Float[Array, "batch 2"]:
    """Draws both scales of each sample, uniform between their bounds."""
    low, high = jnp.asarray([distill.reference_scale, distill.audio_scale], jnp.float32).T
    return jax.random.uniform(key, (size, 2), minval=low, maxval=high)

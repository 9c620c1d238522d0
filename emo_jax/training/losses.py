"""The denoising loss of the three EMO stages (Section 3.3).

The losses of stage vae are in vae_losses.py, that of stage distill in distillation.py.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree
from ml_collections import ConfigDict

from emo_jax.arrays import AnyArray
from emo_jax.diffusion import schedule as diffusion
from emo_jax.models.conditions import Conditions, lip_region, mask_conditions
from emo_jax.models.emo import EMO
from emo_jax.models.frame_latents import encode_clips
from emo_jax.ops import random
from emo_jax.training.stages import Stage

Batch = Mapping[str, Array | np.ndarray]
"""The arrays of `data.pipeline.element_spec`."""


def denoising_loss(
    emo: EMO,
    schedule: diffusion.Schedule,
    stage: Stage,
    config: ConfigDict,
    params: PyTree,
    batch: Batch,
    key: Key[Array, ""],
    timesteps: Int[Array, " batch"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, "2"]]]:
    """Computes the mean squared error of the Backbone's prediction (Eq. 1).

    Errors are weighted per position (`face_weight`, `mouth_weight`), by their change over the clip (`motion_weight`)
    and per sample (min-SNR) before they are averaged.

    Args:
        emo: the networks.
        schedule: the noise schedule.
        stage: the stage, which selects the conditions.
        config: the `train` config.
        params: params tree.
        batch: the arrays that `data.pipeline` yields for the stage.
        key: of all draws: timesteps, noise, dropped conditions.
        timesteps: the timesteps; None: they are drawn.

    Returns:
        The loss, and as metrics `loss_t0`, `loss_t1`, `loss_t2`: (sum, count) per sample for each third of the
        timesteps.
    """
    keys = draws(key)
    x0, conditions = _inputs(emo, stage, config, params, batch, keys)
    t = jax.random.randint(keys["timestep"], x0.shape[:1], 0, schedule.train_steps) if timesteps is None else timesteps
    noise = diffusion.draw_noise(schedule, keys["noise"], x0.shape)
    x_t = diffusion.add_noise(schedule, x0, noise, t)
    prediction = emo.denoise(params, x_t, t, conditions)
    target = diffusion.target(schedule, schedule.prediction, x0, noise, t)
    weight = diffusion.loss_weight(schedule, t, schedule.prediction, schedule.min_snr_gamma)
    return mean_error(prediction - target, weight, batch, config, t, schedule.train_steps)


def mean_error(
    difference: Float[AnyArray, "batch f h w c"],
    weight: Float[Array, " batch"],
    batch: Batch,
    config: ConfigDict,
    t: Int[Array, " batch"],
    train_steps: int,
) -> tuple[Float[Array, ""], dict[str, Float[Array, "2"]]]:
    """Computes the weighted mean of squared errors, and the metrics of `denoising_loss`.

    Args:
        difference: prediction minus target.
        weight: of each sample.
        batch: the batch, for the face's region.
        config: the `train` config.
        t: the timesteps.
        train_steps: training timesteps T.
    """
    error = weigh_motion(difference, config.motion_weight) ** 2
    error = error * face_weights(batch["mask"], difference.shape[2:4], config.face_weight, config.mouth_weight)
    error = error.mean(axis=(1, 2, 3, 4))
    metrics = {f"loss_t{band}": _sum_and_count(error, 3 * t // train_steps == band) for band in range(3)}
    return (weight * error).mean(), metrics


def weigh_motion(error: Float[AnyArray, "batch frames h w c"], weight: float) -> Float[AnyArray, "batch frames h w c"]:
    """Scales the part of an error that changes over the clip, so that its square counts `weight` times.

    Ours: what a voice moves is a small part of a clip's error, most of which is the same in all frames. The prediction
    with the smallest loss stays the same.

    Args:
        error: prediction minus target.
        weight: of the squared deviation from the mean over the frames; 1 changes nothing.
    """
    mean = error.mean(1, keepdims=True)
    return mean + jnp.sqrt(weight) * (error - mean)


def face_weights(
    mask: Num[Array | np.ndarray, "batch height width 1"], size: tuple[int, ...], weight: float, mouth: float = 1.0
) -> Float[Array | np.ndarray, "batch 1 h w 1"]:
    """Computes how much each position of a map counts in the loss; the mean over a sample is 1.

    Ours: the paper weighs all positions alike, which is `weight` 1.

    Args:
        mask: the face's region in {0, 1}.
        size: (h, w) of the map; h divides the mask's height and w its width.
        weight: of the face's region relative to the rest.
        mouth: of the mouth's part of the face's region (`conditions.LIP_REGION`) relative to the rest of the face.
    """
    batch, (h, w) = mask.shape[0], size
    face = jnp.asarray(mask[..., 0], jnp.float32)
    weights = 1 + (weight - 1) * face
    if mouth != 1:
        weights = weights * (1 + (mouth - 1) * lip_region(face))
    weights = weights.reshape(batch, h, mask.shape[1] // h, w, mask.shape[2] // w).mean((2, 4))[:, None, :, :, None]
    return weights / weights.mean((2, 3), keepdims=True)


def drop_patches(
    key: Key[Array, ""],
    latents: Float[Array, "batch frames h w c"],
    rate: float,
    size: int,
    fill: Float[Array, "batch 1 h w c"] | float = 0.0,
) -> Float[Array, "batch frames h w c"]:
    """Replaces random patches of each frame, as Hallo2 (arXiv 2410.07718, Section 3.2) does in motion frames.

    Generated motion frames differ from the clean ones of training. A model that cannot copy them drifts less.

    Args:
        key: the random key.
        latents: latents of the frames.
        rate: share of the patches that are dropped.
        size: side of a patch, in latents.
        fill: what takes their place; zeros in Hallo2.
    """
    batch, frames, h, w, _ = latents.shape
    kept = random.bernoulli(key, 1 - rate, (batch, frames, -(-h // size), -(-w // size)))
    kept = jnp.repeat(jnp.repeat(kept, size, axis=2), size, axis=3)[:, :, :h, :w, None]
    return jnp.where(kept, latents, fill)


_DRAWS = ("timestep", "noise", "reference", "audio", "motion")


def draws(key: Key[Array, ""]) -> dict[str, Key[Array, ""]]:
    """Returns the keys of a loss's random draws by their names."""
    return dict(zip(_DRAWS, jax.random.split(key, len(_DRAWS)), strict=True))


def _inputs(
    emo: EMO, stage: Stage, config: ConfigDict, params: PyTree, batch: Batch, keys: Mapping[str, Key[Array, ""]]
) -> tuple[Float[AnyArray, "batch f h w c"], Conditions]:
    """Returns clean latents and the conditions of a batch, with conditions dropped at random."""
    x0, conditions = clean_inputs(emo, stage, config, params, batch, keys["motion"])
    size = x0.shape[:1]
    keep_both = jax.random.bernoulli(jax.random.fold_in(keys["reference"], 1), 1 - config.drop_both, size)
    keep_reference = jax.random.bernoulli(keys["reference"], 1 - config.drop_reference, size)
    keep_audio = jax.random.bernoulli(keys["audio"], 1 - config.drop_audio, size)
    return x0, mask_conditions(conditions, keep_reference & keep_both, keep_audio & keep_both)


def clean_inputs(
    emo: EMO,
    stage: Stage,
    config: ConfigDict,
    params: PyTree,
    batch: Batch,
    key: Key[Array, ""],
    tiled: bool = False,
) -> tuple[Float[AnyArray, "batch f h w c"], Conditions]:
    """Computes the clean values that the diffusion of a batch starts from, and all its conditions.

    Args:
        emo: the networks.
        stage: the stage, which selects the conditions.
        config: the `train` config.
        params: params tree.
        batch: see `denoising_loss`.
        key: of the noise of the motion frames.
        tiled: see `EMO.conditions`.
    """
    n = batch["motion"].shape[1]
    frames = jnp.concatenate([batch["motion"], batch["frames"]], axis=1)
    if frames.dtype == jnp.uint8:
        encoded = encode_clips(emo, params, batch["reference"], frames, batch.get("field"))
        reference, latents = jax.lax.stop_gradient(encoded)
    else:  # by `emo prepare latents`
        latents = jnp.concatenate([batch["reference"][:, None], frames], axis=1).astype(jnp.float32)
        reference = latents[:, :1]
    context, x0 = jnp.asarray(latents[:, : 1 + n]), latents[:, 1 + n :]
    noise = config.motion_noise * random.normal(key, context.shape)
    context = context.at[:, 1:].add(noise[:, 1:])
    motion, has_motion = context[:, 1:], batch["has_motion"]
    has_portrait = emo.config.clip.get("first_motion", "zeros") == "portrait"
    if config.motion_patch_drop:
        fill = context[:, :1] if has_portrait else 0.0
        key = jax.random.fold_in(key, 1)
        motion = drop_patches(key, motion, config.motion_patch_drop, config.motion_patch_size, fill)
    if has_portrait:
        motion = jnp.where(has_motion[:, None, None, None, None], motion, context[:, :1])
        has_motion = jnp.ones_like(has_motion)
    length, moments = batch["speed"].shape[1], batch.get("audio_moments")
    conditions = emo.conditions(
        params,
        reference=reference,
        motion=motion,
        has_motion=has_motion,
        audio=emo.audio_features(params, batch["audio"], length, moments) if stage.sound else None,
        speed=batch["speed"] if stage.speed else None,
        mask=batch["mask"],
        temporal=stage.video,
        tiled=tiled,
    )
    if "has_sound" in batch:
        conditions = mask_conditions(conditions, jnp.ones(len(x0), bool), batch["has_sound"])
    return x0, conditions


def _sum_and_count(values: Float[Array, " batch"], mask: Bool[Array, " batch"]) -> Float[Array, "2"]:
    return jnp.stack([(values * mask).mean(), mask.mean()])

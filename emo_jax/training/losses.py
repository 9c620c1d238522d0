"""The losses: the VAE's, and the denoising loss of the three EMO stages (Section 3.3)."""

import jax
import jax.numpy as jnp

from emo_jax.diffusion import schedule as diffusion
from emo_jax.models.attention import Conditions
from emo_jax.models.emo import EMO, mask_features, switch, to_float, whole


def vae_loss(emo: EMO, config, params, batch, key):
    """Reconstruction (L1 + L2) + KL of batch['frames'] (B, f, H, W, 3); returns (loss, metrics).

    Faces count `face_weight` times as much as the rest; the PSNR is that of the whole picture.
    """
    images = to_float(batch["frames"])
    variables = whole(params["vae"])
    mean, logvar = emo.vae.apply(variables, images, method="moments")
    z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    error = emo.vae.apply(variables, z, method="decode_unscaled") - images
    weight = face_weights(batch["mask"], images.shape[2:4], config.face_weight)
    l1, l2 = (jnp.abs(error) * weight).mean(), (error**2 * weight).mean()
    kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).mean()
    metrics = {"l1": l1, "psnr": -10 * jnp.log10((error**2).mean() / 4 + 1e-12), "kl": kl}
    return l1 + l2 + config.kl_weight * kl, metrics


def denoising_loss(emo: EMO, schedule, stage, config, params, batch, key):
    """Mean squared error of the Backbone's prediction, weighted per place and sample and then averaged (Eq. 1).

    Args:
        batch: what data.pipeline yields for the stage. config: the `train` config.

    Returns:
        (loss, metrics), the loss also by thirds of the timesteps: (sum, count) over the samples there, per sample.
    """
    keys = dict(zip(_DRAWS, jax.random.split(key, len(_DRAWS)), strict=True))
    x0, conditions = _inputs(emo, stage, config, params, batch, keys)
    size = x0.shape[0]
    t = jax.random.randint(keys["timestep"], (size,), 0, schedule.train_steps)
    noise = diffusion.draw_noise(schedule, keys["noise"], x0.shape)
    x_t = diffusion.add_noise(schedule, x0, noise, t)
    prediction = emo.denoise(params, x_t, t, conditions)
    target = diffusion.target(schedule, schedule.prediction, x0, noise, t)
    error = (prediction - target) ** 2 * face_weights(batch["mask"], x0.shape[2:4], config.face_weight)
    error = error.mean(axis=(1, 2, 3, 4))
    weight = diffusion.loss_weight(schedule, t, schedule.prediction, schedule.min_snr_gamma)
    metrics = {f"loss_t{band}": _sum_where(error, 3 * t // schedule.train_steps == band) for band in range(3)}
    return (weight * error).mean(), metrics


def face_weights(mask, size, weight):
    """How much each place of a map of `size` (h, w) counts: (B, 1, h, w, 1), of mean 1 in every sample.

    Args:
        mask: (B, H, W, 1) in {0, 1}, the region of the face; h divides H and w divides W.
        weight: of the face's region relative to the rest. Ours: the paper weighs all places alike, which is 1.
    """
    batch, (h, w) = mask.shape[0], size
    share = mask.astype(jnp.float32).reshape(batch, h, mask.shape[1] // h, w, mask.shape[2] // w).mean((2, 4))
    weights = 1 + (weight - 1) * share[:, None, :, :, None]
    return weights / weights.mean((2, 3), keepdims=True)


_DRAWS = ("timestep", "noise", "reference", "audio", "motion")


def _inputs(emo, stage, config, params, batch, keys):
    """Clean latents (B, f, h, w, c) and the conditions of a batch, with conditions dropped at random."""
    n, size = batch["motion"].shape[1], batch["frames"].shape[0]
    images = jnp.concatenate([batch["reference"][:, None], batch["motion"], batch["frames"]], axis=1)
    encoded = images.dtype != jnp.uint8  # by `emo prepare latents`
    latents = images.astype(jnp.float32) if encoded else jax.lax.stop_gradient(emo.encode(params, images))
    known, x0 = latents[:, : 1 + n], latents[:, 1 + n :]
    blur = config.motion_noise * jax.random.normal(keys["motion"], known.shape)
    known = known.at[:, 1:].add(blur[:, 1:])
    sees = emo.config.model.reference_attention != "off"
    features = emo.reference_features(params, known) if sees or n else None
    heard = emo.audio_features(params, batch["audio"], batch["speed"].shape[1]) if stage.sound else None
    conditions = Conditions(
        reference=_frames(features, slice(0, 1)) if sees else None,
        motion=mask_features(_frames(features, slice(1, None)), batch["has_motion"]) if n else None,
        audio=emo.audio_tokens(params, heard),
        speed=emo.speed_features(params, batch["speed"]) if stage.speed else None,
        location=emo.location(params, batch["mask"]),
        temporal=stage.video,
    )
    alone = (("reference", config.drop_reference), ("audio", config.drop_audio))
    keep = [jax.random.bernoulli(keys[name], 1 - rate, (size,)) for name, rate in alone]
    either = jax.random.bernoulli(jax.random.fold_in(keys["reference"], 1), 1 - config.drop_both, (size,))
    return x0, switch(conditions, *(kept & either for kept in keep))


def _frames(features, which):
    return jax.tree.map(lambda a: a[:, which], features)


def _sum_where(values, mask):
    return jnp.stack([(values * mask).mean(), mask.mean()])

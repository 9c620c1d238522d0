"""The losses of stage vae: of the VAE of images, and of the VAE of flow (`models.flow_vae`)."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from emo_jax.arrays import AnyArray
from emo_jax.models.emo import EMO
from emo_jax.models.flow_vae import Decoded
from emo_jax.models.placement import part_variables
from emo_jax.models.vae import to_float
from emo_jax.ops import random
from emo_jax.training.losses import Batch, face_weights

_NOISE = 0.05
"""Standard deviation of the noise that training adds to latents of flow, so that small errors in them do no harm."""
_WARPED = 0.7
"""Weight of the warped reference's error: paint must not replace flow."""
_FLOW = 0.05
"""Weight of the difference from the optical flow, in pixels. Without it, 300 steps learned no flow at all."""
_FLOW_LIMIT = 6.0
"""Largest difference from the optical flow that the loss counts, in pixels. Optical flow has errors itself."""
_PAINT = 0.3
"""Weight of the paint's error where the warped reference is wrong."""
_MASK = 0.1
"""Weight of the mask's cross-entropy with the part of the face where the warped reference is wrong. Without it, the
mask closes before there is paint worth showing, and never opens again."""


def vae_loss(
    emo: EMO, config: ConfigDict, params: PyTree, batch: Batch, key: Key[Array, ""]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes the VAE's loss: reconstruction error (L1 + L2), error of the image's gradients, and KL divergence.

    The face's region weighs `face_weight` times as much as the rest in the loss; the PSNR weighs all pixels alike.
    The gradients' error counts `gradient_weight` times: it holds edges sharp, and the seams between latents low, which
    the pixels' error hardly notices.

    Args:
        emo: the networks.
        config: the `train` config.
        params: params tree.
        batch: `frames` (B, f, H, W, 3) uint8 and `mask` (B, H, W, 1) in {0, 1}.
        key: of the draw from the posterior.

    Returns:
        The loss and the metrics l1, gradient (if it counts), psnr, kl.
    """
    if emo.uses_flow:
        return flow_loss(emo, config, params, batch, key)
    images = to_float(batch["frames"])
    vae, variables = cast(Any, emo.vae), part_variables(params["vae"])  # `apply` returns what the method returns
    mean, logvar = vae.apply(variables, images, method="moments")
    z = mean + jnp.exp(0.5 * logvar) * random.normal(key, mean.shape)
    error = vae.apply(variables, z, method="decode_unscaled") - images
    weight = face_weights(batch["mask"], images.shape[2:4], config.face_weight, config.mouth_weight)
    l1, l2 = (jnp.abs(error) * weight).mean(), (error**2 * weight).mean()
    kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).mean()
    loss = l1 + l2 + config.kl_weight * kl
    metrics = {"l1": l1, "psnr": -10 * jnp.log10((error**2).mean() / 4 + 1e-12), "kl": kl}
    if config.gradient_weight:
        metrics["gradient"] = gradient_error(error, weight)
        loss += config.gradient_weight * metrics["gradient"]
    return loss, metrics


def gradient_error(
    error: Float[Array | np.ndarray, "batch frames height width 3"],
    weight: Float[Array | np.ndarray, "batch 1 height width 1"],
) -> Float[Array, ""]:
    """Computes the L1 error of the differences between neighbouring pixels, rows and columns together.

    Args:
        error: a picture minus the true one.
        weight: of each pixel, see `face_weights`.
    """
    down = jnp.abs(error[:, :, 1:] - error[:, :, :-1]) * weight[:, :, 1:]
    right = jnp.abs(error[:, :, :, 1:] - error[:, :, :, :-1]) * weight[:, :, :, 1:]
    return down.mean() + right.mean()



def flow_loss(
    emo: EMO, config: ConfigDict, params: PyTree, batch: Batch, key: Key[Array, ""]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes the loss of a VAE of flow.

    It is the L1 error of frames at three scales, with the face's region weighed as in `vae_loss`. The warped reference
    counts by itself, the flow is held near optical flow, and paint is learned where the warped reference is wrong.

    Args:
        emo: the networks.
        config: the `train` config.
        params: params tree.
        batch: `reference` (B, H, W, 3) and `frames` (B, f, H, W, 3) uint8, `mask` (B, H, W, 1) in {0, 1}, and `flow`
            (B, f, H / cell, W / cell, 2), see `data.transforms.optical_flow`; without motion frames.
        key: of the noise on the latents.

    Returns:
        The loss and the metrics l1, warped (error of the warped reference), flow (pixels), paint, psnr, mask (share of
        paint).
    """
    vae, variables = cast(Any, emo.vae), part_variables(params["vae"])
    images, reference = to_float(batch["frames"]), to_float(batch["reference"])
    z = vae.apply(variables, images, reference, batch["flow"], method="flow_latents")
    noisy = z + _NOISE * random.normal(key, z.shape)
    made: Decoded = vae.apply(variables, noisy, reference, method="decode_flow")
    weight = face_weights(batch["mask"], images.shape[2:4], config.face_weight, config.mouth_weight)
    error, warped = made.frames - images, made.warped - images
    l1, warped_l1 = (jnp.abs(error) * weight).mean(), (jnp.abs(warped) * weight).mean()
    cell = images.shape[2] // made.flow.shape[2]
    flow = jnp.abs(made.flow - batch["flow"].astype(jnp.float32))
    flow_error = (jnp.minimum(flow, _FLOW_LIMIT) * _averaged(weight, cell)).mean()
    wrong = jax.lax.stop_gradient(jnp.clip(8 * jnp.abs(warped).max(-1, keepdims=True) - 0.5, 0, 1))
    wrong *= jnp.asarray(batch["mask"][:, None], jnp.float32)
    shares = (wrong + 0.02) * weight
    paint_error = (jnp.abs(made.paint - images) * shares).sum() / (3 * shares.sum())
    mask_error = -(wrong * jnp.log(made.mask + 1e-6) + (1 - wrong) * jnp.log(1 - made.mask + 1e-6)) * weight
    loss = l1 + _WARPED * warped_l1 + _FLOW * flow_error + _PAINT * paint_error + _MASK * mask_error.mean()
    for scale in (4, 16):
        coarse = _averaged(weight, scale)
        loss += sum((jnp.abs(_averaged(a, scale)) * coarse).mean() for a in (error, warped))
    loss += config.gradient_weight * gradient_error(error, weight) + config.kl_weight * (z**2).mean()
    psnr = -10 * jnp.log10((error**2).mean() / 4 + 1e-12)
    metrics = dict(l1=l1, warped=warped_l1, flow=flow_error, paint=paint_error, psnr=psnr, mask=made.mask.mean())
    return loss, metrics


def _averaged(a: Float[AnyArray, "batch frames height width c"], size: int) -> Float[AnyArray, "batch frames _ _ c"]:
    """Averages squares of size x size pixels."""
    batch, frames, height, width, channels = a.shape
    return a.reshape(batch, frames, height // size, size, width // size, size, channels).mean((3, 5))

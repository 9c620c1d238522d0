"""The losses of stage vae: of the VAE of images, and of the VAE of flow (`models.flow_vae`)."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from emo_jax.arrays import AnyArray
from emo_jax.models.emo import EMO
from emo_jax.models.flow_vae import WINDOW, Decoded, cut_windows, encode_field
from emo_jax.models.placement import part_variables
from emo_jax.models.vae import to_float
from emo_jax.ops import random
from emo_jax.training.losses import Batch, face_weights

_NOISE = 0.05
"""Standard deviation of the noise that training adds to latents of flow, so that small errors in them do no harm."""
_WINDOWS = 2
"""Windows of a frame: reading a frame takes longer than painting them."""
_OPEN = 300.0
"""Weight of an open mouth, relative to other cells, for the draw of windows. Mouths are mostly closed."""
_SQUARED = 10.0
"""Weight of the squared error in the windows. The inside of a mouth is little, but far from the colours of lips."""


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
    error: Float[AnyArray, "batch frames height width 3"],
    weight: Float[Array | np.ndarray, "batch 1 height width 1"] | None = None,
) -> Float[Array, ""]:
    """Computes the L1 error of the differences between neighbouring pixels, rows and columns together.

    Args:
        error: a picture minus the true one.
        weight: of each pixel, see `face_weights`; None for all alike.
    """
    weight = jnp.ones((1, 1, *error.shape[2:4], 1)) if weight is None else weight
    down = jnp.abs(error[:, :, 1:] - error[:, :, :-1]) * weight[:, :, 1:]
    right = jnp.abs(error[:, :, :, 1:] - error[:, :, :, :-1]) * weight[:, :, :, 1:]
    return down.mean() + right.mean()


def flow_loss(
    emo: EMO, config: ConfigDict, params: PyTree, batch: Batch, key: Key[Array, ""]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes the loss of a VAE of flow, whose painter alone is trained: the error of frames in windows.

    Paint is rare, and costs most of a frame. So it is learned in windows, most of them at open mouths.

    Args:
        emo: the networks.
        config: the `train` config.
        params: params tree.
        batch: `reference` (B, H, W, 3) and `frames` (B, f, H, W, 3) uint8, `mask` (B, H, W, 1) in {0, 1}, and `field`
            (B, f, H / cell, W / cell, 3), see `data.motion_fields`; without motion frames.
        key: of the noise on the latents and of the windows.

    Returns:
        The loss, and in the windows the metrics l1 and gain (PSNR of the frames minus that of the warped reference).
    """
    vae, variables = cast(Any, emo.vae), part_variables(params["vae"])
    images, reference, cell = to_float(batch["frames"]), to_float(batch["reference"]), vae.config.flow_cell
    weight = face_weights(batch["mask"], images.shape[2:4], config.face_weight, config.mouth_weight)
    noise_key, window_key = jax.random.split(key)
    wanted = _averaged(weight, cell) + _OPEN * batch["field"][..., 2:]
    windows = draw_windows(window_key, wanted, _WINDOWS)
    z = encode_field(vae.config, batch["field"])
    noisy = z + _NOISE * random.normal(noise_key, z.shape)
    made: Decoded = vae.apply(variables, noisy, reference, windows, method="decode_flow")
    inner = np.s_[:, :, 2 * cell : -2 * cell, 2 * cell : -2 * cell]  # the painter does not see beyond a window
    true, warped, frames = (a[inner] for a in (cut_windows(images, windows, cell), made.warped, made.frames))
    return _paint_loss(frames - true, warped - true, config.gradient_weight)


def draw_windows(
    key: Key[Array, ""], weight: Float[AnyArray, "batch frames rows columns 1"], count: int
) -> Int[Array, "batch _ 2"]:
    """Draws `count` windows of each frame (`flow_vae.Windows`), whose centres are cells drawn by their weight."""
    batch, frames, rows, columns, _ = weight.shape
    share = jnp.repeat(jnp.cumsum(jnp.asarray(weight).reshape(batch, frames, -1), axis=-1), count, axis=1)
    drawn = jax.random.uniform(key, (batch * frames * count,)).reshape(batch, -1, 1) * share[..., -1:]
    centre = jnp.stack(jnp.divmod((share < drawn).sum(-1), columns), axis=-1)
    last = jnp.maximum(jnp.array([rows, columns]) - WINDOW, 0)
    return jnp.clip(centre - WINDOW // 2, 0, last)


def _paint_loss(
    error: Float[AnyArray, "batch n side side 3"], without: Float[AnyArray, "batch n side side 3"], weight: float
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes the loss of the frames in windows, L1 at three scales and L2.

    Args:
        error: of the frames.
        without: of the warped reference.
        weight: of the error of the image's gradients.
    """
    l1, l2 = jnp.abs(error).mean(), (error**2).mean()
    coarse = sum(jnp.abs(_averaged(error, n)).mean() for n in (4, 14) if error.shape[2] % n == 0)
    gain = 10 * jnp.log10((without**2).mean() / l2)
    return l1 + coarse + _SQUARED * l2 + weight * gradient_error(error), {"l1": l1, "gain": gain}


def _averaged(a: Float[AnyArray, "batch frames height width c"], size: int) -> Float[AnyArray, "batch frames _ _ c"]:
    """Averages squares of size x size pixels."""
    batch, frames, height, width, channels = a.shape
    return a.reshape(batch, frames, height // size, size, width // size, size, channels).mean((3, 5))

"""Warps images by flow fields."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from emo_jax.arrays import AnyArray


def warp(
    images: Float[AnyArray, "batch height width channels"], flow: Float[AnyArray, "batch frames height width 2"]
) -> Float[Array, "batch frames height width channels"]:
    """Samples images at displaced positions, by bilinear interpolation: out(p) = image(p + flow(p)).

    Positions outside the image have the colour of its border.

    Args:
        images: one image per sample.
        flow: displacements (right, down) in pixels, of any number of frames.

    Returns:
        The warped image of each frame.
    """
    height, width, channels = images.shape[1:]
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    x = jnp.clip(columns + flow[..., 0], 0, width - 1)
    y = jnp.clip(rows + flow[..., 1], 0, height - 1)
    left, top = (jnp.clip(jnp.floor(a), 0, size - 2) for a, size in ((x, width), (y, height)))
    right_share, lower_share = (x - left)[..., None], (y - top)[..., None]
    corner = (top * width + left).astype(jnp.int32)

    def pixels(image: Array, indices: Array) -> Array:
        return image.reshape(-1, channels)[indices]

    upper_left, upper_right, lower_left, lower_right = (
        jax.vmap(pixels)(jnp.asarray(images), corner + offset) for offset in (0, 1, width, width + 1)
    )
    upper = upper_left + right_share * (upper_right - upper_left)
    lower = lower_left + right_share * (lower_right - lower_left)
    return upper + lower_share * (lower - upper)

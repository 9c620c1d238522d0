"""Keeps the head of a long video near the portrait's pose."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def towards_portrait(
    latents: Float[Array, "batch frames h w c"], share: float, flow_channels: int
) -> Float[Array, "batch frames h w c"]:
    """Moves a clip towards the portrait, by a share of its mean motion at the last frame, and less before.

    Ours. Each clip continues the motion of the one before, and errors add up: a small model bends the face more and
    more. Frames change smoothly, since the first ones are moved least, and the next clip starts from the last ones.
    What changes within a clip, such as the lips, stays.

    Args:
        latents: of a VAE of flow, whose flow is zero for the portrait.
        share: of the mean that the last frame loses.
        flow_channels: number of channels of the flow; the others stay.
    """
    frames, channels = latents.shape[1], latents.shape[-1]
    weight = share * jnp.arange(1, frames + 1) / frames
    mean = latents.mean(1, keepdims=True) * (jnp.arange(channels) < flow_channels)
    return latents - weight[:, None, None, None] * mean

"""ReferenceNet: SD's UNet without temporal, audio or speed layers, run for its features alone (Section 3.2)."""

import dataclasses

import jax.numpy as jnp

from emo_jax.models.unet import UNet, UNetConfig


def reference_net(config: UNetConfig) -> UNet:
    """The ReferenceNet beside a Backbone of the given config.

    It ends at the last feature that the Backbone uses: what lies behind is neither computed nor stored.
    """
    return UNet(
        dataclasses.replace(config, reference="off", audio=False, temporal=False, speed=False, features_only=True)
    )


def features(net: UNet, variables, latents):
    """Features {layer: (B, N, h, w, C)} of N images' clean latents (B, N, h, w, c), at timestep 0."""
    timesteps = jnp.zeros(latents.shape[0], jnp.int32)
    return net.apply(variables, latents, timesteps)[1]

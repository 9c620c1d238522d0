"""ReferenceNet: SD's UNet without temporal, audio or speed layers, run for its features only (Section 3.2)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Float

from emo_jax.arrays import AnyArray
from emo_jax.models.conditions import Conditions, Features
from emo_jax.models.unet import UNet, UNetConfig


def reference_net(backbone: UNetConfig) -> UNet:
    """Returns the ReferenceNet of a Backbone.

    It ends at the last feature that the Backbone uses: the layers behind it are neither computed nor stored.
    """
    names = "audio", "temporal", "speed", "audio_branches", "image_inputs", "guidance_inputs"
    return UNet(dataclasses.replace(backbone, reference="off", features_only=True, **dict.fromkeys(names, False)))


def features(
    net: UNet,
    variables: Any,
    latents: Float[AnyArray, "batch images height width channels"],
    face: Float[AnyArray, "batch face_images tokens features"] | None = None,
) -> Features:
    """Computes the features of images from their clean latents, at timestep 0.

    Args:
        net: the ReferenceNet.
        variables: its Flax variables.
        latents: the images' latents.
        face: tokens of the face embedding, of all images or of each; None for networks without face tokens.
    """
    module: Any = net
    return module.apply(variables, latents, jnp.zeros(latents.shape[0], jnp.int32), Conditions(face=face))[1]

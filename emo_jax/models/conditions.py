"""Conditions of the Backbone, and their null versions for condition dropout and guidance."""

import dataclasses
from typing import Any

import jax
from flax import struct
from jaxtyping import Bool, Float

from emo_jax.arrays import AnyArray

Features = dict[str, Float[AnyArray, "batch _ _ _ _"]]
"""Feature maps of ReferenceNet: {layer: (batch, images, height, width, channels)}, at each layer's resolution."""


@struct.dataclass
class Conditions:
    """Inputs of the Backbone besides the noisy latents; it skips a part that is None.

    Attributes:
        reference: features of the reference image {layer: (batch, 1, height, width, channels)}.
        motion: features of the motion frames {layer: (batch, n, height, width, channels)}.
        audio: audio tokens A_gen of each frame (batch, frames, tokens, features).
        speed: speed features of each frame (batch, frames, features).
        location: the Face Locator's map (batch, 1, height, width, channels), added to conv_in's output.
        temporal: whether temporal modules run; static. Stage 1 trains on single frames without them.
    """

    reference: Any = None
    motion: Any = None
    audio: Any = None
    speed: Any = None
    location: Any = None
    temporal: bool = struct.field(pytree_node=False, default=True)


def mask_conditions(
    conditions: Conditions, reference_on: Bool[AnyArray, " batch"], audio_on: Bool[AnyArray, " batch"]
) -> Conditions:
    """Replaces the reference features and the audio tokens of some samples by zeros, the null condition.

    Condition dropout in training and guidance in sampling use the same null condition.

    Args:
        conditions: conditions of a batch.
        reference_on: whether a sample keeps its reference features.
        audio_on: whether a sample keeps its audio tokens.
    """
    return dataclasses.replace(
        conditions,
        reference=mask_features(conditions.reference, reference_on),
        audio=None if conditions.audio is None else conditions.audio * audio_on[:, None, None, None],
    )


def mask_features(features: Features | None, on: Bool[AnyArray, " batch"]) -> Features | None:
    """Replaces the feature maps of samples whose flag is False by zeros."""
    return jax.tree.map(lambda a: a * on[:, None, None, None, None].astype(a.dtype), features)

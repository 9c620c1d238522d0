"""Conditions of the Backbone, and their null versions for condition dropout and guidance."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import reduce
from flax import struct
from jaxtyping import Bool, Float, Num

from emo_jax.arrays import AnyArray

Features = dict[str, Float[AnyArray, "batch _ _ _ _"]]
"""Feature maps of ReferenceNet: {layer: (batch, images, height, width, channels)}, at each layer's resolution."""

LATENTS = "latents"
"""Key of the latents themselves in `Conditions.reference` and `Conditions.motion`, for networks with
`model.image_inputs`: of the reference, and of the last motion frame."""

BRANCHES = ("pose", "face", "lip")
"""The branches of audio modules, in the order of the last axis of `Conditions.regions` and `branch_weights`."""


LIP_REGION = (0.12, 0.635, 0.88, 0.935)
"""Where the mouth moves (x0, y0, x1, y1), as fractions of the face box: `faces.regions` with a face box alone."""


@struct.dataclass
class Null:
    """What a sample of hallo's networks gets in place of its conditions where the reference is off.

    Attributes:
        face: tokens of a face embedding of zeros (batch, 1, tokens, features).
        motion: features of the motion frames, as `Conditions.motion`; None: those of `Conditions`.
    """

    face: Any = None
    motion: Any = None


@struct.dataclass
class Conditions:
    """Inputs of the Backbone besides the noisy latents; it skips a part that is None.

    The first samples may be missing from `reference` and `audio`: they have the null condition, which then costs next
    to nothing (`generation.guided.guided_denoiser`).

    Attributes:
        reference: features of the reference image {layer: (batch, 1, height, width, channels)}. In mode 'shared' there
            may be several images, of which frame j of f sees number (f + j) % images.
        motion: features of the motion frames {layer: (batch, n, height, width, channels)}.
        audio: audio tokens A_gen of each frame (batch, frames, tokens, features).
        speed: speed features of each frame (batch, frames, features).
        location: the Face Locator's map (batch, 1, height, width, channels), added to conv_in's output.
        face: tokens of the face embedding (batch, 1, tokens, features).
        regions: for each level of the UNet, finest first, how much each branch of audio modules counts at each place
            (batch, height, width, branches).
        branch_weights: weights of these branches (batch, branches).
        reference_on: whether a sample sees the reference (batch,); None: all do. Only with `null`.
        scales: (reference_scale, audio_scale) of each sample (batch, 2), for networks with `model.guidance_inputs`,
            whose prediction is then the guided one. None: the prediction without guidance.
        null: conditions of samples that do not; None: their features are zeros.
        temporal: whether temporal modules run; static. Stage 1 trains on single frames without them.
    """

    reference: Any = None
    motion: Any = None
    audio: Any = None
    speed: Any = None
    location: Any = None
    face: Any = None
    regions: Any = None
    branch_weights: Any = None
    reference_on: Any = None
    scales: Any = None
    null: Any = None
    temporal: bool = struct.field(pytree_node=False, default=True)


def mask_conditions(
    conditions: Conditions, reference_on: Bool[AnyArray, " batch"], audio_on: Bool[AnyArray, " batch"]
) -> Conditions:
    """Replaces the reference and the audio tokens of some samples by the null condition.

    Condition dropout in training and guidance in sampling use the same null condition: zeros; with `conditions.null`,
    self-attention without the reference, its face tokens and motion features, and a location of zeros.

    Args:
        conditions: conditions of a batch.
        reference_on: whether a sample keeps its reference.
        audio_on: whether a sample keeps its audio tokens.
    """
    null = conditions.null
    if null is None:
        conditions = dataclasses.replace(conditions, reference=mask_features(conditions.reference, reference_on))
    audio = None if conditions.audio is None else conditions.audio * audio_on[:, None, None, None]
    if null is None:
        return dataclasses.replace(conditions, audio=audio)
    on = reference_on if conditions.reference_on is None else conditions.reference_on & reference_on
    return dataclasses.replace(
        conditions,
        audio=audio,
        reference_on=on,
        face=_select(on, conditions.face, null.face),
        motion=conditions.motion if null.motion is None else _select(on, conditions.motion, null.motion),
        location=mask_features(conditions.location, on),
    )


def _select(on: Bool[AnyArray, " batch"], given: Any, null: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(on.reshape(-1, *(1,) * (a.ndim - 1)), a, b), given, null)


def mask_features(features: Any, on: Bool[AnyArray, " batch"]) -> Any:
    """Replaces the feature maps of samples whose flag is False by zeros."""
    return jax.tree.map(lambda a: a * on[:, None, None, None, None].astype(a.dtype), features)


def tiled_tokens(face: AnyArray, null: AnyArray, images: Sequence[int], n: int) -> Float[AnyArray, "batch count _ _"]:
    """Returns the face tokens of ReferenceNet's images under guidance, as hallo assigns them.

    hallo's code repeats [null, face] over the 1 + n images of the two halves of guidance, so that tokens alternate from
    image to image rather than from half to half. Its released weights are used with this code.

    Args:
        face: tokens of the face embedding (batch, 1, tokens, features).
        null: tokens of an embedding of zeros.
        images: numbers of the images: 0 for the portrait, 1 to n for the motion frames.
        n: number of motion frames.

    Returns:
        Tokens of the images of the half without conditions, then of the half with them.
    """
    numbers = [(half * (1 + n) + image) % 2 for half in range(2) for image in images]
    return jnp.concatenate([face if number else null for number in numbers], axis=1)


def regions_of_mask(
    mask: Num[AnyArray, "batch height width 1"], sizes: Sequence[tuple[int, int]]
) -> tuple[Float[AnyArray, "batch _ _ branches"], ...]:
    """Derives the regions of the audio branches from the mask of the face, where landmarks are not known (training).

    Args:
        mask: union of the clip's face boxes, in {0, 1}.
        sizes: (height, width) of each level of the UNet; they divide those of the mask.
    """
    inside = mask[..., 0].astype(jnp.float32)
    lip = lip_region(inside)
    branches = jnp.stack([1 - inside, inside - lip, lip], axis=-1)

    def pool(size: tuple[int, int]) -> AnyArray:
        return reduce(branches, "b (h p) (w q) c -> b h w c", "mean", h=size[0], w=size[1])

    return tuple(pool(size) for size in sizes)


def lip_region(inside: Float[AnyArray, "batch height width"]) -> Float[AnyArray, "batch height width"]:
    """Returns the part of a face's region, both in {0, 1}, in which the mouth moves (`LIP_REGION`)."""
    left, top, right, bottom = LIP_REGION
    columns = _between(inside.max(1), left, right)[:, None, :]
    return inside * columns * _between(inside.max(2), top, bottom)[:, :, None]


def _between(inside: Float[AnyArray, "batch length"], low: float, high: float) -> Float[AnyArray, "batch length"]:
    """Returns 1 between two fractions of the extent of the ones in a row, else 0."""
    position = (jnp.cumsum(inside, axis=1) - 0.5) / jnp.maximum(inside.sum(1, keepdims=True), 1)
    return ((low <= position) & (position <= high)).astype(jnp.float32)

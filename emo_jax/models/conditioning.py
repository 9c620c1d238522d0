"""The parts of `EMO.conditions` that run ReferenceNet and the projector of face embeddings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from emo_jax.arrays import AnyArray
from emo_jax.models.conditions import LATENTS, Conditions, Features, Null, mask_features, tiled_tokens

Params = Mapping[str, Any]


def with_null(
    emo: Any, params: Params, base: Conditions, face: Float[AnyArray, "batch embedding"] | None, *inputs: Any
) -> Conditions:
    """Returns conditions with face tokens and a null condition, if the networks have them and `base` has not.

    Args:
        emo: the networks (`models.emo.EMO`).
        params: the params tree.
        base: the conditions.
        face: identity embeddings; None: zeros.
        *inputs: the other inputs of `EMO.conditions`, which say the number of samples if `face` is None.
    """
    if base.null is not None or not (emo.face_projector or emo.config.model.reference_attention == "shared"):
        return base
    if emo.face_projector is None:
        return dataclasses.replace(base, null=Null())
    size = next((len(a) for a in (face, *inputs) if a is not None), 1)
    zeros = jnp.zeros((size, emo.config.model.face_embedding.size))
    tokens, null = (emo.apply("face_projector", params, a) for a in (zeros if face is None else face, zeros))
    return dataclasses.replace(base, face=tokens, null=Null(face=null))


def encode_images(
    emo: Any,
    params: Params,
    base: Conditions,
    reference: Float[AnyArray, "batch 1 height width reference_channels"] | None,
    motion: Float[AnyArray, "batch n height width channels"] | None,
    has_motion: Bool[AnyArray, " batch"] | None,
    tiled: bool,
) -> dict[str, Any]:
    """Returns the fields of `Conditions` that ReferenceNet computes; see `EMO.conditions` for the arguments."""
    use_reference = reference is not None and emo.config.model.reference_attention != "off"
    use_motion = motion is not None and motion.shape[1] > 0
    if not (use_reference or use_motion):
        return {}
    images, tokens = known_images(emo, reference if use_reference else None, motion if use_motion else None), base.face
    count = images.shape[1]  # of each half of guidance
    if tiled:
        n = emo.config.clip.motion_frames
        numbers = [*([0] if use_reference else []), *(range(1, n + 1) if use_motion else ())]
        tokens = tiled_tokens(base.face, base.null.face, numbers, n)
        images = jnp.concatenate([images, images], axis=1)
    features = emo.reference_features(params, images, tokens)
    encoded: dict[str, Any] = {}
    if use_reference:
        own: Any = _images(features, slice(0, None, count) if tiled else slice(0, 1))
        encoded["reference"] = own | {LATENTS: reference} if emo.backbone.config.image_inputs else own
    if use_motion and motion is not None:
        ends = range(count, images.shape[1] + 1, count)
        halves: list[Any] = [_images(features, slice(end - motion.shape[1], end)) for end in ends]
        halves = [half if has_motion is None else mask_features(half, has_motion) for half in halves]
        encoded["motion"] = halves[-1]
        if emo.backbone.config.image_inputs:
            last = motion[:, -1:] if has_motion is None else mask_features(motion[:, -1:], has_motion)
            encoded["motion"] = halves[-1] | {LATENTS: last}
        if tiled:
            encoded["null"] = dataclasses.replace(base.null, motion=halves[0])
    return encoded


def known_images(emo: Any, reference: Any, motion: Any) -> Float[AnyArray, "batch images height width channels"]:
    """Returns what ReferenceNet is given of the reference image and the motion frames, each of which may be None.

    For a `flow_vae` these are different things, in channels of their own: how the reference looks, and how it moves.
    """
    if emo.uses_flow:
        c = emo.vae.config
        sides = (0, c.frame_channels), (c.latent_channels, 0)
        images = [
            jnp.pad(image, [(0, 0)] * 4 + [side])
            for image, side in zip((reference, motion), sides, strict=True)
            if image is not None
        ]
    else:
        images = [image for image in (reference, motion) if image is not None]
    return jnp.concatenate(images, axis=1)


def _images(features: Features | None, which: slice) -> Features | None:
    return jax.tree.map(lambda a: a[:, which], features)

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
    reference: Float[AnyArray, "batch 1 height width channels"] | None,
    motion: Float[AnyArray, "batch n height width channels"] | None,
    has_motion: Bool[AnyArray, " batch"] | None,
    tiled: bool,
) -> dict[str, Any]:
    """Returns the fields of `Conditions` that ReferenceNet computes; see `EMO.conditions` for the arguments."""
    use_reference = reference is not None and emo.config.model.reference_attention != "off"
    use_motion = motion is not None and motion.shape[1] > 0
    latents: list[Any] = [a for a, used in ((reference, use_reference), (motion, use_motion)) if used]
    if not latents:
        return {}
    images, tokens = jnp.concatenate(latents, axis=1), base.face
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
        base = dataclasses.replace(base, base=reference if emo.residual_std else None)
        encoded["base"] = base.base
    if use_motion and motion is not None:
        ends = range(count, images.shape[1] + 1, count)
        halves: list[Any] = [_images(features, slice(end - motion.shape[1], end)) for end in ends]
        halves = [half if has_motion is None else mask_features(half, has_motion) for half in halves]
        encoded["motion"] = halves[-1]
        if emo.backbone.config.image_inputs:
            last = emo.to_residual(motion[:, -1:], base)
            last = last if has_motion is None else mask_features(last, has_motion)
            encoded["motion"] = halves[-1] | {LATENTS: last}
        if tiled:
            encoded["null"] = dataclasses.replace(base.null, motion=halves[0])
    return encoded


def _images(features: Features | None, which: slice) -> Features | None:
    return jax.tree.map(lambda a: a[:, which], features)

"""Latents of reference images and of frames, which differ for a VAE of flow (`flow_vae`) alone.

Without one, a frame is encoded by itself, as in the paper. With one, the latents of a frame say how the reference image
moves, and decoding them needs the reference image.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Float, Num, UInt8

from emo_jax.arrays import AnyArray
from emo_jax.models.placement import part_variables
from emo_jax.models.vae import to_float, to_uint8

Params = Mapping[str, Any]
Latents = Float[AnyArray, "batch images latent_height latent_width channels"]
Known = Float[AnyArray, "batch 1 latent_height latent_width reference_channels"]


def encode_clips(
    emo: Any,
    params: Params,
    references: Num[AnyArray, "batch height width 3"],
    frames: Num[AnyArray, "batch n height width 3"],
    field: Float[AnyArray, "batch n field_height field_width 3"] | None = None,
) -> tuple[Known, Latents]:
    """Encodes reference images and frames, uint8 or floats in [-1, 1].

    Args:
        emo: the networks (`models.emo.EMO`).
        params: the params tree.
        references: the reference images.
        frames: frames of the same people.
        field: how each frame follows from its reference, for a VAE of flow (`data.motion_fields`).

    Returns:
        The latents of the references (batch, 1, ...) that ReferenceNet is given, and the latents of all images
        (batch, 1 + n, ...), the reference first, as they are diffused.
    """
    images = jnp.concatenate([references[:, None], frames], axis=1)
    if field is not None:
        field = jnp.concatenate([emo.vae.still(references, 1), field], axis=1)
    latents = encode_frames(emo, params, images, field)
    return emo.encode(params, references)[:, None] if emo.uses_flow else latents[:, :1], latents


def encode_frames(
    emo: Any,
    params: Params,
    frames: Num[AnyArray, "batch n height width 3"],
    field: Float[AnyArray, "batch n field_height field_width 3"] | None = None,
) -> Latents:
    """Encodes frames alone; the arguments are those of `encode_clips`."""
    if not emo.uses_flow:
        return emo.encode(params, frames)
    return emo.vae.apply(part_variables(params["vae"]), field, method="encode_field")


def encode_references(
    emo: Any, params: Params, references: Num[AnyArray, "batch height width 3"]
) -> tuple[Known, Latents]:
    """Encodes reference images alone: to what ReferenceNet is given, and as frames, both (batch, 1, ...)."""
    known = emo.encode(params, references)[:, None]
    if not emo.uses_flow:
        return known, known
    return known, encode_frames(emo, params, references[:, None], emo.vae.still(references, 1))


def decode_frames(
    emo: Any, params: Params, latents: Latents, references: Num[AnyArray, "batch height width 3"] | None
) -> UInt8[AnyArray, "batch images height width 3"]:
    """Decodes the latents of frames to images; the references are needed by a VAE of flow alone."""
    if not emo.uses_flow:
        return emo.decode(params, latents)
    assert references is not None
    variables = part_variables(params["vae"])
    return to_uint8(emo.vae.apply(variables, latents, to_float(references), method="decode_frames"))

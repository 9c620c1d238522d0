"""A VAE whose latents say how a reference image moves (latent flow diffusion, Ni et al. 2023, arXiv 2303.13744).

A frame is the reference image, warped by a flow field, with new paint where the flow cannot help: inside an opening
mouth, or behind a turning head. Its latents describe flow and paint. They are similar for all people, and the reference
image keeps its detail, so that a small network learns to move faces which it has never seen.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from emo_jax.arrays import AnyArray
from emo_jax.distributed.activations import constrain
from emo_jax.models.cosine import flow_basis, inverse_flow_basis
from emo_jax.models.initializers import ZEROS
from emo_jax.models.layers import Dense, Downsample, GroupNorm, ResnetBlock, conv, fold, unfold
from emo_jax.ops.warp import warp

Frames = Float[AnyArray, "batch frames height width 3"]
Reference = Float[AnyArray, "batch height width 3"]
Maps = Float[AnyArray, "batch frames rows columns features"]
Flow = Float[AnyArray, "batch frames flow_height flow_width 2"]
"""Where each cell of (patch / 2)^2 pixels comes from, (right, down) in pixels of the image."""

_EPSILON = 1e-6
_SHOWN = -2.0
"""Logit of a new decoder's mask, which shows a tenth of its paint."""


class Decoded(NamedTuple):
    """What a `FlowDecoder` makes of each frame.

    Attributes:
        frames: the warped reference with paint where the mask is 1.
        warped: the warped reference.
        flow: where each cell comes from.
        mask: how much of the paint is seen, 0 to 1.
        paint: new colours.
    """

    frames: Frames
    warped: Frames
    flow: Flow
    mask: Float[AnyArray, "batch frames height width 1"]
    paint: Frames


class FlowEncoder(nn.Module):
    """Encodes how the reference image moves to become a frame, and what the flow does not explain.

    The first channels are a cosine transform of the optical flow. A network that had to see motion in pixels left the
    flow at zero for 300 steps, and one that was given the flow lost four fifths of it after 850; the transform loses
    7 % at 16 numbers per 32x32 pixels. The other channels are learned: they say how to paint the inside of a mouth.

    Attributes:
        config: sizes (`VAEConfig`).
    """

    config: Any

    @nn.compact
    def __call__(self, frames: Frames, reference: Reference, flow: Flow) -> Maps:
        """Returns unscaled latents of frames.

        Args:
            frames: in [-1, 1].
            reference: the image that moves, in [-1, 1].
            flow: optical flow from the frames to the reference (`data.transforms.optical_flow`).
        """
        c = self.config
        transformed = fold(flow.astype(jnp.float32), c.flow_cells) @ flow_basis(c.flow_cells, c.flow_channels)
        warped = warp(reference.astype(jnp.float32), _resize(_flow_of(c, transformed), c.flow_cell))
        embed = Dense(c.channels[0], dtype=c.dtype, name="conv_in")
        x = jnp.concatenate([embed(fold(a.astype(c.dtype), c.patch)) for a in (frames, warped)], axis=-1)
        x = constrain(x, "spatial")
        for i, width in enumerate(c.channels[1:]):
            x = Downsample(width, dtype=c.dtype, name=f"downsamplers_{i}")(x)
            for j in range(c.layers):
                x = ResnetBlock(width, c.groups, _EPSILON, c.dtype, name=f"down_blocks_{i}_resnets_{j}")(x)
        x = nn.silu(GroupNorm(c.groups, _EPSILON, c.dtype, name="conv_norm_out")(x))
        paint = conv(c.paint_channels, dtype=jnp.float32, name="conv_out")(x)
        return jnp.concatenate([transformed, paint], axis=-1)


class FlowDecoder(nn.Module):
    """Decodes latents of `FlowEncoder` and the reference image to frames.

    Attributes:
        config: sizes (`VAEConfig`).
    """

    config: Any

    @nn.compact
    def __call__(self, latents: Maps, reference: Reference) -> Decoded:
        """Returns the frames with values of about [-1, 1], and their parts."""
        c = self.config
        known = self._reference_maps(reference.astype(c.dtype))
        x = conv(c.decoder_channels[-1], dtype=c.dtype, name="conv_in")(constrain(latents.astype(c.dtype), "spatial"))
        for i, features in reversed(list(enumerate(known))):
            if x.shape[-3:-1] != features.shape[-3:-1]:
                x = _resize(x, 2)
            width = c.decoder_channels[i]
            x = conv(width, 1, dtype=c.dtype, name=f"merge_{i}")(x) + features
            for j in range(c.layers):
                x = ResnetBlock(width, c.groups, _EPSILON, c.dtype, name=f"up_blocks_{i}_resnets_{j}")(x)
        x = nn.silu(GroupNorm(c.groups, _EPSILON, c.dtype, name="flow_norm")(x))
        correction = unfold(conv(2 * 4, dtype=jnp.float32, kernel_init=ZEROS, name="flow_out")(x), 2)
        flow = _flow_of(c, latents[..., : c.flow_channels]) + correction
        warped = warp(reference.astype(jnp.float32), _resize(flow, c.flow_cell))
        mask, paint = self._paint(x, warped)
        return Decoded(warped + mask * (paint - warped), warped, flow, mask, paint)

    def _reference_maps(self, reference: AnyArray) -> list[Array]:
        """Returns feature maps (batch, 1, ...) of the reference image, finest first. All frames share them."""
        c = self.config
        maps = [Dense(c.decoder_channels[0], dtype=c.dtype, name="reference_in")(fold(reference[:, None], c.patch))]
        for i, width in enumerate(c.decoder_channels[1:]):
            x = Downsample(width, dtype=c.dtype, name=f"reference_downsamplers_{i}")(maps[-1])
            maps.append(ResnetBlock(width, c.groups, _EPSILON, c.dtype, name=f"reference_resnets_{i}")(x))
        return maps

    def _paint(self, x: Maps, warped: Frames) -> tuple[Array, AnyArray]:
        """Returns mask and paint from the decoder's features and the warped reference."""
        c, width = self.config, self.config.decoder_channels[0]
        seen = Dense(width, dtype=c.dtype, name="paint_in")(fold(warped.astype(c.dtype), c.patch))
        x = conv(width, 1, dtype=c.dtype, name="paint_merge")(x) + seen
        x = ResnetBlock(width, c.groups, _EPSILON, c.dtype, name="paint_resnet")(x)
        x = nn.silu(GroupNorm(c.groups, _EPSILON, c.dtype, name="paint_norm")(x))
        mask = unfold(conv(4, dtype=jnp.float32, kernel_init=ZEROS, name="mask_out")(x), 2)
        paint = conv(3 * c.patch**2, 1, dtype=jnp.float32, kernel_init=ZEROS, name="paint_out")(x)
        return nn.sigmoid(_resize(mask, c.flow_cell) + _SHOWN), unfold(paint, c.patch)


def _flow_of(config: Any, latents: Maps) -> Flow:
    """Returns the flow that a cosine transform of `FlowEncoder` describes."""
    return unfold(latents @ inverse_flow_basis(config.flow_cells, config.flow_channels), config.flow_cells)


def _resize(x: AnyArray, times: int) -> Array:
    """Enlarges maps by bilinear interpolation."""
    height, width = x.shape[-3:-1]
    return jax.image.resize(x, (*x.shape[:-3], times * height, times * width, x.shape[-1]), "bilinear")

"""The KL autoencoder of Stable Diffusion (Rombach et al. 2022), in diffusers' layout."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Float, Num, UInt8

from emo_jax.arrays import AnyArray
from emo_jax.distributed.activations import constrain
from emo_jax.models.attention import Attention
from emo_jax.models.cosine import COSINE_TRANSFORM, INVERSE_COSINE_TRANSFORM, scaled_cosine_basis
from emo_jax.models.flow_vae import Decoded, Field, FlowDecoder, Reference, Windows, encode_field
from emo_jax.models.initializers import ZEROS, Computed, Constant
from emo_jax.models.layers import Dense, Downsample, GroupNorm, ResnetBlock, Upsample, conv, fold, unfold

Images = Float[AnyArray, "*lead height width 3"]
Latents = Float[AnyArray, "*lead latent_height latent_width latent_channels"]
Maps = Float[AnyArray, "*lead height width channels"]

_EPSILON = 1e-6
_FLOW_SCALE = 1.375
"""Brings latents of flow of rendered people to about unit variance (measured)."""
_FLOW_CELLS = 8
"""Cells of flow per latent along each axis, of a VAE of flow."""


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes of the VAE.

    Attributes:
        channels: encoder widths, finest level first.
        decoder_channels: decoder widths, finest level first (SD: the same).
        layers: resnets per encoder level; decoder levels have one more.
        groups: groups of GroupNorm.
        latent_channels: channels of the latents.
        patch: side of the pixel squares that are folded into channels before the first convolution and unfolded after
            the last (SD: 1; the small model: 4, which makes it cheap on a CPU).
        shortcut: whether a linear map in parallel with encoder and decoder maps each square of factor x factor pixels
            to its latent and back (SD: no). It starts as a cosine transform (`cosine_basis`), so that training starts
            at the quality of a JPEG with few coefficients.
        flow_channels: channels of the latents of frames that say how the reference image moves (`flow_vae`), an even
            number. The reference image itself is encoded by a cosine transform; the first of `decoder_channels` and
            `layers` are the width and the residual blocks of `flow_vae.Painter`. 0: frames are encoded like the
            reference image (SD).
        mouth_channels: channels of the latents of frames that say where a mouth has opened.
    """

    channels: tuple[int, ...]
    decoder_channels: tuple[int, ...]
    layers: int
    groups: int
    latent_channels: int
    patch: int = 1
    shortcut: bool = False
    flow_channels: int = 0
    mouth_channels: int = 0
    dtype: Any = jnp.float32

    @property
    def factor(self) -> int:
        """Pixels per latent along each axis."""
        return self.patch * 2 ** (len(self.channels) - 1)

    @property
    def flow_cell(self) -> int:
        """Pixels per cell of flow along each axis; 0 without `flow_channels`."""
        return self.factor // _FLOW_CELLS if self.flow_channels else 0

    @property
    def flow_cells(self) -> int:
        """Cells of flow per latent along each axis."""
        return _FLOW_CELLS

    @property
    def frame_channels(self) -> int:
        """Channels of the latents of frames, which are diffused."""
        return self.flow_channels + self.mouth_channels if self.flow_channels else self.latent_channels


class _MidBlock(nn.Module):
    features: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        x = ResnetBlock(self.features, self.groups, _EPSILON, self.dtype, name="resnets_0")(x)
        x = _SelfAttention(self.groups, self.dtype, name="attentions_0")(x)
        return ResnetBlock(self.features, self.groups, _EPSILON, self.dtype, name="resnets_1")(x)


class _SelfAttention(nn.Module):
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        h = GroupNorm(self.groups, _EPSILON, self.dtype, name="group_norm")(x)
        h = rearrange(h, "... height width channels -> ... (height width) channels")
        h = Attention(1, bias=True, dtype=self.dtype, name="attn")(h)
        return x + h.reshape(x.shape)


class _Level(nn.Module):
    features: int
    layers: int
    groups: int
    resample: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Maps) -> Float[AnyArray, "*lead _ _ {self.features}"]:
        for j in range(self.layers):
            x = ResnetBlock(self.features, self.groups, _EPSILON, self.dtype, name=f"resnets_{j}")(x)
        if self.resample == "down":
            x = Downsample(self.features, True, self.dtype, name="downsamplers_0")(x)
        elif self.resample == "up":
            x = Upsample(self.features, self.dtype, name="upsamplers_0")(x)
        return x


class Encoder(nn.Module):
    """Encodes images to the mean and log variance of their latents.

    Attributes:
        config: sizes.
    """

    config: VAEConfig

    @nn.compact
    def __call__(self, images: Images) -> Latents:
        """Returns mean and log variance of images in [-1, 1], concatenated along channels."""
        c = self.config
        x = constrain(fold(images.astype(c.dtype), c.patch), "spatial")
        x = conv(c.channels[0], dtype=c.dtype, name="conv_in")(x)
        for i, width in enumerate(c.channels):
            resample = "down" if i < len(c.channels) - 1 else None
            x = _Level(width, c.layers, c.groups, resample, c.dtype, name=f"down_blocks_{i}")(x)
        x = _MidBlock(c.channels[-1], c.groups, c.dtype, name="mid_block")(x)
        x = nn.silu(GroupNorm(c.groups, _EPSILON, c.dtype, name="conv_norm_out")(x))
        return conv(2 * c.latent_channels, dtype=c.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Decodes latents to images.

    Attributes:
        config: sizes.
    """

    config: VAEConfig

    @nn.compact
    def __call__(self, latents: Latents) -> Images:
        """Returns images with values of about [-1, 1]."""
        c = self.config
        widths = c.decoder_channels[::-1]
        x = conv(widths[0], dtype=c.dtype, name="conv_in")(constrain(latents.astype(c.dtype), "spatial"))
        x = _MidBlock(widths[0], c.groups, c.dtype, name="mid_block")(x)
        for i, width in enumerate(widths):
            resample = "up" if i < len(widths) - 1 else None
            x = _Level(width, c.layers + 1, c.groups, resample, c.dtype, name=f"up_blocks_{i}")(x)
        x = nn.silu(GroupNorm(c.groups, _EPSILON, c.dtype, name="conv_norm_out")(x))
        # A new decoder is grey, or with a shortcut the cosine transform.
        x = conv(3 * c.patch**2, dtype=jnp.float32, kernel_init=ZEROS, name="conv_out")(x)
        return unfold(x, c.patch)


class VAE(nn.Module):
    """Encoder, decoder and the scale that brings latents to unit variance.

    `scaling_factor` is a parameter that no stage's optimizer updates: 0.18215 for SD, measured at the end of the VAE's
    training here. It is one number for all channels: with whitened channels, the denoising
    loss would be spent on invisible detail. With `flow_channels`, it scales the latents of frames.

    Attributes:
        config: sizes.
    """

    config: VAEConfig

    def setup(self) -> None:
        """Creates the submodules."""
        c = self.config
        if c.flow_channels:
            self.flow_decoder = FlowDecoder(c)
            self.scaling_factor = self.param("scaling_factor", Constant(_FLOW_SCALE), ())
            return
        self.decoder = Decoder(c)
        self.post_quant_conv = conv(c.latent_channels, 1, dtype=c.dtype)
        self.scaling_factor = self.param("scaling_factor", Constant(0.18215), ())
        pixels = 3 * c.factor**2
        self.encoder = Encoder(c)
        self.quant_conv = conv(2 * c.latent_channels, 1, dtype=c.dtype, kernel_init=ZEROS, bias_init=NARROW_POSTERIOR)
        if c.shortcut:
            self.shortcut_in = Dense(c.latent_channels, dtype=c.dtype, kernel_init=COSINE_TRANSFORM)
            self.shortcut_out = Dense(pixels, dtype=c.dtype, kernel_init=INVERSE_COSINE_TRANSFORM)

    def moments(self, images: Images) -> tuple[Latents, Latents]:
        """Computes the mean and log variance of q(z | x), unscaled, from images in [-1, 1]."""
        mean, logvar = jnp.split(self.quant_conv(self.encoder(images)).astype(jnp.float32), 2, axis=-1)
        if self.config.shortcut:
            mean = mean + self.shortcut_in(fold(images, self.config.factor)).astype(jnp.float32)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def encode(self, images: Images) -> Latents:
        """Encodes images in [-1, 1] to the mean of q(z | x), or by the cosine transform, of about unit variance."""
        if self.config.flow_channels:
            basis = scaled_cosine_basis(self.config.factor, self.config.latent_channels)
            return fold(jnp.asarray(images, jnp.float32), self.config.factor) @ basis
        return self.moments(images)[0] * self.scaling_factor

    def encode_field(self, field: Field) -> Latents:
        """Encodes how the reference image moves to become each frame, see `data.motion_fields`."""
        return encode_field(self.config, field) * self.scaling_factor

    def decode_frames(self, latents: Latents, reference: Reference) -> Images:
        """Decodes what `encode_field` returns."""
        return self.decode_flow(latents / self.scaling_factor, reference).frames

    def decode_flow(self, z: Latents, reference: Reference, windows: Windows | None = None) -> Decoded:
        """Decodes unscaled latents of frames to frames and fields, see `FlowDecoder`."""
        return self.flow_decoder(z, reference, windows)

    def decode(self, latents: Latents) -> Images:
        """Decodes scaled latents to images with values of about [-1, 1]."""
        return self.decode_unscaled(latents / self.scaling_factor)

    def decode_unscaled(self, z: Latents) -> Images:
        """Decodes unscaled latents, as q(z | x) gives them."""
        images = self.decoder(self.post_quant_conv(z))
        if self.config.shortcut:
            images = images + unfold(self.shortcut_out(z).astype(jnp.float32), self.config.factor)
        return images

    def still(self, reference: Num[AnyArray, "batch height width 3"], frames: int) -> Field:
        """Returns the field of frames that are the reference image itself, zeros."""
        batch, height, width, _ = reference.shape
        cell = self.config.flow_cell
        return jnp.zeros((batch, frames, height // cell, width // cell, 3))

    def __call__(self, images: Images) -> Images:
        """Encodes and decodes images (frames of themselves as the reference, with `flow_channels`)."""
        if self.config.flow_channels:
            latents = self.encode_field(self.still(images, 1))
            return self.decode_frames(latents, images)[:, 0]
        return self.decode(self.encode(images))


_NARROW = -8.0
"""Log variance of new posteriors. At -5 the noise of the posterior alone would limit a cosine transform to 31 dB."""


def _narrow_posterior(shape: tuple[int, ...]) -> np.ndarray:
    return np.repeat(np.array([0, _NARROW], np.float32), shape[0] // 2)


NARROW_POSTERIOR = Computed(_narrow_posterior)
"""Bias of mean 0 and a small log variance."""


def to_float(images: Num[AnyArray, "*shape"]) -> Float[AnyArray, "*shape"]:
    """Converts uint8 images to floats in [-1, 1]; floats are returned unchanged."""
    return images.astype(jnp.float32) / 127.5 - 1 if images.dtype == jnp.uint8 else images


def to_uint8(images: Float[AnyArray, "*shape"]) -> UInt8[AnyArray, "*shape"]:
    """Converts float images in [-1, 1] to uint8, rounded and clipped."""
    return jnp.round(jnp.clip((images + 1) * 127.5, 0, 255)).astype(jnp.uint8)

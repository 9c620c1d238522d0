"""The KL autoencoder of Stable Diffusion (Rombach et al. 2022), in diffusers' layout."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from emo_jax.distributed.activations import constrain
from emo_jax.models.attention import Attention
from emo_jax.models.layers import Downsample, GroupNorm, ResnetBlock, Upsample, conv, fold, unfold

_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes of the VAE.

    Attributes:
        channels: encoder widths, finest level first; decoder_channels: the decoder's (SD: the same).
        layers: resnets per encoder level (the decoder has one more). groups: of GroupNorm.
        latent_channels: of the latent. patch: side of the pixel squares folded into channels before the first
            convolution and unfolded behind the last (SD: 1; the small model: 4, which makes it cheap on a CPU).
        shortcut: a linear map beside encoder and decoder, from each square of factor x factor pixels to its latent
            and back (SD: none). It starts as a cosine transform (`cosine_basis`), so that training starts at the
            quality of a JPEG of few coefficients instead of at nothing.
    """

    channels: tuple[int, ...]
    decoder_channels: tuple[int, ...]
    layers: int
    groups: int
    latent_channels: int
    patch: int = 1
    shortcut: bool = False
    dtype: Any = jnp.float32

    @property
    def factor(self):
        """Pixels per latent, along each axis."""
        return self.patch * 2 ** (len(self.channels) - 1)


class _MidBlock(nn.Module):
    features: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        x = ResnetBlock(self.features, self.groups, _EPSILON, self.dtype, name="resnets_0")(x)
        x = _SelfAttention(self.groups, self.dtype, name="attentions_0")(x)
        return ResnetBlock(self.features, self.groups, _EPSILON, self.dtype, name="resnets_1")(x)


class _SelfAttention(nn.Module):
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        h = GroupNorm(self.groups, _EPSILON, self.dtype, name="group_norm")(x)
        h = h.reshape(*x.shape[:-3], -1, x.shape[-1])
        h = Attention(1, bias=True, dtype=self.dtype, name="attn")(h)
        return x + h.reshape(x.shape)


class _Level(nn.Module):
    features: int
    layers: int
    groups: int
    resample: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x):
        for j in range(self.layers):
            x = ResnetBlock(self.features, self.groups, _EPSILON, self.dtype, name=f"resnets_{j}")(x)
        if self.resample == "down":
            x = Downsample(self.features, True, self.dtype, name="downsamplers_0")(x)
        elif self.resample == "up":
            x = Upsample(self.features, self.dtype, name="upsamplers_0")(x)
        return x


class Encoder(nn.Module):
    """Images (..., H, W, 3) in [-1, 1] -> mean and log variance, concatenated: (..., h, w, 2c)."""

    config: VAEConfig

    @nn.compact
    def __call__(self, images):
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
    """Latents (..., h, w, c) -> images (..., H, W, 3), about [-1, 1]."""

    config: VAEConfig

    @nn.compact
    def __call__(self, latents):
        c = self.config
        widths = c.decoder_channels[::-1]
        x = conv(widths[0], dtype=c.dtype, name="conv_in")(constrain(latents.astype(c.dtype), "spatial"))
        x = _MidBlock(widths[0], c.groups, c.dtype, name="mid_block")(x)
        for i, width in enumerate(widths):
            resample = "up" if i < len(widths) - 1 else None
            x = _Level(width, c.layers + 1, c.groups, resample, c.dtype, name=f"up_blocks_{i}")(x)
        x = nn.silu(GroupNorm(c.groups, _EPSILON, c.dtype, name="conv_norm_out")(x))
        return unfold(conv(3 * c.patch**2, dtype=jnp.float32, name="conv_out")(x), c.patch)


class VAE(nn.Module):
    """Encoder, decoder and the scale that brings latents to unit variance.

    `scaling_factor` is a number that travels with the weights: 0.18215 for SD, measured at the end of the VAE's own
    training here; no stage's optimizer touches it. One number for all channels: whitened ones would make the denoising
    loss spend itself on detail that nobody sees.
    """

    config: VAEConfig

    def setup(self):
        c = self.config
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        self.quant_conv = conv(2 * c.latent_channels, 1, dtype=c.dtype)
        self.post_quant_conv = conv(c.latent_channels, 1, dtype=c.dtype)
        self.scaling_factor = self.param("scaling_factor", nn.initializers.constant(0.18215), ())
        if c.shortcut:
            self.shortcut_in = nn.Dense(c.latent_channels, dtype=c.dtype)
            self.shortcut_out = nn.Dense(3 * c.factor**2, dtype=c.dtype)

    def moments(self, images):
        """Mean and log variance of q(z | x), each (..., h, w, c), unscaled, from images (..., H, W, 3)."""
        mean, logvar = jnp.split(self.quant_conv(self.encoder(images)).astype(jnp.float32), 2, axis=-1)
        if self.config.shortcut:
            mean = mean + self.shortcut_in(fold(images, self.config.factor)).astype(jnp.float32)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def encode(self, images):
        """The mean of q(z | x), scaled to about unit variance: (..., H, W, 3) -> (..., h, w, c)."""
        return self.moments(images)[0] * self.scaling_factor

    def decode(self, latents):
        """Images (..., H, W, 3), about [-1, 1], from scaled latents (..., h, w, c)."""
        return self.decode_unscaled(latents / self.scaling_factor)

    def decode_unscaled(self, z):
        """Images from z as q(z | x) has it."""
        images = self.decoder(self.post_quant_conv(z))
        if self.config.shortcut:
            images = images + unfold(self.shortcut_out(z).astype(jnp.float32), self.config.factor)
        return images

    def __call__(self, images):
        return self.decode(self.encode(images))


def cosine_basis(factor, channels):
    """Orthonormal transform of factor x factor RGB squares to `channels` numbers: (3 * factor ** 2, channels).

    Products of a colour axis (luma, two chroma) and a two-dimensional cosine, lowest frequencies first; chroma gets
    a quarter of luma's share, as in JPEG.
    """
    steps = (np.arange(factor) + 0.5) * np.pi / factor
    colours = np.linalg.qr(np.array([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]]).T)[0].T
    waves = sorted(
        ((u * u + v * v) * (1 if colour == 0 else 4) + 3 * (colour > 0), colour, u, v)
        for colour in range(3)
        for u in range(factor)
        for v in range(factor)
    )
    basis = [
        np.cos(u * steps)[:, None, None] * np.cos(v * steps)[:, None] * colours[colour]
        for _, colour, u, v in waves[:channels]
    ]
    basis = np.stack([b.ravel() / np.linalg.norm(b) for b in basis], axis=1)
    return (basis / np.sqrt(factor)).astype(np.float32)

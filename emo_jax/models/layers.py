"""Blocks shared by the UNets and the VAE; names follow diffusers' paths."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from emo_jax.distributed.activations import gathered_rows, per_frame
from emo_jax.ops.conv import convolve


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) of (..., H, W, C) over H, W and the channels of a group.

    Written as per-channel sums and one affine map, which XLA turns into a single pass over the input.
    """

    groups: int = 32
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        y = x.astype(jnp.float32)
        mean, square = (a.mean(axis=(-3, -2)) for a in (y, y * y))
        mean, square = (self._over_group(a) for a in (mean, square))
        factor = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + self.epsilon) * scale
        offset = bias - mean * factor
        return (y * factor[..., None, None, :] + offset[..., None, None, :]).astype(self.dtype)

    def _over_group(self, a):
        grouped = a.reshape(*a.shape[:-1], self.groups, -1)
        mean = grouped.mean(axis=-1, keepdims=True)
        return jnp.broadcast_to(mean, grouped.shape).reshape(a.shape)


class Conv(nn.Module):
    """A square convolution over (..., H, W, C), with the parameters of flax.linen.Conv.

    That one would fold samples and frames into one axis before the mesh can split them.
    """

    features: int
    kernel: int
    stride: int
    padding: tuple
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))

        def apply(x, kernel):
            flat = x.reshape(-1, *x.shape[-3:])
            y = convolve(flat, kernel, (self.stride,) * 2, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return y.reshape(*x.shape[:-3], *y.shape[1:])

        return per_frame(apply, x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


def conv(features, kernel=3, stride=1, padding=None, *, dtype=jnp.float32, name=None):
    """A Conv whose padding, where none is given, keeps H and W."""
    padding = ((kernel // 2, kernel // 2),) * 2 if padding is None else padding
    return Conv(features, kernel, stride, padding, dtype, name=name)


class ResnetBlock(nn.Module):
    """Residual block of SD's UNet and VAE: (norm, SiLU, conv) twice, with the timestep added in between.

    Maps x (..., H, W, C) and the optional embedding temb, broadcastable to (..., E), to (..., H, W, features).
    """

    features: int
    groups: int = 32
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, temb=None):
        h = nn.silu(GroupNorm(self.groups, self.epsilon, self.dtype, name="norm1")(x))
        h = conv(self.features, dtype=self.dtype, name="conv1")(h)
        if temb is not None:
            shift = nn.Dense(self.features, dtype=self.dtype, name="time_emb_proj")(gathered_rows(nn.silu(temb)))
            h = h + gathered_rows(shift)[..., None, None, :]
        h = nn.silu(GroupNorm(self.groups, self.epsilon, self.dtype, name="norm2")(h))
        h = conv(self.features, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class Downsample(nn.Module):
    """Halves H and W. `asymmetric` pads below and to the right only, as SD's VAE does."""

    features: int
    asymmetric: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        padding = ((0, 1), (0, 1)) if self.asymmetric else None
        return conv(self.features, stride=2, padding=padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Doubles H and W by nearest neighbour, then convolves."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = jnp.repeat(jnp.repeat(x, 2, axis=-3), 2, axis=-2)
        return conv(self.features, dtype=self.dtype, name="conv")(x)


def fold(x, p):
    """Squares of p x p pixels into channels: (..., H, W, C) -> (..., H / p, W / p, p * p * C)."""
    *lead, height, width, channels = x.shape
    x = x.reshape(*lead, height // p, p, width // p, p, channels)
    return jnp.moveaxis(x, -4, -3).reshape(*lead, height // p, width // p, p * p * channels)


def unfold(x, p):
    """The inverse of `fold`: (..., h, w, p * p * C) -> (..., h * p, w * p, C)."""
    *lead, height, width, _ = x.shape
    x = jnp.moveaxis(x.reshape(*lead, height, width, p, p, -1), -3, -4)
    return x.reshape(*lead, height * p, width * p, x.shape[-1])


def sinusoid(positions, features, max_period=10_000.0):
    """Sinusoidal embedding in SD's order, cosines first: (...,) -> (..., features), float32."""
    half = features // 2
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def grid_positions(height, width, features):
    """Places of a grid for attention, rows before columns: (height * width, features), of mean square 1.

    Half of the features tell the row, half the column, as sinusoids of periods from 4 to 128 places.
    """
    rates = 2 * jnp.pi / jnp.geomspace(4, 128, features // 4)
    rows, columns = (jnp.arange(n)[:, None] * rates for n in (height, width))
    rows, columns = (jnp.concatenate([jnp.sin(a), jnp.cos(a)], axis=-1) for a in (rows, columns))
    shape = (height, width, features // 2)
    grid = [jnp.broadcast_to(rows[:, None], shape), jnp.broadcast_to(columns[None], shape)]
    return 2**0.5 * jnp.concatenate(grid, axis=-1).reshape(height * width, features)


class TimestepEmbedding(nn.Module):
    """Timesteps (...,) to embeddings (..., 4 * features) by a two-layer network on the sinusoid."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, timesteps):
        h = gathered_rows(sinusoid(timesteps, self.features).astype(self.dtype))
        h = nn.Dense(4 * self.features, dtype=self.dtype, name="linear_1")(h)
        return gathered_rows(nn.Dense(4 * self.features, dtype=self.dtype, name="linear_2")(nn.silu(h)))

"""Layers shared by the UNets and the VAE; names follow diffusers' paths."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Float, Num

from emo_jax.arrays import AnyArray
from emo_jax.distributed.activations import gathered_rows, per_frame
from emo_jax.models.initializers import FAN_IN_NORMAL, ONES, ZEROS, Initializer
from emo_jax.ops.conv import convolve

Padding = tuple[tuple[int, int], tuple[int, int]]
"""(before, after) along height and width."""


Dense = functools.partial(nn.Dense, kernel_init=FAN_IN_NORMAL, bias_init=ZEROS)
"""`flax.linen.Dense` with the initialisers of `models.initializers`."""

LayerNorm = functools.partial(nn.LayerNorm, scale_init=ONES, bias_init=ZEROS)
"""`flax.linen.LayerNorm` with the initialisers of `models.initializers`."""


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) over height, width and the channels of a group.

    It is written as per-channel sums and one affine map, which XLA turns into a single pass over the input.
    """

    groups: int = 32
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "*lead height width channels"]
    ) -> Float[AnyArray, "*lead height width channels"]:
        """Normalises each map; the statistics are computed in float32."""
        channels = x.shape[-1]
        scale = self.param("scale", ONES, (channels,))
        bias = self.param("bias", ZEROS, (channels,))
        y = x.astype(jnp.float32)
        mean, square = (a.mean(axis=(-3, -2)) for a in (y, y * y))
        mean, square = (self._group_mean(a) for a in (mean, square))
        factor = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + self.epsilon) * scale
        offset = bias - mean * factor
        return (y * factor[..., None, None, :] + offset[..., None, None, :]).astype(self.dtype)

    def _group_mean(self, a: AnyArray) -> AnyArray:
        grouped = a.reshape(*a.shape[:-1], self.groups, -1)
        mean = grouped.mean(axis=-1, keepdims=True)
        return jnp.broadcast_to(mean, grouped.shape).reshape(a.shape)


class Conv(nn.Module):
    """A square convolution with the parameters of `flax.linen.Conv`, which would fold samples and frames into one axis.

    Folded before the mesh splits them, samples and frames would be gathered on every device.

    Attributes:
        features: output channels.
        kernel: side of the kernel.
        stride: along height and width.
        padding: (before, after) along height and width.
        kernel_init: initialiser of the kernel.
        bias_init: initialiser of the bias.
    """

    features: int
    kernel: int
    stride: int
    padding: Padding
    dtype: Any = jnp.float32
    kernel_init: Initializer = FAN_IN_NORMAL
    bias_init: Initializer = ZEROS

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "*lead height width channels"]
    ) -> Float[AnyArray, "*lead out_height out_width {self.features}"]:
        """Convolves each map."""
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", self.bias_init, (self.features,))

        def apply(x: AnyArray, kernel: AnyArray) -> AnyArray:
            flat = x.reshape(-1, *x.shape[-3:])
            y = convolve(flat, kernel, (self.stride,) * 2, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return y.reshape(*x.shape[:-3], *y.shape[1:])

        return per_frame(apply, x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


def conv(
    features: int,
    kernel: int = 3,
    stride: int = 1,
    padding: Padding | None = None,
    *,
    dtype: Any = jnp.float32,
    name: str | None = None,
    **inits: Any,
) -> Conv:
    """Returns a `Conv`; its default padding keeps height and width at stride 1."""
    same = (kernel // 2, kernel // 2)
    return Conv(features, kernel, stride, padding or (same, same), dtype, name=name, **inits)


class ResnetBlock(nn.Module):
    """Residual block of SD's UNet and VAE: norm, SiLU and convolution twice, with the timestep added in between.

    Attributes:
        features: output channels.
        groups: groups of GroupNorm.
        epsilon: of GroupNorm.
    """

    features: int
    groups: int = 32
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "*lead height width channels"], temb: Float[AnyArray, "*time embedding"] | None = None
    ) -> Float[AnyArray, "*lead height width {self.features}"]:
        """Computes the block.

        Args:
            x: input maps.
            temb: timestep embedding, whose leading axes broadcast to those of x.
        """
        h = nn.silu(GroupNorm(self.groups, self.epsilon, self.dtype, name="norm1")(x))
        h = conv(self.features, dtype=self.dtype, name="conv1")(h)
        if temb is not None:
            shift = Dense(self.features, dtype=self.dtype, name="time_emb_proj")(gathered_rows(nn.silu(temb)))
            h = h + gathered_rows(shift)[..., None, None, :]
        h = nn.silu(GroupNorm(self.groups, self.epsilon, self.dtype, name="norm2")(h))
        h = conv(self.features, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class Downsample(nn.Module):
    """Halves height and width by a strided convolution.

    Attributes:
        features: output channels.
        asymmetric: whether to pad at the bottom and right only, as SD's VAE does.
    """

    features: int
    asymmetric: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "*lead height width channels"]
    ) -> Float[AnyArray, "*lead out_height out_width {self.features}"]:
        """Downsamples each map."""
        padding = ((0, 1), (0, 1)) if self.asymmetric else None
        return conv(self.features, stride=2, padding=padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Doubles height and width by nearest-neighbour interpolation, followed by a convolution.

    Attributes:
        features: output channels.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "*lead height width channels"]
    ) -> Float[AnyArray, "*lead out_height out_width {self.features}"]:
        """Upsamples each map."""
        x = jnp.repeat(jnp.repeat(x, 2, axis=-3), 2, axis=-2)
        return conv(self.features, dtype=self.dtype, name="conv")(x)


def fold(x: Float[AnyArray, "*lead height width channels"], p: int) -> Float[AnyArray, "*lead rows columns features"]:
    """Folds squares of p x p pixels into channels: (..., H, W, C) -> (..., H / p, W / p, p * p * C)."""
    return rearrange(x, "... (rows p) (columns q) channels -> ... rows columns (p q channels)", p=p, q=p)


def unfold(x: Float[AnyArray, "*lead rows columns features"], p: int) -> Float[AnyArray, "*lead height width channels"]:
    """Inverts `fold`: (..., h, w, p * p * C) -> (..., h * p, w * p, C)."""
    return rearrange(x, "... rows columns (p q channels) -> ... (rows p) (columns q) channels", p=p, q=p)


def gather_window(x: Float[AnyArray, "batch window_frames size"], m: int) -> Float[AnyArray, "batch frames features"]:
    """Concatenates each frame with m neighbours on either side, as in A_gen and S^f.

    Args:
        x: (batch, frames + 2 m, size).
        m: number of neighbours on either side.

    Returns:
        (batch, frames, (2 m + 1) * size).
    """
    frames = x.shape[1] - 2 * m
    return jnp.concatenate([x[:, i : i + frames] for i in range(2 * m + 1)], axis=-1)


def sinusoid(
    positions: Num[AnyArray, "*lead"], features: int, max_period: float = 10_000.0
) -> Float[AnyArray, "*lead {features}"]:
    """Computes sinusoidal embeddings in SD's order, cosines first."""
    half = features // 2
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def grid_positions(height: int, width: int, features: int) -> Float[AnyArray, "{height}*{width} {features}"]:
    """Computes positional encodings of the places of a map, row by row, with mean square 1.

    The first half of the features encodes the row and the second half the column, as sinusoids with periods from 4 to
    128 places.
    """
    rates = 2 * jnp.pi / jnp.geomspace(4, 128, features // 4)
    rows, columns = (jnp.arange(n)[:, None] * rates for n in (height, width))
    rows, columns = (jnp.concatenate([jnp.sin(a), jnp.cos(a)], axis=-1) for a in (rows, columns))
    shape = (height, width, features // 2)
    grid = [jnp.broadcast_to(rows[:, None], shape), jnp.broadcast_to(columns[None], shape)]
    return 2**0.5 * rearrange(jnp.concatenate(grid, axis=-1), "rows columns d -> (rows columns) d")


class GuidanceEmbedding(nn.Module):
    """Embeds guidance scales as an addition to the embedding of timesteps (Meng et al. 2023, Section 3.1).

    Its output is zero until it is trained.

    Attributes:
        features: size of the sinusoidal embedding of a scale; the result has 4 * features.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, scales: Num[AnyArray, "batch count"]) -> Float[AnyArray, "batch embedding"]:
        """Embeds the scales of each sample together."""
        # Scales differ by tenths, timesteps, for which the sinusoids are made, by ones.
        h = sinusoid(100 * scales, self.features).reshape(len(scales), -1)
        h = Dense(4 * self.features, dtype=self.dtype, name="linear_1")(gathered_rows(h.astype(self.dtype)))
        output = Dense(4 * self.features, dtype=self.dtype, kernel_init=ZEROS, name="linear_2")
        return gathered_rows(output(nn.silu(h)))


class TimestepEmbedding(nn.Module):
    """Embeds timesteps by a two-layer network on their sinusoidal embedding.

    Attributes:
        features: size of the sinusoidal embedding; the result has 4 * features.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, timesteps: Num[AnyArray, "*lead"]) -> Float[AnyArray, "*lead embedding"]:
        """Embeds timesteps."""
        h = gathered_rows(sinusoid(timesteps, self.features).astype(self.dtype))
        h = Dense(4 * self.features, dtype=self.dtype, name="linear_1")(h)
        return gathered_rows(Dense(4 * self.features, dtype=self.dtype, name="linear_2")(nn.silu(h)))

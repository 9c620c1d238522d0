"""wav2vec 2.0 (Baevski et al. 2020) with all its hidden states; names follow transformers' paths."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Float, Int

from emo_jax.arrays import AnyArray
from emo_jax.models.initializers import FAN_IN_NORMAL, ONES, ZEROS
from emo_jax.models.layers import Dense, LayerNorm

States = Float[AnyArray, "batch time size"]
Taps = tuple[Int[AnyArray, " steps"], Float[AnyArray, " steps"]]
"""Positions on a time axis: the steps below them, and the shares of the steps above."""


def taps_at(positions: Float[np.ndarray, " steps"]) -> Taps:
    """Returns the taps of fractional positions of at least 0."""
    below = positions.astype(np.int32)
    return below, (positions - below).astype(np.float32)


def interpolate_at(states: Float[AnyArray, "batch time *size"], taps: Taps) -> Float[AnyArray, "batch steps *size"]:
    """Interpolates states linearly at positions on the time axis; the end is held."""
    below, share = taps
    share = share.reshape(-1, *(1,) * (states.ndim - 2))
    above = below + (below < states.shape[1] - 1)
    return states[:, below] * (1 - share) + states[:, above] * share


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config:
    """Sizes by transformers' names; the defaults are those of wav2vec2-base.

    Attributes:
        hidden_size: width of the encoder.
        num_hidden_layers: layers of the encoder.
        num_attention_heads: heads of each layer.
        intermediate_size: inner features of each feed-forward network.
        layer_norm_eps: epsilon of the encoder's norms.
        feat_extract_norm: "group" normalises the output of the first convolution over time (base), "layer" that of
            every convolution over channels (large).
        conv_dim: width of each convolution of the feature extractor.
        conv_stride: stride of each convolution.
        conv_kernel: kernel size of each convolution.
        conv_bias: whether convolutions have biases.
        num_conv_pos_embeddings: kernel size of the positional convolution.
        num_conv_pos_embedding_groups: groups of the positional convolution.
        do_stable_layer_norm: whether norms come before attention and feed-forward network (large) or after (base).
        do_normalize: as in transformers' feature extractor: whether the input must have mean 0 and variance 1.

    Raises:
        ValueError: sizes do not fit together.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-5
    feat_extract_norm: str = "group"
    conv_dim: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    do_stable_layer_norm: bool = False
    do_normalize: bool = True
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.feat_extract_norm not in ("group", "layer"):
            raise ValueError(f"wav2vec2.feat_extract_norm is {self.feat_extract_norm!r}; expected 'group' or 'layer'")
        if not len(self.conv_dim) == len(self.conv_stride) == len(self.conv_kernel) > 0:
            lengths = f"{len(self.conv_dim)}, {len(self.conv_stride)} and {len(self.conv_kernel)}"
            raise ValueError(
                f"wav2vec2.conv_dim, conv_stride and conv_kernel have {lengths} entries; expected one per layer in each"
            )
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if self.hidden_size % getattr(self, name):
                raise ValueError(f"wav2vec2.{name} is {getattr(self, name)}; expected a divisor of {self.hidden_size}")

    @property
    def stride(self) -> int:
        """Samples between two outputs: 320, which is 20 ms."""
        return math.prod(self.conv_stride)

    @property
    def field(self) -> int:
        """Receptive field of the convolutions in samples: 400. That of output j starts at sample `stride * j`."""
        layers = reversed(list(zip(self.conv_kernel, self.conv_stride, strict=True)))
        return functools.reduce(lambda size, layer: (size - 1) * layer[1] + layer[0], layers, 1)

    def length(self, samples: Any) -> Any:
        """Returns the number of outputs for a number of samples, an int or an array."""
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples


class Wav2Vec2(nn.Module):
    """Maps sound at 16 kHz to hidden states, 50 per second.

    Attributes:
        config: sizes.
    """

    config: Wav2Vec2Config

    @nn.compact
    def __call__(
        self,
        audio: Float[AnyArray, "batch samples"],
        lengths: Int[AnyArray, " batch"] | None = None,
        moment_frames: Float[AnyArray, "batch count kernel"] | None = None,
        taps: Taps | None = None,
    ) -> tuple[tuple[States, ...], States]:
        """Computes transformers' Wav2Vec2Model(audio, attention_mask, output_hidden_states=True).

        Args:
            audio: waveforms at 16 kHz, padded with zeros.
            lengths: unpadded samples of each waveform, the sums of attention_mask; with `taps`, steps that are not
                padding. None for no mask.
            moment_frames: frames of conv_kernel[0] samples from which group norm takes mean and variance
                (`audio_encoder.moment_frames`), if `audio` is a window of a longer recording; None: from `audio`,
                padding included.
            taps: positions on the time axis of the convolutions' outputs at which these are interpolated before the
                transformer, which then runs at that rate (hallo: that of the video); None: at all outputs.

        Returns:
            hidden_states, num_hidden_layers + 1 in all: the encoder's input and each layer's output; and
            last_hidden_state, which has passed the final norm if `do_stable_layer_norm`.
        """
        c = self.config
        h = _FeatureExtractor(c, name="feature_extractor")(audio, moment_frames)
        if taps is not None:
            h = interpolate_at(h, taps)
        elif lengths is not None:
            lengths = c.length(lengths)
        h = _FeatureProjection(c, name="feature_projection")(h)
        return _Encoder(c, name="encoder")(h, lengths)


class _FeatureExtractor(nn.Module):
    config: Wav2Vec2Config

    @nn.compact
    def __call__(self, audio: AnyArray, moment_frames: AnyArray | None = None) -> States:
        c, h = self.config, audio[..., None]
        for i in range(len(c.conv_dim)):
            h = _ConvLayer(c, i, name=f"conv_layers_{i}")(h, moment_frames if i == 0 else None)
        return h


class _ConvLayer(nn.Module):
    config: Wav2Vec2Config
    index: int

    @nn.compact
    def __call__(self, x: AnyArray, moment_frames: AnyArray | None = None) -> States:
        c, i = self.config, self.index
        conv = nn.Conv(
            c.conv_dim[i], c.conv_kernel[i], c.conv_stride[i], "VALID", use_bias=c.conv_bias, dtype=c.dtype,
            kernel_init=FAN_IN_NORMAL, bias_init=ZEROS, name="conv",
        )  # fmt: skip
        h = conv(x)
        if c.feat_extract_norm == "layer":
            h = _norm(1e-5, c.dtype, "layer_norm")(h)
        elif i == 0:
            sample = h if moment_frames is None else conv(moment_frames.reshape(-1, moment_frames.shape[-1], 1))
            h = _TimeNorm(c.dtype, name="layer_norm")(h, sample.reshape(h.shape[0], -1, h.shape[-1]))
        return nn.gelu(h, approximate=False)


class _TimeNorm(nn.Module):
    """Group norm with one channel per group, by the mean and variance over time of a sample of its input."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "batch time channels"], sample: Float[AnyArray, "batch sample_time channels"]
    ) -> Float[AnyArray, "batch time channels"]:
        scale = self.param("scale", ONES, x.shape[-1:])
        bias = self.param("bias", ZEROS, x.shape[-1:])
        sample = sample.astype(jnp.float32)
        mean, variance = sample.mean(1, keepdims=True), sample.var(1, keepdims=True)
        return ((x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + bias).astype(self.dtype)


class _FeatureProjection(nn.Module):
    config: Wav2Vec2Config

    @nn.compact
    def __call__(self, x: States) -> Float[AnyArray, "batch time {self.config.hidden_size}"]:
        c = self.config
        return Dense(c.hidden_size, dtype=c.dtype, name="projection")(_norm(c.layer_norm_eps, c.dtype)(x))


class _Encoder(nn.Module):
    config: Wav2Vec2Config

    @nn.compact
    def __call__(
        self, x: States, valid: Int[AnyArray, " batch"] | None = None
    ) -> tuple[tuple[States, ...], States]:
        """Returns all hidden states and the last one; only the first `valid` of x are not padding."""
        c = self.config
        if valid is not None:
            x = jnp.where(jnp.arange(x.shape[1])[:, None] < valid[:, None, None], x, 0)
        x = x + _PositionalConv(c, name="pos_conv_embed")(x)
        norm = _norm(c.layer_norm_eps, c.dtype)
        states = [x if c.do_stable_layer_norm else norm(x)]
        for i in range(c.num_hidden_layers):
            states.append(_EncoderLayer(c, name=f"layers_{i}")(states[-1], valid))
        return tuple(states), norm(states[-1]) if c.do_stable_layer_norm else states[-1]


class _PositionalConv(nn.Module):
    """A grouped convolution over time that replaces position embeddings; it keeps the length."""

    config: Wav2Vec2Config

    @nn.compact
    def __call__(self, x: States) -> States:
        c = self.config
        conv = _WeightNormConv(c.num_conv_pos_embeddings, c.num_conv_pos_embedding_groups, c.dtype, name="conv")
        return nn.gelu(conv(x), approximate=False)


class _WeightNormConv(nn.Module):
    """A convolution whose kernel is g * v / |v| for each tap (Salimans & Kingma 2016), with torch's parameters g and v.

    An even kernel extends one step further into the past than into the future.
    """

    kernel: int
    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: States) -> States:
        features = x.shape[-1]
        g = self.param("weight_g", ONES, (self.kernel, 1, 1))
        v = self.param("weight_v", FAN_IN_NORMAL, (self.kernel, features // self.groups, features))
        v = v.astype(self.dtype).astype(jnp.float32)  # the precision in which it is stored and gathered over a mesh
        bias = self.param("bias", ZEROS, (features,))
        kernel = g * v / jnp.linalg.norm(v.reshape(self.kernel, -1), axis=1)[:, None, None]
        y = jax.lax.conv_general_dilated(
            jnp.asarray(x, self.dtype), kernel.astype(self.dtype), (1,), [(self.kernel // 2, (self.kernel - 1) // 2)],
            dimension_numbers=("NHC", "HIO", "NHC"), feature_group_count=self.groups,
        )  # fmt: skip
        return y + bias.astype(self.dtype)


class _EncoderLayer(nn.Module):
    config: Wav2Vec2Config

    @nn.compact
    def __call__(self, x: States, valid: AnyArray | None = None) -> States:
        c = self.config
        attention, feed_forward = _Attention(c, name="attention"), _FeedForward(c, name="feed_forward")
        first = _norm(c.layer_norm_eps, c.dtype, "layer_norm")
        second = _norm(c.layer_norm_eps, c.dtype, "final_layer_norm")
        if c.do_stable_layer_norm:
            x = x + attention(first(x), valid)
            return x + feed_forward(second(x))
        x = first(x + attention(x, valid))
        return second(x + feed_forward(x))


class _Attention(nn.Module):
    config: Wav2Vec2Config

    @nn.compact
    def __call__(self, x: States, valid: AnyArray | None = None) -> States:
        c = self.config

        def project(name: str) -> AnyArray:
            y = Dense(c.hidden_size, dtype=c.dtype, name=name)(x)
            return rearrange(y, "batch time (heads size) -> batch time heads size", heads=c.num_attention_heads)

        query, key, value = project("q_proj"), project("k_proj"), project("v_proj")
        y = jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=valid)
        return Dense(c.hidden_size, dtype=c.dtype, name="out_proj")(y.reshape(x.shape))


class _FeedForward(nn.Module):
    config: Wav2Vec2Config

    @nn.compact
    def __call__(self, x: States) -> States:
        c = self.config
        h = Dense(c.intermediate_size, dtype=c.dtype, name="intermediate_dense")(x)
        return Dense(c.hidden_size, dtype=c.dtype, name="output_dense")(nn.gelu(h, approximate=False))


def _norm(epsilon: float, dtype: Any, name: str = "layer_norm") -> nn.LayerNorm:
    # Flax's fast variance is inexact here: a few channels of the hidden states are far from zero.
    return LayerNorm(epsilon, dtype=dtype, use_fast_variance=False, name=name)

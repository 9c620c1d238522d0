"""wav2vec 2.0 (Baevski et al. 2020), every hidden state of it; names follow transformers' paths."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config:
    """Geometry by transformers' names; the defaults, here and there, are wav2vec2-base.

    Attributes:
        feat_extract_norm: "group": the first convolution's output is normalised over time (base); "layer": every
            convolution's over channels (large).
        do_stable_layer_norm: norms in front of attention and feed-forward (large) and not behind them (base).
        do_normalize: of transformers' feature extractor: the network wants sound of mean 0 and variance 1.

    Raises:
        ValueError: sizes that do not fit together.
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

    def __post_init__(self):
        if self.feat_extract_norm not in ("group", "layer"):
            raise ValueError(f"wav2vec2.feat_extract_norm is {self.feat_extract_norm!r}; expected 'group' or 'layer'")
        if not len(self.conv_dim) == len(self.conv_stride) == len(self.conv_kernel) > 0:
            raise ValueError("wav2vec2.conv_dim, conv_stride and conv_kernel differ in length; one entry per layer")
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if self.hidden_size % getattr(self, name):
                raise ValueError(f"wav2vec2.{name} is {getattr(self, name)}; expected a divisor of {self.hidden_size}")

    @property
    def stride(self):
        """Samples between two outputs: 320, 20 ms."""
        return math.prod(self.conv_stride)

    @property
    def field(self):
        """Samples that an output of the convolutions sees: 400, output j those from `stride * j` on."""
        layers = reversed(list(zip(self.conv_kernel, self.conv_stride, strict=True)))
        return functools.reduce(lambda size, layer: (size - 1) * layer[1] + layer[0], layers, 1)

    def length(self, samples):
        """Outputs for `samples` samples, an int or an array."""
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples


class Wav2Vec2(nn.Module):
    """Maps sound (B, samples) at 16 kHz to hidden states (B, T, hidden_size), 50 a second."""

    config: Wav2Vec2Config

    @nn.compact
    def __call__(self, audio, lengths=None, sketch=None):
        """As transformers' Wav2Vec2Model(audio, attention_mask, output_hidden_states=True).

        Args:
            audio: (B, samples); zeros where padded.
            lengths: (B,) samples of each that are no padding, the sums of attention_mask; None: no mask.
            sketch: (B, n, conv_kernel[0]), frames on which group norm measures (audio_encoder.sketch) where `audio`
                is a window of something longer; None: on `audio`, padding included.

        Returns:
            (hidden_states, last_hidden_state): the encoder's input and each layer's output, num_hidden_layers + 1 in
            all, and the last one, through the final norm where norms stand in front.
        """
        c = self.config
        h = _FeatureExtractor(c, name="feature_extractor")(audio, sketch)
        h = _FeatureProjection(c, name="feature_projection")(h)
        return _Encoder(c, name="encoder")(h, None if lengths is None else c.length(lengths))


class _FeatureExtractor(nn.Module):
    config: Wav2Vec2Config

    @nn.compact
    def __call__(self, audio, sketch=None):
        c, h = self.config, audio[..., None]
        for i in range(len(c.conv_dim)):
            h = _ConvLayer(c, i, name=f"conv_layers_{i}")(h, sketch if i == 0 else None)
        return h


class _ConvLayer(nn.Module):
    config: Wav2Vec2Config
    index: int

    @nn.compact
    def __call__(self, x, sketch=None):
        c, i = self.config, self.index
        conv = nn.Conv(
            c.conv_dim[i], c.conv_kernel[i], c.conv_stride[i], "VALID", use_bias=c.conv_bias, dtype=c.dtype, name="conv"
        )
        h = conv(x)
        if c.feat_extract_norm == "layer":
            h = _norm(1e-5, c.dtype, "layer_norm")(h)
        elif i == 0:
            measured = h if sketch is None else conv(sketch.reshape(-1, sketch.shape[-1], 1))
            h = _TimeNorm(c.dtype, name="layer_norm")(h, measured.reshape(h.shape[0], -1, h.shape[-1]))
        return nn.gelu(h, approximate=False)


class _TimeNorm(nn.Module):
    """Group norm with a group for each channel: x (B, T, C), by mean and variance over time of `measured` (B, t, C)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, measured):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        measured = measured.astype(jnp.float32)
        mean, variance = measured.mean(1, keepdims=True), measured.var(1, keepdims=True)
        return ((x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + bias).astype(self.dtype)


class _FeatureProjection(nn.Module):
    config: Wav2Vec2Config

    @nn.compact
    def __call__(self, x):
        c = self.config
        return nn.Dense(c.hidden_size, dtype=c.dtype, name="projection")(_norm(c.layer_norm_eps, c.dtype)(x))


class _Encoder(nn.Module):
    config: Wav2Vec2Config

    @nn.compact
    def __call__(self, x, valid=None):
        """Hidden states of x (B, T, D), of which the first `valid` (B,) are no padding."""
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
    """A grouped convolution over time in place of position embeddings, as long as its input."""

    config: Wav2Vec2Config

    @nn.compact
    def __call__(self, x):
        c = self.config
        conv = _WeightNormConv(c.num_conv_pos_embeddings, c.num_conv_pos_embedding_groups, c.dtype, name="conv")
        return nn.gelu(conv(x), approximate=False)


class _WeightNormConv(nn.Module):
    """A convolution whose kernel is g * v / |v| for each tap (Salimans & Kingma 2016); both are kept as torch has them.

    An even kernel sees one step more of the past than of the future.
    """

    kernel: int
    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        features, initial = x.shape[-1], nn.initializers.normal()
        g = self.param("weight_g", nn.initializers.ones, (self.kernel, 1, 1))
        v = self.param("weight_v", initial, (self.kernel, features // self.groups, features))
        v = v.astype(self.dtype).astype(jnp.float32)  # as precise as it is at rest, and travels over a mesh
        bias = self.param("bias", nn.initializers.zeros, (features,))
        kernel = g * v / jnp.linalg.norm(v.reshape(self.kernel, -1), axis=1)[:, None, None]
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel.astype(self.dtype), (1,), [(self.kernel // 2, (self.kernel - 1) // 2)],
            dimension_numbers=("NHC", "HIO", "NHC"), feature_group_count=self.groups,
        )  # fmt: skip
        return y + bias.astype(self.dtype)


class _EncoderLayer(nn.Module):
    config: Wav2Vec2Config

    @nn.compact
    def __call__(self, x, valid=None):
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
    def __call__(self, x, valid=None):
        c = self.config

        def project(name):
            y = nn.Dense(c.hidden_size, dtype=c.dtype, name=name)(x)
            return y.reshape(*y.shape[:-1], c.num_attention_heads, -1)

        query, key, value = project("q_proj"), project("k_proj"), project("v_proj")
        y = jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=valid)
        return nn.Dense(c.hidden_size, dtype=c.dtype, name="out_proj")(y.reshape(x.shape))


class _FeedForward(nn.Module):
    config: Wav2Vec2Config

    @nn.compact
    def __call__(self, x):
        c = self.config
        h = nn.Dense(c.intermediate_size, dtype=c.dtype, name="intermediate_dense")(x)
        return nn.Dense(c.hidden_size, dtype=c.dtype, name="output_dense")(nn.gelu(h, approximate=False))


def _norm(epsilon, dtype, name="layer_norm"):
    # not flax's fast variance: hidden states have a few channels far from zero
    return nn.LayerNorm(epsilon, dtype=dtype, use_fast_variance=False, name=name)

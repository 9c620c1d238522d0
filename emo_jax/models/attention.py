"""Attention layers, and the spatial transformer with reference-attention and audio-attention (Section 3.2)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Bool, Float

from emo_jax.arrays import AnyArray
from emo_jax.distributed.activations import constrain, per_device
from emo_jax.models.initializers import FAN_IN_NORMAL, FanInNormal, Initializer
from emo_jax.models.layers import Dense, GroupNorm, LayerNorm, grid_positions
from emo_jax.ops.attention import attention

ALIGNED_KEYS = FanInNormal(gain=2.0, same_as=("to_k", "to_q"))
"""Keys that start as twice the queries, so that equal tokens attend to each other.

With independent keys, some layers of reference-attention never learn to attend.
"""


class Attention(nn.Module):
    """Multi-head attention.

    Attributes:
        heads: number of heads.
        bias: whether queries, keys and values have biases.
        key_init: initialiser of the keys' kernel.
        out_init: initialiser of the output's kernel.
    """

    heads: int
    bias: bool = False
    dtype: Any = jnp.float32
    key_init: Initializer = FAN_IN_NORMAL
    out_init: Initializer = FAN_IN_NORMAL

    @nn.compact
    def __call__(
        self,
        x: Float[AnyArray, "*lead queries channels"],
        context: Float[AnyArray, "*shared keys features"] | None = None,
        extra: Float[AnyArray, "extra_batch images extra_keys channels"] | None = None,
        extra_on: Bool[AnyArray, " extra_batch"] | None = None,
    ) -> Float[AnyArray, "*lead queries channels"]:
        """Computes attention of x to a context.

        Args:
            x: the queries' tokens.
            context: the keys' tokens; None for self-attention. Its leading axes may be those of x or 1.
            extra: tokens of images whose keys and values are appended in self-attention. Frame j of f sees image
                number (f + j) % images. If there are fewer than samples of x, they belong to the last ones, and the
                others see their own tokens alone.
            extra_on: whether a sample sees them. The others see their own tokens twice, which changes nothing.
        """
        context = x if context is None else context
        channels = x.shape[-1]

        def dense(name: str, init: Initializer = FAN_IN_NORMAL) -> nn.Dense:
            return Dense(channels, use_bias=self.bias, dtype=self.dtype, kernel_init=init, name=name)

        def heads_of(layer: nn.Dense) -> Callable[[AnyArray], AnyArray]:
            return lambda a: rearrange(layer(a), "... (heads features) -> ... heads features", heads=self.heads)

        query_layer, to_k, to_v = dense("to_q"), heads_of(dense("to_k", self.key_init)), heads_of(dense("to_v"))
        to_q = heads_of(query_layer)
        to_out = Dense(channels, dtype=self.dtype, kernel_init=self.out_init, name="to_out_0")
        keys, is_shared = context.shape[-2], x.ndim == context.ndim == 4 and context.shape[1] == 1 < x.shape[1]
        if keys == 1 and extra is None and not self.is_initializing():
            # The weight of a single key is 1 whatever the query is.
            y = to_out(rearrange(to_v(context), "... heads features -> ... (heads features)"))
            return jnp.broadcast_to(y, x.shape)
        if is_shared and keys * self.heads < channels and not self.bias and not self.is_initializing():
            return _attend_to_few(x, to_k(context)[:, 0], to_v(context)[:, 0], query_layer, to_out)
        query, key, value = to_q(x), to_k(context), to_v(context)
        key, value = (jnp.broadcast_to(a, (*query.shape[:-3], *a.shape[-3:])) for a in (key, value))
        alone = 0 if extra is None else len(x) - len(extra)  # samples without extra tokens
        parts = [per_device(attention, *(a[:alone] for a in (query, key, value)))] if alone else []
        query, key, value = (a[alone:] for a in (query, key, value))
        if extra is not None:
            key, value = _append(key, to_k(extra), extra_on), _append(value, to_v(extra), extra_on)
        y = jnp.concatenate([*parts, per_device(attention, query, key, value)])
        return to_out(rearrange(y, "... heads features -> ... (heads features)"))


def _attend_to_few(x: AnyArray, key: AnyArray, value: AnyArray, to_q: nn.Dense, to_out: nn.Dense) -> AnyArray:
    """Computes attention of (batch, places, frames, channels) to few keys (batch, keys, heads, features) of all places.

    Queries and outputs are never computed: the products of their kernels with keys and values have fewer columns. The
    scores have tokens as their last axis, so that they fill the lanes of a TPU.
    """
    (heads, width), dtype = key.shape[-2:], key.dtype
    kernels = (layer.get_variable("params", "kernel").astype(dtype) for layer in (to_q, to_out))
    ask, answer = (a.reshape(shape) for a, shape in zip(kernels, [(-1, heads, width), (heads, width, -1)], strict=True))
    ask = jnp.einsum("bkhd,chd->bhkc", key, ask * width**-0.5)
    answer = jnp.einsum("bkhd,hdc->bhkc", value, answer)
    tokens = rearrange(x, "batch places frames channels -> batch (places frames) channels")
    scores = jnp.einsum("btc,bhkc->bhkt", tokens, ask, preferred_element_type=jnp.float32)
    y = jnp.einsum("bhkt,bhkc->btc", nn.softmax(scores, axis=2).astype(dtype), answer)
    return y.reshape(x.shape) + to_out.get_variable("params", "bias").astype(dtype)


def attend_where_given(attention: Callable[..., AnyArray], x: AnyArray, context: AnyArray, null: AnyArray) -> AnyArray:
    """Attends to a context that only the last samples have; the others attend to a null token.

    A null condition of equal tokens gives the same result as one of them, at nearly no cost.

    Args:
        attention: the layer.
        x: tokens of the samples (batch, ..., queries, channels).
        context: tokens (last samples, ..., keys, features).
        null: a token (1, ..., 1, features).
    """
    missing = len(x) - len(context)
    if not missing:
        return attention(x, context)
    return jnp.concatenate([attention(x[:missing], null), attention(x[missing:], context)])


def _append(own: AnyArray, extra: AnyArray, on: AnyArray | None) -> AnyArray:
    """Appends the keys or values of images (batch, images, tokens, heads, features) to those of frames."""
    frames, images = own.shape[1], extra.shape[1]
    extra = extra[:, [(frames + j) % images for j in range(frames)]] if images > 1 else extra
    extra = jnp.broadcast_to(extra, own.shape)
    if on is not None:
        extra = jnp.where(on[:, None, None, None, None], extra, own)
    return jnp.concatenate([own, extra], axis=2)


class _Geglu(nn.Module):
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*lead channels"]) -> Float[AnyArray, "*lead features"]:
        value, gate = jnp.split(Dense(2 * self.features, dtype=self.dtype, name="proj")(x), 2, axis=-1)
        return value * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU feed-forward network (Shazeer 2020) with four times as many inner features."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*lead channels"]) -> Float[AnyArray, "*lead channels"]:
        """Computes the network on each token."""
        h = _Geglu(4 * x.shape[-1], self.dtype, name="net_0")(x)
        return Dense(x.shape[-1], dtype=self.dtype, name="net_2")(h)


class TransformerBlock(nn.Module):
    """Self-attention, reference-attention, audio-attention and feed-forward network on the tokens of frames.

    Attributes:
        heads: number of heads.
        reference: 'cross' gives the reference an attention that replaces SD's text attention (EMO), 'concat' appends
            the reference to the keys and values of self-attention after a norm, 'shared' without one, as hallo and
            EchoMimic do, 'off' omits it.
        audio: whether the block has audio-attention.
        face: whether the block attends to the tokens of the face embedding, where SD attends to text.
        norm_feature: whether the feature is the normalised input of self-attention rather than the state after it.
        feature_only: whether the block ends at its feature (ReferenceNet's last layer).
        added_init: initialiser of audio-attention's output.
        audio_gain: factor of audio-attention's output, its bias included (EchoMimic: 3).
    """

    heads: int
    reference: str = "off"
    audio: bool = False
    face: bool = False
    norm_feature: bool = False
    feature_only: bool = False
    dtype: Any = jnp.float32
    added_init: Initializer = FAN_IN_NORMAL
    audio_gain: float = 1.0

    @nn.compact
    def __call__(
        self,
        x: Float[AnyArray, "batch frames tokens channels"],
        reference: Float[AnyArray, "reference_batch images reference_tokens channels"] | None = None,
        audio: Float[AnyArray, "audio_batch frames audio_tokens features"] | None = None,
        face: Float[AnyArray, "batch face_images face_tokens face_features"] | None = None,
        reference_on: Bool[AnyArray, " reference_batch"] | None = None,
        positions: Float[AnyArray, "tokens channels"] | float = 0.0,
    ) -> tuple[Float[AnyArray, "batch frames tokens channels"], Float[AnyArray, "batch frames tokens channels"]]:
        """Returns the result and the feature.

        Args:
            x: tokens of the frames.
            reference: tokens of the reference image. In modes 'cross' (without positions) and 'shared', the first
                samples may be missing, which have a null reference.
            audio: audio tokens of each frame. The first samples may be missing, which have null audio.
            face: tokens of the face embedding, of all frames or of each.
            reference_on: in mode 'shared', whether a sample sees the reference; None: all do.
            positions: added to the inputs of reference-attention, queries and context, as in the temporal modules.
        """
        y = self._norm("norm1")(x)
        if self.feature_only and self.norm_feature:
            return x, y
        context, extra = y, reference if self.reference == "shared" else None
        if self.reference == "concat" and reference is not None:
            tokens = self._norm("norm_reference")(reference)
            context = jnp.concatenate([y, jnp.broadcast_to(tokens, (*y.shape[:2], *tokens.shape[2:]))], axis=2)
        x = x + self._attention("attn1")(y, context, extra, reference_on)
        feature = y if self.norm_feature else x
        if self.feature_only:
            return x, feature
        if self.reference == "cross" and reference is not None:
            norm = self._norm("norm_reference")
            null = norm(jnp.zeros((1, 1, 1, reference.shape[-1]), reference.dtype))
            y = self._norm("norm2")(x) + positions
            x = x + self._attend_to_reference(y, norm(reference) + positions, null)
        if self.face and face is not None:
            x = x + self._attention("attn2")(self._norm("norm2")(x), face)
        if self.audio and audio is not None:
            layer = self._attention("audio_attn", out_init=self.added_init)
            y = attend_where_given(layer, self._norm("norm_audio")(x), audio, jnp.zeros_like(audio[:1, :1, :1]))
            x = x + (y if self.audio_gain == 1 else self.audio_gain * y)
        return x + FeedForward(self.dtype, name="ff")(self._norm("norm3")(x)), feature

    def _attend_to_reference(self, x: AnyArray, reference: AnyArray, null: AnyArray) -> AnyArray:
        # One reference serves all frames: its keys and values are computed once.
        tokens = rearrange(x, "batch frames tokens channels -> batch (frames tokens) channels")
        layer = self._attention("attn2", key_init=ALIGNED_KEYS)
        return attend_where_given(layer, tokens, reference[:, 0], null[:, 0]).reshape(x.shape)

    def _attention(self, name: str, **inits: Any) -> Attention:
        return Attention(self.heads, dtype=self.dtype, name=name, **inits)

    def _norm(self, name: str) -> nn.LayerNorm:
        return LayerNorm(1e-5, dtype=self.dtype, name=name)


class SpatialTransformer(nn.Module):
    """SD's Transformer2DModel: norm, proj_in, one block, proj_out and a residual connection.

    Attributes:
        heads: number of heads.
        groups: groups of GroupNorm.
        reference: see `TransformerBlock`.
        audio: see `TransformerBlock`.
        face: see `TransformerBlock`.
        norm_feature: see `TransformerBlock`.
        feature_only: see `TransformerBlock`.
        positions: whether reference-attention gets the positions of tokens in the map.
        added_init: see `TransformerBlock`.
        audio_gain: see `TransformerBlock`.
    """

    heads: int
    groups: int
    reference: str = "off"
    audio: bool = False
    face: bool = False
    norm_feature: bool = False
    feature_only: bool = False
    positions: bool = False
    dtype: Any = jnp.float32
    added_init: Initializer = FAN_IN_NORMAL
    audio_gain: float = 1.0

    @nn.compact
    def __call__(
        self,
        x: Float[AnyArray, "batch frames height width channels"],
        reference: Float[AnyArray, "reference_batch images height width channels"] | None = None,
        audio: Float[AnyArray, "audio_batch frames audio_tokens features"] | None = None,
        face: Float[AnyArray, "batch face_images face_tokens face_features"] | None = None,
        reference_on: Bool[AnyArray, " reference_batch"] | None = None,
    ) -> tuple[
        Float[AnyArray, "batch frames height width channels"], Float[AnyArray, "batch frames height width channels"]
    ]:
        """Returns the result and the feature that ReferenceNet passes to the Backbone at this layer."""
        height, width, channels = x.shape[-3:]
        h = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x)
        h = Dense(channels, dtype=self.dtype, name="proj_in")(tokens_of(h))
        if reference is not None:
            reference = tokens_of(constrain(reference, "shared"))
        block = TransformerBlock(
            self.heads, self.reference, self.audio, self.face, self.norm_feature, self.feature_only, self.dtype,
            self.added_init, self.audio_gain, name="transformer_blocks_0",
        )  # fmt: skip
        positions = grid_positions(height, width, channels).astype(h.dtype) if self.positions else 0.0
        h, feature = block(h, reference, audio, face, reference_on, positions)
        feature = feature.reshape(x.shape)
        if self.feature_only:
            return x, feature
        return x + Dense(channels, dtype=self.dtype, name="proj_out")(h).reshape(x.shape), feature


def tokens_of(x: Float[AnyArray, "batch frames height width channels"]) -> Float[AnyArray, "batch frames _ channels"]:
    """Returns the places of maps as tokens, row by row."""
    return rearrange(x, "batch frames height width channels -> batch frames (height width) channels")

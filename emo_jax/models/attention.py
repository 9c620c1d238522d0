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
        extra: Float[AnyArray, "batch images extra_keys channels"] | None = None,
        extra_on: Bool[AnyArray, " batch"] | None = None,
    ) -> Float[AnyArray, "*lead queries channels"]:
        """Computes attention of x to a context.

        Args:
            x: the queries' tokens.
            context: the keys' tokens; None for self-attention. Its leading axes may be those of x or 1.
            extra: tokens of images whose keys and values are appended in self-attention. Frame j of f sees image
                number (f + j) % images.
            extra_on: whether a sample sees them. The others see their own tokens twice, which changes nothing.
        """
        context = x if context is None else context
        channels = x.shape[-1]

        def projection(name: str, init: Initializer = FAN_IN_NORMAL) -> Callable[[AnyArray], AnyArray]:
            dense = Dense(channels, use_bias=self.bias, dtype=self.dtype, kernel_init=init, name=name)
            return lambda a: rearrange(dense(a), "... (heads features) -> ... heads features", heads=self.heads)

        to_q, to_k, to_v = projection("to_q"), projection("to_k", self.key_init), projection("to_v")
        query, key, value = to_q(x), to_k(context), to_v(context)
        key, value = (jnp.broadcast_to(a, (*query.shape[:-3], *a.shape[-3:])) for a in (key, value))
        if extra is not None:
            key, value = _append(key, to_k(extra), extra_on), _append(value, to_v(extra), extra_on)
        y = rearrange(per_device(attention, query, key, value), "... heads features -> ... (heads features)")
        return Dense(channels, dtype=self.dtype, kernel_init=self.out_init, name="to_out_0")(y)


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
    """

    heads: int
    reference: str = "off"
    audio: bool = False
    face: bool = False
    norm_feature: bool = False
    feature_only: bool = False
    dtype: Any = jnp.float32
    added_init: Initializer = FAN_IN_NORMAL

    @nn.compact
    def __call__(
        self,
        x: Float[AnyArray, "batch frames tokens channels"],
        reference: Float[AnyArray, "batch images reference_tokens channels"] | None = None,
        audio: Float[AnyArray, "batch frames audio_tokens features"] | None = None,
        face: Float[AnyArray, "batch face_images face_tokens face_features"] | None = None,
        reference_on: Bool[AnyArray, " batch"] | None = None,
        positions: Float[AnyArray, "tokens channels"] | float = 0.0,
    ) -> tuple[Float[AnyArray, "batch frames tokens channels"], Float[AnyArray, "batch frames tokens channels"]]:
        """Returns the result and the feature.

        Args:
            x: tokens of the frames.
            reference: tokens of the reference image.
            audio: audio tokens of each frame.
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
            context = self._norm("norm_reference")(reference) + positions
            x = x + self._attend_to_reference(self._norm("norm2")(x) + positions, context)
        if self.face and face is not None:
            x = x + self._attention("attn2")(self._norm("norm2")(x), face)
        if self.audio and audio is not None:
            x = x + self._attention("audio_attn", out_init=self.added_init)(self._norm("norm_audio")(x), audio)
        return x + FeedForward(self.dtype, name="ff")(self._norm("norm3")(x)), feature

    def _attend_to_reference(self, x: AnyArray, reference: AnyArray) -> AnyArray:
        # One reference serves all frames: its keys and values are computed once.
        tokens = rearrange(x, "batch frames tokens channels -> batch (frames tokens) channels")
        y = self._attention("attn2", key_init=ALIGNED_KEYS)(tokens, reference[:, 0])
        return y.reshape(x.shape)

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

    @nn.compact
    def __call__(
        self,
        x: Float[AnyArray, "batch frames height width channels"],
        reference: Float[AnyArray, "batch images height width channels"] | None = None,
        audio: Float[AnyArray, "batch frames audio_tokens features"] | None = None,
        face: Float[AnyArray, "batch face_images face_tokens face_features"] | None = None,
        reference_on: Bool[AnyArray, " batch"] | None = None,
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
            self.added_init, name="transformer_blocks_0",
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

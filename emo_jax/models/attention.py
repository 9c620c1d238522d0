"""Attention layers, and the spatial transformer with reference-attention and audio-attention (Section 3.2)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Float

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
        context: Float[AnyArray, "*lead keys features"] | None = None,
    ) -> Float[AnyArray, "*lead queries channels"]:
        """Computes attention of x to a context; None for self-attention."""
        context = x if context is None else context
        channels = x.shape[-1]

        def project(name: str, a: AnyArray, init: Initializer = FAN_IN_NORMAL) -> AnyArray:
            y = Dense(channels, use_bias=self.bias, dtype=self.dtype, kernel_init=init, name=name)(a)
            return rearrange(y, "... (heads features) -> ... heads features", heads=self.heads)

        query, key, value = project("to_q", x), project("to_k", context, self.key_init), project("to_v", context)
        y = rearrange(per_device(attention, query, key, value), "... heads features -> ... (heads features)")
        return Dense(channels, dtype=self.dtype, kernel_init=self.out_init, name="to_out_0")(y)


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
            the reference to the keys and values of self-attention (the open relatives), 'off' omits it.
        audio: whether the block has audio-attention.
        feature_only: whether the block ends at its feature, the state after self-attention (ReferenceNet's last layer).
        added_init: initialiser of audio-attention's output.
    """

    heads: int
    reference: str = "off"
    audio: bool = False
    feature_only: bool = False
    dtype: Any = jnp.float32
    added_init: Initializer = FAN_IN_NORMAL

    @nn.compact
    def __call__(
        self,
        x: Float[AnyArray, "batch frames tokens channels"],
        reference: Float[AnyArray, "batch 1 reference_tokens channels"] | None = None,
        audio: Float[AnyArray, "batch frames audio_tokens features"] | None = None,
        positions: Float[AnyArray, "tokens channels"] | float = 0.0,
    ) -> tuple[Float[AnyArray, "batch frames tokens channels"], Float[AnyArray, "batch frames tokens channels"]]:
        """Returns the result and the feature.

        Args:
            x: tokens of the frames.
            reference: tokens of the reference image.
            audio: audio tokens of each frame.
            positions: added to the inputs of reference-attention, queries and context, as in the temporal modules.
        """
        y = self._norm("norm1")(x)
        context = y
        if self.reference == "concat" and reference is not None:
            tokens = self._norm("norm_reference")(reference)
            context = jnp.concatenate([y, jnp.broadcast_to(tokens, (*y.shape[:2], *tokens.shape[2:]))], axis=2)
        x = x + self._attention("attn1")(y, context)
        feature = x
        if self.feature_only:
            return x, feature
        if self.reference == "cross" and reference is not None:
            context = self._norm("norm_reference")(reference) + positions
            x = x + self._attend_to_reference(self._norm("norm2")(x) + positions, context)
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
        feature_only: see `TransformerBlock`.
        positions: whether reference-attention gets the positions of tokens in the map.
        added_init: see `TransformerBlock`.
    """

    heads: int
    groups: int
    reference: str = "off"
    audio: bool = False
    feature_only: bool = False
    positions: bool = False
    dtype: Any = jnp.float32
    added_init: Initializer = FAN_IN_NORMAL

    @nn.compact
    def __call__(
        self,
        x: Float[AnyArray, "batch frames height width channels"],
        reference: Float[AnyArray, "batch 1 height width channels"] | None = None,
        audio: Float[AnyArray, "batch frames audio_tokens features"] | None = None,
    ) -> tuple[
        Float[AnyArray, "batch frames height width channels"], Float[AnyArray, "batch frames height width channels"]
    ]:
        """Returns the result and the feature that ReferenceNet passes to the Backbone at this layer."""
        height, width, channels = x.shape[-3:]
        h = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x)
        h = Dense(channels, dtype=self.dtype, name="proj_in")(_tokens(h))
        if reference is not None:
            reference = _tokens(constrain(reference, "shared"))
        block = TransformerBlock(
            self.heads, self.reference, self.audio, self.feature_only, self.dtype, self.added_init,
            name="transformer_blocks_0",
        )  # fmt: skip
        positions = grid_positions(height, width, channels).astype(h.dtype) if self.positions else 0.0
        h, feature = block(h, reference, audio, positions)
        feature = feature.reshape(x.shape)
        if self.feature_only:
            return x, feature
        return x + Dense(channels, dtype=self.dtype, name="proj_out")(h).reshape(x.shape), feature


def _tokens(x: AnyArray) -> AnyArray:
    return rearrange(x, "batch frames height width channels -> batch frames (height width) channels")

"""Attention layers and the spatial transformer with reference- and audio-attention (Section 3.2)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import struct

from emo_jax.distributed.activations import constrain, per_device
from emo_jax.models.layers import GroupNorm, grid_positions
from emo_jax.ops.attention import attention


@struct.dataclass
class Conditions:
    """What the Backbone hears and sees besides the noisy latent; a part that is None is skipped.

    Attributes:
        reference: {layer: (B, 1, h, w, C)} ReferenceNet features of the reference image.
        motion: {layer: (B, n, h, w, C)} ReferenceNet features of the motion frames.
        audio: (B, f, tokens, D) audio tokens of each frame, A_gen.
        speed: (B, f, D) speed features.
        location: (B, 1, h, w, C0) Face Locator's map, added to conv_in's output.
        temporal: whether temporal modules run (a static choice; stage 1 trains on single frames without them).
    """

    reference: Any = None
    motion: Any = None
    audio: Any = None
    speed: Any = None
    location: Any = None
    temporal: bool = struct.field(pytree_node=False, default=True)


class Attention(nn.Module):
    """Multi-head attention of x (..., S, C) to context (..., T, D)."""

    heads: int
    bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, context=None):
        context = x if context is None else context
        features = x.shape[-1]

        def project(name, a):
            y = nn.Dense(features, use_bias=self.bias, dtype=self.dtype, name=name)(a)
            return y.reshape(*y.shape[:-1], self.heads, features // self.heads)

        y = per_device(attention, project("to_q", x), project("to_k", context), project("to_v", context))
        return nn.Dense(features, dtype=self.dtype, name="to_out_0")(y.reshape(*x.shape))


class _Geglu(nn.Module):
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        value, gate = jnp.split(nn.Dense(2 * self.features, dtype=self.dtype, name="proj")(x), 2, axis=-1)
        return value * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU feed-forward (Shazeer 2020) of (..., C), four times as wide inside."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        h = _Geglu(4 * x.shape[-1], self.dtype, name="net_0")(x)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="net_2")(h)


class TransformerBlock(nn.Module):
    """Self-, reference- and audio-attention and feed-forward on x (B, F, S, C).

    `reference` is the mode: 'cross' gives the reference its own attention in place of SD's text attention (EMO),
    'concat' appends it to self-attention's keys and values (the open relatives), 'off' leaves it out.
    `where` (S, C) is added to what cross-attends and to what it attends to, as in the temporal modules.
    With `feature_only` the block ends at its feature, the state after self-attention (ReferenceNet's last layer).
    Returns (x, feature), both (B, F, S, C).
    """

    heads: int
    reference: str = "off"
    audio: bool = False
    feature_only: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, reference=None, audio=None, where=0.0):
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
            seen = self._norm("norm_reference")(reference) + where
            x = x + self._attend_to_reference(self._norm("norm2")(x) + where, seen)
        if self.audio and audio is not None:
            x = x + self._attention("audio_attn")(self._norm("norm_audio")(x), audio)
        return x + FeedForward(self.dtype, name="ff")(self._norm("norm3")(x)), feature

    def _attend_to_reference(self, x, reference):
        batch, frames, tokens, channels = x.shape  # one reference serves all frames: its K and V are computed once
        y = self._attention("attn2")(x.reshape(batch, frames * tokens, channels), reference[:, 0])
        return y.reshape(x.shape)

    def _attention(self, name):
        return Attention(self.heads, dtype=self.dtype, name=name)

    def _norm(self, name):
        return nn.LayerNorm(1e-5, dtype=self.dtype, name=name)


class SpatialTransformer(nn.Module):
    """SD's Transformer2DModel on x (B, F, H, W, C): norm, proj_in, one block, proj_out, residual.

    Returns (x, feature); feature (B, F, H, W, C) is what ReferenceNet hands to the Backbone at this layer.
    """

    heads: int
    groups: int
    reference: str = "off"
    audio: bool = False
    feature_only: bool = False
    positions: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, reference=None, audio=None):
        shape = x.shape
        flat = (*shape[:2], -1, shape[-1])
        h = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x)
        h = nn.Dense(shape[-1], dtype=self.dtype, name="proj_in")(h.reshape(flat))
        if reference is not None:
            reference = constrain(reference, "shared")
            reference = reference.reshape(*reference.shape[:2], -1, shape[-1])
        block = TransformerBlock(
            self.heads, self.reference, self.audio, self.feature_only, self.dtype, name="transformer_blocks_0"
        )
        where = grid_positions(*shape[-3:]).astype(h.dtype) if self.positions else 0.0
        h, feature = block(h, reference, audio, where)
        feature = feature.reshape(shape)
        if self.feature_only:
            return x, feature
        return x + nn.Dense(shape[-1], dtype=self.dtype, name="proj_out")(h).reshape(shape), feature

"""AnimateDiff's temporal module with EMO's motion frames and speed layers (Section 3.2, Temporal Modules)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from emo_jax.distributed.activations import constrain
from emo_jax.models.attention import Attention, FeedForward
from emo_jax.models.layers import GroupNorm


def positions(length, features):
    """AnimateDiff's sinusoidal frame positions, sines and cosines interleaved: (length, features)."""
    rates = jnp.exp(jnp.arange(0, features, 2) * (-jnp.log(10_000.0) / features))
    angles = jnp.arange(length)[:, None] * rates
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(length, features)


class TemporalBlock(nn.Module):
    """Two self-attentions over frames, attention to the speed features, feed-forward, on x (B, S, F, C)."""

    heads: int
    speed: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, speed=None):
        where = positions(x.shape[-2], x.shape[-1]).astype(x.dtype)
        x = x + self._attention("attn1")(self._norm("norm1")(x) + where)
        x = x + self._attention("attn2")(self._norm("norm2")(x) + where)
        if self.speed and speed is not None:
            context = jnp.broadcast_to(speed[:, None], (*x.shape[:2], *speed.shape[1:]))
            x = x + self._attention("speed_attn")(self._norm("norm_speed")(x) + where, context)
        return x + FeedForward(self.dtype, name="ff")(self._norm("norm3")(x))

    def _attention(self, name):
        return Attention(self.heads, dtype=self.dtype, name=name)

    def _norm(self, name):
        return nn.LayerNorm(1e-5, dtype=self.dtype, name=name)


class MotionModule(nn.Module):
    """Temporal module: x (B, f, H, W, C) -> (B, f, H, W, C), the identity when new (proj_out starts at zero).

    The motion frames' features (B, n, H, W, C) are put before the clip along f and dropped behind it.
    """

    heads: int
    groups: int
    speed: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, motion=None, speed=None):
        x = constrain(x, "spatial")
        h = constrain(x, "temporal")
        if motion is not None:
            h = jnp.concatenate([constrain(motion.astype(x.dtype), "temporal"), h], axis=1)
        batch, frames, height, width, channels = h.shape
        h = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(h)
        h = h.reshape(batch, frames, -1, channels).swapaxes(1, 2)
        h = nn.Dense(channels, dtype=self.dtype, name="proj_in")(h)
        h = TemporalBlock(self.heads, self.speed, self.dtype, name="transformer_blocks_0")(h, speed)
        h = h[:, :, frames - x.shape[1] :]
        h = nn.Dense(channels, dtype=self.dtype, name="proj_out")(h)
        # both layouts are named: left to choose, XLA's partitioner gave proj_out a wrong gradient
        h = constrain(h.swapaxes(1, 2).reshape(x.shape), "temporal")
        return constrain(x + constrain(h, "spatial"), "spatial")

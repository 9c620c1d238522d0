"""AnimateDiff's temporal module with EMO's motion frames and speed layers (Section 3.2, Temporal Modules)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Float

from emo_jax.arrays import AnyArray
from emo_jax.distributed.activations import constrain
from emo_jax.models.attention import Attention, FeedForward
from emo_jax.models.initializers import FAN_IN_NORMAL, Initializer
from emo_jax.models.layers import Dense, GroupNorm, LayerNorm


def frame_encodings(length: int, features: int) -> Float[AnyArray, "{length} {features}"]:
    """Computes AnimateDiff's sinusoidal encodings of frame positions, with sines and cosines interleaved."""
    rates = jnp.exp(jnp.arange(0, features, 2) * (-jnp.log(10_000.0) / features))
    angles = jnp.arange(length)[:, None] * rates
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(length, features)


class TemporalBlock(nn.Module):
    """Two self-attentions over frames, attention to the speed features, and a feed-forward network.

    Attributes:
        heads: number of heads.
        speed: whether the block has a speed layer.
        added_init: initialiser of the speed layer's output.
        speed_positions: whether the speed features get the encodings of their frames' positions, so that a frame can
            attend to its own speed. Without them, only the set of a clip's speeds matters, not their order.
    """

    heads: int
    speed: bool = False
    dtype: Any = jnp.float32
    added_init: Initializer = FAN_IN_NORMAL
    speed_positions: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[AnyArray, "batch places all_frames channels"],
        speed: Float[AnyArray, "batch speed_frames features"] | None = None,
        motion_frames: int = 0,
    ) -> Float[AnyArray, "batch places frames channels"]:
        """Computes the block on the frames of each place.

        Motion frames leave the block after they have been keys and values of the second attention: nothing that
        follows mixes frames.

        Args:
            x: tokens of the motion frames, then of the clip's frames.
            speed: speed features of the clip's frames. A single one stands for all frames, if positions are not added.
            motion_frames: number of motion frames, which the result does not have.
        """
        positions = frame_encodings(x.shape[-2], x.shape[-1]).astype(x.dtype)
        x = x + self._attention("attn1")(self._norm("norm1")(x) + positions)
        context = self._norm("norm2")(x) + positions
        x, positions = x[:, :, motion_frames:], positions[motion_frames:]
        x = x + self._attention("attn2")(context[:, :, motion_frames:], context)
        if self.speed and speed is not None:
            if self.speed_positions:
                encodings = frame_encodings(motion_frames + speed.shape[1], speed.shape[-1])[motion_frames:]
                speed = speed + encodings.astype(speed.dtype)
            attention = self._attention("speed_attn", out_init=self.added_init)
            x = x + attention(self._norm("norm_speed")(x) + positions, speed[:, None])  # all places see the same speeds
        return x + FeedForward(self.dtype, name="ff")(self._norm("norm3")(x))

    def _attention(self, name: str, **inits: Any) -> Attention:
        return Attention(self.heads, dtype=self.dtype, name=name, **inits)

    def _norm(self, name: str) -> nn.LayerNorm:
        return LayerNorm(1e-5, dtype=self.dtype, name=name)


class MotionModule(nn.Module):
    """Temporal module; the identity if proj_out is zero, as in a new module of EMO.

    The motion frames' features are prepended to the clip along the frame axis, and dropped inside the block.

    Attributes:
        heads: number of heads.
        groups: groups of GroupNorm.
        speed: whether the module has a speed layer.
        added_init: initialiser of proj_out and of the speed layer's output.
        speed_positions: see `TemporalBlock`.
    """

    heads: int
    groups: int
    speed: bool = False
    dtype: Any = jnp.float32
    added_init: Initializer = FAN_IN_NORMAL
    speed_positions: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[AnyArray, "batch frames height width channels"],
        motion: Float[AnyArray, "batch motion_frames height width channels"] | None = None,
        speed: Float[AnyArray, "batch speed_frames features"] | None = None,
    ) -> Float[AnyArray, "batch frames height width channels"]:
        """Computes the module.

        Args:
            x: features of the clip's frames.
            motion: features of the motion frames.
            speed: speed features of the clip's frames.
        """
        x = constrain(x, "spatial")
        h = constrain(x, "temporal")
        if motion is not None:
            h = jnp.concatenate([constrain(motion.astype(x.dtype), "temporal"), h], axis=1)
        frames, channels = h.shape[1], h.shape[-1]
        h = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(h)
        h = rearrange(h, "batch frames height width channels -> batch frames (height width) channels").swapaxes(1, 2)
        h = Dense(channels, dtype=self.dtype, name="proj_in")(h)
        fields = self.heads, self.speed, self.dtype, self.added_init, self.speed_positions
        h = TemporalBlock(*fields, name="transformer_blocks_0")(h, speed, frames - x.shape[1])
        h = Dense(channels, dtype=self.dtype, kernel_init=self.added_init, name="proj_out")(h)
        # Both layouts are constrained: otherwise XLA's partitioner computed a wrong gradient of proj_out.
        h = constrain(h.swapaxes(1, 2).reshape(x.shape), "temporal")
        return constrain(x + constrain(h, "spatial"), "spatial")

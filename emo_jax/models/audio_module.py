"""Audio modules: transformers whose audio-attention has a branch for each region of the picture.

Source: hallo (arXiv 2406.08801, Section 3.3, hierarchical audio-driven visual synthesis).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from emo_jax.arrays import AnyArray
from emo_jax.distributed.activations import constrain
from emo_jax.models.attention import Attention, FeedForward, attend_where_given, tokens_of
from emo_jax.models.initializers import FAN_IN_NORMAL, Initializer
from emo_jax.models.layers import Dense, GroupNorm, LayerNorm

OUTPUTS = ("full", "face", "lip")
"""Ends of the names of the branches' output layers, in the order of `conditions.BRANCHES`."""


class AudioBlock(nn.Module):
    """Self-attention, three audio-attentions with masks and weights, and a feed-forward network.

    Attributes:
        heads: number of heads.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[AnyArray, "batch frames tokens channels"],
        audio: Float[AnyArray, "audio_batch frames audio_tokens features"],
        regions: Float[AnyArray, "batch tokens branches"],
        weights: Float[AnyArray, "batch branches"],
    ) -> Float[AnyArray, "batch frames tokens channels"]:
        """Computes the block.

        Args:
            x: tokens of the frames.
            audio: audio tokens of each frame. The first samples may be missing, which have null audio.
            regions: how much each branch counts at each place. It scales the branch before its output layer.
            weights: weights of the branches, which scale them after their output layers, biases included.
        """
        x = x + Attention(self.heads, dtype=self.dtype, name="attn1")(self._norm("norm1")(x))
        y, total, null = self._norm("norm2")(x), jnp.zeros_like(x), jnp.zeros_like(audio[:1, :1, :1])
        for i, name in enumerate(OUTPUTS):
            h = attend_where_given(Attention(self.heads, dtype=self.dtype, name=f"attn2_{i}"), y, audio, null)
            h = h * regions[:, None, :, i, None].astype(h.dtype)
            h = Dense(x.shape[-1], dtype=self.dtype, name=f"zero_conv_{name}")(h)
            total = total + h * weights[:, None, None, i, None].astype(h.dtype)
        x = x + total
        return x + FeedForward(self.dtype, name="ff")(self._norm("norm3")(x))

    def _norm(self, name: str) -> nn.LayerNorm:
        return LayerNorm(1e-5, dtype=self.dtype, name=name)


class AudioModule(nn.Module):
    """Norm, proj_in, one `AudioBlock`, proj_out and a residual connection.

    Attributes:
        heads: number of heads.
        groups: groups of GroupNorm.
        width: inner width.
        added_init: initialiser of proj_out.
    """

    heads: int
    groups: int
    width: int
    dtype: Any = jnp.float32
    added_init: Initializer = FAN_IN_NORMAL

    @nn.compact
    def __call__(
        self,
        x: Float[AnyArray, "batch frames height width channels"],
        audio: Float[AnyArray, "audio_batch frames audio_tokens features"],
        regions: Float[AnyArray, "batch height width branches"],
        weights: Float[AnyArray, "batch branches"],
    ) -> Float[AnyArray, "batch frames height width channels"]:
        """Computes the module; see `AudioBlock` for the arguments."""
        h = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x)
        h = Dense(self.width, dtype=self.dtype, name="proj_in")(tokens_of(h))
        block = AudioBlock(self.heads, self.dtype, name="transformer_blocks_0")
        h = block(h, audio, regions.reshape(regions.shape[0], -1, regions.shape[-1]), weights)
        h = Dense(x.shape[-1], dtype=self.dtype, kernel_init=self.added_init, name="proj_out")(h)
        return constrain(x + h.reshape(x.shape), "spatial")

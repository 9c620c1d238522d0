"""Projection of audio features to the tokens of audio-attention (Section 3.2, Audio Layers)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Float

from emo_jax.arrays import AnyArray
from emo_jax.distributed.activations import gathered_rows
from emo_jax.models.layers import Dense, LayerNorm, gather_window


class AudioProjector(nn.Module):
    """A_gen^f = concat{A^(f-m) ... A^(f+m)}, projected by an MLP to tokens.

    Attributes:
        tokens: number of tokens per frame.
        features: size of a token.
        hidden: size of the hidden layers.
        window: m, the number of neighbouring frames on either side.
    """

    tokens: int
    features: int
    hidden: int
    window: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[AnyArray, "batch window_frames layers size"]
    ) -> Float[AnyArray, "batch frames {self.tokens} {self.features}"]:
        """Projects the features of the frames, `layers` hidden states of `size` numbers each."""
        flat = rearrange(features, "batch frames layers size -> batch frames (layers size)").astype(self.dtype)
        h = gather_window(gathered_rows(flat), self.window)
        h = nn.relu(Dense(self.hidden, dtype=self.dtype, name="proj1")(h))
        h = nn.relu(Dense(self.hidden, dtype=self.dtype, name="proj2")(h))
        h = gathered_rows(Dense(self.tokens * self.features, dtype=self.dtype, name="proj3")(h))
        h = rearrange(h, "batch frames (tokens features) -> batch frames tokens features", tokens=self.tokens)
        return LayerNorm(1e-5, dtype=self.dtype, name="norm")(h)

"""From audio features to the tokens that audio-attention reads (Section 3.2, Audio Layers)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from emo_jax.distributed.activations import gathered_rows
from emo_jax.models.speed_encoder import gather_window


class AudioProjector(nn.Module):
    """A_gen^f = concat{A^(f-m) ... A^(f+m)} -> MLP -> tokens.

    Maps features (B, f + 2m, L, D), L hidden states of D numbers for each frame, to (B, f, tokens, features).
    """

    tokens: int
    features: int
    hidden: int
    window: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features):
        flat = features.reshape(*features.shape[:2], -1).astype(self.dtype)
        h = gather_window(gathered_rows(flat), self.window)
        h = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="proj1")(h))
        h = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="proj2")(h))
        h = gathered_rows(nn.Dense(self.tokens * self.features, dtype=self.dtype, name="proj3")(h))
        h = h.reshape(*h.shape[:2], self.tokens, self.features)
        return nn.LayerNorm(1e-5, dtype=self.dtype, name="norm")(h)

"""Projection of a face embedding to tokens that the spatial transformers attend to, as in IP-Adapter."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Float

from emo_jax.arrays import AnyArray
from emo_jax.models.layers import Dense, LayerNorm


class FaceProjector(nn.Module):
    """A linear map of an identity embedding to tokens (Ye et al. 2023, arXiv 2308.06721).

    Attributes:
        tokens: number of tokens.
        features: size of a token.
    """

    tokens: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, embedding: Float[AnyArray, "batch size"]
    ) -> Float[AnyArray, "batch 1 {self.tokens} {self.features}"]:
        """Projects the embeddings of faces; zeros stand for an unknown face."""
        h = Dense(self.tokens * self.features, dtype=self.dtype, name="proj")(embedding)
        h = rearrange(h, "batch (tokens features) -> batch 1 tokens features", tokens=self.tokens)
        return LayerNorm(1e-5, dtype=self.dtype, name="norm")(h)

"""Face Locator: the union of the clip's face boxes, as a mask, to the Backbone's first map (Section 3.2)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from emo_jax.models.layers import conv


class FaceLocator(nn.Module):
    """Strided convolutions: mask (B, H, W, 1) in {0, 1} -> (B, 1, H / factor, W / factor, features).

    One halving for each entry of `channels`.
    """

    channels: tuple[int, ...]
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, mask):
        h = mask.astype(self.dtype) * 2 - 1
        for i, width in enumerate(self.channels):
            h = nn.silu(conv(width, stride=2, dtype=self.dtype, name=f"blocks_{i}")(h))
        return conv(self.features, dtype=self.dtype, name="conv_out")(h)[:, None]

"""Face Locator: encodes a mask, the union of a clip's face boxes, at latent resolution (Section 3.2)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Num

from emo_jax.arrays import AnyArray
from emo_jax.models.initializers import FAN_IN_NORMAL, Initializer
from emo_jax.models.layers import conv


class FaceLocator(nn.Module):
    """Strided convolutions, each of which halves height and width.

    Attributes:
        channels: width of each convolution.
        features: channels of the map, those of the Backbone's first level.
        added_init: initialiser of the last convolution.
    """

    channels: tuple[int, ...]
    features: int
    dtype: Any = jnp.float32
    added_init: Initializer = FAN_IN_NORMAL

    @nn.compact
    def __call__(
        self, mask: Num[AnyArray, "batch height width 1"]
    ) -> Float[AnyArray, "batch 1 latent_height latent_width {self.features}"]:
        """Encodes a mask with values in {0, 1}."""
        h = mask.astype(self.dtype) * 2 - 1
        for i, width in enumerate(self.channels):
            h = nn.silu(conv(width, stride=2, dtype=self.dtype, name=f"blocks_{i}")(h))
        return conv(self.features, dtype=self.dtype, kernel_init=self.added_init, name="conv_out")(h)[:, None]

"""Face Locator: encodes a mask, the union of a clip's face boxes, at latent resolution (Section 3.2)."""

import itertools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Num

from emo_jax.arrays import AnyArray
from emo_jax.models.initializers import FAN_IN_NORMAL, Initializer
from emo_jax.models.layers import conv


class FaceLocator(nn.Module):
    """Convolutions that reduce a mask to latent resolution.

    Attributes:
        channels: style 'strided': width of each halving. Style 'controlnet': width at each resolution, finest first.
        features: channels of the map, those of the Backbone's first level.
        style: 'strided': each convolution halves height and width. 'controlnet': ControlNet's conditioning embedding,
            a convolution at each resolution and one that halves, on a mask in {0, 1}, as in the open relatives.
        inputs: number of equal channels that the mask is given as.
        added_init: initialiser of the last convolution.
    """

    channels: tuple[int, ...]
    features: int
    dtype: Any = jnp.float32
    added_init: Initializer = FAN_IN_NORMAL
    style: str = "strided"
    inputs: int = 1

    @nn.compact
    def __call__(
        self, mask: Num[AnyArray, "batch height width 1"]
    ) -> Float[AnyArray, "batch 1 latent_height latent_width {self.features}"]:
        """Encodes a mask with values in {0, 1}."""
        h = mask.astype(self.dtype)
        if self.style == "controlnet":
            h = jnp.repeat(h, self.inputs, axis=-1)
            h = nn.silu(conv(self.channels[0], dtype=self.dtype, name="conv_in")(h))
            widths = [(width, 1 + i) for pair in itertools.pairwise(self.channels) for i, width in enumerate(pair)]
        else:
            h, widths = h * 2 - 1, [(width, 2) for width in self.channels]
        for i, (width, stride) in enumerate(widths):
            h = nn.silu(conv(width, stride=stride, dtype=self.dtype, name=f"blocks_{i}")(h))
        return conv(self.features, dtype=self.dtype, kernel_init=self.added_init, name="conv_out")(h)[:, None]

"""Speed buckets and their encoder (Section 3.2, Speed Layers)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from emo_jax.arrays import AnyArray
from emo_jax.models.layers import Dense, gather_window


def buckets(
    speed: Float[AnyArray, "*lead"], centres: Sequence[float], radii: Sequence[float]
) -> Float[AnyArray, "*lead buckets"]:
    """Computes s_d = tanh((w - c_d) / r_d * 3).

    Args:
        speed: head rotation speed w in degrees per frame.
        centres: c_d of each bucket.
        radii: r_d of each bucket.
    """
    c, r = jnp.asarray(centres, jnp.float32), jnp.asarray(radii, jnp.float32)
    return jnp.tanh((speed[..., None] - c) / r * 3)


class SpeedEncoder(nn.Module):
    """S^f = concat{S^(f-m) ... S^(f+m)}, encoded by an MLP.

    Attributes:
        features: size of the speed features.
        window: m, the number of neighbouring frames on either side.
        centres: see `buckets`.
        radii: see `buckets`.
    """

    features: int
    window: int
    centres: tuple[float, ...]
    radii: tuple[float, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, speed: Float[AnyArray, "batch window_frames"]
    ) -> Float[AnyArray, "batch frames {self.features}"]:
        """Encodes head rotation speeds in degrees per frame."""
        h = gather_window(buckets(speed, self.centres, self.radii), self.window).astype(self.dtype)
        h = nn.silu(Dense(self.features, dtype=self.dtype, name="linear_1")(h))
        return Dense(self.features, dtype=self.dtype, name="linear_2")(h)

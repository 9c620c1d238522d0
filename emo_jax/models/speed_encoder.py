"""Speed buckets and their encoder (Section 3.2, Speed Layers)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


def buckets(speed, centres, radii):
    """s_d = tanh((w - c_d) / r_d * 3): head rotation speed (..., f) in degrees per frame -> (..., f, d)."""
    centres, radii = jnp.asarray(centres, jnp.float32), jnp.asarray(radii, jnp.float32)
    return jnp.tanh((speed[..., None] - centres) / radii * 3)


class SpeedEncoder(nn.Module):
    """S^f = concat{S^(f-m) ... S^(f+m)} -> MLP: speed (B, f + 2m) -> speed features (B, f, features)."""

    features: int
    window: int
    centres: tuple[float, ...]
    radii: tuple[float, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, speed):
        h = gather_window(buckets(speed, self.centres, self.radii), self.window).astype(self.dtype)
        h = nn.silu(nn.Dense(self.features, dtype=self.dtype, name="linear_1")(h))
        return nn.Dense(self.features, dtype=self.dtype, name="linear_2")(h)


def gather_window(x, m):
    """Concatenates 2m + 1 neighbours: (B, f + 2m, d) -> (B, f, (2m + 1) d), as in A_gen and S^f."""
    frames = x.shape[1] - 2 * m
    return jnp.concatenate([x[:, i : i + frames] for i in range(2 * m + 1)], axis=-1)
